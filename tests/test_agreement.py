"""Cameras that agree, and cameras that are exchanged."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import figure, ring, seen

from models.geometry.agreement import find_bodies, find_exchanged

TIME = np.arange(40) / 8


def test_exchanged_cameras_are_found_by_what_cameras_show_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, searches = ring(5), []
    right = seen(rig, figure(TIME, (0.8, -0.5)))[:, :, None].astype(np.float32)
    right[0] = 0  # a camera that shows nobody

    def counted(*args):
        searches.append(args)
        return find_bodies(*args)

    monkeypatch.setattr("models.geometry.agreement.find_bodies", counted)
    exchanged = right[[0, 2, 1, 3, 4]]
    for image in (right, exchanged):
        image[2:, 15:] = 0  # the second camera is alone most of the time
    assert find_exchanged(rig, exchanged) == (1, 2)
    assert len(searches) <= 1 + 6, "no pair with a camera that shows nobody"
    searches.clear()
    assert find_exchanged(rig, right) is None
    assert len(searches) == 1
