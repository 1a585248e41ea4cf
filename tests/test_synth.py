"""Synthetic recordings: what is written agrees with the truth, and the truth with itself."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from scipy.spatial.transform import Rotation

from models.body import Body, load_body, pose_keypoints
from models.evaluation.stores import compare_to_truth
from models.geometry.association import MatchConfig
from models.synthetic.crowd import make_crowd
from models.synthetic.occlusion import find_occluders
from pipeline.calibrations import read_calibration
from pipeline.errors import InputError
from pipeline.recording import find_recording
from pipeline.skeleton import BODY_25, POINT_ORDERS
from pipeline.store import Store
from stages.graph import RunConfig, run
from stages.synth import SynthConfig, write_recording

SMALL = {"cameras": 3, "seconds": 1.5, "fps": 20, "size": (320, 240), "window": 12}
CHECKSUMS: list[tuple[int, dict[str, object], float]] = [
    (0, {}, 29533.1676),
    (3, {"cameras": 3, "seconds": 4, "fps": 20, "size": (320, 240)}, 24424.1677),
]
CLEAN = {**SMALL, "noise_px": 0, "outliers": 0, "missing": 0, "gaps": 0, "videos": False}


@cache
def body() -> Body:
    return load_body()


@pytest.fixture(scope="module")
def two_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording without noise or videos."""
    out = tmp_path_factory.mktemp("two")
    write_recording(out, SynthConfig(**CLEAN, people=2), body())
    return out


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording with noise and videos."""
    out = tmp_path_factory.mktemp("filmed")
    write_recording(out, SynthConfig(**SMALL), body())
    return out


def files(folder: Path) -> dict[str, bytes]:
    """What every file holds, but for the name that each store is given at random."""
    return {
        str(f.relative_to(folder)): re.sub(rb'"id": "\w+"', b"", f.read_bytes())
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


def pictures(path: Path) -> np.ndarray:
    """(T, H, W, 3) of an H.264 video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 20)
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)]).astype(int)


def people_in(folder: Path, camera: str, frame: int) -> list[np.ndarray]:
    document = json.loads(
        (folder / "keypoints" / camera / f"{camera}_{frame:012d}_keypoints.json").read_text()
    )
    assert document["version"] == 1.3
    return [np.array(p["pose_keypoints_2d"]).reshape(-1, 3) for p in document["people"]]


def test_json_holds_the_projected_truth_in_no_order(two_people: Path) -> None:
    truth = Store(two_people / "truth.zarr")
    rig = read_calibration(two_people / "calibration.toml")
    world = np.stack([truth.array(f"people/{p}/keypoints_3d")[..., :3] for p in (0, 1)], 1).astype(float)
    expected, hidden = rig.project(world, distorted=True), find_occluders(rig, world) >= 0
    firsts, overlooked = [], 0
    for frame in range(30):
        for v, camera in enumerate(rig.names):
            found = people_in(two_people, camera, frame)
            off = [np.linalg.norm(f[:, :2] - expected[v, frame], axis=-1) for f in found]
            near = [int((o < 2e-3).sum(1).argmax()) for o in off]
            assert len({*near}) == len(found) > 0
            firsts.append(near[0])
            for p in {0, 1} - {*near}:
                overlooked += 1
                assert hidden[v, frame, p].mean() > 0.5
            for f, o, p in zip(found, off, near, strict=True):
                plain = ~hidden[v, frame, p]
                assert (o[p, plain] < 2e-3).all()
                assert (f[plain, 2] > 0).all()
    assert overlooked < 20
    assert 0.2 < np.mean(firsts) < 0.8, "the order of the people says nothing"


def test_one_person_is_what_it_was_before_people_could_meet(tmp_path: Path) -> None:
    """Sums over all keypoints, with weights of their own, of recordings made by an earlier state."""
    for seed, more, known in CHECKSUMS:
        cfg = SynthConfig(seed=seed, videos=False, **more)
        out = tmp_path / str(seed)
        truth = write_recording(out, cfg, body())
        values = []
        for name in truth.contents.rig.names:
            for frame in range(cfg.frames):
                (points,) = people_in(out, name, frame) or [np.zeros((25, 3))]
                values.append(points)
        weights = np.random.default_rng(0).normal(size=(len(values), 25, 3))
        assert (weights * np.array(values)).sum() == pytest.approx(known, abs=0.05)


def test_three_people_who_cross_are_all_found(tmp_path: Path) -> None:
    cfg = SynthConfig(people=3, seconds=3, videos=False, exchanged=0.05, split=0.05, phantoms=0.1)
    truth = write_recording(tmp_path / "r", cfg, body())
    run_cfg = RunConfig(associate=MatchConfig(people="all"))
    run(find_recording(tmp_path / "r"), tmp_path / "out", run_cfg)
    errors = compare_to_truth(Store(tmp_path / "out" / "results.zarr"), truth, body())
    assert sorted(e.truth for e in errors) == ["0", "1", "2"]
    for e in errors:
        assert e.missed == 0
        assert e.mpjpe_mm < 15


def test_who_has_left_is_neither_in_the_truth_nor_in_the_pictures(tmp_path: Path) -> None:
    cfg = SynthConfig(**{**SMALL, "seconds": 9}, people=2, leaving=1)
    truth = write_recording(tmp_path, cfg, body())
    time_s = np.arange(cfg.frames) / 20
    away = ~make_crowd(2, 9.0, 0, body(), 1)[1].present(time_s)
    assert 20 < away.sum() < 120
    np.testing.assert_array_equal(truth.array("people/1/valid"), ~away)
    for name in ("joints", "transl", "keypoints_3d"):
        np.testing.assert_array_equal(
            np.isfinite(truth.array(f"people/1/{name}")).all(-1).reshape(180, -1)[:, 0], ~away
        )
    assert truth.array("people/0/valid").all()
    gone, last = int(np.flatnonzero(away)[5]), int(np.flatnonzero(away)[0]) - 1
    for v, name in enumerate(truth.contents.rig.names):
        assert len(people_in(tmp_path, name, gone)) <= 1
        shown = pictures(tmp_path / "videos" / f"{name}.mp4")
        px = np.rint(truth.array("people/1/keypoints_2d")[v, last, [1, 8], :2]).astype(int)
        change = np.abs(shown[last] - shown[gone]).max(-1)[px[:, 1], px[:, 0]]
        assert change.max() > 12, "the person has gone from the picture"


def test_faults_of_the_detector_come_through_to_the_files(tmp_path: Path) -> None:
    values = {**CLEAN, "seconds": 1}
    made = {}
    for name, more in {
        "plain": {}, "exchanged": {"exchanged": 1}, "split": {"split": 1}, "phantoms": {"phantoms": 2},
        "static": {"static_phantoms": 1},
    }.items():  # fmt: skip
        truth = write_recording(tmp_path / name, SynthConfig(**values, **more), body())
        cameras = truth.contents.rig.names
        made[name] = [people_in(tmp_path / name, c, f) for c in cameras for f in range(20)]
    for plain, exchanged, split in zip(made["plain"], made["exchanged"], made["split"], strict=True):
        np.testing.assert_array_equal(exchanged[0], plain[0][list(BODY_25.flips)])
        assert len(split) == 2
        np.testing.assert_array_equal(sum(split), plain[0])
    assert np.mean([len(f) for f in made["phantoms"]]) == pytest.approx(3, abs=0.1)
    assert [sum(len(f) == 2 for f in made["static"][v : v + 20]) for v in (0, 20, 40)].count(20) == 1


def test_truth_is_one_body_in_all_its_arrays(two_people: Path) -> None:
    truth = Store(two_people / "truth.zarr")
    assert truth.done.all()
    for p in ("0", "1"):
        at = f"people/{p}"
        angles = np.concatenate(
            [truth.array(f"{at}/global_orient")[:, None], truth.array(f"{at}/body_pose")], 1
        )
        rotations = Rotation.from_rotvec(angles.reshape(-1, 3)).as_matrix().reshape(-1, 24, 3, 3)
        joints, points = pose_keypoints(
            body().keypoints,
            torch.from_numpy(rotations),
            torch.from_numpy(truth.array(f"{at}/betas")).double(),
            torch.from_numpy(truth.array(f"{at}/transl")).double(),
        )
        np.testing.assert_allclose(truth.array(f"{at}/joints"), joints, atol=2e-6)
        np.testing.assert_allclose(truth.array(f"{at}/keypoints_3d")[..., :3], points, atol=2e-6)
        assert truth.array(f"{at}/valid").all()
    rig = truth.contents.rig
    world = np.stack([truth.array(f"people/{p}/keypoints_3d")[..., :3] for p in (0, 1)], 1).astype(float)
    for v in range(len(rig)):
        stored = np.stack([truth.array(f"people/{p}/keypoints_2d")[v] for p in truth.ids], 1)
        np.testing.assert_allclose(stored[..., :2], rig.project(world, distorted=True)[v], atol=1e-3)
        assert (stored[..., 2] == 1).all(), "everybody is in every picture, always"


def test_the_calibration_is_the_rig(two_people: Path) -> None:
    read, rig = (
        read_calibration(two_people / "calibration.toml"),
        Store(two_people / "truth.zarr").contents.rig,
    )
    assert read.names == rig.names
    for name in ("K", "dist", "R", "t", "size"):
        np.testing.assert_allclose(getattr(read, name), getattr(rig, name), rtol=1e-10, atol=1e-10)


def test_videos_show_the_people_where_the_truth_is(filmed: Path) -> None:
    truth = Store(filmed / "truth.zarr")
    torso = [BODY_25.index(n) for n in ("Neck", "MidHip", "RKnee", "LKnee")]
    for v, name in enumerate(truth.contents.rig.names):
        shown = pictures(filmed / "videos" / f"{name}.mp4")
        assert shown.shape == (30, 240, 320, 3)
        # The room is what most frames agree on. People are not where it is.
        changed = np.abs(shown - np.median(shown, axis=0)).max(-1) > 12
        px = np.rint(truth.array("people/0/keypoints_2d")[v][:, torso, :2]).astype(int)
        on_body = changed[np.arange(30)[:, None], px[..., 1], px[..., 0]]
        assert on_body.mean() > 0.5
        assert on_body.mean() > 5 * changed.mean()


def test_frame_rate_is_stated_only_where_no_video_says_it(filmed: Path, two_people: Path) -> None:
    assert not (filmed / "recording.yaml").exists()
    assert yaml.safe_load((two_people / "recording.yaml").read_text()) == {"fps": 20}
    assert Store(filmed / "truth.zarr").contents.rate == 20


def test_noise_comes_through_to_the_files(tmp_path: Path) -> None:
    cfg = SynthConfig(
        **{**CLEAN, "seconds": 5, "noise_px": 2, "missing": 0.2, "gaps": 0.1, "size": (960, 720)}
    )
    truth = write_recording(tmp_path, cfg, body())
    errors, missing, empty = [], [], 0
    for v, name in enumerate(truth.contents.rig.names):
        exact = truth.array("people/0/keypoints_2d")[v, :, :, :2]
        for frame in range(100):
            found = people_in(tmp_path, name, frame)
            empty += not found
            for points in found:
                seen = points[:, 2] > 0
                assert (points[~seen] == 0).all(), "OpenPose writes 0, 0, 0 for a missing point"
                missing.append(1 - seen.mean())
                errors.append((points[:, :2] - exact[frame])[seen])
    assert np.concatenate(errors).std() == pytest.approx(2, rel=0.03)
    assert np.mean(missing) == pytest.approx(0.2, abs=0.02)
    assert 0.05 < empty / 300 < 0.15


def test_a_seed_gives_the_same_bytes_in_any_window(tmp_path: Path) -> None:
    once, again, other = tmp_path / "once", tmp_path / "again", tmp_path / "other"
    values = {**SMALL, "seconds": 0.5, "people": 2}
    write_recording(once, SynthConfig(**values), body())
    write_recording(again, SynthConfig(**values), body())
    # x264 does not always give the same bytes for the same pictures, so videos are compared as pictures.
    first, second = files(once), files(again)
    assert first.keys() == second.keys()
    for name in first:
        if name.endswith(".mp4"):
            a, b = pictures(once / name), pictures(again / name)
            assert np.abs(a - b).mean() < 0.5
        else:
            assert first[name] == second[name], name
    write_recording(other, SynthConfig(**{**values, "window": 3}), body())
    for name, content in files(once).items():
        if name.startswith(("keypoints", "calibration")):
            assert files(other)[name] == content, name
    write_recording(again, SynthConfig(**values, seed=1), body(), overwrite=True)
    assert files(again)["calibration.toml"] != files(once)["calibration.toml"]
    lasting = [{name for name in files(folder) if "/events/" not in name} for folder in (once, again)]
    assert lasting[0] == lasting[1]  # an event that did not happen has no file


@pytest.mark.parametrize("order", sorted(POINT_ORDERS))
def test_every_order_has_its_points_in_place(tmp_path: Path, order: str) -> None:
    truth = write_recording(tmp_path, SynthConfig(**{**CLEAN, "seconds": 0.1}, format=order), body())
    name = truth.contents.rig.names[0]
    exact = truth.array("people/0/keypoints_2d")[0, 0]
    (points,) = people_in(tmp_path, name, 0)
    assert len(points) == len(POINT_ORDERS[order])
    for point, label in zip(points, POINT_ORDERS[order], strict=True):
        if label == "Head":  # above the eyes, near them
            eye = exact[BODY_25.index("LEye")]
            assert eye[1] - 0.12 * 240 < point[1] < eye[1] - 2
        elif label in BODY_25.names:
            np.testing.assert_allclose(point[:2], exact[BODY_25.index(label), :2], atol=2e-3)
        else:  # fingers and the like are not projected
            assert point.tolist() == [0, 0, 0]


def test_a_finished_recording_is_kept_and_a_broken_one_made_again(tmp_path: Path) -> None:
    cfg, frames = SynthConfig(**{**CLEAN, "seconds": 1}), []
    write_recording(tmp_path, cfg, body(), frames.append)
    assert frames == [12, 8]
    whole = files(tmp_path)
    stamp = (tmp_path / "calibration.toml").stat().st_mtime_ns
    write_recording(tmp_path, cfg, body(), frames.append)
    assert (tmp_path / "calibration.toml").stat().st_mtime_ns == stamp
    assert frames == [12, 8, 20]

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_recording(tmp_path, cfg, body(), stop, overwrite=True)
    assert not (tmp_path / "calibration.toml").exists(), "not to be taken for a recording"
    write_recording(tmp_path, cfg, body())
    assert files(tmp_path) == whole


@pytest.mark.parametrize("finished", [True, False])
def test_a_recording_of_other_settings_is_not_replaced_unasked(tmp_path: Path, finished: bool) -> None:
    write_recording(tmp_path, SynthConfig(**{**CLEAN, "seconds": 0.2}), body())
    (tmp_path / "recording.yaml").write_text("{fps: 20, frame_offset: {cam01: 1}}")
    if not finished:
        (tmp_path / "calibration.toml").unlink()
    whole = files(tmp_path)
    other = SynthConfig(**{**CLEAN, "seconds": 0.3, "seed": 4})
    with pytest.raises(
        InputError,
        match=r"other settings \(seconds is 0.2 there, 0.3 here; seed is 0 there, 4 here\).* --overwrite",
    ):
        write_recording(tmp_path, other, body())
    assert files(tmp_path) == whole
    write_recording(tmp_path, other, body(), overwrite=True)
    assert len(list(tmp_path.glob("keypoints/cam01/*.json"))) == 6
    assert yaml.safe_load((tmp_path / "recording.yaml").read_text()) == {"fps": 20}


def test_what_the_user_stated_outlives_making_the_same_again(tmp_path: Path) -> None:
    cfg = SynthConfig(**{**CLEAN, "seconds": 0.2})
    write_recording(tmp_path, cfg, body())
    (tmp_path / "recording.yaml").write_text("{fps: 20, frame_offset: {cam01: 1}}")
    (tmp_path / "calibration.toml").unlink()
    whole = files(tmp_path)
    write_recording(tmp_path, cfg, body())
    assert {k: v for k, v in files(tmp_path).items() if k != "calibration.toml"} == whole


def test_the_users_files_are_not_touched(tmp_path: Path) -> None:
    cfg = SynthConfig(**{**CLEAN, "seconds": 0.1})
    mine = tmp_path / "videos" / "mine.mp4"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(InputError, match=r"not made by synth.*empty folder"):
        write_recording(tmp_path, cfg, body())
    assert mine.read_text() == "precious"
    (tmp_path / "notes.txt").write_text("notes")
    write_recording(tmp_path, cfg, body(), overwrite=True)
    assert not mine.exists()
    assert (tmp_path / "notes.txt").read_text() == "notes"
    blocked = tmp_path / "notes.txt" / "below"
    with pytest.raises(InputError, match="cannot be written"):
        write_recording(blocked, cfg, body())


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"cameras": 0}, "cameras"), ({"fps": "fast"}, "30000/1001"), ({"fps": 0}, "1 to 1000"),
        ({"size": (641, 480)}, "even numbers"), ({"missing": 1.5}, "missing"), ({"persons": 2}, "persons"),
        ({"leaving": 2}, "at most 1"), ({"phantoms": -1}, "phantoms"), ({"exchanged": 1.1}, "exchanged"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(bad: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        SynthConfig.model_validate(bad)


def test_rates_are_rational() -> None:
    cfg = SynthConfig(fps="30000/1001", seconds=10)
    assert cfg.rate == Fraction(30000, 1001)
    assert cfg.frames == 300
    assert SynthConfig(fps=29.97).rate == Fraction(2997, 100)


def test_rates_are_compared_as_numbers(tmp_path):
    """`demo` says 30.0, `synth --fps` '30'."""
    settings = {"cameras": 2, "seconds": 0.2, "size": (64, 64), "videos": False}
    write_recording(tmp_path / "r", SynthConfig(fps=30.0, **settings), body())
    before = (tmp_path / "r" / "synth.yaml").stat().st_mtime_ns
    write_recording(tmp_path / "r", SynthConfig(fps="30", **settings), body())
    assert (tmp_path / "r" / "synth.yaml").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"\(fps is 30 there, 25 here\)"):
        write_recording(tmp_path / "r", SynthConfig(fps="25", **settings), body())
