"""Detection in the videos of a recording that has no keypoints."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from recordings import BALANCING

from pipeline.errors import InputError
from pipeline.recording import find_recording
from pipeline.video import VideoWriter, read_frames
from stages.decode import DecodeConfig, decode
from stages.detect import DetectConfig, detect_recording

FRAMES = 11
SHARED = pytest.mark.skipif(not BALANCING.exists(), reason="needs the shared balancing recording")


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first frames of two cameras of a real recording; the second has two frames less."""
    folder = tmp_path_factory.mktemp("filmed")
    (folder / "videos").mkdir()
    for name, count in (("cam01", FRAMES), ("cam03", FRAMES - 2)):
        with VideoWriter(folder / "videos" / f"{name}.mp4", 60, threads=1) as video:
            for frame in read_frames(BALANCING / "videos" / f"{name}.mp4", range(count)):
                video.write(frame)
    return folder


def frames(videos, index, start):
    return decode(videos, index, DecodeConfig(), start)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.json"))}


def detected(recording: Path, out: Path) -> list[int]:
    total, done = detect_recording(recording, out, DetectConfig(), frames)
    assert total == FRAMES
    return list(done)


@SHARED
def test_a_detection_that_was_stopped_goes_on_to_the_same_bytes(filmed: Path, tmp_path: Path) -> None:
    assert detected(filmed, tmp_path / "whole") == [*range(1, FRAMES + 1)]
    whole = contents(tmp_path / "whole")
    assert len(whole) == 2 * FRAMES - 2
    for stop in (2, 6):
        _, done = detect_recording(filmed, tmp_path / "broken", DetectConfig(), frames)
        assert list(islice(done, stop))
        done.close()
        assert not (tmp_path / "broken").exists()
    with pytest.raises(InputError, match=r"was begun with .*heavy.* now .*full"):
        next(detect_recording(filmed, tmp_path / "broken", DetectConfig(model="full"), frames)[1])
    rest = detected(filmed, tmp_path / "broken")
    assert rest[-1] == FRAMES
    assert len(rest) < FRAMES
    assert contents(tmp_path / "broken") == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "whole"]
    with pytest.raises(InputError, match="is there already"):
        detect_recording(filmed, tmp_path / "whole", DetectConfig(), frames)


@SHARED
def test_the_person_is_found_where_another_detector_found_them(filmed: Path) -> None:
    with pytest.raises(InputError, match=r"has videos and no keypoints\. Make them: .* detect "):
        find_recording(filmed)
    detected(filmed, filmed / "keypoints")
    found = find_recording(filmed)
    assert found.rig.names == ("cam01", "cam03")
    for name in found.rig.names:
        for file in sorted((filmed / "keypoints" / name).iterdir()):
            people = json.loads(file.read_text())["people"]
            points = np.array([p["pose_keypoints_2d"] for p in people]).reshape(-1, 25, 3)
            number = int(file.name.split("_")[1])
            other = BALANCING / "keypoints" / name / f"{name}_{number:012d}_keypoints.json"
            true = np.array(json.loads(other.read_text())["people"][0]["pose_keypoints_2d"]).reshape(-1, 3)
            # BODY_25B has shoulders, elbows, wrists, knees and ankles at 5–10 and 13–16.
            pairs = {5: 5, 2: 6, 6: 7, 3: 8, 7: 9, 4: 10, 13: 13, 10: 14, 14: 15, 11: 16}
            both = [(a, b) for a, b in pairs.items() if true[b, 2] > 0.3]
            miss = [
                np.median([np.linalg.norm(p[a, :2] - true[b, :2]) for a, b in both if p[a, 2] > 0] or [999])
                for p in points
            ]
            assert min(miss) < 40, "pixels, of a person some 1,000 tall"


def test_nothing_to_look_at_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no videos found"):
        detect_recording(tmp_path, tmp_path / "keypoints", DetectConfig(), frames)


def test_pictures_without_people_give_empty_lists(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with VideoWriter(tmp_path / "videos" / "cam.mp4", 30, threads=1) as video:
        for _ in range(3):
            video.write(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), "rgb24"))
    total, done = detect_recording(tmp_path, tmp_path / "keypoints", DetectConfig(model="full"), frames)
    assert list(done) == [1, 2, 3] == [*range(1, total + 1)]
    assert {json.loads(x)["people"] == [] for x in contents(tmp_path / "keypoints").values()} == {True}
