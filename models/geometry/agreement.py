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
"""Least share of the frames that it shares with other cameras in which a correct camera agrees with them.
One that agrees less often may be exchanged, late or misplaced."""
MIN_FRAMES: Final = 5
"""Fewest disagreeing frames that cast doubt on a camera."""

_STRETCH_FRAMES, _STRETCHES = 120, 4
"""Length and number of the stretches of a long recording that are compared."""
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

    disagreeing: NDArray[np.int64]
    """(V,) number of compared frames in which others agree and this camera does not."""
    compared: NDArray[np.int64]
    """(V,) number of frames with a person in this camera and another, in which any cameras agree."""
    exchanged: tuple[int, int] | None
    """Two cameras whose exchanged keypoints agree with the rest."""


def find_bodies(rig: Rig, image: Floats) -> Proposals:
    """Match people over the views with default settings, as those of a run are not known before it.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    return propose(rig, rig.undistort_views(image[..., :2]), image[..., 2].astype(np.float64), MatchConfig())


def count_people_at_once(rig: Rig, image: Floats) -> int:
    """Count the people visible at once in two views, or in the only one: the second largest of all frames.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    if len(rig) == 1:
        counts = ((image[0, ..., 2] > 0).sum(-1) >= MatchConfig().min_points).sum(-1)
    else:
        counts = np.array([len(select_disjoint(people)) for people in find_bodies(rig, image).person])
    return int(np.sort(counts)[-2:][0]) if len(counts) else 0


def select_disjoint(people: NDArray[np.int64]) -> list[set[tuple[int, int]]]:
    """Select the bodies (H, V), best first, that share no detection with a better one: pairs of view and
    detection of each."""
    kept: list[set[tuple[int, int]]] = []
    for body in people:
        own = {(v, int(p)) for v, p in enumerate(body) if p >= 0}
        if len(own) > 1 and all(map(own.isdisjoint, kept)):
            kept.append(own)
    return kept


def shared_frames(image: Floats) -> NDArray[np.bool_]:
    """Frames (V, T) with a person in the camera and in another one.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    shows = (image[..., 2] > 0).any((2, 3))
    return np.asarray(shows & (shows.sum(0) > 1))


def find_exchanged(rig: Rig, image: Floats) -> tuple[int, int] | None:
    """Find two cameras whose keypoints agree with the others only once exchanged.

    image: (V, T, P, K, 3) pixels of the video frames and confidence; some 40 frames are enough.
    """

    def agreeing_share(image: Floats) -> Array:
        """(V,) share of the shared frames in which a camera agrees with the best-agreed person."""
        shared = shared_frames(image).sum(1)
        return np.asarray((find_bodies(rig, image).person[:, 0] >= 0).sum(0) / np.maximum(shared, 1))

    as_given, shares_any = agreeing_share(image), np.asarray(shared_frames(image).any(1))
    best, pair = float(as_given.sum()) + MIN_AGREEING_SHARE, None
    for a, b in combinations(range(len(rig)), 2):
        if min(as_given[a], as_given[b]) < MIN_AGREEING_SHARE and shares_any[a] and shares_any[b]:
            order = np.arange(len(rig))
            order[[a, b]] = b, a
            exchanged = agreeing_share(image[order])
            if min(exchanged[a], exchanged[b]) >= MIN_AGREEING_SHARE and exchanged.sum() > best:
                best, pair = float(exchanged.sum()), (a, b)
    return pair


def find_disagreement(rig: Rig, image: Floats, sample: int) -> Disagreement | None:
    """Find cameras that agree too seldom with the others; None where all agree.

    image: (V, T, P, K, 3) pixels of the video frames and confidence. sample: number of frames searched for
    exchanged cameras.
    """
    bodies = find_bodies(rig, image).person
    best = bodies[:, 0].T
    # A camera from which the best one is hidden may show other people.
    agrees = (best >= 0) | find_other_people(bodies, best, image.shape[2]).any(2)
    shared = shared_frames(image)
    most = np.maximum(MIN_FRAMES - 1, (1 - MIN_AGREEING_SHARE) * shared.sum(1))
    if ((shared & ~agrees).sum(1) <= most).all():
        return None
    pair = find_exchanged(rig, image[:, spread(np.arange(image.shape[1]), sample)])
    compared = shared & agrees.any(0)
    return Disagreement((compared & ~agrees).sum(1), compared.sum(1), pair)


def find_other_people(bodies: NDArray[np.int64], person: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Find the detections (V, T, P) of people other than one.

    Detections of a proposed body (T, H, V), −1 for none, that shares none with the person (V, T), and that
    three views show, and more than show the person there.
    """
    same = (bodies == person.T[:, None]) & (bodies >= 0)
    other = (bodies >= 0) & ~same
    other &= (other.sum(-1) > np.maximum(same.sum(-1), 2))[..., None]
    t, h, v = np.nonzero(other)
    out = np.zeros((*person.shape, count), bool)
    out[v, t, bodies[t, h, v]] = True
    return out


def triangulate_best_people(rig: Rig, image: Floats) -> Array:
    """Triangulate the best-agreed person of each frame that has one: (N, K, 3), in the files' order.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    proposals = find_bodies(rig, image)
    agreed = proposals.score[:, 0] > 0
    image, person = image[:, agreed], proposals.person[agreed, 0].T
    xy = pick_people(rig.undistort_views(image[..., :2]), person, np.nan)
    return triangulate(rig, xy, pick_people(image[..., 2], person, 0)).points


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
    xy, weight = pick_people(xy_px, person, np.nan), pick_people(confidence, person, 0)
    all_views = triangulate(rig, xy, weight)
    shows: NDArray[np.bool_] = np.asarray((confidence > 0).any((2, 3)))
    lasting = _root_medians(_products_px2(xy - rig.project(all_views.points)))
    if views > 2:  # whoever hides the person is taken for them at times
        lasting[2 * (person >= 0).sum(1) < shows.sum(1)] = np.nan
    # Where the person is not matched and another camera shows more people, those shown may be others.
    count = (confidence > 0).any(3).sum(2)
    comparable = shows & ((person >= 0) | (count == count.max(0)))
    left_out, least_left_out = np.full((2, views), np.nan)
    without = leave_one_out(rig, xy, weight) if views > 2 else ()
    for v, points in enumerate(without):
        if 2 * comparable[v].sum() < shows[v].sum():
            continue
        expected = rig.select([rig.names[v]]).project(points)[0]
        error = nearest_detection(xy_px[v], confidence[v], expected) - expected
        error[~comparable[v]] = np.nan
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


def check_each_camera(rig: Rig, xy_px: Array, confidence: Array, stretches_s: Sequence[Array]) -> Agreement:
    """Share of the frames in which each camera shows a person, as the agreement of cameras that cannot be
    compared.

    Arguments as of ``compare_cameras``.
    """
    cfg, none = MatchConfig(), np.full(len(rig), np.nan)
    frames = np.zeros(len(rig))
    for v, name in enumerate(rig.names):
        one = rig.select([name])
        for at, time_s in _split(stretches_s):
            frames[v] += (follow_longest(one, xy_px[[v], at], confidence[[v], at], time_s, cfg) >= 0).sum()
    return Agreement(frames / confidence.shape[1], none, none, none, none, none)


def choose_stretches(frames: int) -> list[NDArray[np.int64]]:
    """Choose the frames in which cameras are compared: all, or four stretches of a long recording."""
    if frames <= _STRETCH_FRAMES * _STRETCHES:
        return [np.arange(frames)]
    starts = spread(np.arange(frames - _STRETCH_FRAMES + 1), _STRETCHES)
    return [np.arange(start, start + _STRETCH_FRAMES) for start in starts]


def nearest_detection(xy: Array, confidence: Array, expected: Array) -> Array:
    """Detection (T, K, 2) nearest to the expected points (T, K, 2), of those with xy (T, P, K, 2) and
    confidence (T, P, K); NaN where a point is not seen."""
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
