"""How fast and how right the solver is.

    python tests/benchmarks/smplify.py [--json FILE] [--recording FOLDER] [--clips N] [--quick]

One thread, CPU seconds, everything from keypoints to parameters. Figures on the real recording are in-sample
except the held-out cameras; those on synthetic truth share body and cameras with the fit: they bound what the
solver loses, they do not predict accuracy on people. Ratios within one run mean more than seconds.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import roma  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from fit_problems import pa_mpjpe_mm, rough_views, solve_uncalibrated  # noqa: E402
from scenes import Scene, body, jitter_mm, joints_of, mpjpe_mm, prior, pve_mm, scene  # noqa: E402
from test_smplify_stage import batches, joined  # noqa: E402

from models.body import pose_keypoints  # noqa: E402
from models.fit.energy import evaluate_energy  # noqa: E402
from models.fit.problem import (  # noqa: E402
    HINGES,
    FitSettings,
    Motion,
    Schedule,
    Views,
    Weights,
    prepare,
)
from models.fit.solver import Fit, _retract  # noqa: E402
from models.fit.spin import SpinFit, spin  # noqa: E402
from models.fit.system import linearise  # noqa: E402
from models.fit.windows import SmplifyConfig  # noqa: E402
from models.geometry.association import MatchConfig  # noqa: E402
from models.geometry.triangulation import triangulate  # noqa: E402
from pipeline.batches import FitBatch  # noqa: E402
from pipeline.recording import find_recording  # noqa: E402
from pipeline.skeleton import SMPL_24  # noqa: E402
from stages.associate import associate  # noqa: E402
from stages.inspect import inspect  # noqa: E402
from stages.keypoints import KeypointsConfig, keypoints  # noqa: E402
from stages.regress import RegressConfig, load_net, regress  # noqa: E402
from stages.smplify import smplify  # noqa: E402

BALANCING = Path(__file__).parents[3] / "shared" / "data" / "balancing"
SEEDS = range(400, 408)
"""None of them was looked at while the weights were chosen; those were
300–307, 5000–5005 and 7000–7007."""
OUTLIER_SEEDS = range(10)
"""Draws of outliers on the real recording: one draw moves the joints by 1.7 to 6 mm."""
TIGHT = Schedule((*Schedule().stages[:2], (Schedule().stages[2][0], 200, 1e-6)))
FIXED = Weights(offset_spread=1)
"""An energy that does not change on the way, for methods that minimise one."""
Figures = dict[str, float | list[float]]


def cpu(run: Callable[[], object], repeats: int = 1) -> float:
    """Least CPU seconds of some runs."""
    took = []
    for _ in range(repeats):
        begin = time.process_time()
        run()
        took.append(time.process_time() - begin)
    return min(took)


def recorded(folder: Path) -> Scene:
    """The recording as the keypoints stage gives it; the truth is not known."""
    recording = inspect(find_recording(folder))
    source = keypoints(recording, KeypointsConfig())
    chunks = list(associate(source, MatchConfig(people="main"), recording.rig))
    xy = torch.cat([c.xy_px[:, :, 0] for c in chunks], 1).double().numpy()
    confidence = torch.cat([c.confidence[:, :, 0] for c in chunks], 1).double().numpy()
    nothing = torch.empty(0)
    return Scene(recording.rig, xy, confidence, *[nothing] * 5, rate=float(chunks[0].rate))


def points_of(motion: Motion) -> Tensor:
    m = [x[0].double() for x in (motion.rotations, motion.betas, motion.transl, motion.offsets)]
    return pose_keypoints(body().keypoints, *m)[1]


def miss_px(d: Scene, points: np.ndarray) -> np.ndarray:
    """Pixel distance (V, T, 25), NaN where the confidence is 0.3 or less."""
    miss = np.linalg.norm(d.rig.project(points) - d.xy, axis=-1)
    return np.where(d.confidence > 0.3, miss, np.nan)


def without(d: Scene, view: int) -> Scene:
    keep = [v for v in range(len(d.rig)) if v != view]
    names = [d.rig.names[v] for v in keep]
    return replace(d, rig=d.rig.select(names), xy=d.xy[keep], confidence=d.confidence[keep])


def bends(rotations: Tensor) -> float:
    """Least natural bend of elbows and knees, degrees; below 0 they bend backwards."""
    angles = roma.rotmat_to_rotvec(rotations.double())
    return min(float((s * angles[:, SMPL_24.index(n), a]).min()) for n, a, s in HINGES) * 180 / np.pi


def twists(found: Tensor, truth: Tensor) -> Tensor:
    """Upper-arm twist error, degrees, in frames where the true elbow bends by more than 30°."""
    out = []
    for side, arm in (("left", 1.0), ("right", -1.0)):
        shoulder, elbow = (SMPL_24.index(f"{side}_{j}") for j in ("shoulder", "elbow"))
        off = roma.rotmat_to_rotvec(found[:, shoulder].double().mT @ truth[:, shoulder])[:, 0] * arm
        bent = roma.rotmat_to_rotvec(truth[:, elbow]).norm(dim=-1) > np.pi / 6
        out.append(off.abs()[bent] * 180 / np.pi)
    return torch.cat(out)


def real(d: Scene, figures: Figures) -> None:
    fit = d.solve()
    frames = d.xy.shape[1]
    figures["cpu_s"] = cpu(d.solve, 7)
    figures["fps_per_core"] = frames / float(figures["cpu_s"])
    figures["iterations"] = fit.iterations
    miss = miss_px(d, points_of(fit.motion).numpy())
    figures["px_mean"], figures["px_median"] = float(np.nanmean(miss)), float(np.nanmedian(miss))
    figures["jitter"] = jitter_mm(joints_of(fit.motion))
    figures["min_bend_deg"] = bends(fit.motion.rotations[0])
    tight = d.solve(schedule=TIGHT)
    miss = miss_px(d, points_of(tight.motion).numpy())
    figures["converged_px_mean"], figures["converged_px_median"] = (
        float(np.nanmean(miss)),
        float(np.nanmedian(miss)),
    )
    figures["converged_iterations"] = tight.iterations
    figures["energy_over_converged"] = float(fit.energy / tight.energy) - 1
    held_out, plain = [], []
    for v in range(len(d.rig)):
        rest = without(d, v)
        held_out.append(float(np.nanmedian(miss_px(d, points_of(rest.solve().motion).numpy())[v])))
        found = triangulate(rest.rig, rest.xy, rest.confidence).points
        plain.append(float(np.nanmedian(miss_px(d, found)[v])))
    figures["heldout_px_median"], figures["heldout_px_median_triangulation"] = held_out, plain
    joints, shifts = joints_of(fit.motion), []
    for seed in OUTLIER_SEEDS:
        rng = np.random.default_rng(seed)
        spoiled = d.xy.copy()
        moved = rng.random(spoiled.shape[:-1]) < 0.1
        way = rng.uniform(0, 2 * np.pi, moved.sum())
        spoiled[moved] += 80 * np.stack([np.cos(way), np.sin(way)], -1)
        shift = joints_of(replace(d, xy=spoiled).solve().motion) - joints
        shifts.append(float(shift.norm(dim=-1).mean()) * 1000)
    figures["outliers_move_joints_mm"] = float(np.mean(shifts))


def synthetic(seeds: range, figures: Figures) -> None:
    cases: dict[str, dict[str, float | int | str]] = {
        "": {},
        "walking_": {"kind": "person"},
        "bias15_": {"bias_m": 0.015},
        "outliers_": {"outliers": 0.15},
        "dropped_": {"missing": 0.37},
        "two_cameras_": {"views": 2},
        "hard_two_cameras_": {"views": 2, "outliers": 0.15, "missing": 0.37},
    }
    for name, case in cases.items():
        scenes = [scene(s, **{"kind": "random", **case}) for s in seeds]  # type: ignore[arg-type]
        fits = [d.solve() for d in scenes]
        pairs = list(zip(scenes, fits, strict=True))
        figures[f"{name}mpjpe_mm"] = float(np.mean([mpjpe_mm(f.motion, d) for d, f in pairs]))
        figures[f"{name}pve_mm"] = float(np.mean([pve_mm(f.motion, d) for d, f in pairs]))
        rough = [jitter_mm(joints_of(f.motion)) / jitter_mm(d.joints) - 1 for d, f in pairs]
        figures[f"{name}jitter_excess"] = float(np.mean(rough))
        twist = torch.cat([twists(f.motion.rotations[0], d.rotations) for d, f in pairs])
        figures[f"{name}twist_deg"] = float(twist.mean())
        figures[f"{name}worst_mpjpe_mm"] = max(mpjpe_mm(f.motion, d) for d, f in pairs)
        if not name:
            tight = [d.solve(schedule=TIGHT) for d in scenes]
            figures["converged_mpjpe_mm"] = float(
                np.mean([mpjpe_mm(f.motion, d) for d, f in zip(scenes, tight, strict=True)])
            )
            lost = [without(d, 2).solve() for d in scenes]
            figures["camera_lost_mpjpe_mm"] = float(
                np.mean([mpjpe_mm(f.motion, d) for d, f in zip(scenes, lost, strict=True)])
            )


def unposed(seeds: range, figures: Figures) -> None:
    """Cameras that stand nobody knows where, from a start 25° wrong in every joint 20 cm in every place."""
    for views in (1, 2, 4):
        scenes = [scene(s, "random", views=views) for s in seeds]
        fits = [solve_uncalibrated(d, rough_views(d, 25)) for d in scenes]
        error = [pa_mpjpe_mm(f.motion, d) for f, d in zip(fits, scenes, strict=True)]
        figures[f"unposed_{views}_views_pa_mpjpe_mm"] = float(np.mean(error))


def windows(figures: Figures) -> None:
    """Windows of 32 frames against one solve of all of them; the shape's own solve counts on both sides."""
    d = scene(200, "random", frames=288)
    out: list[FitBatch] = []

    def streamed() -> None:
        out[:] = smplify(batches(d), SmplifyConfig(), d.rig, body())

    whole, streams = zip(*((cpu(d.solve), cpu(streamed)) for _ in range(5)), strict=True)
    error = (joined(out, "joints") - d.joints).norm(dim=-1).mean() * 1000
    figures["windows_mpjpe_mm"], figures["whole_mpjpe_mm"] = float(error), mpjpe_mm(d.solve().motion, d)
    figures["windows_time_ratio"] = min(streams) / min(whole)
    short = replace(d, xy=d.xy[:, :144], confidence=d.confidence[:, :144])
    stage = smplify(batches(short), SmplifyConfig(), d.rig, body())
    first = [next(stage) for _ in range(4)]  # with the shape's own solve, and the first window of its own
    figures["window_latency_s"] = cpu(lambda: first.append(next(stage)))


def one_camera(d: Scene, figures: Figures) -> None:
    """Each camera alone, from what the network says, against the fit to all: joints about the pelvis, mm."""
    whole = joints_of(d.solve().motion)
    net = load_net(RegressConfig(), views=1)

    def off(found: Tensor, wanted: Tensor) -> float:
        found, wanted = found - found[:, :1], wanted - wanted[:, :1]
        return float((found - wanted).norm(dim=-1).nanmean()) * 1000

    fits, said = [], []
    for v, name in enumerate(d.rig.names):
        rig = replace(d.rig.select([name]), R=np.eye(3)[None], t=np.zeros((1, 3)))
        alone = replace(d, rig=rig, xy=d.xy[[v]], confidence=d.confidence[[v]])
        wanted = whole @ torch.from_numpy(d.rig.R[v]).mT
        items = (b.keypoints for b in batches(alone))
        poses = list(regress(items, RegressConfig(), rig, body(), net, window=24))
        fits.append(off(joined(list(smplify(iter(poses), SmplifyConfig(), rig, body())), "joints"), wanted))
        turns = torch.cat([torch.cat([b.global_orient, b.body_pose[:, 0]], 1) for b in poses]).double()
        betas, transl = (
            torch.cat([getattr(b, n)[:, 0] for b in poses]).double() for n in ("betas", "transl")
        )
        frames = zip(turns, betas, transl, strict=True)
        joints = [pose_keypoints(body().keypoints, r[None], b, t[None])[0] for r, b, t in frames]
        said.append(off(torch.cat(joints), wanted))
    figures["one_camera_mm"], figures["one_camera_network_mm"] = fits, said


def natural(clips: int, figures: Figures) -> None:
    least = [
        bends(scene(1000 + i, "random", frames=12, noise_px=5).solve().motion.rotations[0])
        for i in range(clips)
    ]
    figures["clips"], figures["clips_min_bend_deg"] = clips, min(least)
    figures["clips_bent_backwards_over_5deg"] = float(np.mean(np.array(least) < -5))


def derivatives(figures: Figures) -> None:
    """Analytic gradient and Jacobian against autograd, float64."""
    d = scene(3, "random", frames=6, noise_px=40)
    start = replace(d.start(), betas=torch.ones(1, 10, dtype=torch.float64))
    pb, motion, _ = prepare(body().keypoints, d.views(torch.float64), start, FitSettings(60.0, prior=prior()))
    st = evaluate_energy(pb, motion, 8.0)
    sys_ = linearise(pb, st, 8.0)
    x = torch.zeros_like(sys_.grad).requires_grad_()

    def moved(step: Tensor) -> Motion:
        return _retract(pb, motion, step, torch.zeros_like(sys_.shape_grad))

    (wanted,) = torch.autograd.grad(evaluate_energy(pb, moved(x), 8.0).energy.sum() / 2, x)
    figures["gradient_error"] = float((sys_.grad - wanted).norm() / wanted.norm())

    def points(step: Tensor) -> Tensor:
        full = torch.zeros_like(sys_.grad)
        full[0, 2] = step
        return evaluate_energy(pb, moved(full), 8.0).points[0, :, 2].reshape(-1)

    jacobian = torch.autograd.functional.jacobian(points, torch.zeros_like(sys_.grad[0, 2]))
    figures["jacobian_error"] = float((sys_.jacobian[0, 2] - jacobian).norm() / jacobian.norm())


def descend(d: Scene, method: str, steps: int) -> tuple[float, float]:
    """Energy and CPU seconds of a first-order method on the same objective, annealing and start."""
    start = d.start()
    begin = time.process_time()
    pb, motion, _ = prepare(
        body().keypoints, d.views(), start, FitSettings(d.rate, weights=FIXED, prior=prior())
    )
    frames, size = motion.transl.shape[1], 3 + 3 * len(pb.body.active)
    pose, betas, offsets = (torch.zeros(s, requires_grad=True) for s in ((1, frames, size), (1, 10), (1, 75)))
    unknowns = [pose, betas, offsets]

    def energy(robust: float) -> Tensor:
        # Offsets in units of their deviation: both methods need it.
        shape = torch.cat([betas, FIXED.offset_m * offsets], 1)
        return evaluate_energy(pb, _retract(pb, motion, pose, shape), robust).energy.sum()

    for robust, share in zip((16.0, 8.0, 4.0), (0.15, 0.15, 0.7), strict=True):
        n = round(share * steps)
        if method == "adam":
            optimiser = torch.optim.Adam(unknowns, lr=0.01)
            for _ in range(n):
                optimiser.zero_grad()
                energy(robust).backward()
                optimiser.step()
        else:
            lbfgs = torch.optim.LBFGS(
                unknowns, max_iter=n, max_eval=n, history_size=50, line_search_fn="strong_wolfe"
            )

            def closure(optimiser: torch.optim.LBFGS = lbfgs, robust: float = robust) -> Tensor:
                optimiser.zero_grad()
                e = energy(robust)
                e.backward()
                return e

            lbfgs.step(closure)
    return float(energy(4.0).detach()), time.process_time() - begin


def optimisers(d: Scene, figures: Figures) -> None:
    lm: list[Fit] = []
    best = float(d.solve(weights=FIXED, schedule=TIGHT).energy)
    figures["lm_cpu_s"] = cpu(lambda: lm.append(d.solve(weights=FIXED)))
    figures["lm_energy_over_best"] = float(lm[0].energy) / best - 1
    for method, steps in (("adam", 200), ("adam", 1000), ("lbfgs", 200), ("lbfgs", 600)):
        energy, seconds = descend(d, method, steps)
        figures[f"{method}{steps}_energy_over_best"] = energy / best - 1
        figures[f"{method}{steps}_cpu_s"] = seconds


def spin_preset(d: Scene, figures: Figures) -> None:
    """SPIN's own fit of the first view, each frame alone, from the start that the solver has."""
    begin = d.start()
    views = d.views()
    frames = d.xy.shape[1]
    scale = torch.diag(torch.tensor([224 / 820, 224 / 820, 1.0]))
    alone = Views(
        *(x[0, :1].expand(frames, 1, *x.shape[2:]) for x in (scale @ views.K, views.R, views.t)),
        xy_px=views.xy_px[0, :1].transpose(0, 1)[:, :, None] * 224 / 820,
        confidence=views.confidence[0, :1].transpose(0, 1)[:, :, None],
    )
    start = Motion(
        begin.rotations[0, :, None],
        begin.transl[0, :, None],
        begin.betas.expand(frames, -1),
        begin.offsets.expand(frames, -1, -1),
    )
    fits: list[SpinFit] = []
    figures["spin_one_view_cpu_s"] = cpu(lambda: fits.append(spin(body().keypoints, alone, start, prior())))
    m = fits[0].motion
    points = [
        pose_keypoints(body().keypoints, *(x[i].double() for x in (m.rotations, m.betas, m.transl)))[1]
        for i in range(frames)
    ]
    figures["spin_one_view_px_median"] = float(np.nanmedian(miss_px(d, torch.cat(points).numpy())[0]))
    figures["spin_one_view_jitter"] = jitter_mm(torch.cat(points))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--recording", type=Path, default=BALANCING, help="a recording folder")
    parser.add_argument(
        "--clips", type=int, default=100, help="random clips whose elbows and knees are checked"
    )
    parser.add_argument("--quick", action="store_true", help="two seeds, no first-order methods")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures: Figures = {}
    derivatives(figures)
    if args.recording.exists():
        d = recorded(args.recording)
        real(d, figures)
        one_camera(d, figures)
    else:
        print(f"{args.recording} is not there: no figures on a real recording")
        d = scene(99, "random")
    synthetic(SEEDS[:2] if args.quick else SEEDS, figures)
    unposed(SEEDS[:2] if args.quick else SEEDS, figures)
    windows(figures)
    natural(args.clips, figures)
    if not args.quick:
        optimisers(d, figures)
        spin_preset(d, figures)
    for key, value in figures.items():
        text = " ".join(f"{v:.1f}" for v in value) if isinstance(value, list) else f"{value:.4g}"
        print(f"{key:34s} {text}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
