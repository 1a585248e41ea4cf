"""SMPLify as SPIN runs it inside its training loop: one view, every image alone, two runs of Adam.

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
"""Points that place the body."""
_IGNORED = ("Neck", "RHip", "LHip")
"""Points that detector and body define differently: they do not pose it."""

ROBUST_PX = 100.0
_DEPTH = 100.0**2
_PRIOR = 4.78**2
_ANGLE = 15.2**2
_SHAPE = 5.0**2


def posing(skeleton: Skeleton) -> tuple[float, ...]:
    """1 for each point that poses the body, 0 for one that detectors define differently."""
    return tuple(float(name not in _IGNORED) for name in skeleton.names)


@dataclass(frozen=True)
class SpinFit:
    motion: Motion
    score: Tensor
    """(N, T) mean over all keypoints of confidence² × Geman–McClure, px²: SPIN keeps that of lower score."""


def spin(
    body: KeypointBody, views: Views, start: Motion, prior: PosePrior, *, iterations: int = 100
) -> SpinFit:
    """Fit each frame by SPIN's schedule from ``start``, a regressor's output say.

    body: with the keypoints of the views: BODY_25 or SPIN's own 49 (``SPIN_49``), of which the hips and
    shoulders are the detector's unless the data set has more of them. views: one view (V = 1); pixels of the
    224-px crop with a focal length of 5000 px, as in SPIN, or of any
    picture in which a person is some 200 px tall, for which the weights were chosen. Shape is shared over a
    problem's frames: give every image as a problem of one frame to have SPIN's own.
    """
    _, count, frames, _ = views.confidence.shape
    if count != 1:
        raise ValueError(f"SPIN's fit takes one view, got {count}")
    dtype, device = views.xy_px.dtype, views.xy_px.device
    body = body.to(dtype=dtype, device=device)
    known = views.xy_px[:, 0].isfinite().all(-1) & (views.confidence[:, 0] > 0)
    seen = torch.where(known[..., None], views.xy_px[:, 0], 0)
    trust = torch.where(known, views.confidence[:, 0], 0)
    used = torch.tensor(posing(body.keypoint_skeleton), dtype=dtype, device=device)

    def free(x: Tensor) -> Tensor:
        return x.detach().to(device, dtype).clone().requires_grad_()

    angles = roma.rotmat_to_rotvec(start.rotations.to(device, dtype))
    orient, pose = free(angles[:, :, :1]), free(angles[:, :, 1:])
    transl, betas = free(start.transl), free(start.betas)

    def miss() -> Tensor:
        """(N, T, K, 2) pixels."""
        turn = roma.rotvec_to_rotmat(torch.cat([orient, pose], 2))
        _, points = pose_keypoints(body, turn, betas[:, None], transl, offsets[:, None])
        cam = points @ R.mT[:, None] + t[:, None, None]
        return (cam / cam[..., 2:]) @ K[:, :2].mT[:, None] - seen

    K, R, t = (x[:, 0].to(dtype) for x in (views.K, views.R, views.t))
    offsets = start.offsets.to(device, dtype)

    def depth() -> Tensor:
        return (R[:, 2][:, None] * transl).sum(-1)

    first_depth = depth().detach()
    detected, annotated = _anchors(body.keypoint_skeleton)
    as_detected = known[..., detected].sum(-1, keepdim=True) >= known[..., annotated].sum(-1, keepdim=True)

    def place() -> Tensor:
        off = (miss() ** 2).sum(-1) * known
        off = torch.where(as_detected, off[..., detected], off[..., annotated])
        return off.sum() + _DEPTH * ((depth() - first_depth) ** 2).sum()

    def robust() -> Tensor:
        r2 = miss() ** 2
        rho = ROBUST_PX**2 * r2 / (ROBUST_PX**2 + r2)
        weighed: Tensor = (trust * used) ** 2 * rho.sum(-1)
        return weighed

    terms = prior.of_joints(range(1, len(SMPL_24)), 1.0, dtype, device)

    def likely() -> Tensor:
        """SPIN's −log of the likeliest Gaussian, but for a number that is the same everywhere."""
        return terms.evaluate(pose.flatten(2))[0] / 2

    def bend() -> Tensor:
        backward = [-sign * pose[:, :, SMPL_24.index(name) - 1, axis] for name, axis, sign in HINGES]
        return (torch.exp(torch.stack(backward)) ** 2).sum(0)

    def pose_energy() -> Tensor:
        frame = robust().sum(-1) + _PRIOR * likely() + _ANGLE * bend()
        return frame.sum() + _SHAPE * frames * (betas**2).sum()

    for energy, unknowns in ((place, [orient, transl]), (pose_energy, [pose, betas, orient])):
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
    """Detector's hips and shoulders, and the data set's where the skeleton has both, else the same."""
    places = [[i for i, name in enumerate(skeleton.names) if name == anchor] for anchor in _ANCHORS]
    return [p[0] for p in places], [p[-1] for p in places]
