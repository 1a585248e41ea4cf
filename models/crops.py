"""Crops of people: the only code that cuts a person out of a picture.

A box (..., 3) is a square around a person: centre x, y and side, pixels, as SPIN's ``center`` and 200 times
its ``scale``. SPIN cuts it along whole pixels, from trunc(centre − side / 2) on, counted from the picture's
corner, and resizes it as Pillow does: bilinear, with the filter widened where the picture shrinks. So is it
cut here, for training, evaluation and ``run`` alike: without a lens they get the same crop. A crop may have
room around it, cut on the same grid; the filter does not reach across the crop's edges, so the crop in the
middle is the one without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.rendering.software import valid_radius

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Contrast = Literal["none", "stretch"]
"""Contrast of the crops that a network was trained on. ``stretch``: each crop's darkest and brightest values
became 0 and 255, as scipy's ``imresize`` did in SPIN."""

SIZE: Final = 224
"""Side of a crop, pixels, where nothing else is said: SPIN's."""
MARGIN: Final = 1.2
"""Side of the box by the longer extent of the keypoints: SPIN's."""
MIN_CONFIDENCE: Final = 0.2
"""Confidence from which a detected keypoint counts for the box: SPIN's."""
MAX_BOX_FRAMES: Final = 4
"""Sides of the frame that a person's box may be wide: more is a stray keypoint."""
_MEAN: Final = (0.485, 0.456, 0.406)
_STD: Final = (0.229, 0.224, 0.225)


def person_box(xy_px: Tensor, counted: Tensor) -> Tensor:
    """Box (..., 3) around a person, NaN where no two points count.

    xy_px (..., J, 2) and which of the points count (..., J) bool. The centre is the mean of the points, not
    the middle of their extent, as in SPIN's demo.
    """
    known = counted & xy_px.isfinite().all(-1)
    inf = torch.tensor(torch.inf, dtype=xy_px.dtype, device=xy_px.device)
    count = known.sum(-1, keepdim=True)
    centre = torch.where(known[..., None], xy_px, 0).sum(-2) / count
    low = torch.where(known[..., None], xy_px, inf).amin(-2)
    high = torch.where(known[..., None], xy_px, -inf).amax(-2)
    side = MARGIN * (high - low).amax(-1, keepdim=True)
    good = (count >= 2) & (side > 0)
    return torch.where(good, torch.cat([centre, side], -1), torch.nan)


def extent_box(low: Array, high: Array, margin: float = MARGIN) -> Array:
    """Box (3,) around the extent from low to high (2,), as in SPIN's preprocessing of data sets."""
    return np.array([*(low + high) / 2, margin * (high - low).max()])


def room_around(size: int) -> int:
    """Pixels of room on each side of a crop of ``size`` pixels, for turning, scaling and shifting it."""
    return round(0.75 * size) - size // 2


def cut_box(box: Array) -> Array:
    """Box (..., 3) of the whole pixels that are cut: the crop's own middle and mean side."""
    x0, y0, x1, y1 = _edges(box)
    return np.stack([(x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2, (x1 - x0 + y1 - y0) / 2], -1)


def crop_matrix(box: Array, size: int, room: int = 0) -> Array:
    """(..., 3, 3) from pixels of the picture to those of the crop of ``box`` (..., 3) with room around it."""
    x0, y0, x1, y1 = _edges(box)
    out = np.zeros((*box.shape[:-1], 3, 3))
    for axis, (start, stop) in enumerate(((x0, x1), (y0, y1))):
        out[..., axis, axis] = size / (stop - start)
        out[..., axis, 2] = (0.5 - start) * out[..., axis, axis] + room - 0.5
    out[..., 2, 2] = 1
    return out


def spin_camera(box: Array) -> Array:
    """(..., 3, 3) SPIN's camera for pictures of unknown focal length: 5000 px, straight at a crop of 224."""
    in_crop = np.array([[5000.0, 0, (SIZE - 1) / 2], [0, 5000.0, (SIZE - 1) / 2], [0, 0, 1]])
    return np.asarray(np.linalg.inv(crop_matrix(box, SIZE)) @ in_crop)


def _edges(box: Array) -> Array:
    """(4, ...) left, top, right and bottom edge of what is cut, pixels from the picture's corner."""
    half = box[..., 2:] / 2
    first = np.trunc(box[..., :2] - half)
    last = np.maximum(first + 1, np.trunc(box[..., :2] + half))
    return np.moveaxis(np.concatenate([first, last], -1), -1, 0)


class Lens(NamedTuple):
    """A camera whose distortion is taken out of a crop: the box is then one of the pinhole camera K."""

    K: Array
    """(3, 3)"""
    dist: Array
    """(8,) in OpenCV's order."""


def crop_rgb(
    picture: Pixels,
    box: Array,
    size: int,
    room: int = 0,
    lens: Lens | None = None,
    contrast: Contrast = "none",
) -> Pixels:
    """Crop (S, S, 3) of an RGB picture (H, W, 3), S = size + 2 room; black outside of the picture.

    box (3,): centre x, y and side; all is black where it is NaN. contrast: SPIN's is stretched before the
    crop is resized, which is when pixels are darkest and brightest.
    """
    out = torch.stack([_resampled(picture[..., c], _RGB, box, size, room, lens) for c in range(3)], -1)
    if contrast == "stretch" and np.isfinite(box).all():
        x0, y0, x1, y1 = _edges(box).astype(int)
        part = picture[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]
        beyond = part.size < (x1 - x0) * (y1 - y0) * 3
        low, high = 0 if beyond else int(part.min()), int(part.max(initial=0))
        out = ((out - low) * (255 / max(high - low, 1))).clamp(0, 255)
    return out.round().to(torch.uint8).numpy()


def crop_yuv(
    planes: Sequence[Pixels],
    box: Array,
    size: int = SIZE,
    room: int = 0,
    lens: Lens | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Crop (3, S, S) of a YUV 4:2:0 frame, S = size + 2 room: Y, U and V, float32, 0–255; black outside.

    Only what lies in the square is read and moved to the device.
    """
    grids = zip(planes, (_LUMA, _CHROMA, _CHROMA), strict=True)
    return torch.stack([_resampled(plane, grid, box, size, room, lens, device) for plane, grid in grids])


class _Grid(NamedTuple):
    """Samples of a plane, in pixels of the picture."""

    scale: float
    left: float
    """Left edge of the picture, in samples from the left edge of the first."""
    black: float

    def camera(self, K: Array) -> Array:
        """Camera matrix in pixels of the plane."""
        out: Array = K * np.array([[self.scale], [self.scale], [1.0]])
        out[0, 2] = (K[0, 2] + 0.5) * self.scale + self.left - 0.5
        out[1, 2] = (K[1, 2] + 0.5) * self.scale - 0.5
        return out


_RGB: Final = _Grid(1.0, 0.0, 0.0)
_LUMA: Final = _Grid(1.0, 0.0, 16.0)
_CHROMA: Final = _Grid(0.5, 0.25, 128.0)
"""4:2:0: beside the left of its two luma columns and between its two rows (H.273, type 0)."""


def _resampled(
    plane: Pixels,
    grid: _Grid,
    box: Array,
    size: int,
    room: int,
    lens: Lens | None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The crop (S, S) of one plane (H, W), float32."""
    black = grid.black
    if not np.isfinite(box).all():
        return torch.full((size + 2 * room,) * 2, black, device=device)
    x0, y0, x1, y1 = (float(x) * grid.scale for x in _edges(np.asarray(box, np.float64)))
    x0, x1 = x0 + grid.left, x1 + grid.left
    if lens is not None and lens.dist.any():
        reach = room / size + 2 / size
        wide, high = reach * (x1 - x0) + 2, reach * (y1 - y0) + 2
        region = (x0 - wide, y0 - high, x1 + wide, y1 + high)
        plane, x, y = _rectified(plane, grid.camera(lens.K), lens.dist, region, black)
        x0, x1, y0, y1 = x0 - x, x1 - x, y0 - y, y1 - y
    rows, down = _taps(y0, y1, plane.shape[0], size, room)
    columns, across = _taps(x0, x1, plane.shape[1], size, room)
    if rows.size == 0 or columns.size == 0:
        return torch.full((size + 2 * room,) * 2, black, device=device)
    top, first = int(rows.min()), int(columns.min())
    part = torch.from_numpy(plane[top : rows.max() + 1, first : columns.max() + 1]).to(device).float()
    narrow = _weighed(part, rows - top, down, black)
    return _weighed(narrow.T, columns - first, across, black).T


def _taps(
    start: float, stop: float, length: int, size: int, room: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Samples (S, n) of a row of ``length`` that each pixel of the crop is made of, and their weights.

    A triangle, one pixel of the crop wide on each side, or one sample where the crop is larger than the
    picture, over the samples on the pixel's side of the crop's two edges. Weights outside of the picture are
    0: with those that are left out they sum to 1. No samples where all are outside.
    """
    step = (stop - start) / size
    reach = max(1.0, step)
    first = math.ceil(start - 0.5)
    last = max(first + 1, math.ceil(stop - 0.5))
    pixel = np.arange(-room, size + room)
    centre = start + (pixel + 0.5) * step
    sample = np.ceil(centre - reach - 0.5).astype(np.int64)[:, None] + np.arange(math.floor(2 * reach) + 1)
    weight = np.maximum(0, 1 - np.abs(sample + 0.5 - centre[:, None]) / reach)
    part = (pixel >= 0).astype(int) + (pixel >= size)
    weight[(sample >= first).astype(int) + (sample >= last) != part[:, None]] = 0
    weight /= np.maximum(weight.sum(1, keepdims=True), 1e-9)
    inside = (sample >= 0) & (sample < length)
    if not (inside & (weight > 0)).any():
        return np.zeros((len(pixel), 0), np.int64), np.zeros((len(pixel), 0), np.float32)
    return np.clip(sample, 0, length - 1), np.where(inside, weight, 0).astype(np.float32)


def _weighed(x: Tensor, taps: NDArray[np.int64], weight: NDArray[np.float32], black: float) -> Tensor:
    """Sums (S, W) of rows of x (H, W) by their weights, and of black for the weight that is missing.

    ``embedding_bag`` does this thirty times as fast as a product with the whole matrix.
    """
    index, w = torch.from_numpy(taps).to(x.device), torch.from_numpy(weight).to(x.device)
    total = torch.nn.functional.embedding_bag(index, x.contiguous(), per_sample_weights=w, mode="sum")
    return total + black * (1 - w.sum(1, keepdim=True))


def _rectified(
    plane: Pixels, K: Array, dist: Array, region: tuple[float, ...], black: float
) -> tuple[Pixels, int, int]:
    """A region of the pinhole camera's picture (left, top, right, bottom edge), and its first column and row.

    At most half a picture beyond the edges of the lens's own, bilinear.
    """
    h, w = plane.shape
    limits = (-w // 2, -h // 2, w + w // 2, h + h // 2)
    x0, y0 = (max(math.floor(a), b) for a, b in zip(region[:2], limits[:2], strict=True))
    x1, y1 = (min(math.ceil(a), b) for a, b in zip(region[2:], limits[2:], strict=True))
    if x1 <= x0 or y1 <= y0:
        return np.zeros((0, 0), np.uint8), x0, y0
    view = K.copy()
    view[:2, 2] -= x0, y0
    x, y = cv2.initUndistortRectifyMap(K, dist, np.eye(3), view, (x1 - x0, y1 - y0), cv2.CV_32FC1)
    # Beyond its largest valid radius the lens model folds points back into the picture.
    along, down = (np.arange(n) - c for n, c in ((x1 - x0, view[0, 2]), (y1 - y0, view[1, 2])))
    x[np.hypot(along / K[0, 0], down[:, None] / K[1, 1]) > valid_radius(dist)] = -1e6
    out = cv2.remap(plane, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(black,) * 4)
    return np.asarray(out, np.uint8), x0, y0


def rgb_of_yuv(yuv: Tensor, to_yuv: Tensor) -> Tensor:
    """Crops (N, 3, S, S) in YUV → RGB, 0–255, float; to_yuv (N, 3, 4) from (red, green, blue, 1) to YUV."""
    back = torch.linalg.inv(to_yuv[:, :, :3].double()).to(yuv.dtype)
    rgb = torch.einsum("nij,njhw->nihw", back, yuv - to_yuv[:, :, 3, None, None].to(yuv.dtype))
    return rgb.clamp(0, 255)


def normalised_rgb(rgb: Tensor, contrast: Contrast) -> Tensor:
    """Crops (N, 3, S, S) of 0–255 → the input of an image network, normalised as for ImageNet."""
    if contrast == "stretch":
        low, high = rgb.amin((1, 2, 3), keepdim=True), rgb.amax((1, 2, 3), keepdim=True)
        rgb = (rgb - low) * (255 / (high - low).clamp(min=1))
    mean, std = (torch.tensor(x, dtype=rgb.dtype, device=rgb.device)[:, None, None] for x in (_MEAN, _STD))
    return (rgb / 255 - mean) / std


def warp_matrix(box: Array, angle: float, size: int) -> Array:
    """(3, 3) from pixels of a picture to those of the crop of ``box`` (3,), uncut, turned by ``angle``.

    angle: radians, x towards y.
    """
    c, s = np.cos(angle), np.sin(angle)
    out = np.eye(3)
    out[:2, :2] = size / box[2] * np.array([[c, -s], [s, c]])
    out[:2, 2] = (size - 1) / 2 - out[:2, :2] @ box[:2]
    return out


def warp_crop(picture: Pixels, matrix: Array, size: int) -> Pixels:
    """Crop (size, size, 3) of a picture (H, W, 3) whose pixels an affine ``matrix`` (3, 3) takes to the
    crop's.

    For crops with room that are turned and scaled. Bilinear; where the picture shrinks it is averaged over
    areas first, or it would alias. Black outside.
    """
    shrink = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    if shrink < 1:
        h, w = picture.shape[:2]
        width, height = max(1, round(w * shrink)), max(1, round(h * shrink))
        picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        x, y = w / width, h / height
        matrix = matrix @ np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
    return np.asarray(cv2.warpAffine(picture, matrix[:2], (size, size), flags=cv2.INTER_LINEAR), np.uint8)
