"""Cameras of a wrong calibration that ``info`` and ``run`` notice, and right ones that they doubt.

    python tests/benchmarks/misplaced.py [--part NAME] [--json FILE] [--seeds 12] [--good 200] [--slips 50]

Synthetic recordings of 4 s with 3 to 5 cameras, every fourth of two people, with keypoints of twice the usual
noise, or with exchanged, split and made-up detections. One camera's rotation is turned by 1 to 15 degrees
about a random axis: about the camera's own centre, as when it was pushed, or with its translation kept, as
when numbers of the file are wrong. Printed are the share of recordings with a finding about the cameras, the
share in which it names the right one, and the share in which it names another (turned); the recordings of a
right calibration with such a finding (right); those of another rig's calibration with one, and with one that
blames single cameras only (another_rig); and slips in one number of a calibration: what is said of each, and
where nothing is, how far the joints of a run move (slips). What FILE has of other parts stays there.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import replace  # noqa: E402
from itertools import pairwise  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from models.body import load_body  # noqa: E402
from pipeline.cameras import Rig  # noqa: E402
from pipeline.config import load  # noqa: E402
from pipeline.errors import InputError  # noqa: E402
from pipeline.findings import Finding  # noqa: E402
from pipeline.recording import Recording, find_recording  # noqa: E402
from pipeline.results import Results  # noqa: E402
from stages.check import check_recording  # noqa: E402
from stages.graph import RunConfig, run  # noqa: E402
from stages.inspect import inspect  # noqa: E402
from stages.synth import SynthConfig, write_recording  # noqa: E402

DEGREES = (1, 2, 3, 5, 8, 11, 15)
CAMERAS = (3, 4, 5)
KINDS: tuple[dict[str, Any], ...] = (
    {}, {"people": 2}, {"noise_px": 6.0}, {"exchanged": 0.05, "split": 0.05, "phantoms": 0.5},
)  # fmt: skip
PARTS = ("turned", "right", "another_rig", "slips")
NOBODY_NAMED = {"cameras_disagree", "no_agreement", "cameras_exchanged"}
MOVED_MM = 8
CODES = ("camera_off", "cameras_disagree", "camera_alone", "no_agreement", "cameras_exchanged")


def recordings(folder: Path, cameras: int, count: int) -> list[Recording]:
    made = []
    for seed in range(count):
        out = folder / f"{cameras}_{seed}"
        if not out.exists():
            cfg = SynthConfig(
                cameras=cameras, seconds=4, seed=seed, videos=False, format="body_25",
                **KINDS[seed % len(KINDS)],
            )  # fmt: skip
            write_recording(out, cfg, load_body())
        made.append(find_recording(out))
    return made


def turned(rig: Rig, v: int, degrees: float, axis: Sequence[float], *, own_centre: bool) -> Rig:
    by = Rotation.from_rotvec(np.radians(degrees) * np.array(axis) / np.linalg.norm(axis)).as_matrix()
    r, t = rig.R.copy(), rig.t.copy()
    r[v] = by @ r[v]
    if own_centre:
        t[v] = by @ t[v]
    return replace(rig, R=r, t=t)


def found_in(recording: Recording) -> list[Finding]:
    read = inspect(recording)
    return [*read.findings, *check_recording(read).findings(read.findings)]


def doubts(recording: Recording) -> list[Finding]:
    try:
        return [f for f in found_in(recording) if f.code in CODES]
    except InputError as error:  # nobody can be placed at all: said, and no run
        return [Finding("no_agreement", str(error))]


def edited(text: str, rng: np.random.Generator) -> tuple[str, str]:
    """A calibration with a slip in one of its numbers: another sign, digit or power of ten, two digits or two
    numbers exchanged; and what it is."""
    numbers = [m for m in re.finditer(r"-?\d+\.\d+(e-?\d+)?", text) if float(m[0]) not in (0, 1)]
    at = int(rng.integers(len(numbers) - 1))
    number, (start, end) = numbers[at][0], numbers[at].span()
    i, j, *_ = (k for k, c in enumerate(number) if c.isdigit() and number[:k].strip("-0.") + c != "0")
    match str(rng.choice(["sign", "digit", "digits", "power", "numbers"])):
        case "sign":
            new = number[1:] if number.startswith("-") else f"-{number}"
        case "digit":
            k = int(rng.choice([i, j]))
            new = f"{number[:k]}{(int(number[k]) + int(rng.integers(1, 10))) % 10}{number[k + 1 :]}"
        case "digits":
            new = number[:i] + number[j] + number[i + 1 : j] + number[i] + number[j + 1 :]
        case "power":
            new = repr(float(number) * float(rng.choice([0.1, 10])))
        case _:
            (first, last), old = numbers[at + 1].span(), number
            new, end = text[first:last] + text[end:first] + old, last
    key = text[:start].rpartition("\n")[2].split(" =")[0]
    return text[:start] + new + text[end:], f"{key}: {text[start:end]} to {new}"


def joints_of(recording: Recording, out: Path) -> tuple[np.ndarray, set[str]]:
    """Joints (T, J, 3) of the person of a run, metres, and its warnings."""
    sets = ["render.overlay=false", "render.mosaic=false"]
    cfg = load(RunConfig, [ROOT / "configs" / "default.yaml"], sets)
    result = run(inspect(recording), out, cfg, threads=False)
    return Results(out).store().array("people/0/joints"), set(result.warnings)


def edit_rows(own: Sequence[Recording], count: int, folder: Path) -> list[dict[str, Any]]:
    """What is said of each slip in a calibration, and where nothing is, how far the joints of a run move."""
    rows = []
    right: dict[Path, tuple[np.ndarray, set[str]]] = {}
    for seed in range(count):
        rng = np.random.default_rng([18, seed])
        good = own[int(rng.integers(len(own)))]
        assert good.calibration is not None
        text, slip = edited(good.calibration.read_text(encoding="utf-8"), rng)
        copy = folder / f"slip_{seed}"
        copy.mkdir()
        for name in ("keypoints", "recording.yaml"):
            (copy / name).symlink_to(good.path / name)
        (copy / good.calibration.name).write_text(text, encoding="utf-8")
        moved = None
        try:
            read = find_recording(copy)
            said = {f.code for f in found_in(read)} - {f.code for f in found_in(good)}
            if not said:
                if good.path not in right:
                    right[good.path] = joints_of(good, folder / f"right_{seed}")
                joints, warnings = joints_of(read, folder / f"out_{seed}")
                moved = float(1000 * np.nanmean(np.linalg.norm(joints - right[good.path][0], axis=-1)))
                said |= warnings - right[good.path][1]
        except InputError as error:
            said = {str(error).partition(": ")[2][:80]}
        rows.append({"cameras": len(good.rig), "slip": slip, "said": sorted(said), "moved_mm": moved})
        print(rows[-1], flush=True)
    return rows


def turned_rows(own: Sequence[Recording], cameras: int) -> list[dict[str, Any]]:
    """Share of the recordings in which one turned camera is found, named, and another one named."""
    rows = []
    for own_centre in (True, False):
        for degrees in DEGREES:
            found = right = wrong = 0
            for seed, recording in enumerate(own):
                rng = np.random.default_rng([seed, degrees])
                v, axis = int(rng.integers(cameras)), rng.normal(size=3)
                rig = turned(recording.rig, v, degrees, axis, own_centre=own_centre)
                said = doubts(replace(recording, rig=rig))
                named = {f.camera for f in said if f.camera}
                found += bool(said)
                right += named == {rig.names[v]}
                wrong += bool(named - {rig.names[v]})
            row = {"cameras": cameras, "own_centre": own_centre, "degrees": degrees}
            shares = {"found": found, "named": right, "another_named": wrong}
            rows.append(row | {k: round(n / len(own), 3) for k, n in shares.items()})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--good", type=int, default=200)
    parser.add_argument("--slips", type=int, default=50)
    parser.add_argument("--part", action="append", choices=PARTS)
    options = parser.parse_args()
    parts = options.part or PARTS
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "turned" in parts:
            document["turned"] = [
                row for n in CAMERAS for row in turned_rows(recordings(folder, n, options.seeds), n)
            ]
        if "right" in parts:
            each = -(-options.good // len(CAMERAS))
            good = {n: [bool(doubts(r)) for r in recordings(folder, n, each)] for n in CAMERAS}
            document["right"] = {n: [len(said), sum(said)] for n, said in good.items()}
            print(f"right calibrations (recordings, with a finding), by cameras: {document['right']}")
        if "another_rig" in parts:
            document["another_rig"] = {}
            for n in CAMERAS:
                pairs = pairwise(recordings(folder, n, options.seeds + 1))
                found = [{f.code for f in doubts(replace(a, rig=b.rig))} for a, b in pairs]
                blamed = sum(not codes & NOBODY_NAMED for codes in found if codes)
                document["another_rig"][n] = [len(found), sum(map(bool, found)), blamed]
            print(f"of another rig (recordings, with a finding, one blamed): {document['another_rig']}")
        if "slips" in parts:
            single = [k for k in range(8) if k % len(KINDS) != 1]  # but for those of two people
            own = [recordings(folder, n, 8)[k] for n in CAMERAS for k in single]
            document["slips"] = rows = edit_rows(own, options.slips, folder)
            unsaid = [row for row in rows if not row["said"] and row["moved_mm"] > MOVED_MM]
            print(f"{len(unsaid)} of {len(rows)} slips are not noticed and move joints by {MOVED_MM} mm")
    if options.json:
        old = json.loads(options.json.read_text(encoding="utf-8")) if options.json.exists() else {}
        options.json.write_text(json.dumps(old | document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
