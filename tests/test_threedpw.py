"""3DPW from small trees of its layout. No real file was at hand: names and shapes are its description's."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from models.datasets.rows import to_arrays
from models.datasets.threedpw import parts, rows
from pipeline.errors import InputError
from pipeline.skeleton import EXTRA_24

FRAMES = 6
VALID = [[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0]]


def content() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    cam = np.tile(np.eye(4), (FRAMES, 1, 1))
    cam[:, :3, :3] = Rotation.from_rotvec(rng.normal(size=(FRAMES, 3))).as_matrix()
    cam[:, :3, 3] = rng.normal(size=(FRAMES, 3))
    flat = rng.uniform(100, 900, (2, FRAMES, 3, 18))
    flat[:, :, 2] = 0.8
    flat[:, :, :, 4] = 0
    return {
        "sequence": "downtown_test_00",
        "poses": [rng.normal(size=(FRAMES, 72)) for _ in range(2)],
        "betas": [rng.normal(size=300) for _ in range(2)],
        "poses2d": list(flat),
        "genders": ["m", "f"],
        "cam_poses": cam,
        "cam_intrinsics": np.array([[1960.0, 0, 540], [0, 1960, 960], [0, 0, 1]]),
        "campose_valid": [np.array(v) for v in VALID],
        "img_frame_ids": np.arange(FRAMES),
    }


def make(root: Path, data: object = None) -> Path:
    folder = root / "sequenceFiles" / "test"
    folder.mkdir(parents=True)
    (folder / "downtown_test_00.pkl").write_bytes(pickle.dumps(data or content(), protocol=2))
    pictures = root / "imageFiles" / "downtown_test_00"
    pictures.mkdir(parents=True)
    for i in range(FRAMES):
        (pictures / f"image_{i:05d}.jpg").touch()
    return root


def test_frames_with_a_known_camera_have_their_pose_in_it(tmp_path: Path) -> None:
    (part,) = parts(make(tmp_path), "test")
    data = content()
    got = list(rows(part, 1))
    want = [(p, i) for p in range(2) for i in range(FRAMES) if VALID[p][i]]
    assert [(r.id.split("/")[2], int(r.id[-6:])) for r in got] == [(str(p), i) for p, i in want]
    for r, (p, i) in zip(got, want, strict=True):
        assert r.imgname == f"imageFiles/downtown_test_00/image_{i:05d}.jpg"
        np.testing.assert_allclose(r.pose[3:], data["poses"][p][i, 3:])
        np.testing.assert_allclose(r.shape, data["betas"][p][:10])
        world = Rotation.from_rotvec(data["poses"][p][i, :3]).as_matrix()
        cam = data["cam_poses"][i]
        np.testing.assert_allclose(
            Rotation.from_rotvec(r.pose[:3]).as_matrix(), cam[:3, :3] @ world, atol=1e-12
        )
        np.testing.assert_allclose(r.R, cam[:3, :3])
        np.testing.assert_allclose(r.t, cam[:3, 3])
        assert (r.gender, r.has_smpl) == ("mf"[p], 1)
        known = [j for j in range(18) if j != 4]  # the missing wrist is no point at (0, 0)
        xy = data["poses2d"][p][i, :2, known]
        assert r.box[2] == pytest.approx(1.2 * np.ptp(xy, axis=0).max())
        np.testing.assert_allclose(r.part[EXTRA_24.index("LKnee")], [*data["poses2d"][p][i, :2, 12], 1])
        assert not r.part[EXTRA_24.index("RWrist")].any()
    arrays = to_arrays(got)
    assert len(set(arrays["group"])) == len(got), "one camera, and two people are not two views"


def test_nothing_of_the_file_is_run(tmp_path: Path) -> None:
    data = content()
    data["sequence"] = Path("downtown_test_00")
    (part,) = parts(make(tmp_path, data), "test")
    with pytest.raises(InputError, match=r"pathlib"):
        list(rows(part, 1))


def test_what_is_wrong_is_said_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no sequenceFiles/train"):
        parts(tmp_path, "train")
    data = content()
    data["poses"][1] = data["poses"][1][:-1]
    (part,) = parts(make(tmp_path / "short", data), "test")
    with pytest.raises(InputError, match=r"poses \(5, 72\), expected \(6, 72\)"):
        list(rows(part, 1))
    root = make(tmp_path / "gone")
    (part,) = parts(root, "test")
    (root / "imageFiles" / "downtown_test_00" / "image_00003.jpg").unlink()
    with pytest.raises(InputError, match=r"image_00003.jpg: is not there"):
        list(rows(part, 1))
