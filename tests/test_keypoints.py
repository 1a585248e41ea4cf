"""Keypoint files: everything that detectors write is read or missing with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from recordings import write_people

from pipeline.errors import InputError
from pipeline.keypoints import MAX_PEOPLE, count_points, index_keypoints, read_people, read_views

POINTS = np.stack([np.linspace(10, 400, 25), np.linspace(20, 300, 25), np.linspace(0.2, 0.9, 25)], -1)
FLAT = POINTS.ravel().tolist()


def file_with(folder: Path, text: str | bytes) -> Path:
    path = folder / "cam_000000000000_keypoints.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def people_of(*people: object) -> str:
    return json.dumps({"version": 1.3, "people": people})


def test_a_person_is_read(tmp_path: Path) -> None:
    found, reason = read_people(file_with(tmp_path, people_of({"pose_keypoints_2d": FLAT})), 25)
    assert reason == ""
    assert found.dtype == np.float32
    assert np.allclose(found, POINTS[None])


def test_files_of_old_openpose(tmp_path: Path) -> None:
    text = json.dumps({"people": [{"pose_keypoints": FLAT}]})
    assert len(read_people(file_with(tmp_path, text), 25)[0]) == 1


@pytest.mark.parametrize("missing", [(0, 0, 0), (5, 5, 0), (5, 5, -1), (0, 0, 0.4)], ids=str)
def test_a_missing_point_is_nan_never_zero(tmp_path: Path, missing: tuple[float, float, float]) -> None:
    values = [*missing, *FLAT[3:]]
    found, _ = read_people(file_with(tmp_path, people_of({"pose_keypoints_2d": values})), 25)
    assert np.isnan(found[0, 0, :2]).all()
    assert found[0, 0, 2] == 0
    assert np.allclose(found[0, 1:], POINTS[1:])


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "null", "1e300"])
def test_a_point_that_is_no_number_is_missing(tmp_path: Path, word: str) -> None:
    text = people_of({"pose_keypoints_2d": ["@", *FLAT[1:]]}).replace('"@"', word)
    found, reason = read_people(file_with(tmp_path, text), 25)
    assert reason == ""
    assert np.isnan(found[0, 0, :2]).all()
    assert np.isfinite(found[0, 1:]).all()


NOBODY = {
    "no people": (people_of(), "nobody"),
    "empty person": (people_of({}), "nobody"),
    "no points": (people_of({"pose_keypoints_2d": []}), "nobody"),
    "person is a list": (people_of([1, 2]), "nobody"),
    "all missing": (people_of({"pose_keypoints_2d": [0] * 75}), "nobody"),
    "all nan": (people_of({"pose_keypoints_2d": ["@"] * 75}).replace('"@"', "NaN"), "not finite numbers"),
    "cut off": (people_of({"pose_keypoints_2d": FLAT})[:90], "not JSON"),
    "empty file": ("", "not JSON"),
    "binary": (b"\xff\xfe\x00\x01", "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "a list": ("[1, 2]", "no list of people"),
    "no key": ("{}", "no list of people"),
    "people is a word": ('{"people": "two"}', "no list of people"),
    "other count": (people_of({"pose_keypoints_2d": FLAT[:54]}), "54 numbers a person, expected 75"),
    "no third": (people_of({"pose_keypoints_2d": FLAT[:-1]}), "74 numbers"),
    "words": (people_of({"pose_keypoints_2d": ["x"] * 75}), "not numbers"),
    "nested": (people_of({"pose_keypoints_2d": [[1, 2, 3]] * 75}), "not numbers"),
}


@pytest.mark.parametrize("case", NOBODY)
def test_nobody_has_a_reason(tmp_path: Path, case: str) -> None:
    text, expected = NOBODY[case]
    found, reason = read_people(file_with(tmp_path, text), 25)
    assert found.shape == (0, 25, 3)
    assert expected in reason


def test_no_such_file(tmp_path: Path) -> None:
    found, reason = read_people(tmp_path / "gone.json", 25)
    assert len(found) == 0
    assert reason == "cannot be read (No such file or directory)"


def test_a_bad_person_does_not_hide_a_good_one(tmp_path: Path) -> None:
    text = people_of({}, {"pose_keypoints_2d": FLAT[:30]}, {"pose_keypoints_2d": FLAT})
    found, reason = read_people(file_with(tmp_path, text), 25)
    assert (len(found), reason) == (1, "")
    assert count_points(file_with(tmp_path, text)) == {25, 10}


def test_of_a_crowd_the_clearest_are_kept_in_order(tmp_path: Path) -> None:
    crowd = [POINTS * [1, 1, 0.1 + 0.9 * ((7 * i) % 20) / 20] + [i, 0, 0] for i in range(20)]
    text = people_of(*({"pose_keypoints_2d": p.ravel().tolist()} for p in crowd))
    found, _ = read_people(file_with(tmp_path, text), 25)
    clearest = sorted(sorted(range(20), key=lambda i: -((7 * i) % 20))[:MAX_PEOPLE])
    assert np.rint(found[:, 0, 0] - POINTS[0, 0]).astype(int).tolist() == clearest


def test_index_finds_every_file_by_its_last_number(tmp_path: Path) -> None:
    for n in (0, 2, 3, 11, 1_000_000_000_000):
        (tmp_path / f"s7_cam2_{n:012d}_keypoints.json").touch()
    (tmp_path / "other_4.json").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "._cam2_000000000005_keypoints.json").touch()
    (tmp_path / "summary.json").touch()
    files, unnumbered = index_keypoints(tmp_path)
    assert unnumbered == 1
    assert files.numbers.tolist() == [0, 2, 3, 4, 11, 1_000_000_000_000]
    for n in files.numbers:
        found = files.file(int(n))
        assert found is not None
        assert found.exists()
    assert files.file(1) is None
    assert files.file(5_000) is None
    assert files.has(np.array([-1, 0, 1, 4])).tolist() == [False, True, False, True]


def test_an_index_of_many_files_stays_small(tmp_path: Path) -> None:
    for n in range(3000):
        (tmp_path / f"c_{n}.json").touch()
    files, _ = index_keypoints(tmp_path)
    assert len(files) == 3000
    assert not files.exceptions
    assert files.file(2999) == tmp_path / "c_2999.json"


def test_two_files_of_one_frame_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a_0007.json").touch()
    (tmp_path / "b_7.json").touch()
    with pytest.raises(InputError, match=r"more than one file for frame 7 \(one is .*json\)"):
        index_keypoints(tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    files, unnumbered = index_keypoints(tmp_path)
    assert (len(files), unnumbered) == (0, 0)
    assert files.file(0) is None


def test_views_are_stacked_and_padded_with_nothing(tmp_path: Path) -> None:
    write_people(tmp_path / "a", "a", 0, [POINTS, POINTS + np.array([1, 1, 0])])
    write_people(tmp_path / "a", "a", 1, [])
    write_people(tmp_path / "b", "b", 1, [POINTS])
    files = [index_keypoints(tmp_path / "a")[0], index_keypoints(tmp_path / "b")[0], None]
    found = read_views(files, np.array([[0, 1, -1], [1, 0, 1], [0, 1, 2]]), 25)
    assert found.shape == (3, 3, 2, 25, 3)
    there = (found[..., 2] > 0).any(-1)
    assert np.argwhere(there).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 2, 0]]
    assert np.allclose(found[1, 2, 0], POINTS, atol=1e-3)
    assert np.isnan(found[..., :2][~there]).all()
    assert (found[..., 2][~there] == 0).all()
