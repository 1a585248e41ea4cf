"""Random tensors of a generator, on the default device."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(rng: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Uniform numbers from low to high."""
    return low + (high - low) * torch.rand(*shape, generator=rng)


def chance(rng: torch.Generator, p: float | Tensor, *shape: int) -> Tensor:
    """True with probability p."""
    return torch.rand(*shape, generator=rng) < p
