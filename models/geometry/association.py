"""Which person in one view is which in another: by geometry, never by index.

All in metres in the world: a keypoint is a ray, two views of one person are two bundles of rays that meet.
Everybody in a view and whoever in another view they meet best propose a body (the middles of the shortest
segments between their rays); every view then gives the person whose rays pass closest, and the proposal on
which most confident points of most views agree wins. Nothing depends on what the points are called, so the
same code serves to find out. A single camera has no rays to meet: it follows the person in its picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.geometry.tracking import distances, figures
from models.geometry.triangulation import along_rays, ray_gap, rays
from pipeline.cameras import Array, Rig
from pipeline.config import Config

Number = TypeVar("Number", np.float32, np.float64)

_PARALLEL: Final = 0.03
"""Sine of the angle between two rays below which they are not used (1.7°)."""


class MatchConfig(Config):
    """When points of different views belong to one person, and when a person is the one followed."""

    agreement_m: float = Field(default=0.1, gt=0)
    """Distance between a ray and the body's point at which the point counts for half."""
    min_agreement: float = Field(default=0.4, gt=0, le=1)
    """Share of a view's confidence that must agree for the view to count as seeing the person."""
    min_points: int = Field(default=5, ge=1, le=25)
    """Points that two views must share before they can agree."""
    reach_m: float = Field(default=0.5, gt=0)
    """How far the person can be from where it was seen last, at once ..."""
    speed_m_s: float = Field(default=3.0, ge=0)
    """... and how fast that grows while it is not seen, ..."""
    max_reach_m: float = Field(default=0.8, gt=0)
    """... up to this."""
    away_s: float = Field(default=1.0, ge=0)
    """Nobody out of reach is taken for the person before it has been unseen for this long ..."""
    start_share: float = Field(default=0.6, gt=0, le=1)
    """... and then, as at the start, only at this share of the recording's usual agreement."""
    single_view_s: float = Field(default=0.5, ge=0)
    """How long one view alone is believed after the person was last seen by two."""


_EXTENT_M: Final = (0.05, 1.2)
"""Median distance of a body's points from their median."""


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
        extent = masked_median(np.linalg.norm(body - centre[:, :, None], axis=-1)[..., None], usable)[..., 0]
        # Half of the points of a body lie within an arm's length of its middle, and not all on a spot.
        alive &= (extent > _EXTENT_M[0]) & (extent < _EXTENT_M[1])

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


def usual_score(rig: Rig, xy_px: Array, confidence: Array, cfg: MatchConfig) -> float:
    """What the best seen person of a recording reaches in a typical frame; 0 if nobody is seen.

    The agreement of the views, or, with a single camera, how much of the person there is to see. Arguments as
    for ``propose``.
    """
    if len(rig) == 1:
        best = figures(xy_px[0], confidence[0], cfg.min_points).weight.max(1, initial=0)
    else:
        best = propose(rig, xy_px, confidence, cfg).score[:, 0]
    return float(np.median(best[best > 0])) if (best > 0).any() else 0.0


def follow(
    rig: Rig,
    xy_px: Array,
    confidence: Array,
    time_s: Array,
    usual: float,
    anchor: Array,
    cfg: MatchConfig,
) -> tuple[NDArray[np.int64], Array]:
    """Choose the recording's person in each view: index (V, T), −1 where not seen, and the new anchor.

    anchor: (4,) where the person was seen last and when, NaN before it was: a place in the world, or, with a
    single camera, a place and a size in its picture. Someone within reach of it is
    the person, however few views agree and however many agree on somebody else: an occlusion must not hand
    the person's place to a bystander. At the start, and once the person has been unseen for ``away_s``, it is
    who is agreed on about as well as is ``usual`` in this recording, so that a bystander in two views of four
    is not taken while the person is out of sight. A single view is believed for a short time, when its rays
    pass where the person was.
    """
    if len(rig) == 1:
        return _follow_in_picture(xy_px[0], confidence[0], time_s, usual, anchor, cfg)
    proposals = propose(rig, xy_px, confidence, cfg)
    views, frames = confidence.shape[:2]
    chosen = np.full((views, frames), -1, dtype=np.int64)
    position, when = anchor[:3].copy(), float(anchor[3])
    for t in range(frames):
        score, centre = proposals.score[t], proposals.centre[t]
        reach = min(cfg.reach_m + cfg.speed_m_s * (time_s[t] - when), cfg.max_reach_m)
        distance = np.linalg.norm(centre - position, axis=-1)
        # NaN (no anchor yet, no proposal) compares false.
        near = np.where(distance <= reach, score / (1 + (distance / reach) ** 2), 0)
        pick = int(near.argmax())
        known = near[pick] > 0
        if not known and not time_s[t] - when <= cfg.away_s:
            pick = int(score.argmax())
            known = score[pick] > 0 and score[pick] >= cfg.start_share * usual
        if known:
            chosen[:, t] = proposals.person[t, pick]
            position, when = centre[pick], float(time_s[t])
        elif time_s[t] - when <= cfg.single_view_s:
            free = confidence[:, t].copy()
            for people in proposals.person[t, score > 0]:  # they are somebody else, somewhere else
                free[people >= 0, people[people >= 0]] = 0
            chosen[:, t] = _single_view(rig, xy_px[:, t], free, position, reach, cfg)
    return chosen, np.append(position, when)


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
    extent = masked_median(np.linalg.norm(near - centre[:, :, None], axis=-1)[..., None], usable)[..., 0]
    with np.errstate(invalid="ignore"):
        good = (
            (usable.sum(-1) >= cfg.min_points)
            & (distance <= reach)
            & (extent > _EXTENT_M[0])
            & (extent < _EXTENT_M[1])
        )
    if good.any():
        rank = np.where(good, confidence.sum(-1) / (1 + (distance / reach) ** 2), -1)
        view, person = np.unravel_index(int(rank.argmax()), rank.shape)
        out[view] = person
    return out


def _follow_in_picture(
    xy_px: Array, confidence: Array, time_s: Array, usual: float, anchor: Array, cfg: MatchConfig
) -> tuple[NDArray[np.int64], Array]:
    """``follow`` with a single camera: metres are those of a grown person of the size in the picture."""
    shown = figures(xy_px, confidence, cfg.min_points)
    chosen = np.full((1, len(time_s)), -1, dtype=np.int64)
    centre, size, when = anchor[:2].copy(), float(anchor[2]), float(anchor[3])
    for t, weight in enumerate(shown.weight):
        reach = min(cfg.reach_m + cfg.speed_m_s * (time_s[t] - when), cfg.max_reach_m)
        distance = distances(shown.centre[t], shown.size[t], centre, np.array(size))
        near = np.where(distance <= reach, weight / (1 + (distance / reach) ** 2), 0)
        pick = int(near.argmax()) if len(near) else 0
        known = len(near) > 0 and near[pick] > 0
        if not known and len(near) and not time_s[t] - when <= cfg.away_s:
            pick = int(weight.argmax())
            known = weight[pick] > 0 and weight[pick] >= cfg.start_share * usual
        if known:
            chosen[0, t] = pick
            centre, size, when = shown.centre[t, pick], float(shown.size[t, pick]), float(time_s[t])
    return chosen, np.array([*centre, size, when])


def pick_people(values: NDArray[Number], chosen: NDArray[np.int64], fill: float) -> NDArray[Number]:
    """(V, T, P, ...) and person (V, T) → (V, T, ...), ``fill`` where the person is −1."""
    views, frames = chosen.shape
    out = values[np.arange(views)[:, None], np.arange(frames), np.maximum(chosen, 0)]
    out[chosen < 0] = fill
    return out


def masked_median(values: Array, valid: NDArray[np.bool_]) -> Array:
    """Median of (..., K, D) over the valid (..., K) → (..., D), NaN where none is: no warnings, no loops."""
    count = valid.sum(-1)
    ordered = np.sort(np.where(valid[..., None], values, np.inf), axis=-2)
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    high = np.minimum(high, values.shape[-2] - 1)
    picked = [np.take_along_axis(ordered, n[..., None, None], -2)[..., 0, :] for n in (low, high)]
    return np.where(count[..., None] > 0, (picked[0] + picked[1]) / 2, np.nan)
