"""Keypoints of resized pictures are found by what the views agree on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from recordings import SMALL_PEOPLE, SMALL_RIG, figure, ring, said, seen, state, write_recording

from models.geometry.picture_scale import find_camera_scales, find_picture_scale
from pipeline.findings import Finding
from pipeline.formats.keypoints.points import resize
from pipeline.inputs import identity_of_inputs
from pipeline.recording import Recording, find_recording
from pipeline.skeleton import BODY_25
from stages.inspect import inspect

RIG = ring(4)
IMAGE = seen(RIG, figure(np.arange(24) / 8), noise_px=2.0)[:, :, None].astype(np.float32)
ORDERS = ["body_25", "body_25b"]
LEGS = [i for i, name in enumerate(BODY_25.names) if name.endswith(("Knee", "Ankle", "Toe", "Heel"))]


@pytest.mark.parametrize(
    "factor",
    [(3, 3), (0.5, 0.5), (1280 / 656, 1280 / 656), (1.25, 1.25), (4.7, 4.7), (1, 2), (2, 720 / 640)],
)
def test_the_factor_is_found(factor: tuple[float, float]) -> None:
    made = resize(IMAGE, (1 / factor[0], 1 / factor[1]))
    found = find_picture_scale(RIG, made, ORDERS)
    assert found is not None
    assert found.factor == pytest.approx(factor, rel=4e-3)
    assert found.applied


@pytest.mark.parametrize("views", [2, 3, 4])
def test_pictures_of_the_right_size_are_left_alone(views: int) -> None:
    rig = ring(views)
    image = seen(rig, figure(np.arange(24) / 8), noise_px=4.0)[:, :, None].astype(np.float32)
    assert find_picture_scale(rig, image, ORDERS) is None


def test_a_wrong_calibration_is_not_mended_by_a_factor() -> None:
    turned = replace(RIG, R=np.roll(RIG.R, 1, axis=0), t=np.roll(RIG.t, 1, axis=0))
    found = find_picture_scale(turned, IMAGE, ORDERS)
    assert found is None or not found.applied


@pytest.mark.parametrize("views", [3, 4])
@pytest.mark.parametrize("factor", [(2, 2), (0.5, 0.5), (1.5, 1.5), (1.27, 1.27), (2, 1.5)])
def test_the_factor_of_one_camera_is_found(views: int, factor: tuple[float, float]) -> None:
    rig = ring(views)
    made = seen(rig, figure(np.arange(24) / 8), noise_px=2.0)[:, :, None].astype(np.float32)
    made[1] = resize(made[1], (1 / factor[0], 1 / factor[1]))
    upper_body = made.copy()
    upper_body[1][..., LEGS, :] = np.nan, np.nan, 0
    for image in (made, upper_body):
        found = find_camera_scales(rig, image)
        assert [*found] == [1]
        assert found[1].factor == pytest.approx(factor, rel=6e-3)


@pytest.mark.parametrize("degrees", [2, 5, 10, 20])
@pytest.mark.parametrize("axis", range(3))
def test_a_turned_camera_is_not_mended_by_a_factor(degrees: float, axis: int) -> None:
    turn = np.asarray(cv2.Rodrigues(np.radians(degrees) * np.eye(3)[axis])[0])
    turned = replace(
        RIG, R=np.stack([turn @ RIG.R[0], *RIG.R[1:]]), t=np.stack([turn @ RIG.t[0], *RIG.t[1:]])
    )
    assert find_camera_scales(turned, IMAGE) == {}


def test_a_camera_of_pictures_smaller_than_the_others_is_told_and_read(tmp_path: Path) -> None:
    """All but one of half the size, that one of a quarter."""
    people = resize(IMAGE[:, :, 0], (0.5, 0.5))
    people[2] = resize(people[2], (0.5, 0.5))
    write_recording(tmp_path, RIG, [people])
    found = inspect(find_recording(tmp_path))
    assert found.point_order.picture_scale == ((2, 2), (2, 2), (4, 4), (2, 2))
    assert said(found, r"scale: \{cam01: 2, cam02: 2, cam03: 4, cam04: 2\}")


def test_a_camera_of_resized_pictures_is_told_and_read(tmp_path: Path) -> None:
    people = SMALL_PEOPLE.copy()
    people[1] = resize(people[1], (0.5, 0.5))
    write_recording(tmp_path, SMALL_RIG, [people])
    found = inspect(find_recording(tmp_path))
    (finding,) = resized(found)
    assert (finding.camera, found.point_order.picture_scale) == ("cam02", ((1, 1), (2, 2), (1, 1)))
    assert said(found, r"recording.yaml can state it, keypoints: \{scale: \{cam02: 2\}\}, or that it is 1")
    for scale in ("{cam02: 2}", "[1, 1]", "{cam02: 1}"):
        state(tmp_path, f"{{keypoints: {{scale: {scale}}}, fps: 10}}")
        stated = inspect(find_recording(tmp_path))
        assert resized(stated) == []
        assert stated.point_order.picture_scale[1] == ((2, 2) if scale == "{cam02: 2}" else (1, 1))


@pytest.mark.parametrize(("scale", "identity"), [((), [1, 1]), (((2, 2),) * 2, [2, 2])])
def test_one_scale_of_all_cameras_is_identified_as_before_there_were_several(
    tmp_path: Path, scale: tuple[tuple[float, float], ...], identity: list[float]
) -> None:
    write_recording(tmp_path, SMALL_RIG, [SMALL_PEOPLE])
    found = inspect(find_recording(tmp_path))
    made = replace(found, known_order=replace(found.point_order, picture_scale=scale))
    assert identity_of_inputs(made)["format"]["picture_scale"] == identity
    several = replace(found, known_order=replace(found.point_order, picture_scale=((2, 2), (1, 1))))
    assert identity_of_inputs(several)["format"]["picture_scale"] == [[2, 2], [1, 1]]


def resized(finding: Recording) -> list[Finding]:
    return [f for f in finding.findings if f.code == "keypoints_resized"]


def test_a_third_of_the_size_is_not_taken_for_another_unit(tmp_path: Path) -> None:
    write_recording(tmp_path, RIG, [resize(IMAGE[:, :, 0], (1 / 3, 1 / 3))])
    found = inspect(find_recording(tmp_path))
    assert found.point_order.picture_scale == ((3, 3),) * 4
    assert not [f for f in found.findings if f.code == "person_size"]


def test_a_recording_of_resized_pictures_is_told_and_read(tmp_path: Path) -> None:
    people = resize(SMALL_PEOPLE, (1 / 3, 1 / 3))
    write_recording(tmp_path, SMALL_RIG, [people])
    plain = inspect(find_recording(tmp_path))
    assert plain.point_order.picture_scale == ((3, 3),) * 3
    assert len(resized(plain)) == 1
    assert said(plain, r"times 3 the cameras agree .* That is applied; .* keypoints: \{scale: 3\}")
    read = plain.people(np.arange(24))[..., 0, :, :2]
    there = np.isfinite(read)
    assert np.abs(read - SMALL_PEOPLE[..., :2])[there].max() < 1.1
    state(tmp_path, "keypoints: {scale: [3, 3]}")
    stated = inspect(find_recording(tmp_path))
    assert resized(stated) == []
    assert np.nanmax(np.abs(stated.people(np.arange(24))[..., 0, :, :2] - read)) == 0
    state(tmp_path, "keypoints: {scale: 1, format: body_25}")
    assert resized(inspect(find_recording(tmp_path))) == []
