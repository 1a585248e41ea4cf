"""Crowds of synthetic people: paths that cross closely, turns, stops, leaving and coming back.

Plans are made clip by clip in time order. The person whose plan ends first gets the next clip: the best of
random walks past the others, or a movement on the spot, that keeps the distance from the others' plans and
from where these end. Standing still is therefore always possible. A plan is a function of time alone.
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
    FADE_S,
    Arc,
    Clip,
    ClipMotion,
    Person,
    PlannedClip,
    Style,
    animate,
    make_people,
    sitting,
    standing,
    turning,
    walked_distance,
    walking,
    walking_speed,
)
from pipeline.array_types import Array


@dataclass(frozen=True)
class Spacing:
    """Distances between the roots of two people by which a crowd is planned."""

    min_distance_m: float = 0.345
    """Kept at multiples of ``step_s``; between them people are at most 1 cm closer, so 0.33 m are kept."""
    passing_m: float = 0.4
    """Distance that a walk past another person should come under."""
    near_m: float = 0.65
    """Distance within which people stay for most of the time."""
    step_s: float = 0.05
    """Interval at which distances are checked."""
    exit_m: float = 1.0
    """Distance from the region of the crowd at which a leaving person becomes absent."""


SPACING: Final = Spacing()

_ON_THE_SPOT: Final = (
    *(CLIPS[name] for name in ("squat", "arm_circles", "jumping_jack", "reach")),
    Clip(3.6, sitting),
)
_WAIT: Final = Clip(1.4, standing)
_TURNS: Final = ((0.8, 1.2), (2.1, 2.0), (np.pi, 2.8))
"""Durations of turns: (largest angle in radians, clip seconds)."""
_LOOK_AHEAD_S: Final = np.array([2.0, 4.0, 6.0])
"""Times from now at which the others' positions are goals of a walk."""
_WALK_CHANCE: Final = 0.8
"""Of a walk after a movement on the spot."""
_WALK_AGAIN_CHANCE: Final = 0.4
"""Of a walk after a walk."""
_CANDIDATE_WALKS: Final = 60
_CHECKED_WALKS: Final = 10
"""Best candidates, whose distances are checked exactly."""


@dataclass(eq=False)
class _Walker:
    """A person, and the state at the end of the plan so far."""

    person: Person
    rest_pelvis: Array
    """(3,) pelvis of the body at rest, metres."""
    position: Array
    """(2,) metres."""
    heading: float
    """Radians, world."""
    arc: Arc
    distance_m: float
    """Along the arc."""
    yaw: float
    """Against the arc, radians."""
    free_s: float
    """Earliest start of the next clip."""
    roots: Array
    """(G, 2) metres, in steps of ``step_s``; after the last the person stands still."""
    first_step: int
    """Number of the first step in ``roots``."""
    leaves_s: float = np.inf
    """Time from which this person is to leave."""
    outside: bool = False
    plan: list[PlannedClip] = field(default_factory=list)
    absences_s: list[tuple[float, float]] = field(default_factory=list)

    @property
    def is_to_leave(self) -> bool:
        return bool(self.plan) and not self.outside and self.leaves_s <= self.free_s

    def positions(self, steps: NDArray[np.int64]) -> Array:
        """(G, 2) root at time steps."""
        return self.roots[np.clip(steps - self.first_step, 0, len(self.roots) - 1)]


@dataclass(frozen=True)
class _Walks:
    """C walks along arcs from one point, each after a turn."""

    angle: Array
    """(C,) radians of the turn, to the left."""
    turn_s: Array
    """(C,) clip seconds of the turn."""
    walk_s: Array
    """(C,) clip seconds of the walk."""
    centre: Array
    """(C, 2) of the arc."""
    radius: Array
    bearing: Array
    """(C,) radians, from the centre to the start of the walk."""
    side: Array
    """(C,) +1 for a walk to the left around the centre, −1 to the right."""

    def positions(self, t: Array, start: Array, style: Style) -> Array:
        """(C, T, 2) metres at times ``t`` (T,) of the recording, of walks that start at ``start`` (C,)."""
        clip_s = (t - start[:, None]) * style.speed
        distance_m = walked_distance(clip_s, self.walk_s[:, None], style)
        bearing = self.bearing[:, None] + self.side[:, None] * distance_m / self.radius[:, None]
        direction = np.stack([np.cos(bearing), np.sin(bearing)], -1)
        return np.asarray(self.centre[:, None] + self.radius[:, None, None] * direction)


def make_crowd(count: int, seconds: float, seed: int, body: Body, leaving: int = 0) -> tuple[Person, ...]:
    """Make people who walk among each other for ``seconds``; a single one is that of ``make_people``.

    They come within ``SPACING.passing_m`` of each other and keep 0.33 m, root to root. The last ``leaving``
    repeatedly leave for some seconds. Equal seeds give equal people.
    """
    if count == 1 and not leaving:
        return make_people(count, seconds, seed, body)
    return _Planner(make_people(count, 0.0, seed, body), body, seed, leaving).plan(seconds)


class _Planner:
    """Planner of a crowd's clips."""

    def __init__(self, people: Sequence[Person], body: Body, seed: int, leaving: int) -> None:
        self.body = body
        self.rng = np.random.default_rng([seed, 7])
        self.region_m = 0.45 * float(np.sqrt(len(people))) + 0.6
        self.walkers: list[_Walker] = []
        for i, (person, position) in enumerate(zip(people, self._starts(len(people)), strict=True)):
            rest = pelvis_at_rest(body.keypoints, torch.from_numpy(person.betas)[None])[0].numpy()
            heading = self.rng.uniform(0, 2 * np.pi)
            centre = position - np.array([np.sin(heading), -np.cos(heading)])
            walker = _Walker(
                person=person, rest_pelvis=rest, position=position, heading=heading,
                arc=Arc(centre, 1.0, heading - np.pi / 2), distance_m=0.0, yaw=0.0,
                free_s=-self.rng.uniform(0.4, 0.9), roots=position[None], first_step=0,
            )  # fmt: skip
            if i >= len(people) - leaving:
                walker.leaves_s = self.rng.uniform(0.5, 3.0)
            self.walkers.append(walker)

    def _starts(self, count: int) -> list[Array]:
        """Initial positions (2,), metres, each near another."""
        starts = [self.rng.uniform(-0.3, 0.3, 2)]
        while len(starts) < count:
            angle = self.rng.uniform(0, 2 * np.pi)
            offset = self.rng.uniform(0.5, 0.75) * np.array([np.cos(angle), np.sin(angle)])
            start = starts[self.rng.integers(len(starts))] + offset
            distance = np.linalg.norm(np.array(starts) - start, axis=1).min()
            if distance >= 0.5 and np.linalg.norm(start) <= self.region_m:
                starts.append(start)
        return starts

    def plan(self, seconds: float) -> tuple[Person, ...]:
        """Plan at least ``seconds`` for all people."""
        while (walker := min(self.walkers, key=lambda w: w.free_s)).free_s < seconds:
            self._extend(walker)
        return tuple(
            replace(w.person, plan=tuple(w.plan), absences_s=tuple(w.absences_s)) for w in self.walkers
        )

    def _extend(self, w: _Walker) -> None:
        """Plan the next clips of one person."""
        if w.is_to_leave and self._plan_walk(w, self._exits(w)):
            self._plan_absence(w)
            return
        others = [o for o in self.walkers if o is not w]
        step = np.array([round(w.free_s / SPACING.step_s)])
        distance = [float(np.linalg.norm(o.positions(step)[0] - w.position)) for o in others]
        isolated = min(distance, default=0.0) > SPACING.near_m
        chance = _WALK_AGAIN_CHANCE if w.plan and w.plan[-1].clip.walks else _WALK_CHANCE
        walks = not w.plan or w.outside or isolated or self.rng.random() < chance
        if walks and self._plan_walk(w, self._walks_past(w, others)):
            w.outside = False
            return
        clip = _ON_THE_SPOT[self.rng.integers(len(_ON_THE_SPOT))]
        if isolated or w.outside or not self._accept(w, [self._segment(w, clip, w.free_s)]):
            self._accept(w, [self._segment(w, _WAIT, w.free_s)], unchecked=True)

    def _plan_absence(self, w: _Walker) -> None:
        """Plan an absence of some seconds for a person outside the region."""
        begin_s = w.free_s + FADE_S / w.person.style.speed
        duration_s = self.rng.uniform(2.5, 5.0)
        clip = Clip((duration_s + 0.5) * w.person.style.speed + FADE_S, standing)
        self._accept(w, [self._segment(w, clip, w.free_s)], unchecked=True)
        w.absences_s.append((begin_s, begin_s + duration_s))
        w.outside, w.leaves_s = True, begin_s + duration_s + self.rng.uniform(5.0, 12.0)

    def _walks_past(self, w: _Walker, others: Sequence[_Walker]) -> _Walks:
        """Walks past the others, and to positions beside them."""
        rng, c = self.rng, _CANDIDATE_WALKS
        if others:
            steps = np.rint((w.free_s + _LOOK_AHEAD_S) / SPACING.step_s).astype(np.int64)
            positions = np.concatenate([o.positions(steps) for o in others])
            inside = positions[np.linalg.norm(positions, axis=1) <= self.region_m]
            target = inside[rng.integers(len(inside), size=c)] if len(inside) else np.zeros((c, 2))
        else:
            target = rng.uniform(-self.region_m, self.region_m, (c, 2)) / 2
        direction = target - w.position
        direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-6)
        normal = np.stack([-direction[:, 1], direction[:, 0]], -1)
        beside_m = rng.uniform(0.36, 0.55, (c, 1)) * rng.choice([-1.0, 1.0], (c, 1))
        beyond_m = rng.uniform(-0.2, min(1.0, 0.3 + 0.15 * len(others)), (c, 1))
        return self._walks_to(w, target + normal * beside_m + direction * beyond_m)

    def _exits(self, w: _Walker) -> _Walks:
        """Walks out of the region."""
        angle = self.rng.uniform(0, 2 * np.pi, _CANDIDATE_WALKS)
        exit_radius_m = self.region_m + SPACING.exit_m
        return self._walks_to(w, exit_radius_m * np.stack([np.cos(angle), np.sin(angle)], -1))

    def _walks_to(self, w: _Walker, goal: Array) -> _Walks:
        """Walks along arcs that end at ``goal`` (C, 2); past it where it is too near for a walk."""
        style, c = w.person.style, len(goal)
        chord = goal - w.position
        length_m = np.maximum(np.linalg.norm(chord, axis=1), 1e-6)
        side = self.rng.choice([-1.0, 1.0], c)
        radius = length_m * self.rng.uniform(0.8, 4.0, c)
        half = np.arcsin(length_m / (2 * radius))
        tangent = np.arctan2(chord[:, 1], chord[:, 0]) - side * half
        normal = np.stack([-np.sin(tangent), np.cos(tangent)], -1)
        angle = (tangent - w.heading + np.pi) % (2 * np.pi) - np.pi
        largest, turn_s = (np.array(x) for x in zip(*_TURNS, strict=True))
        return _Walks(
            angle=angle,
            turn_s=turn_s[np.searchsorted(largest[:-1], np.abs(angle))],
            walk_s=np.maximum(2 * radius * half / walking_speed(style), 1.2 * FADE_S) + FADE_S,
            centre=w.position + (side * radius)[:, None] * normal,
            radius=radius,
            bearing=tangent - side * np.pi / 2,
            side=side,
        )

    def _plan_walk(self, w: _Walker, walks: _Walks) -> bool:
        """Plan the best of the walks that keeps its distance; false without any."""
        speed = w.person.style.speed
        start = w.free_s + ((walks.turn_s - FADE_S) / speed if w.plan else np.zeros(len(walks.angle)))
        stay_s = 1.5  # after the walk, for which distances count, too
        end = start + walks.walk_s / speed
        longest = float(end.max()) - w.free_s + stay_s
        t = w.free_s + np.arange(0, longest, SPACING.step_s)
        steps = np.round(t / SPACING.step_s).astype(np.int64)
        positions = walks.positions(t, start, w.person.style)
        counted = t <= end[:, None] + stay_s
        distance = np.full(positions.shape[:2], np.inf)
        for other in (o.positions(steps) for o in self.walkers if o is not w):
            distance = np.minimum(distance, np.linalg.norm(positions - other, axis=-1))
        nearest = np.where(counted, distance, np.inf).min(1)
        near_share = (counted & (distance < SPACING.near_m)).sum(1) / counted.sum(1)
        end_radius = np.linalg.norm(positions[:, -1], axis=1)
        leaves = w.is_to_leave
        score = (not leaves) * (2 * near_share + 0.6 * (nearest < SPACING.passing_m))
        score = score + 0.3 * self.rng.random(len(score)) - 0.1 * np.abs(walks.angle) * bool(w.plan)
        possible = (nearest >= SPACING.min_distance_m) & (leaves | (end_radius <= self.region_m))
        best = [int(k) for k in np.argsort(-score) if possible[k]][:_CHECKED_WALKS]
        return any(self._accept(w, self._walk_segments(w, walks, k)) for k in best)

    def _segment(self, w: _Walker, clip: Clip, start_s: float) -> PlannedClip:
        return PlannedClip(clip, start_s, w.distance_m, w.yaw, 1.0, w.arc)

    def _walk_segments(self, w: _Walker, walks: _Walks, k: int) -> list[PlannedClip]:
        speed, side = w.person.style.speed, float(walks.side[k])
        arc = Arc(walks.centre[k], float(walks.radius[k]), float(walks.bearing[k]))
        start_s, segments = w.free_s, []
        if w.plan:
            turn = Clip(float(walks.turn_s[k]), partial(_turn_by, float(walks.angle[k])), turns=True)
            segments.append(self._segment(w, turn, start_s))
            start_s += (turn.seconds - FADE_S) / speed
        walk = Clip(float(walks.walk_s[k]), walking, walks=True)
        return [*segments, PlannedClip(walk, start_s, 0.0, 0.0 if side > 0 else np.pi, side, arc)]

    def _accept(self, w: _Walker, segments: Sequence[PlannedClip], *, unchecked: bool = False) -> bool:
        """Append clips to a plan if they keep the distance, or unchecked."""
        last, speed = segments[-1], w.person.style.speed
        begin = round(w.free_s / SPACING.step_s)
        end_s = last.start_s + last.clip.seconds / speed
        steps = np.arange(begin, int(np.ceil(end_s / SPACING.step_s)) + 1)
        plan = (*w.plan[-3:], *segments)
        times = steps.astype(np.float64) * SPACING.step_s
        roots = (animate(replace(w.person, plan=plan), self.body, times)[1] + w.rest_pelvis)[:, :2]
        others = [o for o in self.walkers if o is not w]
        # After the clips this person stands, as long as the others' plans go on.
        last_step = max((o.first_step + len(o.roots) for o in others), default=0)
        rest = np.repeat(roots[-1:], max(0, last_step - int(steps[-1]) - 1), axis=0)
        extended = np.concatenate([roots, rest])
        steps = begin + np.arange(len(extended))
        distance = [np.linalg.norm(extended - o.positions(steps), axis=1).min() for o in others]
        if min(distance, default=np.inf) < SPACING.min_distance_m and not unchecked:
            return False
        obsolete = max(0, min(round(o.free_s / SPACING.step_s) for o in self.walkers) - w.first_step)
        earlier = w.positions(np.arange(w.first_step + obsolete, begin))
        w.roots, w.first_step = np.concatenate([earlier, roots]), min(w.first_step + obsolete, begin)
        w.plan.extend(segments)
        motion = last.clip.motion(np.array([last.clip.seconds]), last.clip.seconds, w.person.style)
        w.arc = last.arc
        w.distance_m = last.distance_m + last.direction * float(motion.advance[0])
        w.yaw = last.yaw + float(motion.yaw[0])
        bearing = w.arc.bearing + w.distance_m / w.arc.radius
        w.position = w.arc.centre + w.arc.radius * np.array([np.cos(bearing), np.sin(bearing)])
        w.heading = bearing + np.pi / 2 + w.yaw
        w.free_s = last.start_s + (last.clip.seconds - FADE_S) / speed
        return True


def _turn_by(angle: float, t: Array, length: float, style: Style) -> ClipMotion:
    """Turn by ``angle`` radians to the left."""
    return turning(t, length, replace(style, side=1.0 if angle >= 0 else -1.0), abs(angle))
