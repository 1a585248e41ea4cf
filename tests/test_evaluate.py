"""The commands around data sets, as a user runs them: preprocess, evaluate, data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from h36m_tree import make as make_h36m
from mpi_tree import make_train as make_mpi
from people import COUNT, image_net, write_people
from test_single_pictures import make_coco, make_mpii
from test_threedpw import make as make_threedpw
from typer.testing import CliRunner

import run_pipeline
from models.body import load_body
from models.datasets.rows import read_rows
from models.external import EXTERNAL
from models.image_regressor import save_image_regressor
from pipeline.errors import InputError
from pipeline.store import Store
from stages.synth import SynthConfig, write_recording


def call(*words: object) -> str:
    """What a command prints, once it has ended well."""
    done = CliRunner().invoke(run_pipeline.app, [str(w) for w in words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_image_regressor(image_net(), file)
    return file


def test_a_network_on_pictures_is_evaluated(folder: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.npz"
    told = call(
        "evaluate", "--dataset", "h36m-p2", "--data", folder / "rows.npz", "--weights", weights, "--views", 2,
        "--result", out, "--batch-size", 3, "--log-freq", 1,
    )  # fmt: skip
    metrics = json.loads((out.parent / "metrics.json").read_text())
    assert metrics["protocol"]["name"] == "h36m-p2"
    assert metrics["protocol"]["camera"] == "60457274"
    assert metrics["approximate"]
    assert metrics["rows_of_other_data"] == 0
    assert "resnet50 on pictures" in metrics["weights"]
    assert set(metrics["actions"]) == {"Eating", "Walking"}
    with np.load(out) as saved:
        assert saved["row"].tolist() == list(range(2, COUNT, 3))
        assert saved["pose"].shape == (COUNT // 3, 72)
        assert np.abs(saved["pred_joints"]).max((1, 2)).min() > 0
        np.testing.assert_allclose(saved["mpjpe_mm"].mean(), metrics["mpjpe_mm"])
    for word in ("approximate", "Eating", "Walking", f"{metrics['pa_mpjpe_mm']:.1f}"):
        assert word in told


def test_a_network_goes_on_with_the_fit(folder: Path, weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    shared = (
        "evaluate", "--dataset", "h36m-p1", "--data", folder / "rows.npz", "--weights", weights, "--views", 3,
        "--json", file,
    )  # fmt: skip
    call(*shared)
    before = json.loads(file.read_text())
    call(*shared, "--fit")
    after = json.loads(file.read_text())
    assert after["mpjpe_mm"] < 0.4 * before["mpjpe_mm"]  # the network has random weights
    assert (before["fit"], after["fit"]) == (False, True)


def test_two_stores_are_compared(tmp_path: Path) -> None:
    cfg = SynthConfig(cameras=2, seconds=0.5, fps=20, size=(320, 240), videos=False)
    truth = write_recording(tmp_path / "recording", cfg, load_body())
    (tmp_path / "out").mkdir()
    results = Store.create(tmp_path / "out" / "results.zarr", replace(truth.contents, angles={}))
    batch = truth.read(0)
    joints = batch.joints + torch.tensor([0.003, 0.004, 0])
    results.write(type(batch)(**{**vars(batch), "joints": joints}))
    told = call("evaluate", "--truth", truth.path, tmp_path / "out", "--json", tmp_path / "metrics.json")
    (person,) = json.loads((tmp_path / "metrics.json").read_text())["people"]
    assert person["mpjpe_mm"] == pytest.approx(5, abs=0.01)
    assert person["pa_mpjpe_mm"] == pytest.approx(0, abs=0.01)
    assert person["acceleration_mm"] == pytest.approx(0, abs=0.01)
    assert "MPJPE, world, mm" in told
    assert "5.0" in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--dataset", "h36m", "--data", "x.npz"), "give a protocol, h36m-p1"),
        (("--dataset", "3dpw"), "give a protocol"),
        (("results.zarr",), "against which truth"),
        (("--truth", "truth.zarr"), "takes one results.zarr"),
        (("--dataset", "3dpw", "--data", "x.npz"), "x.npz: cannot be read"),
        (("--dataset", "3dpw", "--data", "x.npz", "--weights", "none"), "nothing to evaluate"),
    ],
)
def test_what_cannot_be_evaluated_is_said(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        call("evaluate", *words)


def test_data_sets_are_preprocessed(tmp_path: Path) -> None:
    told = call("preprocess", "mpi-inf-3dhp", make_mpi(tmp_path / "mpi"), "--out", tmp_path / "mpi.npz")
    assert "1 of 16 sequences are there" in told
    assert "5 rows of 3 instants take" in told
    with np.load(tmp_path / "mpi.npz") as rows:
        assert rows["S"].shape == (5, 24, 4)
        assert rows["part"].dtype == np.float32
    call(
        "preprocess", "h36m", make_h36m(tmp_path / "h36m"), "--split", "test", "--out", tmp_path / "h36m.npz"
    )
    with np.load(tmp_path / "h36m.npz") as rows:
        assert len(rows["id"]) == 12
        assert len(set(rows["group"])) == 6
    for name, make, split in (
        ("mpii", make_mpii, "train"), ("coco", make_coco, "train2014"),
        ("3dpw", make_threedpw, "test"),
    ):  # fmt: skip
        call("preprocess", name, make(tmp_path / name), "--split", split, "--out", tmp_path / f"{name}.npz")
        assert len(read_rows(tmp_path / f"{name}.npz")["id"])


def test_what_cannot_be_preprocessed_is_said(tmp_path: Path) -> None:
    root = make_mpi(tmp_path / "mpi")
    out = tmp_path / "out.npz"
    with pytest.raises(InputError, match="no such data set"):
        call("preprocess", "panoptic", root, "--out", out)
    with pytest.raises(InputError, match="has train, test"):
        call("preprocess", "h36m", root, "--out", out, "--split", "validation")
    with pytest.raises(InputError, match="no person of the data set was found by OpenPose"):
        call("preprocess", "mpi-inf-3dhp", root, "--out", out, "--openpose", tmp_path)
    assert not out.exists()


def test_files_that_cannot_ship_are_listed_and_looked_at(tmp_path: Path) -> None:
    told = call("data", tmp_path)
    for external in EXTERNAL:
        assert external.purpose in told
        assert external.source.split(" ")[0] in told
    assert "None of them is needed" in told
    matrix = np.zeros((17, 6890))
    matrix[:, 0] = 1
    np.save(tmp_path / "J_regressor_h36m.npy", matrix)
    make_mpi(tmp_path / "mpi_inf_3dhp")
    told = call("data", tmp_path)
    assert "17 joints of 6890 vertices" in told
    assert "train: 1" in told
    (tmp_path / "J_regressor_extra.npy").write_bytes(b"damaged")
    done = CliRunner().invoke(run_pipeline.app, ["data", str(tmp_path)])
    assert done.exit_code == 1
    assert "not sound" in done.output


def test_the_truth_of_3dpw_is_of_men_and_women(folder: Path, tmp_path: Path) -> None:
    told = call(
        "evaluate",
        "--dataset",
        "3dpw",
        "--data",
        folder / "rows.npz",
        "--views",
        3,
        "--result",
        tmp_path / "o.npz",
    )
    assert "give --body-male and --body-female" in told
    assert f"{COUNT} of {COUNT} rows are not of 3dpw's test set" in told
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["bodies"] == "neutral: anny"
    assert metrics["pve_mm"] < 60
