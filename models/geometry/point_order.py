"""Order of the points in keypoint files, and scale of their coordinates and confidences.

Orders with equally many points (BODY_25 and BODY_25B) are told apart by triangulated bodies: limbs have a
constant length, equal left and right, and thighs are longer than upper arms. Without a calibration they are
told apart by the distances of neighbouring points in the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.array_types import Array, Floats
from pipeline.errors import InputError
from pipeline.findings import Finding
from pipeline.formats.keypoints.points import PointOrder, orders_with
from pipeline.skeleton import BODY_25, POINT_ORDERS

F = TypeVar("F", Array, Floats)

MIN_MISFIT_RATIO: Final = 2.0
"""Least ratio of the next order's misfit to that of an accepted one."""
NO_BODY: Final = 0.4
"""Largest misfit of a body. Figures of 150 px with 3 px of noise measure 0.26, a wrong order mostly 0.6."""
TOP_CONFIDENCE: Final = 0.75
"""High percentile of a camera's confidences after scaling. OpenPose's is 0.7 on real video, that of synthetic
detections 0.95; the fit's weights were chosen for both."""
_TOP_PERCENT: Final = 95.0
USUAL_TOP: Final = (0.4, 1.001)
"""Range of that percentile before scaling that needs no finding."""
MISFIT: Final = 0.25
"""Largest misfit that needs no finding. Usual are 0.05 to 0.1."""
MIN_PICTURE_RATIO: Final = 1.4
"""``MIN_MISFIT_RATIO`` without a calibration: 1.9 to 2.7 is usual for 25 points, 1.5 for 15."""
_ASK: Final = "state it in recording.yaml, keypoints: {format: ...}"

LIMBS: Final = (("Shoulder", "Elbow"), ("Elbow", "Wrist"), ("Hip", "Knee"), ("Knee", "Ankle"))
_NEIGHBOURS: Final = (
    *((s + a, s + b) for s in "LR" for a, b in LIMBS),
    *((s + a, s + b) for s in "LR" for a, b in (("Shoulder", "Hip"), ("Ankle", "Heel"), ("Heel", "BigToe"))),
    *((s + a, s + b) for s in "LR" for a, b in (("BigToe", "SmallToe"), ("Eye", "Ear"))),
    *((f"L{a}", f"R{a}") for a in ("Shoulder", "Hip", "Eye")),
)
"""Neighbouring points of a body."""
_BODY: Final = frozenset((*BODY_25.names, "Head"))
"""Points of the body, not of hands and face."""
_RATIOS: Final = ((1, 0, 0.87), (3, 2, 1.0), (2, 0, 1.45))
"""Two of ``LIMBS``, and the ratio of their lengths in adults."""


def picture_misfit(image: Floats, order: str) -> float:
    """Misfit of picture points (..., K, 3) to an order: distance of neighbouring points over a figure's size.

    The mean distance of neighbouring points over the median distance of a figure's points from their median;
    the median over figures with six in ten of the body's points. NaN without such figures.
    """
    body = [i for i, name in enumerate(POINT_ORDERS[order]) if name in _BODY]
    names = tuple(POINT_ORDERS[order][i] for i in body)
    figures = image.reshape(-1, image.shape[-2], 3)[:, body]
    seen = figures[..., 2] > 0
    figures = figures[seen.sum(1) >= 0.6 * len(names)]
    if not len(figures):
        return math.nan
    xy = np.where(figures[..., 2:] > 0, figures[..., :2], np.nan).astype(np.float64)
    size = np.nanmedian(np.linalg.norm(xy - np.nanmedian(xy, 1, keepdims=True), axis=-1), axis=1)
    pairs = [(names.index(a), names.index(b)) for a, b in _NEIGHBOURS if a in names and b in names]
    a, b = np.array(pairs).T
    distance = np.linalg.norm(xy[:, a] - xy[:, b], axis=-1)
    valid = np.isfinite(distance)
    mean = np.where(valid, distance, 0).sum(1) / np.maximum(valid.sum(1), 1)
    return float(np.median((mean / np.maximum(size, 1e-9))[valid.any(1)])) if valid.any() else math.nan


class _Ranking:
    """Misfits of points (..., K, C) to the orders of K points, best first."""

    def __init__(self, points: F, misfit: Callable[[F, str], float]) -> None:
        costs = {name: misfit(points, name) for name in orders_with(points.shape[-2])}
        self.costs = dict(sorted(costs.items(), key=lambda item: (math.isnan(item[1]), item[1])))
        self.names = [*self.costs]
        self.best = self.names[0]

    def margin(self, name: str) -> float:
        """Misfit of the best other order over that of this one; NaN without another."""
        others = [cost for other, cost in self.costs.items() if other != name]
        return others[0] / max(self.costs[name], 1e-6) if others else math.nan

    def decide(self, known: PointOrder, name: str, how: str, misfit: float = math.nan) -> PointOrder:
        """Point order with a name, and how it was decided."""
        cost, margin = (None if math.isnan(x) else x for x in (misfit, self.margin(name)))
        return replace(known, name=name, how=how, misfit=cost, margin=margin)


def decide_order_in_pictures(
    image: Floats, known: PointOrder, stated: str | None
) -> tuple[PointOrder, list[Finding]]:
    """Decide the order of points (V, T, P, K, 3), pixels, without a calibration.

    Raises ``InputError`` where it is not stated and no candidate fits clearly better than the next.
    """
    ranking = _Ranking(image, picture_misfit)
    shown = ", ".join(f"{name} {cost:.2f}" for name, cost in ranking.costs.items())
    margin = ranking.margin(stated or ranking.best)
    if stated:
        doubts = []
        if margin < 1 / MIN_PICTURE_RATIO:
            sentence = (
                f"recording.yaml states the keypoint format {stated}, but read as {ranking.best} "
                f"neighbouring points lie {1 / margin:.1f} times closer together ({shown})"
            )
            doubts.append(Finding("format_doubtful", sentence))
        return ranking.decide(known, stated, "stated in recording.yaml"), doubts
    if len(ranking.names) == 1:
        how = f"the only known format with {image.shape[-2]} points"
    elif margin >= MIN_PICTURE_RATIO:
        how = f"found: neighbouring points lie {margin:.1f} times closer together than as {ranking.names[1]}"
    else:
        raise InputError(
            f"{image.shape[-2]} keypoints can be {' or '.join(ranking.names)}, and the pictures do not tell "
            f"({shown}); {_ASK}"
        )
    return ranking.decide(known, ranking.best, how), []


def find_scales(people: Floats, known: PointOrder) -> PointOrder:
    """Find the scale of the coordinates and of each camera's confidences.

    people: (V, T, P, K, 3) as in the files. A high percentile of a camera's confidences, robust against
    outliers, becomes ``TOP_CONFIDENCE``.

    Raises:
        InputError: coordinates lie between −1 and 1.
    """
    xy, confidence = people[people[..., 2] > 0][:, :2], people[..., 2]
    if not len(xy):
        return known
    tops = [np.percentile(c[c > 0], _TOP_PERCENT) if (c > 0).any() else TOP_CONFIDENCE for c in confidence]
    normalised = bool(np.abs(xy).max() <= 1.0)
    if normalised and xy.min() < -0.05:
        raise InputError(
            "keypoint coordinates lie between -1 and 1; write them in pixels (OpenPose --keypoint_scale 0)"
        )
    scale = tuple(float(top / TOP_CONFIDENCE) for top in tops)
    return replace(known, normalised=normalised, confidence_scale=scale)


def share_outside(image: Floats, size: NDArray[np.int64]) -> Array:
    """(V,) share of the points (V, T, P, K, 3) outside the picture by more than a tenth of its size."""
    seen = image[..., 2] > 0
    edge = size[:, None, None, None].astype(np.float64)
    with np.errstate(invalid="ignore"):
        out = ((image[..., :2] < -0.1 * edge) | (image[..., :2] > 1.1 * edge)).any(-1) & seen
    return np.asarray(out.sum((1, 2, 3)) / np.maximum(seen.sum((1, 2, 3)), 1))


def limb_misfit(bodies: Array, order: str) -> float:
    """Misfit of 3D points (T, K, 3), read in an order, to a body: 0 is rigid, symmetric and of adult
    proportions.

    The sum of two means of terms clipped at 1. Over upper arms, forearms, thighs and shins: the robust spread
    of the length over the frames, and the difference between left and right, relative to the length. Over
    forearm to upper arm, shin to thigh and thigh to upper arm: the log of the ratio relative to an adult's.
    Limbs seen in fewer than 3 frames do not count; NaN with fewer than three terms of the first kind.
    """
    names = POINT_ORDERS[order]
    variation: list[float] = []
    mean_length: list[float] = []
    for limb in LIMBS:
        medians = []
        for length in (limb_lengths(bodies, names, side, limb) for side in "LR"):
            if len(length) >= 3:
                medians.append(max(float(np.median(length)), 1e-9))
                spread = 1.4826 * float(np.median(np.abs(length - medians[-1])))
                variation.append(min(spread / medians[-1], 1.0))
        if len(medians) == 2:
            variation.append(min(abs(medians[0] - medians[1]) / min(medians), 1.0))
        mean_length.append(float(np.mean(medians)) if medians else math.nan)
    if len(variation) < 3:
        return math.nan
    logs = [abs(math.log(mean_length[a] / mean_length[b] / ratio)) for a, b, ratio in _RATIOS]
    proportion = [min(log, 1.0) for log in logs if not math.isnan(log)]
    return float(np.mean(variation)) + (float(np.mean(proportion)) if proportion else 0.0)


def limb_lengths(bodies: Array, names: tuple[str, ...], side: str, limb: tuple[str, str]) -> Array:
    """Lengths (N,) of one limb in the frames of bodies (T, K, 3) that show it."""
    a, b = (names.index(side + end) for end in limb)
    length = np.linalg.norm(bodies[:, a] - bodies[:, b], axis=-1)
    return np.asarray(length[np.isfinite(length)])


def decide_order(bodies: Array, known: PointOrder, stated: str | None) -> tuple[PointOrder, list[Finding]]:
    """Decide the order of the points of bodies (T, K, 3), with findings about its doubts.

    Raises ``InputError`` where it is not stated and no candidate fits well and clearly better than the next.
    """
    ranking = _Ranking(bodies, limb_misfit)
    best, cost, margin = ranking.best, ranking.costs[ranking.best], ranking.margin(ranking.best)
    shown = ", ".join(f"{name} {100 * misfit:.0f} %" for name, misfit in ranking.costs.items())
    doubts = []
    if stated:
        if best != stated and margin > MIN_MISFIT_RATIO:
            sentence = (
                f"recording.yaml states the keypoint format {stated}, but read as {best} limbs fit "
                f"{margin:.1f} times better ({shown})"
            )
            doubts.append(Finding("format_doubtful", sentence))
        how = "stated in recording.yaml"
        return ranking.decide(known, stated, how, ranking.costs[stated]), doubts
    alone = len(ranking.names) == 1
    if math.isnan(cost) and not alone:
        raise InputError(
            f"{bodies.shape[1]} keypoints can be {' or '.join(ranking.names)}, and too few frames show a "
            f"person's limbs in two agreeing views to tell; {_ASK}"
        )
    if cost > (MISFIT if alone else NO_BODY) or margin < MIN_MISFIT_RATIO:
        raise InputError(
            "the keypoint format cannot be told: limbs are those of no body, or alike under each candidate "
            f"(off by {shown}); {_ASK}"
        )
    if math.isnan(cost):
        how = f"the only known format with {bodies.shape[1]} points, unchecked"
        doubt = f"keypoint format {best} is unchecked: too few frames show limbs in two views"
        doubts.append(Finding("format_unchecked", doubt))
    else:
        how = f"found: limbs fit a body to {100 * cost:.0f} %"
    if not alone:
        how += f", {margin:.1f} times better than as {ranking.names[1]}"
    if cost > MISFIT:
        sentence = (
            f"limb lengths are {100 * cost:.0f} % off a body's: small or noisy figures, or a calibration "
            "that is off"
        )
        doubts.append(Finding("limbs_doubtful", sentence))
    return ranking.decide(known, best, how, cost), doubts
