"""Stage: detections of all views → people who are known over time, undistorted, on one clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from models.geometry.association import MatchConfig, TrackerState, pick_people, track_person
from models.geometry.people import Ownership, count_at_end, track_people
from models.geometry.tracks import Tracks
from pipeline.batches import DetectionBatch, KeypointBatch, State
from pipeline.cameras import Array, Rig

_TRACKS = "associate/tracks"
_FAR_PX = 1e6
"""Points that undistort to further out are missing: a lens model has an inverse near the picture only."""


def associate(
    items: Iterator[DetectionBatch], cfg: MatchConfig, rig: Rig, state: State | None = None
) -> Iterator[KeypointBatch]:
    """People who are known over time: one ``KeypointBatch`` for every batch of detections.

    A batch has the people of ``cfg.people`` who are there in one of its frames, or were before and may
    return; an id never changes. With ``main`` it depends on itself and on those before it alone, else on
    those of the next ``cfg.presence_s``, too: somebody must have been there for that long to count, and has
    been there from the first sight on then.

    state: what was ``carried`` after the batch before the first of ``items``; with it the batches are bit for
    bit those of an unbroken run.
    """
    batches = (_undistorted(batch, rig) for batch in items)
    if cfg.people == "main":
        return _main(batches, cfg, rig, state or {})
    return _everybody(batches, cfg, rig, state or {})


@dataclass(frozen=True)
class _Undistorted:
    """Detections of a batch."""

    batch: DetectionBatch
    points: Array
    """(V, T, D, K, 5) image px, undistorted px, confidence; NaN where missing, confidence 0."""
    when: Array
    """(T,) seconds."""

    @property
    def xy_px(self) -> Array:
        return self.points[..., 2:4]

    @property
    def confidence(self) -> Array:
        return self.points[..., 4]

    def of_people(self, shown: Array, ids: NDArray[np.int64], state: State) -> KeypointBatch:
        """The batch of people ``shown`` (V, T, P, K, 5)."""
        part = torch.from_numpy(shown.astype(np.float32))
        return KeypointBatch(
            start=self.batch.start,
            rate=self.batch.rate,
            ids=torch.from_numpy(ids),
            time_s=torch.from_numpy(self.when),
            image_px=part[..., :2].clone(),
            xy_px=part[..., 2:4].clone(),
            confidence=part[..., 4].nan_to_num(),
            state=state,
            skeleton=self.batch.skeleton,
        )


def _undistorted(batch: DetectionBatch, rig: Rig) -> _Undistorted:
    if not batch.confidence.shape[2]:
        batch = _with_nobody(batch)
    image, confidence = batch.image_px.numpy(), batch.confidence.numpy()
    xy = np.stack([rig.undistort(v, image[v].astype(np.float64)) for v in range(len(rig))])
    lost = np.asarray(~(np.abs(xy) < _FAR_PX).all(-1))[..., None]
    points = np.concatenate([np.where(lost, np.nan, image), np.where(lost, np.nan, xy)], -1)
    sure = np.where(lost, 0, confidence[..., None])
    when = (batch.start + np.arange(batch.time_s.shape[1])) / float(batch.rate)
    return _Undistorted(batch, np.concatenate([points, sure], -1), when)


def _main(
    batches: Iterator[_Undistorted], cfg: MatchConfig, rig: Rig, state: State
) -> Iterator[KeypointBatch]:
    """One person at a time. Somebody else who is followed later gets an id of their own."""
    tracker = unpacked(state)
    for b in batches:
        sighting, tracker = track_person(rig, b.xy_px, b.confidence, b.when, tracker, cfg)
        ids = np.array(sighting.known, dtype=np.int64)
        shown = pick_people(b.points, sighting.detection, np.nan)[:, :, None]
        followed = (sighting.person[:, None] == ids)[..., None, None]
        yield b.of_people(np.where(followed, shown, np.nan), ids, packed(tracker))


def _everybody(
    batches: Iterator[_Undistorted], cfg: MatchConfig, rig: Rig, state: State
) -> Iterator[KeypointBatch]:
    tracks = Tracks.of_table(state[_TRACKS].numpy()) if _TRACKS in state else Tracks.none()
    named: dict[int, tuple[int, float]] = {}
    held: deque[tuple[_Undistorted, Ownership, State]] = deque()
    for b in batches:
        owned, tracks = track_people(rig, b.xy_px, b.confidence, b.when, tracks, cfg)
        named |= owned.named
        held.append((b, owned, {_TRACKS: torch.from_numpy(tracks.table())}))
        while held and b.when[-1] - held[0][0].when[-1] >= cfg.presence_s:
            yield _with_people(*held.popleft(), named)
        kept = set().union(*(o.tracks.tolist() for _, o, _ in held))
        named = {serial: who for serial, who in named.items() if serial in kept}
    if held:
        last = held[-1][0]
        frames = last.batch.start + len(last.when)
        named |= count_at_end(rig, tracks, frames, float(last.when[-1]), cfg).named
    while held:
        yield _with_people(*held.popleft(), named)


def _with_people(
    b: _Undistorted, owned: Ownership, state: State, named: Mapping[int, tuple[int, float]]
) -> KeypointBatch:
    """The batch of everybody who is there, with what their detections show together."""
    there = {s: named[s] for s in owned.tracks.tolist() if s in named and named[s][1] <= b.when[-1]}
    ids = np.array(sorted({person for person, _ in there.values()} | {*owned.lost.tolist()}), dtype=np.int64)
    views, frames, _, keypoints, values = b.points.shape
    shown = np.full((views, frames, len(ids), keypoints, values), np.nan)
    flips = list(b.batch.skeleton.flips)
    for serial, (person, since) in there.items():
        p = int(np.searchsorted(ids, person))
        mine = (owned.serial == serial) & (b.when >= since)[:, None]
        for part in (mine & ~owned.fragment, mine & owned.fragment):
            for v, t, d in np.argwhere(part).tolist():
                points = b.points[v, t, d]
                points = points[flips] if owned.exchanged[v, t, d] else points
                new = (points[:, 4] > 0) & ~(shown[v, t, p, :, 4] > 0)
                shown[v, t, p, new] = points[new]
    return b.of_people(shown, ids, state)


def _with_nobody(batch: DetectionBatch) -> DetectionBatch:
    """The batch with one detection in each picture, of which nothing is seen."""
    return replace(
        batch,
        image_px=pad(batch.image_px, (0, 0, 0, 0, 0, 1), value=torch.nan),
        confidence=pad(batch.confidence, (0, 0, 0, 1)),
    )


def packed(tracker: TrackerState) -> State:
    """Restart state of the stage that follows one person."""
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
