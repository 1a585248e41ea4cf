"""Atomic writes, locked folders, and errors of files in plain words."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from pipeline.errors import InputError, shortened

LOCK: Final = ".lock"
"""Name of the lock file in a folder."""
LOCK_TIMEOUT_S: Final = 2.0
"""Workers of a killed batch end a moment after it."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn ``OSError`` into ``InputError`` with the name of the file, or else ``path``."""
    try:
        yield
    except OSError as e:
        raise InputError(f"{e.filename or path}: cannot be read ({e.strerror or e})") from e


@contextmanager
def decoding(path: Path | str, remedy: str, content: str = "") -> Iterator[None]:
    """Turn every error into ``InputError``: the file, or its ``content``, is damaged or something else.

    remedy: sentence on what to do. An ``InputError`` passes.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as e:  # libraries raise anything for damaged files
        reason = shortened(" ".join(f"{type(e).__name__}: {e}".split()), 500)
        raise InputError(f"{path}: {content and f'{content} '}cannot be read ({reason}). {remedy}") from e


@contextmanager
def writing(path: Path, advice: str) -> Iterator[None]:
    """Turn ``OSError`` into ``InputError``: ``path`` cannot be written. advice: sentence on the remedy."""
    try:
        yield
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror or e}). {advice}") from e


def write_bytes_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file that appears under its name when it is complete. Raises ``OSError``."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())  # a power cut could otherwise leave an empty file of this name
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text, in which file names may be of any bytes, as ``write_bytes_atomically``.

    Raises ``InputError`` where it cannot be written.
    """
    with writing(path, "Make room, then run again."):
        write_bytes_atomically(path, text.encode(errors="surrogateescape"))


def check_writable(*files: Path | None) -> None:
    """Create the folders of files to write later, and raise ``InputError`` where they are not writable."""
    for file in filter(None, files):
        with writing(file, "Choose another place."):
            file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir() or not os.access(file.parent, os.W_OK):
            why = "it is a folder" if file.is_dir() else "the folder is not writable"
            raise InputError(f"{file}: cannot be written ({why}). Choose another place.")


@contextmanager
def locked(out: Path, work: str = "run") -> Iterator[None]:
    """Create and lock the folder ``out`` for this process, until the end of the block or of the process.

    work: name of the holder for messages. Raises ``InputError`` where another process holds it, or it is not
    writable.
    """
    lock = FileLock(out / LOCK, timeout=LOCK_TIMEOUT_S)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{out}: another {work} is at work here. Wait for it, or choose another --out."
        ) from None
    except OSError as e:
        raise InputError(f"{out}: cannot be written ({e.strerror or e}). Choose another --out.") from e
    try:
        yield
    finally:
        lock.release()
