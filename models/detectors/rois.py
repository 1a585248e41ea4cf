"""Regions of interest (ROIs) of people: rotated squares, from keypoints.

A ROI (..., 4) is the centre x and y and the side, pixels, and the angle, radians, of a square in a picture:
the crop's x axis points along (cos, sin) of the angle there, x towards y. The centre is between the hips, and
the trunk points up in the crop.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.crops import warp_bilinear, warp_matrix
from pipeline.array_types import Array, Floats, Pixels

CROP: Final = 256
"""Side of a crop that the landmark networks take, pixels."""
ROI_MARGIN: Final = 1.25
"""Side of a ROI over the diameter of the circle around the person, MediaPipe's."""
MIN_SIDE_PX: Final = 16.0
"""Least side of a ROI: smaller people have no useful landmarks."""
MAX_SIDE_RATIO: Final = 4.0
"""Largest side of a ROI over the picture's longer side: larger ones come from stray points."""

COCO_JOINTS: Final = (5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
"""Shoulders, elbows, wrists, hips, knees and ankles among the 17 points of COCO, left first."""
BLAZEPOSE_JOINTS: Final = (11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
"""The same joints among the 33 points of BlazePose."""
SAME_PERSON_SHARE: Final = 0.08
"""Median distance of two detections' joints, over the smaller side of their ROIs, below which they are one
person."""
_MIN_POINT_SCORE: Final = 0.1
"""Least score of a COCO point that the ROI includes."""


def roi_towards(centre: Array, top: Array) -> Array:
    """ROI (..., 4) about the centres (..., 2) of circles that pass through the points above, top (..., 2)."""
    axis = top - centre
    side = 2 * ROI_MARGIN * np.hypot(axis[..., 0], axis[..., 1])
    return np.stack([*np.moveaxis(centre, -1, 0), side, np.arctan2(axis[..., 0], -axis[..., 1])], -1)


def roi_of_coco(points: Array) -> Array:
    """ROI (N, 4) of 17 points (N, 17, 3) of COCO: x and y in pixels, score.

    About the middle of the hips, turned by the trunk and large enough for every point of some score.
    """
    hips, shoulders = points[:, 11:13, :2].mean(1), points[:, 5:7, :2].mean(1)
    distance = np.linalg.norm(points[..., :2] - hips[:, None], axis=-1)
    farthest = np.where(points[..., 2] > _MIN_POINT_SCORE, distance, 0).max(1)
    trunk = shoulders - hips
    length = np.linalg.norm(trunk, axis=-1)
    radius = np.maximum(1.15 * farthest, 1.7 * length)
    up = np.where(length[:, None] > 0, trunk / np.maximum(length, 1e-9)[:, None], np.array([0.0, -1.0]))
    return roi_towards(hips, hips + radius[:, None] * up)


def is_usable(roi: Array, picture: Pixels) -> NDArray[np.bool_]:
    """True where a ROI (..., 4) has a plausible side for a picture (H, W, 3)."""
    side = roi[..., 2]
    largest = MAX_SIDE_RATIO * max(picture.shape[:2])
    return np.asarray(np.isfinite(roi).all(-1) & (side >= MIN_SIDE_PX) & (side <= largest))


def roi_matrix(roi: Array, size: int = CROP) -> Array:
    """(3, 3) from pixels of the picture to those of the crop of a ROI (4,).

    The centre comes to pixel size / 2, as MediaPipe has it, not half a pixel before.
    """
    matrix = warp_matrix(roi[:3], -roi[3], size)
    matrix[:2, 2] += 0.5
    return matrix


def cut_rois(picture: Pixels, roi: Array) -> Floats:
    """Crops (N, 3, 256, 256) of ROIs (N, 4) of an RGB picture (H, W, 3), float32, 0 to 1.

    Outside of the picture its edge is repeated, as in MediaPipe.
    """
    out = np.empty((len(roi), 3, CROP, CROP), np.float32)
    for crop, one in zip(out, roi, strict=True):
        pixels = warp_bilinear(picture, roi_matrix(one), (CROP, CROP), "replicate")
        np.multiply(pixels.transpose(2, 0, 1), np.float32(1 / 255), out=crop)
    return out


def rois_match(a: Array, b: Array, side: float | Array) -> NDArray[np.bool_]:
    """True where joints a and b (..., 12, 2), in ROIs of this side, pixels, are one person's."""
    distance_px = np.median(np.linalg.norm(a - b, axis=-1), axis=-1)
    return np.asarray(distance_px < SAME_PERSON_SHARE * side)
