"""People of one camera listed in one JSON file: where the entries lie in it, by frame number."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.formats.keypoints.files import KeypointFiles, find_paths, only_file, parse_json

_MAX_ENTRY: Final = 1_000_000
"""Bytes of the longest entry. One of 133 points, in all their digits, takes 8,000."""
_KEY: Final = 1000
"""Bytes that the beginning of a list may take."""
_PIECE: Final = 4_000_000
"""Bytes that are read at once."""
SNIFFED: Final = 65_536
"""Bytes of a file by which its format is told."""
LIST: Final = re.compile(r"\A(ï»¿)?\s*\[")
"""Beginning of a list that is the document, after UTF-8's mark, if that is there, one character a byte."""
TABLE: Final = re.compile(r'\A(ï»¿)?\s*\{(?=\s*"[^"]*"\s*:\s*\{)')
"""Beginning of a document that is a table of objects."""
_GAP: Final = re.compile(r"[\s,]*")
_KEY_GAP: Final = re.compile(r'[\s,]*(?:"([^"\\]*)"\s*:\s*)?')
"""Characters before an entry of a table, with its key."""


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
    people_of: Callable[[Mapping[str, Any]], list[Any]]
    """Flat point list of each person in an entry."""

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
        found = [self.people_of(entry) for entry in parse_json(content) if isinstance(entry, dict)]
        return [person for people in found for person in people]


def read_list(
    path: Path,
    file: Path,
    begins: re.Pattern[str],
    frame_of: Callable[[Any, int | str, str], tuple[int, object] | None],
    people_of: Callable[[Mapping[str, Any]], list[Any]],
) -> ListedPeople:
    """Index of a list in a file: it is read once, in pieces, and no person is kept.

    path: of the camera. begins: what leads to the list. frame_of: frame number and picture of an entry, which
    has this place in the list, or key in the table, and is named so in messages; None for one of another
    camera. Two pictures must not be one frame.

    Raises ``InputError``.
    """
    frames, starts, sizes, pictures = (array("q") for _ in range(4))
    for start, size, entry, key in entries(file, begins):
        place = len(frames) if key is None else key
        if (found := frame_of(entry, place, f"{file}, entry {len(frames)}")) is None:
            continue
        frame, picture = found
        frames.append(frame)
        starts.append(start)
        sizes.append(size)
        pictures.append(hash(picture))
    order = np.argsort(frames, kind="stable")
    numbers, hashes = np.array(frames, np.int64)[order], np.array(pictures, np.int64)[order]
    files = ListedPeople(
        path, np.unique(numbers), 0, file, numbers, np.array(starts, np.int64)[order],
        np.array(sizes, np.int64)[order], people_of,
    )  # fmt: skip
    two = np.flatnonzero((numbers[1:] == numbers[:-1]) & (hashes[1:] != hashes[:-1]))
    if len(two):
        number = int(numbers[two[0]])
        twice = (
            frame_of(entry, place if key is None else key, "")
            for place, (_, _, entry, key) in enumerate(entries(file, begins))
        )
        seen = {repr(found[1]): None for found in twice if found and found[0] == number}
        raise InputError(
            f"{file}: {' and '.join([*seen][:2])} are both frame {number}; the last number in a picture's "
            "name must be its frame, and each camera needs a list of its own"
        )
    return files


def entries(file: Path, begins: re.Pattern[str] = LIST) -> Iterator[tuple[int, int, Any, str | None]]:
    """First byte, length in bytes, content and key of each entry of the list or table in a file.

    Raises ``InputError``.
    """
    decoder, count = json.JSONDecoder(), 0
    with file.open("rb") as stream:
        # One character a byte: all that parts entries is ASCII, and so is a frame number.
        text, before, ended = stream.read(_PIECE).decode("latin-1"), 0, False
        while (opening := begins.search(text)) is None:
            piece = stream.read(_PIECE).decode("latin-1")
            if not piece:
                raise InputError(f"{file}: no JSON list of people: cut off, damaged, or of another format")
            before += max(0, len(text) - _KEY)
            text = text[-_KEY:] + piece
        at = opening.end()
        while True:
            if len(text) - at < _MAX_ENTRY and not ended:
                piece = stream.read(_PIECE).decode("latin-1")
                text, before, at, ended = text[at:] + piece, before + at, 0, not piece
            gap = (_KEY_GAP if begins is TABLE else _GAP).match(text, at)
            key = gap[1] if gap and begins is TABLE else None
            at = gap.end() if gap else at
            if text.startswith("}" if begins is TABLE else "]", at):
                return
            try:
                entry, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                raise InputError(
                    f"{file}: cut off or damaged after {count} entries, at byte {before + at}; write it again"
                ) from None
            yield before + at, end - at, entry, key
            at, count = end, count + 1


def first_byte(file: Path) -> bytes:
    """First byte of a file that is no space, nor UTF-8's mark; nothing for an empty one."""
    with file.open("rb") as stream:
        return stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def beginning(file: Path) -> bytes:
    """First ``SNIFFED`` bytes of a file."""
    with file.open("rb") as stream:
        return stream.read(SNIFFED)


def find_files(place: Path, names: str, holds: Callable[[bytes], bool]) -> list[Path]:
    """JSON files, and folders with one JSON file only, whose first bytes are such."""
    found = []
    for path in find_paths(place, names):
        file = only_json(path) if path.is_dir() else path if path.suffix.lower() == ".json" else None
        if file is not None and holds(beginning(file)):
            found.append(path)
    return found


def only_json(folder: Path) -> Path | None:
    """The only JSON file of a folder, else None."""
    return only_file(folder, ".json")
