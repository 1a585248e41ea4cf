"""Traits of an export format, and the worlds that formats are written in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.array_types import Array


def y_up(up: Array) -> Array:
    """Rotation (3, 3) that takes the world's ``up`` (3,), a unit vector, to +y.

    An axis of the world goes there by quarter turns about one axis, x where that will do. So z up goes to y
    up as (x, y, z) → (x, z, −y), which Blender undoes when it imports: its coordinates are those of the z-up
    world.
    """
    x, y, z = np.eye(3)
    kept = z if abs(up[0]) > 0.9 else x
    across = kept - up * (up @ kept)
    across /= np.linalg.norm(across)
    turn = np.outer(kept, across) + np.outer(y, up) + np.outer(np.cross(kept, y), np.cross(across, up))
    return np.asarray(turn + 0.0)  # no −0


def z_up(up: Array) -> Array:
    """Rotation (3, 3) that takes the world's ``up`` (3,), a unit vector, to +z."""
    x, y, z = np.eye(3)
    return np.asarray(np.stack([x, -z, y]) @ y_up(up) + 0.0)  # no −0


def y_up_as_pose2sim(up: Array) -> Array:
    """Rotation (3, 3) to +y that takes z up to y up as (x, y, z) → (y, z, x), as Pose2Sim turns its files."""
    return np.roll(np.eye(3), 1, axis=1) @ z_up(up) if up[2] > 0.7 else y_up(up)


def axes_of(turn: Array) -> str:
    """Rotation in words: ``x, z, -y`` for (x, y, z) → (x, z, −y), with the shares of each where axes mix."""
    if np.abs(turn).max(1).min() < 0.999:
        return ", ".join(
            "".join(f"{n:+.2f}{axis}" for n, axis in zip(row, "xyz", strict=True)) for row in turn
        )
    return ", ".join(f"{'-' if row.sum() < 0 else ''}{'xyz'[int(np.abs(row).argmax())]}" for row in turn)


def as_it_is(up: Array) -> Array:
    """The identity (3, 3): the world of the calibration."""
    return np.eye(3)


@dataclass(frozen=True)
class Traits:
    """Properties of an export format that the user is told of, and that decide on what it is given."""

    suffix: str
    """Suffix of the file's name, lower case; it chooses the format."""
    description: str
    unit: str = "metres"
    turn: Callable[[Array], Array] = y_up
    """``up`` (3,) → rotation (3, 3) of the calibration's world to that of the file."""
    gaps: Literal["bridged", "nan", "empty", "left out"] = "bridged"
    """Frames without a pose. ``empty``: neither is there anything where a pose is not valid."""
    single_frame: bool = False
    blend_shapes: bool = True
    """False: the mesh moves by skinning alone."""
    views: bool = False
    """The file shows the cameras' pictures of the person."""
    betas: bool = False
    """The file gives the betas, which mean nothing to another body."""
