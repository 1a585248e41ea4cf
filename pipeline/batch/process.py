"""Many recordings: run by workers, and remembered in a manifest.

OUT/batch.json says of each recording whether it is pending, running, done or failed. It is replaced whole at
every change, so whoever is killed at any moment leaves a true one; what is ``running`` in it then was cut
off, counts as pending, and goes on where it was with the next call. OUT/batch.html shows the same, and
OUT/<recording> has the results.
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
from pipeline.batch.manifest import Entry, State, read_manifest, write_manifest
from pipeline.batch.storage import Location, absolute, is_whole, join, listing, lock
from pipeline.batch.workers import Assignment, Job, Needs, Processes, Run, Workers
from pipeline.config import Config
from pipeline.results import REPORT

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Capacity:
    """Recordings that are run at the same time, and where."""

    workers: int | None = None
    """Number; None for as many as the machines have room for, by what each ``needs``."""
    needs: Needs = Needs()
    engine: Engine = "local"
    """Processes of this machine, or tasks of a Ray cluster."""
    address: str | None = None
    """HOST:PORT of the Ray cluster, see ``RayTasks``."""

    def open(self, job: Job, recordings: int) -> Workers:
        """Workers for so many recordings."""
        if self.engine == "ray":
            there = replace(job, dataset=absolute(job.dataset), out=absolute(job.out))
            return RayTasks(there, self.needs, self.workers, self.address)
        return Processes(job, min(self.workers or Processes.room(self.needs), recordings))


@dataclass(frozen=True)
class Event:
    """Something that happened to a recording: it was begun, went on (``running``), or ended."""

    row: Entry
    worker: int
    """Number of the place it happened in, from 0; −1 for a recording that was done before."""
    frames: int = 0
    """Frames that have just been finished."""
    total: int | None = None
    """Frames of the recording, as soon as they are known."""
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
    """Run every recording that is not done, and tell what happens. The failure of one stops no other.

    dataset, out: folders, or URLs of object storage. run, cfg: called in the workers, so they must be
    picklable. retry: how often a recording is tried again whose worker died or had an error that nobody
    foresaw; what the user can mend is not tried again.

    Recordings that are done, with the same settings and from the same files, are left as they are and come
    first. Closing the iterator stops the workers.

    Raises:
        InputError: there are no recordings, results would lie among a recording's own files, ``out`` cannot
            be written, another batch is at work there, or there is no cluster.
    """
    with listing(dataset) as tree:
        folders = find_recordings(tree, within(dataset, tree, out), only)  # before --out is made
        for name, folder in folders.items():
            check_out(dataset, tree, folder, join(out, name))
        with lock(out, "batch"):
            rows = read_manifest(out)
            _cut_off(rows)
            tasks: dict[str, Assignment] = {}
            for name, folder in folders.items():
                row, inputs = rows.get(name, Entry(name)), fingerprint(cfg, folder, tree)
                if row.state == "done" and row.inputs == inputs and _is_there(out, row):
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
                yield from _work_off(pool, tasks, rows, save, retry, event)
            finally:
                pool.stop()
                _cut_off(rows)
                save()


def _is_there(out: Location, row: Entry) -> bool:
    """True when nobody has taken a recording's results away."""
    if isinstance(out, Path):
        return all((out / row.name / file).exists() for file in row.files)
    return is_whole(f"{out}/{row.name}")


def _cut_off(rows: dict[str, Entry]) -> None:
    """Nobody works on any of them: what was begun and has not ended waits."""
    for name, row in rows.items():
        if row.state == "running":
            rows[name] = replace(row, state="pending")


def _work_off(
    pool: Workers,
    tasks: Mapping[str, Assignment],
    rows: dict[str, Entry],
    save: Callable[[], None],
    retry: int,
    event: Callable[..., Event],
) -> Generator[Event, None, None]:
    todo = deque(tasks)
    tries: Counter[str] = Counter()
    busy: dict[int, tuple[str, float]] = {}
    while todo or busy:
        for k in range(len(pool)):
            if k not in busy and todo:
                name = todo.popleft()
                tries[name] += 1
                busy[k] = name, time.monotonic()
                rows[name] = replace(rows[name], state="running", attempts=rows[name].attempts + 1)
                save()
                pool.give(k, replace(tasks[name], attempt=rows[name].attempts))
                yield event(rows[name], k)
        for k, (kind, values) in pool.messages():
            if k not in busy:
                continue  # died between two recordings
            name, begun = busy[k]
            if kind == "progress":
                yield event(rows[name], k, **values)
                continue
            del busy[k]
            seconds = round(time.monotonic() - begun, 1)
            if kind == "done":
                report = f"{name}/{REPORT}"
                rows[name] = replace(
                    rows[name], state="done", error="", seconds=seconds, report=report, **values
                )
            else:
                again = values.pop("again") and tries[name] <= retry
                state: State = "pending" if again else "failed"
                rows[name] = replace(rows[name], state=state, seconds=seconds, **values)
                if again:
                    todo.append(name)
            save()
            yield event(rows[name], k)
