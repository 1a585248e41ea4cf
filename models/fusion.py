"""Fusions: the feature vectors of a person's views → one for all views together.

N people in frames, V views, D numbers a view. A fusion gives H vectors, each of them a hypothesis of its own
about the body; what the regressor makes of them is averaged. ``single`` has one for every view, the fusions
of two views one for every pair of them, the others one. ``seen`` says which views, and which hypotheses,
there are.
"""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from models.constants import constant

FusionName = Literal["single", "average", "mlp", "conv1d", "attention"]


class Single(nn.Module):
    """Each view alone, as in SPIN."""

    def forward(self, features: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """features (N, V, D), seen (N, V) bool → (N, H, D) and (N, H) bool."""
        return features, seen


class Average(nn.Module):
    """The mean over the views that are seen."""

    def forward(self, features: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """features (N, V, D), seen (N, V) bool → (N, 1, D) and (N, 1) bool."""
        return _mean(features, seen)[:, None], seen.any(1, keepdim=True)


class Pairs(nn.Module):
    """A network on two views, the first before the second, for every pair of them.

    A view that is the only one is paired with itself.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, features: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """features (N, V, D), seen (N, V) bool → (N, H, D) and (N, H) bool."""
        v = features.shape[1]
        pairs = [*combinations(range(v), 2), *((i, i) for i in range(v))]
        first, second = (constant(x, seen.device) for x in zip(*pairs, strict=True))
        there = seen[:, first] & seen[:, second]
        there &= (first != second) | (seen.sum(1, keepdim=True) == 1)
        both = torch.stack([features[:, first], features[:, second]], 2)
        if not self.training:  # nothing waits for which there are
            return self.net(both.flatten(0, 1)).view(*there.shape, -1), there
        fused = torch.zeros_like(both[:, :, 0])
        found = self.net(both[there])  # means over the batch are means over those that there are
        fused[there] = found.to(fused.dtype)
        return fused, there


class Attention(nn.Module):
    """Any number of views: the mean, and what attention over the views adds to it.

    Vectors are projected to 512 numbers, look at each other once (Vaswani et al. 2017), and are pooled by one
    learned question. The last layer begins at zero: an untrained one is ``Average``.
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
        """features (N, V, D), seen (N, V) bool → (N, 1, D) and (N, 1) bool."""
        someone = seen.any(1, keepdim=True)
        hidden = ~seen & someone  # a row without any key would be NaN
        x = self.inside(features)
        x = self.norm(x + self.among(x, x, x, key_padding_mask=hidden, need_weights=False)[0])
        asked = self.question.to(x.dtype).expand(len(x), -1, -1)
        pooled = self.pool(asked, x, x, key_padding_mask=hidden, need_weights=False)[0]
        return _mean(features, seen)[:, None] + self.outside(pooled), someone


def make_fusion(name: FusionName, size: int) -> nn.Module:
    """The fusion of vectors of ``size`` numbers.

    ``mlp`` is the reference's for 2048 numbers, where it has no normalisation, and otherwise that for the
    1000 numbers of ConvNeXt.
    """
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
    """(N, D) over the views that are seen; 0 where none is."""
    weight = seen.to(features.dtype)
    known = torch.where(seen[..., None], features, 0)
    return known.sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
