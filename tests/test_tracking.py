"""Following people in one camera's picture."""

from __future__ import annotations

import numpy as np
import pytest

from models.geometry.tracking import EXTENT_M, distances, figures, track_figures

RNG = np.random.default_rng(0)
SHAPE = RNG.normal(0, 1, (25, 2)) * [30, 90]
TIME = np.arange(40) / 20


def pictures(paths: list[np.ndarray], sizes: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """People of these sizes along paths (T, 2), NaN where they are not: xy (T, P, 25, 2), confidence, in an
    order that changes from frame to frame."""
    rng = np.random.default_rng(seed)
    frames, count = len(paths[0]), len(paths)
    xy = np.full((frames, count, 25, 2), np.nan)
    who = np.zeros((frames, count), dtype=int)
    for t in range(frames):
        who[t] = rng.permutation(count)
        for at, p in enumerate(who[t]):
            xy[t, at] = paths[p][t] + sizes[p] * (SHAPE + rng.normal(0, 1, (25, 2)))
    return xy, np.where(np.isfinite(xy).all(-1), 0.8, 0.0)


def line(start: tuple[float, float], end: tuple[float, float], frames: int = len(TIME)) -> np.ndarray:
    return np.linspace(start, end, frames)


def test_a_figure_is_a_place_a_size_and_a_weight() -> None:
    xy, confidence = pictures([line((100, 200), (100, 200)), line((600, 200), (600, 200))], [1, 2])
    shown = figures(xy, confidence, 5)
    near = np.abs(shown.centre[..., 0] - 100) < 100
    assert near.sum(1).tolist() == [1] * len(TIME)
    assert np.median(shown.size[~near]) == pytest.approx(2 * np.median(shown.size[near]), rel=0.1)
    assert shown.weight == pytest.approx(0.8 * 25 * shown.size)


def test_a_figure_of_few_points_is_nobody() -> None:
    xy, confidence = pictures([line((100, 200), (100, 200))], [1])
    confidence[3, 0, 4:] = 0
    confidence[5] = 0
    xy[7] = 100.0  # all on a spot
    shown = figures(xy, confidence, 5)
    assert np.flatnonzero(shown.weight[:, 0] == 0).tolist() == [3, 5, 7]
    assert np.isnan(shown.centre[[3, 7]]).all()
    assert np.isnan(shown.size[[3, 7]]).all()
    assert figures(xy[:, :0], confidence[:, :0], 5).weight.shape == (len(TIME), 0)


def test_distance_is_in_metres_of_a_grown_person() -> None:
    here, there = np.array([100.0, 100.0]), np.array([100.0, 150.0])
    size = np.array(50.0)
    assert distances(here, size, there, size) == pytest.approx(EXTENT_M)
    assert distances(here, size, here, 2 * size) == np.inf
    assert distances(np.full(2, np.nan), size, here, size) == np.inf


def test_people_who_pass_each_other_keep_their_tracks() -> None:
    paths = [line((100, 300), (900, 300)), line((900, 340), (100, 340))]
    xy, confidence = pictures(paths, [1.0, 1.9])
    shown = figures(xy, confidence, 5)
    found = track_figures(shown, TIME, 0.5, 3.0)
    assert len(found) == 2
    larger, smaller = (shown.size[np.arange(len(TIME)), k] for k in found)
    assert larger.min() > 1.3 * smaller.max()  # the one of whom there is more to see comes first


def test_a_gap_is_bridged_and_a_long_one_ends_a_track() -> None:
    path = line((400, 300), (420, 300))
    short, long = path.copy(), path.copy()
    short[10:15], long[10:25] = np.nan, np.nan
    for way, count in ((short, 1), (long, 2)):
        shown = figures(*pictures([way], [1.0]), 5)
        found = track_figures(shown, TIME, 0.5, 3.0)
        assert len(found) == count
        assert sum((k >= 0).sum() for k in found) == np.isfinite(way).all(1).sum()


@pytest.mark.parametrize(("jump_m", "count"), [(0.2, 1), (0.3, 2)])
def test_a_jump_of_more_than_half_the_reach_ends_a_track(jump_m: float, count: int) -> None:
    path = line((400, 300), (400, 300))
    size = float(np.median(np.linalg.norm(SHAPE - np.median(SHAPE, 0), axis=-1)))
    path[20:, 0] += jump_m / EXTENT_M * size
    xy, confidence = pictures([path], [1.0])
    assert len(track_figures(figures(xy, confidence, 5), TIME, 0.5, 0.0)) == count


def test_a_track_has_one_figure_a_frame_and_light_tracks_can_be_left_out() -> None:
    beside = np.full((len(TIME), 2), np.nan)
    beside[10:13] = 320, 300
    seen = figures(*pictures([line((300, 300), (300, 300)), beside], [1.0, 1.0]), 5)
    frames = [(track >= 0).sum() for track in track_figures(seen, TIME, 0.5, 3.0)]
    assert frames == [len(TIME), 3]
    assert len(track_figures(seen, TIME, 0.5, 3.0, min_weight_ratio=0.5)) == 1


def test_nobody_gives_no_track() -> None:
    xy, confidence = pictures([np.full((len(TIME), 2), np.nan)], [1.0])
    assert track_figures(figures(xy, confidence, 5), TIME, 0.5, 3.0) == []
