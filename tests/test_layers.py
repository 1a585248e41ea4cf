"""Imports go one way: pipeline ← models ← stages ← run_pipeline.py."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "pipeline": {"pipeline"},
    "models": {"pipeline", "models"},
    "stages": {"pipeline", "models", "stages"},
}
LAYERS = {*MAY_IMPORT, "run_pipeline", "tests"}
MODELS_DO_NOT = {"threading", "multiprocessing", "queue", "av", "yaml"}


def imported(file: Path) -> set[str]:
    """Every module named in an import statement of ``file``, at its top level or in a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_no_arrow_the_other_way(layer):
    files = [*(ROOT / layer).rglob("*.py")]
    assert files
    for file in files:
        roots = {name.split(".")[0] for name in imported(file)}
        assert not (roots & LAYERS) - MAY_IMPORT[layer], f"{file} imports from a layer above it"


def test_models_know_no_threads_no_videos_no_yaml():
    for file in (ROOT / "models").rglob("*.py"):
        roots = {name.split(".")[0] for name in imported(file)}
        assert not roots & MODELS_DO_NOT, file


def test_only_one_file_knows_the_order_of_the_stages():
    # Two that call stages, what prints, and what is asked about cameras before and after them.
    others = {"__init__", "graph", "screen", "usage", "commands", "check"}
    stages = {f"stages.{f.stem}" for f in (ROOT / "stages").glob("*.py") if f.stem not in others}
    for file in (ROOT / "stages").glob("*.py"):
        if file.stem not in others:
            assert not imported(file) & stages, f"{file} imports another stage"
