"""Points of keypoint files as pixels and as BODY_25."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.array_types import Floats
from pipeline.formats.keypoints.files import MIN_CONFIDENCE
from pipeline.skeleton import BODY_25, MIDPOINTS, POINT_ORDERS


@dataclass(frozen=True)
class PointOrder:
    """Order of the points in keypoint files and scale of their numbers, and how these are known."""

    name: str
    """A name in ``skeleton.POINT_ORDERS``."""
    how: str
    """Reason of the decision, for people."""
    misfit: float | None = None
    """``limb_misfit`` in this order; None where it could not be measured."""
    margin: float | None = None
    """Misfit of the best other order with as many points over that of this one; None where there is none."""
    confidence_scale: tuple[float, ...] = ()
    """(V,) divisor of each camera's confidences, which brings all cameras to one scale; empty for none."""
    normalised: bool = False
    """Coordinates are fractions of the picture, as OpenPose's ``--keypoint_scale 3`` writes them."""

    picture_scale: tuple[tuple[float, float], ...] = ()
    """(V,) factors, x and y, from the pictures that a camera's keypoints were made on to those of its video;
    empty for none."""

    @property
    def points(self) -> int:
        return len(POINT_ORDERS[self.name])


def orders_with(points: int) -> list[str]:
    """The known orders with this number of points."""
    return [name for name, names in POINT_ORDERS.items() if len(names) == points]


def to_pixels(
    people: Floats, known: PointOrder, size: NDArray[np.int64], min_confidence: float = MIN_CONFIDENCE
) -> Floats:
    """Points as in the files (V, T, P, K, 3) → pixels, and confidences on a scale from 0 to 1.

    A point below ``min_confidence`` is missing then. size: (V, 2).
    """
    out = people.copy()
    if known.confidence_scale:
        scale = np.array(known.confidence_scale, dtype=np.float32)
        out[..., 2] = np.clip(people[..., 2] / scale[:, None, None, None], 0, 1)
    out[out[..., 2] < min_confidence] = np.nan, np.nan, 0
    if known.normalised:
        # OpenPose divides by the size less 1: its (1, 1) is the centre of the last pixel.
        out[..., :2] *= (size[:, None, None, None] - 1).astype(np.float32)
    if known.picture_scale:
        out = np.stack([resize(own, by) for own, by in zip(out, known.picture_scale, strict=True)])
    return out


def resize(people: Floats, factor: tuple[float, float]) -> Floats:
    """Points (..., 3) of pictures that are made this many times as wide and high."""
    if factor == (1, 1):
        return people
    out = people.copy()
    out[..., :2] = (out[..., :2] + 0.5) * np.array(factor, np.float32) - 0.5
    return out


def to_body_25(people: Floats, order: str) -> Floats:
    """Points (..., K, 3) in one of ``POINT_ORDERS`` as BODY_25 (..., 25, 3).

    A point that the order lacks is the mean of its ``MIDPOINTS`` with the lower confidence of the two.
    """
    names = POINT_ORDERS[order]
    if people.shape[-2] != len(names):
        raise ValueError(f"{order} has {len(names)} points, got {people.shape[-2]}")
    out = np.full((*people.shape[:-2], len(BODY_25), 3), np.nan, dtype=people.dtype)
    out[..., 2] = 0
    for to, name in enumerate(BODY_25.names):
        if name in names:
            out[..., to, :] = people[..., names.index(name), :]
        elif name in MIDPOINTS:
            a, b = (people[..., names.index(end), :] for end in MIDPOINTS[name])
            both = np.minimum(a[..., 2], b[..., 2])
            middle = (a[..., :2] + b[..., :2]) / 2
            out[..., to, :2] = np.where(both[..., None] > 0, middle, np.nan)
            out[..., to, 2] = both
    return out
