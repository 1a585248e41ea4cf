"""Association of people over views and time, by geometry, never by index.

All in metres in the world: a keypoint is a ray, two views of one person are two bundles of rays that meet.
Everybody in a view and whoever in another view they meet best propose a body (the middles of the shortest
segments between their rays); every view then gives the person whose rays pass closest, and the proposal on
which most confident points of most views agree wins. Nothing depends on what the points are called, so the
same code serves to find out. A single camera has no rays to meet: it follows the person in its picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Annotated, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.geometry.tracking import Figures, distances, figures
from models.geometry.triangulation import along_rays, ray_gap, rays
from pipeline.cameras import Array, Rig
from pipeline.config import Config
from pipeline.skeleton import BODY_25

Number = TypeVar("Number", np.float32, np.float64)

_PARALLEL: Final = 0.03
"""Sine of the angle between two rays below which they are not used (1.7°)."""


class MatchConfig(Config):
    """Limits of association: points of different views that are one person, a person seen again."""

    people: Literal["main", "all"] | Annotated[int, Field(ge=1)] = "main"
    """main: one person at a time; a number: at most so many at once; all: everybody whom two cameras, or the
    only one, see for ``presence_s``."""
    presence_s: float = Field(default=1.0, ge=0)
    """Time for which somebody must be seen to count, but with ``main``."""
    reidentify: bool = False
    """Somebody who comes back within ``return_s`` in reach of where they were lost is the same person; else
    only within ``away_s``."""
    agreement_m: float = Field(default=0.1, gt=0)
    """Distance between a ray and the body's point at which the point counts for half."""
    min_agreement: float = Field(default=0.4, gt=0, le=1)
    """Share of a view's confidence that must agree for the view to count as seeing the person."""
    min_points: int = Field(default=5, ge=1, le=len(BODY_25))
    """Points that two views must share before they can agree."""
    reach_m: float = Field(default=0.5, gt=0)
    """Largest distance of a person from where it was seen last, at once."""
    speed_m_s: float = Field(default=3.0, ge=0)
    """Growth of that distance while the person is not seen."""
    max_reach_m: float = Field(default=0.8, gt=0)
    """Bound of that distance."""
    away_s: float = Field(default=1.0, ge=0)
    """Nobody else is followed before the person has been unseen for this long."""
    start_share: float = Field(default=0.6, gt=0, le=1)
    """Share of the reference score at which somebody else is followed then, as at the start."""
    return_s: float = Field(default=10.0, gt=0)
    """Unseen for longer, whoever stands where the person was is somebody else."""
    single_view_s: float = Field(default=0.5, ge=0)
    """Time that one view alone is believed after the person was last seen by two."""

    @property
    def lost_s(self) -> float:
        """Time within which somebody who comes back is the same person."""
        return self.return_s if self.reidentify else self.away_s


_EXTENT_M: Final = (0.05, 1.2)
"""Median distance of a body's points from their median."""
_SCORE_OCTAVES: Final = (-6, 20)
"""Powers of 2 between which scores are counted: from a hint of confidence to a figure of 40,000 px."""
_BINS_AN_OCTAVE: Final = 8
SCORE_BINS: Final = _BINS_AN_OCTAVE * (_SCORE_OCTAVES[1] - _SCORE_OCTAVES[0])


@dataclass(frozen=True)
class Proposals:
    """Bodies that at least two views agree on, best first. Axes: T frames, H proposals, V views, K points."""

    score: Array
    """(T, H) confidence × agreement summed over views and points; 0 where there is no proposal."""
    centre: Array
    """(T, H, 3) median of the points, metres, world; NaN where there is no proposal."""
    person: NDArray[np.int64]
    """(T, H, V) index of the person in each view; −1 where a view does not see the body."""


def propose(rig: Rig, xy_px: Array, confidence: Array, cfg: MatchConfig) -> Proposals:
    """All bodies that two or more views agree on, frame by frame.

    xy_px: (V, T, P, K, 2) undistorted pixels, NaN where missing. confidence: (V, T, P, K), 0 where missing.
    """
    views, frames, people, _ = confidence.shape
    conf = confidence.astype(np.float64)
    seen = conf > 0
    ray = np.where(seen[..., None], rays(rig, xy_px.astype(np.float64)), 0.0)
    origin = rig.centres

    # 1. How well everybody in one view meets everybody in another, and for each the one they meet best.
    meet = np.zeros((frames, views, people, views, people))
    for a, b in combinations(range(views), 2):
        weight = np.sqrt(conf[a][:, :, None] * conf[b][:, None])
        pair = origin[b] - origin[a], ray[a][:, :, None], ray[b][:, None]
        along_a, along_b, usable = along_rays(*pair, _PARALLEL)
        usable &= (along_a > 0) & (along_b > 0)
        gap = ray_gap(*pair)  # squared below: its sign does not matter
        agree = (np.where(usable, weight, 0) / (1 + (gap / (2 * cfg.agreement_m)) ** 2)).sum(-1)
        good = ((weight > 0).sum(-1) >= cfg.min_points) & (agree >= cfg.min_agreement * weight.sum(-1))
        meet[:, a, :, b] = np.where(good, agree, 0)
        meet[:, b, :, a] = meet[:, a, :, b].transpose(0, 2, 1)
    table = meet.reshape(frames, views * people, views * people)
    partner, score = table.argmax(-1), table.max(-1)
    mutual = np.take_along_axis(partner, partner, 1) == np.arange(views * people)
    score[mutual & (partner < np.arange(views * people))] = 0  # the same pair, named from its other end
    one = np.argsort(-score, axis=1, kind="stable")[:, : max(1, int((score > 0).sum(1).max(initial=0)))]
    two = np.take_along_axis(partner, one, 1)
    alive = np.take_along_axis(score, one, 1) > 0

    # 2. The bodies of these pairs, and who in each view lies on them.
    t = np.arange(frames)[:, None]
    (va, i), (vb, j) = np.divmod(one, people), np.divmod(two, people)
    ends = origin[va][:, :, None], origin[vb][:, :, None]
    along_a, along_b, usable = along_rays(ends[1] - ends[0], ray[va, t, i], ray[vb, t, j], _PARALLEL)
    body = (ends[0] + along_a[..., None] * ray[va, t, i] + ends[1] + along_b[..., None] * ray[vb, t, j]) / 2
    usable &= (along_a > 0) & (along_b > 0)
    usable &= seen[va, t, i] & seen[vb, t, j] & alive[..., None]
    centre = masked_median(body, usable)
    with np.errstate(invalid="ignore"):
        alive &= _body_sized(body, centre, usable)

    score = np.zeros(alive.shape)
    person = np.full((*alive.shape, views), -1, dtype=np.int64)
    for v in range(views):
        offset = np.where(usable[..., None], body - origin[v], 0)
        along = np.einsum("thkx,tpkx->thpk", offset, ray[v])
        miss2 = (offset**2).sum(-1)[:, :, None] - along**2
        weight = usable[:, :, None] * conf[v][:, None]
        agree = (np.where(along > 0, weight, 0) / (1 + np.maximum(miss2, 0) / cfg.agreement_m**2)).sum(-1)
        good = ((weight > 0).sum(-1) >= cfg.min_points) & (agree >= cfg.min_agreement * weight.sum(-1))
        agree = np.where(good, agree, 0)
        best = agree.argmax(-1)
        share = np.take_along_axis(agree, best[..., None], -1)[..., 0]
        person[..., v] = np.where(share > 0, best, -1)
        score += share
    alive &= (person >= 0).sum(-1) >= 2
    score = np.where(alive, score, 0)
    order = np.argsort(-score, axis=1, kind="stable")
    return Proposals(
        np.take_along_axis(score, order, 1),
        np.where(alive[..., None], centre, np.nan)[t, order],
        np.where(alive[..., None], person, -1)[t, order],
    )


@dataclass(frozen=True)
class TrackerState:
    """Restart state of tracking: people who may return, and the scores of the frames so far."""

    next_id: int = 0
    """The id that the next new person gets."""
    ids: tuple[int, ...] = ()
    """(N,) people seen within ``MatchConfig.return_s``, rising."""
    sight: Array = field(default_factory=lambda: np.empty((0, 5)))
    """(N, 5) where each was seen last, a place in the world, metres, or, with a single camera, a place and a
    size in its picture, pixels; when, seconds; and the best score so far."""
    scores: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SCORE_BINS, dtype=np.int64))
    """(SCORE_BINS,) how many frames so far had a best score in each bin."""

    def with_scores(self, best: Array) -> TrackerState:
        """Count the best scores (T,) of more frames; those of 0 are not counted."""
        octaves = np.log2(best[best > 0]) - _SCORE_OCTAVES[0]
        bins = np.clip(np.floor(octaves * _BINS_AN_OCTAVE), 0, SCORE_BINS - 1).astype(np.int64)
        return replace(self, scores=self.scores + np.bincount(bins, minlength=SCORE_BINS))

    @property
    def reference_score(self) -> float:
        """Median best score of the frames so far, to 4 %; 0 when there is none."""
        total = int(self.scores.sum())
        if not total:
            return 0.0
        k = int(np.searchsorted(self.scores.cumsum(), (total + 1) // 2))
        return float(2 ** (_SCORE_OCTAVES[0] + (k + 0.5) / _BINS_AN_OCTAVE))

    def seen(self, person: int, sight: Array) -> TrackerState:
        """Note where a person, known or new, was seen: sight (5,) of this frame."""
        if person in self.ids:
            known, n = self.sight.copy(), self.ids.index(person)
            known[n] = [*sight[:4], max(sight[4], known[n, 4])]
            return replace(self, sight=known)
        return replace(
            self,
            next_id=person + 1,
            ids=(*self.ids, person),
            sight=np.concatenate([self.sight, sight[None]]),
        )

    def without_lost(self, now: float, cfg: MatchConfig) -> TrackerState:
        """Forget people who were seen last more than ``cfg.return_s`` before ``now``."""
        kept = [n for n, when in enumerate(self.sight[:, 3]) if now - when <= cfg.return_s]
        return replace(self, ids=tuple(self.ids[n] for n in kept), sight=self.sight[kept])


@dataclass(frozen=True)
class Sighting:
    """The followed person in some frames. Axes: V views, T frames."""

    detection: NDArray[np.int64]
    """(V, T) index of the person's detection in each view; −1 where a view does not see the person."""
    person: NDArray[np.int64]
    """(T,) id of the person who is followed; −1 where it is nobody."""
    known: tuple[int, ...]
    """Ids of all who are followed in one of the frames, or were before and may return, rising."""


def track_person(
    rig: Rig, xy_px: Array, confidence: Array, time_s: Array, state: TrackerState, cfg: MatchConfig
) -> tuple[Sighting, TrackerState]:
    """Follow one person through a batch of frames, and say who it is.

    xy_px: (V, T, D, K, 2) undistorted pixels, NaN where missing. confidence: (V, T, D, K), 0 where missing.
    time_s: (T,). Uses nothing but these frames and the state that earlier ones left.

    Somebody within reach of where the followed person was last is that person, however few views agree and
    however many agree on somebody else: an occlusion must not hand the place over to a bystander. At the
    start, and once the person has been unseen for ``away_s``, somebody else is followed, under an id of their
    own, if the views agree about as well as they usually do. So is somebody else beside a person on whom they
    never did: a bystander may come first. Whoever turns up within ``return_s`` in reach of
    the place where an earlier person was lost is that person, and is followed again. A single view is
    believed for a short time, when its rays pass where the person was.
    """
    if len(rig) == 1:
        candidates: _Candidates = _InPicture(figures(xy_px[0], confidence[0], cfg.min_points))
    else:
        candidates = _InWorld(propose(rig, xy_px, confidence, cfg))
    state = state.with_scores(candidates.score.max(1, initial=0))
    least = cfg.start_share * state.reference_score
    views, frames = confidence.shape[:2]
    detection = np.full((views, frames), -1, dtype=np.int64)
    person = np.full(frames, -1, dtype=np.int64)
    known = set(state.ids)
    for t in range(frames):
        now = float(time_s[t])
        state = state.without_lost(now, cfg)
        found = _choose(candidates, t, now, least, state, cfg)
        if found is not None:
            person[t], pick = found
            detection[:, t] = candidates.detections(t, pick)
            sight = np.array([*candidates.place(t, pick), now, candidates.score[t, pick]])
            state = state.seen(int(person[t]), sight)
            known.add(int(person[t]))
        elif len(rig) > 1 and state.ids:
            last = int(state.sight[:, 3].argmax())
            place, unseen = state.sight[last, :3], now - state.sight[last, 3]
            if unseen <= cfg.single_view_s:
                free = confidence[:, t].copy()
                for shown in candidates.everybody(t):  # they are somebody else, somewhere else
                    free[shown >= 0, shown[shown >= 0]] = 0
                detection[:, t] = _single_view(rig, xy_px[:, t], free, place, _reach(unseen, cfg), cfg)
                if (detection[:, t] >= 0).any():
                    person[t] = state.ids[last]
    return Sighting(detection, person, tuple(sorted(known))), state


def _reach(unseen_s: float, cfg: MatchConfig) -> float:
    """Largest distance of a person from where it was seen last, metres."""
    return float(min(cfg.reach_m + cfg.speed_m_s * unseen_s, cfg.max_reach_m))


def _choose(
    candidates: _Candidates, t: int, now: float, least: float, state: TrackerState, cfg: MatchConfig
) -> tuple[int, int] | None:
    """Id and candidate of the person to follow in frame t; None where there is nobody."""

    def nearest(n: int, free: NDArray[np.bool_]) -> int | None:
        """The best candidate within reach of the n-th person."""
        reach = _reach(now - state.sight[n, 3], cfg)
        distance = candidates.distances(t, state.sight[n])
        # NaN, of no candidate, compares false.
        near = np.where(free & (distance <= reach), score / (1 + (distance / reach) ** 2), 0)
        return int(near.argmax()) if near.any() else None

    score = candidates.score[t]
    good = (score > 0) & (score >= least)
    last = int(state.sight[:, 3].argmax()) if state.ids else -1
    pick = nearest(last, score > 0) if state.ids else None
    if state.ids and pick is None and now - state.sight[last, 3] <= cfg.away_s:
        return None
    # People of before who are back: older ones, beside the person who is followed, or anyone in their place.
    others = range(last) if pick is not None else (n for n in range(len(state.ids)) if n != last)
    free = good if pick is None else good & candidates.apart(t, pick)
    for n in others:
        back = nearest(n, free)
        if back is not None:
            return state.ids[n], back
    if pick is not None and (state.sight[last, 4] >= least or not free.any()):
        return state.ids[last], pick
    return (state.next_id, int(np.where(free, score, 0).argmax())) if free.any() else None


class _InWorld:
    """Candidates on whom several views agree."""

    def __init__(self, proposals: Proposals) -> None:
        self.score, self._proposals = proposals.score, proposals

    def place(self, t: int, pick: int) -> Array:
        """(3,) metres, world."""
        return np.asarray(self._proposals.centre[t, pick])

    def distances(self, t: int, sight: Array) -> Array:
        """(H,) metres from where somebody was seen (5,)."""
        return np.asarray(np.linalg.norm(self._proposals.centre[t] - sight[:3], axis=-1))

    def detections(self, t: int, pick: int) -> NDArray[np.int64]:
        """(V,) index of the detection in each view, −1 for none."""
        return np.asarray(self._proposals.person[t, pick])

    def everybody(self, t: int) -> NDArray[np.int64]:
        """(N, V) the detections of all candidates."""
        return np.asarray(self._proposals.person[t, self.score[t] > 0])

    def apart(self, t: int, pick: int) -> NDArray[np.bool_]:
        """(H,) True where a candidate shares no detection with another one."""
        one, all_ = self._proposals.person[t, pick], self._proposals.person[t]
        return np.asarray(~((one == all_) & (one >= 0)).any(1))


class _InPicture:
    """Candidates in the picture of a single camera; metres are those of a grown person of their size."""

    def __init__(self, shown: Figures) -> None:
        self.score, self._shown = shown.weight, shown

    def place(self, t: int, pick: int) -> Array:
        """(3,) centre and size, pixels."""
        return np.append(self._shown.centre[t, pick], self._shown.size[t, pick])

    def distances(self, t: int, sight: Array) -> Array:
        """(H,) metres from where somebody was seen (5,)."""
        return distances(self._shown.centre[t], self._shown.size[t], sight[:2], sight[2])

    def detections(self, t: int, pick: int) -> NDArray[np.int64]:
        """(1,) index of the detection."""
        return np.array([pick])

    def everybody(self, t: int) -> NDArray[np.int64]:
        """(N, 1) the detections of all candidates."""
        return np.flatnonzero(self.score[t] > 0)[:, None]

    def apart(self, t: int, pick: int) -> NDArray[np.bool_]:
        """(H,) True where a candidate is another one."""
        return np.asarray(np.arange(self.score.shape[1]) != pick)


_Candidates = _InWorld | _InPicture


def _single_view(
    rig: Rig, xy_px: Array, confidence: Array, position: Array, reach: float, cfg: MatchConfig
) -> NDArray[np.int64]:
    """The one person (V,) of one view that stands where the person was last; −1 in all other views."""
    out = np.full(len(rig), -1, dtype=np.int64)
    seen = confidence > 0
    offset = position - rig.centres
    ray = np.where(seen[..., None], rays(rig, xy_px.astype(np.float64)), 0)
    along = np.einsum("vpkx,vx->vpk", ray, offset)
    near = rig.centres[:, None, None] + along[..., None] * ray
    usable = seen & (along > 0)
    centre = masked_median(near, usable)
    distance = np.linalg.norm(centre - position, axis=-1)
    with np.errstate(invalid="ignore"):
        good = (usable.sum(-1) >= cfg.min_points) & (distance <= reach) & _body_sized(near, centre, usable)
    if good.any():
        rank = np.where(good, confidence.sum(-1) / (1 + (distance / reach) ** 2), -1)
        view, person = np.unravel_index(int(rank.argmax()), rank.shape)
        out[view] = person
    return out


def pick_people(values: NDArray[Number], chosen: NDArray[np.int64], fill: float) -> NDArray[Number]:
    """(V, T, P, ...) and person (V, T) → (V, T, ...), ``fill`` where the person is −1."""
    views, frames = chosen.shape
    out = values[np.arange(views)[:, None], np.arange(frames), np.maximum(chosen, 0)]
    out[chosen < 0] = fill
    return out


def _body_sized(points: Array, centre: Array, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(...) True where half of the valid points (..., K, 3) lie within an arm's length of their median
    (..., 3), and not all on a spot."""
    distance = np.linalg.norm(points - centre[..., None, :], axis=-1)
    extent = masked_median(distance[..., None], valid)[..., 0]
    return np.asarray((extent > _EXTENT_M[0]) & (extent < _EXTENT_M[1]))


def masked_median(values: Array, valid: NDArray[np.bool_]) -> Array:
    """Median of (..., K, D) over the valid (..., K) → (..., D), NaN where none is: no warnings, no loops."""
    count = valid.sum(-1)
    ordered = np.sort(np.where(valid[..., None], values, np.inf), axis=-2)
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    high = np.minimum(high, values.shape[-2] - 1)
    picked = [np.take_along_axis(ordered, n[..., None, None], -2)[..., 0, :] for n in (low, high)]
    return np.where(count[..., None] > 0, (picked[0] + picked[1]) / 2, np.nan)
