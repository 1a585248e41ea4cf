"""Pictures of a rig: the cameras from above and from the side, and the board corners that each detected."""

from __future__ import annotations

import math
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.rendering.overlay import FONT
from pipeline.array_types import Array
from pipeline.cameras import Rig

_SIDE_PX, _MARGIN_PX = 720, 90
_INK, _GRID, _PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)
_AXES: Final = (((200, 60, 50), "x"), ((60, 150, 60), "y"), ((50, 90, 200), "z"))
_CELL_PX: Final = (490, 360)
"""Width and height of a camera's panel."""
_DROPPED_COLOUR: Final = (230, 120, 30)
_FRUSTUM_LENGTH: Final = 0.12
"""Ratio of a camera's frustum, and of the world's axes, to the extent of the scene."""


def draw_rig(rig: Rig, unit: str) -> NDArray[np.uint8]:
    """Draw a rig from above and from the side, RGB: frusta and names of the cameras, world axes, and a grid.

    unit: name of the rig's unit of length, for the grid's step.
    """
    up = rig.up
    level = np.eye(3)[np.abs(up).argmin()]
    right = level - up * (level @ up)
    right /= np.linalg.norm(right)
    ahead = np.cross(up, right)
    corners = _frusta(rig)
    titles = ("from above", right, ahead), ("from the side", right, up)
    return np.concatenate([_panel(rig, corners, np.stack([x, y]), f"{t}, ", unit) for t, x, y in titles], 1)


def _frusta(rig: Rig) -> Array:
    """Far corners (V, 4, 3) of the cameras' frusta, world."""
    extent = max(float(np.ptp(rig.centres, axis=0).max()), 1e-6)
    corners = []
    for v in range(len(rig)):
        w, h = rig.size[v] if rig.size[v].all() else 2 * rig.K[v, :2, 2]
        rays = np.array([[0, 0, 1], [w, 0, 1], [w, h, 1], [0, h, 1]]) @ np.linalg.inv(rig.K[v]).T
        rays *= _FRUSTUM_LENGTH * extent / np.linalg.norm(rays, axis=1, keepdims=True)
        corners.append(rays @ rig.R[v] + rig.centres[v])
    return np.array(corners)


def _panel(rig: Rig, corners: Array, axes: Array, title: str, unit: str) -> NDArray[np.uint8]:
    """Orthographic view of a rig; axes (2, 3): directions in the world to the right and upwards."""
    flat = np.concatenate([rig.centres, corners.reshape(-1, 3), np.zeros((1, 3))]) @ axes.T
    low, high = flat.min(0), flat.max(0)
    scale = (_SIDE_PX - 2 * _MARGIN_PX) / max(float((high - low).max()), 1e-9)
    middle = (low + high) / 2

    def at(points: Array) -> NDArray[np.int32]:
        px = (points - middle) * scale * [1, -1] + _SIDE_PX / 2
        return np.asarray(px.round(), np.int32)

    picture = np.full((_SIDE_PX, _SIDE_PX, 3), _PAPER, np.uint8)
    reach = _SIDE_PX / scale / 2
    step = _round(reach / 4)
    for k in (0, 1):
        for tick in np.arange(np.ceil((middle[k] - reach) / step), np.floor((middle[k] + reach) / step) + 1):
            ends = np.stack([middle - 2 * reach, middle + 2 * reach])
            ends[:, k] = tick * step
            start, stop = at(ends).tolist()
            cv2.line(picture, start, stop, _GRID, 1)
    for axis, (colour, name) in zip(axes.T, _AXES, strict=True):
        tip = at(axis[None] * reach * _FRUSTUM_LENGTH)[0]
        origin = at(np.zeros((1, 2)))[0]
        if np.linalg.norm(tip - origin) > 4:
            cv2.arrowedLine(picture, tuple(origin.tolist()), tuple(tip.tolist()), colour, 2, cv2.LINE_AA)
            cv2.putText(picture, name, tuple((tip + 4).tolist()), FONT, 0.5, colour, 1, cv2.LINE_AA)
    for v, name in enumerate(rig.names):
        centre = at(rig.centres[v : v + 1] @ axes.T)[0]
        quad = at(corners[v] @ axes.T)
        cv2.polylines(picture, [quad], True, _INK, 1, cv2.LINE_AA)
        for corner in quad:
            cv2.line(picture, tuple(centre.tolist()), tuple(corner.tolist()), _INK, 1, cv2.LINE_AA)
        cv2.circle(picture, tuple(centre.tolist()), 4, _INK, -1, cv2.LINE_AA)
        shown = name.encode("ascii", "replace").decode()  # the font has no other letters
        left = quad[:, 0].mean() > centre[0]  # beside the frustum
        x = int(centre[0]) - cv2.getTextSize(shown, FONT, 0.55, 1)[0][0] - 7 if left else int(centre[0]) + 7
        cv2.putText(picture, shown, (x, int(centre[1]) - 7), FONT, 0.55, _INK, 1, cv2.LINE_AA)
    cv2.putText(picture, f"{title}squares of {step:g} {unit}", (16, 28), FONT, 0.6, _INK, 1, cv2.LINE_AA)
    return picture


def _round(value: float) -> float:
    """Round to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(power * min((1, 2, 5, 10), key=lambda n: abs(n - value / power)))


def draw_coverage(
    rig: Rig, px: Array, used: NDArray[np.bool_], dropped: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Draw the detected corners (V, T, N, 2) of a board, RGB, a panel for each camera.

    Dark in views (V, T) that were ``used``, orange in ``dropped`` ones, light in those with too few corners.
    """
    columns = math.ceil(math.sqrt(len(rig)))
    rows = math.ceil(len(rig) / columns)
    sheet = np.full((rows * _CELL_PX[1], columns * _CELL_PX[0], 3), _GRID, np.uint8)
    for v, name in enumerate(rig.names):
        scale = min((_CELL_PX[k] - room) / int(rig.size[v, k]) for k, room in ((0, 10), (1, 40)))
        w, h = (int(n * scale) for n in rig.size[v])
        left, top = v % columns * _CELL_PX[0] + 5, v // columns * _CELL_PX[1] + 35
        cv2.rectangle(sheet, (left, top), (left + w, top + h), _PAPER, -1)
        unused = ~used[v] & ~dropped[v]
        for views, colour in ((unused, _GRID), (dropped[v], _DROPPED_COLOUR), (used[v], _INK)):
            points = px[v, views].reshape(-1, 2)
            for x, y in points[np.isfinite(points).all(1)] * scale:
                cv2.circle(sheet, (left + round(x), top + round(y)), 2, colour, -1, cv2.LINE_AA)
        caption = f"{name}: {int(used[v].sum())} used, {int(dropped[v].sum())} dropped"
        text = caption.encode("ascii", "replace").decode()
        cv2.putText(sheet, text, (left, top - 12), FONT, 0.5, _INK, 1, cv2.LINE_AA)
    return sheet
