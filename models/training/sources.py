"""Sources of samples: synthetic pictures, published data in SPIN's format, and a user's recordings.

A source has a length, the samples of an epoch, and a sample for every index from 0 on: ``index // len`` is
the epoch, and each epoch groups the views differently. Sources pickle, for worker processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.synthetic.poses import poses_of_people, poses_of_prior, read_poses
from models.synthetic.projections import Difficulty
from models.training.published import PublishedPeople
from models.training.recorded import RecordedPeople
from models.training.samples import Sample, Sampling
from models.training.synthetic import SyntheticPeople
from models.training.target_body import TargetBody, load_target_body
from pipeline.config import Config
from pipeline.errors import InputError


class SampleSource(Protocol):
    """Sequence of samples that goes on after its length with the next epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class SourceConfig(Config):
    """Data set, mixed with others."""

    kind: Literal["synthetic", "store", "npz", "mpi-inf-3dhp", "h36m"] = "synthetic"
    """synthetic: pictures drawn while training. store: a reconstructed recording. npz: published data in
    SPIN's format. mpi-inf-3dhp, h36m: likewise, with simultaneous views also in SPIN's own files."""
    path: Path | None = None
    """The ``results.zarr`` of a store; the ``.npz`` of published data. synthetic: motion capture (``.npz``)
    for the poses, or nothing."""
    poses: Literal["prior", "people"] = "prior"
    """synthetic, without motion capture: draws from the pose prior; or the people of `synth`, who walk,
    squat, swing their arms, turn, jump and reach, which is easier."""
    clutter: float = Field(1.0, ge=0, le=1)
    """synthetic: difficulty of the backgrounds, from soft gradients to shapes and strong noise."""
    around_deg: float = Field(180.0, gt=0, le=180)
    """synthetic: largest angle between the cameras' directions and the person's heading."""
    crops: Path | None = None
    """Crops that the command `crops` has cut from the videos of a store, or of published data."""
    root: Path | None = None
    """Folder of the pictures of published data without crops; by default that of the ``.npz``."""
    fits: Path | None = None
    """SPIN's ``static_fits/<data set>_fits.npy``, a fit for each row of published data, from which SMPLify
    in the loop starts."""
    worst_fit: float = Field(0.04, gt=0)
    """store: mean reprojection residual, divided by the side of the person's box, beyond which a fit is not
    taken for the truth."""
    weight: float = Field(1.0, gt=0)
    """Number of samples relative to the other data sets'."""
    count: int = Field(20_000, ge=1)
    """synthetic: number of different samples."""
    split: Literal["train", "test"] = "train"
    """test: other samples, of held-out motion clips or other people."""


def open_source(cfg: SourceConfig, sampling: Sampling, body: TargetBody | None = None) -> SampleSource:
    """Open a data set. body: target body of the network, by default the one that ships.

    Raises:
        InputError: a file is missing, damaged or of another kind.
    """
    body = body or load_target_body()
    if cfg.fits is not None and cfg.kind in ("synthetic", "store"):
        raise InputError(f"{cfg.fits}: fits are of the rows of published data, not of kind: {cfg.kind}.")
    if cfg.kind == "synthetic":
        test = cfg.split == "test"
        if cfg.path is not None:
            poses = read_poses(cfg.path)[test]
        else:
            poses = {"prior": poses_of_prior, "people": poses_of_people}[cfg.poses](2 * sampling.seed + test)
        varied = cfg.poses == "prior" or cfg.path is not None
        return SyntheticPeople(
            poses, sampling, cfg.count, cfg.split,
            Difficulty(varied_poses=varied, around=math.radians(cfg.around_deg)), cfg.clutter, body,
        )  # fmt: skip
    if cfg.path is None:
        raise InputError(f"kind: {cfg.kind} needs a path, of its data.")
    if cfg.kind != "store":
        return PublishedPeople(cfg.path, sampling, cfg.kind, cfg.root, cfg.crops, body.smpl)
    if cfg.crops is None:
        raise InputError(f"{cfg.path}: needs crops of its videos, which `crops` makes; say where they are.")
    return RecordedPeople(cfg.path, cfg.crops, sampling, cfg.worst_fit, body)


def draw_batch(
    sources: Sequence[Sized], weights: Sequence[float], batch: int, seed: int, step: int
) -> list[tuple[int, int]]:
    """Draw the batch of a step, pairs of source and index, from seed and step alone.

    Any run of samples has each source's share of them, to the nearest sample. All samples of a source come
    once, in random order, before any comes again.
    """
    exact = tuple(Fraction(str(w)) for w in weights)  # 0.1 is a tenth
    out = []
    for slot in range(step * batch, (step + 1) * batch):
        source, k = _source_of(slot, exact)
        epoch, position = divmod(k, len(sources[source]))
        order = _order(len(sources[source]), seed, source, epoch)
        out.append((source, epoch * len(order) + int(order[position])))
    return out


def _source_of(slot: int, weights: Sequence[Fraction]) -> tuple[int, int]:
    """Source of a slot, and the number of earlier slots of the same source.

    The first source takes the slots where the integer part of share × slot steps up; the rest is renumbered
    and shared among the others likewise.
    """
    rest = sum(weights, Fraction(0))
    for source, weight in enumerate(weights):
        share = weight / rest
        before = int(slot * share)
        if int((slot + 1) * share) > before:
            return source, before
        slot -= before
        rest -= weight
    raise AssertionError("the last source's share is 1")


@lru_cache(maxsize=32)
def _order(count: int, seed: int, source: int, epoch: int) -> NDArray[np.int64]:
    """Random order of a source's samples in an epoch."""
    return np.random.default_rng([seed, source, epoch]).permutation(count)
