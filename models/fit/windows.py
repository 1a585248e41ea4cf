"""Fit of people in windows of time: restart state, segments of consecutive frames, and their batched fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from models.body import KeypointBody, pelvis_at_rest
from models.fit.presence import (
    frames_unseen,
    gap_frames,
    intervals,
    posed_frames,
    size_frames,
    viewed_once,
    visible_frames,
)
from models.fit.problem import FitSettings, Motion, PoseTarget, Schedule, Views, Weights
from models.fit.solver import choose_start, fit
from models.fit.starts import TORSO, start_pose, start_regressed, start_shape
from models.geometry.triangulation import triangulate
from models.priors import PosePrior
from pipeline.batches import PoseBatch, State
from pipeline.cameras import Rig
from pipeline.config import Config

HELD_FRAMES = 2
"""Final frames that a window continues: a second difference spans two."""

_WARM_TOLERANCE_RATIO = 5.0
"""Tolerance of a warm fit over that of a cold one: poses alone converge about five times faster near the
minimum than shape and poses."""

_MAX_START_ENERGY_RATIO = 0.5
"""Energy of a regressed start over that of a triangulated one above which the latter is kept. The ratio is
0.5–0.95 from four views that miss a tenth, where both end alike; 0.05–0.4 from single frames of two views, or
two views that miss half, where the regressed one ends better (7 mm instead of 8, 18 of 23)."""

_MIN_TRIANGULATED_SHARE = 0.9
"""Share of triangulated keypoints from which no regressed start is tried."""

_HALF_TURN = torch.diag(torch.tensor([-1.0, 1, -1], dtype=torch.float64))
"""Rotation by 180° about the body's long axis."""


class SmplifyConfig(Config):
    """Temporal multi-view SMPLify."""

    overlap_frames: int = Field(8, ge=0)
    """Frames of the next chunk that a window includes."""
    shape_frames: int = Field(96, ge=1)
    """Frames from a person's first on that estimate the shape, which is then kept."""
    max_gap_s: float = Field(0.5, ge=0)
    """Longest distance of two visible frames between which a person is bridged, seconds."""
    min_keypoints: int = Field(6, ge=1)
    """Fewest keypoints over all views with which a person is visible in a frame."""
    max_error_mm: float = Field(150.0, gt=0)
    """Largest median keypoint error of a valid frame, at the person."""
    keypoint_sigma_mm: float = Field(15.0, gt=0)
    """Standard deviation of a keypoint of confidence 1, at the person; 7 px for a person 820 px tall."""
    pose_weight: float = Field(0.04, ge=0)
    """Weight of the pose prior."""
    shape_weight: float = Field(5.0, ge=0)
    """Weight of |betas|² for every 100 frames."""
    acceleration_sigma: float = Field(5.0, gt=0)
    """Standard deviation of an average keypoint's acceleration, m/s²; less is smoother."""
    spin_sigma: float = Field(27.0, gt=0)
    """Standard deviation of an average joint's angular acceleration, rad/s²; less is smoother."""
    offset_sigma_mm: float = Field(2.5, ge=0)
    """Standard deviation of the keypoints' offsets between detector and body, estimated with the shape and
    then kept; the frames may change it by a factor of 2.5. 0: no offsets."""
    regressed_sigma: float = Field(1.0, gt=0)
    """Standard deviation of a joint's angle to the regressor's pose, relative to the regressor's own estimate
    of its error, where a single view sees the person."""
    tolerance: float = Field(1e-3, gt=0)
    """Relative decrease of the energy below which a fit stops."""

    def weights(self) -> Weights:
        return Weights(
            keypoint_m=self.keypoint_sigma_mm / 1000,
            pose=self.pose_weight,
            shape=self.shape_weight,
            acceleration_ms2=self.acceleration_sigma,
            spin_rads2=self.spin_sigma,
            offset_m=self.offset_sigma_mm / 1000,
        )

    def schedule(self, *, warm: bool = False) -> Schedule:
        """Annealing stages of a cold fit, or of a warm one, which continues final frames."""
        # The widest scale is for rough starts: triangulation has removed the outliers of these.
        *early, (robust, limit, _) = Schedule().stages[1:]
        if warm:
            # Its shape is known and a third of its frames were fitted before: earlier stages gain nothing.
            return Schedule(((robust, limit, _WARM_TOLERANCE_RATIO * self.tolerance),))
        return Schedule((*early, (robust, limit, self.tolerance)))


@dataclass(frozen=True)
class PersonState:
    """Restart state of one person between windows (float64); NaN where unknown."""

    betas: Tensor  # (B,)
    offsets: Tensor  # (K, 3)
    unseen: Tensor  # () frames since the person was last visible
    last_rotations: Tensor  # (HELD_FRAMES, J, 3, 3) of the last final frames
    last_transl: Tensor  # (HELD_FRAMES, 3)
    ahead: Tensor  # () frames fitted beyond the final ones
    next_rotations: Tensor  # (A, J, 3, 3) of those frames
    next_transl: Tensor  # (A, 3)

    @staticmethod
    def unknown(body: KeypointBody, max_ahead: int) -> PersonState:
        """State of a new person."""

        def nan(*shape: int) -> Tensor:
            return torch.full(shape, torch.nan, dtype=torch.float64)

        points, joints = body.weights.shape
        held, ahead = ((nan(n, joints, 3, 3), nan(n, 3)) for n in (HELD_FRAMES, max_ahead))
        betas = body.joints_shapedirs.shape[-1]
        return PersonState(nan(betas), nan(points, 3), nan(), *held, torch.zeros_like(nan()), *ahead)

    @property
    def known(self) -> bool:
        """True once the shape has been estimated."""
        return bool(self.betas.isfinite().all())

    def with_frames_ahead(self, rotations: Tensor, transl: Tensor) -> PersonState:
        """State with the first of rotations (T, J, 3, 3) and transl (T, 3) as the frames ahead."""
        size = len(self.next_transl)
        return replace(
            self,
            ahead=torch.full_like(self.ahead, min(len(transl), size)),
            next_rotations=_padded(rotations[:size].double(), size),
            next_transl=_padded(transl[:size].double(), size),
        )

    def packed(self, person: int) -> State:
        """Tensors by name, of the person with this id."""
        return {f"smplify/{person}/{f.name}": getattr(self, f.name) for f in fields(self)}

    @staticmethod
    def unpacked(state: State) -> dict[int, PersonState]:
        """State of each person by id."""
        ids = {int(name.split("/")[1]) for name in state if name.startswith("smplify/")}
        return {i: PersonState(*(state[f"smplify/{i}/{f.name}"] for f in fields(PersonState))) for i in ids}


@dataclass(frozen=True)
class Segment:
    """Posed frames of one person, fitted as one problem; the first ``held`` are final."""

    person: int  # index among the batch's people
    frames: Tensor  # (T − held,) indices in the clip
    held: int
    breaks: tuple[int, ...]  # frames that do not follow their predecessor
    xy: Tensor  # (V, T, K, 2)
    confidence: Tensor  # (V, T, K)
    start: Motion  # N = 1
    target: Tensor  # (T, L, 3, 3) the regressor's pose; NaN: no target
    sigma: Tensor  # (T, L) radians, its expected error
    free_shape: bool = False


@dataclass(frozen=True)
class WindowFitter:
    """Settings, cameras and body of a recording, and the fit of its windows."""

    cfg: SmplifyConfig
    rig: Rig
    body: KeypointBody
    prior: PosePrior

    def visible(self, clip: PoseBatch, p: int) -> Tensor:
        """Frames (T,) in which the person is visible."""
        return visible_frames(clip.keypoints.confidence[:, :, p], self.cfg.min_keypoints)

    def shape_frames(self, clip: PoseBatch, p: int, first: int) -> int:
        """Number of frames, from ``first`` on, that show the person's size."""
        confidence = clip.keypoints.confidence[:, first:, p]
        return int(size_frames(confidence, self.cfg.min_keypoints).sum())

    def max_gap(self, clip: PoseBatch) -> int:
        """Longest bridged gap, frames."""
        return gap_frames(self.cfg.max_gap_s, float(clip.keypoints.rate))

    def shapes(
        self, people: Sequence[PersonState], clips: Mapping[int, tuple[PoseBatch, int]]
    ) -> list[PersonState]:
        """Estimate the shapes of new people.

        clips: index of the person → clip from the window's first frame on, and the first frame in which the
        person is visible. The fit of a clip also gives the person's frames ahead. A person whom no frame of
        the clip can place stays unknown.
        """
        after = list(people)
        segments = [
            segment
            for p, (clip, first) in clips.items()
            if (segment := self._shape_segment(clip.frames(first, len(clip.transl)), p))
        ]
        for segment, motion in self._fit(segments, _rate(clip for clip, _ in clips.values())):
            clip, first = clips[segment.person]
            rotations, transl = _unposed(clip)
            rotations[first + segment.frames] = motion.rotations[0].float()
            transl[first + segment.frames] = motion.transl[0].float()
            person = replace(
                people[segment.person], betas=motion.betas[0].double(), offsets=motion.offsets[0].double()
            )
            after[segment.person] = person.with_frames_ahead(rotations, transl)
        return after

    def windows(
        self, people: Sequence[PersonState], clips: Sequence[PoseBatch], frames: int
    ) -> tuple[Tensor, Tensor, list[PersonState]]:
        """Fit one window of each person, ``clips``.

        Returns rotations (F, P, J, 3, 3) and transl (F, P, 3) of its first F = ``frames`` frames, and the
        people's states after these.
        """
        poses, segments = [], list[Segment]()
        for p, (person, clip) in enumerate(zip(people, clips, strict=True)):
            if person.ahead >= len(clip.transl):
                poses.append((person.next_rotations.float(), person.next_transl.float()))
            else:
                poses.append(_unposed(clip))
                segments += self._window_segments(clip, p, person) if person.known else ()
        for segment, motion in self._fit(segments, _rate(clips)):
            rotations, transl = poses[segment.person]
            rotations[segment.frames] = motion.rotations[0, segment.held :].float()
            transl[segment.frames] = motion.transl[0, segment.held :].float()
        after = []
        for p, (person, clip, (rotations, transl)) in enumerate(zip(people, clips, poses, strict=True)):
            unseen = frames_unseen(self.visible(clip, p)[:frames], float(person.unseen))
            ahead = max(int(person.ahead), len(clip.transl))
            person = replace(
                person,
                unseen=torch.full_like(person.unseen, unseen),
                last_rotations=torch.cat([person.last_rotations, rotations[:frames].double()])[-HELD_FRAMES:],
                last_transl=torch.cat([person.last_transl, transl[:frames].double()])[-HELD_FRAMES:],
            )
            after.append(person.with_frames_ahead(rotations[frames:ahead], transl[frames:ahead]))
        rotations, transl = (torch.stack([pose[i][:frames] for pose in poses], 1) for i in range(2))
        return rotations, transl, after

    def _shape_segment(self, clip: PoseBatch, p: int) -> Segment | None:
        """All posed frames of a clip, with a free shape; None where no frame gives the root."""
        xy, confidence = clip.keypoints.xy_px[:, :, p], clip.keypoints.confidence[:, :, p]
        points = self._triangulate(xy, confidence)
        posed = posed_frames(self.visible(clip, p), torch.nan, self.max_gap(clip))
        free = not bool(viewed_once(confidence[:, posed], self.cfg.min_keypoints).all())
        betas = start_shape(self.body, points[posed])
        if not free:
            betas = clip.betas[:, p].double().nanmedian(0).values.nan_to_num()
        offsets = torch.zeros_like(self.body.points_template)
        starts = [
            (torch.arange(*span), *pose)
            for span in intervals(posed)
            if (pose := self._start(clip.frames(*span), p, points[slice(*span)], (betas, offsets)))
        ]
        if not starts:
            return None
        frames, rotations, transl = (torch.cat(parts) for parts in zip(*starts, strict=True))
        return Segment(
            person=p,
            frames=frames,
            held=0,
            breaks=tuple(np.cumsum([len(indices) for indices, *_ in starts])[:-1].tolist()),
            xy=xy[:, frames],
            confidence=confidence[:, frames],
            start=Motion(rotations[None], transl[None], betas[None], offsets[None]),
            target=self._target(clip, p)[frames],
            sigma=clip.pose_sigma[frames, p],
            free_shape=free,
        )

    def _window_segments(self, clip: PoseBatch, p: int, person: PersonState) -> Iterator[Segment]:
        """Intervals of posed frames of a person with a known shape."""
        posed = posed_frames(self.visible(clip, p), float(person.unseen), self.max_gap(clip))
        for begin, end in intervals(posed):
            held = _leading(person.last_transl.flip(0)) if begin == 0 else 0
            warm = _leading(person.next_transl[:end]) if begin == 0 else 0
            before = None
            if held + warm:
                before = (
                    torch.cat([person.last_rotations[HELD_FRAMES - held :], person.next_rotations[:warm]]),
                    torch.cat([person.last_transl[HELD_FRAMES - held :], person.next_transl[:warm]]),
                )
            part = clip.frames(begin, end)
            points = self._triangulate(
                part.keypoints.xy_px[:, :, p], part.keypoints.confidence[:, :, p], warm
            )
            part = part.prepend_missing(held)
            points = pad(points, (0, 0, 0, 0, held, 0), value=torch.nan)
            pose = self._start(part, p, points, (person.betas, person.offsets), before)
            if pose is not None:
                yield Segment(
                    person=p,
                    frames=torch.arange(begin, end),
                    held=held,
                    breaks=(),
                    xy=part.keypoints.xy_px[:, :, p],
                    confidence=part.keypoints.confidence[:, :, p],
                    start=Motion(pose[0][None], pose[1][None], person.betas[None], person.offsets[None]),
                    target=self._target(part, p),
                    sigma=part.pose_sigma[:, p],
                )

    def _fit(self, segments: Sequence[Segment], rate: float) -> Iterator[tuple[Segment, Motion]]:
        """Fit segments, those of one structure in time as one batch; each with its motion, N = 1."""
        batches: dict[tuple[int, int, tuple[int, ...], bool], list[Segment]] = {}
        for s in segments:
            batches.setdefault((len(s.frames), s.held, s.breaks, s.free_shape), []).append(s)
        for (_, held, breaks, free_shape), batch in batches.items():
            target = torch.stack([s.target for s in batch])
            sigma = self.cfg.regressed_sigma * torch.stack([s.sigma for s in batch])
            motion = fit(
                self.body,
                self._views(torch.stack([s.xy for s in batch]), torch.stack([s.confidence for s in batch])),
                Motion(*(torch.cat([getattr(s.start, f.name) for s in batch]) for f in fields(Motion))),
                FitSettings(
                    rate,
                    held,
                    breaks,
                    free_shape,
                    self.cfg.weights(),
                    self.cfg.schedule(warm=held > 0),
                    self.prior,
                    PoseTarget(target, sigma) if bool(target.isfinite().any()) else None,
                ),
            ).motion
            for n, segment in enumerate(batch):
                yield segment, Motion(*(getattr(motion, f.name)[n : n + 1] for f in fields(Motion)))

    def _start(
        self,
        clip: PoseBatch,
        p: int,
        points: Tensor,
        shape: tuple[Tensor, Tensor],
        before: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor] | None:
        """Initial rotations (T, J, 3, 3) and transl (T, 3) of a clip; None where no frame gives the root.

        points (T, K, 3): triangulated; shape: betas (B,) and offsets (K, 3); before: rotations (H, J, 3, 3)
        and transl (H, 3) of the first H frames, fitted before.
        """
        rate = float(clip.keypoints.rate)
        first = 0 if before is None else len(before[0])
        triangulated = start_pose(self.body, shape[0], points, rate, before)
        share = points[first:].isfinite().all(-1).double().mean()
        if triangulated is not None and share > _MIN_TRIANGULATED_SHARE:
            return triangulated
        rotations = torch.cat([clip.global_orient[:, p, None], clip.body_pose[:, p]], 1)
        pelvis = pelvis_at_rest(self.body, clip.betas[:, p].double()) + clip.transl[:, p]
        regressed = start_regressed(self.body, shape[0], rotations, pelvis, rate, before)
        if regressed is None:
            return triangulated
        turned = regressed[0].clone()
        turned[first:, 0] @= _HALF_TURN
        poses = [regressed, (turned, regressed[1])]
        best = choose_start(
            self.body,
            self._views(clip.keypoints.xy_px[None, :, :, p], clip.keypoints.confidence[None, :, :, p]),
            [
                Motion(*(x[None] for x in (*pose, *shape)))
                for pose in (poses if triangulated is None else [triangulated, *poses])
            ],
            FitSettings(rate, weights=self.cfg.weights(), prior=self.prior),
            max_energy_ratio=1.0 if triangulated is None else _MAX_START_ENERGY_RATIO,
        )
        return best.rotations[0], best.transl[0]

    def _triangulate(self, xy: Tensor, confidence: Tensor, warm: int = 0) -> Tensor:
        """(V, T, K, 2), (V, T, K) → points (T, K, 3), NaN where no two views agree.

        Only the torso, which checks the heading, in the first ``warm`` frames.
        """
        wanted = torch.ones(xy.shape[1:3], dtype=torch.bool)
        wanted[:warm] = torch.tensor([name in TORSO for name in self.body.keypoint_skeleton.names])
        triangulated = triangulate(self.rig, xy[:, wanted].numpy(), confidence[:, wanted].numpy())
        points = torch.full((*wanted.shape, 3), torch.nan, dtype=torch.float64)
        agreed = (triangulated.used.sum(0) >= 2)[:, None]
        points[wanted] = torch.from_numpy(np.where(agreed, triangulated.points, np.nan))
        return points

    def _target(self, clip: PoseBatch, p: int) -> Tensor:
        """The regressor's pose (T, L, 3, 3) in frames that one view alone sees, else NaN."""
        once = viewed_once(clip.keypoints.confidence[:, :, p], self.cfg.min_keypoints)
        return torch.where(once[:, None, None, None], clip.body_pose[:, p], torch.nan)

    def _views(self, xy: Tensor, confidence: Tensor) -> Views:
        """(N, V, T, K, 2), (N, V, T, K) in the rig's cameras."""
        cameras = (torch.from_numpy(x) for x in (self.rig.K, self.rig.R, self.rig.t))
        K, R, t = (x.expand(len(xy), *x.shape) for x in cameras)
        return Views(K, R, t, xy, confidence)


def _rate(clips: Iterable[PoseBatch]) -> float:
    """Frames a second of clips of one recording; 0 of none."""
    return next((float(clip.keypoints.rate) for clip in clips), 0.0)


def _leading(x: Tensor) -> int:
    """Number of rows of x (T, ...) before the first that is not finite."""
    return int(x.isfinite().flatten(1).all(1).long().cumprod(0).sum())


def _padded(x: Tensor, rows: int) -> Tensor:
    """x (T, ...) with rows of NaN added up to ``rows``."""
    return torch.cat([x, torch.full((rows - len(x), *x.shape[1:]), torch.nan, dtype=x.dtype)])


def _unposed(clip: PoseBatch) -> tuple[Tensor, Tensor]:
    """Rotations (T, J, 3, 3) and transl (T, 3) of NaN."""
    frames, joints = len(clip.transl), len(clip.skeleton)
    return torch.full((frames, joints, 3, 3), torch.nan), torch.full((frames, 3), torch.nan)
