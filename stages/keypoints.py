"""Source of detections: keypoint files that another program has written."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from pydantic import Field

from pipeline.batches import DetectionBatch
from pipeline.config import Config
from pipeline.formats.keypoints.files import MIN_CONFIDENCE
from pipeline.recording import Recording


class KeypointsConfig(Config):
    """Reading keypoint files."""

    window: int = Field(default=24, ge=1)
    """Frames of a batch: what the store writes at once."""
    min_confidence: float = Field(default=MIN_CONFIDENCE, ge=0, le=1)
    """A point counts as seen from this confidence on, once each camera's are on a scale from 0 to 1; below
    it, it is missing. Finding and checking a recording, which comes before, goes by the default."""


def keypoints(recording: Recording, cfg: KeypointsConfig, start_chunk: int = 0) -> Iterator[DetectionBatch]:
    """Read one batch for every ``cfg.window`` frames of the recording's time line, from a chunk on."""
    frames = len(recording)
    for start in range(start_chunk * cfg.window, frames, cfg.window):
        at = np.arange(start, min(start + cfg.window, frames))
        people = torch.from_numpy(recording.people(at, cfg.min_confidence))
        yield DetectionBatch(
            start=start,
            rate=recording.timeline.rate,
            time_s=torch.from_numpy(recording.camera_times(at)),
            image_px=people[..., :2],
            confidence=people[..., 2],
        )
