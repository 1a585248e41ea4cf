"""Energy of motions, with the intermediate results that its derivatives need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, cast

import roma
import torch
from torch import Tensor

from models.body import global_rotations, pose_feature
from models.fit.problem import JOINTS, MIN_BEND_RAD, LeverBody, Motion, Problem

MIN_DEPTH_M = 0.1
"""Least depth at which a point is in the picture."""


@dataclass(frozen=True)
class FitState:
    """Motions, their energy and its intermediate results."""

    motion: Motion
    G: Tensor  # (N, T, 24, 3, 3) global rotations
    flat: Tensor  # (N, 3, T, 72) G, for products with levers
    levers: Tensor  # (N, K, 24, 3)
    pose_offsets: Tensor  # (N, T, S, 3) by pose blend shapes, metres in the rest pose
    points: Tensor  # (N, 3, T, K)
    cam: Tensor  # (N, V, 3, T, K) normalised x, y and 1/z; 0 behind the camera
    residual: Tensor  # (N, V, 2, T, K) reprojection, standard deviations
    theta: Tensor  # (N, T, A − 1, 3)
    theta_grad: Tensor  # (N, T, (A − 1) 3) gradient of half the prior's and the hinges' energy
    component: Tensor  # (N, T) of the prior
    energy: Tensor  # (N,) float64

    def where(self, mask: Tensor, other: FitState) -> FitState:
        """This state of problems where ``mask`` (N,), else the other one."""
        return _combined(lambda a, b: torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b), self, other)

    def gather(self, rows: Tensor) -> FitState:
        """States of problems ``rows``."""
        return _combined(lambda x: x[rows], self)

    def scatter(self, rows: Tensor, part: FitState) -> FitState:
        """This state with problems ``rows`` replaced by ``part``."""
        return _combined(lambda x, y: x.index_copy(0, rows, y), self, part)


def _combined(fn: Callable[..., Tensor], *states: FitState) -> FitState:
    """Apply fn to corresponding tensors of the states."""

    def over(*items: Any) -> Any:
        if isinstance(items[0], Tensor):
            return fn(*items)
        return type(items[0])(*(over(*(getattr(i, f.name) for i in items)) for f in fields(items[0])))

    return cast(FitState, over(*states))


def sideways(pb: Problem, motion: Motion) -> tuple[Tensor, Tensor]:
    """Sines (N, T, 4) of the sideways bend of elbows and knees, and their derivatives (N, T, 4, 3).

    The sine is the component of the lower bone e along the hinge's axis h, R_he; its derivative e × R_h.
    """
    hinges = pb.body.hinges
    row = motion.rotations[:, :, hinges.joint, hinges.axis]
    return (row * hinges.bone).sum(-1), torch.linalg.cross(hinges.bone.expand_as(row), row, dim=-1)


def skin_rotations(G: Tensor, weights: Tensor) -> Tensor:
    """Σ_j w_kj G_j (N, 3, 3, T, K) of skin weights (K, J) and global rotations (N, T, J, 3, 3)."""
    return G.permute(0, 3, 4, 1, 2) @ weights.T


def _blend_pose(body: LeverBody, motion: Motion, G: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets (N, T, S, 3) by pose blend shapes, and the points (N, 3, T, K) with them."""
    if not len(body.blended):
        return G.new_zeros(*G.shape[:2], 0, 3), points
    posedirs = body.posedirs.flatten(2).flatten(0, 1)
    offsets = (pose_feature(motion.rotations) @ posedirs.T).view(*G.shape[:2], -1, 3)
    turned = skin_rotations(G, body.weights[body.blended])
    moved = (turned * offsets.permute(0, 3, 1, 2)[:, None]).sum(2)
    return offsets, points.index_add(3, body.blended, moved)


def evaluate_energy(pb: Problem, motion: Motion, robust: float) -> FitState:
    """State of the motions at a robust scale, standard deviations."""
    n, frames = motion.transl.shape[:2]
    G = global_rotations(motion.rotations)
    joint0, levers = pb.body.shaped(motion.betas, motion.offsets)
    flat = G.permute(0, 3, 1, 2, 4).reshape(n, 3, frames, 3 * JOINTS)
    points = flat.reshape(n, 3 * frames, -1) @ levers.reshape(n, -1, 3 * JOINTS).mT
    points = points.reshape(n, 3, frames, -1) + (motion.transl + joint0[:, None]).mT[..., None]
    pose_offsets, points = _blend_pose(pb.body, motion, G, points)

    views = pb.R.shape[1]
    cam = pb.R.reshape(n, 3 * views, 3) @ points.reshape(n, 3, -1)
    cam = cam.reshape(n, views, 3, *points.shape[2:]) + pb.t[..., None, None]
    front = cam[:, :, 2] > MIN_DEPTH_M
    iz = torch.where(front, 1 / cam[:, :, 2], 0)
    x, y = cam[:, :, 0] * iz, cam[:, :, 1] * iz
    fx, skew, fy = (pb.focal[..., i, None] for i in range(3))
    dx, dy = x - pb.image_xy[..., 0], y - pb.image_xy[..., 1]
    ux, uy = fx * dx + skew * dy, fy * dy
    r2 = ux * ux + uy * uy
    g2 = robust * robust
    data = pb.confidence_sq * torch.where(front, g2 * r2 / (g2 + r2), g2)
    energy = data[:, :, pb.held :].double().sum((1, 2, 3))

    theta = roma.rotmat_to_rotvec(motion.rotations[:, :, pb.body.active[1:]])
    row = theta.flatten(2)
    theta_grad = torch.zeros_like(row)
    component = torch.zeros(n, frames, dtype=torch.long, device=row.device)
    if pb.prior is not None:
        distance, theta_grad, component = pb.prior.evaluate(row)
        energy = energy + distance[:, pb.held :].double().sum(1)
    if pb.pose_target is not None:
        change = motion.rotations[:, :, pb.body.active[1:]] - pb.pose_target[0]
        distance = pb.pose_target[1] * (change * change).sum((-2, -1))
        energy = energy + distance[:, pb.held :].double().sum((1, 2))
    hinges = pb.body.hinges
    overextension = (MIN_BEND_RAD - hinges.sign * row[..., hinges.index]).clamp(min=0)
    theta_grad[..., hinges.index] -= pb.w_hinge * hinges.sign * overextension
    energy = energy + pb.w_hinge * (overextension**2)[:, pb.held :].double().sum((1, 2))
    side, _ = sideways(pb, motion)
    energy = energy + pb.w_sideways * (side * side)[:, pb.held :].double().sum((1, 2))

    if frames >= 3:
        tied = pb.tied.to(torch.float64)
        acceleration = points[:, :, 2:] - 2 * points[:, :, 1:-1] + points[:, :, :-2]
        energy = energy + (pb.w_acc * acceleration * acceleration).double().sum((1, 3)) @ tied
        local = motion.rotations[:, :, pb.body.active]
        spin = local[:, 2:] - 2 * local[:, 1:-1] + local[:, :-2]
        energy = energy + (pb.w_spin * (spin * spin).sum((3, 4))).double().sum(2) @ tied
    if pb.free_shape:
        energy = energy + pb.w_shape * (motion.betas**2).double().sum(1)
        energy = energy + pb.w_offset * (motion.offsets**2).double().sum((1, 2))
    return FitState(
        motion,
        G,
        flat,
        levers,
        pose_offsets,
        points,
        torch.stack([x, y, iz], 2),
        torch.stack([ux, uy], 2),
        theta,
        theta_grad,
        component,
        energy,
    )
