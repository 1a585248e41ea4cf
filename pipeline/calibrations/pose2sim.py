"""TOML calibrations: Pose2Sim, anipose, FreeMoCap, caliscope. One table a camera, ``x_cam = R x_world + t``.

Pose2Sim's flavour is the project's own, and is written.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.calibrations.checks import (
    Camera,
    distortion,
    files_in,
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
_CAMERA_KEYS: Final = ("matrix", "distortions", "rotation", "translation")
_QUALISYS: Final = re.compile(r"qualisys|qca")
"""Names that Pose2Sim gives to files made from Qualisys'."""
_MAX_DIVIDED: Final = 0.5 / SUBPIXELS
"""Coefficients of video lenses go up to about 0.5: all of a rig's below this are divided."""
_NAME = re.compile(r"calib.*\.toml", re.IGNORECASE)
_CAMERA_KEY_LINE = re.compile(rf"^\s*({'|'.join(_CAMERA_KEYS)})\s*=".encode(), re.MULTILINE)


def find(folder: Path) -> list[tuple[Path, ...]]:
    """TOML files called a calibration, or with two keys of a camera in them, by name."""
    return [(p,) for p in files_in(folder, ".toml") if _NAME.fullmatch(p.name) or _has_camera_keys(p)]


def _has_camera_keys(path: Path) -> bool:
    try:
        return len(set(_CAMERA_KEY_LINE.findall(path.read_bytes()))) > 1
    except OSError:
        return False


def read(files: tuple[Path, ...]) -> Rig:
    """Cameras of one file; lengths in its unit, which it does not name."""
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
    if isinstance(nested, dict) and nested.keys().isdisjoint(_CAMERA_KEYS):
        tables = {f"cam_{number}": table for number, table in nested.items()}
    else:
        tables = document
    cameras = []
    for key, table in tables.items():
        if key in _NOT_CAMERAS or not isinstance(table, dict) or table.keys().isdisjoint(_CAMERA_KEYS):
            continue
        if table.get("ignore") is True:
            continue
        where = f"{path}, camera {key!r}"
        name = table.get("name", key)
        if not isinstance(name, str) or not name:
            raise InputError(f"{where}, name: expected a text, got {short(name)}")
        fisheye = table.get("fisheye", False)
        if not isinstance(fisheye, bool):
            raise InputError(f"{where}, fisheye: expected true or false, got {short(fisheye)}")
        for needed in _CAMERA_KEYS:
            if needed not in table:
                placed = "" if needed in ("matrix", "distortions") else ": are its extrinsics calibrated?"
                raise InputError(f"{where}: key {needed!r} is missing{placed}")
        cameras.append(
            Camera(
                name,
                numbers(table["matrix"], 9, f"{where}, matrix").reshape(3, 3),
                distortion(table["distortions"], f"{where}, distortions", fisheye),
                rotation(table["rotation"], f"{where}, rotation"),
                numbers(table["translation"], 3, f"{where}, translation"),
                picture_size(table["size"], f"{where}, size") if "size" in table else (0, 0),
                fisheye,
            )
        )
    return rig_of(path, cameras)


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
