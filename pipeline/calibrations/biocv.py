"""BioCV's calibrations: one text file a camera, ``x_cam = R x_world + t``, millimetres.

Lines, empty ones aside: width, height, K in three rows, [R t] in three rows or four, and k1 k2 p1 p2 k3.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from pipeline.calibrations.checks import (
    Camera,
    distortion,
    files_in,
    first_bytes,
    numbers,
    picture_size,
    rig_of,
    rotation,
)
from pipeline.cameras import Rig
from pipeline.errors import InputError

DESCRIPTION: Final = "BioCV (one .calib a camera)"

_SIZE_LINES: Final = re.compile(rb"\d+\s*\n\d+\s*\n\s*[\d.]+[ \t]+[\d.]+[ \t]+[\d.]+\s*\n")
"""Width, height and the first row of K."""


def find(folder: Path) -> list[tuple[Path, ...]]:
    """All files called ``.calib``, or without a suffix and with such lines: one calibration."""
    files = tuple(files_in(folder, ".calib"))
    if not files:
        with os.scandir(folder) as found:
            names = sorted(entry.name for entry in found if "." not in entry.name and entry.is_file())
        files = tuple(p for name in names if _SIZE_LINES.match(first_bytes(p := folder / name)))
    return [files] if files else []


def read(files: tuple[Path, ...]) -> Rig:
    """A camera of each file, called after the file: ``00`` of ``00.mp4.calib``. Metres."""
    return rig_of(files[0], [_camera(path) for path in files])


def _camera(path: Path) -> Camera:
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text: {error}") from error
    if [len(row) for row in rows[:8]] != [1, 1, 3, 3, 3, 4, 4, 4]:
        raise InputError(f"{path}: expected lines of width, height, three of K and three of [R t]")
    rows = [row for i, row in enumerate(rows) if i != 8 or len(row) != 4 or row[3] not in ("1", "1.0")]
    if len(rows) != 9:
        raise InputError(f"{path}: expected one line of distortion after [R t], got {len(rows) - 8}")
    pose = numbers(rows[5:8], 12, f"{path}, [R t]").reshape(3, 4)
    return Camera(
        Path(path.stem).stem,
        numbers(rows[2:5], 9, f"{path}, K").reshape(3, 3),
        distortion(rows[8], f"{path}, distortion"),
        rotation(pose[:, :3], f"{path}, R"),
        pose[:, 3] / 1000,
        picture_size([rows[0][0], rows[1][0]], f"{path}, size"),
    )
