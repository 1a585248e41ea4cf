"""EasyMocap's results: a folder with a JSON file a frame, SMPL parameters and 3D keypoints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.body import Body
from models.formats.amass import rotvecs
from models.formats.long_take import LongTake
from models.formats.take import Take, rest_joints
from models.formats.traits import Traits, as_it_is

TRAITS: Final = Traits(
    suffix=".easymocap",
    description="folder with smpl/ and keypoints3d/ as EasyMocap has them",
    turn=as_it_is,
    gaps="left out",
    betas=True,
)


def files(people: Sequence[LongTake], body: Body) -> Iterator[tuple[str, bytes]]:
    """``smpl/<frame>.json``, ``[{id, Rh, Th, poses, shapes}]``, and ``keypoints3d/<frame>.json``.

    EasyMocap turns the whole body about the origin and not about the pelvis: with p the pelvis in the rest
    pose, Rh is SMPL's global orientation, Th = transl + p − R p, and the first three of ``poses`` are 0.
    """
    for takes in zip(*(take.pieces() for take in people), strict=True):
        yield from _files(takes, body)


def _files(takes: Sequence[Take], body: Body) -> Iterator[tuple[str, bytes]]:
    motions = [_motion(take, body) for take in takes]
    for i in range(len(takes[0].time_s)):
        people: list[dict[str, Any]] = []
        points: list[dict[str, Any]] = []
        for take, (vectors, places) in zip(takes, motions, strict=True):
            if not np.isfinite(places[i]).all():
                continue
            pose = np.concatenate([np.zeros(3), vectors[i, 1:].ravel()])
            people.append(
                {
                    "id": take.person,
                    "Rh": _rows(vectors[i, :1]),
                    "Th": _rows(places[i : i + 1]),
                    "poses": _rows(pose[None]),
                    "shapes": _rows(take.betas[None]),
                }
            )
            seen = np.isfinite(take.points[i]).all(-1, keepdims=True)
            marks = np.concatenate([np.where(seen, take.points[i], 0), seen], 1)
            points.append({"id": take.person, "keypoints3d": _rows(marks)})
        for folder, content in (("smpl", people), ("keypoints3d", points)):
            yield f"{folder}/{takes[0].first + i:06d}.json", json.dumps(content).encode()


def _motion(take: Take, body: Body) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Axis-angle (T, J, 3) and EasyMocap's Th (T, 3)."""
    pelvis = rest_joints(body, take.betas)[0]
    return rotvecs(take), take.transl + pelvis - take.rotations[:, 0] @ pelvis


def _rows(array: NDArray[Any]) -> list[list[float]]:
    found: list[list[float]] = np.asarray(array, float).round(6).tolist()
    return found
