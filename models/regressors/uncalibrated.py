"""Keypoint net for views of uncalibrated cameras."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from models.body import KeypointBody
from models.constants import constant
from models.regressors.kinematics import GlobalKinematics, matrix_to_six, six_to_matrix, to_local
from models.regressors.layers import (
    MIRROR_SIGNS,
    NUM_BETAS,
    TYPICAL_SPREAD_M,
    Estimate,
    FeedbackHead,
    ViewAttention,
    average_mirrored,
    camera_directions,
    concatenated,
    keypoint_spread,
    mlp,
    small_output,
    usable_keypoints,
)
from models.regressors.regression import Regression, blank_unseen
from pipeline.skeleton import BODY_25


@dataclass(frozen=True)
class KeypointCrops:
    """Input of the uncalibrated net: keypoints as of a camera that looks straight at their mean."""

    turn: Tensor
    """(N, V, 3, 3) camera → crop."""
    rms: Tensor
    """(N, V) spread of the keypoints in the picture divided by the focal length."""
    xy: Tensor
    """(N, V, K, 2) from the mean, divided by the spread; 0 where missing."""
    weight: Tensor
    """(N, V, K)"""
    seen: Tensor
    """(N, V) views that count (bool)."""


def crop_keypoints(xy_px: Tensor, confidence: Tensor, K: Tensor) -> KeypointCrops:
    """Normalise position and distance in the picture. Arguments as ``CalibratedNet.forward``."""
    xy, weight, seen = usable_keypoints(xy_px, confidence)
    directions = camera_directions(xy, K)
    mean, _ = keypoint_spread(directions[..., :2], weight)
    turn = turn_to_axis(torch.cat([mean, torch.ones_like(mean[..., :1])], -1))
    ray = directions @ turn.mT
    ray = ray[..., :2] / ray[..., 2:].clamp_min(0.1)
    visible = weight > 0
    _, rms = keypoint_spread(torch.where(visible[..., None], ray, 0), weight)
    xy = torch.where(visible[..., None], (ray / rms[..., None, None]).clamp(-5, 5), 0)
    return KeypointCrops(turn, rms, xy, weight, seen)


def mirror_crops(c: KeypointCrops) -> KeypointCrops:
    """Crops of the mirror image: x with the other sign in every view."""
    sign = constant(MIRROR_SIGNS[:2], c.xy.device, c.xy.dtype)
    flips = constant(BODY_25.flips, c.xy.device)
    return replace(c, xy=c.xy[:, :, flips] * sign, weight=c.weight[:, :, flips])


def pelvis_in_camera(root: Tensor, rms: Tensor) -> Tensor:
    """Pelvis (N, V, 3) in the crops' cameras, metres.

    root: (N, V, 3) its x and y in the crop, in units of the spread, and the logarithm of the ratio of its
    distance to the typical one for that spread, ``rms`` (N, V).
    """
    z = TYPICAL_SPREAD_M / rms * root[..., 2].clamp(-1.5, 1.5).exp()
    return torch.cat([root[..., :2] * (rms * z)[..., None], z[..., None]], -1)


def turn_to_axis(direction: Tensor) -> Tensor:
    """Smallest rotation (..., 3, 3) that turns a direction (..., 3) with z > 0 onto the optical axis."""
    x, y, z = torch.nn.functional.normalize(direction, dim=-1).unbind(-1)
    u, v = x / (1 + z), y / (1 + z)
    cross = -u * y
    rows = torch.stack([1 - u * x, cross, -x, cross, 1 - v * y, -y, x, y, z], -1)
    return rows.view(*rows.shape[:-1], 3, 3)


class UncalibratedNet(nn.Module):
    """Keypoints of any number of uncalibrated views → SMPL with a root for each view.

    Pose and shape are shared, in the body's own frame. A view's state is the root orientation, for a camera
    turned to the pelvis, and ``root`` of ``pelvis_in_camera``. Every iteration updates both from the
    reprojection residuals of the posed body, which the views exchange as messages.
    """

    kind: Final = "uncalibrated"
    start: Tensor
    view_start: Tensor

    def __init__(self, body: KeypointBody, *, width: int = 512, view: int = 192, iterations: int = 4) -> None:
        super().__init__()
        self.config = {"width": width, "view": view, "iterations": iterations}
        self.iterations = iterations
        self.kinematics = GlobalKinematics(body)
        keypoints, joints = len(body.keypoint_skeleton), len(body.skeleton)
        self.rotations = joints - 1
        state = 6 * self.rotations + NUM_BETAS
        self.encode = mlp(3 * keypoints, width // 2, view)
        self.attend = ViewAttention(view, heads=4)
        self.after = mlp(view, 2 * view, view)
        self.pool = nn.Linear(view, 4)
        self.trunk = nn.Sequential(nn.Linear(4 * view + 1, width), nn.ReLU())
        self.fixed_message = nn.Linear(view, view)
        self.message = nn.Linear(3 * keypoints + 9, view, bias=False)
        self.told = nn.Sequential(nn.Linear(view, view), nn.ReLU())
        self.head = FeedbackHead(width, state + view, width)
        self.output = small_output(width, state)
        self.doubt = small_output(width, joints - 1)
        self.fixed_hidden = nn.Linear(view, view)
        self.view_hidden = nn.Linear(view, view, bias=False)
        self.view_shared = nn.Linear(width, view, bias=False)
        self.view_output = small_output(view, 9)
        self.register_buffer("start", matrix_to_six(torch.eye(3)).repeat(self.rotations))
        # The body upright in the picture, facing the camera.
        self.register_buffer("view_start", torch.tensor([1.0, 0, 0, 0, -1, 0, 0, 0, 0]))

    def iterate(self, c: KeypointCrops) -> list[Estimate]:
        """Estimate after each iteration; rotations are in the root's frame."""
        n, v = c.seen.shape
        count = c.seen.to(c.xy.dtype)[..., None]
        views = self.encode(torch.cat([c.xy.flatten(2), c.weight], -1))
        # A person whom no view shows attends to all: the softmax over nothing is NaN.
        hidden = ~c.seen & c.seen.any(1, keepdim=True)
        views = views + self.attend(views, hidden)
        views = views + self.after(views)
        share = self.pool(views).masked_fill(hidden[..., None], -torch.inf).softmax(1)
        pooled = (share.mT @ views).flatten(1)
        fixed = self.head.fixed(self.trunk(torch.cat([pooled, count.sum(1) / 4], 1)))
        mean = count / count.sum(1, keepdim=True).clamp_min(1)
        fixed_message, fixed_hidden = self.fixed_message(views), self.fixed_hidden(views)

        six, betas = self.start.expand(n, -1), fixed.new_zeros(n, NUM_BETAS)
        state = self.view_start.expand(n, v, -1)
        eye = torch.eye(3, dtype=fixed.dtype, device=fixed.device).expand(n, 1, 3, 3)
        with torch.no_grad():
            rotations = torch.cat([eye, six_to_matrix(six.view(n, self.rotations, 6))], 1)
            _, points = self.kinematics(rotations, betas)
        orient = six_to_matrix(state[..., :6])
        estimates: list[Estimate] = []
        for _ in range(self.iterations):
            with torch.no_grad():
                feedback = self.feedback(points, orient, state[..., 6:], c)
            message = self.told(torch.relu(fixed_message + self.message(torch.cat([feedback, state], -1))))
            h = self.head(fixed, torch.cat([six, betas, (mean * message).sum(1)], 1))
            d_six, d_betas = self.output(h).split([6 * self.rotations, NUM_BETAS], 1)
            six, betas = six + d_six, betas + d_betas
            view_hidden = fixed_hidden + self.view_hidden(message) + self.view_shared(h)[:, None]
            state = state + self.view_output(torch.relu(view_hidden))
            orient = six_to_matrix(state[..., :6])
            rotations = torch.cat([eye, six_to_matrix(six.view(n, self.rotations, 6))], 1)
            joints, points = self.kinematics(rotations, betas)
            log_sigma = self.doubt(h.detach())
            estimates.append(Estimate(rotations, betas, joints, points, log_sigma, state[..., 6:], orient))
        return estimates

    def feedback(self, points: Tensor, orient: Tensor, root: Tensor, c: KeypointCrops) -> Tensor:
        """Reprojection residuals of the body's keypoints and their robust weights (N, V, 3 K)."""
        residual = self.project(points, orient, root, c.rms) - c.xy
        w = c.weight / (1 + (residual**2).sum(-1))
        residual = (residual.clamp(-1, 1) * (c.weight > 0)[..., None]).flatten(2)
        return torch.cat([2 * residual, w], -1)

    def project(self, points: Tensor, orient: Tensor, root: Tensor, rms: Tensor) -> Tensor:
        """Project points (N, K, 3) of the body into the crops (N, V, K, 2), in units of the spread."""
        pelvis = pelvis_in_camera(root, rms)
        cam = points[:, None] @ (turn_to_axis(pelvis).mT @ orient).mT + pelvis[:, :, None]
        z = torch.maximum(cam[..., 2:], 0.2 * pelvis[:, :, None, 2:])
        return cam[..., :2] / z / rms[..., None, None]

    def forward(
        self, xy_px: Tensor, confidence: Tensor, K: Tensor, R: Tensor | None = None, t: Tensor | None = None
    ) -> Regression:
        """Arguments as ``CalibratedNet.forward``; R and t are ignored. A wrong focal length in K puts the
        body at a wrong distance and changes little else."""
        c = crop_keypoints(xy_px, confidence, K)
        both = self.iterate(concatenated(c, mirror_crops(c)))[-1]
        last = average_mirrored(both, self.kinematics)
        assert last.view_orient is not None
        pelvis = pelvis_in_camera(last.root, c.rms)
        in_view = (pelvis[..., None, :] @ c.turn)[..., 0, :]
        return blank_unseen(
            Regression(
                body_pose=to_local(last.rotations, self.kinematics.skeleton),
                pose_sigma=last.log_sigma.exp(),
                betas=last.betas,
                view_orient=c.turn.mT @ turn_to_axis(pelvis).mT @ last.view_orient,
                view_transl=in_view - self.kinematics.pelvis(last.betas)[:, None],
                seen=c.seen,
            )
        )
