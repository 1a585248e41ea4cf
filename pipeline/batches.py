"""The types that flow between stages.

Axes: V views, T frames, P people, D detections in a picture, K keypoints, J joints, L joints but the root,
B betas. World frame and camera frames as in ``pipeline/cameras.py``. A missing coordinate is NaN and a
missing confidence is 0; a keypoint counts as seen where its confidence is above 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from fractions import Fraction
from typing import Any, Self, TypeVar

import av
import torch
from torch import Tensor

from pipeline.skeleton import BODY_25, SMPL_24, Skeleton

State = Mapping[str, Tensor]
"""Tensors that stages carry from one batch into the next, by name: ``<stage>/<name>``, or, where they are
about a person, ``<stage>/<id>/<name>``. A name keeps its shape and type; a person who has gone has none."""


def axes(spec: str, missing: float = math.nan) -> Any:
    """A tensor field whose axes are ``spec``: letters that must agree within the batch, or sizes.

    missing: the value that stands for nothing.
    """
    return field(metadata={"axes": tuple(spec.split()), "missing": missing})


_OF_KEYPOINTS = {"sizes": {"K": 0}}
_OF_JOINTS = {"sizes": {"J": 0, "L": -1}}
"""Metadata of a field that holds a skeleton: the axes of its points, and by how much they are longer."""


@dataclass(frozen=True, repr=False)
class TensorBatch:
    """Tensors with named axes, checked once, mapped together.

    Raises:
        ValueError: a rank is wrong, or two fields, or one and the skeleton, disagree about an axis; gives the
            numbers.
    """

    def __post_init__(self) -> None:
        seen: dict[str, tuple[int, str]] = {}
        for f in fields(self):
            for axis, more in f.metadata.get("sizes", {}).items():
                seen[axis] = len(getattr(self, f.name)) + more, "its skeleton"
        for batch, name, letters in self._tensors():
            shape = tuple(getattr(batch, name).shape)
            where = f"{type(batch).__name__}.{name}"
            if len(shape) != len(letters):
                raise ValueError(f"{where} has shape {shape}, expected axes ({', '.join(letters)})")
            for size, axis in zip(shape, letters, strict=True):
                known, by = (int(axis), "its definition") if axis.isdigit() else seen.get(axis, (size, ""))
                if size != known:
                    raise ValueError(f"{where} has {size} along {axis} (shape {shape}), {by} has {known}")
                seen.setdefault(axis, (size, where))

    def _tensors(self) -> list[tuple[Any, str, tuple[str, ...]]]:
        found: list[tuple[Any, str, tuple[str, ...]]] = []
        for f in fields(self):
            value = getattr(self, f.name)
            if "axes" in f.metadata:
                found.append((self, f.name, f.metadata["axes"]))
            elif isinstance(value, TensorBatch):
                found += value._tensors()
        return found

    def _changed(self, change: Callable[[Tensor, tuple[str, ...], float], Tensor], moved: int = 0) -> Self:
        """Replace every tensor, nested ones included, by ``change(tensor, axes, missing)``.

        moved: frames by which the start moves, too.
        """
        changed: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if "axes" in f.metadata:
                changed[f.name] = change(value, f.metadata["axes"], f.metadata["missing"])
            elif isinstance(value, TensorBatch):
                changed[f.name] = value._changed(change, moved)
            elif f.name == "start":
                changed[f.name] = value + moved
        return replace(self, **changed)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """Apply ``fn`` to every tensor, those of nested batches included; restart state stays as it is."""
        return self._changed(lambda x, axes, missing: fn(x))

    def to(self, device: torch.device | str) -> Self:
        """Move every tensor to a device."""
        return self.map(lambda x: x.to(device))

    def frames(self, start: int, stop: int) -> Self:
        """Cut out frames ``start:stop``, counted from the batch's own first frame."""

        def cut(x: Tensor, axes: tuple[str, ...], missing: float) -> Tensor:
            return x.narrow(axes.index("T"), start, stop - start) if "T" in axes else x

        return self._changed(cut, start)

    def after_blank(self, frames: int) -> Self:
        """Put ``frames`` frames before the batch in which everything is missing."""

        def pad(x: Tensor, axes: tuple[str, ...], missing: float) -> Tensor:
            if "T" not in axes:
                return x
            blank = torch.full_like(x.narrow(axes.index("T"), 0, 1), missing)
            return torch.cat([blank] * frames + [x], axes.index("T"))

        return self._changed(pad)

    def people(self, ids: Tensor) -> Self:
        """Take the people ``ids`` (P,), in that order; one whom the batch lacks is missing in all frames."""
        if torch.equal(ids, self._ids()):
            return self
        have = self._ids().tolist()
        at = torch.tensor([have.index(i) if i in have else -1 for i in ids.tolist()], dtype=torch.long)

        def pick(x: Tensor, axes: tuple[str, ...], missing: float) -> Tensor:
            if axes == ("P",):
                return ids
            if "P" not in axes:
                return x
            axis = axes.index("P")
            shape = (*x.shape[:axis], len(at), *x.shape[axis + 1 :])
            picked = torch.full(shape, missing, dtype=x.dtype, device=x.device)
            there = (at >= 0).nonzero()[:, 0]
            return picked.index_copy(axis, there, x.index_select(axis, at[there]))

        return self._changed(pick)

    def _ids(self) -> Tensor:
        found = [getattr(batch, name) for batch, name, _ in self._tensors() if name == "ids"]
        if not found:
            raise TypeError(f"{type(self).__name__} has no people with ids")
        ids: Tensor = found[0]
        return ids

    @property
    def carried(self) -> State:
        """Restart state after this batch, of every stage that it has passed."""
        found: dict[str, Tensor] = dict(getattr(self, "state", {}))
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, TensorBatch):
                found |= value.carried
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, those of nested batches included."""
        return sum(getattr(batch, name).nbytes for batch, name, _ in self._tensors())

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
    """Consecutive batches as one, with the people of the first and the first's restart state."""
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
"""A frame of every view, None where a camera has none."""


@dataclass(frozen=True, repr=False)
class FrameBatch:
    """Decoded frames, by reference."""

    start: int
    """Index of the first frame on the recording's common time line."""
    pictures: tuple[tuple[av.VideoFrame | None, ...], ...]
    """[view][frame], in the pixel format of the file (mostly yuv420p); None where a camera has no frame."""

    def by_time(self) -> Iterator[Pictures]:
        """The pictures of all views, time after time."""
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
    """Everybody whom a detector found, view by view and frame by frame, in no order."""

    start: int
    """Index of the first frame on the recording's common time line."""
    rate: Fraction
    """Frames a second of that time line."""
    time_s: Tensor = axes("V T")
    """Seconds on each view's own clock, from its first frame; NaN where it has no frame (float64)."""
    image_px: Tensor = axes("V T D K 2")
    """Pixels of the video frame, distorted; NaN where missing (float32)."""
    confidence: Tensor = axes("V T D K", missing=0)
    """From 0, missing, to 1, on one scale for all views (float32)."""
    skeleton: Skeleton = field(default=BODY_25, kw_only=True, metadata=_OF_KEYPOINTS)


@dataclass(frozen=True, repr=False)
class KeypointBatch(TensorBatch):
    """Keypoints of people who are known over time, matched over the views, on one clock."""

    start: int
    """Index of the first frame on the recording's common time line."""
    rate: Fraction
    """Frames a second of that time line."""
    ids: Tensor = axes("P")
    """Who they are, rising: one person keeps one id, and no id is given twice (int64). They may differ from
    batch to batch; a person whom a batch leaves out has gone for good."""
    time_s: Tensor = axes("T")
    """Seconds from the first frame of the recording's common span (float64)."""
    image_px: Tensor = axes("V T P K 2")
    """Pixels of the video frame, as detected, distorted; NaN where missing (float32)."""
    xy_px: Tensor = axes("V T P K 2")
    """The points undistorted, for the camera's K (float32)."""
    confidence: Tensor = axes("V T P K", missing=0)
    """0 where missing (float32)."""
    state: State = field(default_factory=dict)
    """Restart state of the association after this batch."""
    skeleton: Skeleton = field(default=BODY_25, kw_only=True, metadata=_OF_KEYPOINTS)


@dataclass(frozen=True, repr=False)
class PoseBatch(TensorBatch):
    """Keypoints, and the regressor's pose of every person in every frame, before any fit.

    Parameters as in ``SmplParams``, but each frame with a shape of its own: a regressor looks at one moment.
    NaN where no view showed enough of the person, and everywhere when no regressor runs (float32).
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
    """Radians: the angle by which each rotation of ``body_pose`` is expected to be off."""
    skeleton: Skeleton = field(default=SMPL_24, kw_only=True, metadata=_OF_JOINTS)
    """Of the joints."""

    @property
    def start(self) -> int:
        return self.keypoints.start

    @property
    def posed(self) -> Tensor:
        """(T, P) whether there is a pose (bool)."""
        return self.transl.isfinite().all(-1)

    @staticmethod
    def blank(keypoints: KeypointBatch, betas: int) -> PoseBatch:
        """A batch without any pose. betas: number of shape coefficients."""

        def nan(*shape: int) -> Tensor:
            return torch.full((*keypoints.confidence.shape[1:3], *shape), torch.nan)

        local = len(SMPL_24) - 1
        return PoseBatch(keypoints, nan(3, 3), nan(local, 3, 3), nan(betas), nan(3), nan(local))


class Status(IntEnum):
    """Outcome of a person's fit in a frame. All but ``OK`` are not valid; the last three have a pose."""

    NOT_SEEN = 0
    """No pose: too few keypoints, and not within a short gap."""
    OK = 1
    """The fit was accepted."""
    NO_START = 2
    """No pose: keypoints were seen, but no torso by two cameras from which a body could be placed."""
    BRIDGED = 3
    """No keypoint was seen: the pose is carried over a short gap."""
    FEW_KEYPOINTS = 4
    """A few keypoints were seen, less than a person is believed from: the pose is carried as over a gap."""
    FAR_OFF = 5
    """The body misses the keypoints by too much."""


@dataclass(frozen=True, repr=False)
class FitBatch(TensorBatch):
    """Fitted bodies; every frame is final."""

    keypoints: KeypointBatch
    params: SmplParams
    joints: Tensor = axes("T P J 3")
    """Metres, world."""
    keypoints_3d: Tensor = axes("T P K 4")
    """The fitted body's keypoints, metres, world, and the mean confidence of the views that saw each."""
    reprojection_px: Tensor = axes("V T P")
    """Mean distance in undistorted pixels between fitted and seen keypoints; NaN where a view saw none."""
    status: Tensor = axes("T P", missing=0)
    """``Status`` of each fit: accepted, or why not (uint8)."""
    state: State = field(default_factory=dict)
    """Restart state of the fit after this batch (float64)."""
    skeleton: Skeleton = field(default=SMPL_24, kw_only=True, metadata=_OF_JOINTS)
    """Of the joints."""

    @property
    def valid(self) -> Tensor:
        """(T, P) whether the fit was accepted (bool)."""
        return self.status == Status.OK

    @property
    def start(self) -> int:
        return self.keypoints.start


def check_points(batch: PoseBatch | FitBatch, joints: Skeleton, keypoints: Skeleton) -> None:
    """Raise ``ValueError`` where a batch holds other joints or keypoints than these; gives the numbers."""
    pairs = {"joints": (batch.skeleton, joints), "keypoints": (batch.keypoints.skeleton, keypoints)}
    for what, (has, wanted) in pairs.items():
        if has != wanted:
            other = " of other names or bones" if len(has) == len(wanted) else ""
            raise ValueError(
                f"{type(batch).__name__} from frame {batch.start} on has {len(has)} {what}{other}, "
                f"expected {len(wanted)}"
            )
