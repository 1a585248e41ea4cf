"""Rotations as networks give them: six numbers each, all in one frame instead of along a chain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.body import KeypointBody, bone_chains
from pipeline.skeleton import SMPL_24, Skeleton


def six_to_matrix(x: Tensor) -> Tensor:
    """First two columns (..., 6) of rotations, one after the other and of any length → (..., 3, 3).

    Zhou et al., On the Continuity of Rotation Representations in Neural Networks (2019), eq. 15.
    """
    a, b = x[..., :3], x[..., 3:]
    first = a / a.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    b = b - (first * b).sum(-1, keepdim=True) * first
    second = b / b.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], -1)


def matrix_to_six(r: Tensor) -> Tensor:
    """Rotations (..., 3, 3) → (..., 6), undone by ``six_to_matrix``."""
    return r[..., :2].mT.flatten(-2)


def to_local(turned: Tensor, skeleton: Skeleton = SMPL_24) -> Tensor:
    """Rotations (N, J, 3, 3) in one frame → those of all but the root in their parents', (N, J − 1, 3, 3)."""
    local: Tensor = turned[:, list(skeleton.parents[1:])].mT @ turned[:, 1:]
    return local


class GlobalKinematics(nn.Module):
    """Joints and keypoints of a body whose joints' rotations are given in one frame, not in a chain.

    One product a bone and one matrix that sums bones along the tree: exact, and no loop over joints.
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

    def forward(self, turned: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """turned (N, J, 3, 3), betas (N, B) → joints (N, J, 3) and points (N, K, 3), metres, the pelvis at
        the origin."""
        keypoints, joints = self.weights.shape
        rest = self.joints_template + (betas @ self.joints_shapedirs.flatten(0, 1).T).view(-1, joints, 3)
        skin = self.points_template + (betas @ self.points_shapedirs.flatten(0, 1).T).view(-1, keypoints, 3)
        bones = rest[:, 1:] - rest[:, self.parents]
        places = self.above @ (turned[:, self.parents] * bones[:, :, None]).sum(-1)
        shift = places - (turned * rest[:, :, None]).sum(-1)
        blend = self.weights @ torch.cat([turned, shift[..., None]], -1).flatten(2)
        blend = blend.view(-1, keypoints, 3, 4)
        return places, (blend[..., :3] * skin[:, :, None]).sum(-1) + blend[..., 3]

    def pelvis(self, betas: Tensor) -> Tensor:
        """Rest position (N, 3) of the root joint."""
        rest: Tensor = self.joints_template[0] + betas @ self.joints_shapedirs[0].T
        return rest
