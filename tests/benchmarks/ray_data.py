"""A regressor over a whole archive, as a pipeline of Ray Data: what docs/scale.md describes.

    pip install 'ray[data]'
    python tests/benchmarks/ray_data.py [STORE ...] [--out DIR] [--copies N] [--json FILE]

Goes once over all windows of finished results stores, which hold matched keypoints and cameras, with the
network that ships: as after a new one was trained, when nothing else of the runs has changed. Without stores
it makes one of 20 s and counts it ``--copies`` times. Rows are stretches of a store, so the archive never is
in memory; each worker loads the network once. Beside it, the same in a plain loop. Figures are persons in
frames a second.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from models.body import load_body  # noqa: E402
from models.regressors.keypoint_nets import load_regressor  # noqa: E402
from pipeline.recording import find_recording  # noqa: E402
from pipeline.store import Store  # noqa: E402
from stages.graph import RunConfig, run  # noqa: E402
from stages.synth import SynthConfig, write_recording  # noqa: E402

TOGETHER = 32
"""Windows of a store in a row: 768 persons in frames go through the network at once."""

Batch = dict[str, Any]


class Regress:
    """Lives in a worker for as long as the pipeline does."""

    def __init__(self, weights: str = "calibrated") -> None:
        torch.set_num_threads(1)
        self.net = load_regressor(weights)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        """Rows ``store, first, last`` → a row for each person in each frame."""
        parts = [
            self.stretch(*row) for row in zip(batch["store"], batch["first"], batch["last"], strict=True)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def stretch(self, path: str, first: int, last: int) -> Batch:
        store = Store(Path(path))
        rig = store.contents.rig
        seen = [store.read(int(k)).keypoints for k in range(int(first), int(last))]
        xy = torch.cat([k.xy_px.flatten(1, 2) for k in seen], 1).transpose(0, 1)  # (T P, V, 25, 2)
        confidence = torch.cat([k.confidence.flatten(1, 2) for k in seen], 1).transpose(0, 1)
        K, R, t = (torch.from_numpy(a).float().expand(len(xy), *a.shape) for a in (rig.K, rig.R, rig.t))
        said = self.net(xy, confidence, K, R, t)
        return {
            "store": np.repeat(path, len(xy)),
            "sample": np.arange(len(xy)) + seen[0].start * len(store.ids),
            "body_pose": said.body_pose.numpy(),
            "betas": said.betas.numpy(),
            "view_orient": said.view_orient[:, 0].numpy(),
            "view_transl": said.view_transl[:, 0].numpy(),
        }


def rows(stores: Sequence[Path]) -> list[Batch]:
    found = []
    for path in stores:
        windows = len(Store(path).done)
        for first in range(0, windows, TOGETHER):
            found.append({"store": str(path), "first": first, "last": min(first + TOGETHER, windows)})
    return found


def archive(stores: Sequence[Path], out: Path) -> float:
    """Persons in frames a second, from rows to files of Parquet."""
    import ray

    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    stretches = ray.data.from_items(rows(stores), override_num_blocks=len(rows(stores)))

    begun = time.perf_counter()
    regressed = stretches.map_batches(Regress, batch_size=1, concurrency=max(1, (os.cpu_count() or 2) // 2))
    regressed.write_parquet(str(out))
    took = time.perf_counter() - begun
    count = ray.data.read_parquet(str(out)).count()
    ray.shutdown()
    return float(count / took)


def plain(stores: Sequence[Path]) -> float:
    begun, regress, count = time.perf_counter(), Regress(), 0
    for row in rows(stores):
        count += len(regress({name: [value] for name, value in row.items()})["sample"])
    return count / (time.perf_counter() - begun)


def example(folder: Path) -> Path:
    write_recording(folder / "recording", SynthConfig(seconds=20, videos=False), load_body())
    run(find_recording(folder / "recording"), folder / "results", RunConfig())
    return folder / "results" / "results.zarr"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stores", type=Path, nargs="*", help="results.zarr of finished runs")
    parser.add_argument("--out", type=Path, help="for files of Parquet; else they are thrown away")
    parser.add_argument("--copies", type=int, default=64)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="archive-") as folder:
        stores = args.stores or [example(Path(folder))] * args.copies
        loop = plain(stores[: max(1, len(stores) // 4)])
        pipeline = archive([p.resolve() for p in stores], args.out or Path(folder) / "out")
    figures = {"stores": len(stores), "loop_persons_per_s": round(loop), "ray_persons_per_s": round(pipeline)}
    print(f"{len(stores)} stores: {pipeline:.0f} persons/s by Ray Data, {loop:.0f} in a plain loop")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
