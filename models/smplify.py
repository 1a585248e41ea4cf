"""SMPLify over time and views: fit SMPL to keypoints seen by calibrated cameras.

A batch of N problems (people × windows of one length) is solved together by Levenberg–Marquardt with exact
Jacobians. Unknown are, for every frame, the root translation and the local rotations, perturbed on the right
(R ← R Exp δ); and for every problem, if its shape is free, the betas and an offset for every keypoint of
the body (detectors define points differently).

The energy follows SMPLify (Bogo et al. 2016) with time added, see ``Weights``:

    E = Σ c² ρ(u)             reprojection, u in standard deviations, ρ Geman–McClure, annealed
      + pose · prior(Log R)   Gaussian mixture over poses
      + |R − R*|² / 2 σ²      a pose given for each frame, a regressor's
      + hinge · Σ relu²       elbows and knees that bend backwards
      + sideways · Σ sin²     or sideways: by that alone a nearly straight limb's twist is seen
      + |p″|² + |R″|²         accelerations of the keypoints, and of the local rotations
      + |β|² + |o|²           shape and offsets, per 100 frames

Two facts make it fast. A posed keypoint is linear in the global rotations, p = t + J₀ + Σ_a G_a c_a(β, o)
with c constant over time, so points, betas' Jacobians and the lever arms of all joints are matrix products.
And the cameras fold into one 3 × 3 system a keypoint, so the cost of the pose side does not grow with the
number of views. The normal equations are block-pentadiagonal over time with the shape as a border.

``fit`` takes calibrated cameras. ``fit_unposed`` takes cameras of which only the intrinsics are known: every
view is a problem with a root of its own, and the problems of one person are solved as one that share joints
and shape, their normal equations added up where the unknowns are the same.

Axes: N problems, T frames, V views, K keypoints, B betas. Everything runs in the dtype and on the device of
the keypoints. One thread is fastest for one problem: run several in several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from scipy.linalg import blas, lapack
from torch import Tensor

from models.body import KeypointBody, down_the_tree
from models.priors import PosePrior, PriorTerms
from models.rotations import geodesic_degrees, right_jacobian_inverse, rotation_between
from pipeline.skeleton import BODY_25, SMPL_24

JOINTS = len(SMPL_24)

HINGES = (("left_elbow", 1, -1.0), ("right_elbow", 1, 1.0), ("left_knee", 0, 1.0), ("right_knee", 0, 1.0))
"""Joint, axis of its local rotation and the sign of that angle when it bends the natural way."""

_STRAIGHT = 0.0075
"""Radians: a hinge that bends by less is drawn back to it. What pulls it the other way gains up to 0.4°, and
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
    """What the terms of the energy weigh, in units that hold for any rig, picture size and frame rate."""

    keypoint_m: float = 0.015
    """Standard deviation of a keypoint of confidence 1, metres at the person's distance: 7 px for a person
    820 px tall. Detectors err in proportion to the person's size in the picture."""
    keypoint_px: float = 1.0
    """Its least value, in pixels."""
    pose: float = 0.04
    """Of the squared Mahalanobis distance to the pose prior, for a clip, whose frames are much the same.
    Single frames do best with 1."""
    hinge: float = 1000.0
    """Of the squared backward bend of elbows and knees, 1/rad², from ``_STRAIGHT`` on."""
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
    """What V calibrated cameras saw of each problem's person."""

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
class Fit:
    motion: Motion
    energy: Tensor
    """(N,) at the last robust scale (float64)."""
    iterations: int
    """Linear systems solved, of the problem that took longest."""


@dataclass(frozen=True)
class UnposedMotion:
    """Bodies over time in the frames of V cameras that stand nobody knows where."""

    body_pose: Tensor
    """(N, T, 23, 3, 3) joint → parent."""
    view_orient: Tensor
    """(N, V, T, 3, 3) root → camera."""
    view_transl: Tensor
    """(N, V, T, 3) metres, camera: the root joint lies at J₀(β) + view_transl."""
    betas: Tensor
    """(N, B)"""
    offsets: Tensor
    """(N, K, 3) metres, added to the rest keypoints."""


@dataclass(frozen=True)
class UnposedFit:
    motion: UnposedMotion
    energy: Tensor
    """(N,) at the last robust scale (float64)."""
    iterations: int
    """Linear systems solved, of the problem that took longest."""


# --- The body, as a linear map of its global rotations ------------------------------------------------------


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
class _Model:
    """The body's constants for one run: levers at zero shape, their derivatives, what can be seen to turn."""

    joint0: Tensor  # (3,)
    joint0_dirs: Tensor  # (3, B)
    levers: Tensor  # (K, 24, 3)
    lever_dirs: Tensor  # (K, 24, 3, B)
    weights: Tensor  # (K, 24)
    below: Tensor  # (24, A) 1 where the row's joint hangs on active joint A
    active: Tensor  # (A,) joints that move some keypoint; the root first

    @staticmethod
    @lru_cache(maxsize=4)
    def of(body: KeypointBody, dtype: torch.dtype, device: torch.device) -> _Model:
        jt, js = body.joints_template.to(device, dtype), body.joints_shapedirs.to(device, dtype)
        pt, ps = body.points_template.to(device, dtype), body.points_shapedirs.to(device, dtype)
        w = body.weights.to(device, dtype)
        levers = _levers(jt, pt, w)
        dirs = _levers(js.permute(2, 0, 1), ps.permute(2, 0, 1), w).permute(1, 2, 3, 0)
        below = torch.tensor(_descendants(), dtype=dtype, device=device)
        # A joint that moves no keypoint by more than a few millimetres a radian cannot be seen to turn.
        reach = (below @ levers.norm(dim=-1).T).amax(1)
        active = (reach > 0.01).nonzero()[:, 0]
        return _Model(jt[0], js[0], levers, dirs.contiguous(), w, below[active].T.contiguous(), active)

    def shaped_root(self, betas: Tensor) -> Tensor:
        """J₀ (N, 3) of betas (N, B)."""
        return self.joint0 + betas @ self.joint0_dirs.T

    def shaped(self, betas: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """J₀ (N, 3) and levers (N, K, 24, 3) of betas (N, B) and offsets (N, K, 3)."""
        change = betas @ self.lever_dirs.reshape(-1, betas.shape[1]).T
        levers = self.levers + change.reshape(-1, *self.levers.shape)
        return self.shaped_root(betas), levers + self.weights[:, :, None] * offsets[:, :, None]


# --- Energy -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Problem:
    """Constants of a run."""

    model: _Model
    prior: PriorTerms | None
    toward: tuple[Tensor, Tensor] | None  # rotations (N, T, A − 1, 3, 3) and their weights (N, T, A − 1)
    hinges: tuple[tuple[int, float], ...]  # (number in θ, sign when bent the natural way)
    held: int  # leading frames that do not move
    tied: Tensor  # (T − 2,) 1 where a frame and the next two follow each other, else 0
    free_shape: bool
    free_offsets: bool
    roots: int  # problems in a row that share all but the root; one person's views, where they are unposed
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


@dataclass(frozen=True)
class _State:
    """Motion and all that its energy was computed from; the Jacobian starts here."""

    motion: Motion
    G: Tensor  # (N, T, 24, 3, 3) global rotations
    flat: Tensor  # (N, 3, T, 72) the same, for products with levers
    levers: Tensor  # (N, K, 24, 3)
    points: Tensor  # (N, 3, T, K)
    cam: Tensor  # (N, V, 3, T, K) normalised x, y and 1/z; 0 behind the camera
    miss: Tensor  # (N, V, 2, T, K) in standard deviations
    theta: Tensor  # (N, T, A − 1, 3)
    theta_slope: Tensor  # (N, T, (A − 1) 3) gradient of half the prior's and the hinges' energy
    component: Tensor  # (N, T) of the prior
    energy: Tensor  # (N,) float64


def _sideways(pb: _Problem, motion: Motion) -> tuple[Tensor, Tensor]:
    """Sines (N, T, 4) of the angles by which forearms and shanks leave their hinge's plane, and derivatives.

    It is the part of the lower bone, e, along the hinge's axis, h: R_he; its derivative (N, T, 4, 3) is
    e × R_h.
    """
    axes = torch.tensor([axis for _, axis, _ in HINGES], device=motion.transl.device)
    joints = [SMPL_24.index(name) for name, _, _ in HINGES]
    row = motion.rotations[:, :, joints, axes]
    bone = torch.eye(3, dtype=row.dtype, device=row.device)[1 - axes]  # forearms lie along x, shanks along y
    return (row * bone).sum(-1), torch.linalg.cross(bone.expand_as(row), row, dim=-1)


_NEAR = 0.1
"""Metres: what lies nearer to the camera, or behind it, is not in the picture."""


def _evaluate(pb: _Problem, motion: Motion, robust: float) -> _State:
    n, frames = motion.transl.shape[:2]
    G = down_the_tree(motion.rotations)
    joint0, levers = pb.model.shaped(motion.betas, motion.offsets)
    flat = G.permute(0, 3, 1, 2, 4).reshape(n, 3, frames, 3 * JOINTS)
    points = flat.reshape(n, 3 * frames, -1) @ levers.reshape(n, -1, 3 * JOINTS).mT
    points = points.reshape(n, 3, frames, -1) + (motion.transl + joint0[:, None]).mT[..., None]

    views = pb.R.shape[1]
    cam = pb.R.reshape(n, 3 * views, 3) @ points.reshape(n, 3, -1)
    cam = cam.reshape(n, views, 3, *points.shape[2:]) + pb.t[..., None, None]
    front = cam[:, :, 2] > _NEAR
    iz = torch.where(front, 1 / cam[:, :, 2], 0)
    x, y = cam[:, :, 0] * iz, cam[:, :, 1] * iz
    fx, skew, fy = (pb.focal[..., i, None] for i in range(3))
    dx, dy = x - pb.seen[..., 0], y - pb.seen[..., 1]
    ux, uy = fx * dx + skew * dy, fy * dy
    r2 = ux * ux + uy * uy
    g2 = robust * robust
    data = pb.trust * torch.where(front, g2 * r2 / (g2 + r2), g2)
    energy = data[:, :, pb.held :].double().sum((1, 2, 3))

    theta = roma.rotmat_to_rotvec(motion.rotations[:, :, pb.model.active[1:]])
    row = theta.flatten(2)
    slope = torch.zeros_like(row)
    component = torch.zeros(n, frames, dtype=torch.long, device=row.device)
    if pb.prior is not None:
        distance, slope, component = pb.prior.evaluate(row)
        energy = energy + distance[:, pb.held :].double().sum(1)
    if pb.toward is not None:
        off = motion.rotations[:, :, pb.model.active[1:]] - pb.toward[0]
        distance = pb.toward[1] * (off * off).sum((-2, -1))
        energy = energy + distance[:, pb.held :].double().sum((1, 2))
    for i, sign in pb.hinges:
        back = (_STRAIGHT - sign * row[..., i]).clamp(min=0)
        slope[..., i] -= sign * pb.w_hinge * back
        energy = energy + pb.w_hinge * (back * back)[:, pb.held :].double().sum(1)
    side, _ = _sideways(pb, motion)
    energy = energy + pb.w_sideways * (side * side)[:, pb.held :].double().sum((1, 2))

    if frames >= 3:
        tied = pb.tied.to(torch.float64)
        bend = points[:, :, 2:] - 2 * points[:, :, 1:-1] + points[:, :, :-2]
        energy = energy + (pb.w_acc * bend * bend).double().sum((1, 3)) @ tied
        turn = motion.rotations[:, :, pb.model.active]
        turn = turn[:, 2:] - 2 * turn[:, 1:-1] + turn[:, :-2]
        energy = energy + (pb.w_spin * (turn * turn).sum((3, 4))).double().sum(2) @ tied
    if pb.free_shape:
        energy = energy + pb.w_shape * (motion.betas**2).double().sum(1)
        energy = energy + pb.w_offset * (motion.offsets**2).double().sum((1, 2))
    return _State(
        motion,
        G,
        flat,
        levers,
        points,
        torch.stack([x, y, iz], 2),
        torch.stack([ux, uy], 2),
        theta,
        slope,
        component,
        energy,
    )


# --- Normal equations ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _System:
    """(N) normal equations H δ = −g of half the energy. F free frames of M unknowns: transl, joints."""

    diag: Tensor  # (N, F, M, M)
    next1: Tensor  # (N, F − 1, M, M) frame t with t + 1
    next2: Tensor  # (N, F − 2, M, M)
    grad: Tensor  # (N, F, M)
    border: Tensor  # (N, F, M, S) with betas and offsets, S = B + 3K; as many as are free
    shape: Tensor  # (N, S, S)
    shape_grad: Tensor  # (N, S)
    jacobian: Tensor  # (N, F, 3K, M) of the keypoints; rows: coordinate, keypoint


def _stiffness(x: Tensor, dim: int, tied: Tensor) -> Tensor:
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


def _bands(frames: int, tied: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Main, first and second diagonal of D₂ᵀ D₂ over ``frames`` frames."""
    eye = torch.eye(frames, dtype=tied.dtype, device=tied.device)
    s = _stiffness(eye, 0, tied)
    return (
        s.diagonal(),
        s.diagonal(1) if frames > 1 else eye[:0, 0],
        s.diagonal(2) if frames > 2 else eye[:0, 0],
    )


def _block_diagonal(h: Tensor, first: int, blocks: int) -> Tensor:
    """A view (..., 3, 3, blocks) of the 3 × 3 diagonal blocks of h (..., M, M) from row ``first`` on."""
    inner = h[..., first : first + 3 * blocks, first : first + 3 * blocks]
    # Not reshape: it might copy, and callers write into the view.
    return inner.view(*h.shape[:-2], blocks, 3, blocks, 3).diagonal(dim1=-4, dim2=-2)


def _offset_blocks(
    pb: _Problem, st: _State, sj: Tensor, jac: Tensor, camera: list[list[Tensor]], pull: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the offsets, coordinate by coordinate, add to a system, but for their prior.

    sj (N, 3, F, K, B), jac (N, F, 3, K, M): the keypoints' Jacobians; camera: 3 × 3 of (N, F, K), pull
    (N, 3, F, K) as in ``_linearise``. Returns the blocks with the poses (N, F, M, 3K), with the betas
    (N, B, 3K) and of their own (N, 3K, 3K), and their gradient (N, 3K). An offset moves its own keypoint
    alone, by R_k = Σ_j w_kj G_j: nearly all of it is products of 3 × 3 matrices.
    """
    turn = st.G.permute(0, 3, 4, 1, 2) @ pb.model.weights.T  # (N, 3, 3, F, K)
    stiff = pb.w_acc * _stiffness(turn, 3, pb.tied)
    weighed = torch.stack(
        [sum(camera[i][j][:, None] * turn[:, j] for j in range(3)) + stiff[:, i] for i in range(3)], 1
    )
    part = weighed.permute(0, 3, 1, 2, 4)[..., None]
    border = jac[:, :, 0, None] * part[:, :, 0]  # (N, F, 3, K, M)
    for i in (1, 2):
        border.addcmul_(jac[:, :, i, None], part[:, :, i])
    n, keypoints = turn.shape[0], turn.shape[-1]
    square = turn.new_zeros(n, 3, keypoints, 3, keypoints)
    square.diagonal(dim1=2, dim2=4).copy_(torch.einsum("nibfk,nicfk->nbck", turn, weighed))
    return (
        border.flatten(2, 3).mT,
        torch.einsum("nifkc,nibfk->ncbk", sj, weighed).flatten(2),
        square.view(n, 3 * keypoints, -1),
        torch.einsum("nibfk,nifk->nbk", turn, pull).flatten(1),
    )


def _linearise(pb: _Problem, st: _State, robust: float) -> _System:
    """Gauss–Newton system at a state, of the free frames."""
    model, h = pb.model, pb.held
    n, _, frames, keypoints = st.points.shape
    active = len(model.active)
    free = frames - h
    size = 3 + 3 * active
    dtype, device = st.points.dtype, st.points.device

    # Cameras folded into A = Σ w PᵀP and b = Σ w Pᵀu of each keypoint; P = ∂u/∂p, 2 × 3.
    x, y, iz = (st.cam[:, :, i, h:] for i in range(3))
    ux, uy = st.miss[:, :, 0, h:], st.miss[:, :, 1, h:]
    fx, skew, fy = (pb.focal[:, :, h:, i, None] for i in range(3))
    g2 = robust * robust
    w = pb.trust[:, :, h:] * (g2 / (g2 + ux * ux + uy * uy)) ** 2
    rows = [[pb.R[:, :, i, j, None, None] for j in range(3)] for i in range(3)]
    py = [fy * iz * (rows[1][j] - y * rows[2][j]) for j in range(3)]
    px = [fx * iz * (rows[0][j] - x * rows[2][j]) + skew / fy * py[j] for j in range(3)]
    wpx, wpy = [w * p for p in px], [w * p for p in py]
    upper = {(i, j): (wpx[i] * px[j] + wpy[i] * py[j]).sum(1) for i in range(3) for j in range(i, 3)}
    pull = torch.stack([(wpx[i] * ux + wpy[i] * uy).sum(1) for i in range(3)], 1)  # (N, 3, F, K)

    # Accelerations: multiples of the identity on the diagonal, the rest couples frames.
    main, one, two = (b[h:] for b in _bands(frames, pb.tied))
    tie = main[:, None] * pb.w_acc
    for i in range(3):
        upper[i, i] = upper[i, i] + tie
    pull = pull + pb.w_acc * _stiffness(st.points, 2, pb.tied)[:, :, h:]
    fold = [[upper[min(i, j), max(i, j)] for j in range(3)] for i in range(3)]
    camera = [[f - tie if i == j else f for j, f in enumerate(r)] for i, r in enumerate(fold)]

    # ∂p/∂δ_a = −[M_ka]× G_a with M_ka = Σ over joints b at and below a: G_b c_kb. Columns: g × M.
    turned = st.G[:, h:].permute(0, 3, 1, 4, 2)[:, :, :, :, None]  # (N, 3, F, 3, 1, 24)
    lever = st.levers.permute(0, 3, 1, 2)[:, None, None]  # (N, 1, 1, 3, K, 24)
    parts = turned[:, :, :, 0] * lever[:, :, :, 0]
    parts.addcmul_(turned[:, :, :, 1], lever[:, :, :, 1]).addcmul_(turned[:, :, :, 2], lever[:, :, :, 2])
    arm = parts @ model.below
    wide = -(-size // 16) * 16  # columns of zeros added: products of 64 columns take a third less than of 63
    jac = torch.empty(n, free, 3, keypoints, wide, dtype=dtype, device=device)
    jac[..., :3] = torch.eye(3, dtype=dtype, device=device)[:, None]
    jac[..., size:] = 0
    G = st.G[:, h:, model.active][:, :, None]  # (N, F, 1, A, 3, 3)
    m = [arm[:, i, ..., None] for i in range(3)]
    g = [G[..., i, :] for i in range(3)]
    for i, (j, k) in enumerate(((1, 2), (2, 0), (0, 1))):
        out = jac[:, :, i, :, 3:size].view(n, free, keypoints, active, 3)
        torch.mul(g[j], m[k], out=out)
        out.sub_(g[k] * m[j])
    jac2 = jac.reshape(n, free, 3 * keypoints, wide)

    folded = torch.empty_like(jac)
    for i in range(3):
        torch.mul(fold[i][0][..., None], jac[:, :, 0], out=folded[:, :, i])
        folded[:, :, i].addcmul_(fold[i][1][..., None], jac[:, :, 1])
        folded[:, :, i].addcmul_(fold[i][2][..., None], jac[:, :, 2])
    weighed = jac2 * pb.w_acc.repeat(3)[:, None]
    diag, next1, next2 = (
        x[..., :size, :size]
        for x in (
            jac2.mT @ folded.reshape(jac2.shape),
            (jac2[:, :-1].mT @ weighed[:, 1:]).mul_(one[: free - 1, None, None]),
            (jac2[:, :-2].mT @ weighed[:, 2:]).mul_(two[: max(free - 2, 0), None, None]),
        )
    )
    jac2 = jac2[..., :size]

    # Shape: betas, then offsets, coordinate by coordinate.
    pull_rows = pull.transpose(1, 2).reshape(n, free, 3 * keypoints, 1)
    if pb.free_shape:
        dirs = model.lever_dirs.permute(1, 2, 0, 3).reshape(3 * JOINTS, -1)
        sj = (st.flat.reshape(n, 3 * frames, -1) @ dirs).reshape(n, 3, frames, keypoints, -1)
        sj = sj + model.joint0_dirs[:, None, None]
        stiff = pb.w_acc[:, None] * _stiffness(sj, 2, pb.tied)
        weighed = torch.stack(
            [sum(camera[i][j][..., None] * sj[:, j] for j in range(3)) + stiff[:, i] for i in range(3)], 1
        )
        shape_jac = sj.transpose(1, 2).reshape(n, frames, 3 * keypoints, -1)
        rhs = torch.cat([pull_rows, weighed.transpose(1, 2).reshape(shape_jac.shape)], -1)
        right = jac2.mT @ rhs
        grad, border = right[..., 0].contiguous(), right[..., 1:]
        shape = (shape_jac.mT @ rhs).sum(1)  # (N, B, 1 + B)
        shape_hess, shape_grad = shape[..., 1:], shape[..., 0]
        weight, value = pb.w_shape * torch.ones_like(st.motion.betas), st.motion.betas
        if pb.free_offsets:
            more_border, across, square, slope = _offset_blocks(pb, st, sj, jac, camera, pull)
            border = torch.cat([border, more_border[..., :size, :]], -1)
            top, bottom = torch.cat([shape_hess, across], 2), torch.cat([across.mT, square], 2)
            shape_hess, shape_grad = torch.cat([top, bottom], 1), torch.cat([shape_grad, slope], 1)
            weight = torch.cat([weight, pb.w_offset[:, None].expand(-1, 3 * keypoints)], 1)
            value = torch.cat([value, st.motion.offsets.mT.flatten(1)], 1)
        shape_hess = shape_hess + torch.diag_embed(weight)
        shape_grad = shape_grad + weight * value
    else:
        grad = (jac2.mT @ pull_rows)[..., 0]
        border = grad.new_zeros(*grad.shape, 0)
        shape_hess, shape_grad = grad.new_zeros(n, 0, 0), grad.new_zeros(n, 0)

    # Pose prior and hinges, in θ = Log R; dθ = Jr⁻¹ δ.
    lift = right_jacobian_inverse(st.theta[:, h:])  # (N, F, A − 1, 3, 3)
    slope = st.theta_slope[:, h:].reshape(n, free, active - 1, 3)
    grad[..., 6:] += (lift.mT @ slope[..., None])[..., 0].flatten(2)
    if pb.prior is not None:
        # As dense products: a few times faster than 3 × 3 ones, and without them twice as many iterations.
        lifts = lift.new_zeros(n, free, 3 * active - 3, 3 * active - 3)
        _block_diagonal(lifts, 0, active - 1).copy_(lift.movedim(2, -1))
        diag[..., 6:, 6:] += lifts.mT @ (pb.prior.precisions[st.component[:, h:]] @ lifts)
    row = st.theta[:, h:].flatten(2)
    blocks = _block_diagonal(diag, 6, active - 1)
    for i, sign in pb.hinges:
        bent_back = (sign * row[..., i] < _STRAIGHT).to(dtype)
        axis = lift[..., i // 3, i % 3, :]
        blocks[..., i // 3].add_(
            (pb.w_hinge * bent_back)[..., None, None] * axis[..., :, None] * axis[..., None, :]
        )

    side, way = (x[:, h:] for x in _sideways(pb, st.motion))
    hinges = [i // 3 for i, _ in pb.hinges]
    grad[..., 6:].view(n, free, active - 1, 3)[:, :, hinges] += pb.w_sideways * side[..., None] * way
    blocks[..., hinges] += pb.w_sideways * (way[..., :, None] * way[..., None, :]).movedim(2, -1)

    # Rotations' accelerations, and the way to given ones. ⟨R_s [δ_s]×, R_t [δ_t]×⟩ = δ_sᵀ (tr(Q) I − Qᵀ) δ_t
    # with Q = R_sᵀ R_t.
    turn = st.motion.rotations[:, :, model.active]
    force = pb.w_spin[:, None, None] * _stiffness(turn, 1, pb.tied)[:, h:]
    if pb.toward is not None:
        weight = pb.toward[1][:, h:]
        force[:, :, 1:] += weight[..., None, None] * (turn[:, h:, 1:] - pb.toward[0][:, h:])
        diag.diagonal(dim1=-2, dim2=-1)[..., 6:] += 2 * weight.repeat_interleave(3, -1)
    force = turn[:, h:].mT @ force
    vee = torch.stack([force[..., b, a] - force[..., a, b] for a, b in ((1, 2), (2, 0), (0, 1))], -1)
    grad[..., 3:] += vee.flatten(2)
    diag.diagonal(dim1=-2, dim2=-1)[..., 3:] += 2 * main[:, None] * pb.w_spin.repeat_interleave(3)
    for gap, target, band in ((1, next1, one), (2, next2, two)):
        if free > gap:
            q = turn[:, h:-gap].mT @ turn[:, h + gap :]
            trace = q.diagonal(dim1=-2, dim2=-1).sum(-1)
            block = trace[..., None, None] * torch.eye(3, dtype=dtype, device=device) - q.mT
            block = band[: free - gap, None, None, None] * pb.w_spin[:, None, None] * block
            _block_diagonal(target, 3, active).add_(block.movedim(2, -1))
    # An unknown that nothing depends on (a root in a frame that nobody saw) stays where it is.
    main_diagonal = diag.diagonal(dim1=-2, dim2=-1)
    main_diagonal.add_((main_diagonal == 0).to(dtype))
    return _System(
        diag,
        next1,
        next2,
        grad,
        border,
        shape_hess,
        shape_grad,
        jac2,
    )


_ROOT = 6
"""Unknowns of a root, the first ones of a frame: transl and rotation."""


def _shared(sys: _System, roots: int) -> _System:
    """The systems of ``roots`` problems in a row as one: each root in turn, then what they share."""
    if roots == 1:
        return sys
    own = _ROOT * roots

    def together(x: Tensor) -> Tensor:
        return x.reshape(len(x) // roots, roots, *x.shape[1:])

    def rows(x: Tensor) -> Tensor:
        x = together(x)
        return torch.cat([x[:, :, :, :_ROOT].transpose(1, 2).flatten(2, 3), x[:, :, :, _ROOT:].sum(1)], 2)

    def blocks(x: Tensor) -> Tensor:
        x = together(x)
        size = own + x.shape[-1] - _ROOT
        out = x.new_zeros(len(x), x.shape[2], size, size)
        out[..., own:, own:] = x[..., _ROOT:, _ROOT:].sum(1)
        for i in range(roots):
            root = slice(_ROOT * i, _ROOT * (i + 1))
            out[..., root, root] = x[:, i, :, :_ROOT, :_ROOT]
            out[..., root, own:] = x[:, i, :, :_ROOT, _ROOT:]
            out[..., own:, root] = x[:, i, :, _ROOT:, :_ROOT]
        return out

    return replace(
        sys,
        diag=blocks(sys.diag),
        next1=blocks(sys.next1),
        next2=blocks(sys.next2),
        grad=rows(sys.grad),
        border=rows(sys.border),
        shape=together(sys.shape).sum(1),
        shape_grad=together(sys.shape_grad).sum(1),
    )


def _of_each(pose: Tensor, roots: int) -> Tensor:
    """The steps (N, F, M) of shared systems → those of the problems (N · roots, F, 6 + shared)."""
    if roots == 1:
        return pose
    root, rest = pose.tensor_split([_ROOT * roots], -1)
    root = root.reshape(*root.shape[:2], roots, _ROOT).transpose(1, 2)
    return torch.cat([root, rest[:, None].expand(-1, roots, -1, -1)], -1).flatten(0, 1)


def _step(sys: _System, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Pose step (N, F, M) and betas step (N, B) of the damped system; NaN where it is not positive definite.

    With H = L Lᵀ over the poses, the betas follow from their Schur complement, for which L⁻¹ of the border is
    enough: only one vector is substituted back.
    """
    # LAPACK has a banded solver, but not for many at once: those are many where each is small.
    banded = sys.grad.device.type == "cpu" and sys.grad.shape[1] > 1
    factor = _BandedFactor if banded else _BlockFactor
    cholesky = factor(sys, damping)
    half = cholesky.forward(torch.cat([sys.grad[..., None], sys.border], -1)).flatten(1, 2)
    pose, border = half[..., :1], half[..., 1:]
    betas = sys.shape_grad
    if betas.shape[1]:
        shape = sys.shape + torch.diag_embed(damping[:, None] * sys.shape.diagonal(dim1=1, dim2=2))
        residual = betas[..., None] - border.mT @ pose
        step = -torch.linalg.solve_ex(shape - border.mT @ border, residual).result
        pose, betas = pose + border @ step, step[..., 0]
    return -cholesky.backward(pose.view(*sys.grad.shape, 1))[..., 0], betas


class _BandedFactor:
    """Cholesky factor of the poses' part by LAPACK's banded routines, one problem after the other."""

    def __init__(self, sys: _System, damping: Tensor) -> None:
        n, frames, m = sys.grad.shape
        # LAPACK's lower band holds column c's entries from the diagonal down, one column after the other. A
        # frame's block column [upper triangle of H_tt | H_t,t+1 | H_t,t+2], stored by rows, is that when each
        # row starts one later: a stride. What a row runs into at its end is the next one's zeroed triangle.
        stored = sys.grad.new_zeros(n, frames, 3 * m * m + m)
        rows = stored[..., : 3 * m * m].view(n, frames, m, 3 * m)
        rows[..., :m] = sys.diag.triu()
        if frames > 1:
            rows[:, :-1, :, m : 2 * m] = sys.next1
        if frames > 2:
            rows[:, :-2, :, 2 * m :] = sys.next2
        s = stored.stride()
        band = stored.as_strided((n, frames, m, 3 * m), (s[0], s[1], 3 * m + 1, 1)).contiguous()
        band[..., 0] *= 1 + damping[:, None, None]
        single = sys.grad.dtype == torch.float32
        factor = lapack.spbtrf if single else lapack.dpbtrf
        self.substitute = lapack.stbtrs if single else lapack.dtbtrs
        self.divide = blas.strsm if single else blas.dtrsm
        self.bands = [factor(b.numpy().T, lower=1, overwrite_ab=1) for b in band.flatten(1, 2)]

    def forward(self, rhs: Tensor) -> Tensor:
        """L⁻¹ rhs (N, F, M, R)."""
        if rhs.shape[-1] == 1:
            return self._solve(rhs, "N")
        # LAPACK takes them one at a time. Frame by frame they are matrix products, three times as fast.
        m = rhs.shape[2]
        out = rhs.clone()
        for x, (band, info) in zip(out.numpy(), self.bands, strict=True):
            if info:
                x[:] = np.nan
                continue
            # Lᵀ by frames as above, each row one later; what lies below its diagonal is never read.
            upper = torch.from_numpy(band.T).as_strided((len(x), m, 3 * m), (3 * m * m, 3 * m - 1, 1)).numpy()
            for t in range(len(x)):
                for gap in range(1, min(t, 2) + 1):
                    x[t] -= upper[t - gap, :, gap * m : (gap + 1) * m].T @ x[t - gap]
                x[t] = self.divide(1, upper[t, :, :m].T, x[t].T, side=1, lower=1, trans_a=1).T
        return out

    def backward(self, rhs: Tensor) -> Tensor:
        """L⁻ᵀ rhs (N, F, M, R)."""
        return self._solve(rhs, "T")

    def _solve(self, rhs: Tensor, trans: str) -> Tensor:
        out = torch.full_like(rhs, torch.nan)
        for i, (band, info) in enumerate(self.bands):
            if info == 0:
                x, _ = self.substitute(band, rhs[i].flatten(0, 1).numpy(), uplo="L", trans=trans)
                out[i] = torch.from_numpy(x).view(rhs[i].shape)
        return out


class _BlockFactor:
    """The same by blocks of two frames, all problems at once: few, large steps for a GPU."""

    def __init__(self, sys: _System, damping: Tensor) -> None:
        n, frames, m = sys.grad.shape
        diag = sys.diag + torch.diag_embed(damping[:, None, None] * sys.diag.diagonal(dim1=-2, dim2=-1))
        self.group = min(frames, 2)
        if frames % self.group:  # a frame of its own, tied to none
            one = torch.eye(m, dtype=diag.dtype, device=diag.device).expand(n, 1, m, m)
            diag = torch.cat([diag, one], 1)
        pairs = diag.shape[1] // self.group
        if frames == 1:
            main, down = diag, diag[:, :0]
        else:
            next1 = torch.cat([sys.next1, diag.new_zeros(n, 2 * pairs - sys.next1.shape[1], m, m)], 1)
            next2 = torch.cat([sys.next2, diag.new_zeros(n, 2 * pairs - sys.next2.shape[1], m, m)], 1)
            main = diag.new_zeros(n, pairs, 2 * m, 2 * m)
            main[..., :m, :m], main[..., m:, m:] = diag[:, ::2], diag[:, 1::2]
            main[..., m:, :m] = next1[:, ::2].mT  # the lower triangle is all that Cholesky reads
            down = torch.zeros_like(main)  # rows of pair i + 1, columns of pair i
            down[..., :m, :m], down[..., m:, m:] = next2[:, ::2].mT, next2[:, 1::2].mT
            down[..., :m, m:] = next1[:, 1::2].mT
        self.frames = frames
        self.factors: list[Tensor] = []
        self.links: list[Tensor] = []
        self.bad = torch.zeros(n, dtype=torch.bool, device=diag.device)
        for i in range(pairs):
            pivot = main[:, i]
            if i:
                self.links.append(
                    torch.linalg.solve_triangular(self.factors[-1], down[:, i - 1].mT, upper=False).mT
                )
                pivot = pivot - self.links[-1] @ self.links[-1].mT
            factor, info = torch.linalg.cholesky_ex(pivot)
            self.factors.append(factor)
            self.bad |= info > 0

    def _paired(self, rhs: Tensor) -> Tensor:
        if self.frames % self.group:
            rhs = torch.cat([rhs, torch.zeros_like(rhs[:, :1])], 1)
        return rhs.reshape(len(rhs), len(self.factors), self.group * rhs.shape[2], -1)

    def _unpaired(self, x: list[Tensor], shape: torch.Size) -> Tensor:
        out = torch.stack(x, 1).reshape(shape[0], -1, *shape[2:])[:, : self.frames]
        return out.masked_fill(self.bad[:, None, None, None], torch.nan)

    def forward(self, rhs: Tensor) -> Tensor:
        b, x = self._paired(rhs), list[Tensor]()
        for i, factor in enumerate(self.factors):
            y = b[:, i] - self.links[i - 1] @ x[-1] if i else b[:, i]
            x.append(torch.linalg.solve_triangular(factor, y, upper=False))
        return self._unpaired(x, rhs.shape)

    def backward(self, rhs: Tensor) -> Tensor:
        b, x = self._paired(rhs), list[Tensor]()
        for i in reversed(range(len(self.factors))):
            y = b[:, i] - self.links[i].mT @ x[0] if x else b[:, i]
            x.insert(0, torch.linalg.solve_triangular(self.factors[i].mT, y, upper=True))
        return self._unpaired(x, rhs.shape)


def _moved(pb: _Problem, motion: Motion, pose: Tensor, shape: Tensor) -> Motion:
    """A motion after a step of its free frames (N, F, M), and of its betas and offsets (N, S)."""
    transl, rotations = motion.transl.clone(), motion.rotations.clone()
    transl[:, pb.held :] += pose[..., :3]
    turn = roma.rotvec_to_rotmat(pose[..., 3:].reshape(*pose.shape[:2], -1, 3))
    active = pb.model.active
    rotations[:, pb.held :, active] = rotations[:, pb.held :, active] @ turn
    motion = replace(motion, rotations=rotations, transl=transl)
    if pb.free_shape:
        betas, offsets = shape.tensor_split([motion.betas.shape[1]], 1)
        motion = replace(motion, betas=motion.betas + betas)
        if pb.free_offsets:
            motion = replace(motion, offsets=motion.offsets + offsets.view_as(motion.offsets.mT).mT)
    return motion


def _over_tensors(fn: Callable[..., Tensor], *states: _State) -> _State:
    """The state of fn(tensors), taken from states that have them in the same places."""

    def combined(*items: Any) -> Any:
        if isinstance(items[0], Tensor):
            return fn(*items)
        return type(items[0])(*(combined(*(getattr(i, f.name) for i in items)) for f in fields(items[0])))

    return cast(_State, combined(*states))


def _chosen(take: Tensor, new: _State, old: _State) -> _State:
    """Per problem: the new state where ``take`` (N,), else the old one."""
    return _over_tensors(lambda a, b: torch.where(take.view(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def _taken(st: _State, rows: Tensor) -> _State:
    return _over_tensors(lambda x: x[rows], st)


def _put(st: _State, rows: Tensor, part: _State) -> _State:
    return _over_tensors(lambda x, y: x.index_copy(0, rows, y), st, part)


def _some(pb: _Problem, rows: Tensor) -> _Problem:
    """Some problems of a batch, by number."""
    toward = None if pb.toward is None else (pb.toward[0][rows], pb.toward[1][rows])
    return replace(
        pb,
        toward=toward,
        seen=pb.seen[rows],
        trust=pb.trust[rows],
        R=pb.R[rows],
        t=pb.t[rows],
        focal=pb.focal[rows],
        w_offset=pb.w_offset[rows],
    )


def fit(
    body: KeypointBody,
    views: Views,
    start: Motion,
    rate: float,
    *,
    held: int = 0,
    breaks: Sequence[int] = (),
    free_shape: bool = True,
    weights: Weights | None = None,
    schedule: Schedule | None = None,
    prior: PosePrior | None = None,
    toward: PoseTarget | None = None,
) -> Fit:
    """Fit N motions to what the cameras saw.

    start: where to begin, its first ``held`` frames final already (they tie the others to what came before,
    and their own keypoints do not count). rate: frames a second. breaks: frames that do not follow the one
    before them: they share its shape, and no movement. With ``free_shape`` the betas and, unless
    ``weights.offset_m`` is 0, the offsets are fitted too, else those of ``start`` are kept. prior: what poses
    are likely; toward: what this frame's is, besides. Joints that no keypoint shows to turn (hands, toes)
    stay as they start. The result has the dtype and device of ``views.xy_px``. Deterministic on one thread.
    """
    if held and free_shape:
        raise ValueError(f"the shape must be known where frames are held, got held={held} with a free shape")
    pb, motion, origin = _prepare(
        body, views, start, rate, held, free_shape, weights or Weights(), prior, breaks, toward
    )
    motion, energy, iterations = _descend(pb, motion, schedule or Schedule())
    return Fit(replace(motion, transl=motion.transl + origin[:, None]), energy, iterations)


def fit_unposed(
    body: KeypointBody,
    K: Tensor,
    xy_px: Tensor,
    confidence: Tensor,
    start: UnposedMotion,
    rate: float,
    *,
    breaks: Sequence[int] = (),
    free_shape: bool = True,
    weights: Weights | None = None,
    schedule: Schedule | None = None,
    prior: PosePrior | None = None,
    toward: PoseTarget | None = None,
) -> UnposedFit:
    """Fit N motions to what V cameras saw that stand nobody knows where; V may be 1.

    All views show one pose and one shape; each has a root path of its own, in its camera's frame. The
    energy is that of ``fit``: where the roots are one motion in the world it has the same value, the terms on
    the roots' movement being means over the views. So a frame that a view does not see has the root that
    its neighbours give it; the path of a view that sees nothing at all means nothing.

    K: (N, V, 3, 3) intrinsics, pixels; ``crop_camera`` gives those of SPIN's convention where they are not
    known. xy_px (N, V, T, K, 2) undistorted, anything where missing; confidence (N, V, T, K), 0 there. start:
    finite everywhere, each root facing the right way. The rest as in ``fit``. One view shows depth by the
    size of the body alone.
    """
    n, roots = confidence.shape[:2]
    flat, device = xy_px.flatten(0, 1), xy_px.device
    still = torch.eye(3, dtype=torch.float64, device=device).expand(n * roots, 1, 3, 3)
    views = Views(
        K.reshape(-1, 1, 3, 3), still, still[..., 0] * 0, flat[:, None], confidence.flatten(0, 1)[:, None]
    )
    each = [x.repeat_interleave(roots, 0) for x in (start.body_pose, start.betas, start.offsets)]
    rotations = torch.cat([start.view_orient.flatten(0, 1)[:, :, None], each[0]], 2)
    motion = Motion(rotations, start.view_transl.flatten(0, 1), *each[1:])
    pb, motion, origin = _prepare(
        body, views, motion, rate, 0, free_shape, weights or Weights(), prior, breaks, toward, roots
    )
    motion, energy, iterations = _descend(pb, motion, schedule or Schedule())
    rotations = motion.rotations.view(n, roots, *motion.rotations.shape[1:])
    transl = (motion.transl + origin[:, None]).view(n, roots, *motion.transl.shape[1:])
    betas, offsets = (x[::roots] for x in (motion.betas, motion.offsets))
    found = UnposedMotion(rotations[:, 0, :, 1:], rotations[:, :, :, 0], transl, betas, offsets)
    return UnposedFit(found, energy, iterations)


def crop_camera(centre_px: Tensor, side_px: Tensor, focal_px: float = 5000.0, size_px: int = 224) -> Tensor:
    """Intrinsics (..., 3, 3) in a picture of unknown focal length, by SPIN's convention.

    It takes a crop around a person, of ``size_px`` pixels a side, for a picture of its own with a focal
    length of 5000 px. Here the same camera in the picture's pixels: centre_px (..., 2) and side_px (...) of
    the crop there.
    """
    focal = focal_px / size_px * side_px
    zero, one = torch.zeros_like(focal), torch.ones_like(focal)
    x, y = centre_px.unbind(-1)
    return torch.stack([focal, zero, x, zero, focal, y, zero, zero, one], -1).view(*focal.shape, 3, 3)


def _learnt(pb: _Problem, offsets: Tensor) -> _Problem:
    """The problem with a prior of the offsets that is as wide as those found so far, (N, K, 3).

    Empirical Bayes (type-II maximum likelihood, the offsets taken as certain). Detectors that agree with the
    body get a narrow prior, which keeps the error of the poses out of the offsets.
    """
    found = 1 / (pb.roots * offsets.square().mean((1, 2)))
    bound = pb.offset_spread**2
    return replace(pb, w_offset=found.clamp(pb.w_offset / bound, pb.w_offset * bound))


def _descend(pb: _Problem, motion: Motion, schedule: Schedule) -> tuple[Motion, Tensor, int]:
    """Motions of least energy, that energy (N,), and how many systems were solved."""
    damping = torch.full_like(motion.transl[:: pb.roots, 0, 0], 1e-3)
    solved = 0
    st: _State | None = None
    for number, (robust, most, tolerance) in enumerate(schedule.stages, 1):
        left = len(schedule.stages) - number
        if st is not None:
            motion = st.motion
            if pb.free_offsets and left == 0:
                pb = _learnt(pb, motion.offsets)
        # Not while the start is rough: a limb that begins in a wrong place would be explained by them.
        now = replace(pb, free_offsets=pb.free_offsets and left < 2)
        st = _evaluate(now, motion, robust)
        st, damping, count = _minimise(now, st, damping, robust, most, tolerance)
        solved += count
    assert st is not None
    return st.motion, st.energy.view(-1, pb.roots).sum(1), solved


def _minimise(
    pb: _Problem, st: _State, damping: Tensor, robust: float, most: int, tolerance: float
) -> tuple[_State, Tensor, int]:
    """Levenberg–Marquardt at one robust scale: where it ends, the damping there, how many systems it took."""

    def each(x: Tensor) -> Tensor:
        return x.repeat_interleave(pb.roots, 0) if pb.roots > 1 else x

    def energy(st: _State) -> Tensor:
        return st.energy.view(-1, pb.roots).sum(1)

    joint = _shared(_linearise(pb, st, robust), pb.roots)
    going = torch.ones_like(damping, dtype=torch.bool)
    for i in range(1, most + 1):
        pose, shape = _step(joint, damping)
        new = _evaluate(pb, _moved(pb, st.motion, _of_each(pose, pb.roots), each(shape)), robust)
        gain = 1 - energy(new) / energy(st)
        better = going & (gain > 0)
        # A problem that has stopped waits as it is: alone it would not be here.
        change = torch.where(better, 0.2, 8.0).to(damping)
        damping = torch.where(going, (damping * change).clamp(1e-9, 1e9), damping)
        # A step that gains nothing even when it is tiny has nowhere left to go.
        going = going & torch.where(better, gain > tolerance, damping < 1e4)
        st = new if bool(better.all()) else _chosen(each(better), new, st)
        left = going.nonzero()[:, 0]
        if len(left) == 0 or i == most:
            break
        if len(left) < 0.75 * len(going):  # no more work for the others
            rows = each(pb.roots * left)
            if pb.roots > 1:
                rows = rows + torch.arange(len(rows), device=rows.device) % pb.roots
            rest, damping_left, count = _minimise(
                _some(pb, rows),
                _taken(st, rows),
                damping[left],
                robust,
                most - i,
                tolerance,
            )
            return _put(st, rows, rest), damping.index_copy(0, left, damping_left), i + count
        if bool(better.any()):
            joint = _shared(_linearise(pb, st, robust), pb.roots)
    return st, damping, i


def better_start(
    body: KeypointBody,
    views: Views,
    starts: Sequence[Motion],
    rate: float,
    *,
    favour: float = 1.0,
    weights: Weights | None = None,
    prior: PosePrior | None = None,
) -> Motion:
    """Of several starts of the same N problems, for each problem the one of least energy.

    A regressor's and that of ``start_pose``, say. Judged at the widest robust scale, where a body that
    faces the wrong way costs most, and without the temporal terms: a rough start is no worse for it.

    favour: by this factor another start must have less energy than the first to be taken instead. A start
    of somewhat less energy, such as one that is off everywhere by a little, often ends in a worse place; one
    that faces the other way has some fifteen times as much.
    """
    weights = replace(weights or Weights(), acceleration=0.0, spin=0.0)
    every = Motion(*(torch.cat([getattr(m, f.name) for m in starts]) for f in fields(Motion)))
    seen = Views(*(torch.cat([getattr(views, f.name)] * len(starts)) for f in fields(Views)))
    problem, motion, _ = _prepare(body, seen, every, rate, 0, False, weights, prior)
    energy = _evaluate(problem, motion, Schedule().stages[0][0]).energy.view(len(starts), -1)
    energy[0] *= favour
    n = energy.shape[1]
    best = energy.argmin(0) * n + torch.arange(n, device=energy.device)
    return Motion(*(getattr(every, f.name)[best] for f in fields(Motion)))


def _prepare(
    body: KeypointBody,
    views: Views,
    start: Motion,
    rate: float,
    held: int,
    free_shape: bool,
    weights: Weights,
    prior: PosePrior | None,
    breaks: Sequence[int] = (),
    toward: PoseTarget | None = None,
    roots: int = 1,
) -> tuple[_Problem, Motion, Tensor]:
    """Constants, and the start about an origin (N, 3) near the person, where single precision is finest.

    Each of ``roots`` problems that share joints and shape bears its part of the terms that see no picture.
    """
    dtype, device = views.xy_px.dtype, views.xy_px.device
    model = _Model.of(body, dtype, device)
    frames = start.transl.shape[1]
    origin = start.transl.double().mean(1).round()
    K, R = views.K.double(), views.R.double()
    t = views.t.double() + (R @ origin[:, None, :, None])[..., 0]
    pelvis = (
        start.transl.double() - origin[:, None] + model.shaped_root(start.betas.to(device, dtype))[:, None]
    )
    depth = (R @ pelvis.mT[:, None])[:, :, 2] + t[..., 2:]  # (N, V, T)
    sigma = weights.keypoint_m * K[..., :2, :2].diagonal(dim1=-2, dim2=-1).mean(-1)[..., None]
    sigma = (sigma / depth.clamp(min=1)).clamp(min=weights.keypoint_px)
    focal = torch.stack([K[..., i, j, None] / sigma for i, j in ((0, 0), (0, 1), (1, 1))], -1)
    xy = torch.nan_to_num(views.xy_px).double()
    homogeneous = torch.cat([xy, torch.ones_like(xy[..., :1])], -1)
    seen = homogeneous @ torch.linalg.inv(K).mT[:, :, None]
    known = views.xy_px.isfinite().all(-1)
    trust = torch.where(known, views.confidence, 0) ** 2
    active = [int(j) for j in model.active]
    hinges = [(3 * (active.index(SMPL_24.index(name)) - 1) + axis, sign) for name, axis, sign in HINGES]
    # Accelerations are differences over one frame: to frames, and (below) shared terms to the clip's length.
    per_frame = 1 / rate**2
    share = (frames - held) / 100 / roots
    tied = torch.ones(max(frames - 2, 0), dtype=dtype, device=device)
    for b in breaks:
        tied[max(b - 2, 0) : b] = 0
    target = None
    if toward is not None:
        pick = model.active[1:] - 1
        pose, sigma = toward.body_pose.to(device), toward.sigma_rad.to(device)
        known = pose.isfinite().flatten(3).all(-1)
        weight = torch.where(known, 0.5 / sigma.double().expand(known.shape) ** 2, 0)[..., pick] / roots
        pose = torch.nan_to_num(pose)[:, :, pick]
        pose, weight = (x.to(dtype).repeat_interleave(roots, 0) for x in (pose, weight))
        target = pose, weight
    ratios = (torch.tensor(x, dtype=dtype, device=device) for x in (KEYPOINT_RATIOS, JOINT_RATIOS))
    keypoint_ms2, joint_rads2 = (
        x * y for x, y in zip((weights.acceleration_ms2, weights.spin_rads2), ratios, strict=True)
    )
    free_offsets = free_shape and weights.offset_m > 0
    w_offset = share / weights.offset_m**2 if free_offsets else 0.0
    problem = _Problem(
        model=model,
        prior=None if prior is None else prior.of_joints(active[1:], weights.pose / roots, dtype, device),
        toward=target,
        hinges=tuple(hinges),
        held=held,
        tied=tied,
        free_shape=free_shape,
        free_offsets=free_offsets,
        roots=roots,
        seen=seen[..., :2].to(dtype),
        trust=trust.to(dtype),
        R=R.to(dtype),
        t=t.to(dtype),
        focal=focal.to(dtype),
        w_hinge=weights.hinge / roots,
        w_sideways=weights.sideways / roots,
        w_acc=weights.acceleration / (roots * body.weights.shape[0]) / (per_frame * keypoint_ms2) ** 2,
        w_spin=weights.spin / roots / (per_frame * joint_rads2[model.active]) ** 2,
        w_shape=weights.shape * share,
        w_offset=torch.full_like(start.transl[:, 0, 0], w_offset, dtype=dtype, device=device),
        offset_spread=weights.offset_spread,
    )
    motion = Motion(
        start.rotations.to(device, dtype),
        (start.transl.double() - origin[:, None]).to(device, dtype),
        start.betas.to(device, dtype),
        start.offsets.to(device, dtype),
    )
    return problem, motion, origin.to(device, dtype)


# --- Starts -------------------------------------------------------------------------------------------------

_BONES = (
    *((s + a, s + b) for s in "LR" for a, b in (("Shoulder", "Elbow"), ("Elbow", "Wrist"))),
    *((s + a, s + b) for s in "LR" for a, b in (("Hip", "Knee"), ("Knee", "Ankle"), ("Heel", "BigToe"))),
    ("LShoulder", "RShoulder"), ("LHip", "RHip"), ("Neck", "MidHip"),
)  # fmt: skip
TORSO = ("LShoulder", "RShoulder", "LHip", "RHip", "Neck", "MidHip")
"""Keypoints that tell how a person stands."""
_FACE = ("Nose", "REye", "LEye", "REar", "LEar")


def _points(*names: str) -> list[int]:
    return [BODY_25.index(n) for n in names]


def start_shape(body: KeypointBody, points: Tensor, *, sigma_m: float = 0.02) -> Tensor:
    """Betas (B,) from the median lengths of bones between points (T, 25, 3), NaN where missing (float64).

    Gauss–Newton; lengths err by ``sigma_m``, betas have unit variance. Zero where no bone was seen.
    """
    a, b = _points(*(x for x, _ in _BONES)), _points(*(y for _, y in _BONES))
    length = (points[:, a] - points[:, b]).double().norm(dim=-1).nanmedian(0).values
    seen = length.isfinite()
    rest = (body.points_template[a] - body.points_template[b]).double()[seen]
    dirs = (body.points_shapedirs[a] - body.points_shapedirs[b]).double()[seen]
    betas = torch.zeros(dirs.shape[-1], dtype=torch.float64)
    for _ in range(5):
        bone = rest + dirs @ betas
        now = bone.norm(dim=-1)
        jacobian = (bone[:, None] @ dirs)[:, 0] / now[:, None] / sigma_m
        error = (now - length[seen]) / sigma_m
        normal = jacobian.T @ jacobian + torch.eye(len(betas), dtype=torch.float64)
        betas = betas - torch.linalg.solve(normal, jacobian.T @ error + betas)
    return betas


def _aligned(rest: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kabsch per frame: rest (..., k, 3) → points (T, ..., k, 3), NaN where missing.

    Rotations (T, ..., 3, 3), both centroids (T, ..., 3), and whether the points fix a rotation (T, ...):
    three of them, not on a line.
    """
    w = points.isfinite().all(-1).to(rest.dtype)[..., None]
    count = w.sum(-2).clamp(min=1)
    there = torch.nan_to_num(points)
    mean_rest, mean = (w * rest).sum(-2) / count, (w * there).sum(-2) / count
    covariance = (w * (there - mean[..., None, :])).mT @ (rest - mean_rest[..., None, :])
    # Two directions must be spread: the second singular value, of points a few centimetres apart at least.
    spread = torch.linalg.svdvals(covariance)[..., 1]
    size = ((rest - rest.mean(-2, keepdim=True)) ** 2).sum((-2, -1))
    turn = roma.special_procrustes_naive(covariance)
    return turn, mean_rest, mean, (w.sum((-2, -1)) >= 3) & (spread > 0.02 * size)


def _steady(rotations: Tensor, known: Tensor, rate: float) -> Tensor:
    """Which known headings (T,) to trust: nobody turns by more than 100° from one frame to the next.

    Frames between two such jumps were seen with left and right exchanged, or the others were: the larger part
    is believed. Frames more than a tenth of a second apart are not compared.
    """
    out = torch.zeros_like(known)
    index = known.nonzero()[:, 0]
    if len(index) == 0:
        return out
    jump = geodesic_degrees(rotations[index[:-1]], rotations[index[1:]]) > 100
    apart = index[1:] - index[:-1] > max(rate / 10, 1.0)
    first = torch.zeros(1, dtype=torch.long)
    group = torch.cat([first, apart.long().cumsum(0)])
    side = torch.cat([first, (jump & ~apart).long().cumsum(0)]) % 2
    for g in range(int(group[-1]) + 1):
        inside = group == g
        main = int(side[inside].sum() * 2 > inside.sum())
        out[index[inside & (side == main)]] = True
    return out


def _fill(values: Tensor, known: Tensor) -> Tensor:
    """Values (T, J, ...) where known (T, J), between them linear in time, beyond them the nearest."""
    frames, columns = known.shape
    time = torch.arange(frames)[:, None].expand(-1, columns)
    lo = torch.where(known, time, -1).cummax(0).values
    hi = torch.where(known, time, frames).flip(0).cummin(0).values.flip(0)
    lo, hi = torch.where(lo < 0, hi, lo), torch.where(hi == frames, lo, hi)
    part = (time - lo).to(values.dtype) / (hi - lo).clamp(min=1)
    part = part.view(*part.shape, *[1] * (values.ndim - 2))
    column = torch.arange(columns)
    return values[lo, column] * (1 - part) + values[hi, column] * part


def _fill_rotations(rotations: Tensor, known: Tensor) -> Tensor:
    """Rotations (T, J, 3, 3) filled in time where they are not known (T, J); every J known in some frame."""
    out = rotations.clone()
    out[~known] = roma.special_procrustes_naive(_fill(rotations, known)[~known])
    return out


def _smooth_twist(twist: Tensor, strength: Tensor, frames: float) -> Tensor:
    """Angles (T, J) averaged over time, each counted by its strength; 0 where nothing is known."""
    time = torch.arange(len(twist), dtype=twist.dtype)
    kernel = torch.exp(-0.5 * ((time[:, None] - time) / frames) ** 2)
    sin, cos = kernel @ (strength * torch.sin(twist)), kernel @ (strength * torch.cos(twist))
    return torch.atan2(sin, cos + 0.02)


def start_pose(
    body: KeypointBody,
    betas: Tensor,
    points: Tensor,
    rate: float,
    before: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Rotations (T, 24, 3, 3) and transl (T, 3) that bring a body onto triangulated points (T, 25, 3).

    The root by Kabsch on the torso; each limb by turning its bones onto the seen directions, the upper one
    about itself so that elbow or knee bends about its own hinge (where it bends; smoothed over time); head
    and feet by Kabsch. What was not seen is interpolated over time. before: rotations (H, 24, 3, 3) and
    transl (H, 3) of the first H of the T frames, taken as they are unless they face the wrong way. None where
    no frame shows a torso and none is given. float64.
    """
    betas, points = betas.double(), points.double()
    rest = body.points_template.double() + body.points_shapedirs.double() @ betas
    pelvis = body.joints_template[0].double() + body.joints_shapedirs[0].double() @ betas
    frames = len(points)
    local = torch.eye(3, dtype=torch.float64).expand(frames, JOINTS, 3, 3).clone()
    known = torch.zeros(frames, JOINTS, dtype=torch.bool)

    torso = _points(*TORSO)
    root, mean_rest, mean, fixed = _aligned(rest[torso], points[:, torso])
    transl = mean - (root @ (mean_rest - pelvis)[..., None])[..., 0] - pelvis
    known[:, 0] = _steady(root, fixed, rate)
    given = torch.zeros(frames, dtype=torch.bool)
    if before is not None:
        # What was fitted before is taken, unless the torso now says that it faced the other way.
        done = len(before[0])
        wrong = known[:done, 0] & (geodesic_degrees(before[0][:, 0].double(), root[:done]) > 100)
        given[:done] = ~wrong
        root[given], transl[given] = before[0][~wrong, 0].double(), before[1][~wrong].double()
        known[given, 0] = True
    if not bool(known[:, 0].any()):
        return None
    root = _fill_rotations(root[:, None], known[:, :1])[:, 0]
    transl = _fill(transl[:, None], known[:, :1])[:, 0]
    local[:, 0] = root

    # The four limbs at once (L): shoulder, elbow, wrist and hip, knee, ankle of both sides.
    chains = [
        (
            name.split("_")[0],
            *(("shoulder", "elbow", "wrist") if "elbow" in name else ("hip", "knee", "ankle")),
        )
        for name, _, _ in HINGES
    ]
    first, second = ([SMPL_24.index(f"{c[0]}_{c[i]}") for c in chains] for i in (1, 2))
    upper, middle, end = (
        _points(*(f"{c[0][0].upper()}{c[i].capitalize()}" for c in chains)) for i in (1, 2, 3)
    )
    bone, next_bone = rest[middle] - rest[upper], rest[end] - rest[middle]
    there, next_there = (
        (points[:, middle] - points[:, upper]) @ root,
        (points[:, end] - points[:, middle]) @ root,
    )
    seen, next_seen = there.isfinite().all(-1), next_there.isfinite().all(-1)  # (T, L)
    both = seen & next_seen
    swing = rotation_between(bone, torch.where(seen[..., None], there, bone))
    inner = (swing.mT @ next_there[..., None])[..., 0]
    unit = torch.nn.functional.normalize(bone, dim=-1)
    hinge = torch.stack([sign * torch.eye(3, dtype=torch.float64)[axis] for _, axis, sign in HINGES])
    bend = torch.nn.functional.normalize(torch.linalg.cross(hinge, unit, dim=-1), dim=-1)
    a, b = (inner * bend).sum(-1), (inner * torch.linalg.cross(unit, bend, dim=-1)).sum(-1)
    strength = torch.where(both, (a * a + b * b) / (inner * inner).sum(-1), 0)
    twist = _smooth_twist(torch.nan_to_num(torch.atan2(b, a)), strength, max(rate / 15, 1.0))
    turn = swing @ roma.rotvec_to_rotmat(twist[..., None] * unit)
    next_there = (turn.mT @ next_there[..., None])[..., 0]
    next_turn = rotation_between(next_bone, torch.where(both[..., None], next_there, next_bone))
    local[:, first], known[:, first] = turn, seen
    local[:, second], known[:, second] = next_turn, both
    limb = root[:, None] @ turn @ next_turn

    face = _points(*_FACE)
    head, _, _, fixed = _aligned(rest[face], points[:, face])
    half = roma.rotmat_to_rotvec(root.mT @ head) / 2
    likely = fixed & (half.norm(dim=-1) < 0.7)
    for joint in (SMPL_24.index("neck"), SMPL_24.index("head")):
        local[:, joint], known[:, joint] = roma.rotvec_to_rotmat(half), likely
    sides = ("left", "right")
    ankles, knees = ([SMPL_24.index(f"{s}_{j}") for s in sides] for j in ("ankle", "knee"))
    feet = torch.tensor(
        [_points(*(f"{s[0].upper()}{p}" for p in ("Ankle", "Heel", "BigToe", "SmallToe"))) for s in sides]
    )
    sole, _, _, fixed = _aligned(rest[feet], points[:, feet])
    ankle = limb[:, [second.index(k) for k in knees]].mT @ sole
    likely = fixed & known[:, knees] & (roma.rotmat_to_rotvec(ankle).norm(dim=-1) < 1.4)
    local[:, ankles], known[:, ankles] = ankle, likely

    if before is not None:
        local[given] = before[0][~wrong].double()
        known[given] = True
    partly = [j for j in range(1, JOINTS) if bool(known[:, j].any()) and not bool(known[:, j].all())]
    if partly:
        local[:, partly] = _fill_rotations(local[:, partly], known[:, partly])
    if before is not None:
        local[given] = before[0][~wrong].double()  # to the last bit
    return local, transl


def start_regressed(
    body: KeypointBody,
    betas: Tensor,
    rotations: Tensor,
    pelvis: Tensor,
    rate: float,
    before: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Rotations (T, 24, 3, 3) and transl (T, 3) of one motion from a regressor's poses of single frames.

    rotations (T, 24, 3, 3) and pelvis (T, 3), metres, world: NaN where it has none. What it lacks is
    interpolated over time, and so are frames that face away from most others. Joints that no keypoint shows
    to turn are straight, as in ``start_pose``: a fit would not smooth what each frame says of them. before as
    there, taken as it is. None where no frame has a pose. float64.
    """
    rest = body.joints_template[0].double() + body.joints_shapedirs[0].double() @ betas.double()
    known = pelvis.isfinite().all(-1) & rotations.isfinite().flatten(1).all(1)
    known = _steady(torch.nan_to_num(rotations[:, 0].double()), known, rate)
    if not bool(known.any()):
        return None
    local, transl = torch.nan_to_num(rotations.double()), torch.nan_to_num(pelvis.double()) - rest
    unseen = torch.ones(JOINTS, dtype=torch.bool)
    unseen[_Model.of(body, torch.float64, torch.device("cpu")).active] = False
    local[:, unseen] = torch.eye(3, dtype=torch.float64)
    done = 0 if before is None else len(before[0])
    if before is not None:
        local[:done], transl[:done], known[:done] = before[0].double(), before[1].double(), True
    local = _fill_rotations(local, known[:, None].expand(-1, JOINTS))
    return local, _fill(transl[:, None], known[:, None])[:, 0]
