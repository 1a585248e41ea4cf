"""C3D: joints and keypoints as markers, by ezc3d."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import ezc3d
import numpy as np

from models.body import Body
from models.formats.take import Take
from models.formats.traits import Traits, z_up

TRAITS: Final = Traits(
    suffix=".c3d", description="joints and BODY_25 markers", unit="millimetres", turn=z_up, gaps="nan"
)

_MAX_FRAME: Final = 65535
"""Last frame that the header has room for; beyond, the parameters of TRIAL count."""


def encode(take: Take, body: Body, name: str) -> Iterator[bytes]:
    """Markers: SMPL's joints, then the keypoints, by name; a marker that is not there has the residual −1.

    The header and ``POINT:FRAMES`` end at 65,535. ``POINT:LONG_FRAMES`` has the count, and
    ``TRIAL:ACTUAL_START_FIELD`` and ``ACTUAL_END_FIELD`` the first and last frame as two 16-bit words each,
    counted from 1 (c3d.org, "Maintaining C3D frame count compatibility").
    """
    markers = np.concatenate([take.joints, take.points], 1)
    count = len(markers)
    file: Any = ezc3d.c3d()
    points = np.ones((4, markers.shape[1], count))
    points[:3] = 1000 * markers.transpose(2, 1, 0)
    file["data"]["points"] = points
    missing = ~np.isfinite(markers).all(-1)
    file["data"]["meta_points"]["residuals"] = np.where(missing.T[None], -1.0, 0.0)
    parameters = file["parameters"]["POINT"]
    parameters["RATE"]["value"] = [float(take.rate)]
    parameters["UNITS"]["value"] = ["mm"]
    parameters["LABELS"]["value"] = [*body.skeleton.names, *take.point_names]
    file.add_parameter("POINT", "X_SCREEN", ["+X"])
    file.add_parameter("POINT", "Y_SCREEN", ["+Z"])
    first, last = take.first + 1, take.first + count
    if last <= _MAX_FRAME:
        file["header"]["points"]["first_frame"] = take.first
    file.add_parameter("POINT", "LONG_FRAMES", [float(count)])
    for field, frame in (("ACTUAL_START_FIELD", first), ("ACTUAL_END_FIELD", last)):
        file.add_parameter("TRIAL", field, [frame & 0xFFFF, frame >> 16])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "take.c3d"
        file.write(str(path))
        with path.open("rb") as stream:
            while piece := stream.read(1 << 20):
                yield piece
