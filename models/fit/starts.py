"""Initial shapes from bone lengths; initial poses from triangulated keypoints or from a regressor."""

from __future__ import annotations

import roma
import torch
from torch import Tensor

from models.body import KeypointBody
from models.fit.problem import HINGES, JOINTS, LeverBody
from models.rotations import geodesic_degrees, rotation_between
from pipeline.skeleton import BODY_25, SMPL_24

_BONES = (
    *((s + a, s + b) for s in "LR" for a, b in (("Shoulder", "Elbow"), ("Elbow", "Wrist"))),
    *((s + a, s + b) for s in "LR" for a, b in (("Hip", "Knee"), ("Knee", "Ankle"), ("Heel", "BigToe"))),
    ("LShoulder", "RShoulder"), ("LHip", "RHip"), ("Neck", "MidHip"),
)  # fmt: skip
_BONE_LENGTH_SIGMA_M = 0.02
"""Standard deviation of a bone's median length, as detectors and bodies define points differently."""
TORSO = ("LShoulder", "RShoulder", "LHip", "RHip", "Neck", "MidHip")
"""Keypoints that fix the root."""
_FACE = ("Nose", "REye", "LEye", "REar", "LEar")


def _points(*names: str) -> list[int]:
    return [BODY_25.index(n) for n in names]


def start_shape(body: KeypointBody, points: Tensor) -> Tensor:
    """Estimate betas (B,) from the median bone lengths of points (T, 25, 3), NaN where missing (float64).

    Gauss–Newton with betas of unit variance. Zero without any bone.
    """
    a, b = _points(*(x for x, _ in _BONES)), _points(*(y for _, y in _BONES))
    length = (points[:, a] - points[:, b]).double().norm(dim=-1).nanmedian(0).values
    measured = length.isfinite()
    rest = (body.points_template[a] - body.points_template[b]).double()[measured]
    dirs = (body.points_shapedirs[a] - body.points_shapedirs[b]).double()[measured]
    betas = torch.zeros(dirs.shape[-1], dtype=torch.float64)
    for _ in range(5):
        bone = rest + dirs @ betas
        fitted = bone.norm(dim=-1)
        jacobian = (bone[:, None] @ dirs)[:, 0] / fitted[:, None] / _BONE_LENGTH_SIGMA_M
        error = (fitted - length[measured]) / _BONE_LENGTH_SIGMA_M
        normal = jacobian.T @ jacobian + torch.eye(len(betas), dtype=torch.float64)
        betas = betas - torch.linalg.solve(normal, jacobian.T @ error + betas)
    return betas


def _aligned(rest: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Align rest (..., k, 3) with points (T, ..., k, 3), NaN where missing, frame by frame (Kabsch).

    Returns rotations (T, ..., 3, 3), both centroids (T, ..., 3), and (T, ...) where the points determine the
    rotation: three of them, not collinear.
    """
    w = points.isfinite().all(-1).to(rest.dtype)[..., None]
    count = w.sum(-2).clamp(min=1)
    filled = torch.nan_to_num(points)
    mean_rest, mean = (w * rest).sum(-2) / count, (w * filled).sum(-2) / count
    covariance = (w * (filled - mean[..., None, :])).mT @ (rest - mean_rest[..., None, :])
    # A rotation needs spread in two directions: a second singular value.
    spread = torch.linalg.svdvals(covariance)[..., 1]
    size = ((rest - rest.mean(-2, keepdim=True)) ** 2).sum((-2, -1))
    turn = roma.special_procrustes_naive(covariance)
    return turn, mean_rest, mean, spread > 0.02 * size


def _consistent_headings(rotations: Tensor, valid: Tensor, rate: float) -> Tensor:
    """Valid headings (T,) without those of exchanged left and right.

    A turn of more than 100° between neighbouring frames is an exchange: of the two groups that these divide
    the frames into, the larger is kept. Frames more than 0.1 s apart are not compared.
    """
    out = torch.zeros_like(valid)
    index = valid.nonzero()[:, 0]
    if len(index) == 0:
        return out
    jump = geodesic_degrees(rotations[index[:-1]], rotations[index[1:]]) > 100
    apart = index[1:] - index[:-1] > max(rate / 10, 1.0)
    first = torch.zeros(1, dtype=torch.long)
    group = torch.cat([first, apart.long().cumsum(0)])
    side = torch.cat([first, (jump & ~apart).long().cumsum(0)]) % 2
    for g in range(int(group[-1]) + 1):
        inside = group == g
        main = int(side[inside].sum() * 2 > inside.sum())
        out[index[inside & (side == main)]] = True
    return out


def _interpolate(values: Tensor, valid: Tensor) -> Tensor:
    """Interpolate values (T, J, ...) linearly in time where not valid (T, J), constant beyond the ends."""
    frames, columns = valid.shape
    time = torch.arange(frames)[:, None].expand(-1, columns)
    lo = torch.where(valid, time, -1).cummax(0).values
    hi = torch.where(valid, time, frames).flip(0).cummin(0).values.flip(0)
    lo, hi = torch.where(lo < 0, hi, lo), torch.where(hi == frames, lo, hi)
    part = (time - lo).to(values.dtype) / (hi - lo).clamp(min=1)
    part = part.view(*part.shape, *[1] * (values.ndim - 2))
    column = torch.arange(columns)
    return values[lo, column] * (1 - part) + values[hi, column] * part


def _interpolate_rotations(rotations: Tensor, valid: Tensor) -> Tensor:
    """Interpolate rotations (T, J, 3, 3) in time where not valid (T, J); each joint is valid in some
    frame."""
    out = rotations.clone()
    out[~valid] = roma.special_procrustes_naive(_interpolate(rotations, valid)[~valid])
    return out


def _smooth_twist(twist: Tensor, strength: Tensor, frames: float) -> Tensor:
    """Average angles (T, J) over time with weights ``strength`` (T, J); 0 without any."""
    time = torch.arange(len(twist), dtype=twist.dtype)
    kernel = torch.exp(-0.5 * ((time[:, None] - time) / frames) ** 2)
    sin, cos = kernel @ (strength * torch.sin(twist)), kernel @ (strength * torch.cos(twist))
    return torch.atan2(sin, cos + 0.02)


_CHAINS = tuple(
    (
        name.split("_")[0],
        *(("shoulder", "elbow", "wrist") if "elbow" in name else ("hip", "knee", "ankle")),
    )
    for name, _, _ in HINGES
)
"""Side and three joints of each limb (L)."""


def _turn_limbs(local: Tensor, valid: Tensor, rest: Tensor, points: Tensor, rate: float) -> None:
    """Turn the bones of all four limbs to their triangulated directions, in place.

    local (T, 24, 3, 3), with the root; valid (T, 24); rest (K, 3) and points (T, K, 3), NaN where missing.
    Writes the limbs' first and second joints.
    """
    root = local[:, 0]
    first, second = ([SMPL_24.index(f"{c[0]}_{c[i]}") for c in _CHAINS] for i in (1, 2))
    upper, middle, end = (
        _points(*(f"{c[0][0].upper()}{c[i].capitalize()}" for c in _CHAINS)) for i in (1, 2, 3)
    )
    bone, next_bone = rest[middle] - rest[upper], rest[end] - rest[middle]
    direction, next_direction = (
        (points[:, middle] - points[:, upper]) @ root,
        (points[:, end] - points[:, middle]) @ root,
    )
    has_upper = direction.isfinite().all(-1)  # (T, L)
    has_both = has_upper & next_direction.isfinite().all(-1)
    swing = rotation_between(bone, torch.where(has_upper[..., None], direction, bone))
    inner = (swing.mT @ next_direction[..., None])[..., 0]
    unit = torch.nn.functional.normalize(bone, dim=-1)
    hinge = torch.stack([sign * torch.eye(3, dtype=torch.float64)[axis] for _, axis, sign in HINGES])
    bend = torch.nn.functional.normalize(torch.linalg.cross(hinge, unit, dim=-1), dim=-1)
    a, b = (inner * bend).sum(-1), (inner * torch.linalg.cross(unit, bend, dim=-1)).sum(-1)
    strength = torch.where(has_both, (a * a + b * b) / (inner * inner).sum(-1), 0)
    twist = _smooth_twist(torch.nan_to_num(torch.atan2(b, a)), strength, max(rate / 15, 1.0))
    turn = swing @ roma.rotvec_to_rotmat(twist[..., None] * unit)
    next_direction = (turn.mT @ next_direction[..., None])[..., 0]
    next_turn = rotation_between(next_bone, torch.where(has_both[..., None], next_direction, next_bone))
    local[:, first], valid[:, first] = turn, has_upper
    local[:, second], valid[:, second] = next_turn, has_both


def _turn_head(local: Tensor, valid: Tensor, rest: Tensor, points: Tensor) -> None:
    """Turn neck and head by half the face's rotation each (Kabsch); arguments as in ``_turn_limbs``."""
    face = _points(*_FACE)
    head, _, _, fixed = _aligned(rest[face], points[:, face])
    half = roma.rotmat_to_rotvec(local[:, 0].mT @ head) / 2
    plausible = fixed & (half.norm(dim=-1) < 0.7)
    for joint in (SMPL_24.index("neck"), SMPL_24.index("head")):
        local[:, joint], valid[:, joint] = roma.rotvec_to_rotmat(half), plausible


def _turn_feet(local: Tensor, valid: Tensor, rest: Tensor, points: Tensor) -> None:
    """Turn the ankles by Kabsch on the feet, after hips and knees; arguments as in ``_turn_limbs``."""
    sides = ("left", "right")
    hips, knees, ankles = ([SMPL_24.index(f"{s}_{j}") for s in sides] for j in ("hip", "knee", "ankle"))
    feet = torch.tensor(
        [_points(*(f"{s[0].upper()}{p}" for p in ("Ankle", "Heel", "BigToe", "SmallToe"))) for s in sides]
    )
    sole, _, _, fixed = _aligned(rest[feet], points[:, feet])
    shank = local[:, :1] @ local[:, hips] @ local[:, knees]
    ankle = shank.mT @ sole
    plausible = fixed & valid[:, knees] & (roma.rotmat_to_rotvec(ankle).norm(dim=-1) < 1.4)
    local[:, ankles], valid[:, ankles] = ankle, plausible


def start_pose(
    body: KeypointBody,
    betas: Tensor,
    points: Tensor,
    rate: float,
    before: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Pose a body by triangulated points (T, 25, 3): rotations (T, 24, 3, 3) and transl (T, 3), float64.

    Root, head and feet by Kabsch; each limb by turning its bones to their directions, the upper one about
    itself until elbow or knee bends about its hinge (smoothed over time). Missing joints are interpolated
    over time. before: rotations (H, 24, 3, 3) and transl (H, 3) of the first H frames, kept unless their
    heading is off by more than 100°. None without any root.
    """
    betas, points = betas.double(), points.double()
    rest = body.points_template.double() + body.points_shapedirs.double() @ betas
    pelvis = body.joints_template[0].double() + body.joints_shapedirs[0].double() @ betas
    frames = len(points)
    local = torch.eye(3, dtype=torch.float64).expand(frames, JOINTS, 3, 3).clone()
    valid = torch.zeros(frames, JOINTS, dtype=torch.bool)

    torso = _points(*TORSO)
    root, mean_rest, mean, fixed = _aligned(rest[torso], points[:, torso])
    transl = mean - (root @ (mean_rest - pelvis)[..., None])[..., 0] - pelvis
    valid[:, 0] = _consistent_headings(root, fixed, rate)
    given = torch.zeros(frames, dtype=torch.bool)
    if before is not None:
        done = len(before[0])
        wrong = valid[:done, 0] & (geodesic_degrees(before[0][:, 0].double(), root[:done]) > 100)
        given[:done] = ~wrong
        root[given], transl[given] = before[0][~wrong, 0].double(), before[1][~wrong].double()
        valid[given, 0] = True
    if not bool(valid[:, 0].any()):
        return None
    root = _interpolate_rotations(root[:, None], valid[:, :1])[:, 0]
    transl = _interpolate(transl[:, None], valid[:, :1])[:, 0]
    local[:, 0] = root

    _turn_limbs(local, valid, rest, points, rate)
    _turn_head(local, valid, rest, points)
    _turn_feet(local, valid, rest, points)

    if before is not None:
        local[given] = before[0][~wrong].double()
        valid[given] = True
    partial = [j for j in range(1, JOINTS) if bool(valid[:, j].any()) and not bool(valid[:, j].all())]
    if partial:
        local[:, partial] = _interpolate_rotations(local[:, partial], valid[:, partial])
    return local, transl


def start_regressed(
    body: KeypointBody,
    betas: Tensor,
    rotations: Tensor,
    pelvis: Tensor,
    rate: float,
    before: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Motion from a regressor's poses of single frames: rotations (T, 24, 3, 3) and transl (T, 3), float64.

    rotations (T, 24, 3, 3) and pelvis (T, 3), metres, world: NaN where missing. Missing frames and
    inconsistent headings are interpolated over time. Joints that no keypoint observes are straight, as in
    ``start_pose``: a fit would not smooth them. before: as there, kept. None without any pose.
    """
    rest = body.joints_template[0].double() + body.joints_shapedirs[0].double() @ betas.double()
    valid = pelvis.isfinite().all(-1) & rotations.isfinite().flatten(1).all(1)
    valid = _consistent_headings(torch.nan_to_num(rotations[:, 0].double()), valid, rate)
    if not bool(valid.any()):
        return None
    local, transl = torch.nan_to_num(rotations.double()), torch.nan_to_num(pelvis.double()) - rest
    unobserved = torch.ones(JOINTS, dtype=torch.bool)
    unobserved[LeverBody.of(body, torch.float64, torch.device("cpu")).active] = False
    local[:, unobserved] = torch.eye(3, dtype=torch.float64)
    done = 0 if before is None else len(before[0])
    if before is not None:
        local[:done], transl[:done], valid[:done] = before[0].double(), before[1].double(), True
    local = _interpolate_rotations(local, valid[:, None].expand(-1, JOINTS))
    return local, _interpolate(transl[:, None], valid[:, None])[:, 0]
