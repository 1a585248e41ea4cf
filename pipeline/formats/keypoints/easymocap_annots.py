"""EasyMocap's annotations: a folder a camera, a JSON file a frame.

``{"filename": ..., "annots": [{"personID": 0, "bbox": [...], "keypoints": [[x, y, c], ...]}]}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.formats.keypoints.files import Unreadable, find_paths, parse_json
from pipeline.formats.keypoints.listed import beginning
from pipeline.formats.keypoints.openpose import FrameFiles, a_json, index_folder

DESCRIPTION: Final = "EasyMocap annotations (annots/, one file a frame)"


@dataclass(frozen=True, eq=False)
class AnnotatedFrames(FrameFiles):
    """Files of annotations of a folder."""

    def persons(self, content: bytes) -> list[Any]:
        document = parse_json(content)
        annots = document.get("annots") if isinstance(document, dict) else None
        if not isinstance(annots, list):
            raise Unreadable("no list of annots")
        people = (a.get("keypoints") for a in annots if isinstance(a, dict))
        lists = (points for points in people if isinstance(points, list))
        return [[n for point in points if isinstance(point, list) for n in point] for points in lists]


def find(place: Path, names: str) -> list[Path]:
    """Folders in which a JSON file has annots."""
    folders = (p for p in find_paths(place, names) if p.is_dir())
    return [p for p in folders if (file := a_json(p)) is not None and b'"annots"' in beginning(file)]


def read(path: Path) -> AnnotatedFrames:
    """Index of a folder; its files are not opened."""
    return index_folder(path, AnnotatedFrames)
