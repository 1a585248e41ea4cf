"""Keypoints at instants between two frames of a camera."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.geometry.association import masked_median
from pipeline.array_types import Array, Floats
from pipeline.formats.keypoints.files import MIN_CONFIDENCE
from pipeline.recording import Recording
from pipeline.timeline import MAX_GAP_FRAMES

_REACH: Final = 0.5
"""Distance from frame to frame below which two detections are one person, by the person's size."""
_ROUNDED: Final = 0.1
"""Of a frame: time stamps are rounded."""


def people_between(
    recording: Recording, at: NDArray[np.int64], min_confidence: float = MIN_CONFIDENCE
) -> Floats:
    """Detections at instants of the time line, (V, T, D, K, 3) as ``Recording.people``, interpolated where a
    camera's frames lie beside the instant, never further apart than ``MAX_GAP_FRAMES``."""
    line, own = recording.timeline, recording.own_times
    index = line.frame_index[:, at]
    if line.later is None or not line.later[:, at].any():
        return recording.people_in(index, min_confidence)
    around = np.where(index >= 0, index + np.array([-1, 0, 1])[:, None, None], -1)  # (3, V, T)
    frames = [np.unique(around[:, v]) for v in range(len(index))]
    most = max(map(len, frames))
    wanted = np.stack([np.pad(n, (0, most - len(n)), constant_values=-1) for n in frames])
    people = recording.people_in(wanted, min_confidence)
    out = []
    for v, (time_s, rate) in enumerate(zip(own.times_s, own.rates, strict=True)):
        before, near, after = (people[v, np.searchsorted(frames[v], n)] for n in around[:, v])
        gap = np.pad(np.diff(time_s) * float(rate), 1, constant_values=np.nan)
        gaps = np.stack([gap[index[v]], gap[index[v] + 1]])
        out.append(between_frames(before, near, after, line.later[v, at], gaps))
    return np.stack(out)


def between_frames(before: Floats, near: Floats, after: Floats, later: Array, gaps: Array) -> Floats:
    """Everybody near instants (T, D, K, 3), moved to these.

    before, near, after: detections of three frames in a row, in any order: x, y and confidence; NaN, NaN, 0
    where missing. later: (T,) by how much later than the near frame an instant is, by the interval to its
    neighbour on that side. gaps: (2, T) intervals before and after the near frame, in frames. A point moves
    as from the near frame to that neighbour, or, where that misses it, as from the other one; where only the
    near frame misses it, it lies between the two.
    """
    forth = np.asarray(later >= 0)
    first, second = np.where(forth, gaps[::-1], gaps)[..., None, None, None]  # on the instant's side, beyond
    limit = MAX_GAP_FRAMES + _ROUNDED
    forth = forth[:, None, None, None]
    ahead = _same_people(near, np.where(forth, _padded(after, before), _padded(before, after)))
    behind = _same_people(near, np.where(forth, _padded(before, after), _padded(after, before)))
    here, there, back = ((x[..., 2:] > 0) for x in (near, ahead, behind))
    step = np.abs(later)[:, None, None, None] * first  # frames
    move = np.where(there, (ahead - near)[..., :2] / first, (near - behind)[..., :2] / second)
    xy = near[..., :2] + np.where(there | (back & (second <= limit)), step * move, 0)
    only = ~here & there & back & (first + second <= limit)
    across = behind[..., :2] + (second + step) / (first + second) * (ahead - behind)[..., :2]
    sure = np.where(only, np.minimum(ahead[..., 2:], behind[..., 2:]), near[..., 2:])
    out = np.concatenate([np.where(here, xy, np.where(only, across, np.nan)), sure], -1)
    return np.where((later == 0)[:, None, None, None], near, out).astype(near.dtype)


def _padded(people: Floats, like: Floats) -> Floats:
    """People (T, D, K, 3) with as many places as others need, too."""
    more = max(like.shape[1] - people.shape[1], 0)
    nobody = np.full((len(people), more, *people.shape[2:]), [np.nan, np.nan, 0.0], dtype=people.dtype)
    return np.concatenate([people, nobody], 1)


def _same_people(near: Floats, other: Floats) -> Floats:
    """People (T, D, K, 3) of another frame (T, E, K, 3) who are those of this one (T, D, K, 3), each the
    nearest to the other; missing where there is none."""
    seen, also = near[..., 2] > 0, other[..., 2] > 0
    both = np.asarray(seen[:, :, None] & also[:, None])
    apart = np.linalg.norm(near[:, :, None, :, :2] - other[:, None, :, :, :2], axis=-1)
    distance = masked_median(np.where(both, apart, 0)[..., None], both)[..., 0]  # (T, D, E)
    middle = masked_median(np.where(seen[..., None], near[..., :2], 0), seen)
    off = np.linalg.norm(near[..., :2] - middle[:, :, None], axis=-1)
    size = masked_median(np.where(seen, off, 0)[..., None], seen)[..., 0]
    distance = np.where(np.isnan(distance), np.inf, distance)
    nearest: NDArray[np.int64] = distance.argmin(2)
    mutual = np.take_along_axis(distance.argmin(1), nearest, 1) == np.arange(near.shape[1])
    least = np.take_along_axis(distance, nearest[..., None], 2)[..., 0]
    same = mutual & (least < _REACH * np.nan_to_num(size))
    picked = np.take_along_axis(other, nearest[..., None, None], 1)
    return np.where(same[..., None, None], picked, np.array([np.nan, np.nan, 0], other.dtype))
