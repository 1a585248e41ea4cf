"""Keypoint net for calibrated views: triangulated points in, rays as feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from models.body import KeypointBody
from models.regressors.kinematics import GlobalKinematics, matrix_to_six, six_to_matrix, to_local
from models.regressors.layers import (
    BETAS,
    TYPICAL_DEPTH,
    Estimate,
    FeedbackHead,
    camera_directions,
    keypoint_spread,
    mlp,
    small_output,
    usable_keypoints,
)
from models.regressors.regression import DEPTH_TRUST, Regression, blank_unseen
from pipeline.skeleton import BODY_25

_ANNEAL_M: Final = (0.4, 0.24, 0.14, 0.08, 0.05)
_LEFT: Final = tuple(BODY_25.index(n) for n in ("LHip", "LShoulder"))
_RIGHT: Final = tuple(BODY_25.index(n) for n in ("RHip", "RShoulder"))
_PELVIS: Final = tuple(BODY_25.index(n) for n in ("MidHip", "LHip", "RHip"))


@dataclass(frozen=True)
class Evidence:
    """Input of the calibrated net, in its frame: origin at about the pelvis, y up, z where the body faces.

    Directions of frame and world: ``x_frame = turn (x_world − origin)``.
    """

    turn: Tensor
    """(N, 3, 3)"""
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


def vertical(R: Tensor, seen: Tensor) -> Tensor:
    """Unit vector (N, 3) that points up in the world, as cameras R (N, V, 3, 3) that are ``seen`` tell.

    Cameras are held level: their x axes are horizontal, and on average up is up in their pictures. Most
    calibrations have an axis along the vertical, so an axis of the world on which all cameras agree (2.5°)
    is preferred; else it is the direction most at right angles to all x axes.
    """
    weight = seen.to(R.dtype)[..., None]
    level, up = R[:, :, 0], -(weight * R[:, :, 1]).sum(1)
    up = up / up.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    eye = torch.eye(3, dtype=R.dtype, device=R.device)
    system = (weight * level).mT @ level + 1e-3 * eye
    guess: Tensor = torch.linalg.solve(system, up)
    guess = guess / guess.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    tilt = (weight * level).abs().amax(1)  # (N, 3): sine of the worst camera's angle to each plane
    fits = (tilt < 0.044) & (up.abs() > 0.7)
    axis = torch.where(fits, up.abs(), 0).argmax(-1)
    snapped = eye[axis] * up.gather(1, axis[:, None]).sign()
    return torch.where(fits.any(-1, keepdim=True), snapped, guess)


def _solve3(a: Tensor, b: Tensor) -> Tensor:
    """x (..., 3) with a x = b for symmetric a (..., 3, 3), by cofactors: a tenth of the time of LAPACK's."""
    c0 = torch.linalg.cross(a[..., 1, :], a[..., 2, :], dim=-1)
    c1 = torch.linalg.cross(a[..., 2, :], a[..., 0, :], dim=-1)
    c2 = torch.linalg.cross(a[..., 0, :], a[..., 1, :], dim=-1)
    det = (a[..., 0, :] * c0).sum(-1, keepdim=True)
    x: Tensor = (c0 * b[..., :1] + c1 * b[..., 1:2] + c2 * b[..., 2:]) / det
    return x


def gather(xy_px: Tensor, confidence: Tensor, K: Tensor, R: Tensor, t: Tensor) -> Evidence:
    """Triangulate robustly and bring everything to the frame in which the calibrated net thinks.

    Each keypoint by five steps of least squares over its rays, re-weighted by Geman–McClure with a scale
    that goes from 0.4 to 0.05 m. What only one view shows is put on its ray where that comes closest to the
    body. With one view the body's distance is the typical one for its size in the picture, and the frame
    faces the camera.
    """
    xy, weight, seen = usable_keypoints(xy_px, confidence)
    flat = camera_directions(xy, K)
    middle, rms = keypoint_spread(flat[..., :2], weight)
    count = seen.to(K.dtype)
    eye = torch.eye(3, dtype=K.dtype, device=K.device)

    centre = -(R.mT @ t[..., None])[..., 0]
    ray = torch.nn.functional.normalize(flat, dim=-1) @ R
    ray = torch.where((weight > 0)[..., None], ray, 0)

    # About where the body is: views agree on a point, and each believes a little in its own distance.
    ahead = torch.cat([middle, torch.ones_like(middle[..., :1])], -1) * (TYPICAL_DEPTH / rms)[..., None]
    guess = centre + (ahead[..., None, :] @ R)[..., 0, :]
    way = torch.nn.functional.normalize(guess - centre, dim=-1)
    trust = eye - (1 - DEPTH_TRUST) * way[..., :, None] * way[..., None, :]
    w = count
    for scale in _ANNEAL_M[:3]:
        system = (w[..., None, None] * trust).sum(1) + 1e-9 * eye
        body = _solve3(system, (w[..., None] * (trust @ guess[..., None])[..., 0]).sum(1))
        away = guess - body[:, None]
        off2 = (away * (trust @ away[..., None])[..., 0]).sum(-1)
        w = count / (1 + off2 / (2.5 * scale) ** 2) ** 2

    # Σ w (I − d dᵀ) x = Σ w (I − d dᵀ) c with a weak pull to the body, for all points at once.
    start = centre - body[:, None]
    along = (ray * start[:, :, None]).sum(-1)
    foot = start[:, :, None] - along[..., None] * ray  # of the perpendicular from the body to each ray
    outer = ray[..., :, None] * ray[..., None, :]
    w = weight
    for scale in _ANNEAL_M:
        total = w.sum(1)
        system = (total[..., None, None] + 1e-3) * eye - (w[..., None, None] * outer).sum(1)
        x = _solve3(system, (w[..., None] * foot).sum(1))
        across = x[:, None] - foot
        across = across - (across * ray).sum(-1, keepdim=True) * ray
        off2 = (across**2).sum(-1)
        w = weight / (1 + off2 / scale**2) ** 2
    total = w.sum(1)
    residual = ((w * off2).sum(1) / total.clamp_min(1e-6)).sqrt()
    # 0 where all rays are parallel, 0.3 where they come from all around.
    depth = torch.linalg.det(system / (total + 1e-3)[..., None, None]).clamp_min(0)

    pelvis = torch.tensor([1.0, 0.5, 0.5], dtype=K.dtype, device=K.device)
    at_hips = pelvis * total[:, _PELVIS].clamp(max=1)
    at_hips[:, 1:] = at_hips[:, 1:].amin(1, keepdim=True)  # one hip alone is not the middle
    root = (at_hips[..., None] * x[:, _PELVIS]).sum(1) / (at_hips.sum(1, keepdim=True) + 1e-3)

    up = vertical(R, seen)
    pair = torch.minimum(total[:, _LEFT], total[:, _RIGHT])
    left = (pair[..., None] * (x[:, _LEFT] - x[:, _RIGHT])).sum(1)
    left = left - (left * up).sum(-1, keepdim=True) * up
    first = torch.nn.functional.one_hot(seen.to(torch.uint8).argmax(1), seen.shape[1]).to(K.dtype)
    facing = (first[..., None] * start).sum(1) - root
    to_first = torch.linalg.cross(up, facing, dim=-1)
    alone = (count.sum(1, keepdim=True) < 2) | (left.norm(dim=-1, keepdim=True) < 0.05)
    side = torch.where(alone, to_first, left)
    side = side / side.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    turn = torch.stack([side, up, torch.linalg.cross(side, up, dim=-1)], 1)

    features = torch.cat(
        [
            ((x - root[:, None]) @ turn.mT).clamp(-2, 2).flatten(1),
            total.clamp(max=4) / 2,
            (residual / 0.05).clamp(max=4),
            depth * 4,
            alone.to(K.dtype),
            count.sum(1, keepdim=True) / 4,
        ],
        1,
    )
    return Evidence(
        turn=turn,
        origin=body + root,
        centre=(start - root[:, None]) @ turn.mT,
        ray=ray @ turn.mT[:, None],
        weight=weight,
        features=features,
        seen=seen,
    )


def ray_feedback(points: Tensor, e: Evidence) -> Tensor:
    """Distances by which points (N, K, 3), metres, in the frame, miss the rays: (N, 4 K).

    For each point the mean over views of the vector to the ray, by confidence and Geman–McClure (0.2 m),
    and the weight that it has.
    """
    away = points[:, None] - e.centre[:, :, None]
    miss = (away * e.ray).sum(-1, keepdim=True) * e.ray - away
    w = e.weight / (1 + (miss**2).sum(-1) / 0.04)
    total = w.sum(1)
    mean = (w[..., None] * miss).sum(1) / total.clamp_min(1e-3)[..., None]
    return torch.cat([mean.clamp(-0.5, 0.5).flatten(1) * 5, total.clamp(max=4) / 2], 1)


class CalibratedNet(nn.Module):
    """Keypoints of any number of calibrated views → SMPL, by four rounds of feedback from the rays.

    The views enter through the triangulated points and, in every round, through how far the posed body's own
    keypoints miss the rays, so the cost hardly grows with their number and their order does not matter.
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
        state = 6 * self.rotations + BETAS + 3
        self.encode = mlp(6 * keypoints + 2, width // 2, 3 * width // 8, width)
        self.head = FeedbackHead(width, state + 4 * keypoints, width)
        self.output = small_output(width, state)
        self.doubt = small_output(width, joints - 1)
        self.register_buffer("start", matrix_to_six(torch.eye(3)).repeat(self.rotations))

    def rounds(self, e: Evidence) -> list[Estimate]:
        """The estimate after each iteration, in the frame of the evidence."""
        n = len(e.features)
        fixed = self.head.fixed(self.encode(e.features))
        six, betas, root = self.start.expand(n, -1), fixed.new_zeros(n, BETAS), fixed.new_zeros(n, 3)
        with torch.no_grad():
            _, points = self.kinematics(six_to_matrix(six.view(n, self.rotations, 6)), betas)
        estimates: list[Estimate] = []
        for _ in range(self.iterations):
            feedback = ray_feedback((points + root[:, None]).detach(), e)
            h = self.head(fixed, torch.cat([six, betas, root, feedback], 1))
            change = self.output(h)
            turn, reshape, move = change.split([6 * self.rotations, BETAS, 3], 1)
            six, betas, root = six + turn, betas + reshape, root + move
            turned = six_to_matrix(six.view(n, self.rotations, 6))
            joints, points = self.kinematics(turned, betas)
            estimates.append(Estimate(turned, betas, joints, points, self.doubt(h.detach()), root))
        return estimates

    def forward(
        self, xy_px: Tensor, confidence: Tensor, K: Tensor, R: Tensor | None = None, t: Tensor | None = None
    ) -> Regression:
        """xy_px (N, V, K, 2) undistorted pixels, NaN where missing; confidence (N, V, K); K and R
        (N, V, 3, 3), t (N, V, 3) metres. R and t may be left out for one view, whose frame is then the
        world."""
        if R is None or t is None:
            if K.shape[1] != 1:
                raise ValueError(f"{K.shape[1]} views without R and t: use the uncalibrated net")
            R, t = torch.eye(3, dtype=K.dtype, device=K.device).expand_as(K), torch.zeros_like(K[..., 0])
        e = gather(xy_px, confidence, K, R, t)
        last = self.rounds(e)[-1]
        local = to_local(last.turned, self.kinematics.skeleton)
        pelvis = e.origin + (last.root[:, None] @ e.turn)[:, 0]
        in_view = (R @ pelvis[:, None, :, None])[..., 0] + t
        return blank_unseen(
            Regression(
                body_pose=local,
                pose_sigma=last.log_sigma.exp(),
                betas=last.betas,
                view_orient=R @ (e.turn.mT @ last.turned[:, 0])[:, None],
                view_transl=in_view - self.kinematics.pelvis(last.betas)[:, None],
                seen=e.seen,
            )
        )
