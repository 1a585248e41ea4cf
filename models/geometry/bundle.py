"""Bundle adjustment of cameras and a person.

Unknowns: poses and focal lengths of the cameras, the person's points, and bone lengths. Constant bone lengths
with a prior over people give the scale, separate focal length from distance, and constrain what weak
perspective leaves free. Levenberg–Marquardt with the points eliminated (Triggs et al., Bundle Adjustment: A
Modern Synthesis, 2000).

Axes: V views, T frames, K keypoints, L bone lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.geometry.association import finite_median
from models.geometry.triangulation import triangulate
from pipeline.array_types import Array, Ints
from pipeline.cameras import Rig
from pipeline.skeleton import BODY_25

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
"""Pairs of keypoints at a constant distance; left and right share one length."""
ENDS = np.array([(BODY_25.index(a), BODY_25.index(b), k) for k, pairs in enumerate(BONES) for a, b in pairs])
"""(bones, 3): two keypoints and the index of their length."""
_KEYPOINT_SIGMA_M = 0.012
"""Standard deviation of a keypoint of confidence 1, at the person."""
_FRAME_LENGTH_SIGMA_M = 0.02
"""Standard deviation of a bone's length from frame to frame, by the detector's errors."""
_LENGTH_SIGMA_M = 0.015
"""Standard deviation of a bone's length, as detectors and bodies define points differently."""
_SHARED_LOG_FOCAL_SIGMA = 0.3
"""Standard deviation of the log of the cameras' common focal length."""
_OWN_LOG_FOCAL_SIGMA = 0.03
"""Standard deviation of a camera's log focal length from the common one: cameras are mostly of one make."""
_MIN_DEPTH_M = 0.2
"""Least depth of a visible point."""
ROBUST = (12.0, 6.0, 3.0)
"""Geman–McClure scales of the annealing stages, standard deviations."""


@dataclass(frozen=True)
class BodySize:
    """Gaussian prior of people's bone lengths in the order of ``BONES``, log metres."""

    mean: Array
    """(L,)"""
    covariance: Array
    """(L, L)"""

    @staticmethod
    def of(rest: Array, dirs: Array) -> BodySize:
        """Prior of bodies with rest keypoints ``rest`` (K, 3) + ``dirs`` (K, 3, B) · betas, of unit normal
        betas."""
        pairs = np.array([(BODY_25.index(a), BODY_25.index(b)) for (a, b), *_ in BONES])
        bone = rest[pairs[:, 0]] - rest[pairs[:, 1]]
        length = np.linalg.norm(bone, axis=1)
        jacobian = np.einsum("li,lib->lb", bone, dirs[pairs[:, 0]] - dirs[pairs[:, 1]]) / length[:, None] ** 2
        return BodySize(np.log(length), jacobian @ jacobian.T + np.diag((_LENGTH_SIGMA_M / length) ** 2))


@dataclass(frozen=True)
class Sight:
    """Detections of one person in all views, undistorted."""

    xy_px: Array
    """(V, T, K, 2) pixels; ignored where not seen"""
    confidence: Array
    """(V, T, K), 0 where not seen"""

    @property
    def seen(self) -> NDArray[np.bool_]:
        """(V, T, K)"""
        return np.asarray((self.confidence > 0) & np.isfinite(self.xy_px).all(-1))

    def frames(self, at: Ints | slice) -> Sight:
        return Sight(self.xy_px[:, at], self.confidence[:, at])

    def views(self, index: list[int]) -> Sight:
        return Sight(self.xy_px[index], self.confidence[index])


@dataclass(frozen=True)
class Bundle:
    """Adjusted cameras, and the person in their world."""

    rig: Rig
    points: Array
    """(T, K, 3) metres; NaN where fewer than two views show the point"""
    cost: float
    """Robust energy per observed point, comparable between starts"""
    residual_px: Array
    """(V,) median reprojection error of each view"""


def bone_lengths(points: Array) -> Array:
    """Bone lengths (T, bones) of points (T, K, 3), in the order of ``ENDS``; NaN where an end is missing."""
    return np.asarray(np.linalg.norm(points[:, ENDS[:, 0]] - points[:, ENDS[:, 1]], axis=-1))


@dataclass(frozen=True)
class FocalPrior:
    """Gaussian prior of the cameras' focal lengths, log pixels."""

    mean: Array
    """(V,)"""
    covariance: Array
    """(V, V)"""

    @staticmethod
    def of(rig: Rig, stated: Sequence[bool]) -> FocalPrior:
        """Prior with the rig's focal lengths: fixed where stated, correlated where assumed."""
        free = ~np.array(stated)
        return FocalPrior(
            np.log(rig.K[:, 0, 0]),
            np.where(np.outer(free, free), _SHARED_LOG_FOCAL_SIGMA**2, 0)
            + np.diag(np.where(free, _OWN_LOG_FOCAL_SIGMA, 1e-4) ** 2),
        )

    def views(self, index: list[int]) -> FocalPrior:
        return FocalPrior(self.mean[index], self.covariance[np.ix_(index, index)])


@dataclass(frozen=True)
class _Unknowns:
    R: Array  # (V, 3, 3)
    t: Array  # (V, 3)
    log_f: Array  # (V,)
    points: Array  # (T, K, 3)
    lengths: Array  # (L,) log metres: a bone term in metres would shrink the world


class _Adjustment:
    """Levenberg–Marquardt of one bundle, with the points of each frame eliminated together."""

    def __init__(self, rig: Rig, sight: Sight, points: Array, size: BodySize, focal: FocalPrior) -> None:
        views, frames, count = sight.confidence.shape
        self.rig, self.size, self.shape = rig, size, (views, frames, count)
        self.has_point = np.asarray(np.isfinite(points).all(-1))
        seen = sight.seen & self.has_point
        self.confidence_sq = np.where(seen, sight.confidence, 0) ** 2
        self.target = np.where(seen[..., None], sight.xy_px - rig.K[:, None, None, :2, 2], 0)
        self.log_f = focal.mean
        self.focal_precision = np.linalg.inv(focal.covariance)
        self.length_precision = np.linalg.inv(size.covariance)
        self.rigid = _FRAME_LENGTH_SIGMA_M / np.exp(size.mean)[ENDS[:, 2]]
        self.bone = self.has_point[:, ENDS[:, 0]] & self.has_point[:, ENDS[:, 1]]
        # A keypoint's error is constant in metres, so less in pixels far away.
        depth = rig.to_camera(np.where(self.has_point[..., None], points, 0))[..., 2]
        usable = seen & (depth > _MIN_DEPTH_M)
        distance = finite_median(np.where(usable, depth, np.nan).reshape(views, -1))
        focal_px = rig.K[:, [0, 1], [0, 1]].mean(1)
        self.sigma_px = np.maximum(_KEYPOINT_SIGMA_M * focal_px / np.nan_to_num(distance, nan=1.0), 1.0)
        # 7 unknowns a camera, and the lengths; the first camera's pose is fixed.
        self.free = np.ones(7 * views + len(size.mean), dtype=bool)
        self.free[:6] = False

    def _residuals(self, x: _Unknowns) -> tuple[Array, Array, Array, Array]:
        """Points in each camera (V, T, K, 3), intrinsics (V, 2, 2), and residuals of points (V, T, K, 2) and
        of bones (T, bones), standard deviations."""
        cam = np.einsum("vij,tkj->vtki", x.R, x.points) + x.t[:, None, None]
        k = _with_focal(self.rig, x.log_f)[:, :2, :2]
        z = np.where(cam[..., 2] > _MIN_DEPTH_M, cam[..., 2], np.inf)
        flat = cam[..., :2] / z[..., None]
        residual = np.einsum("vij,vtkj->vtki", k, flat) - self.target
        residual = residual / self.sigma_px[:, None, None, None]
        length = np.maximum(bone_lengths(x.points), 1e-4)
        bone = np.where(self.bone, np.log(length) - x.lengths[ENDS[:, 2]], 0) / self.rigid
        return cam, k, residual, bone

    def energy(self, x: _Unknowns, g: float) -> tuple[float, float]:
        """Total energy, and that of the pictures alone."""
        _, _, residual, bone = self._residuals(x)
        u2 = (residual**2).sum(-1)
        picture = (self.confidence_sq * g * g * u2 / (g * g + u2)).sum()
        b2 = bone**2
        size, focal = x.lengths - self.size.mean, x.log_f - self.log_f
        rest = (g * g * b2 / (g * g + b2)).sum() + size @ self.length_precision @ size
        return float(picture + rest + focal @ self.focal_precision @ focal), float(picture)

    def _linearise(self, x: _Unknowns, g: float) -> tuple[Array, Array, Array, Array, Array]:
        """Gauss–Newton blocks U (T, 3K, 3K) of the points, W (T, 3K, C), V (C, C) of the cameras, and
        gradients of points (T, 3K) and cameras (C,)."""
        views, frames, count = self.shape
        cam, k, residual, bone = self._residuals(x)
        u2 = (residual**2).sum(-1)
        weight = self.confidence_sq * (g * g / (g * g + u2)) ** 2
        front = cam[..., 2] > _MIN_DEPTH_M
        inverse_z = np.where(front, 1 / np.where(front, cam[..., 2], 1), 0)
        flat = cam[..., :2] * inverse_z[..., None]
        to_flat = np.zeros((*cam.shape[:-1], 2, 3))
        to_flat[..., 0, 0] = to_flat[..., 1, 1] = inverse_z
        to_flat[..., 2] = -flat * inverse_z[..., None]
        scaled_k = k / self.sigma_px[:, None, None]
        to_px = np.einsum("vij,vtkjl->vtkil", scaled_k, to_flat)
        by_point = np.einsum("vtkij,vjl->vtkil", to_px, x.R)
        arm = cam - x.t[:, None, None]
        by_camera = np.empty((*cam.shape[:-1], 2, 7))
        # ∂(Exp(δ) R p)/∂δ = −[R p]×
        by_camera[..., :3] = np.cross(arm[..., None, :], to_px)
        by_camera[..., 3:6] = to_px
        by_camera[..., 6] = np.einsum("vij,vtkj->vtki", scaled_k, flat)
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
        g_point = np.einsum("vtkij,vtki->tkj", w_point, residual)
        g_camera = np.zeros(total)
        g_camera[:camera_size] = np.einsum("vtkij,vtki->vj", w_camera, residual).ravel()

        focal = np.arange(views) * 7 + 6
        c[np.ix_(focal, focal)] += self.focal_precision
        g_camera[focal] += self.focal_precision @ (x.log_f - self.log_f)
        c[camera_size:, camera_size:] += self.length_precision
        g_camera[camera_size:] += self.length_precision @ (x.lengths - self.size.mean)

        w_bone = np.where(self.bone, (g * g / (g * g + bone**2)) ** 2, 0)
        for n, (a, b, length) in enumerate(ENDS):
            along = x.points[:, a] - x.points[:, b]
            gradient = along / np.maximum((along**2).sum(-1, keepdims=True), 1e-8) / self.rigid[n]
            weighted = w_bone[:, n, None] * gradient
            outer = weighted[:, :, None] * gradient[:, None]
            error = bone[:, n, None]
            for one, other in ((a, b), (b, a)):
                u[:, one, :, one] += outer
                u[:, one, :, other] -= outer
            g_point[:, a] += weighted * error
            g_point[:, b] -= weighted * error
            at = camera_size + length
            w[:, a, :, at] -= weighted / self.rigid[n]
            w[:, b, :, at] += weighted / self.rigid[n]
            c[at, at] += w_bone[:, n].sum() / self.rigid[n] ** 2
            g_camera[at] -= (w_bone[:, n] * bone[:, n]).sum() / self.rigid[n]
        blocks = u.reshape(frames, 3 * count, 3 * count)
        return blocks, w.reshape(frames, 3 * count, total), c, g_point.reshape(frames, -1), g_camera

    def _step(self, system: tuple[Array, Array, Array, Array, Array], damping: float) -> tuple[Array, Array]:
        """Damped Gauss–Newton step of the points (T, K, 3) and of the cameras (C,)."""
        u, w, c, g_point, g_camera = system
        diagonal = np.einsum("tii->ti", u)
        u = u.copy()
        # 1e-9 keeps the blocks of unobserved points regular.
        np.einsum("tii->ti", u)[...] += damping * diagonal + 1e-9
        w, c, g_camera = w[..., self.free], c[np.ix_(self.free, self.free)], g_camera[self.free]
        solved = np.linalg.solve(u, np.concatenate([w, g_point[..., None]], -1))
        c = c + damping * np.diag(np.diag(c))
        wt = w.transpose(0, 2, 1)
        schur = c - (wt @ solved[..., :-1]).sum(0)
        step = np.zeros(len(self.free))
        step[self.free] = -np.linalg.solve(schur, g_camera - (wt @ solved[..., -1:])[..., 0].sum(0))
        points = -solved[..., -1] - solved[..., :-1] @ step[self.free]
        return points.reshape(len(points), -1, 3), step

    def _retract(self, x: _Unknowns, points: Array, step: Array) -> _Unknowns:
        views = self.shape[0]
        camera = step[: 7 * views].reshape(views, 7)
        return _Unknowns(
            roma.rotvec_to_rotmat(torch.from_numpy(camera[:, :3])).numpy() @ x.R,
            x.t + camera[:, 3:6],
            x.log_f + camera[:, 6],
            x.points + points,
            x.lengths + step[7 * views :],
        )

    def minimise(
        self, x: _Unknowns, g: float, max_iterations: int = 25, tolerance: float = 1e-4
    ) -> _Unknowns:
        """Unknowns of least energy at a robust scale."""
        damping, energy = 1e-3, self.energy(x, g)[0]
        system = self._linearise(x, g)
        for _ in range(max_iterations):
            new = self._retract(x, *self._step(system, damping))
            new_energy = self.energy(new, g)[0]
            if new_energy < energy:
                gain, x, energy, damping = 1 - new_energy / energy, new, new_energy, damping / 5
                if gain < tolerance:
                    break
                system = self._linearise(x, g)
            elif damping > 1e6:
                break
            else:
                damping *= 8
        return x


def _with_focal(rig: Rig, log_f: Array) -> Array:
    """Intrinsics (V, 3, 3) of a rig with other focal lengths (V,), log pixels."""
    k = rig.K.copy()
    k[:, :2, :2] *= (np.exp(log_f) / k[:, 0, 0])[:, None, None]
    return k


def adjust(
    rig: Rig, sight: Sight, size: BodySize, focal: FocalPrior, robust: Sequence[float] = ROBUST
) -> Bundle:
    """Adjust poses, focal lengths, points and bone lengths from a rough rig.

    The first camera keeps its pose. Points are triangulated again at every robust scale. Raises
    ``np.linalg.LinAlgError`` where no two views share a point.
    """
    lengths = size.mean
    for g in robust:
        points = triangulate(rig, sight.xy_px, sight.confidence).points
        problem = _Adjustment(rig, sight, points, size, focal)
        start = np.where(problem.has_point[..., None], points, 0)
        x = problem.minimise(_Unknowns(rig.R, rig.t, np.log(rig.K[:, 0, 0]), start, lengths), g)
        rig, lengths = replace(rig, K=_with_focal(rig, x.log_f), R=x.R, t=x.t), x.lengths
    picture_energy = problem.energy(x, robust[-1])[1]
    residual_px = triangulate(rig, sight.xy_px, sight.confidence).residual_px
    return Bundle(
        rig,
        np.where(problem.has_point[..., None], x.points, np.nan),
        picture_energy / max(float(problem.confidence_sq.sum()), 1e-9),
        finite_median(residual_px.reshape(len(rig), -1)),
    )
