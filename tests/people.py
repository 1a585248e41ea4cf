"""Rows of a data set whose truth is known: people before three cameras, in the names of Human3.6M."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from models.body import load_body, pose_keypoints
from models.datasets.rows import PersonRow, points_box, to_arrays, write_npz
from models.evaluation.joints import extra_24, h36m_joints
from models.evaluation.scores import TrueBodies
from models.image_regressor import ImageConfig, ImageRegressor
from models.synthetic.cameras import ring_rig
from pipeline.skeleton import EXTRA_24

VIEWS, PEOPLE, COUNT = 3, 4, 12
CAMERAS = ("54138969", "55011271", "60457274")


@cache
def bodies() -> TrueBodies:
    """The body that ships, with joints of its own."""
    return TrueBodies(h36m_joints(load_body(), None))


@cache
def image_net() -> ImageRegressor:
    """With random weights."""
    return ImageRegressor(ImageConfig("resnet50", "average", size=128)).requires_grad_(False).eval()


@cache
def data() -> tuple[PersonRow, ...]:
    """People before three calibrated cameras, exactly known, with pictures that show nothing."""
    body = load_body()
    rng = np.random.default_rng(0)
    angles = 0.25 * rng.normal(size=(PEOPLE, 24, 3))
    angles[:, 0] = 0
    upright = Rotation.from_euler("xz", [90, 0], degrees=True)
    for k in range(PEOPLE):
        angles[k, 0] = (Rotation.from_euler("z", 60.0 * k, degrees=True) * upright).as_rotvec()
    rotations = torch.from_numpy(Rotation.from_rotvec(angles.reshape(-1, 3)).as_matrix()).view(-1, 24, 3, 3)
    betas = torch.from_numpy(0.5 * rng.normal(size=(PEOPLE, 10)))
    transl = torch.from_numpy(np.tile([0.0, 0, 0.9], (PEOPLE, 1)))
    joints = pose_keypoints(extra_24(body), rotations, betas, transl)[1].numpy()
    points = pose_keypoints(body.keypoints, rotations, betas, transl)[1].numpy()
    rig = ring_rig(VIEWS, (640, 480), joints.reshape(-1, 3), 0)
    rows = []
    for k in range(PEOPLE):
        for v in range(VIEWS):
            xy = rig.project(points[k], distorted=True)[v]
            flat = rig.project(joints[k], distorted=True)[v]
            S = joints[k] @ rig.R[v].T + rig.t[v]
            root = Rotation.from_matrix(rig.R[v]) * Rotation.from_rotvec(angles[k, 0])
            rows.append(
                PersonRow(
                    id=f"h36m/S9/Walking_1/{CAMERAS[v]}/{k:06d}",
                    instant=f"{k}",
                    imgname=f"images/S9_{'Walking_1' if k % 2 else 'Eating'}.{CAMERAS[v]}_{k + 1:06d}.png",
                    box=points_box(xy),
                    camera=CAMERAS[v],
                    part=np.c_[flat, np.ones(24)],
                    openpose=np.c_[xy, np.ones(25)],
                    S=np.c_[S - S[EXTRA_24.index("Pelvis (MPII)")], np.ones(24)],
                    pose=np.r_[root.as_rotvec(), angles[k, 1:].ravel()],
                    shape=betas[k].numpy(),
                    has_smpl=1.0,
                    K=rig.K[v],
                    dist=rig.dist[v],
                    R=rig.R[v],
                    t=rig.t[v],
                )
            )
    return tuple(rows)


def write_people(out: Path) -> Path:
    """The rows as rows.npz in a folder, with pictures that show nothing."""
    write_npz(to_arrays(data()), out / "rows.npz")
    (out / "images").mkdir()
    rng = np.random.default_rng(1)
    for row in data():
        small = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(out / row.imgname), cv2.resize(small, (640, 480)))
    return out
