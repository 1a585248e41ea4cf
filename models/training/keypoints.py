"""Training of a keypoint net: data, loss, errors."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from models.body import global_rotations, load_body, pose_keypoints
from models.evaluation.metrics import mpjpe, pa_mpjpe
from models.regressors.calibrated import CalibratedNet
from models.regressors.keypoint_nets import KeypointNet, load_regressor, save_regressor
from models.regressors.kinematics import matrix_to_six
from models.regressors.uncalibrated import UncalibratedNet
from models.synthetic.poses import Poses, Sampler, poses_of_prior, read_poses
from models.synthetic.projections import TEST, Difficulty, Projected, Projections
from models.training.losses import loss_of
from pipeline.array_types import Array
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24

KeypointNetName = Literal["calibrated", "uncalibrated"]

CHECKED_VIEWS: Final = (1, 2, 4, 8)
"""Numbers of views of the validation samples."""


class KeypointNetConfig(Config):
    """A keypoint net, and the synthetic projections that it learns from."""

    width: int = Field(512, ge=8)
    """Width of the trunk and of the iterations' hidden layers."""
    iterations: int = Field(4, ge=1)
    """Iterations of feedback."""
    reprojection: float = Field(0.0, ge=0)
    """Weight of the robust distance, metres, between the calibrated net's keypoints and the detected rays: so
    it also agrees with a detector that defines points differently."""
    easy: float = Field(0.4, ge=0, le=1)
    """Share of samples with less noise, down to none, for clean results from clean input."""
    bias: float = Field(0.5, ge=0, le=1)
    """Share of samples from a detector with offset keypoints on the body, 6–20 mm."""
    calibration: float = Field(1.0, ge=0)
    """Errors of the cameras: 1 is 0.3 degrees and 1 cm."""
    focal: float = Field(0.0, ge=0)
    """Standard deviation of the logarithm of the focal length's error, in half of the samples."""
    no_feet: float = Field(0.1, ge=0, le=1)
    """Share of samples from a detector without feet."""
    blazepose: float = Field(0.0, ge=0, le=1)
    """Share of samples from BlazePose heavy, the detector that ships; the others are from OpenPose."""
    check_samples: int = Field(250, ge=1)
    """Validation samples of each number of views."""


class KeypointTask:
    """Training of a keypoint net on synthetic projections."""

    best = "pa_mpjpe_mm_4"

    def __init__(
        self,
        cfg: KeypointNetConfig,
        kind: KeypointNetName,
        batch: int,
        seed: int,
        motion: Path | None,
        device: torch.device,
    ) -> None:
        """Raises ``InputError`` when the motion cannot be read, or the batch has no two halves."""
        if batch % 2:
            raise InputError(
                f"batch: {batch} is odd. One half has v views, the other 9 − v: give an even one."
            )
        if motion is None:
            poses, held_out = poses_of_prior(2 * seed), poses_of_prior(2 * seed + 1)
        else:
            poses, held_out = read_poses(motion)
        body = load_body().keypoints
        self.cfg, self.kind, self.batch, self.seed, self.device = cfg, kind, batch, seed, device
        self.projections, test = Projections(poses, body, device), Projections(held_out, body)
        self.checks = [
            test.sample(cfg.check_samples, v, TEST, torch.Generator().manual_seed(v)) for v in CHECKED_VIEWS
        ]
        self.net = make_net(cfg, kind, seed, poses).to(device)

    def start_from(self, init: Path) -> None:
        net = load_regressor(init)
        if net.kind != self.kind or net.config | {"iterations": 0} != self.net.config | {"iterations": 0}:
            raise InputError(
                f"{init}: holds a {net.kind} net ({net.config}), the settings ask for a {self.kind} "
                f"one ({self.net.config})."
            )
        self.net.load_state_dict(net.state_dict())

    def batches(self, first: int, rank: int, world: int) -> Generator[list[Projected]]:
        step = first
        while True:
            halves = batches(self.projections, self.cfg, self.batch // 2, self.seed, step, self.device)
            yield [half.map(lambda x: x[rank::world]) for half in halves]
            step += 1

    def prepare(self, batch: list[Projected], step: int) -> list[Projected]:
        return batch

    def replayable(self, step: int) -> bool:
        """False: the number of views, and with it the shapes, changes from step to step."""
        return False

    def losses(self, batch: list[Projected], step: int) -> dict[str, Tensor]:
        parts = [loss_of(self.net, half, self.cfg.reprojection)[0] for half in batch]
        return {"loss": torch.stack(parts).mean()}

    def ids(self, batch: list[Projected]) -> list[str]:
        """No ids: projections are determined by seed and step."""
        return []

    def check(self) -> dict[str, float]:
        return check_errors(self.net, self.checks)

    def pictures(self, batch: list[Projected]) -> dict[str, NDArray[np.uint8]]:
        return {}

    def save(self, path: Path) -> None:
        save_regressor(self.net, path)

    def open_state(self, out: Path, step: int) -> None:
        """No state beside the weights."""

    def save_state(self, oldest: int) -> None:
        """No state beside the weights."""

    def reload_state(self, step: int) -> None:
        """No state beside the weights."""


def make_net(cfg: KeypointNetConfig, name: KeypointNetName, seed: int, poses: Poses) -> KeypointNet:
    """Make a net with random weights whose initial pose is the mean of the motion."""
    body = load_body().keypoints
    # Layers draw their weights from the global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = CalibratedNet if name == "calibrated" else UncalibratedNet
        net: KeypointNet = kind(body, width=cfg.width, iterations=cfg.iterations)
    rng = torch.Generator().manual_seed(seed)
    sampler = Sampler(poses)
    rotations = global_rotations(sampler.rotations(sampler.draw(4000, rng), rng, varied=False))
    if name == "calibrated":  # in a frame that is turned to the heading
        side = rotations[:, 0, :, 0] * torch.tensor([1.0, 0.0, 1.0])
        side = side / side.norm(dim=-1, keepdim=True)
        up = torch.tensor([0.0, 1.0, 0.0]).expand_as(side)
        frame = torch.stack([side, up, torch.linalg.cross(side, up, dim=-1)], 1)
        mean = (frame[:, None] @ rotations).mean(0)
    else:
        mean = (rotations[:, :1].mT @ rotations[:, 1:]).mean(0)
    net.start.copy_(matrix_to_six(roma.special_procrustes(mean)).flatten())
    return net


def batches(
    projections: Projections,
    cfg: KeypointNetConfig,
    half: int,
    seed: int,
    step: int,
    device: torch.device | str = "cpu",
) -> list[Projected]:
    """Draw a step's samples in two halves, of v and 9 − v views, from seed, step and kind of device alone."""
    rng = torch.Generator(device).manual_seed(seed * 1_000_000_007 + step)
    d = Difficulty(
        easy=cfg.easy, varied_poses=True, calibration=cfg.calibration, focal=cfg.focal, bias=cfg.bias,
        no_feet=cfg.no_feet,
        blazepose=cfg.blazepose,
    )  # fmt: skip
    views = int(torch.randint(1, 5, (), generator=rng, device=device))
    return [projections.sample(half, v, d, rng) for v in (views, 9 - views)]


def check_errors(net: KeypointNet, checks: Sequence[Projected]) -> dict[str, float]:
    """Mean errors in millimetres, ``mpjpe_mm_<views>`` and ``pa_mpjpe_mm_<views>``."""
    errors: dict[str, float] = {}
    for batch in checks:
        views = batch.K.shape[1]
        direct, aligned = keypoint_net_errors(net, batch)
        errors[f"mpjpe_mm_{views}"] = round(1e3 * float(np.nanmean(direct)), 2)
        errors[f"pa_mpjpe_mm_{views}"] = round(1e3 * float(np.nanmean(aligned)), 2)
    return errors


@torch.no_grad()
def keypoint_net_errors(
    net: KeypointNet, batch: Projected, joints: int = len(SMPL_24)
) -> tuple[Array, Array]:
    """MPJPE relative to the pelvis and PA-MPJPE, (N,) metres each, of the first ``joints`` of SMPL.

    MPJPE is the mean over the views' cameras, as the uncalibrated net has a root for each. NaN where no view
    is seen.
    """
    device = next(net.parameters()).device
    inputs = (x.to(device) for x in (batch.xy_px, batch.confidence, batch.K, batch.R, batch.t))
    r = net(*inputs).to("cpu")
    body = load_body().keypoints.to(dtype=torch.float32)
    pose = torch.cat([torch.eye(3).expand(len(r.betas), 1, 3, 3), r.body_pose], 1)
    predicted, _ = pose_keypoints(body, pose, r.betas, torch.zeros(len(r.betas), 3))
    predicted = (predicted - predicted[:, :1])[:, :joints]
    true = (batch.joints - batch.joints[:, :1])[:, :joints]
    in_view = mpjpe(predicted[:, None] @ r.view_orient.mT, true[:, None] @ batch.true_R.mT)
    count = r.seen.sum(1).numpy()
    direct = np.where(r.seen.numpy(), in_view, 0).sum(1) / np.maximum(count, 1)
    return np.where(count > 0, direct, np.nan), pa_mpjpe(predicted, true)
