"""Synthetic people: motion clips as code, chained into a plan, as SMPL parameters over time.

Everything is a function of time alone, so any window of frames can be made, and made again, without the ones
before it. The world is in metres with Z up and the floor at z = 0.

ClipMotion is authored as Euler angles (X·Y·Z, in the frames of the T-pose: x left, y up, z ahead). A positive
turn about x bends a knee, pitches the trunk ahead and points the toes down; a negative one lifts a thigh or a
hanging arm ahead. Elbows bend about y, the left one with a negative angle.
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
from pipeline.skeleton import BODY_25, SMPL_24

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Style:
    """Manner in which one person moves."""

    speed: float
    """Clip seconds a second."""
    amplitude: float
    """Scale of the large movements."""
    phase: float
    """Where in the gait cycle walking starts, 0–1."""
    side: float
    """+1 or −1: which side goes first."""
    thigh: float
    shank: float
    """Metres: they set how far a step goes."""


@dataclass(frozen=True)
class ClipMotion:
    """Movement that a clip adds to a person who stands still. Those of overlapping clips add up."""

    angles: Array
    """(T, J, 3) Euler angles, radians."""
    advance: Array
    """(T,) metres gone ahead."""
    yaw: Array
    """(T,) radians turned to the left."""
    lift: Array
    """(T,) metres that the lowest point of the feet is above the floor."""
    stride: Array
    """(T,) 1 where the body goes over the feet, as in walking, 0 where it stays above them."""

    def __add__(self, other: ClipMotion) -> ClipMotion:
        return ClipMotion(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def _still(frames: int) -> ClipMotion:
    zero = np.zeros(frames)
    return ClipMotion(np.zeros((frames, len(SMPL_24), 3)), zero, zero.copy(), zero.copy(), zero.copy())


def _joint(name: str) -> int:
    return SMPL_24.index(name)


_SIDES: Final = (("left", 1.0), ("right", -1.0))
"""A side, and the sign that an angle about y or z has there to mean the same."""


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
    """0 below 0, 1 above 1, a quintic with two vanishing derivatives at both ends between."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * x * (10 + x * (6 * x - 15))


def _smooth_integral(x: Array) -> Array:
    c = np.clip(x, 0.0, 1.0)
    return c**4 * (2.5 + c * (c - 3)) + np.maximum(x - 1, 0.0)


def _window(t: Array, length: float, ramp: float) -> Array:
    """Rises from 0 to 1 over ``ramp`` seconds and falls back to reach 0 at ``length``."""
    return _smooth(t / ramp) - _smooth((t - (length - ramp)) / ramp)


RAMP: Final = 0.5
"""Seconds over which a clip fades in while the one before it fades out."""

_PHASE: Final = np.array([0, 0.07, 0.15, 0.3, 0.4, 0.5, 0.6, 0.72, 0.87, 0.95, 1.0])
_GAIT: Final = MappingProxyType(
    {
        "hip": CubicSpline(_PHASE, [26, 25, 20, 6, -3, -9, -4, 15, 30, 29, 26], bc_type="periodic"),
        "knee": CubicSpline(_PHASE, [4, 12, 17, 10, 5, 9, 34, 60, 30, 7, 4], bc_type="periodic"),
        "ankle": CubicSpline(_PHASE, [0, -5, -1, 6, 10, 8, -16, -4, 1, 1, 0], bc_type="periodic"),
        "toes": CubicSpline(_PHASE, [2, 0, 0, 0, 4, 18, 22, 2, 1, 2, 2], bc_type="periodic"),
    }
)
"""Flexion in degrees over a gait cycle from heel strike on, read off normal curves (Winter 1991, fig. 3)."""
_GAIT_SECONDS: Final = 1.2


def walking(t: Array, length: float, style: Style) -> ClipMotion:
    """Walk for ``length`` seconds, more than twice ``RAMP``."""
    m, w = _still(len(t)), _window(t, length, RAMP)
    a = style.amplitude
    phase = t / _GAIT_SECONDS + style.phase
    for side, s, shift in (("left", 1.0, 0.0), ("right", -1.0, 0.5)):
        p = (phase + shift) % 1.0
        hip, knee = _leg_angles(p, style)
        _toward(m, w, f"{side}_hip", x=-hip, y=3 * s)
        _toward(m, w, f"{side}_knee", x=knee)
        _toward(m, w, f"{side}_ankle", x=-a * _GAIT["ankle"](p))
        _toward(m, w, f"{side}_foot", x=-a * _GAIT["toes"](p))
        # An arm swings with the leg of the other side, and bends as it comes ahead.
        swing = a * np.cos(2 * np.pi * (p - 0.5))
        _toward(m, w, f"{side}_shoulder", x=-20 * swing - 2)
        _toward(m, w, f"{side}_elbow", y=-s * (24 + 10 * swing))
    turn = a * np.cos(2 * np.pi * phase)
    _toward(m, w, "pelvis", x=2, y=-4 * turn)
    _toward(m, w, "spine2", x=2, y=6 * turn)
    _toward(m, w, "neck", y=-2 * turn)

    return replace(m, advance=walked(t, length, style), stride=w)


def _leg_angles(phase: Array | float, style: Style) -> tuple[Array, Array]:
    """Hip and knee flexion of walking, degrees."""
    a = style.amplitude
    return a * _GAIT["hip"](phase), np.maximum(a * _GAIT["knee"](phase), 2.0)


def pace(style: Style) -> float:
    """Metres that somebody walks in a second of a clip, once in full stride."""

    def reach(phase: float) -> float:
        """Metres that the ankle is ahead of the hip."""
        hip, knee = np.radians(_leg_angles(phase, style))
        return float(style.thigh * np.sin(hip) + style.shank * np.sin(hip - knee))

    return (reach(0.0) - reach(0.5)) / (0.5 * _GAIT_SECONDS)


def walked(t: Array, length: Array | float, style: Style) -> Array:
    """Metres gone ``t`` seconds into a walk of ``length`` seconds, with a start and a stop."""
    into, out = _smooth_integral(t / RAMP), _smooth_integral((t - (length - RAMP)) / RAMP)
    return pace(style) * RAMP * (into - out)


def _squat(t: Array, length: float, style: Style) -> ClipMotion:
    m, w = _still(len(t)), _window(t, length, 0.46 * length) * min(style.amplitude, 1.0)
    # The angles of a leg add up to the trunk's, so that the foot stays flat.
    _toward(m, w, "pelvis", x=30)
    _toward(m, w, "spine2", x=6)
    _toward(m, w, "neck", x=-14)
    for side, s in _SIDES:
        _toward(m, w, f"{side}_hip", x=-110, y=6 * s, z=12 * s)
        _toward(m, w, f"{side}_knee", x=105)
        _toward(m, w, f"{side}_ankle", x=-25, z=-4 * s)
        _toward(m, w, f"{side}_shoulder", x=-84, z=-70 * s)
        _toward(m, w, f"{side}_elbow", y=-10 * s)
    return m


def sitting(t: Array, length: float, style: Style) -> ClipMotion:
    """Sit down as on a chair, stay and get up: the feet stay where they are."""
    m, w = _still(len(t)), _window(t, length, 0.9)
    _toward(m, w, "pelvis", x=12)
    _toward(m, w, "neck", x=-4)
    for side, s in _SIDES:
        _toward(m, w, f"{side}_hip", x=-97, z=5 * s)
        _toward(m, w, f"{side}_knee", x=90)
        _toward(m, w, f"{side}_ankle", x=-5)
        _toward(m, w, f"{side}_shoulder", x=-30)
        _toward(m, w, f"{side}_elbow", y=-48 * s)
    return m


def standing(t: Array, length: float, style: Style) -> ClipMotion:
    """Stand and sway."""
    return _still(len(t))


def _arm_circles(t: Array, length: float, style: Style) -> ClipMotion:
    m, w = _still(len(t)), _window(t, length, RAMP)
    around = 2 * np.pi * 0.75 * t * style.side
    up, ahead = np.sin(around), np.cos(around)
    for side, s in _SIDES:
        _toward(
            m, w, f"{side}_shoulder",
            x=0, y=-s * (10 + 32 * style.amplitude * ahead), z=s * (8 + 34 * style.amplitude * up),
        )  # fmt: skip
        _toward(m, w, f"{side}_collar", z=s * (2 + 8 * up))
        _toward(m, w, f"{side}_elbow", y=-8 * s)
    _toward(m, w, "spine3", x=2 * up)
    return m


def turning(t: Array, length: float, style: Style, angle: float = np.pi) -> ClipMotion:
    """Turn on the spot by ``angle`` radians, to the left where ``style.side`` is +1.

    length: half a step of 0.8 s more than a whole number of them.
    """
    m, w = _still(len(t)), _window(t, length, 0.4)
    step = 0.8  # seconds from one step of a foot to its next
    beat = np.sin(2 * np.pi * t / step) * style.side

    def yaw(at: Array | float) -> Array:
        # It begins after the first step and ends before the last, so that both feet end up under the body.
        return angle * style.side * _smooth((np.asarray(at) - 0.25 * step) / (length - step))

    for side, s in _SIDES:
        raised = np.maximum(s * beat, 0.0) ** 2 * w
        _toward(m, raised, f"{side}_hip", x=-24)
        _toward(m, raised, f"{side}_knee", x=44)
        _toward(m, raised, f"{side}_ankle", x=-4)
        # A foot on the floor keeps its heading: the hip turns against the body until the next step.
        against = -yaw(t)
        for begin in np.arange(0.0 if s == style.side else 0.5 * step, length - 0.5 * step, step):
            before, after = yaw(begin - 0.25 * step), yaw(begin + 0.75 * step)
            against += (after - before) * _smooth((t - begin) / (0.5 * step))
        m.angles[:, _joint(f"{side}_hip"), 1] += against
        _toward(m, w, f"{side}_shoulder", x=14 * s * beat)
        _toward(m, w, f"{side}_elbow", y=-34 * s)
    # The head looks where the body is about to go.
    _toward(m, w, "neck", y=14 * style.side)
    _toward(m, w, "spine2", y=8 * style.side)
    return replace(m, yaw=yaw(t), stride=w)


def _jumping_jack(t: Array, length: float, style: Style) -> ClipMotion:
    m, w = _still(len(t)), _window(t, length, RAMP)
    beat = 2 * np.pi * 0.8 * t
    wide, flight = (1 - np.cos(beat)) / 2 * style.amplitude, np.sin(beat) ** 2
    bend = 8 + 14 * (1 - flight)
    for side, s in _SIDES:
        _toward(m, w, f"{side}_shoulder", z=s * (-66 + 118 * wide))
        _toward(m, w, f"{side}_collar", z=s * (-4 + 20 * wide))
        _toward(m, w, f"{side}_hip", x=-0.5 * bend, z=s * (2 + 18 * wide))
        _toward(m, w, f"{side}_knee", x=bend)
        _toward(m, w, f"{side}_ankle", x=-0.5 * bend, z=-s * (2 + 12 * wide))
    return replace(m, lift=0.05 * flight * w)


def _reach(t: Array, length: float, style: Style) -> ClipMotion:
    m, half = _still(len(t)), 0.55 * length
    for begin, s in ((0.0, style.side), (length - half, -style.side)):
        w, side = _window(t - begin, half, 0.45 * half), "left" if s > 0 else "right"
        _toward(m, w, f"{side}_shoulder", x=-118 * style.amplitude, z=-57 * s)
        _toward(m, w, f"{side}_collar", z=12 * s)
        _toward(m, w, f"{side}_elbow", y=-10 * s)
        _toward(m, w, "spine1", y=-8 * s)
        _toward(m, w, "spine3", y=-10 * s, z=-4.5 * s)
        _toward(m, w, "head", x=-12, y=8 * s)
    return m


def _toward(
    motion: ClipMotion,
    weight: Array,
    joint: str,
    *,
    x: Array | float | None = None,
    y: Array | float | None = None,
    z: Array | float | None = None,
) -> None:
    """Go ``weight`` (T,) of the way from standing to these angles, degrees; None leaves an axis as it is."""
    j = _joint(joint)
    for axis, target in enumerate((x, y, z)):
        if target is not None:
            motion.angles[:, j, axis] += weight * (np.radians(target) - _STANDING[j, axis])


@dataclass(frozen=True)
class Clip:
    """A movement that starts and ends in the standing pose."""

    seconds: float
    motion: Callable[[Array, float, Style], ClipMotion]
    """(seconds since its start (T,), its length, style) → what it adds."""
    turns: bool = False
    """The person faces the other way afterwards."""
    goes: bool = False
    """The person is at the other end of the path afterwards."""


CLIPS: Final[Mapping[str, Clip]] = MappingProxyType(
    {
        "walk": Clip(2.2, walking, goes=True),
        "squat": Clip(2.2, _squat),
        "arm_circles": Clip(3.0, _arm_circles),
        "turn": Clip(2.8, turning, turns=True),
        "jumping_jack": Clip(3.2, _jumping_jack),
        "reach": Clip(2.6, _reach),
    }
)


@dataclass(frozen=True)
class Arc:
    """Circle along which somebody walks."""

    middle: Array
    """(2,) metres, world."""
    radius: float
    """Metres."""
    bearing: float
    """Radians: from the middle to the point from which metres are counted, to the left."""


@dataclass(frozen=True)
class Segment:
    """A clip of a plan, and where it starts. Several walks on one arc share it; a walk on another arc starts
    when the walk and the turn before it have come to their ends."""

    clip: Clip
    start: float
    """Seconds of the recording."""
    gone: float
    """Metres gone on the arc, with sign, when the clip starts."""
    turned: float
    """Radians between the arc and the way that the person faces when the clip starts."""
    ahead: float
    """+1 or −1: which way on the arc is ahead."""
    arc: Arc


@dataclass(frozen=True)
class Person:
    """A made-up person: a shape, a style, and a plan of movements."""

    betas: Array
    """(B,)"""
    style: Style
    posture: Array
    """(J, 3) radians: how this person stands, against the standard pose."""
    sway: Array
    """(3, J, 3) amplitude (radians), frequency (Hz) and phase of the small movements that never stop."""
    soles: Array
    """(6, 3) metres, from each foot keypoint to the sole below it, in the frame of the foot."""
    plan: tuple[Segment, ...]
    away: tuple[tuple[float, float], ...] = ()
    """Seconds from and to which the person is not there, in order."""

    def present(self, time_s: Array) -> NDArray[np.bool_]:
        """(T,) whether the person is there."""
        gone = np.array(self.away).reshape(-1, 2)
        k = np.searchsorted(gone[:, 0], time_s, side="right") - 1
        ends = np.concatenate([gone[:, 1], [-np.inf]])  # the last of them for whoever has not left yet
        return np.asarray(time_s >= ends[k])


_FEET: Final = ("LBigToe", "LSmallToe", "LHeel", "RBigToe", "RSmallToe", "RHeel")
_FOOT_POINTS: Final = tuple(BODY_25.index(n) for n in _FEET)
_FOOT_PARTS: Final = tuple(
    _joint(("left" if n[0] == "L" else "right") + ("_ankle" if "Heel" in n else "_foot")) for n in _FEET
)
"""The joint that carries each of them."""

_LOOSE_DEG: Final = {"shoulder": 4.0, "wrist": 4.0, "head": 4.0, "spine": 2.0, "neck": 2.0, "collar": 2.0}
_LOOSE: Final = np.radians([[_LOOSE_DEG.get(n.rpartition("_")[2].rstrip("123"), 0.0)] for n in SMPL_24.names])
"""(J, 1) radians by which joints vary between people and sway. Not the legs: feet stay where they are."""

_SPACE: Final = 1.7
"""Metres around the middle of the path that a person may need: half the path and an arm."""


def make_people(count: int, seconds: float, seed: int, body: Body) -> tuple[Person, ...]:
    """People who move for ``seconds``, each in a place of their own. The same seed gives the same people."""
    ring = _SPACE / np.sin(np.pi / count) if count > 1 else 0.0
    around = 2 * np.pi * np.arange(count) / count
    homes = ring * np.stack([np.cos(around), np.sin(around)], -1)
    return tuple(_make_person(seconds, homes[p], [seed, 2, p], body) for p in range(count))


def _make_person(seconds: float, home: Array, seed: Sequence[int], body: Body) -> Person:
    rng = np.random.default_rng(seed)
    betas = np.clip(rng.normal(0.0, 0.7, body.num_betas), -1.5, 1.5)
    eye = torch.eye(3, dtype=torch.float64).expand(1, len(SMPL_24), 3, 3)
    nowhere = torch.zeros(1, 3, dtype=torch.float64)
    shape = torch.from_numpy(betas)
    joints, points = (x[0].numpy() for x in pose_keypoints(body.keypoints, eye, shape, nowhere))
    skin = body.vertices(eye[:, 0], eye[:, 1:], shape, nowhere)[0].numpy()
    style = Style(
        speed=rng.uniform(0.85, 1.15),
        amplitude=rng.uniform(0.8, 1.05),
        phase=rng.uniform(0, 1),
        side=rng.choice([-1.0, 1.0]),
        thigh=float(np.linalg.norm(joints[_joint("left_knee")] - joints[_joint("left_hip")])),
        shank=float(np.linalg.norm(joints[_joint("left_ankle")] - joints[_joint("left_knee")])),
    )
    each = (len(SMPL_24), 3)
    sway = np.stack(
        [
            0.7 * _LOOSE * rng.uniform(0.3, 1.0, each),
            rng.uniform(0.15, 0.6, each),
            rng.uniform(0, 2 * np.pi, each),
        ]
    )
    soles = np.zeros((6, 3))
    for i, k in enumerate(_FOOT_POINTS):
        below = np.hypot(*(skin - points[k])[:, [0, 2]].T) < 0.03
        soles[i, 1] = skin[below, 1].min() - points[k, 1]
    radius, bearing = rng.uniform(1.4, 3.0), rng.uniform(0, 2 * np.pi)
    middle = home - radius * np.array([np.cos(bearing), np.sin(bearing)])
    return Person(
        betas=betas,
        style=style,
        posture=0.8 * _LOOSE * np.clip(rng.normal(size=each), -2, 2),
        sway=sway,
        soles=soles,
        plan=_plan(seconds, style, Arc(middle, radius, bearing), rng),
    )


def _plan(seconds: float, style: Style, arc: Arc, rng: np.random.Generator) -> tuple[Segment, ...]:
    """Walks up and down an arc, and clips between them in random order, each fading into the next; who is to
    walk faces along the arc first."""
    way = float(walking(np.array([CLIPS["walk"].seconds]), CLIPS["walk"].seconds, style).advance[0])
    # The first clip is under way when the recording starts.
    start, gone, turned, ahead = -rng.uniform(0.4, 0.9), -0.5 * way, 0.0, 1.0
    plan: list[Segment] = []
    names: list[str] = []
    while start < seconds:
        if not names:
            names = [str(n) for n in rng.permutation(list(CLIPS))]
            if not plan:  # a short recording shall show more than arms that move
                names.remove("walk")
                names.insert(0, "walk")
        clip = CLIPS[names.pop(0)]
        if clip.goes and gone * ahead > 0:
            names.insert(0, "walk")
            clip = CLIPS["turn"]
        plan.append(Segment(clip, start, gone, turned, ahead, arc))
        end = clip.motion(np.array([clip.seconds]), clip.seconds, style)
        gone += ahead * float(end.advance[0])
        turned += float(end.yaw[0])
        ahead = -ahead if clip.turns else ahead
        start += (clip.seconds - RAMP) / style.speed
    return tuple(plan)


def _along(plan: Sequence[Segment], style: Style, t: Array) -> tuple[ClipMotion, Array, Array, Array]:
    """Sum of the clips at times ``t`` (T,), and where on their arcs the person is: radians around the middle
    (T,), radians turned against the arc (T,), and metres (T, 2) in the world."""
    motion, around, turned, path = _still(len(t)), np.zeros(len(t)), np.zeros(len(t)), np.zeros((len(t), 2))
    for i, (_, group) in enumerate(groupby(plan, key=lambda s: id(s.arc))):
        segments = tuple(group)
        first, arc = segments[0], segments[0].arc
        gone, yaw = np.full(len(t), first.gone), np.full(len(t), first.turned)
        for s in segments:
            part = s.clip.motion((t - s.start) * style.speed, s.clip.seconds, style)
            motion, gone, yaw = motion + part, gone + s.ahead * part.advance, yaw + part.yaw
        at = arc.bearing + gone / arc.radius
        place = arc.middle + arc.radius * np.stack([np.cos(at), np.sin(at)], -1)
        begun = t >= (first.start if i else -np.inf)
        around, turned = np.where(begun, at, around), np.where(begun, yaw, turned)
        path = np.where(begun[:, None], place, path)
    return motion, around, turned, path


def animate(person: Person, body: Body, time_s: Array) -> tuple[Array, Array]:
    """A person at some times of the recording (T,), in seconds.

    Returns the SMPL rotations (T, J, 3, 3), the root's from body to world and the others' relative to their
    parents, and ``transl`` (T, 3) in metres. The lowest point of the feet is on the floor, except in a jump.
    """
    t = np.asarray(time_s, np.float64)
    first, stop = (bisect([s.start for s in person.plan], x) for x in (t.min(), t.max()))
    plan = person.plan[max(first - 2, 0) : stop]  # at most two overlap, the one under way and the one before
    motion, around, turned, path = _along(plan, person.style, t)
    amplitude, frequency, phase = person.sway
    swaying = amplitude * np.sin(2 * np.pi * frequency * t[:, None, None] + phase)
    angles = _STANDING + person.posture + motion.angles + swaying
    local = roma.euler_to_rotmat("XYZ", torch.from_numpy(angles)).numpy()

    heading = around + np.pi + turned  # the body faces −y of the world at heading 0
    turns = np.stack([heading, np.full_like(heading, np.pi / 2)], -1)  # upright, then about the vertical
    local[:, 0] = roma.euler_to_rotmat("ZX", torch.from_numpy(turns)).numpy() @ local[:, 0]

    transl = np.zeros((len(t), 3))
    joints, points = _keypoints(person, body, local, transl)
    # Squatting and bending move the hips, not the feet; in walking the feet move and the hips go evenly.
    feet = joints[:, [_joint("left_ankle"), _joint("right_ankle")]].mean(1)
    pelvis = joints[:, 0]
    held = (1 - motion.stride)[:, None] * (feet - pelvis)[:, :2]
    transl[:, :2] = path - pelvis[:, :2] - held
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


_SOFT_M: Final = 0.006
"""Difference of height over which another point of the feet becomes the lowest."""


def _soft_minimum(heights: Array) -> Array:
    """Minimum of (T, 6) sole heights, without a kink where another point becomes the lowest.

    Half of the points count, so that a foot that is flat on the floor is exact, two feet end 4 mm above it
    and a single toe 7 mm in it.
    """
    lowest = heights.min(1, keepdims=True)
    total = np.exp(-(heights - lowest) / _SOFT_M).sum(1)
    return np.asarray(lowest[:, 0] - _SOFT_M * np.log(total / 3))


def reached(people: Sequence[Person], body: Body, seconds: float) -> Array:
    """Corners (N, 3) of a convex region, metres, world, that the people do not leave within ``seconds``."""
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
            further = along[best, np.arange(240)] > furthest
            furthest = np.where(further, along[best, np.arange(240)], furthest)
            corners = np.where(further[:, None], x[best], corners)
    # Fingertips and the top of the head are this much further out than any joint or keypoint.
    return corners + 0.18 * directions
