"""The pose prior against its own definition, and the shipped mixture against common sense."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.assets.bake_prior import balanced_sample, fit_mixture, log_gaussians, mirror_poses
from models.priors import PosePrior, load_pose_prior
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24

F64 = torch.float64
CPU = torch.device("cpu")
MOTION = Path(__file__).parents[2] / "shared" / "data" / "motion" / "poses.npz"


def small_prior() -> PosePrior:
    g = torch.Generator().manual_seed(0)
    root = torch.randn(3, 69, 69, generator=g, dtype=F64) * 0.1
    covariance = root @ root.mT + 0.05 * torch.eye(69, dtype=F64)
    return PosePrior(
        torch.randn(3, 69, generator=g, dtype=F64), covariance, torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    )


def test_energy_is_minus_twice_the_largest_log_term() -> None:
    prior = small_prior()
    terms = prior.of_joints(range(1, 24), 2.0, F64, CPU)
    theta = torch.randn(40, 69, generator=torch.Generator().manual_seed(1), dtype=F64)
    energy, slope, which = terms.evaluate(theta)
    log = torch.stack(
        [
            torch.distributions.MultivariateNormal(m, c).log_prob(theta) + w.log()
            for m, c, w in zip(prior.means, prior.covariances, prior.weights, strict=True)
        ],
        -1,
    )
    top = log.max(-1)
    assert torch.equal(top.indices, which)
    assert len(which.unique()) == 3
    difference = energy / 2 + 2 * top.values
    assert (difference - difference[0]).abs().max() < 1e-8
    leaf = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(terms.evaluate(leaf)[0].sum() / 2, leaf)
    assert (gradient - slope).abs().max() < 1e-10


def test_joints_left_out_are_integrated_out() -> None:
    prior = small_prior()
    joints = [2, 5, 16]
    terms = prior.of_joints(joints, 1.0, F64, CPU)
    pick = [3 * (j - 1) + i for j in joints for i in range(3)]
    for m in range(3):
        marginal = prior.covariances[m][pick][:, pick]
        assert (torch.linalg.inv(terms.precisions[m]) - marginal).abs().max() < 1e-10
    assert terms.means.shape == (3, 9)
    assert terms.constants.min() == 0


def test_the_shipped_prior_is_a_mixture_of_people() -> None:
    prior = load_pose_prior()
    assert float(prior.weights.sum()) == pytest.approx(1, abs=1e-6)
    assert torch.linalg.eigvalsh(prior.covariances).min() > 1e-3
    terms = prior.of_joints(range(1, 24), 1.0, F64, CPU)

    def energy(**angles: tuple[float, float, float]) -> float:
        pose = torch.zeros(23, 3, dtype=F64)
        pose[SMPL_24.index("left_shoulder") - 1, 2] = -1.1  # arms beside the body
        pose[SMPL_24.index("right_shoulder") - 1, 2] = 1.1
        for joint, value in angles.items():
            pose[SMPL_24.index(joint) - 1] = torch.tensor(value, dtype=F64)
        return float(terms.evaluate(pose.reshape(1, -1))[0])

    assert energy(left_knee=(1.0, 0, 0)) + 10 < energy(left_knee=(-1.0, 0, 0))
    assert energy(right_elbow=(0, 1.0, 0)) + 10 < energy(right_elbow=(0, -1.0, 0))
    assert energy() + 50 < energy(head=(0, 3.0, 0))


def test_the_shipped_prior_does_not_prefer_a_side() -> None:
    prior = load_pose_prior()
    terms = prior.of_joints(range(1, 24), 1.0, F64, CPU)
    g = torch.Generator().manual_seed(2)
    root = torch.linalg.cholesky(prior.covariances)
    poses = (
        prior.means.repeat(30, 1)
        + (root.repeat(30, 1, 1) @ torch.randn(240, 69, 1, generator=g, dtype=F64))[..., 0]
    )
    other = torch.from_numpy(mirror_poses(poses.reshape(-1, 23, 3).numpy())).reshape(-1, 69)
    mean = terms.evaluate(poses)[0].mean(), terms.evaluate(other)[0].mean()
    assert abs(float(mean[0] - mean[1])) < 0.15 * float(mean[0])


def test_mirroring_twice_changes_nothing() -> None:
    pose = np.random.default_rng(0).normal(size=(5, 23, 3))
    assert (mirror_poses(mirror_poses(pose)) == pose).all()
    left = SMPL_24.index("left_elbow") - 1
    assert (mirror_poses(pose)[:, SMPL_24.flips[left + 1] - 1] == pose[:, left] * [1, -1, -1]).all()


def test_categories_and_clips_count_the_same() -> None:
    clip = np.repeat([0, 1, 2, 3], [1000, 10, 100, 100])
    category = np.array(["walk", "walk", "jump", "sit"])
    index = balanced_sample(clip, category, 30000, np.random.default_rng(0))
    share = np.bincount(clip[index]) / 30000
    assert share == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 3], abs=0.015)


def test_mixture_is_found_again() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([[-2.0, 0, 1], [2, 1, 0]])
    x = np.concatenate([m + 0.3 * rng.normal(size=(n, 3)) for m, n in zip(truth, (3000, 1000), strict=True)])
    means, covariances, weights = fit_mixture(x, 2, rng)
    order = np.argsort(means[:, 0])
    assert np.abs(means[order] - truth).max() < 0.03
    assert weights[order] == pytest.approx([0.75, 0.25], abs=0.01)
    assert np.sqrt(np.diagonal(covariances, axis1=1, axis2=2)) == pytest.approx(np.hypot(0.3, 0.08), abs=0.02)
    density = np.exp(log_gaussians(x[:1], means, covariances)) @ weights
    assert density[0] > 0


def test_smplify_mixture_by_path(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    covariance = np.stack([np.diag(rng.uniform(0.1, 1, 69)) for _ in range(8)])
    raw = {"means": rng.normal(size=(8, 69)), "covars": covariance, "weights": np.full(8, 0.5)}
    file = tmp_path / "gmm_08.pkl"
    file.write_bytes(pickle.dumps(raw, protocol=2))
    found = load_pose_prior(file)
    assert torch.equal(found.means, torch.from_numpy(raw["means"]))
    assert torch.equal(found.covariances, torch.from_numpy(covariance))
    assert found.weights.tolist() == [0.125] * 8


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("false",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("code.pkl", pickle.dumps({"means": _Evil()})),
        ("keys.pkl", pickle.dumps({"means": np.zeros((8, 69))})),
        ("shape.pkl", pickle.dumps({"means": np.zeros(69), "covars": np.eye(69), "weights": np.ones(1)})),
        ("cut.npz", b"PK"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=name):
        load_pose_prior(file)


def test_a_missing_prior_is_named() -> None:
    with pytest.raises(InputError, match="nowhere"):
        load_pose_prior(Path("nowhere.npz"))


@pytest.mark.slow
@pytest.mark.skipif(not MOTION.exists(), reason="the motion data is not here")
def test_the_script_makes_the_shipped_file(tmp_path: Path) -> None:
    made = tmp_path / "prior.npz"
    one = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "models.assets.bake_prior", str(MOTION), "--out", str(made)]
    subprocess.run(command, check=True, env=one, cwd=Path(__file__).parents[1])
    fresh, shipped = load_pose_prior(made), load_pose_prior()
    assert torch.equal(fresh.means, shipped.means)
    assert torch.equal(fresh.covariances, shipped.covariances)
