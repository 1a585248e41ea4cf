"""Several people over time: who is who, through crossings, exchanges, fragments and phantoms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from crowds import walkers
from recordings import figure, ring, seen

from models.geometry.association import MatchConfig
from models.geometry.matching import TrackMatch, match_tracks
from models.geometry.people import track_people
from models.geometry.tracks import Tracks
from models.geometry.triangulation import triangulate
from pipeline.batches import DetectionBatch, KeypointBatch
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.skeleton import BODY_25
from stages.associate import associate, check_people, sides_exchanged

RATE, WINDOW = 30, 24
RIG = ring(4)
ALL = MatchConfig(people="all")
UPPER = np.isin(np.arange(25), [0, 1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 18])
FLIPS = list(BODY_25.flips)


def walker(frames: int, start: tuple[float, float], stop: tuple[float, float], phase: float = 0.0) -> dict:
    """A figure that goes from one place to another."""
    body = figure(np.arange(frames) / RATE, phase=phase)
    at = np.linspace([*start, 0], [*stop, 0], frames)
    return {name: points + at for name, points in body.items()}


def crossing(frames: int = 90, rig: Rig = RIG) -> np.ndarray:
    """Two people (V, T, 2, K, 3) who pass each other half a metre apart."""
    one = walker(frames, (-1.5, -0.25), (1.5, -0.25))
    two = walker(frames, (1.5, 0.25), (-1.5, 0.25), phase=2.0)
    return np.stack([seen(rig, one), seen(rig, two, seed=1)], 2)


def shuffled(people: np.ndarray, seed: int = 0) -> np.ndarray:
    """The people of every picture in another order."""
    rng = np.random.default_rng(seed)
    out = people.copy()
    for v, t in np.ndindex(people.shape[:2]):
        out[v, t] = people[v, t, rng.permutation(people.shape[2])]
    return out


def detections(people: np.ndarray, window: int = WINDOW) -> Iterator[DetectionBatch]:
    points = torch.from_numpy(people).float()
    for a in range(0, points.shape[1], window):
        part = points[:, a : a + window]
        time_s = torch.arange(a, a + part.shape[1]).double().expand(len(people), -1) / RATE
        yield DetectionBatch(a, RATE, time_s, part[..., :2], part[..., 2].nan_to_num())


def tracked(people: np.ndarray, cfg: MatchConfig = ALL, rig: Rig = RIG) -> list[KeypointBatch]:
    return list(associate(detections(people), cfg, rig))


def image(batches: list[KeypointBatch], person: int) -> np.ndarray:
    """(V, T, K, 2) of one id; NaN where the person is not there."""
    return torch.cat([b.people(torch.tensor([person])).image_px[:, :, 0] for b in batches], 1).numpy()


def everybody(batches: list[KeypointBatch]) -> list[int]:
    return sorted({i for b in batches for i in b.ids.tolist()})


def matches(batches: list[KeypointBatch], people: np.ndarray) -> dict[int, int]:
    """Id of each person, where all that is given to the id is that person's, and nearly all of it is."""
    found = {}
    for i in everybody(batches):
        given = image(batches, i)
        there = np.isfinite(given[..., 0])
        for p in range(people.shape[2]):
            true = people[:, :, p, :, :2]
            if (np.abs(given - true)[there] < 1e-2).all() and there.sum() > 0.95 * np.isfinite(
                true[..., 0]
            ).sum():
                found[p] = i
    return found


@pytest.mark.parametrize("window", [7, 24, 90])
def test_people_who_cross_keep_their_ids(window: int) -> None:
    people = crossing()
    batches = list(associate(detections(shuffled(people), window), ALL, RIG))
    assert sum(len(b.time_s) for b in batches) == 90
    assert sorted(matches(batches, people).values()) == [0, 1]
    assert everybody(batches) == [0, 1]


def test_exchanged_sides_are_put_right() -> None:
    people = crossing()
    broken = people.copy()
    rng = np.random.default_rng(3)
    wrong = rng.random(people.shape[:3]) < 0.2
    broken[wrong] = broken[wrong][:, FLIPS]
    batches = tracked(shuffled(broken))
    for i in range(2):
        given = image(batches, i)
        miss = np.abs(given[:, :, None] - people[..., :2]).max((-1, -2)).min(-1)  # NaN where not given
        assert (miss < 1e-2).mean() > 0.98


def test_a_track_that_was_born_as_a_mirror_image_is_put_right_from_the_start() -> None:
    people = crossing()
    broken = people.copy()
    broken[:, 0, 0] = broken[:, 0, 0][:, FLIPS]
    batches = tracked(shuffled(broken))
    off = [np.abs(image(batches, i) - people[:, :, 0, :, :2]).max((0, 2, 3)) for i in everybody(batches)]
    assert min(each[:60].max() for each in off) < 1e-2
    assert sum(sides_exchanged(batches[-1].state)) == 4


def test_how_long_sides_may_be_wrong_does_not_depend_on_the_frame_rate() -> None:
    frames = np.repeat(crossing()[:, :, :1], 4, 1).astype(np.float64)  # 30 frames/s at 120
    for step, turned in ((4, True), (1, False)):
        broken = frames[:, ::step].copy()
        broken[:, 40:44] = broken[:, 40:44][..., FLIPS, :]
        time_s = np.arange(broken.shape[1]) * step / 120
        owned, _ = track_people(RIG, broken[..., :2], broken[..., 2], time_s, Tracks.none(), ALL)
        assert bool(owned.mirror_spans) == turned


def test_sides_of_a_birth_are_those_of_its_body(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_sides_exchanged(*arguments: Any) -> TrackMatch:
        match = match_tracks(*arguments)
        every = np.ones(len(match.owner), bool)
        return replace(match, detections=match.detections.exchange(every), mirrored=every.astype(np.int64))

    monkeypatch.setattr("models.geometry.people.match_tracks", with_sides_exchanged)
    frame = crossing()[:, :1].astype(np.float64)
    owned, _ = track_people(RIG, frame[..., :2], frame[..., 2], np.zeros(1), Tracks.none(), ALL)
    assert (owned.serial >= 0).all()
    assert (owned.mirrored == 1).all()


def test_a_person_found_in_two_parts_is_one() -> None:
    people = crossing()
    parts = np.concatenate([people, people], 2)
    split = np.random.default_rng(4).random(people.shape[:3]) < 0.4
    for first, kept in ((0, UPPER), (2, ~UPPER)):
        part = parts[:, :, first : first + 2]
        part[split[..., None] & ~kept] = np.nan, np.nan, 0
    parts[:, :, 2:][~split] = np.nan, np.nan, 0
    batches = tracked(shuffled(parts))
    assert everybody(batches) == [0, 1]
    assert sorted(matches(batches, people).values()) == [0, 1]


def test_phantoms_are_nobody() -> None:
    people = crossing()
    rng = np.random.default_rng(5)
    moving = people[:, :, :1].copy()
    moving[..., :2] += rng.uniform(-400, 400, (*moving.shape[:2], 1, 1, 2))
    still = np.repeat(moving[:, 10:11], 90, 1)
    still[1:] = np.nan, np.nan, 0
    batches = tracked(shuffled(np.concatenate([people, moving, still], 2)))
    assert everybody(batches) == [0, 1]
    assert sorted(matches(batches, people).values()) == [0, 1]


def test_a_hidden_person_is_not_taken_for_clutter_at_the_same_place() -> None:
    """A picture of a person hangs where the person is when two views do not show them."""
    rig = ring(3)
    people = crossing(rig=rig)[:, :, :1].copy()
    picture = people[2:, 46, 0] + [12, 0, 0]
    people[1, 45:50] = people[2, 44:52] = np.nan, np.nan, 0
    clutter = np.full_like(people, [np.nan, np.nan, 0])
    clutter[2, :, 0] = picture
    batches = tracked(shuffled(np.concatenate([people, clutter], 2)), rig=rig)
    assert everybody(batches) == [0]
    assert np.nanmax(np.abs(image(batches, 0) - people[:, :, 0, :, :2])) < 1e-2
    assert np.isnan(image(batches, 0)[2, 44:52]).all()


def test_who_stood_still_before_one_camera_is_a_person_when_others_show_them() -> None:
    body = {name: np.repeat(points[:1], 120, 0) for name, points in figure(np.zeros(1)).items()}
    people = seen(RIG, body)[:, :, None]
    people[1:, :60] = np.nan, np.nan, 0
    batches = tracked(people)
    assert everybody(batches) == [0]
    assert np.isfinite(image(batches, 0)[:, 61:, 1:9]).all()


@pytest.mark.parametrize(("views", "ids"), [(2, [0]), (3, [0, 1])])
def test_who_is_shown_by_half_of_the_cameras_that_look_there_is_a_phantom(views: int, ids: list[int]) -> None:
    people = crossing()
    people[views:, :, 1] = np.nan, np.nan, 0
    assert everybody(tracked(people)) == ids


def checked(people: np.ndarray, cfg: MatchConfig = ALL, rig: Rig = RIG) -> list[tuple[str, str | None, int]]:
    """Codes, cameras and counts of the findings about people (V, T, D, K, 3)."""
    batches = tracked(people, cfg, rig)
    found = check_people(batches[-1].carried, rig, people.shape[1], RATE, len(everybody(batches)), cfg)
    counts = [
        f.frames or int(next(w for w in f.sentence.replace(",", " ").split() if w.isdigit())) for f in found
    ]
    return [(f.code, f.camera, count) for f, count in zip(found, counts, strict=True)]


def test_who_is_left_out_is_told_with_the_reason() -> None:
    people = crossing()
    assert checked(people) == []
    short = people.copy()
    short[:, 20:, 1] = np.nan, np.nan, 0  # 0.7 s
    assert checked(short) == [("people_left_out", None, 1)]
    few = people.copy()
    few[2:, :, 1] = np.nan, np.nan, 0
    assert checked(few) == [("people_left_out", None, 1)]
    assert checked(people, MatchConfig(people="main")) == [("people_left_out", None, 1)]
    assert checked(people, MatchConfig(people=2)) == []


def test_exchanged_sides_are_counted_by_camera() -> None:
    people = crossing()
    wrong = np.random.default_rng(3).random(people.shape[1:3]) < 0.2
    wrong[0] = False
    people[2][wrong] = people[2][wrong][:, FLIPS]
    people[1, 40, 0] = people[1, 40, 0][FLIPS]  # not worth a word
    assert checked(shuffled(people)) == [("sides_exchanged", "cam03", int(wrong.sum()))]
    assert sides_exchanged(tracked(people)[-1].carried) == [0, 1, int(wrong.sum()), 0]


def test_cameras_that_look_elsewhere_do_not_count() -> None:
    people = crossing()
    people[2:, :, 1] = np.nan, np.nan, 0
    narrow = replace(RIG, size=np.array([[1280, 720]] * 2 + [[600, 720]] * 2))
    people[2:, :, 0] = np.nan, np.nan, 0
    assert everybody(tracked(people)) == []
    far = replace(narrow, K=narrow.K * np.array([1, 1, 1])[:, None])
    far.K[2:, 0, 2] -= 2000  # what they see lies to the left of their pictures
    assert everybody(tracked(people, rig=far)) == [0, 1]


def test_two_views_that_meet_by_chance_do_not_move_a_person() -> None:
    """For a frame one view shows the person, another somebody whose rays meet those a metre further on."""
    people = crossing()
    body = walker(90, (-1.5, -0.25), (1.5, -0.25))
    rays = {name: points - RIG.centres[0] for name, points in body.items()}
    aside = seen(RIG, {name: RIG.centres[0] + 1.3 * ray for name, ray in rays.items()})
    people[1:, 45, 0] = np.nan, np.nan, 0
    people[1, 45, 0] = np.where(np.arange(25)[:, None] < 10, crossing()[1, 45, 0], aside[1, 45])
    batches = tracked(shuffled(people))
    off = [np.abs(image(batches, i) - people[:, :, 0, :, :2]).max((0, 2, 3)) for i in everybody(batches)]
    assert len(off) == 2
    person = int(np.argmin([each[44] for each in off]))
    assert off[person][50:].max() < 1e-2
    assert np.isnan(image(batches, person)[1, 45]).all()


def test_whom_one_view_alone_showed_is_found_again_at_once_where_two_do() -> None:
    """One view does not show that the person turned back."""
    body, time = figure(np.arange(120) / RATE), np.arange(120) / RATE
    way = RIG.centres[0] * [1, 1, 0]
    along = np.minimum(time, 3 - time)[:, None, None]
    points = np.stack([body[name] for name in BODY_25.names], 1) + along * way / np.linalg.norm(way)
    people = seen(RIG, {name: points[:, k] for k, name in enumerate(BODY_25.names)})[:, :, None]
    people[1:, 45:54] = people[2:, 54:] = np.nan, np.nan, 0
    batches = tracked(people)
    assert everybody(batches) == [0]
    assert np.abs(image(batches, 0) - people[:, :, 0, :, :2])[:2, 54:].max() < 1e-2


@pytest.mark.parametrize("speed_m_s", [1.6, 2.3], ids=["found again", "born again"])
def test_what_misled_a_hidden_person_is_left_when_they_are_seen_again(speed_m_s: float) -> None:
    """For 12 frames one view alone shows the person, as somebody who walks away: also after that."""
    rig, body, time = ring(3), figure(np.zeros(110)), np.arange(110) / RATE
    people = seen(rig, body)[:, :, None]
    x, y, _ = rig.centres[0]
    aside = np.maximum(time - 44 / RATE, 0)[:, None] * speed_m_s * np.array([-y, x, 0]) / np.hypot(x, y)
    away = seen(rig, {name: points + aside for name, points in body.items()})[:, :, None]
    people[1:, 45:57] = np.nan, np.nan, 0
    people[0, 45:65] = away[0, 45:65]
    batches = tracked(people, rig=rig)
    given = image(batches, 0)
    assert everybody(batches) == [0]
    assert np.isfinite(given[1:, 57:, 1:9]).all()
    assert np.isnan(given[0, 57:65]).all()


def test_a_track_beside_its_person_goes_to_where_more_views_show_them() -> None:
    """Two views place the person further from the first camera, and 6 cm higher: the second one is wrong."""
    rig, body, time = ring(5), figure(np.zeros(110)), np.arange(110) / RATE
    people = seen(rig, body)[:, :, None]
    further = 1 + 0.1 * np.clip((time - 44 / RATE) / 0.4, 0, 1)[:, None]
    eye = rig.centres[0]
    away = {name: eye + further * (points - eye) + [0, 0, 0.06] for name, points in body.items()}
    people[2:, 45:60] = np.nan, np.nan, 0
    people[1, 45:70] = seen(rig, away)[1, 45:70, None]
    batches = tracked(people, rig=rig)
    given = image(batches, 0)
    assert everybody(batches) == [0]
    assert np.isfinite(given[2:, 60:, 1:9]).all()
    assert np.isfinite(given[0, :, 1:9]).all()
    assert np.isnan(given[1, 61:70]).all()


def test_views_that_share_few_keypoints_are_kept() -> None:
    people = crossing()
    people[2:, 40:44] = np.nan, np.nan, 0
    people[0, 40:44, :, UPPER] = np.nan
    people[1, 40:44, :, ~UPPER] = np.nan
    people[..., 2] = np.where(np.isnan(people[..., 0]), 0, people[..., 2])
    batches = tracked(shuffled(people))
    assert sorted(matches(batches, people).values()) == [0, 1]
    assert all(np.isfinite(image(batches, i)[:2, 40:44, :, 0]).any(-1).all() for i in (0, 1))


@pytest.mark.parametrize(("reidentify", "ids"), [(False, [0, 1, 2]), (True, [0, 1])])
def test_who_comes_back_late_is_somebody_else_unless_asked(reidentify: bool, ids: list[int]) -> None:
    people = crossing(180)
    people[:, 60:110, 1] = np.nan, np.nan, 0  # 1.7 s
    batches = tracked(people, MatchConfig(people="all", reidentify=reidentify, max_reach_m=3))
    assert everybody(batches) == ids
    back = image(batches, ids[-1])[:, 110:]
    assert np.abs(back - people[:, 110:, 1, :, :2]).max() < 1e-2
    assert np.isnan(image(batches, 1)[:, 60:110]).all()


def test_who_is_back_within_a_second_is_the_same() -> None:
    people = crossing(120)
    people[:, 60:80, 1] = np.nan, np.nan, 0
    batches = tracked(people)
    assert everybody(batches) == [0, 1]
    assert 1 in batches[2].ids.tolist()


def test_who_is_there_for_a_moment_is_nobody_and_who_stays_has_been_there_from_the_start() -> None:
    people = crossing(120)
    people[:, :50, 1] = np.nan, np.nan, 0
    short = people.copy()
    short[:, 75:, 1] = np.nan, np.nan, 0  # 0.8 s
    assert everybody(tracked(short)) == [0]
    batches = tracked(people)
    assert np.isfinite(image(batches, 1)[:, 50:, 8]).all()
    assert np.isnan(image(batches, 1)[:, :50]).all()


@pytest.mark.parametrize("frames", [1, 2, 10, 25])
def test_short_recordings_have_their_people(frames: int) -> None:
    people = crossing()[:, 20 : 20 + frames]
    assert sorted(matches(tracked(people), people).values()) == [0, 1]


@pytest.mark.parametrize("most", [1, 2])
def test_at_most_so_many(most: int) -> None:
    third = seen(RIG, walker(90, (0.0, 1.4), (0.2, 1.4), phase=1.0), seed=2)
    people = np.concatenate([crossing(), third[:, :, None]], 2)
    batches = tracked(shuffled(people), MatchConfig(people=most))
    assert everybody(batches) == [*range(most)]
    assert len(matches(batches, people)) == most


def test_main_is_one_person_who_is_taken_up_again_when_back() -> None:
    """While they are away somebody else is followed, under an id of their own."""
    people = crossing(180)
    people[:, 60:110, 0] = np.nan, np.nan, 0  # 1.7 s
    people[:, :, 1, :, 2] *= 0.8
    people[:, :5, 1] = np.nan, np.nan, 0  # comes second
    batches = tracked(shuffled(people), MatchConfig(people="main", max_reach_m=3))
    assert everybody(batches) == [0, 1]
    for person, frames in ((0, [*range(60), *range(110, 180)]), (1, range(90, 110))):
        given = image(batches, person)
        there = np.isfinite(given).any((0, 2, 3))
        assert np.flatnonzero(there).tolist() == [*frames]
        assert np.abs(given - people[:, :, person, :, :2])[:, there].max() < 1e-2
    assert batches[-1].ids.tolist() == [0, 1], "the other may be followed again"
    rest = iter([*detections(shuffled(people))][4:])
    again = list(associate(rest, MatchConfig(people="main", max_reach_m=3), RIG, batches[3].carried))
    for a, b in zip(again, batches[4:], strict=True):
        assert_same(a, b)


def test_one_camera_takes_up_who_is_back_in_its_picture() -> None:
    rig = RIG.select(RIG.names[:1])
    ways = ((0, -0.9), (0, -0.7)), ((0, 0.9), (0, 0.8))
    people = np.stack([seen(rig, walker(150, *way)) for way in ways], 2)
    people[:, 60:100, 0] = np.nan, np.nan, 0
    for reidentify, ids in ((True, [0, 1]), (False, [0, 1, 2])):
        batches = tracked(shuffled(people), MatchConfig(reidentify=reidentify), rig)
        assert everybody(batches) == ids


@pytest.mark.parametrize("seed", [31, 32])
def test_main_is_never_somebody_else_among_people_who_hide_each_other(seed: int) -> None:
    crowd = walkers(4, 4, 3.0, seed)
    one, all_ = (
        list(associate(crowd.batches(), MatchConfig(people=people, reidentify=True), crowd.rig))
        for people in ("main", "all")
    )
    assert everybody(one) == [0]
    np.testing.assert_array_equal(image(one, 0), image(all_, 0))
    nearest = []
    for b in one:
        points = triangulate(
            crowd.rig, b.xy_px[:, :, 0].double().numpy(), b.confidence[:, :, 0].numpy()
        ).points
        away = np.linalg.norm(crowd.world[b.start : b.start + len(points)] - points[:, None], axis=-1)
        nearest += np.nanmean(away[np.isfinite(points).any((1, 2))], 2).argmin(1).tolist()
    assert len(nearest) > 80
    assert len({*nearest}) == 1


def test_one_camera_follows_everybody_in_its_picture() -> None:
    rig = RIG.select(RIG.names[:1])
    people = np.stack(
        [
            seen(rig, walker(90, (0, -1.2), (0, -0.4))),
            seen(rig, walker(90, (0, 1.2), (0, 0.5), phase=1.0), seed=1),
        ],
        2,
    )
    batches = tracked(shuffled(people), rig=rig)
    assert everybody(batches) == [0, 1]
    assert sorted(matches(batches, people).values()) == [0, 1]


def test_one_camera_follows_people_who_pass_before_each_other() -> None:
    rig = RIG.select(RIG.names[:1])
    ways = ((-0.4, -0.5), (-0.4, 0.5)), ((0.5, 0.4), (0.5, -0.4))  # the one behind goes the other way
    people = np.stack([seen(rig, walker(90, *way), seed=n) for n, way in enumerate(ways)], 2)
    batches = tracked(shuffled(people), rig=rig)
    assert sorted(matches(batches, people).values()) == [0, 1]


def assert_same(a: KeypointBatch, b: KeypointBatch) -> None:
    assert a.start == b.start
    for name in ("ids", "time_s", "image_px", "xy_px", "confidence"):
        assert getattr(a, name).numpy().tobytes() == getattr(b, name).numpy().tobytes(), name
    assert a.state.keys() == b.state.keys()
    for name, x in a.state.items():
        assert x.numpy().tobytes() == b.state[name].numpy().tobytes(), name


def busy() -> np.ndarray:
    """People who come and go."""
    people = crossing(150)
    people[:, :40, 1] = np.nan, np.nan, 0
    people[:, 100:140, 0] = np.nan, np.nan, 0
    return shuffled(people)


@pytest.mark.parametrize("done", [1, 2, 3, 5])
def test_restarting_gives_the_same_bits(done: int) -> None:
    whole = tracked(busy())
    rest = [*detections(busy())][done:]
    again = list(associate(iter(rest), ALL, RIG, whole[done - 1].carried))
    assert len(again) == len(whole) - done
    for a, b in zip(again, whole[done:], strict=True):
        assert_same(a, b)


def test_batches_depend_on_the_next_second_alone() -> None:
    whole = tracked(busy())
    for count in range(3, 7):
        prefix = iter([*detections(busy())][:count])
        live = list(associate(prefix, ALL, RIG))
        assert len(live) == count
        sure = [b for b in live if (count * WINDOW - 1) / RATE - float(b.time_s[-1]) >= ALL.presence_s]
        assert len(sure) == count - 2
        for a, b in zip(sure, whole, strict=False):
            assert_same(a, b)


def test_nobody_is_a_batch_without_people() -> None:
    for count in (0, 1):
        nothing = np.zeros((4, 30, count, 25, 3))
        nothing[..., :2] = np.nan
        out = tracked(nothing)
        assert [b.xy_px.shape for b in out] == [(4, 24, 0, 25, 2), (4, 6, 0, 25, 2)]


def test_the_state_survives_as_a_table() -> None:
    people = crossing(60)
    people[:, 35:, 0] = np.nan, np.nan, 0
    xy = np.stack([RIG.undistort(v, people[v, ..., :2]) for v in range(4)])
    confidence, time = np.nan_to_num(people[..., 2]), np.arange(60) / RATE
    cfg = MatchConfig(people="all", presence_s=0.3, away_s=0.5)
    _, tracks = track_people(RIG, xy, confidence, time, Tracks.none(), cfg)
    assert tracks.confirmed.values()
    assert len(tracks.lost) == 1
    again = Tracks.of_table(tracks.table())
    for name, x in vars(tracks).items():
        np.testing.assert_array_equal(getattr(again, name), x, name)
    assert Tracks.of_table(Tracks.none().table()).table().tobytes() == Tracks.none().table().tobytes()
    with pytest.raises(InputError, match="another version"):
        Tracks.of_table(tracks.table()[:-1, 1:])
