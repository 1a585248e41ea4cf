"""Normal equations: derivatives against autograd, blocks against dense matrices."""

from __future__ import annotations

import pytest
import torch
from fit_problems import (
    F64,
    ROBUST,
    SHAPE,
    dense,
    linearised,
    small_problem,
    steps,
    unknowns,
)
from torch import Tensor

from models.fit.energy import evaluate_energy
from models.fit.problem import (
    HINGES,
    MIN_BEND_RAD,
)
from models.fit.system import linearise
from pipeline.skeleton import SMPL_24


@pytest.mark.parametrize(
    ("held", "free_shape", "breaks", "uncalibrated", "pose_blend"),
    [
        (0, True, (), False, False),
        (2, False, (), False, False),
        (0, True, (4,), False, False),
        (2, False, (1, 5), False, False),
        (0, True, (), True, False),
        (0, False, (4,), True, False),
        (0, True, (4,), False, True),
        (2, False, (), False, True),
        (0, True, (), True, True),
    ],
)
def test_gradient_is_that_of_the_energy(
    held: int, free_shape: bool, breaks: tuple[int, ...], uncalibrated: bool, pose_blend: bool
) -> None:
    pb, motion = small_problem(held, free_shape, breaks, uncalibrated, pose_blend)
    sys = linearised(pb, motion)
    x = torch.zeros(unknowns(pb, motion), dtype=F64, requires_grad=True)
    energy = evaluate_energy(pb, steps(pb, motion, x), ROBUST).energy.sum() / 2
    (wanted,) = torch.autograd.grad(energy, x)
    pose, shape = wanted.split([sys.grad.numel(), 2 * SHAPE])
    assert (sys.grad.reshape(-1) - pose).norm() < 1e-9 * pose.norm()
    if free_shape:
        for part in (slice(10), slice(10, None)):  # betas, offsets
            mine, theirs = sys.shape_grad[:, part], shape.view(2, SHAPE)[:, part]
            assert (mine - theirs).norm() < 1e-9 * theirs.norm()
    # And autograd is right about the energy: central differences along random directions.
    g = torch.Generator().manual_seed(1)
    for _ in range(3):
        way = torch.randn(len(x), generator=g, dtype=F64)
        h = 1e-6
        up, down = (evaluate_energy(pb, steps(pb, motion, s * h * way), ROBUST).energy.sum() for s in (1, -1))
        slope = float((up - down) / (4 * h))
        pick = torch.ones_like(way)
        if not free_shape:
            pick[-2 * SHAPE :] = 0
        assert slope == pytest.approx(float((wanted * way * pick).sum()), rel=1e-6)


@pytest.mark.parametrize("pose_blend", [False, True])
def test_jacobian_of_the_keypoints(pose_blend: bool) -> None:
    pb, motion = small_problem(pose_blend=pose_blend)
    sys = linearise(pb, evaluate_energy(pb, motion, ROBUST), ROBUST)
    zero = torch.zeros(unknowns(pb, motion), dtype=F64)

    def points(x: Tensor) -> Tensor:
        return evaluate_energy(pb, steps(pb, motion, x), ROBUST).points[1, :, 4].reshape(-1)

    wanted = torch.autograd.functional.jacobian(points, zero)
    size = sys.grad.shape[-1]
    first = 6 * size + 4 * size  # second problem, fifth frame
    pose = wanted[:, first : first + size]
    assert (sys.jacobian[1, 4] - pose).norm() < 1e-12 * pose.norm()


@pytest.mark.parametrize(("uncalibrated", "pose_blend"), [(False, False), (True, False), (False, True)])
def test_normal_matrix_is_gauss_newton_of_the_residuals(uncalibrated: bool, pose_blend: bool) -> None:
    """JᵀJ of the residuals, the robust weights and the prior's component held."""
    pb, motion = small_problem(uncalibrated=uncalibrated, pose_blend=pose_blend)
    assert pb.prior is not None
    assert pb.pose_target is not None
    at = evaluate_energy(pb, motion, ROBUST)
    g2 = ROBUST**2
    weight = (pb.confidence_sq * (g2 / (g2 + (at.residual**2).sum(2))) ** 2).sqrt()[:, :, None]
    root = torch.linalg.cholesky(pb.prior.precisions)[at.component]

    def residuals(x: Tensor) -> Tensor:
        st = evaluate_energy(pb, steps(pb, motion, x), ROBUST)
        theta = st.theta.flatten(2)
        turn = st.motion.rotations[:, :, pb.body.active]
        parts = [
            weight * st.residual,
            pb.w_acc.sqrt() * (st.points[:, :, 2:] - 2 * st.points[:, :, 1:-1] + st.points[:, :, :-2]),
            pb.w_spin.sqrt()[:, None, None] * (turn[:, 2:] - 2 * turn[:, 1:-1] + turn[:, :-2]),
            (root.mT @ (theta - pb.prior.means[at.component])[..., None]),
            pb.w_shape**0.5 * st.motion.betas,
            pb.w_offset[:, None, None] ** 0.5 * st.motion.offsets,
            pb.pose_target[1].sqrt()[..., None, None] * (turn[:, :, 1:] - pb.pose_target[0]),
            pb.w_sideways**0.5
            * torch.stack(
                [st.motion.rotations[:, :, SMPL_24.index(n), a, 1 - a] for n, a, _ in HINGES]
            ).movedim(0, -1),
            pb.w_hinge**0.5
            * (MIN_BEND_RAD - pb.body.hinges.sign * theta[..., pb.body.hinges.index]).clamp(min=0),
        ]
        return torch.cat([p[pb.roots :].reshape(-1) for p in parts])  # of the second problem

    sys = linearised(pb, motion)
    frames, size = sys.grad.shape[1:]
    poses = 2 * frames * size
    mine = [*range(frames * size, poses), *range(poses + SHAPE, poses + 2 * SHAPE)]
    matrix, zero = dense(sys, 1), torch.zeros(unknowns(pb, motion), dtype=F64)
    g = torch.Generator().manual_seed(2)
    for _ in range(6):
        way = torch.zeros_like(zero)
        way[mine] = torch.randn(len(mine), generator=g, dtype=F64)
        _, along = torch.autograd.functional.jvp(residuals, zero, way)
        _, wanted = torch.autograd.functional.vjp(residuals, zero, along)
        assert (matrix @ way[mine] - wanted[mine]).norm() < 1e-10 * wanted[mine].norm()
