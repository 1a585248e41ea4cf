"""Clocks by sound: tracks whose offsets are known, silent ones, ones that share nothing or only a beat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sounds import RATE, heard, scene, write_sounding

from models.geometry.sound_lags import NO_TRACK, NOTHING_COMMON, SILENT, find_sound_clocks
from pipeline.sound import POWER_HZ, read_sound_power
from pipeline.video import probe

LATE = np.array([0.0, 1.3712, -0.8333, 0.0461])


def test_offsets_of_four_noisy_tracks(tmp_path: Path) -> None:
    sound = scene(26, 1)
    power = []
    for v, late in enumerate(LATE):
        # One track begins a second after its first frame; two are sampled otherwise.
        begin = 1.0 if v == 3 else 0.0
        track = heard(sound, late + begin, 20, v, noise=0.05)
        path = write_sounding(tmp_path / f"cam{v}.mp4", track, rate=(48000, 44100)[v % 2], start_s=begin)
        power.append(read_sound_power(probe(path), 60.0))
    found = find_sound_clocks(power, [0.0] * 4, POWER_HZ, 5.0)
    assert found.refused == (None,) * 4
    assert np.abs(found.offset_s - LATE).max() < 0.005
    # On top of clocks that are stated, however far apart.
    stated = [0.0, 0.0, -9.0, 0.0]
    again = find_sound_clocks(power, stated, POWER_HZ, 9.0)
    assert np.abs(again.offset_s + stated - LATE).max() < 0.005


def test_what_cannot_be_heard_is_told(tmp_path: Path) -> None:
    sound = scene(16, 2)
    silence = np.zeros(10 * RATE)
    tracks = [heard(sound, 0, 10, 1), silence, None, heard(sound, 0.4, 10, 2), heard(scene(16, 3), 0, 10, 3)]
    paths = [write_sounding(tmp_path / f"cam{v}.mp4", t) for v, t in enumerate(tracks)]
    power = [read_sound_power(probe(p), 60.0) for p in paths]
    found = find_sound_clocks(power, [0.0] * 5, POWER_HZ, 5.0)
    assert found.refused == (None, SILENT, NO_TRACK, None, NOTHING_COMMON)
    assert np.isnan(found.offset_s[[1, 2, 4]]).all()
    assert found.offset_s[3] == pytest.approx(0.4, abs=0.005)


@pytest.mark.parametrize("seed", range(6))
def test_noise_and_a_beat_give_no_number(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = [0.01 * rng.chisquare(16, 10 * POWER_HZ) for _ in range(3)]
    assert find_sound_clocks(noise, [0.0] * 3, POWER_HZ, 5.0).refused == (NOTHING_COMMON,) * 3
    beat = np.zeros(10 * POWER_HZ)
    beat[:: POWER_HZ // 2] = 50.0
    beating = [np.asarray(n + np.roll(beat, 37 * v)) for v, n in enumerate(noise)]
    assert find_sound_clocks(beating, [0.0] * 3, POWER_HZ, 5.0).refused == (NOTHING_COMMON,) * 3


def test_a_pair_that_contradicts_the_others_has_no_say() -> None:
    """Two cameras that also hear something of their own, louder than what all hear, at another lag."""
    rng = np.random.default_rng(4)
    late = np.array([0.0, 0.3, -0.5, 0.8])
    at = np.sort(rng.uniform(2, 18, 60))
    power = [1e-4 * rng.chisquare(16, 20 * POWER_HZ) for _ in late]
    for p, shift in zip(power, late, strict=True):
        p[np.round((at - shift) * POWER_HZ).astype(int)] += 0.5
    own = rng.uniform(2, 18, 120)
    for v, shift in ((0, 0.0), (1, 2.0)):
        power[v][np.round((own - shift) * POWER_HZ).astype(int)] += 5.0
    found = find_sound_clocks(power, [0.0] * 4, POWER_HZ, 5.0)
    assert found.refused == (None,) * 4
    assert np.abs(found.offset_s - late).max() < 0.005
