"""People of a frame: what no format may get wrong about points, crowds and frame numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.formats.keypoints.files import MAX_PEOPLE, Unreadable, find_number, parse_json, to_people

POINTS = np.stack([np.linspace(10, 400, 25), np.linspace(20, 300, 25), np.linspace(0.2, 0.9, 25)], -1)
FLAT = POINTS.ravel().tolist()


@pytest.mark.parametrize("missing", [(0, 0, 0), (5, 5, 0), (5, 5, -1), (0, 0, 0.4)], ids=str)
def test_a_missing_point_is_nan_never_zero(missing: tuple[float, float, float]) -> None:
    found, _ = to_people(lambda: [[*missing, *FLAT[3:]]], 25)
    assert np.isnan(found[0, 0, :2]).all()
    assert found[0, 0, 2] == 0
    assert np.allclose(found[0, 1:], POINTS[1:])


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "null", "1e300"])
def test_a_point_that_is_no_number_is_missing(word: str) -> None:
    found, reason = to_people(lambda: [[json.loads(word), *FLAT[1:]]], 25)
    assert reason == ""
    assert np.isnan(found[0, 0, :2]).all()
    assert np.isfinite(found[0, 1:]).all()


def test_of_a_crowd_the_clearest_are_kept_in_order() -> None:
    crowd = [POINTS * [1, 1, 0.1 + 0.9 * ((7 * i) % 20) / 20] + [i, 0, 0] for i in range(20)]
    found, _ = to_people(lambda: [p.ravel().tolist() for p in crowd], 25)
    clearest = sorted(sorted(range(20), key=lambda i: -((7 * i) % 20))[:MAX_PEOPLE])
    assert np.rint(found[:, 0, 0] - POINTS[0, 0]).astype(int).tolist() == clearest


def test_content_that_cannot_be_used_gives_its_reason() -> None:
    def fail(error: Exception) -> list[object]:
        raise error

    for error in (Unreadable("of another kind"), OSError(5, "of another kind")):
        found, reason = to_people(lambda error=error: fail(error), 25)
        assert found.shape == (0, 25, 3)
        assert "of another kind" in reason
    with pytest.raises(Unreadable, match="not JSON"):
        parse_json(b"[" * 100_000)


@pytest.mark.parametrize(
    ("stem", "number"),
    [("cam2_000000000012_keypoints", 12), ("7", 7), ("s1.2x", 2), ("notes", None), ("9" * 19, None)],
)
def test_the_last_run_of_digits_is_the_frame(stem: str, number: int | None) -> None:
    found = find_number(stem)
    assert (found and int(found[1])) == number
