"""Recording folders: every layout is found, every guess is said, every mistake gets a message."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from recordings import BALANCING, figure, ring, seen, write_people, write_recording, write_video

from models.geometry.association import MatchConfig, TrackerState, track_person
from pipeline.calibration import write_calibration
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.joints import BODY_25, FORMATS
from pipeline.recording import MissingData, Recording, find_recording, left_out, missing_data
from pipeline.skeletons import TOP_CONFIDENCE

SIZE = (320, 180)
RIG = ring(3, size=SIZE)
TIME = np.arange(24) / 10
PEOPLE = seen(RIG, figure(TIME), noise_px=0.2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "rec", RIG, [PEOPLE])


def add_videos(folder: Path, place: str = "videos", **changes: object) -> None:
    for name in RIG.names:
        write_video(folder / place / f"{name}.mp4", 24, size=SIZE, rate=10)


def state(folder: Path, text: str) -> None:
    (folder / "recording.yaml").write_text(text)


def said(recording: Recording, pattern: str) -> bool:
    return any(re.search(pattern, w, re.DOTALL) for w in recording.warnings)


def assert_are(image: np.ndarray, written: np.ndarray) -> None:
    """Points as read are those written, with each camera's confidences on a scale of its own."""
    assert np.abs(image[..., :2] - written[..., :2]).max() < 2e-3
    for read, want in zip(image[..., 2], written[..., 2], strict=True):
        ratio = read / want
        assert np.abs(ratio / np.median(ratio) - 1).max() < 5e-3


def test_keypoints_and_calibration_only(folder: Path) -> None:
    state(folder, "fps: 30000/1001")
    found = find_recording(folder)
    assert found.rig.names == RIG.names
    assert found.videos == (None, None, None)
    assert (len(found), found.timeline.rate) == (24, Fraction(30000, 1001))
    assert found.format.name == "body_25"
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


@pytest.mark.parametrize(
    "layout", ["keypoints/{}", "keypoints/{}_json", "{}_json", "pose/{}_json", "openpose/{}"]
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
    assert all(files and files.folder.parent.name == "pose-associated" for files in found.keypoints)


def test_an_easymocap_project(tmp_path: Path) -> None:
    from test_calibration import easymocap

    rig = replace(RIG, names=("1", "2", "3"))
    folder = write_recording(tmp_path, rig, [PEOPLE], keypoints="openpose/{}")
    (folder / "calibration.toml").unlink()
    easymocap(folder, rig, sizes=False)
    for name in rig.names:
        write_video(folder / "videos" / f"{name}.mp4", 24, size=SIZE, rate=10)
    found = find_recording(folder)
    assert found.rig.size.tolist() == [list(SIZE)] * 3
    assert said(found, r"intri.yml gives no picture size for camera 1: taken as the video's, 320x180")
    shutil.rmtree(folder / "videos")
    found = find_recording(folder)
    assert said(found, "twice the principal point")
    assert found.rig.size[0].tolist() == [round(2 * 0.51 * 320 + 1), round(2 * 0.48 * 180 + 1)]


@pytest.mark.skipif(not BALANCING.exists(), reason="needs the shared balancing recording")
def test_a_real_recording() -> None:
    found = find_recording(BALANCING)
    assert found.warnings == ()
    assert (len(found), found.timeline.rate) == (99, 60)
    assert found.format.name == "body_25b"
    assert found.format.margin is not None
    assert found.format.margin > 4


@pytest.mark.skipif(not BALANCING.exists(), reason="needs the shared balancing recording")
def test_the_same_recording_in_the_order_of_body_25(tmp_path: Path) -> None:
    # BODY_25 has the mid hip in place of BODY_25B's head.
    source = FORMATS["body_25b"]
    shutil.copy(BALANCING / "calibration.toml", tmp_path)
    for file in sorted(BALANCING.glob("keypoints/*/*.json")):
        people = []
        for person in json.loads(file.read_text())["people"]:
            old = np.array(person["pose_keypoints_2d"]).reshape(25, 3)
            hips = old[source.index("LHip")], old[source.index("RHip")]
            new = [np.mean(hips, axis=0) if n == "MidHip" else old[source.index(n)] for n in BODY_25]
            people.append(np.array(new))
        write_people(
            tmp_path / "keypoints" / file.parent.name, file.parent.name, int(file.stem.split("_")[1]), people
        )
    found = find_recording(tmp_path)
    assert found.format.name == "body_25"
    assert found.format.margin is not None
    assert found.format.margin > 4


# Names.


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
    return [files.folder.name for files in found.keypoints if files]


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
        (("cam01", "cam02"), "the calibration has no camera for cam03; rename one side"),
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


def test_without_a_calibration_one_other_name_is_paired_and_several_are_refused(folder: Path) -> None:
    add_videos(folder)
    (folder / "keypoints" / "cam02").rename(folder / "keypoints" / "second")
    found = without_calibration(folder, "")
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
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pipeline.recording.os.scandir", refuse)
    with pytest.raises(InputError, match=r"cam01: cannot be read: Permission denied"):
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


def test_a_camera_with_a_video_but_no_keypoints_stays(folder: Path) -> None:
    add_videos(folder)
    shutil.rmtree(folder / "keypoints" / "cam02")
    found = find_recording(folder)
    assert found.keypoints[1] is None
    assert said(found, "camera cam02 has no keypoints: it takes no part in the fit")
    assert (found.people(np.arange(5))[1, ..., 2] == 0).all()


# What cannot be used.


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        find_recording(tmp_path / "nowhere")
    (tmp_path / "file.mp4").touch()
    with pytest.raises(InputError, match=r"file.mp4 is a file; a recording is a folder \(videos/"):
        find_recording(tmp_path / "file.mp4")


def test_an_empty_folder_and_a_folder_of_recordings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no keypoints found; expected keypoints/<camera>/"):
        find_recording(tmp_path)
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        write_calibration(RIG, tmp_path / name / "calibration.toml")
    with pytest.raises(InputError, match="is not a recording but holds 2: a, b; give one of them"):
        find_recording(tmp_path)


def test_no_keypoints(folder: Path) -> None:
    shutil.rmtree(folder / "keypoints")
    (folder / "keypoints" / "cam01").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no keypoints found; expected keypoints/<camera>/\*.json"):
        find_recording(folder)


def test_one_camera_of_a_calibration_keeps_its_place(folder: Path) -> None:
    shutil.rmtree(folder / "keypoints" / "cam01")
    shutil.rmtree(folder / "keypoints" / "cam03")
    found = find_recording(folder)
    assert found.rig.names == ("cam02",)
    assert np.allclose(found.rig.t[0], RIG.t[1])
    assert found.placed
    assert found.format.name == "body_25"


def test_cameras_of_which_one_has_keypoints_are_refused(folder: Path) -> None:
    shutil.rmtree(folder / "keypoints" / "cam01")
    shutil.rmtree(folder / "keypoints" / "cam03")
    add_videos(folder)
    with pytest.raises(InputError, match="fewer than two of the 3 cameras have keypoint files; add those of"):
        find_recording(folder)


def test_two_videos_of_one_camera(folder: Path) -> None:
    add_videos(folder)
    (folder / "videos" / "cam01.mkv").touch()
    with pytest.raises(InputError, match=r"two videos of camera cam01: cam01.mkv, cam01.mp4"):
        find_recording(folder)


def test_two_keypoint_folders_of_one_camera(folder: Path) -> None:
    shutil.copytree(folder / "keypoints" / "cam01", folder / "keypoints" / "cam01_json")
    with pytest.raises(InputError, match="two keypoint folders of camera cam01: cam01, cam01_json"):
        find_recording(folder)


def test_videos_in_two_places(folder: Path) -> None:
    add_videos(folder)
    write_video(folder / "preview.mp4", 2)
    assert said(
        find_recording(folder), "videos are taken from videos/; those in the folder itself are not used"
    )


@pytest.mark.parametrize("place", ["videos", "."])
def test_what_a_run_drew_into_the_folder_is_no_video(folder: Path, place: str) -> None:
    add_videos(folder, place)
    before = find_recording(folder)
    for name in ("overlay_cam01.mp4", "mesh_cam02.mp4", "skeleton_cam03.mp4", "mosaic.mp4", "turntable.mp4"):
        write_video(folder / name, 2, size=SIZE)
    found = find_recording(folder)
    assert [v.path for v in found.videos if v] == [v.path for v in before.videos if v]
    assert found.warnings == before.warnings == ()


def test_a_camera_may_be_called_as_a_drawing(tmp_path: Path) -> None:
    rig = replace(RIG, names=("overlay_a", "b", "mosaic"))
    folder = write_recording(tmp_path, rig, [PEOPLE])
    for name in rig.names:
        write_video(folder / f"{name}.mp4", 24, size=SIZE, rate=10)
    assert all(find_recording(folder).videos)


def test_a_file_that_is_no_video(folder: Path) -> None:
    (folder / "videos").mkdir()
    (folder / "videos" / "cam01.mp4").write_text("not a video")
    with pytest.raises(InputError, match=r"cam01.mp4"):
        find_recording(folder)


# Picture sizes.


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


def test_keypoints_of_a_larger_picture(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, RIG, [PEOPLE * [2, 2, 1]])
    state(folder, "{keypoints: {format: body_25}, fps: 10}")
    assert said(
        find_recording(folder), "of the keypoints lie outside its picture: were they made on pictures of"
    )


# recording.yaml.

BAD_YAML = {
    "unknown": ("keypoint: {}", "keypoint: unknown key; did you mean keypoints"),
    "unknown inside": (
        "keypoints: {fromat: body_25}",
        r"keypoints.fromat: unknown key; did you mean keypoints.format",
    ),
    "format": (
        "keypoints: {format: body_26}",
        r"keypoints.format: 'body_26' is not one of body_25, body_25b, [\w, ]+\Z",
    ),
    "unit": ("calibration: {unit: inch}", "calibration.unit.*'inch' is not one of m, cm, mm"),
    "negative unit": ("calibration: {unit: -1}", "calibration.unit.*must be positive"),
    "fps": ("fps: fast", "fps.*neither a number nor a fraction"),
    "no fps": ("fps: 0", "fps.*must be positive"),
    "offset": ("frame_offset: {cam01: soon}", "frame_offset.cam01"),
    "offset camera": ("frame_offset: {cam09: 1}", "no camera is called 'cam09'; known: cam01, cam02, cam03"),
    "offset too far": ("frame_offset: {cam01: -24}", "frame_offset of cam01 is -24, but it has 24 frames"),
    "no overlap": (
        "frame_offset: {cam01: 20, cam02: -20}",
        r"the cameras share no time: cam01 from .*frame_offset",
    ),
    "not yaml": ("keypoints: {", "recording.yaml: not YAML"),
    "a list": ("- 1", "recording.yaml: expected keys"),
    "outside": ("keypoints: {path: ../other}", "keypoints.path: '../other' leaves the recording's folder"),
    "outside calibration": ("calibration: {path: /etc}", "calibration.path: '/etc' leaves the recording"),
    "not there": ("keypoints: {path: poses}", "keypoints.path: .*poses does not exist"),
    "nothing there": (
        "keypoints: {path: keypoints/cam01}",
        "keypoints.path: .* holds no folder with JSON files",
    ),
    "first frame": ("keypoints: {first_frame: 1000}", "number is below keypoints.first_frame"),
    "count": ("keypoints: {format: coco_17}", "keypoints.format coco_17 has 17 points, the files have 25"),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_bad_recording_yaml(folder: Path, case: str) -> None:
    text, message = BAD_YAML[case]
    state(folder, text)
    with pytest.raises(
        InputError, match=f"(?s)recording.yaml.*{message}" if case != "no overlap" else message
    ):
        find_recording(folder)


def test_an_empty_recording_yaml_says_nothing(folder: Path) -> None:
    state(folder, "# nothing\n")
    assert said(find_recording(folder), "30 fps assumed; state fps in recording.yaml")


def test_stated_format_in_the_users_spelling(folder: Path) -> None:
    state(folder, "{keypoints: {format: BODY_25}, fps: 10}")
    found = find_recording(folder)
    assert (found.format.name, found.format.how) == ("body_25", "stated in recording.yaml")
    state(folder, "{keypoints: {format: BODY_25B}, fps: 10}")
    assert said(find_recording(folder), "states the keypoint format body_25b, but read as body_25 limbs fit")


def test_of_several_calibrations_the_stated_one(folder: Path) -> None:
    (folder / "calibration.toml").rename(folder / "Calib_a.toml")
    write_calibration(RIG, folder / "Calib_b.toml")
    with pytest.raises(InputError, match=r"several calibrations: Calib_a.toml, Calib_b.toml"):
        find_recording(folder)
    state(folder, "{calibration: {path: Calib_b.toml}, fps: 10}")
    assert find_recording(folder).calibration.name == "Calib_b.toml"


# Time.


def test_frame_offset_moves_a_camera(tmp_path: Path) -> None:
    late = PEOPLE.copy()
    late[1, 3:] = PEOPLE[1, :-3]
    folder = write_recording(tmp_path, RIG, [late])
    state(folder, "{frame_offset: {cam02: 3}, fps: 10}")
    found = find_recording(folder)
    assert len(found) == 21
    assert found.timeline.frame_index[:, 0].tolist() == [0, 3, 0]
    assert said(
        found, r"all cameras share 21 frames, 2.10 s; frames not used: cam01 0 at its start and 3 at its end"
    )
    image = found.people(np.arange(21))
    assert_are(image[:, :, 0], PEOPLE[:, :21])


def test_videos_of_different_length_rate_and_start(folder: Path) -> None:
    write_video(folder / "videos" / "cam01.mp4", 24, size=SIZE, rate=10)
    write_video(folder / "videos" / "cam02.mp4", 20, size=SIZE, rate=10)
    write_video(folder / "videos" / "cam03.mp4", 48, size=SIZE, rate=20)
    found = find_recording(folder)
    assert (len(found), found.timeline.rate) == (20, 10)
    assert said(found, "all cameras share 20 frames, 2.00 s.*cam01 0 at its start and 4 at its end")
    assert said(
        found, r"frame rates differ \(cam01 10, cam02 10, cam03 20 fps\): frames are matched by time stamp"
    )
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
    found = find_recording(folder)
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
        found = find_recording(folder)
        assert found.warnings == ()
        assert found.first_frame == 1
        assert_are(found.people(np.arange(24))[:, :, 0], PEOPLE)
        note = "keypoint files count from 1, since their last is the videos' length"
        assert dict(found.notes).get("frame numbers") == (None if stated else note)
    state(folder, "keypoints: {first_frame: 0}")
    found = find_recording(folder)
    assert said(
        found, "1 keypoint files of cam01 are not used: their numbers are past its video's last frame, 23"
    )
    assert (found.people(np.array([0]))[..., 2] == 0).all()


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
        assert said(found, f"of {name} are numbered 5 to 28, .* state it in .*first_frame: 5")
    state(folder, "keypoints: {first_frame: 5}")
    assert find_recording(folder).warnings == ()


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


# What the keypoints say.


@pytest.mark.parametrize(("unit", "metres"), [("mm", 0.001), ("cm", 0.01)])
def test_the_unit_is_guessed_and_said(tmp_path: Path, unit: str, metres: float) -> None:
    calibrated = replace(RIG, t=RIG.t / metres)
    folder = write_recording(tmp_path, RIG, [PEOPLE], calibrated=calibrated)
    found = find_recording(folder)
    assert np.allclose(found.rig.t, RIG.t)
    assert said(found, f"taken to be in {unit}: .*state it in recording.yaml, calibration: {{unit: {unit}}}")
    for stated in (unit, str(metres)):
        state(folder, f"{{calibration: {{unit: {stated}}}, fps: 10}}")
        found = find_recording(folder)
        assert found.warnings == ()
        assert np.allclose(found.rig.t, RIG.t)


def test_a_unit_that_cannot_be(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, RIG, [PEOPLE], calibrated=replace(RIG, t=RIG.t * 0.2))
    state(folder, "{keypoints: {format: body_25}, fps: 10}")
    assert said(
        find_recording(folder), "arm and a leg of the person measure 0.27 m together.*unit of the calibration"
    )


def wrong_rig() -> Rig:
    """Every camera is turned about its own upright axis: the person is behind all of them."""
    back = np.diag([-1.0, 1, -1])
    return replace(RIG, R=back @ RIG.R, t=RIG.t @ back)


def test_a_calibration_on_which_nobody_agrees(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, RIG, [PEOPLE], calibrated=wrong_rig())
    with pytest.raises(
        InputError, match=r"25 keypoints can be body_25 or body_25b, and too few frames .*recording.yaml"
    ):
        find_recording(folder)
    state(folder, "{keypoints: {format: body_25}, fps: 10}")
    assert said(
        find_recording(folder), "no two views agree on a person: calibration, its unit, keypoint frame"
    )


def test_cameras_that_never_agree_are_named(tmp_path: Path) -> None:
    rig = ring(5)
    people = seen(rig, figure(TIME, (0.8, -0.5)))
    assert not said(find_recording(write_recording(tmp_path / "good", rig, [people])), "agrees with no other")
    swapped = find_recording(write_recording(tmp_path / "swapped", rig, [people[[1, 0, 2, 3, 4]]]))
    assert said(
        swapped, "cameras cam01 and cam02 are exchanged: with the keypoints of the other, each agrees"
    )
    assert not said(swapped, "agrees with no other view"), "one mistake is told once"
    people[1] = seen(rig, figure(1.7 * TIME[::-1], (-0.6, 0.9), 2.0))[1]
    other = find_recording(write_recording(tmp_path / "other", rig, [people]))
    for name in rig.names:
        message = f"camera {name} shows somebody but agrees with no other view in 24 of 24 sampled frames: mo"
        assert said(other, message) == (name == "cam02")
    assert not said(other, r"\binfo\b"), "info itself prints it"


def test_nobody_at_all(folder: Path) -> None:
    for file in folder.glob("keypoints/*/*.json"):
        file.write_text('{"people": []}')
    with pytest.raises(InputError, match="nobody in any of the 72 keypoint files looked at"):
        find_recording(folder)
    state(folder, "{keypoints: {format: body_25}, fps: 10}")
    assert said(find_recording(folder), "no two views agree on a person")


def test_unknown_and_mixed_numbers_of_points(tmp_path: Path) -> None:
    folder = write_recording(tmp_path / "a", RIG, [PEOPLE[:, :, :18]])
    with pytest.raises(
        InputError, match=r"18 keypoints a person fit none of the known formats: body_25 \(25\), .*coco_17"
    ):
        find_recording(folder)
    folder = write_recording(tmp_path / "b", RIG, [PEOPLE])
    for t in range(24):
        write_people(folder / "keypoints" / "cam02", "cam02", t, [PEOPLE[1, t, :17]])
    with pytest.raises(InputError, match=r"numbers of keypoints differ \(cam01 25, cam02 17, cam03 25\)"):
        find_recording(folder)


def test_other_scales_are_said(tmp_path: Path) -> None:
    scaled = PEOPLE.copy()
    scaled[..., :2] /= np.array(SIZE) - 1
    scaled[..., 2] *= 4
    folder = tmp_path
    for v, name in enumerate(RIG.names):
        for t in range(24):
            (folder / "keypoints" / name).mkdir(parents=True, exist_ok=True)
            listed = [{"pose_keypoints_2d": scaled[v, t].ravel().tolist()}]
            (folder / "keypoints" / name / f"{t}.json").write_text(json.dumps({"people": listed}))
    write_calibration(RIG, folder / "calibration.toml")
    found = find_recording(folder)
    assert said(found, r"confidences reach unusual values \(cam01 3.\d\d, cam02 3.\d\d, cam03 3.\d\d\)")
    assert said(found, "between 0 and 1: taken as fractions of the picture")
    image = found.people(np.arange(24))[:, :, 0]
    assert np.abs(image[..., :2] - PEOPLE[..., :2]).max() < 1e-3
    assert TOP_CONFIDENCE < image[..., 2].max() <= 1
    (folder / "keypoints" / "cam01" / "3.json").write_text(
        (folder / "keypoints" / "cam01" / "3.json").read_text().replace("[0.", "[-0.")
    )
    with pytest.raises(InputError, match=r"lie between -1 and 1"):
        find_recording(folder)


def test_missing_data_is_counted_by_reason(folder: Path) -> None:
    state(folder, "fps: 10")

    def file(t: int) -> Path:
        return folder / "keypoints" / "cam02" / f"cam02_{t:012d}_keypoints.json"

    file(3).unlink()
    file(4).write_text('{"people": []}')
    file(5).write_text('{"people": [{}]}')
    file(6).write_text(file(7).read_text()[:50])
    write_people(folder / "keypoints" / "cam02", "cam02", 8, [PEOPLE[1, 8, :17]])
    found = find_recording(folder)
    seen_now = np.ones((3, 24), dtype=bool)
    seen_now[1, 3:10] = False
    counted = missing_data(found, seen_now)
    assert counted[0].frames == counted[2].frames == {}
    assert counted[1].frames == {
        "no keypoint file": 1,
        "nobody": 2,
        "not JSON (cut off?)": 1,
        "not the person": 2,
        "51 numbers a person, expected 75": 1,
    }
    assert counted[1].examples["nobody"] == file(4).name
    assert counted[1].examples["not JSON (cut off?)"] == file(6).name


def test_a_camera_that_is_mostly_left_out_is_told() -> None:
    def missing(count: int) -> MissingData:
        return MissingData({"not the person": count, "nobody": 7}, {})

    shown = np.zeros((3, 99), dtype=bool)
    shown[0], shown[1, :40], shown[2, :4] = True, True, True
    (told,) = left_out("abc", [missing(0), missing(39), missing(88)], shown)
    assert told.startswith(
        "camera c was left out of the fit in 88 of the 92 frames in which it and another show somebody"
    )
    (told,) = left_out("abc", [missing(0), missing(40), missing(3)], shown)
    assert told.startswith("camera b was left out of the fit in 40 of the 80 frames")


def unused(found: Recording) -> tuple[tuple[MissingData, ...], list[str]]:
    """What is missing and told after the matching that a run would do."""
    people = found.people(np.arange(len(found)))
    xy, confidence, cfg = found.undistort(people[..., :2]), people[..., 2].astype(np.float64), MatchConfig()
    sighting, _ = track_person(found.rig, xy, confidence, found.timeline.time_s, TrackerState(), cfg)
    chosen = sighting.detection
    missing = missing_data(found, chosen >= 0)
    return missing, left_out(found.rig.names, missing, chosen >= 0)


def test_a_camera_that_is_alone_with_the_person_is_not_called_wrong(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, RIG.select(RIG.names[:2]), [PEOPLE[:2]])
    state(folder, "{fps: 10, keypoints: {format: body_25}}")
    for t in range(4, 24):
        write_people(folder / "keypoints" / "cam02", "cam02", t, [])
    (one, other), told = unused(find_recording(folder))
    assert one.frames.keys() == {"no second view"}
    assert one.frames["no second view"] >= 12
    assert other.frames == {"nobody": 20}
    assert told == []
    # Two that show somebody each, and not the same person, are.
    somebody = PEOPLE[1] + [0, 60, 0]
    for t in range(4, 24):
        write_people(folder / "keypoints" / "cam02", "cam02", t, [somebody[t]])
    assert [text.split()[1] for text in unused(find_recording(folder))[1]] == ["cam01", "cam02"]


def test_a_camera_that_is_alone_starts_no_search(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state(folder, "{fps: 10, keypoints: {format: body_25}}")
    for name in RIG.names[1:]:
        for t in range(10, 24):
            write_people(folder / "keypoints" / name, name, t, [])
    monkeypatch.setattr("pipeline.recording.find_exchanged", None)  # whoever searches fails
    assert find_recording(folder).warnings == ()


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
    with pytest.raises(InputError, match="neither a calibration"):
        find_recording(session / "a")
    (session / "b" / "recording.yaml").write_text("calibration: {path: ../calibration.toml}\n")
    with pytest.raises(InputError, match="leaves the recording"):
        find_recording(session / "b", inherit=session)
    (session / "b" / "recording.yaml").write_text("calibration: {path: calibration.toml}\n")
    assert find_recording(session / "b", inherit=session).calibration == own


def without_calibration(folder: Path, text: str = "picture_size: [1280, 720]\nfps: 24\n") -> Recording:
    (folder / "calibration.toml").unlink(missing_ok=True)
    state(folder, text)
    return find_recording(folder)


def test_without_a_calibration(folder: Path) -> None:
    found = without_calibration(folder)
    assert not found.placed
    assert found.calibration is None
    assert found.rig.names == RIG.names
    assert found.format.name == "body_25"
    assert np.allclose(found.rig.K, [[1280, 0, 639.5], [0, 1280, 359.5], [0, 0, 1]])
    assert (found.rig.dist == 0).all()
    assert found.focal_stated == (False, False, False)
    assert said(
        found, r"no calibration found: .* run estimates where they stand .* cam01, cam02, cam03 is assumed"
    )


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
    assert not said(found, "the focal length of")
    found = without_calibration(folder, size + "focal_px: {cam02: 900}")
    assert found.focal_stated == (False, True, False)
    assert found.rig.K[:, 1, 1].tolist() == [1280, 900, 1280]
    assert said(found, "the focal length of cam01, cam03 is assumed")
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
    assert said(found, "the camera is taken to stand still, and run guesses which way is up")
    assert found.people(np.arange(3)).shape[0] == 1
