"""Pictures of a calibration board that moves before cameras, drawn through their lenses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from models.geometry.boards import Board
from pipeline.array_types import Array
from pipeline.cameras import Rig

PX_PER_SQUARE = 60
FINE = 2
"""Rays across a pixel, and down."""


def studio(size: tuple[int, int] = (640, 480), *, fisheye: bool = False) -> Rig:
    """Four cameras of different lenses on an arc of 120°, 2 to 2.4 m up, that look at one place."""
    angle = np.radians([-60, -20, 20, 60])
    centre = np.stack([2.2 * np.cos(angle), 2.2 * np.sin(angle), [2.0, 2.4, 2.2, 2.1]], 1)
    ahead = np.array([0, 0, 0.6]) - centre
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    right = np.cross(ahead, [0, 0, 1.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    w, h = size
    focal = (0.5 if fisheye else 0.95) * w * np.array([1, 1.04, 1.08, 1.12])
    k = np.array(
        [[[f, 0, 0.497 * w - v], [0, 1.004 * f, 0.507 * h + v], [0, 0, 1]] for v, f in enumerate(focal)]
    )
    lens = [0.04, -0.01, 0.003, -0.001] if fisheye else [-0.12, 0.06, 0.001, -0.0008]
    return Rig(
        ("cam01", "cam02", "cam03", "cam04"),
        k,
        np.tile([*lens, 0, 0, 0, 0], (4, 1)),
        np.stack([right, np.cross(ahead, right), ahead], 1),
        -np.einsum("vij,vj->vi", np.stack([right, np.cross(ahead, right), ahead], 1), centre),
        np.tile(size, (4, 1)),
        fisheye=(fisheye,) * 4,
    )


def board_path(count: int, board: Board, seed: int = 0) -> Array:
    """(T, 4, 4) board → world. First it lies on the floor, its first corner at the origin; then it is held
    towards the cameras, here and there, tilted by up to 55°."""
    rng = np.random.default_rng(seed)
    face_up = np.diag([1.0, -1, -1])
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[0, :3, :3] = face_up
    middle = board.corners.mean(0)
    for pose in poses[1:]:
        towards, tilt = np.radians(rng.uniform(-70, 70)), np.radians(rng.uniform(5, 55))
        lean = Rotation.from_rotvec(tilt * np.array([-np.sin(towards), np.cos(towards), 0]))
        spin = Rotation.from_euler("z", rng.uniform(0, 360), degrees=True)
        pose[:3, :3] = lean.as_matrix() @ spin.as_matrix() @ face_up
        pose[:3, 3] = rng.uniform((-0.5, -0.8, 0.2), (0.8, 0.8, 1.3)) - pose[:3, :3] @ middle
    return poses


def seen_corners(rig: Rig, board: Board, poses: Array) -> Array:
    """(V, T, N, 2) pixels of the corners, wherever they are."""
    world = np.einsum("tij,nj->tni", poses[:, :3, :3], board.corners) + poses[:, None, :3, 3]
    return rig.project(world, distorted=True)


def pictures(
    rig: Rig, view: int, board: Board, poses: Sequence[Array] | Array, blur_px: float = 0.6
) -> Iterator[NDArray[np.uint8]]:
    """Grey pictures (H, W) of the board at each pose, blurred, with noise of 2 grey levels."""
    rng = np.random.default_rng(view)
    w, h = (int(n) for n in rig.size[view])
    grid = np.stack(np.meshgrid(*((np.arange(FINE * n) + 0.5) / FINE - 0.5 for n in (w, h))), -1)
    ideal = rig.undistort(view, grid)
    rays = np.concatenate([ideal, np.ones((*ideal.shape[:2], 1))], -1) @ np.linalg.inv(rig.K[view]).T
    flat = np.nan_to_num(rays, nan=-1e6).reshape(-1, 3).T.astype(np.float32)
    face = _texture(board)
    margin = 1 if board.charuco else 2
    scale, shift = PX_PER_SQUARE / board.square_m, PX_PER_SQUARE * margin - 0.5
    to_texture = np.array([[scale, 0, shift], [0, scale, shift], [0, 0, 1]])
    for pose in poses:
        r, t = rig.R[view] @ pose[:3, :3], rig.R[view] @ pose[:3, 3] + rig.t[view]
        u, v, depth = (to_texture @ np.linalg.inv(np.stack([r[:, 0], r[:, 1], t], 1))).astype(
            np.float32
        ) @ flat
        hidden = (depth <= 1e-6) | (r[:, 2] @ t < 0)  # behind the camera, or the board's back
        with np.errstate(all="ignore"):
            maps = [np.where(hidden, -1e4, a / depth).reshape(FINE * h, FINE * w) for a in (u, v)]
        fine = cv2.remap(face, *(m.astype(np.float32) for m in maps), cv2.INTER_LINEAR, borderValue=110)
        small = cv2.resize(fine, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32) * 0.75 + 25
        small = cv2.GaussianBlur(small, (0, 0), blur_px) + rng.normal(0, 2, (h, w)).astype(np.float32)
        yield np.clip(small.round(), 0, 255).astype(np.uint8)


def _texture(board: Board) -> NDArray[np.uint8]:
    """The board as printed, with a white margin of a square; of a chessboard the outer squares are drawn."""
    if board.charuco:
        size = (board.columns * PX_PER_SQUARE, board.rows * PX_PER_SQUARE)
        face = board.detector.getBoard().generateImage(size)
    else:
        cells = np.add.outer(np.arange(board.rows + 1), np.arange(board.columns + 1)) % 2
        face = np.kron((255 * cells).astype(np.uint8), np.ones((PX_PER_SQUARE, PX_PER_SQUARE), np.uint8))
    return np.pad(face, PX_PER_SQUARE, constant_values=255)
