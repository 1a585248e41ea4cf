"""YAML within limits: by aliases, a file of a few bytes can stand for gigabytes."""

from __future__ import annotations

from typing import Any, Final

import yaml

from pipeline.errors import short_reason

MAX_CHARACTERS: Final = 500_000
MAX_DEPTH: Final = 50
"""Nested lists and mappings; PyYAML's parser recurses for each."""
MAX_NODES: Final = 20_000
"""Values, with those that an alias repeats."""


def read_yaml(text: str, loader: Any = yaml.SafeLoader) -> Any:
    """Parse a YAML text by one of PyYAML's safe loaders. Raises ``ValueError`` with a short reason."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters, expected at most {MAX_CHARACTERS}")
    try:
        _check_size(text)
        return yaml.load(text, Loader=loader)
    except Exception as error:  # constructors of tagged values, such as !!int, raise anything
        raise ValueError(short_reason(error)) from error


def _check_size(text: str) -> None:
    """Raise ``ValueError`` where a text is nested too deep or expands to too many values."""
    sizes: dict[str, int] = {}  # values by anchor
    enclosing: list[tuple[str | None, int]] = []  # anchors of open collections, and values before each
    nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        match event:
            case yaml.CollectionStartEvent():
                enclosing.append((event.anchor, nodes))
                nodes += 1
            case yaml.CollectionEndEvent():
                anchor, before = enclosing.pop()
                if anchor is not None:
                    sizes[anchor] = nodes - before
            case yaml.ScalarEvent():
                nodes += 1
                if event.anchor is not None:
                    sizes[event.anchor] = 1
            case yaml.AliasEvent():
                if any(anchor == event.anchor for anchor, _ in enclosing):
                    raise ValueError(f"{event.anchor} holds itself")
                nodes += sizes.get(event.anchor or "", 1)
        if len(enclosing) > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        if nodes > MAX_NODES:
            raise ValueError(f"stands for more than {MAX_NODES} values")
