"""What keypoint numbers mean: every format comes to BODY_25, and limbs tell which format it is."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import figure, ring, seen

from pipeline.errors import InputError
from pipeline.joints import BODY_25, FORMATS
from pipeline.keypoints import MIN_CONFIDENCE
from pipeline.skeletons import (
    TOP_CONFIDENCE,
    KeypointFormat,
    best_bodies,
    body_size,
    decide_format,
    decide_format_in_pictures,
    find_bodies,
    find_exchanged,
    find_scales,
    find_unit,
    limb_misfit,
    picture_misfit,
    share_outside,
    to_body_25,
    to_pixels,
)

TIME = np.arange(40) / 8
BODY = figure(TIME)
UNKNOWN = KeypointFormat("body_25", "")


def in_order(name: str) -> np.ndarray:
    return np.stack([BODY[point] for point in FORMATS[name]], 1)


def image(name: str, views: int = 3, noise_px: float = 1.0) -> np.ndarray:
    return seen(ring(views), BODY, name, noise_px)[:, :, None].astype(np.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_every_point_lands_where_its_name_says(name: str) -> None:
    points = np.concatenate([in_order(name), np.full((40, len(FORMATS[name]), 1), 0.5)], -1)
    points = points[..., [0, 1, 3]].astype(np.float32)  # x, y of the world will do for pixels
    found = to_body_25(points, name)
    assert found.shape == (40, 25, 3)
    for i, point in enumerate(BODY_25):
        if point in FORMATS[name]:
            assert np.array_equal(found[:, i], points[:, FORMATS[name].index(point)]), point
        elif point in ("Neck", "MidHip"):
            side = "Shoulder" if point == "Neck" else "Hip"
            middle = (BODY[f"L{side}"] + BODY[f"R{side}"])[:, :2] / 2
            assert np.allclose(found[:, i, :2], middle, atol=1e-6)
            assert (found[:, i, 2] == 0.5).all()
        else:
            assert "coco" in name
            assert np.isnan(found[:, i, :2]).all()
            assert (found[:, i, 2] == 0).all()


def test_a_midpoint_needs_both_ends_and_has_the_lower_confidence() -> None:
    points = np.full((2, 17, 3), 0.5, np.float32)
    points[0, FORMATS["coco_17"].index("LHip"), 2] = 0.2
    points[1, FORMATS["coco_17"].index("LHip")] = np.nan, np.nan, 0
    hip = to_body_25(points, "coco_17")[:, BODY_25.index("MidHip")]
    assert hip[0].tolist() == pytest.approx([0.5, 0.5, 0.2])
    assert np.isnan(hip[1, :2]).all()
    assert hip[1, 2] == 0


def test_a_wrong_number_of_points_is_a_bug() -> None:
    with pytest.raises(ValueError, match="coco_17 has 17 points, got 25"):
        to_body_25(np.zeros((1, 25, 3), np.float32), "coco_17")


@pytest.mark.parametrize("name", ["body_25", "body_25b"])
@pytest.mark.parametrize("views", [2, 4])
def test_the_two_orders_of_25_points_are_told_apart(name: str, views: int) -> None:
    bodies = best_bodies(ring(views), image(name, views))
    found, doubts = decide_format(bodies, UNKNOWN, None)
    assert found.name == name
    assert doubts == []
    assert found.margin is not None
    assert found.margin > 4
    assert found.misfit is not None
    assert found.misfit < 0.15
    assert "times better than as" in found.how


def test_a_rigid_figure_has_no_misfit() -> None:
    assert limb_misfit(in_order("halpe_26"), "halpe_26") < 0.1  # all of it from the ratios
    assert body_size(in_order("body_25"), ["body_25", "body_25b"]) == pytest.approx(
        0.28 + 0.25 + 0.42 + 0.4, rel=0.02
    )


def test_shuffled_points_are_no_format() -> None:
    bodies = in_order("body_25")[:, np.random.default_rng(3).permutation(25)]
    with pytest.raises(InputError, match=r"cannot be told.*body_25b? \d+ %.*keypoints: \{format: ...\}"):
        decide_format(bodies, UNKNOWN, None)
    for seed in range(20):
        shuffled = in_order("coco_17")[:, np.random.default_rng(seed).permutation(17)]
        with pytest.raises(InputError, match="cannot be told"):
            decide_format(shuffled, KeypointFormat("coco_17", ""), None)


def test_too_few_frames_cannot_tell() -> None:
    with pytest.raises(InputError, match="25 keypoints can be body_25 or body_25b, and too few frames"):
        decide_format(in_order("body_25")[:2], UNKNOWN, None)
    found, doubts = decide_format(in_order("coco_17")[:2], KeypointFormat("coco_17", ""), None)
    assert found.name == "coco_17"
    assert "unchecked" in doubts[0]
    assert found.misfit is None


def test_what_is_stated_counts_and_is_doubted() -> None:
    found, doubts = decide_format(in_order("body_25b"), UNKNOWN, "body_25")
    assert (found.name, found.how) == ("body_25", "stated in recording.yaml")
    assert "states the keypoint format body_25, but read as body_25b limbs fit" in doubts[0]
    assert decide_format(in_order("body_25b"), UNKNOWN, "body_25b")[1] == []


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


def test_exchanged_cameras_are_found_by_what_cameras_show_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, searches = ring(5), []
    right = seen(rig, figure(TIME, (0.8, -0.5)))[:, :, None].astype(np.float32)
    right[0] = 0  # a camera that shows nobody

    def counted(*args):
        searches.append(args)
        return find_bodies(*args)

    monkeypatch.setattr("pipeline.skeletons.find_bodies", counted)
    exchanged = right[[0, 2, 1, 3, 4]]
    for image in (right, exchanged):
        image[2:, 15:] = 0  # the second camera is alone most of the time
    assert find_exchanged(rig, exchanged) == (1, 2)
    assert len(searches) <= 1 + 6, "no pair with a camera that shows nobody"
    searches.clear()
    assert find_exchanged(rig, right) is None
    assert len(searches) == 1


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


def test_keypoints_of_a_larger_picture_lie_outside() -> None:
    pixels, size = image("body_25"), ring(3).size
    assert share_outside(pixels, size).max() == 0
    assert share_outside(pixels * np.float32(2.5), size).min() > 0.2


@pytest.mark.parametrize("name", FORMATS)
def test_pictures_tell_the_format(name: str) -> None:
    points = image(name)
    found, doubts = decide_format_in_pictures(points, UNKNOWN, None)
    assert found.name == name
    assert doubts == []
    if len(FORMATS[name]) == 25:
        other = "body_25b" if name == "body_25" else "body_25"
        assert found.margin is not None
        assert found.margin > 1.7
        assert picture_misfit(points, other) / picture_misfit(points, name) == pytest.approx(found.margin)
        assert "times closer together" in found.how


def test_pictures_doubt_a_format_that_is_stated_wrong() -> None:
    found, doubts = decide_format_in_pictures(image("body_25"), UNKNOWN, "body_25b")
    assert found.name == "body_25b"
    assert "states the keypoint format body_25b, but read as body_25" in doubts[0]
    assert decide_format_in_pictures(image("body_25"), UNKNOWN, "body_25")[1] == []


def test_pictures_that_do_not_tell_are_refused() -> None:
    noise = np.random.default_rng(0).normal(500, 100, (2, 30, 1, 25, 3)).astype(np.float32)
    noise[..., 2] = 1
    with pytest.raises(
        InputError, match=r"25 keypoints can be .* the pictures do not tell .*keypoints: {format"
    ):
        decide_format_in_pictures(noise, UNKNOWN, None)
    noise[..., 2] = 0
    assert np.isnan(picture_misfit(noise, "body_25"))
    with pytest.raises(InputError, match="the pictures do not tell"):
        decide_format_in_pictures(noise, UNKNOWN, None)
