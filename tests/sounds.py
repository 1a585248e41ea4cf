"""Sound tracks whose offsets are known, in videos whose pictures do not matter."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from recordings import write_video
from scipy.signal import resample_poly

from pipeline.array_types import Array

RATE = 16000


def scene(seconds: float, seed: int) -> Array:
    """Steps, claps and words: bursts of noise of many lengths and heights, at no regular times."""
    rng = np.random.default_rng(seed)
    sound = np.zeros(int(seconds * RATE))
    for start in np.cumsum(rng.uniform(0.15, 1.2, int(3 * seconds))):
        length = int(rng.uniform(0.02, 0.25) * RATE)
        at = int(start * RATE)
        if at + length < len(sound):
            decay = np.exp(-np.arange(length) / (length / 4))
            sound[at : at + length] += rng.uniform(0.05, 0.3) * rng.normal(size=length) * decay
    return sound


def heard(sound: Array, late_s: float, seconds: float, seed: int, noise: float = 0.02) -> Array:
    """Sound of a microphone that starts late, from 3 s before 0, by a level and with noise of its own."""
    rng = np.random.default_rng(seed)
    first = round((3 + late_s) * RATE)
    part = rng.uniform(0.2, 1.5) * sound[first : first + int(seconds * RATE)]
    return np.asarray(np.clip(part + noise * rng.normal(size=len(part)), -1, 1))


def write_sounding(
    path: Path,
    sound: Array | None,
    *,
    rate: int = 48000,
    start_s: float = 0.0,
    fps: int = 10,
    size: tuple[int, int] = (64, 36),
) -> Path:
    """A video of the sound's length, and its sound track, from ``start_s`` after the first frame on."""
    seconds = 4.0 if sound is None else len(sound) / RATE
    silent = path.with_name(f"silent-{path.name}")
    write_video(silent, int(seconds * fps), size=size, rate=fps)
    with av.open(str(silent)) as pictures, av.open(str(path), "w") as file:
        source = pictures.streams.video[0]
        video = file.add_stream_from_template(source)
        audio = None if sound is None else file.add_stream("aac", rate=rate, layout="mono")
        for packet in pictures.demux(source):
            if packet.dts is not None:
                packet.stream = video
                file.mux(packet)
        if audio is not None and sound is not None:
            samples = resample_poly(sound, rate // 100, RATE // 100).astype(np.float32)
            for k in range(0, len(samples), 1024):
                frame = av.AudioFrame.from_ndarray(samples[None, k : k + 1024], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = rate, k + round(start_s * rate)
                file.mux(audio.encode(frame))
            file.mux(audio.encode(None))
    silent.unlink()
    return path
