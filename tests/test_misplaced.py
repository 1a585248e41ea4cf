"""Cameras that stand or look elsewhere than their calibration says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from recordings import figure, ring, seen
from scipy.spatial.transform import Rotation

from models.geometry.misplaced import MIN_OFFSET_M, find_misplaced
from pipeline.cameras import Rig

TIME = np.arange(40) / 8


def filmed(rig: Rig, noise_px: float = 3, late: int = 0, path_m: float = 0) -> np.ndarray:
    """One person, who walks so far to all sides; camera 1 is late by so many frames of 20 a second."""

    def at(time_s: np.ndarray) -> dict[str, np.ndarray]:
        moved = path_m * np.sin(2 * np.pi * time_s[:, None] / [5, 3.1, np.inf])
        return {name: points + moved for name, points in figure(time_s).items()}

    people = seen(rig, at(TIME), noise_px=noise_px)
    if late:
        people[1] = seen(rig, at(TIME - late / 20), noise_px=noise_px)[1]
    return people[:, :, None].astype(np.float32)


def turned(rig: Rig, view: int, axis: str, degrees: float) -> Rig:
    by = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    r, t = rig.R.copy(), rig.t.copy()
    r[view], t[view] = by @ r[view], by @ t[view]
    return replace(rig, R=r, t=t)


@pytest.mark.parametrize("views", [2, 3, 4, 6])
@pytest.mark.parametrize("noise_px", [0.0, 3.0, 8.0])
def test_cameras_that_are_right_are_not_doubted(views: int, noise_px: float) -> None:
    rig = ring(views)
    assert find_misplaced(rig, filmed(rig, noise_px)) is None


@pytest.mark.parametrize(("late", "path_m"), [(2, 0), (-6, 0), (1, 0.8), (-2, 0.8)])
def test_a_late_camera_is_not_misplaced(late: int, path_m: float) -> None:
    rig = ring(4)
    assert find_misplaced(rig, filmed(rig, late=late, path_m=path_m)) is None


@pytest.mark.parametrize("views", [3, 4, 6])
@pytest.mark.parametrize("degrees", [1.0, 4.0, 15.0])
def test_a_tilted_camera_is_named_with_how_far_it_is_off(views: int, degrees: float) -> None:
    rig = ring(views)
    found = find_misplaced(turned(rig, 1, "x", degrees), filmed(rig))
    assert found is not None
    assert found.camera == 1
    # The person is 4 m away.
    assert found.offset_m[1] == pytest.approx(4 * np.tan(np.radians(degrees)), rel=0.25)
    assert found.offset_m[1] / found.offset_px[1] == pytest.approx(4 / rig.K[1, 0, 0], rel=0.1)
    assert found.remaining_m[1] < MIN_OFFSET_M


@pytest.mark.parametrize("views", [3, 5])
def test_the_calibration_of_another_rig_blames_no_camera(views: int) -> None:
    rig = ring(views)
    rng = np.random.default_rng(0)
    by = Rotation.from_rotvec(np.radians(rng.normal(0, 4, (views, 3)))).as_matrix()
    other = replace(rig, R=by @ rig.R, t=rig.t + rng.normal(0, 0.2, (views, 3)))
    found = find_misplaced(other, filmed(rig))
    assert found is not None
    assert found.camera is None


def test_nobody_and_too_few_frames_tell_nothing() -> None:
    rig = turned(ring(4), 1, "x", 4)
    people = filmed(ring(4))
    assert find_misplaced(rig, np.zeros_like(people)) is None
    assert find_misplaced(rig, people[:, :4]) is None
    assert find_misplaced(rig, people[:, :0]) is None
