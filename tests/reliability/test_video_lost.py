"""A video that goes away in the middle of a run: a message that names it, and nothing lost."""

import os
import shutil

import av
import numpy as np
import pytest
import zarr
from builders import store_arrays
from recordings import figure, ring, seen, write_recording

from pipeline.errors import InputError
from pipeline.recording import find_recording
from pipeline.video import VideoWriter
from stages.graph import RunConfig, run
from stages.render import RenderConfig

FRAMES, SIZE = 96, (192, 108)
CFG = RunConfig(render=RenderConfig(mosaic=False, preset="ultrafast", codec="libx264", backend="software"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A recording, and its results. The pictures are noise: so little of a video fits into a buffer."""
    top = tmp_path_factory.mktemp("lost")
    rig = ring(2, size=SIZE)
    write_recording(top / "recording", rig, [seen(rig, figure(np.arange(FRAMES) / 30), noise_px=0.2)])
    rng = np.random.default_rng(0)
    (top / "recording/videos").mkdir()
    for name in rig.names:
        with VideoWriter(top / f"recording/videos/{name}.mp4", 30, preset="ultrafast", threads=1) as video:
            for _ in range(FRAMES):
                picture = rng.integers(16, 235, (SIZE[1] * 3 // 2, SIZE[0]), dtype=np.uint8)
                video.write(av.VideoFrame.from_ndarray(picture, "yuv420p"))
    run(find_recording(top / "recording"), top / "results", CFG)
    return top


def truncate(path):
    os.truncate(path, path.stat().st_size // 3)


@pytest.mark.parametrize("lose", [truncate, os.remove], ids=["truncated", "deleted"])
def test_a_video_goes_away_in_the_middle(undisturbed, tmp_path, lose):
    folder = shutil.copytree(undisturbed / "recording", tmp_path / "recording")
    video, kept = folder / "videos/cam02.mp4", undisturbed / "recording/videos/cam02.mp4"
    seen_frames = []

    def go(frames):
        seen_frames.append(frames)
        if len(seen_frames) == 1:
            lose(video)

    with pytest.raises(InputError, match=r"cam02\.mp4: was changed or removed while it was read"):
        run(find_recording(folder), tmp_path / "out", CFG, go)
    assert not (tmp_path / "out/summary.json").exists(), "nothing vouches for what was drawn"
    assert zarr.open_group(tmp_path / "out/results.zarr", mode="r")["done"][...].all()
    shutil.copy2(kept, video)
    run(find_recording(folder), tmp_path / "out", CFG)
    left, right = (
        store_arrays(undisturbed / "results/results.zarr"),
        store_arrays(tmp_path / "out/results.zarr"),
    )
    for name, values in left.items():
        assert np.array_equal(values, right[name], equal_nan=values.dtype.kind == "f"), name
    with av.open(tmp_path / "out/overlay_cam02.mp4") as drawn:
        assert sum(1 for _ in drawn.decode(video=0)) == FRAMES
