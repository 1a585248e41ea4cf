"""Points of every order come to BODY_25."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import figure

from pipeline.formats.keypoints.points import to_body_25
from pipeline.skeleton import BODY_25, POINT_ORDERS

BODY = figure(np.arange(40) / 8)
FEET = {f"{side}{point}" for side in "LR" for point in ("Heel", "BigToe", "SmallToe")}
FACE = {f"{side}{point}" for side in "LR" for point in ("Eye", "Ear")}
LACKING = {
    "coco_17": FEET,
    "coco_18": FEET,
    "body_15": FEET | FACE,
    "mpi_15": FEET | FACE | {"Nose"},
    "mpii_16": FEET | FACE | {"Nose"},
    "blazepose_33": {"LSmallToe", "RSmallToe"},
}


def in_order(name: str) -> np.ndarray:
    return np.stack([BODY[point] for point in POINT_ORDERS[name]], 1)


@pytest.mark.parametrize("name", POINT_ORDERS)
def test_every_point_lands_where_its_name_says(name: str) -> None:
    points = np.concatenate([in_order(name), np.full((40, len(POINT_ORDERS[name]), 1), 0.5)], -1)
    points = points[..., [0, 1, 3]].astype(np.float32)  # x, y of the world will do for pixels
    found = to_body_25(points, name)
    assert found.shape == (40, 25, 3)
    for i, point in enumerate(BODY_25.names):
        if point in POINT_ORDERS[name]:
            assert np.array_equal(found[:, i], points[:, POINT_ORDERS[name].index(point)]), point
        elif point in ("Neck", "MidHip"):
            side = "Shoulder" if point == "Neck" else "Hip"
            middle = (BODY[f"L{side}"] + BODY[f"R{side}"])[:, :2] / 2
            assert np.allclose(found[:, i, :2], middle, atol=1e-6)
            assert (found[:, i, 2] == 0.5).all()
        else:
            assert point in LACKING[name]
            assert np.isnan(found[:, i, :2]).all()
            assert (found[:, i, 2] == 0).all()


def test_a_midpoint_needs_both_ends_and_has_the_lower_confidence() -> None:
    points = np.full((2, 17, 3), 0.5, np.float32)
    points[0, POINT_ORDERS["coco_17"].index("LHip"), 2] = 0.2
    points[1, POINT_ORDERS["coco_17"].index("LHip")] = np.nan, np.nan, 0
    hip = to_body_25(points, "coco_17")[:, BODY_25.index("MidHip")]
    assert hip[0].tolist() == pytest.approx([0.5, 0.5, 0.2])
    assert np.isnan(hip[1, :2]).all()
    assert hip[1, 2] == 0


def test_a_wrong_number_of_points_is_a_bug() -> None:
    with pytest.raises(ValueError, match="coco_17 has 17 points, got 25"):
        to_body_25(np.zeros((1, 25, 3), np.float32), "coco_17")
