"""Errors of a synthetic keypoint detector: of a recording's frames, and of single people to train on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.synthetic.poses import chance, uniform
from pipeline.skeleton import BODY_25

Array = NDArray[np.float64]

_ARMS: Final = ("Elbow", "Wrist")
_LEGS: Final = ("Knee", "Ankle", "BigToe", "SmallToe", "Heel")


@dataclass(frozen=True)
class Noise:
    """Errors of a keypoint detector."""

    sigma_px: float
    """Standard deviation of each coordinate, pixels of the picture."""
    outliers: float
    """Share of the points that are found somewhere else, 40 to 120 px away."""
    missing: float
    """Share of the points that are not found."""
    gaps: float
    """Share of the frames in which a camera finds nobody, in runs."""
    seed: int


_GAP_BLOCK: Final = 75
"""Frames in which each camera has one gap."""


def detect(true_px: Array, size: NDArray[np.int64], start: int, noise: Noise) -> Array:
    """Detections of J points with a detector's errors.

    Args:
        true_px: (V, T, P, J, 2) pixels of the video frame; NaN where there is none.
        size: (V, 2) picture width and height, pixels.
        start: number of the first frame: a frame's noise depends on the seed and its number alone.
        noise: how much of what.

    Returns:
        (V, T, P, J, 3) x, y and confidence; a point that is missing or outside the picture is NaN, NaN, 0.
        The confidence falls with a random share of the error, as a detector feels only some of its errors.
    """
    found = np.concatenate([true_px, np.ones((*true_px.shape[:-1], 1))], -1)
    for i in range(true_px.shape[1]):
        rng = np.random.default_rng([noise.seed, 4, start + i])
        shape = (true_px.shape[0], *true_px.shape[2:-1])
        offset = noise.sigma_px * rng.normal(size=(*shape, 2))
        away, way = rng.uniform(40, 120, shape), rng.uniform(0, 2 * np.pi, shape)
        jump = (away * np.stack([np.cos(way), np.sin(way)])).transpose(*range(1, len(shape) + 1), 0)
        offset = np.where((rng.random(shape) < noise.outliers)[..., None], jump, offset)
        felt = np.linalg.norm(offset, axis=-1) * rng.uniform(0, 1, shape)
        confidence = np.clip(0.88 * np.exp(-felt / 40) + 0.06 * rng.normal(size=shape), 0.05, 1.0)
        lost = rng.random(shape) < noise.missing
        lost |= _in_gap(len(size), start + i, noise)[:, None, None]
        found[:, i, ..., :2] += offset
        found[:, i, ..., 2] = np.where(lost, 0.0, confidence)
    xy, border = found[..., :2], size[:, None, None, None] - 0.5
    with np.errstate(invalid="ignore"):
        inside = ((xy >= -0.5) & (xy < border)).all(-1) & (found[..., 2] > 0)
    found[~inside] = np.nan, np.nan, 0.0
    return found


def _in_gap(views: int, frame: int, noise: Noise) -> NDArray[np.bool_]:
    """(V,) True for cameras that find nobody in this frame: one run of frames in every block."""
    block, i = divmod(frame, _GAP_BLOCK)
    rng = np.random.default_rng([noise.seed, 5, block])
    length = np.round(noise.gaps * _GAP_BLOCK * rng.uniform(0.6, 1.4, views))
    begin = np.floor(rng.uniform(0, 1, views) * (_GAP_BLOCK - length + 1))
    return np.asarray((i >= begin) & (i < begin + length))


def detect_people(true: Tensor, size: Tensor, noise: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Detections (N, V, K, 2) and confidences of BODY_25 points (N, V, K, 2).

    noise: (N, 1, 1), scales the errors.

    In units of the longer side of the person's box: Gaussian 0.5–2 %; 5 % of the points 5–15 % away; left
    and right limbs exchanged in 2.5 %; 10–20 % of the points dropped; a box over a quarter of the views.
    Confidence falls with a random share of the error, as a detector feels only some of its errors.
    """
    n, v, k, _ = true.shape
    box = (true.amax(2) - true.amin(2)).amax(-1)[..., None]  # (N, V, 1)
    sigma = noise * uniform(rng, 0.005, 0.02, n, v, 1) * box
    offset = sigma[..., None] * torch.randn(n, v, k, 2, generator=rng)
    far = chance(rng, 0.05 * noise, n, v, k)
    way = uniform(rng, 0, 2 * math.pi, n, v, k)
    jump = uniform(rng, 0.05, 0.15, n, v, k) * box
    offset = offset + (far * jump)[..., None] * torch.stack([way.cos(), way.sin()], -1)
    found = true + offset
    for limb in (_ARMS, _LEGS):
        swap = torch.arange(k)
        for part in limb:
            left, right = BODY_25.index(f"L{part}"), BODY_25.index(f"R{part}")
            swap[left], swap[right] = right, left
        wrong = chance(rng, 0.025 * noise, n, v, 1)[..., None]
        found = torch.where(wrong, found[:, :, swap], found)
    error = (found - true).norm(dim=-1)
    felt = error * uniform(rng, 0, 1, n, v, k) / (0.06 * box)
    sure = uniform(rng, 0.75, 1.0, n, v, 1) * (-felt).exp() + 0.06 * torch.randn(n, v, k, generator=rng)
    lost = torch.rand(n, v, k, generator=rng) < noise * uniform(rng, 0.1, 0.2, n, v, 1)
    middle = true.gather(2, torch.randint(0, k, (n, v, 1, 1), generator=rng).expand(n, v, 1, 2))
    half = uniform(rng, 0.08, 0.25, n, v, 1, 2) * box[..., None]
    covered = ((true - middle).abs() < half).all(-1) & chance(rng, 0.25 * noise, n, v, 1)
    inside = ((found >= 0) & (found <= size[:, :, None] - 1)).all(-1)
    gone = lost | covered | ~inside
    return found.masked_fill(gone[..., None], torch.nan), sure.clamp(0.05, 1.0).masked_fill(gone, 0)


_BLAZEPOSE_SIGMA_MM: Final = {"Ankle": 11, "Toe": 16, "Heel": 16, "Hip": 22, "Nose": 22, "Eye": 22, "Ear": 22}
"""Standard deviations of BlazePose heavy's points, at the person: 25 mm (median) from where three other views
have them, in the recording of tests/benchmarks/detect.json …"""
_BLAZEPOSE_SIGMA_ELSE_MM: Final = 18
"""… and of all its other points."""
_BOX_MM: Final = 1700
"""Longer side of a standing person's box, by which errors in millimetres become errors in the picture."""


def blazepose_people(
    true: Tensor, size: Tensor, noise: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Detections as ``detect_people``, with the errors of BlazePose heavy; ``true`` are its own points.

    Gaussian by the kind of point; 5 % of the points 5–15 % of the box away. Nothing is dropped, and left and
    right are not exchanged: what a box over a quarter of the views covers is guessed, three times as far off,
    with less confidence. Elsewhere confidence says nothing of the error. It has no small toes.
    """
    n, v, k, _ = true.shape
    box = (true.amax(2) - true.amin(2)).amax(-1)[..., None]
    kinds = [
        next(
            (mm for part, mm in _BLAZEPOSE_SIGMA_MM.items() if name.endswith(part)), _BLAZEPOSE_SIGMA_ELSE_MM
        )
        for name in BODY_25.names
    ]
    middle = true.gather(2, torch.randint(0, k, (n, v, 1, 1), generator=rng).expand(n, v, 1, 2))
    half = uniform(rng, 0.08, 0.25, n, v, 1, 2) * box[..., None]
    covered = ((true - middle).abs() < half).all(-1) & chance(rng, 0.25 * noise, n, v, 1)
    sigma = noise * uniform(rng, 0.6, 1.4, n, v, 1) * box * torch.tensor(kinds) / _BOX_MM
    sigma = torch.where(covered, 3 * sigma, sigma)
    way, jump = uniform(rng, 0, 2 * math.pi, n, v, k), uniform(rng, 0.05, 0.15, n, v, k) * box
    jump = jump * chance(rng, 0.05 * noise, n, v, k)
    found = true + sigma[..., None] * torch.randn(n, v, k, 2, generator=rng)
    found = found + jump[..., None] * torch.stack([way.cos(), way.sin()], -1)
    sure = uniform(rng, 0.8, 1.0, n, v, k) * torch.where(covered, uniform(rng, 0.3, 1.0, n, v, k), 1.0)
    inside = ((found >= 0) & (found <= size[:, :, None] - 1)).all(-1)
    gone = ~inside | torch.tensor([name.endswith("SmallToe") for name in BODY_25.names])
    return found.masked_fill(gone[..., None], torch.nan), sure.masked_fill(gone, 0)
