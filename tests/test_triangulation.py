"""Triangulation recovers known points, and says where it cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.geometry.triangulation import (
    along_rays,
    leave_one_out,
    rays,
    solve_symmetric,
    triangulate,
)
from pipeline.cameras import Rig


def ring(views: int, focal: float = 1000.0, radius: float = 4.0) -> Rig:
    """Cameras on a circle that look at its centre, z up in the world."""
    angle = 1.9 * np.pi * np.arange(views) / views + 0.3  # no two cameras face each other
    centre = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(views, 1.5)], -1)
    forward = np.array([0, 0, 1.0]) - centre
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    rot = np.stack([right, np.cross(forward, right), forward], 1)
    k = np.broadcast_to([[focal, 0, 640], [0, focal * 1.02, 360], [0, 0, 1.0]], (views, 3, 3)).copy()
    return Rig(
        tuple(f"c{i}" for i in range(views)),
        k,
        np.zeros((views, 8)),
        rot,
        -np.einsum("vij,vj->vi", rot, centre),
        np.tile([1280, 720], (views, 1)),
    )


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).uniform([-0.8, -0.8, 0], [0.8, 0.8, 1.8], (7, 40, 3))


def test_rays_pass_through_what_they_show(points: np.ndarray) -> None:
    rig = ring(3)
    direction = rays(rig, rig.project(points))
    for v in range(3):
        offset = points - rig.centres[v]
        assert np.allclose(direction[v], offset / np.linalg.norm(offset, axis=-1, keepdims=True))


def test_two_rays_are_closest_where_no_other_points_of_them_are() -> None:
    rng = np.random.default_rng(3)
    base, d1, d2 = rng.normal(size=(3, 50, 3))
    d1, d2 = (d / np.linalg.norm(d, axis=-1, keepdims=True) for d in (d1, d2))
    d2[0] = d1[0]
    s, t, apart = along_rays(base, d1, d2, 0.01)
    assert np.flatnonzero(~apart).tolist() == [0]

    def distance(s: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.linalg.norm(base + t[:, None] * d2 - s[:, None] * d1, axis=-1)[apart]

    least = distance(s, t)
    for ds, dt in rng.normal(0, 0.1, (20, 2)):
        assert (distance(s + ds, t + dt) > least).all()


@pytest.mark.parametrize("views", [2, 3, 4, 7])
def test_exact_pixels_give_exact_points(views: int, points: np.ndarray) -> None:
    rig = ring(views)
    found = triangulate(rig, rig.project(points), np.ones((views, 7, 40)))
    assert np.abs(found.points - points).max() < 1e-9
    assert np.nanmax(found.residual_px) < 1e-6
    assert found.used.all()


@pytest.mark.parametrize("views", [2, 3, 5])
def test_leaving_each_view_out_is_triangulation_without_it(views: int, points: np.ndarray) -> None:
    rng, rig = np.random.default_rng(4), ring(views)
    xy = rig.project(points) + rng.normal(0, 3, (views, 7, 40, 2))
    xy[rng.random((views, 7, 40)) < 0.2] += 60
    confidence = rng.uniform(0.2, 1, (views, 7, 40)) * (rng.random((views, 7, 40)) > 0.2)
    found = leave_one_out(rig, xy, confidence)
    for v in range(views):
        without = confidence.copy()
        without[v] = 0
        assert np.allclose(found[v], triangulate(rig, xy, without).points, atol=1e-9, equal_nan=True)


def test_skewed_intrinsics(points: np.ndarray) -> None:
    rig = ring(3)
    rig.K[:, 0, 1] = 25
    found = triangulate(rig, rig.project(points), np.ones((3, 7, 40)))
    assert np.abs(found.points - points).max() < 1e-9


def test_one_wrong_view_of_four_is_left_out(points: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    rig = ring(4)
    px = rig.project(points) + rng.normal(0, 2, (4, 7, 40, 2))
    bad = rng.integers(0, 4, (7, 40))
    bad_mask = np.arange(4)[:, None, None] == bad
    px[bad_mask] += 200 * np.array([np.cos(1.0), np.sin(1.0)])
    found = triangulate(rig, px, np.ones((4, 7, 40)))
    error = np.linalg.norm(found.points - points, axis=-1)
    assert error.max() < 0.05
    assert np.mean(error) < 0.012
    assert not found.used[bad_mask].any()
    assert found.used[~bad_mask].mean() > 0.99


def test_weights_follow_confidence() -> None:
    """A view that is sure pulls the point to its own ray."""
    rig = ring(3)
    x = np.array([[0.1, 0.2, 1.0]])
    px = rig.project(x)
    px[0, 0, 0] += 6
    sure = triangulate(rig, px, np.array([[1.0], [0.3], [0.3]]))
    unsure = triangulate(rig, px, np.array([[0.3], [1.0], [1.0]]))
    assert sure.residual_px[0, 0] < unsure.residual_px[0, 0]


def test_depth_weight_makes_it_the_least_pixel_error() -> None:
    """Where all errors are small against the robust scale the result is a stationary point of the summed
    squared pixel error."""
    rig = ring(4)
    rig.t[0, 2] += 6  # one camera far away
    rng = np.random.default_rng(2)
    x = np.array([[0.1, 0.2, 1.0]])
    px = rig.project(x) + rng.normal(0, 0.05, (4, 1, 2))
    found = triangulate(rig, px, np.ones((4, 1))).points

    def cost(p: np.ndarray) -> float:
        return float(((rig.project(p) - px) ** 2).sum())

    step = 1e-5
    gradient = [(cost(found + step * e) - cost(found - step * e)) / (2 * step) for e in np.eye(3)[:, None]]
    at_truth = [(cost(x + step * e) - cost(x - step * e)) / (2 * step) for e in np.eye(3)[:, None]]
    assert np.linalg.norm(gradient) < 0.02 * np.linalg.norm(at_truth)


def test_missing_views() -> None:
    rig = ring(4)
    x = np.tile([[0.1, 0.2, 1.0]], (4, 1))
    px, conf = rig.project(x), np.ones((4, 4))
    px[1:, 0] = np.nan  # one view left
    conf[2:, 1] = 0  # two left
    px[:, 2] = np.nan  # none left
    found = triangulate(rig, px, conf)
    assert np.isnan(found.points[[0, 2]]).all()
    assert np.abs(found.points[[1, 3]] - x[0]).max() < 1e-9
    assert np.isnan(found.residual_px[:, [0, 2]]).all()
    assert found.used.sum(0).tolist() == [0, 2, 0, 4]
    assert np.isnan(found.residual_px[2:, 1]).all()


def test_one_camera_gives_no_points() -> None:
    rig = ring(1)
    found = triangulate(rig, rig.project(np.zeros((3, 3))), np.ones((1, 3)))
    assert np.isnan(found.points).all()
    assert not found.used.any()


def test_parallel_rays_and_points_behind() -> None:
    rig = ring(2)
    rig.R[1], rig.t[1] = rig.R[0], rig.t[0] + [0.2, 0, 0]  # side by side
    straight = np.tile(rig.K[0, :2, 2], (2, 1, 1))
    diverging = straight.copy()
    # Camera 1 stands to the left of camera 0 (t grew by +x): rays that lean apart meet behind both.
    diverging[0, 0, 0] += 100
    diverging[1, 0, 0] -= 100
    for px in (straight, diverging):
        assert np.isnan(triangulate(rig, px, np.ones((2, 1))).points).all()


def test_disagreeing_pair_is_reported() -> None:
    rig = ring(2)
    px = rig.project(np.array([[0.1, 0.2, 1.0]]))
    px[0, 0, 1] += 80
    found = triangulate(rig, px, np.ones((2, 1)))
    assert found.used.sum(0) < 2


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="must be"):
        triangulate(ring(3), np.zeros((2, 5, 2)), np.zeros((2, 5)))


def away(rig: Rig, points: np.ndarray) -> tuple[Rig, np.ndarray]:
    """The rig with its last camera turned to look the other way, and the pixels of points (N, 3) in it: those
    on which their mirror images behind the camera would be."""
    back, r, t = np.diag([-1.0, 1, -1]), rig.R.copy(), rig.t.copy()
    r[-1], t[-1] = back @ r[-1], back @ t[-1]
    seen = points @ r[-1].T + t[-1]
    assert (seen[:, 2] < 0).all()
    return replace(rig, R=r, t=t), (seen[:, :2] / seen[:, 2:]) @ rig.K[-1, :2, :2].T + rig.K[-1, :2, 2]


def test_a_camera_that_looks_the_other_way_tells_nothing() -> None:
    rng, straight = np.random.default_rng(0), ring(3)
    points = rng.normal([0, 0, 0.9], 0.5, (300, 3))
    xy = straight.project(points) + rng.normal(0, 15, (3, 300, 2))
    rig, xy[-1] = away(straight, points)
    found = triangulate(rig, xy, np.ones((3, 300)))
    two = triangulate(straight.select(straight.names[:2]), xy[:2], np.ones((2, 300)))
    np.testing.assert_allclose(found.points, two.points, atol=1e-6)
    assert np.isnan(found.residual_px[-1]).all()
    assert not found.used[-1].any()


@pytest.mark.parametrize("views", [2, 3])
def test_every_point_is_in_front_of_two_cameras_that_saw_it(views: int) -> None:
    rig = ring(views)
    xy = np.random.default_rng(0).uniform(-3000, 4000, (views, 2000, 2))
    found = triangulate(rig, xy, np.ones((views, 2000)))
    there = np.isfinite(found.points).all(-1)
    assert 0.2 < there.mean() < 0.97
    in_front = rig.to_camera(found.points)[..., 2] > 0
    assert (in_front & np.isfinite(found.residual_px))[:, there].sum(0).min() >= 2


def test_a_system_that_is_nearly_singular_has_no_solution() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 5, 3))
    a[1, :, 2] = a[1, :, 1] * (1 + 1e-6 * rng.normal(size=5))
    a[2] = 0
    symmetric, b = a.transpose(0, 2, 1) @ a, rng.normal(size=(3, 3))
    x = solve_symmetric(np.concatenate([symmetric, b[..., None]], -1))
    assert np.allclose(x[0], np.linalg.solve(symmetric[0], b[0]))
    assert (x[1:] == 0).all()
