"""Networks as ONNX files: sessions that run them, and checksums of the shipped ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np

from pipeline.array_types import Floats
from pipeline.errors import InputError

Device = Literal["cpu", "cuda"]

FINDER: Final = "movenet_multipose"
LANDMARKS: Final = MappingProxyType({"heavy": "blazepose_heavy", "full": "blazepose_full"})
"""Landmark network of each name in the settings."""

SHA256: Final = MappingProxyType(
    {
        "blazepose_heavy": "98c6778d296c313cabae7d60c5e42ec2b0adf47e9bbc829917fa44255c001a57",
        "blazepose_full": "95806700d1b75ab2da7797f9026734a41c30d1f95328622743f343e29252be8e",
        "movenet_multipose": "3df87bf58825928c38539e34f2abc1044778bfec871a39c4aecfceb3bf081e79",
    }
)
"""sha256 of each network that ships, written by ``models/assets/convert_detectors.py``."""

_LOCATION: Final = re.compile(rb"\x0a\x08location\x12[\x01-\x7f]", re.DOTALL)
"""Start of an entry of ONNX's ``external_data`` in protobuf, up to the length of the file's name."""

MAX_BATCH: Final = MappingProxyType({"cpu": 4, "cuda": 32})
"""Most pictures in one call of a network. A CPU gains nothing from more: 25 ms each in 8, 23 in 1 or 4."""


@dataclass(frozen=True)
class Network:
    """Loaded network."""

    name: str
    """File or asset, for messages."""
    session: Any
    """onnxruntime's ``InferenceSession``."""
    inputs: Mapping[str, tuple[int | None, ...]]
    """Name and shape of each input; None for a length that is free."""
    outputs: Mapping[str, tuple[int | None, ...]]
    device: Device
    sha256: str
    """Of the file."""
    input_type: str = "tensor(float)"
    """onnxruntime's name of the input's type."""

    def run(self, pictures: Floats) -> dict[str, Floats]:
        """Run on pictures (N, 3, H, W) and return each output (N, ...) by name.

        The result of a picture is bit for bit independent of the others. N may be 0. Raises ``InputError``
        where the network fails.
        """
        (name,) = self.inputs
        step = self.inputs[name][0] or MAX_BATCH[self.device]
        given = pictures.astype(np.float16) if self.input_type == "tensor(float16)" else pictures
        parts = [[np.zeros((0, *(d or 0 for d in shape[1:]))) for shape in self.outputs.values()]]
        try:
            for k in range(0, len(pictures), step):
                parts.append(self.session.run([*self.outputs], {name: given[k : k + step]}))
        except Exception as e:  # onnxruntime's errors share no base class of their own
            raise InputError(f"{self.name}: fails on pictures {given.shape}: {e}") from e
        outputs = [np.concatenate(out).astype(np.float32) for out in zip(*(parts[1:] or parts), strict=True)]
        return dict(zip(self.outputs, outputs, strict=True))


def load_asset(name: str, device: Device = "cpu", folder: Path | None = None) -> Network:
    """Load a network that ships, by its name in ``SHA256``. folder: where the files lie instead.

    Raises:
        InputError: the file is missing or not the one that shipped, or the device cannot be used.
    """
    file = (files("models.assets") if folder is None else folder) / f"{name}.onnx"
    try:
        content = file.read_bytes()
    except OSError as e:
        raise InputError(f"{file}: cannot be read ({e.strerror}). Install the package again.") from e
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise InputError(
            f"{file}: damaged: {len(content)} bytes with sha256 {found[:12]}, expected {SHA256[name][:12]}. "
            "Install the package again."
        )
    return load_network(content, file.name, device)


def load_file(file: Path, device: Device = "cpu") -> Network:
    """Load an ONNX file, whose weights may lie in another beside it. Raises ``InputError``."""
    try:
        digest = file_digest(file)
    except OSError as e:
        raise InputError(
            f"detect.model: {file}: cannot be read ({e.strerror}). Give heavy, full, or an ONNX file."
        ) from e
    return replace(load_network(str(file), str(file), device), sha256=digest)


def file_digest(file: Path) -> str:
    """sha256 of an ONNX file, and of the files beside it in which, by its content, weights lie.

    Raises ``OSError``.
    """
    content = file.read_bytes()
    digest = hashlib.sha256(content)
    lengths = (match.end() for match in _LOCATION.finditer(content))
    names = {content[at : at + content[at - 1]].decode(errors="replace") for at in lengths}
    for weights in sorted(file.parent / name for name in names):
        if weights.is_file():  # else onnxruntime says what is missing
            digest.update(weights.read_bytes())
    return digest.hexdigest()


def load_network(content: bytes | str, name: str, device: Device = "cpu") -> Network:
    """Load an ONNX file's content, or a file by its path, into a session of one thread. name: for messages.

    Raises:
        InputError: onnxruntime is missing or cannot use the file or the device.
    """
    try:
        import onnxruntime
    except ImportError as e:
        raise InputError(
            f"detection needs onnxruntime, and importing it failed ({e}): pip install onnxruntime"
        ) from e
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    if provider not in onnxruntime.get_available_providers():
        raise InputError(
            f"detect.device is {device}, and onnxruntime here offers only "
            f"{', '.join(onnxruntime.get_available_providers())}. "
            "Install onnxruntime-gpu in place of onnxruntime, or choose cpu."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=[provider])
    except Exception as e:  # onnxruntime's errors share no base class of their own
        why = re.sub(r"^.*/onnxruntime_src/.*?\) (?=[A-Z])", "", " ".join(str(e).split())).rstrip(".")
        raise InputError(
            f"{name}: onnxruntime {onnxruntime.__version__} cannot load it as an ONNX network: {why}. "
            "Expected a whole .onnx file, unpacked, in an operator set that this version knows."
        ) from e
    if session.get_providers()[0] != provider:
        raise InputError(
            f"{name}: onnxruntime found no usable {device} device and took {session.get_providers()}"
        )
    shapes = [
        {v.name: tuple(d if isinstance(d, int) else None for d in v.shape) for v in values}
        for values in (session.get_inputs(), session.get_outputs())
    ]
    digest = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else ""
    input_type = next((v.type for v in session.get_inputs()), "")
    return Network(name, session, shapes[0], shapes[1], device, digest, input_type)


def check_signature(
    network: Network, input_shape: tuple[int, ...], output_shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Check a network for one input and some outputs of these shapes, each without the batch.

    Raises ``InputError`` with both its shapes and the expected ones.
    """
    inputs = [shape[1:] for shape in network.inputs.values()]
    outputs = {n: shape[1:] for n, shape in network.outputs.items()}
    if inputs != [input_shape] or any(outputs.get(n) != shape for n, shape in output_shapes.items()):
        raise InputError(
            f"{network.name}: takes {dict(network.inputs)} and gives {dict(network.outputs)}, expected one "
            f"input {('N', *input_shape)} and outputs { {n: ('N', *s) for n, s in output_shapes.items()} }"
        )
