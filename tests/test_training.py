import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from builders import seeded, some_poses, write_motion
from fake_gpu import assert_never_waits
from test_synthetic_projections import samples
from typer.testing import CliRunner

import run_pipeline
from models.body import global_rotations, load_body
from models.regressors import calibrated
from models.regressors.calibrated import CalibratedNet
from models.regressors.keypoint_nets import load_regressor
from models.regressors.kinematics import six_to_matrix
from models.regressors.layers import Estimate
from models.synthetic.poses import read_poses
from models.synthetic.projections import TEST, Difficulty, Projections
from models.training.keypoints import KeypointNetConfig, batches, keypoint_net_errors, make_net
from models.training.losses import loss_of
from models.training.trainer import TrainConfig, train
from pipeline.config import load
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24

BODY = load_body().keypoints
CLEAN = Difficulty(noise=0.0)


def small_net(kind="calibrated", poses=None):
    return make_net(KeypointNetConfig(width=32), kind, 0, poses or some_poses())


@pytest.fixture
def motion(tmp_path):
    return write_motion(tmp_path)


# --- Losses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["calibrated", "uncalibrated"])
def test_the_loss_never_waits_for_a_gpu(kind):
    assert_never_waits(lambda net, s: loss_of(net, s, reprojection=1.0), small_net(kind), samples(views=2))


def test_the_truth_costs_nothing_but_doubt(monkeypatch):
    s = samples(difficulty=Difficulty(noise=1.0, calibration=1.0))
    net = small_net()
    error = math.log(0.1)

    def truth(e, off=0.0):
        turned = e.turn[:, None] @ s.world_rotations
        root = ((s.joints[:, 0] - e.origin)[:, None] @ e.turn.mT)[:, 0] + off
        joints, points = net.kinematics(turned, s.betas)
        return [Estimate(turned, s.betas, joints, points, torch.full((6, 23), error), root)] * 2

    monkeypatch.setattr(net, "iterate", truth)
    loss, _ = loss_of(net, s)
    assert float(loss) == pytest.approx(0.05 * error, abs=1e-3)
    monkeypatch.setattr(net, "iterate", lambda e: truth(e, 0.1))
    assert float(loss_of(net, s)[0]) == pytest.approx(0.05 * error + 1.3 * 0.3, abs=1e-3)


@pytest.mark.parametrize("kind", ["calibrated", "uncalibrated"])
def test_a_person_whom_no_view_shows_teaches_nothing(kind):
    s = samples(views=2)
    net = small_net(kind)
    gone = replace(s, xy_px=s.xy_px.clone(), confidence=s.confidence.clone())
    gone.xy_px[3:], gone.confidence[3:] = torch.nan, 0
    loss, _ = loss_of(net, gone)
    want, _ = loss_of(net, s.map(lambda x: x[:3]))
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    torch.autograd.backward(loss)
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_doubt_learns_from_the_error_and_does_not_teach_the_pose():
    s = samples(count=3)
    net = small_net()
    _, last = loss_of(net, s)
    torch.autograd.backward(last.log_sigma.sum())
    assert net.doubt.weight.grad is not None
    assert net.output.weight.grad is None
    assert net.encode[0].weight.grad is None


# --- The loop -----------------------------------------------------------------------------------------------


def tiny(motion, iterations=2, reprojection=0.0, **more):
    keypoints = KeypointNetConfig(
        width=32, iterations=iterations, reprojection=reprojection, check_samples=10
    )
    return TrainConfig(
        **{"batch": 16, "warmup_steps": 5, "seed": 3, "motion": motion, "keypoints": keypoints, **more}
    )


@pytest.mark.parametrize("kind", ["calibrated", "uncalibrated"])
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(kind, motion, tmp_path):
    cfg = tiny(motion, net=kind, steps=12, check_steps=4, checkpoint_steps=4)
    for _ in train(cfg, tmp_path / "whole"):
        pass
    stopped = train(cfg, tmp_path / "two")
    for done in stopped:
        if done.step == 5:
            stopped.close()
    steps = [p.step for p in train(cfg, tmp_path / "two", resume=True)]
    assert steps == list(range(6, 13))
    whole, two = (tmp_path / d / "weights.safetensors" for d in ("whole", "two"))
    assert whole.read_bytes() == two.read_bytes()
    row = json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 12
    assert {f"pa_mpjpe_mm_{v}" for v in (1, 2, 4, 8)} < set(row)


def test_training_brings_the_error_down(motion, tmp_path):
    cfg = tiny(motion, steps=60, learning_rate=3e-3)
    losses = [p.loss for p in train(cfg, tmp_path / "out")]
    assert losses[-1] < 0.8 * losses[0]
    net = load_regressor(tmp_path / "out" / "weights.safetensors")
    s = Projections(read_poses(motion)[1], BODY).sample(60, 4, TEST, seeded(1))
    direct, aligned = keypoint_net_errors(net, s)
    before = make_net(cfg.keypoints, "calibrated", cfg.seed, read_poses(motion)[0])
    start = keypoint_net_errors(before, s)
    assert np.nanmean(direct) < 0.8 * np.nanmean(start[0])
    assert np.nanmean(aligned) <= np.nanmean(direct)


def test_a_training_starts_from_weights_that_are_given(motion, tmp_path):
    list(train(tiny(motion, steps=5), tmp_path / "first"))
    init = tmp_path / "first" / "weights.safetensors"
    more = tiny(motion, iterations=3, reprojection=5.0, steps=1, learning_rate=1e-9)
    list(train(more, tmp_path / "second", init=init))
    first, second = load_regressor(init), load_regressor(tmp_path / "second" / "weights.safetensors")
    assert (first.iterations, second.iterations) == (2, 3)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="holds a calibrated net"):
        other = tiny(motion, net="uncalibrated")
        next(train(other, tmp_path / "third", init=init))


def test_reprojection_is_the_distance_to_the_rays(monkeypatch):
    s = samples(views=8)
    net = small_net()

    def shifted(e, by):
        turned = e.turn[:, None] @ s.world_rotations
        root = ((s.joints[:, 0] - e.origin)[:, None] @ e.turn.mT)[:, 0] + torch.tensor([0.0, by, 0.0])
        joints, points = net.kinematics(turned, s.betas)
        return [Estimate(turned, s.betas, joints, points, torch.zeros(6, 23), root)]

    def cost(by):
        monkeypatch.setattr(net, "iterate", lambda e: shifted(e, by))
        return loss_of(net, s, 1.0)[0].item() - loss_of(net, s)[0].item()

    assert cost(0.0) < 0.002  # rounded off at a millimetre
    assert 0.015 < cost(0.02) < 0.021  # cameras are level: all but along the rays


def test_every_count_of_views_is_trained_equally_often():
    projections, cfg = Projections(some_poses(), BODY), KeypointNetConfig()
    seen = [tuple(b.K.shape[1] for b in batches(projections, cfg, 1, 0, step)) for step in range(40)]
    assert set(seen) == {(1, 8), (2, 7), (3, 6), (4, 5)}
    a, b = batches(projections, cfg, 2, 0, 3), batches(projections, cfg, 2, 0, 3)
    assert all(torch.equal(x.joints, y.joints) for x, y in zip(a, b, strict=True))


def test_the_first_guess_is_the_mean_pose():
    pose = some_poses().pose[:1]
    pose = (pose + pose[:, list(SMPL_24.flips)] * torch.tensor([1.0, -1.0, -1.0])) / 2  # its own mirror image
    poses = replace(some_poses(), pose=pose.expand(60, 24, 3))
    turned = global_rotations(roma.rotvec_to_rotmat(pose))[0]
    for kind, want in (("calibrated", turned), ("uncalibrated", turned[0].T @ turned[1:])):
        net = small_net(kind, poses)
        found = six_to_matrix(net.start.view(-1, 6))
        torch.testing.assert_close(found, want, atol=1e-5, rtol=0)


def test_a_folder_with_a_training_is_not_trained_over(motion, tmp_path):
    cfg = tiny(motion, steps=1)
    with pytest.raises(InputError, match="no checkpoint"):
        next(train(cfg, tmp_path / "out", resume=True))
    list(train(cfg, tmp_path / "out"))
    with pytest.raises(InputError, match="--resume"):
        next(train(cfg, tmp_path / "out"))
    with pytest.raises(InputError, match="other settings"):
        next(train(tiny(motion, seed=4), tmp_path / "out", resume=True))


def test_a_folder_that_cannot_be_written_is_named(motion, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file/out: cannot be written"):
        next(train(tiny(motion), tmp_path / "file" / "out"))
    weights = tmp_path / "out" / "weights.safetensors"
    weights.mkdir(parents=True)
    with pytest.raises(InputError, match="Make room, then go on with --resume"):
        list(train(tiny(motion, steps=1), tmp_path / "out"))


def test_a_device_that_is_not_there_is_named(motion, tmp_path):
    with pytest.raises(InputError, match="device: cuda:99"):
        next(train(tiny(motion, device="cuda:99"), tmp_path / "out"))


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["calibrated", "uncalibrated"])
def test_a_gpu_trains_as_well(kind, motion, tmp_path):
    cfg = tiny(motion, net=kind, device="cuda", steps=300, learning_rate=3e-3, summary_steps=20)
    for _ in train(cfg, tmp_path / "out"):
        pass
    rows = [json.loads(row) for row in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]  # a row of a check alone has none
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    assert isinstance(load_regressor(tmp_path / "out" / "weights.safetensors").start, torch.Tensor)


def test_the_command_leaves_weights_that_load(motion, tmp_path):
    out = tmp_path / "out"
    sets = ["--set=batch=4", "--set=keypoints.width=32", "--set=keypoints.check_samples=5"]
    config = str(Path(run_pipeline.__file__).parent / "configs" / "train_tiny.yaml")
    asked = ["train", "--config", config, "--motion", str(motion), "--out", str(out), *sets]
    result = CliRunner().invoke(run_pipeline.app, [*asked, "--max-steps", "3"])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert f"a network on keypoints of calibrated cameras for 3 steps of 4 samples, into {out}." in said
    assert re.search(r"held-out samples: .*pa_mpjpe_mm_4 [0-9.]+", said), said
    assert "Next: python run_pipeline.py run RECORDING --set regress.weights=" in said
    assert isinstance(load_regressor(out / "weights.safetensors"), CalibratedNet)
    rows = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [0, 3]
    result = CliRunner().invoke(run_pipeline.app, [*asked, "--max-steps", "4", "--resume-if-any"])
    assert result.exit_code == 0, result.output
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4


def test_a_training_is_asked_which(tmp_path):
    result = CliRunner().invoke(run_pipeline.app, ["train", "--out", str(tmp_path)])
    assert isinstance(result.exception, InputError)
    assert "--config: which training?" in str(result.exception)


@pytest.mark.parametrize(
    "name",
    [p.stem for p in sorted((Path(run_pipeline.__file__).parent / "configs").glob("train_*.yaml"))],
)
def test_the_configurations_that_ship_are_sound(name):
    file = Path(run_pipeline.__file__).parent / "configs" / f"{name}.yaml"
    assert load(TrainConfig, [file]) != TrainConfig() or name == "train_keypoints_calibrated"
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    assert all("#" in line for line in lines if not line.endswith(":"))  # each with its reason


def test_errors_of_the_truth_are_zero(monkeypatch):
    s = samples(views=2)
    net = small_net()
    assert isinstance(net, CalibratedNet)

    def truth(e):
        turned = e.turn[:, None] @ s.world_rotations
        joints, points = net.kinematics(turned, s.betas)
        root = ((s.joints[:, 0] - e.origin)[:, None] @ e.turn.mT)[:, 0]
        return [Estimate(turned, s.betas, joints, points, torch.zeros(6, 23), root)]

    monkeypatch.setattr(net, "iterate", truth)
    monkeypatch.setattr(calibrated, "concatenated", lambda a, b: a)
    monkeypatch.setattr(calibrated, "average_mirrored", lambda both, kinematics: both)
    for joints in (24, 22):
        direct, aligned = keypoint_net_errors(net, s, joints)
        assert direct.max() < 1e-4  # metres, of rays in float32
        assert aligned.max() < 1e-4
