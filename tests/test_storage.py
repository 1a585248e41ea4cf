"""Recordings and results by URL: in memory, and on a real S3 server on loopback."""

import errno
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import pytest
from builders import assert_same_stores, contents
from recordings import figure, ring, seen, write_recording
from test_batch import Settings, call, make, run

from pipeline.batch.manifest import read_manifest
from pipeline.batch.process import Capacity, process
from pipeline.batch.storage import StorageError, fetched, listing, parse_location, published
from pipeline.errors import InputError
from pipeline.recording import find_recording
from pipeline.store import Store
from stages import graph


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where what is fetched and not yet published lies."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))  # of the workers, too
    memory().makedirs("/bucket", exist_ok=True)  # a copy goes into a folder that is there
    yield folder
    memory().store.clear()


def memory():
    return fsspec.filesystem("memory")


def kept(scratch):
    """Files that stay on this machine."""
    return sorted(p.name for p in scratch.rglob("*") if p.is_file() and p.name != ".lock")


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


URL = "memory://bucket/out"


def listed():
    return {
        name.removeprefix("/bucket/out/"): memory().cat(name).decode()
        for name in memory().find("/bucket/out")
    }


def test_a_place_is_a_folder_or_a_url():
    assert parse_location("a/b") == Path("a/b")
    assert parse_location("file:///a/b") == Path("/a/b")
    assert parse_location("s3://bucket/a/") == "s3://bucket/a"


def test_results_are_published_when_they_are_finished_and_never_half(scratch, monkeypatch):
    whole = {
        "results_dot_zarr__zarr_dot_json": "{}",
        "results_dot_zarr__c__0": "1",
        "summary_dot_json": '{"videos": ["old.mp4"]}',
    }
    order = []
    put = type(memory()).put_file

    def noted(fs, ours, theirs, **more):
        order.append(theirs)
        return put(fs, ours, theirs, **more)

    monkeypatch.setattr(type(memory()), "put_file", noted)
    with published(URL, "a", "log.txt") as out:
        write(out, **whole, old_dot_mp4="x")
        assert not listed()
    first = listed()
    assert {*first} == {"results.zarr/zarr.json", "results.zarr/c/0", "summary.json", "old.mp4"}
    assert [name.rpartition("/")[2] for name in order[-2:]] == ["zarr.json", "summary.json"]
    assert not kept(scratch)

    # Again: what is there comes first, and a failure changes nothing but the log.
    where = r"^memory://bucket/out/results\.zarr: other"
    with pytest.raises(InputError, match=where), published(URL, "b", "log.txt") as out:
        assert (out / "results.zarr/c/0").read_text() == "1"
        write(out, log_dot_txt="went wrong", results_dot_zarr__c__0="2")
        raise InputError(f"{out}/results.zarr: other settings")
    assert listed() == {**first, "log.txt": "went wrong"}
    assert not kept(scratch)
    with published(URL, "b", "log.txt") as out:
        (out / "old.mp4").unlink()
        write(out, results_dot_zarr__c__0="2")
    del first["old.mp4"]
    assert listed() == {**first, "results.zarr/c/0": "2", "log.txt": "went wrong"}


def test_what_is_not_a_runs_own_is_left_there():
    """Where a recording's own URL, or one above it, is given as --out."""
    foreign = {"videos/cam01.mp4": "the only one", "b/results.zarr/c/0": "another's"}
    for name, text in {**foreign, "results.zarr/c/9": "of a run that was cut off"}.items():
        memory().pipe_file(f"/bucket/out/{name}", text.encode())
    for number in "12":
        with published(URL, number) as out:
            write(out, results_dot_zarr__c__0=number, summary_dot_json="{}")
        assert listed() == {**foreign, "results.zarr/c/0": number, "summary.json": "{}"}


def test_what_is_not_a_runs_own_may_change_meanwhile():
    with published(URL, "a") as out:
        write(out, results_dot_zarr__c__0="1", report_dot_html="1", summary_dot_json="{}")
    memory().pipe_file("/bucket/out/videos/cam01.mp4", b"old")
    memory().pipe_file("/bucket/out/videos/cam02.mp4", b"old")
    for lock in ("b/.lock", "results.zarr/.lock", ".lock"):
        memory().pipe_file(f"/bucket/out/{lock}", b"")
    before = memory().modified("/bucket/out/report.html")
    with published(URL, "b") as out:
        assert not (out / "videos").exists()
        memory().pipe_file("/bucket/out/videos/cam01.mp4", b"new")
        memory().rm_file("/bucket/out/videos/cam02.mp4")
        write(out, results_dot_zarr__c__0="2")
    assert listed() == {
        "b/.lock": "", "results.zarr/.lock": "", ".lock": "", "videos/cam01.mp4": "new",
        "results.zarr/c/0": "2", "report.html": "1", "summary.json": "{}",
    }  # fmt: skip
    assert memory().modified("/bucket/out/report.html") == before, "it was left as it is"


def test_what_was_cut_off_is_continued_by_the_same_key_only(scratch):
    with pytest.raises(RuntimeError), published(URL, "a") as out:
        write(out, results_dot_zarr__c__0="1")
        raise RuntimeError
    assert not listed()
    with published(URL, "b") as out:
        assert not [*out.iterdir()]
        with (
            pytest.raises(InputError, match=r"^memory://bucket/out.*another run is at work"),
            published(URL, "b"),
        ):
            pass
    with published(URL, "a") as out:
        assert (out / "results.zarr/c/0").read_text() == "1"
    assert {*listed()} == {"results.zarr/c/0"}


def test_publishing_that_is_cut_off_is_done_again(scratch, monkeypatch):
    def full(fs, ours, theirs, **more):
        if theirs.endswith("zarr.json"):
            raise OSError("out of order")
        return put(fs, ours, theirs, **more)

    files = {"results_dot_zarr__zarr_dot_json": "{}", "a": "1", "summary_dot_json": "{}"}
    with published(URL, "a") as out:
        write(out, **files)
    put = type(memory()).put_file
    with monkeypatch.context() as patch:
        patch.setattr(type(memory()), "put_file", full)
        with pytest.raises(StorageError, match="out of order"), published(URL, "a") as out:
            write(out, a="2")
    assert {*listed()} == {"a"}, "neither a store nor a summary"
    with published(URL, "a") as out:
        assert (out / "a").read_text() == "2", "it was finished"
    assert {*listed()} == {"a", "results.zarr/zarr.json", "summary.json"}


def test_the_outline_of_a_data_set_changes_with_its_files(tmp_path):
    make(tmp_path / "data/s/a")
    memory().put(str(tmp_path / "data"), "/bucket/data", recursive=True)
    file = "s/a/keypoints/cam01/cam01_000000000001_keypoints.json"

    def look():
        with listing("memory://bucket/data") as tree:
            assert tree.name == "data"
            assert (tree / "s/a/calibration.toml").read_bytes() == (
                tmp_path / "data/s/a/calibration.toml"
            ).read_bytes()
            assert (tree / file).stat().st_size == 0
            return {str(p.relative_to(tree)): p.stat().st_mtime_ns for p in tree.rglob("*.json")}

    first = look()
    assert len(first) == 18
    assert look() == first
    memory().pipe_file(f"/bucket/data/{file}", b"{}")
    assert {name for name, stamp in look().items() if stamp != first[name]} == {file}


def test_names_that_leave_their_folder_are_refused(scratch):
    memory().store["/bucket/data/../../evil"] = memory().open("/bucket/x", "wb")
    memory().pipe_file("/bucket/data/a", b"")
    with pytest.raises(InputError, match="is not a possible file name"), listing("memory://bucket/data"):
        pass
    with (
        pytest.raises(InputError, match="is not a possible file name"),
        fetched("memory://bucket/data", ["."], "me"),
    ):
        pass


def test_a_full_disk_of_this_machine_is_not_taken_for_the_storages(scratch, monkeypatch):
    def full(fs, theirs, ours, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    memory().pipe_file("/bucket/data/a", b"")
    monkeypatch.setattr(type(memory()), "get_file", full)
    message = rf"^{scratch}: No space left on device: files of memory://bucket/data .* TMPDIR"
    with pytest.raises(InputError, match=message), fetched("memory://bucket/data", ["."], "me"):
        pass


def test_a_batch_lists_its_data_set_once(tmp_path, capfd, monkeypatch):
    make(tmp_path / "data/a")
    (tmp_path / "data/a/calibration.toml").write_text("no = [")
    memory().put(str(tmp_path / "data"), "/bucket/data", recursive=True)
    asked = []
    monkeypatch.setattr("pipeline.batch.process.listing", lambda where: asked.append(where) or listing(where))
    monkeypatch.setattr("pipeline.batch.storage.listing", lambda where: asked.append(where) or listing(where))
    url, manifest = "memory://bucket/data", tmp_path / "out/batch.json"
    write(manifest.parent, batch_dot_json="damaged")
    status, text = call(capfd, monkeypatch, url, "--out", tmp_path / "out")
    assert status == 2
    assert f"{manifest}: cannot be read" in text
    assert asked == [url]
    status, text = call(capfd, monkeypatch, url, "--out", url)
    assert "--out is the data set" in text


def test_runs_to_folders_of_one_name_fetch_copies_of_their_own(tmp_path, capfd, monkeypatch):
    readers = []

    def noted(source, tree, folder, reader):
        readers.append(reader)
        raise InputError("enough")

    memory().pipe_file("/another/data/a", b"")
    monkeypatch.setattr("pipeline.batch.dataset.opened", noted)
    for name in "ab":
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        _, text = call(capfd, monkeypatch, "memory://another/data", "--out", "out", command="run")
        assert "enough" in text
    assert readers == [f"run {tmp_path / name / 'out'}" for name in "ab"]


def test_what_is_at_a_url_is_told(tmp_path, scratch, capfd, monkeypatch):
    make(tmp_path / "data/a")
    Store.create(tmp_path / "data/out/results.zarr", contents())
    memory().put(str(tmp_path / "data"), "/bucket", recursive=True)
    url = "memory://bucket/data"
    for name, told in (
        ("a", "Do the cameras agree?"),
        ("out", "windows done  0 of 3"),
        ("out/results.zarr", "windows done  0 of 3"),
    ):
        status, text = call(capfd, monkeypatch, f"{url}/{name}", command="info")
        assert status == 0, text
        assert text.startswith(f"{url}/{name}")
        assert told in text
    assert not [*scratch.rglob("*.zarr")]
    for command in ("render", "view"):
        status, text = call(capfd, monkeypatch, f"{url}/out", command=command)
        assert status == 2
        assert f"error: {url}/out: this command needs the results in a folder of this machine" in text


@pytest.mark.parametrize(
    ("command", "out", "message"),
    [
        ("run", "r", "is the recording's own folder"),
        ("run", "", "which the run reads"),
        ("run", "r/keypoints/new", "lies among the recording's own files"),
        ("batch", "", "is the recording's own folder"),  # OUT/r
    ],
)
def test_results_at_a_recordings_own_url_are_refused(tmp_path, capfd, monkeypatch, command, out, message):
    make(tmp_path / "r")
    bucket = tmp_path.name
    memory().put(str(tmp_path / "r"), f"/{bucket}/r", recursive=True)
    before = memory().find(f"/{bucket}")
    url = f"memory://{bucket}"
    status, text = call(capfd, monkeypatch, f"{url}/r", "--out", f"{url}/{out}", command=command)
    assert status == 2, text
    assert message in text
    assert f"Choose {url}/r/results" in text
    assert memory().find(f"/{bucket}") == before


@pytest.fixture(scope="module")
def server():
    """A real S3 server in a process of its own."""
    pytest.importorskip("moto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    serving = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "anything")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for _ in range(600):
            time.sleep(0.1)
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
        yield
    serving.terminate()
    serving.wait()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/nothing", "no files at this URL"),
        ("nosuch://bucket/x", "Protocol not known"),
        ("s3://bucket-that-is-not/x", "no files at this URL"),
    ],
)
def test_mistakes_are_told(server, tmp_path, capfd, monkeypatch, url, message):
    status, text = call(capfd, monkeypatch, url, "--out", tmp_path / "out")
    assert status == 2
    assert f"error: {url}: " in text
    assert message in text


@pytest.fixture
def s3(server, tmp_path):
    """URL of an empty bucket."""
    name = tmp_path.name.replace("_", "-").strip("-")
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


def test_a_batch_on_s3(s3, tmp_path, scratch):
    """A calibration that is inherited, one that is broken, and results inside the data set."""
    data, out = f"{s3}/data", f"{s3}/data/results"
    for name in ("s/a", "s/b", "c"):
        make(tmp_path / "data" / name)
    (tmp_path / "data/s/a/calibration.toml").rename(tmp_path / "data/s/calibration.toml")
    good = (tmp_path / "data/c/calibration.toml").read_bytes()
    (tmp_path / "data/c/calibration.toml").write_text("no = [")
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    fs.put(str(tmp_path / "data"), s3, recursive=True)

    def attempts():
        for _ in process(data, out, Settings(), run, Capacity(1)):
            pass
        return {name: (row.state, row.attempts) for name, row in read_manifest(out).items()}

    assert attempts() == {"s/a": ("done", 1), "s/b": ("done", 1), "c": ("failed", 1)}
    assert f"{data}/c/calibration.toml" in read_manifest(out)["c"].error
    assert b"error: " in fs.cat_file(f"{out}/c/log.txt")
    assert not fs.exists(f"{out}/c/summary.json")
    assert b"2 done, 1 failed" in fs.cat_file(f"{out}/batch.html")
    fs.pipe_file(f"{data}/c/calibration.toml", good)
    fs.pipe_file(f"{data}/s/a/recording.yaml", b"fps: 25")
    fs.rm_file(f"{out}/s/b/summary.json")
    assert attempts() == {"s/a": ("done", 2), "s/b": ("done", 2), "c": ("done", 2)}
    assert attempts() == {"s/a": ("done", 2), "s/b": ("done", 2), "c": ("done", 2)}
    assert kept(scratch) == ["log.txt"], "of the one that failed"


def test_a_run_on_s3_is_the_same_run(s3, tmp_path, scratch, capfd, monkeypatch):
    rig = ring(3, size=(320, 180))
    write_recording(tmp_path / "r", rig, [seen(rig, figure(np.arange(30) / 30), noise_px=0.5)])
    graph.run(find_recording(tmp_path / "r"), tmp_path / "here", graph.RunConfig())
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    fs.put(str(tmp_path / "r"), s3, recursive=True)
    words = (f"{s3}/r", "--out", f"{s3}/out")
    status, text = call(capfd, monkeypatch, *words, command="run")
    assert status == 0, text
    assert f"{s3}/out/report.html" in text
    assert_same_stores(tmp_path / "here/results.zarr", f"{s3}/out/results.zarr")
    status, text = call(capfd, monkeypatch, *words, command="run")
    assert status == 0
    assert "nothing to do" in text
    status, text = call(capfd, monkeypatch, *words, "--set", "smplify.overlap_frames=6", command="run")
    assert status == 2
    assert f"error: {s3}/out/results.zarr: was made by a run that differs" in text
    assert not kept(scratch)
