"""Pictures of real people for the detector: frames of the shared recording, and two people in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from recordings import BALANCING

from models.detectors.landmarks import Landmarks
from models.detectors.rois import BLAZEPOSE_JOINTS
from models.detectors.tracking import Networks, TrackerState, detect_people, load_networks
from pipeline.array_types import Pixels
from pipeline.video import read_frames

needs_balancing = pytest.mark.skipif(not BALANCING.exists(), reason="needs the shared balancing recording")

CANVAS = (800, 1280)
"""Height and width of the picture with two people."""


@cache
def networks(model: str = "full") -> Networks:
    return load_networks(model)


@cache
def frames(camera: int, first: int = 0, count: int = 1, step: int = 1) -> tuple[Pixels, ...]:
    """RGB pictures (1920, 1088, 3) of a camera, 1 to 4, of the shared recording."""
    video = BALANCING / "videos" / f"cam{camera:02d}.mp4"
    wanted = range(first, first + count * step, step)
    return tuple(f.to_ndarray(format="rgb24") for f in read_frames(video, wanted) if f is not None)


def alone(model: Networks, pictures: Sequence[Pixels]) -> list[Landmarks]:
    """The largest person in each of the pictures of one camera, tracked."""
    state, out = TrackerState.start(), []
    for picture in pictures:
        state, people = detect_people(model, picture, state)
        out.append(people.select([int(people.roi[:, 2].argmax())]))
    return out


def two_people(
    large: tuple[Pixels, Landmarks], small: tuple[Pixels, Landmarks]
) -> tuple[Pixels, NDArray[np.float64]]:
    """One picture with the people of two, and their joints (2, 12, 2) in it, pixels.

    One is 700 pixels tall with the cut-out around, the other 440 and hidden by the first's cut-out on one
    side.
    """
    (near, near_xy), (far, far_xy) = _cut_out(*large, 700), _cut_out(*small, 440)
    picture = np.full((*CANVAS, 3), 120, np.uint8)
    near_at = np.array([120, 60])
    far_at = np.array([near_at[0] + near.shape[1] - round(0.15 * far.shape[1]), 200])
    for pixels, (x, y) in ((far, far_at), (near, near_at)):
        room = picture[y : y + pixels.shape[0], x : x + pixels.shape[1]]
        room[:] = pixels[: room.shape[0], : room.shape[1]]
    return picture, np.stack([near_xy + near_at, far_xy + far_at])


def _cut_out(picture: Pixels, person: Landmarks, height: int) -> tuple[Pixels, NDArray[np.float64]]:
    """The part of a picture around a person, scaled to a height, and the person's joints (12, 2) in it."""
    xy = person.xy_px[0]
    low, high = xy.min(0), xy.max(0)
    margin = 0.12 * (high - low).max()
    x0, y0 = np.maximum(low - margin, 0).astype(int).tolist()
    x1, y1 = np.minimum(high + margin, picture.shape[1::-1]).astype(int).tolist()
    size = round((x1 - x0) * height / (y1 - y0)), height
    part = cv2.resize(picture[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA)
    return part, (xy[list(BLAZEPOSE_JOINTS)] - [x0, y0]) * size / [x1 - x0, y1 - y0]


def where_found(state: TrackerState, people: Landmarks, joints: NDArray[np.float64]) -> list[int | None]:
    """Track that each of some people, joints (N, 12, 2), was found as; None for those who were not."""
    out: list[int | None] = []
    for one in joints:
        distance = np.linalg.norm(people.xy_px[:, list(BLAZEPOSE_JOINTS)] - one, axis=-1)
        share = np.median(distance, -1) / people.roi[:, 2]
        best = int(share.argmin()) if len(share) else -1
        out.append(int(state.track_id[best]) if len(share) and share[best] < 0.08 else None)
    return out
