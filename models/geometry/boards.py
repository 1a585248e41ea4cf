"""Calibration boards: chessboards and ChArUco boards, and their corners in pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.array_types import Array
from pipeline.errors import InputError

_SPEC: Final = re.compile(r"(charuco|chessboard):(\d+)x(\d+):(\d+(?:\.\d+)?)(mm|cm|m)(?::(\w+))?")
_UNITS: Final = {"m": 1.0, "cm": 0.01, "mm": 0.001}
_DICTIONARY: Final = "4X4_50"
_MARKER_BY_SQUARE: Final = 0.75
"""Side of a ChArUco marker over that of a square: caliscope's and FreeMoCap's boards. Corners of squares are
refined in the picture, so that others work, too."""
_REFINEMENT: Final = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 40, 1e-3)


@dataclass(frozen=True)
class Board:
    """A flat board with N corners of squares inside it."""

    charuco: bool
    columns: int
    """Squares of a ChArUco board, inner corners of a chessboard, as is the custom"""
    rows: int
    square_m: float
    dictionary: str = _DICTIONARY

    @cached_property
    def corners(self) -> Array:
        """(N, 3) metres, row by row: x along the rows, y down, z into the board."""
        first = 1 if self.charuco else 0
        columns, rows = np.meshgrid(np.arange(first, self.columns), np.arange(first, self.rows))
        return np.asarray(np.stack([columns, rows, 0 * rows], -1).reshape(-1, 3) * self.square_m)

    @property
    def symmetric(self) -> bool:
        """True where the board looks the same upside down, so that its corners are ambiguous."""
        return not self.charuco and (self.columns + self.rows) % 2 == 0

    @cached_property
    def detector(self) -> Any:
        """OpenCV's detector of this ChArUco board."""
        dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, f"DICT_{self.dictionary}"))
        marker_m = _MARKER_BY_SQUARE * self.square_m
        size = self.columns, self.rows
        return cv2.aruco.CharucoDetector(cv2.aruco.CharucoBoard(size, self.square_m, marker_m, dictionary))

    def find(self, grey: NDArray[np.uint8]) -> Array:
        """(N, 2) corners in a grey picture, pixels; NaN where not seen."""
        corners = np.full((len(self.corners), 2), np.nan)
        if self.charuco:
            px, ids, _, _ = self.detector.detectBoard(grey)
            if ids is None or not len(ids):  # white on black, as caliscope prints them
                px, ids, _, _ = self.detector.detectBoard(255 - grey)
            if ids is not None and len(ids):
                corners[np.ravel(ids)] = np.reshape(px, (-1, 2))
                step_px = np.fmin(_least_step_px(corners.reshape(self.rows - 1, self.columns - 1, 2)), 40.0)
                seen = np.isfinite(corners[:, 0])
                # OpenCV's own windows reach the markers, an eighth of a square away, where squares are small.
                corners[seen] = _refine(grey, corners[seen], int(np.clip(step_px / 8, 2, 5)))
            return corners
        flags = cv2.CALIB_CB_ADAPTIVE_THRESH | cv2.CALIB_CB_NORMALIZE_IMAGE | cv2.CALIB_CB_FAST_CHECK
        seen, px = cv2.findChessboardCorners(grey, (self.columns, self.rows), flags=flags)
        if not seen:
            return corners
        shape = self.rows, self.columns, 2
        step_px = _least_step_px(np.asarray(px, np.float64).reshape(shape))
        grid = _refine(grey, px, int(np.clip(step_px / 3, 2, 11))).reshape(shape)
        return np.asarray((grid[::-1, ::-1] if _begins_bright(grey, grid) else grid).reshape(-1, 2))


def _least_step_px(grid: Array) -> float:
    """Least distance of neighbouring corners (rows, columns, 2)."""
    steps = (np.linalg.norm(np.diff(grid, axis=axis), axis=-1).ravel() for axis in (0, 1))
    return float(np.fmin.reduce(np.concatenate([*steps])))


def _refine(grey: NDArray[np.uint8], px: NDArray[Any], window: int) -> Array:
    """Refine corners in a window of this half side, pixels."""
    fine = cv2.cornerSubPix(grey, px.astype(np.float32), (window, window), (-1, -1), _REFINEMENT)
    return np.asarray(fine, np.float64)


def _begins_bright(grey: NDArray[np.uint8], grid: Array) -> bool:
    """True where the first square inside the corners (rows, columns, 2) is bright."""
    middle = (grid[:-1, :-1] + grid[1:, :-1] + grid[:-1, 1:] + grid[1:, 1:]) / 4
    columns, rows = np.clip(middle.round().astype(int), 0, np.array(grey.shape[::-1]) - 1).T
    shade = grey[rows, columns].T.astype(float)
    even = np.add.outer(np.arange(shade.shape[0]), np.arange(shade.shape[1])) % 2 == 0
    return bool(shade[even].mean() > shade[~even].mean())


def parse_board(spec: str) -> Board:
    """Parse a board such as ``charuco:7x5:40mm:4X4_50`` (squares) or ``chessboard:9x6:25mm`` (corners).

    Raises ``InputError``.
    """
    match = _SPEC.fullmatch(spec.strip())
    if not match:
        raise InputError(
            f"--board {spec}: expected charuco:COLUMNSxROWS:SIDE[:DICTIONARY] with the numbers of squares, "
            "as charuco:7x5:40mm:4X4_50, or chessboard:COLUMNSxROWS:SIDE with those of inner corners, as "
            "chessboard:9x6:25mm"
        )
    kind, columns, rows, side, unit, dictionary = match.groups()
    name = (dictionary or _DICTIONARY).upper().removeprefix("DICT_")
    if not hasattr(cv2.aruco, f"DICT_{name}"):
        raise InputError(
            f"--board {spec}: OpenCV has no dictionary {dictionary}; 4X4_50 and 5X5_100 are such"
        )
    board = Board(kind == "charuco", int(columns), int(rows), float(side) * _UNITS[unit], name)
    if min(board.columns, board.rows) < 3 or not 0.001 <= board.square_m <= 2:
        raise InputError(f"--board {spec}: expected 3 or more columns and rows, and squares of 1 mm to 2 m")
    return board
