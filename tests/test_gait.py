"""Gait events of synthetic walkers, whose gait cycle is known."""

from dataclasses import replace

import numpy as np
import pytest
from test_synthetic_people import person, points

from models.gait import EVENTS, feet_ahead, gait_events
from models.synthetic.people import _GAIT_CYCLE_S, CLIPS

UP = np.array([0.0, 0, 1])
SECONDS = 8.0
TIMES = np.arange(int(30 * SECONDS)) / 30


def doing(name, seed=0):
    """A synthetic person who does one thing for eight seconds."""
    who = person(seed)
    clip = replace(CLIPS[name], seconds=SECONDS)
    segment = replace(who.plan[0], clip=clip, start_s=0.0, distance_m=0.0, yaw=0.0, direction=1.0)
    return replace(who, plan=(segment,), style=replace(who.style, speed=1.0))


@pytest.mark.parametrize("seed", range(3))
def test_events_of_a_walk_are_those_of_its_gait_cycle(seed):
    walker = doing("walk", seed)
    ahead = feet_ahead(points(walker, TIMES)[1], UP)
    for side, shift in (("left", 0.0), ("right", 0.5)):
        events = gait_events(TIMES, ahead)
        # A cycle is from heel strike to heel strike; the toe leaves at 60 %, and moves on from 62 % on.
        for kind, at in (("strike", 0.0), ("off", 0.61)):
            known = (np.arange(-2, 9) + at - shift - walker.style.phase) * _GAIT_CYCLE_S
            found = events[f"{side}_foot_{kind}"]
            inner = found[(found > 1) & (found < SECONDS - 1)]
            assert len(inner) == ((known > 1) & (known < SECONDS - 1)).sum()
            assert np.abs(inner[:, None] - known).min(1).max() < 0.06


@pytest.mark.parametrize("name", [name for name in CLIPS if name != "walk"])
def test_without_walking_there_are_no_events(name):
    events = gait_events(TIMES, feet_ahead(points(doing(name), TIMES)[1], UP))
    assert not any(map(len, events.values())), events


def test_an_event_lies_between_frames_and_not_beside_a_gap():
    time_s = 5 + np.arange(100) / 50
    left = 0.3 * np.cos(2 * np.pi * (time_s - 5.507))
    ahead = np.stack([left, left, -left, -left], 1)
    events = gait_events(time_s, ahead)
    assert [*events] == [*EVENTS]
    np.testing.assert_allclose(events["left_foot_strike"], [5.507, 6.507], atol=1e-4)
    np.testing.assert_allclose(events["left_foot_off"], [6.007], atol=1e-4)
    np.testing.assert_allclose(events["right_foot_strike"], [6.007], atol=1e-4)
    ahead[20:27] = np.nan
    np.testing.assert_allclose(gait_events(time_s, ahead)["left_foot_strike"], [6.507], atol=1e-4)
