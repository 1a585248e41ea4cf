"""Views of an instant in groups."""

from __future__ import annotations

import pickle

import pytest

from models.training.samples import ViewGroups

MEMBERS = [[0, 1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11], [12, 13, 14, 15, 16]]


@pytest.mark.parametrize("views", [1, 2, 3, 20])
def test_every_view_is_in_one_group_of_an_epoch(views: int) -> None:
    groups = ViewGroups(MEMBERS, views, seed=0)
    assert len(groups) == sum(-(-len(m) // views) for m in MEMBERS)
    for epoch in range(4):
        seen: list[int] = []
        for i in range(len(groups)):
            instant, members = groups[epoch * len(groups) + i]
            assert 1 <= len(members) <= views
            assert set(members.tolist()) <= set(MEMBERS[instant])
            seen += members.tolist()
        assert sorted(seen) == list(range(17))


def test_epochs_group_anew_and_the_seed_decides() -> None:
    groups, same, other = (ViewGroups(MEMBERS, 2, seed) for seed in (1, 1, 2))

    def epoch(g: ViewGroups, number: int) -> list[list[int]]:
        return [g[number * len(g) + i][1].tolist() for i in range(len(g))]

    assert epoch(groups, 0) == epoch(same, 0) == epoch(pickle.loads(pickle.dumps(groups)), 0)
    assert epoch(groups, 0) != epoch(groups, 1)
    assert epoch(groups, 0) != epoch(other, 0)
    together = {tuple(sorted(pair)) for n in range(60) for pair in epoch(groups, n) if max(pair) < 8}
    assert len(together) == 28  # every pair of the first instant's views comes up
