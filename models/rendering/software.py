"""Software renderer: shaded meshes by a z-buffer in compiled loops, with the exact OpenCV projection.

It and PyTorch3D's share the call ``draw(vertices, faces, rig, view, colours) -> Picture | None``, projection
and lighting of ``to_screen`` and the averaging of ``resolve``. The loops are in ``kernels``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.rendering.kernels import (
    INVERSE_Z_ONE,
    SHADE_ONE,
    Canvas,
    Frame,
    Lens,
    Mesh,
    SampleRows,
    Screen,
    average_rows,
    blend_box,
    paint_bands,
    project,
    vertex_shades,
)
from pipeline.array_types import Floats, Pixels
from pipeline.cameras import Rig

BAND_SAMPLES = 2**15
"""Samples filled before they are averaged, 8 bytes each: few enough to stay in the second-level cache."""

Planes = tuple[Pixels, Pixels, Pixels]


class Light(NamedTuple):
    """Light of a scene, in the camera's frame."""

    direction: Floats
    """(3,) unit vector from the body to the light."""
    ambient: float
    """Brightness of a surface turned away from the light."""


LIGHT = Light((np.array([0.25, -0.6, -1.0]) / np.linalg.norm([0.25, -0.6, -1.0])).astype(np.float32), 0.4)
"""Light beside the camera, a little above and to the right."""


@dataclass(frozen=True)
class Picture:
    """Bounding box of the drawn part of a picture."""

    x0: int
    """First column in the whole picture, even."""
    y0: int
    """First row, even."""
    rgb: Pixels
    """(h, w, 3) colour, where alpha is above 0."""
    alpha: Pixels
    """(h, w) 255 × covered share of the pixel × opacity."""
    inverse_z: Floats
    """(h, w) 1 / depth of the nearest surface in the pixel, 1/m; 0 for none."""

    @property
    def target(self) -> Canvas:
        """Memory of the picture for the kernels."""
        return Canvas(self.rgb.transpose(2, 0, 1), self.alpha, self.inverse_z)


_NO_PLANE = np.empty((0, 0), np.uint8)
_NO_FRAME = Frame(_NO_PLANE, _NO_PLANE, _NO_PLANE, np.empty((0, 0), np.float32))


def draw(
    vertices: Floats,
    faces: NDArray[np.int32],
    rig: Rig,
    view: int,
    colours: Floats,
    *,
    antialias: bool = True,
    tints: NDArray[np.int32] | None = None,
    light: Light = LIGHT,
) -> Picture | None:
    """Draw people into one camera's picture; None when nobody is in view.

    vertices: (P, N, 3) metres, world; a person with NaN is left out. faces: (F, 3), counter-clockwise seen
    from outside. colours: (P, 4) red, green, blue and opacity, each 0 to 1. antialias: 2×2 samples a pixel.
    tints: (F,) for faces of several colours: face f of person p has the colour of row p + tints[f].

    A face, 1–2 cm large on a body, is left out whole where it reaches nearer than ``NEAR_M`` or beyond the
    range of the lens model.
    """
    screen = to_screen(vertices, faces, rig, view, light)
    if screen is None:
        return None
    x0, y0, x1, y1 = screen.box
    picture = _blank((x0, y0), x1 - x0, y1 - y0)
    tints = np.zeros(len(faces), np.int32) if tints is None else tints
    mesh = Mesh(faces, tints, _to_255(colours))
    rows = _band_rows(x1 - x0, antialias)
    paint_bands(screen, mesh, 2 if antialias else 1, rows, picture.target, _NO_FRAME)
    return picture


def paint(
    planes: Planes,
    matrix: NDArray[np.float32],
    vertices: Floats,
    faces: NDArray[np.int32],
    rig: Rig,
    view: int,
    colours: Floats,
    *,
    antialias: bool = True,
) -> None:
    """Draw people into a video frame, as ``blend`` of the result of ``draw``.

    By bands of rows, drawn and blended in the processor's cache: a whole picture is megabytes that have to be
    fetched and that evict the encoder's data.
    """
    screen = to_screen(vertices, faces, rig, view)
    if screen is None:
        return
    width = screen.box[2] - screen.box[0]
    rows = _band_rows(width, antialias)
    mesh = Mesh(faces, np.zeros(len(faces), np.int32), _to_255(colours))
    frame = Frame(*_gapless(planes), matrix)
    paint_bands(screen, mesh, 2 if antialias else 1, rows, _blank((0, 0), width, rows).target, frame)


def _band_rows(width: int, antialias: bool) -> int:
    """Even number of rows of pixels with at most ``BAND_SAMPLES``, at least 2."""
    return max(2, BAND_SAMPLES // (width * (4 if antialias else 1)) // 2 * 2)


def blend(planes: Planes, picture: Picture, matrix: NDArray[np.float32]) -> None:
    """Blend a picture into a frame of the size it was drawn for; only its box is touched."""
    rgb = picture.target.rgb
    corner = picture.x0, picture.y0
    blend_box(Frame(*_gapless(planes), matrix), rgb, picture.alpha, (0, rgb.shape[2]), corner)


def _gapless(planes: Planes) -> Planes:
    """Planes widened to their rows' padding, contiguous as the kernels' types require."""
    y, u, v = (np.lib.stride_tricks.as_strided(p, (len(p), p.strides[0])) for p in planes)
    return y, u, v


def to_screen(
    vertices: Floats,
    faces: NDArray[np.int32],
    rig: Rig,
    view: int,
    light: Light = LIGHT,
) -> Screen | None:
    """Project and shade vertices; None when none is in view. Arguments as of ``draw``."""
    x = np.ascontiguousarray(vertices, np.float32)
    people, points = x.shape[:2]
    # Beyond its largest valid radius the lens model folds points back into the picture.
    limit = valid_radius(rig.dist[view], rig.fisheye[view]) ** 2
    camera, uv = np.empty((people, points, 3), np.float32), np.empty((people, points, 2), np.float32)
    inverse_z, shade = np.empty((people, points), np.float32), np.empty((people, points), np.float32)
    lens = Lens(rig.R[view], rig.t[view], rig.K[view], rig.dist[view], limit, rig.fisheye[view])
    left, top, right, bottom = project(x, lens, camera, uv, inverse_z)
    if not (left <= right and right > -0.5 and bottom > -0.5):
        return None
    width, height = (int(n) for n in rig.size[view])
    x0, y0 = max(int(np.floor(left + 0.5)), 0) & ~1, max(int(np.floor(top + 0.5)), 0) & ~1
    x1, y1 = min(int(right + 2.5) & ~1, width), min(int(bottom + 2.5) & ~1, height)
    if x0 >= x1 or y0 >= y1:
        return None
    for p in range(people):
        shade[p] = shades(camera[p], faces, light)
    return Screen(uv, inverse_z, shade, (x0, y0, x1, y1))


def valid_radius(dist: NDArray[np.float64], fisheye: bool = False) -> float:
    """Largest r = |(x/z, y/z)| up to which the distorted radius grows with r; inf if it always does."""
    return _valid_radius(tuple(dist.tolist()), fisheye)


@lru_cache
def _valid_radius(dist: tuple[float, ...], fisheye: bool) -> float:
    if fisheye:  # d/dθ of the distorted angle, in θ²
        slope = np.polynomial.Polynomial([1, *(c * k for c, k in zip((3, 5, 7, 9), dist[:4], strict=True))])
        theta = np.sqrt(_positive(slope.trim().roots()))
        return float(np.tan(theta.min())) if theta.min(initial=np.pi) < np.pi / 2 else np.inf
    k1, k2, _, _, k3, k4, k5, k6 = dist
    s = np.polynomial.Polynomial([0, 1])  # s = r²
    above, below = 1 + s * (k1 + s * (k2 + s * k3)), 1 + s * (k4 + s * (k5 + s * k6))
    # d/dr (r · above / below) = 0, and the poles of the model.
    slope = (above + 2 * s * above.deriv()) * below - 2 * s * above * below.deriv()
    roots = _positive(np.concatenate([slope.trim().roots(), below.trim().roots()]))
    return float(np.sqrt(roots.min(initial=np.inf)))


def _positive(roots: NDArray[Any]) -> NDArray[np.float64]:
    """The positive real roots."""
    return np.asarray(roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)], np.float64)


def shades(points: Floats, faces: NDArray[np.int32], light: Light = LIGHT) -> Floats:
    """Brightness (N,) of vertices (N, 3) in the camera's frame, by area-weighted normals."""
    return vertex_shades(np.ascontiguousarray(points, np.float32), faces, light.direction, light.ambient)


def resolve(
    inverse_z: Floats, shade: Floats, colours: Floats, samples: int, corner: tuple[int, int]
) -> Picture:
    """Average samples × samples into pixels.

    inverse_z: (rows, columns) 0 where nothing was drawn. shade: 2 × person + brightness, there undefined.
    """
    height, width = inverse_z.shape[0] // samples, inverse_z.shape[1] // samples
    picture = _blank(corner, width, height)
    filled = ((inverse_z.astype(np.float64) * INVERSE_Z_ONE).astype(np.int64) << 32) + (
        np.where(inverse_z > 0, shade, 0) * SHADE_ONE
    ).astype(np.int64)
    extent = np.tile([0, width * samples], (height * samples, 1))
    average_rows(SampleRows(filled, extent, samples), _to_255(colours), picture.target, 0, height)
    return picture


def _blank(corner: tuple[int, int], width: int, height: int) -> Picture:
    """Empty picture, its colours as three planes, which the kernels traverse faster.

    Zeroed here and not in the loops: the system zeroes only the pages that are touched.
    """
    rgb = np.zeros((3, height, width), np.uint8).transpose(1, 2, 0)
    alpha, inverse_z = np.zeros((height, width), np.uint8), np.zeros((height, width), np.float32)
    return Picture(corner[0], corner[1], rgb, alpha, inverse_z)


def _to_255(colours: Floats) -> Floats:
    """Colours (P, 4) from 0 to 1 → 0 to 255."""
    return np.asarray(colours, np.float32) * np.float32(255)
