"""Landmarks in crops."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
from detector_scenes import frames, needs_balancing, networks
from test_detector_refinement import slow

from models.detectors.landmarks import CENTRE, ORDER, TOP, Landmarks, confidence, place_landmarks
from models.detectors.networks import Network
from models.detectors.refinement import refine_keypoints
from models.detectors.rois import cut_rois, roi_matrix, roi_towards
from pipeline.skeleton import POINT_ORDERS

SUBJECT_CAM03 = np.array([[560.0, 790.0, 1150.0, 0.1]])
"""ROI of the man in the first frame of the third camera."""


def landmarks(people: int) -> Landmarks:
    shape = (people, 33)
    count, roi = np.arange(people, dtype=float), np.zeros((people, 4))
    return Landmarks(np.zeros((*shape, 2)), np.ones(shape), count, roi, roi)


@pytest.mark.parametrize(
    ("visibility", "heat_peak", "want"),
    [(1, 1, 1), (0.5, 0.7, 1), (0.25, 1, 0.5), (0.9, 0.5, 0.5), (0.1, 0.4, 0.05), (1, 0.3, 0), (0, 1, 0)],
)
def test_confidence_falls_with_low_visibility_and_low_peaks(
    visibility: float, heat_peak: float, want: float
) -> None:
    found = confidence(np.full((1, 33), visibility), np.full((1, 33), heat_peak))
    assert found == pytest.approx(np.full((1, 33), want))


def test_landmarks_come_back_from_the_crop_to_the_picture() -> None:
    """A network that sees its 39 points at known places of the crop."""
    rng = np.random.default_rng(0)
    roi = np.array([[500.0, 400, 600, 0.7], [100, 900, 90, -3.0]])
    in_crop = rng.uniform(20, 236, (2, 39, 2))
    raw = np.concatenate([in_crop + 0.5, rng.normal(0, 1, (2, 39, 3))], -1)
    out = {
        "landmarks": raw.reshape(2, -1).astype(np.float32),
        "presence": np.array([[0.9], [0.2]], np.float32),
        "heatmaps": np.full((2, 39, 64, 64), -9, np.float32),  # sure of nothing: nothing is refined
    }
    session = SimpleNamespace(run=lambda names, given: [out[n] for n in names])
    network = Network(
        "fake", session, {"input": (None, 3, 256, 256)}, {n: v.shape for n, v in out.items()}, "cpu", ""
    )
    found = place_landmarks(network, np.zeros((2, 3, 256, 256), np.float32), roi)
    for n in range(2):
        again = found.xy_px[n] @ roi_matrix(roi[n])[:2, :2].T + roi_matrix(roi[n])[:2, 2]
        assert np.abs(again - in_crop[n, :33]).max() < 1e-4
        ends = np.linalg.inv(roi_matrix(roi[n]))
        centre, top = (ends[:2, :2] @ in_crop[n, k] + ends[:2, 2] for k in (CENTRE, TOP))
        assert found.next_roi[n] == pytest.approx(roi_towards(centre, top), rel=1e-5)
    assert found.person == pytest.approx([0.9, 0.2])
    assert not found.confidence.any()
    assert found.points.shape == (2, 33, 3)
    assert found.points.dtype == np.float32
    assert len(POINT_ORDERS[ORDER]) == 33


def test_nobody_and_some() -> None:
    none = place_landmarks(
        networks().landmarks.network, np.zeros((0, 3, 256, 256), np.float32), np.zeros((0, 4))
    )
    assert len(none) == 0
    assert none.points.shape == (0, 33, 3)
    three = landmarks(people=3)
    assert three.select([2, 0]).person.tolist() == [2, 0]
    assert len(three.select([])) == 0


@needs_balancing
def test_the_man_in_a_picture() -> None:
    (picture,) = frames(3)
    network = networks().landmarks.network
    first = place_landmarks(network, cut_rois(picture, SUBJECT_CAM03), SUBJECT_CAM03)
    assert first.person[0] > 0.99
    second = place_landmarks(network, cut_rois(picture, first.next_roi), first.next_roi)
    assert np.median(np.linalg.norm(second.xy_px - first.xy_px, axis=-1)) < 0.02 * first.roi[0, 2]
    assert (second.confidence > 0.3).mean() > 0.8
    name = POINT_ORDERS[ORDER].index
    xy = second.xy_px[0]
    assert xy[name("LShoulder"), 1] < xy[name("LHip"), 1] < xy[name("LKnee"), 1] < xy[name("LAnkle"), 1]
    assert xy[name("LShoulder"), 0] < xy[name("RShoulder"), 0]  # seen from behind
    elsewhere = np.array([[200.0, 1700.0, 300.0, 0.0]])
    assert place_landmarks(network, cut_rois(picture, elsewhere), elsewhere).person[0] < 0.5


@needs_balancing
def test_landmarks_of_a_mirrored_crop_are_mirrored() -> None:
    names, network = POINT_ORDERS[ORDER], networks("heavy").landmarks.network
    other_side = [names.index({"L": "R", "R": "L"}.get(n[0], n[0]) + n[1:]) for n in names]
    people = np.concatenate([cut_rois(frames(3, first)[0], SUBJECT_CAM03) for first in (0, 30, 60, 90)])
    whole = np.tile([128.0, 128, 256, 0], (len(people), 1))  # the crop itself
    as_is = place_landmarks(network, people, whole)
    mirrored = place_landmarks(network, np.ascontiguousarray(people[..., ::-1]), whole)
    clear = (as_is.confidence > 0.5) & (mirrored.confidence[:, other_side] > 0.5)
    x = as_is.xy_px[..., 0] + mirrored.xy_px[:, other_side, 0]
    assert clear.sum() > 60
    assert np.median(x[clear]) == pytest.approx(255, abs=0.6)  # pixels 0 to 255 of the crop


@needs_balancing
def test_real_heat_maps_refine_in_a_patch_as_on_the_whole_map() -> None:
    crops = np.concatenate([cut_rois(frames(camera)[0], SUBJECT_CAM03) for camera in (3, 4)])
    out = networks().landmarks.network.run(crops)
    start = out["landmarks"].reshape(2, 39, 5)[:, :TOP, :2].astype(np.float64) / 4
    found = refine_keypoints(start, out["heatmaps"][:, :TOP])
    moved = np.argwhere((found != start).any(-1))
    assert len(moved) > 50
    away = [np.abs(found[n, k] - slow(start[n, k], out["heatmaps"][n, k])).max() for n, k in moved]
    assert 4 * np.percentile(away, 95) < 0.002  # pixels of 256
    assert 4 * max(away) < 0.02


@needs_balancing
def test_people_of_several_pictures_in_one_batch_get_the_bits_of_one_by_one() -> None:
    rng = np.random.default_rng(2)
    roi = SUBJECT_CAM03 + rng.normal(0, 1, (7, 4)) * [40, 40, 60, 0.2]
    crops = np.concatenate([cut_rois(frames(1 + n % 4)[0], roi[n : n + 1]) for n in range(7)])
    together = place_landmarks(networks().landmarks.network, crops, roi)
    for n in range(7):
        one = place_landmarks(networks().landmarks.network, crops[n : n + 1], roi[n : n + 1])
        for field in fields(Landmarks):
            assert np.array_equal(getattr(one, field.name)[0], getattr(together, field.name)[n]), field.name
