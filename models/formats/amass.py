"""SMPL parameters in an npz as AMASS has them, for aitviewer and the SMPL-X add-on of Blender."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.body import Body
from models.formats.long_take import LongTake
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


def encode(take: LongTake, body: Body, name: str) -> Iterator[bytes]:
    """Parameters and joints; NaN where there is no pose.

    ``poses`` (T, 156) axis-angle: 22 joints of SMPL, then hands at rest; what SMPL's two hand joints turn is
    left out. ``trans`` (T, 3), ``betas`` (16,), zeros after those of the body that ``model`` and
    ``model_sha256`` name: those of the body that ships mean nothing to SMPL. The rate comes under both names
    that readers look for; it, the gender and the names are arrays without axes.
    """
    betas = np.zeros(max(_BETAS, len(take.betas)), np.float32)
    betas[: len(take.betas)] = take.betas
    rate = np.array(float(take.rate))
    yield from saved(
        map(_rows, take.pieces()),
        poses=None,
        trans=None,
        betas=betas,
        num_betas=np.array(len(betas)),
        gender=np.array(gender_of(body)),
        mocap_framerate=rate,
        mocap_frame_rate=rate,
        mocap_time_length=np.array(float(len(take) / take.rate)),
        surface_model_type=np.array("smplh"),
        model=np.array(body.name),
        model_sha256=np.array(body.sha256),
        joints=None,
        valid=take.valid,
        time_s=take.time_s,
    )


def _rows(piece: Take) -> dict[str, NDArray[np.float32]]:
    vectors = rotvecs(piece)
    poses = np.zeros((len(vectors), _BODY + _HANDS), np.float32)
    poses[:, :_BODY] = vectors[:, : _BODY // 3].reshape(-1, _BODY)
    return {
        "poses": poses,
        "trans": piece.transl.astype(np.float32),
        "joints": piece.joints.astype(np.float32),
    }


def rotvecs(take: Take) -> NDArray[np.float32]:
    """(T, J, 3) axis-angle of a take's joints."""
    return np.asarray(roma.rotmat_to_rotvec(torch.from_numpy(take.rotations)).numpy(), np.float32)


def gender_of(body: Body) -> str:
    return next((g for g in ("female", "male") if g in body.name.lower()), "neutral")


def saved(rows: Iterable[Mapping[str, NDArray[Any]]], **arrays: NDArray[Any] | None) -> Iterator[bytes]:
    """Content of a compressed npz of these arrays; those that are None come row by row, in pieces of all.

    Their rows wait in files beside that of the npz, since it holds one array after another.
    """
    with TemporaryDirectory() as name:
        folder, heads = Path(name), dict[str, Any]()
        with ExitStack() as stack:
            files = {n: stack.enter_context((folder / n).open("wb")) for n, a in arrays.items() if a is None}
            for piece in rows:
                for n, part in piece.items():
                    files[n].write(np.ascontiguousarray(part).tobytes())
                    head = np.lib.format.header_data_from_array_1_0(part)
                    count = heads[n]["shape"][0] if n in heads else 0
                    heads[n] = {**head, "fortran_order": False, "shape": (count + len(part), *part.shape[1:])}
        with zipfile.ZipFile(folder / ".npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for n, array in arrays.items():
                with archive.open(f"{n}.npy", "w", force_zip64=True) as member:
                    if array is not None:
                        np.lib.format.write_array(member, array, allow_pickle=False)
                        continue
                    np.lib.format.write_array_header_1_0(member, heads[n])
                    with (folder / n).open("rb") as stream:
                        shutil.copyfileobj(stream, member)
        yield from contents(folder / ".npz")


def contents(path: Path) -> Iterator[bytes]:
    """Content of a file, in pieces."""
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            yield piece
