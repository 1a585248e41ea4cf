"""Starts of a fit: a shape from bone lengths, poses from triangulated points or from a regressor."""

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
_LENGTH_SIGMA_M = 0.02
"""Standard deviation of a bone's median length: detectors and bodies do not mean quite the same points."""
TORSO = ("LShoulder", "RShoulder", "LHip", "RHip", "Neck", "MidHip")
"""Keypoints that tell how a person stands."""
_FACE = ("Nose", "REye", "LEye", "REar", "LEar")


def _points(*names: str) -> list[int]:
    return [BODY_25.index(n) for n in names]


def start_shape(body: KeypointBody, points: Tensor) -> Tensor:
    """Betas (B,) from the median lengths of bones between points (T, 25, 3), NaN where missing (float64).

    Gauss–Newton; lengths err by ``_LENGTH_SIGMA_M``, betas have unit variance. Zero where no bone was seen.
    """
    a, b = _points(*(x for x, _ in _BONES)), _points(*(y for _, y in _BONES))
    length = (points[:, a] - points[:, b]).double().norm(dim=-1).nanmedian(0).values
    seen = length.isfinite()
    rest = (body.points_template[a] - body.points_template[b]).double()[seen]
    dirs = (body.points_shapedirs[a] - body.points_shapedirs[b]).double()[seen]
    betas = torch.zeros(dirs.shape[-1], dtype=torch.float64)
    for _ in range(5):
        bone = rest + dirs @ betas
        now = bone.norm(dim=-1)
        jacobian = (bone[:, None] @ dirs)[:, 0] / now[:, None] / _LENGTH_SIGMA_M
        error = (now - length[seen]) / _LENGTH_SIGMA_M
        normal = jacobian.T @ jacobian + torch.eye(len(betas), dtype=torch.float64)
        betas = betas - torch.linalg.solve(normal, jacobian.T @ error + betas)
    return betas


def _aligned(rest: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kabsch per frame: rest (..., k, 3) → points (T, ..., k, 3), NaN where missing.

    Rotations (T, ..., 3, 3), both centroids (T, ..., 3), and whether the points fix a rotation (T, ...):
    three of them, not on a line.
    """
    w = points.isfinite().all(-1).to(rest.dtype)[..., None]
    count = w.sum(-2).clamp(min=1)
    there = torch.nan_to_num(points)
    mean_rest, mean = (w * rest).sum(-2) / count, (w * there).sum(-2) / count
    covariance = (w * (there - mean[..., None, :])).mT @ (rest - mean_rest[..., None, :])
    # Two directions must be spread: the second singular value, of points a few centimetres apart at least.
    spread = torch.linalg.svdvals(covariance)[..., 1]
    size = ((rest - rest.mean(-2, keepdim=True)) ** 2).sum((-2, -1))
    turn = roma.special_procrustes_naive(covariance)
    return turn, mean_rest, mean, spread > 0.02 * size


def _steady(rotations: Tensor, known: Tensor, rate: float) -> Tensor:
    """Which known headings (T,) to trust: nobody turns by more than 100° from one frame to the next.

    Frames between two such jumps were seen with left and right exchanged, or the others were: the larger part
    is believed. Frames more than a tenth of a second apart are not compared.
    """
    out = torch.zeros_like(known)
    index = known.nonzero()[:, 0]
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


def _fill(values: Tensor, known: Tensor) -> Tensor:
    """Values (T, J, ...) where known (T, J), between them linear in time, beyond them the nearest."""
    frames, columns = known.shape
    time = torch.arange(frames)[:, None].expand(-1, columns)
    lo = torch.where(known, time, -1).cummax(0).values
    hi = torch.where(known, time, frames).flip(0).cummin(0).values.flip(0)
    lo, hi = torch.where(lo < 0, hi, lo), torch.where(hi == frames, lo, hi)
    part = (time - lo).to(values.dtype) / (hi - lo).clamp(min=1)
    part = part.view(*part.shape, *[1] * (values.ndim - 2))
    column = torch.arange(columns)
    return values[lo, column] * (1 - part) + values[hi, column] * part


def _fill_rotations(rotations: Tensor, known: Tensor) -> Tensor:
    """Rotations (T, J, 3, 3) filled in time where they are not known (T, J); every J known in some frame."""
    out = rotations.clone()
    out[~known] = roma.special_procrustes_naive(_fill(rotations, known)[~known])
    return out


def _smooth_twist(twist: Tensor, strength: Tensor, frames: float) -> Tensor:
    """Angles (T, J) averaged over time, each counted by its strength; 0 where nothing is known."""
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


def _turn_limbs(local: Tensor, known: Tensor, rest: Tensor, points: Tensor, rate: float) -> None:
    """Turn the bones of all four limbs onto the seen directions.

    local (T, 24, 3, 3) and known (T, 24) bool, with the root's: the limbs' first and second joints are filled
    in. rest (K, 3) and points (T, K, 3), NaN where missing.
    """
    root = local[:, 0]
    first, second = ([SMPL_24.index(f"{c[0]}_{c[i]}") for c in _CHAINS] for i in (1, 2))
    upper, middle, end = (
        _points(*(f"{c[0][0].upper()}{c[i].capitalize()}" for c in _CHAINS)) for i in (1, 2, 3)
    )
    bone, next_bone = rest[middle] - rest[upper], rest[end] - rest[middle]
    there, next_there = (
        (points[:, middle] - points[:, upper]) @ root,
        (points[:, end] - points[:, middle]) @ root,
    )
    seen, next_seen = there.isfinite().all(-1), next_there.isfinite().all(-1)  # (T, L)
    both = seen & next_seen
    swing = rotation_between(bone, torch.where(seen[..., None], there, bone))
    inner = (swing.mT @ next_there[..., None])[..., 0]
    unit = torch.nn.functional.normalize(bone, dim=-1)
    hinge = torch.stack([sign * torch.eye(3, dtype=torch.float64)[axis] for _, axis, sign in HINGES])
    bend = torch.nn.functional.normalize(torch.linalg.cross(hinge, unit, dim=-1), dim=-1)
    a, b = (inner * bend).sum(-1), (inner * torch.linalg.cross(unit, bend, dim=-1)).sum(-1)
    strength = torch.where(both, (a * a + b * b) / (inner * inner).sum(-1), 0)
    twist = _smooth_twist(torch.nan_to_num(torch.atan2(b, a)), strength, max(rate / 15, 1.0))
    turn = swing @ roma.rotvec_to_rotmat(twist[..., None] * unit)
    next_there = (turn.mT @ next_there[..., None])[..., 0]
    next_turn = rotation_between(next_bone, torch.where(both[..., None], next_there, next_bone))
    local[:, first], known[:, first] = turn, seen
    local[:, second], known[:, second] = next_turn, both


def _turn_head(local: Tensor, known: Tensor, rest: Tensor, points: Tensor) -> None:
    """Turn neck and head by half of what the face is turned each, by Kabsch; arguments as ``_turn_limbs``."""
    face = _points(*_FACE)
    head, _, _, fixed = _aligned(rest[face], points[:, face])
    half = roma.rotmat_to_rotvec(local[:, 0].mT @ head) / 2
    likely = fixed & (half.norm(dim=-1) < 0.7)
    for joint in (SMPL_24.index("neck"), SMPL_24.index("head")):
        local[:, joint], known[:, joint] = roma.rotvec_to_rotmat(half), likely


def _turn_feet(local: Tensor, known: Tensor, rest: Tensor, points: Tensor) -> None:
    """Turn the ankles by Kabsch on the feet, below hips and knees that are turned; as ``_turn_limbs``."""
    sides = ("left", "right")
    hips, knees, ankles = ([SMPL_24.index(f"{s}_{j}") for s in sides] for j in ("hip", "knee", "ankle"))
    feet = torch.tensor(
        [_points(*(f"{s[0].upper()}{p}" for p in ("Ankle", "Heel", "BigToe", "SmallToe"))) for s in sides]
    )
    sole, _, _, fixed = _aligned(rest[feet], points[:, feet])
    shank = local[:, :1] @ local[:, hips] @ local[:, knees]
    ankle = shank.mT @ sole
    likely = fixed & known[:, knees] & (roma.rotmat_to_rotvec(ankle).norm(dim=-1) < 1.4)
    local[:, ankles], known[:, ankles] = ankle, likely


def start_pose(
    body: KeypointBody,
    betas: Tensor,
    points: Tensor,
    rate: float,
    before: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Rotations (T, 24, 3, 3) and transl (T, 3) that bring a body onto triangulated points (T, 25, 3).

    The root by Kabsch on the torso; each limb by turning its bones onto the seen directions, the upper one
    about itself so that elbow or knee bends about its own hinge (where it bends; smoothed over time); head
    and feet by Kabsch. What was not seen is interpolated over time. before: rotations (H, 24, 3, 3) and
    transl (H, 3) of the first H of the T frames, taken as they are unless they face the wrong way. None where
    no frame shows a torso and none is given. float64.
    """
    betas, points = betas.double(), points.double()
    rest = body.points_template.double() + body.points_shapedirs.double() @ betas
    pelvis = body.joints_template[0].double() + body.joints_shapedirs[0].double() @ betas
    frames = len(points)
    local = torch.eye(3, dtype=torch.float64).expand(frames, JOINTS, 3, 3).clone()
    known = torch.zeros(frames, JOINTS, dtype=torch.bool)

    torso = _points(*TORSO)
    root, mean_rest, mean, fixed = _aligned(rest[torso], points[:, torso])
    transl = mean - (root @ (mean_rest - pelvis)[..., None])[..., 0] - pelvis
    known[:, 0] = _steady(root, fixed, rate)
    given = torch.zeros(frames, dtype=torch.bool)
    if before is not None:
        # What was fitted before is taken, unless the torso now says that it faced the other way.
        done = len(before[0])
        wrong = known[:done, 0] & (geodesic_degrees(before[0][:, 0].double(), root[:done]) > 100)
        given[:done] = ~wrong
        root[given], transl[given] = before[0][~wrong, 0].double(), before[1][~wrong].double()
        known[given, 0] = True
    if not bool(known[:, 0].any()):
        return None
    root = _fill_rotations(root[:, None], known[:, :1])[:, 0]
    transl = _fill(transl[:, None], known[:, :1])[:, 0]
    local[:, 0] = root

    _turn_limbs(local, known, rest, points, rate)
    _turn_head(local, known, rest, points)
    _turn_feet(local, known, rest, points)

    if before is not None:
        local[given] = before[0][~wrong].double()
        known[given] = True
    partly = [j for j in range(1, JOINTS) if bool(known[:, j].any()) and not bool(known[:, j].all())]
    if partly:
        local[:, partly] = _fill_rotations(local[:, partly], known[:, partly])
    return local, transl


def start_regressed(
    body: KeypointBody,
    betas: Tensor,
    rotations: Tensor,
    pelvis: Tensor,
    rate: float,
    before: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Rotations (T, 24, 3, 3) and transl (T, 3) of one motion from a regressor's poses of single frames.

    rotations (T, 24, 3, 3) and pelvis (T, 3), metres, world: NaN where it has none. What it lacks is
    interpolated over time, and so are frames that face away from most others. Joints that no keypoint shows
    to turn are straight, as in ``start_pose``: a fit would not smooth what each frame says of them. before as
    there, taken as it is. None where no frame has a pose. float64.
    """
    rest = body.joints_template[0].double() + body.joints_shapedirs[0].double() @ betas.double()
    known = pelvis.isfinite().all(-1) & rotations.isfinite().flatten(1).all(1)
    known = _steady(torch.nan_to_num(rotations[:, 0].double()), known, rate)
    if not bool(known.any()):
        return None
    local, transl = torch.nan_to_num(rotations.double()), torch.nan_to_num(pelvis.double()) - rest
    unseen = torch.ones(JOINTS, dtype=torch.bool)
    unseen[LeverBody.of(body, torch.float64, torch.device("cpu")).active] = False
    local[:, unseen] = torch.eye(3, dtype=torch.float64)
    done = 0 if before is None else len(before[0])
    if before is not None:
        local[:done], transl[:done], known[:done] = before[0].double(), before[1].double(), True
    local = _fill_rotations(local, known[:, None].expand(-1, JOINTS))
    return local, _fill(transl[:, None], known[:, None])[:, 0]
