"""EasyMocap's calibrations: pairs as OpenCV writes them, their variants, bad files get a message."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from recordings import assert_same_rig, ring

from pipeline.calibrations import read_calibration
from pipeline.cameras import Rig
from pipeline.errors import InputError


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
    assert_same_rig(read_calibration(easymocap(tmp_path, rig, rotation=rotation)), rig, 1e-9)


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
    assert_same_rig(read_calibration(path), rig, 1e-9)


def test_easymocap_without_names_takes_them_from_the_keys(tmp_path: Path) -> None:
    path = easymocap(tmp_path, ring(2))
    for file in (path, path.with_name("extri.yml")):
        file.write_text(re.sub(r"names:\n(   - .*\n)+", "", file.read_text()))
    assert_same_rig(read_calibration(path), ring(2), 1e-9)


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
    "other names": ("extri.yml", "- .?cam02.?", "- cam9", "the lens of each"),
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
