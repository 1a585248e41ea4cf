"""SPIN's fits of a data set, ``static_fits/<data set>_fits.npy``, that a training starts from.

A row of 82 numbers for every row of the data set's ``.npz``: SMPL's pose (72), axis-angle, the root's body →
the camera that looks straight at the crop, and betas (10). The translation is computed from the keypoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.body import KeypointBody
from models.crops import CROP_PX, crop_matrix
from models.image_regressor import crop_camera
from models.regressors.layers import camera_directions
from models.training.loop import Bodies, picture_id, spin_score
from models.training.published import PublishedRows
from pipeline.archives import read_npy
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24

_POSE: Final = 3 * len(SMPL_24)
_BETAS: Final = 10
_CHUNK_ROWS: Final = 1024


def static_fits(
    path: Path, rows: PublishedRows, points: KeypointBody, shapes: bool
) -> Iterator[tuple[list[list[str]], Bodies]]:
    """Names and bodies of the rows that have a box, in chunks, for ``FitStore.put``.

    points: body with SPIN's 49 points. shapes: take the betas, which are SMPL's. A score is infinite where
    the keypoints do not determine the translation.

    Raises:
        InputError: the file cannot be read, or does not belong to the rows.
    """
    fits = _read(path, rows)
    boxed = np.flatnonzero(np.isfinite(rows.box).all(1) & np.isfinite(fits).all(1))
    for chunk in np.array_split(boxed, max(1, -(-len(boxed) // _CHUNK_ROWS))):
        if len(chunk):
            names = [[picture_id(rows.instant[i], rows.camera[i])] for i in chunk.tolist()]
            yield names, _place(torch.from_numpy(fits[chunk]).float(), rows, chunk, points, shapes)


def _read(path: Path, rows: PublishedRows) -> NDArray[np.float64]:
    """Read fits (n, 82), one for each row. Raises ``InputError``."""
    try:
        fits = read_npy(path.read_bytes())
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: cannot be read as SPIN's fits ({e}). Check the path.") from e
    expected = (len(rows.imgname), _POSE + _BETAS)
    if fits.shape != expected or fits.dtype.kind != "f":
        raise InputError(
            f"{path}: has shape {fits.shape}, expected {expected}, a fit for each row of {rows.path}."
        )
    return fits.astype(np.float64)


def _place(
    fits: Tensor, rows: PublishedRows, index: NDArray[np.int64], points: KeypointBody, shapes: bool
) -> Bodies:
    """Bodies (n, 1) of fits (n, 82) of rows ``index`` (n,) in their cameras' frames, with their scores."""
    count = len(index)
    crop = crop_matrix(rows.box[index], CROP_PX)
    K = torch.from_numpy(crop @ rows.K[index]).float()[:, None]
    xy, conf = rows.keypoints(index)
    xy = xy @ crop[:, :2, :2].mT + crop[:, None, :2, 2]
    xy_px = torch.from_numpy(xy).float()[:, None]
    confidence = torch.from_numpy(np.where(np.isfinite(xy).all(-1), np.maximum(conf, 0), 0)).float()[:, None]
    box = torch.tensor([(CROP_PX - 1) / 2, (CROP_PX - 1) / 2, CROP_PX]).expand(count, 1, 3)
    turn, _ = crop_camera(box, K)
    rotations = roma.rotvec_to_rotmat(fits[:, :_POSE].view(-1, 1, len(SMPL_24), 3))
    betas = fits[:, None, _POSE:] * float(shapes)
    zero = torch.zeros(count, 1, 3)
    bodies = Bodies(turn @ rotations[:, :, 0], rotations[:, :, 1:], betas, zero, zero[..., 0])
    transl = _translation(bodies.points(points), K, xy_px, confidence)
    score = spin_score(replace(bodies, transl=transl), points, K, xy_px, confidence, torch.ones(count, 1))
    in_front = transl.isfinite().all(-1) & (transl[..., 2] > 0)
    return replace(bodies, transl=transl, score=torch.where(in_front, score[:, None], torch.inf))


def _translation(points: Tensor, K: Tensor, xy_px: Tensor, confidence: Tensor) -> Tensor:
    """Translation (N, V, 3) that brings points (N, V, K, 3) nearest to the rays of pixels (N, V, K, 2).

    Least squares weighted by confidence; not finite where underdetermined.
    """
    u = camera_directions(torch.nan_to_num(xy_px).double(), K.double())[..., :2]
    rows = torch.cat([torch.eye(2, dtype=u.dtype).expand(*u.shape[:-1], 2, 2), -u[..., None]], -1)
    residual = u * points[..., 2:] - points[..., :2]
    weighted = confidence[..., None, None] * rows
    inverse = torch.linalg.inv_ex((weighted.mT @ rows).sum(-3)).inverse
    transl: Tensor = (inverse @ (weighted.mT @ residual[..., None]).sum(-3))[..., 0]
    return transl.float()
