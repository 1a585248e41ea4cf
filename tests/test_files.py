import subprocess
import sys
import threading

import pytest

from pipeline.errors import InputError
from pipeline.files import decoding, locked, write_bytes_atomically

HOLD = """
import sys
from pathlib import Path
from pipeline.files import locked
with locked(Path(sys.argv[1]), "batch"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_was_there_stays_when_a_write_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_bytes_atomically(path, b"first")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    assert [*tmp_path.iterdir()] == [path]


def test_pieces_are_written_whole_or_not_at_all(tmp_path):
    def pieces(fail):
        yield b"one, "
        if fail:
            raise KeyboardInterrupt
        yield b"two"

    path = tmp_path / "a"
    write_bytes_atomically(path, pieces(False))
    with pytest.raises(KeyboardInterrupt):
        write_bytes_atomically(path, pieces(True))
    assert path.read_bytes() == b"one, two"
    assert [*tmp_path.iterdir()] == [path]


def test_a_lock_is_refused_while_it_is_held_and_awaited_while_its_holder_ends(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(InputError, match="another batch is at work here"),
            locked(tmp_path / "out", "batch"),
        ):
            pass
        later = threading.Timer(0.3, holder.kill)
        later.start()
        with locked(tmp_path / "out", "batch"):
            assert holder.wait(5) != 0, "it was killed before the lock was given"
        later.join()


@pytest.mark.parametrize(("content", "named"), [("", "a.h5: cannot"), ("joints", "a.h5: joints cannot")])
def test_any_error_of_damaged_content_names_the_file_and_the_remedy(tmp_path, content, named):
    with (
        pytest.raises(InputError, match=named + r" be read \(RuntimeError: bad x+ \.\.\. .*\)\. Copy it\.$"),
        decoding(tmp_path / "a.h5", "Copy it.", content),
    ):
        raise RuntimeError("bad\n " + "x" * 5000)
    with pytest.raises(InputError, match=r"^known$"), decoding(tmp_path / "a.h5", "Copy it.", content):
        raise InputError("known")
