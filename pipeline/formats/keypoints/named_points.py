"""Tables of named points, one file a camera, as DeepLabCut and SLEAP write them.

DeepLabCut's CSV has rows of heads (scorer, individuals where there are several, bodyparts, coords), then one
a frame; its HDF5, also anipose's, is a table of pandas with the same heads. SLEAP's CSV has a row for each
person in each frame, ``track, frame_idx, instance.score, nose.x, nose.y, nose.score, ...``; its analysis HDF5
``tracks`` (P, 2, K, T), ``point_scores`` (P, K, T) and ``node_names``.
"""

from __future__ import annotations

import csv
import math
import pickle
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.archives import check_unpacked
from pipeline.array_types import Floats
from pipeline.errors import InputError
from pipeline.files import reading
from pipeline.formats.keypoints.arrays import ArrayPeople
from pipeline.formats.keypoints.files import KeypointFiles, find_number, find_paths
from pipeline.formats.keypoints.listed import beginning
from pipeline.pickles import unpickle_arrays
from pipeline.skeleton import BODY_25

DESCRIPTION: Final = "tables of DeepLabCut or SLEAP (csv or h5, one file a camera)"

_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_SLEAP: Final = b"track,frame_idx"
_COORDINATES: Final = ("x", "y", "likelihood")
_MAX_SPAN: Final = 1000
"""Frame numbers a row: above this, the numbers are no frame numbers."""
_MIN_POINTS: Final = 6
"""Points of BODY_25 that a file must have: the legs of a body."""
_SIDES: Final = MappingProxyType({"left": "L", "l": "L", "right": "R", "r": "R"})
_PARTS: Final = MappingProxyType(
    {name.lstrip("LR").lower(): name.lstrip("LR") for name in BODY_25.names}
    | {"pelvis": "MidHip", "littletoe": "SmallToe", "pinkytoe": "SmallToe"}
)
"""Names of points without a side, in small letters."""


@dataclass(frozen=True, eq=False)
class NamedPeople(ArrayPeople):
    """People of a table, as in the file."""

    point_names: tuple[str, ...] = ()

    unit = "frames"
    lists_empty_frames = False

    def in_known_order(self, mapping: Mapping[str, str]) -> KeypointFiles:
        where = "recording.yaml: keypoints.mapping"
        known = {found: name for name in self.point_names if (found := _body_25_name(name))}
        for wanted, name in mapping.items():
            point = _body_25_name(wanted)
            if point is None:
                raise InputError(f"{where}: {wanted!r} is none of {', '.join(BODY_25.names)}")
            if name not in self.point_names:
                raise InputError(
                    f"{where}: {self.array_file} has no point {name!r}; it has {', '.join(self.point_names)}"
                )
            known[point] = name
        if len(known) < _MIN_POINTS:
            raise InputError(
                f"{self.array_file}: of its points, {', '.join(self.point_names)}, {len(known)} are told by "
                "their names; state the others in recording.yaml, keypoints: {mapping: {LKnee: "
                f"{self.point_names[0]}, ...}}}}, by the names {', '.join(BODY_25.names)}"
            )
        people = np.full((*self.people_px.shape[:2], len(BODY_25), 3), np.nan, np.float32)
        for point, name in known.items():
            people[:, :, BODY_25.index(point)] = self.people_px[:, :, self.point_names.index(name)]
        return _InBody25(self.path, self.numbers, 0, self.array_file, self.row_numbers, people)


class _InBody25(ArrayPeople):
    unit = "frames"
    lists_empty_frames = False
    order_known_by = "by the names of its points"

    @property
    def known_order(self) -> str:
        return "body_25"


def _body_25_name(name: str) -> str | None:
    """BODY_25's point that a name says: LKnee of left_knee, KneeLeft, leftknee or lknee."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    for side in _SIDES:
        if words and words[0].startswith(side) and words[0].removeprefix(side) in _PARTS:
            words[:1] = [side, words[0].removeprefix(side)]
    side = "".join(_SIDES[word] for word in words if word in _SIDES)
    found = side + _PARTS.get("".join(word for word in words if word not in _SIDES), "?")
    return found if found in BODY_25.names else None


def find(place: Path, names: str) -> list[Path]:
    """Files, and folders with one; of a CSV and an HDF5 with one name, the CSV."""
    matching = find_paths(place, names)
    tables = _tables(matching)
    return [p for p in matching if p in tables or (p.is_dir() and len(_tables(p.iterdir())) == 1)]


def _tables(paths: Iterable[Path]) -> list[Path]:
    files = [p for p in paths if p.suffix.lower() in (".csv", ".h5") and _is_one(p)]
    csv_stems = {p.stem for p in files if p.suffix.lower() == ".csv"}
    return [p for p in files if p.suffix.lower() == ".csv" or p.stem not in csv_stems]


def _is_one(path: Path) -> bool:
    if not path.is_file():
        return False
    head = beginning(path).removeprefix(b"\xef\xbb\xbf")
    if path.suffix.lower() == ".h5":
        return head.startswith(_HDF5)
    return head.startswith(_SLEAP) or (head.startswith(b"scorer") and b"bodyparts" in head)


def read(path: Path) -> NamedPeople:
    """The table of a camera, a file or the only one in a folder. Raises ``InputError`` where it is damaged or
    something else."""
    folder, path = path, _tables(path.iterdir())[0] if path.is_dir() else path
    try:
        with reading(path):
            numbers, names, people = _from_hdf5(path) if path.suffix.lower() == ".h5" else _from_csv(path)
    except (ValueError, LookupError, TypeError, RuntimeError, csv.Error, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: cannot be read as {DESCRIPTION}: {error}") from None
    if not len(numbers) or not names:
        raise InputError(f"{path}: holds no frame")
    first, last = int(numbers.min()), int(numbers.max())
    if first < 0 or last > _MAX_SPAN * len(numbers):
        raise InputError(f"{path}: {len(numbers)} rows are numbered {first} to {last}: are these frames?")
    order = np.argsort(numbers, kind="stable")
    rows = numbers[order]
    return NamedPeople(folder, np.unique(rows), 0, path, rows, people[order], names)


_Table = tuple[NDArray[np.int64], tuple[str, ...], Floats]
"""Frame number of each row, names of the points, and people (rows, P, K, 3) of x, y, confidence."""


def _from_csv(path: Path) -> _Table:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream)
        heads = [next(rows, [""])]
        if heads[0][0] == "track":
            names = tuple(head.removesuffix(".x") for head in heads[0] if head.endswith(".x"))
            at = [heads[0].index(f"{name}.{c}") for name in names for c in ("x", "y", "score")]
            frames, values = _cells(rows, 1, at)
            return frames, names, values.reshape(-1, 1, len(names), 3)
        while heads[-1][0] != "coords":
            heads.append(next(rows, [""] if len(heads) < 5 else []))
        first = min(i for i, coordinate in enumerate(heads[-1]) if coordinate in _COORDINATES)
        frames, values = _cells(rows, first - 1, range(first, len(heads[-1])))
        return frames, *_by_heads([*zip(*(row[first:] for row in heads), strict=True)], values)


def _cells(rows: Iterable[list[str]], frame: int, at: Sequence[int]) -> tuple[NDArray[np.int64], Floats]:
    """Frame number (T,) and cells (T, N) of each row; NaN for an empty one."""
    numbers, values = array("q"), array("f")
    for row in rows:
        numbers.append(_frame_number(row[frame]))
        values.extend(float(row[i]) if row[i] else math.nan for i in at)
    return np.array(numbers, np.int64), np.array(values, np.float32).reshape(len(numbers), len(at))


def _from_hdf5(path: Path) -> _Table:
    try:
        import h5py
    except ImportError:
        raise InputError(
            f"{path}: reading HDF5 needs h5py, pip install 'multispin[datasets]'; or save it as CSV"
        ) from None
    with h5py.File(path) as file:
        sizes = list[int]()
        file.visititems(lambda _, node: sizes.append(getattr(node, "nbytes", 0)))
        check_unpacked(sum(sizes), path.stat().st_size)
        if "tracks" in file:
            tracks, scores = np.array(file["tracks"], np.float32), np.array(file["point_scores"], np.float32)
            names = tuple(name.decode() for name in file["node_names"][:])
            people = np.concatenate([tracks, scores[:, None]], 1).transpose(3, 0, 2, 1)
            return np.arange(len(people)), names, people
        tables = [file[key]["table"] for key in file if "table" in file[key]]
        if not tables:
            raise ValueError("neither tracks of SLEAP nor a table of DeepLabCut")
        rows = tables[0][:]
        columns = unpickle_arrays(bytes(tables[0].attrs["values_block_0_kind"]))
        numbers = rows["index"]
        if numbers.dtype.kind == "S":
            numbers = np.array([_frame_number(name.decode()) for name in numbers])
        return numbers.astype(np.int64), *_by_heads(columns, rows["values_block_0"])


def _by_heads(columns: Sequence[Sequence[str]], values: NDArray[Any]) -> tuple[tuple[str, ...], Floats]:
    """Points' names and people (T, P, K, 3) of columns with heads (scorer, ..., body part, coordinate)."""
    place = {tuple(column[-3:]): i for i, column in enumerate(columns)}
    whose = [*dict.fromkeys(column[0] for column in place)]
    names = tuple(dict.fromkeys(column[1] for column in place))
    out = np.zeros((len(values), len(whose), len(names), 3), np.float32)
    out[..., 2] = 1  # of points labelled by hand, which have no likelihood
    for (who, name, coordinate), i in place.items():
        if coordinate in _COORDINATES:
            out[:, whose.index(who), names.index(name), _COORDINATES.index(coordinate)] = values[:, i]
    return names, out


def _frame_number(name: str) -> int:
    """Last number in the name of a picture, or the number that it is. Raises ``ValueError``."""
    if (found := find_number(Path(name).stem)) is None:
        raise ValueError(f"no frame number in {name!r}")
    return int(found[1])
