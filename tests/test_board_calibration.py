"""Cameras by a board that they saw: known ones come back, and what is amiss is left out or told."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
from board_scenes import board_path, pictures, seen_corners, studio
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from models.geometry.board_calibration import _outliers, calibrate_with_board
from models.geometry.boards import Board, parse_board
from pipeline.array_types import Array
from pipeline.calibrations import read_calibration
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.video import VideoWriter
from stages.calibration import app

BOARD = parse_board("charuco:7x5:100mm")


def corners_of(rig: Rig, poses: Array, noise_px: float = 0.1, board: Board = BOARD) -> Array:
    """(V, T, N, 2) as a detector finds them: inside the picture, on a board not seen too flat."""
    px = seen_corners(rig, board, poses)
    facing = np.einsum("vj,tj->vt", rig.R[:, 2], poses[:, :3, 2])
    outside = ((px < 5) | (px > rig.size[:, None, None] - 6)).any(-1) | (facing[..., None] < 0.3)
    px += np.random.default_rng(0).normal(0, noise_px, px.shape)
    return np.where(outside[..., None], np.nan, px)


def focal_error(found: Rig, truth: Rig) -> float:
    """The worst of all focal lengths, as a share."""
    return float(np.abs(found.K[:, [0, 1], [0, 1]] / truth.K[:, [0, 1], [0, 1]] - 1).max())


@pytest.mark.parametrize("fisheye", [False, True])
def test_known_cameras_come_back(fisheye: bool) -> None:
    """Focal length to 0.2 %, places to 2 mm, in the world of the board on the floor."""
    rig = studio((1280, 720), fisheye=fisheye)
    poses = board_path(40, BOARD)
    px = corners_of(rig, poses)
    found = calibrate_with_board(rig.names, px, BOARD, rig.size, fisheye=fisheye, floor=True)
    assert focal_error(found.rig, rig) < 2e-3
    assert np.linalg.norm(found.rig.centres - rig.centres, axis=1).max() < 2e-3
    assert found.rig.fisheye == rig.fisheye
    np.testing.assert_allclose(found.error_px, 0.1 * 2**0.5, rtol=0.1)
    assert not found.dropped.any()


def test_without_a_floor_the_cameras_are_level() -> None:
    rig = studio()
    px = corners_of(rig, board_path(30, BOARD))
    found = calibrate_with_board(rig.names, px, BOARD, rig.size).rig

    def baselines(r: Rig) -> Array:
        return np.asarray(np.linalg.norm(r.centres[:, None] - r.centres[None], axis=-1))

    np.testing.assert_allclose(baselines(found), baselines(rig), atol=0.004)
    assert (-found.R[:, 1, 2] > 0.7).all()
    np.testing.assert_allclose(found.centres.mean(0), 0, atol=1e-9)


def test_one_camera_alone_has_its_lens_as_opencv_has_it() -> None:
    rig = studio((1280, 720)).select(("cam02",))
    px = corners_of(rig, board_path(40, BOARD))
    found = calibrate_with_board(rig.names, px, BOARD, rig.size)
    views = np.flatnonzero(found.used[0])
    seen = [np.isfinite(px[0, t, :, 0]) for t in views]
    points = [np.float32(BOARD.corners[s])[None] for s in seen]
    pixels = [np.float32(px[0, t, s])[None] for t, s in zip(views, seen, strict=True)]
    error, k, *_ = cv2.calibrateCamera(points, pixels, (1280, 720), None, None, flags=cv2.CALIB_FIX_K3)
    np.testing.assert_allclose(found.rig.K[0], k, rtol=2e-3, atol=2)
    assert found.error_px[0] < 1.02 * error


def test_a_view_that_is_wrong_is_dropped_and_a_corner_is_not_trusted() -> None:
    rig = studio()
    poses = board_path(30, BOARD)
    px = corners_of(rig, poses)
    whole = np.isfinite(px[..., 0]).all(-1)
    t = int(np.flatnonzero(whole[1])[3])
    px[1, t] += 25 * np.sin(np.arange(len(BOARD.corners)))[:, None]
    spoilt = int(np.flatnonzero(whole[2])[-1])
    px[2, spoilt, 7] += 3, 0
    found = calibrate_with_board(rig.names, px, BOARD, rig.size, floor=True)
    assert np.argwhere(found.dropped).tolist() == [[1, t]]
    assert np.linalg.norm(found.rig.centres - rig.centres, axis=1).max() < 0.004
    assert found.error_px.max() < 0.2


def test_of_views_at_one_instant_only_the_worst_is_dropped_at_once() -> None:
    error = np.full((2, 5), 0.1)
    error[:, 2] = 5, 3
    assert np.argwhere(_outliers(error, np.ones((2, 5), bool))).tolist() == [[0, 2]]


def test_cameras_that_see_the_board_too_seldom_or_never_together_are_told() -> None:
    rig = studio()
    px = corners_of(rig, board_path(30, BOARD))
    seldom = px.copy()
    seldom[2, 4:] = np.nan
    with pytest.raises(InputError, match=r"camera cam03: the board was found in \d of 30 pictures, and 6"):
        calibrate_with_board(rig.names, seldom, BOARD, rig.size)
    px[:2, ::2], px[2:, 1::2] = np.nan, np.nan
    with pytest.raises(InputError, match="nothing links cam03, cam04 to cam01, cam02"):
        calibrate_with_board(rig.names, px, BOARD, rig.size)


def test_a_board_that_does_not_lie_on_the_floor_at_first_is_told() -> None:
    rig, poses = studio(), board_path(30, BOARD)
    poses[0, :3, :3] = Rotation.from_euler("y", 75, degrees=True).as_matrix() @ np.diag([1.0, -1, -1])
    poses[0, :3, 3] = 0, 0.3, 1
    with pytest.raises(InputError, match="when it is first seen the board does not lie on the floor"):
        calibrate_with_board(rig.names, corners_of(rig, poses), BOARD, rig.size, floor=True)


def board_command(*words: object) -> str:
    result = CliRunner().invoke(app, ["board", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_command_on_folders_of_pictures(tmp_path: Path) -> None:
    """Few small pictures: the command's way from files to files. How well is the slow test's to say."""
    rig = studio().select(("cam02", "cam03"))
    poses = board_path(14, BOARD)
    for v, name in enumerate(rig.names):
        (tmp_path / "images" / name).mkdir(parents=True)
        for t, picture in enumerate(pictures(rig, v, BOARD, poses)):
            cv2.imwrite(str(tmp_path / "images" / name / f"{t:06d}.png"), picture)
    out = tmp_path / "out" / "calibration.toml"
    words = (tmp_path, "--board", "charuco:7x5:100mm", "--out", out, "--board-on-floor", "--every", 0.03)
    text = board_command(*words)
    assert "cam03" in text
    found = read_calibration(out)
    assert found.names == rig.names
    assert focal_error(found, rig) < 0.05
    assert np.linalg.norm(found.centres - rig.centres, axis=1).max() < 0.15
    for name, shape in (("coverage", (360, 980, 3)), ("cameras", (720, 1440, 3))):
        assert cv2.imread(str(tmp_path / "out" / f"calibration-{name}.png")).shape == shape
    with pytest.raises(InputError, match="turned by half a turn this board looks the same"):
        board_command(tmp_path, "--board", "chessboard:8x6:25mm")


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["charuco:7x5:100mm", "chessboard:8x5:100mm"])
def test_the_command_on_videos(tmp_path: Path, spec: str) -> None:
    """Four cameras, blur, noise, lenses, partial views, compressed: focal length to 0.2 %, places to 2 mm."""
    rig, board = studio((1280, 720)), parse_board(spec)
    poses = board_path(80, board)
    for v, name in enumerate(rig.names):
        with VideoWriter(tmp_path / f"{name}.mp4", 10, threads=1, crf=12) as file:
            for picture in chain(pictures(rig, v, board, poses)):
                file.write(np.repeat(picture[..., None], 3, -1))
    words = (*tmp_path.glob("*.mp4"), "--board", spec, "--out", tmp_path / "c.toml", "--every", 0.1)
    text = board_command(*words, "--board-on-floor")
    found = read_calibration(tmp_path / "c.toml")
    error = 1000 * np.linalg.norm(found.centres - rig.centres, axis=1)
    told = {"focal": focal_error(found, rig), "places mm": error.round(2).tolist()}
    assert focal_error(found, rig) < 2e-3, json.dumps(told) + text
    assert error.max() < 2, json.dumps(told) + text
