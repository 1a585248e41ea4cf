"""Shaded meshes by a z-buffer in plain compiled loops: exact OpenCV projection, no driver, no display.

All back ends share one call, ``draw(vertices, faces, rig, view, colours) -> Picture | None``, and with it the
projection and light of ``to_screen`` and the averaging of ``resolve``. Pixel (0, 0) is the centre of the
first pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Rig, distort

NEAR_M = 0.05
"""Nothing nearer to the camera than this is drawn, metres."""

LIGHT = np.array([0.25, -0.6, -1.0]) / np.linalg.norm([0.25, -0.6, -1.0])
"""Direction from the body to the light in the camera's frame: by the camera, a little above and right."""

AMBIENT = 0.4
"""Share of the light that reaches a surface turned away from it."""

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
_F = TypeVar("_F", bound=Callable[..., Any])


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

    @property
    def depth(self) -> Floats:
        """(h, w) distance along the optical axis, metres; inf where nothing was drawn."""
        with np.errstate(divide="ignore"):
            return np.float32(1) / self.inverse_z

    def __repr__(self) -> str:
        h, w = self.alpha.shape
        return f"Picture({w}x{h} at ({self.x0}, {self.y0}))"


@dataclass(frozen=True)
class Screen:
    """Vertices as one camera sees them."""

    uv: Floats
    """(P, N, 2) pixels of the video frame, distorted; meaningless where ``inverse_z`` is 0."""
    inverse_z: Floats
    """(P, N) 1 / depth, 1/m; 0 where the camera cannot see the vertex."""
    shade: Floats
    """(P, N) brightness between ``AMBIENT`` and 1."""
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1: the pixels that can be touched; x0 and y0 even, x1 and y1 exclusive."""


def jit(function: _F) -> _F:
    """Compile without the interpreter lock; the result is cached where some cache folder can be written."""
    try:
        return cast(_F, numba.njit(nogil=True, cache=True, error_model="numpy")(function))
    except RuntimeError:  # numba found no folder that can be written
        return cast(_F, numba.njit(nogil=True, error_model="numpy")(function))


def draw(
    vertices: Floats,
    faces: NDArray[np.int32],
    rig: Rig,
    view: int,
    colours: Floats,
    *,
    antialias: bool = True,
) -> Picture | None:
    """Draw people into one camera's picture; None when none of them can be seen.

    vertices: (P, N, 3) metres, world; a person with NaN is left out. faces: (F, 3), counter-clockwise seen
    from outside. colours: (P, 4) red, green, blue and opacity, each 0 to 1. ``antialias`` takes 2×2 samples a
    pixel. A face that reaches nearer than ``NEAR_M`` or beyond what the lens model covers is left out whole;
    the faces of a body are 1–2 cm large.
    """
    screen = to_screen(vertices, faces, rig, view)
    if screen is None:
        return None
    samples = 2 if antialias else 1
    x0, y0, x1, y1 = screen.box
    shape = ((y1 - y0) * samples, (x1 - x0) * samples)
    inverse_z, shade = np.zeros(shape, np.float32), np.empty(shape, np.float32)
    # Pixel centres are at integers, so pixel u holds the samples from (u − ½) to (u + ½).
    uv = (screen.uv - np.array([x0, y0], np.float32) + 0.5) * samples - 0.5
    for p in range(len(uv)):
        _fill(uv[p], screen.inverse_z[p], screen.shade[p], faces, p, inverse_z, shade)
    return resolve(inverse_z, shade, colours, samples, (x0, y0))


def to_screen(vertices: Floats, faces: NDArray[np.int32], rig: Rig, view: int) -> Screen | None:
    """Project and light; None when no vertex can be seen. Arguments as of ``draw``."""
    rotation, focal = rig.R[view], rig.K[view]
    x = np.asarray(vertices, np.float64) @ rotation.T + rig.t[view]
    shade = np.stack([shades(p, faces) for p in x]) if len(x) else np.zeros(x.shape[:2], np.float32)
    with np.errstate(all="ignore"):
        n = x[..., :2] / x[..., 2:]
        # Beyond its largest valid radius the lens model folds points back into the picture.
        seen = (x[..., 2] > NEAR_M) & ((n * n).sum(-1) < valid_radius(rig.dist[view]) ** 2)
        n = distort(n, rig.dist[view])
        uv = n @ focal[:2, :2].T + focal[:2, 2]
        seen &= (np.abs(uv) < 1e6).all(-1)  # and False for NaN
        inverse_z = np.where(seen, 1 / x[..., 2], 0)
    if not seen.any():
        return None
    u, v = uv[..., 0][seen], uv[..., 1][seen]
    x0, y0 = (max(int(np.floor(c.min() + 0.5)), 0) & ~1 for c in (u, v))
    x1, y1 = (min(int(np.floor(c.max() + 1.5)), int(n)) for c, n in zip((u, v), rig.size[view], strict=True))
    if x0 >= x1 or y0 >= y1:
        return None
    box = (x0, y0, x1, y1)
    return Screen(uv.astype(np.float32), inverse_z.astype(np.float32), shade, box)


def valid_radius(dist: NDArray[np.float64]) -> float:
    """Largest r = |(x/z, y/z)| up to which the rational radial model grows with r; inf if it always does."""
    return _valid_radius(tuple(dist.tolist()))


@lru_cache
def _valid_radius(dist: tuple[float, ...]) -> float:
    k1, k2, _, _, k3, k4, k5, k6 = dist
    s = np.polynomial.Polynomial([0, 1])  # s = r²
    above, below = 1 + s * (k1 + s * (k2 + s * k3)), 1 + s * (k4 + s * (k5 + s * k6))
    # d/dr (r · above / below) = 0, and the poles of the model.
    slope = (above + 2 * s * above.deriv()) * below - 2 * s * above * below.deriv()
    roots = np.concatenate([slope.trim().roots(), below.trim().roots()])
    real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)]
    return float(np.sqrt(real.min())) if len(real) else np.inf


def shades(points: NDArray[np.float64], faces: NDArray[np.int32]) -> Floats:
    """Brightness (N,) of vertices (N, 3) in the camera's frame, from smooth normals and ``LIGHT``."""
    return _shades(np.ascontiguousarray(points), faces, LIGHT, AMBIENT)


@jit
def _shades(
    points: NDArray[np.float64], faces: NDArray[np.int32], light: NDArray[np.float64], ambient: float
) -> Floats:
    normals = np.zeros(points.shape)
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        x, y, z = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        u, v, w = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
        # The cross product is twice the area long: large faces count for more.
        nx, ny, nz = y * w - z * v, z * u - x * w, x * v - y * u
        for i in (a, b, c):
            normals[i, 0] += nx
            normals[i, 1] += ny
            normals[i, 2] += nz
    shade = np.empty(len(points), np.float32)
    for i in range(len(points)):
        x, y, z = normals[i, 0], normals[i, 1], normals[i, 2]
        length = np.sqrt(x * x + y * y + z * z) + 1e-12
        lit = max(0.0, (x * light[0] + y * light[1] + z * light[2]) / length)
        shade[i] = ambient + (1 - ambient) * lit
    return shade


@jit
def _fill(
    uv: Floats,
    inverse_z: Floats,
    shade: Floats,
    faces: NDArray[np.int32],
    person: int,
    out_inverse_z: Floats,
    out_shade: Floats,
) -> None:
    """Draw one person into the samples. 1/z is linear on the screen, so its interpolation is exact."""
    height, width = out_inverse_z.shape
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        wa, wb, wc = float(inverse_z[a]), float(inverse_z[b]), float(inverse_z[c])
        if wa == 0 or wb == 0 or wc == 0:
            continue
        cx, cy = float(uv[c, 0]), float(uv[c, 1])
        ax, ay, bx, by = uv[a, 0] - cx, uv[a, 1] - cy, uv[b, 0] - cx, uv[b, 1] - cy
        # Twice the signed area; rows count downwards, so faces that look at the camera are negative.
        area = ax * by - ay * bx
        if area >= 0:
            continue
        first = max(int(np.ceil(cy + min(ay, by, 0.0))), 0)
        last = min(int(np.floor(cy + max(ay, by, 0.0))), height - 1)
        left, right = cx + min(ax, bx, 0.0), cx + max(ax, bx, 0.0)
        # Weights of the corners at (x, y), (x − cx) · a_x + (y − cy) · a_y and so on. They add up to 1.
        a_x, a_y, b_x, b_y = by / area, -bx / area, -ay / area, ax / area
        c_x = -a_x - b_x
        w_a, w_b, s_a, s_b = wa - wc, wb - wc, shade[a] - shade[c], shade[b] - shade[c]
        w_x, s_x = a_x * w_a + b_x * w_b, a_x * s_a + b_x * s_b
        for y in range(first, last + 1):
            at_a, at_b = (y - cy) * a_y, (y - cy) * b_y
            at_c = 1 - at_a - at_b
            # The columns where no weight is negative.
            low, high = left, right
            if a_x > 0:
                low = max(low, cx - at_a / a_x)
            elif a_x < 0:
                high = min(high, cx - at_a / a_x)
            if b_x > 0:
                low = max(low, cx - at_b / b_x)
            elif b_x < 0:
                high = min(high, cx - at_b / b_x)
            if c_x > 0:
                low = max(low, cx - at_c / c_x)
            elif c_x < 0:
                high = min(high, cx - at_c / c_x)
            # A little slack, lest a sample on an edge falls between two faces.
            start = max(int(np.ceil(low - 1e-6)), 0)
            stop = min(int(np.floor(high + 1e-6)), width - 1) + 1
            w = np.float32(wc + at_a * w_a + at_b * w_b + (start - cx) * w_x)
            s = np.float32(shade[c] + at_a * s_a + at_b * s_b + (start - cx) * s_x + 2 * person)
            step_w, step_s = np.float32(w_x), np.float32(s_x)
            for x in range(start, stop):
                if w > out_inverse_z[y, x]:
                    out_inverse_z[y, x] = w
                    out_shade[y, x] = s
                w += step_w
                s += step_s


def resolve(
    inverse_z: Floats, shade: Floats, colours: Floats, samples: int, corner: tuple[int, int]
) -> Picture:
    """Average samples × samples into pixels.

    inverse_z: 0 where nothing was drawn; shade there is meaningless. shade: 2 × person + brightness.
    """
    height, width = inverse_z.shape[0] // samples, inverse_z.shape[1] // samples
    # Made here and not in the loops: memory that is never touched is never cleared.
    rgb, alpha = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    nearest = np.zeros((height, width), np.float32)
    _resolve(inverse_z, shade, np.asarray(colours, np.float32) * 255, samples, rgb, alpha, nearest)
    return Picture(corner[0], corner[1], rgb, alpha, nearest)


@jit
def _resolve(
    inverse_z: Floats,
    shade: Floats,
    colours: Floats,
    samples: int,
    rgb: Pixels,
    alpha: Pixels,
    out_inverse_z: Floats,
) -> None:
    half, quarter = np.float32(0.5), np.float32(0.25)
    for y in range(alpha.shape[0]):
        j0, j1 = y * samples, (y + 1) * samples - 1
        for x in range(alpha.shape[1]):
            # The four corner samples of the pixel; with one sample a pixel, that one four times.
            i0, i1 = x * samples, (x + 1) * samples - 1
            w0, w1, w2, w3 = inverse_z[j0, i0], inverse_z[j0, i1], inverse_z[j1, i0], inverse_z[j1, i1]
            nearest = max(max(w0, w1), max(w2, w3))
            if nearest == 0:
                continue
            out_inverse_z[y, x] = nearest
            red = green = blue = opacity = np.float32(0)
            for j in (j0, j1):
                for i in (i0, i1):
                    if inverse_z[j, i] > 0:
                        p = int(shade[j, i] * half)
                        weight = colours[p, 3] * quarter
                        light = (shade[j, i] - 2 * p) * weight
                        red += light * colours[p, 0]
                        green += light * colours[p, 1]
                        blue += light * colours[p, 2]
                        opacity += weight
            scale = 1 / max(opacity, np.float32(1e-6))
            rgb[y, x, 0] = np.uint8(red * scale + half)
            rgb[y, x, 1] = np.uint8(green * scale + half)
            rgb[y, x, 2] = np.uint8(blue * scale + half)
            alpha[y, x] = np.uint8(opacity + half)
