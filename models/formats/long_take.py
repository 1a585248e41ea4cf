"""Take of any length, of which a part at a time is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.body import Body
from models.formats.take import Take, frames_around
from pipeline.array_types import Array

PIECE: Final = 1000
"""Frames in memory at once."""


@dataclass(frozen=True, eq=False)
class LongTake:
    """One person over T frames, as every export format takes it: what is short, and the frames by pieces."""

    first: int
    """Number of the first frame."""
    rate: Fraction
    """Frames a second."""
    time_s: Array
    """(T,)"""
    posed: NDArray[np.bool_]
    """(T,) there is a pose."""
    valid: NDArray[np.bool_]
    """(T,) the fit was accepted."""
    betas: Array
    """(B,)"""
    point_names: tuple[str, ...]
    """Names of the keypoints."""
    angle_names: tuple[str, ...]
    cut: Callable[[int, int], Take]
    """Frames ``start:stop``, counted from the take's first."""
    events_s: Mapping[str, Array] = field(default_factory=dict)
    """Times of each kind of event, seconds."""
    piece: int = PIECE
    """Frames of a piece."""

    @staticmethod
    def of(take: Take) -> LongTake:
        """The take, which is in memory."""
        return LongTake(
            take.first, take.rate, take.time_s, take.posed, take.valid, take.betas, take.point_names,
            take.angle_names, take.part,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.time_s)

    def pieces(self) -> Iterator[Take]:
        """All frames, some at a time, in order."""
        for start in range(0, len(self), self.piece):
            yield self.cut(start, min(start + self.piece, len(self)))

    def turned(self, turn: Array, body: Body) -> LongTake:
        """``Take.turned`` of every frame."""
        return replace(self, cut=lambda start, stop: self.cut(start, stop).turned(turn, body))

    def without_gaps(self, *, hold: bool = False) -> LongTake:
        """``Take.without_gaps`` over the whole take. Raises ``ValueError`` when no frame has a pose."""
        return self._bridged(lambda take: take.without_gaps(hold=hold))

    def filled(self, body: Body, *, hold: bool = False) -> LongTake:
        """``Take.filled`` over the whole take. Raises as ``without_gaps``."""
        return replace(
            self._bridged(lambda take: take.filled(body, hold=hold)), valid=np.ones_like(self.valid)
        )

    def _bridged(self, bridge: Callable[[Take], Take]) -> LongTake:
        """Every piece as ``bridge`` makes it, of the piece and the nearest poses before and after it."""
        known = np.flatnonzero(self.posed)
        if not len(known):
            raise ValueError("no frame has a pose")

        def cut(start: int, stop: int) -> Take:
            before = known[known < start][-1:] if not self.posed[start] else known[:0]
            after = known[known >= stop][:1] if not self.posed[stop - 1] else known[:0]
            own = self.cut(start, stop)
            takes = [*(self.cut(i, i + 1) for i in before), own, *(self.cut(i, i + 1) for i in after)]
            whole = bridge(Take.joined(takes) if len(takes) > 1 else own)
            return replace(
                whole.part(len(before), len(before) + stop - start), first=own.first, views=own.views
            )

        return replace(self, posed=np.ones_like(self.posed), cut=cut)

    def resampled(self, rate: Fraction, body: Body) -> LongTake:
        """Motion at another rate, from the first frame on, by slerp between the two frames around each time.

        A time of which either has no pose has none. Points are taken to move straight between frames.
        """
        count = int((self.time_s[-1] - self.time_s[0]) * float(rate) + 1e-6) + 1
        at = self.time_s[0] + np.arange(count) / float(rate)
        before, after, share = frames_around(self.time_s, np.arange(len(self)), at)
        share = np.where(share > 1 - 1e-6, 1, np.where(share < 1e-6, 0, share))
        before, after = np.where(share == 1, after, before), np.where(share == 0, before, after)
        first = round(self.first * rate / self.rate)

        def cut(start: int, stop: int) -> Take:
            own = slice(start, stop)
            lowest, last = int(before[own].min()), int(after[own].max())
            take = self.cut(lowest, last + 1)
            moved = take.mixed(before[own] - lowest, after[own] - lowest, share[own], body)
            return replace(moved, first=first + start, rate=rate, time_s=at[own])

        return replace(
            self,
            first=first,
            rate=rate,
            time_s=at,
            posed=self.posed[before] & self.posed[after],
            valid=self.valid[before] & self.valid[after],
            cut=cut,
            piece=max(1, min(self.piece, int(self.piece * rate / self.rate))),
        )
