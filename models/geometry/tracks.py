"""Tracks of people, restart state of the tracker, and its thresholds.

N tracks, K keypoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Self

import numpy as np

from models.geometry.association import finite_median
from pipeline.array_types import Array, Ints
from pipeline.errors import InputError
from pipeline.skeleton import BODY_25

MAX_TRACKS: Final = 64
"""Most tracks alive at once; beyond it the weakest are dropped."""
MAX_CLUTTER: Final = 64
"""Most stationary detections kept at once; beyond it the oldest are dropped."""
_CLUTTER_COLUMNS: Final = 5 + 2 * len(BODY_25)


@dataclass(frozen=True)
class TrackThresholds:
    """Thresholds of the tracker, found on scenes of motion capture with occlusion (4 people, 5 views)."""

    agreement: float = 0.3
    """Least share of a detection's confidence that agrees with its track."""
    shared: int = 4
    """Fewest keypoints that a detection and its track have in common."""
    first_pass: float = 1.5
    """Factor on the distance at which a keypoint agrees by half, before the body is measured."""
    birth_agreement: float = 0.45
    birth_shared: int = 6
    """``agreement`` and ``shared`` for the birth of a track."""
    near_m: float = 0.25
    """Median distance of keypoints from a track below which no other one is born."""
    same_m: float = 0.18
    """Median distance of the keypoints of two tracks below which the weaker one ends."""
    one_picture: float = 0.25
    """Factor on both with a single camera, in whose picture people stand before each other."""
    fragment_agreement: float = 0.6
    fragment_shared: int = 3
    """``agreement`` and ``shared`` for a second detection of a view, another part of the same person."""
    fragment_px: float = 10.0
    """Distance below which a keypoint of both is one found twice."""
    exchange_gain: float = 0.15
    """Gain of agreement from which on left and right of a detection are exchanged back."""
    exchange_shared: int = 8
    """``shared`` for that."""
    mirror_gain: float = 3.0
    """Sum of the agreement gained by exchanging its detections above which it is the track that has left and
    right wrong: one that is seen well gains 0.3 to 0.5."""
    mirror_frame_s: float = 0.033
    """Time since the frame before below which that gain counts in proportion: it was found at 30 frames/s."""
    point_s: float = 1.0
    """Time without a measurement after which a keypoint is forgotten."""
    acceleration_m_s2: float = 20.0
    """Largest acceleration of a track, with several cameras."""
    jump_m: float = 0.1
    """Largest distance of a measured body from the predicted one, at once."""
    evidence: int = 8
    """Views beyond those that a birth takes, summed over frames, of a confirmed track."""
    view_share: float = 0.4
    """Least share of the other cameras that look at the place which show a confirmed track: phantoms of two
    views may meet where the others see nobody."""
    support: float = 0.4
    """Share of recent frames in which a track was measured above which it is confirmed."""
    lost_support: float = 0.08
    """Share of recent frames in which a track was measured below which it ends."""
    young_s: float = 0.15
    """Least time without a measurement after which an unconfirmed track ends."""
    young_support: float = 0.3
    """``lost_support`` of an unconfirmed track."""


LIMITS: Final = TrackThresholds()
_TRUNK: Final = tuple(BODY_25.index(n) for n in ("Neck", "RShoulder", "LShoulder", "MidHip", "RHip", "LHip"))


@dataclass(frozen=True)
class Tracks:
    """Restart state of the tracker: N tracks, and what else it remembers."""

    serial: Ints
    """(N,) number of the track, in order of birth"""
    id: Ints
    """(N,) id of the person, −1 for an unconfirmed track"""
    points: Array
    """(N, K, 3) keypoints, metres, world, NaN where unknown; with a single camera pixels, and 0"""
    point_s: Array
    """(N, K) time of each keypoint's last measurement; −inf for never"""
    velocity: Array
    """(N, 3) a second"""
    time_s: Array
    """(N,) time of ``points``"""
    measured_s: Array
    """(N,) time of the last measurement: by two views, where there are several"""
    born_s: Array
    """(N,)"""
    birthplace: Array
    """(N, 3) middle of the trunk at birth"""
    place: Array
    """(N, 3) middle of the trunk when it was measured last"""
    support: Array
    """(N,) share of recent frames in which it was measured"""
    evidence: Array
    """(N,) views beyond the first (two, where there are several), summed over frames"""
    age: Array
    """(N,) frames since birth"""
    mirror_gain: Array
    """(N,) cumulative sum, at least 0, of the agreement gained by mirroring its detections"""
    unmirrored_s: Array
    """(N,) time when that sum was 0 last; −inf for never"""
    lost: Array = field(default_factory=lambda: np.zeros((0, 5)))
    """(L, 5) people whose track has ended and who may return: id, middle of the trunk, time of the last
    measurement"""
    clutter: Array = field(default_factory=lambda: np.zeros((0, _CLUTTER_COLUMNS)))
    """(R, 5 + 2 K) stationary clutter: view, time of the first and the last detection, serial of the track
    that may have it or −1, largest shift in pixels, keypoints in undistorted pixels, NaN where missing"""
    next_serial: int = 0
    next_id: int = 0
    brief: int = 0
    """Tracks that ended unconfirmed, present for half of the time that confirms one or more."""
    doubtful: int = 0
    """Tracks that ended unconfirmed, as too few of the cameras that look there showed them."""

    @classmethod
    def none(cls) -> Self:
        k = len(BODY_25)
        number, zero = np.zeros(0, np.int64), np.zeros(0)
        points, times, xyz = np.zeros((0, k, 3)), np.zeros((0, k)), np.zeros((0, 3))
        return cls(number, number, points, times, xyz, zero, zero, zero, xyz, xyz, *(zero,) * 5)

    def take(self, index: Ints) -> Self:
        """Select tracks, in that order."""
        return replace(self, **{name: getattr(self, name)[index] for name in TRACK_ARRAYS})

    @property
    def confirmed(self) -> dict[int, int]:
        """Serial of each confirmed track → the person's id."""
        rows = zip(self.serial.tolist(), self.id.tolist(), strict=True)
        return {serial: person for serial, person in rows if person >= 0}

    def table(self) -> Array:
        """The state as one array (2 MAX_TRACKS + MAX_CLUTTER + 1, C): a row a track, a lost person and a
        stationary detection, and one of the numbers; NaN elsewhere."""
        arrays = [getattr(self, name) for name in TRACK_ARRAYS]
        rows = np.concatenate([x.reshape(len(x), math.prod(x.shape[1:])) for x in arrays], 1)
        out = np.full((2 * MAX_TRACKS + MAX_CLUTTER + 1, rows.shape[1]), np.nan)
        out[: len(rows)] = rows
        out[MAX_TRACKS : MAX_TRACKS + len(self.lost), :5] = self.lost
        out[2 * MAX_TRACKS : 2 * MAX_TRACKS + len(self.clutter), :_CLUTTER_COLUMNS] = self.clutter
        out[-1, : len(_NUMBERS)] = [getattr(self, name) for name in _NUMBERS]
        return out

    @classmethod
    def of_table(cls, table: Array) -> Self:
        """Inverse of ``table``. Raises ``InputError`` for a table of another version."""
        if table.shape != (shape := cls.none().table().shape):
            raise InputError(
                "the results were begun by another version of this software: their tracks are a table of "
                f"{table.shape}, not {shape}. Start again with --overwrite, or choose another --out."
            )
        sections = np.split(table[:-1], [MAX_TRACKS, 2 * MAX_TRACKS])
        rows, lost, clutter = (part[np.isfinite(part[:, 0])] for part in sections)
        empty, at = cls.none(), 0
        numbers = table[-1, : len(_NUMBERS)].astype(int).tolist()
        values: dict[str, Any] = dict(zip(_NUMBERS, numbers, strict=True))
        for name in TRACK_ARRAYS:
            like = getattr(empty, name)
            width = math.prod(like.shape[1:])
            values[name] = rows[:, at : at + width].reshape(-1, *like.shape[1:]).astype(like.dtype)
            at += width
        return replace(empty, **values, lost=lost[:, :5], clutter=clutter[:, :_CLUTTER_COLUMNS])


_NUMBERS: Final = ("next_serial", "next_id", "brief", "doubtful")
TRACK_ARRAYS: Final = tuple(f.name for f in fields(Tracks) if f.name not in ("lost", "clutter", *_NUMBERS))


def trunk_middle(points: Array) -> Array:
    """(N, 3) median of the trunk's keypoints, or of all where these are missing."""
    trunk = finite_median(points[:, _TRUNK], 1)
    return np.where(np.isfinite(trunk), trunk, finite_median(points, 1))
