"""Made-up pictures: whether what is drawn, what is detected and what is said to be true are one thing."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import fields

import cv2
import numpy as np
import pytest
import roma
import torch

from models.body import load_body, pose_keypoints
from models.evaluation.joints import extra_24
from models.training import pictures
from models.training.crop_store import ROOM
from models.training.pictures import SyntheticPictures, poses_of_people, poses_of_prior
from models.training.poses import Poses
from models.training.projections import Difficulty
from models.training.samples import Sample

SIZE = 128
EXACT = Difficulty(noise=0.0)


@pytest.fixture(scope="module")
def source() -> SyntheticPictures:
    return SyntheticPictures(poses_of_prior(), count=40, views=3, size=SIZE, difficulty=EXACT)


def same(a: Sample, b: Sample) -> bool:
    def equal(x: object, y: object) -> bool:
        if isinstance(x, np.ndarray):
            return np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        if isinstance(x, tuple):
            return all(equal(p, q) for p, q in zip(x, y, strict=True))
        return x == y

    return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Sample))


def test_a_sample_follows_from_seed_and_index_alone(source: SyntheticPictures) -> None:
    third = source[3]
    source[0], source[17]
    assert same(source[3], third)
    assert same(pickle.loads(pickle.dumps(source))[3], third)
    again = SyntheticPictures(source.projections.sampler.poses, count=9, views=3, size=SIZE, difficulty=EXACT)
    assert same(again[3], third)
    assert len(again) == 9
    assert same(again[9 + 3], third)
    other = SyntheticPictures(source.projections.sampler.poses, count=9, views=3, size=SIZE, seed=1)
    tested = SyntheticPictures(source.projections.sampler.poses, count=9, views=3, size=SIZE, split="test")
    ids = {s.id for s in (third, source[4], other[3], tested[3])}
    assert len(ids) == 4
    for s in (source[4], other[3], tested[3]):
        assert not np.allclose(s.body_pose, third.body_pose)


def test_truth_keypoints_and_cameras_agree(source: SyntheticPictures) -> None:
    """Pose and shape, placed by one of the true joints, are where the cameras saw the points."""
    body, extra = source.body.keypoints, extra_24(source.body)
    off = []
    for i in range(6):
        s = source[i]
        for v in range(3):
            rotations = torch.from_numpy(np.concatenate([s.orient[v, None], s.body_pose]))
            betas = torch.from_numpy(s.betas)
            _, joints = pose_keypoints(extra, rotations, betas, torch.zeros(3, dtype=torch.float64))
            transl = torch.from_numpy(s.joints[v]).mean(0) - joints.mean(0)
            assert torch.allclose(joints + transl, torch.from_numpy(s.joints[v]), atol=1e-5)
            _, points = pose_keypoints(body, rotations, betas, transl)
            seen = (points / points[:, 2:]).numpy() @ s.K[v].T
            found = s.confidence[v, :25] > 0
            assert np.abs(seen[found, :2] - s.xy_px[v, :25][found]).max() < 0.05
            marked = (s.joints[v] / s.joints[v][:, 2:] @ s.K[v].T)[:, :2] - s.xy_px[v, 25:]
            off.append(marked[s.confidence[v, 25:] > 0])
    noise = np.concatenate(off)
    assert 0.8 < noise.std() / (0.01 * SIZE) < 1.2
    assert abs(noise.mean()) < 0.15


def test_the_views_share_one_body_in_one_world(source: SyntheticPictures) -> None:
    s = source[2]
    in_world = np.stack([(s.joints[v] - s.t[v]) @ s.R[v] for v in range(3)])
    assert np.abs(in_world - in_world[0]).max() < 1e-6
    orient = s.R.mT @ s.orient
    assert np.abs(orient - orient[0]).max() < 1e-6


def test_the_person_is_drawn_where_the_keypoints_are(
    source: SyntheticPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    green = np.array([0, 255, 0])
    monkeypatch.setattr(
        pictures, "_background", lambda side, clutter, rng: np.full((side, side, 3), green, np.uint8)
    )
    monkeypatch.setattr(source, "_grain", np.zeros_like(source._grain))
    for i in range(4):
        s = source[i]
        for v, picture in enumerate(s.pictures):
            assert picture.shape == (ROOM * SIZE, ROOM * SIZE, 3)
            person = cv2.dilate((picture != green).any(-1).astype(np.uint8), np.ones((3, 3)))
            points = s.xy_px[v, :25][s.confidence[v, :25] > 0]
            at = points.round().astype(int)
            inside = ((at >= 0) & (at < len(picture))).all(1)
            assert person[at[inside, 1], at[inside, 0]].mean() > 0.95
            if inside.all():
                rows, columns = np.nonzero(person)
                low, high = points.min(0), points.max(0)
                reach = 0.15 * SIZE  # fingers, crown and flesh beyond the points
                for edge, found in ((low, (columns.min(), rows.min())), (high, (columns.max(), rows.max()))):
                    assert np.abs(edge - found).max() < reach


def test_box_is_the_crops_and_has_the_person(source: SyntheticPictures) -> None:
    for i in range(6):
        s = source[i]
        seen = np.isfinite(s.box).all(1)
        assert seen.any()
        assert np.allclose(s.box[seen], [(ROOM * SIZE - 1) / 2] * 2 + [SIZE])
        for v in np.flatnonzero(seen):
            points = s.xy_px[v, :25][s.confidence[v, :25] > 0.2]
            assert np.ptp(points, axis=0).max() == pytest.approx(SIZE / 1.2, rel=1e-3)


def test_detectors_errors_are_of_the_crops_size() -> None:
    poses = poses_of_prior()
    noisy, clean = (
        SyntheticPictures(poses, count=20, views=2, size=SIZE, difficulty=d)
        for d in (Difficulty(noise=1.0), EXACT)
    )
    missing, off = [], []
    for i in range(20):
        a, b = noisy[i], clean[i]
        missing.append((a.confidence[:, :25] == 0).mean())
        # The two have boxes of their own: compare directions in the cameras.
        rays = [
            np.einsum("vij,vkj->vki", np.linalg.inv(s.K), _ones(s.xy_px[:, :25]))[..., :2] for s in (a, b)
        ]
        off.append((np.linalg.norm(rays[0] - rays[1], axis=-1) * a.K[:, :1, 0])[a.confidence[:, :25] > 0.5])
    assert 0.1 < np.mean(missing) < 0.4
    assert 0.003 * SIZE < np.nanmedian(np.concatenate(off)) < 0.03 * SIZE


def _ones(xy: np.ndarray) -> np.ndarray:
    return np.concatenate([xy, np.ones_like(xy[..., :1])], -1)


def test_less_clutter_is_less_in_the_background() -> None:
    def roughness(clutter: float) -> float:
        rng = np.random.default_rng(0)
        made = [pictures._background(96, clutter, rng).astype(float) for _ in range(20)]
        return float(np.mean([np.abs(np.diff(p, axis=1)).mean() for p in made]))

    assert 8 * roughness(0) < roughness(1)
    assert roughness(0) < roughness(0.5) < roughness(1)


@pytest.mark.parametrize("make", [poses_of_prior, poses_of_people])
def test_made_up_poses_stand_upright_on_the_floor(
    make: Callable[[int], Poses], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_PEOPLE", 8)
    poses = make(3)
    assert poses.pose.shape[1:] == (24, 3)
    assert len(poses.pose) >= 512
    rotations = roma.rotvec_to_rotmat(poses.pose.double())
    body = load_body().keypoints
    _, points = pose_keypoints(body, rotations, torch.zeros(10, dtype=torch.float64), torch.zeros(3).double())
    over = points[..., 1] - points[:, 8:9, 1] + poses.height[:, None]
    assert over[:, 0].median() > 1.3  # the nose
    assert -0.02 < over.amin(1).median() < 0.08
    assert torch.equal(poses.pose, make(3).pose)
    assert not torch.equal(poses.pose, make(4).pose)
