"""Fusions: feature vectors of a person's views → feature vectors of H hypotheses about the body.

N people in frames, V views, D features. The regressor's results are averaged over the hypotheses: one for
each view (``single``), one for each pair of views (``mlp``, ``conv1d``), or one alone. ``seen`` (N, V) bool
masks the views; a fusion returns the mask (N, H) of the hypotheses with their vectors (N, H, D).
"""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from models.constants import constant

FusionName = Literal["single", "average", "mlp", "conv1d", "attention"]


class Single(nn.Module):
    """One hypothesis per view, as in SPIN."""

    def forward(self, features: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        return features, seen


class Average(nn.Module):
    """Mean over the views that are seen."""

    def forward(self, features: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        return _mean(features, seen)[:, None], seen.any(1, keepdim=True)


class Pairs(nn.Module):
    """A network on every pair of views, in their order; a single view is paired with itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, features: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        v = features.shape[1]
        indices = [*combinations(range(v), 2), *((i, i) for i in range(v))]
        first, second = (constant(x, seen.device) for x in zip(*indices, strict=True))
        valid = seen[:, first] & seen[:, second]
        valid &= (first != second) | (seen.sum(1, keepdim=True) == 1)
        pairs = torch.stack([features[:, first], features[:, second]], 2)
        if not self.training:  # no selection, which would wait for the GPU
            return self.net(pairs.flatten(0, 1)).view(*valid.shape, -1), valid
        fused = torch.zeros_like(pairs[:, :, 0])
        # Batch statistics of the normalisation are over valid pairs only.
        fused[valid] = self.net(pairs[valid]).to(fused.dtype)
        return fused, valid


class Attention(nn.Module):
    """Mean over the views plus a residual by attention over any number of them (Vaswani et al. 2017).

    One layer of self-attention over vectors of 512 features, pooled by one learned query. The last layer
    starts at zero: an untrained one is ``Average``.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        width, heads = 512, 8
        self.inside = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, width))
        self.among = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.question = nn.Parameter(torch.randn(1, 1, width) / width**0.5)
        self.pool = nn.MultiheadAttention(width, heads, batch_first=True)
        self.outside = nn.Linear(width, size)
        nn.init.zeros_(self.outside.weight)
        nn.init.zeros_(self.outside.bias)

    def forward(self, features: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        any_seen = seen.any(1, keepdim=True)
        hidden = ~seen & any_seen  # a row without any key would be NaN
        x = self.inside(features)
        x = self.norm(x + self.among(x, x, x, key_padding_mask=hidden, need_weights=False)[0])
        query = self.question.to(x.dtype).expand(len(x), -1, -1)
        pooled = self.pool(query, x, x, key_padding_mask=hidden, need_weights=False)[0]
        return _mean(features, seen)[:, None] + self.outside(pooled), any_seen


def make_fusion(name: FusionName, size: int) -> nn.Module:
    """Fusion of vectors of ``size`` features; ``mlp`` normalises, but for size 2048, as in the reference."""
    match name:
        case "single":
            return Single()
        case "average":
            return Average()
        case "attention":
            return Attention(size)
        case "conv1d":
            return Pairs(
                nn.Sequential(
                    nn.Conv1d(2, 128, 3, padding=1), nn.BatchNorm1d(128), nn.GELU(),
                    nn.Conv1d(128, 64, 3, padding=1), nn.BatchNorm1d(64), nn.GELU(),
                    nn.Conv1d(64, 1, 3, padding=1), nn.Flatten(),
                )
            )  # fmt: skip
        case "mlp" if size == 2048:
            return Pairs(
                nn.Sequential(
                    nn.Flatten(),
                    nn.Linear(4096, 4096), nn.GELU(), nn.Linear(4096, 2048), nn.GELU(), nn.Linear(2048, 2048),
                )
            )  # fmt: skip
        case "mlp":
            return Pairs(
                nn.Sequential(
                    nn.Flatten(),
                    nn.Linear(2 * size, 2048), nn.BatchNorm1d(2048), nn.GELU(), nn.Linear(2048, size),
                )
            )  # fmt: skip


def _mean(features: Tensor, seen: Tensor) -> Tensor:
    """Mean (N, D) over the views that are seen; 0 where none is."""
    weight = seen.to(features.dtype)
    return torch.where(seen[..., None], features, 0).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
