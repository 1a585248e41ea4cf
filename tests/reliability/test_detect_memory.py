"""Detecting people in a long video needs the memory of a short one."""

import subprocess
import sys
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import pytest
from detector_scenes import frames, needs_balancing
from test_render_memory import held_mb

from pipeline.video import VideoWriter, probe
from stages.decode import DecodeConfig, decode
from stages.detect import DetectConfig, detect_videos

FRAMES = 96


def detect(file: Path) -> tuple[int, float]:
    """Chunks of a video that were detected, and the largest resident memory of this process in MB."""
    cfg, how = DetectConfig(model="full"), partial(decode, cfg=DecodeConfig())
    found, _ = detect_videos({"a": probe(file)}, file.with_suffix(".zarr"), cfg, how)
    assert found.people()["a"].anybody()
    return len(found.chunks[0]), held_mb()


def peak_mb(file: Path, count: int) -> float:
    with VideoWriter(file, 60, preset="ultrafast", threads=1) as video:
        for picture in islice(cycle(frames(3, count=24)), count):
            video.write(picture[::4, ::4])
    here = Path(__file__).parent
    program = (
        f"import sys; sys.path[:0] = {[str(here.parents[1]), str(here.parent), str(here)]!r}\n"
        "from pathlib import Path; from test_detect_memory import detect; print(*detect(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    chunks, mb = map(float, done.stdout.split())
    assert chunks == count // 48
    return mb


@needs_balancing
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_the_video(tmp_path):
    short, long = peak_mb(tmp_path / "short.mp4", FRAMES), peak_mb(tmp_path / "long.mp4", 10 * FRAMES)
    print(f"\n{short:.0f} MB for {FRAMES} frames, {long:.0f} MB for {10 * FRAMES}")
    assert long < 1.05 * short
