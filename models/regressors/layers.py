"""Shared parts of the keypoint nets: input of a view, layers, estimate of an iteration."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Final, TypeVar

import roma
import torch
from torch import Tensor, nn

from models.constants import constant
from models.regressors.kinematics import GlobalKinematics

Input = TypeVar("Input")
MIN_KEYPOINTS: Final = 6
"""Keypoints that a view must show to count: from fewer a net puts the person anywhere."""
TYPICAL_SPREAD_M: Final = 0.61
"""Root mean square distance of a person's keypoints from their mean, across the line of sight: the mean."""
NUM_BETAS: Final = 10
MIRROR_SIGNS: Final = (-1.0, 1.0, 1.0)
"""Signs of a mirror image's coordinates."""


def usable_keypoints(xy: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points (N, V, K, 2), 0 where missing, weights (N, V, K), and whether each view counts (N, V)."""
    visible = xy.isfinite().all(-1) & (confidence > 0)
    seen = visible.sum(-1) >= MIN_KEYPOINTS
    visible = visible & seen[..., None]
    weight = torch.where(visible, confidence.clamp(max=1), 0)
    return torch.where(visible[..., None], xy, 0), weight, seen


def camera_directions(xy: Tensor, K: Tensor) -> Tensor:
    """Undistorted pixels (N, V, K, 2) → directions (N, V, K, 3) in the camera's frame, z = 1."""
    fx, skew, cx, fy, cy = (K[..., i, j, None] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2)))
    y = (xy[..., 1] - cy) / fy
    x = (xy[..., 0] - cx - skew * y) / fx
    return torch.stack([x, y, torch.ones_like(x)], -1)


def keypoint_spread(xy: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean (N, V, 2) of points (N, V, K, 2) and their root mean square distance (N, V) from it."""
    total = weight.sum(-1).clamp_min(1e-6)
    mean = (weight[..., None] * xy).sum(-2) / total[..., None]
    squared = ((xy - mean[..., None, :]) ** 2).sum(-1)
    return mean, ((weight * squared).sum(-1) / total).sqrt().clamp_min(1e-4)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers of these widths, a ReLU after each."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers)


class FeedbackHead(nn.Module):
    """Hidden vector of the trunk's features, fixed over the iterations, and of state and feedback."""

    def __init__(self, trunk: int, state: int, hidden: int) -> None:
        super().__init__()
        self.fixed, self.state = nn.Linear(trunk, hidden), nn.Linear(state, hidden, bias=False)
        self.first, self.second = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, fixed: Tensor, state: Tensor) -> Tensor:
        h = torch.relu(fixed + self.state(state))
        h = h + torch.relu(self.first(h))
        return h + torch.relu(self.second(h))


class ViewAttention(nn.Module):
    """Multi-head self-attention over views (Vaswani et al. 2017); faster than torch's for a few views."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x (N, V, C) → (N, V, C); no view attends to ``hidden`` (N, V) ones."""
        n, views, _ = x.shape
        q, k, v = (
            self.queries(x).view(n, views, 3, self.heads, x.shape[-1] // self.heads).permute(2, 0, 3, 1, 4)
        )
        scores = (q @ k.mT) / math.sqrt(q.shape[-1])
        attention = scores.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1)
        out: Tensor = self.out((attention @ v).transpose(1, 2).flatten(2))
        return out


def small_output(hidden: int, size: int) -> nn.Linear:
    """Output layer of small random weights: an untrained one changes next to nothing."""
    layer = nn.Linear(hidden, size)
    nn.init.normal_(layer.weight, std=1e-3)
    nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class Estimate:
    """Estimate of a keypoint net after one iteration, in the net's frame."""

    rotations: Tensor
    """(N, J, 3, 3) of all joints in one frame."""
    betas: Tensor
    """(N, B)"""
    joints: Tensor
    """(N, J, 3) metres from the pelvis."""
    points: Tensor
    """(N, K, 3) metres from the pelvis."""
    log_sigma: Tensor
    """(N, J − 1) logarithm of the expected error of each local rotation, radians."""
    root: Tensor
    """Calibrated: (N, 3) pelvis, metres. Uncalibrated: (N, V, 3) in each view, see ``pelvis_in_camera``."""
    view_orient: Tensor | None = None
    """Uncalibrated: (N, V, 3, 3) root orientation in each view."""


def concatenated(a: Input, b: Input) -> Input:
    """Dataclass of tensors with the people of a, then of b."""
    return type(a)(*map(torch.cat, zip(vars(a).values(), vars(b).values(), strict=True)))


def average_mirrored(both: Estimate, kinematics: GlobalKinematics) -> Estimate:
    """Mean of the first half of estimates and of the second, those of the mirror images, mirrored back.

    The errors of the two differ in part, so the mean's are less: flip augmentation at test time, as Pavllo et
    al., 3D Human Pose Estimation in Video (2019). The mirror is the plane x = 0 of the net's frame.
    """
    sign = constant(MIRROR_SIGNS, both.root.device, both.root.dtype)
    flips = constant(kinematics.skeleton.flips, both.root.device)

    def mean_rotation(a: Tensor, b: Tensor) -> Tensor:
        p, q = roma.rotmat_to_unitquat(a), roma.rotmat_to_unitquat(sign[:, None] * b * sign)
        q = torch.where((p * q).sum(-1, keepdim=True) < 0, -q, q)
        mean: Tensor = roma.unitquat_to_rotmat(torch.nn.functional.normalize(p + q, dim=-1))
        return mean

    (rotations, mirrored), (log_sigma, mirrored_log_sigma) = both.rotations.chunk(2), both.log_sigma.chunk(2)
    rotations = mean_rotation(rotations, mirrored.index_select(1, flips))
    log_sigma = (log_sigma + mirrored_log_sigma.index_select(1, flips[1:] - 1)) / 2
    betas = torch.stack(both.betas.chunk(2)).mean(0)
    orient = None if both.view_orient is None else mean_rotation(*both.view_orient.chunk(2))
    joints, points = kinematics(rotations, betas)
    root, mirrored_root = both.root.chunk(2)
    return Estimate(rotations, betas, joints, points, log_sigma, (root + mirrored_root * sign) / 2, orient)
