"""TRC: keypoints as markers for OpenSim and Pose2Sim."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from models.body import Body
from models.formats.long_take import LongTake
from models.formats.traits import Traits, y_up_as_pose2sim

TRAITS: Final = Traits(
    suffix=".trc",
    description="BODY_25 markers: OpenSim, Pose2Sim",
    turn=y_up_as_pose2sim,
    gaps="empty",
)

_POSE2SIM: Final = {"MidHip": "CHip"}
"""Names that Pose2Sim, and so its OpenSim models, have for points of BODY_25; the others are the same."""


def encode(take: LongTake, body: Body, name: str) -> Iterator[bytes]:
    """Keypoints as markers; ``name`` of the file is in its first line.

    Metres. Frame numbers and times are the recording's. Frames that are not valid have empty cells. Every row
    ends in a tab, as OpenSim writes them: it does not count a last cell that is empty, and refuses the row.
    """
    markers = [_POSE2SIM.get(point, point) for point in take.point_names]
    rate, count = f"{float(take.rate):.10g}", len(take)
    heads = "DataRate CameraRate NumFrames NumMarkers Units OrigDataRate OrigDataStartFrame OrigNumFrames"
    values = (rate, rate, str(count), str(len(markers)), "m", rate, str(take.first), str(count))
    lines = [
        f"PathFileType\t4\t(X/Y/Z)\t{name}",
        heads.replace(" ", "\t"),
        "\t".join(values),
        "Frame#\tTime\t" + "".join(f"{marker}\t\t\t" for marker in markers),
        "\t\t" + "".join(f"{axis}{i + 1}\t" for i in range(len(markers)) for axis in "XYZ"),
    ]
    yield ("\n".join(lines) + "\n").encode(errors="surrogateescape")
    for piece in take.pieces():
        shown = np.isfinite(piece.points).all(-1) & piece.valid[:, None]
        rows = []
        for i, (time, points) in enumerate(zip(piece.time_s, piece.points, strict=True)):
            cells = (
                "{:.6f}\t{:.6f}\t{:.6f}\t".format(*p) if s else "\t\t\t"
                for s, p in zip(shown[i], points, strict=True)
            )
            rows.append(f"{piece.first + i}\t{time:.6f}\t" + "".join(cells) + "\n")
        yield "".join(rows).encode()
