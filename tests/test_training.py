import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import roma
import torch
from typer.testing import CliRunner

import run_pipeline
from models.body import global_rotations, load_body, pose_keypoints
from models.regressors.calibrated import CalibratedNet
from models.regressors.keypoint_nets import load_regressor
from models.regressors.kinematics import six_to_matrix, to_local
from models.regressors.layers import Estimate
from models.rotations import geodesic_degrees
from models.training.keypoints import KeypointsConfig, batches, joint_errors, make_net
from models.training.losses import loss_of
from models.training.poses import Poses, Sampler, held_out_clips, read_poses
from models.training.projections import TEST, Difficulty, Projections
from models.training.trainer import TrainConfig, train
from pipeline.config import load
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24

BODY = load_body().keypoints
CLEAN = Difficulty(noise=0.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def some_poses(frames=60):
    pose = 0.25 * torch.randn(frames, 24, 3, generator=seeded(99))
    category = (torch.arange(frames) >= frames // 2).long()
    return Poses(pose, torch.full((frames,), 0.95), category, ("a", "b"))


def samples(count=6, views=4, difficulty=CLEAN, seed=0):
    return Projections(some_poses(), BODY).sample(count, views, difficulty, seeded(seed))


def small_net(kind="calibrated", poses=None):
    return make_net(KeypointsConfig(width=32), kind, 0, poses or some_poses())


@pytest.fixture
def motion(tmp_path):
    """A file of twelve clips of ten frames."""
    rng = np.random.default_rng(0)
    path = tmp_path / "poses.npz"
    np.savez(
        path,
        body_pose=0.25 * rng.normal(size=(120, 24, 3)).astype(np.float32),
        trans=np.full((120, 3), 0.9, np.float32),
        clip_id=np.repeat(np.arange(12), 10),
        clip_name=np.array([f"cmu_{i // 3:02d}_{i:02d}" for i in range(12)]),
        clip_category=np.array(["walk"] * 9 + ["jump"] * 3),
    )
    return path


# --- Poses --------------------------------------------------------------------------------------------------


def test_whole_subjects_and_pairs_of_dancers_are_held_out():
    names = [f"cmu_{subject:02d}_{trial:02d}" for subject in range(7, 13) for trial in range(4)]
    names += [f"cmud_salsa_{i:02d}" for i in range(1, 31)] + [f"cmu_01_{i:02d}" for i in range(10)]
    names += ["cmu_09_06", "cmu_09_07"]
    categories = ["walk"] * 24 + ["salsa"] * 30 + ["playground"] * 10 + ["run"] * 2
    out = held_out_clips(names, categories)
    assert out == held_out_clips(names, categories)
    held = {n for n, o in zip(names, out, strict=True) if o}
    walks = {n[:6] for n in names[:24]}
    assert {sum(n.startswith(w) for n in held) for w in walks - {"cmu_01"}} == {0, 4}
    assert len(held & set(names[:24])) == 4
    salsa = {int(n[-2:]) for n in held if "salsa" in n}
    assert len(salsa) == 4
    assert {i % 15 for i in salsa if i <= 15} == {i % 15 for i in salsa if i > 15}
    assert sum(n.startswith("cmu_01") for n in held) == 2  # one subject: clips
    assert not held & {"cmu_09_06", "cmu_09_07"}  # two clips are too few to spare one


def test_no_clip_is_in_both_halves(motion):
    train_poses, test_poses = read_poses(motion)
    assert len(train_poses.pose) + len(test_poses.pose) == 120
    assert len(test_poses.pose) == 40  # one walker's three clips, one jump
    both = torch.cat([train_poses.pose, test_poses.pose]).flatten(1)
    assert len(torch.unique(both, dim=0)) == 120
    assert sorted(torch.bincount(test_poses.category).tolist()) == [10, 30]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trans": None}, "trans"),
        ({"body_pose": np.zeros((120, 72))}, r"\(120, 72\)"),
        ({"clip_id": np.arange(120)}, "from 0; it has 0 to 119"),
        ({"clip_category": np.array([f"{i}" for i in range(12)])}, "no category has three clips"),
        (b"no motion", "poses"),
        (b"", "poses"),
        (b"PK\x03\x04 cut off", "poses"),
    ],
)
def test_another_file_is_refused_by_name(motion, change, message):
    if isinstance(change, bytes):
        motion.write_bytes(change)
    else:
        with np.load(motion) as d:
            arrays = {**d, **change}
        np.savez(motion, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(InputError, match=message):
        read_poses(motion)


def test_a_category_is_drawn_by_the_root_of_its_frames():
    category = torch.cat([torch.zeros(900), torch.ones(100)]).long()
    poses = Poses(torch.zeros(1000, 24, 3), torch.ones(1000), category, ("many", "few"))
    drawn = Sampler(poses).draw(20000, seeded())
    share = float((category[drawn] == 1).float().mean())
    assert share == pytest.approx(10 / (10 + 30), abs=0.01)
    assert len(torch.unique(drawn)) == 1000


def test_poses_come_as_they_are_or_mirrored():
    poses = some_poses()
    index = torch.arange(40)
    found = roma.rotmat_to_rotvec(Sampler(poses).rotations(index, seeded(), varied=False))
    pose = poses.pose[:40]
    mirrored = pose[:, list(SMPL_24.flips)] * torch.tensor([1.0, -1.0, -1.0])
    as_is = (found - pose).abs().amax((1, 2)) < 1e-5
    flipped = (found - mirrored).abs().amax((1, 2)) < 1e-5
    assert (as_is ^ flipped).all()
    assert 10 < as_is.sum() < 30
    # A mirrored body is the mirror image: x changes its sign, left and right change places.
    body = BODY.to(dtype=torch.float32)
    still, flat = torch.zeros(1, 10), torch.zeros(1, 3)
    sampler = Sampler(replace(poses, pose=mirrored))
    turned = [
        Sampler(poses).rotations(index, seeded(), varied=False),
        sampler.rotations(index, seeded(), varied=False),
    ]
    a, b = (pose_keypoints(body, r, still, flat)[0] for r in turned)
    torch.testing.assert_close(a, b[:, list(SMPL_24.flips)] * torch.tensor([-1.0, 1, 1]), atol=1e-4, rtol=0)


def test_varied_poses_stay_near_those_that_were_captured():
    poses = some_poses()
    index = torch.arange(60).repeat(5)
    plain = Sampler(poses).rotations(index, seeded(), varied=True)
    pose = poses.pose[index]
    legs = [1, 2, 4, 5, 7, 8]
    found = roma.rotmat_to_rotvec(plain)[:, legs]
    mirrored = (pose[:, list(SMPL_24.flips)] * torch.tensor([1.0, -1.0, -1.0]))[:, legs]
    off = torch.minimum((found - pose[:, legs]).norm(dim=-1).amax(1), (found - mirrored).norm(dim=-1).amax(1))
    assert 0.5 < float((off < 1e-4).float().mean()) < 0.7  # jitter in 40 %
    assert off.max() < 0.8


# --- Projections --------------------------------------------------------------------------------------------


def test_clean_points_are_where_opencv_projects_them():
    s = samples(views=3)
    for n in range(6):
        for v in range(3):
            rvec, _ = cv2.Rodrigues(s.R[n, v].double().numpy())
            want, _ = cv2.projectPoints(
                s.points[n].double().numpy(), rvec, s.t[n, v].double().numpy(),
                s.K[n, v].double().numpy(), np.zeros(5),
            )  # fmt: skip
            found, known = s.xy_px[n, v].numpy(), s.confidence[n, v].numpy() > 0
            assert known.sum() > 10
            np.testing.assert_allclose(found[known], want[known, 0], atol=0.05)


def test_the_truth_is_one_body():
    s = samples(difficulty=Difficulty(varied_poses=True, bias=1.0, calibration=1.0))
    rotations = torch.cat([s.turned[:, :1], to_local(s.turned)], 1)
    joints, points = pose_keypoints(BODY.to(dtype=torch.float32), rotations, s.betas, s.transl)
    torch.testing.assert_close(joints, s.joints, atol=1e-5, rtol=0)
    torch.testing.assert_close(points, s.points, atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_samples():
    a, b, c = (samples(difficulty=TEST, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.xy_px.nan_to_num(), b.xy_px.nan_to_num())
    assert not torch.equal(a.xy_px.nan_to_num(), c.xy_px.nan_to_num())


def test_the_detector_errs_as_much_as_it_should():
    s = samples(count=400, views=4, difficulty=TEST)
    cam = s.points[:, None] @ s.R.mT + s.t[:, :, None]
    true = cam @ s.K.mT
    true = true[..., :2] / true[..., 2:]
    missing = s.confidence == 0
    assert torch.equal(missing, s.xy_px.isnan().any(-1))
    assert 0.15 < float(missing.float().mean()) < 0.3  # 15 % lost, and what is covered or outside
    box = (true.amax(2) - true.amin(2)).amax(-1)[..., None]
    error = ((s.xy_px - true).norm(dim=-1) / box)[~missing]
    assert float(error.median()) == pytest.approx(0.0125 * math.sqrt(2 * math.log(2)), rel=0.2)
    assert 0.04 < float((error > 0.05).float().mean()) < 0.1
    sure = s.confidence[~missing]
    assert np.corrcoef(error, sure)[0, 1] < -0.3
    assert float(sure.min()) >= 0.05
    assert float(sure.max()) <= 1


def test_calibrations_are_off_by_a_little():
    s = samples(count=300, difficulty=Difficulty(noise=0.0, calibration=1.0, focal=0.1))
    assert float(geodesic_degrees(s.R, s.true_R).square().mean()) == pytest.approx(3 * 0.09, rel=0.2)
    away = (s.R.mT @ s.t[..., None] - s.true_R.mT @ s.true_t[..., None]).norm(dim=(-1, -2))
    assert float(away.square().mean()) == pytest.approx(3e-4, rel=0.2)
    focal = s.K[..., 0, 0] / s.true_focal
    assert 0.4 < float((focal[:, 0] == 1).float().mean()) < 0.6
    torch.testing.assert_close(focal[:, 0], focal[:, 3])


def test_cameras_stand_where_the_person_faces():
    def facing(s):
        """Cosine between the way the body faces and the way to each camera."""
        way = -(s.R.mT @ s.t[..., None])[..., 0] - s.joints[:, :1]
        return torch.cosine_similarity(way, s.turned[:, :1, :, 2].expand_as(way), dim=-1)

    before = facing(samples(count=100, difficulty=replace(CLEAN, around=math.radians(60))))
    assert before.min() > math.cos(math.radians(60 + 45))  # bodies lean, cameras are higher or lower
    assert facing(samples(count=100)).min() < -0.9


def test_a_detector_without_feet_finds_none():
    s = samples(count=100, difficulty=Difficulty(noise=0.0, no_feet=0.5))
    feet = s.confidence[:, :, 19:] > 0
    lacking = ~feet.any(-1).any(-1)
    assert 0.3 < float(lacking.float().mean()) < 0.7
    assert (s.confidence[lacking][:, :, :15] > 0).float().mean() > 0.9


# --- Losses -------------------------------------------------------------------------------------------------


def test_the_truth_costs_nothing_but_doubt(monkeypatch):
    s = samples(difficulty=Difficulty(noise=1.0, calibration=1.0))
    net = small_net()
    error = math.log(0.1)

    def truth(e, off=0.0):
        turned = e.turn[:, None] @ s.turned
        root = ((s.joints[:, 0] - e.origin)[:, None] @ e.turn.mT)[:, 0] + off
        joints, points = net.kinematics(turned, s.betas)
        return [Estimate(turned, s.betas, joints, points, torch.full((6, 23), error), root)] * 2

    monkeypatch.setattr(net, "rounds", truth)
    loss, _ = loss_of(net, s)
    assert float(loss) == pytest.approx(0.05 * error, abs=1e-3)
    monkeypatch.setattr(net, "rounds", lambda e: truth(e, 0.1))
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
    keypoints = KeypointsConfig(width=32, iterations=iterations, reprojection=reprojection, check_samples=10)
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
    direct, aligned = joint_errors(net, s)
    before = make_net(cfg.keypoints, "calibrated", cfg.seed, read_poses(motion)[0])
    start = joint_errors(before, s)
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
        turned = e.turn[:, None] @ s.turned
        root = ((s.joints[:, 0] - e.origin)[:, None] @ e.turn.mT)[:, 0] + torch.tensor([0.0, by, 0.0])
        joints, points = net.kinematics(turned, s.betas)
        return [Estimate(turned, s.betas, joints, points, torch.zeros(6, 23), root)]

    def cost(by):
        monkeypatch.setattr(net, "rounds", lambda e: shifted(e, by))
        return loss_of(net, s, 1.0)[0].item() - loss_of(net, s)[0].item()

    assert cost(0.0) < 0.002  # rounded off at a millimetre
    assert 0.015 < cost(0.02) < 0.021  # cameras are level: all but along the rays


def test_every_count_of_views_is_trained_equally_often():
    projections, cfg = Projections(some_poses(), BODY), KeypointsConfig()
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
        next(train(tiny(motion, steps=2), tmp_path / "out", resume=True))


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
    cfg = tiny(motion, net=kind, device="cuda", steps=60, learning_rate=3e-3, summary_steps=10)
    for _ in train(cfg, tmp_path / "out"):
        pass
    rows = [json.loads(row) for row in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.9 * rows[1]["loss"]
    assert isinstance(load_regressor(tmp_path / "out" / "weights.safetensors").start, torch.Tensor)


def test_the_command_leaves_weights_that_load(motion, tmp_path):
    out = tmp_path / "out"
    sets = ["--set=batch=4", "--set=keypoints.width=32", "--set=keypoints.check_samples=5"]
    asked = ["train", "--motion", str(motion), "--out", str(out), *sets]
    result = CliRunner().invoke(run_pipeline.app, [*asked, "--max-steps", "3"])
    assert result.exit_code == 0, result.output
    assert isinstance(load_regressor(out / "weights.safetensors"), CalibratedNet)
    rows = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [0, 3]


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
        turned = e.turn[:, None] @ s.turned
        joints, points = net.kinematics(turned, s.betas)
        return [Estimate(turned, s.betas, joints, points, torch.zeros(6, 23), torch.zeros(6, 3))]

    monkeypatch.setattr(net, "rounds", truth)
    for joints in (24, 22):
        direct, aligned = joint_errors(net, s, joints)
        assert direct.max() < 1e-5
        assert aligned.max() < 1e-5
