"""Options of ``run``: a part of a recording, where results go, what is printed."""

import shutil

import numpy as np
import pytest
from recordings import figure, ring, seen, write_recording, write_video
from test_batch import call

from pipeline.errors import InputError
from pipeline.recording import find_recording
from pipeline.results import remove_run
from pipeline.store import Store
from stages.inspect import inspect

RIG = ring(4, size=(320, 180))
FRAMES = 30


@pytest.fixture
def folder(tmp_path):
    people = seen(RIG, figure(np.arange(FRAMES) / 10), noise_px=0.3)
    return write_recording(tmp_path / "walk", RIG, [people])


def run(capfd, monkeypatch, *words):
    return call(capfd, monkeypatch, *words, command="run")


def test_a_part_of_a_recording_has_the_frames_of_the_whole(folder):
    whole = inspect(find_recording(folder))
    part = inspect(find_recording(folder).part(["cam03", "cam01", "cam02"], 5, 20))
    assert part.rig.names == ("cam01", "cam02", "cam03")
    assert len(part) == 15
    assert part.timeline.time_s[0] == 0
    np.testing.assert_array_equal(part.timeline.frame_index, whole.timeline.frame_index[:3, 5:20])
    at = np.arange(15)
    np.testing.assert_array_equal(part.people(at)[..., :2], whole.people(at + 5)[:3, ..., :2])
    np.testing.assert_array_equal(part.rig.R, whole.rig.R[:3])
    assert dict(part.notes)["taken"] == "cam01, cam02, cam03; frames 5 to 19"
    again = find_recording(folder)
    assert again.part([], 0, None) is again
    for cameras, start, end, message in (
        (["cam9"], 0, None, "there is no camera cam9. The cameras are: cam01"),
        ([], 30, None, "has 0 to 29"),
        ([], 4, 31, "has 0 to 29"),
        ([], 4, 4, "the end is the frame after the last"),
    ):
        with pytest.raises(InputError, match=message):
            again.part(cameras, start, end)


def test_one_frame_of_a_recording_is_read_as_the_whole_is(folder):
    whole = inspect(find_recording(folder))
    one = inspect(find_recording(folder).part([], 7, 8))
    assert (len(one), one.point_order) == (1, whole.point_order)
    assert one.findings == whole.findings


def test_results_go_beside_the_recording_and_are_begun_again_when_told(folder, capfd, monkeypatch):
    home = folder.with_name("walk-results")
    part = ("--cameras", "cam01,cam02", "--cameras", "cam04", "--start", 2, "--end", 14, "--device", "cpu")
    status, text = run(capfd, monkeypatch, folder, *part, "--quiet")
    assert (status, text) == (0, "")
    store = Store(home / "results.zarr")
    assert store.contents.rig.names == ("cam01", "cam02", "cam04")
    np.testing.assert_array_equal(store.contents.frame_index[0], np.arange(2, 14))
    status, text = run(capfd, monkeypatch, folder, "--end", 10)
    assert status == 2
    assert "was made by a run that differs" in text
    (home / "mine.txt").write_text("the user's")
    status, text = run(capfd, monkeypatch, folder, "--end", 10, "--overwrite")
    assert status == 0
    assert "frames fitted" in text
    assert len(Store(home / "results.zarr").contents.time_s) == 10
    assert (home / "mine.txt").exists()


def test_videos_are_left_out_and_left_alone(folder, capfd, monkeypatch, tmp_path):
    for name in RIG.names:
        write_video(folder / "videos" / f"{name}.mp4", FRAMES, size=(320, 180), rate=10)
    out = tmp_path / "out"
    assert run(capfd, monkeypatch, folder, "--out", out, "--end", 8, "--no-videos")[0] == 0
    assert not [*out.glob("*.mp4")]
    assert run(capfd, monkeypatch, folder, "--out", out, "--end", 8)[0] == 0
    assert len([*out.glob("*.mp4")]) == 5
    status, text = run(capfd, monkeypatch, folder, "--out", out, "--end", 8, "--no-videos")
    assert status == 0
    assert "nothing to do" in text
    assert len([*out.glob("*.mp4")]) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sync", "clocks.yaml"), "clocks.yaml: there is no such file"),
        (("--device", "quantum"), "quantum cannot be used. Choose auto"),
        (("--end", FRAMES + 1), "has 0 to 29"),
        (("--cameras", "cam9"), "there is no camera cam9"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_wrong_option_is_refused_and_leaves_no_folder(folder, capfd, monkeypatch, tmp_path, words, message):
    status, text = run(capfd, monkeypatch, folder, "--out", tmp_path / "out", *words)
    assert status == 2
    assert message in text
    assert not (tmp_path / "out").exists()


def test_a_warning_is_printed_once(folder, capfd, monkeypatch):
    (folder / "calibration.toml").unlink()
    (folder / "recording.yaml").write_text("picture_size: [320, 180]\nfps: 10\n")
    status, text = run(capfd, monkeypatch, folder)
    assert status == 0
    assert text.count("the cameras were estimated from the person") == 1
    assert "assumed" not in text
    assert "focal lengths of all" in text


def test_only_a_store_of_results_is_removed(tmp_path):
    remove_run(tmp_path)
    (tmp_path / "results.zarr").mkdir()
    (tmp_path / "results.zarr" / "zarr.json").write_text('{"attributes": {"format": "else"}}')
    with pytest.raises(InputError, match="is not a store of results"):
        remove_run(tmp_path)
    assert (tmp_path / "results.zarr").exists()
    shutil.rmtree(tmp_path / "results.zarr")
