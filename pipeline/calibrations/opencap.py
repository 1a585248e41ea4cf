"""OpenCap's calibrations: a pickle of arrays for each camera, ``x_cam = R x_world + t``, millimetres.

Read without running anything that a pickle may hold.
"""

from __future__ import annotations

import pickle
import re
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
    rig_of,
    rotation,
)
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.pickles import unpickle_arrays

DESCRIPTION: Final = "OpenCap (Cam*/cameraIntrinsicsExtrinsics.pickle)"

_STEM: Final = "cameraintrinsicsextrinsics"


def find(folder: Path) -> list[tuple[Path, ...]]:
    """The pickles in the folder, or in the cameras' folders in it or its ``Videos``: one calibration. Under
    other names, those with OpenCap's keys in a folder."""
    inside = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    places = [
        p for top in inside if top.name.lower() == "videos" for p in sorted(top.iterdir()) if p.is_dir()
    ]
    # One that is called as OpenCap does lies in its camera's folder: it is no calibration of that alone.
    for group in ([folder], inside, places):
        found = tuple(
            p
            for place in group
            for p in files_in(place, ".pickle", ".pkl")
            if p.stem.lower().startswith(_STEM) and (place != folder or p.stem.lower() != _STEM)
        )
        if found:
            return [found]
    others = [p for p in files_in(folder, ".pickle", ".pkl") if p.stem.lower() != _STEM]
    renamed = tuple(p for p in others if all(key in first_bytes(p) for key in (b"intrinsicMat", b"rotation")))
    return [renamed] if renamed else []


def read(files: tuple[Path, ...]) -> Rig:
    """A camera of each file, called after its folder where that holds one file under OpenCap's name, else
    after the file. Metres."""
    shared = len({path.parent for path in files}) < len(files)
    ends = [re.sub(rf"(?i)^{_STEM}[_ -]*(?=.)", "", path.stem) for path in files]
    own = [not shared and path.stem.lower().startswith(_STEM) for path in files]
    names = [path.parent.name if folder else end for path, end, folder in zip(files, ends, own, strict=True)]
    return rig_of(files[0], [_camera(path, name) for path, name in zip(files, names, strict=True)])


def _camera(path: Path, name: str) -> Camera:
    try:
        table = unpickle_arrays(path.read_bytes())
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: holds more than arrays, {error}, so it is not read") from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path}: a damaged pickle ({error})") from error

    def value(key: str) -> Any:
        if not isinstance(table, dict) or key not in table:
            raise InputError(f"{path}: {key} is missing")
        return table[key]

    height, width = numbers(value("imageSize"), 2, f"{path}, imageSize")
    return Camera(
        name,
        numbers(value("intrinsicMat"), 9, f"{path}, intrinsicMat").reshape(3, 3),
        distortion(np.asarray(value("distortion"), dtype=object), f"{path}, distortion"),
        rotation(value("rotation"), f"{path}, rotation"),
        numbers(value("translation"), 3, f"{path}, translation") / 1000,
        picture_size([width, height], f"{path}, imageSize"),
    )
