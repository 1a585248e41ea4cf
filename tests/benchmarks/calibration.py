"""How well cameras are estimated from a person, and what that costs the person.

    python tests/benchmarks/calibration.py [--json FILE] [--seeds N]

Every recording is run with its calibration and without it. Balancing, a real one, is compared with its own
calibration file, which is no truth: a bundle adjustment moves its cameras by one or two degrees. Synthetic
ones (one person, three seconds, the noise of `synth`) are compared with the truth. Cameras are compared after
a similarity transform of the world, since its scale and place are a guess; "scale" is that guess's factor.
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
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2]))

from models.body import Body, load_body  # noqa: E402
from models.evaluation.metrics import pa_mpjpe  # noqa: E402
from pipeline.array_types import Array  # noqa: E402
from pipeline.calibrations import read_calibration  # noqa: E402
from pipeline.cameras import Rig  # noqa: E402
from pipeline.recording import find_recording  # noqa: E402
from pipeline.store import Store  # noqa: E402
from stages.graph import RunConfig, run  # noqa: E402
from stages.synth import SynthConfig, write_recording  # noqa: E402

BALANCING = Path(__file__).parents[3] / "shared" / "data" / "balancing"
VIEWS = (2, 3, 4)


def without_calibration(source: Path, folder: Path, cameras: Sequence[str], rig: Rig, fps: float) -> Path:
    """A copy of a recording's keypoints alone, of some of its cameras."""
    for name in cameras:
        shutil.copytree(source / "keypoints" / name, folder / "keypoints" / name)
    (folder / "recording.yaml").write_text(f"picture_size: {rig.size[0].tolist()}\nfps: {fps}\n")
    return folder


def camera_errors(rig: Rig, true: Rig) -> dict[str, float]:
    """Largest error of a rotation and of a centre, the error of up, and the scale."""
    world = Rotation.from_matrix(np.einsum("vji,vjk->vik", rig.R, true.R)).mean().as_matrix()
    turn = Rotation.from_matrix(rig.R @ world @ true.R.transpose(0, 2, 1)).magnitude()
    a, b = rig.centres @ world, true.centres
    a, b = a - a.mean(0), b - b.mean(0)
    scale = (a * b).sum() / (b * b).sum()
    off = np.linalg.norm(a / scale - b, axis=1) / np.linalg.norm(b, axis=1).mean()
    return {
        "rotation_deg": float(np.degrees(turn.max())),
        "position_percent": float(100 * off.max()),
        "scale": float(scale),
        "focal_percent": float(100 * np.abs(rig.K[:, 0, 0] / true.K[:, 0, 0] - 1).max()),
        "up_deg": float(np.degrees(np.arccos(np.clip((rig.R[0].T @ true.R[0])[2, 2], -1, 1)))),
    }


def joints_of(store: Path) -> Array:
    results = Store(store)
    return np.asarray(results.array("people/0/joints", 0, len(results.contents.time_s)), np.float64)


def apart(a: Array, b: Array) -> float:
    """PA-MPJPE of two motions (T, 24, 3), mm."""
    both = np.isfinite(a).all((1, 2)) & np.isfinite(b).all((1, 2))
    return 1000 * float(pa_mpjpe(torch.from_numpy(a[both]), torch.from_numpy(b[both])).mean())


def one(folder: Path, out: Path, true: Rig, joints: Array) -> dict[str, float]:
    """Errors of a run without a calibration, against cameras and joints."""
    begun = time.process_time()
    run(find_recording(folder), out, RunConfig(), threads=False)
    figures = {"pa_mm": apart(joints_of(out / "results.zarr"), joints)}
    figures["cpu_s"] = time.process_time() - begun
    if len(true) > 1:
        figures |= camera_errors(read_calibration(out / "calibration.toml"), true)
    return figures


def balancing(work: Path) -> dict[str, float]:
    true = find_recording(BALANCING).rig
    given = without_calibration(BALANCING, work / "given", true.names, true, 60)
    shutil.copy(BALANCING / "calibration.toml", given)
    run(find_recording(given), work / "given-out", RunConfig(), threads=False)
    joints = joints_of(work / "given-out" / "results.zarr")
    figures = {}
    folder = without_calibration(BALANCING, work / "all", true.names, true, 60)
    for key, value in one(folder, work / "all-out", true, joints).items():
        figures[f"balancing_{key}"] = value
    pairs, singles = [], []
    for v, name in enumerate(true.names):
        folder = without_calibration(BALANCING, work / name, [name], true, 60)
        singles.append(one(folder, work / f"{name}-out", true.select([name]), joints)["pa_mm"])
        both = [name, true.names[(v + 1) % len(true)]]
        folder = without_calibration(BALANCING, work / "-".join(both), both, true, 60)
        rig = true.select(sorted(both))
        pairs.append(one(folder, work / f"{'-'.join(both)}-out", rig, joints)["pa_mm"])
    figures["balancing_two_cameras_pa_mm"] = float(np.mean(pairs))
    figures["balancing_one_camera_pa_mm"] = float(np.mean(singles))
    return figures


def synthetic(work: Path, body: Body, views: int, seeds: Sequence[int]) -> dict[str, float]:
    rows = []
    for seed in seeds:
        made = work / f"synth-{views}-{seed}"
        truth = write_recording(made, SynthConfig(cameras=views, seed=seed, videos=False), body)
        true = truth.contents.rig
        folder = without_calibration(made, work / f"{made.name}-bare", true.names, true, 30)
        joints = np.asarray(truth.array("people/0/joints", 0, len(truth.contents.time_s)), np.float64)
        rows.append(one(folder, work / f"{made.name}-out", true, joints))
    figures = {f"synth_{key}_{views}": float(np.mean([r[key] for r in rows])) for key in rows[0]}
    figures[f"synth_scale_error_percent_{views}"] = 100 * float(np.mean([abs(r["scale"] - 1) for r in rows]))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    body = load_body()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        if BALANCING.exists():
            figures |= balancing(work)
        for views in VIEWS:
            figures |= synthetic(work, body, views, range(50, 50 + args.seeds))
    for key, value in figures.items():
        print(f"{key:42} {value:8.2f}")
    if args.json:
        args.json.write_text(json.dumps({k: round(v, 3) for k, v in figures.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
