"""Verdicts on errors of cameras, and their limits, in millimetres at the person.

The *triangulation residual* is the distance of a detected point from the 3D point of all cameras: their
agreement. The *reprojection error* is the distance of the fitted body from the detected points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

Verdict = Literal["good", "usable", "look at it"]


@dataclass(frozen=True)
class VerdictLimits:
    """Limits of the verdicts on an error."""

    name: str
    meaning: str
    good_mm: float
    usable_mm: float

    def verdict(self, mm: float | None) -> Verdict | None:
        """Verdict on an error; None for None or NaN."""
        if mm is None or math.isnan(mm):
            return None
        return "good" if mm <= self.good_mm else "usable" if mm <= self.usable_mm else "look at it"

    @property
    def sentence(self) -> str:
        """Meaning and limits, for the report."""
        return (
            f"{self.name}: {self.meaning}; px in the picture, mm at the person. Good up to "
            f"{self.good_mm:g} mm, usable up to {self.usable_mm:g} mm; beyond, look at it."
        )


TRIANGULATION: Final = VerdictLimits(
    "Triangulation residual",
    "how well the cameras agree on the detected points",
    # The offset of a body from which a camera may be misplaced: less is within what detectors do.
    good_mm=15,
    # Twice that. The worst of four cameras of the real recording that docs/results.md names has 20.
    usable_mm=30,
)
REPROJECTION: Final = VerdictLimits(
    "Reprojection error",
    "how far the fitted body is from the detected points",
    # A detector's own errors: 19 in a synthetic recording with noise of 3 px, 23 in the worst camera of
    # that real one.
    good_mm=30,
    # Half the width of a knee: beyond, joints lie outside the limbs in the pictures.
    usable_mm=60,
)
