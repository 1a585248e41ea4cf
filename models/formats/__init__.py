"""Export formats: one module each, and the choice by a file's suffix.

A format is a module with its ``TRAITS`` and a function ``encode``, and a line in ``FORMATS``; one that is a
folder has ``files``, and a line in ``FOLDERS``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from models.body import Body
from models.formats import amass, bvh, c3d, easymocap, fbx, glb, mot, obj, openpose, smpl, table, trc, usd
from models.formats.long_take import LongTake
from models.formats.traits import Traits
from pipeline.errors import InputError


class ExportFormat(Protocol):
    """Module that writes one format."""

    TRAITS: Traits

    def encode(self, take: LongTake, body: Body, name: str) -> Iterator[bytes]:
        """Content of a file called ``name``, in pieces.

        take: in the world that ``TRAITS.turn`` leads to; at least one frame has what the format shows.
        """


class FolderFormat(Protocol):
    """Module that writes a folder with all people."""

    TRAITS: Traits

    def files(self, people: Sequence[LongTake], body: Body) -> Iterator[tuple[str, bytes]]:
        """Path inside the folder and content of each file, of takes of the same frames."""


FORMATS: Final[tuple[ExportFormat, ...]] = (glb, usd, fbx, bvh, trc, c3d, smpl, amass, table, mot, obj)
"""The first whose suffix the file's name ends in writes it."""
FOLDERS: Final[tuple[FolderFormat, ...]] = (easymocap, openpose)


def find_format(file: Path) -> ExportFormat | FolderFormat:
    """Format that a file's suffix names. Raises ``InputError`` when it names none."""
    formats: tuple[ExportFormat | FolderFormat, ...] = (*FORMATS, *FOLDERS)
    for export_format in formats:
        if file.name.lower().endswith(export_format.TRAITS.suffix):
            return export_format
    known = ", ".join(f"{f.TRAITS.suffix} ({f.TRAITS.description})" for f in formats)
    raise InputError(f"{file}: the suffix says what is written, and there is none for this. Choose {known}.")
