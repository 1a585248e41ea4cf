"""TOML calibrations: written ones read back, other tools' tables are skipped, bad files get a message."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import BALANCING, assert_same_rig, ring
from scipy.spatial.transform import Rotation

from pipeline.calibrations import read_calibration
from pipeline.calibrations.pose2sim import write_calibration
from pipeline.errors import InputError


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
    assert_same_rig(read_calibration(tmp_path / "c.toml"), rig)


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
    assert_same_rig(read_calibration(tmp_path / "c.toml"), rig)


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
    assert_same_rig(read_calibration(toml), ring(3))


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
    "focal ratio": (lambda s: re.sub(r"\[\[\d+", "[[9", s), "which no camera has"),
    "skew": (lambda s: re.sub(r"matrix = \[\[([\d.]+), 0.0", r"matrix = [[\1, 90.0", s), "a skew of 90"),
    "last row": (lambda s: s.replace("[0.0, 0.0, 1.0]", "[0.0, 0.0, 2.0]"), "matrix: expected"),
    "centre": (lambda s: s.replace("652.8", "-9000.0"), r"principal point \(-9000.* outside the picture"),
    "tiny picture": (lambda s: s.replace("[1280, 720]", "[0, 720]"), "whole pixels"),
    "half pixel": (lambda s: s.replace("[1280, 720]", "[1280.5, 720]"), "whole pixels"),
    "12 coefficients": (
        lambda s: re.sub(r"distortions = .*", f"distortions = {[0] * 12}", s),
        "12 coefficients .* not supported",
    ),
    "3 coefficients": (lambda s: re.sub(r"distortions = .*", "distortions = [0, 0, 0]", s), "4 or 5 or 8"),
    "fisheye": (lambda s: s.replace("fisheye = false", "fisheye = 1"), "fisheye: expected true or false"),
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
