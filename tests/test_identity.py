"""Who is who against a truth whose exchanges, gaps and ghosts are known."""

from __future__ import annotations

import numpy as np
import pytest

from models.evaluation.identity import score_identities

FRAMES = 100


def compared(found: np.ndarray, true: np.ndarray | None = None):
    """Figures of ids at places (T, N) on a line, people of the truth at 0 m and 1 m; NaN where not there."""
    truth = np.tile([0.0, 1.0], (FRAMES, 1)) if true is None else true
    apart = np.abs(truth[:, :, None] - found[:, None])
    return score_identities(apart, np.isfinite(truth), np.isfinite(found))


def right() -> np.ndarray:
    return np.tile([1.1, 0.1], (FRAMES, 1))


def test_ids_may_be_any() -> None:
    of = compared(right())
    assert (of.idf1, of.mota, of.switches, of.longest, of.missed, of.false) == (1, 1, 0, 0, 0, 0)
    assert of.mpjpe_mm == pytest.approx(100)


def test_exchanged_ids_are_two_switches_and_wrong_from_then_on() -> None:
    found = right()
    found[70:] = found[70:, ::-1]
    of = compared(found)
    assert (of.switches, of.longest, of.missed, of.false) == (2, 30, 0, 0)
    assert of.idf1 == pytest.approx(0.7)
    assert of.mota == pytest.approx(1 - 2 / 200)


def test_missed_and_false_people_are_counted_by_those_of_the_truth() -> None:
    found = np.concatenate([right(), np.full((FRAMES, 1), 5.0)], 1)
    found[:20, 0] = np.nan
    found[:60, 2] = np.nan
    of = compared(found)
    assert (of.switches, of.missed, of.false) == (0, 0.1, 0.2)
    assert of.mota == pytest.approx(0.7)
    assert of.idf1 == pytest.approx(2 * 180 / (200 + 220))
    nobody = compared(np.full((FRAMES, 1), np.nan))
    assert (nobody.idf1, nobody.mota, nobody.missed) == (0, 0, 1)
    assert np.isnan(nobody.mpjpe_mm)


def test_somebody_back_under_a_new_id_is_a_switch() -> None:
    found = np.concatenate([right(), right()[:, :1]], 1)
    found[40:60, 0], found[60:, 0], found[:60, 2] = np.nan, np.nan, np.nan
    of = compared(found)
    assert (of.switches, of.longest, of.missed) == (1, 40, 0.1)
    assert of.idf1 == pytest.approx(2 * 140 / (200 + 180))


def test_who_is_not_there_is_not_missed() -> None:
    truth = np.tile([0.0, 1.0], (FRAMES, 1))
    truth[50:, 1] = np.nan
    found = right()
    found[50:, 0] = np.nan
    assert compared(found, truth).mota == 1


def test_two_near_misses_do_not_take_the_place_of_a_match() -> None:
    """Crosswise they are 0.35 m away each, straight 0.05 and 0.75 m, which is more in sum."""
    of = compared(np.tile([0.05, -0.35], (FRAMES, 1)), np.tile([0.0, 0.4], (FRAMES, 1)))
    assert (of.missed, of.false, of.mota) == (0.5, 0.5, 0)
    assert of.mpjpe_mm == pytest.approx(50)
