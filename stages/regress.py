"""Stage: from what the views show to SMPL parameters, frame by frame, in large batches."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import av
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.body import Body, KeypointBody, load_body, pelvis_at_rest
from models.crops import (
    MAX_BOX_FRAMES,
    crop_rgb,
    crop_yuv,
    cut_batch,
    cut_box,
    normalised_rgb,
    person_box,
    resample_batch,
    rgb_of_yuv,
)
from models.encoders import ON_CPU, encode
from models.image_regressor import SMPL_PELVIS, ImageRegressor, load_image_regressor
from models.regressors.keypoint_nets import KeypointNet, load_regressor
from models.regressors.layers import MIN_KEYPOINTS
from models.regressors.regression import Regression, to_world
from models.rendering.overlay import yuv_matrix
from models.replay import Replayed
from pipeline.batches import FrameBatch, KeypointBatch, Pictures, PoseBatch
from pipeline.cameras import Rig
from pipeline.config import Config, NamesFile
from pipeline.engine import Prefetcher
from pipeline.errors import InputError
from pipeline.video import planes, to_rgb, to_yuv420p

Net = KeypointNet | ImageRegressor
T = TypeVar("T")

_COPIERS = 8
"""Threads that copy people out of frames for a GPU: one copies half as much as it takes."""
_TOGETHER = 32
"""Crops go through a GPU in multiples of this, black ones added at the end."""


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
    groups = _grouped(items, chunks_together(cfg, net, window, len(rig)))
    with ExitStack() as stack:
        if isinstance(net, ImageRegressor):
            if decode is None:
                raise InputError(
                    f"{cfg.weights}: a network that looks at the pictures, and the recording has no videos. "
                    "Use regress.weights: default."
                )
            found = _from_pictures(net, groups, decode, place, cfg, stack)
        else:
            found = _from_keypoints(net, groups, place, _batch_size(cfg, net))
        # A GPU computes a group while the next one is made ready.
        lead = 0 if place.device.type == "cpu" else 1
        waiting: deque[tuple[list[KeypointBatch], Fetch]] = deque()
        while (group := next(found, None)) or waiting:
            if group:
                waiting.append(group)
            if len(waiting) > lead or not group:
                chunks, fetch = waiting.popleft()
                for batch in _split(chunks, fetch()):
                    if batch.start >= start:
                        yield batch


def _grouped(items: Iterator[T], count: int) -> Iterator[list[T]]:
    """``count`` items at a time, at the end fewer."""
    while together := list(islice(items, count)):
        yield together


Fetch = Callable[[], list[Tensor]]
"""Tensors on the CPU, for which it waits."""


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
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def aside(self, work: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> Fetch:
        """Do work, on a GPU beside what it is told after that."""
        if self.stream is None:
            found = list(work(*inputs))
            return lambda: found
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            found = [_fetched(x) for x in work(*inputs)]
            done = self.stream.record_event()
        for x in inputs:
            x.record_stream(self.stream)

        def fetch() -> list[Tensor]:
            done.synchronize()
            return found

        return fetch

    def in_world(self, said: Regression) -> list[Tensor]:
        """Fields of ``PoseBatch``, in order, of what is said of N people in frames.

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


def _fetched(x: Tensor) -> Tensor:
    """Copy in memory of the CPU, there when the stream gets to it."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)


def _from_keypoints(
    net: KeypointNet, groups: Iterator[list[KeypointBatch]], place: _Place, size: int
) -> Iterator[tuple[list[KeypointBatch], Fetch]]:
    @torch.no_grad()
    def work(xy: Tensor, confidence: Tensor) -> list[Tensor]:
        parts = []
        for piece, trust in zip(torch.split(xy, size), torch.split(confidence, size), strict=True):
            cameras = (x.expand(len(piece), *x.shape) for x in (place.K, place.R, place.t))
            parts.append(place.in_world(net(piece, trust, *cameras)))
        return [torch.cat(x) for x in zip(*parts, strict=True)]

    for chunks in groups:
        inputs = (_samples(chunks, name).to(place.device) for name in ("xy_px", "confidence"))
        yield chunks, place.aside(work, *inputs)


@dataclass(frozen=True)
class _Cut:
    """A person in a frame, to be cut out."""

    row: int
    """Of all views of all people in frames of a group."""
    frame: av.VideoFrame
    """In YUV 4:2:0."""
    box: NDArray[np.float64]
    """(3,) centre and side, pixels."""
    to_yuv: NDArray[np.float32]


@dataclass(frozen=True)
class _Crops:
    """Crops of a group, as many as go through the encoder at once."""

    rows: Tensor
    """(M,) int64, of all views of all people in frames."""
    rgb: Callable[[], Tensor]
    """Crops (M, 3, S, S) on the device, 0 to 255."""


@dataclass(frozen=True)
class _Group:
    """People in frames (N) in V views, and their crops."""

    chunks: list[KeypointBatch]
    box: Tensor
    """(N, V, 3) centre and side of what is cut, pixels of the pinhole camera."""
    seen: Tensor
    """(N, V) bool, when all crops are made."""
    crops: Iterable[_Crops]


def _from_pictures(
    net: ImageRegressor,
    chunks: Iterator[list[KeypointBatch]],
    decode: Callable[[int], Iterator[FrameBatch]],
    place: _Place,
    cfg: RegressConfig,
    stack: ExitStack,
) -> Iterator[tuple[list[KeypointBatch], Fetch]]:
    cuda = place.device.type == "cuda"
    half = cfg.precision == "bf16" or (cfg.precision == "auto" and cuda)
    most = _batch_size(cfg, net) if cuda else min(_batch_size(cfg, net), ON_CPU)  # frames wait
    pool = stack.enter_context(ThreadPoolExecutor(_COPIERS))
    groups = _groups(chunks, decode, most, partial(_crops, net=net, device=place.device, pool=pool))
    if cuda:  # copying out of frames takes as long as the network
        groups = stack.enter_context(Prefetcher((replace(g, crops=[*g.crops]) for g in groups), 1, "crop"))

    @Replayed
    @torch.no_grad()
    def look(rgb: Tensor) -> dict[str, Tensor]:
        return {"features": encode(net.encoder, normalised_rgb(rgb, "none"), half=half)}

    @Replayed
    @torch.no_grad()
    def stand(features: Tensor, seen: Tensor, box: Tensor) -> dict[str, Tensor]:
        K = place.K.expand(len(seen), *place.K.shape)
        said = net.regress(features, seen, box, K, place.meant)
        return {str(i): x for i, x in enumerate(place.in_world(said))}

    def there(x: Tensor) -> Tensor:
        return (x.pin_memory() if cuda else x).to(place.device, non_blocking=True)

    for group in groups:
        features = torch.zeros(group.seen.numel(), net.features, device=place.device)
        for crops in group.crops:
            rgb, count = crops.rgb(), len(crops.rows)
            if cuda:  # few shapes, each of which is recorded
                rgb = torch.nn.functional.pad(rgb, (0, 0) * 3 + (0, -count % _TOGETHER))
            features.index_copy_(0, there(crops.rows), look(rgb)["features"][:count])
        inputs = features.view(*group.seen.shape, -1), there(group.seen), there(group.box.float())
        yield group.chunks, place.aside(lambda *x: [*stand(*x).values()], *inputs)


def _groups(
    groups: Iterator[list[KeypointBatch]],
    decode: Callable[[int], Iterator[FrameBatch]],
    most: int,
    crops: Callable[[list[_Cut]], _Crops],
) -> Iterator[_Group]:
    """Groups with the crops of everybody who is seen, ``most`` at a time."""
    with ExitStack() as stack:
        frames: Iterator[Pictures] | None = None
        for chunks in groups:
            if frames is None:
                stream = stack.enter_context(Prefetcher(decode(chunks[0].start), 1, "decode"))
                frames = chain.from_iterable(chunk.by_time() for chunk in stream)
            image, xy, confidence = (_samples(chunks, name) for name in ("image_px", "xy_px", "confidence"))
            counts = confidence > 0
            box = person_box(image.double(), counts)
            seen = (counts.sum(-1) >= MIN_KEYPOINTS) & box.isfinite().all(-1)
            # Of the pinhole camera, as K is; the crop itself is cut from the picture as the lens made it.
            rounding = torch.from_numpy(cut_box(box.numpy())) - box
            ideal = person_box(xy.double(), counts) + rounding
            cuts = _cuts(chunks, box.numpy(), seen.numpy(), frames)
            yield _Group(chunks, ideal, seen, map(crops, _grouped(cuts, most)))


def _cuts(
    chunks: Sequence[KeypointBatch],
    boxes: NDArray[np.float64],
    visible: NDArray[np.bool_],
    frames: Iterator[Pictures],
) -> Iterator[_Cut]:
    """Everybody who is visible (N, V), frame after frame; who has no picture is not visible after that."""
    for rows in _rows(chunks):
        for v, picture in enumerate(next(frames)):
            if picture is None:
                visible[rows, v] = False
                continue
            # A stray keypoint far out would make a crop of nearly nothing, for seconds.
            visible[rows, v] &= boxes[rows, v, 2] < MAX_BOX_FRAMES * max(picture.width, picture.height)
            shown = np.flatnonzero(visible[rows, v]) + rows.start
            if not len(shown):
                continue
            frame = to_yuv420p(picture)
            matrix = yuv_matrix(int(frame.colorspace), frame.height)
            for n in shown.tolist():
                yield _Cut(n * visible.shape[1] + v, frame, boxes[n, v], matrix)


def _crops(cuts: list[_Cut], *, net: ImageRegressor, device: torch.device, pool: Executor) -> _Crops:
    """Crops of people: for a GPU their pixels alone, until they are asked for."""
    size = net.config.size
    boxes = np.stack([c.box for c in cuts])
    rows = torch.tensor([c.row for c in cuts])
    to_yuv = torch.from_numpy(np.stack([c.to_yuv for c in cuts]))
    if net.config.contrast == "stretch":
        parts = [crop_rgb(to_rgb(c.frame), c.box, size, contrast="stretch") for c in cuts]
        stretched = torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2)
        return _Crops(rows, lambda: stretched.to(device).float())
    if device.type == "cpu":  # one at a time stays in the cache
        yuv = torch.stack([crop_yuv(planes(c.frame), c.box, size) for c in cuts])
        return _Crops(rows, lambda: rgb_of_yuv(yuv, to_yuv))
    cut = cut_batch([planes(c.frame) for c in cuts], boxes, size, pool)
    to_yuv = to_yuv.pin_memory()
    return _Crops(rows, lambda: rgb_of_yuv(resample_batch(cut, device), to_yuv.to(device, non_blocking=True)))


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


def _split(chunks: Sequence[KeypointBatch], whole: Sequence[Tensor]) -> Iterator[PoseBatch]:
    """Cut what is regressed of all chunks together into one batch a chunk."""
    at = 0
    for c in chunks:
        shape = c.confidence.shape[1:3]
        stop = at + shape.numel()
        yield PoseBatch(c, *(x[at:stop].reshape(*shape, *x.shape[1:]) for x in whole))
        at = stop
