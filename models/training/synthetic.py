"""Synthetic people to train on: an image regressor can learn from them without any data.

The body in poses of motion capture, of the pose prior or of synthetic recordings, before random cameras,
with the keypoints that a detector would find. Sample i follows from the seed and i alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from models.body import pose_keypoints
from models.crops import crop_matrix, person_box, room_around
from models.regressors.kinematics import to_local
from models.regressors.layers import MIN_KEYPOINTS
from models.synthetic.pictures import Outfit, Portraits
from models.synthetic.poses import Poses
from models.synthetic.projections import Difficulty, Projections
from models.training.samples import Sample, Sampling, box_amid_room
from models.training.target_body import TargetBody, load_target_body
from pipeline.cameras import Rig
from pipeline.formats.keypoints.files import MIN_CONFIDENCE

_ANNOTATOR: Final = 0.01
"""Standard deviation of the points that people mark in published data, by the side of the crop."""


class SyntheticPeople:
    """Synthetic people in crops, the same in every epoch."""

    def __init__(
        self,
        poses: Poses,
        sampling: Sampling,
        count: int,
        split: str = "train",
        difficulty: Difficulty | None = None,
        clutter: float = 1.0,
        body: TargetBody | None = None,
    ) -> None:
        """split: goes into the samples' ids and their random numbers. difficulty: of the keypoints; by
        default the noise of ``Difficulty`` and varied poses. clutter: see ``Portraits``. body: by default the
        one that ships.
        """
        self.count, self.views, self.size, self.seed = count, sampling.views, sampling.size, sampling.seed
        self.split = split
        self.difficulty = Difficulty(varied_poses=True) if difficulty is None else difficulty
        taught = body or load_target_body()
        self.body = taught.mesh
        self.projections = Projections(poses, self.body.keypoints)
        self._extra = taught.extra
        self._portraits = Portraits(self.body, clutter)

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
        room = room_around(self.size)
        side = self.size + 2 * room
        zoomed = crop_matrix(frame_box.numpy(), self.size, room)
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
        outfit = Outfit.random(rng)
        pictures = tuple(
            self._portraits.draw(vertices, rig, v, outfit, rng) if seen[v] else np.zeros((1, 1, 3), np.uint8)
            for v in range(self.views)
        )
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
            box=box_amid_room(pictures, self.size),
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
