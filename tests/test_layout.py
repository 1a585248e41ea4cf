"""Layouts of a recording's folder: what is found, and which names belong together."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recordings import SMALL as SIZE
from recordings import SMALL_PEOPLE as PEOPLE
from recordings import SMALL_RIG as RIG
from recordings import (
    add_videos,
    figure,
    ring,
    said,
    seen,
    state,
    write_recording,
    write_video,
)

from pipeline.calibrations.pose2sim import write_calibration
from pipeline.errors import InputError
from pipeline.layout import is_recording, sources
from pipeline.recording import Recording, find_recording, open_videos

TIME = np.arange(24) / 10


def codes(found: Recording) -> set[str]:
    return {finding.code for finding in found.findings}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "rec", RIG, [PEOPLE])


@pytest.mark.parametrize(
    "layout", ["keypoints/{}", "keypoints/{}_json", "{}_json", "pose/{}_json", "OpenPose/{}"]
)
@pytest.mark.parametrize("videos", ["videos", "video", "."])
def test_layouts(tmp_path: Path, layout: str, videos: str) -> None:
    folder = write_recording(tmp_path, RIG, [PEOPLE], keypoints=layout)
    write_video(folder / videos / "cam02.mp4", 24, size=SIZE, rate=10)
    found = find_recording(folder)
    assert [v is not None for v in found.videos] == [False, True, False]
    assert all(files is not None and len(files) == 24 for files in found.keypoints)
    assert said(found, "cam01 has keypoints but no video: it is drawn on grey")


def test_pose2sim_project(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, RIG, [PEOPLE], keypoints="pose/{}_json")
    shutil.copytree(folder / "pose", folder / "pose-associated")
    (folder / "calibration").mkdir()
    (folder / "calibration.toml").rename(folder / "calibration" / "Calib_scene.toml")
    (folder / "Config.toml").write_text("[project]\nframe_rate = 'auto'\n")
    found = find_recording(folder)
    assert dict(found.notes)["calibration"] == "calibration/Calib_scene.toml"
    assert said(found, r"keypoints are taken from pose/; pose-associated/ not used .*path: ")
    state(folder, "{keypoints: {path: pose-associated}, fps: 10}")
    found = find_recording(folder)
    assert found.warnings == ()
    assert all(files and files.path.parent.name == "pose-associated" for files in found.keypoints)


def test_an_easymocap_project(tmp_path: Path) -> None:
    from test_calibrations import easymocap

    rig = replace(RIG, names=("1", "2", "3"))
    folder = write_recording(tmp_path, rig, [PEOPLE], keypoints="openpose/{}")
    (folder / "calibration.toml").unlink()
    easymocap(folder, rig, sizes=False)
    for name in rig.names:
        write_video(folder / "videos" / f"{name}.mp4", 24, size=SIZE, rate=10)
    found = find_recording(folder)
    assert found.rig.size.tolist() == [list(SIZE)] * 3
    assert said(found, r"intri.yml has no picture size for camera 1: taken as the video's, 320x180")
    shutil.rmtree(folder / "videos")
    found = find_recording(folder)
    assert said(found, "twice the principal point")
    assert found.rig.size[0].tolist() == [round(2 * 0.51 * 320 + 1), round(2 * 0.48 * 180 + 1)]


def test_names_that_differ_are_paired_in_sorted_order(tmp_path: Path) -> None:
    calibrated = replace(RIG, names=("int_2_img", "int_10_img", "int_11_img"))
    folder = write_recording(tmp_path, RIG, [PEOPLE], calibrated=calibrated)
    add_videos(folder)
    found = find_recording(folder)
    assert said(found, "videos differ: paired in sorted order: int_2_img = cam01, int_10_img = cam02")
    assert found.rig.names == ("cam01", "cam02", "cam03")
    assert np.allclose(found.rig.t, RIG.t)
    assert len(found.warnings) == 1


def folders_of(found: Recording) -> list[str]:
    return [files.path.name for files in found.keypoints if files]


def test_one_name_that_differs_moves_no_other_camera(tmp_path: Path) -> None:
    rig = ring(4, size=SIZE)
    people = seen(rig, figure(TIME), noise_px=0.2)
    calibrated = replace(rig, names=("cam01", "cam02", "camera3", "cam04"))
    folder = write_recording(tmp_path / "a", rig, [people], calibrated=calibrated)
    state(folder, "fps: 10")
    for what in ("keypoints", "videos"):
        if what == "videos":
            state(folder, "")
            for name in rig.names:
                write_video(folder / "videos" / f"{name}.mp4", 24, size=SIZE, rate=10)
        found = find_recording(folder)
        assert [*found.rig.names] == folders_of(found) == [*rig.names]
        assert np.allclose(found.rig.t, rig.t)
        assert len(found.warnings) == 1, found.warnings
        assert said(found, f"camera camera3 of the calibration is taken to be cam03 of the {what}, as each")

    # Keypoints that are called otherwise than video and calibration.
    other = replace(rig, names=("cam01", "cam02", "third", "cam04"))
    folder = write_recording(tmp_path / "b", other, [people], calibrated=rig)
    for name in rig.names:
        write_video(folder / "videos" / f"{name}.mp4", 24, size=SIZE, rate=10)
    found = find_recording(folder)
    assert folders_of(found) == ["cam01", "cam02", "third", "cam04"]
    assert found.rig.names == rig.names
    assert len(found.warnings) == 1, found.warnings
    assert said(found, "camera cam03 of the calibration is taken to be third of the keypoints")


@pytest.mark.parametrize(
    ("calibrated", "files"),
    [
        (("Camera2", "Camera3", "Camera1"), ("cam01", "cam02", "cam03")),
        (("int_cam3_img", "int_cam1_img", "int_cam2_img"), ("cam_01", "cam_02", "cam_03")),
        (("cam1", "cam2", "cam3"), ("2024-05-01_cam01_t7", "2024-05-01_cam02_t7", "2024-05-01_cam03_t7")),
        (("left", "right", "top"), ("trial_2_Left", "trial_2_Right", "trial_2_Top")),
        (("GoPro Left", "GoPro Right", "カメラ1"), ("GoPro_Left", "gopro-right", "カメラ１")),
    ],
)
def test_names_that_are_told_apart_by_the_same_match(
    tmp_path: Path, calibrated: tuple[str, ...], files: tuple[str, ...]
) -> None:
    """Also where there are fewer videos than calibrated cameras."""
    order = sorted(range(3), key=lambda v: calibrated[v])
    folder = write_recording(
        tmp_path,
        replace(RIG.select([RIG.names[v] for v in order]), names=files),
        [PEOPLE],
        calibrated=replace(RIG, names=calibrated),
    )
    for gone in ((), (files[1],)):
        for name in gone:
            shutil.rmtree(folder / "keypoints" / name)
        found = find_recording(folder)
        assert not [f.code for f in found.findings if f.code.startswith("name")]
        kept = [v for v, name in zip(order, files, strict=True) if name not in gone]
        at = [found.rig.names.index(name) for name in files if name not in gone]
        assert np.allclose(found.rig.t[at], RIG.t[kept])


def test_recording_yaml_states_the_pairing(tmp_path: Path) -> None:
    calibrated = replace(RIG, names=("right", "2", "left"))
    folder = write_recording(tmp_path, RIG, [PEOPLE], calibrated=calibrated)
    stated = "calibration: {names: {cam01: RIGHT, cam02: 2, cam03: left}}"
    (folder / "recording.yaml").write_text(stated)
    found = find_recording(folder)
    assert found.rig.names == RIG.names
    assert np.allclose(found.rig.t, RIG.t)
    assert not [f.code for f in found.findings if f.code.startswith("name")]
    (folder / "recording.yaml").write_text("calibration: {names: {cam01: lift}}")
    with pytest.raises(InputError, match="has no camera 'lift'; it has 2, left, right"):
        find_recording(folder)


def test_keypoints_follow_the_names_of_the_videos(tmp_path: Path) -> None:
    """Where nothing is called as the calibration says, too."""
    calibrated = replace(RIG, names=("int_2_img", "int_10_img", "int_11_img"))
    other = replace(RIG, names=("CAM1", "third", "cam03"))
    folder = write_recording(tmp_path, other, [PEOPLE], calibrated=calibrated)
    add_videos(folder)
    found = find_recording(folder)
    assert folders_of(found) == ["CAM1", "third", "cam03"]
    assert said(found, "camera int_10_img of the calibration is taken to be third of the keypoints")
    assert np.allclose(found.rig.t, RIG.t)


@pytest.mark.parametrize(
    ("calibrated", "message"),
    [
        (("cam01", "left", "right"), "which of left, right is meant by cam02, cam03; rename one side"),
        (("cam02", "cam03", "cam04"), "may count from different numbers, or one name may be wrong; rename"),
        (("cam01", "cam02"), "the calibration has no camera for cam03; rename one side or move"),
    ],
)
def test_names_that_do_not_tell_are_refused(
    tmp_path: Path, calibrated: tuple[str, ...], message: str
) -> None:
    rig = replace(RIG.select(RIG.names[: len(calibrated)]), names=calibrated)
    folder = write_recording(tmp_path, RIG, [PEOPLE], calibrated=rig)
    with pytest.raises(InputError, match=message):
        find_recording(folder)


def test_a_refusal_lists_the_names_that_count_from_elsewhere(tmp_path: Path) -> None:
    calibrated = replace(RIG, names=("int_2_img", "int_10_img", "int_11_img"))
    other = replace(RIG, names=("cam02", "cam03", "cam04"))
    folder = write_recording(tmp_path, other, [PEOPLE], calibrated=calibrated)
    add_videos(folder)
    with pytest.raises(
        InputError,
        match="of the cameras cam02, cam03, cam04, the videos of cam01, cam02, cam03: they may count from",
    ):
        find_recording(folder)


def without_calibration(folder: Path) -> Recording:
    (folder / "calibration.toml").unlink(missing_ok=True)
    return find_recording(folder)


def test_without_a_calibration_one_other_name_is_paired_and_several_are_refused(folder: Path) -> None:
    add_videos(folder)
    (folder / "keypoints" / "cam02").rename(folder / "keypoints" / "second")
    found = without_calibration(folder)
    assert folders_of(found) == ["cam01", "second", "cam03"]
    assert said(found, "camera cam02 of the videos is taken to be second of the keypoints")
    (folder / "keypoints" / "cam03").rename(folder / "keypoints" / "third")
    with pytest.raises(InputError, match="which of cam02, cam03 is meant by second, third; rename one side"):
        find_recording(folder)


def test_names_that_lost_zeros_or_case_match(tmp_path: Path) -> None:
    calibrated = replace(RIG, names=("CAM3", "Cam1", "cam2")).select(("CAM3", "Cam1", "cam2"))
    folder = write_recording(
        tmp_path, replace(RIG, names=("cam03", "cam01", "cam02")), [PEOPLE], calibrated=calibrated
    )
    found = find_recording(folder)
    assert found.rig.names == ("cam03", "cam01", "cam02")
    assert not said(found, "sorted order")


def test_ten_and_a_hundred_are_not_the_same_camera(tmp_path: Path) -> None:
    names = ("c1", "c10", "c100")
    calibrated = replace(RIG, names=("C001", "C010", "C100"))
    folder = write_recording(tmp_path, replace(RIG, names=names), [PEOPLE], calibrated=calibrated)
    found = find_recording(folder)
    assert found.rig.names == names
    assert not said(found, "sorted order")


def test_a_folder_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "cam01":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("pipeline.layout.os.scandir", refuse)
    with pytest.raises(InputError, match=r"cam01: cannot be read \(Permission denied"):
        find_recording(folder)


def test_cameras_without_files_are_left_out(tmp_path: Path) -> None:
    rig = ring(5, size=SIZE)
    people = seen(rig, figure(TIME), noise_px=0.2)
    folder = write_recording(tmp_path, rig, [people])
    for name in ("cam02", "cam04"):
        shutil.rmtree(folder / "keypoints" / name)
    found = find_recording(folder)
    assert found.rig.names == ("cam01", "cam03", "cam05")
    assert said(found, "calibrated but without video and keypoints, so left out: cam02, cam04")


def test_counts_and_names_that_differ(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, RIG, [PEOPLE], calibrated=replace(ring(4), names=("a", "b", "c", "d")))
    with pytest.raises(
        InputError, match="keypoints are of the cameras cam01, cam02, cam03, the calibration of a, b, c, d"
    ):
        find_recording(folder)
    write_video(folder / "videos" / "x.mp4", 2, size=SIZE)
    with pytest.raises(
        InputError,
        match="videos are of the cameras x, the calibration of a, b, c, d: nothing tells which of a, b, c, d",
    ):
        find_recording(folder)


def test_an_empty_folder_and_a_folder_of_recordings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no keypoints found; expected keypoints/<camera>/"):
        find_recording(tmp_path)
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        write_calibration(RIG, tmp_path / name / "calibration.toml")
    with pytest.raises(InputError, match="is not a recording but holds 2 recordings: a, b; give one of them"):
        find_recording(tmp_path)
    (tmp_path / "calibration").mkdir()
    (tmp_path / "a" / "calibration.toml").rename(tmp_path / "calibration" / "calibration.toml")
    (tmp_path / "a" / "a.mp4").touch()
    with pytest.raises(InputError, match="is not a recording but holds 2 recordings: a, b"):
        find_recording(tmp_path)


def test_no_keypoints(folder: Path) -> None:
    shutil.rmtree(folder / "keypoints")
    (folder / "keypoints" / "cam01").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no keypoints found; expected keypoints/<camera>/\*.json"):
        find_recording(folder)


def test_two_videos_of_one_camera(folder: Path) -> None:
    add_videos(folder)
    (folder / "videos" / "cam01.mkv").touch()
    with pytest.raises(InputError, match=r"two videos of camera cam01: cam01.mkv, cam01.mp4"):
        find_recording(folder)


def test_two_keypoint_folders_of_one_camera(folder: Path) -> None:
    shutil.copytree(folder / "keypoints" / "cam01", folder / "keypoints" / "cam01_json")
    with pytest.raises(InputError, match="two sets of keypoints of camera cam01: cam01, cam01_json"):
        find_recording(folder)


def test_videos_in_two_places(folder: Path) -> None:
    add_videos(folder)
    write_video(folder / "preview.mp4", 2)
    assert said(
        find_recording(folder), "videos are taken from videos/; those in the folder itself are not used"
    )


@pytest.mark.parametrize("place", ["videos", "."])
def test_what_a_run_drew_into_the_folder_is_no_video(folder: Path, place: str) -> None:
    """As versions did that let OUT be the recording's own folder."""
    add_videos(folder, place)
    before = find_recording(folder)
    drawn = ["overlay_cam01.mp4", "overlay_cam02.mp4", "mosaic.mp4"]
    for name in drawn:
        write_video(folder / name, 2, size=SIZE)
    (folder / "summary.json").write_text(json.dumps({"videos": drawn}))
    found = find_recording(folder)
    assert [v.path for v in found.videos if v] == [v.path for v in before.videos if v]
    assert before.findings == ()
    (finding,) = found.findings
    assert finding.code == "results_inside"
    assert str(folder / "results") in finding.sentence


def test_a_camera_may_be_called_as_a_drawing(tmp_path: Path) -> None:
    rig = replace(RIG, names=("overlay_a", "b", "mosaic"))
    folder = write_recording(tmp_path, rig, [PEOPLE])
    for name in rig.names:
        write_video(folder / f"{name}.mp4", 24, size=SIZE, rate=10)
    assert all(find_recording(folder).videos)


def test_of_several_calibrations_the_stated_one(folder: Path) -> None:
    (folder / "calibration.toml").rename(folder / "Calib_a.toml")
    write_calibration(RIG, folder / "Calib_b.toml")
    assert codes(find_recording(folder)) >= {"calibration_chosen"}
    write_calibration(replace(ring(3), K=ring(3).K * [[1.1], [1.1], [1]]), folder / "Calib_b.toml")
    with pytest.raises(InputError, match=r"several calibrations: Calib_a.toml, Calib_b.toml"):
        find_recording(folder)
    state(folder, "{calibration: {path: Calib_b.toml}, fps: 10}")
    assert find_recording(folder).calibration.name == "Calib_b.toml"


def test_settings_and_calibration_come_from_the_folders_above(tmp_path):
    """As in a session of Pose2Sim: one calibration, several trials."""
    session = tmp_path / "all" / "session"
    for trial in ("a", "b"):
        write_recording(session / trial, ring(3), [seen(ring(3), figure(np.arange(8) / 30))])
    own = session / "b" / "calibration.toml"
    (session / "a" / "calibration.toml").rename(session / "calibration.toml")
    (tmp_path / "all" / "recording.yaml").write_text("fps: 30\nframe_offset: {cam01: 1}\n")
    (session / "recording.yaml").write_text("fps: 60\n")
    a, b = (find_recording(session / trial, inherit=tmp_path / "all") for trial in "ab")
    assert a.calibration == session / "calibration.toml"
    assert ("calibration", "../calibration.toml") in a.notes
    assert b.calibration == own
    assert a.timeline.rate == 60
    assert len(a) == 7
    assert find_recording(session / "b").timeline.rate == 30
    alone = find_recording(session / "a")
    assert alone.calibration == session / "calibration.toml"
    assert "calibration_above" in codes(alone)
    (session / "S00_Calibration").mkdir()
    (session / "calibration.toml").rename(session / "S00_Calibration" / "Calib.toml")
    assert find_recording(session / "a").calibration == session / "S00_Calibration" / "Calib.toml"
    (session / "person" / "walk").parent.mkdir()
    (session / "a").rename(session / "person" / "walk")
    two_up = find_recording(session / "person" / "walk")
    assert two_up.calibration == session / "S00_Calibration" / "Calib.toml"
    assert "calibration_above" in codes(two_up)
    with pytest.raises(InputError, match=r"holds 2 recordings: b, person/walk; give one"):
        find_recording(session)
    (session / "person" / "walk").rename(session / "a")
    (session / "S00_Calibration").rename(session / "walk_after_calibration")
    with pytest.raises(InputError, match="neither a calibration"):
        find_recording(session / "a")
    (session / "b" / "recording.yaml").write_text("calibration: {path: ../calibration.toml}\n")
    with pytest.raises(InputError, match="leaves the recording"):
        find_recording(session / "b", inherit=session)
    (session / "b" / "recording.yaml").write_text("calibration: {path: calibration.toml}\n")
    assert find_recording(session / "b", inherit=session).calibration == own


def test_a_calibration_where_none_is_looked_for_is_named(folder: Path) -> None:
    add_videos(folder)
    (folder / "output").mkdir()
    (folder / "calibration.toml").rename(folder / "output" / "calibration.toml")
    recording = find_recording(folder)
    assert recording.calibration is None
    assert said(recording, r"calibration: \{path: output/calibration\.toml\}")
    state(folder, "calibration: {path: output/calibration.toml}")
    assert find_recording(folder).calibration == folder / "output" / "calibration.toml"


def test_video_files_are_a_recording_of_nothing_else(folder: Path) -> None:
    add_videos(folder)
    files = [folder / "videos" / f"cam0{k}.mp4" for k in (3, 1)]
    found = open_videos(files)
    assert found.rig.names == ("cam01", "cam03")
    assert found.path == folder / "videos"
    assert found.calibration is None
    assert not found.has_keypoints
    (folder / "cam01.mp4").write_bytes(files[1].read_bytes())
    assert open_videos([files[0], folder / "cam01.mp4"]).path == folder
    for wrong, message in (
        ([files[1], folder / "cam01.mp4"], "two videos of camera cam01"),
        ([files[1], folder / "cam09.mp4"], r"cam09\.mp4: no such file"),
        ([folder, files[1]], "is a folder; give one folder, or the video of each camera"),
    ):
        with pytest.raises(InputError, match=message):
            open_videos(wrong)


def test_videos_stay_a_recording_beside_the_cameras_that_their_run_estimated(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", 3)
    estimate = tmp_path / "OUT" / "calibration.toml"
    estimate.parent.mkdir()
    write_calibration(ring(2), estimate)
    assert not is_recording(tmp_path), "it holds one"
    estimate.write_text(estimate.read_text().replace("[metadata]", "[metadata]\nestimated = true"))
    assert is_recording(tmp_path)


def test_files_of_no_format_are_told_with_the_nearest(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, RIG, [PEOPLE])
    for name in RIG.names:
        (folder / "keypoints" / f"{name}.pkl").touch()
    found = find_recording(folder)
    assert [(f.code, f.frames) for f in found.findings if f.code != "fps_assumed"] == [
        ("keypoints_unread", 3)
    ]
    assert said(
        found, "3 .pkl files in keypoints/ are not read, the first is cam01.pkl; the nearest .* MMPose's JSON"
    )
    for name in RIG.names:
        shutil.rmtree(folder / "keypoints" / name)
    with pytest.raises(InputError, match=r"no keypoints found; .* 3 \.pkl files in keypoints/ are not read"):
        find_recording(folder)


@pytest.mark.parametrize("place", [".", "2d", "out/2d"])
def test_keypoints_where_none_are_looked_for_are_named(folder: Path, place: str) -> None:
    add_videos(folder)
    (folder / place).mkdir(parents=True, exist_ok=True)
    for camera in (folder / "keypoints").iterdir():
        camera.rename(folder / place / camera.name)
    (folder / "keypoints").rmdir()
    recording = find_recording(folder)
    assert not recording.has_keypoints
    shown = "." if place == "." else place
    assert said(recording, rf"keypoints lie in {shown}/.*keypoints: \{{path: {shown}\}}")
    state(folder, f"keypoints: {{path: {place}}}")
    assert find_recording(folder).has_keypoints


def test_all_cameras_in_one_folder(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, RIG, [PEOPLE])
    want = find_recording(folder)
    for name in RIG.names:
        for file in (folder / "keypoints" / name).iterdir():
            file.rename(folder / "keypoints" / file.name)
        (folder / "keypoints" / name).rmdir()
    found = find_recording(folder)
    assert found.rig.names == want.rig.names
    assert [len(f) for f in found.keypoints if f] == [24] * 3
    assert found.warnings == want.warnings
    assert folder / "keypoints" in [*sources(folder)]
