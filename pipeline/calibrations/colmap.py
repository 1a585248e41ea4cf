"""COLMAP's text model: ``cameras.txt`` with ``images.txt``, x_cam = R x_world + t, in no unit.

Pixel (0.5, 0.5) is the centre of COLMAP's first pixel. A camera is called after its folder among the images;
where all are in one and have names, not numbers, after its image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from pipeline.array_types import Array
from pipeline.calibrations.checks import (
    Camera,
    files_in,
    numbers,
    picture_size,
    rig_of,
    rotation_of,
)
from pipeline.cameras import Rig
from pipeline.errors import InputError

DESCRIPTION: Final = "COLMAP text model (cameras.txt with images.txt)"

_FILES: Final = ("cameras.txt", "images.txt")
_MODELS: Final = {
    "SIMPLE_PINHOLE": (1, ()),
    "PINHOLE": (2, ()),
    "SIMPLE_RADIAL": (1, (0,)),
    "RADIAL": (1, (0, 1)),
    "OPENCV": (2, (0, 1, 2, 3)),
    "FULL_OPENCV": (2, (0, 1, 2, 3, 4, 5, 6, 7)),
    "SIMPLE_RADIAL_FISHEYE": (1, (0,)),
    "RADIAL_FISHEYE": (1, (0, 1)),
    "OPENCV_FISHEYE": (2, (0, 1, 2, 3)),
}
"""Focal lengths of a model, and the places of its coefficients in OpenCV's order; between them cx and cy."""
_STILL: Final = 1e-2
"""Largest difference of a rotation matrix from image to image of a camera that stands still."""


def find(folder: Path) -> list[tuple[Path, ...]]:
    """The pair, or the half of it that lies there and looks like it."""
    found = tuple(p for p in files_in(folder, ".txt") if p.name.lower() in _FILES and _is_one(p))
    return [found] if found else []


def _is_one(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(400)
    except OSError:
        return False
    return head.startswith(b"# ") and (b"list with one line" in head or b"list with two lines" in head)


def read(files: tuple[Path, ...]) -> Rig:
    """A camera for each folder of images, or image; lengths in the model's unit."""
    if len(files) == 1:
        other = _FILES[1 - _FILES.index(files[0].name.lower())]
        raise InputError(f"{files[0]} is half of a calibration: {other} is missing beside it")
    lenses = {row[0]: row for _, row in _rows(files[0], every=1)}
    cameras: dict[str, Camera] = {}
    rows = _rows(files[1], every=2)
    folders = {_image(row).parent for _, row in rows}
    for line, row in rows:
        where = f"{files[1]}, line {line}"
        if len(row) < 10:
            raise InputError(f"{where}: expected ID, QW QX QY QZ, TX TY TZ, CAMERA_ID and NAME")
        if row[8] not in lenses:
            raise InputError(f"{where}: no camera {row[8]} in {files[0].name}")
        image = _image(row)
        by_image = not image.parent.name or (len(folders) == 1 and not image.stem.isdecimal())
        name = image.stem if by_image else image.parent.name
        w, x, y, z = numbers(row[1:5], 4, f"{where}, QW QX QY QZ")
        turn = rotation_of(np.array([x, y, z, w]), where)
        camera = _camera(name, lenses[row[8]], turn, numbers(row[5:8], 3, f"{where}, TX TY TZ"), files[0])
        kept = cameras.setdefault(name, camera)
        if np.abs(kept.R - turn).max() > _STILL:
            raise InputError(f"{where}: camera {name!r} moves from image to image: only fixed ones are read")
    return rig_of(files[1], list(cameras.values()))


def _image(row: Sequence[str]) -> PurePosixPath:
    return PurePosixPath(" ".join(row[9:]).replace("\\", "/"))


def _rows(path: Path, every: int) -> list[tuple[int, list[str]]]:
    """Words of each line, or each second one, that is no comment, and the line's number."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text: {error}") from error
    counted = re.search(r"^# Number of (?:cameras|images): (\d+)", text, re.MULTILINE)
    lines = [(n, line.split()) for n, line in enumerate(text.splitlines(), 1) if not line.startswith("#")]
    rows = [(n, words) for n, words in lines[::every] if words]
    if counted and len(rows) != int(counted[1]):
        raise InputError(f"{path}: holds {len(rows)} of {counted[1]} that it counts: was it cut short?")
    return rows


def _camera(name: str, row: list[str], turn: Array, t: Array, path: Path) -> Camera:
    where = f"{path}, camera {row[0]}"
    if len(row) < 5 or row[1] not in _MODELS:
        known = ", ".join(_MODELS)
        raise InputError(f"{where}: expected ID, model, width, height and numbers; models: {known}")
    focals, places = _MODELS[row[1]]
    given = numbers(row[4:], focals + 2 + len(places), f"{where}, {row[1]}")
    (fx, fy), (cx, cy) = given[[0, focals - 1]], given[focals : focals + 2] - 0.5
    dist = np.zeros(8)
    dist[list(places)] = given[focals + 2 :]
    return Camera(
        name,
        np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
        dist,
        turn,
        t,
        picture_size(row[2:4], f"{where}, size"),
        row[1].endswith("FISHEYE"),
    )
