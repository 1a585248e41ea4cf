"""Starts of the fit."""

from __future__ import annotations

import pytest
import roma
import torch
from fit_problems import (
    F64,
)
from scenes import body, mpjpe_mm, scene
from torch import Tensor

from models.fit.problem import (
    HINGES,
    Motion,
)
from models.fit.starts import _BONES, TORSO, _aligned, _smooth_twist, start_pose, start_regressed, start_shape
from models.rotations import geodesic_degrees
from pipeline.skeleton import BODY_25, SMPL_24


def test_shape_from_bones() -> None:
    d = scene(6, "random", noise_px=0, outliers=0, missing=0)
    betas = start_shape(body().keypoints, d.points)
    assert abs(float(betas[0] - d.betas[0])) < 0.2  # size, by far the largest component
    assert start_shape(body().keypoints, torch.full((4, 25, 3), torch.nan)).abs().max() == 0


def test_no_shape_beside_explains_the_bones_better() -> None:
    """Of squared errors of 2 cm and of betas: a shape far from the mean takes several steps to find."""
    keypoints = body().keypoints
    g = torch.Generator().manual_seed(0)
    betas = 3 * torch.randn(10, generator=g, dtype=F64)
    points = keypoints.points_template.double() + keypoints.points_shapedirs.double() @ betas
    found = start_shape(keypoints, points.expand(3, -1, -1))
    ends = [[BODY_25.index(bone[i]) for bone in _BONES] for i in (0, 1)]
    seen = (points[ends[0]] - points[ends[1]]).norm(dim=-1)

    def cost(betas: Tensor) -> float:
        points = keypoints.points_template.double() + keypoints.points_shapedirs.double() @ betas
        off = (points[ends[0]] - points[ends[1]]).norm(dim=-1) - seen
        return float((off / 0.02).square().sum() + betas.square().sum())

    for way in torch.randn(100, 10, generator=g, dtype=F64):
        assert cost(found) < cost(found + 1e-4 * way)


@pytest.mark.parametrize("kind", ["person", "random"])
def test_start_is_near_and_bends_the_natural_way(kind: str) -> None:
    d = scene(9, kind, noise_px=0, outliers=0, missing=0)
    pose = start_pose(body().keypoints, d.betas, d.points, 60.0)
    assert pose is not None
    motion = Motion(pose[0][None], pose[1][None], d.betas[None], torch.zeros(1, 25, 3))
    assert mpjpe_mm(motion, d) < 35
    assert geodesic_degrees(pose[0][:, 0], d.rotations[:, 0]).mean() < 12
    for name, axis, sign in HINGES:
        assert (sign * roma.rotmat_to_rotvec(pose[0][:, SMPL_24.index(name)])[:, axis]).min() > -0.2


def test_a_heading_seen_the_wrong_way_round_is_left_out() -> None:
    """Left and right exchanged in some frames: the heading of the others is believed."""
    d = scene(9, "random", noise_px=0, outliers=0, missing=0)
    points = d.points.clone()
    points[40:52] = points[40:52][:, list(BODY_25.flips)]
    pose = start_pose(body().keypoints, d.betas, points, 60.0)
    assert pose is not None
    assert geodesic_degrees(pose[0][:, 0], d.rotations[:, 0]).max() < 45


def test_a_start_that_faces_the_wrong_way_is_repaired() -> None:
    d = scene(9, "random", noise_px=0, outliers=0, missing=0)
    half_turn = torch.diag(torch.tensor([-1.0, 1.0, -1.0], dtype=F64))  # about the body's own vertical
    wrong = d.rotations.clone()
    wrong[:, 0] = wrong[:, 0] @ half_turn
    pose = start_pose(body().keypoints, d.betas, d.points, 60.0, (wrong[:10], d.transl[:10]))
    assert pose is not None
    assert geodesic_degrees(pose[0][:, 0], d.rotations[:, 0]).max() < 45


def test_a_start_needs_a_torso() -> None:
    points = torch.full((5, 25, 3), torch.nan)
    points[:, BODY_25.index("LWrist")] = 1.0
    assert start_pose(body().keypoints, torch.zeros(10), points, 60.0) is None


def test_points_on_a_line_fix_no_rotation() -> None:
    rest = body().keypoints.points_template.double()[[BODY_25.index(n) for n in TORSO]]
    g = torch.Generator().manual_seed(0)
    noise = 0.001 * torch.randn(3, len(TORSO), 3, generator=g, dtype=F64)
    flat = torch.stack([rest, rest[:, 1:2] * torch.tensor([0, 1.0, 0]), rest]) + noise
    flat[2, 2:] = torch.nan
    assert _aligned(rest, flat)[3].tolist() == [True, False, False]
    wide = flat[0].clone()
    wide[3:] = torch.nan
    assert _aligned(rest, wide[None])[3].tolist() == [True]


def test_a_turn_while_nobody_looks_is_believed() -> None:
    """Frames 0.3 s apart may face opposite ways; one frame apart nobody turns so far."""
    d = scene(9, "random", noise_px=0, outliers=0, missing=0, frames=60)
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=F64))  # of the world
    points, turned = d.points.clone(), d.rotations[:, 0].clone()
    points[39:], turned[39:] = points[39:] @ half_turn.T, half_turn @ turned[39:]
    points[20:39] = torch.nan
    pose = start_pose(body().keypoints, d.betas, points, 60.0)
    assert pose is not None
    seen = torch.tensor([*range(20), *range(39, 60)])
    assert geodesic_degrees(pose[0][seen, 0], turned[seen]).max() < 45


def test_the_twist_of_limbs_is_smooth() -> None:
    """Elbows and knees that hardly bend say little of it in each frame. Measured: 6° a frame for 20°."""
    d = scene(9, "person")
    pose = start_pose(body().keypoints, d.betas, d.points_seen(), d.rate)
    assert pose is not None
    limbs = [SMPL_24.index(f"{s}_{j}") for s in ("left", "right") for j in ("shoulder", "hip")]
    assert geodesic_degrees(pose[0][1:, limbs], pose[0][:-1, limbs]).mean() < 10
    strong, weak = (_smooth_twist(torch.full((9, 1), 2.0), torch.full((9, 1), s), 4.0) for s in (1.0, 1e-4))
    assert (strong - 2).abs().max() < 0.02
    assert weak.abs().max() < 0.1


def test_a_foot_below_a_knee_that_nobody_saw_is_left_as_before() -> None:
    d = scene(9, "random", noise_px=0, outliers=0, missing=0, frames=60)
    points = d.points.clone()
    points[20:40, BODY_25.index("LKnee")] = torch.nan
    pose = start_pose(body().keypoints, d.betas, points, 60.0)
    assert pose is not None
    ankle = pose[0][:, SMPL_24.index("left_ankle")]
    part = torch.arange(1, 21, dtype=F64)[:, None, None] / 21
    filled = roma.special_procrustes_naive(torch.lerp(ankle[19], ankle[40], part))
    assert geodesic_degrees(ankle[20:40], filled).max() < 0.1


@pytest.mark.parametrize(
    ("joint", "exchanged"),
    [("head", (("Nose", "LEar"), ("LEye", "REar"))), ("left_ankle", (("LHeel", "LBigToe"),))],
)
def test_a_face_or_foot_seen_the_wrong_way_round_is_left_out(
    joint: str, exchanged: tuple[tuple[str, str], ...]
) -> None:
    d = scene(9, "random", noise_px=0, outliers=0, missing=0, frames=60)
    points = d.points.clone()
    for pair in exchanged:
        one, other = (BODY_25.index(n) for n in pair)
        points[20:30, [one, other]] = points[20:30, [other, one]]
    found, right = (start_pose(body().keypoints, d.betas, p, 60.0) for p in (points, d.points))
    assert found is not None
    assert right is not None
    at = SMPL_24.index(joint)
    assert geodesic_degrees(found[0][:, at], right[0][:, at]).max() < 15


def test_frames_before_are_taken_as_they_are_and_gone_on_from() -> None:
    d = scene(9, "random", noise_px=0, outliers=0, missing=0, frames=12)
    points = d.points.clone()
    wrist = [BODY_25.index(n) for n in ("RElbow", "RWrist")]
    points[3:, wrist] = torch.nan
    before = d.rotations[:3].clone()
    raised = SMPL_24.index("right_shoulder")
    before[:, raised] = before[:, raised] @ roma.rotvec_to_rotmat(torch.tensor([0.0, 0.6, 0.0], dtype=F64))
    pose = start_pose(body().keypoints, d.betas, points, 60.0, (before, d.transl[:3]))
    assert pose is not None
    assert torch.equal(pose[0][:3], before)
    assert torch.equal(pose[1][:3], d.transl[:3])
    assert geodesic_degrees(pose[0][3:, raised], before[2, raised].expand(9, -1, -1)).max() < 1e-3


def test_a_start_from_a_regressor() -> None:
    """Missing frames are filled, one that faces the other way is left out, and hands are straight."""
    d = scene(9, "random", frames=20)
    rotations = d.rotations.clone()
    hand = SMPL_24.index("left_hand")
    rotations[:, hand] = roma.rotvec_to_rotmat(torch.tensor([0.5, 0, 0], dtype=F64))
    rotations[7, 0] = rotations[7, 0] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0], dtype=F64))
    pelvis = d.joints[:, 0].clone()
    pelvis[12] = torch.nan
    found = start_regressed(body().keypoints, d.betas, rotations, pelvis, 60.0)
    assert found is not None
    assert geodesic_degrees(found[0][:, 0], d.rotations[:, 0]).max() < 10
    assert (found[1] - d.transl).norm(dim=-1).max() < 0.05
    assert torch.equal(found[0][:, hand], torch.eye(3, dtype=F64).expand(20, 3, 3))
    known = [t for t in range(20) if t not in (7, 12)]
    assert torch.equal(found[0][known, 1:22], rotations[known, 1:22])
    assert start_regressed(body().keypoints, d.betas, rotations, torch.nan * pelvis, 60.0) is None
