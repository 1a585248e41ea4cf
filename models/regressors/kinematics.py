"""Kinematics of keypoint nets: 6D rotations of all joints in one frame instead of along a chain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.body import KeypointBody, bone_chains
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
    local: Tensor = rotations[:, list(skeleton.parents[1:])].mT @ rotations[:, 1:]
    return local


class GlobalKinematics(nn.Module):
    """Forward kinematics of a body from rotations of all joints in one frame.

    One product a bone and one matrix that sums bones along the tree, without a loop over joints.
    """

    joints_template: Tensor
    joints_shapedirs: Tensor
    points_template: Tensor
    points_shapedirs: Tensor
    weights: Tensor
    above: Tensor

    def __init__(self, body: KeypointBody) -> None:
        super().__init__()
        self.skeleton = body.skeleton
        self.parents = list(body.skeleton.parents[1:])
        for name, tensor in body.tensors.items():
            self.register_buffer(name, tensor.float(), persistent=False)
        self.register_buffer(
            "above", bone_chains(body.skeleton, torch.device("cpu"), torch.float32), persistent=False
        )

    def forward(self, rotations: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """rotations (N, J, 3, 3), betas (N, B) → joints (N, J, 3) and points (N, K, 3), metres, the pelvis
        at the origin."""
        rest, points = self._at_rest(betas)
        bones = rest[:, 1:] - rest[:, self.parents]
        joints = self.above @ (rotations[:, self.parents] * bones[:, :, None]).sum(-1)
        shift = joints - (rotations * rest[:, :, None]).sum(-1)
        blend = self.weights @ torch.cat([rotations, shift[..., None]], -1).flatten(2)
        blend = blend.view(-1, len(self.weights), 3, 4)
        return joints, (blend[..., :3] * points[:, :, None]).sum(-1) + blend[..., 3]

    def lever_arms(self, betas: Tensor) -> Tensor:
        """Vectors v (N, K, J, 3), metres, at rest, by which points are the sums over joints of R_j v_kj.

        So a turn of joint j alone by ω, in the frame of the rotations, moves point k by ω × R_j v_kj.
        """
        rest, points = self._at_rest(betas)
        bones = rest[:, 1:] - rest[:, self.parents]
        carried = self.weights @ self.above  # (K, J − 1) share of a point that hangs on each bone
        is_parent = torch.eye(rest.shape[1], dtype=rest.dtype, device=rest.device)[self.parents]
        arms = torch.einsum("kc,cj,ncx->nkjx", carried, is_parent, bones)
        return arms + self.weights[..., None] * (points[:, :, None] - rest[:, None])

    def _at_rest(self, betas: Tensor) -> tuple[Tensor, Tensor]:
        """Joints (N, J, 3) and points (N, K, 3) of a shape in the rest pose."""
        n_points, n_joints = self.weights.shape
        rest = self.joints_template + (betas @ self.joints_shapedirs.flatten(0, 1).T).view(-1, n_joints, 3)
        points = self.points_template + (betas @ self.points_shapedirs.flatten(0, 1).T).view(-1, n_points, 3)
        return rest, points

    def pelvis(self, betas: Tensor) -> Tensor:
        """Rest position (N, 3) of the root joint, metres."""
        rest: Tensor = self.joints_template[0] + betas @ self.joints_shapedirs[0].T
        return rest
