"""Rows of a data set: SPIN's training ``.npz``, a row a person in a picture.

SPIN's keys: ``imgname``, ``center`` (N, 2), ``scale`` (N,), ``part`` (N, 24, 3), ``openpose`` (N, 25, 3),
``S`` (N, 24, 4), ``pose`` (N, 72), ``shape`` (N, 10), ``has_smpl`` (N,), ``gender`` (N,). What is not known
is 0; poses and shapes without ``has_smpl`` are known, as SPIN has it.

And of our own: ``id`` (N,) dataset/subject/sequence/camera/frame; ``camera`` (N,); ``group`` (N,), one number
for the rows that show the same person at the same instant; ``K`` (N, 3, 3), ``dist`` (N, 8), ``R`` (N, 3, 3)
and ``t`` (N, 3) of the camera, NaN where not known; ``action`` (N,), for a table of errors.
"""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.crops import extent_box
from pipeline.archives import read_npz
from pipeline.calibrations.checks import MAX_SKEWNESS, short
from pipeline.errors import InputError
from pipeline.files import write_bytes_atomically
from pipeline.formats.keypoints.openpose import read_people
from pipeline.skeleton import BODY_25, EXTRA_24, EXTRA_24_OF_H36M_17

Array = NDArray[np.float64]
RowArrays = Mapping[str, NDArray[Any]]
"""Arrays of N rows by name; see above."""

_FAR: Final = 0.1
"""Mean distance, by the person's size, beyond which a detection is of somebody else."""
_LIMBS: Final = tuple(BODY_25.index(n) for n in EXTRA_24.names[:12])
"""The 12 joints of the limbs, which OpenPose and the data sets mean alike."""


@dataclass(frozen=True, eq=False)
class PersonRow:
    """One person in one picture."""

    id: str
    """dataset/subject/sequence/camera/frame, the frame as six digits."""
    instant: str
    """Equal in all views of a person at an instant."""
    imgname: str
    """Below the data set's folder; ``video.avi#12`` is the 13th frame of a video."""
    box: Array
    """(3,) centre x, y and side, pixels: SPIN's ``center`` and 200 times its ``scale``."""
    camera: str = ""
    action: str = ""
    part: Array = field(default_factory=lambda: np.zeros((len(EXTRA_24), 3)))
    """EXTRA_24 in the picture: x, y, 1; 0 where not known."""
    openpose: Array = field(default_factory=lambda: np.zeros((len(BODY_25), 3)))
    S: Array = field(default_factory=lambda: np.zeros((len(EXTRA_24), 4)))
    """EXTRA_24 in the camera's axes, metres from the pelvis, 1; 0 where not known."""
    pose: Array = field(default_factory=lambda: np.zeros(72))
    """SMPL's axis-angle, the root's into the camera's axes."""
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
    """A piece of a data set that is read in one go."""

    root: Path
    name: str
    """Its folder or file below the root."""
    split: str


def to_arrays(rows: Sequence[PersonRow]) -> RowArrays:
    """The arrays of the ``.npz``. Groups are numbered in the order of their first row."""
    number = {instant: i for i, instant in enumerate(dict.fromkeys(r.instant for r in rows))}
    arrays: dict[str, NDArray[Any]] = {"group": np.array([number[r.instant] for r in rows], np.int64)}
    for f in fields(PersonRow):
        if f.name not in ("instant", "box"):
            values = np.array([getattr(r, f.name) for r in rows])
            # A pixel and a millimetre are far above float32's resolution.
            arrays[f.name] = values.astype(np.float32) if values.dtype.kind == "f" else values
    box = np.array([r.box for r in rows], np.float32).reshape(-1, 3)
    return arrays | {"center": box[:, :2], "scale": box[:, 2] / 200}


def write_npz(arrays: RowArrays, out: Path) -> int:
    """Write the ``.npz``, whole or not at all; its bytes.

    Raises:
        InputError: there is no room, or it cannot be written.
    """
    size = sum(a.nbytes for a in arrays.values())
    buffer = io.BytesIO()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(out.parent).free) < size:
            raise InputError(
                f"{out}: takes {size / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free. Make room, or choose "
                "another --out."
            )
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_bytes_atomically(out, buffer.getvalue())
    except OSError as e:
        raise InputError(f"{out}: cannot be written ({e.strerror or e}). Choose another --out.") from e
    return size


_TEXTS: Final = ("imgname", "gender", "id", "camera", "action")
_SHAPES: Final[dict[str, tuple[int, ...]]] = {
    "imgname": (), "center": (2,), "scale": (), "part": (len(EXTRA_24), 3),
    "openpose": (len(BODY_25), 3), "S": (len(EXTRA_24), 4),
    "pose": (72,), "shape": (10,), "has_smpl": (), "gender": (), "id": (), "camera": (), "group": (),
    "K": (3, 3), "dist": (8,), "R": (3, 3), "t": (3,), "action": (),
}  # fmt: skip


def read_rows(file: Path) -> RowArrays:
    """The arrays of an ``.npz`` of rows, those that it lacks filled in as not known.

    ``box`` (N, 3), centre x, y and side in pixels, takes the place of ``center`` and ``scale``; NaN without
    one. Files of SPIN lack ``id`` and what follows it: there every row is a group of its own, with its number
    for an id. Texts come as str, numbers as float64, ``group`` as int64.

    Raises:
        InputError: it cannot be read, lacks names, centres or scales of pictures, or an array has a shape
            that it should not have.
    """
    try:
        found = read_npz(file, _SHAPES)
    except OSError as e:
        raise InputError(f"{file}: cannot be read ({e.strerror or e}). Check the path.") from e
    except ValueError as e:
        raise InputError(f"{file}: no .npz of arrays, or damaged ({e}). Make it again: preprocess.") from e
    lacks = [k for k in ("imgname", "center", "scale") if k not in found]
    if lacks:
        raise InputError(f"{file}: has no {', '.join(lacks)}. Give a file that `preprocess` or SPIN made.")
    n = len(np.atleast_1d(found["imgname"]))
    for key, array in found.items():
        if array.shape != (n, *_SHAPES[key]):
            raise InputError(f"{file}: {key} has shape {array.shape}, expected {(n, *_SHAPES[key])}.")
        if array.dtype.kind not in ("US" if key in _TEXTS else "fiub"):
            kind = "texts" if key in _TEXTS else "numbers"
            raise InputError(f"{file}: {key} is of {array.dtype}, expected {kind}.")
        if key not in _TEXTS and len(bad := np.flatnonzero(~_possible(key, array))):
            value = short(array[bad[0]].tolist())
            raise InputError(f"{file}: {key} of row {bad[0]} is {value}, which it cannot be.")
    numbered = np.arange(n)
    out: dict[str, NDArray[Any]] = {}
    for key, shape in _SHAPES.items():
        if key == "group":
            out[key] = np.asarray(found.get(key, numbered), np.int64)
        elif key in _TEXTS:
            out[key] = np.asarray(found.get(key, numbered if key == "id" else np.full(n, "")), str)
        else:
            blank = np.full((n, *shape), np.nan if key in ("K", "dist", "R", "t") else 0.0)
            out[key] = np.asarray(found.get(key, blank), np.float64)
    if "has_smpl" not in found and {"pose", "shape"} <= set(found):
        out["has_smpl"][:] = 1
    box = np.concatenate([out.pop("center"), 200 * out.pop("scale")[:, None]], 1)
    box[~((box[:, 2] > 0) & np.isfinite(box).all(1))] = np.nan
    return out | {"box": box}


_MOST: Final = 1e7
"""Pixels or metres that no row is about."""
_MAY_LACK: Final = ("center", "scale", "K", "dist", "R", "t")
"""NaN where they are not known."""


def _possible(key: str, values: NDArray[Any]) -> NDArray[np.bool_]:
    """(N,) True where the values (N, ...) of a row are numbers that there can be."""
    x = values.reshape(len(values), math.prod(values.shape[1:])).astype(np.float64)
    unknown = np.isnan(x).any(1) & (key in _MAY_LACK)
    x = np.where(np.isnan(x), 0 if key in _MAY_LACK else np.inf, x)
    possible: NDArray[np.bool_] = np.asarray((np.abs(x) < (2**53 if key == "group" else _MOST)).all(1))
    x = np.where(possible[:, np.newaxis], x, 0)
    if key == "K":
        possible &= unknown | (x[:, [0, 4]] > 0).all(1)
    elif key == "R":
        r = x.reshape(-1, 3, 3)
        possible &= unknown | (np.abs(r @ r.transpose(0, 2, 1) - np.eye(3)).max((1, 2)) < MAX_SKEWNESS)
    elif key == "group":
        possible &= (x == np.round(x)).all(1)
    return possible


def box_of(xy: Array) -> Array:
    """Box (3,) around points (J, 2)."""
    return extent_box(xy.min(0), xy.max(0))


def all_inside(xy: Array, size: tuple[int, int]) -> bool:
    """True if all points (J, 2) lie in a picture of this width and height."""
    return bool(((xy >= 0) & (xy < np.array(size))).all())


def on_24(values: Array) -> Array:
    """Values (J, C) of H36M_17 at their places among EXTRA_24, with a 1 behind: (J, C + 1); 0 elsewhere."""
    out = np.zeros((len(EXTRA_24), values.shape[1] + 1))
    out[list(EXTRA_24_OF_H36M_17), :-1] = values
    out[list(EXTRA_24_OF_H36M_17), -1] = 1
    return out


def file_and_frame(imgname: str) -> tuple[str, int | None]:
    """The file of a picture's name, and which frame of it where that is a video: ``video.avi#12``."""
    video, _, frame = imgname.rpartition("#")
    return (video, int(frame)) if video and frame.isdecimal() else (imgname, None)


def openpose_file(folder: Path, imgname: str) -> Path:
    """Where OpenPose's JSON of a picture, or of a video's frame, lies below ``folder``.

    ``S1/…/frame_000012.jpg`` → ``S1/…/frame_000012_keypoints.json``; ``S1/…/video_0.avi#12`` →
    ``S1/…/video_0/video_0_000000000012_keypoints.json``, as OpenPose names them.
    """
    name, frame = file_and_frame(imgname)
    path = Path(name)
    if frame is None:
        return folder / path.parent / f"{path.stem}_keypoints.json"
    return folder / path.parent / path.stem / f"{path.stem}_{frame:012d}_keypoints.json"


def detected(folder: Path | None, imgname: str, part: Array) -> Array:
    """OpenPose's detection (K, 3) of the person whose true joints are ``part`` (J, 3), zeros for none.

    Of the people with all 12 limb joints it is the one nearest to the truth, as in SPIN; where even that one
    is further away than a tenth of the person's size, it is somebody else, whom SPIN keeps.
    """
    nothing = np.zeros((len(BODY_25), 3))
    if folder is None:
        return nothing
    people, _ = read_people(openpose_file(folder, imgname), len(BODY_25))
    whole = people[(people[:, _LIMBS, 2] > 0).all(1)].astype(np.float64)
    limbs = part[:12]
    if len(whole) == 0 or not (limbs[:, 2] > 0).all():
        return nothing
    apart = np.linalg.norm(whole[:, _LIMBS, :2] - limbs[:, :2], axis=-1).mean(1)
    best = int(apart.argmin())
    known = part[part[:, 2] > 0, :2]
    if apart[best] > _FAR * float((known.max(0) - known.min(0)).max()):
        return nothing
    found: Array = np.nan_to_num(whole[best])
    return found


def check_picture(root: Path, imgname: str, archive: str) -> None:
    """Raises ``InputError`` when a picture is not there; ``archive`` holds it."""
    if not (root / imgname).is_file():
        raise InputError(f"{root / imgname}: is not there. Unpack {archive} again.")


def check_openpose(folder: Path | None, rows: Sequence[PersonRow]) -> None:
    """Raises ``InputError`` when OpenPose's results were given and none belongs to any row."""
    if folder is None or any(r.openpose.any() for r in rows):
        return
    example = openpose_file(folder, rows[0].imgname)
    lacking = "shows nobody at the person's place" if example.is_file() else "is not there"
    raise InputError(
        f"{folder}: no person of the data set was found by OpenPose. {example}, say, {lacking}. Expected "
        "BODY_25 JSON in the folders of the pictures, one file a picture."
    )


def optional(module: str) -> Any:
    """Import a library of the extra ``datasets``. Raises ``InputError`` when it is missing."""
    try:
        return import_module(module)
    except ImportError as e:
        raise InputError(f"this data set needs {module}: pip install -e '.[datasets]'") from e


def damaged(file: Path, error: Exception) -> InputError:
    """Error of a file that cannot be read, with the first words of the reason."""
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return InputError(f"{file}: cannot be read, not as expected, or damaged ({reason}). Download it again.")
