"""SMPLify in the training loop: fit from the prediction, keep the better fit, train on it.

Kolotouros et al., Learning to Reconstruct 3D Human Pose and Shape via Model-fitting in the Loop (ICCV 2019),
for several views. Samples are N people in frames, in crops of V views. With calibrated cameras all views
share one fit; else they share pose and shape, with a root for each view.
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

MAX_ABS_BETA: Final = 3.0
"""Largest |beta| of a fit whose shape is learned (SPIN)."""


class LoopConfig(Config):
    """SMPLify in the loop."""

    enabled: bool = True
    """Train on fits that start from the net's prediction."""
    solver: Literal["multiview", "spin"] = "multiview"
    """multiview: the project's own, over all views; spin: SPIN's, of each view alone."""
    iterations: int = Field(20, ge=1)
    """Largest number of steps of the last stage of the project's solver; for ``spin`` Adam's, 100 in SPIN."""
    threshold: float = Field(100.0, gt=0)
    """Largest score of a fit that is learned from, px² of SPIN's crop, mean over its 49 keypoints: see
    ``score_fits``. SPIN's ``--smplify_threshold``."""
    pose_weight: float = Field(0.3, ge=0)
    """Weight of the pose prior in the project's solver: from two noisy views 0.3 gives 36 mm, 1 41 mm."""
    shape_weight: float = Field(50.0, ge=0)
    """Weight of |betas|² per 100 frames, of which a sample is one: 50 is a standard deviation of 1.4."""
    save_steps: int = Field(100, ge=1)
    """Steps between writing the fits, which are also written with every checkpoint."""
    every: int = Field(1, ge=1)
    """Steps between new fits; the other steps learn from stored ones."""


@dataclass(frozen=True, repr=False)
class Bodies(TensorBatch):
    """Bodies of every view of every sample, in the camera's frame."""

    orient: Tensor = axes("N V 3 3")
    """Root orientation, body → camera."""
    body_pose: Tensor = axes(f"N V {len(SMPL_24) - 1} 3 3")
    betas: Tensor = axes("N V B")
    transl: Tensor = axes("N V 3")
    """Metres; the pelvis lies at J_pelvis(betas) + transl."""
    score: Tensor = axes("N V")
    """Score of the fit; infinite without a fit, where the other fields may be anything."""

    @property
    def rotations(self) -> Tensor:
        """(N, V, 24, 3, 3)"""
        return torch.cat([self.orient[:, :, None], self.body_pose], 2)

    def points(self, body: KeypointBody) -> Tensor:
        """Points (N, V, K, 3) of the posed body, metres."""
        return pose_keypoints(body, self.rotations, self.betas, self.transl)[1]

    def where(self, mask: Tensor, other: Bodies) -> Bodies:
        """Replace bodies by the others where the mask (N, V) is False."""

        def where(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(mask.view(*mask.shape, *[1] * (a.ndim - 2)), a, b)

        return Bodies(*(where(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


def keypoints_to_fit(samples: Samples) -> tuple[Tensor, Tensor]:
    """BODY_25 (N, V, 25, 2) and confidences (N, V, 25) of the seen views.

    Points without a detection are taken from the data set's annotations where it has the same point.
    """
    count, sample_confidence = len(BODY_25), _confidence(samples)
    xy, confidence = samples.xy_px[:, :, :count].clone(), sample_confidence[:, :, :count].clone()
    for i, name in enumerate(BODY_25.names):
        if name in EXTRA_24.names:
            j = count + EXTRA_24.index(name)
            missing = confidence[:, :, i] == 0
            xy[:, :, i] = torch.where(missing[..., None], samples.xy_px[:, :, j], xy[:, :, i])
            confidence[:, :, i] = torch.where(missing, sample_confidence[:, :, j], confidence[:, :, i])
    return xy, confidence


def score_fits(bodies: Bodies, points: KeypointBody, samples: Samples) -> Tensor:
    """SPIN's score (N,) of bodies: the mean of confidence² × Geman–McClure of the reprojection residual, px².

    Over its 49 keypoints and all views, in pixels of SPIN's crop of 224 before augmentation; 0 for missing
    keypoints and those that SPIN ignores. Infinite where no view shows a keypoint. points: body with the
    samples' 49 points.
    """
    spin_px = CROP_PX / samples.images.shape[-1] * samples.zoom
    return spin_score(bodies, points, samples.K, samples.xy_px, _confidence(samples), spin_px)


def spin_score(
    bodies: Bodies, points: KeypointBody, K: Tensor, xy_px: Tensor, confidence: Tensor, spin_px: Tensor
) -> Tensor:
    """Score (N,) as of ``score_fits`` from keypoints (N, V, 49, 2) with confidences (N, V, 49).

    K: (N, V, 3, 3). spin_px: (N, V) size of a pixel in pixels of SPIN's crop.
    """
    confidence = confidence * constant(posing(SPIN_49), xy_px.device)
    cam = bodies.points(points) @ K.mT
    projected = cam[..., :2] / cam[..., 2:].clamp_min(0.1)
    visible = confidence > 0
    squared = torch.where(visible[..., None], spin_px[..., None, None] * (projected - xy_px), 0) ** 2
    robust = (ROBUST_PX**2 * squared / (ROBUST_PX**2 + squared)).sum(-1)
    view_score = (confidence**2 * robust).mean(-1)
    seen = visible.any(-1)
    mean_score = (view_score * seen).sum(1) / seen.sum(1).clamp_min(1)
    return torch.where(seen.any(1), mean_score, torch.inf)


def _confidence(samples: Samples) -> Tensor:
    """Confidences (N, V, 49), 0 where the view is not seen or the keypoint unknown."""
    known = samples.xy_px.isfinite().all(-1) & samples.seen[..., None]
    return torch.where(known, samples.confidence, 0)


def apply_augmentation(bodies: Bodies, body: KeypointBody, samples: Samples) -> Bodies:
    """Mirror and roll bodies as the samples were augmented."""
    return _roll(_mirror(bodies, body, samples.flipped), body, samples.roll)


def undo_augmentation(bodies: Bodies, body: KeypointBody, samples: Samples) -> Bodies:
    """Invert ``apply_augmentation``."""
    return _mirror(_roll(bodies, body, -samples.roll), body, samples.flipped)


def _roll(bodies: Bodies, body: KeypointBody, angle: Tensor) -> Bodies:
    """Bodies in the frames of cameras rolled by ``angle`` (N, V), radians."""
    rotvec = torch.zeros_like(bodies.transl)
    rotvec[..., 2] = angle
    turn = roma.rotvec_to_rotmat(rotvec)
    rest = _rest_pelvis(bodies, body)
    pelvis = (turn @ (rest + bodies.transl)[..., None])[..., 0]
    return replace(bodies, orient=turn @ bodies.orient, transl=pelvis - rest)


def _mirror(bodies: Bodies, body: KeypointBody, flipped: Tensor) -> Bodies:
    """Exchange left and right where ``flipped`` (N,)."""
    sign = constant((-1.0, 1.0, 1.0), bodies.transl.device, bodies.transl.dtype)
    signs = sign[:, None] * sign
    flips = constant(tuple(j - 1 for j in SMPL_24.flips[1:]), bodies.transl.device)
    rest = _rest_pelvis(bodies, body)
    mirrored = replace(
        bodies,
        orient=signs * bodies.orient,
        body_pose=signs * bodies.body_pose.index_select(2, flips),
        transl=sign * (rest + bodies.transl) - rest,
    )
    return mirrored.where(flipped[:, None].expand_as(bodies.score), bodies)


def _rest_pelvis(bodies: Bodies, body: KeypointBody) -> Tensor:
    return pelvis_at_rest(body, bodies.betas.flatten(0, 1)).view_as(bodies.transl)


def fit_bodies(
    samples: Samples,
    start: Bodies,
    body: KeypointBody,
    points: KeypointBody,
    prior: PosePrior,
    cfg: LoopConfig,
) -> Bodies:
    """Fit bodies to samples, starting from a prediction, and score them.

    The project's solver fits the points of BODY_25, SPIN's all 49. A score is infinite in views without a
    keypoint and where a fit failed. points: body with the samples' 49 points.
    """
    start = start.map(torch.nan_to_num)
    xy, confidence = keypoints_to_fit(samples)
    problem = _FitProblem(samples, start, xy, confidence, body, prior, cfg)
    if cfg.solver == "spin":
        fits = _fit_spin(problem, points)
    else:
        seen = (confidence > 0).sum(-1) > 0
        has_extrinsics = samples.R.isfinite().flatten(2).all(-1) & samples.t.isfinite().all(-1)
        calibrated = (has_extrinsics | ~seen).all(1) & ((has_extrinsics & seen).sum(1) >= 2)
        fits = start
        uncalibrated = ~calibrated & seen.any(1)
        for mask, solve in ((calibrated, _fit_calibrated), (uncalibrated, _fit_uncalibrated)):
            if bool(mask.any()):
                index = mask.nonzero()[:, 0]
                part = solve(problem.select(index))
                pairs = ((getattr(fits, f.name), getattr(part, f.name)) for f in fields(Bodies))
                fits = Bodies(*(whole.index_copy(0, index, x) for whole, x in pairs))
    score = score_fits(fits.map(torch.nan_to_num), points, samples)
    tensors = (fits.orient, fits.body_pose, fits.betas, fits.transl)
    valid = torch.stack([_finite(x) for x in tensors]).all(0) & (confidence > 0).any(-1)
    return replace(fits.map(torch.nan_to_num), score=torch.where(valid, score[:, None], torch.inf))


def select(samples: Samples, index: Tensor) -> Samples:
    """Select samples of a batch by their indices."""
    numbers = index.tolist()
    return replace(
        samples.map(lambda x: x[index] if len(x) == len(samples.ids) else x),
        seen_index=samples.seen[index].flatten().nonzero()[:, 0],
        ids=tuple(samples.ids[i] for i in numbers),
        cameras=tuple(samples.cameras[i] for i in numbers),
    )


@dataclass(frozen=True)
class _FitProblem:
    """Samples to fit, the bodies to start from, and the settings."""

    samples: Samples
    start: Bodies
    xy: Tensor
    """(N, V, 25, 2)"""
    confidence: Tensor
    """(N, V, 25)"""
    body: KeypointBody
    prior: PosePrior
    cfg: LoopConfig

    def select(self, index: Tensor) -> _FitProblem:
        """Select samples by their indices."""
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
            # A single frame cannot distinguish keypoint offsets from pose.
            weights=Weights(pose=self.cfg.pose_weight, shape=self.cfg.shape_weight, offset_m=0.0),
            schedule=Schedule((*early, (robust, self.cfg.iterations, tolerance))),
            prior=self.prior,
        )


def _fit_calibrated(problem: _FitProblem) -> Bodies:
    """Fit samples of calibrated cameras over all views."""
    samples, start, xy, confidence = problem.samples, problem.start, problem.xy, problem.confidence
    # A view without a keypoint may lack extrinsics: any will do.
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

    starts = [motion(*_align_torso(problem, R, t)), motion(*fuse_roots(prediction, R, t, problem.body))]
    begin = choose_start(problem.body, views, starts, problem.settings)
    fitted = fit(problem.body, views, begin, problem.settings).motion
    count = samples.K.shape[1]
    rest = pelvis_at_rest(problem.body, fitted.betas)
    pelvis = (R @ (rest + fitted.transl[:, 0])[:, None, :, None])[..., 0] + t
    return Bodies(
        orient=R @ fitted.rotations[:, :1, 0],
        body_pose=fitted.rotations[:, :, 1:].expand(-1, count, -1, -1, -1),
        betas=fitted.betas[:, None].expand(-1, count, -1),
        transl=pelvis - rest[:, None],
        score=start.score,
    )


def _align_torso(problem: _FitProblem, R: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Align the start's torso with the triangulated one: root (N, 3, 3) and transl (N, 3) in the world.

    The predicted heading may be wrong by half a turn, from which no fit recovers.
    """
    pose, betas = problem.start.body_pose[:, 0], problem.start.betas[:, 0]
    o = observe(problem.xy, problem.confidence, problem.samples.K, R, t)
    count = len(BODY_25)
    points = o.features[:, : 3 * count].view(-1, count, 3) @ o.turn + o.origin[:, None]
    weight = o.features[:, 3 * count : 4 * count] * 2  # total weight of each point's inlier rays
    torso = [BODY_25.index(n) for n in TORSO]
    eye = torch.eye(3, dtype=pose.dtype, device=pose.device).expand(len(pose), 1, 3, 3)
    _, posed = pose_keypoints(problem.body, torch.cat([eye, pose], 1), betas, torch.zeros_like(betas[:, :3]))
    a, b, w = posed[:, torso], points[:, torso], weight[:, torso, None]
    total = w.sum(1, keepdim=True).clamp_min(1e-6)
    mean_a, mean_b = (w * a).sum(1, keepdim=True) / total, (w * b).sum(1, keepdim=True) / total
    root = roma.special_procrustes((w * (b - mean_b)).mT @ (a - mean_a))
    rest = pelvis_at_rest(problem.body, betas)
    pelvis = mean_b[:, 0] + (root @ (rest[:, None] - mean_a).mT)[..., 0]
    return root, pelvis - rest


def _fit_uncalibrated(problem: _FitProblem) -> Bodies:
    """Fit samples of uncalibrated cameras with a root for each view."""
    start, betas = problem.start, problem.start.betas[:, 0]
    begin = UncalibratedMotion(
        start.body_pose[:, :1], start.orient[:, :, None], start.transl[:, :, None], betas,
        betas.new_zeros(len(betas), len(BODY_25), 3),
    )  # fmt: skip
    fitted = fit_uncalibrated(
        problem.body, problem.samples.K, problem.xy[:, :, None], problem.confidence[:, :, None], begin,
        problem.settings,
    ).motion  # fmt: skip
    count = problem.samples.K.shape[1]
    return Bodies(
        orient=fitted.view_orient[:, :, 0],
        body_pose=fitted.body_pose.expand(-1, count, -1, -1, -1),
        betas=fitted.betas[:, None].expand(-1, count, -1),
        transl=fitted.view_transl[:, :, 0],
        score=start.score,
    )


def _fit_spin(problem: _FitProblem, points: KeypointBody) -> Bodies:
    """Fit each view alone as SPIN, in pixels of SPIN's crop, which its weights are for."""
    samples, start, (n, v) = problem.samples, problem.start, problem.confidence.shape[:2]
    K = samples.K.reshape(-1, 1, 3, 3).clone()
    spin_px = CROP_PX / samples.images.shape[-1]
    K[:, :, :2] *= spin_px
    eye = torch.eye(3, dtype=K.dtype, device=K.device).expand_as(K)
    keypoints = spin_px * samples.xy_px, _confidence(samples)
    xy, confidence = (x.flatten(0, 1)[:, None, None] for x in keypoints)
    views = Views(K, eye, eye[..., 0] * 0, xy, confidence)
    betas = start.betas.flatten(0, 1)
    begin = Motion(
        start.rotations.flatten(0, 1)[:, None], start.transl.flatten(0, 1)[:, None], betas,
        betas.new_zeros(len(betas), len(SPIN_49), 3),
    )  # fmt: skip
    with torch.enable_grad():
        fitted = spin(points, views, begin, problem.prior, iterations=problem.cfg.iterations).motion
    rotations = fitted.rotations.view(n, v, -1, 3, 3)
    return Bodies(
        rotations[:, :, 0], rotations[:, :, 1:], fitted.betas.view(n, v, -1), fitted.transl.view(n, v, 3),
        start.score,
    )  # fmt: skip


def picture_id(sample: str, camera: str) -> str:
    """Id of a sample's view, ``dataset/subject/sequence/camera/frame``."""
    head, _, frame = sample.rpartition("/")
    return f"{head}/{camera}/{frame}"


def picture_ids(samples: Samples) -> list[list[str]]:
    """Ids of all views of all samples."""
    pairs = zip(samples.ids, samples.cameras, strict=True)
    return [[picture_id(sample, camera) for camera in cameras] for sample, cameras in pairs]


def keep_better(new: Bodies, old: Bodies) -> Bodies:
    """Keep the fit of lower score of each view; the old one of equal ones."""
    return new.where(new.score < old.score, old)


@dataclass(frozen=True, repr=False)
class Target(TensorBatch):
    """Bodies that a net is to predict."""

    bodies: Bodies
    has_pose: Tensor = axes("N V")
    """True where the view has a pose and a root to learn."""
    has_shape: Tensor = axes("N V")
    """True where the view has a shape to learn."""


def training_target(fits: Bodies, samples: Samples, cfg: LoopConfig) -> Target:
    """Choose the target: the true pose and the true shape where known, else the fits that are good enough.

    Betas of a fit with one beyond ``MAX_ABS_BETA`` are 0. The translation is always the fit's.
    """
    extreme = (fits.betas.abs() > MAX_ABS_BETA).any(-1, keepdim=True)
    good = (fits.score < cfg.threshold) & samples.seen
    pose = samples.body_pose[:, None].expand_as(fits.body_pose)
    betas = samples.betas[:, None].expand_as(fits.betas)
    true_pose = (_finite(pose) & _finite(samples.orient)) & samples.seen
    true_shape = _finite(betas) & samples.seen
    fits = replace(fits, betas=torch.where(extreme, 0, fits.betas))
    posed = replace(fits, orient=torch.nan_to_num(samples.orient), body_pose=torch.nan_to_num(pose))
    bodies = posed.where(true_pose, fits)
    bodies = replace(bodies, betas=torch.nan_to_num(betas)).where(true_shape, bodies)
    return Target(bodies, good | true_pose, good | true_shape)


def _finite(x: Tensor) -> Tensor:
    """True (N, V) where x (N, V, ...) is finite."""
    return x.isfinite().flatten(2).all(-1)
