"""Contract of every format of keypoint files, and the choice among them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import write_people

from pipeline import archives
from pipeline.errors import InputError
from pipeline.formats.keypoints import (
    FORMATS,
    arrays,
    coco_annotations,
    coco_results,
    easymocap_annots,
    files,
    find_camera_files,
    flat,
    index_keypoints,
    mmpose,
    mmpose_pictures,
    named_points,
    openpose,
    openpose_list,
    read_views,
)

ONE = [[0, 0, 0], [20.5, 30, 0.5], [22, 41, 0.25]]
OTHER = [[310, 20, 0.75], [320, 30.25, 0.5], [330, 40, 1]]
TRUTH = {4: [ONE, OTHER], 7: [OTHER]}
"""People of a frame in every file of ``BY_HAND``; in frame 5 there is nobody."""


def saved(*frames: list[list[list[float]]]) -> bytes:
    """An npz of these people."""
    array = np.full((len(frames), 2, 3, 3), np.nan, np.float32)
    for t, people in enumerate(frames):
        array[t, : len(people)] = np.array(people).reshape(-1, 3, 3)
    content = io.BytesIO()
    np.savez(content, keypoints=array)
    return content.getvalue()


BY_HAND: Mapping[object, Mapping[str, str | bytes]] = {
    arrays: {"cam01.npz": saved([], [], [], [], [ONE, OTHER], [], [], [OTHER])},
    named_points: {
        "cam01DLC_resnet50_walkMay5shuffle1_100000.csv": """scorer,DLC{}
individuals,a,a,a,a,a,a,a,a,a,b,b,b,b,b,b,b,b,b
bodyparts,nose,nose,nose,tail,tail,tail,ear,ear,ear,nose,nose,nose,tail,tail,tail,ear,ear,ear
coords,x,y,likelihood,x,y,likelihood,x,y,likelihood,x,y,likelihood,x,y,likelihood,x,y,likelihood
4,,,,20.5,30,0.5,22,41,0.25,310,20,0.75,320,30.25,0.5,330,40,1
5{}
7,,,,,,,,,,310,20,0.75,320,30.25,0.5,330,40,1
""".format(",DLC" * 17, "," * 18)
    },
    coco_annotations: {
        "cam01.json": """{"images": [{"id": 40, "file_name": "a/cam01_4.jpg"},
            {"id": 50, "file_name": "5.jpg"}, {"id": 70, "file_name": "7.png"}],
            "annotations": [
            {"id": 1, "image_id": 40, "keypoints": [0,0,0,20.5,30,0.5,22,41,0.25], "bbox": [1, 2, 3, 4]},
            {"id": 2, "image_id": 70, "keypoints": [310,20,0.75,320,30.25,0.5,330,40,1]},
            {"id": 3, "image_id": 40, "keypoints": [310,20,0.75,320,30.25,0.5,330,40,1]}],
            "categories": [{"id": 1, "name": "person"}]}"""
    },
    mmpose: {
        "cam01.json": """{"meta_info": {"dataset_name": "coco"}, "instance_info": [
            {"frame_id": 4, "instances": [
                {"keypoints": [[0,0],[20.5,30],[22,41]], "keypoint_scores": [0,0.5,0.25], "bbox_score": 1},
                {"keypoints": [[310,20],[320,30.25],[330,40]], "keypoint_scores": [0.75,0.5,1]}]},
            {"frame_id": 5, "instances": []},
            {"frame_id": 7, "instances": [
                {"keypoints": [[310,20],[320,30.25],[330,40]], "keypoint_scores": [0.75,0.5,1]}]}]}"""
    },
    openpose_list: {
        "cam01.json": """[{"frame": 4, "people": [{"pose_keypoints_2d": [0,0,0,20.5,30,0.5,22,41,0.25]},
            {"pose_keypoints_2d": [310,20,0.75,320,30.25,0.5,330,40,1]}]}, {"frame": 5, "people": []},
            {"frame": 7, "people": [{"pose_keypoints_2d": [310,20,0.75,320,30.25,0.5,330,40,1]}]}]"""
    },
    easymocap_annots: {
        "cam01/000004.json": """{"filename": "images/cam01/000004.jpg", "height": 480, "annots": [
            {"personID": 0, "bbox": [0,0,9,9,1], "keypoints": [[0,0,0],[20.5,30,0.5],[22,41,0.25]]},
            {"personID": 1, "keypoints": [[310,20,0.75],[320,30.25,0.5],[330,40,1]]}]}""",
        "cam01/000005.json": '{"filename": "images/cam01/000005.jpg", "annots": []}',
        "cam01/000007.json": """{"filename": "images/cam01/000007.jpg", "annots": [
            {"personID": 1, "keypoints": [[310,20,0.75],[320,30.25,0.5],[330,40,1]]}]}""",
    },
    flat: {
        "cam01_000000000004_keypoints.json": """{"version":1.3,"people":[
            {"pose_keypoints_2d":[0,0,0,20.5,30,0.5,22,41,0.25]},
            {"pose_keypoints_2d":[310,20,0.75,320,30.25,0.5,330,40,1]}]}""",
        "cam01_000000000005_keypoints.json": '{"version":1.3,"people":[]}',
        "cam01_000000000007_keypoints.json": """{"version":1.3,"people":[
            {"pose_keypoints_2d":[310,20,0.75,320,30.25,0.5,330,40,1]}]}""",
    },
    mmpose_pictures: {
        "cam01/000004.json": """[{"keypoints": [[0,0],[20.5,30],[22,41]], "keypoint_scores": [0,0.5,0.25],
            "bbox": [[0,0,30,50]], "bbox_score": 0.9},
            {"keypoints": [[310,20],[320,30.25],[330,40]], "keypoint_scores": [0.75,0.5,1]}]""",
        "cam01/000005.json": "[              ]",
        "cam01/000007.json": """[
            {"keypoints": [[310,20],[320,30.25],[330,40]], "keypoint_scores": [0.75,0.5,1]}]""",
    },
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
    coco_annotations: {
        "cam01.json": """{"images": [{"id": 1, "file_name": "7.jpg"}, {"id": 2, "file_name": "b_7.jpg"}],
            "annotations": [{"image_id": 1, "keypoints": []}, {"image_id": 2, "keypoints": []}]}"""
    },
    mmpose: {"cam01.json": '[{"frame_id": 7, "instances": []}, {"frame_id": 7, "instances": []}]'},
    openpose_list: {"cam01.json": '[{"frame": 7, "people": []}, {"frame": 7, "people": []}]'},
    mmpose_pictures: {"cam01/other_7.json": "[]"},
    easymocap_annots: {"cam01/other_7.json": '{"annots":[]}'},
    flat: {"cam01_7.json": '{"people":[]}'},
    coco_results: {
        "cam01/alphapose-results.json": """[{"image_id":"a_7.jpg","keypoints":[]},
            {"image_id":"a_8.jpg","keypoints":[]},{"image_id":"b_7.jpg","keypoints":[]}]"""
    },
    openpose: {"cam01/other_7.json": '{"people":[]}'},
}
"""Files that, beside or in place of those, make two pictures of frame 7; rows of an array cannot."""

EVERY_FORMAT = pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.__name__.rsplit(".", 1)[-1])


def put(place: Path, files: Mapping[str, str | bytes]) -> tuple[Path, ...]:
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
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
    assert find_camera_files(tmp_path) == []
    put(tmp_path, BY_HAND[form])
    (path,) = find_camera_files(tmp_path)
    assert find_camera_files(tmp_path, "*_json") == []
    assert next(f for f in FORMATS if f.find(tmp_path, path.name)) is form
    files = index_keypoints(path)
    assert (files.path, files.unnumbered) == (path.parent if form is flat else path, 0)
    numbers = {*files.numbers.tolist()}
    assert numbers | {5} in ({4, 5, 7}, {*range(8)}), "frames that are listed, or all"
    assert files.has(np.array([-1, 4, 6, 7])).tolist() == [False, True, 6 in numbers, True]
    for number, people in TRUTH.items():
        file = files.file(number)
        assert file is not None
        assert file.is_file()
        assert path in (file, file.parent) or (form is flat and path.parent == file.parent)
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
        (path,) = find_camera_files(tmp_path)
        try:
            reasons = {index_keypoints(path).people(number, 3)[1] for number in (4, 5, 7)}
        except InputError as error:
            assert file.name in str(error)  # noqa: PT017
        else:
            assert "not JSON (cut off?)" in reasons
        file.write_bytes(whole)


@pytest.mark.parametrize("form", SAME_FRAME, ids=lambda f: f.__name__.rsplit(".", 1)[-1])
def test_two_pictures_of_one_frame_are_refused(tmp_path: Path, form: object) -> None:
    put(tmp_path, {**BY_HAND[form], **SAME_FRAME[form]})
    (path,) = find_camera_files(tmp_path)
    with pytest.raises(InputError, match=r"cam01.*frame 7\b|frame 7 .*cam01"):
        index_keypoints(path)


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@EVERY_FORMAT
def test_damaged_files_give_people_or_a_message(tmp_path: Path, form: object, data: st.DataObject) -> None:
    damaged = data.draw(st.sampled_from(put(tmp_path, BY_HAND[form])))
    raw = bytearray(damaged.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        noise = [b"", b"\x00", b"\xff", b"]", b"[", b"{", b":", b"NaN", b"1e999", b"-", b'"', b","]
        raw[at : at + data.draw(st.integers(0, 12))] = data.draw(st.sampled_from(noise))
    damaged.write_bytes(raw)
    for path in find_camera_files(tmp_path):
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


@pytest.mark.parametrize(("key", "points"), [("people", "pose_keypoints_2d"), ("bodies", "joints")])
@pytest.mark.parametrize("name", ["cam01.json", "cam01/alphapose-results.json"])
def test_tables_of_pictures_as_alphapose_writes_them(
    tmp_path: Path, key: str, points: str, name: str
) -> None:
    """``--format open`` and ``cmu``: one table, and the same with a file a picture (``sep-json``)."""
    frames = {
        f"{t}.jpg": {"version": "AlphaPose v0.3", key: [{points: np.ravel(p).tolist()} for p in TRUTH[t]]}
        for t in TRUTH
    }
    put(tmp_path, {name: json.dumps(frames)})
    assert [path.name for path in find_camera_files(tmp_path)] == [name.split("/")[0]]
    put(tmp_path / "sep-json", {f"cam01/{t[:-4]}.json": json.dumps(frame) for t, frame in frames.items()})
    for place in (tmp_path, tmp_path / "sep-json"):
        files = index_keypoints(place / "cam01" if (place / "cam01").exists() else place / "cam01.json")
        assert files.numbers.tolist() == [4, 7]
        for number, people in TRUTH.items():
            np.testing.assert_array_equal(files.people(number, 3)[0], expected(people))
    put(tmp_path, {name: json.dumps({"7.jpg": frames["7.jpg"], "b_7.jpg": frames["7.jpg"]})})
    with pytest.raises(InputError, match=r"'7\.jpg' and 'b_7\.jpg' are both frame 7"):
        index_keypoints(tmp_path / name.split("/alpha")[0])


@pytest.mark.parametrize("form", ["annotations", "results"])
@pytest.mark.parametrize("name", ["images/{}/{:06}.jpg", "{}_{:06}.jpg", "all/{}-{}.png"])
def test_one_file_of_coco_holds_all_cameras(tmp_path: Path, name: str, form: str) -> None:
    cameras = ("cam01", "cam02")
    images = [
        {"id": 10 * v + t, "file_name": name.format(c, t)} for v, c in enumerate(cameras) for t in (4, 7)
    ]
    people = [
        {"image_id": 10 * v + t, "keypoints": np.add(p, [v, v, 0]).ravel().tolist()}
        for t in TRUTH
        for v in (0, 1)
        for p in TRUTH[t]
    ]
    content: Any = {"images": images, "annotations": people}
    if form == "results":
        named = {image["id"]: image["file_name"] for image in images}
        content = [{**one, "image_id": named[one["image_id"]]} for one in people]
    (tmp_path / "person_keypoints.json").write_text(json.dumps(content))
    paths = find_camera_files(tmp_path)
    assert [path.name for path in paths] == [*cameras]
    for v, path in enumerate(paths):
        files = index_keypoints(path)
        assert files.numbers.tolist() == [4, 7]
        found, _ = files.people(7, 3)
        np.testing.assert_array_equal(found, expected([np.add(p, [v, v, 0]).tolist() for p in TRUTH[7]]))


def test_arrays_with_the_scores_beside_them(tmp_path: Path) -> None:
    points = np.array(TRUTH[7], np.float32)[None]
    for scores in ("scores", "keypoint_scores"):
        np.savez(tmp_path / "cam01.npz", keypoints=points[..., :2], **{scores: points[..., 2]})
        found, _ = index_keypoints(tmp_path / "cam01.npz").people(0, 3)
        np.testing.assert_array_equal(found, expected(TRUTH[7]))


def test_two_takes_of_one_camera_are_not_two_cameras(tmp_path: Path) -> None:
    """They share no frame."""
    images = [{"id": n, "file_name": f"{'ab'[n > 4]}/{n}.jpg"} for n in range(10)]
    people = [{"image_id": n, "keypoints": np.ravel(TRUTH[7][0]).tolist()} for n in range(10)]
    (tmp_path / "cam01.json").write_text(json.dumps({"images": images, "annotations": people}))
    (path,) = find_camera_files(tmp_path)
    assert path.name == "cam01.json"
    assert index_keypoints(path).numbers.tolist() == [*range(10)]


def test_what_no_format_finds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cam[1]").mkdir()
    with pytest.raises(InputError, match=r"cam\[1\]: holds no keypoints of a known format; .* OpenPose"):
        index_keypoints(tmp_path / "cam[1]")
    (tmp_path / "cam[1]" / "0.json").write_text(json.dumps({"people": []}))
    assert len(index_keypoints(tmp_path / "cam[1]")) == 1


def test_many_files_in_a_folder_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write_people(tmp_path, name, 0, [])
        write_people(tmp_path, name, 1, [])
    opened: list[Path] = []
    open_file = Path.open

    def note(file: Path, *args: Any) -> Any:
        opened.append(file)
        return open_file(file, *args)

    monkeypatch.setattr(Path, "open", note)
    for most, count in ((4, 4), (3, 2)):
        monkeypatch.setattr(files, "MAX_CAMERAS", most)
        opened.clear()
        assert find_camera_files(tmp_path) == [tmp_path / "a", tmp_path / "b"]
        assert len({*opened}) == count, "all that may be a camera's own; else one a camera"
        assert len(index_keypoints(tmp_path / "a")) == 2


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1000)
    np.savez_compressed(tmp_path / "cam01.npz", keypoints=np.zeros((1000, 1, 25, 3), np.float32))
    with pytest.raises(InputError, match=r"cam01\.npz: cannot be read as an array \(unpacks to 0 MB, "):
        index_keypoints(tmp_path / "cam01.npz")


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
