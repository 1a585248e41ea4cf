"""Proportions of bodies that detections propose."""

from __future__ import annotations

import numpy as np
from recordings import figure

from models.geometry.births import has_human_proportions
from pipeline.skeleton import BODY_25


def test_proportions_tell_a_person_from_a_chance_of_rays() -> None:
    body = np.stack([figure(np.zeros(1))[n][0] for n in BODY_25.names])
    assert has_human_proportions(body)
    assert has_human_proportions(0.7 * body), "a child"
    assert not has_human_proportions(0.3 * body)
    assert not has_human_proportions(2 * body)
    assert not has_human_proportions(body * [1, 1, 3])
    assert not has_human_proportions(np.random.default_rng(0).uniform(0, 2, (25, 3)))
    few = np.full((25, 3), np.nan)
    few[:3] = body[:3]
    assert has_human_proportions(few)
