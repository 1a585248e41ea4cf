"""Identity metrics of several people over time against ground truth.

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
"""Largest mean distance between the points of a person of the results and the matched one of the truth."""


@dataclass(frozen=True)
class Identity:
    """Identity metrics of a recording. A person-frame is a person in a frame."""

    idf1: float
    """F1 of the person-frames, with people of truth and results assigned one to one over the recording."""
    mota: float
    """1 − (missed + false + switches) / person-frames of the truth."""
    switches: int
    """Changes of the id that a person of the truth is matched to."""
    longest: int
    """Frames of the longest run of a person matched to another id than the assigned one."""
    missed: float
    """Unmatched person-frames of the truth / person-frames of the truth."""
    false: float
    """Unmatched person-frames of the results / person-frames of the truth."""
    mpjpe_mm: float
    """Mean distance of matched people; NaN without any."""


def score_identities(
    distance_m: NDArray[np.float64], in_truth: NDArray[np.bool_], in_results: NDArray[np.bool_]
) -> Identity:
    """Score the ids of results against those of the truth.

    distance_m: (T, P, N) mean distance between the points of two people, not finite where one is absent.
    in_truth (T, P) and in_results (T, N): where each person is present.
    """
    frames, people = in_truth.shape
    distance_m = np.where(np.isfinite(distance_m), distance_m, np.inf)
    close = distance_m < MATCH_M
    truth, track = linear_sum_assignment(-close.sum(0))
    assigned = np.full(people, -1)
    assigned[truth] = track
    correct = int(close.sum(0)[truth, track].sum())

    match = np.full((frames, people), -1)
    for t in range(frames):
        truth, track = linear_sum_assignment(np.where(close[t], distance_m[t], 1.0))
        valid = close[t, truth, track]
        match[t, truth[valid]] = track[valid]
    matched = match >= 0
    switches = sum(int((np.diff(m[m >= 0]) != 0).sum()) for m in match.T)
    frame, person = np.nonzero(matched)
    truth_count, result_count = int(in_truth.sum()), int(in_results.sum())
    missed, false = truth_count - len(frame), result_count - len(frame)
    error_m = distance_m[frame, person, match[frame, person]]
    return Identity(
        idf1=2 * correct / max(truth_count + result_count, 1),
        mota=1 - (missed + false + switches) / max(truth_count, 1),
        switches=switches,
        longest=max((_longest_run(wrong) for wrong in (matched & (match != assigned)).T), default=0),
        missed=missed / max(truth_count, 1),
        false=false / max(truth_count, 1),
        mpjpe_mm=1000 * float(error_m.mean()) if len(error_m) else float("nan"),
    )


def _longest_run(mask: NDArray[np.bool_]) -> int:
    """Length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))
