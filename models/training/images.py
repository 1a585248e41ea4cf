"""Training of an image regressor: data, loss with SMPLify in the loop, errors."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.body import KeypointBody, pose_keypoints
from models.constants import constant
from models.crops import Contrast, normalise_rgb
from models.encoders import EncoderName
from models.evaluation.metrics import mpjpe, pa_mpjpe
from models.fusion import FusionName
from models.image_regressor import (
    ImageConfig,
    ImageRegressor,
    load_image_regressor,
    place_body,
    save_image_regressor,
)
from models.priors import load_pose_prior
from models.training.augment import UNCHANGED, AugmentConfig, augment, collate
from models.training.contact_sheet import contact_sheet
from models.training.fits import FitStore
from models.training.loop import (
    Bodies,
    LoopConfig,
    Target,
    apply_augmentation,
    fit_bodies,
    keep_better,
    picture_ids,
    select,
    training_target,
    undo_augmentation,
)
from models.training.losses import HIPS, LossConfig, image_losses, mean_where
from models.training.published import PublishedPeople
from models.training.samples import Samples, Sampling
from models.training.sources import SampleSource, SourceConfig, draw_batch, open_source
from models.training.static_fits import static_fits
from models.training.target_body import TargetBody, load_target_body
from pipeline.batches import TensorBatch
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.skeleton import BODY_25, EXTRA_24, SPIN_49

_COMMON_JOINTS: Final = EXTRA_24.index("Neck (LSP)") + 1
"""Number of the first joints of ``EXTRA_24`` that all data sets have: limbs and neck."""


class ImagesConfig(Config):
    """An image regressor and its training."""

    encoder: EncoderName = "resnet50"
    """Network on each crop."""
    fusion: FusionName = "attention"
    """Fusion of the views' features."""
    size: int = Field(224, ge=128, le=224, multiple_of=32)
    """Side of the crops, pixels."""
    contrast: Contrast = "none"
    """Contrast of the crops."""
    body: Path | None = None
    """SMPL (``.pkl``, ``.npz``), the body model of published poses; by default the body that ships."""
    joint_regressor: Path | None = None
    """SPIN's ``J_regressor_extra.npy``, for SMPL, for nine joints of the data sets; by default by a rule."""
    pose_prior: Path | None = None
    """SMPLify's ``gmm_08.pkl``, for the fits; by default the prior that ships."""
    imagenet: bool = True
    """Start the encoder from ImageNet's weights."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout of the regressor's hidden units; 0 is best for a short training."""
    views: int = Field(2, ge=1)
    """Views of each sample, drawn at random."""
    supervision: Literal["full", "2d"] = "full"
    """``2d``: without 3D joints, poses and shapes of the data, only keypoints and fits to them."""
    sources: tuple[SourceConfig, ...] = (SourceConfig(),)
    """Data sets to train on, mixed by weight."""
    check: tuple[SourceConfig, ...] = (SourceConfig(split="test"),)
    """Data sets to validate on."""
    check_samples: int = Field(256, ge=1)
    """Validation samples of each data set."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of the samples."""
    loss: LossConfig = LossConfig()
    """Weights of the loss."""
    fits: LoopConfig = LoopConfig()
    """SMPLify in the loop."""
    workers: int = Field(0, ge=0)
    """Processes that make batches; 0: the main process."""


@dataclass(frozen=True)
class ImageData(Dataset[Samples]):
    """A process's share of the batch of each step, determined by seed and step."""

    sources: tuple[SampleSource, ...]
    cfg: ImagesConfig
    batch: int
    seed: int
    rank: int = 0
    world: int = 1

    def __getitem__(self, step: int) -> Samples:
        torch.set_num_threads(1)
        cfg = self.cfg
        drawn = draw_batch(self.sources, [s.weight for s in cfg.sources], self.batch, self.seed, step)
        rows = []
        for slot in range(self.rank, self.batch, self.world):
            source, index = drawn[slot]
            rng = np.random.default_rng([self.seed, step, slot])
            rows.append(augment(self.sources[source][index], rng, cfg.augment, cfg.size))
        return collate(rows)


@dataclass(frozen=True, repr=False)
class SamplesWithFits(TensorBatch):
    """Input of a step's losses beside the net."""

    samples: Samples
    fits: Bodies | None
    """Stored fits of the samples without augmentation; None without SMPLify in the loop."""


class ImageTask:
    """Training of an image regressor on samples and fits to them."""

    best = "pa_mpjpe_mm"

    def __init__(
        self, cfg: ImagesConfig, batch: int, seed: int, motion: Path | None, device: torch.device
    ) -> None:
        """Raises ``InputError`` when body, prior or data cannot be read."""
        self.cfg, self.device = cfg, device
        target = load_target_body(cfg.body, cfg.joint_regressor)
        body: Literal["anny", "smpl"] = "smpl" if target.smpl else "anny"
        config = ImageConfig(cfg.encoder, cfg.fusion, cfg.contrast, body, cfg.size)
        self.net = ImageRegressor(config, imagenet=cfg.imagenet, seed=seed)
        self.net.head.drop1.p = self.net.head.drop2.p = cfg.dropout
        self.net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mesh = target.mesh.to(device)
        self.body = self.mesh.keypoints.to(dtype=torch.float32)
        self.points = with_points(self.body, target.extra.to(dtype=torch.float32, device=device))
        self.prior = load_pose_prior(cfg.pose_prior)
        self.data = ImageData(_open_sources(cfg.sources, cfg, motion, seed, target), cfg, batch, seed)
        # With another seed synthetic samples have other poses and looks.
        self.checks = _open_sources(cfg.check, cfg, motion, seed + 1, target)
        self.fits: FitStore | None = None

    def start_from(self, init: Path) -> None:
        net = load_image_regressor(init)
        # The crop's own camera is learned, whatever camera the loaded weights were trained for.
        loaded, expected = asdict(replace(net.config, spin_camera=False)), asdict(self.net.config)
        if different := [name for name in expected if loaded[name] != expected[name]]:
            has, asks = (", ".join(f"images.{n}={of[n]!r}" for n in different) for of in (loaded, expected))
            raise InputError(f"{init}: holds {has}, the settings ask for {asks}.")
        self.net.load_state_dict(net.state_dict())

    def batches(self, first: int, rank: int, world: int) -> Generator[Samples]:
        loader = DataLoader(
            replace(self.data, rank=rank, world=world),
            batch_size=None,
            sampler=count(first),
            num_workers=self.cfg.workers,
            multiprocessing_context="spawn" if self.cfg.workers else None,
            prefetch_factor=2 if self.cfg.workers else None,
            generator=torch.Generator(),  # by default it draws from torch's global one
            pin_memory=self.device.type == "cuda",
        )
        for samples in loader:
            yield samples.map(lambda x: x.to(self.device, non_blocking=True))

    def ids(self, batch: Samples) -> list[str]:
        return [name for views in picture_ids(batch) for name in views]

    def open_state(self, out: Path, step: int) -> None:
        if self.cfg.fits.enabled:
            self.fits = FitStore(out / "fits.zarr", version=step)
            for cfg, source in zip(self.cfg.sources, self.data.sources, strict=True):
                if step == 0 and cfg.fits is not None and isinstance(source, PublishedPeople):
                    points = self.points.to(device="cpu")
                    for names, fits in static_fits(cfg.fits, source.rows, points, source.shapes):
                        self.fits.put(names, fits, step)

    def save_state(self, oldest: int) -> None:
        if self.fits is not None:
            self.fits.save()
            self.fits.compact(oldest)

    def reload_state(self, step: int) -> None:
        if self.fits is not None:
            self.fits.reload(step)

    def losses(self, batch: SamplesWithFits, step: int) -> dict[str, Tensor]:
        """Terms of the loss, with ``loss`` their sum, and statistics of the fits, for the curves."""
        samples = clean(batch.samples, self.cfg.supervision)
        features = self.encode(samples)
        with torch.autocast(features.device.type, enabled=False):  # geometry needs float32
            predicted, camera = self.bodies(samples, features.float())
            target, fit_terms = self.target(samples, batch.fits, predicted, step)
            terms = image_losses(predicted, camera, samples, target, self.points, self.cfg.loss, self.mesh)
        return fit_terms | terms

    def prepare(self, samples: Samples, step: int) -> SamplesWithFits:
        """Add the stored fits."""
        if self.fits is None:
            return SamplesWithFits(samples, None)
        if step % self.cfg.fits.save_steps == 0:
            self.fits.save()
        fits = self.fits.get(picture_ids(samples))
        if self.device.type == "cuda":  # a copy from pageable memory waits for the work queued on the GPU
            fits = fits.map(Tensor.pin_memory)
        return SamplesWithFits(samples, fits.map(lambda x: x.to(self.device, non_blocking=True)))

    def replayable(self, step: int) -> bool:
        return self.fits is None or step % self.cfg.fits.every > 0

    def encode(self, samples: Samples) -> Tensor:
        """Features (M, D) of the seen crops."""
        images = samples.images.flatten(0, 1).index_select(0, samples.seen_index)
        images = normalise_rgb(images.float(), self.cfg.contrast)
        features: Tensor = self.net.encoder(images.contiguous(memory_format=torch.channels_last))
        return features

    def bodies(self, samples: Samples, encoded: Tensor) -> tuple[Bodies, Tensor]:
        """Predict bodies, in the frames of the crops' cameras, and SPIN's camera (N, V, 3) from features
        (M, D)."""
        seen = samples.seen
        blank = encoded.new_zeros(seen.numel(), encoded.shape[-1])
        features = blank.index_copy(0, samples.seen_index, encoded).view(*seen.shape, -1)
        predicted = self.net.estimate(features, seen)
        size = float(self.cfg.size)
        middle = (size - 1) / 2
        box = constant((middle, middle, size), features.device, features.dtype).expand(*seen.shape, 3)
        orient, transl = place_body(predicted, box, samples.K, self.body)
        pose = predicted.body_pose[:, None].expand(-1, seen.shape[1], -1, -1, -1)
        betas = predicted.betas[:, None].expand(-1, seen.shape[1], -1)
        no_score = torch.full_like(transl[..., 0], torch.inf)
        return Bodies(orient, pose, betas, transl, no_score), predicted.camera

    @torch.no_grad()
    def target(
        self, samples: Samples, stored: Bodies | None, predicted: Bodies, step: int
    ) -> tuple[Target, dict[str, Tensor]]:
        """Target of the samples, and means of the fits for the curves."""
        best = predicted = predicted.map(torch.Tensor.detach)
        means: dict[str, Tensor] = {}
        if stored is not None:
            best = old = apply_augmentation(stored, self.body, samples)
            if self.fits is not None and not self.replayable(step):
                new = fit_bodies(samples, predicted, self.body, self.points, self.prior, self.cfg.fits)
                means["fits_better"] = mean_where(samples.seen, (new.score < old.score).float())
                self.fits.put(picture_ids(samples), undo_augmentation(new, self.body, samples), step)
                best = keep_better(new, old)
            means["fit_score"] = mean_where(samples.seen, best.score.clamp(max=1000))
        target = training_target(best, samples, self.cfg.fits)
        means["posed"] = mean_where(samples.seen, target.has_pose.float())
        return target, means

    def predict(self, samples: Samples) -> Bodies:
        """Predict bodies in evaluation mode."""
        training = self.net.training
        self.net.eval()
        predicted, _ = self.bodies(samples, self.encode(samples).float())
        self.net.train(training)
        return predicted

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Mean errors over the validation samples whose truth is known, millimetres."""
        direct, aligned = list[float](), list[float]()
        for source in self.checks:
            count = min(self.cfg.check_samples, len(source))
            index = [i * len(source) // count for i in range(count)]
            for first in range(0, count, 16):
                rows = [
                    augment(source[i], np.random.default_rng(0), UNCHANGED, self.cfg.size)
                    for i in index[first : first + 16]
                ]
                samples = clean(collate(rows).to(self.device), "full")
                predicted = self.predict(samples).to("cpu")
                a, b = image_net_errors(predicted, samples.to("cpu"), self.points.to(device="cpu"))
                direct += a[np.isfinite(a)].tolist()
                aligned += b[np.isfinite(b)].tolist()
        if not direct:
            raise InputError("images.check: no sample's truth is known. Give data with 3D joints or poses.")
        return {"mpjpe_mm": 1e3 * float(np.mean(direct)), "pa_mpjpe_mm": 1e3 * float(np.mean(aligned))}

    @torch.no_grad()
    def pictures(self, batch: Samples) -> dict[str, NDArray[np.uint8]]:
        """Contact sheet of four samples with predicted and stored bodies."""
        few = select(clean(batch, "full"), torch.arange(min(4, len(batch.ids)), device=self.device))
        rows = [self.predict(few)]
        if self.fits is not None:
            stored = self.fits.get(picture_ids(few)).to(self.device)
            rows.append(apply_augmentation(stored, self.body, few))
        return {"crops, predicted, fitted": contact_sheet(few, rows, self.mesh)}

    def save(self, path: Path) -> None:
        save_image_regressor(self.net, path)


def _open_sources(
    sources: Sequence[SourceConfig], cfg: ImagesConfig, motion: Path | None, seed: int, body: TargetBody
) -> tuple[SampleSource, ...]:
    """Open data sets; synthetic ones without a path take the ``motion``."""

    def with_motion(s: SourceConfig) -> SourceConfig:
        return s.model_copy(update={"path": motion}) if s.kind == "synthetic" and s.path is None else s

    return tuple(open_source(with_motion(s), Sampling(cfg.views, cfg.size, seed), body) for s in sources)


def image_net_errors(
    predicted: Bodies, samples: Samples, points: KeypointBody
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """MPJPE and PA-MPJPE, (N,) metres each, means over the seen views.

    Of SMPL's joints, relative to the pelvis, where pose and shape are known; else of the 13 joints of
    ``EXTRA_24`` that all data sets have, relative to the middle of the hips. NaN where neither is known or no
    view is seen. points: body with the samples' 49 points.
    """
    views = samples.seen.shape[1]
    pose = samples.body_pose[:, None].expand(-1, views, -1, -1, -1)
    betas = samples.betas[:, None].expand(-1, views, -1)
    truth = torch.cat([samples.orient[:, :, None], pose], 2)
    (true_joints, _), (joints, keypoints) = (
        pose_keypoints(points, r, b, torch.zeros(3))
        for r, b in ((truth, betas), (predicted.rotations, predicted.betas))
    )
    direct, aligned = np.full((2, *samples.seen.shape), np.nan)
    smpl = tuple(x - x[:, :, :1] for x in (joints, true_joints))
    extra = keypoints[:, :, len(BODY_25) :], samples.joints
    common = tuple((x - x[:, :, HIPS].mean(2, keepdim=True))[:, :, :_COMMON_JOINTS] for x in extra)
    for a, b in (common, smpl):
        for error, values in ((direct, mpjpe(a, b)), (aligned, pa_mpjpe(a, b))):
            np.copyto(error, values, where=np.isfinite(values))
    return _mean_over_views(direct, samples), _mean_over_views(aligned, samples)


def _mean_over_views(error: NDArray[np.float64], samples: Samples) -> NDArray[np.float64]:
    """Mean (N,) of the finite errors (N, V) of seen views; NaN without any."""
    valid = np.isfinite(error) & samples.seen.numpy()
    total = np.where(valid, error, 0).sum(1)
    return np.where(valid.any(1), total / np.maximum(valid.sum(1), 1), np.nan)


def with_points(a: KeypointBody, b: KeypointBody) -> KeypointBody:
    """Body ``a`` with the keypoints of both."""
    return a.with_points(SPIN_49, {k: torch.cat([x, b.points[k]]) for k, x in a.points.items()})


def clean(samples: Samples, supervision: Literal["full", "2d"]) -> Samples:
    """Replace the NaN cameras of views that are not seen, whose gradients would be NaN; remove the truth for
    ``2d``."""
    eye = torch.eye(3, dtype=samples.K.dtype, device=samples.K.device)
    samples = replace(samples, K=torch.where(samples.seen[..., None, None], samples.K, eye))
    if supervision == "full":
        return samples
    truth = ("joints", "orient", "body_pose", "betas")
    unknown: dict[str, Any] = {k: torch.full_like(getattr(samples, k), torch.nan) for k in truth}
    return replace(samples, **unknown)
