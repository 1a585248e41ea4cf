"""COCO results: one JSON list a camera, or one of all, an entry for each person in each picture.

AlphaPose writes them, and OpenPose with ``--write_coco_json``: ``{"image_id": "12.jpg", "category_id": 1,
"keypoints": [x, y, confidence, ...], "score": 2.1}``. The last number of ``image_id``, a name or a number, is
the frame; a frame in which nobody was found has no entry. Pictures of several cameras are called
``cam01/12.jpg`` or ``cam01_12.jpg``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pipeline.errors import InputError
from pipeline.formats.keypoints.files import find_number, find_paths
from pipeline.formats.keypoints.listed import (
    LIST,
    ListedPeople,
    beginning,
    entries,
    first_byte,
    only_json,
    read_list,
)
from pipeline.formats.keypoints.openpose import camera_of

DESCRIPTION: Final = "COCO results (AlphaPose's, one list a camera, or one of all)"

_OF_CAMERAS: Final = re.compile(rb'"image_id"\s*:\s*"[^"]*[^"\d.][^"]*\d')
"""Name of a picture with more than a number in it: that of a camera may be there."""
_RESULTS: Final = "alphapose-results.json"
"""What AlphaPose calls its list; a tracker's lies beside it."""


def find(place: Path, names: str) -> list[Path]:
    """Folders with a list, and files: where not all that match are lists, those with people.

    An empty file counts beside lists: it is one by name, and an error when it is read. Of a list that is the
    only one, and has pictures of several cameras: a path for each, the file and the camera's name.
    """
    matching = find_paths(place, names)
    files = [p for p in matching if p.suffix.lower() == ".json" and p.is_file()]
    if not all(first_byte(file) in (b"[", b"") for file in files):
        files = [file for file in files if _lists_people(file)]
    found = [p for p in matching if p in files or (p.is_dir() and _list_in(p) is not None)]
    if len(found) == len(files) == 1 and len(cameras := _cameras(found[0], version_of(found[0]))) > 1:
        return [found[0] / camera for camera in sorted(cameras)]
    return found


def version_of(file: Path) -> tuple[int, int]:
    """Time and size of a file, which change with it."""
    status = file.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=16)
def _cameras(file: Path, version: tuple[int, int]) -> dict[str, frozenset[object]]:
    """Pictures of each camera in a list; empty where they cannot be read. version: of the file."""
    if not _OF_CAMERAS.search(beginning(file)):  # most name none, and need not be read for this
        return {}
    try:
        return by_camera((entry["image_id"], entry["image_id"]) for _, _, entry, _ in entries(file))
    except (InputError, LookupError, TypeError, AttributeError):
        return {}


def by_camera(pictures: Iterable[tuple[object, str]]) -> dict[str, frozenset[object]]:
    """Ids of the pictures (id, name) of each camera, by their folders, else by how their names begin; empty
    where they name no camera, or share no frame: two takes of one camera."""
    by_folder: dict[str, dict[object, int]] = {}
    by_name: dict[str, dict[object, int]] = {}
    for key, name in pictures:
        path = PurePosixPath(name.replace("\\", "/"))
        number = find_number(path.stem)
        frame, start = (int(number[1]), number.start()) if number else (-1, 0)
        by_folder.setdefault(path.parent.name, {})[key] = frame
        by_name.setdefault(camera_of(path.stem[:start]), {})[key] = frame
    found = by_folder if len(by_folder) > 1 else by_name
    frames = [{*ids.values()} for ids in found.values()]
    if "" in found or sum(map(len, frames)) == len(set[int]().union(*frames)):
        return {}
    return {camera: frozenset(ids) for camera, ids in found.items()}


def read(path: Path) -> ListedPeople:
    """Index of a list, or of a camera's entries in it."""
    file = path if path.is_file() else path.parent if path.parent.is_file() else _list_in(path)
    if file is None:
        raise InputError(f"{path}: holds no JSON list")
    own = _cameras(file, version_of(file)).get(path.name, ()) if file == path.parent else None

    def frame_of(entry: Any, place: int | str, where: str) -> tuple[int, object] | None:
        frame, picture = _frame_of(entry, place, where)
        return (frame, picture) if own is None or picture in own else None

    return read_list(path, file, LIST, frame_of, lambda entry: [entry.get("keypoints")])


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
