"""``.npz`` and ``.npy`` files, whose sizes are checked before memory is allocated."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import short_reason

MAX_UNPACKED_BYTES: Final = 256 << 20
"""Unpacked size that any archive may have."""
MAX_COMPRESSION: Final = 20
"""Ratio of unpacked to packed size of a larger one: coordinates reach about 2, a zip bomb 1000."""


def read_npz(file: Path | bytes, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read the arrays of a ``.npz``: all, or those of ``names`` that it has.

    file: path or content. Raises ``OSError``, and ``ValueError`` with a short reason for an archive that is
    damaged, has other members than plain arrays, or claims more than its size allows.
    """
    source: IO[bytes] = io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")
    with source:
        try:
            return _members(source, names)
        except OSError:
            raise
        except MemoryError:
            raise ValueError("its arrays do not fit into memory") from None
        except Exception as error:  # damage makes zipfile, zlib and numpy raise anything
            raise ValueError(short_reason(error)) from error


def read_npy(content: bytes) -> NDArray[Any]:
    """Read the array of a ``.npy`` file's content. Raises ``ValueError`` with a short reason."""
    try:
        return _array(io.BytesIO(content), len(content))
    except Exception as error:  # as above
        raise ValueError(short_reason(error)) from error


def check_unpacked(unpacked: int, size: int) -> None:
    """Raise ``ValueError`` where a file of ``size`` bytes unpacks to more than arrays do."""
    if unpacked > max(MAX_UNPACKED_BYTES, MAX_COMPRESSION * size):
        raise ValueError(f"unpacks to {unpacked / 1e6:.0f} MB, {unpacked / max(1, size):.0f} times its size")


def _members(source: IO[bytes], names: Collection[str] | None) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(source) as archive:
        size = source.seek(0, io.SEEK_END)
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        check_unpacked(sum(m.file_size for m in members), size)
        arrays = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if names is None or name in names:
                with archive.open(member) as content:
                    arrays[name] = _array(content, member.file_size)
        return arrays


def _array(content: IO[bytes], size: int) -> NDArray[Any]:
    """Read the array of a ``.npy`` stream of ``size`` bytes."""
    version = np.lib.format.read_magic(content)
    read_header = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(content)
    if dtype.hasobject:
        raise ValueError("holds Python objects, not numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"claims an array of shape {shape} in {size} bytes")
    content.seek(0)
    return np.asarray(np.lib.format.read_array(content, allow_pickle=False))
