"""Recordings of a jointed figure whose motion is known, written as the files that users have."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from scipy.spatial.transform import Rotation

from pipeline.array_types import Array
from pipeline.calibrations.pose2sim import write_calibration
from pipeline.cameras import Rig
from pipeline.recording import Recording
from pipeline.skeleton import POINT_ORDERS
from pipeline.video import VideoWriter

SHARED = Path(__file__).parents[2] / "shared"
BALANCING = SHARED / "data" / "balancing"


def ring(views: int, *, radius: float = 4.0, size: tuple[int, int] = (1280, 720)) -> Rig:
    """Cameras around the world's origin, z up, with lens distortion and an off-centre principal point."""
    angle = 1.9 * np.pi * np.arange(views) / views + 0.3  # no two cameras face each other
    centre = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(views, 1.6)], -1)
    forward = np.array([0, 0, 0.9]) - centre
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    rotation = np.stack([right, np.cross(forward, right), forward], 1)
    w, h = size
    k = np.array([[0.8 * w, 0, 0.51 * w], [0, 0.81 * w, 0.48 * h], [0, 0, 1]])
    dist = np.array([-0.08, 0.03, 0.001, -0.001, 0.002, 0, 0, 0])
    return Rig(
        tuple(f"cam{i + 1:02d}" for i in range(views)),
        np.tile(k, (views, 1, 1)),
        np.tile(dist, (views, 1)),
        rotation,
        -np.einsum("vij,vj->vi", rotation, centre),
        np.tile(np.array(size), (views, 1)),
    )


def figure(time_s: Array, at: tuple[float, float] = (0.0, 0.0), phase: float = 0.0) -> dict[str, Array]:
    """Points (T, 3) by name, metres, z up: someone who walks on the spot, sways and swings arms and legs."""
    t = 2 * np.pi * time_s + phase

    def turned(vector: tuple[float, float, float], angle: Array) -> Array:
        return np.asarray(Rotation.from_rotvec(angle[:, None] * [0.0, 1.0, 0.0]).apply(vector))

    def fixed(x: float, y: float, z: float) -> Array:
        return np.tile([x, y, z], (len(t), 1))

    hip = fixed(*at, 0.95) + np.stack(
        [0.1 * np.sin(0.7 * t), 0.15 * np.cos(0.5 * t), 0.03 * np.sin(2 * t)], -1
    )
    p = {"MidHip": hip, "Neck": hip + turned((0, 0, 0.5), 0.15 * np.sin(t))}
    p["Nose"] = p["Neck"] + fixed(0.1, 0, 0.17)
    p["Head"], p["UpperNeck"] = p["Neck"] + fixed(0, 0, 0.3), p["Neck"] + fixed(0, 0, 0.06)
    p["Chest"] = (p["Neck"] + hip) / 2
    p |= {f"Face{i}": p["Nose"] + fixed(0, 0.002 * i - 0.07, 0.001 * i - 0.08) for i in range(68)}
    for side, y in (("L", 1.0), ("R", -1.0)):
        swing = 0.6 * np.sin(t + (0 if y > 0 else np.pi))
        p[f"{side}Eye"] = p["Nose"] + fixed(-0.02, 0.03 * y, 0.03)
        p[f"{side}Ear"] = p["Nose"] + fixed(-0.1, 0.07 * y, 0.02)
        p[f"{side}EyeInner"] = p["Nose"] + fixed(-0.02, 0.02 * y, 0.03)
        p[f"{side}EyeOuter"] = p["Nose"] + fixed(-0.02, 0.04 * y, 0.03)
        p[f"{side}Mouth"] = p["Nose"] + fixed(-0.02, 0.03 * y, -0.03)
        p[f"{side}Shoulder"] = p["Neck"] + fixed(0, 0.19 * y, -0.02)
        p[f"{side}Elbow"] = p[f"{side}Shoulder"] + turned((0, 0.05 * y, -0.28), swing)
        p[f"{side}Wrist"] = p[f"{side}Elbow"] + turned((0, 0, -0.25), swing - 0.7)
        hand = p[f"{side}Wrist"]
        p |= {f"{side}Hand{i}": hand + turned((0, 0, -0.004 * i), swing - 0.7) for i in range(21)}
        for finger, down in (("Pinky", -0.07), ("Index", -0.08), ("Thumb", -0.04)):
            p[f"{side}{finger}"] = p[f"{side}Wrist"] + turned((0, 0, down), swing - 0.7)
        p[f"{side}Hip"] = hip + fixed(0, 0.1 * y, 0)
        p[f"{side}Knee"] = p[f"{side}Hip"] + turned((0, 0, -0.42), -swing)
        p[f"{side}Ankle"] = p[f"{side}Knee"] + turned((0, 0, -0.4), 0.4 - swing)
        p[f"{side}Heel"] = p[f"{side}Ankle"] + fixed(-0.05, 0, -0.05)
        p[f"{side}BigToe"] = p[f"{side}Ankle"] + fixed(0.17, -0.02 * y, -0.05)
        p[f"{side}SmallToe"] = p[f"{side}Ankle"] + fixed(0.14, 0.06 * y, -0.05)
    return p


def seen(
    rig: Rig, body: Mapping[str, Array], order: str = "body_25", noise_px: float = 1.0, seed: int = 0
) -> Array:
    """A figure as a detector gives it: (V, T, K, 3) of x, y in the distorted picture, and confidence."""
    points = np.stack([body[name] for name in POINT_ORDERS[order]], 1)
    rng = np.random.default_rng(seed)
    xy = rig.project(points, distorted=True) + rng.normal(0, noise_px, (len(rig), *points.shape[:2], 2))
    return np.concatenate([xy, rng.uniform(0.6, 0.95, xy.shape[:-1])[..., None]], -1)


def assert_same_rig(a: Rig, b: Rig, tolerance: float = 1e-12) -> None:
    assert a.names == b.names
    for name in ("K", "dist", "R", "t"):
        x, y = getattr(a, name), getattr(b, name)
        assert np.abs(x - y).max() <= tolerance * max(1.0, np.abs(x).max()), name
    assert (a.size == b.size).all()


def write_people(folder: Path, camera: str, frame: int, people: Sequence[Array]) -> None:
    """One OpenPose file; a missing point is 0, 0, 0 there."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = [{"pose_keypoints_2d": np.nan_to_num(p).round(3).ravel().tolist()} for p in people]
    file = folder / f"{camera}_{frame:012d}_keypoints.json"
    file.write_text(json.dumps({"version": 1.3, "people": listed}))


def write_recording(
    folder: Path,
    rig: Rig,
    people: Sequence[Array],
    *,
    keypoints: str = "keypoints/{}",
    calibrated: Rig | None = None,
) -> Path:
    """Keypoints of people (V, T, K, 3) in every view, and ``calibration.toml``; no videos."""
    for v, camera in enumerate(rig.names):
        for t in range(people[0].shape[1]):
            write_people(folder / keypoints.format(camera), camera, t, [p[v, t] for p in people])
    write_calibration(calibrated or rig, folder / "calibration.toml")
    return folder


def write_video(
    path: Path,
    frames: int,
    *,
    size: tuple[int, int] = (64, 36),
    rate: Fraction | int = 30,
    times_s: Array | None = None,
) -> None:
    """A video whose pictures do not matter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = av.VideoFrame.from_ndarray(np.full((size[1] * 3 // 2, size[0]), 128, np.uint8), "yuv420p")
    with VideoWriter(path, rate, preset="ultrafast", threads=1) as video:
        for t in range(frames):
            video.write(picture, None if times_s is None else float(times_s[t]))


SMALL = (320, 180)
SMALL_RIG = ring(3, size=SMALL)
SMALL_PEOPLE = seen(SMALL_RIG, figure(np.arange(24) / 10), noise_px=0.2)


def add_videos(folder: Path, place: str = "videos") -> None:
    """A video for each camera of ``SMALL_RIG``."""
    for name in SMALL_RIG.names:
        write_video(folder / place / f"{name}.mp4", 24, size=SMALL, rate=10)


def state(folder: Path, text: str) -> None:
    """Write the recording.yaml of a folder."""
    (folder / "recording.yaml").write_text(text)


def said(recording: Recording, pattern: str) -> bool:
    """Whether one of a recording's warnings has this pattern in it."""
    return any(re.search(pattern, w, re.DOTALL) for w in recording.warnings)
