"""Detections of several people: what bodies hide, and every fault as often as it was asked for."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from crowds import Crowd, along_y, film, stick, walkers

from models.synthetic.detections import OCCLUSION, CrowdDetector, Faults, LabelledDetections
from models.synthetic.detector import Noise, simulate_detections
from models.synthetic.occlusion import find_occluders
from pipeline.skeleton import BODY_25

EXACT = Noise(0.0, 0.0, 0.0, 0.0, 0)
NONE = Faults()


@cache
def walking() -> Crowd:
    return walkers(3, 3, 4.0, seed=1)


def found(faults: Faults, noise: Noise = EXACT) -> LabelledDetections:
    crowd = walking()
    bodies = crowd.world[::12].reshape(-1, 25, 3)
    return CrowdDetector(crowd.rig, noise, faults, bodies).find(crowd.world, 0)


def of_person(found: LabelledDetections, p: int) -> np.ndarray:
    """(V, T, 25, 3) everything that is found of somebody."""
    mine = (found.person == p)[..., None] & (found.points[..., 2] > 0)
    return np.where(mine[..., None], found.points, np.nan)


def test_hidden_keypoints_are_missing_or_on_the_other_or_noisy() -> None:
    frames, sigma = 3000, 2.0
    world = np.tile(np.stack([stick(0, 2), stick(0.5, 4)]), (frames, 1, 1, 1))
    rig = along_y()
    hidden = find_occluders(rig, world[:1])[0, 0, 1] >= 0
    assert 5 < hidden.sum() < 15, "less than 60 %"
    seen = CrowdDetector(rig, Noise(sigma, 0, 0, 0, 0), NONE, world[0]).find(world, 0)
    exact = rig.project(world[0])[0]
    of = [seen.points[0][seen.person[0] == p] for p in (0, 1)]
    for p, which in ((0, np.ones(25, bool)), (1, ~hidden)):
        off = (of[p][..., :2] - exact[p])[:, which]
        assert np.isfinite(off).all()
        assert off.std() == pytest.approx(sigma, rel=0.03)
    behind = of[1][:, hidden]
    assert (behind[..., 2] == 0).mean() == pytest.approx(OCCLUSION.missing, abs=0.01)
    to_own = np.linalg.norm(behind[..., :2] - exact[1, hidden], axis=-1)
    to_other = np.linalg.norm(behind[..., :2] - exact[0, hidden], axis=-1)
    elsewhere = to_other < to_own  # 90 px and more lie between
    assert elsewhere.mean() == pytest.approx(OCCLUSION.displaced, abs=0.02)
    blurred = (behind[..., 2] > 0) & ~elsewhere
    off = (behind[..., :2] - exact[1, hidden])[blurred]
    assert off.std() == pytest.approx(OCCLUSION.blur * sigma, rel=0.05)
    assert behind[..., 2][blurred].mean() < 0.75 * of[1][:, ~hidden, 2].mean()


def test_who_is_hidden_for_the_most_part_is_overlooked_in_most_frames() -> None:
    world = np.tile(np.stack([stick(0, 2), stick(0, 4)]), (500, 1, 1, 1))
    rig = along_y()
    assert (find_occluders(rig, world[:1])[0, 0, 1] >= 0).mean() > OCCLUSION.max_share
    seen = CrowdDetector(rig, EXACT, NONE, world[0]).find(world, 0)
    assert (seen.person[0] == 0).any(1).all()
    assert (seen.person[0] == 1).any(1).mean() == pytest.approx(1 - OCCLUSION.overlooked, abs=0.07)


def test_one_person_is_found_as_without_all_that() -> None:
    crowd, noise = walking(), Noise(3, 0.05, 0.1, 0.05, 4)
    alone = crowd.world[:, :1]
    seen = CrowdDetector(crowd.rig, noise, NONE, alone[0]).find(alone, 5)
    before = simulate_detections(crowd.rig.project(alone, distorted=True), crowd.rig.size, 5, noise)
    np.testing.assert_array_equal(seen.points, before)
    assert set(np.unique(seen.person)) == {-1, 0}, "in a gap there is nobody"


def test_frames_do_not_depend_on_each_other() -> None:
    faults = Faults(0.2, 0.3, 1.5, 2)
    crowd, noise = walking(), Noise(3, 0.05, 0.1, 0.05, 4)
    detector = CrowdDetector(crowd.rig, noise, faults, crowd.world[::12].reshape(-1, 25, 3))
    whole = detector.find(crowd.world, 0)
    for a in (0, 7, 100):
        part = detector.find(crowd.world[a : a + 7], a)
        count = part.points.shape[2]
        np.testing.assert_array_equal(part.points, whole.points[:, a : a + 7, :count])
        np.testing.assert_array_equal(part.person, whole.person[:, a : a + 7, :count])
        assert (whole.person[:, a : a + 7, count:] == -1).all()
    other = CrowdDetector(crowd.rig, replace(noise, seed=5), faults, detector.bodies).find(crowd.world, 0)
    assert not np.array_equal(other.person, whole.person)


def test_the_order_of_the_detections_says_nothing() -> None:
    first = found(NONE).person[..., 0]
    assert np.bincount(first[first >= 0]).min() > 0.2 * first.size


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_left_and_right_are_exchanged_as_often_as_said(share: float) -> None:
    plain, faulty = found(NONE), found(Faults(exchanged=share))
    np.testing.assert_array_equal(plain.person, faulty.person)
    flipped = plain.points[..., list(BODY_25.flips), :]
    same = np.nan_to_num(faulty.points) == np.nan_to_num(plain.points)
    turned = np.nan_to_num(faulty.points) == np.nan_to_num(flipped)
    there = plain.person >= 0
    assert (same.all((3, 4)) | turned.all((3, 4)))[there].all(), "all of a person or nothing"
    assert turned.all((3, 4))[there].mean() == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_bodies_come_in_two_parts_as_often_as_said(share: float) -> None:
    plain, faulty = found(NONE), found(Faults(split=share))
    parts = np.stack([(faulty.person == p).sum(2) for p in range(3)])
    whole = np.stack([(plain.person == p).sum(2) for p in range(3)])
    assert parts.max() == 2
    assert (parts == 2).sum() / (whole == 1).sum() == pytest.approx(share, abs=0.05)
    for p in range(3):
        seen = (faulty.person == p)[..., None] & (faulty.points[..., 2] > 0)
        np.testing.assert_array_equal(seen.sum(2).max(-1) <= 1, True)  # no keypoint in both
        np.testing.assert_array_equal(seen.any(2), (of_person(plain, p)[..., 2] > 0).any(2))
    upper, lower = BODY_25.index("Neck"), BODY_25.index("RKnee")
    both = (faulty.points[..., upper, 2] > 0) & (faulty.points[..., lower, 2] > 0)
    assert both.sum() / (plain.person >= 0).sum() <= 1.05 - share


@pytest.mark.parametrize("mean", [0.4, 1.0, 2.5])
def test_phantoms_come_as_often_as_said_and_never_at_the_same_place(mean: float) -> None:
    plain, faulty = found(NONE), found(Faults(phantoms=mean))
    ghosts = (faulty.points[..., 2] > 0).any(-1) & (faulty.person < 0)
    assert ghosts.sum(2).mean() == pytest.approx(mean, abs=0.1)
    assert ghosts.sum(2).max() == np.ceil(mean)
    for p in range(3):
        np.testing.assert_array_equal(
            np.nan_to_num(of_person(plain, p)).sum(2), np.nan_to_num(of_person(faulty, p)).sum(2)
        )
    sure = faulty.points[ghosts][..., 2]
    assert sure.max() <= 0.7


def test_static_phantoms_stay_where_they_are_each_in_one_view() -> None:
    faulty = found(Faults(static_phantoms=3))
    ghosts = (faulty.points[..., 2] > 0).any(-1) & (faulty.person < 0)
    count = ghosts.sum(2)
    assert count.sum(0).max() == 3
    assert (count == count[:, :1]).all(), "in all frames alike"
    for v in np.flatnonzero(count[:, 0] == 1):
        points = faulty.points[v][ghosts[v]]
        assert (points[:, :, 2] == points[:1, :, 2]).all()
        seen = points[0, :, 2] > 0
        assert 0.5 < points[:, seen, :2].std(0).mean() < 1.5


def test_who_is_not_there_is_not_found() -> None:
    crowd = walking()
    world = crowd.world.copy()
    world[:60, 1] = np.nan
    seen = film(world, 3, crowd.rate, EXACT, NONE)
    assert not (seen.person[:, :60] == 1).any()
    assert (seen.person[:, 60:] == 1).any(2).mean() > 0.8
