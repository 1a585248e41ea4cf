"""Draw the fitted bodies over the videos: one overlay a camera, and all views in one mosaic."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, Protocol

import av
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, StringConstraints
from torch import Tensor

from models.rendering import overlay, software
from models.rendering.software import Picture
from pipeline.batches import FitBatch, FrameBatch
from pipeline.cameras import Rig
from pipeline.config import Config
from pipeline.engine import ahead
from pipeline.errors import InputError
from pipeline.video import VideoInfo, VideoWriter, copied, planes, probe, to_yuv420p

Colour = Annotated[str, StringConstraints(pattern="^#[0-9a-fA-F]{6}$")]
Side = Annotated[int, Field(ge=64)]
Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
]
Draw = Callable[..., Picture | None]
Pictures = tuple[av.VideoFrame | None, ...]
Decode = Callable[..., Iterator[FrameBatch]]

EMPTY_LUMA = 70
"""Grey of a picture that is missing."""

GROUP = 4
"""Frames of one view that are drawn and encoded before another view's: encoders that take turns at every
frame push one another out of the processor's cache."""


class RenderConfig(Config):
    overlay: bool = True
    """Write overlay_<camera>.mp4."""
    mosaic: bool = True
    """Write mosaic.mp4."""
    cameras: tuple[str, ...] = ()
    """Cameras to show, by name; all when empty."""
    backend: Literal["software", "pytorch3d"] = "software"
    """What draws: software on the processor, pytorch3d on a CUDA device."""
    antialias: bool = True
    """2×2 samples a pixel."""
    opacity: float = Field(0.9, gt=0, le=1)
    colours: tuple[Colour, ...] = Field(
        ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"), min_length=1
    )
    """One a person, from the start again when there are more people. Okabe and Ito's, which the colour-blind
    can tell apart."""
    crf: int = Field(21, ge=0, le=51)
    """Quality of the H.264 encoder: lower is better and larger; 18 can hardly be told from the source."""
    preset: Preset = "veryfast"
    mosaic_size: tuple[Side, Side] = (1920, 1080)
    """Width and height that the mosaic keeps within, pixels."""
    threads: NonNegativeInt = 0
    """Views drawn at the same time; 0 for one a processor."""


class Body(Protocol):
    """The part of ``models.body.Body`` that is drawn."""

    @property
    def faces(self) -> NDArray[np.int32]: ...

    def vertices(self, global_orient: Tensor, body_pose: Tensor, betas: Tensor, transl: Tensor) -> Tensor: ...


def render(
    items: Iterator[FitBatch],
    cfg: RenderConfig,
    rig: Rig,
    body: Body,
    videos: Sequence[VideoInfo | Path | None],
    frame_index: NDArray[np.int64],
    rate: Fraction,
    out: Path,
    decode: Decode,
) -> Iterator[FitBatch]:
    """Draw every batch and hand it on. Batches must follow one another without a gap.

    videos: one a camera, None where there is none; they are read again here, a few frames ahead of the
    drawing. frame_index: (V, T) which frame of each video is shown at each time of the recording, −1 for
    none. rate: frames a second of that time line. decode: the decode stage, called with videos, frame_index
    and start.

    A camera that has no picture is drawn on grey and says so. A person who is bridged over time is drawn
    paler and labelled; one with NaN parameters is labelled as not seen. The files of ``video_names`` get
    their names in the folder ``out`` when the last batch is drawn; before that, and after an error, there
    are none.

    Raises ``InputError`` for an unknown camera name, a video whose size is not its camera's, a back end that
    is not installed, and a file that cannot be written.
    """
    if not cfg.overlay and not cfg.mosaic:
        yield from items
        return
    names = video_names(cfg, rig.names)
    rig, sources, frame_index = _shown(cfg.cameras, rig, videos, frame_index)
    draw = _back_end(cfg.backend)
    sizes = [(int(w), int(h)) for w, h in rig.size]
    _make_folder(out)
    workers = cfg.threads or os.cpu_count() or 1
    # Views are encoded side by side; an encoder of one thread takes the least time and memory in all.
    encoder_threads = max(1, workers // len(rig))
    with ExitStack() as stack:

        def writer(name: str) -> VideoWriter:
            file = VideoWriter(out / name, rate, crf=cfg.crf, preset=cfg.preset, threads=encoder_threads)
            return stack.enter_context(file)

        files = [writer(name) for name in names[: len(rig)]] if cfg.overlay else []
        together = [_MosaicVideo(sizes, cfg, rig.names, writer(names[-1]))] if cfg.mosaic else []
        pool = stack.enter_context(ThreadPoolExecutor(workers, "render"))
        pending: Future[None] | None = None
        frames: Iterator[Pictures] | None = None
        at = 0
        for batch in items:
            if frames is None:
                at = batch.start
                chunks = decode(sources, frame_index, start=at)
                frames = _by_time(stack.enter_context(ahead(chunks, 1, "decode")))
            stop = batch.start + len(batch.valid)
            if batch.start != at or stop > frame_index.shape[1]:
                raise ValueError(
                    f"render got frames {batch.start} to {stop} when {at} was next of {frame_index.shape[1]}"
                )
            moments = _moments(batch, body, cfg)
            for first in range(0, len(moments), GROUP):
                group = [(m, next(frames)) for m in moments[first : first + GROUP]]

                def view(v: int, group: Sequence[tuple[_Moment, Pictures]] = group) -> list[av.VideoFrame]:
                    note = "no video" if sources[v] is None else "no frame"
                    drawn = []
                    for m, pictures in group:
                        picture = draw(m.vertices, body.faces, rig, v, m.colours, antialias=cfg.antialias)
                        drawn.append(_drawn(pictures[v], picture, sizes[v], m.notes, note))
                        if files:
                            files[v].write(drawn[-1])
                    return drawn

                views = list(pool.map(view, range(len(rig))))
                if pending is not None:
                    pending.result()
                if together:  # made while the next frames are drawn
                    times = [m.time_s for m, _ in group]
                    pending = pool.submit(together[0].add, views, at, times)
                at += len(group)
            yield batch
        if pending is not None:
            pending.result()
        for file in chain(files, (t.file for t in together)):
            file.finish()  # all are whole before the first gets its name


def video_names(cfg: RenderConfig, cameras: Sequence[str]) -> list[str]:
    """Names of the files that are written: an overlay for each camera shown, in order, and the mosaic.

    ``overlay_<camera>.mp4`` is made safe for every file system, and different for every camera.
    """
    names: list[str] = []
    taken: set[str] = set()
    for camera in cameras:
        name = safe = re.sub(r"[^\w.-]+", "_", camera)
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{safe}_{number}"
        taken.add(name.casefold())
        if cfg.overlay and (not cfg.cameras or camera in cfg.cameras):
            names.append(f"overlay_{name}.mp4")
    return [*names, "mosaic.mp4"] if cfg.mosaic else names


@dataclass(frozen=True)
class _Moment:
    """What is drawn at one time."""

    time_s: float
    vertices: NDArray[np.float32]
    """(P, N, 3) metres, world; NaN for people who are not seen."""
    colours: NDArray[np.float32]
    """(P, 4)"""
    notes: tuple[str, ...]
    """What the viewer must be told about the people."""


def meshes(batch: FitBatch, body: Body) -> NDArray[np.float32]:
    """Vertices (T, P, N, 3) of a batch, metres, world; NaN for people who are not seen."""
    p = batch.params
    frames, people = p.transl.shape[:2]
    betas = p.betas.expand(frames, -1, -1).reshape(frames * people, -1)
    with torch.inference_mode():
        vertices = body.vertices(
            p.global_orient.flatten(0, 1), p.body_pose.flatten(0, 1), betas, p.transl.flatten(0, 1)
        )
    found: NDArray[np.float32] = vertices.float().cpu().numpy().reshape(frames, people, -1, 3)
    return found


def _moments(batch: FitBatch, body: Body, cfg: RenderConfig) -> list[_Moment]:
    xyz = meshes(batch, body)
    frames, people = xyz.shape[:2]
    solid = np.array([_rgb(cfg.colours[i % len(cfg.colours)]) for i in range(people)], np.float32)
    seen = np.isfinite(xyz).all((2, 3))
    sure = batch.valid.cpu().numpy()
    moments = []
    for t in range(frames):
        pale = ~sure[t][:, None]
        rgb = np.where(pale, 0.6 + 0.4 * solid, solid)
        alpha = np.where(pale, 0.6, 1) * cfg.opacity
        notes = []
        for i in range(people):
            who = f"person {i + 1} " if people > 1 else ""
            if not seen[t, i]:
                notes.append(f"{who}not seen")
            elif not sure[t, i]:
                notes.append(f"{who}bridged")
        time_s = float(batch.keypoints.time_s[t])
        moments.append(
            _Moment(time_s, xyz[t], np.concatenate([rgb, alpha], 1).astype(np.float32), tuple(notes))
        )
    return moments


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def _drawn(
    frame: av.VideoFrame | None,
    picture: Picture | None,
    size: tuple[int, int],
    notes: Sequence[str],
    missing: str,
) -> av.VideoFrame:
    """A new frame: the video's, or grey where it has none, with the people and what there is to say."""
    if frame is None:
        new = av.VideoFrame(size[0], size[1], "yuv420p")
        overlay.fill(planes(new), EMPTY_LUMA)
        notes = (missing, *notes)
    else:
        new = copied(to_yuv420p(frame))
    if picture is not None:
        overlay.blend(planes(new), picture, overlay.yuv_matrix(int(new.colorspace), size[1]))
    if notes:
        overlay.label(planes(new), ", ".join(notes), max(10, min(size) // 36), bottom=True)
    return new


class _MosaicVideo:
    """All views in one picture, with names and time."""

    def __init__(
        self, sizes: Sequence[tuple[int, int]], cfg: RenderConfig, names: Sequence[str], file: VideoWriter
    ) -> None:
        self.file = file
        self._names = names
        self._grid = overlay.mosaic(sizes, cfg.mosaic_size)
        self._canvas = av.VideoFrame(*self._grid.size, "yuv420p")
        overlay.fill(planes(self._canvas), overlay.BLACK)

    def add(self, views: Sequence[Sequence[av.VideoFrame]], first: int, times_s: Sequence[float]) -> None:
        """Frames [view][time], the first of which has the number ``first``."""
        canvas, grid = planes(self._canvas), self._grid
        text = max(9, grid.footer // 2)
        for k, time_s in enumerate(times_s):
            for view, box, name in zip(views, grid.boxes, self._names, strict=True):
                overlay.place(canvas, planes(view[k]), box, name, text)
            overlay.footer(canvas, grid.footer, f"frame {first + k}   {time_s:.3f} s", text)
            self.file.write(self._canvas)


def _shown(
    names: Sequence[str],
    rig: Rig,
    videos: Sequence[VideoInfo | Path | None],
    frame_index: NDArray[np.int64],
) -> tuple[Rig, list[VideoInfo | None], NDArray[np.int64]]:
    """The cameras that were asked for, with their videos looked into."""
    if frame_index.shape[0] != len(rig) or len(videos) != len(rig):
        raise ValueError(f"{len(rig)} cameras, {len(videos)} videos, frame_index {frame_index.shape}")
    unknown = [n for n in names if n not in rig.names]
    if unknown:
        raise InputError(
            f"render.cameras: there is no camera {', '.join(unknown)}. "
            f"The cameras are: {', '.join(rig.names)}."
        )
    keep = [v for v, name in enumerate(rig.names) if not names or name in names]
    infos: list[VideoInfo | None] = []
    for v in keep:
        video = videos[v]
        info = probe(video) if isinstance(video, Path) else video
        w, h = rig.size[v]
        if info is not None and info.size != (w, h):
            raise InputError(
                f"{info.path}: the video is {info.size[0]}x{info.size[1]} pixels, the calibration of camera "
                f"{rig.names[v]} is for {w}x{h}. Give the calibration of this video, or export it in that "
                "size."
            )
        infos.append(info)
    return rig.select([rig.names[v] for v in keep]), infos, frame_index[keep]


def _by_time(chunks: Iterator[FrameBatch]) -> Iterator[Pictures]:
    for chunk in chunks:
        yield from zip(*chunk.pictures, strict=True)


def _back_end(name: str) -> Draw:
    if name == "pytorch3d":
        from models.rendering import pytorch3d

        return pytorch3d.draw
    return software.draw


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{out}: this folder cannot be made ({error.strerror}). Choose another one with --out."
        ) from error
