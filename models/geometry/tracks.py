"""Tracks of people, the state that is handed on from frame to frame, and the thresholds of tracking.

N tracks, K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Self

import numpy as np

from pipeline.array_types import Array, Ints
from pipeline.errors import InputError
from pipeline.skeleton import BODY_25

MAX_TRACKS: Final = 64
"""Tracks alive at once; of more the weakest are left out."""
MAX_CLUTTER: Final = 64
"""Stationary detections kept at once; of more the oldest are left out."""
_CLUTTER_COLUMNS: Final = 5 + 2 * len(BODY_25)


@dataclass(frozen=True)
class TrackThresholds:
    """Thresholds of the tracker. Found on scenes of motion capture with occlusion (4 people, 5 views)."""

    agreement: float = 0.3
    """Share of a detection's confidence that must agree with a track."""
    shared: int = 4
    """Keypoints that a detection and a track must have in common."""
    first_pass: float = 1.5
    """Factor of the distance at which a keypoint counts for half, before the body is measured."""
    birth_agreement: float = 0.45
    birth_shared: int = 6
    """The same two for somebody new."""
    near_m: float = 0.25
    """Median distance of keypoints below which somebody new is a person who is there already."""
    same_m: float = 0.18
    """The same for two tracks, of which the weaker one ends."""
    one_picture: float = 0.25
    """Factor on both with a single camera, in whose picture people stand before each other."""
    fragment_agreement: float = 0.6
    fragment_shared: int = 3
    """For a second detection of a view to be another part of a person who has one there."""
    fragment_px: float = 10.0
    """Distance below which a keypoint of both is the same one found twice."""
    exchange_gain: float = 0.15
    """Agreement that is gained where left and right of a detection are exchanged back."""
    exchange_shared: int = 8
    mirror_gain: float = 3.0
    """Sum of the agreement gained by exchanging its detections above which it is the track that has left and
    right wrong: one that is seen well gains 0.3 to 0.5."""
    point_s: float = 1.0
    """A keypoint that was not measured for longer is forgotten."""
    acceleration_m_s2: float = 20.0
    """Acceleration of a person above which a track's velocity follows no faster, with several cameras."""
    jump_m: float = 0.1
    """Distance of a measured body from the predicted one, at once, above which it is not believed."""
    evidence: int = 8
    """Views beyond those that a birth takes, summed over frames, before a track counts."""
    view_share: float = 0.4
    """Of the other cameras that look at the place, as many must show somebody there: where two phantoms meet,
    the others see nobody."""
    support: float = 0.4
    """Share of recent frames in which it was measured, before a track counts."""
    lost_support: float = 0.08
    young_s: float = 0.15
    """A track that does not count yet ends when it has not been measured for longer."""
    young_support: float = 0.3


LIMITS: Final = TrackThresholds()
_TRUNK: Final = tuple(BODY_25.index(n) for n in ("Neck", "RShoulder", "LShoulder", "MidHip", "RHip", "LHip"))


@dataclass(frozen=True)
class Tracks:
    """Restart state of tracking: N tracks, and the numbers that the next ones get."""

    serial: Ints
    """(N,) number of the track, in order of birth."""
    id: Ints
    """(N,) id of the person, −1 for a track that does not count."""
    points: Array
    """(N, K, 3) keypoints, metres, world, NaN where not known; with a single camera pixels, and 0."""
    point_s: Array
    """(N, K) when each was measured last; −inf for never."""
    velocity: Array
    """(N, 3) a second."""
    time_s: Array
    """(N,) of the points."""
    measured_s: Array
    """(N,) when it was measured last: by two views, where there are several."""
    born_s: Array
    birthplace: Array
    """(N, 3) middle of the trunk at birth"""
    place: Array
    """(N, 3) middle of the trunk when it was measured last"""
    support: Array
    """(N,) share of recent frames in which it was measured."""
    evidence: Array
    """(N,) views beyond the first (two, where there are several), summed over frames."""
    age: Array
    """(N,) frames since birth."""
    mirror_gain: Array
    """(N,) cumulative sum, at least 0, of the agreement gained by mirroring its detections"""
    unmirrored_s: Array
    """(N,) when that sum was 0 last; −inf for never"""
    lost: Array = field(default_factory=lambda: np.zeros((0, 5)))
    """(L, 5) people whose track has ended and who may return: id, the middle of the trunk, and when they were
    measured last, seconds"""
    clutter: Array = field(default_factory=lambda: np.zeros((0, _CLUTTER_COLUMNS)))
    """(R, 5 + 2 K) stationary detections of nobody: view, seconds since when and when last detected, serial
    of the track that may have it or −1, pixels by which it may move, keypoints in undistorted px, NaN where
    missing"""
    next_serial: int = 0
    next_id: int = 0
    brief: int = 0
    """Tracks that ended before they had been there for long enough to count, but for half of that."""
    doubtful: int = 0
    """Tracks that ended and never counted, as too few of the cameras that look there showed somebody."""

    @classmethod
    def none(cls) -> Self:
        k = len(BODY_25)
        number, zero = np.zeros(0, np.int64), np.zeros(0)
        points, times, xyz = np.zeros((0, k, 3)), np.zeros((0, k)), np.zeros((0, 3))
        return cls(number, number, points, times, xyz, zero, zero, zero, xyz, xyz, *(zero,) * 5)

    def take(self, index: Ints) -> Self:
        """Those tracks, in that order."""
        return replace(self, **{name: getattr(self, name)[index] for name in TRACK_ARRAYS})

    @property
    def named(self) -> dict[int, int]:
        """Number of each track that counts → the person's id."""
        rows = zip(self.serial.tolist(), self.id.tolist(), strict=True)
        return {serial: person for serial, person in rows if person >= 0}

    def table(self) -> Array:
        """The state as one array (2 MAX_TRACKS + MAX_CLUTTER + 1, C): a row a track, a lost person and a
        stationary detection, and one of the numbers; NaN elsewhere."""
        arrays = [getattr(self, name) for name in TRACK_ARRAYS]
        columns = [x.reshape(len(x), int(np.prod(x.shape[1:]))) for x in arrays]
        rows = np.concatenate(columns, 1).astype(np.float64)
        out = np.full((2 * MAX_TRACKS + MAX_CLUTTER + 1, rows.shape[1]), np.nan)
        out[: len(rows)] = rows
        out[MAX_TRACKS : MAX_TRACKS + len(self.lost), :5] = self.lost
        out[2 * MAX_TRACKS : 2 * MAX_TRACKS + len(self.clutter), :_CLUTTER_COLUMNS] = self.clutter
        out[-1, : len(_NUMBERS)] = [getattr(self, name) for name in _NUMBERS]
        return out

    @classmethod
    def of_table(cls, table: Array) -> Self:
        """The tracks that ``table`` was made of. Raises ``InputError`` for a table of another version."""
        if table.shape != (shape := cls.none().table().shape):
            raise InputError(
                "the results were begun by another version of this software: their tracks are a table of "
                f"{table.shape}, not {shape}. Start again with --overwrite, or choose another --out."
            )
        parts_ = np.split(table[:-1], [MAX_TRACKS, 2 * MAX_TRACKS])
        rows, lost, clutter = (part[np.isfinite(part[:, 0])] for part in parts_)
        empty, at = cls.none(), 0
        parts: dict[str, Any] = {}
        for name in TRACK_ARRAYS:
            like = getattr(empty, name)
            width = int(np.prod(like.shape[1:], dtype=int))
            part = rows[:, at : at + width].reshape(len(rows), *like.shape[1:])
            parts[name], at = part.astype(like.dtype), at + width
        numbers: dict[str, Any] = dict(
            zip(_NUMBERS, table[-1, : len(_NUMBERS)].astype(int).tolist(), strict=True)
        )
        return replace(empty, **parts, lost=lost[:, :5], clutter=clutter[:, :_CLUTTER_COLUMNS], **numbers)


_NUMBERS: Final = ("next_serial", "next_id", "brief", "doubtful")
TRACK_ARRAYS: Final = tuple(f.name for f in fields(Tracks) if f.name not in ("lost", "clutter", *_NUMBERS))


def trunk_middle(points: Array) -> Array:
    """(N, 3) median of the trunk's keypoints, or of all where it is not known."""
    trunk = finite_median(np.swapaxes(points[:, _TRUNK], 1, 2))
    return np.where(np.isfinite(trunk), trunk, finite_median(np.swapaxes(points, 1, 2)))


def finite_median(x: Array) -> Array:
    """Median over the last axis, NaN where nothing is finite; numpy's takes ten times as long."""
    count = np.isfinite(x).sum(-1, keepdims=True)
    ordered = np.sort(x, -1)  # NaN comes last
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, x.shape[-1] - 1)
    middle = (np.take_along_axis(ordered, low, -1) + np.take_along_axis(ordered, high, -1)) / 2
    return np.asarray(np.where(count > 0, middle, np.nan)[..., 0])
