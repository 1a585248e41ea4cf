"""Agreement of cameras: the people on whom they agree, and each camera's reprojection error.

Each camera is compared with the others: the person is triangulated without it and projected into it.

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
    finite_median,
    pick_people,
    propose,
)
from models.geometry.people import follow_longest
from models.geometry.triangulation import leave_one_out, triangulate
from pipeline.array_types import Array, Floats
from pipeline.cameras import Rig
from pipeline.timeline import spread

MIN_AGREEING_SHARE: Final = 0.6
"""Share of the frames shared with another camera in which a correct camera agrees with others. One that
agrees less often may be exchanged, late or misplaced."""
MIN_FRAMES: Final = 5
"""Fewest disagreeing frames that cast doubt on a camera."""

_BLOCK_FRAMES, _BLOCKS = 120, 4
_AGREEMENT_M: Final = 0.08
"""Stricter than in association, since the cameras are compared, not the people."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of V cameras over stretches of a recording."""

    person: Array
    """(V,) share of the frames in which the camera shows the person on whom the views agree."""
    residual_px: Array
    """(V,) median reprojection error of the triangulation from all cameras; NaN if never seen."""
    left_out_px: Array
    """(V,) median reprojection error of the triangulation from the other cameras; NaN with two cameras."""
    lasting_px: Array
    """(V,) reprojection error of the triangulation from all cameras that lasts from frame to frame, as that
    of a wrong or late camera does and the independent errors of keypoints do not."""
    least_left_out_px: Array
    """(V,) lower quartile over frames of the lasting reprojection error of the triangulation from the other
    cameras: a misplaced camera is off in all of them, one that a person is hidden from in some."""
    metres_per_px: Array
    """(V,) mean length of a pixel at the person; NaN where nobody was triangulated."""


@dataclass(frozen=True)
class Disagreement:
    """Cameras that often disagree with the others."""

    alone: NDArray[np.int64]
    """(V,) shared frames in which others agree and this camera does not."""
    shows: NDArray[np.int64]
    """(V,) shared frames, with a person in this camera and another, in which any cameras agree."""
    exchanged: tuple[int, int] | None
    """Two cameras whose exchanged keypoints agree with the rest."""


def find_bodies(rig: Rig, image: Floats) -> Proposals:
    """Match people over the views with default settings, as those of a run are not known before it.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    return propose(rig, rig.undistort_views(image[..., :2]), image[..., 2].astype(np.float64), MatchConfig())


def people_at_once(rig: Rig, image: Floats) -> int:
    """Number of people visible at once in two views, or in the only one: the second largest of all frames.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    if len(rig) == 1:
        counts = ((image[0, ..., 2] > 0).sum(-1) >= MatchConfig().min_points).sum(-1)
    else:
        counts = np.array([len(disjoint(people)) for people in find_bodies(rig, image).person])
    return int(np.sort(counts)[-2:][0]) if len(counts) else 0


def disjoint(people: NDArray[np.int64]) -> list[set[tuple[int, int]]]:
    """Views and detections of each of the bodies (H, V), best first, without a detection of a better one."""
    kept: list[set[tuple[int, int]]] = []
    for body in people:
        own = {(v, int(p)) for v, p in enumerate(body) if p >= 0}
        if len(own) > 1 and all(map(own.isdisjoint, kept)):
            kept.append(own)
    return kept


def shows_together(image: Floats) -> NDArray[np.bool_]:
    """Frames (V, T) with a person in the camera and in another.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    shows = (image[..., 2] > 0).any((2, 3))
    return np.asarray(shows & (shows.sum(0) > 1))


def find_exchanged(rig: Rig, image: Floats) -> tuple[int, int] | None:
    """Find two cameras whose keypoints agree with the others only once exchanged.

    image: (V, T, P, K, 3) pixels of the video frames and confidence; some 40 frames are enough.
    """

    def agreeing(image: Floats) -> Array:
        """(V,) share of the shared frames in which a camera agrees with the best-agreed person."""
        shows = shows_together(image).sum(1)
        return np.asarray((find_bodies(rig, image).person[:, 0] >= 0).sum(0) / np.maximum(shows, 1))

    as_given, shows = agreeing(image), np.asarray(shows_together(image).any(1))
    best, pair = float(as_given.sum()) + MIN_AGREEING_SHARE, None
    for a, b in combinations(range(len(rig)), 2):
        if min(as_given[a], as_given[b]) < MIN_AGREEING_SHARE and shows[a] and shows[b]:
            order = np.arange(len(rig))
            order[[a, b]] = b, a
            exchanged = agreeing(image[order])
            if min(exchanged[a], exchanged[b]) >= MIN_AGREEING_SHARE and exchanged.sum() > best:
                best, pair = float(exchanged.sum()), (a, b)
    return pair


def find_disagreement(rig: Rig, image: Floats, sample: int) -> Disagreement | None:
    """Find cameras that agree too seldom with the others; None where all agree.

    image: (V, T, P, K, 3) pixels of the video frames and confidence. sample: number of frames searched for
    exchanged cameras.
    """
    bodies = find_bodies(rig, image).person
    person = bodies[:, 0].T
    # A camera from which the best one is hidden may show others.
    person = np.where(find_others(bodies, person, image.shape[2]).any(2), 0, person)
    shows = shows_together(image)
    doubted = (shows & (person < 0)).sum(1) > np.maximum(
        MIN_FRAMES - 1, (1 - MIN_AGREEING_SHARE) * shows.sum(1)
    )
    if not doubted.any():
        return None
    pair = find_exchanged(rig, image[:, spread(np.arange(image.shape[1]), sample)])
    shows &= (person >= 0).any(0)
    return Disagreement((shows & (person < 0)).sum(1), shows.sum(1), pair)


def find_others(bodies: NDArray[np.int64], own: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """(V, T, P) detections of somebody else than a person (V, T): of a proposed body (T, H, V), −1 for none,
    that three views show, and more than show the person there."""
    mine = (bodies == own.T[:, None]) & (bodies >= 0)
    theirs = (bodies >= 0) & ~mine
    theirs &= (theirs.sum(-1) > np.maximum(mine.sum(-1), 2))[..., None]
    t, h, v = np.nonzero(theirs)
    out = np.zeros((*own.shape, count), bool)
    out[v, t, bodies[t, h, v]] = True
    return out


def best_bodies(rig: Rig, image: Floats) -> Array:
    """Triangulate the best-agreed person of each frame that has one: (N, K, 3), in the files' order.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    xy, proposals = rig.undistort_views(image[..., :2]), find_bodies(rig, image)
    agreed = proposals.score[:, 0] > 0
    chosen = proposals.person[agreed, 0].T
    xy_picked = pick_people(xy[:, agreed], chosen, np.nan)
    return triangulate(rig, xy_picked, pick_people(image[..., 2][:, agreed], chosen, 0)).points


def compare_cameras(rig: Rig, xy_px: Array, confidence: Array, stretches_s: Sequence[Array]) -> Agreement:
    """Compare two or more placed cameras with one another.

    xy_px (V, T, P, K, 2), undistorted, and confidence (V, T, P, K): detections in the frames of one or more
    stretches, one after the other. stretches_s: times of the frames of each.
    """
    views, cfg = len(rig), MatchConfig(agreement_m=_AGREEMENT_M)
    person = np.concatenate(
        [
            follow_longest(rig, xy_px[:, at], confidence[:, at], time_s, cfg)
            for at, time_s in _split(stretches_s)
        ],
        axis=1,
    )
    xy, sure = pick_people(xy_px, person, np.nan), pick_people(confidence, person, 0)
    all_views = triangulate(rig, xy, sure)
    shows: NDArray[np.bool_] = np.asarray((confidence > 0).any((2, 3)))
    lasting = _root_medians(_products_px2(xy - rig.project(all_views.points)))
    if views > 2:  # whoever hides the person is taken for them at times
        lasting[2 * (person >= 0).sum(1) < shows.sum(1)] = np.nan
    # Where the person is not matched and another camera shows somebody else, this one may show them, too.
    others = ((confidence > 0).any(3) & (np.arange(confidence.shape[2]) != person[..., None])).any(2)
    sure_of = shows & ((person >= 0) | (others.sum(0) == others))
    left_out, least_left_out = np.full((2, views), np.nan)
    without = leave_one_out(rig, xy, sure) if views > 2 else ()
    for v, points in enumerate(without):
        if 2 * sure_of[v].sum() < shows[v].sum():
            continue
        expected = rig.select([rig.names[v]]).project(points)[0]
        error = closest_person(xy_px[v], confidence[v], expected) - expected
        error[~sure_of[v]] = np.nan
        left_out[v] = _medians(np.linalg.norm(error, axis=-1)[None])[0]
        in_frames = _root_medians(_products_px2(error))
        if np.isfinite(in_frames).any():
            least_left_out[v] = np.nanpercentile(in_frames, 25)
    points = all_views.points[np.isfinite(all_views.points).all(-1)]
    return Agreement(
        person=(person >= 0).mean(1),
        residual_px=_medians(all_views.residual_px),
        left_out_px=left_out,
        lasting_px=lasting,
        least_left_out_px=least_left_out,
        metres_per_px=rig.metres_per_px(points).mean(1) if len(points) else np.full(views, np.nan),
    )


def _split(stretches_s: Sequence[Array]) -> list[tuple[slice, Array]]:
    """Frames, and their times, of stretches one after the other."""
    ends = np.cumsum([len(time_s) for time_s in stretches_s]).tolist()
    return [(slice(end - len(time_s), end), time_s) for end, time_s in zip(ends, stretches_s, strict=True)]


def look_alone(rig: Rig, xy_px: Array, confidence: Array, stretches_s: Sequence[Array]) -> Agreement:
    """Agreement of cameras that cannot be compared: the share of frames with a person alone.

    Arguments as of ``compare_cameras``.
    """
    cfg, none = MatchConfig(), np.full(len(rig), np.nan)
    frames = np.zeros(len(rig))
    for v, name in enumerate(rig.names):
        one = rig.select([name])
        for at, time_s in _split(stretches_s):
            frames[v] += (follow_longest(one, xy_px[[v], at], confidence[[v], at], time_s, cfg) >= 0).sum()
    return Agreement(frames / confidence.shape[1], none, none, none, none, none)


def stretches_of(frames: int) -> list[NDArray[np.int64]]:
    """Frames in which cameras are compared: all, or four stretches of a long recording."""
    if frames <= _BLOCK_FRAMES * _BLOCKS:
        return [np.arange(frames)]
    starts = spread(np.arange(frames - _BLOCK_FRAMES + 1), _BLOCKS)
    return [np.arange(start, start + _BLOCK_FRAMES) for start in starts]


def closest_person(xy: Array, confidence: Array, expected: Array) -> Array:
    """Detection closest to the expected points (T, K, 2) among (T, P, K, 2), (T, P, K): (T, K, 2), NaN
    unseen."""
    observed = np.where(confidence[..., None] > 0, xy, np.nan)
    distance = np.linalg.norm(observed - expected[:, None], axis=-1)
    median = finite_median(distance)
    nearest = np.where(np.isnan(median), np.inf, median).argmin(1)
    return np.asarray(observed[np.arange(len(observed)), nearest])


def _products_px2(error: Array) -> Array:
    """Scalar products (..., T, K) of the errors (..., T, K, 2) and those of the frame before: their median is
    0 where errors are independent, and the square of an error that lasts."""
    before = np.roll(error, 1, -3)
    before[..., 0, :, :] = np.nan
    return np.asarray((error * before).sum(-1))


def _root_medians(squares: Array) -> Array:
    """Root of the median of each row (N, ...), 0 where that is negative."""
    return np.sqrt(np.maximum(_medians(squares), 0))


def _medians(values: Array) -> Array:
    """Median over all axes but the first, without NaN; NaN of none."""
    return finite_median(values.reshape(len(values), -1))
