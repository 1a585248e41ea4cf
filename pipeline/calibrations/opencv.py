"""OpenCV's files, YAML, XML or JSON: one a camera, of ``calibrateCamera`` and of ROS, with R and T beside the
lens; or one of two cameras, of ``stereoCalibrate``: ``x_2 = R x_1 + T``, in the world of the first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import cv2
import yaml

from pipeline.calibrations.checks import (
    Camera,
    distortion,
    files_in,
    first_bytes,
    numbers,
    picture_size,
    rig_of,
    rotation,
    short,
)
from pipeline.cameras import MAX_CAMERAS, Rig
from pipeline.errors import InputError
from pipeline.yamls import read_yaml

DESCRIPTION: Final = "OpenCV YAML, XML or JSON, also of ROS (one file a camera, or of a stereo pair)"

_K: Final = ("camera_matrix", "Camera_Matrix", "cameraMatrix", "CameraMatrix", "K")
_DIST: Final = (
    "distortion_coefficients", "Distortion_Coefficients", "distCoeffs", "distortion", "dist_coeffs",
    "distCoef", "dist", "D",
)  # fmt: skip
_R: Final = ("R", "rotation_matrix", "rotation", "rvec", "Rvec", "R_world_to_cam")
_T: Final = ("T", "t", "translation_vector", "translation", "tvec", "Tvec", "T_world_to_cam")
_SIZE: Final = (("image_width", "image_height"), ("image_Width", "image_Height"), ("width", "height"))
_WHOLE_SIZE: Final = ("image_size", "imageSize", "img_size", "size", "resolution")
_STEREO_K: Final = ("cameramatrix", "cameramat", "intrinsics", "intrinsic", "mtx", "cm", "m", "k")
_STEREO_DIST: Final = ("distortioncoefficients", "distcoeffs", "distcoeff", "distortion", "dist", "d")
"""Keys of a camera of a pair without its mark and all but small letters."""
_MARKS: Final = (("1", "2"), ("left", "right"), ("l", "r"), ("0", "1"))
"""Marks of the first camera of a pair and of the second, before or behind its keys."""
_FISHEYE: Final = ("equidistant", "fisheye", "kannala_brandt")
_KEY: Final = re.compile(rb'"(\w+)"\s*:|^\s*(\w+)\s*:|<(\w+)[\s>]', re.MULTILINE)
"""A key in JSON, YAML and XML."""


def find(folder: Path) -> list[tuple[Path, ...]]:
    """All files with a camera's matrix in them: one calibration; and each file of a pair, with that of its R
    and T where it has none.

    Where there are more files than a recording has cameras, those in JSON are keypoints, and not opened."""
    there = files_in(folder, ".yml", ".yaml", ".xml", ".json")
    usual = [p for p in there if p.stem.lower() not in ("intri", "extri")]  # EasyMocap's
    keys = {p: _keys(p) for p in usual if len(there) <= MAX_CAMERAS or p.suffix.lower() != ".json"}
    single = tuple(p for p in keys if _has_camera(keys[p]))
    lenses = [p for p in keys if p not in single and _pair_in(keys[p])]
    placing = [p for p in keys if p not in (*single, *lenses) and not {"R", "T"}.isdisjoint(keys[p])]
    pairs = [(p,) if {"R", "T"} <= keys[p] else (p, *placing[:1]) for p in lenses]
    return [single, *pairs] if single else pairs


def _keys(path: Path) -> set[str]:
    content = first_bytes(path)
    if path.suffix.lower() == ".xml" and b"<opencv_storage" not in content:
        return set()
    return {key.decode() for found in _KEY.findall(content) for key in found if key}


def _has_camera(keys: Collection[str]) -> bool:
    return any(k in keys for k in _K[:-1]) or ("K" in keys and any(k in keys for k in _DIST))


def _pair_in(keys: Collection[str]) -> list[tuple[str, str, str]]:
    """Mark, key of K and key of the distortion of the two cameras of a pair; those of the second are empty
    where they are missing. Empty without the first."""
    spelt = {re.sub(r"[^a-z0-9]", "", key.lower()): key for key in keys}

    def key(words: tuple[str, ...], mark: str) -> str:
        return next((spelt[w] for word in words for w in (word + mark, mark + word) if w in spelt), "")

    pairs = [[(m, key(_STEREO_K, m), key(_STEREO_DIST, m)) for m in marks] for marks in _MARKS]
    whole = [pair for pair in pairs if all(pair[0]) and all(pair[1])]
    return next(iter(whole or [pair for pair in pairs if all(pair[0])]), [])


def read(files: tuple[Path, ...]) -> Rig:
    """A camera of each file, or the two of a pair; lengths in its unit, which it does not name."""
    tables = [load_table(path) for path in files]
    if not _has_camera(tables[0]) and (pair := _pair_in(tables[0])):
        both = {key: value for table in reversed(tables) for key, value in table.items()}
        first = {**both, "R": [0, 0, 0], "T": [0, 0, 0]}
        return rig_of(
            files[0],
            [
                _camera(files[0], table, mark, (k,), (dist,))
                for table, (mark, k, dist) in zip((first, both), pair, strict=True)
            ],
        )
    each = [(path, *one) for path, table in zip(files, tables, strict=True) for one in _cameras_in(table)]
    names = [name for _, _, name in each]
    if len(each) == len(files) and (len(set(names)) < len(names) or "" in names):
        names = [path.stem for path in files]
    cameras = [_camera(path, table, name) for (path, table, _), name in zip(each, names, strict=True)]
    return rig_of(files[0], cameras)


def _cameras_in(table: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str]]:
    """The camera that a file describes and its name, or the cameras in it: of a table by name, or of a list
    called ``cameras``."""
    inside = table.get("cameras")
    listed = dict(enumerate(inside)) if isinstance(inside, list) else inside
    keyed = (listed if isinstance(listed, dict) else table).items()
    found = [(one, str(one.get("name", key))) for key, one in keyed if isinstance(one, dict)]
    return [one for one in found if _has_camera(one[0])] or [(table, str(table.get("camera_name") or ""))]


def _camera(
    path: Path,
    table: Mapping[str, Any],
    name: str,
    k_keys: tuple[str, ...] = _K,
    dist_keys: tuple[str, ...] = _DIST,
) -> Camera:
    def value(keys: tuple[str, ...], missing: str) -> tuple[Any, str]:
        for key in keys:
            if key in table:
                where = f"{path}, {key}"
                return matrix(table[key], where), where
        raise InputError(f"{path}: {missing}")

    k, k_where = value(k_keys, "camera_matrix is missing")
    dist, dist_where = value(dist_keys, "distortion_coefficients is missing")
    where_from = "it gives the lens and not where the camera stands: add R and T, or rvec and tvec"
    r, r_where = value(_R, where_from)
    t, t_where = value(_T, where_from)
    sides = next((pair for pair in _SIZE if pair[0] in table and pair[1] in table), None)
    whole = next((key for key in _WHOLE_SIZE if key in table), None)
    size = (0, 0)
    if sides:
        size = picture_size([table[side] for side in sides], f"{path}, {sides[0]}")
    elif whole:
        size = picture_size(matrix(table[whole], f"{path}, {whole}"), f"{path}, {whole}")
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


def load_table(path: Path) -> dict[str, Any]:
    """Keys of a file as OpenCV writes it, in YAML, or in XML or JSON, which OpenCV reads.

    Raises:
        InputError: it is not such a file.
    """
    if path.suffix.lower() in (".yml", ".yaml"):
        return load_yaml(path)
    try:
        text, mode = path.read_text(encoding="utf-8-sig"), cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY
        storage = cv2.FileStorage(text, mode)
        return {key: _value(storage.getNode(key)) for key in storage.root().keys()}  # noqa: SIM118
    except (cv2.error, SystemError, ValueError) as error:
        reason = str(error.__cause__ or error).split("error: ")[-1]
        raise InputError(f"{path}: not OpenCV's {path.suffix[1:].upper()}: {short(reason)}") from error


def _value(node: cv2.FileNode) -> Any:
    if node.isMap():
        return {key: _value(node.getNode(key)) for key in node.keys()}  # noqa: SIM118
    if node.isSeq():
        return [_value(node.at(i)) for i in range(node.size())]
    return node.string() if node.isString() else None if node.isNone() else node.real()


def load_yaml(path: Path) -> dict[str, Any]:
    """Keys of a file as OpenCV writes it. Every scalar stays text: a camera named 01 keeps its zero.

    Raises:
        InputError: it is not such a file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        # OpenCV writes "%YAML:1.0", which is no YAML directive.
        values = read_yaml(re.sub(r"\A%YAML.*\n(---)?", "", text), yaml.BaseLoader)
    except ValueError as error:
        raise InputError(f"{path}: not OpenCV YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: not OpenCV YAML: expected keys such as names, K_<camera>")
    return values


def matrix(value: Any, where: str) -> Any:
    """The data of a matrix, as many as its rows and columns say, or the sizes that OpenCV 5 gives of an array
    of one axis; another value as it is.

    Raises:
        InputError: there are more or fewer.
    """
    if not isinstance(value, dict):
        return value
    sizes = value.get("sizes", [value.get("rows"), value.get("cols")])
    count = int(numbers(sizes, (1, 2, 3), f"{where}, rows and cols").prod())
    data = value.get("data")
    if not isinstance(data, list) or len(data) != count:
        got = len(data) if isinstance(data, list) else 0
        raise InputError(f"{where}: expected {count} numbers in data, got {got}")
    return data
