"""MMPose's predictions: one JSON file a video, an entry for each frame with the people in it.

``[{"frame_id": 0, "instances": [{"keypoints": [[x, y], ...], "keypoint_scores": [c, ...]}]}, ...]``, or the
same list as ``instance_info`` beside ``meta_info``. Frames count as in ``frame_id``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pipeline.errors import InputError
from pipeline.formats.keypoints.listed import ListedPeople, find_files, only_json, read_list

DESCRIPTION: Final = "MMPose JSON (one file a camera)"

_FRAMES: Final = re.compile(r'\A\s*(ï»¿)?\[|"instance_info"\s*:\s*\[')


def find(place: Path, names: str) -> list[Path]:
    """JSON files with instances, and folders whose only JSON file has such."""
    return find_files(place, names, lambda first: b'"instances"' in first or b'"meta_info"' in first)


def read(path: Path) -> ListedPeople:
    """Index of the frames."""
    file = path if path.is_file() else only_json(path)
    if file is None:
        raise InputError(f"{path}: holds no JSON file")
    return read_list(path, file, _FRAMES, _frame_of, _people_of)


def _frame_of(entry: Any, place: int | str, where: str) -> tuple[int, object]:
    frame = entry.get("frame_id") if isinstance(entry, dict) else None
    if type(frame) is not int or not 0 <= frame < 10**18:
        raise InputError(f"{where}: expected an object with frame_id and instances, as MMPose writes it")
    return frame, place


def _people_of(entry: Mapping[str, Any]) -> list[Any]:
    return [flat(one) for one in entry.get("instances") or () if isinstance(one, dict)]


def flat(instance: Mapping[str, Any]) -> list[Any]:
    """x, y, confidence, x, ... of an instance."""
    points, scores = instance.get("keypoints"), instance.get("keypoint_scores")
    if not isinstance(points, list) or not isinstance(scores, list) or len(points) != len(scores):
        return []
    return [n for p, c in zip(points, scores, strict=True) if isinstance(p, list) for n in (*p[:2], c)]
