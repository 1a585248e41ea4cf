"""Calibration boards: what a text says of one, and its corners in pictures."""

from __future__ import annotations

import numpy as np
import pytest
from board_scenes import board_path, pictures, seen_corners, studio

from models.geometry.boards import Board, parse_board
from pipeline.errors import InputError


def test_boards_by_text() -> None:
    assert parse_board("charuco:7x5:40mm") == Board(True, 7, 5, 0.04, "4X4_50")
    assert parse_board("charuco:5x7:3.5cm:dict_5x5_100") == Board(True, 5, 7, 0.035, "5X5_100")
    board = parse_board("chessboard:9x6:0.025m")
    assert board == Board(False, 9, 6, 0.025)
    np.testing.assert_allclose(board.corners[[0, 1, 9]], np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]]) * 0.025)
    np.testing.assert_allclose(parse_board("charuco:7x5:40mm").corners[0], [0.04, 0.04, 0])
    assert len(parse_board("charuco:7x5:40mm").corners) == 24
    assert [parse_board(f"chessboard:{size}:25mm").symmetric for size in ("9x6", "8x6", "7x5")] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    "spec",
    ["charuco:7x5", "charuco:7x5:40", "chess:9x6:25mm", "chessboard:9x6:25mm:", "charuco:7x5:40mm:9X9_5",
     "chessboard:2x6:25mm", "chessboard:9x6:0mm", "chessboard:9x6:25m"],
)  # fmt: skip
def test_other_texts_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match=f"--board {spec}: "):
        parse_board(spec)


@pytest.mark.parametrize("spec", ["charuco:7x5:100mm", "chessboard:8x5:100mm"])
def test_corners_lie_where_the_lens_shows_them(spec: str) -> None:
    """To a fifth of a pixel, and every corner under its own number however the board is turned."""
    rig, board = studio(), parse_board(spec)
    poses = board_path(7, board)
    want = seen_corners(rig, board, poses)[1]
    drawn = [*pictures(rig, 1, board, poses)]
    found = np.array([board.find(picture) for picture in drawn])
    seen = np.isfinite(found[..., 0])
    assert seen.sum() > 60
    off = np.linalg.norm(found - want, axis=-1)[seen]
    assert np.sqrt((off**2).mean()) < 0.3
    assert np.median(off) < 0.15
    if board.charuco:
        assert ((seen.sum(1) > 0) & (seen.sum(1) < len(board.corners))).any(), "partial views count"
        np.testing.assert_allclose(board.find(255 - drawn[0]), found[0], atol=0.05, err_msg="white on black")
