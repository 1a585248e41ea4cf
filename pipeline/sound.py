"""Power of videos' sound tracks over time."""

from __future__ import annotations

from contextlib import closing
from typing import Final

import av
import numpy as np

from pipeline.array_types import Array
from pipeline.video import VideoInfo

POWER_HZ: Final = 500
"""Sampling rate of the power."""
_SAMPLES_PER_VALUE: Final = 16
"""Samples of the sound, mixed to one channel, for a value of the power: of frequencies up to 4 kHz."""


def read_sound_power(video: VideoInfo, seconds: float) -> Array | None:
    """Mean square (N,) of a video's sound relative to full scale, for ``seconds`` from its first frame on.

    None without a sound track that can be decoded. Only the power is held in memory.
    """
    if video.pictures:
        return None
    power = np.zeros(round(seconds * POWER_HZ))
    rate, end = _SAMPLES_PER_VALUE * POWER_HZ, 0
    try:
        container = av.open(str(video.path), metadata_errors="replace")
    except (av.FFmpegError, OSError):
        return None
    with closing(container):
        stream = next(iter(container.streams.audio), None)
        if stream is None or stream.codec_context is None:
            return None
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        packets = container.demux(stream)
        while end < len(power):
            try:
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
            except av.InvalidDataError:
                continue  # a damaged packet costs its own sound only
            except (av.FFmpegError, OSError):
                break
            if packet is None:
                break
            for piece in (p for f in frames for p in resampler.resample(f)):
                if piece.pts is None or piece.time_base is None:
                    continue
                first = round((float(piece.pts * piece.time_base) - float(video.times_s[0])) * rate)
                samples = piece.to_ndarray()[0].astype(np.float64)
                at = (first + np.arange(len(samples))) // _SAMPLES_PER_VALUE
                inside = (at >= 0) & (at < len(power))
                if inside.any():
                    np.add.at(power, at[inside], samples[inside] ** 2 / _SAMPLES_PER_VALUE)
                end = max(end, int(at[-1]) + 1)
    return power[:end] if end > 0 else None
