"""Source of detections: the keypoint files, or earlier detections, of a recording."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from pydantic import Field

from models.geometry.between_frames import people_between
from pipeline.batches import DetectionBatch
from pipeline.config import Config
from pipeline.formats.keypoints.files import MIN_CONFIDENCE
from pipeline.recording import Recording


class KeypointsConfig(Config):
    """Reading of keypoint files."""

    window: int = Field(default=24, ge=1)
    """Frames of a batch, which is a window of the store."""
    min_confidence: float = Field(default=MIN_CONFIDENCE, ge=0, le=1)
    """Confidence, scaled to 0 to 1 per camera, below which a point is missing. Opening and inspecting a
    recording use the default."""


def keypoints(recording: Recording, cfg: KeypointsConfig, start_chunk: int = 0) -> Iterator[DetectionBatch]:
    """Read batches of ``cfg.window`` frames of the recording's time line, from chunk ``start_chunk`` on."""
    for start in range(start_chunk * cfg.window, len(recording), cfg.window):
        instants = np.arange(start, min(start + cfg.window, len(recording)))
        people = torch.from_numpy(people_between(recording, instants, cfg.min_confidence))
        yield DetectionBatch(
            start=start,
            rate=recording.timeline.rate,
            time_s=torch.from_numpy(recording.camera_times(instants)),
            image_px=people[..., :2],
            confidence=people[..., 2],
        )
