"""Recordings and results on object storage: places given as URLs that fsspec knows, such as s3://bucket/folder.

A run works in a folder of this machine: videos and stores are written piece by piece, which object storage is
slow at. What it reads is fetched before; what it leaves is published when it is finished, ``summary.json``
last, so where that is, all the rest is whole. Until then the folder stays, and the same run on the same
machine, cut off and started again, continues in it.

Object storage has no lock that a crash would release: of two runs at one URL, the second is refused on the
same machine only.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from fsspec.core import url_to_fs

from pipeline.calibrations import is_calibration_place
from pipeline.errors import InputError
from pipeline.files import LOCK, locked, write_text_atomically, writing
from pipeline.results import CALIBRATION, DETECTIONS, REPORT, STORE, SUMMARY, SYNC, drawn_videos

Location = Path | str
"""A folder of this machine, or the URL of one elsewhere."""

_STORES: Final = (f"{STORE}/", f"{DETECTIONS}/")
_LAST: Final = (f"{STORE}/zarr.json", SUMMARY)
"""Without the first, zarr sees no store; nobody reads half of one."""
_SETTINGS: Final = (
    ".toml", ".yaml", ".yml", ".xml", ".xcp", ".mcal", ".calib", ".calibration", ".qca.txt", "cameras.txt",
    "images.txt", "extrinsics.pickle",
)  # fmt: skip
_FETCHED_NS: Final = 0
"""Time of change of what was fetched, until a run changes it."""


def parse_location(text: str) -> Location:
    """Read a folder or URL of the command line."""
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return text.rstrip("/") if "://" in text else Path(text)


def join(where: Location, name: str) -> Location:
    return where / name if isinstance(where, Path) else f"{where}/{name}"


def absolute(where: Location) -> Location:
    return where.resolve() if isinstance(where, Path) else where


class StorageError(InputError):
    """Storage cannot be reached, or refuses; another time it may not."""


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except ImportError as e:
        raise InputError(f"{url}: {e}. For s3:// it is: pip install -e '.[s3]'") from e
    except FileNotFoundError as e:
        raise InputError(f"{url}: there is nothing there ({e})") from e
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise _unreachable(url, e) from e
        raise InputError(
            f"{tempfile.gettempdir()}: {e.strerror}: what is fetched from {url} lies here. Make room, or set "
            "TMPDIR to a folder of a larger disk."
        ) from e
    except Exception as e:  # each kind of storage has errors of its own
        raise _unreachable(url, e) from e


def _unreachable(url: str, e: Exception) -> StorageError:
    return StorageError(
        f"{url}: cannot be reached ({type(e).__name__}: {e}). Look at address and credentials, then run "
        "again."
    )


def read_text(where: Location, name: str) -> str | None:
    """The text of a file; None when there is none. Raises ``InputError``."""
    try:
        if isinstance(where, Path):
            return (where / name).read_text(encoding="utf-8")
        with _reaching(where):
            fs, root = _open(where)
            return str(fs.cat_file(f"{root}/{name}").decode()) if fs.exists(f"{root}/{name}") else None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{join(where, name)}: cannot be read ({e})") from e


def write_text(where: Location, name: str, text: str) -> None:
    """All of it or nothing; names of files in it may be of any bytes. Raises ``InputError``."""
    if isinstance(where, Path):
        write_text_atomically(where / name, text)
        return
    with _reaching(where):
        fs, root = _open(where)
        fs.pipe_file(f"{root}/{name}", text.encode(errors="surrogateescape"))


def is_whole(where: str) -> bool:
    """True when a run has left its results at a URL, and nothing is missing. Raises ``InputError``."""
    with _reaching(where):
        fs, root = _open(where)
        return bool(fs.exists(f"{root}/{SUMMARY}"))


@contextmanager
def lock(where: Location, work: str) -> Iterator[None]:
    """Hold a place alone, as ``locked`` does; a URL on this machine only."""
    folder = _scratch(where) if isinstance(where, str) else where
    with _renamed(folder, where), locked(folder, work):
        yield


@contextmanager
def listing(where: Location) -> Iterator[Path]:
    """A folder with the names of all files that are there; a local one is its own.

    Settings and calibrations are as they are. All else is empty, and its time of change is made of what the
    storage says of the file, so that it changes with it.

    Raises ``InputError`` when it cannot be read.
    """
    if isinstance(where, Path):
        yield where
        return
    with tempfile.TemporaryDirectory(prefix="multispin-") as made:
        tree = Path(made) / where.rpartition("/")[2]
        tree.mkdir()
        with _reaching(where):
            fs, root = _open(where)
            listed = _listed(fs, root, where)
            if not listed:
                raise InputError(f"{where}: there is nothing there")
            for name, told in listed.items():
                file = tree / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
                stamp = hashlib.sha256(repr(sorted(told.items(), key=str)).encode()).digest()
                os.utime(file, ns=(0, int.from_bytes(stamp[:7], "big")))
            _get(fs, root, tree, [name for name in listed if _is_settings(name)])
        with _renamed(tree, where):
            yield tree


def _is_settings(name: str) -> bool:
    """True for a file that settings or a calibration may be in, by its name."""
    lower = name.lower()
    folder = lower.rpartition("/")[0].rpartition("/")[2]
    return lower.endswith(_SETTINGS) or (lower.endswith(".json") and is_calibration_place(folder))


@contextmanager
def fetched(where: Location, names: Collection[str], reader: str) -> Iterator[Path]:
    """The data set as a folder of this machine; of a URL, these files and folders of it.

    reader: has a copy of its own, and takes away what it left when it was killed.

    Raises ``InputError``, ``StorageError`` among them.
    """
    if isinstance(where, Path):
        yield where
        return
    top = _scratch(where, reader, *names)
    with _renamed(top, where), locked(top):
        tree = top / where.rpartition("/")[2]
        shutil.rmtree(tree, ignore_errors=True)
        try:
            with _reaching(where):
                fs, root = _open(where)
                for name in names:
                    at = root if name == "." else f"{root}/{name}"
                    _get(fs, at, tree / name, _listed(fs, at, where))
            with _renamed(tree, where):
                yield tree
        finally:
            shutil.rmtree(top)


@contextmanager
def published(where: Location, key: str, log: str | None = None) -> Iterator[Path]:
    """The folder of this machine to leave results in; those of a URL are published at the end.

    key: stands for what the results are made of: a folder that was left half done is continued by the same
    key only. log: a file that is published even if the work fails, which changes nothing else there.

    Raises ``InputError``: another is at work there; ``StorageError``.
    """
    if isinstance(where, Path):
        with writing(where, "Choose another --out."):
            where.mkdir(parents=True, exist_ok=True)
        yield where
        return
    top = _scratch(where, key)
    folder = top / "results"
    with _renamed(top, where), locked(top):
        had: Collection[str] = ()
        with _reaching(where):
            fs, root = _open(where)
            if fs.exists(f"{root}/{SUMMARY}"):
                shutil.rmtree(folder, ignore_errors=True)
                had = _of_a_run(_listed(fs, root, where), fs.cat_file(f"{root}/{SUMMARY}"), log)
                _get(fs, root, folder, had)
                for name in had:
                    os.utime(folder / name, ns=(_FETCHED_NS, _FETCHED_NS))
        folder.mkdir(exist_ok=True)
        try:
            with _renamed(folder, where):
                yield folder
        except BaseException:
            if log is not None:
                with suppress(Exception):
                    fs.put_file(str(folder / log), f"{root}/{log}")
            if had:  # or it would stay when the results there are removed
                shutil.rmtree(folder)
            raise
        with _reaching(where):
            _publish(folder, had, fs, root, where)
        shutil.rmtree(top)


def _of_a_run(names: Iterable[str], summary: bytes, log: str | None) -> list[str]:
    """Names of the files at a URL that the run has left there which wrote this summary."""
    known = {SUMMARY, REPORT, CALIBRATION, SYNC, log} | drawn_videos(summary)
    return [name for name in names if name in known or name.startswith(_STORES)]


def _publish(folder: Path, had: Collection[str], fs: Any, root: str, url: str) -> None:
    """Leave there what is new or changed in the folder. Taken away is what was fetched from there and is
    gone, and what is inside a store: all else may be anybody's."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != LOCK)
    ours = [p.relative_to(folder).as_posix() for p in files]
    theirs = [name for name in _listed(fs, root, url) if name.rpartition("/")[2] != LOCK]
    old = {name for name in theirs if name in had or name.startswith(_STORES)}.difference(ours)
    both = {*had}.intersection(ours, theirs)
    same = {name for name in both if (folder / name).stat().st_mtime_ns == _FETCHED_NS}
    for name in dict.fromkeys((SUMMARY, *theirs)):  # the summary first
        if name in theirs and (name in _LAST or name in old):
            fs.rm_file(f"{root}/{name}")
    groups = [[name for name in ours if name not in _LAST and name not in same]]
    groups += [[name] for name in _LAST if name in ours]
    for group in groups:
        if group:
            fs.put([str(folder / name) for name in group], [f"{root}/{name}" for name in group])


def _get(fs: Any, root: str, folder: Path, names: Iterable[str]) -> None:
    """Fetch files by their names as seen from ``root``; '' is ``root`` itself."""
    pairs = [(f"{root}/{name}".removesuffix("/"), folder / name) for name in names]
    for parent in {ours.parent for _, ours in pairs}:
        parent.mkdir(parents=True, exist_ok=True)
    if pairs:
        fs.get([theirs for theirs, _ in pairs], [str(ours) for _, ours in pairs])


def _listed(fs: Any, root: str, url: str) -> Mapping[str, Mapping[str, Any]]:
    """Details of each file below ``root``, by its name as seen from there; '' is ``root`` itself."""
    found = {
        path.removeprefix(root).removeprefix("/"): told
        for path, told in fs.find(root, detail=True).items()
        if not path.endswith("/")  # the mark of an empty folder
    }
    for name in found:
        if name and {"", ".", ".."} & {*name.split("/")}:
            raise InputError(f"{url}: {name!r} is no name that a file can have. Rename it.")
    return found


def _open(url: str) -> tuple[Any, str]:
    """The file system and the path in it. Nothing of it is remembered: others write there, too."""
    fs, root = url_to_fs(url, use_listings_cache=False)
    return fs, str(root).rstrip("/")


def _scratch(*words: str) -> Path:
    """A folder of this user's, beside other temporary files (TMPDIR), the same one for the same words."""
    top = Path(tempfile.gettempdir()) / f"multispin-{os.getuid()}"
    top.mkdir(mode=0o700, exist_ok=True)
    if top.is_symlink() or top.stat().st_uid != os.getuid():
        raise InputError(f"{top}: belongs to somebody else. Set TMPDIR to a folder of your own.")
    return top / hashlib.sha256("\n".join(words).encode(errors="surrogateescape")).hexdigest()[:20]


@contextmanager
def _renamed(folder: Path, url: Location) -> Iterator[None]:
    """A user's mistake is told of the place that the user knows."""
    try:
        yield
    except InputError as e:
        raise type(e)(str(e).replace(str(folder), str(url))) from e
