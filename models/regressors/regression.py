"""SMPL parameters regressed from several views, and the fusion of their roots.

N people in frames, V views, B betas; ``seen`` masks the views that count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import roma
import torch
from torch import Tensor

from models.body import KeypointBody, pelvis_at_rest
from models.rotations import geodesic_degrees, solve_3x3
from pipeline.batches import TensorBatch, axes
from pipeline.skeleton import SMPL_24

ROBUST_DEGREES: Final = 20.0
"""Geman–McClure scale of a view's root orientation: a residual at which the view counts for a quarter."""
_ROBUST_M: Final = 0.3
"""Geman–McClure scale of a view's pelvis position."""
_DEPTH_WEIGHT: Final = 0.01
"""Weight of a view's depth estimate relative to its bearing: ten times the standard deviation."""
_ROBUST_STEPS: Final = 10
"""Re-weighted steps of a robust mean."""


@dataclass(frozen=True, repr=False)
class Regression(TensorBatch):
    """Estimate of a regressor: SMPL parameters of N people in frames, with a root for each of V views.

    Views share body pose and shape. NaN for a person whom no view shows.
    """

    body_pose: Tensor = axes(f"N {len(SMPL_24) - 1} 3 3")
    """Local rotation of every joint but the root relative to its parent."""
    betas: Tensor = axes("N B")
    view_orient: Tensor = axes("N V 3 3")
    """Rotation of the root, body → camera."""
    view_transl: Tensor = axes("N V 3")
    """SMPL's translation in the camera's frame, metres: the pelvis lies at J_pelvis(betas) + view_transl."""
    seen: Tensor = axes("N V")
    """True where the view shows enough of the person for its root to count (bool)."""
    pose_sigma: Tensor = axes(f"N {len(SMPL_24) - 1}")
    """Expected angular error of each rotation of ``body_pose``, radians."""


def average_rotations(rotations: Tensor, seen: Tensor) -> Tensor:
    """Robust mean (N, 3, 3) on the manifold of rotations (N, V, 3, 3) over those that are ``seen`` (N, V).

    Karcher steps from the medoid, with Geman–McClure weights of the angle (``ROBUST_DEGREES``) against
    outliers, such as a view whose root faces backwards. NaN where nothing is seen; values that are not seen
    may be anything.
    """
    eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    rotations = torch.where(seen[..., None, None], rotations, eye)
    weight = seen.to(rotations.dtype)
    degrees = geodesic_degrees(rotations[:, :, None], rotations[:, None]) * weight[:, None]
    medoid = torch.where(seen, degrees.sum(-1), torch.inf).argmin(-1)
    quaternions = roma.rotmat_to_unitquat(rotations)
    mean = quaternions.take_along_dim(medoid[:, None, None], 1)
    for _ in range(_ROBUST_STEPS):
        residual = roma.unitquat_to_rotvec(roma.quat_product(roma.quat_conjugation(mean), quaternions))
        angle = residual.norm(dim=-1, keepdim=True) / math.radians(ROBUST_DEGREES)
        w = weight[..., None] / (1 + angle**2) ** 2
        step = (w * residual).sum(1, keepdim=True) / w.sum(1, keepdim=True).clamp_min(1e-12)
        mean = roma.quat_product(mean, roma.rotvec_to_unitquat(step))
    return torch.where(seen.any(1)[:, None, None], roma.unitquat_to_rotmat(mean[:, 0]), torch.nan)


def locate(position: Tensor, ray: Tensor, weight: Tensor, scales_m: Sequence[float]) -> Tensor:
    """Robust position (N, 3), metres, from V views' estimates (N, V, 3); 0 where no view counts.

    Least squares of the distances across each view's ray and, of ``_DEPTH_WEIGHT``, along it. ray (N, V, 3)
    unit; weight (N, V); scales_m: Geman–McClure scale of each step.
    """
    eye = torch.eye(3, dtype=ray.dtype, device=ray.device)
    information = eye - (1 - _DEPTH_WEIGHT) * ray[..., :, None] * ray[..., None, :]
    w = weight
    for scale in scales_m:
        system = (w[..., None, None] * information).sum(1) + 1e-9 * eye
        x = solve_3x3(system, (w[..., None] * (information @ position[..., None])[..., 0]).sum(1))
        residual = position - x[:, None]
        squared = (residual * (information @ residual[..., None])[..., 0]).sum(-1)
        w = weight / (1 + squared / scale**2) ** 2
    return x


def fuse_roots(regression: Regression, R: Tensor, t: Tensor, body: KeypointBody) -> tuple[Tensor, Tensor]:
    """Fuse the roots of the seen views to ``global_orient`` (N, 3, 3) and ``transl`` (N, 3) in the world.

    R (N, V, 3, 3) and t (N, V, 3) metres take the world to each camera. Orientations are averaged by
    ``average_rotations``. The pelvis is a robust least squares over each view's bearing and, of less weight,
    its depth; a single view keeps its own. NaN where nothing is seen.
    """
    seen = regression.seen
    orient = average_rotations(R.mT @ regression.view_orient, seen)
    body = body.to(dtype=R.dtype, device=R.device)
    rest = pelvis_at_rest(body, regression.betas)
    cam = torch.where(seen[..., None], rest[:, None] + regression.view_transl, 1.0)
    pelvis = (R.mT @ (cam - t)[..., None])[..., 0]
    ray = (R.mT @ torch.nn.functional.normalize(cam, dim=-1)[..., None])[..., 0]
    x = locate(pelvis, ray, seen.to(R.dtype), (_ROBUST_M,) * _ROBUST_STEPS)
    return orient, torch.where(seen.any(1)[:, None], x - rest, torch.nan)


def blank_unseen(r: Regression) -> Regression:
    """Replace the estimates of people whom no view shows by NaN."""
    unseen = ~r.seen.any(1)

    def clear(x: Tensor) -> Tensor:
        return x.masked_fill(unseen.view(-1, *[1] * (x.ndim - 1)), torch.nan) if x.is_floating_point() else x

    return r.map(clear)
