"""Crops of people for training, cut from videos that are decoded once, in order."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import groupby, islice
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray

from models.crops import Lens, crop_rgb, crop_yuv, rgb_of_yuv, room_around
from models.datasets.pictures import read_picture, video_up_to
from models.datasets.rows import file_and_frame
from models.rendering.overlay import yuv_matrix
from models.training.crop_store import BLOCK, CropPlan, CropStore
from models.training.published import PublishedRows
from pipeline.store import Store
from pipeline.video import VideoInfo, planes, read_frames, to_yuv420p

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Frames = tuple[av.VideoFrame | None, ...]


def crops_of_results(
    results: Store, videos: Sequence[VideoInfo | None], plan: CropPlan, out: Path
) -> Generator[int, None, None]:
    """Write the crops of a plan of ``plan_of_results`` to the store ``out``, or go on with it.

    videos: one a camera, in the results' order. Yields how many of the pictures are written, after each
    block; close it to stop. Raises ``InputError`` when a video cannot be read or ``out`` not written.
    """
    store = CropStore.resume(out, plan)
    first = store.next_block * BLOCK
    with closing(_from_results(results, videos, plan, first)) as pictures:
        yield from _written(store, pictures)


def _from_results(
    results: Store, videos: Sequence[VideoInfo | None], plan: CropPlan, first: int
) -> Generator[Pixels, None, None]:
    """The plan's pictures from number ``first`` on."""
    c = results.contents
    times = np.unique(plan.label[first:, 1])
    with closing(_decoded(videos, c.frame_index[:, times])) as frames:
        shown: Frames = ()
        now = -1
        for row in range(first, len(plan.box)):
            _, time, view = plan.label[row]
            if time != now:
                shown, now = next(frames), time
            yield _cut(shown[view], plan.box[row], plan.size, c.rig.K[view], c.rig.dist[view])


def _decoded(videos: Sequence[VideoInfo | None], index: NDArray[np.int64]) -> Generator[Frames, None, None]:
    """A frame of every camera at a time. index (V, T): their numbers, −1 where there is none."""
    with ExitStack() as stack:
        views = [stack.enter_context(closing(_frames_of(*each))) for each in zip(videos, index, strict=True)]
        yield from zip(*views, strict=True)


def _cut(frame: av.VideoFrame | None, box: Array, size: int, K: Array, dist: Array) -> Pixels:
    """The picture of a box; black where there is no box or no frame."""
    if frame is None or not np.isfinite(box).all():
        return _black(size)
    frame = to_yuv420p(frame)
    yuv = crop_yuv(planes(frame), box, size, room_around(size), Lens(K, dist))
    matrix = torch.from_numpy(yuv_matrix(int(frame.colorspace), frame.height))
    return rgb_of_yuv(yuv[None], matrix[None])[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def _black(size: int) -> Pixels:
    return np.zeros((size + 2 * room_around(size),) * 2 + (3,), np.uint8)


def crops_of_rows(rows: PublishedRows, root: Path, plan: CropPlan, out: Path) -> Generator[int, None, None]:
    """Write the crops of published data of SPIN's format, whose pictures and videos lie below ``root``; plan:
    of ``PublishedRows.plan``."""
    store = CropStore.resume(out, plan)
    first = store.next_block * BLOCK
    with closing(_from_rows(rows, root, plan, first)) as pictures:
        yield from _written(store, pictures)


def _from_rows(rows: PublishedRows, root: Path, plan: CropPlan, first: int) -> Generator[Pixels, None, None]:
    """The plan's pictures from number ``first`` on. Each file is opened once."""
    of = [(*file_and_frame(rows.imgname[row]), row) for row in plan.label[:, 0]]
    for name, together in groupby(range(first, len(of)), lambda i: of[i][0]):
        places = list(together)
        numbers = [n for i in places if (n := of[i][1]) is not None]
        if not numbers:
            rgb = read_picture(root / name)
            for i in places:
                row = of[i][2]
                if np.isfinite(plan.box[i]).all():
                    lens = Lens(rows.K[row], rows.dist[row])
                    yield crop_rgb(rgb, plan.box[i], plan.size, room_around(plan.size), lens)
                else:
                    yield _black(plan.size)
            continue
        with closing(_frames_of(video_up_to(root / name, numbers[-1]), numbers)) as frames:
            for i, frame in zip(places, frames, strict=True):
                row = of[i][2]
                yield _cut(frame, plan.box[i], plan.size, rows.K[row], rows.dist[row])


def _frames_of(
    video: VideoInfo | None, numbers: Iterable[int]
) -> Generator[av.VideoFrame | None, None, None]:
    if video is None:
        yield from (None for _ in numbers)
    else:
        yield from read_frames(video, map(int, numbers))


def _written(store: CropStore, pictures: Iterator[Pixels]) -> Generator[int, None, None]:
    total = len(store.plan.box)
    for block in range(store.next_block, store.plan.blocks):
        store.write(block, list(islice(pictures, min(BLOCK, total - block * BLOCK))))
        yield min((block + 1) * BLOCK, total)
