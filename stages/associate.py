"""Stage: detections of all views → people who are known over time, undistorted, on one clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from models.geometry.association import MatchConfig, Sighting, TrackerState, pick_people, track_person
from pipeline.batches import DetectionBatch, KeypointBatch, State
from pipeline.cameras import Array, Rig

_FAR_PX = 1e6
"""Points that undistort to further out are missing: a lens model has an inverse near the picture only."""


def associate(
    items: Iterator[DetectionBatch], cfg: MatchConfig, rig: Rig, state: State | None = None
) -> Iterator[KeypointBatch]:
    """Follow one person through the recording: one ``KeypointBatch`` for every batch of detections.

    A batch has the person who is followed and, for ``cfg.return_s``, those who were followed before; it has
    nobody while there is none. Somebody else who is followed later gets an id of their own. A batch depends
    on itself and on those before it, never on later ones.

    state: what was ``carried`` after the batch before the first of ``items``; with it the batches are bit for
    bit those of an unbroken run.
    """
    tracker = unpacked(state or {})
    for batch in items:
        when = (batch.start + np.arange(batch.time_s.shape[1])) / float(batch.rate)
        if not batch.confidence.shape[2]:
            batch = _with_nobody(batch)
        image, confidence = batch.image_px.numpy(), batch.confidence.numpy()
        xy = np.stack([rig.undistort(v, image[v].astype(np.float64)) for v in range(len(rig))])
        lost = np.asarray(~(np.abs(xy) < _FAR_PX).all(-1))
        xy = np.where(lost[..., None], np.nan, xy)
        sure = np.where(lost, 0, confidence).astype(np.float64)
        sighting, tracker = track_person(rig, xy, sure, when, tracker, cfg)
        ids = np.array(sighting.known, dtype=np.int64)
        points = np.concatenate([np.where(lost[..., None], np.nan, image), xy, sure[..., None]], -1)
        shown = _of_people(points, sighting, ids).astype(np.float32)
        yield KeypointBatch(
            start=batch.start,
            rate=batch.rate,
            ids=torch.from_numpy(ids),
            time_s=torch.from_numpy(when),
            image_px=torch.from_numpy(shown[..., :2].copy()),
            xy_px=torch.from_numpy(shown[..., 2:4].copy()),
            confidence=torch.from_numpy(np.nan_to_num(shown[..., 4])),
            state=packed(tracker),
            skeleton=batch.skeleton,
        )


def _of_people(points: Array, sighting: Sighting, ids: NDArray[np.int64]) -> Array:
    """(V, T, D, K, C) → (V, T, P, K, C), NaN where a view does not see the person."""
    shown = pick_people(points, sighting.detection, np.nan)[:, :, None]
    return np.where((sighting.person[:, None] == ids)[..., None, None], shown, np.nan)


def _with_nobody(batch: DetectionBatch) -> DetectionBatch:
    """The batch with one detection in each picture, of which nothing is seen."""
    return replace(
        batch,
        image_px=pad(batch.image_px, (0, 0, 0, 0, 0, 1), value=torch.nan),
        confidence=pad(batch.confidence, (0, 0, 0, 1)),
    )


def packed(tracker: TrackerState) -> State:
    """Restart state of the stage."""
    sights = zip(tracker.ids, tracker.sight, strict=True)
    return {f"associate/{i}/sight": torch.tensor(sight) for i, sight in sights} | {
        "associate/next_id": torch.tensor(tracker.next_id),
        "associate/scores": torch.from_numpy(tracker.scores),
    }


def unpacked(state: State) -> TrackerState:
    """The tracker that ``packed`` made the state of; a new one where the state holds none."""
    if "associate/next_id" not in state:
        return TrackerState()
    names = {int(n.split("/")[1]): n for n in state if n.startswith("associate/") and n.endswith("/sight")}
    return TrackerState(
        next_id=int(state["associate/next_id"]),
        ids=tuple(sorted(names)),
        sight=np.array([state[names[i]].numpy() for i in sorted(names)]).reshape(-1, 5),
        scores=state["associate/scores"].numpy(),
    )
