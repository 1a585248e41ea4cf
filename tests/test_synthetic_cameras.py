"""Cameras that see everything."""

from __future__ import annotations

import numpy as np
import pytest

from models.synthetic.cameras import ring_rig
from pipeline.array_types import Array
from pipeline.cameras import Rig

SIZE = (640, 480)


def box(half: float = 0.9, height: float = 2.0) -> Array:
    """The corners of a box on the floor."""
    return np.array([[x, y, z] for x in (-half, half) for y in (-half, half) for z in (0.0, height)])


def rig(seed: int = 0, cameras: int = 4) -> Rig:
    return ring_rig(cameras, SIZE, box(), seed)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cameras", [1, 4, 9])
def test_every_camera_sees_the_whole_region_and_not_much_else(seed: int, cameras: int) -> None:
    r = rig(seed, cameras)
    inside = np.random.default_rng(0).uniform(-1, 1, (500, 3)) * [0.9, 0.9, 1.0] + [0, 0, 1.0]
    px = r.project(np.concatenate([box(), inside]), distorted=True)
    assert (px > 0).all()
    assert (px < np.array(SIZE) - 1).all()
    spread = px.max(1) - px.min(1)
    assert (spread / SIZE).max(1).min() > 0.85


def test_cameras_are_as_uneven_as_real_ones() -> None:
    r = rig()
    np.testing.assert_allclose(
        r.R @ np.swapaxes(r.R, 1, 2), np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(r.R), 1)
    assert (r.K[:, 0, 0] != r.K[:, 1, 1]).all()
    assert (np.abs(r.K[:, :2, 2] - (np.array(SIZE) - 1) / 2) > 0.1).any(1).all()
    assert (r.dist[:, 0] < -0.03).all()
    assert np.ptp(r.centres[:, 2]) > 0.1
    assert np.ptp(np.linalg.norm(r.centres[:, :2], axis=1)) > 0.1
    above = r.project(np.array([[0.0, 0, 0], [0, 0, 1.5]]))
    assert (above[:, 1, 1] < above[:, 0, 1] - 50).all(), "up in the world is up in the picture"


def test_a_seed_is_a_rig() -> None:
    np.testing.assert_array_equal(rig(3).K, rig(3).K)
    assert not np.allclose(rig(3).t, rig(4).t)
