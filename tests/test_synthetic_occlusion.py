"""Who hides whom, on scenes that a ruler can check."""

from __future__ import annotations

import numpy as np
import pytest
from crowds import along_y, stick, walkers
from scenes import ring
from scipy.optimize import minimize

from models.synthetic.occlusion import LIMB_SEGMENTS, MARGIN_M, find_occluders
from pipeline.skeleton import BODY_25


def test_who_stands_behind_is_hidden_and_who_stands_before_is_not() -> None:
    world = np.stack([stick(0, 2), stick(0, 4)])[None]
    hider = find_occluders(along_y(), world)[0, 0]
    assert (hider[0] == -1).all()
    # Seen from 1.2 m high, the neck behind is hidden by the trunk; the ankle, at 0.1 m and 4 m, is seen over
    # a height of 0.65 m at 2 m: by the thigh.
    for name in ("Neck", "MidHip", "RHip", "LShoulder", "RKnee", "LAnkle"):
        assert hider[1, BODY_25.index(name)] == 0, name


def test_who_stands_beside_is_seen() -> None:
    world = np.stack([stick(0, 2), stick(1.2, 4)])[None]
    assert (find_occluders(along_y(), world) == -1).all()
    # 0.72 m aside at 4 m is 0.36 m at 2 m: the right shoulder is 0.51 / 2 = 0.255 m off the axis, next to an
    # arm of 6 cm at 0.15 m; the right wrist passes at the same distance, the left one further out.
    world = np.stack([stick(0, 2), stick(0.54, 4)])[None]
    hider = find_occluders(along_y(), world)[0, 0, 1]
    assert hider[BODY_25.index("RWrist")] == 0
    assert hider[BODY_25.index("LWrist")] == -1


def test_an_arm_that_is_held_out_hides_who_stands_far_beside() -> None:
    one, other = stick(0, 2), stick(1.3, 4)
    neck = BODY_25.index("Neck")  # seen over (0.65, 2, 1.3)
    assert find_occluders(along_y(), np.stack([one, other])[None])[0, 0, 1, neck] == -1
    one[[BODY_25.index("LElbow"), BODY_25.index("LWrist")]] = [0.5, 2, 1.3], [0.8, 2, 1.3]
    assert find_occluders(along_y(), np.stack([one, other])[None])[0, 0, 1, neck] == 0


def test_skin_that_is_touched_is_seen() -> None:
    world = np.stack([stick(0, 2), stick(0, 2 + 0.15)])[None]
    reach = 0.15 + 0.16  # metres between the second neck and the front of the first
    assert reach > MARGIN_M
    assert find_occluders(along_y(), world)[0, 0, 1, BODY_25.index("Neck")] == 0
    world[0, 1, :, 1] = 2 - 0.15 + 0.01
    assert find_occluders(along_y(), world)[0, 0, 1, BODY_25.index("Neck")] == -1


def test_nobody_is_hidden_by_who_is_not_there() -> None:
    world = np.stack([np.full((25, 3), np.nan), stick(0, 4)])[None]
    assert (find_occluders(along_y(), world) == -1).all()
    assert (find_occluders(along_y(), world[:, 1:]) == -1).all()


def test_of_several_the_one_right_in_the_line_of_sight_is_named() -> None:
    world = np.stack([stick(0.2, 3), stick(0, 2), stick(0, 5)])[None]
    assert find_occluders(along_y(), world)[0, 0, 2, BODY_25.index("Neck")] == 1


@pytest.mark.parametrize("seed", range(2))
def test_as_a_slow_search_along_both_segments_finds(seed: int) -> None:
    crowd = walkers(3, 2, 0.2, seed)
    world = crowd.world[:2]
    rig = ring(3)
    hider = find_occluders(rig, world)
    rng = np.random.default_rng(seed)
    checked = 0
    for v, t, p in np.argwhere(np.ones(hider.shape[:3], bool)).tolist():
        for k in rng.choice(25, 3, replace=False):
            eye, point = rig.centres[v], world[t, p, k]
            sight = point - eye
            end = 1 - MARGIN_M / np.linalg.norm(sight)
            ratio = {}
            for q in {0, 1, 2} - {p}:
                for a, b, radius in LIMB_SEGMENTS:
                    one, limb = world[t, q, a], world[t, q, b] - world[t, q, a]

                    def apart(x, one=one, limb=limb, eye=eye, sight=sight):
                        return np.sum((eye + x[0] * sight - one - x[1] * limb) ** 2)

                    least = minimize(apart, [0.5, 0.5], bounds=[(0, end), (0, 1)])
                    ratio[q] = min(ratio.get(q, np.inf), np.sqrt(least.fun) / radius)
            nearest = min(ratio, key=ratio.__getitem__)
            if abs(ratio[nearest] - 1) > 0.02:
                checked += 1
                assert (hider[v, t, p, k] >= 0) == (ratio[nearest] < 1)
                if ratio[nearest] < 1:
                    assert hider[v, t, p, k] == nearest
    assert checked > 40
