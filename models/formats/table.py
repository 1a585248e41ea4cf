"""CSV: positions of the joints, and joint angles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from models.body import Body
from models.formats.long_take import LongTake
from models.formats.traits import Traits, z_up

TRAITS: Final = Traits(
    suffix=".csv", description="joints' positions, and joint angles in degrees", turn=z_up, gaps="nan"
)


def encode(take: LongTake, body: Body, name: str) -> Iterator[bytes]:
    """A row a frame: frame, time_s, valid, three columns a joint in metres, one an angle in degrees.

    A cell without a value is empty.
    """
    joints = [f"{joint}_{axis}_m" for joint in body.skeleton.names for axis in "xyz"]
    heads = ("frame", "time_s", "valid", *joints, *(f"{angle}_deg" for angle in take.angle_names))
    yield (",".join(heads) + "\n").encode()
    for piece in take.pieces():
        places = piece.joints.reshape(len(piece.joints), -1)
        numbers = np.concatenate([places, piece.angles], 1) if take.angle_names else places
        lines = (
            f"{piece.first + i},{time:.6f},{int(valid)},"
            + ",".join(f"{n:.6f}" if np.isfinite(n) else "" for n in row)
            for i, (time, valid, row) in enumerate(
                zip(piece.time_s.tolist(), piece.valid.tolist(), numbers.tolist(), strict=True)
            )
        )
        yield ("\n".join(lines) + "\n").encode()
