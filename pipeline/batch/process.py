"""Batch processing: recordings run by workers, with their states in a manifest.

OUT/batch.json has the state of each recording: pending, running, done or failed. It is replaced atomically at
every change. A recording that is ``running`` when the batch is killed counts as pending and is resumed by the
next call. OUT/batch.html shows the same, and OUT/<recording> has the results.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from pipeline.batch.cluster import RayTasks
from pipeline.batch.dataset import check_out, find_recordings, fingerprint, needed, within
from pipeline.batch.manifest import Entry, RecordingState, read_manifest, write_manifest
from pipeline.batch.storage import Location, absolute, is_whole, join, listing, lock
from pipeline.batch.workers import Assignment, Job, Needs, Processes, Run, Workers
from pipeline.config import Config
from pipeline.results import REPORT

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Capacity:
    """Number and kind of parallel workers."""

    workers: int | None = None
    """Recordings at a time; None: as many as the machines have resources for."""
    needs: Needs = Needs()
    engine: Engine = "local"
    """Processes of this machine, or tasks of a Ray cluster."""
    address: str | None = None
    """HOST:PORT of the Ray cluster, see ``RayTasks``."""

    def open(self, job: Job, recordings: int) -> Workers:
        """Start workers for a number of recordings."""
        if self.engine == "ray":
            remote = replace(job, dataset=absolute(job.dataset), out=absolute(job.out))
            return RayTasks(remote, self.needs, self.workers, self.address)
        return Processes(job, min(self.workers or Processes.room(self.needs), recordings))


@dataclass(frozen=True)
class Event:
    """Start, progress (``running``) or end of a recording."""

    row: Entry
    worker: int
    """Number of the worker, from 0; −1 for a recording that was done before."""
    frames: int = 0
    """Frames finished since the last event."""
    total: int | None = None
    """Frames in all, where they are counted anew from here."""
    task: str = ""
    """Preparation that the frames are counted of; "" for the reconstruction."""
    recordings: int = 0
    """Recordings of the batch."""


def process(
    dataset: Location,
    out: Location,
    cfg: Config,
    run: Run,
    capacity: Capacity,
    *,
    retry: int = 2,
    only: str = "*",
) -> Generator[Event, None, None]:
    """Run every recording that is not done and yield events; a failed recording stops no other.

    dataset, out: folders, or URLs of object storage. run, cfg: picklable, for the workers. retry: further
    attempts after the death of a worker or an unexpected error; an ``InputError`` is not retried.

    Recordings done with equal settings and files are kept, and come first. Closing the iterator stops the
    workers.

    Raises ``InputError``: there are no recordings, results would lie among a recording's own files, ``out``
    is not writable or used by another batch, or there is no cluster.
    """
    with listing(dataset) as tree:
        folders = find_recordings(tree, within(dataset, tree, out), only)  # before --out is made
        for name, folder in folders.items():
            check_out(dataset, tree, folder, join(out, name))
        with lock(out, "batch"):
            rows = read_manifest(out)
            _reset_running(rows)
            tasks: dict[str, Assignment] = {}
            for name, folder in folders.items():
                row, inputs = rows.get(name, Entry(name)), fingerprint(cfg, folder, tree)
                if row.state == "done" and row.inputs == inputs and _has_results(out, row):
                    continue
                rows[name] = Entry(name, inputs=inputs, attempts=row.attempts)
                reads = tuple(path.relative_to(tree).as_posix() for path in needed(folder, tree))
                tasks[name] = Assignment(name, folder.relative_to(tree).as_posix(), reads, inputs)
            save = partial(write_manifest, out, dataset, rows)
            save()
            event = partial(Event, recordings=len(folders))
            yield from (event(rows[name], -1) for name in folders if name not in tasks)
            if not tasks:
                return
            pool = capacity.open(Job(dataset, out, run, cfg), len(tasks))
            try:
                yield from _run_tasks(pool, tasks, rows, save, retry, event)
            finally:
                pool.stop()
                _reset_running(rows)
                save()


def _has_results(out: Location, row: Entry) -> bool:
    """True where the results of a done recording still exist."""
    if isinstance(out, Path):
        return all((out / row.name / file).exists() for file in row.files)
    return is_whole(f"{out}/{row.name}")


def _reset_running(rows: dict[str, Entry]) -> None:
    """Set running recordings back to pending, when no worker is left."""
    for name, row in rows.items():
        if row.state == "running":
            rows[name] = replace(row, state="pending")


def _run_tasks(
    pool: Workers,
    tasks: Mapping[str, Assignment],
    rows: dict[str, Entry],
    save: Callable[[], None],
    retry: int,
    event: Callable[..., Event],
) -> Generator[Event, None, None]:
    """Give tasks to idle workers and update ``rows`` by their messages, until all have ended."""
    pending = deque(tasks)
    tries: Counter[str] = Counter()
    busy: dict[int, tuple[str, float]] = {}
    while pending or busy:
        for k in range(len(pool)):
            if k not in busy and pending:
                name = pending.popleft()
                tries[name] += 1
                busy[k] = name, time.monotonic()
                rows[name] = replace(rows[name], state="running", attempts=rows[name].attempts + 1)
                save()
                pool.give(k, replace(tasks[name], attempt=rows[name].attempts))
                yield event(rows[name], k)
        for k, (kind, values) in pool.messages():
            if k not in busy:
                continue  # it died between two recordings
            name, start = busy[k]
            if kind == "progress":
                yield event(rows[name], k, **values)
                continue
            del busy[k]
            seconds = round(time.monotonic() - start, 1)
            if kind == "done":
                report = f"{name}/{REPORT}"
                rows[name] = replace(
                    rows[name], state="done", error="", seconds=seconds, report=report, **values
                )
            else:
                again = values.pop("again") and tries[name] <= retry
                state: RecordingState = "pending" if again else "failed"
                rows[name] = replace(rows[name], state=state, seconds=seconds, **values)
                if again:
                    pending.append(name)
            save()
            yield event(rows[name], k)
