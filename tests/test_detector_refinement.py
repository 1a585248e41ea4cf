"""Refinement of keypoints by their heat maps."""

from __future__ import annotations

import numpy as np
import pytest

from models.detectors.refinement import ITERATIONS, KERNEL_CELLS, MIN_PEAK, peaks, refine_keypoints, sigmoid


def heatmaps(centre: np.ndarray, width: float = 2.0, top: float = 4.0, low: float = -8.0) -> np.ndarray:
    """Logits (N, K, 64, 64) of blobs around centres (N, K, 2) in cells."""
    y, x = np.mgrid[:64, :64]
    square = (x - centre[..., 0, None, None]) ** 2 + (y - centre[..., 1, None, None]) ** 2
    return (low + (top - low) * np.exp(-square / (2 * width**2))).astype(np.float32)


def slow(xy: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Mean shift of one keypoint over its whole heat map."""
    weight, (y, x) = sigmoid(heat), np.mgrid[:64, :64]
    for _ in range(ITERATIONS):
        window = weight * np.exp(-((x - xy[0]) ** 2 + (y - xy[1]) ** 2) / (2 * KERNEL_CELLS**2))
        xy = np.array([(window * x).sum(), (window * y).sum()]) / window.sum()
    return xy


def test_the_patch_gives_what_the_whole_map_gives() -> None:
    rng = np.random.default_rng(0)
    centre = rng.uniform(-1, 65, (3, 20, 2))
    heat = heatmaps(centre) + rng.normal(0, 0.5, (3, 20, 64, 64)).astype(np.float32)
    start = centre + rng.normal(0, 1.0, centre.shape)
    found = refine_keypoints(start, heat)
    compared = 0
    for n, k in np.ndindex(3, 20):
        if ((start[n, k] > 0) & (start[n, k] < 63)).all() and peaks(heat)[n, k] > 0.9:
            assert np.abs(found[n, k] - slow(start[n, k], heat[n, k])).max() < 0.01
            compared += 1
    assert compared > 40


def test_a_landmark_comes_to_the_middle_of_its_blob() -> None:
    centre = np.array([[[20.3, 30.7], [50.5, 9.25]]])
    start = centre + np.array([[[0.9, -0.7], [-1.1, 0.4]]])
    found = refine_keypoints(start, heatmaps(centre))
    assert np.abs(found - centre).max() < 0.05
    assert np.abs(start - centre).max() > 1


def test_it_does_not_jump_from_cell_to_cell() -> None:
    """Blobs a hundredth of a cell apart give landmarks a hundredth apart, where their start rounds."""
    centre = np.stack([np.linspace(20, 22, 201), np.full(201, 30.0)], -1)[None]
    found = refine_keypoints(centre + 0.4, heatmaps(centre))
    step = np.diff(found[0, :, 0])
    assert step.min() > 0
    assert step.max() < 0.02


def test_unsure_maps_and_places_outside_move_nothing() -> None:
    centre = np.array([[[20.0, 30.0], [20.0, 30.0], [70.0, 30.0], [np.inf, 0.0]]])
    heat = heatmaps(np.full((1, 4, 2), [20.0, 30.0]), top=4)
    heat[0, 0] = heatmaps(centre[:, :1], top=float(np.log(MIN_PEAK / (1 - MIN_PEAK))) - 0.01)[0, 0]
    start = np.array([[[20.8, 30.5], [20.8, 30.5], [70.0, 30.0], [-5.0, 2.0]]])
    found = refine_keypoints(start, heat)
    assert np.array_equal(found[0, [0, 2, 3]], start[0, [0, 2, 3]])
    assert np.abs(found[0, 1] - 20).max() < 10.1
    assert not np.array_equal(found[0, 1], start[0, 1])


def test_people_do_not_touch_each_other_to_the_last_bit() -> None:
    rng = np.random.default_rng(1)
    start = rng.uniform(0, 64, (7, 35, 2))
    heat = rng.normal(0, 3, (7, 35, 64, 64)).astype(np.float32)
    together = refine_keypoints(start, heat)
    for n in range(7):
        assert np.array_equal(refine_keypoints(start[n : n + 1], heat[n : n + 1])[0], together[n])


def test_peaks_are_the_largest_values() -> None:
    heat = np.zeros((2, 3, 64, 64), np.float32)
    heat[1, 2, 5, 60] = 2
    assert peaks(heat) == pytest.approx(np.array([[0.5] * 3, [0.5, 0.5, 1 / (1 + np.exp(-2))]]))
    assert peaks(heat[:0]).shape == (0, 3)
