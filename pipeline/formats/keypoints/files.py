"""Keypoint files of one camera, whatever their format: an index by frame number, and the people of a frame.

A frame that cannot be used never stops a run: its view is missing then, with a reason.
"""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import translate
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.array_types import Floats
from pipeline.cameras import MAX_CAMERAS

MAX_PEOPLE: Final = 12
"""People of one view that take part in the matching: those with the highest confidence."""

MIN_CONFIDENCE: Final = 0.3
"""Confidence below which a keypoint is missing, on the scale of ``find_scales``. Fits of synthetic
detections are as good at 0.05 to 0.3 (3 views, 6 px, 15 % outliers, 30 % missing: 11.4 mm), those of real
ones (OpenPose, balancing) best at 0.3."""

NO_FILE: Final = "no keypoint file"
"""Reason that a frame has nobody: it has no file."""

_NUMBER = re.compile(r"(\d+)(\D*)\Z")


class Unreadable(Exception):
    """Content of a frame that cannot be used; the message is the reason."""


@dataclass(frozen=True, eq=False)
class KeypointFiles(ABC):
    """One camera's keypoints, by frame number. A format says what a frame is read from."""

    path: Path
    """Folder or file that holds them."""
    numbers: NDArray[np.int64]
    """(N,) frame numbers, rising."""
    unnumbered: int
    """Count of JSON files that carry no frame number, and are not used."""

    unit: ClassVar[str] = "files"
    """Noun, for messages, of what there is one of for each number."""
    lists_empty_frames: ClassVar[bool] = True
    """A frame in which nobody was found has a number, so that one without a number is missing."""

    def __len__(self) -> int:
        return len(self.numbers)

    order_known_by: ClassVar[str] = "detected"
    """Reason that the order of the points is known, for people."""

    @property
    def known_order(self) -> str | None:
        """Order of the points, a name in ``POINT_ORDERS``, where the files state it."""
        return None

    def in_known_order(self, mapping: Mapping[str, str]) -> KeypointFiles:
        """These keypoints; those of points with names, in BODY_25's order, with ``known_order``.

        mapping: BODY_25's name of a point → that in the files. Raises ``InputError`` where names do not tell.
        """
        return self

    def has(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these frame numbers are there."""
        return np.isin(numbers, self.numbers)

    @abstractmethod
    def file(self, number: int) -> Path | None:
        """The file that tells of a frame number, None where there is none."""

    @abstractmethod
    def content(self, number: int) -> bytes:
        """Bytes that tell of a frame number that has a file. Raises ``OSError``."""

    @abstractmethod
    def persons(self, content: bytes) -> list[Any]:
        """Flat list x, y, confidence, x, ... of each person in the content of a frame, in the numbers of the
        file, unchecked. Raises ``Unreadable``."""

    def people(self, number: int, points: int) -> tuple[Floats, str]:
        """``to_people`` of a frame number."""
        if self.file(number) is None:
            return nobody(points), NO_FILE
        return to_people(lambda: self.persons(self.content(number)), points)

    def point_counts(self, number: int) -> set[int]:
        """Numbers of points that the people of a frame have; empty for nobody, or where it cannot be read."""
        try:
            persons = self.persons(self.content(number))
        except (OSError, Unreadable):
            return set()
        return {len(v) // 3 for v in persons if isinstance(v, list) and v and len(v) % 3 == 0}


def to_people(read: Callable[[], list[Any]], points: int) -> tuple[Floats, str]:
    """The people of a frame (P, points, 3) as x, y, confidence; and a reason if P is 0.

    A missing point is NaN, NaN, 0. Points that are not finite, have no confidence, or lie at exactly (0, 0)
    are missing. A person with another number of points is left out.

    read: gives the flat list of each person, and may raise ``OSError`` or ``Unreadable``.
    """
    try:
        persons = read()
    except OSError as error:
        return nobody(points), f"cannot be read ({error.strerror or error})"
    except Unreadable as error:
        return nobody(points), str(error)
    kept: list[Floats] = []
    reason = "nobody"
    for values in persons:
        if not isinstance(values, list) or not values:
            continue  # an empty person {}
        if len(values) != 3 * points:
            reason = f"{len(values)} numbers a person, expected {3 * points}"
            continue
        try:
            xyc = np.array(values, dtype=np.float64).reshape(points, 3)
        except (TypeError, ValueError, OverflowError):
            reason = "not numbers"
            continue
        # NaN compares false; a number that float32 cannot hold is no coordinate.
        seen = (np.abs(xyc) < 1e9).all(1) & (xyc[:, 2] > 0) & xyc[:, :2].any(1)
        if seen.any():
            xyc[~seen] = np.nan, np.nan, 0
            kept.append(xyc.astype(np.float32))
        elif not np.isfinite(xyc).all():
            reason = "not finite numbers"
    if not kept:
        return nobody(points), reason
    if len(kept) > MAX_PEOPLE:
        order = np.argsort([-float(p[:, 2].sum()) for p in kept], kind="stable")[:MAX_PEOPLE]
        kept = [kept[i] for i in sorted(order)]
    return np.stack(kept), ""


def nobody(points: int) -> Floats:
    return np.empty((0, points, 3), dtype=np.float32)


def parse_json(content: bytes) -> Any:
    """A JSON document. Raises ``Unreadable``."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise Unreadable("not JSON (cut off?)") from None


def find_number(stem: str) -> re.Match[str] | None:
    """The last run of digits in a name without its suffix, group 1, and what follows it, group 2.

    That is the frame number: 12 of ``cam01_000000000012_keypoints``. None where there is none below 10¹⁸.
    """
    found = _NUMBER.search(stem)
    return found if found and len(found[1]) <= 18 else None


def find_paths(place: Path, names: str) -> list[Path]:
    """Folders in a place, and files where there are not too many for one a camera, by name.

    names: pattern that they match. Hidden ones do not count.
    """
    matches = re.compile(translate(names)).match
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(place) as found:
        for entry in found:
            if matches(entry.name) and not entry.name.startswith("."):
                (folders if entry.is_dir() else files).append(entry.name)
    return [place / name for name in sorted(folders + (files if len(files) <= MAX_CAMERAS else []))]


def only_file(folder: Path, *suffixes: str) -> Path | None:
    """The only file of a folder with one of these suffixes, in lower case, else None; none that is hidden."""
    with os.scandir(folder) as found:
        there = (e.name for e in found if e.name.lower().endswith(suffixes) and not e.name.startswith("."))
        files = [folder / name for name in islice(there, 2)]
    return files[0] if len(files) == 1 else None
