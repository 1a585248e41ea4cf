"""Source of detections: the keypoint files, or earlier detections, of a recording."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from models.geometry.between_frames import between_frames
from pipeline.batches import DetectionBatch
from pipeline.config import Config
from pipeline.formats.keypoints.files import MIN_CONFIDENCE, Floats
from pipeline.recording import Recording


class KeypointsConfig(Config):
    """Reading of keypoint files."""

    window: int = Field(default=24, ge=1)
    """Frames of a batch, which is a window of the store."""
    min_confidence: float = Field(default=MIN_CONFIDENCE, ge=0, le=1)
    """Confidence, scaled to 0 to 1 per camera, below which a point is missing. Opening and inspecting a
    recording use the default."""


def keypoints(recording: Recording, cfg: KeypointsConfig, start_chunk: int = 0) -> Iterator[DetectionBatch]:
    """Read batches of ``cfg.window`` frames of the recording's time line, from a chunk on."""
    for start in range(start_chunk * cfg.window, len(recording), cfg.window):
        instants = np.arange(start, min(start + cfg.window, len(recording)))
        people = torch.from_numpy(people_at(recording, instants, cfg.min_confidence))
        yield DetectionBatch(
            start=start,
            rate=recording.timeline.rate,
            time_s=torch.from_numpy(recording.camera_times(instants)),
            image_px=people[..., :2],
            confidence=people[..., 2],
        )


def people_at(recording: Recording, at: NDArray[np.int64], min_confidence: float = MIN_CONFIDENCE) -> Floats:
    """Detections at instants of the time line, (V, T, D, K, 3) as ``Recording.people``, interpolated where a
    camera's frames lie beside the instant."""
    line = recording.timeline
    if line.later is None or not line.later[:, at].any():
        return recording.people(at, min_confidence)
    index, later = line.frame_index[:, at], line.later[:, at]
    around = np.where(index >= 0, index + np.array([-1, 0, 1])[:, None, None], -1)  # (3, V, T)
    frames = [np.unique(around[:, v]) for v in range(len(index))]
    count = max(map(len, frames))
    padded = np.stack([np.pad(n, (0, count - len(n)), constant_values=-1) for n in frames])
    people = recording.people_in(padded, min_confidence)
    out = []
    for v in range(len(index)):
        before, near, after = (people[v, np.searchsorted(frames[v], n)] for n in around[:, v])
        out.append(between_frames(before, near, after, later[v]))
    return np.stack(out)
