"""The extra joints: where they lie on the body, how they move with it, and the files of SMPL's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from numpy.typing import NDArray

from models.body import Body, KeypointBody, load_body, pose_keypoints
from models.evaluation.joints import extra_24, h36m_17, h36m_joints, read_regressor
from pipeline.errors import InputError
from pipeline.skeleton import BODY_25, EXTRA_24, EXTRA_24_OF_H36M_17, H36M_17, SMPL_24


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


def random_pose(seed: int, n: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    angles = 0.5 * torch.randn(n, 24, 3, dtype=torch.float64, generator=rng)
    betas = torch.randn(n, 10, dtype=torch.float64, generator=rng)
    return roma.rotvec_to_rotmat(angles), betas, torch.randn(n, 3, dtype=torch.float64, generator=rng)


def at_rest(points: KeypointBody) -> dict[str, NDArray[np.float64]]:
    names = EXTRA_24.names if len(points.weights) == 24 else H36M_17.names
    return dict(zip(names, points.points_template.numpy(), strict=True))


def test_the_points_lie_among_their_anatomical_neighbours(body: Body) -> None:
    at = at_rest(extra_24(body))
    joint = dict(zip(SMPL_24.names, body.keypoints.joints_template.numpy(), strict=True))
    skin = dict(zip(BODY_25.names, body.keypoints.points_template.numpy(), strict=True))
    up = ["RAnkle", "RKnee", "Pelvis (MPII)", "Spine (H36M)", "Thorax (MPII)", "Neck (LSP)", "Jaw (H36M)"]
    heights = [at[n][1] for n in [*up, "Head (H36M)", "TopHead (LSP)"]]
    assert (np.diff(heights) > 0).all()
    assert at["Neck (LSP)"][1] < joint["neck"][1]
    assert skin["Nose"][1] - 0.05 < at["Jaw (H36M)"][1] < skin["Nose"][1]
    assert at["TopHead (LSP)"][1] == body.v_template[:, 1].max().item()
    for name in (n for n in EXTRA_24.names if n[0] not in "LR"):
        assert at[name][0] == pytest.approx(0, abs=1e-6), f"{name} is not in the middle"
    # Human3.6M's bones by its trunk of 490 mm: shoulders 151 mm from the neck, jaw 121, head 115 further.
    trunk = np.linalg.norm(at["Neck (LSP)"] - at["Pelvis (MPII)"])
    for a, b, want in (
        ("Neck (LSP)", "Jaw (H36M)", 121 / 490),
        ("Jaw (H36M)", "Head (H36M)", 115 / 490),
        ("Pelvis (MPII)", "Spine (H36M)", 233 / 490),
    ):
        assert np.linalg.norm(at[a] - at[b]) / trunk == pytest.approx(want, abs=0.03), (a, b)


def test_left_and_right_are_mirror_images(body: Body) -> None:
    points = extra_24(body)
    flip = list(EXTRA_24.flips)
    mirrored = points.points_template[flip] * torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(points.points_template, mirrored, atol=1e-9, rtol=0)
    torch.testing.assert_close(points.weights.sum(1), torch.ones(24, dtype=torch.float64))


def test_the_17_are_those_of_the_24_left_first(body: Body) -> None:
    said = [EXTRA_24.names[i].split(" ")[0] for i in EXTRA_24_OF_H36M_17]
    assert said == list(H36M_17.names)
    assert all(at_rest(h36m_17(body))[n][0] > 0 for n in H36M_17.names if n[0] == "L")
    rotations, betas, transl = random_pose(1)
    every = pose_keypoints(extra_24(body), rotations, betas, transl)[1]
    some = pose_keypoints(h36m_17(body), rotations, betas, transl)[1]
    torch.testing.assert_close(some, every[:, list(EXTRA_24_OF_H36M_17)])


def test_limbs_are_the_joints_and_the_face_the_skin(body: Body) -> None:
    rotations, betas, transl = random_pose(2)
    points = pose_keypoints(extra_24(body), rotations, betas, transl)[1]
    joints, body_25 = pose_keypoints(body.keypoints, rotations, betas, transl)
    for name in ("RAnkle", "LKnee", "LWrist", "RElbow", "LShoulder", "Nose", "REar"):
        torch.testing.assert_close(points[:, EXTRA_24.index(name)], body_25[:, BODY_25.index(name)])
    middle = joints[:, [SMPL_24.index(f"{s}_hip") for s in ("left", "right")]].mean(1)
    torch.testing.assert_close(points[:, EXTRA_24.index("Pelvis (MPII)")], middle)
    crown = int(body.v_template[:, 1].argmax())
    mesh = body.vertices(rotations[:, 0], rotations[:, 1:], betas, transl)[:, crown]
    top = points[:, EXTRA_24.index("TopHead (LSP)")]
    torch.testing.assert_close(top.float(), mesh, atol=1e-5, rtol=0)


def smpl_like(body: Body) -> Body:
    """A body that is not the one that ships."""
    return replace(body, name="SMPL_NEUTRAL.pkl", sha256="0" * 64)


def test_smpl_takes_its_joints_from_the_mesh_by_the_matrix(body: Body, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count = len(body.v_template)
    matrix = np.zeros((17, count))
    for row in matrix:
        row[rng.choice(count, 6, replace=False)] = 1 / 6
    file = tmp_path / "J_regressor_h36m.npy"
    np.save(file, matrix)
    joints = h36m_joints(smpl_like(body), file)
    assert not joints.approximate
    assert "J_regressor_h36m.npy" in joints.source
    rotations, betas, transl = random_pose(3)
    mesh = body.vertices(rotations[:, 0], rotations[:, 1:], betas, transl).double().numpy()
    slow = [[sum(w * v for w, v in zip(row, m, strict=True) if w) for row in matrix] for m in mesh]
    np.testing.assert_allclose(joints(rotations, betas, transl).numpy(), slow, atol=2e-6)


@pytest.mark.parametrize("pose_blend", [False, True])
def test_spins_own_extra_joints_are_their_vertices_where_these_move_with_one_bone(
    body: Body, pose_blend: bool
) -> None:
    if pose_blend:
        g = torch.Generator().manual_seed(0)
        keypoints = replace(body.keypoints, points_posedirs=torch.zeros(25, 3, 207, dtype=torch.float64))
        dirs = 0.003 * torch.randn(207, 3 * len(body.v_template), generator=g)
        body = replace(body, posedirs=dirs, keypoints=keypoints)
    skull = np.flatnonzero(body.weights[:, SMPL_24.index("head")].numpy() == 1)
    rows = np.zeros((9, len(body.v_template)))
    for k, row in enumerate(rows):
        row[skull[k::9][:20]] = 1 / 20
    rotations, betas, transl = random_pose(4)
    points = pose_keypoints(extra_24(body, rows), rotations, betas, transl)[1]
    mesh = body.vertices(rotations[:, 0], rotations[:, 1:], betas, transl).double().numpy()
    order = ["RHip", "LHip", "Neck (LSP)", "TopHead (LSP)", "Pelvis (MPII)", "Thorax (MPII)"]
    order += ["Spine (H36M)", "Jaw (H36M)", "Head (H36M)"]  # rows 45 to 53 of SPIN's joints
    at = [EXTRA_24.index(n) for n in order]
    np.testing.assert_allclose(points[:, at].numpy(), rows @ mesh, atol=1e-5)
    with pytest.raises(ValueError, match="expected \\(9, "):
        extra_24(body, rows[:8])


def test_the_body_that_ships_says_that_it_is_approximate(body: Body, tmp_path: Path) -> None:
    joints = h36m_joints(body, None)
    assert joints.approximate
    assert joints.source.startswith("approximate")
    rotations, betas, transl = random_pose(5)
    want = pose_keypoints(h36m_17(body), rotations, betas, transl)[1]
    torch.testing.assert_close(joints(rotations, betas, transl), want)
    with pytest.raises(InputError, match="of SMPL's mesh"):
        h36m_joints(body, tmp_path / "J_regressor_h36m.npy")


def test_messages_say_where_the_files_come_from(body: Body, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fetch_data"):
        h36m_joints(smpl_like(body), None)
    file = tmp_path / "J.npy"
    with pytest.raises(InputError, match="cannot be read"):
        read_regressor(file, 17)
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        read_regressor(file, 17)
    np.save(file, np.zeros((9, 6890)))
    with pytest.raises(InputError, match="expected \\(17, 6890\\)"):
        read_regressor(file, 17)
    np.save(file, np.zeros((17, 6890)))
    with pytest.raises(InputError, match="sum to 1"):
        read_regressor(file, 17)
