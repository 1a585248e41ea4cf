"""The stage that keeps results: writes every window to the store and hands it on."""

from __future__ import annotations

from collections.abc import Iterator

from models.angles import fitted_angles
from pipeline.batches import FitBatch, PoseBatch
from pipeline.store import Store


def store(items: Iterator[FitBatch], results: Store, *, replay: bool = True) -> Iterator[FitBatch]:
    """Write what comes in to ``results``, with its joint angles where it keeps them, and pass it on.

    With ``replay`` the windows that an earlier run has already written come first, so that what follows sees
    the recording from its beginning; and each window is passed on as the store keeps it, so that what follows
    sees the same whether or not the run was interrupted.
    """
    first = results.first_missing
    if replay:
        for k in range(first):
            yield results.read(k)
    up, measured = results.contents.rig.up, bool(results.contents.angles)
    for k, batch in enumerate(items, first):
        results.write(batch, fitted_angles(batch, up) if measured else None)
        yield results.read(k) if replay else batch


def store_regression(items: Iterator[PoseBatch], results: Store) -> Iterator[PoseBatch]:
    """Write what the regressor says to ``results`` and pass it on."""
    for batch in items:
        results.write_regression(batch)
        yield batch
