"""Synthetic people: procedural motion clips, chained into a plan, as SMPL parameters over time.

Motion is a function of time alone, so that any window of frames can be made without those before it. The
world is in metres with Z up and the floor at z = 0.

Clips are authored as Euler angles (X·Y·Z, in the frames of the T-pose: x left, y up, z ahead). A positive
angle about x bends a knee, pitches the trunk ahead and points the toes down; a negative one lifts a thigh or
a hanging arm ahead. Elbows bend about y, the left one with a negative angle.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from types import MappingProxyType
from typing import Final

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from models.body import Body, forward_kinematics, pose_keypoints
from pipeline.array_types import Array
from pipeline.skeleton import BODY_25, SMPL_24


@dataclass(frozen=True)
class Style:
    """Individual style of a person's movements."""

    speed: float
    """Clip seconds per second."""
    amplitude: float
    """Scale of the large movements."""
    phase: float
    """Share of the gait cycle at which walking starts, 0–1."""
    side: float
    """+1 for left side first, −1 for right side first."""
    thigh_m: float
    shank_m: float
    """They set the length of a step."""


@dataclass(frozen=True)
class ClipMotion:
    """Motion of a clip relative to standing still; overlapping clips add up."""

    angles: Array
    """(T, J, 3) Euler angles, radians."""
    advance: Array
    """(T,) metres ahead."""
    yaw: Array
    """(T,) radians to the left."""
    lift: Array
    """(T,) height of the lowest point of the feet, metres."""
    stride: Array
    """(T,) 1 where the body moves over the feet, as in walking, 0 where it stays above them."""

    def __add__(self, other: ClipMotion) -> ClipMotion:
        return ClipMotion(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def _still(frames: int) -> ClipMotion:
    """Motion of a person who stands still."""
    zero = np.zeros(frames)
    return ClipMotion(np.zeros((frames, len(SMPL_24), 3)), zero, zero.copy(), zero.copy(), zero.copy())


def _joint(name: str) -> int:
    return SMPL_24.index(name)


_SIDES: Final = (("left", 1.0), ("right", -1.0))
"""Sides, and the sign of an angle about y or z that makes it a mirror image."""


def _standing() -> Array:
    """(J, 3) radians of a relaxed stance: arms beside the body, knees and elbows a little bent."""
    pose = np.zeros((len(SMPL_24), 3))
    for side, s in _SIDES:
        pose[_joint(f"{side}_hip")] = -4, 5 * s, 0
        pose[_joint(f"{side}_knee")] = 8, 0, 0
        pose[_joint(f"{side}_ankle")] = -4, 0, 0
        pose[_joint(f"{side}_collar")] = 0, 0, -4 * s
        pose[_joint(f"{side}_shoulder")] = -4, 0, -66 * s
        pose[_joint(f"{side}_elbow")] = 0, -16 * s, 0
        pose[_joint(f"{side}_wrist")] = 0, -4 * s, 0
    return np.radians(pose)


_STANDING: Final = _standing()


def _smooth(x: Array) -> Array:
    """Smootherstep (Perlin 2002): 0 below 0, 1 above 1, between them a quintic with zero first and second
    derivatives at both ends."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * x * (10 + x * (6 * x - 15))


def _smooth_integral(x: Array) -> Array:
    """Integral of ``_smooth`` from 0."""
    c = np.clip(x, 0.0, 1.0)
    return c**4 * (2.5 + c * (c - 3)) + np.maximum(x - 1, 0.0)


def _window(t: Array, length: float, ramp: float) -> Array:
    """Weight of a clip: rises from 0 to 1 over ``ramp`` seconds, and falls to 0 likewise at ``length``."""
    return _smooth(t / ramp) - _smooth((t - (length - ramp)) / ramp)


FADE_S: Final = 0.5
"""Cross-fade of consecutive clips."""

_GAIT_PHASE: Final = np.array([0, 0.07, 0.15, 0.3, 0.4, 0.5, 0.6, 0.72, 0.87, 0.95, 1.0])
_GAIT: Final = MappingProxyType(
    {
        "hip": CubicSpline(_GAIT_PHASE, [26, 25, 20, 6, -3, -9, -4, 15, 30, 29, 26], bc_type="periodic"),
        "knee": CubicSpline(_GAIT_PHASE, [4, 12, 17, 10, 5, 9, 34, 60, 30, 7, 4], bc_type="periodic"),
        "ankle": CubicSpline(_GAIT_PHASE, [0, -5, -1, 6, 10, 8, -16, -4, 1, 1, 0], bc_type="periodic"),
        "toes": CubicSpline(_GAIT_PHASE, [2, 0, 0, 0, 4, 18, 22, 2, 1, 2, 2], bc_type="periodic"),
    }
)
"""Flexion over a gait cycle from heel strike on, degrees, from normal curves (Winter 1991, fig. 3)."""
_GAIT_CYCLE_S: Final = 1.2


def walking(t: Array, length: float, style: Style) -> ClipMotion:
    """Walk for ``length`` seconds, more than twice ``FADE_S``."""
    m, w = _still(len(t)), _window(t, length, FADE_S)
    a = style.amplitude
    phase = t / _GAIT_CYCLE_S + style.phase
    for side, s, shift in (("left", 1.0, 0.0), ("right", -1.0, 0.5)):
        p = (phase + shift) % 1.0
        hip, knee = _leg_angles(p, style)
        _blend(m, w, f"{side}_hip", x=-hip, y=3 * s)
        _blend(m, w, f"{side}_knee", x=knee)
        _blend(m, w, f"{side}_ankle", x=-a * _GAIT["ankle"](p))
        _blend(m, w, f"{side}_foot", x=-a * _GAIT["toes"](p))
        # An arm swings with the opposite leg, and bends as it swings ahead.
        swing = a * np.cos(2 * np.pi * (p - 0.5))
        _blend(m, w, f"{side}_shoulder", x=-20 * swing - 2)
        _blend(m, w, f"{side}_elbow", y=-s * (24 + 10 * swing))
    turn = a * np.cos(2 * np.pi * phase)
    _blend(m, w, "pelvis", x=2, y=-4 * turn)
    _blend(m, w, "spine2", x=2, y=6 * turn)
    _blend(m, w, "neck", y=-2 * turn)

    return replace(m, advance=walked_distance(t, length, style), stride=w)


def _leg_angles(phase: Array | float, style: Style) -> tuple[Array, Array]:
    """Hip and knee flexion in walking, degrees."""
    a = style.amplitude
    return a * _GAIT["hip"](phase), np.maximum(a * _GAIT["knee"](phase), 2.0)


def walking_speed(style: Style) -> float:
    """Speed in full stride, metres per clip second."""

    def reach(phase: float) -> float:
        """Distance of the ankle ahead of the hip, metres."""
        hip, knee = np.radians(_leg_angles(phase, style))
        return float(style.thigh_m * np.sin(hip) + style.shank_m * np.sin(hip - knee))

    return (reach(0.0) - reach(0.5)) / (0.5 * _GAIT_CYCLE_S)


def walked_distance(t: Array, length: Array | float, style: Style) -> Array:
    """Distance ``t`` seconds into a walk of ``length`` seconds, with a smooth start and stop, metres."""
    into, out = _smooth_integral(t / FADE_S), _smooth_integral((t - (length - FADE_S)) / FADE_S)
    return walking_speed(style) * FADE_S * (into - out)


def _squat(t: Array, length: float, style: Style) -> ClipMotion:
    m, w = _still(len(t)), _window(t, length, 0.46 * length) * min(style.amplitude, 1.0)
    # The angles of a leg and the trunk sum to 0, so that the foot stays flat.
    _blend(m, w, "pelvis", x=30)
    _blend(m, w, "spine2", x=6)
    _blend(m, w, "neck", x=-14)
    for side, s in _SIDES:
        _blend(m, w, f"{side}_hip", x=-110, y=6 * s, z=12 * s)
        _blend(m, w, f"{side}_knee", x=105)
        _blend(m, w, f"{side}_ankle", x=-25, z=-4 * s)
        _blend(m, w, f"{side}_shoulder", x=-84, z=-70 * s)
        _blend(m, w, f"{side}_elbow", y=-10 * s)
    return m


def sitting(t: Array, length: float, style: Style) -> ClipMotion:
    """Sit down as on a chair, stay, and get up."""
    m, w = _still(len(t)), _window(t, length, 0.9)
    _blend(m, w, "pelvis", x=12)
    _blend(m, w, "neck", x=-4)
    for side, s in _SIDES:
        _blend(m, w, f"{side}_hip", x=-97, z=5 * s)
        _blend(m, w, f"{side}_knee", x=90)
        _blend(m, w, f"{side}_ankle", x=-5)
        _blend(m, w, f"{side}_shoulder", x=-30)
        _blend(m, w, f"{side}_elbow", y=-48 * s)
    return m


def standing(t: Array, length: float, style: Style) -> ClipMotion:
    """Stand and sway."""
    return _still(len(t))


def _arm_circles(t: Array, length: float, style: Style) -> ClipMotion:
    m, w = _still(len(t)), _window(t, length, FADE_S)
    around = 2 * np.pi * 0.75 * t * style.side
    up, ahead = np.sin(around), np.cos(around)
    for side, s in _SIDES:
        _blend(
            m, w, f"{side}_shoulder",
            x=0, y=-s * (10 + 32 * style.amplitude * ahead), z=s * (8 + 34 * style.amplitude * up),
        )  # fmt: skip
        _blend(m, w, f"{side}_collar", z=s * (2 + 8 * up))
        _blend(m, w, f"{side}_elbow", y=-8 * s)
    _blend(m, w, "spine3", x=2 * up)
    return m


def turning(t: Array, length: float, style: Style, angle: float = np.pi) -> ClipMotion:
    """Turn on the spot by ``angle`` radians, to the left where ``style.side`` is +1.

    length: an integer and a half times the step of 0.8 s.
    """
    m, w = _still(len(t)), _window(t, length, 0.4)
    step = 0.8  # seconds between two steps of a foot
    beat = np.sin(2 * np.pi * t / step) * style.side

    def yaw(time: Array | float) -> Array:
        # From after the first step to before the last, so that both feet end under the body.
        return angle * style.side * _smooth((np.asarray(time) - 0.25 * step) / (length - step))

    for side, s in _SIDES:
        raised = np.maximum(s * beat, 0.0) ** 2 * w
        _blend(m, raised, f"{side}_hip", x=-24)
        _blend(m, raised, f"{side}_knee", x=44)
        _blend(m, raised, f"{side}_ankle", x=-4)
        # A foot on the floor keeps its heading: the hip counter-rotates until the next step.
        counter = -yaw(t)
        for begin in np.arange(0.0 if s == style.side else 0.5 * step, length - 0.5 * step, step):
            before, after = yaw(begin - 0.25 * step), yaw(begin + 0.75 * step)
            counter += (after - before) * _smooth((t - begin) / (0.5 * step))
        m.angles[:, _joint(f"{side}_hip"), 1] += counter
        _blend(m, w, f"{side}_shoulder", x=14 * s * beat)
        _blend(m, w, f"{side}_elbow", y=-34 * s)
    # The head turns first.
    _blend(m, w, "neck", y=14 * style.side)
    _blend(m, w, "spine2", y=8 * style.side)
    return replace(m, yaw=yaw(t), stride=w)


def _jumping_jack(t: Array, length: float, style: Style) -> ClipMotion:
    m, w = _still(len(t)), _window(t, length, FADE_S)
    beat = 2 * np.pi * 0.8 * t
    wide, flight = (1 - np.cos(beat)) / 2 * style.amplitude, np.sin(beat) ** 2
    bend = 8 + 14 * (1 - flight)
    for side, s in _SIDES:
        _blend(m, w, f"{side}_shoulder", z=s * (-66 + 118 * wide))
        _blend(m, w, f"{side}_collar", z=s * (-4 + 20 * wide))
        _blend(m, w, f"{side}_hip", x=-0.5 * bend, z=s * (2 + 18 * wide))
        _blend(m, w, f"{side}_knee", x=bend)
        _blend(m, w, f"{side}_ankle", x=-0.5 * bend, z=-s * (2 + 12 * wide))
    return replace(m, lift=0.05 * flight * w)


def _reach(t: Array, length: float, style: Style) -> ClipMotion:
    m, half = _still(len(t)), 0.55 * length
    for begin, s in ((0.0, style.side), (length - half, -style.side)):
        w, side = _window(t - begin, half, 0.45 * half), "left" if s > 0 else "right"
        _blend(m, w, f"{side}_shoulder", x=-118 * style.amplitude, z=-57 * s)
        _blend(m, w, f"{side}_collar", z=12 * s)
        _blend(m, w, f"{side}_elbow", y=-10 * s)
        _blend(m, w, "spine1", y=-8 * s)
        _blend(m, w, "spine3", y=-10 * s, z=-4.5 * s)
        _blend(m, w, "head", x=-12, y=8 * s)
    return m


def _blend(
    motion: ClipMotion,
    weight: Array,
    joint: str,
    *,
    x: Array | float | None = None,
    y: Array | float | None = None,
    z: Array | float | None = None,
) -> None:
    """Blend a joint from standing to these angles, degrees, by ``weight`` (T,); None leaves an axis."""
    j = _joint(joint)
    for axis, target in enumerate((x, y, z)):
        if target is not None:
            motion.angles[:, j, axis] += weight * (np.radians(target) - _STANDING[j, axis])


@dataclass(frozen=True)
class Clip:
    """A movement that starts and ends in the standing pose."""

    seconds: float
    motion: Callable[[Array, float, Style], ClipMotion]
    """(seconds since the start (T,), length in seconds, style) → motion."""
    turns: bool = False
    """True for a turn."""
    walks: bool = False
    """True for a walk along the arc."""


CLIPS: Final[Mapping[str, Clip]] = MappingProxyType(
    {
        "walk": Clip(2.2, walking, walks=True),
        "squat": Clip(2.2, _squat),
        "arm_circles": Clip(3.0, _arm_circles),
        "turn": Clip(2.8, turning, turns=True),
        "jumping_jack": Clip(3.2, _jumping_jack),
        "reach": Clip(2.6, _reach),
    }
)


@dataclass(frozen=True)
class Arc:
    """Circle along which a person walks."""

    centre: Array
    """(2,) metres, world."""
    radius: float
    """Metres."""
    bearing: float
    """Radians: direction from the centre to the point where distances, positive to the left, are 0."""


@dataclass(frozen=True)
class PlannedClip:
    """A clip of a plan, and its start. Walks on the same arc share it; a walk on another arc starts after the
    end of the walk and the turn before it."""

    clip: Clip
    start_s: float
    """Time in the recording."""
    distance_m: float
    """Signed distance along the arc at the start."""
    yaw: float
    """Radians between the arc's tangent and the heading at the start."""
    direction: float
    """+1 or −1: direction along the arc that is ahead."""
    arc: Arc


@dataclass(frozen=True)
class Person:
    """Synthetic person: a shape, a style, and a plan of movements."""

    betas: Array
    """(B,)"""
    style: Style
    posture: Array
    """(J, 3) radians: individual offsets of the standing pose."""
    sway: Array
    """(3, J, 3) amplitude (radians), frequency (Hz) and phase of a constant small movement."""
    soles: Array
    """(6, 3) metres, from each foot keypoint to the sole below it, in the frame of the foot."""
    plan: tuple[PlannedClip, ...]
    absences_s: tuple[tuple[float, float], ...] = ()
    """Times from and to which the person is absent, in order."""

    def present(self, time_s: Array) -> NDArray[np.bool_]:
        """(T,) true while the person is present."""
        absences = np.array(self.absences_s).reshape(-1, 2)
        k = np.searchsorted(absences[:, 0], time_s, side="right") - 1
        ends = np.concatenate([absences[:, 1], [-np.inf]])  # k = −1, before the first, takes −inf
        return np.asarray(time_s >= ends[k])


_FEET: Final = ("LBigToe", "LSmallToe", "LHeel", "RBigToe", "RSmallToe", "RHeel")
_FOOT_POINTS: Final = tuple(BODY_25.index(n) for n in _FEET)
_FOOT_PARTS: Final = tuple(
    _joint(("left" if n[0] == "L" else "right") + ("_ankle" if "Heel" in n else "_foot")) for n in _FEET
)
"""Joint that carries each foot keypoint."""

_VARIATION_DEG: Final = {"shoulder": 4.0, "wrist": 4.0, "head": 4.0, "spine": 2.0, "neck": 2.0, "collar": 2.0}
_VARIATION: Final = np.radians(
    [[_VARIATION_DEG.get(n.rpartition("_")[2].rstrip("123"), 0.0)] for n in SMPL_24.names]
)
"""(J, 1) radians by which joints vary between people and sway; 0 for the legs, so that feet stay in place."""

_RADIUS_M: Final = 1.7
"""Space around the middle of a path: half the path and an arm."""


def make_people(count: int, seconds: float, seed: int, body: Body) -> tuple[Person, ...]:
    """Make people who move for ``seconds``, each at a separate place. Equal seeds give equal people."""
    ring = _RADIUS_M / np.sin(np.pi / count) if count > 1 else 0.0
    around = 2 * np.pi * np.arange(count) / count
    homes = ring * np.stack([np.cos(around), np.sin(around)], -1)
    return tuple(_make_person(seconds, homes[p], [seed, 2, p], body) for p in range(count))


def _make_person(seconds: float, home: Array, seed: Sequence[int], body: Body) -> Person:
    rng = np.random.default_rng(seed)
    betas = np.clip(rng.normal(0.0, 0.7, body.num_betas), -1.5, 1.5)
    eye = torch.eye(3, dtype=torch.float64).expand(1, len(SMPL_24), 3, 3)
    origin = torch.zeros(1, 3, dtype=torch.float64)
    shape = torch.from_numpy(betas)
    joints, points = (x[0].numpy() for x in pose_keypoints(body.keypoints, eye, shape, origin))
    skin = body.vertices(eye[:, 0], eye[:, 1:], shape, origin)[0].numpy()
    style = Style(
        speed=rng.uniform(0.85, 1.15),
        amplitude=rng.uniform(0.8, 1.05),
        phase=rng.uniform(0, 1),
        side=rng.choice([-1.0, 1.0]),
        thigh_m=float(np.linalg.norm(joints[_joint("left_knee")] - joints[_joint("left_hip")])),
        shank_m=float(np.linalg.norm(joints[_joint("left_ankle")] - joints[_joint("left_knee")])),
    )
    each = (len(SMPL_24), 3)
    sway = np.stack(
        [
            0.7 * _VARIATION * rng.uniform(0.3, 1.0, each),
            rng.uniform(0.15, 0.6, each),
            rng.uniform(0, 2 * np.pi, each),
        ]
    )
    soles = np.zeros((6, 3))
    for i, k in enumerate(_FOOT_POINTS):
        near = np.hypot(*(skin - points[k])[:, [0, 2]].T) < 0.03
        soles[i, 1] = skin[near, 1].min() - points[k, 1]
    radius, bearing = rng.uniform(1.4, 3.0), rng.uniform(0, 2 * np.pi)
    centre = home - radius * np.array([np.cos(bearing), np.sin(bearing)])
    return Person(
        betas=betas,
        style=style,
        posture=0.8 * _VARIATION * np.clip(rng.normal(size=each), -2, 2),
        sway=sway,
        soles=soles,
        plan=_plan(seconds, style, Arc(centre, radius, bearing), rng),
    )


def _plan(seconds: float, style: Style, arc: Arc, rng: np.random.Generator) -> tuple[PlannedClip, ...]:
    """Plan walks up and down an arc and other clips in random order, each cross-faded with the next, and a
    turn before a walk that would leave the arc."""
    walk_m = float(walking(np.array([CLIPS["walk"].seconds]), CLIPS["walk"].seconds, style).advance[0])
    # The first clip starts before the recording.
    start_s, distance_m, yaw, direction = -rng.uniform(0.4, 0.9), -0.5 * walk_m, 0.0, 1.0
    plan: list[PlannedClip] = []
    names: list[str] = []
    while start_s < seconds:
        if not names:
            names = [str(n) for n in rng.permutation(list(CLIPS))]
            if not plan:  # a short recording has a walk, too
                names.remove("walk")
                names.insert(0, "walk")
        clip = CLIPS[names.pop(0)]
        if clip.walks and distance_m * direction > 0:
            names.insert(0, "walk")
            clip = CLIPS["turn"]
        plan.append(PlannedClip(clip, start_s, distance_m, yaw, direction, arc))
        end = clip.motion(np.array([clip.seconds]), clip.seconds, style)
        distance_m += direction * float(end.advance[0])
        yaw += float(end.yaw[0])
        direction = -direction if clip.turns else direction
        start_s += (clip.seconds - FADE_S) / style.speed
    return tuple(plan)


def _sum_clips(plan: Sequence[PlannedClip], style: Style, t: Array) -> tuple[ClipMotion, Array, Array, Array]:
    """Sum of the clips at times ``t`` (T,), bearing on the arc and yaw against it (T,), radians, and position
    (T, 2), metres, world."""
    motion, bearing, yaw, path = _still(len(t)), np.zeros(len(t)), np.zeros(len(t)), np.zeros((len(t), 2))
    for i, (_, group) in enumerate(groupby(plan, key=lambda s: id(s.arc))):
        segments = tuple(group)
        first, arc = segments[0], segments[0].arc
        distance_m, arc_yaw = np.full(len(t), first.distance_m), np.full(len(t), first.yaw)
        for s in segments:
            part = s.clip.motion((t - s.start_s) * style.speed, s.clip.seconds, style)
            motion = motion + part
            distance_m, arc_yaw = distance_m + s.direction * part.advance, arc_yaw + part.yaw
        arc_bearing = arc.bearing + distance_m / arc.radius
        position = arc.centre + arc.radius * np.stack([np.cos(arc_bearing), np.sin(arc_bearing)], -1)
        started = t >= (first.start_s if i else -np.inf)
        bearing, yaw = np.where(started, arc_bearing, bearing), np.where(started, arc_yaw, yaw)
        path = np.where(started[:, None], position, path)
    return motion, bearing, yaw, path


def animate(person: Person, body: Body, time_s: Array) -> tuple[Array, Array]:
    """Pose a person at times (T,) of the recording, seconds.

    Returns SMPL rotations (T, J, 3, 3), the root's body → world and others relative to their parents, and
    ``transl`` (T, 3), metres. The lowest point of the feet is on the floor, except in a jump.
    """
    t = np.asarray(time_s, np.float64)
    first, stop = (bisect([s.start_s for s in person.plan], x) for x in (t.min(), t.max()))
    plan = person.plan[max(first - 2, 0) : stop]  # at most two clips overlap
    motion, bearing, yaw, path = _sum_clips(plan, person.style, t)
    amplitude, frequency, phase = person.sway
    sway = amplitude * np.sin(2 * np.pi * frequency * t[:, None, None] + phase)
    angles = _STANDING + person.posture + motion.angles + sway
    local = roma.euler_to_rotmat("XYZ", torch.from_numpy(angles)).numpy()

    heading = bearing + np.pi + yaw  # the body faces −y of the world at heading 0
    turns = np.stack([heading, np.full_like(heading, np.pi / 2)], -1)  # upright, then about the vertical
    local[:, 0] = roma.euler_to_rotmat("ZX", torch.from_numpy(turns)).numpy() @ local[:, 0]

    transl = np.zeros((len(t), 3))
    joints, points = _keypoints(person, body, local, transl)
    # In squatting and bending the hips move over fixed feet; in walking the hips follow the path.
    feet = joints[:, [_joint("left_ankle"), _joint("right_ankle")]].mean(1)
    pelvis = joints[:, 0]
    shift = (1 - motion.stride)[:, None] * (feet - pelvis)[:, :2]
    transl[:, :2] = path - pelvis[:, :2] - shift
    worlds, _ = forward_kinematics(torch.from_numpy(local), torch.zeros(len(SMPL_24), 3, dtype=torch.float64))
    parts = worlds[:, list(_FOOT_PARTS)].numpy()
    soles = points[:, _FOOT_POINTS, 2] + np.einsum("tfij,fj->tfi", parts, person.soles)[..., 2]
    transl[:, 2] = motion.lift - _soft_minimum(soles)
    return local, transl


def _keypoints(person: Person, body: Body, rotations: Array, transl: Array) -> tuple[Array, Array]:
    """Joints (T, J, 3) and keypoints (T, K, 3), metres, world."""
    pose = (torch.from_numpy(x) for x in (rotations, person.betas, transl))
    joints, points = pose_keypoints(body.keypoints, *pose)
    return joints.numpy(), points.numpy()


_SOFT_MINIMUM_M: Final = 0.006
"""Height difference over which the lowest point of the feet changes."""


def _soft_minimum(heights: Array) -> Array:
    """Smooth minimum of (T, 6) sole heights.

    Exact for three equal heights, a flat foot; two feet end 4 mm above the floor and a single toe 7 mm in it.
    """
    lowest = heights.min(1, keepdims=True)
    total = np.exp(-(heights - lowest) / _SOFT_MINIMUM_M).sum(1)
    return np.asarray(lowest[:, 0] - _SOFT_MINIMUM_M * np.log(total / 3))


def region_corners(people: Sequence[Person], body: Body, seconds: float) -> Array:
    """Corners (N, 3) of a convex region, metres, world, that contains the people for ``seconds``."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(240, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    corners = np.full((240, 3), np.nan)
    furthest = np.full(240, -np.inf)
    for person in people:
        for begin in np.arange(0.0, seconds, 10.0):
            times = np.arange(begin, min(begin + 10.0, seconds) + 0.05, 0.1)
            rotations, transl = animate(person, body, times)
            x = np.concatenate(_keypoints(person, body, rotations, transl), 1).reshape(-1, 3)
            along = x @ directions.T
            best = along.argmax(0)
            is_further = along[best, np.arange(240)] > furthest
            furthest = np.where(is_further, along[best, np.arange(240)], furthest)
            corners = np.where(is_further[:, None], x[best], corners)
    # Fingertips and the top of the head are up to 0.18 m further out than joints and keypoints.
    return corners + 0.18 * directions
