"""OptiTrack's calibrations: XML that Motive exports, metres. A camera looks along its −z axis, y is up."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from pipeline.calibrations.checks import Camera, files_in, picture_size, posed, rig_of
from pipeline.calibrations.xml import Tag, read_xml
from pipeline.cameras import Rig
from pipeline.errors import InputError

DESCRIPTION: Final = "OptiTrack Motive (.mcal)"

_MODEL: Final = "IntrinsicStandardCameraModel"
"""Element of the lens in OpenCV's terms; the one called Intrinsic is Motive's own, and not documented."""


def find(folder: Path) -> list[tuple[Path, ...]]:
    """Files called ``.mcal``."""
    return [(p,) for p in files_in(folder, ".mcal")]


def read(files: tuple[Path, ...]) -> Rig:
    """Cameras with a standard camera model, metres."""
    (path,) = files
    cameras = [c for c in read_xml(path).iter("Camera") if c.find(_MODEL) is not None]
    if not cameras:
        raise InputError(
            f"{path}: no camera has a {_MODEL}; export the calibration with Motive 3 or later, or calibrate "
            "the video cameras with a board"
        )
    return rig_of(path, [_camera(Tag(c, path, c.get("Serial", str(i)))) for i, c in enumerate(cameras)])


def _camera(tag: Tag) -> Camera:
    lens, place, sensor = tag.child(_MODEL), tag.child("Extrinsic"), tag.child("Attributes")
    fx, fy = lens.each("HorizontalFocalLength", "VerticalFocalLength")
    cx, cy = lens.each("LensCenterX", "LensCenterY")
    k1, k2, k3, p1, p2 = lens.each("k1", "k2", "k3", "TangentialX", "TangentialY")
    turn = place.each(*(f"OrientMatrix{i}" for i in range(9))).reshape(3, 3)
    return posed(
        Camera(
            tag.camera,
            np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
            np.array([k1, k2, p1, p2, k3, 0, 0, 0]),
            np.diag([1.0, -1, -1]) @ turn.T,
            place.each("X", "Y", "Z"),
            picture_size(sensor.each("ImagerPixelWidth", "ImagerPixelHeight"), sensor.where),
        ),
        place.where,
    )
