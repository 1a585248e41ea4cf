"""Cameras: conventions, projection, undistortion.

World: the calibration's own, in metres. Camera: OpenCV's, x right, y down, z forward,
``x_cam = R x_world + t``. Pixel (0, 0) is the centre of the first pixel. Distortion in OpenCV's order
k1, k2, p1, p2, k3, k4, k5, k6 (rational model), as in ``cv2.projectPoints``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rig:
    """The calibrated cameras of one recording, V of them."""

    names: tuple[str, ...]
    K: Array
    """(V, 3, 3) intrinsics, pixels."""
    dist: Array
    """(V, 8) distortion coefficients."""
    R: Array
    """(V, 3, 3) world → camera."""
    t: Array
    """(V, 3) metres."""
    size: NDArray[np.int64]
    """(V, 2) picture width and height, pixels."""
    known_up: Array | None = None
    """(3,) unit vector that is up in the world, where that is decided."""

    def __post_init__(self) -> None:
        v = len(self.names)
        for name, shape in (
            ("K", (v, 3, 3)),
            ("dist", (v, 8)),
            ("R", (v, 3, 3)),
            ("t", (v, 3)),
            ("size", (v, 2)),
        ):
            if getattr(self, name).shape != shape:
                raise ValueError(f"Rig.{name} has shape {getattr(self, name).shape}, expected {shape}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def centres(self) -> Array:
        """(V, 3) camera centres, metres, world."""
        centres: Array = -np.einsum("vji,vj->vi", self.R, self.t)
        return centres

    @property
    def up(self) -> Array:
        """(3,) unit vector that is up in the world: as decided, else the axis, with its sign, nearest to the
        pictures' mean upward direction."""
        if self.known_up is not None:
            return self.known_up
        mean = -self.R[:, 1].mean(0)
        axis = int(np.argmax(np.abs(mean)))
        up = np.zeros(3)
        up[axis] = np.copysign(1, mean[axis])
        return up

    def select(self, names: Sequence[str]) -> Rig:
        """The cameras of these names, in this order."""
        i = [self.names.index(n) for n in names]
        return Rig(tuple(names), self.K[i], self.dist[i], self.R[i], self.t[i], self.size[i], self.known_up)

    @staticmethod
    def joined(rigs: Sequence[Rig]) -> Rig:
        """The cameras of several rigs, one after the other."""
        names = tuple(n for r in rigs for n in r.names)
        arrays = ([getattr(r, field) for r in rigs] for field in ("K", "dist", "R", "t", "size"))
        return Rig(names, *(np.concatenate(a) for a in arrays))

    def resized(self, view: int, size: tuple[int, int]) -> Rig:
        """The rig with one camera's picture scaled to ``size`` (width, height)."""
        sx, sy = size[0] / self.size[view, 0], size[1] / self.size[view, 1]
        k = self.K[view].copy()
        # Pixel centres are at integers: the picture's edge is at −0.5 and scales about there.
        k[0] *= sx
        k[1] *= sy
        k[0, 2] += (sx - 1) / 2
        k[1, 2] += (sy - 1) / 2
        all_k, all_size = self.K.copy(), self.size.copy()
        all_k[view], all_size[view] = k, size
        return replace(self, K=all_k, size=all_size)

    def to_camera(self, points: Array) -> Array:
        """World points (..., 3) in every camera's frame: (V, ..., 3), metres."""
        x: Array = np.einsum("vij,...j->v...i", self.R, points)
        x += self.t.reshape(len(self), *[1] * (points.ndim - 1), 3)
        return x

    def project(self, points: Array, *, distorted: bool = False) -> Array:
        """World points (..., 3) → pixels (V, ..., 2); NaN behind a camera.

        ``distorted=True`` gives pixels of the video frame, otherwise of the ideal pinhole camera.
        """
        x = self.to_camera(points)
        with np.errstate(invalid="ignore", divide="ignore"):
            n = np.where(x[..., 2:] > 0, x[..., :2] / x[..., 2:], np.nan)
        if distorted:
            n = np.stack([distort(n[v], self.dist[v]) for v in range(len(self))])
        shape = (len(self), *[1] * (points.ndim - 1), 2)
        focal = self.K[:, [0, 1], [0, 1]].reshape(shape)
        skew = np.stack([n[..., 1] * self.K[:, 0, 1].reshape(shape[:-1]), np.zeros_like(n[..., 1])], -1)
        px: Array = n * focal + skew + self.K[:, :2, 2].reshape(shape)
        return px

    def undistort(self, view: int, px: Array) -> Array:
        """Pixels (..., 2) of one camera's video frame → pixels of its ideal pinhole camera. NaN stays NaN."""
        flat = np.ascontiguousarray(px.reshape(-1, 2), dtype=np.float64)
        out = np.full_like(flat, np.nan)
        seen = np.isfinite(flat).all(1)
        if seen.any():
            # The default of 5 fixed-point steps leaves over a pixel at the corners of a k1 = −0.3 lens.
            stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-9)
            out[seen] = cv2.undistortPoints(
                flat[seen, None], self.K[view], self.dist[view], P=self.K[view], criteria=stop
            )[:, 0]
        return out.reshape(px.shape)


def distort(n: Array, dist: Array) -> Array:
    """Normalised pinhole coordinates (..., 2) → where the lens puts them. OpenCV's rational model."""
    k1, k2, p1, p2, k3, k4, k5, k6 = dist
    x, y = n[..., 0], n[..., 1]
    r2 = x * x + y * y
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    return np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ],
        -1,
    )
