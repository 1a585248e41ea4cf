"""Every mistake in recording.yaml gets a message that names file, key and value."""

from __future__ import annotations

from pathlib import Path

import pytest
from recordings import SMALL_PEOPLE as PEOPLE
from recordings import SMALL_RIG as RIG
from recordings import (
    said,
    state,
    write_recording,
)

from pipeline.errors import InputError
from pipeline.recording import find_recording
from pipeline.settings import read_stated
from stages.inspect import inspect


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "rec", RIG, [PEOPLE])


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
        "keypoints.path: .* holds no keypoints of a camera",
    ),
    "first frame": ("keypoints: {first_frame: 1000}", "number is below keypoints.first_frame"),
    "up": ("up: north", "up.*north"),
    "no up": ("up: [0, 0, 0]", "up.*is no direction"),
    "count": ("keypoints: {format: coco_17}", "keypoints.format coco_17 has 17 points, the files have 25"),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_bad_recording_yaml(folder: Path, case: str) -> None:
    text, message = BAD_YAML[case]
    state(folder, text)
    with pytest.raises(
        InputError, match=f"(?s)recording.yaml.*{message}" if case != "no overlap" else message
    ):
        inspect(find_recording(folder))


def test_an_empty_recording_yaml_says_nothing(folder: Path) -> None:
    state(folder, "# nothing\n")
    assert said(find_recording(folder), "30 fps assumed; state fps in recording.yaml")


@pytest.mark.parametrize(
    ("text", "up"),
    [("z", (0, 0, 1)), ("-Y", (0, -1, 0)), ("+x", (1, 0, 0)), ("[0, 3, -4]", (0, 0.6, -0.8))],
)
def test_up_is_an_axis_or_a_vector(folder: Path, text: str, up: tuple[float, ...]) -> None:
    state(folder, f"up: {text}")
    assert read_stated([folder]).up == pytest.approx(up)
