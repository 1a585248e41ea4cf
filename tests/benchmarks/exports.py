"""Memory and time of exports, of 10,000 frames and of 100,000.

    python tests/benchmarks/exports.py [--json FILE]

A process of its own exports one person to each format: its largest resident memory, and that with ten times
as many frames by it. The motion is a dozen frames, four of them without a pose, over and over. Windows of the
stores are ten times as long as those of a run, so reading them costs less. Needs Linux.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from exported import RATE, body, make  # noqa: E402

from models.formats import FORMATS, fbx  # noqa: E402
from pipeline.store import Store  # noqa: E402
from stages.export import ExportOptions, export_people  # noqa: E402

FRAMES = 10_000, 100_000
WINDOW = 240
ANGLES = {"left_knee_flexion": "a", "right_knee_flexion": "b"}
SUFFIXES = [f.TRAITS.suffix for f in FORMATS if not f.TRAITS.single_frame and f is not fbx]
OPTIONS = {
    **{suffix: (suffix, ExportOptions()) for suffix in SUFFIXES},
    ".npz --gaps interpolate --fps 50": (".npz", ExportOptions(gaps="interpolate", fps=Fraction(50))),
}
"""What is exported, and how; folders of a file a frame are left out, for the disk's sake, and what Blender
writes."""


def long_store(out: Path, frames: int) -> Store:
    """A store of the dozen frames of ``exported.make``, repeated, with made-up angles."""
    seed = make(out.with_name(f"{out.name}-seed")).store
    store = Store.create(
        out,
        replace(
            seed.contents,
            time_s=np.arange(frames) / float(RATE),
            frame_index=np.tile(np.arange(frames), (2, 1)),
            window=WINDOW,
            angles=ANGLES,
        ),
    )
    store._make_person(0)
    for name, kind in store.contents.person_arrays.items():
        axis = kind.time_axis
        few = np.zeros((12, len(ANGLES))) if name == "angles" else seed.array(f"people/0/{name}")
        for start in range(0, frames, WINDOW):
            part = np.arange(start, min(start + WINDOW, frames))
            rows = (slice(None),) * axis + (slice(start, start + len(part)),)
            store._array(f"people/0/{name}")[rows] = np.take(few, part % few.shape[axis], axis)
    store._array("people/0/betas")[:] = seed.array("people/0/betas")
    store._array("files")[:] = len(store.contents.person_arrays)
    store._array("done")[:] = True
    return store


def export(store: Path, what: str) -> None:
    """Export, and print the largest resident memory in MB and the seconds."""
    suffix, options = OPTIONS[what]
    begun = time.perf_counter()
    for path, _, _ in export_people(Store(store), body(), store.with_name(f"a{suffix}"), [0], options):
        path.unlink()
    seconds = time.perf_counter() - begun
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
    print(json.dumps([peak, seconds]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--export", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.export:
        export(Path(args.export[0]), args.export[1])
        return
    figures = {}
    with tempfile.TemporaryDirectory(prefix="exports-") as folder:
        stores = [long_store(Path(folder) / f"{frames}.zarr", frames).path for frames in FRAMES]
        for what in OPTIONS:
            found = []
            for store in stores:
                command = [sys.executable, __file__, "--export", str(store), what]
                found.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
            (few_mb, few_s), (many_mb, many_s) = found
            figures[what] = {
                "memory_mb": round(few_mb),
                "memory_10x_mb": round(many_mb),
                "memory_ratio_10x": round(many_mb / few_mb, 3),
                "seconds": round(few_s, 1),
                "seconds_10x": round(many_s, 1),
            }
            print(what, figures[what], flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
