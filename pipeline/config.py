"""Configuration: strict models, YAML files that hold only differences, ``--set key=value``."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from pipeline.errors import InputError, shortened
from pipeline.yamls import MAX_CHARACTERS, read_yaml


class Config(BaseModel):
    """Base of every configuration: frozen, without unknown keys.

    Numbers are finite, and booleans are no numbers: YAML's ``on`` and ``yes`` would pass for 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans_for_numbers(cls, value: Any, field: ValidationInfo) -> Any:
        expected = cls.model_fields[field.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (expected, *get_args(expected)):
            raise ValueError("true and false are not expected here")
        if isinstance(value, int) and get_origin(expected) is Literal and str(value) in get_args(expected):
            return str(value)  # YAML's 32 for "32"
        return value


@dataclass(frozen=True)
class NamesFile:
    """Annotation of a setting whose text is a file name, unless it is one of the words ``unless``."""

    unless: tuple[str, ...] = ()


def named_files(cfg: Config) -> Iterator[Path]:
    """Files that a configuration names: paths, and texts annotated with ``NamesFile``."""
    for name, field in type(cfg).model_fields.items():
        value = getattr(cfg, name)
        marks = [mark for mark in field.metadata if isinstance(mark, NamesFile)]
        if isinstance(value, Config):
            yield from named_files(value)
        elif isinstance(value, Path) or any(value not in mark.unless for mark in marks):
            yield Path(value)


C = TypeVar("C", bound=Config)


def load(
    model: type[C],
    files: Sequence[Path] = (),
    sets: Sequence[str] = (),
    options: Mapping[str, str] = MappingProxyType({}),
) -> C:
    """Load a configuration: the model's defaults, overridden by each file, then by ``key=value`` settings.

    options: further settings → option of the command line that gave each, for messages.

    Raises ``InputError``: a file is missing or not YAML, a key unknown or a value not allowed; names the file
    or setting, the key, and the nearest known key.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for file in files:
        _merge(values, _read(file), str(file), origin)
    for setting, source in [*((setting, f"--set {setting}") for setting in sets), *options.items()]:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{source}: expected key=value, such as --set render.mosaic=false")
        try:
            value = read_yaml(text)
        except ValueError as e:
            raise InputError(f"{source}: the value is not YAML ({e})") from e
        for part in reversed(key.strip().split(".")):
            value = {part: value}
        _merge(values, value, source, origin)
    try:
        return model.model_validate(values)
    except ValidationError as e:
        raise InputError("\n".join(_explain(model, error, origin) for error in e.errors())) from e


def _read(file: Path) -> Mapping[str, Any]:
    try:
        if (size := file.stat().st_size) > 4 * MAX_CHARACTERS:
            raise InputError(
                f"{file}: {size} bytes, expected settings of at most {MAX_CHARACTERS} characters"
            )
        values = read_yaml(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"{file}: cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise InputError(f"{file}: not YAML ({e})") from e
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{file}: expected keys and values, found {type(values).__name__}")
    return values


def _merge(
    into: dict[str, Any], new: Mapping[str, Any], source: str, origin: dict[str, str], at: str = ""
) -> None:
    """Merge nested settings ``new`` into others, and note the ``source`` of each key in ``origin``."""
    for key, value in new.items():
        name = f"{at}{key}"
        if isinstance(value, Mapping) and isinstance(into.get(key, {}), dict):
            _merge(into.setdefault(key, {}), value, source, origin, f"{name}.")
        else:
            into[key] = value
        origin[name] = source


def _explain(model: type[Config], error: Any, origin: Mapping[str, str]) -> str:
    where = [str(part) for part in error["loc"]]
    key = ".".join(where)
    # The innermost enclosing key that came from a file or a setting.
    source = next((origin[k] for n in range(len(where), 0, -1) if (k := ".".join(where[:n])) in origin), "")
    prefix = f"{source}: " if source else ""
    if error["type"] != "extra_forbidden":
        return f"{prefix}{key}: {reason(error)}"
    known = _keys(model)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    siblings = [k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]]
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(siblings)}"
    return f"{prefix}{key}: unknown key; {hint}"


def reason(error: Any) -> str:
    """Message of one of the ``errors()`` of a ``ValidationError``, with the value."""
    own = error.get("ctx", {}).get("error") if error["type"] == "value_error" else None
    text, value = error["msg"] if own is None else str(own), shortened(repr(error["input"]), 200)
    return text if own is not None and value in text else f"{text}, got {value}"


def _keys(model: type[BaseModel], at: str = "") -> list[str]:
    """Dotted names of all settings of a model."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(f"{at}{name}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _keys(field.annotation, f"{at}{name}.")
    return keys


def differences(old: Any, new: Any, where: str = "") -> Sequence[str]:
    """Lines ``key: old → new`` of the values that differ between two nested mappings."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [
            d for k in keys for d in differences(old.get(k), new.get(k), f"{where}.{k}" if where else str(k))
        ]
    return [] if old == new else [f"{where}: {shortened(str(old), 80)} → {shortened(str(new), 80)}"]
