"""Bake ``pose_prior.npz``, a Gaussian mixture over human poses, from motion capture.

    python -m models.assets.bake_prior POSES.npz

POSES.npz: ``body_pose`` (N, J, 3) axis-angle of the SMPL joints, ``clip_id`` (N,) and
``clip_category`` (clips,).
Every category has the same weight, and poses are complemented by their mirror images. Every tenth clip is
held out to measure the fit. The same input gives the same file, bit for bit, on one thread.

The motion of the shipped file: "The data used in this project was obtained from mocap.cs.cmu.edu. The
database was created with funding from NSF EIA-0196217."
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.priors import POSE_SIZE
from pipeline.array_types import Array
from pipeline.skeleton import SMPL_24

FLOOR_SIGMA_RAD = 0.08
"""Standard deviation added in quadrature to all, 4.6°, for poses that the motion of a few dozen people lacks.
Also keeps covariances of joints without motion (hands) invertible."""


def mirror_poses(pose: Array) -> Array:
    """Exchange left and right of poses (N, J − 1, 3)."""
    flips = [j - 1 for j in SMPL_24.flips[1:]]
    return np.asarray(pose[:, flips] * np.array([1.0, -1.0, -1.0]))


def balanced_sample(
    clip: NDArray[np.int64], category: NDArray[np.str_], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw indices of ``count`` frames, each category and each clip of a category equally often."""
    _, cat = np.unique(category[clip], return_inverse=True)
    clip_frames = np.bincount(clip, minlength=clip.max() + 1)
    category_clips = np.array([len(np.unique(clip[cat == c])) for c in range(cat.max() + 1)])
    p = 1 / clip_frames[clip] / category_clips[cat]
    return rng.choice(len(clip), count, p=p / p.sum())


def log_gaussians(x: Array, means: Array, covariances: Array) -> Array:
    """Log density (N, M) of x (N, D) under M Gaussians."""
    out = []
    for mean, cov in zip(means, covariances, strict=True):
        chol = np.linalg.cholesky(cov)
        z = np.linalg.solve(chol, (x - mean).T)
        log_det = np.log(np.diag(chol)).sum()
        out.append(-0.5 * (z**2).sum(0) - log_det - 0.5 * len(mean) * np.log(2 * np.pi))
    return np.stack(out, -1)


def fit_mixture(x: Array, components: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Fit means, covariances and weights by expectation–maximisation from a k-means++ start."""
    centres = [x[rng.integers(len(x))]]
    for _ in range(components - 1):
        d2 = np.min([((x - c) ** 2).sum(1) for c in centres], axis=0)
        centres.append(x[rng.choice(len(x), p=d2 / d2.sum())])
    nearest = np.argmin([((x - c) ** 2).sum(1) for c in centres], axis=0)
    responsibility = np.eye(components)[nearest]
    for _ in range(60):
        mass = responsibility.sum(0)
        means = responsibility.T @ x / mass[:, None]
        covariances = np.empty((components, x.shape[1], x.shape[1]))
        for m in range(components):
            d = x - means[m]
            covariance = (responsibility[:, m, None] * d).T @ d / mass[m]
            covariances[m] = covariance + FLOOR_SIGMA_RAD**2 * np.eye(x.shape[1])
        weights = mass / mass.sum()
        log_p = log_gaussians(x, means, covariances) + np.log(weights)
        responsibility = np.exp(log_p - log_p.max(1, keepdims=True))
        responsibility /= responsibility.sum(1, keepdims=True)
    return means, covariances, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("poses", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pose_prior.npz")
    parser.add_argument("--components", type=int, default=8)
    args = parser.parse_args()
    with np.load(args.poses, allow_pickle=False) as d:
        pose = d["body_pose"][:, 1:].astype(np.float64)
        clip, category = d["clip_id"].astype(np.int64), d["clip_category"]
    rng = np.random.default_rng(0)
    held_out = clip % 10 == 9
    sets = {}
    for name, keep in (("train", ~held_out), ("held out", held_out)):
        index = np.flatnonzero(keep)
        index = index[balanced_sample(clip[index], category, 24000 if name == "train" else 4000, rng)]
        sets[name] = np.concatenate([pose[index], mirror_poses(pose[index])]).reshape(-1, POSE_SIZE)
    means, covariances, weights = fit_mixture(sets["train"], args.components, rng)
    for name, x in sets.items():
        mean = float(np.logaddexp.reduce(log_gaussians(x, means, covariances) + np.log(weights), 1).mean())
        print(f"{name}: log-likelihood {mean:.2f} a pose")
    np.savez_compressed(
        args.out,
        means=means.astype(np.float32),
        covariances=covariances.astype(np.float32),
        weights=weights.astype(np.float32),
    )
    print(f"{args.out}: {args.components} components, {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
