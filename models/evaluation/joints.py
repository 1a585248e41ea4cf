"""Joints of the published data sets on a body model: SPIN's EXTRA_24, and Human3.6M's 17.

The published protocols regress them from SMPL's mesh with two matrices that cannot ship:
``J_regressor_h36m.npy`` and ``J_regressor_extra.npy``, given by path. On the body that ships they are placed
by the rule in ``extra_24``; results with these approximate joints are marked.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.body import Body, KeypointBody, load_body, pose_keypoints
from pipeline.archives import read_npy
from pipeline.errors import InputError
from pipeline.files import decoding
from pipeline.skeleton import BODY_25, EXTRA_24, EXTRA_24_OF_H36M_17, H36M_17, SMPL_24, Skeleton

FROM_SPIN: Final = (
    "It is in the data of SPIN, https://github.com/nkolot/SPIN: run its fetch_data.sh, then look in data/"
)

_SMPL_JOINTS: Final = {
    f"{side[0].upper()}{part}": f"{side}_{part.lower()}"
    for part in ("Ankle", "Knee", "Wrist", "Elbow", "Shoulder")
    for side in ("left", "right")
}
"""EXTRA_24 points that are SMPL joints, as in SPIN."""
_FACE_POINTS: Final = ("Nose", "LEye", "REye", "LEar", "REar")
"""EXTRA_24 points that are BODY_25 points."""
REGRESSED: Final = tuple(n for n in EXTRA_24.names if n not in _SMPL_JOINTS and n not in _FACE_POINTS)
"""EXTRA_24 points that SPIN regresses from the mesh: the rows of ``J_regressor_extra.npy``, in order."""

_J: Final = len(SMPL_24)
_JAW_SHARE: Final = 0.4
_HEAD_SHARE: Final = 0.8
"""Positions of jaw and head between neck (0) and crown (1): in Human3.6M's skeleton they are 121 and 236 mm
above the neck, by 490 mm from the pelvis to the neck."""


def extra_24(body: Body, regressor: NDArray[np.float64] | None = None) -> KeypointBody:
    """Body with the points of ``EXTRA_24`` as keypoints; float64 on the CPU.

    regressor: (9, V) SPIN's ``J_regressor_extra``, for SMPL. Each of its joints becomes one point with the
    mean position and skinning weights of its vertices: exact where they move with one bone.

    Without it nine points are placed by rule: hips at the body's; pelvis between them; thorax between the
    shoulders; neck half way from there to SMPL's neck; spine at SMPL's spine2; TopHead at the crown, the
    highest vertex; jaw and head between neck and crown in Human3.6M's proportions. Neck and thorax move with
    spine3, jaw, head and crown with the skull.

    Raises ``ValueError`` when the regressor does not fit the body.
    """
    model = _PointRows.of(body)
    points = {name: model.joint(joint) for name, joint in _SMPL_JOINTS.items()}
    points |= {name: model.points[BODY_25.index(name)] for name in _FACE_POINTS}
    if regressor is None:
        points |= _approximate_points(model)
    else:
        rows = torch.from_numpy(np.asarray(regressor, np.float64))
        if rows.shape != (len(REGRESSED), len(body.v_template)):
            raise ValueError(
                f"regressor {tuple(rows.shape)}, expected ({len(REGRESSED)}, {len(body.v_template)})"
            )
        points |= dict(zip(REGRESSED, torch.einsum("kv,vx->kx", rows, model.vertices), strict=True))
    return model.with_points(torch.stack([points[name] for name in EXTRA_24.names]), EXTRA_24)


def h36m_17(body: Body) -> KeypointBody:
    """Body with the joints of ``H36M_17`` as keypoints, by the rule of ``extra_24``."""
    extra, rows = extra_24(body), list(EXTRA_24_OF_H36M_17)
    return extra.with_points(H36M_17, {name: x[rows] for name, x in extra.points.items()})


def _approximate_points(model: _PointRows) -> dict[str, Tensor]:
    """Points of ``REGRESSED`` by the rule of ``extra_24``."""
    thorax = model.midpoint("left_shoulder", "right_shoulder", moved_by="spine3")
    neck = (thorax + model.midpoint("neck", moved_by="spine3")) / 2
    crown = model.vertices[model.vertices[:, 1].argmax()]
    # The neck itself moves with the trunk, points between neck and crown with the skull.
    skull_base = model.moved_by(neck, "head")
    return {
        "RHip": model.joint("right_hip"),
        "LHip": model.joint("left_hip"),
        "Neck (LSP)": neck,
        "TopHead (LSP)": crown,
        "Pelvis (MPII)": model.midpoint("left_hip", "right_hip", moved_by="pelvis"),
        "Thorax (MPII)": thorax,
        "Spine (H36M)": model.joint("spine2"),
        "Jaw (H36M)": torch.lerp(skull_base, crown, _JAW_SHARE),
        "Head (H36M)": torch.lerp(skull_base, crown, _HEAD_SHARE),
    }


@dataclass(frozen=True, eq=False)
class _PointRows:
    """Points of a body as rows that can be averaged, 3 + 3 B + 27 (J − 1) + J numbers.

    Position, shape directions, pose blend shapes where the body has them, and skinning weights.
    """

    vertices: Tensor
    joints: Tensor
    """(J, …) each skinned to its own joint."""
    points: Tensor
    """(K, …) BODY_25."""
    body: KeypointBody

    @classmethod
    def of(cls, body: Body) -> Self:
        def rows(template: Tensor, directions: Tensor, weights: Tensor, posedirs: Tensor | None) -> Tensor:
            blended = () if posedirs is None else (posedirs.flatten(1),)
            return torch.cat([template, directions.flatten(1), *blended, weights], 1).double()

        k = body.keypoints
        mesh_posedirs = joint_posedirs = None
        if k.points_posedirs is not None:
            mesh_posedirs = body.posedirs.T.reshape(len(body.v_template), 3, -1)
            joint_posedirs = torch.zeros(_J, *mesh_posedirs.shape[1:])
        return cls(
            rows(body.v_template, body.shapedirs, body.weights, mesh_posedirs),
            rows(k.joints_template, k.joints_shapedirs, torch.eye(_J), joint_posedirs),
            rows(k.points_template, k.points_shapedirs, k.weights, k.points_posedirs),
            k,
        )

    def joint(self, name: str) -> Tensor:
        return self.joints[SMPL_24.index(name)]

    def midpoint(self, *names: str, moved_by: str) -> Tensor:
        """Mean of joints, skinned to the joint ``moved_by``."""
        return self.moved_by(torch.stack([self.joint(n) for n in names]).mean(0), moved_by)

    def moved_by(self, row: Tensor, joint: str) -> Tensor:
        """Copy of a row, skinned to a joint."""
        return torch.cat([row[:-_J], self.joint(joint)[-_J:]])

    def with_points(self, rows: Tensor, skeleton: Skeleton) -> KeypointBody:
        """Body with rows as keypoints."""
        betas = self.body.points_shapedirs.shape[-1]
        template, directions, posedirs, weights = rows.tensor_split([3, 3 + 3 * betas, rows.shape[1] - _J], 1)
        points = {
            "points_template": template,
            "points_shapedirs": directions.reshape(len(rows), 3, betas),
            "weights": weights,
            "points_posedirs": posedirs.reshape(len(rows), 3, -1),
        }
        return self.body.with_points(skeleton, {name: points[name] for name in self.body.points})


@dataclass(frozen=True, eq=False)
class H36MJoints:
    """Regression of ``H36M_17`` from a posed body."""

    body: Body
    points: KeypointBody | None
    """Body with the approximate joints as keypoints; None with a matrix."""
    matrix: Tensor | None
    """(17, V) regressor from the mesh."""
    source: str
    """Origin of the joints, for reports, with the file's name and sha256."""

    @property
    def approximate(self) -> bool:
        return self.matrix is None

    def __call__(self, rotations: Tensor, betas: Tensor, transl: Tensor) -> Tensor:
        """Joints (N, 17, 3), metres, of rotations (N, J, 3, 3), betas (N, B) and transl (N, 3)."""
        if self.points is not None:
            points = self.points.to(dtype=rotations.dtype, device=rotations.device)
            return pose_keypoints(points, rotations, betas, transl)[1]
        assert self.matrix is not None
        vertices = self.body.vertices(rotations[:, 0], rotations[:, 1:], betas, transl)
        return (self.matrix.to(vertices.device) @ vertices).to(rotations.dtype)


def h36m_joints(body: Body, path: Path | None) -> H36MJoints:
    """Joints of evaluation: approximate ones of the body that ships, or SMPL's by the matrix at ``path``.

    Raises ``InputError``: SMPL without the matrix, the body that ships with one, or a matrix of another mesh.
    """
    if body.sha256 == load_body().sha256:
        if path is not None:
            raise InputError(
                f"{path}: a joint regressor of SMPL's mesh, but the body is the one that ships. Give SMPL, "
                "--body SMPL_NEUTRAL.pkl, too."
            )
        source = "approximate: joints of the body that ships, by the rule in models/evaluation/joints.py"
        return H36MJoints(body, h36m_17(body), None, source)
    if path is None:
        raise InputError(
            f"{body.name}: the published protocols regress joints from SMPL's mesh, which takes "
            f"J_regressor_h36m.npy. {FROM_SPIN}, and give its path."
        )
    matrix, sha256 = read_regressor(path, len(EXTRA_24_OF_H36M_17), len(body.v_template))
    return H36MJoints(body, None, torch.from_numpy(matrix).float(), f"{path.name} (sha256 {sha256})")


def read_regressor(path: Path, joints: int, vertices: int = 6890) -> tuple[NDArray[np.float64], str]:
    """Read the matrix (joints, vertices) of a ``J_regressor_*.npy`` file; return it with the file's sha256.

    Raises ``InputError``: it cannot be read, has another shape, or its rows do not sum to 1.
    """
    with decoding(path, f"{FROM_SPIN}."):
        content = path.read_bytes()
        matrix = np.asarray(read_npy(content), np.float64)
    if matrix.shape != (joints, vertices):
        raise InputError(
            f"{path}: has shape {matrix.shape}, expected ({joints}, {vertices}): {joints} joints from a mesh "
            f"of {vertices} vertices. {FROM_SPIN}."
        )
    if not np.allclose(matrix.sum(1), 1, atol=1e-2):  # also false for NaN
        raise InputError(f"{path}: its rows do not sum to 1, so it is no joint regressor. {FROM_SPIN}.")
    return matrix, hashlib.sha256(content).hexdigest()
