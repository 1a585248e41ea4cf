"""One time line: recovers known offsets, rates and gaps, and agrees with a slow obvious twin."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.timeline import Timeline, common_timeline, spread


def test_equal_cameras_share_everything() -> None:
    line = common_timeline([np.arange(50) / 30] * 3, [Fraction(30)] * 3)
    assert line.rate == 30
    assert np.array_equal(line.frame_index, [np.arange(50)] * 3)
    assert np.allclose(line.time_s, np.arange(50) / 30)
    assert line.duration_s == 50 / 30


def test_offset_and_length() -> None:
    # The second camera started 5 frames later and ran on for longer.
    late = np.arange(60) / 30 + 5 / 30
    line = common_timeline([np.arange(50) / 30, late], [Fraction(30)] * 2)
    assert np.array_equal(line.frame_index, [np.arange(5, 50), np.arange(45)])
    assert line.time_s[0] == 0


def test_the_slowest_camera_gives_the_grid() -> None:
    rates = [Fraction(60), Fraction(30000, 1001), Fraction(60)]
    times = [np.arange(int(2 * r)) / float(r) for r in rates]
    line = common_timeline(times, rates)
    assert line.rate == Fraction(30000, 1001)
    assert np.allclose(line.time_s, times[1])
    assert np.array_equal(line.frame_index[0], np.rint(times[1] * 60))
    assert np.abs(times[2][line.frame_index[2]] - times[1]).max() <= 0.5 / 60 + 1e-9


def test_a_dropped_frame_is_missing_only_there() -> None:
    times = np.delete(np.arange(40) / 25, [10, 11])
    line = common_timeline([np.arange(40) / 25, times], [Fraction(25)] * 2)
    assert np.flatnonzero(line.frame_index[1] < 0).tolist() == [10, 11]
    assert line.frame_index[1, 12] == 10


def test_time_stamps_rounded_to_milliseconds() -> None:
    times = np.arange(600) / 59.94
    line = common_timeline([times, np.round(times + 0.5 / 59.94, 3)], [Fraction(5994, 100)] * 2)
    assert (line.frame_index >= 0).all()
    assert np.abs(np.diff(line.frame_index[1]) - 1).max() <= 1


def test_a_span_may_begin_later() -> None:
    line = common_timeline([np.arange(20) / 10, np.arange(20) / 10], [Fraction(10)] * 2, first=[0, 7])
    assert np.array_equal(line.frame_index, [np.arange(7, 20)] * 2)


def test_no_common_time_is_an_empty_line() -> None:
    line = common_timeline([np.arange(10) / 10, 5 + np.arange(10) / 10], [Fraction(10)] * 2)
    assert len(line) == 0
    assert line.frame_index.shape == (2, 0)


def test_one_frame() -> None:
    line = common_timeline([np.zeros(1), np.zeros(1)], [Fraction(30)] * 2)
    assert np.array_equal(line.frame_index, [[0], [0]])


def test_a_stretch_of_fewer_frames_is_missing_where_it_has_none() -> None:
    # 30 fps, and 10 fps for a second in the middle, as a telephone films in the dark.
    own = np.concatenate([np.arange(30), np.arange(30, 60, 3), np.arange(60, 90)]) / 30
    for times in ([own, np.arange(90) / 30], [np.arange(90) / 30, own], [own, own]):
        line = common_timeline(times, [Fraction(30)] * 2)
        assert np.allclose(line.time_s, np.arange(90) / 30)
        for v, stamps in enumerate(times):
            there = line.frame_index[v] >= 0
            assert np.array_equal(line.frame_index[v, there], np.arange(len(stamps)))
            assert np.allclose(line.time_s[there], stamps)


def test_instants_are_evenly_spaced_whatever_the_stamps() -> None:
    rng = np.random.default_rng(0)
    jittered = [np.arange(300) / 25 + rng.uniform(-0.008, 0.008, 300) for _ in range(3)]
    line = common_timeline(jittered, [Fraction(25)] * 3)
    assert np.allclose(np.diff(line.time_s), 1 / 25, rtol=1e-9)
    assert (line.frame_index >= 0).all()


def slowly(times: list[np.ndarray], rates: list[Fraction]) -> Timeline:
    half = [0.5 / float(r) + 1e-3 for r in rates]
    slowest = rates.index(min(rates))
    columns = []
    for k in range(1000):
        now = times[slowest][0] + k / float(rates[slowest])
        if all(t[0] - h <= now <= t[-1] + h for t, h in zip(times, half, strict=True)):
            column = []
            for t, h in zip(times, half, strict=True):
                k = min(range(len(t)), key=lambda k: (abs(t[k] - now), k))
                column.append(k if abs(t[k] - now) <= h else -1)
            columns.append(column)
    index = np.array(columns, dtype=np.int64).reshape(-1, len(times)).T
    return Timeline(rates[slowest], np.arange(len(columns)) / float(rates[slowest]), index, tuple(rates))


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_the_slow_obvious_twin_agrees(data: st.DataObject) -> None:
    rates, times = [], []
    for _ in range(data.draw(st.integers(2, 4))):
        rate = data.draw(st.sampled_from([Fraction(10), Fraction(12), Fraction(24000, 1001), Fraction(25)]))
        gaps = data.draw(st.lists(st.sampled_from([0.6, 1.0, 1.0, 1.0, 1.7, 3.0]), max_size=20))
        start = data.draw(st.floats(-0.3, 0.3))
        rates.append(rate)
        times.append(start + np.cumsum([0.0, *gaps]) / float(rate))
    fast, slow = common_timeline(times, rates), slowly(times, rates)
    assert np.array_equal(fast.frame_index, slow.frame_index)
    assert np.allclose(fast.time_s, slow.time_s)


def test_spread_keeps_both_ends() -> None:
    frames = np.arange(100, 1100)
    assert spread(frames, 40)[[0, -1]].tolist() == [100, 1099]
    assert len(spread(frames, 40)) == 40
    assert np.array_equal(spread(frames[:7], 40), frames[:7])
    assert len(spread(frames[:0], 40)) == 0


def test_instants_between_frames_say_where() -> None:
    """30 and 25 frames a second, the second camera 10 ms late."""
    times = [np.arange(90) / 30, np.arange(75) / 25 + 0.01]
    line = common_timeline(times, [Fraction(30), Fraction(25)])
    assert line.later is not None
    grid = times[1][line.frame_index[1]]
    frame, later = line.frame_index[0], line.later[0]
    assert np.abs(later).max() <= 0.5 + 1e-9
    assert np.allclose((frame + later)[:-1] / 30, grid[:-1], atol=1e-9)
    assert (frame[-1], later[-1]) == (89, 0), "there is no frame after it"
    assert (line.later[1] == 0).all()


@pytest.mark.parametrize(("missing", "said"), [(1, True), (2, False)])
def test_nothing_is_interpolated_across_a_gap_of_more_than_two_frames(missing: int, said: bool) -> None:
    own = np.delete(np.arange(60) / 30, np.arange(20, 20 + missing))
    line = common_timeline([own, np.arange(60) / 29.9 + 0.012], [Fraction(30), Fraction(299, 10)])
    assert line.later is not None
    before = np.flatnonzero(line.frame_index[0] == 19)[0]
    assert bool(line.later[0, before] != 0) == said
    assert line.later[0, before - 1] != 0


def test_cameras_in_step_have_no_instants_between_frames() -> None:
    times = [np.arange(50) / 25, np.arange(100) / 50 + 4e-4]
    assert common_timeline(times, [Fraction(25), Fraction(50)]).later is None
