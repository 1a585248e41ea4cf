"""Augmentation: crops rotated, scaled, mirrored, recoloured and occluded, and collated to batches.

Cameras, keypoints and truth follow every change exactly. A crop rotated about any of its pixels is the
picture of its camera after a roll and a shift of the principal point: A K = K' Q with K' upper triangular and
Q a rotation about the optical axis, which for pixels that are not square leaves a little skew in K'. A
mirrored crop is a mirrored camera's picture of a mirrored world: so all views of a sample are mirrored, or
none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from models.crops import warp_crop, warp_matrix
from models.training.samples import Sample, Samples
from pipeline.array_types import Array, Pixels
from pipeline.config import Config
from pipeline.skeleton import EXTRA_24, SMPL_24, SPIN_49

_MIRROR: Final = np.diag([-1.0, 1.0, 1.0])


class AugmentConfig(Config):
    """Random augmentation. The defaults are SPIN's, with noise and occlusion added."""

    flip: float = Field(0.5, ge=0, le=1)
    """Share of the samples that are mirrored, in all views."""
    rotation_deg: float = Field(30.0, ge=0, le=90)
    """Standard deviation of a crop's rotation, which is at most twice that."""
    unrotated: float = Field(0.6, ge=0, le=1)
    """Share of the crops that are not rotated."""
    scale: float = Field(0.25, ge=0, lt=0.5)
    """Standard deviation of the factor on a crop's side, and its largest difference from 1."""
    channel_gain: float = Field(0.4, ge=0, le=1)
    """Largest difference from 1 of the factors on red, green and blue."""
    noise: float = Field(4.0, ge=0)
    """Largest standard deviation of each pixel's noise, of 255 levels."""
    occlusion: float = Field(0.2, ge=0, le=1)
    """Share of the crops that are occluded in part, by a rectangle of one colour, a fifth to a half wide and
    high. Keypoints under it are kept: a network is to guess hidden ones."""


UNCHANGED: Final = AugmentConfig(
    flip=0, rotation_deg=0, unrotated=1, scale=0, channel_gain=0, noise=0, occlusion=0
)
"""No augmentation, for validation: crops of the stored size are those of ``run``."""


def augment(sample: Sample, rng: np.random.Generator, cfg: AugmentConfig, size: int) -> Samples:
    """Augment a sample to a batch of one with crops of ``size`` pixels."""
    views = len(sample.cameras)
    flipped = bool(rng.random() < cfg.flip)
    images = np.zeros((views, 3, size, size), np.uint8)
    K, xy = np.full((views, 3, 3), np.nan), np.full_like(sample.xy_px, np.nan)
    turns, roll, zoom = np.tile(np.eye(3), (views, 1, 1)), np.zeros(views), np.ones(views)
    seen: NDArray[np.bool_] = np.all(np.isfinite(sample.box), axis=1)
    for v in range(views):
        angle = np.clip(rng.normal(), -2, 2) * np.radians(cfg.rotation_deg)
        angle = 0.0 if rng.random() < cfg.unrotated else float(angle)
        factor = float(np.clip(1 + cfg.scale * rng.normal(), 1 - cfg.scale, 1 + cfg.scale))
        if not seen[v]:
            continue
        zoom[v] = factor
        warp = warp_matrix(sample.box[v] * [1, 1, factor], angle, size)
        if flipped:
            warp = np.array([[-1.0, 0, size - 1], [0, 1, 0], [0, 0, 1]]) @ warp
        image = warp_crop(sample.pictures[v], warp, size)
        images[v] = _recolour(image, rng, cfg).transpose(2, 0, 1)
        xy[v] = sample.xy_px[v] @ warp[:2, :2].T + warp[:2, 2]
        K[v], turns[v] = split_roll(warp @ sample.K[v] @ (_MIRROR if flipped else np.eye(3)))
        roll[v] = np.arctan2(turns[v, 1, 0], turns[v, 0, 0])
    confidence, joints, body_pose = sample.confidence, sample.joints, sample.body_pose
    R, t, orient = sample.R, sample.t, sample.orient
    if flipped:
        xy, confidence = xy[:, SPIN_49.flips], confidence[:, SPIN_49.flips]
        joints = joints[:, EXTRA_24.flips] @ _MIRROR
        body_pose = _MIRROR @ body_pose[[j - 1 for j in SMPL_24.flips[1:]]] @ _MIRROR
        R, orient, t = _MIRROR @ R @ _MIRROR, _MIRROR @ orient @ _MIRROR, t @ _MIRROR

    def row(x: Array | NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x[None], None if x.dtype == bool else np.float32))

    return Samples(
        ids=(sample.id,),
        cameras=(sample.cameras,),
        flipped=torch.tensor([flipped]),
        roll=row(roll),
        zoom=row(zoom),
        images=torch.from_numpy(images)[None],
        seen=row(seen),
        seen_index=torch.from_numpy(np.flatnonzero(seen)),
        K=row(K),
        R=row(turns @ R),
        t=row((turns @ t[..., None])[..., 0]),
        xy_px=row(xy),
        confidence=row(np.where(np.isfinite(xy).all(-1), confidence, 0)),
        joints=row(joints @ turns.mT),
        orient=row(turns @ orient),
        body_pose=row(body_pose),
        betas=row(sample.betas),
    )


def collate(rows: Sequence[Samples]) -> Samples:
    """Concatenate batches, padding those of fewer views with views that are not seen."""
    views = max(r.seen.shape[1] for r in rows)
    padded = [_pad(r, views) for r in rows]
    tensors = {
        f.name: torch.cat([getattr(r, f.name) for r in padded])
        for f in fields(Samples)
        if "axes" in f.metadata
    }
    tensors["seen_index"] = tensors["seen"].flatten().nonzero()[:, 0]
    return Samples(
        ids=tuple(i for r in padded for i in r.ids),
        cameras=tuple(c for r in padded for c in r.cameras),
        **tensors,
    )


def _pad(row: Samples, views: int) -> Samples:
    """Append views that are not seen, up to ``views``."""
    missing = views - row.seen.shape[1]
    if not missing:
        return row
    values: dict[str, Any] = {}
    for f in fields(Samples):
        axes = f.metadata.get("axes", ())
        if "V" not in axes:
            continue
        x: Tensor = getattr(row, f.name)
        unknown = f.name not in ("images", "seen", "confidence", "roll", "zoom")
        blank = x.new_full((len(x), missing, *x.shape[2:]), torch.nan if unknown else 0)
        values[f.name] = torch.cat([x, blank], 1)
    cameras = tuple((*names, *[""] * missing) for names in row.cameras)
    return replace(row, cameras=cameras, **values)


def split_roll(matrix: Array) -> tuple[Array, Array]:
    """Split a pinhole camera's matrix (3, 3) into K, upper triangular, and a rotation Q about its axis: K Q.

    The last row of ``matrix`` is 0, 0, 1, and its determinant positive.
    """
    (a, b), (c, d) = matrix[:2, :2]
    # The second row of K Q is parallel to that of Q.
    focal = np.hypot(c, d)
    cos, sin = d / focal, c / focal
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    k = matrix.copy()
    k[:2, :2] = [[a * cos - b * sin, a * sin + b * cos], [0, focal]]
    return k, turn


def _recolour(image: Pixels, rng: np.random.Generator, cfg: AugmentConfig) -> Pixels:
    """Occlude, scale the channels and add noise."""
    size = len(image)
    occluded, colour = rng.random() < cfg.occlusion, rng.uniform(0, 255, 3)
    half, middle = rng.uniform(0.1, 0.25, 2) * size, rng.uniform(0, size, 2)
    (x0, y0), (x1, y1) = (np.clip(middle + k * half, 0, size).astype(int) for k in (-1, 1))
    gain = 1 + cfg.channel_gain * rng.uniform(-1, 1, 3)
    sigma = rng.uniform(0, cfg.noise)
    if occluded:
        image = image.copy()
        image[y0:y1, x0:x1] = colour
    if not (cfg.channel_gain or cfg.noise):
        return image
    out = image * gain.astype(np.float32)
    if cfg.noise:
        out = out + np.float32(sigma) * rng.standard_normal(image.shape, np.float32)
    return np.asarray((out + np.float32(0.5)).clip(0, 255), np.uint8)
