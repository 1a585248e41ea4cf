"""Offsets of cameras' clocks from their sound tracks.

Sound travels 1 m in 3 ms: a camera that stands 3 m farther from the source seems to be started 9 ms earlier.

Axes: V cameras, N values of the power of a sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import correlate, correlation_lags

from models.geometry.lags import difference_matrix, largest_component, parabola_vertex
from pipeline.array_types import Array

TRAVEL_SIGMA_S: Final = 0.015
"""Standard deviation of an offset by sound: cameras that stand 5 m nearer to or farther from its source."""
TRAVEL_LIMIT_S: Final = 0.1
"""Largest error by the travel of sound, over 34 m: offsets farther apart contradict each other."""
NO_TRACK: Final = "has no sound track"
SILENT: Final = "is silent"
NOTHING_COMMON: Final = "has no sound that another has, or only such that repeats"

_SILENCE_POWER: Final = 1e-7
"""Largest power of a silent track: −70 dB of full scale."""
_MIN_POWER: Final = 1e-9
_ONSET_S: Final = (0.003, 0.05)
"""Standard deviations of the two Gaussians whose difference makes onsets of the loudness stand out."""
_MIN_PEAK_RATIO: Final = 1.5
"""Least ratio of a trusted peak of the correlation to the next one."""
_MIN_PEAK_SIGMAS: Final = 8.0
"""Least ratio of a trusted peak to the correlation's standard deviation: the highest of 5,000 lags of noise
is at 4."""
_MAX_CYCLE_ERROR_S: Final = 0.02
"""Largest sum of lags around a cycle of cameras: the travel of one source's sound adds nothing to it."""


@dataclass(frozen=True)
class SoundClocks:
    """Offsets of V cameras by sound."""

    offset_s: Array
    """(V,) relative to the stated ones, 0 for the first camera with sound; NaN where refused"""
    refused: tuple[str | None, ...]
    """(V,) reason why a camera has no offset"""


def find_sound_clocks(
    power: Sequence[Array | None], stated_s: Sequence[float], rate: float, reach_s: float
) -> SoundClocks:
    """Estimate offsets of clocks from the correlation of the sound onsets of every two cameras.

    power: (N,) of each camera from its clock's zero on, ``rate`` values a second; None without a sound track.
    stated_s: current offsets. reach_s: largest lag relative to these.
    """
    refused = [
        NO_TRACK if p is None else SILENT if p.max(initial=0) < _SILENCE_POWER else NOTHING_COMMON
        for p in power
    ]
    sounds = {v: _onsets(p, rate) for v, p in enumerate(power) if p is not None and refused[v] != SILENT}
    lags = {
        (a, b): lag_s
        for a, b in combinations(sounds, 2)
        if (lag_s := _lag(sounds[a], sounds[b], rate, stated_s[b] - stated_s[a], reach_s)) is not None
    }
    offset_s = _consistent_offsets(len(power), lags)
    reasons = (r if np.isnan(x) else None for r, x in zip(refused, offset_s, strict=True))
    return SoundClocks(offset_s, tuple(reasons))


def _onsets(power: Array, rate: float) -> Array:
    """Onsets (N,) of the loudness, of unit norm."""
    loudness = np.log1p(power / max(float(np.median(power)), _MIN_POWER))
    fine, coarse = (gaussian_filter1d(loudness, s * rate) for s in _ONSET_S)
    change = fine - coarse
    return np.asarray(change / max(float(np.linalg.norm(change)), 1e-12))


def _lag(one: Array, two: Array, rate: float, stated_s: float, reach_s: float) -> float | None:
    """Offset of the second camera's clock less that of the first, relative to the stated one; None without a
    single sharp peak of the correlation."""
    lag_s = correlation_lags(len(one), len(two)) / rate - stated_s
    near = np.abs(lag_s) <= reach_s
    lag_s, match = lag_s[near], correlate(one, two, method="fft")[near]
    if len(match) < 3:
        return None
    k = int(match.argmax())
    aside = match[np.abs(lag_s - lag_s[k]) > TRAVEL_LIMIT_S]
    if not 0 < k < len(match) - 1 or not len(aside):
        return None
    if match[k] < max(_MIN_PEAK_RATIO * float(aside.max()), _MIN_PEAK_SIGMAS * float(aside.std()), 1e-9):
        return None
    return float(lag_s[k] + parabola_vertex(*match[k - 1 : k + 2]) / rate)


def _consistent_offsets(views: int, lags: dict[tuple[int, int], float]) -> Array:
    """(V,) least-squares offsets for the lags of pairs, without pairs that contradict the others.

    NaN outside the largest connected set of cameras.
    """
    lags = dict(lags)
    while True:
        offset_s = np.full(views, np.nan)
        if not lags:
            return offset_s
        members = largest_component(views, lags)
        pairs = [pair for pair in lags if pair[0] in members]
        design = difference_matrix(views, pairs)[:, members]
        lag_s = np.array([lags[pair] for pair in pairs])
        solved = np.linalg.lstsq(design[:, 1:], lag_s, rcond=None)[0]
        offset_s[members] = np.concatenate([[0.0], solved])
        error_s = np.abs(design @ offset_s[members] - lag_s)
        if error_s.max() <= _MAX_CYCLE_ERROR_S:
            return offset_s
        del lags[pairs[int(error_s.argmax())]]
