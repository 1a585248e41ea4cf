"""Detections with the noise that was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.synthetic.detector import Noise, simulate_detections, simulate_openpose
from pipeline.array_types import Array
from pipeline.skeleton import BODY_25

SIZE = (640, 480)
NOISE = Noise(sigma_px=3.0, outliers=0.05, missing=0.1, gaps=0.0, seed=7)


def truth(frames: int = 200) -> Array:
    """Points well inside the picture (V=2, T, P=1, 25, 2)."""
    return np.random.default_rng(1).uniform(200, 280, (2, frames, 1, 25, 2))


def test_noise_is_what_was_asked_for() -> None:
    true_px, size = truth(), np.array([SIZE] * 2)
    found = simulate_detections(true_px, size, 0, NOISE)
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
    found = simulate_detections(true_px, np.array([SIZE] * 2), 0, NOISE)
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
    whole = simulate_detections(true_px, size, 60, noise)
    parts = [simulate_detections(true_px[:, a : a + 7], size, 60 + a, noise) for a in range(0, 30, 7)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)
    assert not np.array_equal(
        simulate_detections(true_px, size, 60, replace(noise, seed=8)), whole, equal_nan=True
    )
    assert not np.array_equal(simulate_detections(true_px, size, 61, noise), whole, equal_nan=True)


def test_gaps_are_runs_in_which_a_camera_sees_nobody() -> None:
    frames = 3000
    true_px = np.full((2, frames, 2, 3, 2), 200.0)
    found = simulate_detections(true_px, np.array([SIZE] * 2), 0, Noise(1.0, 0.0, 0.0, 0.04, 0))
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
    found = simulate_detections(true_px[None, None, None], np.array([SIZE]), 0, Noise(0, 0, 0, 0, 0))[0, 0, 0]
    inside = np.array([False, True, True, False, False, False])
    np.testing.assert_array_equal(found[inside, :2], true_px[inside])
    assert np.isnan(found[~inside, :2]).all()
    np.testing.assert_array_equal(found[:, 2] > 0, inside)


def test_left_and_right_limbs_are_exchanged_as_often_as_said() -> None:
    rng = torch.Generator().manual_seed(0)
    true = torch.rand(1500, 2, 25, 2, generator=rng) * 40 + 400
    for side, x in (("L", 100.0), ("R", 700.0)):
        for part in ("Elbow", "Wrist", "Knee", "Ankle"):
            true[:, :, BODY_25.index(side + part), 0] += x
    size = torch.full((1500, 2, 2), 2000.0)
    found, confidence = simulate_openpose(true, size, torch.ones(1500, 1, 1), rng)
    for a, b in (("Elbow", "Wrist"), ("Knee", "Ankle")):
        left = torch.stack([found[..., BODY_25.index("L" + part), 0] for part in (a, b)])
        seen = left.isfinite()
        exchanged = left > 900
        assert 0.017 < float(exchanged[seen].float().mean()) < 0.034
        assert torch.equal(*exchanged[:, seen.all(0)]), "a whole limb at once"
    assert torch.equal(confidence > 0, found.isfinite().all(-1))
