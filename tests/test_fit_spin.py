"""SPIN's fit: what it must improve, what it must leave alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import roma
import torch
from scenes import Scene, body, prior, scene

from models.body import pose_keypoints
from models.evaluation.joints import extra_24
from models.fit.problem import HINGES, Motion, Views
from models.fit.spin import SpinFit, spin
from models.priors import PosePrior
from models.training.images import with_points
from pipeline.skeleton import BODY_25, SMPL_24, SPIN_49


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


def test_the_neck_does_not_count() -> None:
    """OpenPose defines it differently."""
    d = scene(3, "random", frames=2, missing=0)
    views, begin = crop(d), start(d)
    moved = views.xy_px.clone()
    moved[..., BODY_25.index("Neck"), :] += 50
    one, other = (
        spin(body().keypoints, replace(views, xy_px=xy), begin, prior(), iterations=3)
        for xy in (views.xy_px, moved)
    )
    assert torch.equal(one.motion.rotations, other.motion.rotations)
    assert torch.equal(one.score, other.score)


def test_depth_shape_and_pose_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by a term of its own: without it the fit goes further. Started 0.3 m before the person's place."""
    d = scene(6, "random", frames=4, noise_px=0, outliers=0, missing=0)
    views, begin = crop(d), start(d)
    ahead = views.R[:, 0, 2].double()
    near = replace(begin, transl=begin.transl - 0.3 * ahead[:, None])
    likely = prior().of_joints(range(1, len(SMPL_24)), 1.0, torch.float32, torch.device("cpu"))

    def measures(without: str | None = None) -> dict[str, float]:
        with monkeypatch.context() as patch:
            if without:
                patch.setattr(f"models.fit.spin.{without}", 0.0)
            m = spin(body().keypoints, views, near, prior()).motion
        theta = roma.rotmat_to_rotvec(m.rotations[:, 0])
        back = [-sign * theta[:, SMPL_24.index(name), axis] for name, axis, sign in HINGES]
        return {
            "_DEPTH_WEIGHT": float((((m.transl - near.transl)[:, 0] * ahead).sum(-1)).abs().max()),
            "_SHAPE_WEIGHT": float(m.betas.norm(dim=-1).mean()),
            "_HINGE_WEIGHT": float(torch.stack(back).exp().max()),
            "_PRIOR_WEIGHT": float(likely.evaluate(theta[None, :, 1:].flatten(2))[0].mean()),
        }

    held = measures()
    assert held["_DEPTH_WEIGHT"] < 0.03
    for term, value in held.items():
        assert value < 0.95 * measures(term)[term], term


def test_the_likelier_of_two_poses_draws_though_the_other_is_nearer() -> None:
    """A mixture of two Gaussians of one width, of which one holds nearly all people."""
    d = scene(3, "random", frames=1)
    views, begin = crop(d), start(d)
    lean = torch.zeros(2, 69, dtype=torch.float64)
    lean[:, 6] = torch.tensor([0.3, -0.3])  # of the spine, forwards or backwards
    wide = 0.05 * torch.eye(69, dtype=torch.float64).expand(2, 69, 69)
    two = PosePrior(lean, wide, torch.tensor([0.999, 0.001], dtype=torch.float64))
    rest = torch.eye(3, dtype=torch.float64).repeat(1, 1, 24, 1, 1)
    rest[:, :, 3] = roma.rotvec_to_rotmat(torch.tensor([-0.05, 0.0, 0.0], dtype=torch.float64))
    unseen = replace(views, confidence=0 * views.confidence)
    found = spin(body().keypoints, unseen, replace(begin, rotations=rest), two).motion
    assert roma.rotmat_to_rotvec(found.rotations[0, 0, 3])[0] > 0.2


def test_the_data_sets_own_joints_pose_and_place_the_body() -> None:
    """SPIN's 49 keypoints: where the detector has a hip less, the annotated hips and shoulders place."""
    d = scene(3, "random", frames=2, missing=0, outliers=0)
    points = with_points(body().keypoints, extra_24(body()))
    _, true = pose_keypoints(points, d.rotations, d.betas.expand(2, -1), d.transl)
    views, begin = crop(d), replace(start(d), offsets=torch.zeros(2, 49, 3))
    xy = torch.from_numpy(224 / 820 * d.rig.project(true.numpy())[0]).float()[:, None, None]
    confidence = torch.ones(2, 1, 1, 49)

    def fitted(iterations: int, **unseen: list[int]) -> SpinFit:
        sure, there = confidence.clone(), xy.clone()
        sure[..., unseen.get("gone", [])] = 0
        there[..., unseen.get("moved", []), :] += 30
        return spin(
            points, replace(views, xy_px=there, confidence=sure), begin, prior(), iterations=iterations
        )

    detected, annotated = list(range(25)), list(range(25, 49))
    hips = [i for i, name in enumerate(SPIN_49.names) if name in ("RHip", "LHip")]
    # Annotated joints alone bring the body there, too.
    assert (fitted(60, gone=detected).score < 0.3 * fitted(0, gone=detected).score).all()
    # While the detector has hips and shoulders, the annotated hips, which pose nothing, are of no account …
    whole, moved = fitted(3), fitted(3, moved=[i for i in hips if i >= 25])
    assert torch.equal(whole.motion.transl, moved.motion.transl)
    # … and where it lacks one, they count in the place of its own.
    less, moved = fitted(3, gone=hips[:1]), fitted(3, gone=hips[:1], moved=[i for i in hips if i >= 25])
    assert (less.motion.transl - moved.motion.transl).abs().max() > 1e-3
    assert torch.equal(less.motion.transl, fitted(3, gone=hips[:1], moved=hips[1:2]).motion.transl)
    # The score is the mean over all 49, those that are missing included.
    half = fitted(0, gone=annotated).score + fitted(0, gone=detected).score
    torch.testing.assert_close(half, fitted(0).score)


def test_one_view_only() -> None:
    d = scene(3, "random", frames=2)
    with pytest.raises(ValueError, match="one view"):
        spin(body().keypoints, d.views(), d.start(), prior())
