"""Keypoint net for calibrated views: triangulated points as input, rays as feedback."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import roma
import torch
from torch import Tensor, nn

from models.body import KeypointBody
from models.constants import constant
from models.regressors.kinematics import GlobalKinematics, matrix_to_six, six_to_matrix, to_local
from models.regressors.layers import (
    MIRROR_SIGNS,
    NUM_BETAS,
    TYPICAL_SPREAD_M,
    Estimate,
    FeedbackHead,
    average_mirrored,
    camera_directions,
    concatenated,
    keypoint_spread,
    mlp,
    small_output,
    usable_keypoints,
)
from models.regressors.regression import Regression, blank_unseen, locate
from models.rotations import solve_3x3
from pipeline.skeleton import BODY_25

_SCALES_M: Final = (0.4, 0.24, 0.14, 0.08, 0.05)
"""Geman–McClure scale of each step of the triangulation."""
FEEDBACK_SCALES_M: Final = (0.3, 0.08)
"""Geman–McClure scale of the first and last iteration's residuals; geometric between them."""
_POINT_SIGMA_M: Final = 0.05
"""Standard deviation of a point's distance from a ray: more than a detector's error, as all views share what
it takes for the point. 0.04 is better for OpenPose's points, 0.06 for BlazePose's, by less than 1 %."""
_ROOT_SIGMA: Final = (0.2, 0.1)
"""Standard deviation of the net's root: orientation, radians, and pelvis, metres."""
_BETA_SIGMA: Final = 0.5
"""Standard deviation of the net's betas; of bodies it is 1.5, of which 25 points determine little."""
_LEFT: Final = tuple(BODY_25.index(n) for n in ("LHip", "LShoulder"))
_RIGHT: Final = tuple(BODY_25.index(n) for n in ("RHip", "RShoulder"))
_PELVIS: Final = tuple(BODY_25.index(n) for n in ("MidHip", "LHip", "RHip"))


@dataclass(frozen=True)
class Observations:
    """Input of the calibrated net, in its frame: origin about the pelvis, y up, z along the heading."""

    turn: Tensor
    """(N, 3, 3) world → frame: ``x_frame = turn (x_world − origin)``."""
    origin: Tensor
    """(N, 3) metres, world."""
    centre: Tensor
    """(N, V, 3) camera centres, metres."""
    ray: Tensor
    """(N, V, K, 3) unit directions; 0 where missing."""
    weight: Tensor
    """(N, V, K) confidence; 0 where missing or the view does not count."""
    features: Tensor
    """(N, F) input of the trunk."""
    seen: Tensor
    """(N, V) views that count (bool)."""


def up_of_level_cameras(R: Tensor, seen: Tensor) -> Tensor:
    """Up in the world, a unit vector (N, 3), of cameras R (N, V, 3, 3) that are ``seen`` (N, V).

    Assumes cameras held level: horizontal x axes, y axes down on average. An axis of the world within 2.5°
    of vertical for all cameras is preferred, as most calibrations have one; else the direction most
    orthogonal to all x axes.
    """
    weight = seen.to(R.dtype)[..., None]
    x_axes, up = R[:, :, 0], -(weight * R[:, :, 1]).sum(1)
    up = up / up.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    eye = torch.eye(3, dtype=R.dtype, device=R.device)
    system = (weight * x_axes).mT @ x_axes + 1e-3 * eye
    orthogonal = solve_3x3(system, up)
    orthogonal = orthogonal / orthogonal.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    tilt = (weight * x_axes).abs().amax(1)  # (N, 3): sine of the worst camera's angle to each plane
    is_up = (tilt < 0.044) & (up.abs() > 0.7)
    axis = torch.where(is_up, up.abs(), 0).argmax(-1)
    world_axis = eye[axis] * up.gather(1, axis[:, None]).sign()
    return torch.where(is_up.any(-1, keepdim=True), world_axis, orthogonal)


def observe(xy_px: Tensor, confidence: Tensor, K: Tensor, R: Tensor, t: Tensor) -> Observations:
    """Triangulate the keypoints robustly and bring points and rays to the calibrated net's frame.

    Each keypoint by five steps of least squares over its rays, re-weighted by Geman–McClure. One that a
    single view shows is put on its ray where that comes closest to the body. With one view the body's
    distance is the typical one for its size in the picture, and the frame faces the camera. Arguments as
    ``CalibratedNet.forward``.
    """
    xy, weight, seen = usable_keypoints(xy_px, confidence)
    directions = camera_directions(xy, K)
    mean, rms = keypoint_spread(directions[..., :2], weight)
    count = seen.to(K.dtype)

    centre = -(R.mT @ t[..., None])[..., 0]
    ray = torch.nn.functional.normalize(directions, dim=-1) @ R
    ray = torch.where((weight > 0)[..., None], ray, 0)

    # Rough position of the body: from each view's bearing and, of little weight, its typical distance.
    offset = torch.cat([mean, torch.ones_like(mean[..., :1])], -1) * (TYPICAL_SPREAD_M / rms)[..., None]
    guess = centre + (offset[..., None, :] @ R)[..., 0, :]
    bearing = torch.nn.functional.normalize(guess - centre, dim=-1)
    body = locate(guess, bearing, count, [2.5 * scale for scale in _SCALES_M[:3]])

    start = centre - body[:, None]
    x, total, rms_residual, depth = _triangulate(ray, start, weight)

    pelvis, lefts, rights = (constant(points, K.device) for points in (_PELVIS, _LEFT, _RIGHT))
    hip_weight = constant((1.0, 0.5, 0.5), K.device, K.dtype) * total[:, pelvis].clamp(max=1)
    hip_weight[:, 1:] = hip_weight[:, 1:].amin(1, keepdim=True)  # one hip alone is not the middle
    root = (hip_weight[..., None] * x[:, pelvis]).sum(1) / (hip_weight.sum(1, keepdim=True) + 1e-3)

    up = up_of_level_cameras(R, seen)
    pair = torch.minimum(total[:, lefts], total[:, rights])
    left = (pair[..., None] * (x[:, lefts] - x[:, rights])).sum(1)
    left = left - (left * up).sum(-1, keepdim=True) * up
    first = torch.nn.functional.one_hot(seen.to(torch.uint8).argmax(1), seen.shape[1]).to(K.dtype)
    to_camera = (first[..., None] * start).sum(1) - root
    face_camera = (count.sum(1, keepdim=True) < 2) | (left.norm(dim=-1, keepdim=True) < 0.05)
    side = torch.where(face_camera, torch.linalg.cross(up, to_camera, dim=-1), left)
    side = side / side.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    turn = torch.stack([side, up, torch.linalg.cross(side, up, dim=-1)], 1)

    features = torch.cat(
        [
            ((x - root[:, None]) @ turn.mT).clamp(-2, 2).flatten(1),
            total.clamp(max=4) / 2,
            (rms_residual / 0.05).clamp(max=4),
            depth * 4,
            face_camera.to(K.dtype),
            count.sum(1, keepdim=True) / 4,
        ],
        1,
    )
    return Observations(
        turn=turn,
        origin=body + root,
        centre=(start - root[:, None]) @ turn.mT,
        ray=ray @ turn.mT[:, None],
        weight=weight,
        features=features,
        seen=seen,
    )


def _triangulate(ray: Tensor, start: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points (N, K, 3) from rays (N, V, K, 3) that start at (N, V, 3), with a weak prior at the origin.

    Also, (N, K) each: their total weight, residual, metres, and the determinant of the system for unit
    weight, 0 where all rays are parallel, 0.3 where they come from all around.
    """
    eye = torch.eye(3, dtype=ray.dtype, device=ray.device)
    # Σ w (I − d dᵀ) x = Σ w (I − d dᵀ) c for all points at once.
    along = (ray * start[:, :, None]).sum(-1)
    foot = start[:, :, None] - along[..., None] * ray  # of the perpendicular from the origin to each ray
    w = weight
    for scale in _SCALES_M:
        total = w.sum(1)
        system = (total[..., None, None] + 1e-3) * eye - torch.einsum("nvk,nvka,nvkb->nkab", w, ray, ray)
        x = solve_3x3(system, (w[..., None] * foot).sum(1))
        residual = x[:, None] - foot
        residual = residual - (residual * ray).sum(-1, keepdim=True) * ray
        squared = (residual**2).sum(-1)
        w = weight / (1 + squared / scale**2) ** 2
    total = w.sum(1)
    rms_residual = ((w * squared).sum(1) / total.clamp_min(1e-6)).sqrt()
    return x, total, rms_residual, torch.linalg.det(system / (total + 1e-3)[..., None, None]).clamp_min(0)


def mirror_observations(o: Observations) -> Observations:
    """Observations of the mirror image in the plane x = 0 of the frame."""
    points, count = constant(BODY_25.flips, o.ray.device), len(BODY_25)
    sign = constant(MIRROR_SIGNS, o.ray.device, o.ray.dtype)
    xyz, others, rest = o.features.tensor_split([3 * count, 6 * count], 1)
    xyz, others = xyz.view(-1, count, 3)[:, points] * sign, others.view(-1, 3, count)[..., points]
    return replace(
        o,
        centre=o.centre * sign,
        ray=o.ray[:, :, points] * sign,
        weight=o.weight[:, :, points],
        features=torch.cat([xyz.flatten(1), others.flatten(1), rest], 1),
    )


def _ray_residuals(points: Tensor, o: Observations, scale: float) -> tuple[Tensor, Tensor]:
    """Vectors (N, V, K, 3), metres, from points (N, K, 3) to the rays, and their weights (N, V, K):
    confidence times Geman–McClure of ``scale``, metres."""
    offset = points[:, None] - o.centre[:, :, None]
    residual = (offset * o.ray).sum(-1, keepdim=True) * o.ray - offset
    return residual, o.weight / (1 + (residual**2).sum(-1) / scale**2) ** 2


def ray_feedback(points: Tensor, o: Observations, scale: float) -> Tensor:
    """Residuals (N, 4 K) of points (N, K, 3), metres, in the frame, to the rays.

    For each point the mean over views of the vector to the ray, weighted by confidence and Geman–McClure of
    this ``scale``, metres, and its total weight.
    """
    residual, w = _ray_residuals(points, o, scale)
    total = w.sum(1)
    mean = (w[..., None] * residual).sum(1) / total.clamp_min(1e-3)[..., None]
    return torch.cat([mean.clamp(-0.5, 0.5).flatten(1) * 5, total.clamp(max=4) / 2], 1)


def gauss_newton_step(
    x: Estimate, kinematics: GlobalKinematics, o: Observations
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotations (N, J, 3, 3), root (N, 3) and betas (N, B) of an estimate after one step towards the rays.

    Least squares of the points' distances from the rays, weighted as by ``_ray_residuals`` over
    ``_POINT_SIGMA_M``, and of the turns δ_j of local rotations over their expected errors, of root and betas
    over ``_ROOT_SIGMA`` and ``_BETA_SIGMA``. A turn moves a point by δ_j × r_kj, with r_kj the sum of the
    point's turned lever arms at j and below. Joints that move no point keep their local rotations. An
    estimate whose system cannot be factorised stays as it is.
    """
    (count, joints), movers = x.rotations.shape[:2], len(kinematics.movers)
    residual, w = _ray_residuals(x.points + x.root[:, None], o, FEEDBACK_SCALES_M[1])
    w = w / _POINT_SIGMA_M**2
    eye = torch.eye(3, dtype=w.dtype, device=w.device)
    information = w.sum(1)[..., None, None] * eye - torch.einsum("nvk,nvka,nvkb->nkab", w, o.ray, o.ray)

    arms = kinematics.lever_arms(x.betas)[:, joints:]
    arms_shapedirs = kinematics.arms_shapedirs.view(NUM_BETAS, -1, joints, 3)[:, joints:]
    reach = torch.einsum("njab,nkjb->nkaj", x.rotations, arms) @ kinematics.below  # (N, K, 3, M)
    jacobian = reach.new_zeros(*reach.shape[:3], 3 * movers + 3 + NUM_BETAS)
    by_turn = jacobian[..., : 3 * movers].view(*reach.shape[:3], 3, movers)
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):  # (δ × r)_i = δ_j r_k − δ_k r_j
        by_turn[:, :, i, j], by_turn[:, :, i, k] = reach[:, :, k], -reach[:, :, j]
    jacobian[..., 3 * movers : -NUM_BETAS] = eye
    jacobian[..., -NUM_BETAS:] = torch.einsum("njab,ckjb->nkac", x.rotations, arms_shapedirs)

    log_sigma = torch.nn.functional.pad(x.log_sigma, (1, 0), value=math.log(_ROOT_SIGMA[0]))
    turn_precision = torch.exp(-2 * log_sigma.index_select(1, kinematics.movers)).repeat(1, 3)
    precision = constant((_ROOT_SIGMA[1] ** -2,) * 3 + (_BETA_SIGMA**-2,) * NUM_BETAS, w.device, w.dtype)
    pull = (w[..., None] * residual).sum(1)[..., None]
    normal = jacobian.flatten(1, 2).mT @ torch.cat([information @ jacobian, pull], -1).flatten(1, 2)
    system, gradient = normal[..., :-1], normal[..., -1:]
    system.diagonal(dim1=1, dim2=2).add_(torch.cat([turn_precision, precision.expand(count, -1)], 1))
    factor, failed = torch.linalg.cholesky_ex(system, upper=True)
    step = torch.cholesky_solve(gradient, factor, upper=True)[..., 0]
    step = torch.where(failed[:, None] == 0, step, 0)
    turns, shift, change = step.tensor_split([3 * movers, 3 * movers + 3], 1)
    turns = kinematics.below @ turns.view(count, 3, movers).mT  # with those of the joints above
    return roma.rotvec_to_rotmat(turns) @ x.rotations, x.root + shift, x.betas + change


class CalibratedNet(nn.Module):
    """Keypoints of any number of calibrated views → SMPL, by iterations of feedback from the rays.

    The result is the mean with the mirror image's estimate, after a Gauss–Newton step towards the rays.
    The views enter through the triangulated points and, in every iteration, through the posed body's
    residuals to the rays: the cost hardly grows with their number, and their order does not matter.
    """

    kind: Final = "calibrated"
    start: Tensor

    def __init__(self, body: KeypointBody, *, width: int = 512, iterations: int = 4) -> None:
        super().__init__()
        self.config = {"width": width, "iterations": iterations}
        self.iterations = iterations
        self.kinematics = GlobalKinematics(body)
        keypoints, joints = len(body.keypoint_skeleton), len(body.skeleton)
        self.rotations = joints
        state = 6 * self.rotations + NUM_BETAS + 3
        self.encode = mlp(6 * keypoints + 2, width // 2, 3 * width // 8, width)
        self.head = FeedbackHead(width, state + 4 * keypoints, width)
        self.output = small_output(width, state)
        self.doubt = small_output(width, joints - 1)
        self.register_buffer("start", matrix_to_six(torch.eye(3)).repeat(self.rotations))

    def iterate(self, o: Observations) -> list[Estimate]:
        """Estimate after each iteration, in the frame of the observations."""
        n = len(o.features)
        fixed = self.head.fixed(self.encode(o.features))
        six, betas, root = self.start.expand(n, -1), fixed.new_zeros(n, NUM_BETAS), fixed.new_zeros(n, 3)
        with torch.no_grad():
            _, points = self.kinematics(six_to_matrix(six.view(n, self.rotations, 6)), betas)
        estimates: list[Estimate] = []
        for scale in np.geomspace(*FEEDBACK_SCALES_M, self.iterations):
            feedback = ray_feedback((points + root[:, None]).detach(), o, float(scale))
            h = self.head(fixed, torch.cat([six, betas, root, feedback], 1))
            d_six, d_betas, d_root = self.output(h).split([6 * self.rotations, NUM_BETAS, 3], 1)
            six, betas, root = six + d_six, betas + d_betas, root + d_root
            rotations = six_to_matrix(six.view(n, self.rotations, 6))
            joints, points = self.kinematics(rotations, betas)
            estimates.append(Estimate(rotations, betas, joints, points, self.doubt(h.detach()), root))
        return estimates

    def forward(
        self, xy_px: Tensor, confidence: Tensor, K: Tensor, R: Tensor | None = None, t: Tensor | None = None
    ) -> Regression:
        """xy_px (N, V, K, 2) undistorted pixels, NaN where missing; confidence (N, V, K); K and R
        (N, V, 3, 3), t (N, V, 3) metres, world → camera; None for one view, whose frame is then the world."""
        if R is None or t is None:
            if K.shape[1] != 1:
                raise ValueError(f"{K.shape[1]} views without R and t: use the uncalibrated net")
            R, t = torch.eye(3, dtype=K.dtype, device=K.device).expand_as(K), torch.zeros_like(K[..., 0])
        o = observe(xy_px, confidence, K, R, t)
        both = self.iterate(concatenated(o, mirror_observations(o)))[-1]
        mean = average_mirrored(both, self.kinematics)
        rotations, root, betas = gauss_newton_step(mean, self.kinematics, o)
        pelvis = o.origin + (root[:, None] @ o.turn)[:, 0]
        in_view = (R @ pelvis[:, None, :, None])[..., 0] + t
        return blank_unseen(
            Regression(
                body_pose=to_local(rotations, self.kinematics.skeleton),
                pose_sigma=mean.log_sigma.exp(),
                betas=betas,
                view_orient=R @ (o.turn.mT @ rotations[:, 0])[:, None],
                view_transl=in_view - self.kinematics.pelvis(betas)[:, None],
                seen=o.seen,
            )
        )
