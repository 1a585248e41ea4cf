"""Stage: regression of SMPL parameters from keypoints or pictures, frame by frame, in large batches."""

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
    MAX_BOX_FRAME_RATIO,
    crop_rgb,
    crop_yuv,
    cut_batch,
    cut_box,
    normalise_rgb,
    person_box,
    resample_batch,
    yuv_to_rgb,
)
from models.encoders import MAX_CPU_CROPS, extract_features
from models.image_regressor import SMPL_PELVIS, ImageRegressor, load_image_regressor
from models.regressors.keypoint_nets import KeypointNet, load_regressor
from models.regressors.layers import MIN_KEYPOINTS
from models.regressors.regression import Regression, fuse_roots
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

_COPY_THREADS = 8
"""Threads that copy crops out of frames for a GPU: one alone is half as fast as the network."""
_GPU_CROPS_MULTIPLE = 32
"""Batches on a GPU are padded with black crops to a multiple of this."""


class RegressConfig(Config):
    """The network whose estimates fits start from."""

    weights: Annotated[str, NamesFile(unless=("default", "none"))] = "default"
    """default, the keypoint network that ships; none; or a file: .safetensors that `train` made, or the .pt
    of SPIN or the reference, whose networks look at the pictures."""
    batch_size: int | None = Field(None, ge=1)
    """People in frames, or pictures of them, that go through the network at once; null: 128, and 256 on a
    GPU."""
    device: str = "auto"
    """auto, a GPU where there is one; or cpu, cuda, cuda:1."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """Precision of a network on pictures: 32 bits, bfloat16, or auto: bfloat16 on a GPU."""


def load_net(cfg: RegressConfig, views: int | None = None) -> Net | None:
    """The network of ``cfg.weights`` on its device, in evaluation mode; None for none.

    views: number of cameras. The default for one is the uncalibrated net, whose errors there are less.

    Raises:
        InputError: the weights cannot be read, or there is no such device.
    """
    if cfg.weights == "none":
        return None
    net: Net
    try:
        if cfg.weights == "default":
            net = load_regressor("uncalibrated" if views == 1 else "calibrated")
        elif _holds_image_regressor(path := Path(cfg.weights)):
            net = load_image_regressor(path)
        else:
            net = load_regressor(path)
    except InputError as error:
        raise InputError(
            f"regress.weights: {error} Or give default, the network that ships, or none."
        ) from error
    device = device_of(cfg)
    if isinstance(net, ImageRegressor) and device.type == "cuda":
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net.to(device)


def device_of(cfg: RegressConfig) -> torch.device:
    """The device of the network. Raises ``InputError`` where there is no such."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        why = "" if reason.startswith("Expected one of") else f" ({reason})"
        raise InputError(
            f"regress.device (--device): {name} cannot be used{why}. Choose auto, cpu or cuda."
        ) from error


def _holds_image_regressor(path: Path) -> bool:
    """True for weights of an image regressor; False also for a file whose reader will raise the error."""
    if path.suffix != ".safetensors":
        return True
    try:
        with safe_open(path, "pt") as file:
            kind = json.loads((file.metadata() or {})["multispin"])["kind"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return False
    return bool(kind == "images")


def digest(net: Net) -> str:
    """SHA-256 of all weights of a network."""
    sha256 = hashlib.sha256()
    for name, value in net.state_dict().items():
        sha256.update(name.encode())
        sha256.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()


def describe(cfg: RegressConfig, net: Net | None) -> str:
    """Describe the network, its weights and its device in one line."""
    if net is None:
        return "none: fits start from triangulated points"
    if isinstance(net, ImageRegressor):
        kind = f"{net.config.encoder} on pictures, views fused by {net.config.fusion}"
    else:
        kind = f"{net.kind} keypoints"
    return f"{kind}; weights: {cfg.weights} ({digest(net)[:12]}); on {next(net.parameters()).device}"


def _batch_size(cfg: RegressConfig, net: Net) -> int:
    return cfg.batch_size or (128 if next(net.parameters()).device.type == "cpu" else 256)


def chunks_per_group(cfg: RegressConfig, net: Net | None, window: int, views: int) -> int:
    """Number of chunks of ``window`` frames regressed together: as many as fit into a batch, at least one.

    Sums in a batched product may differ in the last bit with the size of the batch. A resumed run therefore
    begins at a multiple of this number: its batches are those of an unbroken run.
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
    """Yield a ``PoseBatch`` for every chunk of keypoints, in order; without a net all its poses are NaN.

    Keypoint nets take people in frames, image regressors the crops of all views in which a person is visible,
    ``cfg.batch_size`` at a time, over several chunks. ``items`` begin at a multiple of ``chunks_per_group``
    chunks; those before frame ``start`` take part in their batch and are not yielded. decode: frames of all
    cameras from a frame on, for an image regressor. Memory does not grow with the recording.

    Raises:
        InputError: the net is an image regressor and ``decode`` is None.
    """
    if net is None:
        for keypoints in items:
            yield PoseBatch.blank(keypoints, body.num_betas)
        return
    scene = _Scene(rig, body, net)
    groups = _split_into(items, chunks_per_group(cfg, net, window, len(rig)))
    with ExitStack() as stack:
        if isinstance(net, ImageRegressor):
            if decode is None:
                raise InputError(
                    f"{cfg.weights}: a network on pictures, but the recording has no videos. "
                    "Use regress.weights: default."
                )
            pending = _regress_pictures(net, groups, decode, scene, cfg, stack)
        else:
            pending = _regress_keypoints(net, groups, scene, _batch_size(cfg, net))
        # On a GPU a group is computed while the next one is prepared.
        lead = 0 if scene.device.type == "cpu" else 1
        queue: deque[tuple[list[KeypointBatch], Fetch]] = deque()
        while (group := next(pending, None)) or queue:
            if group:
                queue.append(group)
            if len(queue) > lead or not group:
                chunks, fetch = queue.popleft()
                for batch in _split(chunks, fetch()):
                    if batch.start >= start:
                        yield batch


def _split_into(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter."""
    while part := list(islice(items, size)):
        yield part


Fetch = Callable[[], list[Tensor]]
"""Wait for tensors and return them, on the CPU."""


class _Scene:
    """Cameras and bodies on the network's device, float32."""

    def __init__(self, rig: Rig, body: Body, net: Net) -> None:
        self.device = next(net.parameters()).device
        self.K, self.R, self.t = (torch.from_numpy(x).float().to(self.device) for x in (rig.K, rig.R, rig.t))
        net_body, self.same_shapes = _body_of_net(net, body)
        self.net_body = net_body.to(dtype=torch.float32, device=self.device)
        self.body = body.keypoints.to(dtype=torch.float32, device=self.device)
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def start(self, work: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> Fetch:
        """Start work, on a GPU in a stream of its own."""
        if self.stream is None:
            results = list(work(*inputs))
            return lambda: results
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            results = [
                torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
                for x in work(*inputs)
            ]
            done = self.stream.record_event()
        for x in inputs:
            x.record_stream(self.stream)

        def fetch() -> list[Tensor]:
            done.synchronize()
            return results

        return fetch

    def pose_fields(self, regression: Regression) -> list[Tensor]:
        """Fields of ``PoseBatch``, in order, for N people in frames, in terms of the run's body model.

        From a network of another body model, the pelvis keeps its position and betas are 0.
        """
        r = replace(regression, betas=_resize(regression.betas, self.net_body.joints_shapedirs.shape[-1]))
        R, t = (x.expand(len(r.betas), *x.shape) for x in (self.R, self.t))
        orient, transl = fuse_roots(r, R, t, self.net_body)
        betas = _resize(r.betas, self.body.joints_shapedirs.shape[-1]) * float(self.same_shapes)
        transl = transl + pelvis_at_rest(self.net_body, r.betas) - pelvis_at_rest(self.body, betas)
        fields = [orient, r.body_pose, betas, transl, r.pose_sigma]
        finite = torch.stack([x.flatten(1).isfinite().all(1) for x in fields]).all(0)
        return [torch.where(finite.view(-1, *[1] * (x.ndim - 1)), x, torch.nan).float() for x in fields]


def _body_of_net(net: Net, body: Body) -> tuple[KeypointBody, bool]:
    """Body model of a network's betas and translations, and whether ``body`` has the same shapes."""
    default = load_body()
    ships = body.sha256 == default.sha256
    if not isinstance(net, ImageRegressor) or net.config.body == "anny":
        return default.keypoints, ships
    if not ships:
        return body.keypoints, True
    # SMPL itself is missing; only its pelvis is needed here, which hardly moves with the shape.
    template = default.keypoints.joints_template.clone()
    template[0] = torch.tensor(SMPL_PELVIS)
    directions = torch.zeros_like(default.keypoints.joints_shapedirs)
    return replace(default.keypoints, joints_template=template, joints_shapedirs=directions), False


def _resize(betas: Tensor, count: int) -> Tensor:
    """Cut betas (N, B) to ``count``, or append zeros."""
    betas = betas[:, :count]
    return torch.nn.functional.pad(betas, (0, count - betas.shape[1]))


def _regress_keypoints(
    net: KeypointNet, groups: Iterator[list[KeypointBatch]], scene: _Scene, size: int
) -> Iterator[tuple[list[KeypointBatch], Fetch]]:
    """Yield each group with its pose fields, of a keypoint net on ``size`` samples at once."""

    @torch.no_grad()
    def work(xy: Tensor, confidence: Tensor) -> list[Tensor]:
        parts = []
        for points, weights in zip(torch.split(xy, size), torch.split(confidence, size), strict=True):
            cameras = (x.expand(len(points), *x.shape) for x in (scene.K, scene.R, scene.t))
            parts.append(scene.pose_fields(net(points, weights, *cameras)))
        return [torch.cat(x) for x in zip(*parts, strict=True)]

    for chunks in groups:
        inputs = (_samples(chunks, name).to(scene.device) for name in ("xy_px", "confidence"))
        yield chunks, scene.start(work, *inputs)


@dataclass(frozen=True)
class _View:
    """A person in a frame of one camera, to be cropped."""

    row: int
    """Index among all views of all people in frames of a group."""
    frame: av.VideoFrame
    """YUV 4:2:0."""
    box: NDArray[np.float64]
    """(3,) centre and side, pixels."""
    to_yuv: NDArray[np.float32]


@dataclass(frozen=True)
class _Crops:
    """Crops of a group that go through the encoder at once."""

    rows: Tensor
    """(M,) int64, index among all views of all people in frames."""
    rgb: Callable[[], Tensor]
    """Make the crops (M, 3, S, S) on the device, 0 to 255."""


@dataclass(frozen=True)
class _Group:
    """Chunks that are regressed together, N people in frames in V views, and their crops."""

    chunks: list[KeypointBatch]
    box: Tensor
    """(N, V, 3) centre and side of the pixels that are cut, in pixels of the pinhole camera."""
    seen: Tensor
    """(N, V) bool, final when all crops are made."""
    crops: Iterable[_Crops]


def _regress_pictures(
    net: ImageRegressor,
    chunks: Iterator[list[KeypointBatch]],
    decode: Callable[[int], Iterator[FrameBatch]],
    scene: _Scene,
    cfg: RegressConfig,
    stack: ExitStack,
) -> Iterator[tuple[list[KeypointBatch], Fetch]]:
    """Yield each group with its pose fields, of an image regressor."""
    cuda = scene.device.type == "cuda"
    half = cfg.precision == "bf16" or (cfg.precision == "auto" and cuda)
    # On a CPU small batches: frames stay in memory until they are cropped.
    max_crops = _batch_size(cfg, net) if cuda else min(_batch_size(cfg, net), MAX_CPU_CROPS)
    pool = stack.enter_context(ThreadPoolExecutor(_COPY_THREADS))
    groups = _crop_groups(chunks, decode, max_crops, partial(_crop, net=net, device=scene.device, pool=pool))
    if cuda:  # copying out of frames takes as long as the network
        groups = stack.enter_context(Prefetcher((replace(g, crops=[*g.crops]) for g in groups), 1, "crop"))

    @Replayed
    @torch.no_grad()
    def encode_crops(rgb: Tensor) -> dict[str, Tensor]:
        return {"features": extract_features(net.encoder, normalise_rgb(rgb, "none"), half=half)}

    @Replayed
    @torch.no_grad()
    def regress_poses(features: Tensor, seen: Tensor, box: Tensor) -> dict[str, Tensor]:
        K = scene.K.expand(len(seen), *scene.K.shape)
        regression = net.regress(features, seen, box, K, scene.net_body)
        return {str(i): x for i, x in enumerate(scene.pose_fields(regression))}

    def upload(x: Tensor) -> Tensor:
        return (x.pin_memory() if cuda else x).to(scene.device, non_blocking=True)

    for group in groups:
        features = torch.zeros(group.seen.numel(), net.features, device=scene.device)
        for crops in group.crops:
            rgb, count = crops.rgb(), len(crops.rows)
            if cuda:  # few shapes, each with a CUDA graph
                rgb = torch.nn.functional.pad(rgb, (0, 0) * 3 + (0, -count % _GPU_CROPS_MULTIPLE))
            features.index_copy_(0, upload(crops.rows), encode_crops(rgb)["features"][:count])
        inputs = features.view(*group.seen.shape, -1), upload(group.seen), upload(group.box.float())
        yield group.chunks, scene.start(lambda *x: [*regress_poses(*x).values()], *inputs)


def _crop_groups(
    groups: Iterator[list[KeypointBatch]],
    decode: Callable[[int], Iterator[FrameBatch]],
    max_crops: int,
    crop: Callable[[list[_View]], _Crops],
) -> Iterator[_Group]:
    """Yield the groups with the crops of all visible people, ``max_crops`` at a time."""
    with ExitStack() as stack:
        frames: Iterator[Pictures] | None = None
        for chunks in groups:
            if frames is None:
                stream = stack.enter_context(Prefetcher(decode(chunks[0].start), 1, "decode"))
                frames = chain.from_iterable(chunk.by_time() for chunk in stream)
            image, xy, confidence = (_samples(chunks, name) for name in ("image_px", "xy_px", "confidence"))
            visible = confidence > 0
            box = person_box(image.double(), visible)
            seen = (visible.sum(-1) >= MIN_KEYPOINTS) & box.isfinite().all(-1)
            # The crop is cut from the distorted picture; its box in the pinhole camera K goes to the network.
            rounding = torch.from_numpy(cut_box(box.numpy())) - box
            pinhole_box = person_box(xy.double(), visible) + rounding
            views = _visible_views(chunks, box.numpy(), seen.numpy(), frames)
            yield _Group(chunks, pinhole_box, seen, map(crop, _split_into(views, max_crops)))


def _visible_views(
    chunks: Sequence[KeypointBatch],
    boxes: NDArray[np.float64],
    seen: NDArray[np.bool_],
    frames: Iterator[Pictures],
) -> Iterator[_View]:
    """Yield every view that is ``seen`` (N, V), by frames, and clear ``seen`` where there is no picture."""
    for rows in _frame_rows(chunks):
        for v, picture in enumerate(next(frames)):
            if picture is None:
                seen[rows, v] = False
                continue
            # An outlier among the keypoints would make a huge crop, which takes seconds.
            seen[rows, v] &= boxes[rows, v, 2] < MAX_BOX_FRAME_RATIO * max(picture.width, picture.height)
            people = np.flatnonzero(seen[rows, v]) + rows.start
            if not len(people):
                continue
            frame = to_yuv420p(picture)
            matrix = yuv_matrix(int(frame.colorspace), frame.height)
            for n in people.tolist():
                yield _View(n * seen.shape[1] + v, frame, boxes[n, v], matrix)


def _crop(views: list[_View], *, net: ImageRegressor, device: torch.device, pool: Executor) -> _Crops:
    """Crop people; for a GPU their pixels are copied here and resampled when they are asked for."""
    size = net.config.size
    boxes = np.stack([view.box for view in views])
    rows = torch.tensor([view.row for view in views])
    to_yuv = torch.from_numpy(np.stack([view.to_yuv for view in views]))
    if net.config.contrast == "stretch":
        crops = [crop_rgb(to_rgb(view.frame), view.box, size, contrast="stretch") for view in views]
        rgb = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        return _Crops(rows, lambda: rgb.to(device).float())
    if device.type == "cpu":  # one at a time stays in the cache
        yuv = torch.stack([crop_yuv(planes(view.frame), view.box, size) for view in views])
        return _Crops(rows, lambda: yuv_to_rgb(yuv, to_yuv))
    cut = cut_batch([planes(view.frame) for view in views], boxes, size, pool)
    to_yuv = to_yuv.pin_memory()
    return _Crops(rows, lambda: yuv_to_rgb(resample_batch(cut, device), to_yuv.to(device, non_blocking=True)))


def _samples(chunks: Sequence[KeypointBatch], name: str) -> Tensor:
    """A field (V, T, P, ...) of all chunks as (N, V, ...), N people in frames, by frames."""
    return torch.cat([getattr(c, name).flatten(1, 2) for c in chunks], 1).transpose(0, 1)


def _frame_rows(chunks: Sequence[KeypointBatch]) -> Iterator[slice]:
    """Rows of ``_samples`` of each frame."""
    start = 0
    for chunk in chunks:
        _, frames, people, _ = chunk.confidence.shape
        for _ in range(frames):
            yield slice(start, start + people)
            start += people


def _split(chunks: Sequence[KeypointBatch], fields: Sequence[Tensor]) -> Iterator[PoseBatch]:
    """Split the pose fields of a group into a batch for each chunk."""
    start = 0
    for c in chunks:
        shape = c.confidence.shape[1:3]
        stop = start + shape.numel()
        yield PoseBatch(c, *(x[start:stop].reshape(*shape, *x.shape[1:]) for x in fields))
        start = stop
