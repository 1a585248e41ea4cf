"""The finder: decoding of its heads, and people in whole pictures."""

from __future__ import annotations

import numpy as np
import pytest
from detector_scenes import frames, needs_balancing, networks

from models.detectors.finder import CELL, CELLS, MAX_FOUND_PEOPLE, decode_heads, find_people
from pipeline.skeleton import POINT_ORDERS


def heads(seed: int, people: int = 3) -> dict[str, np.ndarray]:
    """Heads with noise and a few people, whose points lie where they are regressed, more or less."""
    rng = np.random.default_rng(seed)
    out = {
        "centre": rng.normal(-6, 1, (1, CELLS, CELLS)),
        "box_size": rng.uniform(5, 40, (2, CELLS, CELLS)),
        "box_offset": rng.uniform(-0.5, 0.5, (2, CELLS, CELLS)),
        "keypoints": rng.normal(0, 6, (34, CELLS, CELLS)),
        "heatmaps": rng.normal(-4, 1.5, (17, CELLS, CELLS)),
        "keypoint_offset": rng.uniform(0, 1, (34, CELLS, CELLS)),
    }
    for n in range(people):
        row, column = rng.integers(8, CELLS - 8, 2)
        out["centre"][0, row, column] = 3 - n / 2
        for point in range(17):
            down, across = out["keypoints"][2 * point : 2 * point + 2, row, column]
            at = np.clip(np.rint([row + down, column + across]), 0, CELLS - 1).astype(int)
            out["heatmaps"][point, at[0], at[1]] = rng.uniform(-2, 3)
    return {name: x.astype(np.float32) for name, x in out.items()}


def slow(h: dict[str, np.ndarray], min_score: float) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Score, box and points of each person in pixels: the decoding of the original, cell by cell."""
    centre = 1 / (1 + np.exp(-h["centre"][0].astype(float)))
    found = []
    for row, column in np.ndindex(CELLS, CELLS):
        around = centre[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        if centre[row, column] >= around.max() - 1e-9:
            found.append((centre[row, column], row, column))
    found = sorted(found, key=lambda f: -f[0])[:MAX_FOUND_PEOPLE]
    grid = np.mgrid[:CELLS, :CELLS].astype(float)
    weighted, boxes = [], []
    for _, row, column in found:
        middle = np.array([row, column]) + h["box_offset"][:, row, column]
        half = h["box_size"][:, row, column] / 2
        low, high = np.clip(middle - half, 0, CELLS), np.clip(middle + half, 0, CELLS)
        boxes.append([low[1], low[0], high[1], high[0]])
        inside = ((grid >= low[:, None, None]) & (grid < high[:, None, None])).all(0)
        maps = []
        for point in range(17):
            place = np.array([row, column]) + h["keypoints"][2 * point : 2 * point + 2, row, column]
            square = ((grid - place[:, None, None]) ** 2).sum(0)
            heat = 1 / (1 + np.exp(-h["heatmaps"][point].astype(float)))
            maps.append(heat * np.exp(-square / (CELLS * 0.300048828125)) * inside)
        weighted.append(maps)
    out = []
    for (score, _, _), box, maps in zip(found, boxes, weighted, strict=True):
        points = []
        for point in range(17):
            row, column = np.unravel_index(maps[point].argmax(), (CELLS, CELLS))
            best = max(one[point][row, column] for one in weighted)
            down, across = h["keypoint_offset"][2 * point : 2 * point + 2, row, column]
            points.append([CELL * (column + across), CELL * (row + down), best])
        seen = [p[2] for p in points if p[2] > 0.126953125]
        total = score * sum(seen) / max(len(seen), 1)
        if total >= min_score:
            out.append((total, CELL * np.array(box), np.array(points)))
    return sorted(out, key=lambda p: -p[0])


@pytest.mark.parametrize("seed", range(3))
def test_decoding_is_that_of_the_original(seed: int) -> None:
    found, want = decode_heads(heads(seed), 0.1), slow(heads(seed), 0.1)
    assert 1 < len(found) == len(want)
    for n, (score, box, points) in enumerate(want):
        assert found.score[n] == pytest.approx(score, abs=1e-5)
        assert found.box_px[n] == pytest.approx(box, abs=1e-4)
        assert found.points[n] == pytest.approx(points, abs=1e-4)


def test_low_scores_are_nobody() -> None:
    scores = decode_heads(heads(0), 0.0).score
    assert len(scores) == MAX_FOUND_PEOPLE
    assert (np.diff(scores) <= 0).all()
    for least in (0.1, 0.3, 2.0):
        assert len(decode_heads(heads(0), least)) == (scores >= least).sum()


@pytest.mark.parametrize("shape", [(20, 20), (1080, 1920), (700, 30)])
def test_nobody_is_found_in_an_empty_picture(shape: tuple[int, int]) -> None:
    found = find_people(networks().finder, np.full((*shape, 3), 90, np.uint8))
    assert len(found) == 0
    assert found.points.shape == (0, 17, 3)
    assert found.box_px.shape == (0, 4)


@needs_balancing
def test_the_man_is_found_in_every_camera() -> None:
    names = POINT_ORDERS["coco_17"]
    for camera in (1, 2, 3, 4):
        found = find_people(networks().finder, frames(camera)[0])
        largest = (found.box_px[:, 3] - found.box_px[:, 1]).argmax()
        assert found.score[largest] > 0.4
        left, top, right, bottom = found.box_px[largest]
        xy = found.points[largest, :, :2]
        assert (xy >= [left - 40, top - 40]).all()
        assert (xy <= [right + 40, bottom + 40]).all()
        assert 600 < bottom - top < 1200
        height = dict(zip(names, xy[:, 1], strict=True))
        assert height["LShoulder"] < height["LHip"] < height["LAnkle"]


@needs_balancing
def test_a_person_is_found_where_a_wider_picture_has_them() -> None:
    (picture,) = frames(3)
    wide = np.zeros((1920, 1920, 3), np.uint8)
    wide[:, 700 : 700 + 1088] = picture
    narrow, moved = (find_people(networks().finder, each) for each in (picture, wide))
    assert np.median(np.abs(moved.points[0, :, :2] - [700, 0] - narrow.points[0, :, :2])) < 8
