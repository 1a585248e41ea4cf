"""Small tensors that are the same in every call."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def constant(
    values: tuple[float, ...], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Tensor:
    """Values as a tensor, made once for each device; not to be written to.

    To copy numbers to a GPU is to wait for all that it was told to do before.
    """
    return torch.tensor(values, device=device, dtype=dtype)
