"""The same batch on a Ray cluster of two nodes: real tasks, real deaths."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr
from recordings import figure, ring, seen, write_recording
from test_batch import Done, Settings, call, make

from pipeline.batch.manifest import read_manifest
from pipeline.batch.process import Capacity, process
from pipeline.batch.workers import Needs
from pipeline.errors import InputError
from pipeline.recording import find_recording
from pipeline.summary import Summary
from stages import graph

ray = pytest.importorskip("ray")


@pytest.fixture(autouse=True)
def _random_state():
    """Ray draws from the global generator when it starts."""
    state = random.getstate()
    yield
    random.setstate(state)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, each with room for two recordings of one processor."""
    from ray.cluster_utils import Cluster

    each = {"num_cpus": 2, "memory": 3 * 2**30, "object_store_memory": 80 * 2**20}
    for module in (__name__, "test_batch"):  # nobody has installed these
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    made = Cluster(initialize_head=True, head_node_args=each)
    try:
        made.add_node(**each)
        yield made
    finally:
        made.shutdown()


def run(recording, out, cfg, progress, *, watch):
    """Does what a file in the recording's folder says."""
    marker = recording.path / "behave"
    what = marker.read_text() if marker.exists() else ""
    print(f"it is told to {what or 'run'}")
    if what == "once":
        marker.unlink()
        raise RuntimeError("by chance")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    (out / "pid").write_text(str(os.getpid()))
    (out / "threads").write_text(os.environ["OPENBLAS_NUM_THREADS"])
    progress(4)
    if what == "hold":
        while not (recording.path / "go").exists():
            time.sleep(0.05)
    (out / "report.html").write_text("")
    return Done(Summary(len(recording), 30.0, 0.2, True, 1.5, 1.6, (), ()), (out / "report.html",), ())


def test_failures_a_killed_worker_and_a_killed_node(cluster, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    behaviours = {"a": "hold", "b": "hold", "c": "hold", "d": "die", "e": "once", "f": ""}
    for name, what in behaviours.items():
        make(data / name, what)
    (data / "f/calibration.toml").write_text("no = [")
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.list_all_nodes()}
    workers, places, lost = {}, {}, set()
    capacity = Capacity(None, Needs(cpus=1, memory_gb=0.5), "ray", cluster.address)
    for event in process(data, out, Settings(), run, capacity, retry=2):
        name = event.row.name
        if event.frames and behaviours[name] == "hold":
            workers[name] = psutil.Process(int((out / name / "pid").read_text()))
            places[name] = raylets[workers[name].ppid()]
            if len(places) == 3 and not lost:
                (other,) = set(raylets.values()) - {cluster.head_node}
                lost = {n for n, node in places.items() if node is other}
                assert lost, "three do not fit on one"
                cluster.remove_node(other, allow_graceful=False)
                psutil.wait_procs([workers[n] for n in lost], timeout=20)
                for n in places:
                    (data / n / "go").touch()
    rows = read_manifest(out)
    assert {name: (row.state, row.attempts) for name, row in rows.items() if name != "e"} == {
        **{name: ("done", 2 if name in lost else 1) for name in "abc"},
        "d": ("failed", 3), "f": ("failed", 1),
    }, rows  # fmt: skip
    # It may have been on the node that went away, too.
    assert (rows["e"].state, rows["e"].attempts in (2, 3)) == ("done", True), rows["e"]
    assert {*places.values()} == {cluster.head_node}, "they were tried again where there was room"
    assert "WorkerCrashedError" in rows["d"].error
    assert "f/calibration.toml" in rows["f"].error
    log = (out / "e/log.txt").read_text()
    assert "RuntimeError: by chance" in log
    assert log.count("it is told to") >= 2  # an attempt lost with its node may leave no line
    assert (out / "e/threads").read_text() == "1"
    assert not ray.is_initialized()


def test_the_same_numbers_as_without_a_cluster(cluster, tmp_path, capfd, monkeypatch):
    rig = ring(3, size=(320, 180))
    write_recording(tmp_path / "data/r", rig, [seen(rig, figure(np.arange(30) / 30), noise_px=0.5)])
    graph.run(find_recording(tmp_path / "data/r"), tmp_path / "here", graph.RunConfig())
    monkeypatch.chdir(tmp_path)  # paths are seen from here
    words = ("data", "--out", "out", "--engine", "ray", "--address", cluster.address)
    status, text = call(capfd, monkeypatch, *words)
    assert status == 0, text
    left, right = (zarr.open_group(Path(f"{out}/results.zarr"), mode="r") for out in ("here", "out/r"))
    names = [name for name, array in left.members(max_depth=None) if isinstance(array, zarr.Array)]
    assert names
    for name in names:
        one, other = left[name][...], right[name][...]
        assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), name


def test_a_recording_that_fits_on_no_node(cluster, tmp_path):
    make(tmp_path / "data/a")
    capacity = Capacity(None, Needs(cpus=64), "ray", cluster.address)
    with pytest.raises(InputError, match=r"64 processors.* no machine of the cluster has that"):
        [*process(tmp_path / "data", tmp_path / "out", Settings(), run, capacity)]
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "ray", "--address", "127.0.0.1:1"], "127.0.0.1:1: cannot be reached"),
        (["--engine", "ray", "--address", "127.0.0.1:many"], "127.0.0.1:many: cannot be reached"),
        (["--engine", "ray", "--address", "ray://host:10001"], "expected HOST:PORT"),
        (["--engine", "dask"], "--engine dask: expected local or ray"),
        (["--address", "host:1"], "--address host:1: only with --engine ray"),
    ],
)
def test_mistakes_are_told(tmp_path, capfd, monkeypatch, words, message):
    make(tmp_path / "data/a")
    status, text = call(capfd, monkeypatch, tmp_path / "data", "--out", tmp_path / "out", *words)
    assert status == 2
    assert message in text


def test_ray_that_is_not_installed_is_named(tmp_path, monkeypatch):
    make(tmp_path / "data/a")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[ray\]'"):
        [*process(tmp_path / "data", tmp_path / "out", Settings(), run, Capacity(engine="ray"))]
