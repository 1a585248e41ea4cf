"""Vicon's calibrations: XML of Nexus, millimetres, quaternions x, y, z, w of the world in the camera.

Vicon's lens model leads from the picture, d, to the ideal camera's, p, in pixels about a centre c:
``p = c + (d − c) (1 + k1 r² + k2 r⁴ + k3 r⁶)``, r = |d − c|. OpenCV's leads the other way: its coefficients
are fitted over the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element

import numpy as np

from pipeline.array_types import Array
from pipeline.calibrations.checks import Camera, files_in, numbers, picture_size, posed, rig_of, rotation_of
from pipeline.calibrations.xml import Tag, read_xml
from pipeline.cameras import Rig
from pipeline.errors import InputError

DESCRIPTION: Final = "Vicon (.xcp)"

_KEY_FRAME: Final = "KeyFrames/KeyFrame"
"""Place of a camera's calibration: the first, as a camera that stands still has the same in all."""


def find(folder: Path) -> list[tuple[Path, ...]]:
    """Files called ``.xcp``."""
    return [(p,) for p in files_in(folder, ".xcp")]


def read(files: tuple[Path, ...]) -> Rig:
    """Calibrated video cameras of one file, or all where none is called so; metres."""
    (path,) = files
    every = read_xml(path).findall("Camera")
    cameras = [c for c in every if _is_video(c)] or every
    cameras = [c for c in cameras if c.find(_KEY_FRAME) is not None] or cameras
    return rig_of(path, [_camera(Tag(c, path, c.get("DEVICEID", str(i)))) for i, c in enumerate(cameras)])


def _is_video(camera: Element) -> bool:
    return (
        "video" in camera.get("TYPE", "").lower() or camera.get("ISDV") == "2" or camera.get("SYSTEM") == "DV"
    )


def _camera(tag: Tag) -> Camera:
    frame = tag.child(_KEY_FRAME)
    w, h = picture_size(tag.numbers("SENSOR_SIZE", 2), tag.where)
    f = frame.numbers("FOCAL_LENGTH", 1)[0]
    aspect = tag.numbers("PIXEL_ASPECT_RATIO", 1)[0] if tag.element.get("PIXEL_ASPECT_RATIO") else 1.0
    if not aspect > 0:
        raise InputError(f"{tag.where}: PIXEL_ASPECT_RATIO must be positive, got {aspect:g}")
    centre = frame.numbers("PRINCIPAL_POINT", 2)
    k = np.array([[f, 0, centre[0]], [0, f / aspect, centre[1]], [0, 0, 1]])
    return posed(
        Camera(
            tag.camera,
            k,
            _distortion(frame, k, (w, h)),
            rotation_of(frame.numbers("ORIENTATION", 4), frame.where),
            frame.numbers("POSITION", 3) / 1000,
            (w, h),
        ),
        frame.where,
    )


def _distortion(frame: Tag, k: Array, size: tuple[int, int]) -> Array:
    """(8,) coefficients of OpenCV's model that fit Vicon's over the picture, by linear least squares."""
    words = frame.element.get("VICON_RADIAL2", "").split()
    if words:
        if words[0] != "Vicon3Parameter":
            raise InputError(f"{frame.where}: VICON_RADIAL2 {words[0]} is not supported, Vicon3Parameter is")
        where = f"{frame.where}, VICON_RADIAL2"
        centre, inverse = np.split(numbers(words[1:], 5, where), [2])
    else:
        centre, inverse = k[:2, 2], np.zeros(3)
        if frame.element.get("VICON_RADIAL"):
            inverse[:2] = frame.numbers("VICON_RADIAL", 2)
    if not inverse.any():
        return np.zeros(8)
    grid = np.stack(np.meshgrid(*(np.linspace(0, n - 1, 25) for n in size)), -1).reshape(-1, 2)
    r2 = ((grid - centre) ** 2).sum(1, keepdims=True)
    powers = inverse[0] * r2 + inverse[1] * r2**2 + inverse[2] * r2**3
    ideal = centre + (grid - centre) * (1 + powers)
    focal = k[[0, 1], [0, 1]]
    (x, y), d = ((ideal - k[:2, 2]) / focal).T, (grid - k[:2, 2]) / focal
    s = x * x + y * y
    # d = n (1 + k1 s + k2 s² + k3 s³) / (1 + k4 s + k5 s² + k6 s³) + tangential, which takes up the centre.
    system = np.concatenate(
        [
            np.stack([n * s, n * s**2, n * s**3, p1, p2, -m * s, -m * s**2, -m * s**3], 1)
            for n, m, p1, p2 in (
                (x, d[:, 0], 2 * x * y, s + 2 * x * x),
                (y, d[:, 1], s + 2 * y * y, 2 * x * y),
            )
        ]
    )
    target = np.concatenate([d[:, 0] - x, d[:, 1] - y])
    k1, k2, k3, p1, p2, k4, k5, k6 = np.linalg.lstsq(system, target, rcond=None)[0]
    return np.array([k1, k2, p1, p2, k3, k4, k5, k6])
