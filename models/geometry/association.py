"""Cross-view association of people by the distances of their rays, and settings of association.

All in metres in the world: a keypoint is a ray, two views of one person are two bundles of rays that meet.
Each detection and the one of another view that it meets best propose a body (the middles of the shortest
segments between their rays); every view then gives the detection whose rays pass closest. The names of the
keypoints are not used, so that the same code serves to find their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from models.compiled import jit
from models.geometry.triangulation import along_rays, rays
from pipeline.array_types import Array
from pipeline.cameras import Rig
from pipeline.config import Config
from pipeline.skeleton import BODY_25

Number = TypeVar("Number", np.float32, np.float64)

_MIN_SINE: Final = 0.03
"""Least sine of the angle between two rays that are compared (1.7°)."""


def _people(value: object) -> object:
    if value in ("main", "all") or (type(value) is int and value >= 1):
        return value
    raise ValueError("expected all, main or a number from 1")


class MatchConfig(Config):
    """Settings of association and tracking."""

    people: Annotated[Literal["main", "all"] | int, BeforeValidator(_people)] = "all"
    """all: everybody whom two cameras, or the only one, see for ``presence_s``; a number: at most so many at
    once, who came first; main: one at a time, the same one while present."""
    presence_s: float = Field(default=1.0, ge=0)
    """Time for which a person must be seen to count."""
    reidentify: bool = False
    """A person who returns within ``return_s`` in reach of where they were lost keeps the id, as with
    ``main``; else only within ``away_s``."""
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
    """Time unseen after which a person has left, and another one may be followed instead."""
    return_s: float = Field(default=10.0, gt=0)
    """Time unseen after which whoever stands where the person was is another one."""
    single_view_s: float = Field(default=0.5, ge=0)
    """Time that one view alone is believed after the person was last seen by two."""

    @property
    def lost_s(self) -> float:
        """Time unseen within which a person who returns keeps the id."""
        return self.return_s if self.reidentify or self.people == "main" else self.away_s

    @property
    def most_at_once(self) -> int | None:
        """Number of people at a time, None for any."""
        return None if self.people == "all" else 1 if self.people == "main" else int(self.people)


_EXTENT_M: Final = (0.05, 1.2)
"""Range of the median distance of a body's points from their median: no spot, and no longer than an arm."""


@dataclass(frozen=True)
class Proposals:
    """Bodies that at least two views agree on, best first. Axes: T frames, H proposals, V views, K points."""

    score: Array
    """(T, H) confidence × agreement summed over views and points; 0 where there is no proposal."""
    person: NDArray[np.int64]
    """(T, H, V) index of the person in each view; −1 where a view does not see the body."""


def propose(rig: Rig, xy_px: Array, confidence: Array, cfg: MatchConfig) -> Proposals:
    """All bodies that two or more views agree on, frame by frame.

    xy_px: (V, T, P, K, 2) undistorted pixels, NaN where missing. confidence: (V, T, P, K), 0 where missing.
    """
    views, frames, people, _ = confidence.shape
    conf = confidence.astype(np.float64)
    ray = np.where(conf[..., None] > 0, rays(rig, xy_px.astype(np.float64)), 0.0)
    origin = rig.centres

    # 1. Agreement of every two detections of different views, and for each the one it meets best.
    meet = np.zeros((frames, views, people, views, people))
    _meet(origin, ray, conf, 2 * cfg.agreement_m, cfg.min_points, cfg.min_agreement, meet)
    table = meet.reshape(frames, views * people, views * people)
    partner, score = table.argmax(-1), table.max(-1)
    mutual = np.take_along_axis(partner, partner, 1) == np.arange(views * people)
    score[mutual & (partner < np.arange(views * people))] = 0  # the same pair, named from its other end
    one = np.argsort(-score, axis=1, kind="stable")[:, : max(1, int((score > 0).sum(1).max(initial=0)))]
    two = np.take_along_axis(partner, one, 1)
    alive = np.take_along_axis(score, one, 1) > 0

    # 2. The bodies of these pairs, and the detections of each view that agree with them.
    t = np.arange(frames)[:, None]
    (va, i), (vb, j) = np.divmod(one, people), np.divmod(two, people)
    ends = origin[va][:, :, None], origin[vb][:, :, None]
    along_a, along_b, usable = along_rays(ends[1] - ends[0], ray[va, t, i], ray[vb, t, j], _MIN_SINE)
    body = (ends[0] + along_a[..., None] * ray[va, t, i] + ends[1] + along_b[..., None] * ray[vb, t, j]) / 2
    usable &= (along_a > 0) & (along_b > 0)
    usable &= alive[..., None]  # a point that is not seen has no ray to lie along
    body = np.where(usable[..., None], body, np.nan)
    centre = finite_median(body, -2)
    extent_m = finite_median(np.linalg.norm(body - centre[..., None, :], axis=-1))
    alive &= (extent_m > _EXTENT_M[0]) & (extent_m < _EXTENT_M[1])

    score = np.zeros(alive.shape)
    person = np.full((*alive.shape, views), -1, dtype=np.int64)
    for f, v in np.ndindex(frames, views):
        share, weight, shared = ray_agreement(
            body[f], origin[[v] * people], ray[v, f], conf[v, f], cfg.agreement_m
        )
        good = (shared >= cfg.min_points) & (share >= cfg.min_agreement)
        agree = np.where(good, share * weight, 0)
        best = agree.max(1, initial=0)
        person[f, :, v] = np.where(best > 0, agree.argmax(1), -1)
        score[f] += best
    alive &= (person >= 0).sum(-1) >= 2
    score = np.where(alive, score, 0)
    order = np.argsort(-score, axis=1, kind="stable")
    return Proposals(
        np.take_along_axis(score, order, 1),
        np.where(alive[..., None], person, -1)[t, order],
    )


@jit
def _meet(
    origin: Array, ray: Array, confidence: Array, half_m: float, least: int, share: float, meet: Array
) -> None:
    """Fill meet (T, V, P, V, P), given as 0, with the agreement of the rays of people of different views.

    origin (V, 3), ray (V, T, P, K, 3), confidence (V, T, P, K). Two rays ``half_m`` apart agree by half.
    """
    views, frames, people, points = confidence.shape
    for t in range(frames):
        for a in range(views):
            for b in range(a + 1, views):
                base = origin[b] - origin[a]
                for i in range(people):
                    for j in range(people):
                        count, whole, agree = 0, 0.0, 0.0
                        for k in range(points):
                            weight = np.sqrt(confidence[a, t, i, k] * confidence[b, t, j, k])
                            if weight > 0:
                                count, whole = count + 1, whole + weight
                                gap2 = _gap2(base, ray[a, t, i, k], ray[b, t, j, k])
                                agree += weight / (1 + gap2 / half_m**2)
                        if count >= least and agree >= share * whole:
                            meet[t, a, i, b, j] = meet[t, b, j, a, i] = agree


@jit
def _gap2(base: Array, one: Array, two: Array) -> float:
    """Square of the distance between two rays, the second ``base`` away; infinite where they are parallel or
    meet behind a camera."""
    cos = one[0] * two[0] + one[1] * two[1] + one[2] * two[2]
    on_a = one[0] * base[0] + one[1] * base[1] + one[2] * base[2]
    on_b = two[0] * base[0] + two[1] * base[1] + two[2] * base[2]
    sin2 = 1 - cos**2
    if not (sin2 > _MIN_SINE**2 and on_a > cos * on_b and cos * on_a > on_b):
        return np.inf
    # Of the base, what lies along neither.
    length2 = base[0] ** 2 + base[1] ** 2 + base[2] ** 2
    gap2: float = length2 - (on_a**2 + on_b**2 - 2 * cos * on_a * on_b) / sin2
    return max(gap2, 0.0)


@jit
def ray_agreement(
    points: Array, centre: Array, ray: Array, confidence: Array, half_m: float
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Share of a detection's confidence that agrees with a body, the confidence of the keypoints that both
    have, and their number: (N, M) each.

    points (N, K, 3), NaN where not known; centre (M, 3); ray (M, K, 3); confidence (M, K), 0 where missing. A
    keypoint ``half_m`` from its ray agrees by half.
    """
    shape = len(points), len(ray)
    share, whole, shared = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    for n in range(shape[0]):
        for m in range(shape[1]):
            agree = 0.0
            for k in range(points.shape[1]):
                if confidence[m, k] > 0 and np.isfinite(points[n, k, 0]):
                    shared[n, m] += 1
                    whole[n, m] += confidence[m, k]
                    along = length2 = 0.0
                    for i in range(3):
                        away = points[n, k, i] - centre[m, i]
                        along += away * ray[m, k, i]
                        length2 += away**2
                    if along > 0:
                        agree += confidence[m, k] / (1 + max(length2 - along**2, 0.0) / half_m**2)
            share[n, m] = agree / max(whole[n, m], 1e-9)
    return share, whole, shared


def pick_people(values: NDArray[Number], chosen: NDArray[np.int64], fill: float) -> NDArray[Number]:
    """(V, T, P, ...) and person (V, T) → (V, T, ...), ``fill`` where the person is −1."""
    views, frames = chosen.shape
    out = values[np.arange(views)[:, None], np.arange(frames), np.maximum(chosen, 0)]
    out[chosen < 0] = fill
    return out


def finite_median(values: Array, axis: int = -1) -> Array:
    """Median of the finite values along an axis, NaN where there are none: numpy's takes ten times as
    long."""
    count = np.isfinite(values).sum(axis, keepdims=True)
    ordered = np.sort(values, axis)  # NaN comes last
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, values.shape[axis] - 1)
    middle = (np.take_along_axis(ordered, low, axis) + np.take_along_axis(ordered, high, axis)) / 2
    return np.asarray(np.where(count > 0, middle, np.nan).squeeze(axis))
