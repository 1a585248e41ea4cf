"""Clocks of cameras that were started by hand, and ``sync.yaml``, in which they are kept.

A frame t seconds after a camera's first one, by its own clock, shows the moment offset + (1 + drift) t of the
recording's clock. The file, whose entries can stand in recording.yaml::

    sync:
      cam01: {offset_s: 0.0, drift_ppm: 0.0, sigma_s: 0.0, confidence: 1.0, method: reference}
      cam02: {offset_s: -0.1273, drift_ppm: 0.0, sigma_s: 0.005, confidence: 0.999, method: rays}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from pydantic import Field

from pipeline.array_types import Array
from pipeline.config import Config, load
from pipeline.errors import InputError
from pipeline.files import write_text_atomically
from pipeline.findings import Finding
from pipeline.timeline import Timeline, common_timeline

_PPM: Final = 1e-6


class Clock(Config):
    """Clock of one camera."""

    offset_s: float = Field(default=0.0, allow_inf_nan=False)
    """Moment of the first frame on the recording's clock, seconds; negative for an earlier start."""
    drift_ppm: float = Field(default=0.0, gt=-1e5, lt=1e5)
    """Excess of the camera's seconds over the recording's, millionths."""
    sigma_s: float | None = None
    """Standard deviation of the offset in the middle of the recording."""
    confidence: float | None = None
    """Probability that the offset is right to half a frame of 30 a second."""
    method: str | None = None
    """rays or epipolar lines, with a note where sound chose among several answers; sound; reference; or none,
    with the reason."""

    def moment(self, own_s: Array) -> Array:
        """Moments on the recording's clock of times on the camera's own."""
        return np.asarray(self.offset_s + (1 + self.drift_ppm * _PPM) * own_s)

    @property
    def numbers(self) -> tuple[float, float]:
        """Offset and drift, on which results depend."""
        return self.offset_s, self.drift_ppm


class SyncFile(Config):
    """Content of ``sync.yaml``."""

    sync: dict[str, Clock]
    source: dict[str, str] = Field(default_factory=dict)
    """Digest of each input of the estimate."""
    curves: dict[str, Any] = Field(default_factory=dict)
    """Residual over lag for the report."""


def read_sync(path: Path) -> SyncFile:
    """Read a ``sync.yaml``. Raises ``InputError``."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; --sync takes auto, off or a sync.yaml")
    return load(SyncFile, [path])


def write_sync(path: Path, content: SyncFile) -> None:
    """Write a ``sync.yaml`` atomically. Raises ``InputError``."""
    head = (
        "# Clock of each camera: offset_s + (1 + drift_ppm / 1e6) × its own seconds from its first frame.\n"
    )
    text = yaml.safe_dump(content.model_dump(mode="json", exclude_none=True), sort_keys=False, width=110)
    write_text_atomically(path, head + text)


@dataclass(frozen=True)
class OwnTimes:
    """Frames of V cameras, each on its own clock."""

    names: tuple[str, ...]
    times_s: tuple[Array, ...]
    """Rising, 0 at the first frame."""
    rates: tuple[Fraction, ...]
    first: tuple[int, ...]
    """First frame of each camera with keypoints."""

    def select(self, views: Sequence[int]) -> OwnTimes:
        """Frames of some cameras."""
        return OwnTimes(*(tuple(getattr(self, f.name)[v] for v in views) for f in fields(self)))

    def timeline(self, clocks: Sequence[Clock]) -> Timeline:
        """Common time line by these clocks; empty where the cameras share no time."""
        moments = [c.moment(t) for c, t in zip(clocks, self.times_s, strict=True)]
        return common_timeline(moments, self.rates, self.first)

    def spans(self, clocks: Sequence[Clock]) -> str:
        """Start and end of each camera's film, for a message."""
        moments = [c.moment(t) for c, t in zip(clocks, self.times_s, strict=True)]
        return ", ".join(
            f"{n} from {t[f]:.2f} s to {t[-1]:.2f} s"
            for n, t, f in zip(self.names, moments, self.first, strict=True)
        )

    def findings(self, timeline: Timeline) -> list[Finding]:
        """Findings on unused frames, different rates, and instants without a frame."""
        found = []
        unused = []
        cameras = zip(self.names, self.times_s, timeline.frame_index, self.first, strict=True)
        for name, own, index, start in cameras:
            before = int(index[index >= 0].min(initial=len(own))) - start
            after = len(own) - 1 - int(index.max())
            ends = [f"{n} at its {end}" for n, end in ((before, "start"), (after, "end")) if n]
            if ends:
                unused.append(f"{name} {' and '.join(ends)}")
        if unused:
            sentence = (
                f"by their clocks all cameras share {len(timeline)} frames, {timeline.duration_s:.2f} s; "
                f"not used: {'; '.join(unused)}"
            )
            found.append(Finding("frames_unused", sentence))
        if len(set(self.rates)) > 1:
            shown = ", ".join(f"{n} {float(r):.6g}" for n, r in zip(self.names, self.rates, strict=True))
            sentence = f"frame rates differ ({shown} fps): keypoints are interpolated to common times"
            found.append(Finding("rates_differ", sentence))
        for name, count in zip(self.names, (timeline.frame_index < 0).sum(1), strict=True):
            if count:
                sentence = f"camera {name} has no frame at {count} of {len(timeline)} instants"
                found.append(Finding("frame_missing", sentence, name, int(count)))
        return found


def stated_clocks(
    path: Path, own: OwnTimes, frame_offset: Mapping[str, int], sync: Mapping[str, Clock]
) -> tuple[Clock, ...]:
    """Clocks that ``recording.yaml`` at ``path`` states. Raises ``InputError``."""
    for key, entries in (("frame_offset", frame_offset), ("sync", sync)):
        for name in entries:
            if name not in own.names:
                raise InputError(
                    f"{path}: {key}: no camera is called {name!r}; known: {', '.join(own.names)}"
                )
    if both := sorted(set(frame_offset) & set(sync)):
        raise InputError(f"{path}: {', '.join(both)} has a frame_offset and a clock under sync; state one")
    clocks = []
    for name, times, rate in zip(own.names, own.times_s, own.rates, strict=True):
        offset = frame_offset.get(name, 0)
        if abs(offset) >= len(times):
            raise InputError(f"{path}: frame_offset of {name} is {offset}, but it has {len(times)} frames")
        late = float(times[offset]) if offset >= 0 else offset / float(rate)
        clocks.append(sync.get(name) or Clock(offset_s=0.0 - late))
    return tuple(clocks)
