"""Frames in which a person is visible, and those in which they get a pose."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import pad


def visible_frames(confidence: Tensor, min_keypoints: int) -> Tensor:
    """(V, T, K) → (T,) frames with at least ``min_keypoints`` over all views."""
    return (confidence > 0).sum((0, 2)) >= min_keypoints


def viewed_once(confidence: Tensor, min_keypoints: int) -> Tensor:
    """(V, T, K) → (T,) frames in which at most one view has ``min_keypoints``."""
    return ((confidence > 0).sum(2) >= min_keypoints).sum(0) < 2


def size_frames(confidence: Tensor, min_keypoints: int) -> Tensor:
    """(V, T, K) → (T,) frames that show a person's size: visible in two views, or in the only one."""
    visible = visible_frames(confidence, min_keypoints)
    return visible if len(confidence) == 1 else visible & ~viewed_once(confidence, min_keypoints)


def gap_frames(max_gap_s: float, rate: float) -> int:
    """Longest distance of two visible frames between which a person is bridged, frames."""
    return math.floor(max_gap_s * rate + 1e-6)


def posed_frames(visible: Tensor, unseen: float, max_gap: int) -> Tensor:
    """Frames (T,) with a pose: visible (T,), or between visible ones at most ``max_gap`` apart.

    unseen: frames from the last visible one to the first; NaN: none.
    """
    posed, last = visible.clone(), -1 - unseen
    for t in visible.nonzero()[:, 0].tolist():
        if t - last <= max_gap:  # NaN compares false
            posed[max(int(last) + 1, 0) : t] = True
        last = t
    return posed


def frames_unseen(visible: Tensor, unseen: float) -> float:
    """Frames since the last visible one, after frames ``visible`` (T,) that follow ``unseen`` such frames."""
    index = visible.nonzero()[:, 0]
    return float(len(visible) - 1 - index[-1] if len(index) else unseen + len(visible))


def intervals(flags: Tensor) -> list[tuple[int, int]]:
    """(start, stop) of each interval of true frames (T,)."""
    step = pad(flags.long(), (1, 1)).diff()
    return list(zip((step == 1).nonzero()[:, 0].tolist(), (step == -1).nonzero()[:, 0].tolist(), strict=True))
