"""Common time line of cameras with different start, end and frame rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pipeline.array_types import Array

_STAMP_ROUNDING_S = 1e-3
"""Containers round time stamps, Matroska to a millisecond."""
_COINCIDENCE_SHARE = 0.05
"""Largest distance of a frame from an instant with which it coincides, by the frame interval."""
MAX_GAP_FRAMES = 2
"""Largest distance of two frames, in frame intervals, between which keypoints are interpolated."""


@dataclass(frozen=True)
class Timeline:
    """The common time line: T instants, and every camera's frame at each."""

    rate: Fraction
    """Frames a second: the lowest among the cameras."""
    time_s: Array
    """(T,) seconds from the first."""
    frame_index: NDArray[np.int64]
    """(V, T) index into the camera's own frames; −1 where it has none at that time."""
    rates: tuple[Fraction, ...]
    """Frames a second of each camera's own clock."""
    later: Array | None = None
    """(V, T) signed time from the camera's frame to the instant, by the interval to the frame's neighbour on
    that side; 0 where the frame coincides with it. None: 0 everywhere."""

    def __len__(self) -> int:
        return len(self.time_s)

    @property
    def duration_s(self) -> float:
        return float(len(self) / self.rate)

    def select(self, views: Sequence[int]) -> Timeline:
        """Time line of some of the cameras."""
        keep = list(views)
        later = None if self.later is None else self.later[keep]
        rates = tuple(self.rates[v] for v in keep)
        return replace(self, frame_index=self.frame_index[keep], rates=rates, later=later)

    def cut(self, start: int, end: int | None) -> Timeline:
        """Slice instants ``start:end``; ``time_s`` starts at 0 again."""
        part = slice(start, end)
        time_s = self.time_s[part]
        later = None if self.later is None else self.later[:, part]
        return replace(self, time_s=time_s - time_s[:1], frame_index=self.frame_index[:, part], later=later)


def common_timeline(
    times_s: Sequence[Array], rates: Sequence[Fraction], first: Sequence[int] | None = None
) -> Timeline:
    """Time line at the rate of the slowest camera (the first of equals) over the span that all cameras share.

    times_s: increasing time stamps of each camera on a common clock, seconds. rates: frames a second of each.
    first: first frame of each camera's span, default 0. Instants are evenly spaced from the slowest camera's
    first frame on: a frame that it dropped is missing and does not shorten time. Each camera gives its
    nearest frame within half of its frame interval. The time line is empty when the cameras share no time.
    """
    skip = first or [0] * len(times_s)
    spans = [t[s:] for t, s in zip(times_s, skip, strict=True)]
    half = [0.5 / float(rate) + min(_STAMP_ROUNDING_S, 0.25 / float(rate)) for rate in rates]
    slowest = min(range(len(rates)), key=lambda v: rates[v])
    rate, origin = float(rates[slowest]), spans[slowest][0]
    start = max(t[0] - h for t, h in zip(spans, half, strict=True))
    end = min(t[-1] + h for t, h in zip(spans, half, strict=True))
    low, high = math.ceil((start - origin) * rate - 1e-6), math.floor((end - origin) * rate + 1e-6)
    count = np.arange(max(low, 0), high + 1)
    grid = origin + count / rate
    index = np.full((len(spans), len(grid)), -1, dtype=np.int64)
    later = np.zeros(index.shape)
    for v, times in enumerate(spans):
        right = np.minimum(np.searchsorted(times, grid), len(times) - 1)
        left = np.maximum(right - 1, 0)
        nearest = np.where(np.abs(grid - times[left]) <= np.abs(times[right] - grid), left, right)
        index[v] = np.where(np.abs(times[nearest] - grid) <= half[v], nearest + skip[v], -1)
        later[v] = np.where(index[v] >= 0, _lateness(times, nearest, grid, 1 / float(rates[v])), 0)
    time_s = np.arange(len(grid)) / rate
    return Timeline(rates[slowest], time_s, index, tuple(rates), later if later.any() else None)


def _lateness(times: Array, nearest: NDArray[np.int64], grid: Array, interval: float) -> Array:
    """``Timeline.later`` (T,) of one camera, from its frames' times and the one nearest to each instant."""
    late = grid - times[nearest]
    neighbour = np.clip(nearest + np.sign(late).astype(np.int64), 0, len(times) - 1)
    gap = np.abs(times[neighbour] - times[nearest])
    coincides = np.abs(late) <= max(_STAMP_ROUNDING_S, _COINCIDENCE_SHARE * interval)
    usable = ~coincides & (gap > 0) & (gap <= MAX_GAP_FRAMES * interval + _STAMP_ROUNDING_S)
    return np.where(usable, late / np.where(gap > 0, gap, 1), 0)


def spread(frames: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most ``count`` evenly spaced ones of these frames, with the first and the last."""
    at = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(np.int64)
    return frames[at]
