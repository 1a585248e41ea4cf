"""``recording.yaml``: settings that a user states about a recording, and their validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final
from unicodedata import normalize

from pydantic import Field, field_validator

from pipeline.calibrations.checks import UNITS
from pipeline.clocks import Clock
from pipeline.config import Config, load
from pipeline.errors import InputError
from pipeline.skeleton import find_order

SETTINGS: Final = "recording.yaml"

AXES: Final = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}
"""Unit vectors of the world by name."""


def _by_name(value: Any) -> Any:
    """Table by camera, with names that YAML reads as numbers, such as 1, as text."""
    return {normalize("NFC", str(k)): v for k, v in value.items()} if isinstance(value, dict) else value


class StatedKeypoints(Config):
    """The ``keypoints`` of recording.yaml."""

    format: str | None = None
    """A name in ``skeleton.POINT_ORDERS``, as BODY_25 or body_25."""
    path: str | None = None
    """Folder that holds a folder for each camera."""
    scale: float | tuple[float, float] | dict[str, float | tuple[float, float]] | None = None
    """Factor, or factors of x and y, from the detector's pictures to the videos', of all cameras or by
    camera."""
    mapping: dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]] = Field(default_factory=dict)
    """Name in files of named points by BODY_25 name."""
    step: int | str | None = None
    """Frames between consecutive file numbers: 2 where every second frame has a file and the files are
    counted, 1/2 where numbers rise by two from frame to frame."""
    first_frame: int | None = None
    """Number of the keypoint file of a video's first frame; 0 unless only 1 is possible."""

    def scales(self, cameras: Sequence[str]) -> dict[str, tuple[float, float]]:
        """``scale`` of x and y of those cameras of which it is stated."""
        by_name = self.scale if isinstance(self.scale, dict) else dict.fromkeys(cameras, self.scale)
        each = {name: by_name.get(name) for name in cameras}
        return {n: (s, s) if isinstance(s, float) else s for n, s in each.items() if s is not None}

    _normal = field_validator("scale", mode="before")(_by_name)

    @field_validator("scale")
    @classmethod
    def _positive_scale(cls, value: Any) -> Any:
        for scale in value.values() if isinstance(value, dict) else [value]:
            for factor in scale if isinstance(scale, tuple) else [scale]:
                if factor is not None and not 0 < factor < math.inf:
                    raise ValueError(f"{factor} must be positive")
        return value

    @field_validator("step")
    @classmethod
    def _whole_step(cls, value: int | str | None) -> int | str | None:
        if value is not None:
            try:
                step = Fraction(str(value).replace(" ", ""))
            except (ValueError, ZeroDivisionError):
                raise ValueError(f"{value!r} is neither a number nor a fraction such as 1/2") from None
            if step <= 0 or 1 not in (step.numerator, step.denominator):
                raise ValueError(f"{value} must be a whole number, or one over such a number")
        return value

    @field_validator("format")
    @classmethod
    def _known_order(cls, value: str | None) -> str | None:
        return None if value is None else find_order(value)


class StatedCalibration(Config):
    """The ``calibration`` of recording.yaml."""

    path: str | None = None
    unit: str | float | None = None
    """m, cm, mm, or metres per unit."""
    names: dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]] = Field(default_factory=dict)
    """Name in the calibration by name of the video or keypoints, for cameras where they differ."""

    _normal = field_validator("names", mode="before")(_by_name)

    @field_validator("unit")
    @classmethod
    def _known_unit(cls, value: str | float | None) -> str | float | None:
        if isinstance(value, str) and value not in UNITS:
            raise ValueError(f"{value!r} is not one of {', '.join(UNITS)}, or a number of metres per unit")
        if isinstance(value, float | int) and not 0 < value < math.inf:
            raise ValueError(f"{value} must be positive: metres per unit")
        return value

    @property
    def metres_per_unit(self) -> float | None:
        """Metres per unit; None where no unit is stated."""
        return UNITS[self.unit] if isinstance(self.unit, str) else self.unit


class Stated(Config):
    """Settings of ``recording.yaml``, each None or empty where not stated."""

    keypoints: StatedKeypoints = StatedKeypoints()
    calibration: StatedCalibration = StatedCalibration()
    frame_offset: dict[str, int] = Field(default_factory=dict)
    """Per camera: its frame at the moment of frame 0 of the cameras without an offset."""
    sync: dict[str, Clock] = Field(default_factory=dict)
    """Clock of each camera, as in ``sync.yaml``."""
    focal_px: float | dict[str, float] | None = None
    """Focal length of all cameras or by camera, pixels of the video, without a calibration."""
    picture_size: tuple[int, int] | None = None
    """Width and height without calibration and video."""
    fps: float | str | None = None
    """Frames a second without a video; a fraction such as 30000/1001 as text."""
    up: tuple[float, float, float] | None = None
    """Upward direction in the calibration's world: x, y and z, or an axis such as z or -y."""

    @property
    def rate(self) -> Fraction | None:
        """``fps`` as a fraction."""
        return None if self.fps is None else Fraction(str(self.fps).replace(" ", ""))

    _normal = field_validator("frame_offset", "sync", "focal_px", mode="before")(_by_name)

    @field_validator("focal_px")
    @classmethod
    def _positive_focal(cls, value: float | dict[str, float] | None) -> float | dict[str, float] | None:
        for focal in value.values() if isinstance(value, dict) else [value]:
            if focal is not None and not 0 < focal < math.inf:
                raise ValueError(f"{focal} must be positive: pixels")
        return value

    @field_validator("picture_size")
    @classmethod
    def _possible_size(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not all(1 <= n <= 100_000 for n in value):
            raise ValueError(f"{list(value)} must be a width and a height in pixels")
        return value

    @field_validator("up", mode="before")
    @classmethod
    def _axis_of_name(cls, value: Any) -> Any:
        if isinstance(value, str) and (axis := value.lower().lstrip("+")).lstrip("-") in AXES:
            unit = AXES[axis.lstrip("-")]
            return tuple(-n if axis.startswith("-") else n for n in unit)
        return value

    @field_validator("up")
    @classmethod
    def _unit_direction(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if value is None:
            return None
        length = math.hypot(*value)
        if not 1e-6 < length < math.inf:
            raise ValueError(f"{list(value)} is no direction")
        return value[0] / length, value[1] / length, value[2] / length

    @field_validator("fps")
    @classmethod
    def _positive_rate(cls, value: float | str | None) -> float | str | None:
        if value is not None:
            try:
                rate = Fraction(str(value).replace(" ", ""))
            except (ValueError, ZeroDivisionError):
                raise ValueError(f"{value!r} is neither a number nor a fraction such as 30000/1001") from None
            if not 0 < rate < 100_000:
                raise ValueError(f"{value} must be positive")
        return value


def read_stated(folders: Sequence[Path]) -> Stated:
    """Read the ``recording.yaml`` of these folders; later ones override earlier ones.

    Raises ``InputError`` for an unreadable file, an unknown key or a value that is not allowed.
    """
    return load(Stated, [file for folder in folders if (file := folder / SETTINGS).exists()])


def stated_path(folder: Path, stated: str, key: str) -> Path:
    """Resolve a path that ``recording.yaml`` states under ``key``.

    Raises ``InputError`` where it does not exist or leaves the folder.
    """
    path = folder / stated
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder / SETTINGS}: {key}: {stated!r} leaves the recording's folder")
    if not path.exists():
        raise InputError(f"{folder / SETTINGS}: {key}: {path} does not exist")
    return path
