"""Training poses: reading, split into training and held-out clips, sampling and variation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.body import forward_kinematics, load_body, pelvis_at_rest
from models.fit.problem import HINGES
from models.priors import PosePrior, load_pose_prior
from models.synthetic.people import animate, make_people
from pipeline.archives import read_npz
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24

HELD_OUT: Final = 0.15
"""Share of each category's clips that is held out from training."""
_UPPER_BODY: Final = tuple(
    i
    for i, name in enumerate(SMPL_24.names)
    if re.search("spine|neck|head|collar|shoulder|elbow|wrist|hand", name)
)
_JITTERED_SHARE: Final = 0.4
_MAX_JITTER_SIGMA_RAD: Final = 0.15
_EXCHANGED_SHARE: Final = 0.15
"""Share of poses that get the upper body of another."""
_PRIOR_POSES: Final = 4096
_PRIOR_SPREAD: Final = 0.8
"""Scale of the prior's standard deviations: the tails of its Gaussians are not human poses."""
_SYNTHETIC_PEOPLE: Final = 64
_SECONDS_PER_PERSON: Final = 60.0
_POSES_PER_PERSON: Final = 64


def uniform(rng: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Uniform random numbers."""
    return low + (high - low) * torch.rand(*shape, generator=rng)


def chance(rng: torch.Generator, p: float | Tensor, *shape: int) -> Tensor:
    """Random booleans, true with probability ``p``."""
    return torch.rand(*shape, generator=rng) < p


@dataclass(frozen=True)
class Poses:
    """Frames of motion capture, F of them."""

    pose: Tensor
    """(F, J, 3) axis-angle of the SMPL joints, the root's in a world with y up."""
    height: Tensor
    """(F,) height of the pelvis over the floor, metres."""
    category: Tensor
    """(F,) index of the motion's category."""
    categories: tuple[str, ...]

    def where(self, keep: Tensor) -> Poses:
        return Poses(self.pose[keep], self.height[keep], self.category[keep], self.categories)

    def to(self, device: torch.device | str) -> Poses:
        pose, height, category = (x.to(device) for x in (self.pose, self.height, self.category))
        return Poses(pose, height, category, self.categories)


def held_out_clips(names: list[str], categories: list[str]) -> list[bool]:
    """True for held-out clips: about 15 %, at least one, of each category of at least three clips.

    Clips of a subject are kept together where the names state several subjects: CMU's are
    ``cmu_<subject>_<trial>``, and the two dancers of a salsa take are numbered 15 apart.
    """

    def group(name: str) -> str:
        if salsa := re.fullmatch(r"cmud_salsa_(\d+)", name):
            return f"take {int(salsa[1]) % 15}"
        subject = re.match(r"cmu_(\d+)_", name)
        return f"subject {subject[1]}" if subject else name

    out = [False] * len(names)
    for category in sorted(set(categories)):
        clips = [i for i, c in enumerate(categories) if c == category]
        if len(clips) < 3:
            continue
        groups: dict[str, list[int]] = {}
        for i in clips:
            groups.setdefault(group(names[i]), []).append(i)
        if len(groups) == 1:  # one subject
            groups = {names[i]: [i] for i in clips}
        order = np.random.default_rng(len(clips)).permutation(sorted(groups))
        wanted, taken = max(1, round(HELD_OUT * len(clips))), 0
        for key in order:
            members = groups[str(key)]
            if taken and taken + len(members) > wanted + 1:
                continue
            for i in members:
                out[i] = True
            taken += len(members)
            if taken >= wanted:
                break
    return out


def read_poses(path: Path) -> tuple[Poses, Poses]:
    """Read training and held-out poses.

    path: ``.npz`` with body_pose (N, J, 3) axis-angle, trans (N, 3) metres with y up, clip_id (N,), clip_name
    and clip_category (clips,). Raises ``InputError`` for any other file.
    """
    names_of_arrays = ("body_pose", "trans", "clip_id", "clip_name", "clip_category")
    try:
        d = read_npz(path, names_of_arrays)
        pose, trans, clip, names, categories = (d[k] for k in names_of_arrays)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: no motion to train on ({error}). Give a .npz with {', '.join(names_of_arrays)}."
        ) from error
    count = pose.shape[:1]
    are_numbers = clip.dtype.kind in "iu" and all(
        x.dtype.kind in "fiu" and np.isfinite(x).all() for x in (pose, trans)
    )
    shapes = (*count, len(SMPL_24), 3), (*count, 3), count
    if not are_numbers or (pose.shape, trans.shape, clip.shape) != shapes:
        raise InputError(
            f"{path}: body_pose {pose.shape}, trans {trans.shape} and clip_id {clip.shape} must be "
            f"numbers (N, {len(SMPL_24)}, 3), (N, 3) and (N,)."
        )
    if names.ndim != 1 or not len(pose) or names.shape != categories.shape:
        raise InputError(f"{path}: clip_name {names.shape}, clip_category {categories.shape}, {count} poses")
    if not np.isin(clip, np.arange(len(names))).all():
        raise InputError(
            f"{path}: clip_id must number the {len(names)} names and {len(categories)} categories of clips, "
            f"from 0; it has {clip.min()} to {clip.max()}."
        )
    category_names, category = np.unique(categories, return_inverse=True)
    test = np.array(held_out_clips([str(n) for n in names], [str(c) for c in categories]))
    poses = Poses(
        torch.from_numpy(np.asarray(pose, np.float32)),
        torch.from_numpy(np.asarray(trans[:, 1], np.float32)).clamp(0.2, 1.6),
        torch.from_numpy(category[clip]),
        tuple(str(c) for c in category_names),
    )
    is_test = torch.from_numpy(test[clip])
    if not is_test.any():
        raise InputError(
            f"{path}: no category has three clips, so none can be held out to test on. Give more motion."
        )
    return poses.where(~is_test), poses.where(is_test)


class Sampler:
    """Sampler of frames: a category, weighted by the square root of its frames, then a frame of it."""

    def __init__(self, poses: Poses) -> None:
        self.poses = poses
        count = torch.bincount(poses.category, minlength=len(poses.categories)).double()
        weight = count.sqrt() / count.clamp_min(1)
        self._cumulative = weight[poses.category].cumsum(0)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw frame indices (count,)."""
        at = torch.rand(count, generator=rng, dtype=torch.float64) * self._cumulative[-1]
        return torch.searchsorted(self._cumulative, at, right=True).clamp_max(len(self._cumulative) - 1)

    def rotations(self, index: Tensor, rng: torch.Generator, *, varied: bool) -> Tensor:
        """Local rotations (N, J, 3, 3) of frames, half of them mirrored.

        varied: with upper bodies of other frames, and jittered joints.
        """
        n = len(index)
        pose = self.poses.pose[index]
        if varied:
            other = self.poses.pose[self.draw(n, rng)]
            upper = torch.zeros(len(SMPL_24), dtype=torch.bool)
            upper[list(_UPPER_BODY)] = True
            pose = torch.where(chance(rng, _EXCHANGED_SHARE, n, 1, 1) & upper[:, None], other, pose)
        mirrored = pose[:, list(SMPL_24.flips)] * pose.new_tensor([1.0, -1.0, -1.0])
        rotation: Tensor = roma.rotvec_to_rotmat(torch.where(chance(rng, 0.5, n, 1, 1), mirrored, pose))
        if varied:
            sigma = (
                _MAX_JITTER_SIGMA_RAD
                * torch.rand(n, 1, 1, generator=rng)
                * chance(rng, _JITTERED_SHARE, n, 1, 1)
            )
            rotation = rotation @ roma.rotvec_to_rotmat(sigma * torch.randn(*pose.shape, generator=rng))
        return rotation


def draw_from_prior(
    prior: PosePrior, count: int, spread: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw poses (count, J − 1, 3), axis-angle, with standard deviations scaled by ``spread``; knees and
    elbows bend the human way."""
    weights = prior.weights.numpy()
    component = rng.choice(len(weights), count, p=weights / weights.sum())
    factor = np.linalg.cholesky(prior.covariances.numpy())[component]
    noise = spread * rng.normal(size=(count, factor.shape[-1]))
    mean = prior.means.numpy()[component]
    pose: NDArray[np.float64] = (mean + np.einsum("nij,nj->ni", factor, noise)).reshape(count, -1, 3)
    for name, axis, sign in HINGES:
        joint = SMPL_24.index(name) - 1
        pose[:, joint, axis] = sign * np.abs(pose[:, joint, axis])
    return pose


def poses_of_prior(seed: int = 0) -> Poses:
    """Draw poses from the pose prior, standing on the floor; for training without motion capture."""
    prior, body = load_pose_prior(), load_body().keypoints
    rng = np.random.default_rng([seed, 11])
    pose = draw_from_prior(prior, _PRIOR_POSES, _PRIOR_SPREAD, rng)
    lean = rng.normal(0, 0.12, (_PRIOR_POSES, 1, 3))
    with_root = torch.from_numpy(np.concatenate([lean, pose], 1))
    _, joints = forward_kinematics(roma.rotvec_to_rotmat(with_root), body.joints_template)
    height = joints[:, 0, 1] - joints[..., 1].amin(1) + 0.06  # from an ankle or toe to its sole
    return Poses(with_root.float(), height.float(), torch.zeros(_PRIOR_POSES, dtype=torch.int64), ("prior",))


def poses_of_people(seed: int = 0) -> Poses:
    """Draw poses of the people of synthetic recordings, which vary less than motion capture."""
    body, rng = load_body(), np.random.default_rng([seed, 12])
    upright = roma.rotvec_to_rotmat(torch.tensor([-np.pi / 2, 0, 0], dtype=torch.float64))  # z up → y up
    poses, heights = [], []
    for person in make_people(_SYNTHETIC_PEOPLE, _SECONDS_PER_PERSON, seed, body):
        rotations, transl = animate(
            person, body, np.sort(rng.uniform(0, _SECONDS_PER_PERSON, _POSES_PER_PERSON))
        )
        turned = torch.from_numpy(rotations)
        turned[:, 0] = upright @ turned[:, 0]
        poses.append(roma.rotmat_to_rotvec(turned))
        rest = pelvis_at_rest(body.keypoints, torch.from_numpy(person.betas)[None])
        heights.append((torch.from_numpy(transl) + rest)[:, 2])
    pose, height = torch.cat(poses).float(), torch.cat(heights).float()
    return Poses(pose, height, torch.zeros(len(pose), dtype=torch.int64), ("people",))
