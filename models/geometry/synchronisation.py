"""Offsets and drifts of cameras' clocks from the movement of people, and reasons to refuse them.

A camera's clock reads t when it is offset + (1 + drift) t on the clock of the recording, which is that of the
first trusted camera. Coarse: the lags of least total residual over all pairs of cameras (``lags``). Fine:
``clock_fit`` for calibrated cameras; else the offsets nearest to each pair's lag of least residual.

The error of an offset is the spread of the offsets of disjoint groups of points: the covariance of a fit to a
person who stands still is small and means nothing, as noise in a trajectory and in its derivative look like
information.

Axes: V views, J points, G groups, L lags, C pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.geometry.clock_fit import MIN_SPAN_S, ClockFit, common_span, refine_clocks
from models.geometry.lags import (
    EPIPOLAR_GAP_PX,
    RAY_GAP_M,
    Consistent,
    LagCurves,
    consistent_offsets,
    epipolar_cost,
    epipolar_curves,
    ray_curves,
)
from models.geometry.trajectories import STEP_S, Trajectories
from pipeline.array_types import Array


@dataclass(frozen=True)
class Evidence:
    """Thresholds of a trusted clock, from people with a known truth: a sway of 5 mm or none gives errors of
    0.5 to 109 frames and fails, walking passes."""

    groups: int = 4
    """Groups of points, each with an offset of its own."""
    spread_s: float = 0.25 / 30
    """Standard error of the groups' mean above which too little moves: a quarter of a frame at 30 fps."""
    lines_spread_s: float = 0.5 / 30
    """The same without a calibration: so few points find the geometry less well than all of them do."""
    lines_span_s: float = 6.0
    """Time that cameras without a calibration must share: in 3 s a person who walked in place, with another
    one beside, was found a third of a second off."""
    apart_s: float = 0.15
    """Distance of two answers that makes them different."""
    contrast: float = 0.1
    """Share by which the least cost must be below the median one."""
    periodic_contrast: float = 0.3
    """The same, from which on a second answer means repeating movement, not too little of it."""
    unique: float = 0.15
    """Share of that difference by which the second answer must be worse than the best."""
    common: float = 30.0
    """Points and instants (sums of confidences) below which two cameras share no view."""
    overlap: float = 0.5
    """Share of the shortest recording that is the largest lag: with less in common anything may fit."""
    drift_span_s: float = 10.0
    """Span from which on a drift is fitted."""
    drift_sigmas: float = 3.0
    """Standard deviations from zero of a significant drift."""
    floor_s: float = 0.005
    """Error of an offset where the calibration is off or the detector biased, however much there is to see:
    3 to 8 ms between cameras that are in step, by real recordings."""


EVIDENCE: Final = Evidence()
NO_VIEW: Final = "nobody in view whom another camera shows"
STILL: Final = "too little moves"
PERIODIC: Final = "only movement that repeats"
EDGE: Final = "the movement fits best at the end of the search"
NO_SPAN: Final = "too little time in common with the others"


_EPIPOLAR_INSTANTS: Final = 150
_FINE_LAGS_S: Final = np.arange(-12, 13) * STEP_S / 4
"""Lags about the coarse one at which pairs of uncalibrated cameras are compared."""
_CURVE_LAG_S: Final = 1.5
"""Largest lag of the curves in the report."""
_CYCLE_SCALE_S: Final = 0.02
"""Robust scale of the sum of lags around a cycle of cameras, which is zero without errors."""


@dataclass(frozen=True)
class Clocks:
    """Clocks of V cameras."""

    offset_s: Array
    """(V,) seconds; 0 for a camera that is refused."""
    drift: Array
    """(V,) without unit; 0 where none is significant."""
    sigma_s: Array
    """(V,) standard deviation of the offset in the middle of the recording."""
    drift_sigma: Array
    """(V,) NaN where no drift was fitted."""
    refused: tuple[str | None, ...]
    """(V,) reason why a camera has no offset."""
    answers_s: tuple[tuple[float, ...], ...]
    """(V,) offsets that fit about as well as each other, where several do, the best first."""
    lag_s: Array
    """(L,)"""
    curve: Array
    """(V, L) residual of a camera, metres or pixels, when its clock alone is off by a lag; NaN if unknown."""
    unit: str
    """m or px"""


def find_clocks(cameras: Sequence[Trajectories], centres: Array | None, reach_s: float) -> Clocks:
    """Estimate the clocks of cameras that show the same points.

    cameras: trajectories of directions in the world, or, where ``centres`` (V, 3), metres, are not known, of
    pixels. reach_s: largest lag between two clocks.
    """
    joints = cameras[0].point.shape[1]
    groups = [np.arange(joints)[g :: EVIDENCE.groups] for g in range(EVIDENCE.groups)]
    shortest = min(float(c.time_s[-1] - c.time_s[0]) for c in cameras)
    reach = max(min(reach_s, EVIDENCE.overlap * shortest), 5 * STEP_S)
    if centres is None:
        curves = epipolar_curves(cameras, reach, groups)
    else:
        curves = ray_curves(cameras, centres, reach, groups)
    views = curves.component(EVIDENCE.common)
    refused: list[str | None] = [None if v in views else NO_VIEW for v in range(len(cameras))]
    found = consistent_offsets(curves, curves.mean(), views)
    fit = _refine(cameras, centres, views, _seconds(found.steps)) if len(views) > 1 else None
    if fit is None:
        begin, end = common_span(cameras, _seconds(found.steps), np.zeros(len(cameras)))
        least = MIN_SPAN_S if centres is not None else EVIDENCE.lines_span_s
        reason = NO_SPAN if end - begin < least else STILL
        return _relative_clocks(curves, found, None, [r or reason for r in refused], centres)
    second_s: list[float | None] = [None] * len(cameras)
    for v in views:
        refused[v], second_s[v] = _refusal(curves, found, v)
    group_offset_s = []
    for g, points in enumerate(groups):
        # Where movement repeats, a group of points may be a whole period off, which is not its error.
        near = found if PERIODIC in refused else consistent_offsets(curves, curves.cost[:, g], views)
        part = [c.points(points) for c in cameras]
        own = _refine(part, centres, views, _seconds(near.steps), fit.drift, with_drift=False)
        group_offset_s.append(_seconds(near.steps) if own is None else own.late_s)
    spread_s = _group_error_s(np.array(group_offset_s), views)
    moved = np.abs(fit.late_s - fit.late_s[views[0]] - found.steps * STEP_S)
    limit = EVIDENCE.lines_spread_s if centres is None else EVIDENCE.spread_s
    for v in views:
        sure = spread_s[v] <= limit and moved[v] <= EVIDENCE.apart_s
        if not sure and refused[v] in (None, PERIODIC):
            refused[v], second_s[v] = STILL, None
    believed = [v for v in views if refused[v] is None]
    if len(believed) < 2:  # nothing is left to compare with: one reason for all
        given = [r for v in views if (r := refused[v]) is not None]
        reason = max((STILL, EDGE, PERIODIC), key=given.count)
        for v in views:
            refused[v], second_s[v] = reason, second_s[v] if reason == PERIODIC else None
    elif len(believed) < len(views):
        fit = _refine(cameras, centres, believed, fit.late_s, fit.drift) or fit
    return _relative_clocks(
        curves, found, replace(fit, sigma_s=np.hypot(fit.sigma_s, spread_s)), refused, centres, second_s
    )


def extend_clocks(clocks: Clocks, cameras: Sequence[Trajectories], centres: Array) -> Clocks:
    """Refine clocks from one stretch of a recording by trajectories over several.

    Refused cameras keep their clocks, as do all cameras where the refinement fails.
    """
    views = [v for v, reason in enumerate(clocks.refused) if reason is None]
    if len(views) < 2:
        return clocks
    some = [cameras[v] for v in views]
    start = refine_clocks(some, centres[views], clocks.offset_s[views], clocks.drift[views], with_drift=True)
    if start is None or np.abs(start.offset_s - clocks.offset_s[views]).max() > 4 * EVIDENCE.apart_s:
        return clocks
    offset, drift, drift_sigma = clocks.offset_s.copy(), clocks.drift.copy(), clocks.drift_sigma.copy()
    offset[views], drift[views] = start.offset_s, start.drift
    drift_sigma[views] = np.hypot(start.drift_sigma, _drift_floor(start.span_s))
    return replace(clocks, offset_s=offset, drift=drift, drift_sigma=drift_sigma)


def _drift_floor(span_s: float) -> float:
    """Error of a drift by ``floor_s``: people go to and fro, so that it falls faster than the span grows."""
    return 4 * EVIDENCE.floor_s / span_s * math.pow(20 / span_s, 0.75)


def drop_insignificant_drift(clocks: Clocks, middle_s: float) -> Clocks:
    """Set insignificant drifts to zero, with offsets that are right at ``middle_s``."""
    told = np.abs(clocks.drift) > EVIDENCE.drift_sigmas * np.nan_to_num(clocks.drift_sigma, nan=np.inf)
    late = middle_s - (middle_s - clocks.offset_s) / (1 + clocks.drift)
    return replace(
        clocks,
        drift=np.where(told, clocks.drift, 0),
        offset_s=np.where(told, clocks.offset_s, late),
    )


def _refine(
    cameras: Sequence[Trajectories],
    centres: Array | None,
    views: Sequence[int],
    start_s: Array,
    drift: Array | None = None,
    *,
    with_drift: bool = True,
) -> ClockFit | None:
    """Fit the clocks of some cameras near given ones; zeros for the others."""
    some = [cameras[v] for v in views]
    drift = np.zeros(len(cameras)) if drift is None else drift
    start_s = start_s - start_s[views[0]]
    if centres is None:
        fit = _fit_epipolar(some, start_s[views])
    else:
        fit = refine_clocks(some, centres[views], start_s[views], drift[views], with_drift=False)
        if fit and with_drift and fit.span_s >= EVIDENCE.drift_span_s:
            # With a drift the offset in the middle is better, even where the drift is insignificant.
            fit = refine_clocks(some, centres[views], fit.offset_s, fit.drift, with_drift=True) or fit
    if fit is None:
        return None

    def of_all(values: Array) -> Array:
        out = np.zeros(len(cameras))
        out[views] = values
        return out

    offset_s, drifts, sigma_s, drift_sigma = (
        of_all(x) for x in (fit.offset_s, fit.drift, fit.sigma_s, fit.drift_sigma)
    )
    return ClockFit(offset_s, drifts, sigma_s, drift_sigma, fit.middle_s, fit.span_s)


def _seconds(steps: NDArray[np.int64]) -> Array:
    return np.asarray(steps * STEP_S, np.float64)


def _fit_epipolar(cameras: Sequence[Trajectories], start_s: Array) -> ClockFit | None:
    """Fit offsets of uncalibrated cameras to the lag of least epipolar residual of each pair."""
    begin, end = common_span(cameras, start_s, np.zeros(len(cameras)))
    if end - begin < EVIDENCE.lines_span_s:
        return None
    tau = np.linspace(begin, end, _EPIPOLAR_INSTANTS)
    rows, lags, weights = [], [], []
    for a, b in combinations(range(len(cameras)), 2):
        one, _, sure = cameras[a].at(tau - start_s[a])
        cost = []
        for lag in _FINE_LAGS_S:
            two, _, other = cameras[b].at(tau - start_s[b] - lag)
            cost.append(epipolar_cost(one, two, np.sqrt(sure * other)))
        k = int(np.argmin(np.nan_to_num(cost, nan=1.0)))
        if 0 < k < len(cost) - 1 and np.isfinite(cost[k - 1 : k + 2]).all():
            left, least, right = cost[k - 1 : k + 2]
            bend = left - 2 * least + right
            if bend > 0:
                rows.append((a, b))
                lags.append(
                    _FINE_LAGS_S[k] + 0.5 * (left - right) / bend * (_FINE_LAGS_S[1] - _FINE_LAGS_S[0])
                )
                weights.append(bend)
    if not rows:
        return None
    design = np.zeros((len(rows), len(cameras)))
    design[np.arange(len(rows)), [a for a, _ in rows]] = -1
    design[np.arange(len(rows)), [b for _, b in rows]] = 1
    design, lag = design[:, 1:], np.array(lags)
    trust = weight = np.array(weights)
    more = np.zeros(len(cameras) - 1)
    for _ in range(5):  # down-weights pairs that contradict the others around a cycle
        normal = (design * trust[:, None]).T @ design + 1e-9 * weight.max() * np.eye(len(more))
        more = np.linalg.solve(normal, (design * trust[:, None]).T @ lag)
        trust = weight / (1 + ((design @ more - lag) / _CYCLE_SCALE_S) ** 2) ** 2
    unknown = np.full(len(cameras), np.nan)
    offset = start_s + np.concatenate([[0.0], more])
    zero = np.zeros(len(cameras))
    return ClockFit(offset, zero, zero, unknown, (begin + end) / 2, end - begin)


def _group_error_s(group_offset_s: Array, views: Sequence[int]) -> Array:
    """(V,) standard error of the mean of the groups' offsets (G, V), relative to the camera with the least
    errors; infinite where a group is an outlier."""
    best = np.full(group_offset_s.shape[1], np.inf)
    for root in views:
        by_root = group_offset_s - group_offset_s[:, [root]]
        spread_s = by_root.std(0, ddof=1) / np.sqrt(len(group_offset_s))
        far = np.abs(by_root - np.median(by_root, 0)).max(0) > EVIDENCE.apart_s
        spread_s = np.where(far, np.inf, spread_s)
        if np.median(spread_s[views]) < np.median(best[views]):
            best = spread_s
    return best


def _refusal(curves: LagCurves, found: Consistent, v: int) -> tuple[str | None, float | None]:
    """Reason to refuse a camera's coarse offset, None if trusted; and the lag of a second answer."""
    curve, middle = found.curve[v], len(found.change) // 2
    usual, least = float(np.nanmedian(curve)), float(curve[middle])
    if not least < (1 - EVIDENCE.contrast) * usual:
        return STILL, None
    between = [found.steps[b] - found.steps[a] for a, b in curves.pairs if v in (a, b)]
    if min(abs(n) for n in between) >= curves.lag[-1]:
        return EDGE, None
    other = np.where(np.abs(found.change) * STEP_S > EVIDENCE.apart_s, curve, np.inf)
    k = int(np.nanargmin(other))
    if other[k] - least < EVIDENCE.unique * (usual - least):
        if least > (1 - EVIDENCE.periodic_contrast) * usual:
            return STILL, None
        return PERIODIC, float(found.change[k] * STEP_S)
    return None, None


def _relative_clocks(
    curves: LagCurves,
    found: Consistent,
    fit: ClockFit | None,
    refused: Sequence[str | None],
    centres: Array | None,
    second_s: Sequence[float | None] = (),
) -> Clocks:
    """Clocks relative to the first trusted camera."""
    views = len(refused)
    zero = np.zeros(views)
    scale = EPIPOLAR_GAP_PX if centres is None else RAY_GAP_M
    near = np.abs(found.change) <= min(int(curves.lag[-1]), round(_CURVE_LAG_S / STEP_S))
    lag_s = _seconds(found.change[near])
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = scale * np.sqrt(found.curve[:, near] / (1 - found.curve[:, near]))
    if fit is None:
        late, drift, sigma, drift_sigma = zero, zero, np.full(views, np.nan), np.full(views, np.nan)
    else:
        late, drift, sigma, drift_sigma = fit.late_s, fit.drift, fit.sigma_s, fit.drift_sigma
        drift_sigma = np.hypot(drift_sigma, _drift_floor(fit.span_s))
    believed = [v for v in range(views) if refused[v] is None]
    if believed and fit is not None:
        root = believed[0]
        sigma = np.where(np.arange(views) == root, 0, np.hypot(sigma, EVIDENCE.floor_s))
        told = np.abs(drift - drift[root]) > EVIDENCE.drift_sigmas * drift_sigma
        drift = np.where(told, drift - drift[root], 0)
        late = late - late[root]
    answers = tuple(
        () if r is None else tuple(sorted((round(float(late[v]), 3), round(float(late[v] + r), 3))))
        for v, r in enumerate(second_s or [None] * views)
    )
    # As the clock is right in the middle: offset + (1 + drift) t = t + late there.
    middle = 0.0 if fit is None else fit.middle_s
    offset = late - drift * (middle - late)
    keep = np.isin(np.arange(views), believed)
    return Clocks(
        offset_s=np.where(keep, offset, 0),
        drift=np.where(keep, drift, 0),
        sigma_s=sigma,
        drift_sigma=drift_sigma,
        refused=tuple(refused),
        answers_s=answers,
        lag_s=lag_s,
        curve=residual,
        unit="px" if centres is None else "m",
    )
