"""Crops of people for image networks, straight from the planes of a video frame.

As SPIN makes them: a square around the keypoints, 224 pixels wide or what a network wants, bilinear with
the filter widened where the picture shrinks (what Pillow's resize does), normalised as for ImageNet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    """The square ``box`` (centre x, y, side) of a YUV 4:2:0 frame as (3, size, size) Y, U, V, float32, 0–255.

    Only what lies in the square is read and moved to the device. As in SPIN its edges are cut to whole
    pixels; what is outside of the picture is black. Chroma samples lie beside the left of their two luma
    columns and between their two rows (H.273, type 0).
    """
    cx, cy, side = box
    x0, y0 = math.trunc(cx - side / 2), math.trunc(cy - side / 2)
    x1, y1 = max(x0 + 1, math.trunc(cx + side / 2)), max(y0 + 1, math.trunc(cy + side / 2))
    out = torch.empty(3, size, size, device=device)
    for i, (plane, black) in enumerate(zip(planes, _BLACK, strict=True)):
        half, left = (1.0, 0.0) if i == 0 else (0.5, 0.25)
        rows, down = _taps(y0 * half, y1 * half, plane.shape[0], size)
        columns, across = _taps(x0 * half + left, x1 * half + left, plane.shape[1], size)
        if rows.size == 0 or columns.size == 0:
            out[i] = black
            continue
        top, first = int(rows.min()), int(columns.min())
        part = torch.from_numpy(plane[top : rows.max() + 1, first : columns.max() + 1]).to(device).float()
        narrow = _weighed(part, rows - top, down, black)
        out[i] = _weighed(narrow.T, columns - first, across, black).T
    return out


def _taps(start: float, stop: float, length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Samples (size, K) of a row of ``length`` that each pixel of the crop is made of, and their weights.

    A triangle, one pixel of the crop wide on each side, or one sample where the crop is larger than the
    picture, over the samples between the two edges. Weights outside of the picture are 0: with those that
    are left out they sum to 1. No samples where all are outside.
    """
    step = (stop - start) / size
    reach = max(1.0, step)
    first = math.ceil(start - 0.5)
    last = max(first + 1, math.ceil(stop - 0.5))
    if last <= 0 or first >= length:
        return np.zeros((size, 0), np.int64), np.zeros((size, 0), np.float32)
    centre = start + (np.arange(size) + 0.5) * step
    sample = np.ceil(centre - reach - 0.5).astype(np.int64)[:, None] + np.arange(math.floor(2 * reach) + 1)
    weight = np.maximum(0, 1 - np.abs(sample + 0.5 - centre[:, None]) / reach)
    weight[(sample < first) | (sample >= last)] = 0
    weight /= np.maximum(weight.sum(1, keepdims=True), 1e-9)
    inside = (sample >= 0) & (sample < length)
    return np.clip(sample, 0, length - 1), np.where(inside, weight, 0).astype(np.float32)


def _weighed(x: Tensor, taps: NDArray[np.int64], weight: NDArray[np.float32], black: float) -> Tensor:
    """Sums (size, W) of rows of x (H, W) by their weights, and of black for the weight that is missing.

    It is what ``embedding_bag`` does, thirty times as fast as a product with the whole matrix.
    """
    index, w = torch.from_numpy(taps).to(x.device), torch.from_numpy(weight).to(x.device)
    found = torch.nn.functional.embedding_bag(index, x.contiguous(), per_sample_weights=w, mode="sum")
    return found + black * (1 - w.sum(1, keepdim=True))


def normalised(yuv: Tensor, to_yuv: Tensor, contrast: Contrast) -> Tensor:
    """Crops (N, 3, size, size) in YUV → what an image network takes.

    to_yuv: (N, 3, 4) from (red, green, blue, 1) to YUV, of each crop's video.
    """
    back = torch.linalg.inv(to_yuv[:, :, :3].double()).to(yuv.dtype)
    rgb = torch.einsum("nij,njhw->nihw", back, yuv - to_yuv[:, :, 3, None, None].to(yuv.dtype)).clamp(0, 255)
    return normalised_rgb(rgb, contrast)


def normalised_rgb(rgb: Tensor, contrast: Contrast) -> Tensor:
    """Crops (N, 3, size, size) of 0–255 → what an image network takes."""
    if contrast == "stretch":
        low, high = rgb.amin((1, 2, 3), keepdim=True), rgb.amax((1, 2, 3), keepdim=True)
        rgb = (rgb - low) * (255 / (high - low).clamp(min=1))
    mean, std = (torch.tensor(x, dtype=rgb.dtype, device=rgb.device)[:, None, None] for x in (_MEAN, _STD))
    return (rgb / 255 - mean) / std
