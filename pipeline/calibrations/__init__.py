"""Calibration files: one module a format, the choice among those of a folder, and reading by path.

A format is a module with two functions, ``find`` and ``read``, and a line in ``FORMATS``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from pipeline.array_types import Array
from pipeline.calibrations import (
    biocv,
    colmap,
    easymocap,
    human36m,
    opencap,
    opencv,
    optitrack,
    pose2sim,
    qualisys,
    skeletool,
    vicon,
    xrprimer,
)
from pipeline.calibrations.checks import in_metres, plain
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.files import reading

Files = tuple[Path, ...]
"""The files of one calibration; the first stands for it."""


class CalibrationFormat(Protocol):
    """Module that reads one format."""

    DESCRIPTION: str
    """Name of the format and of its files, for a list in a message."""

    def find(self, folder: Path) -> list[Files]:
        """Calibrations of this format that lie in a folder, by name; those that are damaged, too."""

    def read(self, files: Files) -> Rig:
        """Cameras of one calibration in file order, lengths in the unit of the file, or in metres where the
        format fixes the unit. Rotations are exactly orthonormal; a picture size that is not given is (0, 0).

        Raises:
            InputError: the files cannot be read as cameras; names file, camera and key.
        """


FORMATS: Final[tuple[CalibrationFormat, ...]] = (
    pose2sim, easymocap, opencv, skeletool, human36m, qualisys, vicon, optitrack, biocv, opencap, xrprimer,
    colmap,
)  # fmt: skip

_PLACE: Final = re.compile(r"[ck]alib|[ck]amera|^sparse$|^colmap$")
"""Folders that hold calibrations, by their plain name; COLMAP calls its models' folder ``sparse``."""
_SESSION_PLACE: Final = re.compile(r"^([a-z]?\d+[_-])?([ck]alib|[ck]amera)")
"""Folders of a session that hold its calibration, as S00_Calibration: a narrow choice, since what lies beside
a trial may be another's."""
_MAX_DEPTH: Final = 3
"""Levels below such a folder that are searched: caliscope has calibration/extrinsic/capture_volume/."""
_FOLDERS_OF_CAMERAS: Final = 2
"""Levels that a camera's own file may lie below its calibration: OpenCap has Videos/Cam0/."""
_FILE: Final = re.compile(
    r"[ck]alib|intri|extri|^cameras?([_ -]?(param|matri|pose|array|config|setting)|s?$)"
)
"""Names of files that look like calibrations."""
_DATA_SUFFIXES: Final = frozenset(
    [
        ".toml",
        ".yml",
        ".yaml",
        ".json",
        ".xml",
        ".txt",
        ".csv",
        ".npz",
        ".npy",
        ".mat",
        ".pickle",
        ".pkl",
        ".xcp",
        ".cal",
        ".mcal",
        ".calib",
        ".bin",
    ]
)


def find_calibration(folder: Path, *, session: bool = False) -> tuple[Path | None, tuple[Path, ...]]:
    """First file of a recording's calibration, None where there is none, and those of the ones not chosen.

    Looked for in the folder and in folders inside it that are called after calibrations or cameras
    (``calibration_places``). ``calibration.toml`` in the folder itself comes first, then the same name below
    it. Without either, one candidate; of several, the first where all that can be read are the same cameras.

    session: the folder is one of trials, whose own folders may be called after anything.

    Raises:
        InputError: there are several that none is first among.
    """
    places = calibration_places(folder, _SESSION_PLACE if session else _PLACE)
    found = [files[0] for place in places for files in calibrations_in(place)]
    if not found:
        return None, ()
    first = [p for p in found if p.name == "calibration.toml"]
    chosen = first[0] if first else found[0] if len(found) == 1 else _same_cameras(found)
    if chosen is None:
        names = ", ".join(str(p.relative_to(folder)) for p in found)
        raise InputError(
            f"{folder}: several calibrations: {names}; name one in recording.yaml, "
            f"calibration: {{path: {found[0].relative_to(folder)}}}"
        )
    return chosen, tuple(p for p in found if p != chosen)


def calibrations_in(place: Path) -> list[Files]:
    """Calibrations of all formats that lie in a folder itself."""
    return [files for calibration_format in FORMATS for files in calibration_format.find(place)]


def has_unit(path: Path) -> bool:
    """False for a calibration whose lengths are in no unit: COLMAP's."""
    return _identify(path)[0] is not colmap


def _same_cameras(found: Sequence[Path]) -> Path | None:
    """First of the calibrations that can be read, where these are one, or of cameras that look alike."""
    rigs = {}
    for path in found:
        with suppress(InputError):
            rigs[path] = read_calibration(path)
    if not rigs:
        return found[0]
    (first, rig), *others = rigs.items()
    return first if all(_alike(rig, other) for _, other in others) else None


def _alike(one: Rig, other: Rig) -> bool:
    """True for rigs of as many cameras, in any order, with the same focal lengths and distances but for a
    unit."""
    if len(one) != len(other):
        return False

    def shape(rig: Rig) -> tuple[Array, Array]:
        gaps = np.linalg.norm(rig.centres[:, None] - rig.centres[None], axis=-1)
        return np.sort(rig.K[:, 0, 0]), np.sort(gaps, axis=None) / max(float(gaps.max()), 1e-12)

    return all(np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(shape(one), shape(other), strict=True))


def calibration_places(folder: Path, called: re.Pattern[str] = _PLACE) -> list[Path]:
    """The folder, then folders in it that are called after calibrations or cameras, and what is in them."""

    def below(place: Path, depth: int) -> list[Path]:
        inside = (
            sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith(".")) if depth else []
        )
        return [place, *(q for p in inside for q in below(p, depth - 1))]

    if not folder.is_dir():
        return []
    inside = sorted(p for p in folder.iterdir() if p.is_dir() and called.search(plain(p.name)))
    return [folder, *(q for p in inside for q in below(p, _MAX_DEPTH))]


def is_calibration_place(name: str) -> bool:
    """True for a name of a folder in which calibrations are looked for."""
    return bool(_PLACE.search(plain(name)))


def unread_calibrations(folder: Path) -> list[Path]:
    """Files of a folder without a calibration that look like one, by name, and are of no known format."""
    return [
        p
        for place in calibration_places(folder)
        for p in sorted(place.iterdir())
        if not p.name.startswith(".")
        and p.suffix.lower() in _DATA_SUFFIXES
        and (_FILE.search(plain(p.stem)) or (place != folder and p.suffix.lower() not in (".txt", ".csv")))
        and p.is_file()
    ]


def calibration_files(path: Path) -> Files:
    """All files of the calibration that one of its files belongs to.

    Raises:
        InputError: the file is not there, or is of no format.
    """
    return _identify(path)[1]


def read_calibration(path: Path, *, metres_per_unit: float = 1.0) -> Rig:
    """Cameras of the calibration that a file belongs to. A picture size that is not given is (0, 0).

    Raises:
        InputError: the file cannot be read as cameras; names file, camera and key.
    """
    calibration_format, files = _identify(path)
    with reading(path):
        return in_metres(calibration_format.read(files), metres_per_unit)


def _identify(path: Path) -> tuple[CalibrationFormat, Files]:
    with reading(path):
        path.stat()
        for place in (path.parent, *path.parent.parents[:_FOLDERS_OF_CAMERAS]):
            for calibration_format in FORMATS:
                for files in calibration_format.find(place):
                    if path in files:
                        return calibration_format, files
    expected = "; ".join(f.DESCRIPTION for f in FORMATS)
    raise InputError(f"{path}: holds no calibration of a known format; expected one of: {expected}")
