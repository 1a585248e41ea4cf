"""Keypoints as a detector would find them: bodies in random poses before random cameras, with its errors.

Everything comes from the generator that is given: the same state gives the same samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import roma
import torch
from torch import Tensor

from models.body import KeypointBody, global_rotations
from models.regressors.kinematics import GlobalKinematics
from models.training.poses import Poses, Sampler
from pipeline.batches import TensorBatch, axes
from pipeline.skeleton import BODY_25

BETA_SIGMA: Final = 1.5
_ARMS: Final = ("Elbow", "Wrist")
_LEGS: Final = ("Knee", "Ankle", "BigToe", "SmallToe", "Heel")
_FEET: Final = tuple(name.endswith(("Toe", "Heel")) for name in BODY_25.names)


@dataclass(frozen=True)
class Difficulty:
    """What is done to the truth, 0 or False being nothing."""

    noise: float = 1.0
    """Scales every error of the detector."""
    easy: float = 0.0
    """Share of the samples whose noise is scaled by a random number below that."""
    varied_poses: bool = False
    """Poses beyond those that were captured, see ``Sampler``."""
    calibration: float = 0.0
    """Scales the errors of a calibration: 0.3 degrees about each axis and 1 cm along it."""
    focal: float = 0.0
    """Error of the focal length in half of the samples, as the standard deviation of its logarithm."""
    bias: float = 0.0
    """Share of the samples whose keypoints are defined 6–20 mm (standard deviation) elsewhere on the body."""
    no_feet: float = 0.0
    """Share of the samples whose detector does not know feet, as COCO's."""
    around: float = math.pi
    """The cameras stand within so many radians of the way the person faces."""


TEST: Final = Difficulty()


@dataclass(frozen=True, repr=False)
class Projected(TensorBatch):
    """N people and how V cameras see them. The world of a sample is of its cameras' making."""

    turned: Tensor = axes("N 24 3 3")
    """Rotation of every joint, body → world. This and the next four are the truth."""
    betas: Tensor = axes("N B")
    transl: Tensor = axes("N 3")
    joints: Tensor = axes("N 24 3")
    """Metres, world."""
    points: Tensor = axes("N 25 3")
    """Metres, world: the body's own keypoints, without the detector's bias."""
    K: Tensor = axes("N V 3 3")
    R: Tensor = axes("N V 3 3")
    """World → camera, as a calibration says, which may be off."""
    t: Tensor = axes("N V 3")
    true_R: Tensor = axes("N V 3 3")
    true_t: Tensor = axes("N V 3")
    true_focal: Tensor = axes("N V")
    xy_px: Tensor = axes("N V 25 2")
    """Found, NaN where missing."""
    confidence: Tensor = axes("N V 25")
    category: Tensor = axes("N")


def _uniform(rng: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=rng)


def _chance(rng: torch.Generator, p: float | Tensor, *shape: int) -> Tensor:
    """True with probability p."""
    return torch.rand(*shape, generator=rng) < p


class Projections:
    """Samples without end from poses and a body. Made on the device where the samples are to be."""

    def __init__(self, poses: Poses, body: KeypointBody, device: torch.device | str = "cpu") -> None:
        self.sampler = Sampler(poses.to(device))
        self.kinematics = GlobalKinematics(body).to(device)

    def sample(self, count: int, views: int, d: Difficulty, rng: torch.Generator) -> Projected:
        """``count`` people before ``views`` cameras each, on the generator's device."""
        with torch.device(rng.device):
            return self._sample(count, views, d, rng)

    def _sample(self, count: int, views: int, d: Difficulty, rng: torch.Generator) -> Projected:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng)

        index = self.sampler.draw(count, rng)
        rotations = self.sampler.rotations(index, rng, varied=d.varied_poses)
        yaw = torch.zeros(count, 3)
        yaw[:, 1] = _uniform(rng, 0, 2 * math.pi, count)
        rotations[:, 0] = roma.rotvec_to_rotmat(yaw) @ rotations[:, 0]
        betas = (BETA_SIGMA * normal(count, self.kinematics.joints_shapedirs.shape[2])).clamp(-3, 3)
        rest = self.kinematics.pelvis(betas)
        transl = -rest
        transl[:, 1] += self.sampler.poses.height[index]
        turned = global_rotations(rotations)
        joints, points = (x + (rest + transl)[:, None] for x in self.kinematics(turned, betas))
        shown = points
        if d.bias:
            sigma = _uniform(rng, 0.006, 0.02, count, 25, 1) * _chance(rng, d.bias, count, 1, 1)
            carried = (self.kinematics.weights @ turned.flatten(2)).view(count, 25, 3, 3)
            shown = points + (carried @ (sigma * normal(count, 25, 3))[..., None])[..., 0]

        ahead = torch.atan2(rotations[:, 0, 0, 2], rotations[:, 0, 2, 2])
        K, R, t, size = _cameras(joints, ahead, d.around, views, rng)
        noise = torch.full((count, 1, 1), d.noise)
        if d.easy:
            easier = _chance(rng, d.easy, count, 1, 1)
            noise = torch.where(easier, noise * _uniform(rng, 0, 1, count, 1, 1), noise)
        xy, confidence = _detect(_project(K, R, t, shown), size, noise, rng)

        if d.no_feet:
            lacks = _chance(rng, d.no_feet, count, 1, 1) & torch.tensor(_FEET)
            xy, confidence = xy.masked_fill(lacks[..., None], torch.nan), confidence.masked_fill(lacks, 0)

        # What calibration and recording say: another world, and cameras that are a little off.
        world = _worlds(count, rng)
        joints, points = joints @ world.mT, points @ world.mT
        transl = joints[:, 0] - rest
        turned = world[:, None] @ turned
        true_R = R @ world[:, None].mT
        off = d.calibration * math.radians(0.3) * normal(count, views, 3)
        told_R = roma.rotvec_to_rotmat(off) @ true_R
        centre = -(true_R.mT @ t[..., None])[..., 0] + d.calibration * 0.01 * normal(count, views, 3)
        told_K = K
        if d.focal:
            told_K = K.clone()
            factor = (d.focal * normal(count, 1, 1)).exp()
            told_K[..., [0, 1], [0, 1]] *= torch.where(_chance(rng, 0.5, count, 1, 1), factor, 1.0)
        return Projected(
            turned=turned, betas=betas, transl=transl, joints=joints, points=points,
            K=told_K, R=told_R, t=-(told_R @ centre[..., None])[..., 0],
            true_focal=K[..., 0, 0], true_R=true_R, true_t=t,
            xy_px=xy, confidence=confidence, category=self.sampler.poses.category[index],
        )  # fmt: skip


def _cameras(
    joints: Tensor, ahead: Tensor, within: float, views: int, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cameras around people: K, R, t and picture sizes (N, V, 2). World: y up, floor at 0.

    They stand ``within`` radians of the direction ``ahead`` (N,) from the people.
    """
    n = len(joints)

    around = ahead[:, None] + _uniform(rng, -within, within, n, views)
    away = _uniform(rng, 2.5, 6.0, n, views)
    height = _uniform(rng, 0.6, 2.6, n, views)
    middle = (joints.amin(1) + joints.amax(1)) / 2
    eye = torch.stack([away * around.sin(), height, away * around.cos()], -1)
    eye[..., [0, 2]] += middle[:, None, [0, 2]]
    # Not always in the middle of the picture: by up to a tenth of the distance.
    aim = middle[:, None] + away[..., None] * _uniform(rng, -0.1, 0.1, n, views, 3)
    ahead = torch.nn.functional.normalize(aim - eye, dim=-1)
    up = torch.tensor([0.0, 1.0, 0.0]).expand_as(ahead)
    right = torch.nn.functional.normalize(torch.linalg.cross(ahead, up, dim=-1), dim=-1)
    level = torch.stack([right, torch.linalg.cross(ahead, right, dim=-1), ahead], -2)
    rolled = torch.zeros(n, views, 3)
    rolled[..., 2] = math.radians(1.5) * torch.randn(n, views, generator=rng)
    held = _chance(rng, 0.9, n, 1)  # else by hand
    rolled[..., 2] *= torch.where(held, 1.0, 5.0)
    R = roma.rotvec_to_rotmat(rolled) @ level
    size = torch.tensor([[1280.0, 960.0], [1080.0, 1920.0], [1920.0, 1080.0]])
    size = size[torch.randint(0, 3, (n, 1), generator=rng)].expand(n, views, 2)
    # Focal length so that a standing person fills a third to nine tenths of the shorter side.
    fill = _uniform(rng, 0.35, 0.9, n, views) * size.amin(-1) / 1.75
    focal = (fill * away).clamp(0.5 * size.amax(-1), 3.0 * size.amax(-1))
    K = torch.zeros(n, views, 3, 3)
    K[..., 0, 0] = K[..., 1, 1] = focal
    K[..., :2, 2] = (size - 1) / 2
    K[..., 2, 2] = 1
    return K, R, -(R @ eye[..., None])[..., 0], size


def _project(K: Tensor, R: Tensor, t: Tensor, points: Tensor) -> Tensor:
    cam = points[:, None] @ R.mT + t[:, :, None]
    pixel = cam @ K.mT
    return pixel[..., :2] / pixel[..., 2:].clamp_min(0.1)


def _detect(true: Tensor, size: Tensor, noise: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a detector finds of points (N, V, 25, 2), and how sure it is; noise (N, 1, 1) scales its errors.

    In units of the longer side of the person's box: Gaussian 0.5–2 %; 5 % of the points 5–15 % away; left
    and right limbs exchanged in 2.5 %; 10–20 % of the points dropped; a box over a quarter of the views.
    Confidence falls with a random share of the error, as a detector feels only some of its errors.
    """
    n, v = true.shape[:2]

    box = (true.amax(2) - true.amin(2)).amax(-1)[..., None]  # (N, V, 1)
    sigma = noise * _uniform(rng, 0.005, 0.02, n, v, 1) * box
    offset = sigma[..., None] * torch.randn(n, v, 25, 2, generator=rng)
    far = _chance(rng, 0.05 * noise, n, v, 25)
    way = _uniform(rng, 0, 2 * math.pi, n, v, 25)
    jump = _uniform(rng, 0.05, 0.15, n, v, 25) * box
    offset = offset + (far * jump)[..., None] * torch.stack([way.cos(), way.sin()], -1)
    found = true + offset
    for limb in (_ARMS, _LEGS):
        swap = torch.arange(25)
        for part in limb:
            left, right = BODY_25.index(f"L{part}"), BODY_25.index(f"R{part}")
            swap[left], swap[right] = right, left
        wrong = _chance(rng, 0.025 * noise, n, v, 1)[..., None]
        found = torch.where(wrong, found[:, :, swap], found)
    error = (found - true).norm(dim=-1)
    felt = error * _uniform(rng, 0, 1, n, v, 25) / (0.06 * box)
    sure = _uniform(rng, 0.75, 1.0, n, v, 1) * (-felt).exp() + 0.06 * torch.randn(n, v, 25, generator=rng)
    lost = torch.rand(n, v, 25, generator=rng) < noise * _uniform(rng, 0.1, 0.2, n, v, 1)
    middle = true.gather(2, torch.randint(0, 25, (n, v, 1, 1), generator=rng).expand(n, v, 1, 2))
    half = _uniform(rng, 0.08, 0.25, n, v, 1, 2) * box[..., None]
    covered = ((true - middle).abs() < half).all(-1) & _chance(rng, 0.25 * noise, n, v, 1)
    inside = ((found >= 0) & (found <= size[:, :, None] - 1)).all(-1)
    gone = lost | covered | ~inside
    return found.masked_fill(gone[..., None], torch.nan), sure.clamp(0.05, 1.0).masked_fill(gone, 0)


def _worlds(count: int, rng: torch.Generator) -> Tensor:
    """Rotations (N, 3, 3) from the world with y up to that of a calibration: z up, y down, y up, or any."""
    ups = torch.tensor([[math.pi / 2, 0, 0], [math.pi, 0, 0], [0, 0, 0]])
    kind = torch.randint(0, 4, (count,), generator=rng)
    odd = roma.rotvec_to_rotmat(2 * torch.randn(count, 3, generator=rng))
    upright = roma.rotvec_to_rotmat(ups[kind.clamp_max(2)])
    return torch.where((kind == 3)[:, None, None], odd, upright)
