"""Augmented crops against the cameras and keypoints that are said to belong to them."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from models.body import load_body, pose_keypoints
from models.training.augment import (
    UNCHANGED,
    AugmentConfig,
    augment,
    collate,
    split_roll,
)
from models.training.samples import Sample
from pipeline.array_types import Array
from pipeline.skeleton import BODY_25, EXTRA_24

SIZE, VIEWS, DOTS = 128, 2, 7
STRONG = AugmentConfig(
    flip=0.5, rotation_deg=30, unrotated=0.2, scale=0.25, channel_gain=0.2, noise=0, occlusion=0
)
SHOWN = [BODY_25.index(n) for n in ("Nose", "LWrist", "RWrist", "LKnee", "RKnee", "LAnkle", "RElbow")]
"""Keypoints that are drawn as dots, each of its own brightness."""


def dotted(seed: int, side: int = 200) -> tuple[Sample, Array]:
    """Dots in the air before cameras whose pixels are not square, and where the dots are in the world."""
    rng = np.random.default_rng(seed)
    world = rng.uniform(-0.45, 0.45, (25, 3))
    layout = np.array([[0, 0], [-1, -1], [1, -1], [-1, 1], [1, 1], [0, -1], [0, 1]]) * 0.3
    R = Rotation.random(VIEWS, rng=rng).as_matrix()
    t = rng.uniform(-0.1, 0.1, (VIEWS, 3)) + np.array([0, 0, 4.0])
    # The dots that are drawn stay apart in the first view; in the others they lie as they lie.
    world[SHOWN] = (np.column_stack([layout + rng.uniform(-0.03, 0.03, (DOTS, 2)), np.zeros(DOTS)])) @ R[0]
    K = np.zeros((VIEWS, 3, 3))
    K[:, 0, 0], K[:, 1, 1], K[:, 2, 2] = 3.1 * side, 3.3 * side, 1
    K[:, :2, 2] = side / 2 + rng.uniform(-5, 5, (VIEWS, 2))
    camera = np.einsum("vij,kj->vki", R, world) + t[:, None]
    xy = (camera / camera[..., 2:] @ K.mT)[..., :2]
    pictures = tuple(blobs(xy[v, SHOWN], side) for v in range(VIEWS))
    box = np.array([[side / 2 + 3.3, side / 2 - 2.1, 0.75 * side]] * VIEWS)
    sample = Sample(
        id="test/0", cameras=("a", "b"), pictures=pictures, box=box, K=K, R=R, t=t,
        xy_px=np.concatenate([xy, np.full((VIEWS, 24, 2), np.nan)], 1),
        confidence=np.concatenate([np.full((VIEWS, 25), 0.9), np.zeros((VIEWS, 24))], 1),
        joints=np.einsum("vij,kj->vki", R, world[:24]) + t[:, None],
        orient=R @ Rotation.random(rng=rng).as_matrix(),
        body_pose=Rotation.random(23, rng=rng).as_matrix(), betas=rng.normal(size=10),
    )  # fmt: skip
    return sample, world


def blobs(at: Array, side: int) -> NDArray[np.uint8]:
    """Soft dots of brightness 80, 100, 120, … at sub-pixel places on black."""
    y, x = np.mgrid[:side, :side].astype(float)
    out = np.zeros((side, side))
    for k, (u, v) in enumerate(at):
        out += (80 + 20 * k) * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * (side / 90) ** 2))
    return np.repeat(out.clip(0, 255).round().astype(np.uint8)[..., None], 3, 2)


def weighed(image: Array, near: Array) -> tuple[Array, float]:
    """Centre and brightness of the dot around a pixel."""
    x0, y0 = (near.round().astype(int) - 7).tolist()
    part = image[y0 : y0 + 15, x0 : x0 + 15].astype(float)
    y, x = np.mgrid[:15, :15]
    total = part.sum()
    return np.array([(x * part).sum() / total + x0, (y * part).sum() / total + y0]), total


@pytest.mark.parametrize("side", [200, 700])
def test_dots_stay_where_the_cameras_project_them(side: int) -> None:
    """To 0.1 pixel, whatever is done: the world's points (mirrored, if so said) through K, R and t."""
    seen_flips, seen_turns, checked = set(), 0.0, 0
    for seed in range(12):
        sample, world = dotted(seed, side)
        s = augment(sample, np.random.default_rng(seed), STRONG, SIZE)
        flipped = bool(s.flipped[0])
        seen_flips.add(flipped)
        seen_turns = max(seen_turns, float(s.roll.abs().max()))
        mirrored = world * [-1, 1, 1] if flipped else world
        brightness = {}
        for v in range(VIEWS):
            K, R, t = (x[0, v].double().numpy() for x in (s.K, s.R, s.t))
            assert K[1, 0] == 0
            assert K[0, 0] > 0
            assert K[1, 1] > 0
            assert np.allclose(R @ R.T, np.eye(3), atol=1e-6)
            assert np.linalg.det(R) > 0
            camera = mirrored @ R.T + t
            at = (camera / camera[:, 2:] @ K.T)[:, :2]
            labels = s.xy_px[0, v].double().numpy()
            order = list(BODY_25.flips) if flipped else list(range(25))
            assert np.abs(labels[:25] - at[order]).max() < 2e-3
            if v:
                continue
            image = s.images[0, v].double().numpy().mean(0)
            for name in SHOWN:
                label = order.index(name)  # the name that this dot has now
                if ((at[name] < 8) | (at[name] > SIZE - 9)).any():
                    continue
                centre, brightness[name] = weighed(image, at[name])
                assert np.abs(centre - labels[label]).max() < 0.1
                checked += 1
        assert sorted(brightness, key=brightness.__getitem__) == [n for n in SHOWN if n in brightness]
    assert seen_flips == {True, False}
    assert seen_turns > 0.4
    assert checked > 50


def test_matrices_are_a_camera_and_a_roll() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        matrix = np.eye(3)
        matrix[:2] = rng.normal(size=(2, 3))
        matrix[:2, :2] *= np.sign(np.linalg.det(matrix[:2, :2])) ** np.array([[1], [0]])
        k, turn = split_roll(matrix)
        assert np.allclose(k @ turn, matrix)
        assert k[1, 0] == 0
        assert k[0, 0] > 0
        assert k[1, 1] > 0
        assert np.allclose(turn @ turn.T, np.eye(3))
        assert np.linalg.det(turn) > 0


def test_a_mirrored_body_is_the_mirror_image_of_the_body() -> None:
    """Truth against truth: the pose that is handed on, posed, is the body mirrored point for point."""
    sample, _ = dotted(3)
    body = load_body().keypoints
    flips = replace_config(flip=1.0)
    s = augment(sample, np.random.default_rng(0), flips, SIZE)

    def points(orient: Array, pose: Array) -> Array:
        rotations = torch.from_numpy(np.concatenate([orient[None], pose]))
        zero = torch.zeros(3, dtype=torch.float64)
        j, p = pose_keypoints(body, rotations, torch.zeros(10, dtype=torch.float64), zero)
        return (p - j[0]).numpy()

    for v in range(VIEWS):
        plain = points(sample.orient[v], sample.body_pose)
        turn = Rotation.from_euler("z", float(s.roll[0, v])).as_matrix()
        want = (plain[list(BODY_25.flips)] * [-1, 1, 1]) @ turn.T
        found = points(s.orient[0, v].double().numpy(), s.body_pose[0].double().numpy())
        assert np.abs(found - want).max() < 0.02  # the body is not quite symmetric
        assert np.abs(found - plain).max() > 0.2
        joints = (sample.joints[v][list(EXTRA_24.flips)] * [-1, 1, 1]) @ turn.T
        assert np.allclose(s.joints[0, v], joints, atol=1e-5)


def replace_config(**values: float) -> AugmentConfig:
    return AugmentConfig(**(STRONG.model_dump() | values))


def test_unchanged_is_the_crop_in_the_middle() -> None:
    sample, _ = dotted(0)
    a, b = (augment(sample, np.random.default_rng(k), UNCHANGED, SIZE) for k in range(2))
    assert torch.equal(a.images, b.images)
    assert not a.flipped.any()
    assert not a.roll.any()
    scale = SIZE / sample.box[0, 2]
    middle = (sample.xy_px[0, :25] - sample.box[0, :2]) * scale + (SIZE - 1) / 2
    assert np.abs(a.xy_px[0, 0, :25].numpy() - middle).max() < 1e-4
    assert np.allclose(a.R[0], sample.R)
    assert np.allclose(a.t[0], sample.t)


def test_the_generator_decides_and_the_sample_stays() -> None:
    sample, _ = dotted(1)
    before = [p.copy() for p in sample.pictures], sample.xy_px.copy(), sample.confidence.copy()
    every = AugmentConfig()
    a, b, c = (augment(sample, np.random.default_rng(k), every, SIZE) for k in (5, 5, 6))
    assert all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("images", "K", "body_pose"))
    assert not torch.equal(a.images, c.images)
    assert all(np.array_equal(x, y) for x, y in zip(before[0], sample.pictures, strict=True))
    assert np.array_equal(before[1], sample.xy_px, equal_nan=True)
    assert np.array_equal(before[2], sample.confidence)


def test_colour_noise_and_occlusion_are_as_large_as_asked() -> None:
    sample, _ = dotted(1)
    grey = replace(sample, pictures=(np.full((200, 200, 3), 100, np.uint8),) * VIEWS)
    rng = np.random.default_rng(0)

    def images(**values: float) -> NDArray[np.float64]:
        cfg = AugmentConfig(**(UNCHANGED.model_dump() | values))
        rows = [augment(grey, rng, cfg, SIZE) for _ in range(40)]
        return torch.cat([r.images for r in rows]).double().numpy().reshape(-1, 3, SIZE, SIZE)

    gains = images(channel_gain=0.4).mean((2, 3)) / 100
    assert 0.6 <= gains.min() < 0.65
    assert 1.35 < gains.max() <= 1.405
    assert abs(np.corrcoef(gains.T)[0, 1]) < 0.35
    spread = images(noise=8).std((2, 3))
    assert spread.min() < 1
    assert 7 < spread.max() < 8.5
    covered = (images(occlusion=0.5) != 100).any(1).mean((1, 2))
    assert 0.35 < (covered > 0).mean() < 0.65
    assert 0.0 < covered.max() <= 0.26
    hidden = augment(grey, rng, AugmentConfig(**(UNCHANGED.model_dump() | {"occlusion": 1})), SIZE)
    assert (hidden.confidence[0, :, :25] == torch.tensor(0.9)).all()


def test_views_that_show_nobody_and_samples_of_fewer_views() -> None:
    sample, _ = dotted(2)
    box = sample.box.copy()
    box[1] = np.nan
    half = replace(sample, box=box)
    one = Sample(
        **{f.name: getattr(sample, f.name) for f in fields(Sample)}
        | {n: getattr(sample, n)[:1] for n in (
            "cameras", "pictures", "box", "K", "R", "t", "xy_px", "confidence", "joints", "orient",
        )}
    )  # fmt: skip
    batch = collate([augment(s, np.random.default_rng(0), UNCHANGED, SIZE) for s in (sample, half, one)])
    assert batch.images.shape == (3, VIEWS, 3, SIZE, SIZE)
    assert batch.seen.tolist() == [[True, True], [True, False], [True, False]]
    assert batch.cameras == (("a", "b"), ("a", "b"), ("a", ""))
    assert not batch.images[1:, 1].any()
    assert not batch.confidence[1:, 1].any()
    assert batch.K[1:, 1].isnan().all()
    assert batch.K[:, 0].isfinite().all()
    assert batch.R[1].isfinite().all()
    assert batch.R[2, 1].isnan().all()
    assert torch.equal(batch.images[0, 0], batch.images[2, 0])
