"""Stationary clutter: what stands still and is nobody's for half a second, until it moves or is somebody."""

from __future__ import annotations

import numpy as np

from models.geometry.clutter import MAX_GAP_S, STATIONARY_S, clutter_holder, match_clutter, update_clutter
from models.geometry.matching import FrameDetections
from models.geometry.tracks import Tracks

RATE = 30
BODY_PX = np.random.default_rng(0).uniform(0, 300, (25, 2))


def detected(*xy_px: np.ndarray) -> FrameDetections:
    """Detections of one view."""
    size = len(xy_px)
    view, ray = np.zeros(size, np.int64), np.zeros((size, 25, 3))
    confidence = np.ones((size, 25))
    return FrameDetections(view, np.arange(size), np.stack(xy_px), confidence, ray, np.zeros((size, 3)))


def holders(frames: list[FrameDetections], serial: int = -1) -> list[list[float]]:
    """Holders of the detections frame by frame; all detections are of track ``serial``."""
    clutter, out = Tracks.none().clutter, []
    for t, detections in enumerate(frames):
        row = match_clutter(clutter, detections)
        out.append(clutter_holder(clutter, row).tolist())
        clutter = update_clutter(clutter, row, detections, np.full(len(row), serial), t / RATE)
    return out


def test_who_stands_still_for_half_a_second_is_clutter_and_who_moves_is_not() -> None:
    rng = np.random.default_rng(1)
    frames = [
        detected(BODY_PX + rng.normal(0, 1, (25, 2)), BODY_PX + np.array([800 + 5 * t, 0])) for t in range(60)
    ]
    still, moving = np.array(holders(frames)).T
    first = round(STATIONARY_S * RATE) + 1
    assert np.isnan(still[:first]).all()
    assert (still[first:] == -1).all()
    assert np.isnan(moving).all()


def test_what_is_somebodys_does_not_become_clutter() -> None:
    assert np.isnan(holders([detected(BODY_PX)] * 60, serial=3)).all()


def test_clutter_that_a_track_was_born_of_is_that_tracks() -> None:
    clutter, detections = Tracks.none().clutter, detected(BODY_PX)
    for t in range(40):
        row = match_clutter(clutter, detections)
        serial = np.array([7 if t == 30 else -1])
        assert clutter_holder(clutter, row).tolist() == [7.0] or t <= 30
        clutter = update_clutter(clutter, row, detections, serial, t / RATE)


def test_clutter_is_forgotten_after_a_second_without_it() -> None:
    clutter, detections = Tracks.none().clutter, detected(BODY_PX)
    for t in range(30):
        clutter = update_clutter(
            clutter, match_clutter(clutter, detections), detections, np.array([-1]), t / RATE
        )
    away = detected(BODY_PX + 1000)
    for later_s, count in ((MAX_GAP_S[1] - 0.1, 2), (MAX_GAP_S[1] + 0.1, 1)):
        row = match_clutter(clutter, away)
        assert len(update_clutter(clutter, row, away, np.array([-1]), 29 / RATE + later_s)) == count
