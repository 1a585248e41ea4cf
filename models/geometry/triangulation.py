"""Robust triangulation of points seen by several cameras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.compiled import jit
from pipeline.array_types import Array
from pipeline.cameras import Rig

ANGULAR_SCALE_RAD = 0.005
"""Robust scale: 8 px at a focal length of 1600 px."""
_MIN_SINE = 0.01
"""Least sine of the angle between two rays that give a depth (0.6°)."""


@dataclass(frozen=True)
class Triangulation:
    """Points in the world and how well each view agrees with them."""

    points: Array
    """(..., 3) metres; NaN where fewer than two views show the point or their rays are parallel"""
    residual_px: Array
    """(V, ...) reprojection error in undistorted pixels; NaN where the view does not show the point, where
    there is no point, or where it lies behind the camera"""
    used: NDArray[np.bool_]
    """(V, ...) the view shows the point and agrees with it to within 3 robust scales"""


def rays(rig: Rig, xy_px: Array) -> Array:
    """Undistorted pixels (V, ..., 2) → unit directions (V, ..., 3) in the world; NaN where missing."""
    flat = xy_px.reshape(len(rig), -1, 2)
    with_one = np.concatenate([flat, np.ones((*flat.shape[:2], 1))], -1)
    direction = with_one @ np.linalg.inv(rig.K).transpose(0, 2, 1) @ rig.R
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    return np.asarray(direction.reshape(*xy_px.shape[:-1], 3))


def along_rays(base: Array, d1: Array, d2: Array, min_sine: float) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Distances along two rays (unit directions (..., 3), the second ``base`` away) to where they come
    closest; valid where the sine of the angle between them is above ``min_sine``, the third value.
    """
    cos = (d1 * d2).sum(-1)
    on1, on2 = (d1 * base).sum(-1), (d2 * base).sum(-1)
    sin2 = 1 - cos**2
    valid = sin2 > min_sine**2
    sin2 = np.where(valid, sin2, 1)
    return (on1 - cos * on2) / sin2, (cos * on1 - on2) / sin2, valid


def triangulate(rig: Rig, xy_px: ArrayLike, confidence: ArrayLike, *, iterations: int = 6) -> Triangulation:
    """Triangulate all points at once, each from the views that agree about it.

    Every pair of cameras proposes a point (the middle of the shortest segment between its two rays); the
    proposal with the highest score Σ c / (1 + (r/s)²) over all views starts re-weighted linear triangulation
    (DLT; Hartley and Zisserman, Multiple View Geometry, 12.2). Weights are confidence × Geman–McClure(r, s)
    / depth², so that the linear error is the reprojection error in pixels.

    xy_px: (V, ..., 2) undistorted pixels, NaN where missing. confidence: (V, ...). The residual s at which a
    view starts to count as wrong is ``ANGULAR_SCALE_RAD`` × its focal length. Views with a confidence of 0
    are ignored. With two views both rays count; with one, every point is NaN. The views agree on a point
    where ``used.sum(0) >= 2``. iterations: rounds of re-weighting.
    """
    points, residual, scale_px = _triangulate_views(rig, xy_px, confidence, np.array([-1]), iterations)
    used = residual <= 3 * scale_px.reshape(-1, *[1] * (residual.ndim - 2))  # NaN compares false
    return Triangulation(points[0], residual[0], used[0])


def leave_one_out(rig: Rig, xy_px: ArrayLike, confidence: ArrayLike) -> Array:
    """Points (V, ..., 3) triangulated without each view in turn, each as ``triangulate`` has it.

    All share one search over the pairs of cameras, which takes most of the time.
    """
    return _triangulate_views(rig, xy_px, confidence, np.arange(len(rig)))[0]


def _triangulate_views(
    rig: Rig, xy_px: ArrayLike, confidence: ArrayLike, left_out: NDArray[np.int64], iterations: int = 6
) -> tuple[Array, Array, Array]:
    """Points (L, ..., 3) without each of some views, −1 for none; their residuals (L, V, ...), pixels, and
    the robust scale (V,), pixels."""
    xy, conf = np.asarray(xy_px, np.float64), np.asarray(confidence, np.float64)
    views = len(rig)
    if xy.shape[:1] != (views,) or xy.shape != (*conf.shape, 2):
        raise ValueError(
            f"xy_px {xy.shape} and confidence {conf.shape} must be ({views}, ..., 2) and ({views}, ...)"
        )
    lead = conf.shape[1:]
    xy, conf = xy.reshape(views, -1, 2), conf.reshape(views, -1)
    seen = np.isfinite(xy).all(-1) & (conf > 0)
    conf = np.where(seen, conf, 0)
    focal = rig.K[:, [0, 1], [0, 1]]
    scale = ANGULAR_SCALE_RAD * focal.mean(1)
    cameras = _Cameras(rig.R, rig.t, rig.centres, np.ascontiguousarray(rig.K[:, :2, :2]), focal, scale)

    # Normalised image points, and unit directions in the world.
    pixel = np.concatenate([np.where(seen[..., None], xy, 0), np.ones_like(conf)[..., None]], -1)
    image = pixel @ np.linalg.inv(rig.K).transpose(0, 2, 1)
    ray = image @ rig.R
    ray /= np.sqrt((ray**2).sum(-1, keepdims=True))
    image = np.ascontiguousarray(image[..., :2])
    x = np.full((len(left_out), conf.shape[1], 3), np.nan)
    residual = np.full((len(left_out), *conf.shape), np.nan)
    _triangulate(cameras, image, ray, conf, left_out, iterations, x, residual)
    # Re-weighting can push a point behind one camera of the pair that proposed it.
    found = np.isfinite(residual).sum(1) >= 2
    residual[np.broadcast_to(~found[:, None], residual.shape)] = np.nan
    x[~found] = np.nan
    return x.reshape(len(x), *lead, 3), residual.reshape(len(x), views, *lead), scale


class _Cameras(NamedTuple):
    """Arrays of V cameras for compiled code."""

    rotation: Array
    """(V, 3, 3)"""
    translation: Array
    """(V, 3)"""
    centre: Array
    """(V, 3)"""
    pixel: Array
    """(V, 2, 2) upper left of K"""
    focal: Array
    """(V, 2)"""
    scale: Array
    """(V,) robust scale, pixels."""


@jit
def _triangulate(
    cameras: _Cameras,
    image: Array,
    ray: Array,
    confidence: Array,
    left_out: NDArray[np.int64],
    rounds: int,
    x: Array,
    residual: Array,
) -> None:
    """Fill points x (L, N, 3) and residual (L, V, N), pixels, that come as NaN.

    image (V, N, 2): normalised image points. ray (V, N, 3). confidence (V, N), 0 where not seen. left_out
    (L,): view that is not used, −1 for none.
    """
    views, count = confidence.shape
    middle, share, best = np.empty(3), np.empty(views), np.empty(len(left_out))
    for n in range(count):
        best[:] = -np.inf
        for a in range(views):
            for b in range(a + 1, views):
                if (
                    confidence[a, n] > 0
                    and confidence[b, n] > 0
                    and _score_pair(cameras, image[:, n], ray[:, n], confidence[:, n], (a, b), middle, share)
                ):
                    score = share.sum()
                    for m, v in enumerate(left_out):
                        rest = score - share[v] if v >= 0 else score
                        if v != a and v != b and rest > best[m]:
                            best[m], x[m, n] = rest, middle
        for m, v in enumerate(left_out):
            if best[m] > -np.inf:
                weight = confidence[:, n].copy()
                if v >= 0:
                    weight[v] = 0
                _refine(cameras, image[:, n], weight, rounds, x[m, n])
                for u in range(views):
                    miss2, _ = _miss(cameras, u, image[u, n], x[m, n])
                    if weight[u] > 0 and miss2 < np.inf:
                        residual[m, u, n] = np.sqrt(miss2)


@jit
def _refine(cameras: _Cameras, image: Array, confidence: Array, rounds: int, x: Array) -> None:
    """Move the point x (3,) by re-weighted linear triangulation; image (V, 2)."""
    system, row = np.empty((3, 4)), np.empty(4)
    for _ in range(rounds):
        system[:] = 0
        for v in range(len(confidence)):
            miss2, depth = _miss(cameras, v, image[v], x)
            if confidence[v] > 0 and miss2 < np.inf:
                weight = confidence[v] / (1 + miss2 / cameras.scale[v] ** 2) ** 2 / depth**2
                for i in range(2):  # (n r₃ − r₁₂) x = t₁₂ − n t₃, in units of focal length × depth
                    for j in range(3):
                        row[j] = image[v, i] * cameras.rotation[v, 2, j] - cameras.rotation[v, i, j]
                    row[3] = cameras.translation[v, i] - image[v, i] * cameras.translation[v, 2]
                    for j in range(3):
                        for k in range(4):
                            system[j, k] += weight * cameras.focal[v, i] ** 2 * row[j] * row[k]
        _solve(system, x)


@jit
def _score_pair(
    cameras: _Cameras,
    image: Array,
    ray: Array,
    confidence: Array,
    pair: tuple[int, int],
    middle: Array,
    share: Array,
) -> bool:
    """Fill the point halfway between two views' rays, middle (3,), and each view's agreement with it, share
    (V,).

    False where the rays are parallel or the point lies behind one of the two. image (V, 2), ray (V, 3).
    """
    a, b = pair
    cos = on_a = on_b = 0.0
    for i in range(3):
        base = cameras.centre[b, i] - cameras.centre[a, i]
        cos += ray[a, i] * ray[b, i]
        on_a += ray[a, i] * base
        on_b += ray[b, i] * base
    sin2 = 1 - cos**2
    if not sin2 > _MIN_SINE**2:
        return False
    along_a, along_b = (on_a - cos * on_b) / sin2, (cos * on_a - on_b) / sin2
    for i in range(3):
        middle[i] = cameras.centre[a, i] + along_a * ray[a, i] + cameras.centre[b, i] + along_b * ray[b, i]
        middle[i] /= 2
    for v in range(len(confidence)):
        share[v] = 0
        if confidence[v] > 0:
            miss2, depth = _miss(cameras, v, image[v], middle)
            if v in pair and depth <= 0:
                return False
            share[v] = confidence[v] / (1 + miss2 / cameras.scale[v] ** 2)
    return True


@jit
def _miss(cameras: _Cameras, v: int, image: Array, x: Array) -> tuple[float, float]:
    """Squared reprojection error, pixels, of a point x (3,) seen at the normalised image point (2,), infinite
    behind the camera; and depth."""
    r, t, k = cameras.rotation[v], cameras.translation[v], cameras.pixel[v]
    depth = r[2, 0] * x[0] + r[2, 1] * x[1] + r[2, 2] * x[2] + t[2]
    if not depth > 1e-6:
        return np.inf, depth
    a = (r[0, 0] * x[0] + r[0, 1] * x[1] + r[0, 2] * x[2] + t[0]) / depth - image[0]
    b = (r[1, 0] * x[0] + r[1, 1] * x[1] + r[1, 2] * x[2] + t[1]) / depth - image[1]
    return (k[0, 0] * a + k[0, 1] * b) ** 2 + (k[1, 0] * a + k[1, 1] * b) ** 2, depth


@jit
def solve_symmetric(system: Array) -> Array:
    """Solve N systems A x = b given as (N, 3, 4) [A | b], A symmetric; 0 where A is singular."""
    x = np.zeros((len(system), 3))
    for n in range(len(x)):
        _solve(system[n], x[n])
    return x


@jit
def _solve(system: Array, x: Array) -> None:
    """Solve one system by cofactors; x (3,) stays as it is where A is singular."""
    a, b, c, d, e, f = system[0, 0], system[0, 1], system[0, 2], system[1, 1], system[1, 2], system[2, 2]
    ca, cb, cc = d * f - e * e, c * e - b * f, b * e - c * d
    cd, ce, cf = a * f - c * c, b * c - a * e, a * d - b * b
    det = a * ca + b * cb + c * cc
    if det > 1e-9 * (a + d + f) ** 3:  # else the rays have become parallel
        u, v, w = system[0, 3] / det, system[1, 3] / det, system[2, 3] / det
        x[0], x[1], x[2] = ca * u + cb * v + cc * w, cb * u + cd * v + ce * w, cc * u + ce * v + cf * w
