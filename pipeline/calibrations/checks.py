"""Checks that calibrations of every format pass: numbers, lenses, rotations, picture sizes, names."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from pipeline.array_types import Array
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.findings import Finding

UNITS: Final[Mapping[str, float]] = {"m": 1.0, "cm": 0.01, "mm": 0.001}
"""Metres in one unit of a calibration."""

MAX_SKEWNESS: Final = 1e-3
"""Largest departure of R Rᵀ from the identity that rounding to few digits explains."""

PIXEL_ASPECTS: Final = {1.0: 0.1} | {
    ratio: 0.02
    for n in (12 / 11, 10 / 11, 16 / 11, 40 / 33, 4 / 3, 8 / 9, 32 / 27, 64 / 45)
    for ratio in (n, 1 / n)
}
"""Width of a pixel by its height → how far off a calibration may be: square ones, and those of DV, HDV and
broadcast video (ITU-R BT.601), also of cameras that stand upright."""
MAX_PIXEL_SKEW: Final = 0.01
"""Share of fx: 0 in OpenCV's calibrations, a thousandth where it is estimated."""

USUAL_PIXEL_ASPECT: Final = 0.025
"""Departure of fx / fy from 1 that is no news: calibrations of good boards have less than 0.01."""

MIN_SEPARATION_M: Final = 0.01
"""Nearer to each other, two cameras are probably one that was copied."""


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera of a calibration file, with the fields of ``Rig``; lengths in the unit of the file."""

    name: str
    K: Array
    dist: Array
    R: Array
    t: Array
    size: tuple[int, int]
    """Width and height in pixels, (0, 0) where the file does not give them."""
    fisheye: bool = False


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    """Files of a folder with one of these suffixes, in lower case, by name; none that are hidden."""
    with os.scandir(folder) as found:
        names = sorted(
            entry.name
            for entry in found
            if entry.name.lower().endswith(suffixes) and not entry.name.startswith(".") and entry.is_file()
        )
    return [folder / name for name in names]


def first_bytes(path: Path, count: int = 1 << 16) -> bytes:
    """Beginning of a file, by which its format is told; nothing of one that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def plain(name: str) -> str:
    """A name as it is compared: NFC, whatever the file system makes of it, and without case."""
    return unicodedata.normalize("NFC", name).casefold()


def rig_of(path: Path, cameras: Sequence[Camera]) -> Rig:
    """Rig of the cameras of a file, in file order.

    Raises:
        InputError: no camera, two of one name, or intrinsics that no camera has.
    """
    if not cameras:
        raise InputError(f"{path}: holds no camera")
    names = tuple(unicodedata.normalize("NFC", camera.name) for camera in cameras)
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: two cameras are named {name!r}; each needs its own name")
    rig = Rig(
        names,
        np.stack([c.K for c in cameras]),
        np.stack([c.dist for c in cameras]),
        np.stack([c.R for c in cameras]),
        np.stack([c.t for c in cameras]),
        np.array([c.size for c in cameras], dtype=np.int64),
        fisheye=tuple(c.fisheye for c in cameras),
    )
    for view, name in enumerate(names):
        check_intrinsics(rig, view, f"{path}, camera {name!r}")
    return rig


def in_metres(rig: Rig, metres_per_unit: float) -> Rig:
    """The rig of a calibration whose unit is this long."""
    return replace(rig, t=rig.t * metres_per_unit)


def check_intrinsics(rig: Rig, view: int, where: str) -> None:
    """Raises ``InputError`` when K cannot be that of a camera with this picture size (0 = not known)."""
    k, (w, h) = rig.K[view], rig.size[view]
    fx, fy, cx, cy = k[0, 0], k[1, 1], k[0, 2], k[1, 2]
    if not (fx > 0 and fy > 0):
        raise InputError(f"{where}, matrix: focal lengths must be positive, got fx = {fx:g}, fy = {fy:g}")
    if not any(abs(fx / fy / aspect - 1) < PIXEL_ASPECTS[aspect] for aspect in PIXEL_ASPECTS):
        raise InputError(
            f"{where}, matrix: fx = {fx:g} and fy = {fy:g}, which no camera has: its pixels are square, or "
            "those of a video format. One of the two is wrong"
        )
    if not np.allclose([k[1, 0], k[2, 0], k[2, 1], k[2, 2]], [0, 0, 0, 1], rtol=0, atol=1e-9):
        raise InputError(
            f"{where}, matrix: expected [[fx, skew, cx], [0, fy, cy], [0, 0, 1]], got {k.tolist()}"
        )
    if abs(k[0, 1]) > MAX_PIXEL_SKEW * fx:
        raise InputError(f"{where}, matrix: a skew of {k[0, 1]:g}, which no camera has: it should be 0")
    if w and h:
        if not (-0.5 * w < cx < 1.5 * w and -0.5 * h < cy < 1.5 * h):
            raise InputError(
                f"{where}, matrix: principal point ({cx:g}, {cy:g}) lies far outside the picture of {w}x{h}"
            )
        if not 0.05 < fx / w < 200:
            raise InputError(f"{where}, matrix: fx = {fx:g} does not fit a picture {w} pixels wide")


def calibration_doubts(rig: Rig) -> list[Finding]:
    """Findings about cameras that are legal in a calibration but probably wrong."""
    doubts = []
    for name, (fx, fy) in zip(rig.names, rig.K[:, [0, 1], [0, 1]], strict=True):
        if abs(fx / fy - 1) > USUAL_PIXEL_ASPECT:
            sentence = (
                f"camera {name}: fx = {fx:.1f} and fy = {fy:.1f}, as of pixels that are not square: unless "
                "the video has such, one of the two is wrong"
            )
            doubts.append(Finding("pixels_not_square", sentence, name))
    for a, b in combinations(range(len(rig)), 2):
        gap = float(np.linalg.norm(rig.centres[a] - rig.centres[b]))
        if gap < MIN_SEPARATION_M:
            sentence = (
                f"cameras {rig.names[a]} and {rig.names[b]} stand in the same place ({1000 * gap:.1f} mm "
                "apart): is one of them a copy?"
            )
            doubts.append(Finding("camera_copied", sentence))
    return doubts


def numbers(value: Any, count: int | tuple[int, ...], where: str) -> Array:
    """``value`` as finite floats of this count (or one of these counts), flat."""
    counts = (count,) if isinstance(count, int) else count
    try:
        flat = np.array(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{where}: expected numbers, got {short(value)}") from None
    if flat.size not in counts:
        wanted = " or ".join(str(c) for c in counts)
        raise InputError(f"{where}: expected {wanted} numbers, got {flat.size}")
    if not np.isfinite(flat).all():
        raise InputError(f"{where}: not finite: {short(value)}")
    return flat


def distortion(value: Any, where: str, fisheye: bool = False) -> Array:
    """(8,) distortion coefficients of OpenCV's model with 4, 5 or 8 of them, of its fisheye model with 4."""
    flat = np.array(value, dtype=object).reshape(-1)
    if flat.size in (12, 14):
        raise InputError(
            f"{where}: {flat.size} coefficients (thin prism or tilted sensor) are not supported; calibrate "
            "with 4, 5 or 8"
        )
    out = np.zeros(8)
    known = numbers(value, (4, 5, 8), where)
    if fisheye and known[4:].any():
        raise InputError(f"{where}: a fisheye lens has 4 coefficients, got {known.size}")
    out[: known.size] = known
    return out


def rotation(value: Any, where: str) -> Array:
    """Rotation (3, 3) of a Rodrigues vector, or nearest to a 3 × 3 matrix.

    Raises:
        InputError: a matrix that is far from a rotation, or a mirror.
    """
    flat = numbers(value, (3, 9), where)
    if flat.size == 3:
        return np.asarray(cv2.Rodrigues(flat)[0])
    m = flat.reshape(3, 3)
    off = float(np.abs(m @ m.T - np.eye(3)).max())
    if off > MAX_SKEWNESS:
        raise InputError(f"{where}: not a rotation (rows are off orthonormal by {off:.2g})")
    if np.linalg.det(m) < 0:
        raise InputError(f"{where}: a mirror, not a rotation (determinant −1): an axis has the wrong sign")
    u, _, vt = np.linalg.svd(m)
    return np.asarray(u @ vt)


def rotation_of(quaternion: Array, where: str) -> Array:
    """Rotation (3, 3) of a quaternion x, y, z, w, of any length but 0."""
    length = float(np.linalg.norm(quaternion))
    if not 1e-6 < length < 1e6:
        raise InputError(f"{where}: {short(quaternion.tolist())} is no rotation")
    x, y, z, w = quaternion / length
    half = float(np.arctan2(np.linalg.norm([x, y, z]), w))
    axis = np.array([x, y, z]) / max(np.sin(half), 1e-12)
    return np.asarray(cv2.Rodrigues(2 * half * axis)[0])


def posed(camera: Camera, where: str) -> Camera:
    """The camera whose ``t`` is its place in the world, with ``t`` as ``Rig`` has it and ``R`` made exact."""
    r = rotation(camera.R, where)
    return replace(camera, R=r, t=-r @ camera.t)


def picture_size(value: Any, where: str) -> tuple[int, int]:
    """Width and height, whole pixels."""
    w, h = numbers(value, 2, where)
    if not (1 <= w <= 1e5 and 1 <= h <= 1e5) or w != round(w) or h != round(h):
        raise InputError(f"{where}: expected a width and height in whole pixels, got {w:g} and {h:g}")
    return int(w), int(h)


def short(value: Any) -> str:
    """``repr`` of a value, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
