"""Made-up people: smooth, on the floor, with joints that bend the way they can."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from models.body import Body, load_body, pose_keypoints
from models.synthetic.people import CLIPS, Arc, Person, animate, make_people, region_corners
from pipeline.array_types import Array
from pipeline.skeleton import BODY_25, SMPL_24

FPS = 30
SECONDS = 14.0  # long enough for every clip to come


@cache
def body() -> Body:
    return load_body()


@cache
def person(seed: int = 0, seconds: float = SECONDS) -> Person:
    return make_people(1, seconds, seed, body())[0]


def points(who: Person, time_s: Array) -> tuple[Array, Array]:
    """Joints (T, 24, 3) and BODY_25 points (T, 25, 3)."""
    rotations, transl = animate(who, body(), time_s)
    joints, keypoints = pose_keypoints(
        body().keypoints, torch.from_numpy(rotations), torch.from_numpy(who.betas), torch.from_numpy(transl)
    )
    return joints.numpy(), keypoints.numpy()


def joint(name: str) -> int:
    return SMPL_24.index(name)


def only(name: str) -> Person:
    """Somebody who does one thing, from time 0 on."""
    segment = replace(person().plan[0], clip=CLIPS[name], start_s=0.0, distance_m=0.0, yaw=0.0, direction=1.0)
    return replace(person(), plan=(segment,), style=replace(person().style, speed=1.0))


def test_every_clip_comes() -> None:
    assert {id(s.clip) for s in person(seconds=40.0).plan} == {id(c) for c in CLIPS.values()}


@pytest.mark.parametrize("seed", range(4))
def test_rotations_are_rotations_and_motion_is_smooth(seed: int) -> None:
    time_s = np.arange(int(SECONDS * FPS)) / FPS
    rotations, _ = animate(person(seed), body(), time_s)
    eye = np.broadcast_to(np.eye(3), rotations.shape)
    np.testing.assert_allclose(np.swapaxes(rotations, -1, -2) @ rotations, eye, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-12)
    joints, _ = points(person(seed), time_s)
    acceleration = np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1) * FPS**2
    # Real walking and dancing at 30 fps (CMU): 2.4 to 6 m/s² on average, over 80 m/s² at most.
    assert acceleration.mean() < 6
    assert acceleration.max() < 70
    # Halving the step between frames quarters a smooth motion's second difference; a jump's stays.
    fine, _ = points(person(seed), np.arange(0, SECONDS, 1 / 240))
    jerky = np.linalg.norm(np.diff(fine, 2, axis=0), axis=-1).max() * 240**2
    assert jerky < 2 * acceleration.max(), "motion has a kink"


@pytest.mark.parametrize("seed", range(4))
def test_feet_neither_sink_nor_float(seed: int) -> None:
    who = person(seed)
    time_s = np.arange(0, SECONDS, 0.2)
    rotations, transl = (torch.from_numpy(x) for x in animate(who, body(), time_s))
    mesh = body().vertices(rotations[:, 0], rotations[:, 1:], torch.from_numpy(who.betas), transl)
    lowest = mesh[..., 2].min(1).values.numpy()
    jumping = np.zeros(len(time_s), bool)
    for s in who.plan:
        if s.clip is CLIPS["jumping_jack"]:
            jumping |= (time_s > s.start_s) & (time_s < s.start_s + s.clip.seconds / who.style.speed)
    assert lowest.min() > -0.012
    assert lowest[~jumping].max() < 0.008
    assert lowest.max() < 0.07


@pytest.mark.parametrize("name", CLIPS)
def test_knees_and_elbows_bend_the_way_they_can(name: str) -> None:
    joints, _ = points(only(name), np.arange(0, CLIPS[name].seconds, 0.05))
    rotations, _ = animate(only(name), body(), np.arange(0, CLIPS[name].seconds, 0.05))
    world = rotations[:, 0]
    for side in ("left", "right"):
        hip, knee, ankle, foot = (joints[:, joint(f"{side}_{n}")] for n in ("hip", "knee", "ankle", "foot"))
        # Heel to buttock: the toes point to the side of the shank on which the knee stands out.
        bend = knee - (hip + ankle) / 2
        assert (np.einsum("ti,ti->t", bend, foot - ankle) > 0).all(), f"{side} knee"
        angle = rotations[:, joint(f"{side}_knee")]
        assert (angle[:, 2, 1] > 0).all(), f"{side} knee turns backwards about x"
        # The palm comes to the chest: in the frame of the upper arm the forearm goes ahead (+z).
        elbow = rotations[:, joint(f"{side}_elbow")]
        forearm = elbow @ np.array([1.0 if side == "left" else -1.0, 0, 0])
        assert (forearm[:, 2] > 0).all(), f"{side} elbow"
    assert np.isfinite(world).all()


def test_a_person_stands_upright_and_is_not_mirrored() -> None:
    joints, keypoints = points(person(), np.zeros(1))
    up = joints[0, joint("head")] - joints[0, joint("pelvis")]
    assert up[2] / np.linalg.norm(up) > 0.95
    left = joints[0, joint("left_hip")] - joints[0, joint("right_hip")]
    ahead = keypoints[0, BODY_25.index("Nose")] - keypoints[0, [17, 18]].mean(0)
    assert np.cross(left, ahead)[2] < 0, "left must be on the left of who looks ahead"


def test_walking_goes_ahead_and_leaves_the_standing_foot_where_it_is() -> None:
    time_s = np.arange(0.6, 1.6, 1 / 120)  # at full pace
    who = only("walk")
    (segment,) = who.plan
    straight = replace(segment, arc=Arc(np.zeros(2), 1e6, segment.arc.bearing))
    who = replace(who, plan=(straight,))
    joints, keypoints = points(who, time_s)
    pelvis = joints[:, 0, :2]
    path = pelvis[-1] - pelvis[0]
    nose = (keypoints[:, BODY_25.index("Nose")] - joints[:, joint("head")]).mean(0)[:2]
    assert np.dot(path, nose) / np.linalg.norm(path) / np.linalg.norm(nose) > 0.95
    assert 0.5 < np.linalg.norm(path) < 1.6, "metres in a second"
    ankles = joints[:, [joint("left_ankle"), joint("right_ankle")]]
    slowest = np.linalg.norm(np.diff(ankles[..., :2], axis=0) * 120, axis=-1).min(1)
    assert np.median(slowest) < 0.25, "metres a second at which the standing foot slides"


def test_turning_ends_half_a_turn_later_on_the_spot() -> None:
    joints, _ = points(only("turn"), np.array([0.0, CLIPS["turn"].seconds]))
    across = (joints[:, joint("left_hip")] - joints[:, joint("right_hip")])[:, :2]
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    assert across[0] @ across[1] < -0.98
    feet = joints[:, [joint("left_ankle"), joint("right_ankle")], :2].mean(1)
    assert np.linalg.norm(feet[1] - feet[0]) < 0.02


def test_a_window_does_not_depend_on_the_others() -> None:
    time_s = np.arange(0, SECONDS, 0.1)
    whole = animate(person(), body(), time_s)
    for a in range(0, len(time_s), 7):
        part = animate(person(), body(), time_s[a : a + 7])
        for x, y in zip(whole, part, strict=True):
            np.testing.assert_allclose(y, x[a : a + 7], atol=1e-12)


def test_a_seed_is_a_person() -> None:
    time_s = np.arange(0, 2, 0.1)
    again = make_people(1, SECONDS, 0, body())[0]
    for x, y in zip(animate(person(0), body(), time_s), animate(again, body(), time_s), strict=True):
        np.testing.assert_array_equal(x, y)
    other, more = person(1), make_people(2, SECONDS, 0, body())
    assert not np.allclose(person(0).betas, other.betas)
    joints = points(person(0), time_s)[0], points(other, time_s)[0]
    assert np.abs((joints[0] - joints[0][:, :1]) - (joints[1] - joints[1][:, :1])).mean() > 0.05
    np.testing.assert_array_equal(more[0].betas, person(0).betas)  # one more does not change the first


def test_people_do_not_meet() -> None:
    people = make_people(3, SECONDS, 5, body())
    time_s = np.arange(0, SECONDS, 0.1)
    joints = [points(p, time_s)[0] for p in people]
    for i in range(3):
        for k in range(i):
            gap = np.linalg.norm(joints[i][:, :, None] - joints[k][:, None], axis=-1).min()
            assert gap > 0.2


def test_nobody_leaves_the_region_that_they_reach() -> None:
    people = make_people(2, 6.0, 1, body())
    corners = region_corners(people, body(), 6.0)
    assert np.isfinite(corners).all()
    directions = np.random.default_rng(0).normal(size=(200, 3))
    for p in people:
        rotations, transl = (torch.from_numpy(x) for x in animate(p, body(), np.arange(0, 6, 0.25)))
        mesh = body().vertices(rotations[:, 0], rotations[:, 1:], torch.from_numpy(p.betas), transl)
        furthest = (mesh.reshape(-1, 3).numpy()[::5] @ directions.T).max(0)
        assert (furthest <= (corners @ directions.T).max(0)).all()
