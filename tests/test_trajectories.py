"""Keypoints as smooth functions of time."""

from __future__ import annotations

import numpy as np

from models.geometry.trajectories import STEP_S, join_stretches, smooth

RNG = np.random.default_rng(0)
RATES = np.array([[3.0, -20.0], [0.0, 40.0]])
BEND = np.array([[10.0, 0.0], [-5.0, 8.0]])


def parabola(time_s: np.ndarray) -> np.ndarray:
    """(T, 2, 2) pixels."""
    t = time_s[:, None, None]
    return 300 + RATES * t + BEND * t**2


def test_a_parabola_is_kept_at_any_rate_with_outliers_and_gaps() -> None:
    for rate in (25, 59.94, 120):
        time_s = np.arange(int(4 * rate)) / rate
        xy = parabola(time_s)
        sure = np.full(xy.shape[:2], 0.8)
        xy[RNG.random(sure.shape) < 0.05] += 80
        xy[7::9, 1] = np.nan
        track = smooth(time_s, xy, sure)
        assert np.allclose(np.diff(track.time_s), STEP_S)
        at = np.linspace(0.5, 3.4, 57)
        place, moves, confidence = track.at(at)
        # Where three outliers come together they are believed.
        assert np.quantile(np.abs(place - parabola(at)), 0.97) < 0.5
        assert np.quantile(np.abs(moves - (RATES + 2 * BEND * at[:, None, None])), 0.95) < 8
        assert (confidence > 0).all()


def test_velocity_is_the_derivative_of_the_place() -> None:
    time_s = np.arange(120) / 30
    wave = 200 + 50 * np.sin(2 * np.pi * time_s[:, None, None] * [[0.5, 0.8]])
    track = smooth(time_s, np.repeat(wave, 2, 1), np.ones((120, 2)))
    at, h = np.linspace(0.3, 3.6, 41), 1e-4
    by_difference = (track.at(at + h)[0] - track.at(at - h)[0]) / (2 * h)
    assert np.allclose(track.at(at)[1], by_difference, atol=1e-3 * np.abs(by_difference).max())


def test_nothing_is_known_in_gaps_outside_and_between_stretches() -> None:
    time_s = np.arange(240) / 30
    xy, sure = parabola(time_s), np.ones((240, 2))
    sure[90:150, 1] = 0
    track = smooth(time_s, xy, sure)
    confidence = track.at(np.array([2.0, 4.0, 6.0, -0.5, 9.0]))[2]
    assert (confidence[:, 0] > 0).tolist() == [True, True, True, False, False]
    assert (confidence[:, 1] > 0).tolist() == [True, False, True, False, False]

    parts = [smooth(time_s[s], xy[s], sure[s]) for s in (slice(60), slice(150, 240))]
    both = join_stretches(parts)
    confidence = both.at(np.array([1.0, 3.0, 6.0]))[2]
    assert (confidence[:, 0] > 0).tolist() == [True, False, True]
    lacking = join_stretches([parts[0].points(np.array([0])), parts[1]])  # the second point at first
    assert (lacking.at(np.array([1.0, 6.0]))[2] > 0).tolist() == [[True, False], [True, True]]
    assert np.allclose(both.at(np.array([1.0, 6.0]))[0], parabola(np.array([1.0, 6.0])), atol=0.2)
