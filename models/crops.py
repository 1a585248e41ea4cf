"""Crops of people for image networks, straight from the planes of a video frame.

As SPIN makes them: a square around the keypoints, 224 pixels wide, bilinear with the filter widened where the
picture shrinks (what Pillow's resize does), normalised as for ImageNet.
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


def crop(planes: Sequence[Pixels], box: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """The square ``box`` (centre x, y, side) of a YUV 4:2:0 frame as (3, 224, 224) Y, U, V, float32, 0–255.

    Only what lies in the square is read and moved to the device. As in SPIN its edges are cut to whole
    pixels; what is outside of the picture is black. Chroma samples lie beside the left of their two luma
    columns and between their two rows (H.273, type 0).
    """
    cx, cy, side = box
    x0, y0 = math.trunc(cx - side / 2), math.trunc(cy - side / 2)
    x1, y1 = max(x0 + 1, math.trunc(cx + side / 2)), max(y0 + 1, math.trunc(cy + side / 2))
    out = torch.empty(3, SIZE, SIZE, device=device)
    for i, (plane, black) in enumerate(zip(planes, _BLACK, strict=True)):
        half, left = (1.0, 0.0) if i == 0 else (0.5, 0.25)
        rows = _taps(y0 * half, y1 * half, plane.shape[0])
        columns = _taps(x0 * half + left, x1 * half + left, plane.shape[1])
        part = torch.from_numpy(plane[slice(*rows), slice(*columns)]).to(device).float() - black
        vertical = _filter(y0 * half, y1 * half, rows, device)
        across = _filter(x0 * half + left, x1 * half + left, columns, device)
        out[i] = vertical @ (part @ across.T) + black
    return out


def _taps(start: float, stop: float, length: int) -> tuple[int, int]:
    """First and one after last of ``length`` samples whose centres lie between two edges."""
    first = min(max(math.ceil(start - 0.5), 0), length)
    return first, max(first, min(math.ceil(stop - 0.5), length))


def _filter(start: float, stop: float, taps: tuple[int, int], device: torch.device | str) -> Tensor:
    """(224, taps) from the samples between two edges to the pixels of the crop.

    A triangle, one output pixel wide on each side, or one sample where the crop is larger than the picture's.
    Samples outside of the picture take part with weights of their own, which are left out here.
    """
    step = (stop - start) / SIZE
    reach = max(1.0, step)
    first, last = math.ceil(start - 0.5), max(math.ceil(start - 0.5) + 1, math.ceil(stop - 0.5))
    centre = start + (torch.arange(SIZE, device=device) + 0.5) * step
    sample = torch.arange(first, last, device=device) + 0.5
    weight = (1 - (sample - centre[:, None]).abs() / reach).clamp(min=0)
    weight /= weight.sum(1, keepdim=True).clamp(min=1e-9)
    return weight[:, taps[0] - first : taps[1] - first]


def normalised(yuv: Tensor, to_yuv: Tensor, contrast: Contrast) -> Tensor:
    """Crops (N, 3, 224, 224) in YUV → what an image network takes.

    to_yuv: (N, 3, 4) from (red, green, blue, 1) to YUV, of each crop's video.
    """
    back = torch.linalg.inv(to_yuv[:, :, :3].double()).to(yuv.dtype)
    rgb = torch.einsum("nij,njhw->nihw", back, yuv - to_yuv[:, :, 3, None, None].to(yuv.dtype)).clamp(0, 255)
    if contrast == "stretch":
        low, high = rgb.amin((1, 2, 3), keepdim=True), rgb.amax((1, 2, 3), keepdim=True)
        rgb = (rgb - low) * (255 / (high - low).clamp(min=1))
    mean, std = (torch.tensor(x, dtype=yuv.dtype, device=yuv.device)[:, None, None] for x in (_MEAN, _STD))
    return (rgb / 255 - mean) / std
