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
_OVERLAP = 10
"""Frames, and half of a stretch, that two cameras must share at a lag for it to be looked at."""
_GAIN = 0.03
"""A lag is believed when it lowers the error by this share: on a recording in step the gain is below 0.01."""
_FLAT = 1.25
"""Without an error this many times the least at some lag, nothing moves enough to tell."""
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
    """(V,) the same against the triangulation from the other cameras only, once the lags below are taken out;
    NaN with two cameras."""
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


@dataclass(frozen=True)
class _Stretch:
    """Some frames in a row: everybody whom every camera shows."""

    xy_px: Array
    """(V, T, P, 25, 2) undistorted."""
    confidence: Array
    """(V, T, P, 25)."""
    time_s: Array
    """(T,)."""

    def later(self, lags: list[int]) -> _Stretch:
        """The same stretch with each camera's frames taken this many later; nobody beyond the ends."""
        xy, confidence = np.full_like(self.xy_px, np.nan), np.zeros_like(self.confidence)
        count = len(self.time_s)
        for v, lag in enumerate(lags):
            to, of = slice(max(-lag, 0), count - max(lag, 0)), slice(max(lag, 0), count + min(lag, 0))
            xy[v, to], confidence[v, to] = self.xy_px[v, of], self.confidence[v, of]
        return _Stretch(xy, confidence, self.time_s)


@dataclass(frozen=True)
class _Comparison:
    """Figures of ``Check``, for cameras moved in time or not."""

    person: Array
    residual_px: Array
    left_out_px: Array
    rest_px: Array
    lag: list[int | None]
    gain: Array


def check_recording(recording: Recording) -> Check:
    """Look at up to 480 frames in up to four stretches and compare the cameras."""
    rig, frames = recording.rig, len(recording)
    stretches = []
    for at in _blocks(frames):
        people = recording.people(at)
        xy, confidence = recording.undistort(people[..., :2]), people[..., 2].astype(np.float64)
        stretches.append(_Stretch(xy, confidence, recording.timeline.time_s[at]))
    now = _compare(rig, stretches)
    # A late camera makes the others look late: move the worst one, and look again.
    aligned, lags, gains = now, [0] * len(rig), np.zeros(len(rig))
    for _ in range(len(rig)):
        v = int(aligned.gain.argmax())
        lag = aligned.lag[v]
        if not lag or abs(lags[v] + lag) > MAX_LAG:
            break
        lags[v] += lag
        gains[v] = max(gains[v], aligned.gain[v])
        aligned = _compare(rig, [s.later(lags) for s in stretches])
    known: list[int | None] = [
        None if first is None else lag for first, lag in zip(now.lag, lags, strict=True)
    ]
    centres = rig.centres
    numbers = recording.keypoint_numbers(np.arange(frames))
    return Check(
        cameras=rig.names,
        frames=sum(len(s.time_s) for s in stretches),
        distance_m=np.linalg.norm(centres[:, None] - centres[None], axis=-1),
        files=np.array(
            [
                0.0 if c is None else float(c.has(n).mean())
                for c, n in zip(recording.keypoints, numbers, strict=True)
            ]
        ),
        person=now.person,
        residual_px=now.residual_px,
        left_out_px=aligned.left_out_px,
        rest_px=aligned.rest_px,
        suspect=_suspect(rig, aligned.left_out_px, aligned.rest_px),
        lag=tuple(known),
        lag_gain=np.where([bool(lag) for lag in known], gains, 0),
    )


def _compare(rig: Rig, stretches: list[_Stretch]) -> _Comparison:
    views, cfg = len(rig), MatchConfig()
    followed = []
    for s in stretches:
        usual = usual_score(propose(rig, s.xy_px, s.confidence, cfg))
        followed.append(follow(rig, s.xy_px, s.confidence, s.time_s, usual, np.full(4, np.nan), cfg)[0])
    picked = list(zip(stretches, followed, strict=True))
    xy = np.concatenate([pick_people(s.xy_px, chosen, np.nan) for s, chosen in picked], axis=1)
    confidence = np.concatenate([pick_people(s.confidence, chosen, 0) for s, chosen in picked], axis=1)
    cuts = np.cumsum([len(s.time_s) for s in stretches])[:-1]

    left_out, rest, gain = np.full(views, np.nan), np.full(views, np.nan), np.zeros(views)
    lag: list[int | None] = [None] * views
    if views == 2:
        errors = _pair_errors(rig, np.where(confidence[..., None] > _CONFIDENT, xy, np.nan), cuts)
        lag[0], (lag[1], gain[1]) = 0, _best_lag(errors)
    for v in range(views if views > 2 else 0):
        others = np.where(np.arange(views)[:, None, None] == v, 0, confidence)
        without = triangulate(rig, xy, others)
        rest[v] = np.fmax.reduce(_medians(np.delete(without.residual_px, v, 0)))
        expected = np.split(rig.project(without.points)[v], cuts)
        # Whoever stands closest to where the others see the person, agreed on or not.
        saw = [
            _closest_person(s.xy_px[v], s.confidence[v], e) for s, e in zip(stretches, expected, strict=True)
        ]
        miss = np.concatenate([s - e for s, e in zip(saw, expected, strict=True)])
        left_out[v] = _median(np.linalg.norm(miss, axis=-1))
        lag[v], gain[v] = _best_lag(_shifted_errors(saw, expected))
    return _Comparison(
        person=np.concatenate([c >= 0 for c in followed], axis=1).mean(1),
        residual_px=_medians(triangulate(rig, xy, confidence).residual_px),
        left_out_px=left_out,
        rest_px=rest,
        lag=lag,
        gain=gain,
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
            if len(s) - abs(lag) >= max(_OVERLAP, len(s) / 2):
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
            if len(a) - abs(lag) >= max(_OVERLAP, len(a) / 2):
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
