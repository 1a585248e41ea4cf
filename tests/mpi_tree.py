"""Small trees of MPI-INF-3DHP's layout. No real file was at hand: names and shapes are SPIN's."""

from __future__ import annotations

from pathlib import Path

import cv2
import h5py
import numpy as np
from scipy.io import savemat
from scipy.spatial.transform import Rotation

JOINTS_28 = [
    "spine3", "spine4", "spine2", "spine", "pelvis", "neck", "head", "head_top", "left_clavicle",
    "left_shoulder", "left_elbow", "left_wrist", "left_hand", "right_clavicle", "right_shoulder",
    "right_elbow", "right_wrist", "right_hand", "left_hip", "left_knee", "left_ankle", "left_foot",
    "left_toe", "right_hip", "right_knee", "right_ankle", "right_foot", "right_toe",
]  # fmt: skip
JOINTS_17 = [
    "head_top", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow",
    "left_wrist", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "pelvis",
    "spine", "head",
]  # fmt: skip
FRAMES, CAMERAS = 23, 14
AWAY = np.array([100.0, 50, 3500])
K = np.array([[1500.0, 0, 1020], [0, 1490, 1030], [0, 0, 1]])


def truth(camera: int) -> np.ndarray:
    """(T, 28, 3) millimetres in a camera's axes; the pelvis is never at 0."""
    rng = np.random.default_rng(camera)
    return rng.uniform(-400, 400, (FRAMES, 28, 3)) + AWAY


def project(xyz: np.ndarray) -> np.ndarray:
    x = xyz @ K.T
    return x[..., :2] / x[..., 2:]


def calibration(spaces: str = " ") -> str:
    """Of 14 cameras, those of odd number with their lines the other way round."""
    out = ["Skeletool Camera Calibration File V1.0"]
    for c in range(CAMERAS):
        intrinsic, extrinsic = np.eye(4), np.eye(4)
        intrinsic[:3, :3] = K + np.diag([c, c, 0])
        extrinsic[:3, :3] = Rotation.from_rotvec([0, 0.1 * c, 0]).as_matrix()
        extrinsic[:3, 3] = [1000.0 * c, 0, 3500]
        lines = [
            f"  {name}{spaces}{spaces.join(map(str, m.ravel()))} "
            for name, m in (("intrinsic", intrinsic), ("extrinsic", extrinsic))
        ]
        out += [f"name          {c}", "  sensor      10 10", "  size        2048 2048", "  animated    0"]
        out += [*lines[:: -1 if c % 2 else 1], "  radial      0"]
    return "\n".join(out) + "\n"


def cells(values: list[np.ndarray]) -> np.ndarray:
    """What loadmat makes of a MATLAB cell array (14, 1)."""
    out = np.empty((len(values), 1), object)
    for i, v in enumerate(values):
        out[i, 0] = v
    return out


def make_train(root: Path, videos: bool = False) -> Path:
    folder = root / "S1" / "Seq1"
    folder.mkdir(parents=True)
    solid = [truth(c) for c in range(CAMERAS)]
    flat = [project(x) for x in solid]
    flat[0][10, 20] = [-1, 50]  # the left ankle leaves the picture
    savemat(
        folder / "annot.mat",
        {
            "annot2": cells([x.reshape(FRAMES, 56) for x in flat]),
            "annot3": cells([x.reshape(FRAMES, 84) for x in solid]),
        },
    )
    (folder / "camera.calibration").write_text(calibration())
    for c in (0, 4):
        if videos:
            (folder / "imageSequence").mkdir(exist_ok=True)
            (folder / "imageSequence" / f"video_{c}.avi").touch()
            continue
        frames = folder / "imageFrames" / f"video_{c}"
        frames.mkdir(parents=True)
        # Written in an order that is not theirs, and one is missing: neither may shift the others.
        for i in [21, *range(1, 6), *range(7, 21), 22, 23]:
            (frames / f"frame_{i:06d}.jpg").touch()
    return root


def make_test(root: Path, sequence: int = 1) -> Path:
    folder = root / "mpi_inf_3dhp_test_set" / f"TS{sequence}"
    (folder / "imageSequence").mkdir(parents=True)
    xyz = np.random.default_rng(9).uniform(-400, 400, (4, 17, 3)) + AWAY
    xy = project(xyz)
    xy[3, 5, 0] = 2048
    with h5py.File(folder / "annot_data.mat", "w") as mat:
        mat["annot2"], mat["annot3"], mat["univ_annot3"] = xy[:, None], xyz[:, None], 0.9 * xyz[:, None]
        mat["valid_frame"] = np.array([[1.0], [0], [1], [1]])
        mat["activity_annotation"] = np.array([[1.0], [2], [3], [4]])
    picture = np.zeros((2048, 2048, 3), np.uint8)
    for i in range(4):
        cv2.imwrite(str(folder / "imageSequence" / f"img_{i + 1:06d}.jpg"), picture)
    return root
