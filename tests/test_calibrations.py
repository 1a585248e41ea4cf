"""Contract of every calibration format, and the choice among the calibrations of a folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibration_files import BY_HAND, TRUTH, module_of, put
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import assert_same_rig, ring
from test_easymocap import easymocap

from pipeline.calibrations import (
    FORMATS,
    biocv,
    calibration_files,
    colmap,
    find_calibration,
    opencap,
    opencv,
    pose2sim,
    qualisys,
    read_calibration,
    unread_calibrations,
    vicon,
    xrprimer,
)
from pipeline.calibrations import easymocap as easymocap_format
from pipeline.calibrations.checks import calibration_doubts, in_metres
from pipeline.calibrations.pose2sim import write_calibration
from pipeline.cameras import Rig
from pipeline.errors import InputError

WRITERS: Mapping[object, Callable[[Rig, Path], None]] = {
    pose2sim: write_calibration,
    easymocap_format: lambda rig, path: easymocap_format.write_calibration(rig, path.parent),
}

EVERY_FORMAT = pytest.mark.parametrize(
    "form", BY_HAND, ids=lambda f: f[1] if isinstance(f, tuple) else f.__name__.rsplit(".", 1)[-1]
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Called as Human3.6M calls a subject's."""
    (tmp_path / "S1").mkdir()
    return tmp_path / "S1"


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


def test_every_format_is_written_by_hand() -> None:
    assert {module_of(form) for form in BY_HAND} == {*FORMATS}


@EVERY_FORMAT
def test_a_file_written_by_hand_is_found_and_read(folder: Path, form: object) -> None:
    (folder / "notes.txt").write_text("rotation")
    (folder / "settings.toml").write_text("[camera]\nmatrix = 3\n")
    for other in FORMATS:
        assert other.find(folder) == []
    files = put(folder, form)
    for other in FORMATS:
        assert other.find(folder) == ([files] if other is module_of(form) else [])
    assert find_calibration(folder) == (files[0], ())
    for file in files:
        assert calibration_files(file) == files
        rig = read_calibration(file)
        assert_same_rig(rig, BY_HAND[form].truth, 1e-9)
        assert moved_px(BY_HAND[form].truth, rig) < 0.01


@EVERY_FORMAT
def test_a_file_cut_short_is_an_error_by_name(folder: Path, form: object) -> None:
    files = put(folder, form)
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        path, _ = find_calibration(folder)
        assert path == files[0]
        with pytest.raises(InputError, match=file.name):
            read_calibration(path)
        file.write_bytes(whole)


@EVERY_FORMAT
def test_a_file_that_is_missing_is_an_error_by_name(folder: Path, form: object) -> None:
    files = put(folder, form)
    for file in files if module_of(form) in (easymocap_format, colmap) else ():
        whole = file.read_bytes()
        file.unlink()
        path, _ = find_calibration(folder)
        assert path is not None
        with pytest.raises(InputError, match=f"{file.name} is missing"):
            read_calibration(path)
        file.write_bytes(whole)


@pytest.mark.parametrize("form", WRITERS, ids=lambda f: f.__name__.rsplit(".", 1)[-1])
def test_what_is_written_reads_back(tmp_path: Path, form: object) -> None:
    lens = np.array([0.05, -0.02, 0.004, -0.001, 0, 0, 0, 0])
    fisheye = replace(TRUTH, dist=np.stack([lens, TRUTH.dist[0]]), fisheye=(True, False))
    rational = replace(TRUTH, dist=TRUTH.dist + 0.01, names=("vorne ü", "1"))
    for k, rig in enumerate((TRUTH, ring(4), rational, fisheye)):
        if form is easymocap_format and any(rig.fisheye):
            with pytest.raises(InputError, match="front: EasyMocap's format holds no fisheye lens"):
                WRITERS[form](rig, tmp_path / "intri.yml")
            continue
        folder = tmp_path / str(k)
        folder.mkdir()
        WRITERS[form](rig, folder / next(iter(BY_HAND[form].files)))
        path, _ = find_calibration(folder)
        assert path is not None
        assert read_calibration(path).fisheye == rig.fisheye
        assert read_calibration(path).names == rig.names
        assert moved_px(rig, read_calibration(path)) < 0.01


@EVERY_FORMAT
def test_unit_scales_positions_only(folder: Path, form: object) -> None:
    path = put(folder, form)[0]
    rig, mm = read_calibration(path), read_calibration(path, metres_per_unit=0.001)
    assert_same_rig(mm, replace(rig, t=rig.t * 0.001))


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@EVERY_FORMAT
def test_a_damaged_file_gives_a_rig_or_a_message(folder: Path, form: object, data: st.DataObject) -> None:
    files = put(folder, form)
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
        assert str(folder) in str(error)  # noqa: PT017
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
        "Kalibrierung",
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
    with pytest.raises(InputError, match=r"calibration\.json: holds no calibration .* Pose2Sim.*COLMAP"):
        read_calibration(tmp_path / "calibration.json")


def test_two_cameras_in_one_place_are_doubted() -> None:
    rig = ring(3)
    assert calibration_doubts(rig) == []
    rig.R[1], rig.t[1] = rig.R[0], rig.t[0]
    assert "cam01 and cam02 stand in the same place" in calibration_doubts(rig)[0].sentence
    rig = ring(3)
    rig.K[1, 0, 0] *= 1.02
    assert calibration_doubts(rig) == []
    rig.K[1, 0, 0] *= 1.02
    assert [(f.code, f.camera) for f in calibration_doubts(rig)] == [("pixels_not_square", "cam02")]


_NULL = '"null"'
TABLE = """
size = [1280, 720]
matrix = [[1000, 0, 640], [0, 1010, 360], [0, 0, 1]]
distortions = [0.1, -0.05, 0.001, -0.002, 0.02]
translation = [0.5, -1, 4]
"""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        # caliscope today: a table by number, without the keys that are not known.
        (
            f"[cameras.0]\ncam_id = 0\nerror = 0.4{TABLE}rotation = [1.2091996, 1.2091996, 1.2091996]\n"
            f"fisheye = false\n[cameras.3]\ncam_id = 3{TABLE}rotation = [0, 0, 0]\n",
            ("cam_0", "cam_3"),
        ),
        # caliscope's older file: flat, a matrix for the rotation, one camera to be ignored.
        (
            f"[cam_0]\nport = 0\nignore = false{TABLE}rotation = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]\n"
            f"[cam_1]\nport = 1\nignore = true{TABLE}[charuco]\ncolumns = 4\n",
            ("cam_0",),
        ),
        # FreeMoCap.
        (
            f'[cam_0]\nname = "cam_0"{TABLE}rotation = [1.2091996, 1.2091996, 1.2091996]\n'
            "[metadata]\nadjusted = false\nerror = 0.0\n",
            ("cam_0",),
        ),
        # caliscope's cameras that it has not placed, then and today.
        (
            f"[cameras.0]{TABLE}rotation = [1.2091996, 1.2091996, 1.2091996]\n"
            f"[cameras.1]{TABLE.replace('[0.5, -1, 4]', _NULL)}rotation = {_NULL}\n[cameras.2]{TABLE}",
            ("cam_0",),
        ),
        # Its older file holds the pairs of cameras, too.
        (
            f"[cam_0]{TABLE}rotation = [1.2091996, 1.2091996, 1.2091996]\n"
            "[stereo_0_1]\nRMSE = 0.4\nrotation = [[1, 0, 0]]\ntranslation = [[0.1]]\n",
            ("cam_0",),
        ),
    ],
)
def test_flavours_of_toml(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    (tmp_path / "camera_array.toml").write_text(text)
    path, _ = find_calibration(tmp_path)
    assert path == tmp_path / "camera_array.toml"
    rig = read_calibration(path)
    assert rig.names == names
    assert_same_rig(replace(rig.select(names[:1]), names=("front",)), TRUTH.select(("front",)), 1e-6)


@pytest.mark.parametrize(
    ("form", "change"),
    [
        (vicon, ('TYPE="Vue (video)"', 'TYPE="FLIR" SYSTEM="DV"')),
        (vicon, ("</Cameras>", '<Camera DEVICEID="new" TYPE="VIDEO"><KeyFrames/></Camera></Cameras>')),
        (qualisys, ("Miqus Video", "Miqus Hybrid")),
        (qualisys, ("</cameras>", '<camera calibrated="false" serial="new" model="Miqus Video"/></cameras>')),
    ],
)
def test_the_video_cameras_that_are_calibrated_count(
    tmp_path: Path, form: object, change: tuple[str, str]
) -> None:
    (file,) = put(tmp_path, form)
    assert change[0] in file.read_text()
    file.write_text(file.read_text().replace(*change))
    assert_same_rig(read_calibration(file), BY_HAND[form].truth, 1e-9)


def test_intri_of_easymocap_may_hold_more_cameras(tmp_path: Path) -> None:
    put(tmp_path, easymocap_format)
    extri = tmp_path / "extri.yml"
    text = extri.read_text().replace('   - "front"\n', "")
    extri.write_text(text.split("R_front")[0] + "R_side" + text.split("R_side", 1)[1])
    assert_same_rig(read_calibration(extri), TRUTH.select(("side",)))


@pytest.mark.parametrize("place", ["{}", "Videos/{}"])
def test_opencaps_pickles_lie_in_the_folders_of_the_cameras(tmp_path: Path, place: str) -> None:
    for name, content in BY_HAND[opencap].files.items():
        folder = tmp_path / place.format(name.split("_")[1].removesuffix(".pickle"))
        folder.mkdir(parents=True)
        (folder / "cameraIntrinsicsExtrinsics.pickle").write_bytes(content)
    path, _ = find_calibration(tmp_path)
    assert path is not None
    assert_same_rig(read_calibration(path), TRUTH, 1e-9)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (opencap, ("front.pickle", "side.pickle")),
        (biocv, ("front", "side")),
        (opencv, ("front.yml", "side.yml")),
    ],
    ids=["opencap", "biocv", "opencv"],
)
def test_files_under_other_names_are_found_by_content(
    tmp_path: Path, form: object, names: tuple[str, ...]
) -> None:
    for path, name in zip(put(tmp_path, form), names, strict=True):
        content = path.read_bytes().replace(b"camera_matrix:", b"K:")
        path.unlink()
        (tmp_path / name).write_bytes(content)
    assert find_calibration(tmp_path) == (tmp_path / names[0], ())
    assert_same_rig(read_calibration(tmp_path / names[0]), TRUTH, 1e-9)


def test_files_of_biocv_without_a_suffix_may_have_many_digits(tmp_path: Path) -> None:
    for path in put(tmp_path, biocv):
        width, height, *rows = path.read_text().split("\n", 2)
        first, rest = rows[0].lstrip("\n").split("\n", 1)
        long = " ".join(f"{float(n):.25f}" for n in first.split())
        (tmp_path / path.stem).write_text(f"{width}\n{height}\n\n{long}\n{rest}")
        path.unlink()
    assert find_calibration(tmp_path)[0] is not None


def test_a_pickle_that_runs_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Cam0").mkdir()
    file = tmp_path / "Cam0" / "cameraIntrinsicsExtrinsics.pickle"
    file.write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path / "ran") + b"'\ntR.")
    with pytest.raises(InputError, match=r"pickle: holds more than arrays, os.system"):
        read_calibration(file)
    assert not (tmp_path / "ran").exists()


def test_vicons_lens_leads_from_the_picture_to_the_ideal_camera(tmp_path: Path) -> None:
    """Up to 40 pixels: Vicon's own formula, and OpenCV's coefficients that were fitted to it."""
    text = BY_HAND[vicon].files["session.xcp"].replace("640 360 0 0 0", "643 358 1.2e-7 3e-14 1e-20")
    text = text.replace("0.99009900990099009901", "1")
    (tmp_path / "session.xcp").write_text(text)
    rig = read_calibration(tmp_path / "session.xcp")
    seen = np.random.default_rng(0).uniform((0, 0), (1279, 719), (1000, 2))
    off = seen - (643, 358)
    r2 = (off**2).sum(1, keepdims=True)
    ideal = off * (1 + 1.2e-7 * r2 + 3e-14 * r2**2 + 1e-20 * r2**3) + (643, 358)
    assert np.abs(ideal - seen).max() > 20
    assert np.abs(rig.undistort(0, seen) - ideal).max() < 0.1


def test_distortion_that_pose2sim_took_from_qualisys_is_64_times_as_large(tmp_path: Path) -> None:
    divided = replace(TRUTH, dist=TRUTH.dist / 64)
    write_calibration(divided, tmp_path / "Calib_qualisys.toml")
    assert_same_rig(read_calibration(tmp_path / "Calib_qualisys.toml"), TRUTH, 1e-9)
    assert pose2sim.is_corrected(tmp_path / "Calib_qualisys.toml")
    for rig, name in ((TRUTH, "Calib_qualisys.toml"), (divided, "Calib_scene.toml")):
        write_calibration(rig, tmp_path / name)
        assert_same_rig(read_calibration(tmp_path / name), rig, 1e-9)
        assert not pose2sim.is_corrected(tmp_path / name)


@pytest.mark.parametrize(
    ("lens", "dist", "fisheye"),
    [
        ("PINHOLE 1280 720 1000 1010 640.5 360.5", (0, 0, 0, 0), False),
        ("OPENCV 1280 720 1000 1010 640.5 360.5 0.1 -0.05 0.01 -0.02", (0.1, -0.05, 0.01, -0.02), False),
        ("OPENCV_FISHEYE 1280 720 1000 1010 640.5 360.5 0.1 0.05 0.01 0.02", (0.1, 0.05, 0.01, 0.02), True),
    ],
)
def test_colmaps_lenses(tmp_path: Path, lens: str, dist: tuple[float, ...], fisheye: bool) -> None:
    put(tmp_path, colmap)
    (tmp_path / "cameras.txt").write_text(
        f"# Camera list with one line of data per camera:\n1 {lens}\n"
        "2 SIMPLE_PINHOLE 1920 1080 1400 950.5 530.5\n"
    )
    rig = read_calibration(tmp_path / "images.txt")
    assert_same_rig(rig, replace(TRUTH, dist=np.array([[*dist, 0, 0, 0, 0], [0] * 8])), 1e-9)
    assert rig.fisheye == (fisheye, False)


def test_a_camera_of_colmap_that_moves_is_refused(tmp_path: Path) -> None:
    put(tmp_path, colmap)
    file = tmp_path / "images.txt"
    file.write_text(file.read_text().replace("side.png", "front/000002.jpg"))
    with pytest.raises(InputError, match="'front' moves from image to image"):
        read_calibration(file)


def test_many_images_of_one_lens_are_of_a_camera_that_moves(tmp_path: Path) -> None:
    put(tmp_path, colmap)
    rows = "".join(f"{n} 0.5 0.5 0.5 0.5 {n} -1 4 1 frame_{n:04d}.jpg\n\n" for n in range(30))
    (tmp_path / "images.txt").write_text("# Image list with two lines of data per image:\n" + rows)
    with pytest.raises(InputError, match=r"30 images of one lens, the first called frame_0000\.jpg"):
        read_calibration(tmp_path / "images.txt")
    (tmp_path / "images.txt").write_text((tmp_path / "images.txt").read_text().replace("frame_", "cam"))
    assert read_calibration(tmp_path / "images.txt").names == tuple(f"cam{n:04d}" for n in range(30))


def test_colmaps_heading_may_follow_another_comment(tmp_path: Path) -> None:
    files = put(tmp_path, colmap)
    for file in files:
        file.write_text("# Exported by another tool\n" + file.read_text())
    assert colmap.find(tmp_path) == [tuple(files)]


def test_cameras_of_colmap_whose_images_share_a_folder(tmp_path: Path) -> None:
    cameras, images = put(tmp_path, colmap)
    text = images.read_text().replace("front/000001.jpg", "images/front.png")
    images.write_text(text.replace("side.png", "images/side.png"))
    assert_same_rig(read_calibration(cameras), TRUTH, 1e-7)


def test_a_single_pickle_of_opencap_under_another_name_is_called_so(tmp_path: Path) -> None:
    content = BY_HAND[opencap].files["cameraIntrinsicsExtrinsics_front.pickle"]
    (tmp_path / "front.pickle").write_bytes(content if isinstance(content, bytes) else b"")
    assert read_calibration(tmp_path / "front.pickle").names == ("front",)


@pytest.mark.parametrize(
    ("keys", "marks"),
    [
        ("K1 D1 K2 D2", "12"),
        ("cameraMatrix1 distCoeffs1 cameraMatrix2 distCoeffs2", "12"),
        ("left_camera_matrix left_dist_coeffs right_camera_matrix right_dist_coeffs", ("left", "right")),
        ("mtxL distL mtxR distR", "lr"),
        ("camera_matrix_0 distortion_coefficients_0 camera_matrix_1 distortion_coefficients_1", "01"),
    ],
)
def test_spellings_of_a_stereo_pair(tmp_path: Path, keys: str, marks: tuple[str, ...]) -> None:
    (file,) = put(tmp_path, (opencv, "stereo"))
    text = file.read_text()
    for old, new in zip(("M1", "D1", "M2", "D2"), keys.split(), strict=True):
        text = text.replace(f"{old}:", f"{new}:")
    file.write_text(text)
    assert find_calibration(tmp_path) == (file, ())
    assert_same_rig(
        read_calibration(file), replace(BY_HAND[opencv, "stereo"].truth, names=tuple(marks)), 1e-9
    )


def test_an_omnidirectional_lens_is_refused(tmp_path: Path) -> None:
    first, _ = put(tmp_path, xrprimer)
    first.write_text(first.read_text().replace('"k4"', '"xi": [0], "k4"'))
    assert_same_rig(read_calibration(first), TRUTH, 1e-9)
    first.write_text(first.read_text().replace('"xi": [0], "k4"', '"k4"'))
    first.write_text(first.read_text().replace('"k4"', '"xi": 1.2, "k4"'))
    with pytest.raises(InputError, match="xi"):
        read_calibration(first)


def test_more_files_than_cameras_are_no_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        (tmp_path / f"{number}.json").write_text('{"extrinsic_r": 0}')
    assert [len(files) for files in xrprimer.find(tmp_path)] == [3]
    monkeypatch.setattr(xrprimer, "MAX_CAMERAS", 2)
    assert xrprimer.find(tmp_path) == []
