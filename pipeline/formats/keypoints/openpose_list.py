"""OpenPose's frames in one JSON file a camera: a list, ``[{"people": [...]}, {"people": [...]}, ...]``.

An entry is what OpenPose writes to a file. Its frame is its place in the list, but for one with ``frame``; or
the last number of its key in a table of pictures, as AlphaPose has it with ``--format open`` and ``cmu``:
``{"12.jpg": {"bodies": [{"joints": [x, y, confidence, ...]}]}, ...}``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pipeline.errors import InputError
from pipeline.formats.keypoints.coco_results import frame_of_name
from pipeline.formats.keypoints.listed import (
    LIST,
    TABLE,
    ListedPeople,
    beginning,
    find_files,
    only_json,
    read_list,
)
from pipeline.formats.keypoints.openpose import PEOPLE, people_of

DESCRIPTION: Final = "OpenPose frames in a list (one file a camera)"


def find(place: Path, names: str) -> list[Path]:
    """JSON files that are lists or tables with people, and folders whose only JSON file is one."""

    def holds(first: bytes) -> bool:
        people = any(f'"{key}"'.encode() in first for key in PEOPLE) and b'"images"' not in first
        return people and (_is_table(first) or LIST.match(first.decode("latin-1")) is not None)

    return find_files(place, names, holds)


def _is_table(first: bytes) -> bool:
    return TABLE.match(first.decode("latin-1")) is not None


def read(path: Path) -> ListedPeople:
    """Index of the list or table."""
    file = path if path.is_file() else only_json(path)
    if file is None:
        raise InputError(f"{path}: holds no JSON file")
    return read_list(path, file, TABLE if _is_table(beginning(file)) else LIST, _frame_of, people_of)


def _frame_of(entry: Any, place: int | str, where: str) -> tuple[int, object]:
    if not isinstance(entry, dict) or not any(isinstance(entry.get(key), list) for key in PEOPLE):
        raise InputError(f"{where}: expected an object with people, as OpenPose writes it")
    if isinstance(place, str):
        number = frame_of_name(place)
        if number is None:
            raise InputError(f"{where}: its key has no frame number: {place!r}")
        return number, place
    frame = entry.get("frame", place)
    if type(frame) is not int or not 0 <= frame < 10**18:
        raise InputError(f"{where}: frame is no number: {repr(frame)[:80]}")
    return frame, place
