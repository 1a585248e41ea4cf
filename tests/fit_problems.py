"""Small fitting problems with all terms at work, and rough starts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import roma
import torch
from scenes import Scene, body, prior, scene
from torch import Tensor

from models.body import KeypointBody, pose_keypoints
from models.fit.energy import evaluate_energy
from models.fit.problem import (
    MIN_BEND_RAD,
    FitSettings,
    Motion,
    PoseTarget,
    Problem,
    Views,
    prepare,
)
from models.fit.solver import (
    UncalibratedFit,
    UncalibratedMotion,
    _retract,
    fit_uncalibrated,
)
from models.fit.system import System, linearise, merge_roots, split_roots
from pipeline.skeleton import BODY_25, SMPL_24, SMPL_OF_BODY_25

F64 = torch.float64
ROBUST = 8.0
SHAPE = 10 + 75
"""Betas and offsets."""


def problem_body(pose_blend: bool) -> KeypointBody:
    """The default body's keypoints, with pose blend shapes of two centimetres on the skin or without."""
    keypoints = body().keypoints
    if not pose_blend:
        return keypoints
    skin = torch.tensor([name not in SMPL_OF_BODY_25 for name in BODY_25.names])[:, None, None]
    g = torch.Generator().manual_seed(3)
    return replace(keypoints, points_posedirs=0.003 * skin * torch.randn(25, 3, 207, generator=g, dtype=F64))


def small_problem(
    held: int = 0,
    free_shape: bool = True,
    breaks: tuple[int, ...] = (),
    uncalibrated: bool = False,
    pose_blend: bool = False,
) -> tuple[Problem, Motion]:
    """Two problems of six frames and three views far from any optimum, with all terms at work."""
    g = torch.Generator().manual_seed(0)
    d = scene(3, "random", frames=6, views=3, noise_px=40)
    views = d.views(F64)
    both = [torch.cat([x, x]) for x in vars(views).values()]
    both[0] = both[0].clone()
    both[0][1, :, 0, 1] = 30  # skew
    turn = roma.rotvec_to_rotmat(0.3 * torch.randn(2, 6, 24, 3, generator=g, dtype=F64))
    seen = Views(*both)
    start = Motion(
        d.rotations @ turn,
        d.transl + 0.1 * torch.randn(2, 6, 3, generator=g, dtype=F64),
        torch.randn(2, 10, generator=g, dtype=F64),
        0.01 * torch.randn(2, 25, 3, generator=g, dtype=F64),
    )
    # A knee that is not quite straight, which the hinges draw upon without its being bent backwards.
    start.rotations[1, 4, SMPL_24.index("left_knee")] = roma.rotvec_to_rotmat(
        torch.tensor([MIN_BEND_RAD / 2, 0.1, 0.2], dtype=F64)
    )
    if uncalibrated:
        seen, start = apart(seen, start)
        wrong = roma.rotvec_to_rotmat(0.3 * torch.randn(6, 6, 3, generator=g, dtype=F64))
        start.rotations[:, :, 0] = start.rotations[:, :, 0] @ wrong
    pose = d.rotations[:, 1:].expand(2, -1, -1, -1, -1).clone()
    pose[1, 2, 15] = torch.nan  # a joint of which nothing is known
    pb, motion, _ = prepare(
        problem_body(pose_blend),
        seen,
        start,
        FitSettings(
            60.0,
            held,
            breaks,
            free_shape,
            prior=prior(),
            pose_target=PoseTarget(pose, torch.rand(2, 1, 23, generator=g, dtype=F64) + 0.1),
        ),
        3 if uncalibrated else 1,
    )
    return pb, motion


def apart(views: Views, motion: Motion) -> tuple[Views, Motion]:
    """Every view a problem of its own, in its camera's frame."""
    count = views.R.shape[1]
    pelvis, dirs = body().keypoints.joints_template[0], body().keypoints.joints_shapedirs[0]
    pelvis = (pelvis + motion.betas.double() @ dirs.T)[:, None, None]
    R, t = views.R.double()[:, :, None], views.t.double()[:, :, None]
    place = (R @ (motion.transl.double()[:, None] + pelvis)[..., None])[..., 0] + t - pelvis
    rotations = motion.rotations.double().repeat_interleave(count, 0)
    rotations[:, :, 0] = (R @ motion.rotations.double()[:, None, :, 0]).flatten(0, 1)
    eye = torch.eye(3, dtype=F64).expand(len(rotations), 1, 3, 3)
    flat = [x.flatten(0, 1)[:, None] for x in (views.K, views.xy_px, views.confidence)]
    return Views(flat[0], eye, 0 * eye[..., 0], *flat[1:]), Motion(
        rotations,
        place.flatten(0, 1),
        *(x.repeat_interleave(count, 0) for x in (motion.betas, motion.offsets)),
    )


def sizes(pb: Problem, motion: Motion) -> tuple[int, int, int]:
    """Problems, free frames, unknowns a frame."""
    n, frames = motion.transl.shape[:2]
    return n // pb.roots, frames - pb.held, 6 * pb.roots + 3 * (len(pb.body.active) - 1)


def steps(pb: Problem, motion: Motion, x: Tensor) -> Motion:
    """The motion after the step x (n), all unknowns of all problems in a row."""
    n, free, size = sizes(pb, motion)
    pose, shape = x.split([n * free * size, n * SHAPE])
    step = split_roots(pose.view(n, free, size), pb.roots)
    return _retract(pb, motion, step, shape.view(n, SHAPE).repeat_interleave(pb.roots, 0))


def unknowns(pb: Problem, motion: Motion) -> int:
    n, free, size = sizes(pb, motion)
    return n * (free * size + SHAPE)


def linearised(pb: Problem, motion: Motion) -> System:
    st = evaluate_energy(pb, motion, ROBUST)
    return merge_roots(linearise(pb, st, ROBUST), pb.roots)


def dense(sys: System, n: int) -> Tensor:
    """The normal matrix of problem n, poses then shape."""
    frames, size = sys.grad.shape[1:]
    h = torch.zeros(frames * size + SHAPE, frames * size + SHAPE, dtype=F64)
    for gap, blocks in enumerate((sys.diag, sys.next1, sys.next2)):
        for t in range(frames - gap):
            a, b = slice(t * size, (t + 1) * size), slice((t + gap) * size, (t + gap + 1) * size)
            h[a, b], h[b, a] = blocks[n, t], blocks[n, t].T
    h[:-SHAPE, -SHAPE:] = sys.border[n].flatten(0, 1)
    h[-SHAPE:, :-SHAPE] = h[:-SHAPE, -SHAPE:].T
    h[-SHAPE:, -SHAPE:] = sys.shape[n]
    return h


def rough_views(d: Scene, degrees: float, seed: int = 0) -> UncalibratedMotion:
    """The truth in each camera's frame, every joint and root turned, every place 20 cm off, of mean shape."""
    g = torch.Generator().manual_seed(seed)
    count = len(d.rig)
    axes = torch.nn.functional.normalize(torch.randn(23 + count, 3, generator=g, dtype=F64), dim=-1)
    turn = roma.rotvec_to_rotmat(np.radians(degrees) * axes)
    _, alone = apart(
        d.views(F64), Motion(d.rotations[None], d.transl[None], d.betas[None], torch.zeros(1, 25, 3))
    )
    return UncalibratedMotion(
        (d.rotations[:, 1:] @ turn[:23])[None],
        (alone.rotations[:, :, 0] @ turn[23:, None])[None],
        (alone.transl + 0.2 * torch.randn(count, 1, 3, generator=g, dtype=F64))[None],
        torch.zeros(1, 10, dtype=F64),
        torch.zeros(1, 25, 3, dtype=F64),
    )


def solve_uncalibrated(
    d: Scene, start: UncalibratedMotion, pose_target: PoseTarget | None = None
) -> UncalibratedFit:
    v = d.views()
    keypoints = body().keypoints
    return fit_uncalibrated(
        keypoints,
        v.K,
        v.xy_px,
        v.confidence,
        start,
        FitSettings(d.rate, prior=prior(), pose_target=pose_target),
    )


def pa_mpjpe_mm(motion: UncalibratedMotion, d: Scene) -> float:
    """Mean joint error after the best similarity of each frame."""
    rotations = torch.cat([motion.view_orient[0, 0, :, None], motion.body_pose[0]], 1).double()
    found, _ = pose_keypoints(
        body().keypoints, rotations, motion.betas[0].double(), motion.view_transl[0, 0].double()
    )
    found, truth = (x - x.mean(1, keepdim=True) for x in (found, d.joints))
    turned = found @ roma.special_procrustes(truth.mT @ found).mT
    scale = (turned * truth).sum((1, 2)) / (found * found).sum((1, 2))
    return float((scale[:, None, None] * turned - truth).norm(dim=-1).mean()) * 1000
