"""Errors of a results store against a ground-truth store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.body import Body
from models.evaluation.identity import Identity, score_identities
from models.evaluation.metrics import acceleration_error, mpjpe, pa_mpjpe
from pipeline.array_types import Array
from pipeline.errors import InputError
from pipeline.store import Store
from pipeline.timeline import spread

COMPARED_FRAMES: Final = 40
"""Frames in which keypoints are compared, to tell whether two stores are of one recording."""
MAX_KEYPOINT_DISTANCE: Final = 0.1
"""Largest median distance between keypoints of results and truth, in heights of the person, of one recording.
A detector is off by 0.01 to 0.02; between two synthetic recordings it was 0.14 to 0.34."""
_CHUNK_FRAMES = 240
"""Frames of all people's joints in memory at once."""

_Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Errors:
    """Errors of one person of a results store: means over the frames with a pose in both stores."""

    person: str
    """Id in the results."""
    truth: str
    """Id of the person of the truth that is nearest on average."""
    frames: int
    """Compared frames."""
    missed: int
    """Frames with a pose in the truth alone."""
    mpjpe_mm: float
    """Mean error of joints in the world, without alignment."""
    mpjpe_pelvis_mm: float
    """Mean error of joints with both pelves at the origin."""
    pa_mpjpe_mm: float
    """Mean error of joints after a similarity alignment of each frame."""
    acceleration_mm: float
    """Mean length of the difference of the joints' accelerations, mm/frame²."""
    pve_mm: float
    """Mean error of vertices in the world; NaN where the stores have different body models."""
    keypoints_px: float
    """Mean distance of 3D keypoints in all pictures, each projected into the cameras of its store."""


def compare_to_truth(results: Store, truth: Store, body: Body) -> tuple[Errors, ...]:
    """Compute the errors of every person in ``results``; frames are matched by the number of the video frame.

    Raises ``InputError``: the two stores have different joints or keypoints, or are of two recordings: other
    rates, camera names, picture sizes, frames or keypoints; or one has no people.
    """
    skeletons = ((c.skeleton, c.keypoint_skeleton) for c in (results.contents, truth.contents))
    for kind, ours, theirs in zip(("joints", "keypoints"), *skeletons, strict=True):
        if ours.names != theirs.names:
            raise InputError(
                f"{results.path} and {truth.path}: have other {kind} ({len(ours)}, {len(theirs)}), so "
                "there is nothing to compare."
            )
    names, rows = _match_frames(results, truth)
    errors = []
    for p in results.ids:
        pairs = [_Pair(results, p, truth, q, rows, names) for q in truth.ids]
        errors.append(_errors(min(pairs, key=_Pair.mean_distance_m), body))
    return tuple(errors)


def compare_identities(results: Store, truth: Store) -> Identity:
    """Score the ids of ``results`` in the frames of both. Raises as ``compare_to_truth``.

    Joints are compared; with other cameras than the truth's, as estimated ones, the places in the pictures.
    """
    names, rows = _match_frames(results, truth)
    common = _finished_frames(results, rows)
    rigs = [store.contents.rig.select(names) for store in (results, truth)]
    same_world = all(np.allclose(*(getattr(rig, name) for rig in rigs)) for name in ("K", "R", "t"))

    def joints(store: Store, frames: _Rows) -> Array:
        return np.stack([_read_rows(store, f"people/{person}/joints", frames) for person in store.ids], 1)

    chunks = []
    for frames in np.array_split(common, max(1, -(-len(common) // _CHUNK_FRAMES))):
        ours, theirs = joints(results, frames), joints(truth, rows[frames])
        if same_world:
            distance_m = np.linalg.norm(theirs[:, :, None] - ours[:, None], axis=-1).mean(-1)
        else:
            pairs = [[_Pair(results, p, truth, q, rows, names) for p in results.ids] for q in truth.ids]
            table = [[pair.picture_distance_m(frames, rows[frames]) for pair in row] for row in pairs]
            distance_m = np.moveaxis(np.array(table), 2, 0)
        chunks.append((distance_m, *(np.isfinite(x).all((2, 3)) for x in (theirs, ours))))
    scores = score_identities(*(np.concatenate(part) for part in zip(*chunks, strict=True)))
    return scores if same_world else replace(scores, mpjpe_mm=float("nan"))


def _finished_frames(results: Store, rows: _Rows) -> _Rows:
    """Finished frames of the results that the truth has."""
    return np.flatnonzero((rows >= 0) & np.repeat(results.done, results.contents.window)[: len(rows)])


def _match_frames(results: Store, truth: Store) -> tuple[list[str], _Rows]:
    """Common cameras, and the truth's row (T,) of each frame of the results, −1 for none.

    Raises ``InputError`` where the stores are of two recordings or without people."""
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
    if not len(_finished_frames(results, rows)):
        raise InputError(f"{results.path}: none of the truth's frames is done yet. Finish the run first.")
    if (distance := _keypoint_distance(results, truth, names, rows)) > MAX_KEYPOINT_DISTANCE:
        raise InputError(
            f"{results.path} and {truth.path}: are of two recordings: keypoints lie {100 * distance:.0f} % "
            "of a person's height away from the truth's. Give the truth of the same recording."
        )
    return names, rows


def _difference(results: Store, truth: Store, names: list[str], rows: _Rows) -> str:
    """Difference between stores of two recordings, in words; '' for none."""
    ours, theirs = results.contents, truth.contents
    if ours.rate != theirs.rate:
        return f"have {float(ours.rate):g} and {float(theirs.rate):g} frames a second"
    for name in names:
        size, other = (c.rig.size[c.rig.names.index(name)] for c in (ours, theirs))
        if (size != other).any():
            return f"pictures of {name} have {size[0]}x{size[1]} and {other[0]}x{other[1]} pixels"
    if (rows < 0).all():
        return f"have no frame of {', '.join(names)} in common"
    filmed = np.stack([ours.frame_index[ours.rig.names.index(name)] for name in names]).max(0) >= 0
    if lacking := int((filmed & (rows < 0)).sum()):
        return f"{lacking} of {len(rows)} frames are not among the {len(theirs.time_s)} of the truth"
    return ""


def _keypoint_distance(results: Store, truth: Store, names: list[str], rows: _Rows) -> float:
    """Median distance of people's keypoints from the truth's nearest person, in heights; NaN without any."""
    distances = []
    for t in spread(_finished_frames(results, rows), COMPARED_FRAMES):
        ours, theirs = (
            [
                store.array(f"people/{i}/keypoints_2d", frame, frame + 1)[
                    [store.contents.rig.names.index(n) for n in names], 0
                ]
                for i in store.ids
            ]
            for store, frame in ((results, int(t)), (truth, int(rows[t])))
        )
        for points in ours:
            candidates = [_person_distance(points, true) for true in theirs]
            if np.isfinite(candidates).any():
                distances.append(np.nanmin(candidates))
    return float(np.median(distances)) if distances else float("nan")


def _person_distance(points: Array, true: Array) -> float:
    """Median distance of two people's keypoints (V, K, 3), in heights of the second one in its picture; NaN
    where no picture shows both."""
    visible, y = true[..., 2] > 0, true[..., 1]
    height = np.max(y, 1, where=visible, initial=-np.inf) - np.min(y, 1, where=visible, initial=np.inf)
    both = (points[..., 2] > 0) & visible & (height > 0)[:, None]
    if not both.any():
        return float("nan")
    distance = np.linalg.norm(points[..., :2] - true[..., :2], axis=-1)
    return float(np.median(distance[both] / np.broadcast_to(height[:, None], both.shape)[both]))


def _truth_rows(results: Store, truth: Store, names: list[str]) -> _Rows:
    """Row (T,) of the truth with the same video frames as each frame of the results, −1 for none."""
    rows = np.full(len(results.contents.time_s), -1)
    for name in names:
        ours = results.contents.frame_index[results.contents.rig.names.index(name)]
        theirs = truth.contents.frame_index[truth.contents.rig.names.index(name)]
        filmed = np.flatnonzero(theirs >= 0)
        index = np.searchsorted(theirs[filmed], ours)  # video frames ascend along a time line
        row = filmed[np.minimum(index, len(filmed) - 1)] if len(filmed) else np.full(len(ours), -1)
        rows = np.where((rows < 0) & (ours >= 0) & (theirs[row] == ours), row, rows)
    return rows


def _read_rows(store: Store, name: str, rows: _Rows) -> Array:
    first = int(rows.min())
    return np.asarray(store.array(name, first, int(rows.max()) + 1)[rows - first], np.float64)


def _has_pose(store: Store, person: int, rows: _Rows) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(_read_rows(store, f"people/{person}/joints", rows)).all((1, 2)))


@dataclass(frozen=True)
class _Pair:
    """A person of the results and one of the truth."""

    results: Store
    p: int
    truth: Store
    q: int
    rows: _Rows
    names: list[str]
    """Cameras of both stores."""

    def windows(self) -> Iterator[tuple[_Rows, _Rows]]:
        """Frames of the results with a pose in both stores, and the truth's rows, window by window."""
        for k in np.intersect1d(np.flatnonzero(self.results.done), self.results.windows_of(self.p)):
            a, b = self.results.span(int(k))
            ours = a + np.flatnonzero(self.rows[a:b] >= 0)
            if len(ours):
                theirs = self.rows[ours]
                both = _has_pose(self.results, self.p, ours) & _has_pose(self.truth, self.q, theirs)
                if both.any():
                    yield ours[both], theirs[both]

    def truth_frames(self) -> int:
        """Number of frames of the truth with a pose."""
        spans = (np.arange(*self.truth.span(int(k))) for k in np.flatnonzero(self.truth.done))
        return sum(int(_has_pose(self.truth, self.q, frames).sum()) for frames in spans)

    def image_points(self, ours: _Rows, theirs: _Rows) -> tuple[Array, Array, Array]:
        """Keypoints (V, T, K, 2) of the poses of both in the pictures, each by the cameras of its own store,
        pixels, and metres a pixel (V, T, K) there."""
        sides = (self.results, self.p, ours), (self.truth, self.q, theirs)
        points = [_read_rows(s, f"people/{i}/keypoints_3d", rows)[..., :3] for s, i, rows in sides]
        rigs = [store.contents.rig.select(self.names) for store, _, _ in sides]
        image = [rig.project(x, distorted=True) for rig, x in zip(rigs, points, strict=True)]
        return image[0], image[1], rigs[1].metres_per_px(points[1])

    def picture_distance_m(self, ours: _Rows, theirs: _Rows) -> Array:
        """Median distance (T,) in the pictures, metres at the person of the truth."""
        image, true, metres = self.image_points(ours, theirs)
        return np.asarray(np.median(np.linalg.norm(image - true, axis=-1) * metres, axis=(0, 2)))

    def mean_distance_m(self) -> float:
        """Mean of ``picture_distance_m``; inf without a common frame."""
        distances = [self.picture_distance_m(*frames) for frames in self.windows()]
        return float(np.concatenate(distances).mean()) if distances else np.inf


def _errors(pair: _Pair, body: Body) -> Errors:
    """Errors of a pair of people, window by window."""
    results, truth = pair.results, pair.truth
    sums, frames = np.zeros(5), 0
    accelerations: list[Array] = [np.zeros(0)]
    last = np.zeros((0, 2), np.int64), np.zeros((2, 0, len(truth.contents.skeleton), 3))
    for ours, theirs in pair.windows():
        sides = ((results, f"people/{pair.p}", ours), (truth, f"people/{pair.q}", theirs))
        joints = np.stack([_read_rows(store, f"{person}/joints", rows) for store, person, rows in sides])
        image, true, _ = pair.image_points(ours, theirs)
        vertex_error = np.full(len(ours), np.nan)
        if results.contents.body == truth.contents.body:
            vertex_error = mpjpe(*(_vertices(store, person, rows, body) for store, person, rows in sides))
        keypoints_px = np.linalg.norm(image - true, axis=-1).mean((0, 2))
        at_pelvis = joints - joints[:, :, :1]
        measures = (mpjpe(*joints), mpjpe(*at_pelvis), pa_mpjpe(*joints), vertex_error, 1e-3 * keypoints_px)
        sums += [1e3 * x.sum() for x in measures]
        frames += len(ours)
        # An acceleration takes three frames in a row, which may lie in two windows.
        numbers = np.concatenate([last[0], np.stack([ours, theirs], 1)])
        joints = np.concatenate([last[1], joints], 1)
        consecutive = (numbers[2:] - numbers[:-2] == 2).all(1)
        if len(numbers) > 2:
            accelerations.append(acceleration_error(*joints)[consecutive])
        last = numbers[-2:], joints[:, -2:]
    means = (sums / frames if frames else np.full(5, np.nan)).tolist()
    acceleration = np.concatenate(accelerations)
    return Errors(
        person=str(pair.p),
        truth=str(pair.q),
        frames=frames,
        missed=pair.truth_frames() - frames,
        mpjpe_mm=means[0],
        mpjpe_pelvis_mm=means[1],
        pa_mpjpe_mm=means[2],
        acceleration_mm=1e3 * float(acceleration.mean()) if len(acceleration) else float("nan"),
        pve_mm=means[3],
        keypoints_px=means[4],
    )


def _vertices(store: Store, person: str, rows: _Rows, body: Body) -> Array:
    """Vertices (T, N, 3) of a person in the world, metres."""

    def rotations(name: str) -> torch.Tensor:
        angles = _read_rows(store, f"{person}/{name}", rows)
        matrices: torch.Tensor = roma.rotvec_to_rotmat(torch.from_numpy(angles).double())
        return matrices.float()

    mesh = body.vertices(
        rotations("global_orient"),
        rotations("body_pose"),
        torch.from_numpy(store.array(f"{person}/betas")).float(),
        torch.from_numpy(_read_rows(store, f"{person}/transl", rows)).float(),
    )
    return np.asarray(mesh.double().numpy())
