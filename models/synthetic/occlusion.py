"""Occlusion of people by each other: who stands in a camera's line of sight to a keypoint.

Bodies are capsules around their limbs. A keypoint is hidden where the line of sight passes through a capsule
of somebody else, well before its end.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import Array, Rig
from pipeline.skeleton import BODY_25

LIMBS: Final = tuple(
    (BODY_25.index(a), BODY_25.index(b), radius_m)
    for a, b, radius_m in (
        ("Nose", "Neck", 0.11), ("Neck", "MidHip", 0.16), ("RShoulder", "LShoulder", 0.12),
        ("RHip", "LHip", 0.12), ("RShoulder", "RElbow", 0.06), ("RElbow", "RWrist", 0.05),
        ("LShoulder", "LElbow", 0.06), ("LElbow", "LWrist", 0.05), ("RHip", "RKnee", 0.09),
        ("RKnee", "RAnkle", 0.07), ("LHip", "LKnee", 0.09), ("LKnee", "LAnkle", 0.07),
    )
)  # fmt: skip
"""Ends of the capsules of a body, and their radius in metres, of a grown person."""

MARGIN_M: Final = 0.08
"""Before its end the line of sight no longer counts: bodies that touch do not hide each other's skin."""
_REACH_M: Final = 1.4
"""Distance from the middle of a body within which all of it is."""


def hidden_by(rig: Rig, points: Array) -> NDArray[np.int64]:
    """Person who hides each keypoint from each camera, (V, T, P, K); −1 for nobody.

    points: (T, P, K, 3) metres, world, the first of them in the order of BODY_25; NaN for a person who is not
    there. Of several people the one whose limb the line of sight passes closest to the axis, for its radius.
    """
    frames, people, count, _ = points.shape
    hider = np.full((len(rig), frames, people, count), -1, dtype=np.int64)
    if people < 2:
        return hider
    ends = np.array([(a, b) for a, b, _ in LIMBS])
    radius = np.array([r for *_, r in LIMBS])
    there = np.asarray(np.isfinite(points).all((2, 3)))
    middle = np.where(there[..., None], points[:, :, [1, 8]].mean(2), 0)
    for v, eye in enumerate(rig.centres):
        t, p, q = _near_a_line_of_sight(eye, middle, there)
        limbs = points[t, q][:, ends]  # (M, S, 2, 3)
        depth = _closeness(eye, points[t, p], limbs, radius)  # (M, K)
        best = np.ones((frames, people, count))
        for other in range(people):
            here = q == other
            row = t[here], p[here]
            closer = depth[here] < best[row]
            best[row] = np.where(closer, depth[here], best[row])
            hider[v][row] = np.where(closer, other, hider[v][row])
    return hider


def _near_a_line_of_sight(
    eye: Array, middle: Array, there: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], ...]:
    """Frames, people and others (M,) who may hide some of them from ``eye``."""
    sight = middle - eye
    away = np.linalg.norm(sight, axis=-1)
    cosine = np.einsum("tpx,tqx->tpq", sight, sight) / (away[:, :, None] * away[:, None])
    width = np.arcsin(np.minimum(_REACH_M / np.maximum(away, 1e-9), 1.0))
    overlap = np.arccos(np.clip(cosine, -1, 1)) < width[:, :, None] + width[:, None]
    before = away[:, None] < away[:, :, None] + 2 * _REACH_M
    possible = overlap & before & there[:, :, None] & there[:, None]
    return np.nonzero(possible & ~np.eye(middle.shape[1], dtype=bool))


def _closeness(eye: Array, points: Array, limbs: Array, radius: Array) -> Array:
    """Least distance (M, K) of the lines of sight from limbs, by the limbs' radii: hidden below 1.

    eye: (3,). points: (M, K, 3). limbs: (M, S, 2, 3) ends. radius: (S,). Two segments: Ericson, Real-Time
    Collision Detection, 5.1.9.
    """
    sight = points - eye
    length = np.linalg.norm(sight, axis=-1)
    sight = sight / length[..., None]
    reach = np.maximum(length - MARGIN_M, 0)[..., None]  # (M, K, 1)
    limb = limbs[:, :, 1] - limbs[:, :, 0]  # (M, S, 3)
    base = eye - limbs[:, :, 0]
    b = np.einsum("mkx,msx->mks", sight, limb)
    c = (limb * limb).sum(-1)[:, None]
    d = np.einsum("mkx,msx->mks", sight, base)
    e = (limb * base).sum(-1)[:, None]
    along = np.clip((b * e - c * d) / np.maximum(c - b * b, 1e-9), 0, reach)
    share = np.clip((b * along + e) / np.maximum(c, 1e-9), 0, 1)
    along = np.clip(b * share - d, 0, reach)
    # |base + along · sight − share · limb|², multiplied out.
    squared = (
        (base * base).sum(-1)[:, None] + along**2 + share**2 * c
        + 2 * along * d - 2 * share * e - 2 * along * share * b
    )  # fmt: skip
    closest: Array = (np.sqrt(np.maximum(squared, 0)) / radius).min(-1)
    return closest
