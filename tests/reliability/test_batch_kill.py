"""A batch that is killed at any moment, again and again, leaves what an undisturbed one leaves, and what
runs leave; its cameras are out of step.

Here one recording and three kills; ``pytest -m slow tests/reliability/test_batch_kill.py`` takes six
recordings in two workers and twenty kills.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from builders import assert_same_stores
from clocks import film, people_at, write_filmed

from pipeline.batch.manifest import read_manifest
from pipeline.results import SYNC

ROOT = Path(__file__).parents[2]
SECONDS, LATE = 2.2, np.array([0.0, 0.21, -0.1])


def start(dataset: Path, out: Path) -> subprocess.Popen[bytes]:
    words = ["batch", dataset, "--out", out, "--workers", "2"]
    command = [sys.executable, str(ROOT / "run_pipeline.py"), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(dataset: Path, out: Path) -> None:
    assert start(dataset, out).wait(timeout=280) == 0
    assert all(row.state == "done" for row in read_manifest(out).values())


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("recordings", "kills"), [(1, 3), pytest.param(6, 20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, recordings, kills):
    data, whole, out = tmp_path / "data", tmp_path / "whole", tmp_path / "out"
    for n in range(recordings):
        filmed = film(people_at(1, SECONDS, n), SECONDS, n, (30,) * 3, offset_s=LATE)
        write_filmed(data / f"r{n}", filmed)
    begun = time.monotonic()
    finish(data, whole)
    took = time.monotonic() - begun

    rng = random.Random(0)
    for _ in range(kills):
        process = start(data, out)
        # Half of the moments are anywhere, start included; half soon after something was finished.
        end = time.monotonic() + rng.uniform(0.2, 1.0) * took / (1 if rng.random() < 0.5 else 2)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive, "workers outlive the one they work for"
        read_manifest(out)  # it is whole
    finish(data, out)
    for n in range(recordings):
        assert_same_stores(whole / f"r{n}/results.zarr", out / f"r{n}/results.zarr")
        assert (out / f"r{n}/report.html").exists()
        assert "method: rays" in (whole / f"r{n}" / SYNC).read_text()
        assert (whole / f"r{n}" / SYNC).read_bytes() == (out / f"r{n}" / SYNC).read_bytes()
    assert not [*out.rglob("*.part*")]
    alone = [sys.executable, str(ROOT / "run_pipeline.py"), "run", str(data / "r0"), "--quiet"]
    subprocess.run([*alone, "--out", str(tmp_path / "alone")], check=True)
    assert_same_stores(tmp_path / "alone/results.zarr", out / "r0/results.zarr")
