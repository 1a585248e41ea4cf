"""SMPL parameters in an npz under smplx's names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.body import Body
from models.formats.amass import gender_of, rotvecs, saved
from models.formats.long_take import LongTake
from models.formats.take import Take
from models.formats.traits import Traits, z_up

TRAITS: Final = Traits(
    suffix=".smpl.npz", description="SMPL parameters under smplx's names", turn=z_up, gaps="nan", betas=True
)


def encode(take: LongTake, body: Body, name: str) -> Iterator[bytes]:
    """``global_orient`` (T, 3), ``body_pose`` (T, 69), ``betas`` (T, B), ``transl`` (T, 3): what
    ``smplx.SMPL`` takes. NaN where there is no pose."""
    yield from saved(
        map(_rows, take.pieces()),
        global_orient=None,
        body_pose=None,
        betas=None,
        transl=None,
        gender=np.array(gender_of(body)),
        fps=np.array(float(take.rate)),
        model=np.array(body.name),
        model_sha256=np.array(body.sha256),
        valid=take.valid,
        time_s=take.time_s,
    )


def _rows(piece: Take) -> dict[str, NDArray[np.float32]]:
    vectors = rotvecs(piece)
    return {
        "global_orient": vectors[:, 0],
        "body_pose": vectors[:, 1:].reshape(len(vectors), -1),
        "betas": np.tile(piece.betas.astype(np.float32), (len(vectors), 1)),
        "transl": piece.transl.astype(np.float32),
    }
