"""Several people at close range whose places are known, and what a detector finds of them, without files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from models.body import load_body, pose_keypoints
from models.synthetic.cameras import look_at, ring_rig
from models.synthetic.crowd import make_crowd
from models.synthetic.detections import CrowdDetector, Faults
from models.synthetic.detector import Noise
from models.synthetic.people import animate
from pipeline.batches import DetectionBatch
from pipeline.cameras import Rig
from pipeline.skeleton import BODY_25

USUAL = Faults(exchanged=0.02, split=0.03, phantoms=0.1, static_phantoms=1)
"""Errors about people that detectors make in easy pictures, too."""


@dataclass(frozen=True)
class Crowd:
    """A recording of T frames by V cameras."""

    rig: Rig
    rate: Fraction
    world: np.ndarray
    """(T, P, 25, 3) metres, NaN who is not there."""
    points: np.ndarray
    """(V, T, D, 25, 3) detections: x, y in image px, confidence; NaN, NaN, 0 where missing."""
    person: np.ndarray
    """(V, T, D) whom each shows, −1 for nobody."""

    def batches(self, window: int = 24) -> Iterator[DetectionBatch]:
        """The detections as the stages take them."""
        time_s = np.arange(self.points.shape[1]) / float(self.rate)
        for a in range(0, len(time_s), window):
            part = torch.from_numpy(self.points[:, a : a + window].astype(np.float32))
            clock = np.tile(time_s[a : a + window], (len(self.rig), 1))
            yield DetectionBatch(a, self.rate, torch.from_numpy(clock), part[..., :2], part[..., 2])


def film(world: np.ndarray, cameras: int, rate: Fraction, noise: Noise, faults: Faults = USUAL) -> Crowd:
    """Detections of people ``world`` (T, P, 25, 3) before a ring of cameras, all of the noise's seed."""
    low, high = np.nanmin(world, (0, 1, 2)), np.nanmax(world, (0, 1, 2))
    corners = np.array(
        [[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (0, high[2])]
    )
    rig = ring_rig(cameras, (960, 720), corners, noise.seed)
    bodies = world[:: max(1, len(world) // 8)].reshape(-1, *world.shape[2:])
    bodies = bodies[np.isfinite(bodies).all((1, 2))]
    found = CrowdDetector(rig, noise, faults, bodies).find(world, 0)
    return Crowd(rig, rate, world, found.points, found.person)


def walkers(
    people: int, cameras: int, seconds: float, seed: int = 0, noise: Noise | None = None, leaving: int = 0
) -> Crowd:
    """The people of ``synth`` at 30 fps, who walk among each other."""
    body, rate = load_body(), Fraction(30)
    time_s = np.arange(round(seconds * rate)) / float(rate)
    world = []
    for person in make_crowd(people, seconds, seed, body, leaving):
        pose = (torch.from_numpy(x) for x in animate(person, body, time_s))
        rotations, transl = pose
        betas = torch.from_numpy(person.betas)
        points = pose_keypoints(body.keypoints, rotations, betas, transl)[1].numpy()
        world.append(np.where(person.present(time_s)[:, None, None], points, np.nan))
    return film(np.stack(world, 1), cameras, rate, noise or Noise(3, 0.05, 0.1, 0.03, seed))


def along_y(views: int = 1) -> Rig:
    """Cameras at the origin, 1.2 m high, that look along y."""
    rotation = np.tile(look_at(np.array([0.0, 1, 0])), (views, 1, 1))
    k = np.tile([[600.0, 0, 500], [0, 600, 500], [0, 0, 1]], (views, 1, 1))
    eye = np.array([0, 0, 1.2])
    size = np.tile([1000, 1000], (views, 1))
    names = tuple(f"c{v}" for v in range(views))
    return Rig(names, k, np.zeros((views, 8)), rotation, -rotation @ eye, size)


def stick(x: float, y: float) -> np.ndarray:
    """(25, 3) somebody who stands at (x, y) as a post 1.6 m high, 0.3 m wide at shoulders and hips."""
    height = {
        "Nose": 1.55, "Eye": 1.6, "Ear": 1.58, "Neck": 1.4, "Shoulder": 1.4, "Elbow": 1.15, "Wrist": 0.95,
        "Hip": 0.9, "Knee": 0.5, "Ankle": 0.1, "Toe": 0.02, "Heel": 0.02,
    }  # fmt: skip
    points = np.zeros((25, 3))
    for k, name in enumerate(BODY_25.names):
        part = next(p for p in height if name.endswith(p))
        aside = 0.15 if name[0] == "L" else -0.15 if name[0] == "R" else 0.0
        points[k] = x + aside, y, height[part]
    return points
