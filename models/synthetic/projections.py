"""Training samples of keypoints: bodies in random poses before random cameras, with a detector's errors.

All randomness is from the given generator: equal states give equal samples.
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
from models.synthetic.detector import simulate_blazepose, simulate_openpose
from models.synthetic.poses import Poses, Sampler, chance, uniform
from pipeline.batches import TensorBatch, axes
from pipeline.skeleton import BODY_25, DETECTOR_OFFSETS_MM, SMPL_24

BETA_SIGMA: Final = 1.5
_FEET: Final = tuple(name.endswith(("Toe", "Heel")) for name in BODY_25.names)


@dataclass(frozen=True)
class Difficulty:
    """Errors of the samples; 0 or False is none."""

    noise: float = 1.0
    """Scale of the detector's errors."""
    easy: float = 0.0
    """Share of samples with ``noise`` scaled by a random number from 0 to 1."""
    varied_poses: bool = False
    """True for variations of the captured poses, see ``Sampler``."""
    calibration: float = 0.0
    """Scale of the calibration's errors: 0.3 degrees about each axis and 1 cm along it."""
    focal: float = 0.0
    """Standard deviation of the focal length's logarithm in half of the samples."""
    bias: float = 0.0
    """Share of samples whose keypoints are defined elsewhere on the body, by 6–20 mm (standard deviation)."""
    no_feet: float = 0.0
    """Share of samples of a detector without feet, such as COCO's."""
    blazepose: float = 0.0
    """Share of samples of BlazePose heavy, the detector that ships, instead of OpenPose."""
    around: float = math.pi
    """Largest angle between the person's heading and the bearing of a camera, radians."""


TEST: Final = Difficulty()


@dataclass(frozen=True, repr=False)
class Projected(TensorBatch):
    """N samples of a person and V cameras, each in the world of its own calibration."""

    world_rotations: Tensor = axes(f"N {len(SMPL_24)} 3 3")
    """True rotation of every joint, body → world. ``betas`` to ``points`` are true, too."""
    betas: Tensor = axes("N B")
    transl: Tensor = axes("N 3")
    joints: Tensor = axes(f"N {len(SMPL_24)} 3")
    """Metres, world."""
    points: Tensor = axes(f"N {len(BODY_25)} 3")
    """Metres, world: keypoints of the body, without the detector's bias."""
    K: Tensor = axes("N V 3 3")
    R: Tensor = axes("N V 3 3")
    """World → camera; K, R and t have the calibration's errors."""
    t: Tensor = axes("N V 3")
    true_R: Tensor = axes("N V 3 3")
    true_t: Tensor = axes("N V 3")
    true_focal: Tensor = axes("N V")
    xy_px: Tensor = axes(f"N V {len(BODY_25)} 2")
    """Detected, undistorted pixels; NaN where missing."""
    confidence: Tensor = axes(f"N V {len(BODY_25)}")
    category: Tensor = axes("N")


class Projections:
    """Source of random samples from poses and a body, on a device."""

    def __init__(self, poses: Poses, body: KeypointBody, device: torch.device | str = "cpu") -> None:
        self.sampler = Sampler(poses.to(device))
        self.kinematics = GlobalKinematics(body).to(device)
        shifted = body.with_point_offsets(DETECTOR_OFFSETS_MM["blazepose_33"])
        offsets = shifted.points_template - body.points_template
        self.blazepose_offsets = offsets.to(device, torch.float32)

    def sample(self, count: int, views: int, d: Difficulty, rng: torch.Generator) -> Projected:
        """Draw ``count`` people before ``views`` cameras each, on the generator's device."""
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
        betas = (BETA_SIGMA * normal(count, len(self.kinematics.arms_shapedirs))).clamp(-3, 3)
        rest = self.kinematics.pelvis(betas)
        transl = -rest
        transl[:, 1] += self.sampler.poses.height[index]
        world_rotations = global_rotations(rotations)
        joints, points = (x + (rest + transl)[:, None] for x in self.kinematics(world_rotations, betas))
        detected_points = points
        if d.bias:
            k = points.shape[1]
            sigma = uniform(rng, 0.006, 0.02, count, k, 1) * chance(rng, d.bias, count, 1, 1)
            detected_points = points + self._posed_offsets(sigma * normal(count, k, 3), world_rotations)

        ahead = torch.atan2(rotations[:, 0, 0, 2], rotations[:, 0, 2, 2])
        K, R, t, size = cameras_around(joints, ahead, d.around, views, rng)
        noise = torch.full((count, 1, 1), d.noise)
        if d.easy:
            easier = chance(rng, d.easy, count, 1, 1)
            noise = torch.where(easier, noise * uniform(rng, 0, 1, count, 1, 1), noise)
        xy, confidence = simulate_openpose(_project(K, R, t, detected_points), size, noise, rng)
        if d.blazepose:
            # The offsets are of one man; those of others are assumed to vary by a third.
            scale = 1 + normal(count, 1, 1) / 3
            offset_points = detected_points + self._posed_offsets(
                scale * self.blazepose_offsets, world_rotations
            )
            blazepose = simulate_blazepose(_project(K, R, t, offset_points), size, noise, rng)
            is_blazepose = chance(rng, d.blazepose, count, 1, 1)
            xy = torch.where(is_blazepose[..., None], blazepose[0], xy)
            confidence = torch.where(is_blazepose, blazepose[1], confidence)

        if d.no_feet:
            lacks = chance(rng, d.no_feet, count, 1, 1) & torch.tensor(_FEET)
            xy, confidence = xy.masked_fill(lacks[..., None], torch.nan), confidence.masked_fill(lacks, 0)

        # The calibration's world and errors.
        world = _worlds(count, rng)
        joints, points = joints @ world.mT, points @ world.mT
        transl = joints[:, 0] - rest
        world_rotations = world[:, None] @ world_rotations
        true_R = R @ world[:, None].mT
        rotation_error = d.calibration * math.radians(0.3) * normal(count, views, 3)
        stated_R = roma.rotvec_to_rotmat(rotation_error) @ true_R
        centre = -(true_R.mT @ t[..., None])[..., 0] + d.calibration * 0.01 * normal(count, views, 3)
        stated_K = K
        if d.focal:
            stated_K = K.clone()
            factor = (d.focal * normal(count, 1, 1)).exp()
            stated_K[..., [0, 1], [0, 1]] *= torch.where(chance(rng, 0.5, count, 1, 1), factor, 1.0)
        return Projected(
            world_rotations=world_rotations, betas=betas, transl=transl, joints=joints, points=points,
            K=stated_K, R=stated_R, t=-(stated_R @ centre[..., None])[..., 0],
            true_focal=K[..., 0, 0], true_R=true_R, true_t=t,
            xy_px=xy, confidence=confidence, category=self.sampler.poses.category[index],
        )  # fmt: skip

    def _posed_offsets(self, offsets: Tensor, rotations: Tensor) -> Tensor:
        """Offsets (N, K, 3) in the rest pose → in the pose of joint rotations (N, J, 3, 3), body → world."""
        blended = (self.kinematics.weights @ rotations.flatten(2)).view(*offsets.shape[:2], 3, 3)
        return (blended @ offsets[..., None])[..., 0]


def _project(K: Tensor, R: Tensor, t: Tensor, points: Tensor) -> Tensor:
    """World points (N, K, 3) → pixels (N, V, K, 2)."""
    cam = points[:, None] @ R.mT + t[:, :, None]
    pixel = cam @ K.mT
    return pixel[..., :2] / pixel[..., 2:].clamp_min(0.1)


def _worlds(count: int, rng: torch.Generator) -> Tensor:
    """Random rotations (N, 3, 3) from a world with y up to a calibration's: z up, y down, y up, or any."""
    rotvecs = torch.tensor([[math.pi / 2, 0, 0], [math.pi, 0, 0], [0, 0, 0]])
    kind = torch.randint(0, 4, (count,), generator=rng)
    any_rotation = roma.rotvec_to_rotmat(2 * torch.randn(count, 3, generator=rng))
    usual = roma.rotvec_to_rotmat(rotvecs[kind.clamp_max(2)])
    return torch.where((kind == 3)[:, None, None], any_rotation, usual)
