"""Trajectories of people in cameras with unknown clocks.

A single person is whoever is detected. For several, rough clocks come first, at which the detections of one
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
from models.geometry.tracking import figures, tracks
from models.geometry.tracks import Tracks
from models.geometry.trajectories import STEP_S, Trajectories, smoothed
from models.geometry.triangulation import rays
from pipeline.array_types import Array, Ints
from pipeline.cameras import Rig
from pipeline.timeline import spread

MAX_COMPARED_PEOPLE: Final = 6
"""Most people that are compared: more tell nothing new about clocks."""
_MIN_SINGLE_SHARE: Final = 0.97
"""Share of frames with at most one detection, in every camera, from which on there is a single person."""
_MEETING_STEPS: Final = 2
"""Steps from one lag to the next at which all detections are compared."""
_MEETING_FRAMES: Final = 70
_MEETING_GAP_M: Final = 0.07
"""Distance of two rays at which a point agrees by half."""
_MIN_MEETING_POINTS: Final = 6
_TRACK_HZ, _TRACK_FRAMES = 10.0, 300
"""Moments a second at which people are tracked, and most of them."""
_MIN_TRACKED: Final = 8
"""Fewest moments at which a person is tracked."""
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
    """(T,) rising."""
    xy_px: Array
    """(T, D, K, 2) undistorted, NaN where missing."""
    confidence: Array
    """(T, D, K) 0 where missing."""

    def main(self, which: Ints) -> Trajectories:
        """Trajectories of the detections ``which`` (T,); −1 for none."""
        t, picked = np.arange(len(which)), np.maximum(which, 0)
        sure = np.where((which >= 0)[:, None], self.confidence[t, picked], 0)
        return smoothed(self.time_s, self.xy_px[t, picked], sure)


def seen_trajectories(
    rig: Rig | None, cameras: Sequence[OwnDetections], reach_s: float
) -> list[Trajectories]:
    """Trajectories of the same people's points in every camera: world directions, or pixels without a rig.

    reach_s: largest lag between two clocks.
    """
    if any(not c.confidence.size for c in cameras):
        raise ValueError("a camera has no frames or detections")
    least = MatchConfig().min_points
    there = [(c.confidence > 0).sum(-1) >= least for c in cameras]
    if all((t.sum(1) <= 1).mean() >= _MIN_SINGLE_SHARE for t in there):
        found = [c.main(np.where(t.any(1), t.argmax(1), -1)) for c, t in zip(cameras, there, strict=True)]
    elif rig is None:
        return _one_person(cameras, reach_s)
    else:
        found = _several_people(rig, cameras, reach_s)
    if rig is None:
        return found
    return [c.mapped(rig.R[v].T @ np.linalg.inv(rig.K[v])) for v, c in enumerate(found)]


def _several_people(rig: Rig, cameras: Sequence[OwnDetections], reach_s: float) -> list[Trajectories]:
    """Pixel trajectories of up to ``MAX_COMPARED_PEOPLE`` people, joined along the points."""
    offset_s = meeting_offsets(rig, cameras, reach_s)
    begin = max(c.time_s[0] + o for c, o in zip(cameras, offset_s, strict=True))
    end = min(c.time_s[-1] + o for c, o in zip(cameras, offset_s, strict=True))
    count = max(int(min((end - begin) * _TRACK_HZ, _TRACK_FRAMES)), 2)
    moment = np.linspace(begin, end, count)
    frame = np.stack([_nearest(c.time_s, moment - o) for c, o in zip(cameras, offset_s, strict=True)])
    most = max(c.xy_px.shape[1] for c in cameras)
    points = cameras[0].xy_px.shape[2]
    xy = np.full((len(cameras), count, most, points, 2), np.nan)
    sure = np.zeros(xy.shape[:-1])
    for v, c in enumerate(cameras):
        several = slice(c.xy_px.shape[1])
        xy[v, :, several], sure[v, :, several] = c.xy_px[frame[v]], c.confidence[frame[v]]
    owned, _ = track_people(rig, xy, sure, moment, Tracks.none(), MatchConfig())
    shown = {int(s): (owned.serial == s).any(2) for s in owned.tracks}
    people = [s for s, at in shown.items() if (at.sum(1) >= _MIN_TRACKED).sum() > 1]
    people = sorted(people, key=lambda s: -int(shown[s].sum()))[:MAX_COMPARED_PEOPLE]
    out = []
    for v, c in enumerate(cameras):
        near = np.full((len(people), *c.confidence.shape[:2]), np.inf)
        for p, serial in enumerate(people):
            at, d = np.nonzero(owned.serial[v] == serial)
            if len(at):
                at, first = np.unique(at, return_index=True)
                near[p] = _distances(c, frame[v, at], d[first])
        own = np.full((len(c.time_s), points * max(len(people), 1), 2), np.nan)
        trust = np.zeros(own.shape[:-1])
        nearest = near.min(0, initial=np.inf)
        for p in range(len(people)):
            which = near[p].argmin(1)
            away = near[p].min(1)
            t = np.flatnonzero((away < _MAX_DISTANCE_RATIO) & (away <= nearest[np.arange(len(which)), which]))
            place = slice(p * points, (p + 1) * points)
            own[t, place], trust[t, place] = c.xy_px[t, which[t]], c.confidence[t, which[t]]
        out.append(smoothed(c.time_s, own, trust))
    return out


def _nearest(time_s: Array, wanted: Array) -> Ints:
    """Index of the nearest of rising times (T,) to each of others (S,)."""
    right = np.clip(np.searchsorted(time_s, wanted), 1, len(time_s) - 1)
    return np.where(wanted - time_s[right - 1] < time_s[right] - wanted, right - 1, right)


def _distances(camera: OwnDetections, frame: Ints, which: Ints) -> Array:
    """(T, D) median distance of each detection from a person, over the person's size; infinite where unknown.

    frame, which (N,): increasing frames with a detection of the person, and its index.
    """
    frame, first = np.unique(frame, return_index=True)
    which = which[first]
    xy, sure = camera.xy_px[frame, which], camera.confidence[frame, which] > 0
    time_s = camera.time_s
    right = np.clip(np.searchsorted(frame, np.arange(len(time_s))), 0, len(frame) - 1)
    left = np.where(frame[right] > np.arange(len(time_s)), np.maximum(right - 1, 0), right)
    span = time_s[frame[right]] - time_s[frame[left]]
    share = np.clip((time_s - time_s[frame[left]]) / np.where(span > 0, span, 1), 0, 1)[:, None, None]
    place = np.where(sure[..., None], xy, np.nan)
    place = place[left] * (1 - share) + place[right] * share
    size = finite_median(np.linalg.norm(place - finite_median(place, 1)[:, None], axis=-1))
    away = np.linalg.norm(camera.xy_px - place[:, None], axis=-1)
    median_px = finite_median(np.where(camera.confidence > 0, away, np.nan))
    distance = median_px / np.maximum(size, 1e-6)[:, None]
    out = (time_s < time_s[frame[left]] - _BRIDGE_S) | (time_s > time_s[frame[right]] + _BRIDGE_S)
    far = np.asarray((span > 2 * _BRIDGE_S) | out)
    return np.where(far[:, None] | ~np.isfinite(distance), np.inf, distance)


def meeting_offsets(rig: Rig, cameras: Sequence[OwnDetections], reach_s: float) -> Array:
    """(V,) offsets of calibrated cameras' clocks, seconds, at which detections of different cameras meet.

    The vertex of the parabola through the least cost and its neighbours.
    """
    curves = meeting_curves(rig, cameras, reach_s)
    views = curves.component(0.0)
    found = consistent_offsets(curves, curves.mean(), views)
    middle = len(found.change) // 2
    before, least, after = found.curve[:, middle - 1 : middle + 2].T
    bend = before - 2 * least + after
    change = np.where(bend > 0, 0.5 * (before - after) / np.where(bend > 0, bend, 1), 0)
    # The change holds for a camera that moves alone; here all move.
    steps = found.steps + np.clip(change, -0.5, 0.5) * (len(views) - 1) / len(views)
    return np.asarray((steps - steps[views[0]]) * _MEETING_STEPS * STEP_S)


def meeting_curves(rig: Rig, cameras: Sequence[OwnDetections], reach_s: float) -> LagCurves:
    """Cost curves of calibrated cameras: disagreement of each detection with the best one of another camera.

    Lags are in units of ``_MEETING_STEPS`` steps.
    """
    step = _MEETING_STEPS * STEP_S
    steps = int(reach_s / step)
    lag = np.arange(-steps, steps + 1)
    pairs = tuple(combinations(range(len(cameras)), 2))
    cost, weight = np.full((len(pairs), 1, len(lag)), np.nan), np.zeros(len(pairs))
    directions = []
    for v, c in enumerate(cameras):
        sure = c.confidence > 0
        ray = rays(rig.select([rig.names[v]]), np.where(sure[..., None], c.xy_px, 0.0)[None])[0]
        ray = np.where(sure[..., None], ray, 0).transpose(0, 2, 1, 3)  # (T, K, D, 3)
        directions.append(ray.astype(np.float32))
    for p, (a, b) in enumerate(pairs):
        base = rig.centres[b] - rig.centres[a]
        turned = np.cross(directions[b], base.astype(np.float32))
        at = spread(np.arange(len(cameras[a].time_s)), _MEETING_FRAMES)
        own, trust = directions[a][at], np.sqrt(cameras[a].confidence[at]).astype(np.float32)
        trust = trust.transpose(0, 2, 1)[..., None]
        other = np.sqrt(cameras[b].confidence).astype(np.float32).transpose(0, 2, 1)[:, :, None]
        number, total = np.zeros((2, len(lag)))
        half = 0.5 * step + float(np.median(np.diff(cameras[b].time_s)))
        for k, steps_later in enumerate(lag.tolist()):
            wanted = cameras[a].time_s[at] - steps_later * step
            j = _nearest(cameras[b].time_s, wanted)
            some = np.flatnonzero(np.abs(cameras[b].time_s[j] - wanted) <= half)
            j = j[some]
            w = trust[some] * other[j]  # (S, K, D, D)
            volume = own[some] @ turned[j].swapaxes(-1, -2)
            sin2 = 1 - (own[some] @ directions[b][j].swapaxes(-1, -2)) ** 2
            w = np.where(sin2 > 1e-3, w, 0)
            gap2 = volume**2 / np.where(w > 0, sin2, 1)
            agree = (w / (1 + gap2 / _MEETING_GAP_M**2)).sum(1) / np.maximum(w.sum(1), 1e-9)
            agree = np.where((w > 0).sum(1) >= _MIN_MEETING_POINTS, agree, 0)  # (S, D, D)
            present = (cameras[a].confidence[at[some]] > 0).sum(-1) >= _MIN_MEETING_POINTS
            number[k] = agree.max(2)[present].sum()
            total[k] = present.sum()
        weight[p] = number.max()
        enough = total >= max(0.5 * total.max(), 1)
        cost[p, 0] = np.where(enough, 1 - number / np.maximum(total, 1), np.nan)
    return LagCurves(lag, pairs, cost, weight)


def _one_person(cameras: Sequence[OwnDetections], reach_s: float) -> list[Trajectories]:
    """Pixel trajectories of one person among several."""
    cfg = MatchConfig()
    candidates = []
    for c in cameras:
        shown = figures(c.xy_px, c.confidence, cfg.min_points)
        found = tracks(shown, c.time_s, cfg.reach_m, cfg.speed_m_s)
        weights = [float(shown.weight[np.arange(len(k)), np.maximum(k, 0)][k >= 0].sum()) for k in found]
        kept = [k for k, w in zip(found, weights, strict=True) if w >= _MIN_WEIGHT_RATIO * weights[0]][
            :MAX_COMPARED_PEOPLE
        ]
        candidates.append([c.main(k) for k in kept])
    root = min(range(len(cameras)), key=lambda v: len(candidates[v]))
    chosen = [some[0] for some in candidates]
    groups = [np.arange(cameras[0].xy_px.shape[2])]
    for v, some in enumerate(candidates):
        if v != root and len(some) > 1:
            costs = [epipolar_curves([chosen[root], one], reach_s, groups).cost for one in some]
            chosen[v] = some[int(np.argmin([np.nanmin(np.append(c, 1.0)) for c in costs]))]
    return chosen
