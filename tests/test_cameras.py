"""Projection and undistortion of fisheye lenses, against OpenCV's, and every other user of the lens model."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from models.crops import Optics, crop_rgb
from models.rendering.kernels import Lens, project
from models.rendering.software import valid_radius
from pipeline.array_types import Array
from pipeline.cameras import Rig, distort

K = np.array([[420.0, 0, 639], [0, 424, 355], [0, 0, 1]])
LENS = np.array([0.06, -0.012, 0.004, -0.0015])
RIG = Rig(
    ("wide", "plain"),
    np.stack([K, K]),
    np.stack([np.r_[LENS, np.zeros(4)], np.r_[-0.2, 0.04, np.zeros(6)]]),
    np.stack([cv2.Rodrigues(np.array(v))[0] for v in ([0.2, -0.4, 0.1], [0.0, 0.3, 0.0])]),
    np.array([[0.3, -0.2, 2.0], [0.0, 0.1, 3.0]]),
    np.array([[1280, 720], [1280, 720]]),
    fisheye=(True, False),
)


def test_a_fisheye_lens_sees_more_than_its_focal_length_says() -> None:
    edges = np.array([[-1.0, 355], [1279, 355]])
    seen = np.degrees(
        [np.arctan(cv2.fisheye.undistortPoints(e[None, None], K, LENS)[0, 0, 0]) for e in edges]
    )
    assert RIG.field_of_view_deg(0) == pytest.approx(np.ptp(seen), abs=0.05)
    assert RIG.field_of_view_deg(1) == pytest.approx(2 * np.degrees(np.arctan(640 / 420)))
    wide = replace(RIG, dist=np.zeros((2, 8)), size=np.array([[1600, 900]] * 2))
    assert wide.field_of_view_deg(0) == pytest.approx(np.degrees(1600 / 420), abs=0.05)  # 218°


def points_before(rig: Rig, view: int, degrees: float) -> Array:
    """(1000, 3) world points up to so many degrees off a camera's axis, 1 to 8 m away."""
    rng = np.random.default_rng(0)
    theta, phi = np.radians(rng.uniform(0, degrees, 1000)), rng.uniform(0, 2 * np.pi, 1000)
    ray = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], 1)
    return np.asarray((ray * rng.uniform(1, 8, (1000, 1)) - rig.t[view]) @ rig.R[view])


def opencv(points: Array) -> Array:
    vector = cv2.Rodrigues(RIG.R[0])[0]
    return np.asarray(cv2.fisheye.projectPoints(points[:, None], vector, RIG.t[0], K, LENS)[0][:, 0])


def test_projection_is_opencvs() -> None:
    points = points_before(RIG, 0, 85)
    assert np.abs(RIG.project(points, distorted=True)[0] - opencv(points)).max() < 1e-6
    assert RIG.select(["plain", "wide"]).fisheye == (False, True)
    assert Rig.joined([RIG, RIG]).fisheye == (True, False) * 2


def test_undistortion_is_the_inverse_of_projection() -> None:
    points = points_before(RIG, 0, 85)
    seen = RIG.project(points, distorted=True)[0]
    straight = RIG.undistort(0, seen)
    assert np.abs(straight - RIG.project(points)[0]).max() < 1e-3, "pixels, up to 11 focal lengths away"
    near = points_before(RIG, 0, 60)
    seen = RIG.project(near, distorted=True)[0]
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-12)
    want = cv2.fisheye.undistortPoints(seen[:, None], K, LENS, P=K, criteria=stop)[:, 0]
    assert np.abs(RIG.undistort(0, seen) - want).max() < 1e-5
    assert np.isfinite(RIG.undistort(0, K[:2, 2][None])).all(), "on the axis"
    beyond = K[:2, 2] + K[0, 0] * np.array([[1.9, 0.0], [np.nan, 0.0]])
    assert np.isnan(RIG.undistort(0, beyond)).any(1).all()


def test_undistortion_takes_the_skew_off_and_puts_it_on() -> None:
    skew = np.zeros((2, 3, 3))
    skew[:, 0, 1] = 4.0
    rig = replace(RIG, K=RIG.K + skew)
    points = points_before(rig, 1, 30)
    straight = rig.undistort(1, rig.project(points, distorted=True)[1])
    assert np.abs(straight - rig.project(points)[1]).max() < 1e-5


@pytest.mark.parametrize("view", [0, 1])
def test_bodies_are_drawn_where_the_lens_shows_them(view: int) -> None:
    points = points_before(RIG, view, 55)
    limit = valid_radius(RIG.dist[view], RIG.fisheye[view]) ** 2
    lens = Lens(RIG.R[view], RIG.t[view], RIG.K[view], RIG.dist[view], limit, RIG.fisheye[view])
    uv, camera = np.empty((1, 1000, 2), np.float32), np.empty((1, 1000, 3), np.float32)
    project(points[None].astype(np.float32), lens, camera, uv, np.empty((1, 1000), np.float32))
    assert np.abs(uv[0] - RIG.project(points, distorted=True)[view]).max() < 0.01


def test_the_picture_does_not_fold_back() -> None:
    """θ (1 − θ²/3) turns round at θ = 1."""
    lens = np.array([-1 / 3, 0, 0, 0, 0, 0, 0, 0])
    assert valid_radius(lens, fisheye=True) == pytest.approx(np.tan(1))
    assert valid_radius(np.r_[LENS, np.zeros(4)], fisheye=True) == np.inf
    r = np.array([[np.tan(0.999), 0.0], [np.tan(1.1), 0.0]])
    assert np.diff(distort(r, lens, fisheye=True)[:, 0]) < 0


def test_a_crop_is_that_of_the_pinhole_camera() -> None:
    """A dot that the lens shows lies in the crop where the pinhole camera has it."""
    point = (np.array([[0.9, -0.5, 1.0]]) - RIG.t[0]) @ RIG.R[0]
    at, want = RIG.project(point, distorted=True)[0, 0], RIG.project(point)[0, 0]
    picture = np.zeros((720, 1280, 3), np.uint8)
    cv2.circle(picture, tuple(np.round(at * 16).astype(int)), 8 * 16, (255,) * 3, -1, shift=4)
    box = np.array([*(want + 0.5), 200.0])
    crop = crop_rgb(picture, box, 200, lens=Optics(K, RIG.dist[0], True))[..., 0].astype(float)
    rows, columns = np.indices(crop.shape)
    middle = np.array([(columns * crop).sum(), (rows * crop).sum()]) / crop.sum()
    assert np.abs(middle - 99.5).max() < 2
