"""What the numbers in keypoint files mean: order of the points, scale of coordinates and confidences.

The number of points does not tell the order (BODY_25 and BODY_25B both have 25). Bodies do: limbs keep their
length over time, left ones are as long as right ones, and thighs are longer than upper arms. Without a
calibration there are only pictures, but in these, too, what belongs together lies together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.geometry.association import MatchConfig, Proposals, pick_people, propose
from models.geometry.triangulation import triangulate
from pipeline.calibration import in_metres
from pipeline.cameras import Array, Rig
from pipeline.errors import InputError
from pipeline.joints import BODY_25, FORMATS, MIDPOINTS
from pipeline.keypoints import MIN_CONFIDENCE, Floats

MARGIN: Final = 2.0
"""A format must fit this many times better than the next ..."""
NO_BODY: Final = 0.4
"""... and no worse than this. Figures of 150 px with 3 px of noise measure 0.26, a wrong order mostly 0.6."""
MISFIT: Final = 0.25
"""The only format with so many points must do better; else it is worth a word. Usual are 0.05 to 0.1."""

TOP_CONFIDENCE: Final = 0.75
"""What the high percentile of a camera's confidences is scaled to: OpenPose's is 0.7 on real video, that of
synthetic detections, for which the fit's weights were chosen too, 0.95."""
_TOP_PERCENT: Final = 95.0
USUAL_TOP: Final = (0.4, 1.001)
"""A camera's high percentile outside this is worth a word."""

PICTURE_MARGIN: Final = 1.5
"""The same without a calibration: 1.9 to 2.7 is usual there."""

_LIMBS: Final = (("Shoulder", "Elbow"), ("Elbow", "Wrist"), ("Hip", "Knee"), ("Knee", "Ankle"))
_NEIGHBOURS: Final = (
    *((s + a, s + b) for s in "LR" for a, b in _LIMBS),
    *((s + a, s + b) for s in "LR" for a, b in (("Shoulder", "Hip"), ("Ankle", "Heel"), ("Heel", "BigToe"))),
    *((s + a, s + b) for s in "LR" for a, b in (("BigToe", "SmallToe"), ("Eye", "Ear"))),
    *((f"L{a}", f"R{a}") for a in ("Shoulder", "Hip", "Eye")),
)
"""Points that lie near to each other on everybody."""
_RATIOS: Final = ((1, 0, 0.87), (3, 2, 1.0), (2, 0, 1.45))
"""Two of ``_LIMBS`` and how many times longer an adult's first is than the second."""
_HUMAN_M: Final = (0.5, 2.5)
"""Upper arm + forearm + thigh + shin, from a toddler's to a giant's; an adult has about 1.3 m."""
AGREES: Final = 0.6
"""A camera that is right agrees with others in this share of the frames in which it and another show
somebody. One that agrees less often may be exchanged, late or badly placed: it is looked into, not named."""


@dataclass(frozen=True)
class KeypointFormat:
    """What the numbers in the keypoint files mean, and how that is known."""

    name: str
    """A name in ``joints.FORMATS``."""
    how: str
    """How it was decided, for people."""
    misfit: float | None = None
    """``limb_misfit`` under this format; None where it could not be measured."""
    margin: float | None = None
    """How many times worse the best other format with as many points fits; None where there is none."""
    confidence_scale: tuple[float, ...] = ()
    """(V,) divisor of each camera's confidences, which brings all cameras to one scale; empty for none."""
    normalised: bool = False
    """Coordinates are fractions of the picture, as OpenPose's ``--keypoint_scale 3`` writes them."""

    @property
    def points(self) -> int:
        return len(FORMATS[self.name])


def formats_with(points: int) -> list[str]:
    """The known formats with this number of points."""
    return [name for name, names in FORMATS.items() if len(names) == points]


def to_pixels(
    people: Floats,
    known: KeypointFormat,
    size: NDArray[np.int64],
    min_confidence: float = MIN_CONFIDENCE,
) -> Floats:
    """Points as in the files (V, T, P, K, 3) → pixels, and confidences on a scale from 0 to 1.

    A point below ``min_confidence`` is missing then. size: (V, 2).
    """
    out = people.copy()
    if known.confidence_scale:
        scale = np.array(known.confidence_scale, dtype=np.float32)
        out[..., 2] = np.clip(people[..., 2] / scale[:, None, None, None], 0, 1)
    out[out[..., 2] < min_confidence] = np.nan, np.nan, 0
    if known.normalised:
        # OpenPose divides by the size less 1: its (1, 1) is the centre of the last pixel.
        out[..., :2] *= (size[:, None, None, None] - 1).astype(np.float32)
    return out


def to_body_25(people: Floats, format_name: str) -> Floats:
    """Points (..., K, 3) of a format in ``FORMATS`` as BODY_25 (..., 25, 3).

    A point that the format lacks is the mean of its ``MIDPOINTS`` with the lower confidence of the two.
    """
    names = FORMATS[format_name]
    if people.shape[-2] != len(names):
        raise ValueError(f"{format_name} has {len(names)} points, got {people.shape[-2]}")
    out = np.full((*people.shape[:-2], len(BODY_25), 3), np.nan, dtype=people.dtype)
    out[..., 2] = 0
    for to, name in enumerate(BODY_25):
        if name in names:
            out[..., to, :] = people[..., names.index(name), :]
        elif name in MIDPOINTS:
            a, b = (people[..., names.index(end), :] for end in MIDPOINTS[name])
            both = np.minimum(a[..., 2], b[..., 2])
            middle = (a[..., :2] + b[..., :2]) / 2
            out[..., to, :2] = np.where(both[..., None] > 0, middle, np.nan)
            out[..., to, 2] = both
    return out


def picture_misfit(image: Floats, format_name: str) -> float:
    """How far apart lies what belongs together when points (..., K, 3) are read in one format.

    The mean distance of neighbouring points over the median distance of a figure's points from their middle;
    the median over the figures with six in ten points. NaN where there are no such figures.
    """
    names = FORMATS[format_name]
    figures = image.reshape(-1, len(names), 3)
    seen = figures[..., 2] > 0
    figures = figures[seen.sum(1) >= 0.6 * len(names)]
    if not len(figures):
        return math.nan
    xy = np.where(figures[..., 2:] > 0, figures[..., :2], np.nan).astype(np.float64)
    size = np.nanmedian(np.linalg.norm(xy - np.nanmedian(xy, 1, keepdims=True), axis=-1), axis=1)
    pairs = [(names.index(a), names.index(b)) for a, b in _NEIGHBOURS if a in names and b in names]
    a, b = np.array(pairs).T
    apart = np.linalg.norm(xy[:, a] - xy[:, b], axis=-1)
    known = np.isfinite(apart)
    mean = np.where(known, apart, 0).sum(1) / np.maximum(known.sum(1), 1)
    return float(np.median((mean / np.maximum(size, 1e-9))[known.any(1)])) if known.any() else math.nan


def decide_format_in_pictures(
    image: Floats, known: KeypointFormat, stated: str | None
) -> tuple[KeypointFormat, list[str]]:
    """``decide_format`` without a calibration, from points as in the files (V, T, P, K, 3) in pixels.

    Raises ``InputError`` when it is not stated and no candidate fits clearly better than the next.
    """
    costs = {name: picture_misfit(image, name) for name in formats_with(image.shape[-2])}
    order = sorted(costs, key=lambda n: (math.isnan(costs[n]), costs[n]))
    best, shown = order[0], ", ".join(f"{n} {costs[n]:.2f}" for n in order)
    others = [costs[n] for n in order if n != (stated or best)]
    margin = others[0] / max(costs[stated or best], 1e-6) if others else math.nan
    decided = replace(known, name=stated or best, margin=None if math.isnan(margin) else margin)
    if stated:
        doubts = []
        if margin < 1 / PICTURE_MARGIN:
            doubts.append(
                f"recording.yaml states the keypoint format {stated}, but read as {best} neighbouring points "
                f"lie {1 / margin:.1f} times closer together ({shown})"
            )
        return replace(decided, how="stated in recording.yaml"), doubts
    if not others:
        return replace(decided, how=f"the only known format with {image.shape[-2]} points"), []
    if not margin >= PICTURE_MARGIN:
        raise InputError(
            f"{image.shape[-2]} keypoints can be {' or '.join(order)}, and the pictures do not tell "
            f"({shown}); state it in recording.yaml, keypoints: {{format: ...}}"
        )
    how = f"found: neighbouring points lie {margin:.1f} times closer together than as {order[1]}"
    return replace(decided, how=how), []


def find_scales(people: Floats, known: KeypointFormat) -> KeypointFormat:
    """Find the scale of coordinates and of each camera's confidences in points as in the files.

    people: (V, T, P, K, 3). A percentile of a camera's confidences comes to ``TOP_CONFIDENCE``: detectors
    differ in their scale, and a few outliers must not set it.

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
    """(V,) share of the seen points (V, T, P, K, 3) that lie outside the picture by over a tenth of it."""
    seen = image[..., 2] > 0
    edge = size[:, None, None, None].astype(np.float64)
    with np.errstate(invalid="ignore"):
        out = ((image[..., :2] < -0.1 * edge) | (image[..., :2] > 1.1 * edge)).any(-1) & seen
    return np.asarray(out.sum((1, 2, 3)) / np.maximum(seen.sum((1, 2, 3)), 1))


def _undistorted(rig: Rig, image: Floats) -> Array:
    return np.stack([rig.undistort(v, image[v, ..., :2].astype(np.float64)) for v in range(len(rig))])


def find_bodies(rig: Rig, image: Floats) -> Proposals:
    """On whom the views agree, with the default settings of the matching: they are not known before a run.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    return propose(rig, _undistorted(rig, image), image[..., 2].astype(np.float64), MatchConfig())


def shows_together(image: Floats) -> NDArray[np.bool_]:
    """(V, T) a camera shows somebody, and another camera does: they can agree or not.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    shows = (image[..., 2] > 0).any((2, 3))
    return np.asarray(shows & (shows.sum(0) > 1))


def find_exchanged(rig: Rig, image: Floats) -> tuple[int, int] | None:
    """The pair of cameras that agree with the others on one another's keypoints, and not on their own.

    image: (V, T, P, K, 3) pixels of the video frames and confidence; some 40 frames are enough.
    """

    def agreeing(image: Floats) -> Array:
        """(V,) share of the frames in which a camera and another show somebody: that on whom most agree."""
        shows = shows_together(image).sum(1)
        return np.asarray((find_bodies(rig, image).person[:, 0] >= 0).sum(0) / np.maximum(shows, 1))

    now, shows = agreeing(image), np.asarray(shows_together(image).any(1))
    best, found = float(now.sum()) + AGREES, None
    for a, b in combinations(range(len(rig)), 2):
        if min(now[a], now[b]) < AGREES and shows[a] and shows[b]:
            order = np.arange(len(rig))
            order[[a, b]] = b, a
            then = agreeing(image[order])
            if min(then[a], then[b]) >= AGREES and then.sum() > best:
                best, found = float(then.sum()), (a, b)
    return found


def best_bodies(rig: Rig, image: Floats) -> Array:
    """3D points (N, K, 3) of the best-agreed person of each frame that has one, in the files' order.

    image: (V, T, P, K, 3) pixels of the video frames and confidence.
    """
    xy, proposals = _undistorted(rig, image), find_bodies(rig, image)
    there = proposals.score[:, 0] > 0
    chosen = proposals.person[there, 0].T
    xy_picked = pick_people(xy[:, there], chosen, np.nan)
    return triangulate(rig, xy_picked, pick_people(image[..., 2][:, there], chosen, 0)).points


def find_unit(rig: Rig, image: Floats, units: Mapping[str, float]) -> tuple[str | None, Array]:
    """The first of these units (name → metres) in which the views agree on a person of human size.

    rig: with ``t`` as in the file. Returns the unit, None if there is none, and the bodies in metres.
    """
    names = formats_with(image.shape[-2])
    for unit, metres in units.items():
        bodies = best_bodies(in_metres(rig, metres), image)
        if _HUMAN_M[0] < body_size(bodies, names) < _HUMAN_M[1]:
            return unit, bodies
    return None, np.empty((0, image.shape[-2], 3))


def limb_misfit(bodies: Array, format_name: str) -> float:
    """How badly 3D points (T, K, 3) fit a body when read in one format: 0 is a rigid, even, usual skeleton.

    The sum of two means. Over upper arms, forearms, thighs and shins: the robust spread of the length over
    the frames, and the difference between left and right, each relative to the length and cut off at 1. Over
    forearm to upper arm, shin to thigh and thigh to upper arm: how far the ratio is from an adult's, as a
    logarithm, cut off at 1. A limb seen in fewer than 3 frames is left out; NaN when fewer than three terms
    of the first kind remain.
    """
    names = FORMATS[format_name]
    uneven: list[float] = []
    usual: list[float] = []
    for limb in _LIMBS:
        medians = []
        for side in "LR":
            length = _lengths(bodies, names, side, limb)
            if len(length) < 3:
                continue
            median = max(float(np.median(length)), 1e-9)
            medians.append(median)
            uneven.append(min(1.4826 * float(np.median(np.abs(length - median))) / median, 1.0))
        if len(medians) == 2:
            uneven.append(min(abs(medians[0] - medians[1]) / min(medians), 1.0))
        usual.append(float(np.mean(medians)) if medians else math.nan)
    if len(uneven) < 3:
        return math.nan
    unusual = [abs(math.log(usual[a] / usual[b] / ratio)) for a, b, ratio in _RATIOS]
    unusual = [min(u, 1.0) for u in unusual if not math.isnan(u)]
    return float(np.mean(uneven)) + (float(np.mean(unusual)) if unusual else 0.0)


def body_size(bodies: Array, formats: Sequence[str]) -> float:
    """Upper arm + forearm + thigh + shin of points (T, K, 3) in the format that fits best; NaN if unseen."""
    costs = {name: limb_misfit(bodies, name) for name in formats}
    costs = {name: cost for name, cost in costs.items() if not math.isnan(cost)}
    if not costs:
        return math.nan
    names = FORMATS[min(costs, key=lambda name: costs[name])]
    total = 0.0
    for limb in _LIMBS:
        both = np.concatenate([_lengths(bodies, names, side, limb) for side in "LR"])
        total += float(np.median(both)) if len(both) else math.nan
    return total


def _lengths(bodies: Array, names: tuple[str, ...], side: str, limb: tuple[str, str]) -> Array:
    a, b = (names.index(side + end) for end in limb)
    length = np.linalg.norm(bodies[:, a] - bodies[:, b], axis=-1)
    return np.asarray(length[np.isfinite(length)])


def decide_format(
    bodies: Array, known: KeypointFormat, stated: str | None
) -> tuple[KeypointFormat, list[str]]:
    """Name the format of bodies (T, K, 3) in the files' order, and say what is doubtful.

    Raises ``InputError`` when it is not stated and no candidate fits well and clearly better than the next.
    """
    points = bodies.shape[1]
    costs = {name: limb_misfit(bodies, name) for name in formats_with(points)}
    order = sorted(costs, key=lambda n: (math.isnan(costs[n]), costs[n]))
    best = order[0]
    shown = ", ".join(f"{n} {100 * costs[n]:.0f} %" for n in order)

    def margin_of(name: str) -> float:
        others = [costs[n] for n in order if n != name]
        return others[0] / max(costs[name], 1e-6) if others else math.nan

    def decided(name: str, how: str) -> KeypointFormat:
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
        if best != stated and margin_of(best) > MARGIN:
            doubts.append(
                f"recording.yaml states the keypoint format {stated}, but read as {best} limbs fit "
                f"{margin_of(best):.1f} times better ({shown})"
            )
        return decided(stated, "stated in recording.yaml"), doubts
    ask = "state it in recording.yaml, keypoints: {format: ...}"
    if math.isnan(costs[best]):
        if len(order) == 1:
            how = f"the only known format with {points} points, unchecked"
            doubt = f"keypoint format {best} is unchecked: too few frames show limbs in two views"
            return decided(best, how), [doubt]
        raise InputError(
            f"{points} keypoints can be {' or '.join(order)}, and too few frames show a person's limbs in "
            f"two agreeing views to tell; {ask}"
        )
    if costs[best] > (NO_BODY if len(order) > 1 else MISFIT) or margin_of(best) < MARGIN:
        raise InputError(
            "the keypoint format cannot be told: limbs are those of no body, or alike under each candidate "
            f"(off by {shown}); {ask}"
        )
    how = f"found: limbs fit a body to {100 * costs[best]:.0f} %"
    if len(order) > 1:
        how += f", {margin_of(best):.1f} times better than as {order[1]}"
    doubts = []
    if costs[best] > MISFIT:
        doubts.append(
            f"limb lengths are {100 * costs[best]:.0f} % off a body's: small or noisy figures, or a "
            "calibration that is off"
        )
    return decided(best, how), doubts
