"""What the keypoint nets are taught, from samples whose truth is known. Weights: see each function."""

from __future__ import annotations

import math
from typing import Final

from torch import Tensor

from models.regressor import (
    CalibratedNet,
    Estimate,
    Evidence,
    KeypointNet,
    crop,
    gather,
    to_local,
    towards,
)
from models.training.projections import Projected
from pipeline.joints import SMPL_JOINTS

EARLIER: Final = 0.3
"""Weight of every iteration before the last."""
_ENDS = tuple(i for i, name in enumerate(SMPL_JOINTS) if name.endswith(("foot", "hand")))


def loss_of(net: KeypointNet, batch: Projected, reprojection: float = 0.0) -> tuple[Tensor, Estimate]:
    """Loss (scalar) and the last estimate. No term sees a person whom no view shows.

    ``reprojection`` weighs what the calibrated net is to agree with that the detector found, right or not.
    """
    if isinstance(net, CalibratedNet):
        e = gather(batch.xy_px, batch.confidence, batch.K, batch.R, batch.t)
        shown = e.seen.any(1)
        truth = e.turn[:, None] @ batch.turned
        pelvis = batch.joints[:, 0]
        root = ((pelvis - e.origin)[:, None] @ e.turn.mT)[:, 0]
        joints = (batch.joints - pelvis[:, None]) @ e.turn.mT
        points = (batch.points - pelvis[:, None]) @ e.turn.mT
        estimates = net.rounds(e)
        terms = [
            _shared(x, truth, joints, points, batch.betas)
            + 2 * _squared(x.turned[:, 0], truth[:, 0])
            + 3 * (x.root - root).abs().mean(-1).clamp_max(1)
            for x in estimates
        ]
        if reprojection:
            terms = [a + reprojection * _beside_rays(x, e) for a, x in zip(terms, estimates, strict=True)]
    else:
        c = crop(batch.xy_px, batch.confidence, batch.K)
        shown = c.seen.any(1)
        unturn = batch.turned[:, 0].mT
        truth = unturn[:, None] @ batch.turned
        pelvis = batch.joints[:, :1]
        joints, points = (batch.joints - pelvis) @ unturn.mT, (batch.points - pelvis) @ unturn.mT
        to_crop = c.turn @ batch.true_R
        at = (c.turn @ ((batch.true_R @ pelvis[:, None].mT)[..., 0] + batch.true_t)[..., None])[..., 0]
        orient = towards(at) @ to_crop @ batch.turned[:, None, 0]
        cam = batch.points[:, None] @ to_crop.mT + (c.turn @ batch.true_t[..., None])[..., 0][:, :, None]
        # Pixels do not know what focal length the net is told.
        flat = cam[..., :2] / cam[..., 2:].clamp_min(0.1) / c.rms[..., None, None]
        flat = flat * (batch.K[..., 0, 0] ** -1 * batch.true_focal)[..., None, None]
        count = c.seen.to(flat.dtype)
        mean = count / count.sum(1, keepdim=True).clamp_min(1)
        estimates = net.rounds(c)
        terms = []
        for x in estimates:
            assert x.view_orient is not None
            seen_as = x.joints[:, None] @ x.view_orient.mT - joints[:, None] @ orient.mT
            off = net.project(x.points, x.view_orient, x.root, c.rms) - flat
            view = (
                _squared(x.view_orient, orient)
                + 5 * seen_as.abs().mean((-1, -2))
                + 0.3 * off.abs().clamp_max(1).mean((-1, -2))
            )
            terms.append(_shared(x, truth, joints, points, batch.betas) + (mean * view).sum(1))
    last = estimates[-1]
    weights = [EARLIER] * (len(terms) - 1) + [1.0]
    total = sum((w * x for w, x in zip(weights, terms, strict=True)), 0.05 * _doubt(last, truth))
    return (total * shown).sum() / shown.sum().clamp_min(1), last


def _beside_rays(x: Estimate, e: Evidence) -> Tensor:
    """(N,) mean distance of the body's points to the rays they were seen on, metres, without outliers."""
    away = (x.points + x.root[:, None])[:, None] - e.centre[:, :, None]
    miss2 = (away**2).sum(-1) - (away * e.ray).sum(-1) ** 2
    far = miss2.clamp_min(1e-6).sqrt()
    w = e.weight / (1 + miss2.detach() / 0.01) ** 2
    return (w * far).sum((1, 2)) / w.sum((1, 2)).clamp_min(1e-3)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared Frobenius distance of rotations (..., 3, 3): (...)."""
    return ((a - b) ** 2).sum((-1, -2))


def _shared(x: Estimate, truth: Tensor, joints: Tensor, points: Tensor, betas: Tensor) -> Tensor:
    """(N,) what both nets are taught about pose and shape."""
    weight = joints.new_ones(len(SMPL_JOINTS))
    weight[list(_ENDS)] = 0.5
    return (
        _squared(x.turned, truth).mean(1)
        + 0.3 * _squared(to_local(x.turned), to_local(truth)).mean(1)
        + 10 * ((x.joints - joints).abs().mean(-1) * weight).mean(1)
        + 5 * (x.points - points).abs().mean((-1, -2))
        + 0.05 * (x.betas - betas).abs().mean(1)
    )


def _doubt(x: Estimate, truth: Tensor) -> Tensor:
    """(N,) negative log likelihood of the angles between local rotations and the true ones, as a Gaussian,
    which only the net's word about them is to lower."""
    error2 = _squared(to_local(x.turned), to_local(truth)).detach() / 2  # the angle's square, when small
    log_sigma = x.log_sigma.clamp(math.log(0.02), math.log(3.0))
    return (0.5 * error2 * (-2 * log_sigma).exp() + log_sigma).mean(1)
