"""Frames of all cameras on the common time line, a few at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import islice, repeat
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from pipeline.batches import FrameBatch
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.recording import reopen
from pipeline.results import Results
from pipeline.video import VideoInfo, read_frames


class DecodeConfig(Config):
    chunk: PositiveInt = 4
    """Frames of each camera in a batch. Four views of 1080p hold 12 MB a frame."""
    threads: PositiveInt = 1
    """Threads of each camera's decoder."""


def decode(
    videos: Sequence[VideoInfo | Path | None],
    frame_index: NDArray[np.int64],
    cfg: DecodeConfig,
    start: int = 0,
) -> Iterator[FrameBatch]:
    """Decode the frames of the time line from ``start`` on, one sequential decoder a camera.

    videos: one a camera, V of them; None where there is none. frame_index: (V, T) which frame of each video
    is shown at each time, not decreasing, −1 where there is none. Files are closed when the generator ends or
    is closed. Raises ``InputError`` for a video that cannot be read.
    """
    if len(videos) != len(frame_index):
        raise ValueError(f"{len(videos)} videos but frame_index has shape {frame_index.shape}")
    stop = frame_index.shape[1]
    with ExitStack() as stack:
        views = [
            stack.enter_context(closing(_view(video, index[start:], cfg.threads)))
            for video, index in zip(videos, frame_index, strict=True)
        ]
        for first in range(start, stop, cfg.chunk):
            count = min(cfg.chunk, stop - first)
            yield FrameBatch(first, tuple(tuple(islice(view, count)) for view in views))


def _view(
    video: VideoInfo | Path | None, wanted: NDArray[np.int64], threads: int
) -> Generator[av.VideoFrame | None, None, None]:
    if video is None:
        yield from repeat(None, len(wanted))
    else:
        yield from read_frames(video, map(int, wanted), threads=threads)


def videos_of(results: Results, recording: Path | None = None) -> list[VideoInfo | None]:
    """Video of each camera of the results, from the recording that is stated or that they were made of.

    Raises ``InputError`` when the recording is not there, or has not these cameras.
    """
    found, names = reopen(results, recording), results.store().contents.rig.names
    videos = dict(zip(found.rig.names, found.videos, strict=True))
    if not set(names) <= set(videos):
        raise InputError(
            f"{found.path}: has the cameras {', '.join(videos)}, the results those called "
            f"{', '.join(names)}. Name the recording they came from: --recording FOLDER."
        )
    return [videos[name] for name in names]
