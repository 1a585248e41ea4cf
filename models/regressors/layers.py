"""Parts that keypoint nets share: what they read of a view, their layers, an iteration's estimate."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

MIN_KEYPOINTS: Final = 6
"""Keypoints that a view must show for it to count: with fewer a net puts the person anywhere."""
TYPICAL_DEPTH: Final = 0.61
"""Distance of a person, metres, × rms spread of the keypoints in the picture / focal length: the mean."""
BETAS: Final = 10


def usable_keypoints(xy: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points with 0 where missing (N, V, K, 2), weights (N, V, K) and views that count (N, V)."""
    known = xy.isfinite().all(-1) & (confidence > 0)
    seen = known.sum(-1) >= MIN_KEYPOINTS
    known = known & seen[..., None]
    weight = torch.where(known, confidence.clamp(max=1), 0)
    return torch.where(known[..., None], xy, 0), weight, seen


def camera_directions(xy: Tensor, K: Tensor) -> Tensor:
    """Undistorted pixels (N, V, K, 2) → directions (N, V, K, 3) in the camera's frame, z = 1."""
    one = torch.cat([xy, torch.ones_like(xy[..., :1])], -1)
    ray: Tensor = one @ torch.linalg.inv(K).mT
    return ray / ray[..., 2:]


def keypoint_spread(flat: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean (N, V, 2) of points (N, V, K, 2) and their root mean square distance (N, V) from it."""
    total = weight.sum(-1).clamp_min(1e-6)
    middle = (weight[..., None] * flat).sum(-2) / total[..., None]
    off2 = ((flat - middle[..., None, :]) ** 2).sum(-1)
    return middle, ((weight * off2).sum(-1) / total).sqrt().clamp_min(1e-4)


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers)


class FeedbackHead(nn.Module):
    """From what is fixed (the trunk's features) and what changes (state and feedback) to a hidden vector."""

    def __init__(self, trunk: int, state: int, hidden: int) -> None:
        super().__init__()
        self.fixed, self.state = nn.Linear(trunk, hidden), nn.Linear(state, hidden, bias=False)
        self.first, self.second = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, fixed: Tensor, state: Tensor) -> Tensor:
        h = torch.relu(fixed + self.state(state))
        h = h + torch.relu(self.first(h))
        return h + torch.relu(self.second(h))


class ViewAttention(nn.Module):
    """Multi-head self-attention over views (Vaswani et al. 2017); for a few views faster than torch's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x (N, V, C); nobody looks at ``hidden`` (N, V) views."""
        n, views, _ = x.shape
        q, k, v = (
            self.queries(x).view(n, views, 3, self.heads, x.shape[-1] // self.heads).permute(2, 0, 3, 1, 4)
        )
        look = (q @ k.mT) / math.sqrt(q.shape[-1])
        look = look.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1)
        out: Tensor = self.out((look @ v).transpose(1, 2).flatten(2))
        return out


def small_output(hidden: int, size: int) -> nn.Linear:
    layer = nn.Linear(hidden, size)
    nn.init.normal_(layer.weight, std=1e-3)
    nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class Estimate:
    """Estimate of a keypoint net after one iteration, in its own frame (see the nets)."""

    turned: Tensor
    """(N, J, 3, 3) rotations of all joints in one frame."""
    betas: Tensor
    """(N, B)"""
    joints: Tensor
    """(N, J, 3) metres from the pelvis."""
    points: Tensor
    """(N, K, 3) metres from the pelvis."""
    log_sigma: Tensor
    """(N, J − 1) logarithm of the error to be expected of each local rotation, radians."""
    root: Tensor
    """Calibrated: (N, 3) pelvis, metres. Uncalibrated: (N, V, 3) of each view, see ``UncalibratedNet``."""
    view_orient: Tensor | None = None
    """Uncalibrated: (N, V, 3, 3) rotation of the body in each view."""
