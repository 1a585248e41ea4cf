"""A room on the calibration, and clutter as strong as asked."""

from __future__ import annotations

import cv2
import numpy as np
from test_synthetic_cameras import SIZE, rig

from models.synthetic.pictures import backdrop, clutter_picture


def test_less_clutter_is_less_in_the_background() -> None:
    def roughness(clutter: float) -> float:
        rng = np.random.default_rng(0)
        made = [clutter_picture(96, clutter, rng).astype(float) for _ in range(20)]
        return float(np.mean([np.abs(np.diff(p, axis=1)).mean() for p in made]))

    assert 8 * roughness(0) < roughness(1)
    assert roughness(0) < roughness(0.5) < roughness(1)


def test_the_floor_lies_where_the_calibration_says() -> None:
    r = rig(2)
    for view in range(4):
        room = backdrop(r, view)
        assert room.shape == (SIZE[1], SIZE[0], 3)
        assert room.dtype == np.uint8
        for axis, strongest in ((0, 0), (1, 1)):  # x is red, y is green
            points = np.zeros((41, 3))
            points[:, axis] = np.concatenate([np.linspace(-0.9, -0.1, 20), [0.13], np.linspace(0.1, 0.9, 20)])
            px = r.project(points, distorted=True)[view]
            there = cv2.remap(room, px[:, None].astype(np.float32), None, cv2.INTER_LINEAR)[:, 0].astype(int)
            others = np.delete(there, strongest, 1).max(1)
            assert np.median(there[:, strongest] - others) > 30
            aside = points.copy()
            aside[:, 1 - axis] += 0.1
            px = r.project(aside, distorted=True)[view]
            off = cv2.remap(room, px[:, None].astype(np.float32), None, cv2.INTER_LINEAR)[:, 0].astype(int)
            assert np.median(off[:, strongest] - np.delete(off, strongest, 1).max(1)) < 15
