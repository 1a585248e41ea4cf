"""OpenPose's JSON: a folder a camera, a file a frame. The last number in a file's name is its frame."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.array_types import Floats
from pipeline.errors import InputError
from pipeline.formats.keypoints.files import (
    KeypointFiles,
    Unreadable,
    find_number,
    find_paths,
    parse_json,
    to_people,
)

DESCRIPTION: Final = "OpenPose JSON (one file a frame)"


@dataclass(frozen=True, eq=False)
class FrameFiles(KeypointFiles):
    """Files of a folder, one a frame. A million of them take 8 MB: names follow a pattern."""

    prefix: str
    width: int
    suffix: str
    """A file is called prefix + number padded with zeros to width + suffix ..."""
    exceptions: Mapping[int, str]
    """... but for these frame numbers."""

    def file(self, number: int) -> Path | None:
        i = int(np.searchsorted(self.numbers, number))
        if i == len(self.numbers) or self.numbers[i] != number:
            return None
        name = self.exceptions.get(number, f"{self.prefix}{number:0{self.width}d}{self.suffix}")
        return self.path / name

    def content(self, number: int) -> bytes:
        file = self.file(number)
        return b"" if file is None else file.read_bytes()

    def persons(self, content: bytes) -> list[Any]:
        return persons_in(content)


def find(place: Path, names: str) -> list[Path]:
    """Folders that hold a JSON file."""
    return [p for p in find_paths(place, names) if p.is_dir() and a_json(p)]


def read(path: Path) -> FrameFiles:
    """Index of a folder; its files are not opened."""
    return index_folder(path, FrameFiles)


F = TypeVar("F", bound=FrameFiles)


def index_folder(path: Path, kind: type[F], camera: str = "") -> F:
    """Index of the JSON files of a folder whose names begin with that of a camera. Raises ``InputError``."""
    numbers = array("q")
    exceptions: dict[int, str] = {}
    pattern: tuple[str, str] | None = None
    width, shortest = 1, 18
    unnumbered = 0
    with os.scandir(path) as entries:
        for entry in entries:
            stem, dot, extension = entry.name.rpartition(".")
            if extension.lower() != "json" or not dot or entry.name.startswith("."):
                continue
            found = find_number(stem)
            if camera and (not found or camera_of(stem[: found.start()]) != camera):
                continue
            if not found:
                unnumbered += 1
                continue
            digits, number = found[1], int(found[1])
            around = (stem[: found.start()], found[2] + dot + extension)
            numbers.append(number)
            pattern = pattern or around
            # The first zero in front tells how wide numbers are padded; wider ones need no padding.
            if width == 1 and digits[0] == "0" and shortest >= len(digits):
                width = len(digits)
            if around != pattern or f"{number:0{width}d}" != digits:
                exceptions[number] = entry.name
            else:
                shortest = min(shortest, len(digits))
    unique = np.unique(np.frombuffer(numbers, dtype=np.int64))
    prefix, suffix = pattern or ("", ".json")
    files = kind(path, unique, unnumbered, prefix, width, suffix, exceptions)
    if len(unique) != len(numbers):
        counts = np.unique(np.frombuffer(numbers, dtype=np.int64), return_counts=True)[1]
        twice = int(unique[counts > 1][0])
        raise InputError(
            f"{path}: more than one file for frame {twice} (one is {files.file(twice)}); "
            "the last number in a file's name must be its frame: keep one set of files"
        )
    return files


def read_people(file: Path, points: int) -> tuple[Floats, str]:
    """``to_people`` of one file."""
    return to_people(lambda: persons_in(file.read_bytes()), points)


PEOPLE: Final = ("people", "bodies")
"""Keys of the people of a frame: OpenPose's, and that of AlphaPose's format cmu."""


def persons_in(content: bytes) -> list[Any]:
    """Point list of each person in the content of a file. Raises ``Unreadable``."""
    document = parse_json(content)
    if not isinstance(document, dict) or not any(isinstance(document.get(key), list) for key in PEOPLE):
        raise Unreadable("no list of people")
    return people_of(document)


def people_of(frame: Mapping[str, Any]) -> list[Any]:
    """Point list of each person of a frame. ``pose_keypoints`` is how OpenPose before 1.2 spelled it."""
    keys = ("pose_keypoints_2d", "pose_keypoints", "joints")
    people = (p for key in PEOPLE for p in frame.get(key) or () if isinstance(p, dict))
    return [next((p[key] for key in keys if key in p), None) for p in people]


def camera_of(prefix: str) -> str:
    """Name of a camera by what comes before the frame number in the names of its files."""
    return prefix.rstrip("_-. ")


def a_json(folder: Path) -> Path | None:
    """One of the JSON files of a folder, None where there is none."""
    if folder.name.startswith("."):
        return None
    with os.scandir(folder) as entries:
        names = (e.name for e in entries if e.name.lower().endswith(".json") and not e.name.startswith("."))
        name = next(names, None)
    return folder / name if name else None


_OTHER_PARTS: Final = (
    *(f"{part}_keypoints_2d" for part in ("face", "hand_left", "hand_right")),
    *(f"{part}_keypoints_3d" for part in ("pose", "face", "hand_left", "hand_right")),
)
"""OpenPose's further arrays of a person, empty."""


def write_people(file: Path, people: NDArray[np.floating[Any]]) -> None:
    """Write the people (D, K, 3) of a picture as ``people_json`` has them."""
    file.write_text(people_json(people, [-1] * len(people)), encoding="utf-8")


def people_json(people: NDArray[np.floating[Any]], ids: Sequence[int]) -> str:
    """Content of a file with the people (D, K, 3) of a picture, pixels and confidence, that have a point; a
    missing point is 0, 0, 0."""
    empty: list[float] = []
    listed = [
        {
            "person_id": [person_id],
            "pose_keypoints_2d": np.nan_to_num(person).astype(float).round(3).ravel().tolist(),
            **dict.fromkeys(_OTHER_PARTS, empty),
        }
        for person_id, person in zip(ids, people, strict=True)
        if (person[:, 2] > 0).any()
    ]
    return json.dumps({"version": 1.3, "people": listed}, separators=(",", ":"))
