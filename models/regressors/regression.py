"""SMPL parameters regressed from views, and the root on which the views agree.

N is one person in one frame, V its views, B betas. Views may be missing: ``seen`` says which of them count.
"""

from __future__ import annotations

import math
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
"""A view whose root is turned this far from the others counts for a quarter."""
_ROBUST_M: Final = 0.3
"""A view that sees the pelvis this far from the others counts for a quarter."""
DEPTH_TRUST: Final = 0.01
"""Weight of a view's depth estimate relative to its bearing: ten times the standard deviation."""
_STEPS: Final = 10


@dataclass(frozen=True, repr=False)
class Regression(TensorBatch):
    """SMPL parameters of N people-in-frames seen by V views, as a regressor gives them.

    Body pose and shape are shared by the views, each view has the root in its own camera's frame. Where no
    view is seen there is no person: NaN throughout.
    """

    body_pose: Tensor = axes(f"N {len(SMPL_24) - 1} 3 3")
    """Local rotation of every joint but the root relative to its parent."""
    betas: Tensor = axes("N B")
    view_orient: Tensor = axes("N V 3 3")
    """Rotation of the root, body → camera."""
    view_transl: Tensor = axes("N V 3")
    """SMPL's translation in the camera's frame, metres: the pelvis lies at J_pelvis(betas) + view_transl."""
    seen: Tensor = axes("N V")
    """The view showed enough of the person for its root to count (bool)."""
    pose_sigma: Tensor = axes(f"N {len(SMPL_24) - 1}")
    """Radians: the angle by which each rotation of ``body_pose`` is expected to be off."""


def average_rotations(rotations: Tensor, seen: Tensor) -> Tensor:
    """Robust mean (N, 3, 3) on the manifold of rotations (N, V, 3, 3) over those that are ``seen`` (N, V).

    From the rotation closest to all others, Karcher steps with Geman–McClure weights of the angle
    (``ROBUST_DEGREES``), so that one view that is turned round does not pull the mean. NaN where nothing is
    seen; values that are not seen may be anything.
    """
    eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    known = torch.where(seen[..., None, None], rotations, eye)
    weight = seen.to(rotations.dtype)
    apart = geodesic_degrees(known[:, :, None], known[:, None]) * weight[:, None]
    far = torch.where(seen, apart.sum(-1), torch.inf)
    mean = known[torch.arange(len(known), device=known.device), far.argmin(-1)]
    for _ in range(_STEPS):
        turn = roma.rotmat_to_rotvec(mean[:, None].mT @ known)
        angle = turn.norm(dim=-1) / math.radians(ROBUST_DEGREES)
        w = weight / (1 + angle**2) ** 2
        step = (w[..., None] * turn).sum(1) / w.sum(1).clamp_min(1e-12)[:, None]
        mean = mean @ roma.rotvec_to_rotmat(step)
    return torch.where(seen.any(1)[:, None, None], mean, torch.nan)


def to_world(regression: Regression, R: Tensor, t: Tensor, body: KeypointBody) -> tuple[Tensor, Tensor]:
    """The root that the seen views agree on: ``global_orient`` (N, 3, 3) and ``transl`` (N, 3), world.

    R (N, V, 3, 3) and t (N, V, 3) metres take the world to each camera. Orientations are averaged by
    ``average_rotations``. The pelvis is triangulated: each view knows its direction well and its depth
    poorly, a robust least squares over both; one view alone keeps its own. NaN where nothing is seen.
    """
    seen = regression.seen
    orient = average_rotations(R.mT @ regression.view_orient, seen)
    body = body.to(dtype=R.dtype, device=R.device)
    rest = pelvis_at_rest(body, regression.betas)
    cam = torch.where(seen[..., None], rest[:, None] + regression.view_transl, 1.0)
    pelvis = (R.mT @ (cam - t)[..., None])[..., 0]
    ray = (R.mT @ torch.nn.functional.normalize(cam, dim=-1)[..., None])[..., 0]
    eye = torch.eye(3, dtype=R.dtype, device=R.device)
    trust = eye - (1 - DEPTH_TRUST) * ray[..., :, None] * ray[..., None, :]
    weight = seen.to(R.dtype)
    for _ in range(_STEPS):
        system = (weight[..., None, None] * trust).sum(1)
        right = (weight[..., None] * (trust @ pelvis[..., None])[..., 0]).sum(1)
        none = ~seen.any(1)[:, None, None]
        x = solve_3x3(torch.where(none, eye, system), right)
        away = pelvis - x[:, None]
        off2 = (away[..., None, :] @ trust @ away[..., None])[..., 0, 0] / _ROBUST_M**2
        weight = seen.to(R.dtype) / (1 + off2) ** 2
    return orient, torch.where(seen.any(1)[:, None], x - rest, torch.nan)


def blank_unseen(r: Regression) -> Regression:
    """NaN for people whom no view shows."""
    nobody = ~r.seen.any(1)

    def clear(x: Tensor) -> Tensor:
        return x.masked_fill(nobody.view(-1, *[1] * (x.ndim - 1)), torch.nan) if x.is_floating_point() else x

    return r.map(clear)
