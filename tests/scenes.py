"""People whose motion and shape are known, as cameras with noise would see them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import roma
import torch
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation
from torch import Tensor

from models.body import Body, load_body, pose_keypoints
from models.fit.problem import FitSettings, Motion, Schedule, Views, Weights
from models.fit.solver import Fit, fit
from models.fit.starts import start_pose, start_shape
from models.geometry.triangulation import triangulate
from models.priors import PosePrior, load_pose_prior
from models.synthetic.cameras import look_at
from models.synthetic.people import animate, make_people
from models.synthetic.poses import draw_from_prior
from pipeline.cameras import Rig
from pipeline.skeleton import SMPL_24


@cache
def body() -> Body:
    return load_body()


@cache
def prior() -> PosePrior:
    return load_pose_prior()


@dataclass(frozen=True)
class Scene:
    rig: Rig
    xy: np.ndarray
    """(V, T, 25, 2)"""
    confidence: np.ndarray
    """(V, T, 25)"""
    rotations: Tensor
    """(T, 24, 3, 3)"""
    transl: Tensor
    betas: Tensor
    joints: Tensor
    """(T, 24, 3)"""
    points: Tensor
    """(T, 25, 3)"""
    rate: float

    def views(self, dtype: torch.dtype = torch.float32) -> Views:
        t = [torch.as_tensor(x, dtype=dtype)[None] for x in (self.rig.K, self.rig.R, self.rig.t)]
        xy, confidence = (torch.as_tensor(x, dtype=dtype)[None] for x in (self.xy, self.confidence))
        return Views(*t, xy, confidence)

    def points_seen(self) -> Tensor:
        """(T, 25, 3) triangulated, NaN where the views do not agree."""
        found = triangulate(self.rig, self.xy, self.confidence)
        return torch.from_numpy(np.where((found.used.sum(0) >= 2)[..., None], found.points, np.nan))

    def start(self) -> Motion:
        points = self.points_seen()
        betas = start_shape(body().keypoints, points)
        pose = start_pose(body().keypoints, betas, points, self.rate)
        assert pose is not None
        return Motion(pose[0][None], pose[1][None], betas[None], torch.zeros(1, 25, 3))

    def solve(
        self,
        dtype: torch.dtype = torch.float32,
        weights: Weights | None = None,
        schedule: Schedule | None = None,
    ) -> Fit:
        """From keypoints to parameters."""
        return fit(
            body().keypoints,
            self.views(dtype),
            self.start(),
            FitSettings(
                self.rate, weights=weights or Weights(), schedule=schedule or Schedule(), prior=prior()
            ),
        )


def ring(views: int = 4, focal: float = 1700.0, radius: float = 4.0) -> Rig:
    """The first ``views`` of four cameras around the origin, 86° apart, z up in the world."""
    angle = 1.5 * np.arange(views) + 0.3
    centre = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(views, 1.5)], -1)
    forward = np.array([0, 0, 1.0]) - centre
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    rot = look_at(forward)
    k = np.broadcast_to([[focal, 0, 960], [0, focal, 540], [0, 0, 1.0]], (views, 3, 3)).copy()
    t = -np.einsum("vij,vj->vi", rot, centre)
    return Rig(
        tuple(f"c{i}" for i in range(views)),
        k,
        np.zeros((views, 8)),
        rot,
        t,
        np.tile([1920, 1080], (views, 1)),
    )


def scene(
    seed: int,
    kind: str = "person",
    *,
    frames: int = 100,
    rate: float = 60.0,
    views: int = 4,
    noise_px: float = 3.0,
    outliers: float = 0.05,
    missing: float = 0.1,
    bias_m: float = 0.0,
) -> Scene:
    """A person who walks, squats, reaches ("person") or moves through random poses ("random").

    Noise in pixels, outliers moved by 80 px, every keypoint of the body displaced by ``bias_m`` in a random
    direction. The random poses are drawn from the pose prior, one every half second. Wrists are straight in
    both: no keypoint of BODY_25 shows them.
    """
    rng = np.random.default_rng([seed, 77])
    model = body()
    if kind == "person":
        (person,) = make_people(1, 60.0, seed, model)
        time = rng.uniform(0, 50) + np.arange(frames) / rate
        rotations, transl = (torch.from_numpy(x) for x in animate(person, model, time))
        betas = torch.from_numpy(np.asarray(person.betas, np.float64))
        rotations[:, 20:] = torch.eye(3, dtype=rotations.dtype)
        transl = transl - torch.tensor([*transl[:, :2].mean(0), 0.0])
    else:
        betas = torch.from_numpy(rng.normal(0, 1, model.num_betas))
        rotations, transl = _random_motion(frames, rate, rng)
        pelvis = model.keypoints.joints_template[0] + model.keypoints.joints_shapedirs[0] @ betas
        transl = transl - pelvis
    bias = rng.normal(size=(25, 3))
    bias *= bias_m / np.linalg.norm(bias, axis=-1, keepdims=True)
    joints, points = pose_keypoints(model.keypoints, rotations, betas, transl)
    _, seen = pose_keypoints(model.keypoints, rotations, betas, transl, torch.from_numpy(bias))
    rig = ring(4).select([f"c{i}" for i in range(views)]) if views <= 4 else ring(views)
    xy = rig.project(seen.numpy())
    xy += rng.normal(0, noise_px, xy.shape)
    moved = rng.random(xy.shape[:-1]) < outliers
    way = rng.uniform(0, 2 * np.pi, moved.sum())
    xy[moved] += 80 * np.stack([np.cos(way), np.sin(way)], -1)
    lost = rng.random(moved.shape) < missing
    xy[lost] = np.nan
    return Scene(rig, xy, np.where(lost, 0, 1.0), rotations, transl, betas, joints, points, rate)


def _random_motion(frames: int, rate: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Rotations (T, 24, 3, 3) and the pelvis' place (T, 3)."""
    knots = int(frames / rate / 0.5) + 3
    pose = draw_from_prior(prior(), knots, 0.7, rng)
    pose[:, [SMPL_24.index(f"{s}_{p}") - 1 for s in ("left", "right") for p in ("wrist", "hand")]] = 0
    local = roma.rotvec_to_rotmat(torch.from_numpy(pose))
    turn = np.stack(
        [0 * rng.normal(size=knots), np.cumsum(rng.normal(0, 0.4, knots)), 0 * rng.normal(size=knots)], -1
    )
    lean = roma.rotvec_to_rotmat(torch.from_numpy(rng.normal(0, 0.15, (knots, 3))))
    upright = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
    whole = torch.cat([(upright @ roma.rotvec_to_rotmat(torch.from_numpy(turn)) @ lean)[:, None], local], 1)
    place = np.array([0, 0, 1.0]) + rng.normal(0, 0.15, (knots, 3))
    knot_time, time = 0.5 * np.arange(knots), np.arange(frames) / rate
    smooth = CubicSpline(knot_time, whole.numpy())(time)
    return roma.special_procrustes(torch.from_numpy(smooth)), torch.from_numpy(
        CubicSpline(knot_time, place)(time)
    )


def joints_of(motion: Motion, n: int = 0) -> Tensor:
    """(T, 24, 3) of the fitted body."""
    joints, _ = pose_keypoints(
        body().keypoints, motion.rotations[n].double(), motion.betas[n].double(), motion.transl[n].double()
    )
    return joints


def mpjpe_mm(motion: Motion, truth: Scene) -> float:
    return float((joints_of(motion) - truth.joints).norm(dim=-1).mean()) * 1000


def pve_mm(motion: Motion, truth: Scene, step: int = 10) -> float:
    """Mean vertex error of every ``step``-th frame."""
    r, t = motion.rotations[0, ::step], motion.transl[0, ::step]
    found = body().vertices(r[:, 0], r[:, 1:], motion.betas[0], t)
    r, t = truth.rotations[::step], truth.transl[::step]
    wanted = body().vertices(r[:, 0], r[:, 1:], truth.betas, t)
    return float((found - wanted).norm(dim=-1).mean()) * 1000


def jitter_mm(joints: Tensor) -> float:
    """Mean acceleration of joints (T, J, 3) metres, mm/frame²."""
    return float((joints[2:] - 2 * joints[1:-1] + joints[:-2]).norm(dim=-1).mean()) * 1000


def rig_errors(rig: Rig, true: Rig) -> tuple[np.ndarray, np.ndarray, float]:
    """Rotations (V,) in degrees and centres (V,) by their mean distance from the middle, after a similarity
    transform; and the scale of the rig."""
    world = Rotation.from_matrix(np.einsum("vji,vjk->vik", rig.R, true.R)).mean().as_matrix()
    turn = Rotation.from_matrix(rig.R @ world @ true.R.transpose(0, 2, 1)).magnitude()
    a, b = rig.centres @ world, true.centres
    a, b = a - a.mean(0), b - b.mean(0)
    scale = (a * b).sum() / (b * b).sum()
    off = np.linalg.norm(a / scale - b, axis=1) / np.linalg.norm(b, axis=1).mean()
    return np.degrees(turn), off, float(scale)
