"""Predictions of a network for the rows of a data set: poses, shapes, cameras and joints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.body import Body, load_body, pelvis_at_rest
from models.crops import Contrast, crop_rgb, cut_box, normalise_rgb, spin_camera
from models.datasets.rows import RowArrays
from models.encoders import extract_features
from models.evaluation.joints import H36MJoints
from models.fit.problem import FitSettings, Motion, PoseTarget, Views, Weights
from models.fit.solver import fit
from models.image_regressor import (
    POSE_SIGMA_RAD,
    ImageConfig,
    ImageRegressor,
    ViewEstimate,
    place_body,
    weak_perspective,
)
from models.priors import load_pose_prior
from models.regressors.keypoint_nets import KeypointNet
from models.regressors.layers import MIN_KEYPOINTS
from models.regressors.regression import Regression, fuse_roots
from pipeline.array_types import Array
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24

PictureReader = Callable[[Sequence[str]], Sequence[NDArray[np.uint8]]]
"""Names of pictures → pictures (H, W, 3) RGB; picklable."""

_SINGLE_FRAME_WEIGHTS: Final = Weights(pose=1.0, shape=100.0, offset_m=0.0005)
"""Weights of a fit to single frames: without neighbours in time the priors count in full."""
_UNOBSERVED_JOINTS: Final = [
    SMPL_24.index(f"{side}_{part}") for side in ("left", "right") for part in ("foot", "wrist", "hand")
]
"""Joints whose rotations move no keypoint: the fit keeps the network's."""


@dataclass(frozen=True)
class PredictOptions:
    """Views, fit and batches of a prediction."""

    views: int = 1
    """Views of each person and instant."""
    fitted: bool = False
    """Refine the network's estimate by a fit to ``openpose``."""
    batch_size: int = 32
    """Rows that are predicted together."""
    num_workers: int = 0
    """Processes that read pictures; 0: the main process."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of N rows; NaN for a row whose person no view shows."""

    pose: Array
    """(N, 72) axis-angle; the root's is body → camera."""
    betas: Array
    """(N, 10)"""
    camera: Array
    """(N, 3) SPIN's s, tx, ty: scale by half the crop, and metres right and down."""
    pred_joints: Array
    """(N, 17, 3) H36M_17 in the camera's axes, metres, from the origin of the body model."""


def views_of(rows: RowArrays, selected: NDArray[np.int64], views: int) -> NDArray[np.int64]:
    """Rows (M, views) that show the person of each selected row (M,) at its instant, itself first.

    Of a larger group the next ones are taken, cyclically; a smaller one is filled with −1.
    """
    order = np.argsort(rows["group"], kind="stable")
    group = rows["group"][order]
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    sizes = np.diff(np.r_[starts, len(group)])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    index = np.searchsorted(starts, rank[selected], side="right") - 1
    first, size = starts[index], sizes[index]
    step = np.arange(views)
    offset = (rank[selected] - first)[:, None] + step
    grouped = order[first[:, None] + offset % size[:, None]]
    return np.where(step < size[:, None], grouped, -1)


@dataclass(frozen=True)
class _Batch:
    """Rows that are predicted together."""

    selected: NDArray[np.int64]
    """(M,) rows that are predicted."""
    used: NDArray[np.int64]
    """(U,) rows of all their views, without repetition."""
    views: NDArray[np.int64]
    """(M, V) indices in ``used``, −1 for none."""
    crops: Tensor | None = None
    """(U, 3, S, S) uint8 RGB."""


@dataclass(frozen=True)
class _Batches(Dataset[_Batch]):
    """Batches of rows with their crops, made by worker processes."""

    rows: RowArrays
    selected: NDArray[np.int64]
    views: NDArray[np.int64]
    """(M, V) from ``views_of``."""
    size: int
    """Selected rows in a batch."""
    pixels: int
    """Side of a crop, pixels; 0 for no crops."""
    contrast: Contrast
    pictures: PictureReader | None

    def __len__(self) -> int:
        return -(-len(self.selected) // self.size)

    def __getitem__(self, i: int) -> _Batch:
        part = slice(i * self.size, (i + 1) * self.size)
        views = self.views[part]
        used = np.unique(views[views >= 0])
        batch = _Batch(self.selected[part], used, np.where(views >= 0, np.searchsorted(used, views), -1))
        if not self.pixels or self.pictures is None:
            return batch
        crops = np.zeros((len(used), self.pixels, self.pixels, 3), np.uint8)
        pictures = self.pictures([str(n) for n in self.rows["imgname"][used]])
        for k, (picture, box) in enumerate(zip(pictures, self.rows["box"][used], strict=True)):
            crops[k] = crop_rgb(picture, box, self.pixels, contrast=self.contrast)
        return replace(batch, crops=torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous())


def predict(
    net: ImageRegressor | KeypointNet,
    rows: RowArrays,
    selected: NDArray[np.int64],
    joints: H36MJoints,
    pictures: PictureReader,
    options: PredictOptions,
) -> Iterator[tuple[NDArray[np.int64], Predictions]]:
    """Predict the selected rows in batches, in their own camera's axes; yield rows and predictions.

    Image regressors take the crops of ``box``, keypoint nets ``openpose``. The camera is ``K``; for rows
    without one and for networks trained as SPIN, SPIN's, which looks straight at the crop. Lens distortion
    stays in the crops, as in SPIN, but is removed from keypoints and from crops for training.

    Raises ``InputError``: the rows lack keypoints or cameras that are needed.
    """
    on_pictures = isinstance(net, ImageRegressor)
    needs_keypoints = options.fitted or not on_pictures
    if needs_keypoints and not rows["openpose"][..., 2].any():
        raise InputError(
            "the data have no OpenPose keypoints, which --fit and networks on keypoints take. Give "
            "--openpose to preprocess."
        )
    views = views_of(rows, selected, options.views)
    calibrated = _calibrated(rows["R"], rows["t"])
    if needs_keypoints and options.views > 1 and not calibrated[np.unique(views[views >= 0])].all():
        raise InputError(
            "--views: the data have no R and t of some cameras, which several views of keypoints take. "
            "Use --views 1, or preprocess the data with their calibration."
        )
    c = net.config if isinstance(net, ImageRegressor) else ImageConfig()
    data = _Batches(rows, selected, views, options.batch_size, on_pictures * c.size, c.contrast, pictures)
    loader: DataLoader[_Batch] = DataLoader(
        data, batch_size=None, num_workers=options.num_workers, generator=torch.Generator()
    )
    predictor = _Predictor(net, rows, joints, fitted=options.fitted)
    for batch in loader:
        with torch.no_grad():
            yield batch.selected, predictor.predict(batch)


def _calibrated(R: Array, t: Array) -> NDArray[np.bool_]:
    """True (N,) where R and t of the camera are known."""
    return np.asarray(np.isfinite(R.reshape(-1, 9)).all(1) & np.isfinite(t).all(1))


def shares_shape(net: ImageRegressor | KeypointNet, body: Body) -> bool:
    """True if a network's betas are those of this body model; SPIN's are SMPL's."""
    of_smpl = isinstance(net, ImageRegressor) and net.config.body == "smpl"
    return of_smpl != (body.sha256 == load_body().sha256)


class _Predictor:
    """A network with the cameras and bodies of its predictions."""

    def __init__(
        self, net: ImageRegressor | KeypointNet, rows: RowArrays, joints: H36MJoints, *, fitted: bool
    ) -> None:
        self.net, self.rows, self.joints, self.fitted = net, rows, joints, fitted
        self.device = next(net.parameters()).device
        self.body = joints.body.keypoints.to(dtype=torch.float32, device=self.device)
        self.same_shapes = shares_shape(net, joints.body)
        use_spin_camera = np.asarray(np.isnan(rows["K"]).any((1, 2)))
        # A fit needs the true camera, whatever the network was trained for.
        use_spin_camera |= isinstance(net, ImageRegressor) and net.config.spin_camera and not fitted
        self.K = np.where(use_spin_camera[:, None, None], spin_camera(rows["box"]), rows["K"])

    def predict(self, batch: _Batch) -> Predictions:
        """Predict the rows of a batch."""
        # A missing view is replaced by the row itself, and not seen.
        views = np.where(batch.views >= 0, batch.used[np.maximum(batch.views, 0)], batch.selected[:, None])
        box = self._tensor(cut_box(self.rows["box"][views]))
        K = self._tensor(self.K[views])
        seen = torch.from_numpy(batch.views >= 0).to(self.device)
        if self.fitted or not isinstance(self.net, ImageRegressor):
            R, t, xy, confidence = self._keypoints(views)
            confidence = confidence * seen[..., None]
        if isinstance(self.net, ImageRegressor):
            seen = seen & box.isfinite().all(-1)
            estimate = self._estimate(self.net, batch, seen)
            orient, transl = place_body(estimate, box, K, self.body)
            orient = torch.where(seen[..., None, None], orient, torch.nan)
            sigma = torch.full_like(estimate.body_pose[..., 0, 0], POSE_SIGMA_RAD)
            r = Regression(estimate.body_pose, estimate.betas, orient, transl, seen, sigma)
        else:
            r = self.net(xy, confidence, K, R, t)
        betas = r.betas
        if not self.same_shapes:
            r = replace(r, betas=torch.zeros_like(betas))
        if self.fitted:
            r = self._fit(r, Views(K, R, t, xy[:, :, None], confidence[:, :, None]))
            betas = r.betas
        rotations = torch.cat([r.view_orient[:, :1], r.body_pose], 1).double()
        camera = weak_perspective(r.view_transl[:, :1], r.betas, box[:, :1], K[:, :1], self.body)[:, 0]
        transl = torch.zeros(len(rotations), 3, dtype=torch.float64)
        joints = self.joints(rotations.cpu(), r.betas.double().cpu(), transl)
        out = [x.cpu() for x in (roma.rotmat_to_rotvec(rotations).flatten(1), betas, camera, joints)]
        # An image regressor gives no root orientation for a view that does not show the person.
        valid = (r.seen.any(1) & r.view_orient[:, 0].isfinite().all((-2, -1))).cpu()
        return Predictions(
            *(
                torch.where(valid.view(-1, *[1] * (x.ndim - 1)), x, torch.nan).double().cpu().numpy()
                for x in out
            )
        )

    def _tensor(self, x: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).float().to(self.device)

    def _estimate(self, net: ImageRegressor, batch: _Batch, seen: Tensor) -> ViewEstimate:
        """Estimate from the crops of a batch."""
        assert batch.crops is not None
        features = extract_features(net.encoder, normalise_rgb(batch.crops.to(self.device).float(), "none"))
        views = torch.from_numpy(np.maximum(batch.views, 0)).to(self.device)
        return net.estimate(features[views] * seen[..., None], seen)

    def _keypoints(self, views: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """R, t, undistorted pixels and confidences of rows (M, V); R = 1, t = 0 of uncalibrated cameras."""
        flat = views.ravel()
        R, t = self.rows["R"][flat], self.rows["t"][flat]
        uncalibrated = ~_calibrated(R, t)
        R, t = np.where(uncalibrated[:, None, None], np.eye(3), R), np.where(uncalibrated[:, None], 0, t)
        openpose = self.rows["openpose"][flat]
        xy = np.where(openpose[..., 2:] > 0, openpose[..., :2], np.nan)
        dist = np.nan_to_num(self.rows["dist"][flat])
        if dist.any():
            size = np.ones((len(flat), 2), np.int64)
            rig = Rig(tuple(map(str, range(len(flat)))), self.K[flat], dist, R, t, size)
            xy = rig.undistort_views(xy)

        def by_view(x: Array) -> Tensor:
            return self._tensor(x.reshape(*views.shape, *x.shape[1:]))

        return by_view(R), by_view(t), by_view(xy), by_view(openpose[..., 2])

    def _fit(self, r: Regression, views: Views) -> Regression:
        """Fit bodies to single frames from the network's estimate, which is kept for too few keypoints."""
        visible = (views.confidence[:, :, 0] > 0).sum(-1) >= MIN_KEYPOINTS
        fitted = r.seen.any(1) & visible.any(1)
        if not fitted.any():
            return r
        orient, transl = fuse_roots(r, views.R, views.t, self.body)
        estimate = torch.cat([orient[:, None], r.body_pose], 1)[fitted].double()
        start = estimate.clone()
        start[:, _UNOBSERVED_JOINTS] = torch.eye(3, dtype=start.dtype, device=start.device)
        views = Views(*(getattr(views, f.name)[fitted].double() for f in fields(Views)))
        count, points = len(start), views.confidence.shape[-1]
        target = PoseTarget(r.body_pose[fitted][:, None].double(), r.pose_sigma[fitted][:, None].double())
        motion = fit(
            self.joints.body.keypoints,
            views,
            Motion(
                start[:, None], transl[fitted][:, None].double(), r.betas[fitted].double(),
                start.new_zeros(count, points, 3),
            ),
            FitSettings(
                30.0, weights=_SINGLE_FRAME_WEIGHTS, prior=load_pose_prior(),
                # One view shows half of a pose: of the other half the network knows more than a prior.
                pose_target=target if views.K.shape[1] == 1 else None,
            ),
        ).motion  # fmt: skip
        rotations = motion.rotations[:, 0].clone()
        rotations[:, _UNOBSERVED_JOINTS] = estimate[:, _UNOBSERVED_JOINTS]
        rest = pelvis_at_rest(self.joints.body.keypoints.to(device=self.device), motion.betas)
        R, t = views.R[:, 0], views.t[:, 0]
        pelvis = (R @ (rest + motion.transl[:, 0])[..., None])[..., 0] + t
        out = r.map(torch.clone)
        out.body_pose[fitted] = rotations[:, 1:].float()
        out.betas[fitted] = motion.betas.float()
        out.view_orient[fitted, 0] = (R @ rotations[:, 0]).float()
        out.view_transl[fitted, 0] = (pelvis - rest).float()
        return out
