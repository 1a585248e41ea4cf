"""Synthetic cameras: a calibrated ring around people, and random ones around training samples."""

from __future__ import annotations

import math

import numpy as np
import roma
import torch
from torch import Tensor

from models.synthetic.poses import chance, uniform
from pipeline.array_types import Array
from pipeline.cameras import Rig, distort


def look_at(ahead: Array) -> Array:
    """Rotations (..., 3, 3), world (z up) → camera, of level cameras along unit vectors ``ahead``."""
    right = np.cross(ahead, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    return np.stack([right, np.cross(ahead, right), ahead], -2)


def ring_rig(cameras: int, size: tuple[int, int], corners: Array, seed: int) -> Rig:
    """Cameras on an uneven ring with a region in their pictures. World: z up, floor at 0.

    Args:
        cameras: number of cameras.
        size: picture width and height, pixels.
        corners: (N, 3) of the region, metres, world.
        seed: equal seeds give equal rigs.
    """
    rng = np.random.default_rng([seed, 3])
    extent = np.array(size, np.float64)
    middle = (corners.min(0) + corners.max(0)) / 2
    radius = float(np.linalg.norm((corners - middle)[:, :2], axis=1).max())
    k, dist, rotation, translation = [], [], [], []
    for v in range(cameras):
        bearing = 2 * np.pi * (v + rng.uniform(-0.16, 0.16)) / cameras + 0.4
        distance = radius + rng.uniform(2.2, 3.2)
        offset = distance * np.array([np.cos(bearing), np.sin(bearing)])
        eye = np.array([*(middle[:2] + offset), rng.uniform(1.0, 2.4)])
        tilt = [rng.uniform(-2, 2)]
        roll = roma.euler_to_rotmat("z", tilt, degrees=True, dtype=torch.float64).numpy()
        lens = np.array(
            [rng.uniform(-0.12, -0.04), rng.uniform(0.01, 0.06), *rng.uniform(-1e-3, 1e-3, 2), *np.zeros(4)]
        )
        centre = extent * rng.uniform(0.485, 0.515, 2) - 0.5
        ahead = middle - eye
        for _ in range(4):  # the middle of the region's picture is not that of the region
            ahead /= np.linalg.norm(ahead)
            r = roll @ look_at(ahead)
            x = (corners - eye) @ r.T
            n = x[:, :2] / x[:, 2:]
            ahead = r.T @ np.array([*(n.min(0) + n.max(0)) / 2, 1.0])
        # The longest focal length that leaves 2 % of the picture free on each side.
        n = distort(n, lens)
        free_px = np.where(n > 0, 0.98 * extent - 1 - centre, centre - 0.02 * extent)
        focal = float((free_px / np.maximum(np.abs(n), 1e-9)).min())
        fx, fy = focal * rng.uniform(0.98, 1.0), focal * rng.uniform(0.98, 1.0)
        k.append([[fx, 0, centre[0]], [0, fy, centre[1]], [0, 0, 1]])
        dist.append(lens)
        rotation.append(r)
        translation.append(-r @ eye)
    return Rig(
        tuple(f"cam{v + 1:02d}" for v in range(cameras)),
        np.array(k),
        np.array(dist),
        np.array(rotation),
        np.array(translation),
        np.array([size] * cameras),
    )


def cameras_around(
    joints: Tensor, ahead: Tensor, within: float, views: int, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random cameras around N people: K, R, t and picture sizes (N, V, 2). World: y up, floor at 0.

    joints: (N, J, 3) metres. ahead, within: bearing (N,) of the cameras and its largest deviation, radians.
    """
    n = len(joints)
    bearing = ahead[:, None] + uniform(rng, -within, within, n, views)
    distance = uniform(rng, 2.5, 6.0, n, views)
    height = uniform(rng, 0.6, 2.6, n, views)
    middle = (joints.amin(1) + joints.amax(1)) / 2
    eye = torch.stack([distance * bearing.sin(), height, distance * bearing.cos()], -1)
    eye[..., [0, 2]] += middle[:, None, [0, 2]]
    # Off the middle of the picture by up to a tenth of the distance.
    aim = middle[:, None] + distance[..., None] * uniform(rng, -0.1, 0.1, n, views, 3)
    axis = torch.nn.functional.normalize(aim - eye, dim=-1)
    up = torch.tensor([0.0, 1.0, 0.0]).expand_as(axis)
    right = torch.nn.functional.normalize(torch.linalg.cross(axis, up, dim=-1), dim=-1)
    level = torch.stack([right, torch.linalg.cross(axis, right, dim=-1), axis], -2)
    roll = torch.zeros(n, views, 3)
    roll[..., 2] = math.radians(1.5) * torch.randn(n, views, generator=rng)
    on_tripod = chance(rng, 0.9, n, 1)  # else hand-held
    roll[..., 2] *= torch.where(on_tripod, 1.0, 5.0)
    R = roma.rotvec_to_rotmat(roll) @ level
    size = torch.tensor([[1280.0, 960.0], [1080.0, 1920.0], [1920.0, 1080.0]])
    size = size[torch.randint(0, 3, (n, 1), generator=rng)].expand(n, views, 2)
    # A standing person fills 35 to 90 % of the shorter side.
    fill = uniform(rng, 0.35, 0.9, n, views) * size.amin(-1) / 1.75
    focal = (fill * distance).clamp(0.5 * size.amax(-1), 3.0 * size.amax(-1))
    K = torch.zeros(n, views, 3, 3)
    K[..., 0, 0] = K[..., 1, 1] = focal
    K[..., :2, 2] = (size - 1) / 2
    K[..., 2, 2] = 1
    return K, R, -(R @ eye[..., None])[..., 0], size
