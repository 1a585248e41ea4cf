"""Proposals of new people in a frame: bodies of human proportions on which two views agree.

M detections of all views in a frame, K keypoints.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from models.geometry.association import MatchConfig, propose
from models.geometry.matching import Bools, FrameDetections, body_agreement, triangulate_tracks
from models.geometry.tracks import LIMITS
from pipeline.array_types import Array, Ints
from pipeline.cameras import Rig
from pipeline.skeleton import BODY_25

_BONES: Final = tuple(
    (BODY_25.index(a), BODY_25.index(b), length_m)
    for a, b, length_m in (
        ("Neck", "MidHip", 0.52), ("RShoulder", "LShoulder", 0.36), ("RHip", "LHip", 0.22),
        ("RShoulder", "RElbow", 0.29), ("LShoulder", "LElbow", 0.29), ("RElbow", "RWrist", 0.25),
        ("LElbow", "LWrist", 0.25), ("RHip", "RKnee", 0.41), ("LHip", "LKnee", 0.41),
        ("RKnee", "RAnkle", 0.41), ("LKnee", "LAnkle", 0.41), ("Neck", "Nose", 0.22),
    )
)  # fmt: skip
"""Bones of an adult: ends, and length in metres."""
_SIZE_RANGE: Final = (0.45, 1.45)
"""Range of a person's size over an adult's."""
_MAX_BONE_RATIO: Final = 1.5
"""Bound of the ratio of a bone's length, at the person's size, to an adult's; beyond it the bone is odd."""
_MAX_ODD_SHARE: Final = 0.35
"""Largest share of odd bones of a person: some keypoints are outliers."""


def propose_people(
    rig: Rig, detections: FrameDetections, free: Bools, cfg: MatchConfig
) -> list[tuple[Array, Ints]]:
    """Propose people by detections without a track, ``free`` (M,): bodies (K, 3) and indices of their
    detections. Best first, no detection twice."""
    enough = free & ((detections.confidence > 0).sum(1) >= LIMITS.birth_shared)
    if len(rig) == 1:
        owner = np.where(enough, np.arange(len(free)), -1)
        bodies = triangulate_tracks(rig, detections, owner, np.zeros(len(free), bool), len(free))
        return [(bodies[m], np.array([m])) for m in np.flatnonzero(enough)]
    if len(np.unique(detections.view[enough])) < 2:
        return []
    places = int(detections.index[enough].max()) + 1
    xy = np.full((len(rig), 1, places, len(BODY_25), 2), np.nan)
    confidence = np.zeros(xy.shape[:-1])
    number = np.full((len(rig), places), -1)
    v, d = detections.view[enough], detections.index[enough]
    xy[v, 0, d], confidence[v, 0, d] = detections.xy_px[enough], detections.confidence[enough]
    number[v, d] = np.flatnonzero(enough)
    limits = cfg.model_copy(
        update={"min_agreement": LIMITS.birth_agreement, "min_points": LIMITS.birth_shared}
    )
    proposals = propose(rig, xy, confidence, limits)
    people: list[tuple[Array, Ints]] = []
    taken = np.zeros(len(free), bool)
    for person in proposals.person[0][proposals.score[0] > 0]:
        members = number[person >= 0, person[person >= 0]]
        members = members[~taken[members]]
        body = _triangulate_members(rig, detections, members)
        if body is None:
            continue
        score, shared = body_agreement(rig, body[None], detections, cfg.agreement_m)
        agree = (score[0] >= LIMITS.birth_agreement) & (shared[0] >= LIMITS.shared)
        members = members[agree[members]]
        body = _triangulate_members(rig, detections, members)
        if body is not None and has_human_proportions(body):
            taken[members] = True
            people.append((body, members))
    return people


def _triangulate_members(rig: Rig, detections: FrameDetections, members: Ints) -> Array | None:
    """Triangulate a body (K, 3) from detections of several views; None where too few keypoints agree."""
    if len(members) < 2:
        return None
    owner = np.full(len(detections.view), -1)
    owner[members] = 0
    body = triangulate_tracks(rig, detections, owner, np.zeros(len(owner), bool), 1)[0]
    return body if np.isfinite(body[:, 0]).sum() >= LIMITS.birth_shared else None


def has_human_proportions(points: Array) -> bool:
    """True for a body (K, 3) of a person's size and bone length ratios, or of fewer than four bones."""
    ratio = np.array([np.linalg.norm(points[a] - points[b]) / length_m for a, b, length_m in _BONES])
    ratio = ratio[np.isfinite(ratio)]
    if len(ratio) < 4:
        return True
    size = float(np.median(ratio))
    odd = np.abs(np.log(np.maximum(ratio, 1e-3) / size)) > np.log(_MAX_BONE_RATIO)
    return bool(_SIZE_RANGE[0] < size < _SIZE_RANGE[1] and odd.mean() <= _MAX_ODD_SHARE)
