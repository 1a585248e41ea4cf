"""Arrays of numpy, one file a camera: (T, P, K, 3) of x, y and confidence, or (T, K, 3) of one person.

An ``.npy`` holds it; of an ``.npz``, the one array or that called ``keypoints``, and ``mask`` (T, P, K) says
what is there, as XRMoCap has them. Where it holds x and y alone, the confidences are ``scores`` or
``keypoint_scores``. Frame t is row t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.archives import read_npy, read_npz
from pipeline.array_types import Floats
from pipeline.errors import InputError
from pipeline.formats.keypoints.files import KeypointFiles, Unreadable, find_paths, only_file

DESCRIPTION: Final = "NumPy arrays (npz or npy, frames × people × points × 3, one file a camera)"

_SUFFIXES: Final = (".npz", ".npy")


@dataclass(frozen=True, eq=False)
class ArrayPeople(KeypointFiles):
    """People of an array, which is kept: 32 MB for an hour of one person with 25 points at 30 fps."""

    array_file: Path
    row_numbers: NDArray[np.int64]
    """(N,) frame number of each row, rising; several rows are the people of one frame."""
    people_px: Floats
    """(N, P, K, 3)"""

    unit = "frames"

    def file(self, number: int) -> Path | None:
        return self.array_file if len(self) and 0 <= number <= self.numbers[-1] else None

    def content(self, number: int) -> bytes:
        if self.file(number) is None:
            return b""
        first, end = np.searchsorted(self.row_numbers, [number, number + 1])
        return bytes(number.to_bytes(8, "little") + self.people_px[first:end].tobytes())

    def persons(self, content: bytes) -> list[Any]:
        points = self.people_px.shape[2]
        try:
            people = np.frombuffer(content[8:], np.float32).reshape(-1, 3 * points)
        except ValueError:
            raise Unreadable("not an array") from None
        return [person.tolist() for person in people if np.isfinite(person).any()]


def find(place: Path, names: str) -> list[Path]:
    """Files, and folders whose only file is one."""
    return [p for p in find_paths(place, names) if _array_in(p) is not None]


def _array_in(path: Path) -> Path | None:
    file = only_file(path, *_SUFFIXES, ".json") if path.is_dir() else path
    return file if file is not None and file.suffix.lower() in _SUFFIXES else None


def read(path: Path) -> ArrayPeople:
    """The array of a camera. Raises ``InputError`` where there is none of this shape."""
    file = _array_in(path)
    if file is None:
        raise InputError(f"{path}: holds no array")
    expected = "expected frames × people × points × 3 numbers: x, y, confidence"
    try:
        array = read_npy(file.read_bytes()) if file.suffix.lower() == ".npy" else _array_of(read_npz(file))
    except (OSError, ValueError, IndexError, TypeError) as error:  # the mask may be anything
        raise InputError(f"{file}: cannot be read as an array ({error}); {expected}") from None
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype.kind not in "fiu":
        raise InputError(f"{file}: an array of {array.shape} {array.dtype}; {expected}")
    numbers = np.arange(len(array))
    return ArrayPeople(path, numbers, 0, file, numbers, np.ascontiguousarray(array, np.float32))


def _array_of(arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The one array, or that called ``keypoints`` where the ``mask`` is. Raises ``ValueError``."""
    name = "keypoints" if "keypoints" in arrays or len(arrays) != 1 else next(iter(arrays))
    if name not in arrays:
        raise ValueError(f"none of {', '.join(arrays) or 'its arrays'} is called keypoints")
    array = np.array(arrays[name])
    scores = next((arrays[key] for key in ("scores", "keypoint_scores") if key in arrays), None)
    if scores is not None and array.shape[-1] == 2:
        array = np.concatenate([array, scores.reshape(*array.shape[:-1], 1)], -1)
    if "mask" in arrays:
        array[..., 2] *= arrays["mask"].reshape(array.shape[:-1]) > 0
    return array
