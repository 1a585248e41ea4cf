"""Vertical of a world: an axis by trunks and cameras, or a direction by the balance of a standing person."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np

from pipeline.array_types import Array
from pipeline.cameras import Rig
from pipeline.skeleton import BODY_25

_ROLLED_WEIGHT: Final = 0.5
"""Weight of the pictures' upward direction with all cameras rolled by quarter turns, relative to upright."""
_TRUNK_WEIGHT: Final = 0.4
"""Weight of the trunks' direction, less than the cameras': people lie down more often."""
_BASELINE_WEIGHT: Final = 0.5
"""Weight of level baselines: cameras stand at about one height."""
_MIN_SCORE_GAP: Final = 0.25
"""Least difference of the scores of the best axis and of the second one where there is no doubt."""
_MIN_TILT_DEG: Final = 20.0
"""Least angle of a tilted world's vertical to the nearest axis."""
_AGREEMENT_DEG: Final = 12.0
"""Largest angle between the verticals of people and of cameras that agree."""
_MAX_LEAN_DEG: Final = 45.0
"""Largest angle of an upright body to the pictures' upward direction."""
_AXES: Final = np.concatenate([np.eye(3), -np.eye(3)])

_BALANCE_SIGMA_DEG, _LEVEL_SIGMA_DEG = 5.0, 3.0
"""Standard deviations of ``balance``, and of the roll of most cameras."""
_FULL_SUPPORT_M = 0.15
"""Height difference of the feet from which the lower one carries the whole weight."""
_FEET: Final = [[BODY_25.index(f"{side}{p}") for p in ("Ankle", "Heel", "BigToe")] for side in "LR"]
_MASS: Final = {
    "Nose": 0.08, "Neck": 0.26, "MidHip": 0.24, "LHip": 0.06, "RHip": 0.06, "LKnee": 0.07, "RKnee": 0.07,
    "LAnkle": 0.03, "RAnkle": 0.03, "LElbow": 0.03, "RElbow": 0.03, "LWrist": 0.02, "RWrist": 0.02,
}  # fmt: skip
"""Share of the body's mass at each keypoint: Winter, Biomechanics and Motor Control, table 4.1."""


@dataclass(frozen=True)
class Vertical:
    """Upward axis of a world, and its doubt."""

    up: Array
    """(3,) signed axis of the world"""
    rival: Array | None
    """(3,) another axis with nearly the same score"""
    tilted: Array | None
    """(3,) vertical on which people and cameras agree, where it is far from every axis"""


def find_up(rig: Rig, trunks: Array) -> Vertical:
    """Upward axis of the world, from placed cameras and people's trunks over a whole recording.

    trunks: (N, 3) hips → neck of everybody in frames spread over the recording, metres; may be empty.

    The score of a signed axis is a weighted sum of its cosine with the pictures' mean upward direction (all
    upright or, for less, all rolled by one or two quarter turns), its mean cosine with the trunks, and how
    level the baselines of the cameras are.
    """
    score, trunk = _evidence(rig, trunks, _AXES), _mean_direction(trunks)
    order = np.argsort(-score, kind="stable")
    up, second = _AXES[order[0]], _AXES[order[1]]
    doubtful = score[order[0]] - score[order[1]] < _MIN_SCORE_GAP
    return Vertical(up, second if doubtful else None, _tilt(up, -rig.R[:, 1].mean(0), trunk))


def _evidence(rig: Rig, trunks: Array, directions: Array) -> Array:
    """Scores (N,) of unit vectors (N, 3), as in ``find_up``."""
    upward, sideways = -rig.R[:, 1].mean(0), rig.R[:, 0].mean(0)
    rolled = np.max([directions @ d for d in (sideways, -sideways, -upward)], axis=0)
    score = np.maximum(directions @ upward, _ROLLED_WEIGHT * rolled)
    score += _TRUNK_WEIGHT * (directions @ _mean_direction(trunks))
    baselines = np.array([b - a for a, b in combinations(rig.centres, 2)]).reshape(-1, 3)
    length = np.linalg.norm(baselines, axis=1)
    if (length > 1e-9).any():
        baselines = baselines[length > 1e-9] / length[length > 1e-9, None]
        score += _BASELINE_WEIGHT * (1 - np.abs(directions @ baselines.T).mean(1))
    return np.asarray(score)


def _mean_direction(vectors: Array) -> Array:
    """Mean (3,) of the unit vectors along vectors (N, 3); 0 without any."""
    vectors = vectors[np.isfinite(vectors).all(1)]
    if not len(vectors):
        return np.zeros(3)
    return np.asarray((vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).mean(0))


def _tilt(up: Array, pictures: Array, trunk: Array) -> Array | None:
    """Unit vector between the cameras' and the trunks' mean directions, where these agree on a tilted
    world."""
    if min(np.linalg.norm(pictures), np.linalg.norm(trunk)) < 0.5:
        return None
    one, two = pictures / np.linalg.norm(pictures), trunk / np.linalg.norm(trunk)
    middle = (one + two) / max(float(np.linalg.norm(one + two)), 1e-9)
    if angle_deg(one, two) > _AGREEMENT_DEG or angle_deg(middle, up) < _MIN_TILT_DEG:
        return None
    return np.asarray(middle)


def angle_deg(one: Array, two: Array) -> float:
    """Angle between two unit vectors (3,), degrees."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(one, two)), one @ two)))


def axis_name(up: Array) -> str:
    """Name of a signed axis, such as ``z`` or ``-y``."""
    k = int(np.abs(up).argmax())
    return f"{'-' if up[k] < 0 else ''}{'xyz'[k]}"


def balance(points: Array, up: Array) -> Array:
    """Vertical (3,) from points (T, K, 3) of a standing or walking person: the mass is above the supporting
    foot.

    Support depends on the vertical, so this iterates from a guess ``up``, returned where no frame shows
    enough of the body. Leaning to all sides averages out.
    """
    mass = sum(share * points[:, BODY_25.index(name)] for name, share in _MASS.items())
    feet = points[:, _FEET]  # (T, 2, 3, 3)
    valid = np.isfinite(feet)
    count = np.where(valid.any(2), valid.sum(2), np.nan)
    left, right = np.moveaxis(np.where(valid, feet, 0).sum(2) / count, 1, 0)
    middle = (left + right) / 2
    for _ in range(5):
        lift = np.clip(((left - right) @ up)[:, None] / _FULL_SUPPORT_M, -1, 1)
        base = middle + lift * (right - left) / 2
        axis = (mass - base)[np.isfinite(mass - base).all(1)]
        if not len(axis):
            return up
        up = np.median(axis / np.linalg.norm(axis, axis=1, keepdims=True), axis=0)
        up /= np.linalg.norm(up)
    return up


def upright(rig: Rig, points: Array, up: Array | None = None) -> tuple[Rig, Array]:
    """Rotate and shift cameras and a person's points (T, K, 3) into an upright world.

    z is ``up`` (3,), by default ``guess_up``; y points ahead of the first camera; the origin is on the floor
    below the person.
    """
    up = guess_up(rig, points) if up is None else up
    ahead = rig.R[0, 2] - up * (rig.R[0, 2] @ up)
    if np.linalg.norm(ahead) < 0.1:  # the camera looks down or up
        ahead = -rig.R[0, 1] - up * (-rig.R[0, 1] @ up)
    ahead /= np.linalg.norm(ahead)
    turn = np.stack([np.cross(ahead, up), ahead, up])
    turned = points @ turn.T
    feet_z = turned[:, _FEET, 2]
    all_z = feet_z if np.isfinite(feet_z).any() else turned[..., 2]
    middle = np.nanmedian(turned.reshape(-1, 3), axis=0)
    origin = np.array([middle[0], middle[1], np.nanpercentile(all_z, 5)])
    r = rig.R @ turn.T
    return replace(rig, R=r, t=rig.t + np.einsum("vij,j->vi", r, origin)), turned - origin


def guess_up(rig: Rig, points: Array) -> Array:
    """Vertical (3,) by a person's points (T, K, 3) and the cameras, good to some degrees.

    Least squares of ``balance`` and of level x axes of the cameras, robust against rolled ones.
    """
    overhead = -rig.R[:, 1].mean(0)
    overhead /= np.linalg.norm(overhead)
    body = balance(points, overhead)
    if angle_deg(body, overhead) > _MAX_LEAN_DEG:  # a lying person, or cameras on their side
        trunks = points[:, BODY_25.index("Neck")] - points[:, BODY_25.index("MidHip")]
        beside = rig.R[:, 0].mean(0)
        beside /= max(float(np.linalg.norm(beside)), 1e-9)
        candidates = np.stack([overhead, body, beside, -beside])
        body = candidates[_evidence(rig, trunks, candidates).argmax()]
    up = body
    # Annealed from a scale at which all cameras count, as ``body`` may be far off.
    for scale in _LEVEL_SIGMA_DEG * np.array([8, 8, 4, 4, 2.5, 2.5, 2.5]):
        roll_deg = np.degrees(np.arcsin(np.clip(rig.R[:, 0] @ up, -1, 1)))
        weight = 1 / (1 + (roll_deg / scale) ** 2) ** 2 / np.radians(_LEVEL_SIGMA_DEG) ** 2
        system = np.einsum("v,vi,vj->ij", weight, rig.R[:, 0], rig.R[:, 0])
        prior = np.eye(3) / np.radians(_BALANCE_SIGMA_DEG) ** 2
        up = np.linalg.solve(system + prior, prior @ body)
        up /= np.linalg.norm(up)
    return up
