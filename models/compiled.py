"""Compilation of loops over numbers (numba)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

_F = TypeVar("_F", bound=Callable[..., Any])


def jit(function: _F) -> _F:
    """Compile to run without the interpreter lock; cached where a cache folder is writable."""
    try:
        return cast(_F, numba.njit(nogil=True, cache=True, error_model="numpy")(function))
    except RuntimeError:  # no writable cache folder
        return cast(_F, numba.njit(nogil=True, error_model="numpy")(function))
