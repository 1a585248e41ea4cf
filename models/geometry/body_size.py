"""Unit of a calibration and height of a person, from the limbs of triangulated people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from models.geometry.agreement import triangulate_best_people
from models.geometry.point_order import LIMBS, NO_BODY, limb_lengths, limb_misfit
from pipeline.array_types import Array, Floats
from pipeline.calibrations.checks import in_metres
from pipeline.cameras import Rig
from pipeline.formats.keypoints.points import orders_with
from pipeline.skeleton import POINT_ORDERS

LIMBS_M: Final = 1.3
"""Upper arm + forearm + thigh + shin of the mean adult body, metres."""
HEIGHT_BY_LIMBS: Final = 1.3
"""Height over that sum: 1.27 to 1.36 in the shipped body, from three standard deviations above the mean
height to three below."""
HEIGHT_M: Final = (0.95, 2.3)
"""Range of people's heights, metres: from a child of three, the smallest person that an adult body model
fits, to the tallest athletes. Keypoints give a height to 10 %."""
ADULT_HEIGHT_M: Final = (1.4, 2.05)
"""Range of adults' heights: three standard deviations of the shipped body. Beyond it somebody is a child, or
the board of the calibration was entered too small or too large."""
_LIMBS_RANGE_M: Final = (0.5, 2.5)
"""Range of limb sums that identifies one of m, cm and mm, which are a factor of ten apart."""
_UNIT_POWERS: Final = range(1, -5, -1)
"""Units tried where none of the usual fits, powers of ten of a metre: matching accepts bodies up to three
times too large or too small."""


def find_unit(rig: Rig, image: Floats, units: Mapping[str, float]) -> tuple[str | None, Array]:
    """Find the first of these units (name → metres) in which the views agree on a person of human size.

    rig: with ``t`` as in the file. image: (V, T, P, K, 3) pixels of the video frames and confidence. Returns
    the unit or None, and the bodies (N, K, 3), metres.
    """
    names = orders_with(image.shape[-2])
    for unit, metres in units.items():
        bodies = triangulate_best_people(in_metres(rig, metres), image)
        if _LIMBS_RANGE_M[0] < limb_sum(bodies, names) < _LIMBS_RANGE_M[1]:
            return unit, bodies
    return None, np.empty((0, image.shape[-2], 3))


def find_scale(rig: Rig, image: Floats) -> tuple[float, Array] | None:
    """Find the metres in one unit of a rig at which people have an adult's limbs, and the bodies (N, K, 3).

    None where the views agree on no person at any scale.
    """
    names = orders_with(image.shape[-2])
    for power in _UNIT_POWERS:
        scale = _scale_to_adult(rig, image, 10.0**power, names)
        # Matching depends on the scale a little; and at some scale anything agrees, so check for a body.
        scale = scale and _scale_to_adult(rig, image, scale[0], names)
        if scale and min(limb_misfit(scale[1], name) for name in names) < NO_BODY:
            return scale
    return None


def _scale_to_adult(
    rig: Rig, image: Floats, metres: float, names: Sequence[str]
) -> tuple[float, Array] | None:
    """Length of the unit, metres, that gives adult limbs to the bodies matched at ``metres``; with these."""
    bodies = triangulate_best_people(in_metres(rig, metres), image)
    factor = LIMBS_M / (limb_sum(bodies, names) or math.nan)
    return None if math.isnan(factor) else (metres * factor, bodies * factor)


def limb_sum(bodies: Array, orders: Sequence[str]) -> float:
    """Upper arm + forearm + thigh + shin of bodies (T, K, 3) in the best-fitting order; NaN where missing."""
    costs = {name: limb_misfit(bodies, name) for name in orders}
    costs = {name: cost for name, cost in costs.items() if not math.isnan(cost)}
    if not costs:
        return math.nan
    names = POINT_ORDERS[min(costs, key=lambda name: costs[name])]
    lengths = (np.concatenate([limb_lengths(bodies, names, side, limb) for side in "LR"]) for limb in LIMBS)
    return sum(float(np.median(both)) if len(both) else math.nan for both in lengths)
