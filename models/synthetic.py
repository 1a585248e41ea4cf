"""Cameras, detections and pictures made from a seed: recordings whose truth is known.

Pure functions; ``models/motion.py`` makes the people. The world is in metres, Z up, the floor at z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from pipeline.cameras import Rig, distort

Array = NDArray[np.float64]


def ring_rig(cameras: int, size: tuple[int, int], corners: Array, seed: int) -> Rig:
    """Cameras on an uneven ring that look at a region and have all of it in the picture.

    Args:
        cameras: how many.
        size: picture width and height, pixels.
        corners: (N, 3) of the region, metres, world.
        seed: the same seed gives the same rig.
    """
    rng = np.random.default_rng([seed, 3])
    extent = np.array(size, np.float64)
    middle = (corners.min(0) + corners.max(0)) / 2
    radius = float(np.linalg.norm((corners - middle)[:, :2], axis=1).max())
    k, dist, rotation, translation = [], [], [], []
    for v in range(cameras):
        bearing = 2 * np.pi * (v + rng.uniform(-0.16, 0.16)) / cameras + 0.4
        away = radius + rng.uniform(2.2, 3.2)
        eye = np.array(
            [*(middle[:2] + away * np.array([np.cos(bearing), np.sin(bearing)])), rng.uniform(1.0, 2.4)]
        )
        tilt = [rng.uniform(-2, 2)]
        roll = roma.euler_to_rotmat("z", tilt, degrees=True, dtype=torch.float64).numpy()
        lens = np.array(
            [rng.uniform(-0.12, -0.04), rng.uniform(0.01, 0.06), *rng.uniform(-1e-3, 1e-3, 2), *np.zeros(4)]
        )
        centre = extent * rng.uniform(0.485, 0.515, 2) - 0.5
        ahead = middle - eye
        for _ in range(4):  # towards the middle of what is seen, which is not the middle of the region
            ahead /= np.linalg.norm(ahead)
            right = np.cross(ahead, [0.0, 0.0, 1.0])
            right /= np.linalg.norm(right)
            r = roll @ np.stack([right, np.cross(ahead, right), ahead])
            x = (corners - eye) @ r.T
            n = x[:, :2] / x[:, 2:]
            ahead = r.T @ np.array([*(n.min(0) + n.max(0)) / 2, 1.0])
        # The longest focal length that leaves 2 % of the picture free on each side.
        n = distort(n, lens)
        room = np.where(n > 0, 0.98 * extent - 1 - centre, centre - 0.02 * extent)
        focal = float((room / np.maximum(np.abs(n), 1e-9)).min())
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


@dataclass(frozen=True)
class Noise:
    """What a keypoint detector does to the truth."""

    sigma_px: float
    """Standard deviation of each coordinate, pixels of the picture."""
    outliers: float
    """Share of the points that are found somewhere else, 40 to 120 px away."""
    missing: float
    """Share of the points that are not found."""
    gaps: float
    """Share of the frames in which a camera finds nobody, in runs."""
    seed: int


_GAP_BLOCK: Final = 75
"""Frames in which each camera has one gap."""


def detect(true_px: Array, size: NDArray[np.int64], start: int, noise: Noise) -> Array:
    """What a detector would find of J points, from where they are in the pictures.

    Args:
        true_px: (V, T, P, J, 2) pixels of the video frame; NaN where there is none.
        size: (V, 2) picture width and height, pixels.
        start: number of the first frame: a frame's noise depends on the seed and its number alone.
        noise: how much of what.

    Returns:
        (V, T, P, J, 3) x, y and confidence; a point that is missing or outside the picture is NaN, NaN, 0.
        The confidence falls with a random share of the error, as a detector feels only some of its errors.
    """
    found = np.concatenate([true_px, np.ones((*true_px.shape[:-1], 1))], -1)
    for i in range(true_px.shape[1]):
        rng = np.random.default_rng([noise.seed, 4, start + i])
        shape = (true_px.shape[0], *true_px.shape[2:-1])
        offset = noise.sigma_px * rng.normal(size=(*shape, 2))
        away, way = rng.uniform(40, 120, shape), rng.uniform(0, 2 * np.pi, shape)
        jump = (away * np.stack([np.cos(way), np.sin(way)])).transpose(*range(1, len(shape) + 1), 0)
        offset = np.where((rng.random(shape) < noise.outliers)[..., None], jump, offset)
        felt = np.linalg.norm(offset, axis=-1) * rng.uniform(0, 1, shape)
        confidence = np.clip(0.88 * np.exp(-felt / 40) + 0.06 * rng.normal(size=shape), 0.05, 1.0)
        lost = rng.random(shape) < noise.missing
        lost |= _in_gap(len(size), start + i, noise)[:, None, None]
        found[:, i, ..., :2] += offset
        found[:, i, ..., 2] = np.where(lost, 0.0, confidence)
    xy, border = found[..., :2], size[:, None, None, None] - 0.5
    with np.errstate(invalid="ignore"):
        inside = ((xy >= -0.5) & (xy < border)).all(-1) & (found[..., 2] > 0)
    found[~inside] = np.nan, np.nan, 0.0
    return found


def _in_gap(views: int, frame: int, noise: Noise) -> NDArray[np.bool_]:
    """(V,) which cameras find nobody in this frame: one run of frames in every block, a camera at a time."""
    block, i = divmod(frame, _GAP_BLOCK)
    rng = np.random.default_rng([noise.seed, 5, block])
    length = np.round(noise.gaps * _GAP_BLOCK * rng.uniform(0.6, 1.4, views))
    begin = np.floor(rng.uniform(0, 1, views) * (_GAP_BLOCK - length + 1))
    return np.asarray((i >= begin) & (i < begin + length))


def backdrop(rig: Rig, view: int) -> NDArray[np.uint8]:
    """An empty round room as a camera sees it, (H, W, 3) RGB, with half-metre tiles on the floor.

    The x axis of the world is red on the floor and the y axis green. Drawn pixel by pixel through the
    camera's lens, so that lines are where the calibration says.
    """
    w, h = (int(x) for x in rig.size[view])
    u, v = np.meshgrid(np.arange(w, dtype=np.float64), np.arange(h, dtype=np.float64))
    ideal = rig.undistort(view, np.stack([u, v], -1))
    rays = np.concatenate([ideal, np.ones((h, w, 1))], -1) @ np.linalg.inv(rig.K[view]).T @ rig.R[view]
    eye = rig.centres[view]
    down = -rays[..., 2]
    with np.errstate(divide="ignore"):
        reach = np.where(down > 1e-6, eye[2] / down, np.inf)
    # The wall is a cylinder around the origin, with every camera inside.
    room = max(7.0, 1.3 * float(np.linalg.norm(rig.centres[:, :2], axis=1).max()))
    a = np.maximum(np.square(rays[..., :2]).sum(-1), 1e-12)
    b = rays[..., :2] @ eye[:2]
    wall = (-b + np.sqrt(b * b + a * (room * room - eye[:2] @ eye[:2]))) / a
    on_floor = reach < wall
    hit = eye + np.where(on_floor, reach, wall)[..., None] * rays
    x, y, z = np.moveaxis(hit, -1, 0)

    def line(at: Array, spacing: float, width: float) -> Array:
        """Cover (H, W, 1) of lines at the multiples of ``spacing``, softened over a pixel's size there."""
        pixel = np.hypot(*np.gradient(at)) + 1e-6
        off = np.abs(at - spacing * np.round(at / spacing))
        cover = np.clip((width / 2 - off) / pixel + 0.5, 0, 1) * np.minimum(1, width / pixel)
        return np.asarray(cover)[..., None]

    tile = (np.floor(x / 0.5) + np.floor(y / 0.5)) % 2
    floor = np.array([176, 170, 160]) + 10 * tile[..., None]
    lines = np.maximum(line(x, 0.5, 0.015), line(y, 0.5, 0.015))
    floor = floor + lines * (np.array([120, 116, 110]) - floor)
    for at, colour in ((y, (178, 70, 64)), (x, (76, 140, 76))):
        floor = floor + line(at, 2 * room, 0.03) * (np.array(colour) - floor)
    far = np.clip((np.hypot(x, y) / room - 0.35) / 0.65, 0, 1)[..., None]
    floor = floor + far * (np.array([150, 150, 152]) - floor)
    up = np.clip(z / 4.0, 0, 1)[..., None]
    above = np.array([142, 148, 158]) + up * (np.array([206, 212, 222]) - np.array([142, 148, 158]))
    picture = np.where(on_floor[..., None], floor, above)
    return np.asarray(np.clip(picture, 0, 255).astype(np.uint8))
