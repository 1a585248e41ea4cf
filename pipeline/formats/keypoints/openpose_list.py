"""OpenPose's frames in one JSON file a camera: a list, ``[{"people": [...]}, {"people": [...]}, ...]``.

An entry is what OpenPose writes to a file. Its frame is its place in the list, but for one with ``frame``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pipeline.errors import InputError
from pipeline.formats.keypoints.listed import LIST, ListedPeople, find_files, only_json, read_list
from pipeline.formats.keypoints.openpose import people_of

DESCRIPTION: Final = "OpenPose frames in a list (one file a camera)"


def find(place: Path, names: str) -> list[Path]:
    """JSON files that are lists with people, and folders whose only JSON file is one."""

    def holds(first: bytes) -> bool:
        begins = first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        return begins == b"[" and b'"people"' in first

    return find_files(place, names, holds)


def read(path: Path) -> ListedPeople:
    """Index of the list."""
    file = path if path.is_file() else only_json(path)
    if file is None:
        raise InputError(f"{path}: holds no JSON file")
    return read_list(path, file, LIST, _frame_of, people_of)


def _frame_of(entry: Any, place: int, where: str) -> tuple[int, object]:
    if not isinstance(entry, dict) or not isinstance(entry.get("people"), list):
        raise InputError(f"{where}: expected an object with people, as OpenPose writes it")
    frame = entry.get("frame", place)
    if type(frame) is not int or not 0 <= frame < 10**18:
        raise InputError(f"{where}: frame is no number: {repr(frame)[:80]}")
    return frame, place
