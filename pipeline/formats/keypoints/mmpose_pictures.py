"""MMPose's predictions of pictures: a folder a camera, a JSON file a picture with the list of its people.

``[{"keypoints": [[x, y], ...], "keypoint_scores": [c, ...], "bbox": ...}, ...]``, or the same list as
``instance_info`` beside ``meta_info``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.formats.keypoints.files import Unreadable, find_paths, parse_json
from pipeline.formats.keypoints.listed import beginning, only_json
from pipeline.formats.keypoints.mmpose import flat
from pipeline.formats.keypoints.openpose import FrameFiles, a_json, index_folder

DESCRIPTION: Final = "MMPose JSON of pictures (one file a frame)"


@dataclass(frozen=True, eq=False)
class PredictedFrames(FrameFiles):
    """Files of predictions of a folder."""

    def persons(self, content: bytes) -> list[Any]:
        document = parse_json(content)
        people = document.get("instance_info") if isinstance(document, dict) else document
        if not isinstance(people, list):
            raise Unreadable("no list of instances")
        return [flat(one) for one in people if isinstance(one, dict)]


def find(place: Path, names: str) -> list[Path]:
    """Folders of several JSON files in which one is a list, or has such a list."""
    folders = [p for p in find_paths(place, names) if p.is_dir() and only_json(p) is None]
    return [p for p in folders if (file := a_json(p)) is not None and _is_one(beginning(file))]


def _is_one(first: bytes) -> bool:
    return first.lstrip()[:1] == b"[" or b'"instance_info"' in first


def read(path: Path) -> PredictedFrames:
    """Index of a folder; its files are not opened."""
    return index_folder(path, PredictedFrames)
