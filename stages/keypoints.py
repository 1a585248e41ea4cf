"""Source of detections: keypoint files that another program has written."""

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
        people = torch.from_numpy(people_at(recording, at, cfg.min_confidence))
        yield DetectionBatch(
            start=start,
            rate=recording.timeline.rate,
            time_s=torch.from_numpy(recording.camera_times(at)),
            image_px=people[..., :2],
            confidence=people[..., 2],
        )


def people_at(recording: Recording, at: NDArray[np.int64], min_confidence: float = MIN_CONFIDENCE) -> Floats:
    """Everybody at instants of the time line, (V, T, D, K, 3) as ``Recording.people``: where a camera's frame
    lies beside an instant, as between it and its neighbours, never further apart than ``MAX_GAP_FRAMES``."""
    line = recording.timeline
    if line.later is None or not line.later[:, at].any():
        return recording.people(at, min_confidence)
    index, later = line.frame_index[:, at], line.later[:, at]
    around = np.where(index >= 0, index + np.array([-1, 0, 1])[:, None, None], -1)  # (3, V, T)
    own = [np.unique(around[:, v]) for v in range(len(index))]
    most = max(map(len, own))
    wanted = np.stack([np.pad(n, (0, most - len(n)), constant_values=-1) for n in own])
    people = recording.people_in(wanted, min_confidence)
    out = []
    for v, frames in enumerate(own):
        before, near, after = (people[v, np.searchsorted(frames, n)] for n in around[:, v])
        out.append(between_frames(before, near, after, later[v]))
    return np.stack(out)
