"""Drawing on video frames: lines, labels, and many views in one.

A frame is its planes Y (H, W), U and V (⌈H/2⌉, ⌈W/2⌉), uint8, YUV 4:2:0 in limited range, changed in place: a
round trip through RGB would touch every pixel of the frame for a person who covers a tenth of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from models.rendering.software import Picture, Planes
from pipeline.skeleton import Skeleton

Pixels = NDArray[np.uint8]

BLACK, WHITE, NEUTRAL = 16, 235, 128
FONT = cv2.FONT_HERSHEY_SIMPLEX

FAR_PX = 20.0
"""A fitted keypoint so far from the detected one, or farther, is red; one on the spot is green."""

PEOPLE_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
"""One a person, from the start again when there are more: Okabe and Ito's, which the colour-blind can tell
apart."""

_RED_BLUE = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""Weights of red and blue in luma by colour space (ITU-T H.273, table 4): BT.709, BT.601 twice, BT.2020."""


def rgb_of(person: int, colours: Sequence[str] = PEOPLE_COLOURS) -> tuple[int, int, int]:
    """Red, green and blue of a person, 0 to 255; colours are written as #rrggbb."""
    colour = colours[person % len(colours)]
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


@lru_cache
def yuv_matrix(colour_space: int, height: int) -> NDArray[np.float32]:
    """(3, 4) from (red, green, blue, 1), 0 to 255, to limited-range YUV.

    ``colour_space`` is H.273's number. Where the file does not say, players take BT.709 for high definition
    and BT.601 below, so it is done here.
    """
    red, blue = _RED_BLUE.get(colour_space, _RED_BLUE[1 if height >= 720 else 5])
    luma = np.array([red, 1 - red - blue, blue])
    u = (np.array([0, 0, 1]) - luma) / (1 - blue) / 2
    v = (np.array([1, 0, 0]) - luma) / (1 - red) / 2
    scaled = np.stack([luma * 219, u * 224, v * 224]) / 255
    return np.column_stack([scaled, [BLACK, NEUTRAL, NEUTRAL]]).astype(np.float32)


def composite(rgb: Pixels, picture: Picture | None) -> Pixels:
    """An RGB picture (H, W, 3) with another drawn over it, for stills."""
    out = rgb.copy()
    if picture is not None:
        height, width = picture.alpha.shape
        box = out[picture.y0 : picture.y0 + height, picture.x0 : picture.x0 + width]
        a = picture.alpha[..., None] / np.float32(255)
        box[:] = box + a * (picture.rgb - box.astype(np.float32)) + 0.5
    return out


def lines(
    planes: Planes,
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    rgb: NDArray[np.floating],
    matrix: NDArray[np.float32],
    width: float,
) -> None:
    """Lines from ``a`` to ``b``, (N, 2) pixels, of one colour (0 to 1); those with a NaN are left out."""
    colour = _yuv(rgb, matrix)
    for start, end in zip(a, b, strict=True):
        ends = np.stack([start, end])
        if not (np.abs(ends) < _FAR).all():  # and so for NaN
            continue
        for n, plane in enumerate(planes):
            (p, q), thick = _fixed(ends, n), max(1, round(width / (1 if n == 0 else 2)))
            cv2.line(plane, p, q, colour[n], thick, cv2.LINE_AA, _SHIFT)


_SHIFT = 4
"""OpenCV draws in 1/16 of a pixel."""

_FAR = 1e5
"""Beyond this OpenCV's whole numbers would overflow."""


def circles(
    planes: Planes,
    at: NDArray[np.float64],
    rgb: NDArray[np.floating],
    matrix: NDArray[np.float32],
    radius: float,
    *,
    filled: bool,
) -> None:
    """Circles at (N, 2) pixels, in colours (N, 3) from 0 to 1; those with a NaN are left out."""
    thick = -1 if filled else max(1, round(radius / 3))
    for point, colour in zip(at, rgb, strict=True):
        if not (np.abs(point) < _FAR).all():
            continue
        shade = _yuv(colour, matrix)
        for n, plane in enumerate(planes):
            (centre,), r = _fixed(point[None], n), radius / (1 if n == 0 else 2)
            wide = thick if n == 0 or thick < 0 else max(1, thick // 2)
            cv2.circle(plane, centre, round(r * 2**_SHIFT), shade[n], wide, cv2.LINE_AA, _SHIFT)


def _yuv(rgb: NDArray[np.floating], matrix: NDArray[np.float32]) -> list[float]:
    return [float(c) for c in matrix[:, :3] @ (np.asarray(rgb) * 255) + matrix[:, 3]]


def _fixed(points: NDArray[np.float64], plane: int) -> list[tuple[int, int]]:
    """Pixels of the frame as OpenCV's fixed numbers of a plane; a chroma sample lies amid its four pixels."""
    scaled = points if plane == 0 else (points - 0.5) / 2
    return [(round(float(x) * 2**_SHIFT), round(float(y) * 2**_SHIFT)) for x, y in scaled]


def fill(planes: Planes, luma: int) -> None:
    """One shade of grey."""
    planes[0][:] = luma
    for chroma in planes[1:]:
        chroma[:] = NEUTRAL


def label(planes: Planes, text: str, height: int, *, bottom: bool = False) -> None:
    """White text ``height`` pixels high on a darkened strip in the left corner, at the top or the bottom."""
    scale, thick, width, below = _measure(text, height)
    luma, pad = planes[0], max(2, height // 2)
    rows = (height + below + pad) // 2 * 2
    top = (luma.shape[0] - rows) // 2 * 2 if bottom else 0
    columns = (width + 2 * pad) // 2 * 2
    for n, plane in enumerate(planes):
        s, base = (1, BLACK) if n == 0 else (2, NEUTRAL)
        box = plane[top // s : (top + rows) // s, : columns // s]
        box[:] = base + (box.astype(np.float32) - base) * 0.3
    cv2.putText(luma, text, (pad, top + height + pad // 2), FONT, scale, WHITE, thick, cv2.LINE_AA)


def footer(planes: Planes, rows: int, text: str, height: int) -> None:
    """White text in the middle of a black strip of ``rows`` at the bottom."""
    scale, thick, width, _ = _measure(text, height)
    luma, u, v = planes
    strip = luma[-rows:], u[-rows // 2 :], v[-rows // 2 :]
    fill(strip, BLACK)
    at = ((luma.shape[1] - width) // 2, (rows + height) // 2)
    cv2.putText(strip[0], text, at, FONT, scale, WHITE, thick, cv2.LINE_AA)


def _measure(text: str, height: int) -> tuple[float, int, int, int]:
    """Scale and line width for capitals ``height`` pixels high; the text's width and its rows below."""
    scale = height / 22  # capitals of this font are 22 pixels high at scale 1
    thick = max(1, round(height / 10))
    (width, _), below = cv2.getTextSize(text, FONT, scale, thick)
    return scale, thick, width, below


@dataclass(frozen=True)
class Mosaic:
    """Where the views go in one picture."""

    size: tuple[int, int]
    """Width and height."""
    boxes: tuple[tuple[int, int, int, int], ...]
    """x, y, width, height of each view, even numbers."""
    footer: int
    """Rows at the bottom that no view covers, for the time."""


def mosaic(sizes: Sequence[tuple[int, int]], limit: tuple[int, int]) -> Mosaic:
    """The grid within ``limit`` (width, height) that shows views of these sizes largest.

    All cells are alike; a view keeps its shape and is centred in its cell.
    """
    footer = max(16, limit[1] // 27) // 2 * 2
    width, height = limit[0], limit[1] - footer
    best: tuple[float, int, int] | None = None
    for columns in range(1, len(sizes) + 1):
        rows = -(-len(sizes) // columns)
        # Every view fills its cell as far as it goes; count the pixels that are shown.
        cell = (width // columns, height // rows)
        shown = sum(w * h * min(cell[0] / w, cell[1] / h) ** 2 for w, h in sizes)
        if best is None or shown > best[0]:
            best = (shown, columns, rows)
    assert best is not None, "a mosaic of no views"
    _, columns, rows = best
    cell = (width // columns, height // rows)
    fitted = []
    for w, h in sizes:
        scale = min(cell[0] / w, cell[1] / h)
        fitted.append((max(2, int(w * scale) // 2 * 2), max(2, int(h * scale) // 2 * 2)))
    # Cells shrink to what the views need.
    cell = (max(w for w, _ in fitted), max(h for _, h in fitted))
    boxes = tuple(
        (
            k % columns * cell[0] + (cell[0] - w) // 4 * 2,
            k // columns * cell[1] + (cell[1] - h) // 4 * 2,
            w,
            h,
        )
        for k, (w, h) in enumerate(fitted)
    )
    return Mosaic((columns * cell[0], rows * cell[1] + footer), boxes, footer)


def place(planes: Planes, source: Planes, box: tuple[int, int, int, int], name: str, height: int) -> None:
    """Shrink one frame into a box of another and label it with text ``height`` pixels high."""
    x, y, w, h = box
    a, b, c = planes
    x2, y2, w2, h2 = x // 2, y // 2, w // 2, h // 2
    cell = a[y : y + h, x : x + w], b[y2 : y2 + h2, x2 : x2 + w2], c[y2 : y2 + h2, x2 : x2 + w2]
    for to, plane in zip(cell, source, strict=True):
        to[:] = cv2.resize(plane, to.shape[::-1], interpolation=cv2.INTER_AREA)
    label(cell, name, height)


@dataclass(frozen=True)
class Skeletons:
    """Keypoints of one view at one time, pixels of the picture."""

    detected: NDArray[np.float64]
    """(P, K, 2) NaN where missing."""
    confidence: NDArray[np.float64]
    """(P, K)"""
    fitted: NDArray[np.float64]
    """(P, K, 2)"""
    error_px: NDArray[np.float64]
    """(P, K) distance between the two in pixels of the video; NaN where nothing was detected."""
    colours: NDArray[np.float32]
    """(P, 3)"""
    skeleton: Skeleton

    def draw(self, to: Planes, matrix: NDArray[np.float32]) -> None:
        size = max(2.0, min(to[0].shape) / 250)
        grey = np.full(3, 0.85)
        for p in range(len(self.fitted)):
            bones = self.fitted[p][self.skeleton.bone_ends]
            lines(to, bones[:, 0], bones[:, 1], self.colours[p], matrix, size)
            lines(to, self.detected[p], self.fitted[p], grey, matrix, size / 3)
            seen = np.outer(self.confidence[p], np.ones(3))
            circles(to, self.detected[p], seen, matrix, 1.8 * size, filled=False)
            share = np.clip(np.nan_to_num(self.error_px[p]) / FAR_PX, 0, 1)[:, None]
            colour = np.minimum(2 * np.concatenate([share, 1 - share, 0 * share], 1), 1)
            colour[np.isnan(self.error_px[p])] = 0.6  # nobody can say
            circles(to, self.fitted[p], colour, matrix, 1.2 * size, filled=True)
