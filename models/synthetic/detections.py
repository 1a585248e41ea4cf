"""Detections of several people in one picture, with whose each is.

People who stand before each other, detections whose left and right are exchanged, bodies found in two parts,
and phantoms where nobody is, come on top of the errors of single keypoints (``detector.detect``). All of it
depends on the seed and the number of the frame alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.synthetic.detector import Noise, detect
from models.synthetic.occlusion import hidden_by
from pipeline.cameras import Array, Rig
from pipeline.skeleton import BODY_25


@dataclass(frozen=True)
class Faults:
    """Errors of a detector about people, not about single keypoints."""

    exchanged: float = 0.0
    """Share of the detections whose left and right are exchanged."""
    split: float = 0.0
    """Share of the detections that come in two parts, the body above the hips and that below."""
    phantoms: float = 0.0
    """Detections of nobody in each picture, on average."""
    static_phantoms: int = 0
    """Things taken for a person all the time, each in one view."""


@dataclass(frozen=True)
class Hidden:
    """Shares of hidden keypoints and people by what becomes of them."""

    missing: float = 0.5
    """Of hidden keypoints, not found."""
    elsewhere: float = 0.25
    """Of hidden keypoints, found on the person before; all others are ``blur`` times noisier."""
    blur: float = 4.0
    confidence: float = 0.6
    """Factor of the confidence of those."""
    most: float = 0.6
    """Of a person's keypoints: who is hidden by more is not found at all in ``overlooked`` of the frames."""
    overlooked: float = 0.6


HIDDEN: Final = Hidden()
_ELSEWHERE_PX: Final = 2.0
_UPPER: Final = np.array([not n.endswith(("Hip", "Knee", "Ankle", "Toe", "Heel")) for n in BODY_25.names])
_PHANTOM_MISSING: Final = 0.4
_PHANTOM_CONFIDENCE: Final = (0.1, 0.7)
_STATIC_PX: Final = 1.0


@dataclass(frozen=True)
class LabelledDetections:
    """Detections of some frames, in no order. Axes: V views, T frames, D detections, K points."""

    points: Array
    """(V, T, D, K, 3) x, y in pixels of the video frame, and confidence; NaN, NaN, 0 where missing."""
    person: NDArray[np.int64]
    """(V, T, D) whom the detection shows; −1 for a phantom, and where there is no detection."""


@dataclass(frozen=True)
class CrowdDetector:
    """A detector of people before the cameras of a rig."""

    rig: Rig
    noise: Noise
    faults: Faults
    bodies: Array
    """(N, K, 3) metres, world: bodies that phantoms look like, and between which they are."""

    def find(self, world: Array, start: int) -> LabelledDetections:
        """Detections of people ``world`` (T, P, K, 3), metres, NaN who is not there.

        The points are those of BODY_25, and others after them. start: number of the first frame.
        """
        frames, people = world.shape[:2]
        found = detect(self.rig.project(world, distorted=True), self.rig.size, start, self.noise)
        if people > 1:
            hider = hidden_by(self.rig, world)
            for t in range(frames):
                self._hide(found[:, t], hider[:, t], start + t)
        pictures = [self._picture(found[:, t], start + t) for t in range(frames)]
        most = max(p.shape[1] for p, _ in pictures)
        views, points = len(self.rig), found.shape[3]
        out = np.full((views, frames, most, points, 3), [np.nan, np.nan, 0.0])
        person = np.full((views, frames, most), -1, dtype=np.int64)
        for t, (seen, who) in enumerate(pictures):
            for v in range(views):
                order = np.random.default_rng([self.noise.seed, 6, start + t, v]).permutation(len(seen[v]))
                out[v, t, : len(order)], person[v, t, : len(order)] = seen[v, order], who[v, order]
        person[~(out[..., 2] > 0).any(-1)] = -1
        return LabelledDetections(out, person)

    def _hide(self, found: Array, hider: NDArray[np.int64], frame: int) -> None:
        """Change what is found (V, P, K, 3) of keypoints that others hide, in place."""
        rng = np.random.default_rng([self.noise.seed, 8, frame])
        hidden, draw = hider >= 0, rng.random(hider.shape)
        near = _ELSEWHERE_PX * rng.normal(size=(*hider.shape, 2))
        believed = rng.uniform(0.2, 0.7, hider.shape)
        blur = self.noise.sigma_px * np.sqrt(HIDDEN.blur**2 - 1) * rng.normal(size=(*hider.shape, 2))
        overlooked = (hidden.mean(-1) > HIDDEN.most) & (rng.random(hider.shape[:2]) < HIDDEN.overlooked)

        v, p, k = np.nonzero(hidden & (draw >= HIDDEN.missing) & (draw < HIDDEN.missing + HIDDEN.elsewhere))
        other = found[v, hider[v, p, k], k]
        there = other[:, 2] > 0
        other[there] = np.concatenate([other[:, :2] + near[v, p, k], believed[v, p, k][:, None]], -1)[there]
        blurred = hidden & (draw >= HIDDEN.missing + HIDDEN.elsewhere) & (found[..., 2] > 0)
        found[blurred, :2] += blur[blurred]
        found[blurred, 2] *= HIDDEN.confidence
        found[v, p, k] = other
        found[(hidden & (draw < HIDDEN.missing)) | overlooked[..., None]] = np.nan, np.nan, 0.0
        found[~_inside(found[..., :2], self.rig.size[:, None, None])] = np.nan, np.nan, 0.0

    def _picture(self, found: Array, frame: int) -> tuple[Array, NDArray[np.int64]]:
        """Detections (V, D, K, 3) of one frame and whose they are (V, D), from people (V, P, K, 3)."""
        views, people, points, _ = found.shape
        who = np.tile(np.arange(people), (views, 1))
        parts, owners = [found], [who]
        if self.faults.exchanged or self.faults.split:
            rng = np.random.default_rng([self.noise.seed, 9, frame])
            exchanged, split = rng.random((2, views, people))
            flips = [*BODY_25.flips, *range(len(BODY_25), points)]
            mirror = (exchanged < self.faults.exchanged)[..., None, None]
            found = np.where(mirror, found[:, :, flips], found)
            upper = np.concatenate([_UPPER, np.ones(points - len(_UPPER), bool)])
            in_two = (split < self.faults.split)[..., None]
            nothing = np.array([np.nan, np.nan, 0.0])
            parts = [np.where((in_two & ~upper)[..., None], nothing, found)]
            if in_two.any():
                parts.append(np.where((in_two & ~upper)[..., None], found, nothing))
                owners.append(who)
        phantoms = self._phantoms(frame, points)
        parts.append(phantoms)
        owners.append(np.full(phantoms.shape[:2], -1))
        return np.concatenate(parts, 1), np.concatenate(owners, 1)

    def _phantoms(self, frame: int, points: int) -> Array:
        """(V, D, K, 3) detections of nobody."""
        out = [np.full((len(self.rig), 0, points, 3), np.nan)]
        if self.faults.phantoms:
            rng = np.random.default_rng([self.noise.seed, 10, frame])
            whole, rest = divmod(self.faults.phantoms, 1)
            counts = int(whole) + (rng.random(len(self.rig)) < rest)
            for i in range(counts.max(initial=0)):
                each = np.stack([self._phantom(v, rng) for v in range(len(self.rig))])
                each[counts <= i] = np.nan, np.nan, 0.0
                out.append(each[:, None])
        for i in range(self.faults.static_phantoms):
            rng = np.random.default_rng([self.noise.seed, 13, i])
            view = int(rng.integers(len(self.rig)))
            each = np.full((len(self.rig), 1, points, 3), [np.nan, np.nan, 0.0])
            each[view, 0] = self._phantom(view, rng)
            shake = np.random.default_rng([self.noise.seed, 14, i, frame])
            each[view, 0, :, :2] += _STATIC_PX * shake.normal(size=(points, 2))
            out.append(each)
        return np.concatenate(out, 1)

    def _phantom(self, view: int, rng: np.random.Generator) -> Array:
        """(K, 3) a detection of somebody who is not there."""
        body = self.bodies[rng.integers(len(self.bodies))]
        low, high = self.bodies[..., :2].min((0, 1)), self.bodies[..., :2].max((0, 1))
        body = body - [*body[:, :2].mean(0), 0.0] + [*rng.uniform(low, high), 0.0]
        xy = self.rig.project(body, distorted=True)[view]
        confidence = rng.uniform(*_PHANTOM_CONFIDENCE, len(body))
        lost = (rng.random(len(body)) < _PHANTOM_MISSING) | ~_inside(xy, self.rig.size[view])
        return np.where(lost[:, None], [np.nan, np.nan, 0.0], np.concatenate([xy, confidence[:, None]], -1))


def _inside(xy: Array, size: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where pixels (..., 2) lie in pictures of these sizes."""
    with np.errstate(invalid="ignore"):
        return np.asarray(((xy >= -0.5) & (xy < size - 0.5)).all(-1))
