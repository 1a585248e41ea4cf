"""Zarr folders that appear when they are complete, and whose windows are files, empty ones too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import zarr

CHUNK_KEYS: Final[Any] = {"name": "default", "separator": "."}
"""Chunk files side by side, instead of in a folder per axis, which are many in a long recording."""


def open_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """Open an array of a group. Raises ``KeyError`` where there is none.

    Empty chunks are written, too: a window or chunk that is done without its file is then damaged.
    """
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise KeyError(name)
    return array.with_config({"write_empty_chunks": True})


@contextmanager
def creating_group(path: Path, attributes: Mapping[str, Any] | None = None) -> Iterator[zarr.Group]:
    """Create a group that appears at ``path`` when the block has filled it."""
    building = path.with_name(path.name + ".new")
    shutil.rmtree(building, ignore_errors=True)
    yield zarr.create_group(building, attributes=dict(attributes or {}))
    building.rename(path)


def remove_partial_files(path: Path) -> None:
    """Remove the files of writes that were killed."""
    for file in path.rglob("*.partial"):
        file.unlink(missing_ok=True)
