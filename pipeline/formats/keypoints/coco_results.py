"""COCO results: one JSON list a camera, an entry for each person in each picture.

AlphaPose writes them, and OpenPose with ``--write_coco_json``: ``{"image_id": "12.jpg", "category_id": 1,
"keypoints": [x, y, confidence, ...], "score": 2.1}``. The last number of ``image_id``, a name or a number, is
the frame; a frame in which nobody was found has no entry.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from pipeline.errors import InputError
from pipeline.formats.keypoints.files import find_number, find_paths
from pipeline.formats.keypoints.listed import (
    LIST,
    ListedPeople,
    beginning,
    first_byte,
    only_json,
    read_list,
)

DESCRIPTION: Final = "COCO results (AlphaPose's, one list a camera)"

_RESULTS: Final = "alphapose-results.json"
"""What AlphaPose calls its list; a tracker's lies beside it."""


def find(place: Path, names: str) -> list[Path]:
    """Folders with a list, and files: where not all that match are lists, those with people.

    An empty file counts beside lists: it is one by name, and an error when it is read.
    """
    matching = find_paths(place, names)
    files = [p for p in matching if p.suffix.lower() == ".json" and p.is_file()]
    if not all(first_byte(file) in (b"[", b"") for file in files):
        files = [file for file in files if _lists_people(file)]
    return [p for p in matching if p in files or (p.is_dir() and _list_in(p) is not None)]


def read(path: Path) -> ListedPeople:
    """Index of a list."""
    file = path if path.is_file() else _list_in(path)
    if file is None:
        raise InputError(f"{path}: holds no JSON list")
    return read_list(path, file, LIST, _frame_of, lambda entry: [entry.get("keypoints")])


def _frame_of(entry: Any, place: int | str, where: str) -> tuple[int, object]:
    """Frame number and picture of an entry. Raises ``InputError``."""
    if not isinstance(entry, dict) or not {"image_id", "keypoints"} <= entry.keys():
        raise InputError(f"{where}: expected an object with image_id and keypoints, as AlphaPose writes it")
    image = entry["image_id"]
    if type(image) is int and 0 <= image < 10**18:
        return image, image
    number = frame_of_name(image) if isinstance(image, str) else None
    if number is None:
        raise InputError(f"{where}: image_id has no frame number: {repr(image)[:80]}")
    return number, image


def frame_of_name(picture: str) -> int | None:
    """Last number in the name of a picture; its suffix has no part in it: the 4 of .mp4, the 2 of .jp2."""
    found = find_number(re.sub(r"\.[A-Za-z]\w*\Z", "", picture))
    return int(found[1]) if found else None


def _list_in(folder: Path) -> Path | None:
    """The only JSON file of a folder, or the one that AlphaPose calls so, if it is a list, else None."""
    file = only_json(folder)
    if file is None and _lists_people(folder / _RESULTS):
        return folder / _RESULTS
    return file if file is not None and first_byte(file) == b"[" else None


def _lists_people(file: Path) -> bool:
    return file.is_file() and first_byte(file) == b"[" and b'"image_id"' in beginning(file)
