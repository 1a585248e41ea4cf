"""A batch from and to S3 that is killed again and again: what is done is whole, and the same in the end."""

import json
import random
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import psutil
import pytest
import zarr
from builders import store_arrays
from recordings import figure, ring, seen, write_recording
from test_batch_kill import ROOT, finish
from test_storage import s3, server  # noqa: F401


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_random_moments_on_s3(s3, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    rig = ring(3, size=(320, 180))
    for n in range(2):
        person = seen(rig, figure(np.arange(60) / 30, phase=n), noise_px=0.5, seed=n)
        write_recording(tmp_path / "data" / f"r{n}", rig, [person])
    finish(tmp_path / "data", tmp_path / "whole")
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    fs.put(str(tmp_path / "data"), s3, recursive=True)
    command = [sys.executable, str(ROOT / "run_pipeline.py"), "batch", f"{s3}/data", "--out", f"{s3}/out"]

    def start():
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def whole():
        """Names of recordings that the manifest says are done; they are."""
        if not fs.exists(f"{s3}/out/batch.json"):
            return set()
        rows = json.loads(fs.cat_file(f"{s3}/out/batch.json"))["recordings"]
        done = {row["name"] for row in rows if row["state"] == "done"}
        for name in done:
            assert fs.exists(f"{s3}/out/{name}/summary.json")
            left = store_arrays(tmp_path / "whole" / name / "results.zarr")
            root = zarr.open_group(f"{s3}/out/{name}/results.zarr", mode="r")
            for array, values in left.items():
                assert np.array_equal(values, root[array][...], equal_nan=values.dtype.kind == "f"), array
        return done

    rng = random.Random(0)
    for _ in range(6):
        process = start()
        end = time.monotonic() + rng.uniform(3, 20)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        psutil.wait_procs(workers, timeout=20)
        whole()
    assert start().wait(timeout=600) == 0
    assert whole() == {"r0", "r1"}
