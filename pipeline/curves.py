"""Plot curves of a results store, with a bounded number of points for recordings of any length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.array_types import Array, Floats
from pipeline.store import Store

TOTAL_BINS: Final = 4000
"""Points of a curve, divided by the mean number of people: for one, a few per pixel of a plot."""
MIN_BINS: Final = 1000
"""Fewest points of a curve for many people at once: one per pixel of a plot."""


@dataclass(frozen=True)
class Curve:
    """Minimum, mean and maximum (..., B) of rows of values in bins over time; NaN in an empty bin."""

    low: Floats
    mean: Floats
    high: Floats


@dataclass(frozen=True)
class Curves:
    """Curves of a store: V cameras, P people, B bins of consecutive frames. NaN where there is no data.

    The bins of a person are those of the frames with the person; the bins of all people, S, are concatenated.
    """

    first_frame: NDArray[np.int64]
    """(B,)"""
    time_s: NDArray[np.float64]
    """(B,) of ``first_frame``."""
    spans: NDArray[np.int64]
    """(P, 2) each person's first bin, and the one after the last."""
    reprojection_px: Curve
    """(V, B) mean reprojection error of accepted fits."""
    keypoints_seen: Floats
    """(V, B) share of visible keypoints, of the person with most of them in the camera."""
    pictures: Floats
    """(V, B) share of frames with a picture."""
    fitted: Floats
    """(S,) share of frames with an accepted pose."""
    unsure: Floats
    """(S,) share of frames with a pose that is not accepted: bridged over a gap, or too far off."""
    angles_deg: Curve
    """(A, S) joint angles of all poses, accepted or not; means are circular."""
    acceleration_mm: Curve
    """(S,) mean length of the joints' second difference over accepted frames, mm/frame²."""
    joints: Floats
    """(S, J, 3) of each bin's first frame, metres, world."""


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

    bins: most points of a curve, at most one a frame; default: ``TOTAL_BINS`` by the mean number of people,
    at least ``MIN_BINS``.
    """
    c = store.contents
    views, frames, ids = len(c.rig), len(c.time_s), store.ids
    windows = {person: w for person in ids if len(w := store.windows_of(person))}
    frames_of = {person: (store.span(w[0])[0], store.span(w[-1])[1]) for person, w in windows.items()}
    mean_people = -(-sum(b - a for a, b in frames_of.values()) // max(frames, 1))
    bins = min(bins or max(MIN_BINS, TOTAL_BINS // max(mean_people, 1)), frames)
    first_frame = -(-np.arange(bins) * frames // bins)  # inverse of frame · bins // frames
    spans = np.array([_bins_of(frames_of.get(p, (0, 0)), bins, frames) for p in ids], np.int64).reshape(-1, 2)
    # The people's bins are concatenated; a person's bin 0 would be at ``origin``.
    origin = dict(zip(ids, np.cumsum(spans[:, 1] - spans[:, 0]) - spans[:, 1], strict=True))
    people_bins = int((spans[:, 1] - spans[:, 0]).sum())
    reprojection, seen = _Bins(bins, views), _Bins(bins, views)
    fitted, unsure, acceleration = _Bins(people_bins), _Bins(people_bins), _Bins(people_bins)
    angles, sine, cosine = (_Bins(people_bins, len(c.angles)) for _ in range(3))
    sampled_joints = np.full((people_bins, len(c.skeleton), 3), np.nan, dtype=np.float32)
    last_two: dict[int, Array] = {}
    for first, last in store.blocks():
        start, stop = store.span(first)[0], store.span(last)[1]
        most_seen = np.zeros((views, stop - start))
        previous, last_two = last_two, {}
        for person in store.present(first, last):
            a, b = max(start, frames_of[person][0]), min(stop, frames_of[person][1])
            number = np.arange(a, b)
            common = number * bins // frames
            at = common + origin[person]
            names = ("joints", "valid", "reprojection_px", "keypoints_2d")
            joints, valid, error_px, keypoints = (store.array(f"people/{person}/{n}", a, b) for n in names)
            joints = joints.astype(np.float64)
            reprojection.add(common, np.where(valid, error_px.astype(np.float64).T, np.nan))
            share = (keypoints[..., 2] > 0).mean(2)
            most_seen[:, a - start : b - start] = np.maximum(most_seen[:, a - start : b - start], share)
            posed = np.isfinite(joints).all((1, 2))
            fitted.add(at, valid.astype(float))
            unsure.add(at, (posed & ~valid).astype(float))
            if c.angles:
                measured = store.array(f"people/{person}/angles", a, b).T.astype(np.float64)
                angles.add(at, measured)
                sine.add(at, np.sin(np.radians(measured)))
                cosine.add(at, np.cos(np.radians(measured)))
            accepted = np.where(valid[:, None, None], joints, np.nan)
            past = previous.get(person, np.full((2, *accepted.shape[1:]), np.nan))
            with_past = np.concatenate([past, accepted])
            acceleration.add(at, 1000 * np.linalg.norm(np.diff(with_past, 2, axis=0), axis=-1).mean(-1))
            last_two[person] = with_past[-2:]
            starts = np.flatnonzero(first_frame[common] == number)
            sampled_joints[at[starts]] = joints[starts]
        seen.add(np.arange(start, stop) * bins // frames, most_seen)
    pictures = _Bins(bins, views)
    pictures.add(np.arange(frames) * bins // frames, (c.frame_index >= 0).astype(float))
    return Curves(
        first_frame=first_frame,
        time_s=c.time_s[first_frame],
        spans=spans,
        reprojection_px=reprojection.curve(),
        keypoints_seen=seen.mean(),
        pictures=pictures.mean(),
        fitted=fitted.mean(),
        unsure=unsure.mean(),
        angles_deg=replace(angles.curve(), mean=np.degrees(np.arctan2(sine.mean(), cosine.mean()))),
        acceleration_mm=acceleration.curve(),
        joints=sampled_joints,
    )


def _bins_of(span: tuple[int, int], bins: int, frames: int) -> tuple[int, int]:
    """First bin of a span of frames, and the bin after its last."""
    a, b = span
    return (a * bins // frames, (b - 1) * bins // frames + 1) if b else (0, 0)
