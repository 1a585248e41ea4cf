"""Many recordings: found, run in processes, remembered. What a run does is replaced by something quick."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import av
import cv2
import numpy as np
import pytest
import torch
from filelock import FileLock
from recordings import figure, ring, seen, write_recording, write_video

import run_pipeline
from pipeline.batch.dataset import find_recordings, fingerprint
from pipeline.batch.manifest import Entry, page, read_manifest
from pipeline.batch.process import Capacity, process
from pipeline.batch.workers import available_gb, processors
from pipeline.config import Config, NamesFile
from pipeline.errors import InputError
from pipeline.layout import is_recording
from pipeline.summary import PersonSummary, Summary
from pipeline.video import VideoWriter

RIG = ring(3, size=(320, 180))
PERSON = seen(RIG, figure(np.arange(6) / 5), noise_px=0.2)


class Settings(Config):
    number: int = 1
    weights: Annotated[str, NamesFile(("default",))] = "default"
    device: str = "auto"


@dataclass
class Done:
    summary: Summary
    files: tuple[Path, ...]
    warnings: tuple[str, ...]


def run(recording, out, cfg, progress, *, watch):
    """Does what a file in the recording's folder says."""
    marker = recording.path / "behave"
    what = marker.read_text() if marker.exists() else ""
    if what == "once":
        marker.unlink()
        raise RuntimeError("by chance")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "wait":
        time.sleep(60)
    watch(3, iter([0, 2, 3]))
    progress(len(recording))
    where = {"processors": processors(), "threads": torch.get_num_threads(), "pid": os.getpid()}
    (out / "where.json").write_text(json.dumps(where))
    files = out / "results.zarr", out / "report.html", out / "summary.json"
    for file in files:
        file.write_text("")
    warnings = (*recording.warnings, "the cameras were estimated")
    people = (PersonSummary("0", 0, 6, 6, 0, 0, None), PersonSummary("1", 2, 6, 3, 0, 3, None))
    people = people if what == "film" else ()
    if what == "film":
        for name, red in (("overlay_a.mp4", 0), ("mosaic.mp4", 200)):
            files = (*files, out / name)
            with VideoWriter(out / name, 30, threads=1) as video:
                for blue in (0, 0, 250, 0, 0):
                    pixels = np.full((360, 640, 3), (red, 60, blue), np.uint8)
                    video.write(av.VideoFrame.from_ndarray(pixels, "rgb24"))
    return Done(Summary(len(recording), 30.0, 0.2, True, 1.5, 1.6, (), people), files, warnings)


def make(folder, behaviour=""):
    write_recording(folder, RIG, [PERSON])
    if behaviour:
        (folder / "behave").write_text(behaviour)
    return folder


def work(dataset, out, **more):
    """All events of a batch."""
    capacity = Capacity(more.pop("workers", None))
    return [*process(dataset, out, more.pop("cfg", Settings()), run, capacity, **more)]


def test_recordings_are_found_by_what_they_hold(tmp_path):
    for name in ("b/two", "b/one", "a", ".hidden/x", "b/one/inside", "out/old"):
        make(tmp_path / name)
    (tmp_path / "b/notes/deep").mkdir(parents=True)
    results = tmp_path / "b/results.zarr"
    make(results / "x")
    (results / "zarr.json").write_text("{}")
    (tmp_path / "b/notes/loop").symlink_to(tmp_path)
    found = find_recordings(tmp_path, tmp_path / "out")
    assert [*found] == ["a", "b/one", "b/two"]
    assert found["b/one"] == tmp_path / "b/one"
    assert [*find_recordings(tmp_path, only="b/*")] == ["b/one", "b/two"]
    assert [*find_recordings(tmp_path / "a")] == ["a"]
    with pytest.raises(InputError, match=r"matches none of the 4 recordings: a, b/one"):
        find_recordings(tmp_path, only="c*")
    with pytest.raises(InputError, match="no recordings found"):
        find_recordings(tmp_path / "b/notes/deep")
    with pytest.raises(InputError, match="no such folder"):
        find_recordings(tmp_path / "nowhere")
    with pytest.raises(InputError, match="--out is the data set"):
        find_recordings(tmp_path, tmp_path / "b/..")


def test_videos_alone_are_a_recording_and_a_broken_one_is_found_too(tmp_path):
    (tmp_path / "s/videos").mkdir(parents=True)
    (tmp_path / "s/videos/cam01.mp4").write_bytes(b"x")
    (tmp_path / "u").mkdir()
    (tmp_path / "u/phone.mp4").write_bytes(b"x")
    (tmp_path / "trailer.mp4").write_bytes(b"x")  # beside recordings it makes none of the folder
    assert [*find_recordings(tmp_path)] == ["s", "u"]
    (tmp_path / "out/detections.zarr").mkdir(parents=True)
    (tmp_path / "out/results.zarr").mkdir()
    (tmp_path / "out/mosaic.mp4").write_bytes(b"x")
    assert [*find_recordings(tmp_path)] == ["s", "u"]
    (tmp_path / "trailer.mp4").unlink()
    shutil.rmtree(tmp_path / "u")
    make(tmp_path / "t")
    (tmp_path / "calibration.toml").write_bytes((tmp_path / "t/calibration.toml").read_bytes())
    assert [*find_recordings(tmp_path)] == ["s", "t"]
    drawn = ("overlay_cam01", "mesh_cam01", "skeleton_cam01", "mosaic", "side", "turntable")
    (tmp_path / "results/results.zarr").mkdir(parents=True)
    for name in drawn:
        (tmp_path / f"results/{name}.mp4").write_bytes(b"x")
        (tmp_path / f"results/render/{name}").mkdir(parents=True)
        (tmp_path / f"results/render/{name}/{name}.mp4").write_bytes(b"x")
    assert [*find_recordings(tmp_path)] == ["s", "t"]
    (tmp_path / "t/recording.yaml").write_text("nonsense: 1")
    assert [*find_recordings(tmp_path)] == ["s", "t"]


def test_no_failure_stops_the_others_and_the_next_call_goes_on(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    for name, behaviour in (("a", ""), ("b", "once"), ("c", "die"), ("d/x", ""), ("d/<i>", "")):
        make(data / name, behaviour)
    (data / "d/calibration.toml").write_bytes((data / "a/calibration.toml").read_bytes())
    (data / "d/x/calibration.toml").unlink()  # it has that of the folder above
    (data / "d/<i>/calibration.toml").write_text("no = [")
    events = work(data, out, workers=2, retry=1)
    rows = read_manifest(out)
    assert {name: (r.state, r.attempts) for name, r in rows.items()} == {
        "a": ("done", 1), "b": ("done", 2), "c": ("failed", 2), "d/x": ("done", 1), "d/<i>": ("failed", 1),
    }  # fmt: skip
    assert "SIGKILL; was memory short?" in rows["c"].error
    assert "d/<i>/calibration.toml" in rows["d/<i>"].error
    assert (rows["a"].frames, rows["a"].fps, rows["a"].reprojection_px) == (6, 30.0, 1.5)
    assert rows["a"].report == "a/report.html"
    assert any("30 fps assumed" in w for w in rows["a"].warnings), "what was found"
    assert "the cameras were estimated" in rows["a"].warnings, "what the run found"
    assert rows["b"].error == ""
    assert "RuntimeError: by chance" in (out / "b/log.txt").read_text()
    told = [e for e in events if e.row.name == "a"]
    assert [e.row.state for e in told] == [*["running"] * 8, "done"]
    assert [e.frames for e in told] == [0, 0, 0, 0, 2, 1, 0, 6, 0]
    assert [(e.total, e.task) for e in told if e.total] == [(6, ""), (3, "detect"), (6, "")]
    where = [json.loads((out / name / "where.json").read_text()) for name in ("a", "b", "d/x")]
    assert all(w["threads"] == 1 for w in where)
    if hasattr(os, "sched_setaffinity") and len(processors()) > 1:
        assert all(set(w["processors"]) < set(processors()) for w in where)

    # Again: what is done is left alone, what failed is tried.
    (data / "c/behave").unlink()
    again = work(data, out, workers=1)
    assert {e.row.name for e in again if e.worker < 0} == {"a", "b", "d/x"}
    assert {e.row.name for e in again if e.worker == 0} == {"c", "d/<i>"}
    rows = read_manifest(out)
    assert (rows["c"].state, rows["c"].attempts, rows["c"].error) == ("done", 3, "")
    assert (rows["a"].state, rows["a"].attempts) == ("done", 1)
    assert not multiprocessing.active_children()


def test_other_settings_or_lost_results_are_run_again(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    for name in ("a", "b", "c"):
        make(data / name)

    def attempts(**more):
        work(data, out, workers=1, **more)
        return [row.attempts for row in read_manifest(out).values()]

    assert attempts(only="[ab]") == [1, 1]
    (data / "a/recording.yaml").write_text("fps: 25\n")
    (out / "b/report.html").unlink()
    assert attempts() == [2, 2, 1]
    assert attempts(only="c", cfg=Settings(number=2)) == [2, 2, 2]
    assert read_manifest(out)["a"].state == "done", "rows that are not chosen stay"


def rewrite(file, content):
    """Write a file again, at a later time: the clock's ticks are coarse."""
    file.write_bytes(content)
    later = file.stat().st_mtime_ns + 10**9
    os.utime(file, ns=(later, later))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A data set with its results, and weights beside it."""
    top = tmp_path_factory.mktemp("finished")
    made = make(top / "data/s/a")
    (made / "calibration.toml").rename(top / "data/s/calibration.toml")
    write_video(made / "videos/cam01.mp4", 6, size=(320, 180))
    (top / "net.safetensors").write_bytes(b"older")
    (made / "keypoints/cam02/cam02_99.json").symlink_to("nowhere")
    with contextlib.chdir(top):
        events = work(Path("data"), Path("out"), cfg=Settings(weights="net.safetensors"))
    assert events[-1].row.state == "done"
    return top


def one_more_line(file):
    file.write_text(file.read_text() + "\n")


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("s/a/keypoints/cam02/cam02_000000000002_keypoints.json", lambda f: rewrite(f, f.read_bytes())),
        ("s/a/keypoints/cam02/cam02_000000000003_keypoints.json", one_more_line),
        ("s/a/keypoints/cam02/cam02_000000000004_keypoints.json", Path.unlink),
        ("s/a/keypoints/cam02/cam02_000000000006_keypoints.json", Path.touch),
        ("s/a/keypoints/cam02", lambda f: f.rename(f.with_name("cam2"))),
        ("s/a/videos/cam01.mp4", lambda f: rewrite(f, f.read_bytes())),
        ("s/a/videos/cam03.mp4", Path.touch),
        ("s/calibration.toml", one_more_line),
        ("s/recording.yaml", lambda f: f.write_text("fps: 20\n")),
        ("../net.safetensors", lambda f: rewrite(f, b"newer")),
        ("../out/s/a/report.html", Path.unlink),
        ("../out/s/a/results.zarr", Path.unlink),  # as of cameras that were estimated and corrected
    ],
)
def test_no_result_outlives_what_it_was_made_of(finished, tmp_path, monkeypatch, file, change):
    top = shutil.copytree(finished, tmp_path / "copy", symlinks=True)  # times, too
    monkeypatch.chdir(top)

    def first():
        events = process(Path("data"), Path("out"), Settings(weights="net.safetensors"), run, Capacity(1))
        with contextlib.closing(events):
            return next(events).row.state

    (top / "data/s/notes.yaml").write_text("nobody reads this")
    rewrite(top / "data/s/calibration.toml", (top / "data/s/calibration.toml").read_bytes())
    assert first() == "done", "nothing has changed"
    change(top / "data" / file)
    assert first() == "running"


@pytest.mark.parametrize("name", ["auto", "default"])
def test_a_file_called_as_a_setting_changes_no_fingerprint(finished, tmp_path, monkeypatch, name):
    """B9: `device: auto` is a word, whatever lies in the current folder; weights are a file."""
    data = finished / "data"
    monkeypatch.chdir(tmp_path)
    before = fingerprint(Settings(), data / "s/a", data)
    Path(name).write_text("somebody's")
    assert fingerprint(Settings(), data / "s/a", data) == before
    named = Settings(weights="auto")
    Path("auto").write_text("weights")
    before = fingerprint(named, data / "s/a", data)
    rewrite(Path("auto"), b"others")
    assert fingerprint(named, data / "s/a", data) != before


def test_what_cannot_be_read_stops_nothing(tmp_path):
    """Links to nowhere and folders called as files are, at every place that is looked at."""
    data, out = tmp_path / "data", tmp_path / "out"
    for name in ("b/x", "c/x"):
        make(data / name)
    for link in ("b/old.toml", "b/recording.yaml", "b/x/recording.yaml", "b/x/keypoints/old", "b/videos"):
        (data / link).symlink_to(tmp_path / "nowhere")
    (data / "b/x/keypoints/cam01/cam01_7.json").symlink_to(tmp_path / "nowhere")
    (data / "b/x.yml").mkdir()
    (data / "b/calib_old.toml").mkdir()
    (data / "c/x/recording.yaml").mkdir()
    work(data, out, workers=1)
    rows = read_manifest(out)
    assert rows["b/x"].state == "done"
    assert rows["c/x"].state == "failed"
    assert "recording.yaml" in rows["c/x"].error


def test_a_folder_that_may_not_be_read_is_one_failure(tmp_path, monkeypatch):
    for name in ("a", "locked"):
        make(tmp_path / name)

    def refused(folder, inherit=None):
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied", str(folder))
        return is_recording(folder, inherit)

    monkeypatch.setattr("pipeline.batch.dataset.is_recording", refused)
    assert [*find_recordings(tmp_path)] == ["a", "locked"]
    with pytest.raises(InputError, match=r"locked: cannot be read \(Permission denied\)"):
        find_recordings(tmp_path / "locked")
    monkeypatch.undo()
    exists = Path.exists

    def not_entered(path):
        if path.parent.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", not_entered)
    assert [*find_recordings(tmp_path)] == ["a", "locked"]


def test_no_recording_is_told_to_run_that_does_not(tmp_path):
    """After a kill -9 of a batch, in one that leaves the recording out."""
    for name in "ab":
        make(tmp_path / "data" / name)
    work(tmp_path / "data", tmp_path / "out", workers=1)
    manifest = tmp_path / "out/batch.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"state": "done"', '"state": "running"', 1))
    assert [e.recordings for e in work(tmp_path / "data", tmp_path / "out", only="b")] == [1]
    assert {name: row.state for name, row in read_manifest(tmp_path / "out").items()} == {
        "a": "pending", "b": "done",
    }  # fmt: skip


def test_names_of_any_bytes(tmp_path):
    """As of folders that an old Windows has named."""
    name = os.fsdecode(b"M\xfcller")
    make(tmp_path / "data" / name)
    assert work(tmp_path / "data", tmp_path / "out", workers=1)[-1].row.state == "done"
    assert read_manifest(tmp_path / "out")[name].state == "done"
    assert b'href="M%FCller/report.html">M\xfcller</a>' in (tmp_path / "out/batch.html").read_bytes()
    assert b"warning: " in (tmp_path / "out" / name / "log.txt").read_bytes()
    assert [e.worker for e in work(tmp_path / "data", tmp_path / "out")] == [-1]
    url = f"memory://{tmp_path.name}"
    assert work(tmp_path / "data", url, workers=1)[-1].row.state == "done"
    assert read_manifest(url)[name].state == "done"


def test_memory_that_keeps_files_at_hand_is_room(tmp_path):
    info, limit = tmp_path / "meminfo", tmp_path / "max"
    assert available_gb(info, limit) == float("inf")
    info.write_text("MemTotal: 67108864 kB\nMemFree: 1048576 kB\nMemAvailable: 33554432 kB\n")
    assert available_gb(info, limit) == 32
    limit.write_text("max\n")
    assert available_gb(info, limit) == 32
    limit.write_text(f"{4 * 2**30}\n")
    assert available_gb(info, limit) == 4


def test_whoever_stops_listening_stops_the_workers(tmp_path):
    make(tmp_path / "data/a", "wait")
    events = process(tmp_path / "data", tmp_path / "out", Settings(), run, Capacity(1))
    assert next(events).row.state == "running"
    assert next(events).total == 6  # it runs
    assert len(multiprocessing.active_children()) == 1
    with pytest.raises(InputError, match="another batch is at work"):
        work(tmp_path / "data", tmp_path / "out")
    events.close()
    assert not multiprocessing.active_children()
    assert read_manifest(tmp_path / "out")["a"].state == "pending", "it was cut off"
    with FileLock(tmp_path / "out/.lock", timeout=0):
        pass


def test_a_damaged_manifest_is_named(tmp_path):
    make(tmp_path / "data/a")
    (tmp_path / "out").mkdir()
    for text in ("", "{}", '{"recordings": [{"name": 1, "state": "gone"}]}'):
        (tmp_path / "out/batch.json").write_text(text)
        with pytest.raises(InputError, match=r"batch\.json: .* Remove it"):
            work(tmp_path / "data", tmp_path / "out")


def test_the_page_escapes_what_comes_from_outside():
    bad = "<script>alert(1)</script>"
    row = Entry(
        f'a/{bad}"&', "failed", attempts=1, error=bad, warnings=(bad,), report=f'a/{bad}"/report.html'
    )
    done = replace(row, name="b", state="done", frames=5, reprojection_mm=17.4, verdict="good")
    text = page(bad, [row, done])
    assert '<td title="mm">17</td><td title="verdict">good</td>' in text
    assert "<script" not in text
    assert 'href="a/%3Cscript%3Ealert%281%29%3C/script%3E%22/report.html"' in text
    assert 'href="a/%3Cscript%3Ealert%281%29%3C/script%3E%22%26/log.txt"' in text
    assert text.count("&lt;script&gt;") == 7
    assert "2 recordings: 1 done, 1 failed" in text


def test_the_page_shows_a_picture_and_the_share_that_was_fitted(tmp_path):
    """Of the middle of the mosaic; nothing of a recording without videos."""
    make(tmp_path / "data/s/a", "film")
    make(tmp_path / "data/s/b")
    work(tmp_path / "data", tmp_path / "out", workers=1)
    rows = read_manifest(tmp_path / "out")
    assert rows["s/a"].fitted == 0.75
    assert rows["s/b"].fitted is None
    picture = cv2.imread(str(tmp_path / "out/s/a/thumbnail.jpg"))
    assert picture.shape == (180, 320, 3)
    np.testing.assert_allclose(picture.reshape(-1, 3).mean(0), [250, 60, 200], atol=12)
    text = (tmp_path / "out/batch.html").read_text()
    assert '<a href="s/a/report.html"><img src="s/a/thumbnail.jpg"' in text
    assert text.count("<img") == 1
    assert '<span class="little">75 %</span>' in text
    shutil.copy(tmp_path / "out/s/a/thumbnail.jpg", tmp_path / "kept.jpg")
    (tmp_path / "out/s/a/thumbnail.jpg").unlink()
    assert [e.row.name for e in work(tmp_path / "data", tmp_path / "out", workers=1)][-1] == "s/a"
    assert (tmp_path / "out/s/a/thumbnail.jpg").read_bytes() == (tmp_path / "kept.jpg").read_bytes()


def call(capfd, monkeypatch, *words, command="batch"):
    """Status and everything printed by the command."""
    monkeypatch.setattr(sys, "argv", ["run_pipeline.py", command, *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_pipeline.main()
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out + err


def test_a_dry_run_says_what_is_there_and_changes_nothing(tmp_path, capfd, monkeypatch):
    for name in ("s/a", "s/b"):
        make(tmp_path / "data" / name)
    (tmp_path / "data/s/a/calibration.toml").rename(tmp_path / "data/s/calibration.toml")
    out = tmp_path / "out"
    status, text = call(capfd, monkeypatch, tmp_path / "data", "--out", out, "--dry-run")
    assert status == 0
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("s/")}
    assert rows == {
        "s/a": ["3", "6", "30", "body_25", "../calibration.toml"],
        "s/b": ["3", "6", "30", "body_25", "calibration.toml"],
    }
    (tmp_path / "data/s/b/calibration.toml").write_text("no = [")
    status, text = call(capfd, monkeypatch, tmp_path / "data", "--out", out, "--dry-run")
    assert status == 1
    assert "s/b: error: " in text
    assert "1 of 2 recordings can be run." in text
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        ([".", "--workers", "0"], "--workers 0: expected a number from 1, or auto"),
        ([".", "--workers", "many"], "--workers many: expected"),
        (["."], "no recordings found"),
        ([".", "--set", "smplify.overlap=1"], "unknown key"),
    ],
)
def test_mistakes_are_told(tmp_path, capfd, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    status, text = call(capfd, monkeypatch, *words, "--out", "out")
    assert status == 2
    assert message in text
    assert not Path("out").exists()
