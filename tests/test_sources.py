"""Sources of training samples, and how they are mixed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from models.training.sources import draw_batch


@pytest.mark.parametrize("weights", [(1e-8,), (0.3, 0.6, 0.1), (1, 1), (2.0, 0.001)])
def test_every_stretch_has_each_sources_share(weights: tuple[float, ...]) -> None:
    sources = [range(7), range(40), range(3)][: len(weights)]
    drawn = [d for step in range(300) for d in draw_batch(sources, weights, 8, 0, step)]
    share = np.array(weights) / sum(weights)
    for start in (0, 11, 600):
        count = Counter(s for s, _ in drawn[start : start + 500])
        for s in range(len(weights)):
            assert abs(count[s] - 500 * share[s]) < 2.5


def test_all_of_a_source_come_before_any_comes_again() -> None:
    sources = [range(7), range(40)]
    drawn = [d for step in range(200) for d in draw_batch(sources, (0.4, 0.6), 8, 3, step)]
    for s, source in enumerate(sources):
        seen = [i for which, i in drawn if which == s]
        n = len(source)
        epochs = [seen[k : k + n] for k in range(0, len(seen) - n + 1, n)]
        assert len(epochs) > 5
        for number, epoch in enumerate(epochs):
            assert sorted(epoch) == list(range(number * n, (number + 1) * n))
        assert [i % n for i in epochs[0]] != [i % n for i in epochs[1]]


def test_a_step_follows_from_its_number_alone() -> None:
    sources, weights = [range(1000), range(333)], (1.0, 2.0)
    forward = [draw_batch(sources, weights, 16, 5, step) for step in range(50)]
    assert [draw_batch(sources, weights, 16, 5, step) for step in reversed(range(50))] == forward[::-1]
    assert draw_batch(sources, weights, 16, 6, 7) != forward[7]
    assert [d for batch in forward for d in batch] == [
        d for step in range(100) for d in draw_batch(sources, weights, 8, 5, step)
    ]
