"""Files, functions and lists of parameters are short enough to be read."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 650, 90, 8
MAX_COMMAND_LINE = 600


def source():
    for top in ("pipeline", "models", "stages", "configs"):
        for file in sorted((ROOT / top).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
    yield "run_pipeline.py", (ROOT / "run_pipeline.py").read_text(encoding="utf-8")


def commands():
    """Functions that typer makes commands of: it needs a parameter for every option of the user's."""
    for file in ("run_pipeline.py", "stages/commands.py"):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(a.annotation, ast.Subscript) and ast.unparse(a.annotation).startswith("Annotated[")
                for a in node.args.args
            ):
                yield f"{file}:{node.name}"


def functions():
    """Name, lines and number of parameters of every function, those inside others and classes included."""
    for file, text in source():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                given = [
                    x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls")
                ]
                given += [x.arg for x in (a.vararg, a.kwarg) if x]
                assert node.end_lineno is not None
                yield f"{file}:{node.name}", node.end_lineno - node.lineno + 1, len(given)


def test_files():
    assert not {f for f, text in source() if len(text.splitlines()) > MAX_FILE}, "split it"


def test_functions():
    assert not {name for name, lines, _ in functions() if lines > MAX_FUNCTION}, "split it"


def test_parameters():
    many = {name for name, _, count in functions() if count > MAX_PARAMETERS}
    assert not many - {*commands()}, "name what belongs together"


def test_the_command_line():
    assert len((ROOT / "run_pipeline.py").read_text(encoding="utf-8").splitlines()) <= MAX_COMMAND_LINE
    assert {"run_pipeline.py:run", "stages/commands.py:evaluate"} <= {*commands()}


def test_docstrings_begin_with_a_noun_or_a_verb():
    for file, text in source():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                first = (ast.get_docstring(node) or "").partition("\n")[0]
                assert not re.match(r"(What|Of|How|Whether|The same)\b", first), f"{file}: {first}"
