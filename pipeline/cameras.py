"""Cameras: conventions, projection, undistortion.

World: the calibration's own, in metres. Camera: OpenCV's, x right, y down, z forward,
``x_cam = R x_world + t``. Pixel (0, 0) is the centre of the first pixel. Distortion in OpenCV's order
k1, k2, p1, p2, k3, k4, k5, k6 (rational model), as in ``cv2.projectPoints``; of a fisheye lens k1 to
k4, as in ``cv2.fisheye``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.array_types import Array

MAX_CAMERAS: Final = 1000
"""Limit of a recording."""
CAMERA_ARRAYS: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {"K": (3, 3), "dist": (8,), "R": (3, 3), "t": (3,), "size": (2,)}
)
"""Arrays of a rig, and the shape that each has for one camera."""


@dataclass(frozen=True)
class Rig:
    """Calibrated cameras of a recording, V of them."""

    names: tuple[str, ...]
    K: Array
    """(V, 3, 3) intrinsics, pixels."""
    dist: Array
    """(V, 8) distortion coefficients; four and zeros for a fisheye lens."""
    R: Array
    """(V, 3, 3) world → camera."""
    t: Array
    """(V, 3) metres."""
    size: NDArray[np.int64]
    """(V, 2) picture width and height, pixels."""
    known_up: Array | None = None
    """(3,) unit vector that is up in the world; None where undecided."""
    fisheye: tuple[bool, ...] = ()
    """(V,) true for the fisheye distortion model; empty: none."""

    def __post_init__(self) -> None:
        v = len(self.names)
        object.__setattr__(self, "fisheye", tuple(map(bool, self.fisheye)) or (False,) * v)
        if len(self.fisheye) != v:
            raise ValueError(f"Rig.fisheye has {len(self.fisheye)} cameras, expected {v}")
        for name, shape in CAMERA_ARRAYS.items():
            if getattr(self, name).shape != (v, *shape):
                raise ValueError(f"Rig.{name} has shape {getattr(self, name).shape}, expected {(v, *shape)}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def centres(self) -> Array:
        """(V, 3) camera centres, metres, world."""
        centres: Array = -np.einsum("vji,vj->vi", self.R, self.t)
        return centres

    @property
    def up(self) -> Array:
        """(3,) unit vector that is up in the world: ``known_up``, else the signed axis nearest to the mean
        upward direction of the pictures."""
        if self.known_up is not None:
            return self.known_up
        mean = -self.R[:, 1].mean(0)
        axis = int(np.argmax(np.abs(mean)))
        up = np.zeros(3)
        up[axis] = np.copysign(1, mean[axis])
        return up

    def select(self, names: Sequence[str]) -> Rig:
        """Select cameras by name, in this order."""
        i = [self.names.index(n) for n in names]
        fisheye = tuple(self.fisheye[v] for v in i)
        arrays = {name: getattr(self, name)[i] for name in CAMERA_ARRAYS}
        return Rig(tuple(names), **arrays, known_up=self.known_up, fisheye=fisheye)

    @staticmethod
    def joined(rigs: Sequence[Rig]) -> Rig:
        """Concatenate the cameras of several rigs."""
        names = tuple(n for r in rigs for n in r.names)
        fisheye = tuple(lens for r in rigs for lens in r.fisheye)
        arrays = {name: np.concatenate([getattr(r, name) for r in rigs]) for name in CAMERA_ARRAYS}
        return Rig(names, **arrays, fisheye=fisheye)

    def resized(self, view: int, size: tuple[int, int]) -> Rig:
        """The rig with one camera's picture scaled to ``size`` (width, height)."""
        sx, sy = size[0] / self.size[view, 0], size[1] / self.size[view, 1]
        k = self.K[view].copy()
        # Pixel centres are at integers, so a picture scales about its corner at −0.5.
        k[0] *= sx
        k[1] *= sy
        k[0, 2] += (sx - 1) / 2
        k[1, 2] += (sy - 1) / 2
        rig_k, rig_size = self.K.copy(), self.size.copy()
        rig_k[view], rig_size[view] = k, size
        return replace(self, K=rig_k, size=rig_size)

    def to_camera(self, points: Array) -> Array:
        """World points (..., 3) in every camera's frame: (V, ..., 3), metres."""
        x: Array = np.einsum("vij,...j->v...i", self.R, points)
        x += self.t.reshape(len(self), *[1] * (points.ndim - 1), 3)
        return x

    def metres_per_px(self, points: Array) -> Array:
        """Extent of a pixel at world points (..., 3): (V, ...), depth over focal length."""
        focal = self.K[:, [0, 1], [0, 1]].mean(1)
        return np.asarray(self.to_camera(points)[..., 2] / focal.reshape(len(self), *[1] * (points.ndim - 1)))

    def project(self, points: Array, *, distorted: bool = False) -> Array:
        """World points (..., 3) → pixels (V, ..., 2) of the ideal pinhole camera; NaN behind a camera.

        distorted: pixels of the video frame instead.
        """
        x = self.to_camera(points)
        with np.errstate(invalid="ignore", divide="ignore"):
            n = np.where(x[..., 2:] > 0, x[..., :2] / x[..., 2:], np.nan)
        if distorted:
            n = np.stack([distort(n[v], self.dist[v], self.fisheye[v]) for v in range(len(self))])
        shape = (len(self), *[1] * (points.ndim - 1), 2)
        focal = self.K[:, [0, 1], [0, 1]].reshape(shape)
        skew = np.stack([n[..., 1] * self.K[:, 0, 1].reshape(shape[:-1]), np.zeros_like(n[..., 1])], -1)
        px: Array = n * focal + skew + self.K[:, :2, 2].reshape(shape)
        return px

    def field_of_view_deg(self, view: int) -> float:
        """Horizontal field of view, degrees; of a pinhole lens before distortion."""
        half = self.size[view, 0] / 2 / self.K[view, 0, 0]
        if not self.fisheye[view]:
            return float(2 * np.degrees(np.arctan(half)))
        theta = np.linspace(0, np.pi, 1801)
        radius = np.maximum.accumulate(_fisheye_radius(theta, self.dist[view]))
        return float(2 * np.degrees(np.interp(half, radius, theta)))

    def undistort(self, view: int, px: NDArray[np.floating]) -> Array:
        """Pixels (..., 2) of one camera's video frame → pixels of its ideal pinhole camera. NaN stays NaN.

        NaN, too, for points of a fisheye lens 90° off its axis or more, which a pinhole camera cannot show.
        """
        flat = np.ascontiguousarray(px.reshape(-1, 2), dtype=np.float64)
        out = np.full_like(flat, np.nan)
        finite = np.isfinite(flat).all(1)
        if self.fisheye[view]:
            k = self.K[view]
            flat = _undistort_fisheye((flat - k[:2, 2]) @ np.linalg.inv(k[:2, :2]).T, self.dist[view])
            out = flat @ k[:2, :2].T + k[:2, 2]
        elif finite.any():
            # OpenCV's default of 5 iterations leaves over a pixel at the corners of a k1 = −0.3 lens.
            stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-9)
            k, points = self.K[view], flat[finite, None]
            points[..., 0] -= k[0, 1] * (points[..., 1] - k[1, 2]) / k[1, 1]  # OpenCV ignores skew
            out[finite] = cv2.undistortPoints(points, k, self.dist[view], P=k, criteria=stop)[:, 0]
        return out.reshape(px.shape)

    def undistort_views(self, px: NDArray[np.floating]) -> Array:
        """Pixels (V, ..., 2) of all video frames → pixels of the ideal pinhole cameras."""
        return np.stack([self.undistort(v, x) for v, x in enumerate(px)])


def distort(n: Array, dist: Array, fisheye: bool = False) -> Array:
    """Normalised pinhole coordinates (..., 2) → distorted ones, by OpenCV's rational or fisheye model."""
    if fisheye:
        r = np.linalg.norm(n, axis=-1, keepdims=True)
        return np.asarray(n * np.where(r > 0, _fisheye_radius(np.arctan(r), dist) / np.maximum(r, 1e-12), 1))
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


def rectify_map(
    K: Array, dist: Array, fisheye: bool, view: Array, size: tuple[int, int], kind: int = cv2.CV_32FC1
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Maps of ``cv2.remap`` from a lens's picture to that of a pinhole camera ``view`` (3, 3) on its axis.

    kind: CV_32FC1 for maps of x and y, CV_16SC2 for fixed-point maps.
    """
    if fisheye:
        return cv2.fisheye.initUndistortRectifyMap(K, dist[:4], np.eye(3), view, size, kind)
    return cv2.initUndistortRectifyMap(K, dist, np.eye(3), view, size, kind)


def _fisheye_radius(theta: Array, dist: Array) -> Array:
    """Radius, in a fisheye lens's normalised picture, of rays at angles ``theta`` to its axis (Kannala and
    Brandt 2006)."""
    k1, k2, k3, k4 = dist[:4]
    s = theta * theta
    return np.asarray(theta * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4)))))


def _undistort_fisheye(n: Array, dist: Array) -> Array:
    """Normalised points (N, 2) of a fisheye lens → of a pinhole camera; NaN from 90° on."""
    k1, k2, k3, k4 = dist[:4]
    r = np.linalg.norm(n, axis=1)
    theta = np.minimum(r, np.pi / 2)
    for _ in range(20):  # Newton's method
        s = theta * theta
        slope = 1 + s * (3 * k1 + s * (5 * k2 + s * (7 * k3 + s * 9 * k4)))
        step = (_fisheye_radius(theta, dist) - r) / np.where(slope > 1e-3, slope, 1e-3)
        theta = np.clip(theta - step, 0, 1.6)
    converged = (np.abs(_fisheye_radius(theta, dist) - r) < 1e-9) & (theta < np.pi / 2 - 1e-4)
    with np.errstate(invalid="ignore"):
        scale = np.where(r > 0, np.tan(theta) / np.maximum(r, 1e-12), 1)
        return np.asarray(n * np.where(converged, scale, np.nan)[:, None])
