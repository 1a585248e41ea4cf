"""Cost of lags between the clocks of pairs of cameras, and the offsets of least total cost.

The first camera's clock reads t + lag when the second one's reads t. Lags are whole multiples of
``trajectories.STEP_S``.

Axes: C pairs of cameras, G groups of points, L lags, J points, N and S instants, V views.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np
from scipy.sparse.csgraph import connected_components

from models.geometry.trajectories import STEP_S, Trajectories
from pipeline.array_types import Array, Ints
from pipeline.timeline import spread

RAY_GAP_M: Final = 0.03
"""Distance of two rays that costs one half: a detector's noise at some metres."""
EPIPOLAR_GAP_PX: Final = 8.0
"""Distance from an epipolar line that costs one half."""
_MAX_SAMPLES, _PERSON_POINTS, _MIN_INSTANTS = 160 * 25, 25, 60
"""Most products of instants and points that are compared at a lag, points of one person, fewest instants."""
_MIN_SINE: Final = 0.05
"""Least sine of the angle between two rays that are compared (2.9°)."""
_EPIPOLAR_INSTANTS: Final = 60
_MIN_EPIPOLAR_POINTS: Final = 12
"""Fewest points that a fundamental matrix is fitted to; it takes eight."""
_MIN_OVERLAP_SHARE: Final = 0.5
"""Least weight that two cameras share at a lag with a cost, over the largest at any lag."""
_MAX_SWEEPS: Final = 10


def largest_component(views: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Largest set of views that pairs connect; of equals, that of the first view."""
    linked = np.zeros((views, views), bool)
    for pair in pairs:
        linked[pair] = True
    group = connected_components(linked, directed=False)[1]
    size = np.bincount(group)[group]
    return np.flatnonzero(group == group[size.argmax()]).tolist()


def difference_matrix(views: int, pairs: Sequence[tuple[int, int]]) -> Array:
    """Matrix (C, V) from values of views to the second less the first of each pair."""
    a, b = np.array(pairs).T
    return np.asarray(np.eye(views)[b] - np.eye(views)[a])


def parabola_vertex(before: float, middle: float, after: float) -> float:
    """Position of the vertex of a parabola through values at −1, 0 and 1; it must bend."""
    return 0.5 * (before - after) / (before - 2 * middle + after)


@dataclass(frozen=True)
class LagCurves:
    """Cost of every lag between every two cameras."""

    lag: Ints
    """(L,) steps, rising by one"""
    pairs: tuple[tuple[int, int], ...]
    cost: Array
    """(C, G, L) robust mean residual between 0 and 1; NaN where too little is in common"""
    weight: Array
    """(C,) sum of confidences over the points and instants that a pair shares"""

    @property
    def views(self) -> int:
        return 1 + max(b for _, b in self.pairs)

    def mean(self) -> Array:
        """(C, L) over the groups."""
        return np.asarray(self.cost.mean(1))

    def component(self, min_weight: float) -> list[int]:
        """Largest set of cameras that pairs of at least this weight connect."""
        linked = (self.weight >= min_weight) & np.isfinite(self.mean()).any(1)
        return largest_component(self.views, [self.pairs[c] for c in np.flatnonzero(linked)])


def ray_curves(
    cameras: Sequence[Trajectories], centres: Array, reach_s: float, groups: Sequence[Ints]
) -> LagCurves:
    """Cost curves of calibrated cameras: robust mean distance of the rays of a point, by group of points.

    cameras: trajectories of directions in the world. centres: (V, 3) metres.
    """
    unit = [_normalise_directions(c) for c in cameras]
    pairs = tuple(combinations(range(len(cameras)), 2))
    steps = round(reach_s / STEP_S)
    lag = np.arange(-steps, steps + 1)
    curves = [_pair_curve(unit[a], unit[b], centres[b] - centres[a], lag, groups) for a, b in pairs]
    return LagCurves(lag, pairs, np.stack([cost for cost, _ in curves]), np.array([w for _, w in curves]))


def _normalise_directions(camera: Trajectories) -> Trajectories:
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = camera.point / np.linalg.norm(camera.point, axis=-1, keepdims=True)
    return replace(camera, point=np.where(camera.confidence[..., None] > 0, unit, 0))


def _lagged(one: Trajectories, two: Trajectories, lag: Ints, samples: int) -> list[tuple[Ints, Ints]]:
    """Indices (S,) of instants of the first and second camera that are one moment, for every lag."""
    first, second = (np.round(c.time_s / STEP_S).astype(np.int64) for c in (one, two))
    visible = np.flatnonzero(one.confidence.any(1))
    i = spread(visible, samples) if len(visible) else visible
    out = []
    for steps in lag.tolist():
        j = np.clip(np.searchsorted(second, first[i] - steps), 0, len(second) - 1)
        match = second[j] == first[i] - steps
        out.append((i[match], j[match]))
    return out


def _pair_curve(
    one: Trajectories, two: Trajectories, base: Array, lag: Ints, groups: Sequence[Ints]
) -> tuple[Array, float]:
    """Cost (G, L) of two cameras, the second ``base`` away, and their weight."""
    cost = np.full((len(groups), len(lag)), np.nan)
    weight = np.zeros((len(groups), len(lag)))
    # base · (a × b) = a · (b × base); |a × b|² = 1 − (a · b)².
    turned = np.cross(two.point, base)
    samples = max(_MAX_SAMPLES // max(one.point.shape[1], _PERSON_POINTS), _MIN_INSTANTS)
    for k, (i, j) in enumerate(_lagged(one, two, lag, samples)):
        volume = np.einsum("sjx,sjx->sj", one.point[i], turned[j])
        sin2 = 1 - np.einsum("sjx,sjx->sj", one.point[i], two.point[j]) ** 2
        w = np.where(sin2 > _MIN_SINE**2, np.sqrt(one.confidence[i] * two.confidence[j]), 0)
        u2 = volume**2 / np.where(w > 0, sin2, 1) / RAY_GAP_M**2
        bad = (w * (u2 / (1 + u2))).sum(0)
        total = w.sum(0)
        for g, points in enumerate(groups):
            weight[g, k] = total[points].sum()
            if weight[g, k] > 0:
                cost[g, k] = bad[points].sum() / weight[g, k]
    enough = weight >= np.maximum(_MIN_OVERLAP_SHARE * weight.max(1, keepdims=True), 1e-9)
    return np.where(enough, cost, np.nan), float(weight.sum(0).max())


def epipolar_curves(cameras: Sequence[Trajectories], reach_s: float, groups: Sequence[Ints]) -> LagCurves:
    """Cost curves of uncalibrated cameras: robust mean distance from the epipolar lines of a fundamental
    matrix fitted at each lag (Hartley and Zisserman, Multiple View Geometry, 11.2 and 11.4.3).

    cameras: trajectories in pixels.
    """
    pairs = tuple(combinations(range(len(cameras)), 2))
    steps = round(reach_s / STEP_S)
    lag = np.arange(-steps, steps + 1)
    cost = np.full((len(pairs), len(groups), len(lag)), np.nan)
    weight = np.zeros(len(pairs))
    for p, (a, b) in enumerate(pairs):
        total = np.zeros(len(lag))
        for k, (i, j) in enumerate(_lagged(cameras[a], cameras[b], lag, _EPIPOLAR_INSTANTS)):
            w = np.sqrt(cameras[a].confidence[i] * cameras[b].confidence[j])
            total[k] = w.sum()
            for g, points in enumerate(groups):
                cost[p, g, k] = epipolar_cost(
                    cameras[a].point[i][:, points], cameras[b].point[j][:, points], w[:, points]
                )
        weight[p] = total.max()
        cost[p][:, total < _MIN_OVERLAP_SHARE * weight[p]] = np.nan
    return LagCurves(lag, pairs, cost, weight)


def epipolar_cost(one: Array, two: Array, weight: Array, iterations: int = 4) -> float:
    """Robust mean distance of points (..., 2) in two pictures from the epipolar lines of the fundamental
    matrix that fits them best, between 0 and 1; NaN for too few."""
    known = weight > 0
    w = weight[known]
    if len(w) < _MIN_EPIPOLAR_POINTS:
        return float("nan")
    x, size_x = _normalise_points(one[known], w)
    y, size_y = _normalise_points(two[known], w)
    design = (y[:, :, None] * x[:, None]).reshape(-1, 9)
    scale = np.sqrt(size_x * size_y)
    robust = w
    for _ in range(iterations):
        f = np.linalg.eigh((design * robust[:, None]).T @ design)[1][:, 0].reshape(3, 3)
        u, s, v = np.linalg.svd(f)
        f = (u * [s[0], s[1], 0]) @ v
        fx, fy = x @ f.T, y @ f
        slope = fx[:, 0] ** 2 + fx[:, 1] ** 2 + fy[:, 0] ** 2 + fy[:, 1] ** 2
        off2 = (y * fx).sum(1) ** 2 / (slope + 1e-12) * scale**2
        robust = w / (1 + off2 / max(4.9 * float(np.median(off2)), 1.0)) ** 2
    u2 = off2 / EPIPOLAR_GAP_PX**2
    return float((w * u2 / (1 + u2)).sum() / w.sum())


def _normalise_points(xy: Array, weight: Array) -> tuple[Array, float]:
    """Normalise points (N, 2) to homogeneous ones (N, 3) about their mean and of unit size; and that size."""
    middle = np.average(xy, axis=0, weights=weight)
    size = max(float(np.sqrt(np.average(((xy - middle) ** 2).sum(1), weights=weight) / 2)), 1e-6)
    return np.concatenate([(xy - middle) / size, np.ones((len(xy), 1))], 1), size


@dataclass(frozen=True)
class Consistent:
    """Offsets of least total cost over all pairs."""

    steps: Ints
    """(V,) offsets relative to the first of ``views``; 0 for cameras that are not among these"""
    change: Ints
    """(M,) steps, rising by one, up to twice the largest lag to either side"""
    curve: Array
    """(V, M) mean cost of a camera's pairs when its offset alone changes by so much; NaN if unknown"""

    @property
    def offset_s(self) -> Array:
        return np.asarray(self.steps * STEP_S, np.float64)


def consistent_offsets(curves: LagCurves, cost: Array, views: Sequence[int]) -> Consistent:
    """Find the offsets of ``views`` with the least weighted sum of the pairs' costs (C, L).

    Coordinate descent over the cameras, each over all its offsets, from the best lags to each camera.
    """
    reach = int(curves.lag[-1])
    filled = np.where(np.isfinite(cost), cost, 1.0)
    beyond = np.ones((len(cost), 2 * reach))
    table = np.concatenate([beyond, filled, beyond], 1)  # index: lag + 3 reach
    weight = curves.weight / max(float(curves.weight.max(initial=0)), 1e-9)
    lag = curves.lag

    def camera_cost(v: int, steps: Ints, others: Sequence[int]) -> Array:
        """(L,) cost of camera v at the offsets ``lag``, given those of others."""
        total, weights = np.zeros(len(lag)), 1e-12
        for p, (a, b) in enumerate(curves.pairs):
            if v in (a, b) and (a + b - v) in others:
                # The lag of a pair is the offset of b less that of a.
                between = lag - steps[a] if v == b else steps[b] - lag
                at = np.clip(between + 3 * reach, 0, table.shape[1] - 1)
                total += weight[p] * table[p, at]
                weights += float(weight[p])
        return np.asarray(total / weights)

    best, best_cost = np.zeros(curves.views, np.int64), np.inf
    for root in views:
        steps = np.zeros(curves.views, np.int64)
        placed = [root]
        while len(placed) < len(views):  # next the camera that agrees best with these
            rest = {v: camera_cost(v, steps, placed) for v in views if v not in placed}
            v = min(rest, key=lambda v: float(rest[v].min()))
            steps[v] = lag[int(rest[v].argmin())]
            placed.append(v)
        for _ in range(_MAX_SWEEPS):
            before = steps.copy()
            for v in views:
                if v != root:
                    steps[v] = lag[int(camera_cost(v, steps, views).argmin())]
            if (steps == before).all():
                break
        total = sum(float(camera_cost(v, steps, views)[steps[v] + reach]) for v in views)
        if total < best_cost:
            best, best_cost = steps, total
    change, curve = _camera_curves(curves, cost, best, views)
    steps = np.where(np.isin(np.arange(len(best)), views), best - best[views[0]], 0)
    return Consistent(steps, change, curve)


def _camera_curves(curves: LagCurves, cost: Array, steps: Ints, views: Sequence[int]) -> tuple[Ints, Array]:
    """``Consistent.change`` and ``Consistent.curve``."""
    reach = int(curves.lag[-1])
    change = np.arange(-2 * reach, 2 * reach + 1)
    curve = np.full((curves.views, len(change)), np.nan)
    for v in views:
        sums, weights = np.zeros((2, len(change)))
        for p, (a, b) in enumerate(curves.pairs):
            if v in (a, b) and (a + b - v) in views:
                at = steps[b] - steps[a] + (change if v == b else -change) + reach
                known = (at >= 0) & (at < len(curves.lag))
                known[known] &= np.isfinite(cost[p, at[known]])
                sums[known] += curves.weight[p] * cost[p, at[known]]
                weights[known] += curves.weight[p]
        curve[v] = np.where(weights > 0, sums / np.maximum(weights, 1e-12), np.nan)
    return change, curve
