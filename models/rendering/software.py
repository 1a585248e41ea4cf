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

from pipeline.cameras import Rig

NEAR_M = 0.05
"""Nothing nearer to the camera than this is drawn, metres."""

LIGHT = (np.array([0.25, -0.6, -1.0]) / np.linalg.norm([0.25, -0.6, -1.0])).astype(np.float32)
"""Direction from the body to the light in the camera's frame: by the camera, a little above and right."""

AMBIENT = 0.4
"""Share of the light that reaches a surface turned away from it."""

INVERSE_Z_ONE, SHADE_ONE = 2**26, 2**19
"""1/m and full brightness in a sample's whole number: 31 bits of 1/z down to ``NEAR_M``, then 12 of the
person and 20 of the brightness."""

SLIVER_PX2 = 1e-5
"""Faces whose double area is smaller are not drawn, square pixels."""

BAND_SAMPLES = 2**15
"""Samples filled before they are averaged, 8 bytes each: few enough to stay in the cache in between."""

LANES = 4
"""Samples of a row are filled in groups of so many: what a processor takes at once."""

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Planes = tuple[Pixels, Pixels, Pixels]
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
    """(P, N) brightness between the ambient share and 1."""
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1: the pixels that can be touched, x1 and y1 exclusive; even, or the frame's own end."""


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
    tints: NDArray[np.int32] | None = None,
    light: Floats = LIGHT,
    ambient: float = AMBIENT,
) -> Picture | None:
    """Draw people into one camera's picture; None when none of them can be seen.

    vertices: (P, N, 3) metres, world; a person with NaN is left out. faces: (F, 3), counter-clockwise seen
    from outside. colours: (P, 4) red, green, blue and opacity, each 0 to 1. ``antialias`` takes 2×2 samples a
    pixel. A face that reaches nearer than ``NEAR_M`` or beyond what the lens model covers is left out whole;
    the faces of a body are 1–2 cm large.

    tints: (F,) for faces of several colours: face f of person p has the colour of row p + tints[f]. light: a
    unit vector to the light in the camera's frame; ambient: as ``AMBIENT``.
    """
    screen = to_screen(vertices, faces, rig, view, light, ambient)
    if screen is None:
        return None
    x0, y0, x1, y1 = screen.box
    picture = _blank((x0, y0), x1 - x0, y1 - y0)
    nowhere = np.empty((0, 0), np.uint8)
    _paint(
        screen.uv, screen.inverse_z, screen.shade, faces, _one_tint(faces) if tints is None else tints,
        _scaled(colours), 2 if antialias else 1, _band(x1 - x0, antialias), screen.box,
        picture.rgb.transpose(2, 0, 1), picture.alpha, picture.inverse_z, nowhere, nowhere, nowhere,
        np.empty((0, 0), np.float32),
    )  # fmt: skip
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
    band = _blank((0, 0), width, rows)
    _paint(
        screen.uv, screen.inverse_z, screen.shade, faces, _one_tint(faces), _scaled(colours),
        2 if antialias else 1, rows, screen.box, band.rgb.transpose(2, 0, 1), band.alpha, band.inverse_z,
        *_gapless(planes), matrix,
    )  # fmt: skip


def _one_tint(faces: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.zeros(len(faces), np.int32)


def _band(width: int, antialias: bool) -> int:
    """Rows of pixels, an even number, whose samples stay in the processor's second cache."""
    return max(2, BAND_SAMPLES // (width * (4 if antialias else 1)) // 2 * 2)


def blend(planes: Planes, picture: Picture, matrix: NDArray[np.float32]) -> None:
    """Blend a picture into a frame of the size it was drawn for; only its box is touched."""
    rgb, x0, y0 = picture.rgb.transpose(2, 0, 1), picture.x0, picture.y0
    _blend(*_gapless(planes), rgb, picture.alpha, 0, rgb.shape[2], x0, y0, matrix)


def _gapless(planes: Planes) -> Planes:
    """Whole rows, with the padding at their ends: compiled loops want the memory without gaps."""
    y, u, v = (np.lib.stride_tricks.as_strided(p, (len(p), p.strides[0])) for p in planes)
    return y, u, v


def to_screen(
    vertices: Floats,
    faces: NDArray[np.int32],
    rig: Rig,
    view: int,
    light: Floats = LIGHT,
    ambient: float = AMBIENT,
) -> Screen | None:
    """Project and light; None when no vertex can be seen. Arguments as of ``draw``."""
    x = np.ascontiguousarray(vertices, np.float32)
    people, points = x.shape[:2]
    # Beyond its largest valid radius the lens model folds points back into the picture.
    limit = valid_radius(rig.dist[view]) ** 2
    camera, uv = np.empty((people, points, 3), np.float32), np.empty((people, points, 2), np.float32)
    inverse_z, shade = np.empty((people, points), np.float32), np.empty((people, points), np.float32)
    left, top, right, bottom = _project(
        x, rig.R[view], rig.t[view], rig.K[view], rig.dist[view], limit, camera, uv, inverse_z
    )
    if not (left <= right and right > -0.5 and bottom > -0.5):
        return None
    width, height = (int(n) for n in rig.size[view])
    x0, y0 = max(int(np.floor(left + 0.5)), 0) & ~1, max(int(np.floor(top + 0.5)), 0) & ~1
    x1, y1 = min(int(right + 2.5) & ~1, width), min(int(bottom + 2.5) & ~1, height)
    if x0 >= x1 or y0 >= y1:
        return None
    for p in range(people):
        shade[p] = shades(camera[p], faces, light, ambient)
    return Screen(uv, inverse_z, shade, (x0, y0, x1, y1))


@jit
def _project(
    points: Floats,
    rotation: NDArray[np.float64],
    translation: NDArray[np.float64],
    k: NDArray[np.float64],
    dist: NDArray[np.float64],
    limit: float,
    out_camera: Floats,
    out_uv: Floats,
    out_inverse_z: Floats,
) -> tuple[float, float, float, float]:
    """``Rig.project(distorted=True)`` in one pass; the smallest and largest u and v of what is seen."""
    left, top, right, bottom = np.inf, np.inf, -np.inf, -np.inf
    for p in range(points.shape[0]):
        for i in range(points.shape[1]):
            a, b, c = float(points[p, i, 0]), float(points[p, i, 1]), float(points[p, i, 2])
            x = rotation[0, 0] * a + rotation[0, 1] * b + rotation[0, 2] * c + translation[0]
            y = rotation[1, 0] * a + rotation[1, 1] * b + rotation[1, 2] * c + translation[1]
            z = rotation[2, 0] * a + rotation[2, 1] * b + rotation[2, 2] * c + translation[2]
            out_camera[p, i, 0], out_camera[p, i, 1], out_camera[p, i, 2] = x, y, z
            out_inverse_z[p, i] = out_uv[p, i, 0] = out_uv[p, i, 1] = 0
            if not z > NEAR_M:  # and so for NaN
                continue
            near = 1 / z
            x, y = x * near, y * near
            r2 = x * x + y * y
            if not r2 < limit:
                continue
            radial = (1 + r2 * (dist[0] + r2 * (dist[1] + r2 * dist[4]))) / (
                1 + r2 * (dist[5] + r2 * (dist[6] + r2 * dist[7]))
            )
            n = x * radial + 2 * dist[2] * x * y + dist[3] * (r2 + 2 * x * x)
            m = y * radial + dist[2] * (r2 + 2 * y * y) + 2 * dist[3] * x * y
            u, v = k[0, 0] * n + k[0, 1] * m + k[0, 2], k[1, 0] * n + k[1, 1] * m + k[1, 2]
            if not (abs(u) < 1e6 and abs(v) < 1e6):
                continue
            out_inverse_z[p, i], out_uv[p, i, 0], out_uv[p, i, 1] = near, u, v
            left, right, top, bottom = min(left, u), max(right, u), min(top, v), max(bottom, v)
    return left, top, right, bottom


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


def shades(
    points: Floats, faces: NDArray[np.int32], light: Floats = LIGHT, ambient: float = AMBIENT
) -> Floats:
    """Brightness (N,) of vertices (N, 3) in the camera's frame, from smooth normals and the light."""
    return _shades(np.ascontiguousarray(points, np.float32), faces, light, ambient)


@jit
def _shades(points: Floats, faces: NDArray[np.int32], light: Floats, ambient: float) -> Floats:
    normals = np.zeros(points.shape, np.float32)
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
        length = np.sqrt(x * x + y * y + z * z) + np.float32(1e-12)
        lit = max(np.float32(0), (x * light[0] + y * light[1] + z * light[2]) / length)
        shade[i] = np.float32(ambient) + np.float32(1 - ambient) * lit
    return shade


@jit
def _paint(
    uv: Floats,
    inverse_z: Floats,
    shade: Floats,
    faces: NDArray[np.int32],
    tints: NDArray[np.int32],
    colours: Floats,
    samples: int,
    rows: int,
    box: tuple[int, int, int, int],
    rgb: Pixels,
    alpha: Pixels,
    out_inverse_z: Floats,
    y_plane: Pixels,
    u_plane: Pixels,
    v_plane: Pixels,
    matrix: Floats,
) -> None:
    """Fill and average ``rows`` rows of pixels after the other, an even number.

    With planes, each such band is blended into them, and ``rgb``, ``alpha`` (zeros) and ``out_inverse_z`` are
    the memory of one band; without, they are that of the whole box.
    """
    x0, y0 = box[0], box[1]
    width, height = box[2] - x0, box[3] - y0
    blending = len(y_plane) > 0
    people, count = len(uv), len(faces)
    bands = -(-height // rows)
    # Which faces look at the camera, and the bands of their first and last samples.
    visible = np.empty(people * count, np.int32)
    spans = np.empty((people * count, 2), np.int32)
    starts = np.zeros(bands + 1, np.int32)
    n = 0
    for p in range(people):
        for f in range(count):
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            if inverse_z[p, a] == 0 or inverse_z[p, b] == 0 or inverse_z[p, c] == 0:
                continue
            cx, cy = float(uv[p, c, 0]), float(uv[p, c, 1])
            ax, ay, bx, by = uv[p, a, 0] - cx, uv[p, a, 1] - cy, uv[p, b, 0] - cx, uv[p, b, 1] - cy
            # Twice the signed area; rows count downwards, so faces that look at the camera are negative. One
            # seen so exactly from the side has slopes without end, and no sample.
            if ax * by - ay * bx > -SLIVER_PX2:
                continue
            low, high = cy + min(ay, by, 0.0) - y0 + 0.5, cy + max(ay, by, 0.0) - y0 + 0.5
            if high < 0 or low >= height:
                continue
            first, last = int(max(low, 0.0)) // rows, min(int(high), height - 1) // rows
            visible[n], spans[n, 0], spans[n, 1] = p * count + f, first, last
            n += 1
            for band in range(first, last + 1):
                starts[band + 1] += 1
    for band in range(bands):
        starts[band + 1] += starts[band]
    members = np.empty(starts[bands], np.int32)
    ends = starts.copy()
    for i in range(n):
        for band in range(spans[i, 0], spans[i, 1] + 1):
            members[ends[band]] = visible[i]
            ends[band] += 1
    filled = np.zeros((rows * samples, width * samples + LANES), np.int64)
    extent = np.empty((rows * samples, 2), np.int64)
    for band in range(bands):
        if starts[band] == starts[band + 1]:
            continue
        top = band * rows
        bottom = min(top + rows, height)
        extent[:, 0], extent[:, 1] = width * samples, 0
        _fill(
            uv, inverse_z, shade, faces, tints, members, starts[band], starts[band + 1], samples, x0,
            y0 + top, (bottom - top) * samples, filled, extent,
        )  # fmt: skip
        at, high = 0 if blending else top, bottom - top
        _resolve(filled, extent, colours, samples, rgb, alpha, out_inverse_z, at, high)
        if blending:
            # Where the band has anything; in whole 2×2 blocks, which share their chroma.
            left, right = extent[:, 0].min() // samples // 2 * 2, -(-extent[:, 1].max() // samples)
            right = min(right + right % 2, width)
            _blend(y_plane, u_plane, v_plane, rgb, alpha[:high], left, right, x0, y0 + top, matrix)
            alpha[:, left:right] = 0


@jit
def _fill(
    uv: Floats,
    inverse_z: Floats,
    shade: Floats,
    faces: NDArray[np.int32],
    tints: NDArray[np.int32],
    members: NDArray[np.int32],
    begin: int,
    end: int,
    samples: int,
    x0: int,
    y0: int,
    height: int,
    out: NDArray[np.int64],
    extent: NDArray[np.int64],
) -> None:
    """Draw faces ``members[begin:end]``. 1/z is linear on the screen: its interpolation is exact.

    out: rows of samples, with ``LANES`` more at their ends that nobody reads.
    """
    width = out.shape[1] - LANES
    for i in range(begin, end):
        p, f = members[i] // len(faces), members[i] % len(faces)
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        # Pixel centres are at integers, so pixel u holds the samples from (u − ½) to (u + ½).
        cx = (float(uv[p, c, 0]) - x0 + 0.5) * samples - 0.5
        cy = (float(uv[p, c, 1]) - y0 + 0.5) * samples - 0.5
        ax, ay = (float(uv[p, a, 0]) - uv[p, c, 0]) * samples, (float(uv[p, a, 1]) - uv[p, c, 1]) * samples
        bx, by = (float(uv[p, b, 0]) - uv[p, c, 0]) * samples, (float(uv[p, b, 1]) - uv[p, c, 1]) * samples
        first = max(int(np.ceil(cy + min(ay, by, 0.0))), 0)
        last = min(int(np.floor(cy + max(ay, by, 0.0))), height - 1)
        start = max(int(np.ceil(cx + min(ax, bx, 0.0))), 0)
        stop = min(int(np.floor(cx + max(ax, bx, 0.0))), width - 1) + 1
        if first > last or start >= stop:
            continue
        # Weights of the corners at (x, y): (x − cx) · a_x + (y − cy) · a_y and so on. They add up to 1.
        area = 1 / (ax * by - ay * bx)
        a_x, a_y, b_x, b_y = by * area, -bx * area, -ay * area, ax * area
        wc, sc = float(inverse_z[p, c]), float(shade[p, c])
        w_a, w_b, s_a, s_b = inverse_z[p, a] - wc, inverse_z[p, b] - wc, shade[p, a] - sc, shade[p, b] - sc
        step = _sample(a_x * w_a + b_x * w_b, a_x * s_a + b_x * s_b)
        sc += 2 * (p + tints[f])
        dx = start - cx
        # Every sample of the box and some beside it, without a branch: a body's faces are so small that
        # finding the ends of rows takes longer, and so does doing what is left over from groups one by one.
        across = (stop - start + LANES - 1) // LANES * LANES
        for y in range(first, last + 1):
            dy = y - cy
            at_a, at_b = dy * a_y + dx * a_x, dy * b_y + dx * b_x
            sample = _sample(wc + at_a * w_a + at_b * w_b, sc + at_a * s_a + at_b * s_b)
            extent[y, 0], extent[y, 1] = min(extent[y, 0], start), max(extent[y, 1], stop)
            for k in range(across):
                of_a, of_b = at_a + k * a_x, at_b + k * b_x
                # A little slack, lest a sample on an edge falls between two faces.
                inside = (of_a >= -1e-9) & (of_b >= -1e-9) & (of_a + of_b <= 1 + 1e-9)
                out[y, start + k] = max(out[y, start + k], sample if inside else 0)
                sample += step


@jit
def _sample(inverse_z: float, shade: float) -> int:
    """1/z and 2 × person + brightness in one number: the nearer is the greater, and sums are of both."""
    return (int(inverse_z * INVERSE_Z_ONE) << 32) + int(shade * SHADE_ONE)


def resolve(
    inverse_z: Floats, shade: Floats, colours: Floats, samples: int, corner: tuple[int, int]
) -> Picture:
    """Average samples × samples into pixels.

    inverse_z: 0 where nothing was drawn; shade there is meaningless. shade: 2 × person + brightness.
    """
    height, width = inverse_z.shape[0] // samples, inverse_z.shape[1] // samples
    picture = _blank(corner, width, height)
    rgb = picture.rgb.transpose(2, 0, 1)
    filled = ((inverse_z.astype(np.float64) * INVERSE_Z_ONE).astype(np.int64) << 32) + (
        np.where(inverse_z > 0, shade, 0) * SHADE_ONE
    ).astype(np.int64)
    extent = np.tile([0, width * samples], (height * samples, 1))
    _resolve(filled, extent, _scaled(colours), samples, rgb, picture.alpha, picture.inverse_z, 0, height)
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


@jit
def _resolve(
    filled: NDArray[np.int64],
    extent: NDArray[np.int64],
    colours: Floats,
    samples: int,
    rgb: Pixels,
    alpha: Pixels,
    out_inverse_z: Floats,
    at: int,
    count: int,
) -> None:
    """Average samples within each row's ``extent`` into ``count`` rows of pixels from ``at``; clear them."""
    for k in range(count):
        y, j0, j1 = at + k, k * samples, (k + 1) * samples - 1
        first = min(extent[j0, 0], extent[j1, 0]) // samples
        stop = (max(extent[j0, 1], extent[j1, 1]) + samples - 1) // samples
        if first >= stop:
            continue
        if samples == 2 and len(colours) == 1:
            _average_one(
                filled[j0, 2 * first : 2 * stop], filled[j1, 2 * first : 2 * stop], colours[0],
                rgb[0, y, first:stop], rgb[1, y, first:stop], rgb[2, y, first:stop],
                alpha[y, first:stop], out_inverse_z[y, first:stop],
            )  # fmt: skip
        else:
            _average(
                filled[j0], filled[j1], first, stop, samples, colours,
                rgb[0, y], rgb[1, y], rgb[2, y], alpha[y], out_inverse_z[y],
            )  # fmt: skip
        filled[j0, first * samples : stop * samples] = 0
        filled[j1, first * samples : stop * samples] = 0


@jit
def _average_one(
    above: NDArray[np.int64],
    below: NDArray[np.int64],
    colour: Floats,
    red: Pixels,
    green: Pixels,
    blue: Pixels,
    alpha: Pixels,
    inverse_z: Floats,
) -> None:
    """A row of pixels of 2×2 samples with one person. No branches: the compiler takes many at once."""
    half, quarter, light_mask = np.float32(0.5), np.float32(0.25), 2 * SHADE_ONE - 1
    unit, z_unit = np.float32(1 / SHADE_ONE), np.float32(1 / INVERSE_Z_ONE)
    for x in range(len(alpha)):
        a, b, c, d = above[2 * x], above[2 * x + 1], below[2 * x], below[2 * x + 1]
        # An empty sample is 0 and adds nothing.
        total = np.int32((a & light_mask) + (b & light_mask) + (c & light_mask) + (d & light_mask))
        count = np.int32(a > 0) + np.int32(b > 0) + np.int32(c > 0) + np.int32(d > 0)
        light = np.float32(total) * unit / np.float32(max(count, np.int32(1)))
        red[x] = np.uint8(np.int32(light * colour[0] + half))
        green[x] = np.uint8(np.int32(light * colour[1] + half))
        blue[x] = np.uint8(np.int32(light * colour[2] + half))
        alpha[x] = np.uint8(np.int32(np.float32(count) * (colour[3] * quarter) + half))
        inverse_z[x] = np.float32(np.int32(max(max(a, b), max(c, d)) >> 32)) * z_unit


@jit
def _average(
    above: NDArray[np.int64],
    below: NDArray[np.int64],
    first: int,
    stop: int,
    samples: int,
    colours: Floats,
    red: Pixels,
    green: Pixels,
    blue: Pixels,
    alpha: Pixels,
    inverse_z: Floats,
) -> None:
    """The same for any number of people and of samples."""
    half, quarter, light_mask = np.float32(0.5), np.float32(0.25), 2 * SHADE_ONE - 1
    unit, z_unit = np.float32(1 / SHADE_ONE), np.float32(1 / INVERSE_Z_ONE)
    for x in range(first, stop):
        # The four corner samples of the pixel; with one sample a pixel, that one four times.
        i, j = x * samples, (x + 1) * samples - 1
        four = above[i], above[j], below[i], below[j]
        nearest = max(max(four[0], four[1]), max(four[2], four[3]))
        if nearest == 0:
            continue
        inverse_z[x] = np.float32(nearest >> 32) * z_unit
        r = g = b = opacity = np.float32(0)
        for sample in four:
            if sample > 0:
                p = (sample & (2**32 - 1)) // (2 * SHADE_ONE)
                weight = colours[p, 3] * quarter
                light = np.float32(sample & light_mask) * unit * weight
                r += light * colours[p, 0]
                g += light * colours[p, 1]
                b += light * colours[p, 2]
                opacity += weight
        scale = 1 / max(opacity, np.float32(1e-6))
        red[x], green[x] = np.uint8(r * scale + half), np.uint8(g * scale + half)
        blue[x], alpha[x] = np.uint8(b * scale + half), np.uint8(opacity + half)


@jit
def _blend(
    y_plane: Pixels,
    u_plane: Pixels,
    v_plane: Pixels,
    rgb: Pixels,
    alpha: Pixels,
    left: int,
    right: int,
    x0: int,
    y0: int,
    m: NDArray[np.float32],
) -> None:
    """Blend the columns ``left:right`` of a box that lies at ``x0, y0``; ``left`` is even."""
    height = len(alpha)
    for j in range(height):
        _blend_luma(
            y_plane[y0 + j, x0 + left : x0 + right],
            rgb[0, j, left:right], rgb[1, j, left:right], rgb[2, j, left:right], alpha[j, left:right], m[0],
        )  # fmt: skip
    for j in range(0, height, 2):
        k = min(j + 1, height - 1)  # the last row of a frame of odd height has no other beside it
        for plane, weights in ((u_plane, m[1]), (v_plane, m[2])):
            _blend_chroma(
                plane[(y0 + j) // 2, (x0 + left) // 2 : (x0 + right + 1) // 2],
                rgb[0, j, left:right], rgb[1, j, left:right], rgb[2, j, left:right],
                rgb[0, k, left:right], rgb[1, k, left:right], rgb[2, k, left:right],
                alpha[j, left:right], alpha[k, left:right], weights,
            )  # fmt: skip


@jit
def _blend_luma(
    line: Pixels, red: Pixels, green: Pixels, blue: Pixels, alpha: Pixels, m: NDArray[np.float32]
) -> None:
    """A row. No branches: the compiler takes many pixels at once, and where alpha is 0 nothing changes."""
    half, full = np.float32(0.5), np.float32(1 / 255)
    for i in range(len(line)):
        before = np.float32(line[i])
        luma = m[0] * red[i] + m[1] * green[i] + m[2] * blue[i] + m[3]
        line[i] = np.uint8(np.int32(before + alpha[i] * full * (luma - before) + half))


@jit
def _blend_chroma(
    line: Pixels,
    red: Pixels,
    green: Pixels,
    blue: Pixels,
    red_below: Pixels,
    green_below: Pixels,
    blue_below: Pixels,
    alpha: Pixels,
    alpha_below: Pixels,
    m: NDArray[np.float32],
) -> None:
    """A row of one chroma plane: 2×2 pixels share a sample."""
    half, quarter = np.float32(0.5), np.float32(0.25 / 255)
    width = len(alpha)
    for i in range(width // 2):
        a, b, c, d = (
            np.float32(alpha[2 * i]),
            np.float32(alpha[2 * i + 1]),
            np.float32(alpha_below[2 * i]),
            np.float32(alpha_below[2 * i + 1]),
        )
        r = a * red[2 * i] + b * red[2 * i + 1] + c * red_below[2 * i] + d * red_below[2 * i + 1]
        g = a * green[2 * i] + b * green[2 * i + 1] + c * green_below[2 * i] + d * green_below[2 * i + 1]
        e = a * blue[2 * i] + b * blue[2 * i + 1] + c * blue_below[2 * i] + d * blue_below[2 * i + 1]
        before, covered = np.float32(line[i]), a + b + c + d
        colour = m[0] * r + m[1] * g + m[2] * e + m[3] * covered
        line[i] = np.uint8(np.int32(before + (colour - covered * before) * quarter + half))
    if width % 2:  # a frame of odd width: the last column has no other beside it
        i = width - 1
        a, c = np.float32(alpha[i]), np.float32(alpha_below[i])
        before, covered = np.float32(line[i // 2]), a + c
        colour = (
            m[0] * (a * red[i] + c * red_below[i])
            + m[1] * (a * green[i] + c * green_below[i])
            + m[2] * (a * blue[i] + c * blue_below[i])
            + m[3] * covered
        )
        line[i // 2] = np.uint8(np.int32(before + (colour - covered * before) * (2 * quarter) + half))
