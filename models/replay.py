"""CUDA graphs of functions of tensors: kernels recorded once and launched in one piece.

A network of some hundred small kernels takes the CPU longer to launch than the GPU to run; their graph is
launched at once: docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.batches import TensorBatch

MAX_RECORDINGS: Final = 16
"""Graphs of one function, one per combination of input shapes; further ones are computed without."""

Shapes = tuple[tuple[torch.Size, torch.dtype], ...]


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    results: dict[str, Tensor]


class Replayed:
    """``function`` of tensors and batches of tensors to named tensors; on a GPU by CUDA graphs.

    The first call with inputs of some shapes computes without a graph, the second records, those after it
    replay. Results are copies. The function must depend on its tensors alone and neither wait for the GPU nor
    look at a value; other tensors, such as weights, may change in place but not be replaced. Random numbers
    follow the seed of each call.
    """

    def __init__(self, function: Callable[..., Mapping[str, Tensor]]) -> None:
        self._function = function
        self._recordings: dict[Shapes, _Recording | None] = {}
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, *inputs: Tensor | TensorBatch) -> dict[str, Tensor]:
        tensors = [x for item in inputs for x in _tensors(item)]
        if tensors[0].device.type != "cuda":
            return dict(self._function(*inputs))
        with torch.cuda.device(tensors[0].device):
            return self._on_gpu(inputs, tensors)

    def _on_gpu(self, inputs: tuple[Tensor | TensorBatch, ...], tensors: list[Tensor]) -> dict[str, Tensor]:
        shapes = tuple((x.shape, x.dtype) for x in tensors)
        if shapes not in self._recordings:
            if len(self._recordings) < MAX_RECORDINGS:
                self._recordings[shapes] = None
            return self._warm_up(inputs)
        recording = self._recordings[shapes]
        if recording is None:
            recording = self._recordings[shapes] = self._record(inputs, tensors)
        for buffer, x in zip(recording.inputs, tensors, strict=True):
            buffer.copy_(x)
        recording.graph.replay()
        return {name: x.clone() for name, x in recording.results.items()}

    def _warm_up(self, inputs: tuple[Tensor | TensorBatch, ...]) -> dict[str, Tensor]:
        """Compute in another stream, as must be done once before a recording."""
        current = torch.cuda.current_stream()
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = dict(self._function(*inputs))
        current.wait_stream(self._stream)
        for x in results.values():
            x.record_stream(current)
        return results

    def _record(self, inputs: tuple[Tensor | TensorBatch, ...], tensors: list[Tensor]) -> _Recording:
        buffers = [x.clone() for x in tensors]
        remaining = iter(buffers)
        copies = [_with_tensors(item, remaining) for item in inputs]
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads copy to the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = dict(self._function(*copies))
        self._pool = self._pool or graph.pool()  # one memory pool: no two graphs run at once
        return _Recording(graph, buffers, results)


def _tensors(item: Tensor | TensorBatch) -> list[Tensor]:
    if isinstance(item, Tensor):
        return [item]
    tensors: list[Tensor] = []

    def add(x: Tensor) -> Tensor:
        tensors.append(x)
        return x

    item.map(add)
    return tensors


def _with_tensors(item: Tensor | TensorBatch, tensors: Iterator[Tensor]) -> Tensor | TensorBatch:
    return next(tensors) if isinstance(item, Tensor) else item.map(lambda _: next(tensors))
