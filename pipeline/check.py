"""Check a recording without running it: do the cameras agree about where and when things are?

Where they stand must be known for that. Without a calibration, or with one camera, each is looked at alone.
Looks at a bounded number of frames. Every camera is compared with what the others say: the person is
triangulated without it, projected into it, and compared with what it saw, also some frames earlier and later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.geometry.association import MatchConfig, TrackerState, masked_median, pick_people, track_person
from models.geometry.triangulation import ray_gap, rays, triangulate
from pipeline.cameras import Array, Rig
from pipeline.recording import Recording, exchange_told
from pipeline.skeletons import AGREES, find_exchanged
from pipeline.timeline import spread

MAX_LAG: Final = 30
"""Frames, to either side, over which synchronisation is looked for."""

_BLOCK, _BLOCKS = 120, 4
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
_SAMPLE = 40
"""Frames, spread over the recording, in which exchanged cameras are looked for."""
_VISIBLE = 0.003
"""Error below which no camera is called wrong, radians: 5 px at a focal length of 1700 px."""


@dataclass(frozen=True)
class Check:
    """How well the cameras of a recording agree. V cameras."""

    cameras: tuple[str, ...]
    frames: int
    """How many were looked at."""
    compared: bool
    """Whether the cameras were compared; else each stands alone, and all that takes two is NaN or None."""
    distance_m: Array
    """(V, V) from camera to camera."""
    files: Array
    """(V,) share of the time line for which there is a keypoint file."""
    person: Array
    """(V,) share of the frames looked at in which the camera shows the person on whom the views agree, or,
    where they were not compared, the one of whom there is most to see."""
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
    swapped: tuple[str, str] | None
    """Two cameras that agree with the others once each takes the other's keypoints, if there are such."""

    def rows(self) -> list[tuple[str, ...]]:
        """A table for people: a head, then one row a camera."""

        def px(value: float) -> str:
            return "-" if np.isnan(value) else f"{value:.1f}"

        if not self.compared:
            shares = zip(self.cameras, self.files, self.person, strict=True)
            alone = [(n, f"{100 * files:.0f} %", f"{100 * person:.0f} %") for n, files, person in shares]
            return [("camera", "files", "shows somebody"), *alone]
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
        if not self.compared:
            return [
                f"camera {name} shows nobody in the frames looked at: without a calibration, nothing tells "
                "where it stands; leave it out"
                for name, share in zip(self.cameras, self.person, strict=True)
                if not share
            ]
        if not self.person.any():
            found.append(
                "no two cameras agree on a person: check calibration, frame numbers, synchronisation"
            )
        if self.swapped is not None:
            found.append(exchange_told(*self.swapped))
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
    shows: Array
    """(V,) share of the frames in which a camera shows anybody."""
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
    numbers = recording.keypoint_numbers(np.arange(frames))
    files = [
        0.0 if c is None else float(c.has(n).mean())
        for c, n in zip(recording.keypoints, numbers, strict=True)
    ]
    if not recording.placed or len(rig) == 1:
        return _alone(rig, stretches, np.array(files))
    now = _compare(rig, stretches)
    pair = find_exchanged(rig, recording.people(spread(np.arange(frames), _SAMPLE)))
    swapped = None if pair is None else (rig.names[pair[0]], rig.names[pair[1]])
    # A late camera makes the others look late: move the worst one, and look again.
    aligned, lags, gains = now, [0] * len(rig), np.zeros(len(rig))
    unclear = np.array([lag is None or swapped is not None for lag in now.lag])
    most = max(_most_lag(len(s.time_s)) for s in stretches)
    for _ in range(2 * len(rig)):
        v = int(np.where(unclear, 0, aligned.gain).argmax())
        lag = aligned.lag[v]
        if unclear[v] or not lag:
            break
        lags[v] += lag
        gains[v] = max(gains[v], aligned.gain[v])
        if max(lags) - min(lags) > most:  # with so little in common left, anything may fit
            unclear[v], lags[v] = True, 0
        aligned = _compare(rig, [s.later(lags) for s in stretches])
    # In step, a camera agrees with the others. One that is wrong in another way fits somewhere by chance.
    unclear |= (np.array(lags) != 0) & (aligned.person < AGREES * aligned.shows)
    if any(lag for lag, no in zip(lags, unclear, strict=True) if no):
        lags = [0 if no else lag for lag, no in zip(lags, unclear, strict=True)]
        aligned = _compare(rig, [s.later(lags) for s in stretches])
    known = [None if no else lag for lag, no in zip(lags, unclear, strict=True)]
    centres = rig.centres
    return Check(
        cameras=rig.names,
        frames=sum(len(s.time_s) for s in stretches),
        compared=True,
        distance_m=np.linalg.norm(centres[:, None] - centres[None], axis=-1),
        files=np.array(files),
        person=now.person,
        residual_px=now.residual_px,
        left_out_px=aligned.left_out_px,
        rest_px=aligned.rest_px,
        suspect=None if swapped else _suspect(rig, aligned.left_out_px, aligned.rest_px),
        lag=tuple(known),
        lag_gain=np.where([bool(lag) for lag in known], gains, 0),
        swapped=swapped,
    )


def _alone(rig: Rig, stretches: list[_Stretch], files: Array) -> Check:
    """What each camera shows, of cameras that cannot be compared."""
    cfg, none, views = MatchConfig(), np.full(len(rig), np.nan), len(rig)
    person = np.zeros(views)
    frames = sum(len(s.time_s) for s in stretches)
    for v, name in enumerate(rig.names):
        one = rig.select([name])
        for s in stretches:
            sight = s.xy_px[v : v + 1], s.confidence[v : v + 1]
            chosen, _ = track_person(one, *sight, s.time_s, TrackerState(), cfg)
            person[v] += (chosen.detection >= 0).sum() / frames
    return Check(
        cameras=rig.names,
        frames=frames,
        compared=False,
        distance_m=np.full((views, views), np.nan),
        files=files,
        person=person,
        residual_px=none,
        left_out_px=none,
        rest_px=none,
        suspect=None,
        lag=(None,) * views,
        lag_gain=np.zeros(views),
        swapped=None,
    )


def _most_lag(frames: int) -> int:
    """The largest lag at which two cameras still share enough of a stretch."""
    return min(MAX_LAG, frames - max(_OVERLAP, -(-frames // 2)))


def _compare(rig: Rig, stretches: list[_Stretch]) -> _Comparison:
    views, cfg = len(rig), MatchConfig()
    followed = []
    for s in stretches:
        chosen, _ = track_person(rig, s.xy_px, s.confidence, s.time_s, TrackerState(), cfg)
        followed.append(chosen.detection)
    picked = list(zip(stretches, followed, strict=True))
    xy = np.concatenate([pick_people(s.xy_px, chosen, np.nan) for s, chosen in picked], axis=1)
    confidence = np.concatenate([pick_people(s.confidence, chosen, 0) for s, chosen in picked], axis=1)
    cuts = np.cumsum([len(s.time_s) for s in stretches])[:-1]

    left_out, rest, gain = np.full(views, np.nan), np.full(views, np.nan), np.zeros(views)
    lag: list[int | None] = [None] * views
    if views == 2:
        errors = _pair_errors(rig, np.where(confidence[..., None] > 0, xy, np.nan), cuts)
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
    shows = [(s.confidence > 0).any((2, 3)) for s in stretches]
    return _Comparison(
        shows=np.concatenate(shows, axis=1).mean(1),
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
    saw = np.where(confidence[..., None] > 0, xy, np.nan)
    miss = np.linalg.norm(saw - expected[:, None], axis=-1)
    usual = masked_median(miss[..., None], np.isfinite(miss))[..., 0]
    nearest = np.where(np.isnan(usual), np.inf, usual).argmin(1)
    return np.asarray(saw[np.arange(len(saw)), nearest])


def _shifted_errors(saw: list[Array], expected: list[Array]) -> Array:
    """Median distance at every lag, −MAX_LAG to MAX_LAG, between what a camera saw that much later and what
    it should have seen. Each point's constant offset is taken out first: it comes from calibration and
    detector, not from time, and would hide a frame or two."""
    parts = []
    for lag in range(-MAX_LAG, MAX_LAG + 1):
        parts.append(
            [
                _without_offset(
                    s[max(lag, 0) : len(s) + min(lag, 0)] - e[max(-lag, 0) : len(e) - max(lag, 0)]
                )
                for s, e in zip(saw, expected, strict=True)
                if abs(lag) <= _most_lag(len(s))
            ]
        )
    return _errors([[np.linalg.norm(p, axis=-1) for p in some] for some in parts])


def _pair_errors(rig: Rig, xy: Array, cuts: NDArray[np.int64]) -> Array:
    """The same for the second of two cameras: the distance between the rays, the second camera's later."""
    base = rig.centres[1] - rig.centres[0]
    one, two = (np.split(d, cuts) for d in rays(rig, xy))
    parts = []
    for lag in range(-MAX_LAG, MAX_LAG + 1):
        gaps = [
            ray_gap(base, a[max(-lag, 0) : len(a) - max(lag, 0)], b[max(lag, 0) : len(b) + min(lag, 0)])
            for a, b in zip(one, two, strict=True)
            if abs(lag) <= _most_lag(len(a))
        ]
        parts.append([np.abs(_without_offset(gap[..., None])[..., 0]) for gap in gaps])
    return _errors(parts)


def _errors(parts: list[list[Array]]) -> Array:
    """Median over the stretches (T, K) of each lag; NaN where half of what can be compared is not there."""
    frames = np.array([sum(int(np.isfinite(p).any(1).sum()) for p in some) for some in parts])
    enough = frames >= max(_OVERLAP, frames.max() / 2)
    medians = [
        _median(np.concatenate(some)) if ok else np.nan for some, ok in zip(parts, enough, strict=True)
    ]
    return np.array(medians)


def _without_offset(values: Array) -> Array:
    """(T, K, D) less each point's median over time."""
    by_point: Array = values.transpose(1, 0, 2)
    return np.asarray(values - masked_median(by_point, np.isfinite(by_point[..., 0])))


def _best_lag(errors: Array) -> tuple[int | None, float]:
    """Lag of the least error, and the share of the error at lag 0 that it saves; None: it cannot be told.

    errors: at every lag, −MAX_LAG to MAX_LAG, NaN where too little is left to compare.
    """
    now = errors[MAX_LAG]
    if not np.isfinite(now) or np.nanmax(errors) < _FLAT * np.nanmin(errors):
        return None, 0.0
    best = int(np.nanargmin(errors))
    beside = errors[max(best - 1, 0) : best + 2]
    if len(beside) < 3 or not np.isfinite(beside).all():
        return None, 0.0  # still falling where the search ends
    gain = 1 - errors[best] / max(now, 1e-12)
    return (best - MAX_LAG, float(gain)) if gain > _GAIN else (0, 0.0)


def _medians(values: Array) -> Array:
    """Median over all axes but the first, of what is not NaN; NaN where nothing is."""
    return np.array([_median(row) for row in values])


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")
