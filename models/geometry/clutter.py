"""Stationary clutter: detections that stand still in a view and are nobody's, as of a picture or a mirror.

A person who is hidden in a view may be just where its clutter is: a track must not take one for the other.
Clutter is therefore no track's, but that of a person who is born of it: they may have stood still before one
camera alone.

R rows of ``Tracks.clutter``, M detections of all views in a frame, K keypoints.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from models.geometry.tracks import LIMITS, MAX_CLUTTER
from pipeline.array_types import Array, Ints

STATIONARY_S: Final = 0.5
"""Time for which a detection must be nobody's and stand still; who walks goes half a metre."""
MAX_SHIFT_M: Final = 0.05
"""Distance of half of its keypoints from their first places, at an adult's size: several times the noise."""
MAX_GAP_S: Final = (0.15, 1.0)
"""Longest time without a detection, before and after ``STATIONARY_S``."""
_VIEW, _SINCE_S, _SEEN_S, _HOLDER, _XY = range(5)


def match_clutter(clutter: Array, view: Ints, xy_px: Array, pixel_m: Array) -> Ints:
    """(M,) row of the clutter (R, 4 + 2 K) that each detection continues, −1 for none.

    view (M,), xy_px (M, K, 2), NaN where missing, pixel_m (M,) metres a pixel.
    """
    if not len(clutter) or not len(view):
        return np.full(len(view), -1)
    first_px = clutter[:, None, _XY:].reshape(len(clutter), 1, -1, 2)
    shift_m = np.linalg.norm(xy_px - first_px, axis=-1) * pixel_m[:, None]
    still = (shift_m <= MAX_SHIFT_M).sum(-1)
    shared = np.isfinite(shift_m).sum(-1)
    same = (clutter[:, _VIEW, None] == view) & (shared >= LIMITS.shared) & (2 * still > shared)
    return np.where(same.any(0), (still * same).argmax(0), -1)


def clutter_holder(clutter: Array, row: Ints) -> Array:
    """(M,) serial of the one track that may have each detection, −1 for none; NaN where any may.

    row: (M,) as of ``match_clutter``.
    """
    stationary = clutter[:, _SEEN_S] - clutter[:, _SINCE_S] >= STATIONARY_S
    return np.append(np.where(stationary, clutter[:, _HOLDER], np.nan), np.nan)[row]


def update_clutter(clutter: Array, row: Ints, view: Ints, xy_px: Array, serial: Ints, now: float) -> Array:
    """Clutter after a frame, whose detections have tracks ``serial`` (M,), −1 for none.

    row, view, xy_px: as of ``match_clutter``. now: seconds.
    """
    flat_px, matched = xy_px.reshape(len(view), clutter.shape[1] - _XY), np.flatnonzero(row >= 0)
    r, owned = row[matched], serial[matched] >= 0
    out = clutter.copy()
    out[r, _SEEN_S] = now
    out[r[owned], _HOLDER] = serial[matched][owned]
    out[r, _XY:] = np.where(np.isfinite(out[r, _XY:]), out[r, _XY:], flat_px[matched])
    young = out[:, _SEEN_S] - out[:, _SINCE_S] < STATIONARY_S
    kept = (now - out[:, _SEEN_S] <= np.where(young, *MAX_GAP_S)) & ~(young & (out[:, _HOLDER] >= 0))
    new = np.flatnonzero((row < 0) & (serial < 0) & (np.isfinite(xy_px[..., 0]).sum(1) >= LIMITS.shared))
    times = np.full((len(new), 2), now)
    born = np.column_stack([view[new], times, np.full(len(new), -1), flat_px[new]])
    return np.concatenate([out[kept], born])[-MAX_CLUTTER:]
