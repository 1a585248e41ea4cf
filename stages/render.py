"""Draw the fitted bodies over the videos: one video a camera, a mosaic of all, and views of no camera."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol

import av
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, NonNegativeInt, field_validator
from torch import Tensor

from models.rendering import overlay, software
from models.rendering.overlay import PEOPLE_COLOURS, Skeletons
from models.rendering.software import Planes
from models.rendering.virtual_cameras import floor_grid, side_and_top, turntable
from pipeline.batches import FitBatch, FrameBatch, Pictures, Status
from pipeline.cameras import Rig
from pipeline.config import Config
from pipeline.engine import Prefetcher
from pipeline.errors import InputError
from pipeline.files import check_writable
from pipeline.results import DRAWN, MOSAIC, camera_videos, check_drawable, scene_video
from pipeline.store import Store
from pipeline.video import VideoInfo, VideoWriter, copied, pick_encoder, planes, probe, resized, to_yuv420p

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
Decode = Callable[..., Iterator[FrameBatch]]

EMPTY_LUMA = 70
"""Grey of a picture that is missing."""

GROUP = 4
"""Frames of one view that are drawn and encoded before another view's: encoders that take turns at every
frame push one another out of the processor's cache."""

SKIN_M = 0.12
"""Reach of skin, head and hands beyond the joints, metres."""

ALL: Final = slice(0, None)

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
    """Renderer: compiled loops on the processor, or PyTorch3D, which is for tests: slower on a GPU, too."""
    antialias: bool = True
    """2×2 samples a pixel."""
    opacity: float = Field(0.9, gt=0, le=1)
    colours: tuple[Colour, ...] = PEOPLE_COLOURS
    """One a person, from the start again when there are more people."""
    crf: int = Field(21, ge=0, le=51)
    """Quality of the H.264 encoder: lower is better and larger; 18 can hardly be told from the source."""
    codec: str = "auto"
    """FFmpeg's name of an H.264, HEVC or AV1 encoder; auto is a graphics card's H.264 encoder where one
    works, else libx264."""
    preset: Preset = "veryfast"
    """Preset of the encoders libx264 and libx265."""
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


class DrawnBody(Protocol):
    """The part of ``models.body.Body`` that is drawn."""

    @property
    def faces(self) -> NDArray[np.int32]: ...

    def vertices(self, global_orient: Tensor, body_pose: Tensor, betas: Tensor, transl: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Footage:
    """V cameras and what they filmed."""

    rig: Rig
    videos: Sequence[VideoInfo | Path | None]
    """One a camera, None where there is none."""
    frame_index: NDArray[np.int64]
    """(V, T) frame of each video that is shown at each time of the recording, −1 for none."""
    rate: Fraction
    """Times a second."""
    mark: str = DRAWN
    """Comment in the metadata of what is drawn over it."""


def render(
    items: Iterator[FitBatch], cfg: RenderConfig, footage: Footage, body: DrawnBody, out: Path, decode: Decode
) -> Iterator[FitBatch]:
    """Draw every batch and hand it on. Batches must follow one another without a gap.

    The videos are read again here, a few frames ahead of the drawing. decode: the decode stage, called with
    videos, frame_index and start.

    A camera that has no picture is drawn on grey and says so. A person whose fit is not valid is drawn
    paler and labelled; one with NaN parameters is labelled as not seen. The files of ``video_names`` get
    their names in the folder ``out`` when the last batch is drawn; before that, and after an error, there
    are none.

    Raises ``InputError`` at once for an unknown camera name, a video whose size is not its camera's, a back
    end or an encoder that does not work here; and while drawing for a file that cannot be written.
    """
    if not cfg.overlay and not cfg.mosaic:
        return items
    names = video_names(cfg, footage.rig.names)
    keep, shown = _shown(cfg.cameras, footage)
    for v, (w, h) in enumerate(shown.rig.size.tolist()):
        if cfg.scale != 1:
            size = max(2, round(w * cfg.scale / 2) * 2), max(2, round(h * cfg.scale / 2) * 2)
            shown = replace(shown, rig=shown.rig.resized(v, size))
    paint = _checked_back_end(cfg, out, names)
    files = [out / name for name in names]
    return _render(items, cfg, shown, body, files, keep, decode, paint)


def _render(
    items: Iterator[FitBatch],
    cfg: RenderConfig,
    footage: Footage,
    body: DrawnBody,
    paths: Sequence[Path],
    keep: Sequence[int],
    decode: Decode,
    paint: Paint,
) -> Iterator[FitBatch]:
    """``render`` of the cameras that are shown: ``footage`` is theirs, ``keep`` their places among all."""
    rig, sources, frame_index = footage.rig, footage.videos, footage.frame_index
    sizes = [(int(w), int(h)) for w, h in rig.size]
    silent = [None if cfg.show == "mesh" else source for source in sources]
    workers = cfg.threads or os.cpu_count() or 1
    # Views are encoded side by side; an encoder of one thread takes the least time and memory in all.
    encoder_threads = max(1, workers // len(rig))
    with ExitStack() as stack:

        def writer(path: Path) -> VideoWriter:
            return stack.enter_context(_writer(cfg, path, footage.rate, encoder_threads, footage.mark))

        files = [writer(path) for path in paths[: len(rig)]] if cfg.overlay else []
        together = [_MosaicVideo(sizes, cfg, rig.names, writer(paths[-1]))] if cfg.mosaic else []
        pool = stack.enter_context(ThreadPoolExecutor(workers, "render"))
        pending: Future[None] | None = None
        frames: Iterator[Pictures] | None = None
        at = 0
        for batch in items:
            if frames is None:
                at = batch.start
                chunks = decode(silent, frame_index, start=at)
                stream = stack.enter_context(Prefetcher(chunks, 1, "decode"))
                frames = chain.from_iterable(chunk.by_time() for chunk in stream)
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
                    lines: Sequence[Sequence[Skeletons]] | None = lines,
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
                        _write_notes(new, notes)
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
    """Names of the files that are written: a video for each camera shown, in order, and the mosaic."""
    files = camera_videos(cfg.show, cameras)
    names = [name for camera, name in files.items() if not cfg.cameras or camera in cfg.cameras]
    return [*(names if cfg.overlay else ()), *([MOSAIC] if cfg.mosaic else ())]


@dataclass(frozen=True)
class _Moment:
    """People as they are drawn at one time."""

    index: int
    """On the time line."""
    time_s: float
    vertices: NDArray[np.float32]
    """(P, N, 3) metres, world; NaN for people who are not seen."""
    colours: NDArray[np.float32]
    """(P, 4)"""
    notes: tuple[str, ...]
    """Remarks on the people, for the viewer."""


def meshes(batch: FitBatch, body: DrawnBody) -> NDArray[np.float32]:
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


def _moments(batch: FitBatch, body: DrawnBody, cfg: RenderConfig) -> list[_Moment]:
    xyz = meshes(batch, body)
    ids = batch.keypoints.ids.tolist()
    solid = _solid(cfg, ids)
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
        time_s, rgba = float(batch.keypoints.time_s[t]), np.concatenate([rgb, alpha], 1).astype(np.float32)
        moments.append(_Moment(batch.start + t, time_s, xyz[t], rgba, tuple(notes)))
    return moments


def _solid(cfg: RenderConfig, ids: Sequence[int]) -> NDArray[np.float32]:
    """(P, 3) colour of each person, 0 to 1."""
    rgb = np.array([overlay.rgb_of(i, cfg.colours) for i in ids], np.float32)
    return rgb.reshape(-1, 3) / np.float32(255)


def _skeletons(batch: FitBatch, rig: Rig, keep: Sequence[int], cfg: RenderConfig) -> list[list[Skeletons]]:
    """[time][view]"""
    known = batch.keypoints
    fitted = rig.project(batch.keypoints_3d[..., :3].double().cpu().numpy(), distorted=True)
    detected = known.image_px[list(keep)].double().cpu().numpy() * cfg.scale + (cfg.scale - 1) / 2
    confidence = known.confidence[list(keep)].double().cpu().numpy().clip(0, 1)
    detected = np.where(confidence[..., None] > 0, detected, np.nan)
    error = np.linalg.norm(fitted - detected, axis=-1) / cfg.scale
    colours = _solid(cfg, known.ids.tolist())
    return [
        [
            Skeletons(detected[v, t], confidence[v, t], fitted[v, t], error[v, t], colours, known.skeleton)
            for v in range(len(rig))
        ]
        for t in range(fitted.shape[1])
    ]


def _write_notes(frame: av.VideoFrame, notes: Sequence[str]) -> None:
    """Write remarks at the bottom of a frame."""
    if notes:
        height = max(10, min(frame.width, frame.height) // 36)
        overlay.label(planes(frame), ", ".join(notes), height, bottom=True)


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


def _render_scene(
    items: Iterator[FitBatch],
    cfg: RenderConfig,
    rig_at: Callable[[int], Rig],
    body: DrawnBody,
    grid: NDArray[np.float64],
    rate: Fraction,
    file: Path,
    paint: Paint,
) -> Iterator[FitBatch]:
    """Draw every batch as cameras see it that were never there, side by side in one video, and hand it on.

    rig_at: the cameras at an index of the time line, always as many and as large. grid: (N, 2, 3) ends of
    lines on the floor, metres, world. Who is not seen or bridged is said in each view.
    """
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
                _write_notes(new, m.notes)
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
    body: DrawnBody,
    out: Path,
    decode: Decode,
    frames: slice = ALL,
) -> tuple[list[Path], Iterator[FitBatch]]:
    """Draw frames of a store again: the files that will be there, and the drawing as a stream.

    Memory does not grow with the frames. videos: one a camera of the store, None where there is none; only
    ``overlay``, ``skeleton`` and ``mosaic`` look at them.

    Raises ``InputError`` as ``render`` does, and for frames that the store does not have.
    """
    contents = results.contents
    start = frames.start or 0
    stop = results.finished if frames.stop is None else frames.stop
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
        file = out / scene_video(mode)
        paint = _checked_back_end(cfg, out, [file.name])
        return [file], _render_scene(batches, cfg, view, body, grid, rate, file, paint)
    if mode == "mosaic":
        cfg = cfg.model_copy(update={"overlay": False, "mosaic": True})
    else:
        cfg = cfg.model_copy(update={"show": mode, "overlay": True, "mosaic": False})
    files = [out / name for name in video_names(cfg, rig.names)]
    footage = Footage(rig, videos, contents.frame_index, rate)
    return files, render(batches, cfg, footage, body, out, decode)


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
                overlay.draw_cell(canvas, planes(view[k]), box, name, text)
            overlay.footer(canvas, grid.footer, f"frame {first + k}   {time_s:.3f} s", text)
            self.file.write(self._canvas)


def _shown(names: Sequence[str], footage: Footage) -> tuple[list[int], Footage]:
    """The places of the cameras that were asked for, and their footage, with the videos looked into."""
    rig, videos, frame_index = footage.rig, footage.videos, footage.frame_index
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
    rig = rig.select([rig.names[v] for v in keep])
    return keep, replace(footage, rig=rig, videos=infos, frame_index=frame_index[keep])


def _writer(cfg: RenderConfig, path: Path, rate: Fraction, threads: int, mark: str = DRAWN) -> VideoWriter:
    return VideoWriter(
        path, rate, codec=cfg.codec, crf=cfg.crf, preset=cfg.preset, threads=threads, comment=mark
    )


def _checked_back_end(cfg: RenderConfig, out: Path, names: Sequence[str]) -> Paint:
    """The function that draws people into a frame: ``software.paint``, or its like.

    Makes the folder ``out``. Raises ``InputError`` where back end, encoder or these files cannot be used.
    """
    paint = software.paint if cfg.backend == "software" else _pytorch3d()
    pick_encoder(cfg.codec)
    check_writable(*(out / name for name in names))
    check_drawable(out, names)
    return paint


def _pytorch3d() -> Paint:
    from models.rendering.pytorch3d import draw

    def paint(to: Planes, matrix: NDArray[np.float32], *people: Any, antialias: bool) -> None:
        picture = draw(*people, antialias=antialias)
        if picture is not None:
            software.blend(to, picture, matrix)

    return paint
