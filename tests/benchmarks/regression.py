"""Errors and speed of the keypoint regressors.

    python tests/benchmarks/regression.py --motion POSES.npz [--json FILE] [--samples N] [--fits N]

Truth is synthetic: poses of clips that no training saw (whole ones, whole subjects where the names tell),
the default body with random shapes, random cameras, and a detector's errors
(``models.synthetic.projections``): OpenPose's and, in a row of their own, those of BlazePose heavy, which
ships. It shares body and kind of noise with the training, so it compares regressors and does not predict
accuracy on pictures. Samples come from seeds and never change: 777 + V for V views. Errors are means in
millimetres from the pelvis; MPJPE of the uncalibrated net is that in each camera. "fit" is the project's
solver on single frames, started from the net that `run` takes, on the first ``--fits`` samples; its pose
prior has seen some of the clips. One thread, CPU seconds.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

sys.path[:0] = [str(Path(__file__).parents[i]) for i in range(3)]

import throughput as speed_of  # noqa: E402

from models.body import load_body, pose_keypoints  # noqa: E402
from models.evaluation.metrics import mpjpe, pa_mpjpe  # noqa: E402
from models.fit.problem import FitSettings, Motion, PoseTarget, Views, Weights  # noqa: E402
from models.fit.solver import fit  # noqa: E402
from models.fit.starts import start_pose, start_shape  # noqa: E402
from models.geometry.association import MatchConfig  # noqa: E402
from models.geometry.triangulation import triangulate  # noqa: E402
from models.priors import load_pose_prior  # noqa: E402
from models.regressors.keypoint_nets import KeypointNet, load_regressor  # noqa: E402
from models.regressors.regression import fuse_roots  # noqa: E402
from models.synthetic.poses import Poses, read_poses  # noqa: E402
from models.synthetic.projections import TEST, Difficulty, Projected, Projections  # noqa: E402
from models.training.keypoints import keypoint_net_errors  # noqa: E402
from pipeline.cameras import Rig  # noqa: E402
from pipeline.errors import InputError  # noqa: E402
from pipeline.recording import find_recording  # noqa: E402
from pipeline.skeleton import SMPL_24  # noqa: E402
from stages.associate import associate  # noqa: E402
from stages.inspect import inspect  # noqa: E402
from stages.keypoints import KeypointsConfig, keypoints  # noqa: E402

Figures = dict[str, float]

BALANCING = Path(__file__).parents[3] / "shared" / "data" / "balancing"
VIEWS = (1, 2, 4, 8)
DROPPED = (2, 4)
"""Views for which half of the keypoints are also dropped."""
WANTED: Figures = {
    "mpjpe_mm_1": 122, "mpjpe_mm_2": 72, "mpjpe_mm_4": 35, "mpjpe_mm_8": 24,
    "pa_mpjpe_mm_1": 84, "pa_mpjpe_mm_2": 58, "pa_mpjpe_mm_4": 28, "pa_mpjpe_mm_8": 19,
    "uncal_pa_mpjpe_mm_1": 82, "uncal_pa_mpjpe_mm_2": 62,
    "uncal_pa_mpjpe_mm_4": 47, "uncal_pa_mpjpe_mm_8": 38,
    "fit_mpjpe_mm_2": 56, "fit_mpjpe_mm_4": 30, "fit_mpjpe_mm_8": 20, "balancing_px": 15,
}  # fmt: skip
SINGLE = Weights(pose=1.0, shape=100.0, offset_m=0.0005)
"""Weights for frames alone: without neighbours in time the priors count in full."""
UNSEEN = [SMPL_24.index(f"{side}_{part}") for side in ("left", "right") for part in ("foot", "wrist", "hand")]
"""Joints that the solver leaves as they are: no keypoint shows their rotation, or the ankle's covers it."""


def draw(poses: Poses, views: int, count: int, difficulty: Difficulty = TEST) -> Projected:
    rng = torch.Generator().manual_seed(777 + views)
    # All 4000 are drawn whatever is wanted of them, so that the first ones are always the same.
    every = Projections(poses, load_body().keypoints).sample(4000, views, difficulty, rng)
    return every.map(lambda x: x[:count])


def regress(net: KeypointNet, prefix: str, s: Projected, poses: Poses, figures: Figures) -> None:
    """Errors over 24 joints, over the 22 without hands, medians, and the mean of each category."""
    views = s.K.shape[1]
    begin = time.process_time()
    direct, aligned = keypoint_net_errors(net, s)
    figures[f"{prefix}persons_per_s_{views}"] = round(len(direct) / (time.process_time() - begin))
    direct22, aligned22 = keypoint_net_errors(net, s, 22)
    named = {"mpjpe": direct, "pa_mpjpe": aligned, "mpjpe22": direct22, "pa_mpjpe22": aligned22}
    for name, error in named.items():
        figures[f"{prefix}{name}_mm_{views}"] = round(1e3 * float(np.nanmean(error)), 1)
        figures[f"{prefix}{name}_median_mm_{views}"] = round(1e3 * float(np.nanmedian(error)), 1)
    figures[f"{prefix}nobody_{views}"] = int(np.isnan(direct).sum())
    for i, category in enumerate(poses.categories):
        if (mine := s.category.numpy() == i).any():
            mean = 1e3 * float(np.nanmean(aligned[mine]))
            figures[f"{prefix}pa_mpjpe_mm_{views}_{category}"] = round(mean, 1)


def half_dropped(s: Projected) -> Projected:
    """The same samples with every other keypoint gone, at random."""
    gone = torch.rand(s.confidence.shape, generator=torch.Generator().manual_seed(777)) < 0.5
    return replace(
        s,
        xy_px=s.xy_px.masked_fill(gone[..., None], torch.nan),
        confidence=s.confidence.masked_fill(gone, 0),
    )


def fit_single_frames(net: KeypointNet, s: Projected, figures: Figures, label: str) -> None:
    """The solver on frames alone: from the net, and from triangulation and inverse kinematics."""
    body, views = load_body().keypoints, s.K.shape[1]
    r = net(s.xy_px, s.confidence, s.K, s.R, s.t)
    orient, transl = fuse_roots(r, s.R, s.t, body)
    ok = r.seen.any(1)
    regressed = torch.cat([orient[:, None], r.body_pose], 1).double()
    starts = {"fit": (ok, regressed, transl.double(), r.betas.double())}
    if views > 1:
        starts["ik_fit"] = by_triangulation(s)
    for name, (known, rotations, place, betas) in starts.items():
        record(figures, name.replace("fit", "start"), label, s, rotations, betas, known)
        start = rotations.clone()
        start[:, UNSEEN] = torch.eye(3, dtype=start.dtype)
        cameras = [x[known].double() for x in (s.K, s.R, s.t)]
        xy, confidence = s.xy_px[known][:, :, None].double(), s.confidence[known][:, :, None].double()
        count = int(known.sum())
        begin = time.process_time()
        found = fit(
            body,
            Views(*cameras, xy, confidence),
            Motion(start[known][:, None], place[known][:, None], betas[known], start.new_zeros(count, 25, 3)),
            FitSettings(
                30.0,
                weights=SINGLE,
                prior=load_pose_prior(),
                # One view shows half of a pose: the net knows more of the other half than a prior.
                pose_target=PoseTarget(
                    r.body_pose[known][:, None].double(), r.pose_sigma[known][:, None].double()
                )
                if views == 1
                else None,
            ),
        ).motion
        figures[f"{name}_frames_per_s_{label}"] = round(count / (time.process_time() - begin))
        fitted = rotations.clone()
        fitted[known] = found.rotations[:, 0]
        if name == "fit":
            fitted[:, UNSEEN] = regressed[:, UNSEEN]  # the net's word, as nobody else says anything
        all_betas = betas.clone()
        all_betas[known] = found.betas
        record(figures, name, label, s, fitted, all_betas, known)


def by_triangulation(s: Projected) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which frames could be started (N,), and rotations, translations and betas."""
    body, (count, views) = load_body().keypoints, s.K.shape[:2]
    rotations = torch.eye(3, dtype=torch.float64).repeat(count, 24, 1, 1)
    transl, betas = torch.zeros(count, 3, dtype=torch.float64), torch.zeros(count, 10, dtype=torch.float64)
    known = torch.zeros(count, dtype=torch.bool)
    for n in range(count):
        K, R, t = (x[n].double().numpy() for x in (s.K, s.R, s.t))
        size = np.full((views, 2), 2000)
        rig = Rig(tuple(f"{v}" for v in range(views)), K, np.zeros((views, 8)), R, t, size)
        found = triangulate(rig, s.xy_px[n].numpy(), s.confidence[n].numpy())
        points = torch.from_numpy(np.where((found.used.sum(0) >= 2)[:, None], found.points, np.nan))[None]
        betas[n] = start_shape(body, points)
        placed = start_pose(body, betas[n], points, 30.0)
        if placed is not None:
            rotations[n], transl[n], known[n] = placed[0][0], placed[1][0], True
    return known, rotations, transl, betas


def record(
    figures: Figures,
    name: str,
    label: str,
    s: Projected,
    rotations: Tensor,
    betas: Tensor,
    known: Tensor,
) -> None:
    joints, _ = pose_keypoints(load_body().keypoints, rotations, betas, torch.zeros(3, dtype=torch.float64))
    joints, true = (joints - joints[:, :1])[known], (s.joints - s.joints[:, :1])[known]
    figures[f"{name}_mpjpe_mm_{label}"] = round(1e3 * float(mpjpe(joints, true).mean()), 1)
    figures[f"{name}_pa_mpjpe_mm_{label}"] = round(1e3 * float(pa_mpjpe(joints, true).mean()), 1)
    figures[f"{name}_without_{label}"] = int((~known).sum())


def on_balancing(net: KeypointNet, figures: Figures) -> None:
    """Mean distance between the regressed body and what the four cameras saw of a real person, pixels."""
    recording = inspect(find_recording(BALANCING))
    source = keypoints(recording, KeypointsConfig())
    seen = list(associate(source, MatchConfig(people="main"), recording.rig))
    xy = torch.cat([b.xy_px[:, :, 0] for b in seen], 1).transpose(0, 1)  # (T, V, 25, 2)
    confidence = torch.cat([b.confidence[:, :, 0] for b in seen], 1).transpose(0, 1)
    rig, frames = recording.rig, len(xy)
    K, R, t = (torch.from_numpy(x).float().expand(frames, *x.shape) for x in (rig.K, rig.R, rig.t))
    r = net(xy, confidence, K, R, t)
    orient, transl = fuse_roots(r, R, t, load_body().keypoints)
    body = load_body().keypoints.to(dtype=torch.float32)
    _, points = pose_keypoints(body, torch.cat([orient[:, None], r.body_pose], 1), r.betas, transl)
    error = reprojection(points, K, R, t, xy)
    counted = error[error.isfinite()]  # as `run` counts: what is seen
    figures["balancing_px"] = round(float(counted.mean()), 1)
    figures["balancing_px_median"] = round(float(counted.median()), 1)
    figures["balancing_frames"] = int(orient[:, 0, 0].isfinite().sum())


def reprojection(points: Tensor, K: Tensor, R: Tensor, t: Tensor, xy: Tensor) -> Tensor:
    """(T, V, 25) pixels; NaN where nothing was seen."""
    pixel = (points[:, None] @ R.mT + t[:, :, None]) @ K.mT
    return (pixel[..., :2] / pixel[..., 2:] - xy).norm(dim=-1)


def show(figures: Figures) -> None:
    def row(title: str, *prefixes: str) -> None:
        cells = [
            " / ".join(f"{figures[f'{p}_{v}']:.1f}" if f"{p}_{v}" in figures else "–" for p in prefixes)
            for v in VIEWS
        ]
        print(f"{title:44}" + "".join(f"{c:>16}" for c in cells))

    print(f"{'MPJPE / PA-MPJPE, mm':44}" + "".join(f"{v:>11} view{'s' if v > 1 else ' '}" for v in VIEWS))
    for prefix, title in (("", "calibrated"), ("uncal_", "uncalibrated")):
        row(title, f"{prefix}mpjpe_mm", f"{prefix}pa_mpjpe_mm")
        row("  median", f"{prefix}mpjpe_median_mm", f"{prefix}pa_mpjpe_median_mm")
        row("  22 joints, without hands", f"{prefix}mpjpe22_mm", f"{prefix}pa_mpjpe22_mm")
        row("  of BlazePose heavy", f"{prefix}blazepose_mpjpe_mm", f"{prefix}blazepose_pa_mpjpe_mm")
    row("net of `run`, the samples that are fitted", "start_mpjpe_mm", "start_pa_mpjpe_mm")
    row("  + fit of single frames", "fit_mpjpe_mm", "fit_pa_mpjpe_mm")
    row("triangulation and inverse kinematics", "ik_start_mpjpe_mm", "ik_start_pa_mpjpe_mm")
    row("  + fit of single frames", "ik_fit_mpjpe_mm", "ik_fit_pa_mpjpe_mm")
    row("  frames without a start", "ik_start_without")
    for v in DROPPED:
        net, ik = (figures[f"{name}_mpjpe_mm_{v}_dropped"] for name in ("fit", "ik_fit"))
        print(
            f"{v} views, half of the keypoints dropped, fit of single frames: {net:.1f} from the net (all), "
            f"{ik:.1f} from triangulation ({figures[f'ik_fit_without_{v}_dropped']:.0f} of "
            f"{figures['fits']:.0f} without a start)"
        )
    clean = figures["clean_mpjpe_mm_4"], figures["clean_pa_mpjpe_mm_4"]
    print(f"calibrated, 4 views without noise: {clean[0]:.1f} / {clean[1]:.1f}")
    row("persons/s, calibrated / uncalibrated", "persons_per_s", "uncal_persons_per_s")
    print("PA-MPJPE by category, 4 views, calibrated / uncalibrated:")
    for key in sorted(figures):
        if key.startswith("pa_mpjpe_mm_4_"):
            name = key.removeprefix("pa_mpjpe_mm_4_")
            print(f"  {name:20} {figures[key]:6.1f} {figures['uncal_' + key]:6.1f}")
    if "balancing_px" in figures:
        print(
            f"balancing, net alone, {figures['balancing_frames']:.0f} frames: "
            f"{figures['balancing_px']:.1f} px mean, {figures['balancing_px_median']:.1f} median"
        )
    for name, limit in WANTED.items():
        if figures.get(name, 0.0) > limit:
            print(f"missed: {name} {figures[name]:.1f}, wanted {limit}")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--motion", type=Path, required=True, help="motion capture, as for training")
    parser.add_argument("--samples", type=int, default=4000, help="of each number of views, at most 4000")
    parser.add_argument("--fits", type=int, default=400, help="of each number of views")
    parser.add_argument("--weights", type=Path, help="folder with calibrated.safetensors and uncalibrated.…")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        _, poses = read_poses(args.motion)
    except InputError as error:
        parser.error(str(error))
    kinds = ("calibrated", "uncalibrated")
    nets = [load_regressor(args.weights / f"{k}.safetensors" if args.weights else k) for k in kinds]
    figures: Figures = {"samples": args.samples, "fits": args.fits}
    for views in VIEWS:
        s = draw(poses, views, args.samples)
        ships = draw(poses, views, args.samples, replace(TEST, blazepose=1.0))
        for prefix, net in zip(("", "uncal_"), nets, strict=True):
            regress(net, prefix, s, poses, figures)
            for name, error in zip(("mpjpe", "pa_mpjpe"), keypoint_net_errors(net, ships), strict=True):
                figures[f"{prefix}blazepose_{name}_mm_{views}"] = round(1e3 * float(np.nanmean(error)), 1)
        fitted = s.map(lambda x: x[: args.fits])
        fit_single_frames(nets[views == 1], fitted, figures, str(views))
        if views in DROPPED:
            fit_single_frames(nets[0], half_dropped(fitted), figures, f"{views}_dropped")
    clean = draw(poses, 4, args.samples, replace(TEST, noise=0.0))
    direct, aligned = keypoint_net_errors(nets[0], clean)
    figures["clean_mpjpe_mm_4"] = round(1e3 * float(np.nanmean(direct)), 1)
    figures["clean_pa_mpjpe_mm_4"] = round(1e3 * float(np.nanmean(aligned)), 1)
    if BALANCING.is_dir():
        on_balancing(nets[0], figures)
    speed = speed_of.throughput()
    show(figures)
    speed_of.show(speed)
    figures |= speed
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
