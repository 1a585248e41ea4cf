"""Stage: from what the views show to SMPL parameters, frame by frame, in large batches."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.body import Body, KeypointBody, load_body, pelvis_at_rest
from models.crops import (
    MAX_BOX_FRAMES,
    Pixels,
    crop_batch,
    crop_rgb,
    cut_box,
    normalised_rgb,
    person_box,
    rgb_of_yuv,
)
from models.image_regressor import ON_CPU, SMPL_PELVIS, ImageRegressor, load_image_regressor
from models.regressors.keypoint_nets import KeypointNet, load_regressor
from models.regressors.layers import MIN_KEYPOINTS
from models.regressors.regression import Regression, to_world
from models.rendering.overlay import yuv_matrix
from pipeline.batches import FrameBatch, KeypointBatch, Pictures, PoseBatch
from pipeline.cameras import Rig
from pipeline.config import Config, NamesFile
from pipeline.engine import ahead
from pipeline.errors import InputError
from pipeline.video import planes, to_rgb, to_yuv420p

Net = KeypointNet | ImageRegressor

_COPIERS = 8
"""Threads that copy people out of frames for a GPU: one copies half as much as it takes."""


class RegressConfig(Config):
    """The network that says, before any fit, how people stand."""

    weights: Annotated[str, NamesFile(unless=("default", "none"))] = "default"
    """default, the keypoint network that ships; none; or a file: .safetensors that `train` made, or the .pt
    of SPIN or the reference, whose networks look at the pictures."""
    batch_size: int | None = Field(None, ge=1)
    """People in frames, or pictures of them, that go through the network at once; null: 64, and 256 on a
    GPU."""
    device: str = "auto"
    """auto, a GPU where there is one; or cpu, cuda, cuda:1."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """Precision of a network on pictures: 32 bits, bfloat16, or auto: bfloat16 on a GPU."""


def load_net(cfg: RegressConfig) -> Net | None:
    """The network of ``cfg.weights`` on its device, in evaluation mode; None for none.

    Raises:
        InputError: the weights cannot be read, or there is no such device.
    """
    if cfg.weights == "none":
        return None
    net: Net
    try:
        if cfg.weights == "default":
            net = load_regressor("calibrated")
        elif _of_pictures(path := Path(cfg.weights)):
            net = load_image_regressor(path)
        else:
            net = load_regressor(path)
    except InputError as error:
        raise InputError(
            f"regress.weights: {error} Also possible: default, the network that ships, and none."
        ) from error
    name = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    try:
        if isinstance(net, ImageRegressor) and name.startswith("cuda"):
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net.to(torch.device(name))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"regress.device: {name} cannot be used ({reason}). Choose auto, cpu or cuda."
        ) from error


def _of_pictures(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return True
    try:
        with safe_open(path, "pt") as file:
            kind = json.loads((file.metadata() or {})["multispin"])["kind"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return False  # whoever reads it says what is wrong
    return bool(kind == "images")


def digest(net: Net) -> str:
    """SHA-256 of all weights of a network."""
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def describe(cfg: RegressConfig, net: Net | None) -> str:
    """The network and where its weights are from, in one line."""
    if net is None:
        return "none: fits start from triangulated points"
    if isinstance(net, ImageRegressor):
        kind = f"{net.config.encoder} on pictures, views fused by {net.config.fusion}"
    else:
        kind = f"{net.kind} keypoints"
    return f"{kind}; weights: {cfg.weights} ({digest(net)[:12]}); on {next(net.parameters()).device}"


def _batch_size(cfg: RegressConfig, net: Net) -> int:
    return cfg.batch_size or (64 if next(net.parameters()).device.type == "cpu" else 256)


def chunks_together(cfg: RegressConfig, net: Net | None, window: int, views: int) -> int:
    """Number of chunks of ``window`` frames regressed in one go: as many as a batch takes, at least one.

    Sums in a batched product may differ in the last bit with the size of the batch. So a run that goes on
    after a restart begins at a multiple of this number, and its batches are those of an unbroken run.
    """
    samples = window * views if isinstance(net, ImageRegressor) else window
    return 1 if net is None else max(1, _batch_size(cfg, net) // samples)


def regress(
    items: Iterator[KeypointBatch],
    cfg: RegressConfig,
    rig: Rig,
    body: Body,
    net: Net | None,
    *,
    window: int,
    start: int = 0,
    decode: Callable[[int], Iterator[FrameBatch]] | None = None,
) -> Iterator[PoseBatch]:
    """One ``PoseBatch`` for every chunk of keypoints, in order; without a net all its poses are NaN.

    A net on keypoints takes people in frames, one on pictures the crops of all views that show somebody, put
    together over chunks, ``cfg.batch_size`` at a time. ``items`` begin at a multiple of ``chunks_together``
    chunks; those before frame ``start`` take part in their batch and are not handed on. decode: frames of all
    cameras from a frame on, for a net on pictures. Memory does not grow with the recording.

    Raises:
        InputError: the net looks at pictures and there is no ``decode``.
    """
    if net is None:
        for keypoints in items:
            yield PoseBatch.blank(keypoints, body.num_betas)
        return
    place = _Place(rig, body, net)
    together = chunks_together(cfg, net, window, len(rig))
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(_COPIERS))
        frames: Iterator[Pictures] | None = None
        # A GPU computes a batch while the next one is made ready.
        waiting: deque[tuple[list[KeypointBatch], list[list[Tensor]]]] = deque()
        lead = 0 if place.device.type == "cpu" else 1
        while (chunks := list(islice(items, together))) or waiting:
            if chunks and isinstance(net, ImageRegressor):
                if frames is None:
                    if decode is None:
                        raise InputError(
                            f"{cfg.weights}: a network that looks at the pictures, and the recording has no "
                            "videos. Use regress.weights: default."
                        )
                    stream = stack.enter_context(ahead(decode(chunks[0].start), 1, "decode"))
                    frames = chain.from_iterable(chunk.by_time() for chunk in stream)
                said = [_from_pictures(net, chunks, frames, place, cfg, pool)]
                waiting.append((chunks, [place.in_world(r) for r in said]))
            elif chunks and not isinstance(net, ImageRegressor):
                said = _from_keypoints(net, chunks, place, _batch_size(cfg, net))
                waiting.append((chunks, [place.in_world(r) for r in said]))
            if len(waiting) > lead or not chunks:
                done, found = waiting.popleft()
                for batch in _split(done, [[x.cpu() for x in parts] for parts in found]):
                    if batch.start >= start:
                        yield batch


class _Place:
    """Cameras and bodies on the network's device, float32."""

    def __init__(self, rig: Rig, body: Body, net: Net) -> None:
        self.device = next(net.parameters()).device

        def here(x: NDArray[np.float64]) -> Tensor:
            return torch.from_numpy(x).float().to(self.device)

        self.K, self.R, self.t = here(rig.K), here(rig.R), here(rig.t)
        meant, self.same = _meant_body(net, body)
        self.meant = meant.to(dtype=torch.float32, device=self.device)
        self.body = body.keypoints.to(dtype=torch.float32, device=self.device)

    def in_world(self, said: Regression) -> list[Tensor]:
        """What is said of N people in frames, as the fields of ``PoseBatch``, in order.

        Of the body that is used: where the network means another one, the pelvis stays where it is, and
        betas are 0.
        """
        said = replace(said, betas=_resized(said.betas, self.meant.joints_shapedirs.shape[-1]))
        R, t = (x.expand(len(said.betas), *x.shape) for x in (self.R, self.t))
        orient, transl = to_world(said, R, t, self.meant)
        betas = _resized(said.betas, self.body.joints_shapedirs.shape[-1]) * float(self.same)
        transl = transl + pelvis_at_rest(self.meant, said.betas) - pelvis_at_rest(self.body, betas)
        fields = [orient, said.body_pose, betas, transl, said.pose_sigma]
        known = torch.stack([x.flatten(1).isfinite().all(1) for x in fields]).all(0)
        return [torch.where(known.view(-1, *[1] * (x.ndim - 1)), x, torch.nan).float() for x in fields]


def _meant_body(net: Net, body: Body) -> tuple[KeypointBody, bool]:
    """The body that a network's betas and translations are about; whether ``body`` has the same shapes."""
    default = load_body()
    ships = body.sha256 == default.sha256
    if not isinstance(net, ImageRegressor) or net.config.body == "anny":
        return default.keypoints, ships
    if not ships:
        return body.keypoints, True
    # SMPL is not at hand; of all it is, only the pelvis counts here, and that hardly moves with the shape.
    template = default.keypoints.joints_template.clone()
    template[0] = torch.tensor(SMPL_PELVIS)
    directions = torch.zeros_like(default.keypoints.joints_shapedirs)
    return replace(default.keypoints, joints_template=template, joints_shapedirs=directions), False


def _resized(betas: Tensor, count: int) -> Tensor:
    """The first ``count`` betas (N, B), or zeros after them."""
    betas = betas[:, :count]
    return torch.nn.functional.pad(betas, (0, count - betas.shape[1]))


@torch.no_grad()
def _from_keypoints(
    net: KeypointNet, chunks: Sequence[KeypointBatch], place: _Place, size: int
) -> list[Regression]:
    xy, confidence = (_samples(chunks, name).to(place.device) for name in ("xy_px", "confidence"))
    found = []
    for piece, trust in zip(torch.split(xy, size), torch.split(confidence, size), strict=True):
        cameras = (x.expand(len(piece), *x.shape) for x in (place.K, place.R, place.t))
        found.append(net(piece, trust, *cameras))
    return found


@dataclass(frozen=True)
class _Cut:
    """A person in a frame, to be cut out."""

    row: int
    view: int
    planes: Sequence[Pixels]
    """Y, U and V; one RGB picture where contrast is stretched."""
    box: NDArray[np.float64]
    to_yuv: NDArray[np.float32]


@torch.no_grad()
def _from_pictures(
    net: ImageRegressor,
    chunks: Sequence[KeypointBatch],
    frames: Iterator[Pictures],
    place: _Place,
    cfg: RegressConfig,
    pool: Executor,
) -> Regression:
    image, xy, confidence = (_samples(chunks, name) for name in ("image_px", "xy_px", "confidence"))
    counts = confidence > 0
    box = person_box(image.double(), counts)
    seen = (counts.sum(-1) >= MIN_KEYPOINTS) & box.isfinite().all(-1)
    features = torch.zeros(seen.numel(), net.features, device=place.device)
    cuda = place.device.type == "cuda"
    half = cfg.precision == "bf16" or (cfg.precision == "auto" and cuda)
    most = _batch_size(cfg, net) if cuda else min(_batch_size(cfg, net), ON_CPU)  # frames wait
    cuts: list[_Cut] = []
    stretched = net.config.contrast == "stretch"

    def there(x: Tensor) -> Tensor:
        return (x.pin_memory() if cuda else x).to(place.device, non_blocking=True)

    def flush() -> None:
        if stretched:
            parts = [crop_rgb(c.planes[0], c.box, net.config.size, contrast="stretch") for c in cuts]
            rgb = there(torch.from_numpy(np.stack(parts))).permute(0, 3, 1, 2).float()
        else:
            squares = np.stack([c.box for c in cuts])
            yuv = crop_batch([c.planes for c in cuts], squares, place.device, net.config.size, pool)
            rgb = rgb_of_yuv(yuv, there(torch.from_numpy(np.stack([c.to_yuv for c in cuts]))))
        found = net.encode(normalised_rgb(rgb, "none"), half=half)
        index = torch.tensor([c.row * seen.shape[1] + c.view for c in cuts])
        features.index_copy_(0, there(index), found)
        cuts.clear()

    boxes, side = box.double().numpy(), box[..., 2].numpy()
    visible = seen.numpy()
    for rows in _rows(chunks):
        for v, picture in enumerate(next(frames)):
            if picture is None:
                visible[rows, v] = False
                continue
            # A stray keypoint far out would make a crop of nearly nothing, for seconds.
            visible[rows, v] &= side[rows, v] < MAX_BOX_FRAMES * max(picture.width, picture.height)
            shown = np.flatnonzero(visible[rows, v]) + rows.start
            if not len(shown):
                continue
            frame = to_yuv420p(picture)
            matrix = yuv_matrix(int(frame.colorspace), frame.height)
            parts = (to_rgb(frame),) if stretched else planes(frame)
            for n in shown.tolist():
                cuts.append(_Cut(n, v, parts, boxes[n, v], matrix))
                if len(cuts) == most:
                    flush()
    if cuts:
        flush()
    # Of the pinhole camera, as K is; the crop itself is cut from the picture as the lens made it.
    rounding = torch.from_numpy(cut_box(boxes)) - box
    ideal = there((person_box(xy.double(), counts) + rounding).float())
    K = place.K.expand(len(seen), *place.K.shape)
    return net.regress(features.view(*seen.shape, -1), there(seen), ideal, K, place.meant)


def _samples(chunks: Sequence[KeypointBatch], name: str) -> Tensor:
    """(N, V, ...) of a field (V, T, P, ...), N people in frames, those of one frame side by side."""
    return torch.cat([getattr(c, name).flatten(1, 2) for c in chunks], 1).transpose(0, 1)


def _rows(chunks: Sequence[KeypointBatch]) -> Iterator[slice]:
    """Rows of ``_samples`` that belong to each frame."""
    start = 0
    for chunk in chunks:
        _, frames, people, _ = chunk.confidence.shape
        for _ in range(frames):
            yield slice(start, start + people)
            start += people


def _split(chunks: Sequence[KeypointBatch], said: Sequence[Sequence[Tensor]]) -> Iterator[PoseBatch]:
    """Cut what is regressed of all chunks together into one batch a chunk."""
    whole = [torch.cat(x) for x in zip(*said, strict=True)]
    at = 0
    for c in chunks:
        shape = c.confidence.shape[1:3]
        stop = at + shape.numel()
        yield PoseBatch(c, *(x[at:stop].reshape(*shape, *x.shape[1:]) for x in whole))
        at = stop
