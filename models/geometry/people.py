"""People over time: every person tracked first, detections given to the tracks they agree with.

A track predicts its person's keypoints in the next frame. In every view an assignment gives detections to
tracks (Kuhn–Munkres, over all people of the view at once) by how close the rays of their keypoints pass to
the predicted ones, in metres: neither the size in the picture nor the number of views matters. What is
measured is triangulated; detections that nobody claims propose new people where two views agree on a body of
human proportions. Nothing looks at the future, and the whole state is a few kB a person.

With a single camera there are no rays to meet: keypoints are compared in its picture, at a scale that makes
every person as large as a grown one.

N tracks, M detections of all views in a frame, K keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from models.geometry.association import MatchConfig, propose, ray_agreement
from models.geometry.tracking import EXTENT_M
from models.geometry.tracks import LIMITS, MAX_TRACKS, TRACK_ARRAYS, Tracks, finite_median, trunk_middle
from models.geometry.triangulation import rays, triangulate
from pipeline.array_types import Array, Ints
from pipeline.cameras import Rig
from pipeline.skeleton import BODY_25

Bools = NDArray[np.bool_]

_EXCHANGED: Final = np.array(BODY_25.flips)
_BONES: Final = tuple(
    (BODY_25.index(a), BODY_25.index(b), length_m)
    for a, b, length_m in (
        ("Neck", "MidHip", 0.52), ("RShoulder", "LShoulder", 0.36), ("RHip", "LHip", 0.22),
        ("RShoulder", "RElbow", 0.29), ("LShoulder", "LElbow", 0.29), ("RElbow", "RWrist", 0.25),
        ("LElbow", "LWrist", 0.25), ("RHip", "RKnee", 0.41), ("LHip", "LKnee", 0.41),
        ("RKnee", "RAnkle", 0.41), ("LKnee", "LAnkle", 0.41), ("Neck", "Nose", 0.22),
    )
)  # fmt: skip
"""Bones of a grown person: ends, and length in metres."""


@dataclass(frozen=True)
class Ownership:
    """Tracks that the detections of some frames belong to. Axes: V views, T frames, D detections."""

    tracks: Ints
    """(N,) numbers of all tracks that were there in one of the frames, rising"""
    alive: Bools
    """(T, N) the track lived on after the frame, seen or not"""
    serial: Ints
    """(V, T, D) number of the track, −1 for none."""
    exchanged: Bools
    """(V, T, D) left and right of the detection are to be exchanged."""
    fragment: Bools
    """(V, T, D) another detection of the view shows more of the same person."""
    lost: Ints
    """(L,) ids of people who have gone and may return"""
    named: Mapping[int, int]
    """Number of each track that counts → the person's id"""


@dataclass(frozen=True)
class _Seen:
    """Detections of all views in one frame."""

    view: Ints
    """(M,)"""
    index: Ints
    """(M,) number of the detection in its view."""
    xy_px: Array
    """(M, K, 2)"""
    confidence: Array
    """(M, K) 0 where missing"""
    ray: Array
    """(M, K, 3) unit direction, world; 0 where missing"""
    centre: Array
    """(M, 3) of the camera, metres, world"""

    @property
    def scale(self) -> Array:
        """(M,) metres a pixel, if the person is a grown one."""
        return _pixel_m(np.where((self.confidence > 0)[..., None], self.xy_px, np.nan))

    def exchange(self, which: Bools) -> _Seen:
        """The detections with left and right exchanged where ``which`` (M,)."""

        def other(x: Array) -> Array:
            return np.where(which.reshape(-1, *[1] * (x.ndim - 1)), x[:, _EXCHANGED], x)

        return replace(self, xy_px=other(self.xy_px), confidence=other(self.confidence), ray=other(self.ray))


@dataclass(frozen=True)
class _Matched:
    """Result of giving the detections of a frame to tracks."""

    seen: _Seen
    """With left and right as they are."""
    owner: Ints
    """(M,) number among the tracks, −1 for none"""
    exchanged: Bools
    fragment: Bools
    """(M,) each"""
    points: Array
    """(N, K, 3) what was measured, NaN elsewhere"""
    predicted: Array
    """(N, K, 3)"""


def track_people(
    rig: Rig, xy_px: Array, confidence: Array, time_s: Array, tracks: Tracks, cfg: MatchConfig
) -> tuple[Ownership, Tracks]:
    """Follow everybody through a batch of frames.

    xy_px: (V, T, D, K, 2) undistorted pixels, NaN where missing. confidence: (V, T, D, K), 0 where missing.
    time_s: (T,). Uses nothing but these frames and the state that earlier ones left.
    """
    views, frames, count = confidence.shape[:3]
    known = confidence > 0
    ray = np.where(known[..., None], rays(rig, np.where(known[..., None], xy_px, 0.0)), 0.0)
    there = known.sum(-1) >= LIMITS.fragment_shared
    serial = np.full((views, frames, count), -1, np.int64)
    exchanged, fragment = np.zeros((2, views, frames, count), bool)
    alive, named = [], dict[int, int]()
    for t, now in enumerate(time_s.tolist()):
        v, d = np.nonzero(there[:, t])
        seen = _Seen(v, d, xy_px[v, t, d], confidence[v, t, d], ray[v, t, d], rig.centres[v])
        matched, tracks = _step(rig, seen, now, tracks, cfg)
        owned = matched.owner >= 0
        v, d = v[owned], d[owned]
        serial[v, t, d] = tracks.serial[matched.owner[owned]]
        exchanged[v, t, d], fragment[v, t, d] = matched.exchanged[owned], matched.fragment[owned]
        named |= tracks.named
        tracks = _without_ended(rig, tracks, now, cfg)
        alive.append(tracks.serial)
    all_ = np.unique(np.concatenate([*alive, serial[serial >= 0]]))
    there = np.array([np.isin(all_, serials) for serials in alive]).reshape(frames, len(all_))
    lost = tracks.lost[:, 0].astype(np.int64)
    return Ownership(all_, there, serial, exchanged, fragment, lost, named), tracks


def follow_longest(rig: Rig, xy_px: Array, confidence: Array, time_s: Array, cfg: MatchConfig) -> Ints:
    """(V, T) index of the detection of the person who is in most pictures of some frames; −1 for none.

    Arguments as of ``track_people``.
    """
    owned, tracks = track_people(rig, xy_px, confidence, time_s - time_s[0], Tracks.none(), cfg)
    last = float(time_s[-1] - time_s[0])
    named = {**owned.named, **count_at_end(rig, tracks, len(time_s), last, cfg).named}
    # Where cameras stand wrong nobody may count.
    who = np.array([named.get(serial, -1 - serial) for serial in owned.tracks.tolist()], np.int64)
    best = np.full(owned.serial.shape[:2], -1)
    for person in sorted({*who.tolist()}, key=lambda who: (who < 0, abs(who))):
        mine = np.isin(owned.serial, owned.tracks[who == person]) & ~owned.fragment
        if mine.sum() > (best >= 0).sum():
            best = np.where(mine.any(2), mine.argmax(2), -1)
    return best


def _step(rig: Rig, seen: _Seen, now: float, tracks: Tracks, cfg: MatchConfig) -> tuple[_Matched, Tracks]:
    """One frame: who is who, where everybody is, who is new."""
    matched = _match(rig, seen, tracks, now, cfg)
    tracks = _moved(rig, matched, tracks, now, cfg)
    owner = matched.owner.copy()
    waiting = tracks.measured_s < now
    several = len(rig) > 1
    free = owner < 0
    free[~free] = several & waiting[owner[~free]]
    born: list[Array] = []
    for points, members in _births(rig, matched.seen, free, cfg):
        apart = finite_median(np.linalg.norm(tracks.points - points, axis=-1))
        apart *= _unit_m(rig, points[None])[0]
        whose = _misled(rig, matched.seen, tracks, owner, points, members, apart, cfg) if several else None
        if whose is not None:
            n, kept = whose
            owner[owner == n] = -1
            owner[members] = owner[kept] = n
            tracks = _measured_again(tracks, n, points, len(members), now)
            continue
        if (apart[~waiting] < LIMITS.near_m).any():
            continue
        back = _found_again(tracks, apart, {*owner[members].tolist()} - {-1}, now, cfg) if several else None
        if back is not None:
            tracks = _measured_again(tracks, back, points, len(members), now)
            waiting[back] = False
        elif (owner[members] >= 0).any() or (apart < LIMITS.near_m).any():
            continue
        else:
            born.append(points)
        owner[members] = len(waiting) + len(born) - 1 if back is None else back
    tracks = _with_born(tracks, born, now)
    return replace(matched, owner=owner), _counted(rig, tracks, now, cfg)


def _match(rig: Rig, seen: _Seen, tracks: Tracks, now: float, cfg: MatchConfig) -> _Matched:
    """Give detections to tracks, twice: by the predicted bodies, and by the measured ones."""
    count, found = len(tracks.serial), len(seen.view)
    ahead = (now - tracks.time_s)[:, None, None]
    points = predicted = tracks.points + tracks.velocity[:, None] * ahead
    owner, exchanged, fragment = np.full(found, -1), np.zeros(found, bool), np.zeros(found, bool)
    nothing = np.full((count, len(BODY_25), 3), np.nan)
    if not count or not found:
        return _Matched(seen, owner, exchanged, fragment, nothing, predicted)
    measured = nothing
    for sigma in (LIMITS.first_pass * cfg.agreement_m, cfg.agreement_m):
        score, shared = _agreement(rig, points, seen, sigma)
        if points is predicted:
            exchanged = _exchanged(rig, points, seen, score, shared, sigma)
            if exchanged.any():
                seen = seen.exchange(exchanged)
                score, shared = _agreement(rig, points, seen, sigma)
        before = owner, fragment
        owner = _assigned(score, shared, seen.view)
        fragment = _fragments(owner, score, shared, seen)
        if points is not predicted and all(map(np.array_equal, before, (owner, fragment))):
            break  # the bodies are those
        measured = _measured(rig, seen, owner, fragment, count)
        _undo_jumps(rig, measured, predicted, owner, score, now - tracks.measured_s, cfg)
        shift = finite_median(np.swapaxes(measured - points, 1, 2))
        enough = np.isfinite(measured[..., 0]).sum(1) >= 3
        points = np.where(
            np.isfinite(measured), measured, points + np.where(enough[:, None], shift, 0)[:, None]
        )
    # A view that does not agree with what all of them say is not this person's.
    score, _ = _agreement(rig, points, seen, cfg.agreement_m)
    wrong = (owner >= 0) & (score[owner, np.arange(found)] < LIMITS.agreement)
    if wrong.any():
        owner = np.where(wrong, -1, owner)
        measured = _measured(rig, seen, owner, fragment, count)
        _undo_jumps(rig, measured, predicted, owner, score, now - tracks.measured_s, cfg)
    return _Matched(seen, owner, exchanged, fragment & (owner >= 0), measured, points)


def _undo_jumps(
    rig: Rig, measured: Array, predicted: Array, owner: Ints, score: Array, unseen_s: Array, cfg: MatchConfig
) -> None:
    """Leave a track, of which two views that meet by chance have made a body (N, K, 3) out of its reach, the
    one detection that agrees best with it (N, M), and no body."""
    if len(rig) > 1:
        moved = np.linalg.norm(finite_median(np.swapaxes(measured - predicted, 1, 2)), axis=1)
        for n in np.flatnonzero(moved > LIMITS.jump_m + cfg.speed_m_s * unseen_s):
            mine = np.flatnonzero(owner == n)
            owner[mine[score[n, mine] < score[n, mine].max()]] = -1
            measured[n] = np.nan


def _agreement(rig: Rig, points: Array, seen: _Seen, sigma: float) -> tuple[Array, Ints]:
    """Share (N, M) of each detection's confidence that agrees with each body (N, K, 3), and how many
    keypoints they share (N, M)."""
    if len(rig) > 1:
        score, _, shared = ray_agreement(points, seen.centre, seen.ray, seen.confidence, sigma)
        return score, shared
    known = np.isfinite(points[..., 0])[:, None] & (seen.confidence > 0)
    away = points[:, None, :, :2] - np.where(known[..., None], seen.xy_px, 0)
    miss2 = (away**2).sum(-1) * (seen.scale**2)[:, None]
    weight = np.where(known, seen.confidence, 0)
    agrees = np.where(known, weight / (1 + np.where(known, miss2, 0) / sigma**2), 0)
    return agrees.sum(-1) / np.maximum(weight.sum(-1), 1e-9), known.sum(-1)


def _exchanged(rig: Rig, points: Array, seen: _Seen, score: Array, shared: Ints, sigma: float) -> Bools:
    """(M,) whether left and right of a detection fit clearly better the other way round."""
    other, common = _agreement(rig, points[:, _EXCHANGED], seen, sigma)
    best = np.where(shared >= LIMITS.shared, score, 0).max(0)
    turned = np.where(common >= LIMITS.exchange_shared, other, 0).max(0)
    return np.asarray((turned > best + LIMITS.exchange_gain) & (turned > 0.5))


def _assigned(score: Array, shared: Ints, view: Ints) -> Ints:
    """(M,) the track of each detection, at most one detection a track and view; −1 for none."""
    good = (shared >= LIMITS.shared) & (score >= LIMITS.agreement)
    gain = np.where(good, score * np.sqrt(shared / len(BODY_25)), 0)  # by how much of the body it shows
    owner = np.full(len(view), -1)
    for v in {*view[good.any(0)].tolist()}:
        here = np.flatnonzero(view == v)
        for n, m in zip(*linear_sum_assignment(-gain[:, here]), strict=True):
            if gain[n, here[m]] > 0:
                owner[here[m]] = n
    return owner


def _fragments(owner: Ints, score: Array, shared: Ints, seen: _Seen) -> Bools:
    """(M,) detections that are another part of somebody whom the view shows already; ``owner`` gets them."""
    fragment = np.zeros(len(owner), bool)
    likely = np.where(shared >= LIMITS.fragment_shared, score, 0)
    for m in np.flatnonzero((owner < 0) & (likely.max(0) >= LIMITS.fragment_agreement)):
        n = int(likely[:, m].argmax())
        mates = np.flatnonzero((owner == n) & (seen.view == seen.view[m]))
        if len(mates):
            both = (seen.confidence[mates[0]] > 0) & (seen.confidence[m] > 0)
            apart = np.linalg.norm(seen.xy_px[mates[0]][both] - seen.xy_px[m][both], axis=1)
            if both.sum() <= 1 or (apart < LIMITS.fragment_px).mean() > 0.5:
                owner[m], fragment[m] = n, True
    return fragment


def _measured(rig: Rig, seen: _Seen, owner: Ints, fragment: Bools, count: int) -> Array:
    """(count, K, 3) bodies that the owned detections show, NaN where fewer views than needed agree."""
    xy = np.full((len(rig), count, len(BODY_25), 2), np.nan)
    confidence = np.zeros(xy.shape[:-1])
    whole = (owner >= 0) & ~fragment  # at most one a view and person
    xy[seen.view[whole], owner[whole]] = seen.xy_px[whole]
    confidence[seen.view[whole], owner[whole]] = seen.confidence[whole]
    for m in np.flatnonzero((owner >= 0) & fragment):
        at = seen.view[m], owner[m]
        free = (seen.confidence[m] > 0) & (confidence[at] == 0)
        xy[at][free], confidence[at][free] = seen.xy_px[m][free], seen.confidence[m][free]
    if len(rig) == 1:
        xy = np.where(confidence[..., None] > 0, xy, np.nan)
        return np.concatenate([xy[0], np.zeros_like(xy[0][..., :1])], -1)
    found = triangulate(rig, xy, confidence, iterations=3)
    return np.where((found.used.sum(0) >= 2)[..., None], found.points, np.nan)


def _moved(rig: Rig, matched: _Matched, tracks: Tracks, now: float, cfg: MatchConfig) -> Tracks:
    """Tracks after a frame in which some were measured, others seen by one view, others not at all."""
    seen, owner, body = matched.seen, matched.owner, matched.points
    count = len(tracks.serial)
    views = np.zeros((count, len(rig)), bool)
    owned = owner >= 0
    views[owner[owned], seen.view[owned]] = True
    views_seen = views.sum(1)
    fresh = np.isfinite(body[..., 0])
    needed = min(2, len(rig))
    good = (views_seen >= needed) & (fresh.sum(1) >= LIMITS.shared)
    glimpsed = ~good & (views_seen > 0) & (now - tracks.measured_s <= cfg.single_view_s)
    matched.owner[owned] = np.where((good | glimpsed)[owner[owned]], owner[owned], -1)

    # Velocity, of the keypoints that the frame before had measured, too.
    elapsed = np.maximum(now - tracks.time_s, 1e-3)
    before = fresh & (tracks.point_s >= tracks.time_s[:, None] - 1e-9) & np.isfinite(tracks.points[..., 0])
    move = np.where(before[..., None], body - tracks.points, np.nan)
    speed = finite_median(np.swapaxes(move, 1, 2)) / elapsed[:, None]
    change = speed - tracks.velocity
    if len(rig) > 1:
        most = LIMITS.acceleration_m_s2 * elapsed[:, None]
        change *= np.minimum(1, most / np.maximum(np.linalg.norm(change, axis=1, keepdims=True), 1e-9))
    steady = good & (before.sum(1) >= 3)
    velocity = np.where(steady[:, None], tracks.velocity + change / 2, tracks.velocity)
    velocity = velocity * np.where(good, 1.0, np.where(glimpsed, 0.9, 0.8))[:, None]

    points = np.where(good[:, None, None], matched.predicted, tracks.points)
    points = np.where((good[:, None] & fresh)[..., None], body, points)
    for n in np.flatnonzero(glimpsed):
        points[n] = _onto_rays(matched.predicted[n], seen, np.flatnonzero(owner == n))
    point_s = np.where(good[:, None] & fresh, now, tracks.point_s)
    points[good[:, None] & (now - point_s > LIMITS.point_s)] = np.nan

    given = np.bincount(owner[owner >= 0], minlength=count)
    flips = np.bincount(owner[owner >= 0], matched.exchanged[owner >= 0], minlength=count)
    share = flips / np.maximum(given, 1)
    keep = LIMITS.exchange_memory
    exchanged = np.where(given > 0, keep * tracks.exchanged + (1 - keep) * share, tracks.exchanged)
    wrong = exchanged > LIMITS.exchanged_track  # it was born with left and right exchanged
    points[wrong], point_s[wrong] = points[wrong][:, _EXCHANGED], point_s[wrong][:, _EXCHANGED]
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
        exchanged=np.where(wrong, 0, exchanged),
    )


def _misled(
    rig: Rig,
    seen: _Seen,
    tracks: Tracks,
    owner: Ints,
    body: Array,
    members: Ints,
    apart: Array,
    cfg: MatchConfig,
) -> tuple[int, Ints] | None:
    """The track that stands beside its person, who is this body (K, 3) of other detections, and those of its
    detections that agree better with the body: then more views do than with the track."""
    new, shared = _agreement(rig, body[None], seen, cfg.agreement_m)
    own, _ = _agreement(rig, tracks.points, seen, cfg.agreement_m)
    for n in np.flatnonzero(apart <= cfg.reach_m).tolist():
        mine = np.flatnonzero(owner == n)
        better = (new[0, mine] > own[n, mine]) & (shared[0, mine] >= LIMITS.shared)
        better &= ~np.isin(seen.view[mine], seen.view[members])
        if better.any() and len(members) + better.sum() > len(mine):
            return n, mine[better]
    return None


def _found_again(tracks: Tracks, apart: Array, holders: set[int], now: float, cfg: MatchConfig) -> int | None:
    """The track, not measured in this frame, whose body it is that is ``apart`` (N,) metres from each.

    holders: tracks that have one of its detections, from which alone they did not know how far they are.
    """
    unseen_s = now - tracks.measured_s
    reach = np.minimum(LIMITS.jump_m + cfg.speed_m_s * unseen_s, cfg.max_reach_m)
    near = [n for n in np.flatnonzero((unseen_s > 0) & (apart <= reach)).tolist() if holders <= {n}]
    return min(near, key=lambda n: float(apart[n]), default=None)


def _measured_again(tracks: Tracks, n: int, points: Array, views: int, now: float) -> Tracks:
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


def _onto_rays(body: Array, seen: _Seen, members: Ints) -> Array:
    """A body (K, 3), moved as a whole onto the rays of one view's detections."""
    for m in members:
        away = body - seen.centre[m]
        on_ray = seen.centre[m] + (away * seen.ray[m]).sum(-1)[:, None] * seen.ray[m]
        known = (seen.confidence[m] > 0) & np.isfinite(body[:, 0])
        if known.sum() >= 3:
            body = body + np.median((on_ray - body)[known], 0)
    return body


def _births(rig: Rig, seen: _Seen, free: Bools, cfg: MatchConfig) -> list[tuple[Array, Ints]]:
    """New people: bodies (K, 3), and the detections that show each. Best first, no detection twice."""
    enough = free & ((seen.confidence > 0).sum(1) >= LIMITS.birth_shared)
    if len(rig) == 1:
        owner = np.where(enough, np.arange(len(free)), -1)
        bodies = _measured(rig, seen, owner, np.zeros(len(free), bool), len(free))
        return [(bodies[m], np.array([m])) for m in np.flatnonzero(enough)]
    if len(np.unique(seen.view[enough])) < 2:
        return []
    places = int(seen.index[enough].max()) + 1
    xy = np.full((len(rig), 1, places, len(BODY_25), 2), np.nan)
    confidence = np.zeros(xy.shape[:-1])
    number = np.full((len(rig), places), -1)
    at = seen.view[enough], 0, seen.index[enough]
    xy[at], confidence[at] = seen.xy_px[enough], seen.confidence[enough]
    number[seen.view[enough], seen.index[enough]] = np.flatnonzero(enough)
    limits = cfg.model_copy(
        update={"min_agreement": LIMITS.birth_agreement, "min_points": LIMITS.birth_shared}
    )
    proposals = propose(rig, xy, confidence, limits)
    born: list[tuple[Array, Ints]] = []
    taken: set[int] = set()
    for person in proposals.person[0][proposals.score[0] > 0]:
        members = number[person >= 0, person[person >= 0]]
        members = np.array([m for m in members.tolist() if m not in taken], np.int64)
        body = _body_of(rig, seen, members)
        if body is None:
            continue
        score, shared = _agreement(rig, body[None], seen, cfg.agreement_m)
        agree = (score[0] >= LIMITS.birth_agreement) & (shared[0] >= LIMITS.shared)
        members = members[agree[members]]
        body = _body_of(rig, seen, members)
        if body is not None and has_human_proportions(body):
            taken |= {*members.tolist()}
            born.append((body, members))
    return born


def _body_of(rig: Rig, seen: _Seen, members: Ints) -> Array | None:
    """The body (K, 3) that detections of several views show; None where they show too little."""
    if len(members) < 2:
        return None
    owner = np.full(len(seen.view), -1)
    owner[members] = 0
    body = _measured(rig, seen, owner, np.zeros(len(owner), bool), 1)[0]
    return body if np.isfinite(body[:, 0]).sum() >= LIMITS.birth_shared else None


def has_human_proportions(points: Array, spread: float = 1.5, most: float = 0.35) -> bool:
    """True where the bones of a body (K, 3) are as long, each to the others, as a person's, and the whole
    between half and half again as large as a grown one. Few bones cannot tell: true."""
    ratio = np.array([np.linalg.norm(points[a] - points[b]) / length_m for a, b, length_m in _BONES])
    ratio = ratio[np.isfinite(ratio)]
    if len(ratio) < 4:
        return True
    middle = float(np.median(ratio))
    odd = np.abs(np.log(np.maximum(ratio, 1e-3) / middle)) > np.log(spread)
    return bool(0.45 < middle < 1.45 and odd.mean() <= most)


def _with_born(tracks: Tracks, born: list[Array], now: float) -> Tracks:
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
        exchanged=np.zeros(count),
    )
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(tracks, name), getattr(new, name)]) for name in TRACK_ARRAYS
    }
    return replace(tracks, **joined, next_serial=tracks.next_serial + count)


def _counted(
    rig: Rig, tracks: Tracks, now: float, cfg: MatchConfig, evidence: int = LIMITS.evidence
) -> Tracks:
    """Give ids to tracks that have proved to be people, those with most evidence first."""
    ripe = (tracks.evidence >= evidence) & (tracks.support > LIMITS.support) & (tracks.id < 0)
    ripe &= tracks.measured_s - tracks.born_s >= cfg.presence_s - 1e-6
    if len(rig) > 2 and ripe.any():
        others = _looking_at(rig, trunk_middle(tracks.points)) - 1
        ripe &= tracks.evidence >= LIMITS.view_share * others * tracks.age
    order = np.flatnonzero(ripe)
    strength = tracks.evidence / _unit_m(rig, tracks.points)  # before one camera who is larger in its picture
    order = order[np.lexsort((tracks.serial[order], -strength[order]))]
    tracks = replace(tracks, id=tracks.id.copy())
    for n in order.tolist():
        person = _returned(rig, tracks, n, cfg)
        if person is None:
            tracks.id[n] = tracks.next_id
            tracks = replace(tracks, next_id=tracks.next_id + 1)
        else:
            tracks.id[tracks.id == person] = -1  # a track that waits where the person is no more
            tracks.id[n] = person
            tracks = replace(tracks, lost=tracks.lost[tracks.lost[:, 0] != person])
    return tracks


def _returned(rig: Rig, tracks: Tracks, n: int, cfg: MatchConfig) -> int | None:
    """Id of the person who is track n again: lost, or not measured since, in reach of its birth and in time;
    of several the nearest."""
    waiting = np.flatnonzero((tracks.id >= 0) & (tracks.measured_s <= tracks.born_s[n]))
    lost = np.concatenate([tracks.lost, _sights(tracks, waiting)])
    away_s = np.maximum(tracks.born_s[n] - lost[:, 4], 0)
    distance = np.linalg.norm(lost[:, 1:4] - tracks.birthplace[n], axis=1)
    distance *= _unit_m(rig, tracks.points[[n]])[0]
    reach = np.minimum(cfg.reach_m + cfg.speed_m_s * away_s, cfg.max_reach_m)
    near = (away_s <= cfg.lost_s) & (distance <= reach)
    return int(lost[np.where(near, distance, np.inf).argmin(), 0]) if near.any() else None


def _sights(tracks: Tracks, index: Ints) -> Array:
    """(N, 5) rows as of ``Tracks.lost``."""
    return np.column_stack([tracks.id[index], tracks.place[index], tracks.measured_s[index]])


def _looking_at(rig: Rig, places: Array) -> Ints:
    """(N,) cameras in whose picture places (N, 3) lie."""
    px = rig.project(places, distorted=True)
    with np.errstate(invalid="ignore"):
        inside = np.asarray(((px >= -0.5) & (px < rig.size[:, None] - 0.5)).all(-1))
    unknown = np.asarray((rig.size == 0).any(1))
    return np.asarray((inside | unknown[:, None]).sum(0))


def count_at_end(rig: Rig, tracks: Tracks, frames: int, now: float, cfg: MatchConfig) -> Tracks:
    """Tracks at the end of a recording: if it is short, half of it is as good as ``cfg.presence_s``."""
    short = cfg.model_copy(update={"presence_s": min(cfg.presence_s, now / 2)})
    tracks = _counted(rig, tracks, now, short, min(LIMITS.evidence, (frames - 1) // 2))
    return _with_left_out(tracks, tracks.id < 0, cfg)


def _without_ended(rig: Rig, tracks: Tracks, now: float, cfg: MatchConfig) -> Tracks:
    """The tracks that live on; of two on one body the one with an id, or the older one."""
    unseen, counts = now - tracks.measured_s, tracks.id >= 0
    patience_s = np.clip(tracks.measured_s - tracks.born_s, LIMITS.young_s, max(LIMITS.young_s, cfg.away_s))
    young = ~counts & ((unseen > patience_s) | (tracks.support < LIMITS.young_support))
    gone = (unseen > cfg.away_s + 1e-6) | (tracks.support < LIMITS.lost_support) | young
    tracks = _with_left_out(tracks, gone & ~counts, cfg)
    apart = np.linalg.norm(tracks.points[:, None] - tracks.points, axis=-1)
    same = finite_median(apart) * _unit_m(rig, tracks.points)[:, None] < LIMITS.same_m
    same &= np.isfinite(apart).sum(-1) >= LIMITS.shared
    for a, b in np.argwhere(np.triu(same, 1)):
        if not gone[a] and not gone[b]:
            gone[b if counts[a] or not counts[b] else a] = True
    kept = np.flatnonzero(~gone)
    if len(kept) > MAX_TRACKS:
        strongest = np.lexsort((tracks.serial[kept], -tracks.evidence[kept], ~counts[kept]))
        kept = np.sort(kept[strongest[:MAX_TRACKS]])
    ends = np.flatnonzero(gone & counts)
    lost = np.concatenate([tracks.lost, _sights(tracks, ends)])[-MAX_TRACKS:] if len(ends) else tracks.lost
    # Whoever returns must be there for some time before that is sure.
    lost = lost[now - lost[:, 4] <= cfg.lost_s + cfg.presence_s + LIMITS.young_s]
    return replace(tracks.take(kept), lost=lost)


def _with_left_out(tracks: Tracks, which: Bools, cfg: MatchConfig) -> Tracks:
    """The tracks, with those that never counted (N,) among ``brief`` and ``doubtful``."""
    there_s = np.where(which & (tracks.evidence >= LIMITS.evidence), tracks.measured_s - tracks.born_s, -1.0)
    long = there_s >= cfg.presence_s - 1e-6
    brief = ~long & (there_s >= cfg.presence_s / 2)
    return replace(tracks, brief=tracks.brief + int(brief.sum()), doubtful=tracks.doubtful + int(long.sum()))


def _unit_m(rig: Rig, points: Array) -> Array:
    """(N,) metres that the unit of bodies (N, K, 3) is: with a single camera they are in pixels."""
    return np.ones(len(points)) if len(rig) > 1 else _pixel_m(points)


def _pixel_m(points: Array) -> Array:
    """(N,) metres a pixel of people (N, K, C), NaN where missing, if they are grown ones."""
    middle = finite_median(np.swapaxes(points, 1, 2))[:, None]
    size = finite_median(np.linalg.norm(points - middle, axis=-1))
    return np.asarray(EXTENT_M / np.maximum(size, 1e-6))
