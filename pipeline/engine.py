"""Pipeline of stages in threads, joined by bounded channels.

``Prefetcher`` runs an iterator in its own thread, and ``Chain`` joins stages by prefetchers. A channel ends
in one of three ways: the source is exhausted; it fails (finished items are delivered first, then its error is
raised with a note that names the stage); or the reader closes it, which closes source and thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

T = TypeVar("T")


class _Closed(BaseException):
    """Raised in a stage that waits on a closed channel; never leaves this module."""


@dataclass
class StageTimes:
    """Wall time of one stage, seconds."""

    name: str
    items: int = 0
    total: float = 0.0
    starved: float = 0.0
    """Waiting for input."""
    blocked: float = 0.0
    """Waiting for room in the output."""

    @property
    def busy(self) -> float:
        return max(0.0, self.total - self.starved - self.blocked)


_thread = threading.local()
"""Thread's ``StageTimes``, as ``.times``, where it runs a stage."""


class Prefetcher(Iterator[T]):
    """Iterator over ``source`` that runs in its own thread, at most ``capacity`` items ahead of the reader.

    Use it as a context manager or call ``close``: the thread must not outlive its reader. ``times`` has its
    busy, starved and blocked seconds.
    """

    def __init__(self, source: Iterable[T], capacity: int = 1, name: str = "stage") -> None:
        if capacity < 1:
            raise ValueError(f"a channel holds at least 1 item, got capacity={capacity}")
        self.times = StageTimes(name)
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(
            target=self._run, args=(source,), name=f"multispin {name}", daemon=True
        )
        self._worker.start()

    def _run(self, source: Iterable[T]) -> None:
        _thread.times = self.times
        start = time.perf_counter()
        items = iter(source)
        error: BaseException | None = None
        try:
            for item in items:
                self._put(item)
                self.times.total = time.perf_counter() - start
        except _Closed:
            pass
        except BaseException as e:
            error = e
        finally:
            # A failed generator's traceback would keep it and its inputs alive: close it in its own thread.
            try:
                _close(items)
            except _Closed:
                pass
            except BaseException as e:
                error = error or e
            notes = getattr(error, "__notes__", ())
            if error is not None and not any(note.startswith("in stage ") for note in notes):
                error.add_note(f"in stage '{self.times.name}'")
            with self._changed:
                self.times.total = time.perf_counter() - start
                self._error, self._ended = error, True
                self._changed.notify_all()

    def _put(self, item: T) -> None:
        with self._changed:
            start = time.perf_counter()
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._capacity)
            self.times.blocked += time.perf_counter() - start
            if self._closed:
                raise _Closed
            self._items.append(item)
            self.times.items += 1
            self._changed.notify_all()

    def __next__(self) -> T:
        reader: StageTimes | None = getattr(_thread, "times", None)
        with self._changed:
            start = time.perf_counter()
            self._changed.wait_for(lambda: self._closed or self._ended or bool(self._items))
            if reader is not None:
                reader.starved += time.perf_counter() - start
            if self._closed:
                if reader is None:
                    raise StopIteration
                raise _Closed
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        self._worker.join()
        if error is not None:
            raise error
        raise StopIteration

    def cancel(self) -> None:
        """Wake and stop both ends without waiting for the thread to finish."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the thread, close the source and wait until both are done."""
        self.cancel()
        if threading.current_thread() is not self._worker:
            self._worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


Stage = tuple[str, Callable[[Iterator[Any]], Iterable[Any]]]
"""Name of a stage, and its function from an input iterator to an output iterator."""


class Chain(Iterator[T]):
    """``source`` followed by ``stages``, each in its own thread, with at most ``capacity`` items between two.

    ``threads=False`` nests the same functions in one thread, with bit-identical results. Close it, or use it
    as a context manager: no thread, generator or file then stays open, even after an error.
    """

    def __init__(
        self,
        source: Iterable[Any],
        stages: Sequence[Stage],
        *,
        name: str = "source",
        capacity: int = 1,
        threads: bool = True,
    ) -> None:
        self._links: list[Prefetcher[Any] | Iterator[Any]] = []

        def link(items: Iterable[Any], stage: str) -> Iterator[Any]:
            self._links.append(Prefetcher(items, capacity, stage) if threads else iter(items))
            return self._links[-1]

        try:
            last = link(source, name)
            for stage, fn in stages:
                last = link(fn(last), stage)
        except BaseException:
            self.close()
            raise
        self._last = cast("Iterator[T]", last)

    def __next__(self) -> T:
        return next(self._last)

    @property
    def times(self) -> list[StageTimes]:
        """Times of each stage, in order; empty without threads."""
        return [link.times for link in self._links if isinstance(link, Prefetcher)]

    def close(self) -> None:
        for link in self._links:
            if isinstance(link, Prefetcher):
                link.cancel()
        for link in reversed(self._links):
            _close(link)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _close(items: Iterator[Any]) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        close()
