"""Files, functions and lists of parameters are short enough to be read."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 650, 90, 8
MAX_COMMAND_LINE = 600

FILES = {
    "models/geometry/selfcalibration.py", "models/regressor.py", "models/smplify.py", "pipeline/recording.py",
    "stages/smplify.py",
}  # fmt: skip
FUNCTIONS = {
    "models/smplify.py:_linearise", "models/smplify.py:start_pose", "stages/graph.py:_run",
}  # fmt: skip
PARAMETERS = {
    "models/smplify.py:_prepare", "models/smplify.py:fit", "models/smplify.py:fit_unposed",
    "models/training/pictures.py:__init__",
}  # fmt: skip
"""Longer than they may be. To be emptied: nothing is added here, and what has been mended is taken out."""


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


def exactly(found, excepted):
    assert not found - excepted, "too long; split it"
    assert not excepted - found, "mended: take it out of the exceptions"


def test_files():
    exactly({f for f, text in source() if len(text.splitlines()) > MAX_FILE}, FILES)


def test_functions():
    exactly({name for name, lines, _ in functions() if lines > MAX_FUNCTION}, FUNCTIONS)


def test_parameters():
    exactly({name for name, _, count in functions() if count > MAX_PARAMETERS} - {*commands()}, PARAMETERS)


def test_the_command_line():
    assert len((ROOT / "run_pipeline.py").read_text(encoding="utf-8").splitlines()) <= MAX_COMMAND_LINE
    assert {"run_pipeline.py:run", "stages/commands.py:evaluate"} <= {*commands()}
