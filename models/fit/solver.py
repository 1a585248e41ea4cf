"""Levenberg–Marquardt over motions: SMPLify over time and views.

``fit`` takes calibrated cameras. ``fit_uncalibrated`` takes cameras of which only the intrinsics are known:
every view is a problem with a root of its own, and the problems of one person are solved as one that share
joints and shape, their normal equations added up where the unknowns are the same.

Unknown are, for every frame, the root translation and the local rotations; and for every problem, if its
shape is free, the betas and an offset for every keypoint of the body (detectors define points differently).
One thread is fastest for one problem: run several in several processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import roma
import torch
from torch import Tensor

from models.body import KeypointBody
from models.fit.energy import State, evaluate_energy
from models.fit.factor import step
from models.fit.problem import FitSettings, Motion, Problem, Schedule, Views, prepare
from models.fit.system import linearise, share, split
from models.rotations import product


@dataclass(frozen=True)
class Fit:
    motion: Motion
    energy: Tensor
    """(N,) at the last robust scale (float64)."""
    iterations: int
    """Linear systems solved, of the problem that took longest."""


@dataclass(frozen=True)
class UncalibratedMotion:
    """Bodies over time in the frames of V uncalibrated cameras."""

    body_pose: Tensor
    """(N, T, 23, 3, 3) joint → parent."""
    view_orient: Tensor
    """(N, V, T, 3, 3) root → camera."""
    view_transl: Tensor
    """(N, V, T, 3) metres, camera: the root joint lies at J₀(β) + view_transl."""
    betas: Tensor
    """(N, B)"""
    offsets: Tensor
    """(N, K, 3) metres, added to the rest keypoints."""


@dataclass(frozen=True)
class UncalibratedFit:
    motion: UncalibratedMotion
    energy: Tensor
    """(N,) at the last robust scale (float64)."""
    iterations: int
    """Linear systems solved, of the problem that took longest."""


def fit(body: KeypointBody, views: Views, start: Motion, settings: FitSettings) -> Fit:
    """Fit N motions to the keypoints of calibrated cameras.

    start: where to begin, its first ``settings.held`` frames final already. Joints that no keypoint shows to
    turn (hands, toes) stay as they start. The result has the dtype and device of ``views.xy_px``.
    Deterministic on one thread.
    """
    if settings.held and settings.free_shape:
        raise ValueError(
            f"the shape must be known where frames are held, got held={settings.held} with a free shape"
        )
    pb, motion, origin = prepare(body, views, start, settings)
    motion, energy, iterations = _descend(pb, motion, settings.schedule)
    return Fit(replace(motion, transl=motion.transl + origin[:, None]), energy, iterations)


def fit_uncalibrated(
    body: KeypointBody,
    K: Tensor,
    xy_px: Tensor,
    confidence: Tensor,
    start: UncalibratedMotion,
    settings: FitSettings,
) -> UncalibratedFit:
    """Fit N motions to the keypoints of V uncalibrated cameras; V may be 1.

    All views show one pose and one shape; each has a root path of its own, in its camera's frame. The
    energy is that of ``fit``: where the roots are one motion in the world it has the same value, the terms on
    the roots' movement being means over the views. So a frame that a view does not see has the root that
    its neighbours give it; the path of a view that sees nothing at all means nothing.

    K: (N, V, 3, 3) intrinsics, pixels. xy_px (N, V, T, K, 2) undistorted, anything where missing; confidence
    (N, V, T, K), 0 there. start: finite everywhere, each root facing the right way. No frames are held. One
    view shows depth by the size of the body alone.
    """
    if settings.held:
        raise ValueError(f"uncalibrated cameras: no frames can be held, got held={settings.held}")
    n, roots = confidence.shape[:2]
    flat, device = xy_px.flatten(0, 1), xy_px.device
    still = torch.eye(3, dtype=torch.float64, device=device).expand(n * roots, 1, 3, 3)
    views = Views(
        K.reshape(-1, 1, 3, 3), still, still[..., 0] * 0, flat[:, None], confidence.flatten(0, 1)[:, None]
    )
    each = [x.repeat_interleave(roots, 0) for x in (start.body_pose, start.betas, start.offsets)]
    rotations = torch.cat([start.view_orient.flatten(0, 1)[:, :, None], each[0]], 2)
    motion = Motion(rotations, start.view_transl.flatten(0, 1), *each[1:])
    pb, motion, origin = prepare(body, views, motion, settings, roots)
    motion, energy, iterations = _descend(pb, motion, settings.schedule)
    rotations = motion.rotations.view(n, roots, *motion.rotations.shape[1:])
    transl = (motion.transl + origin[:, None]).view(n, roots, *motion.transl.shape[1:])
    betas, offsets = (x[::roots] for x in (motion.betas, motion.offsets))
    found = UncalibratedMotion(rotations[:, 0, :, 1:], rotations[:, :, :, 0], transl, betas, offsets)
    return UncalibratedFit(found, energy, iterations)


def better_start(
    body: KeypointBody,
    views: Views,
    starts: Sequence[Motion],
    settings: FitSettings,
    *,
    favour: float = 1.0,
) -> Motion:
    """Choose, for each of N problems, the start of least energy among several.

    These are a regressor's and that of ``start_pose``, say. Judged at the widest robust scale, where a body
    that faces the wrong way costs most, and without the temporal terms: a rough start is no worse for it. Of
    the settings, rate, weights and prior count.

    favour: by this factor another start must have less energy than the first to be taken instead. A start
    of somewhat less energy, such as one that is off everywhere by a little, often ends in a worse place; one
    that faces the other way has some fifteen times as much.
    """
    still = replace(settings.weights, acceleration=0.0, spin=0.0)
    every = Motion(*(torch.cat([getattr(m, f.name) for m in starts]) for f in fields(Motion)))
    seen = Views(*(torch.cat([getattr(views, f.name)] * len(starts)) for f in fields(Views)))
    alone = FitSettings(settings.rate, free_shape=False, weights=still, prior=settings.prior)
    problem, motion, _ = prepare(body, seen, every, alone)
    energy = evaluate_energy(problem, motion, Schedule().stages[0][0]).energy.view(len(starts), -1)
    energy[0] *= favour
    n = energy.shape[1]
    best = energy.argmin(0) * n + torch.arange(n, device=energy.device)
    return Motion(*(getattr(every, f.name)[best] for f in fields(Motion)))


def _retract(pb: Problem, motion: Motion, pose: Tensor, shape: Tensor) -> Motion:
    """Motion after a step of its free frames (N, F, M), and of its betas and offsets (N, S)."""
    transl, rotations = motion.transl.clone(), motion.rotations.clone()
    transl[:, pb.held :] += pose[..., :3]
    turn = roma.rotvec_to_rotmat(pose[..., 3:].reshape(*pose.shape[:2], -1, 3))
    active = pb.body.active
    rotations[:, pb.held :, active] = product(rotations[:, pb.held :, active], turn)
    motion = replace(motion, rotations=rotations, transl=transl)
    if pb.free_shape:
        betas, offsets = shape.tensor_split([motion.betas.shape[1]], 1)
        motion = replace(motion, betas=motion.betas + betas)
        if pb.free_offsets:
            motion = replace(motion, offsets=motion.offsets + offsets.view_as(motion.offsets.mT).mT)
    return motion


def _with_offset_prior(pb: Problem, offsets: Tensor) -> Problem:
    """The problem with a prior of the offsets that is as wide as those found so far, (N, K, 3).

    Empirical Bayes (type-II maximum likelihood, the offsets taken as certain). Detectors that agree with the
    body get a narrow prior, which keeps the error of the poses out of the offsets.
    """
    found = 1 / (pb.roots * offsets.square().mean((1, 2)))
    bound = pb.offset_spread**2
    return replace(pb, w_offset=found.clamp(pb.w_offset / bound, pb.w_offset * bound))


def _descend(pb: Problem, motion: Motion, schedule: Schedule) -> tuple[Motion, Tensor, int]:
    """Motions of least energy, that energy (N,), and how many systems were solved."""
    damping = torch.full_like(motion.transl[:: pb.roots, 0, 0], 1e-3)
    solved = 0
    st: State | None = None
    for number, (robust, most, tolerance) in enumerate(schedule.stages, 1):
        left = len(schedule.stages) - number
        if st is not None:
            motion = st.motion
            if pb.free_offsets and left == 0:
                pb = _with_offset_prior(pb, motion.offsets)
        # Not while the start is rough: a limb that begins in a wrong place would be explained by them.
        now = replace(pb, free_offsets=pb.free_offsets and left < 2)
        st = evaluate_energy(now, motion, robust)
        st, damping, count = _minimise(now, st, damping, robust, most, tolerance)
        solved += count
    assert st is not None
    return st.motion, st.energy.view(-1, pb.roots).sum(1), solved


def _minimise(
    pb: Problem, st: State, damping: Tensor, robust: float, most: int, tolerance: float
) -> tuple[State, Tensor, int]:
    """Levenberg–Marquardt at one robust scale: where it ends, the damping there, how many systems it took."""

    def each(x: Tensor) -> Tensor:
        return x.repeat_interleave(pb.roots, 0) if pb.roots > 1 else x

    def energy(st: State) -> Tensor:
        return st.energy.view(-1, pb.roots).sum(1)

    joint = share(linearise(pb, st, robust), pb.roots)
    going = torch.ones_like(damping, dtype=torch.bool)
    for i in range(1, most + 1):
        pose, shape = step(joint, damping)
        new = evaluate_energy(pb, _retract(pb, st.motion, split(pose, pb.roots), each(shape)), robust)
        gain = 1 - energy(new) / energy(st)
        better = going & (gain > 0)
        # A problem that has stopped waits as it is: alone it would not be here.
        change = torch.where(better, 0.2, 8.0).to(damping)
        damping = torch.where(going, (damping * change).clamp(min=1e-9), damping)
        # A step that gains nothing even when it is tiny has nowhere left to go.
        going = going & torch.where(better, gain > tolerance, damping < 1e4)
        gained, left = torch.stack([better.sum(), going.sum()]).tolist()  # all that the processor waits for
        st = new if gained == len(better) else new.where(each(better), st)
        if left == 0 or i == most:
            break
        if left < 0.75 * len(going):  # no more work for the others
            first = torch.argsort(going.to(torch.uint8), descending=True, stable=True)[:left]
            rows = each(pb.roots * first)
            if pb.roots > 1:
                rows = rows + torch.arange(len(rows), device=rows.device) % pb.roots
            rest, damping_left, count = _minimise(
                pb.select(rows), st.gather(rows), damping[first], robust, most - i, tolerance
            )
            return st.scatter(rows, rest), damping.index_copy(0, first, damping_left), i + count
        if gained:
            joint = share(linearise(pb, st, robust), pb.roots)
    return st, damping, i
