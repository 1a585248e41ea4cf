"""Gait events from the motion of the feet relative to the hips.

A foot strikes where its heel is farthest ahead of the hips, and leaves the floor where its toe is farthest
behind them (Zeni, Richards and Higginson 2008): this needs no floor, and holds on a treadmill, too.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.signal import find_peaks

from pipeline.array_types import Array
from pipeline.skeleton import BODY_25
from pipeline.store import Store

EVENTS: Final = ("left_foot_strike", "left_foot_off", "right_foot_strike", "right_foot_off")
_POINTS: Final = ("LHeel", "LBigToe", "RHeel", "RBigToe")
"""Keypoint whose distance ahead of the hips each event is an extreme of."""
MIN_SWING_M: Final = 0.2
"""Least rise and fall of that distance around an event; synthetic walkers have 0.55 to 0.8 m."""
MIN_STEP_M: Final = 0.1
"""Least distance between the feet at an event: in a squat the hips move behind both."""


def gait_events(time_s: Array, ahead_m: Array) -> dict[str, Array]:
    """Seconds of each of ``EVENTS``, increasing, between frames by a parabola through three.

    ahead_m: (T, 4) distance of each of the heels and toes ahead of the hips; NaN where there is no pose.
    """
    times: dict[str, Array] = {name: np.empty(0) for name in EVENTS}
    known = np.isfinite(ahead_m).all(1)
    ends = np.flatnonzero(np.diff(known, prepend=False, append=False))
    for start, stop in ends.reshape(-1, 2):
        for k, name in enumerate(EVENTS):
            x, other = (ahead_m[start:stop, i] * (-1 if k % 2 else 1) for i in (k, (k + 2) % 4))
            peaks, _ = find_peaks(x, prominence=MIN_SWING_M)
            peaks = peaks[(x - other)[peaks] > MIN_STEP_M]
            before, at, after = x[peaks - 1], x[peaks], x[peaks + 1]
            frame = start + peaks + (before - after) / (2 * np.minimum(before - 2 * at + after, -1e-12))
            times[name] = np.append(times[name], np.interp(frame, np.arange(len(time_s)), time_s))
    return times


def feet_ahead(keypoints: Array, up: Array) -> Array:
    """Distance (T, 4) of heels and toes ahead of the hips, metres, along the heading of the hips.

    keypoints: (T, 25, 3) BODY_25 points, metres. up: (3,) unit vector.
    """
    left, right = keypoints[:, BODY_25.index("LHip")], keypoints[:, BODY_25.index("RHip")]
    heading = np.cross(left - right, up)
    heading /= np.linalg.norm(heading, axis=1, keepdims=True)
    feet = keypoints[:, [BODY_25.index(name) for name in _POINTS]] - 0.5 * (left + right)[:, None]
    return np.asarray(np.einsum("tfi,ti->tf", feet, heading))


def write_events(store: Store) -> None:
    """Write the gait events of all people of a finished store whose keypoints are BODY_25's."""
    for person in store.ids if store.contents.keypoint_skeleton.names == BODY_25.names else ():
        ahead = []
        for first, last in store.blocks():
            a, b = store.span(first)[0], store.span(last)[1]
            keypoints = store.array(f"people/{person}/keypoints_3d", a, b)[..., :3].astype(np.float64)
            ahead.append(feet_ahead(keypoints, store.contents.rig.up))
        store.write_events(person, gait_events(store.contents.time_s, np.concatenate(ahead)))
