"""Stage: fit SMPL to the keypoints of all views, in overlapping windows of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.body import Body, KeypointBody, pose_keypoints
from models.priors import PosePrior, load_pose_prior
from models.smplify import JOINTS, Motion, Schedule, Views, Weights, fit, start_pose, start_shape
from pipeline.batches import FitBatch, KeypointBatch, SmplParams
from pipeline.cameras import Rig
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.triangulation import triangulate

HELD = 2
"""Final frames that a window is tied to: a second difference reaches two back."""

_SHAPE_LEAST = 12
"""Frames with a triangulated torso that a shape is estimated from, at least, while more may come."""


class SmplifyConfig(Config):
    """Temporal multi-view SMPLify."""

    overlap_frames: int = Field(
        8, ge=0, description="frames of the next chunk that a window looks at before its own frames are final"
    )
    shape_frames: int = Field(
        96,
        ge=1,
        description="frames, from a person's first on, that the shape is estimated from; then it is kept",
    )
    max_gap_s: float = Field(
        0.5,
        ge=0,
        description="longest time a person seen by nobody is carried on by the temporal terms, seconds",
    )
    min_confidence: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="a keypoint counts as seen above this confidence (all are fitted, by confidence)",
    )
    min_keypoints: int = Field(
        6, ge=1, description="keypoints over all views below which a person counts as not seen in a frame"
    )
    max_error_mm: float = Field(
        150.0, gt=0, description="a frame whose median keypoint misses by more, at the person, is not valid"
    )
    keypoint_sigma_mm: float = Field(
        15.0,
        gt=0,
        description="standard deviation of a sure keypoint at the person; 7 px for a person 820 px tall",
    )
    pose_weight: float = Field(0.03, ge=0, description="weight of the pose prior")
    shape_weight: float = Field(10.0, ge=0, description="weight of |betas|², for every 100 frames")
    acceleration_sigma: float = Field(
        8.5, gt=0, description="standard deviation of a keypoint's acceleration, m/s²; less is smoother"
    )
    spin_sigma: float = Field(
        108.0, gt=0, description="standard deviation of a joint's angular acceleration, rad/s²"
    )
    offset_sigma_mm: float = Field(
        2.5,
        ge=0,
        description="how far detector and body may disagree about where a keypoint is; 0 switches it off",
    )
    tolerance: float = Field(1e-3, gt=0, description="relative decrease of the energy at which a fit stops")

    def weights(self) -> Weights:
        return Weights(
            keypoint_m=self.keypoint_sigma_mm / 1000,
            pose=self.pose_weight,
            shape=self.shape_weight,
            acceleration_ms2=self.acceleration_sigma,
            spin_rads2=self.spin_sigma,
            offset_m=self.offset_sigma_mm / 1000,
        )

    def schedule(self) -> Schedule:
        *early, (robust, most, _) = Schedule().stages
        return Schedule((*early, (robust, most, self.tolerance)))


@dataclass(frozen=True)
class _Person:
    """All that the next window needs of one person (float64); NaN stands for not known, not there."""

    betas: Tensor  # (B,)
    offsets: Tensor  # (25, 3)
    unseen: Tensor  # () frames since the person was last seen, before the window
    last_rotations: Tensor  # (HELD, 24, 3, 3) of the last final frames
    last_transl: Tensor  # (HELD, 3)
    next_rotations: Tensor  # (overlap, 24, 3, 3) of the frames that the last window looked ahead at
    next_transl: Tensor  # (overlap, 3)

    @staticmethod
    def unknown(betas: int, overlap: int) -> _Person:
        def nan(*shape: int) -> Tensor:
            return torch.full(shape, torch.nan, dtype=torch.float64)

        moving = (nan(HELD, JOINTS, 3, 3), nan(HELD, 3), nan(overlap, JOINTS, 3, 3), nan(overlap, 3))
        return _Person(nan(betas), nan(25, 3), nan(), *moving)

    @property
    def known(self) -> bool:
        return bool(self.betas.isfinite().all())

    def packed(self) -> Tensor:
        return torch.cat([getattr(self, f.name).reshape(-1) for f in fields(self)])

    def unpacked(self, packed: Tensor) -> _Person:
        """The person that ``packed`` came from; self gives the shapes."""
        parts = [getattr(self, f.name) for f in fields(self)]
        split = torch.tensor_split(packed.double(), np.cumsum([p.numel() for p in parts])[:-1].tolist())
        return _Person(*(s.reshape(p.shape) for s, p in zip(split, parts, strict=True)))


@dataclass(frozen=True)
class _Fitter:
    """What is the same for all windows."""

    cfg: SmplifyConfig
    rig: Rig
    body: KeypointBody
    prior: PosePrior

    def seen(self, confidence: Tensor) -> Tensor:
        """(V, T, 25) → (T,) whether the person was seen in a frame."""
        return (confidence > self.cfg.min_confidence).sum((0, 2)) >= self.cfg.min_keypoints

    def solve(
        self, xy: Tensor, confidence: Tensor, rate: float, person: _Person, held: int, warm: int
    ) -> Motion | None:
        """Fit one run of frames, the first ``held`` + ``warm`` of which ``person`` has been fitted in before.

        xy (V, T, 25, 2), confidence (V, T, 25) of the frames after the held ones. None where nothing tells
        where the body is. The shape is fitted too where the person's is not known yet.
        """
        found = triangulate(self.rig, xy.numpy(), confidence.numpy())
        agreed = (found.used.sum(0) >= 2)[..., None]
        points = torch.from_numpy(np.where(agreed, found.points, np.nan))
        betas = person.betas if person.known else start_shape(self.body, points)
        offsets = person.offsets if person.known else torch.zeros_like(person.offsets)
        before = None
        if held + warm:
            before = (
                torch.cat([person.last_rotations[HELD - held :], person.next_rotations[:warm]]),
                torch.cat([person.last_transl[HELD - held :], person.next_transl[:warm]]),
            )
        blank = torch.nn.functional.pad
        start = start_pose(
            self.body, betas, blank(points, (0, 0, 0, 0, held, 0), value=torch.nan), rate, before
        )
        if start is None:
            return None
        views = Views(
            K=torch.from_numpy(self.rig.K)[None],
            R=torch.from_numpy(self.rig.R)[None],
            t=torch.from_numpy(self.rig.t)[None],
            xy_px=blank(xy, (0, 0, 0, 0, held, 0), value=torch.nan)[None],
            confidence=blank(confidence, (0, 0, held, 0))[None],
        )
        motion = Motion(start[0][None], start[1][None], betas[None], offsets[None])
        return fit(
            self.body,
            views,
            motion,
            rate,
            held=held,
            free_shape=not person.known,
            weights=self.cfg.weights(),
            schedule=self.cfg.schedule(),
            prior=self.prior,
        ).motion

    def shape(self, clip: KeypointBatch, p: int, person: _Person, ended: bool) -> _Person:
        """The person with the shape that a clip shows; as it was if that is too little and more may come."""
        xy, confidence = clip.xy_px[:, :, p], clip.confidence[:, :, p]
        live, _ = self.live(self.seen(confidence), torch.tensor(torch.nan), float(clip.rate))
        runs = _runs(live)
        if not runs:
            return person
        start, stop = max(runs, key=lambda r: r[1] - r[0])
        if stop - start < _SHAPE_LEAST and not ended:
            return person
        motion = self.solve(xy[:, start:stop], confidence[:, start:stop], float(clip.rate), person, 0, 0)
        if motion is None:
            return person
        return replace(person, betas=motion.betas[0].double(), offsets=motion.offsets[0].double())

    def live(self, seen: Tensor, unseen: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Frames (T,) with a body: seen, or not longer unseen than allowed; and the count after each (T,)."""
        count, counts = float(unseen), []
        for s in seen.tolist():
            count = 0.0 if s else count + 1  # NaN, never seen, stays NaN
            counts.append(count)
        since = torch.tensor(counts, dtype=torch.float64)
        return since <= self.cfg.max_gap_s * rate, since

    def window(
        self, clip: KeypointBatch, frames: int, p: int, person: _Person
    ) -> tuple[Tensor, Tensor, _Person]:
        """Rotations (frames, 24, 3, 3), transl (frames, 3) of a clip's first frames; the person after it."""
        rate = float(clip.rate)
        xy, confidence = clip.xy_px[:, :, p], clip.confidence[:, :, p]
        total = xy.shape[1]
        rotations = torch.full((total, JOINTS, 3, 3), torch.nan, dtype=torch.float32)
        transl = torch.full((total, 3), torch.nan, dtype=torch.float32)
        live, since = self.live(self.seen(confidence), person.unseen, rate)
        for start, stop in _runs(live) if person.known else []:
            held = _leading(person.last_transl.flip(0)) if start == 0 else 0
            warm = _leading(person.next_transl[:stop]) if start == 0 else 0
            motion = self.solve(xy[:, start:stop], confidence[:, start:stop], rate, person, held, warm)
            if motion is not None:
                rotations[start:stop] = motion.rotations[0, held:].float()
                transl[start:stop] = motion.transl[0, held:].float()
        last, ahead = slice(frames, frames + HELD), slice(frames, frames + self.cfg.overlap_frames)
        after = replace(
            person,
            unseen=since[frames - 1],
            last_rotations=torch.cat([person.last_rotations, rotations.double()])[last],
            last_transl=torch.cat([person.last_transl, transl.double()])[last],
            next_rotations=_padded(rotations.double()[ahead], self.cfg.overlap_frames),
            next_transl=_padded(transl.double()[ahead], self.cfg.overlap_frames),
        )
        return rotations[:frames], transl[:frames], after


def _runs(flags: Tensor) -> list[tuple[int, int]]:
    """(start, stop) of each run of true."""
    padded = torch.nn.functional.pad(flags.long(), (1, 1))
    step = padded[1:] - padded[:-1]
    return list(zip((step == 1).nonzero()[:, 0].tolist(), (step == -1).nonzero()[:, 0].tolist(), strict=True))


def _leading(x: Tensor) -> int:
    """How many rows of x (T, ...) come before the first that is not finite."""
    return int(x.isfinite().flatten(1).all(1).long().cumprod(0).sum())


def _padded(x: Tensor, rows: int) -> Tensor:
    """x (T, ...) with rows of NaN added up to ``rows``."""
    return torch.cat([x, torch.full((rows - len(x), *x.shape[1:]), torch.nan, dtype=x.dtype)])


def _joined(batches: Sequence[KeypointBatch]) -> KeypointBatch:
    """Consecutive batches as one."""
    changed: dict[str, Any] = {
        f.name: torch.cat([getattr(b, f.name) for b in batches], f.metadata["axes"].index("T"))
        for f in fields(KeypointBatch)
        if "T" in f.metadata.get("axes", ())
    }
    return replace(batches[0], **changed, anchor=batches[-1].anchor)


def _result(
    chunk: KeypointBatch, fitted: Sequence[tuple[Tensor, Tensor]], people: Sequence[_Person], fitter: _Fitter
) -> FitBatch:
    """The chunk's fits (rotations, transl) with everything that is computed from them."""
    cfg, rig = fitter.cfg, fitter.rig
    rotations = torch.stack([r for r, _ in fitted], 1)
    transl = torch.stack([t for _, t in fitted], 1)
    joints, points = zip(
        *(
            pose_keypoints(fitter.body, r.double(), q.betas, t.double(), q.offsets)
            for (r, t), q in zip(fitted, people, strict=True)
        ),
        strict=True,
    )
    body_joints, body_points = torch.stack(joints, 1), torch.stack(points, 1)
    seen = chunk.confidence > cfg.min_confidence
    miss = torch.from_numpy(rig.project(body_points.numpy())) - chunk.xy_px.double()
    miss_px = torch.where(seen, miss.norm(dim=-1), torch.nan)  # (V, T, P, 25)
    depth = torch.from_numpy(rig.to_camera(body_joints[:, :, 0].numpy())[..., 2])
    focal = torch.from_numpy(rig.K[:, [0, 1], [0, 1]].mean(1))
    miss_m = miss_px * (depth / focal[:, None, None])[..., None]
    median = miss_m.movedim(0, -1).flatten(-2).nanmedian(-1).values
    enough = seen.sum((0, 3)) >= cfg.min_keypoints
    confidence = torch.where(seen, chunk.confidence, 0).sum(0) / seen.sum(0).clamp(min=1)
    return FitBatch(
        keypoints=chunk,
        params=SmplParams(
            global_orient=rotations[:, :, 0],
            body_pose=rotations[:, :, 1:],
            betas=torch.stack([q.betas for q in people]).float(),
            transl=transl,
        ),
        joints=body_joints.float(),
        keypoints_3d=torch.cat([body_points.float(), confidence[..., None]], -1),
        reprojection_px=miss_px.nanmean(-1).float(),
        valid=enough & (median < cfg.max_error_mm / 1000),
        state=torch.cat([q.packed() for q in people]),
    )


def smplify(
    items: Iterator[KeypointBatch], cfg: SmplifyConfig, rig: Rig, body: Body, state: Tensor | None = None
) -> Iterator[FitBatch]:
    """Fit every chunk of keypoints; one ``FitBatch`` for each, in order, all its frames final.

    A window is a chunk, ``overlap_frames`` of the next to look ahead at, and the last two final frames, held.
    A person's shape and keypoint offsets are estimated once, from the first ``shape_frames`` frames from the
    first one on in which the person is seen (those chunks are held back meanwhile), then kept: all frames
    have the same betas. Before a person is seen, and after ``max_gap_s`` without being seen, the parameters
    are NaN; shorter gaps are bridged by the temporal terms. Neither is valid.

    state: ``FitBatch.state`` of the chunk before the first of ``items``; with it the results are bit for bit
    those of a run that was never interrupted, on one torch thread (more threads are slower here anyway).
    Raises ``InputError`` where there is one camera.
    """
    if len(rig) < 2:
        raise InputError(
            f"there is one camera, '{rig.names[0]}': a body is placed in the world where at least two "
            "calibrated cameras see it. Add a second camera to the recording."
        )
    fitter = _Fitter(cfg, rig, body.keypoints, load_pose_prior())
    waiting: deque[KeypointBatch] = deque()
    people: list[_Person] = []
    while True:
        if not _fill(waiting, items, 1):
            return
        chunk = waiting[0]
        _fill(waiting, items, len(chunk.time_s) + cfg.overlap_frames)
        if not people:
            blank = _Person.unknown(body.num_betas, cfg.overlap_frames)
            count = chunk.xy_px.shape[2]
            packed = [None] * count if state is None else state.chunk(count)
            people = [blank if s is None else blank.unpacked(s) for s in packed]
        for p, person in enumerate(people):
            if not person.known and bool(fitter.seen(chunk.confidence[:, :, p]).any()):
                ended = not _fill(waiting, items, cfg.shape_frames)
                clip = _joined(waiting)
                clip = clip.frames(0, min(cfg.shape_frames, len(clip.time_s)))
                people[p] = fitter.shape(clip, p, person, ended)
        clip, frames = _joined(waiting), len(chunk.time_s)
        clip = clip.frames(0, min(frames + cfg.overlap_frames, len(clip.time_s)))
        fitted = []
        for p, person in enumerate(people):
            rotations, transl, people[p] = fitter.window(clip, frames, p, person)
            fitted.append((rotations, transl))
        waiting.popleft()
        yield _result(chunk, fitted, people, fitter)


def _fill(waiting: deque[KeypointBatch], items: Iterator[KeypointBatch], frames: int) -> bool:
    """Take items until ``frames`` frames wait; false where the items ended before."""
    have = sum(len(b.time_s) for b in waiting)
    while have < frames:
        item = next(items, None)
        if item is None:
            return False
        waiting.append(item)
        have += len(item.time_s)
    return True
