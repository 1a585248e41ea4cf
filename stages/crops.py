"""Crops of people for training, cut from videos that are decoded once, in order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import groupby, islice, repeat
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray

from models.crops import Optics, crop_rgb, crop_yuv, room_around, yuv_to_rgb
from models.datasets.pictures import read_picture, video_up_to
from models.datasets.rows import file_and_frame
from models.rendering.overlay import yuv_matrix
from models.training.crop_store import BLOCK, CropPlan, CropStore
from models.training.published import PublishedRows
from pipeline.array_types import Pixels
from pipeline.errors import InputError
from pipeline.store import Store
from pipeline.video import VideoInfo, planes, read_frames, to_yuv420p

Frames = tuple[av.VideoFrame | None, ...]


def crops_of_results(
    results: Store, videos: Sequence[VideoInfo | None], plan: CropPlan, out: Path
) -> Generator[int, None, None]:
    """Write the crops of a plan of ``plan_of_results`` to the store ``out``, or go on with it.

    videos: one a camera, in the results' order. Yields the number of pictures written, after each block;
    close it to stop. Raises ``InputError`` when a video is missing or cannot be read, or ``out`` not written.
    """
    rig = results.contents.rig
    lacking = [rig.names[v] for v in np.unique(plan.label[:, 2]) if videos[v] is None]
    if lacking:
        raise InputError(
            f"{results.path}: there is no video of {', '.join(lacking)} to cut people out of. Give "
            "--recording where it has moved, or results of cameras that have one (run --cameras)."
        )
    yield from _write(out, plan, partial(_cut_results, results, videos, plan))


def crops_of_rows(rows: PublishedRows, root: Path, plan: CropPlan, out: Path) -> Generator[int, None, None]:
    """Write the crops of ``PublishedRows.plan`` to the store ``out``, or go on with it.

    root: folder of the rows' pictures and videos. Yields and raises as ``crops_of_results``.
    """
    yield from _write(out, plan, partial(_cut_rows, rows, root, plan))


def _write(
    out: Path, plan: CropPlan, pictures_from: Callable[[int], Generator[Pixels, None, None]]
) -> Generator[int, None, None]:
    store, total = CropStore.resume(out, plan), len(plan.box)
    with closing(pictures_from(store.next_block * BLOCK)) as pictures:
        for block in range(store.next_block, plan.blocks):
            store.write(block, list(islice(pictures, min(BLOCK, total - block * BLOCK))))
            yield min((block + 1) * BLOCK, total)


def _cut_results(
    results: Store, videos: Sequence[VideoInfo | None], plan: CropPlan, first: int
) -> Generator[Pixels, None, None]:
    """Pictures of the plan from number ``first`` on."""
    c = results.contents
    times = np.unique(plan.label[first:, 1])
    with closing(_decode(videos, c.frame_index[:, times])) as moments:
        for _, rows in groupby(range(first, len(plan.box)), lambda row: plan.label[row, 1]):
            frames = next(moments)
            for row in rows:
                view = plan.label[row, 2]
                lens = Optics(c.rig.K[view], c.rig.dist[view], c.rig.fisheye[view])
                yield _crop(frames[view], plan, row, lens)


def _decode(videos: Sequence[VideoInfo | None], index: NDArray[np.int64]) -> Generator[Frames, None, None]:
    """Decode the frames of all cameras, time by time. index (V, T): frame numbers, −1 for none."""
    with ExitStack() as stack:
        views = [
            repeat(None, len(numbers))
            if video is None
            else stack.enter_context(closing(read_frames(video, map(int, numbers))))
            for video, numbers in zip(videos, index, strict=True)
        ]
        yield from zip(*views, strict=True)


def _cut_rows(rows: PublishedRows, root: Path, plan: CropPlan, first: int) -> Generator[Pixels, None, None]:
    """Pictures of the plan from number ``first`` on. Each file is opened once."""
    names = [file_and_frame(rows.imgname[row]) for row in plan.label[:, 0]]
    for name, together in groupby(range(first, len(names)), lambda i: names[i][0]):
        places = list(together)
        lenses = [Optics(rows.K[row], rows.dist[row]) for row in plan.label[places, 0]]
        numbers = [n for i in places if (n := names[i][1]) is not None]
        if not numbers:
            rgb = read_picture(root / name)
            for i, lens in zip(places, lenses, strict=True):
                yield crop_rgb(rgb, plan.box[i], plan.size, room_around(plan.size), lens)
            continue
        with closing(read_frames(video_up_to(root / name, numbers[-1]), numbers)) as frames:
            for i, lens, frame in zip(places, lenses, frames, strict=True):
                yield _crop(frame, plan, i, lens)


def _crop(frame: av.VideoFrame | None, plan: CropPlan, row: int, lens: Optics) -> Pixels:
    """Cut the picture of a row; black without a frame."""
    room = room_around(plan.size)
    if frame is None:
        return np.zeros((plan.size + 2 * room,) * 2 + (3,), np.uint8)
    frame = to_yuv420p(frame)
    yuv = crop_yuv(planes(frame), plan.box[row], plan.size, room, lens)
    matrix = torch.from_numpy(yuv_matrix(int(frame.colorspace), frame.height))
    return yuv_to_rgb(yuv[None], matrix[None])[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
