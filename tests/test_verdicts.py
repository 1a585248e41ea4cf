"""Verdicts of distances: limits that are met, passed, and not known; and that documents state them."""

from pathlib import Path

import pytest

from pipeline.verdicts import REPROJECTION, TRIANGULATION

LIMITS = [TRIANGULATION, REPROJECTION]


@pytest.mark.parametrize("limits", LIMITS, ids=lambda one: one.name)
def test_a_verdict_is_by_its_limits(limits):
    assert limits.verdict(0.0) == limits.verdict(limits.good_mm) == "good"
    assert limits.verdict(limits.good_mm + 0.1) == limits.verdict(limits.usable_mm) == "usable"
    assert limits.verdict(limits.usable_mm + 0.1) == "look at it"
    assert limits.verdict(None) is limits.verdict(float("nan")) is None


@pytest.mark.parametrize("limits", LIMITS, ids=lambda one: one.name)
def test_the_document_has_the_limits_of_the_code(limits):
    text = (Path(__file__).parents[1] / "docs" / "results.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.strip().startswith(f"| {limits.name.lower()} |"))
    assert row.endswith(f"| ≤ {limits.good_mm} mm | ≤ {limits.usable_mm} mm |")
