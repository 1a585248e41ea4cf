"""Cameras that see everything, detections with the noise that was asked for, pictures on the calibration."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from models.synthetic.recording import Array, Noise, backdrop, detect, ring_rig
from pipeline.cameras import Rig

SIZE = (640, 480)
NOISE = Noise(sigma_px=3.0, outliers=0.05, missing=0.1, gaps=0.0, seed=7)


def box(half: float = 0.9, height: float = 2.0) -> Array:
    """The corners of a box on the floor."""
    return np.array([[x, y, z] for x in (-half, half) for y in (-half, half) for z in (0.0, height)])


def rig(seed: int = 0, cameras: int = 4) -> Rig:
    return ring_rig(cameras, SIZE, box(), seed)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cameras", [1, 4, 9])
def test_every_camera_sees_the_whole_region_and_not_much_else(seed: int, cameras: int) -> None:
    r = rig(seed, cameras)
    inside = np.random.default_rng(0).uniform(-1, 1, (500, 3)) * [0.9, 0.9, 1.0] + [0, 0, 1.0]
    px = r.project(np.concatenate([box(), inside]), distorted=True)
    assert (px > 0).all()
    assert (px < np.array(SIZE) - 1).all()
    spread = px.max(1) - px.min(1)
    assert (spread / SIZE).max(1).min() > 0.85


def test_cameras_are_as_uneven_as_real_ones() -> None:
    r = rig()
    np.testing.assert_allclose(
        r.R @ np.swapaxes(r.R, 1, 2), np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(r.R), 1)
    assert (r.K[:, 0, 0] != r.K[:, 1, 1]).all()
    assert (np.abs(r.K[:, :2, 2] - (np.array(SIZE) - 1) / 2) > 0.1).any(1).all()
    assert (r.dist[:, 0] < -0.03).all()
    assert np.ptp(r.centres[:, 2]) > 0.1
    assert np.ptp(np.linalg.norm(r.centres[:, :2], axis=1)) > 0.1
    above = r.project(np.array([[0.0, 0, 0], [0, 0, 1.5]]))
    assert (above[:, 1, 1] < above[:, 0, 1] - 50).all(), "up in the world is up in the picture"


def test_a_seed_is_a_rig() -> None:
    np.testing.assert_array_equal(rig(3).K, rig(3).K)
    assert not np.allclose(rig(3).t, rig(4).t)


def truth(frames: int = 200) -> Array:
    """Points well inside the picture (V=2, T, P=1, 25, 2)."""
    return np.random.default_rng(1).uniform(200, 280, (2, frames, 1, 25, 2))


def test_noise_is_what_was_asked_for() -> None:
    true_px, size = truth(), np.array([SIZE] * 2)
    found = detect(true_px, size, 0, NOISE)
    seen = found[..., 2] > 0
    assert np.isnan(found[~seen][:, :2]).all()
    assert 1 - seen.mean() == pytest.approx(0.1, abs=0.01)
    offset = found[..., :2] - true_px
    distance = np.linalg.norm(offset, axis=-1)[seen]
    # Chances: 3 px of noise passes 15 px in 4 of a million cases.
    assert (distance > 15).mean() == pytest.approx(0.05, abs=0.008)
    assert distance[distance > 15].min() >= 39
    assert distance.max() <= 121
    small = offset[seen][distance < 15]
    assert small.std() == pytest.approx(3.0, rel=0.02)
    assert np.abs(small.mean(0)).max() < 0.1
    assert abs(np.corrcoef(small.T)[0, 1]) < 0.05


def test_confidence_tells_of_the_error_but_not_all() -> None:
    true_px = truth()
    found = detect(true_px, np.array([SIZE] * 2), 0, NOISE)
    seen = found[..., 2] > 0
    confidence, error = found[..., 2][seen], np.linalg.norm((found[..., :2] - true_px)[seen], axis=-1)
    assert confidence.min() >= 0.05
    assert confidence.max() <= 1
    good, bad = confidence[error < 15], confidence[error > 15]
    assert good.mean() > 0.75
    assert bad.mean() < 0.6
    assert (bad > np.quantile(good, 0.1)).mean() > 0.05, "some outliers are believed"
    assert (good < bad.mean()).mean() < 0.05


def test_noise_depends_on_the_seed_and_the_frame_alone() -> None:
    true_px, size = truth(30), np.array([SIZE] * 2)
    noise = replace(NOISE, gaps=0.1)
    whole = detect(true_px, size, 60, noise)
    parts = [detect(true_px[:, a : a + 7], size, 60 + a, noise) for a in range(0, 30, 7)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)
    assert not np.array_equal(detect(true_px, size, 60, replace(noise, seed=8)), whole, equal_nan=True)
    assert not np.array_equal(detect(true_px, size, 61, noise), whole, equal_nan=True)


def test_gaps_are_runs_in_which_a_camera_sees_nobody() -> None:
    frames = 3000
    true_px = np.full((2, frames, 2, 3, 2), 200.0)
    found = detect(true_px, np.array([SIZE] * 2), 0, Noise(1.0, 0.0, 0.0, 0.04, 0))
    blind = (found[..., 2] == 0).all((2, 3))
    assert (blind == (found[..., 2] == 0).any((2, 3))).all(), "whole frames, all people"
    assert blind.mean() == pytest.approx(0.04, abs=0.005)
    starts = (np.diff(blind.astype(int), axis=1) == 1).sum()
    assert blind.sum() / starts > 2.5, "runs, not single frames"
    assert (blind[0] != blind[1]).mean() > 0.05, "each camera has its own"


def test_no_noise_gives_the_truth_and_the_picture_has_an_edge() -> None:
    true_px = np.array(
        [[-0.6, 100], [-0.4, 100], [639.4, 479.4], [639.6, 100], [100, 479.6], [np.nan, np.nan]]
    )
    found = detect(true_px[None, None, None], np.array([SIZE]), 0, Noise(0, 0, 0, 0, 0))[0, 0, 0]
    inside = np.array([False, True, True, False, False, False])
    np.testing.assert_array_equal(found[inside, :2], true_px[inside])
    assert np.isnan(found[~inside, :2]).all()
    np.testing.assert_array_equal(found[:, 2] > 0, inside)


def test_the_floor_lies_where_the_calibration_says() -> None:
    r = rig(2)
    for view in range(4):
        room = backdrop(r, view)
        assert room.shape == (SIZE[1], SIZE[0], 3)
        assert room.dtype == np.uint8
        for axis, strongest in ((0, 0), (1, 1)):  # x is red, y is green
            points = np.zeros((41, 3))
            points[:, axis] = np.concatenate([np.linspace(-0.9, -0.1, 20), [0.13], np.linspace(0.1, 0.9, 20)])
            px = r.project(points, distorted=True)[view]
            there = cv2.remap(room, px[:, None].astype(np.float32), None, cv2.INTER_LINEAR)[:, 0].astype(int)
            others = np.delete(there, strongest, 1).max(1)
            assert np.median(there[:, strongest] - others) > 30
            aside = points.copy()
            aside[:, 1 - axis] += 0.1
            px = r.project(aside, distorted=True)[view]
            off = cv2.remap(room, px[:, None].astype(np.float32), None, cv2.INTER_LINEAR)[:, 0].astype(int)
            assert np.median(off[:, strongest] - np.delete(off, strongest, 1).max(1)) < 15
