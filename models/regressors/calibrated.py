"""Keypoint net for calibrated views: triangulated points as input, rays as feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from models.body import KeypointBody
from models.regressors.kinematics import GlobalKinematics, matrix_to_six, six_to_matrix, to_local
from models.regressors.layers import (
    NUM_BETAS,
    TYPICAL_SPREAD_M,
    Estimate,
    FeedbackHead,
    camera_directions,
    keypoint_spread,
    mlp,
    small_output,
    usable_keypoints,
)
from models.regressors.regression import DEPTH_WEIGHT, Regression, blank_unseen
from pipeline.skeleton import BODY_25

_SCALES_M: Final = (0.4, 0.24, 0.14, 0.08, 0.05)
"""Geman–McClure scale of each step of the triangulation."""
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
    orthogonal: Tensor = torch.linalg.solve(system, up)
    orthogonal = orthogonal / orthogonal.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    tilt = (weight * x_axes).abs().amax(1)  # (N, 3): sine of the worst camera's angle to each plane
    is_up = (tilt < 0.044) & (up.abs() > 0.7)
    axis = torch.where(is_up, up.abs(), 0).argmax(-1)
    world_axis = eye[axis] * up.gather(1, axis[:, None]).sign()
    return torch.where(is_up.any(-1, keepdim=True), world_axis, orthogonal)


def _solve_symmetric(a: Tensor, b: Tensor) -> Tensor:
    """x (..., 3) of a x = b for symmetric a (..., 3, 3), by cofactors: a tenth of the time of LAPACK's."""
    c0 = torch.linalg.cross(a[..., 1, :], a[..., 2, :], dim=-1)
    c1 = torch.linalg.cross(a[..., 2, :], a[..., 0, :], dim=-1)
    c2 = torch.linalg.cross(a[..., 0, :], a[..., 1, :], dim=-1)
    det = (a[..., 0, :] * c0).sum(-1, keepdim=True)
    x: Tensor = (c0 * b[..., :1] + c1 * b[..., 1:2] + c2 * b[..., 2:]) / det
    return x


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
    eye = torch.eye(3, dtype=K.dtype, device=K.device)

    centre = -(R.mT @ t[..., None])[..., 0]
    ray = torch.nn.functional.normalize(directions, dim=-1) @ R
    ray = torch.where((weight > 0)[..., None], ray, 0)

    # Rough position of the body: from each view's bearing and, of little weight, its typical distance.
    offset = torch.cat([mean, torch.ones_like(mean[..., :1])], -1) * (TYPICAL_SPREAD_M / rms)[..., None]
    guess = centre + (offset[..., None, :] @ R)[..., 0, :]
    bearing = torch.nn.functional.normalize(guess - centre, dim=-1)
    information = eye - (1 - DEPTH_WEIGHT) * bearing[..., :, None] * bearing[..., None, :]
    w = count
    for scale in _SCALES_M[:3]:
        system = (w[..., None, None] * information).sum(1) + 1e-9 * eye
        body = _solve_symmetric(system, (w[..., None] * (information @ guess[..., None])[..., 0]).sum(1))
        residual = guess - body[:, None]
        squared = (residual * (information @ residual[..., None])[..., 0]).sum(-1)
        w = count / (1 + squared / (2.5 * scale) ** 2) ** 2

    # Σ w (I − d dᵀ) x = Σ w (I − d dᵀ) c with a weak prior at the body, for all points at once.
    start = centre - body[:, None]
    along = (ray * start[:, :, None]).sum(-1)
    foot = start[:, :, None] - along[..., None] * ray  # of the perpendicular from the body to each ray
    outer = ray[..., :, None] * ray[..., None, :]
    w = weight
    for scale in _SCALES_M:
        total = w.sum(1)
        system = (total[..., None, None] + 1e-3) * eye - (w[..., None, None] * outer).sum(1)
        x = _solve_symmetric(system, (w[..., None] * foot).sum(1))
        residual = x[:, None] - foot
        residual = residual - (residual * ray).sum(-1, keepdim=True) * ray
        squared = (residual**2).sum(-1)
        w = weight / (1 + squared / scale**2) ** 2
    total = w.sum(1)
    rms_residual = ((w * squared).sum(1) / total.clamp_min(1e-6)).sqrt()
    # 0 where all rays are parallel, 0.3 where they come from all around.
    depth = torch.linalg.det(system / (total + 1e-3)[..., None, None]).clamp_min(0)

    pelvis = torch.tensor([1.0, 0.5, 0.5], dtype=K.dtype, device=K.device)
    hip_weight = pelvis * total[:, _PELVIS].clamp(max=1)
    hip_weight[:, 1:] = hip_weight[:, 1:].amin(1, keepdim=True)  # one hip alone is not the middle
    root = (hip_weight[..., None] * x[:, _PELVIS]).sum(1) / (hip_weight.sum(1, keepdim=True) + 1e-3)

    up = up_of_level_cameras(R, seen)
    pair = torch.minimum(total[:, _LEFT], total[:, _RIGHT])
    left = (pair[..., None] * (x[:, _LEFT] - x[:, _RIGHT])).sum(1)
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


def ray_feedback(points: Tensor, o: Observations) -> Tensor:
    """Residuals (N, 4 K) of points (N, K, 3), metres, in the frame, to the rays.

    For each point the mean over views of the vector to the ray, weighted by confidence and Geman–McClure
    (0.2 m), and its total weight.
    """
    offset = points[:, None] - o.centre[:, :, None]
    residual = (offset * o.ray).sum(-1, keepdim=True) * o.ray - offset
    w = o.weight / (1 + (residual**2).sum(-1) / 0.04)
    total = w.sum(1)
    mean = (w[..., None] * residual).sum(1) / total.clamp_min(1e-3)[..., None]
    return torch.cat([mean.clamp(-0.5, 0.5).flatten(1) * 5, total.clamp(max=4) / 2], 1)


class CalibratedNet(nn.Module):
    """Keypoints of any number of calibrated views → SMPL, by four iterations of feedback from the rays.

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
        for _ in range(self.iterations):
            feedback = ray_feedback((points + root[:, None]).detach(), o)
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
        last = self.iterate(o)[-1]
        pelvis = o.origin + (last.root[:, None] @ o.turn)[:, 0]
        in_view = (R @ pelvis[:, None, :, None])[..., 0] + t
        return blank_unseen(
            Regression(
                body_pose=to_local(last.rotations, self.kinematics.skeleton),
                pose_sigma=last.log_sigma.exp(),
                betas=last.betas,
                view_orient=R @ (o.turn.mT @ last.rotations[:, 0])[:, None],
                view_transl=in_view - self.kinematics.pelvis(last.betas)[:, None],
                seen=o.seen,
            )
        )
