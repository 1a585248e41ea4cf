"""Samples of the image regressors: people in frames, each in the crops of several views.

Axes: N people in frames, V views, S pixels of a crop's side. A crop is the picture of a pinhole camera of its
own: ``K`` takes metres in its axes (x right, y down, z forward) to its pixels, whose first has its centre at
(0, 0); turning the crop about any of its pixels rolls that camera. What is not known is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batches import TensorBatch, axes
from pipeline.skeleton import EXTRA_24, SMPL_24


@dataclass(frozen=True, repr=False)
class Sample:
    """One person in one frame, before any augmentation, with room around the crop."""

    id: str
    """``dataset/subject/sequence/frame``; the same in every run, whatever else is trained on."""
    cameras: tuple[str, ...]
    """V names. ``dataset/subject/sequence/camera/frame`` is one picture."""
    pictures: tuple[NDArray[np.uint8], ...]
    """V pictures (H, W, 3) RGB, of any sizes: the person with a margin."""
    box: NDArray[np.float64]
    """(V, 3) centre x, y and side, pixels of the picture, of the square that becomes the crop; NaN where the
    view does not show the person."""
    K: NDArray[np.float64]
    """(V, 3, 3) of the pictures, pixels."""
    R: NDArray[np.float64]
    """(V, 3, 3) world to camera; NaN where there is no calibration."""
    t: NDArray[np.float64]
    """(V, 3) metres, world to camera; NaN where there is no calibration."""
    xy_px: NDArray[np.float64]
    """(V, K, 2) keypoints of ``SPIN_49``, pixels of the picture: BODY_25, then ``EXTRA_24``."""
    confidence: NDArray[np.float64]
    """(V, K), 0 where missing."""
    joints: NDArray[np.float64]
    """(V, J, 3) true ``EXTRA_24`` joints in each camera's axes, metres, from any origin; NaN unknown."""
    orient: NDArray[np.float64]
    """(V, 3, 3) true rotation of the root, body → camera; NaN unknown."""
    body_pose: NDArray[np.float64]
    """(L, 3, 3) true rotations of SMPL's joints but the root; NaN unknown."""
    betas: NDArray[np.float64]
    """(10,) true shape; NaN unknown."""


@dataclass(frozen=True)
class Sampling:
    """Views and crops that a source makes samples of."""

    views: int
    """At most, of those that show the person; drawn anew in every epoch."""
    size: int
    """Side of the crops that are trained on, pixels."""
    seed: int = 0


def box_amid_room(pictures: Sequence[NDArray[np.uint8]], size: int) -> NDArray[np.float64]:
    """Boxes (V, 3) of crops of ``size`` pixels in the middle of pictures; NaN where one is black."""
    middles = [[(len(p) - 1) / 2, (len(p) - 1) / 2, size if p.any() else np.nan] for p in pictures]
    boxes = np.array(middles, np.float64)
    return np.where(np.isnan(boxes[:, 2:]), np.nan, boxes)


@dataclass(frozen=True, repr=False)
class Samples(TensorBatch):
    """A batch, augmented. Float32 but for the images."""

    ids: tuple[str, ...]
    cameras: tuple[tuple[str, ...], ...]
    flipped: Tensor = axes("N")
    """Left and right are exchanged, in a sample's views, cameras, keypoints and truth alike."""
    rolled: Tensor = axes("N V")
    """Radians by which each crop was turned, after left and right were exchanged: R, t, orient and joints are
    those of the rolled camera."""
    zoomed: Tensor = axes("N V")
    """Side of each crop by that of the person's box, by which it was scaled."""
    images: Tensor = axes("N V 3 S S")
    """uint8 RGB."""
    seen: Tensor = axes("N V")
    """There is a crop; where not, K is NaN and the image black."""
    shown: Tensor = axes("M")
    """Numbers among all N V of the views that are seen."""
    K: Tensor = axes("N V 3 3")
    """Cameras of the crops, pixels."""
    R: Tensor = axes("N V 3 3")
    t: Tensor = axes("N V 3")
    xy_px: Tensor = axes("N V K 2")
    """Keypoints of ``SPIN_49``, pixels of the crop."""
    confidence: Tensor = axes("N V K")
    joints: Tensor = axes(f"N V {len(EXTRA_24)} 3")
    orient: Tensor = axes("N V 3 3")
    body_pose: Tensor = axes(f"N {len(SMPL_24) - 1} 3 3")
    betas: Tensor = axes("N 10")

    def pin_memory(self) -> Samples:
        """Samples in memory that a GPU reads while the processor goes on."""
        return self.map(Tensor.pin_memory)


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
