"""Pickles of arrays: what they hold comes back, what they would run does not run."""

from __future__ import annotations

import os
import pickle
import tracemalloc

import numpy as np
import pytest

from pipeline.pickles import unpickle_arrays


class Dangerous:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_arrays_in_lists_and_dictionaries_come_back(protocol: int) -> None:
    given = {"poses": [np.arange(6.0).reshape(2, 3)], "genders": ["m"], "valid": np.array([True]), "n": 3}
    found = unpickle_arrays(pickle.dumps(given, protocol=protocol))
    assert set(found) == set(given)
    np.testing.assert_array_equal(found["poses"][0], given["poses"][0])
    assert found["genders"] == ["m"]


def test_nothing_else_is_made() -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"system"):
        unpickle_arrays(pickle.dumps({"poses": Dangerous()}))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04]r\xff\xff\xff\x0f.",  # remembers object 268,435,455
        b"\x80\x02]p268435455\n.",
        b"\x80\x05\x96\x00\x00\x00\x40\x00\x00\x00\x00abc.",  # a gigabyte, of which there are three bytes
        b"\x80\x04\x8e\x00\x00\x00\x40\x00\x00\x00\x00abc.",
    ],
)
def test_no_memory_is_taken_for_what_is_not_there(content: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((pickle.UnpicklingError, ValueError)):
            unpickle_arrays(content)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
