"""MOT: joint angles as OpenSim's motion files, by the coordinates of its whole-body models."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

import numpy as np
import roma
import torch

from models.angles import ANGLES, joint_angles
from models.body import Body
from models.formats.long_take import LongTake
from models.formats.traits import Traits, y_up_as_pose2sim

TRAITS: Final = Traits(
    suffix=".mot",
    description="joint angles as OpenSim's coordinates",
    unit="degrees, metres",
    turn=y_up_as_pose2sim,
    gaps="nan",
)

_PELVIS: Final = ("pelvis_tilt", "pelvis_list", "pelvis_rotation", "pelvis_tx", "pelvis_ty", "pelvis_tz")
_COORDINATES: Final = MappingProxyType(
    {
        name.format(side[0]): (angle.format(side), sign)
        for side in ("right", "left")
        for name, angle, sign in (
            ("hip_flexion_{}", "{}_hip_flexion", 1),
            ("hip_adduction_{}", "{}_hip_abduction", -1),
            ("hip_rotation_{}", "{}_hip_rotation", 1),
            ("knee_angle_{}", "{}_knee_flexion", 1),
            ("ankle_angle_{}", "{}_ankle_flexion", 1),
            ("arm_flex_{}", "{}_shoulder_flexion", 1),
            ("arm_add_{}", "{}_shoulder_abduction", -1),
            ("arm_rot_{}", "{}_shoulder_rotation", 1),
            ("elbow_flex_{}", "{}_elbow_flexion", 1),
        )
    }
    | {
        "lumbar_extension": ("spine_flexion", -1),
        "lumbar_bending": ("spine_bending", 1),
        "lumbar_rotation": ("spine_rotation", 1),
    }
)
"""Angle of ``models/angles.py`` that each coordinate is, and its sign."""


def encode(take: LongTake, body: Body, name: str) -> Iterator[bytes]:
    """Coordinates by the names of Rajagopal's model (2016), whose legs and trunk are Gait2392's too.

    Degrees, and metres of the pelvis in the world of a ``.trc``; ``nan`` where there is no pose.
    Pelvis, hips, trunk and shoulders turn about z (right), x (ahead), then y (up), as there. Four things do
    not agree with a model in OpenSim: the pelvis' place is SMPL's joint, not the middle of its front spines;
    knee, ankle and elbow bend about the upper segment's transverse axis, not a model's own oblique one; the
    knee's flexion is positive, as Rajagopal's, while Gait2392 has it negative; and 0 is a straight, upright
    body. Subtalar, toe, forearm and wrist angles are not written.
    """
    columns = ("time", *_PELVIS, *_COORDINATES)
    heads = f"{name}\nversion=1\nnRows={len(take)}\nnColumns={len(columns)}\ninDegrees=yes\nendheader\n"
    yield (heads + "\t".join(columns) + "\n").encode(errors="surrogateescape")
    at = {angle.name: i for i, angle in enumerate(ANGLES)}
    chosen = [at[angle] for angle, _ in _COORDINATES.values()]
    signs = [sign for _, sign in _COORDINATES.values()]
    for piece in take.pieces():
        rotations, joints = torch.from_numpy(piece.rotations), torch.from_numpy(piece.joints)
        angles = joint_angles(rotations, joints, np.array([0.0, 1, 0]), body.skeleton).numpy()
        x, y, z = rotations[:, 0].unbind(-1)  # left, up and ahead: OpenSim's are ahead, up and right
        pelvis = roma.rotmat_to_euler("ZXY", torch.stack([z, y, -x], -1), degrees=True).numpy()
        table = [piece.time_s, pelvis, piece.joints[:, 0], signs * angles[:, chosen]]
        rows = np.column_stack(table).tolist()
        yield "".join("\t".join(f"{n:.6f}" for n in row) + "\n" for row in rows).encode()
