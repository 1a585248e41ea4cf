"""Training of an image regressor: data, the loss with SMPLify in the loop, errors."""

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
from models.training.augment import UNCHANGED, AugmentConfig, augmented, collate
from models.training.contact_sheet import contact_sheet
from models.training.fits import FitStore
from models.training.loop import (
    Bodies,
    LoopConfig,
    Target,
    apply_augmentation,
    better,
    fitted,
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

_COMMON: Final = EXTRA_24.index("Neck (LSP)") + 1
"""The first joints of ``EXTRA_24``, which all data sets have: limbs and neck."""


class ImagesConfig(Config):
    """An image regressor, what it learns from, and how."""

    encoder: EncoderName = "resnet50"
    """Crop → vector."""
    fusion: FusionName = "attention"
    """Vectors of all views → one."""
    size: int = Field(224, ge=128, le=224, multiple_of=32)
    """Side of the crops, pixels."""
    contrast: Contrast = "none"
    """Contrast of the crops."""
    body: Path | None = None
    """SMPL (``.pkl``, ``.npz``), whose poses published data hold; else the body that ships."""
    joint_regressor: Path | None = None
    """SPIN's ``J_regressor_extra.npy``, for SMPL: where data sets have nine joints, else placed by a rule."""
    pose_prior: Path | None = None
    """SMPLify's ``gmm_08.pkl``, for the fits; else the prior that ships."""
    imagenet: bool = True
    """The encoder begins with the weights of ImageNet."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of the regressor's hidden units that a step leaves out; a short training has no use for it."""
    views: int = Field(2, ge=1)
    """Views of each sample, drawn anew each time from those that there are."""
    supervision: Literal["full", "2d"] = "full"
    """``2d``: 3D joints, poses and shapes of the data are not used; only keypoints, and fits to them."""
    sources: tuple[SourceConfig, ...] = (SourceConfig(),)
    """Data sets, mixed by weight."""
    check: tuple[SourceConfig, ...] = (SourceConfig(split="test"),)
    """Data sets whose truth the net is compared with."""
    check_samples: int = Field(256, ge=1)
    """Samples of each of them."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of the samples."""
    loss: LossConfig = LossConfig()
    """Weights of the terms."""
    fits: LoopConfig = LoopConfig()
    """SMPLify in the loop."""
    workers: int = Field(0, ge=0)
    """Processes that make batches; 0 makes them in between."""


@dataclass(frozen=True)
class ImageData(Dataset[Samples]):
    """A process's share of the batch of each step, which follows from the seed and the step."""

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
            rows.append(augmented(self.sources[source][index], rng, cfg.augment, cfg.size))
        return collate(rows)


@dataclass(frozen=True, repr=False)
class SamplesWithFits(TensorBatch):
    """All that the losses of a step depend on beside the net."""

    samples: Samples
    fits: Bodies | None
    """Those of earlier steps, of samples that are not augmented; None where none are made."""


class ImageTask:
    """An image regressor that learns from samples and from fits to them."""

    best = "pa_mpjpe_mm"

    def __init__(
        self, cfg: ImagesConfig, batch: int, seed: int, motion: Path | None, device: torch.device
    ) -> None:
        """Raises ``InputError`` when body, prior or data cannot be read."""
        self.cfg, self.device = cfg, device
        taught = load_target_body(cfg.body, cfg.joint_regressor)
        means: Literal["anny", "smpl"] = "smpl" if taught.smpl else "anny"
        config = ImageConfig(cfg.encoder, cfg.fusion, cfg.contrast, means, cfg.size)
        self.net = ImageRegressor(config, imagenet=cfg.imagenet, seed=seed)
        self.net.head.drop1.p = self.net.head.drop2.p = cfg.dropout
        self.net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mesh = taught.mesh.to(device)
        self.body = self.mesh.keypoints.to(dtype=torch.float32)
        self.points = with_points(self.body, taught.extra.to(dtype=torch.float32, device=device))
        self.prior = load_pose_prior(cfg.pose_prior)
        self.data = ImageData(_opened(cfg.sources, cfg, motion, seed, taught), cfg, batch, seed)
        # Of another seed: poses that are drawn from a prior, and looks, are then others, too.
        self.checks = _opened(cfg.check, cfg, motion, seed + 1, taught)
        self.fits: FitStore | None = None

    def start_from(self, init: Path) -> None:
        before = load_image_regressor(init)
        # The camera of the crop is learned here, whatever camera was learned before.
        held, wanted = asdict(replace(before.config, spin_camera=False)), asdict(self.net.config)
        if other := [name for name in wanted if held[name] != wanted[name]]:
            has, asks = (", ".join(f"images.{n}={of[n]!r}" for n in other) for of in (held, wanted))
            raise InputError(f"{init}: holds {has}, the settings ask for {asks}.")
        self.net.load_state_dict(before.state_dict())

    def batches(self, first: int, rank: int, world: int) -> Generator[Samples]:
        loader = DataLoader(
            replace(self.data, rank=rank, world=world),
            batch_size=None,
            sampler=count(first),
            num_workers=self.cfg.workers,
            multiprocessing_context="spawn" if self.cfg.workers else None,
            prefetch_factor=2 if self.cfg.workers else None,
            generator=torch.Generator(),  # or it would draw from torch's own
            pin_memory=self.device.type == "cuda",
        )
        for samples in loader:
            yield samples.map(lambda x: x.to(self.device, non_blocking=True))

    def ids(self, batch: Samples) -> list[str]:
        return [name for views in picture_ids(batch) for name in views]

    def begin(self, out: Path, step: int) -> None:
        if self.cfg.fits.enabled:
            self.fits = FitStore(out / "fits.zarr", version=step)
            for cfg, source in zip(self.cfg.sources, self.data.sources, strict=True):
                if step == 0 and cfg.fits is not None and isinstance(source, PublishedPeople):
                    points = self.points.to(device="cpu")
                    for names, fits in static_fits(cfg.fits, source.rows, points, source.shapes):
                        self.fits.put(names, fits, step)

    def keep(self, oldest: int) -> None:
        if self.fits is not None:
            self.fits.save()
            self.fits.tidy(oldest)

    def share(self, step: int) -> None:
        if self.fits is not None:
            self.fits.reload(step)

    def losses(self, batch: SamplesWithFits, step: int) -> dict[str, Tensor]:
        """The terms of the loss, with ``loss`` their sum; and what the fits did, for the curves."""
        samples = clean(batch.samples, self.cfg.supervision)
        features = self.encode(samples)
        with torch.autocast(features.device.type, enabled=False):  # geometry needs all the digits
            predicted, camera = self.bodies(samples, features.float())
            target, fit_terms = self.target(samples, batch.fits, predicted, step)
            terms = image_losses(predicted, camera, samples, target, self.points, self.cfg.loss, self.mesh)
        return fit_terms | terms

    def prepare(self, samples: Samples, step: int) -> SamplesWithFits:
        """Add the fits that there are."""
        if self.fits is None:
            return SamplesWithFits(samples, None)
        if step % self.cfg.fits.save_steps == 0:
            self.fits.save()
        fits = self.fits.get(picture_ids(samples))
        if self.device.type == "cuda":  # or the processor would wait for what the GPU was told before
            fits = fits.map(Tensor.pin_memory)
        return SamplesWithFits(samples, fits.map(lambda x: x.to(self.device, non_blocking=True)))

    def of_tensors_alone(self, step: int) -> bool:
        return self.fits is None or step % self.cfg.fits.every > 0

    def encode(self, samples: Samples) -> Tensor:
        """Features (M, D) of the crops that there are."""
        images = samples.images.flatten(0, 1).index_select(0, samples.shown)
        images = normalise_rgb(images.float(), self.cfg.contrast)
        found: Tensor = self.net.encoder(images.contiguous(memory_format=torch.channels_last))
        return found

    def bodies(self, samples: Samples, found: Tensor) -> tuple[Bodies, Tensor]:
        """Bodies that the net predicts from features (M, D), placed before the cameras of the crops; and its
        camera (N, V, 3)."""
        seen = samples.seen
        features = found.new_zeros(seen.numel(), found.shape[-1]).index_copy(0, samples.shown, found)
        features = features.view(*seen.shape, -1)
        predicted = self.net.estimate(features, seen)
        size = float(self.cfg.size)
        middle = (size - 1) / 2
        box = constant((middle, middle, size), features.device, features.dtype).expand(*seen.shape, 3)
        orient, transl = place_body(predicted, box, samples.K, self.body)
        pose = predicted.body_pose[:, None].expand(-1, seen.shape[1], -1, -1, -1)
        betas = predicted.betas[:, None].expand(-1, seen.shape[1], -1)
        none = torch.full_like(transl[..., 0], torch.inf)
        return Bodies(orient, pose, betas, transl, none), predicted.camera

    @torch.no_grad()
    def target(
        self, samples: Samples, stored: Bodies | None, predicted: Bodies, step: int
    ) -> tuple[Target, dict[str, Tensor]]:
        """Target of the samples, and means of the fits for the curves."""
        best = predicted = predicted.map(torch.Tensor.detach)
        means: dict[str, Tensor] = {}
        if stored is not None:
            best = old = apply_augmentation(stored, self.body, samples)
            if self.fits is not None and not self.of_tensors_alone(step):
                new = fitted(samples, predicted, self.body, self.points, self.prior, self.cfg.fits)
                means["fits_better"] = mean_where(samples.seen, (new.score < old.score).float())
                self.fits.put(picture_ids(samples), undo_augmentation(new, self.body, samples), step)
                best = better(new, old)
            means["fit_score"] = mean_where(samples.seen, best.score.clamp(max=1000))
        target = training_target(best, samples, self.cfg.fits)
        means["posed"] = mean_where(samples.seen, target.posed.float())
        return target, means

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Mean errors over the samples whose truth is known, millimetres."""
        was = self.net.training
        self.net.eval()
        direct, aligned = list[float](), list[float]()
        for source in self.checks:
            many = min(self.cfg.check_samples, len(source))
            index = [i * len(source) // many for i in range(many)]
            for first in range(0, many, 16):
                rows = [
                    augmented(source[i], np.random.default_rng(0), UNCHANGED, self.cfg.size)
                    for i in index[first : first + 16]
                ]
                samples = clean(collate(rows).to(self.device), "full")
                predicted, _ = self.bodies(samples, self.encode(samples).float())
                a, b = image_net_errors(predicted.to("cpu"), samples.to("cpu"), self.points.to(device="cpu"))
                direct += a[np.isfinite(a)].tolist()
                aligned += b[np.isfinite(b)].tolist()
        self.net.train(was)
        if not direct:
            raise InputError("images.check: no sample's truth is known. Give data with 3D joints or poses.")
        return {"mpjpe_mm": 1e3 * float(np.mean(direct)), "pa_mpjpe_mm": 1e3 * float(np.mean(aligned))}

    @torch.no_grad()
    def pictures(self, batch: Samples) -> dict[str, NDArray[np.uint8]]:
        """Crops of four samples, and over them what the net says and, where there are, the fits."""
        few = select(clean(batch, "full"), torch.arange(min(4, len(batch.ids)), device=self.device))
        was = self.net.training
        self.net.eval()
        predicted, _ = self.bodies(few, self.encode(few).float())
        self.net.train(was)
        rows = [predicted]
        if self.fits is not None:
            stored = self.fits.get(picture_ids(few)).to(self.device)
            rows.append(apply_augmentation(stored, self.body, few))
        return {"crops, predicted, fitted": contact_sheet(few, rows, self.mesh)}

    def save(self, path: Path) -> None:
        """Raises ``OSError``."""
        save_image_regressor(self.net, path)


def _opened(
    sources: Sequence[SourceConfig], cfg: ImagesConfig, motion: Path | None, seed: int, body: TargetBody
) -> tuple[SampleSource, ...]:
    def with_motion(s: SourceConfig) -> SourceConfig:
        return s.model_copy(update={"path": motion}) if s.kind == "synthetic" and s.path is None else s

    return tuple(open_source(with_motion(s), Sampling(cfg.views, cfg.size, seed), body) for s in sources)


def image_net_errors(
    predicted: Bodies, samples: Samples, points: KeypointBody
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """MPJPE and PA-MPJPE, (N,) metres each, means over the views that show the person.

    Over SMPL's joints, from the pelvis, where pose and shape are known; else of the 13 of ``EXTRA_24`` that
    all data sets have, from the middle of the hips. NaN where neither is known, and where nothing is shown.
    points: the body with the samples' 49 points.
    """
    views = samples.seen.shape[1]
    pose = samples.body_pose[:, None].expand(-1, views, -1, -1, -1)
    betas = samples.betas[:, None].expand(-1, views, -1)
    truth = torch.cat([samples.orient[:, :, None], pose], 2)
    (true, _), (found, marked) = (
        pose_keypoints(points, r, b, torch.zeros(3))
        for r, b in ((truth, betas), (predicted.rotations, predicted.betas))
    )
    direct, aligned = np.full((2, *samples.seen.shape), np.nan)
    smpl = tuple(x - x[:, :, :1] for x in (found, true))
    pairs = marked[:, :, len(BODY_25) :], samples.joints
    common = tuple((x - x[:, :, HIPS].mean(2, keepdim=True))[:, :, :_COMMON] for x in pairs)
    for a, b in (common, smpl):
        for error, now in ((direct, mpjpe(a, b)), (aligned, pa_mpjpe(a, b))):
            np.copyto(error, now, where=np.isfinite(now))
    return _over_views(direct, samples), _over_views(aligned, samples)


def _over_views(error: NDArray[np.float64], samples: Samples) -> NDArray[np.float64]:
    """(N, V) → (N,), without those that are not known."""
    known = np.isfinite(error) & samples.seen.numpy()
    total = np.where(known, error, 0).sum(1)
    return np.where(known.any(1), total / np.maximum(known.sum(1), 1), np.nan)


def with_points(a: KeypointBody, b: KeypointBody) -> KeypointBody:
    """A body with the points of a, then those of b."""
    return a.with_points(SPIN_49, {k: torch.cat([x, b.points[k]]) for k, x in a.points.items()})


def clean(samples: Samples, supervision: Literal["full", "2d"]) -> Samples:
    """Samples with a camera for what is not shown, so that no NaN gets into a gradient; with ``2d`` without
    the truth."""
    eye = torch.eye(3, dtype=samples.K.dtype, device=samples.K.device)
    samples = replace(samples, K=torch.where(samples.seen[..., None, None], samples.K, eye))
    if supervision == "full":
        return samples
    truth = ("joints", "orient", "body_pose", "betas")
    unknown: dict[str, Any] = {k: torch.full_like(getattr(samples, k), torch.nan) for k in truth}
    return replace(samples, **unknown)
