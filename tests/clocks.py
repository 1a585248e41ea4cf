"""Cameras whose clocks are known: what a detector finds when each films people at times of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from recordings import state, write_people
from scenes import body
from scipy.spatial.transform import Rotation

from models.body import pose_keypoints
from models.geometry.between_frames import between_frames
from models.geometry.synchronisation import Clocks, find_clocks
from models.geometry.unsynchronised import OwnDetections, find_trajectories
from models.synthetic.cameras import ring_rig
from models.synthetic.crowd import make_crowd
from models.synthetic.detections import CrowdDetector, Faults
from models.synthetic.detector import Noise
from models.synthetic.people import animate
from pipeline.array_types import Array
from pipeline.calibrations.pose2sim import write_calibration
from pipeline.cameras import Rig
from pipeline.recording import find_recording
from stages.inspect import inspect

World = Callable[[Array], Array]
"""Keypoints (T, P, 25, 3), metres, at times (T,), seconds."""

RATES = (25, 30, 60, 50)
REACH_S = 4.2


@dataclass(frozen=True)
class Filmed:
    """A recording out of step. Camera v shows offset_s + (1 + drift) t when its own clock reads t."""

    rig: Rig
    """As a calibration has it, not quite right."""
    seen: tuple[OwnDetections, ...]
    offset_s: Array
    drift: Array
    seconds: float

    def clocks(self, *, calibrated: bool = True) -> Clocks:
        rig = self.rig if calibrated else None
        cameras = find_trajectories(rig, self.seen, REACH_S)
        return find_clocks(cameras, self.rig.centres if calibrated else None, REACH_S)

    def errors_s(self, found: Clocks, own_s: float | None = None) -> Array:
        """(V,) by how much the clocks say another moment than the first camera believed does, when each reads
        the middle, or ``own_s``."""
        own = self.seconds / 2 if own_s is None else own_s
        root = found.refused.index(None)
        moment = self.offset_s + (1 + self.drift) * own
        true = (moment - self.offset_s[root]) / (1 + self.drift[root])
        return np.asarray(found.offset_s + (1 + found.drift) * own - true)


def people_at(count: int, seconds: float, seed: int, hertz: int = 60) -> World:
    """People who move about, at any time from 4 s before 0 to 4 s after ``seconds``."""
    people = make_crowd(count, seconds + 8, seed, body())
    time_s = np.arange(0, seconds + 8, 1 / hertz)
    points = []
    for person in people:
        rotations, transl = (torch.from_numpy(x) for x in animate(person, body(), time_s))
        betas = torch.from_numpy(person.betas)
        points.append(pose_keypoints(body().keypoints, rotations, betas, transl)[1].numpy())
    return sampled(np.stack(points, 1), hertz, 4.0)


def sampled(points: Array, hertz: float, before_s: float) -> World:
    """Points (N, P, 25, 3) so many times a second, the first ``before_s`` before 0, at any time."""

    def world(time_s: Array) -> Array:
        at = (time_s + before_s) * hertz
        low = np.floor(at).astype(int)
        share = (at - low)[:, None, None, None]
        return np.asarray(points[low] * (1 - share) + points[low + 1] * share)

    return world


def treadmill(seed: int) -> World:
    """Somebody whose movement repeats every 2.24 s."""
    half_s = 1.12
    steps = people_at(1, 20, seed)(np.linspace(0, half_s, 121))
    forth = np.concatenate([steps, steps[::-1]])  # there and back: it fits on to itself
    return sampled(np.tile(forth, (16, 1, 1, 1)), len(forth) / (2 * half_s), 4.0)


def swaying(amplitude_m: float, seed: int) -> World:
    """Somebody who stands still but for a slow sway."""
    stance = people_at(1, 2.0, seed)(np.array([0.0]))
    rng = np.random.default_rng(seed)
    rate, phase, way = rng.uniform(0.15, 0.9, 6), rng.uniform(0, 6, 6), rng.normal(size=(6, 3))
    way /= np.linalg.norm(way, axis=1, keepdims=True)

    def world(time_s: Array) -> Array:
        swings = np.sin(2 * np.pi * rate * time_s[:, None] + phase) @ way * amplitude_m / np.sqrt(3)
        return np.asarray(stance + swings[:, None, None] * stance[..., 2:] / stance[..., 2].max())

    return world


def film(
    world: World,
    seconds: float,
    seed: int,
    rates: Sequence[float] = RATES,
    *,
    offset_s: Array | None = None,
    drift: Array | None = None,
    reach_s: float = 2.0,
    faults: Faults | None = None,
) -> Filmed:
    """Film people with cameras on a ring: 3 px of noise, 5 % outliers, 10 % missing, a calibration that is
    off by 0.1° and 1 cm. Offsets up to ``reach_s`` where none are given, and no drift."""
    rng = np.random.default_rng([seed, 3])
    views = len(rates)
    if offset_s is None:
        offset_s = np.concatenate([[0.0], rng.uniform(-reach_s, reach_s, views - 1)])
    drift = np.zeros(views) if drift is None else drift
    extent = world(np.linspace(0, seconds, 100)).reshape(-1, 3)
    low, high = extent.min(0), extent.max(0)
    corners = np.array(
        [[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (0, high[2])]
    )
    rig = ring_rig(views, (960, 720), corners, seed)
    bodies = world(np.linspace(0, seconds, 8)).reshape(-1, 25, 3)
    seen = []
    for v, rate in enumerate(rates):
        own = np.arange(int(seconds * rate)) / rate
        one = rig.select([rig.names[v]])
        noise = Noise(3.0, 0.05, 0.1, 0.03, 100 * seed + v)
        detector = CrowdDetector(one, noise, faults or Faults(), bodies)
        found = detector.find(world(offset_s[v] + (1 + drift[v]) * own), 0).points[0]
        seen.append(OwnDetections(own, one.undistort(0, found[..., :2]), found[..., 2]))
    return Filmed(_not_quite_right(rig, seed), tuple(seen), offset_s, drift, seconds)


def write_filmed(folder: Path, filmed: Filmed, fps: int = 30) -> Path:
    """A recording, all of whose cameras have one rate, as files without videos."""
    for name, one in zip(filmed.rig.names, filmed.seen, strict=True):
        points = np.concatenate([one.xy_px, one.confidence[..., None]], -1)
        for t, people in enumerate(points):
            write_people(folder / "keypoints" / name, name, t, list(people))
    # What was seen is undistorted already.
    write_calibration(replace(filmed.rig, dist=np.zeros_like(filmed.rig.dist)), folder / "calibration.toml")
    state(folder, f"fps: {fps}")
    return folder


def write_shifted(source: Path, folder: Path, late_s: Array) -> Path:
    """The keypoints and the calibration of a recording in step, as if each camera had been started
    ``late_s`` (V,) after one that is not there: interpolated between its frames."""
    recording = inspect(find_recording(source))
    last = len(recording) - 1
    for v, (name, late) in enumerate(zip(recording.rig.names, late_s - late_s.min(), strict=True)):
        at = late * float(recording.timeline.rate) + np.arange(last + 1)
        at = at[at <= last]
        near = np.round(at).astype(np.int64)
        around = np.full((3, len(recording.rig), len(at)), -1)
        around[:, v] = np.clip(near + np.array([-1, 0, 1])[:, None], 0, last)
        shown = np.split(recording.people_in(np.concatenate([*around], 1))[v], 3)
        people = between_frames(*shown, at - near, np.ones((2, len(at))))
        for t, there in enumerate(people):
            found = (there[..., 2] > 0).any(-1)
            write_people(folder / "keypoints" / name, name, t, list(there[found]))
    write_calibration(recording.rig, folder / "calibration.toml")
    state(folder, f"fps: {float(recording.timeline.rate)}")
    return folder


def _not_quite_right(rig: Rig, seed: int, degrees: float = 0.1, metres: float = 0.01) -> Rig:
    """The rig with every camera turned and moved a little."""
    rng = np.random.default_rng([seed, 5])
    turn, move = rng.normal(size=(2, len(rig), 3))
    turn *= np.radians(degrees) / np.linalg.norm(turn, axis=1, keepdims=True)
    move *= metres / np.linalg.norm(move, axis=1, keepdims=True)
    rotation = Rotation.from_rotvec(turn).as_matrix() @ rig.R
    return replace(rig, R=rotation, t=-np.einsum("vij,vj->vi", rotation, rig.centres + move))
