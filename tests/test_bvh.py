"""BVH files, read back channel by channel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exported import HAS_POSE, NEAR, TO_Y, Bvh, T, Truth, write
from scipy.spatial.transform import Rotation

from models.formats.bvh import zxy_degrees
from pipeline.skeleton import SMPL_24


@pytest.mark.parametrize("up", TO_Y)
def test_a_bvh_moves_as_the_skeleton_does(truths: Callable[[str], Truth], tmp_path: Path, up: str) -> None:
    truth = truths(up)
    write(truth, tmp_path / "a.bvh")
    file = Bvh.read((tmp_path / "a.bvh").read_text())
    tree = {SMPL_24.names[child]: SMPL_24.names[parent] for parent, child in SMPL_24.bones} | {"pelvis": None}
    assert {
        n: file.names[p] if p >= 0 else None for n, p in zip(file.names, file.parents, strict=True)
    } == tree
    assert file.channels[0] == [f"{a}position" for a in "XYZ"] + [f"{a}rotation" for a in "ZXY"]
    assert all(c == [f"{a}rotation" for a in "ZXY"] for c in file.channels[1:])
    assert file.offsets[0].tolist() == [0, 0, 0]
    assert file.ends == sum(j not in SMPL_24.parents for j in range(len(SMPL_24)))
    assert len(file.rows) == T
    assert file.frame_time == pytest.approx(1001 / 30000, abs=1e-9)
    for t in HAS_POSE:
        found = file.joints_at(t)
        joints = np.stack([found[n] for n in SMPL_24.names]) / 100
        np.testing.assert_allclose(joints, TO_Y[up](truth.joints[t]), atol=NEAR)


def test_angles_go_on_past_90_degrees(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    write(truths("z"), tmp_path / "a.bvh")
    file = Bvh.read((tmp_path / "a.bvh").read_text())
    angles = file.rows[:, 3:].reshape(T, 24, 3)
    knee = angles[:, file.names.index("left_knee")]
    assert knee[:, 1].max() > 120
    np.testing.assert_allclose(knee[:, [0, 2]], 0, atol=1e-4)
    assert np.abs(np.diff(angles, axis=0)).max() < 60


def test_euler_angles_make_the_rotation_at_every_bend() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.uniform(-180, 180, (40, 3, 3))
    drawn[::4, :, 1], drawn[1::4, :, 1] = 90, -90  # where a and c turn about one axis
    drawn[2::4, 0] = np.round(drawn[2::4, 0] / 90) * 90
    turns = Rotation.from_euler("ZXY", drawn.reshape(-1, 3), degrees=True).as_matrix().reshape(40, 3, 3, 3)
    found = zxy_degrees(turns)
    again = Rotation.from_euler("ZXY", found.reshape(-1, 3), degrees=True).as_matrix().reshape(40, 3, 3, 3)
    np.testing.assert_allclose(again, turns, atol=1e-9)
