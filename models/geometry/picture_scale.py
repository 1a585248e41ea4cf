"""Evidence that keypoints were made on resized pictures: the factor with which more views agree on a body."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Final

import numpy as np

from models.geometry.agreement import find_bodies, triangulate_best_people
from models.geometry.point_order import limb_misfit, share_outside
from pipeline.array_types import Array, Floats
from pipeline.cameras import Rig
from pipeline.findings import Finding
from pipeline.formats.keypoints.points import resize
from pipeline.timeline import spread

_APPLIED: Final = 3.0
"""Evidence of a factor over that of none from which on it is applied without being stated."""
_AGREEING: Final = 0.75
"""Share of the views that agree on the person from which on nothing is looked for, usual are 0.8 to 1 ..."""
_BODY: Final = 0.15
"""... where the misfit of the bodies is below this, too. Usual are 0.05 to 0.1."""
_FACTORS: Final = np.geomspace(0.22, 6, 112)
"""Factors tried in both axes: 3 % apart, as twice the right one's views agree within that only."""
_SIMPLE: Final = (1, 2, 3, 4, 1 / 2, 1 / 3, 1 / 4, 3 / 2, 2 / 3, 4 / 3, 3 / 4, 9 / 4, 4 / 9)
"""Factors tried in each axis by itself."""
_AS_NEAR: Final = 0.97
"""Share of the highest score that a simple factor needs: a factor that is off by 1 % has 0.97 to 0.98."""
_MIN_EVIDENCE_RATIO: Final = 1.5
"""Least evidence of a factor over that of none."""
_FRAMES: Final = 16
_COARSE: Final = 3
"""Every so many-th of these frames is looked at to choose among all factors ..."""
_CANDIDATES: Final = 8
"""... which is noise to some 20 % of the evidence: so many of the best are looked at in all frames."""
_MAX_OUTSIDE: Final = 0.2
"""Share of a camera's points that may lie outside its picture."""
_MIN_POINTS: Final = 6
"""Fewest points of a figure that is compared with where the other cameras see the person."""
_MIN_FRAMES: Final = 5
"""Fewest frames with such a figure that give a single camera's factor."""
_RATIO_TOLERANCE: Final = 0.1
"""Largest relative difference of the ratio of sizes from that of places, and least of a factor from 1."""
_SIDES: Final = (192, 224, 256, 288, 320, 368, 384, 416, 480, 512, 608, 640, 656, 736, 800, 960, 1024, 1280)
"""Sides of square pictures that networks take, pixels."""


@dataclass(frozen=True)
class PictureScale:
    """Factor from the pixels of the keypoints to those of the pictures."""

    factor: tuple[float, float]
    """x and y."""
    gain: float
    """Its evidence over that of 1."""

    @property
    def stated(self) -> str:
        """Value for recording.yaml."""
        x, y = (f"{n:.4g}" for n in self.factor)
        return x if x == y else f"[{x}, {y}]"

    @property
    def applied(self) -> bool:
        """The evidence is enough for it to be applied without being stated."""
        return self.gain >= _APPLIED

    @property
    def finding(self) -> Finding:
        better = f"agree {self.gain:.1f} times better on a body"
        if math.isinf(self.gain):
            better = "agree on a body, and else on none"
        sentence = (
            f"the keypoints seem to be made on pictures of another size than the videos': times "
            f"{self.stated} the cameras {better}. "
            f"{'That is applied' if self.applied else 'They are taken as they are'}; recording.yaml can "
            f"state it, keypoints: {{scale: {self.stated}}}{', or that it is 1' if self.applied else ''}"
        )
        return Finding("keypoints_resized", sentence)

    def finding_of(self, camera: str, every: Mapping[str, PictureScale]) -> Finding:
        """Finding about the keypoints of this camera, among the factors of all that have one."""
        stated = ", ".join(f"{name}: {scale.stated}" for name, scale in every.items())
        sentence = (
            f"the keypoints of camera {camera} seem to be made on pictures of another size than its video's: "
            f"times {self.stated} they lie {self.gain:.0f} times nearer to where the other cameras see the "
            f"person. That is applied; recording.yaml can state it, keypoints: {{scale: {{{stated}}}}}, or "
            "that it is 1"
        )
        return Finding("keypoints_resized", sentence, camera)


def find_picture_scale(rig: Rig, image: Floats, orders: Sequence[str]) -> PictureScale | None:
    """Factor with ``_MIN_EVIDENCE_RATIO`` times the evidence of none; None where there is no such factor.

    rig: in metres. image: (V, T, P, K, 3) pixels and confidence. orders: that the points may be in. The
    evidence is the mean score of the best matches over the misfit of their bodies.
    """
    image = image[:, spread(np.flatnonzero((image[..., 2] > 0).any((2, 3)).sum(0) > 1), _FRAMES)]
    if not image.size or agree_on_body(rig, image, orders):
        return None
    without = evidence(rig, image, orders)
    sizes = [*{(int(w), int(h)) for w, h in rig.size}]
    sides = [(w / n, h / n) for w, h in sizes[:1] for n in _SIDES if len(sizes) == 1]
    uneven = [*((x, y) for x in _SIMPLE for y in _SIMPLE if x != y), *sides]
    for tried in ([(f, f) for f in _FACTORS], uneven):
        coarse = _evidences(rig, image[:, ::_COARSE], orders, tried)
        if not coarse:
            continue
        best = sorted(coarse, key=lambda f: -coarse[f])[:_CANDIDATES]
        likely = _evidences(rig, image, orders, best) or coarse
        x, y = max(likely, key=lambda f: likely[f])
        close = [(x * s, y * s) for s in np.linspace(0.97, 1.03, 25)]
        # As near as keypoints tell, simple numbers come first, then those that lead to usual sides, of a
        # square before those of a rectangle.
        across, down = zip(*sides, strict=True) if sides else ((), ())
        either = (*_SIMPLE, *across, *down)
        kinds = (product(_SIMPLE, _SIMPLE), sides, product(across, down), product(either, either))
        named = [
            [
                (a, b)
                for a, b in kind
                if abs(a / x - 1) < 0.03 and abs(b / y - 1) < 0.03 and (a == b or x != y)
            ]
            for kind in kinds
        ]
        scores = {f: _score(rig, resize(image, f)) for f in {*chain(*named), *close}}
        least = _AS_NEAR * max(scores.values())
        best_named = (max(kind, key=lambda f: scores[f]) for kind in named if kind)
        factor = next((f for f in best_named if scores[f] >= least), max(scores, key=lambda f: scores[f]))
        resized = resize(image, factor)
        if not agree_on_body(rig, resized, orders):
            continue
        gain = evidence(rig, resized, orders) / without if without > 0 else math.inf
        if gain >= _MIN_EVIDENCE_RATIO:
            return PictureScale(factor, gain)
    return None


def find_camera_scales(rig: Rig, image: Floats) -> dict[int, PictureScale]:
    """Find the factors of single cameras of three or more, by index: times its factor, a camera's keypoints
    lie ``_APPLIED`` times nearer to where the others see the person.

    rig: in metres. image: (V, T, P, K, 3) pixels and confidence. A camera that is turned sees the person
    elsewhere, but not larger or smaller: the ratio of places must be that of the figures' sizes.
    """
    found: dict[int, PictureScale] = {}
    xy = np.where(image[..., 2:] > 0, image[..., :2], np.nan).astype(np.float64) + 0.5
    for view in range(len(rig)) if len(rig) > 2 else ():
        others = image.copy()
        others[view, ..., :2], others[view, ..., 2] = np.nan, 0
        agreed = find_bodies(rig, others).score[:, 0] > 0
        expected = rig.project(triangulate_best_people(rig, others), distorted=True)[view][:, None] + 0.5
        own = xy[view, agreed]
        common = np.isfinite(own + expected).all(-1, keepdims=True)  # (N, P, K, 1)
        enough = common.sum((2, 3)) >= _MIN_POINTS
        frames, person = np.nonzero(enough & (enough.sum(1, keepdims=True) == 1))
        if len(frames) < _MIN_FRAMES:
            continue
        # Of the points that both have: a camera may show the upper body alone.
        own, expected = (np.where(common, x, np.nan)[frames, person] for x in (own, expected))
        with np.errstate(divide="ignore"):
            x, y = np.nanmedian(expected / own, (0, 1))
        sizes = _sizes(expected) / np.maximum(_sizes(own), 1e-9)
        resized = np.allclose(sizes, (x, y), rtol=_RATIO_TOLERANCE)
        if not resized or np.allclose((x, y), 1, rtol=_RATIO_TOLERANCE):
            continue
        near = [(a, b) for a, b in product(_SIMPLE, _SIMPLE) if abs(a / x - 1) < 0.03 > abs(b / y - 1)]
        by = min(near, key=lambda f: (f[0] != f[1], abs(f[0] / x - 1)), default=(float(x), float(y)))
        before, after = (np.nanmedian(np.linalg.norm(own * f - expected, axis=-1)) for f in (1, by))
        scale = PictureScale(by, float(before / max(after, 1e-9)))
        if scale.applied:
            found[view] = scale
    return found


def _sizes(points: Array) -> Array:
    """(2,) median width and height of figures (N, K, 2), from the middle of their points."""
    off = np.abs(points - np.nanmedian(points, 1, keepdims=True))
    return np.asarray(np.nanmedian(np.nanmean(off, 1), 0))


def _evidences(
    rig: Rig, image: Floats, orders: Sequence[str], factors: Iterable[tuple[float, float]]
) -> dict[tuple[float, float], float]:
    """Evidence of those factors that leave the points in the pictures and make the views agree."""
    found = {}
    for factor in factors:
        resized = resize(image, factor)
        if share_outside(resized, rig.size).max() <= _MAX_OUTSIDE:
            found[factor] = evidence(rig, resized, orders)
    return {factor: evidence for factor, evidence in found.items() if evidence > 0}


def agree_on_body(rig: Rig, image: Floats, orders: Sequence[str]) -> bool:
    """True where as many views as usual agree on the person, and on a body of usual proportions."""
    return _share(rig, image) >= _AGREEING and _misfit(rig, image, orders) < _BODY


def evidence(rig: Rig, image: Floats, orders: Sequence[str]) -> float:
    """Median score of the best match over the misfit of its bodies; 0 where the views agree on nobody."""
    misfit = _misfit(rig, image, orders)
    return 0.0 if math.isnan(misfit) else _score(rig, image) / max(misfit, 0.02)


def _score(rig: Rig, image: Floats) -> float:
    return float(find_bodies(rig, image).score[:, 0].mean())


def _misfit(rig: Rig, image: Floats, orders: Sequence[str]) -> float:
    bodies = triangulate_best_people(rig, image)
    costs = [limb_misfit(bodies, name) for name in orders] if len(bodies) else []
    return min((c for c in costs if not math.isnan(c)), default=math.nan)


def _share(rig: Rig, image: Floats) -> float:
    """Share of the views that show somebody which agree on the person."""
    shows = (image[..., 2] > 0).any((2, 3)).sum()
    return float((find_bodies(rig, image).person[:, 0] >= 0).sum() / max(shows, 1))
