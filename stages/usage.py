"""Help texts of the command line: types in words, whole sentences, and lines that fit a narrow terminal."""

from __future__ import annotations

import re
import shutil
from typing import Any, Final

from typer import Typer
from typer.core import TyperCommand, TyperGroup

MAX_WIDTH: Final = 100
"""Largest width of a help text, columns: longer lines are hard to follow."""
NARROW: Final = 60
"""Columns below which a long option has its own line, and a wide table is printed as lists."""
_NAME_COLUMNS: Final = {True: 10, False: 30}
"""Columns of the names, by whether the terminal is narrow."""


def make_app(**settings: Any) -> Typer:
    """Make a command line, or a part of one, with the help texts of this module."""
    return _App(
        cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
        rich_markup_mode=None, **settings,
    )  # fmt: skip


def context() -> dict[str, Any]:
    """Context settings of the whole command line, which its parts inherit."""
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    return {"help_option_names": ["-h", "--help"], "terminal_width": width}


class _App(Typer):
    def command(self, *args: Any, **kwargs: Any) -> Any:
        return super().command(*args, cls=_Command, **kwargs)


class _Command(TyperCommand):
    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}").replace("}", "").upper() for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self, ctx, formatter)


class _Group(TyperGroup):
    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self, ctx, formatter)
        rows = [(name, _first_sentence(command.help or "")) for name, command in self.commands.items()]
        _write(formatter, "Commands", rows)


def _write_options(command: TyperCommand | TyperGroup, ctx: Any, formatter: Any) -> None:
    kinds: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
    for parameter in command.get_params(ctx):
        if (record := parameter.get_help_record(ctx)) is not None:
            names, told = record
            own = parameter.param_type_name == "argument"
            names = (
                re.sub(r" <.*>", "", names).upper() if own else re.sub(r"<(.*)>(\.\.\.)?", _in_words, names)
            )
            kinds[parameter.param_type_name].append((names, told))
    _write(formatter, "Arguments", kinds["argument"])
    _write(formatter, "Options", kinds["option"])


def _write(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows, col_max=_NAME_COLUMNS[formatter.width < NARROW])


def _in_words(kind: re.Match[str]) -> str:
    """Word for the type of an option, such as ``list[str]`` or ``int range``."""
    one = kind[1].removeprefix("list[").removesuffix("]").removesuffix(" range")
    words = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER", "int,int": "WIDTH HEIGHT"}
    return words.get(one, one.upper())


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", " ".join(text.split("\n\n")[0].split()), maxsplit=1)[0]
