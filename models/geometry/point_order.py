"""Order of the points in keypoint files, and scale of their coordinates and confidences.

Several orders have as many points (BODY_25 and BODY_25B). Triangulated bodies decide: limbs have a constant
length, the same left and right, and thighs are longer than upper arms. Without a calibration the distances of
neighbouring points in the pictures decide.
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
"""Usual range of that percentile; outside of it a finding says so."""
MISFIT: Final = 0.25
"""Largest misfit of the only order with so many points that needs no finding. Usual are 0.05 to 0.1."""

PICTURE_MARGIN: Final = 1.4
"""``MIN_MISFIT_RATIO`` without a calibration: 1.9 to 2.7 is usual for 25 points, 1.5 for 15."""

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


def _ranked(points: F, misfit: Callable[[F, str], float]) -> tuple[dict[str, float], list[str]]:
    """Misfit of points (..., K, C) in each order of K points, and these orders, best first."""
    costs = {name: misfit(points, name) for name in orders_with(points.shape[-2])}
    return costs, sorted(costs, key=lambda n: (math.isnan(costs[n]), costs[n]))


def decide_order_in_pictures(
    image: Floats, known: PointOrder, stated: str | None
) -> tuple[PointOrder, list[Finding]]:
    """Decide the order of points (V, T, P, K, 3), pixels, without a calibration.

    Raises ``InputError`` where it is not stated and no candidate fits clearly better than the next.
    """
    costs, ranked = _ranked(image, picture_misfit)
    best, shown = ranked[0], ", ".join(f"{n} {costs[n]:.2f}" for n in ranked)
    others = [costs[n] for n in ranked if n != (stated or best)]
    margin = others[0] / max(costs[stated or best], 1e-6) if others else math.nan
    decided = replace(known, name=stated or best, margin=None if math.isnan(margin) else margin)
    if stated:
        doubts: list[Finding] = []
        if margin < 1 / PICTURE_MARGIN:
            sentence = (
                f"recording.yaml states the keypoint format {stated}, but read as {best} neighbouring points "
                f"lie {1 / margin:.1f} times closer together ({shown})"
            )
            doubts.append(Finding("format_doubtful", sentence))
        return replace(decided, how="stated in recording.yaml"), doubts
    if not others:
        return replace(decided, how=f"the only known format with {image.shape[-2]} points"), []
    if not margin >= PICTURE_MARGIN:
        raise InputError(
            f"{image.shape[-2]} keypoints can be {' or '.join(ranked)}, and the pictures do not tell "
            f"({shown}); state it in recording.yaml, keypoints: {{format: ...}}"
        )
    how = f"found: neighbouring points lie {margin:.1f} times closer together than as {ranked[1]}"
    return replace(decided, how=how), []


def find_scales(people: Floats, known: PointOrder) -> PointOrder:
    """Find the scale of the coordinates and of each camera's confidences.

    people: (V, T, P, K, 3) as in the files. A high percentile of a camera's confidences, robust against
    outliers, becomes ``TOP_CONFIDENCE``.

    Raises:
        InputError: coordinates lie between −1 and 1.
    """
    seen = people[..., 2] > 0
    if not seen.any():
        return known
    xy = people[..., :2][seen]
    tops = [
        np.percentile(c[c > 0], _TOP_PERCENT) if (c > 0).any() else TOP_CONFIDENCE for c in people[..., 2]
    ]
    normalised = bool(np.abs(xy).max() <= 1.0)
    if normalised and xy.min() < -0.05:
        raise InputError(
            "keypoint coordinates lie between -1 and 1; write them in pixels (OpenPose --keypoint_scale 0)"
        )
    return replace(
        known, normalised=normalised, confidence_scale=tuple(float(t / TOP_CONFIDENCE) for t in tops)
    )


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
        for side in "LR":
            length = limb_lengths(bodies, names, side, limb)
            if len(length) < 3:
                continue
            median = max(float(np.median(length)), 1e-9)
            medians.append(median)
            variation.append(min(1.4826 * float(np.median(np.abs(length - median))) / median, 1.0))
        if len(medians) == 2:
            variation.append(min(abs(medians[0] - medians[1]) / min(medians), 1.0))
        mean_length.append(float(np.mean(medians)) if medians else math.nan)
    if len(variation) < 3:
        return math.nan
    proportion = [abs(math.log(mean_length[a] / mean_length[b] / ratio)) for a, b, ratio in _RATIOS]
    proportion = [min(p, 1.0) for p in proportion if not math.isnan(p)]
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
    points = bodies.shape[1]
    costs, ranked = _ranked(bodies, limb_misfit)
    best = ranked[0]
    shown = ", ".join(f"{n} {100 * costs[n]:.0f} %" for n in ranked)

    def margin_of(name: str) -> float:
        others = [costs[n] for n in ranked if n != name]
        return others[0] / max(costs[name], 1e-6) if others else math.nan

    def decided(name: str, how: str) -> PointOrder:
        cost, margin = costs[name], margin_of(name)
        return replace(
            known,
            name=name,
            how=how,
            misfit=None if math.isnan(cost) else cost,
            margin=None if math.isnan(margin) else margin,
        )

    if stated:
        doubts = []
        if best != stated and margin_of(best) > MIN_MISFIT_RATIO:
            sentence = (
                f"recording.yaml states the keypoint format {stated}, but read as {best} limbs fit "
                f"{margin_of(best):.1f} times better ({shown})"
            )
            doubts.append(Finding("format_doubtful", sentence))
        return decided(stated, "stated in recording.yaml"), doubts
    ask = "state it in recording.yaml, keypoints: {format: ...}"
    if math.isnan(costs[best]):
        if len(ranked) == 1:
            how = f"the only known format with {points} points, unchecked"
            doubt = f"keypoint format {best} is unchecked: too few frames show limbs in two views"
            return decided(best, how), [Finding("format_unchecked", doubt)]
        raise InputError(
            f"{points} keypoints can be {' or '.join(ranked)}, and too few frames show a person's limbs in "
            f"two agreeing views to tell; {ask}"
        )
    if costs[best] > (NO_BODY if len(ranked) > 1 else MISFIT) or margin_of(best) < MIN_MISFIT_RATIO:
        raise InputError(
            "the keypoint format cannot be told: limbs are those of no body, or alike under each candidate "
            f"(off by {shown}); {ask}"
        )
    how = f"found: limbs fit a body to {100 * costs[best]:.0f} %"
    if len(ranked) > 1:
        how += f", {margin_of(best):.1f} times better than as {ranked[1]}"
    doubts = []
    if costs[best] > MISFIT:
        sentence = (
            f"limb lengths are {100 * costs[best]:.0f} % off a body's: small or noisy figures, or a "
            "calibration that is off"
        )
        doubts.append(Finding("limbs_doubtful", sentence))
    return decided(best, how), doubts
