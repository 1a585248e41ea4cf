"""Cameras from a person: poses and focal lengths of fixed cameras that see the same person move.

No calibration object and no body fit: points of a body are the object. Two views give an essential matrix
(Hartley and Zisserman, Multiple View Geometry, 11.7), the other views are added to it by what is known then,
and a bundle adjustment follows, in which bones keep their length, and are about as long as people's.
That gives the scale, tells focal length from distance, and holds what weak perspective leaves open.

Axes: V views, T frames, K keypoints, L bone lengths. World = the first view's camera, until ``upright``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from models.geometry.triangulation import triangulate
from pipeline.cameras import Array, Rig
from pipeline.joints import BODY_25
from pipeline.timeline import spread

BONES: Final = (
    (("LShoulder", "LElbow"), ("RShoulder", "RElbow")),
    (("LElbow", "LWrist"), ("RElbow", "RWrist")),
    (("LHip", "LKnee"), ("RHip", "RKnee")),
    (("LKnee", "LAnkle"), ("RKnee", "RAnkle")),
    (("LHeel", "LBigToe"), ("RHeel", "RBigToe")),
    (("LShoulder", "RShoulder"),),
    (("LHip", "RHip"),),
    (("LEar", "REar"),),
)  # fmt: skip
"""Keypoints that stay as far apart as they are, left and right alike: one length each."""

_ENDS = np.array([(BODY_25.index(a), BODY_25.index(b), k) for k, pairs in enumerate(BONES) for a, b in pairs])
"""(bones, 3): two keypoints and the number of their length."""

_DETECTOR_M = 0.012
"""Standard deviation of a keypoint of confidence 1, metres at the person."""
_RIGID_M = 0.02
"""Of a usual bone's length from frame to frame, metres: detectors do not find the same spot on it twice."""
_DEFINED_M = 0.015
"""Of a bone's length, metres: detectors do not mean quite the same points as a body does."""
_FOCAL = 0.3
"""Of the common focal length of all cameras from what was assumed, as a logarithm ..."""
_OWN_FOCAL = 0.03
"""... and of each camera's from the common one: cameras of one recording are mostly of one make."""
_NEAR_M = 0.2
"""What is nearer to a camera, metres, is not in its picture."""
_TRIED, _PAIRS = 40, 6
"""Frames and pairs of views with which starts are tried, ..."""
_SAME = 0.01
"""... until two of them end as near to each other in cost."""
_LEAST = 30
"""Points that two views must share to tell where they stand."""
_HASTE = 15, 150
"""Frames, and iterations at most, of a pair of views at one lag: there are many."""
_CLEARER = 1.15
"""A lag is believed at which two views agree so many times better than in step."""
_LEAN_DEG, _ASKEW_DEG = 5.0, 3.0
"""How far off ``balance`` may be, and how far from level most cameras are."""
_STEP_M = 0.15
"""A foot that is so much lower than the other carries all."""
_MASS: Final = {
    "Nose": 0.08, "Neck": 0.26, "MidHip": 0.24, "LHip": 0.06, "RHip": 0.06, "LKnee": 0.07, "RKnee": 0.07,
    "LAnkle": 0.03, "RAnkle": 0.03, "LElbow": 0.03, "RElbow": 0.03, "LWrist": 0.02, "RWrist": 0.02,
}  # fmt: skip
"""Shares of the body's mass, put at its keypoints: Winter, Biomechanics and Motor Control, table 4.1."""
_ROBUST = (12.0, 6.0, 3.0)
"""Geman–McClure scales that the bundle adjustment goes through, in standard deviations."""


@dataclass(frozen=True)
class BodySize:
    """Bone lengths of people, in the order of ``BONES``, as logarithms of metres."""

    mean: Array
    """(L,)"""
    covariance: Array
    """(L, L)"""

    @staticmethod
    def of(rest: Array, dirs: Array) -> BodySize:
        """Of a body whose keypoints at rest are ``rest`` (K, 3) + ``dirs`` (K, 3, B) · unit normal betas."""
        pairs = np.array([(BODY_25.index(a), BODY_25.index(b)) for (a, b), *_ in BONES])
        bone = rest[pairs[:, 0]] - rest[pairs[:, 1]]
        length = np.linalg.norm(bone, axis=1)
        slope = np.einsum("li,lib->lb", bone, dirs[pairs[:, 0]] - dirs[pairs[:, 1]]) / length[:, None] ** 2
        return BodySize(np.log(length), slope @ slope.T + np.diag((_DEFINED_M / length) ** 2))


@dataclass(frozen=True)
class Sight:
    """One person as all views show them. Pixels without distortion."""

    xy_px: Array
    """(V, T, K, 2); anything where not seen."""
    confidence: Array
    """(V, T, K); 0 where not seen."""

    @property
    def seen(self) -> NDArray[np.bool_]:
        return np.asarray((self.confidence > 0) & np.isfinite(self.xy_px).all(-1))

    def frames(self, at: NDArray[np.int64] | slice) -> Sight:
        return Sight(self.xy_px[:, at], self.confidence[:, at])


@dataclass(frozen=True)
class Bundle:
    """A rig and the person in its world."""

    rig: Rig
    points: Array
    """(T, K, 3) metres; NaN where fewer than two views show the point."""
    lengths: Array
    """(L,) of the bones, as logarithms of metres."""
    cost: float
    """Half the robust energy a seen point of a view: smaller is better, comparable between starts."""
    residual_px: Array
    """(V,) median distance between point and picture in each view."""


def pair_pose(
    one: Array, two: Array, *, error: float, iterations: int = 1000
) -> tuple[Array, Array, NDArray[np.bool_]] | None:
    """Pose of a second camera from normalised image points (N, 2) of the same things in both.

    error: how far a point may lie from its epipolar line, in the unit of the points. Returns R (3, 3) and the
    unit t (3,) of x₂ = R x₁ + t, and which points agree (N,); None where there is no such pose.
    """
    if len(one) < _LEAST:
        return None
    cv2.setRNGSeed(0)
    essential, agree = cv2.findEssentialMat(
        np.ascontiguousarray(one), np.ascontiguousarray(two), np.eye(3), cv2.RANSAC, 0.9999, error, iterations
    )
    if essential is None or essential.shape != (3, 3):
        return None
    inside = agree[:, 0] > 0
    _, r, t, _ = cv2.recoverPose(essential, one[inside], two[inside], np.eye(3))
    return np.asarray(r, np.float64), np.asarray(t, np.float64)[:, 0], inside


def normalised(rig: Rig, view: int, xy_px: Array) -> Array:
    """Pixels (..., 2) without distortion → x/z, y/z in the camera's frame."""
    homogeneous = np.concatenate([xy_px, np.ones_like(xy_px[..., :1])], -1)
    return np.asarray((homogeneous @ np.linalg.inv(rig.K[view]).T)[..., :2])


def bone_lengths(points: Array) -> Array:
    """(T, K, 3) → (T, bones) metres, in the order of ``_ENDS``; NaN where an end is missing."""
    return np.asarray(np.linalg.norm(points[:, _ENDS[:, 0]] - points[:, _ENDS[:, 1]], axis=-1))


def scaled_to(points: Array, size: BodySize) -> float:
    """What the lengths of points (T, K, 3) must be multiplied by to be those of a person; NaN if unseen."""
    with np.errstate(invalid="ignore"):
        ratio = np.exp(size.mean)[_ENDS[:, 2]] / bone_lengths(points)
    ratio = ratio[np.isfinite(ratio)]
    return float(np.median(ratio)) if ratio.size else float("nan")


def handedness(points: Array) -> float:
    """Share of the frames of points (T, K, 3) whose left is on the left, −1 to 1: −1 is a mirrored body."""

    def at(name: str) -> Array:
        return np.asarray(points[:, BODY_25.index(name)])

    left = at("LShoulder") - at("RShoulder")
    ahead = np.cross(left, at("Neck") - at("MidHip"))
    votes = [(ahead * (at("Nose") - (at("LEar") + at("REar")) / 2)).sum(-1)]
    votes += [(ahead * (at(f"{s}BigToe") - at(f"{s}Heel"))).sum(-1) for s in "LR"]
    known = np.sign(np.concatenate(votes))
    known = known[np.isfinite(known)]
    return float(known.mean()) if known.size else 0.0


@dataclass(frozen=True)
class FocalPrior:
    """What is known of the cameras' focal lengths, as logarithms of pixels."""

    mean: Array
    """(V,)"""
    covariance: Array
    """(V, V)"""

    @staticmethod
    def of(rig: Rig, stated: Sequence[bool]) -> FocalPrior:
        """Cameras whose focal length is stated keep the rig's; the others', assumed, are all off alike."""
        free = ~np.array(stated)
        return FocalPrior(
            np.log(rig.K[:, 0, 0]),
            np.where(np.outer(free, free), _FOCAL**2, 0) + np.diag(np.where(free, _OWN_FOCAL, 1e-4) ** 2),
        )


@dataclass(frozen=True)
class _Unknowns:
    R: Array  # (V, 3, 3)
    t: Array  # (V, 3)
    log_f: Array  # (V,)
    points: Array  # (T, K, 3)
    lengths: Array  # (L,) as logarithms: a bone term in metres would shrink the world


class _Adjustment:
    """One bundle adjustment: Levenberg–Marquardt, the points of a frame eliminated together."""

    def __init__(self, rig: Rig, sight: Sight, points: Array, size: BodySize, focal: FocalPrior) -> None:
        views, frames, count = sight.confidence.shape
        self.rig, self.size, self.shape = rig, size, (views, frames, count)
        self.there = np.asarray(np.isfinite(points).all(-1))
        seen = sight.seen & self.there
        self.trust = np.where(seen, sight.confidence, 0) ** 2
        self.target = np.where(seen[..., None], sight.xy_px - rig.K[:, None, None, :2, 2], 0)
        self.log_f = focal.mean
        self.focal_precision = np.linalg.inv(focal.covariance)
        self.length_precision = np.linalg.inv(size.covariance)
        self.rigid = _RIGID_M / np.exp(size.mean)[_ENDS[:, 2]]
        self.bone = self.there[:, _ENDS[:, 0]] & self.there[:, _ENDS[:, 1]]
        # A keypoint errs by so many metres at the person, so by fewer pixels far away.
        depth = rig.to_camera(np.where(self.there[..., None], points, 0))[..., 2]
        usable = seen & (depth > _NEAR_M)
        away = np.array([np.median(d[ok]) if ok.any() else 1.0 for d, ok in zip(depth, usable, strict=True)])
        self.sigma_px = np.maximum(_DETECTOR_M * rig.K[:, [0, 1], [0, 1]].mean(1) / away, 1.0)
        # Unknown are 7 numbers a camera and the lengths; the first camera does not move.
        self.free = np.ones(7 * views + len(size.mean), dtype=bool)
        self.free[:6] = False

    def _look(self, x: _Unknowns) -> tuple[Array, Array, Array, Array]:
        """In each camera (V, T, K, 3), 2 × 2 intrinsics, misses in standard deviations, and bones' misses."""
        cam = np.einsum("vij,tkj->vtki", x.R, x.points) + x.t[:, None, None]
        k = self.rig.K[:, :2, :2] * (np.exp(x.log_f) / self.rig.K[:, 0, 0])[:, None, None]
        z = np.where(cam[..., 2] > _NEAR_M, cam[..., 2], np.inf)
        flat = cam[..., :2] / z[..., None]
        miss = np.einsum("vij,vtkj->vtki", k, flat) - self.target
        miss = miss / self.sigma_px[:, None, None, None]
        length = np.maximum(bone_lengths(x.points), 1e-4)
        bone = np.where(self.bone, np.log(length) - x.lengths[_ENDS[:, 2]], 0) / self.rigid
        return cam, k, miss, bone

    def energy(self, x: _Unknowns, g: float) -> tuple[float, float]:
        """Of everything, and of the picture alone."""
        _, _, miss, bone = self._look(x)
        u2 = (miss**2).sum(-1)
        picture = (self.trust * g * g * u2 / (g * g + u2)).sum()
        b2 = bone**2
        off, focal = x.lengths - self.size.mean, x.log_f - self.log_f
        rest = (g * g * b2 / (g * g + b2)).sum() + off @ self.length_precision @ off
        return float(picture + rest + focal @ self.focal_precision @ focal), float(picture)

    def _linearise(self, x: _Unknowns, g: float) -> tuple[Array, Array, Array, Array, Array]:
        """U (T, 3K, 3K), W (T, 3K, C), V (C, C) and the gradients of points (T, 3K) and cameras (C,)."""
        views, frames, count = self.shape
        cam, k, miss, bone = self._look(x)
        u2 = (miss**2).sum(-1)
        weight = self.trust * (g * g / (g * g + u2)) ** 2
        front = cam[..., 2] > _NEAR_M
        iz = np.where(front, 1 / np.where(front, cam[..., 2], 1), 0)
        flat = cam[..., :2] * iz[..., None]
        to_flat = np.zeros((*cam.shape[:-1], 2, 3))
        to_flat[..., 0, 0] = to_flat[..., 1, 1] = iz
        to_flat[..., 2] = -flat * iz[..., None]
        to_px = np.einsum("vij,vtkjl->vtkil", k / self.sigma_px[:, None, None], to_flat)
        by_point = np.einsum("vtkij,vjl->vtkil", to_px, x.R)
        arm = cam - x.t[:, None, None]
        by_camera = np.empty((*cam.shape[:-1], 2, 7))
        # ∂(Exp(δ) R p)/∂δ = −[R p]×
        by_camera[..., :3] = np.cross(arm[..., None, :], to_px)
        by_camera[..., 3:6] = to_px
        by_camera[..., 6] = np.einsum("vij,vtkj->vtki", k / self.sigma_px[:, None, None], flat)
        w_point, w_camera = weight[..., None, None] * by_point, weight[..., None, None] * by_camera

        camera_size, total = 7 * views, 7 * views + len(x.lengths)
        u = np.zeros((frames, count, 3, count, 3))
        i = np.arange(count)
        u[:, i, :, i] = np.einsum("vtkij,vtkil->ktjl", w_point, by_point)
        w = np.zeros((frames, count, 3, total))
        w[..., :camera_size] = np.einsum("vtkij,vtkil->tkjvl", w_point, by_camera).reshape(
            frames, count, 3, camera_size
        )
        c = np.zeros((total, total))
        for v in range(views):
            at = slice(7 * v, 7 * v + 7)
            c[at, at] = np.einsum("tkij,tkil->jl", w_camera[v], by_camera[v])
        g_point = np.einsum("vtkij,vtki->tkj", w_point, miss)
        g_camera = np.zeros(total)
        g_camera[:camera_size] = np.einsum("vtkij,vtki->vj", w_camera, miss).ravel()

        focal = np.arange(views) * 7 + 6
        c[np.ix_(focal, focal)] += self.focal_precision
        g_camera[focal] += self.focal_precision @ (x.log_f - self.log_f)
        c[camera_size:, camera_size:] += self.length_precision
        g_camera[camera_size:] += self.length_precision @ (x.lengths - self.size.mean)

        w_bone = np.where(self.bone, (g * g / (g * g + bone**2)) ** 2, 0)
        for n, (a, b, length) in enumerate(_ENDS):
            along = x.points[:, a] - x.points[:, b]
            slope = along / np.maximum((along**2).sum(-1, keepdims=True), 1e-8) / self.rigid[n]
            pull = w_bone[:, n, None] * slope
            outer = pull[:, :, None] * slope[:, None]
            error = bone[:, n, None]
            for one, other in ((a, b), (b, a)):
                u[:, one, :, one] += outer
                u[:, one, :, other] -= outer
            g_point[:, a] += pull * error
            g_point[:, b] -= pull * error
            at = camera_size + length
            w[:, a, :, at] -= pull / self.rigid[n]
            w[:, b, :, at] += pull / self.rigid[n]
            c[at, at] += w_bone[:, n].sum() / self.rigid[n] ** 2
            g_camera[at] -= (w_bone[:, n] * bone[:, n]).sum() / self.rigid[n]
        blocks = u.reshape(frames, 3 * count, 3 * count)
        return blocks, w.reshape(frames, 3 * count, total), c, g_point.reshape(frames, -1), g_camera

    def _step(self, system: tuple[Array, Array, Array, Array, Array], damping: float) -> tuple[Array, Array]:
        u, w, c, g_point, g_camera = system
        diagonal = np.einsum("tii->ti", u)
        gone = diagonal <= 0
        u = u.copy()
        np.einsum("tii->ti", u)[...] += damping * diagonal + np.where(gone, 1.0, 1e-9)
        w, c, g_camera = w[..., self.free], c[np.ix_(self.free, self.free)], g_camera[self.free]
        solved = np.linalg.solve(u, np.concatenate([w, g_point[..., None]], -1))
        c = c + damping * np.diag(np.diag(c))
        wt = w.transpose(0, 2, 1)
        schur = c - (wt @ solved[..., :-1]).sum(0)
        step = np.zeros(len(self.free))
        step[self.free] = -np.linalg.solve(schur, g_camera - (wt @ solved[..., -1:])[..., 0].sum(0))
        points = -solved[..., -1] - solved[..., :-1] @ step[self.free]
        return points.reshape(len(points), -1, 3), step

    def _moved(self, x: _Unknowns, points: Array, step: Array) -> _Unknowns:
        views = self.shape[0]
        camera = step[: 7 * views].reshape(views, 7)
        return _Unknowns(
            np.asarray(Rotation.from_rotvec(camera[:, :3]).as_matrix()) @ x.R,
            x.t + camera[:, 3:6],
            x.log_f + camera[:, 6],
            x.points + points,
            x.lengths + step[7 * views :],
        )

    def run(self, x: _Unknowns, g: float, most: int = 25, tolerance: float = 1e-4) -> _Unknowns:
        damping, energy = 1e-3, self.energy(x, g)[0]
        system = self._linearise(x, g)
        for _ in range(most):
            new = self._moved(x, *self._step(system, damping))
            then = self.energy(new, g)[0]
            if then < energy:
                gain, x, energy, damping = 1 - then / energy, new, then, damping / 5
                if gain < tolerance:
                    break
                system = self._linearise(x, g)
            elif damping > 1e6:
                break
            else:
                damping *= 8
        return x


def adjust(
    rig: Rig, sight: Sight, size: BodySize, focal: FocalPrior, robust: Sequence[float] = _ROBUST
) -> Bundle:
    """Bundle adjustment of poses, focal lengths, points and bone lengths from a rough rig.

    The first camera keeps its pose. Points come from triangulation anew at every robust scale, so that what a
    rough start got wrong is not kept. Raises ``np.linalg.LinAlgError`` where nothing is seen twice.
    """
    lengths = size.mean
    for g in robust:
        points = triangulate(rig, sight.xy_px, sight.confidence).points
        problem = _Adjustment(rig, sight, points, size, focal)
        known = np.where(problem.there[..., None], points, 0)
        x = problem.run(_Unknowns(rig.R, rig.t, np.log(rig.K[:, 0, 0]), known, lengths), g)
        k = rig.K.copy()
        k[:, :2, :2] *= (np.exp(x.log_f) / k[:, 0, 0])[:, None, None]
        rig, lengths = replace(rig, K=k, R=x.R, t=x.t), x.lengths
    picture = problem.energy(x, robust[-1])[1]
    miss = triangulate(rig, sight.xy_px, sight.confidence).residual_px
    return Bundle(
        rig,
        np.where(problem.there[..., None], x.points, np.nan),
        lengths,
        picture / max(float(problem.trust.sum()), 1e-9),
        np.array([np.median(m[np.isfinite(m)]) if np.isfinite(m).any() else np.nan for m in miss]),
    )


def _from_pair(rig: Rig, sight: Sight, size: BodySize, focal: FocalPrior, a: int, b: int) -> Bundle | None:
    """Two views alone, adjusted; the first one's camera is the world. None where they share too little."""
    two = Sight(sight.xy_px[[a, b]], sight.confidence[[a, b]])
    both = two.seen.all(0)
    pair = rig.select([rig.names[a], rig.names[b]])
    pair = replace(pair, R=np.tile(np.eye(3), (2, 1, 1)), t=np.zeros((2, 3)))
    rays = [normalised(pair, v, two.xy_px[v][both]) for v in range(2)]
    found = pair_pose(*rays, error=_pair_error(pair, two))
    if found is None:
        return None
    depth = np.diag([1.0, 1.0, -1.0])
    best: Bundle | None = None
    # Seen from far away, a scene and its mirror image in depth look alike: both are tried.
    for r in (found[0], depth @ found[0] @ depth):
        t = found[1]
        start = replace(pair, R=np.stack([np.eye(3), r]), t=np.stack([np.zeros(3), t]))
        points = triangulate(start, two.xy_px, two.confidence).points
        scale = scaled_to(points, size)
        if not np.isfinite(scale) or handedness(points) < -0.2:
            continue
        bundle = _tried(replace(start, t=start.t * scale), two, size, _part(focal, [a, b]), _ROBUST[:2])
        if bundle and (best is None or bundle.cost < best.cost):
            best = bundle
    return best


def _pair_error(rig: Rig, sight: Sight) -> float:
    """How far a keypoint may lie from its epipolar line, over the focal length: a fortieth of the person."""
    heights = []
    for v in range(len(rig)):
        y = np.where(sight.seen[v], sight.xy_px[v, ..., 1], np.nan)[sight.seen[v].sum(1) > 5]
        if len(y):
            heights.append(np.median(np.nanmax(y, 1) - np.nanmin(y, 1)) / rig.K[v, 1, 1])
    return float(np.mean(heights)) / 100 if heights else 0.005


def _tried(
    rig: Rig, sight: Sight, size: BodySize, focal: FocalPrior, robust: Sequence[float]
) -> Bundle | None:
    """``adjust``, or None where that comes to nothing."""
    try:
        bundle = adjust(rig, sight, size, focal, robust)
    except np.linalg.LinAlgError:
        return None
    return bundle if np.isfinite(bundle.cost) and handedness(bundle.points) > -0.2 else None


def _placed(rig: Rig, sight: Sight, view: int, points: Array) -> tuple[Array, Array] | None:
    """Pose of a view from known points (T, K, 3): perspective-n-point, robustly."""
    ok = sight.seen[view] & np.isfinite(points).all(-1)
    if ok.sum() < _LEAST:
        return None
    k = rig.K[view]
    error = 4 * _pair_error(
        rig.select([rig.names[view]]), Sight(sight.xy_px[[view]], sight.confidence[[view]])
    )
    cv2.setRNGSeed(0)
    done, rotation, t, inside = cv2.solvePnPRansac(
        points[ok], sight.xy_px[view][ok], k, None,
        flags=cv2.SOLVEPNP_SQPNP, reprojectionError=error * k[0, 0], iterationsCount=200,
    )  # fmt: skip
    if not done or inside is None or len(inside) < _LEAST:
        return None
    return np.asarray(cv2.Rodrigues(rotation)[0], np.float64), np.asarray(t, np.float64)[:, 0]


def find_cameras(rig: Rig, sight: Sight, size: BodySize, focal: FocalPrior) -> Bundle | None:
    """Poses and focal lengths of all cameras; the first view's camera is the world.

    rig: names, picture sizes and rough intrinsics; its poses are not looked at. Pairs of views, those first
    that share most, start rigs, to which the others are added from the points known by then; the best one is
    adjusted over all frames. None where the views do not hang together.
    """
    few = sight.frames(_spread(sight, _TRIED))
    seen = few.seen.reshape(len(rig), -1).astype(int)
    shared = seen @ seen.T
    pairs = sorted(combinations(range(len(rig)), 2), key=lambda p: (-shared[p], p))
    best: Bundle | None = None
    for a, b in pairs[:_PAIRS]:
        bundle = _grown(rig, few, size, focal, a, b)
        if bundle and best and abs(bundle.cost / best.cost - 1) < _SAME:
            break  # two starts came to the same rig
        if bundle and (best is None or bundle.cost < best.cost):
            best = bundle
    if best is None:
        return None
    return _tried(best.rig, sight, size, focal, _ROBUST[-1:]) or best


def _spread(sight: Sight, count: int) -> NDArray[np.int64]:
    """At most so many frames in which most is seen twice, spread over all of them."""
    useful = np.flatnonzero((sight.seen.sum(0) >= 2).sum(1) >= 6)
    return spread(useful, count)


def _grown(rig: Rig, sight: Sight, size: BodySize, focal: FocalPrior, a: int, b: int) -> Bundle | None:
    """A rig of all views from one pair of them."""
    pair = _from_pair(rig, sight, size, focal, a, b)
    if pair is None:
        return None
    order, bundle = [a, b], pair
    while len(order) < len(rig):
        poses = {v: _placed(rig, sight, v, bundle.points) for v in range(len(rig)) if v not in order}
        seen = {
            v: int((sight.seen[v] & np.isfinite(bundle.points).all(-1)).sum()) for v, p in poses.items() if p
        }
        if not seen:
            return None
        # All that can be placed by now, at once.
        for v in sorted(seen):
            r, t = poses[v]  # type: ignore[misc]
            order.append(v)
            bundle = replace(
                bundle,
                rig=Rig(
                    tuple(rig.names[i] for i in order),
                    np.concatenate([bundle.rig.K, rig.K[v : v + 1]]),
                    np.concatenate([bundle.rig.dist, rig.dist[v : v + 1]]),
                    np.concatenate([bundle.rig.R, r[None]]),
                    np.concatenate([bundle.rig.t, t[None]]),
                    np.concatenate([bundle.rig.size, rig.size[v : v + 1]]),
                ),
            )
        subset = Sight(sight.xy_px[order], sight.confidence[order])
        last = len(order) == len(rig)
        grown = _tried(bundle.rig, subset, size, _part(focal, order), _ROBUST if last else _ROBUST[:2])
        if grown is None:
            return None
        bundle = grown
    placed = bundle.rig.select(rig.names)
    return replace(
        bundle, rig=_from_first(placed), residual_px=bundle.residual_px[np.argsort(order)],
        points=bundle.points @ placed.R[0].T + placed.t[0],
    )  # fmt: skip


def _part(focal: FocalPrior, views: Sequence[int]) -> FocalPrior:
    views = list(views)
    return FocalPrior(focal.mean[views], focal.covariance[np.ix_(views, views)])


def _from_first(rig: Rig) -> Rig:
    """The same cameras in a world that is the first one's camera."""
    r = rig.R @ rig.R[0].T
    return replace(rig, R=r, t=rig.t - np.einsum("vij,j->vi", r, rig.t[0]))


def same_person(sights: Sequence[Sequence[Sight]], rig: Rig) -> list[int]:
    """Which of the candidates of each view are one person: the first view and the others, (V,) indices.

    sights: of each view its candidates, each with one view (1, T, K, ...), most to see first. Two candidates
    of different views agree where their points lie on epipolar lines of one geometry. The two that agree on
    most come first, then, one by one, whoever agrees best with those that are there. Larger figures count for
    more.
    """
    views = range(len(sights))
    weights = [_importance(candidates) for candidates in sights]
    if all(len(candidates) == 1 for candidates in sights):
        return [0] * len(sights)
    agree: dict[tuple[int, int, int, int], float] = {}
    for a, b in combinations(views, 2):
        pair = rig.select([rig.names[a], rig.names[b]])
        for i, one in enumerate(sights[a]):
            for j, two in enumerate(sights[b]):
                both = Sight(
                    np.concatenate([one.xy_px, two.xy_px]), np.concatenate([one.confidence, two.confidence])
                )
                score = _agreement(pair, both) * float(weights[a][i] * weights[b][j])
                agree[a, i, b, j] = agree[b, j, a, i] = score
    a, i, b, j = max(agree, key=lambda key: agree[key])
    chosen = {a: i, b: j}
    while len(chosen) < len(sights):
        rest = [(v, k) for v in views if v not in chosen for k in range(len(sights[v]))]
        v, k = max(rest, key=lambda r: sum(agree[(*r, *other)] for other in chosen.items()))
        chosen[v] = k
    return [chosen[v] for v in views]


def _importance(candidates: Sequence[Sight]) -> Array:
    """Square root of each one's height × confidence, over the most of all."""
    heights = []
    for c in candidates:
        y = np.where(c.seen[0], c.xy_px[0, ..., 1], np.nan)[c.seen[0].sum(1) > 5]
        tall = np.median(np.nanmax(y, 1) - np.nanmin(y, 1)) if len(y) else 0.0
        heights.append(float(tall))
    return np.sqrt(np.array(heights) / max(*heights, 1e-9))


def _agreement(pair: Rig, both: Sight, *, frames: int = _TRIED, iterations: int = 1000) -> float:
    """How many points of two views lie on epipolar lines of one geometry, times the share that do."""
    few = both.frames(_spread(both, frames))
    seen = few.seen.all(0)
    normal = (normalised(pair, v, few.xy_px[v][seen]) for v in range(2))
    found = pair_pose(*normal, error=_pair_error(pair, few), iterations=iterations)
    return 0.0 if found is None else float(found[2].sum() ** 2 / max(len(found[2]), 1))


def out_of_step(rig: Rig, sight: Sight, most: int) -> dict[int, int]:
    """Views that are late, by so many frames: at t + lag they show what the others show at t.

    Every pair of views at every lag up to ``most``: at the right one, most points lie on epipolar lines of
    one geometry. A view is late of which all others say so, or all but one, to within two frames. With two
    views it is the second one's lag. For views that fit nothing: for a rig, ``check_recording`` tells finer.
    """
    views, frames = len(rig), sight.confidence.shape[1]
    most = min(most, frames // 2)
    lag = np.zeros((views, views))
    for a, b in combinations(range(views), 2):
        pair = rig.select([rig.names[a], rig.names[b]])
        scores = []
        for k in range(-most, most + 1):
            here, there = slice(max(-k, 0), frames - max(k, 0)), slice(max(k, 0), frames + min(k, 0))
            both = Sight(
                np.stack([sight.xy_px[a, here], sight.xy_px[b, there]]),
                np.stack([sight.confidence[a, here], sight.confidence[b, there]]),
            )
            scores.append(_agreement(pair, both, frames=_HASTE[0], iterations=_HASTE[1]))
        best = int(np.argmax(scores))
        if scores[best] > _CLEARER * scores[most]:
            lag[b, a], lag[a, b] = best - most, most - best
    if views == 2:
        return {1: int(lag[1, 0])} if lag[1, 0] else {}
    found = {}
    for v in range(views):
        others = np.delete(lag[v], v)
        usual = round(float(np.median(others)))
        if usual and ((others != 0) & (np.abs(others - usual) <= 2)).sum() >= max(2, views - 2):
            found[v] = usual
    return found


def moved(bundle: Bundle, sight: Sight, size: BodySize, focal: FocalPrior) -> tuple[Array, float]:
    """Whether the cameras stood still: how far each turned from the first half of the frames to the second.

    Degrees (V,), by the first camera, and the cost of the halves over that of the whole: near 1, or a little
    less, where the rig stood still.
    """
    useful = _spread(sight, len(sight.confidence[0]))
    fixed = FocalPrior(np.log(bundle.rig.K[:, 0, 0]), 1e-8 * np.eye(len(bundle.rig)))
    halves = []
    for at in np.array_split(useful, 2):
        half = _tried(bundle.rig, sight.frames(at), size, fixed, _ROBUST[-2:])
        if half is None:
            return np.zeros(len(bundle.rig)), 1.0
        halves.append(half)
    one, two = (h.rig.R for h in halves)
    turn = Rotation.from_matrix(one @ two.transpose(0, 2, 1)).magnitude()
    return np.degrees(turn), (halves[0].cost + halves[1].cost) / 2 / max(bundle.cost, 1e-9)


def balance(points: Array, up: Array) -> Array:
    """Up (3,), from points (T, K, 3) of somebody on foot: a body's mass is above the foot that it stands on.

    Which foot that is depends on what is up, so this takes a few rounds, from a guess ``up``, which is what
    is left where no frame shows enough of the body. Leaning to all sides evens out.
    """
    mass = sum(share * points[:, BODY_25.index(name)] for name, share in _MASS.items())
    feet = []
    for side in "LR":
        foot = points[:, [BODY_25.index(f"{side}{p}") for p in ("Ankle", "Heel", "BigToe")]]
        known = np.isfinite(foot)
        feet.append(np.where(known, foot, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan))
    left, right = feet
    middle = (left + right) / 2
    for _ in range(5):
        lift = np.clip(((left - right) @ up)[:, None] / _STEP_M, -1, 1)
        base = middle + lift * (right - left) / 2
        axis = mass - base
        axis = axis[np.isfinite(axis).all(1)]
        if not len(axis):
            return up
        up = np.median(axis / np.linalg.norm(axis, axis=1, keepdims=True), axis=0)
        up /= np.linalg.norm(up)
    return up


def upright(rig: Rig, points: Array) -> tuple[Rig, Array]:
    """Cameras and a person's points (T, K, 3) in a world that stands upright.

    z is up, y ahead of the first camera, the origin on the floor below the person.

    Up is what ``balance`` says and what is level in the pictures: few cameras are held askew, so those whose
    x axis is nearly level make it exactly so. A guess, good to some degrees.
    """
    overhead = -rig.R[:, 1].mean(0)
    up = body = balance(points, overhead / np.linalg.norm(overhead))
    # From a robust scale at which all cameras count down: ``body`` may be far off.
    for scale in _ASKEW_DEG * np.array([8, 8, 4, 4, 2.5, 2.5, 2.5]):
        askew = np.degrees(np.arcsin(np.clip(rig.R[:, 0] @ up, -1, 1)))
        trust = 1 / (1 + (askew / scale) ** 2) ** 2 / np.radians(_ASKEW_DEG) ** 2
        system = np.einsum("v,vi,vj->ij", trust, rig.R[:, 0], rig.R[:, 0])
        lean = np.eye(3) / np.radians(_LEAN_DEG) ** 2
        up = np.linalg.solve(system + lean, lean @ body)
        up /= np.linalg.norm(up)
    ahead = rig.R[0, 2] - up * (rig.R[0, 2] @ up)
    if np.linalg.norm(ahead) < 0.1:  # it looks down, or up
        ahead = -rig.R[0, 1] - up * (-rig.R[0, 1] @ up)
    ahead /= np.linalg.norm(ahead)
    turn = np.stack([np.cross(ahead, up), ahead, up])
    turned = points @ turn.T
    feet_z = turned[:, [BODY_25.index(f"{s}{p}") for s in "LR" for p in ("Ankle", "Heel", "BigToe")], 2]
    all_z = feet_z if np.isfinite(feet_z).any() else turned[..., 2]
    middle = np.nanmedian(turned.reshape(-1, 3), axis=0)
    origin = np.array([middle[0], middle[1], np.nanpercentile(all_z, 5)])
    r = rig.R @ turn.T
    return replace(rig, R=r, t=rig.t + np.einsum("vij,j->vi", r, origin)), turned - origin
