"""Stage that writes every window to the store and passes it on."""

from __future__ import annotations

from collections.abc import Iterator

from models.angles import fitted_angles
from pipeline.batches import FitBatch, PoseBatch
from pipeline.store import Store


def store(items: Iterator[FitBatch], results: Store, *, replay: bool = True) -> Iterator[FitBatch]:
    """Write windows to ``results``, with joint angles where it has them, and pass them on.

    replay: pass on every window as read from the store, first those of an earlier run, so that the next stage
    sees the same recording whether or not the run was interrupted.
    """
    first = results.first_missing
    if replay:
        yield from map(results.read, range(first))
    up, has_angles = results.contents.rig.up, bool(results.contents.angles)
    for k, batch in enumerate(items, first):
        results.write(batch, fitted_angles(batch, up) if has_angles else None)
        yield results.read(k) if replay else batch


def store_regression(items: Iterator[PoseBatch], results: Store) -> Iterator[PoseBatch]:
    """Write the regressor's poses to ``results`` and pass them on."""
    for batch in items:
        results.write_regression(batch)
        yield batch
