"""Clocks of cameras: recovered from people who move, refused where the movement does not tell."""

from __future__ import annotations

import numpy as np
import pytest
from clocks import RATES, REACH_S, film, people_at, swaying, treadmill

from models.geometry.synchronisation import NO_VIEW, PERIODIC, STILL, find_clocks
from models.geometry.unsynchronised import OwnDetections, find_trajectories, meeting_offsets
from models.synthetic.detections import Faults

FRAME_S = 1 / 30


@pytest.mark.parametrize("seed", [3, 4])
def test_offsets_of_cameras_of_different_rates(seed: int) -> None:
    drift = np.array([0, 1e-3, -1e-3, 5e-4])
    filmed = film(people_at(1, 20, seed), 20, seed, drift=drift)
    found = filmed.clocks()
    assert found.refused == (None,) * 4
    assert np.abs(filmed.errors_s(found)).max() < 0.2 * FRAME_S
    # Twenty seconds do not show a drift, as the calibration is not quite right.
    told = found.drift != 0
    assert (np.abs(found.drift - drift)[told] < 0.1 * np.abs(drift)[told]).all()


def test_drift_of_a_minute() -> None:
    drift = np.array([0, 1e-3, -1e-3])
    filmed = film(people_at(1, 60, 5), 60, 5, RATES[:3], drift=drift)
    found = filmed.clocks()
    assert np.abs(filmed.errors_s(found)).max() < 0.1 * FRAME_S
    assert np.abs(found.drift[1:] / drift[1:] - 1).max() < 0.1
    for end in (0.0, 60.0):
        assert np.abs(filmed.errors_s(found, end)).max() < 0.25 * FRAME_S


def test_cameras_in_step_are_told_so() -> None:
    filmed = film(people_at(1, 8, 6), 8, 6, (30, 30, 30), offset_s=np.zeros(3))
    found = filmed.clocks()
    assert found.refused == (None,) * 3
    assert (np.abs(found.offset_s) < 3 * found.sigma_s + 1e-12).all()
    assert (found.drift == 0).all()


@pytest.mark.parametrize("seed", [7, 8])
def test_two_cameras_without_a_calibration(seed: int) -> None:
    filmed = film(people_at(1, 20, seed), 20, seed, (30, 60))
    found = filmed.clocks(calibrated=False)
    assert found.unit == "px"
    assert np.abs(filmed.errors_s(found)).max() < 0.25 * FRAME_S


def test_people_who_cross_before_anybody_is_associated() -> None:
    faults = Faults(exchanged=0.02, split=0.03, phantoms=0.1, static_phantoms=1)
    filmed = film(people_at(3, 12, 9), 12, 9, (30, 25, 60), faults=faults)
    coarse = meeting_offsets(filmed.rig, filmed.seen, REACH_S)
    assert np.abs(coarse - filmed.offset_s).max() < 1.5 * FRAME_S
    found = filmed.clocks()
    assert found.refused == (None,) * 3
    assert np.abs(filmed.errors_s(found)).max() < 0.2 * FRAME_S


@pytest.mark.parametrize("amplitude_m", [0.0, 0.005])
@pytest.mark.parametrize("calibrated", [True, False])
def test_nobody_who_stands_still_sets_a_clock(amplitude_m: float, calibrated: bool) -> None:
    found = film(swaying(amplitude_m, 11), 12, 11, (25, 30, 60)).clocks(calibrated=calibrated)
    assert set(found.refused) == {STILL}
    assert (found.offset_s == 0).all()


def test_a_walk_of_one_period_has_two_answers() -> None:
    period = 1.12
    filmed = film(treadmill(12), 20, 12, (30, 30, 30), offset_s=np.array([0, 0.4, -0.3]))
    found = filmed.clocks()
    assert set(found.refused) == {PERIODIC}
    for answers, true in zip(found.answers_s[1:], filmed.offset_s[1:], strict=True):
        one, two = answers
        assert (two - one) % (2 * period) == pytest.approx(0, abs=0.1)
        assert (one - true + period) % (2 * period) - period == pytest.approx(0, abs=0.1)


def test_a_camera_that_never_shows_whom_the_others_show_is_refused() -> None:
    filmed = film(people_at(1, 16, 13), 16, 13, (30, 30, 30))
    seen = []
    for v, c in enumerate(filmed.seen):
        there = c.time_s < 5 if v < 2 else c.time_s > 12
        seen.append(OwnDetections(c.time_s, c.xy_px, np.where(there[:, None, None], c.confidence, 0)))
    cameras = find_trajectories(filmed.rig, seen, REACH_S)
    found = find_clocks(cameras, filmed.rig.centres, REACH_S)
    assert found.refused == (None, None, NO_VIEW)
    assert np.abs(filmed.errors_s(found)[:2]).max() < 0.2 * FRAME_S
