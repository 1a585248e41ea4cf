"""Errors of a results store against a store of the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.body import Body
from models.evaluation.identity import Identity, identity
from models.evaluation.metrics import acceleration_error, mpjpe, pa_mpjpe
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.store import Store
from pipeline.timeline import spread

Array = NDArray[np.float64]

COMPARED_FRAMES: Final = 40
"""Frames in which keypoints are compared."""
MAX_KEYPOINTS_APART: Final = 0.1
"""Distance between keypoints and the truth's, by the person's height, above which they are of another
recording. A detector is off by a hundredth or two; between two synthetic recordings it was 0.14 to 0.34."""


@dataclass(frozen=True)
class Errors:
    """One person of a results store against the truth: means over the frames that both have."""

    person: str
    """The result's person."""
    truth: str
    """The person of the truth that was meant: the nearest on average."""
    frames: int
    """Frames compared."""
    missed: int
    """Frames in which the truth has a pose, and the results have none."""
    mpjpe_mm: float
    """Joints, in the world, without alignment."""
    mpjpe_pelvis_mm: float
    """Joints, both pelves at the origin in every frame."""
    pa_mpjpe_mm: float
    """After a similarity alignment of each frame."""
    acceleration_mm: float
    """Mean length of the difference of the joints' accelerations, mm/frame²."""
    pve_mm: float
    """Vertices, in the world; NaN where the two stores have different bodies."""
    keypoints_px: float
    """Between the keypoints of result and truth, projected into all cameras."""


def compare_to_truth(results: Store, truth: Store, body: Body) -> tuple[Errors, ...]:
    """Errors of every person in ``results``; frames are matched by the number of the video frame.

    Raises:
        InputError: the two stores have other joints or keypoints, another rate, no camera of the same name,
            pictures of another size, frames that the truth lacks, or keypoints elsewhere: they are of two
            recordings; or one has nobody.
    """
    one, other = ((c.skeleton, c.keypoint_skeleton) for c in (results.contents, truth.contents))
    for what, ours, theirs in zip(("joints", "keypoints"), one, other, strict=True):
        if ours.names != theirs.names:
            raise InputError(
                f"{results.path} and {truth.path}: have other {what} ({len(ours)}, {len(theirs)}), so "
                "there is nothing to compare."
            )
    names, rows = _shared_frames(results, truth)
    rig = truth.contents.rig.select(names)
    errors = []
    for p in results.ids:
        pairs = [_Pair(results, p, truth, q, rows) for q in truth.ids]
        errors.append(_errors(min(pairs, key=_Pair.pelves_apart), body, rig))
    return tuple(errors)


def compare_identities(results: Store, truth: Store) -> Identity:
    """Who is who in ``results``, by joints, in the frames that both have. Raises as ``compare_to_truth``."""
    _, rows = _shared_frames(results, truth)
    ours = np.flatnonzero((rows >= 0) & np.repeat(results.done, results.contents.window)[: len(rows)])

    def joints(store: Store, frames: _Rows) -> Array:
        return np.stack([_at(store, f"people/{person}/joints", frames) for person in store.ids], 1)

    parts = []
    for frames in np.array_split(ours, max(1, -(-len(ours) // _TOGETHER))):
        one, other = joints(results, frames), joints(truth, rows[frames])
        apart = np.linalg.norm(other[:, :, None] - one[:, None], axis=-1).mean(-1)
        parts.append((apart, *(np.isfinite(x).all((2, 3)) for x in (other, one))))
    return identity(*(np.concatenate(part) for part in zip(*parts, strict=True)))


_Rows = NDArray[np.int64]
_TOGETHER = 240
"""Frames of everybody's joints that are held at once."""


def _shared_frames(results: Store, truth: Store) -> tuple[list[str], _Rows]:
    """Cameras of both, and the row of the truth of each frame of the results. Raises ``InputError``."""
    names = [n for n in results.contents.rig.names if n in truth.contents.rig.names]
    if not names:
        raise InputError(
            f"{results.path} and {truth.path}: no camera has the same name in both "
            f"({', '.join(results.contents.rig.names)}; {', '.join(truth.contents.rig.names)})"
        )
    rows = _truth_rows(results, truth, names)
    if difference := _difference(results, truth, names, rows):
        raise InputError(
            f"{results.path} and {truth.path}: {difference}. Give the truth of the same recording."
        )
    empty = next((s.path for s in (results, truth) if not s.ids), None)
    if empty is not None:
        raise InputError(f"{empty}: has nobody in it, so there is nothing to compare.")
    if (away := _keypoints_apart(results, truth, names, rows)) > MAX_KEYPOINTS_APART:
        raise InputError(
            f"{results.path} and {truth.path}: are of two recordings: keypoints lie {100 * away:.0f} % of a "
            "person's height away from the truth's. Give the truth of the same recording."
        )
    return names, rows


def _difference(results: Store, truth: Store, names: list[str], rows: _Rows) -> str:
    """Sign that two stores are not of one recording, in words; '' for none."""
    ours, theirs = results.contents, truth.contents
    if ours.rate != theirs.rate:
        return f"have {float(ours.rate):g} and {float(theirs.rate):g} frames a second"
    for name in names:
        one, other = (c.rig.size[c.rig.names.index(name)] for c in (ours, theirs))
        if (one != other).any():
            return f"pictures of {name} have {one[0]}x{one[1]} and {other[0]}x{other[1]} pixels"
    if (rows < 0).all():
        return f"have no frame of {', '.join(names)} in common"
    shown = np.stack([ours.frame_index[ours.rig.names.index(name)] for name in names]).max(0) >= 0
    if lacking := int((shown & (rows < 0)).sum()):
        return f"{lacking} of {len(rows)} frames are not among the {len(theirs.time_s)} of the truth"
    return ""


def _keypoints_apart(results: Store, truth: Store, names: list[str], rows: _Rows) -> float:
    """Median distance between a person's keypoints in the pictures and those of the nearest person of the
    truth, in the height of that; NaN where there is nothing to compare."""
    apart = []
    common = np.flatnonzero((rows >= 0) & np.repeat(results.done, results.contents.window)[: len(rows)])
    for t in spread(common, COMPARED_FRAMES):
        one, other = (
            [
                store.array(f"people/{i}/keypoints_2d", at, at + 1)[
                    [store.contents.rig.names.index(n) for n in names], 0
                ]
                for i in store.ids
            ]
            for store, at in ((results, int(t)), (truth, int(rows[t])))
        )
        for points in one:
            found = [_apart(points, true) for true in other]
            if np.isfinite(found).any():
                apart.append(np.nanmin(found))
    return float(np.median(apart)) if apart else float("nan")


def _apart(points: Array, true: Array) -> float:
    """Median distance of two people's keypoints (V, K, 3) in the height of the second in its picture; NaN
    where no picture has both, and the second with a height."""
    seen, y = true[..., 2] > 0, true[..., 1]
    height = np.max(y, 1, where=seen, initial=-np.inf) - np.min(y, 1, where=seen, initial=np.inf)
    both = (points[..., 2] > 0) & seen & (height > 0)[:, None]
    if not both.any():
        return float("nan")
    distance = np.linalg.norm(points[..., :2] - true[..., :2], axis=-1)
    return float(np.median(distance[both] / np.broadcast_to(height[:, None], both.shape)[both]))


def _truth_rows(results: Store, truth: Store, names: list[str]) -> _Rows:
    """(T,) row of the truth that shows the moment of each frame of the results; −1 where none does."""
    rows = np.full(len(results.contents.time_s), -1)
    for name in names:
        ours = results.contents.frame_index[results.contents.rig.names.index(name)]
        theirs = truth.contents.frame_index[truth.contents.rig.names.index(name)]
        there = np.flatnonzero(theirs >= 0)
        at = np.searchsorted(theirs[there], ours)  # numbers rise along a time line
        found = there[np.minimum(at, len(there) - 1)] if len(there) else np.full(len(ours), -1)
        rows = np.where((rows < 0) & (ours >= 0) & (theirs[found] == ours), found, rows)
    return rows


def _at(store: Store, name: str, rows: _Rows) -> Array:
    first = int(rows.min())
    return np.asarray(store.array(name, first, int(rows.max()) + 1)[rows - first], np.float64)


def _posed(store: Store, person: int, rows: _Rows) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(_at(store, f"people/{person}/joints", rows)).all((1, 2)))


@dataclass(frozen=True)
class _Pair:
    """A person of the results, and one of the truth."""

    results: Store
    p: int
    truth: Store
    q: int
    rows: _Rows

    def shown(self) -> Iterator[tuple[_Rows, _Rows]]:
        """Window by window: the frames of the results in which both have a pose, and the truth's rows."""
        for k in np.flatnonzero(self.results.done):
            a, b = self.results.span(int(k))
            ours = a + np.flatnonzero(self.rows[a:b] >= 0)
            if len(ours):
                theirs = self.rows[ours]
                both = _posed(self.results, self.p, ours) & _posed(self.truth, self.q, theirs)
                if both.any():
                    yield ours[both], theirs[both]

    def of_truth(self) -> int:
        """Frames of the truth with a pose."""
        spans = (np.arange(*self.truth.span(int(k))) for k in np.flatnonzero(self.truth.done))
        return sum(int(_posed(self.truth, self.q, frames).sum()) for frames in spans)

    def pelves_apart(self) -> float:
        """Metres, on average."""
        total, frames = 0.0, 0
        for ours, theirs in self.shown():
            joints = _at(self.results, f"people/{self.p}/joints", ours)
            apart = joints - _at(self.truth, f"people/{self.q}/joints", theirs)
            total += float(np.linalg.norm(apart[:, 0], axis=1).sum())
            frames += len(ours)
        return total / frames if frames else np.inf


def _errors(of: _Pair, body: Body, rig: Rig) -> Errors:
    results, truth = of.results, of.truth
    sums, frames = np.zeros(5), 0
    bends: list[Array] = []
    last = np.zeros((0, 2), np.int64), np.zeros((2, 0, len(truth.contents.skeleton), 3))
    for ours, theirs in of.shown():
        pair = ((results, f"people/{of.p}", ours), (truth, f"people/{of.q}", theirs))
        joints = np.stack([_at(store, f"{person}/joints", rows) for store, person, rows in pair])
        pixels = [rig.project(_at(s, f"{person}/keypoints_3d", rows)[..., :3]) for s, person, rows in pair]
        surface = np.full(len(ours), np.nan)
        if results.contents.body == truth.contents.body:
            surface = mpjpe(*(_vertices(store, person, rows, body) for store, person, rows in pair))
        apart = np.linalg.norm(pixels[0] - pixels[1], axis=-1).mean((0, 2))
        at_pelvis = joints - joints[:, :, :1]
        measures = (mpjpe(*joints), mpjpe(*at_pelvis), pa_mpjpe(*joints), surface, 1e-3 * apart)
        sums += [1e3 * x.sum() for x in measures]
        frames += len(ours)
        # An acceleration takes three frames in a row, which may lie in two windows.
        numbers = np.concatenate([last[0], np.stack([ours, theirs], 1)])
        both = np.concatenate([last[1], joints], 1)
        follow = (numbers[2:] - numbers[:-2] == 2).all(1)
        bends.append(acceleration_error(*both)[follow] if len(numbers) > 2 else np.zeros(0))
        last = numbers[-2:], both[:, -2:]
    means = (sums / frames if frames else np.full(5, np.nan)).tolist()
    bend = np.concatenate([np.zeros(0), *bends])
    return Errors(
        person=str(of.p),
        truth=str(of.q),
        frames=frames,
        missed=of.of_truth() - frames,
        mpjpe_mm=means[0],
        mpjpe_pelvis_mm=means[1],
        pa_mpjpe_mm=means[2],
        acceleration_mm=1e3 * float(bend.mean()) if len(bend) else float("nan"),
        pve_mm=means[3],
        keypoints_px=means[4],
    )


def _vertices(store: Store, person: str, rows: _Rows, body: Body) -> Array:
    """(T, N, 3) metres, world."""

    def rotations(name: str) -> torch.Tensor:
        angles = _at(store, f"{person}/{name}", rows)
        matrices: torch.Tensor = roma.rotvec_to_rotmat(torch.from_numpy(angles).double())
        return matrices.float()

    mesh = body.vertices(
        rotations("global_orient"),
        rotations("body_pose"),
        torch.from_numpy(store.array(f"{person}/betas")).float(),
        torch.from_numpy(_at(store, f"{person}/transl", rows)).float(),
    )
    return np.asarray(mesh.double().numpy())
