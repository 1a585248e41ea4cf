"""Pickles of arrays, read without running code in them."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any, Self

import numpy as np


class StandIn:
    """Stand-in for a chumpy or scipy object of a pickle: its state, without its code."""

    kind: str
    state: dict[str, Any]

    def __new__(cls, *_: object) -> Self:
        self = super().__new__(cls)
        self.state = {}
        return self

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


def _reconstruct_object(cls: type, _base: type, _state: object) -> object:
    """Replacement of ``copyreg._reconstructor`` that makes stand-ins only."""
    if not (isinstance(cls, type) and issubclass(cls, StandIn)):
        raise pickle.UnpicklingError(f"an object of type {cls!r}")
    return cls()


def _latin1(text: str, encoding: str) -> bytes:
    """Replacement of ``_codecs.encode``, by which Python 3 writes bytes in old pickle protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], Any]:
    """Globals that pickles of arrays use, by module and name."""
    # numpy's own, whichever module this version keeps them in.
    reconstruct: Any = np.zeros(1).__reduce__()
    frombuffer: Any = np.zeros(1).__reduce_ex__(5)
    scalar: Any = np.float64(0).__reduce__()
    table: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "_reconstruct"] = reconstruct[0]
        table[f"{core}.multiarray", "scalar"] = scalar[0]
        table[f"{core}.numeric", "_frombuffer"] = frombuffer[0]
    for builtins, copyreg in (("__builtin__", "copy_reg"), ("builtins", "copyreg")):
        table[builtins, "object"] = object
        table[builtins, "set"] = set
        table[copyreg, "_reconstructor"] = _reconstruct_object
    return table


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that refuses all globals but those of arrays (pickle docs, "Restricting Globals")."""

    allowed = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.allowed:
            return self.allowed[module, name]
        top = module.split(".")[0]
        if top == "chumpy" or (module.startswith("scipy.sparse") and name.endswith(("_matrix", "_array"))):
            return type(name, (StandIn,), {"kind": f"{module}.{name}"})
        raise pickle.UnpicklingError(f"{module}.{name}")


def unpickle_arrays(content: bytes) -> Any:
    """Read a pickle of numpy arrays in lists and dictionaries.

    Raises ``pickle.UnpicklingError`` that names the first other object. A damaged pickle can raise anything.
    """
    # The unpickler would allocate whatever size a damaged opcode states; ``genops`` does not.
    for opcode, value, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(value or 0) > len(content):
            raise pickle.UnpicklingError(f"object {value} of {len(content)} bytes")
    return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
