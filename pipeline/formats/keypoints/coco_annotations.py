"""COCO annotations: a JSON file a camera, ``{"images": [...], "annotations": [...], "categories": [...]}``.

One file may hold several cameras, whose images are called ``cam01/000001.jpg`` or ``cam01_000001.jpg``.

An image is ``{"id": 12, "file_name": "000012.jpg"}``, an annotation ``{"image_id": 12, "keypoints":
[x, y, v, ...]}``, where v is 0 for a point that is missing, 1 for one that is hidden and 2 for one in sight;
tools put a confidence in its place. The last number of ``file_name`` is the frame.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from pipeline.errors import InputError
from pipeline.formats.keypoints.coco_results import by_camera, frame_of_name, version_of
from pipeline.formats.keypoints.listed import ListedPeople, entries, find_files, only_json, read_list

DESCRIPTION: Final = "COCO annotations (one file a camera, or one of all)"

_IMAGES: Final = re.compile(r'"images"\s*:\s*\[')
_ANNOTATIONS: Final = re.compile(r'"annotations"\s*:\s*\[')


def find(place: Path, names: str) -> list[Path]:
    """JSON files with images or annotations, and folders whose only JSON file has such. Of a file that is the
    only one, and holds images of several cameras: a path for each, the file and the camera's name."""

    def holds(first: bytes) -> bool:
        begins = first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        return begins == b"{" and any(key in first for key in (b'"images"', b'"annotations"'))

    found = find_files(place, "*", holds)
    only = found[0] if len(found) == 1 and found[0].is_file() else None
    if only is not None and len(cameras := _cameras(only, version_of(only))) > 1:
        found = [only / camera for camera in sorted(cameras)]
    return [path for path in found if fnmatchcase(path.name, names)]


@lru_cache(maxsize=16)
def _cameras(file: Path, version: tuple[int, int]) -> dict[str, frozenset[object]]:
    """Ids of the images of each camera in a file; empty where they cannot be read. version: of the file."""
    try:
        return by_camera((image["id"], image["file_name"]) for _, _, image, _ in entries(file, _IMAGES))
    except (InputError, LookupError, TypeError, AttributeError):
        return {}


def read(path: Path) -> ListedPeople:
    """Index of the annotations of a camera: the file is read in pieces, and no person is kept."""
    own: Collection[object] | None = None
    file = path if path.is_file() else path.parent if path.parent.is_file() else only_json(path)
    if file is None:
        raise InputError(f"{path}: holds no JSON file")
    if file == path.parent:
        own = _cameras(file, version_of(file)).get(path.name, ())
    frames: dict[object, tuple[int, object]] = {}
    for _, _, image, _ in entries(file, _IMAGES):
        name = image.get("file_name") if isinstance(image, dict) else None
        number = frame_of_name(name) if isinstance(name, str) else None
        if number is None:
            raise InputError(f"{file}: an image whose file_name has no frame number: {repr(image)[:80]}")
        if not isinstance(image.get("id"), int | str):
            raise InputError(f"{file}: an image without an id that is a number: {repr(image)[:80]}")
        frames[image["id"]] = number, name

    def frame_of(entry: Any, place: int | str, where: str) -> tuple[int, object] | None:
        image = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(image, int | str) or image not in frames:
            raise InputError(f"{where}: image_id {repr(image)[:80]} is none of the images")
        return frames[image] if own is None or image in own else None

    return read_list(path, file, _ANNOTATIONS, frame_of, lambda entry: [entry.get("keypoints")])
