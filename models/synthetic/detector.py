"""Errors of synthetic keypoint detectors: in the frames of a recording, and in training samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.synthetic.poses import chance, uniform
from pipeline.array_types import Array
from pipeline.skeleton import BODY_25

_ARMS: Final = ("Elbow", "Wrist")
_LEGS: Final = ("Knee", "Ankle", "BigToe", "SmallToe", "Heel")


@dataclass(frozen=True)
class Noise:
    """Errors of a keypoint detector."""

    sigma_px: float
    """Standard deviation of each coordinate, pixels of the picture."""
    outliers: float
    """Share of points that are detected 40 to 120 px away."""
    missing: float
    """Share of points that are not detected."""
    gaps: float
    """Share of frames, in runs, in which a camera detects nothing."""
    seed: int


_GAP_BLOCK: Final = 75
"""Frames with one gap of each camera."""


def simulate_detections(true_px: Array, size: NDArray[np.int64], start: int, noise: Noise) -> Array:
    """Detections of J points with errors.

    Args:
        true_px: (V, T, P, J, 2) pixels of the video frame; NaN where missing.
        size: (V, 2) picture width and height, pixels.
        start: number of the first frame: the errors of a frame depend on the seed and its number alone.
        noise: amount of errors.

    Returns:
        (V, T, P, J, 3) x, y and confidence; NaN, NaN, 0 for a point that is missing or outside the picture.
        Confidence falls with a random share of the error, as detectors know only part of their errors.
    """
    detected = np.concatenate([true_px, np.ones((*true_px.shape[:-1], 1))], -1)
    for i in range(true_px.shape[1]):
        rng = np.random.default_rng([noise.seed, 4, start + i])
        shape = (true_px.shape[0], *true_px.shape[2:-1])
        offset = noise.sigma_px * rng.normal(size=(*shape, 2))
        distance, angle = rng.uniform(40, 120, shape), rng.uniform(0, 2 * np.pi, shape)
        jump = (distance * np.stack([np.cos(angle), np.sin(angle)])).transpose(*range(1, len(shape) + 1), 0)
        offset = np.where((rng.random(shape) < noise.outliers)[..., None], jump, offset)
        known_error = np.linalg.norm(offset, axis=-1) * rng.uniform(0, 1, shape)
        confidence = np.clip(0.88 * np.exp(-known_error / 40) + 0.06 * rng.normal(size=shape), 0.05, 1.0)
        missing = rng.random(shape) < noise.missing
        missing |= _in_gap(len(size), start + i, noise)[:, None, None]
        detected[:, i, ..., :2] += offset
        detected[:, i, ..., 2] = np.where(missing, 0.0, confidence)
    xy, border = detected[..., :2], size[:, None, None, None] - 0.5
    with np.errstate(invalid="ignore"):
        inside = ((xy >= -0.5) & (xy < border)).all(-1) & (detected[..., 2] > 0)
    detected[~inside] = np.nan, np.nan, 0.0
    return detected


def _in_gap(views: int, frame: int, noise: Noise) -> NDArray[np.bool_]:
    """(V,) true for cameras that detect nothing in this frame: one run of frames in each block."""
    block, i = divmod(frame, _GAP_BLOCK)
    rng = np.random.default_rng([noise.seed, 5, block])
    length = np.round(noise.gaps * _GAP_BLOCK * rng.uniform(0.6, 1.4, views))
    begin = np.floor(rng.uniform(0, 1, views) * (_GAP_BLOCK - length + 1))
    return np.asarray((i >= begin) & (i < begin + length))


def simulate_openpose(
    true: Tensor, size: Tensor, noise: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Detect BODY_25 points (N, V, K, 2) with errors: points (N, V, K, 2) and confidences (N, V, K).

    noise: (N, 1, 1) scale of the errors. By the longer side of the person's box: Gaussian 0.5–2 %; 5 % of the
    points 5–15 % away; left and right limbs exchanged in 2.5 %; 10–20 % of the points dropped; a quarter of
    the views partly covered by a box. Confidence falls with a random share of the error.
    """
    n, v, k, _ = true.shape
    box = (true.amax(2) - true.amin(2)).amax(-1)[..., None]  # (N, V, 1)
    sigma = noise * uniform(rng, 0.005, 0.02, n, v, 1) * box
    offset = sigma[..., None] * torch.randn(n, v, k, 2, generator=rng)
    is_outlier = chance(rng, 0.05 * noise, n, v, k)
    angle = uniform(rng, 0, 2 * math.pi, n, v, k)
    jump = uniform(rng, 0.05, 0.15, n, v, k) * box
    offset = offset + (is_outlier * jump)[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    detected = true + offset
    for limb in (_ARMS, _LEGS):
        mirror = torch.arange(k)
        for part in limb:
            left, right = BODY_25.index(f"L{part}"), BODY_25.index(f"R{part}")
            mirror[left], mirror[right] = right, left
        exchanged = chance(rng, 0.025 * noise, n, v, 1)[..., None]
        detected = torch.where(exchanged, detected[:, :, mirror], detected)
    error = (detected - true).norm(dim=-1)
    known_error = error * uniform(rng, 0, 1, n, v, k) / (0.06 * box)
    confidence = uniform(rng, 0.75, 1.0, n, v, 1) * (-known_error).exp()
    confidence = confidence + 0.06 * torch.randn(n, v, k, generator=rng)
    missing = torch.rand(n, v, k, generator=rng) < noise * uniform(rng, 0.1, 0.2, n, v, 1)
    missing |= _covered(true, box, noise, rng) | _outside(detected, size)
    confidence = confidence.clamp(0.05, 1.0).masked_fill(missing, 0)
    return detected.masked_fill(missing[..., None], torch.nan), confidence


def _covered(true: Tensor, box: Tensor, noise: Tensor, rng: torch.Generator) -> Tensor:
    """(N, V, K) true for points that a random box around one of them covers, in a quarter of the views."""
    n, v, k, _ = true.shape
    middle = true.gather(2, torch.randint(0, k, (n, v, 1, 1), generator=rng).expand(n, v, 1, 2))
    half = uniform(rng, 0.08, 0.25, n, v, 1, 2) * box[..., None]
    return ((true - middle).abs() < half).all(-1) & chance(rng, 0.25 * noise, n, v, 1)


def _outside(points: Tensor, size: Tensor) -> Tensor:
    """(N, V, K) true for points (N, V, K, 2) outside their picture (N, V, 2)."""
    return ~((points >= 0) & (points <= size[:, :, None] - 1)).all(-1)


_BLAZEPOSE_SIGMA_MM: Final = {"Ankle": 11, "Toe": 16, "Heel": 16, "Hip": 22, "Nose": 22, "Eye": 22, "Ear": 22}
"""Standard deviation of BlazePose heavy's points, at the person, by ending. Their median distance
from the points of three other views is 25 mm, in the recording of tests/benchmarks/detect.json."""
_BLAZEPOSE_OTHER_SIGMA_MM: Final = 18
"""Standard deviation of all other points."""
_BOX_MM: Final = 1700
"""Longer side of a standing person's box, which converts millimetres to shares of the box."""


def simulate_blazepose(
    true: Tensor, size: Tensor, noise: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Detect as ``simulate_openpose``, with the errors of BlazePose heavy; ``true`` are its own points.

    Gaussian by the kind of point; 5 % of the points 5–15 % of the box away. No point is dropped or exchanged;
    those that a box covers, in a quarter of the views, have three times the error and less confidence.
    Otherwise confidence is independent of the error. Small toes are missing.
    """
    n, v, k, _ = true.shape
    box = (true.amax(2) - true.amin(2)).amax(-1)[..., None]
    by_ending = _BLAZEPOSE_SIGMA_MM.items()
    sigma_mm = [
        next((mm for ending, mm in by_ending if name.endswith(ending)), _BLAZEPOSE_OTHER_SIGMA_MM)
        for name in BODY_25.names
    ]
    covered = _covered(true, box, noise, rng)
    sigma = noise * uniform(rng, 0.6, 1.4, n, v, 1) * box * torch.tensor(sigma_mm) / _BOX_MM
    sigma = torch.where(covered, 3 * sigma, sigma)
    angle, jump = uniform(rng, 0, 2 * math.pi, n, v, k), uniform(rng, 0.05, 0.15, n, v, k) * box
    jump = jump * chance(rng, 0.05 * noise, n, v, k)
    detected = true + sigma[..., None] * torch.randn(n, v, k, 2, generator=rng)
    detected = detected + jump[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    confidence = uniform(rng, 0.8, 1.0, n, v, k) * torch.where(covered, uniform(rng, 0.3, 1.0, n, v, k), 1.0)
    missing = _outside(detected, size)
    missing |= torch.tensor([name.endswith("SmallToe") for name in BODY_25.names])
    return detected.masked_fill(missing[..., None], torch.nan), confidence.masked_fill(missing, 0)
