"""Losses: of keypoint nets against the truth of samples, of image nets against keypoints and fits."""

from __future__ import annotations

import math
from typing import Final

import torch
from pydantic import Field
from torch import Tensor

from models.body import Body, KeypointBody
from models.constants import constant
from models.regressors.calibrated import CalibratedNet, Observations, observe
from models.regressors.keypoint_nets import KeypointNet
from models.regressors.kinematics import to_local
from models.regressors.layers import Estimate
from models.regressors.uncalibrated import crop_keypoints, turn_to_axis
from models.synthetic.projections import Projected
from models.training.loop import Bodies, Target
from models.training.samples import Samples
from pipeline.config import Config
from pipeline.skeleton import BODY_25, EXTRA_24, SMPL_24

INTERMEDIATE_WEIGHT: Final = 0.3
"""Weight of every iteration before the last."""
_JOINT_WEIGHTS: Final = tuple(0.5 if name.endswith(("foot", "hand")) else 1.0 for name in SMPL_24.names)


def loss_of(net: KeypointNet, batch: Projected, reprojection: float = 0.0) -> tuple[Tensor, Estimate]:
    """Loss (scalar) over the people whom a view shows, and the last estimate.

    reprojection: weight of the calibrated net's residuals to the detected keypoints, right or wrong.
    """
    if isinstance(net, CalibratedNet):
        o = observe(batch.xy_px, batch.confidence, batch.K, batch.R, batch.t)
        seen = o.seen.any(1)
        truth = o.turn[:, None] @ batch.world_rotations
        pelvis = batch.joints[:, 0]
        root = ((pelvis - o.origin)[:, None] @ o.turn.mT)[:, 0]
        joints = (batch.joints - pelvis[:, None]) @ o.turn.mT
        points = (batch.points - pelvis[:, None]) @ o.turn.mT
        estimates = net.iterate(o)
        terms = [
            _body_terms(x, truth, joints, points, batch.betas)
            + 2 * _squared(x.rotations[:, 0], truth[:, 0])
            + 3 * (x.root - root).abs().mean(-1).clamp_max(1)
            for x in estimates
        ]
        if reprojection:
            terms = [a + reprojection * _ray_distance(x, o) for a, x in zip(terms, estimates, strict=True)]
    else:
        c = crop_keypoints(batch.xy_px, batch.confidence, batch.K)
        seen = c.seen.any(1)
        to_root = batch.world_rotations[:, 0].mT
        truth = to_root[:, None] @ batch.world_rotations
        pelvis = batch.joints[:, :1]
        joints, points = (batch.joints - pelvis) @ to_root.mT, (batch.points - pelvis) @ to_root.mT
        to_crop = c.turn @ batch.true_R
        in_crop = (c.turn @ ((batch.true_R @ pelvis[:, None].mT)[..., 0] + batch.true_t)[..., None])[..., 0]
        orient = turn_to_axis(in_crop) @ to_crop @ batch.world_rotations[:, None, 0]
        cam = batch.points[:, None] @ to_crop.mT + (c.turn @ batch.true_t[..., None])[..., 0][:, :, None]
        # Pixels are of the true focal length, the net's crops of that in K.
        xy = cam[..., :2] / cam[..., 2:].clamp_min(0.1) / c.rms[..., None, None]
        xy = xy * (batch.K[..., 0, 0] ** -1 * batch.true_focal)[..., None, None]
        count = c.seen.to(xy.dtype)
        mean = count / count.sum(1, keepdim=True).clamp_min(1)
        estimates = net.iterate(c)
        terms = []
        for x in estimates:
            assert x.view_orient is not None
            joint_error = x.joints[:, None] @ x.view_orient.mT - joints[:, None] @ orient.mT
            residual = net.project(x.points, x.view_orient, x.root, c.rms) - xy
            view = (
                _squared(x.view_orient, orient)
                + 5 * joint_error.abs().mean((-1, -2))
                + 0.3 * residual.abs().clamp_max(1).mean((-1, -2))
            )
            terms.append(_body_terms(x, truth, joints, points, batch.betas) + (mean * view).sum(1))
    last = estimates[-1]
    weights = [INTERMEDIATE_WEIGHT] * (len(terms) - 1) + [1.0]
    total = sum((w * x for w, x in zip(weights, terms, strict=True)), 0.05 * _sigma_term(last, truth))
    return (total * seen).sum() / seen.sum().clamp_min(1), last


def _ray_distance(x: Estimate, o: Observations) -> Tensor:
    """Robust mean distance (N,) of the body's points to the rays of the detected ones, metres."""
    offset = (x.points + x.root[:, None])[:, None] - o.centre[:, :, None]
    squared = (offset**2).sum(-1) - (offset * o.ray).sum(-1) ** 2
    w = o.weight / (1 + squared.detach() / 0.01) ** 2
    return (w * squared.clamp_min(1e-6).sqrt()).sum((1, 2)) / w.sum((1, 2)).clamp_min(1e-3)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared Frobenius distance (...) of rotations (..., 3, 3)."""
    return ((a - b) ** 2).sum((-1, -2))


def _body_terms(x: Estimate, truth: Tensor, joints: Tensor, points: Tensor, betas: Tensor) -> Tensor:
    """Terms (N,) of pose and shape, common to both nets."""
    weight = constant(_JOINT_WEIGHTS, joints.device, joints.dtype)
    return (
        _squared(x.rotations, truth).mean(1)
        + 0.3 * _squared(to_local(x.rotations), to_local(truth)).mean(1)
        + 10 * ((x.joints - joints).abs().mean(-1) * weight).mean(1)
        + 5 * (x.points - points).abs().mean((-1, -2))
        + 0.05 * (x.betas - betas).abs().mean(1)
    )


def _sigma_term(x: Estimate, truth: Tensor) -> Tensor:
    """Negative log likelihood (N,) of the local rotations' angular errors as Gaussians of ``log_sigma``.

    Its gradient reaches ``log_sigma`` alone.
    """
    error2 = _squared(to_local(x.rotations), to_local(truth)).detach() / 2  # the angle's square, when small
    log_sigma = x.log_sigma.clamp(math.log(0.02), math.log(3.0))
    return (0.5 * error2 * (-2 * log_sigma).exp() + log_sigma).mean(1)


# --- Image nets ---------------------------------------------------------------------------------------------


class LossConfig(Config):
    """Weights of the terms of an image net's loss; the defaults are SPIN's."""

    keypoints: float = Field(5.0, ge=0)
    """Weight of the squared reprojection residual, in halves of the crop's side."""
    joints: float = Field(5.0, ge=0)
    """Weight of the squared error of 3D joints relative to the middle of the hips, m²."""
    pose: float = Field(1.0, ge=0)
    """Weight of the squared difference of rotation matrices."""
    betas: float = Field(1e-3, ge=0)
    """Weight of the squared difference of betas."""
    shape: float = Field(0.0, ge=0)
    """Weight of the distance of vertices, metres; 0 saves making meshes."""
    camera: float = Field(1.0, ge=0)
    """Weight of exp(−10 s)², which keeps the person's scale s in the crop from falling to 0."""
    all: float = Field(60.0, gt=0)
    """Weight of the sum."""
    detected: float = Field(0.0, ge=0)
    """Factor on the confidence of detected keypoints (BODY_25)."""
    annotated: float = Field(1.0, ge=0)
    """Factor on the confidence of annotated keypoints (``EXTRA_24``)."""


HIPS: Final = tuple(EXTRA_24.index(n) for n in ("RHip", "LHip"))


def image_losses(
    predicted: Bodies,
    camera: Tensor,
    samples: Samples,
    target: Target,
    body: KeypointBody,
    cfg: LossConfig,
    mesh: Body | None = None,
) -> dict[str, Tensor]:
    """Weighted terms of an image net's loss and, as ``loss``, their sum. All views count alike.

    predicted, camera (N, V, 3): the net's prediction in the frames of the crops' cameras. body: with the
    samples' 49 points. mesh: for ``cfg.shape``. 3D joints are the samples' where they have them, else the
    targets'. Each term is a mean as in SPIN: of 2D keypoints over all, visible or not, of the others over the
    views with a target.
    """
    points = predicted.points(body)
    cam = points @ samples.K.mT
    projected = cam[..., :2] / cam[..., 2:].clamp_min(0.1)
    factor = (cfg.detected,) * len(BODY_25) + (cfg.annotated,) * len(EXTRA_24)
    known = samples.xy_px.isfinite().all(-1) & samples.seen[..., None]
    confidence = torch.where(known, samples.confidence, 0) * constant(factor, points.device, points.dtype)
    residual = torch.where(known[..., None], projected - samples.xy_px, 0) / (samples.images.shape[-1] / 2)
    terms = {"keypoints": cfg.keypoints * (confidence[..., None] * residual**2).mean()}

    joints = samples.joints
    has_joints = joints.index_select(2, constant(HIPS, joints.device)).isfinite().flatten(2).all(-1)
    target_joints = target.bodies.points(body)[:, :, len(BODY_25) :]
    true = torch.where(has_joints[..., None, None], joints, target_joints)
    has_body = target.has_pose & target.has_shape
    valid = true.isfinite().all(-1) & (has_body | has_joints)[..., None]
    true = torch.where(valid[..., None], true, 0)
    error = _from_hips(points[:, :, len(BODY_25) :]) - _from_hips(true)
    count = (valid.any(-1)).sum().clamp_min(1)
    terms["joints"] = cfg.joints * (valid[..., None] * error**2).sum() / count / error[0, 0].numel()

    rotation_error = predicted.rotations - target.bodies.rotations
    terms["pose"] = cfg.pose * mean_where(target.has_pose, rotation_error**2)
    terms["betas"] = cfg.betas * mean_where(target.has_shape, (predicted.betas - target.bodies.betas) ** 2)
    terms["camera"] = cfg.camera * mean_where(samples.seen, torch.exp(-10 * camera[..., 0]) ** 2)
    if cfg.shape and mesh is not None:
        a, b = (_vertices(x, mesh) for x in (predicted, target.bodies))
        terms["shape"] = cfg.shape * mean_where(has_body, (a - b).abs())
    terms = {k: cfg.all * v for k, v in terms.items()}
    return terms | {"loss": torch.stack(list(terms.values())).sum()}


def _from_hips(joints: Tensor) -> Tensor:
    return joints - joints.index_select(2, constant(HIPS, joints.device)).mean(2, keepdim=True)


def mean_where(mask: Tensor, x: Tensor) -> Tensor:
    """Mean of x (N, V, ...) over the views of the mask (N, V); 0 for an empty mask."""
    by_view = x.flatten(2).mean(2) if x.ndim > 2 else x
    return torch.where(mask, by_view, 0).sum() / mask.sum().clamp_min(1)


def _vertices(bodies: Bodies, mesh: Body) -> Tensor:
    """Vertices (N, V, vertices, 3), oriented as in the camera's frame but not translated."""
    orient, pose, betas, transl = (
        x.flatten(0, 1) for x in (bodies.orient, bodies.body_pose, bodies.betas, bodies.transl)
    )
    vertices = mesh.vertices(orient, pose, betas, torch.zeros_like(transl))
    return vertices.view(*bodies.score.shape, -1, 3)
