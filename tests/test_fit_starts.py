"""Starts of the fit."""

from __future__ import annotations

import pytest
import roma
import torch
from fit_problems import (
    F64,
)
from scenes import body, mpjpe_mm, scene

from models.fit.problem import (
    HINGES,
    Motion,
)
from models.fit.starts import start_pose, start_shape
from models.rotations import geodesic_degrees
from pipeline.skeleton import BODY_25, SMPL_24


def test_shape_from_bones() -> None:
    d = scene(6, "random", noise_px=0, outliers=0, missing=0)
    betas = start_shape(body().keypoints, d.points)
    assert abs(float(betas[0] - d.betas[0])) < 0.2  # size, by far the largest component
    assert start_shape(body().keypoints, torch.full((4, 25, 3), torch.nan)).abs().max() == 0


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
