"""SMPL parameters in an npz as AMASS has them, for aitviewer and the SMPL-X add-on of Blender."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.body import Body
from models.formats.take import Take
from models.formats.traits import Traits, z_up

TRAITS: Final = Traits(
    suffix=".npz",
    description="SMPL+H parameters under AMASS's names: aitviewer, Blender's SMPL-X add-on",
    turn=z_up,
    gaps="nan",
    betas=True,
)

_BODY: Final = 66
"""Numbers of the 22 joints that SMPL and SMPL+H share."""
_HANDS: Final = 90
"""Numbers of the hands' 30 joints of SMPL+H, which are at rest."""
_BETAS: Final = 16


def encode(take: Take, body: Body, name: str) -> Iterator[bytes]:
    """Parameters and joints; NaN where there is no pose.

    ``poses`` (T, 156) axis-angle: 22 joints of SMPL, then hands at rest; what SMPL's two hand joints turn is
    left out. ``trans`` (T, 3), ``betas`` (16,), zeros after those of the body that ``model`` and
    ``model_sha256`` name: those of the body that ships mean nothing to SMPL. The rate comes under both names
    that readers look for; it, the gender and the names are arrays without axes.
    """
    vectors = rotvecs(take)
    poses = np.zeros((len(vectors), _BODY + _HANDS), np.float32)
    poses[:, :_BODY] = vectors[:, : _BODY // 3].reshape(-1, _BODY)
    betas = np.zeros(max(_BETAS, len(take.betas)), np.float32)
    betas[: len(take.betas)] = take.betas
    rate = np.array(float(take.rate))
    yield saved(
        poses=poses,
        trans=take.transl.astype(np.float32),
        betas=betas,
        num_betas=np.array(len(betas)),
        gender=np.array(gender_of(body)),
        mocap_framerate=rate,
        mocap_frame_rate=rate,
        mocap_time_length=np.array(float(len(vectors) / take.rate)),
        surface_model_type=np.array("smplh"),
        model=np.array(body.name),
        model_sha256=np.array(body.sha256),
        joints=take.joints.astype(np.float32),
        valid=take.valid,
        time_s=take.time_s,
    )


def rotvecs(take: Take) -> NDArray[np.float32]:
    """(T, J, 3) axis-angle of a take's joints."""
    return np.asarray(roma.rotmat_to_rotvec(torch.from_numpy(take.rotations)).numpy(), np.float32)


def gender_of(body: Body) -> str:
    return next((g for g in ("female", "male") if g in body.name.lower()), "neutral")


def saved(**arrays: NDArray[Any]) -> bytes:
    """Content of an npz of these arrays."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    return content.getvalue()
