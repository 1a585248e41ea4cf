"""COCO results: frame numbers of pictures, lists of any length, and recordings that are made of them."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import SHARED, SMALL_PEOPLE, SMALL_RIG, add_videos, said, state, write_recording

from pipeline.errors import InputError
from pipeline.formats.keypoints import coco_results
from pipeline.formats.keypoints import listed as listed_people
from pipeline.formats.keypoints.coco_results import read
from pipeline.recording import find_recording
from stages.inspect import NOT_THE_PERSON, inspect, missing_data

POINTS = [10.5, 20, 0.5, 30, 40.25, 0.75]
CASE = SHARED / "cases" / "alphapose_list"
PLACES = ("keypoints/{}/alphapose-results.json", "keypoints/{}.json", "{}_json/results.json")


def entry(image: Any, shift: float = 0) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "keypoints": [POINTS[0] + shift, *POINTS[1:]], "score": 2.1}


def listed(folder: Path, entries: list[Any], **how: Any) -> Path:
    file = folder / "results.json"
    file.write_text(json.dumps(entries, **how), encoding="utf-8")
    return file


def as_lists(folder: Path, place: str) -> None:
    """Put the OpenPose files of a recording into a list a camera."""
    for camera in sorted((folder / "keypoints").iterdir()):
        entries = [
            entry(f"{int(file.stem.split('_')[1])}.jpg") | {"keypoints": person["pose_keypoints_2d"]}
            for file in sorted(camera.iterdir())
            for person in json.loads(file.read_text())["people"]
        ]
        shutil.rmtree(camera)
        file = folder / place.format(camera.name)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("image", "frame"),
    [
        (12, 12),
        ("12", 12),
        ("0.jpg", 0),
        ("cam2/frame_0012.png", 12),
        ("7_rendered.mp4", 7),
        ("vorne_ü.7.JPG", 7),
    ],
)
def test_the_last_number_of_a_picture_is_its_frame(tmp_path: Path, image: int | str, frame: int) -> None:
    for how in ({}, {"ensure_ascii": False, "indent": 2}):
        files = read(listed(tmp_path, [entry(image)], **how))
        assert files.numbers.tolist() == [frame]
        assert files.people(frame, 2)[0].ravel().tolist() == POINTS


@pytest.mark.parametrize("image", [-1, 1.5, True, None, [3], "front.mp4", "", "9" * 19, 10**18])
def test_a_picture_without_a_frame_is_refused(tmp_path: Path, image: object) -> None:
    with pytest.raises(InputError, match=r"results\.json, entry 1: image_id has no frame number: "):
        read(listed(tmp_path, [entry(3), entry(image)]))


@pytest.mark.parametrize(
    "other", [{"frame_id": 0, "instances": []}, {"image_id": 1, "bbox": [1, 2, 3, 4]}, [1, 2], "x"], ids=str
)
def test_a_list_of_something_else_is_refused(tmp_path: Path, other: object) -> None:
    with pytest.raises(InputError, match="entry 0: expected an object with image_id and keypoints"):
        read(listed(tmp_path, [other]))


def test_a_list_that_ends_early_is_refused_with_the_place(tmp_path: Path) -> None:
    file = listed(tmp_path, [entry(0), entry(1), entry(2)])
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"results\.json: cut off or damaged after 2 entries, at byte 19\d;"):
        read(file)
    for text in ("", '{"people": []}'):
        file.write_text(text)
        with pytest.raises(InputError, match=r"results\.json: no JSON list of people"):
            read(file)


def test_a_list_is_read_in_pieces_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = [entry(f"{frame}.jpg", person) for person in range(3) for frame in range(2000)]
    file = listed(tmp_path, crowd)
    file.write_bytes(b"\xef\xbb\xbf \n" + file.read_bytes())
    assert coco_results.find(tmp_path, "*") == [file]
    monkeypatch.setattr(listed_people, "_MAX_ENTRY", 300)
    monkeypatch.setattr(listed_people, "_PIECE", 1000)
    tracemalloc.start()
    files = read(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < file.stat().st_size, "half of it is the index, which is small against longer entries"
    assert files.numbers.tolist() == [*range(2000)]
    for frame in (0, 999, 1999):
        assert files.people(frame, 2)[0][:, 0, 0].tolist() == [10.5, 11.5, 12.5]


@pytest.mark.parametrize("place", PLACES)
def test_a_recording_of_lists_is_that_of_a_file_a_frame(tmp_path: Path, place: str) -> None:
    want = inspect(find_recording(write_recording(tmp_path / "a", SMALL_RIG, [SMALL_PEOPLE])))
    folder = write_recording(tmp_path / "b", SMALL_RIG, [SMALL_PEOPLE])
    as_lists(folder, place)
    found = inspect(find_recording(folder))
    assert found.rig.names == want.rig.names
    assert found.point_order == want.point_order
    assert found.warnings == want.warnings
    frames = np.arange(24)
    np.testing.assert_array_equal(found.people(frames), want.people(frames))
    assert dict(found.notes)["camera cam01"].startswith("no video, 24 frames in ")


def test_lists_beside_folders_are_no_cameras(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, SMALL_RIG, [SMALL_PEOPLE])
    (folder / "keypoints" / "summary_1.json").write_text("[]")
    assert find_recording(folder).rig.names == SMALL_RIG.names


def test_a_folder_of_one_cameras_files_is_not_a_folder_of_lists(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, SMALL_RIG, [SMALL_PEOPLE])
    state(folder, "keypoints: {path: keypoints/cam01}")
    with pytest.raises(InputError, match="holds no keypoints of a camera"):
        find_recording(folder)


def test_frames_without_an_entry_show_nobody(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, SMALL_RIG, [SMALL_PEOPLE])
    as_lists(folder, "keypoints/{}.json")
    add_videos(folder)
    file = folder / "keypoints" / "cam02.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([e for e in entries if e["image_id"] not in ("5.jpg", "6.jpg", "23.jpg")]))
    found = inspect(find_recording(folder))
    assert found.warnings == ()
    missing = missing_data(found, np.zeros((3, 24), bool))
    assert missing[1].frames == {"nobody": 3, NOT_THE_PERSON: 21}
    assert missing[1].examples["nobody"] == "frame 5"
    file.write_text("[]")
    assert said(find_recording(folder), "camera cam02 has no keypoints: it takes no part in the fit")
    file.write_text("")
    with pytest.raises(InputError, match=r"cam02\.json: no JSON list"):
        find_recording(folder)


@pytest.mark.skipif(not CASE.exists(), reason="needs the shared cases")
def test_what_alphapose_wrote() -> None:
    found = inspect(find_recording(CASE))
    assert found.point_order.name == "coco_17"
    assert [len(files) for files in found.keypoints if files] == [22, 24, 22, 24]
    assert not said(found, "missing|not used")


@pytest.mark.parametrize("place", PLACES[:2])
def test_what_lies_beside_the_lists_hides_none(tmp_path: Path, place: str) -> None:
    """AlphaPose's settings, and what a tracker of its writes."""
    folder = write_recording(tmp_path, SMALL_RIG, [SMALL_PEOPLE])
    as_lists(folder, place)
    for name in SMALL_RIG.names:
        beside = (folder / place.format(name)).parent
        (beside / "config.json").write_text("{}")
        if "{}/" in place:
            (beside / "alphapose-results-forvis-tracked.json").write_text("[]")
    found = find_recording(folder)
    assert [len(files) for files in found.keypoints if files] == [24] * len(SMALL_RIG)
