"""``detections.zarr``: people detected in the videos of a recording, as zarr format 3.

::

    /                     attributes: format, version, software, detector (order of the points, see
                          ``POINT_ORDERS``, and networks), videos (name, frames, size and bytes of each)
    <v>/people (N,D,K,3)  N frames of video v, at most D people in each: x and y in pixels of the video frame,
                          and confidence; NaN where there is nobody
    <v>/state (2,S)       restart state of the detector: after chunk k in row k % 2
    <v>/chunks (2,)       the first chunk that is written, and the one after the last

Frames are numbered as in each video, independent of a recording's time line. Every write is a whole chunk,
then the state after it, then ``chunks``: a killed detection resumes there and gives the bytes of an unbroken
one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import TypeAdapter
from zarr.codecs import ZstdCodec

from pipeline.array_types import Floats
from pipeline.errors import InputError
from pipeline.files import decoding, writing
from pipeline.formats.keypoints.files import MAX_PEOPLE, KeypointFiles
from pipeline.results import STORE
from pipeline.skeleton import POINT_ORDERS
from pipeline.video import VideoInfo
from pipeline.zarrs import CHUNK_KEYS, creating_group, open_array, remove_partial_files

FORMAT: Final = "multispin detections"
DETECTIONS_VERSION: Final = 3
CHUNK: Final = 48
"""Frames of a chunk: more mean more lost when a detection is killed, fewer mean more files."""
_KEPT_CHUNKS: Final = 2
"""Chunks of a camera that are cached."""
_ADVICE: Final = "Make room, or choose another place, then run again: what was detected is kept."


@dataclass(frozen=True)
class Detector:
    """Settings that determine the detections of a video."""

    order: str
    """Order of the points, a name in ``POINT_ORDERS``."""
    networks: Mapping[str, str]
    """sha256 of each network by its task."""
    every: int
    """Frames from one search for people to the next."""

    @property
    def points(self) -> int:
        return len(POINT_ORDERS[self.order])


@dataclass(frozen=True, eq=False)
class DetectedPeople(KeypointFiles):
    """Keypoints of one camera out of ``detections.zarr``, by frame of its video."""

    order: str
    read_chunk: Callable[[int], Floats]
    """Function from the number of a chunk to its people (frames, D, K, 3)."""

    unit: ClassVar[str] = "frames"

    @property
    def known_order(self) -> str:
        return self.order

    def file(self, number: int) -> Path | None:
        return self.path if len(self) and self.numbers[0] <= number <= self.numbers[-1] else None

    def content(self, number: int) -> bytes:
        people: Floats = self.read_chunk(number // CHUNK)[number % CHUNK]
        there = (people[..., 2] > 0).any(-1)
        return bytes(people[there].tobytes())

    def anybody(self) -> bool:
        """True where a frame has a person."""
        return any((self.read_chunk(k)[..., 2] > 0).any() for k in np.unique(self.numbers // CHUNK).tolist())

    def persons(self, content: bytes) -> list[Any]:
        points = len(POINT_ORDERS[self.order])
        return cast("list[Any]", np.frombuffer(content, np.float32).reshape(-1, 3 * points).tolist())


class Detections:
    """Detections on disk, open for reading, or for writing chunks in order, camera by camera."""

    def __init__(self, path: Path, *, write: bool = False) -> None:
        """Open those at ``path``. Raises ``InputError`` where there are none, or they are damaged."""
        self.path = path
        with self._reading("the detections"):
            self._root = zarr.open_group(path, mode="r+" if write else "r")
            attrs = cast("Mapping[str, Any]", dict(self._root.attrs))
            if attrs.get("format") != FORMAT:
                raise ValueError(f"format {attrs.get('format')}")
            if attrs["version"] != DETECTIONS_VERSION:
                raise InputError(
                    f"{path}: detections of version {attrs['version']}, of which this software reads "
                    f"{DETECTIONS_VERSION}. Remove it to detect again."
                )
            self.detector = TypeAdapter(Detector).validate_python(attrs["detector"])
            self.videos: tuple[dict[str, Any], ...] = tuple(attrs["videos"])
            for v, (name, count) in enumerate(zip(self.names, self.frames, strict=True)):
                expected = (count, MAX_PEOPLE, self.detector.points, 3)
                if (shape := self._array(v, "people").shape) != expected:
                    raise ValueError(f"people of {name} have shape {shape}, expected {expected}")
            self.chunks = [
                range(*self._read(v, "chunks", slice(2)).tolist()) for v in range(len(self.videos))
            ]
            """Chunks that are written, video by video."""
            for v, chunks in enumerate(self.chunks):
                names = [f"people/c.{chunk}.0.0.0" for chunk in chunks]
                names += [f"state/c.{chunks[-1] % 2}.0"] if chunks else []
                for file in (path / str(v) / name for name in names):
                    if not file.stat().st_size:
                        raise ValueError(f"{file.relative_to(path)} is empty")

    @classmethod
    def resume(
        cls,
        path: Path,
        detector: Detector,
        videos: Mapping[str, VideoInfo],
        state_size: int,
        wanted: Mapping[str, range] | None = None,
    ) -> Detections:
        """Open the detections at ``path`` to continue them; create them where there are none.

        state_size: length of a camera's restart state. wanted: frames of each video, by default all. A video
        whose wanted frames begin before or beyond the written ones starts anew. Raises ``InputError`` where
        that would drop detections with results, or for other videos or another detector.
        """
        described = _described(videos)
        if not path.exists():
            with writing(path, _ADVICE):
                _create(path, detector, described, state_size)
        found = cls(path, write=True)
        remove_partial_files(path)
        was, now = asdict(found.detector), asdict(detector)
        differ = [f"{key} {was[key]}, now {now[key]}" for key in now if was[key] != now[key]]
        if [*found.videos] != described:
            differ.append("other videos")
        if differ:
            raise InputError(
                f"{path}: was made with {'; '.join(differ)}. Give the same, or remove it to detect again."
            )
        for v, chunks in enumerate(found.missing(wanted)):
            if not chunks or chunks.start == found.chunks[v].stop:
                continue
            if found.chunks[v] and path.with_name(STORE).exists():
                raise InputError(
                    f"{path}: holds other frames, and {STORE} beside it their results. Give the same --start "
                    "and --end, another --out, or --overwrite."
                )
            found.chunks[v] = range(chunks.start, chunks.start)
            with writing(path, _ADVICE):
                found._array(v, "chunks")[:] = [chunks.start, chunks.start]
        return found

    def missing(self, wanted: Mapping[str, range] | None = None) -> list[range]:
        """Chunks of each video still to be detected for the ``wanted`` frames, by default all."""
        todo = []
        for name, count, written in zip(self.names, self.frames, self.chunks, strict=True):
            frames = range(count) if wanted is None else wanted[name]
            first, stop = frames.start // CHUNK, -(-frames.stop // CHUNK)
            if written.start <= first <= written.stop:
                first = written.stop
            todo.append(range(first, stop if frames else first))
        return todo

    def is_of(self, videos: Mapping[str, VideoInfo]) -> bool:
        """True where the detections are of these videos."""
        return [*self.videos] == _described(videos)

    @property
    def names(self) -> list[str]:
        """Names of the videos."""
        return [video["name"] for video in self.videos]

    @property
    def frames(self) -> list[int]:
        """Number of frames of each video."""
        return [video["frames"] for video in self.videos]

    def states(self) -> list[NDArray[np.float64] | None]:
        """Restart state (S,) of each video after its last written chunk; None before the first."""
        return [self._read(v, "state", c[-1] % 2) if c else None for v, c in enumerate(self.chunks)]

    def write(self, video: int, people: list[Floats], state: NDArray[np.float64]) -> None:
        """Write the next chunk of a video: the people (D, K, 3) of each frame, and the state (S,) after it.

        Only the first ``MAX_PEOPLE`` people of a frame are kept. Raises ``InputError``.
        """
        written = self.chunks[video]
        first = written.stop * CHUNK
        chunk = np.full((len(people), MAX_PEOPLE, self.detector.points, 3), np.nan, np.float32)
        for frame, persons in zip(chunk, people, strict=True):
            frame[: len(persons)] = persons[:MAX_PEOPLE]
        with writing(self.path, _ADVICE):
            self._array(video, "people")[first : first + len(people)] = chunk
            self._array(video, "state")[written.stop % 2] = state
            self._array(video, "chunks")[:] = [written.start, written.stop + 1]
        self.chunks[video] = range(written.start, written.stop + 1)

    def people(self, wanted: Mapping[str, range] | None = None) -> dict[str, DetectedPeople]:
        """Keypoints of each video by name, of the ``wanted`` frames or of all written ones."""
        return {name: self._people_of(v, (wanted or {}).get(name)) for v, name in enumerate(self.names)}

    def _people_of(self, video: int, wanted: range | None) -> DetectedPeople:
        written = self.chunks[video]
        frames = range(written.start * CHUNK, min(written.stop * CHUNK, self.frames[video]))
        frames = frames if wanted is None else wanted
        read = lru_cache(_KEPT_CHUNKS)(partial(self._read_chunk, video))
        return DetectedPeople(self.path, np.array(frames, np.int64), 0, self.detector.order, read)

    def _read_chunk(self, video: int, chunk: int) -> Floats:
        return self._read(video, "people", slice(chunk * CHUNK, (chunk + 1) * CHUNK))

    def _read(self, video: int, name: str, part: Any) -> NDArray[Any]:
        """Part of an array. Raises ``InputError`` where its files are damaged."""
        with self._reading(f"{name} of {self.names[video]}"):
            return np.asarray(self._array(video, name)[part])

    def _reading(self, content: str) -> AbstractContextManager[None]:
        return decoding(self.path, "Remove it, then run again.", content)

    def _array(self, video: int, name: str) -> zarr.Array[Any]:
        return open_array(self._root, f"{video}/{name}")


def _create(path: Path, detector: Detector, videos: list[dict[str, Any]], state_size: int) -> None:
    attributes: Any = {"format": FORMAT, "version": DETECTIONS_VERSION, "detector": asdict(detector)}
    attributes |= {"software": f"multispin {metadata.version('multispin')}", "videos": videos}
    sealed: Any = {"compressors": [ZstdCodec(checksum=True)], "chunk_key_encoding": CHUNK_KEYS}
    shape = (MAX_PEOPLE, detector.points, 3)
    with creating_group(path, attributes) as root:
        for v, video in enumerate(videos):
            group = root.create_group(str(v))
            group.create_array(
                "people", shape=(video["frames"], *shape), chunks=(CHUNK, *shape), dtype="float32",
                fill_value=np.nan, **sealed,
            )  # fmt: skip
            group.create_array(
                "state", shape=(2, state_size), chunks=(1, state_size), dtype="float64", fill_value=np.nan,
                **sealed,
            )  # fmt: skip
            group.create_array("chunks", shape=(2,), dtype="int64", fill_value=0)


def _described(videos: Mapping[str, VideoInfo]) -> list[dict[str, Any]]:
    """Identity of videos, independent of their place, as JSON."""
    return [
        {
            "name": name,
            "frames": len(video.times_s),
            "size": [*video.size],
            "bytes": sum(file.stat().st_size for file in _files(video)),
        }
        for name, video in sorted(videos.items())
    ]


def _files(video: VideoInfo) -> list[Path]:
    return [video.path / name for name in video.pictures if name] or [video.path]
