"""Pairing of a calibration's cameras with keypoints of other names, by the agreement on people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations, permutations
from typing import Final

import numpy as np

from models.geometry.picture_scale import agree_on_body, evidence
from pipeline.array_types import Floats
from pipeline.cameras import Rig
from pipeline.findings import Finding
from pipeline.layout import named_so
from pipeline.recording import Recording
from pipeline.timeline import spread

_MAX_FRAMES: Final = 8
_MAX_PERMUTED: Final = 5
"""Most cameras of which all orders are tried; of more, exchanges of two while the evidence grows."""


def reordered(rig: Rig, order: Sequence[int]) -> Rig:
    """Rig with the cameras ``order`` under the names of the original order."""
    names = rig.names
    return replace(rig.select([names[v] for v in order]), names=names)


def pair_by_people(recording: Recording, rig: Rig, image: Floats, orders: Sequence[str]) -> Recording:
    """Pair a recording's cameras by people, where the sorted order is wrong; rig in metres."""
    order = find_pairing(rig, image, orders)
    if order is None:
        return recording
    pairs = {recording.paired[v]: name for v, name in zip(order, rig.names, strict=True)}
    sentence = (
        "names in the calibration and those of the videos or keypoints differ; paired as they agree on the "
        f"people, not in sorted order: {', '.join(f'{a} = {b}' for a, b in pairs.items())}; {named_so(pairs)}"
    )
    kept = [
        f for f in recording.findings if f.code not in ("names_paired_in_order", "names_paired_by_people")
    ]
    findings = (*kept, Finding("names_paired_by_people", sentence))
    return replace(recording, rig=reordered(recording.rig, order), paired=tuple(pairs), findings=findings)


def find_pairing(rig: Rig, image: Floats, orders: Sequence[str]) -> tuple[int, ...] | None:
    """Find the order of the rig's cameras, other than their own, of clearly best agreement on a body.

    None without one, or with pictures of several sizes.

    rig: in metres. image: (V, T, P, K, 3) pixels and confidence. orders: that the points may be in.
    """
    image = image[:, spread(np.flatnonzero((image[..., 2] > 0).any((2, 3)).sum(0) > 1), _MAX_FRAMES)]
    own = tuple(range(len(rig)))
    if not image.size or (rig.size != rig.size[0]).any():
        return None
    found = {own: evidence(rig, image, orders)}

    def look(tried: Iterable[tuple[int, ...]]) -> None:
        for order in tried:
            if order not in found:
                found[order] = evidence(reordered(rig, order), image, orders)

    if len(own) <= _MAX_PERMUTED:
        look(permutations(own))
    best = own
    while len(own) > _MAX_PERMUTED:
        look(_exchanges(best))
        if (better := max(found, key=lambda order: found[order])) == best:
            break
        best = better
    first, second = sorted(found, key=lambda order: -found[order])[:2]
    # With two cameras exchanged the evidence is less by two of V or more; by 0 to 5 % where all have been
    # turned on by one in an even ring.
    if first == own or found[first] < (1 + 1 / len(own)) * found[second]:
        return None
    return first if agree_on_body(reordered(rig, first), image, orders) else None


def _exchanges(order: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
    """Orders with two cameras exchanged."""
    for a, b in combinations(range(len(order)), 2):
        swapped = list(order)
        swapped[a], swapped[b] = order[b], order[a]
        yield tuple(swapped)
