"""Numbers of a results store, read in stretches: memory does not grow with its length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.verdicts import REPROJECTION, Verdict

if TYPE_CHECKING:
    from pipeline.store import Store


@dataclass(frozen=True)
class CameraSummary:
    """One camera of a finished run."""

    name: str
    reprojection_median_px: float | None
    """Of all keypoints seen, to 0.05 px; None when there are none."""
    reprojection_mean_px: float | None
    keypoints: int
    """Number of those keypoints."""
    frames_with_person: int
    frames_without_person: int
    """Frames in which this camera does not show the person, or its keypoints are missing."""
    frames_without_picture: int
    sides_exchanged: int | None = None
    """Detections of people whose left and right were exchanged back; None where that is not known."""
    reprojection_median_mm: float | None = None
    """At the person: of each keypoint, pixels times its depth over the focal length."""
    verdict: Verdict | None = None
    """On that error, by ``REPROJECTION``."""


@dataclass(frozen=True)
class PersonSummary:
    """One person of a finished run."""

    id: str
    frames_fitted: int
    frames_bridged: int
    """A pose carried over a gap, marked not valid."""
    frames_without_pose: int
    jitter_mm: float | None
    """Mean length of the joints' second difference over fitted frames, mm/frame²; None below three frames."""
    frames_far_off: int = 0
    """A pose that misses the keypoints by too much, marked not valid."""


@dataclass(frozen=True)
class MissingData:
    """Why one camera does not show the person at some instants."""

    frames: Mapping[str, int]
    """Reason → instants."""
    examples: Mapping[str, str]
    """Reason → the first keypoint file it holds for, where there is a file."""


@dataclass(frozen=True)
class Summary:
    """A results store in numbers."""

    frames: int
    fps: float
    seconds: float
    complete: bool
    reprojection_median_px: float | None
    """Over all cameras."""
    reprojection_mean_px: float | None
    cameras: tuple[CameraSummary, ...]
    people: tuple[PersonSummary, ...]
    reprojection_median_mm: float | None = field(default=None, kw_only=True)
    """At the person, over all cameras."""
    verdict: Verdict | None = field(default=None, kw_only=True)
    """On that error, by ``REPROJECTION``."""


class _Distances:
    """Mean and median of distances, pixels or mm, in bins of 0.05; 200 and more share the last."""

    STEP, BINS = 0.05, 4000

    def __init__(self) -> None:
        self.counts = np.zeros(self.BINS, dtype=np.int64)
        self.total = 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        at = np.minimum(values / self.STEP, self.BINS - 1).astype(int)
        self.counts += np.bincount(at, minlength=self.BINS)
        self.total += float(values.sum())

    def median(self) -> float | None:
        if not self.counts.any():
            return None
        k = int(np.searchsorted(self.counts.cumsum(), (self.counts.sum() + 1) // 2))
        return round((k + 0.5) * self.STEP, 3)

    def mean(self) -> float | None:
        n = int(self.counts.sum())
        return round(self.total / n, 3) if n else None


def seen(store: Store) -> NDArray[np.bool_]:
    """(V, T) whether a camera's keypoints of anyone are there."""
    c = store.contents
    shown = np.zeros((len(c.rig), len(c.time_s)), dtype=bool)
    for first, last in store.blocks():
        a, b = store.span(first)[0], store.span(last)[1]
        for person in store.ids:
            shown[:, a:b] |= (store.array(f"people/{person}/keypoints_2d", a, b)[..., 2] > 0).any(2)
    return shown


def summarise(store: Store) -> Summary:
    """Read a store from its first window to its last."""
    import torch

    from pipeline.batches import Status

    c = store.contents
    views, frames, ids = len(c.rig), len(c.time_s), store.ids
    distances, distances_mm = ([_Distances() for _ in range(views)] for _ in range(2))
    everywhere, everywhere_mm = _Distances(), _Distances()
    seen = np.zeros(views, dtype=int)
    fitted, bridged, far_off = (np.zeros(len(ids), int) for _ in range(3))
    written = 0
    acceleration, accelerations = np.zeros(len(ids)), np.zeros(len(ids), int)
    before = np.empty((0, len(ids), len(c.skeleton), 3))
    for first, last in store.blocks():
        batch = store.read(first, last).people(torch.tensor(ids, dtype=torch.int64))
        points = batch.keypoints_3d[..., :3].numpy().astype(np.float64)
        error = np.linalg.norm(c.rig.project(points) - batch.keypoints.xy_px.numpy(), axis=-1)
        error[batch.keypoints.confidence.numpy() == 0] = np.nan
        error[:, ~batch.valid.numpy()] = np.nan
        error_mm = 1000 * error * c.rig.metres_per_px(points)
        for v in range(views):
            for values, own, all_views in (
                (error[v], distances[v], everywhere),
                (error_mm[v], distances_mm[v], everywhere_mm),
            ):
                known = values[np.isfinite(values)]
                own.add(known)
                all_views.add(known)
        seen += (batch.keypoints.confidence.numpy() > 0).any((2, 3)).sum(1)
        valid, posed = batch.valid.numpy(), np.isfinite(batch.joints.numpy()).all((2, 3))
        written += len(valid)
        fitted += valid.sum(0)
        off = batch.status.numpy() == Status.FAR_OFF
        far_off += off.sum(0)
        bridged += (posed & ~valid & ~off).sum(0)
        joints = np.where(valid[..., None, None], batch.joints.numpy().astype(np.float64), np.nan)
        joints = np.concatenate([before, joints])
        length = np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1).mean(-1)
        acceleration += np.nansum(length, 0)
        accelerations += np.isfinite(length).sum(0)
        before = joints[-2:]
    return Summary(
        frames=frames,
        fps=float(c.rate),
        seconds=float(frames / c.rate),
        complete=store.first_missing == len(store.done),
        reprojection_median_px=everywhere.median(),
        reprojection_mean_px=everywhere.mean(),
        reprojection_median_mm=everywhere_mm.median(),
        verdict=REPROJECTION.verdict(everywhere_mm.median()),
        cameras=tuple(
            CameraSummary(
                name=name,
                reprojection_median_px=distances[v].median(),
                reprojection_mean_px=distances[v].mean(),
                keypoints=int(distances[v].counts.sum()),
                frames_with_person=int(seen[v]),
                frames_without_person=int(written - seen[v]),
                frames_without_picture=int((c.frame_index[v] < 0).sum()),
                reprojection_median_mm=distances_mm[v].median(),
                verdict=REPROJECTION.verdict(distances_mm[v].median()),
            )
            for v, name in enumerate(c.rig.names)
        ),
        people=tuple(
            PersonSummary(
                id=str(person),
                frames_fitted=int(fitted[p]),
                frames_bridged=int(bridged[p]),
                frames_far_off=int(far_off[p]),
                frames_without_pose=int(written - fitted[p] - bridged[p] - far_off[p]),
                jitter_mm=round(1000 * float(acceleration[p] / accelerations[p]), 3)
                if accelerations[p]
                else None,
            )
            for p, person in enumerate(ids)
        ),
    )
