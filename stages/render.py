"""Draw the fitted bodies over the videos: one video a camera, a mosaic of all, and views of no camera."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import av
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, NonNegativeInt, field_validator
from torch import Tensor

from models.rendering import overlay, software
from models.rendering.software import Planes
from pipeline.batches import FitBatch, FrameBatch, Status
from pipeline.cameras import Rig
from pipeline.config import Config
from pipeline.engine import ahead
from pipeline.errors import InputError
from pipeline.joints import BODY_25_BONES
from pipeline.store import Store
from pipeline.video import (
    VideoInfo,
    VideoWriter,
    copied,
    pick_encoder,
    planes,
    probe,
    resized,
    to_yuv420p,
)

_log = logging.getLogger(__name__)


def _colour(text: str) -> str:
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise ValueError("a colour is written as #rrggbb, such as #56B4E9")
    return text


Colour = Annotated[str, AfterValidator(_colour)]
Side = Annotated[int, Field(ge=64)]
Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
]
Paint = Callable[..., None]
Pictures = tuple[av.VideoFrame | None, ...]
Decode = Callable[..., Iterator[FrameBatch]]

EMPTY_LUMA = 70
"""Grey of a picture that is missing."""

GROUP = 4
"""Frames of one view that are drawn and encoded before another view's: encoders that take turns at every
frame push one another out of the processor's cache."""


FAR_PX = 20.0
"""A fitted keypoint so far from the detected one, or farther, is red; one on the spot is green."""

TURN_S = 8.0
"""Seconds in which the turntable goes round once."""


SKIN_M = 0.12
"""How far skin, head and hands reach beyond the joints, metres."""

Mode = Literal["overlay", "mesh", "skeleton", "side", "turntable", "mosaic"]


class RenderConfig(Config):
    show: Literal["overlay", "mesh", "skeleton"] = "overlay"
    """What each camera's picture shows: bodies over the video; bodies alone; or, over the video, keypoints as
    detected (rings, the brighter the surer) and as fitted (dots, from green to red by their distance)."""
    overlay: bool = True
    """Write a video for each camera, <show>_<camera>.mp4."""
    mosaic: bool = True
    """Write mosaic.mp4."""
    cameras: tuple[str, ...] = ()
    """Cameras to show, by name; all when empty."""
    backend: Literal["auto", "software", "moderngl", "pytorch3d"] = "auto"
    """What draws: software on the processor, moderngl with OpenGL, pytorch3d on a CUDA device. auto is OpenGL
    where it is there with a graphics card, else software."""
    antialias: bool = True
    """2×2 samples a pixel."""
    opacity: float = Field(0.9, gt=0, le=1)
    colours: tuple[Colour, ...] = (
        "#56B4E9", "#E69F00", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
    )  # fmt: skip
    """One a person, from the start again when there are more people. Okabe and Ito's, which the colour-blind
    can tell apart."""
    crf: int = Field(21, ge=0, le=51)
    """Quality of the H.264 encoder: lower is better and larger; 18 can hardly be told from the source."""
    codec: str = "auto"
    """FFmpeg's name of an H.264, HEVC or AV1 encoder; auto is a graphics card's H.264 encoder where one
    works, else libx264."""
    preset: Preset = "veryfast"
    """Of the encoders libx264 and libx265."""
    scale: float = Field(1.0, gt=0, le=4)
    """Size of each camera's video by that of its source."""
    mosaic_size: tuple[Side, Side] = (1920, 1080)
    """Width and height that the mosaic keeps within, pixels."""
    threads: NonNegativeInt = 0
    """Views drawn at the same time; 0 for one a processor."""

    @field_validator("colours")
    @classmethod
    def _at_least_one(cls, value: tuple[Colour, ...]) -> tuple[Colour, ...]:
        if not value:  # pydantic's min_length would count the colours that are wrong as missing, too
            raise ValueError("at least one colour is needed")
        return value


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

    A camera that has no picture is drawn on grey and says so. A person whose fit is not valid is drawn
    paler and labelled; one with NaN parameters is labelled as not seen. The files of ``video_names`` get
    their names in the folder ``out`` when the last batch is drawn; before that, and after an error, there
    are none.

    Raises ``InputError`` at once for an unknown camera name, a video whose size is not its camera's, a back
    end or an encoder that does not work here; and while drawing for a file that cannot be written.
    """
    if not cfg.overlay and not cfg.mosaic:
        return items
    names = video_names(cfg, rig.names)
    keep, sources = _shown(cfg.cameras, rig, videos, frame_index)
    rig, frame_index = rig.select([rig.names[v] for v in keep]), frame_index[keep]
    for v, (w, h) in enumerate(rig.size.tolist()):
        if cfg.scale != 1:
            rig = rig.resized(v, (max(2, round(w * cfg.scale / 2) * 2), max(2, round(h * cfg.scale / 2) * 2)))
    paint = _back_end(cfg.backend)
    pick_encoder(cfg.codec)
    _make_folder(out)
    return _render(items, cfg, rig, body, sources, keep, frame_index, rate, out, decode, paint, names)


def _render(
    items: Iterator[FitBatch],
    cfg: RenderConfig,
    rig: Rig,
    body: Body,
    sources: Sequence[VideoInfo | None],
    keep: Sequence[int],
    frame_index: NDArray[np.int64],
    rate: Fraction,
    out: Path,
    decode: Decode,
    paint: Paint,
    names: Sequence[str],
) -> Iterator[FitBatch]:
    """``render`` of the cameras that are shown: ``rig``, ``sources`` and ``frame_index`` are theirs, and
    ``keep`` is their places among all."""
    sizes = [(int(w), int(h)) for w, h in rig.size]
    silent = [None if cfg.show == "mesh" else source for source in sources]
    workers = cfg.threads or os.cpu_count() or 1
    # Views are encoded side by side; an encoder of one thread takes the least time and memory in all.
    encoder_threads = max(1, workers // len(rig))
    with ExitStack() as stack:

        def writer(name: str) -> VideoWriter:
            return stack.enter_context(_writer(cfg, out / name, rate, encoder_threads))

        files = [writer(name) for name in names[: len(rig)]] if cfg.overlay else []
        together = [_MosaicVideo(sizes, cfg, rig.names, writer(names[-1]))] if cfg.mosaic else []
        pool = stack.enter_context(ThreadPoolExecutor(workers, "render"))
        pending: Future[None] | None = None
        frames: Iterator[Pictures] | None = None
        at = 0
        for batch in items:
            if frames is None:
                at = batch.start
                chunks = decode(silent, frame_index, start=at)
                frames = _by_time(stack.enter_context(ahead(chunks, 1, "decode")))
            stop = batch.start + len(batch.valid)
            if batch.start != at or stop > frame_index.shape[1]:
                raise ValueError(
                    f"render got frames {batch.start} to {stop} when {at} was next of {frame_index.shape[1]}"
                )
            moments = _moments(batch, body, cfg)
            points = _skeletons(batch, rig, keep, cfg) if cfg.show == "skeleton" else None
            for first in range(0, len(moments), GROUP):
                group = [(m, next(frames)) for m in moments[first : first + GROUP]]
                lines = points[first : first + GROUP] if points else None

                def view(
                    v: int,
                    group: Sequence[tuple[_Moment, Pictures]] = group,
                    lines: Sequence[Sequence[_Skeletons]] | None = lines,
                ) -> list[av.VideoFrame]:
                    drawn = []
                    for k, (m, pictures) in enumerate(group):
                        frame, notes = pictures[v], m.notes
                        filmed = cfg.show != "mesh"
                        if frame_index[v, m.index] < 0 or (filmed and frame is None):
                            notes = ("no video" if filmed and sources[v] is None else "no frame", *notes)
                        near = frame_index[v, max(m.index - 1, 0) : m.index + 2]
                        own = bool((near == frame_index[v, m.index]).sum() == 1)
                        new = _ground(frame, sizes[v], own=own)
                        matrix = overlay.yuv_matrix(int(new.colorspace), sizes[v][1])
                        if lines:
                            lines[k][v].draw(planes(new), matrix)
                        else:
                            paint(
                                planes(new), matrix, m.vertices, body.faces, rig, v, m.colours,
                                antialias=cfg.antialias,
                            )  # fmt: skip
                        if notes:
                            height = max(10, min(sizes[v]) // 36)
                            overlay.label(planes(new), ", ".join(notes), height, bottom=True)
                        drawn.append(new)
                        if files:
                            files[v].write(new)
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
    """Names of the files that are written: a video for each camera shown, in order, and the mosaic.

    ``<show>_<camera>.mp4`` is made safe for every file system, and different for every camera.
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
            names.append(f"{cfg.show}_{name}.mp4")
    return [*names, "mosaic.mp4"] if cfg.mosaic else names


@dataclass(frozen=True)
class _Moment:
    """What is drawn at one time."""

    index: int
    """On the time line."""
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
    betas = p.betas.expand(frames, -1, -1).flatten(0, 1)
    with torch.inference_mode():
        vertices = body.vertices(
            p.global_orient.flatten(0, 1), p.body_pose.flatten(0, 1), betas, p.transl.flatten(0, 1)
        )
    found: NDArray[np.float32] = vertices.float().cpu().numpy().reshape(frames, people, *vertices.shape[1:])
    return found


def _colours(ids: Sequence[int], cfg: RenderConfig) -> NDArray[np.float32]:
    """(P, 3) the colour of each person."""
    colours = [_rgb(cfg.colours[i % len(cfg.colours)]) for i in ids]
    return np.array(colours, np.float32).reshape(-1, 3)


def _moments(batch: FitBatch, body: Body, cfg: RenderConfig) -> list[_Moment]:
    xyz = meshes(batch, body)
    ids = batch.keypoints.ids.tolist()
    solid = _colours(ids, cfg)
    seen: NDArray[np.bool_] = np.asarray(np.isfinite(xyz).all((2, 3)))
    sure = batch.valid.cpu().numpy()
    moments = []
    for t in range(len(xyz)):
        pale = ~sure[t][:, None]
        rgb = np.where(pale, 0.6 + 0.4 * solid, solid)
        alpha = np.where(pale, 0.6, 1) * cfg.opacity
        notes = [] if ids else ["not seen"]
        for i, person in enumerate(ids):
            who = f"person {person + 1} " if len(ids) > 1 else ""
            if not seen[t, i]:
                notes.append(f"{who}not seen")
            elif not sure[t, i]:
                bridged = batch.status[t, i] != Status.FAR_OFF
                notes.append(f"{who}{'bridged' if bridged else 'too far off'}")
        time_s = float(batch.keypoints.time_s[t])
        moments.append(
            _Moment(
                batch.start + t,
                time_s,
                xyz[t],
                np.concatenate([rgb, alpha], 1).astype(np.float32),
                tuple(notes),
            )
        )
    return moments


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


@dataclass(frozen=True)
class _Skeletons:
    """Keypoints of one view at one time, pixels of the picture."""

    detected: NDArray[np.float64]
    """(P, 25, 2) NaN where missing."""
    confidence: NDArray[np.float64]
    """(P, 25)"""
    fitted: NDArray[np.float64]
    """(P, 25, 2)"""
    error_px: NDArray[np.float64]
    """(P, 25) distance between the two in pixels of the video; NaN where nothing was detected."""
    colours: NDArray[np.float32]
    """(P, 4)"""

    def draw(self, to: Planes, matrix: NDArray[np.float32]) -> None:
        size = max(2.0, min(to[0].shape) / 250)
        grey = np.full(3, 0.85)
        for p in range(len(self.fitted)):
            bones = self.fitted[p][list(BODY_25_BONES)]
            overlay.lines(to, bones[:, 0], bones[:, 1], self.colours[p, :3], matrix, size)
            overlay.lines(to, self.detected[p], self.fitted[p], grey, matrix, size / 3)
            overlay.rings(to, self.detected[p], np.outer(self.confidence[p], np.ones(3)), matrix, 1.8 * size)
            share = np.clip(np.nan_to_num(self.error_px[p]) / FAR_PX, 0, 1)[:, None]
            colour = np.minimum(2 * np.concatenate([share, 1 - share, 0 * share], 1), 1)
            colour[np.isnan(self.error_px[p])] = 0.6  # nobody can say
            overlay.discs(to, self.fitted[p], colour, matrix, 1.2 * size)


def _skeletons(batch: FitBatch, rig: Rig, keep: Sequence[int], cfg: RenderConfig) -> list[list[_Skeletons]]:
    """[time][view]"""
    known = batch.keypoints
    fitted = rig.project(batch.keypoints_3d[..., :3].double().cpu().numpy(), distorted=True)
    detected = known.image_px[list(keep)].double().cpu().numpy() * cfg.scale + (cfg.scale - 1) / 2
    confidence = known.confidence[list(keep)].double().cpu().numpy().clip(0, 1)
    detected = np.where(confidence[..., None] > 0, detected, np.nan)
    error = np.linalg.norm(fitted - detected, axis=-1) / cfg.scale
    colours = np.pad(_colours(known.ids.tolist(), cfg), ((0, 0), (0, 1)), constant_values=1)
    return [
        [
            _Skeletons(detected[v, t], confidence[v, t], fitted[v, t], error[v, t], colours)
            for v in range(len(rig))
        ]
        for t in range(fitted.shape[1])
    ]


def _ground(frame: av.VideoFrame | None, size: tuple[int, int], *, own: bool) -> av.VideoFrame:
    """A frame to draw on: the video's, or grey where it has none.

    ``own`` says that nobody else is shown this frame; then it is copied only if the decoder still needs it.
    """
    if frame is None:
        new = av.VideoFrame(size[0], size[1], "yuv420p")
        overlay.fill(planes(new), EMPTY_LUMA)
        return new
    plain = to_yuv420p(frame)
    if (plain.width, plain.height) != size:
        return resized(plain, size)
    if own or plain is not frame:
        plain.make_writable()
        return plain
    return copied(plain)


def render_scene(
    items: Iterator[FitBatch],
    cfg: RenderConfig,
    rig_at: Callable[[int], Rig],
    body: Body,
    grid: NDArray[np.float64],
    rate: Fraction,
    file: Path,
) -> Iterator[FitBatch]:
    """Draw every batch as cameras see it that were never there, side by side in one video, and hand it on.

    rig_at: the cameras at an index of the time line, always as many and as large. grid: (N, 2, 3) ends of
    lines on the floor, metres, world. Who is not seen or bridged is said in each view.

    Raises ``InputError`` for a back end that is not installed and a file that cannot be written.
    """
    paint = _back_end(cfg.backend)
    pick_encoder(cfg.codec)
    _make_folder(file.parent)
    return _render_scene(items, cfg, rig_at, body, grid, rate, file, paint)


def _render_scene(
    items: Iterator[FitBatch],
    cfg: RenderConfig,
    rig_at: Callable[[int], Rig],
    body: Body,
    grid: NDArray[np.float64],
    rate: Fraction,
    file: Path,
    paint: Paint,
) -> Iterator[FitBatch]:
    workers = cfg.threads or os.cpu_count() or 1
    with ExitStack() as stack:
        together: _MosaicVideo | None = None
        pool = stack.enter_context(ThreadPoolExecutor(workers, "render"))

        def view(m: _Moment) -> list[av.VideoFrame]:
            rig, frames = rig_at(m.index), []
            for v, size in enumerate(rig.size.tolist()):
                new = _ground(None, (size[0], size[1]), own=True)
                matrix = overlay.yuv_matrix(int(new.colorspace), size[1])
                ends = rig.select([rig.names[v]]).project(grid)[0]
                overlay.lines(planes(new), ends[:, 0], ends[:, 1], np.full(3, 0.4), matrix, 1.5)
                paint(planes(new), matrix, m.vertices, body.faces, rig, v, m.colours, antialias=cfg.antialias)
                if m.notes:
                    overlay.label(planes(new), ", ".join(m.notes), max(10, min(size) // 36), bottom=True)
                frames.append(new)
            return frames

        for batch in items:
            moments = _moments(batch, body, cfg)
            for first in range(0, len(moments), GROUP * workers):
                group = moments[first : first + GROUP * workers]
                drawn = list(zip(*pool.map(view, group), strict=True))
                if together is None:
                    rig = rig_at(batch.start)
                    sizes = [(int(w), int(h)) for w, h in rig.size]
                    writer = stack.enter_context(_writer(cfg, file, rate, workers))
                    together = _MosaicVideo(sizes, cfg, rig.names, writer)
                together.add(drawn, group[0].index, [m.time_s for m in group])
            yield batch


def render_results(
    results: Store,
    mode: Mode,
    cfg: RenderConfig,
    videos: Sequence[VideoInfo | Path | None],
    body: Body,
    out: Path,
    decode: Decode,
    start: int = 0,
    stop: int | None = None,
) -> tuple[list[Path], Iterator[FitBatch]]:
    """Draw frames ``start:stop`` of a store again: the files that will be there, and the drawing as a stream.

    Memory does not grow with the frames. videos: one a camera of the store, None where there is none; only
    ``overlay``, ``skeleton`` and ``mosaic`` look at them.

    Raises ``InputError`` as ``render`` does, and for frames that the store does not have.
    """
    contents = results.contents
    stop = results.finished if stop is None else stop
    results.check_frames(start, stop)
    batches = _read(results, start, stop)
    rig, rate = contents.rig, contents.rate
    if mode in ("side", "turntable"):
        box = _bounds(results, start, stop)
        grid = floor_grid(rig, box)
        width, height = (n // 4 * 4 for n in cfg.mosaic_size)
        view: Callable[[int], Rig]
        if mode == "side":
            both = side_and_top(rig, box, (width, height))

            def view(index: int) -> Rig:
                return both
        else:
            view = turntable(rig, box, (width, height), rate)
        file = out / f"{mode}.mp4"
        return [file], render_scene(batches, cfg, view, body, grid, rate, file)
    if mode == "mosaic":
        cfg = cfg.model_copy(update={"overlay": False, "mosaic": True})
    else:
        cfg = cfg.model_copy(update={"show": mode, "overlay": True, "mosaic": False})
    files = [out / name for name in video_names(cfg, rig.names)]
    return files, render(batches, cfg, rig, body, videos, contents.frame_index, rate, out, decode)


def _read(results: Store, start: int, stop: int) -> Iterator[FitBatch]:
    window = results.contents.window
    for k in range(start // window, -(-stop // window)):
        a, b = results.span(k)
        batch = results.read(k)
        yield batch.frames(max(start, a) - a, min(stop, b) - a)


def _bounds(results: Store, start: int, stop: int) -> NDArray[np.float64]:
    """(2, 3) the smallest and largest world coordinates that the joints reach, metres, with room for skin."""
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for batch in _read(results, start, stop):
        joints = batch.joints.double().cpu().numpy().reshape(-1, 3)
        joints = joints[np.isfinite(joints).all(1)]
        if len(joints):
            low, high = np.minimum(low, joints.min(0)), np.maximum(high, joints.max(0))
    if (low > high).any():
        raise InputError(f"{results.path}: nobody was found in frames {start} to {stop}: nothing to show.")
    return np.stack([low - SKIN_M, high + SKIN_M])


def side_and_top(rig: Rig, box: NDArray[np.float64], size: tuple[int, int]) -> Rig:
    """Two cameras that see a box (2, 3) whole: at right angles to the first camera, and from above."""
    up, ahead_ = rig.up, _level(rig)
    right = np.cross(ahead_, up)
    half = (size[0] // 4 * 2, size[1])
    return _joined(
        [_looking("side", -right, up, box, half), _looking("top", -up, ahead_, box, half)],
    )


def turntable(
    rig: Rig, box: NDArray[np.float64], size: tuple[int, int], rate: Fraction
) -> Callable[[int], Rig]:
    """A camera that goes round a box (2, 3) once in ``TURN_S``, from 15° above, by index of the time line."""
    up, ahead_ = rig.up, _level(rig)
    right = np.cross(ahead_, up)

    def at(index: int) -> Rig:
        angle = 2 * np.pi * index / float(rate) / TURN_S
        level = np.cos(angle) * ahead_ + np.sin(angle) * right
        return _looking("turntable", level * np.cos(np.pi / 12) - up * np.sin(np.pi / 12), up, box, size)

    return at


def floor_grid(rig: Rig, box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lines (N, 2, 3) every half metre on the floor of a box (2, 3) and half a metre around it."""
    up, ahead_ = rig.up, _level(rig)
    axes = np.stack([ahead_, np.cross(ahead_, up), up])
    corners = np.stack(np.meshgrid(*box.T, indexing="ij"), -1).reshape(-1, 3) @ axes.T
    low, high = np.floor(corners.min(0) * 2) / 2 - 0.5, np.ceil(corners.max(0) * 2) / 2 + 0.5
    floor = corners.min(0)[2]
    lines = []
    for a, b in ((0, 1), (1, 0)):
        for at in np.arange(low[a], high[a] + 0.25, 0.5):
            ends = np.zeros((2, 3))
            ends[:, a], ends[:, b], ends[:, 2] = at, (low[b], high[b]), floor
            lines.append(ends @ axes)
    return np.stack(lines)


def _level(rig: Rig) -> NDArray[np.float64]:
    """The first camera's viewing direction, levelled, of length 1."""
    up = rig.up
    for direction in (rig.R[0, 2], -rig.R[0, 1], np.roll(up, 1)):
        level = np.asarray(direction - up * (up @ direction), np.float64)
        if np.linalg.norm(level) > 0.1:
            break
    found: NDArray[np.float64] = level / np.linalg.norm(level)
    return found


def _looking(
    name: str,
    direction: NDArray[np.float64],
    up: NDArray[np.float64],
    box: NDArray[np.float64],
    size: tuple[int, int],
) -> Rig:
    """A camera that looks along ``direction`` at the middle of a box and sees all of its sphere."""
    z = direction / np.linalg.norm(direction)
    x = np.cross(z, up)
    x /= np.linalg.norm(x)
    rotation = np.stack([x, np.cross(z, x), z])
    radius = float(np.linalg.norm(box[1] - box[0]) / 2)
    away = 4 * radius  # far enough for little perspective
    eye = box.mean(0) - away * z
    focal = min(size) / 2 * np.sqrt(away**2 - radius**2) / radius
    k = np.array([[focal, 0, (size[0] - 1) / 2], [0, focal, (size[1] - 1) / 2], [0, 0, 1]])
    return Rig((name,), k[None], np.zeros((1, 8)), rotation[None], (-rotation @ eye)[None], np.array([size]))


def _joined(rigs: Sequence[Rig]) -> Rig:
    names = tuple(n for r in rigs for n in r.names)
    arrays = ([getattr(r, field) for r in rigs] for field in ("K", "dist", "R", "t", "size"))
    return Rig(names, *(np.concatenate(a) for a in arrays))


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
) -> tuple[list[int], list[VideoInfo | None]]:
    """The places of the cameras that were asked for, and their videos looked into."""
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
    return keep, infos


def _writer(cfg: RenderConfig, path: Path, rate: Fraction, threads: int) -> VideoWriter:
    return VideoWriter(path, rate, codec=cfg.codec, crf=cfg.crf, preset=cfg.preset, threads=threads)


def _by_time(chunks: Iterator[FrameBatch]) -> Iterator[Pictures]:
    for chunk in chunks:
        yield from zip(*chunk.pictures, strict=True)


def _back_end(name: str) -> Paint:
    """A function that draws people into a frame: ``software.paint``, or its like."""
    if name == "auto":
        name, why = _fastest()
        _log.info("pictures are drawn by %s: %s", name, why)
    if name == "software":
        return software.paint
    if name == "pytorch3d":
        from models.rendering.pytorch3d import draw
    else:
        from models.rendering.moderngl import draw

        _opengl()  # fails here and not in the middle of a video

    def paint(to: Planes, matrix: NDArray[np.float32], *people: Any, antialias: bool) -> None:
        picture = draw(*people, antialias=antialias)
        if picture is not None:
            software.blend(to, picture, matrix)

    return paint


@cache
def _fastest() -> tuple[str, str]:
    """The back end that is fastest on this machine, and why it is that one."""
    from models.rendering.moderngl import SOFTWARE_RENDERERS

    try:
        name = _opengl()
    except InputError as error:
        return "software", str(error).removeprefix("render.backend=moderngl: ").split(". ")[0]
    if any(program in name.lower() for program in SOFTWARE_RENDERERS):
        return "software", f"OpenGL has no graphics card here, only {name.split(' (')[0]}, which is slower"
    return "moderngl", f"OpenGL has {name}"


def _opengl() -> str:
    """What draws for OpenGL, asked in a thread of its own: a context stays with its thread."""
    from models.rendering.moderngl import renderer

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(renderer).result()


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{out}: this folder cannot be made ({error.strerror}). Choose another one with --out."
        ) from error
