"""OpenPose's JSON of the fitted body in every picture, and of what was seen of the person there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from models.body import Body
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

_FRAMES: Final = 240
"""Frames of everybody's keypoints in all pictures that are read at once."""


def files(takes: Sequence[Take], body: Body) -> Iterator[tuple[str, bytes]]:
    """``reprojected/<camera>/<camera>_<frame>_keypoints.json`` and ``associated/...``.

    A file's number is that of the frame in the camera's own video, as OpenPose counts; where a video has no
    frame there is no file. Pixels of the video frames. Reprojected points have the confidence 1;
    ``person_id`` is the person's.
    """
    ids = [take.person for take in takes]
    views = [take.views for take in takes if take.views is not None]
    assert len(views) == len(takes)  # TRAITS.views
    rig, first, count = views[0].rig, takes[0].first, len(takes[0].time_s)
    for i in range(count):
        if i % _FRAMES == 0:
            part = first + i, first + min(i + _FRAMES, count)
            seen = np.stack([view.read_keypoints(*part) for view in views], 2)  # (V, frames, P, K, 3)
        drawn = np.stack([rig.project(take.points[i], distorted=True) for take in takes], 1)  # (V, P, K, 2)
        inside = np.isfinite(drawn).all(-1, keepdims=True)
        reprojected = np.concatenate([np.where(inside, drawn, np.nan), inside], -1)
        for v, name in enumerate(rig.names):
            if (frame := views[0].frame_index[v, i]) < 0:
                continue
            file = f"{name}/{name}_{frame:012d}_keypoints.json"
            yield f"reprojected/{file}", people_json(reprojected[v], ids).encode()
            yield f"associated/{file}", people_json(seen[v, i % _FRAMES], ids).encode()
