from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import FRAMES, batch, contents, rig, status

from pipeline.store import Store
from pipeline.summary import seen, summarise
from pipeline.verdicts import REPROJECTION


@pytest.fixture
def store(tmp_path):
    store = Store.create(tmp_path / "s.zarr", contents())
    rng = np.random.default_rng(0)
    for k in range(3):
        fit = batch(k)
        points = fit.keypoints_3d[..., :3].double().numpy()
        exact = rig().project(points, distorted=True)
        image = torch.from_numpy((exact + rng.normal(0, 6, exact.shape)).astype(np.float32))
        store.write(replace(fit, keypoints=replace(fit.keypoints, image_px=image)))
    return store


def slow(store):
    """The same numbers from whole arrays."""
    c = store.contents
    points = store.array("people/0/keypoints_3d")[..., :3].astype(float)
    valid = store.array("people/0/valid")
    px, mm = [], []
    for v in range(len(c.rig)):
        seen = store.array("people/0/keypoints_2d")[v].astype(float)
        error = np.linalg.norm(c.rig.project(points)[v] - c.rig.undistort(v, seen[..., :2]), axis=-1)
        used = (seen[..., 2] > 0) & valid[:, None]
        px.append(error[used])
        depth = (points @ c.rig.R[v].T + c.rig.t[v])[..., 2]
        mm.append(px[-1] * 1000 * depth[used] / c.rig.K[v, [0, 1], [0, 1]].mean())
    joints = store.array("people/0/joints").astype(float)
    jitter = [
        np.linalg.norm(joints[t - 1] - 2 * joints[t] + joints[t + 1], axis=-1).mean()
        for t in range(1, FRAMES - 1)
        if valid[t - 1 : t + 2].all()
    ]
    return px, mm, 1000 * np.mean(jitter)


@pytest.mark.parametrize("stretch", [1, 16, 1000])
def test_agrees_with_whole_arrays(store, monkeypatch, stretch):
    monkeypatch.setattr("pipeline.store.BLOCK_FRAMES", stretch)
    px, mm, jitter = slow(store)
    summary = summarise(store)
    for v, camera in enumerate(summary.cameras):
        assert camera.keypoints == len(px[v])
        assert camera.reprojection_median_px == pytest.approx(np.median(px[v]), abs=0.1)
        assert camera.reprojection_mean_px == pytest.approx(px[v].mean(), rel=1e-4)
        assert camera.reprojection_median_mm == pytest.approx(np.median(mm[v]), abs=0.1)
        assert camera.verdict == REPROJECTION.verdict(camera.reprojection_median_mm) is not None
    assert summary.reprojection_median_mm == pytest.approx(np.median(np.concatenate(mm)), abs=0.1)
    assert summary.people[0].jitter_mm == pytest.approx(jitter, rel=1e-3)
    assert summary.frames == FRAMES
    assert summary.complete


@pytest.mark.parametrize("stretch", [1, 16, 1000])
def test_where_anyone_is_seen(store, monkeypatch, stretch):
    monkeypatch.setattr("pipeline.store.BLOCK_FRAMES", stretch)
    confidence = store.array("people/0/keypoints_2d")[:, :, None, :, 2]
    np.testing.assert_array_equal(seen(store), [(c > 0).any((1, 2)) for c in confidence])


def test_counts_what_is_missing(tmp_path):
    store = Store.create(tmp_path / "s.zarr", contents())
    fit = batch(0)
    confidence = fit.keypoints.confidence.clone()
    confidence[1, :5] = 0
    valid = torch.ones_like(fit.valid)
    valid[2:4] = False
    joints = fit.joints.clone()
    joints[3] = torch.nan
    store.write(
        replace(
            fit, keypoints=replace(fit.keypoints, confidence=confidence), status=status(valid), joints=joints
        )
    )
    summary = summarise(store)
    assert not summary.complete
    assert [c.frames_with_person for c in summary.cameras] == [8, 3]
    assert [c.frames_without_person for c in summary.cameras] == [0, 5]
    person = summary.people[0]
    assert (person.frames_fitted, person.frames_bridged, person.frames_without_pose) == (6, 1, 1)


def test_people_are_counted_while_they_are_there(tmp_path):
    store = Store.create(tmp_path / "s.zarr", contents())
    for k, ids in enumerate(([0], [0, 3], [3])):
        fit = batch(k)
        fit = replace(fit, keypoints=replace(fit.keypoints, ids=torch.tensor(ids[-1:])))
        store.write(fit.people(torch.tensor(ids)))
    people = summarise(store).people
    assert [(p.id, p.first_frame, p.frames, p.frames_without_pose) for p in people] == [
        ("0", 0, 8, 0),
        ("3", 8, 12, 0),
    ]
    for person in people:
        assert person.frames_fitted == store.array(f"people/{person.id}/valid").sum()


def test_an_empty_store(tmp_path):
    summary = summarise(Store.create(tmp_path / "s.zarr", contents()))
    assert summary.reprojection_median_px is None
    assert summary.people == ()
