"""Replay of GPU work: a function of tensors whose kernels are recorded once and launched in one piece.

A network of some hundred small kernels takes the processor longer to launch than the GPU to run. A CUDA graph
of them is launched at once: docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.batches import TensorBatch

MAX_RECORDINGS: Final = 16
"""Recordings of one function; inputs of other shapes after them are computed as ever."""

Shapes = tuple[tuple[torch.Size, torch.dtype], ...]


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    results: dict[str, Tensor]


class Replayed:
    """``function`` of tensors and batches of tensors to named tensors; on a GPU replayed.

    The first call with inputs of some shapes computes them as ever, the second records, those after it
    replay. Results are copies. The function must depend on its tensors alone and neither wait for the GPU nor
    look at a value; other tensors, such as weights, may change where they lie but not be replaced. Random
    numbers follow the seed of each call.
    """

    def __init__(self, function: Callable[..., Mapping[str, Tensor]]) -> None:
        self._function = function
        self._recordings: dict[Shapes, _Recording | None] = {}
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, *inputs: Tensor | TensorBatch) -> dict[str, Tensor]:
        tensors = [x for given in inputs for x in _tensors(given)]
        if tensors[0].device.type != "cuda":
            return dict(self._function(*inputs))
        with torch.cuda.device(tensors[0].device):
            return self._on_gpu(inputs, tensors)

    def _on_gpu(self, inputs: tuple[Tensor | TensorBatch, ...], tensors: list[Tensor]) -> dict[str, Tensor]:
        shapes = tuple((x.shape, x.dtype) for x in tensors)
        if shapes not in self._recordings:
            if len(self._recordings) < MAX_RECORDINGS:
                self._recordings[shapes] = None
            return self._aside(inputs)
        recording = self._recordings[shapes]
        if recording is None:
            recording = self._recordings[shapes] = self._record(inputs, tensors)
        for to, x in zip(recording.inputs, tensors, strict=True):
            to.copy_(x)
        recording.graph.replay()
        return {name: x.clone() for name, x in recording.results.items()}

    def _aside(self, inputs: tuple[Tensor | TensorBatch, ...]) -> dict[str, Tensor]:
        """Compute in another stream, as what is recorded later must have been before."""
        now = torch.cuda.current_stream()
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            results = dict(self._function(*inputs))
        now.wait_stream(self._stream)
        for x in results.values():
            x.record_stream(now)
        return results

    def _record(self, inputs: tuple[Tensor | TensorBatch, ...], tensors: list[Tensor]) -> _Recording:
        held = [x.clone() for x in tensors]
        rest = iter(held)
        copies = [_with_tensors(given, rest) for given in inputs]
        graph = torch.cuda.CUDAGraph()
        # Other threads copy to the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = dict(self._function(*copies))
        self._pool = self._pool or graph.pool()  # one for all: no two recordings run at once
        return _Recording(graph, held, results)


def _tensors(given: Tensor | TensorBatch) -> list[Tensor]:
    if isinstance(given, Tensor):
        return [given]
    found: list[Tensor] = []

    def add(x: Tensor) -> Tensor:
        found.append(x)
        return x

    given.map(add)
    return found


def _with_tensors(given: Tensor | TensorBatch, tensors: Iterator[Tensor]) -> Tensor | TensorBatch:
    return next(tensors) if isinstance(given, Tensor) else given.map(lambda _: next(tensors))
