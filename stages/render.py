"""Stage: drawing of fitted bodies over the videos, one a camera, in a mosaic, and for virtual cameras."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Final, Literal

import av
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, NonNegativeInt, field_validator

from models.body import Body
from models.rendering import overlay, software
from models.rendering.overlay import PEOPLE_COLOURS, Skeletons, Still
from models.rendering.virtual_cameras import floor_grid, side_and_top, turntable
from pipeline.batches import FitBatch, FrameBatch, Pictures, Status
from pipeline.cameras import Rig
from pipeline.config import Config
from pipeline.engine import Prefetcher
from pipeline.errors import InputError
from pipeline.files import check_writable
from pipeline.results import DRAWN, MOSAIC, camera_videos, check_drawable, scene_video
from pipeline.store import Store
from pipeline.video import (
    VideoInfo,
    VideoWriter,
    copied,
    pick_encoder,
    planes,
    probe,
    read_frames,
    resized,
    to_yuv420p,
)

_log = logging.getLogger(__name__)


def _check_colour(text: str) -> str:
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise ValueError("a colour is written as #rrggbb, such as #56B4E9")
    return text


Colour = Annotated[str, AfterValidator(_check_colour)]
Side = Annotated[int, Field(ge=64)]
Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
]
Paint = Callable[..., None]
Decode = Callable[..., Iterator[FrameBatch]]

EMPTY_LUMA = 70
"""Luma of a missing picture, a dark grey."""

GROUP_FRAMES = 4
"""Frames of one view that are drawn and encoded before another view's: encoders that alternate at every
frame evict each other's data from the processor's cache."""

MAX_STILLS: Final = 8
"""Cameras of which a still is drawn."""
STILL_MARGIN: Final = 0.15
"""Margin of a still around the person, by the longer side of the person's box."""
MIN_STILL_MARGIN: Final = 0.05
"""Least margin, by the longer side of the picture."""

SKIN_REACH_M: Final = 0.12
"""Reach of skin, head and hands beyond the joints."""

ALL_FRAMES: Final = slice(0, None)

Mode = Literal["overlay", "mesh", "skeleton", "side", "turntable", "mosaic"]


class RenderConfig(Config):
    show: Literal["overlay", "mesh", "skeleton"] = "overlay"
    """Content of each camera's picture: bodies over the video; bodies alone; or, over the video, keypoints as
    detected (rings, the brighter the surer) and as fitted (dots, from green to red by their distance)."""
    overlay: bool = True
    """Write a video for each camera, <show>_<camera>.mp4."""
    mosaic: bool = True
    """Write mosaic.mp4."""
    cameras: tuple[str, ...] = ()
    """Cameras to show, by name; all when empty."""
    backend: Literal["software", "pytorch3d"] = "software"
    """Renderer: compiled loops on the CPU, or PyTorch3D, for tests: slower, on a GPU as well."""
    antialias: bool = True
    """2×2 samples a pixel."""
    opacity: float = Field(0.9, gt=0, le=1)
    colours: tuple[Colour, ...] = PEOPLE_COLOURS
    """Colour of each person, repeated for more people."""
    crf: int = Field(21, ge=0, le=51)
    """Quality of the H.264 encoder: lower is better and larger; 18 hardly differs from the source."""
    codec: str = "auto"
    """FFmpeg's name of an H.264, HEVC or AV1 encoder; auto: a graphics card's H.264 encoder where one
    works, else libx264."""
    preset: Preset = "veryfast"
    """Preset of the encoders libx264 and libx265."""
    scale: float = Field(1.0, gt=0, le=4)
    """Ratio of each camera's video to the size of its source."""
    mosaic_size: tuple[Side, Side] = (1920, 1080)
    """Largest width and height of the mosaic, pixels."""
    threads: NonNegativeInt = 0
    """Views drawn at the same time; 0: one a processor."""

    @field_validator("colours")
    @classmethod
    def _at_least_one(cls, value: tuple[Colour, ...]) -> tuple[Colour, ...]:
        if not value:  # pydantic's min_length also counts wrong colours as missing
            raise ValueError("at least one colour is needed")
        return value


@dataclass(frozen=True)
class Footage:
    """V cameras and their videos."""

    rig: Rig
    videos: Sequence[VideoInfo | Path | None]
    """Video of each camera, None for a camera without."""
    frame_index: NDArray[np.int64]
    """(V, T) frame of each video at each time of the recording, −1 for none."""
    rate: Fraction
    """Times of the recording per second."""
    mark: str = DRAWN
    """Comment in the metadata of the drawn videos."""


def render(
    items: Iterator[FitBatch], cfg: RenderConfig, footage: Footage, body: Body, out: Path, decode: Decode
) -> Iterator[FitBatch]:
    """Draw every batch and yield it. Batches must follow one another without a gap.

    The videos are read again here, a few frames ahead of the drawing. decode: the decode stage, called with
    videos, frame_index and start.

    A missing picture is replaced by grey with a label. A person whose fit is not valid is drawn paler with a
    label; one with NaN parameters is labelled as not seen. The files of ``video_names`` appear in the folder
    ``out`` when the last batch is drawn; before that, and after an error, there are none.

    Raises ``InputError`` at once for an unknown camera name, a video whose size is not its camera's, a back
    end or an encoder that does not work here; and while drawing for a file that cannot be written.
    """
    if not cfg.overlay and not cfg.mosaic:
        return items
    names = video_names(cfg, footage.rig.names)
    views, footage = _select_cameras(cfg.cameras, footage)
    for v, (w, h) in enumerate(footage.rig.size.tolist()):
        if cfg.scale != 1:
            size = max(2, round(w * cfg.scale / 2) * 2), max(2, round(h * cfg.scale / 2) * 2)
            footage = replace(footage, rig=footage.rig.resized(v, size))
    paint = _choose_back_end(cfg, out, names)
    files = [out / name for name in names]
    return _render(items, cfg, footage, body, files, views, decode, paint)


def _render(
    items: Iterator[FitBatch],
    cfg: RenderConfig,
    footage: Footage,
    body: Body,
    paths: Sequence[Path],
    views: Sequence[int],
    decode: Decode,
    paint: Paint,
) -> Iterator[FitBatch]:
    """Draw selected cameras: their ``footage``, and their indices ``views`` among those of the batches."""
    rig, sources, frame_index = footage.rig, footage.videos, footage.frame_index
    sizes = [(int(w), int(h)) for w, h in rig.size]
    filmed = cfg.show != "mesh"
    workers = cfg.threads or os.cpu_count() or 1
    # Views are encoded in parallel; an encoder of one thread takes the least time and memory in all.
    encoder_threads = max(1, workers // len(rig))
    with ExitStack() as stack:

        def writer(path: Path) -> VideoWriter:
            return stack.enter_context(_writer(cfg, path, footage.rate, encoder_threads, footage.mark))

        files = [writer(path) for path in paths[: len(rig)]] if cfg.overlay else []
        mosaic = _MosaicVideo(rig, cfg.mosaic_size, writer(paths[-1])) if cfg.mosaic else None

        def draw_view(group: Sequence[tuple[_Scene, Pictures]], v: int) -> list[av.VideoFrame]:
            drawn = []
            for scene, pictures in group:
                frame, notes = pictures[v], scene.notes
                if frame_index[v, scene.index] < 0 or (filmed and frame is None):
                    notes = ("no video" if filmed and sources[v] is None else "no frame", *notes)
                neighbours = frame_index[v, max(scene.index - 1, 0) : scene.index + 2]
                shown_once = bool((neighbours == frame_index[v, scene.index]).sum() == 1)
                new = _background(frame, sizes[v], writable=shown_once)
                matrix = overlay.yuv_matrix(int(new.colorspace), sizes[v][1])
                if scene.skeletons:
                    scene.skeletons[v].draw(planes(new), matrix)
                else:
                    paint(planes(new), matrix, scene.vertices, body.faces, rig, v, scene.colours)
                _write_notes(new, notes)
                drawn.append(new)
                if files:
                    files[v].write(new)
            return drawn

        pool = stack.enter_context(ThreadPoolExecutor(workers, "render"))
        pending: Future[None] | None = None
        frames: Iterator[Pictures] | None = None
        position = 0
        for batch in items:
            if frames is None:
                position = batch.start
                chunks = decode([s if filmed else None for s in sources], frame_index, start=position)
                stream = stack.enter_context(Prefetcher(chunks, 1, "decode"))
                frames = chain.from_iterable(chunk.by_time() for chunk in stream)
            stop = batch.start + len(batch.valid)
            if batch.start != position or stop > frame_index.shape[1]:
                raise ValueError(
                    f"render got frames {batch.start} to {stop}, expected {position} on, "
                    f"of {frame_index.shape[1]}"
                )
            scenes = _scenes(batch, body, cfg)
            if cfg.show == "skeleton":
                skeletons = _skeletons(batch, rig, views, cfg)
                scenes = [replace(s, skeletons=k) for s, k in zip(scenes, skeletons, strict=True)]
            for first in range(0, len(scenes), GROUP_FRAMES):
                group = [(s, next(frames)) for s in scenes[first : first + GROUP_FRAMES]]
                drawn = list(pool.map(partial(draw_view, group), range(len(rig))))
                if pending is not None:
                    pending.result()
                if mosaic is not None:  # while the next frames are drawn
                    pending = pool.submit(mosaic.add, drawn, position, [scene.time_s for scene, _ in group])
                position += len(group)
            yield batch
        if pending is not None:
            pending.result()
        for file in (*files, *([mosaic.file] if mosaic else ())):
            file.finish()  # all are complete before the first gets its name


def video_names(cfg: RenderConfig, cameras: Sequence[str]) -> list[str]:
    """Names of the files that are written: a video for each camera shown, in order, and the mosaic."""
    files = camera_videos(cfg.show, cameras)
    names = [name for camera, name in files.items() if not cfg.cameras or camera in cfg.cameras]
    return [*(names if cfg.overlay else ()), *([MOSAIC] if cfg.mosaic else ())]


@dataclass(frozen=True)
class _Scene:
    """Drawing of the people at one time."""

    index: int
    """Index on the time line."""
    time_s: float
    vertices: NDArray[np.float32]
    """(P, N, 3) metres, world; NaN for people without a fit."""
    colours: NDArray[np.float32]
    """(P, 4) red, green, blue and opacity, 0 to 1."""
    notes: tuple[str, ...]
    """Labels about the people."""
    skeletons: Sequence[Skeletons] = ()
    """Keypoints in each view, to be drawn instead of the people."""


def meshes(batch: FitBatch, body: Body) -> NDArray[np.float32]:
    """Vertices (T, P, N, 3) of a batch, metres, world; NaN for people without a fit."""
    p = batch.params
    frames, people = p.transl.shape[:2]
    betas = p.betas.expand(frames, -1, -1).flatten(0, 1)
    with torch.inference_mode():
        vertices = body.vertices(
            p.global_orient.flatten(0, 1), p.body_pose.flatten(0, 1), betas, p.transl.flatten(0, 1)
        )
    xyz: NDArray[np.float32] = vertices.float().cpu().numpy()
    return xyz.reshape(frames, people, *vertices.shape[1:])


def _scenes(batch: FitBatch, body: Body, cfg: RenderConfig) -> list[_Scene]:
    """Scene of every frame of a batch."""
    xyz = meshes(batch, body)
    ids = batch.keypoints.ids.tolist()
    colours = _colours(cfg, ids)
    fitted: NDArray[np.bool_] = np.asarray(np.isfinite(xyz).all((2, 3)))
    valid = batch.valid.cpu().numpy()
    scenes = []
    for t in range(len(xyz)):
        pale = ~valid[t][:, None]
        rgb = np.where(pale, 0.6 + 0.4 * colours, colours)
        alpha = np.where(pale, 0.6, 1) * cfg.opacity
        notes = [] if ids else ["not seen"]
        for i, person in enumerate(ids):
            who = f"person {person} " if len(ids) > 1 else ""
            if not fitted[t, i]:
                notes.append(f"{who}not seen")
            elif not valid[t, i]:
                bridged = batch.status[t, i] != Status.FAR_OFF
                notes.append(f"{who}{'bridged' if bridged else 'too far off'}")
        time_s, rgba = float(batch.keypoints.time_s[t]), np.concatenate([rgb, alpha], 1).astype(np.float32)
        scenes.append(_Scene(batch.start + t, time_s, xyz[t], rgba, tuple(notes)))
    return scenes


def _colours(cfg: RenderConfig, ids: Sequence[int]) -> NDArray[np.float32]:
    """Colour (P, 3) of each person, 0 to 1."""
    rgb = np.array([overlay.person_colour(i, cfg.colours) for i in ids], np.float32)
    return rgb.reshape(-1, 3) / np.float32(255)


def _skeletons(batch: FitBatch, rig: Rig, views: Sequence[int], cfg: RenderConfig) -> list[list[Skeletons]]:
    """Keypoints of each frame, then each of the ``views`` of the batch, whose cameras are ``rig``."""
    keypoints = batch.keypoints
    fitted = rig.project(batch.keypoints_3d[..., :3].double().cpu().numpy(), distorted=True)
    detected = keypoints.image_px[list(views)].double().cpu().numpy() * cfg.scale + (cfg.scale - 1) / 2
    confidence = keypoints.confidence[list(views)].double().cpu().numpy().clip(0, 1)
    detected = np.where(confidence[..., None] > 0, detected, np.nan)
    error = np.linalg.norm(fitted - detected, axis=-1) / cfg.scale
    colours, skeleton = _colours(cfg, keypoints.ids.tolist()), keypoints.skeleton
    return [
        [
            Skeletons(detected[v, t], confidence[v, t], fitted[v, t], error[v, t], colours, skeleton)
            for v in range(len(rig))
        ]
        for t in range(fitted.shape[1])
    ]


def worst_stills(results: Store, videos: Sequence[VideoInfo | Path | None], cfg: RenderConfig) -> list[Still]:
    """Draw, for each camera with a video, the person and frame whose fit is farthest from the detections; of
    more than ``MAX_STILLS`` cameras those with the largest residual."""
    rig, cfg = results.contents.rig, cfg.model_copy(update={"scale": 1.0})
    filmed = {v: video for v, video in enumerate(videos) if video is not None}
    worst: dict[int, tuple[float, int, int]] = {}
    for person in results.ids:
        error = results.array(f"people/{person}/reprojection_px")
        error = np.where(results.contents.frame_index.T[: len(error)] >= 0, error, np.nan)
        for v in filmed.keys() & np.flatnonzero(np.isfinite(error).any(0)).tolist():
            t = int(np.nanargmax(error[:, v]))
            worst[v] = max(worst.get(v, (0.0, 0, 0)), (float(error[t, v]), t, person))
    stills = []
    for v in sorted(sorted(worst, key=lambda v: worst[v], reverse=True)[:MAX_STILLS]):
        video, (error_px, t, person) = filmed[v], worst[v]
        batch = next(_read_batches(results, t, t + 1)).people(torch.tensor([person]))
        ((skeletons,),) = _skeletons(batch, rig.select([rig.names[v]]), [v], cfg)
        (decoded,) = read_frames(video, [int(results.contents.frame_index[v, t])])
        width, height = (int(n) for n in rig.size[v])
        frame = _background(decoded, (width, height), writable=False)
        skeletons.draw(planes(frame), overlay.yuv_matrix(int(frame.colorspace), height))
        points = np.concatenate([skeletons.detected[0], skeletons.fitted[0]])
        low, high = np.nanmin(points, 0), np.nanmax(points, 0)
        margin = max(STILL_MARGIN * (high - low).max(), MIN_STILL_MARGIN * max(width, height))
        box = np.concatenate([low - margin, high + margin])
        x0, y0, x1, y1 = np.clip(box, 0, [width, height] * 2).astype(int).tolist()
        whole = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        around = whole[y0:y1, x0:x1]
        stills.append(Still(rig.names[v], t, person, error_px, around if around.size else whole))
    return stills


def _write_notes(frame: av.VideoFrame, notes: Sequence[str]) -> None:
    """Write labels at the bottom of a frame."""
    if notes:
        height = max(10, min(frame.width, frame.height) // 36)
        overlay.draw_label(planes(frame), ", ".join(notes), height, bottom=True)


def _background(frame: av.VideoFrame | None, size: tuple[int, int], *, writable: bool) -> av.VideoFrame:
    """Frame to draw on: the video's, resized, or grey for None.

    writable: the frame is used once and may be drawn on; it is copied only if the decoder still needs it.
    """
    if frame is None:
        new = av.VideoFrame(size[0], size[1], "yuv420p")
        overlay.fill(planes(new), EMPTY_LUMA)
        return new
    plain = to_yuv420p(frame)
    if (plain.width, plain.height) != size:
        return resized(plain, size)
    if writable or plain is not frame:
        plain.make_writable()
        return plain
    return copied(plain)


def _render_virtual(
    items: Iterator[FitBatch],
    cfg: RenderConfig,
    rig_at: Callable[[int], Rig],
    body: Body,
    grid: NDArray[np.float64],
    rate: Fraction,
    file: Path,
    paint: Paint,
) -> Iterator[FitBatch]:
    """Draw every batch from virtual cameras, side by side in one video, and yield it.

    rig_at: the cameras at an index of the time line, always of the same number and sizes. grid: (N, 2, 3)
    ends of lines on the floor, metres, world.
    """
    workers = cfg.threads or os.cpu_count() or 1
    with ExitStack() as stack:
        mosaic: _MosaicVideo | None = None
        pool = stack.enter_context(ThreadPoolExecutor(workers, "render"))

        def draw_scene(scene: _Scene) -> list[av.VideoFrame]:
            rig, frames = rig_at(scene.index), []
            for v, size in enumerate(rig.size.tolist()):
                new = _background(None, (size[0], size[1]), writable=True)
                matrix = overlay.yuv_matrix(int(new.colorspace), size[1])
                ends = rig.select([rig.names[v]]).project(grid)[0]
                overlay.draw_lines(planes(new), ends[:, 0], ends[:, 1], np.full(3, 0.4), matrix, 1.5)
                paint(planes(new), matrix, scene.vertices, body.faces, rig, v, scene.colours)
                _write_notes(new, scene.notes)
                frames.append(new)
            return frames

        for batch in items:
            scenes = _scenes(batch, body, cfg)
            for first in range(0, len(scenes), GROUP_FRAMES * workers):
                group = scenes[first : first + GROUP_FRAMES * workers]
                drawn = list(zip(*pool.map(draw_scene, group), strict=True))
                if mosaic is None:
                    writer = stack.enter_context(_writer(cfg, file, rate, workers))
                    mosaic = _MosaicVideo(rig_at(batch.start), cfg.mosaic_size, writer)
                mosaic.add(drawn, group[0].index, [scene.time_s for scene in group])
            yield batch


def render_results(
    results: Store,
    mode: Mode,
    cfg: RenderConfig,
    videos: Sequence[VideoInfo | Path | None],
    body: Body,
    out: Path,
    decode: Decode,
    frames: slice = ALL_FRAMES,
) -> tuple[list[Path], Iterator[FitBatch]]:
    """Draw frames of a store: paths of the files, and the drawing as a stream of batches.

    Memory does not grow with the frames. videos: one for each camera of the store, None for a camera without;
    needed for ``overlay``, ``skeleton`` and ``mosaic`` only.

    Raises ``InputError`` as ``render`` does, and for frames that the store does not have.
    """
    contents = results.contents
    start = frames.start or 0
    stop = results.finished if frames.stop is None else frames.stop
    results.check_frames(start, stop)
    batches = _read_batches(results, start, stop)
    rig, rate = contents.rig, contents.rate
    if mode in ("side", "turntable"):
        box = _bounds(results, start, stop)
        grid = floor_grid(rig, box)
        width, height = (n // 4 * 4 for n in cfg.mosaic_size)
        still, turning = side_and_top(rig, box, (width, height)), turntable(rig, box, (width, height), rate)
        rig_at: Callable[[int], Rig] = turning if mode == "turntable" else lambda _: still
        file = out / scene_video(mode)
        paint = _choose_back_end(cfg, out, [file.name])
        return [file], _render_virtual(batches, cfg, rig_at, body, grid, rate, file, paint)
    if mode == "mosaic":
        cfg = cfg.model_copy(update={"overlay": False, "mosaic": True})
    else:
        cfg = cfg.model_copy(update={"show": mode, "overlay": True, "mosaic": False})
    files = [out / name for name in video_names(cfg, rig.names)]
    footage = Footage(rig, videos, contents.frame_index, rate)
    return files, render(batches, cfg, footage, body, out, decode)


def _read_batches(results: Store, start: int, stop: int) -> Iterator[FitBatch]:
    """Read frames start to stop of a store, a window at a time."""
    window = results.contents.window
    for k in range(start // window, -(-stop // window)):
        a, b = results.span(k)
        batch = results.read(k)
        yield batch.frames(max(start, a) - a, min(stop, b) - a)


def _bounds(results: Store, start: int, stop: int) -> NDArray[np.float64]:
    """Smallest and largest world coordinates (2, 3) of all joints, with a margin for the skin, metres."""
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for batch in _read_batches(results, start, stop):
        joints = batch.joints.double().cpu().numpy().reshape(-1, 3)
        joints = joints[np.isfinite(joints).all(1)]
        if len(joints):
            low, high = np.minimum(low, joints.min(0)), np.maximum(high, joints.max(0))
    if (low > high).any():
        raise InputError(f"{results.path}: nobody was found in frames {start} to {stop}: nothing to show.")
    return np.stack([low - SKIN_REACH_M, high + SKIN_REACH_M])


class _MosaicVideo:
    """Video of all views in one picture, with names and time."""

    def __init__(self, rig: Rig, limit: tuple[int, int], file: VideoWriter) -> None:
        """limit: largest width and height, pixels."""
        self.file = file
        self._names = rig.names
        self._grid = overlay.plan_mosaic([(int(w), int(h)) for w, h in rig.size], limit)
        self._canvas = av.VideoFrame(*self._grid.size, "yuv420p")
        overlay.fill(planes(self._canvas), overlay.BLACK)

    def add(self, views: Sequence[Sequence[av.VideoFrame]], first: int, times_s: Sequence[float]) -> None:
        """Append frames, by views, then times; ``first``: index of the first time."""
        canvas, grid = planes(self._canvas), self._grid
        text = max(9, grid.footer // 2)
        for k, time_s in enumerate(times_s):
            for view, box, name in zip(views, grid.boxes, self._names, strict=True):
                overlay.draw_cell(canvas, planes(view[k]), box, name, text)
            overlay.draw_footer(canvas, grid.footer, f"frame {first + k}   {time_s:.3f} s", text)
            self.file.write(self._canvas)


def _select_cameras(names: Sequence[str], footage: Footage) -> tuple[list[int], Footage]:
    """Select cameras by name: their indices, and their footage, with the videos probed."""
    rig, videos, frame_index = footage.rig, footage.videos, footage.frame_index
    if frame_index.shape[0] != len(rig) or len(videos) != len(rig):
        raise ValueError(f"{len(rig)} cameras, {len(videos)} videos, frame_index {frame_index.shape}")
    unknown = [n for n in names if n not in rig.names]
    if unknown:
        raise InputError(
            f"render.cameras: there is no camera {', '.join(unknown)}. "
            f"The cameras are: {', '.join(rig.names)}."
        )
    views = [v for v, name in enumerate(rig.names) if not names or name in names]
    infos: list[VideoInfo | None] = []
    for v in views:
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
    rig = rig.select([rig.names[v] for v in views])
    return views, replace(footage, rig=rig, videos=infos, frame_index=frame_index[views])


def _writer(cfg: RenderConfig, path: Path, rate: Fraction, threads: int, mark: str = DRAWN) -> VideoWriter:
    return VideoWriter(
        path, rate, codec=cfg.codec, crf=cfg.crf, preset=cfg.preset, threads=threads, comment=mark
    )


def _choose_back_end(cfg: RenderConfig, out: Path, names: Sequence[str]) -> Paint:
    """Return ``software.paint`` or PyTorch3D's, with ``cfg.antialias``, and make the folder ``out``.

    Raises ``InputError`` where back end, encoder or the files ``names`` cannot be used.
    """
    paint: Paint = software.paint
    if cfg.backend == "pytorch3d":
        from models.rendering.pytorch3d import paint
    pick_encoder(cfg.codec)
    check_writable(*(out / name for name in names))
    check_drawable(out, names)
    return partial(paint, antialias=cfg.antialias)
