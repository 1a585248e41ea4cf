"""Samples of a user's recordings: people as reconstructed, in the crops of their videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.body import pose_keypoints
from models.crops import MAX_BOX_FRAME_RATIO, crop_matrix, person_box, room_around
from models.regressors.layers import MIN_KEYPOINTS
from models.training.crop_store import CropPlan, CropStore
from models.training.samples import Sample, Sampling, ViewGroups, centred_boxes
from models.training.target_body import TargetBody, load_target_body
from pipeline.batches import check_points
from pipeline.errors import InputError
from pipeline.skeleton import BODY_25, EXTRA_24, SMPL_24
from pipeline.store import Store

PERSON_LABELS: Final = ("person", "time", "view")


def check_finished(results: Store) -> None:
    """Raise ``InputError`` when a window is missing."""
    if not results.done.all():
        raise InputError(
            f"{results.path}: is not finished, {int(results.done.sum())} of {len(results.done)} windows are "
            "there. Run the recording to its end first."
        )


def plan_of_results(results: Store, size: int, fps: float, people: Sequence[int] | None = None) -> CropPlan:
    """Crops of ``size`` pixels of people with a valid fit, in all views that show them.

    fps: largest number of pictures a second. people: their ids; None for all. Raises ``InputError`` when the
    store is not finished or without a valid fit.
    """
    check_finished(results)
    c = results.contents
    step = max(1, round(float(c.rate) / fps))
    boxes, labels = [], []
    for k in range(results.contents.windows):
        fits = results.read(k)
        if people is not None:
            fits = fits.people(torch.tensor(people))
        ids = fits.keypoints.ids.tolist()
        visible = fits.keypoints.confidence > 0
        box = person_box(fits.keypoints.xy_px.double(), visible).numpy()  # (V, T, P, 3)
        large = box[..., 2] > MAX_BOX_FRAME_RATIO * c.rig.size.max(1)[:, None, None]
        box[(visible.sum(-1).numpy() < MIN_KEYPOINTS) | large] = np.nan
        filmed = (c.frame_index[:, fits.start : fits.start + len(fits.valid)] >= 0)[..., None, None]
        box = np.where(filmed, box, np.nan)
        for i, p in np.argwhere(fits.valid.numpy()):
            if (fits.start + i) % step == 0 and np.isfinite(box[:, i, p]).any():
                boxes.append(box[:, i, p])
                labels += [(ids[p], fits.start + i, v) for v in range(len(c.rig))]
    if not boxes:
        raise InputError(f"{results.path}: no frame has a valid fit, so there is nobody to learn from.")
    return CropPlan(results.digest, size, np.concatenate(boxes), np.array(labels, np.int64), PERSON_LABELS)


class RecordedPeople:
    """Source of samples from a finished ``results.zarr`` and its crops; good fits are taken for the truth."""

    def __init__(
        self,
        results: Path,
        crops: Path,
        sampling: Sampling,
        worst_fit: float = 0.04,
        body: TargetBody | None = None,
    ) -> None:
        """Open a results store and the store of its crops.

        worst_fit: mean reprojection residual, divided by the side of the person's box, beyond which a fit is
        not taken for the truth. body: the network's body model, by default the one that ships; shapes and
        joints of results with another one are unknown.

        Raises ``InputError`` when a store is missing, not finished, or the crops are of other results.
        """
        self._arguments = results, crops, sampling, worst_fit, body
        store = Store(results)
        check_finished(store)
        self.crops = CropStore.open_finished(crops, results, store.digest, sampling.size)
        plan = self.crops.plan
        rig = store.contents.rig
        self.cameras = rig.names
        self.name = f"{results.absolute().parent.name}-{store.digest[:8]}"
        self.person, self.time = plan.label[:: len(rig), 0], plan.label[:: len(rig), 1]
        self.box = plan.box.reshape(-1, len(rig), 3)
        seen: NDArray[np.bool_] = np.all(np.isfinite(self.box), axis=-1)
        self.groups = ViewGroups(
            [np.flatnonzero(row).tolist() for row in seen], sampling.views, sampling.seed
        )
        self.crop = crop_matrix(self.box, plan.size, room_around(plan.size))
        self.K, self.R, self.t = self.crop @ rig.K, rig.R, rig.t
        self._read(store, worst_fit, body or load_target_body())

    def __reduce__(self) -> tuple[type[RecordedPeople], tuple[Any, ...]]:
        # Other processes read the stores again, which is less than to send their content.
        return RecordedPeople, self._arguments

    def _read(self, store: Store, worst_fit: float, body: TargetBody) -> None:
        """Read keypoints and fits of the instants with crops."""
        count, views = self.box.shape[:2]
        points, joints = (count, views, len(BODY_25)), len(SMPL_24)
        self.xy, self.confidence = np.full((*points, 2), np.nan), np.zeros(points)
        self.orient, self.pose = np.full((count, 3, 3), np.nan), np.full((count, joints - 1, 3, 3), np.nan)
        self.betas, self.joints = np.full((count, 10), np.nan), np.full((count, len(EXTRA_24), 3), np.nan)
        same_body = store.contents.body.get("sha256") == body.mesh.sha256
        window = self.time // store.contents.window
        for k in np.unique(window).tolist():
            fits = store.read(k)
            check_points(fits, SMPL_24, BODY_25)
            n = np.flatnonzero(window == k)
            i, p = self.time[n] - fits.start, np.searchsorted(fits.keypoints.ids.numpy(), self.person[n])
            xy = fits.keypoints.xy_px.double().numpy()[:, i, p].swapaxes(0, 1)
            self.xy[n] = xy @ self.crop[n, :, :2, :2].mT + self.crop[n, :, None, :2, 2]
            self.confidence[n] = fits.keypoints.confidence.numpy()[:, i, p].swapaxes(0, 1)
            residual = fits.reprojection_px.double().numpy()[:, i, p].T / self.box[n, :, 2]
            finite = np.isfinite(residual)
            mean = np.where(finite, residual, 0).sum(1) / np.maximum(finite.sum(1), 1)
            good = finite.any(1) & (mean <= worst_fit)
            n, i, p = n[good], i[good], p[good]
            if not len(n):
                continue
            root, pose = fits.params.global_orient[i, p], fits.params.body_pose[i, p]
            rotations = torch.cat([root[:, None], pose], 1).double()
            self.orient[n], self.pose[n] = rotations[:, 0].numpy(), rotations[:, 1:].numpy()
            if same_body:
                betas = fits.params.betas[p].double()
                transl = fits.params.transl[i, p].double()
                self.betas[n] = betas.numpy()
                self.joints[n] = pose_keypoints(body.extra, rotations, betas, transl)[1].numpy()
        self.confidence[~np.isfinite(self.xy).all(-1)] = 0

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Sample:
        n, views = self.groups[index]
        count = len(self.cameras)
        pictures = tuple(self.crops.picture(int(n * count + v)) for v in views)
        missing = np.full((len(views), len(EXTRA_24), 2), np.nan)
        R, t = self.R[views], self.t[views]
        return Sample(
            id=f"{self.name}/{self.person[n]}/{self.time[n]:06d}",
            cameras=tuple(self.cameras[v] for v in views),
            pictures=pictures,
            box=centred_boxes(pictures, self.crops.plan.size),  # black: a frame that could not be decoded
            K=self.K[n, views],
            R=R,
            t=t,
            xy_px=np.concatenate([self.xy[n, views], missing], 1),
            confidence=np.concatenate([self.confidence[n, views], np.zeros(missing.shape[:2])], 1),
            joints=np.einsum("vij,kj->vki", R, self.joints[n]) + t[:, None],
            orient=R @ self.orient[n],
            body_pose=self.pose[n],
            betas=self.betas[n],
        )
