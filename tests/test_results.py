"""OUT: its names, its summary, where it may lie, and what is never deleted or overwritten there."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from recordings import figure, ring, seen, write_recording, write_video
from test_batch import call

from models.body import load_body
from pipeline.errors import InputError
from pipeline.recording import find_recording
from pipeline.results import (
    DRAWN,
    LOG,
    MOSAIC,
    REPORT,
    STORE,
    SUMMARY,
    TRUTH,
    Results,
    camera_videos,
    check_drawable,
    check_place,
    clear,
    drawn_mark,
    is_whole_drawing,
    read_summary,
    scene_video,
)
from pipeline.video import VideoWriter, part_name
from stages.graph import RunConfig, run
from stages.synth import SynthConfig
from stages.synth import write_recording as synthesise

RIG = ring(3, size=(320, 180))
PERSON = seen(RIG, figure(np.arange(6) / 5), noise_px=0.2)


def recording(folder: Path, cameras=("cam01", "cam02", "cam03")) -> Path:
    """Three cameras; videos lie beside the folders of keypoints."""
    write_recording(folder, RIG, [PERSON])
    for name in cameras:
        write_video(folder / f"{name}.mp4", 6, size=(320, 180))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_results_of_a_batch_are_named_where_one_is_asked_for(tmp_path):
    with pytest.raises(InputError, match="no results store here"):
        Results(tmp_path).store()
    for name in ("b", "a", "s/c", "s/d"):
        (tmp_path / name / STORE).mkdir(parents=True)
    with pytest.raises(InputError, match="give one of its folders, a, b, s/c and 1 more"):
        Results(tmp_path).store()


def test_no_other_source_file_knows_the_names():
    """Texts of the source, docstrings and messages aside; a recording's own calibration.toml is another."""
    names = {STORE, SUMMARY, REPORT, LOG, MOSAIC, TRUTH}
    root = Path(__file__).parents[1]
    layers = [file for layer in ("pipeline", "models", "stages") for file in (root / layer).rglob("*.py")]
    for file in (root / "run_pipeline.py", *layers):
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        known = {node.value for node in nodes if isinstance(node, ast.Constant)} & names
        assert known == (names if file == root / "pipeline/results.py" else set()), file


def test_no_two_names_of_drawings_are_the_same():
    cameras = ["side", "mosaic", "turntable", "a/b", "a b", "A_B", "a_b_2", "a.part", "a", "ä"]
    names = [*camera_videos("overlay", cameras).values(), *map(scene_video, ("side", "turntable", "mosaic"))]
    every = [*names, *map(part_name, names)]
    assert len({name.casefold() for name in every}) == len(every)
    assert all("/" not in name and " " not in name for name in names)
    assert camera_videos("mesh", ["front", "back"]) == {"front": "mesh_front.mp4", "back": "mesh_back.mp4"}


@pytest.mark.parametrize(
    ("command", "dataset", "out", "message"),
    [
        ("run", "r", "r", "is the recording's own folder"),
        ("run", "r", "r/keypoints", "holds"),
        ("run", "r", ".", "holds"),
        ("run", "r", "r/keypoints/new", "lies among the recording's own files"),
        ("run", "r", "r/videos/new", "lies among the recording's own files"),
        ("batch", "r", ".", "is the recording's own folder"),  # OUT/r
        ("batch", "r", "r/keypoints", "lies among the recording's own files"),
        ("batch", ".", "r", "is a recording's own folder"),
        ("batch", ".", "r/videos", "lies among the recording's own files"),
    ],
)
def test_results_never_lie_among_a_recordings_own_files(
    tmp_path, capfd, monkeypatch, command, dataset, out, message
):
    """B3, too: nothing of the user's is touched, whatever it is called."""
    folder = write_recording(tmp_path / "r", RIG, [PERSON])
    write_video(folder / "videos/cam01.mp4", 6, size=(320, 180))
    (folder / "cam01.part.mp4").write_bytes(b"the user's")
    before = contents(tmp_path)
    status, text = call(capfd, monkeypatch, tmp_path / dataset, "--out", tmp_path / out, command=command)
    assert status == 2, text
    assert message in text
    assert f"Choose {folder / 'results'}" in text
    assert contents(tmp_path) == before


def test_the_place_that_is_proposed_is_taken(tmp_path):
    folder = recording(tmp_path / "r")
    check_place(folder / "results", folder, [folder / "cam01.mp4", folder / "keypoints/cam01"])
    check_place(tmp_path / "r-results", folder, [folder / "cam01.mp4"])
    (tmp_path / "linked").symlink_to(folder)
    with pytest.raises(InputError, match="own folder"):
        check_place(tmp_path / "linked", folder, [])


def test_results_that_an_earlier_version_left_in_the_recording_are_told(tmp_path, capfd, monkeypatch):
    folder = recording(tmp_path / "r")
    for name in ("results.zarr/zarr.json", "report.html", "overlay_cam01.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "summary.json").write_text(json.dumps({"videos": ["overlay_cam01.mp4", "gone.mp4"]}))
    status, text = call(capfd, monkeypatch, folder, "--out", folder, command="run")
    assert status == 2
    told = "move results.zarr, summary.json, report.html, overlay_cam01.mp4 to"
    assert f"{told} {folder / 'results'}" in text


def test_only_what_the_summary_names_is_deleted(tmp_path):
    for name in ("report.html", "overlay_a.mp4", "overlay_a.part.mp4", "overlay_b.mp4", "b.part.mp4"):
        (tmp_path / name).write_text("")
    clear(tmp_path)
    assert len([*tmp_path.iterdir()]) == 5, "without a summary nothing"
    (tmp_path / "summary.json").write_text(json.dumps({"videos": ["overlay_a.mp4", "../outside.mp4"]}))
    (tmp_path.parent / "outside.mp4").write_text("")
    clear(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.part.mp4", "overlay_b.mp4"]
    assert (tmp_path.parent / "outside.mp4").exists()


def test_a_run_leaves_the_users_files_in_out_alone(tmp_path):
    """B3: unfinished videos of somebody else lie where results go."""
    synthesise(tmp_path / "r", SynthConfig(seconds=1, cameras=3, size=(320, 240), noise_px=1), load_body())
    found, out = find_recording(tmp_path / "r"), tmp_path / "out"
    out.mkdir()
    (out / "walk.part.mp4").write_bytes(b"the user's")
    run(found, out, RunConfig(), threads=False)
    assert (out / "walk.part.mp4").read_bytes() == b"the user's"
    assert {*(f"overlay_cam0{n}.mp4" for n in (1, 2, 3)), "mosaic.mp4"} == {*read_summary(out).videos}


def test_a_users_report_is_not_replaced(tmp_path):
    synthesise(tmp_path / "r", SynthConfig(seconds=1, cameras=3, videos=False), load_body())
    found, out = find_recording(tmp_path / "r"), tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("the user's")
    with pytest.raises(InputError, match=r"report\.html: is there already"):
        run(found, out, RunConfig(), threads=False)
    assert (out / "report.html").read_text() == "the user's"


def test_a_video_that_was_not_drawn_here_is_not_overwritten(tmp_path):
    """B4: a camera's own side.mp4 where `render --mode side` would write."""
    write_video(tmp_path / "side.mp4", 2, size=(64, 48))
    with pytest.raises(InputError, match=r"side\.mp4: is there already and was not drawn"):
        check_drawable(tmp_path, ["side.mp4"])
    (tmp_path / "side.mp4").unlink()
    with VideoWriter(tmp_path / "side.mp4", 30, comment=DRAWN) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
    check_drawable(tmp_path, ["side.mp4", "none.mp4"])
    (tmp_path / "summary.json").write_text(json.dumps({"videos": ["side.mp4"]}))
    with pytest.raises(InputError, match=r"side\.mp4: is a video of the run"):
        check_drawable(tmp_path, ["side.mp4"])


def test_a_video_counts_as_a_runs_by_its_store_its_settings_and_its_last_frame(tmp_path):
    mark, file = drawn_mark("store", {"opacity": 0.9}), tmp_path / "overlay_a.mp4"
    with VideoWriter(file, 30, comment=mark) as video:
        for k in range(40):
            video.write(np.full((48, 64, 3), k, np.uint8))
    check_drawable(tmp_path, [file.name])
    assert is_whole_drawing(file, mark, 40)
    assert not is_whole_drawing(file, mark, 41)
    assert not is_whole_drawing(file, drawn_mark("store", {"opacity": 0.3}), 40)
    assert not is_whole_drawing(file, drawn_mark("other", {"opacity": 0.9}), 40)
    file.write_bytes(file.read_bytes()[:-500])
    assert not is_whole_drawing(file, mark, 40)
    assert not is_whole_drawing(tmp_path / "none.mp4", mark, 40)


def test_nothing_is_drawn_among_the_recordings_own_files(tmp_path):
    """Of results that an earlier version wrote there: it would be taken for a camera's video."""
    (tmp_path / "results.zarr").mkdir()
    (tmp_path / "summary.json").write_text(json.dumps({"recording": str(tmp_path), "videos": []}))
    with pytest.raises(InputError, match=r"own folder.* move results\.zarr, summary\.json to .*/results"):
        check_drawable(tmp_path, ["side.mp4"])
    (tmp_path / "summary.json").write_text(json.dumps({"recording": str(tmp_path / "r"), "videos": []}))
    check_drawable(tmp_path, ["side.mp4"])


def test_a_damaged_summary_counts_as_none(tmp_path):
    assert read_summary(tmp_path) is None
    for text in ("{", "[]", "{}"):
        (tmp_path / "summary.json").write_text(text)
        assert read_summary(tmp_path) is None


def test_results_are_named_by_their_folder_or_their_store(tmp_path):
    (tmp_path / "out/results.zarr").mkdir(parents=True)
    (tmp_path / "out/results.zarr/zarr.json").write_text("{}")
    for named in ("out", "out/results.zarr"):
        found = Results(tmp_path / named)
        assert found.store_path == tmp_path / "out/results.zarr"
        assert found.folder == tmp_path / "out"
    with pytest.raises(InputError, match="names no recording"):
        found.recording()
    (tmp_path / "out/summary.json").write_text(json.dumps({"recording": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match="is not there any more"):
        found.recording()
    assert found.recording(tmp_path) == tmp_path
