"""Drawing a long store needs the memory of drawing a short one."""

import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from builders import contents
from test_software import sphere

from pipeline.store import Store
from pipeline.video import VideoWriter
from stages.decode import DecodeConfig, decode
from stages.render import RenderConfig, render_results

SIZE = (64, 48)


@dataclass
class Ball:
    """A body that costs little."""

    faces: np.ndarray
    points: torch.Tensor

    def vertices(self, global_orient, body_pose, betas, transl):
        return torch.einsum("nij,vj->nvi", global_orient, self.points) + transl[:, None]


def make(folder: Path, frames: int) -> None:
    """A finished store of a ball that sways before two cameras, and the cameras' videos."""
    short = contents()
    rig = short.rig
    for v in range(2):
        rig = rig.resized(v, SIZE)
    index = np.tile(np.arange(frames), (2, 1))
    long = replace(short, rig=rig, time_s=np.arange(frames) * 1001 / 30000, frame_index=index, window=24)
    store = Store.create(folder / "results.zarr", long)
    store._make_person(0)
    root = zarr.open_group(store.path, mode="r+")
    person = root["people/0"]
    place = np.zeros((frames, 3), np.float32)
    place[:, 0] = 0.3 * np.sin(np.arange(frames) / 9)
    for name, value in (
        ("global_orient", 0),
        ("body_pose", 0),
        ("joints", 0),
        ("status", 0),
        ("valid", True),
    ):
        person[name][:] = np.full(person[name].shape, value, person[name].dtype)
    person["transl"][:] = place
    person["betas"][:] = 0
    root["done"][:] = True
    picture = np.random.default_rng(0).integers(0, 255, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
    for name in rig.names:
        with VideoWriter(folder / f"{name}.mp4", long.rate, preset="ultrafast", threads=1) as video:
            for _ in range(frames):
                video.write(picture)


def held_mb() -> float:
    """Largest resident memory of this program. (``ru_maxrss`` would be that of who started it, if larger.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def draw(folder: Path) -> tuple[int, float]:
    """Draw it all; how many frames passed, and the largest resident memory of this process in MB."""
    vertices, faces = sphere(radius=0.5, n=12)
    store = Store(folder / "results.zarr")
    videos = [folder / f"{name}.mp4" for name in store.contents.rig.names]
    cfg = RenderConfig(codec="libx264", backend="software", preset="ultrafast", threads=2)
    how = partial(decode, cfg=DecodeConfig())
    body = Ball(faces, torch.from_numpy(vertices))
    _, stream = render_results(store, "overlay", cfg, videos, body, folder, how)
    frames = sum(len(batch.valid) for batch in stream)
    return frames, held_mb()


def peak_mb(folder: Path, frames: int) -> float:
    folder.mkdir()
    make(folder, frames)
    here = Path(__file__).parent
    program = (
        f"import sys; sys.path[:0] = {[str(here.parents[1]), str(here.parent), str(here)]!r}\n"
        "from pathlib import Path; from test_render_memory import draw; print(*draw(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    drawn, mb = map(float, done.stdout.split())
    assert drawn == frames
    assert sum(1 for _ in folder.glob("overlay_*.mp4")) == 2
    return mb


@pytest.mark.parametrize("frames", [1_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.timeout(3600)
def test_memory_does_not_grow_with_the_store(tmp_path, frames):
    """Videos are read, drawn on and encoded. What grows are times, and the index that an MP4 file has of its
    frames: 57 MB for 100,000 frames of two cameras, read and written."""
    short, long = peak_mb(tmp_path / "short", 100), peak_mb(tmp_path / "long", frames)
    print(f"\n{short:.0f} MB for 100 frames, {long:.0f} MB for {frames}")
    assert long < 1.1 * short
