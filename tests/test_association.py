"""Matching over views: the person is the one on whom views agree, whatever the index in the file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from recordings import figure, ring

from models.geometry.association import MatchConfig, finite_median, pick_people, propose
from pipeline.cameras import Rig
from pipeline.skeleton import BODY_25

CFG = MatchConfig()
TIME = np.arange(48) / 24


def test_finite_median_leaves_out_missing_values() -> None:
    rng = np.random.default_rng(1)
    values, valid = rng.normal(size=(30, 7, 2)), rng.random((30, 7)) < 0.5
    valid[0] = False
    found = finite_median(np.where(valid[..., None], values, np.nan), 1)
    assert np.isnan(found[0]).all()
    for i in range(1, 30):
        if valid[i].any():
            assert np.allclose(found[i], np.median(values[i, valid[i]], axis=0))


def points_of(body: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([body[name] for name in BODY_25.names], 1)


def on_lines(rig: Rig, points: np.ndarray) -> np.ndarray:
    """Pixels (V, T, K, 2) of lines through points (T, K, 3) and cameras, also of those behind a camera."""
    cam = rig.to_camera(points)
    return np.einsum("vij,vtkj->vtki", rig.K, cam / cam[..., 2:])[..., :2]


def test_a_pair_of_views_proposes_a_person_once() -> None:
    rig = ring(2)
    found = propose(rig, on_lines(rig, points_of(figure(TIME)))[:, :, None], np.ones((2, 48, 1, 25)), CFG)
    assert (found.score > 0).sum(1).tolist() == [1] * 48


def test_what_lies_behind_a_camera_meets_nobody() -> None:
    """In either view somebody meets the person of the other view exactly, but behind that view's camera."""
    rig, body = ring(2), points_of(figure(TIME))
    noisy = body + np.random.default_rng(0).normal(0, 0.02, body.shape)
    first = on_lines(rig, body)[0], on_lines(rig, 2 * rig.centres[1] - noisy)[0]
    second = on_lines(rig, 2 * rig.centres[0] - body)[1], on_lines(rig, noisy)[1]
    xy = np.stack([np.stack(people, 1) for people in (first, second)])
    found = propose(rig, xy, np.ones((2, 48, 2, 25)), CFG)
    assert (found.person == [0, 1]).all(-1).any(1).all()


@pytest.mark.parametrize("view", [0, 1])
def test_points_that_meet_behind_a_camera_count_as_unseen(view: int) -> None:
    rig, body = ring(2), points_of(figure(TIME))
    behind = body.copy()
    behind[:, :4] = 2 * rig.centres[view] - body[:, :4]
    conf = np.ones((2, 48, 1, 25))
    unseen = conf.copy()
    unseen[..., :4] = 0
    one, other = (propose(rig, on_lines(rig, behind)[:, :, None], c, CFG) for c in (conf, unseen))
    assert np.array_equal(one.person, other.person)
    assert np.allclose(one.score, other.score)


def test_a_view_that_looks_away_does_not_show_the_person() -> None:
    """Whose lines through the picture it shows, the other way."""
    rig, body = ring(3), points_of(figure(TIME))
    away = np.diag([-1.0, 1, -1])
    rig = replace(
        rig,
        R=np.concatenate([rig.R[:2], away[None] @ rig.R[2:]]),
        t=np.concatenate([rig.t[:2], rig.t[2:] @ away.T]),
    )
    xy = on_lines(rig, body)[:, :, None]
    found = propose(rig, xy, np.ones((3, 48, 1, 25)), CFG)
    assert (found.person[:, 0] == [0, 0, -1]).all()


@pytest.mark.parametrize(("scale", "proposed"), [(0.05, False), (0.5, True), (1.5, True), (5.0, False)])
def test_bodies_are_neither_spots_nor_houses(scale: float, proposed: bool) -> None:
    rig = ring(4, radius=12.0)
    found = propose(
        rig, on_lines(rig, scale * points_of(figure(TIME)))[:, :, None], np.ones((4, 48, 1, 25)), CFG
    )
    assert ((found.score > 0).any(1) == proposed).all()


def test_two_views_must_agree_each_by_its_own_confidence() -> None:
    """One is sure of points of which the other is not, and the other way round."""
    rig, body = ring(2), points_of(figure(TIME[:3]))
    xy = on_lines(rig, body)
    xy[1, :, 13:] += 300
    confidence = np.ones((2, 3, 1, 25))
    for unsure in (0.7, 0.05):
        confidence[0, ..., :13] = confidence[1, ..., 13:] = unsure
        found = propose(rig, xy[:, :, None], confidence, CFG)
        assert ((found.score > 0).any(1) == (unsure == 0.7)).all()


def test_pick_people_takes_the_chosen_and_fills_the_rest() -> None:
    values = np.arange(2 * 3 * 2).reshape(2, 3, 2).astype(np.float64)
    found = pick_people(values, np.array([[0, 1, -1], [1, -1, 0]]), -9.0)
    assert found.tolist() == [[0, 3, -9], [7, -9, 10]]
