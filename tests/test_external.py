"""Files that cannot ship: those that are there are looked at, and what is wrong with them is content."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from h36m_tree import make

from models.external import EXTERNAL, External, check_external
from pipeline.files import write_bytes_atomically


def named(name: str) -> External:
    (found,) = (e for e in EXTERNAL if e.name.startswith(name))
    return found


def test_every_file_says_all_that_a_user_needs() -> None:
    assert len({e.name for e in EXTERNAL}) == len(EXTERNAL)
    for e in EXTERNAL:
        assert all((e.purpose, e.source, e.terms, e.option)), e.name


@pytest.mark.parametrize("external", EXTERNAL, ids=lambda e: e.name)
def test_what_is_not_there_or_damaged_is_not_sound(
    external: External, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = check_external(external, tmp_path)
    assert (found.exists, found.sound, found.content) == (False, False, "")
    found.path.parent.mkdir(parents=True, exist_ok=True)
    if found.path.suffix:
        found.path.write_bytes(b"cut off")
    else:
        found.path.mkdir()
    found = check_external(external, tmp_path)
    assert (found.exists, found.sound) == (True, False)
    assert str(found.path) in found.content


def test_sound_files_say_what_they_hold(tmp_path: Path) -> None:
    matrix = np.zeros((9, 6890))
    matrix[:, 0] = 1
    np.save(tmp_path / "J_regressor_extra.npy", matrix)
    assert "9 joints" in check_external(named("J_regressor_extra"), tmp_path).content
    prior = {
        "means": np.zeros((8, 69)),
        "covars": np.tile(np.eye(69), (8, 1, 1)),
        "weights": np.full(8, 1 / 8),
    }
    (tmp_path / "gmm_08.pkl").write_bytes(pickle.dumps(prior))
    assert check_external(named("gmm_08"), tmp_path).content == "8 components"
    make(tmp_path / "h36m", names=("Eating.60457274",))
    found = check_external(named("h36m"), tmp_path)
    assert found.sound
    assert found.content == "videos or sequences, test: 1"


def test_torchs_files_are_checked_by_the_hash_in_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    external = named("torch/resnet50")
    assert not check_external(external, tmp_path).exists
    (tmp_path / "checkpoints").mkdir()
    write_bytes_atomically(tmp_path / "checkpoints" / "resnet50-0676ba61.pth", b"cut off")
    found = check_external(external, tmp_path)
    assert (found.exists, found.sound) == (True, False)
    assert "expected 0676ba61" in found.content
