"""Small constant tensors, cached by device."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def constant(
    values: tuple[float, ...], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Tensor:
    """Read-only tensor, made once for each device: a copy to a GPU waits for the work queued there."""
    return torch.tensor(values, device=device, dtype=dtype)
