"""Scores by the protocols: errors that are known, the files of results, genders and actions."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from people import COUNT, PEOPLE, VIEWS, bodies, data, image_net, write_people
from scipy.spatial.transform import Rotation

from models.body import load_body
from models.datasets.pictures import read_pictures
from models.datasets.rows import read_rows, to_arrays, write_npz
from models.evaluation.joints import h36m_joints
from models.evaluation.predictions import Predictions, PredictOptions
from models.evaluation.protocols import PROTOCOLS
from models.evaluation.scores import (
    TrueBodies,
    actions_of,
    protocol_errors,
    score_network,
    select_rows,
    summarise_errors,
)
from models.regressors.keypoint_nets import load_regressor
from pipeline.errors import InputError
from pipeline.skeleton import EXTRA_24_OF_H36M_17

P1, P2, MPI, PW = (PROTOCOLS[n] for n in ("h36m-p1", "h36m-p2", "mpi-inf-3dhp", "3dpw"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


def test_the_file_of_results_holds_what_was_said(folder: Path) -> None:
    rows = read_rows(folder / "rows.npz")
    done = score_network(
        MPI,
        image_net(),
        rows,
        bodies(),
        partial(read_pictures, folder),
        options=PredictOptions(views=2, batch_size=5),
    )
    arrays = done.arrays()
    count = COUNT
    assert {k: arrays[k].shape for k in ("pose", "betas", "camera", "pred_joints", "row")} == {
        "pose": (count, 72), "betas": (count, 10), "camera": (count, 3), "pred_joints": (count, 17, 3),
        "row": (count,),
    }  # fmt: skip
    for name in ("pose", "betas", "camera", "pred_joints"):
        assert (np.abs(arrays[name]).reshape(count, -1).max(1) > 0).all(), name
    # The joints are those of the pose and shape that are beside them.
    rotations = torch.from_numpy(Rotation.from_rotvec(done.predictions.pose.reshape(-1, 3)).as_matrix())
    still = torch.zeros(count, 3, dtype=torch.float64)
    joints = bodies().neutral(rotations.view(-1, 24, 3, 3), torch.from_numpy(done.predictions.betas), still)
    np.testing.assert_allclose(arrays["pred_joints"], joints.numpy(), atol=1e-5)
    assert {"pck150", "auc"} <= set(done.metrics)
    assert done.metrics["rows_of_other_data"] == COUNT  # Human3.6M's, by their names
    assert json.loads(json.dumps(done.metrics))["protocol"]["truth"].startswith("S: univ_annot3")


def with_known_error(said: Predictions, joints: np.ndarray) -> dict[str, Any]:
    """The rows with a ground truth from which what is said is off by what is known; joints (N, 17, 3)."""
    arrays = to_arrays(data())
    S = np.zeros((len(said.pose), 24, 4))
    S[:, list(EXTRA_24_OF_H36M_17), :3] = joints - joints[:, :1]
    S[:, list(EXTRA_24_OF_H36M_17), 3] = 1
    return {**arrays, "S": S}


@pytest.mark.parametrize("protocol", [P1, MPI], ids=lambda p: p.name)
def test_a_known_error_is_returned_to_a_hundredth_of_a_millimetre(
    folder: Path, tmp_path: Path, protocol: Any
) -> None:
    net = image_net() if protocol is MPI else load_regressor("calibrated")
    pictures = partial(read_pictures, folder)
    rows = read_rows(folder / "rows.npz")
    said = score_network(protocol, net, rows, bodies(), pictures).predictions
    rng = np.random.default_rng(2)
    away = rng.normal(size=said.pred_joints.shape)
    away *= rng.uniform(0, 0.25, (*away.shape[:2], 1)) / np.linalg.norm(away, axis=-1, keepdims=True)
    away[:, 0] = 0  # the pelvis is where all is measured from
    write_npz(with_known_error(said, said.pred_joints + away), tmp_path / "off.npz")
    done = score_network(protocol, net, read_rows(tmp_path / "off.npz"), bodies(), pictures)
    length = np.linalg.norm(away[:, list(protocol.predicted)], axis=-1)
    np.testing.assert_allclose(done.errors["mpjpe"], 1e3 * length.mean(1), atol=0.01)
    assert done.metrics["mpjpe_mm"] == pytest.approx(1e3 * length.mean(), abs=0.01)
    if protocol is MPI:
        length = np.linalg.norm(away[:, list(protocol.near)], axis=-1)
        assert done.metrics["pck150"] == pytest.approx((length < 0.15).mean(), abs=1e-9)
        curve = [(length < x).mean() for x in np.arange(0, 0.1501, 0.005)]
        assert done.metrics["auc"] == pytest.approx(np.mean(curve), abs=1e-9)

    turn = Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix()
    similar = 1.15 * said.pred_joints @ turn.T + [0.1, 0.2, 3.0]
    write_npz(with_known_error(said, similar), tmp_path / "similar.npz")
    done = score_network(protocol, net, read_rows(tmp_path / "similar.npz"), bodies(), pictures)
    assert done.metrics["pa_mpjpe_mm"] == pytest.approx(0, abs=0.01)
    rooted = (said.pred_joints - said.pred_joints[:, :1])[:, list(protocol.predicted)]
    slow = [np.linalg.norm(x - 1.15 * turn @ x) for frame in rooted for x in frame]
    assert done.metrics["mpjpe_mm"] == pytest.approx(1e3 * np.mean(slow), abs=0.01)


def test_3dpw_is_scored_against_bodies_of_each_gender() -> None:
    arrays = to_arrays(data())
    arrays["gender"] = np.array(["m", "f", ""] * PEOPLE)
    neutral = bodies().neutral
    larger = replace(neutral.body, name="MALE", v_template=1.1 * neutral.body.v_template)
    grown = h36m_joints(load_body(), None)
    assert grown.points is not None
    points = replace(
        grown.points,
        points_template=1.1 * grown.points.points_template,
        joints_template=1.1 * grown.points.joints_template,
        points_shapedirs=0 * grown.points.points_shapedirs,
        joints_shapedirs=0 * grown.points.joints_shapedirs,
    )
    both = TrueBodies(neutral, male=replace(grown, body=larger, points=points))
    said = Predictions(arrays["pose"], 0 * arrays["shape"], np.ones((COUNT, 3)), np.zeros((COUNT, 17, 3)))
    rotations = torch.from_numpy(Rotation.from_rotvec(arrays["pose"].reshape(-1, 3)).as_matrix())
    still, none = torch.zeros(COUNT, 3, dtype=torch.float64), torch.zeros(COUNT, 10, dtype=torch.float64)
    own = neutral(rotations.view(-1, 24, 3, 3), none, still).numpy()
    arrays["shape"] = 0 * arrays["shape"]
    errors = protocol_errors(PW, arrays, np.arange(COUNT), replace(said, pred_joints=own), both)
    size = np.linalg.norm((own - own[:, :1])[:, list(PW.predicted)], axis=-1).mean(1)
    male = np.arange(COUNT) % 3 == 0
    np.testing.assert_allclose(errors["mpjpe"], np.where(male, 100 * size, 0), atol=0.01)
    assert (errors["pve"][male] > 20).all()
    np.testing.assert_allclose(errors["pve"][~male], 0, atol=1e-3)


def test_a_gender_is_male_or_as_in_spin_female_or_not_known() -> None:
    neutral, male, female = (bodies().neutral for _ in range(3))
    genders = TrueBodies(neutral, male, female)
    assert [genders.of(g) for g in ("m", "f", "n", "")] == [male, female, female, neutral]
    assert TrueBodies(neutral, male).of("f") is neutral


def test_the_second_protocol_is_about_one_camera(folder: Path) -> None:
    rows = read_rows(folder / "rows.npz")
    assert select_rows(P2, rows).tolist() == [2 + VIEWS * k for k in range(PEOPLE)]
    bare = {**rows, "camera": np.full(len(rows["camera"]), "")}
    assert select_rows(P2, bare).tolist() == select_rows(P2, rows).tolist(), "by the names of the pictures"
    with pytest.raises(InputError, match="60457274, of which the data have no row"):
        select_rows(P2, {**rows, "camera": np.full(len(rows["camera"]), "54138969")})
    with pytest.raises(InputError, match="no ground truth"):
        select_rows(P1, {**rows, "S": 0 * rows["S"]})
    with pytest.raises(InputError, match="no ground truth"):
        select_rows(PW, {**rows, "has_smpl": 0 * rows["has_smpl"]})


def test_actions_are_told_apart() -> None:
    arrays = to_arrays(data())
    assert set(actions_of(arrays)) == {"Eating", "Walking"}
    errors = {"mpjpe": np.array([10.0, 20, 60, np.nan])}
    told = summarise_errors(errors, np.array(["a", "b", "b", "b"]))
    assert (told["mpjpe_mm"], told["rows"], told["not_compared"]) == (30, 4, 1)
    assert told["actions"]["b"] == {"mpjpe_mm": 40, "rows": 3, "not_compared": 1}
    assert summarise_errors({"pve": np.array([np.nan])}, np.array([""]))["pve_mm"] is None
