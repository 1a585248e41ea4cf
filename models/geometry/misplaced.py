"""Misplaced cameras: those whose calibration is wrong, by where the others say that the person is.

Every camera is left out in turn: the person is triangulated without it and projected into it. The errors of
single keypoints cancel out over a body; what is left is the camera's offset.

Axes: V views, T frames, P people, K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.geometry.agreement import find_bodies, find_other_people, nearest_detection
from models.geometry.association import pick_people
from models.geometry.triangulation import leave_one_out
from pipeline.array_types import Array, Floats
from pipeline.cameras import Rig

MIN_CAMERAS: Final = 3
"""Two cameras agree on a person wherever they stand, but for the distance between their rays."""
MIN_KEYPOINTS: Final = 6
"""Fewest keypoints of a body that give its offset."""
MIN_FRAMES: Final = 6
"""Fewest frames with an offset that give a verdict."""
MIN_OFFSET_M: Final = 0.015
"""Smaller offsets have other reasons: a detector's joints differ between front and back."""
MIN_NOISE_RATIO: Final = 2.4
"""Least ratio of a wrong camera's offset to what independent errors of the keypoints leave of it. Right
synthetic recordings reach 1.2; three or four cameras of a real one 1.5 with OpenPose's keypoints, and 2.0
with the shipped detector's, whose errors depend on view. Shares found: tests/benchmarks/misplaced.json"""
MAX_UNEXPLAINED_SHARE: Final = 0.35
"""Largest share of the offset left by its best linear function of the person's place in the picture, as a
wrong calibration makes it: it reached 0.32 there. Offsets of late cameras follow the velocity, a detector's
own the pose and what hides the person: both leave at least 0.4."""
MAX_POSE_ERROR_M: Final = 0.06
"""Distance of a body's keypoints from such a function beyond which the camera shows somebody else: twice what
a poor detector is off by, less than two poses differ by."""
MAX_REMAINING_M: Final = 0.006
"""Offset, and uncertainty of an offset by how its keypoints scatter, up to which the others agree: with one
camera that is wrong they reached 4 mm, in a real recording, too, with all wrong they are seldom below 10."""
MIN_LEAD: Final = 2.0
"""Least ratio of the next camera's figure to that of the named one: of the offsets, or of what remains among
the others."""


@dataclass(frozen=True)
class Misplaced:
    """Offsets of V cameras of which at least one is wrong."""

    offset_m: Array
    """(V,) median offset, metres at the person, from where the others say that it is; NaN where they say
    nothing."""
    offset_px: Array
    """(V,)"""
    remaining_m: Array
    """(V,) largest offset among the others, or its uncertainty, once this camera is left out; NaN where one
    of them then agrees with nobody."""
    camera: int | None
    """Index of the wrong camera, where one can be told."""


def find_misplaced(rig: Rig, image: Floats) -> Misplaced | None:
    """Find cameras that are farther off than errors of keypoints explain; None where none is.

    image: (V, T, P, K, 3) pixels of the video frames and confidence; some 40 frames are enough.
    """
    views = len(rig)
    if views < MIN_CAMERAS:
        return None
    xy, confidence = rig.undistort_views(image[..., :2]), image[..., 2].astype(np.float64)
    bodies = find_bodies(rig, image).person
    person = bodies[:, 0].T
    # A camera from which the person is hidden may show other people.
    others = find_other_people(bodies, person, image.shape[2])
    candidates = np.where(others[..., None], 0, confidence)
    xy_person = pick_people(xy, person, np.nan)
    without = leave_one_out(rig, xy_person, pick_people(confidence, person, 0))
    expected = [(rig.project(points), rig.metres_per_px(points)) for points in without]
    offset, wrong = np.full((views, 3), np.nan), np.zeros(views, bool)
    for v, (at_px, metres) in enumerate(expected):
        nearest = nearest_detection(xy[v], candidates[v], at_px[v])
        offset[v], wrong[v] = _measure_offset(nearest - at_px[v], at_px[v], metres[v])
    if not wrong.any():
        return None
    shows = (confidence > 0).any((2, 3)).sum(1) >= MIN_FRAMES
    remaining = np.full(views, np.nan)
    for v, (at_px, metres) in enumerate(expected):
        rest = [u for u in range(views) if u != v and shows[u]]
        offsets = [_measure_offset(xy_person[u] - at_px[u], at_px[u], metres[u])[0][1:] for u in rest]
        remaining[v] = np.max(offsets, initial=0)
    return Misplaced(offset[:, 1], offset[:, 0], remaining, _name_camera(offset[:, 1], remaining))


def _measure_offset(error_px: Array, at_px: Array, metres_per_px: Array) -> tuple[Array, bool]:
    """Median offset of a body (pixels, metres) and its uncertainty (metres), NaN where too little is seen;
    and true where it is that of a wrong calibration.

    error_px: (T, K, 2) from where a point is expected to where it was seen. at_px: (T, K, 2) where it is
    expected. metres_per_px: (T, K) there.
    """
    seen: NDArray[np.bool_] = np.asarray(np.isfinite(error_px).all(-1))
    used = seen.sum(1) >= MIN_KEYPOINTS
    if used.sum() < MIN_FRAMES:
        return np.full(3, np.nan), False
    seen = seen[used]
    error = np.where(seen[..., None], error_px[used], np.nan)
    body = np.nanmedian(error, 1)
    # Standard error of the median of n Gaussian numbers, from the median of their distances to it.
    deviation = np.nanmedian(np.abs(error - body[:, None]), 1)
    noise = 1.4826 * 1.2533 * deviation / np.sqrt(seen.sum(1, keepdims=True))
    scale = np.nanmedian(np.where(seen, metres_per_px[used], np.nan), 1)
    place = np.nanmedian(np.where(seen[..., None], at_px[used], np.nan), 1)
    offset_px, noise_px = _median_length(body), _median_length(noise)
    offset_m, noise_m = _median_length(body * scale[:, None]), _median_length(noise * scale[:, None])
    figures = np.array([offset_px, offset_m, noise_m])
    if offset_m <= MIN_OFFSET_M or offset_px <= MIN_NOISE_RATIO * noise_px:
        return figures, False
    if _median_length(_detrend(body, place)) > max(noise_px, MAX_UNEXPLAINED_SHARE * offset_px):
        return figures, False
    pose = _detrend((error - body[:, None])[seen], (at_px[used] - place[:, None])[seen])
    return figures, _median_length(pose * metres_per_px[used][seen][:, None]) < MAX_POSE_ERROR_M


def _median_length(vectors: Array) -> float:
    return float(np.median(np.linalg.norm(vectors, axis=-1)))


def _detrend(values: Array, at: Array) -> Array:
    """Residuals of values (N, 2) from their best linear function of places (N, 2): least absolute distances,
    by re-weighted least squares."""
    design = np.concatenate(
        [(at - at.mean(0)) / (np.abs(at - at.mean(0)).max() + 1e-9), np.ones((len(at), 1))], 1
    )
    weight = np.ones(len(at))
    for _ in range(5):
        trend = design @ np.linalg.lstsq(design * weight[:, None], values * weight[:, None], rcond=None)[0]
        distance = np.linalg.norm(values - trend, axis=1)
        weight = 1 / np.sqrt(np.maximum(distance, np.median(distance) + 1e-9))
    return np.asarray(values - trend)


def _name_camera(offset: Array, remaining: Array) -> int | None:
    """Index of the wrong camera, from the offsets (V,) and what remains without each (V,)."""
    if len(remaining) > MIN_CAMERAS:
        # Right cameras outvote one that is far off: without any of them the rest agrees as well.
        far = int(np.nanargmax(offset))
        if offset[far] >= MIN_LEAD * np.fmax.reduce(np.delete(offset, far), initial=0):
            return far if remaining[far] < MAX_REMAINING_M else None
    if not np.isfinite(remaining).any():
        return None
    best = int(np.nanargmin(remaining))
    clear = MIN_LEAD * remaining[best] <= np.fmin.reduce(np.delete(remaining, best), initial=np.inf)
    return best if clear and remaining[best] < MAX_REMAINING_M else None
