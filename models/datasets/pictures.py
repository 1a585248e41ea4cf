"""Pictures of a data set by their names in its rows: files and frames of videos."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from models.datasets.rows import file_and_frame
from pipeline.array_types import Pixels
from pipeline.errors import InputError
from pipeline.video import VideoInfo, probe, read_frames, to_rgb

_probe = lru_cache(maxsize=64)(probe)
"""Cached ``probe``, which reads all packets of a video to find its frames."""


def video_up_to(path: Path, frame: int) -> VideoInfo:
    """Probe the video at ``path``. Raises ``InputError`` when there is none, or it ends before that frame."""
    info = _probe(path)
    if frame >= len(info.times_s):
        raise InputError(
            f"{path}: has {len(info.times_s)} frames, but the data's rows name frame {frame}. The video is "
            "cut off, or another one."
        )
    return info


def read_picture(path: Path) -> Pixels:
    """Read RGB pixels (H, W, 3), not turned by the file's orientation. Raises ``InputError``."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    picture = cv2.imread(str(path), flags) if path.is_file() else None
    if picture is None:
        raise InputError(
            f"{path}: cannot be read as a picture. Give the folder below which the pictures of the data lie "
            "as root."
        )
    return np.asarray(picture, np.uint8)


def read_pictures(root: Path, names: Sequence[str]) -> list[Pixels]:
    """Read pictures (H, W, 3) RGB by ``imgname``; ``video.avi#12`` is the 13th frame of a video.

    Each video is decoded once, in order, from the key frame before the first of its frames.

    Raises ``InputError``: one is missing, damaged, or after the end of its video.
    """
    pictures: dict[str, Pixels] = {}
    numbers: dict[str, list[int]] = {}
    for name in dict.fromkeys(names):
        file, number = file_and_frame(name)
        if number is None:
            pictures[name] = read_picture(root / name)
        else:
            numbers.setdefault(file, []).append(number)
    for video, frames in numbers.items():
        frames.sort()
        info = video_up_to(root / video, frames[-1])
        for number, frame in zip(frames, read_frames(info, frames), strict=True):
            if frame is None:
                raise InputError(f"{info.path}: frame {number} cannot be decoded. Copy the video again.")
            pictures[f"{video}#{number}"] = to_rgb(frame)
    return [pictures[name] for name in names]
