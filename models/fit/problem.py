"""The fitting problem: cameras' observations, motions, weights of the energy, and the constants of a run.

A batch of N problems (people × windows of one length) is solved together. The energy follows SMPLify (Bogo et
al. 2016) with time added, see ``Weights``:

    E = Σ c² ρ(u)             reprojection, u in standard deviations, ρ Geman–McClure, annealed
      + pose · prior(Log R)   Gaussian mixture over poses
      + |R − R*|² / 2 σ²      a pose given for each frame, a regressor's
      + hinge · Σ relu²       elbows and knees that bend backwards
      + sideways · Σ sin²     or sideways: by that alone a nearly straight limb's twist is seen
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

from models.body import KeypointBody
from models.priors import PosePrior, PriorTerms
from pipeline.skeleton import BODY_25, SMPL_24

JOINTS = len(SMPL_24)

HINGES = (("left_elbow", 1, -1.0), ("right_elbow", 1, 1.0), ("left_knee", 0, 1.0), ("right_knee", 0, 1.0))
"""Joint, axis of its local rotation and the sign of that angle when it bends the natural way."""

STRAIGHT_RAD = 0.0075
"""A hinge that bends by less is drawn back to it. What pulls it the other way gains up to 0.4°, and
so it never bends backwards."""

_MOVES = {
    "Nose": 7.6, "Eye": 7.6, "Ear": 7.6, "Neck": 7.3, "Shoulder": 7.0, "Elbow": 9.3, "Wrist": 11.7,
    "MidHip": 3.5, "Hip": 4.1, "Knee": 9.6, "Ankle": 12.2, "Heel": 14.4, "SmallToe": 18.0, "BigToe": 20.0,
}  # fmt: skip
_TURNS = {
    "pelvis": 32.0, "hip": 57.0, "knee": 58.0, "ankle": 89.0, "foot": 140.0,
    "spine1": 15.5, "spine2": 13.6, "spine3": 9.7, "neck": 27.0, "head": 27.0,
    "collar": 7.0, "shoulder": 54.0, "elbow": 41.0, "wrist": 85.0, "hand": 85.0,
}  # fmt: skip
"""How keypoints (m/s²) and local rotations (rad/s², Frobenius) accelerate: median over the CMU motion
capture clips of a clip's root mean square, at 30 frames a second. Only ratios count here: torsos are slow."""


def _ratios(values: Sequence[float]) -> NDArray[np.float64]:
    """Values over one of them all that as a standard deviation would weigh as much on the whole."""
    x = np.asarray(values)
    out: NDArray[np.float64] = x * np.sqrt(np.mean(x**-2.0))
    return out


KEYPOINT_RATIOS = _ratios([_MOVES[k[1:] if k[0] in "LR" else k] for k in BODY_25.names])
JOINT_RATIOS = _ratios([_TURNS[j.split("_")[-1]] for j in SMPL_24.names])


@dataclass(frozen=True)
class Weights:
    """Weights of the terms of the energy, in units that hold for any rig, picture size and frame rate."""

    keypoint_m: float = 0.015
    """Standard deviation of a keypoint of confidence 1, metres at the person's distance: 7 px for a person
    820 px tall. Detectors err in proportion to the person's size in the picture."""
    keypoint_px: float = 1.0
    """Its least value, in pixels."""
    pose: float = 0.04
    """Of the squared Mahalanobis distance to the pose prior, for a clip, whose frames are much the same.
    Single frames do best with 1."""
    hinge: float = 1000.0
    """Of the squared backward bend of elbows and knees, 1/rad², from ``STRAIGHT_RAD`` on."""
    sideways: float = 10.0
    """Of the squared sine of the angle that elbows and knees bend sideways: people's do by 1–2°, and bodies
    differ in where the axis is."""
    acceleration: float = 8.0
    """Of the mean over keypoints of squared acceleration / acceleration_ms2²."""
    acceleration_ms2: float = 5.0
    """m/s²: 1.4 mm a frame² at 60 frames a second; more for limbs, less for torsos (``KEYPOINT_RATIOS``)."""
    spin: float = 0.25
    """Of |R″|² / spin_rads2² of each local rotation; Frobenius, twice the squared angular acceleration."""
    spin_rads2: float = 27.0
    """rad/s²: 0.0075 a frame² at 60 frames a second; more for limbs, less for spines (``JOINT_RATIOS``)."""
    shape: float = 5.0
    """Of |β|², for every 100 frames: the data grow with the frames, so must what holds the shape."""
    offset_m: float = 0.0025
    """Standard deviation of the keypoints' offsets, metres, at 100 frames. 0 switches offsets off."""
    offset_spread: float = 2.5
    """By what factor, up or down, the last stage may replace it by that of the offsets found in the stage
    before: a detector is as far off as it is seen to be. 1 keeps it."""


@dataclass(frozen=True)
class Schedule:
    """Annealing stages: (robust scale in standard deviations, most iterations, least relative decrease).

    Offsets are fitted in the last two.
    """

    stages: tuple[tuple[float, int, float], ...] = ((16.0, 6, 2e-2), (8.0, 6, 2e-2), (4.0, 20, 1e-3))


@dataclass(frozen=True)
class Views:
    """Keypoints of each problem's person in V calibrated cameras, and the cameras."""

    K: Tensor
    """(N, V, 3, 3) intrinsics, pixels."""
    R: Tensor
    """(N, V, 3, 3) world → camera."""
    t: Tensor
    """(N, V, 3) metres."""
    xy_px: Tensor
    """(N, V, T, K, 2) undistorted pixels, anything where missing."""
    confidence: Tensor
    """(N, V, T, K) 0 where missing."""


@dataclass(frozen=True)
class Motion:
    """Bodies over time: all that the solver looks for."""

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
    """A pose that each frame is drawn to, such as a regressor's: for one view the best prior there is."""

    body_pose: Tensor
    """(N, T, 23, 3, 3) joint → parent; where it is not finite it says nothing."""
    sigma_rad: Tensor
    """Standard deviation of a joint's angle to it, broadcasts to (N, T, 23); infinite leaves a joint out."""


@dataclass(frozen=True)
class FitSettings:
    """Rate, weights and assumptions of a fit."""

    rate: float
    """Frames a second."""
    held: int = 0
    """Leading frames that are final already: they tie the others to what came before, and their own keypoints
    do not count."""
    breaks: Sequence[int] = ()
    """Frames that do not follow the one before them: they share its shape, and no movement."""
    free_shape: bool = True
    """Fit the betas and, unless ``weights.offset_m`` is 0, the offsets; else those of the start are kept."""
    weights: Weights = Weights()
    schedule: Schedule = Schedule()
    prior: PosePrior | None = None
    """Likely poses."""
    toward: PoseTarget | None = None
    """The likely pose of each frame, besides."""


@dataclass(frozen=True)
class Hinges:
    """Elbows and knees (L of them) among the unknowns."""

    index: Tensor  # (L,) number of the hinge's angle in θ
    sign: Tensor  # (L,) of that angle when it bends the natural way
    joint: Tensor  # (L,) number among SMPL's joints
    axis: Tensor  # (L,) of the joint's rotation
    bone: Tensor  # (L, 3) direction of the lower bone: forearms lie along x, shanks along y

    @staticmethod
    def of(active: Sequence[int], dtype: torch.dtype, device: torch.device) -> Hinges:
        """Hinges of a body whose joints ``active``, the root first, are free to turn."""
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


@lru_cache
def _descendants() -> tuple[tuple[float, ...], ...]:
    """[a][j] = 1 where joint j is a or hangs on it."""
    below = np.eye(JOINTS)
    for j in range(JOINTS - 1, 0, -1):
        below[SMPL_24.parents[j]] += below[j]
    return tuple(map(tuple, below))


def _levers(joints: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """c of p = t + J₀ + Σ_a G_a c_a: rest joints (..., 24, 3), points (..., K, 3) → (..., K, 24, 3).

    c_ka = w_ka (P_k − J_a) + Σ over children i of a: (J_i − J_a) · (weight of k on i and below). Linear in
    joints and points, so the shape directions go through it too.
    """
    below = weights @ torch.tensor(_descendants(), dtype=weights.dtype, device=weights.device).T
    c = weights[..., None] * (points[..., :, None, :] - joints[..., None, :, :])
    parents = torch.tensor(SMPL_24.parents[1:], device=weights.device)
    bones = joints[..., 1:, :] - joints[..., parents, :]
    return c.index_add(-2, parents, below[:, 1:, None] * bones[..., None, :, :])


@dataclass(frozen=True)
class LeverBody:
    """The body as a linear map of its joints' global rotations: levers at zero shape, and their derivatives.

    p = t + J₀ + Σ_a G_a c_a(β, o), with c constant over time: points, betas' Jacobians and the lever arms of
    all joints are matrix products. Pose blend shapes, where a body has them, move few keypoints, by
    Σ_a w_a G_a d(R), d linear in the local rotations.
    """

    joint0: Tensor  # (3,)
    joint0_dirs: Tensor  # (3, B)
    levers: Tensor  # (K, 24, 3)
    lever_dirs: Tensor  # (K, 24, 3, B)
    weights: Tensor  # (K, 24)
    blended: Tensor  # (S,) keypoints that pose blend shapes move
    posedirs: Tensor  # (S, 3, 23, 3, 3) by the entries of R − 1 of joints 1, 2, ...
    below: Tensor  # (24, A) 1 where the row's joint hangs on active joint A
    active: Tensor  # (A,) joints that move some keypoint; the root first
    hinges: Hinges

    @staticmethod
    @lru_cache(maxsize=4)
    def of(body: KeypointBody, dtype: torch.dtype, device: torch.device) -> LeverBody:
        jt, js = body.joints_template.to(device, dtype), body.joints_shapedirs.to(device, dtype)
        pt, ps = body.points_template.to(device, dtype), body.points_shapedirs.to(device, dtype)
        w = body.weights.to(device, dtype)
        levers = _levers(jt, pt, w)
        dirs = _levers(js.permute(2, 0, 1), ps.permute(2, 0, 1), w).permute(1, 2, 3, 0).contiguous()
        below = torch.tensor(_descendants(), dtype=dtype, device=device)
        # A joint that moves no keypoint by more than a few millimetres a radian cannot be seen to turn.
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
    """Constants of a run."""

    body: LeverBody
    prior: PriorTerms | None
    toward: tuple[Tensor, Tensor] | None  # rotations (N, T, A − 1, 3, 3) and their weights (N, T, A − 1)
    held: int  # leading frames that do not move
    tied: Tensor  # (T − 2,) 1 where a frame and the next two follow each other, else 0
    bands: tuple[Tensor, Tensor, Tensor]  # diagonals of D₂ᵀ D₂ of the free frames: (F,), (F − 1,), (F − 2,)
    free_shape: bool
    free_offsets: bool
    roots: int  # problems in a row that share all but the root: one person's views, where uncalibrated
    seen: Tensor  # (N, V, T, K, 2) normalised image points
    trust: Tensor  # (N, V, T, K) confidence²
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
        """Problems ``rows`` of the batch, by number."""
        toward = None if self.toward is None else (self.toward[0][rows], self.toward[1][rows])
        return replace(
            self,
            toward=toward,
            seen=self.seen[rows],
            trust=self.trust[rows],
            R=self.R[rows],
            t=self.t[rows],
            focal=self.focal[rows],
            w_offset=self.w_offset[rows],
        )


def stiffness(x: Tensor, dim: int, tied: Tensor) -> Tensor:
    """D₂ᵀ D₂ x along a time axis, D₂ the second difference: the gradient of half its squared sum.

    tied: (frames − 2,) which differences there are, 1 or 0.
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
    """Main, first and second diagonal of D₂ᵀ D₂ over ``frames`` frames, of those that are not held."""
    s = stiffness(torch.eye(frames, dtype=tied.dtype, device=tied.device), 0, tied)[held:, held:]
    return s.diagonal(), s.diagonal(1), s.diagonal(2)


def prepare(
    body: KeypointBody, views: Views, start: Motion, settings: FitSettings, roots: int = 1
) -> tuple[Problem, Motion, Tensor]:
    """Constants, and the start about an origin (N, 3) near the person, where single precision is finest.

    Each of ``roots`` problems that share joints and shape bears its part of the terms that see no picture.
    """
    dtype, device = views.xy_px.dtype, views.xy_px.device
    weights, held = settings.weights, settings.held
    start = Motion(*(getattr(start, f.name).to(device) for f in fields(Motion)))
    model = LeverBody.of(body, dtype, device)
    frames = start.transl.shape[1]
    # Whole metres are the same in single precision: cameras and motions move by one origin.
    origin = start.transl.double().mean(1).round()
    R = views.R.double()
    t = views.t.double() + (R @ origin[:, None, :, None])[..., 0]
    pelvis = start.transl.double() - origin[:, None] + model.root(start.betas.to(dtype))[:, None]
    depth = (R @ pelvis.mT[:, None])[:, :, 2] + t[..., 2:]  # (N, V, T)
    # Accelerations are differences over one frame: to frames, and (below) shared terms to the clip's length.
    per_frame = 1 / settings.rate**2
    share = frames / 100 / roots
    tied = np.ones(max(frames - 2, 0))
    for b in settings.breaks:
        tied[max(b - 2, 0) : b] = 0
    tied_here = torch.tensor(tied, dtype=dtype, device=device)
    keypoint_ms2, joint_rads2 = (
        x * torch.tensor(ratios, dtype=dtype, device=device)
        for x, ratios in (
            (weights.acceleration_ms2, KEYPOINT_RATIOS),
            (weights.spin_rads2, JOINT_RATIOS),
        )
    )
    prior = settings.prior
    free_offsets = settings.free_shape and weights.offset_m > 0
    w_offset = share / weights.offset_m**2 if free_offsets else 0.0
    seen, trust, focal = _observations(views, depth, weights)
    problem = Problem(
        body=model,
        prior=None
        if prior is None
        else prior.of_joints(model.active[1:].tolist(), weights.pose / roots, dtype, device),
        toward=None if settings.toward is None else _pull(settings.toward, model.active, roots, dtype),
        held=held,
        tied=tied_here,
        bands=_bands(tied_here, frames, held),
        free_shape=settings.free_shape,
        free_offsets=free_offsets,
        roots=roots,
        seen=seen,
        trust=trust,
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
    seen = homogeneous @ torch.linalg.inv_ex(K).inverse.mT[:, :, None]
    known = views.xy_px.isfinite().all(-1)
    trust = torch.where(known, views.confidence, 0) ** 2
    return seen[..., :2].to(dtype), trust.to(dtype), focal.to(dtype)


def _pull(toward: PoseTarget, active: Tensor, roots: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Target rotations (N, T, A − 1, 3, 3) of the active joints, root excepted, and weights (N, T, A − 1)."""
    pick = active[1:] - 1
    pose, sigma = toward.body_pose.to(active.device), toward.sigma_rad.to(active.device)
    known = pose.isfinite().flatten(3).all(-1)
    weight = torch.where(known, 0.5 / sigma.double().expand(known.shape) ** 2, 0)[..., pick] / roots
    pose = torch.nan_to_num(pose)[:, :, pick]
    return pose.to(dtype).repeat_interleave(roots, 0), weight.to(dtype).repeat_interleave(roots, 0)
