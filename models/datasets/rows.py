"""Rows of a data set: SPIN's training ``.npz``, one row for each person in each picture.

SPIN's keys: ``imgname``, ``center`` (N, 2), ``scale`` (N,), ``part`` (N, 24, 3), ``openpose`` (N, 25, 3),
``S`` (N, 24, 4), ``pose`` (N, 72), ``shape`` (N, 10), ``has_smpl`` (N,), ``gender`` (N,). Unknown values are
0; poses and shapes in a file without ``has_smpl`` are known, as in SPIN.

Additional keys: ``id`` (N,) dataset/subject/sequence/camera/frame; ``camera`` (N,); ``group`` (N,), equal for
the rows that show one person at one instant; ``K`` (N, 3, 3), ``dist`` (N, 8), ``R`` (N, 3, 3) and ``t``
(N, 3) of the camera, NaN where unknown; ``action`` (N,), for a table of errors.
"""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.crops import extent_box
from pipeline.archives import read_npz
from pipeline.array_types import Array
from pipeline.calibrations.checks import MAX_SKEWNESS, short
from pipeline.errors import InputError
from pipeline.files import decoding, write_bytes_atomically, writing
from pipeline.formats.keypoints.openpose import read_people
from pipeline.skeleton import BODY_25, EXTRA_24, EXTRA_24_OF_H36M_17

RowArrays = Mapping[str, NDArray[Any]]
"""Arrays of N rows by key."""

_MAX_DETECTION_DISTANCE: Final = 0.1
"""Largest mean distance of a detection from the annotated joints, in sizes of the person."""
_LIMBS: Final = tuple(BODY_25.index(n) for n in EXTRA_24.names[:12])
"""The 12 limb joints, defined alike by OpenPose and the data sets."""
_TEXTS: Final = ("imgname", "gender", "id", "camera", "action")
_SHAPES: Final[dict[str, tuple[int, ...]]] = {
    "imgname": (), "center": (2,), "scale": (), "part": (len(EXTRA_24), 3),
    "openpose": (len(BODY_25), 3), "S": (len(EXTRA_24), 4),
    "pose": (72,), "shape": (10,), "has_smpl": (), "gender": (), "id": (), "camera": (), "group": (),
    "K": (3, 3), "dist": (8,), "R": (3, 3), "t": (3,), "action": (),
}  # fmt: skip
"""Shape of each key's values in a row."""
_MAX_VALUE: Final = 1e7
"""Largest plausible number of pixels or metres."""
_NULLABLE: Final = ("center", "scale", "K", "dist", "R", "t")
"""Keys whose values are NaN where unknown."""


@dataclass(frozen=True, eq=False)
class PersonRow:
    """One person in one picture."""

    id: str
    """dataset/subject/sequence/camera/frame, the frame as six digits."""
    instant: str
    """Name of a person at an instant, equal in all views."""
    imgname: str
    """Path below the data set's folder; ``video.avi#12`` is the 13th frame of a video."""
    box: Array
    """(3,) centre x, y and side, pixels: SPIN's ``center`` and 200 times its ``scale``."""
    camera: str = ""
    action: str = ""
    part: Array = field(default_factory=lambda: np.zeros((len(EXTRA_24), 3)))
    """EXTRA_24 in the picture: x, y, 1; 0 where unknown."""
    openpose: Array = field(default_factory=lambda: np.zeros((len(BODY_25), 3)))
    S: Array = field(default_factory=lambda: np.zeros((len(EXTRA_24), 4)))
    """EXTRA_24 in the camera's axes, metres from the pelvis, 1; 0 where unknown."""
    pose: Array = field(default_factory=lambda: np.zeros(72))
    """SMPL's axis-angle, the root's body → camera."""
    shape: Array = field(default_factory=lambda: np.zeros(10))
    has_smpl: float = 0.0
    gender: str = ""
    K: Array = field(default_factory=lambda: np.full((3, 3), np.nan))
    dist: Array = field(default_factory=lambda: np.full(8, np.nan))
    """As in ``pipeline/cameras.py``."""
    R: Array = field(default_factory=lambda: np.full((3, 3), np.nan))
    t: Array = field(default_factory=lambda: np.full(3, np.nan))
    """World to camera, metres."""


@dataclass(frozen=True)
class Part:
    """A part of a data set that is read at once."""

    root: Path
    name: str
    """Folder or file below the root."""
    split: str


def to_arrays(rows: Sequence[PersonRow]) -> RowArrays:
    """Arrays of the ``.npz``, groups numbered in the order of their first row."""
    group = {instant: i for i, instant in enumerate(dict.fromkeys(r.instant for r in rows))}
    arrays: dict[str, NDArray[Any]] = {"group": np.array([group[r.instant] for r in rows], np.int64)}
    for f in fields(PersonRow):
        if f.name not in ("instant", "box"):
            values = np.array([getattr(r, f.name) for r in rows])
            # A pixel and a millimetre are far above float32's resolution.
            arrays[f.name] = values.astype(np.float32) if values.dtype.kind == "f" else values
    box = np.array([r.box for r in rows], np.float32).reshape(-1, 3)
    return arrays | {"center": box[:, :2], "scale": box[:, 2] / 200}


def write_npz(arrays: RowArrays, out: Path) -> int:
    """Write the ``.npz`` atomically; return its size, bytes.

    Raises ``InputError``: the disk is too full, or the file cannot be written.
    """
    size = sum(a.nbytes for a in arrays.values())
    buffer = io.BytesIO()
    with writing(out, "Choose another --out."):
        out.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(out.parent).free) < size:
            raise InputError(
                f"{out}: takes {size / 1e6:.0f} MB, but {free / 1e6:.0f} MB are free. Make room, or choose "
                "another --out."
            )
        np.savez(buffer, **dict[str, Any](arrays))
        write_bytes_atomically(out, buffer.getvalue())
    return size


def read_rows(file: Path) -> RowArrays:
    """Read the arrays of an ``.npz`` of rows, missing ones filled in as unknown.

    ``box`` (N, 3), centre x, y and side in pixels or NaN, replaces ``center`` and ``scale``. Files of SPIN
    lack the additional keys: there every row is a group of its own, with its number for an id. Texts are
    returned as str, numbers as float64, ``group`` as int64.

    Raises ``InputError``: the file cannot be read, lacks a required key, or has a wrong shape, type or value.
    """
    with decoding(file, "Check the path, or make it again: preprocess."):
        raw = read_npz(file, _SHAPES)
    missing = [k for k in ("imgname", "center", "scale") if k not in raw]
    if missing:
        raise InputError(f"{file}: has no {', '.join(missing)}. Give a file that `preprocess` or SPIN made.")
    n = len(np.atleast_1d(raw["imgname"]))
    for key, array in raw.items():
        if array.shape != (n, *_SHAPES[key]):
            raise InputError(f"{file}: {key} has shape {array.shape}, expected {(n, *_SHAPES[key])}.")
        if array.dtype.kind not in ("US" if key in _TEXTS else "fiub"):
            kind = "texts" if key in _TEXTS else "numbers"
            raise InputError(f"{file}: {key} is of {array.dtype}, expected {kind}.")
        if key not in _TEXTS and len(bad := np.flatnonzero(~_plausible(key, array))):
            value = short(array[bad[0]].tolist())
            raise InputError(f"{file}: {key} of row {bad[0]} is {value}, which it cannot be.")
    number = np.arange(n)
    out: dict[str, NDArray[Any]] = {}
    for key, shape in _SHAPES.items():
        if key == "group":
            out[key] = np.asarray(raw.get(key, number), np.int64)
        elif key in _TEXTS:
            out[key] = np.asarray(raw.get(key, number if key == "id" else np.full(n, "")), str)
        else:
            unknown = np.full((n, *shape), np.nan if key in ("K", "dist", "R", "t") else 0.0)
            out[key] = np.asarray(raw.get(key, unknown), np.float64)
    if "has_smpl" not in raw and {"pose", "shape"} <= set(raw):
        out["has_smpl"][:] = 1
    box = np.concatenate([out.pop("center"), 200 * out.pop("scale")[:, None]], 1)
    box[~((box[:, 2] > 0) & np.isfinite(box).all(1))] = np.nan
    return out | {"box": box}


def _plausible(key: str, values: NDArray[Any]) -> NDArray[np.bool_]:
    """True (N,) where the values (N, ...) of a row are plausible numbers."""
    x = values.reshape(len(values), math.prod(values.shape[1:])).astype(np.float64)
    unknown = np.isnan(x).any(1) & (key in _NULLABLE)
    x = np.where(np.isnan(x), 0 if key in _NULLABLE else np.inf, x)
    plausible: NDArray[np.bool_] = np.asarray((np.abs(x) < (2**53 if key == "group" else _MAX_VALUE)).all(1))
    x = np.where(plausible[:, np.newaxis], x, 0)
    if key == "K":
        plausible &= unknown | (x[:, [0, 4]] > 0).all(1)
    elif key == "R":
        r = x.reshape(-1, 3, 3)
        plausible &= unknown | (np.abs(r @ r.transpose(0, 2, 1) - np.eye(3)).max((1, 2)) < MAX_SKEWNESS)
    elif key == "group":
        plausible &= (x == np.round(x)).all(1)
    return plausible


def points_box(xy: Array) -> Array:
    """Box (3,) around points (J, 2)."""
    return extent_box(xy.min(0), xy.max(0))


def all_inside(xy: Array, size: tuple[int, int]) -> bool:
    """True if all points (J, 2) lie in a picture of this width and height."""
    return bool(((xy >= 0) & (xy < np.array(size))).all())


def to_extra_24(values: Array) -> Array:
    """Values (17, C) of H36M_17 → EXTRA_24 with a 1 appended (24, C + 1); 0 for other points."""
    out = np.zeros((len(EXTRA_24), values.shape[1] + 1))
    out[list(EXTRA_24_OF_H36M_17), :-1] = values
    out[list(EXTRA_24_OF_H36M_17), -1] = 1
    return out


def file_and_frame(imgname: str) -> tuple[str, int | None]:
    """File of a picture's name, and the number of its frame for a frame of a video, ``video.avi#12``."""
    video, _, frame = imgname.rpartition("#")
    return (video, int(frame)) if video and frame.isdecimal() else (imgname, None)


def openpose_file(folder: Path, imgname: str) -> Path:
    """Path of OpenPose's JSON of a picture, or of a video's frame, below ``folder``.

    ``S1/…/frame_000012.jpg`` → ``S1/…/frame_000012_keypoints.json``; ``S1/…/video_0.avi#12`` →
    ``S1/…/video_0/video_0_000000000012_keypoints.json``, as OpenPose names them.
    """
    name, frame = file_and_frame(imgname)
    path = Path(name)
    if frame is None:
        return folder / path.parent / f"{path.stem}_keypoints.json"
    return folder / path.parent / path.stem / f"{path.stem}_{frame:012d}_keypoints.json"


def with_detection(row: PersonRow, folder: Path) -> PersonRow:
    """Row with OpenPose's detection of its person from the results in ``folder``; unchanged without one.

    Of the people with all 12 limb joints the one nearest to the truth, as in SPIN; unlike there, none further
    away than ``_MAX_DETECTION_DISTANCE``, who is another person.
    """
    people, _ = read_people(openpose_file(folder, row.imgname), len(BODY_25))
    people = people[(people[:, _LIMBS, 2] > 0).all(1)].astype(np.float64)
    limbs = row.part[:12]
    if len(people) == 0 or not (limbs[:, 2] > 0).all():
        return row
    distance = np.linalg.norm(people[:, _LIMBS, :2] - limbs[:, :2], axis=-1).mean(1)
    nearest = int(distance.argmin())
    visible = row.part[row.part[:, 2] > 0, :2]
    if distance[nearest] > _MAX_DETECTION_DISTANCE * float((visible.max(0) - visible.min(0)).max()):
        return row
    return replace(row, openpose=np.nan_to_num(people[nearest]))


def check_picture(root: Path, imgname: str, archive: str) -> None:
    """Raise ``InputError`` when a picture of ``archive`` is not there."""
    if not (root / imgname).is_file():
        raise InputError(f"{root / imgname}: is not there. Unpack {archive} again.")


def check_openpose(folder: Path, rows: Sequence[PersonRow]) -> None:
    """Raise ``InputError`` where none of OpenPose's results belongs to any row."""
    if any(r.openpose.any() for r in rows):
        return
    example = openpose_file(folder, rows[0].imgname)
    lacking = "shows nobody at the person's place" if example.is_file() else "is not there"
    raise InputError(
        f"{folder}: no person of the data set was found by OpenPose. {example}, say, {lacking}. Expected "
        "BODY_25 JSON in the folders of the pictures, one file a picture."
    )


def import_extra(module: str) -> Any:
    """Import a library of the extra ``datasets``. Raises ``InputError`` when it is missing."""
    try:
        return import_module(module)
    except ImportError as e:
        raise InputError(f"this data set needs {module}: pip install -e '.[datasets]'") from e
