"""The training loop of the keypoint nets."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from models.body import down_the_tree, load_body, pose_keypoints
from models.evaluation.metrics import mpjpe, pa_mpjpe
from models.regressor import (
    CalibratedNet,
    KeypointNet,
    UncalibratedNet,
    load_regressor,
    matrix_to_six,
    save_regressor,
)
from models.rotations import nearest_rotation
from models.training.losses import loss_of
from models.training.poses import Poses, Sampler, read_poses
from models.training.projections import TEST, Difficulty, Projected, Projections
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.files import write_whole

Array = NDArray[np.float64]

CHECKED_VIEWS: Final = (1, 2, 4, 8)


class TrainConfig(Config):
    """How a keypoint net is trained on synthetic projections."""

    net: Literal["calibrated", "uncalibrated"] = "calibrated"
    """Whether the net knows where the cameras are."""
    width: int = Field(512, ge=8)
    """Of the trunk and the iterations' hidden layers."""
    iterations: int = Field(4, ge=1)
    """Rounds of feedback."""
    reprojection: float = Field(0.0, ge=0)
    """Of the distance, metres, between the calibrated net's keypoints and the rays on which they were found,
    outliers apart: it is to agree with a detector that defines points otherwise, not only with the truth."""
    steps: int = Field(20000, ge=1)
    """Gradient steps, over which the learning rate falls to zero as a cosine."""
    batch: int = Field(128, ge=1)
    """Samples of each half of a batch; one half has v views, the other 9 − v."""
    learning_rate: float = Field(1e-3, gt=0)
    """AdamW's, at its highest."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's."""
    warmup_steps: int = Field(200, ge=1)
    """Steps in which the learning rate rises."""
    clip: float = Field(1.0, gt=0)
    """Longest gradient."""
    easy: float = Field(0.4, ge=0, le=1)
    """Share of samples with less noise than usual, down to none: clean input comes out clean."""
    bias: float = Field(0.5, ge=0, le=1)
    """Share of samples from a detector that puts keypoints elsewhere on the body, 6–20 mm."""
    calibration: float = Field(1.0, ge=0)
    """Errors of the cameras: 1 is 0.3 degrees and 1 cm."""
    focal: float = Field(0.0, ge=0)
    """Error of the focal length in half of the samples, as the standard deviation of its logarithm."""
    no_feet: float = Field(0.1, ge=0, le=1)
    """Share of samples from a detector that does not know feet."""
    device: str = "auto"
    """A GPU where there is one; or cpu, cuda, cuda:1. On a GPU larger batches cost next to nothing."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Of weights and samples."""
    check_seconds: float = Field(60.0, gt=0)
    """Time between checkpoints, each with the errors on held-out motion."""
    check_samples: int = Field(250, ge=1)
    """Samples of each number of views for those errors."""


@dataclass(frozen=True)
class Progress:
    """After a step."""

    step: int
    share: float
    """Of the training that is done, 0 to 1."""
    samples: int
    """In this step."""
    loss: float


def make_net(cfg: TrainConfig, poses: Poses) -> KeypointNet:
    """A net with random weights whose first guess is the mean of the motion."""
    body = load_body().keypoints
    # Layers draw their weights from the global generator, which is to stay as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        kind = CalibratedNet if cfg.net == "calibrated" else UncalibratedNet
        net: KeypointNet = kind(body, width=cfg.width, iterations=cfg.iterations)
    rng = torch.Generator().manual_seed(cfg.seed)
    sampler = Sampler(poses)
    turned = down_the_tree(sampler.rotations(sampler.draw(4000, rng), rng, varied=False))
    if cfg.net == "calibrated":  # ahead is where the body faces, on the ground
        side = turned[:, 0, :, 0] * torch.tensor([1.0, 0.0, 1.0])
        side = side / side.norm(dim=-1, keepdim=True)
        up = torch.tensor([0.0, 1.0, 0.0]).expand_as(side)
        frame = torch.stack([side, up, torch.linalg.cross(side, up, dim=-1)], 1)
        mean = (frame[:, None] @ turned).mean(0)
    else:
        mean = (turned[:, :1].mT @ turned[:, 1:]).mean(0)
    net.start.copy_(matrix_to_six(nearest_rotation(mean)).flatten())
    return net


def batches(
    projections: Projections, cfg: TrainConfig, step: int, device: torch.device | str = "cpu"
) -> list[Projected]:
    """The samples of one step, which depend on seed, step and kind of device alone."""
    rng = torch.Generator(device).manual_seed(cfg.seed * 1_000_000_007 + step)
    d = Difficulty(
        easy=cfg.easy, varied_poses=True, calibration=cfg.calibration, focal=cfg.focal, bias=cfg.bias,
        no_feet=cfg.no_feet,
    )  # fmt: skip
    views = int(torch.randint(1, 5, (), generator=rng, device=device))
    return [projections.sample(cfg.batch, v, d, rng) for v in (views, 9 - views)]


def train(
    cfg: TrainConfig,
    motion: Path,
    out: Path,
    *,
    minutes: float | None = None,
    init: Path | None = None,
    resume: bool = False,
) -> Iterator[Progress]:
    """Train, yielding after every step; leaves weights.safetensors, metrics.jsonl and checkpoints in ``out``.

    The net starts from random weights, or from those of the file ``init``, whose net may have made another
    number of iterations. With ``minutes``, that much time takes the place of the number of steps. Closing
    the generator saves a checkpoint. A training that was closed or killed goes on from its last one with
    ``resume``, to the same weights if it counts steps.

    Raises ``InputError`` when the motion or the first weights cannot be read, or when ``out`` has or lacks a
    checkpoint where it should not.
    """
    train_poses, test_poses = read_poses(motion)
    body = load_body().keypoints
    device = _device(cfg)
    projections, held_out = Projections(train_poses, body, device), Projections(test_poses, body)
    checks = [
        held_out.sample(cfg.check_samples, v, TEST, torch.Generator().manual_seed(v)) for v in CHECKED_VIEWS
    ]
    net = make_net(cfg, train_poses).to(device)
    if init is not None:
        before = load_regressor(init)
        if before.config | {"iterations": 0} != net.config | {"iterations": 0} or before.kind != net.kind:
            raise InputError(
                f"{init}: holds a {before.kind} net ({before.config}), the settings ask for a {net.kind} one "
                f"({net.config})."
            )
        net.load_state_dict(before.state_dict())
    optimiser = torch.optim.AdamW(
        net.parameters(),
        lr=cfg.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=cfg.weight_decay,
        fused=True,
    )
    checkpoint = out / "checkpoints" / "last.pt"
    if resume != checkpoint.exists():
        raise InputError(
            f"{out}: has no checkpoint to resume from; leave out --resume."
            if resume
            else f"{out}: has a training in it. Go on with it (--resume), or choose another folder."
        )
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"{out}: cannot be written ({e.strerror or e}). Choose another --out.") from e
    step, seconds, smooth = 0, 0.0, math.nan
    if resume:
        state: dict[str, Any] = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["config"] != cfg.model_dump_json():
            raise InputError(
                f"{out}: was trained with other settings: {state['config']}. "
                "Give the same, or another folder."
            )
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds, smooth = state["step"], state["seconds"], state["smooth"]
    began, checked = time.monotonic() - seconds, time.monotonic()

    def save() -> None:
        save_regressor(net, out / "weights.safetensors")
        values = {
            "net": net.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "seconds": seconds,
            "smooth": smooth, "config": cfg.model_dump_json(),
        }  # fmt: skip
        content = io.BytesIO()
        torch.save(values, content)
        write_whole(checkpoint, content.getvalue())

    def check() -> None:
        row = {"step": step, "seconds": round(seconds, 1), "loss": smooth, **errors_of(net, checks)}
        with (out / "metrics.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")
        save()

    try:
        while (share := step / cfg.steps if minutes is None else seconds / (60 * minutes)) < 1:
            warm = min(1.0, (step + 1) / cfg.warmup_steps)
            for group in optimiser.param_groups:
                group["lr"] = cfg.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * share))
            optimiser.zero_grad()
            loss = 0.0
            for half in batches(projections, cfg, step, device):
                value, _ = loss_of(net, half, cfg.reprojection)
                torch.autograd.backward(value / 2)
                loss += value.item() / 2
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), cfg.clip)
            if not math.isfinite(loss) or not bool(norm.isfinite()):
                raise FloatingPointError(f"step {step}: loss {loss}, gradient {float(norm)}; seed {cfg.seed}")
            optimiser.step()
            step += 1
            smooth = loss if math.isnan(smooth) else 0.99 * smooth + 0.01 * loss
            seconds = time.monotonic() - began
            if time.monotonic() - checked > cfg.check_seconds:
                check()
                checked = time.monotonic()
            yield Progress(step, share, 2 * cfg.batch, smooth)
        check()
    except GeneratorExit:
        save()
        raise
    except OSError as e:
        raise InputError(
            f"{out}: cannot be written ({e.strerror or e}). Make room, then go on with --resume."
        ) from e


def _device(cfg: TrainConfig) -> torch.device:
    name = cfg.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise InputError(f"device: {name} cannot be used ({reason}). Choose auto, cpu or cuda.") from error


def errors_of(net: KeypointNet, checks: Sequence[Projected]) -> dict[str, float]:
    """Mean errors in millimetres, ``mpjpe_mm_<views>`` and ``pa_mpjpe_mm_<views>``."""
    row: dict[str, float] = {}
    for batch in checks:
        views = batch.K.shape[1]
        direct, aligned = joint_errors(net, batch)
        row[f"mpjpe_mm_{views}"] = round(1e3 * float(np.nanmean(direct)), 2)
        row[f"pa_mpjpe_mm_{views}"] = round(1e3 * float(np.nanmean(aligned)), 2)
    return row


@torch.no_grad()
def joint_errors(net: KeypointNet, batch: Projected, joints: int = 24) -> tuple[Array, Array]:
    """MPJPE from the pelvis and PA-MPJPE, (N,) metres each, over the first ``joints`` of SMPL.

    The first is the mean over the views' cameras, as the uncalibrated net has a root for each. NaN where
    the net saw nobody.
    """
    device = next(net.parameters()).device
    seen = (x.to(device) for x in (batch.xy_px, batch.confidence, batch.K, batch.R, batch.t))
    r = net(*seen).to("cpu")
    body = load_body().keypoints.to(dtype=torch.float32)
    pose = torch.cat([torch.eye(3).expand(len(r.betas), 1, 3, 3), r.body_pose], 1)
    found, _ = pose_keypoints(body, pose, r.betas, torch.zeros(len(r.betas), 3))
    found = (found - found[:, :1])[:, :joints]
    true = (batch.joints - batch.joints[:, :1])[:, :joints]
    in_view = mpjpe(found[:, None] @ r.view_orient.mT, true[:, None] @ batch.true_R.mT)
    count = r.seen.sum(1).numpy()
    direct = np.where(r.seen.numpy(), in_view, 0).sum(1) / np.maximum(count, 1)
    return np.where(count > 0, direct, np.nan), pa_mpjpe(found, true)
