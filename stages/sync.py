"""Synchronisation before the stages: clocks of cameras that were started by hand, by movement and by sound.

No stage that batches flow through: the time line must be known before the first frame.
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
    SoundClocks,
    find_sound_clocks,
)
from models.geometry.synchronisation import (
    EDGE,
    EVIDENCE,
    NO_SPAN,
    PERIODIC,
    Clocks,
    drop_insignificant_drift,
    extend_clocks,
    find_clocks,
)
from models.geometry.trajectories import Trajectories, join_stretches
from models.geometry.unsynchronised import OwnDetections, find_trajectories
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
"""Largest offset of cameras in step: estimates for cameras with a common trigger differ by 3 to 8 ms."""
_MAX_UNSAMPLED_S: Final = 75.0
"""Length up to which a recording is read completely."""
_BUSIEST_STRETCH_S, _STRETCH_S, _STRETCHES = 30.0, 6.0, 8
"""Parts of a longer one that are read: length of the busiest stretch, length and number of the others."""
_SAMPLED_INSTANTS: Final = 200
"""Instants, and starts of stretches, from which the busiest stretch is chosen."""
_MIN_FRAMES: Final = 10
"""Fewest frames of a camera in a stretch that is used."""
_STRETCH_LAG_S: Final = 0.5
"""Largest lag searched in the other stretches, about the clocks of the stretches before."""
_HALF_FRAME_S: Final = 1 / 60
"""Error up to which an offset counts as right, for ``Clock.confidence``."""
_MAX_SOUND_S: Final = 120.0
"""Longest sound that is read, from a camera's first frame on."""
_SOUND_LAG_S: Final = 0.25
"""Largest lag searched about the clocks by sound: the sound's travel, and the curve's flanks."""
_CONTRADICTED: Final = "movement does not fit sound"
"""Reason of a refused clock."""
_SOUND: Final = "sound"
_REFERENCE: Final = "reference"
"""Methods of a clock."""


class SyncConfig(Config):
    """Clocks of cameras."""

    use: Annotated[str, NamesFile(unless=("auto", "off"))] = "auto"
    """auto: what the people's movement shows is applied; off: cameras are in step, but for what
    recording.yaml states; or the path of a sync.yaml."""
    search_s: float = Field(default=5.0, gt=0, le=60)
    """Largest difference between two clocks that is searched, seconds."""
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
    """(V,) clocks to use."""
    findings: tuple[Finding, ...]
    how: str
    """Sentence on how the clocks were set."""
    lag_s: tuple[float, ...] = ()
    curves: Mapping[str, tuple[float | None, ...]] | None = None
    """Camera → residual when its clock alone is off by each lag, millimetres or pixels."""
    unit: str = ""

    @property
    def residuals(self) -> dict[str, Any]:
        """Residual over lag, as JSON."""
        cameras = {name: list(curve) for name, curve in (self.curves or {}).items()}
        return {"lag_s": list(self.lag_s), "unit": self.unit, "cameras": cameras}

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Entry of the summary and the report."""
        clocks = {n: c.model_dump(mode="json") for n, c in zip(names, self.clocks, strict=True)}
        return {"how": self.how, "cameras": clocks, "curves": self.residuals}

    def rows(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Table for the screen: a head, then one row a camera."""
        rows: list[tuple[str, ...]] = [("camera", "starts at", "drift", "sure to", "by")]
        for name, c in zip(names, self.clocks, strict=True):
            sure = "-" if c.sigma_s is None else f"{1000 * c.sigma_s:.0f} ms"
            drift = f"{c.drift_ppm:+.0f} ppm" if c.drift_ppm else "-"
            rows.append((name, f"{c.offset_s:+.4f} s", drift, sure, c.method or "-"))
        return rows


def synchronise(
    recording: Recording, out: Path, cfg: SyncConfig, place: Callable[[Recording], Recording] | None = None
) -> tuple[Recording, Synced]:
    """Put an inspected recording on the time line of its cameras' clocks.

    Returns also how these were found. Writes ``out/sync.yaml``; an existing one from the same recording and
    settings is used, so that a resumed run has the same clocks. place: estimates the cameras of a recording
    without a calibration; raises ``InputError``.

    Raises ``InputError``: ``cfg.use`` is a file that cannot be used, or the cameras share no time by it.
    """
    names = recording.rig.names
    if is_searched(recording, cfg):
        path, source = out / SYNC, _input_digests(recording, cfg)
        kept = read_sync(path) if path.is_file() else None
        if kept is None or kept.source != source:
            synced = estimate_clocks(recording, cfg)
            if place is not None and not recording.placed:
                synced = _refine_by_rays(recording.with_clocks(synced.clocks), synced, cfg, place)
            write_sync(path, _to_file(names, synced, source))
            kept = read_sync(path)
        synced = _from_file(names, kept)
    else:
        synced = given_clocks(recording, cfg)
    for finding in synced.findings:
        _log.warning(finding.sentence)
    moved = recording.with_clocks(synced.clocks)
    return replace(moved, findings=(*moved.findings, *synced.findings)), synced


def is_searched(recording: Recording, cfg: SyncConfig) -> bool:
    """True where clocks are estimated, false where they are stated or unchanged."""
    return cfg.use == "auto" and len(recording.rig) > 1 and not recording.stated.sync


def given_clocks(recording: Recording, cfg: SyncConfig) -> Synced:
    """Stated or unchanged clocks. Raises ``InputError``."""
    if cfg.use not in ("auto", "off"):
        path = Path(cfg.use)
        stated = read_sync(path).sync
        lacking = [n for n in recording.rig.names if n not in stated]
        findings = [
            Finding("clock_unknown", f"{path}: says nothing of camera {n}: its clock stays as it is", n)
            for n in lacking
        ]
        pairs = zip(recording.rig.names, recording.clocks, strict=True)
        return Synced(tuple(stated.get(n, c) for n, c in pairs), tuple(findings), f"clocks of {path.name}")
    how = "clocks as stated in recording.yaml" if recording.stated.sync else "not looked for"
    return Synced(recording.clocks, (), how)


def _refine_by_rays(
    moved: Recording, first: Synced, cfg: SyncConfig, place: Callable[[Recording], Recording]
) -> Synced:
    """Refine clocks, with their drifts, by the rays of cameras that are placed with the clocks ``first``.

    Returns ``first`` where cameras cannot be placed, or rays change no clock.
    """
    try:
        finer = estimate_clocks(place(moved), cfg.model_copy(update={"audio": "off"}), first)
    except InputError:  # the run tells when it places the cameras
        return first
    return finer if any(f.code == "clocks_set" for f in finer.findings) else first


def estimate_clocks(recording: Recording, cfg: SyncConfig, first: Synced | None = None) -> Synced:
    """Estimate the clocks of an inspected recording from its people; a refused camera keeps its clock.

    Changes and writes nothing.

    first: an earlier estimate, whose clocks the recording has. It holds for cameras that this one refuses.
    """
    names = recording.rig.names
    lacking = [v for v, k in enumerate(recording.keypoints) if k is None]
    views = [v for v in range(len(names)) if v not in lacking]
    if len(views) < 2:
        return Synced(recording.clocks, (), "fewer than two cameras have keypoints")
    estimate = _estimate_by_movement(recording, views, cfg.search_s)
    if estimate is None:
        found_out = (_unknown_finding([names[v] for v in views], NO_SPAN),)
        return Synced(recording.clocks, found_out, "the cameras share too little time to be compared")
    middle = float(np.mean([t[-1] for t in recording.own_times.times_s])) / 2
    estimate = drop_insignificant_drift(estimate, middle)
    sound = _estimate_by_sound(recording, views, cfg) if cfg.audio == "auto" else None
    estimate, methods, findings = _combine_with_sound(recording, views, estimate, sound)
    kept = [
        k
        for k, v in enumerate(views)
        if first and estimate.refused[k] and first.clocks[v].sigma_s is not None
    ]
    refused = [None if k in kept else reason for k, reason in enumerate(estimate.refused)]
    trusted = [k for k, reason in enumerate(refused) if reason is None]
    off = any(
        abs(estimate.offset_s[k]) > max(IN_STEP_S, 2 * estimate.sigma_s[k]) or estimate.drift[k] != 0
        for k in trusted
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
        sigma = float(estimate.sigma_s[k])
        chance = math.erf(_HALF_FRAME_S / (sigma * math.sqrt(2))) if sigma else 1.0
        known = {"sigma_s": round(sigma, 5), "confidence": round(chance, 4), "method": methods[k]}
        clocks[v] = before.model_copy(update=known)
        if off:
            # The estimate is on top of the clock that the recording has.
            more = 1 + float(estimate.drift[k])
            clocks[v] = clocks[v].model_copy(
                update={
                    "offset_s": round(float(estimate.offset_s[k]) + more * before.offset_s, 6),
                    "drift_ppm": round((more * (1 + before.drift_ppm * 1e-6) - 1) * 1e6, 3),
                }
            )
    if first is not None and kept:
        findings += [f for f in first.findings if f.code in ("sound_used", "sound_contradicts")]
    findings += _refusal_findings([names[v] for v in views], replace(estimate, refused=tuple(refused)))
    if not trusted:
        how = "no camera's clock could be compared with another's: all stay as they are"
    elif not off:
        how = "the cameras are in step"
    else:
        how = f"clocks set by {_evidence_words(methods[k] for k in trusted)}"
        root = next(k for k in trusted if methods[k] == _REFERENCE)
        duration_s = max(float(t[-1]) for t in recording.own_times.times_s)
        by_name = {names[views[k]]: clocks[views[k]] for k in trusted}
        findings.insert(0, _out_of_step(by_name, names[views[root]], duration_s, how))
    scale = 1000.0 if estimate.unit == "m" else 1.0
    curves = {
        names[v]: tuple(None if math.isnan(x) else round(scale * x, 2) for x in estimate.curve[k].tolist())
        for k, v in enumerate(views)
    }
    lag_s = tuple(round(x, 3) for x in estimate.lag_s.tolist())
    return Synced(tuple(clocks), tuple(findings), how, lag_s, curves, "mm" if estimate.unit == "m" else "px")


def _evidence_words(methods: Iterable[str]) -> str:
    by = [m for m in methods if m != _REFERENCE]
    movement = "the people's movement" if any(m != _SOUND for m in by) else ""
    sound = "sound" if any(_SOUND in m for m in by) else ""
    return " and ".join(filter(None, (movement, sound)))


def _out_of_step(clocks: Mapping[str, Clock], reference: str, duration_s: float, how: str) -> Finding:
    """Finding on the camera whose clock differs most from the reference's during the recording."""
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
    outcome = f"the cameras are out of step: {', and '.join(facts)}"
    if not facts:
        outcome = "the cameras are in step, though other clocks are stated"
    sentence = f"{outcome}; {how}"
    return Finding("clocks_set", f"{sentence} (sync.yaml has all; --sync off leaves them)")


def _refusal_findings(cameras: Sequence[str], estimate: Clocks) -> list[Finding]:
    """Finding for each reason of unchanged clocks."""
    findings = []
    for reason in dict.fromkeys(r for r in estimate.refused if r is not None):
        which = [k for k, r in enumerate(estimate.refused) if r == reason]
        answers = [
            f"{cameras[k]} {' or '.join(f'{a:+.3f} s' for a in estimate.answers_s[k])}"
            for k in which
            if any(estimate.answers_s[k])
        ]
        if answers:
            reason += f": {', '.join(answers)}"
        findings.append(_unknown_finding([cameras[k] for k in which], reason))
    return findings


def _unknown_finding(cameras: Sequence[str], reason: str) -> Finding:
    needed = f" (it takes {MIN_SPAN_S:g} s, without a calibration {EVIDENCE.lines_span_s:g} s)"
    sentence = (
        f"clocks of {', '.join(cameras)} cannot be told: {reason}"
        f"{needed * (reason == NO_SPAN)}. They stay as they are; recording.yaml can state them, "
        f"sync: {{{cameras[0]}: {{offset_s: ...}}}}"
    )
    return Finding("clock_unknown", sentence, cameras[0] if len(cameras) == 1 else None)


def _estimate_by_movement(recording: Recording, views: Sequence[int], reach_s: float) -> Clocks | None:
    """Clocks of some cameras, relative to their current ones; None where they share too little time."""
    rig = recording.rig.select([recording.rig.names[v] for v in views]) if recording.placed else None
    moments = [recording.clocks[v].moment(recording.own_times.times_s[v]) for v in views]
    begin, end = min(float(m[0]) for m in moments), max(float(m[-1]) for m in moments)
    long = end - begin > _MAX_UNSAMPLED_S
    middle = (begin + end) / 2
    span = _busiest_span(recording, moments[0], views[0], (begin, end)) if long else (begin, end)
    zero = np.zeros(len(views))

    def detections_in(span: tuple[float, float], offset_s: Array, drift: Array) -> list[OwnDetections]:
        """Each camera's detections, on its own clock, in a span of the recording's clock."""
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

    known = detections_in(span, zero, zero)
    if any(len(k.time_s) < _MIN_FRAMES for k in known):
        return None
    cameras = find_trajectories(rig, known, reach_s)
    estimate = find_clocks(cameras, None if rig is None else rig.centres, reach_s)
    if not long or rig is None or all(estimate.refused):
        return estimate
    starts = np.linspace(begin, end - _STRETCH_S, _STRETCHES)
    stretches: list[list[Trajectories]] = [cameras]
    # From the middle outwards: every stretch lies where the drift by those before still leads.
    for start in sorted(starts, key=lambda s: abs(s + _STRETCH_S / 2 - middle)):
        part = detections_in((start, start + _STRETCH_S), estimate.offset_s, estimate.drift)
        if any(len(p.time_s) < _MIN_FRAMES for p in part):
            continue
        more = find_trajectories(rig, part, _STRETCH_LAG_S)
        stretches.append(more)
        joined = [join_stretches([s[k] for s in stretches]) for k in range(len(views))]
        estimate = extend_clocks(estimate, joined, rig.centres)
    return estimate


def _estimate_by_sound(recording: Recording, views: Sequence[int], cfg: SyncConfig) -> SoundClocks | None:
    """Clocks by sound, relative to the current ones; None where no video has a sound track."""
    videos = [recording.videos[v] for v in views]
    power = [None if video is None else read_sound_power(video, _MAX_SOUND_S) for video in videos]
    if all(p is None for p in power):
        return None
    stated_s = [recording.clocks[v].offset_s for v in views]
    return find_sound_clocks(power, stated_s, POWER_HZ, cfg.search_s)


def _combine_with_sound(
    recording: Recording, views: Sequence[int], estimate: Clocks, sound: SoundClocks | None
) -> tuple[Clocks, list[str], list[Finding]]:
    """Clocks by movement and, where it is refused, by sound; the method of each; findings.

    Of repeating movement, the answer near the sound's is taken. Sound is used where every camera hears what
    another does, and no trusted clock by movement contradicts it.
    """
    names = [recording.rig.names[v] for v in views]
    movement = "rays" if recording.placed else "epipolar lines"
    sure = [k for k, reason in enumerate(estimate.refused) if reason is None]
    root = sure[0] if sure else 0
    methods = [_REFERENCE if k == root else movement for k in range(len(views))]
    if sound is None:
        return estimate, methods, []
    if any(sound.refused):
        why = "; ".join(f"{n} {r}" for n, r in zip(names, sound.refused, strict=True) if r)
        unused = Finding("sound_unused", f"sound cannot tell what movement does not: {why}")
        return estimate, methods, [unused] * (len(sure) < len(views))
    late_s = sound.offset_s - sound.offset_s[root]
    middle = min(_MAX_SOUND_S, min(float(recording.own_times.times_s[v][-1]) for v in views)) / 2
    by_movement = estimate.offset_s + estimate.drift * middle
    apart = [k for k in sure if abs(late_s[k] - by_movement[k]) > TRAVEL_LIMIT_S]
    if apart:
        offsets = ", ".join(f"{names[k]} {by_movement[k]:+.3f} s and {late_s[k]:+.3f} s" for k in apart)
        sentence = (
            f"movement and sound contradict each other, by the clock of {names[root]}: {offsets}; "
            "sound is not used"
        )
        return estimate, methods, [Finding("sound_contradicts", sentence)]
    if not any(estimate.refused):
        return estimate, methods, []
    near = (
        _movement_near_sound(recording, views, late_s)
        if {PERIODIC, EDGE} & set(estimate.refused)
        else estimate
    )
    return _fill_by_sound(names, estimate, near or estimate, late_s, movement)


def _movement_near_sound(recording: Recording, views: Sequence[int], late_s: Array) -> Clocks | None:
    """Clocks by movement near the current ones shifted by ``late_s`` (V,)."""
    clocks = list(recording.clocks)
    for v, late in zip(views, late_s.tolist(), strict=True):
        clocks[v] = clocks[v].model_copy(update={"offset_s": clocks[v].offset_s + late})
    estimate = _estimate_by_movement(replace(recording, clocks=tuple(clocks)), views, _SOUND_LAG_S)
    if estimate is None:
        return None
    estimate = drop_insignificant_drift(
        estimate, float(np.mean([recording.own_times.times_s[v][-1] for v in views])) / 2
    )
    return replace(estimate, offset_s=estimate.offset_s + (1 + estimate.drift) * late_s)


def _fill_by_sound(
    names: Sequence[str], before: Clocks, near: Clocks, late_s: Array, movement: str
) -> tuple[Clocks, list[str], list[Finding]]:
    """Clocks by movement near the sound's, by sound where movement is refused. before: without sound."""
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
    trusted = [k for k, reason in enumerate(refused) if reason is None]
    root = (sure or trusted or [0])[0]
    methods[root], sigma_s[root] = _REFERENCE, 0.0
    offset_s = np.where([r is None for r in refused], offset_s - offset_s[root], 0)
    findings = []
    if by_sound:
        sentence = (
            f"clocks are by sound of {', '.join(names[k] for k in by_sound)}, where movement tells nothing: "
            f"right to about {1000 * TRAVEL_SIGMA_S:.0f} ms, as sound travels 1 m in 3 ms"
        )
        findings.append(Finding("sound_used", sentence))
    chosen = [names[k] for k in trusted if "chosen" in methods[k]]
    if chosen:
        sentence = (
            f"movement alone has several answers; that near the sound's is taken, for {', '.join(chosen)}"
        )
        findings.append(Finding("sound_used", sentence))
    clocks = replace(
        near, offset_s=offset_s, sigma_s=sigma_s, refused=tuple(refused), answers_s=before.answers_s
    )
    return clocks, methods, findings


def _busiest_span(
    recording: Recording, moments: Array, view: int, span: tuple[float, float]
) -> tuple[float, float]:
    """Stretch of ``_BUSIEST_STRETCH_S`` with most instants at which two cameras show a person.

    Of equal ones the most central.

    moments: of the frames of a camera.
    """
    at = spread(np.arange(len(recording)), _SAMPLED_INSTANTS)
    at = at[recording.timeline.frame_index[view, at] >= 0]
    shows = (recording.people(at)[..., 2] > 0).any((2, 3)).sum(0) >= 2
    when = moments[recording.timeline.frame_index[view, at]]
    starts = np.linspace(span[0], span[1] - _BUSIEST_STRETCH_S, _SAMPLED_INSTANTS)
    inside = [int(shows[(when >= s) & (when <= s + _BUSIEST_STRETCH_S)].sum()) for s in starts]
    aside = np.abs(starts + _BUSIEST_STRETCH_S / 2 - sum(span) / 2)
    start = float(starts[np.lexsort((aside, -np.array(inside)))[0]])
    return start, start + _BUSIEST_STRETCH_S


def _input_digests(recording: Recording, cfg: SyncConfig) -> dict[str, str]:
    """Digest of each input of the estimate."""
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


def _to_file(names: Sequence[str], synced: Synced, source: Mapping[str, str]) -> SyncFile:
    findings = [{"code": f.code, "sentence": f.sentence, "camera": f.camera} for f in synced.findings]
    return SyncFile(
        sync=dict(zip(names, synced.clocks, strict=True)),
        source=dict(source),
        curves=synced.residuals | {"how": synced.how, "findings": findings},
    )


def _from_file(names: Sequence[str], content: SyncFile) -> Synced:
    curves = content.curves
    return Synced(
        tuple(content.sync[n] for n in names),
        tuple(Finding(f["code"], f["sentence"], f["camera"]) for f in curves["findings"]),
        curves["how"],
        tuple(curves["lag_s"]),
        {n: tuple(c) for n, c in curves["cameras"].items()},
        curves["unit"],
    )
