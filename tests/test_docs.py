"""What the documents say is so: commands, stages, settings, files."""

import re
from pathlib import Path

import pytest
import yaml

import models.formats
import pipeline.calibrations
import pipeline.formats.keypoints
import run_pipeline
from pipeline.config import load
from pipeline.skeleton import POINT_ORDERS
from stages.graph import RunConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEFAULT = ROOT / "configs" / "default.yaml"


def leaves(values, at=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def test_every_command_is_in_the_readme():
    commands = [c.name or c.callback.__name__ for c in run_pipeline.app.registered_commands]
    assert commands
    for name in commands:
        assert re.search(rf"`{name}\b", README), name


def test_every_stage_is_in_the_readme():
    others = {"__init__", "graph", "synth", "screen", "commands"}
    stages = {f.stem for f in (ROOT / "stages").glob("*.py")} - others
    section = README.split("## How it works")[1].split("### ")[0]
    table = {m[1] for m in re.finditer(r"^\| `(\w+)` \|", section, re.M)}
    assert table == stages


def first_column(title):
    """First cell of each row of the table under a title of docs/formats.md."""
    section = (
        (ROOT / "docs" / "formats.md")
        .read_text(encoding="utf-8")
        .split(f"\n## {title}\n")[1]
        .split("\n## ")[0]
    )
    rows = re.findall(r"^\| (.+?) \|", section, re.M)
    assert len(rows) > 1
    return {row.strip("`") for row in rows[1:]}


@pytest.mark.parametrize(
    ("title", "formats"),
    [
        ("Calibrations", pipeline.calibrations.FORMATS),
        ("Files of keypoints", pipeline.formats.keypoints.FORMATS),
    ],
)
def test_every_input_format_is_in_the_table(title, formats):
    assert first_column(title) == {form.DESCRIPTION.split(" (")[0] for form in formats}


def test_every_order_of_points_is_in_the_table():
    assert first_column("Orders of points") == set(POINT_ORDERS)


def test_every_export_is_in_the_table():
    assert first_column("Exports") == {form.TRAITS.suffix for form in models.formats.FORMATS}


def test_the_default_file_holds_every_setting_at_its_default_with_a_reason():
    text = DEFAULT.read_text(encoding="utf-8")
    want = dict(leaves(RunConfig().model_dump(mode="json")))
    assert dict(leaves(yaml.safe_load(text))) == want
    assert load(RunConfig, [DEFAULT]) == RunConfig()
    lines = text.splitlines()
    for line in lines:
        key = re.match(r"\s*(\w+):\s*\S", line)
        if key and not line.lstrip().startswith("#"):
            assert "#" in line, f"default.yaml: no reason beside {key[1]}"


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\]\(([\w./-]+)\)", README))))
def test_links_lead_somewhere(name):
    assert (ROOT / name).exists()


def test_paths_named_in_the_readme_exist():
    for path in re.findall(r"`((?:pipeline|stages|models|configs|tests)/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path
