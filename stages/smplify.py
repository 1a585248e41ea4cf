"""Stage: fit SMPL to the keypoints of all views, in overlapping windows of time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from models.body import Body, KeypointBody, pelvis_at_rest, pose_keypoints
from models.fit.problem import FitSettings, Motion, PoseTarget, Schedule, Views, Weights
from models.fit.solver import better_start, fit
from models.fit.starts import TORSO, start_pose, start_regressed, start_shape
from models.geometry.triangulation import triangulate
from models.priors import PosePrior, load_pose_prior
from pipeline.batches import (
    FitBatch,
    KeypointBatch,
    PoseBatch,
    SmplParams,
    State,
    Status,
    check_points,
    joined,
)
from pipeline.cameras import Rig
from pipeline.config import Config

HELD = 2
"""Final frames that a window is tied to: a second difference reaches two back."""

_SHAPE_LEAST = 24
"""Frames in which a person is seen, by two of several cameras, that are waited for, while more may come."""

_SHAPE_PATIENCE = 4
"""Multiple of ``shape_frames`` that is waited for them."""

_GOING_ON = 5.0
"""Factor of the tolerance of a window that goes on from final frames with a known shape. A fit of
shape and poses converges linearly, one of poses alone about five times faster near its end."""

_FAVOUR = 0.5
"""By which factor a regressed start must have less energy than a triangulated one to be taken instead. From
four views that miss a tenth it has 0.5–0.95 times as much, and ends no better; from single frames of two
views, or two views that miss half, 0.05–0.4 times, and there it is needed (7 mm instead of 8, 18 of 23)."""

_PLAIN = 0.9
"""Part of the keypoints which, once triangulated, are a start that nothing else need be compared with."""

_HALF_TURN = torch.diag(torch.tensor([-1.0, 1, -1], dtype=torch.float64))
"""About a body's long axis: the other way to see a heading."""


class SmplifyConfig(Config):
    """Temporal multi-view SMPLify."""

    overlap_frames: int = Field(8, ge=0)
    """Frames of the next chunk that a window looks at before its own frames are final."""
    shape_frames: int = Field(96, ge=1)
    """Frames, from a person's first on, that the shape is estimated from; then it is kept."""
    max_gap_s: float = Field(0.5, ge=0)
    """Longest time from one sight of a person to the next that is bridged, seconds."""
    min_keypoints: int = Field(6, ge=1)
    """Keypoints over all views below which a person counts as not seen in a frame."""
    max_error_mm: float = Field(150.0, gt=0)
    """A frame whose median keypoint misses by more, at the person, is not valid."""
    keypoint_sigma_mm: float = Field(15.0, gt=0)
    """Standard deviation of a sure keypoint at the person; 7 px for a person 820 px tall."""
    pose_weight: float = Field(0.04, ge=0)
    """Weight of the pose prior."""
    shape_weight: float = Field(5.0, ge=0)
    """Weight of |betas|², for every 100 frames."""
    acceleration_sigma: float = Field(5.0, gt=0)
    """Standard deviation of a keypoint's acceleration, m/s², for one that moves as the average does; less is
    smoother."""
    spin_sigma: float = Field(27.0, gt=0)
    """Standard deviation of a joint's angular acceleration, rad/s², the same way."""
    offset_sigma_mm: float = Field(2.5, ge=0)
    """Distance by which detector and body may disagree about a keypoint: an offset for each, estimated once,
    with the shape and from the same frames, then kept; those frames may say that it is up to 2.5 times more
    or less; 0 switches it off."""
    regressed_sigma: float = Field(1.0, gt=0)
    """Angle that a joint may turn from the regressor's pose where a single view sees the person, over the
    error that the regressor expects of it; two views know better."""
    tolerance: float = Field(1e-3, gt=0)
    """Relative decrease of the energy at which a fit stops."""

    def weights(self) -> Weights:
        return Weights(
            keypoint_m=self.keypoint_sigma_mm / 1000,
            pose=self.pose_weight,
            shape=self.shape_weight,
            acceleration_ms2=self.acceleration_sigma,
            spin_rads2=self.spin_sigma,
            offset_m=self.offset_sigma_mm / 1000,
        )

    def schedule(self, *, goes_on: bool = False) -> Schedule:
        """Stages of a fit that begins anew, or goes on from final frames."""
        # The widest scale is for rough starts. Triangulation has voted outliers out of these.
        *early, (robust, most, _) = Schedule().stages[1:]
        if goes_on:
            # The shape is known, a third of the frames have been fitted before: the earlier stage gains
            # nothing.
            return Schedule(((robust, most, _GOING_ON * self.tolerance),))
        return Schedule((*early, (robust, most, self.tolerance)))


@dataclass(frozen=True)
class _Person:
    """All that the next window needs of one person (float64); NaN stands for not known, not there."""

    betas: Tensor  # (B,)
    offsets: Tensor  # (K, 3)
    unseen: Tensor  # () frames since the person was last seen, before the window
    last_rotations: Tensor  # (HELD, J, 3, 3) of the last final frames
    last_transl: Tensor  # (HELD, 3)
    ahead: Tensor  # () frames that were fitted together with those before the window
    next_rotations: Tensor  # (most, J, 3, 3) of these, the window's first
    next_transl: Tensor  # (most, 3)

    @staticmethod
    def unknown(body: KeypointBody, most: int) -> _Person:
        def nan(*shape: int) -> Tensor:
            return torch.full(shape, torch.nan, dtype=torch.float64)

        points, joints = body.weights.shape
        last, coming = (nan(HELD, joints, 3, 3), nan(HELD, 3)), (nan(most, joints, 3, 3), nan(most, 3))
        betas = body.joints_shapedirs.shape[-1]
        return _Person(nan(betas), nan(points, 3), nan(), *last, torch.zeros_like(nan()), *coming)

    @property
    def known(self) -> bool:
        return bool(self.betas.isfinite().all())

    def looking_ahead(self, rotations: Tensor, transl: Tensor) -> _Person:
        """The person with rotations (T, J, 3, 3), transl (T, 3) of the next frames, as far as they fit."""
        most = len(self.next_transl)
        return replace(
            self,
            ahead=torch.full_like(self.ahead, min(len(transl), most)),
            next_rotations=_padded(rotations[:most].double(), most),
            next_transl=_padded(transl[:most].double(), most),
        )

    def packed(self, person: int) -> State:
        """Restart state of the person with this id."""
        return {f"smplify/{person}/{f.name}": getattr(self, f.name) for f in fields(self)}

    @staticmethod
    def unpacked(state: State) -> dict[int, _Person]:
        """Everybody in a restart state, by id."""
        ids = {int(name.split("/")[1]) for name in state if name.startswith("smplify/")}
        return {i: _Person(*(state[f"smplify/{i}/{f.name}"] for f in fields(_Person))) for i in ids}


@dataclass(frozen=True)
class _Run:
    """Frames in which a person is there, to be fitted as one problem; the first ``held`` are final."""

    person: int
    frames: Tensor  # (T − held,) where the others lie in the clip
    held: int
    breaks: tuple[int, ...]  # frames that do not follow the one before them
    xy: Tensor  # (V, T, K, 2)
    confidence: Tensor  # (V, T, K)
    start: Motion  # N = 1
    toward: Tensor  # (T, L, 3, 3) the regressor's pose where it counts, else NaN
    sigma: Tensor  # (T, L) radians, by which it expects to be off
    free_shape: bool = False


@dataclass(frozen=True)
class _Fitter:
    """Settings, cameras and body of all windows, and the fit of one."""

    cfg: SmplifyConfig
    rig: Rig
    body: KeypointBody
    prior: PosePrior

    def seen(self, confidence: Tensor) -> Tensor:
        """(V, T, K) → (T,) whether the person was seen in a frame."""
        return (confidence > 0).sum((0, 2)) >= self.cfg.min_keypoints

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

    def triangulated(self, xy: Tensor, confidence: Tensor, warm: int = 0) -> Tensor:
        """(V, T, K, 2), (V, T, K) → points (T, K, 3), NaN where no two views agree.

        Of the first ``warm`` frames the torso alone, which tells how the person stands.
        """
        wanted = torch.ones(xy.shape[1:3], dtype=torch.bool)
        wanted[:warm] = torch.tensor([name in TORSO for name in self.body.keypoint_skeleton.names])
        found = triangulate(self.rig, xy[:, wanted].numpy(), confidence[:, wanted].numpy())
        points = torch.full((*wanted.shape, 3), torch.nan, dtype=torch.float64)
        agreed = (found.used.sum(0) >= 2)[:, None]
        points[wanted] = torch.from_numpy(np.where(agreed, found.points, np.nan))
        return points

    def alone(self, confidence: Tensor) -> Tensor:
        """(V, T, K) → (T,) whether no more than one view shows the person."""
        shown = (confidence > 0).sum(2) >= self.cfg.min_keypoints
        return shown.sum(0) < 2

    def measured(self, confidence: Tensor) -> Tensor:
        """(V, T, K) → (T,) whether a frame tells of a person's size: two views show the person.

        One does where there is no other. It tells nothing of size, and never will.
        """
        seen = self.seen(confidence)
        return seen if len(self.rig) == 1 else seen & ~self.alone(confidence)

    def views(self, xy: Tensor, confidence: Tensor) -> Views:
        """(N, V, T, K, 2), (N, V, T, K) with the rig's cameras."""
        cameras = (torch.from_numpy(x) for x in (self.rig.K, self.rig.R, self.rig.t))
        K, R, t = (x.expand(len(xy), *x.shape) for x in cameras)
        return Views(K, R, t, xy, confidence)

    def start(
        self,
        clip: PoseBatch,
        p: int,
        points: Tensor,
        shape: tuple[Tensor, Tensor],
        before: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor] | None:
        """Rotations (T, J, 3, 3) and transl (T, 3) to start a run of frames from; None where nothing shows.

        clip: the frames; points (T, K, 3): triangulated in them; shape: betas (B,) and offsets (K, 3);
        before: rotations (H, J, 3, 3) and transl (H, 3) of the first H frames, fitted already.
        """
        rate = float(clip.keypoints.rate)
        done = 0 if before is None else len(before[0])
        measured = start_pose(self.body, shape[0], points, rate, before)
        if measured is not None and points[done:].isfinite().all(-1).double().mean() > _PLAIN:
            return measured
        rotations = torch.cat([clip.global_orient[:, p, None], clip.body_pose[:, p]], 1)
        regressed = start_regressed(self.body, shape[0], rotations, self.pelvis(clip, p), rate, before)
        if regressed is None:
            return measured
        turned = regressed[0].clone()
        turned[done:, 0] @= _HALF_TURN
        poses = [regressed, (turned, regressed[1])]
        best = better_start(
            self.body,
            self.views(clip.keypoints.xy_px[None, :, :, p], clip.keypoints.confidence[None, :, :, p]),
            [
                Motion(*(x[None] for x in (*pose, *shape)))
                for pose in (poses if measured is None else [measured, *poses])
            ],
            FitSettings(rate, weights=self.cfg.weights(), prior=self.prior),
            favour=1.0 if measured is None else _FAVOUR,
        )
        return best.rotations[0], best.transl[0]

    def pelvis(self, clip: PoseBatch, p: int) -> Tensor:
        """(T, 3) where the regressor sees it, metres, world."""
        return pelvis_at_rest(self.body, clip.betas[:, p].double()) + clip.transl[:, p]

    def toward(self, clip: PoseBatch, p: int) -> Tensor:
        """(T, L, 3, 3) what the regressor says of the frames that one view shows, else NaN."""
        alone = self.alone(clip.keypoints.confidence[:, :, p])
        return torch.where(alone[:, None, None, None], clip.body_pose[:, p], torch.nan)

    def shape_run(self, clip: PoseBatch, p: int) -> _Run | None:
        """All frames of a clip in which a person is there, with a shape to start from.

        None where no frame shows how the person stands.
        """
        xy, confidence = clip.keypoints.xy_px[:, :, p], clip.keypoints.confidence[:, :, p]
        points = self.triangulated(xy, confidence)
        live = self.live(self.seen(confidence), torch.nan, float(clip.keypoints.rate))
        free = not bool(self.alone(confidence[:, live]).all())
        betas = start_shape(self.body, points[live])
        if not free:
            betas = clip.betas[:, p].double().nanmedian(0).values.nan_to_num()
        offsets = torch.zeros_like(self.body.points_template)
        poses = [
            (r, self.start(clip.frames(*r), p, points[slice(*r)], (betas, offsets))) for r in _runs(live)
        ]
        placed = [(torch.arange(*run), *pose) for run, pose in poses if pose is not None]
        if not placed:
            return None
        frames, rotations, transl = (torch.cat(parts) for parts in zip(*placed, strict=True))
        return _Run(
            person=p,
            frames=frames,
            held=0,
            breaks=tuple(np.cumsum([len(run) for run, *_ in placed])[:-1].tolist()),
            xy=xy[:, frames],
            confidence=confidence[:, frames],
            start=Motion(rotations[None], transl[None], betas[None], offsets[None]),
            toward=self.toward(clip, p)[frames],
            sigma=clip.pose_sigma[frames, p],
            free_shape=free,
        )

    def window_runs(self, clip: PoseBatch, p: int, person: _Person) -> Iterator[_Run]:
        """The runs of frames of a clip in which a person of known shape is there."""
        rate = float(clip.keypoints.rate)
        seen = self.seen(clip.keypoints.confidence[:, :, p])
        for begin, end in _runs(self.live(seen, float(person.unseen), rate)):
            held = _leading(person.last_transl.flip(0)) if begin == 0 else 0
            warm = _leading(person.next_transl[:end]) if begin == 0 else 0
            before = None
            if held + warm:
                before = (
                    torch.cat([person.last_rotations[HELD - held :], person.next_rotations[:warm]]),
                    torch.cat([person.last_transl[HELD - held :], person.next_transl[:warm]]),
                )
            part = clip.frames(begin, end)
            xy, confidence = part.keypoints.xy_px[:, :, p], part.keypoints.confidence[:, :, p]
            points = self.triangulated(xy, confidence, warm)
            part = part.after_blank(held)
            points = pad(points, (0, 0, 0, 0, held, 0), value=torch.nan)
            pose = self.start(part, p, points, (person.betas, person.offsets), before)
            if pose is not None:
                yield _Run(
                    person=p,
                    frames=torch.arange(begin, end),
                    held=held,
                    breaks=(),
                    xy=part.keypoints.xy_px[:, :, p],
                    confidence=part.keypoints.confidence[:, :, p],
                    start=Motion(pose[0][None], pose[1][None], person.betas[None], person.offsets[None]),
                    toward=self.toward(part, p),
                    sigma=part.pose_sigma[:, p],
                )

    def fit(self, runs: Sequence[_Run], rate: float) -> Iterator[tuple[_Run, Motion]]:
        """Each run with its motion, N = 1. Those that are alike in time are fitted in one call."""
        alike: dict[tuple[int, int, tuple[int, ...], bool], list[_Run]] = {}
        for run in runs:
            alike.setdefault((len(run.frames), run.held, run.breaks, run.free_shape), []).append(run)
        for (_, held, breaks, free_shape), group in alike.items():
            toward = torch.stack([r.toward for r in group])
            sigma = self.cfg.regressed_sigma * torch.stack([r.sigma for r in group])
            motion = fit(
                self.body,
                self.views(torch.stack([r.xy for r in group]), torch.stack([r.confidence for r in group])),
                Motion(*(torch.cat([getattr(r.start, f.name) for r in group]) for f in fields(Motion))),
                FitSettings(
                    rate,
                    held,
                    breaks,
                    free_shape,
                    self.cfg.weights(),
                    self.cfg.schedule(goes_on=held > 0),
                    self.prior,
                    PoseTarget(toward, sigma) if bool(toward.isfinite().any()) else None,
                ),
            ).motion
            for n, run in enumerate(group):
                yield run, Motion(*(getattr(motion, f.name)[n : n + 1] for f in fields(Motion)))

    def shapes(self, people: Sequence[_Person], clips: Mapping[int, tuple[PoseBatch, int]]) -> list[_Person]:
        """The people, with a shape for those that have a clip which somewhere shows how they stand.

        clips: number of the person → clip from the chunk's first frame on, and its first frame that counts.
        A clip is fitted as a whole, as a window is: its frames need not be fitted again.
        """
        after = list(people)
        found = (
            self.shape_run(clip.frames(first, len(clip.transl)), p) for p, (clip, first) in clips.items()
        )
        runs = [run for run in found if run is not None]
        rates = [float(clip.keypoints.rate) for clip, _ in clips.values()]
        for run, motion in self.fit(runs, rates[0]) if runs else ():
            clip, first = clips[run.person]
            rotations, transl = _nowhere(clip)
            rotations[first + run.frames] = motion.rotations[0].float()
            transl[first + run.frames] = motion.transl[0].float()
            person = replace(
                people[run.person], betas=motion.betas[0].double(), offsets=motion.offsets[0].double()
            )
            after[run.person] = person.looking_ahead(rotations, transl)
        return after

    def windows(
        self, people: Sequence[_Person], clips: Sequence[PoseBatch], frames: int
    ) -> tuple[Tensor, Tensor, list[_Person]]:
        """Rotations (frames, P, J, 3, 3), transl (frames, P, 3) of the first frames, and the people after.

        clips: what the window of each person looks at.
        """
        poses, runs = [], list[_Run]()
        for p, (person, clip) in enumerate(zip(people, clips, strict=True)):
            total = len(clip.transl)
            if person.ahead >= total:
                poses.append((person.next_rotations.float(), person.next_transl.float()))
            else:
                poses.append(_nowhere(clip))
                runs += self.window_runs(clip, p, person) if person.known else ()
        for run, motion in self.fit(runs, float(clips[0].keypoints.rate)):
            rotations, transl = poses[run.person]
            rotations[run.frames] = motion.rotations[0, run.held :].float()
            transl[run.frames] = motion.transl[0, run.held :].float()
        after = []
        for p, (person, clip, (rotations, transl)) in enumerate(zip(people, clips, poses, strict=True)):
            seen = self.seen(clip.keypoints.confidence[:, :frames, p])
            ahead = max(int(person.ahead), len(clip.transl))
            person = replace(
                person,
                unseen=torch.full_like(person.unseen, self.unseen(seen, float(person.unseen))),
                last_rotations=torch.cat([person.last_rotations, rotations[:frames].double()])[-HELD:],
                last_transl=torch.cat([person.last_transl, transl[:frames].double()])[-HELD:],
            )
            after.append(person.looking_ahead(rotations[frames:ahead], transl[frames:ahead]))
        rotations, transl = (torch.stack([pose[i][:frames] for pose in poses], 1) for i in range(2))
        return rotations, transl, after


def _runs(flags: Tensor) -> list[tuple[int, int]]:
    """(start, stop) of each run of true."""
    step = pad(flags.long(), (1, 1)).diff()
    return list(zip((step == 1).nonzero()[:, 0].tolist(), (step == -1).nonzero()[:, 0].tolist(), strict=True))


def _leading(x: Tensor) -> int:
    """Number of rows of x (T, ...) before the first that is not finite."""
    return int(x.isfinite().flatten(1).all(1).long().cumprod(0).sum())


def _padded(x: Tensor, rows: int) -> Tensor:
    """x (T, ...) with rows of NaN added up to ``rows``."""
    return torch.cat([x, torch.full((rows - len(x), *x.shape[1:]), torch.nan, dtype=x.dtype)])


def _nowhere(clip: PoseBatch) -> tuple[Tensor, Tensor]:
    """Rotations (T, J, 3, 3) and transl (T, 3) of nobody in the frames of a clip."""
    frames, joints = len(clip.transl), len(clip.skeleton)
    return torch.full((frames, joints, 3, 3), torch.nan), torch.full((frames, 3), torch.nan)


def _nobody(chunk: PoseBatch, person: _Person) -> FitBatch:
    """The fit of a chunk without people."""
    views, frames, _, points = chunk.keypoints.confidence.shape
    return FitBatch(
        keypoints=chunk.keypoints,
        params=SmplParams(
            chunk.global_orient, chunk.body_pose, torch.zeros(0, len(person.betas)), chunk.transl
        ),
        joints=torch.zeros(frames, 0, len(chunk.skeleton), 3),
        keypoints_3d=torch.zeros(frames, 0, points, 4),
        reprojection_px=torch.zeros(views, frames, 0),
        status=torch.zeros(frames, 0, dtype=torch.uint8),
        skeleton=chunk.skeleton,
    )


def _result(
    chunk: KeypointBatch, rotations: Tensor, transl: Tensor, known: Mapping[int, _Person], fitter: _Fitter
) -> FitBatch:
    """The chunk's fits, rotations (T, P, J, 3, 3) and transl (T, P, 3), with all that follows from them."""
    cfg, rig, people = fitter.cfg, fitter.rig, known.values()
    joints, points = zip(
        *(
            pose_keypoints(fitter.body, rotations[:, p].double(), q.betas, transl[:, p].double(), q.offsets)
            for p, q in enumerate(people)
        ),
        strict=True,
    )
    body_joints, body_points = torch.stack(joints, 1), torch.stack(points, 1)
    seen = chunk.confidence > 0
    miss = torch.from_numpy(rig.project(body_points.numpy())) - chunk.xy_px.double()
    miss_px = torch.where(seen, miss.norm(dim=-1), torch.nan)  # (V, T, P, K)
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
        state={name: x for person, q in known.items() for name, x in q.packed(person).items()},
        skeleton=fitter.body.skeleton,
    )


def smplify(
    items: Iterator[PoseBatch], cfg: SmplifyConfig, rig: Rig, body: Body, state: State | None = None
) -> Iterator[FitBatch]:
    """Fit every chunk of people; one ``FitBatch`` for each, in order, all its frames final.

    A window is a chunk, ``overlap_frames`` of the next to look ahead at, and the last two final frames, held.
    A person's shape and keypoint offsets (detector against body) are estimated once, from ``shape_frames``
    frames from the first one on in which the person is seen (those chunks are held back meanwhile), then
    kept. The poses come with the shape and are final, up to the overlap. Where a person is seen again within
    ``max_gap_s``, the frames between are bridged by the temporal terms; a chunk that ends in a gap is held
    back until that is known. All other frames in which a person is not seen are NaN.

    A run of frames starts from triangulated keypoints; where many are missing, from the regressor's poses, or
    these turned round by 180°, if they have clearly less energy. Where one view alone shows the person, the
    fit is drawn to the regressor's poses. One view cannot tell a large person from a near one: with several
    cameras two that show the person are waited for, up to four times ``shape_frames``. Where they never come,
    the regressor's shape is kept.

    Every person is fitted alone: a new id begins without shape, offsets and poses, one that ``items`` leave
    out is forgotten.

    state: what was ``carried`` after the chunk before the first of ``items``; with it, on one torch thread,
    the results are bit for bit those of a run that was never interrupted.

    Raises ``ValueError`` where joints or keypoints of a batch are not the body's.
    """
    fitter = _Fitter(cfg, rig, body.keypoints, load_pose_prior())
    waiting: deque[PoseBatch] = deque()
    blank = _Person.unknown(body.keypoints, max(cfg.overlap_frames, cfg.shape_frames))
    known = _Person.unpacked(state or {})
    while _fill(waiting, items, 1):
        chunk = waiting[0]
        check_points(chunk, body.skeleton, body.keypoints.keypoint_skeleton)
        frames, ids = len(chunk.transl), chunk.keypoints.ids.tolist()
        people = [known.get(i, blank) for i in ids]
        clips = {}
        for p, person in enumerate(people):
            seen = fitter.seen(chunk.keypoints.confidence[:, :, p])
            if not person.known and bool(seen.any()):
                first = int(seen.nonzero()[0])
                clips[p] = _shape_clip(waiting, items, fitter, p, first), first
        people = fitter.shapes(people, clips)
        if people:
            stops = [_window_end(waiting, items, fitter, p, float(q.unseen)) for p, q in enumerate(people)]
            clip = _clip(waiting)
            windows = [clip.frames(0, min(stop, len(clip.transl))) for stop in stops]
            rotations, transl, people = fitter.windows(people, windows, frames)
        waiting.popleft()
        known = dict(zip(ids, people, strict=True))
        yield _result(chunk.keypoints, rotations, transl, known, fitter) if people else _nobody(chunk, blank)


def _clip(waiting: Sequence[PoseBatch]) -> PoseBatch:
    """All that waits as one batch, of the people of the first chunk."""
    ids = waiting[0].keypoints.ids
    return joined([batch.people(ids) for batch in waiting])


def _shape_clip(
    waiting: deque[PoseBatch], items: Iterator[PoseBatch], fitter: _Fitter, p: int, first: int
) -> PoseBatch:
    """The frames that a person's shape is estimated from, seen in frame ``first``; and those before it.

    More of them where the person is hardly seen, or by one of several cameras.
    """
    for most in range(1, _SHAPE_PATIENCE + 1):
        stop = first + most * fitter.cfg.shape_frames
        ended = not _fill(waiting, items, stop)
        clip = _clip(waiting)
        clip = clip.frames(0, min(stop, len(clip.transl)))
        if ended or int(fitter.measured(clip.keypoints.confidence[:, first:, p]).sum()) >= _SHAPE_LEAST:
            break
    return clip


def _window_end(
    waiting: deque[PoseBatch], items: Iterator[PoseBatch], fitter: _Fitter, p: int, unseen: float
) -> int:
    """Length of the first chunk's window, frames: with the overlap or, out of a gap, to its end."""
    chunk, overlap = waiting[0], fitter.cfg.overlap_frames
    frames = len(chunk.transl)
    _fill(waiting, items, frames + overlap)
    unseen = fitter.unseen(fitter.seen(chunk.keypoints.confidence[:, :, p]), unseen)
    # The last frame in which it can be seen for the gap to be bridged.
    again = frames - unseen + fitter.gap(float(chunk.keypoints.rate))
    if unseen > 0 and again > frames:
        _fill(waiting, items, int(again))
        confidence = _clip(waiting).keypoints.confidence[:, frames : int(again), p]
        index = fitter.seen(confidence).nonzero()[:, 0]
        if len(index):
            stop = frames + int(index[0]) + 1 + overlap
            _fill(waiting, items, stop)
            return stop
    return frames + overlap


def _fill(waiting: deque[PoseBatch], items: Iterator[PoseBatch], frames: int) -> bool:
    """Take items until ``frames`` frames wait; false where the items ended before."""
    have = sum(len(b.transl) for b in waiting)
    while have < frames:
        item = next(items, None)
        if item is None:
            return False
        waiting.append(item)
        have += len(item.transl)
    return True
