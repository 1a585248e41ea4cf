"""Identity of a fit's inputs: results are resumed with equal inputs only."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from pipeline.recording import Recording


def identity_of_inputs(recording: Recording) -> dict[str, Any]:
    """Identity of a fit's inputs: the reading of keypoint files, and per camera a digest of their numbers and
    of twenty evenly spaced files."""
    digests = {}
    for name, files in zip(recording.rig.names, recording.keypoints, strict=True):
        digest = hashlib.sha256()
        if files is not None:
            digest.update(files.numbers.tobytes())
            for k in np.unique(np.linspace(0, len(files) - 1, 20).round().astype(int)):
                digest.update(files.content(int(files.numbers[k])))
        digests[name] = digest.hexdigest()[:16]
    order = recording.point_order
    scales = order.picture_scale or ((1.0, 1.0),)
    one_scale = len({*scales}) == 1  # written as in results of earlier versions, which had no other
    return {
        "format": {
            "name": order.name,
            "normalised": order.normalised,
            "picture_scale": [*scales[0]] if one_scale else [[*by] for by in scales],
            "confidence_scale": list(order.confidence_scale),
        },
        "first_frame": recording.first_frame,
        "step": str(recording.step),
        "keypoints": digests,
    } | ({} if recording.timeline.later is None else {"clocks": [[*c.numbers] for c in recording.clocks]})
