"""Clocks of cameras that were started by hand: the figures of docs/sync.md.

    python tests/benchmarks/sync.py [--json FILE] [--motion POSES.npz] [--seeds 301,302,303] [--only NAME]

Clips of motion capture (see ``models/synthetic/poses.py`` for the file) are played there and back before
cameras of 25, 30, 60 and 50 frames a second, started within 2 s of each other, whose clocks drift by 0.1 %.
A simulated detector has 3 px of noise, 5 % outliers and 10 % missing; the calibration is off by 0.1° and
1 cm. Printed are the greatest error of the time at the middle of a recording, in frames of 30 a second, the
error of the drifts that are told, the number of cameras that are refused, and processor seconds.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

from clocks import RATES, World, film, people_at, sampled, swaying  # noqa: E402
from crowd import played  # noqa: E402

from models.body import load_body, pelvis_at_rest, pose_keypoints  # noqa: E402
from models.synthetic.detections import Faults  # noqa: E402

FRAME_S = 1 / 30
CLIPS = {
    "walk": 36, "salsa": 202, "washing a window": 156, "directing traffic": 168, "signals": 163,
    "expressions 1": 19, "expressions 2": 20,
}  # fmt: skip
"""Numbers of clips in the file; the last five are quiet and in place."""
HERTZ, BEFORE_S = 60, 4.0
SWAY_M = (0.0, 0.005)


@dataclass(frozen=True)
class Row:
    """Figures of one recording."""

    error_frames: float
    """Greatest of the cameras, at the middle; NaN if all are refused."""
    drift_error: float
    """Greatest relative one of the drifts that are told; NaN if none is."""
    refused: int
    seconds: float


def clip(path: Path, number: int, seconds: float, seed: int) -> World:
    """Somebody who moves as in a clip, at any time."""
    with np.load(path) as file:
        rows = np.flatnonzero(file["clip_id"] == number)
        jump = np.linalg.norm(np.diff(file["trans"][rows], axis=0), axis=1) > 0.2
        cuts = np.flatnonzero((np.diff(file["frame_id"][rows]) != 1) | jump) + 1
        longest = max(np.split(rows, cuts), key=len)
        taken = file["body_pose"][longest].astype(float), file["trans"][longest].astype(float)
    rng, body = np.random.default_rng([seed, 7]), load_body()
    local, root = played(taken, int((seconds * 1.002 + 2 * BEFORE_S) * HERTZ) + 2, HERTZ, rng.uniform())
    betas = torch.from_numpy(np.clip(rng.normal(0, 0.7, body.num_betas), -1.5, 1.5))
    transl = torch.from_numpy(root) - pelvis_at_rest(body.keypoints, betas[None])[0]
    points = pose_keypoints(body.keypoints, torch.from_numpy(local), betas, transl)[1].numpy()
    points -= [*points[..., :2].mean((0, 1)), points[..., 2].min()]
    return sampled(points[:, None], HERTZ, BEFORE_S)


def measured(
    world: World,
    seconds: float,
    seed: int,
    rates: Sequence[float],
    drift: float,
    *,
    calibrated: bool = True,
    faults: Faults | None = None,
) -> Row:
    rng = np.random.default_rng([seed, 8])
    drifts = np.concatenate([[0.0], drift * rng.choice([-1, 1], len(rates) - 1)])
    filmed = film(world, seconds, seed, rates, drift=drifts, faults=faults)
    begun = time.process_time()
    found = filmed.clocks(calibrated=calibrated)
    taken = time.process_time() - begun
    refused = sum(r is not None for r in found.refused)
    error, told = np.nan, found.drift != 0
    if refused < len(rates) - 1:
        believed = [r is None for r in found.refused]
        error = float(np.abs(filmed.errors_s(found))[believed].max()) / FRAME_S
    off = np.abs(found.drift[told] / drifts[told] - 1) if told.any() else np.array([np.nan])
    return Row(error, float(off.max()), refused, taken)


def scenes(path: Path, seed: int) -> Iterator[tuple[str, str, Row]]:
    """Scene, what is done in it, and figures."""
    for name, number in CLIPS.items():
        yield "4 cameras, 20 s", name, measured(clip(path, number, 20, seed), 20, seed, RATES, 1e-3)
    for name, number in CLIPS.items():
        yield "4 cameras, 60 s", name, measured(clip(path, number, 60, seed), 60, seed, RATES, 1e-3)
    for name in ("walk", "salsa", "directing traffic", "expressions 2"):
        world = clip(path, CLIPS[name], 20, seed)
        yield "2, no calibration", name, measured(world, 20, seed, (30, 60), 0, calibrated=False)
    crowd = Faults(exchanged=0.02, split=0.03, phantoms=0.1, static_phantoms=1)
    yield "3 people, 4 cameras", "", measured(people_at(3, 16, seed), 16, seed, RATES, 0, faults=crowd)
    for sway in SWAY_M:
        yield "standing", f"sway {1000 * sway:g} mm", measured(swaying(sway, seed), 20, seed, RATES, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--motion", type=Path, default=ROOT.parent / "shared" / "data" / "motion" / "poses.npz"
    )
    parser.add_argument("--seeds", default="301,302,303")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, list[dict[str, object]]] = {}
    print(f"{'scene':22s} {'movement':20s} seed  error, frames  drift off  refused  CPU s", flush=True)
    for seed in map(int, args.seeds.split(",")):
        for scene, movement, row in scenes(args.motion, seed):
            print(
                f"{scene:22s} {movement:20s} {seed} {row.error_frames:14.3f} {100 * row.drift_error:8.1f} % "
                f"{row.refused:8d} {row.seconds:6.2f}",
                flush=True,
            )
            numbers = {k: None if v != v else round(v, 4) for k, v in asdict(row).items()}
            table.setdefault(scene, []).append({"movement": movement, "seed": seed} | numbers)
            if args.json:
                args.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
