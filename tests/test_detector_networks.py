"""Networks that ship: checksums, sessions, and what is said of files that cannot be used."""

from __future__ import annotations

import hashlib
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from models.detectors.networks import (
    FINDER,
    LANDMARKS,
    MAX_BATCH,
    SHA256,
    check_signature,
    load_asset,
    load_network,
)
from pipeline.errors import InputError

ASSETS = Path(str(files("models.assets")))


def test_every_network_is_the_one_that_was_converted() -> None:
    assert {FINDER, *LANDMARKS.values()} == {*SHA256}
    assert {f.stem for f in ASSETS.glob("*.onnx")} == {*SHA256}
    for name, want in SHA256.items():
        assert hashlib.sha256((ASSETS / f"{name}.onnx").read_bytes()).hexdigest() == want
    assert max(f.stat().st_size for f in ASSETS.glob("*.onnx")) < 30e6
    assert (ASSETS / f"{FINDER}.onnx").stat().st_size < 10e6


@pytest.mark.parametrize("kept", [0, 1000, -1])
def test_a_damaged_network_is_refused_with_both_checksums(tmp_path: Path, kept: int) -> None:
    content = (ASSETS / "blazepose_full.onnx").read_bytes()[:kept]
    (tmp_path / "blazepose_full.onnx").write_bytes(content)
    found, want = hashlib.sha256(content).hexdigest(), SHA256["blazepose_full"]
    with pytest.raises(InputError) as e:
        load_asset("blazepose_full", folder=tmp_path)
    for part in (str(tmp_path), f"{len(content)} bytes", found[:12], want[:12]):
        assert part in str(e.value)


def test_a_missing_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"blazepose_full.onnx: cannot be read \(No such file"):
        load_asset("blazepose_full", folder=tmp_path)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(InputError, match=r"mine\.onnx: onnxruntime .* cannot load it"):
        load_network(b"nothing of the kind", "mine.onnx")


def test_onnxruntime_can_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="pip install onnxruntime"):
        load_asset("blazepose_full")


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match=r"detect.device is cuda, .* only CPUExecutionProvider"):
        load_asset("blazepose_full", "cuda")


def test_another_networks_shapes_are_named() -> None:
    network = load_asset("blazepose_full")
    check_signature(network, (3, 256, 256), {"landmarks": (195,), "presence": (1,)})
    for shape, outputs in (((256, 256, 3), {"landmarks": (195,)}), ((3, 256, 256), {"simcc_x": (17, 384)})):
        with pytest.raises(InputError) as e:
            check_signature(network, shape, outputs)
        expected = [str(("N", *want)) for want in (shape, *outputs.values())]
        for part in ("blazepose_full.onnx", "(None, 3, 256, 256)", "(None, 195)", *expected):
            assert part in str(e.value)


@pytest.mark.parametrize("name", SHA256)
def test_a_batch_gives_the_bits_of_one_by_one(name: str) -> None:
    network = load_asset(name)
    count = MAX_BATCH["cpu"] + 2
    pictures = np.random.default_rng(0).uniform(0, 1, (count, 3, 256, 256)).astype(np.float32)
    together = network.run(pictures)
    for k in range(count):
        for output, values in network.run(pictures[k : k + 1]).items():
            assert np.array_equal(together[output][k : k + 1], values), output
    nobody = network.run(pictures[:0])
    assert {n: v.shape[1:] for n, v in nobody.items()} == {n: v.shape[1:] for n, v in together.items()}
    assert {len(v) for v in nobody.values()} == {0}
