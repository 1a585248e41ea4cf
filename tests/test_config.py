from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from pipeline.config import Config, NamesFile, load, named_files
from pipeline.errors import InputError
from stages.graph import RunConfig


class Fit(Config):
    overlap: int = 8
    weight: float = 1.0


class Run(Config):
    fit: Fit = Fit()
    name: str | None = None
    draw: bool = True
    rate: float | str | None = None
    share: float = Field(1.0, gt=0)
    bits: Literal["auto", "32"] = "auto"


def test_later_wins_and_the_rest_stays(tmp_path):
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text("fit:\n  overlap: 2\n  weight: 3\nname: a\n")
    b.write_text("fit:\n  overlap: 4\n")
    assert load(Run) == Run()
    assert load(Run, [a, b]) == Run(fit=Fit(overlap=4, weight=3), name="a")
    assert load(Run, [a, b], ["fit.overlap=6", "name=null"]) == Run(fit=Fit(overlap=6, weight=3))


def test_numbers_and_switches_as_yaml_writes_them():
    cfg = load(Run, [], ["fit.overlap=3", "fit.weight=2", "draw=off", "rate=25"])
    assert cfg == Run(fit=Fit(overlap=3, weight=2.0), draw=False, rate=25)
    assert load(Run, [], ["draw=true", "rate=30000/1001"]).rate == "30000/1001"
    assert load(Run, [], ["bits=32"]) == load(Run, [], ["bits='32'"]) == Run(bits="32")
    with pytest.raises(InputError, match=r"bits: .*got 16"):
        load(Run, [], ["bits=16"])


def test_an_empty_file_changes_nothing(tmp_path):
    (tmp_path / "e.yaml").write_text("# nothing yet\n")
    assert load(Run, [tmp_path / "e.yaml"]) == Run()


def test_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        load(Run).name = "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fit:\n  overlpa: 2\n", r"c\.yaml: fit\.overlpa: unknown key; did you mean fit\.overlap\?"),
        ("zzzzzz: 2\n", r"c\.yaml: zzzzzz: unknown key; known here: fit, name, draw, rate, share, bits"),
        ("fit:\n  overlap: many\n", r"c\.yaml: fit\.overlap: .*integer.*got 'many'"),
        ("fit: 3\n", r"c\.yaml: fit: .*got 3"),
        ("- 1\n", "expected keys and values, found list"),
        ("fit: [1\n", "not YAML"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        load(Run, [file])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("fit.overlap", r"--set fit\.overlap: expected key=value"),
        ("fit.overlap=[", "the value is not YAML"),
        ("fit.wieght=2", r"--set fit\.wieght=2: fit\.wieght: unknown key; did you mean fit\.weight\?"),
        ("fit.overlap=x", r"--set fit\.overlap=x: fit\.overlap: "),
        ("fit.overlap=true", r"fit\.overlap: .*true and false are not expected here, got True"),
        ("fit.weight=no", r"fit\.weight: .*true and false are not expected here, got False"),
        ("rate=yes", r"rate: .*true and false are not expected here, got True"),
        ("fit.overlap=1.5", r"fit\.overlap: .*integer"),
        ("fit.weight=.inf", r"fit\.weight: .*finite number, got inf"),
        ("fit.weight=-.inf", r"fit\.weight: .*finite number"),
        ("fit.weight=.nan", r"fit\.weight: .*finite number, got nan"),
        ("fit.weight=yes", r"fit\.weight: true and false are not expected here, got True$"),
        ("share=0", r"share: .*greater than 0, got 0$"),
    ],
)
def test_a_mistake_in_a_setting_is_named(setting, message):
    with pytest.raises(InputError, match=message):
        load(Run, [], [setting])


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        load(Run, [tmp_path / "none.yaml"])


def test_a_value_that_holds_itself(tmp_path):
    (tmp_path / "c.yaml").write_text("fit: &a\n  overlap: {b: *a}\n")
    with pytest.raises(InputError, match=r"c\.yaml: not YAML \(a holds itself\)"):
        load(Run, [tmp_path / "c.yaml"])
    (tmp_path / "c.yaml").write_text("fit: &a {overlap: 3}\nfit: *a\n")
    assert load(Run, [tmp_path / "c.yaml"]).fit.overlap == 3


class Names(Config):
    weights: Annotated[str, NamesFile(unless=("default",))] = "default"
    device: str = "auto"
    body: Path | None = None


class Outer(Config):
    inner: Names = Names()
    more: Path = Path("a.npz")


def test_files_are_named_by_what_is_marked_as_one():
    assert [*named_files(Outer())] == [Path("a.npz")]
    inner = Names(weights="auto", device="cpu", body=Path("b.pkl"))
    assert [*named_files(Outer(inner=inner))] == [Path("auto"), Path("b.pkl"), Path("a.npz")]
    assert [*named_files(RunConfig())] == []
    assert [*named_files(load(RunConfig, sets=["regress.weights=w.pt", "body=b.npz"]))] == [
        Path("b.npz"),
        Path("w.pt"),
    ]
