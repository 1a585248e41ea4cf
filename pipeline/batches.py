"""Types that flow between stages.

Axes: V views, T frames, P people, D detections in a picture, K keypoints, J joints, L joints without the
root, B betas. World and camera frames as in ``pipeline/cameras.py``. A missing coordinate is NaN and a
missing confidence is 0; a keypoint is seen where its confidence is above 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from fractions import Fraction
from typing import Any, Self, TypeVar, cast

import av
import torch
from torch import Tensor

from pipeline.skeleton import BODY_25, SMPL_24, Skeleton

State = Mapping[str, Tensor]
"""Restart state: tensors that stages carry from one batch to the next, by name ``<stage>/<name>``, or
``<stage>/<id>/<name>`` of one person. A name keeps its shape and type; a track that has ended has none."""


def axes(spec: str, missing: float = math.nan) -> Any:
    """Tensor field with axes ``spec``: letters, whose sizes must agree within the batch, or sizes.

    missing: value of an element without data.
    """
    return field(metadata={"axes": tuple(spec.split()), "missing": missing})


_KEYPOINT_AXES = {"sizes": {"K": 0}}
_JOINT_AXES = {"sizes": {"J": 0, "L": -1}}
"""Metadata of a skeleton field: axes sized by the skeleton's number of points, plus an offset."""


@dataclass(frozen=True, repr=False)
class TensorBatch:
    """Tensors with named axes, checked at construction and transformed together.

    Raises:
        ValueError: a wrong rank, or an axis with two sizes, which are named.
    """

    def __post_init__(self) -> None:
        sizes: dict[str, tuple[int, str]] = {}
        for f in fields(self):
            for axis, offset in f.metadata.get("sizes", {}).items():
                sizes[axis] = len(getattr(self, f.name)) + offset, "its skeleton"
        for batch, name, letters in self._tensors():
            shape = tuple(getattr(batch, name).shape)
            where = f"{type(batch).__name__}.{name}"
            if len(shape) != len(letters):
                raise ValueError(f"{where} has shape {shape}, expected axes ({', '.join(letters)})")
            for size, axis in zip(shape, letters, strict=True):
                default = (int(axis), "its definition") if axis.isdigit() else (size, where)
                expected, source = sizes.setdefault(axis, default)
                if size != expected:
                    raise ValueError(
                        f"{where} has {size} along {axis} (shape {shape}), {source} has {expected}"
                    )

    def _tensors(self) -> list[tuple[Any, str, tuple[str, ...]]]:
        """(batch, field name, axes) of every tensor, nested batches included."""
        tensors: list[tuple[Any, str, tuple[str, ...]]] = []
        for f in fields(self):
            value = getattr(self, f.name)
            if "axes" in f.metadata:
                tensors.append((self, f.name, f.metadata["axes"]))
            elif isinstance(value, TensorBatch):
                tensors += value._tensors()
        return tensors

    def _map(self, fn: Callable[[Tensor, tuple[str, ...], float], Tensor], shift: int = 0) -> Self:
        """Replace every tensor, nested batches included, by ``fn(tensor, axes, missing)``.

        shift: frames added to ``start``.
        """
        values: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if "axes" in f.metadata:
                values[f.name] = fn(value, f.metadata["axes"], f.metadata["missing"])
            elif isinstance(value, TensorBatch):
                values[f.name] = value._map(fn, shift)
            elif f.name == "start":
                values[f.name] = value + shift
        return replace(self, **values)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """Apply ``fn`` to every tensor, nested batches included, but not to restart state."""
        return self._map(lambda x, axes, missing: fn(x))

    def to(self, device: torch.device | str) -> Self:
        """Move every tensor to a device."""
        return self.map(lambda x: x.to(device))

    def frames(self, start: int, stop: int) -> Self:
        """Slice frames ``start:stop``, counted from the batch's first frame."""

        def cut(x: Tensor, axes: tuple[str, ...], missing: float) -> Tensor:
            return x.narrow(axes.index("T"), start, stop - start) if "T" in axes else x

        return self._map(cut, start)

    def prepend_missing(self, frames: int) -> Self:
        """Prepend ``frames`` frames in which everything is missing; ``start`` stays."""

        def pad(x: Tensor, axes: tuple[str, ...], missing: float) -> Tensor:
            if "T" not in axes:
                return x
            blank = torch.full_like(x.narrow(axes.index("T"), 0, 1), missing)
            return torch.cat([blank] * frames + [x], axes.index("T"))

        return self._map(pad)

    def people(self, ids: Tensor) -> Self:
        """Select the people ``ids`` (P,), in that order; an id that the batch lacks is missing throughout."""
        if torch.equal(ids, self._ids()):
            return self
        own = self._ids().tolist()
        index = torch.tensor([own.index(i) if i in own else -1 for i in ids.tolist()], dtype=torch.long)
        present = (index >= 0).nonzero()[:, 0]

        def pick(x: Tensor, axes: tuple[str, ...], missing: float) -> Tensor:
            if axes == ("P",):
                return ids
            if "P" not in axes:
                return x
            axis = axes.index("P")
            shape = (*x.shape[:axis], len(index), *x.shape[axis + 1 :])
            blank = torch.full(shape, missing, dtype=x.dtype, device=x.device)
            return blank.index_copy(axis, present, x.index_select(axis, index[present]))

        return self._map(pick)

    def _ids(self) -> Tensor:
        for batch, name, _ in self._tensors():
            if name == "ids":
                return cast(Tensor, batch.ids)
        raise TypeError(f"{type(self).__name__} has no people with ids")

    @property
    def carried(self) -> State:
        """Restart state after this batch of every stage that it has passed."""
        state: dict[str, Tensor] = dict(getattr(self, "state", {}))
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, TensorBatch):
                state |= value.carried
        return state

    def __repr__(self) -> str:
        parts = []
        for f in fields(self):
            value = getattr(self, f.name)
            if "axes" in f.metadata:
                parts.append(f"{f.name}={str(value.dtype).removeprefix('torch.')}{list(value.shape)}")
            elif f.name == "state":
                parts.append(f"state={len(value)} tensors")
            elif isinstance(value, Skeleton):
                parts.append(f"skeleton={len(value)} points")
            else:
                parts.append(f"{f.name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


Batch = TypeVar("Batch", bound=TensorBatch)


def joined(batches: Sequence[Batch]) -> Batch:
    """Concatenation in time of consecutive batches of the same people, with the first one's restart state."""
    if len(batches) == 1:
        return batches[0]
    changed: dict[str, Any] = {}
    for f in fields(batches[0]):
        values = [getattr(b, f.name) for b in batches]
        if "T" in f.metadata.get("axes", ()):
            changed[f.name] = torch.cat(values, f.metadata["axes"].index("T"))
        elif isinstance(values[0], TensorBatch):
            changed[f.name] = joined(values)
    return replace(batches[0], **changed)


Pictures = tuple[av.VideoFrame | None, ...]
"""Frame of each view at one time; None where a camera has none."""


@dataclass(frozen=True, repr=False)
class FrameBatch:
    """Decoded frames, by reference."""

    start: int
    """Index of the first frame on the recording's common time line."""
    pictures: tuple[tuple[av.VideoFrame | None, ...], ...]
    """[view][frame], in the file's pixel format, mostly yuv420p; None where a camera has no frame."""

    def by_time(self) -> Iterator[Pictures]:
        """Iterate over times: the pictures of all views at each."""
        return zip(*self.pictures, strict=True)

    def __repr__(self) -> str:
        sizes = [next((f"{f.width}x{f.height}" for f in view if f), "none") for view in self.pictures]
        return f"FrameBatch(start={self.start}, frames={len(self.pictures[0])}, views={sizes})"


@dataclass(frozen=True, repr=False)
class SmplParams(TensorBatch):
    """SMPL parameters as smplx defines them, with rotation matrices in place of axis-angle."""

    global_orient: Tensor = axes("T P 3 3")
    """Rotation of the root, body → world."""
    body_pose: Tensor = axes("T P L 3 3")
    """Local rotation of the joints after the root relative to their parents."""
    betas: Tensor = axes("P B")
    """Shape coefficients, one set a person."""
    transl: Tensor = axes("T P 3")
    """Metres, world: added after posing, so the pelvis lies at J_pelvis(betas) + transl."""


@dataclass(frozen=True, repr=False)
class DetectionBatch(TensorBatch):
    """Detected people in each view and frame, unordered."""

    start: int
    """Index of the first frame on the recording's common time line."""
    rate: Fraction
    """Frames a second of that time line."""
    time_s: Tensor = axes("V T")
    """Seconds on each view's own clock, from its first frame; NaN where it has no frame (float64)."""
    image_px: Tensor = axes("V T D K 2")
    """Pixels of the video frame, distorted; NaN where missing (float32)."""
    confidence: Tensor = axes("V T D K", missing=0)
    """0 (missing) to 1, on one scale for all views (float32)."""
    skeleton: Skeleton = field(default=BODY_25, kw_only=True, metadata=_KEYPOINT_AXES)


@dataclass(frozen=True, repr=False)
class KeypointBatch(TensorBatch):
    """Keypoints of tracked people, matched across views, on one clock."""

    start: int
    """Index of the first frame on the recording's common time line."""
    rate: Fraction
    """Frames a second of that time line."""
    ids: Tensor = axes("P")
    """Track ids, increasing (int64). Batches may differ in them: a track that a batch leaves out has ended,
    and its id is not used again."""
    time_s: Tensor = axes("T")
    """Seconds from the first frame of the recording's common span (float64)."""
    image_px: Tensor = axes("V T P K 2")
    """Pixels of the video frame, as detected, distorted; NaN where missing (float32)."""
    xy_px: Tensor = axes("V T P K 2")
    """``image_px`` undistorted: pixels of the ideal pinhole camera K (float32)."""
    confidence: Tensor = axes("V T P K", missing=0)
    """0 where missing (float32)."""
    state: State = field(default_factory=dict)
    """Restart state of the association after this batch."""
    skeleton: Skeleton = field(default=BODY_25, kw_only=True, metadata=_KEYPOINT_AXES)


@dataclass(frozen=True, repr=False)
class PoseBatch(TensorBatch):
    """Regressor's pose of every person in every frame, and the keypoints.

    Parameters as in ``SmplParams``, but with a shape per frame. NaN where no view shows enough of the person,
    and everywhere without a regressor (float32).
    """

    keypoints: KeypointBatch
    global_orient: Tensor = axes("T P 3 3")
    """Rotation of the root, body → world."""
    body_pose: Tensor = axes("T P L 3 3")
    """Local rotation of the joints after the root relative to their parents."""
    betas: Tensor = axes("T P B")
    """Shape coefficients."""
    transl: Tensor = axes("T P 3")
    """Metres, world."""
    pose_sigma: Tensor = axes("T P L")
    """Radians: expected error of each rotation of ``body_pose``."""
    skeleton: Skeleton = field(default=SMPL_24, kw_only=True, metadata=_JOINT_AXES)

    @property
    def start(self) -> int:
        return self.keypoints.start

    @property
    def posed(self) -> Tensor:
        """(T, P) true where there is a pose (bool)."""
        return self.transl.isfinite().all(-1)

    @staticmethod
    def blank(keypoints: KeypointBatch, betas: int) -> PoseBatch:
        """Batch without poses. betas: number of shape coefficients."""

        def nan(*shape: int) -> Tensor:
            return torch.full((*keypoints.confidence.shape[1:3], *shape), torch.nan)

        local = len(SMPL_24) - 1
        return PoseBatch(keypoints, nan(3, 3), nan(local, 3, 3), nan(betas), nan(3), nan(local))


class Status(IntEnum):
    """Outcome of a person's fit in a frame. Only ``OK`` is valid; the last three have a pose, too."""

    NOT_SEEN = 0
    """No pose: too few keypoints, outside a short gap."""
    OK = 1
    """Accepted fit."""
    NO_START = 2
    """No pose: keypoints, but no torso seen by two cameras to start from."""
    BRIDGED = 3
    """No keypoints: pose carried over a short gap."""
    FEW_KEYPOINTS = 4
    """Too few keypoints for a fit: pose carried as over a gap."""
    FAR_OFF = 5
    """Reprojection error too large."""


@dataclass(frozen=True, repr=False)
class FitBatch(TensorBatch):
    """Fitted bodies; every frame is final."""

    keypoints: KeypointBatch
    params: SmplParams
    joints: Tensor = axes("T P J 3")
    """Metres, world."""
    keypoints_3d: Tensor = axes("T P K 4")
    """Keypoints of the fitted body, metres, world, and mean confidence over the views that see each."""
    reprojection_px: Tensor = axes("V T P")
    """Mean reprojection error of the seen keypoints, undistorted pixels; NaN where a view sees none."""
    status: Tensor = axes("T P", missing=0)
    """``Status`` of each fit (uint8)."""
    state: State = field(default_factory=dict)
    """Restart state of the fit after this batch (float64)."""
    skeleton: Skeleton = field(default=SMPL_24, kw_only=True, metadata=_JOINT_AXES)

    @property
    def valid(self) -> Tensor:
        """(T, P) true where the fit was accepted (bool)."""
        return self.status == Status.OK

    @property
    def start(self) -> int:
        return self.keypoints.start


def check_points(batch: PoseBatch | FitBatch, joints: Skeleton, keypoints: Skeleton) -> None:
    """Raise ``ValueError``, with the counts, where a batch has other joints or keypoints than these."""
    pairs = {"joints": (batch.skeleton, joints), "keypoints": (batch.keypoints.skeleton, keypoints)}
    for kind, (own, expected) in pairs.items():
        if own != expected:
            other = " of other names or bones" if len(own) == len(expected) else ""
            raise ValueError(
                f"{type(batch).__name__} from frame {batch.start} on has {len(own)} {kind}{other}, "
                f"expected {len(expected)}"
            )
