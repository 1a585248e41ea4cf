"""Tables of DeepLabCut and SLEAP: their points by name as BODY_25, from CSV and HDF5 alike."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from recordings import figure, ring, seen, write_recording

from pipeline.errors import InputError
from pipeline.formats.keypoints import index_keypoints
from pipeline.formats.keypoints.named_points import read
from pipeline.recording import find_recording
from pipeline.skeleton import BODY_25
from stages.inspect import inspect

RIG = ring(3)
POINTS = seen(RIG, figure(np.arange(24) / 10), "body_25", noise_px=1).astype(np.float32)
"""(V, T, 25, 3)"""
DEEPLABCUT = {
    "left_shoulder": "LShoulder", "RightShoulder": "RShoulder", "elbow_l": "LElbow", "elbow_r": "RElbow",
    "lwrist": "LWrist", "RWrist": "RWrist", "hipLeft": "LHip", "hip_right": "RHip", "LEFT_KNEE": "LKnee",
    "r_knee": "RKnee", "leftankle": "LAnkle", "RAnkle": "RAnkle", "7": "Nose", "tail": "LHeel",
}  # fmt: skip
"""Name in the files → point of BODY_25; the last two are of no meaning."""


def columns(v: int) -> np.ndarray:
    """(T, 3 K) x, y, likelihood of each point; a point is not seen in frame 3."""
    values = POINTS[v][:, [BODY_25.index(name) for name in DEEPLABCUT.values()]].reshape(24, -1).copy()
    values[3, :3] = np.nan
    return values


def as_csv(folder: Path, v: int) -> None:
    heads = [["scorer"], ["bodyparts"], ["coords"]]
    for name in DEEPLABCUT:
        for row, values in zip(heads, ("DLC_net", name, ("x", "y", "likelihood")), strict=True):
            row += values if isinstance(values, tuple) else [values] * 3
    lines = [
        [str(t), *("" if np.isnan(x) else repr(float(x)) for x in row)] for t, row in enumerate(columns(v))
    ]
    text = "\n".join(map(",".join, heads + lines))
    (folder / f"{RIG.names[v]}DLC_resnet50_walkMay5shuffle1_100000.csv").write_text(text)


def as_pandas(folder: Path, v: int) -> None:
    """HDF5 as ``DataFrame.to_hdf(..., "df_with_missing", format="table")`` writes it."""
    heads = [("DLC_net", name, c) for name in DEEPLABCUT for c in ("x", "y", "likelihood")]
    rows = np.zeros(24, [("index", "<i8"), ("values_block_0", "<f8", (len(heads),))])
    rows["index"], rows["values_block_0"] = np.arange(24), columns(v)
    with h5py.File(folder / f"{RIG.names[v]}.h5", "w") as file:
        table = file.create_group("df_with_missing").create_dataset("table", data=rows)
        table.attrs["values_block_0_kind"] = np.bytes_(pickle.dumps(heads, 0))


def as_sleap(folder: Path, v: int) -> None:
    """SLEAP's analysis HDF5 with two tracks, the second of nobody."""
    people = np.full((2, 24, len(DEEPLABCUT), 3), np.nan)
    people[0] = columns(v).reshape(24, -1, 3)
    with h5py.File(folder / f"{RIG.names[v]}.mp4.predictions.analysis.h5", "w") as file:
        file["tracks"] = people[..., :2].transpose(0, 3, 2, 1)
        file["point_scores"] = people[..., 2].transpose(0, 2, 1)
        file["node_names"] = [name.encode() for name in DEEPLABCUT]


def as_sleap_csv(folder: Path, v: int) -> None:
    heads = ",".join(f"{name}.{c}" for name in DEEPLABCUT for c in ("x", "y", "score"))
    lines = [f"track,frame_idx,instance.score,{heads}"]
    for t, row in enumerate(columns(v)):
        cells = ",".join("" if np.isnan(x) else repr(float(x)) for x in row)
        lines += [f",{t},0.9,{cells}", f"track_1,{t},0.1,{',' * (row.size - 1)}"]
    (folder / f"{RIG.names[v]}.analysis.csv").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("write", "folders"),
    [(as_csv, False), (as_csv, True), (as_pandas, False), (as_sleap, True), (as_sleap_csv, False)],
)
def test_points_are_found_by_their_names(tmp_path: Path, write: object, folders: bool) -> None:
    """A whole recording: cameras called as the videos, the order stated by the files, coordinates exact."""
    write_recording(tmp_path, RIG, [np.zeros((3, 0, 25, 3))])
    for v in range(3):
        folder = tmp_path / "keypoints" / (RIG.names[v] if folders else "")
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, v)
    (tmp_path / "recording.yaml").write_text("keypoints: {mapping: {Nose: 7}}")
    found = inspect(find_recording(tmp_path))
    assert found.rig.names == RIG.names
    assert {f.code for f in found.findings} == {"fps_assumed"}
    assert dict(found.notes)["keypoints"].endswith("body_25, by the names of its points")
    people = found.people(np.arange(24), 0.0)[:, :, 0]
    for name in DEEPLABCUT.values():
        i = BODY_25.index(name)
        want = POINTS[:, :, i, :2].copy()
        if name == "LHeel":
            want[:] = np.nan
        if name == "LShoulder":
            want[:, 3] = np.nan
        np.testing.assert_allclose(people[:, :, i, :2], want, atol=1e-3)


def test_points_labelled_by_hand_are_certain(tmp_path: Path) -> None:
    """DeepLabCut's CollectedData has x and y alone; a point without them is missing."""
    text = "scorer,a,a,a,a\nbodyparts,LKnee,LKnee,RKnee,RKnee\ncoords,x,y,x,y\nimg5.png,1,2,,\n"
    (tmp_path / "cam01.csv").write_text(text)
    files = index_keypoints(tmp_path / "cam01.csv")
    people, _ = files.people(5, 2)
    np.testing.assert_array_equal(people, [[[1, 2, 1], [np.nan, np.nan, 0]]])


def test_rows_are_kept_and_not_the_frames_between(tmp_path: Path) -> None:
    rows = "".join(f"img{n}.png,{n},2\n" for n in (3000, 12, 12, 800))
    (tmp_path / "cam01.csv").write_text(f"scorer,a,a\nbodyparts,LKnee,LKnee\ncoords,x,y\n{rows}")
    files = read(tmp_path / "cam01.csv")
    assert files.numbers.tolist() == [12, 800, 3000]
    assert files.people_px.nbytes < 100
    assert [len(files.people(n, 1)[0]) for n in (11, 12, 800, 3000)] == [0, 2, 1, 1]
    assert files.people(3000, 1)[0][0, 0, 0] == 3000


def test_names_that_do_not_tell_are_asked_for(tmp_path: Path) -> None:
    text = "scorer,a,a,a\nbodyparts,p1,p1,p1\ncoords,x,y,likelihood\n0,1,2,1\n"
    (tmp_path / "cam01.csv").write_text(text)
    files = index_keypoints(tmp_path / "cam01.csv")
    with pytest.raises(InputError, match=r"of its points, p1, 0 are told .* keypoints: {mapping: {LKnee: p1"):
        files.in_known_order({})
    with pytest.raises(InputError, match="has no point 'p2'; it has p1"):
        files.in_known_order({"LKnee": "p2"})
    with pytest.raises(InputError, match="'LeftPaw' is none of Nose, Neck"):
        files.in_known_order({"LeftPaw": "p1"})


def test_a_table_lies_there_in_two_formats(tmp_path: Path) -> None:
    """DeepLabCut writes both: the CSV is read, and the other is not told as unread."""
    write_recording(tmp_path, RIG, [np.zeros((3, 0, 25, 3))])
    (tmp_path / "keypoints").mkdir()
    for v in range(3):
        as_pandas(tmp_path / "keypoints", v)
        as_csv(tmp_path / "keypoints", v)
        (csv,) = (tmp_path / "keypoints").glob(f"{RIG.names[v]}DLC*.csv")
        (tmp_path / "keypoints" / f"{RIG.names[v]}.h5").rename(csv.with_suffix(".h5"))
    found = find_recording(tmp_path)
    assert [f.path.suffix for f in found.keypoints if f] == [".csv"] * 3
    assert {f.code for f in found.findings} == {"fps_assumed"}


def test_what_a_pickle_in_a_table_would_run_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("run",))

    as_pandas(tmp_path, 0)
    with h5py.File(tmp_path / f"{RIG.names[0]}.h5", "a") as file:
        file["df_with_missing/table"].attrs["values_block_0_kind"] = np.bytes_(pickle.dumps(Evil(), 0))
    with pytest.raises(InputError, match=r"cannot be read .*print"):
        index_keypoints(tmp_path / f"{RIG.names[0]}.h5")


def test_a_table_that_claims_gigabytes_is_refused_before_they_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "cam01.h5", "w") as file:
        file.create_dataset("tracks", (1, 2, 3, 10**9), "f4", chunks=(1, 2, 3, 1000))
    with pytest.raises(InputError, match="unpacks to 24000 MB"):
        index_keypoints(tmp_path / "cam01.h5")
