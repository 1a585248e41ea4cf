"""A results store over time, at a bounded number of points: for plots of recordings of any length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.store import Store

Floats = NDArray[np.float32]

BINS: Final = 4000
"""Points of the curves of one person: a few for each pixel of a plot, so that one can look closer ..."""
FEWEST_BINS: Final = 1000
"""... and of each of many people, who share them: one for each pixel."""


@dataclass(frozen=True)
class Curve:
    """Rows of values over time, (..., B) each; NaN where a bin has none."""

    low: Floats
    mean: Floats
    high: Floats


@dataclass(frozen=True)
class Curves:
    """A store over time: V cameras, P people, B bins of consecutive frames. NaN where nothing is known."""

    first_frame: NDArray[np.int64]
    """(B,) of each bin."""
    time_s: NDArray[np.float64]
    """(B,) of that frame."""
    reprojection_px: Curve
    """(V, B) mean distance between fitted and seen keypoints, of the frames in which a person was fitted."""
    keypoints_seen: Floats
    """(V, B) share of a person's keypoints that a camera sees, of the person of whom it sees most."""
    pictures: Floats
    """(V, B) share of frames of which the camera has a picture."""
    fitted: Floats
    """(P, B) share of frames with a fitted pose."""
    unsure: Floats
    """(P, B) share of frames with a pose that was not accepted: bridged over a gap, or too far off."""
    angles_deg: Curve
    """(P, A, B) joint angles as the store names them, frames of unsure poses included. Means are those of
    directions: 180 and −180 are one."""
    acceleration_mm: Curve
    """(P, B) mean length of the joints' second difference over fitted frames, mm/frame²."""
    joints: Floats
    """(P, B, J, 3) of each bin's first frame, metres, world."""


class _Bins:
    """Least, mean and greatest of values that arrive in order of time."""

    def __init__(self, bins: int, *rows: int) -> None:
        self._low = np.full((*rows, bins), np.nan)
        self._high = self._low.copy()
        self._total = np.zeros((*rows, bins))
        self._count = np.zeros((*rows, bins), dtype=np.int64)

    def add(self, bins: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Values (*rows, T) of frames that lie in these bins (T,), which do not decrease; NaN counts not."""
        at, first = np.unique(bins, return_index=True)
        known = np.isfinite(values)
        self._low[..., at] = np.fmin(self._low[..., at], np.fmin.reduceat(values, first, -1))
        self._high[..., at] = np.fmax(self._high[..., at], np.fmax.reduceat(values, first, -1))
        self._total[..., at] += np.add.reduceat(np.where(known, values, 0), first, -1)
        self._count[..., at] += np.add.reduceat(known.astype(np.int64), first, -1)

    def curve(self) -> Curve:
        return Curve(self._low.astype(np.float32), self.mean(), self._high.astype(np.float32))

    def mean(self) -> Floats:
        with np.errstate(invalid="ignore"):
            return (self._total / np.where(self._count, self._count, np.nan)).astype(np.float32)


def curves(store: Store, bins: int | None = None) -> Curves:
    """Read a store's finished windows; at most ``bins`` points a curve, one a frame where there are fewer.

    Without ``bins``, as many as ``BINS`` and the number of people give.
    """
    c = store.contents
    views, frames, people = len(c.rig), len(c.time_s), len(store.ids)
    bins = min(bins or max(FEWEST_BINS, BINS // max(people, 1)), frames)
    first_frame = -(-np.arange(bins) * frames // bins)  # the first whose frame · bins // frames is the bin
    reprojection, seen = _Bins(bins, views), _Bins(bins, views)
    fitted, unsure = _Bins(bins, people), _Bins(bins, people)
    angles, sine, cosine = (_Bins(bins, people, len(c.angles)) for _ in range(3))
    acceleration = _Bins(bins, people)
    sampled = np.full((people, bins, len(c.skeleton), 3), np.nan, dtype=np.float32)
    before = np.full((people, 2, len(c.skeleton), 3), np.nan)
    for first, last in store.stretches():
        a, b = store.span(first)[0], store.span(last)[1]
        names = ("joints", "valid", "reprojection_px", "keypoints_2d")
        joints, valid, error_px, keypoints = (
            np.asarray(store.people(store.ids, name, a, b, axis=0)) for name in names
        )
        joints = joints.astype(np.float64)
        number = np.arange(a, b)
        at = number * bins // frames
        for p in range(people):
            reprojection.add(at, np.where(valid[p], error_px[p].astype(np.float64).T, np.nan))
        seen.add(at, (keypoints[..., 2] > 0).mean(3).max(0))
        posed = np.isfinite(joints).all((2, 3))
        fitted.add(at, valid.astype(float))
        unsure.add(at, (posed & ~valid).astype(float))
        if c.angles:
            measured = np.asarray(store.people(store.ids, "angles", a, b, axis=0), np.float64).swapaxes(1, 2)
            angles.add(at, measured)
            sine.add(at, np.sin(np.radians(measured)))
            cosine.add(at, np.cos(np.radians(measured)))
        sure = np.where(valid[..., None, None], joints, np.nan)
        with_past = np.concatenate([before, sure], 1)
        acceleration.add(at, 1000 * np.linalg.norm(np.diff(with_past, 2, axis=1), axis=-1).mean(-1))
        before = with_past[:, -2:]
        wanted = np.flatnonzero(first_frame[at] == number)
        sampled[:, at[wanted]] = joints[:, wanted]
    shown = _Bins(bins, views)
    shown.add(np.arange(frames) * bins // frames, (c.frame_index >= 0).astype(float))
    return Curves(
        first_frame=first_frame,
        time_s=c.time_s[first_frame],
        reprojection_px=reprojection.curve(),
        keypoints_seen=seen.mean(),
        pictures=shown.mean(),
        fitted=fitted.mean(),
        unsure=unsure.mean(),
        angles_deg=replace(angles.curve(), mean=np.degrees(np.arctan2(sine.mean(), cosine.mean()))),
        acceleration_mm=acceleration.curve(),
        joints=sampled,
    )
