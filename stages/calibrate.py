"""Before the stages: where fixed cameras stand, from the person they see, for a recording that does not say.

Not a stage that batches flow through: the others need the cameras before the first frame.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from models.body import Body, load_body, pose_keypoints
from models.geometry.association import MatchConfig, pick_people
from models.geometry.between_frames import people_between
from models.geometry.bundle import BodySize, Bundle, FocalPrior, Sight, adjust
from models.geometry.people import follow_longest
from models.geometry.selfcalibration import find_cameras, match_candidates, rotation_between_halves
from models.geometry.tracking import figures, track_figures
from models.geometry.up import guess_up, upright
from models.regressors.keypoint_nets import load_regressor
from pipeline.array_types import Array
from pipeline.calibrations import read_calibration
from pipeline.calibrations.estimate import Provenance, read_estimate
from pipeline.calibrations.pose2sim import write_calibration
from pipeline.cameras import Rig
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.findings import Finding
from pipeline.inputs import identity_of_inputs
from pipeline.recording import Recording
from pipeline.results import CALIBRATION, STORE
from pipeline.timeline import spread

_log = logging.getLogger(__name__)

_CANDIDATES, _MINOR = 3, 0.15
"""People of a view who may be the recording's person: so many, with this share of the most to see."""
_SLOWEST: Final = 10.0
"""Frames a second at which people can still be followed from picture to picture."""
_PRESENCE: Final = 200
"""Frames, spread over a long recording, that tell where most views show somebody."""
_FEW: Final = 5
"""Frames with a person without which one camera does not tell what is up."""
_STEEPER: Final = 1.25
"""Tangent of a single camera's tilt by that of its guess: the network draws all cameras towards level, those
of 200 walkers by a fifth (tests/benchmarks/up.py)."""
_OFF_M: Final = 0.04
"""Median distance of rays from points above which the views do not show one person, metres."""
_MIN_TURN_DEG: Final = 3.0
"""Rotation between the halves of a stretch from which a camera may have moved."""
_MAX_COST_RATIO, _MIN_COST_GAIN = 0.93, 0.08
"""Cost of the halves over that of the whole below which, and difference above which, it has moved. Two still
cameras and real detections reach 0.92 and 0.05, as a detector's errors follow the pose; a pan of 8° mostly
0.7 to 0.9 and 0.14 to 0.4."""
_DO: Final = "run each camera alone (a folder with its video and keypoints only), or give a calibration.toml"


class CalibrateConfig(Config):
    """Estimating where the cameras stand, of a recording without a calibration."""

    frames: int = Field(200, ge=20)
    """Frames that the cameras are estimated from, at most."""
    seconds: float = Field(20.0, gt=0)
    """Length of the stretch that they are spread over."""


def calibrate(
    recording: Recording, out: Path, body: Body, cfg: CalibrateConfig, match: MatchConfig
) -> Recording:
    """The recording with its cameras placed; as it is if it has a calibration.

    Writes ``out/calibration.toml``. One that is there is read, so that a run that goes on has the same
    cameras and says the same of them, unless what it was estimated from has changed: then they are estimated
    again. One that the user corrected is used as it is. World: z up, y ahead of the first camera, the origin
    on the floor below the person.

    Raises:
        InputError: the views do not show one person well enough, the cameras move, the file that is there is
            of other cameras, or cameras would be estimated again beside results of the old ones.
    """
    if recording.calibration is not None:
        return recording
    path, source = out / CALIBRATION, _source(recording, body, cfg, match)
    rig, kept = _read(path) if path.exists() else (None, None)
    changed = [name for name, digest in source.items() if kept and kept.source.get(name) != digest]
    stale = bool(kept and kept.as_written and changed)
    if stale:
        results = out / STORE
        if results.exists():
            raise InputError(
                f"{results}: was made with the cameras of {path.name} beside it, which were estimated from "
                f"the recording as it was: since then, {' and '.join(changed)} changed. Change that back, "
                "choose another --out, or remove results.zarr to have the cameras estimated again and to "
                "start again, as `run --overwrite` does."
            )
        _log.warning(f"{path}: estimated again, for {' and '.join(changed)} changed")
    if rig is None or stale:
        rig, made = _estimated(recording, body, cfg, match, source)
        write_calibration(rig, path, made)
        rig, kept = _read(path)
    _check_same(rig, recording.rig, path)
    if kept and kept.as_written:
        finding = Finding("calibration_estimated", kept.caveat)
    else:
        anyway = f" although {' and '.join(changed)} changed since" if changed else ""
        sentence = (
            f"the cameras are those of {path}, which is not as a run has written it: it is used as it is"
            f"{anyway}; remove it to have them estimated"
        )
        finding = Finding("calibration_edited", sentence)
    settled = (f for f in recording.findings if f.code != "calibration_missing")
    return replace(
        recording,
        rig=replace(rig, known_up=np.array([0.0, 0.0, 1.0])),
        calibration=path,
        findings=(*settled, finding),
    )


def estimated_recording(
    recording: Recording, out: Path, body: Body, cfg: CalibrateConfig, match: MatchConfig
) -> Recording:
    """Recording with its two or more cameras estimated as ``calibrate`` would, nothing written. Raises
    ``InputError``."""
    rig = estimate(recording, body, cfg, match)[0].rig
    return replace(recording, rig=rig, calibration=out / CALIBRATION)


def _source(recording: Recording, body: Body, cfg: CalibrateConfig, match: MatchConfig) -> dict[str, str]:
    """Digests of all that an estimate depends on, by what it is called in a message."""
    rig, line = recording.rig, recording.timeline
    parts = {
        "the focal lengths or picture sizes": [rig.K.tolist(), rig.size.tolist(), recording.focal_stated],
        "the time line (frame_offset, fps)": [str(line.rate), line.frame_index.tolist()],
        "the keypoints": identity_of_inputs(recording),
        "the settings (calibrate, associate)": [c.model_dump(mode="json") for c in (cfg, match)],
        "the body": body.sha256,
    }
    return {name: hashlib.sha256(json.dumps(p).encode()).hexdigest()[:16] for name, p in parts.items()}


def _estimated(
    recording: Recording, body: Body, cfg: CalibrateConfig, match: MatchConfig, source: Mapping[str, str]
) -> tuple[Rig, Provenance]:
    if len(recording.rig) == 1:
        found, whom = level(recording, cfg, match)
        level_taken = "unknown, nobody shows it: the camera is taken to be level"
        how = f"guessed from {whom}" if found else level_taken
        rig = found or recording.rig
        return rig, Provenance(
            source,
            0.0,
            f"one camera without a calibration: which way is up and where the floor is are {how}; distances "
            f"from it are only as good as its focal length, {rig.K[0, 0, 0]:.0f} px, and the body's size",
        )
    bundle, whom = estimate(recording, body, cfg, match)
    error_px = float(np.nanmedian(bundle.residual_px))
    focal = ", ".join(f"{f:.0f}" for f in bundle.rig.K[:, 0, 0])
    return bundle.rig, Provenance(
        source,
        round(error_px, 3),
        f"no calibration found: the cameras were estimated from {whom}, with a median error of "
        f"{error_px:.1f} px; focal lengths {focal} px. Lengths in metres are only as good as "
        "the body's, and up is a guess. Look at calibration.toml beside the results; what you correct there "
        "is used by the next run, with --overwrite",
    )


def _read(path: Path) -> tuple[Rig, Provenance | None]:
    return read_calibration(path), read_estimate(path)


def _check_same(rig: Rig, wanted: Rig, path: Path) -> None:
    if rig.names != wanted.names or not np.array_equal(rig.size, wanted.size):

        def shown(r: Rig) -> str:
            return ", ".join(f"{n} {w}x{h}" for n, (w, h) in zip(r.names, r.size, strict=True))

        raise InputError(
            f"{path}: holds the cameras {shown(rig)}, the recording has {shown(wanted)}. Choose another "
            "--out, or remove that file to have them estimated again."
        )


def estimate(
    recording: Recording, body: Body, cfg: CalibrateConfig, match: MatchConfig
) -> tuple[Bundle, str]:
    """Cameras and person of a stretch of a recording with two or more cameras, and who that is, in words.

    Raises ``InputError``.
    """
    rig, names = recording.rig, recording.rig.names
    size = BodySize.of(
        body.keypoints.points_template.double().numpy(), body.keypoints.points_shapedirs.double().numpy()
    )
    focal = FocalPrior.of(rig, recording.focal_stated)
    at = _stretch(recording, cfg, match)
    people = people_between(recording, at).astype(np.float64)
    xy, confidence = people[..., :2], people[..., 2]
    time_s = recording.timeline.time_s[at]

    candidates = []
    for v, name in enumerate(names):
        seen = figures(xy[v], confidence[v], match.min_points)
        kept = track_figures(seen, time_s, match.reach_m, match.speed_m_s, _MINOR)[:_CANDIDATES]
        if not kept:
            raise InputError(
                f"{recording.path}: camera {name} shows nobody in the {len(at)} frames from which the "
                "cameras are estimated; move its video and keypoints away, or give a calibration.toml"
            )
        candidates.append([_sight(xy[v : v + 1], confidence[v : v + 1], k[None]) for k in kept])
    chosen = match_candidates(candidates, rig)
    picked = [candidates[v][k] for v, k in enumerate(chosen)]
    sight = Sight(np.concatenate([s.xy_px for s in picked]), np.concatenate([s.confidence for s in picked]))
    few = spread(np.arange(len(at)), cfg.frames)
    bundle = find_cameras(rig, sight.frames(few), size, focal)
    if bundle is None:
        count = sight.seen.any(2).sum(1)
        counts = ", ".join(f"{n} shows it in {c} frames" for n, c in zip(names, count, strict=True))
        raise InputError(
            f"{recording.path}: where the cameras stand cannot be told from the person they see: "
            f"{counts}. They must show one person at the same time, "
            f"for a few seconds of movement; {_DO}"
        )
    # With cameras, people are matched by geometry, track or no track: once more from all of it.
    who = follow_longest(bundle.rig, xy, confidence, time_s, match)
    again = _sight(xy, confidence, who)
    alone = [
        n for n, w, s in zip(names, who, sight.seen, strict=True) if (w >= 0).sum() < 0.3 * s.any(1).sum()
    ]
    if not alone:
        sight, bundle = again, adjust(bundle.rig, again.frames(few), size, focal, (6.0, 3.0))
    off = _off_m(bundle)
    turned, halves_cost = rotation_between_halves(bundle, sight.frames(few), size, focal)
    gain = bundle.cost - halves_cost
    better = gain > max((1 - _MAX_COST_RATIO) * bundle.cost, _MIN_COST_GAIN)
    if turned.max() > _MIN_TURN_DEG and better:
        raise InputError(
            f"{recording.path}: the cameras move: {names[int(turned.argmax())]} turned by "
            f"{turned.max():.0f}° against {names[0]} while they were watched, or it is out of step. "
            f"Without a calibration only fixed cameras can be placed; {_DO}"
        )
    whom = _whom(recording, at, people, who, match)
    if alone or not off < _OFF_M:
        raise InputError(
            f"{recording.path}: the cameras do not show one person at the same time ({1000 * off:.0f} mm off"
            f"{'; no agreement with ' + ', '.join(alone) if alone else ''}; taken was {whom}): are they in "
            "step, do they stand still, is the person in all of them? Where people cross, some seconds with "
            f"one alone tell more (--start, --end). Else {_DO}"
        )
    rig, points = upright(bundle.rig, bundle.points)
    return replace(bundle, rig=rig, points=points), whom


def _whom(
    recording: Recording, at: NDArray[np.int64], people: Array, who: NDArray[np.int64], match: MatchConfig
) -> str:
    """Who of the people (V, T, P, K, 3) in frames ``at`` the person ``who`` (V, T) is, in words."""
    shown = (figures(p[..., :2], p[..., 2], match.min_points).weight > 0 for p in people)
    at_once = max(int(np.median(n[n > 0])) if (n := s.sum(1)).any() else 0 for s in shown)
    if at_once < 2 or not (who >= 0).any():
        return "the person"
    v = int((who >= 0).sum(1).argmax())
    seen = np.flatnonzero(who[v] >= 0)
    t = int(seen[len(seen) // 2])
    points = people[v, t, who[v, t]]
    x, y = np.median(points[points[:, 2] > 0, :2], axis=0)
    return (
        f"one of the {at_once} people in view, the one at ({x:.0f}, {y:.0f}) px of {recording.rig.names[v]} "
        f"in its frame {recording.timeline.frame_index[v, at[t]]}"
    )


def level(recording: Recording, cfg: CalibrateConfig, match: MatchConfig) -> tuple[Rig | None, str]:
    """A single camera in a world in which a person it sees stands upright, and who that is, in words; None
    where it hardly sees one.

    A network says, frame by frame, how the person stands before the camera: it knows no time and no up.
    """
    rig, at = recording.rig, _stretch(recording, cfg, match)
    people = people_between(recording, at).astype(np.float64)
    xy, confidence = people[..., :2], people[..., 2]
    time_s = recording.timeline.time_s[at]
    who = follow_longest(rig, xy, confidence, time_s, match)
    sight = _sight(xy, confidence, who)
    there = spread(np.flatnonzero(who[0] >= 0), cfg.frames)
    found = level_with(rig, sight.xy_px[0, there], sight.confidence[0, there])
    return found, _whom(recording, at, people, who, match) if found else ""


def level_with(rig: Rig, xy_px: Array, confidence: Array) -> Rig | None:
    """A single camera in a world in which a person upright stands upright; None where it hardly sees one.

    xy_px (T, K, 2), NaN where missing, and confidence (T, K) of the person in frames in which it is shown.
    """
    looks, trust = (torch.from_numpy(x[:, None]).float() for x in (xy_px, confidence))
    if len(looks) < _FEW:
        return None
    shown = load_regressor("uncalibrated")(
        looks, trust, torch.from_numpy(rig.K).float().expand(len(looks), 1, 3, 3)
    )
    known = shown.seen[:, 0]
    if int(known.sum()) < _FEW:
        return None
    pose = torch.cat([shown.view_orient, shown.body_pose], 1)[known].double()
    body = load_body().keypoints  # the one whose betas the network speaks of
    _, points = pose_keypoints(body, pose, shown.betas[known].double(), shown.view_transl[known, 0].double())
    camera = replace(rig, R=np.eye(3)[None], t=np.zeros((1, 3)))
    up = guess_up(camera, points.numpy()) * np.array([1, 1, _STEEPER])
    return upright(camera, points.numpy(), up / np.linalg.norm(up))[0]


def _sight(xy: Array, confidence: Array, who: NDArray[np.int64]) -> Sight:
    return Sight(pick_people(xy, who, np.nan), pick_people(confidence, who, 0.0))


def _off_m(bundle: Bundle) -> float:
    """The largest of the views' median residuals, metres at the person."""
    depth = bundle.rig.to_camera(np.where(np.isfinite(bundle.points), bundle.points, np.nan))[..., 2]
    away = np.nanmedian(depth.reshape(len(bundle.rig), -1), axis=1)
    return float(np.max(bundle.residual_px * away / bundle.rig.K[:, 0, 0]))


def _stretch(recording: Recording, cfg: CalibrateConfig, match: MatchConfig) -> NDArray[np.int64]:
    """Frames, evenly spaced, of the stretch in which most views show somebody, of equals that nearest to the
    middle, where clocks that drift are known best: as many as ``cfg.frames``, or more, where people could not
    be followed from one to the next otherwise."""
    rate, total = float(recording.timeline.rate), len(recording)
    length = min(total, max(round(cfg.seconds * rate), 1))
    start = 0
    if length < total:
        looked = spread(np.arange(total), _PRESENCE)
        people = recording.people(looked)
        weight = [
            figures(p[..., :2].astype(np.float64), p[..., 2].astype(np.float64), match.min_points).weight
            for p in people
        ]
        views = np.array([(w > 0).any(1) for w in weight]).sum(0)
        starts = looked[looked <= total - length]
        inside = [
            float(np.where(views >= 2, views, 0)[(looked >= s) & (looked < s + length)].sum()) for s in starts
        ]
        aside = np.abs(starts + length / 2 - total / 2)
        start = int(starts[np.lexsort((aside, -np.array(inside)))[0]])
    step = max(1, min(length // cfg.frames, round(rate / _SLOWEST)))
    return np.arange(start, start + length, step)
