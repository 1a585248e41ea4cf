"""Calibration files: one module a format, the choice among those of a folder, and reading by path.

A format is a module with two functions, ``find`` and ``read``, and a line in ``FORMATS``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

from pipeline.calibrations import easymocap, pose2sim
from pipeline.calibrations.checks import in_metres
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


FORMATS: Final[tuple[CalibrationFormat, ...]] = (pose2sim, easymocap)


def find_calibration(folder: Path) -> tuple[Path | None, tuple[Path, ...]]:
    """First file of a recording's calibration, None where there is none, and those of the ones not chosen.

    ``calibration.toml`` beside the videos comes first, then the same name in ``calibration/``; without
    either, there must be one candidate only.

    Raises:
        InputError: there are several that none is first among.
    """
    found = [
        files[0]
        for place in (folder, folder / "calibration")
        if place.is_dir()
        for calibration_format in FORMATS
        for files in calibration_format.find(place)
    ]
    first = [p for p in found if p.name == "calibration.toml"]
    if not found:
        return None, ()
    if not first and len(found) > 1:
        names = ", ".join(str(p.relative_to(folder)) for p in found)
        raise InputError(
            f"{folder}: several calibrations: {names}; name one in recording.yaml, "
            f"calibration: {{path: {found[0].relative_to(folder)}}}"
        )
    chosen = (first or found)[0]
    return chosen, tuple(p for p in found if p != chosen)


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
        for calibration_format in FORMATS:
            for files in calibration_format.find(path.parent):
                if path in files:
                    return calibration_format, files
    expected = "; ".join(f.DESCRIPTION for f in FORMATS)
    raise InputError(f"{path}: holds no calibration of a known format; expected one of: {expected}")
