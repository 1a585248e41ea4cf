"""CSV: positions of the joints, joint angles, and gait events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from models.body import Body
from models.formats.long_take import LongTake
from models.formats.traits import Traits, z_up

TRAITS: Final = Traits(
    suffix=".csv",
    description="joints' positions, joint angles in degrees, gait events",
    turn=z_up,
    gaps="nan",
)


def encode(take: LongTake, body: Body, name: str) -> Iterator[bytes]:
    """A row a frame: frame, time_s, valid, three columns a joint in metres, one an angle in degrees, and the
    names of the gait events to which the frame is nearest.

    A cell without a value is empty.
    """
    joints = [f"{joint}_{axis}_m" for joint in body.skeleton.names for axis in "xyz"]
    heads = ("frame", "time_s", "valid", *joints, *(f"{angle}_deg" for angle in take.angle_names), "events")
    events = _events_by_frame(take)
    yield (",".join(heads) + "\n").encode()
    for piece in take.pieces():
        places = piece.joints.reshape(len(piece.joints), -1)
        numbers = np.concatenate([places, piece.angles], 1) if take.angle_names else places
        lines = (
            f"{piece.first + i},{time:.6f},{int(valid)},"
            + ",".join(f"{n:.6f}" if np.isfinite(n) else "" for n in row)
            + f",{events.get(piece.first + i, '')}"
            for i, (time, valid, row) in enumerate(
                zip(piece.time_s.tolist(), piece.valid.tolist(), numbers.tolist(), strict=True)
            )
        )
        yield ("\n".join(lines) + "\n").encode()


def _events_by_frame(take: LongTake) -> dict[int, str]:
    """Names of the events of each frame that is nearest to some, with blanks between."""
    half_s = 0.5 / float(take.rate)
    between_s = 0.5 * (take.time_s[1:] + take.time_s[:-1])
    names: dict[int, str] = {}
    for name, times in take.events_s.items():
        inside = times[(times >= take.time_s[0] - half_s) & (times < take.time_s[-1] + half_s)]
        for frame in (take.first + np.searchsorted(between_s, inside)).tolist():
            names[frame] = f"{names[frame]} {name}" if frame in names else name
    return names
