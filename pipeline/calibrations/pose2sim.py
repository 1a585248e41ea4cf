"""TOML calibrations: Pose2Sim, anipose, FreeMoCap, caliscope. One table a camera, ``x_cam = R x_world + t``.

Pose2Sim's flavour is the project's own, and is written.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
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
    plain,
    rig_of,
    rotation,
    short,
)
from pipeline.calibrations.estimate import Provenance, metadata_lines, quoted
from pipeline.calibrations.qualisys import SUBPIXELS
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.files import write_text_atomically

DESCRIPTION: Final = "TOML of Pose2Sim, anipose, FreeMoCap or caliscope (calibration.toml, Calib*.toml)"

_NOT_CAMERAS = frozenset({"metadata", "capture_volume", "charuco", "checkerboard"})
_LENS_KEYS: Final = ("matrix", "distortions")
_CAMERA_KEYS: Final = (*_LENS_KEYS, "rotation", "translation")
_QUALISYS: Final = re.compile(r"qualisys|qca")
"""Names that Pose2Sim gives to files made from Qualisys'."""
_MAX_DIVIDED: Final = 0.5 / SUBPIXELS
"""Coefficients of video lenses go up to about 0.5: all of a rig's below this are divided."""
_NAME = re.compile(r"calib.*\.toml", re.IGNORECASE)
_CAMERA_KEY_LINE = re.compile(rf"^\s*({'|'.join(_CAMERA_KEYS)})\s*=".encode(), re.MULTILINE)


def find(folder: Path) -> list[tuple[Path, ...]]:
    """TOML files called a calibration, or with two keys of a camera in them, one of its lens, by name."""
    return [(p,) for p in files_in(folder, ".toml") if _NAME.fullmatch(p.name) or _has_camera_keys(p)]


def _has_camera_keys(path: Path) -> bool:
    keys = {key.decode() for key in _CAMERA_KEY_LINE.findall(first_bytes(path))}
    return len(keys) > 1 and not keys.isdisjoint(_LENS_KEYS)


def read(files: tuple[Path, ...]) -> Rig:
    """Cameras of one file but those of caliscope that it has not placed; lengths in its unit, which it does
    not name."""
    rig = _as_written(files[0])
    return replace(rig, dist=rig.dist * SUBPIXELS) if _divided(files[0], rig) else rig


def is_corrected(path: Path) -> bool:
    """True for a TOML file that can be read whose distortion ``read`` makes larger: see ``_divided``."""
    return path.suffix.lower() == ".toml" and _divided(path, _as_written(path))


def _divided(path: Path, rig: Rig) -> bool:
    """True for distortion that Pose2Sim took from a file of Qualisys': divided like the intrinsics there."""
    return bool(_QUALISYS.search(plain(path.stem)) and 0 < np.abs(rig.dist).max() < _MAX_DIVIDED)


def _as_written(path: Path) -> Rig:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not TOML: {error}") from error
    nested = document.get("cameras")  # as caliscope has it, by number
    tables = document
    unplaced: tuple[str | None, ...] = ("null",)  # caliscope's former word for what is missing
    if isinstance(nested, dict) and nested.keys().isdisjoint(_CAMERA_KEYS):
        tables = {f"cam_{number}": table for number, table in nested.items()}
        unplaced = ("null", None)
    cameras = {
        key: table
        for key, table in tables.items()
        # A table without a lens is that of a pair, as older caliscope has it.
        if isinstance(table, dict) and key not in _NOT_CAMERAS and not table.keys().isdisjoint(_LENS_KEYS)
        if table.get("ignore") is not True
    }
    placed = {
        key: table
        for key, table in cameras.items()
        if table.get("rotation") not in unplaced and table.get("translation") not in unplaced
    }
    return rig_of(path, [_camera(path, key, table) for key, table in (placed or cameras).items()])


def _camera(path: Path, key: str, table: Mapping[str, Any]) -> Camera:
    where = f"{path}, camera {key!r}"
    name = table.get("name", key)
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}, name: expected a text, got {short(name)}")
    fisheye = table.get("fisheye", False)
    if not isinstance(fisheye, bool):
        raise InputError(f"{where}, fisheye: expected true or false, got {short(fisheye)}")
    for needed in _CAMERA_KEYS:
        if table.get(needed, "null") == "null":
            placed = "" if needed in _LENS_KEYS else ": are its extrinsics calibrated?"
            raise InputError(f"{where}: key {needed!r} is missing{placed}")
    size = table.get("size", table.get("image_size"))
    return Camera(
        name,
        numbers(table["matrix"], 9, f"{where}, matrix").reshape(3, 3),
        distortion(table["distortions"], f"{where}, distortions", fisheye),
        rotation(table["rotation"], f"{where}, rotation"),
        numbers(table["translation"], 3, f"{where}, translation"),
        (0, 0) if size is None else picture_size(size, f"{where}, size"),
        fisheye,
    )


def write_calibration(rig: Rig, path: Path, estimate: Provenance | None = None) -> None:
    """Write Pose2Sim's TOML. Reading it back gives the same rig to 1e-12 (relative).

    With an ``estimate`` the cameras are marked as estimated, and what they are good for is said at the top.
    Raises ``InputError`` when it cannot be written.
    """
    import roma  # torch takes a second to load, and most who read a calibration write none
    import torch

    lines = []
    if estimate:
        lines += [
            "# Estimated by multispin from the person in the pictures: no calibration was found.",
            "# Metres are those of a usual body, up is a guess. Correct this file, and use it elsewhere.",
        ]
    for v, name in enumerate(rig.names):
        table = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else quoted(name)
        if name.casefold() in _NOT_CAMERAS:
            table = f"cam_{v}"
        dist = rig.dist[v]
        dist = dist if dist[5:].any() else dist[:5] if dist[4:].any() else dist[:4]
        lines += [
            f"[{table}]",
            f"name = {quoted(name)}",
            f"size = {rig.size[v].tolist()}",
            f"matrix = {rig.K[v].tolist()}",
            f"distortions = {dist.tolist()}",
            f"rotation = {roma.rotmat_to_rotvec(torch.from_numpy(rig.R[v])).tolist()}",
            f"translation = {rig.t[v].tolist()}",
            f"fisheye = {str(rig.fisheye[v]).lower()}",
            "",
        ]
    lines += [*metadata_lines(estimate, "\n".join(lines)), ""]
    write_text_atomically(path, "\n".join(lines))
