"""XRPrimer's calibrations, as of XRMoCap: one JSON file a camera, metres, OpenCV's convention.

What it calls fisheye is OpenCV's rational model with k1 to k6, p1 and p2, not ``cv2.fisheye``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.calibrations.checks import (
    Camera,
    distortion,
    files_in,
    first_bytes,
    numbers,
    picture_size,
    posed,
    rig_of,
    rotation,
    short,
)
from pipeline.cameras import MAX_CAMERAS, Rig
from pipeline.errors import InputError

DESCRIPTION: Final = "XRPrimer JSON (one file a camera)"

_ORDER: Final = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")


def find(folder: Path) -> list[tuple[Path, ...]]:
    """All JSON files that have ``extrinsic_r`` near their beginning: one calibration.

    Where there are more files than a recording has cameras, they are keypoints, and none is opened."""
    there = files_in(folder, ".json")
    files = tuple(p for p in there if len(there) <= MAX_CAMERAS and b'"extrinsic_r"' in first_bytes(p))
    return [files] if files else []


def read(files: tuple[Path, ...]) -> Rig:
    """A camera of each file."""
    return rig_of(files[0], [_camera(path) for path in files])


def _camera(path: Path) -> Camera:
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(table, dict):
        raise InputError(f"{path}: expected the table of one camera, got {short(table)}")

    def value(key: str) -> Any:
        if key not in table:
            raise InputError(f"{path}: {key} is missing")
        return table[key]

    if (convention := table.get("convention", "opencv")) != "opencv":
        raise InputError(f"{path}: convention {short(convention)} is not supported; convert it to opencv")
    if any(np.ravel(table.get("xi", 0))):
        raise InputError(f"{path}: an omnidirectional lens (xi) is not supported; calibrate it as a fisheye")
    name = table.get("name") or path.stem
    intrinsic = numbers(value("intrinsic"), (9, 16), f"{path}, intrinsic")
    side = 3 if intrinsic.size == 9 else 4
    k = np.concatenate([intrinsic.reshape(side, side)[:2, :3], [[0, 0, 1]]])  # of 4 × 4 rows, z is the last
    camera = Camera(
        str(name),
        k,
        distortion([_number(table, key) for key in _ORDER], f"{path}, {_ORDER[0]} to {_ORDER[-1]}"),
        rotation(value("extrinsic_r"), f"{path}, extrinsic_r"),
        numbers(value("extrinsic_t"), 3, f"{path}, extrinsic_t"),
        picture_size([value("width"), value("height")], f"{path}, width and height"),
    )
    if table.get("world2cam", False):
        return camera
    return posed(Camera(camera.name, camera.K, camera.dist, camera.R.T, camera.t, camera.size), f"{path}")


def _number(table: Mapping[str, Any], key: str) -> Any:
    value = table.get(key, 0.0)
    return value[0] if isinstance(value, list) and len(value) == 1 else value
