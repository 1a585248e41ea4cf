"""Stage: detections of all views → people who are known over time, undistorted, on one clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from models.geometry.association import MatchConfig
from models.geometry.people import Ownership, count_at_end, track_people
from models.geometry.tracks import MAX_TRACKS, Tracks
from pipeline.array_types import Array
from pipeline.batches import DetectionBatch, KeypointBatch, State
from pipeline.cameras import Rig
from pipeline.findings import Finding

_TRACKS, _FOLLOWED, _SIDES = "associate/tracks", "associate/followed", "associate/sides"
_NOBODY = -1
MAX_EXCHANGED_SHARE: Final = 0.05
"""Share of a camera's detections, exchanged left for right, that is worth a word."""
_FAR_PX = 1e6
"""Points that undistort to further out are missing: a lens model has an inverse near the picture only."""


def associate(
    items: Iterator[DetectionBatch], cfg: MatchConfig, rig: Rig, state: State | None = None
) -> Iterator[KeypointBatch]:
    """People who are known over time: one ``KeypointBatch`` for every batch of detections.

    A batch has the people of ``cfg.people`` who are there in one of its frames, or were before and may
    return; an id never changes. It depends on the batches before it and of the next ``cfg.presence_s``:
    somebody must have been there for that long to count, and has been there from the first sight on then.

    state: what was ``carried`` after the batch before the first of ``items``; with it the batches are bit for
    bit those of an unbroken run.
    """
    state = state or {}
    tracks = Tracks.of_table(state[_TRACKS].numpy()) if _TRACKS in state else Tracks.none()
    named: dict[int, int] = {}
    mirror_spans = np.zeros((0, 3))
    held: deque[_Owned] = deque()
    for batch in items:
        b = _undistorted(batch, rig)
        ownership, tracks = track_people(rig, b.xy_px, b.confidence, b.when, tracks, cfg)
        named |= ownership.named
        mirror_spans = np.concatenate([mirror_spans, ownership.mirror_spans])
        held.append(_Owned(b, ownership, torch.from_numpy(tracks.table())))
        while held and b.when[-1] - held[0].points.when[-1] >= cfg.presence_s:
            done = held.popleft().of_people(named, mirror_spans, cfg.most_at_once, state)
            state = done.state
            yield done
        kept = set().union(*(owned.ownership.tracks.tolist() for owned in held))
        named = {serial: person for serial, person in named.items() if serial in kept}
        mirror_spans = mirror_spans[np.isin(mirror_spans[:, 0], [*kept])]
    if held:
        last = held[-1].points
        frames = last.batch.start + len(last.when)
        named |= count_at_end(rig, tracks, frames, float(last.when[-1]), cfg).named
    for owned in held:
        done = owned.of_people(named, mirror_spans, cfg.most_at_once, state)
        state = done.state
        yield done


def sides_exchanged(state: State) -> list[int]:
    """Detections of each camera, up to a restart state, whose left and right were exchanged back."""
    return [int(n) for n in state[_SIDES][:, 1]]


def check_people(
    state: State, rig: Rig, frames: int, rate: float, shown: int, cfg: MatchConfig
) -> list[Finding]:
    """Findings about the people of a recording, from the restart state at its end: who was left out and why,
    and cameras in which left and right were often exchanged.

    shown: number of people who were followed.
    """
    found = []
    for name, (given, exchanged) in zip(rig.names, state[_SIDES].tolist(), strict=True):
        if exchanged >= MAX_EXCHANGED_SHARE * max(given, 1):
            sentence = (
                f"camera {name}: left and right were exchanged in {exchanged} of {given} detections, and are "
                "put right: a detector that has many people from behind, or a mirrored picture?"
            )
            found.append(Finding("sides_exchanged", sentence, name, exchanged))
    tracks = Tracks.of_table(state[_TRACKS].numpy())
    tracks = count_at_end(rig, tracks, frames, (frames - 1) / rate, cfg)
    reasons = (
        (tracks.brief, f"seen for less than {cfg.presence_s:g} s (associate.presence_s)"),
        (tracks.doubtful, "seen by too few of the cameras that look there: a reflection or a picture?"),
        (
            tracks.next_id - shown if cfg.most_at_once else 0,
            f"there while others were followed (people: {cfg.people})",
        ),
    )
    for count, why in reasons:
        if count > 0:
            found.append(Finding("people_left_out", f"people left out: {count}, {why}"))
    return found


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
    xy = rig.undistort_views(image)
    lost = np.asarray(~(np.abs(xy) < _FAR_PX).all(-1))[..., None]
    points = np.concatenate([np.where(lost, np.nan, image), np.where(lost, np.nan, xy)], -1)
    sure = np.where(lost, 0, confidence[..., None])
    when = (batch.start + np.arange(batch.time_s.shape[1])) / float(batch.rate)
    return _Undistorted(batch, np.concatenate([points, sure], -1), when)


@dataclass(frozen=True)
class _Owned:
    """A batch whose detections are given to tracks."""

    points: _Undistorted
    ownership: Ownership
    tracks: torch.Tensor
    """Restart state of the tracker after it."""

    def of_people(
        self, named: Mapping[int, int], mirror_spans: Array, most_at_once: int | None, before: State
    ) -> KeypointBatch:
        """The batch of those who are followed in it, or were before and may return.

        Of those who are there at once, if they are more than wanted, those with the lowest ids are followed.
        """
        b, owned = self.points, self.ownership
        person = np.array([named.get(serial, -1) for serial in owned.tracks.tolist()], np.int64)
        there = np.unique(person[person >= 0])
        alive = owned.alive[:, :, None] & (person[:, None] == there)
        present = alive.any(1)
        newest = np.where(alive, np.arange(len(person))[:, None], _NOBODY).max(1, initial=_NOBODY)
        shown = present if most_at_once is None else present & (present.cumsum(1) <= most_at_once)
        followed = before[_FOLLOWED].numpy() if before else np.array([_NOBODY])
        known = np.isin(followed, np.concatenate([there, owned.lost]))
        ids = np.union1d(there[shown.any(0)], followed[known])

        views, frames, _, keypoints, values = b.points.shape
        points = np.full((views, frames, len(ids), keypoints, values), np.nan)
        flips = list(b.batch.skeleton.flips)
        sides = before[_SIDES].numpy().copy() if before else np.zeros((views, 2), np.int64)
        column = np.searchsorted(owned.tracks, owned.serial)  # of the tracks, where the detection has one
        who = np.where(owned.serial >= 0, np.append(person, -1)[column], -1)
        mine = np.isin(who, ids)
        v, t, d = np.nonzero(mine)
        p = np.searchsorted(there, who[v, t, d])
        keep = shown[t, p] & (
            column[v, t, d] >= newest[t, p]
        )  # of two tracks of a person, the one that is newer
        v, t, d = v[keep], t[keep], d[keep]
        side = owned.mirrored[v, t, d]
        for serial, after, until in mirror_spans:
            inside = (owned.serial[v, t, d] == serial) & (after < b.when[t]) & (b.when[t] <= until)
            side = np.where(inside, -side, side)
        exchanged = side > 0
        np.add.at(sides, v, np.stack([np.ones_like(v), exchanged], -1))
        found = b.points[v, t, d]
        found[exchanged] = found[exchanged][:, flips]
        p = np.searchsorted(ids, who[v, t, d])
        fragment = owned.fragment[v, t, d]
        for part in (~fragment, *(np.arange(len(v)) == m for m in np.flatnonzero(fragment))):
            at, one = (v[part], t[part], p[part]), found[part]
            new = (one[..., 4] > 0) & ~(points[at][..., 4] > 0)
            points[at] = np.where(new[..., None], one, points[at])
        state = np.full(2 * MAX_TRACKS, _NOBODY)
        state[: len(ids)] = ids
        after = {_FOLLOWED: torch.from_numpy(state), _SIDES: torch.from_numpy(sides)}
        return b.of_people(points, ids, {_TRACKS: self.tracks, **after})


def _with_nobody(batch: DetectionBatch) -> DetectionBatch:
    """The batch with one detection in each picture, of which nothing is seen."""
    return replace(
        batch,
        image_px=pad(batch.image_px, (0, 0, 0, 0, 0, 1), value=torch.nan),
        confidence=pad(batch.confidence, (0, 0, 0, 1)),
    )
