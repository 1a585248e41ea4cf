"""COLMAP's model: ``cameras.txt`` with ``images.txt``, or ``.bin``, x_cam = R x_world + t, in no unit.

Pixel (0.5, 0.5) is the centre of COLMAP's first pixel. A camera is called after its folder among the images;
where all are in one and have names, not numbers, after its image.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from pipeline.array_types import Array
from pipeline.calibrations.checks import (
    Camera,
    files_in,
    first_bytes,
    numbers,
    picture_size,
    rig_of,
    rotation_of,
)
from pipeline.cameras import Rig
from pipeline.errors import InputError

DESCRIPTION: Final = "COLMAP model (cameras.txt with images.txt, or .bin)"

_STEMS: Final = ("cameras", "images")
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
_BINARY_MODELS: Final = (
    "SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV", "FOV",
    "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE",
)  # fmt: skip
"""Models by their numbers in binary files."""
_BINARY_PARAMETERS: Final = (3, 4, 4, 5, 8, 8, 12, 5, 4, 5, 12)
_MOST_OF_ONE_LENS: Final = 20
"""Pictures called frame_0001, frame_0002, ... of one lens above which a camera moved between them."""
_OF_CAMERA: Final = re.compile(r"(?i)(?<![a-z])(cam|camera|view)[ _.-]?$")
"""Beginning of names of pictures that say each to be of another camera: cam01 to cam24."""
_HEAD: Final = re.compile(rb"(# .*\n)*# .*list with (one line|two lines)")
_STILL: Final = 1e-2
"""Largest difference of a rotation matrix from image to image of a camera that stands still."""


def find(folder: Path) -> list[tuple[Path, ...]]:
    """The pair, or the half of it that lies there and looks like it."""
    named = [p for p in files_in(folder, ".txt", ".bin") if p.stem.lower() in _STEMS]
    text = tuple(p for p in named if p.suffix.lower() == ".txt" and _HEAD.match(first_bytes(p)))
    found = text or tuple(p for p in named if p.suffix.lower() == ".bin")
    return [found] if found else []


def read(files: tuple[Path, ...]) -> Rig:
    """A camera for each folder of images, or image; lengths in the model's unit."""
    if len(files) == 1:
        other = _STEMS[1 - _STEMS.index(files[0].stem.lower())] + files[0].suffix
        raise InputError(f"{files[0]} is half of a calibration: {other} is missing beside it")
    lenses = {row[0]: row for _, row in _rows(files[0], every=1)}
    cameras: dict[str, Camera] = {}
    rows = _rows(files[1], every=2)
    for line, row in rows:
        if len(row) < 10:
            where = f"{files[1]}, line {line}"
            raise InputError(f"{where}: expected ID, QW QX QY QZ, TX TY TZ, CAMERA_ID and NAME")
    folders = {_image(row).parent for _, row in rows}
    starts = {re.sub(r"\d+$", "", _image(row).stem) for _, row in rows}
    one_lens = len(folders) == len(starts) == len({row[8] for _, row in rows}) == 1
    if one_lens and len(rows) > _MOST_OF_ONE_LENS and not any(map(_OF_CAMERA.search, starts)):
        raise InputError(
            f"{files[1]}: {len(rows)} images of one lens, the first called {_image(rows[0][1]).name}: only "
            "cameras that stand still are read; where each image is of another, put it into a folder called "
            "after its camera"
        )
    for line, row in rows:
        where = f"{files[1]}, line {line}"
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


def _image(row: Sequence[Any]) -> PurePosixPath:
    return PurePosixPath(" ".join(row[9:]).replace("\\", "/"))


def _rows(path: Path, every: int) -> list[tuple[int, list[Any]]]:
    """Words of each line, or each second one, that is no comment, and the line's number."""
    if path.suffix.lower() == ".bin":
        return _binary_rows(path, cameras=every == 1)
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


def _binary_rows(path: Path, *, cameras: bool) -> list[tuple[int, list[Any]]]:
    """The words that a file of the text model has, from the binary one's."""
    end, rows = path.stat().st_size, []
    with path.open("rb") as file:

        def take(form: str) -> tuple[Any, ...]:
            content = file.read(struct.calcsize(f"<{form}"))
            if len(content) < struct.calcsize(f"<{form}"):
                raise InputError(f"{path}: cut short, or not COLMAP's")
            return struct.unpack(f"<{form}", content)

        for n in range(1, take("Q")[0] + 1):
            if cameras:
                number, model, *size = take("iiQQ")
                if not 0 <= model < len(_BINARY_MODELS):
                    raise InputError(f"{path}, camera {number}: model {model} is unknown")
                rows.append(
                    (n, [str(number), _BINARY_MODELS[model], *size, *take(f"{_BINARY_PARAMETERS[model]}d")])
                )
                continue
            *pose, lens = take("i7di")
            name = b"".join(iter(lambda: take("c")[0], b"\0"))
            points = 24 * take("Q")[0]
            if points > end - file.tell():
                raise InputError(f"{path}: cut short, or not COLMAP's")
            file.seek(points, 1)
            rows.append((n, [*pose, str(lens), name.decode("utf-8", "replace")]))
    return rows


def _camera(name: str, row: list[Any], turn: Array, t: Array, path: Path) -> Camera:
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
