"""OpenPose's JSON of the fitted body in every picture, and of what was seen of the person there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from models.body import Body
from models.formats.long_take import LongTake
from models.formats.take import Take
from models.formats.traits import Traits, as_it_is
from pipeline.formats.keypoints.openpose import people_json

TRAITS: Final = Traits(
    suffix=".openpose",
    description="folder with OpenPose's JSON of the body in every picture, and of what was seen",
    unit="pixels",
    turn=as_it_is,
    gaps="left out",
    views=True,
)


def files(people: Sequence[LongTake], body: Body) -> Iterator[tuple[str, bytes]]:
    """``reprojected/<camera>/<camera>_<frame>_keypoints.json`` and ``associated/...``.

    A file's number is that of the frame in the camera's own video, as OpenPose counts; where a video has no
    frame there is no file. Pixels of the video frames. Reprojected points have the confidence 1;
    ``person_id`` is the person's.
    """
    for takes in zip(*(take.pieces() for take in people), strict=True):
        yield from _files(takes)


def _files(takes: Sequence[Take]) -> Iterator[tuple[str, bytes]]:
    ids = [take.person for take in takes]
    views = [take.views for take in takes if take.views is not None]
    assert len(views) == len(takes)  # TRAITS.views
    rig = views[0].rig
    seen = np.stack([view.keypoints for view in views], 2)  # (V, T, P, K, 3)
    for i in range(len(takes[0].time_s)):
        drawn = np.stack([rig.project(take.points[i], distorted=True) for take in takes], 1)  # (V, P, K, 2)
        inside = np.isfinite(drawn).all(-1, keepdims=True)
        reprojected = np.concatenate([np.where(inside, drawn, np.nan), inside], -1)
        for v, name in enumerate(rig.names):
            if (frame := views[0].frame_index[v, i]) < 0:
                continue
            file = f"{name}/{name}_{frame:012d}_keypoints.json"
            yield f"reprojected/{file}", people_json(reprojected[v], ids).encode()
            yield f"associated/{file}", people_json(seen[v, i], ids).encode()
