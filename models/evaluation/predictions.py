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
from models.encoders import encode
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
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24

Array = NDArray[np.float64]
PictureReader = Callable[[Sequence[str]], Sequence[NDArray[np.uint8]]]
"""From names of pictures to pictures (H, W, 3) RGB; picklable."""

_SINGLE: Final = Weights(pose=1.0, shape=100.0, offset_m=0.0005)
"""Weights of a fit to single frames: without neighbours in time the priors count in full."""
_UNSEEN: Final = [
    SMPL_24.index(f"{side}_{part}") for side in ("left", "right") for part in ("foot", "wrist", "hand")
]
"""Joints that no keypoint shows to turn: there the fit keeps what the network says."""


@dataclass(frozen=True)
class PredictOptions:
    """Views and work of a prediction."""

    views: int = 1
    """Views of each person and instant."""
    fitted: bool = False
    """The solver goes on from the network, on ``openpose``."""
    batch_size: int = 32
    """Rows that are predicted together."""
    num_workers: int = 0
    """Processes that read pictures; 0 reads them in between."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of N rows. NaN where the network was shown nobody."""

    pose: Array
    """(N, 72) axis-angle; the root's is body → camera."""
    betas: Array
    """(N, 10)"""
    camera: Array
    """(N, 3) SPIN's s, tx, ty: size by the crop's half, and metres right and down."""
    pred_joints: Array
    """(N, 17, 3) H36M_17 in the camera's axes, metres, from the origin of the body model."""


def views_of(rows: RowArrays, wanted: NDArray[np.int64], views: int) -> NDArray[np.int64]:
    """(M, views) the rows that show the person of each wanted row (M,) at its instant, itself first.

    Of a group of more rows those that come next are taken, in a circle; a group of fewer ends with −1.
    """
    order = np.argsort(rows["group"], kind="stable")
    group = rows["group"][order]
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    sizes = np.diff(np.r_[starts, len(group)])
    place_ = np.empty(len(order), np.int64)
    place_[order] = np.arange(len(order))
    which = np.searchsorted(starts, place_[wanted], side="right") - 1
    first, size = starts[which], sizes[which]
    step = np.arange(views)
    turn = (place_[wanted] - first)[:, None] + step
    found = order[first[:, None] + turn % size[:, None]]
    return np.where(step < size[:, None], found, -1)


@dataclass(frozen=True)
class _Batch:
    """Rows that are predicted together."""

    own: NDArray[np.int64]
    """(M,) the rows that are predicted."""
    every: NDArray[np.int64]
    """(U,) those that are looked at."""
    at: NDArray[np.int64]
    """(M, V) places among ``every``, −1 for none."""
    crops: Tensor | None = None
    """(U, 3, S, S) uint8 RGB."""


@dataclass(frozen=True)
class _Batches(Dataset[_Batch]):
    """Cut out by worker processes, each batch as a whole."""

    rows: RowArrays
    wanted: NDArray[np.int64]
    views: NDArray[np.int64]
    size: int
    """Wanted rows in a batch."""
    pixels: int
    """Pixels of a crop's side; 0 for no crops."""
    contrast: Contrast
    pictures: PictureReader | None

    def __len__(self) -> int:
        return -(-len(self.wanted) // self.size)

    def __getitem__(self, i: int) -> _Batch:
        part = slice(i * self.size, (i + 1) * self.size)
        views = self.views[part]
        every = np.unique(views[views >= 0])
        at = np.where(views >= 0, np.searchsorted(every, views), -1)
        batch = _Batch(self.wanted[part], every, at)
        if not self.pixels or self.pictures is None:
            return batch
        crops = np.zeros((len(every), self.pixels, self.pixels, 3), np.uint8)
        found = self.pictures([str(n) for n in self.rows["imgname"][every]])
        for k, (picture, box) in enumerate(zip(found, self.rows["box"][every], strict=True)):
            crops[k] = crop_rgb(picture, box, self.pixels, contrast=self.contrast)
        return replace(batch, crops=torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous())


def predict(
    net: ImageRegressor | KeypointNet,
    rows: RowArrays,
    wanted: NDArray[np.int64],
    joints: H36MJoints,
    pictures: PictureReader,
    options: PredictOptions,
) -> Iterator[tuple[NDArray[np.int64], Predictions]]:
    """Predict the wanted rows batch by batch, in their own camera's axes; yields rows and predictions.

    A network on pictures sees the crops of ``box``; one on keypoints sees ``openpose``.
    Weights of SPIN are for crops of an unknown camera, whose axes they take for the picture's, and so are
    rows without ``K``; other networks have the crop turned to its place before the camera ``K``. Lens
    distortion stays in the crops, as in SPIN's, while it is taken out of those to train on, and of keypoints.

    Raises:
        InputError: keypoints are needed that the rows do not have, or cameras.
    """
    of_pictures = isinstance(net, ImageRegressor)
    views, keypoints = options.views, options.fitted or not of_pictures
    if keypoints and not rows["openpose"][..., 2].any():
        raise InputError(
            "the data have no OpenPose keypoints, which --fit and networks on keypoints take. Give "
            "--openpose to preprocess."
        )
    sets = views_of(rows, wanted, views)
    known = _placed(rows["R"], rows["t"])
    if keypoints and views > 1 and not known[np.unique(sets[sets >= 0])].all():
        raise InputError(
            "--views: the data have no R and t of some cameras, which several views of keypoints take. "
            "Use --views 1, or preprocess the data with their calibration."
        )
    c = net.config if isinstance(net, ImageRegressor) else ImageConfig()
    data = _Batches(rows, wanted, sets, options.batch_size, of_pictures * c.size, c.contrast, pictures)
    loader: DataLoader[_Batch] = DataLoader(
        data, batch_size=None, num_workers=options.num_workers, generator=torch.Generator()
    )
    scene = _Scene(net, rows, joints, fitted=options.fitted)
    for batch in loader:
        with torch.no_grad():
            yield batch.own, scene.predict(batch)


def _placed(R: Array, t: Array) -> NDArray[np.bool_]:
    """(N,) True where R and t of the camera are known."""
    return np.asarray(np.isfinite(R.reshape(-1, 9)).all(1) & np.isfinite(t).all(1))


def shares_shape(net: ImageRegressor | KeypointNet, body: Body) -> bool:
    """True if a network's betas are about the shapes of this body: SPIN's are about SMPL's."""
    means_smpl = isinstance(net, ImageRegressor) and net.config.body == "smpl"
    return means_smpl != (body.sha256 == load_body().sha256)


class _Scene:
    """A network with the cameras and bodies of its predictions."""

    def __init__(
        self, net: ImageRegressor | KeypointNet, rows: RowArrays, joints: H36MJoints, *, fitted: bool
    ) -> None:
        self.net, self.rows, self.joints, self.fitted = net, rows, joints, fitted
        self.device = next(net.parameters()).device
        self.body = joints.body.keypoints.to(dtype=torch.float32, device=self.device)
        of_spin = isinstance(net, ImageRegressor) and net.config.spin_camera
        self.same_body = shares_shape(net, joints.body)
        unknown = np.asarray(np.isnan(rows["K"]).any((1, 2)))
        # A fit needs the camera itself, whatever the network that it begins from takes it for.
        unknown |= of_spin and not fitted
        self.K = np.where(unknown[:, None, None], spin_camera(rows["box"]), rows["K"])

    def predict(self, batch: _Batch) -> Predictions:
        each = np.where(batch.at >= 0, batch.every[np.maximum(batch.at, 0)], batch.own[:, None])
        box = self._here(cut_box(self.rows["box"][each]))
        K = self._here(self.K[each])
        seen = torch.from_numpy(batch.at >= 0).to(self.device)
        if self.fitted or not isinstance(self.net, ImageRegressor):
            R, t, xy, confidence = self._keypoints(each)
            confidence = confidence * seen[..., None]
        if isinstance(self.net, ImageRegressor):
            seen = seen & box.isfinite().all(-1)
            estimate = self._look(self.net, batch, seen)
            orient, transl = place_body(estimate, box, K, self.body)
            orient = torch.where(seen[..., None, None], orient, torch.nan)
            sigma = torch.full_like(estimate.body_pose[..., 0, 0], POSE_SIGMA_RAD)
            r = Regression(estimate.body_pose, estimate.betas, orient, transl, seen, sigma)
        else:
            r = self.net(xy, confidence, K, R, t)
        betas = r.betas
        if not self.same_body:  # they mean nothing there
            r = replace(r, betas=torch.zeros_like(betas))
        if self.fitted:
            r = self._fitted(r, Views(K, R, t, xy[:, :, None], confidence[:, :, None]))
            betas = r.betas
        rotations = torch.cat([r.view_orient[:, :1], r.body_pose], 1).double()
        camera = weak_perspective(r.view_transl[:, :1], r.betas, box[:, :1], K[:, :1], self.body)[:, 0]
        still = torch.zeros(len(rotations), 3, dtype=torch.float64)
        joints = self.joints(rotations.cpu(), r.betas.double().cpu(), still)
        out = [x.cpu() for x in (roma.rotmat_to_rotvec(rotations).flatten(1), betas, camera, joints)]
        # A network on pictures does not say how a person stands before a camera that shows nobody.
        known = (r.seen.any(1) & r.view_orient[:, 0].isfinite().all((-2, -1))).cpu()
        return Predictions(
            *(
                torch.where(known.view(-1, *[1] * (x.ndim - 1)), x, torch.nan).double().cpu().numpy()
                for x in out
            )
        )

    def _here(self, x: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).float().to(self.device)

    def _look(self, net: ImageRegressor, batch: _Batch, seen: Tensor) -> ViewEstimate:
        assert batch.crops is not None
        found = encode(net.encoder, normalise_rgb(batch.crops.to(self.device).float(), "none"))
        at = torch.from_numpy(np.maximum(batch.at, 0)).to(self.device)
        return net.estimate(found[at] * seen[..., None], seen)

    def _keypoints(self, each: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """R, t, undistorted pixels and confidences of views (M, V). Where R and t are not known the camera is
        the world."""
        flat = each.ravel()
        R, t = self.rows["R"][flat], self.rows["t"][flat]
        alone = ~_placed(R, t)
        R, t = np.where(alone[:, None, None], np.eye(3), R), np.where(alone[:, None], 0, t)
        found = self.rows["openpose"][flat]
        xy = np.where(found[..., 2:] > 0, found[..., :2], np.nan)
        dist = np.nan_to_num(self.rows["dist"][flat])
        if dist.any():
            size = np.ones((len(flat), 2), np.int64)
            rig = Rig(tuple(map(str, range(len(flat)))), self.K[flat], dist, R, t, size)
            xy = rig.undistort_views(xy)

        def of_views(x: Array) -> Tensor:
            return self._here(x.reshape(*each.shape, *x.shape[1:]))

        return of_views(R), of_views(t), of_views(xy), of_views(found[..., 2])

    def _fitted(self, r: Regression, views: Views) -> Regression:
        """The solver's bodies of single frames, from where the network stands, in the rows' own cameras."""
        shown = (views.confidence[:, :, 0] > 0).sum(-1) >= MIN_KEYPOINTS
        known = r.seen.any(1) & shown.any(1)  # of the others the network's word is all there is
        if not known.any():
            return r
        orient, transl = fuse_roots(r, views.R, views.t, self.body)
        start = torch.cat([orient[:, None], r.body_pose], 1)[known].double()
        held = start.clone()
        start[:, _UNSEEN] = torch.eye(3, dtype=start.dtype, device=start.device)
        seen = Views(*(getattr(views, f.name)[known].double() for f in fields(Views)))
        count, points = len(start), seen.confidence.shape[-1]
        target = PoseTarget(r.body_pose[known][:, None].double(), r.pose_sigma[known][:, None].double())
        found = fit(
            self.joints.body.keypoints,
            seen,
            Motion(
                start[:, None], transl[known][:, None].double(), r.betas[known].double(),
                start.new_zeros(count, points, 3),
            ),
            FitSettings(
                30.0, weights=_SINGLE, prior=load_pose_prior(),
                # One view shows half of a pose: the network knows more of the other half than a prior.
                pose_target=target if seen.K.shape[1] == 1 else None,
            ),
        ).motion  # fmt: skip
        turned = found.rotations[:, 0].clone()
        turned[:, _UNSEEN] = held[:, _UNSEEN]
        rest = pelvis_at_rest(self.joints.body.keypoints.to(device=self.device), found.betas)
        R, t = seen.R[:, 0], seen.t[:, 0]
        pelvis = (R @ (rest + found.transl[:, 0])[..., None])[..., 0] + t
        out = r.map(torch.clone)
        out.body_pose[known] = turned[:, 1:].float()
        out.betas[known] = found.betas.float()
        out.view_orient[known, 0] = (R @ turned[:, 0]).float()
        out.view_transl[known, 0] = (pelvis - rest).float()
        return out
