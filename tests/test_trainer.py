import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from builders import smpl_file
from people import COUNT, write_people
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import models.image_regressor
from models.image_regressor import (
    ImageConfig,
    ImageRegressor,
    load_image_regressor,
    save_image_regressor,
)
from models.training.fits import FitStore
from models.training.images import ImagesConfig
from models.training.keypoints import KeypointNetConfig, KeypointTask
from models.training.loop import LoopConfig
from models.training.losses import LossConfig
from models.training.samples import Sampling
from models.training.sources import SourceConfig, open_source
from models.training.trainer import TrainConfig, _open_curves, train
from pipeline.errors import InputError
from pipeline.files import locked

ROOT = Path(__file__).parents[1]
WIDTH = 12


def small_encoder(name, *, imagenet=False):
    """In place of a ResNet-50: a thousandth of its size, with normalisation over the batch as it has."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=8), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, WIDTH, 3, stride=4), nn.BatchNorm2d(WIDTH), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(models.image_regressor, "make_encoder", small_encoder)
    monkeypatch.setitem(models.image_regressor.FEATURE_SIZES, "resnet50", WIDTH)


def image_config(**more):
    images = ImagesConfig(
        fusion="average", size=128, imagenet=False, supervision="2d", loss=LossConfig(detected=1.0),
        sources=(SourceConfig(count=9),), check_samples=4, **more.pop("images", {}),
    )  # fmt: skip
    return TrainConfig(
        **{
            "net": "images",
            "steps": 8,
            "batch": 3,
            "clip": 100.0,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "summary_steps": 1,
            "check_steps": 4,
            "checkpoint_steps": 2,
            "images": images,
            **more,
        }
    )


def keypoint_config(**more):
    keypoints = KeypointNetConfig(width=16, iterations=1, check_samples=4)
    return TrainConfig(
        **{
            "steps": 8,
            "batch": 8,
            "warmup_steps": 2,
            "check_steps": 4,
            "checkpoint_steps": 2,
            "keypoints": keypoints,
            **more,
        }
    )


def killed_config(**images):
    """Fits are written before every step, so those of steps that are made again are there already."""
    return image_config(images={"fits": LoopConfig(save_steps=1), **images})


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_time(found):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


_KILLED = """
import sys
sys.path[:0] = sys.argv[1], sys.argv[1] + "/tests"
import torch
torch.set_num_threads(1)
from pathlib import Path
import models.image_regressor
from models.training.trainer import train
from test_trainer import WIDTH, killed_config, small_encoder
models.image_regressor.make_encoder = small_encoder
models.image_regressor.FEATURE_SIZES["resnet50"] = WIDTH
if __name__ == "__main__":
    # With samples made by another process, which gives the same.
    for done in train(killed_config(workers=1), Path(sys.argv[2])):
        print(done.step, flush=True)
        if done.step == 5:
            sys.stdin.read()
"""


def test_a_training_that_was_killed_goes_on_to_the_same_weights_fits_and_curves(small, tmp_path):
    cfg = killed_config()
    for _ in train(cfg, tmp_path / "whole"):
        pass
    script = tmp_path / "killed.py"
    script.write_text(_KILLED)
    killed = subprocess.Popen(
        [sys.executable, str(script), str(ROOT), str(tmp_path / "killed")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert killed.stdout is not None
    assert [int(line) for _, line in zip(range(5), killed.stdout, strict=False)] == [1, 2, 3, 4, 5]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    steps = [p.step for p in train(cfg, tmp_path / "killed", resume=True)]
    assert steps == [5, 6, 7, 8]  # the checkpoint was of step 4; 9 samples are two thirds of an epoch then
    whole, two = (tmp_path / d / "weights.safetensors" for d in ("whole", "killed"))
    assert whole.read_bytes() == two.read_bytes()
    assert without_time(rows(tmp_path / "whole")) == without_time(rows(tmp_path / "killed"))
    names = [[f"synthetic/train/0/{v}/{i}" for v in range(2)] for i in range(9)]
    a, b = (FitStore(tmp_path / d / "fits.zarr").get(names) for d in ("whole", "killed"))
    assert a.score.isfinite().any()
    assert torch.equal(a.score, b.score)
    assert torch.equal(a.body_pose, b.body_pose)
    assert load_image_regressor(whole).config.size == 128
    assert any((tmp_path / "whole" / "tensorboard").iterdir())


def test_fits_teach_and_can_be_left_out(small, tmp_path):
    for name, enabled in (("with", True), ("without", False)):
        fits = LoopConfig(enabled=enabled, save_steps=1)
        cfg = image_config(steps=2, precision="bf16", checkpoint_steps=100, images={"fits": fits})
        list(train(cfg, tmp_path / name))
    with_fits, without = (rows(tmp_path / name)[1] for name in ("with", "without"))
    assert with_fits["keypoints"] == pytest.approx(without["keypoints"])  # the same samples and net
    assert with_fits["posed"] == 1
    assert with_fits["pose"] > 0.1
    assert (without["pose"], without["joints"], without["posed"]) == (0, 0, 0)
    assert not (tmp_path / "without" / "fits.zarr").exists()
    assert len(list((tmp_path / "with" / "fits.zarr").glob("part-*"))) == 2  # written after every step
    curves = EventAccumulator(str(tmp_path / "with" / "tensorboard")).Reload()
    assert {"loss", "pose", "pa_mpjpe_mm", "learning_rate"} < set(curves.Tags()["scalars"])
    (sheet,) = curves.Images("crops, predicted, fitted")
    assert (sheet.width, sheet.height) == (3 * 2 * 128, 3 * 128)


def test_a_training_begins_with_spins_fits(small, tmp_path):
    folder = write_people(tmp_path)
    arrays = np.load(folder / "rows.npz")
    np.save(tmp_path / "fits.npy", np.concatenate([arrays["pose"], arrays["shape"]], 1))
    source = SourceConfig(kind="npz", path=folder / "rows.npz", fits=tmp_path / "fits.npy")
    cfg = image_config(steps=1)
    cfg = cfg.model_copy(update={"images": cfg.images.model_copy(update={"sources": (source,)})})
    list(train(cfg, tmp_path / "out"))
    assert len(FitStore(tmp_path / "out" / "fits.zarr")) == COUNT
    with pytest.raises(InputError, match=r"fits\.npy: fits are of the rows of published data"):
        open_source(SourceConfig(fits=tmp_path / "fits.npy"), Sampling(2, 128))


def test_a_users_smpl_is_learned_as_the_body_that_ships(small, tmp_path):
    learned = []
    for name, body in (("ships", None), ("smpl", smpl_file(tmp_path))):
        cfg = image_config(steps=2, check_steps=2, images={"body": body})
        list(train(cfg, tmp_path / name))
        learned.append(load_image_regressor(tmp_path / name / "weights.safetensors"))
    # The file's body is the same, only not known to be: the weights say whose betas they are about.
    a, b = (net.state_dict() for net in learned)
    assert [net.config.body for net in learned] == ["anny", "smpl"]
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert without_time(rows(tmp_path / "ships")) == without_time(rows(tmp_path / "smpl"))


def test_weights_of_spin_are_gone_on_from_with_their_body(small, tmp_path):
    first = ImageRegressor(ImageConfig("resnet50", "average", body="smpl", size=128, spin_camera=True))
    save_image_regressor(first, tmp_path / "spin.safetensors")
    cfg = image_config(steps=1, images={"body": smpl_file(tmp_path)}, learning_rate=1e-9)
    list(train(cfg, tmp_path / "smpl", init=tmp_path / "spin.safetensors"))
    net = load_image_regressor(tmp_path / "smpl" / "weights.safetensors")
    torch.testing.assert_close(net.head.fc1.weight, first.head.fc1.weight, atol=1e-6, rtol=0)
    assert not net.config.spin_camera
    with pytest.raises(InputError, match=r"spin\.safetensors: holds .*body='smpl'.* ask for .*body='anny'"):
        list(train(image_config(steps=1), tmp_path / "ships", init=tmp_path / "spin.safetensors"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"body": "absent.pkl"}, r"absent\.pkl: cannot read the body model"),
        ({"joint_regressor": "extra.npy"}, r"extra\.npy: .* Give SMPL, images\.body, too"),
        ({"pose_prior": "gmm_08.pkl"}, r"gmm_08\.pkl: no pose prior"),
    ],
)
def test_what_is_not_there_is_named(files, message, small, tmp_path):
    images = {key: tmp_path / name for key, name in files.items()}
    with pytest.raises(InputError, match=message):
        list(train(image_config(images=images), tmp_path / "out"))


@pytest.mark.cuda
def test_a_gpu_trains_image_nets_as_well(small, tmp_path):
    cfg = image_config(device="cuda", precision="bf16")
    list(train(cfg, tmp_path / "gpu"))
    list(train(image_config(device="cpu"), tmp_path / "cpu"))
    gpu, cpu = (rows(tmp_path / name) for name in ("gpu", "cpu"))
    assert gpu[1]["loss"] == pytest.approx(cpu[1]["loss"], rel=0.05)
    assert gpu[-1]["posed"] == 1


@pytest.mark.cuda
def test_steps_that_a_gpu_replays_are_those_that_it_computes(small, tmp_path, monkeypatch):
    """The first step makes fits, the second is computed, the third recorded, the others are replayed."""
    images = {"fits": LoopConfig(every=100), "dropout": 0.0}
    cfg = image_config(steps=12, device="cuda", precision="bf16", images=images)
    list(train(cfg, tmp_path / "replayed"))
    monkeypatch.setattr("models.training.trainer.Replayed", lambda function: None)
    list(train(cfg, tmp_path / "computed"))
    one, two = (rows(tmp_path / name) for name in ("replayed", "computed"))
    assert len(one) == len(two)
    for a, b in zip(one[1:], two[1:], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.03), "sums on a GPU have no fixed order"
        assert a["gradient"] == pytest.approx(b["gradient"], rel=0.1)


def test_two_processes_have_the_loss_of_one(tmp_path):
    cfg = keypoint_config(
        batch=32, steps=4, summary_steps=1, warmup_steps=1, device="cpu",
        keypoints=KeypointNetConfig(width=16, easy=1, check_samples=2),
    )  # fmt: skip
    list(train(cfg, tmp_path / "one"))
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(json.loads(cfg.model_dump_json())))
    command = [str(ROOT / "run_pipeline.py"), "train", "--config", str(file), "--out", str(tmp_path / "two")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(  # fails if any of the processes does
        [*launcher, *command],
        check=True, timeout=120, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    (start, *one), (same, *two) = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert start["step"] == same["step"] == 0
    assert start["pa_mpjpe_mm_4"] == same["pa_mpjpe_mm_4"]
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["gradient"] == pytest.approx(b["gradient"], rel=1e-3)
    assert one[-1]["pa_mpjpe_mm_4"] == pytest.approx(two[-1]["pa_mpjpe_mm_4"], abs=0.05)
    assert one[-1]["loss"] < one[0]["loss"]


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path, monkeypatch):
    errors = iter([10.0, 9.0, 3.0, 5.0, 4.0, 6.0])
    monkeypatch.setattr(KeypointTask, "check", lambda _: {"pa_mpjpe_mm_4": next(errors)})
    cfg = keypoint_config(steps=10, check_steps=2, keep=2)
    list(train(cfg, tmp_path))
    kept = sorted(int(p.stem) for p in (tmp_path / "checkpoints").iterdir())
    assert kept == [4, 8, 10]
    assert (tmp_path / "best.safetensors").exists()
    assert [r["pa_mpjpe_mm_4"] for r in rows(tmp_path)] == [10, 9, 3, 5, 4, 6]
    # From an older one, if it is asked for: the steps after it are made again.
    monkeypatch.setattr(KeypointTask, "check", lambda _: {"pa_mpjpe_mm_4": 7.0})
    older = tmp_path / "checkpoints" / "000000004.pt"
    assert [p.step for p in train(cfg, tmp_path, resume=older)] == [5, 6, 7, 8, 9, 10]
    assert [r["pa_mpjpe_mm_4"] for r in rows(tmp_path)] == [10, 9, 3, 7, 7, 7]


def test_a_training_stops_when_it_is_told_to_and_saves_first(tmp_path):
    cfg, seen = keypoint_config(checkpoint_steps=100), []

    def stop():
        return len(seen) == 3

    for done in train(cfg, tmp_path, stop=stop):
        seen.append(done.step)
    assert seen == [1, 2, 3]
    assert [p.step for p in train(cfg, tmp_path, resume=True)] == [4, 5, 6, 7, 8]
    assert list(train(cfg, tmp_path, resume=True)) == []  # there is nothing left to do


def test_a_loss_that_is_no_number_names_its_samples(small, tmp_path, monkeypatch):
    from models.training import images

    real = images.image_losses

    def broken(*args):
        terms = real(*args)
        seen.append(args)
        return terms | {"loss": terms["loss"] * (torch.nan if len(seen) == 3 else 1)}

    seen = []
    monkeypatch.setattr(images, "image_losses", broken)
    with pytest.raises(InputError, match=r"at step 2 the loss is nan.*not_a_number_2_0.json"):
        list(train(image_config(), tmp_path))
    report = json.loads((tmp_path / "not_a_number_2_0.json").read_text())
    assert len(report["ids"]) == 6
    assert all(i.startswith("synthetic/train/0/") for i in report["ids"])
    saved = torch.load(tmp_path / "checkpoints" / "000000002.pt", weights_only=True)
    assert saved["step"] == 2


def test_settings_that_changed_are_named(tmp_path):
    list(train(keypoint_config(steps=2), tmp_path))
    keypoints = KeypointNetConfig(width=8, iterations=1, check_samples=4)
    changed = keypoint_config(steps=3, keep=5, seed=1, keypoints=keypoints)
    listed = r"other settings: seed: 0 → 1, keypoints.width: 16 → 8\. .* Only steps, --minutes, "
    with pytest.raises(InputError, match=listed):
        list(train(changed, tmp_path, resume=True))
    (tmp_path / "checkpoints" / "000000002.pt").write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"000000002.pt: no checkpoint of a training"):
        list(train(keypoint_config(steps=2), tmp_path, resume=True))


def test_a_training_of_60_steps_extended_to_90_is_one_of_90(tmp_path):
    whole, short = (
        keypoint_config(steps=n, decay="none", check_steps=30, checkpoint_steps=30) for n in (90, 60)
    )
    assert [p.step for p in train(whole, tmp_path / "whole", resume=None)] == list(range(1, 91))
    list(train(short, tmp_path / "extended", resume=None))
    assert [p.step for p in train(whole, tmp_path / "extended", resume=None)] == list(range(61, 91))
    a, b = (tmp_path / name for name in ("whole", "extended"))
    for name in ("weights.safetensors", "best.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    first, second = (
        torch.load(x / "checkpoints" / "000000090.pt", weights_only=True)["optimiser"]["state"]
        for x in (a, b)
    )
    assert all(torch.equal(value, second[i][k]) for i, state in first.items() for k, value in state.items())
    assert without_time(rows(a)) == without_time(rows(b))


def test_what_becomes_of_the_learning_rate_is_said(tmp_path, caplog):
    list(train(keypoint_config(steps=8, learning_rate=1e-3), tmp_path))
    rates = [row["learning_rate"] for row in rows(tmp_path)]
    longer = keypoint_config(steps=16, learning_rate=2e-3)
    list(train(longer, tmp_path, resume=True))
    (said,) = caplog.messages
    listed = "at step 8 with steps: 8 → 16, learning_rate: 0.001 → 0.002."
    assert f"{listed} The learning rate, there 0 so far, is 0.001 now and falls to 0 at the end." in said
    assert rows(tmp_path)[-1]["learning_rate"] < 0.0001
    assert rates == [row["learning_rate"] for row in rows(tmp_path)][: len(rates)]
    assert list(train(longer, tmp_path, minutes=1e-5, resume=True)) == []
    assert re.search(r"--minutes: None → 1e-05\. \d+\.\d minutes have passed\.", caplog.messages[1])


def test_gradients_of_any_length_are_taken_with_the_momenta_of_the_settings(tmp_path):
    """Without clipping and with SPIN's momenta it is torch's Adam."""
    steps = {"steps": 3, "decay": "none", "warmup_steps": 1, "weight_decay": 0.0, "summary_steps": 1}
    found = {}
    for name, clip in (("off", 0.0), ("far", 1e6), ("short", 1e-3)):
        list(train(keypoint_config(**steps, clip=clip, adam_betas=(0.9, 0.999)), tmp_path / name))
        saved = torch.load(tmp_path / name / "checkpoints" / "000000003.pt", weights_only=True)
        found[name] = (tmp_path / name / "weights.safetensors").read_bytes()
        assert saved["optimiser"]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert found["off"] == found["far"] != found["short"]
    assert max(row["gradient"] for row in rows(tmp_path / "off")[1:4]) > 1e-3


def test_what_cannot_be_shared_or_computed_is_refused(tmp_path):
    with pytest.raises(InputError, match="9 is odd"):
        list(train(keypoint_config(batch=9), tmp_path))
    with pytest.raises(InputError, match="keypoint nets compute with 32 bits"):
        list(train(keypoint_config(precision="bf16"), tmp_path))


def test_two_trainings_do_not_share_a_folder(tmp_path):
    with locked(tmp_path, "training"), pytest.raises(InputError, match="another training is at work here"):
        next(train(keypoint_config(steps=2), tmp_path))


def test_a_damaged_row_of_metrics_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2 is damaged"):
        _open_curves(tmp_path, 5)
