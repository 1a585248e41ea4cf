"""Workers of a batch: attempts at recordings, in processes of this machine.

``pipeline/batch/cluster.py`` makes the same attempts in tasks of a Ray cluster.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Protocol

import cv2
import torch

from pipeline.batch.storage import Location, StorageError, absolute, fetched, join, published
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.recording import Recording, find_recording
from pipeline.results import LOG, MOSAIC, THUMBNAIL
from pipeline.summary import Summary
from pipeline.video import probe, read_frames

THUMBNAIL_WIDTH_PX: Final = 320


class Result(Protocol):
    """Parts of a run's result that a batch reads."""

    @property
    def summary(self) -> Summary: ...
    @property
    def files(self) -> tuple[Path, ...]: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...


class Run(Protocol):
    """``stages.graph.run``."""

    def __call__(
        self,
        recording: Recording,
        out: Path,
        cfg: Any,
        progress: Callable[[int], None],
        *,
        watch: Callable[[int, Iterator[int]], None],
    ) -> Result: ...


@dataclass(frozen=True)
class Needs:
    """Resources of a machine that the run of one recording takes."""

    cpus: float = 2.0
    """Stages run in parallel."""
    gpus: float = 0.0
    """With 0, local workers share the available GPUs; tasks of a cluster get none."""
    memory_gb: float = 2.0
    """A run of four 1080p views takes about 1 GB."""

    def fitting(self, cpus: float, gpus: float, memory_gb: float) -> int:
        """Number of recordings that a machine with these resources runs at a time."""
        counts = [cpus / self.cpus, memory_gb / self.memory_gb]
        if self.gpus:  # shares are of one GPU: the rests of two do not add up
            counts.append(gpus / self.gpus if self.gpus >= 1 else int(gpus) * int(1 / self.gpus))
        return int(min(counts))


@dataclass(frozen=True)
class Job:
    """Part of the work that is common to all recordings of a batch; ``run`` and ``cfg`` must be picklable."""

    dataset: Location
    out: Location
    run: Run
    cfg: Config


@dataclass(frozen=True)
class Assignment:
    """One attempt at a recording."""

    name: str
    folder: str
    """Relative to the data set."""
    needed: tuple[str, ...]
    """Files and folders that are read, relative to the data set."""
    key: str
    """Digest of configuration and inputs: equal keys give equal results."""
    attempt: int = 0


Message = tuple[str, dict[str, Any]]
"""``progress`` with ``frames`` and, where these are counted anew, ``total`` and ``task``; at the end ``done``
with columns of the manifest, or ``failed`` with ``error``, ``warnings`` and ``again``, true for another
attempt."""


class Workers(Protocol):
    """Workers, numbered from 0, each for one recording at a time."""

    def __len__(self) -> int:
        """Current number of workers."""

    def give(self, k: int, task: Assignment) -> None:
        """Start a recording on the idle worker ``k``."""

    def messages(self) -> Iterator[tuple[int, Message]]:
        """Wait for messages, a few seconds at least, and yield them with the worker's number."""

    def stop(self) -> None:
        """End all workers at once."""


class _Progress:
    """Progress messages of a recording, and of a detection that comes first."""

    def __init__(self, tell: Callable[[Message], None], frames: int) -> None:
        self._tell, self._frames = tell, frames
        self._begin(frames)

    def _begin(self, total: int, task: str = "") -> None:
        self._tell(("progress", {"frames": 0, "total": total, "task": task}))

    def advance(self, frames: int) -> None:
        self._tell(("progress", {"frames": frames}))

    def detect(self, pictures: int, finished: Iterator[int]) -> None:
        self._begin(pictures, "detect")
        before = 0
        for count in finished:
            self.advance(count - before)
            before = count
        self._begin(self._frames)


def attempt(job: Job, task: Assignment, tell: Callable[[Message], None]) -> Message:
    """Run a recording once and return the outcome; progress goes to ``tell``, output to its log."""
    torch.set_num_threads(1)
    warnings: tuple[str, ...] = ()
    try:
        with published(join(job.out, task.name), task.key, LOG) as out:
            with _redirected(out / LOG):
                _log(f"\n{datetime.now().astimezone().isoformat(' ', 'seconds')} attempt {task.attempt}")
                with _log_errors(), fetched(job.dataset, task.needed, str(absolute(job.out))) as dataset:
                    recording = find_recording(dataset / task.folder, inherit=dataset)
                    warnings = recording.warnings
                    for warning in warnings:
                        _log(f"warning: {warning}")
                    progress = _Progress(tell, len(recording))
                    result = job.run(recording, out, job.cfg, progress.advance, watch=progress.detect)
                    for warning in result.warnings:
                        if warning not in warnings:
                            _log(f"warning: {warning}")
                    thumbnail = _write_thumbnail(out, result)
            files = tuple(file.relative_to(out).as_posix() for file in (*result.files, *thumbnail))
    except InputError as e:
        again = isinstance(e, StorageError)
        return "failed", {"error": str(e), "warnings": warnings, "again": again}
    except Exception as e:
        error = f"{type(e).__name__}: {e} (see {LOG})"
        return "failed", {"error": error, "warnings": warnings, "again": True}
    return "done", {
        "frames": result.summary.frames,
        "fps": result.summary.fps,
        "fitted": _fitted(result.summary),
        "reprojection_px": result.summary.reprojection_median_px,
        "reprojection_mm": result.summary.reprojection_median_mm,
        "verdict": result.summary.verdict,
        "warnings": result.warnings,
        "files": files,
    }


def _write_thumbnail(out: Path, result: Result) -> list[Path]:
    """Write a small picture from the middle of the mosaic, else of the first video; none without videos."""
    videos = sorted((f for f in result.files if f.suffix == ".mp4"), key=lambda file: file.name != MOSAIC)
    if not videos:
        return []
    info = probe(videos[0])
    frame = next(read_frames(info, [len(info.times_s) // 2]))
    if frame is None:
        return []
    scale = THUMBNAIL_WIDTH_PX / frame.width
    size = THUMBNAIL_WIDTH_PX, max(1, round(frame.height * scale))
    small = cv2.resize(frame.to_ndarray(format="bgr24"), size, interpolation=cv2.INTER_AREA)
    (out / THUMBNAIL).write_bytes(cv2.imencode(".jpg", small)[1].tobytes())
    return [out / THUMBNAIL]


def _fitted(summary: Summary) -> float | None:
    """Share of fitted frames among those with people."""
    frames = sum(p.frames for p in summary.people)
    return sum(p.frames_fitted for p in summary.people) / frames if frames else None


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # stderr takes file names of any bytes


@contextmanager
def _log_errors() -> Iterator[None]:
    """Print an error before it propagates."""
    try:
        yield
    except InputError as e:
        _log(f"error: {e}")
        raise
    except Exception:
        traceback.print_exc()
        raise


@contextmanager
def _redirected(file: Path) -> Iterator[None]:
    """Append all output of this process, that of libraries below Python too, to ``file``."""
    kept = [os.dup(stream) for stream in (1, 2)]
    try:
        with file.open("a", encoding="utf-8") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
        yield
    finally:
        for stream, old in zip((1, 2), kept, strict=True):
            with suppress(OSError):  # full disk
                (sys.stdout, sys.stderr)[stream - 1].flush()
            os.dup2(old, stream)
            os.close(old)


def processors() -> list[int]:
    """Numbers of the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def available_gb(
    meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")
) -> float:
    """Available memory of the machine, or of its container if less; infinite where unknown."""
    sizes_gb = [float("inf")]
    with suppress(OSError):
        lines = meminfo.read_text(encoding="ascii").splitlines()
        sizes_gb += [int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # "max"
        sizes_gb.append(int(limit.read_text(encoding="ascii")) / 2**30)
    return min(sizes_gb)


class Processes:
    """Processes of this machine, each with a share of the processors and one GPU; dead ones are replaced."""

    def __init__(self, job: Job, count: int) -> None:
        self._job = job
        self._workers: list[tuple[BaseProcess, Connection] | None] = [None] * count

    @staticmethod
    def room(needs: Needs) -> int:
        """Number of recordings that this machine runs at a time, at least 1."""
        gpus = len(_devices()) if needs.gpus else 0
        return max(1, needs.fitting(len(processors()), gpus, available_gb()))

    def __len__(self) -> int:
        return len(self._workers)

    def _start(self, k: int) -> tuple[BaseProcess, Connection]:
        # CUDA does not survive a fork.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        numbers, count = processors(), len(self)
        share = numbers[k * len(numbers) // count : (k + 1) * len(numbers) // count]
        devices = _devices()
        device = devices[k % len(devices)] if devices else None
        process = context.Process(target=_worker_main, args=(theirs, self._job, share, device), daemon=True)
        process.start()
        theirs.close()  # so that the worker's death closes the pipe
        return process, ours

    def give(self, k: int, task: Assignment) -> None:
        _, connection = self._workers[k] = self._workers[k] or self._start(k)
        with suppress(OSError):  # a worker that has just died is reported by `messages`
            connection.send(task)

    def messages(self) -> Iterator[tuple[int, Message]]:
        numbers = {worker[1]: k for k, worker in enumerate(self._workers) if worker}
        for ready in wait([*numbers]):
            assert isinstance(ready, Connection)
            k = numbers[ready]
            try:
                yield k, ready.recv()
            except (EOFError, OSError):
                yield k, ("failed", {"error": self._reap(k), "again": True})

    def _reap(self, k: int) -> str:
        """Join a dead worker and return the cause of its death."""
        worker, self._workers[k] = self._workers[k], None
        assert worker is not None
        process, connection = worker
        connection.close()
        process.join()
        code = process.exitcode or 0
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        return f"the worker process ended with {cause}" + (
            "; was memory short?" if code == -signal.SIGKILL else f" (see {LOG})"
        )

    def stop(self) -> None:
        living = [worker for worker in self._workers if worker]
        for process, _ in living:
            process.terminate()
        for process, connection in living:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
            connection.close()


def _devices() -> list[str]:
    """Names of the CUDA devices, for CUDA_VISIBLE_DEVICES."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return stated.split(",")[:count] if stated else [str(n) for n in range(count)]


def _worker_main(connection: Connection, job: Job, share: Sequence[int], device: str | None) -> None:
    """Main function of a worker process: receive assignments and send messages until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends its workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)  # at once: a store survives kill -9, too

    threading.Thread(target=die_with_parent, daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    if share and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)
    with suppress(EOFError):
        while True:
            task: Assignment = connection.recv()
            connection.send(attempt(job, task, connection.send))
