"""Keypoints of one camera as smooth functions of its own time.

Axes: T frames, N instants, J points (K keypoints of each of several people), C coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from models.geometry.triangulation import solve_symmetric
from pipeline.array_types import Array, Ints

STEP_S: Final = 0.04
"""Interval of a trajectory's instants, whole multiples of it, so that a lag of whole steps needs no
interpolation. A cubic between two of them loses nothing that ``SIGMA_S`` leaves."""
SIGMA_S: Final = 0.1
"""Standard deviation of the Gaussian kernel. 0.06 to 0.15 give the same offsets; with 0.035 noise and the
derivative's noise together bias them by 5 to 20 ms."""
_REACH_SIGMAS: Final = 2.2
"""Radius of the kernel, standard deviations."""
_MAX_RATE_HZ: Final = 65.0
"""Frame rate above which frames are skipped."""
_ITERATIONS: Final = 3
_ROBUST_SIGMAS: Final = 3.0
"""Robust scale of the smoothing, in standard deviations of the keypoints."""
_MIN_COVERED_SHARE: Final = 0.4
"""Least share of the kernel's weight with detections of a point that has a position."""


@dataclass(frozen=True)
class Trajectories:
    """Positions and velocities of J points."""

    time_s: Array
    """(N,) instants on the camera's own clock, rising, ``STEP_S`` apart or, between stretches, more"""
    point: Array
    """(N, J, C)"""
    velocity: Array
    """(N, J, C) a second"""
    confidence: Array
    """(N, J) 0 where the point has no position"""

    def at(self, time_s: Array) -> tuple[Array, Array, Array]:
        """Positions (Q, J, C), velocities and confidences (Q, J) at times (Q,), by cubic Hermite
        interpolation; confidence 0 outside the stretches."""
        i = np.clip(np.searchsorted(self.time_s, time_s) - 1, 0, len(self.time_s) - 2)
        a = (time_s - self.time_s[i]) / STEP_S
        between_stretches = self.time_s[i + 1] - self.time_s[i] > 1.5 * STEP_S
        outside = (a < -0.01) | (a > 1.01) | between_stretches
        a = np.where(outside, 0, a)[:, None, None]
        p, q = self.point[i], self.point[i + 1]
        u, v = STEP_S * self.velocity[i], STEP_S * self.velocity[i + 1]
        # p + a (u + a (c + a d))
        c, d = 3 * (q - p) - 2 * u - v, u + v - 2 * (q - p)
        point = p + a * (u + a * (c + a * d))
        velocity = (u + a * (2 * c + 3 * a * d)) / STEP_S
        confidence = np.minimum(self.confidence[i], self.confidence[i + 1])
        confidence[outside] = 0
        return point, velocity, confidence

    def map(self, matrix: Array) -> Trajectories:
        """Trajectories of ``matrix (3, 3) @ (x, y, 1)`` of plane points."""
        point = self.point @ matrix[:, :2].T + matrix[:, 2]
        return replace(self, point=point, velocity=self.velocity @ matrix[:, :2].T)

    def points(self, index: Ints) -> Trajectories:
        """Some of the points."""
        arrays = self.point, self.velocity, self.confidence
        return Trajectories(self.time_s, *(x[:, index] for x in arrays))


def join_stretches(parts: Sequence[Trajectories]) -> Trajectories:
    """Join stretches of the same points, of which some may lack the last ones; where stretches overlap, the
    first one counts."""
    points = max(p.point.shape[1] for p in parts)
    time_s = np.concatenate([p.time_s for p in parts])
    _, first = np.unique(np.round(time_s / STEP_S).astype(np.int64), return_index=True)

    def join(arrays: Iterable[Array]) -> Array:
        more = [(0, 0), (0, points), (0, 0)]
        return np.concatenate([np.pad(x, more[: x.ndim])[:, :points] for x in arrays])[first]

    return Trajectories(
        time_s[first],
        join(p.point for p in parts),
        join(p.velocity for p in parts),
        join(p.confidence for p in parts),
    )


def smooth(time_s: Array, xy_px: Array, confidence: Array) -> Trajectories:
    """Smooth keypoints by robust local quadratic regression (Cleveland and Loader 1996), Gaussian kernel.

    time_s: (T,) rising, own clock. xy_px: (T, J, 2), NaN where missing. confidence: (T, J), 0 where missing.
    """
    if len(time_s) > 1:
        stride = max(1, int((len(time_s) - 1) / max(time_s[-1] - time_s[0], 1e-9) / _MAX_RATE_HZ + 0.25))
        time_s, xy_px, confidence = time_s[::stride], xy_px[::stride], confidence[::stride]
    confidence = np.where(np.isfinite(xy_px).all(-1), confidence, 0.0)
    xy = np.where(confidence[..., None] > 0, xy_px, 0.0)
    low, high = np.ceil(time_s[0] / STEP_S - 1e-6), np.floor(time_s[-1] / STEP_S + 1e-6)
    instants = STEP_S * np.arange(low, max(high, low + 1) + 1)
    begin = np.searchsorted(time_s, instants - _REACH_SIGMAS * SIGMA_S)
    end = np.searchsorted(time_s, instants + _REACH_SIGMAS * SIGMA_S)
    tap = begin[:, None] + np.arange(max(int((end - begin).max()), 1))
    inside = tap < end[:, None]
    tap = np.minimum(tap, len(time_s) - 1)
    u = (time_s[tap] - instants[:, None]) / SIGMA_S
    # Single precision where the arrays are large: 1e-4 px.
    kernel = np.where(inside, np.exp(-0.5 * u**2), 0).astype(np.float32)
    powers = np.stack([np.ones_like(u), u, u**2, u**3, u**4], -1).astype(np.float32)  # (N, taps, 5)
    seen = confidence.astype(np.float32)[tap].transpose(0, 2, 1)  # (N, J, taps)
    x, y = (xy[..., c].astype(np.float32)[tap].transpose(0, 2, 1) for c in range(2))

    base = kernel[:, None] * seen
    weight = base
    for i in range(_ITERATIONS):
        moment = (weight @ powers).astype(np.float64)  # (N, J, 5)
        coefficients = []
        system = np.stack([moment[..., 0:3], moment[..., 1:4], moment[..., 2:5]], -2)
        system = system + 1e-6 * np.eye(3)
        for values in (x, y):
            right = ((weight * values) @ powers[..., :3]).astype(np.float64)
            full = np.concatenate([system, right[..., None]], -1).reshape(-1, 3, 4)
            coefficients.append(solve_symmetric(full).reshape(right.shape))
        if i + 1 < _ITERATIONS:
            curve = powers[:, :, :3].transpose(0, 2, 1)
            miss = [v - c.astype(np.float32) @ curve for v, c in zip((x, y), coefficients, strict=True)]
            miss2 = miss[0] ** 2 + miss[1] ** 2
            some = miss2[:, ::5][weight[:, ::5] > 0]  # a fifth of the points gives the scale
            scale = _ROBUST_SIGMAS * (1.48 * float(np.sqrt(np.median(some))) + 0.5) if some.size else 1.0
            weight = base / (1 + miss2 / np.float32(scale**2)) ** 2
    whole = kernel.sum(-1)[:, None].clip(1e-9)
    known = (kernel[:, None] * (seen > 0)).sum(-1) / whole > _MIN_COVERED_SHARE
    known &= ((seen > 0) & (inside & (u <= 0))[:, None]).any(-1)
    known &= ((seen > 0) & (inside & (u >= 0))[:, None]).any(-1)
    point, slope = (np.stack([c[..., i] for c in coefficients], -1) for i in (0, 1))
    return Trajectories(instants, point, slope / SIGMA_S, np.where(known, weight.sum(-1) / whole, 0))
