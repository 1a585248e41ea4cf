"""SPIN's fit: what it must improve, what it must leave alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import roma
import torch
from scenes import Scene, body, prior, scene

from models.body import pose_keypoints
from models.fit.problem import Motion, Views
from models.fit.spin import spin


def crop(d: Scene) -> Views:
    """The first view, in pixels in which the person is some 200 px tall; every frame a problem."""
    factor = 224 / 820
    frames = d.xy.shape[1]
    scale = np.diag([factor, factor, 1.0])

    def each(x: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(x, dtype=torch.float32)[None, None].expand(frames, 1, *x.shape).clone()

    xy = torch.as_tensor(factor * d.xy[0], dtype=torch.float32)[:, None, None]
    confidence = torch.as_tensor(d.confidence[0], dtype=torch.float32)[:, None, None]
    return Views(each(scale @ d.rig.K[0]), each(d.rig.R[0]), each(d.rig.t[0]), xy, confidence)


def start(d: Scene, seed: int = 0) -> Motion:
    """The truth, disturbed as a regressor would be."""
    g = torch.Generator().manual_seed(seed)
    turn = roma.rotvec_to_rotmat(
        0.12 * torch.randn(*d.rotations.shape[:2], 3, generator=g, dtype=torch.float64)
    )
    frames = len(d.transl)
    return Motion(
        (d.rotations @ turn)[:, None],
        (d.transl + 0.05 * torch.randn(frames, 3, generator=g, dtype=torch.float64))[:, None],
        torch.zeros(frames, 10, dtype=torch.float64),
        torch.zeros(frames, 25, 3, dtype=torch.float64),
    )


def pixels(d: Scene, m: Motion) -> float:
    """Median distance to the truth in the first view, pixels of the full picture."""
    miss = []
    for i, seen in enumerate(d.rig.project(d.points.numpy())[0]):
        one = [x[i].double() for x in (m.rotations, m.betas, m.transl)]
        _, points = pose_keypoints(body().keypoints, *one)
        miss.append(np.linalg.norm(d.rig.project(points.numpy())[0, 0] - seen, axis=-1))
    return float(np.median(miss))


def test_it_moves_the_body_onto_the_keypoints() -> None:
    d = scene(3, "random", frames=6, outliers=0.02)
    views, begin = crop(d), start(d)
    found = spin(body().keypoints, views, begin, prior())
    nothing = spin(body().keypoints, views, begin, prior(), iterations=0)
    assert (found.score < nothing.score).all()
    assert pixels(d, found.motion) < 0.7 * pixels(d, begin)
    assert torch.allclose(nothing.motion.rotations, begin.rotations.float(), atol=1e-5)


def test_inputs_are_left_alone_and_results_repeat() -> None:
    d = scene(3, "random", frames=2)
    views, begin = crop(d), start(d)
    before = [x.clone() for x in (*vars(views).values(), *vars(begin).values())]
    once, again = (spin(body().keypoints, views, begin, prior(), iterations=5) for _ in range(2))
    for a, b in zip(before, (*vars(views).values(), *vars(begin).values()), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
    assert torch.equal(once.motion.rotations, again.motion.rotations)


def test_images_do_not_touch_each_other() -> None:
    d = scene(3, "random", frames=3)
    views, begin = crop(d), start(d)
    whole = spin(body().keypoints, views, begin, prior(), iterations=10).motion
    one = Views(*(x[1:2] for x in vars(views).values()))
    alone = spin(
        body().keypoints, one, Motion(*(x[1:2] for x in vars(begin).values())), prior(), iterations=10
    )
    assert torch.allclose(alone.motion.rotations, whole.rotations[1:2], atol=1e-5)


def test_points_that_are_missing_do_not_count() -> None:
    d = scene(3, "random", frames=2, missing=0)
    views, begin = crop(d), start(d)
    confidence = views.confidence.clone()
    confidence[..., 4] = 0
    blank = views.xy_px.clone()
    blank[..., 4, :] = torch.nan
    moved = views.xy_px.clone()
    moved[..., 4, :] = 1e4
    one, other = (
        spin(body().keypoints, replace(views, xy_px=xy, confidence=confidence), begin, prior(), iterations=3)
        for xy in (blank, moved)
    )
    assert torch.equal(one.motion.rotations, other.motion.rotations)


def test_one_view_only() -> None:
    d = scene(3, "random", frames=2)
    with pytest.raises(ValueError, match="one view"):
        spin(body().keypoints, d.views(), d.start(), prior())
