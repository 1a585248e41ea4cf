"""One time line for cameras that started, ran and stopped differently."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Array

_ROUNDING_S = 1e-3
"""Containers round time stamps, Matroska to a millisecond."""
_SAME = 0.05
"""Share of a frame's interval by which a frame is off an instant and still shows it."""
MAX_GAP_FRAMES = 2
"""Nothing is interpolated between frames that are further apart."""


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
    """(V, T) by how much later than the camera's frame an instant is, as a share of the interval to its
    neighbour on that side; 0 where that frame shows the instant itself. None: everywhere."""

    def __len__(self) -> int:
        return len(self.time_s)

    @property
    def duration_s(self) -> float:
        return float(len(self) / self.rate)

    def select(self, views: Sequence[int]) -> Timeline:
        """The time line of these cameras."""
        keep = list(views)
        later = None if self.later is None else self.later[keep]
        rates = tuple(self.rates[v] for v in keep)
        return replace(self, frame_index=self.frame_index[keep], rates=rates, later=later)

    def cut(self, start: int, end: int | None) -> Timeline:
        """Instants ``start:end``, seconds from the first of them."""
        part = slice(start, end)
        time_s = self.time_s[part]
        later = None if self.later is None else self.later[:, part]
        return replace(self, time_s=time_s - time_s[:1], frame_index=self.frame_index[:, part], later=later)


def common_timeline(
    times_s: Sequence[Array], rates: Sequence[Fraction], first: Sequence[int] | None = None
) -> Timeline:
    """Instants at the rate of the slowest camera (the first of equals) in the span that all cameras share.

    times_s: increasing time stamps of each camera on a common clock, seconds. rates: their frames a second.
    first: the frame of each camera that its span begins with, 0 if not given. The instants are evenly spaced
    from the slowest camera's first frame on, so frames that it dropped are missing and do not shorten time.
    Every camera gives its nearest frame, no further away than half of its own frame interval. The time line
    is empty when the cameras share no time.
    """
    skip = [0] * len(times_s) if first is None else list(first)
    spans = [t[s:] for t, s in zip(times_s, skip, strict=True)]
    half = [0.5 / float(rate) + min(_ROUNDING_S, 0.25 / float(rate)) for rate in rates]
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
        later[v] = np.where(index[v] >= 0, _share(times, nearest, grid, 1 / float(rates[v])), 0)
    between = later if later.any() else None
    return Timeline(rates[slowest], np.arange(len(grid)) / rate, index, tuple(rates), between)


def _share(times: Array, nearest: NDArray[np.int64], grid: Array, interval: float) -> Array:
    """(T,) by how much later than the nearest of a camera's frames instants are, as ``Timeline.later``."""
    late = grid - times[nearest]
    beside = np.clip(nearest + np.sign(late).astype(np.int64), 0, len(times) - 1)
    apart = np.abs(times[beside] - times[nearest])
    near = np.abs(late) <= max(_ROUNDING_S, _SAME * interval)
    usable = ~near & (apart > 0) & (apart <= MAX_GAP_FRAMES * interval + _ROUNDING_S)
    return np.where(usable, late / np.where(apart > 0, apart, 1), 0)


def spread(frames: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most ``count`` of these frames, evenly spread, the first and the last among them."""
    at = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(np.int64)
    return frames[at]
