"""All stages together, on recordings whose confidences, people or files are not as they should be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import zarr
from builders import assert_same_stores, store_arrays
from recordings import write_people

from models.body import load_body
from models.geometry.association import MatchConfig
from pipeline.array_types import Array
from pipeline.errors import InputError
from pipeline.recording import find_recording
from pipeline.store import Store
from stages.graph import RunConfig, run
from stages.synth import SynthConfig, write_recording

FRAMES = 100
Change = Callable[[np.ndarray, int, int], np.ndarray]
"""(25, 3) of a person in a frame of a camera, the camera and the frame → as written instead."""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One person before four cameras, no videos."""
    out = tmp_path_factory.mktemp("synth") / "recording"
    cfg = SynthConfig(seconds=FRAMES / 30, size=(640, 480), noise_px=1.0, videos=False)
    write_recording(out, cfg, load_body())
    (out / "recording.yaml").write_text("fps: 30")
    return out


@pytest.fixture(scope="module")
def plain(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its results, undisturbed."""
    out = tmp_path_factory.mktemp("plain")
    done = run(find_recording(recording), out, RunConfig())
    assert not any("frames were fitted" in w for w in done.warnings)
    return out


def changed(recording: Path, to: Path, change: Change) -> Path:
    """A copy of the recording in which every person of every file is changed."""
    shutil.copytree(recording, to)
    for v, folder in enumerate(sorted((to / "keypoints").iterdir())):
        for t, file in enumerate(sorted(folder.iterdir())):
            document = json.loads(file.read_text())
            for person in document["people"]:
                points = np.array(person["pose_keypoints_2d"]).reshape(-1, 3)
                person["pose_keypoints_2d"] = change(points, v, t).ravel().tolist()
            file.write_text(json.dumps(document))
    return to


def joints(out: Path, person: int = 0) -> Array:
    return np.asarray(Store(out / "results.zarr").array(f"people/{person}/joints"), np.float64)


def one_camera_larger(points: np.ndarray, v: int, t: int) -> np.ndarray:
    return points * [1, 1, 8] if v == 1 else points


def all_smaller(points: np.ndarray, v: int, t: int) -> np.ndarray:
    return points * [1, 1, 0.22]


def one_outlier(points: np.ndarray, v: int, t: int) -> np.ndarray:
    points = points.copy()
    if (v, t) == (2, 40):
        points[1, 2] = 10
    return points


@pytest.mark.parametrize("change", [one_camera_larger, all_smaller, one_outlier])
def test_the_scale_of_confidences_changes_no_fit(
    recording: Path, plain: Path, tmp_path: Path, change: Change
) -> None:
    other = changed(recording, tmp_path / "recording", change)
    run(find_recording(other), tmp_path / "out", RunConfig())
    off = np.linalg.norm(joints(tmp_path / "out") - joints(plain), axis=-1)
    assert np.isfinite(off).all()
    assert off.max() < 1e-3


def test_a_run_that_fits_nothing_is_an_error_also_the_second_time(recording: Path, tmp_path: Path) -> None:
    def too_few(points: np.ndarray, v: int, t: int) -> np.ndarray:
        kept = np.isin(np.arange(25), [0])
        return np.where(kept[:, None], points, 0)

    other = changed(recording, tmp_path / "recording", too_few)
    (other / "recording.yaml").write_text("fps: 30\nkeypoints: {format: body_25}")
    for _ in range(2):
        with pytest.raises(InputError, match=r"none of 100 frames could be fitted.* info "):
            run(find_recording(other), tmp_path / "out", RunConfig())
    assert not (tmp_path / "out/summary.json").exists()


def test_a_run_that_fits_less_than_half_says_so_first(recording: Path, tmp_path: Path) -> None:
    def leaves(points: np.ndarray, v: int, t: int) -> np.ndarray:
        return points if t < 40 else np.zeros_like(points)

    done = run(
        find_recording(changed(recording, tmp_path / "recording", leaves)), tmp_path / "out", RunConfig()
    )
    assert done.warnings[0] == "only 40 of 100 frames were fitted"


def lose(file: Path) -> None:
    file.unlink()


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "undone"),
    [
        ("state/smplify/0/betas/c.1.0", lose, 1),
        ("state/smplify/0/next_rotations/c.2.0.0.0.0", lose, 2),
        ("state/associate/tracks/c.0.0.0", lose, 0),
        ("state/smplify/0/betas/c.4.0", lose, 4),
        ("people/0/betas/c.0", lose, 4),
    ],
)
def test_what_is_lost_is_fitted_again(
    recording: Path, plain: Path, tmp_path: Path, name: str, damage: Callable[[Path], None], undone: int
) -> None:
    out = shutil.copytree(plain, tmp_path / "out")
    damage(out / "results.zarr" / name)
    fitted: list[int] = []
    run(find_recording(recording), out, RunConfig(), fitted.append)
    assert sum(fitted) == FRAMES
    assert fitted[1:] == [24] * (4 - undone) + [4]
    assert_same_stores(out / "results.zarr", plain / "results.zarr")


def test_damaged_restart_state_of_a_killed_run_is_not_gone_on_from(
    recording: Path, plain: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(plain, tmp_path / "out")
    zarr.open_group(out / "results.zarr", mode="r+")["done"][3:] = False
    flip_a_bit(out / "results.zarr/state/smplify/0/last_rotations/c.2.0.0.0.0")
    fitted: list[int] = []
    run(find_recording(recording), out, RunConfig(), fitted.append)
    assert fitted[1:] == [24, 24, 4]
    assert_same_stores(out / "results.zarr", plain / "results.zarr")


@pytest.mark.parametrize(("people", "first"), [("main", 70), ("all", 0)])
def test_a_bystander_gets_an_id_and_a_shape_of_their_own(
    people: Literal["main", "all"], first: int, tmp_path: Path
) -> None:
    """The person leaves for good after 40 frames; somebody else, whom detectors trust less, stays, beyond
    reach of the place where the person was last."""
    wanted = RunConfig(associate=MatchConfig(people=people))
    folder = tmp_path / "recording"
    cfg = SynthConfig(seconds=150 / 30, size=(640, 480), people=4, seed=9, videos=False)
    truth = write_recording(folder, cfg, load_body())
    exact = np.stack([np.nan_to_num(truth.array(f"people/{p}/keypoints_2d")) for p in (0, 1)], 2)
    exact[:, :, 1, :, 2] *= 0.8
    for v, camera in enumerate(truth.contents.rig.names):
        for t in range(150):
            write_people(folder / "keypoints" / camera, camera, t, list(exact[v, t, 0 if t < 40 else 1 :]))
    run(find_recording(folder), tmp_path / "out", wanted)
    store = Store(tmp_path / "out/results.zarr")
    assert store.ids == (0, 1)
    there = [np.flatnonzero(store.array(f"people/{p}/valid")).tolist() for p in store.ids]
    assert there == [list(range(40)), list(range(first, 150))]
    for p, frames in enumerate(there):
        off = joints(tmp_path / "out", p)[frames] - truth.array(f"people/{p}/joints")[frames]
        assert np.linalg.norm(off, axis=-1).mean() < 0.01
    betas = [store.array(f"people/{p}/betas") for p in store.ids]
    assert np.abs(betas[0] - betas[1]).max() > 0.5
    whole = store_arrays(tmp_path / "out/results.zarr")
    root = zarr.open_group(store.path, mode="r+")
    for k in (1, 3, 5):
        root["done"][k:] = False
        for name in ("joints", "valid"):
            root[f"people/1/{name}"][24 * max(k, 2) :] = 0
        run(find_recording(folder), tmp_path / "out", wanted)
        again = store_arrays(tmp_path / "out/results.zarr")
        assert again.keys() == whole.keys()
        for name, values in whole.items():
            assert np.array_equal(values, again[name], equal_nan=values.dtype.kind == "f"), (k, name)
