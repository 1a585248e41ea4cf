"""Offsets and drifts of calibrated cameras' clocks, at which the rays of a point meet.

Minimises the distance of every two cameras' rays of a point, less its mean over time, which comes from
calibration and detector (Gauss–Newton, Geman–McClure).

A camera's clock reads t when it is offset + (1 + drift) t on the first camera's clock.

Axes: V views, Q instants, J points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from models.geometry.trajectories import STEP_S, Trajectories
from pipeline.array_types import Array
from pipeline.timeline import spread

MIN_SPAN_S: Final = 1.0
"""Least time that the cameras must share."""
MAX_DRIFT: Final = 5e-3
"""Largest drift: above that of any clock, and of a video whose frame rate is stated as another's."""
_SIGMA_FACTOR: Final = 2.0
"""Factor on the fit's standard deviations: 90 % of the errors are below 2.5 of the enlarged ones."""
_ROBUST_SCALE_M: Final = (0.1, 0.009)
"""Geman–McClure scale: initial and least."""
_MAX_STEP_S, _MAX_ITERATIONS, _TOLERANCE_S = 0.2, 60, 2e-6
_BLOCK_S: Final = 0.3
"""Length of independent blocks of time, over which a detector's errors are correlated."""
_MAX_SAMPLES, _PERSON_POINTS, _MIN_INSTANTS = 600 * 25, 25, 200
"""Most products of instants and points that are compared, points of one person, fewest instants."""


@dataclass(frozen=True)
class ClockFit:
    """Offsets and drifts of V clocks."""

    offset_s: Array
    """(V,)"""
    drift: Array
    """(V,) without unit"""
    sigma_s: Array
    """(V,) standard deviation of the offset at ``middle_s``"""
    drift_sigma: Array
    """(V,) NaN where no drift was fitted"""
    middle_s: float
    span_s: float
    """Middle and length of the time that all cameras show"""

    @property
    def late_s(self) -> Array:
        """(V,) offset of each clock at ``middle_s``: by how much less it reads than the first one."""
        return np.asarray(self.middle_s - (self.middle_s - self.offset_s) / (1 + self.drift))


def _cross(a: Array, b: Array) -> Array:
    """Cross product of (3, ...) arrays: numpy's takes four times as long."""
    return np.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _gaps(base: Array, one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    """Signed distance (Q, J) of two rays, metres, and its derivatives by the offsets of their cameras.

    one, two: directions (3, Q, J) of any length, and their change by the camera's offset.
    """
    normal = _cross(one[0], two[0])
    length = np.sqrt((normal**2).sum(0))
    size = np.sqrt((one[0] ** 2).sum(0) * (two[0] ** 2).sum(0))
    safe = np.where(length > 0.05 * size, length, np.nan)
    gap = np.tensordot(base, normal, 1) / safe

    def derivative(turned: Array) -> Array:
        along = (normal * turned).sum(0) / safe
        return np.asarray((np.tensordot(base, turned, 1) - gap * along) / safe)

    return gap, derivative(_cross(one[1], two[0])), derivative(_cross(one[0], two[1]))


def common_span(cameras: Sequence[Trajectories], offset_s: Array, drift: Array) -> tuple[float, float]:
    """Start and end of the time that all cameras show, on the recording's clock."""
    begin = max(o + (1 + d) * c.time_s[0] for c, o, d in zip(cameras, offset_s, drift, strict=True))
    end = min(o + (1 + d) * c.time_s[-1] for c, o, d in zip(cameras, offset_s, drift, strict=True))
    return float(begin), float(end)


def _instants(cameras: Sequence[Trajectories], offset_s: Array, drift: Array) -> Array:
    """(Q,) instants at which at least two cameras show a person, spread over the common span."""
    begin, end = common_span(cameras, offset_s, drift)
    tau = np.arange(begin, end, STEP_S)
    views = np.zeros(len(tau), np.int64)
    for c, o, d in zip(cameras, offset_s, drift, strict=True):
        own_s = (tau - o) / (1 + d)
        at = np.clip(np.searchsorted(c.time_s, own_s), 0, len(c.time_s) - 1)
        views += (np.abs(c.time_s[at] - own_s) <= STEP_S) & (c.confidence.max(1) > 0)[at]
    at = np.flatnonzero(views >= 2)
    count = max(_MAX_SAMPLES // max(cameras[0].point.shape[1], _PERSON_POINTS), _MIN_INSTANTS)
    return np.asarray(tau[spread(at, count)] if len(at) else tau[:0])


def refine_clocks(
    cameras: Sequence[Trajectories], centres: Array, offset_s: Array, drift: Array, *, with_drift: bool
) -> ClockFit | None:
    """Fit offsets, and drifts, of cameras after the first, near given ones; None with too little data.

    cameras: trajectories of directions in the world. centres: (V, 3) metres.
    """
    views = len(cameras)
    offset, drifts = offset_s.copy(), drift.copy()
    tau = _instants(cameras, offset, drifts)
    begin, end = common_span(cameras, offset, drifts)
    if end - begin < MIN_SPAN_S or len(tau) < 2 * views:
        return None
    middle, half = (begin + end) / 2, (end - begin) / 2
    late = ((tau - middle) / half)[:, None]
    free = np.arange(1, 2 * views if with_drift else views)
    free = free[free != views]  # columns: offsets of all cameras, then drifts × half; the first has none
    scale = _ROBUST_SCALE_M[0]
    blocks = np.minimum(((tau - begin) / _BLOCK_S).astype(np.int64), int((end - begin) / _BLOCK_S))
    system = score = np.zeros((0, 0))
    for _ in range(_MAX_ITERATIONS):
        system, right = np.zeros((2 * views, 2 * views)), np.zeros(2 * views)
        score = np.zeros((blocks[-1] + 1, 2 * views))
        square = total = 0.0
        rays, confidences = [], []
        for c, o, d in zip(cameras, offset, drifts, strict=True):
            point, velocity, confidence = c.at((tau - o) / (1 + d))
            rays.append((point.transpose(2, 0, 1), -velocity.transpose(2, 0, 1) / (1 + d)))
            confidences.append(confidence)
        for a, b in combinations(range(views), 2):
            gap, by_a, by_b = _gaps(centres[b] - centres[a], rays[a], rays[b])
            known = np.isfinite(gap)
            weight = np.where(known, np.sqrt(confidences[a] * confidences[b]), 0)
            gap, by_a, by_b = (np.where(known, x, 0) for x in (gap, by_a, by_b))
            mean = np.zeros(gap.shape[1])
            for _ in range(3):
                robust = weight / (1 + ((gap - mean) / scale) ** 2) ** 2
                mean = (robust * gap).sum(0) / np.maximum(robust.sum(0), 1e-9)
            rest = gap - mean
            robust = weight / (1 + (rest / scale) ** 2) ** 2
            columns = np.stack([by_a, by_b, by_a * late, by_b * late])
            columns -= ((robust * columns).sum(1) / np.maximum(robust.sum(0), 1e-9))[:, None]
            at = np.array([a, b, views + a, views + b])
            weighted = robust * columns
            system[np.ix_(at, at)] += np.einsum("cqj,dqj->cd", weighted, columns, optimize=True)
            gradient = (weighted * rest).sum(2)
            right[at] += gradient.sum(1)
            np.add.at(score, (blocks[:, None], at), gradient.T)
            square += float((robust * rest**2).sum())
            total += float(robust.sum())
        normal = system[np.ix_(free, free)]
        ridge = 1e-9 * np.trace(normal) / len(free) + 1e-12
        step = np.zeros(2 * views)
        step[free] = -np.linalg.solve(normal + ridge * np.eye(len(free)), right[free])
        step = np.clip(step, -_MAX_STEP_S, _MAX_STEP_S)
        change = step[views:] / half
        offset += step[:views] - change * middle
        drifts += change
        if not (np.isfinite(offset).all() and np.abs(drifts).max() < 2 * MAX_DRIFT) or total < 1:
            return None
        scale = float(np.clip(2.5 * np.sqrt(square / total) + 0.004, _ROBUST_SCALE_M[1], scale))
        if np.abs(step).max() < _TOLERANCE_S:
            break
    inverse = np.linalg.pinv(system[np.ix_(free, free)])
    covariance = inverse @ (score[:, free].T @ score[:, free]) @ inverse
    sigma = np.zeros(2 * views)
    sigma[free] = _SIGMA_FACTOR * np.sqrt(np.diag(covariance))
    drift_sigma = sigma[views:] / half if with_drift else np.full(views, np.nan)
    return ClockFit(offset, drifts, sigma[:views], drift_sigma, middle, end - begin)
