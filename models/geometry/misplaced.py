"""Cameras that stand or look elsewhere than their calibration says: where the others see the person is not
where they do, by more than a detector's errors explain.

Every camera is left out in turn: the person is triangulated without it and projected into it. The errors of
single keypoints cancel out over a body; what is left is the camera's offset.

Axes: V views, T frames, P people, K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.geometry.agreement import closest_person, find_bodies, find_others
from models.geometry.association import pick_people
from models.geometry.triangulation import leave_one_out
from pipeline.array_types import Array, Floats
from pipeline.cameras import Rig

MIN_CAMERAS: Final = 3
"""Two cameras agree on a person wherever they stand, but for the distance between their rays."""
MIN_POINTS: Final = 6
"""Keypoints of a body that make an offset, and frames that make a verdict."""
MIN_OFFSET_M: Final = 0.015
"""Smaller offsets have other reasons: a detector's joints differ between front and back."""
MIN_NOISE_FACTOR: Final = 2.4
"""Least ratio of a wrong camera's offset to what independent errors of the keypoints leave of it. Right
synthetic recordings reach 1.2; three or four cameras of a real one 1.5 with OpenPose's keypoints, and 2.0
with the shipped detector's, whose errors depend on view. Shares found: tests/benchmarks/misplaced.json"""
MAX_UNEXPLAINED: Final = 0.35
"""Largest share of the offset left by its best linear function of the person's place in the picture, as a
wrong calibration makes it: it reached 0.32 there. Offsets of late cameras follow the velocity, a detector's
own the pose and what hides the person: both leave at least 0.4."""
MAX_SCATTER_M: Final = 0.06
"""Distance of a body's keypoints from such a function beyond which the camera shows somebody else: twice what
a poor detector is off by, less than two poses differ by."""
MAX_REST_M: Final = 0.006
"""Offset, and uncertainty of an offset by how its keypoints scatter, up to which the others agree: with one
camera that is wrong they reached 4 mm, in a real recording, too, with all wrong they are seldom below 10."""
MIN_LEAD: Final = 2.0
"""The camera is named whose offset is so many times the next one's, or without which the rest agrees so many
times better than without any other."""


@dataclass(frozen=True)
class Misplaced:
    """Disagreement of the cameras with one another."""

    offset_m: Array
    """(V,) metres at the person, between what the camera saw and what the others say; NaN where these say
    nothing."""
    offset_px: Array
    """(V,)"""
    rest_m: Array
    """(V,) the largest offset among the others, or its uncertainty, once this camera is left out; NaN where
    one of them then agrees with nobody."""
    camera: int | None
    """The camera that is wrong, where one can be told."""


def find_misplaced(rig: Rig, image: Floats) -> Misplaced | None:
    """The cameras' disagreement, where there is more than keypoints explain; None where all is well.

    image: (V, T, P, K, 3) pixels of the video frames and confidence; some 40 frames are enough.
    """
    views = len(rig)
    if views < MIN_CAMERAS:
        return None
    xy, confidence = rig.undistort_views(image[..., :2]), image[..., 2].astype(np.float64)
    bodies = find_bodies(rig, image).person
    person = bodies[:, 0].T
    # A camera from which the person is hidden may show others.
    free = np.where(find_others(bodies, person, image.shape[2])[..., None], 0, confidence)
    saw, sure = pick_people(xy, person, np.nan), pick_people(confidence, person, 0)
    shows = (confidence > 0).any((2, 3)).sum(1) >= MIN_POINTS
    offset = np.full((views, 3), np.nan)
    rest, wrong = np.full(views, np.nan), np.zeros(views, bool)
    expected = [(rig.project(points), rig.metres_per_px(points)) for points in leave_one_out(rig, saw, sure)]
    for v, (at_px, metres) in enumerate(expected):
        own = closest_person(xy[v], free[v], at_px[v])
        offset[v], wrong[v] = _offset(own - at_px[v], at_px[v], metres[v])
    if not wrong.any():
        return None
    for v, (at_px, metres) in enumerate(expected):
        others = [u for u in range(views) if u != v and shows[u]]
        offsets = [_offset(saw[u] - at_px[u], at_px[u], metres[u])[0][1:] for u in others]
        rest[v] = np.max(offsets, initial=0)
    return Misplaced(offset[:, 1], offset[:, 0], rest, _culprit(offset[:, 1], rest))


def _offset(miss_px: Array, at_px: Array, metres_per_px: Array) -> tuple[Array, bool]:
    """Median offset of a body (pixels, metres) and its uncertainty (metres), NaN where too little is seen;
    and whether it is the camera's.

    miss_px: (T, K, 2) from where a point should be to where it was seen; at_px: (T, K, 2) where it should be;
    metres_per_px: (T, K) at the point.
    """
    known: NDArray[np.bool_] = np.asarray(np.isfinite(miss_px).all(-1))
    enough = known.sum(1) >= MIN_POINTS
    if enough.sum() < MIN_POINTS:
        return np.full(3, np.nan), False
    known = known[enough]
    miss = np.where(known[..., None], miss_px[enough], np.nan)
    body = np.nanmedian(miss, 1)
    # Of the median of n numbers, from the median of their distances to it; Gaussian errors.
    noise = (
        1.4826 * 1.2533 * np.nanmedian(np.abs(miss - body[:, None]), 1) / np.sqrt(known.sum(1, keepdims=True))
    )
    scale = np.nanmedian(np.where(known, metres_per_px[enough], np.nan), 1)
    where = np.nanmedian(np.where(known[..., None], at_px[enough], np.nan), 1)
    sizes = _size(body), _size(body * scale[:, None]), _size(noise * scale[:, None])
    px, metres, _ = sizes
    noise_px = _size(noise)
    off = metres > MIN_OFFSET_M and px > MIN_NOISE_FACTOR * noise_px
    if not off or _size(_without_trend(body, where)) > max(noise_px, MAX_UNEXPLAINED * px):
        return np.array(sizes), False
    from_body = _without_trend((miss - body[:, None])[known], (at_px[enough] - where[:, None])[known])
    return np.array(sizes), _size(from_body * metres_per_px[enough][known][:, None]) < MAX_SCATTER_M


def _size(vectors: Array) -> float:
    return float(np.median(np.linalg.norm(vectors, axis=-1)))


def _without_trend(values: Array, at: Array) -> Array:
    """Values (N, 2) less their best linear function of places (N, 2), fitted without outliers."""
    design = np.concatenate(
        [(at - at.mean(0)) / (np.abs(at - at.mean(0)).max() + 1e-9), np.ones((len(at), 1))], 1
    )
    weight = np.ones(len(at))
    for _ in range(5):
        trend = design @ np.linalg.lstsq(design * weight[:, None], values * weight[:, None], rcond=None)[0]
        off = np.linalg.norm(values - trend, axis=1)
        weight = 1 / np.sqrt(np.maximum(off, np.median(off) + 1e-9))  # least absolute distances
    return np.asarray(values - trend)


def _culprit(offset: Array, rest: Array) -> int | None:
    """The camera that is wrong, from the offsets (V,) and those of the others without it (V,)."""
    if len(rest) > MIN_CAMERAS:
        # Those that are right outvote one that is far off: without any of them the rest agrees as well.
        far = int(np.nanargmax(offset))
        if offset[far] >= MIN_LEAD * np.fmax.reduce(np.delete(offset, far), initial=0):
            return far if rest[far] < MAX_REST_M else None
    if not np.isfinite(rest).any():
        return None
    best = int(np.nanargmin(rest))
    clear = MIN_LEAD * rest[best] <= np.fmin.reduce(np.delete(rest, best), initial=np.inf)
    return best if clear and rest[best] < MAX_REST_M else None
