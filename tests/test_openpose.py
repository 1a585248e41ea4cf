"""OpenPose's files: everything that it writes is read or missing with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.formats.keypoints.openpose import read, read_people

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
    assert read(tmp_path).point_counts(0) == {25, 10}


def test_index_finds_every_file_by_its_last_number(tmp_path: Path) -> None:
    for n in (0, 2, 3, 11, 1_000_000_000_000):
        (tmp_path / f"s7_cam2_{n:012d}_keypoints.json").touch()
    (tmp_path / "other_4.json").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "._cam2_000000000005_keypoints.json").touch()
    (tmp_path / "summary.json").touch()
    files = read(tmp_path)
    assert files.unnumbered == 1
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
    files = read(tmp_path)
    assert len(files) == 3000
    assert not files.exceptions
    assert files.file(2999) == tmp_path / "c_2999.json"


def test_two_files_of_one_frame_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a_0007.json").touch()
    (tmp_path / "b_7.json").touch()
    with pytest.raises(InputError, match=r"more than one file for frame 7 \(one is .*json\)"):
        read(tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    files = read(tmp_path)
    assert (len(files), files.unnumbered) == (0, 0)
    assert files.file(0) is None
