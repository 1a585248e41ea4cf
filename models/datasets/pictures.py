"""Pictures of a data set by their names in its rows: files, and frames of videos."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.datasets.rows import file_and_frame
from pipeline.errors import InputError
from pipeline.video import VideoInfo, probe, read_frames, to_rgb

Pixels = NDArray[np.uint8]


_probe = lru_cache(maxsize=64)(probe)
"""Finding the frames of a video reads its packets, which is not to be done for every batch."""


def video_up_to(path: Path, frame: int) -> VideoInfo:
    """The video at ``path``. Raises ``InputError`` when there is none, or it ends before that frame."""
    info = _probe(path)
    if frame >= len(info.times_s):
        raise InputError(
            f"{path}: has {len(info.times_s)} frames, and the data's rows name frame {frame}. The video is "
            "cut off, or another one."
        )
    return info


def read_picture(path: Path) -> Pixels:
    """(H, W, 3) RGB, as the file has its pixels. Raises ``InputError`` when it cannot be read."""
    how = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    found = cv2.imread(str(path), how) if path.is_file() else None
    if found is None:
        raise InputError(
            f"{path}: cannot be read as a picture. Give the folder below which the pictures of the data lie "
            "as root."
        )
    return np.asarray(found, np.uint8)


def read_pictures(root: Path, names: Sequence[str]) -> list[Pixels]:
    """Pictures (H, W, 3) RGB of ``imgname``s below ``root``; ``video.avi#12`` is the 13th frame of a video.

    Each video is decoded once, in order, from the key frame before the first of its frames.

    Raises:
        InputError: one is missing, damaged, or behind the end of its video.
    """
    found: dict[str, Pixels] = {}
    of_video: dict[str, list[int]] = {}
    for name in dict.fromkeys(names):
        file, frame = file_and_frame(name)
        if frame is None:
            found[name] = read_picture(root / name)
        else:
            of_video.setdefault(file, []).append(frame)
    for video, frames in of_video.items():
        frames.sort()
        info = video_up_to(root / video, frames[-1])
        for number, frame_ in zip(frames, read_frames(info, frames), strict=True):
            if frame_ is None:
                raise InputError(f"{info.path}: frame {number} cannot be decoded. Copy the video again.")
            found[f"{video}#{number}"] = to_rgb(frame_)
    return [found[name] for name in names]
