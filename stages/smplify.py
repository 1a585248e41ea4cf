"""Stage: fit SMPL to the keypoints of all views, in overlapping windows of time."""

from __future__ import annotations

import math
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
from pipeline.batches import FitBatch, KeypointBatch, SmplParams, Status
from pipeline.cameras import Rig
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.triangulation import triangulate

HELD = 2
"""Final frames that a window is tied to: a second difference reaches two back."""

_SHAPE_STEP = 2
"""Frames from one that the shape is estimated from to the next: neighbours say nearly the same about it."""

_SHAPE_LEAST = 24
"""Frames that the step leaves, and that are waited for while more may come."""

_SHAPE_PATIENCE = 4
"""How many times ``shape_frames`` are waited for them."""


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
        description="longest time from one sight of a person to the next that is bridged, seconds",
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
        # The widest scale is for rough starts. Triangulation has voted outliers out of these.
        *early, (robust, most, _) = Schedule().stages[1:]
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

    def triangulated(self, xy: Tensor, confidence: Tensor) -> Tensor:
        """(V, T, 25, 2), (V, T, 25) → points (T, 25, 3), NaN where no two views agree."""
        found = triangulate(self.rig, xy.numpy(), confidence.numpy())
        return torch.from_numpy(np.where((found.used.sum(0) >= 2)[..., None], found.points, np.nan))

    def views(self, xy: Tensor, confidence: Tensor) -> Views:
        K, R, t = (torch.from_numpy(x)[None] for x in (self.rig.K, self.rig.R, self.rig.t))
        return Views(K, R, t, xy[None], confidence[None])

    def solve(
        self, xy: Tensor, confidence: Tensor, rate: float, person: _Person, held: int, warm: int
    ) -> Motion | None:
        """Fit one run of frames, the first ``held`` + ``warm`` of which ``person`` has been fitted in before.

        xy (V, T, 25, 2), confidence (V, T, 25) of the frames after the held ones. None where nothing tells
        where the body is.
        """
        before = None
        if held + warm:
            before = (
                torch.cat([person.last_rotations[HELD - held :], person.next_rotations[:warm]]),
                torch.cat([person.last_transl[HELD - held :], person.next_transl[:warm]]),
            )
        blank = torch.nn.functional.pad
        points = blank(self.triangulated(xy, confidence), (0, 0, 0, 0, held, 0), value=torch.nan)
        start = start_pose(self.body, person.betas, points, rate, before)
        if start is None:
            return None
        return fit(
            self.body,
            self.views(blank(xy, (0, 0, 0, 0, held, 0), value=torch.nan), blank(confidence, (0, 0, held, 0))),
            Motion(start[0][None], start[1][None], person.betas[None], person.offsets[None]),
            rate,
            held=held,
            free_shape=False,
            weights=self.cfg.weights(),
            schedule=self.cfg.schedule(),
            prior=self.prior,
        ).motion

    def shape(self, clip: KeypointBatch, p: int, person: _Person) -> _Person:
        """The person with the shape that a clip shows; as it was if the clip nowhere shows how it stands.

        All runs of frames in which the person is seen are fitted at once: they share the shape alone.
        """
        rate = float(clip.rate)
        xy, confidence = clip.xy_px[:, :, p], clip.confidence[:, :, p]
        live = self.live(self.seen(confidence), torch.nan, rate)
        step = max(1, min(_SHAPE_STEP, int(live.sum()) // _SHAPE_LEAST))
        runs = [torch.arange(start, stop, step) for start, stop in _runs(live)]
        points = self.triangulated(xy, confidence)
        betas = start_shape(self.body, points[live])
        starts = [(run, start_pose(self.body, betas, points[run], rate / step)) for run in runs]
        placed = [(run, start) for run, start in starts if start is not None]
        if not placed:
            return person
        frames = torch.cat([run for run, _ in placed])
        rotations, transl = (torch.cat([start[i] for _, start in placed])[None] for i in range(2))
        motion = fit(
            self.body,
            self.views(xy[:, frames], confidence[:, frames]),
            Motion(rotations, transl, betas[None], torch.zeros_like(person.offsets)[None]),
            rate / step,
            breaks=np.cumsum([len(run) for run, _ in placed])[:-1].tolist(),
            weights=self.cfg.weights(),
            schedule=self.cfg.schedule(),
            prior=self.prior,
        ).motion
        return replace(person, betas=motion.betas[0].double(), offsets=motion.offsets[0].double())

    def gap(self, rate: float) -> int:
        """Most frames from one sight of a person to the next for those between to be bridged."""
        return math.floor(self.cfg.max_gap_s * rate + 1e-6)

    def live(self, seen: Tensor, unseen: float, rate: float) -> Tensor:
        """Frames (T,) with a body: seen, or between two such that are near in time.

        unseen: frames since the person was last seen, before the first; NaN for never.
        """
        live, last = seen.clone(), -1 - unseen
        for t in seen.nonzero()[:, 0].tolist():
            if t - last <= self.gap(rate):  # NaN compares false
                live[max(int(last) + 1, 0) : t] = True
            last = t
        return live

    def unseen(self, seen: Tensor, unseen: float) -> float:
        """Frames since the person was last seen, after frames ``seen`` (T,)."""
        index = seen.nonzero()[:, 0]
        return float(len(seen) - 1 - index[-1] if len(index) else unseen + len(seen))

    def window(
        self, clip: KeypointBatch, frames: int, p: int, person: _Person
    ) -> tuple[Tensor, Tensor, _Person]:
        """Rotations (frames, 24, 3, 3), transl (frames, 3) of a clip's first frames; the person after it."""
        rate = float(clip.rate)
        xy, confidence = clip.xy_px[:, :, p], clip.confidence[:, :, p]
        total = xy.shape[1]
        rotations = torch.full((total, JOINTS, 3, 3), torch.nan, dtype=torch.float32)
        transl = torch.full((total, 3), torch.nan, dtype=torch.float32)
        seen = self.seen(confidence)
        live = self.live(seen, float(person.unseen), rate)
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
            unseen=torch.tensor(self.unseen(seen[:frames], float(person.unseen)), dtype=torch.float64),
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
    count = seen.sum((0, 3))
    enough, posed = count >= cfg.min_keypoints, transl.isfinite().all(-1)
    status = torch.full_like(count, Status.NOT_SEEN)
    status[enough] = Status.NO_START
    status[posed] = Status.BRIDGED
    status[posed & (count > 0)] = Status.FEW_KEYPOINTS
    status[posed & enough] = Status.FAR_OFF
    status[posed & enough & (median < cfg.max_error_mm / 1000)] = Status.OK
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
        status=status.to(torch.uint8),
        state=torch.cat([q.packed() for q in people]),
    )


def smplify(
    items: Iterator[KeypointBatch], cfg: SmplifyConfig, rig: Rig, body: Body, state: Tensor | None = None
) -> Iterator[FitBatch]:
    """Fit every chunk of keypoints; one ``FitBatch`` for each, in order, all its frames final.

    A window is a chunk, ``overlap_frames`` of the next to look ahead at, and the last two final frames, held.
    A person's shape and keypoint offsets are estimated once, from ``shape_frames`` frames from the first one
    on in which the person is seen (those chunks are held back meanwhile), then kept: all frames have the same
    betas. Where a person is seen again within ``max_gap_s``, the frames between are bridged by the temporal
    terms; a chunk that ends in a gap is held back until that is known. All other frames in which a person is
    not seen are NaN. ``FitBatch.status`` says which frame is what.

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
        if not people:
            blank = _Person.unknown(body.num_betas, cfg.overlap_frames)
            count = chunk.xy_px.shape[2]
            packed = [None] * count if state is None else state.chunk(count)
            people = [blank if s is None else blank.unpacked(s) for s in packed]
        fitted = []
        for p, person in enumerate(people):
            seen = fitter.seen(chunk.confidence[:, :, p])
            if not person.known and bool(seen.any()):
                clip = _shape_clip(waiting, items, fitter, p, int(seen.nonzero()[0]))
                people[p] = fitter.shape(clip, p, person)
            stop = _window_end(waiting, items, fitter, p, float(person.unseen))
            clip = _joined(waiting)
            clip = clip.frames(0, min(stop, len(clip.time_s)))
            rotations, transl, people[p] = fitter.window(clip, len(chunk.time_s), p, people[p])
            fitted.append((rotations, transl))
        waiting.popleft()
        yield _result(chunk, fitted, people, fitter)


def _shape_clip(
    waiting: deque[KeypointBatch], items: Iterator[KeypointBatch], fitter: _Fitter, p: int, first: int
) -> KeypointBatch:
    """The frames that a person's shape is estimated from, the first of them seen.

    More of them where the person is hardly seen: what is estimated from them is for the whole recording.
    """
    for most in range(1, _SHAPE_PATIENCE + 1):
        stop = first + most * fitter.cfg.shape_frames
        ended = not _fill(waiting, items, stop)
        clip = _joined(waiting)
        clip = clip.frames(first, min(stop, len(clip.time_s)))
        if ended or int(fitter.seen(clip.confidence[:, :, p]).sum()) >= _SHAPE_LEAST:
            break
    return clip


def _window_end(
    waiting: deque[KeypointBatch], items: Iterator[KeypointBatch], fitter: _Fitter, p: int, unseen: float
) -> int:
    """How many frames the window of the first chunk looks at: the overlap or, out of a gap, to its end."""
    chunk, overlap = waiting[0], fitter.cfg.overlap_frames
    frames = len(chunk.time_s)
    _fill(waiting, items, frames + overlap)
    unseen = fitter.unseen(fitter.seen(chunk.confidence[:, :, p]), unseen)
    again = frames - unseen + fitter.gap(float(chunk.rate))  # frames, if it is seen in the last of them
    if unseen > 0 and again > frames:
        _fill(waiting, items, int(again))
        confidence = _joined(waiting).confidence[:, frames : int(again), p]
        index = fitter.seen(confidence).nonzero()[:, 0]
        if len(index):
            stop = frames + int(index[0]) + 1 + overlap
            _fill(waiting, items, stop)
            return stop
    return frames + overlap


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
