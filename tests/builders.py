"""Small stores and batches that several tests build on."""

import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import zarr
from scipy.spatial.transform import Rotation

from models.synthetic.poses import Poses
from pipeline.batches import FitBatch, KeypointBatch, SmplParams, Status
from pipeline.cameras import Rig
from pipeline.contents import Contents
from pipeline.skeleton import POINT_ORDERS, Skeleton

FRAMES, WINDOW = 20, 8

COCO_17 = Skeleton(
    POINT_ORDERS["coco_17"],
    flips=(0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
    bones=((0, 1), (0, 2), (5, 7), (7, 9), (6, 8), (8, 10), (11, 13), (13, 15), (12, 14), (14, 16)),
)
"""Other keypoints than the usual ones."""


def smpl_file(folder: Path) -> Path:
    """The body that ships, in a file as SMPL comes in: to the program it is another body."""
    with np.load(Path(__file__).parents[1] / "models" / "assets" / "body.npz") as model:
        content = {k: model[k] for k in model.files}
    path = folder / "SMPL_NEUTRAL.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def rig() -> Rig:
    return Rig(
        names=("left", "right"),
        K=np.stack([np.array([[900.0, 0, 320], [0, 910, 240], [0, 0, 1]])] * 2),
        dist=np.array([[-0.1, 0.02, 0.001, -0.001, 0, 0, 0, 0]] * 2),
        R=np.stack([np.eye(3), Rotation.from_rotvec([0, 1.0, 0]).as_matrix()]),
        t=np.array([[0.0, 0, 3], [0.1, 0, 3]]),
        size=np.array([[640, 480]] * 2),
    )


def status(valid: torch.Tensor) -> torch.Tensor:
    """Of fits that were accepted, and of others, for want of keypoints."""
    return torch.where(valid, Status.OK, Status.BRIDGED).to(torch.uint8)


def contents() -> Contents:
    return Contents(
        rig=rig(),
        rate=Fraction(30000, 1001),
        time_s=np.arange(FRAMES) * 1001 / 30000,
        frame_index=np.stack([np.arange(FRAMES), np.arange(FRAMES) + 3]),
        body={"name": "test", "sha256": "0"},
        config={"smplify": {"weight": 1.0}, "render": {"crf": 20}},
        window=WINDOW,
    )


def batch(k: int) -> FitBatch:
    a, b = k * WINDOW, min((k + 1) * WINDOW, FRAMES)
    rng, t = np.random.default_rng(k), b - a

    def random(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(0.1, 1, shape).astype(np.float32))

    def rotations(*shape: int) -> torch.Tensor:
        flat = Rotation.random(int(np.prod(shape)), rng=rng).as_matrix()
        return torch.from_numpy(flat.reshape(*shape, 3, 3))

    image = random(2, t, 1, 25, 2) * 400
    xy = np.stack([rig().undistort(v, image[v].double().numpy()) for v in range(2)]).astype(np.float32)
    return FitBatch(
        keypoints=KeypointBatch(
            start=a,
            rate=Fraction(30000, 1001),
            ids=torch.tensor([0]),
            time_s=torch.from_numpy(np.arange(a, b) * 1001 / 30000),
            image_px=image,
            xy_px=torch.from_numpy(xy),
            confidence=random(2, t, 1, 25),
            state={"associate/0/sight": random(4).double(), "associate/next_id": torch.tensor(1)},
        ),
        params=SmplParams(rotations(t, 1), rotations(t, 1, 23), torch.full((1, 10), 0.5), random(t, 1, 3)),
        joints=random(t, 1, 24, 3),
        keypoints_3d=random(t, 1, 25, 4),
        reprojection_px=random(2, t, 1),
        status=status(torch.from_numpy(rng.random((t, 1)) > 0.5)),
        state={"smplify/0/betas": random(10).double(), "smplify/0/unseen": random().double()},
    )


def on_coco(fit: FitBatch) -> FitBatch:
    """A batch of the same people with keypoints of ``COCO_17``."""
    seen, k = fit.keypoints, len(COCO_17)
    cut = {name: getattr(seen, name)[:, :, :, :k] for name in ("image_px", "xy_px", "confidence")}
    keypoints = replace(seen, skeleton=COCO_17, **cut)
    return replace(fit, keypoints=keypoints, keypoints_3d=fit.keypoints_3d[:, :, :k])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_poses(frames: int = 60) -> Poses:
    pose = 0.25 * torch.randn(frames, 24, 3, generator=seeded(99))
    category = (torch.arange(frames) >= frames // 2).long()
    return Poses(pose, torch.full((frames,), 0.95), category, ("a", "b"))


def write_motion(folder: Path) -> Path:
    """A file of twelve clips of ten frames."""
    rng = np.random.default_rng(0)
    path = folder / "poses.npz"
    np.savez(
        path,
        body_pose=0.25 * rng.normal(size=(120, 24, 3)).astype(np.float32),
        trans=np.full((120, 3), 0.9, np.float32),
        clip_id=np.repeat(np.arange(12), 10),
        clip_name=np.array([f"cmu_{i // 3:02d}_{i:02d}" for i in range(12)]),
        clip_category=np.array(["walk"] * 9 + ["jump"] * 3),
    )
    return path


def store_arrays(store: Path | str) -> dict[str, np.ndarray]:
    """Every array of a results store, by its path in it."""
    root = zarr.open_group(store, mode="r")
    return {name: array[...] for name, array in root.members(max_depth=None) if isinstance(array, zarr.Array)}


def assert_same_stores(a: Path | str, b: Path | str) -> None:
    left, right = store_arrays(a), store_arrays(b)
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert np.array_equal(values, right[name], equal_nan=values.dtype.kind == "f"), name
