"""Human3.6M's ``metadata.xml``: four cameras before eleven subjects, millimetres."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.array_types import Array
from pipeline.calibrations.checks import Camera, files_in, first_bytes, numbers, rig_of
from pipeline.calibrations.xml import read_xml
from pipeline.cameras import Rig
from pipeline.errors import InputError

DESCRIPTION: Final = "Human3.6M (metadata.xml)"

CAMERAS: Final = ("54138969", "55011271", "58860488", "60457274")
SUBJECTS: Final = 11
_EXTRINSIC, _INTRINSIC = 6, 9
"""Numbers of a camera and subject, and of a camera."""


def find(folder: Path) -> list[tuple[Path, ...]]:
    """``metadata.xml``, where it holds the element ``w0`` in its first megabyte."""
    found = [p for p in files_in(folder, ".xml") if p.name.lower() == "metadata.xml"]
    return [(p,) for p in found if b"<w0>" in first_bytes(p, 1 << 20)]


def read(files: tuple[Path, ...]) -> Rig:
    """The four cameras before the subject whose folder, S1 to S11, the file lies in. Metres."""
    (path,) = files
    subjects = [int(m[1]) for part in path.absolute().parts if (m := re.fullmatch(r"S(\d{1,2})", part))]
    if not subjects or not 1 <= subjects[-1] <= SUBJECTS:
        raise InputError(
            f"{path}: nothing tells before which subject the cameras stand: put it in a folder called S1 to "
            f"S{SUBJECTS} after the subject"
        )
    return read_metadata(path, subjects[-1])


def read_metadata(path: Path, subject: int) -> Rig:
    """Cameras before subject 1 to 11; the picture's size is not given. Metres.

    ``w0`` holds three Euler angles and the centre (mm) of every camera and subject, then fx, fy, cx, cy, k1,
    k2, k3, p1, p2 of every camera. The angles make Rx Ry Rz. Readers of this file differ in whether that is
    the rotation to the camera or from it; the cameras stand upright around a room whose z is up, which tells:
    the second row of a rotation to the camera is the picture's downward axis.

    Raises:
        InputError: it cannot be read or is something else.
    """
    text = read_xml(path).findtext(".//w0")
    if text is None:
        raise InputError(f"{path}: holds no w0")
    count = len(CAMERAS) * (SUBJECTS * _EXTRINSIC + _INTRINSIC)
    w0 = numbers(text.strip().strip("[]").split(), count, f"{path}, w0")
    extrinsics = w0[: -len(CAMERAS) * _INTRINSIC].reshape(len(CAMERAS), SUBJECTS, _EXTRINSIC)
    every = np.array([[_rotation(*pose[:3]) for pose in poses] for poses in extrinsics])
    from_camera = every[..., 1, 2].mean() > every[..., 2, 1].mean()
    cameras = []
    for name, pose, turn, lens in zip(
        CAMERAS,
        extrinsics[:, subject - 1],
        every[:, subject - 1],
        w0[-len(CAMERAS) * _INTRINSIC :].reshape(len(CAMERAS), _INTRINSIC),
        strict=True,
    ):
        fx, fy, cx, cy, k1, k2, k3, p1, p2 = lens
        r = turn.T if from_camera else turn
        k = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        dist = np.array([k1, k2, p1, p2, k3, 0, 0, 0])
        cameras.append(Camera(name, k, dist, r, -r @ pose[3:] / 1000, (0, 0)))
    return rig_of(path, cameras)


def _rotation(x: float, y: float, z: float) -> Array:
    """Rx Ry Rz of three angles."""
    (a, b, c), (d, e, f) = np.cos([x, y, z]), np.sin([x, y, z])
    rx = np.array([[1, 0, 0], [0, a, -d], [0, d, a]])
    ry = np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
    rz = np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
    return np.asarray(rx @ ry @ rz)
