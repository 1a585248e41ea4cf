"""Files of all cameras in one folder: OpenPose's JSON, a file a frame, ``cam01_000000000012_keypoints.json``.

What comes before the last number of a name is the camera.
"""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from pipeline.formats.keypoints.files import find_number
from pipeline.formats.keypoints.listed import TABLE, beginning
from pipeline.formats.keypoints.openpose import FrameFiles, camera_of, index_folder

DESCRIPTION: Final = "OpenPose JSON of all cameras in one folder (<camera>_<frame>.json)"


def find(place: Path, names: str) -> list[Path]:
    """A path that stands for the files of each camera: the folder, and the camera's name."""
    cameras: dict[str, str] = {}
    with os.scandir(place) as entries:
        for entry in entries:
            stem, _, suffix = entry.name.rpartition(".")
            number = find_number(stem) if suffix.lower() == "json" and not stem.startswith(".") else None
            if number and (camera := camera_of(stem[: number.start()])):
                cameras.setdefault(camera, entry.name)
    found = [place / camera for camera in sorted(cameras) if fnmatchcase(camera, names)]
    first = {path: beginning(place / cameras[path.name]).removeprefix(b"\xef\xbb\xbf") for path in found}
    return [path for path in found if _is_frame(first[path])]


def _is_frame(first: bytes) -> bool:
    """True for the beginning of OpenPose's file of a frame, and not of a table of frames."""
    is_table = TABLE.match(first.decode("latin-1")) is not None
    return first.lstrip()[:1] == b"{" and b'"people"' in first and not is_table


def read(path: Path) -> FrameFiles:
    """Index of a camera's files; they are not opened."""
    return index_folder(path.parent, FrameFiles, path.name)
