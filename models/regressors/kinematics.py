"""Kinematics of keypoint nets: 6D rotations of all joints in one frame instead of along a chain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.body import KeypointBody, descendants, lever_arms
from models.constants import constant
from pipeline.skeleton import SMPL_24, Skeleton


def six_to_matrix(x: Tensor) -> Tensor:
    """6D rotations (..., 6), the first two columns of matrices, → (..., 3, 3) by Gram–Schmidt.

    Zhou et al., On the Continuity of Rotation Representations in Neural Networks (2019), eq. 15.
    """
    a, b = x[..., :3], x[..., 3:]
    first = a / a.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    b = b - (first * b).sum(-1, keepdim=True) * first
    second = b / b.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], -1)


def matrix_to_six(r: Tensor) -> Tensor:
    """Rotations (..., 3, 3) → (..., 6), the inverse of ``six_to_matrix``."""
    return r[..., :2].mT.flatten(-2)


def to_local(rotations: Tensor, skeleton: Skeleton = SMPL_24) -> Tensor:
    """Rotations (N, J, 3, 3) in one frame → local ones of all joints but the root (N, J − 1, 3, 3)."""
    return rotations[:, constant(skeleton.parents[1:], rotations.device)].mT @ rotations[:, 1:]


class GlobalKinematics(nn.Module):
    """Forward kinematics of a body from rotations of all joints in one frame, in two products.

    A joint or keypoint lies at Σ_j R_j v_j: its lever arms v_j at rest, which are linear in the shape, turned
    each by its joint.
    """

    weights: Tensor
    """(K, J) skinning weights."""
    pelvis_template: Tensor
    pelvis_shapedirs: Tensor
    arms_template: Tensor
    """((J + K) J 3,) lever arms of the joints, then of the keypoints, metres."""
    arms_shapedirs: Tensor
    """(B, (J + K) J 3)"""
    movers: Tensor
    """(M,) joints whose rotation moves a keypoint."""
    below: Tensor
    """(J, M) 1 where a joint is a mover or below it in the tree."""

    def __init__(self, body: KeypointBody) -> None:
        super().__init__()
        self.skeleton = body.skeleton
        weights = torch.cat([torch.eye(len(body.skeleton)).to(body.weights), body.weights])
        joints = torch.cat([body.joints_template[None], body.joints_shapedirs.movedim(2, 0)])  # (1 + B, J, 3)
        points = torch.cat([body.points_template[None], body.points_shapedirs.movedim(2, 0)])
        arms = lever_arms(joints, torch.cat([joints, points], 1), weights, body.skeleton)
        below = descendants(body.skeleton, weights.device, weights.dtype)
        reach = arms[:, len(body.skeleton) :].abs().sum((0, 1, 3))
        movers = (below @ reach).nonzero()[:, 0]
        buffers = {
            "weights": body.weights,
            "pelvis_template": body.joints_template[0],
            "pelvis_shapedirs": body.joints_shapedirs[0].T,
            "arms_template": arms[0].flatten(),
            "arms_shapedirs": arms[1:].flatten(1),
            "below": below[movers].T,
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor.float().contiguous(), persistent=False)
        self.register_buffer("movers", movers, persistent=False)

    def forward(self, rotations: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """rotations (N, J, 3, 3), betas (N, B) → joints (N, J, 3) and points (N, K, 3), metres, the pelvis
        at the origin."""
        arms = self.lever_arms(betas).flatten(2)
        placed = (rotations.transpose(1, 2).flatten(2) @ arms.mT).mT
        return placed[:, : len(self.skeleton)], placed[:, len(self.skeleton) :]

    def lever_arms(self, betas: Tensor) -> Tensor:
        """Vectors v (N, J + K, J, 3), metres, at rest, by which joints and points are the sums of R_j v_j.

        So a turn of joint j alone by ω, in the frame of the rotations, moves a point by ω × R_j v_j.
        """
        arms = torch.addmm(self.arms_template, betas, self.arms_shapedirs)
        joints = len(self.skeleton)
        return arms.view(len(betas), arms.shape[1] // (3 * joints), joints, 3)  # of nobody, too: no −1

    def pelvis(self, betas: Tensor) -> Tensor:
        """Rest position (N, 3) of the root joint, metres."""
        return torch.addmm(self.pelvis_template, betas, self.pelvis_shapedirs)
