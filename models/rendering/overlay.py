"""Drawing on video frames: lines, circles, labels, mosaics.

A frame is its planes Y (H, W), U and V (⌈H/2⌉, ⌈W/2⌉), uint8, YUV 4:2:0 in limited range, changed in place: a
round trip through RGB would touch every pixel for a person who covers a tenth of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from models.rendering.software import Picture, Planes
from pipeline.array_types import Pixels
from pipeline.skeleton import Skeleton

BLACK, WHITE, NEUTRAL = 16, 235, 128
FONT = cv2.FONT_HERSHEY_SIMPLEX

RED_RESIDUAL_PX = 20.0
"""Reprojection residual from which a fitted keypoint is red; it is green at 0."""

PEOPLE_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
"""Colour of each person, repeated for more: Okabe and Ito's, which colour-blind people can tell apart."""

_RED_BLUE = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""Weights of red and blue in luma by colour space (ITU-T H.273, table 4): BT.709, BT.601 twice, BT.2020."""

_SHIFT = 4
"""Binary digits after the point in OpenCV's coordinates: it draws in 1/16 of a pixel."""

_MAX_PX = 1e5
"""Largest coordinate that is drawn: OpenCV's integers would overflow."""


def person_colour(person: int, colours: Sequence[str] = PEOPLE_COLOURS) -> tuple[int, int, int]:
    """Red, green and blue of a person, 0 to 255, from colours written as #rrggbb."""
    colour = colours[person % len(colours)]
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


@lru_cache
def yuv_matrix(colour_space: int, height: int) -> NDArray[np.float32]:
    """Matrix (3, 4) from (red, green, blue, 1), 0 to 255, to limited-range YUV.

    colour_space: H.273's number; for an unspecified one, BT.709 in high definition and BT.601 below, as in
    players.
    """
    red, blue = _RED_BLUE.get(colour_space, _RED_BLUE[1 if height >= 720 else 5])
    luma = np.array([red, 1 - red - blue, blue])
    u = (np.array([0, 0, 1]) - luma) / (1 - blue) / 2
    v = (np.array([1, 0, 0]) - luma) / (1 - red) / 2
    scaled = np.stack([luma * 219, u * 224, v * 224]) / 255
    return np.column_stack([scaled, [BLACK, NEUTRAL, NEUTRAL]]).astype(np.float32)


def composite(rgb: Pixels, picture: Picture | None) -> Pixels:
    """Copy of an RGB picture (H, W, 3) with another blended over it."""
    out = rgb.copy()
    if picture is not None:
        height, width = picture.alpha.shape
        box = out[picture.y0 : picture.y0 + height, picture.x0 : picture.x0 + width]
        a = picture.alpha[..., None] / np.float32(255)
        box[:] = box + a * (picture.rgb - box.astype(np.float32)) + 0.5
    return out


def draw_lines(
    planes: Planes,
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    rgb: NDArray[np.floating],
    matrix: NDArray[np.float32],
    width: float,
) -> None:
    """Draw lines from ``a`` to ``b``, (N, 2) pixels, of one colour (0 to 1), leaving out those with a NaN."""
    colour = _yuv(rgb, matrix)
    for start, end in zip(a, b, strict=True):
        ends = np.stack([start, end])
        if not (np.abs(ends) < _MAX_PX).all():  # false for NaN
            continue
        for n, plane in enumerate(planes):
            (p, q), thickness = _fixed_point(ends, n), max(1, round(width / (1 if n == 0 else 2)))
            cv2.line(plane, p, q, colour[n], thickness, cv2.LINE_AA, _SHIFT)


def draw_circles(
    planes: Planes,
    centres: NDArray[np.float64],
    rgb: NDArray[np.floating],
    matrix: NDArray[np.float32],
    radius: float,
    *,
    filled: bool,
) -> None:
    """Draw circles around (N, 2) pixels, in colours (N, 3) from 0 to 1, leaving out those with a NaN."""
    thickness = -1 if filled else max(1, round(radius / 3))
    for point, colour in zip(centres, rgb, strict=True):
        if not (np.abs(point) < _MAX_PX).all():
            continue
        yuv = _yuv(colour, matrix)
        for n, plane in enumerate(planes):
            (centre,), r = _fixed_point(point[None], n), radius / (1 if n == 0 else 2)
            t = thickness if n == 0 or filled else max(1, thickness // 2)
            cv2.circle(plane, centre, round(r * 2**_SHIFT), yuv[n], t, cv2.LINE_AA, _SHIFT)


def _yuv(rgb: NDArray[np.floating], matrix: NDArray[np.float32]) -> list[float]:
    """Y, U and V of a colour from 0 to 1."""
    return [float(c) for c in matrix[:, :3] @ (np.asarray(rgb) * 255) + matrix[:, 3]]


def _fixed_point(points: NDArray[np.float64], plane: int) -> list[tuple[int, int]]:
    """Pixels of the frame as OpenCV's fixed-point numbers of a plane; chroma samples lie amid four pixels."""
    scaled = points if plane == 0 else (points - 0.5) / 2
    return [(round(float(x) * 2**_SHIFT), round(float(y) * 2**_SHIFT)) for x, y in scaled]


def fill(planes: Planes, luma: int) -> None:
    """Fill a frame with a shade of grey."""
    planes[0][:] = luma
    for chroma in planes[1:]:
        chroma[:] = NEUTRAL


def draw_label(planes: Planes, text: str, height: int, *, bottom: bool = False) -> None:
    """Write white text ``height`` pixels high on a darkened strip in the top or bottom left corner."""
    scale, thickness, width, descent = _measure(text, height)
    luma, pad = planes[0], max(2, height // 2)
    rows = (height + descent + pad) // 2 * 2
    top = (luma.shape[0] - rows) // 2 * 2 if bottom else 0
    columns = (width + 2 * pad) // 2 * 2
    for n, plane in enumerate(planes):
        s, base = (1, BLACK) if n == 0 else (2, NEUTRAL)
        box = plane[top // s : (top + rows) // s, : columns // s]
        box[:] = base + (box.astype(np.float32) - base) * 0.3
    cv2.putText(luma, text, (pad, top + height + pad // 2), FONT, scale, WHITE, thickness, cv2.LINE_AA)


def draw_footer(planes: Planes, rows: int, text: str, height: int) -> None:
    """Write white text in the middle of a black strip of ``rows`` at the bottom."""
    scale, thickness, width, _ = _measure(text, height)
    luma, u, v = planes
    strip = luma[-rows:], u[-rows // 2 :], v[-rows // 2 :]
    fill(strip, BLACK)
    origin = ((luma.shape[1] - width) // 2, (rows + height) // 2)
    cv2.putText(strip[0], text, origin, FONT, scale, WHITE, thickness, cv2.LINE_AA)


def _measure(text: str, height: int) -> tuple[float, int, int, int]:
    """Scale and line width of the font for capitals ``height`` pixels high; width and descent of a text."""
    scale = height / 22  # capitals of this font are 22 pixels high at scale 1
    thickness = max(1, round(height / 10))
    (width, _), descent = cv2.getTextSize(text, FONT, scale, thickness)
    return scale, thickness, width, descent


@dataclass(frozen=True)
class Mosaic:
    """Layout of several views in one picture, pixels."""

    size: tuple[int, int]
    """Width and height."""
    boxes: tuple[tuple[int, int, int, int], ...]
    """x, y, width, height of each view, even numbers."""
    footer: int
    """Rows at the bottom that no view covers, for the time."""


def plan_mosaic(sizes: Sequence[tuple[int, int]], limit: tuple[int, int]) -> Mosaic:
    """Choose the grid within ``limit`` (width, height) that shows views of these sizes largest.

    All cells have one size; a view keeps its aspect ratio and is centred in its cell.
    """
    footer = max(16, limit[1] // 27) // 2 * 2
    width, height = limit[0], limit[1] - footer

    def cell_of(columns: int) -> tuple[int, int]:
        return width // columns, height // -(-len(sizes) // columns)

    def view_pixels(columns: int) -> float:
        cell = cell_of(columns)
        return sum(w * h * min(cell[0] / w, cell[1] / h) ** 2 for w, h in sizes)

    columns = max(range(1, len(sizes) + 1), key=view_pixels)
    rows = -(-len(sizes) // columns)
    cell = cell_of(columns)
    fitted = []
    for w, h in sizes:
        scale = min(cell[0] / w, cell[1] / h)
        fitted.append((max(2, int(w * scale) // 2 * 2), max(2, int(h * scale) // 2 * 2)))
    # Cells shrink to the largest view.
    cell = (max(w for w, _ in fitted), max(h for _, h in fitted))
    boxes = []
    for k, (w, h) in enumerate(fitted):
        row, column = divmod(k, columns)
        left, top = column * cell[0] + (cell[0] - w) // 4 * 2, row * cell[1] + (cell[1] - h) // 4 * 2
        boxes.append((left, top, w, h))
    return Mosaic((columns * cell[0], rows * cell[1] + footer), tuple(boxes), footer)


def draw_cell(planes: Planes, source: Planes, box: tuple[int, int, int, int], name: str, height: int) -> None:
    """Shrink one frame into a box of another and label it with text ``height`` pixels high."""
    x, y, w, h = box
    luma, u, v = planes
    x2, y2, w2, h2 = x // 2, y // 2, w // 2, h // 2
    cell = luma[y : y + h, x : x + w], u[y2 : y2 + h2, x2 : x2 + w2], v[y2 : y2 + h2, x2 : x2 + w2]
    for target, plane in zip(cell, source, strict=True):
        target[:] = cv2.resize(plane, target.shape[::-1], interpolation=cv2.INTER_AREA)
    draw_label(cell, name, height)


@dataclass(frozen=True)
class Still:
    """Frame of one camera around a person, with the keypoints as detected and as fitted."""

    camera: str
    frame: int
    person: int
    error_px: float
    """Mean reprojection residual of the person, pixels of the video."""
    picture: NDArray[np.uint8]
    """(H, W, 3) RGB."""


@dataclass(frozen=True)
class Skeletons:
    """Detected and fitted keypoints in one frame of one view, pixels of the picture."""

    detected: NDArray[np.float64]
    """(P, K, 2) NaN where missing."""
    confidence: NDArray[np.float64]
    """(P, K)"""
    fitted: NDArray[np.float64]
    """(P, K, 2)"""
    error_px: NDArray[np.float64]
    """(P, K) reprojection residual, pixels of the video; NaN where nothing was detected."""
    colours: NDArray[np.float32]
    """(P, 3)"""
    skeleton: Skeleton

    def draw(self, planes: Planes, matrix: NDArray[np.float32]) -> None:
        """Draw bones, rings at detected and dots at fitted keypoints, and lines between the two."""
        size = max(2.0, min(planes[0].shape) / 250)
        grey = np.full(3, 0.85)
        for p in range(len(self.fitted)):
            bones = self.fitted[p][self.skeleton.bone_ends]
            draw_lines(planes, bones[:, 0], bones[:, 1], self.colours[p], matrix, size)
            draw_lines(planes, self.detected[p], self.fitted[p], grey, matrix, size / 3)
            brightness = np.outer(self.confidence[p], np.ones(3))
            draw_circles(planes, self.detected[p], brightness, matrix, 1.8 * size, filled=False)
            red = np.clip(np.nan_to_num(self.error_px[p]) / RED_RESIDUAL_PX, 0, 1)[:, None]
            colour = np.minimum(2 * np.concatenate([red, 1 - red, 0 * red], 1), 1)
            colour[np.isnan(self.error_px[p])] = 0.6  # grey without a residual
            draw_circles(planes, self.fitted[p], colour, matrix, 1.2 * size, filled=True)
