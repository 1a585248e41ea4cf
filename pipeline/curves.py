"""Plot curves of a results store, with a bounded number of points for recordings of any length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.store import Store

Floats = NDArray[np.float32]

TOTAL_BINS: Final = 4000
"""Points of a curve, shared by all people: for one person a few per pixel of a plot, to zoom in."""
MIN_BINS: Final = 1000
"""Fewest points of a curve for many people: one per pixel of a plot."""


@dataclass(frozen=True)
class Curve:
    """Minimum, mean and maximum (..., B) of rows of values in bins over time; NaN in an empty bin."""

    low: Floats
    mean: Floats
    high: Floats


@dataclass(frozen=True)
class Curves:
    """Curves of a store: V cameras, P people, B bins of consecutive frames. NaN where there is no data."""

    first_frame: NDArray[np.int64]
    """(B,)"""
    time_s: NDArray[np.float64]
    """(B,) of ``first_frame``."""
    reprojection_px: Curve
    """(V, B) mean reprojection error of accepted fits."""
    keypoints_seen: Floats
    """(V, B) share of keypoints that a camera sees of the person of whom it sees most."""
    pictures: Floats
    """(V, B) share of frames with a picture."""
    fitted: Floats
    """(P, B) share of frames with an accepted pose."""
    unsure: Floats
    """(P, B) share of frames with a pose that is not accepted: bridged over a gap, or too far off."""
    angles_deg: Curve
    """(P, A, B) joint angles of all poses, accepted or not; means are circular."""
    acceleration_mm: Curve
    """(P, B) mean length of the joints' second difference over accepted frames, mm/frame²."""
    joints: Floats
    """(P, B, J, 3) of each bin's first frame, metres, world."""


class _Bins:
    """Minimum, mean and maximum per bin of values added in time order."""

    def __init__(self, bins: int, *rows: int) -> None:
        self._low = np.full((*rows, bins), np.nan)
        self._high = self._low.copy()
        self._total = np.zeros((*rows, bins))
        self._count = np.zeros((*rows, bins), dtype=np.int64)

    def add(self, bins: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Add values (*rows, T) of frames in these bins (T,), which do not decrease; NaN is ignored."""
        at, first = np.unique(bins, return_index=True)
        finite = np.isfinite(values)
        self._low[..., at] = np.fmin(self._low[..., at], np.fmin.reduceat(values, first, -1))
        self._high[..., at] = np.fmax(self._high[..., at], np.fmax.reduceat(values, first, -1))
        self._total[..., at] += np.add.reduceat(np.where(finite, values, 0), first, -1)
        self._count[..., at] += np.add.reduceat(finite.astype(np.int64), first, -1)

    def curve(self) -> Curve:
        return Curve(self._low.astype(np.float32), self.mean(), self._high.astype(np.float32))

    def mean(self) -> Floats:
        with np.errstate(invalid="ignore"):
            return (self._total / np.where(self._count, self._count, np.nan)).astype(np.float32)


def read_curves(store: Store, bins: int | None = None) -> Curves:
    """Read the curves of a store's finished windows.

    bins: most points of a curve, at most one a frame; default: ``TOTAL_BINS`` by the number of people, at
    least ``MIN_BINS``.
    """
    c = store.contents
    views, frames, people = len(c.rig), len(c.time_s), len(store.ids)
    bins = min(bins or max(MIN_BINS, TOTAL_BINS // max(people, 1)), frames)
    first_frame = -(-np.arange(bins) * frames // bins)  # inverse of frame · bins // frames
    reprojection, seen = _Bins(bins, views), _Bins(bins, views)
    fitted, unsure = _Bins(bins, people), _Bins(bins, people)
    angles, sine, cosine = (_Bins(bins, people, len(c.angles)) for _ in range(3))
    acceleration = _Bins(bins, people)
    sampled_joints = np.full((people, bins, len(c.skeleton), 3), np.nan, dtype=np.float32)
    last_two = np.full((people, 2, len(c.skeleton), 3), np.nan)
    for first, last in store.blocks():
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
        accepted = np.where(valid[..., None, None], joints, np.nan)
        with_past = np.concatenate([last_two, accepted], 1)
        acceleration.add(at, 1000 * np.linalg.norm(np.diff(with_past, 2, axis=1), axis=-1).mean(-1))
        last_two = with_past[:, -2:]
        wanted = np.flatnonzero(first_frame[at] == number)
        sampled_joints[:, at[wanted]] = joints[:, wanted]
    pictures = _Bins(bins, views)
    pictures.add(np.arange(frames) * bins // frames, (c.frame_index >= 0).astype(float))
    return Curves(
        first_frame=first_frame,
        time_s=c.time_s[first_frame],
        reprojection_px=reprojection.curve(),
        keypoints_seen=seen.mean(),
        pictures=pictures.mean(),
        fitted=fitted.mean(),
        unsure=unsure.mean(),
        angles_deg=replace(angles.curve(), mean=np.degrees(np.arctan2(sine.mean(), cosine.mean()))),
        acceleration_mm=acceleration.curve(),
        joints=sampled_joints,
    )
