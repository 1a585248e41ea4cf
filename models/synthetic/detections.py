"""Synthetic detections of several people, labelled with the person of each.

Occlusion between people, exchanged left and right, bodies detected in two parts, and phantoms (false
positives) come on top of the errors of keypoints (``simulate_detections``). All depend on the seed and the
frame number alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.synthetic.detector import Noise, simulate_detections
from models.synthetic.occlusion import find_occluders
from pipeline.array_types import Array
from pipeline.cameras import Rig
from pipeline.skeleton import BODY_25


@dataclass(frozen=True)
class Faults:
    """Errors of a detector in whole people."""

    exchanged: float = 0.0
    """Share of detections with left and right exchanged."""
    split: float = 0.0
    """Share of detections in two parts, above and below the hips."""
    phantoms: float = 0.0
    """Mean number of phantoms in a picture."""
    static_phantoms: int = 0
    """Phantoms in all frames at a fixed place, each in one view."""


@dataclass(frozen=True)
class Occlusion:
    """Effect of occlusion on detections."""

    missing: float = 0.5
    """Share of occluded keypoints that are not detected."""
    displaced: float = 0.25
    """Share of occluded keypoints that are detected at the occluder's; the rest is ``blur`` times noisier."""
    blur: float = 4.0
    confidence: float = 0.6
    """Factor of the confidence of blurred keypoints."""
    max_share: float = 0.6
    """Occluded share of a person's keypoints above which the person is missing in ``overlooked`` of the
    frames."""
    overlooked: float = 0.6


OCCLUSION: Final = Occlusion()
_DISPLACED_SIGMA_PX: Final = 2.0
_UPPER: Final = np.array([not n.endswith(("Hip", "Knee", "Ankle", "Toe", "Heel")) for n in BODY_25.names])
_PHANTOM_MISSING_SHARE: Final = 0.4
_PHANTOM_CONFIDENCE: Final = (0.1, 0.7)
_STATIC_SIGMA_PX: Final = 1.0


@dataclass(frozen=True)
class LabelledDetections:
    """Detections of V views and T frames, unordered."""

    points: Array
    """(V, T, D, K, 3) x, y in pixels of the video frame, and confidence; NaN, NaN, 0 where missing."""
    person: NDArray[np.int64]
    """(V, T, D) index of the detected person; −1 for a phantom or no detection."""


@dataclass(frozen=True)
class CrowdDetector:
    """Detector of people in the cameras of a rig."""

    rig: Rig
    noise: Noise
    faults: Faults
    bodies: Array
    """(N, K, 3) metres, world: shapes of phantoms, which are placed in the bounding box of these."""

    def find(self, world: Array, start: int) -> LabelledDetections:
        """Detect people ``world`` (T, P, K, 3), metres; NaN for an absent one.

        The first points are those of BODY_25. start: number of the first frame.
        """
        frames, people = world.shape[:2]
        keypoints = simulate_detections(
            self.rig.project(world, distorted=True), self.rig.size, start, self.noise
        )
        if people > 1:
            occluder = find_occluders(self.rig, world)
            for t in range(frames):
                self._occlude(keypoints[:, t], occluder[:, t], start + t)
        pictures = [self._picture(keypoints[:, t], start + t) for t in range(frames)]
        count = max(p.shape[1] for p, _ in pictures)
        views, points = len(self.rig), keypoints.shape[3]
        out = np.full((views, frames, count, points, 3), [np.nan, np.nan, 0.0])
        person = np.full((views, frames, count), -1, dtype=np.int64)
        for t, (detected, label) in enumerate(pictures):
            for v in range(views):
                rng = np.random.default_rng([self.noise.seed, 6, start + t, v])
                order = rng.permutation(len(detected[v]))
                out[v, t, : len(order)], person[v, t, : len(order)] = detected[v, order], label[v, order]
        person[~(out[..., 2] > 0).any(-1)] = -1
        return LabelledDetections(out, person)

    def _occlude(self, keypoints: Array, occluder: NDArray[np.int64], frame: int) -> None:
        """Change the detected keypoints (V, P, K, 3) of a frame where other people occlude them, in place."""
        rng = np.random.default_rng([self.noise.seed, 8, frame])
        occluded, draw = occluder >= 0, rng.random(occluder.shape)
        noise = _DISPLACED_SIGMA_PX * rng.normal(size=(*occluder.shape, 2))
        confidence = rng.uniform(0.2, 0.7, occluder.shape)
        blur = self.noise.sigma_px * np.sqrt(OCCLUSION.blur**2 - 1) * rng.normal(size=(*occluder.shape, 2))
        is_hidden = occluded.mean(-1) > OCCLUSION.max_share
        overlooked = is_hidden & (rng.random(is_hidden.shape) < OCCLUSION.overlooked)
        missing = occluded & (draw < OCCLUSION.missing)
        displaced = occluded & ~missing & (draw < OCCLUSION.missing + OCCLUSION.displaced)
        blurred = occluded & ~missing & ~displaced & (keypoints[..., 2] > 0)

        v, p, k = np.nonzero(displaced)
        other = keypoints[v, occluder[v, p, k], k]
        noisy = np.concatenate([other[:, :2] + noise[v, p, k], confidence[v, p, k][:, None]], -1)
        other = np.where(other[:, 2:] > 0, noisy, other)
        keypoints[blurred, :2] += blur[blurred]
        keypoints[blurred, 2] *= OCCLUSION.confidence
        keypoints[v, p, k] = other
        keypoints[missing | overlooked[..., None]] = np.nan, np.nan, 0.0
        keypoints[~_inside(keypoints[..., :2], self.rig.size[:, None, None])] = np.nan, np.nan, 0.0

    def _picture(self, keypoints: Array, frame: int) -> tuple[Array, NDArray[np.int64]]:
        """Detections (V, D, K, 3) of a frame, from people (V, P, K, 3), and the person of each (V, D)."""
        views, people, points, _ = keypoints.shape
        label = np.tile(np.arange(people), (views, 1))
        parts, labels = [keypoints], [label]
        if self.faults.exchanged or self.faults.split:
            rng = np.random.default_rng([self.noise.seed, 9, frame])
            exchanged, split = rng.random((2, views, people))
            flips = [*BODY_25.flips, *range(len(BODY_25), points)]
            mirror = (exchanged < self.faults.exchanged)[..., None, None]
            keypoints = np.where(mirror, keypoints[:, :, flips], keypoints)
            upper = np.concatenate([_UPPER, np.ones(points - len(_UPPER), bool)])
            in_two = (split < self.faults.split)[..., None]
            missing = np.array([np.nan, np.nan, 0.0])
            parts = [np.where((in_two & ~upper)[..., None], missing, keypoints)]
            if in_two.any():
                parts.append(np.where((in_two & ~upper)[..., None], keypoints, missing))
                labels.append(label)
        phantoms = self._phantoms(frame, points)
        parts.append(phantoms)
        labels.append(np.full(phantoms.shape[:2], -1))
        return np.concatenate(parts, 1), np.concatenate(labels, 1)

    def _phantoms(self, frame: int, points: int) -> Array:
        """(V, D, K, 3) phantoms of a frame."""
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
            each[view, 0, :, :2] += _STATIC_SIGMA_PX * shake.normal(size=(points, 2))
            out.append(each)
        return np.concatenate(out, 1)

    def _phantom(self, view: int, rng: np.random.Generator) -> Array:
        """(K, 3) random phantom in a view."""
        body = self.bodies[rng.integers(len(self.bodies))]
        low, high = self.bodies[..., :2].min((0, 1)), self.bodies[..., :2].max((0, 1))
        body = body - [*body[:, :2].mean(0), 0.0] + [*rng.uniform(low, high), 0.0]
        xy = self.rig.project(body, distorted=True)[view]
        confidence = rng.uniform(*_PHANTOM_CONFIDENCE, len(body))
        missing = (rng.random(len(body)) < _PHANTOM_MISSING_SHARE) | ~_inside(xy, self.rig.size[view])
        return np.where(
            missing[:, None], [np.nan, np.nan, 0.0], np.concatenate([xy, confidence[:, None]], -1)
        )


def _inside(xy: Array, size: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where pixels (..., 2) are inside pictures of these sizes."""
    with np.errstate(invalid="ignore"):
        return np.asarray(((xy >= -0.5) & (xy < size - 0.5)).all(-1))
