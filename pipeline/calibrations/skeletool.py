"""Skeletool's ``camera.calibration``, as of MPI-INF-3DHP: x_cam = R x_world + t, mm, no distortion."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from pipeline.array_types import Array
from pipeline.calibrations.checks import Camera, files_in, numbers, picture_size, rig_of, rotation
from pipeline.cameras import Rig
from pipeline.errors import InputError

DESCRIPTION: Final = "MPI-INF-3DHP (camera.calibration)"

_HEAD: Final = "Skeletool Camera Calibration File"


def find(folder: Path) -> list[tuple[Path, ...]]:
    """Files called ``.calibration``."""
    return [(p,) for p in files_in(folder, ".calibration")]


def read(files: tuple[Path, ...]) -> Rig:
    """Cameras of one file, by the words in it, whatever the spaces and the order of the lines. Metres."""
    (path,) = files
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text: {error}") from error
    if not lines or not lines[0].startswith(_HEAD):
        raise InputError(f"{path}: does not begin with {_HEAD!r}")
    found: dict[str, dict[str, list[str]]] = {}
    name = ""
    for line in lines[1:]:
        word, *values = line.split() or [""]
        if word == "name":
            name = " ".join(values)
            if name in found:
                raise InputError(f"{path}: two cameras are named {name!r}")
            found[name] = {}
        elif word and name:
            found[name][word] = values
    return rig_of(path, [_camera(path, name, values) for name, values in found.items()])


def _camera(path: Path, name: str, values: dict[str, list[str]]) -> Camera:
    where = f"{path}, camera {name!r}"

    def matrix(key: str) -> Array:
        if key not in values:
            raise InputError(f"{where}: {key} is missing")
        return numbers(values[key], 16, f"{where}, {key}").reshape(4, 4)

    extrinsic = matrix("extrinsic")
    return Camera(
        name,
        matrix("intrinsic")[:3, :3],
        np.zeros(8),
        rotation(extrinsic[:3, :3], f"{where}, extrinsic"),
        extrinsic[:3, 3] / 1000,
        picture_size(values["size"], f"{where}, size") if "size" in values else (0, 0),
    )
