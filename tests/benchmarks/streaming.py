"""What streaming is worth: stages that work at once, and memory that does not grow with the recording.

    python tests/benchmarks/streaming.py [--json FILE] [--seconds S]

Overlap: the time of a whole run, from nothing to the report, by that of its slowest stage *alone*. A stage's
own clock in the run would not do: one that waits for a processor looks busy. Twice, since two pairs of stages
can weigh the same:

- decoding and drawing (``overlap_ratio``), by far the heaviest of a run with videos: three cameras of 4K with
  a sensor's grain, drawn at half the size, of the bit rate at which decoding takes as long as drawing.
  Decoding is timed by itself; drawing from a finished store, without the time that it waits for pictures.
- the fit and drawing (``fit_overlap_ratio``), of small pictures of one camera. The fit is timed on the same
  recording without its videos. It is many small operations that share Python's lock with the other stages,
  which weigh more beside it.

Both stages of a pair are held to one thread, so that two that weigh the same are two processors' work; all
other stages come on top, and a machine with fewer than two idle processors cannot reach 1.

Memory: largest resident memory of a process that runs a recording, by that of one which runs a recording of a
tenth of its length; both with videos. Needs Linux.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402

import av  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

sys.path[:0] = [str(Path(__file__).parents[2])]

from models.body import load_body  # noqa: E402
from pipeline.recording import Recording, find_recording  # noqa: E402
from pipeline.video import VideoWriter  # noqa: E402
from stages.decode import decode  # noqa: E402
from stages.graph import RunConfig, run  # noqa: E402
from stages.render import RenderConfig  # noqa: E402
from stages.synth import SynthConfig, write_recording  # noqa: E402

Figures = dict[str, float]
SHORT_S, MEMORY_S, REPEATS = 4.0, 4.0, 2
RENDER = RenderConfig(threads=1, mosaic=False, backend="software", codec="libx264")
HALF = RunConfig(render=RENDER.model_copy(update={"scale": 0.5}))
FOUR_K = 3840, 2144
CRFS = 10, 20
"""Qualities of the films whose decoding is timed, to choose one."""
WIDTHS = 320, 1280
"""Pictures on which drawing is timed, to choose the size; it costs so much a picture, and so much a pixel."""
ONE_VIEW = RunConfig(render=RENDER.model_copy(update={"cameras": ("cam01",)}))


def make(folder: Path, width: int, seconds: float) -> Path:
    """Two cameras. The keypoints, and so the fit, cost the same at any size."""
    size, noise_px = (width, width * 9 // 32 * 2), 3 * width / 1280
    cfg = SynthConfig(cameras=2, seconds=seconds, size=size, noise_px=noise_px, window=8)
    write_recording(folder, cfg, load_body())
    return folder


def film(folder: Path, seconds: float, crf: float) -> Path:
    """Three cameras of 4K with the same film, of grain: what pictures show costs the same."""
    cfg = SynthConfig(cameras=3, seconds=seconds, size=FOUR_K, noise_px=9, window=8, videos=False)
    write_recording(folder, cfg, load_body())
    (folder / "videos").mkdir()
    first, *others = (folder / "videos" / f"cam{n:02d}.mp4" for n in (1, 2, 3))
    width, height = FOUR_K
    rng = np.random.default_rng(0)
    scene = np.linspace(60, 190, width)[None] + np.linspace(-30, 30, height)[:, None]
    grainy = [(scene + rng.normal(0, 4, scene.shape)).clip(16, 235).astype(np.uint8) for _ in range(8)]
    chroma = np.full((height // 2, width), 128, np.uint8)
    with VideoWriter(first, 30, crf=round(crf), preset="ultrafast") as video:
        for n in range(round(30 * seconds)):
            yuv = np.concatenate([np.roll(grainy[n % 8], 2 * n, 1), chroma])
            video.write(av.VideoFrame.from_ndarray(yuv, "yuv420p"))
    for other in others:
        shutil.copyfile(first, other)
    return folder


def busy(recording: Recording, out: Path, cfg: RunConfig) -> dict[str, float]:
    return {t.name: t.busy for t in run(recording, out, cfg).times}


def fit_alone(recording: Path, out: Path) -> float:
    """Busy seconds of the slowest stage of a run without videos, which leaves its results in ``out``."""
    blind = out.with_name(f"{out.name}-blind")
    blind.mkdir(parents=True)
    for name in ("keypoints", "calibration.toml"):
        (blind / name).symlink_to((recording / name).resolve())
    return max(busy(find_recording(blind), out, ONE_VIEW).values())


def drawn_alone(recording: Path, fitted: Path, out: Path, cfg: RunConfig) -> float:
    """Busy seconds of drawing results that are finished."""
    out.mkdir()
    shutil.copytree(fitted / "results.zarr", out / "results.zarr")
    return busy(find_recording(recording), out, cfg)["render"]


def decoded_alone(recording: Path) -> float:
    found = find_recording(recording)
    begun = time.perf_counter()
    for _ in decode(found.videos, found.timeline.frame_index, ONE_VIEW.decode):
        pass
    return time.perf_counter() - begun


def together(recording: Path, out: Path, cfg: RunConfig) -> tuple[float, int]:
    """Wall seconds of a whole run, and its frames."""
    begun = time.perf_counter()
    frames = run(find_recording(recording), out, cfg).summary.frames
    return time.perf_counter() - begun, frames


def level(at: tuple[float, float], costs: Sequence[float], wanted: float) -> float:
    """Where a cost that is linear between two points, and beyond them, is as wanted."""
    return at[0] + (wanted - costs[0]) * (at[1] - at[0]) / (costs[1] - costs[0])


def ratios(prefix: str, first: float, second: float, wall: float) -> Figures:
    return {
        f"{prefix}second_to_slowest": round(min(first, second) / max(first, second), 3),
        f"{prefix}together_s": round(wall, 2),
        f"{prefix}overlap_ratio": round(wall / max(first, second), 3),
    }


def decoding_and_drawing(folder: Path, seconds: float) -> Figures:
    folder.mkdir()
    shorts = [film(folder / f"crf{crf}", SHORT_S / 4, crf) for crf in CRFS]
    fit_alone(shorts[0], folder / "short")
    drawn = [drawn_alone(s, folder / "short", folder / f"{s.name}-drawn", HALF) for s in shorts]
    decoded = [min(decoded_alone(s) for _ in range(REPEATS)) for s in shorts]
    crf = level(CRFS, [a - b for a, b in zip(decoded, drawn, strict=True)], 0)
    recording = film(folder / "whole", seconds, min(max(crf, 4), 30))
    fit_alone(recording, folder / "fitted")
    decoding = decoded_alone(recording)
    drawing = drawn_alone(recording, folder / "fitted", folder / "drawn", HALF)
    wall, frames = together(recording, folder / "together", HALF)
    video = recording / "videos" / "cam01.mp4"
    return {
        "frames": frames,
        "mbit_per_s": round(video.stat().st_size * 8e-6 / seconds, 1),
        "decode_alone_s": round(decoding, 2),
        "render_alone_s": round(drawing, 2),
        **ratios("", decoding, drawing, wall),
    }


def fitting_and_drawing(folder: Path, seconds: float) -> Figures:
    folder.mkdir()
    fits, costs = [], []
    for width in WIDTHS:
        short = make(folder / f"{width}", width, SHORT_S)
        tries = range(REPEATS)
        fits += [fit_alone(short, folder / f"{width}-{n}") for n in tries]
        costs.append(
            min(
                drawn_alone(short, folder / f"{width}-{n}", folder / f"{width}-{n}-drawn", ONE_VIEW)
                for n in tries
            )
        )
    pixels = level((WIDTHS[0] ** 2, WIDTHS[1] ** 2), costs, min(fits))
    width = int(min(max(pixels, 320**2), 1920**2) ** 0.5) // 32 * 32
    recording = make(folder / "whole", width, seconds)
    fitting = fit_alone(recording, folder / "fitted")
    drawing = drawn_alone(recording, folder / "fitted", folder / "drawn", ONE_VIEW)
    wall, frames = together(recording, folder / "together", ONE_VIEW)
    return {
        "fit_frames": frames,
        "fit_width": width,
        "fit_alone_s": round(fitting, 2),
        "fit_render_alone_s": round(drawing, 2),
        **ratios("fit_", fitting, drawing, wall),
    }


def peak_mb() -> float:
    """Largest resident memory of this program. (``ru_maxrss`` would be that of who started it, if larger.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def memory(folder: Path) -> Figures:
    peaks = []
    for seconds in (MEMORY_S, 10 * MEMORY_S):
        recording = make(folder / f"{seconds:g}s", 320, seconds)
        command = [sys.executable, __file__, "--peak", str(recording)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
    return {
        "memory_mb": round(peaks[0]),
        "memory_10x_mb": round(peaks[1]),
        "memory_ratio_10x": round(peaks[1] / peaks[0], 3),
    }


def show(figures: Figures) -> None:
    print(
        f"decoding and drawing, {figures['frames']} frames of 3 cameras of 4K, "
        f"{figures['mbit_per_s']} Mbit/s each: alone {figures['decode_alone_s']} s and "
        f"{figures['render_alone_s']} s;\n"
        f"  the whole run {figures['together_s']} s: {figures['overlap_ratio']} of the slowest alone "
        f"(wanted 1.15; the second weighs {figures['second_to_slowest']} of it)\n"
        f"the fit and drawing, {figures['fit_frames']} frames of 2 cameras, one of them drawn, "
        f"{figures['fit_width']} pixels wide: alone {figures['fit_alone_s']} s and "
        f"{figures['fit_render_alone_s']} s;\n"
        f"  the whole run {figures['fit_together_s']} s: {figures['fit_overlap_ratio']} of the slowest alone "
        f"(the second weighs {figures['fit_second_to_slowest']} of it)\n"
        f"memory: {figures['memory_mb']} MB, of a recording ten times as long {figures['memory_10x_mb']} MB: "
        f"{figures['memory_ratio_10x']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=7.0, help="length of the first recording")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if args.peak:
        run(find_recording(args.peak), args.peak.with_name(f"{args.peak.name}-out"), ONE_VIEW)
        print(peak_mb())
        return
    folder = Path(tempfile.mkdtemp(prefix="streaming-"))
    try:
        run(
            find_recording(make(folder / "first", WIDTHS[0], 1.0)), folder / "first-out", ONE_VIEW
        )  # compiles
        figures = decoding_and_drawing(folder / "large", args.seconds)
        figures |= fitting_and_drawing(folder / "small", 3 * args.seconds)
        figures |= memory(folder)
    finally:
        shutil.rmtree(folder)
    show(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
