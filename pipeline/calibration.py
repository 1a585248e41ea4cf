"""Calibration files: find, read, check and write cameras.

Read: the TOML of Pose2Sim, anipose, FreeMoCap and caliscope (one table a camera) and EasyMocap's pair
``intri.yml`` + ``extri.yml`` (OpenCV YAML). All of them hold world → camera, ``x_cam = R x_world + t``.
Written: Pose2Sim's TOML.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from scipy.spatial.transform import Rotation

from pipeline.cameras import Array, Rig
from pipeline.errors import InputError
from pipeline.files import write_atomically

UNITS: Final[Mapping[str, float]] = {"m": 1.0, "cm": 0.01, "mm": 0.001}
"""Metres in one unit of a calibration."""

_NOT_CAMERAS = frozenset({"metadata", "capture_volume", "charuco", "checkerboard"})
_CAMERA_KEYS = frozenset({"matrix", "distortions", "rotation", "translation"})
_EXPECTED = (
    "expected calibration.toml (or a Calib*.toml of Pose2Sim), or intri.yml with extri.yml, "
    "in the recording's folder or in its calibration/ subfolder"
)
_MATRIX_TAG = "tag:yaml.org,2002:opencv-matrix"


def find_calibration(folder: Path) -> tuple[Path | None, tuple[Path, ...]]:
    """The calibration of a recording, None where there is none, and the other files that could have been it.

    ``calibration.toml`` beside the videos comes first, then the same name in ``calibration/``; without
    either, there must be one candidate only. EasyMocap's pair is stood for by its ``intri.yml``.

    Raises:
        InputError: half a pair was found, or several that none is first among.
    """
    found: list[Path] = []
    for place in (folder, folder / "calibration"):
        if not place.is_dir():
            continue
        names = sorted(p for p in place.iterdir() if p.is_file())
        found += [p for p in names if re.fullmatch(r"calib.*\.toml", p.name, re.IGNORECASE)]
        pair = [p for p in names if p.name in ("intri.yml", "extri.yml")]
        if len(pair) == 1:
            other = "extri.yml" if pair[0].name == "intri.yml" else "intri.yml"
            raise InputError(f"{pair[0]} is half of a calibration: {other} is missing beside it")
        found += [p for p in pair if p.name == "intri.yml"]
    first = [p for p in found if p.name == "calibration.toml"]
    if not found:
        return None, ()
    if not first and len(found) > 1:
        names_text = ", ".join(str(p.relative_to(folder)) for p in found)
        raise InputError(
            f"{folder}: several calibrations: {names_text}; name one in recording.yaml, "
            f"calibration: {{path: {found[0].relative_to(folder)}}}"
        )
    chosen = (first or found)[0]
    return chosen, tuple(p for p in found if p != chosen)


def read_calibration(path: Path, *, metres_per_unit: float = 1.0) -> Rig:
    """Cameras of one file, in file order. A picture size that the file does not give is (0, 0).

    ``path`` is a TOML file, or the ``intri.yml`` of a pair. Rotations are made exactly orthonormal.

    Raises:
        InputError: the file cannot be read as cameras; names file, camera and key.
    """
    try:
        if path.suffix.lower() == ".toml":
            cameras = _read_toml(path)
        elif path.suffix.lower() in (".yml", ".yaml"):
            cameras = _read_easymocap(path)
        else:
            raise InputError(f"{path}: not a calibration file; {_EXPECTED}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not cameras:
        raise InputError(f"{path}: holds no camera (a table with matrix, distortions, rotation, translation)")
    names = [name for name, *_ in cameras]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: two cameras are named {name!r}; each needs its own name")
    _, k, dist, r, t, size = zip(*cameras, strict=True)
    rig = Rig(
        tuple(names),
        np.stack(k),
        np.stack(dist),
        np.stack(r),
        np.stack(t) * metres_per_unit,
        np.array(size, dtype=np.int64),
    )
    for view, name in enumerate(names):
        check_intrinsics(rig, view, f"{path}, camera {name!r}")
    return rig


def check_intrinsics(rig: Rig, view: int, where: str) -> None:
    """Raises ``InputError`` when K cannot be that of a camera with this picture size (0 = not known)."""
    k, (w, h) = rig.K[view], rig.size[view]
    fx, fy, cx, cy = k[0, 0], k[1, 1], k[0, 2], k[1, 2]
    if not (fx > 0 and fy > 0):
        raise InputError(f"{where}, matrix: focal lengths must be positive, got fx = {fx:g}, fy = {fy:g}")
    if not 0.5 < fx / fy < 2:
        raise InputError(f"{where}, matrix: fx = {fx:g} and fy = {fy:g} differ by more than a factor of 2")
    if not np.allclose([k[1, 0], k[2, 0], k[2, 1], k[2, 2]], [0, 0, 0, 1], rtol=0, atol=1e-9):
        raise InputError(
            f"{where}, matrix: expected [[fx, skew, cx], [0, fy, cy], [0, 0, 1]], got {k.tolist()}"
        )
    if w and h:
        if not (-0.5 * w < cx < 1.5 * w and -0.5 * h < cy < 1.5 * h):
            raise InputError(
                f"{where}, matrix: principal point ({cx:g}, {cy:g}) lies far outside the picture of {w}x{h}"
            )
        if not 0.05 < fx / w < 200:
            raise InputError(f"{where}, matrix: fx = {fx:g} does not fit a picture {w} pixels wide")


def calibration_doubts(rig: Rig) -> list[str]:
    """What is legal in a calibration but probably wrong, one sentence each."""
    doubts = []
    for a, b in combinations(range(len(rig)), 2):
        gap = float(np.linalg.norm(rig.centres[a] - rig.centres[b]))
        if gap < 0.01:
            doubts.append(
                f"cameras {rig.names[a]} and {rig.names[b]} stand in the same place ({1000 * gap:.1f} mm "
                "apart): is one of them a copy?"
            )
    return doubts


ESTIMATED: Final = "estimated"
"""Key of the metadata that says that the cameras were estimated from a person, by ``run``."""


@dataclass(frozen=True)
class Estimate:
    """What is kept of an estimate in the metadata beside its cameras."""

    source: Mapping[str, str]
    """Digests of what the cameras were estimated from, by what that is called in a message."""
    error_px: float
    """Median distance of the person from the pictures."""
    caveat: str
    """What the cameras are good for, in a sentence."""
    as_written: bool = True
    """The cameras beside it are those that it was written with: nobody has edited them."""


def is_estimated(path: Path | None) -> bool:
    """Whether a calibration that can be read says that it was estimated from a person."""
    if path is None or path.suffix.lower() != ".toml":
        return False
    return _metadata(_document(path)).get(ESTIMATED) is True


def read_estimate(path: Path) -> Estimate | None:
    """How the cameras of a TOML file that can be read were estimated; None where it does not say."""
    document = _document(path)
    kept = _metadata(document)
    source, error, caveat = kept.get("source"), kept.get("error"), kept.get("caveat")
    if not (isinstance(source, dict) and isinstance(error, int | float) and isinstance(caveat, str)):
        return None
    return Estimate(source, float(error), caveat, kept.get("cameras") == _cameras_digest(document))


def _document(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8-sig"))


def _metadata(document: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = document.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _cameras_digest(document: Mapping[str, Any]) -> str:
    """Of everything but the metadata; comments, spaces and the order of tables do not count."""
    cameras = {name: table for name, table in document.items() if name != "metadata"}
    return hashlib.sha256(json.dumps(cameras, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_calibration(rig: Rig, path: Path, estimate: Estimate | None = None) -> None:
    """Write Pose2Sim's TOML. Reading it back gives the same rig to 1e-12 (relative).

    With an ``estimate`` the cameras are marked as estimated, and what they are good for is said at the top.
    Raises ``InputError`` when it cannot be written.
    """
    lines = []
    if estimate:
        lines += [
            "# Estimated by multispin from the person in the pictures: no calibration was found.",
            "# Metres are those of a usual body, up is a guess. Correct this file, and use it elsewhere.",
        ]
    for v, name in enumerate(rig.names):
        table = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)
        if name.casefold() in _NOT_CAMERAS:
            table = f"cam_{v}"
        dist = rig.dist[v]
        dist = dist if dist[5:].any() else dist[:5] if dist[4] else dist[:4]
        rotation = Rotation.from_matrix(rig.R[v]).as_rotvec()
        lines += [
            f"[{table}]",
            f"name = {_quoted(name)}",
            f"size = {rig.size[v].tolist()}",
            f"matrix = {rig.K[v].tolist()}",
            f"distortions = {dist.tolist()}",
            f"rotation = {rotation.tolist()}",
            f"translation = {rig.t[v].tolist()}",
            "fisheye = false",
            "",
        ]
    digest = _cameras_digest(tomllib.loads("\n".join(lines)))
    lines += ["[metadata]", "adjusted = false", f"error = {estimate.error_px if estimate else 0.0}"]
    if estimate:
        source = ", ".join(f"{_quoted(name)} = {_quoted(of)}" for name, of in estimate.source.items())
        lines += [
            f"{ESTIMATED} = true",
            f"caveat = {_quoted(estimate.caveat)}",
            f"cameras = {_quoted(digest)}",
            f"source = {{{source}}}",
        ]
    lines.append("")
    write_atomically(path, "\n".join(lines))


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


_Camera = tuple[str, Array, Array, Array, Array, tuple[int, int]]


def _numbers(value: Any, count: int | tuple[int, ...], where: str) -> Array:
    """``value`` as finite floats of this count (or one of these counts), flat."""
    counts = (count,) if isinstance(count, int) else count
    try:
        flat = np.array(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{where}: expected numbers, got {_short(value)}") from None
    if flat.size not in counts:
        wanted = " or ".join(str(c) for c in counts)
        raise InputError(f"{where}: expected {wanted} numbers, got {flat.size}")
    if not np.isfinite(flat).all():
        raise InputError(f"{where}: not finite: {_short(value)}")
    return flat


def _distortion(value: Any, where: str) -> Array:
    flat = np.array(value, dtype=object).reshape(-1)
    if flat.size in (12, 14):
        raise InputError(
            f"{where}: {flat.size} coefficients (thin prism or tilted sensor) are not supported; calibrate "
            "with 4, 5 or 8"
        )
    out = np.zeros(8)
    known = _numbers(value, (4, 5, 8), where)
    out[: known.size] = known
    return out


def _rotation(value: Any, where: str) -> Array:
    """A Rodrigues vector or a 3×3 matrix → the nearest rotation."""
    flat = _numbers(value, (3, 9), where)
    if flat.size == 3:
        return np.asarray(Rotation.from_rotvec(flat).as_matrix())
    m = flat.reshape(3, 3)
    off = float(np.abs(m @ m.T - np.eye(3)).max())
    if off > 1e-3:
        raise InputError(f"{where}: not a rotation (rows are off orthonormal by {off:.2g})")
    if np.linalg.det(m) < 0:
        raise InputError(f"{where}: a mirror, not a rotation (determinant −1): an axis has the wrong sign")
    u, _, vt = np.linalg.svd(m)
    return np.asarray(u @ vt)


def _size(value: Any, where: str) -> tuple[int, int]:
    w, h = _numbers(value, 2, where)
    if not (1 <= w <= 1e5 and 1 <= h <= 1e5) or w != round(w) or h != round(h):
        raise InputError(f"{where}: expected a width and height in whole pixels, got {w:g} and {h:g}")
    return int(w), int(h)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _read_toml(path: Path) -> list[_Camera]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not TOML: {error}") from error
    cameras: list[_Camera] = []
    for key, table in document.items():
        if key in _NOT_CAMERAS or not isinstance(table, dict) or not _CAMERA_KEYS & table.keys():
            continue
        where = f"{path}, camera {key!r}"
        name = table.get("name", key)
        if not isinstance(name, str) or not name:
            raise InputError(f"{where}, name: expected a text, got {_short(name)}")
        if table.get("fisheye", False) is not False:
            raise InputError(
                f"{where}: fisheye lenses are not supported; undistort its video and keypoints with the tool "
                "that calibrated it, and give the calibration of the undistorted pictures (fisheye = false)"
            )
        for needed in ("matrix", "distortions", "rotation", "translation"):
            if needed not in table:
                placed = "" if needed in ("matrix", "distortions") else ": are its extrinsics calibrated?"
                raise InputError(f"{where}: key {needed!r} is missing{placed}")
        cameras.append(
            (
                name,
                _numbers(table["matrix"], 9, f"{where}, matrix").reshape(3, 3),
                _distortion(table["distortions"], f"{where}, distortions"),
                _rotation(table["rotation"], f"{where}, rotation"),
                _numbers(table["translation"], 3, f"{where}, translation"),
                _size(table["size"], f"{where}, size") if "size" in table else (0, 0),
            )
        )
    return cameras


class _OpenCVLoader(yaml.BaseLoader):
    """Every scalar stays text: a camera named 01 keeps its zero."""


def _matrix(loader: yaml.BaseLoader, node: yaml.Node) -> Any:
    if not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(
            None, None, "an opencv-matrix must be a mapping", node.start_mark
        )
    return loader.construct_mapping(node, deep=True)


_OpenCVLoader.add_constructor(_MATRIX_TAG, _matrix)


def _read_opencv_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        # OpenCV writes "%YAML:1.0", which is no YAML directive.
        document = yaml.load(re.sub(r"\A%YAML.*\n(---)?", "", text), Loader=_OpenCVLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"{path}: not OpenCV YAML: {text}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: not OpenCV YAML: expected keys such as names, K_<camera>")
    return document


def _plain(name: str) -> str:
    """A camera name without the zeros that some tool may have dropped."""
    return name.lstrip("0") or "0" if name.isdigit() else name


def _read_easymocap(path: Path) -> list[_Camera]:
    intri_path, extri_path = path.with_name("intri" + path.suffix), path.with_name("extri" + path.suffix)
    intri, extri = _read_opencv_yaml(intri_path), _read_opencv_yaml(extri_path)

    def names(document: dict[str, Any], file: Path, prefixes: tuple[str, ...]) -> dict[str, str]:
        listed = document.get("names")
        if listed is None:
            listed = list(dict.fromkeys(k[len(p) :] for p in prefixes for k in document if k.startswith(p)))
        if not isinstance(listed, list) or not all(isinstance(n, str) and n for n in listed):
            raise InputError(f"{file}, names: expected a list of camera names, got {_short(listed)}")
        return {_plain(n): n for n in listed}

    inside = names(intri, intri_path, ("K_",))
    outside = names(extri, extri_path, ("Rot_", "R_"))
    if inside.keys() != outside.keys():
        raise InputError(
            f"{intri_path} holds the cameras {', '.join(inside.values()) or 'none'}, "
            f"{extri_path.name} {', '.join(outside.values()) or 'none'}: they must be the same"
        )

    def getter(document: dict[str, Any], file: Path, plain: str, name: str) -> Callable[[str], Any]:
        keys = {(k.rsplit("_", 1)[0], _plain(k.rsplit("_", 1)[1])): k for k in document if "_" in k}

        def get(prefix: str) -> tuple[Any, str]:
            # A name may hold "_" itself: the exact key first, then the one that differs in zeros.
            key = f"{prefix}_{name}"
            key = key if key in document else keys.get((prefix, plain), key)
            value = document.get(key)
            where = f"{file}, camera {name!r}, {key}"
            if isinstance(value, dict):
                rows_cols = _numbers([value.get("rows"), value.get("cols")], 2, f"{where}, rows and cols")
                count = int(rows_cols[0] * rows_cols[1])
                data = value.get("data")
                if not isinstance(data, list) or len(data) != count:
                    got = len(data) if isinstance(data, list) else 0
                    raise InputError(f"{where}: expected {count} numbers in data, got {got}")
                value = data
            return value, where

        return get

    cameras: list[_Camera] = []
    for plain, name in inside.items():
        get_in = getter(intri, intri_path, plain, name)
        get_out = getter(extri, extri_path, plain, outside[plain])

        def need(get: Callable[[str], Any], prefix: str) -> tuple[Any, str]:
            value, where = get(prefix)
            if value is None:
                raise InputError(f"{where}: this key is missing")
            return value, where

        k, k_where = need(get_in, "K")
        dist, dist_where = get_in("dist")
        if dist is None:
            dist, dist_where = get_in("D")
        if dist is None:
            raise InputError(f"{dist_where.replace(', D_', ', dist_')}: this key is missing")
        matrix, matrix_where = get_out("Rot")
        vector, vector_where = get_out("R")
        if matrix is None and vector is None:
            raise InputError(f"{matrix_where}: this key is missing, and so is R_{outside[plain]}")
        r = _rotation(matrix if matrix is not None else vector, matrix_where if matrix else vector_where)
        if matrix is not None and vector is not None:
            apart = Rotation.from_matrix(r @ _rotation(vector, vector_where).T).magnitude()
            if apart > 2e-3:
                raise InputError(
                    f"{matrix_where} and R_{outside[plain]} are {np.degrees(apart):.2f}° apart: "
                    "remove the wrong one"
                )
        t, t_where = need(get_out, "T")
        (w, w_where), (h, _) = get_in("W"), get_in("H")
        known = w is not None and h is not None and (w, h) != ("-1", "-1")
        cameras.append(
            (
                name,
                _numbers(k, 9, k_where).reshape(3, 3),
                _distortion(dist, dist_where),
                r,
                _numbers(t, 3, t_where),
                _size([w, h], w_where) if known else (0, 0),
            )
        )
    return cameras


def in_metres(rig: Rig, metres_per_unit: float) -> Rig:
    """The rig of a calibration whose unit turned out to be this long."""
    return replace(rig, t=rig.t * metres_per_unit)
