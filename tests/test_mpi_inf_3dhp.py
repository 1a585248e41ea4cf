"""MPI-INF-3DHP from small trees of its layout. No real file was at hand: names and shapes are SPIN's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mpi_tree import (
    AWAY,
    CAMERAS,
    JOINTS_17,
    JOINTS_28,
    K,
    calibration,
    make_test,
    make_train,
    project,
    truth,
)
from scipy.spatial.transform import Rotation

from models.datasets.mpi_inf_3dhp import fit_pinhole, missing, parts, rows
from models.datasets.rows import openpose_file, to_arrays, with_detection
from pipeline.calibrations import skeletool
from pipeline.errors import InputError
from pipeline.skeleton import BODY_25, EXTRA_24, EXTRA_24_OF_H36M_17

NAME = {"Pelvis (MPII)": "pelvis", "Spine (H36M)": "spine", "Neck (LSP)": "neck", "Jaw (H36M)": "head"}
NAME["Head (H36M)"] = "head_top"


def expected(name: str) -> str:
    """The data set's name of an EXTRA_24 joint."""
    return NAME.get(name) or f"{'left' if name[0] == 'L' else 'right'}_{name[1:].lower()}"


def test_pictures_are_paired_by_their_number(tmp_path: Path) -> None:
    (part,) = parts(make_train(tmp_path), "train")
    assert missing((part,)) == "1 of 16 sequences are there"
    got = list(rows(part, 1))
    of_4 = [r for r in got if r.camera == "video_4"]
    assert [int(r.id[-6:]) for r in of_4] == [*range(1, 6), *range(7, 24)]
    for r in got:
        i = int(Path(r.imgname).stem.split("_")[1]) - 1
        xyz = truth(int(r.camera[-1]))[i]
        for j in EXTRA_24_OF_H36M_17:
            at = JOINTS_28.index(expected(EXTRA_24.names[j]))
            np.testing.assert_allclose(r.part[j], [*project(xyz)[at], 1], err_msg=EXTRA_24.names[j])
            want = (xyz[at] - xyz[JOINTS_28.index("pelvis")]) / 1000
            np.testing.assert_allclose(r.S[j], [*want, 1], atol=1e-12, err_msg=EXTRA_24.names[j])
        rest = [j for j in range(24) if j not in EXTRA_24_OF_H36M_17]
        assert not r.S[rest].any()
        assert not r.part[rest].any()


def test_views_of_an_instant_are_one_group(tmp_path: Path) -> None:
    (part,) = parts(make_train(tmp_path), "train")
    arrays = to_arrays(list(rows(part, 10)))
    assert sorted(arrays["imgname"].tolist()) == [
        # Frame 11 of camera 0 has a joint outside of the picture; camera 4 keeps it all the same.
        "S1/Seq1/imageFrames/video_0/frame_000001.jpg",
        "S1/Seq1/imageFrames/video_0/frame_000021.jpg",
        "S1/Seq1/imageFrames/video_4/frame_000001.jpg",
        "S1/Seq1/imageFrames/video_4/frame_000011.jpg",
        "S1/Seq1/imageFrames/video_4/frame_000021.jpg",
    ]
    frames = [name[-10:-4] for name in arrays["imgname"]]
    for a in range(5):
        for b in range(5):
            assert (arrays["group"][a] == arrays["group"][b]) == (frames[a] == frames[b])
    assert arrays["id"][0] == "mpi-inf-3dhp/S1/Seq1/video_0/000001"


def test_cameras_are_theirs_in_metres(tmp_path: Path) -> None:
    (part,) = parts(make_train(tmp_path), "train")
    row = next(r for r in rows(part, 10) if r.camera == "video_4")
    np.testing.assert_allclose(row.K, K + np.diag([4, 4, 0]))
    np.testing.assert_allclose(row.t, [4.0, 0, 3.5])
    np.testing.assert_allclose(row.R, Rotation.from_rotvec([0, 0.4, 0]).as_matrix(), atol=1e-12)


def test_a_box_is_a_fifth_larger_than_the_joints(tmp_path: Path) -> None:
    (part,) = parts(make_train(tmp_path), "train")
    row = next(rows(part, 10))
    known = row.part[row.part[:, 2] > 0, :2]
    assert row.box[2] == pytest.approx(1.2 * np.ptp(known, axis=0).max())
    np.testing.assert_allclose(row.box[:2], (known.min(0) + known.max(0)) / 2)


def test_frames_of_videos_count_from_zero(tmp_path: Path) -> None:
    (part,) = parts(make_train(tmp_path, videos=True), "train")
    got = [r for r in rows(part, 10) if r.camera == "video_0"]
    assert [r.imgname for r in got] == [f"S1/Seq1/imageSequence/video_0.avi#{i}" for i in (0, 20)]
    xyz = truth(0)[20]
    want = (xyz[JOINTS_28.index("left_knee")] - xyz[JOINTS_28.index("pelvis")]) / 1000
    np.testing.assert_allclose(got[1].S[EXTRA_24.index("LKnee"), :3], want)


@pytest.mark.parametrize("spaces", [" ", "   ", "\t"])
def test_calibration_is_read_by_its_words(tmp_path: Path, spaces: str) -> None:
    file = tmp_path / "camera.calibration"
    file.write_text(calibration(spaces))
    rig = skeletool.read((file,))
    assert rig.names == tuple(str(c) for c in range(CAMERAS))
    assert rig.size.tolist() == [[2048, 2048]] * CAMERAS
    for c in range(CAMERAS):
        k, r, t = rig.K[c], rig.R[c], rig.t[c]
        np.testing.assert_allclose(k, K + np.diag([c, c, 0]))
        np.testing.assert_allclose(r, Rotation.from_rotvec([0, 0.1 * c, 0]).as_matrix(), atol=1e-12)
        np.testing.assert_allclose(t, [c, 0, 3.5])


def test_the_test_set_is_scored_on_univ_annot3(tmp_path: Path) -> None:
    (part,) = parts(make_test(tmp_path), "test")
    got = list(rows(part, 1))
    assert [r.imgname[-10:-4] for r in got] == ["000001", "000003"]  # 2 is not valid, 4 leaves the picture
    assert [r.action for r in got] == ["Standing/Walking", "Sitting"]
    xyz = np.random.default_rng(9).uniform(-400, 400, (4, 17, 3)) + AWAY
    for r, i in zip(got, (0, 2), strict=True):
        for j in EXTRA_24_OF_H36M_17:
            at = JOINTS_17.index(expected(EXTRA_24.names[j]))
            want = 0.9 * (xyz[i, at] - xyz[i, JOINTS_17.index("pelvis")]) / 1000
            np.testing.assert_allclose(r.S[j], [*want, 1], atol=1e-12, err_msg=EXTRA_24.names[j])
        assert r.id == f"mpi-inf-3dhp/TS1/test/video_0/{i + 1:06d}"


def test_the_test_sets_cameras_follow_from_its_points() -> None:
    xyz = np.random.default_rng(1).uniform(-500, 500, (30, 17, 3)) + AWAY
    np.testing.assert_allclose(fit_pinhole(xyz, project(xyz)), K, rtol=1e-9)


def test_what_is_wrong_is_said_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no S1/Seq1/annot\.mat"):
        parts(tmp_path, "train")
    root = make_train(tmp_path / "train")
    folder = root / "S1" / "Seq1"
    (part,) = parts(root, "train")
    (folder / "camera.calibration").write_text("name 0")
    with pytest.raises(InputError, match="Skeletool"):
        list(rows(part, 10))
    (folder / "camera.calibration").write_text(calibration().replace("  intrinsic", "  unknown", 1))
    with pytest.raises(InputError, match="camera '0': intrinsic is missing"):
        list(rows(part, 10))
    (folder / "annot.mat").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"annot\.mat: cannot be read .*Download it again"):
        list(rows(part, 10))
    root = make_test(tmp_path / "test")
    (part,) = parts(root, "test")
    picture = root / part.name / "imageSequence" / "img_000003.jpg"
    picture.unlink()
    with pytest.raises(InputError, match=r"img_000003.jpg: is not there"):
        list(rows(part, 1))


def test_more_pictures_than_annotations_and_all_subjects_are_taken(tmp_path: Path) -> None:
    root = make_train(tmp_path)
    frames = root / "S1/Seq1/imageFrames/video_4"
    (frames / "frame_000024.jpg").touch()
    (root / "S8" / "Seq2").mkdir(parents=True)
    (root / "S8" / "Seq2" / "annot.mat").touch()
    first, last = parts(root, "train")
    assert last.name == "S8/Seq2"
    assert max(int(r.id[-6:]) for r in rows(first, 1)) == 23


@pytest.mark.parametrize("videos", [False, True])
def test_openpose_is_paired_by_the_frame_too(tmp_path: Path, videos: bool) -> None:
    (part,) = parts(make_train(tmp_path / "root", videos), "train")
    openpose, shift = tmp_path / "openpose", np.array([2.0, 0, 0])
    for row in rows(part, 10):
        person = np.zeros((25, 3))
        person[[BODY_25.index(n) for n in EXTRA_24.names[:12]]] = row.part[:12] + shift
        file = openpose_file(openpose, row.imgname)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"people": [{"pose_keypoints_2d": person.ravel().tolist()}]}))
    assert len(list(openpose.rglob("*.json"))) == 5
    for row in (with_detection(row, openpose) for row in rows(part, 10)):
        for name in EXTRA_24.names[:12]:
            want = row.part[EXTRA_24.index(name)] + shift
            np.testing.assert_allclose(row.openpose[BODY_25.index(name)], want, rtol=1e-6)


def test_a_calibration_without_a_rotation_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "camera.calibration"
    lines = calibration().splitlines()
    at = next(i for i, line in enumerate(lines) if "extrinsic" in line)
    lines[at] = "extrinsic " + " ".join(["1"] * 16)
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match="camera '0', extrinsic: not a rotation"):
        skeletool.read((file,))
