"""What commands print, without running what they are about."""

import math
from dataclasses import replace

import pytest

from pipeline.batch.manifest import Entry
from pipeline.batch.process import Event
from stages import screen


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (math.nan, "–"), (0.04, "0.0"), (12.345, "12.3"), (-1.0, "-1.0")]
)
def test_a_number_that_is_not_known_is_a_dash(value, text):
    assert screen.number(value) == text


def test_what_the_user_named_is_no_markup(capsys):
    screen.warn("[red]cam[/red]: 3 files")
    screen.print_file("[bold]out", "told")
    assert capsys.readouterr().out == "warning: [red]cam[/red]: 3 files\n  [bold]out: told\n"


def test_in_a_narrow_terminal_nothing_is_cut_off(capsys, monkeypatch):
    monkeypatch.setattr(screen.console, "width", 40)
    monkeypatch.setattr(screen.console, "soft_wrap", False)
    screen.print_file("out/render/skeleton", "cam01.mp4, cam02.mp4, cam03.mp4, cam04.mp4")
    rows = screen.table("data/SMPL.pkl")
    rows.add_row("from", "basicModel_neutral_lbs_10_207_0_v1.0.0.pkl")
    screen.print_table(rows)
    file, *lines = capsys.readouterr().out.splitlines()
    assert file == "  out/render/skeleton:"
    assert lines[0].rstrip() == "    cam01.mp4, cam02.mp4, cam03.mp4,"
    assert max(map(len, lines)) <= 40
    assert "".join(lines).replace(" ", "").endswith("_v1.0.0.pkl")


def test_a_batch_is_done_when_all_its_recordings_are(capsys, tmp_path):
    rows = [Entry(f"r{k}", "done", warnings=(f"{k}", "b")) for k in range(screen.MAX_WARNED_RECORDINGS + 2)]

    def events(rows):
        for row in rows:
            yield Event(replace(row, state="running"), 0, 0, 10, len(rows))
            yield Event(row, 0, recordings=len(rows))

    assert screen.follow_batch(events(rows), tmp_path)
    out = capsys.readouterr().out
    assert out.count("2 warnings, in ") == screen.MAX_WARNED_RECORDINGS
    assert f"2 more recordings with warnings: see {tmp_path / 'batch.html'}" in out
    assert "22 of 22 recordings done." in out
    assert not screen.follow_batch(events([*rows[:1], Entry("x", "failed", error="broken")]), tmp_path)
    told = capsys.readouterr()
    assert "1 of 2 recordings done." in told.out
    assert "x: failed: broken" in told.err

    alike = [Entry(f"r{k}", "done", warnings=("a", "b")) for k in range(3)]
    screen.follow_batch(events(alike), tmp_path)
    assert "r0 and 2 more recordings: 2 warnings, in " in " ".join(capsys.readouterr().out.split())


def test_a_bar_ends_full(capsys):
    screen.follow_count("picture", "crops", 10, iter([4, 7]))
    assert "10/10" in capsys.readouterr().err


def test_a_late_bar_is_not_there_before_its_time(capsys):
    with screen.late_bar(10, "frame", "fit") as update:
        assert not capsys.readouterr().err
        update(4)
        update(6)
    assert "10/10" in capsys.readouterr().err


def test_rows_of_a_wide_table_are_lists_in_a_narrow_terminal(capsys, monkeypatch):
    rows = screen.table("Errors", "camera", "median px", "frames in which somebody is seen")
    rows.add_row("cam01", "3.4", "58")
    rows.add_row("all", "3.4", "")
    monkeypatch.setattr(screen.console, "width", 40)
    screen.print_table(rows)
    narrow = capsys.readouterr().out.splitlines()
    assert narrow[1:4] == ["cam01", "  median px: 3.4", "  frames in which somebody is seen: 58"]
    assert narrow[4:] == ["all", "  median px: 3.4"]
    monkeypatch.setattr(screen.console, "width", 80)
    screen.print_table(rows)
    assert "cam01   " in capsys.readouterr().out
