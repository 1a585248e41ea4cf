"""Size of the person that the views agree on: the calibration's unit, and the person's height.

Limbs are measured, as every point order has them; height is told from them by adult proportions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from models.geometry.agreement import best_bodies
from models.geometry.point_order import LIMBS, NO_BODY, limb_lengths, limb_misfit
from pipeline.calibrations.checks import in_metres
from pipeline.cameras import Array, Rig
from pipeline.formats.keypoints.files import Floats
from pipeline.formats.keypoints.points import orders_with
from pipeline.skeleton import POINT_ORDERS

LIMBS_M: Final = 1.3
"""Upper arm + forearm + thigh + shin of the mean adult body, metres."""
HEIGHT_BY_LIMBS: Final = 1.3
"""Height over that sum: 1.27 to 1.36 in the body that ships, from three standard deviations above the mean
height to three below."""
HEIGHT_M: Final = (0.95, 2.3)
"""Heights of people, metres: from a child of three, below whom an adult's body model fits nobody, to the
tallest athletes. Keypoints tell a height to a tenth."""
_TRIED_LIMBS_M: Final = (0.5, 2.5)
"""Limb sums by which a unit of m, cm and mm is told: these lie a factor of ten apart."""
_POWERS: Final = range(1, -5, -1)
"""Metres in one unit that are tried where no unit fits, as powers of ten: matching finds bodies that are
three times too large or too small."""


def find_unit(rig: Rig, image: Floats, units: Mapping[str, float]) -> tuple[str | None, Array]:
    """The first of these units (name → metres) in which the views agree on a person of human size.

    rig: with ``t`` as in the file. image: (V, T, P, K, 3) pixels of the video frames and confidence. Returns
    the unit, None if there is none, and the bodies (N, K, 3) in metres.
    """
    names = orders_with(image.shape[-2])
    for unit, metres in units.items():
        bodies = best_bodies(in_metres(rig, metres), image)
        if _TRIED_LIMBS_M[0] < limb_sum(bodies, names) < _TRIED_LIMBS_M[1]:
            return unit, bodies
    return None, np.empty((0, image.shape[-2], 3))


def find_scale(rig: Rig, image: Floats) -> tuple[float, Array] | None:
    """Factor by which lengths of a rig of an unknown unit become metres, and the bodies (N, K, 3) in metres.

    Taken so that the person has an adult's limbs; None where the views agree on nobody at any scale.
    """
    names = orders_with(image.shape[-2])
    for power in _POWERS:
        found = _as_adult(rig, image, 10.0**power, names)
        # What is matched depends on the scale a little. At some scale anything agrees: is it a body?
        found = found and _as_adult(rig, image, found[0], names)
        if found and min(limb_misfit(found[1], name) for name in names) < NO_BODY:
            return found
    return None


def _as_adult(rig: Rig, image: Floats, metres: float, names: Sequence[str]) -> tuple[float, Array] | None:
    """Metres in one unit that make adults of the bodies that are matched at ``metres``, and these bodies."""
    bodies = best_bodies(in_metres(rig, metres), image)
    by = LIMBS_M / (limb_sum(bodies, names) or math.nan)
    return None if math.isnan(by) else (metres * by, bodies * by)


def limb_sum(bodies: Array, orders: Sequence[str]) -> float:
    """Upper arm + forearm + thigh + shin of points (T, K, 3) in the order that fits best; NaN if unseen."""
    costs = {name: limb_misfit(bodies, name) for name in orders}
    costs = {name: cost for name, cost in costs.items() if not math.isnan(cost)}
    if not costs:
        return math.nan
    names = POINT_ORDERS[min(costs, key=lambda name: costs[name])]
    total = 0.0
    for limb in LIMBS:
        both = np.concatenate([limb_lengths(bodies, names, side, limb) for side in "LR"])
        total += float(np.median(both)) if len(both) else math.nan
    return total
