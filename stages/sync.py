"""Before the stages: clocks of cameras that were started by hand, from people who move, and from sound.

Not a stage that batches flow through: the time line must be known before the first frame.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field, field_validator

from models.geometry.clock_fit import MIN_SPAN_S
from models.geometry.sound_lags import (
    TRAVEL_LIMIT_S,
    TRAVEL_SIGMA_S,
    HeardClocks,
    hear_clocks,
)
from models.geometry.synchronisation import (
    EDGE,
    EVIDENCE,
    NO_SPAN,
    PERIODIC,
    Clocks,
    extend_clocks,
    find_clocks,
    told_clocks,
)
from models.geometry.trajectories import Trajectories, joined_stretches, padded_points
from models.geometry.unsynchronised import OwnDetections, seen_trajectories
from pipeline.array_types import Array
from pipeline.clocks import Clock, SyncFile, read_sync, write_sync
from pipeline.config import Config, NamesFile
from pipeline.errors import InputError
from pipeline.findings import Finding
from pipeline.inputs import identity_of_inputs
from pipeline.recording import Recording
from pipeline.results import SYNC
from pipeline.sound import POWER_HZ, read_sound_power
from pipeline.timeline import spread

_log = logging.getLogger(__name__)

IN_STEP_S: Final = 0.008
"""Cameras nearer than that are in step: cameras that are triggered together seem to be 3 to 8 ms apart."""
_WHOLE_S, _MAIN_S, _MORE_S = 75.0, 30.0, 6.0
"""A recording up to the first is read whole; of a longer one the second in its middle, and stretches as long
as the third over the rest of it."""
_STRETCHES: Final = 8
_LOOKED: Final = 200
"""Instants at which a long recording is looked into before."""
_LEAST_FRAMES: Final = 10
_STRETCH_LAG_S: Final = 0.5
"""Difference of clocks that is looked for where they are nearly known."""
_HALF_FRAME_S: Final = 1 / 60
_SOUND_S: Final = 120.0
"""Sound is listened to from a camera's first frame on, for so long."""
_NEAR_SOUND_S: Final = 0.25
"""Difference of clocks that is looked for about those by sound: its travel, and beside it a rise."""
_CONTRADICTED: Final = "movement does not fit sound"
_SOUND: Final = "sound"
_REFERENCE: Final = "reference"


class SyncConfig(Config):
    """Clocks of cameras."""

    use: Annotated[str, NamesFile(unless=("auto", "off"))] = "auto"
    """auto: what the people's movement shows is applied; off: cameras are in step, but for what
    recording.yaml states; or the path of a sync.yaml."""
    search_s: float = Field(default=5.0, gt=0, le=60)
    """Largest difference between two clocks that is looked for, seconds."""
    audio: Literal["auto", "off"] = "auto"
    """auto: where every video has a sound track, clocks by sound are compared with those by movement, and
    stand in where movement tells nothing."""

    @field_validator("use", "audio", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML's word for it


@dataclass(frozen=True)
class Synced:
    """Outcome of the synchronisation of a recording."""

    clocks: tuple[Clock, ...]
    """(V,) to go by."""
    findings: tuple[Finding, ...]
    how: str
    """A sentence for people."""
    lag_s: tuple[float, ...] = ()
    curves: Mapping[str, tuple[float | None, ...]] | None = None
    """Camera → its residual when its clock alone is off by each lag, millimetres or pixels."""
    unit: str = ""

    def shown(self, names: Sequence[str]) -> dict[str, Any]:
        """For the summary and the report."""
        clocks = {n: c.model_dump(mode="json") for n, c in zip(names, self.clocks, strict=True)}
        curves = {"lag_s": self.lag_s, "unit": self.unit, "cameras": self.curves or {}}
        return {"how": self.how, "cameras": clocks, "curves": curves}

    def rows(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """A table for people: a head, then one row a camera."""
        rows: list[tuple[str, ...]] = [("camera", "starts at", "drift", "sure to", "by")]
        for name, c in zip(names, self.clocks, strict=True):
            sure = "-" if c.sigma_s is None else f"{1000 * c.sigma_s:.0f} ms"
            drift = f"{c.drift_ppm:+.0f} ppm" if c.drift_ppm else "-"
            rows.append((name, f"{c.offset_s:+.4f} s", drift, sure, c.method or "-"))
        return rows


def synchronise(
    recording: Recording, out: Path, cfg: SyncConfig, place: Callable[[Recording], Recording] | None = None
) -> tuple[Recording, Synced]:
    """The inspected recording on the time line of its cameras' clocks, and how these were found.

    Writes ``out/sync.yaml``. One that is there is used where it was made from the same recording and
    settings, so that a run that goes on has the same clocks. place: estimates where the cameras of a
    recording without a calibration stand; raises ``InputError``.

    Raises:
        InputError: ``cfg.use`` is a file that cannot be used, or the cameras share no time by it.
    """
    names = recording.rig.names
    if is_searched(recording, cfg):
        path, source = out / SYNC, _source(recording, cfg)
        kept = read_sync(path) if path.is_file() else None
        if kept is None or kept.source != source:
            synced = estimate_clocks(recording, cfg)
            if place is not None and not recording.placed:
                synced = _refined(recording.with_clocks(synced.clocks), synced, cfg, place)
            write_sync(path, _content(names, synced, source))
            kept = read_sync(path)
        synced = _of_content(names, kept)
    else:
        synced = given_clocks(recording, cfg)
    for finding in synced.findings:
        _log.warning(finding.sentence)
    moved = recording.with_clocks(synced.clocks)
    return replace(moved, findings=(*moved.findings, *synced.findings)), synced


def is_searched(recording: Recording, cfg: SyncConfig) -> bool:
    """True where clocks are estimated, false where they are given or left alone."""
    return cfg.use == "auto" and len(recording.rig) > 1 and not recording.stated.sync


def given_clocks(recording: Recording, cfg: SyncConfig) -> Synced:
    """Clocks that are stated, or left alone. Raises ``InputError``."""
    if cfg.use not in ("auto", "off"):
        path = Path(cfg.use)
        stated = read_sync(path).sync
        lacking = [n for n in recording.rig.names if n not in stated]
        found = [
            Finding("clock_unknown", f"{path}: says nothing of camera {n}: its clock stays as it is", n)
            for n in lacking
        ]
        pairs = zip(recording.rig.names, recording.clocks, strict=True)
        return Synced(tuple(stated.get(n, c) for n, c in pairs), tuple(found), f"clocks of {path.name}")
    how = "clocks as stated in recording.yaml" if recording.stated.sync else "not looked for"
    return Synced(recording.clocks, (), how)


def _refined(
    moved: Recording, first: Synced, cfg: SyncConfig, place: Callable[[Recording], Recording]
) -> Synced:
    """Clocks by the rays of cameras that are placed with the clocks ``first``: their drift shows, too.

    ``first`` where cameras cannot be placed, or rays change no clock.
    """
    try:
        finer = estimate_clocks(place(moved), cfg.model_copy(update={"audio": "off"}), first)
    except InputError:  # the run tells when it places the cameras
        return first
    return finer if any(f.code == "clocks_set" for f in finer.findings) else first


def estimate_clocks(recording: Recording, cfg: SyncConfig, first: Synced | None = None) -> Synced:
    """Clocks of an inspected recording by the people whom its cameras show; those that it has where nothing
    better can be told. Changes and writes nothing.

    first: an earlier estimate, by whose clocks the recording goes. What it tells of a camera holds where this
    estimate refuses the camera.
    """
    names = recording.rig.names
    lacking = [v for v, k in enumerate(recording.keypoints) if k is None]
    views = [v for v in range(len(names)) if v not in lacking]
    if len(views) < 2:
        return Synced(recording.clocks, (), "fewer than two cameras have keypoints")
    found = _found(recording, views, cfg.search_s)
    if found is None:
        found_out = (_unknown([names[v] for v in views], NO_SPAN),)
        return Synced(recording.clocks, found_out, "the cameras share too little time to be compared")
    middle = float(np.mean([t[-1] for t in recording.own_times.times_s])) / 2
    found = told_clocks(found, middle)
    heard = _heard(recording, views, cfg) if cfg.audio == "auto" else None
    found, methods, findings = _by_sound(recording, views, found, heard)
    kept = [
        k for k, v in enumerate(views) if first and found.refused[k] and first.clocks[v].sigma_s is not None
    ]
    refused = [None if k in kept else reason for k, reason in enumerate(found.refused)]
    told = [k for k, reason in enumerate(refused) if reason is None]
    off = any(
        abs(found.offset_s[k]) > max(IN_STEP_S, 2 * found.sigma_s[k]) or found.drift[k] != 0
        for k in told
        if k not in kept
    )
    clocks = list(recording.clocks)
    for k, v in enumerate(views):
        before = recording.clocks[v]
        if k in kept:
            methods[k] = before.method or ""
            continue
        if refused[k] is not None:
            clocks[v] = before.model_copy(update={"method": f"none: {refused[k]}"})
            continue
        sigma = float(found.sigma_s[k])
        chance = math.erf(_HALF_FRAME_S / (sigma * math.sqrt(2))) if sigma else 1.0
        known = {"sigma_s": round(sigma, 5), "confidence": round(chance, 4), "method": methods[k]}
        clocks[v] = before.model_copy(update=known)
        if off:
            # The estimate is on top of the clock that the recording has.
            more = 1 + float(found.drift[k])
            clocks[v] = clocks[v].model_copy(
                update={
                    "offset_s": round(float(found.offset_s[k]) + more * before.offset_s, 6),
                    "drift_ppm": round((more * (1 + before.drift_ppm * 1e-6) - 1) * 1e6, 3),
                }
            )
    if first is not None and kept:
        findings += [f for f in first.findings if f.code in ("sound_used", "sound_contradicts")]
    findings += _refusals([names[v] for v in views], replace(found, refused=tuple(refused)))
    if not told:
        how = "no camera's clock could be compared with another's: all stay as they are"
    elif not off:
        how = "the cameras are in step"
    else:
        how = f"clocks set by {_evidence(methods[k] for k in told)}"
        root = next(k for k in told if methods[k] == _REFERENCE)
        duration_s = max(float(t[-1]) for t in recording.own_times.times_s)
        by_name = {names[views[k]]: clocks[views[k]] for k in told}
        findings.insert(0, _out_of_step(by_name, names[views[root]], duration_s, how))
    scale = 1000.0 if found.unit == "m" else 1.0
    curves = {
        names[v]: tuple(None if math.isnan(x) else round(scale * x, 2) for x in found.curve[k].tolist())
        for k, v in enumerate(views)
    }
    lag_s = tuple(round(x, 3) for x in found.lag_s.tolist())
    return Synced(tuple(clocks), tuple(findings), how, lag_s, curves, "mm" if found.unit == "m" else "px")


def _evidence(methods: Iterable[str]) -> str:
    by = [m for m in methods if m != _REFERENCE]
    movement = "the people's movement" if any(m != _SOUND for m in by) else ""
    sound = "sound" if any(_SOUND in m for m in by) else ""
    return " and ".join(filter(None, (movement, sound)))


def _out_of_step(clocks: Mapping[str, Clock], reference: str, duration_s: float, how: str) -> Finding:
    """Finding on the camera whose clock is off the reference's by most in the course of the recording."""
    root = clocks[reference]

    def difference(camera: str) -> tuple[float, float]:
        """Start after the reference's, seconds, and drift."""
        return clocks[camera].offset_s - root.offset_s, (clocks[camera].drift_ppm - root.drift_ppm) * 1e-6

    def largest_s(camera: str) -> float:
        late_s, drift = difference(camera)
        return max(abs(late_s), abs(late_s + drift * duration_s))

    worst = max(clocks, key=largest_s)
    late_s, drift = difference(worst)
    facts = []
    if abs(late_s) >= 0.0005:
        facts.append(
            f"{worst} was started {abs(late_s):.3f} s {'after' if late_s > 0 else 'before'} {reference}"
        )
    if drift:
        change = "loses" if drift > 0 else "gains"
        facts.append(
            f"the clock of {worst} {change} {abs(drift) * 60e3:.1f} ms a minute on that of {reference}"
        )
    sentence = f"the cameras are out of step: {', and '.join(facts)}; {how}"
    return Finding("clocks_set", f"{sentence} (sync.yaml has all; --sync off leaves them)")


def _refusals(cameras: Sequence[str], found: Clocks) -> list[Finding]:
    """A finding for each reason why clocks stay as they are."""
    findings = []
    for reason in dict.fromkeys(r for r in found.refused if r is not None):
        which = [k for k, r in enumerate(found.refused) if r == reason]
        answers = [
            f"{cameras[k]} {' or '.join(f'{a:+.3f} s' for a in found.answers_s[k])}"
            for k in which
            if any(found.answers_s[k])
        ]
        told = f"{reason}: {', '.join(answers)}" if answers else reason
        findings.append(_unknown([cameras[k] for k in which], told))
    return findings


def _unknown(cameras: Sequence[str], reason: str) -> Finding:
    needed = f" (it takes {MIN_SPAN_S:g} s, without a calibration {EVIDENCE.lines_span_s:g} s)"
    sentence = (
        f"whether cameras are in step cannot be told of {', '.join(cameras)}: {reason}"
        f"{needed * (reason == NO_SPAN)}. Their clocks stay as they are; recording.yaml can state them, "
        f"sync: {{{cameras[0]}: {{offset_s: ...}}}}"
    )
    return Finding("clock_unknown", sentence, cameras[0] if len(cameras) == 1 else None)


def _found(recording: Recording, views: Sequence[int], reach_s: float) -> Clocks | None:
    """Clocks of some cameras, on top of those that are stated; None where they share too little time."""
    rig = recording.rig.select([recording.rig.names[v] for v in views]) if recording.placed else None
    moments = [recording.clocks[v].moment(recording.own_times.times_s[v]) for v in views]
    begin, end = min(float(m[0]) for m in moments), max(float(m[-1]) for m in moments)
    long = end - begin > _WHOLE_S
    middle = (begin + end) / 2
    span = _busiest(recording, moments[0], views[0], (begin, end)) if long else (begin, end)
    zero = np.zeros(len(views))

    def seen(span: tuple[float, float], offset_s: Array, drift: Array) -> list[OwnDetections]:
        """Everybody at a time on the recording's clock, by each camera's own."""
        parts = []
        for k, v in enumerate(views):
            own = [(s - offset_s[k]) / (1 + drift[k]) for s in span]
            at = np.flatnonzero((moments[k] >= own[0]) & (moments[k] <= own[1]))
            index = np.full((len(recording.rig), len(at)), -1, dtype=np.int64)
            index[v] = at
            people = recording.people_in(index)[v]
            xy = recording.rig.undistort(v, people[..., :2].astype(np.float64))
            sure = np.where(np.isfinite(xy).all(-1), people[..., 2], 0).astype(np.float64)
            if not sure.shape[1]:
                xy, sure = np.full((len(at), 1, *xy.shape[2:]), np.nan), np.zeros((len(at), 1, sure.shape[2]))
            parts.append(OwnDetections(moments[k][at], xy, sure))
        return parts

    known = seen(span, zero, zero)
    if any(len(k.time_s) < _LEAST_FRAMES for k in known):
        return None
    cameras = seen_trajectories(rig, known, reach_s)
    found = find_clocks(cameras, None if rig is None else rig.centres, reach_s)
    if not long or rig is None or all(found.refused):
        return found
    starts = np.linspace(begin, end - _MORE_S, _STRETCHES)
    stretches: list[list[Trajectories]] = [cameras]
    # From the middle outwards: every stretch lies where the drift by those before still leads.
    for start in sorted(starts, key=lambda s: abs(s + _MORE_S / 2 - middle)):
        part = seen((start, start + _MORE_S), found.offset_s, found.drift)
        if any(len(p.time_s) < _LEAST_FRAMES for p in part):
            continue
        more = seen_trajectories(rig, part, _STRETCH_LAG_S)
        points = max(c.point.shape[1] for c in (*more, *stretches[0]))
        stretches.append(more)
        joined = [
            joined_stretches([padded_points(s[k], points) for s in stretches]) for k in range(len(views))
        ]
        found = extend_clocks(found, joined, rig.centres)
    return found


def _heard(recording: Recording, views: Sequence[int], cfg: SyncConfig) -> HeardClocks | None:
    """Clocks by sound, on top of those that are stated; None where no video has a sound track."""
    videos = [recording.videos[v] for v in views]
    power = [None if video is None else read_sound_power(video, _SOUND_S) for video in videos]
    if all(p is None for p in power):
        return None
    stated_s = [recording.clocks[v].offset_s for v in views]
    return hear_clocks(power, stated_s, POWER_HZ, cfg.search_s)


def _by_sound(
    recording: Recording, views: Sequence[int], found: Clocks, heard: HeardClocks | None
) -> tuple[Clocks, list[str], list[Finding]]:
    """Clocks by movement and, where it tells nothing, by sound; the method of each; findings.

    Of movement that repeats, the answer near the sound's is found. Sound is used where every camera hears
    what another does, and no clock that movement is sure of contradicts it.
    """
    names = [recording.rig.names[v] for v in views]
    movement = "rays" if recording.placed else "epipolar lines"
    sure = [k for k, reason in enumerate(found.refused) if reason is None]
    root = sure[0] if sure else 0
    methods = [_REFERENCE if k == root else movement for k in range(len(views))]
    if heard is None:
        return found, methods, []
    if any(heard.refused):
        why = "; ".join(f"{n} {r}" for n, r in zip(names, heard.refused, strict=True) if r)
        unused = Finding("sound_unused", f"sound cannot tell what movement does not: {why}")
        return found, methods, [unused] * (len(sure) < len(views))
    late_s = heard.offset_s - heard.offset_s[root]
    middle = min(_SOUND_S, min(float(recording.own_times.times_s[v][-1]) for v in views)) / 2
    by_movement = found.offset_s + found.drift * middle
    apart = [k for k in sure if abs(late_s[k] - by_movement[k]) > TRAVEL_LIMIT_S]
    if apart:
        said = ", ".join(f"{names[k]} {by_movement[k]:+.3f} s and {late_s[k]:+.3f} s" for k in apart)
        sentence = (
            f"movement and sound contradict each other, by the clock of {names[root]}: {said}; "
            "sound is not used"
        )
        return found, methods, [Finding("sound_contradicts", sentence)]
    if not any(found.refused):
        return found, methods, []
    near = _near(recording, views, late_s) if {PERIODIC, EDGE} & set(found.refused) else found
    return _sound_where_refused(names, found, near or found, late_s, movement)


def _near(recording: Recording, views: Sequence[int], late_s: Array) -> Clocks | None:
    """Clocks by movement near those that are later than stated by ``late_s`` (V,)."""
    clocks = list(recording.clocks)
    for v, late in zip(views, late_s.tolist(), strict=True):
        clocks[v] = clocks[v].model_copy(update={"offset_s": clocks[v].offset_s + late})
    found = _found(replace(recording, clocks=tuple(clocks)), views, _NEAR_SOUND_S)
    if found is None:
        return None
    found = told_clocks(found, float(np.mean([recording.own_times.times_s[v][-1] for v in views])) / 2)
    return replace(found, offset_s=found.offset_s + (1 + found.drift) * late_s)


def _sound_where_refused(
    names: Sequence[str], before: Clocks, near: Clocks, late_s: Array, movement: str
) -> tuple[Clocks, list[str], list[Finding]]:
    """Clocks of movement near the sound's, those by sound where it refuses. before: without sound."""
    offset_s, sigma_s = near.offset_s.copy(), near.sigma_s.copy()
    refused: list[str | None] = list(near.refused)
    sure = [k for k, reason in enumerate(refused) if reason is None]
    methods, by_sound = [], []
    for k, reason in enumerate(refused):
        methods.append(movement if before.refused[k] is None else f"{movement}, chosen by sound")
        if reason in (PERIODIC, EDGE):
            refused[k] = _CONTRADICTED
        elif reason is not None:
            refused[k], methods[k], sigma_s[k] = None, _SOUND, TRAVEL_SIGMA_S
            offset_s[k] = late_s[k] if not sure else late_s[k] - late_s[sure[0]] + offset_s[sure[0]]
            by_sound.append(k)
    told = [k for k, reason in enumerate(refused) if reason is None]
    root = (sure or told or [0])[0]
    methods[root], sigma_s[root] = _REFERENCE, 0.0
    offset_s = np.where([r is None for r in refused], offset_s - offset_s[root], 0)
    findings = []
    if by_sound:
        sentence = (
            f"clocks are by sound of {', '.join(names[k] for k in by_sound)}, where movement tells nothing: "
            f"right to about {1000 * TRAVEL_SIGMA_S:.0f} ms, as sound travels 1 m in 3 ms"
        )
        findings.append(Finding("sound_used", sentence))
    chosen = [names[k] for k in told if "chosen" in methods[k]]
    if chosen:
        sentence = (
            f"movement alone has several answers; that near the sound's is taken, for {', '.join(chosen)}"
        )
        findings.append(Finding("sound_used", sentence))
    clocks = replace(
        near, offset_s=offset_s, sigma_s=sigma_s, refused=tuple(refused), answers_s=before.answers_s
    )
    return clocks, methods, findings


def _busiest(
    recording: Recording, moments: Array, view: int, span: tuple[float, float]
) -> tuple[float, float]:
    """The stretch of ``_MAIN_S`` in which two cameras show somebody most of the time; of equals the one
    nearest to the middle. moments: of the frames of a camera."""
    at = spread(np.arange(len(recording)), _LOOKED)
    at = at[recording.timeline.frame_index[view, at] >= 0]
    shows = (recording.people(at)[..., 2] > 0).any((2, 3)).sum(0) >= 2
    when = moments[recording.timeline.frame_index[view, at]]
    starts = np.linspace(span[0], span[1] - _MAIN_S, _LOOKED)
    inside = [int(shows[(when >= s) & (when <= s + _MAIN_S)].sum()) for s in starts]
    aside = np.abs(starts + _MAIN_S / 2 - sum(span) / 2)
    start = float(starts[np.lexsort((aside, -np.array(inside)))[0]])
    return start, start + _MAIN_S


def _source(recording: Recording, cfg: SyncConfig) -> dict[str, str]:
    """Digests of all that clocks are estimated from, by what it is called."""
    rig, own = recording.rig, recording.own_times
    parts: dict[str, Any] = {
        "cameras": [rig.K.tolist(), rig.dist.tolist(), rig.R.tolist(), rig.t.tolist()],
        "times": [hashlib.sha256(t.tobytes()).hexdigest() for t in own.times_s],
        "stated": [c.numbers for c in recording.clocks],
        "keypoints": identity_of_inputs(recording),
        "videos": [0 if v is None or v.pictures else v.path.stat().st_size for v in recording.videos],
        "settings": cfg.model_dump(mode="json"),
    }
    return {name: hashlib.sha256(json.dumps(p).encode()).hexdigest()[:16] for name, p in parts.items()}


def _content(names: Sequence[str], synced: Synced, source: Mapping[str, str]) -> SyncFile:
    curves = {"lag_s": list(synced.lag_s), "unit": synced.unit}
    found = [{"code": f.code, "sentence": f.sentence, "camera": f.camera} for f in synced.findings]
    residual = {n: list(c) for n, c in (synced.curves or {}).items()}
    return SyncFile(
        sync=dict(zip(names, synced.clocks, strict=True)),
        source=dict(source),
        curves=curves | {"cameras": residual, "how": synced.how, "findings": found},
    )


def _of_content(names: Sequence[str], content: SyncFile) -> Synced:
    curves = content.curves
    return Synced(
        tuple(content.sync[n] for n in names),
        tuple(Finding(f["code"], f["sentence"], f["camera"]) for f in curves["findings"]),
        curves["how"],
        tuple(curves["lag_s"]),
        {n: tuple(c) for n, c in curves["cameras"].items()},
        curves["unit"],
    )
