"""XML files of cameras: attributes as numbers, with the file, camera and key in every message."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from pipeline.array_types import Array
from pipeline.calibrations.checks import numbers
from pipeline.errors import InputError


def read_xml(path: Path) -> ET.Element:
    """Root of a file in UTF-8 or UTF-16, whatever its declaration says.

    Raises:
        InputError: it is no XML.
    """
    raw = path.read_bytes()
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if b"\x00" in raw[:4] and encoding != "utf-16":
        encoding = "utf-16-le"
    try:
        text = raw.decode(encoding)
        return ET.fromstring(re.sub(r"\A\s*<\?xml.*?\?>", "", text, flags=re.DOTALL))
    except (ET.ParseError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: not XML: {error}") from error


@dataclass(frozen=True)
class Tag:
    """An element of a camera in a file."""

    element: ET.Element
    path: Path
    camera: str

    @property
    def where(self) -> str:
        return f"{self.path}, camera {self.camera!r}, {self.element.tag}"

    def child(self, path: str) -> Tag:
        """First element at this place below it. Raises ``InputError`` where there is none."""
        found = self.element.find(path)
        if found is None:
            raise InputError(f"{self.path}, camera {self.camera!r}: {path} is missing: is it calibrated?")
        return Tag(found, self.path, self.camera)

    def numbers(self, key: str, count: int | tuple[int, ...]) -> Array:
        """Numbers of an attribute, with spaces between them. Raises ``InputError``."""
        text = self.element.get(key)
        if text is None:
            raise InputError(f"{self.where}: {key} is missing")
        return numbers(text.split(), count, f"{self.where}, {key}")

    def each(self, *keys: str) -> Array:
        """One number of each of these attributes."""
        return numbers([self.numbers(key, 1)[0] for key in keys], len(keys), self.where)
