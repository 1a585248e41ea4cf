"""Tracking of people by their ROIs: searches, new people, ends, and the state that is handed on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from detector_scenes import alone, frames, needs_balancing, networks, two_people, where_found

from models.detectors import tracking
from models.detectors.finder import FoundPeople
from models.detectors.landmarks import Landmarks
from models.detectors.rois import BLAZEPOSE_JOINTS, COCO_JOINTS, roi_towards
from models.detectors.tracking import (
    MAX_VIEW_TRACKS,
    BlazePose,
    Networks,
    TrackerState,
    detect_people,
)

GREY = np.full((720, 1280, 3), 100, np.uint8)
HEIGHT = 300.0
EVERY = 4
NO_NETWORKS = Networks(None, BlazePose(None))  # type: ignore[arg-type]


class World:
    """People in front of a camera, seen by a finder and a landmark network that know where they are."""

    def __init__(self) -> None:
        self.people: list[tuple[float, float]] = []
        """Middle of each one's hips, pixels."""
        self.hidden: set[int] = set()
        """Those whom the finder overlooks."""
        self.searches = 0
        self.looks: list[int] = []
        """ROIs in each batch."""
        self.reach = 0.6 * HEIGHT
        """Radius of the circle that holds a person, pixels."""

    def joints(self, at: tuple[float, float]) -> np.ndarray:
        across = np.tile([0.1, -0.1], 6)
        down = np.repeat([-0.3, -0.15, 0.0, 0.0, 0.25, 0.5], 2)
        return np.array(at) + HEIGHT * np.stack([across, down], -1)

    def find(self, network: object, picture: np.ndarray) -> FoundPeople:
        self.searches += 1
        points = np.zeros((len(self.people), 17, 3))
        points[..., 2] = 0.9
        for person, at in zip(points, self.people, strict=True):
            person[:, :2] = at
            person[list(COCO_JOINTS), :2] = self.joints(at)
        seen = [n for n in range(len(self.people)) if n not in self.hidden]
        return FoundPeople(points[seen], np.zeros((len(seen), 4)), np.ones(len(seen)))

    def place(self, network: object, crops: np.ndarray, roi: np.ndarray) -> Landmarks:
        if len(roi):
            self.looks.append(len(roi))
        n = len(roi)
        xy, person, after = np.zeros((n, 33, 2)), np.full(n, 0.1), roi.copy()
        for k, one in enumerate(roi):
            distance = [np.hypot(*(one[:2] - at)) for at in self.people]
            if distance and min(distance) < 0.3 * one[2]:
                at = self.people[int(np.argmin(distance))]
                xy[k] = at
                xy[k, list(BLAZEPOSE_JOINTS)] = self.joints(at)
                person[k] = 0.9
                after[k] = roi_towards(np.array(at), np.array(at) - [0, self.reach])
        return Landmarks(xy, np.ones((n, 33)), person, roi, after)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    out = World()
    monkeypatch.setattr(tracking, "find_people", out.find)
    monkeypatch.setattr(tracking, "place_landmarks", out.place)
    return out


def watched(state: TrackerState | None = None) -> Iterator[list[int]]:
    """Track ids in each frame of one camera."""
    state = state or TrackerState.start()
    while True:
        state, _ = detect_people(NO_NETWORKS, GREY, state, EVERY)
        yield state.track_id.tolist()


def test_the_finder_searches_every_few_frames_and_new_people_get_two_looks(world: World) -> None:
    world.people = [(300, 360), (800, 400)]
    camera = watched()
    assert [next(camera) for _ in range(9)] == [[0, 1]] * 9
    assert world.searches == 3
    assert world.looks == [2, 2, *[2] * 8]


def test_a_new_person_is_looked_at_again_in_the_roi_of_the_first_looks_landmarks(world: World) -> None:
    world.people = [(300, 360)]
    _, people = detect_people(NO_NETWORKS, GREY, TrackerState.start(), EVERY)
    want = roi_towards(np.array([300.0, 360]), np.array([300, 360 - 0.6 * HEIGHT]))
    assert people.roi[0] == pytest.approx(want)


def test_a_person_is_followed_and_who_comes_later_is_found_at_the_next_search(world: World) -> None:
    world.people = [(300, 360)]
    camera, seen = watched(), []
    for t in range(10):
        world.people[0] = (300 + 20 * t, 360)
        if t == 2:
            world.people.append((1000, 360))
        seen.append(next(camera))
    assert seen == [[0]] * 4 + [[0, 1]] * 6


def test_after_a_loss_the_finder_searches_at_once(world: World) -> None:
    world.people = [(300, 360)]
    camera = watched()
    next(camera)
    world.people[0] = (900, 360)
    assert next(camera) == []
    assert world.searches == 1
    assert next(camera) == [1]
    assert world.searches == 2
    assert [next(camera) for _ in range(3)] == [[1]] * 3
    assert world.searches == 2
    next(camera)
    assert world.searches == 3


def test_where_nobody_is_the_finder_searches_no_more_often(world: World) -> None:
    camera = watched()
    assert [next(camera) for _ in range(8)] == [[]] * 8
    assert world.searches == 2


@pytest.mark.parametrize("reach", [0.0, np.nan, 1e9])
def test_a_person_whose_next_roi_cannot_be_looked_at_is_nobody(world: World, reach: float) -> None:
    world.people = [(300, 360)]
    camera = watched()
    assert next(camera) == [0]
    world.reach = reach
    assert [next(camera) for _ in range(3)] == [[]] * 3
    assert world.searches == 2
    world.reach = 0.6 * HEIGHT
    assert [next(camera) for _ in range(4)][-1] == [1]


def test_two_tracks_on_one_person_become_the_older_one(world: World) -> None:
    world.people = [(380, 360), (520, 360)]
    camera = watched()
    assert next(camera) == [0, 1]
    world.people = [(450, 360)]
    assert next(camera) == [0]
    world.people = [(450, 360), (700, 360)]
    assert [next(camera) for _ in range(3)][-1] == [0, 2]


def test_people_behind_each_other_are_two(world: World) -> None:
    """Their ROIs have nearly one centre; their joints lie apart."""
    world.people = [(300, 360), (360, 360)]
    camera = watched()
    assert [next(camera) for _ in range(6)] == [[0, 1]] * 6


def test_a_person_whom_the_finder_overlooks_is_kept(world: World) -> None:
    world.people = [(300, 360), (800, 360)]
    camera = watched()
    next(camera)
    world.hidden = {0, 1}
    assert [next(camera) for _ in range(9)] == [[0, 1]] * 9


def test_there_are_no_more_tracks_than_places(world: World) -> None:
    world.people = [(100 + 180 * n, 200 + 300 * (n % 2)) for n in range(7)]
    camera = watched()
    for _ in range(6):
        assert next(camera) == [*range(MAX_VIEW_TRACKS)]


def test_the_state_given_is_left_as_it_is(world: World) -> None:
    world.people = [(300, 360)]
    state = TrackerState.start()
    for _ in range(3):
        before = state.to_vector()
        after, _ = detect_people(NO_NETWORKS, GREY, state, EVERY)
        assert np.array_equal(before, state.to_vector(), equal_nan=True)
        state = after


@needs_balancing
def test_a_state_that_was_stored_goes_on_with_the_same_bytes() -> None:
    state = TrackerState.start()
    for picture in frames(1, count=14, step=2):
        stored = TrackerState.of_vector(state.to_vector())
        state, people = detect_people(networks(), picture, state)
        again, same_people = detect_people(networks(), picture, stored)
        assert len(people)
        assert people.points.tobytes() == same_people.points.tobytes()
        assert state.to_vector().tobytes() == again.to_vector().tobytes()


@needs_balancing
def test_two_people_in_one_picture_are_found_and_keep_their_ids() -> None:
    model = networks("heavy")
    clips = [frames(camera, count=12, step=4) for camera in (3, 4)]
    singles = [list(zip(clip, alone(model, clip), strict=True)) for clip in clips]
    state, found = TrackerState.start(), []
    for large, small in zip(*singles, strict=True):
        picture, joints = two_people(large, small)
        state, people = detect_people(model, picture, state)
        found.append(where_found(state, people, joints))
    assert found.count([0, 1]) >= 0.95 * len(found)
