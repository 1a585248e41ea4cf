"""People over time: tracks first, then the detections that agree with each (tracking by prediction).

A track predicts its person's keypoints in the next frame; detections are assigned to tracks in every view
(``matching``) and triangulated; those that no track has propose new people (``births``). Nothing looks at the
future, and the whole state is a few kB a person.

N tracks, M detections of all views in a frame, K keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.geometry.association import MatchConfig
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
from models.geometry.tracks import LIMITS, MAX_TRACKS, TRACK_ARRAYS, Tracks, finite_median, trunk_middle
from models.geometry.triangulation import rays
from pipeline.array_types import Array, Ints
from pipeline.cameras import Rig


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
    """(V, T, D) 1 where left and right of the detection are exchanged, −1 where they clearly are not, else 0:
    relative to its track"""
    fragment: Bools
    """(V, T, D) another detection of the view shows more of the same person"""
    mirror_spans: Array
    """(S, 3) serial of a track that was a mirror image, after the first and up to the second of these times,
    seconds"""
    lost: Ints
    """(L,) ids of people whose track has ended and who may return"""
    named: Mapping[int, int]
    """Serial of each confirmed track → the person's id"""


def track_people(
    rig: Rig, xy_px: Array, confidence: Array, time_s: Array, tracks: Tracks, cfg: MatchConfig
) -> tuple[Ownership, Tracks]:
    """Track everybody through a batch of frames.

    xy_px: (V, T, D, K, 2) undistorted pixels, NaN where missing. confidence: (V, T, D, K), 0 where missing.
    time_s: (T,). Uses nothing but these frames and the state that earlier ones left.
    """
    views, frames, count = confidence.shape[:3]
    known = confidence > 0
    ray = np.where(known[..., None], rays(rig, np.where(known[..., None], xy_px, 0.0)), 0.0)
    usable = known.sum(-1) >= LIMITS.fragment_shared
    serial = np.full((views, frames, count), -1, np.int64)
    mirrored, fragment = np.zeros_like(serial), np.zeros(serial.shape, bool)
    alive, named, spans = [], dict[int, int](), [np.zeros((0, 3))]
    for t, now in enumerate(time_s.tolist()):
        v, d = np.nonzero(usable[:, t])
        detections = FrameDetections(v, d, xy_px[v, t, d], confidence[v, t, d], ray[v, t, d], rig.centres[v])
        match, tracks, turned = _track_frame(rig, detections, now, tracks, cfg)
        owned = match.owner >= 0
        v, d = v[owned], d[owned]
        serial[v, t, d] = tracks.serial[match.owner[owned]]
        mirrored[v, t, d], fragment[v, t, d] = match.mirrored[owned], match.fragment[owned]
        named |= tracks.named
        spans.append(turned)
        tracks = _end_tracks(rig, tracks, now, cfg)
        alive.append(tracks.serial)
    serials = np.unique(np.concatenate([*alive, serial[serial >= 0]]))
    lives = np.array([np.isin(serials, each) for each in alive]).reshape(frames, len(serials))
    lost = tracks.lost[:, 0].astype(np.int64)
    return Ownership(serials, lives, serial, mirrored, fragment, np.concatenate(spans), lost, named), tracks


def follow_longest(rig: Rig, xy_px: Array, confidence: Array, time_s: Array, cfg: MatchConfig) -> Ints:
    """(V, T) index of the detection of the person who is in most pictures of some frames; −1 for none.

    Arguments as of ``track_people``.
    """
    owned, tracks = track_people(rig, xy_px, confidence, time_s - time_s[0], Tracks.none(), cfg)
    last = float(time_s[-1] - time_s[0])
    named = {**owned.named, **count_at_end(rig, tracks, len(time_s), last, cfg).named}
    # With wrong cameras no track may be confirmed: each is then a person of its own, below 0.
    who = np.array([named.get(serial, -1 - serial) for serial in owned.tracks.tolist()], np.int64)
    best = np.full(owned.serial.shape[:2], -1)
    for person in sorted({*who.tolist()}, key=lambda who: (who < 0, abs(who))):
        mine = np.isin(owned.serial, owned.tracks[who == person]) & ~owned.fragment
        if mine.sum() > (best >= 0).sum():
            best = np.where(mine.any(2), mine.argmax(2), -1)
    return best


def _track_frame(
    rig: Rig, detections: FrameDetections, now: float, tracks: Tracks, cfg: MatchConfig
) -> tuple[TrackMatch, Tracks, Array]:
    """Advance the tracks by a frame; with the detections of each, and rows of ``Ownership.mirror_spans``."""
    several = len(rig) > 1
    near_m = LIMITS.near_m * (1 if several else LIMITS.one_picture)
    clutter = match_clutter(tracks.clutter, detections)
    holder = clutter_holder(tracks.clutter, clutter)
    match = match_tracks(rig, detections, tracks, holder, now, cfg)
    tracks = _update_tracks(rig, match, tracks, now, cfg)
    tracks, spans = _turn_mirrored(match, tracks, now)
    owner, mirrored = match.owner.copy(), match.mirrored.copy()
    unmeasured = tracks.measured_s < now
    free = owner < 0
    free[~free] = several & unmeasured[owner[~free]]
    born: list[Array] = []
    for body, members in propose_people(rig, match.detections, free, cfg):
        distance_m = finite_median(np.linalg.norm(tracks.points - body, axis=-1)) * unit_m(rig, body[None])[0]
        # A track is not moved by clutter: what is born of it must be confirmed first.
        movable = several and np.isnan(holder[members]).all()
        misled = (
            _find_misled(rig, match.detections, tracks, owner, body, members, distance_m, cfg)
            if movable
            else None
        )
        if misled is not None:
            n, kept = misled
            owner[owner == n] = -1
            owner[members] = owner[kept] = n
            tracks = _move_track(tracks, n, body, len(members), now)
            continue
        if (distance_m[~unmeasured] < near_m).any():
            continue
        holders = {*owner[members].tolist()} - {-1}
        back = _find_unmeasured(tracks, distance_m, holders, now, cfg) if movable else None
        if back is not None:
            tracks = _move_track(tracks, back, body, len(members), now)
            owner[owner == back] = -1
            owner[members] = back
            unmeasured[back] = False
        elif not holders and not (distance_m < near_m).any():
            owner[members] = len(unmeasured) + len(born)
            mirrored[members] = np.where(mirrored[members] > 0, 1, -1)  # as in the body that they make
            born.append(body)
    tracks = _add_tracks(tracks, born, now)
    if several:
        serial = np.append(tracks.serial, -1)[owner]
        tracks = replace(tracks, clutter=update_clutter(tracks.clutter, clutter, detections, serial, now))
    return replace(match, owner=owner, mirrored=mirrored), _confirm_tracks(rig, tracks, now, cfg), spans


def _update_tracks(rig: Rig, match: TrackMatch, tracks: Tracks, now: float, cfg: MatchConfig) -> Tracks:
    """Update the tracks by the detections of a frame: of two views, of one, or of none."""
    detections, owner, measured = match.detections, match.owner, match.measured
    count = len(tracks.serial)
    views = np.zeros((count, len(rig)), bool)
    owned = owner >= 0
    views[owner[owned], detections.view[owned]] = True
    views_seen = views.sum(1)
    fresh = np.isfinite(measured[..., 0])
    needed = min(2, len(rig))
    good = (views_seen >= needed) & (fresh.sum(1) >= LIMITS.shared)
    glimpsed = ~good & (views_seen > 0) & (now - tracks.measured_s <= cfg.single_view_s)
    match.owner[owned] = np.where((good | glimpsed)[owner[owned]], owner[owned], -1)

    # Velocity, of the keypoints that the frame before had measured, too.
    elapsed = np.maximum(now - tracks.time_s, 1e-3)
    before = fresh & (tracks.point_s >= tracks.time_s[:, None] - 1e-9) & np.isfinite(tracks.points[..., 0])
    move = np.where(before[..., None], measured - tracks.points, np.nan)
    speed = finite_median(np.swapaxes(move, 1, 2)) / elapsed[:, None]
    change = speed - tracks.velocity
    if len(rig) > 1:
        most = LIMITS.acceleration_m_s2 * elapsed[:, None]
        change *= np.minimum(1, most / np.maximum(np.linalg.norm(change, axis=1, keepdims=True), 1e-9))
    steady = good & (before.sum(1) >= 3)
    velocity = np.where(steady[:, None], tracks.velocity + change / 2, tracks.velocity)
    velocity = velocity * np.where(good, 1.0, np.where(glimpsed, 0.9, 0.8))[:, None]

    points = np.where(good[:, None, None], match.body, tracks.points)
    points = np.where((good[:, None] & fresh)[..., None], measured, points)
    for n in np.flatnonzero(glimpsed):
        points[n] = _move_onto_rays(match.body[n], detections, np.flatnonzero(owner == n))
    point_s = np.where(good[:, None] & fresh, now, tracks.point_s)
    points[good[:, None] & (now - point_s > LIMITS.point_s)] = np.nan

    return replace(
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


def _turn_mirrored(match: TrackMatch, tracks: Tracks, now: float) -> tuple[Tracks, Array]:
    """Exchange left and right of tracks that are mirror images; with rows as of ``Ownership.mirror_spans``.

    Detector errors differ from view to view, so that a track that most detections contradict is itself wrong,
    as from birth in a bad frame. Cumulative sum test: Page, Continuous inspection schemes, 1954; the change
    was when the sum was 0 last.
    """
    owned, count = match.owner >= 0, len(tracks.serial)
    gain = np.bincount(match.owner[owned], match.mirror_gain[owned], minlength=count)
    total = np.maximum(tracks.mirror_gain + gain, 0)
    wrong = total > LIMITS.mirror_gain
    spans = np.column_stack([tracks.serial[wrong], tracks.unmirrored_s[wrong], np.full(wrong.sum(), now)])
    if wrong.any():
        points, point_s = tracks.points.copy(), tracks.point_s.copy()
        points[wrong], point_s[wrong] = points[wrong][:, MIRROR], point_s[wrong][:, MIRROR]
        tracks = replace(tracks, points=points, point_s=point_s)
    total[wrong] = 0
    unmirrored_s = np.where(total > 0, tracks.unmirrored_s, now)
    return replace(tracks, mirror_gain=total, unmirrored_s=unmirrored_s), spans


def _find_misled(
    rig: Rig,
    detections: FrameDetections,
    tracks: Tracks,
    owner: Ints,
    body: Array,
    members: Ints,
    apart: Array,
    cfg: MatchConfig,
) -> tuple[int, Ints] | None:
    """The track that stands beside its person, who is this body (K, 3) of other detections, and those of its
    detections that agree better with the body: then more views do than with the track."""
    new, shared = body_agreement(rig, body[None], detections, cfg.agreement_m)
    own, _ = body_agreement(rig, tracks.points, detections, cfg.agreement_m)
    for n in np.flatnonzero(apart <= cfg.reach_m).tolist():
        mine = np.flatnonzero(owner == n)
        better = (new[0, mine] > own[n, mine]) & (shared[0, mine] >= LIMITS.shared)
        better &= ~np.isin(detections.view[mine], detections.view[members])
        if better.any() and len(members) + better.sum() > len(mine):
            return n, mine[better]
    return None


def _find_unmeasured(
    tracks: Tracks, apart: Array, holders: set[int], now: float, cfg: MatchConfig
) -> int | None:
    """The track, not measured in this frame, whose body it is that is ``apart`` (N,) metres from each.

    holders: tracks that have one of its detections, from which alone they did not know how far they are.
    """
    unseen_s = now - tracks.measured_s
    reach = np.minimum(LIMITS.jump_m + cfg.speed_m_s * unseen_s, cfg.max_reach_m)
    near = [n for n in np.flatnonzero((unseen_s > 0) & (apart <= reach)).tolist() if holders <= {n}]
    return min(near, key=lambda n: float(apart[n]), default=None)


def _move_track(tracks: Tracks, n: int, points: Array, views: int, now: float) -> Tracks:
    """The tracks, of which one is at a body (K, 3) that several views show."""
    known = np.isfinite(points[:, 0])
    new = {name: getattr(tracks, name).copy() for name in TRACK_ARRAYS}
    new["points"][n] = points
    new["point_s"][n] = np.where(known, now, -np.inf)
    new["velocity"][n] = 0
    new["time_s"][n] = new["measured_s"][n] = now
    new["place"][n] = trunk_middle(points[None])[0]
    new["evidence"][n] += views - 1
    return replace(tracks, **new)


def _move_onto_rays(body: Array, detections: FrameDetections, members: Ints) -> Array:
    """A body (K, 3), moved as a whole onto the rays of one view's detections."""
    for m in members:
        away = body - detections.centre[m]
        on_ray = detections.centre[m] + (away * detections.ray[m]).sum(-1)[:, None] * detections.ray[m]
        known = (detections.confidence[m] > 0) & np.isfinite(body[:, 0])
        if known.sum() >= 3:
            body = body + np.median((on_ray - body)[known], 0)
    return body


def _add_tracks(tracks: Tracks, born: list[Array], now: float) -> Tracks:
    """The tracks, and after them one for each body (K, 3)."""
    if not born:
        return tracks
    count = len(born)
    points = np.stack(born)
    known = np.isfinite(points[..., 0])
    new = Tracks(
        serial=tracks.next_serial + np.arange(count),
        id=np.full(count, -1),
        points=points,
        point_s=np.where(known, now, -np.inf),
        velocity=np.zeros((count, 3)),
        time_s=np.full(count, now),
        measured_s=np.full(count, now),
        born_s=np.full(count, now),
        birthplace=trunk_middle(points),
        place=trunk_middle(points),
        support=np.full(count, 0.5),
        evidence=np.zeros(count),
        age=np.zeros(count),
        mirror_gain=np.zeros(count),
        unmirrored_s=np.full(count, -np.inf),
    )
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(tracks, name), getattr(new, name)]) for name in TRACK_ARRAYS
    }
    return replace(tracks, **joined, next_serial=tracks.next_serial + count)


def _confirm_tracks(
    rig: Rig, tracks: Tracks, now: float, cfg: MatchConfig, evidence: int = LIMITS.evidence
) -> Tracks:
    """Give ids to tracks that have proved to be people, those with most evidence first."""
    ripe = (tracks.evidence >= evidence) & (tracks.support > LIMITS.support) & (tracks.id < 0)
    ripe &= tracks.measured_s - tracks.born_s >= cfg.presence_s - 1e-6
    if len(rig) > 2 and ripe.any():
        others = _count_cameras(rig, trunk_middle(tracks.points)) - 1
        ripe &= tracks.evidence >= LIMITS.view_share * others * tracks.age
    order = np.flatnonzero(ripe)
    strength = tracks.evidence / unit_m(rig, tracks.points)  # before one camera who is larger in its picture
    order = order[np.lexsort((tracks.serial[order], -strength[order]))]
    tracks = replace(tracks, id=tracks.id.copy())
    for n in order.tolist():
        person = _find_returned(rig, tracks, n, cfg)
        if person is None:
            tracks.id[n] = tracks.next_id
            tracks = replace(tracks, next_id=tracks.next_id + 1)
        else:
            tracks.id[tracks.id == person] = -1  # a track that waits where the person is no more
            tracks.id[n] = person
            tracks = replace(tracks, lost=tracks.lost[tracks.lost[:, 0] != person])
    return tracks


def _find_returned(rig: Rig, tracks: Tracks, n: int, cfg: MatchConfig) -> int | None:
    """Id of the person who is track n again: lost, or not measured since, in reach of its birth and in time;
    of several the nearest."""
    waiting = np.flatnonzero((tracks.id >= 0) & (tracks.measured_s <= tracks.born_s[n]))
    lost = np.concatenate([tracks.lost, _last_places(tracks, waiting)])
    away_s = np.maximum(tracks.born_s[n] - lost[:, 4], 0)
    distance = np.linalg.norm(lost[:, 1:4] - tracks.birthplace[n], axis=1)
    distance *= unit_m(rig, tracks.points[[n]])[0]
    reach = np.minimum(cfg.reach_m + cfg.speed_m_s * away_s, cfg.max_reach_m)
    near = (away_s <= cfg.lost_s) & (distance <= reach)
    return int(lost[np.where(near, distance, np.inf).argmin(), 0]) if near.any() else None


def _last_places(tracks: Tracks, index: Ints) -> Array:
    """(N, 5) rows as of ``Tracks.lost``."""
    return np.column_stack([tracks.id[index], tracks.place[index], tracks.measured_s[index]])


def _count_cameras(rig: Rig, places: Array) -> Ints:
    """(N,) cameras in whose picture places (N, 3) lie."""
    px = rig.project(places, distorted=True)
    with np.errstate(invalid="ignore"):
        inside = np.asarray(((px >= -0.5) & (px < rig.size[:, None] - 0.5)).all(-1))
    unknown = np.asarray((rig.size == 0).any(1))
    return np.asarray((inside | unknown[:, None]).sum(0))


def count_at_end(rig: Rig, tracks: Tracks, frames: int, now: float, cfg: MatchConfig) -> Tracks:
    """Tracks at the end of a recording: if it is short, half of it is as good as ``cfg.presence_s``."""
    short = cfg.model_copy(update={"presence_s": min(cfg.presence_s, now / 2)})
    tracks = _confirm_tracks(rig, tracks, now, short, min(LIMITS.evidence, (frames - 1) // 2))
    return _count_unconfirmed(tracks, tracks.id < 0, cfg)


def _end_tracks(rig: Rig, tracks: Tracks, now: float, cfg: MatchConfig) -> Tracks:
    """The tracks that live on; of two on one body the one with an id, or the older one."""
    unseen, counts = now - tracks.measured_s, tracks.id >= 0
    patience_s = np.clip(tracks.measured_s - tracks.born_s, LIMITS.young_s, max(LIMITS.young_s, cfg.away_s))
    young = ~counts & ((unseen > patience_s) | (tracks.support < LIMITS.young_support))
    gone = (unseen > cfg.away_s + 1e-6) | (tracks.support < LIMITS.lost_support) | young
    tracks = _count_unconfirmed(tracks, gone & ~counts, cfg)
    apart = np.linalg.norm(tracks.points[:, None] - tracks.points, axis=-1)
    same_m = LIMITS.same_m * (1 if len(rig) > 1 else LIMITS.one_picture)
    same = finite_median(apart) * unit_m(rig, tracks.points)[:, None] < same_m
    same &= np.isfinite(apart).sum(-1) >= LIMITS.shared
    for a, b in np.argwhere(np.triu(same, 1)):
        if not gone[a] and not gone[b]:
            gone[b if counts[a] or not counts[b] else a] = True
    kept = np.flatnonzero(~gone)
    if len(kept) > MAX_TRACKS:
        strongest = np.lexsort((tracks.serial[kept], -tracks.evidence[kept], ~counts[kept]))
        kept = np.sort(kept[strongest[:MAX_TRACKS]])
    ends = np.flatnonzero(gone & counts)
    lost = (
        np.concatenate([tracks.lost, _last_places(tracks, ends)])[-MAX_TRACKS:] if len(ends) else tracks.lost
    )
    # Whoever returns must be there for some time before that is sure.
    lost = lost[now - lost[:, 4] <= cfg.lost_s + cfg.presence_s + LIMITS.young_s]
    return replace(tracks.take(kept), lost=lost)


def _count_unconfirmed(tracks: Tracks, which: Bools, cfg: MatchConfig) -> Tracks:
    """The tracks, with those that never counted (N,) among ``brief`` and ``doubtful``."""
    there_s = np.where(which & (tracks.evidence >= LIMITS.evidence), tracks.measured_s - tracks.born_s, -1.0)
    long = there_s >= cfg.presence_s - 1e-6
    brief = ~long & (there_s >= cfg.presence_s / 2)
    return replace(tracks, brief=tracks.brief + int(brief.sum()), doubtful=tracks.doubtful + int(long.sum()))
