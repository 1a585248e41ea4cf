"""Poses to train on: read, split, drawn, varied and made up."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import roma
import torch
from builders import seeded, some_poses, write_motion

from models.body import load_body, pose_keypoints
from models.priors import load_pose_prior
from models.synthetic import poses as poses_module
from models.synthetic.poses import (
    Poses,
    Sampler,
    draw_from_prior,
    held_out_clips,
    poses_of_people,
    poses_of_prior,
    read_poses,
)
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24


@pytest.fixture
def motion(tmp_path):
    return write_motion(tmp_path)


def test_whole_subjects_and_pairs_of_dancers_are_held_out():
    names = [f"cmu_{subject:02d}_{trial:02d}" for subject in range(7, 13) for trial in range(4)]
    names += [f"cmud_salsa_{i:02d}" for i in range(1, 31)] + [f"cmu_01_{i:02d}" for i in range(10)]
    names += ["cmu_09_06", "cmu_09_07"]
    categories = ["walk"] * 24 + ["salsa"] * 30 + ["playground"] * 10 + ["run"] * 2
    out = held_out_clips(names, categories)
    assert out == held_out_clips(names, categories)
    held = {n for n, o in zip(names, out, strict=True) if o}
    walks = {n[:6] for n in names[:24]}
    assert {sum(n.startswith(w) for n in held) for w in walks - {"cmu_01"}} == {0, 4}
    assert len(held & set(names[:24])) == 4
    salsa = {int(n[-2:]) for n in held if "salsa" in n}
    assert len(salsa) == 4
    assert {i % 15 for i in salsa if i <= 15} == {i % 15 for i in salsa if i > 15}
    assert sum(n.startswith("cmu_01") for n in held) == 2  # one subject: clips
    assert not held & {"cmu_09_06", "cmu_09_07"}  # two clips are too few to spare one


def test_no_clip_is_in_both_halves(motion):
    train_poses, test_poses = read_poses(motion)
    assert len(train_poses.pose) + len(test_poses.pose) == 120
    assert len(test_poses.pose) == 40  # one walker's three clips, one jump
    both = torch.cat([train_poses.pose, test_poses.pose]).flatten(1)
    assert len(torch.unique(both, dim=0)) == 120
    assert sorted(torch.bincount(test_poses.category).tolist()) == [10, 30]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trans": None}, "trans"),
        ({"body_pose": np.zeros((120, 72))}, r"\(120, 72\)"),
        ({"clip_id": np.arange(120)}, "from 0; it has 0 to 119"),
        ({"clip_category": np.array([f"{i}" for i in range(12)])}, "no category has three clips"),
        (b"no motion", "poses"),
        (b"", "poses"),
        (b"PK\x03\x04 cut off", "poses"),
    ],
)
def test_another_file_is_refused_by_name(motion, change, message):
    if isinstance(change, bytes):
        motion.write_bytes(change)
    else:
        with np.load(motion) as d:
            arrays = {**d, **change}
        np.savez(motion, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(InputError, match=message):
        read_poses(motion)


def test_a_category_is_drawn_by_the_root_of_its_frames():
    category = torch.cat([torch.zeros(900), torch.ones(100)]).long()
    poses = Poses(torch.zeros(1000, 24, 3), torch.ones(1000), category, ("many", "few"))
    drawn = Sampler(poses).draw(20000, seeded())
    share = float((category[drawn] == 1).float().mean())
    assert share == pytest.approx(10 / (10 + 30), abs=0.01)
    assert len(torch.unique(drawn)) == 1000


def test_poses_come_as_they_are_or_mirrored():
    poses = some_poses()
    index = torch.arange(40)
    found = roma.rotmat_to_rotvec(Sampler(poses).rotations(index, seeded(), varied=False))
    pose = poses.pose[:40]
    mirrored = pose[:, list(SMPL_24.flips)] * torch.tensor([1.0, -1.0, -1.0])
    as_is = (found - pose).abs().amax((1, 2)) < 1e-5
    flipped = (found - mirrored).abs().amax((1, 2)) < 1e-5
    assert (as_is ^ flipped).all()
    assert 10 < as_is.sum() < 30
    # A mirrored body is the mirror image: x changes its sign, left and right change places.
    body = load_body().keypoints.to(dtype=torch.float32)
    still, flat = torch.zeros(1, 10), torch.zeros(1, 3)
    sampler = Sampler(replace(poses, pose=mirrored))
    turned = [
        Sampler(poses).rotations(index, seeded(), varied=False),
        sampler.rotations(index, seeded(), varied=False),
    ]
    a, b = (pose_keypoints(body, r, still, flat)[0] for r in turned)
    torch.testing.assert_close(a, b[:, list(SMPL_24.flips)] * torch.tensor([-1.0, 1, 1]), atol=1e-4, rtol=0)


def test_varied_poses_stay_near_those_that_were_captured():
    poses = some_poses()
    index = torch.arange(60).repeat(5)
    plain = Sampler(poses).rotations(index, seeded(), varied=True)
    pose = poses.pose[index]
    legs = [1, 2, 4, 5, 7, 8]
    found = roma.rotmat_to_rotvec(plain)[:, legs]
    mirrored = (pose[:, list(SMPL_24.flips)] * torch.tensor([1.0, -1.0, -1.0]))[:, legs]
    off = torch.minimum((found - pose[:, legs]).norm(dim=-1).amax(1), (found - mirrored).norm(dim=-1).amax(1))
    assert 0.5 < float((off < 1e-4).float().mean()) < 0.7  # jitter in 40 %
    assert off.max() < 0.8


@pytest.mark.parametrize("make", [poses_of_prior, poses_of_people])
def test_made_up_poses_stand_upright_on_the_floor(
    make: Callable[[int], Poses], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poses_module, "_SYNTHETIC_PEOPLE", 8)
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


def test_knees_and_elbows_of_drawn_poses_bend_forwards() -> None:
    pose = draw_from_prior(load_pose_prior(), 500, 0.8, np.random.default_rng(0))
    for name, axis, sign in (
        ("left_elbow", 1, -1),
        ("right_elbow", 1, 1),
        ("left_knee", 0, 1),
        ("right_knee", 0, 1),
    ):
        assert (sign * pose[:, SMPL_24.index(name) - 1, axis] >= 0).all()
