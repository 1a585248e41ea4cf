"""Finder: people in whole pictures and their 17 COCO points, by MoveNet multipose lightning.

The network sees the picture on 256 × 256 pixels and gives heat maps of 64 × 64 cells. Its decoding, which the
original does inside of its graph, is CenterNet's (Zhou et al. 2019): a person is a peak of the map of
centres; from there the person's points are regressed; a point is where its own heat map, weighted by the
distance from the regressed place, is largest in the person's box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from models.crops import warp_crop
from models.detectors.networks import FINDER, Device, Network, check_signature, load_asset
from models.detectors.refinement import sigmoid
from pipeline.array_types import Array, Floats, Pixels

SIDE: Final = 256
"""Side of the pictures that the network takes, pixels."""
CELLS: Final = 64
CELL: Final = SIDE / CELLS
MAX_FOUND_PEOPLE: Final = 6
"""Most people in a picture, as in the original."""
MIN_SCORE: Final = 0.2
"""Least score of a person."""
_POINTS: Final = 17
_OUTPUT_SHAPES: Final = {
    "centre": (1, CELLS, CELLS),
    "box_size": (2, CELLS, CELLS),
    "box_offset": (2, CELLS, CELLS),
    "keypoints": (2 * _POINTS, CELLS, CELLS),
    "heatmaps": (_POINTS, CELLS, CELLS),
    "keypoint_offset": (2 * _POINTS, CELLS, CELLS),
}
_PEAK_SIDE_CELLS: Final = 5
"""Side of the square in which a centre is the largest."""
_TIE_DIFFERENCE: Final = 1.0132789611816406e-06
"""Difference between values that count as equal, the original's."""
_SPREAD_CELLS2: Final = 0.300048828125 * CELLS
"""Squared distance from the regressed position at which a heat map's weight is 1 / e, the original's."""
_MIN_POINT_SCORE: Final = 0.126953125
"""Least score of a point that counts for the person's score, the original's."""


@dataclass(frozen=True)
class FoundPeople:
    """P people in a picture, the best first."""

    points: Array
    """(P, 17, 3) x and y in pixels, and score 0 to 1, in the order of COCO"""
    box_px: Array
    """(P, 4) left, top, right, bottom"""
    score: Array
    """(P,) 0 to 1"""

    def __len__(self) -> int:
        return len(self.score)


def load_finder(device: Device = "cpu") -> Network:
    """Load MoveNet multipose. Raises ``InputError``."""
    network = load_asset(FINDER, device)
    check_signature(network, (3, SIDE, SIDE), _OUTPUT_SHAPES)
    return network


def find_people(network: Network, picture: Pixels) -> FoundPeople:
    """Find the people in an RGB picture (H, W, 3)."""
    matrix = whole_matrix(picture)
    crop = warp_crop(picture, matrix, SIDE).transpose(2, 0, 1)
    heads = network.run(np.ascontiguousarray(crop[None], np.float32))
    people = decode_heads({name: head[0] for name, head in heads.items()})
    scale, shift = matrix[0, 0], matrix[:2, 2]
    points = people.points.copy()
    points[..., :2] = (points[..., :2] - shift) / scale
    return FoundPeople(points, (people.box_px - np.tile(shift, 2)) / scale, people.score)


def whole_matrix(picture: Pixels) -> Array:
    """(3, 3) from pixels of a picture to those of the network's input: the whole picture, in the middle."""
    size = np.array(picture.shape[1::-1])
    scale = SIDE / size.max()
    matrix = np.diag([scale, scale, 1.0])
    matrix[:2, 2] = (scale - 1) / 2 + (SIDE - np.rint(scale * size)) // 2
    return matrix


def decode_heads(heads: dict[str, Floats], min_score: float = MIN_SCORE) -> FoundPeople:
    """Decode the network's heads (C, 64, 64), by name, of one picture: people in pixels of its input."""
    centres = sigmoid(heads["centre"][0]).astype(np.float32)
    largest = cv2.dilate(centres, np.ones((_PEAK_SIDE_CELLS, _PEAK_SIDE_CELLS), np.uint8))
    peaks = np.where(np.abs(centres - largest) < _TIE_DIFFERENCE, centres, 0).ravel()
    best = np.argsort(-peaks, kind="stable")[:MAX_FOUND_PEOPLE]
    cell = np.stack(np.divmod(best, CELLS), -1).astype(np.float64)  # down, across
    at = tuple(cell.astype(np.int64).T)

    middle = cell + heads["box_offset"][:, *at].T
    half = np.maximum(heads["box_size"][:, *at].T, 0) / 2
    box = np.clip(np.concatenate([middle - half, middle + half], -1), 0, CELLS)
    regressed = cell[:, None] + heads["keypoints"][:, *at].T.reshape(-1, _POINTS, 2)
    place, score = _points(heads, box, regressed)

    counts = score > _MIN_POINT_SCORE
    total = peaks[best] * np.where(counts, score, 0).sum(-1) / np.maximum(counts.sum(-1), 1)
    order = np.argsort(-total, kind="stable")
    order = order[total[order] >= min_score]
    points = np.concatenate([CELL * place[..., ::-1], score[..., None]], -1)
    return FoundPeople(points[order], CELL * box[order][:, [1, 0, 3, 2]], total[order])


def _points(heads: dict[str, Floats], box: Array, regressed: Array) -> tuple[Array, Array]:
    """Positions (P, 17, 2), row and column in cells, and scores (P, 17) of people's points.

    box: (P, 4) first and last row and column. regressed: (P, 17, 2). A score is the maximum of all people's
    weighted heat maps in the cell, as in the original.
    """
    grid = np.arange(CELLS)
    near = np.exp(-((grid - regressed[..., None]) ** 2) / _SPREAD_CELLS2)  # (P, 17, 2, 64)
    inside = (grid >= box[:, :2, None]) & (grid < box[:, 2:, None])  # (P, 2, 64)
    near = (near * inside[:, None]).astype(np.float32)
    heat = sigmoid(heads["heatmaps"]).astype(np.float32)
    weighted = heat * near[:, :, 0, :, None] * near[:, :, 1, None, :]  # (P, 17, 64, 64)
    cell = weighted.reshape(*weighted.shape[:2], -1).argmax(-1)
    row, column = np.divmod(cell, CELLS)
    point = np.arange(_POINTS)
    score = weighted[:, point, row, column].max(0).astype(np.float64)
    offset = heads["keypoint_offset"].reshape(_POINTS, 2, CELLS, CELLS)[point, :, row, column]
    return np.stack([row, column], -1) + offset, score
