"""C3D: joints and keypoints as markers, by ezc3d."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import ezc3d
import numpy as np

from models.body import Body
from models.formats.long_take import LongTake
from models.formats.traits import Traits, z_up

TRAITS: Final = Traits(
    suffix=".c3d", description="joints and BODY_25 markers", unit="millimetres", turn=z_up, gaps="nan"
)

_MAX_FRAME: Final = 65535
"""Last frame that the header has room for; beyond, the parameters of TRIAL count."""
_BLOCK: Final = 512
"""Bytes that header, parameters and data are whole numbers of."""


def encode(take: LongTake, body: Body, name: str) -> Iterator[bytes]:
    """Markers: SMPL's joints, then the keypoints, by name; a marker that is not there has the residual −1.

    The header and ``POINT:FRAMES`` end at 65,535. ``POINT:LONG_FRAMES`` has the count, and
    ``TRIAL:ACTUAL_START_FIELD`` and ``ACTUAL_END_FIELD`` the first and last frame as two 16-bit words each,
    counted from 1 (c3d.org, "Maintaining C3D frame count compatibility").
    """
    count, markers = len(take), len(body.skeleton) + len(take.point_names)
    template = _header(take, body.skeleton.names)
    begin = bytearray(template)
    blocks = -(-count * markers * 16 // _BLOCK)
    # ezc3d writes what is in memory: here one frame. These are all 16-bit words that depend on their number.
    words = {
        8: take.first + count if take.first + count <= _MAX_FRAME else min(count, _MAX_FRAME),
        _value_at(template, b"POINT", b"FRAMES"): min(count, _MAX_FRAME),
        _value_at(template, b"ROTATION", b"DATA_START"): (len(begin) // _BLOCK + blocks + 1) & 0xFFFF,
    }
    for at, value in words.items():
        struct.pack_into("<H", begin, at, value)
    yield bytes(begin)
    for piece in take.pieces():
        rows = np.zeros((len(piece.joints), markers, 4), "<f4")
        rows[..., :3] = 1000 * np.concatenate([piece.joints, piece.points], 1)
        rows[~np.isfinite(rows).all(-1)] = 0, 0, 0, -1
        yield rows.tobytes()
    yield bytes(blocks * _BLOCK - count * markers * 16)


def _header(take: LongTake, joints: Sequence[str]) -> bytes:
    """Header and parameters, in whole blocks, as ezc3d writes them for one frame."""
    file: Any = ezc3d.c3d()
    labels = [*joints, *take.point_names]
    file["data"]["points"] = np.ones((4, len(labels), 1))
    parameters = file["parameters"]["POINT"]
    parameters["RATE"]["value"] = [float(take.rate)]
    parameters["UNITS"]["value"] = ["mm"]
    parameters["LABELS"]["value"] = labels
    file.add_parameter("POINT", "X_SCREEN", ["+X"])
    file.add_parameter("POINT", "Y_SCREEN", ["+Z"])
    first, last = take.first + 1, take.first + len(take)
    if last <= _MAX_FRAME:
        file["header"]["points"]["first_frame"] = take.first
    file.add_parameter("POINT", "LONG_FRAMES", [float(len(take))])
    for field, frame in (("ACTUAL_START_FIELD", first), ("ACTUAL_END_FIELD", last)):
        file.add_parameter("TRIAL", field, [frame & 0xFFFF, frame >> 16])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "take.c3d"
        file.write(str(path))
        content = path.read_bytes()
    return content[: _BLOCK * (int.from_bytes(content[16:18], "little") - 1)]


def _value_at(parameters: bytes, group: bytes, name: bytes) -> int:
    """Place of the value of a parameter: after its name come two bytes, its type, and its number of axes."""
    return parameters.index(name, parameters.index(group)) + len(name) + 4
