"""Files mutated at random: what comes is a value that makes sense or a message, never another exception.

200 cases a kind of file here; ``pytest -m slow tests/reliability/test_fuzz.py`` takes 2000.
"""

import json
import pickle
import random
import resource
import shutil
import time

import numpy as np
import pytest
from recordings import figure, ring, seen, write_recording, write_video
from test_easymocap import easymocap

from models.body import load_body
from pipeline.calibrations import read_calibration
from pipeline.config import load
from pipeline.errors import MAX_MESSAGE, InputError
from pipeline.recording import find_recording
from pipeline.video import probe, read_frames
from stages.graph import RunConfig
from stages.inspect import inspect

CASES = pytest.mark.parametrize("cases", [200, pytest.param(2000, marks=pytest.mark.slow)])
SECONDS = 5.0
"""For one case, on a machine that has other things to do."""

WORDS = (
    b"nan", b"inf", b"-1", b"0", b"1e308", b"1e-320", b"99999999999999999999", b"null", b"true", b'""', b"[]",
    b"{}", b"[[", b"]", b'"', b"\n", b"\x00", b"\xff\xfe", b"../..", b"&a *a", b"!!python/object:os.system",
)  # fmt: skip


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits flipped, stretches cut, doubled or replaced, the end lost."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        a = rng.randrange(len(data) + 1)
        b = min(len(data), a + rng.choice((1, 1, 2, 5, 20, 200)))
        match rng.randrange(6):
            case 0 if a < len(data):
                data[a] ^= 1 << rng.randrange(8)
            case 1:
                del data[a:b]
            case 2:
                data[a:a] = data[a:b]
            case 3:
                data[a:b] = rng.choice(WORDS)
            case 4:
                data[a:a] = rng.choice(WORDS)
            case 5 if rng.random() < 0.2:
                del data[a:]
    return bytes(data)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Three cameras, eight frames, videos, and a recording.yaml that says something of everything."""
    folder = tmp_path_factory.mktemp("fuzz") / "recording"
    rig = ring(3, size=(320, 180))
    write_recording(folder, rig, [seen(rig, figure(np.arange(8) / 5), noise_px=0.2)])
    for name in rig.names:
        write_video(folder / "videos" / f"{name}.mp4", 8, size=(320, 180), rate=5)
    (folder / "recording.yaml").write_text(
        "keypoints: {format: body_25, path: keypoints, first_frame: 0}\n"
        "calibration: {path: calibration.toml, unit: m}\nframe_offset: {cam01: 1, cam02: 0}\nfps: 5/1\n"
    )
    assert len(find_recording(folder)) == 7
    return folder


def survives(what, cases, rng):
    """Call ``what(mutate)`` for each case; how many were refused with a message."""
    refused = longest = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(cases):
        begun = time.monotonic()
        try:
            what(lambda content: mutated(content, rng))
        except InputError as error:
            refused += len(str(error)) > 20  # a message
            longest = max(longest, len(str(error)))
        except Exception as error:
            raise AssertionError(f"case {case}: {type(error).__name__}: {error}") from error
        assert time.monotonic() - begun < SECONDS, f"case {case} hangs"
    assert longest <= MAX_MESSAGE
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 500, f"{grown:.0f} MB more"
    return refused


@CASES
@pytest.mark.parametrize("name", ["calibration.toml", "recording.yaml", "keypoints"])
@pytest.mark.filterwarnings("ignore")
def test_a_recording_with_a_mutated_file(original, tmp_path, name, cases):
    folder = shutil.copytree(original, tmp_path / "recording")
    rng = random.Random(name)

    def find(mutate):
        files = [folder / name] if name != "keypoints" else sorted(folder.glob("keypoints/*/*.json"))
        files = rng.sample(files, rng.choice((1, len(files))))
        kept = [file.read_bytes() for file in files]
        try:
            for file, content in zip(files, kept, strict=True):
                file.write_bytes(mutate(content))
            found = inspect(find_recording(folder))
        finally:
            for file, content in zip(files, kept, strict=True):
                file.write_bytes(content)
        rig = found.rig
        np.testing.assert_allclose(
            rig.R @ rig.R.transpose(0, 2, 1), np.tile(np.eye(3), (len(rig), 1, 1)), atol=1e-9
        )
        for values in (rig.K, rig.dist, rig.t):
            assert np.isfinite(values).all()
        assert (rig.K[:, [0, 1], [0, 1]] > 0).all()
        assert (rig.size > 0).all()
        assert 0 < len(found) <= 8
        known = found.people(np.arange(len(found)))
        assert ((known[..., 2] == 0) | np.isfinite(known).all(-1)).all()

    refused = survives(find, cases, rng)
    assert refused < cases, "some mutations do no harm"
    assert refused > (0 if name == "keypoints" else cases // 4), "and some do"


@CASES
def test_mutated_rotation_matrices(tmp_path, cases):
    """EasyMocap's pair of files, which holds matrices: they are rotations, or refused."""
    rng = random.Random(3)
    path = easymocap(tmp_path, ring(3), rotation="matrix")
    pair = path, path.with_name("extri.yml")
    kept = [file.read_bytes() for file in pair]

    def read(mutate):
        n = rng.randrange(2)
        pair[1 - n].write_bytes(kept[1 - n])
        pair[n].write_bytes(mutate(kept[n]))
        rig = read_calibration(path)
        np.testing.assert_allclose(np.linalg.det(rig.R), 1, atol=1e-9)
        np.testing.assert_allclose(
            rig.R @ rig.R.transpose(0, 2, 1), np.tile(np.eye(3), (len(rig), 1, 1)), atol=1e-9
        )

    assert 0 < survives(read, cases, rng) < cases


@CASES
def test_a_mutated_configuration(tmp_path, cases):
    rng = random.Random(4)
    values = json.dumps(RunConfig().model_dump(mode="json"), indent=1).encode()
    path = tmp_path / "mine.yaml"

    def read(mutate):
        path.write_bytes(mutate(values))
        load(RunConfig, [path])

    assert 0 < survives(read, cases, rng) < cases


@CASES
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_body(tmp_path, cases):
    rng = random.Random(5)
    model = {"f": np.zeros((4, 3), np.int32), "v_template": np.zeros((5, 3)), "weights": np.zeros((5, 24))}
    contents = {".pkl": pickle.dumps(model), ".npz": b""}
    np.savez(tmp_path / "m.npz", **model)
    contents[".npz"] = (tmp_path / "m.npz").read_bytes()

    def read(mutate):
        suffix = rng.choice([*contents])
        path = tmp_path / f"body{suffix}"
        path.write_bytes(mutate(contents[suffix]))
        load_body(path)

    assert survives(read, cases, rng) == cases, "none of them is a body"


@CASES
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_video(original, tmp_path, cases):
    rng = random.Random(6)
    content = (original / "videos" / "cam01.mp4").read_bytes()
    path = tmp_path / "cam01.mp4"

    def read(mutate):
        path.write_bytes(mutate(content))
        info = probe(path)
        assert len(info.times_s)
        assert (np.diff(info.times_s) > 0).all()
        shown = [*read_frames(info, range(min(len(info.times_s), 20)))]
        assert all(f is None or (f.width, f.height) == info.size for f in shown)

    assert survives(read, cases // 2, rng) < cases // 2
