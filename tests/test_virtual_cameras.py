"""Cameras that were never there see the whole box they are placed for, from where they say."""

from fractions import Fraction

import numpy as np
import pytest
from recordings import ring

from models.rendering.virtual_cameras import TURN_S, floor_grid, side_and_top, turntable

BOX = np.array([[-1.0, -0.5, 0], [1.0, 0.5, 1.8]])
CORNERS = np.stack(np.meshgrid(*BOX.T), -1).reshape(-1, 3)


@pytest.fixture
def rig():
    """Cameras around the origin; z is up."""
    return ring(3, size=(320, 180))


def test_side_and_top_see_at_right_angles(rig):
    both = side_and_top(rig, BOX, (640, 360))
    inside = both.project(CORNERS)
    assert (inside >= 0).all()
    assert (inside < both.size[:, None]).all()
    side, top = both.R[:, 2]
    assert abs(side @ rig.R[0, 2]) < 1e-9
    np.testing.assert_allclose(top, [0, 0, -1], atol=1e-9)
    np.testing.assert_allclose(side[2], 0, atol=1e-9)
    foot, head = both.project(np.array([[0, 0, 0], [0, 0, 1.8]]))[0]
    assert head[1] < foot[1]


def test_the_turntable_goes_round_once_and_sees_the_box_throughout(rig):
    at = turntable(rig, BOX, (640, 360), Fraction(30))
    turn = round(30 * TURN_S)
    centres = np.array([at(k).centres[0] for k in range(0, turn, turn // 8)])
    for k in range(0, turn, turn // 8):
        seen = at(k).project(CORNERS)[0]
        assert (seen >= 0).all()
        assert (seen < [640, 360]).all()
    away = centres - BOX.mean(0)
    np.testing.assert_allclose(away.mean(0)[:2], 0, atol=1e-9)
    np.testing.assert_allclose(np.degrees(np.arcsin(away[:, 2] / np.linalg.norm(away, axis=1))), 15)
    np.testing.assert_allclose(at(turn).R, at(0).R, atol=1e-9)


def test_the_floor_is_below_the_box_and_around_it(rig):
    grid = floor_grid(rig, BOX)
    np.testing.assert_allclose(grid[..., 2], 0, atol=1e-9)
    low, high = grid.reshape(-1, 3).min(0), grid.reshape(-1, 3).max(0)
    assert (low[:2] <= BOX[0, :2] - 0.5 + 1e-9).all()
    assert (high[:2] >= BOX[1, :2] + 0.5 - 1e-9).all()
