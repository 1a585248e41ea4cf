"""What a recording costs: the figures of docs/scale.md.

    python tests/benchmarks/scale.py [--json FILE] [--workers 1,2]

Processor seconds of one process, by cameras, length and size of the pictures, after a first run has loaded
and compiled everything; bytes and files of the results; and recordings of keypoints a minute by ``batch``
with one worker and with two, which is wall time and wants an idle machine.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from models.body import load_body  # noqa: E402
from pipeline.batch.process import Capacity, process  # noqa: E402
from pipeline.recording import find_recording  # noqa: E402
from stages.graph import RunConfig, run  # noqa: E402
from stages.render import RenderConfig  # noqa: E402
from stages.synth import SynthConfig, write_recording  # noqa: E402

CFG = RunConfig(render=RenderConfig(mosaic=False, backend="software", codec="libx264"))
SIZES = (960, 540), (1920, 1080), (3840, 2160)


def make(
    folder: Path, cameras: int, seconds: float, size: tuple[int, int] | None = None, seed: int = 0
) -> Path:
    cfg = SynthConfig(cameras=cameras, seconds=seconds, videos=size is not None, seed=seed, window=8)
    if size is not None:
        cfg = cfg.model_copy(update={"size": size})
    write_recording(folder, cfg, load_body())
    return folder


def cost(recording: Path, out: Path) -> tuple[float, int]:
    """Processor seconds, and frames."""
    found = find_recording(recording)
    begun = time.process_time()
    run(found, out, CFG)
    return time.process_time() - begun, len(found)


def fitting(top: Path) -> dict[str, float]:
    """Processor milliseconds a frame without drawing, by cameras and by length."""
    figures = {}
    for cameras, seconds in ((2, 8), (4, 8), (8, 8), (16, 8), (4, 32)):
        took, frames = cost(make(top / f"{cameras}x{seconds}", cameras, seconds), out := top / "out")
        figures[f"fit_ms_{cameras}_cameras_{frames}_frames"] = round(1000 * took / frames, 2)
        if cameras == 4:
            files = [file for file in (out / "results.zarr").rglob("*") if file.is_file()]
            figures[f"store_kb_per_frame_{frames}_frames"] = round(
                sum(file.stat().st_size for file in files) / 1000 / frames, 2
            )
            figures[f"store_files_per_frame_{frames}_frames"] = round(len(files) / frames, 2)
        shutil.rmtree(out)
    return figures


def drawing(top: Path) -> dict[str, float]:
    """Processor milliseconds a picture to decode, draw and encode, and bytes of what is written."""
    figures = {}
    for size in SIZES:
        recording = make(top / f"{size[0]}", 2, 2, size)
        out = top / "out"
        cost(recording, out)
        written = sum(file.stat().st_size for file in out.glob("overlay_*.mp4"))
        for file in out.glob("*.mp4"):
            file.unlink()
        took, frames = cost(recording, out)  # what was fitted is there
        figures[f"draw_ms_{size[1]}p"] = round(1000 * took / (2 * frames), 1)
        figures[f"overlay_kb_{size[1]}p"] = round(written / 1000 / (2 * frames), 1)
        shutil.rmtree(out)
        shutil.rmtree(recording)
    return figures


def workers(top: Path, counts: list[int]) -> dict[str, float]:
    """Recordings a minute, of 20 s and four cameras, without drawing."""
    for n in range(2 * max(counts)):
        make(top / "data" / f"r{n}", 4, 20, seed=n)
    figures = {}
    for count in counts:
        begun = time.perf_counter()
        states = Counter(
            e.row.state for e in process(top / "data", top / f"w{count}", CFG, run, Capacity(count))
        )
        assert states["done"] == 2 * max(counts)
        figures[f"recordings_per_min_{count}_workers"] = round(
            60 * states["done"] / (time.perf_counter() - begun), 2
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", default="1,2", help="counts to try; empty for none")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="scale-") as made:
        top = Path(made)
        cost(make(top / "first", 2, 1, SIZES[0]), top / "first-out")
        figures = fitting(top) | drawing(top)
        if args.workers:
            figures |= workers(top, [int(n) for n in args.workers.split(",")])
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):40s} {value:g}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
