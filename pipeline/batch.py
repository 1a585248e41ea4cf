"""Many recordings: found in a folder tree, run by workers, and remembered in a manifest.

OUT/batch.json says of each recording whether it is pending, running, done or failed. It is replaced whole at
every change, so whoever is killed at any moment leaves a true one; what is ``running`` in it then was cut
off, counts as pending, and goes on where it was with the next call. OUT/batch.html shows the same, and
OUT/<recording> has the results.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from pipeline.cluster import RayTasks
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.layout import is_recording, sources
from pipeline.recording import Recording, find_recording
from pipeline.storage import Place, absolute, held, is_whole, outline, read_text, reading, write_text
from pipeline.workers import LOG, USUAL_NEEDS, Job, Needs, Processes, Run, Task, Workers

MANIFEST: Final = "batch.json"
PAGE: Final = "batch.html"
State = Literal["pending", "running", "done", "failed"]
Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Row:
    """One recording in the manifest."""

    name: str
    """Its folder as seen from the data set, with slashes; also its folder in OUT."""
    state: State = "pending"
    inputs: str = ""
    """Digest of the configuration and of all that is read: see ``fingerprint``."""
    attempts: int = 0
    error: str = ""
    frames: int | None = None
    fps: float | None = None
    """Of the recording."""
    seconds: float | None = None
    """That the last attempt took."""
    reprojection_px: float | None = None
    """Median over all cameras."""
    warnings: tuple[str, ...] = ()
    """Of the recording and of its run; of the recording only where the run failed."""
    files: tuple[str, ...] = ()
    """What the run has left, as seen from the recording's folder in OUT."""
    report: str = ""
    """The report page, as seen from OUT."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a recording: it was begun, went on (``running``), or ended."""

    row: Row
    worker: int
    """Number of the place it happened in, from 0; −1 for a recording that was done before."""
    frames: int = 0
    """How many have just been finished."""
    total: int | None = None
    """How many there are, as soon as that is known."""
    recordings: int = 0
    """How many the batch has."""


def find_recordings(dataset: Path, out: Path | None = None, only: str = "*") -> dict[str, Path]:
    """Recordings in a folder tree, by name, in order. Nothing is looked for inside a recording or in ``out``.

    only: a pattern as of a shell that names must match, ``*`` for any characters, slashes too.

    Raises ``InputError`` when there are none.
    """
    if not dataset.is_dir():
        raise InputError(f"{dataset}: there is no such folder")
    results = out.resolve() if out is not None else None
    if dataset.resolve() == results:
        raise InputError(f"--out is the data set {dataset} itself. Choose another, which may be inside.")
    found: dict[str, Path] = {}
    entered: set[Path] = set()

    def look(folder: Path) -> None:
        here = folder.resolve()
        if here in entered or here == results:
            return
        entered.add(here)  # links may go in circles
        try:
            if (folder / "zarr.json").exists():
                return
            is_one = is_recording(folder, dataset)
        except InputError:
            is_one = True  # with something wrong, which will be said of it
        except OSError:
            if folder == dataset:
                raise
            is_one = True
        if is_one:
            found[folder.relative_to(dataset).as_posix() if folder != dataset else here.name] = folder
            return
        for inside in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            look(inside)

    try:
        look(dataset)
    except OSError as e:
        raise InputError(f"{e.filename or dataset}: cannot be read ({e.strerror or e})") from e
    if not found:
        raise InputError(
            f"{dataset}: no recordings found; one is a folder with keypoints/<camera>/*.json, and a "
            "calibration there or in a folder above"
        )
    chosen = {name: folder for name, folder in found.items() if fnmatchcase(name, only)}
    if not chosen:
        shown = ", ".join([*found][:5]) + (", ..." if len(found) > 5 else "")
        raise InputError(f"--only {only}: none of the {len(found)} recordings is called so; they are {shown}")
    return chosen


def process(
    dataset: Place,
    out: Place,
    cfg: Config,
    run: Run,
    *,
    workers: int | None = None,
    needs: Needs = USUAL_NEEDS,
    engine: Engine = "local",
    address: str | None = None,
    retry: int = 2,
    only: str = "*",
) -> Generator[Event, None, None]:
    """Run every recording that is not done, and tell what happens. The failure of one stops no other.

    dataset, out: folders, or URLs of object storage (see ``pipeline/storage.py``). run, cfg: called in the
    workers, so they must be picklable. workers: recordings at the same time; None for as many as the machines
    have room for, by what each ``needs``. engine: processes of this machine, or tasks of the Ray cluster at
    ``address`` (see ``RayTasks``). retry: how often a recording is tried again whose worker died or had an
    error that nobody foresaw; what the user can mend is not tried again.

    Recordings that are done, with the same settings and from the same files, are left as they are and come
    first. Closing the iterator stops the workers.

    Raises:
        InputError: there are no recordings, ``out`` cannot be written, another batch is at work there, or
            there is no cluster.
    """
    with outline(dataset) as tree:
        folders = find_recordings(tree, within(dataset, tree, out), only)  # before --out is made
        with held(out, "batch"):
            rows = read_manifest(out)
            _cut_off(rows)
            tasks: dict[str, Task] = {}
            for name, folder in folders.items():
                row, inputs = rows.get(name, Row(name)), fingerprint(cfg, folder, tree)
                if row.state == "done" and row.inputs == inputs and _is_there(out, row):
                    continue
                rows[name] = Row(name, inputs=inputs, attempts=row.attempts)
                needed = tuple(path.relative_to(tree).as_posix() for path in _needed(folder, tree))
                tasks[name] = Task(name, folder.relative_to(tree).as_posix(), needed, inputs)
            save = partial(_write, out, dataset, rows)
            save()
            event = partial(Event, recordings=len(folders))
            yield from (event(rows[name], -1) for name in folders if name not in tasks)
            if not tasks:
                return
            pool: Workers
            if engine == "ray":
                pool = RayTasks(Job(absolute(dataset), absolute(out), run, cfg), needs, workers, address)
            else:
                job = Job(dataset, out, run, cfg)
                pool = Processes(job, min(workers or Processes.room(needs), len(tasks)))
            try:
                yield from _work_off(pool, tasks, rows, save, retry, event)
            finally:
                pool.stop()
                _cut_off(rows)
                save()


@contextmanager
def opened(dataset: Place, tree: Path, folder: Path, reader: str | None = None) -> Iterator[Recording]:
    """A recording of the data set whose outline is ``tree``. Its files are there until the end.

    reader: has a copy of its own, see ``pipeline.storage.reading``; None for this process.

    Raises ``InputError``.
    """
    names = [path.relative_to(tree).as_posix() for path in _needed(folder, tree)]
    with reading(dataset, names, reader or f"process {os.getpid()}") as top:
        yield find_recording(top / folder.relative_to(tree), inherit=top)


def within(dataset: Place, tree: Path, out: Place) -> Path | None:
    """Where ``out`` is in the tree of the data set, if it is inside."""
    if isinstance(out, Path) or isinstance(dataset, Path):
        return out if isinstance(out, Path) and isinstance(dataset, Path) else None
    return tree / out[len(dataset) + 1 :] if f"{out}/".startswith(f"{dataset}/") else None


def _is_there(out: Place, row: Row) -> bool:
    """Whether nobody has taken a recording's results away."""
    if isinstance(out, Path):
        return all((out / row.name / file).exists() for file in row.files)
    return is_whole(f"{out}/{row.name}")


def _cut_off(rows: dict[str, Row]) -> None:
    """Nobody works on any of them: what was begun and has not ended waits."""
    for name, row in rows.items():
        if row.state == "running":
            rows[name] = replace(row, state="pending")


def _work_off(
    pool: Workers,
    tasks: Mapping[str, Task],
    rows: dict[str, Row],
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
                report = f"{name}/report.html"
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


def read_manifest(out: Place) -> dict[str, Row]:
    """Rows by name, of every recording that was ever worked on; none where there is no manifest.

    Raises ``InputError`` when it is damaged or cannot be read.
    """
    text = read_text(out, MANIFEST)
    if text is None:
        return {}
    try:
        rows = TypeAdapter(list[Row]).validate_python(json.loads(text)["recordings"])
    except (ValueError, KeyError, TypeError, ValidationError) as e:
        raise InputError(
            f"{out}/{MANIFEST}: cannot be read as the manifest of a batch ({type(e).__name__}). Remove it: "
            "results that are there will be found complete and taken over."
        ) from e
    return {row.name: row for row in rows}


def _write(out: Place, dataset: Place, rows: Mapping[str, Row]) -> None:
    listed = [rows[name] for name in sorted(rows)]
    states = Counter(row.state for row in listed)
    where = str(absolute(dataset))
    document = {"dataset": where, "states": dict(states), "recordings": [asdict(row) for row in listed]}
    write_text(out, MANIFEST, json.dumps(document, indent=1, allow_nan=False) + "\n")
    write_text(out, PAGE, page(where.rpartition("/")[2], listed))


_STYLE: Final = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; vertical-align: top; padding: .3rem .7rem; border-bottom: 1px solid #8884; }
tr > :first-child, tr > :nth-child(2), tr > :last-child { text-align: left; }
td:last-child { max-width: 40rem; overflow-wrap: anywhere; }
td p { margin: 0; white-space: pre-wrap; }
.done td:nth-child(2) { color: #1a7f37; }
.failed td:nth-child(2) { font-weight: 600; }
.failed td:nth-child(2), .error { color: #cf222e; }
"""


def page(title: str, rows: Sequence[Row]) -> str:
    """The rows as an HTML page that opens from disk; names and messages are escaped."""

    def number(value: float | None, digits: int = 0) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    def link(path: str, text: str) -> str:
        return f'<a href="{html.escape(quote(os.fsencode(path)))}">{text}</a>'

    def line(row: Row) -> str:
        name = html.escape(row.name)
        if row.report:
            name = link(row.report, name)
        notes = f'<p class="error">{html.escape(row.error)}</p>' if row.error else ""
        notes += "".join(f"<p>{html.escape(text)}</p>" for text in row.warnings)
        if row.attempts:
            notes += f"<p>{link(f'{row.name}/{LOG}', LOG)}</p>"
        cells = (
            number(row.frames), number(row.fps, 2), number(row.reprojection_px, 1), number(row.seconds),
            str(row.attempts or ""),
        )  # fmt: skip
        return (
            f'<tr class="{row.state}"><td>{name}</td><td>{row.state}</td>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + f"<td>{notes}</td></tr>"
        )

    states = Counter(row.state for row in rows)
    counts = ", ".join(f"{states[s]} {s}" for s in ("done", "running", "pending", "failed") if states[s])
    heads = ("recording", "state", "frames", "fps", "reprojection, px", "seconds", "attempts", "messages")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{html.escape(title)} – Multi-SPIN</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p>{counted(len(rows), "recording")}: {counts}. \
Written {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}.</p>
<table>
<tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>
{chr(10).join(map(line, rows))}
</table>
</body>
</html>
"""


def counted(count: int, noun: str) -> str:
    """As ``1 recording``, ``2 recordings``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def fingerprint(cfg: Config, folder: Path, dataset: Path) -> str:
    """Digest of the configuration and of all that a run reads, so that no result outlives its causes.

    Settings and cameras count by what they say; videos, keypoints and files that the configuration names, as
    weights, by name, size and time of change. What cannot be read is passed over: the run will tell.
    """
    values = cfg.model_dump(mode="json")
    parts = [json.dumps(values, sort_keys=True)]
    parts += [_stamp(Path(text)) for text in _texts(values) if _is_file(text)]
    try:
        parts += [f"{os.path.relpath(path, dataset)} {_stamp(path)}" for path in sources(folder, dataset)]
    except (InputError, OSError) as e:
        parts.append(str(e))
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]


def _needed(folder: Path, tree: Path) -> list[Path]:
    """What must be fetched for a run; where that cannot be told, enough for the run to tell why."""
    try:
        return [*sources(folder, tree)]
    except (InputError, OSError):
        above = [place for place in folder.parents if place.is_relative_to(tree)]
        return [folder, *(file for place in above for file in place.iterdir() if file.is_file())]


def _texts(values: object) -> Iterator[str]:
    """All texts inside dictionaries and lists."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _texts(value)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long to be a name
        return False


def _stamp(path: Path) -> str:
    """What changes when a file is written, or one of the JSON files of a folder, at a glance at each."""
    if path.suffix.lower() in (".yaml", ".yml", ".toml"):
        with suppress(OSError):
            return hashlib.sha256(path.read_bytes()).hexdigest()
    if not path.is_dir():
        return _age(path)
    total = 0  # a sum does not depend on the order, and a million names need not be kept
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.lower().endswith(".json"):
                line = f"{entry.name} {_age(entry)}".encode(errors="surrogateescape")
                total += int.from_bytes(hashlib.sha256(line).digest()[:16], "little")
    return f"{total:x}"


def _age(file: Path | os.DirEntry[str]) -> str:
    try:
        found = file.stat()
    except OSError as e:  # as of a link to nowhere
        return str(e.strerror)
    return f"{found.st_size} {found.st_mtime_ns}"
