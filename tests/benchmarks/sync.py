"""Clocks of cameras that were started by hand: the figures of docs/sync.md.

    python tests/benchmarks/sync.py [--json FILE] [--motion POSES.npz] [--seeds 401,402,403] [--only SCENE]

Clips of motion capture (see ``models/synthetic/poses.py`` for the file) are played there and back before
cameras of 25, 30, 60 and 50 frames a second, started within 2 s of each other, whose clocks drift by 0.1 %.
A simulated detector has 3 px of noise, 5 % outliers and 10 % missing; the calibration is off by 0.1° and
1 cm. Printed are, of each recording, the greatest error of the time at its middle, in frames of 30 a second;
the greatest relative error of the drifts that are told; the number of cameras that are refused; processor
seconds; and what else a scene shows. What FILE has of other scenes and seeds stays there.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator, Mapping, Sequence  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

from clocks import (  # noqa: E402
    RATES,
    REACH_S,
    Filmed,
    World,
    film,
    people_at,
    sampled,
    swaying,
    treadmill,
    write_filmed,
    write_shifted,
)
from crowd import played  # noqa: E402
from recordings import BALANCING  # noqa: E402
from sounds import RATE as SOUND_HZ  # noqa: E402
from sounds import heard, scene, write_sounding  # noqa: E402

from models.body import load_body, pelvis_at_rest, pose_keypoints  # noqa: E402
from models.geometry.sound_lags import find_sound_clocks  # noqa: E402
from models.geometry.synchronisation import Clocks  # noqa: E402
from models.geometry.unsynchronised import meeting_offsets  # noqa: E402
from models.synthetic.detections import Faults  # noqa: E402
from pipeline.clocks import Clock  # noqa: E402
from pipeline.recording import find_recording  # noqa: E402
from pipeline.results import Results  # noqa: E402
from pipeline.sound import POWER_HZ, read_sound_power  # noqa: E402
from pipeline.video import probe  # noqa: E402
from stages.graph import RunConfig, run  # noqa: E402
from stages.inspect import inspect  # noqa: E402
from stages.keypoints import KeypointsConfig, keypoints  # noqa: E402
from stages.sync import SyncConfig, estimate_clocks, synchronise  # noqa: E402

FRAME_S = 1 / 30
CLIPS = {
    "walk": 36, "salsa": 202, "washing a window": 156, "directing traffic": 168, "signals": 163,
    "expressions 1": 19, "expressions 2": 20,
}  # fmt: skip
"""Numbers of clips in the file; the last five are quiet and in place."""
FITTED = {"walk 1": 36, "walk 2": 32, "salsa 1": 202, "salsa 2": 206}
HERTZ, BEFORE_S = 60, 4.0
SWAY_M = (0.0, 0.005)
CROWD = Faults(exchanged=0.02, split=0.03, phantoms=0.1, static_phantoms=1)
LONG_S = (120, 1200)
LONG_DRIFT = 2e-4

Row = Mapping[str, float]
"""Figures of one recording by name; NaN where there is none."""


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


def drifts(seed: int, rates: Sequence[float], drift: float = 1e-3) -> np.ndarray:
    """(V,) of either sign."""
    signs = np.random.default_rng([seed, 8]).choice([-1, 1], len(rates) - 1)
    return np.concatenate([[0.0], drift * signs])


def scored(filmed: Filmed, found: Clocks, seconds: float) -> Row:
    """Figures of the clocks of a recording."""
    believed = np.array([r is None for r in found.refused])
    told = found.drift != 0
    error = np.abs(filmed.errors_s(found))[believed].max() / FRAME_S if believed.any() else np.nan
    off = np.abs(found.drift[told] / filmed.drift[told] - 1).max() if told.any() else np.nan
    return {"error": error, "drift off": off, "refused": sum(~believed), "seconds": seconds}


def measured(filmed: Filmed, *, calibrated: bool = True) -> Row:
    begun = time.process_time()
    found = filmed.clocks(calibrated=calibrated)
    return scored(filmed, found, time.process_time() - begun)


def one_person(seconds: float, path: Path, seed: int) -> Iterator[tuple[str, Row]]:
    for name, number in CLIPS.items():
        world = clip(path, number, seconds, seed)
        yield name, measured(film(world, seconds, seed, drift=drifts(seed, RATES)))


def uncalibrated(path: Path, seed: int) -> Iterator[tuple[str, Row]]:
    for name in ("walk", "salsa", "directing traffic", "expressions 2"):
        filmed = film(clip(path, CLIPS[name], 20, seed), 20, seed, (30, 60))
        yield name, measured(filmed, calibrated=False)


def crossing(path: Path, seed: int) -> Iterator[tuple[str, Row]]:
    for people in (2, 3, 4):
        filmed = film(people_at(people, 20, seed), 20, seed, drift=drifts(seed, RATES), faults=CROWD)
        coarse = meeting_offsets(filmed.rig, filmed.seen, REACH_S)
        true = filmed.offset_s + (filmed.drift - filmed.drift[0]) * filmed.seconds / 2
        off = np.abs(coarse - coarse[0] - true + true[0]).max() / FRAME_S
        yield f"{people} people", {**measured(filmed), "coarse": off}


def standing(path: Path, seed: int) -> Iterator[tuple[str, Row]]:
    for sway in SWAY_M:
        filmed = film(swaying(sway, seed), 20, seed)
        yield f"sways by {1000 * sway:g} mm", measured(filmed)
        yield f"sways by {1000 * sway:g} mm, uncalibrated", measured(filmed, calibrated=False)
    yield "treadmill", measured(film(treadmill(seed), 20, seed, (30, 30, 30)))


def balancing(path: Path, seed: int) -> Iterator[tuple[str, Row]]:
    """A real, quiet recording of 1.65 s whose cameras are shifted by up to 0.35 s, by interpolation; errors
    in frames of its 60 a second."""
    late = np.concatenate([[0.0], np.random.default_rng([seed, 9]).uniform(-0.35, 0.35, 3)])
    with tempfile.TemporaryDirectory() as folder:
        recording = inspect(find_recording(write_shifted(BALANCING, Path(folder) / "rec", late)))
        begun = time.process_time()
        found = estimate_clocks(recording, SyncConfig())
        taken = time.process_time() - begun
    refused = np.array([c.method is not None and c.method.startswith("none") for c in found.clocks])
    offset = np.array([c.offset_s for c in found.clocks])
    off = np.abs(offset - offset[0] - (late - late[0]))[~refused]
    common = 1.65 - float(late.max() - late.min())
    error = 60 * off.max() if len(off) else np.nan
    yield "", {"error": error, "refused": sum(refused), "seconds": taken, "common s": common}


def fitted(path: Path, seed: int) -> Iterator[tuple[str, Row]]:
    """MPJPE, mm, of the 25 keypoints of bodies fitted to 10 s: in step; started within 2 s of each other, as
    they are and synchronised; all over the moments of the last."""
    rates, seconds = (30,) * 4, 10.0
    for name, number in FITTED.items():
        world = clip(path, number, seconds, seed)
        late = film(world, seconds, seed, rates)
        step = film(world, seconds, seed, rates, offset_s=np.zeros(4))
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder)
            write_filmed(here / "late", late)
            write_filmed(here / "step", step)
            synced = bodies(here / "late", here / "auto", "auto")
            errors = {
                "synchronised": synced,
                "in step": bodies(here / "step", here / "same", "off"),
                "untouched": bodies(here / "late", here / "off", "off"),
            }
        mm = {
            how: 1000 * np.mean([np.linalg.norm(p - world(np.array([t / 30]))[0, 0], axis=-1).mean()
                                 for t, p in points.items() if t in synced])
            for how, points in errors.items()
        }  # fmt: skip
        yield name, {**mm, "ratio": mm["synchronised"] / mm["in step"]}


def bodies(folder: Path, out: Path, use: str) -> dict[int, np.ndarray]:
    """Frame of the first camera → keypoints (25, 3) of the person fitted there."""
    cfg = RunConfig.model_validate({"sync": {"use": use}})
    run(find_recording(folder), out, cfg)
    results = Results(out).store()
    points, valid = (results.array(f"people/{results.ids[0]}/{name}") for name in ("keypoints_3d", "valid"))
    frames = results.contents.frame_index[0]
    return {int(t): p[:, :3] for t, p, ok in zip(frames, points, valid, strict=True) if ok and t >= 0}


def long(path: Path, seed: int) -> Iterator[tuple[str, Row]]:
    """Clocks that drift by 0.02 %: error at the end of a short and of a long recording, frames, and the
    memory of a process that estimates them and reads all keypoints at common moments, MB."""
    for seconds in LONG_S:
        rates = (30,) * 2
        world = clip(path, CLIPS["walk"], seconds, seed)
        filmed = film(world, seconds, seed, rates, drift=drifts(seed, rates, LONG_DRIFT))
        with tempfile.TemporaryDirectory() as folder:
            here = write_filmed(Path(folder) / "rec", filmed)
            done = subprocess.run(
                [sys.executable, __file__, "--stream", str(here)], check=True, capture_output=True, text=True
            )
            told = json.loads(done.stdout)
        found = np.array(told["offset_s"]) + (1 + np.array(told["drift"])) * seconds
        true = filmed.offset_s + (1 + filmed.drift) * seconds
        error = np.abs(found - true).max() / FRAME_S
        yield f"{seconds} s", {"error at the end": error, **told["figures"]}


def stream(folder: Path) -> None:
    """Synchronise a recording and read all its keypoints; print clocks, and what it takes, as JSON."""
    recording = inspect(find_recording(folder))
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        moved, _ = synchronise(recording, Path(out), SyncConfig())
    taken = time.process_time() - begun
    frames = sum(batch.image_px.shape[1] for batch in keypoints(moved, KeypointsConfig()))
    # Not getrusage: it counts the process that started this one, too.
    peak = int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0]) / 1024
    clocks: list[Clock] = list(moved.clocks)
    figures = {"frames": frames, "seconds": taken, "MB": peak}
    numbers = {"offset_s": [c.offset_s for c in clocks], "drift": [1e-6 * c.drift_ppm for c in clocks]}
    print(json.dumps(numbers | {"figures": figures}))


def sound(path: Path, seed: int) -> Iterator[tuple[str, Row]]:
    """Four sound tracks of 20 s with noise, then one of them silent: error of the offsets, ms."""
    late = np.concatenate([[0.0], np.random.default_rng([seed, 10]).uniform(-2, 2, 3)])
    heard_by = [heard(scene(26, seed), x, 20, seed + v, noise=0.05) for v, x in enumerate(late)]
    for name, silent in (("four", []), ("one silent", [2])):
        with tempfile.TemporaryDirectory() as folder:
            power = []
            for v, track in enumerate(heard_by):
                made = np.zeros(20 * SOUND_HZ) if v in silent else track
                file = write_sounding(Path(folder) / f"cam{v}.mp4", made)
                power.append(read_sound_power(probe(file), 60.0))
        found = find_sound_clocks(power, [0.0] * 4, POWER_HZ, 5.0)
        refused = np.array([r is not None for r in found.refused])
        yield name, {"ms": 1000 * np.abs(found.offset_s - late)[~refused].max(), "refused": sum(refused)}


SCENES: Mapping[str, Callable[[Path, int], Iterator[tuple[str, Row]]]] = {
    "4 cameras, 20 s": partial(one_person, 20),
    "4 cameras, 60 s": partial(one_person, 60),
    "2, no calibration": uncalibrated,
    "people who cross": crossing,
    "standing": standing,
    "balancing": balancing,
    "fitted": fitted,
    "drift of 0.02 %": long,
    "sound": sound,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--motion", type=Path, default=ROOT.parent / "shared" / "data" / "motion" / "poses.npz"
    )
    parser.add_argument("--seeds", default="401,402,403")
    parser.add_argument("--only", default="", help="scenes whose names begin so")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.stream:
        return stream(args.stream)
    table: dict[str, dict[str, dict[str, Row]]] = {}
    if args.json and args.json.exists():
        table = json.loads(args.json.read_text(encoding="utf-8"))
    for name, recordings in SCENES.items():
        for seed in map(int, args.seeds.split(",")) if name.startswith(args.only) else ():
            for movement, row in recordings(args.motion, seed):
                numbers = {k: None if v != v else round(float(v), 4) for k, v in row.items()}
                shown = "  ".join(f"{k} {v}" for k, v in numbers.items())
                print(f"{name:18s} {movement:26s} {seed}  {shown}", flush=True)
                table.setdefault(name, {}).setdefault(str(seed), {})[movement] = numbers
            if args.json:
                args.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
