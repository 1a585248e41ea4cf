"""Videos of a recording: suffixes, folders of pictures, and what is not read."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from recordings import SMALL, SMALL_PEOPLE, SMALL_RIG, add_videos, said, state, write_recording

from pipeline.errors import InputError
from pipeline.footage import find_videos, probe_videos
from pipeline.recording import find_recording
from pipeline.video import probe, read_frames, to_rgb


def picture(t: int, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    """Grey in a shade that tells the frame."""
    return np.full((size[1], size[0], 3), 40 + 8 * (t % 24), np.uint8)


def write(file: Path, container: str, codec: str, frames: int = 12, rate: int = 25) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w", container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height = 96, 64
        stream.pix_fmt = kind = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for t in range(frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(t), "rgb24").reformat(format=kind)))
        out.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("suffix", "container", "codec"),
    [
        (".MTS", "mpegts", "libx264"),
        (".m2ts", "mpegts", "mpeg2video"),
        (".m4v", "mp4", "libx264"),
        (".mpg", "mpeg", "mpeg1video"),
        (".wmv", "asf", "wmv2"),
        (".flv", "flv", "flv"),
        (".mjpeg", "mjpeg", "mjpeg"),
        (".h264", "h264", "libx264"),
        (".camera", "matroska", "libx264"),  # a suffix that nobody knows
    ],
)
def test_whatever_ffmpeg_opens_is_a_video(tmp_path: Path, suffix: str, container: str, codec: str) -> None:
    write(tmp_path / "videos" / f"cam01{suffix}", container, codec)
    (tmp_path / "videos" / "notes.txt").write_text("the second take\n" * 20)
    cv2.imwrite(str(tmp_path / "videos" / "set.png"), picture(3))
    found = find_videos(tmp_path, [])
    assert {n: f.name for n, f in found.items()} == {"cam01": f"cam01{suffix}"}
    video = probe_videos(found, None, {})["cam01"]
    assert (len(video.times_s), video.size, video.rate) == (12, (96, 64), 25)
    assert bool(video.warnings) == (container in ("mjpeg", "h264")), "no time stamps"
    assert video.times_s - video.times_s[0] == pytest.approx(np.arange(12) / 25, abs=1.5e-3)
    shades = [to_rgb(f)[32, 48].mean() for f in read_frames(video, [0, 5, 11]) if f is not None]
    assert shades == pytest.approx([40, 80, 128], abs=6)


def pictures(folder: Path, numbers: list[int], name: str = "{:06d}.jpg") -> None:
    folder.mkdir(parents=True)
    for n in numbers:
        cv2.imwrite(str(folder / name.format(n)), picture(n))


def test_folders_of_pictures_are_videos_on_one_number_line(tmp_path: Path) -> None:
    pictures(tmp_path / "Images" / "1", [1, 2, 3, 6, 7])
    pictures(tmp_path / "Images" / "2", [3, 4, 5], "left_{}.PNG")
    found = find_videos(tmp_path, [])
    videos = probe_videos(found, Fraction(50), {})
    assert {n: (len(v.times_s), v.first_number, v.codec) for n, v in videos.items()} == {
        "1": (7, 1, "jpg pictures"),
        "2": (5, 1, "png pictures"),
    }
    assert "2 pictures are missing, the first of them number 4" in videos["1"].warnings[0]
    assert videos["1"].times_s == pytest.approx(np.arange(7) / 50)
    shades = [
        None if f is None else round(to_rgb(f)[9, 9].mean()) for f in read_frames(videos["1"], range(7))
    ]
    assert shades == [48, 56, 64, None, None, 88, 96]
    assert [f is None for f in read_frames(videos["2"], [-1, 0, 1, 2, 4])] == [True, True, True, False, False]
    # Keypoints of all pictures, and more: the pictures are a part of the recording.
    longer = probe_videos(found, None, {"2": np.arange(1, 21)})
    assert {n: (len(v.times_s), v.rate) for n, v in longer.items()} == {"1": (7, 30), "2": (20, 30)}


@pytest.mark.parametrize("first", [0, 1])
def test_a_recording_of_pictures_has_its_rate_stated(tmp_path: Path, first: int) -> None:
    write_recording(tmp_path, SMALL_RIG, [SMALL_PEOPLE])
    for name in SMALL_RIG.names:
        (tmp_path / "images" / name).mkdir(parents=True)
        for t in range(24):
            cv2.imwrite(str(tmp_path / "images" / name / f"{t + first}.png"), picture(t, SMALL))
    recording = find_recording(tmp_path)
    assert [f.code for f in recording.findings] == ["fps_assumed"]
    assert (len(recording), recording.first_frame) == (24, 0)
    state(tmp_path, "fps: 12.5")
    recording = find_recording(tmp_path)
    assert recording.findings == ()
    assert recording.timeline.rate == Fraction("12.5")
    assert all(v and v.size == SMALL for v in recording.videos)
    assert "png pictures 320x180, 24 frames at 12.5 fps" in dict(recording.notes)["camera cam01"]


def test_two_pictures_of_one_frame_and_stamps_for_numbers_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "images" / "1", [4])
    pictures(tmp_path / "images" / "2", [1636370000123, 1636370000456])
    with pytest.raises(InputError, match=r"2 pictures are numbered 1636370000123 to .* from 4 on; .* count"):
        probe_videos(find_videos(tmp_path, []), None, {})
    cv2.imwrite(str(tmp_path / "images" / "1" / "4.png"), picture(4))
    with pytest.raises(InputError, match=r"000004.jpg and 4.png are both frame 4"):
        probe_videos(find_videos(tmp_path, []), None, {})


def test_videos_that_are_not_read_are_named(tmp_path: Path) -> None:
    write_recording(tmp_path, SMALL_RIG, [SMALL_PEOPLE])
    add_videos(tmp_path, "footage")
    (tmp_path / "results" / "results.zarr").mkdir(parents=True)
    (tmp_path / "results" / "overlay_cam01.mp4").touch()
    recording = find_recording(tmp_path)
    assert said(recording, r"3 videos are not read, the first is footage/cam01.mp4: .* videos/<camera>.mp4")
    (tmp_path / "footage").rename(tmp_path / "videos-raw")
    assert all(find_recording(tmp_path).videos)
    (tmp_path / "videos-raw").rename(tmp_path / "videos")
    (tmp_path / "videos" / "cam01.LRV").touch()
    recording = find_recording(tmp_path)
    assert said(recording, r"1 videos are not read, the first is videos/cam01.LRV")


def test_a_stream_may_say_its_rate(tmp_path: Path) -> None:
    """H.264 without a container, at a rate that is not FFmpeg's guess of 25."""
    write(tmp_path / "a.h264", "h264", "libx264", rate=30)
    assert probe(tmp_path / "a.h264").rate == 30


def test_pictures_in_no_cameras_folder_are_named(tmp_path: Path) -> None:
    write_recording(tmp_path, SMALL_RIG, [SMALL_PEOPLE])
    pictures(tmp_path / "images", [0, 1], "cam01_{:06d}.jpg")
    assert said(find_recording(tmp_path), r"2 pictures are not read, the first is images/cam01_000000.jpg: ")


def test_pictures_beside_no_videos_are_named(tmp_path: Path) -> None:
    write_recording(tmp_path, SMALL_RIG, [SMALL_PEOPLE])
    pictures(tmp_path / "cam01", [0, 1], "{:06d}.jpg")
    assert said(find_recording(tmp_path), r"2 pictures are not read, the first is cam01/000000.jpg: ")


def test_pictures_may_lie_deeper_in_a_cameras_folder(tmp_path: Path) -> None:
    pictures(tmp_path / "images" / "cam01" / "rgb", [0, 1], "{:06d}.jpg")
    pictures(tmp_path / "images" / "cam02" / "rgb", [0, 1], "{:06d}.jpg")
    pictures(tmp_path / "images" / "cam02" / "depth", [0, 1], "{:06d}.jpg")
    assert find_videos(tmp_path, []) == {"cam01": tmp_path / "images" / "cam01" / "rgb"}


def test_a_board_in_a_cameras_folder_is_not_its_video(tmp_path: Path) -> None:
    for camera in (tmp_path / "videos" / name for name in SMALL_RIG.names):
        pictures(camera / "Intrinsics", [1, 2], "board_{:02d}.png")
        assert find_videos(tmp_path, []) == {}
    for camera in (tmp_path / "videos" / name for name in SMALL_RIG.names):
        write(camera / "Camera" / "walk.mp4", "mp4", "libx264", 2)
        write(camera / "calibration" / "board.mp4", "mp4", "libx264", 2)
    assert [f.name for f in find_videos(tmp_path, []).values()] == ["walk.mp4"] * len(SMALL_RIG)


def test_a_link_out_of_a_cameras_folder_gives_it_no_other_cameras_video(tmp_path: Path) -> None:
    write(tmp_path / "videos" / "cam01" / "walk.mp4", "mp4", "libx264", 2)
    (tmp_path / "videos" / "cam02").mkdir()
    (tmp_path / "videos" / "cam02" / "up").symlink_to("..")
    assert [*find_videos(tmp_path, [])] == ["cam01"]


@pytest.mark.parametrize("card", ["", "DCIM/100GOPRO", "InputMedia/walk", "AVCHD/BDMV/STREAM"])
def test_a_folder_a_camera_may_hold_its_one_video(tmp_path: Path, card: str) -> None:
    for name in SMALL_RIG.names:
        write(tmp_path / "videos" / name / card / "GX010001.MP4", "mp4", "libx264", 2)
    assert {n: f.name for n, f in find_videos(tmp_path, []).items()} == dict.fromkeys(
        SMALL_RIG.names, "GX010001.MP4"
    )
