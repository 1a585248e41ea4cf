"""The joints of the published data sets on a body: SPIN's extra ones, and Human3.6M's.

The published protocols regress them from SMPL's mesh with two matrices that cannot ship:
``J_regressor_h36m.npy`` and ``J_regressor_extra.npy``, given by path. The body that ships has joints of its
own, placed by the rule in ``extra_24``: they are approximate, and what is measured with them says so.
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
from pipeline.skeleton import BODY_25, EXTRA_24, EXTRA_24_OF_H36M_17, H36M_17, SMPL_24, Skeleton

FROM_SPIN: Final = (
    "It is in the data of SPIN, https://github.com/nkolot/SPIN: run its fetch_data.sh, then look in data/"
)

_OF_JOINT: Final = {
    f"{side[0].upper()}{part}": f"{side}_{part.lower()}"
    for part in ("Ankle", "Knee", "Wrist", "Elbow", "Shoulder")
    for side in ("left", "right")
}
"""EXTRA_24 joints that are SMPL joints, as in SPIN."""
_OF_SKIN: Final = ("Nose", "LEye", "REye", "LEar", "REar")
"""Those that are BODY_25 points."""
REGRESSED: Final = tuple(n for n in EXTRA_24.names if n not in _OF_JOINT and n not in _OF_SKIN)
"""Those that SPIN regresses from the mesh: the rows of ``J_regressor_extra.npy``, in order."""

_J: Final = len(SMPL_24)
_JAW: Final = 0.4
_HEAD: Final = 0.8
"""Shares of the way from the neck to the crown: Human3.6M's skeleton has 121 and 236 mm there, by 490 mm from
the pelvis to the neck."""


def extra_24(body: Body, regressor: NDArray[np.float64] | None = None) -> KeypointBody:
    """The points of ``EXTRA_24`` on a body, for ``pose_keypoints``; float64 on the CPU.

    regressor: (9, V) SPIN's ``J_regressor_extra``, for SMPL. Each of its joints becomes one point with the
    mean place and the mean skin weights of its vertices: exact where they move with one bone.

    Without it nine joints are placed by rule, from joints that the body has:
    hips: its hips. Pelvis: between them. Thorax: between the shoulders. Neck: half way from there to SMPL's
    neck. Spine: SMPL's spine2. TopHead: the crown, the highest vertex. Jaw, Head: on the way from neck to
    crown, at 0.4 and 0.8 of it, which are Human3.6M's proportions.
    Neck and thorax move with the bone of spine3, jaw, head and crown with the skull.

    Raises ``ValueError`` when the regressor does not fit the body.
    """
    parts = _Parts.of(body)
    found = {name: parts.joint(joint) for name, joint in _OF_JOINT.items()}
    found |= {name: parts.points[BODY_25.index(name)] for name in _OF_SKIN}
    if regressor is None:
        found |= _by_rule(parts)
    else:
        rows = torch.from_numpy(np.asarray(regressor, np.float64))
        if rows.shape != (len(REGRESSED), len(body.v_template)):
            raise ValueError(
                f"regressor {tuple(rows.shape)}, expected ({len(REGRESSED)}, {len(body.v_template)})"
            )
        found |= dict(zip(REGRESSED, torch.einsum("kv,vx->kx", rows, parts.vertices), strict=True))
    return parts.body_of(torch.stack([found[name] for name in EXTRA_24.names]), EXTRA_24)


def h36m_17(body: Body) -> KeypointBody:
    """The joints of ``H36M_17``, by the rule of ``extra_24``; for ``pose_keypoints``."""
    every, at = extra_24(body), list(EXTRA_24_OF_H36M_17)
    return every.with_points(H36M_17, {name: x[at] for name, x in every.points.items()})


def _by_rule(parts: _Parts) -> dict[str, Tensor]:
    thorax = parts.between("left_shoulder", "right_shoulder", moved_by="spine3")
    neck = (thorax + parts.between("neck", moved_by="spine3")) / 2
    crown = parts.vertices[parts.vertices[:, 1].argmax()]
    # The way begins at the neck, which moves with the trunk; what lies on it is moved by the skull.
    start = parts.moved_by(neck, "head")
    return {
        "RHip": parts.joint("right_hip"),
        "LHip": parts.joint("left_hip"),
        "Neck (LSP)": neck,
        "TopHead (LSP)": crown,
        "Pelvis (MPII)": parts.between("left_hip", "right_hip", moved_by="pelvis"),
        "Thorax (MPII)": thorax,
        "Spine (H36M)": parts.joint("spine2"),
        "Jaw (H36M)": torch.lerp(start, crown, _JAW),
        "Head (H36M)": torch.lerp(start, crown, _HEAD),
    }


@dataclass(frozen=True, eq=False)
class _Parts:
    """Rows that points are made of: place, shape directions, pose blend shapes where the body has them, and
    skin weights, 3 + 3 B + 27 (J − 1) + J numbers, all of which are averaged alike."""

    vertices: Tensor
    joints: Tensor
    """(J, …) each moved by itself alone."""
    points: Tensor
    """(K, …) BODY_25."""
    body: KeypointBody

    @classmethod
    def of(cls, body: Body) -> Self:
        def rows(place: Tensor, directions: Tensor, weights: Tensor, posedirs: Tensor | None) -> Tensor:
            blended = () if posedirs is None else (posedirs.flatten(1),)
            return torch.cat([place, directions.flatten(1), *blended, weights], 1).double()

        k = body.keypoints
        of_mesh = of_joints = None
        if k.points_posedirs is not None:
            of_mesh = body.posedirs.T.reshape(len(body.v_template), 3, -1)
            of_joints = torch.zeros(_J, *of_mesh.shape[1:])
        return cls(
            rows(body.v_template, body.shapedirs, body.weights, of_mesh),
            rows(k.joints_template, k.joints_shapedirs, torch.eye(_J), of_joints),
            rows(k.points_template, k.points_shapedirs, k.weights, k.points_posedirs),
            k,
        )

    def joint(self, name: str) -> Tensor:
        return self.joints[SMPL_24.index(name)]

    def between(self, *names: str, moved_by: str) -> Tensor:
        return self.moved_by(torch.stack([self.joint(n) for n in names]).mean(0), moved_by)

    def moved_by(self, row: Tensor, joint: str) -> Tensor:
        return torch.cat([row[:-_J], self.joint(joint)[-_J:]])

    def body_of(self, rows: Tensor, skeleton: Skeleton) -> KeypointBody:
        betas = self.body.points_shapedirs.shape[-1]
        place, directions, posedirs, weights = rows.tensor_split([3, 3 + 3 * betas, rows.shape[1] - _J], 1)
        points = {
            "points_template": place,
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
    """The approximate ones; None where there is a matrix."""
    matrix: Tensor | None
    """(17, V) from the mesh."""
    source: str
    """For a report: what the joints are, with the file's name and sha256."""

    @property
    def approximate(self) -> bool:
        return self.matrix is None

    def __call__(self, rotations: Tensor, betas: Tensor, transl: Tensor) -> Tensor:
        """(N, 17, 3) metres, of rotations (N, J, 3, 3), betas (N, B) and transl (N, 3)."""
        if self.points is not None:
            points = self.points.to(dtype=rotations.dtype, device=rotations.device)
            return pose_keypoints(points, rotations, betas, transl)[1]
        assert self.matrix is not None
        vertices = self.body.vertices(rotations[:, 0], rotations[:, 1:], betas, transl)
        return (self.matrix.to(vertices.device) @ vertices).to(rotations.dtype)


def h36m_joints(body: Body, path: Path | None) -> H36MJoints:
    """The joints of evaluation: of the body that ships, or of SMPL with the matrix at ``path``.

    Raises:
        InputError: SMPL comes without the matrix, the body that ships with one, or it is none of the body's.
    """
    if body.sha256 == load_body().sha256:
        if path is not None:
            raise InputError(
                f"{path}: a joint regressor of SMPL's mesh, and the body is the one that ships. Give SMPL, "
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
    """The matrix (joints, vertices) of a ``J_regressor_*.npy`` file, and the file's sha256.

    Raises:
        InputError: it cannot be read, has another shape, or its rows do not sum to 1.
    """
    try:
        content = path.read_bytes()
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}). {FROM_SPIN}.") from e
    try:
        matrix = np.asarray(read_npy(content), np.float64)
    except (ValueError, TypeError) as e:
        raise InputError(f"{path}: no array of numbers ({e}). {FROM_SPIN}.") from e
    if matrix.shape != (joints, vertices):
        raise InputError(
            f"{path}: has shape {matrix.shape}, expected ({joints}, {vertices}): {joints} joints from a mesh "
            f"of {vertices} vertices. {FROM_SPIN}."
        )
    if not np.allclose(matrix.sum(1), 1, atol=1e-2):  # also false for NaN
        raise InputError(f"{path}: its rows do not sum to 1, so it is no joint regressor. {FROM_SPIN}.")
    return matrix, hashlib.sha256(content).hexdigest()
