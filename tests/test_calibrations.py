"""Contract of every calibration format, and the choice among the calibrations of a folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import assert_same_rig, ring
from test_easymocap import easymocap

from pipeline.calibrations import (
    FORMATS,
    calibration_files,
    find_calibration,
    pose2sim,
    read_calibration,
    unread_calibrations,
)
from pipeline.calibrations import easymocap as easymocap_format
from pipeline.calibrations.checks import calibration_doubts, in_metres
from pipeline.calibrations.pose2sim import write_calibration
from pipeline.cameras import Rig
from pipeline.errors import InputError

TRUTH = Rig(
    names=("front", "side"),
    K=np.array([[[1000, 0, 640], [0, 1010, 360], [0, 0, 1]], [[1400, 0, 950], [0, 1400, 530], [0, 0, 1.0]]]),
    dist=np.array([[0.1, -0.05, 0.001, -0.002, 0.02, 0, 0, 0], [0.0] * 8]),
    # A third of a turn about (1, 1, 1), and a quarter about y.
    R=np.array([[[0, 0, 1], [1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 1, 0], [-1, 0, 0.0]]]),
    t=np.array([[0.5, -1, 4], [0, 1.2, 5]]),
    size=np.array([[1280, 720], [1920, 1080]]),
)
"""The cameras that every file in ``BY_HAND`` describes."""

BY_HAND: Mapping[object, Mapping[str, str]] = {
    pose2sim: {
        "calibration.toml": """
[cam_01]
name = "front"
size = [1280.0, 720.0]
matrix = [[1000.0, 0.0, 640.0], [0.0, 1010.0, 360.0], [0.0, 0.0, 1.0]]
distortions = [0.1, -0.05, 0.001, -0.002, 0.02]
rotation = [1.2091995761561452, 1.2091995761561452, 1.2091995761561452]
translation = [0.5, -1.0, 4.0]
fisheye = false

[side]
size = [1920, 1080]
matrix = [[1400, 0, 950], [0, 1400, 530], [0, 0, 1]]
distortions = [0, 0, 0, 0]
rotation = [0.0, 1.5707963267948966, 0.0]
translation = [0.0, 1.2, 5.0]

[metadata]
adjusted = false
error = 0.0
"""
    },
    easymocap_format: {
        "intri.yml": """%YAML:1.0
---
names:
   - "front"
   - "side"
K_front: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [1000.0, 0.0, 640.0, 0.0, 1010.0, 360.0, 0.0, 0.0, 1.0]
dist_front: !!opencv-matrix
   rows: 1
   cols: 5
   dt: d
   data: [0.1, -0.05, 0.001, -0.002, 0.02]
H_front: 720
W_front: 1280
K_side: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [1400., 0., 950., 0., 1400., 530., 0., 0., 1.]
dist_side: !!opencv-matrix
   rows: 5
   cols: 1
   dt: d
   data: [0., 0., 0., 0., 0.]
H_side: 1080
W_side: 1920
""",
        "extri.yml": """%YAML:1.0
---
names:
   - "front"
   - "side"
R_front: !!opencv-matrix
   rows: 3
   cols: 1
   dt: d
   data: [1.2091995761561452, 1.2091995761561452, 1.2091995761561452]
Rot_front: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [0., 0., 1., 1., 0., 0., 0., 1., 0.]
T_front: !!opencv-matrix
   rows: 3
   cols: 1
   dt: d
   data: [0.5, -1., 4.]
R_side: !!opencv-matrix
   rows: 3
   cols: 1
   dt: d
   data: [0., 1.5707963267948966, 0.]
T_side: !!opencv-matrix
   rows: 3
   cols: 1
   dt: d
   data: [0., 1.2, 5.]
""",
    },
}
"""Files of each format, written by hand from its description."""

WRITERS: Mapping[object, Callable[[Rig, Path], None]] = {pose2sim: write_calibration}

EVERY_FORMAT = pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.__name__.rsplit(".", 1)[-1])


def put(folder: Path, form: object) -> tuple[Path, ...]:
    for name, text in BY_HAND[form].items():
        (folder / name).write_text(text)
    return tuple(folder / name for name in BY_HAND[form])


def moved_px(a: Rig, b: Rig) -> float:
    """Farthest that any of 1,000 points in front of the cameras moves in any distorted picture."""
    rng = np.random.default_rng(0)
    there = []
    for v in range(len(a)):
        z = rng.uniform(1, 8, 1000)
        cam = np.stack([*rng.uniform(-0.4, 0.4, (2, 1000)) * z, z], 1)
        points = (cam - a.t[v]) @ a.R[v]
        there.append((a.project(points, distorted=True) - b.project(points, distorted=True))[v])
    return float(np.abs(there).max())


@EVERY_FORMAT
def test_a_file_written_by_hand_is_found_and_read(tmp_path: Path, form: object) -> None:
    (tmp_path / "notes.txt").write_text("rotation")
    (tmp_path / "settings.toml").write_text("[camera]\nmatrix = 3\n")
    for other in FORMATS:
        assert other.find(tmp_path) == []
    files = put(tmp_path, form)
    for other in FORMATS:
        assert other.find(tmp_path) == ([files] if other is form else [])
    assert find_calibration(tmp_path) == (files[0], ())
    for file in files:
        assert calibration_files(file) == files
        rig = read_calibration(file)
        assert_same_rig(rig, TRUTH, 1e-9)
        assert moved_px(TRUTH, rig) < 0.01


@EVERY_FORMAT
def test_a_file_cut_short_is_an_error_by_name(tmp_path: Path, form: object) -> None:
    files = put(tmp_path, form)
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        path, _ = find_calibration(tmp_path)
        assert path == files[0]
        with pytest.raises(InputError, match=file.name):
            read_calibration(path)
        file.write_bytes(whole)


@EVERY_FORMAT
def test_a_file_that_is_missing_is_an_error_by_name(tmp_path: Path, form: object) -> None:
    files = put(tmp_path, form)
    for file in files if len(files) > 1 else ():
        whole = file.read_bytes()
        file.unlink()
        path, _ = find_calibration(tmp_path)
        assert path is not None
        with pytest.raises(InputError, match=f"{file.name} is missing"):
            read_calibration(path)
        file.write_bytes(whole)


@pytest.mark.parametrize("form", WRITERS, ids=lambda f: f.__name__.rsplit(".", 1)[-1])
def test_what_is_written_reads_back(tmp_path: Path, form: object) -> None:
    lens = np.array([0.05, -0.02, 0.004, -0.001, 0, 0, 0, 0])
    fisheye = replace(TRUTH, dist=np.stack([lens, TRUTH.dist[0]]), fisheye=(True, False))
    for k, rig in enumerate((TRUTH, ring(4), fisheye)):
        folder = tmp_path / str(k)
        folder.mkdir()
        WRITERS[form](rig, folder / next(iter(BY_HAND[form])))
        path, _ = find_calibration(folder)
        assert path is not None
        assert read_calibration(path).fisheye == rig.fisheye
        assert moved_px(rig, read_calibration(path)) < 0.01


@EVERY_FORMAT
def test_unit_scales_positions_only(tmp_path: Path, form: object) -> None:
    path = put(tmp_path, form)[0]
    rig, mm = read_calibration(path), read_calibration(path, metres_per_unit=0.001)
    assert_same_rig(mm, replace(rig, t=rig.t * 0.001))


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@EVERY_FORMAT
def test_a_damaged_file_gives_a_rig_or_a_message(tmp_path: Path, form: object, data: st.DataObject) -> None:
    files = put(tmp_path, form)
    path, damaged = files[0], data.draw(st.sampled_from(files))
    raw = bytearray(damaged.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 12))] = data.draw(
            st.sampled_from(
                [b"", b"\x00", b"\xff", b"]", b"[", b"{", b":", b"nan", b"1e999", b"-", b"\n", b"!!x "]
            )
        )
    damaged.write_bytes(raw)
    try:
        rig = read_calibration(path)
    except InputError as error:
        assert str(tmp_path) in str(error)  # noqa: PT017
    else:
        assert np.isfinite(rig.K).all()
        assert np.abs(np.linalg.det(rig.R) - 1).max() < 1e-9


@pytest.mark.parametrize(
    "place",
    [
        ".",
        "calibration",
        "Calibration",
        "S00_Calibration",
        "calib-2d",
        "cameras",
        "camera_parameters",
        "calibration/extrinsic/capture_volume",
        unicodedata.normalize("NFD", "Kalibrierung_calib_ü"),
    ],
)
@pytest.mark.parametrize("form", [pose2sim, easymocap_format], ids=["toml", "yml"])
def test_found_in_folders_called_after_calibrations_or_cameras(
    tmp_path: Path, place: str, form: object
) -> None:
    assert find_calibration(tmp_path) == (None, ())
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / "videos" / "cam01").mkdir(parents=True)
    put(tmp_path / "videos" / "cam01", form)
    assert find_calibration(tmp_path) == (None, ())
    files = put(tmp_path / place, form)
    assert find_calibration(tmp_path) == (files[0], ())


@pytest.mark.parametrize(
    ("name", "unread"),
    [
        ("calib.json", True),
        ("calibration/rig.mat", True),
        ("Cameras/extrinsics.npz", True),
        ("camera_params.xml", True),
        ("calibration/notes.txt", False),
        ("calibration/cam01.png", False),
        ("keypoints.json", False),
        ("._calibration.json", False),
        ("cameraman.txt", False),
    ],
)
def test_what_looks_like_a_calibration_and_is_none_is_named(tmp_path: Path, name: str, unread: bool) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    assert find_calibration(tmp_path) == (None, ())
    assert unread_calibrations(tmp_path) == [tmp_path / name] * unread


def test_several_calibrations(tmp_path: Path) -> None:
    one, other = tmp_path / "Calib_a.toml", tmp_path / "calibration" / "intri.yml"
    write_calibration(ring(2), one)
    easymocap(other.parent, in_metres(ring(2), 1000))
    assert find_calibration(tmp_path) == (one, (other,)), "the same cameras, in millimetres"
    easymocap(other.parent, replace(ring(2), K=ring(2).K * [[1.1], [1.1], [1]]))
    with pytest.raises(
        InputError, match=r"several calibrations: Calib_a.toml, calibration/intri.yml; name one"
    ):
        find_calibration(tmp_path)
    other.write_text("%YAML:1.0")
    assert find_calibration(tmp_path) == (one, (other,)), "the one that can be read"
    write_calibration(ring(2), tmp_path / "calibration.toml")
    chosen, others = find_calibration(tmp_path)
    assert chosen is not None
    assert chosen.name == "calibration.toml"
    assert {p.name for p in others} == {"Calib_a.toml", "intri.yml"}


def test_a_toml_of_any_name_is_found_by_its_cameras(tmp_path: Path) -> None:
    write_calibration(ring(2), tmp_path / "rig.toml")
    assert find_calibration(tmp_path) == (tmp_path / "rig.toml", ())
    assert_same_rig(read_calibration(tmp_path / "rig.toml"), ring(2))
    (tmp_path / "rig.toml").write_text((tmp_path / "rig.toml").read_text() + "]")
    with pytest.raises(InputError, match=r"rig\.toml: not TOML"):
        read_calibration(tmp_path / "rig.toml")


def test_no_such_file_and_no_such_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        read_calibration(tmp_path / "calibration.toml")
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(InputError, match=r"calibration\.json: holds no calibration .* Pose2Sim.* EasyMocap"):
        read_calibration(tmp_path / "calibration.json")


def test_two_cameras_in_one_place_are_doubted() -> None:
    rig = ring(3)
    assert calibration_doubts(rig) == []
    rig.R[1], rig.t[1] = rig.R[0], rig.t[0]
    assert "cam01 and cam02 stand in the same place" in calibration_doubts(rig)[0]
