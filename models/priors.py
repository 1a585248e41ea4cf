"""Prior of body poses: a Gaussian mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.archives import read_npz
from pipeline.errors import InputError
from pipeline.pickles import unpickle_arrays
from pipeline.skeleton import SMPL_24

POSE_SIZE = 3 * (len(SMPL_24) - 1)
"""Axis-angle numbers of all joints but the root."""


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
        """Marginal prior of ``joints``, numbers in the skeleton without the root's 0, times a weight."""
        return _terms(self, tuple(joints), weight, dtype, device)


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
    """(M,) −2 log weight + log det covariance, minus the smallest of them."""

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """θ (..., D) → energy (...), half its gradient Λ (θ − μ) (..., D), index m of the component (...)."""
        rows = theta.reshape(-1, theta.shape[-1])
        delta = rows - self.means[:, None]  # (M, rows, D): all at once is fewer, larger operations
        half_gradients = delta @ self.precisions
        energy, component = ((delta * half_gradients).sum(-1) + self.constants[:, None]).min(0)
        half_gradient = half_gradients[component, torch.arange(len(rows), device=rows.device)]
        lead = theta.shape[:-1]
        return energy.view(lead), half_gradient.view(theta.shape), component.view(lead)


@lru_cache(maxsize=8)
def _terms(
    prior: PosePrior, joints: tuple[int, ...], weight: float, dtype: torch.dtype, device: torch.device
) -> PriorTerms:
    entries = torch.tensor([3 * (j - 1) + i for j in joints for i in range(3)])
    covariance = prior.covariances.double()[:, entries][:, :, entries]
    log_det = torch.linalg.slogdet(covariance).logabsdet
    offset = -2 * torch.log(prior.weights.double()) + log_det
    return PriorTerms(
        prior.means[:, entries].to(device, dtype),
        (weight * torch.linalg.inv(covariance)).to(device, dtype),
        (weight * (offset - offset.min())).to(device, dtype),
    )


def load_pose_prior(path: Path | None = None) -> PosePrior:
    """The prior that ships with the project, or one from a file.

    A ``.npz`` holds means (M, 69), covariances (M, 69, 69) and weights (M,); a ``.pkl`` is SMPLify's
    ``gmm_08.pkl`` with means, covars and weights, unpickled without running code. Raises ``InputError`` when
    the file is neither.
    """
    source = files("models.assets") / "pose_prior.npz" if path is None else path
    try:
        content = source.read_bytes()
        if source.name.lower().endswith(".pkl"):
            raw = unpickle_arrays(content)
            arrays = [np.asarray(raw[k], np.float64) for k in ("means", "covars", "weights")]
        else:
            d = read_npz(content)
            arrays = [np.asarray(d[k], np.float64) for k in ("means", "covariances", "weights")]
    except Exception as error:  # a damaged file can fail in any way
        raise InputError(
            f"{path}: no pose prior ({error!r}). Give SMPLify's gmm_08.pkl or a file made by "
            "models/assets/bake_prior.py."
        ) from error
    means, covariances, weights = arrays
    size = (weights.size, POSE_SIZE)
    finite = all(np.isfinite(x).all() for x in arrays)
    if (
        not finite
        or weights.ndim != 1
        or not weights.sum() > 0
        or means.shape != size
        or covariances.shape != (*size, POSE_SIZE)
    ):
        raise InputError(
            f"{path}: means {means.shape}, covariances {covariances.shape}, weights {weights.shape} are no "
            f"mixture over the {POSE_SIZE} numbers of a body pose."
        )
    return PosePrior(*(torch.from_numpy(x) for x in (means, covariances, weights / weights.sum())))
