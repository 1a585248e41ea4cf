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
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.constants import constant
from models.rendering.software import valid_radius
from pipeline.cameras import rectify_map

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Border = Literal["black", "replicate"]
"""Pixels outside of the picture: black, or those of its edge."""
Contrast = Literal["none", "stretch"]
"""Contrast of the crops that a network was trained on. ``stretch``: each crop's darkest and brightest values
became 0 and 255, as scipy's ``imresize`` did in SPIN."""

SIZE: Final = 224
"""Side of a crop, pixels, where nothing else is said: SPIN's."""
MARGIN: Final = 1.2
"""Side of the box by the longer extent of the keypoints: SPIN's."""
MAX_BOX_FRAMES: Final = 4
"""Sides of the frame that a person's box may be wide: more is a stray keypoint."""
_COPIES: Final = 8
"""Parts in which a batch's pixels are copied together."""
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


class Optics(NamedTuple):
    """A camera whose distortion is taken out of a crop: the box is then one of the pinhole camera K."""

    K: Array
    """(3, 3)"""
    dist: Array
    """(8,) in OpenCV's order."""
    fisheye: bool = False


def crop_rgb(
    picture: Pixels,
    box: Array,
    size: int,
    room: int = 0,
    lens: Optics | None = None,
    contrast: Contrast = "none",
) -> Pixels:
    """Crop (S, S, 3) of an RGB picture (H, W, 3), S = size + 2 room; black outside of the picture.

    box (3,): centre x, y and side; all is black where it is NaN. contrast: SPIN's is stretched before the
    crop is resized, which is when pixels are darkest and brightest.
    """
    channels = [picture[..., c] for c in range(3)]
    out = _crop(channels, _RGB, box, size, room, lens).permute(1, 2, 0)
    if contrast == "stretch" and np.isfinite(box).all():
        x0, y0, x1, y1 = _edges(box).astype(int)
        part = picture[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]
        beyond = part.size < (x1 - x0) * (y1 - y0) * 3
        low, high = 0 if beyond else int(part.min()), int(part.max(initial=0))
        out = ((out - low) * (255 / max(high - low, 1))).clamp(0, 255)
    return out.round().to(torch.uint8).numpy()


def crop_yuv(
    planes: Sequence[Pixels], box: Array, size: int = SIZE, room: int = 0, lens: Optics | None = None
) -> Tensor:
    """Crop (3, S, S) of a YUV 4:2:0 frame, S = size + 2 room: Y, U and V, float32, 0–255; black outside.

    box (3,): centre x, y and side; all is black where it is NaN.
    """
    luma = _crop(planes[:1], _LUMA, box, size, room, lens)
    return torch.cat([luma, _crop(planes[1:], _CHROMA, box, size, room, lens)])


def cut_batch(
    frames: Sequence[Sequence[Pixels]], boxes: Array, size: int = SIZE, pool: Executor | None = None
) -> tuple[CutPixels, CutPixels]:
    """Luma and chroma of boxes (M, 3) of M YUV 4:2:0 frames, copied to memory that a GPU reads by itself.

    pool: threads that copy from several frames at once. Without a GPU, in common memory.
    """
    chroma = [plane for f in frames for plane in f[1:]]
    pinned = torch.cuda.is_available()
    return (
        _cut([f[0] for f in frames], _LUMA, boxes, size, pinned=pinned, pool=pool),
        _cut(chroma, _CHROMA, np.repeat(boxes, 2, 0), size, pinned=pinned, pool=pool),
    )


def resample_batch(cut: tuple[CutPixels, CutPixels], device: torch.device | str) -> Tensor:
    """Crops (M, 3, S, S) as ``crop_yuv``, on the device, of what ``cut_batch`` has cut."""
    luma, both = (_resampled(part, device) for part in cut)
    return torch.cat([luma[:, None], both.view(-1, 2, *both.shape[1:])], 1)


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


@dataclass(frozen=True)
class CutPixels:
    """Whole pixels of M boxes, cut from planes, to be resampled to crops of S pixels a side."""

    pixels: Tensor
    """(M, H, W) uint8; each box's from the first row and column on."""
    numbers: Tensor
    """(M, 2, 6) float64, along x and y: see ``_weighed``."""
    taps: int
    """Pixels that a pixel of a crop is a mean of, along a side."""
    size: int
    room: int
    black: float


def _cut(
    planes: Sequence[Pixels],
    grid: _Grid,
    boxes: Array,
    size: int,
    room: int = 0,
    lens: Optics | None = None,
    *,
    pinned: bool = False,
    pool: Executor | None = None,
) -> CutPixels:
    """Pixels of boxes (M, 3) of M planes."""
    edges = _edges(boxes) * grid.scale
    start, stop = (edges[k : k + 2].T + np.array([grid.left, 0.0]) for k in (0, 2))
    reach = np.maximum(1.0, (stop - start) / size)
    if lens is not None and (lens.fisheye or lens.dist.any()):
        wide = (room + 1) * reach + 2
        straight = [
            _rectified(p, lens._replace(K=grid.camera(lens.K)), (*a, *b), grid.black)
            for p, a, b in zip(planes, start - wide, stop + wide, strict=True)
        ]
        planes, corner = [p for p, *_ in straight], np.array([at for _, *at in straight], np.float64)
        start, stop = start - corner, stop - corner
    shape = np.array([plane.shape[::-1] for plane in planes], np.float64)
    first = np.ceil(start - 0.5)
    last = np.maximum(first + 1, np.ceil(stop - 0.5))
    margin = np.ceil((room + 1) * reach) if room else 0.0
    low, high = (np.clip(edge, 0, shape).astype(np.int64) for edge in (first - margin, last + margin))
    width, height = np.maximum((high - low).max(0), 1).tolist()
    pixels = torch.empty(len(planes), height, width, dtype=torch.uint8, pin_memory=pinned)
    into = pixels.numpy()

    def copy(begin: int) -> None:
        for n in range(begin, len(planes), _COPIES):
            (a, b), (c, d) = low[n].tolist(), high[n].tolist()
            into[n, : d - b, : c - a] = planes[n][b:d, a:c]

    for _ in (map if pool is None else pool.map)(copy, range(_COPIES)):
        pass
    numbers = torch.from_numpy(np.stack([start, stop, first, last, shape, low], 1))
    return CutPixels(pixels, numbers, int(2 * reach.max()) + 1, size, room, grid.black)


def _resampled(cut: CutPixels, device: torch.device | str = "cpu") -> Tensor:
    """Crops (M, S, S), S = size + 2 room, float32."""
    numbers, x = _upload(cut.numbers, device), _upload(cut.pixels, device).float()
    narrow = _weighed(x, numbers[..., 1], cut.taps, cut.size, cut.room, cut.black)
    return _weighed(narrow.mT.contiguous(), numbers[..., 0], cut.taps, cut.size, cut.room, cut.black).mT


def _crop(
    planes: Sequence[Pixels], grid: _Grid, box: Array, size: int, room: int, lens: Optics | None
) -> Tensor:
    """Crop (C, S, S) of a box (3,) of C planes of one picture, float32; all black where the box is NaN."""
    if not np.isfinite(box).all():
        return torch.full((len(planes), *(size + 2 * room,) * 2), grid.black)
    return _resampled(_cut(planes, grid, np.repeat(box[None], len(planes), 0), size, room, lens))


def _upload(x: Tensor, device: torch.device | str) -> Tensor:
    """To the device; to a GPU beside what it computes meanwhile."""
    if torch.device(device).type == "cpu":
        return x
    now, beside = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(beside):
        out = (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)
    now.wait_stream(beside)
    out.record_stream(now)
    return out


@lru_cache
def _copy_stream(device: torch.device | str) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _weighed(x: Tensor, numbers: Tensor, taps: int, size: int, room: int, black: float) -> Tensor:
    """Sums (M, S, W) of rows of x (M, H, W), and of black for the weight that lies outside of the picture.

    A triangle, one pixel of the crop wide on each side, or one sample where the crop is larger than the
    picture, over the samples on the pixel's side of the crop's two edges. numbers: (M, 6) start and stop of a
    box, its first sample and the one after its last, the picture's samples, and which of them is x's first
    (float64).
    """
    start, stop, first, last, length, low = numbers[..., None].unbind(1)
    step = (stop - start) / size
    reach = step.clamp(min=1)
    pixel = torch.arange(-room, size + room, device=x.device)
    centre = start + (pixel + 0.5) * step
    sample = torch.ceil(centre - reach - 0.5)[..., None] + torch.arange(taps, device=x.device)
    first, last, length, low, reach = (n[..., None] for n in (first, last, length, low, reach))
    weight = (1 - (sample + 0.5 - centre[..., None]).abs() / reach).clamp(min=0)
    part = (pixel >= 0).int() + (pixel >= size).int()
    across = (sample >= first).int() + (sample >= last).int() != part[:, None]
    weight = torch.where(across, 0, weight)
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)
    weight = torch.where((sample < 0) | (sample >= length), 0, weight).float()
    row = (sample - low).clamp(0, x.shape[1] - 1).long()
    row = row + x.shape[1] * torch.arange(len(x), device=x.device)[:, None, None]
    # A product with the whole matrix of weights takes thirty times as long.
    total = torch.nn.functional.embedding_bag(
        row.flatten(0, 1), x.flatten(0, 1), per_sample_weights=weight.flatten(0, 1), mode="sum"
    )
    return total.view(len(x), len(pixel), -1) + black * (1 - weight.sum(-1, keepdim=True))


def _rectified(
    plane: Pixels, lens: Optics, region: tuple[float, ...], black: float
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
    K, dist, fisheye = lens
    view = K.copy()
    view[:2, 2] -= x0, y0
    x, y = rectify_map(K, dist, fisheye, view, (x1 - x0, y1 - y0))
    # Beyond its largest valid radius the lens model folds points back into the picture.
    along, down = (np.arange(n) - c for n, c in ((x1 - x0, view[0, 2]), (y1 - y0, view[1, 2])))
    x[np.hypot(along / K[0, 0], down[:, None] / K[1, 1]) > valid_radius(dist, fisheye)] = -1e6
    out = cv2.remap(plane, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(black,) * 4)
    return np.asarray(out, np.uint8), x0, y0


def rgb_of_yuv(yuv: Tensor, to_yuv: Tensor) -> Tensor:
    """Crops (N, 3, S, S) in YUV → RGB, 0–255, float; to_yuv (N, 3, 4) from (red, green, blue, 1) to YUV."""
    back = torch.linalg.inv_ex(to_yuv[:, :, :3].double()).inverse.to(yuv.dtype)
    rgb = torch.einsum("nij,njhw->nihw", back, yuv - to_yuv[:, :, 3, None, None].to(yuv.dtype))
    return rgb.clamp(0, 255)


def normalised_rgb(rgb: Tensor, contrast: Contrast) -> Tensor:
    """Crops (N, 3, S, S) of 0–255 → the input of an image network, normalised as for ImageNet."""
    if contrast == "stretch":
        low, high = rgb.amin((1, 2, 3), keepdim=True), rgb.amax((1, 2, 3), keepdim=True)
        rgb = (rgb - low) * (255 / (high - low).clamp(min=1))
    mean, std = (constant(x, rgb.device, rgb.dtype)[:, None, None] for x in (_MEAN, _STD))
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


def warp_part(picture: Pixels, matrix: Array, size: int, border: Border = "black") -> Pixels:
    """Crop (size, size, 3) as ``warp_crop``, at a cost that does not grow with the picture.

    Where the picture shrinks, it is halved first, to 0.8 to 1.7 times the size that the crop has of it, and
    only the part that the crop shows.
    """
    shrink = 1 / np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    halvings = max(0, math.floor(math.log2(shrink) + 0.25))
    if halvings:
        factor = 2**halvings
        ends = np.array([[-1, size, size, -1], [-1, -1, size, size], [1, 1, 1, 1]])
        shown = (np.linalg.inv(matrix) @ ends)[:2]
        limits = np.array(picture.shape[1::-1])
        first = (np.clip(shown.min(1) - factor, 0, limits) // factor).astype(int) * factor
        count = (np.clip(shown.max(1) + 2 * factor, 0, limits).astype(int) - first) // factor
        if (count > 0).all():
            (x, y), (w, h) = first.tolist(), count.tolist()
            picture = picture[y : y + h * factor, x : x + w * factor]
            for _ in range(halvings):  # a quarter of the time of larger squares at once
                size_px = (picture.shape[1] // 2, picture.shape[0] // 2)
                picture = np.asarray(cv2.resize(picture, size_px, interpolation=cv2.INTER_AREA), np.uint8)
            middle = first + (factor - 1) / 2
            matrix = matrix @ np.array([[factor, 0, middle[0]], [0, factor, middle[1]], [0, 0, 1]])
    mode = cv2.BORDER_REPLICATE if border == "replicate" else cv2.BORDER_CONSTANT
    out = cv2.warpAffine(picture, matrix[:2], (size, size), flags=cv2.INTER_LINEAR, borderMode=mode)
    return np.asarray(out, np.uint8)
