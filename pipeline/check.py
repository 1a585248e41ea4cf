"""Check a recording without running it: do the cameras agree about where and when things are?

Looks at a bounded number of frames. Every camera is compared with what the others say: the person is
triangulated without it, projected into it, and compared with what it saw, also some frames earlier and later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.association import (
    MatchConfig,
    follow,
    masked_median,
    pick_people,
    propose,
    rays,
    usual_score,
)
from pipeline.cameras import Array, Rig
from pipeline.recording import Recording
from pipeline.timeline import spread
from pipeline.triangulation import triangulate

MAX_LAG: Final = 30
"""Frames, to either side, over which synchronisation is looked for."""

_BLOCK, _BLOCKS = 120, 4
_CONFIDENT = 0.3
_GAIN = 0.03
"""A lag is believed when it lowers the error by this share: on a recording in step the gain is below 0.01."""
_FLAT = 1.1
"""Without an error this many times the least at some lag, nothing moves enough to tell."""
_OTHERS = 0.25
"""One camera out of step makes others look so: lags with less than this share of the best gain are 0."""
_WORSE = 2.0
"""A camera looks wrong when it is this many times further off than any other ..."""
_REST = 0.4
"""... or when the rest disagrees this much less without it than without any other."""
_VISIBLE = 0.003
"""Error below which no camera is called wrong, radians: 5 px at a focal length of 1700 px."""


@dataclass(frozen=True)
class Check:
    """How well the cameras of a recording agree. V cameras."""

    cameras: tuple[str, ...]
    frames: int
    """How many were looked at."""
    distance_m: Array
    """(V, V) from camera to camera."""
    files: Array
    """(V,) share of the time line for which there is a keypoint file."""
    person: Array
    """(V,) share of the frames looked at in which the camera shows the person on whom the views agree."""
    residual_px: Array
    """(V,) median distance between what the camera saw and the triangulation from all; NaN if never seen."""
    left_out_px: Array
    """(V,) the same against the triangulation from the other cameras only; NaN with two cameras."""
    rest_px: Array
    """(V,) the largest median residual among the other cameras when this one is left out; NaN with two."""
    suspect: str | None
    """The camera without which the rest agrees clearly better, if there is one."""
    lag: tuple[int | None, ...]
    """Frames of the time line by which each camera is late: at t + lag it shows what the others show at t.
    None where too little moves to tell; the first of two cameras has 0."""
    lag_gain: Array
    """(V,) share of the error that the lag takes away; 0 for lag 0."""

    def rows(self) -> list[tuple[str, ...]]:
        """A table for people: a head, then one row a camera."""

        def px(value: float) -> str:
            return "-" if np.isnan(value) else f"{value:.1f}"

        head = ("camera", "nearest camera", "files", "shows person", "residual px", "left out px", "best lag")
        rows: list[tuple[str, ...]] = [head]
        nearest = self.distance_m + np.diag(np.full(len(self.cameras), np.inf))
        for v, name in enumerate(self.cameras):
            lag = self.lag[v]
            shown = "unknown" if lag is None else f"{lag:+d} ({100 * self.lag_gain[v]:.0f} %)" if lag else "0"
            rows.append(
                (
                    name,
                    f"{nearest[v].min():.2f} m",
                    f"{100 * self.files[v]:.0f} %",
                    f"{100 * self.person[v]:.0f} %",
                    px(float(self.residual_px[v])),
                    px(float(self.left_out_px[v])),
                    shown,
                )
            )
        return rows

    def findings(self) -> list[str]:
        """What looks wrong, and what to do, in sentences; empty when all is well."""
        found = []
        if not self.person.any():
            found.append(
                "no two cameras agree on a person: check calibration, frame numbers, synchronisation"
            )
        if self.suspect is not None:
            v = self.cameras.index(self.suspect)
            found.append(
                f"camera {self.suspect} looks wrong: it is {self.left_out_px[v]:.0f} px off what the others "
                f"say, and without it they agree to {self.rest_px[v]:.1f} px; calibrate it again"
            )
        late = {n: lag for n, lag in zip(self.cameras, self.lag, strict=True) if lag}
        for name, lag in late.items():
            found.append(
                f"camera {name} seems {abs(lag)} frames {'late' if lag > 0 else 'early'}; recording.yaml can "
                f"mend that, frame_offset: {{{name}: {lag}}} (added to an offset that is there already)"
            )
        return found


def check_recording(recording: Recording) -> Check:
    """Look at up to 480 frames in up to four stretches and compare the cameras."""
    rig, cfg = recording.rig, MatchConfig()
    views, frames = len(rig), len(recording)
    blocks = _blocks(frames)
    xy_parts, conf_parts, chosen_parts = [], [], []
    for at in blocks:
        people = recording.people(at)
        xy = recording.undistort(people[..., :2])
        confidence = people[..., 2].astype(np.float64)
        usual = usual_score(propose(rig, xy, confidence, cfg))
        time_s = recording.timeline.time_s[at]
        chosen, _ = follow(rig, xy, confidence, time_s, usual, np.full(4, np.nan), cfg)
        xy_parts.append(xy)
        conf_parts.append(confidence)
        chosen_parts.append(chosen)
    seen_xy = np.concatenate(
        [pick_people(x, c, np.nan) for x, c in zip(xy_parts, chosen_parts, strict=True)], axis=1
    )
    seen_conf = np.concatenate(
        [pick_people(x, c, 0) for x, c in zip(conf_parts, chosen_parts, strict=True)], axis=1
    )
    person = np.concatenate([c >= 0 for c in chosen_parts], axis=1).mean(1)
    residual = _medians(triangulate(rig, seen_xy, seen_conf).residual_px)

    left_out, rest = np.full(views, np.nan), np.full(views, np.nan)
    lags: list[int | None] = [None] * views
    gains = np.zeros(views)
    cuts = np.cumsum([len(at) for at in blocks])[:-1]
    if views == 2:
        lags[0] = 0
        errors = _pair_errors(rig, np.where(seen_conf[..., None] > _CONFIDENT, seen_xy, np.nan), cuts)
        lags[1], gains[1] = _best_lag(errors)
    else:
        for v in range(views):
            others = np.where(np.arange(views)[:, None, None] == v, 0, seen_conf)
            without = triangulate(rig, seen_xy, others)
            rest[v] = np.fmax.reduce(_medians(np.delete(without.residual_px, v, 0)))
            expected = np.split(rig.project(without.points)[v], cuts)
            # Whoever stands closest to where the others see the person, agreed on or not.
            saw = [
                _closest_person(x[v], c[v], e) for x, c, e in zip(xy_parts, conf_parts, expected, strict=True)
            ]
            miss = np.concatenate([s - e for s, e in zip(saw, expected, strict=True)])
            left_out[v] = _median(np.linalg.norm(miss, axis=-1))
            lags[v], gains[v] = _best_lag(_shifted_errors(saw, expected))
    centres = rig.centres
    believed = gains >= _OTHERS * gains.max()
    at_all = recording.keypoint_numbers(np.arange(frames))
    return Check(
        cameras=rig.names,
        frames=sum(len(at) for at in blocks),
        distance_m=np.linalg.norm(centres[:, None] - centres[None], axis=-1),
        files=np.array(
            [
                0.0 if c is None else float(c.has(n).mean())
                for c, n in zip(recording.keypoints, at_all, strict=True)
            ]
        ),
        person=person,
        residual_px=residual,
        left_out_px=left_out,
        rest_px=rest,
        suspect=_suspect(rig, left_out, rest),
        lag=tuple(lag if lag is None or good else 0 for lag, good in zip(lags, believed, strict=True)),
        lag_gain=np.where(believed, gains, 0),
    )


def _blocks(frames: int) -> list[NDArray[np.int64]]:
    """All frames, or four stretches of a long recording."""
    if frames <= _BLOCK * _BLOCKS:
        return [np.arange(frames)]
    starts = spread(np.arange(frames - _BLOCK + 1), _BLOCKS)
    return [np.arange(start, start + _BLOCK) for start in starts]


def _suspect(rig: Rig, left_out: Array, rest: Array) -> str | None:
    if not np.isfinite(left_out).any():
        return None
    v = int(np.nanargmax(left_out))
    if left_out[v] < _VISIBLE * rig.K[v, [0, 1], [0, 1]].mean():
        return None
    # Of three cameras a wrong one spoils what the others are compared with, or leaves them nothing to be
    # compared with. That the rest agrees once it is gone tells.
    other_left_out, other_rest = (np.delete(x, v)[np.isfinite(np.delete(x, v))] for x in (left_out, rest))
    alone = not other_left_out.size
    worse = not alone and left_out[v] > _WORSE * other_left_out.max()
    better_without = other_rest.size > 0 and rest[v] < _REST * other_rest.min()
    return rig.names[v] if alone or worse or better_without else None


def _closest_person(xy: Array, confidence: Array, expected: Array) -> Array:
    """(T, P, K, 2), (T, P, K) and where the person should be (T, K, 2) → its points (T, K, 2), NaN unseen."""
    saw = np.where(confidence[..., None] > _CONFIDENT, xy, np.nan)
    miss = np.linalg.norm(saw - expected[:, None], axis=-1)
    usual = masked_median(miss[..., None], np.isfinite(miss))[..., 0]
    nearest = np.where(np.isnan(usual), np.inf, usual).argmin(1)
    return np.asarray(saw[np.arange(len(saw)), nearest])


def _shifted_errors(saw: list[Array], expected: list[Array]) -> Array:
    """Median distance at every lag, −MAX_LAG to MAX_LAG, between what a camera saw that much later and what
    it should have seen. Each point's constant offset is taken out first: it comes from calibration and
    detector, not from time, and would hide a frame or two."""
    errors = []
    for lag in range(-MAX_LAG, MAX_LAG + 1):
        parts = []
        for s, e in zip(saw, expected, strict=True):
            if len(s) > abs(lag) + 10:
                miss = s[max(lag, 0) : len(s) + min(lag, 0)] - e[max(-lag, 0) : len(e) - max(lag, 0)]
                parts.append(_without_offset(miss))
        errors.append(_median(np.linalg.norm(np.concatenate(parts), axis=-1)) if parts else np.nan)
    return np.array(errors)


def _pair_errors(rig: Rig, xy: Array, cuts: NDArray[np.int64]) -> Array:
    """The same for the second of two cameras: the distance between the rays, the second camera's later."""
    base = rig.centres[1] - rig.centres[0]
    one, two = (np.split(d, cuts) for d in rays(rig, xy))
    errors = []
    for lag in range(-MAX_LAG, MAX_LAG + 1):
        parts = []
        for a, b in zip(one, two, strict=True):
            if len(a) > abs(lag) + 10:
                now, later = a[max(-lag, 0) : len(a) - max(lag, 0)], b[max(lag, 0) : len(b) + min(lag, 0)]
                normal = np.cross(now, later)
                gap = (normal @ base) / np.linalg.norm(normal, axis=-1)
                parts.append(np.abs(_without_offset(gap[..., None])[..., 0]))
        errors.append(_median(np.concatenate(parts)) if parts else np.nan)
    return np.array(errors)


def _without_offset(values: Array) -> Array:
    """(T, K, D) less each point's median over time."""
    by_point: Array = values.transpose(1, 0, 2)
    return np.asarray(values - masked_median(by_point, np.isfinite(by_point[..., 0])))


def _best_lag(errors: Array) -> tuple[int | None, float]:
    """Lag of the least error, and the share of the error at lag 0 that it saves; None: it cannot be told."""
    now = errors[MAX_LAG]
    if not np.isfinite(now) or np.nanmax(errors) < _FLAT * np.nanmin(errors):
        return None, 0.0
    best = int(np.nanargmin(errors))
    gain = 1 - errors[best] / max(now, 1e-12)
    return (best - MAX_LAG, float(gain)) if gain > _GAIN else (0, 0.0)


def _medians(values: Array) -> Array:
    """Median over all axes but the first, of what is not NaN; NaN where nothing is."""
    return np.array([_median(row) for row in values])


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")
