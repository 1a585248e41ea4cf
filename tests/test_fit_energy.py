"""The energy of the fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import roma
import torch
from fit_problems import (
    F64,
    ROBUST,
    apart,
    problem_body,
    small_problem,
)
from scenes import body, prior, scene
from torch import Tensor

from models.body import pose_keypoints
from models.fit.energy import evaluate_energy
from models.fit.problem import (
    HINGES,
    FitSettings,
    Motion,
    PoseTarget,
    Views,
    Weights,
    prepare,
)
from models.fit.system import linearise
from pipeline.skeleton import SMPL_24


@pytest.mark.parametrize("pose_blend", [False, True])
def test_points_are_those_of_the_body(pose_blend: bool) -> None:
    pb, motion = small_problem(pose_blend=pose_blend)
    st = evaluate_energy(pb, motion, ROBUST)
    for n in range(2):
        _, wanted = pose_keypoints(
            problem_body(pose_blend),
            motion.rotations[n],
            motion.betas[n],
            motion.transl[n],
            motion.offsets[n],
        )
        assert (st.points[n].movedim(0, -1) - wanted).abs().max() < 1e-7


def test_views_with_one_motion_in_the_world_cost_what_calibrated_ones_do() -> None:
    d = scene(3, "random", frames=12, views=3, noise_px=40)
    motion = Motion(d.rotations[None], d.transl[None], d.betas[None], 0.01 * torch.ones(1, 25, 3, dtype=F64))
    views = d.views(F64)

    def energy(v: Views, m: Motion, roots: int) -> float:
        pb, m, _ = prepare(body().keypoints, v, m, FitSettings(60.0, prior=prior()), roots)
        return float(evaluate_energy(pb, m, ROBUST).energy.sum())

    assert energy(*apart(views, motion), 3) == pytest.approx(energy(views, motion, 1), rel=1e-9)


@pytest.mark.parametrize("length", [12, 1])
def test_over_a_break_there_is_no_movement(length: int) -> None:
    """Two clips in a row, a break between them, cost what each costs alone."""
    clips = [scene(s, "random", frames=n) for s, n in ((4, length), (5, 12))]
    starts = [replace(d.start(), betas=torch.zeros(1, 10, dtype=F64)) for d in clips]
    views = [d.views(F64) for d in clips]
    row = replace(
        views[0],
        xy_px=torch.cat([v.xy_px for v in views], 2),
        confidence=torch.cat([v.confidence for v in views], 2),
    )
    start = replace(
        starts[0],
        rotations=torch.cat([s.rotations for s in starts], 1),
        transl=torch.cat([s.transl for s in starts], 1),
    )

    def energy(v: Views, m: Motion, breaks: tuple[int, ...]) -> float:
        pb, motion, _ = prepare(
            body().keypoints, v, m, FitSettings(60.0, breaks=breaks, free_shape=False, prior=prior())
        )
        return float(evaluate_energy(pb, motion, ROBUST).energy)

    apart = sum(energy(v, m, ()) for v, m in zip(views, starts, strict=True))
    assert energy(row, start, (length,)) == pytest.approx(apart, rel=1e-12)
    assert energy(row, start, ()) > 1.2 * apart


@pytest.mark.parametrize("depth_m", [0.09, -1.0])
def test_what_lies_behind_a_camera_costs_the_most_and_does_not_pull(depth_m: float) -> None:
    """Nor does what lies within 10 cm before it: whatever the view says to have seen, that was not it."""
    d = scene(3, "random", frames=4, views=3)
    start, views = replace(d.start(), betas=torch.zeros(1, 10, dtype=F64)), d.views(F64)
    pb, motion, origin = prepare(body().keypoints, views, start, FitSettings(60.0))
    highest_z = evaluate_energy(pb, motion, ROBUST).points[0, 2].max() + origin[0, 2]
    R, t = views.R.clone(), views.t.clone()
    R[:, 1] = torch.eye(3, dtype=F64)
    t[:, 1] = torch.tensor([0, 0, depth_m - highest_z])
    behind, unseen = replace(views, R=R, t=t), views.confidence.clone()
    unseen[:, 1] = 0

    def solved(v: Views) -> tuple[float, Tensor]:
        pb, motion, _ = prepare(body().keypoints, v, start, FitSettings(60.0, prior=prior()))
        st = evaluate_energy(pb, motion, ROBUST)
        return float(st.energy), linearise(pb, st, ROBUST).grad

    (energy, grad), (without, alone) = solved(behind), solved(replace(behind, confidence=unseen))
    trust = float((views.confidence[:, 1] ** 2).sum())
    assert energy - without == pytest.approx(ROBUST**2 * trust, rel=1e-9)
    assert torch.equal(grad, alone)


def test_frames_that_are_held_tie_the_others_and_do_not_count() -> None:
    d = scene(3, "random", frames=8)
    start = replace(d.start(), betas=torch.zeros(1, 10, dtype=F64))
    rotations = start.rotations.clone()
    for name, axis, sign in HINGES:  # backwards and sideways
        bend = torch.tensor([0.3, 0.3, 0.3], dtype=F64)
        bend[axis] = -0.8 * sign
        rotations[:, :2, SMPL_24.index(name)] = roma.rotvec_to_rotmat(bend)
    other = replace(start, rotations=rotations)

    def energy(m: Motion, weights: Weights) -> float:
        pose_target = PoseTarget(start.rotations[:, :, 1:], torch.tensor([0.1], dtype=F64))
        settings = FitSettings(
            60.0, 2, free_shape=False, weights=weights, prior=prior(), pose_target=pose_target
        )
        pb, motion, _ = prepare(body().keypoints, d.views(F64), m, settings)
        return float(evaluate_energy(pb, motion, ROBUST).energy)

    untied = Weights(acceleration=0, spin=0)
    assert energy(other, untied) == pytest.approx(energy(start, untied), rel=1e-12)
    assert energy(other, Weights()) > 1.2 * energy(start, Weights())


def test_a_given_pose_costs_the_squared_angle_to_it_in_standard_deviations() -> None:
    d = scene(3, "random", frames=5)
    start = d.start()
    turn = roma.rotvec_to_rotmat(torch.tensor([0.01, 0.02, -0.02], dtype=F64))  # by 0.03

    def energy(pose: Tensor) -> float:
        settings = FitSettings(60.0, pose_target=PoseTarget(pose, torch.tensor([0.1], dtype=F64)))
        pb, motion, _ = prepare(body().keypoints, d.views(F64), start, settings)
        return float(evaluate_energy(pb, motion, ROBUST).energy)

    pose = start.rotations[:, :, 1:]
    other = pose.clone()
    other[:, 2, SMPL_24.index("left_elbow") - 1] @= turn
    assert energy(other) - energy(pose) == pytest.approx((0.03 / 0.1) ** 2, rel=1e-3)
