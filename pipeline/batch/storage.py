"""Recordings and results on object storage, by URLs that fsspec knows, such as s3://bucket/folder.

A run works in a local folder, as object storage is slow at writing videos and stores piece by piece. Inputs
are fetched before it; results are published after it, ``summary.json`` last: where that exists, all else is
complete. The local folder is kept until then: an interrupted run continues in it on the same machine.

Object storage has no lock that a crash releases: a second run at the same URL is refused on the same machine
only.
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
"""Local folder, or URL of a remote one."""

_STORES: Final = (f"{STORE}/", f"{DETECTIONS}/")
_PUBLISHED_LAST: Final = (f"{STORE}/zarr.json", SUMMARY)
"""Without the first, zarr sees no store, so an incomplete one is never read."""
_SETTINGS_SUFFIXES: Final = (
    ".toml", ".yaml", ".yml", ".xml", ".xcp", ".mcal", ".calib", ".calibration", ".qca.txt", "cameras.txt",
    "images.txt", "extrinsics.pickle",
)  # fmt: skip
_FETCHED_NS: Final = 0
"""Modification time that fetched files get, to notice which the run has changed."""


def parse_location(text: str) -> Location:
    """Parse a folder or URL of the command line."""
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return text.rstrip("/") if "://" in text else Path(text)


def join(where: Location, name: str) -> Location:
    return where / name if isinstance(where, Path) else f"{where}/{name}"


def absolute(where: Location) -> Location:
    return where.resolve() if isinstance(where, Path) else where


class StorageError(InputError):
    """Storage cannot be reached, or refuses a request; a retry may succeed."""


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Turn errors of storage into ``InputError`` or ``StorageError`` with the URL."""
    try:
        yield
    except InputError:
        raise
    except ImportError as e:
        raise InputError(f"{url}: {e}. For s3://: pip install -e '.[s3]'") from e
    except FileNotFoundError as e:
        raise InputError(f"{url}: no files at this URL ({e})") from e
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise _unreachable(url, e) from e
        raise InputError(
            f"{tempfile.gettempdir()}: {e.strerror}: files of {url} are fetched to here. Make room, or set "
            "TMPDIR to a folder of a larger disk."
        ) from e
    except Exception as e:  # each kind of storage has errors of its own
        raise _unreachable(url, e) from e


def _unreachable(url: str, e: Exception) -> StorageError:
    return StorageError(
        f"{url}: cannot be reached ({type(e).__name__}: {e}). Check address and credentials, then run again."
    )


def read_text(where: Location, name: str) -> str | None:
    """Read a text file; None where it does not exist. Raises ``InputError``."""
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
    """Write a text, in which file names may be of any bytes, atomically. Raises ``InputError``."""
    if isinstance(where, Path):
        write_text_atomically(where / name, text)
        return
    with _reaching(where):
        fs, root = _open(where)
        fs.pipe_file(f"{root}/{name}", text.encode(errors="surrogateescape"))


def is_whole(where: str) -> bool:
    """True where a URL has the complete results of a run. Raises ``InputError``."""
    with _reaching(where):
        fs, root = _open(where)
        return bool(fs.exists(f"{root}/{SUMMARY}"))


@contextmanager
def lock(where: Location, work: str) -> Iterator[None]:
    """Lock a folder as ``locked`` does; a URL for this machine only."""
    folder = _scratch(where) if isinstance(where, str) else where
    with _renamed(folder, where), locked(folder, work):
        yield


@contextmanager
def listing(where: Location) -> Iterator[Path]:
    """Local folder with the file tree of a location; a local location itself.

    Of a URL, settings and calibrations are fetched; other files are empty, with a modification time made from
    the details that storage has of the file. Raises ``InputError`` where it is unreadable.
    """
    if isinstance(where, Path):
        yield where
        return
    with tempfile.TemporaryDirectory(prefix="multispin-") as top:
        tree = Path(top) / where.rpartition("/")[2]
        tree.mkdir()
        with _reaching(where):
            fs, root = _open(where)
            files = _list_files(fs, root, where)
            if not files:
                raise InputError(f"{where}: no files at this URL")
            for name, details in files.items():
                file = tree / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
                stamp = hashlib.sha256(repr(sorted(details.items(), key=str)).encode()).digest()
                os.utime(file, ns=(0, int.from_bytes(stamp[:7], "big")))
            _get(fs, root, tree, [name for name in files if _is_settings(name)])
        with _renamed(tree, where):
            yield tree


def _is_settings(name: str) -> bool:
    """True for the name of a file that may hold settings or a calibration."""
    lower = name.lower()
    folder = lower.rpartition("/")[0].rpartition("/")[2]
    return lower.endswith(_SETTINGS_SUFFIXES) or (lower.endswith(".json") and is_calibration_place(folder))


@contextmanager
def fetched(where: Location, names: Collection[str], reader: str) -> Iterator[Path]:
    """Local folder of the data set; of a URL, with these files and folders fetched for the block.

    reader: owner of the copy, which replaces that of an earlier killed block. Raises ``InputError``, also
    ``StorageError``.
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
                    path = root if name == "." else f"{root}/{name}"
                    _get(fs, path, tree / name, _list_files(fs, path, where))
            with _renamed(tree, where):
                yield tree
        finally:
            shutil.rmtree(top)


@contextmanager
def published(where: Location, key: str, log: str | None = None) -> Iterator[Path]:
    """Local folder for results, which are published to a URL at the end of the block.

    key: digest of what the results are made from; the folder of an interrupted block is continued by the same
    key only. log: file that is published after a failed block, too, and then alone.

    Raises ``InputError`` where another process works there, and ``StorageError``.
    """
    if isinstance(where, Path):
        with writing(where, "Choose another --out."):
            where.mkdir(parents=True, exist_ok=True)
        try:
            yield where
        except InputError:
            with suppress(OSError):  # it is left where anything is in it
                where.rmdir()
            raise
        return
    top = _scratch(where, key)
    folder = top / "results"
    with _renamed(top, where), locked(top):
        earlier: Collection[str] = ()  # files that an earlier run has published
        with _reaching(where):
            fs, root = _open(where)
            if fs.exists(f"{root}/{SUMMARY}"):
                shutil.rmtree(folder, ignore_errors=True)
                earlier = _results_of(_list_files(fs, root, where), fs.cat_file(f"{root}/{SUMMARY}"), log)
                _get(fs, root, folder, earlier)
                for name in earlier:
                    os.utime(folder / name, ns=(_FETCHED_NS, _FETCHED_NS))
        folder.mkdir(exist_ok=True)
        try:
            with _renamed(folder, where):
                yield folder
        except BaseException:
            if log is not None:
                with suppress(Exception):
                    fs.put_file(str(folder / log), f"{root}/{log}")
            if earlier:  # the copy must not outlive results that are removed from the URL
                shutil.rmtree(folder)
            raise
        with _reaching(where):
            _publish(folder, earlier, fs, root, where)
        shutil.rmtree(top)


def _results_of(names: Iterable[str], summary: bytes, log: str | None) -> list[str]:
    """Names of the files at a URL that are results of the run with this summary."""
    known = {SUMMARY, REPORT, CALIBRATION, SYNC, log} | drawn_videos(summary)
    return [name for name in names if name in known or name.startswith(_STORES)]


def _publish(folder: Path, earlier: Collection[str], fs: Any, root: str, url: str) -> None:
    """Upload new and changed files of the folder.

    Files of the earlier run or its stores that the folder lacks are removed; others may be the user's.
    """
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != LOCK)
    local = [p.relative_to(folder).as_posix() for p in files]
    remote = [name for name in _list_files(fs, root, url) if name.rpartition("/")[2] != LOCK]
    obsolete = {name for name in remote if name in earlier or name.startswith(_STORES)}.difference(local)
    both = {*earlier}.intersection(local, remote)
    unchanged = {name for name in both if (folder / name).stat().st_mtime_ns == _FETCHED_NS}
    for name in dict.fromkeys((SUMMARY, *remote)):  # the summary first
        if name in remote and (name in _PUBLISHED_LAST or name in obsolete):
            fs.rm_file(f"{root}/{name}")
    groups = [[name for name in local if name not in _PUBLISHED_LAST and name not in unchanged]]
    groups += [[name] for name in _PUBLISHED_LAST if name in local]
    for group in groups:
        if group:
            fs.put([str(folder / name) for name in group], [f"{root}/{name}" for name in group])


def _get(fs: Any, root: str, folder: Path, names: Iterable[str]) -> None:
    """Fetch files by names relative to ``root``; '' is ``root`` itself."""
    pairs = [(f"{root}/{name}".removesuffix("/"), folder / name) for name in names]
    for parent in {local.parent for _, local in pairs}:
        parent.mkdir(parents=True, exist_ok=True)
    if pairs:
        fs.get([remote for remote, _ in pairs], [str(local) for _, local in pairs])


def _list_files(fs: Any, root: str, url: str) -> Mapping[str, Mapping[str, Any]]:
    """Details of each file below ``root``, by its relative name; '' is ``root`` itself."""
    files = {
        path.removeprefix(root).removeprefix("/"): details
        for path, details in fs.find(root, detail=True).items()
        if not path.endswith("/")  # the mark of an empty folder
    }
    for name in files:
        if name and {"", ".", ".."} & {*name.split("/")}:
            raise InputError(f"{url}: {name!r} is not a possible file name. Rename it.")
    return files


def _open(url: str) -> tuple[Any, str]:
    """File system of a URL, without a cache as others write there, too, and the path in it."""
    fs, root = url_to_fs(url, use_listings_cache=False)
    return fs, str(root).rstrip("/")


def _scratch(*words: str) -> Path:
    """Temporary folder (TMPDIR) of this user, the same for the same words."""
    top = Path(tempfile.gettempdir()) / f"multispin-{os.getuid()}"
    top.mkdir(mode=0o700, exist_ok=True)
    if top.is_symlink() or top.stat().st_uid != os.getuid():
        raise InputError(f"{top}: belongs to another user. Set TMPDIR to a folder of your own.")
    return top / hashlib.sha256("\n".join(words).encode(errors="surrogateescape")).hexdigest()[:20]


@contextmanager
def _renamed(folder: Path, url: Location) -> Iterator[None]:
    """Replace a local folder by its URL in the messages of ``InputError``."""
    try:
        yield
    except InputError as e:
        raise type(e)(str(e).replace(str(folder), str(url))) from e
