"""Offsets that fit all pairs of cameras at once."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from models.geometry.lags import LagCurves, consistent_offsets, epipolar_cost, ray_curves
from models.geometry.trajectories import STEP_S, Trajectories

TRUE = np.array([0, 17, -9, 4, -20])
LAG = np.arange(-60, 61)


def curves(wrong: tuple[tuple[int, int], ...] = ()) -> LagCurves:
    pairs = tuple(combinations(range(len(TRUE)), 2))
    least = [TRUE[b] - TRUE[a] + (23 if (a, b) in wrong else 0) for a, b in pairs]
    cost = np.stack([0.1 + 0.6 * (1 - np.exp(-(((LAG - k) / 6) ** 2))) for k in least])
    return LagCurves(LAG, pairs, cost[:, None], np.ones(len(pairs)))


@pytest.mark.parametrize("wrong", [(), ((0, 1),), ((0, 1), (2, 4))])
def test_cycles_close_over_pairs_that_are_wrong(wrong: tuple[tuple[int, int], ...]) -> None:
    made = curves(wrong)
    found = consistent_offsets(made, made.mean(), range(len(TRUE)))
    assert found.steps.tolist() == TRUE.tolist()
    best = found.change[np.nanargmin(found.curve, 1)]
    assert best.tolist() == [0] * len(TRUE)


def test_offsets_may_be_further_apart_than_any_lag_that_is_looked_at() -> None:
    far = LagCurves(np.arange(-10, 11), ((0, 1), (0, 2), (1, 2)), np.full((3, 1, 21), np.nan), np.ones(3))
    far.cost[0, 0] = 1 - np.eye(21)[2] * 0.8  # camera 1 at −8
    far.cost[1, 0] = 1 - np.eye(21)[18] * 0.8  # camera 2 at 8: 16 from camera 1
    assert consistent_offsets(far, far.mean(), range(3)).steps.tolist() == [0, -8, 8]


def test_a_lag_at_which_cameras_share_less_than_half_has_no_cost() -> None:
    frames, points = 100, 5
    centres = np.array([[0.0, 0, 0], [3, 0, 0]])
    world = np.random.default_rng(2).normal((1.5, 0, 4), size=(frames, points, 3))
    time_s, known = STEP_S * np.arange(frames), np.ones((frames, points))
    cameras = [Trajectories(time_s, world - c, np.zeros_like(world), known) for c in centres]
    made = ray_curves(cameras, centres, 80 * STEP_S, [np.arange(points)])
    known, apart = np.isfinite(made.cost[0, 0]), np.abs(made.lag)
    assert known[apart < 46].all()
    assert not known[apart > 54].any()
    assert made.lag[np.nanargmin(made.cost[0, 0])] == 0


def test_component_is_the_largest_set_that_shares_a_view() -> None:
    made = curves()
    weight = np.array([0.0 if (a == 0) != (b == 0) else 50.0 for a, b in made.pairs])
    assert LagCurves(made.lag, made.pairs, made.cost, weight).component(30) == [1, 2, 3, 4]
    assert made.component(30) == [0]


def test_epipolar_cost_is_least_where_two_pictures_show_one_moment() -> None:
    rng = np.random.default_rng(1)
    world = rng.normal(size=(200, 3)) * 0.5 + [0, 0, 5]
    one = world[:, :2] / world[:, 2:] * 900
    moved = world @ np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]]) + [2.0, 0.1, 1.0]
    two = moved[:, :2] / moved[:, 2:] * 900
    weight = np.ones(200)
    same = epipolar_cost(one, two, weight)
    other = epipolar_cost(one, np.roll(two, 7, 0), weight)
    assert same < 1e-6 < 0.3 < other
    assert np.isnan(epipolar_cost(one[:8], two[:8], weight[:8]))
