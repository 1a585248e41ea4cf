"""Tracking of people in several cameras by their ROIs: landmarks in every picture, the finder now and then.

A ROI comes from the person's landmarks in the picture before. The finder searches a camera's whole picture
every few frames, and in the frame after a track was lost. A new person's landmarks are placed twice, the
second time in the ROI of the first ones, as those of a track are. The crops of all people in all cameras go
through the network in one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from models.detectors.finder import MIN_SCORE, find_people, load_finder
from models.detectors.landmarks import ORDER, Landmarks, load_landmark_network, place_landmarks
from models.detectors.networks import Device, Network
from models.detectors.rois import (
    BLAZEPOSE_JOINTS,
    COCO_JOINTS,
    cut_rois,
    roi_of_coco,
    rois_match,
    usable,
)
from pipeline.array_types import Array, Floats, Ints, Pixels

MAX_VIEW_TRACKS: Final = 6
"""Most people tracked in a camera at once."""
_JOINTS: Final = len(BLAZEPOSE_JOINTS)


@dataclass(frozen=True)
class TrackingRules:
    """Interval of the searches for people, and thresholds of a person."""

    every: int = 8
    """Frames from one search for people to the next."""
    min_score: float = MIN_SCORE
    """Least score of a person from the finder."""
    min_person: float = 0.5
    """``Landmarks.person`` below which a track ends, as in MediaPipe."""


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

    def first_roi(self, coco: Array) -> Array:
        return roi_of_coco(coco)

    def cut(self, picture: Pixels, roi: Array) -> Floats:
        return cut_rois(picture, roi)

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
    """Restart state of V cameras with M = ``MAX_VIEW_TRACKS`` slots for tracks: arrays of fixed shape."""

    roi: Array
    """(V, M, 4) of each track in the next frame; NaN in free slots, which come last."""
    joints_px: Array
    """(V, M, 12, 2) joints of each track in the last frame; NaN in free slots."""
    track_id: Ints
    """(V, M) −1 in free slots."""
    next_id: Ints
    """(V,) id of the next new track in each camera."""
    search_in: Ints
    """(V,) frames until the next search; 0: in the next one."""

    @classmethod
    def start(cls, cameras: int) -> TrackerState:
        """State without tracks."""
        return cls(
            np.full((cameras, MAX_VIEW_TRACKS, 4), np.nan),
            np.full((cameras, MAX_VIEW_TRACKS, _JOINTS, 2), np.nan),
            np.full((cameras, MAX_VIEW_TRACKS), -1, np.int64),
            np.zeros(cameras, np.int64),
            np.zeros(cameras, np.int64),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays by name, to be stored."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> TrackerState:
        """Inverse of ``arrays``. Raises ``ValueError`` where the shapes do not fit."""
        start = cls.start(len(arrays["next_id"])).arrays()
        for name, want in start.items():
            if arrays[name].shape != want.shape:
                raise ValueError(f"tracker state {name}: shape {arrays[name].shape}, expected {want.shape}")
        return cls(**{name: np.asarray(arrays[name], want.dtype) for name, want in start.items()})

    def tracks(self, camera: int) -> int:
        """Number of tracks in a camera."""
        return int((self.track_id[camera] >= 0).sum())


@dataclass(frozen=True)
class PeopleInPicture:
    """Tracked people in a picture, the longest tracked first."""

    track_id: Ints
    """(D,) ids of their tracks, unique within the camera."""
    landmarks: Landmarks

    def __len__(self) -> int:
        return len(self.track_id)


def detect_people(
    networks: Networks,
    pictures: Sequence[Pixels | None],
    state: TrackerState,
    rules: TrackingRules | None = None,
) -> tuple[TrackerState, list[PeopleInPicture]]:
    """Detect the people in the RGB pictures (H, W, 3) of V cameras at one moment.

    None: no picture of a camera, whose tracks wait. The result is bit for bit independent of which cameras
    come together.
    """
    if len(pictures) != len(state.next_id):
        raise ValueError(f"{len(pictures)} pictures for a tracker of {len(state.next_id)} cameras")
    rules = rules or TrackingRules()
    tracked = [
        state.roi[v, : 0 if picture is None else state.tracks(v)] for v, picture in enumerate(pictures)
    ]
    due = [v for v, p in enumerate(pictures) if p is not None and state.search_in[v] <= 0]
    new = _find_new_people(networks, pictures, due, state, rules)
    everybody = [np.concatenate([roi, new.get(v, roi[:0])]) for v, roi in enumerate(tracked)]
    seen = _place_landmarks(networks.landmarks, pictures, everybody)
    after = TrackerState(**{name: array.copy() for name, array in state.arrays().items()})
    people = []
    for v, picture in enumerate(pictures):
        if picture is None:
            people.append(PeopleInPicture(np.zeros(0, np.int64), seen[v]))
            continue
        joints = seen[v].xy_px[:, list(networks.landmarks.joints)]
        people.append(_advance(after, v, seen[v], joints, _continues(seen[v], rules, _size(picture))))
        lost = not _continues(seen[v], rules, _size(picture))[: len(tracked[v])].all()
        after.search_in[v] = 0 if lost else rules.every - 1 if v in due else state.search_in[v] - 1
    return after, people


def _size(picture: Pixels) -> tuple[int, int]:
    """Width and height."""
    return picture.shape[1], picture.shape[0]


def _find_new_people(
    networks: Networks,
    pictures: Sequence[Pixels | None],
    due: Sequence[int],
    state: TrackerState,
    rules: TrackingRules,
) -> dict[int, Array]:
    """ROI (N, 4) of the people who are not tracked yet, by camera, from first landmarks of each."""
    searched = [p for p in (pictures[v] for v in due) if p is not None]
    first: list[Array] = [np.zeros((0, 4)) for _ in pictures]
    found_people = find_people(networks.finder, searched, rules.min_score)
    for v, picture, found in zip(due, searched, found_people, strict=True):
        tracks = state.tracks(v)
        roi = networks.landmarks.first_roi(found.points)
        known = rois_match(
            found.points[:, None, list(COCO_JOINTS), :2],
            state.joints_px[v, None, :tracks],
            np.minimum(roi[:, None, 2], state.roi[v, None, :tracks, 2]),
        ).any(1)
        new = ~known & usable(roi, _size(picture))
        first[v] = roi[new][: MAX_VIEW_TRACKS - tracks]
    looks = _place_landmarks(networks.landmarks, pictures, first)
    return {
        v: looks[v].next_roi[_continues(looks[v], rules, _size(picture))]
        for v, picture in zip(due, searched, strict=True)
    }


def _continues(seen: Landmarks, rules: TrackingRules, size: tuple[int, int]) -> NDArray[np.bool_]:
    """(N,) true for people with a sufficient score and a usable next ROI."""
    return (seen.person >= rules.min_person) & usable(seen.next_roi, size)


def _place_landmarks(
    landmarker: Landmarker, pictures: Sequence[Pixels | None], roi: Sequence[Array]
) -> list[Landmarks]:
    """Landmarks in the ROIs (N, 4) of each picture, through the network in one batch."""
    everywhere = np.concatenate(roi)
    ends = np.cumsum([len(one) for one in roi]).tolist()
    starts = [0, *ends[:-1]]
    dark = np.zeros((1, 1, 3), np.uint8)
    crops = [
        landmarker.cut(dark if picture is None else picture, one)
        for picture, one in zip(pictures, roi, strict=True)
    ]
    found = landmarker.place(np.concatenate(crops), everywhere)
    return [found.select(np.arange(start, end)) for start, end in zip(starts, ends, strict=True)]


def _advance(
    state: TrackerState, camera: int, seen: Landmarks, joints: Array, there: NDArray[np.bool_]
) -> PeopleInPicture:
    """Update a camera's tracks in ``state``, and return its people.

    seen: landmarks of the tracks, in the state's order, then of new people; joints (N, 12, 2) of them;
    there (N,): true for people. A track ends without a person, or with that of an older track.
    """
    kept: list[int] = []
    for n in np.flatnonzero(there).tolist():
        side = np.minimum(seen.roi[kept, 2], seen.roi[n, 2])
        if len(kept) < MAX_VIEW_TRACKS and not rois_match(joints[kept], joints[n], side).any():
            kept.append(n)
    tracks = state.tracks(camera)
    born = sum(n >= tracks for n in kept)
    first = state.next_id[camera]
    ids = [*(state.track_id[camera, n] for n in kept if n < tracks), *range(first, first + born)]
    for array, values, nothing in (
        (state.roi, seen.next_roi[kept], np.nan),
        (state.joints_px, joints[kept], np.nan),
        (state.track_id, ids, -1),
    ):
        array[camera] = nothing
        array[camera, : len(kept)] = values
    state.next_id[camera] += born
    return PeopleInPicture(np.array(ids, np.int64), seen.select(kept))
