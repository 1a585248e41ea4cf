"""Stationary clutter: detections without a track that stand still in a view, as of a picture or a mirror.

A track whose person is hidden in a view must not take clutter at the same place instead. Clutter may
therefore only join a track that is born of it: a person may have stood still before one camera alone.

R rows of ``Tracks.clutter``, M detections of all views in a frame, K keypoints.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from models.geometry.matching import FrameDetections, adult_pixel_m
from models.geometry.tracks import LIMITS, MAX_CLUTTER
from pipeline.array_types import Array, Ints

STATIONARY_S: Final = 0.5
"""Time for which a detection must stand still without a track; a walking person goes half a metre."""
MAX_SHIFT_M: Final = 0.05
"""Distance of half of its keypoints from their first places, at an adult's size: several times the noise."""
MAX_GAP_S: Final = (0.15, 1.0)
"""Longest time without a detection, before and after ``STATIONARY_S``."""
_VIEW, _SINCE_S, _SEEN_S, _HOLDER, _MAX_SHIFT_PX, _XY = range(6)


def match_clutter(clutter: Array, detections: FrameDetections) -> Ints:
    """(M,) row of the clutter (R, 5 + 2 K) that each detection continues, −1 for none."""
    if not len(clutter) or not len(detections.view):
        return np.full(len(detections.view), -1)
    first_px = clutter[:, None, _XY:].reshape(len(clutter), 1, -1, 2)
    shift2_px = ((detections.visible_px - first_px) ** 2).sum(-1)
    still = (shift2_px <= clutter[:, None, _MAX_SHIFT_PX, None] ** 2).sum(-1)
    shared = np.isfinite(shift2_px).sum(-1)
    same = clutter[:, _VIEW, None] == detections.view
    same &= (shared >= LIMITS.shared) & (2 * still > shared)
    return np.where(same.any(0), (still * same).argmax(0), -1)


def clutter_holder(clutter: Array, row: Ints) -> Array:
    """(M,) serial of the one track that may have each detection, −1 for none; NaN for any track.

    row: (M,) as of ``match_clutter``.
    """
    stationary = clutter[:, _SEEN_S] - clutter[:, _SINCE_S] >= STATIONARY_S
    return np.append(np.where(stationary, clutter[:, _HOLDER], np.nan), np.nan)[row]


def update_clutter(clutter: Array, row: Ints, detections: FrameDetections, serial: Ints, now: float) -> Array:
    """Clutter after a frame at ``now``, seconds, whose detections have tracks ``serial`` (M,), −1 for none.

    row: (M,) as of ``match_clutter``.
    """
    xy_px, matched = detections.visible_px, np.flatnonzero(row >= 0)
    flat_px = xy_px.reshape(len(row), clutter.shape[1] - _XY)
    r, owned = row[matched], serial[matched] >= 0
    out = clutter.copy()
    out[r, _SEEN_S] = now
    out[r[owned], _HOLDER] = serial[matched][owned]
    out[r, _XY:] = np.where(np.isfinite(out[r, _XY:]), out[r, _XY:], flat_px[matched])
    young = out[:, _SEEN_S] - out[:, _SINCE_S] < STATIONARY_S
    kept = (now - out[:, _SEEN_S] <= np.where(young, *MAX_GAP_S)) & ~(young & (out[:, _HOLDER] >= 0))
    new = np.flatnonzero((row < 0) & (serial < 0) & (np.isfinite(xy_px[..., 0]).sum(1) >= LIMITS.shared))
    if not len(new):
        return out[kept]
    now_s, holder = np.full(len(new), now), np.full(len(new), -1)
    max_shift_px = MAX_SHIFT_M / adult_pixel_m(xy_px[new])
    born = np.column_stack([detections.view[new], now_s, now_s, holder, max_shift_px, flat_px[new]])
    return np.concatenate([out[kept], born])[-MAX_CLUTTER:]
