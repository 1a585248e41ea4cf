"""Sub-pixel refinement of keypoints by their heat maps: mean shift with a Gaussian kernel (Cheng 1995).

The network's own coordinates jitter; the mean of the heat map around them does not. MediaPipe takes one mean
over 7 × 7 cells cut at whole cells, which jumps when the middle moves to the next cell. A Gaussian window has
no such edge.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.array_types import Array, Floats

KERNEL_CELLS: Final = 1.5
"""Standard deviation of the Gaussian window."""
ITERATIONS: Final = 4
"""Iterations of mean shift; more change nothing that matters."""
REACH_CELLS: Final = 5
"""Radius of the window, 3.3 standard deviations."""
MIN_PEAK: Final = 0.5
"""Least peak around a keypoint at which it is refined, as in MediaPipe."""


def sigmoid(x: Floats | Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -80, 80, dtype=np.float64))))


def refine_keypoints(xy_cells: Array, heatmaps: Floats) -> Array:
    """Refine keypoints (N, K, 2), in cells of their heat maps (N, K, H, W), logits.

    Cell (0, 0) is at x = y = 0. Keypoints outside of their heat maps stay where they are.
    """
    n, k, height, width = heatmaps.shape
    size = np.array([width, height])
    maps = heatmaps.reshape(n * k, height, width)
    xy = xy_cells.reshape(n * k, 2)
    offset = np.arange(-REACH_CELLS, REACH_CELLS + 1)
    refinable = np.asarray(((xy > -0.5) & (xy < size - 0.5)).all(-1))
    for turn in range(ITERATIONS):
        cells = np.rint(xy).astype(np.int64)[:, :, None] + offset  # (N K, 2, 11)
        inside = (cells >= 0) & (cells < size[:, None])
        column, row = np.moveaxis(np.clip(cells, 0, size[:, None] - 1), 1, 0)
        logits = maps[np.arange(len(maps))[:, None, None], row[:, :, None], column[:, None, :]]
        heat = sigmoid(logits) * (inside[:, 1, :, None] & inside[:, 0, None, :])
        if turn == 0:
            refinable &= heat.max((1, 2)) >= MIN_PEAK
        window = np.exp(-0.5 * ((cells - xy[:, :, None]) / KERNEL_CELLS) ** 2)
        weight = heat * window[:, 1, :, None] * window[:, 0, None, :]
        total = np.maximum(weight.sum((1, 2)), 1e-30)
        mean = np.stack([(weight.sum(axis) * cells[:, axis - 1]).sum(-1) / total for axis in (1, 2)], -1)
        xy = np.where(refinable[:, None], mean, xy)
    return xy.reshape(n, k, 2)


def peaks(heatmaps: Floats) -> Array:
    """Largest value (N, K), 0 to 1, of heat maps (N, K, H, W) of logits."""
    return sigmoid(heatmaps.max((2, 3)))
