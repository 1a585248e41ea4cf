"""Video files: probing, reading frames by time stamp, and writing.

The index of a frame is its position k in presentation order, into ``VideoInfo.times_s``, whatever the storage
order and damage of its neighbours.
"""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import av
import cv2
import numpy as np
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.array_types import Pixels
from pipeline.errors import InputError

_log = logging.getLogger(__name__)

_COMMON_RATES: Final = (
    *(Fraction(n) for n in (24, 25, 30, 48, 50, 60, 90, 100, 120, 240)),
    *(Fraction(1000 * n, 1001) for n in (24, 30, 60, 120, 240)),
)

_RAW_STREAMS: Final = ("h264", "hevc", "mjpeg", "mpegvideo", "m4v", "obu")
"""FFmpeg's names of streams without a container, which have no time stamps."""
_COLOUR_SPACES: Final = (1, 5, 6, 9)
"""Colour spaces that swscale converts from, as numbers of H.273: BT.709, BT.601 twice, BT.2020."""


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file and of its frames."""

    path: Path
    size: tuple[int, int]
    """Width and height of the upright frames of ``read_frames``, pixels."""
    rotation: int
    """Counter-clockwise rotation of the file's display matrix, degrees: 0, 90, 180 or 270."""
    rate: Fraction
    """Frames a second, see ``frame_rate``."""
    times_s: NDArray[np.float64]
    """(N,) presentation times of the file, seconds, increasing; the first need not be 0."""
    codec: str
    warnings: tuple[str, ...] = ()
    """Faults of a file that is usable, as sentences."""
    time_base: Fraction = Fraction(1, 90_000)
    """Seconds per tick of the file's time stamps."""
    counted: bool = False
    """True without usable time stamps (AVI, bare streams): frames are counted as they are decoded."""
    first_number: int = 0
    """Number of the first frame in a folder of numbered pictures."""
    pictures: tuple[str, ...] = ()
    """(N,) file name of each frame in a folder of pictures, '' for none; empty for a video file."""

    def __repr__(self) -> str:
        w, h = self.size
        return f"VideoInfo({self.path}, {self.codec} {w}x{h}, {len(self.times_s)} frames at {self.rate})"


def probe(path: Path | str) -> VideoInfo:
    """Read the properties of a video: one frame is decoded, all packets are demuxed.

    A truncated file is used as far as it goes, with a warning. Raises ``InputError`` for a file that is
    missing, empty, no video or without a decodable frame.
    """
    path = Path(path)
    container = _open(path)
    with closing(container):
        stream = _video_stream(path, container)
        raw = container.format.name in _RAW_STREAMS
        counted = container.format.name in ("avi", "h264", "hevc")
        pts = array("q")
        first: av.VideoFrame | None = None
        number = broken = 0
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError):
                broken += 1
                break
            if packet is None:
                break
            if first is None:
                with suppress(av.FFmpegError):
                    first = next((f for f in packet.decode() if isinstance(f, av.VideoFrame)), None)
            if not packet.size:  # the flush packet at the end
                continue
            number += 1
            if packet.is_corrupt:
                broken += 1
            elif not packet.is_discard:
                counted |= packet.pts is None
                pts.append(packet.pts or 0)
        if first is None or not pts:
            raise InputError(
                f"{path}: no frame of this {stream.codec_context.name} video can be decoded. "
                "Play it to check it, and export it again as H.264."
            )
        declared = [r for r in (stream.average_rate, stream.guessed_rate)[:: -1 if raw else 1] if r]
        time_base = stream.time_base or Fraction(1, 90_000)
        if counted:
            rate = declared[0] if declared else Fraction(25)
            time_base, ticks = 1 / rate, np.arange(len(pts))
        else:
            ticks = np.unique(np.frombuffer(pts, dtype=np.int64))
            rate = frame_rate(ticks, time_base, declared)
        rotation = round(first.rotation / 90) * 90 % 360
        size = (first.width, first.height)
        promised = stream.frames
        if not promised and not counted and container.duration and len(container.streams) == 1:
            # Matroska and WebM state a duration but no number of frames. The margin is for a last frame that
            # is shown for long.
            missing = container.duration / 1e6 - float(ticks[-1] * time_base + 1 / rate)
            if missing > max(0.2, float(2 / rate)):
                broken += 1
        warnings: tuple[str, ...] = ()
        if broken or promised > number:
            total = f" of {promised}" if promised else ""
            warnings = (
                f"{path}: the file was cut off or is damaged, {len(ticks)}{total} frames can be read",
            )
        if raw:
            warnings += (
                f"{path}: a stream without a container has no time stamps: {float(rate):.6g} fps are taken, "
                f"which may be a guess; ffmpeg -r RATE -i {path.name} -c copy {path.stem}.mp4 states it",
            )
        return VideoInfo(
            path,
            size if rotation % 180 == 0 else size[::-1],
            rotation,
            rate,
            ticks.astype(np.float64) * float(time_base),
            stream.codec_context.name,
            warnings,
            time_base,
            counted,
        )


def read_frames(
    video: VideoInfo | Path | str, indices: Iterable[int], *, threads: int = 1
) -> Generator[av.VideoFrame | None, None, None]:
    """Read upright frames by index into ``times_s``, one for each index.

    Indices must not decrease; equal ones give the same frame. −1 and frames that cannot be decoded give None.
    Decoding is sequential, from the key frame before the first index to the last index. Frames belong to the
    decoder: copy before drawing on one. The file is closed with the generator. threads: of the decoder.
    """
    info = video if isinstance(video, VideoInfo) else probe(video)
    if info.pictures:
        yield from (_read_picture(info, index) for index in indices)
        return
    ticks = np.rint(info.times_s / float(info.time_base)).astype(np.int64)
    last = -1
    frames: Iterator[tuple[float, av.VideoFrame | None]] | None = None
    decoded: tuple[float, av.VideoFrame | None] = -math.inf, None  # time stamp and frame
    upright: av.VideoFrame | None = None
    with ExitStack() as stack:
        for index in indices:
            if index < 0:
                yield None
                continue
            if index < last:
                raise ValueError(f"{info.path}: frame {index} requested after frame {last}")
            if index > last:
                last, target = index, int(ticks[index])
                if frames is None:
                    container = stack.enter_context(closing(_open(info.path)))
                    frames = _decode(info, container, target, threads)
                while decoded[0] < target:
                    decoded = next(frames, (math.inf, None))
                frame = decoded[1] if decoded[0] == target else None
                upright = None if frame is None else _turned(frame, info.rotation)
            yield upright


def _read_picture(info: VideoInfo, index: int) -> av.VideoFrame | None:
    """Frame of a folder of pictures; None where the file is missing, damaged or of another size."""
    name = info.pictures[index] if index >= 0 else ""
    picture = cv2.imread(str(info.path / name)) if name else None
    if picture is None or picture.shape[1::-1] != info.size:
        return None
    frame = av.VideoFrame.from_ndarray(np.asarray(picture, np.uint8), "bgr24")
    frame.pts, frame.time_base = index, info.time_base
    return frame


def _open(path: Path) -> InputContainer:
    """Open a video file for reading. Raises ``InputError``."""
    if not path.exists():
        raise InputError(f"{path}: no such video file. Check the path.")
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a video file.")
    if not path.stat().st_size:
        raise InputError(f"{path}: is empty (0 bytes). Copy it again from its source.")
    try:
        return av.open(str(path), "r", metadata_errors="replace")  # titles need not be UTF-8
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it. Check its access rights.") from error
    except (av.FFmpegError, OSError) as error:
        raise InputError(
            f"{path}: not a video, or its header is damaged or missing, as when recording stopped before the "
            f"file was finished ({error.strerror}). Copy or export it again."
        ) from error


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    cover = av.stream.Disposition.attached_pic
    stream = next((s for s in container.streams.video if not s.disposition & cover), None)
    if stream is None:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise InputError(f"{path}: no video in this file, only {kinds}. Choose another file.")
    if stream.codec_context is None:
        raise InputError(f"{path}: no decoder for the codec of this video. Export it again as H.264.")
    return stream


def frame_rate(ticks: NDArray[np.int64], time_base: Fraction, declared: Sequence[Fraction]) -> Fraction:
    """Frame rate from time stamps, robust to missing frames.

    One over the mean of the intervals that differ from their median by at most half of it: the median alone
    has the stamps' rounding (whole milliseconds in Matroska). A declared rate, else a common one, that agrees
    to 0.1 % or to the stamps' resolution replaces it.
    """
    if len(ticks) < 2:
        return declared[0] if declared else Fraction(25)
    steps = np.diff(ticks)
    median = np.sort(steps)[(len(steps) - 1) // 2]
    inliers = steps[2 * np.abs(steps - median) <= median]
    measured = len(inliers) / (int(inliers.sum()) * time_base)
    tolerance = max(Fraction(1, 1000), Fraction(1, int(inliers.sum())))
    for candidates in (declared, _COMMON_RATES):
        near = [r for r in candidates if abs(r / measured - 1) <= tolerance]
        if near:
            return min(near, key=lambda r: abs(r - measured))
    return measured.limit_denominator(1001)


def _decode(
    info: VideoInfo, container: InputContainer, first: int, threads: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(time stamp, frame) in presentation order, from the key frame at or before ``first``."""
    stream = _video_stream(info.path, container)
    stream.codec_context.thread_count = threads
    if threads > 1:
        stream.codec_context.thread_type = "AUTO"
    number = -1
    for packet in _packets_from(container, stream, None if info.counted else first):
        try:
            frames = packet.decode()
        except (av.FFmpegError, OSError):
            continue  # a damaged packet costs its own frames, not those after it
        for frame in frames:
            number += 1
            assert isinstance(frame, av.VideoFrame)
            if info.counted:
                yield number, frame
            elif frame.pts is not None:
                yield frame.pts, frame


def _packets_from(
    container: InputContainer, stream: VideoStream, first: int | None
) -> Iterator[Packet[VideoStream]]:
    """Packets from a key frame with presentation time at or before ``first``; None: from the beginning."""
    start = stream.start_time or 0
    target = start if first is None else first
    while target > start:
        try:
            container.seek(target, stream=stream)
            head = next(container.demux(stream), None)
        except (av.FFmpegError, OSError):
            head = None
        if head is not None and head.pts is not None and first is not None and head.pts <= first:
            yield head
            break
        # Seeking is by decoding time: a key frame decoded before `first` may be presented after it.
        target = min(target, head.dts if head is not None and head.dts is not None else start) - 1
    else:
        if first is not None and first > start:
            with suppress(av.FFmpegError, OSError):
                container.seek(start, stream=stream)
    with suppress(av.FFmpegError, OSError):
        yield from container.demux(stream)


def planes(frame: av.VideoFrame) -> tuple[Pixels, Pixels, Pixels]:
    """Three planes (height, width) of an 8-bit frame, as writable views of its memory."""
    y, u, v = (
        np.frombuffer(memoryview(p), np.uint8).reshape(p.height, p.line_size)[:, : p.width]
        for p in frame.planes
    )
    return y, u, v


def to_rgb(frame: av.VideoFrame) -> Pixels:
    """Convert a frame to RGB (H, W, 3).

    A frame without a colour space is BT.709 from 720 lines on and BT.601 below, as in ``yuv_matrix`` of the
    drawing; swscale would take BT.601 at any size.
    """
    stated = int(frame.colorspace)
    space = stated if stated in _COLOUR_SPACES else 1 if frame.height >= 720 else 5
    return np.asarray(frame.reformat(format="rgb24", src_colorspace=space).to_ndarray(), np.uint8)


def to_yuv420p(frame: av.VideoFrame) -> av.VideoFrame:
    """Convert a frame to 8-bit YUV 4:2:0 in limited range, which every player reads; itself if it is that."""
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    if frame.format.name == "yuv420p" and not full:
        return frame
    is_rgb = frame.format.is_rgb
    out = frame.reformat(
        format="yuv420p",
        src_color_range=ColorRange.JPEG if full or is_rgb else ColorRange.MPEG,
        dst_color_range=ColorRange.MPEG,
        dst_colorspace=Colorspace.ITU709 if is_rgb else None,
    )
    if is_rgb:
        out.colorspace = Colorspace.ITU709
    out.color_range = ColorRange.MPEG
    return out


def _like(frame: av.VideoFrame, size: tuple[int, int]) -> av.VideoFrame:
    """New yuv420p frame with the colour space and time of another."""
    new = av.VideoFrame(size[0], size[1], "yuv420p")
    new.colorspace, new.color_range = frame.colorspace, frame.color_range
    new.color_primaries, new.color_trc = frame.color_primaries, frame.color_trc
    new.pts = frame.pts
    if frame.time_base:
        new.time_base = frame.time_base
    return new


def copied(frame: av.VideoFrame, *, even: bool = False) -> av.VideoFrame:
    """Copy of a yuv420p frame. even: an odd size grows by repeating the last row or column."""
    w, h = frame.width, frame.height
    new = _like(frame, (w + w % 2, h + h % 2) if even else (w, h))
    for a, b in zip(planes(frame), planes(new), strict=True):
        b[: a.shape[0], : a.shape[1]] = a
        b[a.shape[0] :, : a.shape[1]] = a[-1]
        b[:, a.shape[1] :] = b[:, a.shape[1] - 1 : a.shape[1]]
    return new


def resized(frame: av.VideoFrame, size: tuple[int, int]) -> av.VideoFrame:
    """Resized copy (width, height) of a yuv420p frame, averaged where it shrinks."""
    new = _like(frame, size)
    for a, b in zip(planes(frame), planes(new), strict=True):
        interpolation = cv2.INTER_AREA if b.size < a.size else cv2.INTER_LINEAR
        b[:] = cv2.resize(a, b.shape[::-1], interpolation=interpolation)
    return new


HARDWARE_ENCODERS: Final = ("h264_nvenc", "h264_qsv", "h264_amf", "h264_videotoolbox", "h264_v4l2m2m")
"""H.264 encoders in hardware, the fastest first."""


@cache
def pick_encoder(codec: str = "auto") -> str:
    """Choose an encoder of FFmpeg: ``codec``, or for ``auto`` the first that works here.

    Raises ``InputError`` where the encoder does not exist or work on this machine.
    """
    if codec == "auto":
        encoder = next((name for name in HARDWARE_ENCODERS if _encodes(name)), "libx264")
        reason = "" if encoder in HARDWARE_ENCODERS else ": no hardware encoder works"
        _log.info("videos are encoded by %s%s", encoder, reason)
        return encoder
    if not _encodes(codec):
        working = filter(_encodes, (*HARDWARE_ENCODERS, "libx264", "libx265", "libsvtav1"))
        raise InputError(
            f"codec {codec}: no such video encoder works here; choose {', '.join(working)} or auto."
        )
    return codec


@cache
def _encodes(name: str) -> bool:
    """Test an encoder on a small picture: many are built in and find no device."""
    try:
        context = av.CodecContext.create(name, "w")
        if not isinstance(context, av.VideoCodecContext):
            return False
        context.width, context.height, context.pix_fmt = 256, 256, "yuv420p"
        context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
        context.encode(av.VideoFrame(256, 256, "yuv420p"))
        context.encode(None)
    except (av.FFmpegError, ValueError, OSError):
        return False
    return True


def _encoder_options(name: str, crf: int, preset: str) -> dict[str, str]:
    """Options for constant quality by encoder."""
    if name in ("libx264", "libx265"):
        return {"crf": str(crf), "preset": preset}
    if name.endswith("nvenc"):
        return {"rc": "vbr", "cq": str(crf), "b": "0"}
    if name.endswith("qsv"):
        return {"global_quality": str(crf)}
    if name.endswith("amf"):
        return {"rc": "cqp", "qp_i": str(crf), "qp_p": str(crf)}
    return {"crf": str(crf)} if name == "libsvtav1" else {}


def _turned(frame: av.VideoFrame, rotation: int) -> av.VideoFrame:
    if not rotation:
        return frame
    frame = to_yuv420p(frame)
    turn = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}[rotation]
    new = _like(frame, (frame.width, frame.height) if rotation == 180 else (frame.height, frame.width))
    for a, b in zip(planes(frame), planes(new), strict=True):
        b[:] = cv2.rotate(a, turn)
    return new


def part_name(name: str) -> str:
    """File name of an unfinished video, ``<stem>.part<suffix>``."""
    path = Path(name)
    return f"{path.stem}.part{path.suffix}"


class VideoWriter:
    """Writer of an MP4 video (H.264 by default, yuv420p, index in front) that browsers play.

    A context manager: the file appears under its name when the block ends without an exception; until then it
    is ``<stem>.part<suffix>``, which a failure removes. ``write`` takes frames of any pixel format or RGB
    arrays (H, W, 3) uint8, all of one size; odd sizes grow by one pixel. Frames are ``1 / rate`` seconds
    apart unless ``write`` gets their times. codec: see ``pick_encoder``. comment: for the file's metadata.

    Raises ``InputError`` where the file cannot be written.
    """

    def __init__(
        self,
        path: Path | str,
        rate: Fraction | int,
        *,
        codec: str = "libx264",
        crf: int = 21,
        preset: str = "veryfast",
        threads: int = 0,
        comment: str = "",
    ) -> None:
        self.path = Path(path)
        self._part = self.path.with_name(part_name(self.path.name))
        self._comment = comment
        self._rate = Fraction(rate)
        self._codec = pick_encoder(codec)
        self._options = _encoder_options(self._codec, crf, preset)
        self._threads = threads
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._pts = -1

    def write(self, picture: av.VideoFrame | Pixels, time_s: float | None = None) -> None:
        """Add a frame; ``time_s`` is given for every frame or for none."""
        frame = (
            picture if isinstance(picture, av.VideoFrame) else av.VideoFrame.from_ndarray(picture, "rgb24")
        )
        frame = to_yuv420p(frame)
        if frame.width % 2 or frame.height % 2:
            frame = copied(frame, even=True)
        # The encoder needs time stamps of its own; the caller's frame keeps those it has.
        pts, time_base = frame.pts, frame.time_base
        try:
            stream = self._stream or self._start(frame, timed=time_s is not None)
            if (stream.width, stream.height) != (frame.width, frame.height):
                raise ValueError(
                    f"{self.path}: a frame of {frame.width}x{frame.height} pixels came after one of "
                    f"{stream.width}x{stream.height}"
                )
            base = stream.codec_context.time_base
            number = self._pts + 1 if time_s is None else round(time_s / float(base))
            if number <= self._pts:
                raise ValueError(f"{self.path}: frame at {time_s} s is not after the one before it")
            frame.pts, frame.time_base = number, base
            self._pts = number
            assert self._container is not None
            self._container.mux(stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            raise self._failed(error) from error
        finally:
            frame.pts = pts
            if time_base:
                frame.time_base = time_base

    def _start(self, frame: av.VideoFrame, timed: bool) -> VideoStream:
        self._container = av.open(str(self._part), "w", "mp4", options={"movflags": "+faststart"})
        if self._comment:
            self._container.metadata["comment"] = self._comment
        stream = self._container.add_stream(self._codec, rate=self._rate, options=self._options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, 90_000) if timed else 1 / self._rate
        context.thread_count = self._threads
        context.colorspace, context.color_range = frame.colorspace, ColorRange.MPEG
        context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
        self._stream = stream
        return stream

    def finish(self) -> None:
        """Flush the encoder: the file is complete, but still has its temporary name."""
        if self._container is None or self._stream is None:
            return
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._container = None
        except (av.FFmpegError, OSError) as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Finish the file and rename it; without frames there is no file."""
        self.finish()
        if self._stream is not None:
            try:
                self._part.replace(self.path)
            except OSError as error:
                raise self._failed(error) from error
            self._stream = None

    def discard(self) -> None:
        """Close and remove the unfinished file."""
        if self._container is not None:
            with suppress(av.FFmpegError, OSError):
                self._container.close()
        self._container = self._stream = None
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    def _failed(self, error: Exception) -> InputError:
        self.discard()
        reason = getattr(error, "strerror", None) or error
        return InputError(
            f"{self.path}: the video cannot be written ({reason}). Make room on the disk, or choose "
            "a writable folder."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
