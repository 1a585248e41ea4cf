"""Keypoint files: one module a format, and the choice among them.

A format is a module with two functions, ``find`` and ``read``, and a line in ``FORMATS``: how numbers lie in
files. Which points these are is the order of points, ``POINT_ORDERS`` in ``pipeline/skeleton.py``; a file of
any format may hold any of them.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.array_types import Floats
from pipeline.errors import InputError
from pipeline.formats.keypoints import (
    arrays,
    coco_annotations,
    coco_results,
    easymocap_annots,
    flat,
    mmpose,
    mmpose_pictures,
    named_points,
    openpose,
    openpose_list,
)
from pipeline.formats.keypoints.files import KeypointFiles
from pipeline.formats.keypoints.listed import first_byte


class KeypointFileFormat(Protocol):
    """Module that reads one format."""

    DESCRIPTION: str
    """Name of the format and how its files lie, for a list in a message."""

    def find(self, place: Path, names: str) -> list[Path]:
        """Folder or file of each camera whose keypoints lie in ``place``; damaged ones, too.

        names: pattern that a folder or file must match. Every folder that may be a recording is looked at
        with this: it goes by names, and the first bytes of a file where these do not tell.
        """

    def read(self, path: Path) -> KeypointFiles:
        """Index of one camera's keypoints, from which a frame is read without the others.

        Raises:
            InputError: frame numbers are contradictory, or the files cannot be indexed; names the file.
        """


FORMATS: Final[tuple[KeypointFileFormat, ...]] = (
    arrays, named_points, coco_annotations, mmpose, openpose_list, coco_results, mmpose_pictures,
    easymocap_annots, openpose, flat,
)  # fmt: skip
"""The first that finds a camera reads it; OpenPose's takes any folder with JSON files."""

EXPECTED_FILES: Final = " or ".join(form.DESCRIPTION for form in FORMATS)
"""All formats, for a message."""


def find_camera_files(place: Path, names: str = "*") -> list[Path]:
    """Folder or file of each camera whose keypoints lie in a folder, in whichever format, by name.

    Files count only where no camera has a folder. names: pattern that these must match.
    """
    found = sorted({path for form in FORMATS for path in form.find(place, names)})
    return [path for path in found if path.is_dir()] or found


def index_keypoints(path: Path) -> KeypointFiles:
    """Index of the keypoints of one camera, of those that ``find_camera_files`` found.

    Raises:
        InputError: the files are of no format, or cannot be indexed.
    """
    # Where the path is not there, it stands for one camera in a file of all, or for its files among those of
    # others, which are many.
    if path.parent.is_file():
        is_list = first_byte(path.parent) == b"["
        return coco_results.read(path) if is_list else coco_annotations.read(path)
    for form in FORMATS if path.exists() else (flat,):
        if form.find(path.parent, glob.escape(path.name)):
            return form.read(path)
    raise InputError(f"{path}: holds no keypoints of a known format; expected {EXPECTED_FILES}")


def read_views(files: Sequence[KeypointFiles | None], numbers: NDArray[np.int64], points: int) -> Floats:
    """Everybody in these frames of all cameras: (V, T, P, points, 3), P being the most people in a frame.

    ``numbers`` (V, T) are frame numbers, −1 where a camera has no frame. No person is NaN, NaN, 0.
    """
    views, frames = numbers.shape
    found: dict[tuple[int, int], Floats] = {}
    for v, camera in enumerate(files):
        if camera is None:
            continue
        for t in range(frames):
            people, _ = camera.people(int(numbers[v, t]), points)
            if len(people):
                found[v, t] = people
    most = max((len(p) for p in found.values()), default=1)
    out = np.full((views, frames, most, points, 3), np.nan, dtype=np.float32)
    out[..., 2] = 0
    for (v, t), people in found.items():
        out[v, t, : len(people)] = people
    return out
