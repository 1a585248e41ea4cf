"""The command export: gaps, mistakes, and sentences on what was written."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roma
import zarr
from builders import smpl_file
from exported import LOST, NEAR, Bvh, Gltf, T, Truth, body, make, write

import run_pipeline
from models.body import pose_keypoints
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24
from pipeline.store import Store
from stages.export import ExportOptions, export_people


def test_gaps_are_bridged_in_motion(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    truth = truths("y")
    said = write(truth, tmp_path / "a.bvh")
    assert said == [
        "4 of 12 frames have no pose: 2 are interpolated between those around them, 2 before the first or "
        "after the last hold that one.",
        "1 of 12 frames have a pose that is not to be trusted: it is kept.",
    ]
    assert write(truth, tmp_path / "a.glb") == said
    file, twin = Bvh.read((tmp_path / "a.bvh").read_text()), Gltf.read((tmp_path / "a.glb").read_bytes())
    rotations, transl = truth.rotations.clone(), truth.transl.clone()
    for held, of in ((0, 1), (11, 10)):
        rotations[held], transl[held] = truth.rotations[of], truth.transl[of]
    for t in (5, 6):
        share = (t - 4) / 3
        way = roma.rotmat_to_rotvec(truth.rotations[4].mT @ truth.rotations[7])
        rotations[t] = truth.rotations[4] @ roma.rotvec_to_rotmat(share * way)
        transl[t] = (1 - share) * truth.transl[4] + share * truth.transl[7]
    want, _ = pose_keypoints(body().keypoints, rotations, truth.betas, transl)
    for t in LOST:
        found = file.joints_at(t)
        np.testing.assert_allclose(np.stack([found[n] for n in SMPL_24.names]) / 100, want[t], atol=NEAR)
        np.testing.assert_allclose(twin.nodes_at(t)[:24, :3, 3], want[t], atol=NEAR)


def test_one_pose_is_enough(tmp_path: Path) -> None:
    truth = make(tmp_path / "results.zarr", "y", tuple(t for t in range(T) if t != 4))
    write(truth, tmp_path / "a.bvh")
    file = Bvh.read((tmp_path / "a.bvh").read_text())
    assert (file.rows == file.rows[4]).all()


def command(
    capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch, *words: object
) -> tuple[int, str, str]:
    patch.setattr(sys, "argv", ["run_pipeline.py", "export", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_pipeline.main()
    return int(ended.value.code or 0), *capfd.readouterr()


@pytest.mark.parametrize("suffix", [".glb", ".bvh", ".trc", ".npz", ".obj", ".GLB"])
def test_the_command_says_what_it_wrote(
    truths: Callable[[str], Truth], tmp_path: Path, capfd: Any, monkeypatch: Any, suffix: str
) -> None:
    out, file = truths("z").store.path, tmp_path / "new" / f"a{suffix}"
    words = ["--start", 1] if suffix == ".obj" else ["--start", 1, "--end", 5]
    contents = []
    for given in (out, out.parent):  # the store, and the folder of the run
        status, said, errors = command(capfd, monkeypatch, given, file, *words)
        assert status == 0, errors
        contents.append(file.read_bytes())
        assert str(file) in said
        assert ("centimetres" if suffix == ".bvh" else "metres") in said
        axes = {".trc": "y, z, x", ".npz": "x, y, z"}.get(suffix, "x, z, -y")
        assert f"x, y, z of the file are {axes} of the calibration's world" in said
        assert (suffix == ".npz") == ("betas are those of the body anny" in said)
        assert ("frame 1," if suffix == ".obj" else "frames 1 to 4") in said
    assert [f.name for f in file.parent.iterdir()] == [file.name]
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a.xyz", "the suffix says what is written, and there is none for this. Choose .glb"),
        ("a.bvh --gaps nan", "a .bvh needs a pose in every frame"),
        ("a.trc --gaps often", "--gaps often: expected hold, nan, interpolate"),
        ("a.trc --fps 0", "--fps 0: expected frames a second"),
        ("a.trc --cameras", "names no recording"),
        ("new/deep/a.glb --person 3", "no person 3; the people are: 0"),
        ("a.glb --start 8 --end 20", "no frame 19; frames 0 to 11 are done"),
        ("a.glb --start 5 --end 7", "person 0 has nowhere a pose in frames 5 to 6"),
        ("a.trc --start 3 --end 4", "person 0 has nowhere a valid pose in frame 3"),
        ("a.obj --start 0", "person 0 has nowhere a pose in frame 0"),
        ("a.glb --body SMPL_NEUTRAL.pkl", "SMPL_NEUTRAL.pkl: is not the body that"),
        ("a.glb --body gone.pkl", "cannot read the body model"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    truths: Callable[[str], Truth], tmp_path: Path, capfd: Any, monkeypatch: Any, words: str, message: str
) -> None:
    smpl_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    status, said, errors = command(capfd, monkeypatch, truths("z").store.path, *words.split())
    assert status == 2
    assert message in errors
    assert said == ""
    assert [f.name for f in tmp_path.iterdir()] == ["SMPL_NEUTRAL.pkl"]


def test_half_a_run_is_not_taken_for_a_whole(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    truth = make(tmp_path / "results.zarr")
    truth.store._array("done")[2] = False
    status, _, errors = command(capfd, monkeypatch, tmp_path, tmp_path / "a.bvh")
    assert status == 2
    assert "only 10 of 12 frames are done" in errors
    assert "--end 10" in errors
    status, _, _ = command(capfd, monkeypatch, tmp_path, tmp_path / "a.bvh", "--end", "10")
    assert status == 0
    assert len(Bvh.read((tmp_path / "a.bvh").read_text()).rows) == 10


def test_a_body_that_has_gone_is_named(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    make(tmp_path / "results.zarr", config={"body": str(tmp_path / "SMPL_NEUTRAL.pkl")})
    status, _, errors = command(capfd, monkeypatch, tmp_path, tmp_path / "a.bvh")
    assert status == 2
    assert "SMPL_NEUTRAL.pkl: the body that" in errors
    assert "--body FILE" in errors


def test_no_store_and_no_place_to_write(
    truths: Callable[[str], Truth], tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    status, _, errors = command(capfd, monkeypatch, tmp_path, tmp_path / "a.glb")
    assert status == 2
    assert "no results store here" in errors
    (tmp_path / "a.glb").mkdir()
    status, _, errors = command(capfd, monkeypatch, truths("z").store.path, tmp_path / "a.glb")
    assert status == 2
    assert "Is a directory" in errors


@pytest.mark.parametrize("name", ["a.csv", "a.easymocap"])
def test_of_all_people_those_are_written_who_are_there(tmp_path: Path, name: str) -> None:
    one = make(tmp_path / "results.zarr").store
    shutil.copytree(one.path / "people" / "0", one.path / "people" / "1")
    zarr.open_array(one.path / "people/1/global_orient", mode="r+")[:5] = np.nan
    store = Store(one.path)
    early = list(export_people(store, body(), tmp_path / "early" / name, store.ids, ExportOptions(0, 5)))
    assert [path.name for path, _, _ in early] == ["a_p0.csv" if name == "a.csv" else name]
    assert "person 1 has nowhere a pose in these frames, and is left out." in early[0][2]
    everybody = list(export_people(store, body(), tmp_path / name, store.ids, ExportOptions()))
    assert len(everybody) == (2 if name == "a.csv" else 1)
    assert {said[:9] for *_, warnings in everybody for said in warnings} == {"person 0:", "person 1:"}
    with pytest.raises(InputError, match="person 0 has nowhere a pose in frames 5 to 6"):
        list(export_people(store, body(), tmp_path / "none" / name, store.ids, ExportOptions(5, 7)))


def test_results_without_people_have_nothing_to_write(
    truths: Callable[[str], Truth], tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    empty = Store.create(tmp_path / "results.zarr", truths("z").store.contents)
    for name in ("a.csv", "a.easymocap"):
        code, _, err = command(capfd, monkeypatch, empty.path, tmp_path / name, "--person", "all")
        assert code == 2
        assert "has nobody in it" in err
