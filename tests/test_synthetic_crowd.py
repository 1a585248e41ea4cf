"""People who walk among each other: close, apart, a function of time alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from models.body import Body, load_body, pelvis_at_rest, pose_keypoints
from models.synthetic.crowd import SPACING, _Planner, make_crowd
from models.synthetic.people import (
    Clip,
    Person,
    PlannedClip,
    animate,
    make_people,
    region_corners,
    sitting,
    standing,
)
from pipeline.skeleton import SMPL_24

SECONDS = 10.0


@cache
def body() -> Body:
    return load_body()


@cache
def crowd(people: int, seed: int, leaving: int = 0, seconds: float = SECONDS) -> tuple[Person, ...]:
    return make_crowd(people, seconds, seed, body(), leaving)


def roots(people: tuple[Person, ...], time_s: np.ndarray) -> np.ndarray:
    """(T, P, 2) metres."""
    rests = [pelvis_at_rest(body().keypoints, torch.from_numpy(p.betas)[None])[0].numpy() for p in people]
    moved = [animate(p, body(), time_s)[1] + rest for p, rest in zip(people, rests, strict=True)]
    return np.stack(moved, 1)[..., :2]


def gaps(people: tuple[Person, ...], seconds: float = SECONDS) -> np.ndarray:
    """(T, P, P) metres between roots at 100 moments a second; ∞ from oneself."""
    at = roots(people, np.arange(0, seconds, 0.01))
    apart = np.linalg.norm(at[:, :, None] - at[:, None], axis=-1)
    apart[:, range(len(people)), range(len(people))] = np.inf
    return apart


@pytest.mark.parametrize("people", [2, 3, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_people_cross_close_by_and_never_touch(people: int, seed: int) -> None:
    apart = gaps(crowd(people, seed))
    assert 0.33 <= apart.min() <= 0.4
    assert (apart.min((1, 2)) < 0.7).mean() > 0.7, "somebody is near somebody in most frames"
    met = (apart < 0.7).any(0)
    assert met.any(1).all(), "nobody stays alone"


def test_two_people_change_sides() -> None:
    at = roots(crowd(2, 0, seconds=30.0), np.arange(0, 30, 0.05))
    between = at[:, 0] - at[:, 1]
    bearing = np.unwrap(np.arctan2(between[:, 1], between[:, 0]))
    assert np.ptp(bearing) > np.pi


def test_people_walk_turn_stop_and_sit() -> None:
    people = crowd(4, 1, seconds=40.0)
    for person in people:
        walks = [s.clip.walks for s in person.plan]
        assert 0.2 < np.mean(walks) < 0.6
    assert any(s.clip.motion is sitting for p in people for s in p.plan)
    at = np.linalg.norm(roots(people, np.arange(0, 40, 0.1)), axis=-1)
    assert at.max() < 0.45 * 2 + 0.6 + 0.5, "all stay together"


def test_who_sits_keeps_the_feet_where_they_are_and_comes_up_again() -> None:
    person = crowd(2, 0)[0]
    alone = replace(person.plan[0], clip=Clip(3.6, sitting), start_s=0.0)
    sitter = replace(person, plan=(alone,), style=replace(person.style, speed=1.0))
    rotations, transl = (torch.from_numpy(x) for x in animate(sitter, body(), np.array([0.0, 1.8, 3.6])))
    joints = pose_keypoints(body().keypoints, rotations, torch.from_numpy(person.betas), transl)[0].numpy()
    pelvis, ankles = joints[:, 0], joints[:, [SMPL_24.index(f"{s}_ankle") for s in ("left", "right")]]
    assert 0.3 < pelvis[0, 2] - pelvis[1, 2] < 0.5
    assert 0.3 < np.linalg.norm((pelvis[1] - pelvis[0])[:2]) < 0.5, "onto a chair behind"
    np.testing.assert_allclose(pelvis[2], pelvis[0], atol=0.01)
    np.testing.assert_allclose(ankles, ankles[[0, 0, 0]], atol=0.05)


@pytest.mark.parametrize("leaving", [0, 2])
def test_a_window_does_not_depend_on_the_others(leaving: int) -> None:
    time_s = np.arange(0, SECONDS, 0.1)
    for person in crowd(3, 2, leaving):
        whole = animate(person, body(), time_s)
        for a in range(0, len(time_s), 7):
            part = animate(person, body(), time_s[a : a + 7])
            for x, y in zip(whole, part, strict=True):
                np.testing.assert_allclose(y, x[a : a + 7], atol=1e-12)
            np.testing.assert_array_equal(
                person.present(time_s)[a : a + 7], person.present(time_s[a : a + 7])
            )


def test_motion_is_smooth_where_a_walk_follows_a_turn() -> None:
    step = 1 / 120
    for person in crowd(4, 3):
        rotations, transl = animate(person, body(), np.arange(0, SECONDS, step))
        speed = np.diff(transl, axis=0) / step
        assert np.linalg.norm(speed, axis=1).max() < 3, "metres a second"
        assert np.linalg.norm(np.diff(speed, axis=0), axis=1).max() / step < 60
        turned = np.swapaxes(rotations[:-1, 0], -1, -2) @ rotations[1:, 0]
        angle = np.arccos(np.clip((np.trace(turned, axis1=1, axis2=2) - 1) / 2, -1, 1))
        assert angle.max() / step < 10, "radians a second"


def test_people_look_where_they_walk() -> None:
    for person in crowd(4, 4):
        walk = next(s for s in person.plan if s.clip.walks and s.start_s > 0.5)
        middle = walk.start_s + 0.5 * walk.clip.seconds / person.style.speed
        rotations, transl = animate(person, body(), np.array([middle - 0.05, middle + 0.05]))
        ahead = (transl[1] - transl[0])[:2]
        facing = rotations[0, 0, :2, 2]  # z of the body
        assert ahead @ facing / np.linalg.norm(ahead) / np.linalg.norm(facing) > 0.95


def test_a_longer_recording_begins_the_same_and_a_seed_is_a_crowd() -> None:
    time_s = np.arange(0, 5, 0.1)
    short, long = crowd(3, 5, seconds=5.0), crowd(3, 5, seconds=20.0)
    np.testing.assert_array_equal(roots(short, time_s), roots(long, time_s))
    assert np.abs(roots(crowd(3, 6), time_s) - roots(long, time_s)).max() > 0.1
    for walker, solo in zip(long, make_people(3, 1.0, 5, body()), strict=True):
        np.testing.assert_array_equal(walker.betas, solo.betas)


def test_one_person_is_who_it_was() -> None:
    (alone,), (before,) = crowd(1, 7), make_people(1, SECONDS, 7, body())
    time_s = np.arange(0, SECONDS, 0.1)
    for x, y in zip(animate(alone, body(), time_s), animate(before, body(), time_s), strict=True):
        np.testing.assert_array_equal(x, y)


def test_who_leaves_is_gone_for_a_while_and_comes_back() -> None:
    people = crowd(4, 0, leaving=2, seconds=30.0)
    assert [bool(p.absences_s) for p in people] == [False, False, True, True]
    time_s = np.arange(0, 30, 0.05)
    at = np.linalg.norm(roots(people, time_s), axis=-1)
    for p, person in enumerate(people):
        present = person.present(time_s)
        begins, ends = np.array(person.absences_s).reshape(-1, 2).T
        inside = ((time_s[:, None] >= begins) & (time_s[:, None] < ends)).any(1)
        np.testing.assert_array_equal(present, ~inside)
        assert (ends - begins > 2).all()
        assert (begins[1:] > ends[:-1] + 1).all()
        assert (at[~present, p] > 0.9 + 0.6 + 0.7 * SPACING.exit_m).all(), "away from all others"
    assert gaps(people, 30.0).min() >= 0.33
    assert people[3].present(np.array([29.9 if people[3].absences_s[-1][1] < 29.9 else 0.0])).all()


def test_what_they_reach_holds_everybody() -> None:
    people = crowd(3, 1)
    corners = region_corners(people, body(), SECONDS)
    at = roots(people, np.arange(0, SECONDS, 0.05)).reshape(-1, 2)
    assert (at > corners[:, :2].min(0)).all()
    assert (at < corners[:, :2].max(0)).all()


def test_nobody_stops_where_somebody_else_will_come_by_later() -> None:
    planner = _Planner(make_people(2, 0.0, 0, body()), body(), 0, 0)
    walker, other = planner.walkers
    stands = [PlannedClip(Clip(1.4, standing), walker.free_s, 0.0, 0.0, 1.0, walker.arc)]
    for passes, accepted in (([0.2, 0.0], False), ([0.6, 0.0], True)):
        other.roots = np.full((200, 2), 9.0)
        other.roots[150] = walker.position + passes  # after 7.5 s
        assert planner._accept(walker, stands) is accepted
