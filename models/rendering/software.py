"""Shaded meshes by a z-buffer in plain compiled loops: exact OpenCV projection, no driver, no display.

All back ends share one call, ``draw(vertices, faces, rig, view, colours) -> Picture | None``, and with it the
projection and light of ``to_screen`` and the averaging of ``resolve``. Pixel (0, 0) is the centre of the
first pixel. The loops are ``kernels``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.rendering.kernels import (
    INVERSE_Z_ONE,
    SHADE_ONE,
    Canvas,
    Floats,
    Frame,
    Lens,
    Mesh,
    Pixels,
    SampleRows,
    Screen,
    average_rows,
    blend_box,
    paint_bands,
    project,
    vertex_shades,
)
from pipeline.cameras import Rig

BAND_SAMPLES = 2**15
"""Samples filled before they are averaged, 8 bytes each: few enough to stay in the cache in between."""

Planes = tuple[Pixels, Pixels, Pixels]


class Light(NamedTuple):
    """Light of a scene, in the camera's frame."""

    direction: Floats
    """(3,) unit vector from the body to the light."""
    ambient: float
    """Share of the light that reaches a surface turned away from it."""


LIGHT = Light((np.array([0.25, -0.6, -1.0]) / np.linalg.norm([0.25, -0.6, -1.0])).astype(np.float32), 0.4)
"""By the camera, a little above and right."""


@dataclass(frozen=True)
class Picture:
    """The part of a picture in which something was drawn."""

    x0: int
    """Column of the picture's pixel that the box starts at; even."""
    y0: int
    """Row of it; even."""
    rgb: Pixels
    """(h, w, 3) colour, where alpha is above 0."""
    alpha: Pixels
    """(h, w) 255 × share of the pixel covered × opacity of what covers it."""
    inverse_z: Floats
    """(h, w) 1 / depth of the nearest thing in the pixel, 1/m; 0 where nothing is."""

    def __repr__(self) -> str:
        h, w = self.alpha.shape
        return f"Picture({w}x{h} at ({self.x0}, {self.y0}))"

    @property
    def target(self) -> Canvas:
        """Its memory: colours lie in three planes, which compiled loops go along faster."""
        return Canvas(self.rgb.transpose(2, 0, 1), self.alpha, self.inverse_z)


_NOWHERE = np.empty((0, 0), np.uint8)
_NO_FRAME = Frame(_NOWHERE, _NOWHERE, _NOWHERE, np.empty((0, 0), np.float32))


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
    """Draw people into one camera's picture; None when none of them can be seen.

    vertices: (P, N, 3) metres, world; a person with NaN is left out. faces: (F, 3), counter-clockwise seen
    from outside. colours: (P, 4) red, green, blue and opacity, each 0 to 1. ``antialias`` takes 2×2 samples a
    pixel. A face that reaches nearer than ``NEAR_M`` or beyond what the lens model covers is left out whole;
    the faces of a body are 1–2 cm large.

    tints: (F,) for faces of several colours: face f of person p has the colour of row p + tints[f].
    """
    screen = to_screen(vertices, faces, rig, view, light)
    if screen is None:
        return None
    x0, y0, x1, y1 = screen.box
    picture = _blank((x0, y0), x1 - x0, y1 - y0)
    mesh = Mesh(faces, _one_tint(faces) if tints is None else tints, _scaled(colours))
    rows = _band(x1 - x0, antialias)
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
    """Draw people into a video frame: ``blend`` of what ``draw`` gives, but there is never a picture.

    Some rows at a time are drawn and blended, in memory that stays in the processor's cache. A whole picture
    is megabytes that have to be fetched and that push the encoder's own data out.
    """
    screen = to_screen(vertices, faces, rig, view)
    if screen is None:
        return
    width = screen.box[2] - screen.box[0]
    rows = _band(width, antialias)
    mesh = Mesh(faces, _one_tint(faces), _scaled(colours))
    frame = Frame(*_gapless(planes), matrix)
    paint_bands(screen, mesh, 2 if antialias else 1, rows, _blank((0, 0), width, rows).target, frame)


def _one_tint(faces: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.zeros(len(faces), np.int32)


def _band(width: int, antialias: bool) -> int:
    """Rows of pixels, an even number, whose samples stay in the processor's second cache."""
    return max(2, BAND_SAMPLES // (width * (4 if antialias else 1)) // 2 * 2)


def blend(planes: Planes, picture: Picture, matrix: NDArray[np.float32]) -> None:
    """Blend a picture into a frame of the size it was drawn for; only its box is touched."""
    rgb = picture.target.rgb
    corner = picture.x0, picture.y0
    blend_box(Frame(*_gapless(planes), matrix), rgb, picture.alpha, (0, rgb.shape[2]), corner)


def _gapless(planes: Planes) -> Planes:
    """Whole rows, with the padding at their ends: compiled loops want the memory without gaps."""
    y, u, v = (np.lib.stride_tricks.as_strided(p, (len(p), p.strides[0])) for p in planes)
    return y, u, v


def to_screen(
    vertices: Floats,
    faces: NDArray[np.int32],
    rig: Rig,
    view: int,
    light: Light = LIGHT,
) -> Screen | None:
    """Project and light; None when no vertex can be seen. Arguments as of ``draw``."""
    x = np.ascontiguousarray(vertices, np.float32)
    people, points = x.shape[:2]
    # Beyond its largest valid radius the lens model folds points back into the picture.
    limit = valid_radius(rig.dist[view], rig.fisheye[view]) ** 2
    camera, uv = np.empty((people, points, 3), np.float32), np.empty((people, points, 2), np.float32)
    inverse_z, shade = np.empty((people, points), np.float32), np.empty((people, points), np.float32)
    from_view = Lens(rig.R[view], rig.t[view], rig.K[view], rig.dist[view], limit, rig.fisheye[view])
    left, top, right, bottom = project(x, from_view, camera, uv, inverse_z)
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
    """Largest r = |(x/z, y/z)| up to which the radial model grows with r; inf if it always does."""
    return _valid_radius(tuple(dist.tolist()), fisheye)


@lru_cache
def _valid_radius(dist: tuple[float, ...], fisheye: bool) -> float:
    if fisheye:  # the slope of the angle in the picture by that of the ray, squared
        turns = np.polynomial.Polynomial([1, *(c * k for c, k in zip((3, 5, 7, 9), dist[:4], strict=True))])
        at = turns.trim().roots()
        theta = np.sqrt(at.real[(np.abs(at.imag) < 1e-9) & (at.real > 0)])
        return float(np.tan(theta.min())) if theta.min(initial=np.pi) < np.pi / 2 else np.inf
    k1, k2, _, _, k3, k4, k5, k6 = dist
    s = np.polynomial.Polynomial([0, 1])  # s = r²
    above, below = 1 + s * (k1 + s * (k2 + s * k3)), 1 + s * (k4 + s * (k5 + s * k6))
    # d/dr (r · above / below) = 0, and the poles of the model.
    slope = (above + 2 * s * above.deriv()) * below - 2 * s * above * below.deriv()
    roots = np.concatenate([slope.trim().roots(), below.trim().roots()])
    real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)]
    return float(np.sqrt(real.min())) if len(real) else np.inf


def shades(points: Floats, faces: NDArray[np.int32], light: Light = LIGHT) -> Floats:
    """Brightness (N,) of vertices (N, 3) in the camera's frame, from smooth normals and the light."""
    return vertex_shades(np.ascontiguousarray(points, np.float32), faces, light.direction, light.ambient)


def resolve(
    inverse_z: Floats, shade: Floats, colours: Floats, samples: int, corner: tuple[int, int]
) -> Picture:
    """Average samples × samples into pixels.

    inverse_z: 0 where nothing was drawn; shade there is meaningless. shade: 2 × person + brightness.
    """
    height, width = inverse_z.shape[0] // samples, inverse_z.shape[1] // samples
    picture = _blank(corner, width, height)
    filled = ((inverse_z.astype(np.float64) * INVERSE_Z_ONE).astype(np.int64) << 32) + (
        np.where(inverse_z > 0, shade, 0) * SHADE_ONE
    ).astype(np.int64)
    extent = np.tile([0, width * samples], (height * samples, 1))
    average_rows(SampleRows(filled, extent, samples), _scaled(colours), picture.target, 0, height)
    return picture


def _blank(corner: tuple[int, int], width: int, height: int) -> Picture:
    """A picture of nothing. Its colours lie in memory as three planes, which compiled loops go along faster.

    It is cleared here and not in the loops: memory that is never touched is never cleared.
    """
    rgb = np.zeros((3, height, width), np.uint8).transpose(1, 2, 0)
    alpha, inverse_z = np.zeros((height, width), np.uint8), np.zeros((height, width), np.float32)
    return Picture(corner[0], corner[1], rgb, alpha, inverse_z)


def _scaled(colours: Floats) -> Floats:
    """(P, 4) 0 to 255."""
    return np.asarray(colours, np.float32) * np.float32(255)
