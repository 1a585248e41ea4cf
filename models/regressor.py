"""From what the views show of a person to SMPL parameters: the interface of every regressor.

N is one person in one frame, V its views, B betas. Views may be missing: ``seen`` says which of them count.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

import roma
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from models.body import KeypointBody, load_body, pelvis_at_rest
from models.rotations import geodesic_degrees
from models.weights import read_weights, save_weights
from pipeline.batches import TensorBatch, axes
from pipeline.errors import InputError
from pipeline.skeleton import BODY_25, SMPL_24

ROBUST_DEGREES: Final = 20.0
"""A view whose root is turned this far from the others counts for a quarter."""
_ROBUST_M: Final = 0.3
"""A view that sees the pelvis this far from the others counts for a quarter."""
_DEPTH_TRUST: Final = 0.01
"""Weight of a view's word about depth by its word about direction: ten times the standard deviation."""
_STEPS: Final = 10


@dataclass(frozen=True, repr=False)
class Regression(TensorBatch):
    """What a regressor says of N people-in-frames seen by V views.

    Body pose and shape are shared by the views, each view has the root in its own camera's frame. Where no
    view is seen there is no person: NaN throughout.
    """

    body_pose: Tensor = axes("N 23 3 3")
    """Local rotation of joints 1–23 relative to their parents."""
    betas: Tensor = axes("N B")
    view_orient: Tensor = axes("N V 3 3")
    """Rotation of the root, body → camera."""
    view_transl: Tensor = axes("N V 3")
    """SMPL's translation in the camera's frame, metres: the pelvis lies at J_pelvis(betas) + view_transl."""
    seen: Tensor = axes("N V")
    """The view showed enough of the person for its root to count (bool)."""
    pose_sigma: Tensor = axes("N 23")
    """Radians: the angle by which each rotation of ``body_pose`` is expected to be off."""


def average_rotations(rotations: Tensor, seen: Tensor) -> Tensor:
    """Robust mean (N, 3, 3) on the manifold of rotations (N, V, 3, 3) over those that are ``seen`` (N, V).

    From the rotation closest to all others, Karcher steps with Geman–McClure weights of the angle
    (``ROBUST_DEGREES``), so that one view that is turned round does not pull the mean. NaN where nothing is
    seen; values that are not seen may be anything.
    """
    eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    known = torch.where(seen[..., None, None], rotations, eye)
    weight = seen.to(rotations.dtype)
    apart = geodesic_degrees(known[:, :, None], known[:, None]) * weight[:, None]
    far = torch.where(seen, apart.sum(-1), torch.inf)
    mean = known[torch.arange(len(known), device=known.device), far.argmin(-1)]
    for _ in range(_STEPS):
        turn = roma.rotmat_to_rotvec(mean[:, None].mT @ known)
        angle = turn.norm(dim=-1) / math.radians(ROBUST_DEGREES)
        w = weight / (1 + angle**2) ** 2
        step = (w[..., None] * turn).sum(1) / w.sum(1).clamp_min(1e-12)[:, None]
        mean = mean @ roma.rotvec_to_rotmat(step)
    return torch.where(seen.any(1)[:, None, None], mean, torch.nan)


def to_world(regression: Regression, R: Tensor, t: Tensor, body: KeypointBody) -> tuple[Tensor, Tensor]:
    """The root that the seen views agree on: ``global_orient`` (N, 3, 3) and ``transl`` (N, 3), world.

    R (N, V, 3, 3) and t (N, V, 3) metres take the world to each camera. Orientations are averaged by
    ``average_rotations``. The pelvis is triangulated: each view knows its direction well and its depth
    poorly, a robust least squares over both; one view alone keeps its own. NaN where nothing is seen.
    """
    seen = regression.seen
    orient = average_rotations(R.mT @ regression.view_orient, seen)
    body = body.to(dtype=R.dtype, device=R.device)
    rest = pelvis_at_rest(body, regression.betas)
    cam = torch.where(seen[..., None], rest[:, None] + regression.view_transl, 1.0)
    pelvis = (R.mT @ (cam - t)[..., None])[..., 0]
    ray = (R.mT @ torch.nn.functional.normalize(cam, dim=-1)[..., None])[..., 0]
    eye = torch.eye(3, dtype=R.dtype, device=R.device)
    trust = eye - (1 - _DEPTH_TRUST) * ray[..., :, None] * ray[..., None, :]
    weight = seen.to(R.dtype)
    for _ in range(_STEPS):
        system = (weight[..., None, None] * trust).sum(1)
        right = (weight[..., None] * (trust @ pelvis[..., None])[..., 0]).sum(1)
        none = ~seen.any(1)[:, None, None]
        x = torch.linalg.solve(torch.where(none, eye, system), right)
        away = pelvis - x[:, None]
        off2 = (away[..., None, :] @ trust @ away[..., None])[..., 0, 0] / _ROBUST_M**2
        weight = seen.to(R.dtype) / (1 + off2) ** 2
    return orient, torch.where(seen.any(1)[:, None], x - rest, torch.nan)


# --- Keypoint regressors ------------------------------------------------------------------------------------

MIN_KEYPOINTS: Final = 6
"""Keypoints that a view must show for it to count: with fewer a net puts the person anywhere."""
_TYPICAL_DEPTH: Final = 0.61
"""Distance of a person, metres, × rms spread of the keypoints in the picture / focal length: the mean."""
_ANNEAL_M: Final = (0.4, 0.24, 0.14, 0.08, 0.05)
_BETAS: Final = 10
_LEFT: Final = tuple(BODY_25.index(n) for n in ("LHip", "LShoulder"))
_RIGHT: Final = tuple(BODY_25.index(n) for n in ("RHip", "RShoulder"))
_PELVIS: Final = tuple(BODY_25.index(n) for n in ("MidHip", "LHip", "RHip"))
_PARENTS: Final = list(SMPL_24.parents[1:])


def six_to_matrix(x: Tensor) -> Tensor:
    """The first two columns (..., 6) of rotations, one after the other and of any length → (..., 3, 3).

    Zhou et al., On the Continuity of Rotation Representations in Neural Networks (2019), eq. 15.
    """
    a, b = x[..., :3], x[..., 3:]
    first = a / a.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    b = b - (first * b).sum(-1, keepdim=True) * first
    second = b / b.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], -1)


def matrix_to_six(r: Tensor) -> Tensor:
    """Rotations (..., 3, 3) → (..., 6), undone by ``six_to_matrix``."""
    return r[..., :2].mT.flatten(-2)


def to_local(turned: Tensor) -> Tensor:
    """Rotations (N, 24, 3, 3) of all joints in one frame → (N, 23, 3, 3) of joints 1–23 in their parents'."""
    local: Tensor = turned[:, _PARENTS].mT @ turned[:, 1:]
    return local


class GlobalKinematics(nn.Module):
    """Joints and BODY_25 points of a body whose joints' rotations are given in one frame, not in a chain.

    One product a bone and one matrix that sums bones along the tree: exact, and no loop over joints.
    """

    joints_template: Tensor
    joints_shapedirs: Tensor
    points_template: Tensor
    points_shapedirs: Tensor
    weights: Tensor
    above: Tensor

    def __init__(self, body: KeypointBody) -> None:
        super().__init__()
        for name, tensor in body.tensors.items():
            self.register_buffer(name, tensor.float(), persistent=False)
        above = torch.zeros(len(SMPL_24), len(SMPL_24) - 1)  # [joint][bone] on the way to the root
        for joint, parent in enumerate(_PARENTS, start=1):
            above[joint] = above[parent]
            above[joint, joint - 1] = 1
        self.register_buffer("above", above, persistent=False)

    def forward(self, turned: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """turned (N, 24, 3, 3), betas (N, B) → joints (N, 24, 3) and points (N, 25, 3), metres, the pelvis
        at the origin."""
        rest = self.joints_template + (betas @ self.joints_shapedirs.flatten(0, 1).T).view(-1, 24, 3)
        skin = self.points_template + (betas @ self.points_shapedirs.flatten(0, 1).T).view(-1, 25, 3)
        bones = rest[:, 1:] - rest[:, _PARENTS]
        joints = self.above @ (turned[:, _PARENTS] * bones[:, :, None]).sum(-1)
        shift = joints - (turned * rest[:, :, None]).sum(-1)
        blend = self.weights @ torch.cat([turned, shift[..., None]], -1).flatten(2)
        blend = blend.view(len(turned), 25, 3, 4)
        return joints, (blend[..., :3] * skin[:, :, None]).sum(-1) + blend[..., 3]

    def pelvis(self, betas: Tensor) -> Tensor:
        """Rest position (N, 3) of the root joint."""
        rest: Tensor = self.joints_template[0] + betas @ self.joints_shapedirs[0].T
        return rest


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers)


class _Head(nn.Module):
    """From what is fixed (the trunk's features) and what changes (state and feedback) to a hidden vector."""

    def __init__(self, trunk: int, state: int, hidden: int) -> None:
        super().__init__()
        self.fixed, self.state = nn.Linear(trunk, hidden), nn.Linear(state, hidden, bias=False)
        self.first, self.second = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, fixed: Tensor, state: Tensor) -> Tensor:
        h = torch.relu(fixed + self.state(state))
        h = h + torch.relu(self.first(h))
        return h + torch.relu(self.second(h))


class _Attention(nn.Module):
    """Multi-head self-attention over views (Vaswani et al. 2017); for a few views faster than torch's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x (N, V, C); nobody looks at ``hidden`` (N, V) views."""
        n, views, _ = x.shape
        q, k, v = self.queries(x).view(n, views, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        look = (q @ k.mT) / math.sqrt(q.shape[-1])
        look = look.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1)
        out: Tensor = self.out((look @ v).transpose(1, 2).flatten(2))
        return out


def _output(hidden: int, size: int) -> nn.Linear:
    layer = nn.Linear(hidden, size)
    nn.init.normal_(layer.weight, std=1e-3)
    nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class Estimate:
    """What a keypoint net believes after one iteration, in its own frame (see the nets)."""

    turned: Tensor
    """(N, 24, 3, 3) rotations of all joints in one frame."""
    betas: Tensor
    """(N, 10)"""
    joints: Tensor
    """(N, 24, 3) metres from the pelvis."""
    points: Tensor
    """(N, 25, 3) metres from the pelvis."""
    log_sigma: Tensor
    """(N, 23) logarithm of the error to be expected of each local rotation, radians."""
    root: Tensor
    """Calibrated: (N, 3) pelvis, metres. Uncalibrated: (N, V, 3) of each view, see ``UncalibratedNet``."""
    view_orient: Tensor | None = None
    """Uncalibrated: (N, V, 3, 3) rotation of the body in each view."""


@dataclass(frozen=True)
class Evidence:
    """What the calibrated net sees, in its frame: origin at about the pelvis, y up, z where the body faces.

    Directions of frame and world: ``x_frame = turn (x_world − origin)``.
    """

    turn: Tensor
    """(N, 3, 3)"""
    origin: Tensor
    """(N, 3) metres, world."""
    centre: Tensor
    """(N, V, 3) camera centres, metres."""
    ray: Tensor
    """(N, V, 25, 3) unit directions; 0 where missing."""
    weight: Tensor
    """(N, V, 25) confidence; 0 where missing or the view does not count."""
    features: Tensor
    """(N, F) what the trunk reads."""
    seen: Tensor
    """(N, V) views that count (bool)."""


def _seen(xy: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points with 0 where missing (N, V, 25, 2), weights (N, V, 25) and views that count (N, V)."""
    known = xy.isfinite().all(-1) & (confidence > 0)
    seen = known.sum(-1) >= MIN_KEYPOINTS
    known = known & seen[..., None]
    weight = torch.where(known, confidence.clamp(max=1), 0)
    return torch.where(known[..., None], xy, 0), weight, seen


def _directions(xy: Tensor, K: Tensor) -> Tensor:
    """Undistorted pixels (N, V, 25, 2) → directions (N, V, 25, 3) in the camera's frame, z = 1."""
    one = torch.cat([xy, torch.ones_like(xy[..., :1])], -1)
    ray: Tensor = one @ torch.linalg.inv(K).mT
    return ray / ray[..., 2:]


def _spread(flat: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean (N, V, 2) of points (N, V, 25, 2) and their root mean square distance (N, V) from it."""
    total = weight.sum(-1).clamp_min(1e-6)
    middle = (weight[..., None] * flat).sum(-2) / total[..., None]
    off2 = ((flat - middle[..., None, :]) ** 2).sum(-1)
    return middle, ((weight * off2).sum(-1) / total).sqrt().clamp_min(1e-4)


def vertical(R: Tensor, seen: Tensor) -> Tensor:
    """Unit vector (N, 3) that points up in the world, as cameras R (N, V, 3, 3) that are ``seen`` tell.

    Cameras are held level: their x axes are horizontal, and on average up is up in their pictures. Most
    calibrations have an axis along the vertical, so an axis of the world on which all cameras agree (2.5°)
    is preferred; else it is the direction most at right angles to all x axes.
    """
    weight = seen.to(R.dtype)[..., None]
    level, up = R[:, :, 0], -(weight * R[:, :, 1]).sum(1)
    up = up / up.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    eye = torch.eye(3, dtype=R.dtype, device=R.device)
    system = (weight * level).mT @ level + 1e-3 * eye
    guess: Tensor = torch.linalg.solve(system, up)
    guess = guess / guess.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    tilt = (weight * level).abs().amax(1)  # (N, 3): sine of the worst camera's angle to each plane
    fits = (tilt < 0.044) & (up.abs() > 0.7)
    axis = torch.where(fits, up.abs(), 0).argmax(-1)
    snapped = eye[axis] * up.gather(1, axis[:, None]).sign()
    return torch.where(fits.any(-1, keepdim=True), snapped, guess)


def _solve3(a: Tensor, b: Tensor) -> Tensor:
    """x (..., 3) with a x = b for symmetric a (..., 3, 3), by cofactors: a tenth of the time of LAPACK's."""
    c0 = torch.linalg.cross(a[..., 1, :], a[..., 2, :], dim=-1)
    c1 = torch.linalg.cross(a[..., 2, :], a[..., 0, :], dim=-1)
    c2 = torch.linalg.cross(a[..., 0, :], a[..., 1, :], dim=-1)
    det = (a[..., 0, :] * c0).sum(-1, keepdim=True)
    x: Tensor = (c0 * b[..., :1] + c1 * b[..., 1:2] + c2 * b[..., 2:]) / det
    return x


def gather(xy_px: Tensor, confidence: Tensor, K: Tensor, R: Tensor, t: Tensor) -> Evidence:
    """Triangulate robustly and bring everything to the frame in which the calibrated net thinks.

    Each keypoint by five steps of least squares over its rays, re-weighted by Geman–McClure with a scale
    that goes from 0.4 to 0.05 m. What only one view shows is put on its ray where that comes closest to the
    body. With one view the body's distance is the typical one for its size in the picture, and the frame
    faces the camera.
    """
    xy, weight, seen = _seen(xy_px, confidence)
    flat = _directions(xy, K)
    middle, rms = _spread(flat[..., :2], weight)
    count = seen.to(K.dtype)
    eye = torch.eye(3, dtype=K.dtype, device=K.device)

    centre = -(R.mT @ t[..., None])[..., 0]
    ray = torch.nn.functional.normalize(flat, dim=-1) @ R
    ray = torch.where((weight > 0)[..., None], ray, 0)

    # About where the body is: views agree on a point, and each believes a little in its own distance.
    ahead = torch.cat([middle, torch.ones_like(middle[..., :1])], -1) * (_TYPICAL_DEPTH / rms)[..., None]
    guess = centre + (ahead[..., None, :] @ R)[..., 0, :]
    way = torch.nn.functional.normalize(guess - centre, dim=-1)
    trust = eye - (1 - _DEPTH_TRUST) * way[..., :, None] * way[..., None, :]
    w = count
    for scale in _ANNEAL_M[:3]:
        system = (w[..., None, None] * trust).sum(1) + 1e-9 * eye
        body = _solve3(system, (w[..., None] * (trust @ guess[..., None])[..., 0]).sum(1))
        away = guess - body[:, None]
        off2 = (away * (trust @ away[..., None])[..., 0]).sum(-1)
        w = count / (1 + off2 / (2.5 * scale) ** 2) ** 2

    # Σ w (I − d dᵀ) x = Σ w (I − d dᵀ) c with a weak pull to the body, for all points at once.
    start = centre - body[:, None]
    along = (ray * start[:, :, None]).sum(-1)
    foot = start[:, :, None] - along[..., None] * ray  # of the perpendicular from the body to each ray
    outer = ray[..., :, None] * ray[..., None, :]
    w = weight
    for scale in _ANNEAL_M:
        total = w.sum(1)
        system = (total[..., None, None] + 1e-3) * eye - (w[..., None, None] * outer).sum(1)
        x = _solve3(system, (w[..., None] * foot).sum(1))
        across = x[:, None] - foot
        across = across - (across * ray).sum(-1, keepdim=True) * ray
        off2 = (across**2).sum(-1)
        w = weight / (1 + off2 / scale**2) ** 2
    total = w.sum(1)
    residual = ((w * off2).sum(1) / total.clamp_min(1e-6)).sqrt()
    # 0 where all rays are parallel, 0.3 where they come from all around.
    depth = torch.linalg.det(system / (total + 1e-3)[..., None, None]).clamp_min(0)

    pelvis = torch.tensor([1.0, 0.5, 0.5], dtype=K.dtype, device=K.device)
    at_hips = pelvis * total[:, _PELVIS].clamp(max=1)
    at_hips[:, 1:] = at_hips[:, 1:].amin(1, keepdim=True)  # one hip alone is not the middle
    root = (at_hips[..., None] * x[:, _PELVIS]).sum(1) / (at_hips.sum(1, keepdim=True) + 1e-3)

    up = vertical(R, seen)
    pair = torch.minimum(total[:, _LEFT], total[:, _RIGHT])
    left = (pair[..., None] * (x[:, _LEFT] - x[:, _RIGHT])).sum(1)
    left = left - (left * up).sum(-1, keepdim=True) * up
    first = torch.nn.functional.one_hot(seen.to(torch.uint8).argmax(1), seen.shape[1]).to(K.dtype)
    facing = (first[..., None] * start).sum(1) - root
    to_first = torch.linalg.cross(up, facing, dim=-1)
    alone = (count.sum(1, keepdim=True) < 2) | (left.norm(dim=-1, keepdim=True) < 0.05)
    side = torch.where(alone, to_first, left)
    side = side / side.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    turn = torch.stack([side, up, torch.linalg.cross(side, up, dim=-1)], 1)

    features = torch.cat(
        [
            ((x - root[:, None]) @ turn.mT).clamp(-2, 2).flatten(1),
            total.clamp(max=4) / 2,
            (residual / 0.05).clamp(max=4),
            depth * 4,
            alone.to(K.dtype),
            count.sum(1, keepdim=True) / 4,
        ],
        1,
    )
    return Evidence(
        turn=turn,
        origin=body + root,
        centre=(start - root[:, None]) @ turn.mT,
        ray=ray @ turn.mT[:, None],
        weight=weight,
        features=features,
        seen=seen,
    )


def ray_feedback(points: Tensor, e: Evidence) -> Tensor:
    """How far points (N, 25, 3), metres, in the frame, miss the rays: (N, 100).

    For each point the mean over views of the vector to the ray, by confidence and Geman–McClure (0.2 m),
    and the weight that it has.
    """
    away = points[:, None] - e.centre[:, :, None]
    miss = (away * e.ray).sum(-1, keepdim=True) * e.ray - away
    w = e.weight / (1 + (miss**2).sum(-1) / 0.04)
    total = w.sum(1)
    mean = (w[..., None] * miss).sum(1) / total.clamp_min(1e-3)[..., None]
    return torch.cat([mean.clamp(-0.5, 0.5).flatten(1) * 5, total.clamp(max=4) / 2], 1)


class CalibratedNet(nn.Module):
    """Keypoints of any number of calibrated views → SMPL, by four rounds of feedback from the rays.

    The views enter through the triangulated points and, in every round, through how far the posed body's own
    keypoints miss the rays, so the cost hardly grows with their number and their order does not matter.
    """

    kind: Final = "calibrated"
    start: Tensor

    def __init__(self, body: KeypointBody, *, width: int = 512, iterations: int = 4) -> None:
        super().__init__()
        self.config = {"width": width, "iterations": iterations}
        self.iterations = iterations
        self.kinematics = GlobalKinematics(body)
        self.encode = _mlp(6 * 25 + 2, width // 2, 3 * width // 8, width)
        self.head = _Head(width, 24 * 6 + _BETAS + 3 + 100, width)
        self.output = _output(width, 24 * 6 + _BETAS + 3)
        self.doubt = _output(width, 23)
        self.register_buffer("start", matrix_to_six(torch.eye(3)).repeat(24))

    def rounds(self, e: Evidence) -> list[Estimate]:
        """The estimate after each iteration, in the frame of the evidence."""
        n = len(e.features)
        fixed = self.head.fixed(self.encode(e.features))
        six, betas, root = self.start.expand(n, -1), fixed.new_zeros(n, _BETAS), fixed.new_zeros(n, 3)
        with torch.no_grad():
            _, points = self.kinematics(six_to_matrix(six.view(n, 24, 6)), betas)
        estimates: list[Estimate] = []
        for _ in range(self.iterations):
            feedback = ray_feedback((points + root[:, None]).detach(), e)
            h = self.head(fixed, torch.cat([six, betas, root, feedback], 1))
            change = self.output(h)
            six = six + change[:, :144]
            betas = betas + change[:, 144 : 144 + _BETAS]
            root = root + change[:, 144 + _BETAS :]
            turned = six_to_matrix(six.view(n, 24, 6))
            joints, points = self.kinematics(turned, betas)
            estimates.append(Estimate(turned, betas, joints, points, self.doubt(h.detach()), root))
        return estimates

    def forward(
        self, xy_px: Tensor, confidence: Tensor, K: Tensor, R: Tensor | None = None, t: Tensor | None = None
    ) -> Regression:
        """xy_px (N, V, 25, 2) undistorted pixels, NaN where missing; confidence (N, V, 25); K and R
        (N, V, 3, 3), t (N, V, 3) metres. R and t may be left out for one view, whose frame is then the
        world."""
        if R is None or t is None:
            if K.shape[1] != 1:
                raise ValueError(f"{K.shape[1]} views without R and t: use the uncalibrated net")
            R, t = torch.eye(3, dtype=K.dtype, device=K.device).expand_as(K), torch.zeros_like(K[..., 0])
        e = gather(xy_px, confidence, K, R, t)
        last = self.rounds(e)[-1]
        local = to_local(last.turned)
        pelvis = e.origin + (last.root[:, None] @ e.turn)[:, 0]
        in_view = (R @ pelvis[:, None, :, None])[..., 0] + t
        return _or_nobody(
            Regression(
                body_pose=local,
                pose_sigma=last.log_sigma.exp(),
                betas=last.betas,
                view_orient=R @ (e.turn.mT @ last.turned[:, 0])[:, None],
                view_transl=in_view - self.kinematics.pelvis(last.betas)[:, None],
                seen=e.seen,
            )
        )


def _or_nobody(r: Regression) -> Regression:
    """NaN where no view is seen."""
    nobody = ~r.seen.any(1)

    def clear(x: Tensor) -> Tensor:
        return x.masked_fill(nobody.view(-1, *[1] * (x.ndim - 1)), torch.nan) if x.is_floating_point() else x

    return r.map(clear)


@dataclass(frozen=True)
class Crops:
    """What the uncalibrated net sees: each view turned so that the middle of the keypoints is straight
    ahead, in units of their spread."""

    turn: Tensor
    """(N, V, 3, 3) camera → crop."""
    rms: Tensor
    """(N, V) spread of the keypoints in the picture, by focal length."""
    xy: Tensor
    """(N, V, 25, 2) from the middle, by the spread; 0 where missing."""
    weight: Tensor
    """(N, V, 25)"""
    seen: Tensor
    """(N, V) bool."""


def crop(xy_px: Tensor, confidence: Tensor, K: Tensor) -> Crops:
    """Undo position and distance in the picture."""
    xy, weight, seen = _seen(xy_px, confidence)
    flat = _directions(xy, K)
    middle, _ = _spread(flat[..., :2], weight)
    ahead = torch.cat([middle, torch.ones_like(middle[..., :1])], -1)
    turn = towards(ahead)
    ray = flat @ turn.mT
    ray = ray[..., :2] / ray[..., 2:].clamp_min(0.1)
    known = weight > 0
    _, rms = _spread(torch.where(known[..., None], ray, 0), weight)
    xy = torch.where(known[..., None], (ray / rms[..., None, None]).clamp(-5, 5), 0)
    return Crops(turn, rms, xy, weight, seen)


def place(root: Tensor, rms: Tensor) -> Tensor:
    """The pelvis (N, V, 3), metres, in crops: root (N, V, 3) is its place in them, in units of the spread,
    and the logarithm of its distance by the typical one for that spread."""
    z = _TYPICAL_DEPTH / rms * root[..., 2].clamp(-1.5, 1.5).exp()
    return torch.cat([root[..., :2] * (rms * z)[..., None], z[..., None]], -1)


def towards(pelvis: Tensor) -> Tensor:
    """Smallest rotation (..., 3, 3) that brings a direction (..., 3) with z > 0 onto the optical axis."""
    x, y, z = torch.nn.functional.normalize(pelvis, dim=-1).unbind(-1)
    u, v = x / (1 + z), y / (1 + z)
    cross = -u * y
    rows = torch.stack([1 - u * x, cross, -x, cross, 1 - v * y, -y, x, y, z], -1)
    return rows.view(*rows.shape[:-1], 3, 3)


class UncalibratedNet(nn.Module):
    """Keypoints of any number of views whose places are not known → SMPL with a root for each view.

    Pose and shape are shared, in the body's own frame. A view has the rotation of the body (seen by a camera
    turned to the pelvis) and the place of the pelvis in its crop; in every iteration it is told how far the
    posed body's keypoints, projected into it, miss what it saw, and tells all others what it makes of that.
    """

    kind: Final = "uncalibrated"
    start: Tensor
    view_start: Tensor

    def __init__(self, body: KeypointBody, *, width: int = 512, view: int = 192, iterations: int = 4) -> None:
        super().__init__()
        self.config = {"width": width, "view": view, "iterations": iterations}
        self.iterations = iterations
        self.kinematics = GlobalKinematics(body)
        self.encode = _mlp(3 * 25, width // 2, view)
        self.attend = _Attention(view, heads=4)
        self.after = _mlp(view, 2 * view, view)
        self.pool = nn.Linear(view, 4)
        self.trunk = nn.Sequential(nn.Linear(4 * view + 1, width), nn.ReLU())
        self.fixed_message = nn.Linear(view, view)
        self.message = nn.Linear(75 + 9, view, bias=False)
        self.told = nn.Sequential(nn.Linear(view, view), nn.ReLU())
        self.head = _Head(width, 23 * 6 + _BETAS + view, width)
        self.output = _output(width, 23 * 6 + _BETAS)
        self.doubt = _output(width, 23)
        self.fixed_hidden = nn.Linear(view, view)
        self.view_hidden = nn.Linear(view, view, bias=False)
        self.view_shared = nn.Linear(width, view, bias=False)
        self.view_output = _output(view, 9)
        self.register_buffer("start", matrix_to_six(torch.eye(3)).repeat(23))
        # The body upright in the picture, facing the camera.
        self.register_buffer("view_start", torch.tensor([1.0, 0, 0, 0, -1, 0, 0, 0, 0]))

    def rounds(self, c: Crops) -> list[Estimate]:
        """The estimate after each iteration; rotations of the joints are in the root's frame."""
        n, v = c.seen.shape
        count = c.seen.to(c.xy.dtype)[..., None]
        views = self.encode(torch.cat([c.xy.flatten(2), c.weight], -1))
        # A person whom no view shows attends to all, so that the softmax has something to sum.
        hidden = ~c.seen & c.seen.any(1, keepdim=True)
        views = views + self.attend(views, hidden)
        views = views + self.after(views)
        share = self.pool(views).masked_fill(hidden[..., None], -torch.inf).softmax(1)
        pooled = (share.mT @ views).flatten(1)
        fixed = self.head.fixed(self.trunk(torch.cat([pooled, count.sum(1) / 4], 1)))
        mean = count / count.sum(1, keepdim=True).clamp_min(1)
        fixed_message, fixed_hidden = self.fixed_message(views), self.fixed_hidden(views)

        six, betas = self.start.expand(n, -1), fixed.new_zeros(n, _BETAS)
        state = self.view_start.expand(n, v, -1)
        eye = torch.eye(3, dtype=fixed.dtype, device=fixed.device).expand(n, 1, 3, 3)
        with torch.no_grad():
            turned = torch.cat([eye, six_to_matrix(six.view(n, 23, 6))], 1)
            _, points = self.kinematics(turned, betas)
        orient = six_to_matrix(state[..., :6])
        estimates: list[Estimate] = []
        for _ in range(self.iterations):
            with torch.no_grad():
                miss = self.miss(points, orient, state[..., 6:], c)
            told = self.told(torch.relu(fixed_message + self.message(torch.cat([miss, state], -1))))
            h = self.head(fixed, torch.cat([six, betas, (mean * told).sum(1)], 1))
            change = self.output(h)
            six, betas = six + change[:, :138], betas + change[:, 138:]
            own = fixed_hidden + self.view_hidden(told) + self.view_shared(h)[:, None]
            state = state + self.view_output(torch.relu(own))
            orient = six_to_matrix(state[..., :6])
            turned = torch.cat([eye, six_to_matrix(six.view(n, 23, 6))], 1)
            joints, points = self.kinematics(turned, betas)
            doubt = self.doubt(h.detach())
            estimates.append(Estimate(turned, betas, joints, points, doubt, state[..., 6:], orient))
        return estimates

    def miss(self, points: Tensor, orient: Tensor, root: Tensor, c: Crops) -> Tensor:
        """(N, V, 75): where keypoints are seen from where those of the body are projected, and weights."""
        off = self.project(points, orient, root, c.rms) - c.xy
        w = c.weight / (1 + (off**2).sum(-1))
        off = (off.clamp(-1, 1) * (c.weight > 0)[..., None]).flatten(2)
        return torch.cat([2 * off, w], -1)

    def project(self, points: Tensor, orient: Tensor, root: Tensor, rms: Tensor) -> Tensor:
        """Points (N, 25, 3) of the body → (N, V, 25, 2) in the crops, in units of the spread."""
        pelvis = place(root, rms)
        cam = points[:, None] @ (towards(pelvis).mT @ orient).mT + pelvis[:, :, None]
        z = torch.maximum(cam[..., 2:], 0.2 * pelvis[:, :, None, 2:])
        return cam[..., :2] / z / rms[..., None, None]

    def forward(
        self, xy_px: Tensor, confidence: Tensor, K: Tensor, R: Tensor | None = None, t: Tensor | None = None
    ) -> Regression:
        """As ``CalibratedNet``; R and t are not looked at. A focal length in K that is wrong puts the body
        at a wrong distance and changes little else."""
        c = crop(xy_px, confidence, K)
        last = self.rounds(c)[-1]
        assert last.view_orient is not None
        pelvis = place(last.root, c.rms)
        in_view = (pelvis[..., None, :] @ c.turn)[..., 0, :]
        return _or_nobody(
            Regression(
                body_pose=to_local(last.turned),
                pose_sigma=last.log_sigma.exp(),
                betas=last.betas,
                view_orient=c.turn.mT @ towards(pelvis).mT @ last.view_orient,
                view_transl=in_view - self.kinematics.pelvis(last.betas)[:, None],
                seen=c.seen,
            )
        )


KeypointNet = CalibratedNet | UncalibratedNet
_NETS: Final[dict[str, type[CalibratedNet] | type[UncalibratedNet]]] = {
    net.kind: net for net in (CalibratedNet, UncalibratedNet)
}


def save_regressor(net: KeypointNet, path: Path) -> None:
    """Weights as safetensors, with what is needed to build the net in their metadata; atomically."""
    save_weights(path, net.state_dict(), {"kind": net.kind, **net.config})


_GIVE: Final = "Give a weights.safetensors that the command `train` has made."


def load_regressor(path: Path | Literal["calibrated", "uncalibrated"]) -> KeypointNet:
    """A keypoint net of weights that ship with the project, or of a file that ``save_regressor`` wrote.

    In evaluation mode, without gradients, float32 on the CPU. Its betas are the default body's. Raises
    ``InputError`` when the file is missing or is something else.
    """
    source = files("models.assets") / f"regressor_{path}.safetensors" if isinstance(path, str) else path
    try:
        tensors, config = read_weights(source.read_bytes())
        with torch.random.fork_rng(devices=[]):  # layers draw weights when they are made
            net = _NETS[config.pop("kind")](load_body().keypoints, **config)
        net.load_state_dict(tensors)
    except OSError as error:
        raise InputError(f"{source}: cannot read the weights ({error.strerror}). Check the path.") from error
    except RuntimeError as error:
        told = " ".join(str(error).split())[:120]
        raise InputError(f"{source}: not the weights of this network ({told}). {_GIVE}") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{source}: holds no weights of a keypoint regressor, or is damaged. {_GIVE}"
        ) from error
    return net.requires_grad_(False).eval()
