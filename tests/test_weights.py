from __future__ import annotations

import pytest
import torch

from models.weights import read_weights, save_weights


def test_what_is_saved_is_read(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}
    save_weights(path, tensors, {"kind": "x", "width": 3})
    found, config = read_weights(path.read_bytes())
    assert config == {"kind": "x", "width": 3}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], v) for k, v in tensors.items())
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"a": torch.ones(2)}, {})
    before = path.read_bytes()
    (tmp_path / "weights.safetensors.part").mkdir()
    with pytest.raises(IsADirectoryError):
        save_weights(path, {"a": torch.zeros(2)}, {})
    assert path.read_bytes() == before
