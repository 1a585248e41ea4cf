"""Training on a reconstructed recording: its fits, keypoints and cameras in the crops' own frames."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import pytest
import torch
from recordings import write_recording
from test_crop_store import SIZE, film, level, reconstructed
from test_training_synthetic import same
from typer.testing import CliRunner

import run_pipeline
from models.body import load_body, pose_keypoints
from models.evaluation.joints import extra_24
from models.training.augment import AugmentConfig, augment, collate
from models.training.recorded import RecordedPeople, plan_of_results
from models.training.samples import Sampling
from models.training.sources import SourceConfig, open_source
from pipeline.errors import InputError
from pipeline.store import Store
from stages.crops import crops_of_results


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """Results of the body that ships, and their crops."""
    folder = tmp_path_factory.mktemp("session1")
    contents = replace(builders.contents(), body={"name": "anny", "sha256": load_body().sha256})
    results = reconstructed(folder / "results.zarr", contents)
    plan = plan_of_results(results, SIZE, fps=1000)
    *_, _ = crops_of_results(results, film(folder / "videos"), plan, folder / "crops.zarr")
    return results, folder / "crops.zarr"


def test_samples_are_the_fits_in_the_cameras(made: tuple[Store, Path]) -> None:
    results, crops = made
    source = RecordedPeople(results.path, crops, sampling=Sampling(2, SIZE))
    rig = builders.rig()
    valid = np.concatenate([builders.batch(k).valid[:, 0].numpy() for k in range(3)])
    assert len(source) == valid.sum()
    times = []
    for i in range(len(source)):
        s = source[i]
        head, person, frame = s.id.split("/")
        assert head == f"{crops.parent.name}-{results.digest[:8]}"
        assert person == "0"
        time = int(frame)
        times.append(time)
        k, at = divmod(time, builders.WINDOW)
        fit = results.read(k)
        for v, name in enumerate(s.cameras):
            view = rig.names.index(name)
            zoomed = s.K[v] @ np.linalg.inv(rig.K[view])
            pinhole = rig.undistort(view, fit.keypoints.image_px[view, at, 0].double().numpy())
            assert zoomed[1, 1] == pytest.approx(zoomed[0, 0], rel=5e-3)  # whole pixels
            want = pinhole @ zoomed[:2, :2].T + zoomed[:2, 2]
            assert np.abs(want - s.xy_px[v, :25]).max() < 1e-2
            assert np.isnan(s.xy_px[v, 25:]).all()
            assert not s.confidence[v, 25:].any()
            assert np.allclose(s.confidence[v, :25], fit.keypoints.confidence[view, at, 0])
            assert np.allclose(s.box[v], [47.5, 47.5, SIZE])
            orient = rig.R[view] @ fit.params.global_orient[at, 0].double().numpy()
            assert np.allclose(s.orient[v], orient, atol=1e-6)
            rotations = torch.cat([fit.params.global_orient[at], fit.params.body_pose[at, 0]]).double()
            betas, transl = fit.params.betas[0].double(), fit.params.transl[at, 0].double()
            joints = pose_keypoints(extra_24(load_body()), rotations, betas, transl)[1].numpy()
            assert np.allclose(s.joints[v], rig.to_camera(joints)[view], atol=1e-5)
        assert np.allclose(s.body_pose, fit.params.body_pose[at, 0], atol=1e-6)
        assert np.allclose(s.betas, fit.params.betas[0])
    assert sorted(times) == np.flatnonzero(valid).tolist()


def test_people_keep_their_ids_over_windows(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "results.zarr", builders.contents())
    for k, ids in enumerate(([0], [2], [2])):
        fit = builders.batch(k)
        fit = replace(fit, keypoints=replace(fit.keypoints, ids=torch.tensor(ids)))
        store.write(fit.people(torch.tensor([0, 2])) if k == 1 else fit)
    valid = {k: int(store.read(k).valid.sum()) for k in range(3)}
    plan = plan_of_results(store, SIZE, fps=1000)
    person = np.where(plan.label[:, 1] < builders.WINDOW, 0, 2)
    assert plan.label[:, 0].tolist() == person.tolist()
    alone = plan_of_results(store, SIZE, 1000, store.find_people("2"))
    assert len(alone.box) == 2 * (valid[1] + valid[2])
    *_, _ = crops_of_results(store, film(tmp_path / "videos"), alone, tmp_path / "crops.zarr")
    source = RecordedPeople(store.path, tmp_path / "crops.zarr", sampling=Sampling(2, SIZE))
    for i in range(len(source)):
        _, person, time = source[i].id.split("/")
        k, at = divmod(int(time), builders.WINDOW)
        assert person == "2"
        want = store.read(k).people(torch.tensor([2])).params.body_pose[at, 0]
        assert np.allclose(source[i].body_pose, want, atol=1e-6)
    for wanted, message in (("1", "the people are: 0, 2"), ("x", "a number, or all")):
        with pytest.raises(InputError, match=message):
            store.find_people(wanted)


def test_bad_fits_are_not_the_truth_but_their_keypoints_count(made: tuple[Store, Path]) -> None:
    results, crops = made
    off = []
    for k in range(3):
        batch = builders.batch(k)
        off += batch.reprojection_px[:, :, 0].T[batch.valid[:, 0]].tolist()
    strict = RecordedPeople(results.path, crops, sampling=Sampling(2, SIZE), worst_fit=1.6e-3)
    known = np.isfinite(strict.pose).all((1, 2, 3))
    share = (np.array(off) / strict.box[..., 2]).mean(1) <= 1.6e-3
    assert known.tolist() == share.tolist()
    assert 0 < known.sum() < len(known)
    s = strict[int(np.argmin(known))]
    assert np.isnan(s.orient).all()
    assert np.isnan(s.joints).all()
    assert np.isnan(s.betas).all()
    assert (s.confidence[:, :25] > 0).any()


def test_another_bodys_shape_is_not_taken(tmp_path: Path) -> None:
    results = reconstructed(tmp_path / "results.zarr")
    plan = plan_of_results(results, SIZE, fps=10)
    *_, _ = crops_of_results(results, film(tmp_path), plan, tmp_path / "crops.zarr")
    source = RecordedPeople(tmp_path / "results.zarr", tmp_path / "crops.zarr", sampling=Sampling(1, SIZE))
    s = source[0]
    assert np.isfinite(s.body_pose).all()
    assert np.isnan(s.betas).all()
    assert np.isnan(s.joints).all()
    assert np.isfinite(s.box).all()


def test_it_trains_in_other_processes_and_in_batches(made: tuple[Store, Path]) -> None:
    results, crops = made
    cfg = SourceConfig(kind="store", path=results.path, crops=crops)
    source = open_source(cfg, sampling=Sampling(1, SIZE))
    again = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 2000
    assert all(same(source[i], again[i]) for i in (0, len(source) + 1))
    rng = np.random.default_rng(0)
    batch = collate([augment(source[i], rng, AugmentConfig(), SIZE) for i in range(4)])
    assert batch.images.shape == (4, 1, 3, SIZE, SIZE)
    assert batch.images.float().std((2, 3, 4)).min() > 1
    assert torch.isfinite(batch.body_pose).all()


def test_the_command_cuts_the_people_of_a_run(tmp_path: Path) -> None:
    rig = builders.rig()
    film(tmp_path / "recording" / "videos")
    write_recording(tmp_path / "recording", rig, [np.ones((2, 23, 25, 3))])
    (tmp_path / "recording/recording.yaml").write_text("keypoints: {format: body_25}")
    results = reconstructed(tmp_path / "results.zarr")
    asked = ["crops", str(tmp_path), "--out", str(tmp_path / "crops.zarr"), "--size", "64"]
    said = CliRunner().invoke(run_pipeline.app, asked)
    assert isinstance(said.exception, InputError)  # no summary.json says where the videos are
    assert "--recording" in str(said.exception)
    said = CliRunner().invoke(run_pipeline.app, [*asked, "--recording", str(tmp_path / "recording")])
    assert said.exit_code == 0, said.output
    source = RecordedPeople(results.path, tmp_path / "crops.zarr", sampling=Sampling(2, SIZE))
    s = source[0]
    number = builders.contents().frame_index[[rig.names.index(c) for c in s.cameras], int(s.id[-6:])]
    for v, picture in enumerate(s.pictures):
        want = level(rig.names.index(s.cameras[v]), int(number[v]))
        inside = picture[picture > 0]
        assert abs(np.median(inside) - want) < 20


def test_mistakes(made: tuple[Store, Path], tmp_path: Path) -> None:
    results, crops = made
    for cfg, message in (
        (SourceConfig(kind="store"), "needs a path"),
        (SourceConfig(kind="store", path=results.path), "needs crops of its videos"),
        (SourceConfig(kind="store", path=results.path, crops=tmp_path), "the crops cannot be read"),
        (SourceConfig(kind="store", path=tmp_path, crops=crops), "no results store"),
    ):
        with pytest.raises(InputError, match=message):
            open_source(cfg, sampling=Sampling(2, SIZE))
    other = reconstructed(tmp_path / "results.zarr")
    with pytest.raises(InputError, match="crops of something else"):
        RecordedPeople(other.path, crops, sampling=Sampling(2, SIZE))
    with pytest.raises(InputError, match="64 pixels, not 128"):
        RecordedPeople(results.path, crops, sampling=Sampling(2, 128))
