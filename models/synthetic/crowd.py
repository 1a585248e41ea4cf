"""People who walk among each other: paths that cross close by, turns, stops, leaving and coming back.

Everybody's plan is made clip by clip, in the order of time. The next clip of whoever is free first is drawn
from random walks past the others and from movements on the spot; one is taken that keeps its distance from
what the others have planned, and from where they will stand then. So standing still is always possible, and
nobody is ever in anybody's way. A plan, once made, is a function of time alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.body import Body, pelvis_at_rest
from models.synthetic.people import (
    CLIPS,
    RAMP,
    Arc,
    Clip,
    ClipMotion,
    Person,
    Segment,
    Style,
    animate,
    make_people,
    pace,
    sitting,
    standing,
    turning,
    walked,
    walking,
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spacing:
    """Distances, in metres between the roots of two people, and times by which a crowd is planned."""

    apart_m: float = 0.345
    """Least distance. Between two moments of ``step_s`` it is at most 1 cm less, so 0.33 m are kept."""
    close_m: float = 0.4
    """Distance that a walk past somebody should come under."""
    near_m: float = 0.65
    """Distance within which people stay for most of the time."""
    step_s: float = 0.05
    """Interval of the moments at which distances are kept."""
    outside_m: float = 1.0
    """Distance from the region of the crowd at which whoever leaves disappears."""


SPACING: Final = Spacing()

_ON_THE_SPOT: Final = (
    *(CLIPS[name] for name in ("squat", "arm_circles", "jumping_jack", "reach")),
    Clip(3.6, sitting),
)
_WAIT: Final = Clip(1.4, standing)
_TURNS: Final = ((0.8, 1.2), (2.1, 2.0), (np.pi, 2.8))
"""Largest angle in radians of a turn, and seconds that it then takes."""
_LOOK_AHEAD_S: Final = np.array([2.0, 4.0, 6.0])
"""When the others are where somebody walks to: on the way, or where they will have stopped."""
_WALKS: Final = 0.8
_WALKS_ON: Final = 0.4
"""Chance that somebody walks next: after a movement on the spot, and after a walk."""
_CANDIDATES: Final = 60
"""Walks to choose from."""
_EXACT: Final = 10
"""Walks, the best ones, of which one that keeps its distance is taken."""


@dataclass(eq=False)
class _Walker:
    """A person whose plan is being made."""

    person: Person
    rest: Array
    """(3,) pelvis of the body at rest, metres."""
    at: Array
    """(2,) metres: where the plan ends."""
    facing: float
    """Radians, world, there."""
    arc: Arc
    gone: float
    turned: float
    """On that arc, where the plan ends."""
    free_s: float
    """From when on the next clip can start."""
    roots: Array
    """(G, 2) metres, at moments of ``step_s``; from the last on the person stands still."""
    first: int
    """Number of the first of these moments."""
    leaves_s: float = np.inf
    """From when on this person is to leave."""
    outside: bool = False
    plan: list[Segment] = field(default_factory=list)
    away: list[tuple[float, float]] = field(default_factory=list)

    @property
    def is_to_leave(self) -> bool:
        return bool(self.plan) and not self.outside and self.leaves_s <= self.free_s

    def places(self, moments: NDArray[np.int64]) -> Array:
        """(G, 2) root at some moments."""
        return self.roots[np.clip(moments - self.first, 0, len(self.roots) - 1)]


@dataclass(frozen=True)
class _Walk:
    """C walks along arcs from one point, each after a turn."""

    angle: Array
    """(C,) radians to turn first, to the left."""
    turn_s: Array
    """(C,) seconds of that turn, in seconds of a clip as ``walk_s``."""
    walk_s: Array
    middle: Array
    """(C, 2) of the arc."""
    radius: Array
    bearing: Array
    """(C,) radians, from the middle to where the walk starts."""
    side: Array
    """(C,) +1 for a walk to the left around the middle, −1 to the right."""

    def places(self, t: Array, start: Array, walker: _Walker) -> Array:
        """(C, T, 2) metres at times ``t`` (T,) of the recording, of walks that start at ``start`` (C,)."""
        style = walker.person.style
        clip_s = (t - start[:, None]) * style.speed
        gone = walked(clip_s, self.walk_s[:, None], style)
        at = self.bearing[:, None] + self.side[:, None] * gone / self.radius[:, None]
        around = np.stack([np.cos(at), np.sin(at)], -1)
        return np.asarray(self.middle[:, None] + self.radius[:, None, None] * around)


def make_crowd(count: int, seconds: float, seed: int, body: Body, leaving: int = 0) -> tuple[Person, ...]:
    """People who walk among each other for ``seconds``; one alone is who ``make_people`` makes.

    They come within ``SPACING.close_m`` of each other and keep 0.33 m, root to root. The last ``leaving`` of
    them leave for some seconds, again and again. The same seed gives the same people.
    """
    if count == 1 and not leaving:
        return make_people(count, seconds, seed, body)
    return _Planner(make_people(count, 0.0, seed, body), body, seed, leaving).plan(seconds)


class _Planner:
    def __init__(self, people: Sequence[Person], body: Body, seed: int, leaving: int) -> None:
        self.body = body
        self.rng = np.random.default_rng([seed, 7])
        self.region_m = 0.45 * float(np.sqrt(len(people))) + 0.6
        self.walkers: list[_Walker] = []
        for i, (person, at) in enumerate(zip(people, self._starts(len(people)), strict=True)):
            rest = pelvis_at_rest(body.keypoints, torch.from_numpy(person.betas)[None])[0].numpy()
            facing = self.rng.uniform(0, 2 * np.pi)
            arc = Arc(at - np.array([np.sin(facing), -np.cos(facing)]), 1.0, facing - np.pi / 2)
            walker = _Walker(
                person=person, rest=rest, at=at, facing=facing, arc=arc, gone=0.0, turned=0.0,
                free_s=-self.rng.uniform(0.4, 0.9), roots=at[None], first=0,
            )  # fmt: skip
            if i >= len(people) - leaving:
                walker.leaves_s = self.rng.uniform(0.5, 3.0)
            self.walkers.append(walker)

    def _starts(self, count: int) -> list[Array]:
        """(2,) metres each: where everybody stands at first, near somebody else."""
        places = [self.rng.uniform(-0.3, 0.3, 2)]
        while len(places) < count:
            way = self.rng.uniform(0, 2 * np.pi)
            beside = self.rng.uniform(0.5, 0.75) * np.array([np.cos(way), np.sin(way)])
            place = places[self.rng.integers(len(places))] + beside
            apart = np.linalg.norm(np.array(places) - place, axis=1).min()
            if apart >= 0.5 and np.linalg.norm(place) <= self.region_m:
                places.append(place)
        return places

    def plan(self, seconds: float) -> tuple[Person, ...]:
        """The people, with plans for at least ``seconds``."""
        while (walker := min(self.walkers, key=lambda w: w.free_s)).free_s < seconds:
            self._go_on(walker)
        return tuple(replace(w.person, plan=tuple(w.plan), away=tuple(w.away)) for w in self.walkers)

    def _go_on(self, w: _Walker) -> None:
        """Plan what one person does next."""
        if w.is_to_leave and self._take_walk(w, self._ways_out(w)):
            self._disappear(w)
            return
        others = [o for o in self.walkers if o is not w]
        moment = np.array([round(w.free_s / SPACING.step_s)])
        apart = [float(np.linalg.norm(o.places(moment)[0] - w.at)) for o in others]
        lonely = min(apart, default=0.0) > SPACING.near_m
        chance = _WALKS_ON if w.plan and w.plan[-1].clip.goes else _WALKS
        walks = not w.plan or w.outside or lonely or self.rng.random() < chance
        if walks and self._take_walk(w, self._ways(w, others)):
            w.outside = False
            return
        clip = _ON_THE_SPOT[self.rng.integers(len(_ON_THE_SPOT))]
        if lonely or w.outside or not self._accept(w, [self._segment(w, clip, w.free_s)]):
            self._accept(w, [self._segment(w, _WAIT, w.free_s)], at_any_price=True)

    def _disappear(self, w: _Walker) -> None:
        """Let somebody who stands outside be away for some seconds."""
        begin = w.free_s + RAMP / w.person.style.speed
        lasts = self.rng.uniform(2.5, 5.0)
        clip = Clip((lasts + 0.5) * w.person.style.speed + RAMP, standing)
        self._accept(w, [self._segment(w, clip, w.free_s)], at_any_price=True)
        w.away.append((begin, begin + lasts))
        w.outside, w.leaves_s = True, begin + lasts + self.rng.uniform(5.0, 12.0)

    def _ways(self, w: _Walker, others: Sequence[_Walker]) -> _Walk:
        """Walks past the others, and to places beside them."""
        rng, c = self.rng, _CANDIDATES
        if others:
            moments = np.rint((w.free_s + _LOOK_AHEAD_S) / SPACING.step_s).astype(np.int64)
            places = np.concatenate([o.places(moments) for o in others])
            inside = places[np.linalg.norm(places, axis=1) <= self.region_m]
            towards = inside[rng.integers(len(inside), size=c)] if len(inside) else np.zeros((c, 2))
        else:
            towards = rng.uniform(-self.region_m, self.region_m, (c, 2)) / 2
        way = towards - w.at
        way /= np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-6)
        across = np.stack([-way[:, 1], way[:, 0]], -1)
        beside = rng.uniform(0.36, 0.55, (c, 1)) * rng.choice([-1.0, 1.0], (c, 1))
        beyond = rng.uniform(-0.2, min(1.0, 0.3 + 0.15 * len(others)), (c, 1))
        return self._along_arcs(w, towards + across * beside + way * beyond)

    def _ways_out(self, w: _Walker) -> _Walk:
        """Walks straight out of the region."""
        way = self.rng.uniform(0, 2 * np.pi, _CANDIDATES)
        border = self.region_m + SPACING.outside_m
        return self._along_arcs(w, border * np.stack([np.cos(way), np.sin(way)], -1))

    def _along_arcs(self, w: _Walker, goal: Array) -> _Walk:
        """Walks that end at ``goal`` (C, 2), as far as it is not too near for a walk."""
        style, c = w.person.style, len(goal)
        chord = goal - w.at
        long = np.maximum(np.linalg.norm(chord, axis=1), 1e-6)
        side = self.rng.choice([-1.0, 1.0], c)
        radius = long * self.rng.uniform(0.8, 4.0, c)
        half = np.arcsin(long / (2 * radius))
        tangent = np.arctan2(chord[:, 1], chord[:, 0]) - side * half
        normal = np.stack([-np.sin(tangent), np.cos(tangent)], -1)
        angle = (tangent - w.facing + np.pi) % (2 * np.pi) - np.pi
        largest, turn_s = (np.array(x) for x in zip(*_TURNS, strict=True))
        return _Walk(
            angle=angle,
            turn_s=turn_s[np.searchsorted(largest[:-1], np.abs(angle))],
            walk_s=np.maximum(2 * radius * half / pace(style), 1.2 * RAMP) + RAMP,
            middle=w.at + (side * radius)[:, None] * normal,
            radius=radius,
            bearing=tangent - side * np.pi / 2,
            side=side,
        )

    def _take_walk(self, w: _Walker, ways: _Walk) -> bool:
        """Plan the best of the walks that keeps its distance; False if none does."""
        speed = w.person.style.speed
        turn = (ways.turn_s - RAMP) / speed if w.plan else np.zeros(len(ways.angle))
        start = w.free_s + turn
        stay_s = 1.5  # for which people look at each other afterwards
        longest = float((start + ways.walk_s / speed).max()) - w.free_s + stay_s
        t = w.free_s + np.arange(0, longest, SPACING.step_s)
        moments = np.round(t / SPACING.step_s).astype(np.int64)
        places = ways.places(t, start, w)
        counted = t <= (start + ways.walk_s / speed)[:, None] + stay_s
        others = [o.places(moments) for o in self.walkers if o is not w]
        apart = np.full(places.shape[:2], np.inf)
        for other in others:
            apart = np.minimum(apart, np.linalg.norm(places - other, axis=-1))
        nearest = np.where(counted, apart, np.inf).min(1)
        share = (counted & (apart < SPACING.near_m)).sum(1) / counted.sum(1)
        end = np.linalg.norm(places[:, -1], axis=1)
        leaves = w.is_to_leave
        score = (not leaves) * (2 * share + 0.6 * (nearest < SPACING.close_m))
        score = score + 0.3 * self.rng.random(len(score)) - 0.1 * np.abs(ways.angle) * bool(w.plan)
        possible = (nearest >= SPACING.apart_m) & (leaves | (end <= self.region_m))
        for k in [k for k in np.argsort(-score) if possible[k]][:_EXACT]:
            if self._accept(w, self._walk_segments(w, ways, int(k))):
                return True
        return False

    def _segment(self, w: _Walker, clip: Clip, start: float) -> Segment:
        return Segment(clip, start, w.gone, w.turned, 1.0, w.arc)

    def _walk_segments(self, w: _Walker, ways: _Walk, k: int) -> list[Segment]:
        speed, side = w.person.style.speed, float(ways.side[k])
        arc = Arc(ways.middle[k], float(ways.radius[k]), float(ways.bearing[k]))
        start, segments = w.free_s, []
        if w.plan:
            turn = Clip(float(ways.turn_s[k]), partial(_turn_by, float(ways.angle[k])), turns=True)
            segments.append(self._segment(w, turn, start))
            start += (turn.seconds - RAMP) / speed
        walk = Clip(float(ways.walk_s[k]), walking, goes=True)
        return [*segments, Segment(walk, start, 0.0, 0.0 if side > 0 else np.pi, side, arc)]

    def _accept(self, w: _Walker, segments: Sequence[Segment], *, at_any_price: bool = False) -> bool:
        """Add clips to a plan if the person keeps the distance in them."""
        last, speed = segments[-1], w.person.style.speed
        begin = round(w.free_s / SPACING.step_s)
        end_s = last.start + last.clip.seconds / speed
        moments = np.arange(begin, int(np.ceil(end_s / SPACING.step_s)) + 1)
        plan = (*w.plan[-3:], *segments)
        times = moments.astype(np.float64) * SPACING.step_s
        roots = (animate(replace(w.person, plan=plan), self.body, times)[1] + w.rest)[:, :2]
        others = [o for o in self.walkers if o is not w]
        until = max((o.first + len(o.roots) for o in others), default=0)  # for whom this one then stands
        rests = np.repeat(roots[-1:], max(0, until - int(moments[-1]) - 1), axis=0)
        shown = np.concatenate([roots, rests])
        moments = begin + np.arange(len(shown))
        apart = min((np.linalg.norm(shown - o.places(moments), axis=1).min() for o in others), default=np.inf)
        if apart < SPACING.apart_m and not at_any_price:
            return False
        kept = max(0, min(round(o.free_s / SPACING.step_s) for o in self.walkers) - w.first)
        before = w.places(np.arange(w.first + kept, begin))
        w.roots, w.first = np.concatenate([before, roots]), min(w.first + kept, begin)
        w.plan.extend(segments)
        motion = last.clip.motion(np.array([last.clip.seconds]), last.clip.seconds, w.person.style)
        w.arc = last.arc
        w.gone = last.gone + last.ahead * float(motion.advance[0])
        w.turned = last.turned + float(motion.yaw[0])
        around = w.arc.bearing + w.gone / w.arc.radius
        w.at = w.arc.middle + w.arc.radius * np.array([np.cos(around), np.sin(around)])
        w.facing = around + np.pi / 2 + w.turned
        w.free_s = last.start + (last.clip.seconds - RAMP) / speed
        return True


def _turn_by(angle: float, t: Array, length: float, style: Style) -> ClipMotion:
    """Motion of a turn by ``angle`` radians to the left."""
    return turning(t, length, replace(style, side=1.0 if angle >= 0 else -1.0), abs(angle))
