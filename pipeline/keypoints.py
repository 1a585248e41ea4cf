"""2D keypoint files: index a camera's folder, read OpenPose JSON.

A file that cannot be used never stops a run: its view is missing for that frame, with a reason.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

Floats = NDArray[np.float32]

MAX_PEOPLE: Final = 12
"""People of one view that take part in the matching: those with the highest confidence."""

MIN_CONFIDENCE: Final = 0.3
"""Confidence below which a keypoint is missing, on the scale of ``find_scales``. Fits of synthetic
detections are as good at 0.05 to 0.3 (3 views, 6 px, 15 % outliers, 30 % missing: 11.4 mm), those of real
ones (OpenPose, balancing) best at 0.3."""

_NUMBER = re.compile(r"(\d+)(\D*)\Z")


@dataclass(frozen=True)
class KeypointFiles:
    """One camera's keypoint files, by frame number. A million of them take 8 MB: names follow a pattern."""

    folder: Path
    numbers: NDArray[np.int64]
    """(N,) frame numbers that have a file, rising."""
    prefix: str
    width: int
    suffix: str
    """A file is called prefix + number padded with zeros to width + suffix ..."""
    exceptions: Mapping[int, str]
    """... but for these frame numbers."""

    def __len__(self) -> int:
        return len(self.numbers)

    def file(self, number: int) -> Path | None:
        """The file of a frame number, None where there is none."""
        i = int(np.searchsorted(self.numbers, number))
        if i == len(self.numbers) or self.numbers[i] != number:
            return None
        name = self.exceptions.get(number, f"{self.prefix}{number:0{self.width}d}{self.suffix}")
        return self.folder / name

    def has(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these frame numbers have a file."""
        return np.isin(numbers, self.numbers)


def index_keypoints(folder: Path) -> tuple[KeypointFiles, int]:
    """Index the JSON files of one camera's folder, and count those that carry no frame number.

    The frame number is the last run of digits in the name: ``cam01_000000000012_keypoints.json`` is 12.

    Raises:
        InputError: two files have the same frame number.
    """
    numbers = array("q")
    exceptions: dict[int, str] = {}
    pattern: tuple[str, str] | None = None
    width, shortest = 1, 18
    unnumbered = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, dot, extension = entry.name.rpartition(".")
            if extension.lower() != "json" or not dot or entry.name.startswith("."):
                continue
            found = _NUMBER.search(stem)
            if not found or len(found[1]) > 18:
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
    files = KeypointFiles(folder, unique, prefix, width, suffix, exceptions)
    if len(unique) != len(numbers):
        counts = np.unique(np.frombuffer(numbers, dtype=np.int64), return_counts=True)[1]
        twice = int(unique[counts > 1][0])
        raise InputError(
            f"{folder}: more than one file for frame {twice} (one is {files.file(twice)}); "
            "the last number in a file's name must be its frame: keep one set of files"
        )
    return files, unnumbered


def read_people(file: Path, points: int) -> tuple[Floats, str]:
    """Read one OpenPose JSON file: people (P, points, 3) of x, y, confidence; and a reason if P is 0.

    A missing point is NaN, NaN, 0. Points that are not finite, have no confidence, or lie at exactly (0, 0)
    are missing. A person with another number of points is left out.
    """
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        return _nobody(points), f"cannot be read ({error.strerror or error})"
    except (ValueError, RecursionError):
        return _nobody(points), "not JSON (cut off?)"
    people = document.get("people") if isinstance(document, dict) else None
    if not isinstance(people, list):
        return _nobody(points), "no list of people"
    kept: list[Floats] = []
    reason = "nobody"
    for person in people:
        values = _points_of(person)
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
        return _nobody(points), reason
    if len(kept) > MAX_PEOPLE:
        order = np.argsort([-float(p[:, 2].sum()) for p in kept], kind="stable")[:MAX_PEOPLE]
        kept = [kept[i] for i in sorted(order)]
    return np.stack(kept), ""


def _nobody(points: int) -> Floats:
    return np.empty((0, points, 3), dtype=np.float32)


def _points_of(person: Any) -> Any:
    """The point list of a person: ``pose_keypoints`` is how OpenPose before 1.2 spelled it."""
    if not isinstance(person, dict):
        return None
    return person.get("pose_keypoints_2d", person.get("pose_keypoints"))


def count_points(file: Path) -> set[int]:
    """Numbers of points that the people of a file have; empty for nobody or a file that cannot be read."""
    try:
        people = json.loads(file.read_bytes())["people"]
        found = [_points_of(person) for person in people]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
    return {len(v) // 3 for v in found if isinstance(v, list) and v and len(v) % 3 == 0}


def read_views(files: Sequence[KeypointFiles | None], numbers: NDArray[np.int64], points: int) -> Floats:
    """Everybody in these frames of all cameras: (V, T, P, points, 3), P being the most people in one file.

    ``numbers`` (V, T) are file numbers, −1 where a camera has no frame. No person is NaN, NaN, 0.
    """
    views, frames = numbers.shape
    found: dict[tuple[int, int], Floats] = {}
    for v, camera in enumerate(files):
        if camera is None:
            continue
        for t in range(frames):
            file = camera.file(int(numbers[v, t])) if numbers[v, t] >= 0 else None
            if file is not None:
                people, _ = read_people(file, points)
                if len(people):
                    found[v, t] = people
    most = max((len(p) for p in found.values()), default=1)
    out = np.full((views, frames, most, points, 3), np.nan, dtype=np.float32)
    out[..., 2] = 0
    for (v, t), people in found.items():
        out[v, t, : len(people)] = people
    return out
