"""EasyMocap's calibrations: ``intri.yml`` and ``extri.yml``, OpenCV's YAML, ``x_cam = R x_world + t``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from pipeline.array_types import Array
from pipeline.calibrations.checks import Camera, distortion, numbers, picture_size, rig_of, rotation, short
from pipeline.calibrations.opencv import load_yaml, matrix
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.files import write_text_atomically

DESCRIPTION: Final = "OpenCV YAML of EasyMocap (intri.yml with extri.yml)"

_MAX_DISAGREEMENT_RAD: Final = 2e-3
"""Angle between the two rotations that a camera may give; more than rounding to three digits."""


def find(folder: Path) -> list[tuple[Path, ...]]:
    """The pair, or the half of it that lies there; by suffix."""
    return [
        pair
        for suffix in (".yml", ".yaml")
        if (pair := tuple(p for n in ("intri", "extri") if (p := folder / f"{n}{suffix}").is_file()))
    ]


def read(files: tuple[Path, ...]) -> Rig:
    """Cameras of the pair; lengths in its unit, which it does not name."""
    if len(files) == 1:
        stem = "extri" if files[0].stem == "intri" else "intri"
        raise InputError(f"{files[0]} is half of a calibration: {stem}{files[0].suffix} is missing beside it")
    intri, extri = _Document.load(files[0]), _Document.load(files[1])
    inside, outside = intri.names(("K_",)), extri.names(("Rot_", "R_"))
    if not outside.keys() <= inside.keys() or (inside and not outside):
        raise InputError(
            f"{intri.path} holds the cameras {', '.join(inside.values()) or 'none'}, "
            f"{extri.path.name} {', '.join(outside.values()) or 'none'}: the lens of each of these is needed"
        )
    return rig_of(intri.path, [_camera(intri, extri, inside[n], outside[n]) for n in inside if n in outside])


def _camera(intri: _Document, extri: _Document, name: str, outside: str) -> Camera:
    dist, dist_where = intri.get("dist", name)
    if dist is None:
        dist, d_where = intri.get("D", name)
        dist_where = dist_where if dist is None else d_where
    (w, size_where), (h, _) = intri.get("W", name), intri.get("H", name)
    known = w is not None and h is not None and (w, h) != ("-1", "-1")
    return Camera(
        name,
        intri.numbers("K", name, 9).reshape(3, 3),
        distortion(_present(dist, dist_where), dist_where),
        _orientation(extri, outside),
        extri.numbers("T", outside, 3),
        picture_size([w, h], size_where) if known else (0, 0),
    )


def _orientation(extri: _Document, name: str) -> Array:
    """World → camera (3, 3): the matrix where there is one, which must agree with the vector."""
    matrix, matrix_where = extri.get("Rot", name)
    vector, vector_where = extri.get("R", name)
    if matrix is None and vector is None:
        raise InputError(f"{matrix_where}: this key is missing, and so is R_{name}")
    if matrix is None:
        return rotation(vector, vector_where)
    r = rotation(matrix, matrix_where)
    if vector is not None:
        apart = float(np.linalg.norm(cv2.Rodrigues(r @ rotation(vector, vector_where).T)[0]))
        if apart > _MAX_DISAGREEMENT_RAD:
            raise InputError(
                f"{matrix_where} and R_{name} are {np.degrees(apart):.2f}° apart: remove the wrong one"
            )
    return r


def _present(value: Any, where: str) -> Any:
    if value is None:
        raise InputError(f"{where}: this key is missing")
    return value


def _plain(name: str) -> str:
    """A camera name without the zeros that some tool may have dropped."""
    return name.lstrip("0") or "0" if name.isdigit() else name


@dataclass(frozen=True)
class _Document:
    """One file of the pair: a value for each ``KEY_camera``."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> _Document:
        return cls(path, load_yaml(path))

    def names(self, prefixes: tuple[str, ...]) -> dict[str, str]:
        """Camera names as they are spelled here, by the name without leading zeros."""
        listed = self.values.get("names")
        if listed is None:
            listed = list(
                dict.fromkeys(k[len(p) :] for p in prefixes for k in self.values if k.startswith(p))
            )
        if not isinstance(listed, list) or not all(isinstance(n, str) and n for n in listed):
            raise InputError(f"{self.path}, names: expected a list of camera names, got {short(listed)}")
        return {_plain(n): n for n in listed}

    def get(self, prefix: str, name: str) -> tuple[Any, str]:
        """Value of a camera's key, None where there is none, and the place to name in a message."""
        # A name may hold "_" itself: the exact key first, then the one that differs in zeros.
        key = f"{prefix}_{name}"
        if key not in self.values:
            parts = ((k, *k.rsplit("_", 1)) for k in self.values if "_" in k)
            alike = [k for k, *p in parts if (p[0], _plain(p[1])) == (prefix, _plain(name))]
            key = alike[-1] if alike else key
        value = self.values.get(key)
        where = f"{self.path}, camera {name!r}, {key}"
        return matrix(value, where), where

    def numbers(self, prefix: str, name: str, count: int) -> Array:
        """Numbers, flat, of a camera's key that must be there."""
        value, where = self.get(prefix, name)
        return numbers(_present(value, where), count, where)


def write_calibration(rig: Rig, folder: Path) -> None:
    """Write ``intri.yml`` and ``extri.yml``. Reading them back gives the same rig to 1e-12 (relative).

    Raises:
        InputError: a fisheye lens, for which the format has no place, or they cannot be written.
    """
    for name, fisheye in zip(rig.names, rig.fisheye, strict=True):
        if fisheye:
            raise InputError(f"camera {name}: EasyMocap's format holds no fisheye lens; write TOML instead")
    head = ["%YAML:1.0", "---", "names:", *(f"   - {json.dumps(n, ensure_ascii=False)}" for n in rig.names)]
    intri, extri = [*head], [*head]
    for v, name in enumerate(rig.names):
        dist = rig.dist[v] if rig.dist[v, 5:].any() else rig.dist[v, :5]
        intri += [_matrix_lines(f"K_{name}", rig.K[v]), _matrix_lines(f"dist_{name}", dist[None])]
        if rig.size[v].all():
            intri += [f"H_{name}: {rig.size[v, 1]}", f"W_{name}: {rig.size[v, 0]}"]
        vector = np.asarray(cv2.Rodrigues(rig.R[v])[0])
        extri += [_matrix_lines(f"R_{name}", vector), _matrix_lines(f"Rot_{name}", rig.R[v])]
        extri += [_matrix_lines(f"T_{name}", rig.t[v, :, None])]
    for file, lines in (("intri.yml", intri), ("extri.yml", extri)):
        write_text_atomically(folder / file, "\n".join([*lines, ""]))


def _matrix_lines(key: str, values: Array) -> str:
    rows, cols = values.shape
    data = ", ".join(map(repr, values.ravel().tolist()))
    head = key if re.fullmatch(r"\w+", key, re.ASCII) else json.dumps(key, ensure_ascii=False)
    return f"{head}: !!opencv-matrix\n   rows: {rows}\n   cols: {cols}\n   dt: d\n   data: [{data}]"
