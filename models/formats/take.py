"""Motion of one person, as every export format takes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.body import Body

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Take:
    """One person over T frames, K keypoints and J joints. NaN where there is no pose. float64."""

    first: int
    """Number of the first frame."""
    rate: Fraction
    """Frames a second."""
    time_s: Array
    """(T,)"""
    rotations: Array
    """(T, J, 3, 3) the root's, body → world, then each joint's relative to its parent."""
    betas: Array
    """(B,)"""
    transl: Array
    """(T, 3) metres, world: the pelvis lies at J_pelvis(betas) + transl."""
    joints: Array
    """(T, J, 3) metres, world."""
    points: Array
    """(T, K, 3) the fitted body's keypoints, metres, world."""
    point_names: tuple[str, ...]
    """Names of the keypoints."""
    valid: NDArray[np.bool_]
    """(T,) the fit was accepted."""

    @property
    def posed(self) -> NDArray[np.bool_]:
        """(T,) there is a pose."""
        return np.asarray(np.isfinite(self.rotations).all((1, 2, 3)) & np.isfinite(self.transl).all(1))

    def turned(self, turn: Array, body: Body) -> Take:
        """Motion in another world: ``turn`` (3, 3) takes the old to the new, about the origin."""
        pelvis = rest_joints(body, self.betas)[0]
        rotations = self.rotations.copy()
        rotations[:, 0] = turn @ rotations[:, 0]
        return replace(
            self,
            rotations=rotations,
            transl=(self.transl + pelvis) @ turn.T - pelvis,
            joints=self.joints @ turn.T,
            points=self.points @ turn.T,
        )

    def without_gaps(self) -> Take:
        """Motion with a rotation and a place in every frame; joints and points are left as they are.

        Between frames that have a pose: slerp of each joint's rotation, and straight on. Before the first and
        after the last one: that one.

        Raises ``ValueError`` when no frame has a pose.
        """
        known = self.posed
        if not known.any():
            raise ValueError("no frame has a pose")
        if known.all():
            return self
        frames = np.flatnonzero(known)
        at = np.clip(self.time_s, self.time_s[frames[0]], self.time_s[frames[-1]])
        before = frames[np.searchsorted(self.time_s[frames], at, "right") - 1]
        after = frames[np.searchsorted(self.time_s[frames], at, "left")]
        step_s = self.time_s[after] - self.time_s[before]
        share = np.where(known, 0, (at - self.time_s[before]) / np.where(step_s > 0, step_s, 1))
        start, stop = (torch.from_numpy(self.rotations[i]) for i in (before, after))
        way = roma.rotmat_to_rotvec(start.mT @ stop)
        rotations = start @ roma.rotvec_to_rotmat(torch.from_numpy(share)[:, None, None] * way)
        transl = (1 - share[:, None]) * self.transl[before] + share[:, None] * self.transl[after]
        return replace(self, rotations=rotations.numpy(), transl=transl)


def rest_joints(body: Body, betas: Array) -> Array:
    """Joints (J, 3) of a shape (B,) in the rest pose, metres."""
    k = body.keypoints
    return np.asarray(k.joints_template.numpy() + k.joints_shapedirs.numpy() @ betas)


def rest_vertices(body: Body, betas: Array) -> Array:
    """Vertices (V, 3) of a shape (B,) in the rest pose, metres."""
    return np.asarray(body.v_template.double().numpy() + body.shapedirs.double().numpy() @ betas)


def pose_blend_mm(body: Body, rotations: Array) -> float:
    """Largest displacement of a vertex by pose blend shapes in poses (T, J, 3, 3), which skinning leaves out.

    Of up to two dozen frames spread over them.
    """
    if not body.posedirs.any():
        return 0.0
    chosen = rotations[:: max(1, -(-len(rotations) // 24)), 1:]
    feature = torch.from_numpy((chosen - np.eye(3)).reshape(len(chosen), -1)).to(body.posedirs.dtype)
    moved = (feature @ body.posedirs).reshape(len(chosen), -1, 3)
    return 1000 * float(moved.norm(dim=-1).max())
