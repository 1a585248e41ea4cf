"""What an overlay costs, beside decoding and encoding the same video with PyAV alone; and do back ends agree?

    python tests/benchmarks/render.py [RECORDING RESULTS] [--rounds 7] [--json FILE]

Takes one view of 1080p: of the recording and results given, or of a synthetic recording whose truth is drawn.
Both programs run by turns in one process, in each round one after the other; ``overlay_ratio`` is the median
over rounds of the ratio of their wall times, ``overlay_ratio_cpu`` that of their processor times. ``parts``
are milliseconds of processor time a frame on one thread, the smallest of many.

``agreement`` compares every two back ends that work here on two people who cross, in a camera with an
off-centre principal point, fx ≠ fy and a bent lens: intersection over union of their silhouettes, pixels in
which another person is in front, and how far 99 % of the depths differ at most where the same one is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import combinations
from pathlib import Path

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import av  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from models.body import Body, load_body  # noqa: E402
from models.rendering import overlay, pytorch3d, software  # noqa: E402
from pipeline.batches import FitBatch  # noqa: E402
from pipeline.cameras import Rig  # noqa: E402
from pipeline.errors import InputError  # noqa: E402
from pipeline.store import Store  # noqa: E402
from pipeline.video import VideoInfo, copied, planes, probe, read_frames  # noqa: E402
from stages.decode import DecodeConfig, decode  # noqa: E402
from stages.render import Footage, RenderConfig, meshes, render  # noqa: E402
from stages.synth import SynthConfig, write_recording  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recording", nargs="?", type=Path)
    parser.add_argument("results", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    body = load_body()
    with tempfile.TemporaryDirectory() as folder:
        if args.recording and args.results:
            store, video = Store(args.results / "results.zarr"), None
            clip = f"{args.recording.name}, {store.contents.rig.names[0]}"
            video = next((args.recording / "videos").glob(f"{store.contents.rig.names[0]}.*"))
        else:
            cfg = SynthConfig(cameras=2, size=(1920, 1080), seconds=4, seed=1)
            store = write_recording(Path(folder) / "recording", cfg, body)
            video = Path(folder) / "recording" / "videos" / f"{store.contents.rig.names[0]}.mp4"
            clip = "synthetic, 1920x1080, 4 s, drawn with its truth"
        result = {"clip": clip, **measure(store, probe(video), body, Path(folder), args.rounds)}
        found, missing = agreement(store, body)
    result["agreement"] = found
    if missing:
        result["back ends that do not work here"] = missing
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} processors"
    for key, value in result.items():
        if key != "agreement":
            print(f"{key}: {value}")
    if found:
        print(" | ".join(found[0]))
        for row in found:
            print(" | ".join(str(value) for value in row.values()))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(store: Store, video: VideoInfo, body: Body, folder: Path, rounds: int) -> dict[str, object]:
    """Ratios and the parts of the cost, for the first camera of a store."""
    frames = len(store.contents.time_s)
    cfg = RenderConfig(mosaic=False, codec="libx264", backend="software")
    times = overlay_times(store, video, body, folder, cfg, rounds)
    ratios = times[:, 1] / times[:, 0]
    wall, cpu = np.median(ratios, 0)
    return {
        "video": f"{video.size[0]}x{video.size[1]}, {frames} frames",
        "overlay_ratio": round(float(wall), 3),
        "overlay_ratio_cpu": round(float(cpu), 3),
        "ratios": np.round(ratios, 3).tolist(),
        "ms_per_frame": {
            "plain": [round(float(x), 2) for x in times[:, 0].min(0) / frames * 1e3],
            "overlay": [round(float(x), 2) for x in times[:, 1].min(0) / frames * 1e3],
        },
        "parts": parts(store, video, body),
    }


def overlay_times(
    store: Store, video: VideoInfo, body: Body, folder: Path, cfg: RenderConfig, rounds: int
) -> NDArray[np.float64]:
    """(rounds, 2, 2) wall and processor seconds of decoding and encoding alone, and of the overlay."""
    contents = store.contents
    batches = [store.read(k) for k in range(len(store.done))]
    rig = contents.rig.select(contents.rig.names[:1])
    index = contents.frame_index[:1]
    baseline = folder / "baseline.mp4"

    def draw() -> None:
        items: Iterator[FitBatch] = iter(batches)
        stage = render(
            items, cfg, Footage(rig, [video], index, contents.rate), body, folder / "out",
            partial(decode, cfg=DecodeConfig()),
        )  # fmt: skip
        for _ in stage:
            pass

    def plain() -> None:
        transcode(video.path, baseline, contents.rate, int(index.max()) + 1, cfg)

    seconds = []
    for k in range(rounds + 1):
        took = [_timed(f) for f in ((plain, draw) if k % 2 else (draw, plain))]
        if k:  # the first compiles and warms up
            seconds.append(took if k % 2 else took[::-1])
    return np.array(seconds)


def transcode(path: Path, out: Path, rate: Fraction, frames: int, cfg: RenderConfig) -> None:
    """Decode and encode with PyAV and nothing between, with the same settings of the encoder."""
    with av.open(str(path)) as source, av.open(str(out), "w", options={"movflags": "+faststart"}) as sink:
        taken = source.streams.video[0]
        taken.codec_context.thread_count = 1
        x264 = {"crf": str(cfg.crf), "preset": cfg.preset}
        stream = sink.add_stream(cfg.codec, rate=rate, options=x264 if cfg.codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = taken.width, taken.height, "yuv420p"
        stream.codec_context.thread_count = os.cpu_count() or 1
        for k, frame in enumerate(source.decode(taken)):
            if k == frames:
                break
            frame.pts, frame.time_base = k, 1 / rate
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))


def parts(store: Store, video: VideoInfo, body: Body) -> dict[str, float]:
    """Milliseconds of one thread."""
    batch = store.read(len(store.done) // 2)
    vertices = meshes(batch, body)
    colours = np.array([[0.3, 0.7, 0.9, 1]] * vertices.shape[1], np.float32)
    rig = store.contents.rig
    frame = next(read_frames(video, [0]))
    assert frame is not None
    own = copied(frame)
    matrix = overlay.yuv_matrix(1, video.size[1])
    picture = software.draw(vertices[0], body.faces, rig, 0, colours)
    assert picture is not None
    found = {
        "vertices": _least(lambda: meshes(batch, body), 5) / len(vertices),
        "to_screen": _least(lambda: software.to_screen(vertices[0], body.faces, rig, 0)),
        "draw": _least(lambda: software.draw(vertices[0], body.faces, rig, 0, colours)),
        "draw_without_antialiasing": _least(
            lambda: software.draw(vertices[0], body.faces, rig, 0, colours, antialias=False)
        ),
        "paint": _least(
            lambda: software.paint(planes(own), matrix, vertices[0], body.faces, rig, 0, colours)
        ),
        "copy": _least(lambda: copied(frame)),
        "blend": _least(lambda: software.blend(planes(own), picture, matrix)),
    }
    return {name: round(ms, 2) for name, ms in found.items()}


def agreement(store: Store, body: Body) -> tuple[list[dict[str, object]], dict[str, str]]:
    """A row for every two back ends, and why the others are missing.

    Small pictures and one sample a pixel: PyTorch3D takes minutes for more without a graphics card.
    """
    poses = meshes(store.read(0), body)[:, 0]
    people = np.stack([poses[0], poses[5] + np.array([0.15, 0.1, 0], np.float32)])
    w, h = 640, 480
    own = store.contents.rig
    k = np.array([[1.1 * w, 0, 0.42 * w], [0, 0.96 * w, 0.56 * h], [0, 0, 1]])
    bent = np.array([[-0.3, 0.09, 0.001, -0.002, 0.004, 0, 0, 0]])
    rig = Rig(("cam",), k[None], bent, own.R[:1], own.t[:1], np.array([[w, h]]))
    colours = np.array([[0.2, 0.4, 1, 1], [1, 0.3, 0.2, 1]], np.float32)
    drawn, missing = {}, {}
    for name, back_end in (("software", software), ("pytorch3d", pytorch3d)):
        try:
            picture = back_end.draw(people, body.faces, rig, 0, colours, antialias=False)
        except InputError as error:
            missing[name] = str(error)
            continue
        assert picture is not None
        rows = slice(picture.y0, picture.y0 + picture.alpha.shape[0])
        columns = slice(picture.x0, picture.x0 + picture.alpha.shape[1])
        first, depth = np.zeros((h, w), bool), np.full((h, w), np.inf)
        first[rows, columns] = picture.rgb[..., 2] > picture.rgb[..., 0]
        with np.errstate(divide="ignore"):
            depth[rows, columns] = 1 / picture.inverse_z
        drawn[name] = first, depth
    found: list[dict[str, object]] = []
    for a, b in combinations(drawn, 2):
        (first_a, depth_a), (first_b, depth_b) = drawn[a], drawn[b]
        both = np.isfinite(depth_a) & np.isfinite(depth_b)
        same = both & (first_a == first_b)
        union = np.isfinite(depth_a) | np.isfinite(depth_b)
        apart = 1e3 * np.abs(depth_a[same] - depth_b[same])
        found.append(
            {
                "back ends": f"{a}, {b}",
                "silhouette IoU": round(float(both.sum() / union.sum()), 5),
                "pixels of people": int(union.sum()),
                "other person in front, pixels": int((both & ~same).sum()),
                "depth difference, mm": round(float(np.quantile(apart, 0.99)), 2),
            }
        )
    return found, missing


def _timed(function: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def _least(function: Callable[[], object], rounds: int = 30) -> float:
    function()
    times = []
    for _ in range(rounds):
        begun = time.thread_time()
        function()
        times.append(time.thread_time() - begun)
    return min(times) * 1e3


if __name__ == "__main__":
    main()
