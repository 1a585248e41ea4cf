"""A disk that is full or read-only: a clear message, nothing lost, and the next call goes on."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from builders import store_arrays
from recordings import figure, ring, seen, write_recording

from pipeline.recording import find_recording
from stages.graph import RunConfig, run

ROOT = Path(__file__).parents[2]


def batch(dataset, out):
    """Exit status and everything said."""
    command = [
        sys.executable,
        str(ROOT / "run_pipeline.py"),
        "batch",
        dataset,
        "--out",
        out,
        "--workers",
        "1",
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=250, check=False)
    text = done.stdout + done.stderr
    assert "Traceback" not in text, text
    return done.returncode, text


@contextmanager
def small_disk(place, size):
    """A file system of its own in memory; the function that mounts it otherwise."""
    place.mkdir()

    def mount(options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
        ).returncode

    if mount(f"size={size}"):
        pytest.skip("mounting a file system is not permitted here")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_and_one_that_is_read_only(tmp_path):
    rig = ring(3, size=(320, 180))
    for n in range(2):
        person = seen(rig, figure(np.arange(100) / 30, phase=n), noise_px=0.5, seed=n)
        write_recording(tmp_path / "data" / f"r{n}", rig, [person])
        run(find_recording(tmp_path / "data" / f"r{n}"), tmp_path / "whole" / f"r{n}", RunConfig())
    with small_disk(tmp_path / "disk", "600k") as remount:
        out = tmp_path / "disk" / "out"
        status, text = batch(tmp_path / "data", out)
        assert status in (1, 2)
        assert "No space left on device" in text
        assert not remount("ro,size=64m")
        status, text = batch(tmp_path / "data", out)
        assert status == 2
        assert "cannot be written (Read-only file system). Choose another --out" in text
        assert not remount("rw,size=64m")
        assert batch(tmp_path / "data", out)[0] == 0
        for name in ("r0", "r1"):
            left, right = (store_arrays(o / name / "results.zarr") for o in (tmp_path / "whole", out))
            assert left.keys() == right.keys()
            for key, values in left.items():
                assert np.array_equal(values, right[key], equal_nan=values.dtype.kind == "f"), key
