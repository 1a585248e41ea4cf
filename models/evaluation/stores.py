"""Errors of a results store against a store of the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.body import Body
from models.evaluation.metrics import acceleration_error, mpjpe, pa_mpjpe
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.store import Store

Array = NDArray[np.float64]


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
        InputError: the two stores have other joints or keypoints, no camera of the same name or no frame in
            common, or one has nobody.
    """
    one, other = ((c.skeleton, c.keypoint_skeleton) for c in (results.contents, truth.contents))
    for what, ours, theirs in zip(("joints", "keypoints"), one, other, strict=True):
        if ours.names != theirs.names:
            raise InputError(
                f"{results.path} and {truth.path}: have other {what} ({len(ours)}, {len(theirs)}), so "
                "there is nothing to compare."
            )
    names = [n for n in results.contents.rig.names if n in truth.contents.rig.names]
    if not names:
        raise InputError(
            f"{results.path} and {truth.path}: no camera has the same name in both "
            f"({', '.join(results.contents.rig.names)}; {', '.join(truth.contents.rig.names)})"
        )
    rows = _truth_rows(results, truth, names)
    if (rows < 0).all():
        raise InputError(
            f"{results.path} and {truth.path}: have no frame of {', '.join(names)} in common. Give the truth "
            "of the same recording."
        )
    empty = next((s.path for s in (results, truth) if not s.ids), None)
    if empty is not None:
        raise InputError(f"{empty}: has nobody in it, so there is nothing to compare.")
    rig = truth.contents.rig.select(names)
    errors = []
    for p in results.ids:
        pairs = [_Pair(results, p, truth, q, rows) for q in truth.ids]
        errors.append(_errors(min(pairs, key=_Pair.pelves_apart), body, rig))
    return tuple(errors)


_Rows = NDArray[np.int64]


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
