"""Calibrations: what is written is read back, other tools' files are read, bad files get a message."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import BALANCING, ring
from scipy.spatial.transform import Rotation

from pipeline.calibration import calibration_doubts, find_calibration, read_calibration, write_calibration
from pipeline.cameras import Rig
from pipeline.errors import InputError


def assert_same(a: Rig, b: Rig, tolerance: float = 1e-12) -> None:
    assert a.names == b.names
    for name in ("K", "dist", "R", "t"):
        x, y = getattr(a, name), getattr(b, name)
        assert np.abs(x - y).max() <= tolerance * max(1.0, np.abs(x).max()), name
    assert (a.size == b.size).all()


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.toml"
    write_calibration(ring(3), path)
    return path


def test_writing_and_reading_gives_the_same_rig(tmp_path: Path) -> None:
    rig = ring(4)
    rig.dist[1, 4:] = 0
    rig.dist[2, 5:] = 0.1, -0.2, 0.3
    rig.K[0, 0, 1] = 3.5
    write_calibration(rig, tmp_path / "c.toml")
    assert_same(read_calibration(tmp_path / "c.toml"), rig)


@given(
    rotvec=st.tuples(*[st.floats(-4, 4)] * 3),
    name=st.text(
        st.characters(exclude_categories=("Cs",), include_characters="\x7f\n\"'\\ ."), min_size=1, max_size=8
    ),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_rotation_and_any_name_survive(
    tmp_path: Path, rotvec: tuple[float, float, float], name: str
) -> None:
    # Half turns, where a Rodrigues vector loses its direction, are within reach.
    rig = replace(ring(2), names=(name, name + "'"))
    rig.R[0] = Rotation.from_rotvec(rotvec).as_matrix()
    rig.R[1] = Rotation.from_rotvec(np.pi * np.array([1.0, 0, 0])).as_matrix()
    write_calibration(rig, tmp_path / "c.toml")
    assert_same(read_calibration(tmp_path / "c.toml"), rig)


def test_unit_scales_positions_only(toml: Path) -> None:
    rig, mm = read_calibration(toml), read_calibration(toml, metres_per_unit=0.001)
    assert_same(mm, replace(rig, t=rig.t * 0.001))


@pytest.mark.skipif(not BALANCING.exists(), reason="needs the shared balancing recording")
def test_pose2sim_file_of_a_real_recording() -> None:
    rig = read_calibration(BALANCING / "calibration.toml")
    assert rig.names == ("cam01", "cam02", "cam03", "cam04")
    assert rig.size.tolist() == [[1088, 1920]] * 4
    rvec, _ = cv2.Rodrigues(rig.R[2])
    assert np.allclose(rvec[:, 0], [0.7975948684033358, -2.204154235951477, 1.4122848828663128], atol=1e-9)
    assert (rig.dist[:, 4:] == 0).all()
    assert (rig.dist[:, :4] != 0).all()


def test_other_tables_of_anipose_and_caliscope_are_skipped(toml: Path) -> None:
    text = toml.read_text() + "\n[charuco]\ncolumns = 4\n[capture_volume]\nstage = 1\n[aruco]\nsize = 5\n"
    toml.write_text('title = "x"\n' + text)
    assert_same(read_calibration(toml), ring(3))


def easymocap(folder: Path, rig: Rig, *, rotation: str = "both", sizes: bool = True, dist: int = 5) -> Path:
    """The pair as EasyMocap writes it, through OpenCV's own writer."""
    folder.mkdir(parents=True, exist_ok=True)
    intri = cv2.FileStorage(str(folder / "intri.yml"), cv2.FILE_STORAGE_WRITE)
    extri = cv2.FileStorage(str(folder / "extri.yml"), cv2.FILE_STORAGE_WRITE)
    for file in (intri, extri):
        file.startWriteStruct("names", cv2.FileNode_SEQ)
        for name in rig.names:
            file.write("", name)
        file.endWriteStruct()
    for v, name in enumerate(rig.names):
        intri.write(f"K_{name}", rig.K[v])
        intri.write(f"dist_{name}", rig.dist[v, None, :dist])
        if sizes:
            intri.write(f"W_{name}", int(rig.size[v, 0]))
            intri.write(f"H_{name}", int(rig.size[v, 1]))
        if rotation in ("both", "vector"):
            extri.write(f"R_{name}", cv2.Rodrigues(rig.R[v])[0])
        if rotation in ("both", "matrix"):
            extri.write(f"Rot_{name}", rig.R[v])
        extri.write(f"T_{name}", rig.t[v, :, None])
    intri.release()
    extri.release()
    return folder / "intri.yml"


@pytest.mark.parametrize("rotation", ["both", "vector", "matrix"])
def test_easymocap_pair(tmp_path: Path, rotation: str) -> None:
    rig = ring(3)
    assert_same(read_calibration(easymocap(tmp_path, rig, rotation=rotation)), rig, 1e-9)


def test_easymocap_four_coefficients_six_decimals_no_sizes(tmp_path: Path) -> None:
    rig = ring(2)
    path = easymocap(tmp_path, rig, sizes=False, dist=4)
    for file in (path, path.with_name("extri.yml")):
        file.write_text(re.sub(r"(\d\.\d{6})\d+", r"\1", file.read_text()))
    found = read_calibration(path)
    assert (found.size == 0).all()
    assert np.abs(found.R - rig.R).max() < 2e-6
    assert np.abs(found.R @ found.R.transpose(0, 2, 1) - np.eye(3)).max() < 1e-12
    assert (found.dist[:, 4] == 0).all()


def test_easymocap_names_that_lost_their_zeros(tmp_path: Path) -> None:
    rig = replace(ring(2), names=("01", "02"))
    path = easymocap(tmp_path, rig)
    text = path.with_name("extri.yml").read_text()
    text, count = re.subn(r"(- .?|\bT_|\bR_|Rot_)0([12])\b", r"\g<1>\2", text)
    assert count == 8
    path.with_name("extri.yml").write_text(text)
    assert_same(read_calibration(path), rig, 1e-9)


def test_easymocap_without_names_takes_them_from_the_keys(tmp_path: Path) -> None:
    path = easymocap(tmp_path, ring(2))
    for file in (path, path.with_name("extri.yml")):
        file.write_text(re.sub(r"names:\n(   - .*\n)+", "", file.read_text()))
    assert_same(read_calibration(path), ring(2), 1e-9)


BAD_TOML = {
    "cut off": (lambda s: s[: len(s) // 2], "not TOML"),
    "empty": (lambda s: "", "holds no camera"),
    "no rotation": (lambda s: re.sub(r"rotation = .*", "", s, count=1), "'rotation' is missing.*extrinsics"),
    "no matrix": (lambda s: re.sub(r"matrix = .*", "", s, count=1), "'matrix' is missing"),
    "nan": (lambda s: re.sub(r"translation = .*", "translation = [nan, 0, 0]", s), "translation: not finite"),
    "text": (lambda s: re.sub(r"matrix = .*", 'matrix = "K"', s), "matrix: expected numbers, got 'K'"),
    "ragged": (lambda s: re.sub(r"matrix = .*", "matrix = [[1, 2], [3]]", s), "matrix: expected numbers"),
    "8 of 9": (lambda s: re.sub(r"matrix = .*", "matrix = [1, 2, 3, 4, 5, 6, 7, 8]", s), "9 numbers, got 8"),
    "focal": (lambda s: re.sub(r"\[\[\d+", "[[-1", s), "focal lengths must be positive"),
    "focal ratio": (lambda s: re.sub(r"\[\[\d+", "[[9", s), "factor of 2"),
    "last row": (lambda s: s.replace("[0.0, 0.0, 1.0]", "[0.0, 0.0, 2.0]"), "matrix: expected"),
    "centre": (lambda s: s.replace("652.8", "-9000.0"), r"principal point \(-9000.* outside the picture"),
    "tiny picture": (lambda s: s.replace("[1280, 720]", "[0, 720]"), "whole pixels"),
    "half pixel": (lambda s: s.replace("[1280, 720]", "[1280.5, 720]"), "whole pixels"),
    "12 coefficients": (
        lambda s: re.sub(r"distortions = .*", f"distortions = {[0] * 12}", s),
        "12 coefficients .* not supported",
    ),
    "3 coefficients": (lambda s: re.sub(r"distortions = .*", "distortions = [0, 0, 0]", s), "4 or 5 or 8"),
    "fisheye": (lambda s: s.replace("fisheye = false", "fisheye = true"), "fisheye .*undistort"),
    "sheared": (
        lambda s: re.sub(r"rotation = .*", "rotation = [[1, 0.1, 0], [0, 1, 0], [0, 0, 1]]", s),
        "not a rotation",
    ),
    "mirror": (
        lambda s: re.sub(r"rotation = .*", "rotation = [[1, 0, 0], [0, 1, 0], [0, 0, -1]]", s),
        "a mirror",
    ),
    "same name": (lambda s: s.replace('name = "cam02"', 'name = "cam01"'), "two cameras are named 'cam01'"),
    "name": (lambda s: s.replace('name = "cam02"', "name = 2"), "name: expected a text"),
}


@pytest.mark.parametrize("case", BAD_TOML)
def test_bad_toml_is_refused_by_name(toml: Path, case: str) -> None:
    change, message = BAD_TOML[case]
    text = toml.read_text()
    toml.write_text(change(text))
    assert toml.read_text() != text
    with pytest.raises(InputError, match=f"(?s)calibration.toml.*{message}") as caught:
        read_calibration(toml)
    if case not in ("cut off", "empty", "same name"):
        assert "camera 'cam0" in str(caught.value)


BAD_EASYMOCAP = {
    "rotations disagree": (
        "extri.yml",
        r"(R_cam01:[^[]*)\[[^]]*",
        r"\1[0.1,0.2,0.3",
        "Rot_cam01 and R_cam01 are",
    ),
    "no rotation": (
        "extri.yml",
        r"R(ot)?_cam01",
        r"X\1_cam01",
        "Rot_cam01: this key is missing, and so is R_",
    ),
    "no translation": ("extri.yml", "T_cam02", "X_cam02", "T_cam02: this key is missing"),
    "no K": ("intri.yml", "K_cam02", "X_cam02", "K_cam02: this key is missing"),
    "no dist": ("intri.yml", "dist_cam02", "X_cam02", "dist_cam02: this key is missing"),
    "count": ("intri.yml", "cols: 3", "cols: 4", "expected 12 numbers in data, got 9"),
    "no rows": ("intri.yml", "rows: 3", "lines: 3", "rows and cols"),
    "not a number": ("extri.yml", r"(T_cam01:[^[]*)\[[^]]*", r"\1[a, b, c", "T_cam01: expected numbers"),
    "infinite": ("extri.yml", r"(T_cam01:[^[]*)\[[^]]*", r"\1[.Inf, 0, 0", "T_cam01"),
    "other names": ("extri.yml", "- .?cam02.?", "- cam9", "the same"),
    "names not a list": ("intri.yml", r"names:\n(   - .*\n)+", "names: 3\n", "names: expected a list"),
    "not yaml": ("intri.yml", r"\[", "{", "not OpenCV YAML"),
    "no mapping": ("intri.yml", r"(?s).*", "- 1", "not OpenCV YAML"),
    "height": ("intri.yml", "H_cam01: 720", "H_cam01: -720", "whole pixels"),
}


@pytest.mark.parametrize("case", BAD_EASYMOCAP)
def test_bad_easymocap_is_refused_by_name(tmp_path: Path, case: str) -> None:
    file, pattern, by, message = BAD_EASYMOCAP[case]
    path = easymocap(tmp_path, ring(2))
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text(re.sub(pattern, by, text, count=0 if case == "no rotation" else 1))
    with pytest.raises(InputError, match=message) as caught:
        read_calibration(path)
    assert file in str(caught.value)


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.parametrize("kind", ["toml", "yml"])
def test_a_damaged_file_gives_a_rig_or_a_message(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    if kind == "toml":
        path = damaged = tmp_path / "calibration.toml"
        write_calibration(ring(2), path)
    else:
        path = easymocap(tmp_path, ring(2))
        damaged = tmp_path / data.draw(st.sampled_from(["intri.yml", "extri.yml"]))
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


def test_found_by_name(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "calibration"):
        assert find_calibration(tmp_path) == (None, ())
        place.mkdir(exist_ok=True)
        write_calibration(ring(2), place / "Calib_scene.toml")
        assert find_calibration(tmp_path) == (place / "Calib_scene.toml", ())
        (place / "Calib_scene.toml").unlink()
        easymocap(place, ring(2))
        assert find_calibration(tmp_path) == (place / "intri.yml", ())
        (place / "extri.yml").unlink()
        with pytest.raises(InputError, match=r"intri.yml is half of a calibration: extri.yml is missing"):
            find_calibration(tmp_path)
        (place / "intri.yml").unlink()


def test_several_calibrations(tmp_path: Path) -> None:
    write_calibration(ring(2), tmp_path / "Calib_a.toml")
    easymocap(tmp_path / "calibration", ring(2))
    with pytest.raises(
        InputError, match=r"several calibrations: Calib_a.toml, calibration/intri.yml; name one"
    ):
        find_calibration(tmp_path)
    write_calibration(ring(2), tmp_path / "calibration.toml")
    chosen, others = find_calibration(tmp_path)
    assert chosen is not None
    assert chosen.name == "calibration.toml"
    assert {p.name for p in others} == {"Calib_a.toml", "intri.yml"}


def test_no_such_file_and_no_such_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_calibration(tmp_path / "calibration.toml")
    with pytest.raises(InputError, match="not a calibration file"):
        read_calibration(tmp_path / "calibration.json")


def test_two_cameras_in_one_place_are_doubted() -> None:
    rig = ring(3)
    assert calibration_doubts(rig) == []
    rig.R[1], rig.t[1] = rig.R[0], rig.t[0]
    assert "cam01 and cam02 stand in the same place" in calibration_doubts(rig)[0]
