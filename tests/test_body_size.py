"""The person's size tells the unit of a calibration, and that a person is too large or too small."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import figure, ring, seen

from models.geometry.body_size import find_scale, find_unit, limb_sum
from pipeline.skeleton import POINT_ORDERS

TIME = np.arange(40) / 8
BODY = figure(TIME)


def in_order(name: str) -> np.ndarray:
    return np.stack([BODY[point] for point in POINT_ORDERS[name]], 1)


def image(name: str, views: int = 3, noise_px: float = 1.0) -> np.ndarray:
    return seen(ring(views), BODY, name, noise_px)[:, :, None].astype(np.float32)


@pytest.mark.parametrize(("unit", "metres"), [("m", 1.0), ("cm", 0.01), ("mm", 0.001)])
def test_the_unit_is_told_by_the_persons_size(unit: str, metres: float) -> None:
    rig = ring(3)
    rig.t[:] /= metres
    found, bodies = find_unit(rig, image("body_25"), {"m": 1.0, "cm": 0.01, "mm": 0.001})
    assert found == unit
    assert np.nanmedian(np.abs(bodies - in_order("body_25"))) < 0.005


def test_no_unit_fits_a_giant() -> None:
    rig = ring(3)
    rig.t[:] *= 7
    found, bodies = find_unit(rig, image("body_25"), {"m": 1.0, "cm": 0.01, "mm": 0.001})
    assert found is None
    assert bodies.shape == (0, 25, 3)


def test_limbs_are_measured_in_the_format_that_fits() -> None:
    assert limb_sum(in_order("body_25"), ["body_25", "body_25b"]) == pytest.approx(
        0.28 + 0.25 + 0.42 + 0.4, rel=0.02
    )
    assert np.isnan(limb_sum(np.full((9, 25, 3), np.nan), ["body_25"]))


@pytest.mark.parametrize("factor", [39.4, 25.6, 7.0, 3.3, 0.3, 0.05])
def test_the_scale_of_an_unknown_unit_makes_an_adult(factor: float) -> None:
    rig = ring(3)
    rig.t[:] *= factor
    found = find_scale(rig, image("body_25"))
    assert found is not None
    scale, bodies = found
    assert scale * factor == pytest.approx(1.3 / 1.35, rel=0.02)
    assert limb_sum(bodies, ["body_25"]) == pytest.approx(1.3, rel=0.01)


def test_nobody_has_no_scale() -> None:
    noise = np.random.default_rng(0).uniform(0, 700, (3, 40, 1, 25, 3)).astype(np.float32)
    noise[..., 2] = 0.9
    assert find_scale(ring(3), noise) is None
