"""Arrays of ``results.zarr``: axes, units, types and missing values, as each array's metadata states them.

``RECORDING`` has the arrays of the recording, ``PERSON``, ``BETAS`` and ``REGRESSION`` those in
``people/<id>/``; docs/results.md says what each holds. Besides::

    /                     attributes: format, version, software, config, body, fps [num, den], cameras,
                          window, betas, regression, angles, up (unit vector of the world), skeletons of
                          the joints and the keypoints: names, bones (parent, child), flips (mirror images)
    people/<id>/events/   left_foot_strike (E,)  left_foot_off (E,) seconds, and of the right foot: gait
                          events, written when the run is complete
    state/<stage>/        restart state after each window, (windows, ...); of a person in state/<stage>/<id>/

A person's group is created at the person's first window; windows without the person are not written and read
as missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from pipeline.batches import Status
from pipeline.cameras import MAX_CAMERAS

DIMENSIONS: Final = MappingProxyType(
    {
        "T": "time", "V": "camera", "J": "joint", "L": "joint_after_root", "K": "keypoint", "B": "beta",
        "A": "angle", "E": "event", "W": "window", "xyz": "xyz",
        "xyzc": "xyz_confidence", "xyc": "xy_confidence", "wh": "width_height", "row": "row",
        "column": "column", "coefficient": "coefficient",
    }
)  # fmt: skip
"""Name of each axis in the files."""
MAX_FRAMES: Final = 50_000_000
"""Ten days at 60 frames a second."""
FIXED: Final = MappingProxyType({"xyz": 3, "xyzc": 4, "xyc": 3})
"""Lengths of the axes that are the same in every store."""
STATE_UNITS: Final = "internal"
"""Units of restart state, which only its stage reads."""


@dataclass(frozen=True)
class ArrayKind:
    """Definition of an array of the store."""

    axes: str
    """Keys of ``DIMENSIONS``."""
    units: str
    """As UCUM spells them: m, s, rad, deg; px for pixels; 1 for none."""
    dtype: str = "float32"
    missing: Any = np.nan
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def time_axis(self) -> int:
        return self.axes.split().index("T")

    def metadata(self) -> dict[str, Any]:
        """Axis names and attributes, as arguments of ``create_array``."""
        return {
            "dimension_names": [DIMENSIONS[axis] for axis in self.axes.split()],
            "attributes": {"units": self.units, **self.attributes},
        }


PERSON: Final = MappingProxyType(
    {
        "global_orient": ArrayKind("T xyz", "rad"),
        "body_pose": ArrayKind("T L xyz", "rad"),
        "transl": ArrayKind("T xyz", "m"),
        "joints": ArrayKind("T J xyz", "m"),
        "keypoints_3d": ArrayKind("T K xyzc", "m, confidence 1"),
        "reprojection_px": ArrayKind("T V", "px"),
        "valid": ArrayKind("T", "1", "bool", False),
        "status": ArrayKind(
            "T", "1", "uint8", int(Status.NOT_SEEN), {"codes": {s.name.lower(): int(s) for s in Status}}
        ),
        "keypoints_2d": ArrayKind("V T K xyc", "px, confidence 1"),
    }
)
"""Arrays of a person that are written window by window; axes as in ``pipeline/batches.py``."""
REGRESSION: Final = MappingProxyType(
    {
        "regression/global_orient": ArrayKind("T xyz", "rad"),
        "regression/body_pose": ArrayKind("T L xyz", "rad"),
        "regression/betas": ArrayKind("T B", "1"),
        "regression/transl": ArrayKind("T xyz", "m"),
        "regression/pose_sigma": ArrayKind("T L", "rad"),
    }
)
"""Arrays of a person's regression, written window by window."""
BETAS: Final = ArrayKind("B", "1")
EVENT: Final = ArrayKind("E", "s", "float64")
RECORDING: Final = MappingProxyType(
    {
        "time_s": ArrayKind("T", "s", "float64"),
        "done": ArrayKind("W", "1", "bool", False),  # everything of the window is written
        "files": ArrayKind("W", "1", "int32", 0),  # of the window, of people and state
        "cameras/K": ArrayKind("V row column", "px"),
        "cameras/dist": ArrayKind("V coefficient", "1"),
        "cameras/R": ArrayKind("V row column", "1"),
        "cameras/t": ArrayKind("V xyz", "m"),
        "cameras/size": ArrayKind("V wh", "px"),
        "cameras/frame_index": ArrayKind("V T", "1"),  # number of the video's frame, −1 for none
    }
)
"""Arrays of the recording."""


def angle_kind(definitions: Mapping[str, str]) -> ArrayKind:
    """Definition of the array of joint angles, with each angle's name and definition as attributes."""
    attributes = {"names": [*definitions], "definitions": [*definitions.values()]}
    return ArrayKind("T A", "deg", attributes=attributes)


def check_shapes(shape_of: Callable[[str], tuple[int, ...]], views: int, window: int) -> None:
    """Raise ``ValueError`` where the stated shapes of ``RECORDING`` disagree or are impossible.

    Before they are read: zarr would fill arrays of any size where files are missing.
    """
    frames = shape_of("time_s")[0]
    if not (0 < frames <= MAX_FRAMES and 0 < window <= MAX_FRAMES and views <= MAX_CAMERAS):
        raise ValueError(f"{views} cameras, {frames} frames in windows of {window}")
    sizes = {"V": views, "T": frames, "W": -(-frames // window)}
    for name, kind in RECORDING.items():
        for axis, length in zip(kind.axes.split(), shape_of(name), strict=True):
            if length != sizes.get(axis, length) or length > MAX_FRAMES:
                raise ValueError(f"{name} has shape {shape_of(name)}, expected {kind.axes} of {sizes}")
