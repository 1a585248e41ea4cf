"""Read the detected keypoints, choose the recording's person in every view, undistort."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from models.geometry.association import MatchConfig, follow, pick_people, usual_score
from pipeline.batches import KeypointBatch
from pipeline.cameras import Array
from pipeline.config import Config
from pipeline.keypoints import Floats
from pipeline.recording import Recording
from pipeline.timeline import spread

_SAMPLE = 40
"""Frames, spread over the recording, that tell how well the views usually agree on its person."""
_FAR_PX = 1e6


class KeypointsConfig(Config):
    """Reading keypoints and matching them over the views."""

    window: int = Field(default=24, ge=1)
    """Frames of a batch: what the store writes at once."""
    min_confidence: float = Field(default=0.05, ge=0, le=1)
    """Points with less confidence are missing."""
    match: MatchConfig = MatchConfig()
    """When points of different views belong to one person. Finding and checking a recording, which comes
    before these settings, goes by the defaults."""


def keypoints(
    recording: Recording, cfg: KeypointsConfig, start_chunk: int = 0, anchor: Tensor | None = None
) -> Iterator[KeypointBatch]:
    """One batch per ``cfg.window`` frames of the recording's time line; one person (P = 1).

    A stage without input: it reads files. To go on after a restart, give the first chunk that is not done and
    the anchor (1, 4) of the batch before it; the batches are then the same to the last bit.
    """
    frames = len(recording)

    def read(at: NDArray[np.int64]) -> tuple[Floats, Array, Array]:
        people = recording.people(at)
        people[people[..., 2] < cfg.min_confidence] = np.nan, np.nan, 0
        xy = recording.undistort(people[..., :2])
        # Far outside the picture a lens model need not have an inverse.
        lost = ~(np.abs(xy) < _FAR_PX).all(-1)
        people[lost], xy[lost] = (np.nan, np.nan, 0), np.nan
        return people[..., :2], xy, people[..., 2].astype(np.float64)

    _, xy, confidence = read(spread(np.arange(frames), _SAMPLE))
    usual = usual_score(recording.rig, xy, confidence, cfg.match)
    where = np.full(4, np.nan) if anchor is None else anchor[0].numpy().astype(np.float64)
    for start in range(start_chunk * cfg.window, frames, cfg.window):
        at = np.arange(start, min(start + cfg.window, frames))
        image, xy, confidence = read(at)
        time_s = recording.timeline.time_s[at]
        chosen, where = follow(recording.rig, xy, confidence, time_s, usual, where, cfg.match)
        yield KeypointBatch(
            start=start,
            rate=recording.timeline.rate,
            time_s=torch.from_numpy(time_s),
            image_px=torch.from_numpy(pick_people(image, chosen, np.nan)[:, :, None]),
            xy_px=torch.from_numpy(pick_people(xy, chosen, np.nan)[:, :, None].astype(np.float32)),
            confidence=torch.from_numpy(pick_people(confidence, chosen, 0)[:, :, None].astype(np.float32)),
            anchor=torch.from_numpy(where[None].copy()),
        )
