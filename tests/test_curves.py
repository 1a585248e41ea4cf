import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import FRAMES, WINDOW, batch, contents, status

from models.angles import DEFINITIONS, fitted_angles
from pipeline.curves import MIN_BINS, TOTAL_BINS, read_curves
from pipeline.store import Store


def written(path, windows=3):
    store = Store.create(path, replace(contents(), angles=DEFINITIONS))
    for k in range(windows):
        store.write(batch(k), fitted_angles(batch(k), store.contents.rig.up))
    return store


def three(values, groups):
    """Least, mean and greatest over frames of each group, NaN ignored; values (T, ...)."""
    out = []
    for fold in (np.nanmin, np.nanmean, np.nanmax):
        rows = []
        for group in groups:
            some = values[group]
            known = np.isfinite(some).any(0)
            folded = np.full(some.shape[1:], np.nan)
            if known.any():
                folded[known] = fold(some[:, known], axis=0)
            rows.append(folded)
        out.append(np.stack(rows, -1))
    return out


@pytest.mark.parametrize("bins", [1, 3, 7, FRAMES, 1000])
@pytest.mark.parametrize("block", [1, 1000])
def test_agrees_with_whole_arrays(bins, block, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.store.BLOCK_FRAMES", block)
    store = written(tmp_path / "s.zarr")
    found = read_curves(store, bins)
    bins = min(bins, FRAMES)
    groups = [[t for t in range(FRAMES) if t * bins // FRAMES == b] for b in range(bins)]
    assert found.first_frame.tolist() == [g[0] for g in groups]
    valid, joints = store.array("people/0/valid"), store.array("people/0/joints").astype(float)
    px = np.where(valid[:, None], store.array("people/0/reprojection_px").astype(float), np.nan)
    acceleration = np.full(FRAMES, np.nan)
    for t in range(2, FRAMES):
        if valid[t - 2 : t + 1].all():
            second = joints[t] - 2 * joints[t - 1] + joints[t - 2]
            acceleration[t] = 1000 * np.linalg.norm(second, axis=-1).mean()
    for curve, values in (
        (found.reprojection_px, px),
        (found.acceleration_mm, acceleration),
    ):
        for have, want in zip((curve.low, curve.mean, curve.high), three(values, groups), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-4, equal_nan=True)
    angles = store.array("people/0/angles").astype(float)
    low, _, high = three(angles, groups)
    np.testing.assert_allclose(found.angles_deg.low, low, rtol=1e-4)
    np.testing.assert_allclose(found.angles_deg.high, high, rtol=1e-4)
    mean = np.stack([np.exp(1j * np.radians(angles[group])).mean(0) for group in groups], -1)
    np.testing.assert_allclose(found.angles_deg.mean, np.degrees(np.angle(mean)), atol=0.05)
    for v in range(len(store.contents.rig)):
        share = (store.array("people/0/keypoints_2d")[v, :, :, 2] > 0).mean(1)
        np.testing.assert_allclose(found.keypoints_seen[v], [share[g].mean() for g in groups], rtol=1e-5)
    np.testing.assert_allclose(found.fitted, [valid[g].mean() for g in groups], rtol=1e-6)
    np.testing.assert_allclose(found.fitted + found.unsure, 1, rtol=1e-6)
    np.testing.assert_array_equal(found.joints, joints[found.first_frame].astype(np.float32))


def test_what_is_not_there_is_nan(tmp_path):
    store = Store.create(tmp_path / "s.zarr", replace(contents(), angles=DEFINITIONS))
    fit = batch(0)
    joints, valid, px = fit.joints.clone(), torch.ones_like(fit.valid), fit.reprojection_px.clone()
    joints[2:4], valid[2:5], px[1] = torch.nan, False, torch.nan
    changed = replace(fit, joints=joints, status=status(valid), reprojection_px=px)
    angles = fitted_angles(changed, store.contents.rig.up)
    angles[2:4] = torch.nan
    store.write(changed, angles)
    found = read_curves(store)
    assert np.isnan(found.reprojection_px.mean[1]).all()
    assert np.isnan(found.angles_deg.mean[:, 2:4]).all()
    assert found.fitted[:6].tolist() == [1, 1, 0, 0, 0, 1]
    assert found.unsure[:6].tolist() == [0, 0, 0, 0, 1, 0]
    assert found.spans.tolist() == [[0, WINDOW]], "no more windows are done"
    assert np.isfinite(found.acceleration_mm.mean).sum() == 1, "frames 5, 6, 7 are the only three in a row"


def test_a_store_without_a_window(tmp_path):
    found = read_curves(Store.create(tmp_path / "s.zarr", contents()))
    assert np.isnan(found.joints).all()
    assert (found.pictures == 1).all()


def test_memory_does_not_grow_with_length(tmp_path):
    peaks = []
    for frames in (6000, 60_000):
        c = replace(
            contents(),
            time_s=np.arange(frames) / 30,
            frame_index=np.tile(np.arange(frames), (2, 1)),
            window=1000,
        )
        store = Store.create(tmp_path / f"{frames}.zarr", c)
        store._make_person(0)
        store._array("people/0/status")[:] = 1
        store._array("done")[:] = True
        tracemalloc.start()
        found = read_curves(store)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.joints.shape[0] == TOTAL_BINS
    whole = 54_000 * 24 * 3 * 8
    assert peaks[1] - peaks[0] < whole / 4, peaks


def test_the_mean_of_angles_that_go_round_is_between_them(tmp_path):
    """Of 179 and −179 it is 180, not 0."""
    store = Store.create(tmp_path / "s.zarr", replace(contents(), angles={"a": "b"}))
    turning = torch.tensor([179.0, -179.0] * (WINDOW // 2))[:, None, None]
    store.write(batch(0), turning)
    mean = read_curves(store, 2).angles_deg.mean[0]
    assert abs(mean[0]) > 179


def long_store(path, frames, people):
    """A store in which everybody is there for all of ``frames`` by turns: (first window, last) of each."""
    times = {"time_s": np.arange(frames) / 30, "frame_index": np.tile(np.arange(frames), (2, 1))}
    store = Store.create(path, replace(contents(), window=100, angles=DEFINITIONS, **times))
    for person, (first, last) in enumerate(people):
        store._make_person(person)
        store._array(f"people/{person}/status")[first * 100 : (last + 1) * 100] = 1
    store._array("done")[:] = True
    return store


@pytest.mark.parametrize(("people", "bins"), [(1, TOTAL_BINS), (2, TOTAL_BINS // 2), (6, MIN_BINS)])
def test_people_share_the_points(people, bins, tmp_path):
    store = long_store(tmp_path / "s.zarr", TOTAL_BINS + 100, [(0, TOTAL_BINS // 100)] * people)
    found = read_curves(store)
    assert found.spans.tolist() == [[0, bins]] * people
    assert found.fitted.shape == (people * bins,)


def test_people_who_come_and_go_have_points_where_they_are(tmp_path):
    store = Store.create(tmp_path / "s.zarr", contents())
    for k, ids in enumerate(([0], [0, 3], [3])):
        fit = batch(k)
        fit = replace(fit, keypoints=replace(fit.keypoints, ids=torch.tensor(ids[:1])))
        store.write(fit.people(torch.tensor(ids)))
    found = read_curves(store)
    assert found.spans.tolist() == [[0, 2 * WINDOW], [WINDOW, FRAMES]]
    for person, (a, b), own in zip(
        (0, 3), found.spans, np.split(np.arange(len(found.fitted)), [16]), strict=True
    ):
        np.testing.assert_array_equal(found.fitted[own], store.array(f"people/{person}/valid")[a:b])
        np.testing.assert_array_equal(found.joints[own], store.array(f"people/{person}/joints")[a:b])


def test_memory_does_not_grow_with_people_who_come_one_after_the_other(tmp_path):
    peaks = []
    for count in (2, 20):
        store = long_store(
            tmp_path / f"{count}.zarr",
            6000,
            [(k * 60 // count, (k + 1) * 60 // count - 1) for k in range(count)],
        )
        tracemalloc.start()
        read_curves(store, 1000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0], peaks
