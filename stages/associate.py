"""Stage: detections of all views → tracked people, undistorted, on one clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from models.geometry.association import MatchConfig
from models.geometry.people import MirrorSpan, Ownership, count_at_end, track_people
from models.geometry.tracks import MAX_TRACKS, Tracks
from pipeline.array_types import Array
from pipeline.batches import DetectionBatch, KeypointBatch, State
from pipeline.cameras import Rig
from pipeline.findings import Finding
from pipeline.summary import Summary

_TRACKS, _FOLLOWED, _SIDES = "associate/tracks", "associate/followed", "associate/sides"
MAX_EXCHANGED_SHARE: Final = 0.05
"""Share of a camera's detections with left and right exchanged that is worth a finding."""
_MAX_UNDISTORTED_PX: Final = 1e6
"""Points that undistort to further out are missing: a lens model has an inverse near the picture only."""


def associate(
    items: Iterator[DetectionBatch], cfg: MatchConfig, rig: Rig, state: State | None = None
) -> Iterator[KeypointBatch]:
    """Track people: one ``KeypointBatch`` for every batch of detections.

    A batch has the people of ``cfg.people`` who are present in one of its frames, or were before and may
    return; an id never changes. It depends on the batches before it and of the next ``cfg.presence_s``: a
    track is confirmed by its first ``cfg.presence_s``, and is a person from its birth on.

    state: restart state after the batch before the first of ``items``; with it the batches are bit for bit
    those of an unbroken run.
    """
    state = state or _initial_state(len(rig))
    tracks = Tracks.of_table(state[_TRACKS].numpy())
    ids: dict[int, int] = {}
    spans: list[MirrorSpan] = []
    waiting: deque[_TrackedBatch] = deque()
    for batch in items:
        points, time_s = _undistort(batch, rig)
        ownership, tracks = track_people(rig, points[..., 2:4], points[..., 4], time_s, tracks, cfg)
        ids |= ownership.confirmed
        spans += ownership.mirror_spans
        waiting.append(_TrackedBatch(batch, points, time_s, ownership, torch.from_numpy(tracks.table())))
        while waiting and time_s[-1] - waiting[0].time_s[-1] >= cfg.presence_s:
            done = waiting.popleft().of_people(ids, spans, cfg.most_at_once, state)
            state = done.state
            yield done
        serials = set().union(*(each.ownership.tracks.tolist() for each in waiting))
        ids = {serial: person for serial, person in ids.items() if serial in serials}
        spans = [span for span in spans if span.serial in serials]
    if waiting:
        last = waiting[-1]
        frames = last.batch.start + len(last.time_s)
        ids |= count_at_end(rig, tracks, frames, float(last.time_s[-1]), cfg).confirmed
    for each in waiting:
        done = each.of_people(ids, spans, cfg.most_at_once, state)
        state = done.state
        yield done


def _initial_state(views: int) -> State:
    return {
        _TRACKS: torch.from_numpy(Tracks.none().table()),
        _FOLLOWED: torch.full((2 * MAX_TRACKS,), -1),
        _SIDES: torch.zeros((views, 2), dtype=torch.int64),
    }


def sides_exchanged(state: State) -> list[int]:
    """Detections of each camera, up to a restart state, whose left and right were exchanged back."""
    return [int(n) for n in state[_SIDES][:, 1]]


def add_sides(summary: Summary, state: State) -> Summary:
    """Add ``sides_exchanged`` of a restart state to a summary's cameras; nothing where it has no tracks."""
    counts = sides_exchanged(state) if _SIDES in state else [None] * len(summary.cameras)
    cameras = (replace(c, sides_exchanged=n) for c, n in zip(summary.cameras, counts, strict=True))
    return replace(summary, cameras=tuple(cameras))


def check_people(
    state: State, rig: Rig, frames: int, rate: float, followed: int, cfg: MatchConfig
) -> list[Finding]:
    """Findings about the people of a recording, from the restart state at its end: who was left out and why,
    and cameras in which left and right were often exchanged.

    followed: number of people who were followed.
    """
    findings = []
    for name, (detections, exchanged) in zip(rig.names, state[_SIDES].tolist(), strict=True):
        if exchanged >= MAX_EXCHANGED_SHARE * max(detections, 1):
            sentence = (
                f"camera {name}: left and right were exchanged in {exchanged} of {detections} detections, "
                "and are put right: a detector that has many people from behind, or a mirrored picture?"
            )
            findings.append(Finding("sides_exchanged", sentence, name, exchanged))
    tracks = Tracks.of_table(state[_TRACKS].numpy())
    tracks = count_at_end(rig, tracks, frames, (frames - 1) / rate, cfg)
    surplus = tracks.next_id - followed if cfg.most_at_once else 0
    for count, why in (
        (tracks.brief, f"seen for less than {cfg.presence_s:g} s (associate.presence_s)"),
        (tracks.doubtful, "seen by too few of the cameras that look there: a reflection or a picture?"),
        (surplus, f"there while others were followed (people: {cfg.people})"),
    ):
        if count > 0:
            findings.append(Finding("people_left_out", f"people left out: {count}, {why}"))
    return findings


def _undistort(batch: DetectionBatch, rig: Rig) -> tuple[Array, Array]:
    """Detections (V, T, D, K, 5), image px, undistorted px and confidence, and times (T,), seconds."""
    image_px, confidence = batch.image_px.numpy(), batch.confidence.numpy()[..., None]
    xy_px = rig.undistort_views(image_px)
    inside = np.asarray((np.abs(xy_px) < _MAX_UNDISTORTED_PX).all(-1))[..., None]
    points = np.where(inside, np.concatenate([image_px, xy_px], -1), np.nan)
    time_s = (batch.start + np.arange(batch.time_s.shape[1])) / float(batch.rate)
    return np.concatenate([points, np.where(inside, confidence, 0)], -1), time_s


@dataclass(frozen=True)
class _TrackedBatch:
    """Batch whose detections are assigned to tracks."""

    batch: DetectionBatch
    points: Array
    """(V, T, D, K, 5) image px, undistorted px, confidence; NaN where missing, confidence 0."""
    time_s: Array
    """(T,)"""
    ownership: Ownership
    tracks: torch.Tensor
    """Restart state of the tracker after it."""

    def of_people(
        self, ids: Mapping[int, int], spans: Sequence[MirrorSpan], most_at_once: int | None, before: State
    ) -> KeypointBatch:
        """Keypoints of the people who are followed in the batch, or were before and may return.

        Of more people at a time than ``most_at_once``, those with the lowest ids are followed. ids: person of
        each confirmed track. before: restart state before the batch.
        """
        owned = self.ownership
        track_person = np.array([ids.get(serial, -1) for serial in owned.tracks.tolist()], np.int64)
        people = np.unique(track_person[track_person >= 0])
        alive = owned.alive[:, :, None] & (track_person[:, None] == people)  # (T, N, P)
        newest = np.where(alive, np.arange(len(track_person))[:, None], -1).max(1, initial=-1)
        present = alive.any(1)
        followed = present if most_at_once is None else present & (present.cumsum(1) <= most_at_once)
        old_ids = before[_FOLLOWED].numpy()
        returning = old_ids[np.isin(old_ids, np.concatenate([people, owned.lost]))]
        batch_ids = np.union1d(people[followed.any(0)], returning)

        track = np.searchsorted(owned.tracks, owned.serial)
        person = np.where(owned.serial >= 0, np.append(track_person, -1)[track], -1)  # (V, T, D)
        v, t, d = np.nonzero(np.isin(person, batch_ids))
        p = np.searchsorted(people, person[v, t, d])
        keep = followed[t, p] & (track[v, t, d] >= newest[t, p])  # of a person's two tracks, the newer one
        v, t, d = v[keep], t[keep], d[keep]
        side = owned.mirrored[v, t, d]
        for span in spans:
            side[span.covers(owned.serial[v, t, d], self.time_s[t])] *= -1
        detected = self.points[v, t, d]
        detected[side > 0] = detected[side > 0][:, list(self.batch.skeleton.flips)]
        sides = before[_SIDES].numpy().copy()
        np.add.at(sides, v, np.stack([np.ones_like(v), side > 0], -1))

        views, frames, _, *rest = self.points.shape
        points = np.full((views, frames, len(batch_ids), *rest), np.nan)
        p = np.searchsorted(batch_ids, person[v, t, d])
        fragment = owned.fragment[v, t, d]
        # Whole detections at once; after them fragments, each with the keypoints that are still missing.
        for part in (np.flatnonzero(~fragment), *np.flatnonzero(fragment)[:, None]):
            at = v[part], t[part], p[part]
            missing = (detected[part, :, 4] > 0) & ~(points[at][..., 4] > 0)
            points[at] = np.where(missing[..., None], detected[part], points[at])
        after = np.full(2 * MAX_TRACKS, -1)
        after[: len(batch_ids)] = batch_ids
        x = torch.from_numpy(points.astype(np.float32))
        return KeypointBatch(
            start=self.batch.start,
            rate=self.batch.rate,
            ids=torch.from_numpy(batch_ids),
            time_s=torch.from_numpy(self.time_s),
            image_px=x[..., :2].clone(),
            xy_px=x[..., 2:4].clone(),
            confidence=x[..., 4].nan_to_num(),
            state={
                _TRACKS: self.tracks,
                _FOLLOWED: torch.from_numpy(after),
                _SIDES: torch.from_numpy(sides),
            },
            skeleton=self.batch.skeleton,
        )
