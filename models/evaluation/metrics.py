"""Error measures of poses and meshes, one value a frame.

Inputs are (..., N, 3) point sets in one unit and one frame; the error has the leading axes and the same unit.
A frame in which either set has a coordinate that is not finite is not compared: its error is NaN, for the
caller to leave out and to count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.array_types import Array


def mpjpe(predicted: ArrayLike, true: ArrayLike) -> Array:
    """Mean per-joint position error, of meshes per vertex (PVE), without any alignment.

    Raises ``ValueError`` when the shapes differ or the last axis is not 3.
    """
    p, t, ok = _check(predicted, true)
    with np.errstate(invalid="ignore"):
        error = np.linalg.norm(p - t, axis=-1).mean(-1)
    return np.where(ok, error, np.nan)


def pa_mpjpe(predicted: ArrayLike, true: ArrayLike) -> Array:
    """MPJPE after the best similarity transform of every frame ("reconstruction error")."""
    return mpjpe(align_similarity(predicted, true), true)


def acceleration_error(predicted: ArrayLike, true: ArrayLike) -> Array:
    """Mean length of the difference of joint accelerations, (..., T, N, 3) → (..., T − 2), unit / frame².

    Second differences over frames that follow each other without a gap (Kanazawa et al., Learning 3D Human
    Dynamics from Video, 2019, section 4). NaN where one of the three frames was not compared.
    """
    p, t, ok = _check(predicted, true)
    if p.ndim < 3:
        raise ValueError(f"point sets have shape {p.shape}, expected frames, (..., T, N, 3)")
    compared = ok[..., 2:] & ok[..., 1:-1] & ok[..., :-2]
    with np.errstate(invalid="ignore"):
        difference = np.diff(p - t, 2, axis=-3)
        error = np.linalg.norm(difference, axis=-1).mean(-1)
    return np.where(compared, error, np.nan)


def pck(predicted: ArrayLike, true: ArrayLike, threshold: float) -> Array:
    """Percentage of correct keypoints, as a share of 1: those with an unaligned error below ``threshold``."""
    p, t, ok = _check(predicted, true)
    with np.errstate(invalid="ignore"):
        correct = (np.linalg.norm(p - t, axis=-1) < threshold).mean(-1)
    return np.where(ok, correct, np.nan)


def auc(predicted: ArrayLike, true: ArrayLike, thresholds: ArrayLike) -> Array:
    """Mean of ``pck`` over the thresholds: the area under its curve, 0 to 1.

    MPI-INF-3DHP's are 0, 5, …, 150 mm (Mehta et al., Monocular 3D Human Pose Estimation in the Wild, 2017).
    """
    return np.asarray(np.mean([pck(predicted, true, float(x)) for x in np.atleast_1d(thresholds)], axis=0))


def align_similarity(predicted: ArrayLike, true: ArrayLike) -> Array:
    """Align ``predicted`` (..., N, 3) to ``true`` by the best similarity transform of every frame.

    Least squares in closed form, without reflection (Umeyama, PAMI 1991, eq. 40–43). Coincident points end on
    the centre of ``true``.
    """
    p, t, ok = _check(predicted, true)
    p, t = np.where(ok[..., None, None], p, 0.0), np.where(ok[..., None, None], t, 0.0)
    p0, t0 = p - p.mean(-2, keepdims=True), t - t.mean(-2, keepdims=True)
    u, s, vt = np.linalg.svd(np.einsum("...ni,...nj->...ij", t0, p0))
    # The smallest singular value, the last one, takes the sign that keeps the determinant +1.
    sign = np.ones_like(s)
    sign[..., 2] = np.where(np.linalg.det(u) * np.linalg.det(vt) < 0, -1.0, 1.0)
    rotation = (u * sign[..., None, :]) @ vt
    spread = np.square(p0).sum((-2, -1))
    scale = np.divide((s * sign).sum(-1), spread, out=np.zeros_like(spread), where=spread > 0)
    rotated = np.einsum("...ij,...nj->...ni", rotation, p0)
    aligned = scale[..., None, None] * rotated + t.mean(-2, keepdims=True)
    return np.where(ok[..., None, None], aligned, np.nan)


def _check(predicted: ArrayLike, true: ArrayLike) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Both point sets as float64, and where both are finite (...). Raises ``ValueError``."""
    p, t = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if p.shape != t.shape or p.ndim < 2 or p.shape[-1] != 3:
        raise ValueError(f"point sets have shapes {p.shape} and {t.shape}, expected the same (..., N, 3)")
    return p, t, np.asarray(np.isfinite(p).all((-2, -1)) & np.isfinite(t).all((-2, -1)))
