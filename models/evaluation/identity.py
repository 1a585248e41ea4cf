"""Identity of several people over time against a truth.

MOTA, switches: Bernardin and Stiefelhagen, Evaluating multiple object tracking performance, 2008. IDF1:
Ristani et al., Performance measures and a data set for multi-target, multi-camera tracking, 2016.

Axes: T frames, P people of the truth, N people of the results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

MATCH_M: Final = 0.3
"""Mean distance of a person's points from the truth, metres, below which it is that person."""


@dataclass(frozen=True)
class Identity:
    """Figures of a recording. A person-frame is a person in a frame."""

    idf1: float
    """F1 of the person-frames, each person of the truth with the one id that is right most often."""
    mota: float
    """1 − (missed + false + switches) / person-frames of the truth"""
    switches: int
    """Times that a person gets another id than before."""
    longest: int
    """Frames of the longest run of a person under somebody else's id."""
    missed: float
    """Person-frames of the truth without a person of the results, by all of the truth."""
    false: float
    """Person-frames of the results without a person of the truth, by all of the truth."""
    mpjpe_mm: float
    """Mean distance of matched people; NaN where nobody is."""


def identity(apart_m: NDArray[np.float64], true: NDArray[np.bool_], found: NDArray[np.bool_]) -> Identity:
    """Compare who is who, frame by frame.

    apart_m: (T, P, N) mean distance of the points of two people, not finite where one is not there. true:
    (T, P), found: (T, N), who is there.
    """
    frames, people = true.shape
    apart = np.where(np.isfinite(apart_m), apart_m, np.inf)
    close = apart < MATCH_M
    truth, track = linear_sum_assignment(-close.sum(0))
    own = np.full(people, -1)
    own[truth] = track
    right = int(close.sum(0)[truth, track].sum())

    match = np.full((frames, people), -1)
    for t in range(frames):
        one, other = linear_sum_assignment(np.where(close[t], apart[t], 1.0))
        good = close[t, one, other]
        match[t, one[good]] = other[good]
    matched = match >= 0
    switches = sum(int((np.diff(m[m >= 0]) != 0).sum()) for m in match.T)
    at = np.nonzero(matched)
    there, given = int(true.sum()), int(found.sum())
    missed, false = there - len(at[0]), given - len(at[0])
    return Identity(
        idf1=2 * right / max(there + given, 1),
        mota=1 - (missed + false + switches) / max(there, 1),
        switches=switches,
        longest=max((_longest_run(w) for w in (matched & (match != own)).T), default=0),
        missed=missed / max(there, 1),
        false=false / max(there, 1),
        mpjpe_mm=1000 * float(apart[(*at, match[at])].mean()) if matched.any() else float("nan"),
    )


def _longest_run(which: NDArray[np.bool_]) -> int:
    """Length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], which.astype(int), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))
