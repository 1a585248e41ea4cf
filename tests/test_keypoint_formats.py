"""Contract of every format of keypoint files, and the choice among them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import write_people

from pipeline.errors import InputError
from pipeline.formats.keypoints import (
    FORMATS,
    coco_results,
    find_cameras,
    index_keypoints,
    openpose,
    read_views,
)

ONE = [[0, 0, 0], [20.5, 30, 0.5], [22, 41, 0.25]]
OTHER = [[310, 20, 0.75], [320, 30.25, 0.5], [330, 40, 1]]
TRUTH = {4: [ONE, OTHER], 7: [OTHER]}
"""People of a frame in every file of ``BY_HAND``; in frame 5 there is nobody."""

BY_HAND: Mapping[object, Mapping[str, str]] = {
    coco_results: {
        "cam01/alphapose-results.json": """[
            {"image_id":"4.jpg","category_id":1,"keypoints":[0,0,0,20.5,30,0.5,22,41,0.25],"score":1.1},
            {"image_id":"7.jpg","category_id":1,"keypoints":[310,20,0.75,320,30.25,0.5,330,40,1],"score":2.9},
            {"image_id":"4.jpg","category_id":1,"keypoints":[310,20,0.75,320,30.25,0.5,330,40,1],"score":2.9}
        ]"""
    },
    openpose: {
        "cam01/cam01_000000000004_keypoints.json": """{"version":1.3,"people":[
            {"person_id":[-1],"pose_keypoints_2d":[0,0,0,20.5,30,0.5,22,41,0.25],"face_keypoints_2d":[]},
            {"person_id":[-1],"pose_keypoints_2d":[310,20,0.75,320,30.25,0.5,330,40,1]}]}""",
        "cam01/cam01_000000000005_keypoints.json": '{"version":1.3,"people":[]}',
        "cam01/cam01_000000000007_keypoints.json": """{"version":1.3,"people":[
            {"person_id":[-1],"pose_keypoints_2d":[310,20,0.75,320,30.25,0.5,330,40,1]}]}""",
    },
}
"""Files of one camera in each format, written by hand from its description."""

SAME_FRAME: Mapping[object, Mapping[str, str]] = {
    coco_results: {
        "cam01/alphapose-results.json": """[{"image_id":"a_7.jpg","keypoints":[]},
            {"image_id":"a_8.jpg","keypoints":[]},{"image_id":"b_7.jpg","keypoints":[]}]"""
    },
    openpose: {"cam01/other_7.json": '{"people":[]}'},
}
"""Files that, beside or in place of those, make two pictures of frame 7."""

EVERY_FORMAT = pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.__name__.rsplit(".", 1)[-1])


def put(place: Path, files: Mapping[str, str]) -> tuple[Path, ...]:
    for name, text in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    return tuple(place / name for name in files)


def expected(people: list[list[list[float]]]) -> np.ndarray:
    points = np.array(people)
    points[points[..., 2] == 0] = np.nan, np.nan, 0
    return points


@EVERY_FORMAT
def test_files_written_by_hand_are_found_and_read(tmp_path: Path, form: object) -> None:
    (tmp_path / "notes.txt").write_text("[1, 2]")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0.jpg").touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "4.json").touch()
    assert find_cameras(tmp_path) == []
    put(tmp_path, BY_HAND[form])
    (path,) = find_cameras(tmp_path)
    assert find_cameras(tmp_path, "*_json") == []
    assert next(f for f in FORMATS if f.find(tmp_path, path.name)) is form
    files = index_keypoints(path)
    assert (files.path, files.unnumbered) == (path, 0)
    assert {*files.numbers.tolist()} | {5} == {4, 5, 7}
    assert files.has(np.array([-1, 4, 6, 7])).tolist() == [False, True, False, True]
    for number, people in TRUTH.items():
        file = files.file(number)
        assert file is not None
        assert file.is_file()
        assert path in (file, file.parent)
        found, reason = files.people(number, 3)
        assert (found.dtype, reason) == (np.float32, "")
        np.testing.assert_array_equal(found, expected(people))
        assert files.point_counts(number) == {3}
        assert files.people(number, 4)[1] == "9 numbers a person, expected 12"
    assert files.content(4) != files.content(7)
    assert files.people(5, 3)[1] == "nobody"
    for number in (5, 6, 8, -1):
        found, reason = files.people(number, 3)
        assert found.shape == (0, 3, 3)
        assert reason
        assert files.point_counts(number) == set()
    assert files.file(-1) is None


@EVERY_FORMAT
def test_a_file_cut_short_is_told(tmp_path: Path, form: object) -> None:
    for file in put(tmp_path, BY_HAND[form]):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        (path,) = find_cameras(tmp_path)
        try:
            reasons = {index_keypoints(path).people(number, 3)[1] for number in (4, 5, 7)}
        except InputError as error:
            assert file.name in str(error)  # noqa: PT017
        else:
            assert "not JSON (cut off?)" in reasons
        file.write_bytes(whole)


@EVERY_FORMAT
def test_two_pictures_of_one_frame_are_refused(tmp_path: Path, form: object) -> None:
    put(tmp_path, {**BY_HAND[form], **SAME_FRAME[form]})
    (path,) = find_cameras(tmp_path)
    with pytest.raises(InputError, match=r"cam01.*frame 7\b"):
        index_keypoints(path)


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@EVERY_FORMAT
def test_damaged_files_give_people_or_a_message(tmp_path: Path, form: object, data: st.DataObject) -> None:
    damaged = data.draw(st.sampled_from(put(tmp_path, BY_HAND[form])))
    raw = bytearray(damaged.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        noise = [b"", b"\x00", b"\xff", b"]", b"[", b"{", b":", b"NaN", b"1e999", b"-", b'"', b","]
        raw[at : at + data.draw(st.integers(0, 12))] = data.draw(st.sampled_from(noise))
    damaged.write_bytes(raw)
    for path in find_cameras(tmp_path):
        try:
            files = index_keypoints(path)
        except InputError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017
            continue
        for number in (4, 5, 7):
            found, reason = files.people(number, 3)
            assert bool(len(found)) != bool(reason)
            missing = found[..., 2] == 0
            assert (np.isnan(found[..., :2]) == missing[..., None]).all()
            assert np.isfinite(found[..., 2]).all()


def test_what_no_format_finds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cam[1]").mkdir()
    with pytest.raises(InputError, match=r"cam\[1\]: holds no keypoints of a known format; .* OpenPose"):
        index_keypoints(tmp_path / "cam[1]")
    (tmp_path / "cam[1]" / "0.json").write_text(json.dumps({"people": []}))
    assert len(index_keypoints(tmp_path / "cam[1]")) == 1


def test_views_are_stacked_and_padded_with_nothing(tmp_path: Path) -> None:
    points = np.stack([np.linspace(10, 400, 25), np.linspace(20, 300, 25), np.linspace(0.2, 0.9, 25)], -1)
    write_people(tmp_path / "a", "a", 0, [points, points + np.array([1, 1, 0])])
    write_people(tmp_path / "a", "a", 1, [])
    write_people(tmp_path / "b", "b", 1, [points])
    files = [index_keypoints(tmp_path / "a"), index_keypoints(tmp_path / "b"), None]
    found = read_views(files, np.array([[0, 1, -1], [1, 0, 1], [0, 1, 2]]), 25)
    assert found.shape == (3, 3, 2, 25, 3)
    there = (found[..., 2] > 0).any(-1)
    assert np.argwhere(there).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 2, 0]]
    assert np.allclose(found[1, 2, 0], points, atol=1e-3)
    assert np.isnan(found[..., :2][~there]).all()
    assert (found[..., 2][~there] == 0).all()
