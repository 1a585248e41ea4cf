"""Opening a recording: files, cameras and time line."""

from __future__ import annotations

import json
import re
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from recordings import SMALL as SIZE
from recordings import SMALL_PEOPLE as PEOPLE
from recordings import SMALL_RIG as RIG
from recordings import (
    add_videos,
    ring,
    said,
    state,
    write_people,
    write_recording,
    write_video,
)

from pipeline.calibrations.pose2sim import write_calibration
from pipeline.errors import InputError
from pipeline.recording import Recording, find_recording
from stages.inspect import inspect


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "rec", RIG, [PEOPLE])


def ready(folder: Path) -> Recording:
    return inspect(find_recording(folder))


def assert_are(image: np.ndarray, written: np.ndarray) -> None:
    """Points as read are those written, with each camera's confidences on a scale of its own."""
    assert np.abs(image[..., :2] - written[..., :2]).max() < 2e-3
    for read, want in zip(image[..., 2], written[..., 2], strict=True):
        ratio = read / want
        assert np.abs(ratio / np.median(ratio) - 1).max() < 5e-3


def test_keypoints_and_calibration_only(folder: Path) -> None:
    state(folder, "fps: 30000/1001")
    found = ready(folder)
    assert found.rig.names == RIG.names
    assert found.videos == (None, None, None)
    assert (len(found), found.timeline.rate) == (24, Fraction(30000, 1001))
    assert found.point_order.name == "body_25"
    assert found.warnings == ()
    notes = dict(found.notes)
    assert notes["calibration"] == "calibration.toml"
    assert re.fullmatch(
        r"keypoints/: body_25, found: limbs fit a body to \d+ %, [\d.]+ times better than as body_25b",
        notes["keypoints"],
    )
    assert notes["time line"] == "24 frames, 0.80 s at 29.97 fps"
    assert notes["camera cam01"] == "no video, 24 files in keypoints/cam01"
    image = found.people(np.array([3, 20]))
    assert_are(image[:, :, 0], PEOPLE[:, [3, 20]])


def test_with_videos(folder: Path) -> None:
    add_videos(folder)
    found = find_recording(folder)
    assert found.warnings == ()
    assert [v.path.name for v in found.videos if v] == ["cam01.mp4", "cam02.mp4", "cam03.mp4"]
    assert (len(found), found.timeline.rate) == (24, 10)
    assert dict(found.notes)["camera cam02"] == (
        "videos/cam02.mp4 (h264 320x180, 24 frames at 10 fps), 24 files in keypoints/cam02"
    )


def test_a_camera_with_a_video_but_no_keypoints_stays(folder: Path) -> None:
    add_videos(folder)
    shutil.rmtree(folder / "keypoints" / "cam02")
    found = ready(folder)
    assert found.keypoints[1] is None
    assert said(found, "camera cam02 has no keypoints: it takes no part in the fit")
    assert (found.people(np.arange(5))[1, ..., 2] == 0).all()


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        find_recording(tmp_path / "nowhere")
    (tmp_path / "file.mp4").touch()
    with pytest.raises(InputError, match=r"file.mp4 is a file; a recording is a folder \(videos/"):
        find_recording(tmp_path / "file.mp4")


def test_one_camera_of_a_calibration_keeps_its_place(folder: Path) -> None:
    shutil.rmtree(folder / "keypoints" / "cam01")
    shutil.rmtree(folder / "keypoints" / "cam03")
    found = ready(folder)
    assert found.rig.names == ("cam02",)
    assert np.allclose(found.rig.t[0], RIG.t[1])
    assert found.placed
    assert found.point_order.name == "body_25"


def test_cameras_of_which_one_has_keypoints_are_refused(folder: Path) -> None:
    shutil.rmtree(folder / "keypoints" / "cam01")
    shutil.rmtree(folder / "keypoints" / "cam03")
    add_videos(folder)
    with pytest.raises(InputError, match="fewer than two of the 3 cameras have keypoint files; add those of"):
        find_recording(folder)


def test_a_file_that_is_no_video(folder: Path) -> None:
    (folder / "videos").mkdir()
    (folder / "videos" / "cam01.mp4").write_text("not a video")
    with pytest.raises(InputError, match=r"cam01.mp4"):
        find_recording(folder)


def test_a_smaller_copy_of_the_video_rescales_the_calibration(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, RIG, [PEOPLE], calibrated=ring(3, size=(1280, 720)))
    add_videos(folder)
    found = find_recording(folder)
    assert said(found, "camera cam01: calibration rescaled from 1280x720 to the 320x180 of its video")
    assert found.rig.size.tolist() == [list(SIZE)] * 3
    points = np.random.default_rng(0).uniform(-0.5, 1.0, (20, 3))
    large = ring(3, size=(1280, 720)).project(points, distorted=True)
    assert np.allclose(found.rig.project(points, distorted=True), (large + 0.5) / 4 - 0.5)


def test_another_aspect_is_refused(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, RIG, [PEOPLE])
    write_video(folder / "videos" / "cam01.mp4", 3, size=(320, 200))
    with pytest.raises(InputError, match="frames are 320x200, but camera cam01 was calibrated at 320x180"):
        find_recording(folder)
    write_video(folder / "videos" / "cam01.mp4", 3, size=(180, 320))
    with pytest.raises(InputError, match=r"frames are 180x320.*is the video turned by 90°\?"):
        find_recording(folder)


def test_frame_offset_moves_a_camera(tmp_path: Path) -> None:
    late = PEOPLE.copy()
    late[1, 3:] = PEOPLE[1, :-3]
    folder = write_recording(tmp_path, RIG, [late])
    state(folder, "{frame_offset: {cam02: 3}, fps: 10}")
    found = ready(folder)
    assert len(found) == 21
    assert found.timeline.frame_index[:, 0].tolist() == [0, 3, 0]
    assert said(found, r"all cameras share 21 frames, 2.10 s; not used: cam01 3 at its end")
    image = found.people(np.arange(21))
    assert_are(image[:, :, 0], PEOPLE[:, :21])


def test_videos_of_different_length_rate_and_start(folder: Path) -> None:
    write_video(folder / "videos" / "cam01.mp4", 24, size=SIZE, rate=10)
    write_video(folder / "videos" / "cam02.mp4", 20, size=SIZE, rate=10)
    write_video(folder / "videos" / "cam03.mp4", 48, size=SIZE, rate=20)
    found = find_recording(folder)
    assert (len(found), found.timeline.rate) == (20, 10)
    assert said(found, "all cameras share 20 frames, 2.00 s.*cam01 4 at its end")
    assert said(found, r"frame rates differ \(cam01 10, cam02 10, cam03 20 fps\): keypoints are interpolated")
    assert np.array_equal(found.timeline.frame_index[2], np.arange(20) * 2)


def test_a_variable_frame_rate(folder: Path) -> None:
    times = np.delete(np.arange(24) / 10, [7, 8])
    for name in ("cam01", "cam02"):
        write_video(folder / "videos" / f"{name}.mp4", 24, size=SIZE, rate=10)
    write_video(folder / "videos" / "cam03.mp4", 22, size=SIZE, rate=10, times_s=times)
    found = find_recording(folder)
    assert (len(found), found.timeline.rate) == (24, 10)
    assert np.allclose(found.timeline.time_s, np.arange(24) / 10)
    assert np.flatnonzero(found.timeline.frame_index[2] < 0).tolist() == [7, 8]
    assert np.array_equal(found.timeline.frame_index[:2], [np.arange(24)] * 2)
    assert said(found, "camera cam03 has no frame at 2 of 24 instants")
    assert not said(found, "frame rates differ")


def test_keypoint_numbers_and_gaps(folder: Path) -> None:
    for t in (0, 1, 7, 8, 23):
        (folder / "keypoints" / "cam02" / f"cam02_{t:012d}_keypoints.json").unlink()
    found = ready(folder)
    # Without videos, the span begins and ends where all cameras have files.
    assert found.timeline.frame_index[:, [0, -1]].tolist() == [[2, 22]] * 3
    empty = (found.people(np.arange(len(found)))[1, ..., 2] == 0).all((1, 2))
    assert np.flatnonzero(empty).tolist() == [5, 6]


def test_numbers_that_begin_at_one(tmp_path: Path) -> None:
    folder = tmp_path
    for v, name in enumerate(RIG.names):
        for t in range(24):
            write_people(folder / "keypoints" / name, name, t + 1, [PEOPLE[v, t]])
    write_calibration(RIG, folder / "calibration.toml")
    add_videos(folder)
    for stated in ("", "keypoints: {first_frame: 1}"):
        state(folder, stated)
        found = ready(folder)
        assert found.warnings == ()
        assert found.first_frame == 1
        assert_are(found.people(np.arange(24))[:, :, 0], PEOPLE)
        note = "keypoint files count from 1, since their last is the videos' length"
        assert dict(found.notes).get("frame numbers") == (None if stated else note)
    state(folder, "keypoints: {first_frame: 0}")
    found = ready(folder)
    assert said(
        found, "1 keypoint files of cam01 are not used: their numbers are past its video's last frame, 23"
    )
    assert (found.people(np.array([0]))[..., 2] == 0).all()


@pytest.mark.parametrize(("numbers", "step"), [(range(0, 12), "2"), (range(1, 48, 2), "1/2")])
def test_files_of_every_second_frame_are_told(tmp_path: Path, numbers: range, step: str) -> None:
    folder, ahead = tmp_path, 2 if step == "2" else 1
    for v, name in enumerate(RIG.names):
        for i, number in enumerate(numbers):
            write_people(folder / "keypoints" / name, name, number, [PEOPLE[v, ahead * i]])
    write_calibration(RIG, folder / "calibration.toml")
    add_videos(folder)
    first = f", first_frame: {numbers[0]}" if numbers[0] else ""
    for stated in (None, f"keypoints: {{step: {step}{first}}}"):
        if stated:
            state(folder, stated)
        found = ready(folder)
        assert [f.code for f in found.findings] == ([] if stated else ["keypoints_renumbered"])
        assert stated or said(found, rf"keypoints: \{{step: {step}{first}\}} states it, .*step: 1")
        assert_are(found.people(np.arange(0, 24, ahead))[:, :, 0], PEOPLE[:, ::ahead])
        assert found.keypoint_numbers(np.arange(3))[0].tolist() == ([0, -1, 1] if step == "2" else [1, 3, 5])
    state(folder, "keypoints: {step: 1}")
    found = find_recording(folder)
    assert {f.code for f in found.findings} & {"keypoints_missing", "keypoints_renumbered"}
    assert found.step == 1


def test_a_list_of_every_second_frame_is_told(tmp_path: Path) -> None:
    """AlphaPose's, which leaves out frames in which it found nobody."""
    for v, name in enumerate(RIG.names):
        listed = [
            {"image_id": f"{t // 2}.jpg", "category_id": 1, "keypoints": PEOPLE[v, t].ravel().tolist()}
            for t in range(0, 24, 2)
            if t != 2 * v
        ]
        (tmp_path / "keypoints").mkdir(exist_ok=True)
        (tmp_path / "keypoints" / f"{name}.json").write_text(json.dumps(listed))
    write_calibration(RIG, tmp_path / "calibration.toml")
    add_videos(tmp_path)
    found = find_recording(tmp_path)
    assert said(found, r"file n is taken as frame 2 n; .*step: 2\} states it")
    assert found.keypoint_numbers(np.arange(3))[0].tolist() == [0, -1, 1]


def test_files_that_were_counted_after_frames_were_dropped(folder: Path) -> None:
    add_videos(folder)
    for t in (21, 22, 23):
        (folder / "keypoints" / "cam02" / f"cam02_{t:012d}_keypoints.json").unlink()
    found = find_recording(folder)
    assert [(f.code, f.camera) for f in found.findings] == [("keypoints_renumbered", "cam02")]
    assert said(found, "file n is taken as frame n. If .*first_frame: -3")
    state(folder, "keypoints: {first_frame: -3}")
    assert find_recording(folder).keypoint_numbers(np.arange(5))[1].tolist() == [-1, -1, -1, 0, 1]


def test_numbers_that_begin_at_one_need_not_count_from_one(folder: Path) -> None:
    add_videos(folder)
    for name in RIG.names:
        (folder / "keypoints" / name / f"{name}_{0:012d}_keypoints.json").unlink()
    found = find_recording(folder)
    assert found.first_frame == 0
    assert said(found, "1 of 24 keypoint files of cam01 are missing, the first of them number 0")
    assert not said(found, "first_frame"), "it would show every frame too early"


def test_files_that_are_missing_are_counted(folder: Path) -> None:
    def delete(camera: str, numbers: range) -> None:
        for t in numbers:
            (folder / "keypoints" / camera / f"{camera}_{t:012d}_keypoints.json").unlink()

    delete("cam01", range(1, 24, 2))
    delete("cam02", range(20, 24))
    delete("cam03", range(0, 3))
    found = find_recording(folder)  # no video says how many there should be
    assert said(found, "11 of 23 keypoint files of cam01 are missing, the first of them number 1")
    assert not said(found, "files of cam0[23] are missing")
    add_videos(folder)
    found = find_recording(folder)
    assert said(found, "12 of 24 keypoint files of cam01 are missing, the first of them number 1")
    assert said(found, "4 of 24 keypoint files of cam02 are missing, the first of them number 20")
    assert said(found, "3 of 24 keypoint files of cam03 are missing, the first of them number 0")
    assert len(found.warnings) == 3, found.warnings


def test_files_that_count_from_another_number(folder: Path) -> None:
    """What is advised for one camera must not shift the others."""
    add_videos(folder)

    def renumber(camera: str, by: int) -> None:
        for file in sorted((folder / "keypoints" / camera).iterdir(), reverse=True):
            number = int(file.name.split("_")[1]) + by
            file.rename(file.with_name(f"{camera}_{number:012d}_keypoints.json"))

    renumber("cam02", 1)
    found = find_recording(folder)
    assert said(
        found, "of cam02 are numbered 1 to 24, and its video has 24 frames: .* from 0 on, as those of"
    )
    assert not said(found, "first_frame")
    assert not said(found, "are missing")
    for camera, by in (("cam01", 5), ("cam02", 4), ("cam03", 5)):
        renumber(camera, by)
    found = find_recording(folder)
    for name in RIG.names:
        assert said(found, f"of {name} are numbered 5 to 28, .* file 0 is taken as .*first_frame: 5")
    state(folder, "keypoints: {first_frame: 5}")
    assert find_recording(folder).warnings == ()
    for camera in RIG.names:
        renumber(camera, 1000)
    (folder / "recording.yaml").unlink()
    found = find_recording(folder)
    assert found.first_frame == 1005
    assert [f.code for f in found.findings] == ["keypoints_renumbered"]


def test_cameras_whose_files_never_meet(tmp_path: Path) -> None:
    for v, name in enumerate(RIG.names):
        write_people(tmp_path / "keypoints" / name, name, 100 * v, [PEOPLE[v, 0]])
    write_calibration(RIG, tmp_path / "calibration.toml")
    with pytest.raises(InputError, match=r"the cameras share no time: cam01 from 0.00 s to 0.00 s"):
        find_recording(tmp_path)


def test_a_number_that_is_no_frame(tmp_path: Path) -> None:
    for v, name in enumerate(RIG.names):
        write_people(tmp_path / "keypoints" / name, name, 20240131120000, [PEOPLE[v, 0]])
    write_calibration(RIG, tmp_path / "calibration.toml")
    with pytest.raises(InputError, match="is too high; the last number in a file's name is its frame"):
        find_recording(tmp_path)


def without_calibration(folder: Path, text: str = "picture_size: [1280, 720]\nfps: 24\n") -> Recording:
    (folder / "calibration.toml").unlink(missing_ok=True)
    state(folder, text)
    return find_recording(folder)


def test_without_a_calibration(folder: Path) -> None:
    found = without_calibration(folder)
    assert not found.placed
    assert found.calibration is None
    assert found.rig.names == RIG.names
    assert inspect(found).point_order.name == "body_25"
    assert np.allclose(found.rig.K, [[1280, 0, 639.5], [0, 1280, 359.5], [0, 0, 1]])
    assert (found.rig.dist == 0).all()
    assert found.focal_stated == (False, False, False)
    assert said(found, r"no calibration found: .* where they stand and the focal lengths of all")


def test_without_a_calibration_the_video_says_how_large_its_pictures_are(folder: Path) -> None:
    add_videos(folder)
    found = without_calibration(folder, "")
    assert (found.rig.size == [320, 180]).all()
    assert np.allclose(found.rig.K[0], [[320, 0, 159.5], [0, 320, 89.5], [0, 0, 1]])


def test_a_stated_focal_length(folder: Path) -> None:
    size = "picture_size: [1280, 720]\n"
    found = without_calibration(folder, size + "focal_px: 1100")
    assert found.focal_stated == (True, True, True)
    assert (found.rig.K[:, 0, 0] == 1100).all()
    assert not said(found, "the focal lengths of")
    found = without_calibration(folder, size + "focal_px: {cam02: 900}")
    assert found.focal_stated == (False, True, False)
    assert found.rig.K[:, 1, 1].tolist() == [1280, 900, 1280]
    assert said(found, "the focal lengths of cam01, cam03;")
    for wrong, message in (
        ("focal_px: {cam07: 900}", "focal_px: no camera is called 'cam07'; known: cam01, cam02, cam03"),
        ("focal_px: -3", "must be positive"),
        ("focal_px: 9", r"focal_px of camera 'cam01'.* fx = 9 does not fit a picture 1280 pixels wide"),
        ("picture_size: [0, 720]", "must be a width and a height"),
    ):
        with pytest.raises(InputError, match=message):
            without_calibration(folder, wrong if "size" in wrong else size + wrong)


def test_a_focal_length_beside_a_calibration_is_not_used(folder: Path) -> None:
    state(folder, "focal_px: 1100\nfps: 24\n")
    found = find_recording(folder)
    assert np.allclose(found.rig.K, RIG.K)
    assert said(found, "focal_px is not used where there is a calibration")


def test_without_calibration_and_video_the_size_must_be_stated(folder: Path) -> None:
    with pytest.raises(InputError, match=r"camera cam01 has neither .* picture_size: \[width, height\]"):
        without_calibration(folder, "fps: 24")


def test_a_broken_calibration_is_not_taken_for_none(folder: Path) -> None:
    (folder / "calibration.toml").write_text("[cam01]\nmatrix = 3\n")
    with pytest.raises(InputError, match=r"calibration\.toml"):
        find_recording(folder)


def test_without_a_calibration_a_camera_without_keypoints_is_left_out(folder: Path) -> None:
    add_videos(folder)
    shutil.rmtree(folder / "keypoints" / "cam02")
    found = without_calibration(folder, "")
    assert found.rig.names == ("cam01", "cam03")
    assert said(found, "left out: cam02")


def test_a_single_camera_without_a_calibration(folder: Path) -> None:
    for name in ("cam02", "cam03"):
        shutil.rmtree(folder / "keypoints" / name)
    found = without_calibration(folder)
    assert found.placed
    assert len(found.rig) == 1
    assert said(found, "the camera is taken to stand still, and run guesses from the person")
    assert inspect(found).people(np.arange(3)).shape[0] == 1
