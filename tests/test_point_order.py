"""Limbs and pictures tell in which order keypoints are, and what their scales are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from recordings import figure, ring, seen

from models.geometry.agreement import triangulate_best_people
from models.geometry.point_order import (
    TOP_CONFIDENCE,
    decide_order,
    decide_order_in_pictures,
    find_scales,
    limb_misfit,
    picture_misfit,
    share_outside,
)
from pipeline.errors import InputError
from pipeline.findings import Finding
from pipeline.formats.keypoints.files import MIN_CONFIDENCE
from pipeline.formats.keypoints.points import PointOrder, to_pixels
from pipeline.skeleton import POINT_ORDERS

Decide = Callable[[np.ndarray, PointOrder, str | None], tuple[PointOrder, list[Finding]]]
TIME = np.arange(40) / 8
BODY = figure(TIME)
UNKNOWN = PointOrder("body_25", "")


def in_order(name: str) -> np.ndarray:
    return np.stack([BODY[point] for point in POINT_ORDERS[name]], 1)


def image(name: str, views: int = 3, noise_px: float = 1.0) -> np.ndarray:
    return seen(ring(views), BODY, name, noise_px)[:, :, None].astype(np.float32)


@pytest.mark.parametrize("name", ["body_25", "body_25b", "body_15", "mpi_15"])
@pytest.mark.parametrize("views", [2, 4])
def test_orders_of_as_many_points_are_told_apart(name: str, views: int) -> None:
    bodies = triangulate_best_people(ring(views), image(name, views))
    found, doubts = decide_order(bodies, UNKNOWN, None)
    assert found.name == name
    assert doubts == []
    assert found.margin is not None
    assert found.margin > 3.5
    assert found.misfit is not None
    assert found.misfit < 0.15
    assert "times better than as" in found.how


def test_a_rigid_figure_has_no_misfit() -> None:
    assert limb_misfit(in_order("halpe_26"), "halpe_26") < 0.1  # all of it from the ratios


def test_shuffled_points_are_no_format() -> None:
    bodies = in_order("body_25")[:, np.random.default_rng(3).permutation(25)]
    with pytest.raises(InputError, match=r"cannot be told.*body_25b? \d+ %.*keypoints: \{format: ...\}"):
        decide_order(bodies, UNKNOWN, None)
    for seed in range(20):
        shuffled = in_order("coco_17")[:, np.random.default_rng(seed).permutation(17)]
        with pytest.raises(InputError, match="cannot be told"):
            decide_order(shuffled, PointOrder("coco_17", ""), None)


def test_too_few_frames_cannot_tell() -> None:
    with pytest.raises(InputError, match="25 keypoints can be body_25 or body_25b, and too few frames"):
        decide_order(in_order("body_25")[:2], UNKNOWN, None)
    found, doubts = decide_order(in_order("coco_17")[:2], PointOrder("coco_17", ""), None)
    assert found.name == "coco_17"
    assert [d.code for d in doubts] == ["format_unchecked"]
    assert found.misfit is None


def test_what_is_stated_counts_and_is_doubted() -> None:
    found, doubts = decide_order(in_order("body_25b"), UNKNOWN, "body_25")
    assert (found.name, found.how) == ("body_25", "stated in recording.yaml")
    assert [d.code for d in doubts] == ["format_doubtful"]
    assert "read as body_25b limbs fit" in doubts[0].sentence
    assert decide_order(in_order("body_25b"), UNKNOWN, "body_25b")[1] == []


def test_confidences_above_one_and_fractions_of_the_picture() -> None:
    rig, pixels = ring(3), image("body_25")
    written = pixels.copy()
    written[..., :2] /= (rig.size[:, None, None, None] - 1).astype(np.float32)
    written[..., 2] *= 5
    found = find_scales(written, UNKNOWN)
    assert found.normalised
    tops = [np.percentile(c[c > 0], 95) for c in written[..., 2]]
    assert TOP_CONFIDENCE * np.array(found.confidence_scale) == pytest.approx(tops)
    read = to_pixels(written, found, rig.size)
    assert np.abs(read[..., :2] - pixels[..., :2]).max() < 0.01
    assert TOP_CONFIDENCE <= read[..., 2].max() <= 1
    plain = to_pixels(pixels, find_scales(pixels, UNKNOWN), rig.size)
    assert np.abs(read[..., 2] - plain[..., 2]).max() < 1e-5
    assert np.isnan(plain[plain[..., 2] == 0]).sum() == 2 * (plain[..., 2] == 0).sum()
    assert plain[..., 2][plain[..., 2] > 0].min() >= MIN_CONFIDENCE


def test_one_camera_with_another_scale_and_one_outlier_change_nothing() -> None:
    rig, pixels = ring(3), image("body_25")
    plain = to_pixels(pixels, find_scales(pixels, UNKNOWN), rig.size)
    other = pixels.copy()
    other[1, ..., 2] *= 8
    other[2, ..., 2] *= 0.1
    other[0, 3, 0, 5] = 400, 300, 1000
    read = to_pixels(other, find_scales(other, UNKNOWN), rig.size)
    same = np.ones(read.shape[:-1], bool)
    same[0, 3, 0, 5] = False
    assert np.abs(read[..., 2] - plain[..., 2])[same].max() < 0.01
    assert read[0, 3, 0, 5, 2] == 1


def test_coordinates_about_zero_are_refused() -> None:
    with pytest.raises(InputError, match="lie between -1 and 1; write them in pixels"):
        find_scales(image("body_25") / np.float32(2000) - np.array([0.5, 0.5, 0], np.float32), UNKNOWN)


def test_a_little_less_than_zero_in_pixels_is_outside_of_the_picture_only() -> None:
    pixels = image("body_25")
    pixels[0, 3, 0, 4, :2] = -20
    assert not find_scales(pixels, UNKNOWN).normalised


@pytest.mark.parametrize("decide", [decide_order, decide_order_in_pictures])
def test_a_stated_format_is_doubted_where_another_fits_clearly_better(
    decide: Decide, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other, codes in ((0.08, []), (0.04, ["format_doubtful"])):
        costs = {"body_25": 0.1, "body_25b": other}
        for misfit in ("limb_misfit", "picture_misfit"):
            monkeypatch.setattr(
                f"models.geometry.point_order.{misfit}", lambda _, name, costs=costs: costs[name]
            )
        found, doubts = decide(np.zeros((3, 25, 3), np.float32), UNKNOWN, "body_25")
        assert found.name == "body_25"
        assert [d.code for d in doubts] == codes


def test_one_limb_tells_nothing() -> None:
    bodies, names = in_order("body_25"), POINT_ORDERS["body_25"]
    known = [names.index(n) for n in ("LShoulder", "LElbow", "LWrist")]
    bodies[:, [k for k in range(25) if k not in known]] = np.nan
    assert np.isnan(limb_misfit(bodies, "body_25"))


def test_keypoints_of_a_larger_picture_lie_outside() -> None:
    pixels, size = image("body_25"), ring(3).size
    assert share_outside(pixels, size).max() == 0
    unseen = pixels.copy()
    unseen[:, ::2] = -9999, -9999, 0
    assert share_outside(unseen, size).max() == 0
    assert share_outside(pixels * np.float32(2.5), size).min() > 0.2


@pytest.mark.parametrize("name", sorted(POINT_ORDERS))
def test_pictures_tell_the_format(name: str) -> None:
    points = image(name)
    found, doubts = decide_order_in_pictures(points, UNKNOWN, None)
    assert found.name == name
    assert doubts == []
    if len(POINT_ORDERS[name]) == 15:
        assert found.margin is not None
        assert found.margin > 1.45
    if len(POINT_ORDERS[name]) == 25:
        other = "body_25b" if name == "body_25" else "body_25"
        assert found.margin is not None
        assert found.margin > 1.7
        assert picture_misfit(points, other) / picture_misfit(points, name) == pytest.approx(found.margin)
        assert "times closer together" in found.how


def test_pictures_doubt_a_format_that_is_stated_wrong() -> None:
    found, doubts = decide_order_in_pictures(image("body_25"), UNKNOWN, "body_25b")
    assert found.name == "body_25b"
    assert [d.code for d in doubts] == ["format_doubtful"]
    assert decide_order_in_pictures(image("body_25"), UNKNOWN, "body_25")[1] == []


def test_pictures_that_do_not_tell_are_refused() -> None:
    noise = np.random.default_rng(0).normal(500, 100, (2, 30, 1, 25, 3)).astype(np.float32)
    noise[..., 2] = 1
    with pytest.raises(
        InputError, match=r"25 keypoints can be .* the pictures do not tell .*keypoints: {format"
    ):
        decide_order_in_pictures(noise, UNKNOWN, None)
    noise[..., 2] = 0
    assert np.isnan(picture_misfit(noise, "body_25"))
    with pytest.raises(InputError, match="the pictures do not tell"):
        decide_order_in_pictures(noise, UNKNOWN, None)
