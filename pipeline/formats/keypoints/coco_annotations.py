"""COCO annotations: one JSON file a camera, ``{"images": [...], "annotations": [...], "categories": [...]}``.

An image is ``{"id": 12, "file_name": "000012.jpg"}``, an annotation ``{"image_id": 12, "keypoints":
[x, y, v, ...]}``, where v is 0 for a point that is missing, 1 for one that is hidden and 2 for one in sight;
tools put a confidence in its place. The last number of ``file_name`` is the frame.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from pipeline.errors import InputError
from pipeline.formats.keypoints.coco_results import frame_of_name
from pipeline.formats.keypoints.listed import ListedPeople, entries, find_files, only_json, read_list

DESCRIPTION: Final = "COCO annotations (one file a camera)"

_IMAGES: Final = re.compile(r'"images"\s*:\s*\[')
_ANNOTATIONS: Final = re.compile(r'"annotations"\s*:\s*\[')


def find(place: Path, names: str) -> list[Path]:
    """JSON files with images or annotations, and folders whose only JSON file has such."""

    def holds(first: bytes) -> bool:
        begins = first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        return begins == b"{" and any(key in first for key in (b'"images"', b'"annotations"'))

    return find_files(place, names, holds)


def read(path: Path) -> ListedPeople:
    """Index of the annotations: the file is read twice, in pieces, and no person is kept."""
    file = path if path.is_file() else only_json(path)
    if file is None:
        raise InputError(f"{path}: holds no JSON file")
    frames: dict[object, tuple[int, object]] = {}
    for _, _, image in entries(file, _IMAGES):
        name = image.get("file_name") if isinstance(image, dict) else None
        number = frame_of_name(name) if isinstance(name, str) else None
        if number is None:
            raise InputError(f"{file}: an image whose file_name has no frame number: {repr(image)[:80]}")
        frames[image.get("id")] = number, name

    def frame_of(entry: Any, place: int, where: str) -> tuple[int, object]:
        image = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(image, int | str) or image not in frames:
            raise InputError(f"{where}: image_id {repr(image)[:80]} is none of the images")
        return frames[image]

    return read_list(path, file, _ANNOTATIONS, frame_of, lambda entry: [entry.get("keypoints")])
