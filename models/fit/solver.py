"""Temporal multi-view SMPLify by Levenberg–Marquardt.

``fit`` takes calibrated cameras, ``fit_uncalibrated`` cameras of known intrinsics only: each view is a
problem with a root of its own, and the views of one person share joints and shape, where their normal
equations add up.

Unknowns: root translation and local rotations of every frame; betas and keypoint offsets of every problem
with a free shape (detectors define points differently). One thread is fastest for one problem: run several in
several processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import roma
import torch
from torch import Tensor

from models.body import KeypointBody
from models.fit.energy import FitState, evaluate_energy
from models.fit.factor import step
from models.fit.problem import FitSettings, Motion, Problem, Schedule, Views, prepare
from models.fit.system import linearise, merge_roots, split_roots
from models.rotations import product


@dataclass(frozen=True)
class Fit:
    """Motions of least energy."""

    motion: Motion
    energy: Tensor
    """(N,) at the last robust scale (float64)."""
    iterations: int
    """Linear systems solved for the slowest problem."""


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
    """Motions of least energy in uncalibrated cameras."""

    motion: UncalibratedMotion
    energy: Tensor
    """(N,) at the last robust scale (float64)."""
    iterations: int
    """Linear systems solved for the slowest problem."""


def fit(body: KeypointBody, views: Views, start: Motion, settings: FitSettings) -> Fit:
    """Fit N motions to the keypoints of calibrated cameras.

    start: with the final frames, ``settings.held`` of them, first. Joints that no keypoint observes (hands,
    toes) keep their start. The result has the dtype and device of ``views.xy_px``. Deterministic on one
    thread.

    Raises ``ValueError`` where frames are held and the shape is free.
    """
    if settings.held and settings.free_shape:
        raise ValueError(
            f"the shape must be known where frames are held, got held={settings.held} with a free shape"
        )
    pb, motion, origin = prepare(body, views, start, settings)
    motion, energy, iterations = _anneal(pb, motion, settings.schedule)
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

    Views share pose and shape; each has a root trajectory in its camera's frame. The energy is that of
    ``fit``, with the roots' accelerations averaged over the views. A view's root is interpolated in time
    where it sees nothing, and meaningless where it never sees the person. One view gives depth by the body's
    size alone.

    K: (N, V, 3, 3) intrinsics, pixels. xy_px (N, V, T, K, 2) undistorted, ignored where confidence
    (N, V, T, K) is 0. start: finite, with every root within 90° of its heading. No frames are held.

    Raises ``ValueError`` where frames are held.
    """
    if settings.held:
        raise ValueError(f"uncalibrated cameras: no frames can be held, got held={settings.held}")
    n, roots = confidence.shape[:2]
    flat, device = xy_px.flatten(0, 1), xy_px.device
    identity = torch.eye(3, dtype=torch.float64, device=device).expand(n * roots, 1, 3, 3)
    views = Views(
        K.reshape(-1, 1, 3, 3),
        identity,
        identity[..., 0] * 0,
        flat[:, None],
        confidence.flatten(0, 1)[:, None],
    )
    shared = [x.repeat_interleave(roots, 0) for x in (start.body_pose, start.betas, start.offsets)]
    rotations = torch.cat([start.view_orient.flatten(0, 1)[:, :, None], shared[0]], 2)
    motion = Motion(rotations, start.view_transl.flatten(0, 1), *shared[1:])
    pb, motion, origin = prepare(body, views, motion, settings, roots)
    motion, energy, iterations = _anneal(pb, motion, settings.schedule)
    rotations = motion.rotations.view(n, roots, *motion.rotations.shape[1:])
    transl = (motion.transl + origin[:, None]).view(n, roots, *motion.transl.shape[1:])
    betas, offsets = (x[::roots] for x in (motion.betas, motion.offsets))
    fitted = UncalibratedMotion(rotations[:, 0, :, 1:], rotations[:, :, :, 0], transl, betas, offsets)
    return UncalibratedFit(fitted, energy, iterations)


def choose_start(
    body: KeypointBody,
    views: Views,
    starts: Sequence[Motion],
    settings: FitSettings,
    *,
    max_energy_ratio: float = 1.0,
) -> Motion:
    """Choose the start of least energy for each of N problems.

    The energy is that of the widest robust scale, which penalises a wrong heading most, without the temporal
    terms, which penalise noise. Of the settings, rate, weights and prior count.

    max_energy_ratio: energy of another start over that of the first above which the first is kept. A start of
    slightly less energy often converges to a worse minimum; a wrong heading has some 15 times the energy.
    """
    untimed = replace(settings.weights, acceleration=0.0, spin=0.0)
    candidates = Motion(*(torch.cat([getattr(m, f.name) for m in starts]) for f in fields(Motion)))
    repeated = Views(*(torch.cat([getattr(views, f.name)] * len(starts)) for f in fields(Views)))
    frame_settings = FitSettings(settings.rate, free_shape=False, weights=untimed, prior=settings.prior)
    problem, motion, _ = prepare(body, repeated, candidates, frame_settings)
    energy = evaluate_energy(problem, motion, Schedule().stages[0][0]).energy.view(len(starts), -1)
    energy[0] *= max_energy_ratio
    n = energy.shape[1]
    best = energy.argmin(0) * n + torch.arange(n, device=energy.device)
    return Motion(*(getattr(candidates, f.name)[best] for f in fields(Motion)))


def _retract(pb: Problem, motion: Motion, pose: Tensor, shape: Tensor) -> Motion:
    """Motion after a step of its free frames (N, F, M), betas and offsets (N, S)."""
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
    """Problem with the variance of its offset prior set to that of ``offsets`` (N, K, 3), within bounds.

    Empirical Bayes (type-II maximum likelihood, the offsets taken as certain): a detector that agrees with
    the body gets a narrow prior, which keeps pose errors out of the offsets.
    """
    precision = 1 / (pb.roots * offsets.square().mean((1, 2)))
    bound = pb.offset_spread**2
    return replace(pb, w_offset=precision.clamp(pb.w_offset / bound, pb.w_offset * bound))


def _anneal(pb: Problem, motion: Motion, schedule: Schedule) -> tuple[Motion, Tensor, int]:
    """Motions of least energy, that energy (N,), and the number of systems solved."""
    damping = torch.full_like(motion.transl[:: pb.roots, 0, 0], 1e-3)
    solved = 0
    st: FitState | None = None
    for number, (robust, max_iterations, tolerance) in enumerate(schedule.stages, 1):
        stages_left = len(schedule.stages) - number
        if st is not None:
            motion = st.motion
            if pb.free_offsets and stages_left == 0:
                pb = _with_offset_prior(pb, motion.offsets)
        # Early offsets would absorb the error of a rough start.
        stage = replace(pb, free_offsets=pb.free_offsets and stages_left < 2)
        st = evaluate_energy(stage, motion, robust)
        st, damping, count = _minimise(stage, st, damping, robust, max_iterations, tolerance)
        solved += count
    assert st is not None
    return st.motion, st.energy.view(-1, pb.roots).sum(1), solved


def _minimise(
    pb: Problem, st: FitState, damping: Tensor, robust: float, max_iterations: int, tolerance: float
) -> tuple[FitState, Tensor, int]:
    """Levenberg–Marquardt at one robust scale: final state, damping (N,), and number of systems solved."""

    def per_root(x: Tensor) -> Tensor:
        return x.repeat_interleave(pb.roots, 0) if pb.roots > 1 else x

    def energy(st: FitState) -> Tensor:
        return st.energy.view(-1, pb.roots).sum(1)

    joint = merge_roots(linearise(pb, st, robust), pb.roots)
    running = torch.ones_like(damping, dtype=torch.bool)
    for i in range(1, max_iterations + 1):
        pose, shape = step(joint, damping)
        new = evaluate_energy(
            pb, _retract(pb, st.motion, split_roots(pose, pb.roots), per_root(shape)), robust
        )
        gain = 1 - energy(new) / energy(st)
        better = running & (gain > 0)
        # A problem that has stopped keeps its damping, as it would alone.
        change = torch.where(better, 0.2, 8.0).to(damping)
        damping = torch.where(running, (damping * change).clamp(min=1e-9), damping)
        running = running & torch.where(better, gain > tolerance, damping < 1e4)
        # The one synchronisation of an iteration.
        improved, left = torch.stack([better.sum(), running.sum()]).tolist()
        st = new if improved == len(better) else new.where(per_root(better), st)
        if left == 0 or i == max_iterations:
            break
        if left < 0.75 * len(running):  # drop the problems that have stopped
            first = torch.argsort(running.to(torch.uint8), descending=True, stable=True)[:left]
            rows = per_root(pb.roots * first)
            if pb.roots > 1:
                rows = rows + torch.arange(len(rows), device=rows.device) % pb.roots
            rest, damping_left, count = _minimise(
                pb.select(rows), st.gather(rows), damping[first], robust, max_iterations - i, tolerance
            )
            return st.scatter(rows, rest), damping.index_copy(0, first, damping_left), i + count
        if improved:
            joint = merge_roots(linearise(pb, st, robust), pb.roots)
    return st, damping, i
