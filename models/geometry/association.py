"""Association of people over views and time, by geometry, never by index.

All in metres in the world: a keypoint is a ray, two views of one person are two bundles of rays that meet.
Everybody in a view and whoever in another view they meet best propose a body (the middles of the shortest
segments between their rays); every view then gives the person whose rays pass closest, and the proposal on
which most confident points of most views agree wins. Nothing depends on what the points are called, so the
same code serves to find out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from models.geometry.triangulation import along_rays, ray_gap, rays
from pipeline.cameras import Array, Rig
from pipeline.config import Config
from pipeline.skeleton import BODY_25

Number = TypeVar("Number", np.float32, np.float64)

_PARALLEL: Final = 0.03
"""Sine of the angle between two rays below which they are not used (1.7°)."""


def _people(value: object) -> object:
    if value in ("main", "all") or (type(value) is int and value >= 1):
        return value
    raise ValueError("expected all, main or a number from 1")


class MatchConfig(Config):
    """Limits of association: points of different views that are one person, a person seen again."""

    people: Annotated[Literal["main", "all"] | int, BeforeValidator(_people)] = "all"
    """all: everybody whom two cameras, or the only one, see for ``presence_s``; a number: at most so many at
    once, who came first; main: one at a time, and always the same one while they are there."""
    presence_s: float = Field(default=1.0, ge=0)
    """Time for which somebody must be seen to count."""
    reidentify: bool = False
    """Somebody who comes back within ``return_s`` in reach of where they were lost is the same person, as
    with ``main``; else only within ``away_s``."""
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
    """Unseen for longer, a person has left: others take their place where only so many are wanted."""
    return_s: float = Field(default=10.0, gt=0)
    """Unseen for longer, whoever stands where the person was is somebody else."""
    single_view_s: float = Field(default=0.5, ge=0)
    """Time that one view alone is believed after the person was last seen by two."""

    @property
    def lost_s(self) -> float:
        """Time within which somebody who comes back is the same person."""
        return self.return_s if self.reidentify or self.people == "main" else self.away_s

    @property
    def most_at_once(self) -> int | None:
        """Number of people at a time, None for any."""
        return None if self.people == "all" else 1 if self.people == "main" else int(self.people)


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
    usable &= alive[..., None]  # a point that is not seen has no ray to lie along
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
        agree = (np.where(along > 0, weight, 0) / (1 + miss2 / cfg.agreement_m**2)).sum(-1)
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
    picked = [np.take_along_axis(ordered, n[..., None, None], -2)[..., 0, :] for n in (low, high)]
    return np.where(count[..., None] > 0, (picked[0] + picked[1]) / 2, np.nan)
