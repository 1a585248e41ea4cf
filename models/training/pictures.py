"""Pictures of made-up people whose truth is known: what an image regressor can learn from without any data.

The body in poses of motion capture, of the pose prior or of made-up recordings, before random cameras;
dressed in plain colours, lit from anywhere, before backgrounds of gradients, noise and shapes; its keypoints
found with the errors of a detector. Sample i follows from the seed and i alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from models.body import Body, forward_kinematics, load_body, pelvis_at_rest, pose_keypoints
from models.crops import person_box
from models.motion import animate, make_people
from models.priors import load_pose_prior
from models.regressor import MIN_KEYPOINTS, to_local
from models.rendering.overlay import composite
from models.rendering.software import draw
from models.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from models.smplify import HINGES
from models.training.bodies import TaughtBody, taught_body
from models.training.crop_store import picture_side, zoom
from models.training.poses import Poses
from models.training.projections import Difficulty, Projections
from models.training.samples import Sample
from pipeline.cameras import Rig
from pipeline.joints import BODY_25, SMPL_JOINTS
from pipeline.keypoints import MIN_CONFIDENCE

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]

_PRIOR_POSES: Final = 4096
_PRIOR_SPREAD: Final = 0.8
"""Draws of the prior's Gaussians are drawn to their means by this: their tails are no one's pose."""
_ANNOTATOR: Final = 0.01
"""Standard deviation of the 24 points that people mark in published data, by the side of the crop."""
_GRAIN: Final = 512
"""Side of the noise of a sensor of which each picture gets a piece; pictures are smaller."""
_PEOPLE: Final = 64
_SECONDS: Final = 60.0
_MOMENTS: Final = 64
_PARTS: Final = ("skin", "hair", "top", "sleeve", "trousers", "shin", "shoes")
_WORN_ON: Final = {
    "spine1": "top", "spine2": "top", "spine3": "top", "left_collar": "top", "right_collar": "top",
    "left_shoulder": "top", "right_shoulder": "top", "left_elbow": "sleeve", "right_elbow": "sleeve",
    "pelvis": "trousers", "left_hip": "trousers", "right_hip": "trousers", "left_knee": "shin",
    "right_knee": "shin", "left_ankle": "shoes", "right_ankle": "shoes", "left_foot": "shoes",
    "right_foot": "shoes",
}  # fmt: skip
"""What covers the skin that follows a joint; all else is bare."""


def poses_of_prior(seed: int = 0) -> Poses:
    """Poses for whoever has no motion capture: draws from the pose prior, standing on the floor."""
    prior, body = load_pose_prior(), load_body().keypoints
    rng = np.random.default_rng([seed, 11])
    weights = prior.weights.numpy()
    which = rng.choice(len(weights), _PRIOR_POSES, p=weights / weights.sum())
    root = np.linalg.cholesky(prior.covariances.numpy())[which]
    noise = _PRIOR_SPREAD * rng.normal(size=(_PRIOR_POSES, 69))
    pose = (prior.means.numpy()[which] + np.einsum("nij,nj->ni", root, noise)).reshape(-1, 23, 3)
    for name, axis, sign in HINGES:
        joint = SMPL_JOINTS.index(name) - 1
        pose[:, joint, axis] = sign * np.abs(pose[:, joint, axis])
    lean = rng.normal(0, 0.12, (_PRIOR_POSES, 1, 3))
    full = torch.from_numpy(np.concatenate([lean, pose], 1))
    _, joints = forward_kinematics(axis_angle_to_matrix(full), body.joints_template)
    height = joints[:, 0, 1] - joints[..., 1].amin(1) + 0.06  # of an ankle or toe over its sole
    return Poses(full.float(), height.float(), torch.zeros(_PRIOR_POSES, dtype=torch.int64), ("prior",))


def poses_of_people(seed: int = 0) -> Poses:
    """Poses of the people of made-up recordings (``models/motion.py``), each in a manner of their own: they
    walk, squat, swing their arms, turn, jump and reach. Less varied than motion capture."""
    body, rng = load_body(), np.random.default_rng([seed, 12])
    upright = torch.from_numpy(Rotation.from_euler("x", -np.pi / 2).as_matrix())  # z up → y up
    poses, heights = [], []
    for person in make_people(_PEOPLE, _SECONDS, seed, body):
        rotations, transl = animate(person, body, np.sort(rng.uniform(0, _SECONDS, _MOMENTS)))
        turned = torch.from_numpy(rotations)
        turned[:, 0] = upright @ turned[:, 0]
        poses.append(matrix_to_axis_angle(turned))
        rest = pelvis_at_rest(body.keypoints, torch.from_numpy(person.betas)[None])
        heights.append((torch.from_numpy(transl) + rest)[:, 2])
    pose, height = torch.cat(poses).float(), torch.cat(heights).float()
    return Poses(pose, height, torch.zeros(len(pose), dtype=torch.int64), ("people",))


class SyntheticPictures:
    """``count`` samples of ``views`` crops of ``size`` pixels, the same in every epoch."""

    def __init__(
        self,
        poses: Poses,
        *,
        count: int,
        views: int,
        size: int,
        seed: int = 0,
        split: str = "train",
        difficulty: Difficulty | None = None,
        clutter: float = 1.0,
        body: TaughtBody | None = None,
    ) -> None:
        """clutter: of the backgrounds, from 0, soft gradients, to 1, with shapes and strong noise. split:
        goes into the samples' ids and their random numbers. difficulty: of the keypoints; by default the
        noise of ``Difficulty`` and poses varied beyond those given. body: by default the one that ships."""
        self.count, self.views, self.size, self.seed, self.split = count, views, size, seed, split
        self.clutter = clutter
        self.difficulty = Difficulty(varied_poses=True) if difficulty is None else difficulty
        taught = body or taught_body()
        self.body = taught.mesh
        self.projections = Projections(poses, self.body.keypoints)
        self._extra = taught.extra
        self._tints = _tints(self.body)
        self._grain = np.random.default_rng(1).standard_normal((_GRAIN, _GRAIN, 3), np.float32)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        index %= self.count
        rng = np.random.default_rng([self.seed, *self.split.encode(), index])
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**63)))
        found = self.projections.sample(1, self.views, self.difficulty, torch_rng)
        turned, betas = found.turned, found.betas
        local = to_local(turned)
        vertices = self.body.vertices(turned[:, 0], local, betas, found.transl).numpy()
        R, t = found.true_R[0].double().numpy(), found.true_t[0].double().numpy()
        xy, confidence = found.xy_px[0].double(), found.confidence[0].double()
        counts = confidence >= MIN_CONFIDENCE
        frame_box = person_box(xy, counts)
        frame_box[counts.sum(-1) < MIN_KEYPOINTS] = torch.nan
        side = picture_side(self.size)
        zoomed = zoom(frame_box.numpy(), self.size)
        K = zoomed @ found.K[0].double().numpy()
        seen = np.isfinite(K).all((1, 2))
        rig = Rig(
            tuple(str(v) for v in range(self.views)),
            np.where(seen[:, None, None], K, np.eye(3)),
            np.zeros((self.views, 8)),
            R,
            t,
            np.full((self.views, 2), side),
        )
        look = _Look.of(rng)
        pictures = tuple(
            self._picture(rig, v, vertices, look, rng) if seen[v] else np.zeros((1, 1, 3), np.uint8)
            for v in range(self.views)
        )
        box = np.tile([(side - 1) / 2, (side - 1) / 2, self.size], (self.views, 1)).astype(np.float64)
        detected = xy.numpy() @ zoomed[:, :2, :2].mT + zoomed[:, None, :2, 2]
        rotations = torch.cat([turned[:, :1], local], 1).double()
        _, joints = pose_keypoints(self._extra, rotations, betas.double(), found.transl.double())
        in_camera = rig.to_camera(joints[0].numpy())
        marked = np.where(seen[:, None, None], rig.project(joints[0].numpy()), np.nan)
        marked += _ANNOTATOR * self.size * rng.normal(size=marked.shape)
        with np.errstate(invalid="ignore"):
            inside = ((marked > -0.5) & (marked < side - 0.5)).all(-1)
        marked[~inside] = np.nan
        return Sample(
            id=f"synthetic/{self.split}/{self.seed}/{index}",
            cameras=rig.names,
            pictures=pictures,
            box=np.where(seen[:, None], box, np.nan),
            K=K,
            R=R,
            t=t,
            xy_px=np.concatenate([detected, marked], 1),
            confidence=np.concatenate([confidence.numpy() * seen[:, None], inside], 1),
            joints=in_camera,
            orient=R @ turned[0, 0].double().numpy(),
            body_pose=local[0].double().numpy(),
            betas=betas[0].double().numpy(),
        )

    def _picture(
        self, rig: Rig, view: int, vertices: NDArray[np.float32], look: _Look, rng: np.random.Generator
    ) -> Pixels:
        side = int(rig.size[view, 0])
        light = (rig.R[view] @ look.light).astype(np.float32)
        drawn = draw(
            vertices, self.body.faces, rig, view, look.colours,
            tints=self._tints, light=light, ambient=look.ambient,
        )  # fmt: skip
        rgb = composite(_background(side, self.clutter, rng), drawn).astype(np.float32)
        y, x = rng.integers(0, _GRAIN - side, 2)
        rgb += rng.uniform(0, 8) * self._grain[y : y + side, x : x + side]
        return rgb.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class _Look:
    """Clothes and light of a sample: the same in all its views."""

    colours: NDArray[np.float32]
    """(parts, 4) for ``draw``."""
    light: Array
    """(3,) unit vector to the light, world."""
    ambient: float

    @staticmethod
    def of(rng: np.random.Generator) -> _Look:
        worn = dict(zip(_PARTS, rng.uniform(0.03, 1, (len(_PARTS), 3)), strict=True))
        for part in _PARTS:
            worn[part] = worn[part].mean() + rng.random() * (worn[part] - worn[part].mean())
        worn["skin"] = np.array([0.25, 0.15, 0.1]) + rng.random() * np.array([0.7, 0.62, 0.56])
        worn["hair"] = worn["hair"] * rng.uniform(0.1, 0.9)
        worn["sleeve"] = worn["top"] if rng.random() < 0.5 else worn["skin"]
        worn["shin"] = worn["trousers"] if rng.random() < 0.7 else worn["skin"]
        colours = np.ones((len(_PARTS), 4), np.float32)
        colours[:, :3] = np.stack([worn[p] for p in _PARTS]) * rng.uniform(0.7, 1.1)
        light = rng.normal(size=3)
        return _Look(colours.clip(0, 1), light / np.linalg.norm(light), rng.uniform(0.3, 0.75))


def _tints(body: Body) -> NDArray[np.int32]:
    """(F,) index into ``_PARTS`` of each face."""
    joint = body.weights.argmax(1).numpy()
    part = np.array([_PARTS.index(_WORN_ON.get(name, "skin")) for name in SMPL_JOINTS])[joint]
    point = dict(zip(BODY_25, body.keypoints.points_template.numpy(), strict=True))
    at = body.v_template.numpy()
    eyes, ears = (point[f"L{p}"] + point[f"R{p}"] for p in ("Eye", "Ear"))
    above, behind = at[:, 1] > eyes[1] / 2 + 0.04, at[:, 2] < ears[2] / 2 - 0.01
    low = at[:, 1] < point["Nose"][1] - 0.04
    part[(joint == SMPL_JOINTS.index("head")) & (above | behind) & ~low] = _PARTS.index("hair")
    return np.asarray(part[body.faces[:, 0]], np.int32)


def _background(side: int, clutter: float, rng: np.random.Generator) -> Pixels:
    """(side, side, 3): a gradient between four corners' colours, shapes, noise of any coarseness."""
    corners = rng.uniform(0, 255, (2, 2, 3)).astype(np.float32)
    corners = corners.mean((0, 1)) + max(clutter, 0.3) * (corners - corners.mean((0, 1)))
    rgb = cv2.resize(corners, (side, side), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.poisson(4 * clutter)):
        colour = rng.uniform(0, 255, 3).tolist()
        corner, size = rng.uniform(-0.2, 1.2, 2) * side, rng.uniform(0.03, 0.6, 2) * side
        turn, shape = rng.uniform(0, 180), rng.integers(3)
        if shape == 0:
            cv2.ellipse(rgb, (corner.tolist(), size.tolist(), turn), colour, -1, cv2.LINE_AA)
        elif shape == 1:
            points = cv2.boxPoints((corner.tolist(), size.tolist(), turn))
            cv2.fillConvexPoly(rgb, points.round().astype(np.int32), colour, cv2.LINE_AA)
        else:
            a, b = rng.integers(0, side, (2, 2)).tolist()
            cv2.line(rgb, a, b, colour, int(rng.integers(1, 6)), cv2.LINE_AA)
    cells = int(rng.integers(3, 40))
    noise = max(clutter, 0.1) * rng.uniform(0, 45) * rng.standard_normal((cells, cells, 3), np.float32)
    rgb = rgb + cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    grey = rgb.mean(2, keepdims=True)
    return np.asarray((grey + rng.random() * (rgb - grey)).clip(0, 255).astype(np.uint8))
