"""Identity of what a fit reads: a result goes on with the same inputs only."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.recording import Recording


def identity_of_inputs(recording: Recording) -> dict[str, Any]:
    """Identity of all that a fit reads, so that it goes on with no other keypoints: how they are read, a
    digest a camera of the frame numbers and of twenty files spread over them."""
    digests = {}
    for name, files in zip(recording.rig.names, recording.keypoints, strict=True):
        digest = hashlib.sha256()
        if files is not None:
            digest.update(files.numbers.tobytes())
            for k in np.unique(np.linspace(0, len(files) - 1, 20).round().astype(int)):
                digest.update(files.content(int(files.numbers[k])))
        digests[name] = digest.hexdigest()[:16]
    how, line = asdict(recording.point_order), recording.timeline
    return {
        "format": {k: how[k] for k in ("name", "normalised")}
        | {"picture_scale": list(recording.point_order.picture_scale)}
        | {"confidence_scale": list(recording.point_order.confidence_scale)},
        "first_frame": recording.first_frame,
        "step": str(recording.step),
        "keypoints": digests,
    } | ({} if line.later is None else {"clocks": [[*c.numbers] for c in recording.clocks]})
