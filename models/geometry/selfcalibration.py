"""Self-calibration: poses and focal lengths of fixed cameras that see the same person move.

The person's keypoints are the calibration object. Two views give an essential matrix (Hartley and Zisserman,
Multiple View Geometry, 11.7), the other views are added by resection, and a bundle adjustment follows.

Axes: V views, T frames, K keypoints. World = the first view's camera; ``up.upright`` turns it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import cv2
import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.geometry.association import finite_median
from models.geometry.bundle import ENDS, ROBUST, BodySize, Bundle, FocalPrior, Sight, adjust, bone_lengths
from models.geometry.triangulation import triangulate
from pipeline.array_types import Array
from pipeline.cameras import Rig
from pipeline.skeleton import BODY_25
from pipeline.timeline import spread

_START_FRAMES, _START_PAIRS = 40, 6
"""Frames of a start, and most pairs of views that start one."""
_SAME_COST_SHARE = 0.01
"""Largest relative difference in cost of two starts that are the same rig."""
_MIN_POINTS = 30
"""Fewest points that two views share for a relative pose."""
_MIN_HANDEDNESS = -0.2
"""Least ``handedness`` of a body that is not mirrored: single frames of noisy points vote wrongly."""


def pair_pose(one: Array, two: Array, *, error: float) -> tuple[Array, Array, NDArray[np.bool_]] | None:
    """Estimate the pose of a second camera from normalised image points (N, 2) in both.

    error: largest distance of an inlier from its epipolar line, in the unit of the points. Returns R (3, 3)
    and the unit t (3,) of x₂ = R x₁ + t, and the inliers (N,); None without such a pose.
    """
    if len(one) < _MIN_POINTS:
        return None
    cv2.setRNGSeed(0)
    essential, agree = cv2.findEssentialMat(
        np.ascontiguousarray(one), np.ascontiguousarray(two), np.eye(3), cv2.RANSAC, 0.9999, error, 1000
    )
    if essential is None or essential.shape != (3, 3):
        return None
    inside = agree[:, 0] > 0
    _, r, t, _ = cv2.recoverPose(essential, one[inside], two[inside], np.eye(3))
    return np.asarray(r, np.float64), np.asarray(t, np.float64)[:, 0], inside


def _normalise(rig: Rig, view: int, xy_px: Array) -> Array:
    """Undistorted pixels (..., 2) → x / z, y / z in the camera's frame."""
    homogeneous = np.concatenate([xy_px, np.ones_like(xy_px[..., :1])], -1)
    return np.asarray((homogeneous @ np.linalg.inv(rig.K[view]).T)[..., :2])


def _scale_to(points: Array, size: BodySize) -> float:
    """Factor that gives points (T, K, 3) the bone lengths of a person; NaN without bones."""
    return float(finite_median((np.exp(size.mean)[ENDS[:, 2]] / bone_lengths(points)).ravel()))


def handedness(points: Array) -> float:
    """Mean sign of the handedness of points (T, K, 3) over the frames: 1, or −1 for a mirrored body."""

    def at(name: str) -> Array:
        return np.asarray(points[:, BODY_25.index(name)])

    left = at("LShoulder") - at("RShoulder")
    ahead = np.cross(left, at("Neck") - at("MidHip"))
    votes = [(ahead * (at("Nose") - (at("LEar") + at("REar")) / 2)).sum(-1)]
    votes += [(ahead * (at(f"{s}BigToe") - at(f"{s}Heel"))).sum(-1) for s in "LR"]
    signs = np.sign(np.concatenate(votes))
    signs = signs[np.isfinite(signs)]
    return float(signs.mean()) if signs.size else 0.0


def _adjust_pair(rig: Rig, sight: Sight, size: BodySize, focal: FocalPrior, a: int, b: int) -> Bundle | None:
    """Adjust two views alone, in the first one's camera; None where they share too little."""
    two = sight.views([a, b])
    both = two.seen.all(0)
    pair = rig.select([rig.names[a], rig.names[b]])
    pair = replace(pair, R=np.tile(np.eye(3), (2, 1, 1)), t=np.zeros((2, 3)))
    rays = [_normalise(pair, v, two.xy_px[v][both]) for v in range(2)]
    pose = pair_pose(*rays, error=_epipolar_error(pair, two))
    if pose is None:
        return None
    rotation, t, _ = pose
    depth = np.diag([1.0, 1.0, -1.0])
    best: Bundle | None = None
    # From far away, a scene and its mirror image in depth look alike: both are tried.
    for r in (rotation, depth @ rotation @ depth):
        start = replace(pair, R=np.stack([np.eye(3), r]), t=np.stack([np.zeros(3), t]))
        points = triangulate(start, two.xy_px, two.confidence).points
        scale = _scale_to(points, size)
        if not np.isfinite(scale) or handedness(points) < _MIN_HANDEDNESS:
            continue
        start = replace(start, t=start.t * scale)
        bundle = _try_adjust(start, two, size, focal.views([a, b]), ROBUST[:2])
        if bundle and (best is None or bundle.cost < best.cost):
            best = bundle
    return best


def _epipolar_error(rig: Rig, sight: Sight) -> float:
    """Largest distance of an inlier from its epipolar line, over the focal length: 1 % of the person."""
    heights = np.array([_height_px(sight, v) for v in range(len(rig))]) / rig.K[:, 1, 1]
    heights = heights[np.isfinite(heights)]
    return float(heights.mean()) / 100 if len(heights) else 0.005


def _height_px(sight: Sight, view: int) -> float:
    """Median height of the person in a view's picture; NaN where it shows too little."""
    seen = sight.seen[view]
    y = np.where(seen, sight.xy_px[view, ..., 1], np.nan)[seen.sum(1) > 5]
    return float(np.median(np.nanmax(y, 1) - np.nanmin(y, 1))) if len(y) else math.nan


def _try_adjust(
    rig: Rig, sight: Sight, size: BodySize, focal: FocalPrior, robust: Sequence[float]
) -> Bundle | None:
    """``adjust``; None where it fails or gives a mirrored body."""
    try:
        bundle = adjust(rig, sight, size, focal, robust)
    except np.linalg.LinAlgError:
        return None
    return bundle if np.isfinite(bundle.cost) and handedness(bundle.points) > _MIN_HANDEDNESS else None


def _resect(rig: Rig, sight: Sight, view: int, points: Array) -> tuple[Array, Array] | None:
    """Pose of a view from points (T, K, 3): perspective-n-point with RANSAC."""
    ok = sight.seen[view] & np.isfinite(points).all(-1)
    if ok.sum() < _MIN_POINTS:
        return None
    k = rig.K[view]
    error = 4 * _epipolar_error(rig.select([rig.names[view]]), sight.views([view]))
    cv2.setRNGSeed(0)
    done, rotation, t, inside = cv2.solvePnPRansac(
        points[ok], sight.xy_px[view][ok], k, None,
        flags=cv2.SOLVEPNP_SQPNP, reprojectionError=error * k[0, 0], iterationsCount=200,
    )  # fmt: skip
    if not done or inside is None or len(inside) < _MIN_POINTS:
        return None
    return np.asarray(cv2.Rodrigues(rotation)[0], np.float64), np.asarray(t, np.float64)[:, 0]


def find_cameras(rig: Rig, sight: Sight, size: BodySize, focal: FocalPrior) -> Bundle | None:
    """Estimate poses and focal lengths of all cameras, in the first one's frame.

    rig: names, picture sizes and rough intrinsics; its poses are ignored. Pairs of views, those that share
    most points first, start rigs, to which the others are added; the best one is adjusted over all frames.
    None where the views are not connected.
    """
    few = sight.frames(_spread_frames(sight, _START_FRAMES))
    seen = few.seen.reshape(len(rig), -1).astype(int)
    shared = seen @ seen.T
    pairs = sorted(combinations(range(len(rig)), 2), key=lambda p: (-shared[p], p))
    best: Bundle | None = None
    for a, b in pairs[:_START_PAIRS]:
        bundle = _grow(rig, few, size, focal, a, b)
        if bundle and best and abs(bundle.cost / best.cost - 1) < _SAME_COST_SHARE:
            break  # two starts came to the same rig
        if bundle and (best is None or bundle.cost < best.cost):
            best = bundle
    if best is None:
        return None
    return _try_adjust(best.rig, sight, size, focal, ROBUST[-1:]) or best


def _spread_frames(sight: Sight, count: int) -> NDArray[np.int64]:
    """At most ``count`` frames with six points in two views, evenly spread."""
    return spread(np.flatnonzero((sight.seen.sum(0) >= 2).sum(1) >= 6), count)


def _grow(rig: Rig, sight: Sight, size: BodySize, focal: FocalPrior, a: int, b: int) -> Bundle | None:
    """Grow a rig of all views from a pair."""
    order, bundle = [a, b], _adjust_pair(rig, sight, size, focal, a, b)
    if bundle is None:
        return None
    while len(order) < len(rig):
        poses = {v: _resect(rig, sight, v, bundle.points) for v in range(len(rig)) if v not in order}
        resected = {v: pose for v, pose in poses.items() if pose is not None}
        if not resected:
            return None
        for v, (r, t) in resected.items():
            order.append(v)
            added = replace(rig.select([rig.names[v]]), R=r[None], t=t[None])
            bundle = replace(bundle, rig=Rig.joined([bundle.rig, added]))
        robust = ROBUST if len(order) == len(rig) else ROBUST[:2]
        grown = _try_adjust(bundle.rig, sight.views(order), size, focal.views(order), robust)
        if grown is None:
            return None
        bundle = grown
    # To the world of the first camera.
    placed = bundle.rig.select(rig.names)
    r = placed.R @ placed.R[0].T
    return replace(
        bundle,
        rig=replace(placed, R=r, t=placed.t - np.einsum("vij,j->vi", r, placed.t[0])),
        residual_px=bundle.residual_px[np.argsort(order)],
        points=bundle.points @ placed.R[0].T + placed.t[0],
    )


def match_candidates(sights: Sequence[Sequence[Sight]], rig: Rig) -> list[int]:
    """Choose the candidate of each view that is the same person: (V,) indices.

    sights: the candidates of each view, each with one view (1, T, K, ...), the best visible first. Two
    candidates agree by the points that fit one epipolar geometry, weighted by their size. Greedy: the best
    pair, then, view by view, the candidate that agrees best with the chosen ones.
    """
    if all(len(candidates) == 1 for candidates in sights):
        return [0] * len(sights)
    weights = [_size_weight(candidates) for candidates in sights]
    agree: dict[tuple[int, int, int, int], float] = {}
    for a, b in combinations(range(len(sights)), 2):
        pair = rig.select([rig.names[a], rig.names[b]])
        for i, one in enumerate(sights[a]):
            for j, two in enumerate(sights[b]):
                xy_px = np.concatenate([one.xy_px, two.xy_px])
                both = Sight(xy_px, np.concatenate([one.confidence, two.confidence]))
                score = _epipolar_score(pair, both) * float(weights[a][i] * weights[b][j])
                agree[a, i, b, j] = agree[b, j, a, i] = score
    a, i, b, j = max(agree, key=lambda key: agree[key])
    chosen = {a: i, b: j}
    while len(chosen) < len(sights):
        rest = [(v, k) for v, some in enumerate(sights) if v not in chosen for k in range(len(some))]
        v, k = max(rest, key=lambda r: sum(agree[(*r, *other)] for other in chosen.items()))
        chosen[v] = k
    return [chosen[v] for v in range(len(sights))]


def _size_weight(candidates: Sequence[Sight]) -> Array:
    """Square root of each candidate's height over the largest."""
    heights = np.nan_to_num([_height_px(c, 0) for c in candidates])
    return np.asarray(np.sqrt(heights / max(*heights, 1e-9)))


def _epipolar_score(pair: Rig, both: Sight) -> float:
    """Number of inliers of an epipolar geometry of two views, times their share."""
    few = both.frames(_spread_frames(both, _START_FRAMES))
    seen = few.seen.all(0)
    points = (_normalise(pair, v, few.xy_px[v][seen]) for v in range(2))
    pose = pair_pose(*points, error=_epipolar_error(pair, few))
    return 0.0 if pose is None else float(pose[2].sum() ** 2 / len(pose[2]))


def rotation_between_halves(
    bundle: Bundle, sight: Sight, size: BodySize, focal: FocalPrior
) -> tuple[Array, float]:
    """Rotation of each camera between separate fits of the first and the second half of the frames.

    Returns degrees (V,), relative to the first camera, and the mean cost of the halves, which is well below
    that of the bundle only where a camera moved.
    """
    useful = _spread_frames(sight, len(sight.confidence[0]))
    fixed = FocalPrior(np.log(bundle.rig.K[:, 0, 0]), 1e-8 * np.eye(len(bundle.rig)))
    halves = []
    for at in np.array_split(useful, 2):
        half = _try_adjust(bundle.rig, sight.frames(at), size, fixed, ROBUST[-2:])
        if half is None:
            return np.zeros(len(bundle.rig)), bundle.cost
        halves.append(half)
    one, two = (h.rig.R for h in halves)
    turn = roma.rotmat_geodesic_distance(torch.from_numpy(one), torch.from_numpy(two))
    return np.degrees(turn.numpy()), (halves[0].cost + halves[1].cost) / 2
