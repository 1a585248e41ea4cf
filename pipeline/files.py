"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import InputError


def write_atomically(path: Path, text: str) -> None:
    """The whole text or nothing under the name ``path``, whatever happens meanwhile.

    Raises ``InputError`` when it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with nothing in it
        part.replace(path)
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror or e}). Make room, then run again.") from e
