"""What the documents say is so: commands, stages, settings, files."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml

import models.formats
import pipeline.calibrations
import pipeline.formats.keypoints
import run_pipeline
from models.angles import DEFINITIONS
from models.body import load_body
from pipeline.config import load
from pipeline.schema import PERSON
from pipeline.skeleton import POINT_ORDERS
from stages.graph import RunConfig
from stages.synth import SynthConfig, write_recording

ROOT = Path(__file__).parents[1]
DOCS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
DEFAULT = ROOT / "configs" / "default.yaml"


def leaves(values, at=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def test_every_command_is_in_the_table():
    commands = [c.name or c.callback.__name__ for c in run_pipeline.app.registered_commands]
    assert commands
    for name in commands:
        assert re.search(rf"^\| `{name}\b", DOCS["docs/commands.md"], re.M), name


def written_commands():
    """Commands of this program in blocks of code and in backticks, lines that go on joined."""
    for name, text in DOCS.items():
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
        code = [block for language, block in blocks if not language]
        code += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        for line in "\n".join(code).replace("\\\n", " ").splitlines():
            if found := re.search(r"python run_pipeline\.py (.+)", line):
                yield name, found[1].split("#")[0]


@pytest.mark.parametrize(("name", "line"), sorted(set(written_commands())))
def test_commands_in_the_documents_are_understood(name, line):
    given = shlex.split(line.replace("[", "").replace("]", ""))
    command = typer.main.get_command(run_pipeline.app).commands[given[0]]
    with command.make_context(given[0], given[1:]):
        pass


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Folder with RECORDING and OUT, and the names that the Python of docs/python.md leaves."""
    folder = tmp_path_factory.mktemp("docs")
    write_recording(folder / "RECORDING", SynthConfig(seconds=1, videos=False), load_body())
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS["docs/python.md"], re.M | re.S)
    code = "\n".join(blocks).replace('"RECORDING"', repr(str(folder / "RECORDING")))
    code = code.replace('"OUT', f'"{folder}/OUT').replace(
        "RunConfig()", 'RunConfig(render={"overlay": False, "mosaic": False})'
    )
    values = {}
    exec(compile(code, "docs/python.md", "exec"), values)
    return folder, values


def test_the_python_of_the_documents_runs(ran):
    _, values = ran
    assert values["names"][0] == "pelvis"
    assert values["joints"].shape == (30, 24, 3)
    assert values["knee_deg"].shape == (30,)
    assert -10 < values["knee_deg"].min() < values["knee_deg"].max() < 150
    assert values["vertices"].shape[1:] == (1, int(values["triangles"].max()) + 1, 3)


def test_the_notebook_runs(ran, monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((ROOT / "docs" / "results.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    values = {}
    exec(code.replace("multispin-demo/results", str(ran[0] / "OUT")), values)
    assert "person 0: 100% valid" in capsys.readouterr().out
    assert np.isfinite(values["pelvis"]).all()
    assert 0.3 < values["speed"] < 2
    assert len(values["axis"].lines) == 1
    values["plt"].close("all")


def test_every_array_and_angle_is_in_the_document_of_results():
    told = DOCS["docs/results.md"]
    for name in (*PERSON, "betas", "angles"):
        assert f"| `people/<id>/{name}` |" in told, name
    for name in DEFINITIONS:
        joint, _, motion = name.replace("right_", "left_").rpartition("_")
        assert any(f"`{joint}_" in line and f"_{motion}`" in line for line in told.splitlines()), name


def test_readme_is_short():
    assert len(DOCS["README.md"].split()) <= 900


def test_every_stage_is_in_the_table():
    others = {"__init__", "graph", "synth", "screen", "usage", "commands", "calibration"}
    stages = {f.stem for f in (ROOT / "stages").glob("*.py")} - others
    section = DOCS["docs/stages.md"].split("\n## ")[0]
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
    formats = (*models.formats.FORMATS, *models.formats.FOLDERS)
    assert first_column("Exports") == {form.TRAITS.suffix for form in formats}


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


def links():
    for name, text in DOCS.items():
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if "://" not in target:
                yield name, target


@pytest.mark.parametrize(("name", "target"), sorted(set(links())))
def test_links_lead_somewhere(name, target):
    path, _, anchor = target.partition("#")
    file = (ROOT / name).parent / path if path else ROOT / name
    assert file.exists()
    if anchor:
        titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
        assert anchor in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("name", DOCS)
def test_paths_that_are_named_exist(name):
    for path in re.findall(r"`((?:pipeline|stages|models|configs|tests)/[\w/.]+)`", DOCS[name]):
        assert (ROOT / path).exists() or path == "stages/trim.py", path
