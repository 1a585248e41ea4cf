"""Structured Cholesky factors against dense ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fit_problems import (
    F64,
    ROBUST,
    dense,
    linearised,
    small_problem,
)
from scenes import body, joints_of, prior, scene

from models.fit import factor
from models.fit.energy import evaluate_energy
from models.fit.factor import BandedFactor, CyclicFactor, step
from models.fit.problem import FitSettings, Motion, Views, _bands, prepare
from models.fit.system import linearise


@pytest.mark.parametrize(
    ("frames", "uncalibrated"), [(1, False), (2, False), (3, False), (6, False), (1, True), (5, True)]
)
def test_structured_solves_are_the_dense_one(frames: int, uncalibrated: bool) -> None:
    pb, motion = small_problem(uncalibrated=uncalibrated)
    cut = replace(
        pb,
        image_xy=pb.image_xy[:, :, :frames],
        confidence_sq=pb.confidence_sq[:, :, :frames],
        focal=pb.focal[:, :, :frames],
        tied=(tied := pb.tied[: max(frames - 2, 0)]),
        bands=_bands(tied, frames, 0),
        pose_target=tuple(x[:, :frames] for x in pb.pose_target or ()),
    )
    motion = motion.frames(0, frames)
    sys = linearised(cut, motion)
    damping = torch.tensor([1e-3, 0.5], dtype=F64)
    pose, shape = step(sys, damping)
    rhs = torch.cat([sys.grad[..., None], sys.border], -1)
    band, block = BandedFactor(sys, damping), CyclicFactor(sys, damping)
    one, other = band.backward(band.forward(rhs)), block.backward(block.forward(rhs))
    assert (one - other).norm() < 1e-9 * one.norm()
    for n in range(2):
        h = dense(sys, n)
        h += damping[n] * torch.diag(h.diagonal())
        wanted = torch.linalg.solve(h, -torch.cat([sys.grad[n].reshape(-1), sys.shape_grad[n]]))
        found = torch.cat([pose[n].reshape(-1), shape[n]])
        assert (found - wanted).norm() < 1e-8 * wanted.norm()


@pytest.mark.parametrize("frame", range(8))
def test_not_positive_definite_is_nan_not_a_wrong_step(frame: int) -> None:
    """In whichever frame, and for its problem alone."""
    d = scene(4, "random", frames=8)
    both = [torch.cat([x, x]) for x in (*vars(d.views(F64)).values(), *vars(d.start()).values())]
    pb, motion, _ = prepare(
        body().keypoints, Views(*both[:5]), Motion(*both[5:]), FitSettings(60.0, prior=prior())
    )
    sys = linearise(pb, evaluate_energy(pb, motion, ROBUST), ROBUST)
    sys.diag[1, frame, 5, 5] = -1.0
    for kind in (BandedFactor, CyclicFactor):
        factor = kind(sys, torch.zeros(2, dtype=F64))
        half = factor.forward(sys.grad[..., None])
        for x in (half, factor.backward(half)):
            assert x[0].isfinite().all()
            assert x[1].isnan().all()


def test_a_shape_that_is_not_positive_definite_is_nan_for_its_problem_alone() -> None:
    sys = linearised(*small_problem())
    sys.shape[1, 3, 3] = -1.0
    pose, shape = step(sys, torch.zeros(2, dtype=F64))
    for x in (pose, shape):
        assert x[0].isfinite().all()
        assert x[1].isnan().all()


def test_the_block_solver_finds_the_same_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, as a GPU runs it."""
    d = scene(4, "random", frames=21)
    banded = d.solve(F64).motion
    monkeypatch.setattr(factor, "BandedFactor", CyclicFactor)
    assert (joints_of(d.solve(F64).motion) - joints_of(banded)).abs().max() < 1e-8
