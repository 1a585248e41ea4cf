"""Crops of people: the only code that cuts a person out of a picture.

A box (..., 3) is a square around a person: centre x, y and side, pixels, as SPIN's ``center`` and 200 times
its ``scale``. As in SPIN, it is cut along whole pixels, from trunc(centre − side / 2) on, counted from the
picture's corner, and resized as Pillow does: bilinear, with the filter widened where the picture shrinks.
Training, evaluation and ``run`` get the same crop of an undistorted picture. A crop may have room around it,
on the same grid; the filter does not cross the crop's edges, so the room does not change the crop.
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
from torch import Tensor

from models.constants import constant
from models.rendering.software import valid_radius
from pipeline.array_types import Array, Pixels
from pipeline.cameras import rectify_map

Border = Literal["black", "replicate"]
"""Pixels outside of the picture: black, or those of its edge."""
Contrast = Literal["none", "stretch"]
"""Contrast of the crops that a network was trained on. ``stretch``: each crop's darkest and brightest values
become 0 and 255, as by scipy's ``imresize`` in SPIN."""

CROP_PX: Final = 224
"""Default side of a crop, pixels: SPIN's."""
BOX_MARGIN: Final = 1.2
"""Ratio of a box's side to the longer extent of the keypoints: SPIN's."""
MAX_BOX_FRAME_RATIO: Final = 4
"""Largest ratio of a person's box to the longer side of the frame: beyond, a keypoint is an outlier."""
_COPY_TASKS: Final = 8
"""Tasks that a batch's pixels are copied in."""
_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)
"""Of red, green and blue, 0 to 1."""


def person_box(xy_px: Tensor, visible: Tensor) -> Tensor:
    """Box (..., 3) around a person's keypoints xy_px (..., K, 2), NaN where fewer than two are ``visible``.

    The centre is the mean of the visible (..., K) points, not the middle of their extent, as in SPIN's demo.
    """
    visible = visible & xy_px.isfinite().all(-1)
    inf = torch.tensor(torch.inf, dtype=xy_px.dtype, device=xy_px.device)
    count = visible.sum(-1, keepdim=True)
    centre = torch.where(visible[..., None], xy_px, 0).sum(-2) / count
    low = torch.where(visible[..., None], xy_px, inf).amin(-2)
    high = torch.where(visible[..., None], xy_px, -inf).amax(-2)
    side = BOX_MARGIN * (high - low).amax(-1, keepdim=True)
    return torch.where((count >= 2) & (side > 0), torch.cat([centre, side], -1), torch.nan)


def extent_box(low: Array, high: Array, margin: float = BOX_MARGIN) -> Array:
    """Box (3,) around the extent from low to high (2,), as in SPIN's preprocessing of data sets."""
    return np.array([*(low + high) / 2, margin * (high - low).max()])


def room_around(size: int) -> int:
    """Pixels of room on each side of a crop of ``size`` pixels, for turning, scaling and shifting it."""
    return round(0.75 * size) - size // 2


def cut_box(box: Array) -> Array:
    """Box (..., 3) rounded to the whole pixels that are cut: their middle and mean side."""
    x0, y0, x1, y1 = _box_edges(box)
    return np.stack([(x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2, (x1 - x0 + y1 - y0) / 2], -1)


def crop_matrix(box: Array, size: int, room: int = 0) -> Array:
    """Matrix (..., 3, 3) from pixels of the picture to those of the crop of ``box`` (..., 3) with room."""
    x0, y0, x1, y1 = _box_edges(box)
    out = np.zeros((*box.shape[:-1], 3, 3))
    for axis, (start, stop) in enumerate(((x0, x1), (y0, y1))):
        out[..., axis, axis] = size / (stop - start)
        out[..., axis, 2] = (0.5 - start) * out[..., axis, axis] + room - 0.5
    out[..., 2, 2] = 1
    return out


def spin_camera(box: Array) -> Array:
    """SPIN's camera matrix (..., 3, 3) for an unknown focal length: 5000 px, straight at a crop of 224 px."""
    in_crop = np.array([[5000.0, 0, (CROP_PX - 1) / 2], [0, 5000.0, (CROP_PX - 1) / 2], [0, 0, 1]])
    return np.asarray(np.linalg.inv(crop_matrix(box, CROP_PX)) @ in_crop)


def _box_edges(box: Array) -> Array:
    """Left, top, right and bottom edge (4, ...) of the pixels that are cut, from the picture's corner."""
    half = box[..., 2:] / 2
    first = np.trunc(box[..., :2] - half)
    last = np.maximum(first + 1, np.trunc(box[..., :2] + half))
    return np.moveaxis(np.concatenate([first, last], -1), -1, 0)


class Optics(NamedTuple):
    """Lens whose distortion is undone in a crop; the box is then in pixels of the pinhole camera K."""

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

    box (3,): centre x, y and side; NaN for a black crop. contrast: SPIN's stretches by the pixels before the
    resizing.
    """
    channels = [picture[..., c] for c in range(3)]
    out = _crop(channels, _RGB, box, size, room, lens).permute(1, 2, 0)
    if contrast == "stretch" and np.isfinite(box).all():
        x0, y0, x1, y1 = _box_edges(box).astype(int)
        part = picture[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]
        has_border = part.size < (x1 - x0) * (y1 - y0) * 3
        low, high = 0 if has_border else int(part.min()), int(part.max(initial=0))
        out = ((out - low) * (255 / max(high - low, 1))).clamp(0, 255)
    return out.round().to(torch.uint8).numpy()


def crop_yuv(
    planes: Sequence[Pixels], box: Array, size: int = CROP_PX, room: int = 0, lens: Optics | None = None
) -> Tensor:
    """Crop (3, S, S) of a YUV 4:2:0 frame, S = size + 2 room: Y, U and V, float32, 0–255; black outside.

    box (3,): centre x, y and side; NaN for a black crop.
    """
    luma = _crop(planes[:1], _LUMA, box, size, room, lens)
    return torch.cat([luma, _crop(planes[1:], _CHROMA, box, size, room, lens)])


def cut_batch(
    frames: Sequence[Sequence[Pixels]], boxes: Array, size: int = CROP_PX, pool: Executor | None = None
) -> tuple[CutPixels, CutPixels]:
    """Luma and chroma of boxes (M, 3) of M YUV 4:2:0 frames, in pinned memory where there is a GPU.

    pool: threads that copy from several frames at once.
    """
    chroma = [plane for f in frames for plane in f[1:]]
    pinned = torch.cuda.is_available()
    return (
        _cut([f[0] for f in frames], _LUMA, boxes, size, pinned=pinned, pool=pool),
        _cut(chroma, _CHROMA, np.repeat(boxes, 2, 0), size, pinned=pinned, pool=pool),
    )


def resample_batch(cut: tuple[CutPixels, CutPixels], device: torch.device | str) -> Tensor:
    """Crops (M, 3, S, S) as ``crop_yuv``, on the device, of the pixels from ``cut_batch``."""
    luma, chroma = (_resample(part, device) for part in cut)
    return torch.cat([luma[:, None], chroma.view(-1, 2, *chroma.shape[1:])], 1)


class _Grid(NamedTuple):
    """Sampling grid of an image plane."""

    scale: float
    """Samples per pixel of the picture."""
    left: float
    """Left edge of the picture, in samples from the left edge of the first sample."""
    black: float
    """Value of black."""

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
    spans: Tensor
    """(M, 2, 6) float64, along x and y: see ``_resample_rows``."""
    taps: int
    """Length of the resampling filter, pixels."""
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
    edges = _box_edges(boxes) * grid.scale
    start, stop = (edges[k : k + 2].T + np.array([grid.left, 0.0]) for k in (0, 2))
    radius = np.maximum(1.0, (stop - start) / size)
    if lens is not None and (lens.fisheye or lens.dist.any()):
        border = (room + 1) * radius + 2
        rectified = [
            _rectify(p, lens._replace(K=grid.camera(lens.K)), (*a, *b), grid.black)
            for p, a, b in zip(planes, start - border, stop + border, strict=True)
        ]
        planes, corner = [p for p, *_ in rectified], np.array([at for _, *at in rectified], np.float64)
        start, stop = start - corner, stop - corner
    shape = np.array([plane.shape[::-1] for plane in planes], np.float64)
    first = np.ceil(start - 0.5)
    last = np.maximum(first + 1, np.ceil(stop - 0.5))
    margin = np.ceil((room + 1) * radius) if room else 0.0
    low, high = (np.clip(edge, 0, shape).astype(np.int64) for edge in (first - margin, last + margin))
    width, height = np.maximum((high - low).max(0), 1).tolist()
    pixels = torch.empty(len(planes), height, width, dtype=torch.uint8, pin_memory=pinned)
    target = pixels.numpy()

    def copy(begin: int) -> None:
        for n in range(begin, len(planes), _COPY_TASKS):
            (x0, y0), (x1, y1) = low[n].tolist(), high[n].tolist()
            target[n, : y1 - y0, : x1 - x0] = planes[n][y0:y1, x0:x1]

    for _ in (map if pool is None else pool.map)(copy, range(_COPY_TASKS)):
        pass
    spans = torch.from_numpy(np.stack([start, stop, first, last, shape, low], 1))
    return CutPixels(pixels, spans, int(2 * radius.max()) + 1, size, room, grid.black)


def _resample(cut: CutPixels, device: torch.device | str = "cpu") -> Tensor:
    """Crops (M, S, S), S = size + 2 room, float32."""
    spans, x = _upload(cut.spans, device), _upload(cut.pixels, device).float()
    x = _resample_rows(x, spans[..., 1], cut.taps, cut.size, cut.room, cut.black).mT.contiguous()
    return _resample_rows(x, spans[..., 0], cut.taps, cut.size, cut.room, cut.black).mT


def _crop(
    planes: Sequence[Pixels], grid: _Grid, box: Array, size: int, room: int, lens: Optics | None
) -> Tensor:
    """Crop (C, S, S) of a box (3,) of C planes of one picture, float32; all black where the box is NaN."""
    if not np.isfinite(box).all():
        return torch.full((len(planes), *(size + 2 * room,) * 2), grid.black)
    return _resample(_cut(planes, grid, np.repeat(box[None], len(planes), 0), size, room, lens))


def _upload(x: Tensor, device: torch.device | str) -> Tensor:
    """Copy to the device; to a GPU in a stream of its own, beside what it computes."""
    if torch.device(device).type == "cpu":
        return x
    current, copying = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(copying):
        out = (x if x.is_pinned() else x.pin_memory()).to(device, non_blocking=True)
    current.wait_stream(copying)
    out.record_stream(current)
    return out


@lru_cache
def _copy_stream(device: torch.device | str) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _resample_rows(x: Tensor, spans: Tensor, taps: int, size: int, room: int, black: float) -> Tensor:
    """Resample rows of x (M, H, W) → (M, S, W), with ``black`` outside of the picture.

    The filter is a triangle that reaches one pixel of the crop to each side, or one sample where the crop is
    larger than the picture, and ends at the crop's edges. spans: (M, 6) start and stop of a box, its first
    sample and the one after its last, the picture's number of samples, and the sample in x's first row
    (float64).
    """
    start, stop, first, last, length, low = spans[..., None].unbind(1)
    step = (stop - start) / size
    radius = step.clamp(min=1)
    pixel = torch.arange(-room, size + room, device=x.device)
    centre = start + (pixel + 0.5) * step
    sample = torch.ceil(centre - radius - 0.5)[..., None] + torch.arange(taps, device=x.device)
    first, last, length, low, radius = (n[..., None] for n in (first, last, length, low, radius))
    weight = (1 - (sample + 0.5 - centre[..., None]).abs() / radius).clamp(min=0)
    # 0, 1 and 2: before, in and after the box.
    part = (pixel >= 0).int() + (pixel >= size).int()
    across_edge = (sample >= first).int() + (sample >= last).int() != part[:, None]
    weight = torch.where(across_edge, 0, weight)
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)
    weight = torch.where((sample < 0) | (sample >= length), 0, weight).float()
    row = (sample - low).clamp(0, x.shape[1] - 1).long()
    row = row + x.shape[1] * torch.arange(len(x), device=x.device)[:, None, None]
    # A product with the whole matrix of weights takes thirty times as long.
    total = torch.nn.functional.embedding_bag(
        row.flatten(0, 1), x.flatten(0, 1), per_sample_weights=weight.flatten(0, 1), mode="sum"
    )
    return total.view(len(x), len(pixel), -1) + black * (1 - weight.sum(-1, keepdim=True))


def _rectify(plane: Pixels, lens: Optics, region: tuple[float, ...], black: float) -> tuple[Pixels, int, int]:
    """Undistort a region (left, top, right, bottom edge); return it with its first column and row.

    Bilinear; at most half a picture beyond the edges of the distorted one.
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
    dx, dy = (np.arange(n) - c for n, c in ((x1 - x0, view[0, 2]), (y1 - y0, view[1, 2])))
    x[np.hypot(dx / K[0, 0], dy[:, None] / K[1, 1]) > valid_radius(dist, fisheye)] = -1e6
    out = cv2.remap(plane, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(black,) * 4)
    return np.asarray(out, np.uint8), x0, y0


def yuv_to_rgb(yuv: Tensor, to_yuv: Tensor) -> Tensor:
    """Crops (N, 3, S, S) in YUV → RGB, 0–255, float; to_yuv (N, 3, 4) from (red, green, blue, 1) to YUV."""
    to_rgb = torch.linalg.inv_ex(to_yuv[:, :, :3].double()).inverse.to(yuv.dtype)
    rgb = torch.einsum("nij,njhw->nihw", to_rgb, yuv - to_yuv[:, :, 3, None, None].to(yuv.dtype))
    return rgb.clamp(0, 255)


def normalise_rgb(rgb: Tensor, contrast: Contrast) -> Tensor:
    """Normalise crops (N, 3, S, S) of 0–255 as for ImageNet."""
    if contrast == "stretch":
        low, high = rgb.amin((1, 2, 3), keepdim=True), rgb.amax((1, 2, 3), keepdim=True)
        rgb = (rgb - low) * (255 / (high - low).clamp(min=1))
    mean, std = (constant(x, rgb.device, rgb.dtype)[:, None, None] for x in (_IMAGENET_MEAN, _IMAGENET_STD))
    return (rgb / 255 - mean) / std


def warp_matrix(box: Array, angle: float, size: int) -> Array:
    """Matrix (3, 3) from pixels of a picture to pixels of the crop of ``box`` (3,), not rounded, rotated.

    angle: radians, x towards y.
    """
    c, s = np.cos(angle), np.sin(angle)
    out = np.eye(3)
    out[:2, :2] = size / box[2] * np.array([[c, -s], [s, c]])
    out[:2, 2] = (size - 1) / 2 - out[:2, :2] @ box[:2]
    return out


def warp_crop(picture: Pixels, matrix: Array, size: int) -> Pixels:
    """Crop (size, size, 3) of a picture (H, W, 3) by an affine ``matrix`` (3, 3), picture → crop, pixels.

    Bilinear, black outside; a picture that shrinks is averaged over areas first, against aliasing.
    """
    shrink = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    if shrink < 1:
        h, w = picture.shape[:2]
        width, height = max(1, round(w * shrink)), max(1, round(h * shrink))
        picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        x, y = w / width, h / height
        matrix = matrix @ np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
    return np.asarray(cv2.warpAffine(picture, matrix[:2], (size, size), flags=cv2.INTER_LINEAR), np.uint8)


def warp_bilinear(picture: Pixels, matrix: Array, size: tuple[int, int], border: Border = "black") -> Pixels:
    """Crop (height, width, 3) as ``warp_crop``, of a size (width, height), bilinear even where the picture
    shrinks: MediaPipe and MMPose show their networks such crops, in training, too."""
    mode = cv2.BORDER_REPLICATE if border == "replicate" else cv2.BORDER_CONSTANT
    out = cv2.warpAffine(picture, matrix[:2], size, flags=cv2.INTER_LINEAR, borderMode=mode)
    return np.asarray(out, np.uint8)
