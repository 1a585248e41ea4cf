"""Rows of data sets: the arrays that are written, OpenPose's files, and whom it found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from models.datasets.rows import (
    PersonRow,
    all_inside,
    check_openpose,
    openpose_file,
    points_box,
    read_rows,
    to_arrays,
    with_detection,
    write_npz,
)
from pipeline.errors import InputError
from pipeline.skeleton import BODY_25, EXTRA_24

LIMBS = EXTRA_24.names[:12]


def truth() -> np.ndarray:
    """(24, 3) a person of 240 by 400 px whose limb joints are known."""
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1, (12, 2)) * [240, 400] + 300
    xy[0], xy[11] = [300, 300], [540, 700]
    out = np.zeros((24, 3))
    out[:12] = np.c_[xy, np.ones(12)]
    return out


def person(part: np.ndarray, shift: float = 0.0) -> np.ndarray:
    """(25, 3) what OpenPose says of somebody ``shift`` px to the right of the truth."""
    out = np.zeros((25, 3))
    out[0] = 1, 2, 0.5
    for i, name in enumerate(LIMBS):
        out[BODY_25.index(name)] = part[i, 0] + shift, part[i, 1], 0.9
    return out


def write(folder: Path, imgname: str, people: list[np.ndarray]) -> None:
    file = openpose_file(folder, imgname)
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {"version": 1.3, "people": [{"pose_keypoints_2d": p.ravel().tolist()} for p in people]}
    file.write_text(json.dumps(document))


def test_openpose_files_lie_beside_the_names_of_the_pictures() -> None:
    at = openpose_file(Path("op"), "S1/Seq1/imageFrames/video_0/frame_000012.jpg")
    assert at == Path("op/S1/Seq1/imageFrames/video_0/frame_000012_keypoints.json")
    at = openpose_file(Path("op"), "S1/Seq1/imageSequence/video_0.avi#12")
    assert at == Path("op/S1/Seq1/imageSequence/video_0/video_0_000000000012_keypoints.json")
    at = openpose_file(Path("op"), "S9/Videos/Directions 1.54138969.mp4#0")
    stem = "Directions 1.54138969"
    assert at == Path(f"op/S9/Videos/{stem}/{stem}_000000000000_keypoints.json")


def detection(folder: Path, imgname: str, part: np.ndarray) -> np.ndarray:
    return with_detection(replace(row(0, "x"), imgname=imgname, part=part), folder).openpose


def test_the_nearest_whole_person_is_the_one(tmp_path: Path) -> None:
    part = truth()
    half = person(part)
    half[BODY_25.index("LWrist"), 2] = 0
    write(tmp_path, "a/b.jpg", [person(part, 150), half, person(part, 3), person(part, 9)])
    np.testing.assert_allclose(detection(tmp_path, "a/b.jpg", part), person(part, 3), rtol=1e-6)


@pytest.mark.parametrize("shift", [39.0, 41.0])
def test_a_bystander_is_not_the_person(tmp_path: Path, shift: float) -> None:
    part = truth()  # 400 px tall: 40 px are a tenth
    write(tmp_path, "a.jpg", [person(part, shift)])
    assert detection(tmp_path, "a.jpg", part).any() == (shift < 40)


def test_nobody_is_found_where_there_is_nothing(tmp_path: Path) -> None:
    part = truth()
    assert not detection(tmp_path, "a.jpg", part).any()
    write(tmp_path, "a.jpg", [])
    assert not detection(tmp_path, "a.jpg", part).any()
    write(tmp_path, "a.jpg", [person(part)])
    assert not detection(tmp_path, "a.jpg", np.zeros((24, 3))).any()


def row(k: int, instant: str) -> PersonRow:
    box = points_box(np.array([[0.0, 0.0], [100.0, 40.0]]))
    return PersonRow(f"set/S1/a/c{k}/000001", instant, f"{k}.jpg", box, camera=f"c{k}")


def test_arrays_have_the_names_and_shapes_that_are_agreed(tmp_path: Path) -> None:
    rows = [row(0, "x"), row(1, "y"), row(2, "x")]
    arrays = to_arrays(rows)
    out = tmp_path / "new" / "rows.npz"
    assert write_npz(arrays, out) == sum(a.nbytes for a in arrays.values())
    with np.load(out, allow_pickle=False) as read:
        shapes = {k: read[k].shape for k in read.files}
        assert read["group"].tolist() == [0, 1, 0]
        assert read["camera"].tolist() == ["c0", "c1", "c2"]
        assert read["center"].tolist() == [[50, 20]] * 3
        np.testing.assert_allclose(read["scale"], 0.6)
        assert np.isnan(read["K"]).all()
    assert shapes == {
        "id": (3,), "group": (3,), "imgname": (3,), "center": (3, 2), "scale": (3,), "camera": (3,),
        "action": (3,), "part": (3, 24, 3), "openpose": (3, 25, 3), "S": (3, 24, 4), "pose": (3, 72),
        "shape": (3, 10), "has_smpl": (3,), "gender": (3,), "K": (3, 3, 3), "dist": (3, 8), "R": (3, 3, 3),
        "t": (3, 3),
    }  # fmt: skip


def test_want_of_room_is_said_beforehand(tmp_path: Path) -> None:
    arrays = to_arrays([row(0, "x")])
    usage = type("Usage", (), {"free": 1000})
    with patch("shutil.disk_usage", lambda _: usage), pytest.raises(InputError, match="are free"):
        write_npz(arrays, tmp_path / "rows.npz")
    assert not list(tmp_path.iterdir())


def test_openpose_that_belongs_to_nothing_is_refused(tmp_path: Path) -> None:
    rows = [row(0, "x")]
    check_openpose(tmp_path, [*rows, replace(rows[0], openpose=np.ones((25, 3)))])
    with pytest.raises(InputError, match=r"0_keypoints\.json, say, is not there"):
        check_openpose(tmp_path, rows)


def test_points_on_the_edge_are_inside_and_beyond_it_are_not() -> None:
    assert all_inside(np.array([[0.0, 0.0], [99.9, 49.9]]), (100, 50))
    assert not all_inside(np.array([[0.0, 50.0]]), (100, 50))
    assert not all_inside(np.array([[-0.1, 3.0]]), (100, 50))
    assert not all_inside(np.array([[np.nan, 3.0]]), (100, 50))


def test_rows_are_read_back(tmp_path: Path) -> None:
    arrays = to_arrays([row(0, "x"), row(1, "y"), row(2, "x")])
    write_npz(arrays, tmp_path / "rows.npz")
    found = read_rows(tmp_path / "rows.npz")
    center, scale = arrays.pop("center"), arrays.pop("scale")
    np.testing.assert_allclose(found.pop("box"), np.column_stack([center, 200 * scale]), rtol=1e-6)
    assert set(found) == set(arrays)
    for key, value in arrays.items():
        np.testing.assert_array_equal(found[key], value)


def test_a_row_without_a_size_has_no_box(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", imgname=["a", "b"], center=np.ones((2, 2)), scale=[0.0, 1.0])
    box = read_rows(tmp_path / "rows.npz")["box"]
    assert np.isnan(box[0]).all()
    assert box[1].tolist() == [1, 1, 200]


def test_files_of_spin_lack_views_and_cameras(tmp_path: Path) -> None:
    n = 4
    np.savez(
        tmp_path / "spin.npz", imgname=[f"{i}.jpg" for i in range(n)], center=np.zeros((n, 2)),
        scale=np.ones(n), S=np.ones((n, 24, 4)), maskname=["m"] * n,
    )  # fmt: skip
    found = read_rows(tmp_path / "spin.npz")
    assert found["group"].tolist() == list(range(n))
    assert found["id"].tolist() == ["0", "1", "2", "3"]
    assert (found["camera"] == "").all()
    assert np.isnan(found["K"]).all()
    assert not found["openpose"].any()
    assert not found["has_smpl"].any()
    assert found["S"].all()


@pytest.mark.parametrize("said", [None, 0.0])
def test_poses_are_known_where_a_file_of_spin_does_not_say(tmp_path: Path, said: float | None) -> None:
    """Its file of 3DPW has no ``has_smpl``."""
    arrays = to_arrays([row(0, "x"), row(1, "y")])
    del arrays["has_smpl"]
    more = {} if said is None else {"has_smpl": np.full(2, said)}
    np.savez(tmp_path / "3dpw.npz", **arrays, **more)
    assert read_rows(tmp_path / "3dpw.npz")["has_smpl"].tolist() == [said is None] * 2


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.npz"
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(file)
    file.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match=r"rows\.npz: cannot be read"):
        read_rows(file)
    np.savez(file, imgname=["a"], scale=[1.0])
    with pytest.raises(InputError, match="has no center"):
        read_rows(file)
    np.savez(file, imgname=["a"], scale=[1.0], center=np.zeros((1, 3)))
    with pytest.raises(InputError, match=r"center has shape \(1, 3\), expected \(1, 2\)"):
        read_rows(file)
    np.savez(file, imgname=np.array([Path("a")], object), scale=[1.0], center=np.zeros((1, 2)))
    with pytest.raises(InputError, match=r"rows\.npz: cannot be read"):
        read_rows(file)
    np.savez(file, imgname=["a"], scale=["large"], center=np.zeros((1, 2)))
    with pytest.raises(InputError, match=r"scale is of <U5, expected numbers"):
        read_rows(file)
    with file.open("wb") as array:
        np.save(array, np.zeros(3))
    with pytest.raises(InputError, match=r"rows\.npz: cannot be read"):
        read_rows(file)
    np.savez_compressed(file, imgname=["a.jpg"] * 500, center=np.zeros((500, 2)), scale=np.ones(500))
    content = bytearray(file.read_bytes())
    content[60:90] = bytes(30)
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"rows\.npz: cannot be read"):
        read_rows(file)
