"""Bundle adjustment of cameras and a person: gradients, and a known truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scenes import body, rig_errors, scene
from scipy.spatial.transform import Rotation

from models.geometry.bundle import (
    BONES,
    BodySize,
    FocalPrior,
    Sight,
    _Adjustment,
    _Unknowns,
    adjust,
    bone_lengths,
)
from models.geometry.triangulation import triangulate
from pipeline.skeleton import BODY_25

SIZE = BodySize.of(
    body().keypoints.points_template.double().numpy(), body().keypoints.points_shapedirs.double().numpy()
)


def test_the_steps_of_the_adjustment_follow_its_energy() -> None:
    """The gradient against finite differences of the energy, at a rough rig, robust loss and all."""
    s = scene(5, frames=80, rate=20)
    rng = np.random.default_rng(3)
    turned = np.asarray(Rotation.from_rotvec(rng.normal(0, 0.05, (4, 3))).as_matrix()) @ s.rig.R
    rig = replace(s.rig, R=turned)
    sight = Sight(s.xy, s.confidence).frames(slice(0, 3))
    points = triangulate(rig, sight.xy_px, sight.confidence).points
    problem = _Adjustment(rig, sight, points, SIZE, FocalPrior.of(rig, [False] * 4))
    known = np.where(problem.has_point[..., None], points, 0)
    x = _Unknowns(rig.R, rig.t, np.log(rig.K[:, 0, 0]) + 0.05, known, SIZE.mean + 0.1)
    g = 6.0
    u, _, c, g_point, g_camera = problem._linearise(x, g)
    assert np.allclose(u, u.transpose(0, 2, 1))
    assert np.allclose(c, c.T)

    def energy(points: np.ndarray, step: np.ndarray) -> float:
        return problem.energy(problem._retract(x, points, step), g)[0]

    none, still, h = np.zeros_like(known), np.zeros(len(g_camera)), 1e-6
    for i in range(len(g_camera)):
        e = np.eye(len(g_camera))[i] * h
        slope = (energy(none, e) - energy(none, -e)) / (2 * h)
        assert slope / 2 == pytest.approx(g_camera[i], rel=1e-4, abs=1e-2)
    for t, k, i in ((0, 3, 0), (1, 11, 1), (2, 21, 2), (0, 0, 2)):
        e = np.zeros_like(known)
        e[t, k, i] = h
        slope = (energy(e, still) - energy(-e, still)) / (2 * h)
        assert slope / 2 == pytest.approx(g_point[t, 3 * k + i], rel=1e-4, abs=1e-2)


def test_a_rough_rig_is_adjusted() -> None:
    s = scene(5, frames=80, rate=20)
    rng = np.random.default_rng(1)
    rig = replace(
        s.rig,
        R=np.asarray(Rotation.from_rotvec(rng.normal(0, 0.1, (4, 3))).as_matrix()) @ s.rig.R,
        t=s.rig.t * rng.normal(1, 0.1, (4, 1)),
    )
    before = rig_errors(rig, s.rig)
    after = rig_errors(
        adjust(rig, Sight(s.xy, s.confidence), SIZE, FocalPrior.of(rig, [True] * 4)).rig, s.rig
    )
    assert before[0].max() > 5
    assert after[0].max() < 1
    assert after[1].max() < 0.02


def test_whose_bones_are_whose() -> None:
    rest = body().keypoints.points_template.double().numpy()
    per_bone = bone_lengths(rest[None])[0]
    assert len(SIZE.mean) == len(BONES)
    assert np.exp(SIZE.mean[2]) == pytest.approx(
        np.linalg.norm(rest[BODY_25.index("LHip")] - rest[BODY_25.index("LKnee")])
    )
    assert per_bone[0] == pytest.approx(per_bone[1], rel=0.03)  # left and right
    # People differ in size more than in proportion: bones vary together.
    spread = np.sqrt(np.diag(SIZE.covariance))
    correlation = SIZE.covariance / np.outer(spread, spread)
    assert spread[:4].max() < 0.12
    assert correlation[2, 3] > 0.5


def test_bones_of_bodies_all_alike_are_known_as_well_as_points_are_defined() -> None:
    rest = body().keypoints.points_template.double().numpy()
    size = BodySize.of(rest, np.zeros((25, 3, 10)))
    assert np.allclose(size.covariance, np.diag((0.015 / np.exp(size.mean)) ** 2))


def small_adjustment(away: float = 1.0) -> tuple[_Adjustment, _Unknowns]:
    s = scene(5, frames=3, rate=20)
    rig = replace(s.rig, t=s.rig.t * away)
    points = away * triangulate(s.rig, s.xy, s.confidence).points
    problem = _Adjustment(rig, Sight(s.xy, s.confidence), points, SIZE, FocalPrior.of(rig, [False] * 4))
    known = np.where(problem.has_point[..., None], points, 0)
    return problem, _Unknowns(rig.R, rig.t, np.log(rig.K[:, 0, 0]), known, SIZE.mean)


def test_a_keypoint_is_good_to_a_pixel_at_the_best() -> None:
    assert small_adjustment()[0].sigma_px == pytest.approx(0.012 * 1700 / 4, rel=0.2)
    assert (small_adjustment(away=30.0)[0].sigma_px == 1).all()


def test_an_adjustment_stops_where_nothing_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, x = small_adjustment()
    steps = []

    def counted(*args: Any) -> tuple[np.ndarray, np.ndarray]:
        steps.append(1)
        return _Adjustment._step(problem, *args)

    monkeypatch.setattr(problem, "_step", counted)
    done = problem.minimise(x, 6.0, max_iterations=100)
    steps.clear()
    problem.minimise(done, 6.0, max_iterations=100)
    assert len(steps) <= 2
    steps.clear()

    def astray(system: Any, damping: float) -> tuple[np.ndarray, np.ndarray]:
        steps.append(1)
        return np.ones_like(x.points), np.zeros(len(problem.free))

    monkeypatch.setattr(problem, "_step", astray)
    assert problem.minimise(done, 6.0, max_iterations=100) is done
    assert len(steps) == 11, "damping grows from 1e-3 to 1e6, eightfold each time"
