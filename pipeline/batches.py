"""The types that flow between stages.

Axes: V views, T frames, P people, J keypoints (25, BODY_25), B betas. World frame and camera frames as in
``pipeline/cameras.py``. A missing coordinate is NaN and a missing confidence is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from fractions import Fraction
from typing import Any, Self

import av
import torch
from torch import Tensor


def axes(spec: str) -> Any:
    """A tensor field whose axes are ``spec``: letters that must agree within the batch, or sizes."""
    return field(metadata={"axes": tuple(spec.split())})


@dataclass(frozen=True, repr=False)
class TensorBatch:
    """Tensors with named axes, checked once, mapped together.

    Raises ``ValueError`` with the numbers when a rank is wrong or two fields disagree about an axis.
    """

    def __post_init__(self) -> None:
        seen: dict[str, tuple[int, str]] = {}
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

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same batch with ``fn`` applied to every tensor, nested batches included."""
        changed: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if "axes" in f.metadata:
                changed[f.name] = fn(value)
            elif isinstance(value, TensorBatch):
                changed[f.name] = value.map(fn)
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> Self:
        return self.map(lambda x: x.to(device))

    def frames(self, start: int, stop: int) -> Self:
        """Frames ``start:stop`` of the batch, counted from its own first frame."""
        changed: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if "T" in f.metadata.get("axes", ()):
                axis = f.metadata["axes"].index("T")
                changed[f.name] = value.narrow(axis, start, stop - start)
            elif isinstance(value, TensorBatch):
                changed[f.name] = value.frames(start, stop)
            elif f.name == "start":
                changed[f.name] = value + start
        return replace(self, **changed)

    @property
    def nbytes(self) -> int:
        return sum(getattr(batch, name).nbytes for batch, name, _ in self._tensors())

    def __repr__(self) -> str:
        parts = []
        for f in fields(self):
            value = getattr(self, f.name)
            if "axes" in f.metadata:
                parts.append(f"{f.name}={str(value.dtype).removeprefix('torch.')}{list(value.shape)}")
            else:
                parts.append(f"{f.name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, repr=False)
class FrameBatch:
    """Decoded frames, by reference."""

    start: int
    """Index of the first frame on the recording's common time line."""
    pictures: tuple[tuple[av.VideoFrame | None, ...], ...]
    """[view][frame], in the pixel format of the file (mostly yuv420p); None where a camera has no frame."""

    @property
    def nbytes(self) -> int:
        return sum(sum(p.buffer_size for p in f.planes) for view in self.pictures for f in view if f)

    def __repr__(self) -> str:
        sizes = [next((f"{f.width}x{f.height}" for f in view if f), "none") for view in self.pictures]
        return f"FrameBatch(start={self.start}, frames={len(self.pictures[0])}, views={sizes})"


@dataclass(frozen=True, repr=False)
class SmplParams(TensorBatch):
    """SMPL parameters as smplx defines them, with rotation matrices in place of axis-angle."""

    global_orient: Tensor = axes("T P 3 3")
    """Rotation of the root, body → world."""
    body_pose: Tensor = axes("T P 23 3 3")
    """Local rotation of joints 1–23 relative to their parents."""
    betas: Tensor = axes("P B")
    """Shape coefficients, one set a person."""
    transl: Tensor = axes("T P 3")
    """Metres, world: added after posing, so the pelvis lies at J_pelvis(betas) + transl."""


@dataclass(frozen=True, repr=False)
class KeypointBatch(TensorBatch):
    """BODY_25 points of the people, matched over the views."""

    start: int
    """Index of the first frame on the recording's common time line."""
    rate: Fraction
    """Frames a second of that time line."""
    time_s: Tensor = axes("T")
    """Seconds from the first frame of the recording's common span (float64)."""
    image_px: Tensor = axes("V T P 25 2")
    """Pixels of the video frame, as detected, distorted; NaN where missing (float32)."""
    xy_px: Tensor = axes("V T P 25 2")
    """The same points undistorted, for the camera's K (float32)."""
    confidence: Tensor = axes("V T P 25")
    """0 where missing (float32)."""
    anchor: Tensor = axes("P 4")
    """What the matching remembers after this batch: last seen position, metres, world, and its time in
    seconds; NaN before the person was first seen (float64). With it the matching goes on after a restart."""


@dataclass(frozen=True, repr=False)
class PoseBatch(TensorBatch):
    """Keypoints, and what the regressor makes of every person in every frame, before any fit.

    The same parameters as in ``SmplParams``, but each frame with a shape of its own: a regressor looks at one
    moment. NaN where no view showed enough of the person, and everywhere when no regressor runs (float32).
    """

    keypoints: KeypointBatch
    global_orient: Tensor = axes("T P 3 3")
    """Rotation of the root, body → world."""
    body_pose: Tensor = axes("T P 23 3 3")
    """Local rotation of joints 1–23 relative to their parents."""
    betas: Tensor = axes("T P B")
    """Shape coefficients."""
    transl: Tensor = axes("T P 3")
    """Metres, world."""
    pose_sigma: Tensor = axes("T P 23")
    """Radians: the angle by which each rotation of ``body_pose`` is expected to be off."""

    @property
    def start(self) -> int:
        return self.keypoints.start

    @property
    def posed(self) -> Tensor:
        """(T, P) whether there is a pose (bool)."""
        return self.transl.isfinite().all(-1)

    @staticmethod
    def blank(keypoints: KeypointBatch, betas: int) -> PoseBatch:
        """No pose anywhere."""

        def nan(*shape: int) -> Tensor:
            return torch.full((*keypoints.confidence.shape[1:3], *shape), torch.nan)

        return PoseBatch(keypoints, nan(3, 3), nan(23, 3, 3), nan(betas), nan(3), nan(23))


class Status(IntEnum):
    """What became of a person in a frame. All but ``OK`` are not valid; the last three have a pose."""

    NOT_SEEN = 0
    """No pose: too few keypoints, and not within a short gap."""
    OK = 1
    """The fit was accepted."""
    NO_START = 2
    """No pose: keypoints were seen, but no torso by two cameras from which a body could be placed."""
    BRIDGED = 3
    """No keypoint was seen: the pose is carried over a short gap."""
    FEW_KEYPOINTS = 4
    """The same with a few keypoints, less than a person is believed from."""
    FAR_OFF = 5
    """The body misses the keypoints by too much."""


@dataclass(frozen=True, repr=False)
class FitBatch(TensorBatch):
    """Fitted bodies; every frame is final."""

    keypoints: KeypointBatch
    params: SmplParams
    joints: Tensor = axes("T P 24 3")
    """SMPL joints, metres, world."""
    keypoints_3d: Tensor = axes("T P 25 4")
    """The fitted body's BODY_25 points, metres, world, and the mean confidence of the views that saw each."""
    reprojection_px: Tensor = axes("V T P")
    """Mean distance in undistorted pixels between fitted and seen keypoints; NaN where a view saw none."""
    status: Tensor = axes("T P")
    """``Status`` of each fit: accepted, or why not (uint8)."""
    state: Tensor = axes("S")
    """What the fit of the next window takes from this one (float64): enough to go on after a restart."""

    @property
    def valid(self) -> Tensor:
        """(T, P) whether the fit was accepted (bool)."""
        return self.status == Status.OK

    @property
    def start(self) -> int:
        return self.keypoints.start
