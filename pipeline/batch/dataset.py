"""Recordings of a folder tree or URL: where they are, what a run of them reads, and a digest of that."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.batch.storage import (
    Location,
    absolute,
    fetched,
    join,
    listing,
    parse_location,
    published,
)
from pipeline.config import Config, named_files
from pipeline.errors import InputError
from pipeline.files import reading
from pipeline.layout import is_recording, sources
from pipeline.recording import Recording, find_recording, open_videos
from pipeline.results import DETECTIONS, INSIDE, REDRAWN, STORE, check_place


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
        if here == results and is_recording(folder, dataset):
            raise InputError(f"--out {out}: is a recording's own folder. Choose {folder / INSIDE}.")
        if here in entered or here == results:
            return
        entered.add(here)  # links may go in circles
        try:
            if (folder / "zarr.json").exists() or _is_results(folder):
                return
            is_one = is_recording(folder, dataset)
        except (InputError, OSError) as e:
            if isinstance(e, OSError) and folder == dataset:
                raise
            is_one = True  # with something wrong, which will be said of it
        if is_one:
            found[folder.relative_to(dataset).as_posix() if folder != dataset else here.name] = folder
            return
        for below in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            look(below)

    with reading(dataset):
        look(dataset)
    if not found:
        raise InputError(
            f"{dataset}: no recordings found; one is a folder with videos/ or keypoints/<camera>/*.json, and "
            "mostly a calibration there or in a folder above"
        )
    chosen = {name: folder for name, folder in found.items() if fnmatchcase(name, only)}
    if not chosen:
        shown = ", ".join([*found][:5]) + (", ..." if len(found) > 5 else "")
        raise InputError(f"--only {only}: none of the {len(found)} recordings is called so; they are {shown}")
    return chosen


def _is_results(folder: Path) -> bool:
    """True for the OUT of a run: a store, files and drawings, without the folders that keypoints lie in."""
    folders = {path.name for path in folder.iterdir() if path.is_dir()}
    return STORE in folders and folders <= {STORE, DETECTIONS, REDRAWN}


@contextmanager
def opened(dataset: Location, tree: Path, folder: Path, reader: str | None = None) -> Iterator[Recording]:
    """A recording of the data set whose ``listing`` is ``tree``. Its files are there until the end.

    reader: has a copy of its own, see ``pipeline.batch.storage.fetched``; None for this process.

    Raises ``InputError``.
    """
    # Of a local one, a calibration above the tree is read where it lies.
    read = () if isinstance(dataset, Path) else needed(folder, tree)
    names = [path.relative_to(tree).as_posix() for path in read]
    with fetched(dataset, names, reader or f"process {os.getpid()}") as top:
        yield find_recording(top / folder.relative_to(tree), inherit=top)


def are_videos(given: Sequence[str]) -> bool:
    """True where a recording is given by its video files. Raises ``InputError`` where that cannot be seen."""
    source = parse_location(given[0])
    if len(given) > 1 or not isinstance(source, Path):
        return len(given) > 1
    with reading(source):
        return source.is_file()


@contextmanager
def opened_for_run(given: Sequence[str], out: Location, cfg: Config) -> Iterator[tuple[Recording, Path]]:
    """A recording, by its folder or URL or by its video files, and the folder to leave its results in.

    Raises ``InputError``.
    """
    source = parse_location(given[0])
    if are_videos(given):
        recording = open_videos([Path(file) for file in given])
        if isinstance(out, Path):
            check_place(out, recording.path, recording.files)
        with published(out, _digest(cfg, [f"{file} {_stamp(file)}" for file in recording.files])) as folder:
            yield recording, folder
        return
    with listing(source) as tree:
        check_out(source, tree, tree, out)
        with (
            opened(source, tree, tree, f"run {absolute(out)}") as recording,
            published(out, fingerprint(cfg, tree, tree) if isinstance(out, str) else "") as folder,
        ):
            yield recording, folder


def within(dataset: Location, tree: Path, out: Location) -> Path | None:
    """Path of ``out`` as seen by the tree of the data set; None where neither can hold the other."""
    if isinstance(out, Path) or isinstance(dataset, Path):
        return out if isinstance(out, Path) and isinstance(dataset, Path) else None
    if f"{out}/".startswith(f"{dataset}/"):
        return tree / out[len(dataset) + 1 :]
    return tree.parent if dataset.startswith(f"{out}/") else None


def check_out(dataset: Location, tree: Path, folder: Path, out: Location) -> None:
    """Raise ``InputError`` when results in ``out`` would lie among the files of the recording ``folder``."""
    here = within(dataset, tree, out)
    if here is not None:
        check_place(here, folder, needed(folder, tree), out)


def preview(
    dataset: Location,
    tree: Path,
    folders: Mapping[str, Path],
    out: Location,
    inspect: Callable[[Recording], Recording],
) -> dict[str, Recording | str]:
    """Recordings by name as a batch would find and ``inspect`` them, or what is wrong with them."""
    found: dict[str, Recording | str] = {}
    for name, folder in folders.items():
        try:
            check_out(dataset, tree, folder, join(out, name))
            with opened(dataset, tree, folder) as recording:
                found[name] = inspect(recording)
        except InputError as e:
            found[name] = str(e)
    return found


def fingerprint(cfg: Config, folder: Path, dataset: Path) -> str:
    """Digest of the configuration and of all that a run reads, so that no result outlives its causes.

    Settings and cameras count by what they say; videos, keypoints and files that the configuration names, as
    weights, by name, size and time of change. What cannot be read is passed over: the run will tell.
    """
    try:
        inputs = [f"{os.path.relpath(path, dataset)} {_stamp(path)}" for path in sources(folder, dataset)]
    except (InputError, OSError) as e:
        inputs = [str(e)]
    return _digest(cfg, inputs)


def _digest(cfg: Config, inputs: Sequence[str]) -> str:
    parts = [json.dumps(cfg.model_dump(mode="json"), sort_keys=True)]
    parts += [_stamp(file) for file in named_files(cfg) if file.is_file()]
    parts += inputs
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]


def needed(folder: Path, tree: Path) -> list[Path]:
    """Files and folders to fetch for a run; where they cannot be told, enough for the run to tell why."""
    try:
        return [*sources(folder, tree)]
    except (InputError, OSError):
        above = [place for place in folder.parents if place.is_relative_to(tree)]
        return [folder, *(file for place in above for file in place.iterdir() if file.is_file())]


def _stamp(path: Path) -> str:
    """Text that changes when a file is written, or one of the files of a folder, at a glance at each."""
    if path.suffix.lower() in (".yaml", ".yml", ".toml"):
        with suppress(OSError):
            return hashlib.sha256(path.read_bytes()).hexdigest()
    if not path.is_dir():
        return _age(path)
    total = 0  # a sum does not depend on the order, and a million names need not be kept
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                line = f"{entry.name} {_age(entry)}".encode(errors="surrogateescape")
                total += int.from_bytes(hashlib.sha256(line).digest()[:16], "little")
    return f"{total:x}"


def _age(file: Path | os.DirEntry[str]) -> str:
    try:
        found = file.stat()
    except OSError as e:  # as of a link to nowhere
        return str(e.strerror)
    return f"{found.st_size} {found.st_mtime_ns}"
