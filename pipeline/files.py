"""Files that are there whole or not at all, and folders that one process holds alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from pipeline.errors import InputError

LOCK: Final = ".lock"
"""Name of the file inside a folder that one process holds."""
PATIENCE_S: Final = 2.0
"""Wait for a lock: workers of a batch that was killed end a moment after it."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise ``InputError``, which names the file or else ``path``, where something cannot be read."""
    try:
        yield
    except OSError as e:
        raise InputError(f"{e.filename or path}: cannot be read ({e.strerror or e})") from e


@contextmanager
def writing(path: Path, advice: str) -> Iterator[None]:
    """Raise ``InputError`` where ``path`` cannot be written. advice: sentence on what to do then."""
    try:
        yield
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror or e}). {advice}") from e


def write_whole(path: Path, content: bytes | Iterable[bytes]) -> None:
    """All of it or nothing under the name ``path``, whatever happens meanwhile. Raises ``OSError``."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with nothing in it
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def write_atomically(path: Path, text: str) -> None:
    """``write_whole`` of a text, in which names of files may be of any bytes.

    Raises ``InputError`` when it cannot be written.
    """
    with writing(path, "Make room, then run again."):
        write_whole(path, text.encode(errors="surrogateescape"))


def check_writable(*files: Path | None) -> None:
    """Before work that would be lost: that there can be files of these names. Makes their folders."""
    for file in filter(None, files):
        with writing(file, "Choose another place."):
            file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir() or not os.access(file.parent, os.W_OK):
            why = "it is a folder" if file.is_dir() else "the folder is not writable"
            raise InputError(f"{file}: cannot be written ({why}). Choose another place.")


@contextmanager
def locked(out: Path, work: str = "run") -> Iterator[None]:
    """Hold the folder ``out``, which is made, alone. The lock ends with the process, however that ends.

    work: what holds it, for a message. Raises ``InputError`` when another holds it, or it cannot be written.
    """
    lock = FileLock(out / LOCK, timeout=PATIENCE_S)
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
