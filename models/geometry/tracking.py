"""Tracking of people in one camera's pictures, without geometry or the names of the keypoints.

A person in a picture is a centre, a size and a weight. Axes: T frames, P people, K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from models.geometry.association import finite_median
from pipeline.array_types import Array, Ints

EXTENT_M: Final = 0.4
"""Median distance of a standing person's keypoints from their median."""

_MAX_SIZE_RATIO: Final = 1.6
"""Bound of the ratio of a person's sizes from one detection to the next."""
_MAX_UNSEEN_S: Final = 0.5
"""Time without a detection after which a track ends."""


@dataclass(frozen=True)
class Figures:
    """Places and sizes of detections in a camera's pictures."""

    centre: Array
    """(T, P, 2) median of the keypoints, pixels; NaN where missing"""
    size: Array
    """(T, P) median distance of the keypoints from it, pixels; NaN where missing"""
    weight: Array
    """(T, P) sum of the confidences × size; 0 where missing"""


def figures(xy_px: Array, confidence: Array, min_points: int) -> Figures:
    """Figures of detections (T, P, K, 2), (T, P, K) with at least ``min_points``."""
    known = (confidence > 0) & np.isfinite(xy_px).all(-1)
    masked = np.where(known[..., None], xy_px, np.nan)
    centre = finite_median(masked, -2)
    size = finite_median(np.linalg.norm(masked - centre[..., None, :], axis=-1))
    visible = (known.sum(-1) >= min_points) & (size > 0)
    return Figures(
        np.where(visible[..., None], centre, np.nan),
        np.where(visible, size, np.nan),
        np.where(visible, np.where(known, confidence, 0).sum(-1) * size, 0),
    )


def distances(centre: Array, size: Array, to_centre: Array, to_size: Array) -> Array:
    """Distance of figures from others, metres for adults; infinite between unlike sizes."""
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = EXTENT_M / np.sqrt(size * to_size)
        apart = np.linalg.norm(centre - to_centre, axis=-1) * scale
        alike = np.abs(np.log(size / to_size)) < np.log(_MAX_SIZE_RATIO)
    return np.where(alike & np.isfinite(apart), apart, np.inf)


def track_figures(
    seen: Figures, time_s: Array, reach_m: float, speed_m_s: float, min_weight_ratio: float = 0.0
) -> list[Ints]:
    """Track people through the pictures: index of each person's figure in every frame (T,), −1 where missing.

    Greedy: the nearest pair of a track's last figure and a new one first, within half of ``reach_m`` and the
    time × ``speed_m_s``. Heaviest first; without those of less than ``min_weight_ratio`` of its weight.
    """
    tracks: list[Ints] = []
    weights: list[float] = []
    last: list[int] = []
    for t in range(len(time_s)):
        free = set(np.flatnonzero(seen.weight[t] > 0).tolist())
        pairs = []
        for k, (track, at) in enumerate(zip(tracks, last, strict=True)):
            if time_s[t] - time_s[at] <= _MAX_UNSEEN_S:
                old = seen.centre[at, track[at]], seen.size[at, track[at]]
                apart_m = distances(seen.centre[t], seen.size[t], *old)
                limit_m = reach_m * 0.5 + speed_m_s * (time_s[t] - time_s[at])
                pairs += [(float(apart_m[p]), k, p) for p in free if apart_m[p] <= limit_m]
        for _, k, p in sorted(pairs):
            if last[k] < t and p in free:
                tracks[k][t], last[k] = p, t
                weights[k] += seen.weight[t, p]
                free.discard(p)
        for p in sorted(free):
            tracks.append(np.full(len(time_s), -1, dtype=np.int64))
            tracks[-1][t] = p
            weights.append(float(seen.weight[t, p]))
            last.append(t)
    order = np.argsort(-np.array(weights), kind="stable").tolist()
    return [tracks[k] for k in order if weights[k] >= min_weight_ratio * weights[order[0]]]
