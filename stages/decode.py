"""Source of frames: decodes the videos of all cameras on the common time line."""

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
    """Decoding of videos."""

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
    """Decode the frames of the time line from ``start`` on, by a sequential decoder for each camera.

    videos: V, None for a camera without. frame_index: (V, T) index of each video's frame at each time, not
    decreasing; −1 for none. Files are closed with the generator. Raises ``InputError`` for an unreadable
    video.
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
    """Video of each camera of the results, from the stated recording or the one that they were made from.

    Raises ``InputError`` where the recording is missing, or lacks one of these cameras.
    """
    opened, names = reopen(results, recording), results.store().contents.rig.names
    videos = dict(zip(opened.rig.names, opened.videos, strict=True))
    if not set(names) <= set(videos):
        raise InputError(
            f"{opened.path}: has the cameras {', '.join(videos)}, the results {', '.join(names)}. Give the "
            "recording that they were made from: --recording FOLDER."
        )
    return [videos[name] for name in names]
