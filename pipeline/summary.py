"""Summary of a results store, in memory independent of its length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Over all visible keypoints, to 0.05 px; None without any."""
    reprojection_mean_px: float | None
    keypoints: int
    """Number of visible keypoints."""
    frames_with_person: int
    frames_without_person: int
    """Frames without the person's keypoints in this camera."""
    frames_without_picture: int
    sides_exchanged: int | None = None
    """Detections of people whose left and right were exchanged back; None if unknown."""
    reprojection_median_mm: float | None = None
    """Error at the person: pixels times the keypoint's depth over the focal length."""
    verdict: Verdict | None = None
    """Verdict on the error in mm, by ``REPROJECTION``."""


@dataclass(frozen=True)
class PersonSummary:
    """One person of a finished run."""

    id: str
    first_frame: int | None
    """First frame in which the person was seen; None without one."""
    frames: int
    """Frames from the first to the last in which the person was seen, to which the counts refer."""
    frames_fitted: int
    frames_bridged: int
    """Frames with a pose carried over a gap, marked not valid."""
    frames_without_pose: int
    jitter_mm: float | None
    """Mean length of the joints' second difference over fitted frames, mm/frame²; None below three frames."""
    frames_far_off: int = 0
    """Frames with a pose too far from the keypoints, marked not valid."""


@dataclass(frozen=True)
class MissingData:
    """Reasons of a camera's missing keypoints."""

    frames: Mapping[str, int]
    """Reason → number of instants."""
    examples: Mapping[str, str]
    """Reason → first keypoint file concerned, or its frame where a file holds all."""


@dataclass(frozen=True)
class Summary:
    """Summary of a results store."""

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


class _Histogram:
    """Histogram of distances, pixels or mm, in bins of 0.05 up to 200, for their mean and median."""

    STEP, BINS = 0.05, 4000

    def __init__(self) -> None:
        self.counts = np.zeros(self.BINS, dtype=np.int64)
        self.total = 0.0

    @staticmethod
    def joined(parts: Sequence[_Histogram]) -> _Histogram:
        whole = _Histogram()
        whole.counts, whole.total = np.sum([p.counts for p in parts], 0), sum(p.total for p in parts)
        return whole

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


@dataclass
class _Counts:
    """Frames of a person, added in order of time."""

    first: int | None = None
    last: int = -1
    """First and last frame in which the person was seen."""
    fitted: int = 0
    bridged: int = 0
    far_off: int = 0
    accelerations: int = 0
    acceleration: float = 0.0
    """Number and sum of the means over joints of second differences, metres."""
    end: int = 0
    before: NDArray[np.float64] | None = None
    """Frame after the last added one, and joints of the last two."""

    def add(self, start: int, status: NDArray[np.uint8], joints: NDArray[np.float32]) -> None:
        """Add the frames from ``start`` on: status (T,) and joints (T, J, 3)."""
        from pipeline.batches import Status

        shown = np.flatnonzero(status != Status.NOT_SEEN)
        if shown.size:
            self.first = start + int(shown[0]) if self.first is None else self.first
            self.last = start + int(shown[-1])
        fitted, far_off = status == Status.OK, status == Status.FAR_OFF
        self.fitted += int(fitted.sum())
        self.far_off += int(far_off.sum())
        self.bridged += int((np.isfinite(joints).all((1, 2)) & ~fitted & ~far_off).sum())
        points = np.where(fitted[:, None, None], joints.astype(np.float64), np.nan)
        if self.before is not None and self.end == start:
            points = np.concatenate([self.before, points])
        length = np.linalg.norm(np.diff(points, 2, axis=0), axis=-1).mean(-1)
        self.acceleration += float(np.nansum(length))
        self.accelerations += int(np.isfinite(length).sum())
        self.end, self.before = start + len(status), points[-2:]

    def summary(self, name: str) -> PersonSummary:
        frames = 0 if self.first is None else self.last + 1 - self.first
        mean = self.acceleration / self.accelerations if self.accelerations else None
        return PersonSummary(
            id=name,
            first_frame=self.first,
            frames=frames,
            frames_fitted=self.fitted,
            frames_bridged=self.bridged,
            frames_far_off=self.far_off,
            frames_without_pose=frames - self.fitted - self.bridged - self.far_off,
            jitter_mm=None if mean is None else round(1000 * mean, 3),
        )


def seen(store: Store) -> NDArray[np.bool_]:
    """(V, T) true where a camera has keypoints of a person."""
    c = store.contents
    shown = np.zeros((len(c.rig), len(c.time_s)), dtype=bool)
    for first, last in store.blocks():
        a, b = store.span(first)[0], store.span(last)[1]
        for person in store.present(first, last):
            shown[:, a:b] |= (store.array(f"people/{person}/keypoints_2d", a, b)[..., 2] > 0).any(2)
    return shown


def summarise(store: Store) -> Summary:
    """Summarise a store."""
    c = store.contents
    views, frames = len(c.rig), len(c.time_s)
    distances, distances_mm = ([_Histogram() for _ in range(views)] for _ in range(2))
    seen = np.zeros(views, dtype=int)
    counts = {person: _Counts() for person in store.ids}
    written = 0
    for first, last in store.blocks():
        batch = store.read(first, last)
        points = batch.keypoints_3d[..., :3].numpy().astype(np.float64)
        error = np.linalg.norm(c.rig.project(points) - batch.keypoints.xy_px.numpy(), axis=-1)
        error[batch.keypoints.confidence.numpy() == 0] = np.nan
        error[:, ~batch.valid.numpy()] = np.nan
        error_mm = 1000 * error * c.rig.metres_per_px(points)
        for v in range(views):
            for values, histogram in ((error[v], distances[v]), (error_mm[v], distances_mm[v])):
                histogram.add(values[np.isfinite(values)])
        seen += (batch.keypoints.confidence.numpy() > 0).any((2, 3)).sum(1)
        written += len(batch.valid)
        for p, person in enumerate(batch.keypoints.ids.tolist()):
            counts[person].add(batch.start, batch.status[:, p].numpy(), batch.joints[:, p].numpy())
    everywhere, everywhere_mm = _Histogram.joined(distances), _Histogram.joined(distances_mm)
    return Summary(
        frames=frames,
        fps=float(c.rate),
        seconds=float(frames / c.rate),
        complete=store.first_missing == c.windows,
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
        people=tuple(count.summary(str(person)) for person, count in counts.items()),
    )
