"""Matching over views: the person is the one on whom views agree, whatever the index in the file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from recordings import figure, ring, seen

from models.geometry.association import (
    MatchConfig,
    Sighting,
    TrackerState,
    masked_median,
    pick_people,
    propose,
    track_person,
)
from pipeline.cameras import Rig
from pipeline.skeleton import BODY_25

CFG = MatchConfig()
TIME = np.arange(48) / 24
NEVER = TrackerState()


def scene(
    rig: Rig, *people: np.ndarray, blind: tuple[tuple[int, int], ...] = (), seed: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """People (V, T, K, 3) as undistorted (V, T, P, K, 2) and confidence, and where person 0 is (V, T).

    blind: (view, person) pairs that do not see each other. seed: shuffles the people in every file.
    """
    stacked = np.stack(people, 2)
    for v, p in blind:
        stacked[v, :, p] = np.nan, np.nan, 0
    views, frames, count = stacked.shape[:3]
    where = np.zeros((views, frames), dtype=int)
    if seed is not None:
        rng = np.random.default_rng(seed)
        for v in range(views):
            for t in range(frames):
                order = rng.permutation(count)
                stacked[v, t] = stacked[v, t, order]
                where[v, t] = order.tolist().index(0)
    xy = np.stack([rig.undistort(v, stacked[v, ..., :2]) for v in range(views)])
    return xy, np.nan_to_num(stacked[..., 2]), where


def track(
    rig: Rig, xy: np.ndarray, confidence: np.ndarray, time: np.ndarray = TIME, state: TrackerState = NEVER
) -> tuple[Sighting, TrackerState]:
    return track_person(rig, xy, confidence, time[: xy.shape[1]], state, CFG)


def run(rig: Rig, xy: np.ndarray, confidence: np.ndarray, time: np.ndarray = TIME):
    """Detections (V, T) of whoever is followed, and the state after them."""
    sighting, state = track(rig, xy, confidence, time)
    assert ((sighting.detection >= 0).any(0) == (sighting.person >= 0)).all()
    return sighting.detection, state


def assert_same_state(a: TrackerState, b: TrackerState) -> None:
    assert (a.next_id, a.ids) == (b.next_id, b.ids)
    assert a.sight.tobytes() == b.sight.tobytes()
    assert np.array_equal(a.scores, b.scores)


def test_masked_median_is_the_median_of_what_counts() -> None:
    rng = np.random.default_rng(1)
    values, valid = rng.normal(size=(30, 7, 2)), rng.random((30, 7)) < 0.5
    valid[0] = False
    found = masked_median(values, valid)
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


def test_points_that_meet_behind_a_camera_count_as_unseen() -> None:
    rig, body = ring(2), points_of(figure(TIME))
    behind = body.copy()
    behind[:, :4] = 2 * rig.centres[0] - body[:, :4]
    conf = np.ones((2, 48, 1, 25))
    unseen = conf.copy()
    unseen[..., :4] = 0
    one, other = (propose(rig, on_lines(rig, behind)[:, :, None], c, CFG) for c in (conf, unseen))
    assert np.allclose(one.centre, other.centre)
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
    # Nor is it believed alone.
    confidence = np.ones((3, 48, 1, 25))
    confidence[:2, 10:] = 0
    sighting = track_person(rig, xy, confidence, TIME, NEVER, CFG)[0]
    assert (sighting.person[:10] == 0).all()
    assert (sighting.person[10:] == -1).all()


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


@pytest.mark.parametrize("views", [2, 3, 5])
def test_one_person_alone_is_found_in_every_view(views: int) -> None:
    rig = ring(views)
    body = figure(TIME)
    xy, confidence, _ = scene(rig, seen(rig, body, noise_px=3))
    chosen, state = run(rig, xy, confidence)
    assert (chosen == 0).all()
    middle = np.median(np.stack(list(body.values()), 1)[-1], axis=0)
    assert state.ids == (0,)
    assert np.abs(state.sight[0, :3] - middle).max() < 0.15
    assert state.sight[0, 3] == TIME[-1]


@pytest.mark.parametrize("seed", range(4))
def test_index_in_the_file_does_not_matter(seed: int) -> None:
    # A bystander whom two of four views show, in an order that changes from frame to frame.
    rig = ring(4)
    person, bystander = seen(rig, figure(TIME), seed=1), seen(rig, figure(TIME, (1.3, 1.0), 2.0), seed=2)
    xy, confidence, where = scene(rig, person, bystander, blind=((2, 1), (3, 1)), seed=seed)
    chosen, _ = run(rig, xy, confidence)
    assert np.array_equal(chosen, where)


def test_of_two_people_in_all_views_the_first_chosen_is_kept() -> None:
    rig = ring(4)
    people = seen(rig, figure(TIME), seed=1), seen(rig, figure(TIME, (0.0, 1.1), 1.0), seed=2)
    xy, confidence, where = scene(rig, *people, seed=3)
    chosen, _ = run(rig, xy, confidence)
    kept = chosen == where
    assert kept.all() or not kept.any()


def test_a_view_that_shows_only_somebody_else_is_missing() -> None:
    rig = ring(4)
    person, bystander = seen(rig, figure(TIME), seed=1), seen(rig, figure(TIME, (1.2, -0.8)), seed=2)
    xy, confidence, _ = scene(rig, person, bystander, blind=((0, 0), (1, 1), (2, 1), (3, 1)))
    chosen, _ = run(rig, xy, confidence)
    assert (chosen[0] == -1).all()
    assert (chosen[1:] == 0).all()


def test_while_the_person_is_away_a_bystander_is_not_taken() -> None:
    rig = ring(4)
    person, bystander = seen(rig, figure(TIME), seed=1), seen(rig, figure(TIME, (1.2, 0.9)), seed=2)
    person[:, 16:36] = np.nan, np.nan, 0
    xy, confidence, _ = scene(rig, person, bystander, blind=((1, 1), (2, 1)))
    chosen, _ = run(rig, xy, confidence)
    assert (chosen[:, :16] == 0).all()
    assert (chosen[:, 16:36] == -1).all()
    assert (chosen[:, 36:] == 0).all()


def occluded(frames: slice) -> tuple[Rig, np.ndarray, np.ndarray]:
    """Two people before six cameras, the second 2 m away; four views lose the first for a while."""
    rig = ring(6)
    person, other = seen(rig, figure(TIME), seed=1), seen(rig, figure(TIME, (1.4, 1.4), 1.0), seed=2)
    # Confidence tells the two apart at the start.
    other[..., 2] *= 0.8
    person[2:, frames] = np.nan, np.nan, 0
    xy, confidence, _ = scene(rig, person, other)
    return rig, xy, confidence


@pytest.mark.parametrize("frames", [slice(20, 21), slice(20, 23), slice(5, 45)])
def test_an_occlusion_in_most_views_does_not_hand_over_to_somebody_else(frames: slice) -> None:
    chosen, _ = run(*occluded(frames))
    assert (chosen[:2] == 0).all()
    assert (chosen[2:, frames] == -1).all()
    assert (np.delete(chosen, np.arange(48)[frames], 1) == 0).all()


def test_somebody_out_of_reach_is_only_taken_once_the_person_is_gone_for_long() -> None:
    rig = ring(4)
    time = np.arange(96) / 24
    person, other = seen(rig, figure(time), seed=1), seen(rig, figure(time, (1.4, 1.4), 1.0), seed=2)
    other[..., 2] *= 0.8
    person[:, 24:] = np.nan, np.nan, 0
    xy, confidence, _ = scene(rig, person, other)
    sighting, state = track(rig, xy, confidence, time)
    chosen = sighting.detection
    away = time - time[23] <= CFG.away_s
    assert (chosen[:, :24] == 0).all()
    assert (chosen[:, 24:][:, away[24:]] == -1).all()
    assert (chosen[:, ~away] == 1).all()
    # Somebody else, not the person who has left.
    assert (sighting.person[:24] == 0).all()
    assert (sighting.person[~away] == 1).all()
    assert state.sight[state.ids.index(1), 3] == time[-1]


def test_a_recording_that_begins_with_a_bystander() -> None:
    rig = ring(4)
    person, bystander = seen(rig, figure(TIME), seed=1), seen(rig, figure(TIME, (1.2, 0.9)), seed=2)
    person[:, :12] = np.nan, np.nan, 0
    xy, confidence, _ = scene(rig, person, bystander, blind=((1, 1), (2, 1)))
    chosen, _ = run(rig, xy, confidence)
    assert (chosen[:, :12] == -1).all()
    assert (chosen[:, 12:] == 0).all()


def test_one_view_alone_is_believed_for_a_moment_where_the_person_was() -> None:
    rig = ring(3)
    person, far = seen(rig, figure(TIME), seed=1), seen(rig, figure(TIME, (0.3, -1.6)), seed=2)
    person[1:, 10:] = np.nan, np.nan, 0
    xy, confidence, _ = scene(rig, person, far, blind=((1, 1), (2, 1)))
    chosen, state = run(rig, xy, confidence)
    held = TIME[10:] - TIME[9] <= CFG.single_view_s
    assert np.array_equal(chosen[0, 10:] == 0, held)
    assert (chosen[1:, 10:] == -1).all()
    assert not (chosen == 1).any()
    assert state.sight[0, 3] == TIME[9]


@pytest.mark.parametrize("what", ["a spot", "few points"])
def test_one_view_alone_is_not_believed_of_what_is_no_body(what: str) -> None:
    rig, body = ring(3), points_of(figure(TIME))
    xy, confidence = on_lines(rig, body)[:, :, None], np.ones((3, 48, 1, 25))
    confidence[1:, 10:] = 0
    assert (track(rig, xy, confidence)[0].person[10] == 0).all()
    if what == "a spot":
        xy[0, 10:] = xy[0, 10:, :, 8:9]
    else:
        confidence[0, 10:, :, CFG.min_points - 1 :] = 0
    assert (track(rig, xy, confidence)[0].person == np.where(np.arange(48) < 10, 0, -1)).all()


def test_of_two_within_reach_the_nearer_is_the_person() -> None:
    """Though the other is seen a little better."""
    rig = ring(4)
    person, other = points_of(figure(TIME)), points_of(figure(TIME, (0.0, 0.4)))
    xy = np.stack([on_lines(rig, person), on_lines(rig, other)], 2)
    confidence = np.ones((4, 48, 2, 25))
    confidence[:, :, 0] = 0.9
    confidence[:, 0, 1] = 0
    assert (track(rig, xy, confidence)[0].detection == 0).all()


def test_times_at_the_limits_belong_to_them() -> None:
    """Of ``return_s`` and ``away_s``: in 16 frames a second both are reached exactly."""
    state = NEVER.seen(0, np.array([0, 0, 1.0, 5.0, 9.0]))
    assert state.without_lost(5.0 + CFG.return_s, CFG).ids == (0,)
    assert state.without_lost(5.0 + CFG.return_s + 0.01, CFG).ids == ()
    rig, time = ring(4), np.arange(48) / 16
    person, other = points_of(figure(time)), points_of(figure(time, (1.4, 1.4)))
    xy = np.stack([on_lines(rig, person), on_lines(rig, other)], 2)
    confidence = np.ones((4, 48, 2, 25))
    confidence[:, :, 1] = 0.8
    confidence[:, 10:, 0] = 0
    found = track(rig, xy, confidence, time)[0].person
    assert CFG.away_s == 1.0
    assert found.tolist() == [0] * 10 + [-1] * 16 + [1] * 22


def test_a_person_of_whom_a_view_sees_half_still_counts() -> None:
    rig = ring(3)
    person = seen(rig, figure(TIME), seed=1)
    person[0, :, 9:] = np.nan, np.nan, 0
    chosen, _ = run(rig, *scene(rig, person)[:2])
    assert (chosen == 0).all()


def test_nobody_is_nobody() -> None:
    rig = ring(3)
    xy, confidence = np.full((3, 5, 1, 25, 2), np.nan), np.zeros((3, 5, 1, 25))
    chosen, state = run(rig, xy, confidence)
    assert (chosen == -1).all()
    assert_same_state(state, NEVER)


def test_people_who_are_nowhere_together_are_not_one_person() -> None:
    rig = ring(2)
    one, other = seen(rig, figure(TIME)), seen(rig, figure(TIME, (1.0, 1.5), 2.0))
    xy, confidence, _ = scene(rig, np.stack([one[0], other[1]]))
    chosen, _ = run(rig, xy, confidence)
    assert (chosen == -1).mean() > 0.9


@pytest.mark.parametrize("cut", [1, 19, 25, 40])
def test_the_past_alone_decides(cut: int) -> None:
    # The reference score is that of the frames so far, the batch at hand included: the first one is long.
    rig = ring(4)
    time = np.arange(96) / 24
    person, bystander = seen(rig, figure(time), seed=1), seen(rig, figure(time, (1.2, 0.9)), seed=2)
    person[:, 68:78] = np.nan, np.nan, 0
    xy, confidence, _ = scene(rig, person, bystander, blind=((1, 1),), seed=5)
    whole, end = track(rig, xy, confidence, time)
    first, state = track(rig, xy[:, : 48 + cut], confidence[:, : 48 + cut], time)
    assert np.array_equal(first.detection, whole.detection[:, : 48 + cut])
    second, last = track(rig, xy[:, 48 + cut :], confidence[:, 48 + cut :], time[48 + cut :], state)
    assert np.array_equal(np.concatenate([first.detection, second.detection], 1), whole.detection)
    assert np.array_equal(np.concatenate([first.person, second.person]), whole.person)
    assert_same_state(last, end)


def left(frames: slice, other_from: int = 0, at: tuple[float, float] = (1.4, 1.4)) -> tuple[Rig, np.ndarray]:
    """A person who is out of sight in some of 240 frames of 24 a second, and somebody else 2 m away."""
    rig = ring(4)
    time = np.arange(240) / 24
    person, other = seen(rig, figure(time), seed=1), seen(rig, figure(time, at, 1.0), seed=2)
    other[..., 2] *= 0.9
    person[:, frames] = np.nan, np.nan, 0
    other[:, :other_from] = np.nan, np.nan, 0
    return rig, np.stack([person, other], 2)


def tracked(rig: Rig, people: np.ndarray, cfg: MatchConfig = CFG) -> Sighting:
    xy = np.stack([rig.undistort(v, people[v, ..., :2]) for v in range(len(rig))])
    confidence = np.nan_to_num(people[..., 2])
    return track_person(rig, xy, confidence, np.arange(people.shape[1]) / 24, NEVER, cfg)[0]


def test_a_person_who_comes_back_to_their_place_is_followed_again() -> None:
    rig, people = left(slice(48, 80))  # 1.3 s
    sighting = tracked(rig, people)
    assert sighting.known == (0, 1)
    assert (sighting.person[:48] == 0).all()
    assert (sighting.person[48:71] == -1).all()
    assert (sighting.person[72:80] == 1).all()
    assert (sighting.detection[:, 72:80] == 1).all()
    assert (sighting.person[80:] == 0).all(), "though the other stays in sight"
    assert (sighting.detection[:, 80:] == 0).all()


def test_somebody_who_walks_through_the_place_of_the_person_who_left_stays_who_they_are() -> None:
    rig = ring(4)
    time = np.arange(240) / 24
    person, walker = figure(time), figure(time, phase=1.0)
    way = np.interp(time, [3, 8], [1.4, -0.6])[:, None] * np.array([1.0, 1, 0])
    views = [seen(rig, person, seed=1), seen(rig, {n: x + way for n, x in walker.items()}, seed=2)]
    views[1][..., 2] *= 0.9
    views[0][:, 48:] = np.nan, np.nan, 0
    sighting = tracked(rig, np.stack(views, 2))
    assert (sighting.person[:48] == 0).all()
    assert (sighting.person[72:] == 1).all()
    assert (sighting.detection[:, 72:] == 1).all()


def test_whoever_stands_in_the_place_too_late_is_somebody_else() -> None:
    rig, people = left(slice(48, 120), other_from=240)
    assert (tracked(rig, people).person[120:] == 0).all()
    late = tracked(rig, people, MatchConfig(return_s=2.0))
    assert (late.person[:48] == 0).all()
    assert (late.person[120:] == 1).all()


def test_a_bystander_who_comes_first_does_not_stay_the_one_who_is_followed() -> None:
    rig, people = left(slice(0, 60))
    people[2:, :, 1] = np.nan, np.nan, 0  # the other in two of four views
    batches = [slice(a, a + 24) for a in range(0, 240, 24)]
    state, who = NEVER, []
    xy = np.stack([rig.undistort(v, people[v, ..., :2]) for v in range(len(rig))])
    for at in batches:
        time = np.arange(240)[at] / 24
        sighting, state = track_person(
            rig, xy[:, at], np.nan_to_num(people[:, at, :, :, 2]), time, state, CFG
        )
        who.append(sighting)
    person = np.concatenate([s.person for s in who])
    detection = np.concatenate([s.detection for s in who], 1)
    assert (person[:60] == 0).all()
    assert (person[144:] == 1).all(), "from when there was somebody better in most frames"
    assert (detection[:, 144:] == 0).all()
    assert (detection[:, person == 0] != 0).all(), "two people never share an id"


def test_pick_people_takes_the_chosen_and_fills_the_rest() -> None:
    values = np.arange(2 * 3 * 2).reshape(2, 3, 2).astype(np.float64)
    found = pick_people(values, np.array([[0, 1, -1], [1, -1, 0]]), -9.0)
    assert found.tolist() == [[0, 3, -9], [7, -9, 10]]


ONE = ring(4).select(["cam01"])


def shown_to_one(*people: np.ndarray, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return scene(ONE, *(p[:1] for p in people), seed=seed)


def alone(phase: float = 0.0, at: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    return seen(ring(4), figure(TIME, at, phase), seed=int(10 * phase))


def test_one_camera_follows_whom_it_shows_largest() -> None:
    xy, confidence, where = shown_to_one(alone(), alone(1.0, (-1.0, 2.0)))
    chosen, state = run(ONE, xy, confidence)
    assert np.array_equal(chosen, where)
    assert np.isfinite(state.sight).all()


def test_one_camera_does_not_take_a_bystander_while_the_person_is_hidden() -> None:
    person, other = alone(), alone(1.0, (-1.0, 2.0))
    person[:, 20:30] = np.nan, np.nan, 0
    xy, confidence, where = shown_to_one(person, other)
    chosen, _ = run(ONE, xy, confidence)
    expected = where.copy()
    expected[:, 20:30] = -1
    assert np.array_equal(chosen, expected)


def test_one_camera_does_not_start_with_a_bystander() -> None:
    person, other = alone(), alone(1.0, (-7.0, 0.5))
    person[:, :12] = np.nan, np.nan, 0
    xy, confidence, where = shown_to_one(person, other)
    chosen, _ = run(ONE, xy, confidence)
    assert (chosen[:, :12] == -1).all()
    assert np.array_equal(chosen[:, 12:], where[:, 12:])


def test_one_camera_goes_on_where_it_stopped() -> None:
    xy, confidence, _ = shown_to_one(alone(), alone(1.0, (-1.0, 2.0)))
    whole, end = track(ONE, xy, confidence)
    first, state = track(ONE, xy[:, :17], confidence[:, :17])
    second, last = track(ONE, xy[:, 17:], confidence[:, 17:], TIME[17:], state)
    assert np.array_equal(np.concatenate([first.detection, second.detection], 1), whole.detection)
    assert_same_state(last, end)


def test_one_camera_that_shows_nobody() -> None:
    xy, confidence = np.full((1, 48, 2, 25, 2), np.nan), np.zeros((1, 48, 2, 25))
    chosen, state = run(ONE, xy, confidence)
    assert (chosen == -1).all()
    assert_same_state(state, NEVER)
    assert state.reference_score == 0
    assert (run(ONE, xy[:, :, :0], confidence[:, :, :0])[0] == -1).all()


@pytest.mark.parametrize("scale", [0.02, 1.0, 900.0])
def test_the_reference_score_is_the_median_of_all_frames_so_far(scale: float) -> None:
    rng = np.random.default_rng(0)
    best = scale * rng.uniform(1, 20, 1000)
    best[::7] = 0
    state = NEVER
    for part in np.split(best, 10):
        state = state.with_scores(part)
    assert state.reference_score == pytest.approx(np.median(best[best > 0]), rel=0.05)
