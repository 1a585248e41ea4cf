"""Trajectories of people in cameras with unknown clocks.

A single person needs no association. For several, rough clocks come first, at which the detections of one
camera meet those of another; then people are tracked, and every detection goes to the nearest person. Without
a calibration one person is used: the one whose points fit an epipolar geometry at some lag.

Axes: V views, T frames, D detections in a picture, K keypoints, P people, S instants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from models.geometry.association import MatchConfig, finite_median
from models.geometry.lags import LagCurves, consistent_offsets, epipolar_curves
from models.geometry.people import track_people
from models.geometry.tracking import figures, track_figures
from models.geometry.tracks import Tracks
from models.geometry.trajectories import STEP_S, Trajectories, smooth
from models.geometry.triangulation import rays
from pipeline.array_types import Array, Ints
from pipeline.cameras import Rig
from pipeline.timeline import spread

MAX_COMPARED_PEOPLE: Final = 6
"""Most people that are compared: more do not improve the clocks."""
_MIN_SINGLE_SHARE: Final = 0.97
"""Least share of frames with at most one detection, in every camera, of a single person."""
_MEETING_STEPS: Final = 2
"""Steps from one lag to the next at which all detections are compared."""
_MEETING_FRAMES: Final = 70
"""Most frames of a camera that are compared at a lag."""
_MEETING_GAP_M: Final = 0.07
"""Distance of two rays at which a point agrees by half."""
_MIN_MEETING_POINTS: Final = 6
_TRACK_HZ, _MAX_MOMENTS = 10.0, 300
"""Moments a second at which people are tracked, and most of them."""
_MIN_TRACKED_MOMENTS: Final = 8
_BRIDGE_S: Final = 0.35
"""Longest time between two tracked moments of a person in a camera that is interpolated, by half."""
_MAX_DISTANCE_RATIO: Final = 0.4
"""Largest distance of a person's detection from the interpolated one, over the person's size."""
_MIN_WEIGHT_RATIO: Final = 0.3
"""Least weight of a candidate over that of the largest, without a calibration."""


@dataclass(frozen=True)
class OwnDetections:
    """Detections of one camera, on its own clock."""

    time_s: Array
    """(T,) rising"""
    xy_px: Array
    """(T, D, K, 2) undistorted, NaN where missing"""
    confidence: Array
    """(T, D, K) 0 where missing"""

    def trajectories(self, index: Ints) -> Trajectories:
        """Trajectories of the detections ``index`` (T,); −1 for none."""
        t, d = np.arange(len(index)), np.maximum(index, 0)
        confidence = np.where((index >= 0)[:, None], self.confidence[t, d], 0)
        return smooth(self.time_s, self.xy_px[t, d], confidence)


def find_trajectories(
    rig: Rig | None, cameras: Sequence[OwnDetections], reach_s: float
) -> list[Trajectories]:
    """Trajectories of the same people's points in every camera: world directions, or pixels without a rig.

    reach_s: largest lag between two clocks.
    """
    if any(not c.confidence.size for c in cameras):
        raise ValueError("a camera has no frames or detections")
    visible = [(c.confidence > 0).sum(-1) >= MatchConfig().min_points for c in cameras]
    if all((each.sum(1) <= 1).mean() >= _MIN_SINGLE_SHARE for each in visible):
        index = [np.where(each.any(1), each.argmax(1), -1) for each in visible]
        pixels = [c.trajectories(i) for c, i in zip(cameras, index, strict=True)]
    elif rig is None:
        return _one_person(cameras, reach_s)
    else:
        pixels = _several_people(rig, cameras, reach_s)
    if rig is None:
        return pixels
    return [c.map(rig.R[v].T @ np.linalg.inv(rig.K[v])) for v, c in enumerate(pixels)]


def _several_people(rig: Rig, cameras: Sequence[OwnDetections], reach_s: float) -> list[Trajectories]:
    """Pixel trajectories of up to ``MAX_COMPARED_PEOPLE`` people, joined along the points."""
    offset_s = meeting_offsets(rig, cameras, reach_s)
    begin = max(c.time_s[0] + o for c, o in zip(cameras, offset_s, strict=True))
    end = min(c.time_s[-1] + o for c, o in zip(cameras, offset_s, strict=True))
    moment = np.linspace(begin, end, max(int(min((end - begin) * _TRACK_HZ, _MAX_MOMENTS)), 2))
    frame = np.stack([_nearest(c.time_s, moment - o) for c, o in zip(cameras, offset_s, strict=True)])
    detections, keypoints = max(c.xy_px.shape[1] for c in cameras), cameras[0].xy_px.shape[2]
    xy = np.full((len(cameras), len(moment), detections, keypoints, 2), np.nan)
    confidence = np.zeros(xy.shape[:-1])
    for v, c in enumerate(cameras):
        count = c.xy_px.shape[1]
        xy[v, :, :count], confidence[v, :, :count] = c.xy_px[frame[v]], c.confidence[frame[v]]
    owned, _ = track_people(rig, xy, confidence, moment, Tracks.none(), MatchConfig())
    visible = {int(s): (owned.serial == s).any(2) for s in owned.tracks}  # (V, moments)
    people = [s for s, at in visible.items() if (at.sum(1) >= _MIN_TRACKED_MOMENTS).sum() > 1]
    people = sorted(people, key=lambda s: -int(visible[s].sum()))[:MAX_COMPARED_PEOPLE]
    out = []
    for v, c in enumerate(cameras):
        distance = np.full((len(people), *c.confidence.shape[:2]), np.inf)
        for p, serial in enumerate(people):
            at, d = np.nonzero(owned.serial[v] == serial)
            if len(at):
                at, first = np.unique(at, return_index=True)
                distance[p] = _distances(c, frame[v, at], d[first])
        own = np.full((len(c.time_s), keypoints * max(len(people), 1), 2), np.nan)
        own_confidence = np.zeros(own.shape[:-1])
        least = distance.min(0, initial=np.inf)
        for p in range(len(people)):
            d, nearest = distance[p].argmin(1), distance[p].min(1)
            t = np.flatnonzero((nearest < _MAX_DISTANCE_RATIO) & (nearest <= least[np.arange(len(d)), d]))
            points = slice(p * keypoints, (p + 1) * keypoints)
            own[t, points], own_confidence[t, points] = c.xy_px[t, d[t]], c.confidence[t, d[t]]
        out.append(smooth(c.time_s, own, own_confidence))
    return out


def _nearest(time_s: Array, wanted: Array) -> Ints:
    """Index of the nearest of rising times (T,) to each of others (S,)."""
    right = np.clip(np.searchsorted(time_s, wanted), 1, len(time_s) - 1)
    return np.where(wanted - time_s[right - 1] < time_s[right] - wanted, right - 1, right)


def _distances(camera: OwnDetections, frame: Ints, index: Ints) -> Array:
    """(T, D) median distance of each detection from a person, over the person's size; infinite where unknown.

    frame, index (N,): rising frames with a detection of the person, and its index.
    """
    frame, first = np.unique(frame, return_index=True)
    index = index[first]
    xy = np.where((camera.confidence[frame, index] > 0)[..., None], camera.xy_px[frame, index], np.nan)
    time_s, t = camera.time_s, np.arange(len(camera.time_s))
    right = np.clip(np.searchsorted(frame, t), 0, len(frame) - 1)
    left = np.where(frame[right] > t, np.maximum(right - 1, 0), right)
    before_s, after_s = time_s[frame[left]], time_s[frame[right]]
    span_s = after_s - before_s
    share = np.clip((time_s - before_s) / np.where(span_s > 0, span_s, 1), 0, 1)[:, None, None]
    person = xy[left] * (1 - share) + xy[right] * share
    size = finite_median(np.linalg.norm(person - finite_median(person, 1)[:, None], axis=-1))
    distance_px = np.linalg.norm(camera.xy_px - person[:, None], axis=-1)
    median_px = finite_median(np.where(camera.confidence > 0, distance_px, np.nan))
    ratio = median_px / np.maximum(size, 1e-6)[:, None]
    outside = (time_s < before_s - _BRIDGE_S) | (time_s > after_s + _BRIDGE_S)
    far = np.asarray((span_s > 2 * _BRIDGE_S) | outside)
    return np.where(far[:, None] | ~np.isfinite(ratio), np.inf, ratio)


def meeting_offsets(rig: Rig, cameras: Sequence[OwnDetections], reach_s: float) -> Array:
    """(V,) offsets of calibrated cameras' clocks, seconds, at which detections of different cameras meet.

    The vertex of the parabola through the least cost and its neighbours.
    """
    curves = _meeting_curves(rig, cameras, reach_s)
    views = curves.component(0.0)
    coarse = consistent_offsets(curves, curves.mean(), views)
    middle = len(coarse.change) // 2
    before, least, after = coarse.curve[:, middle - 1 : middle + 2].T
    bend = before - 2 * least + after
    change = np.where(bend > 0, 0.5 * (before - after) / np.where(bend > 0, bend, 1), 0)
    # The change holds for a camera that moves alone; here all move.
    steps = coarse.steps + np.clip(change, -0.5, 0.5) * (len(views) - 1) / len(views)
    return np.asarray((steps - steps[views[0]]) * _MEETING_STEPS * STEP_S)


def _meeting_curves(rig: Rig, cameras: Sequence[OwnDetections], reach_s: float) -> LagCurves:
    """Cost curves of calibrated cameras: disagreement of each detection with the best one of another camera.

    Lags are in units of ``_MEETING_STEPS`` steps.
    """
    step_s = _MEETING_STEPS * STEP_S
    steps = int(reach_s / step_s)
    lag = np.arange(-steps, steps + 1)
    pairs = tuple(combinations(range(len(cameras)), 2))
    cost, weight = np.full((len(pairs), 1, len(lag)), np.nan), np.zeros(len(pairs))
    directions, roots = [], []  # (T, K, D, 3) and square root of the confidence (T, K, D)
    for v, c in enumerate(cameras):
        known = (c.confidence > 0)[..., None]
        ray = rays(rig.select([rig.names[v]]), np.where(known, c.xy_px, 0.0)[None])[0]
        directions.append(np.where(known, ray, 0).transpose(0, 2, 1, 3).astype(np.float32))
        roots.append(np.sqrt(c.confidence).astype(np.float32).transpose(0, 2, 1))
    for p, (a, b) in enumerate(pairs):
        turned = np.cross(directions[b], (rig.centres[b] - rig.centres[a]).astype(np.float32))
        at = spread(np.arange(len(cameras[a].time_s)), _MEETING_FRAMES)
        agreement, total = np.zeros((2, len(lag)))
        half_s = 0.5 * step_s + float(np.median(np.diff(cameras[b].time_s)))
        for k, steps_later in enumerate(lag.tolist()):
            wanted_s = cameras[a].time_s[at] - steps_later * step_s
            j = _nearest(cameras[b].time_s, wanted_s)
            close = np.abs(cameras[b].time_s[j] - wanted_s) <= half_s
            i, j = at[close], j[close]
            w = roots[a][i][..., None] * roots[b][j][:, :, None]  # (S, K, D, D)
            volume = directions[a][i] @ turned[j].swapaxes(-1, -2)
            sin2 = 1 - (directions[a][i] @ directions[b][j].swapaxes(-1, -2)) ** 2
            w = np.where(sin2 > 1e-3, w, 0)
            gap2 = volume**2 / np.where(w > 0, sin2, 1)
            agree = (w / (1 + gap2 / _MEETING_GAP_M**2)).sum(1) / np.maximum(w.sum(1), 1e-9)
            agree = np.where((w > 0).sum(1) >= _MIN_MEETING_POINTS, agree, 0)  # (S, D, D)
            present = (cameras[a].confidence[i] > 0).sum(-1) >= _MIN_MEETING_POINTS
            agreement[k] = agree.max(2)[present].sum()
            total[k] = present.sum()
        weight[p] = agreement.max()
        enough = total >= max(0.5 * total.max(), 1)
        cost[p, 0] = np.where(enough, 1 - agreement / np.maximum(total, 1), np.nan)
    return LagCurves(lag, pairs, cost, weight)


def _one_person(cameras: Sequence[OwnDetections], reach_s: float) -> list[Trajectories]:
    """Pixel trajectories of one person among several."""
    cfg = MatchConfig()
    candidates = []
    for c in cameras:
        seen = figures(c.xy_px, c.confidence, cfg.min_points)
        tracks = track_figures(seen, c.time_s, cfg.reach_m, cfg.speed_m_s, _MIN_WEIGHT_RATIO)
        candidates.append([c.trajectories(track) for track in tracks[:MAX_COMPARED_PEOPLE]])
    root = min(range(len(cameras)), key=lambda v: len(candidates[v]))
    chosen = [some[0] for some in candidates]
    groups = [np.arange(cameras[0].xy_px.shape[2])]
    for v, some in enumerate(candidates):
        if v != root and len(some) > 1:
            costs = [epipolar_curves([chosen[root], one], reach_s, groups).cost for one in some]
            chosen[v] = some[int(np.argmin([np.nanmin(np.append(c, 1.0)) for c in costs]))]
    return chosen
