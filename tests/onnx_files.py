"""ONNX files of small networks, written field by field: what tests need of the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

FLOAT, INT64, HALF = 1, 7, 10
Node = tuple[str, Sequence[str], Sequence[str], Mapping[str, int | Sequence[int]]]
"""Operator, inputs, outputs, attributes."""
Dims = Sequence[int | str]
"""Lengths; a name stands for one that is free."""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value & (1 << 64) - 1)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _tensor(name: str, array: np.ndarray) -> bytes:
    kind = INT64 if array.dtype == np.int64 else FLOAT
    dims = b"".join(_field(1, n) for n in array.shape)
    return dims + _field(2, kind) + _field(8, name) + _field(9, array.tobytes())


def _value(name: str, dims: Dims, kind: int) -> bytes:
    shape = b"".join(_field(1, _field(1 if isinstance(n, int) else 2, n)) for n in dims)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return _field(1, name) + _field(3, value) + _field(20, 2)
    return _field(1, name) + b"".join(_field(8, n) for n in value) + _field(20, 7)


def onnx_file(
    nodes: Sequence[Node],
    constants: Mapping[str, np.ndarray],
    inputs: Mapping[str, Dims],
    outputs: Mapping[str, Dims],
    kind: int = FLOAT,
) -> bytes:
    """Content of a file with these nodes, in order, in operator set 13. kind: of inputs and outputs."""
    graph = _field(2, "graph")
    for operator, given, gives, attributes in nodes:
        node = b"".join(_field(1, n) for n in given) + b"".join(_field(2, n) for n in gives)
        node += _field(4, operator) + b"".join(_field(5, _attribute(*a)) for a in attributes.items())
        graph += _field(1, node)
    graph += b"".join(_field(5, _tensor(n, a)) for n, a in constants.items())
    graph += b"".join(_field(11, _value(n, d, kind)) for n, d in inputs.items())
    graph += b"".join(_field(12, _value(n, d, kind)) for n, d in outputs.items())
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13))


def external_data(file: str) -> bytes:
    """Content of a model whose only tensor has its numbers in another file."""
    location = _field(1, "location") + _field(2, file)
    return _field(7, _field(5, _field(8, "w") + _field(13, location) + _field(14, 1)))
