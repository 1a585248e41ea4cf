"""Provenance of cameras that were estimated from a person: the metadata of a TOML calibration."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Provenance:
    """Provenance of estimated cameras."""

    source: Mapping[str, str]
    """Digests of what the cameras were estimated from, by what that is called in a message."""
    error_px: float
    """Median distance of the person from the pictures."""
    caveat: str
    """What the cameras are good for, in a sentence."""
    as_written: bool = True
    """The cameras beside it are those that it was written with: nobody has edited them."""


def is_estimated(path: Path | None) -> bool:
    """True for a calibration that says that it was estimated from a person."""
    if path is None or path.suffix.lower() != ".toml":
        return False
    try:
        return _metadata(_document(path)).get("estimated") is True
    except ValueError:  # it is no TOML, or no text
        return False


def read_estimate(path: Path) -> Provenance | None:
    """Provenance of the cameras of a TOML file that can be read; None where it does not give it."""
    document = _document(path)
    kept = _metadata(document)
    source, error, caveat = kept.get("source"), kept.get("error"), kept.get("caveat")
    if not (isinstance(source, dict) and isinstance(error, int | float) and isinstance(caveat, str)):
        return None
    return Provenance(source, float(error), caveat, kept.get("cameras") == _cameras_digest(document))


def metadata_lines(estimate: Provenance | None, cameras: str) -> list[str]:
    """Lines of the TOML table ``metadata`` beside these cameras, TOML themselves."""
    lines = ["[metadata]", "adjusted = false", f"error = {estimate.error_px if estimate else 0.0}"]
    if estimate:
        source = ", ".join(f"{quoted(name)} = {quoted(digest)}" for name, digest in estimate.source.items())
        lines += [
            "estimated = true",
            f"caveat = {quoted(estimate.caveat)}",
            f"cameras = {quoted(_cameras_digest(tomllib.loads(cameras)))}",
            f"source = {{{source}}}",
        ]
    return lines


def quoted(text: str) -> str:
    """A TOML basic string: JSON's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _document(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8-sig"))


def _metadata(document: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = document.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _cameras_digest(document: Mapping[str, Any]) -> str:
    """Digest of everything but the metadata; comments, spaces and the order of tables do not count."""
    cameras = {name: table for name, table in document.items() if name != "metadata"}
    return hashlib.sha256(json.dumps(cameras, sort_keys=True, default=str).encode()).hexdigest()[:16]
