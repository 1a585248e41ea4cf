"""SMPLify of SPIN's training loop: one view, independent images, two runs of Adam.

Kolotouros et al., Learning to Reconstruct 3D Human Pose and Shape via Model-fitting in the Loop (2019), with
the weights of its code. For training and for comparison; ``solver.py`` is faster and more accurate.
"""

from __future__ import annotations

from dataclasses import dataclass

import roma
import torch
from torch import Tensor

from models.body import KeypointBody, pose_keypoints
from models.fit.problem import HINGES, Motion, Views
from models.priors import PosePrior
from pipeline.skeleton import SMPL_24, Skeleton

_ANCHORS = ("RHip", "LHip", "RShoulder", "LShoulder")
"""Keypoints of the first run, which places the body."""
_IGNORED = ("Neck", "RHip", "LHip")
"""Keypoints that detector and body define differently, left out of the second run."""

ROBUST_PX = 100.0
_DEPTH_WEIGHT = 100.0**2
_PRIOR_WEIGHT = 4.78**2
_HINGE_WEIGHT = 15.2**2
_SHAPE_WEIGHT = 5.0**2


def posing(skeleton: Skeleton) -> tuple[float, ...]:
    """Weights (K,) of keypoints in the second run, 1 or 0."""
    return tuple(float(name not in _IGNORED) for name in skeleton.names)


@dataclass(frozen=True)
class SpinFit:
    """Result of SPIN's fit."""

    motion: Motion
    score: Tensor
    """(N, T) mean over all keypoints of confidence² × Geman–McClure, px²: SPIN keeps the fit of lower
    score."""


def spin(
    body: KeypointBody, views: Views, start: Motion, prior: PosePrior, *, iterations: int = 100
) -> SpinFit:
    """Fit each frame by SPIN's schedule from ``start``, such as a regressor's output.

    body: with the keypoints of the views, BODY_25 or SPIN's 49 (``SPIN_49``), of which hips and shoulders are
    the detector's unless the data set has more of them. views: one view (V = 1), in pixels of SPIN's 224-px
    crop with a focal length of 5000 px, or of any picture with a person some 200 px tall. A problem's frames
    share the shape: SPIN's own problems have one frame.

    Raises ``ValueError`` for several views.
    """
    _, count, frames, _ = views.confidence.shape
    if count != 1:
        raise ValueError(f"SPIN's fit takes one view, got {count}")
    dtype, device = views.xy_px.dtype, views.xy_px.device
    body = body.to(dtype=dtype, device=device)
    visible = views.xy_px[:, 0].isfinite().all(-1) & (views.confidence[:, 0] > 0)
    observed = torch.where(visible[..., None], views.xy_px[:, 0], 0)
    confidence = torch.where(visible, views.confidence[:, 0], 0)
    used = torch.tensor(posing(body.keypoint_skeleton), dtype=dtype, device=device)

    def free(x: Tensor) -> Tensor:
        return x.detach().to(device, dtype).clone().requires_grad_()

    angles = roma.rotmat_to_rotvec(start.rotations.to(device, dtype))
    orient, pose = free(angles[:, :, :1]), free(angles[:, :, 1:])
    transl, betas = free(start.transl), free(start.betas)

    def residual() -> Tensor:
        """(N, T, K, 2) pixels."""
        rotations = roma.rotvec_to_rotmat(torch.cat([orient, pose], 2))
        _, points = pose_keypoints(body, rotations, betas[:, None], transl, offsets[:, None])
        cam = points @ R.mT[:, None] + t[:, None, None]
        return (cam / cam[..., 2:]) @ K[:, :2].mT[:, None] - observed

    K, R, t = (x[:, 0].to(dtype) for x in (views.K, views.R, views.t))
    offsets = start.offsets.to(device, dtype)

    def depth() -> Tensor:
        return (R[:, 2][:, None] * transl).sum(-1)

    first_depth = depth().detach()
    detected, annotated = _anchors(body.keypoint_skeleton)
    as_detected = visible[..., detected].sum(-1, keepdim=True) >= visible[..., annotated].sum(
        -1, keepdim=True
    )

    def placement_energy() -> Tensor:
        error = (residual() ** 2).sum(-1) * visible
        error = torch.where(as_detected, error[..., detected], error[..., annotated])
        return error.sum() + _DEPTH_WEIGHT * ((depth() - first_depth) ** 2).sum()

    def robust() -> Tensor:
        r2 = residual() ** 2
        rho = ROBUST_PX**2 * r2 / (ROBUST_PX**2 + r2)
        weighed: Tensor = (confidence * used) ** 2 * rho.sum(-1)
        return weighed

    terms = prior.of_joints(range(1, len(SMPL_24)), 1.0, dtype, device)

    def prior_energy() -> Tensor:
        """−log of the likeliest Gaussian, up to a constant."""
        return terms.evaluate(pose.flatten(2))[0] / 2

    def hinge_energy() -> Tensor:
        backward = [-sign * pose[:, :, SMPL_24.index(name) - 1, axis] for name, axis, sign in HINGES]
        return (torch.exp(torch.stack(backward)) ** 2).sum(0)

    def pose_energy() -> Tensor:
        frame = robust().sum(-1) + _PRIOR_WEIGHT * prior_energy() + _HINGE_WEIGHT * hinge_energy()
        return frame.sum() + _SHAPE_WEIGHT * frames * (betas**2).sum()

    for energy, unknowns in ((placement_energy, [orient, transl]), (pose_energy, [pose, betas, orient])):
        optimiser = torch.optim.Adam(unknowns, lr=1e-2)
        for _ in range(iterations):
            optimiser.zero_grad()
            torch.autograd.backward(energy())
            optimiser.step()
    with torch.no_grad():
        score = robust().mean(-1)
        rotations = roma.rotvec_to_rotmat(torch.cat([orient, pose], 2))
    return SpinFit(Motion(rotations, transl.detach(), betas.detach(), offsets), score)


def _anchors(skeleton: Skeleton) -> tuple[list[int], list[int]]:
    """Indices of the detector's hips and shoulders, and of the data set's (the detector's where it has
    none)."""
    places = [[i for i, name in enumerate(skeleton.names) if name == anchor] for anchor in _ANCHORS]
    return [p[0] for p in places], [p[-1] for p in places]
