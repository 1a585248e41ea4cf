"""Qualisys' calibrations: XML that QTM exports, millimetres, intrinsics in 64ths of a pixel.

A camera's transform is its rotation and place in the world, and its y and z axes point up and backwards. Of a
file with marker cameras too, the video cameras count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element

import numpy as np

from pipeline.calibrations.checks import Camera, files_in, picture_size, posed, rig_of
from pipeline.calibrations.xml import Tag, read_xml
from pipeline.cameras import Rig

DESCRIPTION: Final = "Qualisys (.qca.txt)"

SUBPIXELS: Final = 64
"""Units of the intrinsics in a pixel. Distortion is of coordinates without a unit: it is no number of them,
though Pose2Sim divides it too."""
_RADIAL: Final = ("radialDistortion1", "radialDistortion2")
_TANGENTIAL: Final = ("tangentalDistortion1", "tangentalDistortion2")
_INTRINSIC: Final = ("focalLengthU", "focalLengthV", "centerPointU", "centerPointV")


def find(folder: Path) -> list[tuple[Path, ...]]:
    """Files called ``.qca.txt`` or ``.qca``."""
    return [(p,) for p in files_in(folder, ".txt", ".qca") if p.name.lower().endswith((".qca.txt", ".qca"))]


def read(files: tuple[Path, ...]) -> Rig:
    """Calibrated video cameras of one file, or all where none is called so; metres."""
    (path,) = files
    every = read_xml(path).findall("cameras/camera")
    cameras = [c for c in every if _is_video(c)] or every
    cameras = [c for c in cameras if c.get("calibrated") != "false"] or cameras
    return rig_of(path, [_camera(Tag(c, path, c.get("serial", str(i)))) for i, c in enumerate(cameras)])


def _is_video(camera: Element) -> bool:
    model = camera.get("model", "").lower()
    return "video" in model or "hybrid" in model  # a hybrid one records markers and videos


def _camera(tag: Tag) -> Camera:
    lens, place, frame = tag.child("intrinsic"), tag.child("transform"), tag.child("fov_video")
    left, top, right, bottom = frame.each("left", "top", "right", "bottom")
    fx, fy, cx, cy = lens.each(*_INTRINSIC) / SUBPIXELS
    k1, k2 = lens.each(*_RADIAL)
    p1, p2 = lens.each(*_TANGENTIAL)
    k3 = lens.each("radialDistortion3")[0] if lens.element.get("radialDistortion3") else 0.0
    turn = place.each(*(f"r{i}{j}" for i in "123" for j in "123")).reshape(3, 3)
    return posed(
        Camera(
            tag.camera,
            np.array([[fx, 0, cx - left], [0, fy, cy - top], [0, 0, 1]]),
            np.array([k1, k2, p1, p2, k3, 0, 0, 0]),
            np.diag([1.0, -1, -1]) @ turn,
            place.each("x", "y", "z") / 1000,
            picture_size([right - left + 1, bottom - top + 1], frame.where),
        ),
        place.where,
    )
