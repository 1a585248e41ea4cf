"""A long recording needs no more memory, files and threads than its beginning.

Here 45 s after 15 s; ``pytest -m slow -s tests/reliability/test_soak.py`` takes half an hour after one
minute, and five minutes after half a minute of people of whom two come and go, keypoints only.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from recordings import figure, ring, seen, write_recording
from test_render_memory import held_mb

from models.body import load_body
from pipeline.recording import find_recording
from stages.graph import RunConfig, run
from stages.synth import SynthConfig
from stages.synth import write_recording as write_synthetic

RATE, CYCLE_S = 30, 20


def make_walker(folder: Path, seconds: int) -> Path:
    """Two cameras' keypoints of someone who does the same again and again."""
    frames = np.arange(CYCLE_S * RATE) / RATE
    write_recording(folder, rig := ring(2, size=(1280, 720)), [seen(rig, figure(frames), noise_px=1)])
    for camera in rig.names:
        place = folder / "keypoints" / camera
        for t in range(len(frames), seconds * RATE):
            name = f"{camera}_{{:012d}}_keypoints.json".format
            os.link(place / name(t % len(frames)), place / name(t))
    return folder


def make_crowd(folder: Path, seconds: int) -> Path:
    """Three people before three cameras; two leave and come back, as somebody new, all the time."""
    cfg = SynthConfig(
        cameras=3, people=3, leaving=2, seconds=seconds, fps=RATE / 2, size=(640, 480), videos=False, seed=31
    )
    write_synthetic(folder, cfg, load_body())
    return folder


def work(folder: Path) -> dict[str, object]:
    """Run it; what this process held after every window, and what it held at most."""
    recording, me = find_recording(folder), psutil.Process()
    held: list[tuple[float, int, int]] = []
    begun = time.monotonic()

    def look(frames: int) -> None:
        held.append((me.memory_info().rss / 2**20, me.num_fds(), me.num_threads()))

    done = run(recording, folder.with_name("out"), RunConfig(), look)
    return {
        "frames": done.summary.frames,
        "ids": len(done.summary.people),
        "fps": done.summary.frames / (time.monotonic() - begun),
        "held": held,
        "peak_mb": held_mb(),
    }


@pytest.mark.parametrize(
    ("make", "frames", "seconds", "first_s"),
    [
        (make_walker, 45 * RATE, 45, 15),
        pytest.param(make_walker, 1800 * RATE, 1800, 60, marks=pytest.mark.slow),
        pytest.param(make_crowd, 300 * RATE // 2, 300, 30, marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(3600)
def test_memory_files_and_threads_stay_as_they_are(tmp_path, make, frames, seconds, first_s):
    folder = make(tmp_path / "recording", seconds)
    here = Path(__file__).parent
    program = (
        f"import sys; sys.path[:0] = {[str(here.parents[1]), str(here.parent), str(here)]!r}\n"
        "import json; from pathlib import Path; from test_soak import work\n"
        "print(json.dumps(work(Path(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["frames"] == frames
    mb, files, threads = np.array(found["held"]).T
    early = len(mb) * first_s // seconds
    print(
        f"\n{found['frames']} frames, {found['ids']} ids, {found['fps']:.0f}/s. "
        f"After {first_s} s and at most then: "
        f"{mb[early]:.0f} and {mb[early:].max():.0f} MB, {found['peak_mb']:.0f} with the report; "
        f"{files[early]:.0f} and {files[early:].max():.0f} files; "
        f"{threads[early]:.0f} and {threads[early:].max():.0f} threads"
    )
    assert found["peak_mb"] < 1.1 * mb[early], "with the summary and the report at the end"
    late = -len(mb) // 4
    assert files[late:].min() <= files[:early].min(), "what is read or written is open for a moment"
    assert np.median(files[late:]) <= np.median(files[:early])
    assert np.median(threads[late:]) <= threads[:early].max()
