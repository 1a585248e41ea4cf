"""Tracking of people from frame to frame in one camera's picture, without geometry.

A person in a picture is a centre, a size and a weight. Nothing depends on the names of the points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.array_types import Array

EXTENT_M: Final = 0.4
"""Median distance of a standing person's points from their median: metres of a size in the picture."""

_MAX_SIZE_RATIO: Final = 1.6
"""Bound of the ratio of a person's sizes from one sight to the next."""
_MAX_UNSEEN_S: Final = 0.5
"""Time without a detection after which a track ends."""


@dataclass(frozen=True)
class Figures:
    """Detections in a camera's pictures. Axes: T frames, P people; NaN or 0 where missing."""

    centre: Array
    """(T, P, 2) median of the points, pixels."""
    size: Array
    """(T, P) median distance of the points from it, pixels."""
    weight: Array
    """(T, P) sum of the confidences × size; 0 where missing."""


def figures(xy_px: Array, confidence: Array, min_points: int) -> Figures:
    """Figures of detections (T, P, K, 2), (T, P, K) with at least ``min_points``."""
    seen = (confidence > 0) & np.isfinite(xy_px).all(-1)
    visible = seen.sum(-1) >= min_points
    masked = np.where(seen[..., None], xy_px, np.nan)
    masked[~visible] = 0  # nanmedian warns of rows of nothing
    centre = np.nanmedian(masked, axis=-2)
    size = np.nanmedian(np.linalg.norm(masked - centre[..., None, :], axis=-1), axis=-1)
    visible &= size > 0
    weight = np.where(seen, confidence, 0).sum(-1) * size
    return Figures(
        np.where(visible[..., None], centre, np.nan),
        np.where(visible, size, np.nan),
        np.where(visible, weight, 0),
    )


def distances(centre: Array, size: Array, to_centre: Array, to_size: Array) -> Array:
    """Distance of figures from others, metres for adults; infinite between unlike sizes."""
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = EXTENT_M / np.sqrt(size * to_size)
        apart = np.linalg.norm(centre - to_centre, axis=-1) * scale
        alike = np.abs(np.log(size / to_size)) < np.log(_MAX_SIZE_RATIO)
    return np.where(alike & np.isfinite(apart), apart, np.inf)


def tracks(shown: Figures, time_s: Array, reach_m: float, speed_m_s: float) -> list[NDArray[np.int64]]:
    """Track people through the pictures: index of each person's figure in every frame (T,), −1 where missing.

    Greedy: the nearest pair of a track's last figure and a new one first, within half of ``reach_m`` and the
    time × ``speed_m_s``. Tracks of largest weight first.
    """
    frames = len(time_s)
    found: list[NDArray[np.int64]] = []
    weights: list[float] = []
    last: list[int] = []
    for t in range(frames):
        free = set(np.flatnonzero(shown.weight[t] > 0).tolist())
        live = [k for k, at in enumerate(last) if time_s[t] - time_s[at] <= _MAX_UNSEEN_S]
        pairs = []
        for k in live:
            at, who = last[k], found[k][last[k]]
            apart = distances(shown.centre[t], shown.size[t], shown.centre[at, who], shown.size[at, who])
            reach = reach_m * 0.5 + speed_m_s * (time_s[t] - time_s[at])
            pairs += [(float(apart[p]), k, p) for p in free if apart[p] <= reach]
        joined = set()
        for _, k, p in sorted(pairs):
            if k not in joined and p in free:
                found[k][t], last[k] = p, t
                weights[k] += shown.weight[t, p]
                joined.add(k)
                free.discard(p)
        for p in sorted(free):
            found.append(np.full(frames, -1, dtype=np.int64))
            found[-1][t] = p
            weights.append(float(shown.weight[t, p]))
            last.append(t)
    order = np.argsort(-np.array(weights), kind="stable")
    return [found[k] for k in order]
