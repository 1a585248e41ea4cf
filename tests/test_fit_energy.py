"""The energy of the fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fit_problems import (
    F64,
    ROBUST,
    apart,
    small_problem,
)
from scenes import body, prior, scene

from models.body import pose_keypoints
from models.fit.energy import evaluate
from models.fit.problem import (
    FitSettings,
    Motion,
    Views,
    prepare,
)


def test_points_are_those_of_the_body() -> None:
    pb, motion = small_problem()
    st = evaluate(pb, motion, ROBUST)
    for n in range(2):
        _, wanted = pose_keypoints(
            body().keypoints, motion.rotations[n], motion.betas[n], motion.transl[n], motion.offsets[n]
        )
        assert (st.points[n].movedim(0, -1) - wanted).abs().max() < 1e-7


def test_views_with_one_motion_in_the_world_cost_what_calibrated_ones_do() -> None:
    d = scene(3, "random", frames=12, views=3, noise_px=40)
    motion = Motion(d.rotations[None], d.transl[None], d.betas[None], 0.01 * torch.ones(1, 25, 3, dtype=F64))
    views = d.views(F64)

    def energy(v: Views, m: Motion, roots: int) -> float:
        pb, m, _ = prepare(body().keypoints, v, m, FitSettings(60.0, prior=prior()), roots)
        return float(evaluate(pb, m, ROBUST).energy.sum())

    assert energy(*apart(views, motion), 3) == pytest.approx(energy(views, motion, 1), rel=1e-9)


def test_over_a_break_there_is_no_movement() -> None:
    """Two clips in a row, a break between them, cost what each costs alone."""
    clips = [scene(s, "random", frames=12) for s in (4, 5)]
    starts = [replace(d.start(), betas=torch.zeros(1, 10, dtype=F64)) for d in clips]
    views = [d.views(F64) for d in clips]
    row = replace(
        views[0],
        xy_px=torch.cat([v.xy_px for v in views], 2),
        confidence=torch.cat([v.confidence for v in views], 2),
    )
    start = replace(
        starts[0],
        rotations=torch.cat([s.rotations for s in starts], 1),
        transl=torch.cat([s.transl for s in starts], 1),
    )

    def energy(v: Views, m: Motion, breaks: tuple[int, ...]) -> float:
        pb, motion, _ = prepare(
            body().keypoints, v, m, FitSettings(60.0, breaks=breaks, free_shape=False, prior=prior())
        )
        return float(evaluate(pb, motion, ROBUST).energy)

    apart = sum(energy(v, m, ()) for v, m in zip(views, starts, strict=True))
    assert energy(row, start, (12,)) == pytest.approx(apart, rel=1e-12)
    assert energy(row, start, ()) > 1.2 * apart
