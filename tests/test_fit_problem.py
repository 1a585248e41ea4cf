"""Constants of a fit: weights of what the cameras saw, and the joints that are free to turn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fit_problems import F64
from scenes import body, scene
from torch import Tensor

from models.fit.problem import FitSettings, LeverBody, Motion, Problem, Views, Weights, prepare
from pipeline.skeleton import BODY_25, SMPL_24


def problem(views: Views, transl: Tensor, weights: Weights | None = None) -> Problem:
    """Of a body at rest whose root path is ``transl`` (T, 3)."""
    frames = len(transl)
    rest = Motion(
        torch.eye(3, dtype=F64).expand(1, frames, 24, 3, 3),
        transl[None].to(F64),
        torch.zeros(1, 10, dtype=F64),
        torch.zeros(1, 25, 3, dtype=F64),
    )
    return prepare(body().keypoints, views, rest, FitSettings(60.0, weights=weights or Weights()))[0]


def camera_at_the_origin(frames: int) -> Views:
    d = scene(4, "random", frames=frames, views=1)
    views = d.views(F64)
    return replace(views, R=torch.eye(3, dtype=F64)[None, None], t=torch.zeros(1, 1, 3, dtype=F64))


def test_keypoints_err_in_proportion_to_the_size_of_the_person_within_bounds() -> None:
    """By a pixel at least, however far away, and at most by as much as at a metre, also behind the camera."""
    depth = torch.tensor([4.0, 100.0, 0.3, -2.0])
    pelvis = LeverBody.of(body().keypoints, F64, torch.device("cpu")).joint0
    views = camera_at_the_origin(len(depth))
    transl = torch.stack([0 * depth, 0 * depth, depth], -1) - pelvis
    found = problem(views, transl, Weights(keypoint_m=0.015, keypoint_px=1.0)).focal[0, 0, :, 0]
    focal = float(views.K[0, 0, 0, 0])
    sigma_px = torch.tensor([0.015 * focal / 4, 1, 0.015 * focal, 0.015 * focal], dtype=F64)
    assert torch.allclose(found, focal / sigma_px)


@pytest.mark.parametrize(("reach_m", "turns"), [(0.009, False), (0.011, True)])
def test_a_joint_that_moves_keypoints_by_millimetres_is_not_turned(reach_m: float, turns: bool) -> None:
    keypoints = body().keypoints
    hand, point = SMPL_24.index("left_hand"), BODY_25.index("LWrist")
    assert hand not in LeverBody.of(keypoints, F64, torch.device("cpu")).active.tolist()
    lever = keypoints.points_template[point] - keypoints.joints_template[hand]
    weights = keypoints.weights.clone()
    weights[point, hand] = reach_m / float(lever.norm())
    active = LeverBody.of(replace(keypoints, weights=weights), F64, torch.device("cpu")).active.tolist()
    assert (hand in active) == turns


def test_cameras_and_motions_move_by_one_origin_in_single_precision() -> None:
    """A kilometre away a number of single precision is good to 0.06 mm, and an origin to all its digits."""
    d = scene(4, "random", frames=5)
    away = torch.tensor([1000.3, -2000.4, 30.2], dtype=F64)
    views, start = d.views(), d.start()
    R = views.R.double()
    t = views.t.double() - (R @ away[:, None])[..., 0]
    pb, motion, origin = prepare(
        body().keypoints,
        replace(views, R=R, t=t),
        replace(start, transl=start.transl + away),
        FitSettings(60.0),
    )
    assert ((t + (R @ origin.double()[:, None, :, None])[..., 0]) - pb.t).abs().max() < 1e-6
    assert (motion.transl + origin.double()[:, None] - away - start.transl).abs().max() < 1e-6


def test_a_keypoint_that_is_not_a_number_is_missing_whatever_its_confidence() -> None:
    views = camera_at_the_origin(2)
    xy, confidence = torch.nan_to_num(views.xy_px), torch.ones_like(views.confidence)
    xy[0, 0, 0, 3], xy[0, 0, 1, 5] = torch.nan, torch.tensor([torch.inf, 100])
    pb = problem(replace(views, xy_px=xy, confidence=confidence), torch.tensor([[0, 0, 4.0]] * 2))
    missing = torch.zeros_like(pb.confidence_sq)
    missing[0, 0, 0, 3] = missing[0, 0, 1, 5] = 1
    assert torch.equal(pb.confidence_sq, 1 - missing)
    assert pb.image_xy.isfinite().all()
