"""What streaming is worth: stages that work at once, and memory that does not grow with the recording.

    python tests/benchmarks/streaming.py [--json FILE] [--seconds S]

Overlap: a recording of two cameras, one of which is drawn, so that fitting and drawing weigh about the same;
the size of the pictures is chosen so, from how long both take on short recordings. Each is run alone first:
the fit on the same recording without its videos, the drawing from the finished store. Then all together, from
nothing. ``overlap_ratio`` is the wall time of that whole run, from start to report, by the busy time that the
slowest stage had *alone*: in the run itself a stage that waits for a processor would count as busy, too.
Drawing is held to one thread, so that two stages that weigh the same are two processors' work; a machine with
fewer than two idle processors cannot reach 1.

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
from pathlib import Path  # noqa: E402

import torch  # noqa: E402

sys.path[:0] = [str(Path(__file__).parents[2])]

from models.body import load_body  # noqa: E402
from pipeline.recording import find_recording  # noqa: E402
from stages.graph import RunConfig, run  # noqa: E402
from stages.render import RenderConfig  # noqa: E402
from stages.synth import SynthConfig, write_recording  # noqa: E402

Figures = dict[str, float]
SHORT_S, MEMORY_S, REPEATS = 4.0, 5.0, 2
WIDTHS = 320, 1280
"""Pictures on which drawing is timed to choose the size; it costs so much a frame, and so much a pixel."""
CFG = RunConfig(
    render=RenderConfig(cameras=("cam01",), threads=1, mosaic=False, backend="software", codec="libx264")
)


def make(folder: Path, width: int, seconds: float) -> Path:
    """The keypoints, and so the fit, cost the same at any size."""
    size, noise_px = (width, width * 9 // 32 * 2), 3 * width / 1280
    cfg = SynthConfig(cameras=2, seconds=seconds, size=size, noise_px=noise_px, window=8)
    write_recording(folder, cfg, load_body())
    return folder


def alone(recording: Path, out: Path) -> dict[str, float]:
    """Busy seconds of each stage where fitting and drawing do not disturb each other: of a run of the same
    recording without its videos, and of drawing results that are finished."""
    blind = out / "blind"
    blind.mkdir(parents=True)
    for name in ("keypoints", "calibration.toml"):
        (blind / name).symlink_to((recording / name).resolve())
    fitted, drawn = out / "fitted", out / "drawn"
    busy = {t.name: t.busy for t in run(find_recording(blind), fitted, CFG).times}
    drawn.mkdir()
    shutil.copytree(fitted / "results.zarr", drawn / "results.zarr")
    times = run(find_recording(recording), drawn, CFG).times
    return busy | {t.name: t.busy for t in times if t.name == "render"}


def overlap(folder: Path, seconds: float) -> Figures:
    run(find_recording(make(folder / "warm", WIDTHS[0], 1.0)), folder / "warm-out", CFG)  # compiles
    costs = []
    for width in WIDTHS:
        short = make(folder / f"{width}", width, SHORT_S)
        tries = [alone(short, folder / f"{width}-{n}") for n in range(REPEATS)]
        costs.append({name: min(each[name] for each in tries) for name in tries[0]})
    fit = min(max(t for name, t in busy.items() if name != "render") for busy in costs)
    pixels = [width**2 for width in WIDTHS]
    slope = (costs[1]["render"] - costs[0]["render"]) / (pixels[1] - pixels[0])
    wanted = pixels[0] + (fit - costs[0]["render"]) / slope
    width = int(min(max(wanted, 320**2), 1920**2) ** 0.5) // 32 * 32
    recording = make(folder / "balanced", width, seconds)
    busy = alone(recording, folder / "balanced-out")
    begun = time.perf_counter()
    result = run(find_recording(recording), folder / "together", CFG)
    wall = time.perf_counter() - begun
    first, second = sorted(busy.values())[:-3:-1]
    return {
        "frames": result.summary.frames,
        "width": width,
        "fit_alone_s": round(max(t for name, t in busy.items() if name != "render"), 2),
        "render_alone_s": round(busy["render"], 2),
        "second_to_slowest": round(second / first, 3),
        "one_after_another_s": round(sum(busy.values()), 2),
        "together_s": round(wall, 2),
        "frames_per_s": round(result.summary.frames / wall, 1),
        "overlap_ratio": round(wall / first, 3),
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
        f"overlap, {figures['frames']} frames of 2 cameras, {figures['width']} pixels wide: alone, the fit "
        f"takes {figures['fit_alone_s']} s and drawing one of them {figures['render_alone_s']} s;\n"
        f"  the whole run {figures['together_s']} s ({figures['frames_per_s']} frames/s): "
        f"{figures['overlap_ratio']} of the slowest stage alone (wanted 1.15; the second weighs "
        f"{figures['second_to_slowest']} of it)"
    )
    print(
        f"memory: {figures['memory_mb']} MB, of a recording ten times as long {figures['memory_10x_mb']} MB: "
        f"{figures['memory_ratio_10x']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the recording")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if args.peak:
        run(find_recording(args.peak), args.peak.with_name(f"{args.peak.name}-out"), CFG)
        print(peak_mb())
        return
    folder = Path(tempfile.mkdtemp(prefix="streaming-"))
    try:
        figures = overlap(folder, args.seconds) | memory(folder)
    finally:
        shutil.rmtree(folder)
    show(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
