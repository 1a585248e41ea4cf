"""Offsets and drifts of cameras' clocks from the movement of people, and reasons to refuse them.

A camera's clock reads t when it is offset + (1 + drift) t on the clock of the recording, which is that of the
first trusted camera. Coarse: the lags of least total cost over all pairs of cameras (``lags``). Fine:
``clock_fit`` for calibrated cameras; else the offsets nearest to each pair's lag of least cost.

The error of an offset is the spread of the offsets of disjoint groups of points. The covariance of a fit is
no measure: it is small for a person who stands still, as noise looks like movement.

Axes: V views, J points, G groups, L lags, C pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np

from models.geometry.clock_fit import MIN_SPAN_S, ClockFit, common_span, refine_clocks
from models.geometry.lags import (
    EPIPOLAR_GAP_PX,
    RAY_GAP_M,
    Consistent,
    LagCurves,
    consistent_offsets,
    difference_matrix,
    epipolar_cost,
    epipolar_curves,
    parabola_vertex,
    ray_curves,
)
from models.geometry.trajectories import STEP_S, Trajectories
from pipeline.array_types import Array


@dataclass(frozen=True)
class Evidence:
    """Thresholds of a trusted clock, from synthetic people: a sway of 5 mm or none gives errors of 0.5 to 109
    frames and fails, walking passes."""

    groups: int = 4
    """Groups of points, each with an offset of its own."""
    spread_s: float = 0.25 / 30
    """Largest standard error of the groups' mean offset: a quarter of a frame at 30 fps."""
    lines_spread_s: float = 0.5 / 30
    """``spread_s`` without a calibration: a group of points determines the geometry less well than all do."""
    lines_span_s: float = 6.0
    """Least time that cameras without a calibration share: in 3 s a person who walked in place beside another
    one was a third of a second off."""
    apart_s: float = 0.15
    """Least difference between two distinct answers."""
    contrast: float = 0.1
    """Least share by which the least cost is below the median one."""
    periodic_contrast: float = 0.3
    """``contrast`` from which on a second answer means repeating movement, not too little of it."""
    unique: float = 0.15
    """Share of that difference by which the second answer must be worse than the best."""
    common: float = 30.0
    """Least sum of confidences over the points and instants that two cameras share."""
    overlap: float = 0.5
    """Largest lag over the shortest recording: with less in common anything may fit."""
    drift_span_s: float = 10.0
    """Span from which on a drift is fitted."""
    drift_sigmas: float = 3.0
    """Standard deviations from zero of a significant drift."""
    floor_s: float = 0.005
    """Error of an offset by calibration and detector, however much moves: 3 to 8 ms between cameras in step
    in real recordings."""


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
    """(V,) 0 for a camera that is refused"""
    drift: Array
    """(V,) without unit; 0 where insignificant"""
    sigma_s: Array
    """(V,) standard deviation of the offset in the middle of the recording"""
    drift_sigma: Array
    """(V,) NaN where no drift was fitted"""
    refused: tuple[str | None, ...]
    """(V,) reason why a camera has no offset"""
    answers_s: tuple[tuple[float, ...], ...]
    """(V,) offsets that fit about equally well, where several do"""
    lag_s: Array
    """(L,)"""
    curve: Array
    """(V, L) residual of a camera, metres or pixels, when its clock alone is off by a lag; NaN if unknown"""
    unit: str
    """m or px"""


def find_clocks(cameras: Sequence[Trajectories], centres: Array | None, reach_s: float) -> Clocks:
    """Estimate the clocks of cameras that show the same points.

    cameras: trajectories of directions in the world, or, where ``centres`` (V, 3), metres, are not known, of
    pixels. reach_s: largest lag between two clocks.
    """
    joints = cameras[0].point.shape[1]
    groups = [np.arange(joints)[g :: EVIDENCE.groups] for g in range(EVIDENCE.groups)]
    shortest_s = min(float(c.time_s[-1] - c.time_s[0]) for c in cameras)
    reach_s = max(min(reach_s, EVIDENCE.overlap * shortest_s), 5 * STEP_S)
    if centres is None:
        curves = epipolar_curves(cameras, reach_s, groups)
    else:
        curves = ray_curves(cameras, centres, reach_s, groups)
    views = curves.component(EVIDENCE.common)
    refused: list[str | None] = [None if v in views else NO_VIEW for v in range(len(cameras))]
    second_s: list[float | None] = [None] * len(cameras)
    coarse = consistent_offsets(curves, curves.mean(), views)
    fit = _refine(cameras, centres, views, coarse.offset_s) if len(views) > 1 else None
    if fit is None:
        begin, end = common_span(cameras, coarse.offset_s, np.zeros(len(cameras)))
        min_span_s = MIN_SPAN_S if centres is not None else EVIDENCE.lines_span_s
        reason = NO_SPAN if end - begin < min_span_s else STILL
        return _relative_clocks(curves, coarse, None, [r or reason for r in refused], centres, second_s)
    for v in views:
        refused[v], second_s[v] = _refusal(curves, coarse, v)
    group_offset_s = []
    for g, points in enumerate(groups):
        # Where movement repeats, a group of points may be a whole period off, which is not its error.
        near = coarse if PERIODIC in refused else consistent_offsets(curves, curves.cost[:, g], views)
        part = [c.points(points) for c in cameras]
        own = _refine(part, centres, views, near.offset_s, fit.drift, with_drift=False)
        group_offset_s.append(near.offset_s if own is None else own.late_s)
    spread_s = _group_error_s(np.array(group_offset_s), views)
    moved_s = np.abs(fit.late_s - fit.late_s[views[0]] - coarse.offset_s)
    limit_s = EVIDENCE.lines_spread_s if centres is None else EVIDENCE.spread_s
    for v in views:
        precise = spread_s[v] <= limit_s and moved_s[v] <= EVIDENCE.apart_s
        if not precise and refused[v] in (None, PERIODIC):
            refused[v], second_s[v] = STILL, None
    trusted = [v for v in views if refused[v] is None]
    if len(trusted) < 2:  # nothing is left to compare with: one reason for all
        given = [refused[v] for v in views]
        reason = max((STILL, EDGE, PERIODIC), key=given.count)
        for v in views:
            refused[v], second_s[v] = reason, second_s[v] if reason == PERIODIC else None
    elif len(trusted) < len(views):
        fit = _refine(cameras, centres, trusted, fit.late_s, fit.drift) or fit
    fit = replace(fit, sigma_s=np.hypot(fit.sigma_s, spread_s))
    return _relative_clocks(curves, coarse, fit, refused, centres, second_s)


def extend_clocks(clocks: Clocks, cameras: Sequence[Trajectories], centres: Array) -> Clocks:
    """Refine clocks from one stretch of a recording by trajectories over several.

    Refused cameras keep their clocks, as do all cameras where the refinement fails.
    """
    views = [v for v, reason in enumerate(clocks.refused) if reason is None]
    if len(views) < 2:
        return clocks
    some = [cameras[v] for v in views]
    fit = refine_clocks(some, centres[views], clocks.offset_s[views], clocks.drift[views], with_drift=True)
    if fit is None or np.abs(fit.offset_s - clocks.offset_s[views]).max() > 4 * EVIDENCE.apart_s:
        return clocks
    offset_s, drift, drift_sigma = clocks.offset_s.copy(), clocks.drift.copy(), clocks.drift_sigma.copy()
    offset_s[views], drift[views] = fit.offset_s, fit.drift
    drift_sigma[views] = np.hypot(fit.drift_sigma, _drift_floor(fit.span_s))
    return replace(clocks, offset_s=offset_s, drift=drift, drift_sigma=drift_sigma)


def _drift_floor(span_s: float) -> float:
    """Error of a drift by ``floor_s``: people go to and fro, so that it falls faster than the span grows."""
    return 4 * EVIDENCE.floor_s / span_s * math.pow(20 / span_s, 0.75)


def drop_insignificant_drift(clocks: Clocks, middle_s: float) -> Clocks:
    """Set insignificant drifts to zero, with offsets that are right at ``middle_s``."""
    sigma = np.nan_to_num(clocks.drift_sigma, nan=np.inf)
    significant = np.abs(clocks.drift) > EVIDENCE.drift_sigmas * sigma
    late_s = middle_s - (middle_s - clocks.offset_s) / (1 + clocks.drift)
    return replace(
        clocks,
        drift=np.where(significant, clocks.drift, 0),
        offset_s=np.where(significant, clocks.offset_s, late_s),
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
    of_all = np.zeros((4, len(cameras)))
    of_all[:, views] = fit.offset_s, fit.drift, fit.sigma_s, fit.drift_sigma
    offset_s, drift, sigma_s, drift_sigma = of_all
    return ClockFit(offset_s, drift, sigma_s, drift_sigma, fit.middle_s, fit.span_s)


def _fit_epipolar(cameras: Sequence[Trajectories], start_s: Array) -> ClockFit | None:
    """Fit offsets of uncalibrated cameras to the lag of least epipolar cost of each pair."""
    zero = np.zeros(len(cameras))
    begin, end = common_span(cameras, start_s, zero)
    if end - begin < EVIDENCE.lines_span_s:
        return None
    tau = np.linspace(begin, end, _EPIPOLAR_INSTANTS)
    pairs, lags_s, bends = [], [], []
    for a, b in combinations(range(len(cameras)), 2):
        one, _, confidence = cameras[a].at(tau - start_s[a])
        cost = []
        for lag_s in _FINE_LAGS_S:
            two, _, other = cameras[b].at(tau - start_s[b] - lag_s)
            cost.append(epipolar_cost(one, two, np.sqrt(confidence * other)))
        k = int(np.argmin(np.nan_to_num(cost, nan=1.0)))
        if 0 < k < len(cost) - 1:
            before, least, after = cost[k - 1 : k + 2]
            if (bend := before - 2 * least + after) > 0:  # false where one is NaN
                pairs.append((a, b))
                step_s = _FINE_LAGS_S[1] - _FINE_LAGS_S[0]
                lags_s.append(_FINE_LAGS_S[k] + parabola_vertex(before, least, after) * step_s)
                bends.append(bend)
    if not pairs:
        return None
    design, lag = difference_matrix(len(cameras), pairs)[:, 1:], np.array(lags_s)
    robust = weight = np.array(bends)
    for _ in range(5):  # down-weights pairs that contradict the others around a cycle
        normal = (design * robust[:, None]).T @ design + 1e-9 * weight.max() * np.eye(len(cameras) - 1)
        more_s = np.linalg.solve(normal, (design * robust[:, None]).T @ lag)
        robust = weight / (1 + ((design @ more_s - lag) / _CYCLE_SCALE_S) ** 2) ** 2
    offset_s = start_s + np.concatenate([[0.0], more_s])
    return ClockFit(offset_s, zero, zero, np.full(len(cameras), np.nan), (begin + end) / 2, end - begin)


def _group_error_s(group_offset_s: Array, views: Sequence[int]) -> Array:
    """(V,) standard error of the mean of the groups' offsets (G, V), relative to the camera with the least
    errors; infinite where a group is an outlier."""
    best = np.full(group_offset_s.shape[1], np.inf)
    for root in views:
        relative_s = group_offset_s - group_offset_s[:, [root]]
        error_s = relative_s.std(0, ddof=1) / np.sqrt(len(group_offset_s))
        outlier = np.abs(relative_s - np.median(relative_s, 0)).max(0) > EVIDENCE.apart_s
        error_s = np.where(outlier, np.inf, error_s)
        if np.median(error_s[views]) < np.median(best[views]):
            best = error_s
    return best


def _refusal(curves: LagCurves, coarse: Consistent, v: int) -> tuple[str | None, float | None]:
    """Reason to refuse a camera's coarse offset, None if trusted; and the lag of a second answer."""
    curve = coarse.curve[v]
    median, least = float(np.nanmedian(curve)), float(curve[len(curve) // 2])
    if not least < (1 - EVIDENCE.contrast) * median:
        return STILL, None
    lags = [coarse.steps[b] - coarse.steps[a] for a, b in curves.pairs if v in (a, b)]
    if np.abs(lags).min() >= curves.lag[-1]:
        return EDGE, None
    other = np.where(np.abs(coarse.change) * STEP_S > EVIDENCE.apart_s, curve, np.inf)
    k = int(np.nanargmin(other))
    if other[k] - least >= EVIDENCE.unique * (median - least):
        return None, None
    if least > (1 - EVIDENCE.periodic_contrast) * median:
        return STILL, None
    return PERIODIC, float(coarse.change[k] * STEP_S)


def _relative_clocks(
    curves: LagCurves,
    coarse: Consistent,
    fit: ClockFit | None,
    refused: Sequence[str | None],
    centres: Array | None,
    second_s: Sequence[float | None],
) -> Clocks:
    """Clocks relative to the first trusted camera."""
    views = len(refused)
    if fit is None:
        zero, unknown = np.zeros(views), np.full(views, np.nan)
        fit = ClockFit(zero, zero, unknown, unknown, 0.0, np.nan)
    late_s, drift, sigma_s = fit.late_s, fit.drift, fit.sigma_s
    drift_sigma = np.hypot(fit.drift_sigma, _drift_floor(fit.span_s))
    trusted = np.array([reason is None for reason in refused])
    if trusted.any():
        root = int(trusted.argmax())
        sigma_s = np.where(np.arange(views) == root, 0, np.hypot(sigma_s, EVIDENCE.floor_s))
        drift = drift - drift[root]
        drift = np.where(np.abs(drift) > EVIDENCE.drift_sigmas * drift_sigma, drift, 0)
        late_s = late_s - late_s[root]
    answers_s = tuple(
        () if more_s is None else tuple(sorted((round(float(s), 3), round(float(s + more_s), 3))))
        for s, more_s in zip(late_s, second_s, strict=True)
    )
    # The clock is right in the middle: offset + (1 + drift) t = t + late there.
    offset_s = late_s - drift * (fit.middle_s - late_s)
    near = np.abs(coarse.change) <= min(int(curves.lag[-1]), round(_CURVE_LAG_S / STEP_S))
    scale = EPIPOLAR_GAP_PX if centres is None else RAY_GAP_M
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = scale * np.sqrt(coarse.curve[:, near] / (1 - coarse.curve[:, near]))
    return Clocks(
        offset_s=np.where(trusted, offset_s, 0),
        drift=np.where(trusted, drift, 0),
        sigma_s=sigma_s,
        drift_sigma=drift_sigma,
        refused=tuple(refused),
        answers_s=answers_s,
        lag_s=np.asarray(coarse.change[near] * STEP_S, np.float64),
        curve=residual,
        unit="px" if centres is None else "m",
    )
