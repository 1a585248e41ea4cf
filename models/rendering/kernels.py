"""Compiled loops of the software renderer: project, shade, fill, average, blend.

Arguments are grouped in named tuples, which cost compiled code nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.compiled import jit
from pipeline.array_types import Floats, Pixels

NEAR_M = 0.05
"""Near clipping distance."""

INVERSE_Z_ONE, SHADE_ONE = 2**26, 2**19
"""1/m and full brightness in a sample's integer: 31 bits of 1/z down to ``NEAR_M``, then 12 of the person
and 20 of the brightness."""

SLIVER_PX2 = 1e-5
"""Least double area of a face that is drawn, square pixels."""

LANES = 4
"""Samples of a row that are filled together: a processor's vector."""


class Lens(NamedTuple):
    """One camera: R, t, K and distortion as of ``Rig``, and the largest valid r² of its distortion."""

    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]
    k: NDArray[np.float64]
    dist: NDArray[np.float64]
    limit: float
    fisheye: bool


class Screen(NamedTuple):
    """Vertices in the picture of one camera."""

    uv: Floats
    """(P, N, 2) pixels of the video frame, distorted; meaningless where ``inverse_z`` is 0."""
    inverse_z: Floats
    """(P, N) 1 / depth, 1/m; 0 for a vertex behind the camera or beyond the range of the lens model."""
    shade: Floats
    """(P, N) brightness between the ambient share and 1."""
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1: bounding box of the vertices, pixels, x1 and y1 exclusive; even, or the frame's end."""


class Mesh(NamedTuple):
    """Faces and colours of the people on a screen."""

    faces: NDArray[np.int32]
    """(F, 3)"""
    tints: NDArray[np.int32]
    """(F,) face f of person p has the colour p + tints[f]."""
    colours: Floats
    """(C, 4) red, green, blue and opacity, 0 to 255."""


class SampleRows(NamedTuple):
    """Rows of samples: 1/z and 2 × colour + brightness in one number, 0 for an empty sample."""

    filled: NDArray[np.int64]
    """(rows, columns + LANES), the last ones padding."""
    extent: NDArray[np.int64]
    """(rows, 2) first column that may be filled, and the one after the last."""
    side: int
    """side × side samples make a pixel."""


class Canvas(NamedTuple):
    """Output picture of h × w pixels."""

    rgb: Pixels
    """(3, h, w)"""
    alpha: Pixels
    """(h, w)"""
    inverse_z: Floats
    """(h, w)"""


class Frame(NamedTuple):
    """Contiguous planes of a video frame, and the matrix of ``overlay.yuv_matrix``."""

    y: Pixels
    u: Pixels
    v: Pixels
    matrix: Floats


class PixelRow(NamedTuple):
    """A row of pixels."""

    red: Pixels
    green: Pixels
    blue: Pixels
    alpha: Pixels


@jit
def project(
    points: Floats, view: Lens, out_camera: Floats, out_uv: Floats, out_inverse_z: Floats
) -> tuple[float, float, float, float]:
    """Project as ``Rig.project(distorted=True)``; return the bounding box of the visible points, pixels."""
    rotation, translation, k, dist, limit, fisheye = view
    left, top, right, bottom = np.inf, np.inf, -np.inf, -np.inf
    for p in range(points.shape[0]):
        for i in range(points.shape[1]):
            a, b, c = float(points[p, i, 0]), float(points[p, i, 1]), float(points[p, i, 2])
            x = rotation[0, 0] * a + rotation[0, 1] * b + rotation[0, 2] * c + translation[0]
            y = rotation[1, 0] * a + rotation[1, 1] * b + rotation[1, 2] * c + translation[1]
            z = rotation[2, 0] * a + rotation[2, 1] * b + rotation[2, 2] * c + translation[2]
            out_camera[p, i, 0], out_camera[p, i, 1], out_camera[p, i, 2] = x, y, z
            out_inverse_z[p, i] = out_uv[p, i, 0] = out_uv[p, i, 1] = 0
            if not z > NEAR_M:  # true for NaN
                continue
            near = 1 / z
            x, y = x * near, y * near
            r2 = x * x + y * y
            if not r2 < limit:
                continue
            if fisheye:
                theta = np.arctan(np.sqrt(r2))
                s = theta * theta
                angle = theta * (1 + s * (dist[0] + s * (dist[1] + s * (dist[2] + s * dist[3]))))
                radial = angle / max(np.sqrt(r2), 1e-12)
                n, m = x * radial, y * radial
            else:
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


@jit
def vertex_shades(points: Floats, faces: NDArray[np.int32], light: Floats, ambient: float) -> Floats:
    """Brightness (N,) of vertices (N, 3) in the camera's frame; see ``software.shades``."""
    normals = np.zeros(points.shape, np.float32)
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        x, y, z = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        u, v, w = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
        # The cross product is twice the area long: an area-weighted normal.
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
def paint_bands(screen: Screen, mesh: Mesh, side: int, rows: int, out: Canvas, frame: Frame) -> None:
    """Fill and average bands of ``rows`` rows of pixels, an even number, of side × side samples each.

    Each band is blended into the frame, with ``out``, its alpha zeros, as the memory of one band; with an
    empty frame, ``out`` is the picture of the whole box.
    """
    uv, inverse_z, faces = screen.uv, screen.inverse_z, mesh.faces
    x0, y0 = screen.box[0], screen.box[1]
    width, height = screen.box[2] - x0, screen.box[3] - y0
    blending = len(frame.y) > 0
    people, count = len(uv), len(faces)
    bands = -(-height // rows)
    # Faces towards the camera, and the bands of their first and last samples.
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
            # Twice the signed area, negative for faces towards the camera, as rows count downwards. A sliver
            # has infinite slopes, and no sample.
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
    filled = np.zeros((rows * side, width * side + LANES), np.int64)
    extent = np.empty((rows * side, 2), np.int64)
    samples = SampleRows(filled, extent, side)
    for band in range(bands):
        if starts[band] == starts[band + 1]:
            continue
        top = band * rows
        bottom = min(top + rows, height)
        extent[:, 0], extent[:, 1] = width * side, 0
        fill_faces(
            screen, mesh, members[starts[band] : starts[band + 1]], samples, (x0, y0 + top), bottom - top
        )
        average_rows(samples, mesh.colours, out, 0 if blending else top, bottom - top)
        if blending:
            # The filled columns, in whole 2×2 blocks, which share their chroma.
            left, right = extent[:, 0].min() // side // 2 * 2, -(-extent[:, 1].max() // side)
            right = min(right + right % 2, width)
            blend_box(frame, out.rgb, out.alpha[: bottom - top], (left, right), (x0, y0 + top))
            out.alpha[:, left:right] = 0


@jit
def fill_faces(
    screen: Screen,
    mesh: Mesh,
    members: NDArray[np.int32],
    out: SampleRows,
    corner: tuple[int, int],
    rows: int,
) -> None:
    """Fill the samples of faces, ``members`` person × F + face, into ``rows`` rows of pixels from ``corner``.

    1/z is linear on the screen: its interpolation is exact.
    """
    uv, inverse_z, shade = screen.uv, screen.inverse_z, screen.shade
    faces, tints = mesh.faces, mesh.tints
    filled, extent, samples = out
    x0, y0 = corner
    width, height = filled.shape[1] - LANES, rows * samples
    for i in range(len(members)):
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
        # All samples of the box, padded to whole groups, without a branch: a body's faces are so small that
        # finding the ends of rows takes longer.
        columns = (stop - start + LANES - 1) // LANES * LANES
        for y in range(first, last + 1):
            dy = y - cy
            at_a, at_b = dy * a_y + dx * a_x, dy * b_y + dx * b_x
            sample = _sample(wc + at_a * w_a + at_b * w_b, sc + at_a * s_a + at_b * s_b)
            extent[y, 0], extent[y, 1] = min(extent[y, 0], start), max(extent[y, 1], stop)
            for k in range(columns):
                weight_a, weight_b = at_a + k * a_x, at_b + k * b_x
                # Slack, lest a sample on an edge falls between two faces.
                inside = (weight_a >= -1e-9) & (weight_b >= -1e-9) & (weight_a + weight_b <= 1 + 1e-9)
                filled[y, start + k] = max(filled[y, start + k], sample if inside else 0)
                sample += step


@jit
def _sample(inverse_z: float, shade: float) -> int:
    """1/z and 2 × person + brightness in one integer, ordered by nearness, additive in both."""
    return (int(inverse_z * INVERSE_Z_ONE) << 32) + int(shade * SHADE_ONE)


@jit
def average_rows(rows: SampleRows, colours: Floats, out: Canvas, start: int, count: int) -> None:
    """Average and clear the samples within the rows' ``extent``, into ``count`` pixel rows from ``start``."""
    filled, extent, samples = rows
    rgb, alpha, out_inverse_z = out
    for k in range(count):
        y, j0, j1 = start + k, k * samples, (k + 1) * samples - 1
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
            _average(filled[j0], filled[j1], (first, stop), samples, colours, out, y)
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
    """Average a row of pixels of 2×2 samples of one person; without branches, so that it is vectorised."""
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
    columns: tuple[int, int],
    samples: int,
    colours: Floats,
    out: Canvas,
    y: int,
) -> None:
    """Average the pixels ``columns`` of row ``y``, of any number of people and of samples."""
    red, green, blue = out.rgb[0, y], out.rgb[1, y], out.rgb[2, y]
    alpha, inverse_z = out.alpha[y], out.inverse_z[y]
    half, quarter, light_mask = np.float32(0.5), np.float32(0.25), 2 * SHADE_ONE - 1
    unit, z_unit = np.float32(1 / SHADE_ONE), np.float32(1 / INVERSE_Z_ONE)
    for x in range(columns[0], columns[1]):
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
def blend_box(
    frame: Frame, rgb: Pixels, alpha: Pixels, columns: tuple[int, int], corner: tuple[int, int]
) -> None:
    """Blend columns, from an even one on, of a box at ``corner`` into a frame."""
    y_plane, u_plane, v_plane, m = frame
    left, right = columns
    x0, y0 = corner
    height = len(alpha)
    for j in range(height):
        _blend_luma(y_plane[y0 + j, x0 + left : x0 + right], _row(rgb, alpha, j, left, right), m[0])
    for j in range(0, height, 2):
        above = _row(rgb, alpha, j, left, right)
        # The last row of a frame of odd height is a pair of its own.
        below = _row(rgb, alpha, min(j + 1, height - 1), left, right)
        for plane, weights in ((u_plane, m[1]), (v_plane, m[2])):
            line = plane[(y0 + j) // 2, (x0 + left) // 2 : (x0 + right + 1) // 2]
            _blend_chroma(line, above, below, weights)


@jit
def _row(rgb: Pixels, alpha: Pixels, j: int, left: int, right: int) -> PixelRow:
    return PixelRow(rgb[0, j, left:right], rgb[1, j, left:right], rgb[2, j, left:right], alpha[j, left:right])


@jit
def _blend_luma(line: Pixels, over: PixelRow, m: NDArray[np.float32]) -> None:
    """Blend a row of luma; without branches, so that it is vectorised."""
    red, green, blue, alpha = over
    half, full = np.float32(0.5), np.float32(1 / 255)
    for i in range(len(line)):
        before = np.float32(line[i])
        luma = m[0] * red[i] + m[1] * green[i] + m[2] * blue[i] + m[3]
        line[i] = np.uint8(np.int32(before + alpha[i] * full * (luma - before) + half))


@jit
def _blend_chroma(line: Pixels, above: PixelRow, below: PixelRow, m: NDArray[np.float32]) -> None:
    """Blend a row of a chroma plane, of which 2×2 pixels share a sample."""
    red, green, blue, alpha = above
    red_below, green_below, blue_below, alpha_below = below
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
    if width % 2:  # the last column of a frame of odd width is a pair of its own
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
