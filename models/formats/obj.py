"""Wavefront OBJ: the mesh of one frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch

from models.body import Body
from models.formats.long_take import LongTake
from models.formats.take import Take
from models.formats.traits import Traits
from pipeline.array_types import Array

TRAITS: Final = Traits(suffix=".obj", description="mesh of one frame", single_frame=True)


def encode(take: LongTake, body: Body, name: str) -> Iterator[bytes]:
    """Vertices and faces of the first frame, metres, in the world of the take."""
    lines = ["v {:.6f} {:.6f} {:.6f}".format(*v) for v in _posed_vertices(take.cut(0, 1), body).tolist()]
    lines += ["f {} {} {}".format(*f) for f in (body.faces + 1).tolist()]
    yield ("\n".join(lines) + "\n").encode()


def _posed_vertices(take: Take, body: Body) -> Array:
    rotations = torch.from_numpy(take.rotations[:1])
    vertices = body.vertices(
        rotations[:, 0],
        rotations[:, 1:],
        torch.from_numpy(take.betas),
        torch.from_numpy(take.transl[:1]),
    )
    return np.asarray(vertices[0].double().numpy())
