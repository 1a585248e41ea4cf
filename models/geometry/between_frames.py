"""Interpolation of keypoints between frames of a camera."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.geometry.association import finite_median
from pipeline.array_types import Array, Floats
from pipeline.formats.keypoints.files import MIN_CONFIDENCE
from pipeline.recording import Recording
from pipeline.timeline import MAX_GAP_FRAMES

_MAX_STEP_RATIO: Final = 0.5
"""Largest distance of a person's detections in two frames, over the person's size."""
_STAMP_ROUNDING_FRAMES: Final = 0.1
"""Error of a frame's time, frame intervals: containers round time stamps."""


def people_between(
    recording: Recording, at: NDArray[np.int64], min_confidence: float = MIN_CONFIDENCE
) -> Floats:
    """Detections (V, T, D, K, 3) at instants of the time line, as ``Recording.people``.

    Interpolated where a camera's frames do not coincide with an instant and lie at most ``MAX_GAP_FRAMES``
    apart.
    """
    line, own = recording.timeline, recording.own_times
    index = line.frame_index[:, at]
    if line.later is None or not line.later[:, at].any():
        return recording.people_in(index, min_confidence)
    around = np.where(index >= 0, index + np.array([-1, 0, 1])[:, None, None], -1)  # (3, V, T)
    frames = [np.unique(around[:, v]) for v in range(len(index))]
    count = max(map(len, frames))
    wanted = np.stack([np.pad(n, (0, count - len(n)), constant_values=-1) for n in frames])
    people = recording.people_in(wanted, min_confidence)
    out = []
    for v, (time_s, rate) in enumerate(zip(own.times_s, own.rates, strict=True)):
        before, near, after = (people[v, np.searchsorted(frames[v], n)] for n in around[:, v])
        gap = np.pad(np.diff(time_s) * float(rate), 1, constant_values=np.nan)
        gaps = np.stack([gap[index[v]], gap[index[v] + 1]])
        out.append(between_frames(before, near, after, line.later[v, at], gaps))
    return np.stack(out)


def between_frames(before: Floats, near: Floats, after: Floats, later: Array, gaps: Array) -> Floats:
    """Interpolate the detections (T, D, K, 3) of the frames nearest to instants.

    before, near, after: detections of three consecutive frames, in any order: x, y and confidence; NaN, NaN,
    0 where missing. later: (T,) signed time from the near frame to the instant, over the interval to the
    neighbour on that side. gaps: (2, T) intervals before and after the near frame, in frames. A point moves
    with the velocity to that neighbour, or from the other one where that misses it; a point that only the
    near frame misses is interpolated between the two.
    """
    forth = np.asarray(later >= 0)
    first, second = np.where(forth, gaps[::-1], gaps)[..., None, None, None]  # on the instant's side, beyond
    limit = MAX_GAP_FRAMES + _STAMP_ROUNDING_FRAMES
    forth = forth[:, None, None, None]
    ahead = _same_people(near, np.where(forth, after, before))
    behind = _same_people(near, np.where(forth, before, after))
    in_near, in_ahead, in_behind = ((x[..., 2:] > 0) for x in (near, ahead, behind))
    step = np.abs(later)[:, None, None, None] * first  # frames
    move = np.where(in_ahead, (ahead - near)[..., :2] / first, (near - behind)[..., :2] / second)
    xy = near[..., :2] + np.where(in_ahead | (in_behind & (second <= limit)), step * move, 0)
    bridged = ~in_near & in_ahead & in_behind & (first + second <= limit)
    across = behind[..., :2] + (second + step) / (first + second) * (ahead - behind)[..., :2]
    confidence = np.where(bridged, np.minimum(ahead[..., 2:], behind[..., 2:]), near[..., 2:])
    out = np.concatenate([np.where(in_near, xy, np.where(bridged, across, np.nan)), confidence], -1)
    return np.where((later == 0)[:, None, None, None], near, out).astype(near.dtype)


def _same_people(near: Floats, other: Floats) -> Floats:
    """Mutual nearest neighbours (T, D, K, 3) of people in another frame (T, E, K, 3); missing without one."""
    seen = near[..., 2] > 0
    both = np.asarray(seen[:, :, None] & (other[..., 2] > 0)[:, None])
    apart = np.linalg.norm(near[:, :, None, :, :2] - other[:, None, :, :, :2], axis=-1)
    distance = finite_median(np.where(both, apart, np.nan))  # (T, D, E)
    own = np.where(seen[..., None], near[..., :2], np.nan)
    size = finite_median(np.linalg.norm(own - finite_median(own, 2)[:, :, None], axis=-1))
    distance = np.where(np.isnan(distance), np.inf, distance)
    nearest: NDArray[np.int64] = distance.argmin(2)
    mutual = np.take_along_axis(distance.argmin(1), nearest, 1) == np.arange(near.shape[1])
    least = np.take_along_axis(distance, nearest[..., None], 2)[..., 0]
    same = mutual & (least < _MAX_STEP_RATIO * np.nan_to_num(size))
    picked = np.take_along_axis(other, nearest[..., None, None], 1)
    return np.where(same[..., None, None], picked, np.array([np.nan, np.nan, 0], other.dtype))
