"""3DPW (von Marcard et al. 2018): people outdoors in front of a moving camera, with SMPL from worn sensors.

::

    sequenceFiles/test/<sequence>.pkl
    imageFiles/<sequence>/image_%05d.jpg
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.datasets.rows import Part, PersonRow, check_picture, points_box
from pipeline.array_types import Array
from pipeline.errors import InputError
from pipeline.files import decoding
from pipeline.pickles import unpickle_arrays
from pipeline.skeleton import EXTRA_24

NAME: Final = "3dpw"
SPLITS: Final = ("test", "train", "validation")
STEP: Final = {"test": 1, "train": 1, "validation": 1}

_COCO_18: Final = (
    "Nose", "", "RShoulder", "RElbow", "RWrist", "LShoulder", "LElbow", "LWrist", "RHip", "RKnee", "RAnkle",
    "LHip", "LKnee", "LAnkle", "REye", "LEye", "REar", "LEar",
)  # fmt: skip
"""Order of ``poses2d``, without its neck, which is OpenPose's and not EXTRA_24's."""


def parts(root: Path, split: str) -> tuple[Part, ...]:
    """Sequences of a split below ``root``. Raises ``InputError`` where there are none."""
    files = sorted((root / "sequenceFiles" / split).glob("*.pkl"))
    if not files:
        raise InputError(
            f"{root}: no sequenceFiles/{split}/*.pkl. Give the folder in which sequenceFiles.zip and "
            "imageFiles.zip of 3DPW were unpacked."
        )
    return tuple(Part(root, f"{split}/{file.stem}", split) for file in files)


def missing(present: tuple[Part, ...]) -> str:
    """Missing sequences of the split, in words; '' for none."""
    count = {"train": 24, "validation": 12, "test": 24}[present[0].split]
    return "" if len(present) >= count else f"{len(present)} of {count} sequences are there"


def rows(part: Part, every: int) -> Iterator[PersonRow]:
    """Rows of every person and ``every``-th frame in which the camera's pose is known.

    Raises ``InputError``: the file is damaged or holds something else, or a picture is missing.
    """
    file = part.root / "sequenceFiles" / f"{part.name}.pkl"
    with decoding(file, "Download it again."):
        data: dict[str, Any] = unpickle_arrays(file.read_bytes())
        sequence = str(data["sequence"])
        extrinsics = np.asarray(data["cam_poses"], np.float64)
        K = np.asarray(data["cam_intrinsics"], np.float64)
        people = [
            (np.asarray(pose, np.float64), np.asarray(betas, np.float64)[:10], np.asarray(xy), str(gender))
            for pose, betas, xy, gender in zip(
                data["poses"], data["betas"], data["poses2d"], data["genders"], strict=True
            )
        ]
        valid = np.asarray(data["campose_valid"], bool)
        _expect(valid.shape, (len(people), len(extrinsics)), "campose_valid")
        frames = len(extrinsics)
        for pose, betas, xy, _ in people:
            _expect(pose.shape, (frames, 72), "poses")
            _expect(betas.shape, (10,), "betas")
            _expect(xy.shape, (frames, 3, 18), "poses2d")
        _expect(extrinsics.shape, (frames, 4, 4), "cam_poses")
        _expect(K.shape, (3, 3), "cam_intrinsics")
    for p, (pose, betas, xy, gender) in enumerate(people):
        for i in range(0, frames, every):
            visible = xy[i, 2] > 0
            if not valid[p, i] or visible.sum() < 2:
                continue
            imgname = f"imageFiles/{sequence}/image_{i:05d}.jpg"
            check_picture(part.root, imgname, "imageFiles.zip")
            R, t = extrinsics[i, :3, :3], extrinsics[i, :3, 3]
            root = torch.tensor(R) @ roma.rotvec_to_rotmat(torch.tensor(pose[i, :3]))
            joints = _to_extra_24(xy[i])
            yield PersonRow(
                id=f"{NAME}/{sequence}/{p}/video/{i:06d}",
                instant=f"{sequence}/{p}/{i}",
                imgname=imgname,
                box=points_box(xy[i, :2, visible].astype(np.float64)),
                camera="video",
                action=sequence,
                part=joints,
                pose=np.concatenate([roma.rotmat_to_rotvec(root), pose[i, 3:]]),
                shape=betas,
                has_smpl=1.0,
                gender=gender[:1].lower(),
                K=K,
                dist=np.zeros(8),
                R=R,
                t=t,
            )


def _expect(shape: tuple[int, ...], expected: tuple[int, ...], name: str) -> None:
    if shape != expected:
        raise ValueError(f"{name} {shape}, expected {expected}")


def _to_extra_24(points: NDArray[Any]) -> Array:
    """EXTRA_24 (24, 3), x, y, 1 or zeros, of 3DPW's points (3, 18)."""
    out = np.zeros((len(EXTRA_24), 3))
    for j, name in enumerate(_COCO_18):
        if name in EXTRA_24.names and points[2, j] > 0:
            out[EXTRA_24.index(name)] = *points[:2, j], 1
    return out
