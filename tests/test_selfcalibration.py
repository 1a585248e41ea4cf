"""Cameras from a person: the truth is known, so are the errors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scenes import Scene, body, rig_errors, scene
from scipy.spatial.transform import Rotation

from models.geometry.bundle import BodySize, Bundle, FocalPrior, Sight
from models.geometry.selfcalibration import (
    _adjust_pair,
    _grow,
    _spread_frames,
    find_cameras,
    handedness,
    match_candidates,
    pair_pose,
    rotation_between_halves,
)
from models.geometry.triangulation import triangulate
from pipeline.cameras import Rig

SIZE = BodySize.of(
    body().keypoints.points_template.double().numpy(), body().keypoints.points_shapedirs.double().numpy()
)


def sight_of(s: Scene, views: list[int] | None = None) -> Sight:
    views = list(range(len(s.rig))) if views is None else views
    return Sight(s.xy[views], s.confidence[views])


def unknown(rig: Rig, focal: float = 1920.0) -> Rig:
    """The rig as it is assumed where nothing is known but the size of the pictures: 1920 px for 1700."""
    w, h = rig.size[0]
    k = np.array([[focal, 0, (w - 1) / 2], [0, focal, (h - 1) / 2], [0, 0, 1]])
    v = len(rig)
    return replace(rig, K=np.tile(k, (v, 1, 1)), R=np.tile(np.eye(3), (v, 1, 1)), t=np.zeros((v, 3)))


@cache
def walker() -> Scene:
    return scene(5, frames=80, rate=20)


@cache
def found(views: tuple[int, ...]) -> Bundle:
    s, part = walker(), list(views)
    rig = unknown(s.rig.select([s.rig.names[v] for v in part]))
    bundle = find_cameras(rig, sight_of(s, part), SIZE, FocalPrior.of(rig, [False] * len(part)))
    assert bundle is not None
    return bundle


@pytest.mark.parametrize("views", [(0, 1, 2, 3), (0, 2, 3), (0, 1), (1, 3)])
def test_the_cameras_are_found(views: tuple[int, ...]) -> None:
    bundle, true = found(views), walker().rig.select([walker().rig.names[v] for v in views])
    turn, off, scale = rig_errors(bundle.rig, true)
    assert turn.max() < 2
    assert off.max() < 0.04
    assert 0.85 < scale < 1.15  # as tall as people are
    assert np.abs(bundle.rig.K[:, 0, 0] / 1700 - 1).max() < 0.1
    assert bundle.residual_px.max() < 5
    assert np.allclose(bundle.rig.R[0], np.eye(3))
    assert np.allclose(bundle.rig.t[0], 0)
    assert handedness(bundle.points) > 0.8


def test_a_stated_focal_length_is_kept_and_helps() -> None:
    s = walker()
    rig = unknown(s.rig, 1700.0)
    bundle = find_cameras(rig, sight_of(s), SIZE, FocalPrior.of(rig, [True] * 4))
    assert bundle is not None
    assert np.abs(bundle.rig.K[:, 0, 0] - 1700).max() < 5
    assert rig_errors(bundle.rig, s.rig)[1].max() < 0.02


def test_the_same_twice() -> None:
    s = walker()
    rig = unknown(s.rig).select(s.rig.names[:2])
    again = find_cameras(rig, sight_of(s, [0, 1]), SIZE, FocalPrior.of(rig, [False] * 2))
    assert again is not None
    assert again.rig.R.tobytes() == found((0, 1)).rig.R.tobytes()
    assert again.rig.t.tobytes() == found((0, 1)).rig.t.tobytes()


def test_views_that_share_nothing_are_not_placed() -> None:
    s = walker()
    confidence = s.confidence.copy()
    confidence[0, 40:], confidence[1, :40] = 0, 0
    rig = unknown(s.rig).select(s.rig.names[:2])
    sight = Sight(s.xy[:2], confidence[:2])
    assert find_cameras(rig, sight, SIZE, FocalPrior.of(rig, [False] * 2)) is None


def test_a_view_that_few_share_is_placed_from_what_is_known_by_then() -> None:
    s = walker()
    confidence = s.confidence.copy()
    confidence[3, 12:] = 0
    confidence[0, :12] = 0  # the first camera never shows what the last shows
    rig = unknown(s.rig)
    bundle = find_cameras(rig, Sight(s.xy, confidence), SIZE, FocalPrior.of(rig, [False] * 4))
    assert bundle is not None
    turn, off, _ = rig_errors(bundle.rig, s.rig)
    assert turn.max() < 4
    assert off.max() < 0.08


def test_pose_of_a_pair_and_how_many_agree() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal([0, 0, 4], 0.5, (200, 3))
    r = np.asarray(Rotation.from_euler("yx", [60, 10], degrees=True).as_matrix())
    t = np.array([0, 0, 4]) - r @ [0, 0, 4]
    two = points @ r.T + t
    one, two = points[:, :2] / points[:, 2:], two[:, :2] / two[:, 2:]
    wrong = rng.random(200) < 0.3
    two[wrong] += rng.normal(0, 0.2, (wrong.sum(), 2))
    found_pose = pair_pose(one, two, error=0.002)
    assert found_pose is not None
    assert np.degrees(Rotation.from_matrix(found_pose[0] @ r.T).magnitude()) < 0.5
    assert found_pose[1] @ t / np.linalg.norm(t) > 0.9999
    assert found_pose[2][~wrong].mean() > 0.95
    assert found_pose[2][wrong].mean() < 0.2
    assert pair_pose(one[:20], two[:20], error=0.002) is None


def test_a_mirrored_body_is_told() -> None:
    points = walker().points.numpy()
    assert handedness(points) > 0.9
    assert handedness(points * [-1, 1, 1]) < -0.9
    assert handedness(np.full_like(points, np.nan)) == 0


def test_which_candidates_are_one_person() -> None:
    """A bystander who is larger in one view, and one who stands in the others."""
    one, other = walker(), scene(9, frames=80, rate=20)
    larger = other.xy * 1.3 - 300
    sights = [
        [Sight(larger[:1], other.confidence[:1]), Sight(one.xy[:1], one.confidence[:1])],
        [Sight(one.xy[1:2], one.confidence[1:2]), Sight(larger[2:3] + 200, other.confidence[1:2])],
        [Sight(one.xy[2:3], one.confidence[2:3])],
    ]
    assert match_candidates(sights, unknown(one.rig).select(one.rig.names[:3])) == [1, 0, 0]


def test_a_rig_of_a_mirrored_body_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = found((0, 1))
    mirrored = replace(bundle, points=bundle.points * [-1, 1, 1])
    monkeypatch.setattr("models.geometry.selfcalibration.adjust", lambda *_: mirrored)
    rig = unknown(walker().rig).select(walker().rig.names[:2])
    assert find_cameras(rig, sight_of(walker(), [0, 1]), SIZE, FocalPrior.of(rig, [False] * 2)) is None


def test_a_pair_is_started_from_its_pose_and_from_the_mirror_image_in_depth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen from far away both look alike; the one that ends with less cost is taken."""
    starts = []

    def tried(rig: Rig, *_: object) -> Bundle:
        starts.append(rig.R[1])
        return replace(found((0, 1)), cost=3.0 - len(starts))

    monkeypatch.setattr("models.geometry.selfcalibration._try_adjust", tried)
    s = walker()
    far = replace(s.rig, K=s.rig.K * np.array([[[4.0, 1, 1], [1, 4, 1], [1, 1, 1]]]), t=4 * s.rig.t)
    xy = far.project(s.points.numpy()) + np.random.default_rng(5).normal(0, 3, s.xy.shape)
    sight = Sight(xy, np.ones(xy.shape[:-1]))
    bundle = _adjust_pair(unknown(far, 6800), sight, SIZE, FocalPrior.of(far, [True] * 4), 0, 2)
    assert bundle is not None
    assert bundle.cost == 1.0
    depth = np.diag([1.0, 1, -1])
    assert np.allclose(starts[1], depth @ starts[0] @ depth)


def test_starts_that_come_to_one_rig_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, whole = [], found((0, 1, 2, 3))

    def grown(rig: Rig, sight: Sight, size: BodySize, focal: FocalPrior, a: int, b: int) -> Bundle:
        pairs.append((a, b))
        return replace(whole, cost=[2.0, 1.0, 1.005, 0.5][len(pairs) - 1])

    monkeypatch.setattr("models.geometry.selfcalibration._grow", grown)
    rig = unknown(walker().rig)
    find_cameras(rig, sight_of(walker()), SIZE, FocalPrior.of(rig, [False] * 4))
    assert len(pairs) == 3


def test_residuals_are_those_of_the_views_in_their_order() -> None:
    s = walker()
    xy = s.xy.copy()
    xy[1] += np.random.default_rng(0).normal(0, 6, xy[1].shape)
    rig, sight = unknown(s.rig), Sight(xy, s.confidence).frames(slice(0, 80, 2))
    bundle = _grow(rig, sight, SIZE, FocalPrior.of(rig, [False] * 4), 2, 3)
    assert bundle is not None
    miss = triangulate(bundle.rig, sight.xy_px, sight.confidence).residual_px
    assert bundle.residual_px == pytest.approx([np.nanmedian(m) for m in miss], rel=1e-6)
    assert bundle.residual_px.argmax() == 1


def test_frames_in_which_little_is_seen_twice_are_left_out() -> None:
    s = walker()
    confidence = s.confidence.copy()
    confidence[:, ::2, 5:] = 0
    confidence[1:, 1:9] = 0
    assert _spread_frames(Sight(s.xy, confidence), 100).tolist() == list(range(9, 80, 2))
    assert len(_spread_frames(sight_of(s), 40)) == 40


def test_of_two_people_whom_all_views_show_the_larger_is_taken() -> None:
    one, other = walker(), scene(9, frames=80, rate=20)
    small = [Sight(0.5 * one.xy[[v]] + 400, one.confidence[[v]]) for v in range(3)]
    large = [Sight(other.xy[[v]], other.confidence[[v]]) for v in range(3)]
    sights = [[a, b] for a, b in zip(small, large, strict=True)]
    assert match_candidates(sights, unknown(one.rig).select(one.rig.names[:3])) == [1, 1, 1]


def test_a_camera_that_turns_is_noticed() -> None:
    s = walker()
    focal = FocalPrior.of(unknown(s.rig), [False] * 4)
    bundle = found((0, 1, 2, 3))
    turn, cost = rotation_between_halves(bundle, sight_of(s), SIZE, focal)
    assert turn.max() < 2
    assert cost > 0.9 * bundle.cost
    xy = s.xy.copy()
    for t in range(80):  # camera 1 turns by 8° to the side
        pan = s.rig.K[1] @ Rotation.from_euler("y", 8 * t / 79, degrees=True).as_matrix()
        pixel = np.concatenate([xy[1, t], np.ones((25, 1))], 1) @ (pan @ np.linalg.inv(s.rig.K[1])).T
        xy[1, t] = pixel[:, :2] / pixel[:, 2:]
    sight = Sight(xy, s.confidence)
    panned = find_cameras(unknown(s.rig), sight, SIZE, focal)
    assert panned is not None
    turn, cost = rotation_between_halves(panned, sight, SIZE, focal)
    assert turn.argmax() == 1
    assert turn[1] > 4
    assert cost < 0.92 * panned.cost
