"""Landmarks of people in ROIs: BlazePose GHUM (Bazarevsky et al. 2020) with heat-map refinement.

The network gives 39 points: the 33 landmarks, the middle of the hips and a point above it on the circle
around the person, which give the next picture's ROI, and four that are not used.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from models.detectors.networks import LANDMARKS, Device, Network, check_signature, load_asset
from models.detectors.refinement import peaks, refine_keypoints, sigmoid
from models.detectors.rois import CROP, roi_matrix, roi_towards
from pipeline.array_types import Array, Floats
from pipeline.skeleton import POINT_ORDERS

ORDER: Final = "blazepose_33"
"""Order of the landmarks, a name in ``skeleton.POINT_ORDERS``."""
CENTRE: Final = 33
TOP: Final = 34
HEAT_CELLS: Final = 64
_POINTS: Final = 39
_OUTPUT_SHAPES: Final = {
    "landmarks": (5 * _POINTS,),  # x, y, z, visibility and presence of each
    "presence": (1,),
    "heatmaps": (_POINTS, HEAT_CELLS, HEAT_CELLS),
}

FULL_VISIBILITY: Final = 0.5
"""Visibility below which a landmark's confidence falls, as its error grows."""
HEAT_PEAK_RANGE: Final = (0.3, 0.7)
"""Peaks of a heat map between which a landmark's confidence rises from 0 to its visibility's."""


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of N people in pictures, K of each, in the order of their network."""

    xy_px: Array
    """(N, K, 2) in the picture"""
    confidence: Array
    """(N, K) 0 to 1"""
    person: Array
    """(N,) score of a person in the ROI, 0 to 1"""
    roi: Array
    """(N, 4) of this picture"""
    next_roi: Array
    """(N, 4) for the next picture"""

    def __len__(self) -> int:
        return len(self.person)

    @property
    def points(self) -> Floats:
        """(N, K, 3) x and y in pixels of the picture, and confidence."""
        return np.concatenate([self.xy_px, self.confidence[..., None]], -1).astype(np.float32)

    def select(self, people: list[int]) -> Landmarks:
        """Landmarks of some of the people."""
        return Landmarks(*(getattr(self, f.name)[people] for f in fields(self)))


def confidence(visibility: Array, heat_peak: Array) -> Array:
    """Confidence of landmarks, 0 to 1, from their visibility and the largest value of their heat maps.

    By the distance to triangulations from three other cameras, visibility predicts errors only where it is
    low; the peak of the heat map predicts the others.
    """
    low, high = HEAT_PEAK_RANGE
    sharpness = np.clip((heat_peak - low) / (high - low), 0, 1)
    return np.asarray(np.clip(visibility / FULL_VISIBILITY, 0, 1) * sharpness)


def load_landmark_network(name: str, device: Device = "cpu") -> Network:
    """Load BlazePose ``heavy`` or ``full``. Raises ``InputError``."""
    network = load_asset(LANDMARKS[name], device)
    check_signature(network, (3, CROP, CROP), _OUTPUT_SHAPES)
    return network


def place_landmarks(network: Network, crops: Floats, roi: Array) -> Landmarks:
    """Place landmarks in crops (N, 3, 256, 256) of ROIs (N, 4) of any pictures, as ``cut_rois`` cuts them."""
    out = network.run(crops)
    count, used = len(POINT_ORDERS[ORDER]), slice(0, TOP + 1)
    raw = out["landmarks"].reshape(len(crops), _POINTS, 5).astype(np.float64)
    heatmaps = out["heatmaps"]
    cell_px = CROP / HEAT_CELLS
    # The network counts from the crop's corner, not from the centre of its first pixel: x in a crop and in
    # its mirror image add up to CROP.
    in_crop = refine_keypoints(raw[:, used, :2] / cell_px, heatmaps[:, used]) * cell_px - 0.5
    back = np.array([np.linalg.inv(roi_matrix(one)) for one in roi]).reshape(-1, 3, 3)
    xy = np.einsum("nij,nkj->nki", back[:, :2, :2], in_crop) + back[:, None, :2, 2]
    return Landmarks(
        xy[:, :count],
        confidence(sigmoid(raw[:, :count, 3]), peaks(heatmaps[:, :count])),
        out["presence"][:, 0].astype(np.float64),
        roi,
        roi_towards(xy[:, CENTRE], xy[:, TOP]),
    )
