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
from models.synthetic.cameras import cameras_around
from models.synthetic.detector import blazepose_people, detect_people
from models.synthetic.poses import Poses, Sampler, chance, uniform
from pipeline.batches import TensorBatch, axes
from pipeline.skeleton import BODY_25, DETECTOR_OFFSETS_MM, SMPL_24

BETA_SIGMA: Final = 1.5
_FEET: Final = tuple(name.endswith(("Toe", "Heel")) for name in BODY_25.names)


@dataclass(frozen=True)
class Difficulty:
    """Errors added to the truth, 0 or False being none."""

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
    blazepose: float = 0.0
    """Share of the samples whose detector is BlazePose heavy, which ships, instead of OpenPose."""
    around: float = math.pi
    """The cameras stand within so many radians of the way the person faces."""


TEST: Final = Difficulty()


@dataclass(frozen=True, repr=False)
class Projected(TensorBatch):
    """N people and how V cameras see them. The world of a sample is of its cameras' making."""

    turned: Tensor = axes(f"N {len(SMPL_24)} 3 3")
    """Rotation of every joint, body → world. This and the next four are the truth."""
    betas: Tensor = axes("N B")
    transl: Tensor = axes("N 3")
    joints: Tensor = axes(f"N {len(SMPL_24)} 3")
    """Metres, world."""
    points: Tensor = axes(f"N {len(BODY_25)} 3")
    """Metres, world: the body's own keypoints, without the detector's bias."""
    K: Tensor = axes("N V 3 3")
    R: Tensor = axes("N V 3 3")
    """World → camera, as a calibration says, which may be off."""
    t: Tensor = axes("N V 3")
    true_R: Tensor = axes("N V 3 3")
    true_t: Tensor = axes("N V 3")
    true_focal: Tensor = axes("N V")
    xy_px: Tensor = axes(f"N V {len(BODY_25)} 2")
    """Found, NaN where missing."""
    confidence: Tensor = axes(f"N V {len(BODY_25)}")
    category: Tensor = axes("N")


class Projections:
    """Samples without end from poses and a body. Made on the device where the samples are to be."""

    def __init__(self, poses: Poses, body: KeypointBody, device: torch.device | str = "cpu") -> None:
        self.sampler = Sampler(poses.to(device))
        self.kinematics = GlobalKinematics(body).to(device)
        its = body.with_point_offsets(DETECTOR_OFFSETS_MM["blazepose_33"])
        self.blazepose = (its.points_template - body.points_template).to(device, torch.float32)

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
        yaw[:, 1] = uniform(rng, 0, 2 * math.pi, count)
        rotations[:, 0] = roma.rotvec_to_rotmat(yaw) @ rotations[:, 0]
        betas = (BETA_SIGMA * normal(count, self.kinematics.joints_shapedirs.shape[2])).clamp(-3, 3)
        rest = self.kinematics.pelvis(betas)
        transl = -rest
        transl[:, 1] += self.sampler.poses.height[index]
        turned = global_rotations(rotations)
        joints, points = (x + (rest + transl)[:, None] for x in self.kinematics(turned, betas))
        shown = points
        if d.bias:
            k = points.shape[1]
            sigma = uniform(rng, 0.006, 0.02, count, k, 1) * chance(rng, d.bias, count, 1, 1)
            shown = points + self._carried(sigma * normal(count, k, 3), turned)

        ahead = torch.atan2(rotations[:, 0, 0, 2], rotations[:, 0, 2, 2])
        K, R, t, size = cameras_around(joints, ahead, d.around, views, rng)
        noise = torch.full((count, 1, 1), d.noise)
        if d.easy:
            easier = chance(rng, d.easy, count, 1, 1)
            noise = torch.where(easier, noise * uniform(rng, 0, 1, count, 1, 1), noise)
        xy, confidence = detect_people(_project(K, R, t, shown), size, noise, rng)
        if d.blazepose:
            # Measured on one man: others differ, by a third of it.
            more = 1 + normal(count, 1, 1) / 3
            its = shown + self._carried(more * self.blazepose, turned)
            other = blazepose_people(_project(K, R, t, its), size, noise, rng)
            ships = chance(rng, d.blazepose, count, 1, 1)
            xy = torch.where(ships[..., None], other[0], xy)
            confidence = torch.where(ships, other[1], confidence)

        if d.no_feet:
            lacks = chance(rng, d.no_feet, count, 1, 1) & torch.tensor(_FEET)
            xy, confidence = xy.masked_fill(lacks[..., None], torch.nan), confidence.masked_fill(lacks, 0)

        # What calibration and recording say: another world, and cameras that are a little off.
        world = _worlds(count, rng)
        joints, points = joints @ world.mT, points @ world.mT
        transl = joints[:, 0] - rest
        turned = world[:, None] @ turned
        true_R = R @ world[:, None].mT
        off = d.calibration * math.radians(0.3) * normal(count, views, 3)
        stated_R = roma.rotvec_to_rotmat(off) @ true_R
        centre = -(true_R.mT @ t[..., None])[..., 0] + d.calibration * 0.01 * normal(count, views, 3)
        stated_K = K
        if d.focal:
            stated_K = K.clone()
            factor = (d.focal * normal(count, 1, 1)).exp()
            stated_K[..., [0, 1], [0, 1]] *= torch.where(chance(rng, 0.5, count, 1, 1), factor, 1.0)
        return Projected(
            turned=turned, betas=betas, transl=transl, joints=joints, points=points,
            K=stated_K, R=stated_R, t=-(stated_R @ centre[..., None])[..., 0],
            true_focal=K[..., 0, 0], true_R=true_R, true_t=t,
            xy_px=xy, confidence=confidence, category=self.sampler.poses.category[index],
        )  # fmt: skip

    def _carried(self, offsets: Tensor, turned: Tensor) -> Tensor:
        """Offsets (N, K, 3) in the rest pose → in the pose, of joints turned (N, J, 3, 3)."""
        carried = (self.kinematics.weights @ turned.flatten(2)).view(*offsets.shape[:2], 3, 3)
        return (carried @ offsets[..., None])[..., 0]


def _project(K: Tensor, R: Tensor, t: Tensor, points: Tensor) -> Tensor:
    cam = points[:, None] @ R.mT + t[:, :, None]
    pixel = cam @ K.mT
    return pixel[..., :2] / pixel[..., 2:].clamp_min(0.1)


def _worlds(count: int, rng: torch.Generator) -> Tensor:
    """Rotations (N, 3, 3) from the world with y up to that of a calibration: z up, y down, y up, or any."""
    ups = torch.tensor([[math.pi / 2, 0, 0], [math.pi, 0, 0], [0, 0, 0]])
    kind = torch.randint(0, 4, (count,), generator=rng)
    odd = roma.rotvec_to_rotmat(2 * torch.randn(count, 3, generator=rng))
    upright = roma.rotvec_to_rotmat(ups[kind.clamp_max(2)])
    return torch.where((kind == 3)[:, None, None], odd, upright)
