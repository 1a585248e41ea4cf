"""Made-up pictures: whether what is drawn, what is detected and what is said to be true are one thing."""

from __future__ import annotations

import pickle
from dataclasses import fields

import cv2
import numpy as np
import pytest
import torch

from models.body import pose_keypoints
from models.evaluation.joints import extra_24
from models.synthetic import pictures
from models.synthetic.poses import poses_of_prior
from models.synthetic.projections import Difficulty
from models.training.samples import Sample, Sampling
from models.training.synthetic import SyntheticPeople

SIZE, WIDE = 128, 192
EXACT = Difficulty(noise=0.0)


@pytest.fixture(scope="module")
def source() -> SyntheticPeople:
    return SyntheticPeople(poses_of_prior(), count=40, sampling=Sampling(3, SIZE), difficulty=EXACT)


def same(a: Sample, b: Sample) -> bool:
    def equal(x: object, y: object) -> bool:
        if isinstance(x, np.ndarray):
            return np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        if isinstance(x, tuple):
            return all(equal(p, q) for p, q in zip(x, y, strict=True))
        return x == y

    return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Sample))


def test_a_sample_follows_from_seed_and_index_alone(source: SyntheticPeople) -> None:
    third, given = source[3], source.projections.sampler.poses
    source[0], source[17]
    assert same(source[3], third)
    assert same(pickle.loads(pickle.dumps(source))[3], third)
    again = SyntheticPeople(given, count=9, sampling=Sampling(3, SIZE), difficulty=EXACT)
    assert same(again[3], third)
    assert len(again) == 9
    assert same(again[9 + 3], third)
    other = SyntheticPeople(given, count=9, sampling=Sampling(3, SIZE, 1))
    tested = SyntheticPeople(given, count=9, sampling=Sampling(3, SIZE), split="test")
    ids = {s.id for s in (third, source[4], other[3], tested[3])}
    assert len(ids) == 4
    for s in (source[4], other[3], tested[3]):
        assert not np.allclose(s.body_pose, third.body_pose)


def test_truth_keypoints_and_cameras_agree(source: SyntheticPeople) -> None:
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


def test_the_views_share_one_body_in_one_world(source: SyntheticPeople) -> None:
    s = source[2]
    in_world = np.stack([(s.joints[v] - s.t[v]) @ s.R[v] for v in range(3)])
    assert np.abs(in_world - in_world[0]).max() < 1e-6
    orient = s.R.mT @ s.orient
    assert np.abs(orient - orient[0]).max() < 1e-6


def test_the_person_is_drawn_where_the_keypoints_are(
    source: SyntheticPeople, monkeypatch: pytest.MonkeyPatch
) -> None:
    green = np.array([0, 255, 0])
    monkeypatch.setattr(
        pictures, "clutter_picture", lambda side, clutter, rng: np.full((side, side, 3), green, np.uint8)
    )
    monkeypatch.setattr(source._portraits, "_sensor_noise", np.zeros_like(source._portraits._sensor_noise))
    for i in range(4):
        s = source[i]
        for v, picture in enumerate(s.pictures):
            assert picture.shape == (WIDE, WIDE, 3)
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


def test_box_is_the_crops_and_has_the_person(source: SyntheticPeople) -> None:
    for i in range(6):
        s = source[i]
        seen = np.isfinite(s.box).all(1)
        assert seen.any()
        assert np.allclose(s.box[seen], [(WIDE - 1) / 2] * 2 + [SIZE])
        for v in np.flatnonzero(seen):
            points = s.xy_px[v, :25][s.confidence[v, :25] > 0.2]
            assert np.ptp(points, axis=0).max() == pytest.approx(SIZE / 1.2, rel=2e-2)


def test_detectors_errors_are_of_the_crops_size() -> None:
    poses = poses_of_prior()
    noisy, clean = (
        SyntheticPeople(poses, count=20, sampling=Sampling(2, SIZE), difficulty=d)
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
