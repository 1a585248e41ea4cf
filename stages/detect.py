"""Detection of people in videos, before the stream, into ``detections.zarr``, which is read as keypoints.

No stage that batches flow through: synchronisation, the order of points and the cameras are found from
detections of the whole recording, before the first frame.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Annotated, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.detectors.detector import PeopleDetector, is_by, load_detector
from models.detectors.networks import LANDMARKS
from pipeline.array_types import Floats
from pipeline.batches import FrameBatch
from pipeline.config import Config, NamesFile
from pipeline.detections import CHUNK, Detections, Detector
from pipeline.engine import StageTimes
from pipeline.errors import NobodyFound
from pipeline.files import writing
from pipeline.formats.keypoints.openpose import write_people
from pipeline.formats.keypoints.points import to_body_25
from pipeline.recording import Recording
from pipeline.results import DETECTIONS
from pipeline.skeleton import POINT_ORDERS
from pipeline.video import VideoInfo, to_rgb


class Decode(Protocol):
    """Decoder of V videos: frame numbers (V, T), from index ``start`` on → frames of all cameras."""

    def __call__(
        self, videos: Sequence[VideoInfo], frame_index: NDArray[np.int64], *, start: int
    ) -> Iterator[FrameBatch]: ...


Watch = Callable[[int, Iterator[int]], None]
"""Function of the number of pictures that exhausts an iterator over the number done, which detects them."""


class DetectConfig(Config):
    """Detection of people in videos."""

    when: Literal["missing", "always"] = "missing"
    """missing: in a recording without keypoints; always: instead of those that it has."""
    model: Annotated[str, NamesFile(unless=tuple(LANDMARKS))] = "heavy"
    """heavy; full, which takes a third of the time and exchanges left and right at times; or an ONNX file
    of RTMPose, ViTPose, RTMO or YOLO-pose."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda needs onnxruntime-gpu."""
    every: int = Field(default=8, ge=1)
    """Frames from one search of the whole picture to the next; between them people are tracked."""
    threads: int = Field(default=0, ge=0)
    """Videos that are processed at once; 0: one a processor."""


@dataclass(frozen=True)
class Detected:
    """People in a picture, and the detector's state after it."""

    people: Floats
    """(D, K, 3) x and y in pixels, confidence."""
    state: NDArray[np.float64]


def detect(
    items: Iterator[FrameBatch], detector: PeopleDetector, state: NDArray[np.float64]
) -> Iterator[Detected]:
    """Detect people in the pictures of one video. state: before the first of ``items``.

    A missing picture has no people and keeps the state.
    """
    nobody = np.zeros((0, len(POINT_ORDERS[detector.order]), 3), np.float32)
    for batch in items:
        for (frame,) in batch.by_time():
            people = nobody
            if frame is not None:
                state, people = detector.detect(to_rgb(frame), state)
            yield Detected(people, state)


def read_all(pictures: int, done: Iterator[int]) -> None:
    """Exhaust ``done``: a ``Watch`` without display."""
    for _ in done:
        pass


def frames_of_part(recording: Recording, margin_s: float) -> dict[str, range] | None:
    """Frames of each video that a part of a recording needs; None for a whole recording.

    margin_s: largest change of its clocks that may follow, seconds.
    """
    if recording.span == (0, None):
        return None
    found = {}
    for name, index, video in zip(
        recording.rig.names, recording.timeline.frame_index, recording.videos, strict=True
    ):
        shown = index[index >= 0]
        if video is not None and len(shown):
            beside = 1 + math.ceil(margin_s * video.rate)  # one to interpolate
            first, last = max(0, shown[0] - beside), min(len(video.times_s) - 1, shown[-1] + beside)
            found[name] = range(int(first), int(last) + 1)
        else:
            found[name] = range(0)
    return found


def detect_recording(
    recording: Recording,
    out: Path,
    cfg: DetectConfig,
    decode: Decode,
    watch: Watch = read_all,
    wanted: Mapping[str, range] | None = None,
) -> tuple[Recording, tuple[StageTimes, ...]]:
    """Detect the keypoints of a recording in the ``wanted`` frames of its videos, by default all.

    They are kept in ``out``; those of an earlier run are not detected again. Returns also the times of the
    steps.

    Raises:
        InputError: those in ``out`` are of other videos or settings, or the networks cannot be used.
        NobodyFound: nobody is in the videos.
    """
    videos = recording.videos_by_name
    found, times = detect_videos(videos, out / DETECTIONS, cfg, decode, watch, wanted)
    if not any(people.anybody() for people in found.people(wanted).values()):
        raise NobodyFound(
            f"{recording.path}: nobody was found in the videos of {', '.join(videos)}. People must be seen, "
            "about upright and not much smaller than a fifth of the picture's height; or give keypoints of "
            "another program."
        )
    return recording.with_detections(found, wanted), times


def detect_videos(
    videos: Mapping[str, VideoInfo],
    path: Path,
    cfg: DetectConfig,
    decode: Decode,
    watch: Watch = read_all,
    wanted: Mapping[str, range] | None = None,
) -> tuple[Detections, tuple[StageTimes, ...]]:
    """Detect people in the ``wanted`` frames of videos by name, by default all, and keep them at ``path``.

    Chunks that are already there are kept. Returns also the processor seconds of the steps, empty without
    work. Raises ``InputError``.
    """
    if path.exists():
        kept = Detections(path)
        if (
            kept.is_of(videos)
            and is_by(kept.detector, cfg.model, cfg.every)
            and not any(kept.missing(wanted))
        ):
            return kept, ()
    detector = load_detector(cfg.model, cfg.device, cfg.every)
    origin = Detector(detector.order, detector.networks, cfg.every)
    found = Detections.resume(path, origin, videos, len(detector.start()), wanted)
    stop = Event()
    todo = found.missing(wanted)
    streams = [
        _chunks(decode, videos[name], chunks, detector.start() if state is None else state, detector, stop)
        for name, chunks, state in zip(found.names, todo, found.states(), strict=True)
    ]
    times = StageTimes("detect: decode"), StageTimes("detect")
    threads = min(cfg.threads or os.cpu_count() or 1, len(streams))
    pictures = sum(
        min(part.stop * CHUNK, frames) - part.start * CHUNK
        for part, frames in zip(todo, found.frames, strict=True)
        if part
    )
    watch(pictures, _write_all(streams, found, threads, times, stop))
    return found, times


@dataclass(frozen=True)
class _Chunk:
    """People in consecutive frames of one video."""

    people: list[Floats]
    """(D, K, 3) of each frame."""
    state: NDArray[np.float64]
    """Restart state of the tracker after the chunk."""
    decode_s: float
    """Processor seconds of the decoding."""
    detect_s: float
    """Processor seconds of the detection, without decoding."""


def _write_all(
    streams: Sequence[Generator[_Chunk]],
    found: Detections,
    threads: int,
    times: Sequence[StageTimes],
    stop: Event,
) -> Generator[int]:
    """Write the chunks of all streams, which run on ``threads`` threads; yield the number of pictures done.

    stop: set at the end, so that the streams end early.
    """
    done = 0
    yield done
    with ThreadPoolExecutor(threads, "multispin detect") as pool:
        pending = {pool.submit(next, stream, None): v for v, stream in enumerate(streams)}
        try:
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    v, chunk = pending.pop(future), future.result()
                    if chunk is None:
                        continue
                    pending[pool.submit(next, streams[v], None)] = v
                    found.write(v, chunk.people, chunk.state)
                    for row, seconds in zip(times, (chunk.decode_s, chunk.detect_s), strict=True):
                        row.items += 1
                        row.total += seconds
                    done += len(chunk.people)
                    yield done
        finally:
            stop.set()
            for future in pending:
                future.cancel()
            wait(pending)
            for stream in streams:
                stream.close()


def _chunks(
    decode: Decode,
    video: VideoInfo,
    chunks: range,
    state: NDArray[np.float64],
    detector: PeopleDetector,
    stop: Event,
) -> Generator[_Chunk]:
    """Detect people in chunks of a video, until ``stop``. state: after the chunk before."""
    decoded_s = [0.0]

    def timed(items: Iterator[FrameBatch]) -> Iterator[FrameBatch]:
        while True:
            begun = time.thread_time()
            item = next(items, None)
            decoded_s[0] += time.thread_time() - begun
            if item is None or stop.is_set():
                return
            yield item

    index = np.arange(min(chunks.stop * CHUNK, len(video.times_s)))[None]
    with closing(
        cast("Generator[FrameBatch]", decode([video], index, start=chunks.start * CHUNK))
    ) as pictures:
        detected = detect(timed(pictures), detector, state)
        while True:
            begun, decoded_s[0] = time.thread_time(), 0.0
            chunk = [*islice(detected, CHUNK)]
            if not chunk:
                return
            people = [one.people for one in chunk]
            seconds = time.thread_time() - begun
            yield _Chunk(people, chunk[-1].state, decoded_s[0], seconds - decoded_s[0])


def write_openpose(found: Detections, videos: Mapping[str, VideoInfo], folder: Path) -> Generator[int]:
    """Write detections as OpenPose's JSON in BODY_25; yield the number of files done.

    FOLDER/<camera>/<camera>_<frame>_keypoints.json, numbered from each video's first frame. Raises
    ``InputError``.
    """
    made = folder.with_name(f".{folder.name}-writing")
    done = 0
    with writing(folder, "Make room, or choose another --out."):
        shutil.rmtree(made, ignore_errors=True)
        for name, camera in found.people().items():
            (made / name).mkdir(parents=True)
            for frame in camera.numbers.tolist():
                people, _ = camera.people(frame, found.detector.points)
                number = videos[name].first_number + frame
                file = made / name / f"{name}_{number:012d}_keypoints.json"
                write_people(file, to_body_25(people, found.detector.order))
                done += 1
                yield done
        made.rename(folder)
