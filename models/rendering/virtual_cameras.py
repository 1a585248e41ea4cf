"""Virtual cameras that see a box of the world whole: from the side, from above, on a turntable."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Rig

TURN_S: Final = 8.0
"""Duration of a turn of the turntable, seconds."""


def side_and_top(rig: Rig, box: NDArray[np.float64], size: tuple[int, int]) -> Rig:
    """Two cameras that see a box (2, 3), each in half a picture: across the first camera, and from above."""
    up, ahead = rig.up, _level_direction(rig)
    right = np.cross(ahead, up)
    half = (size[0] // 4 * 2, size[1])
    return Rig.joined([_camera("side", -right, up, box, half), _camera("top", -up, ahead, box, half)])


def turntable(
    rig: Rig, box: NDArray[np.float64], size: tuple[int, int], rate: Fraction
) -> Callable[[int], Rig]:
    """Camera at an index of the time line that circles a box (2, 3) once in ``TURN_S``, from 15° above."""
    up, ahead = rig.up, _level_direction(rig)
    right = np.cross(ahead, up)

    def at(index: int) -> Rig:
        angle = 2 * np.pi * index / float(rate) / TURN_S
        level = np.cos(angle) * ahead + np.sin(angle) * right
        return _camera("turntable", level * np.cos(np.pi / 12) - up * np.sin(np.pi / 12), up, box, size)

    return at


def floor_grid(rig: Rig, box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lines (N, 2, 3) every half metre on the floor of a box (2, 3) and half a metre around it."""
    up, ahead = rig.up, _level_direction(rig)
    axes = np.stack([ahead, np.cross(ahead, up), up])
    corners = np.stack(np.meshgrid(*box.T, indexing="ij"), -1).reshape(-1, 3) @ axes.T
    low, high = np.floor(corners.min(0) * 2) / 2 - 0.5, np.ceil(corners.max(0) * 2) / 2 + 0.5
    floor = corners.min(0)[2]
    lines = []
    for a, b in ((0, 1), (1, 0)):
        for at in np.arange(low[a], high[a] + 0.25, 0.5):
            ends = np.zeros((2, 3))
            ends[:, a], ends[:, b], ends[:, 2] = at, (low[b], high[b]), floor
            lines.append(ends @ axes)
    return np.stack(lines)


def _level_direction(rig: Rig) -> NDArray[np.float64]:
    """The first camera's viewing direction, levelled, a unit vector."""
    up = rig.up
    for direction in (rig.R[0, 2], -rig.R[0, 1], np.roll(up, 1)):
        level = np.asarray(direction - up * (up @ direction), np.float64)
        if np.linalg.norm(level) > 0.1:
            break
    return np.asarray(level / np.linalg.norm(level), np.float64)


def _camera(
    name: str,
    direction: NDArray[np.float64],
    up: NDArray[np.float64],
    box: NDArray[np.float64],
    size: tuple[int, int],
) -> Rig:
    """Camera that looks along ``direction`` at the middle of a box and sees the whole sphere around it."""
    z = direction / np.linalg.norm(direction)
    x = np.cross(z, up)
    x /= np.linalg.norm(x)
    rotation = np.stack([x, np.cross(z, x), z])
    radius = float(np.linalg.norm(box[1] - box[0]) / 2)
    distance = 4 * radius  # little perspective
    eye = box.mean(0) - distance * z
    focal = min(size) / 2 * np.sqrt(distance**2 - radius**2) / radius
    k = np.array([[focal, 0, (size[0] - 1) / 2], [0, focal, (size[1] - 1) / 2], [0, 0, 1]])
    return Rig((name,), k[None], np.zeros((1, 8)), rotation[None], (-rotation @ eye)[None], np.array([size]))
