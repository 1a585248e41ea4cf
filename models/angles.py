"""Joint angles of a posed body, in the terms and signs of clinical motion analysis.

Every segment has axes x to the left, y towards its upper end and z ahead, of a person who stands upright
with hanging arms. Pelvis, thorax, head and feet take theirs from the rotations of the body model; thighs,
shanks and arms have y along their joint centres, so that a straight limb is at 0 whatever the model's rest
pose, and z as the model says.

The angles between two segments are the Cardan angles of Rx(a) Rz(b) Ry(c), the lower segment's axes in the
upper one's: flexion about the upper segment's transverse axis, rotation about the lower one's long axis,
abduction about the axis across both (Grood and Suntay 1983; Wu et al. 2002, the International Society of
Biomechanics). Pelvis and trunk in the world are Ry(c) Rz(b) Rx(a), so that tilt and list do not depend on
the heading (Baker 2001).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.body import global_rotations
from pipeline.batches import FitBatch
from pipeline.skeleton import SMPL_24, Skeleton

_SEGMENTS: Final = {
    "pelvis": ("pelvis",),
    "thorax": ("spine3",),
    "head": ("head",),
    **{
        f"{side}_{segment}": tuple(f"{side}_{joint}" for joint in joints)
        for side in ("left", "right")
        for segment, joints in {
            "thigh": ("hip", "knee"),
            "shank": ("knee", "ankle"),
            "foot": ("ankle",),
            "upper_arm": ("shoulder", "elbow"),
            "forearm": ("elbow", "wrist"),
        }.items()
    },
}
"""Joints of each segment: the one whose rotation it has and, for a limb, the one at its lower end."""
_A, _B, _C, _TOTAL = range(4)
"""Indices in the results of ``_cardan_angles``: a, b, c and the angle between the long axes."""


@dataclass(frozen=True)
class Angle:
    """A joint angle: one component of the rotation of a segment relative to another, with a sign."""

    name: str
    segment: str
    relative_to: str
    """Upper segment, or ``world``."""
    component: int
    """Index in the results of ``_cardan_angles``."""
    sign: int
    meaning: str
    """Positive direction and zero, in words."""

    @property
    def definition(self) -> str:
        lower = self.segment.replace("_", " ")
        return f"{lower} relative to the {self.relative_to.replace('_', ' ')}: {self.meaning}"


def _limb_angles(side: str) -> list[Angle]:
    """Angles of the limbs of a side; abduction and rotation mirror the other side's."""
    outward = 1 if side == "left" else -1
    other = "right" if side == "left" else "left"
    ball = {
        "flexion": (_A, -1, "forwards is +, 0 hanging down along the {upper}"),
        "abduction": (_B, outward, f"away to the {side} is +, −90 to 90"),
        "rotation": (_C, -outward, f"its front turned inwards, to the {other}, is +"),
    }
    angles = []
    for joint, lower, upper in (("hip", "thigh", "pelvis"), ("shoulder", "upper_arm", "thorax")):
        for motion, (component, sign, meaning) in ball.items():
            text = meaning.format(upper=upper)
            if joint == "shoulder" and component != _B:
                text += "; not determined near 90 of abduction"
            angles.append(Angle(f"{side}_{joint}_{motion}", f"{side}_{lower}", upper, component, sign, text))
    angles += [
        Angle(f"{side}_shoulder_elevation", f"{side}_upper_arm", "thorax", _TOTAL, 1,
              "to whatever side, 0 hanging down, 90 level, 180 overhead"),
        Angle(f"{side}_knee_flexion", f"{side}_shank", f"{side}_thigh", _A, 1,
              "bent is +, 0 straight, overstretched is −"),
        Angle(f"{side}_ankle_flexion", f"{side}_foot", f"{side}_shank", _A, -1,
              "dorsiflexion, toes up, is +, 0 with the sole across the shank"),
        Angle(f"{side}_elbow_flexion", f"{side}_forearm", f"{side}_upper_arm", _A, -1,
              "bent is +, 0 straight"),
    ]  # fmt: skip
    return angles


def _trunk_angles() -> list[Angle]:
    angles = []
    for name, segment, upper in (
        ("pelvis", "pelvis", "world"),
        ("trunk", "thorax", "world"),
        ("spine", "thorax", "pelvis"),
        ("neck", "head", "thorax"),
    ):
        ahead, aside = ("tilt", "list") if upper == "world" else ("flexion", "bending")
        turned = "0 facing the world's x, seen from above" if upper == "world" else "0 facing alike"
        angles += [
            Angle(f"{name}_{ahead}", segment, upper, _A, 1, "leaning forwards is +, 0 upright"),
            Angle(f"{name}_{aside}", segment, upper, _B, 1, "leaning to their right is +, left side up"),
            Angle(f"{name}_rotation", segment, upper, _C, 1, f"turned to their left is +, {turned}"),
        ]
    return angles


ANGLES: Final = (*_trunk_angles(), *_limb_angles("left"), *_limb_angles("right"))
"""Angles in the order in which they are stored."""
DEFINITIONS: Final = {angle.name: angle.definition for angle in ANGLES}


def joint_angles(
    rotations: Tensor, joints: Tensor, up: NDArray[np.float64], skeleton: Skeleton = SMPL_24
) -> Tensor:
    """``ANGLES`` (..., A) of poses, degrees from −180 to 180, float64; NaN where the pose is NaN.

    rotations: (..., J, 3, 3) the root's, body → world, then each joint's relative to its parent.
    joints: (..., J, 3) positions in the world. up: (3,) unit vector.
    """
    world_rotations = global_rotations(rotations.double(), skeleton)
    joints = joints.double()
    axes = {
        name: _segment_axes(world_rotations, joints, [skeleton.index(end) for end in ends])
        for name, ends in _SEGMENTS.items()
    }
    axes["world"] = torch.from_numpy(_world_axes(up)).to(joints.device)
    components = {
        (lower, upper): (_world_angles if upper == "world" else _cardan_angles)(axes[upper].mT @ axes[lower])
        for lower, upper in {(angle.segment, angle.relative_to) for angle in ANGLES}
    }
    angles = [a.sign * components[a.segment, a.relative_to][a.component] for a in ANGLES]
    return torch.rad2deg(torch.stack(angles, -1)) + 0.0  # no −0


def fitted_angles(batch: FitBatch, up: NDArray[np.float64]) -> Tensor:
    """``ANGLES`` (T, P, A) of all people in a batch, degrees; up: (3,) unit vector of the world."""
    rotations = torch.cat([batch.params.global_orient[:, :, None], batch.params.body_pose], 2)
    return joint_angles(rotations, batch.joints, up, batch.skeleton)


def _segment_axes(world_rotations: Tensor, joints: Tensor, ends: list[int]) -> Tensor:
    """Axes (..., 3, 3) of a segment in the world, in columns; ends: its upper and, for limbs, lower joint."""
    rotation = world_rotations[..., ends[0], :, :]
    if len(ends) == 1:
        return rotation
    y = torch.nn.functional.normalize(joints[..., ends[0], :] - joints[..., ends[1], :], dim=-1)
    x = torch.nn.functional.normalize(torch.linalg.cross(y, rotation[..., 2]), dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)


def _world_axes(up: NDArray[np.float64]) -> NDArray[np.float64]:
    """Axes (3, 3) of an upright person who faces the world's x, or its z where x is up."""
    ahead = np.eye(3)[2 if abs(up[0]) > 0.9 else 0]
    ahead = ahead - up * (ahead @ up)
    ahead /= np.linalg.norm(ahead)
    return np.stack([np.cross(up, ahead), up, ahead], -1)


def _cardan_angles(m: Tensor) -> tuple[Tensor, ...]:
    """a, b and c (...) of Rx(a) Rz(b) Ry(c), and the angle between the y axes, radians, of (..., 3, 3)."""
    total = torch.atan2(torch.hypot(m[..., 0, 1], m[..., 2, 1]), m[..., 1, 1])
    return (
        torch.atan2(m[..., 2, 1], m[..., 1, 1]),
        torch.asin((-m[..., 0, 1]).clamp(-1, 1)),
        torch.atan2(m[..., 0, 2], m[..., 0, 0]),
        total,
    )


def _world_angles(m: Tensor) -> tuple[Tensor, ...]:
    """a, b and c (...) of Ry(c) Rz(b) Rx(a), radians, of (..., 3, 3)."""
    return (
        torch.atan2(-m[..., 1, 2], m[..., 1, 1]),
        torch.asin(m[..., 1, 0].clamp(-1, 1)),
        torch.atan2(-m[..., 2, 0], m[..., 0, 0]),
    )
