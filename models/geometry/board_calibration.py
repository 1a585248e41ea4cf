"""Calibration of cameras from corners of a board: lenses and poses, in one bundle adjustment.

Lenses by OpenCV (Zhang, A Flexible New Technique for Camera Calibration, 2000), poses of the board by planar
PnP, cameras chained through the instants that they share, then all parameters together by bundle adjustment
(Triggs et al., Bundle Adjustment: A Modern Synthesis, 2000).

Axes: V views, T instants, N corners.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.spatial.transform import Rotation

from models.geometry.boards import Board
from pipeline.array_types import Array
from pipeline.cameras import Rig, distort
from pipeline.errors import InputError

MIN_CORNERS: Final = 8
"""Fewest corners of a view of the board that is used."""
MIN_VIEWS: Final = 6
"""Fewest views of the board for a lens."""
_MIN_SHARED_INSTANTS: Final = 3
"""Fewest instants at which two cameras see the board, for one to be placed by the other."""
_MAX_LENS_VIEWS: Final = 40
"""Most views from which a lens is first estimated; half as many for a fisheye lens, which takes long."""
_VIEW_OUTLIER: Final = (1.0, 3.0)
"""Error above which a view is dropped: pixels, and multiple of the camera's median."""
_CORNER_OUTLIER: Final = (0.3, 4.0)
"""Error above which a corner is dropped: pixels, and multiple of its camera's median."""
MAX_ERROR_PX: Final = 1.0
"""Root mean square error of a camera's corners above which board or videos are doubted."""
_MIN_FLOOR_COSINE: Final = 0.5
"""Least cosine between the normal of a board on the floor and the pictures' upward direction."""
_MAX_ROUNDS: Final = 4
"""Most adjustments, each without the outliers of the one before."""
_ROBUST_PX: Final = 1.0
"""Scale of Huber's loss."""
_Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class BoardCalibration:
    """Calibrated cameras, and the views of the board that were used."""

    rig: Rig
    """World of the board where it lies on the floor, else level as the cameras are; metres."""
    used: _Flags
    """(V, T) views of the board that were used"""
    dropped: _Flags
    """(V, T) views that were dropped as outliers"""
    error_px: Array
    """(V,) root mean square error of the used corners"""
    floor: int | None
    """Instant at which the board lies on the floor"""


def calibrate_with_board(
    names: Sequence[str],
    px: Array,
    board: Board,
    sizes: NDArray[np.int64],
    *,
    fisheye: bool = False,
    floor: bool = False,
) -> BoardCalibration:
    """Calibrate cameras from the corners of a board.

    px: (V, T, N, 2), NaN where not seen. sizes: (V, 2) width and height. floor: the board lies on the floor
    when it is first seen, and is the world's origin then, z up.

    Raises:
        InputError: a camera saw the board too seldom, or at no time together with the others.
    """
    good = np.isfinite(px[..., 0])
    usable = (good.sum(-1) >= MIN_CORNERS) & _not_collinear(good, board.corners)
    lenses = [
        _estimate_lens(name, px[v], usable[v], board.corners, (int(size[0]), int(size[1])), fisheye)
        for v, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]
    views = len(names)
    k, dist = (np.stack(part) for part in zip(*lenses, strict=True))
    pose = np.tile(np.eye(3), (views, 1, 1)), np.zeros((views, 3))
    rig = Rig(tuple(names), k, dist, *pose, np.asarray(sizes, np.int64), fisheye=(fisheye,) * views)
    to_camera, view_error_px = _board_poses(rig, px, usable, board.corners)
    kept = usable & ~_outliers(view_error_px, usable)
    rig = _chain(rig, to_camera, kept)
    trusted = px.copy()
    for _ in range(_MAX_ROUNDS):
        rig, poses, off_px = _adjust(rig, _world_poses(rig, to_camera, kept), trusted, kept, board.corners)
        worse = _outliers(_root_mean_square(off_px, 2), kept)
        median_px = np.nanmedian(off_px, (1, 2), keepdims=True)
        far = off_px > np.fmax(_CORNER_OUTLIER[0], _CORNER_OUTLIER[1] * median_px)
        if not (worse.any() or far.any()):
            break
        kept &= ~worse
        trusted[far] = np.nan
    first = int(np.flatnonzero(usable.any(0))[0]) if floor else None
    world = None if first is None else _floor_pose(rig, poses[first])
    error_px = _root_mean_square(off_px.reshape(views, -1), 1)
    return BoardCalibration(_level(rig, world), kept, usable & ~kept, error_px, first)


def _root_mean_square(values: Array, axis: int) -> Array:
    """Root mean square without NaN; NaN of none."""
    count = np.isfinite(values).sum(axis)
    return np.asarray(np.sqrt(np.where(count, np.nansum(values**2, axis) / np.maximum(count, 1), np.nan)))


def _not_collinear(good: _Flags, corners: Array) -> _Flags:
    """(V, T) true where the visible corners are not all in a row or column of the board."""
    high = np.where(good[..., None], corners[:, :2], -np.inf).max(2)
    low = np.where(good[..., None], corners[:, :2], np.inf).min(2)
    return np.asarray((high > low).all(-1))


def _outliers(error: Array, kept: _Flags) -> _Flags:
    """(V, T) kept views whose error (V, T) is far above their camera's median; only the worst at an instant,
    which spoils the others."""
    median = np.array([np.median(e[k]) if k.any() else 0.0 for e, k in zip(error, kept, strict=True)])
    error = np.where(kept, np.nan_to_num(error), 0)
    far = error > np.maximum(_VIEW_OUTLIER[0], _VIEW_OUTLIER[1] * median[:, None])
    return np.asarray(far & (error == error.max(0)))


def _estimate_lens(
    name: str, px: Array, usable: _Flags, corners: Array, size: tuple[int, int], fisheye: bool
) -> tuple[Array, Array]:
    """Estimate K (3, 3) and distortion (8,) of one camera with OpenCV, from views that differ."""
    at = np.flatnonzero(usable)
    if len(at) < MIN_VIEWS:
        raise InputError(
            f"camera {name}: the board was found in {len(at)} of {len(usable)} pictures, and {MIN_VIEWS} are "
            "needed: check --board (columns first; squares of a ChArUco board, corners of a chessboard), "
            "show it larger and from all sides, or look at more frames (--every)"
        )
    at = at[_farthest_views(px[at], size, _MAX_LENS_VIEWS // (2 if fisheye else 1))]
    seen = [np.isfinite(px[t, :, 0]) for t in at]
    points = [corners[s].astype(np.float32)[None] for s in seen]
    pixels = [px[t, s].astype(np.float32)[None] for t, s in zip(at, seen, strict=True)]
    f = 0.9 * max(size)
    guess = np.array([[f, 0, (size[0] - 1) / 2], [0, f, (size[1] - 1) / 2], [0, 0, 1]])
    try:
        if fisheye:
            guess[:2, :2] *= 0.5
            flags = cv2.CALIB_FIX_SKEW | cv2.CALIB_USE_INTRINSIC_GUESS | cv2.CALIB_RECOMPUTE_EXTRINSIC
            _, k, d, *_ = cv2.fisheye.calibrate(points, pixels, size, guess, np.zeros((4, 1)), flags=flags)
        else:
            flags = cv2.CALIB_USE_INTRINSIC_GUESS | cv2.CALIB_FIX_K3
            _, k, d, *_ = cv2.calibrateCamera(points, pixels, size, guess, np.zeros(5), flags=flags)
    except cv2.error as problem:
        raise InputError(
            f"camera {name}: {len(at)} pictures of the board do not determine its lens: tilt the board more, "
            f"and show it all over the picture ({' '.join(str(problem).split())[:120]})"
        ) from problem
    return np.asarray(k, np.float64), np.append(np.ravel(d)[:4], np.zeros(4))


def _farthest_views(px: Array, size: tuple[int, int], count: int) -> NDArray[np.int64]:
    """Indices of at most ``count`` views (T, N, 2) that differ in place, size and shape: farthest-point
    sampling."""
    flat = px / max(size)
    middle, extent = np.nanmean(flat, 1), np.nanstd(flat, axis=1)
    shear = np.nanmean((flat - middle[:, None]).prod(-1), 1, keepdims=True) / extent.prod(1, keepdims=True)
    features = np.concatenate([middle, 2 * extent, 0.2 * shear], 1)
    chosen = [int(np.argmax(extent.prod(1)))]
    far = np.full(len(px), np.inf)
    while len(chosen) < min(count, len(px)):
        far = np.minimum(far, np.linalg.norm(features - features[chosen[-1]], axis=1))
        chosen.append(int(far.argmax()))
    return np.array(chosen)


def _board_poses(rig: Rig, px: Array, usable: _Flags, corners: Array) -> tuple[Array, Array]:
    """(V, T, 4, 4) board → camera, NaN where not seen, and (V, T) error, pixels."""
    pose, error = np.full((*usable.shape, 4, 4), np.nan), np.full(usable.shape, np.nan)
    for v, t in np.argwhere(usable):
        straight = rig.undistort(int(v), px[v, t])
        known = np.isfinite(straight).all(1)
        if known.sum() < 4:
            continue
        points, pixels = corners[known], straight[known]
        found, r, x = cv2.solvePnP(points, pixels[:, None], rig.K[v], None, flags=cv2.SOLVEPNP_IPPE)
        if found:
            pose[v, t] = _matrix(np.ravel(r), np.ravel(x))
            ideal = points @ pose[v, t, :3, :3].T + pose[v, t, :3, 3]
            ideal = (ideal[:, :2] / ideal[:, 2:]) @ rig.K[v, :2, :2].T + rig.K[v, :2, 2]
            error[v, t] = np.sqrt(((ideal - pixels) ** 2).sum(1).mean())
    return pose, error


def _matrix(rotvec: Array, t: Array) -> Array:
    """(4, 4) rigid motion."""
    m = np.eye(4)
    m[:3, :3] = Rotation.from_rotvec(rotvec).as_matrix()
    m[:3, 3] = t
    return m


def _chain(rig: Rig, pose: Array, kept: _Flags) -> Rig:
    """Place each camera by the one it shares most instants with, in the frame of the first camera.

    Of the relative poses at the shared instants, the medoid is taken.
    """
    known = kept & np.isfinite(pose[..., 0, 0])
    shared = (known[:, None] & known[None]).sum(-1)
    world = {0: np.eye(4)}  # camera → its pose
    while left := [v for v in range(len(rig)) if v not in world]:
        via, new = max(((a, b) for a in world for b in left), key=lambda pair: shared[pair])
        if shared[via, new] < _MIN_SHARED_INSTANTS:
            unlinked, linked = (", ".join(rig.names[v] for v in some) for some in (left, world))
            raise InputError(
                f"nothing links {unlinked} to {linked}: at fewer than "
                f"{_MIN_SHARED_INSTANTS} of the instants do two of them see the board together. Show it "
                "where their pictures overlap; the videos must begin together"
            )
        at = np.flatnonzero(known[via] & known[new])
        steps = pose[new, at] @ np.linalg.inv(pose[via, at])
        apart = np.linalg.norm((steps[:, None] - steps)[..., :3, :].reshape(len(at), len(at), -1), axis=-1)
        world[new] = steps[int(np.median(apart, axis=1).argmin())] @ world[via]
    poses = np.stack([world[v] for v in range(len(rig))])
    return replace(rig, R=poses[:, :3, :3], t=poses[:, :3, 3])


def _world_poses(rig: Rig, pose: Array, kept: _Flags) -> Array:
    """(T, 4, 4) board → world, by the nearest camera that sees it; NaN where none does."""
    found = np.full(pose.shape[1:], np.nan)
    known = kept & np.isfinite(pose[..., 0, 0])
    for t in np.flatnonzero(known.any(0)):
        v = int(np.where(known[:, t], pose[:, t, 2, 3], np.inf).argmin())
        back = np.eye(4)
        back[:3, :3], back[:3, 3] = rig.R[v].T, rig.centres[v]
        found[t] = back @ pose[v, t]
    return found


def _adjust(rig: Rig, poses: Array, px: Array, kept: _Flags, corners: Array) -> tuple[Rig, Array, Array]:
    """Adjust rig and poses (T, 4, 4) of the board; returns also the error of each corner (V, T, N), pixels.

    The first camera's pose is fixed. Parameters: fx, fy, cx, cy and four coefficients of each camera, six of
    the pose of each other camera, and six of the board at each instant.
    """
    known = kept & np.isfinite(poses[:, 0, 0])
    at = np.flatnonzero(known.any(0))
    place = np.full(px.shape[1], -1)
    place[at] = np.arange(len(at))
    view, time, corner = np.nonzero(known[..., None] & np.isfinite(px[..., 0]))
    target, slot, views = px[view, time, corner], place[time], len(rig)

    def unpacked(x: Array) -> tuple[Array, Array, Array]:
        lens, cameras, boards = np.split(x, [8 * views, 8 * views + 6 * (views - 1)])
        still = np.concatenate([np.zeros(6), cameras]).reshape(views, 6)
        return lens.reshape(views, 8), still, boards.reshape(-1, 6)

    def residuals(x: Array) -> Array:
        lens, cameras, boards = unpacked(x)
        turn, camera_turn = (Rotation.from_rotvec(p[:, :3]).as_matrix() for p in (boards, cameras))
        world = np.einsum("nij,nj->ni", turn[slot], corners[corner]) + boards[slot, 3:]
        cam = np.einsum("nij,nj->ni", camera_turn[view], world) + cameras[view, 3:]
        flat = cam[:, :2] / np.maximum(cam[:, 2:], 1e-3)
        out = np.empty_like(target)
        for v in range(views):
            mine = view == v
            seen = distort(flat[mine], np.r_[lens[v, 4:], np.zeros(4)], rig.fisheye[v])
            out[mine] = seen * lens[v, :2] + lens[v, 2:4]
        return np.asarray((out - target).ravel())

    def packed(rotation: Array, t: Array) -> Array:
        return np.concatenate([Rotation.from_matrix(rotation).as_rotvec(), t], 1)

    lens = np.concatenate([rig.K[:, [0, 1, 0, 1], [0, 1, 2, 2]], rig.dist[:, :4]], 1)
    cameras, boards = packed(rig.R, rig.t)[1:], packed(poses[at, :3, :3], poses[at, :3, 3])
    start = np.concatenate([lens.ravel(), cameras.ravel(), boards.ravel()])
    solved = _least_squares(residuals, start, _parameter_columns(view, slot, views))
    lens, cameras, boards = unpacked(solved)
    k, dist = rig.K.copy(), rig.dist.copy()
    k[:, [0, 1, 0, 1], [0, 1, 2, 2]], dist[:, :4] = lens[:, :4], lens[:, 4:]
    rig = replace(rig, K=k, dist=dist, R=Rotation.from_rotvec(cameras[:, :3]).as_matrix(), t=cameras[:, 3:])
    poses = poses.copy()
    poses[at] = [_matrix(b[:3], b[3:]) for b in boards]
    off = np.full(px.shape[:3], np.nan)
    off[view, time, corner] = np.linalg.norm(residuals(solved).reshape(-1, 2), axis=1)
    return rig, poses, off


def _parameter_columns(view: NDArray[np.int64], slot: NDArray[np.int64], views: int) -> NDArray[np.int64]:
    """(n, 20) parameters that each corner depends on: lens and pose of its camera, −1 for the first camera's
    pose, and pose of its board."""
    lens = 8 * view[:, None] + np.arange(8)
    camera = np.where(view[:, None] > 0, 8 * views + 6 * (view[:, None] - 1) + np.arange(6), -1)
    board = 8 * views + 6 * (views - 1) + 6 * slot[:, None] + np.arange(6)
    return np.concatenate([lens, camera, board], 1)


def _least_squares(
    residuals: Callable[[Array], Array], x: Array, columns: NDArray[np.int64], iterations: int = 50
) -> Array:
    """Minimise Huber's loss of residuals (n, 2) by Levenberg–Marquardt.

    columns: (n, C) as of ``_parameter_columns``. All parameters in one column are moved at once for the
    Jacobian, and the normal equations are solved directly: the iterative solver of scipy's least_squares
    needs thousands of steps where a parameter is weakly determined.
    """

    def loss(x: Array) -> tuple[float, Array, Array]:
        r = residuals(x).reshape(-1, 2)
        size = np.linalg.norm(r, axis=1)
        weight = np.minimum(1, _ROBUST_PX / np.maximum(size, 1e-12))
        huber = np.where(size < _ROBUST_PX, size**2, _ROBUST_PX * (2 * size - _ROBUST_PX))
        return float(huber.sum()), r, weight

    energy, r, weight = loss(x)
    damping = 1e-4
    for _ in range(iterations):
        blocks = np.zeros((*r.shape, columns.shape[1]))
        for c in range(columns.shape[1]):
            moved = np.unique(columns[:, c][columns[:, c] >= 0])
            step = np.zeros_like(x)
            step[moved] = 1e-6 * np.maximum(np.abs(x[moved]), 1e-2)
            width = np.where(columns[:, c] >= 0, step[columns[:, c]], 1)[:, None]
            blocks[..., c] = (residuals(x + step).reshape(-1, 2) - r) / width
        known = np.broadcast_to((columns >= 0)[:, None], blocks.shape)
        rows = np.broadcast_to(np.arange(r.size).reshape(*r.shape, 1), blocks.shape)
        wide = np.broadcast_to(columns[:, None], blocks.shape)
        at = rows[known], wide[known]
        jacobian = csr_matrix((blocks[known], at), (r.size, len(x)))
        weighted = jacobian.multiply(np.repeat(weight, 2)[:, None]).tocsr()
        normal, slope = (weighted.T @ jacobian).toarray(), weighted.T @ r.ravel()
        while damping < 1e8:
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), -slope)
            new = loss(x + step)
            if new[0] < energy:
                break
            damping *= 10
        else:
            return x
        gain, x, damping = 1 - new[0] / energy, x + step, max(damping / 10, 1e-12)
        energy, r, weight = new
        if gain < 1e-9:
            break
    return x


def _floor_pose(rig: Rig, pose: Array) -> Array:
    """Pose of the board on the floor. Raises ``InputError`` where it cannot lie there."""
    up = -rig.R[:, 1].mean(0)
    if not np.isfinite(pose).all() or -pose[:3, 2] @ up < _MIN_FLOOR_COSINE * np.linalg.norm(up):
        raise InputError(
            "--board-on-floor: when it is first seen the board does not lie on the floor, by how the cameras "
            "are held; begin the videos with the board lying there, face up, and in view"
        )
    return pose


def _level(rig: Rig, floor: Array | None) -> Rig:
    """Rig in the world of a board on the floor (4, 4), z up; else level by the cameras, the origin at their
    mean."""
    if floor is not None:
        turn, origin = floor[:3, :3] @ np.diag([1.0, -1, -1]), floor[:3, 3]
    else:
        up = -rig.R[:, 1].mean(0)
        up /= np.linalg.norm(up)
        level = rig.R[0, 0] - up * (rig.R[0, 0] @ up)
        level /= np.linalg.norm(level)
        turn, origin = np.stack([level, np.cross(up, level), up], 1), rig.centres.mean(0)
    return replace(rig, R=rig.R @ turn, t=rig.t + rig.R @ origin)
