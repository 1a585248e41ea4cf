"""Assignment of the detections of a frame to tracks, by the distances of rays from predicted keypoints.

In metres, whatever the size in the picture and the number of views. With a single camera keypoints are
compared in its picture, at the scale at which the person is as large as an adult.

N tracks, M detections of all views in a frame, K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from models.geometry.association import MatchConfig, finite_median, ray_agreement
from models.geometry.tracking import EXTENT_M
from models.geometry.tracks import LIMITS, Tracks
from models.geometry.triangulation import triangulate
from pipeline.array_types import Array, Ints
from pipeline.cameras import Rig
from pipeline.skeleton import BODY_25

Bools = NDArray[np.bool_]

MIRROR: Final = np.array(BODY_25.flips)


@dataclass(frozen=True)
class FrameDetections:
    """Detections of all views in a frame."""

    view: Ints
    """(M,)"""
    index: Ints
    """(M,) index of the detection in its view"""
    xy_px: Array
    """(M, K, 2)"""
    confidence: Array
    """(M, K) 0 where missing"""
    ray: Array
    """(M, K, 3) unit direction, world; 0 where missing"""
    centre: Array
    """(M, 3) of the camera, metres, world"""

    @cached_property
    def visible_px(self) -> Array:
        """(M, K, 2) ``xy_px``, NaN where missing"""
        return np.where((self.confidence > 0)[..., None], self.xy_px, np.nan)

    def exchange(self, exchanged: Bools) -> FrameDetections:
        """Exchange left and right of some detections (M,)."""

        def other(x: Array) -> Array:
            return np.where(exchanged.reshape(-1, *[1] * (x.ndim - 1)), x[:, MIRROR], x)

        return replace(self, xy_px=other(self.xy_px), confidence=other(self.confidence), ray=other(self.ray))


@dataclass(frozen=True)
class TrackMatch:
    """Assignment of the detections of a frame to N tracks."""

    detections: FrameDetections
    """With left and right exchanged back"""
    owner: Ints
    """(M,) index of the track, −1 for none"""
    fragment: Bools
    """(M,) another detection of the view shows more of the same person"""
    mirror_gain: Array
    """(M,) agreement gained by exchanging left and right of the detection; negative where it is lost"""
    mirrored: Ints
    """(M,) 1 where that gain is clear: left and right are exchanged; −1 where the loss is clear; else 0"""
    measured: Array
    """(N, K, 3) triangulated keypoints, NaN elsewhere"""
    body: Array
    """(N, K, 3) ``measured``; elsewhere predicted keypoints, shifted along with these"""


def match_tracks(
    rig: Rig, detections: FrameDetections, tracks: Tracks, holder: Array, now: float, cfg: MatchConfig
) -> TrackMatch:
    """Assign detections to tracks, twice: by the predicted bodies, then by the triangulated ones.

    holder: (M,) as of ``clutter_holder``.
    """
    count, size = len(tracks.serial), len(detections.view)
    ahead_s = (now - tracks.time_s)[:, None, None]
    body = predicted = tracks.points + tracks.velocity[:, None] * ahead_s
    owner, gain = np.full(size, -1), np.zeros(size)
    mirrored, fragment = np.zeros(size, np.int64), np.zeros(size, bool)
    measured = np.full((count, len(BODY_25), 3), np.nan)
    if not count or not size:
        return TrackMatch(detections, owner, fragment, gain, mirrored, measured, predicted)
    reach_m = LIMITS.jump_m + cfg.speed_m_s * (now - tracks.measured_s)
    barred = ~np.isnan(holder) & (holder != tracks.serial[:, None])
    for half_m in (LIMITS.first_pass * cfg.agreement_m, cfg.agreement_m):
        score, shared = body_agreement(rig, body, detections, half_m)
        if body is predicted:
            gain, mirrored = _mirror_gain(rig, body, detections, score, shared, half_m)
            if (mirrored > 0).any():
                detections = detections.exchange(mirrored > 0)
                score, shared = body_agreement(rig, body, detections, half_m)
        if barred.any():
            score = np.where(barred, 0, score)
        before = owner, fragment
        owner = _assign(score, shared, detections.view)
        fragment = _join_fragments(owner, score, shared, detections)
        if body is not predicted and all(map(np.array_equal, before, (owner, fragment))):
            break  # the same detections give the same bodies
        measured = triangulate_tracks(rig, detections, owner, fragment, count)
        _reject_jumps(rig, measured, predicted, reach_m, owner, score)
        enough = np.isfinite(measured[..., 0]).sum(1) >= 3
        shift = np.where(enough[:, None], finite_median(measured - body, 1), 0)[:, None]
        body = np.where(np.isfinite(measured), measured, body + shift)
    # A view that disagrees with the body of all views shows another person.
    score, _ = body_agreement(rig, body, detections, cfg.agreement_m)
    wrong = (owner >= 0) & (score[owner, np.arange(size)] < LIMITS.agreement)
    if wrong.any():
        owner = np.where(wrong, -1, owner)
        measured = triangulate_tracks(rig, detections, owner, fragment, count)
        _reject_jumps(rig, measured, predicted, reach_m, owner, score)
    return TrackMatch(detections, owner, fragment & (owner >= 0), gain, mirrored, measured, body)


def _reject_jumps(
    rig: Rig, measured: Array, predicted: Array, reach_m: Array, owner: Ints, score: Array
) -> None:
    """Reject, in place, measured bodies (N, K, 3) out of reach (N,) of the predicted ones, of views that meet
    by chance; the track keeps in ``owner`` the one detection that agrees best with it, by score (N, M)."""
    if len(rig) > 1:
        moved_m = np.linalg.norm(finite_median(measured - predicted, 1), axis=1)
        for n in np.flatnonzero(moved_m > reach_m):
            mine = np.flatnonzero(owner == n)
            owner[mine[score[n, mine] < score[n, mine].max()]] = -1
            measured[n] = np.nan


def body_agreement(rig: Rig, points: Array, detections: FrameDetections, half_m: float) -> tuple[Array, Ints]:
    """Share (N, M) of each detection's confidence that agrees with each body (N, K, 3), and number (N, M) of
    keypoints that both have. A keypoint ``half_m`` off agrees by half."""
    if len(rig) > 1:
        score, _, shared = ray_agreement(
            points, detections.centre, detections.ray, detections.confidence, half_m
        )
        return score, shared
    both = np.isfinite(points[..., 0])[:, None] & (detections.confidence > 0)
    offset_px = points[:, None, :, :2] - np.where(both[..., None], detections.xy_px, 0)
    distance2 = (offset_px**2).sum(-1) * (adult_pixel_m(detections.visible_px) ** 2)[:, None]
    weight = np.where(both, detections.confidence, 0)
    agreeing = np.where(both, weight / (1 + np.where(both, distance2, 0) / half_m**2), 0)
    return agreeing.sum(-1) / np.maximum(weight.sum(-1), 1e-9), both.sum(-1)


def _mirror_gain(
    rig: Rig, body: Array, detections: FrameDetections, score: Array, shared: Ints, half_m: float
) -> tuple[Array, Ints]:
    """``mirror_gain`` and ``mirrored`` of ``TrackMatch``: by the track that each way agrees with best."""
    exchanged_score, common = body_agreement(rig, body[:, MIRROR], detections, half_m)
    straight = np.where(shared >= LIMITS.shared, score, 0).max(0)
    comparable = common >= LIMITS.exchange_shared
    exchanged = np.where(comparable, exchanged_score, 0).max(0)
    gain = np.where(comparable.any(0), exchanged - straight, 0)
    better, worse = (gain > LIMITS.exchange_gain) & (exchanged > 0.5), gain < -LIMITS.exchange_gain
    return gain, better.astype(np.int64) - worse


def _assign(score: Array, shared: Ints, view: Ints) -> Ints:
    """(M,) track of each detection, −1 for none: at most one detection of a view a track (Kuhn–Munkres)."""
    good = (shared >= LIMITS.shared) & (score >= LIMITS.agreement)
    gain = np.where(good, score * np.sqrt(shared / len(BODY_25)), 0)  # by how much of the body it shows
    owner = np.full(len(view), -1)
    for v in {*view[good.any(0)].tolist()}:
        here = np.flatnonzero(view == v)
        for n, m in zip(*linear_sum_assignment(-gain[:, here]), strict=True):
            if gain[n, here[m]] > 0:
                owner[here[m]] = n
    return owner


def _join_fragments(owner: Ints, score: Array, shared: Ints, detections: FrameDetections) -> Bools:
    """(M,) detections that are another part of a person who has one in the view; enters their track in
    ``owner``."""
    fragment = np.zeros(len(owner), bool)
    score = np.where(shared >= LIMITS.fragment_shared, score, 0)
    for m in np.flatnonzero((owner < 0) & (score.max(0) >= LIMITS.fragment_agreement)):
        n = int(score[:, m].argmax())
        mates = np.flatnonzero((owner == n) & (detections.view == detections.view[m]))
        if len(mates):
            both = (detections.confidence[mates[0]] > 0) & (detections.confidence[m] > 0)
            gap_px = np.linalg.norm(detections.xy_px[mates[0]][both] - detections.xy_px[m][both], axis=1)
            if both.sum() <= 1 or (gap_px < LIMITS.fragment_px).mean() > 0.5:
                owner[m], fragment[m] = n, True
    return fragment


def triangulate_tracks(
    rig: Rig, detections: FrameDetections, owner: Ints, fragment: Bools, count: int
) -> Array:
    """(count, K, 3) keypoints of each track, NaN where fewer views than two, or than the only one, agree."""
    xy = np.full((len(rig), count, len(BODY_25), 2), np.nan)
    confidence = np.zeros(xy.shape[:-1])
    whole = (owner >= 0) & ~fragment  # at most one a view and person
    xy[detections.view[whole], owner[whole]] = detections.xy_px[whole]
    confidence[detections.view[whole], owner[whole]] = detections.confidence[whole]
    for m in np.flatnonzero((owner >= 0) & fragment):
        at = detections.view[m], owner[m]
        free = (detections.confidence[m] > 0) & (confidence[at] == 0)
        xy[at][free], confidence[at][free] = detections.xy_px[m][free], detections.confidence[m][free]
    if len(rig) == 1:
        xy = np.where(confidence[..., None] > 0, xy, np.nan)
        return np.concatenate([xy[0], np.zeros_like(xy[0][..., :1])], -1)
    result = triangulate(rig, xy, confidence, iterations=3)
    return np.where((result.used.sum(0) >= 2)[..., None], result.points, np.nan)


def unit_m(rig: Rig, points: Array) -> Array:
    """(N,) length of the unit of bodies (N, K, 3) in metres: with a single camera it is a pixel."""
    return np.ones(len(points)) if len(rig) > 1 else adult_pixel_m(points)


def adult_pixel_m(points: Array) -> Array:
    """(N,) metres a pixel at which people (N, K, C), NaN where missing, are as large as an adult."""
    size = finite_median(np.linalg.norm(points - finite_median(points, 1)[:, None], axis=-1))
    return np.asarray(EXTENT_M / np.maximum(size, 1e-6))
