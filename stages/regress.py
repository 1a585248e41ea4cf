"""Stage: from what the views show to SMPL parameters, frame by frame, in large batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor

from models.body import Body
from models.regressor import Regression, to_world
from pipeline.batches import KeypointBatch, PoseBatch
from pipeline.cameras import Rig
from pipeline.config import Config


class RegressConfig(Config):
    """The network that says where the fit starts."""

    batch_size: int = Field(256, ge=1, description="people in frames that go through the network at once")


class KeypointNet(Protocol):
    """A network on keypoints. N people in frames, V views."""

    def __call__(
        self, xy_px: Tensor, confidence: Tensor, K: Tensor, R: Tensor | None = None, t: Tensor | None = None
    ) -> Regression:
        """xy_px (N, V, 25, 2) undistorted, NaN where missing; confidence (N, V, 25); K, R (N, V, 3, 3) and
        t (N, V, 3) metres: the cameras; without R and t they are not known."""
        ...


def chunks_together(cfg: RegressConfig, window: int) -> int:
    """How many chunks of ``window`` frames are regressed in one batch.

    Sums in a batched product may differ in the last bit with the size of the batch. So a run that goes on
    after a restart begins at a multiple of this number, and its batches are those of an unbroken run.
    """
    return max(1, cfg.batch_size // window)


def regress(
    items: Iterator[KeypointBatch],
    cfg: RegressConfig,
    rig: Rig,
    body: Body,
    net: KeypointNet | None,
    *,
    window: int,
    start: int = 0,
) -> Iterator[PoseBatch]:
    """One ``PoseBatch`` for every chunk of keypoints, in order; without a net all its poses are NaN.

    ``items`` begin at a multiple of ``chunks_together(cfg, window)`` chunks; those before frame ``start``
    take part in their batch and are not handed on.
    """
    together = 1 if net is None else chunks_together(cfg, window)
    while chunks := list(islice(items, together)):
        done = [PoseBatch.blank(c, body.num_betas) for c in chunks]
        if net is not None:
            done = _regressed(done, cfg, rig, body, net)
        yield from (batch for batch in done if batch.start >= start)


@torch.no_grad()
def _regressed(
    chunks: Sequence[PoseBatch], cfg: RegressConfig, rig: Rig, body: Body, net: KeypointNet
) -> list[PoseBatch]:
    K, R, t = (torch.from_numpy(x).float() for x in (rig.K, rig.R, rig.t))
    # People of a frame are side by side: (V, T, P, ...) → (T P, V, ...).
    xy = torch.cat([c.keypoints.xy_px for c in chunks], 1).flatten(1, 2).transpose(0, 1)
    confidence = torch.cat([c.keypoints.confidence for c in chunks], 1).flatten(1, 2).transpose(0, 1)
    parts = []
    for at in range(0, len(xy), cfg.batch_size):
        piece = slice(at, at + cfg.batch_size)
        cameras = [x.expand(len(xy[piece]), *x.shape) for x in (K, R, t)]
        found = _with_betas(net(xy[piece], confidence[piece], *cameras), body.num_betas)
        orient, transl = to_world(found, cameras[1], cameras[2], body.keypoints)
        parts.append((orient, found.body_pose, found.betas, transl))
    whole = [torch.cat(x).float() for x in zip(*parts, strict=True)]
    out, at = [], 0
    for c in chunks:
        shape = c.transl.shape[:2]
        count = shape.numel()
        orient, pose, betas, transl = (
            x[at : at + count].reshape(*shape, *x.shape[1:]).clone() for x in whole
        )
        known = orient.flatten(2).isfinite().all(-1) & pose.flatten(2).isfinite().all(-1)
        known &= betas.isfinite().all(-1) & transl.isfinite().all(-1)
        for x in (orient, pose, betas, transl):
            x[~known] = torch.nan
        out.append(replace(c, global_orient=orient, body_pose=pose, betas=betas, transl=transl))
        at += count
    return out


def _with_betas(found: Regression, count: int) -> Regression:
    """With as many shape coefficients as the body has: the first ones, or zeros after them."""
    betas = found.betas[:, :count]
    return replace(found, betas=torch.nn.functional.pad(betas, (0, count - betas.shape[1])))
