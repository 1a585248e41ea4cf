"""Motion of one person over some frames, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.body import Body, pose_keypoints
from pipeline.array_types import Array, Ints
from pipeline.cameras import Rig


@dataclass(frozen=True, eq=False)
class TakeViews:
    """Cameras that show a person, and what was seen in them."""

    rig: Rig
    frame_index: Ints
    """(V, T) number of the frame of each camera's video, −1 for none."""
    keypoints: NDArray[np.floating]
    """(V, T, K, 3) pixels of the video frames and confidence; NaN, NaN, 0 where nothing was seen."""

    def part(self, start: int, stop: int) -> TakeViews:
        """Frames ``start:stop``."""
        return TakeViews(self.rig, self.frame_index[:, start:stop], self.keypoints[:, start:stop])


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
    person: int = 0
    """Number of the person."""
    angles: Array = field(default_factory=lambda: np.empty((0, 0)))
    """(T, A) joint angles, degrees; A is 0 where the results have none."""
    angle_names: tuple[str, ...] = ()
    views: TakeViews | None = None
    """Pictures of the person, for formats that show them."""

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

    def without_gaps(self, *, hold: bool = False) -> Take:
        """Motion with a rotation and a place in every frame; joints and points are left as they are.

        Between frames that have a pose: slerp of each joint's rotation, and straight on; with ``hold``, the
        one before. Before the first and after the last one: that one.

        Raises ``ValueError`` when no frame has a pose.
        """
        known = self.posed
        if not known.any():
            raise ValueError("no frame has a pose")
        if known.all():
            return self
        before, after, share = frames_around(self.time_s, np.flatnonzero(known), self.time_s)
        return self._between(before, after, np.where(known | hold, 0, share))

    def filled(self, body: Body, *, hold: bool = False) -> Take:
        """Motion as ``without_gaps`` has it, with the joints, points and angles of all frames."""
        known = self.posed
        if known.all():
            return replace(self, valid=np.ones_like(known))
        moved = self.without_gaps(hold=hold)
        joints, points = moved._posed_points(body)
        before, after, share = frames_around(self.time_s, np.flatnonzero(known), self.time_s)
        angles = _mixed_angles(self.angles, before, after, np.where(known | hold, 0, share))
        return replace(
            moved,
            joints=np.where(known[:, None, None], self.joints, joints),
            points=np.where(known[:, None, None], self.points, points),
            angles=angles,
            valid=np.ones_like(known),
        )

    def mixed(self, before: Ints, after: Ints, share: Array, body: Body) -> Take:
        """Motion this share of the way from one frame to another, (N,) each; the times are left to set.

        Of two of which either has no pose, there is none. Points are taken to move straight between frames.
        """
        there = self.posed[before] & self.posed[after]
        steady = replace(self, rotations=np.nan_to_num(self.rotations), transl=np.nan_to_num(self.transl))
        moved = steady._between(before, after, share)
        joints, _ = moved._posed_points(body)
        moved.rotations[~there], moved.transl[~there], joints[~there] = np.nan, np.nan, np.nan
        part = share[:, None, None]
        return replace(
            moved,
            joints=joints,
            points=(1 - part) * self.points[before] + part * self.points[after],
            angles=_mixed_angles(self.angles, before, after, share),
            valid=self.valid[before] & self.valid[after],
            views=None,
        )

    def part(self, start: int, stop: int) -> Take:
        """Frames ``start:stop``, counted from the take's first."""
        views = self.views and self.views.part(start, stop)
        rows: dict[str, Any] = {name: getattr(self, name)[start:stop] for name in _ROWS}
        return replace(self, first=self.first + start, views=views, **rows)

    @staticmethod
    def joined(takes: Sequence[Take]) -> Take:
        """Takes of one person one after another, without views; the frames between may be left out."""
        rows: dict[str, Any] = {
            name: np.concatenate([getattr(take, name) for take in takes]) for name in _ROWS
        }
        return replace(takes[0], views=None, **rows)

    def _between(self, before: Ints, after: Ints, share: Array) -> Take:
        """Rotations and places this share of the way from one frame to another."""
        start, stop = (torch.from_numpy(self.rotations[i]) for i in (before, after))
        way = roma.rotmat_to_rotvec(start.mT @ stop)
        rotations = start @ roma.rotvec_to_rotmat(torch.from_numpy(share)[:, None, None] * way)
        transl = (1 - share[:, None]) * self.transl[before] + share[:, None] * self.transl[after]
        return replace(self, rotations=rotations.numpy(), transl=transl)

    def _posed_points(self, body: Body) -> tuple[Array, Array]:
        """Joints (T, J, 3) and points (T, K, 3) of the rotations, some frames at a time."""
        found = []
        for i in range(0, len(self.transl), _CHUNK):
            part = slice(i, i + _CHUNK)
            rotations, transl = (torch.from_numpy(x[part]) for x in (self.rotations, self.transl))
            found.append(pose_keypoints(body.keypoints, rotations, torch.from_numpy(self.betas), transl))
        joints, points = (np.concatenate([f[i].numpy() for f in found]) for i in (0, 1))
        return joints, points


_ROWS: Final = ("time_s", "rotations", "transl", "joints", "points", "valid", "angles")
"""Fields that have a row for each frame."""
_CHUNK: Final = 4096
"""Frames that are posed at once."""


def frames_around(time_s: Array, frames: Ints, at: Array) -> tuple[Ints, Ints, Array]:
    """Frame before and frame after each time ``at``, of these frames, and the share of the way between."""
    own = time_s[frames]
    at = np.clip(at, own[0], own[-1])
    before = frames[np.searchsorted(own, at, "right") - 1]
    after = frames[np.searchsorted(own, at, "left")]
    step_s = time_s[after] - time_s[before]
    return before, after, (at - time_s[before]) / np.where(step_s > 0, step_s, 1)


def _mixed_angles(angles: Array, before: Ints, after: Ints, share: Array) -> Array:
    """Angles (T, A) in degrees this share of the shorter way from one frame to another."""
    if not angles.size:
        return np.empty((len(share), angles.shape[1]))
    way = angles[after] - angles[before]
    mixed = angles[before] + share[:, None] * (way - 360 * np.rint(way / 360))
    return np.where(share[:, None] == 0, angles[before], mixed)


def rest_joints(body: Body, betas: Array) -> Array:
    """Joints (J, 3) of a shape (B,) in the rest pose, metres."""
    k = body.keypoints
    return np.asarray(k.joints_template.numpy() + k.joints_shapedirs.numpy() @ betas)


def rest_vertices(body: Body, betas: Array) -> Array:
    """Vertices (V, 3) of a shape (B,) in the rest pose, metres."""
    return np.asarray(body.v_template.double().numpy() + body.shapedirs.double().numpy() @ betas)


def skin_weights(body: Body) -> tuple[NDArray[np.int64], Array]:
    """Joints (V, N) that move each vertex, and their weights (V, N), the largest first; N is the most joints
    that one has. A weight of 0 goes with joint 0."""
    weights = body.weights.double().numpy()
    most = int((weights > 0).sum(1).max())
    order = np.argsort(-weights, axis=1, kind="stable")[:, :most]
    largest = np.take_along_axis(weights / weights.sum(1, keepdims=True), order, 1)
    return np.where(largest > 0, order, 0), largest


def pose_blend_mm(body: Body, rotations: Array) -> float:
    """Largest move of a vertex by pose blend shapes, which skinning leaves out; poses (T, J, 3, 3)."""
    feature = torch.from_numpy((rotations[:, 1:] - np.eye(3)).reshape(len(rotations), -1))
    moved = (feature.to(body.posedirs.dtype) @ body.posedirs).reshape(len(rotations), -1, 3)
    return 1000 * float(moved.norm(dim=-1).max())
