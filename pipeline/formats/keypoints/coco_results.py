"""COCO results: one JSON list a camera, an entry for each person in each picture.

AlphaPose writes them, and OpenPose with ``--write_coco_json``: ``{"image_id": "12.jpg", "category_id": 1,
"keypoints": [x, y, confidence, ...], "score": 2.1}``. The last number of ``image_id``, a name or a number, is
the frame; a frame in which nobody was found has no entry.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.formats.keypoints.files import KeypointFiles, find_number, parse_json

DESCRIPTION: Final = "COCO results (AlphaPose's, one list a camera)"

_MAX_ENTRY: Final = 1_000_000
"""Bytes of the longest entry. One of 133 points, in all their digits, takes 8,000."""
_PIECE: Final = 4_000_000
"""Bytes that are read at once."""
_START = re.compile(r"(ï»¿)?\s*\[")  # after UTF-8's mark, if that is there, one character a byte
_GAP = re.compile(r"[\s,]*")


@dataclass(frozen=True, eq=False)
class ListedPeople(KeypointFiles):
    """Where the entries of one list lie in its file: 24 bytes of memory an entry and 8 a frame, 3.5 MB for an
    hour of one person at 30 fps."""

    list_file: Path
    frames: NDArray[np.int64]
    """(E,) frame number of each entry, rising."""
    starts: NDArray[np.int64]
    """(E,) its first byte in the file ..."""
    sizes: NDArray[np.int64]
    """... and its length."""

    unit: ClassVar[str] = "frames"
    lists_empty_frames: ClassVar[bool] = False

    def file(self, number: int) -> Path | None:
        return self.list_file if number >= 0 else None

    def content(self, number: int) -> bytes:
        first, end = np.searchsorted(self.frames, [number, number + 1])
        entries = []
        with self.list_file.open("rb") as stream:
            for i in range(first, end):
                stream.seek(int(self.starts[i]))
                entries.append(stream.read(int(self.sizes[i])))
        return b"[" + b",".join(entries) + b"]"

    def persons(self, content: bytes) -> list[Any]:
        # The file may be another one by now.
        return [entry.get("keypoints") for entry in parse_json(content) if isinstance(entry, dict)]


def find(place: Path, names: str) -> list[Path]:
    """Folders whose only JSON file is a list, and files, where all that match are lists.

    An empty file counts beside lists: it is one by name, and an error when it is read.
    """
    matching = [p for p in sorted(place.iterdir()) if fnmatchcase(p.name, names) and p.name[0] != "."]
    files = [p for p in matching if p.suffix.lower() == ".json" and p.is_file()]
    if not all(_first_byte(file) in (b"[", b"") for file in files):
        files = []
    return [p for p in matching if p in files or (p.is_dir() and _list_in(p) is not None)]


def read(path: Path) -> ListedPeople:
    """Index of a list: the file is read once, in pieces, and no person is kept."""
    file = path if path.is_file() else _list_in(path)
    if file is None:
        raise InputError(f"{path}: holds no JSON list")
    frames, starts, sizes, pictures = (array("q") for _ in range(4))
    for start, size, entry in _entries(file):
        frames.append(_frame_of(entry, f"{file}, entry {len(frames)}"))
        starts.append(start)
        sizes.append(size)
        pictures.append(hash(entry["image_id"]))
    order = np.argsort(frames, kind="stable")
    frame, picture = np.array(frames)[order], np.array(pictures)[order]
    files = ListedPeople(
        path, np.unique(frame), 0, file, frame, np.array(starts)[order], np.array(sizes)[order]
    )
    two = np.flatnonzero((frame[1:] == frame[:-1]) & (picture[1:] != picture[:-1]))
    if len(two):
        number = int(frame[two[0]])
        names = {repr(entry["image_id"]): None for entry in parse_json(files.content(number))}
        raise InputError(
            f"{file}: {' and '.join([*names][:2])} are both frame {number}; the last number in a picture's "
            "name must be its frame, and each camera needs a list of its own"
        )
    return files


def _entries(file: Path) -> Iterator[tuple[int, int, Any]]:
    """First byte, length in bytes and content of each entry of the list in a file. Raises ``InputError``."""
    decoder, count = json.JSONDecoder(), 0
    with file.open("rb") as stream:
        # One character a byte: all that parts entries is ASCII, and so is a frame number.
        text, before, ended = stream.read(_PIECE).decode("latin-1"), 0, False
        opening = _START.match(text)
        if opening is None:
            raise InputError(f"{file}: no JSON list; expected {DESCRIPTION}")
        at = opening.end()
        while True:
            if len(text) - at < _MAX_ENTRY and not ended:
                piece = stream.read(_PIECE).decode("latin-1")
                text, before, at, ended = text[at:] + piece, before + at, 0, not piece
            gap = _GAP.match(text, at)
            at = gap.end() if gap else at
            if text.startswith("]", at):
                return
            try:
                entry, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                raise InputError(
                    f"{file}: cut off or damaged after {count} entries, at byte {before + at}; write it again"
                ) from None
            yield before + at, end - at, entry
            at, count = end, count + 1


def _frame_of(entry: Any, where: str) -> int:
    """Frame number of an entry. Raises ``InputError``."""
    if not isinstance(entry, dict) or not {"image_id", "keypoints"} <= entry.keys():
        raise InputError(f"{where}: expected an object with image_id and keypoints, as AlphaPose writes it")
    image = entry["image_id"]
    if type(image) is int and 0 <= image < 10**18:
        return image
    # A suffix has no part in it: the 4 of .mp4, the 2 of .jp2.
    found = find_number(re.sub(r"\.[A-Za-z]\w*\Z", "", image)) if isinstance(image, str) else None
    if found is None:
        raise InputError(f"{where}: image_id has no frame number: {repr(image)[:80]}")
    return int(found[1])


def _list_in(folder: Path) -> Path | None:
    """The only JSON file of a folder if it is a list, else None."""
    with os.scandir(folder) as entries:
        there = (e.name for e in entries if e.name.lower().endswith(".json") and not e.name.startswith("."))
        files = [folder / name for name in islice(there, 2)]
    return files[0] if len(files) == 1 and _first_byte(files[0]) == b"[" else None


def _first_byte(file: Path) -> bytes:
    """First byte of a file that is no space, nor UTF-8's mark; nothing for an empty one."""
    with file.open("rb") as stream:
        return stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
