"""Help texts of every command: types in words, and lines that fit a narrow terminal; what they wait for."""

import re
import subprocess
import sys

import pytest
from recordings import SMALL_PEOPLE, SMALL_RIG, write_recording
from typer.main import get_command
from typer.testing import CliRunner

import run_pipeline

COMMANDS = [
    *([name] for name in get_command(run_pipeline.app).commands if name != "calibration"),
    *(["calibration", name] for name in ("convert", "show", "board")),
]


def help_of(*words, width):
    result = CliRunner().invoke(run_pipeline.app, [*words, "--help"], terminal_width=width)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("words", [[], ["calibration"], *COMMANDS], ids=" ".join)
def test_help_fits_forty_columns_and_names_types_in_words(words):
    text = help_of(*words, width=40)
    too_long = [line for line in text.splitlines() if len(line) > 40 and " " in line.strip()]
    assert not too_long
    assert not re.search(r"<(list|str|int|float|bool|path)|\{", text, re.IGNORECASE)


def test_help_names_what_an_option_takes():
    text = help_of("synth", width=90)
    for option in ("--size WIDTH HEIGHT ", "--fps TEXT ", "--cameras NUMBER ", "synth [OPTIONS] OUT"):
        assert option in text
    assert "-o, --out TEXT" in help_of("run", width=90)
    assert "--recording PATH" in help_of("render", width=90)


def test_the_list_of_commands_has_whole_sentences():
    listed = help_of(width=60).split("Commands:")[1]
    assert "..." not in listed
    assert "Reconstruct a recording: results.zarr" in " ".join(listed.split())


def test_a_recording_is_looked_at_without_waiting_for_torch(tmp_path):
    recording = write_recording(tmp_path / "rec", SMALL_RIG, [SMALL_PEOPLE])
    code = "import sys, run_pipeline; run_pipeline.app(standalone_mode=False); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "info", recording], capture_output=True, text=True)
    assert "Do the cameras agree?" in done.stdout, done.stderr
    assert done.stdout.endswith("False\n")
