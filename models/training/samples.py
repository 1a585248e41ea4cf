"""Samples for image regressors: people in frames, each in the crops of several views.

Axes: N people in frames, V views, S pixels of a crop's side. A crop is the picture of a pinhole camera of its
own: ``K`` takes metres in its axes (x right, y down, z forward) to its pixels; rotating the crop about any of
its pixels rolls that camera. Unknown values are NaN.
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
    """One person in one frame, before augmentation, with room around the crops."""

    id: str
    """``dataset/subject/sequence/frame``, equal in all trainings."""
    cameras: tuple[str, ...]
    """V names; ``dataset/subject/sequence/camera/frame`` is one picture."""
    pictures: tuple[NDArray[np.uint8], ...]
    """V pictures (H, W, 3) RGB, of any sizes: the person with a margin."""
    box: NDArray[np.float64]
    """(V, 3) centre x, y and side, pixels of the picture, of the crop; NaN where the view does not show the
    person."""
    K: NDArray[np.float64]
    """(V, 3, 3) of the pictures, pixels."""
    R: NDArray[np.float64]
    """(V, 3, 3) world → camera; NaN without calibration."""
    t: NDArray[np.float64]
    """(V, 3) metres, world → camera; NaN without calibration."""
    xy_px: NDArray[np.float64]
    """(V, K, 2) keypoints of ``SPIN_49``, pixels of the picture: BODY_25, then ``EXTRA_24``."""
    confidence: NDArray[np.float64]
    """(V, K), 0 where missing."""
    joints: NDArray[np.float64]
    """(V, J, 3) true ``EXTRA_24`` joints in each camera's axes, metres, from any origin; NaN if unknown."""
    orient: NDArray[np.float64]
    """(V, 3, 3) true root orientation, body → camera; NaN if unknown."""
    body_pose: NDArray[np.float64]
    """(L, 3, 3) true rotations of SMPL's joints but the root; NaN if unknown."""
    betas: NDArray[np.float64]
    """(10,) true shape; NaN if unknown."""


@dataclass(frozen=True)
class Sampling:
    """Views and crop size of a source's samples."""

    views: int
    """Largest number of views, drawn in every epoch from those that show the person."""
    size: int
    """Side of the crops to train on, pixels."""
    seed: int = 0


def centred_boxes(pictures: Sequence[NDArray[np.uint8]], size: int) -> NDArray[np.float64]:
    """Boxes (V, 3) of crops of ``size`` pixels in the middle of square pictures; NaN for a black picture."""
    boxes = [[(len(p) - 1) / 2, (len(p) - 1) / 2, size] if p.any() else [np.nan] * 3 for p in pictures]
    return np.array(boxes, np.float64)


@dataclass(frozen=True, repr=False)
class Samples(TensorBatch):
    """Batch of augmented samples, float32 but for the images."""

    ids: tuple[str, ...]
    cameras: tuple[tuple[str, ...], ...]
    flipped: Tensor = axes("N")
    """True for a mirrored sample, with all its views, cameras, keypoints and truth."""
    roll: Tensor = axes("N V")
    """Rotation of each crop, radians, after mirroring; R, t, orient and joints are the rolled camera's."""
    zoom: Tensor = axes("N V")
    """Ratio of each crop's side to the person's box."""
    images: Tensor = axes("N V 3 S S")
    """uint8 RGB."""
    seen: Tensor = axes("N V")
    """True for a view with a crop; of others K is NaN and the image black."""
    seen_index: Tensor = axes("M")
    """Indices of the seen views among all N V."""
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
        """Copy to pinned memory, for ``DataLoader``."""
        return self.map(Tensor.pin_memory)


class ViewGroups:
    """Random groups of up to ``views`` views of an instant.

    In an epoch every view of every instant is in one group; epochs group them differently. The last group of
    an instant has the remaining views.
    """

    def __init__(self, members: Sequence[Sequence[int]], views: int, seed: int) -> None:
        """members: numbers of the views of each instant."""
        self.views, self.seed = views, seed
        self._members = np.array([m for group in members for m in group], np.int64)
        self._ends = np.cumsum([len(group) for group in members], dtype=np.int64)
        counts = np.diff(self._ends, prepend=0)
        self._last = np.cumsum(-(-counts // views))

    def __len__(self) -> int:
        """Number of groups in an epoch."""
        return int(self._last[-1]) if len(self._last) else 0

    def __getitem__(self, index: int) -> tuple[int, NDArray[np.int64]]:
        """Instant of a group, and its members. ``index // len`` is the epoch."""
        epoch, group = divmod(index, len(self))
        instant = int(np.searchsorted(self._last, group, side="right"))
        start, stop = int(self._ends[instant - 1]) if instant else 0, int(self._ends[instant])
        first = group - (int(self._last[instant - 1]) if instant else 0)
        order = np.random.default_rng([self.seed, epoch, instant]).permutation(stop - start)
        return instant, self._members[start + np.sort(order[first * self.views : (first + 1) * self.views])]
