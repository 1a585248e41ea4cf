"""Pictures of a data set by their names in its rows: files, and frames of videos."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.video import VideoInfo, probe, read_frames

Pixels = NDArray[np.uint8]


@lru_cache(maxsize=64)
def _probe(path: Path) -> VideoInfo:
    """To find the frames of a video its packets are read, which is not to be done for every batch."""
    return probe(path)


def read_pictures(root: Path, names: Sequence[str]) -> list[Pixels]:
    """Pictures (H, W, 3) RGB of ``imgname``s below ``root``; ``video.avi#12`` is the 13th frame of a video.

    Each video is decoded once, in order, from the key frame before the first of its frames.

    Raises:
        InputError: one is missing, damaged, or behind the end of its video.
    """
    found: dict[str, Pixels] = {}
    of_video: dict[str, list[int]] = {}
    for name in dict.fromkeys(names):
        video, mark, frame = name.rpartition("#")
        if mark and frame.isdecimal():
            of_video.setdefault(video, []).append(int(frame))
            continue
        picture = cv2.imread(str(root / name)) if (root / name).is_file() else None
        if picture is None:
            raise InputError(
                f"{root / name}: cannot be read as a picture. Give the folder below which the pictures of "
                "the data lie: --root."
            )
        found[name] = np.asarray(picture[..., ::-1], np.uint8)
    for video, frames in of_video.items():
        info = _probe(root / video)
        frames.sort()
        if frames[-1] >= len(info.times_s):
            raise InputError(
                f"{info.path}: has {len(info.times_s)} frames, and the data's rows name frame {frames[-1]}. "
                "The video is cut off, or another one."
            )
        for number, frame_ in zip(frames, read_frames(info, frames), strict=True):
            if frame_ is None:
                raise InputError(f"{info.path}: frame {number} cannot be decoded. Copy the video again.")
            found[f"{video}#{number}"] = np.asarray(frame_.to_ndarray(format="rgb24"), np.uint8)
    return [found[name] for name in names]
