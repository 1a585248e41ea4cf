"""SMPL parameters in an npz under AMASS's names."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Final

import numpy as np
import roma
import torch

from models.body import Body
from models.formats.take import Take
from models.formats.traits import Traits, z_up

TRAITS: Final = Traits(
    suffix=".npz",
    description="SMPL parameters under AMASS's names",
    turn=z_up,
    gaps="nan",
    betas=True,
)


def encode(take: Take, body: Body, name: str) -> Iterator[bytes]:
    """Parameters and joints; NaN where there is no pose.

    ``poses`` (T, 72) axis-angle of SMPL's joints, ``trans`` (T, 3), ``betas`` (B,) of the body that
    ``model`` and ``model_sha256`` name: those of the body that ships mean nothing to SMPL. The rate comes
    under both names that readers look for.
    """
    rotvecs = roma.rotmat_to_rotvec(torch.from_numpy(take.rotations)).numpy()
    gender = next((g for g in ("female", "male") if g in body.name.lower()), "neutral")
    arrays = {
        "poses": rotvecs.reshape(len(rotvecs), -1).astype(np.float32),
        "trans": take.transl.astype(np.float32),
        "betas": take.betas.astype(np.float32),
        "gender": np.array(gender),
        "mocap_framerate": np.array(float(take.rate)),
        "mocap_frame_rate": np.array(float(take.rate)),
        "surface_model_type": np.array("smpl"),
        "model": np.array(body.name),
        "model_sha256": np.array(body.sha256),
        "joints": take.joints.astype(np.float32),
        "valid": take.valid,
        "time_s": take.time_s,
    }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    yield content.getvalue()
