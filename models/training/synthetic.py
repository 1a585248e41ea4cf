"""Samples of synthetic people, from which an image regressor can learn without any data.

The body in poses of motion capture, of the pose prior or of synthetic recordings, in front of random cameras,
with keypoints as of a detector. Sample i depends on the seed and i alone.
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
from models.training.samples import Sample, Sampling, centred_boxes
from models.training.target_body import TargetBody, load_target_body
from pipeline.cameras import Rig
from pipeline.formats.keypoints.files import MIN_CONFIDENCE

_ANNOTATION_SIGMA: Final = 0.01
"""Standard deviation of annotated points in published data, in sides of the crop."""


class SyntheticPeople:
    """Source of samples of synthetic people, equal in every epoch."""

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
        """split: part of the samples' ids and seeds. difficulty: of the keypoints; by default the noise of
        ``Difficulty`` and varied poses. clutter: see ``Portraits``. body: by default the one that ships.
        """
        self.count, self.views, self.size, self.seed = count, sampling.views, sampling.size, sampling.seed
        self.split = split
        self.difficulty = Difficulty(varied_poses=True) if difficulty is None else difficulty
        target = body or load_target_body()
        self.body = target.mesh
        self.projections = Projections(poses, self.body.keypoints)
        self._extra = target.extra
        self._portraits = Portraits(self.body, clutter)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        index %= self.count
        rng = np.random.default_rng([self.seed, *self.split.encode(), index])
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**63)))
        projected = self.projections.sample(1, self.views, self.difficulty, torch_rng)
        orient, body_pose = projected.world_rotations[:, 0], to_local(projected.world_rotations)
        betas, transl = projected.betas, projected.transl
        vertices = self.body.vertices(orient, body_pose, betas, transl).numpy()
        R, t = projected.true_R[0].double().numpy(), projected.true_t[0].double().numpy()
        xy, confidence = projected.xy_px[0].double(), projected.confidence[0].double()
        visible = confidence >= MIN_CONFIDENCE
        box = person_box(xy, visible)
        box[visible.sum(-1) < MIN_KEYPOINTS] = torch.nan
        room = room_around(self.size)
        side = self.size + 2 * room
        crop = crop_matrix(box.numpy(), self.size, room)
        K = crop @ projected.K[0].double().numpy()
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
        detected = xy.numpy() @ crop[:, :2, :2].mT + crop[:, None, :2, 2]
        rotations = torch.cat([orient[:, None], body_pose], 1).double()
        _, joints = pose_keypoints(self._extra, rotations, betas.double(), transl.double())
        annotated = np.where(seen[:, None, None], rig.project(joints[0].numpy()), np.nan)
        annotated += _ANNOTATION_SIGMA * self.size * rng.normal(size=annotated.shape)
        with np.errstate(invalid="ignore"):
            inside = ((annotated > -0.5) & (annotated < side - 0.5)).all(-1)
        annotated[~inside] = np.nan
        return Sample(
            id=f"synthetic/{self.split}/{self.seed}/{index}",
            cameras=rig.names,
            pictures=pictures,
            box=centred_boxes(pictures, self.size),
            K=K,
            R=R,
            t=t,
            xy_px=np.concatenate([detected, annotated], 1),
            confidence=np.concatenate([confidence.numpy() * seen[:, None], inside], 1),
            joints=rig.to_camera(joints[0].numpy()),
            orient=R @ orient[0].double().numpy(),
            body_pose=body_pose[0].double().numpy(),
            betas=betas[0].double().numpy(),
        )
