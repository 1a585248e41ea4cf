"""Export formats: one module each, and the choice by a file's suffix.

A format is a module with its ``TRAITS`` and a function ``encode``, and a line in ``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from models.body import Body
from models.formats import amass, bvh, glb, obj, trc
from models.formats.take import Take
from models.formats.traits import Traits
from pipeline.errors import InputError


class ExportFormat(Protocol):
    """Module that writes one format."""

    TRAITS: Traits

    def encode(self, take: Take, body: Body, name: str) -> Iterator[bytes]:
        """Content of a file called ``name``, in pieces.

        take: in the world that ``TRAITS.turn`` leads to; at least one frame has what the format shows.
        """


FORMATS: Final[tuple[ExportFormat, ...]] = (glb, bvh, trc, amass, obj)


def find_format(file: Path) -> ExportFormat:
    """Format that a file's suffix names. Raises ``InputError`` when it names none."""
    for export_format in FORMATS:
        if export_format.TRAITS.suffix == file.suffix.lower():
            return export_format
    known = ", ".join(f"{f.TRAITS.suffix} ({f.TRAITS.description})" for f in FORMATS)
    raise InputError(f"{file}: the suffix says what is written, and there is none for this. Choose {known}.")
