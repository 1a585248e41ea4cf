"""Fitting problem: observations, motions, weights of the energy, and the constants of one minimisation.

A batch of N problems (people × windows of one length) is solved together. The energy follows SMPLify (Bogo et
al. 2016) with time added, see ``Weights``:

    E = Σ c² ρ(u)             reprojection, u in standard deviations, ρ Geman–McClure, annealed
      + pose · prior(Log R)   Gaussian mixture over poses
      + |R − R*|² / 2 σ²      distance to a target pose, such as a regressor's
      + hinge · Σ relu²       hyperextension of elbows and knees
      + sideways · Σ sin²     their sideways bend, which alone fixes the twist of a nearly straight limb
      + |p″|² + |R″|²         accelerations of the keypoints, and of the local rotations
      + |β|² + |o|²           shape and offsets, per 100 frames

Axes: N problems, T frames, V views, K keypoints, B betas. Everything runs in the dtype and on the device of
the keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.body import KeypointBody, descendants, lever_arms
from models.priors import PosePrior, PriorTerms
from pipeline.skeleton import BODY_25, SMPL_24

JOINTS = len(SMPL_24)

HINGES = (("left_elbow", 1, -1.0), ("right_elbow", 1, 1.0), ("left_knee", 0, 1.0), ("right_knee", 0, 1.0))
"""Joint, axis of its local rotation, and sign of that angle in flexion."""

MIN_BEND_RAD = 0.0075
"""Least flexion of a hinge. The other terms move it back by up to 0.4°, so no hinge hyperextends."""

_KEYPOINT_ACCELERATION_MS2 = {
    "Nose": 7.6, "Eye": 7.6, "Ear": 7.6, "Neck": 7.3, "Shoulder": 7.0, "Elbow": 9.3, "Wrist": 11.7,
    "MidHip": 3.5, "Hip": 4.1, "Knee": 9.6, "Ankle": 12.2, "Heel": 14.4, "SmallToe": 18.0, "BigToe": 20.0,
}  # fmt: skip
_JOINT_ACCELERATION_RADS2 = {
    "pelvis": 32.0, "hip": 57.0, "knee": 58.0, "ankle": 89.0, "foot": 140.0,
    "spine1": 15.5, "spine2": 13.6, "spine3": 9.7, "neck": 27.0, "head": 27.0,
    "collar": 7.0, "shoulder": 54.0, "elbow": 41.0, "wrist": 85.0, "hand": 85.0,
}  # fmt: skip
"""Accelerations of keypoints (m/s²) and of local rotations (rad/s², Frobenius): median over the CMU motion
capture clips of a clip's root mean square, at 30 frames a second. Only their ratios are used."""


def _ratios(values: Sequence[float]) -> NDArray[np.float64]:
    """Ratios of standard deviations to the single one with the same mean weight 1/σ²."""
    x = np.asarray(values)
    out: NDArray[np.float64] = x * np.sqrt(np.mean(x**-2.0))
    return out


KEYPOINT_ACCELERATION_RATIOS = _ratios(
    [_KEYPOINT_ACCELERATION_MS2[k[1:] if k[0] in "LR" else k] for k in BODY_25.names]
)
JOINT_ACCELERATION_RATIOS = _ratios([_JOINT_ACCELERATION_RADS2[j.split("_")[-1]] for j in SMPL_24.names])


@dataclass(frozen=True)
class Weights:
    """Weights of the energy, in units independent of rig, picture size and frame rate."""

    keypoint_m: float = 0.015
    """Standard deviation of a keypoint of confidence 1, metres at the person's distance: 7 px for a person
    820 px tall. Detectors err in proportion to the person's size in the picture."""
    keypoint_px: float = 1.0
    """Its lower bound, pixels."""
    pose: float = 0.04
    """Of the squared Mahalanobis distance to the pose prior, for a clip, whose frames are correlated;
    single frames do best with 1."""
    hinge: float = 1000.0
    """Of the squared hyperextension of elbows and knees, 1/rad², below ``MIN_BEND_RAD``."""
    sideways: float = 10.0
    """Of the squared sine of the sideways bend of elbows and knees: 1–2° in people, whose hinge axes
    differ."""
    acceleration: float = 8.0
    """Of the mean over keypoints of squared acceleration / acceleration_ms2²."""
    acceleration_ms2: float = 5.0
    """m/s²: 1.4 mm a frame² at 60 frames a second; scaled by ``KEYPOINT_ACCELERATION_RATIOS``."""
    spin: float = 0.25
    """Of |R″|² / spin_rads2² of each local rotation; Frobenius, twice the squared angular acceleration."""
    spin_rads2: float = 27.0
    """rad/s²: 0.0075 a frame² at 60 frames a second; scaled by ``JOINT_ACCELERATION_RATIOS``."""
    shape: float = 5.0
    """Of |β|², for every 100 frames: it grows with the frames as the data term does."""
    offset_m: float = 0.0025
    """Standard deviation of the keypoints' offsets, metres, at 100 frames. 0 switches offsets off."""
    offset_spread: float = 2.5
    """Largest factor by which the last stage may widen or narrow ``offset_m``, to that of the offsets of the
    stage before. 1 keeps it."""


@dataclass(frozen=True)
class Schedule:
    """Annealing stages: (robust scale in standard deviations, iteration limit, relative tolerance).

    The last two fit offsets.
    """

    stages: tuple[tuple[float, int, float], ...] = ((16.0, 6, 2e-2), (8.0, 6, 2e-2), (4.0, 20, 1e-3))


@dataclass(frozen=True)
class Views:
    """Cameras, and each problem's keypoints in them."""

    K: Tensor
    """(N, V, 3, 3) intrinsics, pixels."""
    R: Tensor
    """(N, V, 3, 3) world → camera."""
    t: Tensor
    """(N, V, 3) metres."""
    xy_px: Tensor
    """(N, V, T, K, 2) undistorted pixels; ignored where missing."""
    confidence: Tensor
    """(N, V, T, K) 0 where missing."""


@dataclass(frozen=True)
class Motion:
    """Bodies over time: the unknowns of a fit."""

    rotations: Tensor
    """(N, T, 24, 3, 3): root → world, then joint → parent."""
    transl: Tensor
    """(N, T, 3) metres, world: the root joint lies at J₀(β) + transl."""
    betas: Tensor
    """(N, B)"""
    offsets: Tensor
    """(N, K, 3) metres, added to the rest keypoints."""

    def frames(self, start: int, stop: int | None) -> Motion:
        return replace(self, rotations=self.rotations[:, start:stop], transl=self.transl[:, start:stop])


@dataclass(frozen=True)
class PoseTarget:
    """Target pose of each frame, such as a regressor's: the best prior where one view sees the person."""

    body_pose: Tensor
    """(N, T, 23, 3, 3) joint → parent; not finite: no target."""
    sigma_rad: Tensor
    """Standard deviation of a joint's angle to it, broadcasts to (N, T, 23); infinite: no target."""


@dataclass(frozen=True)
class FitSettings:
    """Rate, weights and assumptions of a fit."""

    rate: float
    """Frames a second."""
    held: int = 0
    """Leading final frames: fixed, without data terms, they link the rest to what came before."""
    breaks: Sequence[int] = ()
    """Frames that do not follow their predecessor in time: no acceleration spans them."""
    free_shape: bool = True
    """Fit the betas and, unless ``weights.offset_m`` is 0, the offsets; else those of the start are kept."""
    weights: Weights = Weights()
    schedule: Schedule = Schedule()
    prior: PosePrior | None = None
    """Pose prior."""
    pose_target: PoseTarget | None = None


@dataclass(frozen=True)
class Hinges:
    """Elbows and knees (L) among the unknowns."""

    index: Tensor  # (L,) of the hinge's angle in θ
    sign: Tensor  # (L,) of that angle in flexion
    joint: Tensor  # (L,) number among SMPL's joints
    axis: Tensor  # (L,) of the joint's rotation
    bone: Tensor  # (L, 3) direction of the lower bone: forearms lie along x, shanks along y

    @staticmethod
    def of(active: Sequence[int], dtype: torch.dtype, device: torch.device) -> Hinges:
        """Hinges of a body with free joints ``active``, the root first."""
        joint = [SMPL_24.index(name) for name, _, _ in HINGES]
        axis = [axis for _, axis, _ in HINGES]
        index = [3 * (active.index(j) - 1) + a for j, a in zip(joint, axis, strict=True)]
        sign = torch.tensor([sign for _, _, sign in HINGES], dtype=dtype, device=device)
        bone = torch.eye(3, dtype=dtype, device=device)[[1 - a for a in axis]]
        return Hinges(
            torch.tensor(index, device=device),
            sign,
            torch.tensor(joint, device=device),
            torch.tensor(axis, device=device),
            bone,
        )


@dataclass(frozen=True)
class LeverBody:
    """The body as a linear map of its joints' global rotations: levers at zero shape, and their derivatives.

    p = t + J₀ + Σ_a G_a c_a(β, o), with c constant over time: points, Jacobians of the betas and lever arms
    of all joints are matrix products. Pose blend shapes, if any, move few keypoints, by Σ_a w_a G_a d(R), d
    linear in the local rotations.
    """

    joint0: Tensor  # (3,)
    joint0_dirs: Tensor  # (3, B)
    levers: Tensor  # (K, 24, 3)
    lever_dirs: Tensor  # (K, 24, 3, B)
    weights: Tensor  # (K, 24)
    blended: Tensor  # (S,) keypoints with pose blend shapes
    posedirs: Tensor  # (S, 3, 23, 3, 3) by the entries of R − 1 of joints 1, 2, ...
    below: Tensor  # (24, A) 1 where the row's joint is active joint A or its descendant
    active: Tensor  # (A,) joints that move a keypoint; the root first
    hinges: Hinges

    @staticmethod
    @lru_cache(maxsize=4)
    def of(body: KeypointBody, dtype: torch.dtype, device: torch.device) -> LeverBody:
        jt, js = body.joints_template.to(device, dtype), body.joints_shapedirs.to(device, dtype)
        pt, ps = body.points_template.to(device, dtype), body.points_shapedirs.to(device, dtype)
        w = body.weights.to(device, dtype)
        levers = lever_arms(jt, pt, w)
        dirs = lever_arms(js.permute(2, 0, 1), ps.permute(2, 0, 1), w).permute(1, 2, 3, 0).contiguous()
        below = descendants(SMPL_24, device, dtype)
        # A joint that moves every keypoint by less than 1 cm a radian is not observable.
        reach = (below @ levers.norm(dim=-1).T).amax(1)
        active = (reach > 0.01).nonzero()[:, 0]
        hinges = Hinges.of(active.tolist(), dtype, device)
        blend = body.points_posedirs
        blend = pt.new_zeros(0, 3, 9 * (JOINTS - 1)) if blend is None else blend.to(device, dtype)
        blended = blend.flatten(1).any(1).nonzero()[:, 0]
        posedirs = blend[blended].reshape(-1, 3, JOINTS - 1, 3, 3)
        return LeverBody(
            jt[0], js[0], levers, dirs, w, blended, posedirs, below[active].T.contiguous(), active, hinges
        )

    def root(self, betas: Tensor) -> Tensor:
        """J₀ (N, 3) of betas (N, B)."""
        return self.joint0 + betas @ self.joint0_dirs.T

    def shaped(self, betas: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """J₀ (N, 3) and levers (N, K, 24, 3) of betas (N, B) and offsets (N, K, 3)."""
        change = betas @ self.lever_dirs.reshape(-1, betas.shape[1]).T
        levers = self.levers + change.reshape(-1, *self.levers.shape)
        return self.root(betas), levers + self.weights[:, :, None] * offsets[:, :, None]


@dataclass(frozen=True)
class Problem:
    """Constants of one minimisation."""

    body: LeverBody
    prior: PriorTerms | None
    pose_target: tuple[Tensor, Tensor] | None  # rotations (N, T, A − 1, 3, 3) and their weights (N, T, A − 1)
    held: int  # leading fixed frames
    tied: Tensor  # (T − 2,) 1 where three frames are consecutive, else 0
    bands: tuple[Tensor, Tensor, Tensor]  # diagonals of D₂ᵀ D₂ of the free frames: (F,), (F − 1,), (F − 2,)
    free_shape: bool
    free_offsets: bool
    roots: int  # successive problems that share all but the root: the views of uncalibrated cameras
    image_xy: Tensor  # (N, V, T, K, 2) normalised image points
    confidence_sq: Tensor  # (N, V, T, K)
    R: Tensor  # (N, V, 3, 3)
    t: Tensor  # (N, V, 3)
    focal: Tensor  # (N, V, T, 3): fx, skew, fy in standard deviations
    w_hinge: float
    w_sideways: float
    w_acc: Tensor  # (K,)
    w_spin: Tensor  # (A,)
    w_shape: float
    w_offset: Tensor  # (N,)
    offset_spread: float

    def select(self, rows: Tensor) -> Problem:
        """Problems ``rows`` of the batch."""
        target = None if self.pose_target is None else (self.pose_target[0][rows], self.pose_target[1][rows])
        return replace(
            self,
            pose_target=target,
            image_xy=self.image_xy[rows],
            confidence_sq=self.confidence_sq[rows],
            R=self.R[rows],
            t=self.t[rows],
            focal=self.focal[rows],
            w_offset=self.w_offset[rows],
        )


def stiffness(x: Tensor, dim: int, tied: Tensor) -> Tensor:
    """D₂ᵀ D₂ x along a time axis, D₂ the second difference: the gradient of half its squared sum.

    tied: (frames − 2,) 1 for each difference that counts, else 0.
    """
    frames = x.shape[dim]
    out = torch.zeros_like(x)
    if frames >= 3:
        lo, mid, hi = (x.narrow(dim, i, frames - 2) for i in range(3))
        d = (hi - 2 * mid + lo) * tied.view(-1, *[1] * (x.ndim - 1 - dim % x.ndim))
        out.narrow(dim, 0, frames - 2).add_(d)
        out.narrow(dim, 1, frames - 2).sub_(2 * d)
        out.narrow(dim, 2, frames - 2).add_(d)
    return out


def _bands(tied: Tensor, frames: int, held: int) -> tuple[Tensor, Tensor, Tensor]:
    """Main, first and second diagonal of D₂ᵀ D₂ over ``frames`` frames, without the held ones."""
    s = stiffness(torch.eye(frames, dtype=tied.dtype, device=tied.device), 0, tied)[held:, held:]
    return s.diagonal(), s.diagonal(1), s.diagonal(2)


def prepare(
    body: KeypointBody, views: Views, start: Motion, settings: FitSettings, roots: int = 1
) -> tuple[Problem, Motion, Tensor]:
    """Constants, start relative to an origin (N, 3) near the person (for single precision), and that origin.

    The image-free terms of ``roots`` problems that share joints and shape are divided among them.
    """
    dtype, device = views.xy_px.dtype, views.xy_px.device
    weights, held = settings.weights, settings.held
    start = Motion(*(getattr(start, f.name).to(device) for f in fields(Motion)))
    model = LeverBody.of(body, dtype, device)
    frames = start.transl.shape[1]
    # Whole metres are exact in single precision.
    origin = start.transl.double().mean(1).round()
    R = views.R.double()
    t = views.t.double() + (R @ origin[:, None, :, None])[..., 0]
    pelvis = start.transl.double() - origin[:, None] + model.root(start.betas.to(dtype))[:, None]
    depth = (R @ pelvis.mT[:, None])[:, :, 2] + t[..., 2:]  # (N, V, T)
    per_frame = 1 / settings.rate**2
    share = frames / 100 / roots
    tied = np.ones(max(frames - 2, 0))
    for b in settings.breaks:
        tied[max(b - 2, 0) : b] = 0
    tied_frames = torch.tensor(tied, dtype=dtype, device=device)
    keypoint_ms2, joint_rads2 = (
        x * torch.tensor(ratios, dtype=dtype, device=device)
        for x, ratios in (
            (weights.acceleration_ms2, KEYPOINT_ACCELERATION_RATIOS),
            (weights.spin_rads2, JOINT_ACCELERATION_RATIOS),
        )
    )
    prior = settings.prior
    free_offsets = settings.free_shape and weights.offset_m > 0
    w_offset = share / weights.offset_m**2 if free_offsets else 0.0
    image_xy, confidence_sq, focal = _observations(views, depth, weights)
    problem = Problem(
        body=model,
        prior=None
        if prior is None
        else prior.of_joints(model.active[1:].tolist(), weights.pose / roots, dtype, device),
        pose_target=None
        if settings.pose_target is None
        else _weighted_target(settings.pose_target, model.active, roots, dtype),
        held=held,
        tied=tied_frames,
        bands=_bands(tied_frames, frames, held),
        free_shape=settings.free_shape,
        free_offsets=free_offsets,
        roots=roots,
        image_xy=image_xy,
        confidence_sq=confidence_sq,
        R=R.to(dtype),
        t=t.to(dtype),
        focal=focal,
        w_hinge=weights.hinge / roots,
        w_sideways=weights.sideways / roots,
        w_acc=weights.acceleration / (roots * body.weights.shape[0]) / (per_frame * keypoint_ms2) ** 2,
        w_spin=weights.spin / roots / (per_frame * joint_rads2[model.active]) ** 2,
        w_shape=weights.shape * share,
        w_offset=torch.full((len(origin),), w_offset, dtype=dtype, device=device),
        offset_spread=weights.offset_spread,
    )
    motion = Motion(
        start.rotations.to(dtype),
        (start.transl.double() - origin[:, None]).to(dtype),
        start.betas.to(dtype),
        start.offsets.to(dtype),
    )
    return problem, motion, origin.to(dtype)


def _observations(views: Views, depth: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised image points (N, V, T, K, 2), confidence² (N, V, T, K) and fx, skew, fy (N, V, T, 3) in
    standard deviations, of a person at a depth (N, V, T), metres."""
    dtype, K = views.xy_px.dtype, views.K.double()
    sigma = weights.keypoint_m * K[..., :2, :2].diagonal(dim1=-2, dim2=-1).mean(-1)[..., None]
    sigma = (sigma / depth.clamp(min=1)).clamp(min=weights.keypoint_px)
    focal = torch.stack([K[..., i, j, None] / sigma for i, j in ((0, 0), (0, 1), (1, 1))], -1)
    xy = torch.nan_to_num(views.xy_px).double()
    homogeneous = torch.cat([xy, torch.ones_like(xy[..., :1])], -1)
    image_xy = homogeneous @ torch.linalg.inv_ex(K).inverse.mT[:, :, None]
    confidence = torch.where(views.xy_px.isfinite().all(-1), views.confidence, 0)
    return image_xy[..., :2].to(dtype), (confidence**2).to(dtype), focal.to(dtype)


def _weighted_target(
    target: PoseTarget, active: Tensor, roots: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Target rotations (N, T, A − 1, 3, 3) of the active joints, root excepted, and weights (N, T, A − 1)."""
    joints = active[1:] - 1
    pose, sigma = target.body_pose.to(active.device), target.sigma_rad.to(active.device)
    valid = pose.isfinite().flatten(3).all(-1)
    weight = torch.where(valid, 0.5 / sigma.double().expand(valid.shape) ** 2, 0)[..., joints] / roots
    pose = torch.nan_to_num(pose)[:, :, joints]
    return pose.to(dtype).repeat_interleave(roots, 0), weight.to(dtype).repeat_interleave(roots, 0)
