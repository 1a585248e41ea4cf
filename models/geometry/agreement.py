"""Agreement of cameras: on whom they agree, and how far each is off what the others say.

Every camera is compared with the others: the person is triangulated without it, projected into it, and
compared with what it saw. Whether they are in step is ``synchronisation``'s to say.

Axes: V views, T frames, P people, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.geometry.association import (
    MatchConfig,
    Proposals,
    masked_median,
    pick_people,
    propose,
)
from models.geometry.people import follow_longest
from models.geometry.triangulation import triangulate
from pipeline.cameras import Array, Rig
from pipeline.formats.keypoints.files import Floats
from pipeline.timeline import spread

AGREES: Final = 0.6
"""A camera that is right agrees with others in this share of the frames in which it and another show
somebody. One that agrees less often may be exchanged, late or badly placed: it is looked into, not named."""
MIN_FRAMES: Final = 5
"""No camera is doubted for fewer frames than this, whatever their share is."""

_BLOCK, _BLOCKS = 120, 4
_AGREEMENT_M: Final = 0.08
"""Stricter than where people are told apart: what is compared are the cameras."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of V cameras over some stretches of a recording."""

    person: Array
    """(V,) share of the frames in which the camera shows the person on whom the views agree."""
    residual_px: Array
    """(V,) median distance between what the camera saw and the triangulation from all; NaN if never seen."""
    left_out_px: Array
    """(V,) that distance from the triangulation of the other cameras only; NaN with two cameras."""
    metres_per_px: Array
    """(V,) mean length of a pixel at the person; NaN where nobody was triangulated."""


@dataclass(frozen=True)
class Disagreement:
    """Cameras that seldom show the person on whom the others agree."""

    alone: NDArray[np.int64]
    """(V,) frames in which a camera and another show somebody, others agree, and this camera does not."""
    shows: NDArray[np.int64]
    """(V,) frames in which a camera and another show somebody, and any agree."""
    exchanged: tuple[int, int] | None
    """Two cameras that agree with the rest on one another's keypoints."""


def find_bodies(rig: Rig, image: Floats) -> Proposals:
    """On whom the views agree, with the default settings of the matching: they are not known before a run.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    return propose(rig, rig.undistort_views(image[..., :2]), image[..., 2].astype(np.float64), MatchConfig())


def people_at_once(rig: Rig, image: Floats) -> int:
    """Number of people whom two views, or the only one, show at once; in one of the frames there may be more.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    if len(rig) == 1:
        counts = ((image[0, ..., 2] > 0).sum(-1) >= MatchConfig().min_points).sum(-1)
    else:
        counts = np.array([_disjoint(people) for people in find_bodies(rig, image).person])
    return int(np.sort(counts)[-2:][0]) if len(counts) else 0


def _disjoint(people: NDArray[np.int64]) -> int:
    """Bodies (H, V), best first, that share no detection with a better one."""
    taken: set[tuple[int, int]] = set()
    count = 0
    for body in people:
        own = {(v, int(p)) for v, p in enumerate(body) if p >= 0}
        if len(own) > 1 and not own & taken:
            taken |= own
            count += 1
    return count


def shows_together(image: Floats) -> NDArray[np.bool_]:
    """(V, T) a camera shows somebody, and another camera does: they can agree or not.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    shows = (image[..., 2] > 0).any((2, 3))
    return np.asarray(shows & (shows.sum(0) > 1))


def find_exchanged(rig: Rig, image: Floats) -> tuple[int, int] | None:
    """The pair of cameras that agree with the others on one another's keypoints, and not on their own.

    image: (V, T, P, K, 3) pixels of the video frames and confidence; some 40 frames are enough.
    """

    def agreeing(image: Floats) -> Array:
        """(V,) share of the frames in which a camera and another show somebody: that on whom most agree."""
        shows = shows_together(image).sum(1)
        return np.asarray((find_bodies(rig, image).person[:, 0] >= 0).sum(0) / np.maximum(shows, 1))

    now, shows = agreeing(image), np.asarray(shows_together(image).any(1))
    best, found = float(now.sum()) + AGREES, None
    for a, b in combinations(range(len(rig)), 2):
        if min(now[a], now[b]) < AGREES and shows[a] and shows[b]:
            order = np.arange(len(rig))
            order[[a, b]] = b, a
            then = agreeing(image[order])
            if min(then[a], then[b]) >= AGREES and then.sum() > best:
                best, found = float(then.sum()), (a, b)
    return found


def find_disagreement(rig: Rig, image: Floats, sample: int) -> Disagreement | None:
    """Cameras that agree too seldom with the others, None where all agree.

    image: (V, T, P, K, 3) pixels of the video frames and confidence. sample: frames in which exchanged
    cameras are looked for.
    """
    person = find_bodies(rig, image).person[:, 0].T
    shows = shows_together(image)
    # As many as MIN_FRAMES are enough, a share of 1 − AGREES is not yet too much: hence > and − 1.
    doubted = (shows & (person < 0)).sum(1) > np.maximum(MIN_FRAMES - 1, (1 - AGREES) * shows.sum(1))
    if not doubted.any():
        return None
    pair = find_exchanged(rig, image[:, spread(np.arange(image.shape[1]), sample)])
    shows &= (person >= 0).any(0)
    return Disagreement((shows & (person < 0)).sum(1), shows.sum(1), pair)


def best_bodies(rig: Rig, image: Floats) -> Array:
    """3D points (N, K, 3) of the best-agreed person of each frame that has one, in the files' order.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    xy, proposals = rig.undistort_views(image[..., :2]), find_bodies(rig, image)
    there = proposals.score[:, 0] > 0
    chosen = proposals.person[there, 0].T
    xy_picked = pick_people(xy[:, there], chosen, np.nan)
    return triangulate(rig, xy_picked, pick_people(image[..., 2][:, there], chosen, 0)).points


@dataclass(frozen=True)
class Stretch:
    """Some frames in a row: everybody whom every camera shows."""

    xy_px: Array
    """(V, T, P, K, 2) undistorted."""
    confidence: Array
    """(V, T, P, K)."""
    time_s: Array
    """(T,)."""


def compare_cameras(rig: Rig, stretches: Sequence[Stretch]) -> Agreement:
    """Compare two or more placed cameras with one another."""
    views, cfg = len(rig), MatchConfig(agreement_m=_AGREEMENT_M)
    followed = [follow_longest(rig, s.xy_px, s.confidence, s.time_s, cfg) for s in stretches]
    picked = list(zip(stretches, followed, strict=True))
    xy = np.concatenate([pick_people(s.xy_px, chosen, np.nan) for s, chosen in picked], axis=1)
    confidence = np.concatenate([pick_people(s.confidence, chosen, 0) for s, chosen in picked], axis=1)
    cuts = np.cumsum([len(s.time_s) for s in stretches])[:-1]
    left_out = np.full(views, np.nan)
    for v in range(views if views > 2 else 0):
        others = np.where(np.arange(views)[:, None, None] == v, 0, confidence)
        expected = np.split(rig.project(triangulate(rig, xy, others).points)[v], cuts)
        # Whoever stands closest to where the others see the person, agreed on or not.
        saw = [
            closest_person(s.xy_px[v], s.confidence[v], e) for s, e in zip(stretches, expected, strict=True)
        ]
        miss = np.concatenate([s - e for s, e in zip(saw, expected, strict=True)])
        left_out[v] = _median(np.linalg.norm(miss, axis=-1))
    whole = triangulate(rig, xy, confidence)
    found = whole.points[np.isfinite(whole.points).all(-1)]
    return Agreement(
        person=np.concatenate([c >= 0 for c in followed], axis=1).mean(1),
        residual_px=_medians(whole.residual_px),
        left_out_px=left_out,
        metres_per_px=rig.metres_per_px(found).mean(1) if len(found) else np.full(views, np.nan),
    )


def look_alone(rig: Rig, stretches: Sequence[Stretch]) -> Agreement:
    """Share of the frames in which each camera shows somebody, of cameras that cannot be compared."""
    cfg, none = MatchConfig(), np.full(len(rig), np.nan)
    person = np.zeros(len(rig))
    frames = sum(len(s.time_s) for s in stretches)
    for v, name in enumerate(rig.names):
        one = rig.select([name])
        for s in stretches:
            sight = s.xy_px[v : v + 1], s.confidence[v : v + 1]
            person[v] += (follow_longest(one, *sight, s.time_s, cfg) >= 0).sum() / frames
    return Agreement(person, none, none, none)


def stretches_of(frames: int) -> list[NDArray[np.int64]]:
    """Frames to compare cameras in: all, or four stretches of a long recording."""
    if frames <= _BLOCK * _BLOCKS:
        return [np.arange(frames)]
    starts = spread(np.arange(frames - _BLOCK + 1), _BLOCKS)
    return [np.arange(start, start + _BLOCK) for start in starts]


def closest_person(xy: Array, confidence: Array, expected: Array) -> Array:
    """(T, P, K, 2), (T, P, K) and where the person should be (T, K, 2) → its points (T, K, 2), NaN unseen."""
    saw = np.where(confidence[..., None] > 0, xy, np.nan)
    miss = np.linalg.norm(saw - expected[:, None], axis=-1)
    median = masked_median(miss[..., None], np.isfinite(miss))[..., 0]
    nearest = np.where(np.isnan(median), np.inf, median).argmin(1)
    return np.asarray(saw[np.arange(len(saw)), nearest])


def _medians(values: Array) -> Array:
    """Median over all axes but the first, of what is not NaN; NaN where nothing is."""
    return np.array([_median(row) for row in values])


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")
