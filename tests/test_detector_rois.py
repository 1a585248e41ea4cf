"""Regions of interest: geometry, crops and which of them are one person's."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from models.detectors.rois import (
    BLAZEPOSE_JOINTS,
    COCO_JOINTS,
    CROP,
    ROI_MARGIN,
    cut_rois,
    is_usable,
    roi_matrix,
    roi_of_coco,
    roi_towards,
    rois_match,
)
from pipeline.skeleton import POINT_ORDERS


def standing(turn: float = 0.0) -> np.ndarray:
    """COCO points (1, 17, 3) of somebody whose hips are at (300, 400), turned about them by radians, x
    towards y."""
    names = POINT_ORDERS["coco_17"]
    at = {"Shoulder": (40, -120), "Elbow": (60, -60), "Wrist": (60, 0), "Hip": (25, 0), "Knee": (25, 90)}
    at |= {"Ankle": (25, 180), "Nose": (0, -180), "Eye": (8, -185), "Ear": (15, -180)}
    c, s = math.cos(turn), math.sin(turn)
    out = np.empty((1, 17, 3))
    for n, name in enumerate(names):
        x, y = at[name.lstrip("LR")]
        x *= {"L": 1, "R": -1}.get(name[0], 1)
        out[0, n] = 300 + c * x - s * y, 400 + s * x + c * y, 0.9
    return out


@pytest.mark.parametrize("angle", [0.0, 0.5, -2.0, 3.0])
def test_a_roi_goes_about_the_centre_and_turns_the_top_up(angle: float) -> None:
    centre = np.array([300.0, 400.0])
    top = centre + 100 * np.array([math.sin(angle), -math.cos(angle)])
    roi = roi_towards(centre, top)
    assert roi == pytest.approx([300, 400, 200 * ROI_MARGIN, angle])
    matrix = roi_matrix(roi)
    assert matrix @ [*centre, 1] == pytest.approx([CROP / 2, CROP / 2, 1])
    assert matrix @ [*top, 1] == pytest.approx([CROP / 2, CROP / 2 * (1 - 1 / ROI_MARGIN), 1])


@pytest.mark.parametrize("turn", [0.0, 1.0, math.pi, -1.5])
def test_the_roi_of_a_found_person_holds_every_point_and_turns_the_trunk_up(turn: float) -> None:
    points = standing(turn)
    (roi,) = roi_of_coco(points)
    in_crop = points[0, :, :2] @ roi_matrix(roi)[:2, :2].T + roi_matrix(roi)[:2, 2]
    assert in_crop.min() > 0
    assert in_crop.max() < CROP
    shoulders, hips = in_crop[5:7].mean(0), in_crop[11:13].mean(0)
    assert hips == pytest.approx([CROP / 2, CROP / 2])
    assert shoulders[0] == pytest.approx(CROP / 2)
    assert shoulders[1] < CROP / 2
    upright = roi_of_coco(standing())[0]
    assert roi[2] == pytest.approx(upright[2])
    assert math.remainder(roi[3] - turn, 2 * math.pi) == pytest.approx(0, abs=1e-9)


def test_points_of_no_score_do_not_widen_the_roi() -> None:
    points = standing()
    stray = points.copy()
    stray[0, 15, :2] += 1000
    assert roi_of_coco(stray)[0, 2] > 2 * roi_of_coco(points)[0, 2]
    stray[0, 15, 2] = 0.05
    points[0, 15, 2] = 0.05
    assert np.array_equal(roi_of_coco(stray), roi_of_coco(points))


def test_a_person_without_extent_has_a_roi_that_is_not_usable() -> None:
    nobody = np.zeros((1, 17, 3))
    roi = roi_of_coco(nobody)
    assert np.isfinite(roi).all()
    sides = np.array([[0, 0, side, 0] for side in (15, 17, 2500, 2600, np.nan)], float)
    picture = np.zeros((360, 640, 3), np.uint8)
    assert is_usable(sides, picture).tolist() == [False, True, True, False, False]
    assert not is_usable(roi, picture).any()


def test_the_joints_of_both_orders_are_the_same() -> None:
    coco = [POINT_ORDERS["coco_17"][n] for n in COCO_JOINTS]
    assert coco == [POINT_ORDERS["blazepose_33"][n] for n in BLAZEPOSE_JOINTS]
    assert len(coco) == 12


def test_people_are_one_where_most_joints_lie_within_a_share_of_the_roi() -> None:
    a = standing()[:, list(COCO_JOINTS), :2]
    assert rois_match(a, a + np.array([7.9, 0]), 100.0).all()
    assert not rois_match(a, a + np.array([8.1, 0]), 100.0).any()
    b = a.copy()
    b[:, :5] += 500
    assert rois_match(a, b, 100.0).all()


def test_a_crop_shows_where_a_landmark_is() -> None:
    """A dot at a place of the picture is at the place of the crop that the matrix says, shrunken or not."""
    for side in (200.0, 1100.0, 3000.0):
        picture = np.zeros((1600, 1200, 3), np.uint8)
        roi = np.array([610.0, 790.0, side, 0.4])
        dot = np.array([590.0, 815.0])
        cv2.circle(picture, (590, 815), round(side / 25), (255, 255, 255), -1)
        (crop,) = cut_rois(picture, roi[None])
        weight = crop[0].astype(np.float64)
        y, x = np.mgrid[:CROP, :CROP]
        middle = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
        want = roi_matrix(roi) @ [*dot, 1]
        assert np.abs(middle - want[:2]).max() < 0.1, side


def test_crops_are_white_to_one_and_repeat_the_edge() -> None:
    picture = np.full((40, 60, 3), 255, np.uint8)
    crops = cut_rois(picture, np.array([[30.0, 20, 30, 0], [0, 0, 400, 1.0], [-300, 50, 100, 0]]))
    assert crops.dtype == np.float32
    assert crops.shape == (3, 3, CROP, CROP)
    assert (crops == 1).all()
    assert cut_rois(picture, np.zeros((0, 4))).shape == (0, 3, CROP, CROP)
