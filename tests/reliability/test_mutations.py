"""Files whose structure is mutated: values, types, shapes, nesting and sizes, over every reader.

What comes is a value or a message of bounded length, never another exception, a hang or gigabytes. A share of
the 5,000 cases runs with the suite; ``pytest -m slow tests/reliability/test_mutations.py`` takes them all.
``test_mutated_formats.py`` has those of further readers.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import batch, contents, write_motion
from calibration_files import BY_HAND, module_of, put
from recordings import figure, ring, seen, write_recording
from test_fuzz import survives
from typer.main import get_command

import run_pipeline
from models.body import load_body
from models.datasets.rows import PersonRow, read_rows, to_arrays
from models.priors import load_pose_prior
from models.regressors.calibrated import CalibratedNet
from models.regressors.keypoint_nets import load_regressor, save_regressor
from models.synthetic.poses import read_poses
from models.training.trainer import _open_curves
from pipeline.archives import read_npz
from pipeline.batch.manifest import MANIFEST, read_manifest
from pipeline.calibrations import opencap, read_calibration
from pipeline.config import load
from pipeline.curves import read_curves
from pipeline.errors import MAX_MESSAGE, InputError
from pipeline.recording import find_recording
from pipeline.results import clear, drawn_into, read_summary, recording_of
from pipeline.settings import Stated
from pipeline.store import Store
from pipeline.summary import summarise
from stages.graph import RunConfig
from stages.inspect import inspect

pytestmark = pytest.mark.filterwarnings("ignore")


MAX_COPIES = 2_000_000
"""Characters that a change of a text adds: three would make gigabytes of some, by the test's own doing."""


def cases(many: int) -> Any:
    """A twentieth of the cases in the suite, all of them by name."""
    return pytest.mark.parametrize("count", [many // 20, pytest.param(many, marks=pytest.mark.slow)])


def nested(depth: int) -> Any:
    inner: Any = 1
    for _ in range(depth):
        inner = [inner]
    return inner


def odd(rng: random.Random) -> Any:
    """A value that nobody expects."""
    return rng.choice([
        None, True, False, 0, -1, 1, 2**31, -(2**63), 2**70, 0.5, -0.0, 1e-320, 1e308, float("nan"),
        float("inf"), "", "x", "nan", "1e999", "../..", "/", "\x00", "é" * 3000, [], {}, [None], [[]],
        {"": None}, [1, "a", {}],
        nested(5), nested(400), list(range(20000)), {str(i): i for i in range(500)},
    ])  # fmt: skip


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    """A tree of lists and mappings with one to three changes."""
    root = [copy.deepcopy(tree)]
    for _ in range(rng.randint(1, 3)):
        places: list[tuple[Any, Any]] = [(root, 0)]
        for parent, key in places:
            value = parent[key]
            keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
            places += [(value, k) for k in list(keys)[:40]]
        parent, key = rng.choice(places)
        value = parent[key]
        match rng.randrange(8):
            case 0 | 1 | 2:
                parent[key] = odd(rng)
            case 3 if parent is not root:
                del parent[key]
            case 4:
                parent[key] = [value, copy.deepcopy(value)]
            case 5:
                parent[key] = str(value)
            case 6 if isinstance(value, int | float) and not isinstance(value, bool):
                parent[key] = value * rng.choice((-1, 0, 10, 1000, 1e6, 1e-6))
            case 7 if isinstance(value, list) and value:
                parent[key] = value[: rng.randrange(len(value))]
    return root[0]


def toml(tree: Any) -> str:
    """TOML of tables of values; what TOML cannot say comes out wrong, as is wanted."""
    if not isinstance(tree, dict):
        return json.dumps(tree)
    tables = {k: v for k, v in tree.items() if isinstance(v, dict)}
    lines = [f"{k} = {json.dumps(v)}" for k, v in tree.items() if k not in tables]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def changed_arrays(arrays: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """Arrays of which one or two have other values, types, shapes or sizes."""
    found = dict(arrays)
    for _ in range(rng.randint(1, 2)):
        name = rng.choice([*found]) if found else "x"
        a = np.asarray(found.get(name, 0))
        match rng.randrange(10):
            case 0:
                found.pop(name, None)
            case 1 if a.dtype.kind != "O":
                found[name] = a.astype(str)
            case 2:
                found[name] = np.array([rng.choice(("", "x", "é" * 5000))] * 3)
            case 3:
                found[name] = a[..., None]
            case 4 if a.ndim:
                found[name] = a[: rng.randrange(len(a) + 1)]
            case 5:
                found[name] = a.T
            case 6 if a.dtype.kind in "fiu" and a.size:
                b = a.astype(float)
                b.flat[rng.randrange(b.size)] = rng.choice((np.nan, np.inf, -1.0, 1e308, 1e-320, 2.0**70))
                found[name] = b
            case 7 if a.dtype.kind in "fiu":
                found[name] = np.full(a.shape, rng.choice((np.nan, np.inf, -1.0, 0.0, 1e308)))
            case 8 if a.dtype.kind in "fiu":
                found[name] = a.astype(rng.choice(("complex64", "int8", "bool", "float16", "uint64")))
            case 9:
                found[name] = rng.choice((np.array([None, {}], dtype=object), np.float64(0.5)))
    return found


def mutated_arrays(arrays: Mapping[str, Any], rng: random.Random) -> bytes:
    """An .npz of changed arrays, or one that lies."""
    content = io.BytesIO()
    np.savez(content, **changed_arrays(arrays, rng))
    if rng.random() < 0.2:  # headers that claim more than there is
        return content.getvalue().replace(b"'shape': (", b"'shape': (9" + b"9" * rng.randrange(12), 1)
    return content.getvalue()


def copies(text: str, count: int) -> str:
    return text * min(count, 1 + MAX_COPIES // max(1, len(text)))


def mutated_text(text: str, rng: random.Random) -> str:
    """A text with one to three changes of its numbers, words and lines."""
    for _ in range(rng.randint(1, 3)):
        tokens = list(re.finditer(r"-?[\d.]+(?:e-?\d+)?|\w+", text)) or [re.match("", text)]
        start, end = rng.choice(tokens).span()
        lines = text.splitlines(keepends=True) or [""]
        line = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0 | 1:
                value = rng.choice(
                    ["", "nan", "1e999", "-1", "0", str(2**70), "é" * 3000, "[[", "\x00", "<a>"]
                )
                text = text[:start] + value + text[end:]
            case 2:
                text = text[:start] + copies(f"{text[start:end]} ", rng.choice((2, 1000))) + text[end:]
            case 3:
                text = "".join([*lines[:line], *lines[line + 1 :]])
            case 4:
                doubled = copies(lines[line], rng.choice((2, 300)))
                text = "".join([*lines[:line], doubled, *lines[line:]])
            case 5:
                text = "".join(lines[:line])
    return text


def mutated_weights(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header has other names, types, shapes, offsets or metadata."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if rng.random() < 0.5:
        config = json.loads(header["__metadata__"]["multispin"])
        header["__metadata__"]["multispin"] = json.dumps(mutated_tree(config, rng))
    else:
        header = mutated_tree(header, rng)
    changed = json.dumps(header).encode()
    return len(changed).to_bytes(8, "little") + changed + content[8 + size :]


@cases(1000)
def test_calibrations_of_every_format(tmp_path: Path, count: int) -> None:
    rng = random.Random(6)
    forms = list(BY_HAND)

    def read(case: object) -> None:
        folder = tmp_path / "calibration"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        form: Any = rng.choice(forms)
        files = put(folder, form)
        file = rng.choice(files)
        code = "utf-16-le" if file.suffix == ".mcal" else "utf-8"
        if form is opencap:
            file.write_bytes(pickle.dumps(mutated_tree(pickle.loads(file.read_bytes()), rng)))
        else:
            text = file.read_bytes().decode(code, errors="surrogateescape")
            file.write_bytes(mutated_text(text, rng).encode(code, errors="surrogateescape"))
        assert np.isfinite(module_of(form).read(files).K).all()

    assert 0 < survives(read, count, rng) < count


@cases(300)
def test_weights(tmp_path: Path, count: int) -> None:
    rng = random.Random(7)
    with torch.random.fork_rng(devices=[]):
        save_regressor(CalibratedNet(load_body().keypoints, width=8), tmp_path / "kept.safetensors")
    kept, path = (tmp_path / "kept.safetensors").read_bytes(), tmp_path / "net.safetensors"

    def read(_: object) -> None:
        path.write_bytes(mutated_weights(kept, rng))
        load_regressor(path)

    assert 0 < survives(read, count, rng) <= count


@cases(400)
def test_pickled_bodies(tmp_path: Path, count: int) -> None:
    rng = random.Random(8)
    body = {
        "f": np.zeros((4, 3), np.uint32), "v_template": np.zeros((5, 3)), "weights": np.zeros((5, 24)),
        "shapedirs": np.zeros((5, 3, 10)), "posedirs": np.zeros((5, 3, 207)),
        "J_regressor": np.zeros((24, 5)), "bs_type": "lrotmin",
        "kintree_table": np.stack([np.arange(24) - 1, np.arange(24)]),
    }  # fmt: skip

    def read(_: object) -> None:
        path = tmp_path / "SMPL.pkl"
        path.write_bytes(pickle.dumps(mutated_tree(body, rng), protocol=rng.choice((2, 5))))
        load_body(path)

    assert 0 < survives(read, count, rng) <= count


@cases(300)
def test_arguments_of_commands(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Commands given folders that are not there, or results, and options of values that nobody expects."""
    rng = random.Random(9)
    store = Store.create(tmp_path / "out" / "results.zarr", contents())
    for k in range(2):
        store.write(batch(k))
    monkeypatch.chdir(tmp_path)
    values = [
        "", "-1", "0", "3", "1e9", "nan", "x", "a,b", "é" * 3000, "out", "..", "a.glb", "a.csv", "[", "1/0",
    ]  # fmt: skip
    commands = get_command(run_pipeline.app).commands  # type: ignore[attr-defined]

    def call(_: object) -> None:
        name = rng.choice(
            ["run", "info", "export", "render", "evaluate", "preprocess", "crops", "train", "detect"]
        )
        words = [name]
        for option in commands[name].params:
            if option.param_type_name == "argument":
                words.append(rng.choice(["out", "nowhere", *values]))
            elif rng.random() < 0.2 and not option.is_flag:
                words += [option.opts[0], *rng.choices(values, k=option.nargs)]
        monkeypatch.setattr(sys, "argv", ["run_pipeline.py", *words])
        with pytest.raises(SystemExit):
            run_pipeline.main()
        assert all(len(line) <= 2 * MAX_MESSAGE for line in capfd.readouterr().err.splitlines())

    survives(call, count, rng)


@cases(800)
def test_settings_and_calibrations(tmp_path: Path, count: int) -> None:
    rng = random.Random(1)
    stated = {
        "keypoints": {"format": "body_25", "path": "keypoints", "first_frame": 0},
        "calibration": {"path": "calibration.toml", "unit": "m"}, "frame_offset": {"cam01": 1}, "fps": "5/1",
        "up": [0.0, 0.0, 1.0], "picture_size": [320, 180], "focal_px": {"cam01": 300.0},
    }  # fmt: skip
    settings = RunConfig().model_dump(mode="json")
    rig = ring(3, size=(320, 180))
    cameras = {
        f"cam_{v}": {
            "name": rig.names[v], "size": rig.size[v].tolist(), "matrix": rig.K[v].tolist(),
            "distortions": [0.0] * 4, "rotation": [0.1, 1.0, 0.2], "translation": rig.t[v].tolist(),
            "fisheye": False,
        }
        for v in range(3)
    }  # fmt: skip
    file = tmp_path / "recording.yaml"

    def read(_: object) -> None:
        match rng.randrange(3):
            case 0:
                file.write_text(json.dumps(mutated_tree(stated, rng)), encoding="utf-8")
                load(Stated, [file])
            case 1:
                file.write_text(json.dumps(mutated_tree(settings, rng)), encoding="utf-8")
                load(RunConfig, [file])
            case 2:
                path = tmp_path / "calibration.toml"
                path.write_text(toml(mutated_tree(cameras, rng)), encoding="utf-8")
                assert np.isfinite(read_calibration(path).K).all()

    assert 0 < survives(read, count, rng) < count


@cases(200)
def test_keypoints(tmp_path: Path, count: int) -> None:
    rng = random.Random(2)
    rig = ring(3, size=(320, 180))
    folder = write_recording(tmp_path / "r", rig, [seen(rig, figure(np.arange(6) / 5), noise_px=0.2)])
    (folder / "recording.yaml").write_text("{fps: 5, keypoints: {format: body_25}}")
    files = sorted(folder.glob("keypoints/*/*.json"))
    kept = {file: json.loads(file.read_text()) for file in files}

    def read(_: object) -> None:
        changed = rng.sample(files, rng.choice((1, 3, len(files))))
        try:
            for file in changed:
                file.write_text(json.dumps(mutated_tree(kept[file], rng)))
            found = inspect(find_recording(folder))
            points = found.people(np.arange(len(found)))
            assert ((points[..., 2] == 0) | np.isfinite(points).all(-1)).all()
        finally:
            for file in changed:
                file.write_text(json.dumps(kept[file]))

    survives(read, count, rng)


@cases(1000)
def test_archives(tmp_path: Path, count: int) -> None:
    rng = random.Random(3)
    row = PersonRow("d/s/q/c/000001", "i", "a.jpg", np.array([100.0, 100.0, 80.0]))
    rows = {k: np.asarray(v) for k, v in to_arrays([row, row, row]).items()}
    motion = read_npz(write_motion(tmp_path))
    prior = {"means": np.zeros((2, 69)), "covariances": np.tile(np.eye(69), (2, 1, 1)), "weights": np.ones(2)}
    body = {"f": np.zeros((4, 3), np.int32), "v_template": np.zeros((5, 3)), "weights": np.zeros((5, 24))}
    readers: list[tuple[Any, dict[str, Any]]] = [
        (read_rows, rows), (read_poses, motion), (load_pose_prior, prior), (load_body, body),
    ]  # fmt: skip

    def read(_: object) -> None:
        reader, arrays = rng.choice(readers)
        path = tmp_path / "m.npz"
        path.write_bytes(mutated_arrays(arrays, rng))
        reader(path)

    assert 0 < survives(read, count, rng) < count


@cases(700)
def test_stores(tmp_path: Path, count: int) -> None:
    """Metadata of the root and of arrays, as a run that goes on, info, export and report read them."""
    rng = random.Random(4)
    store = Store.create(tmp_path / "results.zarr", contents())
    for k in range(2):
        store.write(batch(k))
    files = sorted(store.path.rglob("zarr.json"))
    kept = {file: file.read_bytes() for file in files}

    def read(_: object) -> None:
        file = rng.choice([*files, store.path / "zarr.json"])
        try:
            file.write_text(json.dumps(mutated_tree(json.loads(kept[file]), rng)))
            found = Store.resume(store.path, contents())
            summarise(found)
            read_curves(found)
            found.state(found.first_missing)
        finally:
            shutil.rmtree(store.path / "people" / "new", ignore_errors=True)
            file.write_bytes(kept[file])

    assert 0 < survives(read, count, rng) < count


@cases(300)
def test_files_beside_results(tmp_path: Path, count: int) -> None:
    rng = random.Random(5)
    summary = {
        "recording": str(tmp_path / "r"),
        "store": "0",
        "videos": ["kept.mp4"],
        "warnings": [],
        "frames": 3,
    }
    rows = [{"step": n, "loss": 1.0} for n in range(3)]
    entries = {"recordings": [{"name": "a", "state": "done", "warnings": []}], "version": 1}
    (tmp_path / "kept.mp4").mkdir()

    def read(_: object) -> None:
        match rng.randrange(3):
            case 0:
                (tmp_path / "summary.json").write_text(json.dumps(mutated_tree(summary, rng)))
                read_summary(tmp_path)
                drawn_into(tmp_path)
                recording_of(tmp_path)
                clear(tmp_path)
            case 1:
                lines = [json.dumps(mutated_tree(row, rng)) for row in rows]
                (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
                writer = _open_curves(tmp_path, 2)
                if writer is not None:
                    writer.close()
            case 2:
                (tmp_path / MANIFEST).write_text(json.dumps(mutated_tree(entries, rng)))
                read_manifest(tmp_path)

    survives(read, count, rng)


def test_an_archive_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("S.npy", "w", force_zip64=True) as member,
    ):
        header = {"descr": "<f8", "fortran_order": False, "shape": (40_000_000,)}
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(320):
            member.write(bytes(1_000_000))
    assert (tmp_path / "bomb.npz").stat().st_size < 1_000_000
    with pytest.raises(InputError, match="unpacks to 320 MB"):
        read_rows(tmp_path / "bomb.npz")


def test_a_store_that_claims_billions_of_frames_is_refused_before_they_are_read(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "results.zarr", contents())
    for name in ("time_s", "cameras/frame_index"):
        file = store.path / name / "zarr.json"
        document = json.loads(file.read_text())
        document["shape"][-1] = 20_000_000_000
        file.write_text(json.dumps(document))
    with pytest.raises(InputError, match="20000000000 frames"):
        Store(store.path)
