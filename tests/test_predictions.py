"""What networks say of rows: views, cameras, batches, and what they need."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from people import COUNT, PEOPLE, VIEWS, bodies, image_net, write_people
from scipy.spatial.transform import Rotation

from models.body import load_body
from models.crops import crop_rgb, normalise_rgb
from models.datasets.pictures import read_pictures
from models.datasets.rows import read_rows
from models.evaluation.predictions import PredictOptions, shares_shape, views_of
from models.evaluation.protocols import PROTOCOLS
from models.evaluation.scores import score_network
from models.image_regressor import ImageConfig, ImageRegressor
from models.regressors.keypoint_nets import load_regressor
from pipeline.errors import InputError

P1 = PROTOCOLS["h36m-p1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


def test_every_row_is_seen_with_the_next_of_its_group() -> None:
    rows = {"group": np.array([4, 7, 4, 7, 4, 9])}
    found = views_of(rows, np.arange(6), 2)
    assert found.tolist() == [[0, 2], [1, 3], [2, 4], [3, 1], [4, 0], [5, -1]]
    assert views_of(rows, np.array([4, 5]), 4).tolist() == [[4, 0, 2, -1], [5, -1, -1, -1]]
    assert views_of(rows, np.array([3]), 1).tolist() == [[3]]


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("fitted", [False, True])
def test_a_network_on_keypoints_is_scored_in_every_camera(folder: Path, views: int, fitted: bool) -> None:
    rows = read_rows(folder / "rows.npz")
    done = score_network(
        P1, load_regressor("calibrated"), rows, bodies(), partial(read_pictures, folder),
        options=PredictOptions(views=views, fitted=fitted, batch_size=7),
    )  # fmt: skip
    assert done.row.tolist() == list(range(COUNT))
    limit = {(1, False): 200, (3, False): 60, (1, True): 200, (3, True): 30}[views, fitted]
    assert done.metrics["mpjpe_mm"] < limit
    assert done.metrics["pve_mm"] < 1.5 * limit
    assert done.metrics["not_compared"] == 0
    assert done.metrics["approximate"]
    assert (done.metrics["views"], done.metrics["fit"]) == (views, fitted)
    if views == 3:  # all views show one pose, each in its own axes
        pose = done.predictions.pose.reshape(PEOPLE, VIEWS, 24, 3)
        np.testing.assert_allclose(pose[:, :, 1:], np.repeat(pose[:, :1, 1:], VIEWS, 1), atol=2e-2)
        turned = Rotation.from_rotvec(done.predictions.pose[:, :3]).as_matrix()
        world = (rows["R"].swapaxes(1, 2) @ turned).reshape(PEOPLE, VIEWS, 3, 3)
        np.testing.assert_allclose(world, np.repeat(world[:, :1], VIEWS, 1), atol=3e-2)


def test_batches_and_processes_change_nothing(folder: Path) -> None:
    rows = read_rows(folder / "rows.npz")
    pictures = partial(read_pictures, folder)
    a = score_network(P1, image_net(), rows, bodies(), pictures, PredictOptions(views=2, batch_size=12))
    b = score_network(
        P1,
        image_net(),
        rows,
        bodies(),
        pictures,
        options=PredictOptions(views=2, batch_size=4, num_workers=1),
    )
    np.testing.assert_allclose(a.predictions.pred_joints, b.predictions.pred_joints, atol=1e-4)
    assert a.metrics["mpjpe_mm"] == pytest.approx(b.metrics["mpjpe_mm"], abs=0.01)


def test_shapes_of_smpl_mean_nothing_to_the_body_that_ships() -> None:
    body = load_body()
    smpl = replace(body, sha256="0" * 64)
    spin = ImageRegressor(ImageConfig("resnet50", "single", "stretch", "smpl"))
    assert [shares_shape(net, b) for net in (spin, image_net()) for b in (smpl, body)] == [
        True, False, False, True,
    ]  # fmt: skip


def test_what_is_needed_is_said(folder: Path) -> None:
    rows = read_rows(folder / "rows.npz")
    pictures, net = partial(read_pictures, folder), load_regressor("calibrated")
    with pytest.raises(InputError, match="no OpenPose keypoints"):
        score_network(P1, net, {**rows, "openpose": 0 * rows["openpose"]}, bodies(), pictures)
    with pytest.raises(InputError, match="no R and t of some cameras"):
        score_network(P1, net, {**rows, "R": np.nan * rows["R"]}, bodies(), pictures, PredictOptions(views=2))
    alone = score_network(P1, net, {**rows, "R": np.nan * rows["R"]}, bodies(), pictures)
    assert alone.metrics["mpjpe_mm"] < 200
    with pytest.raises(InputError, match="cannot be read as a picture"):
        score_network(P1, image_net(), rows, bodies(), partial(read_pictures, folder / "elsewhere"))


def test_people_whom_nobody_saw_are_not_compared(folder: Path) -> None:
    rows = read_rows(folder / "rows.npz")
    openpose = rows["openpose"].copy()
    openpose[4] = 0
    done = score_network(
        P1, load_regressor("calibrated"), {**rows, "openpose": openpose}, bodies(),
        partial(read_pictures, folder), PredictOptions(fitted=True),
    )  # fmt: skip
    assert np.isnan(done.predictions.pose[4]).all()
    assert np.isnan(done.errors["mpjpe"][4])
    assert done.metrics["not_compared"] == 1
    assert np.isfinite(done.predictions.pose[[3, 5]]).all()


@pytest.mark.parametrize("views", [1, 2])
def test_rows_without_a_box_are_not_looked_at(folder: Path, views: int) -> None:
    rows = read_rows(folder / "rows.npz")
    box = rows["box"].copy()
    box[4] = np.nan
    pictures = partial(read_pictures, folder)
    options = PredictOptions(views=views)
    done = score_network(P1, image_net(), {**rows, "box": box}, bodies(), pictures, options)
    assert np.flatnonzero(np.isnan(done.errors["mpjpe"])).tolist() == [4]
    whole = score_network(P1, image_net(), rows, bodies(), pictures, options)
    seen = views_of(rows, np.arange(COUNT), views)
    apart = np.abs(done.predictions.pred_joints - whole.predictions.pred_joints).max((1, 2))
    assert (apart[~(seen == 4).any(1)] < 1e-4).all()


def test_a_fit_takes_the_cameras_of_the_data_whatever_the_network_takes_them_for(folder: Path) -> None:
    rows = {k: v[:3] for k, v in read_rows(folder / "rows.npz").items()}
    config = ImageConfig("resnet50", "average", body="smpl", size=128, spin_camera=True)
    spin = ImageRegressor(config).requires_grad_(False).eval()
    done = score_network(
        P1, spin, rows, bodies(), partial(read_pictures, folder), PredictOptions(views=3, fitted=True)
    )
    assert done.metrics["mpjpe_mm"] < 40


def test_weights_of_spin_say_a_root_for_the_camera_that_looks_straight_at_the_crop(folder: Path) -> None:
    config = ImageConfig("resnet50", "single", body="smpl", size=128, spin_camera=True)
    spin = ImageRegressor(config).requires_grad_(False).eval()
    rows = read_rows(folder / "rows.npz")
    pictures = partial(read_pictures, folder)
    done = score_network(P1, spin, rows, bodies(), pictures)
    found = pictures(rows["imgname"].tolist())
    crops = np.stack([crop_rgb(p, box, 128) for p, box in zip(found, rows["box"], strict=True)])
    images = normalise_rgb(torch.from_numpy(crops).permute(0, 3, 1, 2).float(), "none")[:, None]
    own = spin(images, torch.ones(len(crops), 1, dtype=torch.bool)).orient[:, 0].double().numpy()
    said = Rotation.from_rotvec(done.predictions.pose[:, :3]).as_matrix()
    assert np.abs(said - own).max() < 2e-5
