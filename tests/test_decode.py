import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.video import VideoWriter
from stages.decode import DecodeConfig, decode


@pytest.fixture
def videos(tmp_path):
    """Two cameras; frame k of camera v is one grey, 20 + 5 k + 60 v."""
    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for v, path in enumerate(paths):
        with VideoWriter(path, 25, crf=5) as file:
            for k in range(20):
                file.write(np.full((48 + 16 * v, 64, 3), 20 + 5 * k + 60 * v, np.uint8))
    return paths


def numbers(batches, v):
    return [
        None if f is None else round((f.to_ndarray(format="rgb24").mean() - 20 - 60 * v) / 5)
        for batch in batches
        for f in batch.pictures[v]
    ]


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_every_camera_shows_its_frame_of_the_time_line(videos, chunk):
    index = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [-1, -1, 3, 5, 5, 9, -1, 10, 11, 19]])
    batches = [*decode(videos, index, DecodeConfig(chunk=chunk))]
    for v in range(2):
        assert numbers(batches, v) == [None if k < 0 else k for k in index[v]]
    assert [b.start for b in batches] == [*range(0, 10, chunk)]
    assert {len(view) for b in batches[:-1] for view in b.pictures} <= {chunk}


def test_a_part_of_the_time_line_is_the_same_part(videos):
    index = np.stack([np.arange(20), np.maximum(np.arange(20) - 3, -1)])
    part = [*decode(videos, index, DecodeConfig(), start=11)]
    assert part[0].start == 11
    for v in range(2):
        assert numbers(part, v) == index[v, 11:].tolist()


def test_memory_does_not_grow_with_the_time_line(videos):
    def peak(frames):
        index = np.minimum(np.arange(frames) // (frames // 20), 19) * np.ones((2, 1), int)
        tracemalloc.start()
        for _ in islice(decode(videos, index, DecodeConfig()), 3):
            pass
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(40)  # what is made once
    assert peak(400_000) < peak(400) + 100_000


def test_a_camera_without_a_video_has_no_pictures(videos):
    batches = [*decode([None, videos[1]], np.tile(np.arange(6), (2, 1)), DecodeConfig())]
    assert numbers(batches, 0) == [None] * 6
    assert numbers(batches, 1) == [*range(6)]


def test_closing_closes_the_files(videos):
    def is_open(path):
        return path.resolve() in [f.resolve() for f in Path("/proc/self/fd").iterdir() if f.is_symlink()]

    batches = decode(videos, np.tile(np.arange(20), (2, 1)), DecodeConfig(chunk=2))
    next(batches)
    assert is_open(videos[0])
    assert is_open(videos[1])
    batches.close()
    assert not is_open(videos[0])
    assert not is_open(videos[1])


def test_a_video_that_is_not_there_is_named(videos, tmp_path):
    with pytest.raises(InputError, match=r"gone\.mp4"):
        next(decode([videos[0], tmp_path / "gone.mp4"], np.zeros((2, 3), int), DecodeConfig()))
