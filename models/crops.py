"""Crops of people for image networks, straight from the planes of a video frame.

As SPIN makes them: a square around the keypoints, 224 pixels wide or what a network wants, bilinear with
the filter widened where the picture shrinks (what Pillow's resize does), normalised as for ImageNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.constants import constant

Pixels = NDArray[np.uint8]
Contrast = Literal["none", "stretch"]
"""What was done to the crops that a network was trained on. ``stretch``: each crop's darkest and brightest
values became 0 and 255, as scipy's ``imresize`` did in SPIN."""

SIZE: Final = 224
"""Side of a crop, pixels, where nothing else is said: SPIN's."""
MARGIN: Final = 1.2
"""Side of the crop by the longer side of the box around the keypoints."""
_MEAN: Final = (0.485, 0.456, 0.406)
_STD: Final = (0.229, 0.224, 0.225)
_COPIES: Final = 8
"""Parts in which a batch's pixels are copied together."""
_BLACK: Final = (16.0, 128.0, 128.0)
"""Y, U and V of what is outside of the picture."""


def person_box(xy_px: Tensor, seen: Tensor) -> Tensor:
    """The square (..., 3) around a person: centre x, y and side, pixels.

    xy_px (..., J, 2) and which of the points count (..., J) bool. The centre is the mean of the points, not
    the middle of their box, as in SPIN's demo. NaN where no two points count.
    """
    known = seen & xy_px.isfinite().all(-1)
    inf = torch.tensor(torch.inf, dtype=xy_px.dtype, device=xy_px.device)
    count = known.sum(-1, keepdim=True)
    centre = torch.where(known[..., None], xy_px, 0).sum(-2) / count
    low = torch.where(known[..., None], xy_px, inf).amin(-2)
    high = torch.where(known[..., None], xy_px, -inf).amax(-2)
    side = MARGIN * (high - low).amax(-1, keepdim=True)
    good = (count >= 2) & (side > 0)
    return torch.where(good, torch.cat([centre, side], -1), torch.nan)


def crop(
    planes: Sequence[Pixels], box: Sequence[float], device: torch.device | str = "cpu", size: int = SIZE
) -> Tensor:
    """The square ``box`` of one frame as (3, size, size), as ``crop_batch``."""
    return crop_batch([planes], np.asarray(box, np.float64)[None], device, size)[0]


def crop_batch(
    frames: Sequence[Sequence[Pixels]],
    boxes: NDArray[np.float64],
    device: torch.device | str = "cpu",
    size: int = SIZE,
    pool: Executor | None = None,
) -> Tensor:
    """The squares ``boxes`` (M, 3) of M YUV 4:2:0 frames as (M, 3, size, size) Y, U, V, float32, 0–255.

    boxes: centre x, y and side, pixels. As in SPIN their edges are cut to whole pixels; what is outside of
    the picture is black. Chroma samples lie beside the left of their two luma columns and between their two
    rows (H.273, type 0). Only what lies in the squares goes to the device: to a GPU all in one piece, from
    memory that it reads while the processor goes on. pool: threads that copy from several frames at once.
    """
    if torch.device(device).type == "cpu" and len(frames) > 1:  # one at a time stays in the cache
        return torch.stack([crop(f, b.tolist(), device, size) for f, b in zip(frames, boxes, strict=True)])
    near = np.trunc(boxes[:, :2] - boxes[:, 2:] / 2)
    far = np.maximum(near + 1, np.trunc(boxes[:, :2] + boxes[:, 2:] / 2))
    parts = []
    for channels, scale, shift in (((0,), 1.0, 0.0), ((1, 2), 0.5, 0.25)):
        planes = [frame[c] for frame in frames for c in channels]
        start, stop = (
            np.repeat(edge * scale + np.array([shift, 0.0]), len(channels), 0) for edge in (near, far)
        )
        found = _resized(planes, start, stop, _BLACK[channels[0]], device, size, pool)
        parts.append(found.view(len(frames), len(channels), size, size))
    return torch.cat(parts, 1)


def _resized(
    planes: Sequence[Pixels],
    start: NDArray[np.float64],
    stop: NDArray[np.float64],
    black: float,
    device: torch.device | str,
    size: int,
    pool: Executor | None,
) -> Tensor:
    """Rectangles from start to stop, (M, 2) x and y in samples, of M planes as (M, size, size)."""
    shape = np.array([plane.shape[::-1] for plane in planes], np.float64)
    first = np.ceil(start - 0.5)
    last = np.maximum(first + 1, np.ceil(stop - 0.5))
    low, high = (np.clip(edge, 0, shape).astype(np.int64) for edge in (first, last))
    width, height = np.maximum((high - low).max(0), 1).tolist()
    cuda = torch.device(device).type == "cuda"
    held = torch.empty(len(planes), height, width, dtype=torch.uint8, pin_memory=cuda)
    into = held.numpy()

    def copy(first: int) -> None:
        for n in range(first, len(planes), _COPIES):
            (x0, y0), (x1, y1) = low[n].tolist(), high[n].tolist()
            into[n, : y1 - y0, : x1 - x0] = planes[n][y0:y1, x0:x1]

    for _ in (map if pool is None else pool.map)(copy, range(_COPIES)):
        pass
    numbers = _upload(torch.from_numpy(np.stack([start, stop, first, last, shape, low], 1)), device)
    taps = int(2 * max(1.0, float((stop - start).max()) / size)) + 1
    x = _upload(held, device).float()
    narrow = _weighed(x, numbers[..., 1], taps, size, black)
    return _weighed(narrow.mT.contiguous(), numbers[..., 0], taps, size, black).mT


def _upload(x: Tensor, device: torch.device | str) -> Tensor:
    """To the device; to a GPU beside what it computes meanwhile."""
    if torch.device(device).type == "cpu":
        return x
    now, beside = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(beside):
        there = (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)
    now.wait_stream(beside)
    there.record_stream(now)
    return there


@lru_cache
def _copy_stream(device: torch.device | str) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _weighed(x: Tensor, numbers: Tensor, taps: int, size: int, black: float) -> Tensor:
    """Sums (M, size, W) of rows of x (M, H, W), and of black for the weight that lies outside of the picture.

    A triangle, one pixel of the crop wide on each side, or one sample where the crop is larger than the
    picture, over the samples between the two edges. numbers: (M, 6) start and stop of a rectangle, its first
    sample and the one after its last, the picture's samples, and which of them is x's first (float64).
    """
    start, stop, first, last, length, low = numbers[..., None].unbind(1)
    step = (stop - start) / size
    reach = step.clamp(min=1)
    centre = start + (torch.arange(size, device=x.device) + 0.5) * step
    sample = torch.ceil(centre - reach - 0.5)[..., None] + torch.arange(taps, device=x.device)
    first, last, length, low, reach = (n[..., None] for n in (first, last, length, low, reach))
    weight = (1 - (sample + 0.5 - centre[..., None]).abs() / reach).clamp(min=0)
    weight = torch.where((sample < first) | (sample >= last), 0, weight)
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)
    weight = torch.where((sample < 0) | (sample >= length), 0, weight).float()
    row = (sample - low).clamp(0, x.shape[1] - 1).long()
    row = row + x.shape[1] * torch.arange(len(x), device=x.device)[:, None, None]
    # A product with the whole matrix of weights takes thirty times as long.
    found = torch.nn.functional.embedding_bag(
        row.flatten(0, 1), x.flatten(0, 1), per_sample_weights=weight.flatten(0, 1), mode="sum"
    )
    return found.view(len(x), size, -1) + black * (1 - weight.sum(-1, keepdim=True))


def normalised(yuv: Tensor, to_yuv: Tensor, contrast: Contrast) -> Tensor:
    """Crops (N, 3, size, size) in YUV → what an image network takes.

    to_yuv: (N, 3, 4) from (red, green, blue, 1) to YUV, of each crop's video.
    """
    back = torch.linalg.inv_ex(to_yuv[:, :, :3].double()).inverse.to(yuv.dtype)
    rgb = torch.einsum("nij,njhw->nihw", back, yuv - to_yuv[:, :, 3, None, None].to(yuv.dtype)).clamp(0, 255)
    return normalised_rgb(rgb, contrast)


def normalised_rgb(rgb: Tensor, contrast: Contrast) -> Tensor:
    """Crops (N, 3, size, size) of 0–255 → what an image network takes."""
    if contrast == "stretch":
        low, high = rgb.amin((1, 2, 3), keepdim=True), rgb.amax((1, 2, 3), keepdim=True)
        rgb = (rgb - low) * (255 / (high - low).clamp(min=1))
    mean, std = (constant(x, rgb.device, rgb.dtype)[:, None, None] for x in (_MEAN, _STD))
    return (rgb / 255 - mean) / std
