"""MOT: joint angles as OpenSim's motion files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from models.body import Body
from models.formats.long_take import LongTake
from models.formats.traits import Traits
from pipeline.errors import InputError

TRAITS: Final = Traits(suffix=".mot", description="joint angles: OpenSim", unit="degrees", gaps="nan")


def encode(take: LongTake, body: Body, name: str) -> Iterator[bytes]:
    """Angles by the names of the results, degrees, a row a frame; ``nan`` where there is none.

    Names and signs are those of ``models/angles.py``, and not the coordinates of an OpenSim model. Raises
    ``InputError`` where the results have no angles.
    """
    if not take.angle_names:
        raise InputError(f"{name}: these results have no joint angles. Run again to have them measured.")
    heads = (
        f"{name}\nversion=1\nnRows={len(take)}\nnColumns={1 + len(take.angle_names)}\ninDegrees=yes\n"
        "endheader\n"
    )
    yield (heads + "\t".join(("time", *take.angle_names)) + "\n").encode(errors="surrogateescape")
    for piece in take.pieces():
        rows = np.column_stack([piece.time_s, piece.angles]).tolist()
        yield "".join("\t".join(f"{n:.6f}" for n in row) + "\n" for row in rows).encode()
