"""Recordings of a folder tree or URL: their folders, the files that a run reads, and a digest of these."""

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
    """Find the recordings of a folder tree, sorted by name, but none inside a recording or in ``out``.

    only: shell pattern that names must match; ``*`` matches slashes, too. Raises ``InputError`` without any.
    """
    if not dataset.is_dir():
        raise InputError(f"{dataset}: no such folder")
    results = out.resolve() if out is not None else None
    if dataset.resolve() == results:
        raise InputError(f"--out is the data set {dataset} itself. Choose another, which may be inside.")
    recordings: dict[str, Path] = {}
    visited: set[Path] = set()

    def search(folder: Path) -> None:
        resolved = folder.resolve()
        if resolved == results and is_recording(folder, dataset):
            raise InputError(f"--out {out}: is a recording's own folder. Choose {folder / INSIDE}.")
        if resolved in visited or resolved == results:
            return
        visited.add(resolved)  # links may be circular
        try:
            if (folder / "zarr.json").exists() or _is_results(folder):
                return
            is_one = is_recording(folder, dataset)
        except (InputError, OSError) as e:
            if isinstance(e, OSError) and folder == dataset:
                raise
            is_one = True  # a faulty one: its run reports the fault
        if is_one:
            name = folder.relative_to(dataset).as_posix() if folder != dataset else resolved.name
            recordings[name] = folder
            return
        for below in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            search(below)

    with reading(dataset):
        search(dataset)
    if not recordings:
        raise InputError(
            f"{dataset}: no recordings found; one is a folder with videos/ or keypoints/<camera>/*.json, and "
            "mostly a calibration there or in a folder above"
        )
    selected = {name: folder for name, folder in recordings.items() if fnmatchcase(name, only)}
    if not selected:
        names = ", ".join([*recordings][:5]) + (", ..." if len(recordings) > 5 else "")
        raise InputError(f"--only {only}: matches none of the {len(recordings)} recordings: {names}")
    return selected


def _is_results(folder: Path) -> bool:
    """True for OUT of a run: its folders are those of results, a store among them."""
    folders = {path.name for path in folder.iterdir() if path.is_dir()}
    return STORE in folders and folders <= {STORE, DETECTIONS, REDRAWN}


@contextmanager
def opened(dataset: Location, tree: Path, folder: Path, reader: str | None = None) -> Iterator[Recording]:
    """Open a recording of the data set whose ``listing`` is ``tree``, with its files fetched for the block.

    reader: owner of the fetched copy, see ``fetched``; None: this process. Raises ``InputError``.
    """
    # A local data set is read in place, with calibrations above the tree.
    read = () if isinstance(dataset, Path) else needed(folder, tree)
    names = [path.relative_to(tree).as_posix() for path in read]
    with fetched(dataset, names, reader or f"process {os.getpid()}") as top:
        yield find_recording(top / folder.relative_to(tree), inherit=top)


def are_videos(given: Sequence[str]) -> bool:
    """True where a recording is given by its video files. Raises ``InputError`` for an unreadable path."""
    source = parse_location(given[0])
    if len(given) > 1 or not isinstance(source, Path):
        return len(given) > 1
    with reading(source):
        return source.is_file()


@contextmanager
def opened_for_run(given: Sequence[str], out: Location, cfg: Config) -> Iterator[tuple[Recording, Path]]:
    """Open a recording by its folder, URL or video files; also gives the local folder for its results.

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
    """Path of ``out`` in terms of the data set's local tree; None where neither can contain the other."""
    if isinstance(out, Path) or isinstance(dataset, Path):
        return out if isinstance(out, Path) and isinstance(dataset, Path) else None
    if f"{out}/".startswith(f"{dataset}/"):
        return tree / out[len(dataset) + 1 :]
    return tree.parent if dataset.startswith(f"{out}/") else None


def check_out(dataset: Location, tree: Path, folder: Path, out: Location) -> None:
    """Raise ``InputError`` where results in ``out`` would lie among the files of the recording ``folder``."""
    path = within(dataset, tree, out)
    if path is not None:
        check_place(path, folder, needed(folder, tree), out)


def preview(
    dataset: Location,
    tree: Path,
    folders: Mapping[str, Path],
    out: Location,
    inspect: Callable[[Recording], Recording],
) -> dict[str, Recording | str]:
    """Open and ``inspect`` recordings as a batch would: recordings by name, or their errors."""
    recordings: dict[str, Recording | str] = {}
    for name, folder in folders.items():
        try:
            check_out(dataset, tree, folder, join(out, name))
            with opened(dataset, tree, folder) as recording:
                recordings[name] = inspect(recording)
        except InputError as e:
            recordings[name] = str(e)
    return recordings


def fingerprint(cfg: Config, folder: Path, dataset: Path) -> str:
    """Digest of the configuration and of all files that a run reads.

    Settings and calibrations count by content; videos, keypoints and files that the configuration names, such
    as weights, by name, size and modification time. Unreadable files are left to the run to report.
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
    """Files and folders that a run reads; of a faulty recording, enough for the run to report the fault."""
    try:
        return [*sources(folder, tree)]
    except (InputError, OSError):
        above = [place for place in folder.parents if place.is_relative_to(tree)]
        return [folder, *(file for place in above for file in place.iterdir() if file.is_file())]


def _stamp(path: Path) -> str:
    """Text that changes with a file or the files of a folder: content of settings, else size and time."""
    if path.suffix.lower() in (".yaml", ".yml", ".toml"):
        with suppress(OSError):
            return hashlib.sha256(path.read_bytes()).hexdigest()
    if not path.is_dir():
        return _age(path)
    total = 0  # a sum is independent of order, and keeps no list of a million names
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                line = f"{entry.name} {_age(entry)}".encode(errors="surrogateescape")
                total += int.from_bytes(hashlib.sha256(line).digest()[:16], "little")
    return f"{total:x}"


def _age(file: Path | os.DirEntry[str]) -> str:
    """Size and modification time of a file, as text."""
    try:
        stat = file.stat()
    except OSError as e:  # such as of a broken link
        return str(e.strerror)
    return f"{stat.st_size} {stat.st_mtime_ns}"
