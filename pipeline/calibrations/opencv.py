"""OpenCV's YAML files, one a camera: of ``calibrateCamera`` and of ROS, with R and T beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from pipeline.calibrations.checks import (
    Camera,
    distortion,
    files_in,
    numbers,
    picture_size,
    rig_of,
    rotation,
)
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.yamls import read_yaml

DESCRIPTION: Final = "OpenCV or ROS YAML (one file a camera)"

_K: Final = ("camera_matrix", "Camera_Matrix", "cameraMatrix", "CameraMatrix", "K")
_DIST: Final = (
    "distortion_coefficients", "Distortion_Coefficients", "distCoeffs", "distortion", "dist_coeffs", "D"
)  # fmt: skip
_R: Final = ("R", "rotation_matrix", "rotation", "rvec", "Rvec", "R_world_to_cam")
_T: Final = ("T", "t", "translation_vector", "translation", "tvec", "Tvec", "T_world_to_cam")
_SIZE: Final = (("image_width", "image_height"), ("image_Width", "image_Height"), ("width", "height"))
_FISHEYE: Final = ("equidistant", "fisheye", "kannala_brandt")
_KEY_LINE: Final = re.compile(rb"^\s*(\w+)\s*:", re.MULTILINE)
_MATRIX_TAG: Final = "tag:yaml.org,2002:opencv-matrix"


def find(folder: Path) -> list[tuple[Path, ...]]:
    """All YAML files with a camera's matrix in them: one calibration."""
    files = tuple(p for p in files_in(folder, ".yml", ".yaml") if _is_one(p))
    return [files] if files else []


def _is_one(path: Path) -> bool:
    try:
        keys = {key.decode() for key in _KEY_LINE.findall(path.read_bytes())}
    except OSError:
        return False
    return not keys.isdisjoint(_K[:-1]) or ("K" in keys and not keys.isdisjoint(_DIST))


def read(files: tuple[Path, ...]) -> Rig:
    """A camera of each file; lengths in its unit, which it does not name."""
    tables = [load_yaml(path) for path in files]
    named = [str(table["camera_name"]) if table.get("camera_name") else "" for table in tables]
    if len(set(named)) < len(named) or "" in named:
        named = [path.stem for path in files]
    return rig_of(files[0], [_camera(*args) for args in zip(files, tables, named, strict=True)])


def _camera(path: Path, table: Mapping[str, Any], name: str) -> Camera:
    def value(keys: tuple[str, ...], missing: str) -> tuple[Any, str]:
        for key in keys:
            if key in table:
                where = f"{path}, {key}"
                return matrix(table[key], where), where
        raise InputError(f"{path}: {missing}")

    k, k_where = value(_K, "camera_matrix is missing")
    dist, dist_where = value(_DIST, "distortion_coefficients is missing")
    where_from = "it gives the lens and not where the camera stands: add R and T, or rvec and tvec"
    r, r_where = value(_R, where_from)
    t, t_where = value(_T, where_from)
    sides = next((pair for pair in _SIZE if pair[0] in table and pair[1] in table), None)
    size = picture_size([table[side] for side in sides], f"{path}, {sides[0]}") if sides else (0, 0)
    fisheye = str(table.get("distortion_model", "")).lower() in _FISHEYE
    return Camera(
        name,
        numbers(k, 9, k_where).reshape(3, 3),
        distortion(dist, dist_where, fisheye),
        rotation(r, r_where),
        numbers(t, 3, t_where),
        size,
        fisheye,
    )


def load_yaml(path: Path) -> dict[str, Any]:
    """Keys of a file as OpenCV writes it. Every scalar stays text: a camera named 01 keeps its zero.

    Raises:
        InputError: it is not such a file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        # OpenCV writes "%YAML:1.0", which is no YAML directive.
        values = read_yaml(re.sub(r"\A%YAML.*\n(---)?", "", text), _Loader)
    except ValueError as error:
        raise InputError(f"{path}: not OpenCV YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: not OpenCV YAML: expected keys such as names, K_<camera>")
    return values


def matrix(value: Any, where: str) -> Any:
    """The data of a matrix, as many as its rows and columns say; another value as it is.

    Raises:
        InputError: there are more or fewer.
    """
    if not isinstance(value, dict):
        return value
    rows, cols = numbers([value.get("rows"), value.get("cols")], 2, f"{where}, rows and cols")
    data = value.get("data")
    if not isinstance(data, list) or len(data) != int(rows * cols):
        got = len(data) if isinstance(data, list) else 0
        raise InputError(f"{where}: expected {int(rows * cols)} numbers in data, got {got}")
    return data


class _Loader(yaml.BaseLoader):
    pass


def _matrix(loader: yaml.BaseLoader, node: yaml.Node) -> Any:
    if not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(
            None, None, "an opencv-matrix must be a mapping", node.start_mark
        )
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(_MATRIX_TAG, _matrix)
