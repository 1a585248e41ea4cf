"""Tracking of people in the pictures of a camera: landmarks in every picture, the finder now and then.

A ROI comes from the person's landmarks in the picture before. The finder searches the whole picture every
few frames, and in the frame after a track was lost. A new person's landmarks are placed twice, the second
time in the ROI of the first ones, as those of a track are. The crops of all people are one batch.

N tracks, D people in a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from models.detectors.finder import find_people, load_finder
from models.detectors.landmarks import ORDER, Landmarks, load_landmark_network, place_landmarks
from models.detectors.networks import Device, Network
from models.detectors.rois import (
    BLAZEPOSE_JOINTS,
    COCO_JOINTS,
    cut_rois,
    is_usable,
    roi_of_coco,
    rois_match,
)
from pipeline.array_types import Array, Floats, Ints, Pixels

MAX_VIEW_TRACKS: Final = 6
"""Most people tracked in a camera at once."""
SEARCH_FRAMES: Final = 8
"""Frames from one search for people to the next."""
_MIN_PERSON_SCORE: Final = 0.5
"""Least ``Landmarks.person`` of a track that goes on, as in MediaPipe."""


class Landmarker(Protocol):
    """Network that places the points of one person in a crop."""

    @property
    def network(self) -> Network: ...

    @property
    def order(self) -> str:
        """Order of the points, a name in ``skeleton.POINT_ORDERS``."""

    @property
    def joints(self) -> Sequence[int]:
        """The 12 joints of ``COCO_JOINTS`` among the points."""

    def first_roi(self, coco: Array) -> Array:
        """ROI (N, 4) of people by the finder's 17 points (N, 17, 3)."""

    def cut(self, picture: Pixels, roi: Array) -> Floats:
        """Crops (N, 3, H, W) of ROIs (N, 4) of an RGB picture (H, W, 3)."""

    def place(self, crops: Floats, roi: Array) -> Landmarks:
        """Place the points in crops of ROIs (N, 4) of any pictures."""


@dataclass(frozen=True)
class BlazePose:
    """The landmark networks that ship."""

    network: Network

    order: ClassVar = ORDER
    joints: ClassVar = BLAZEPOSE_JOINTS

    first_roi = staticmethod(roi_of_coco)
    cut = staticmethod(cut_rois)

    def place(self, crops: Floats, roi: Array) -> Landmarks:
        return place_landmarks(self.network, crops, roi)


@dataclass(frozen=True)
class Networks:
    """Finder of people, and network that places their points."""

    finder: Network
    landmarks: Landmarker


def load_networks(model: str = "heavy", device: Device = "cpu") -> Networks:
    """Load the networks that ship; model: ``heavy`` or ``full``. Raises ``InputError``."""
    return Networks(load_finder(device), BlazePose(load_landmark_network(model, device)))


@dataclass(frozen=True)
class TrackerState:
    """Restart state of a camera's tracker; tracks in the order of their birth."""

    roi: Array
    """(N, 4) of each track in the next frame"""
    joints_px: Array
    """(N, 12, 2) joints of each track in the last frame"""
    track_id: Ints
    """(N,)"""
    next_id: int
    """Id of the next new track"""
    search_in: int
    """Frames until the next search; 0: in the next one"""

    @classmethod
    def start(cls) -> TrackerState:
        """State without tracks."""
        return cls(np.zeros((0, 4)), np.zeros((0, len(COCO_JOINTS), 2)), np.zeros(0, np.int64), 0, 0)

    def to_vector(self) -> Array:
        """(S,) ROIs, joints and ids in ``MAX_VIEW_TRACKS`` slots, NaN and id −1 in free ones; two numbers."""
        free = (0, MAX_VIEW_TRACKS - len(self.roi))
        roi = np.pad(self.roi, (free, (0, 0)), constant_values=np.nan)
        joints_px = np.pad(self.joints_px, (free, (0, 0), (0, 0)), constant_values=np.nan)
        ids = np.pad(self.track_id, free, constant_values=-1)
        return np.concatenate([roi.ravel(), joints_px.ravel(), ids, [self.next_id, self.search_in]])

    @classmethod
    def of_vector(cls, vector: Array) -> TrackerState:
        """Inverse of ``to_vector``."""
        sizes = MAX_VIEW_TRACKS * np.array([4, 2 * len(COCO_JOINTS), 1])
        roi, joints, ids, numbers = np.split(vector, sizes.cumsum())
        n = int((ids >= 0).sum())
        joints_px = joints.reshape(MAX_VIEW_TRACKS, -1, 2)[:n]
        return cls(roi.reshape(-1, 4)[:n], joints_px, ids[:n].astype(np.int64), *numbers.astype(int).tolist())


def detect_people(
    networks: Networks, picture: Pixels, state: TrackerState, every: int = SEARCH_FRAMES
) -> tuple[TrackerState, Landmarks]:
    """Detect the people in the next RGB picture (H, W, 3) of a camera, in the order of the state's tracks.

    A track ends without a person in its ROI, or with the person of an older track. every: frames from one
    search for new people to the next.
    """
    landmarker, tracks = networks.landmarks, len(state.roi)
    searching = state.search_in <= 0
    new = _find_new_people(networks, picture, state) if searching else state.roi[:0]
    roi = np.concatenate([state.roi, new])
    found = landmarker.place(landmarker.cut(picture, roi), roi)
    joints = found.xy_px[:, list(landmarker.joints)]
    is_person = _is_person(found, picture)
    kept: list[int] = []
    for n in np.flatnonzero(is_person).tolist():
        side = np.minimum(found.roi[kept, 2], found.roi[n, 2])
        if len(kept) < MAX_VIEW_TRACKS and not rois_match(joints[kept], joints[n], side).any():
            kept.append(n)
    old = [n for n in kept if n < tracks]
    next_id = state.next_id + len(kept) - len(old)
    track_id = np.concatenate([state.track_id[old], np.arange(state.next_id, next_id)])
    lost = not is_person[:tracks].all()
    search_in = 0 if lost else every - 1 if searching else state.search_in - 1
    return TrackerState(found.next_roi[kept], joints[kept], track_id, next_id, search_in), found.select(kept)


def _find_new_people(networks: Networks, picture: Pixels, state: TrackerState) -> Array:
    """ROI (N, 4) of the people who are not tracked yet, from first landmarks of each."""
    landmarker, found = networks.landmarks, find_people(networks.finder, picture)
    roi = landmarker.first_roi(found.points)
    tracked = rois_match(
        found.points[:, None, list(COCO_JOINTS), :2],
        state.joints_px,
        np.minimum(roi[:, None, 2], state.roi[:, 2]),
    ).any(1)
    roi = roi[~tracked & is_usable(roi, picture)][: MAX_VIEW_TRACKS - len(state.roi)]
    first = landmarker.place(landmarker.cut(picture, roi), roi)
    return first.next_roi[_is_person(first, picture)]


def _is_person(found: Landmarks, picture: Pixels) -> NDArray[np.bool_]:
    """(N,) true for landmarks with a sufficient score and a usable next ROI."""
    return (found.person >= _MIN_PERSON_SCORE) & is_usable(found.next_roi, picture)
