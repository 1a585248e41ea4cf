"""Pose networks by file: ONNX files of four families, recognised by their inputs and outputs.

================  ==============================================  ======================================
family            outputs, of an input (N, 3, H, W)               input
================  ==============================================  ======================================
RTMPose (SimCC)   (N, K, sW) and (N, K, sH), scores along x, y    a person upright, RGB, ImageNet's scale
ViTPose           (N, K, H / f, W / f), heat maps                 the same
RTMO              (N, M, 5) boxes and (N, M, K, 3) points         whole picture at the top left, BGR, 0–255
YOLO-pose         (N, 5 + 3K, M), or (N, M, 6 + 3K)               whole picture in the middle, RGB, 0–1
================  ==============================================  ======================================

K tells the order of the points: COCO's 17, HALPE's 26 or COCO-WholeBody's 133, whose first 17 are COCO's.
Jiang et al. 2023 (RTMPose), Xu et al. 2022 (ViTPose), Lu et al. 2024 (RTMO), Maji et al. 2022 (YOLO-pose).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from models.crops import warp_bilinear
from models.detectors.landmarks import Landmarks
from models.detectors.networks import Device, Network, load_file
from models.detectors.rois import COCO_JOINTS, ROI_MARGIN, roi_matrix
from pipeline.array_types import Array, Floats, Pixels
from pipeline.errors import InputError

Family = Literal["simcc", "heatmaps", "rtmo", "yolo", "yolo_nms"]

ORDERS: Final = MappingProxyType({17: "coco_17", 26: "halpe_26", 133: "coco_wholebody_133"})
"""Order of the points by their number."""
EXPECTED: Final = (
    "one input of floats (N, 3, height, width), N free or 1, and, for K = 17, 26 or 133 points, outputs (N, "
    "K, s·width) and (N, K, s·height) of RTMPose, (N, K, height/f, width/f) of ViTPose, (N, M, 5) and "
    "(N, M, K, 3) of RTMO, or (N, 5+3K, M) or (N, M, 6+3K) of YOLO-pose"
)
TRIED_SIZES_PX: Final = ((640, 640), (192, 256), (288, 384))
"""Widths and heights tried for an input of free size."""
RGB_MEAN: Final = np.array([123.675, 116.28, 103.53], np.float32)
RGB_STD: Final = np.array([58.395, 57.12, 57.375], np.float32)
"""Mean and standard deviation of red, green and blue in ImageNet."""
PAD_GREY: Final = 114
"""Grey of the margin of a whole picture, RTMO's and YOLO's."""
MIN_PERSON_SCORE: Final = 0.3
"""Least score of a box in a whole picture."""
MAX_BOX_IOU: Final = 0.65
"""Intersection over union of two boxes above which they are one person's."""
MIN_ROI_POINT_SCORE: Final = 0.3
"""Least score of a point that the next ROI includes."""
MIN_FINDER_POINT_SCORE: Final = 0.1
"""Least score of a finder's point that the first ROI includes: its scores are lower."""
_SCORED_JOINTS: Final = 6
"""Number of best joints whose mean is a person's score: half of them may be hidden."""


@dataclass(frozen=True)
class CropNetwork:
    """Network that places the points of one upright person in a crop: RTMPose or ViTPose."""

    network: Network
    family: Family
    size: tuple[int, int]
    """Width and height of the input, pixels."""
    order: str

    joints: ClassVar = COCO_JOINTS

    @property
    def side(self) -> int:
        """Side of the square around the input, pixels."""
        return max(self.size)

    def first_roi(self, coco: Array) -> Array:
        """ROI (N, 4) of the finder's points (N, 17, 3)."""
        return self._roi(coco[..., :2], coco[..., 2] > MIN_FINDER_POINT_SCORE)

    def _roi(self, xy: Array, included: NDArray[np.bool_]) -> Array:
        """ROI (N, 4) of the square around the input that holds the points (N, K, 2); NaN without points."""
        low = np.where(included[..., None], xy, np.inf).min(1)
        high = np.where(included[..., None], xy, -np.inf).max(1)
        low[~np.isfinite(low)] = high[~np.isfinite(high)] = np.nan
        scale = ((high - low) / self.size).max(1)
        return np.stack([*((low + high) / 2).T, ROI_MARGIN * self.side * scale, np.zeros(len(xy))], -1)

    def _matrix(self, roi: Array) -> Array:
        """(3, 3) from the picture to the input. The middle comes to size / 2, in ViTPose's half a pixel
        before."""
        matrix = roi_matrix(roi, self.side)
        matrix[:2, 2] -= (self.side - np.array(self.size)) // 2 + (0.5 if self.family == "heatmaps" else 0)
        return matrix

    def cut(self, picture: Pixels, roi: Array) -> Floats:
        """Inputs (N, 3, H, W) for ROIs (N, 4) of an RGB picture (H, W, 3)."""
        width, height = self.size
        out = np.empty((len(roi), 3, height, width), np.float32)
        for one, r in zip(out, roi, strict=True):
            pixels = warp_bilinear(picture, self._matrix(r), self.size)
            one[:] = ((pixels - RGB_MEAN) / RGB_STD).transpose(2, 0, 1)
        return out

    def place(self, crops: Floats, roi: Array) -> Landmarks:
        """Place the points in inputs (N, 3, H, W) of ROIs (N, 4) of any pictures."""
        outputs = [*self.network.run(crops).values()]
        if self.family == "simcc":
            xy, score = _decode_simcc(*_x_first(outputs, self.size), self.size)
        else:
            xy, score = _decode_heatmaps(outputs[0], self.size)
        back = np.array([np.linalg.inv(self._matrix(r)) for r in roi]).reshape(-1, 3, 3)
        xy = np.einsum("nij,nkj->nki", back[:, :2, :2], xy) + back[:, None, :2, 2]
        best = np.sort(score[:, list(COCO_JOINTS)], 1)[:, -_SCORED_JOINTS:]
        return Landmarks(xy, score, best.mean(1), roi, self._roi(xy, score > MIN_ROI_POINT_SCORE))


@dataclass(frozen=True)
class PictureNetwork:
    """Network that finds all people in the whole picture, with their points: RTMO or YOLO-pose."""

    network: Network
    family: Family
    size: tuple[int, int]
    """Width and height of the input, pixels."""
    order: str

    def find(self, picture: Pixels) -> Floats:
        """Find the people (D, K, 3) in an RGB picture (H, W, 3), best first: x, y in pixels, and score."""
        inputs, scale, shift = self.letterbox(picture)
        outputs = [*self.network.run(inputs[None]).values()]
        if self.family == "rtmo":
            rows, points = sorted((out[0] for out in outputs), key=np.ndim)
            corners, score = rows[:, :4], rows[:, 4]
        else:
            rows = outputs[0][0] if self.family == "yolo_nms" else outputs[0][0].T
            corners, score = rows[:, :4].copy(), rows[:, 4]
            first = 6 if self.family == "yolo_nms" else 5
            points = rows[:, first:].reshape(len(rows), -1, 3)
            if self.family == "yolo":  # centre and size
                corners[:, :2] -= corners[:, 2:] / 2
                corners[:, 2:] += corners[:, :2]
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        kept = cv2.dnn.NMSBoxes(boxes.tolist(), score.tolist(), MIN_PERSON_SCORE, MAX_BOX_IOU)
        people = points[np.array(kept, np.int64).ravel()].astype(np.float32)
        people[..., :2] = (people[..., :2] - shift) / scale
        people[..., 2] = people[..., 2].clip(0, 1)
        return np.asarray(people, np.float32)

    def letterbox(self, picture: Pixels) -> tuple[Floats, float, Floats]:
        """Input (3, H, W) of an RGB picture; scale and shift (2,) from its pixels to those of the input."""
        width, height = self.size
        scale = min(width / picture.shape[1], height / picture.shape[0])
        w, h = (max(1, round(scale * n)) for n in picture.shape[1::-1])
        rtmo = self.family == "rtmo"
        x, y = (0, 0) if rtmo else ((width - w) // 2, (height - h) // 2)
        canvas = np.full((height, width, 3), PAD_GREY, np.uint8)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        canvas[y : y + h, x : x + w] = cv2.resize(picture, (w, h), interpolation=how)
        inputs = canvas[..., ::-1] if rtmo else canvas / np.float32(255)
        return inputs.transpose(2, 0, 1).astype(np.float32), scale, np.array([x, y], np.float32)


def load_pose_network(file: Path, device: Device = "cpu") -> CropNetwork | PictureNetwork:
    """Load an ONNX file and recognise its family.

    Raises:
        InputError: it cannot be read or run, or is of no family; with its signature and the expected ones.
    """
    network = load_file(file, device)
    shape = next(iter(network.inputs.values()), ())
    size = TRIED_SIZES_PX[0]
    shapes: dict[str, tuple[int, ...]] = {}
    floats = len(network.inputs) == 1 and network.input_type in ("tensor(float)", "tensor(float16)")
    if floats and len(shape) == 4 and shape[0] in (1, None) and shape[1] in (3, None):
        size, shapes = _probe(network, (shape[3], shape[2]))
    family, points = _family(shapes, size)
    if family is None or points not in ORDERS:
        gives: Mapping[str, tuple[int | None, ...]] = shapes or network.outputs
        raise InputError(
            f"detect.model: {file}: takes {dict(network.inputs)} and gives {dict(gives)}; expected {EXPECTED}"
        )
    # Lengths that the file leaves free, as probed: also those of the outputs for no picture.
    network = replace(network, outputs={n: (None, *shape[1:]) for n, shape in shapes.items()})
    if family not in ("simcc", "heatmaps"):
        return PictureNetwork(network, family, size, ORDERS[points])
    with suppress(InputError):
        if all(len(out) == 2 for out in network.run(np.zeros((2, 3, *size[::-1]), np.float32)).values()):
            return CropNetwork(network, family, size, ORDERS[points])
    (name,) = network.inputs  # it takes one at a time, whatever the file says
    return CropNetwork(replace(network, inputs={name: (1, *shape[1:])}), family, size, ORDERS[points])


def _probe(
    network: Network, stated: tuple[int | None, int | None]
) -> tuple[tuple[int, int], dict[str, tuple[int, ...]]]:
    """Width and height of a picture that the network takes, and the shape of each output for a black one.

    stated: width and height in the file, None for free. Raises ``InputError`` where it takes none.
    """
    sizes = dict.fromkeys((stated[0] or width, stated[1] or height) for width, height in TRIED_SIZES_PX)
    errors = []
    for size in sizes:
        try:
            outputs = network.run(np.zeros((1, 3, *size[::-1]), np.float32))
            return size, {n: out.shape for n, out in outputs.items()}
        except InputError as e:
            errors.append(e)
    raise errors[0]


def _family(shapes: Mapping[str, tuple[int, ...]], size: tuple[int, int]) -> tuple[Family | None, int]:
    """Family of a network with outputs of these shapes for one picture, and the number of its points."""
    width, height = size
    first, *others = sorted(shapes.values(), key=len) or [()]
    if not others and len(first) == 4 and height * first[3] == width * first[2] and first[2] < height:
        return "heatmaps", first[1]
    if not others and len(first) == 3:
        if first[1] < first[2]:
            return "yolo", (first[1] - 5) // 3 if first[1] % 3 == 2 else 0
        return "yolo_nms", (first[2] - 6) // 3 if first[2] % 3 == 0 else 0
    if len(others) == 1 and len(first) == 3:
        (second,) = others
        if len(second) == 4 and first[2] == 5 and second[3] == 3 and first[1] == second[1]:
            return "rtmo", second[2]
        if len(second) == 3 and first[1] == second[1] and first[2] * second[2] % (width * height) == 0:
            return "simcc", first[1]
    return None, 0


def _x_first(outputs: list[Floats], size: tuple[int, int]) -> tuple[Floats, Floats]:
    """Two outputs of SimCC, that along x first."""
    a, b = outputs
    return (a, b) if a.shape[2] * size[1] == b.shape[2] * size[0] else (b, a)


def _decode_simcc(x: Floats, y: Floats, size: tuple[int, int]) -> tuple[Array, Array]:
    """Decode SimCC's scores along x and y: points (N, K, 2) in pixels of the input, and scores (N, K)."""
    xy = np.stack([x.argmax(-1) * (size[0] / x.shape[-1]), y.argmax(-1) * (size[1] / y.shape[-1])], -1)
    return xy, np.minimum(x.max(-1), y.max(-1)).clip(0, 1).astype(np.float64)


def _decode_heatmaps(heatmaps: Floats, size: tuple[int, int]) -> tuple[Array, Array]:
    """Decode heat maps (N, K, H, W), 0 to 1: points (N, K, 2) in pixels of the input, and scores (N, K).

    The vertex of a parabola through the logarithms of the largest value and its neighbours (Zhang et al.
    2020). The outer cells lie at the outer pixels of the input (Huang et al. 2020).
    """
    n, k, height, width = heatmaps.shape
    flat = heatmaps.reshape(n * k, height * width)
    cell = np.stack(np.divmod(flat.argmax(-1), width)[::-1], -1)  # across, down
    logs = np.log(np.maximum(heatmaps, 1e-6)).reshape(n * k, height, width).astype(np.float64)
    rows, limits = np.arange(n * k), np.array([width, height]) - 1
    offset = np.zeros((n * k, 2))
    for axis, step in enumerate(np.eye(2, dtype=np.int64)):
        around = [np.clip(cell + d * step, 0, limits) for d in (-1, 0, 1)]
        before, here, after = (logs[rows, at[:, 1], at[:, 0]] for at in around)
        bend = before - 2 * here + after
        inside = (cell[:, axis] > 0) & (cell[:, axis] < limits[axis]) & (bend < -1e-9)
        offset[:, axis] = np.where(inside, (before - after) / np.where(inside, 2 * bend, 1), 0)
    xy = (cell + offset.clip(-0.5, 0.5)) * ((np.array(size) - 1) / limits)
    return xy.reshape(n, k, 2), flat.max(-1).clip(0, 1).reshape(n, k).astype(np.float64)
