"""Views that show the same instant, put together anew in every epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class ViewGroups:
    """Instants with some views each, in groups of up to ``views``.

    In an epoch every view of every instant is in one group; which are together changes from epoch to epoch.
    The last group of an instant has what is left.
    """

    def __init__(self, members: Sequence[Sequence[int]], views: int, seed: int) -> None:
        """members: of each instant, the numbers of its views."""
        self.views, self.seed = views, seed
        self._members = np.array([m for group in members for m in group], np.int64)
        self._ends = np.cumsum([len(group) for group in members], dtype=np.int64)
        counts = np.diff(self._ends, prepend=0)
        self._last = np.cumsum(-(-counts // views))

    def __len__(self) -> int:
        """Groups of an epoch."""
        return int(self._last[-1]) if len(self._last) else 0

    def __getitem__(self, index: int) -> tuple[int, NDArray[np.int64]]:
        """The instant of a group, and its members. ``index // len`` is the epoch."""
        epoch, at = divmod(index, len(self))
        instant = int(np.searchsorted(self._last, at, side="right"))
        start, stop = int(self._ends[instant - 1]) if instant else 0, int(self._ends[instant])
        first = at - (int(self._last[instant - 1]) if instant else 0)
        order = np.random.default_rng([self.seed, epoch, instant]).permutation(stop - start)
        return instant, self._members[start + np.sort(order[first * self.views : (first + 1) * self.views])]
