"""Multi-person tracking by prediction.

A track predicts its person's keypoints in the next frame; detections are assigned to tracks in every view
(``matching``) and triangulated; those without a track propose new people (``births``). Nothing looks at the
future, and the whole state is a few kB a person.

N tracks, M detections of all views in a frame, K keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.geometry.association import MatchConfig, finite_median
from models.geometry.births import propose_people
from models.geometry.clutter import clutter_holder, match_clutter, update_clutter
from models.geometry.matching import (
    MIRROR,
    Bools,
    FrameDetections,
    TrackMatch,
    body_agreement,
    match_tracks,
    unit_m,
)
from models.geometry.tracks import LIMITS, MAX_TRACKS, TRACK_ARRAYS, Tracks, trunk_middle
from models.geometry.triangulation import rays
from pipeline.array_types import Array, Ints
from pipeline.cameras import Rig


@dataclass(frozen=True)
class MirrorSpan:
    """Interval (``after_s``, ``until_s``] in which a track was the mirror image of its person."""

    serial: int
    after_s: float
    until_s: float

    def covers(self, serial: Ints, time_s: Array) -> Bools:
        """(M,) true for detections of this track in this interval."""
        return np.asarray((serial == self.serial) & (self.after_s < time_s) & (time_s <= self.until_s))


@dataclass(frozen=True)
class Ownership:
    """Assignment of the detections of some frames to tracks. Axes: V views, T frames, D detections."""

    tracks: Ints
    """(N,) serials of the tracks of these frames, rising"""
    alive: Bools
    """(T, N) the track lived on after the frame, measured or not"""
    serial: Ints
    """(V, T, D) serial of the detection's track, −1 for none"""
    mirrored: Ints
    """(V, T, D) 1 where left and right of the detection are exchanged relative to its track, −1 where they
    clearly are not, else 0"""
    fragment: Bools
    """(V, T, D) another detection of the view shows more of the same person"""
    mirror_spans: tuple[MirrorSpan, ...]
    """Mirrored tracks that were noticed in these frames"""
    lost: Ints
    """(L,) ids of people whose track has ended and who may return"""
    confirmed: Mapping[int, int]
    """Serial of each confirmed track → the person's id"""


def track_people(
    rig: Rig, xy_px: Array, confidence: Array, time_s: Array, tracks: Tracks, cfg: MatchConfig
) -> tuple[Ownership, Tracks]:
    """Track all people through a batch of frames.

    xy_px: (V, T, D, K, 2) undistorted pixels, NaN where missing. confidence: (V, T, D, K), 0 where missing.
    time_s: (T,). Uses nothing but these frames and the state that earlier ones left.
    """
    frames = len(time_s)
    visible = confidence > 0
    ray = np.where(visible[..., None], rays(rig, np.where(visible[..., None], xy_px, 0.0)), 0.0)
    usable = visible.sum(-1) >= LIMITS.fragment_shared
    serial = np.full(usable.shape, -1, np.int64)
    mirrored, fragment = np.zeros_like(serial), np.zeros(serial.shape, bool)
    alive, confirmed, spans = [], dict[int, int](), list[MirrorSpan]()
    for t, now in enumerate(time_s.tolist()):
        v, d = np.nonzero(usable[:, t])
        detections = FrameDetections(v, d, xy_px[v, t, d], confidence[v, t, d], ray[v, t, d], rig.centres[v])
        match, tracks, new_spans = _track_frame(rig, detections, now, tracks, cfg)
        owned = match.owner >= 0
        v, d = v[owned], d[owned]
        serial[v, t, d] = tracks.serial[match.owner[owned]]
        mirrored[v, t, d], fragment[v, t, d] = match.mirrored[owned], match.fragment[owned]
        confirmed |= tracks.confirmed
        spans += new_spans
        tracks = _end_tracks(rig, tracks, now, cfg)
        alive.append(tracks.serial)
    serials = np.unique(np.concatenate([*alive, serial[serial >= 0]]))
    lives = np.array([np.isin(serials, each) for each in alive]).reshape(frames, len(serials))
    lost = tracks.lost[:, 0].astype(np.int64)
    return Ownership(serials, lives, serial, mirrored, fragment, tuple(spans), lost, confirmed), tracks


def follow_longest(rig: Rig, xy_px: Array, confidence: Array, time_s: Array, cfg: MatchConfig) -> Ints:
    """(V, T) index of the detection of the person who is in most pictures of some frames; −1 for none.

    Arguments as of ``track_people``.
    """
    owned, tracks = track_people(rig, xy_px, confidence, time_s - time_s[0], Tracks.none(), cfg)
    last = float(time_s[-1] - time_s[0])
    ids = {**owned.confirmed, **count_at_end(rig, tracks, len(time_s), last, cfg).confirmed}
    # With wrong cameras no track may be confirmed: each is then a person of its own, below 0.
    person = np.array([ids.get(serial, -1 - serial) for serial in owned.tracks.tolist()], np.int64)
    best = np.full(owned.serial.shape[:2], -1)
    for each in sorted({*person.tolist()}, key=lambda each: (each < 0, abs(each))):
        mine = np.isin(owned.serial, owned.tracks[person == each]) & ~owned.fragment
        if mine.sum() > (best >= 0).sum():
            best = np.where(mine.any(2), mine.argmax(2), -1)
    return best


def _track_frame(
    rig: Rig, detections: FrameDetections, now: float, tracks: Tracks, cfg: MatchConfig
) -> tuple[TrackMatch, Tracks, list[MirrorSpan]]:
    """Advance the tracks by a frame: match and update, move those that lost their person, add new ones."""
    several = len(rig) > 1
    near_m = LIMITS.near_m * (1 if several else LIMITS.one_picture)
    clutter = match_clutter(tracks.clutter, detections)
    holder = clutter_holder(tracks.clutter, clutter)
    match = match_tracks(rig, detections, tracks, holder, now, cfg)
    share = np.minimum((now - tracks.time_s) / LIMITS.mirror_frame_s, 1)
    tracks, match = _update_tracks(rig, match, tracks, now, cfg)
    tracks, spans = _turn_mirrored(match, share, tracks, now)
    owner, mirrored = match.owner.copy(), match.mirrored.copy()
    free = np.append(several & (tracks.measured_s < now), True)[owner]
    born: list[Array] = []
    for body, members in propose_people(rig, match.detections, free, cfg):
        distance_m = finite_median(np.linalg.norm(tracks.points - body, axis=-1)) * unit_m(rig, body[None])[0]
        holders = {*owner[members].tolist()} - {-1}
        n, kept = None, members
        # A track is not moved by clutter: what is born of it must be confirmed first.
        if several and np.isnan(holder[members]).all():
            n, kept = _find_misled(rig, match.detections, tracks, owner, body, members, distance_m, cfg)
            if n is None and not (distance_m[tracks.measured_s == now] < near_m).any():
                n = _find_unmeasured(tracks, distance_m, holders, now, cfg)
        if n is not None:
            tracks = _move_track(tracks, n, body, len(members), now)
            owner[owner == n] = -1
            owner[members] = owner[kept] = n
        elif not holders and not (distance_m < near_m).any():
            owner[members] = len(tracks.serial) + len(born)
            mirrored[members] = np.where(mirrored[members] > 0, 1, -1)  # as in the body that they make
            born.append(body)
    tracks = _add_tracks(tracks, born, now)
    if several:
        serial = np.append(tracks.serial, -1)[owner]
        tracks = replace(tracks, clutter=update_clutter(tracks.clutter, clutter, detections, serial, now))
    return replace(match, owner=owner, mirrored=mirrored), _confirm_tracks(rig, tracks, now, cfg), spans


def _update_tracks(
    rig: Rig, match: TrackMatch, tracks: Tracks, now: float, cfg: MatchConfig
) -> tuple[Tracks, TrackMatch]:
    """Update the tracks by the detections of a frame: of two views, of one, or of none. Detections that do
    not update their track lose it."""
    detections, measured, owner = match.detections, match.measured, match.owner
    views = np.zeros((len(tracks.serial), len(rig)), bool)
    views[owner[owner >= 0], detections.view[owner >= 0]] = True
    views_seen, needed = views.sum(1), min(2, len(rig))
    fresh = np.isfinite(measured[..., 0])
    good = (views_seen >= needed) & (fresh.sum(1) >= LIMITS.shared)
    glimpsed = ~good & (views_seen > 0) & (now - tracks.measured_s <= cfg.single_view_s)
    owner = np.where(np.append(good | glimpsed, False)[owner], owner, -1)

    # Velocity, of the keypoints that the frame before had measured, too.
    elapsed_s = np.maximum(now - tracks.time_s, 1e-3)[:, None]
    before = fresh & (tracks.point_s >= tracks.time_s[:, None] - 1e-9) & np.isfinite(tracks.points[..., 0])
    shift = finite_median(np.where(before[..., None], measured - tracks.points, np.nan), 1)
    change = shift / elapsed_s - tracks.velocity
    if len(rig) > 1:
        limit = LIMITS.acceleration_m_s2 * elapsed_s
        change *= np.minimum(1, limit / np.maximum(np.linalg.norm(change, axis=1, keepdims=True), 1e-9))
    steady = good & (before.sum(1) >= 3)
    velocity = np.where(steady[:, None], tracks.velocity + change / 2, tracks.velocity)
    velocity = velocity * np.where(good, 1.0, np.where(glimpsed, 0.9, 0.8))[:, None]

    points = np.where(good[:, None, None], match.body, tracks.points)
    points = np.where((good[:, None] & fresh)[..., None], measured, points)
    for n in np.flatnonzero(glimpsed):
        points[n] = _move_onto_rays(match.body[n], detections, np.flatnonzero(owner == n))
    point_s = np.where(good[:, None] & fresh, now, tracks.point_s)
    points[good[:, None] & (now - point_s > LIMITS.point_s)] = np.nan
    updated = replace(
        tracks,
        points=points,
        point_s=point_s,
        velocity=velocity,
        time_s=np.where(good | glimpsed, now, tracks.time_s),
        measured_s=np.where(good, now, tracks.measured_s),
        place=np.where(good[:, None], trunk_middle(points), tracks.place),
        support=0.93 * tracks.support + 0.07 * (views_seen >= needed),
        evidence=tracks.evidence + np.maximum(views_seen - needed + 1, 0),
        age=tracks.age + 1,
    )
    return updated, replace(match, owner=owner)


def _turn_mirrored(
    match: TrackMatch, share: Array, tracks: Tracks, now: float
) -> tuple[Tracks, list[MirrorSpan]]:
    """Exchange left and right of tracks that are mirror images, and the time that they were.

    Detector errors differ from view to view, so that a track that most detections contradict is itself wrong,
    as from birth in a bad frame. Cumulative sum test: Page, Continuous inspection schemes, 1954; the change
    was when the sum was 0 last.

    share: (N,) of a frame's gain that counts, at most 1: errors last for a time, not for a number of frames.
    """
    owned = match.owner >= 0
    gain = np.bincount(match.owner[owned], match.mirror_gain[owned], minlength=len(tracks.serial))
    total = np.maximum(tracks.mirror_gain + share * gain, 0)
    wrong = total > LIMITS.mirror_gain
    since_s = zip(tracks.serial[wrong].tolist(), tracks.unmirrored_s[wrong].tolist(), strict=True)
    spans = [MirrorSpan(serial, after_s, now) for serial, after_s in since_s]
    points, point_s = tracks.points.copy(), tracks.point_s.copy()
    points[wrong], point_s[wrong] = points[wrong][:, MIRROR], point_s[wrong][:, MIRROR]
    total[wrong] = 0
    unmirrored_s = np.where(total > 0, tracks.unmirrored_s, now)
    turned = replace(tracks, points=points, point_s=point_s, mirror_gain=total, unmirrored_s=unmirrored_s)
    return turned, spans


def _find_misled(
    rig: Rig,
    detections: FrameDetections,
    tracks: Tracks,
    owner: Ints,
    body: Array,
    members: Ints,
    distance_m: Array,
    cfg: MatchConfig,
) -> tuple[int | None, Ints]:
    """Find the track that stands beside its person, who is this body (K, 3) of other detections: more views
    agree with the body than with the track.

    distance_m: (N,) of the body from each track. Returns the track, None if it is none, and those of its
    detections that agree better with the body.
    """
    new, shared = body_agreement(rig, body[None], detections, cfg.agreement_m)
    own, _ = body_agreement(rig, tracks.points, detections, cfg.agreement_m)
    for n in np.flatnonzero(distance_m <= cfg.reach_m).tolist():
        mine = np.flatnonzero(owner == n)
        better = (new[0, mine] > own[n, mine]) & (shared[0, mine] >= LIMITS.shared)
        better &= ~np.isin(detections.view[mine], detections.view[members])
        if better.any() and len(members) + better.sum() > len(mine):
            return n, mine[better]
    return None, members


def _find_unmeasured(
    tracks: Tracks, distance_m: Array, holders: set[int], now: float, cfg: MatchConfig
) -> int | None:
    """Find the nearest track, not measured in this frame, within reach of a body at ``distance_m`` (N,).

    holders: tracks that have a detection of the body; one view alone did not give them its distance.
    """
    unseen_s = now - tracks.measured_s
    reach_m = np.minimum(LIMITS.jump_m + cfg.speed_m_s * unseen_s, cfg.max_reach_m)
    near = [n for n in np.flatnonzero((unseen_s > 0) & (distance_m <= reach_m)).tolist() if holders <= {n}]
    return min(near, key=lambda n: float(distance_m[n]), default=None)


def _put_bodies(tracks: Tracks, index: Ints, bodies: Array, now: float) -> dict[str, Any]:
    """Arrays of the tracks, with those of ``index`` (N,) at bodies (N, K, 3) that several views show."""
    new = {name: getattr(tracks, name).copy() for name in TRACK_ARRAYS}
    new["points"][index] = bodies
    new["point_s"][index] = np.where(np.isfinite(bodies[..., 0]), now, -np.inf)
    new["velocity"][index] = 0
    new["time_s"][index] = new["measured_s"][index] = now
    new["place"][index] = trunk_middle(bodies)
    return new


def _move_track(tracks: Tracks, n: int, body: Array, views: int, now: float) -> Tracks:
    """Move track n to a body (K, 3) that several views show."""
    new = _put_bodies(tracks, np.array([n]), body[None], now)
    new["evidence"][n] += views - 1
    return replace(tracks, **new)


def _move_onto_rays(body: Array, detections: FrameDetections, members: Ints) -> Array:
    """Shift a body (K, 3) as a whole onto the rays of one view's detections."""
    for m in members:
        centre, ray = detections.centre[m], detections.ray[m]
        on_ray = centre + ((body - centre) * ray).sum(-1)[:, None] * ray
        known = (detections.confidence[m] > 0) & np.isfinite(body[:, 0])
        if known.sum() >= 3:
            body = body + np.median((on_ray - body)[known], 0)
    return body


def _add_tracks(tracks: Tracks, born: list[Array], now: float) -> Tracks:
    """Append a track for each body (K, 3)."""
    if not born:
        return tracks
    index = len(tracks.serial) + np.arange(len(born))
    rows = {name: getattr(tracks, name) for name in TRACK_ARRAYS}
    grown: dict[str, Any] = {
        name: np.concatenate([x, np.zeros((len(born), *x.shape[1:]), x.dtype)]) for name, x in rows.items()
    }
    new = _put_bodies(replace(tracks, **grown), index, np.stack(born), now)
    new["serial"][index] = tracks.next_serial + np.arange(len(born))
    new["id"][index] = -1
    new["born_s"][index] = now
    new["birthplace"][index] = new["place"][index]
    new["support"][index] = 0.5
    new["unmirrored_s"][index] = -np.inf
    return replace(tracks, **new, next_serial=tracks.next_serial + len(born))


def _confirm_tracks(
    rig: Rig, tracks: Tracks, now: float, cfg: MatchConfig, evidence: int = LIMITS.evidence
) -> Tracks:
    """Give ids to tracks with enough evidence of a person, those with most evidence first."""
    ripe = (tracks.evidence >= evidence) & (tracks.support > LIMITS.support) & (tracks.id < 0)
    ripe &= tracks.measured_s - tracks.born_s >= cfg.presence_s - 1e-6
    if len(rig) > 2 and ripe.any():
        others = _count_cameras(rig, trunk_middle(tracks.points)) - 1
        ripe &= tracks.evidence >= LIMITS.view_share * others * tracks.age
    strength = tracks.evidence / unit_m(rig, tracks.points)  # before one camera who is larger in its picture
    order = np.lexsort((tracks.serial, -strength))
    tracks = replace(tracks, id=tracks.id.copy())
    for n in order[ripe[order]].tolist():
        person = _find_returned(rig, tracks, n, cfg)
        if person is None:
            tracks.id[n] = tracks.next_id
            tracks = replace(tracks, next_id=tracks.next_id + 1)
        else:
            tracks.id[tracks.id == person] = -1  # waits where the person is no longer
            tracks.id[n] = person
            tracks = replace(tracks, lost=tracks.lost[tracks.lost[:, 0] != person])
    return tracks


def _find_returned(rig: Rig, tracks: Tracks, n: int, cfg: MatchConfig) -> int | None:
    """Id of the nearest person who is lost, or not measured since track n was born, within reach of its
    birthplace in space and time."""
    waiting = np.flatnonzero((tracks.id >= 0) & (tracks.measured_s <= tracks.born_s[n]))
    lost = np.concatenate([tracks.lost, _last_places(tracks, waiting)])
    away_s = np.maximum(tracks.born_s[n] - lost[:, 4], 0)
    distance_m = np.linalg.norm(lost[:, 1:4] - tracks.birthplace[n], axis=1)
    distance_m *= unit_m(rig, tracks.points[[n]])[0]
    reach_m = np.minimum(cfg.reach_m + cfg.speed_m_s * away_s, cfg.max_reach_m)
    near = (away_s <= cfg.lost_s) & (distance_m <= reach_m)
    return int(lost[np.where(near, distance_m, np.inf).argmin(), 0]) if near.any() else None


def _last_places(tracks: Tracks, index: Ints) -> Array:
    """(N, 5) rows as of ``Tracks.lost``."""
    return np.column_stack([tracks.id[index], tracks.place[index], tracks.measured_s[index]])


def _count_cameras(rig: Rig, places: Array) -> Ints:
    """(N,) number of cameras in whose picture places (N, 3) lie; any may lie in one of unknown size."""
    px = rig.project(places, distorted=True)
    with np.errstate(invalid="ignore"):
        inside = ((px >= -0.5) & (px < rig.size[:, None] - 0.5)).all(-1)
    return np.asarray((inside | (rig.size == 0).any(1)[:, None]).sum(0))


def count_at_end(rig: Rig, tracks: Tracks, frames: int, now: float, cfg: MatchConfig) -> Tracks:
    """Confirm tracks at the end of a recording: in a short one, half of it is enough presence."""
    short = cfg.model_copy(update={"presence_s": min(cfg.presence_s, now / 2)})
    tracks = _confirm_tracks(rig, tracks, now, short, min(LIMITS.evidence, (frames - 1) // 2))
    return _count_unconfirmed(tracks, tracks.id < 0, cfg)


def _end_tracks(rig: Rig, tracks: Tracks, now: float, cfg: MatchConfig) -> Tracks:
    """End tracks that were not measured for too long; of two on one body the unconfirmed or younger one."""
    unseen_s, confirmed = now - tracks.measured_s, tracks.id >= 0
    patience_s = np.clip(tracks.measured_s - tracks.born_s, LIMITS.young_s, max(LIMITS.young_s, cfg.away_s))
    young = ~confirmed & ((unseen_s > patience_s) | (tracks.support < LIMITS.young_support))
    gone = (unseen_s > cfg.away_s + 1e-6) | (tracks.support < LIMITS.lost_support) | young
    tracks = _count_unconfirmed(tracks, gone & ~confirmed, cfg)
    apart = np.linalg.norm(tracks.points[:, None] - tracks.points, axis=-1)
    same_m = LIMITS.same_m * (1 if len(rig) > 1 else LIMITS.one_picture)
    same = finite_median(apart) * unit_m(rig, tracks.points)[:, None] < same_m
    same &= np.isfinite(apart).sum(-1) >= LIMITS.shared
    for a, b in np.argwhere(np.triu(same, 1)):
        if not gone[a] and not gone[b]:
            gone[b if confirmed[a] or not confirmed[b] else a] = True
    kept = np.flatnonzero(~gone)
    if len(kept) > MAX_TRACKS:
        strongest = np.lexsort((tracks.serial[kept], -tracks.evidence[kept], ~confirmed[kept]))
        kept = np.sort(kept[strongest[:MAX_TRACKS]])
    ends = np.flatnonzero(gone & confirmed)
    lost = np.concatenate([tracks.lost, _last_places(tracks, ends)])[-MAX_TRACKS:]
    # Whoever returns must be confirmed within this time.
    lost = lost[now - lost[:, 4] <= cfg.lost_s + cfg.presence_s + LIMITS.young_s]
    return replace(tracks.take(kept), lost=lost)


def _count_unconfirmed(tracks: Tracks, ended: Bools, cfg: MatchConfig) -> Tracks:
    """Count tracks that ended (N,) unconfirmed in ``brief`` and ``doubtful``."""
    there_s = np.where(ended & (tracks.evidence >= LIMITS.evidence), tracks.measured_s - tracks.born_s, -1.0)
    long = there_s >= cfg.presence_s - 1e-6
    brief = ~long & (there_s >= cfg.presence_s / 2)
    return replace(tracks, brief=tracks.brief + int(brief.sum()), doubtful=tracks.doubtful + int(long.sum()))
