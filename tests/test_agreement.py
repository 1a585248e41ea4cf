"""Cameras that agree, are late, are off, or are exchanged."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import figure, ring, seen

from models.geometry.agreement import (
    Agreement,
    compare_cameras,
    count_people_at_once,
    find_bodies,
    find_disagreement,
    find_exchanged,
    nearest_detection,
)
from models.geometry.misplaced import find_misplaced
from pipeline.cameras import Rig

TIME = np.arange(40) / 8


def test_people_at_once_are_those_whom_two_views_show() -> None:
    rig = ring(4)
    one, two = (seen(rig, figure(TIME, at)).astype(np.float32) for at in ((0.8, -0.5), (-0.7, 0.6)))
    alone = two.copy()
    alone[1:] = 0  # in one view
    for people, count in (((one,), 1), ((one, alone), 1), ((one, two), 2), ((0 * one,), 0)):
        assert count_people_at_once(rig, np.stack(people, 2)) == count
    assert count_people_at_once(rig.select(rig.names[:1]), np.stack([one, two], 2)[:1]) == 2
    brief = np.stack([one, two], 2)
    brief[:, 1:, 1] = 0  # in one frame, which may be a chance
    assert count_people_at_once(rig, brief) == 1


def test_exchanged_cameras_are_found_by_what_cameras_show_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, searches = ring(5), []
    right = seen(rig, figure(TIME, (0.8, -0.5)))[:, :, None].astype(np.float32)
    right[0] = 0  # a camera that shows nobody

    def counted(*args):
        searches.append(args)
        return find_bodies(*args)

    monkeypatch.setattr("models.geometry.agreement.find_bodies", counted)
    exchanged = right[[0, 2, 1, 3, 4]]
    for image in (right, exchanged):
        image[2:, 15:] = 0  # the second camera is alone most of the time
    assert find_exchanged(rig, exchanged) == (1, 2)
    assert len(searches) <= 1 + 6, "no pair with a camera that shows nobody"
    searches.clear()
    assert find_exchanged(rig, right) is None
    assert len(searches) == 1


def compare(rig: Rig, image: np.ndarray) -> Agreement:
    """People (V, T, P, K, 3) in the pictures as one stretch of frames."""
    xy = rig.undistort_views(image[..., :2])
    return compare_cameras(rig, xy, image[..., 2].astype(float), [TIME[: image.shape[1]]])


def test_a_camera_is_not_doubted_for_a_few_frames() -> None:
    rig = ring(4)
    right = seen(rig, figure(TIME[:6]))[:, :, None].astype(np.float32)
    other = seen(rig, figure(TIME[:6], (1.0, 1.0), 2.0))[:, :, None].astype(np.float32)
    for count in (3, 4):
        image = right.copy()
        image[2, :count], image[2, 5:] = other[2, :count], other[2, 5:]
        image[1, 5:] = image[3, 5:] = 0  # in the last frame no two agree: it tells of none who stands apart
        found = find_disagreement(rig, image, 6)
        assert (found is None) == (count == 3)
    assert found is not None
    assert found.disagreeing.tolist() == [0, 0, 4, 0]
    assert found.compared.tolist() == [5, 5, 5, 5]


def test_a_camera_that_shows_somebody_else_alone_is_not_doubted() -> None:
    rig = ring(5)
    image = np.stack([seen(rig, figure(TIME, (0.5, y))) for y in (0.6, -0.6)], 2).astype(np.float32)
    image[0, :, 0] = image[3, :, 1] = np.nan, np.nan, 0  # each is behind the other for one camera
    assert find_disagreement(rig, image, len(TIME)) is None
    found = compare(rig, image)
    behind = found.person == 0
    assert behind.sum() == 1
    assert np.isnan(found.left_out_px[behind]).all()
    assert found.left_out_px[~behind].max() < 3
    assert find_misplaced(rig, image) is None
    image[1, ..., 0] += 60  # a camera that is wrong for both is doubted, and it alone
    assert compare(rig, image).least_left_out_px[1] > 50  # though it matches neither in most frames
    misplaced = find_misplaced(rig, image)
    assert misplaced is not None
    assert misplaced.camera == 1


def test_errors_that_last_are_told_from_noise() -> None:
    rig = ring(4)
    image = seen(rig, figure(TIME), noise_px=12)[:, :, None].astype(np.float32)
    noisy = compare(rig, image)
    assert noisy.residual_px.max() > 5
    assert noisy.lasting_px.max() < 2
    assert noisy.least_left_out_px.max() < 4
    image = seen(rig, figure(TIME), noise_px=4)[:, :, None].astype(np.float32)
    assert np.isnan(compare(rig, image[:, :1]).lasting_px).all()  # of a single frame
    image[1, ..., 0] += 30
    shifted = compare(rig, image)
    assert shifted.lasting_px[1] > 15
    assert shifted.least_left_out_px[1] == pytest.approx(30, rel=0.3)
    assert shifted.lasting_px[[0, 2, 3]].max() < 4


def test_a_camera_that_seldom_shows_the_person_is_not_judged_by_it() -> None:
    rig = ring(4)
    image = seen(rig, figure(TIME))[:, :, None].astype(np.float32)
    other = seen(rig, figure(TIME, (1.2, 1.2), 2.0))[:, :, None].astype(np.float32)
    for count in (15, 30):  # of 40 frames
        mixed = image.copy()
        mixed[2, count:] = other[2, count:]
        assert np.isnan(compare(rig, mixed).lasting_px).tolist() == [False, False, count == 15, False]


def test_cameras_that_disagree_when_exchanged_too_are_not_exchanged() -> None:
    rig = ring(5)
    image = seen(rig, figure(TIME, (0.8, -0.5)))[:, :, None].astype(np.float32)[[0, 2, 1, 3, 4]]
    assert find_exchanged(rig, image) == (1, 2)
    image[1, ::2] = seen(rig, figure(TIME, (-0.9, 0.9), 2.0))[1, ::2, None]
    assert find_exchanged(rig, image) is None


def test_who_stands_nearest_to_where_the_person_should_be() -> None:
    expected = np.zeros((3, 25, 2))
    xy = np.stack([np.full((3, 25, 2), 40.0), np.full((3, 25, 2), 10.0), np.full((3, 25, 2), np.nan)], 1)
    confidence = np.ones((3, 3, 25))
    confidence[1, 1] = 0
    found = nearest_detection(xy, confidence, expected)
    assert (found == np.array([10, 40, 10])[:, None, None]).all()
