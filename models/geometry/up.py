"""Up in a world: an axis from people's trunks and the cameras, or, more finely, from somebody on foot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np

from pipeline.cameras import Array, Rig
from pipeline.skeleton import BODY_25

_ROLLED: Final = 0.5
"""Weight of the pictures' upward direction when all cameras are taken to be mounted on their side or
overhead, by that of upright ones: most cameras stand upright."""
_TRUNK: Final = 0.4
"""Weight of the direction of people's trunks: people lie down more often than cameras do, but both do."""
_BASELINE: Final = 0.5
"""Weight of the cameras' places: they stand at about one height."""
_CLEAR: Final = 0.25
"""Difference of the sums of this evidence below which two axes are both possible."""
_TILT_DEG: Final = 20.0
"""Angle from the nearest axis at which people and cameras that agree say that the world is tilted ..."""
_TOGETHER_DEG: Final = 12.0
"""... and angle up to which they agree."""
_LYING_DEG: Final = 45.0
"""Angle from the pictures' upward direction from which on a body need not be upright."""
_AXES: Final = np.concatenate([np.eye(3), -np.eye(3)])

_LEAN_DEG, _ASKEW_DEG = 5.0, 3.0
"""Standard deviations of ``balance``, and of most cameras from level, degrees."""
_STEP_M = 0.15
"""A foot that is so much lower than the other carries all."""
_MASS: Final = {
    "Nose": 0.08, "Neck": 0.26, "MidHip": 0.24, "LHip": 0.06, "RHip": 0.06, "LKnee": 0.07, "RKnee": 0.07,
    "LAnkle": 0.03, "RAnkle": 0.03, "LElbow": 0.03, "RElbow": 0.03, "LWrist": 0.02, "RWrist": 0.02,
}  # fmt: skip
"""Shares of the body's mass, put at its keypoints: Winter, Biomechanics and Motor Control, table 4.1."""


@dataclass(frozen=True)
class Vertical:
    """Axis of the world that is up, and its doubt."""

    up: Array
    """(3,) an axis of the world, with its sign."""
    rival: Array | None
    """(3,) another axis that fits almost as well."""
    tilted: Array | None
    """(3,) unit vector that people and cameras agree on, where it is far from any axis."""


def find_up(rig: Rig, trunks: Array) -> Vertical:
    """The world's axis that is up, from placed cameras and people's trunks over a whole recording.

    trunks: (N, 3) from hips to neck of everybody in frames spread over the recording, metres; may be empty.

    Each axis, with its sign, is given a weighted sum of three: the cosine between it and the pictures' mean
    upward direction, all pictures upright or, for less, all rolled by one or two quarter turns; the mean
    cosine between it and the trunks; and how level the baselines from camera to camera are.
    """
    score, trunk = _evidence(rig, trunks, _AXES), _mean_direction(trunks)
    order = np.argsort(-score, kind="stable")
    up, second = _AXES[order[0]], _AXES[order[1]]
    doubtful = score[order[0]] - score[order[1]] < _CLEAR
    return Vertical(up, second if doubtful else None, _tilt(up, -rig.R[:, 1].mean(0), trunk))


def _evidence(rig: Rig, trunks: Array, directions: Array) -> Array:
    """(N,) sum of the evidence that each of these unit vectors (N, 3) is up, as ``find_up`` has it."""
    upward, sideways = -rig.R[:, 1].mean(0), rig.R[:, 0].mean(0)
    rolled = np.max([directions @ d for d in (sideways, -sideways, -upward)], axis=0)
    score = np.maximum(directions @ upward, _ROLLED * rolled)
    score += _TRUNK * (directions @ _mean_direction(trunks))
    baselines = np.array([b - a for a, b in combinations(rig.centres, 2)]).reshape(-1, 3)
    length = np.linalg.norm(baselines, axis=1)
    if (length > 1e-9).any():
        baselines = baselines[length > 1e-9] / length[length > 1e-9, None]
        score += _BASELINE * (1 - np.abs(directions @ baselines.T).mean(1))
    return np.asarray(score)


def _mean_direction(vectors: Array) -> Array:
    """Mean (3,) of the directions of vectors (N, 3), shorter the more they differ; 0 without any."""
    known = vectors[np.isfinite(vectors).all(1)]
    if not len(known):
        return np.zeros(3)
    return np.asarray((known / np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-9)).mean(0))


def _tilt(up: Array, pictures: Array, trunk: Array) -> Array | None:
    """Unit vector between the cameras' and the trunks' mean direction, where both lean alike from up."""
    if min(np.linalg.norm(pictures), np.linalg.norm(trunk)) < 0.5:
        return None
    one, two = pictures / np.linalg.norm(pictures), trunk / np.linalg.norm(trunk)
    middle = (one + two) / max(float(np.linalg.norm(one + two)), 1e-9)
    if angle_deg(one, two) > _TOGETHER_DEG or angle_deg(middle, up) < _TILT_DEG:
        return None
    return np.asarray(middle)


def angle_deg(one: Array, two: Array) -> float:
    """Angle between two unit vectors (3,), degrees."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(one, two)), one @ two)))


def axis_name(up: Array) -> str:
    """An axis of the world, with its sign, as ``z`` or ``-y``."""
    k = int(np.abs(up).argmax())
    return f"{'-' if up[k] < 0 else ''}{'xyz'[k]}"


def balance(points: Array, up: Array) -> Array:
    """Up (3,), from points (T, K, 3) of somebody on foot: a body's mass is above the foot that it stands on.

    Which foot that is depends on what is up, so this takes a few rounds, from a guess ``up``, which is what
    is left where no frame shows enough of the body. Leaning to all sides evens out.
    """
    mass = sum(share * points[:, BODY_25.index(name)] for name, share in _MASS.items())
    feet = []
    for side in "LR":
        foot = points[:, [BODY_25.index(f"{side}{p}") for p in ("Ankle", "Heel", "BigToe")]]
        known = np.isfinite(foot)
        feet.append(np.where(known, foot, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan))
    left, right = feet
    middle = (left + right) / 2
    for _ in range(5):
        lift = np.clip(((left - right) @ up)[:, None] / _STEP_M, -1, 1)
        base = middle + lift * (right - left) / 2
        axis = mass - base
        axis = axis[np.isfinite(axis).all(1)]
        if not len(axis):
            return up
        up = np.median(axis / np.linalg.norm(axis, axis=1, keepdims=True), axis=0)
        up /= np.linalg.norm(up)
    return up


def upright(rig: Rig, points: Array, up: Array | None = None) -> tuple[Rig, Array]:
    """Cameras and a person's points (T, K, 3) in a world that stands upright.

    z is ``up`` (3,), which is ``guess_up`` where it is not given, y ahead of the first camera, the origin on
    the floor below the person.
    """
    up = guess_up(rig, points) if up is None else up
    ahead = rig.R[0, 2] - up * (rig.R[0, 2] @ up)
    if np.linalg.norm(ahead) < 0.1:  # it looks down, or up
        ahead = -rig.R[0, 1] - up * (-rig.R[0, 1] @ up)
    ahead /= np.linalg.norm(ahead)
    turn = np.stack([np.cross(ahead, up), ahead, up])
    turned = points @ turn.T
    feet_z = turned[:, [BODY_25.index(f"{s}{p}") for s in "LR" for p in ("Ankle", "Heel", "BigToe")], 2]
    all_z = feet_z if np.isfinite(feet_z).any() else turned[..., 2]
    middle = np.nanmedian(turned.reshape(-1, 3), axis=0)
    origin = np.array([middle[0], middle[1], np.nanpercentile(all_z, 5)])
    r = rig.R @ turn.T
    return replace(rig, R=r, t=rig.t + np.einsum("vij,j->vi", r, origin)), turned - origin


def guess_up(rig: Rig, points: Array) -> Array:
    """Up (3,) by a person's points (T, K, 3) and the cameras, good to some degrees.

    It is what ``balance`` says and what is level in the pictures: few cameras are held askew, so those whose
    x axis is nearly level make it exactly so.
    """
    overhead = -rig.R[:, 1].mean(0)
    overhead /= np.linalg.norm(overhead)
    body = balance(points, overhead)
    if angle_deg(body, overhead) > _LYING_DEG:  # somebody lies, or the cameras are mounted on their side
        trunks = points[:, BODY_25.index("Neck")] - points[:, BODY_25.index("MidHip")]
        beside = rig.R[:, 0].mean(0)
        beside /= max(float(np.linalg.norm(beside)), 1e-9)
        candidates = np.stack([overhead, body, beside, -beside])
        body = candidates[_evidence(rig, trunks, candidates).argmax()]
    up = body
    # From a robust scale at which all cameras count down: ``body`` may be far off.
    for scale in _ASKEW_DEG * np.array([8, 8, 4, 4, 2.5, 2.5, 2.5]):
        askew = np.degrees(np.arcsin(np.clip(rig.R[:, 0] @ up, -1, 1)))
        trust = 1 / (1 + (askew / scale) ** 2) ** 2 / np.radians(_ASKEW_DEG) ** 2
        system = np.einsum("v,vi,vj->ij", trust, rig.R[:, 0], rig.R[:, 0])
        lean = np.eye(3) / np.radians(_LEAN_DEG) ** 2
        up = np.linalg.solve(system + lean, lean @ body)
        up /= np.linalg.norm(up)
    return up
