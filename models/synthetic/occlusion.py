"""Occlusion between people: of keypoints whose line of sight passes through another person.

Bodies are capsules around their limbs. The line of sight ends ``MARGIN_M`` before the keypoint.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.array_types import Array
from pipeline.cameras import Rig
from pipeline.skeleton import BODY_25

LIMB_SEGMENTS: Final = tuple(
    (BODY_25.index(a), BODY_25.index(b), radius_m)
    for a, b, radius_m in (
        ("Nose", "Neck", 0.11), ("Neck", "MidHip", 0.16), ("RShoulder", "LShoulder", 0.12),
        ("RHip", "LHip", 0.12), ("RShoulder", "RElbow", 0.06), ("RElbow", "RWrist", 0.05),
        ("LShoulder", "LElbow", 0.06), ("LElbow", "LWrist", 0.05), ("RHip", "RKnee", 0.09),
        ("RKnee", "RAnkle", 0.07), ("LHip", "LKnee", 0.09), ("LKnee", "LAnkle", 0.07),
    )
)  # fmt: skip
"""End points and radius in metres of the capsules of an adult body."""

MARGIN_M: Final = 0.08
"""Distance from the keypoint at which the line of sight ends, so that touching bodies do not occlude each
other's skin."""
_BODY_RADIUS_M: Final = 1.4
"""Radius around the middle of a body that contains it."""


def find_occluders(rig: Rig, points: Array) -> NDArray[np.int64]:
    """Index of the person who occludes each keypoint in each camera, (V, T, P, K); −1 for none.

    points: (T, P, K, 3) metres, world, the first in the order of BODY_25; NaN for an absent person. Of
    several occluders, the one whose limb axis is closest to the line of sight, by the limb's radius.
    """
    frames, people, count, _ = points.shape
    occluder = np.full((len(rig), frames, people, count), -1, dtype=np.int64)
    if people < 2:
        return occluder
    ends = np.array([(a, b) for a, b, _ in LIMB_SEGMENTS])
    radius = np.array([r for *_, r in LIMB_SEGMENTS])
    present = np.asarray(np.isfinite(points).all((2, 3)))
    middle = np.where(present[..., None], points[:, :, [1, 8]].mean(2), 0)
    for v, eye in enumerate(rig.centres):
        t, p, q = _possible_occlusions(eye, middle, present)
        limbs = points[t, q][:, ends]  # (M, S, 2, 3)
        distance = _limb_distance(eye, points[t, p], limbs, radius)  # (M, K)
        best = np.ones((frames, people, count))
        for other in range(people):
            is_other = q == other
            index = t[is_other], p[is_other]
            closer = distance[is_other] < best[index]
            best[index] = np.where(closer, distance[is_other], best[index])
            occluder[v][index] = np.where(closer, other, occluder[v][index])
    return occluder


def _possible_occlusions(
    eye: Array, middle: Array, present: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], ...]:
    """Indices (M,) of frames, people, and others whose bounding spheres occlude theirs from ``eye``."""
    sight = middle - eye
    distance = np.linalg.norm(sight, axis=-1)
    cosine = np.einsum("tpx,tqx->tpq", sight, sight) / (distance[:, :, None] * distance[:, None])
    width = np.arcsin(np.minimum(_BODY_RADIUS_M / np.maximum(distance, 1e-9), 1.0))
    overlap = np.arccos(np.clip(cosine, -1, 1)) < width[:, :, None] + width[:, None]
    before = distance[:, None] < distance[:, :, None] + 2 * _BODY_RADIUS_M
    possible = overlap & before & present[:, :, None] & present[:, None]
    return np.nonzero(possible & ~np.eye(middle.shape[1], dtype=bool))


def _limb_distance(eye: Array, points: Array, limbs: Array, radius: Array) -> Array:
    """Least distance (M, K) of lines of sight from limb axes, by the limbs' radii: occluded below 1.

    eye: (3,). points: (M, K, 3). limbs: (M, S, 2, 3) ends. radius: (S,). Distance of two segments: Ericson,
    Real-Time Collision Detection, 5.1.9.
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
