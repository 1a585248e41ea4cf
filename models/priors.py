"""What bodies are likely to do: a Gaussian mixture over poses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

POSE_SIZE = 69
"""Axis-angle numbers of the 23 body joints."""


@dataclass(frozen=True)
class PosePrior:
    """A mixture of M Gaussians over axis-angle poses of D numbers (SMPLify, Bogo et al. 2016, eq. 4)."""

    means: Tensor
    """(M, D) radians."""
    covariances: Tensor
    """(M, D, D)"""
    weights: Tensor
    """(M,) sum to 1."""

    def of_joints(
        self, joints: Sequence[int], weight: float, dtype: torch.dtype, device: torch.device
    ) -> PriorTerms:
        """The prior of some SMPL joints (1–23), the others integrated out (exact here), times a weight."""
        pick = torch.tensor([3 * (j - 1) + i for j in joints for i in range(3)])
        covariance = self.covariances.double()[:, pick][:, :, pick]
        log_det = torch.linalg.slogdet(covariance).logabsdet
        offset = -2 * torch.log(self.weights.double()) + log_det
        return PriorTerms(
            self.means[:, pick].to(device, dtype),
            (weight * torch.linalg.inv(covariance)).to(device, dtype),
            (weight * (offset - offset.min())).to(device, dtype),
        )


@dataclass(frozen=True)
class PriorTerms:
    """The prior as the solver uses it: E(θ) = min over m of (θ − μ)ᵀ Λ (θ − μ) + constant.

    −2 log of the mixture's largest term, as in SMPLify; 0 at the mode of the most likely component.
    """

    means: Tensor
    """(M, D)"""
    precisions: Tensor
    """(M, D, D)"""
    constants: Tensor
    """(M,) −2 log weight + log det covariance, the least of them 0."""

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """θ (..., D) → energy (...), Λ (θ − μ) (..., D) and the component (...) that holds there."""
        best: Tensor | None = None
        for m in range(len(self.means)):
            delta = theta - self.means[m]
            pull = delta @ self.precisions[m]
            energy = (delta * pull).sum(-1) + self.constants[m]
            if best is None:
                best, slope, which = (
                    energy,
                    pull,
                    torch.zeros(energy.shape, dtype=torch.long, device=theta.device),
                )
            else:
                better = energy < best
                best = torch.where(better, energy, best)
                slope = torch.where(better[..., None], pull, slope)
                which = torch.where(better, m, which)
        assert best is not None
        return best, slope, which


def load_pose_prior(path: Path | None = None) -> PosePrior:
    """The prior that ships with the project, or another one of the same format (``.npz``)."""
    source = files("models.assets").joinpath("pose_prior.npz") if path is None else path
    with source.open("rb") as f, np.load(f, allow_pickle=False) as d:
        return PosePrior(*(torch.from_numpy(d[k]).double() for k in ("means", "covariances", "weights")))
