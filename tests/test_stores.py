"""Results against a truth from which they differ by what is known."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from builders import COCO_17
from scipy.spatial.transform import Rotation

from models.body import Body, load_body
from models.evaluation.stores import Errors, compare_identities, compare_to_truth
from pipeline.batches import FitBatch
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.store import Store
from stages.synth import SynthConfig, write_recording

FRAMES = 30
Change = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Joints (T, P, J, 3), metres, and the numbers of their frames (T,) → what the results say."""


@cache
def body() -> Body:
    return load_body()


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two people, two and a half windows, no videos."""
    out = tmp_path_factory.mktemp("two")
    cfg = SynthConfig(
        cameras=3, seconds=1.5, fps=20, size=(320, 240), window=12, people=2, noise_px=0, outliers=0,
        missing=0, gaps=0, videos=False,
    )  # fmt: skip
    return write_recording(out, cfg, body())


def changed(
    truth: Store,
    out: Path,
    change: Change,
    transl: float = 0.0,
    lost: slice = slice(0),
    rig: Rig | None = None,
) -> Store:
    """Results that are the truth with other joints, people exchanged, some frames lost, and other cameras."""
    results = Store.create(out, replace(truth.contents, angles={}, rig=rig or truth.contents.rig))
    for k in range(len(truth.done)):
        batch: FitBatch = truth.read(k)
        frames = np.arange(*truth.span(k))
        gone = torch.from_numpy(np.isin(frames, np.arange(FRAMES)[lost]))

        def said(x: torch.Tensor, frames: np.ndarray = frames) -> torch.Tensor:
            return torch.from_numpy(change(x.double().numpy(), frames)).float()

        joints = torch.where(gone[:, None, None, None], torch.nan, said(batch.joints)).flip(1)
        points = torch.cat([said(batch.keypoints_3d[..., :3]), batch.keypoints_3d[..., 3:]], -1).flip(1)
        p = batch.params
        params = type(p)(
            p.global_orient.flip(1), p.body_pose.flip(1), p.betas.flip(0),
            p.transl.flip(1) + torch.tensor([transl, 0, 0]),
        )  # fmt: skip
        kept = batch.keypoints, params, joints, points
        results.write(FitBatch(*kept, batch.reprojection_px, batch.status))
    return results


def compared(truth: Store, results: Store) -> tuple[Errors, ...]:
    errors = compare_to_truth(results, truth, body())
    assert [(e.person, e.truth) for e in errors] == [("0", "1"), ("1", "0")]
    return errors


def test_the_truth_has_no_error(truth: Store) -> None:
    for same in compare_to_truth(truth, truth, body()):
        assert same.truth == same.person
        assert (same.frames, same.missed) == (FRAMES, 0)
        assert (same.mpjpe_mm, same.mpjpe_pelvis_mm, same.pve_mm, same.keypoints_px) == (0, 0, 0, 0)
        assert same.acceleration_mm == 0
        assert same.pa_mpjpe_mm == pytest.approx(0, abs=1e-3)


def test_ids_are_compared_over_the_frames_that_both_have(truth: Store, tmp_path: Path) -> None:
    def same(x: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return x

    of = compare_identities(changed(truth, tmp_path / "one.zarr", same, lost=slice(10, 16)), truth)
    assert (of.switches, of.false, of.mpjpe_mm) == (0, 0, pytest.approx(0, abs=1e-3))
    assert of.missed == pytest.approx(6 / FRAMES)
    assert of.idf1 == pytest.approx(2 * (FRAMES - 6) / (2 * FRAMES - 6))

    def exchanged(x: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return np.where((frames >= FRAMES // 3)[:, None, None, None], x[:, ::-1], x)

    of = compare_identities(changed(truth, tmp_path / "two.zarr", exchanged), truth)
    assert of.switches == 2
    assert of.idf1 == pytest.approx(1 - (FRAMES // 3) / FRAMES)


def test_a_shift_is_returned_and_goes_with_alignment(truth: Store, tmp_path: Path) -> None:
    def change(x: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return x + np.array([0.05, 0, 0])

    results = changed(truth, tmp_path / "results.zarr", change, 0.05, slice(10, 16))
    for e in compared(truth, results):
        assert (e.frames, e.missed) == (24, 6)
        assert e.mpjpe_mm == pytest.approx(50, abs=0.01)
        assert e.pve_mm == pytest.approx(50, abs=0.01)
        assert e.mpjpe_pelvis_mm == pytest.approx(0, abs=0.01)
        assert e.pa_mpjpe_mm == pytest.approx(0, abs=0.01)
        assert e.acceleration_mm == pytest.approx(0, abs=0.01)
        assert 0.5 < e.keypoints_px < 10


def test_joints_that_are_off_by_so_much_are_off_by_so_much(truth: Store, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    away = rng.normal(size=(2, 25, 3))
    away *= rng.uniform(0.01, 0.06, (2, 25, 1)) / np.linalg.norm(away, axis=-1, keepdims=True)

    def change(x: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return x + away[:, : x.shape[2]]

    results = changed(truth, tmp_path / "results.zarr", change)
    for e in compared(truth, results):
        mine = away[int(e.truth), :24]
        assert e.mpjpe_mm == pytest.approx(1e3 * np.linalg.norm(mine, axis=-1).mean(), abs=0.01)
        rooted = np.linalg.norm(mine - mine[:1], axis=-1).mean()
        assert e.mpjpe_pelvis_mm == pytest.approx(1e3 * rooted, abs=0.01)
        assert 5 < e.pa_mpjpe_mm < e.mpjpe_mm


def test_a_similarity_is_returned_and_goes_with_alignment(truth: Store, tmp_path: Path) -> None:
    turn = Rotation.from_rotvec([0.2, 0.5, -0.3]).as_matrix()
    middle = np.array([0, 0, 0.9])  # near both pelves, so that each remains the nearest

    def change(x: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return 1.1 * (x - middle) @ turn.T + middle + [0.02, -0.01, 0.03]

    results = changed(truth, tmp_path / "results.zarr", change)
    errors = {e.person: e for e in compare_to_truth(results, truth, body())}
    for p, e in errors.items():
        q = int(e.truth)
        joints = truth.array(f"people/{q}/joints").astype(float)
        said = results.array(f"people/{p}/joints").astype(float)
        slow = np.mean(
            [
                np.sqrt(((a - b) ** 2).sum())
                for f, g in zip(said, joints, strict=True)
                for a, b in zip(f, g, strict=True)
            ]
        )
        assert e.mpjpe_mm == pytest.approx(1e3 * slow, abs=0.01)
        assert e.mpjpe_mm > 100
        assert e.pa_mpjpe_mm == pytest.approx(0, abs=0.01)


def test_people_in_the_world_of_estimated_cameras_are_told_apart_in_the_pictures(
    truth: Store, tmp_path: Path
) -> None:
    rig = truth.contents.rig
    people = [truth.array(f"people/{p}/joints")[:, 0].mean(0) for p in (0, 1)]
    turn = np.diag([-1.0, -1.0, 1.0])  # about the middle: everybody is where the other one was
    shift = np.where([True, True, False], people[0] + people[1], 0)
    moved = replace(rig, R=rig.R @ turn, t=rig.t + rig.R @ turn @ -shift)

    def change(x: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return x @ turn.T + shift

    results = changed(truth, tmp_path / "results.zarr", change, rig=moved)
    for e in compared(truth, results):
        assert e.mpjpe_mm > 100
        assert e.keypoints_px == pytest.approx(0, abs=1e-3)
    scores = compare_identities(results, truth)
    assert (scores.idf1, scores.switches) == (1, 0)
    assert np.isnan(scores.mpjpe_mm)


@pytest.mark.parametrize("lost", [slice(0), slice(11, 13)])
def test_a_push_is_the_error_of_acceleration_over_windows_and_gaps(
    truth: Store, tmp_path: Path, lost: slice
) -> None:
    def change(x: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return x + 0.5 * 1e-3 * (frames[:, None, None, None] - 15.0) ** 2 * [0, 0.6, 0.8]

    for e in compared(truth, changed(truth, tmp_path / "results.zarr", change, lost=lost)):
        assert e.acceleration_mm == pytest.approx(1, abs=0.01)


def test_results_of_other_cameras_or_points_are_not_compared(truth: Store, tmp_path: Path) -> None:
    rig = replace(truth.contents.rig, names=("a", "b", "c"))
    other = Store.create(tmp_path / "results.zarr", replace(truth.contents, rig=rig))
    with pytest.raises(InputError, match="no camera has the same name"):
        compare_to_truth(other, truth, body())
    coco = Store.create(tmp_path / "coco.zarr", replace(truth.contents, keypoint_skeleton=COCO_17))
    with pytest.raises(InputError, match=r"have other keypoints \(17, 25\)"):
        compare_to_truth(coco, truth, body())
    empty = Store.create(tmp_path / "empty.zarr", truth.contents)
    begun = changed(truth, tmp_path / "begun.zarr", lambda x, frames: x)
    zarr.open_array(begun.path / "done", mode="r+")[:] = False
    with pytest.raises(InputError, match="frames is done yet"):
        compare_identities(begun, truth)
    with pytest.raises(InputError, match="has nobody in it"):
        compare_to_truth(empty, truth, body())


def test_the_truth_of_another_recording_is_refused(truth: Store, tmp_path: Path) -> None:
    contents = truth.contents
    for name, other, message in (
        ("rate", replace(contents, rate=Fraction(25)), "have 20 and 25 frames a second"),
        ("size", replace(contents, rig=replace(contents.rig, size=contents.rig.size * 2)), "640x480 pixels"),
        (
            "short",
            replace(contents, time_s=contents.time_s[:20], frame_index=contents.frame_index[:, :20]),
            "10 of 30 frames are not among the 20 of the truth",
        ),
    ):
        with pytest.raises(InputError, match=message):
            compare_to_truth(truth, Store.create(tmp_path / name, other), body())
    cfg = SynthConfig(cameras=3, seconds=1.5, fps=20, size=(320, 240), window=12, seed=5, videos=False)
    with pytest.raises(InputError, match="are of two recordings: keypoints lie"):
        compare_to_truth(truth, write_recording(tmp_path / "seed5", cfg, body()), body())


def test_a_single_keypoint_in_a_picture_has_no_height_to_compare_by(truth: Store, tmp_path: Path) -> None:
    path = shutil.copytree(truth.path, tmp_path / "edge.zarr")
    for person in truth.ids:
        zarr.open_array(path / f"people/{person}/keypoints_2d", mode="r+")[0, :, 1:, 2] = 0
    for errors in compare_to_truth(truth, Store(path), body()):
        assert errors.mpjpe_mm == 0


def test_frames_without_the_truth_are_not_compared(truth: Store, tmp_path: Path) -> None:
    """Also the results of a run can be the truth, and nobody is in all frames of those."""

    def change(x: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return x

    gaps = changed(truth, tmp_path / "truth.zarr", change, lost=slice(3, 14))
    for e in compare_to_truth(truth, gaps, body()):
        assert e.truth != e.person
        assert (e.frames, e.missed) == (FRAMES - 11, 0)
        assert (e.mpjpe_mm, e.keypoints_px, e.acceleration_mm) == (0, 0, 0)
        assert e.pve_mm == pytest.approx(0, abs=1e-3)
    later = replace(truth.contents, frame_index=truth.contents.frame_index + 1000)
    with pytest.raises(InputError, match=r"have no frame of .* in common"):
        compare_to_truth(truth, Store.create(tmp_path / "later.zarr", later), body())


def test_vertices_of_another_body_are_not_compared(truth: Store, tmp_path: Path) -> None:
    contents = replace(truth.contents, angles={}, body={"name": "SMPL_NEUTRAL.pkl", "sha256": "0" * 64})
    results = Store.create(tmp_path / "results.zarr", contents)
    for k in range(len(truth.done)):
        results.write(truth.read(k))
    for e in compare_to_truth(results, truth, body()):
        assert np.isnan(e.pve_mm)
        assert e.mpjpe_mm == 0
