"""SMPLify in the training loop: fit from the prediction, keep the better fit, teach with it.

Kolotouros et al., Learning to Reconstruct 3D Human Pose and Shape via Model-fitting in the Loop (ICCV 2019),
over several views. Samples are N people in frames, in crops of V views. Where the cameras are known the fit
is one of all views; where they are not, of one pose and shape with a root for each view.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final, Literal

import roma
import torch
from pydantic import Field
from torch import Tensor

from models.body import KeypointBody, pelvis_at_rest, pose_keypoints
from models.constants import constant
from models.crops import CROP_PX
from models.fit.problem import FitSettings, Motion, Schedule, Views, Weights
from models.fit.solver import UncalibratedMotion, choose_start, fit, fit_uncalibrated
from models.fit.spin import ROBUST_PX, posing, spin
from models.fit.starts import TORSO
from models.priors import PosePrior
from models.regressors.calibrated import observe
from models.regressors.regression import Regression, fuse_roots
from models.training.samples import Samples
from pipeline.batches import TensorBatch, axes
from pipeline.config import Config
from pipeline.skeleton import BODY_25, EXTRA_24, SMPL_24, SPIN_49

LARGEST_BETA: Final = 3.0
"""A shape beyond this is no shape to learn from (SPIN)."""


class LoopConfig(Config):
    """SMPLify in the loop."""

    enabled: bool = True
    """The net learns from fits that start at its prediction."""
    solver: Literal["multiview", "spin"] = "multiview"
    """The project's own, over all views; or SPIN's, each view alone."""
    iterations: int = Field(20, ge=1)
    """Most steps of the last stage of the project's solver; for ``spin`` Adam's, of which SPIN takes 100."""
    threshold: float = Field(100.0, gt=0)
    """Highest score of a fit that is learned from, px² of SPIN's crop, mean over its 49 keypoints: see
    ``score_fits``. SPIN's ``--smplify_threshold``."""
    pose_weight: float = Field(0.3, ge=0)
    """Weight of the pose prior, for the project's solver. From two noisy views 0.3 ends at 36 mm, 1 at 41
    mm."""
    shape_weight: float = Field(50.0, ge=0)
    """Weight of |betas|², for every 100 frames, of which a sample is one: 50 is a standard deviation of
    1.4."""
    save_steps: int = Field(100, ge=1)
    """From one time that the fits are written to the next; they are with every checkpoint, too."""
    every: int = Field(1, ge=1)
    """Steps from one in which fits are made to the next; the others learn from those that there are."""


@dataclass(frozen=True, repr=False)
class Bodies(TensorBatch):
    """A body for every view of every sample, in the camera's own frame."""

    orient: Tensor = axes("N V 3 3")
    """Root → camera."""
    body_pose: Tensor = axes(f"N V {len(SMPL_24) - 1} 3 3")
    betas: Tensor = axes("N V B")
    transl: Tensor = axes("N V 3")
    """Metres; the pelvis lies at J_pelvis(betas) + transl."""
    score: Tensor = axes("N V")
    """Score of the fit; infinite where there is none, and there the rest is any body."""

    @property
    def rotations(self) -> Tensor:
        """(N, V, 24, 3, 3)"""
        return torch.cat([self.orient[:, :, None], self.body_pose], 2)

    def points(self, body: KeypointBody) -> Tensor:
        """(N, V, K, 3) the body's points, metres."""
        return pose_keypoints(body, self.rotations, self.betas, self.transl)[1]

    def where(self, mask: Tensor, other: Bodies) -> Bodies:
        """These where mask (N, V), else the others."""

        def chosen(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(mask.view(*mask.shape, *[1] * (a.ndim - 2)), a, b)

        parts = (chosen(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Bodies(*parts)


def keypoints_to_fit(samples: Samples) -> tuple[Tensor, Tensor]:
    """BODY_25 (N, V, 25, 2) and confidences (N, V, 25) of the views that show the person.

    Points that the detector did not find are taken from the data set's own joints where it has the same.
    """
    count, sure = len(BODY_25), _sure(samples)
    xy, confidence = samples.xy_px[:, :, :count].clone(), sure[:, :, :count].clone()
    for i, name in enumerate(BODY_25.names):
        if name in EXTRA_24.names:
            j = count + EXTRA_24.index(name)
            missing = confidence[:, :, i] == 0
            xy[:, :, i] = torch.where(missing[..., None], samples.xy_px[:, :, j], xy[:, :, i])
            confidence[:, :, i] = torch.where(missing, sure[:, :, j], confidence[:, :, i])
    return xy, confidence


def score_fits(bodies: Bodies, points: KeypointBody, samples: Samples) -> Tensor:
    """Score (N,) of bodies, SPIN's: the mean over its 49 keypoints of confidence² × Geman–McClure of the
    distance, px² in a crop of 224; here over the views, too.

    Keypoints that are missing and those that SPIN ignores count as nothing in that mean. The crop is the one
    before augmentation, so a score does not depend on how it was turned, scaled or mirrored. Infinite where
    no view shows anything. points: the body with the samples' 49 points.
    """
    spins_px = CROP_PX / samples.images.shape[-1] * samples.zoomed
    return spin_score(bodies, points, samples.K, samples.xy_px, _sure(samples), spins_px)


def spin_score(
    bodies: Bodies, points: KeypointBody, K: Tensor, xy_px: Tensor, confidence: Tensor, spins_px: Tensor
) -> Tensor:
    """``score_fits`` of keypoints (N, V, 49, 2), confidences (N, V, 49) and cameras (N, V, 3, 3) in pixels of
    which one is spins_px (N, V) of SPIN's."""
    confidence = confidence * constant(posing(SPIN_49), xy_px.device)
    cam = bodies.points(points) @ K.mT
    found = cam[..., :2] / cam[..., 2:].clamp_min(0.1)
    miss2 = torch.where((confidence > 0)[..., None], spins_px[..., None, None] * (found - xy_px), 0) ** 2
    robust = (ROBUST_PX**2 * miss2 / (ROBUST_PX**2 + miss2)).sum(-1)
    each = (confidence**2 * robust).mean(-1)
    shown = (confidence > 0).any(-1)
    mean_score = (each * shown).sum(1) / shown.sum(1).clamp_min(1)
    return torch.where(shown.any(1), mean_score, torch.inf)


def _sure(samples: Samples) -> Tensor:
    """Confidences (N, V, 49), 0 for what no view shows or no place is known of."""
    known = samples.xy_px.isfinite().all(-1) & samples.seen[..., None]
    return torch.where(known, samples.confidence, 0)


def apply_augmentation(bodies: Bodies, body: KeypointBody, samples: Samples) -> Bodies:
    """Bodies in the samples as they were → as the augmented crops show them: mirrored, then turned."""
    return _turned(_mirrored(bodies, body, samples.flipped), body, samples.rolled)


def undo_augmentation(bodies: Bodies, body: KeypointBody, samples: Samples) -> Bodies:
    """The other way: bodies in augmented crops → in the samples as they were."""
    return _mirrored(_turned(bodies, body, -samples.rolled), body, samples.flipped)


def _turned(bodies: Bodies, body: KeypointBody, angle: Tensor) -> Bodies:
    """Seen by cameras that roll by an angle (N, V), radians."""
    about = torch.zeros_like(bodies.transl)
    about[..., 2] = angle
    turn = roma.rotvec_to_rotmat(about)
    rest = _rest(bodies, body)
    pelvis = (turn @ (rest + bodies.transl)[..., None])[..., 0]
    return replace(bodies, orient=turn @ bodies.orient, transl=pelvis - rest)


def _mirrored(bodies: Bodies, body: KeypointBody, flipped: Tensor) -> Bodies:
    """With left and right exchanged where ``flipped`` (N,)."""
    side = constant((-1.0, 1.0, 1.0), bodies.transl.device, bodies.transl.dtype)
    both = side[:, None] * side
    swap = constant(tuple(j - 1 for j in SMPL_24.flips[1:]), bodies.transl.device)
    rest = _rest(bodies, body)
    other = replace(
        bodies,
        orient=both * bodies.orient,
        body_pose=both * bodies.body_pose.index_select(2, swap),
        transl=side * (rest + bodies.transl) - rest,
    )
    return other.where(flipped[:, None].expand_as(bodies.score), bodies)


def _rest(bodies: Bodies, body: KeypointBody) -> Tensor:
    return pelvis_at_rest(body, bodies.betas.flatten(0, 1)).view_as(bodies.transl)


def fitted(
    samples: Samples,
    start: Bodies,
    body: KeypointBody,
    points: KeypointBody,
    prior: PosePrior,
    cfg: LoopConfig,
) -> Bodies:
    """Fits that start from a prediction, with the score of each sample in all its views.

    The project's own are of the points of BODY_25, SPIN's of all 49. Infinite in views that show nothing, and
    where a fit failed. points: the body with the samples' 49 points.
    """
    start = start.map(torch.nan_to_num)
    xy, confidence = keypoints_to_fit(samples)
    problem = _FitProblem(samples, start, xy, confidence, body, prior, cfg)
    if cfg.solver == "spin":
        found = _each_alone(problem, points)
    else:
        shown = (confidence > 0).sum(-1) > 0
        posed = samples.R.isfinite().flatten(2).all(-1) & samples.t.isfinite().all(-1)
        calibrated = (posed | ~shown).all(1) & ((posed & shown).sum(1) >= 2)
        found = start
        for rows, how in ((calibrated, _calibrated), (~calibrated & shown.any(1), _uncalibrated)):
            if bool(rows.any()):
                index = rows.nonzero()[:, 0]
                part = how(problem.of(index))
                pairs = ((getattr(found, f.name), getattr(part, f.name)) for f in fields(Bodies))
                found = Bodies(*(whole.index_copy(0, index, some) for whole, some in pairs))
    value = score_fits(found.map(torch.nan_to_num), points, samples)
    good = found.map(torch.isfinite)
    each = torch.stack([x.flatten(2).all(-1) for x in (good.orient, good.body_pose, good.betas, good.transl)])
    there = each.all(0) & (confidence > 0).any(-1)
    return replace(found.map(torch.nan_to_num), score=torch.where(there, value[:, None], torch.inf))


def select(samples: Samples, index: Tensor) -> Samples:
    """Some samples of a batch."""
    numbers = index.tolist()
    return replace(
        samples.map(lambda x: x[index] if len(x) == len(samples.ids) else x),
        shown=samples.seen[index].flatten().nonzero()[:, 0],
        ids=tuple(samples.ids[i] for i in numbers),
        cameras=tuple(samples.cameras[i] for i in numbers),
    )


@dataclass(frozen=True)
class _FitProblem:
    """Samples to fit, their start, and the settings."""

    samples: Samples
    start: Bodies
    xy: Tensor
    """(N, V, 25, 2)"""
    confidence: Tensor
    """(N, V, 25)"""
    body: KeypointBody
    prior: PosePrior
    cfg: LoopConfig

    def of(self, index: Tensor) -> _FitProblem:
        """Some of its samples."""
        return replace(
            self,
            samples=select(self.samples, index),
            start=self.start.map(lambda x: x[index]),
            xy=self.xy[index],
            confidence=self.confidence[index],
        )

    @property
    def settings(self) -> FitSettings:
        *early, (robust, _, tolerance) = Schedule().stages
        return FitSettings(
            30.0,
            # A frame alone cannot tell its keypoints' offsets from its pose.
            weights=Weights(pose=self.cfg.pose_weight, shape=self.cfg.shape_weight, offset_m=0.0),
            schedule=Schedule((*early, (robust, self.cfg.iterations, tolerance))),
            prior=self.prior,
        )


def _calibrated(problem: _FitProblem) -> Bodies:
    """The project's fit over all views of samples whose cameras are known."""
    samples, start, xy, confidence = problem.samples, problem.start, problem.xy, problem.confidence
    # A view that shows nothing may have no place: any will do.
    eye = torch.eye(3, dtype=xy.dtype, device=xy.device)
    R = torch.where(samples.R.isfinite(), samples.R, eye)
    t = torch.nan_to_num(samples.t)
    views = Views(samples.K, R, t, xy[:, :, None], confidence[:, :, None])
    pose, betas = start.body_pose[:, 0], start.betas[:, 0]
    sigma = torch.full_like(betas[:, :1].expand(-1, pose.shape[1]), 0.3)
    prediction = Regression(pose, betas, start.orient, start.transl, (confidence > 0).any(-1), sigma)
    offsets = betas.new_zeros(len(betas), len(BODY_25), 3)

    def motion(root: Tensor, transl: Tensor) -> Motion:
        rotations = torch.cat([root[:, None], pose], 1)
        return Motion(rotations[:, None], transl[:, None], betas, offsets)

    starts = [motion(*_on_torso(problem, R, t)), motion(*fuse_roots(prediction, R, t, problem.body))]
    begin = choose_start(problem.body, views, starts, problem.settings)
    found = fit(problem.body, views, begin, problem.settings).motion
    count = samples.K.shape[1]
    rest = pelvis_at_rest(problem.body, found.betas)
    pelvis = (R @ (rest + found.transl[:, 0])[:, None, :, None])[..., 0] + t
    return Bodies(
        orient=R @ found.rotations[:, :1, 0],
        body_pose=found.rotations[:, :, 1:].expand(-1, count, -1, -1, -1),
        betas=found.betas[:, None].expand(-1, count, -1),
        transl=pelvis - rest[:, None],
        score=start.score,
    )


def _on_torso(problem: _FitProblem, R: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Root (N, 3, 3) and transl (N, 3), world, that lay the start's torso on the triangulated one.

    The heading that the net predicts may be wrong by half a turn, from which no fit recovers.
    """
    pose, betas = problem.start.body_pose[:, 0], problem.start.betas[:, 0]
    seen = observe(problem.xy, problem.confidence, problem.samples.K, R, t)
    count = len(BODY_25)
    points = seen.features[:, : 3 * count].view(-1, count, 3) @ seen.turn + seen.origin[:, None]
    trust = seen.features[:, 3 * count : 4 * count] * 2  # how much the views agree about each point
    torso = [BODY_25.index(n) for n in TORSO]
    still = torch.cat(
        [torch.eye(3, dtype=pose.dtype, device=pose.device).expand(len(pose), 1, 3, 3), pose], 1
    )
    _, posed = pose_keypoints(problem.body, still, betas, torch.zeros_like(betas[:, :3]))
    a, b, w = posed[:, torso], points[:, torso], trust[:, torso, None]
    total = w.sum(1, keepdim=True).clamp_min(1e-6)
    mean_a, mean_b = (w * a).sum(1, keepdim=True) / total, (w * b).sum(1, keepdim=True) / total
    root = roma.special_procrustes((w * (b - mean_b)).mT @ (a - mean_a))
    rest = pelvis_at_rest(problem.body, betas)
    pelvis = mean_b[:, 0] + (root @ (rest[:, None] - mean_a).mT)[..., 0]
    return root, pelvis - rest


def _uncalibrated(problem: _FitProblem) -> Bodies:
    """The project's fit with a root for each view, of samples from uncalibrated cameras."""
    start, betas = problem.start, problem.start.betas[:, 0]
    begin = UncalibratedMotion(
        start.body_pose[:, :1], start.orient[:, :, None], start.transl[:, :, None], betas,
        betas.new_zeros(len(betas), len(BODY_25), 3),
    )  # fmt: skip
    found = fit_uncalibrated(
        problem.body, problem.samples.K, problem.xy[:, :, None], problem.confidence[:, :, None], begin,
        problem.settings,
    ).motion  # fmt: skip
    count = problem.samples.K.shape[1]
    return Bodies(
        orient=found.view_orient[:, :, 0],
        body_pose=found.body_pose.expand(-1, count, -1, -1, -1),
        betas=found.betas[:, None].expand(-1, count, -1),
        transl=found.view_transl[:, :, 0],
        score=start.score,
    )


def _each_alone(problem: _FitProblem, points: KeypointBody) -> Bodies:
    """SPIN's fit, each view for itself, at SPIN's size: its weights are for pixels of a 224 px crop."""
    samples, start, (n, v) = problem.samples, problem.start, problem.confidence.shape[:2]
    flat = samples.K.reshape(-1, 1, 3, 3).clone()
    shrink = CROP_PX / samples.images.shape[-1]
    flat[:, :, :2] *= shrink
    eye = torch.eye(3, dtype=flat.dtype, device=flat.device).expand_as(flat)
    xy, confidence = (x.flatten(0, 1)[:, None, None] for x in (shrink * samples.xy_px, _sure(samples)))
    views = Views(flat, eye, eye[..., 0] * 0, xy, confidence)
    betas = start.betas.flatten(0, 1)
    begin = Motion(
        start.rotations.flatten(0, 1)[:, None], start.transl.flatten(0, 1)[:, None], betas,
        betas.new_zeros(len(betas), len(SPIN_49), 3),
    )  # fmt: skip
    with torch.enable_grad():
        found = spin(points, views, begin, problem.prior, iterations=problem.cfg.iterations).motion
    rotations = found.rotations.view(n, v, -1, 3, 3)
    return Bodies(
        rotations[:, :, 0], rotations[:, :, 1:], found.betas.view(n, v, -1), found.transl.view(n, v, 3),
        start.score,
    )  # fmt: skip


def picture_id(sample: str, camera: str) -> str:
    """``dataset/subject/sequence/camera/frame`` of a sample's view."""
    head, _, frame = sample.rpartition("/")
    return f"{head}/{camera}/{frame}"


def picture_ids(samples: Samples) -> list[list[str]]:
    """``picture_id`` of every sample's every view."""
    pairs = zip(samples.ids, samples.cameras, strict=True)
    return [[picture_id(sample, camera) for camera in cameras] for sample, cameras in pairs]


def better(new: Bodies, old: Bodies) -> Bodies:
    """View by view the fit of lower score; the old one where they are the same."""
    return new.where(new.score < old.score, old)


@dataclass(frozen=True, repr=False)
class Target(TensorBatch):
    """Bodies that a net is to predict."""

    bodies: Bodies
    posed: Tensor = axes("N V")
    """The view has a pose and a root to learn."""
    shaped: Tensor = axes("N V")
    """The view has a shape to learn."""


def training_target(fits: Bodies, samples: Samples, cfg: LoopConfig) -> Target:
    """The fits that are good enough, betas of 0 where one is beyond ``LARGEST_BETA``; and the truth in their
    place where it is known, the pose's and the shape's each for itself. The translation is the fit's."""
    wild = (fits.betas.abs() > LARGEST_BETA).any(-1, keepdim=True)
    good = (fits.score < cfg.threshold) & samples.seen
    pose = samples.body_pose[:, None].expand_as(fits.body_pose)
    betas = samples.betas[:, None].expand_as(fits.betas)
    known = (_finite(pose) & _finite(samples.orient)) & samples.seen
    sized = _finite(betas) & samples.seen
    fits = replace(fits, betas=torch.where(wild, 0, fits.betas))
    true_pose = replace(fits, orient=torch.nan_to_num(samples.orient), body_pose=torch.nan_to_num(pose))
    bodies = true_pose.where(known, fits)
    bodies = replace(bodies, betas=torch.nan_to_num(betas)).where(sized, bodies)
    return Target(bodies, good | known, good | sized)


def _finite(x: Tensor) -> Tensor:
    """(N, V, ...) → (N, V)"""
    return x.isfinite().flatten(2).all(-1)
