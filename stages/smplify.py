"""Stage: fit SMPL to the keypoints of all views, in overlapping windows of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from models.body import Body, pose_keypoints
from models.fit.presence import frames_unseen
from models.fit.windows import PersonState, SmplifyConfig, WindowFitter
from models.priors import load_pose_prior
from pipeline.batches import (
    FitBatch,
    KeypointBatch,
    PoseBatch,
    SmplParams,
    State,
    Status,
    check_points,
    joined,
)
from pipeline.cameras import Rig

_MIN_SHAPE_FRAMES = 24
"""Frames that show a person's size which are waited for before the shape is estimated, if more frames
come."""

_MAX_SHAPE_CLIP_RATIO = 4
"""Longest wait for them, over ``shape_frames``."""


def smplify(
    items: Iterator[PoseBatch], cfg: SmplifyConfig, rig: Rig, body: Body, state: State | None = None
) -> Iterator[FitBatch]:
    """Fit every chunk of people; one ``FitBatch`` for each, in order, all its frames final.

    A window is a chunk, ``overlap_frames`` of the next, and the last two final frames, held. A person's shape
    and keypoint offsets (detector against body) are estimated once, from ``shape_frames`` frames from the
    first visible one on, then kept; those chunks are held back meanwhile, and the fit gives their poses,
    final up to the overlap. Gaps of at most ``max_gap_s`` are bridged by the temporal terms; a chunk that
    ends in a gap is held back until its end is known. All other frames in which a person is not visible are
    NaN.

    Frames start from triangulated keypoints; where many are missing, from the regressor's poses, or these
    rotated by 180°, if their energy is clearly less. Where one view alone sees the person, the regressor's
    poses are a target. One view cannot tell a large person from a near one: with several cameras the shape
    waits, up to four times ``shape_frames``, for frames of two views, and is the regressor's where none come.

    People are independent problems: a new id begins without state, a missing one is forgotten.

    state: ``FitBatch.state`` of the chunk before the first of ``items``; with it, on one torch thread, the
    results are bit for bit those of an unbroken run.

    Raises ``ValueError`` where joints or keypoints of a batch are not the body's.
    """
    fitter = WindowFitter(cfg, rig, body.keypoints, load_pose_prior())
    waiting: deque[PoseBatch] = deque()
    new = PersonState.unknown(body.keypoints, max(cfg.overlap_frames, cfg.shape_frames))
    states = PersonState.unpacked(state or {})
    while _fill(waiting, items, 1):
        chunk = waiting[0]
        check_points(chunk, body.skeleton, body.keypoints.keypoint_skeleton)
        frames, ids = len(chunk.transl), chunk.keypoints.ids.tolist()
        people = [states.get(i, new) for i in ids]
        clips = {}
        for p, person in enumerate(people):
            visible = fitter.visible(chunk, p)
            if not person.known and bool(visible.any()):
                first = int(visible.nonzero()[0])
                clips[p] = _shape_clip(waiting, items, fitter, p, first), first
        people = fitter.shapes(people, clips)
        if people:
            stops = [_window_end(waiting, items, fitter, p, float(q.unseen)) for p, q in enumerate(people)]
            clip = _clip(waiting)
            windows = [clip.frames(0, min(stop, len(clip.transl))) for stop in stops]
            rotations, transl, people = fitter.windows(people, windows, frames)
        waiting.popleft()
        states = dict(zip(ids, people, strict=True))
        yield _result(chunk.keypoints, rotations, transl, states, fitter) if people else _empty(chunk, new)


def _clip(waiting: Sequence[PoseBatch]) -> PoseBatch:
    """All waiting batches as one, of the people of the first."""
    ids = waiting[0].keypoints.ids
    return joined([batch.people(ids) for batch in waiting])


def _shape_clip(
    waiting: deque[PoseBatch], items: Iterator[PoseBatch], fitter: WindowFitter, p: int, first: int
) -> PoseBatch:
    """Frames that estimate the shape of a person first visible in frame ``first``, and those before.

    More of them until enough show the person's size.
    """
    for ratio in range(1, _MAX_SHAPE_CLIP_RATIO + 1):
        stop = first + ratio * fitter.cfg.shape_frames
        ended = not _fill(waiting, items, stop)
        clip = _clip(waiting)
        clip = clip.frames(0, min(stop, len(clip.transl)))
        if ended or fitter.shape_frames(clip, p, first) >= _MIN_SHAPE_FRAMES:
            break
    return clip


def _window_end(
    waiting: deque[PoseBatch], items: Iterator[PoseBatch], fitter: WindowFitter, p: int, unseen: float
) -> int:
    """Length of the first chunk's window, frames: with the overlap, and to the end of a bridged gap."""
    chunk, overlap = waiting[0], fitter.cfg.overlap_frames
    frames = len(chunk.transl)
    _fill(waiting, items, frames + overlap)
    unseen = frames_unseen(fitter.visible(chunk, p), unseen)
    gap_stop = frames - unseen + fitter.max_gap(chunk)
    if unseen > 0 and gap_stop > frames:
        _fill(waiting, items, int(gap_stop))
        visible = fitter.visible(_clip(waiting), p)[frames : int(gap_stop)].nonzero()[:, 0]
        if len(visible):
            stop = frames + int(visible[0]) + 1 + overlap
            _fill(waiting, items, stop)
            return stop
    return frames + overlap


def _fill(waiting: deque[PoseBatch], items: Iterator[PoseBatch], frames: int) -> bool:
    """Take items until ``frames`` frames wait; false where the items end before."""
    total = sum(len(batch.transl) for batch in waiting)
    while total < frames:
        item = next(items, None)
        if item is None:
            return False
        waiting.append(item)
        total += len(item.transl)
    return True


def _result(
    chunk: KeypointBatch,
    rotations: Tensor,
    transl: Tensor,
    states: Mapping[int, PersonState],
    fitter: WindowFitter,
) -> FitBatch:
    """Fit of a chunk from rotations (T, P, J, 3, 3) and transl (T, P, 3), with errors and status."""
    rig, people = fitter.rig, states.values()
    joints, points = zip(
        *(
            pose_keypoints(fitter.body, rotations[:, p].double(), q.betas, transl[:, p].double(), q.offsets)
            for p, q in enumerate(people)
        ),
        strict=True,
    )
    body_joints, body_points = torch.stack(joints, 1), torch.stack(points, 1)
    detected = chunk.confidence > 0
    residual_px = (torch.from_numpy(rig.project(body_points.numpy())) - chunk.xy_px.double()).norm(dim=-1)
    residual_px = torch.where(detected, residual_px, torch.nan)  # (V, T, P, K)
    depth = torch.from_numpy(rig.to_camera(body_joints[:, :, 0].numpy())[..., 2])
    focal = torch.from_numpy(rig.K[:, [0, 1], [0, 1]].mean(1))
    residual_m = residual_px * (depth / focal[:, None, None])[..., None]
    confidence = torch.where(detected, chunk.confidence, 0).sum(0) / detected.sum(0).clamp(min=1)
    return FitBatch(
        keypoints=chunk,
        params=SmplParams(
            global_orient=rotations[:, :, 0],
            body_pose=rotations[:, :, 1:],
            betas=torch.stack([q.betas for q in people]).float(),
            transl=transl,
        ),
        joints=body_joints.float(),
        keypoints_3d=torch.cat([body_points.float(), confidence[..., None]], -1),
        reprojection_px=residual_px.nanmean(-1).float(),
        status=_status(detected, residual_m, transl.isfinite().all(-1), fitter.cfg),
        state={name: x for person, q in states.items() for name, x in q.packed(person).items()},
        skeleton=fitter.body.skeleton,
    )


def _status(detected: Tensor, residual_m: Tensor, posed: Tensor, cfg: SmplifyConfig) -> Tensor:
    """``Status`` (T, P) of fits by detected keypoints and residuals (V, T, P, K), where posed (T, P)."""
    count = detected.sum((0, 3))
    visible = count >= cfg.min_keypoints
    median = residual_m.movedim(0, -1).flatten(-2).nanmedian(-1).values
    status = torch.full_like(count, Status.NOT_SEEN)
    status[visible] = Status.NO_START
    status[posed] = Status.BRIDGED
    status[posed & (count > 0)] = Status.FEW_KEYPOINTS
    status[posed & visible] = Status.FAR_OFF
    status[posed & visible & (median < cfg.max_error_mm / 1000)] = Status.OK
    return status.to(torch.uint8)


def _empty(chunk: PoseBatch, person: PersonState) -> FitBatch:
    """Fit of a chunk without people."""
    views, frames, _, points = chunk.keypoints.confidence.shape
    return FitBatch(
        keypoints=chunk.keypoints,
        params=SmplParams(
            chunk.global_orient, chunk.body_pose, torch.zeros(0, len(person.betas)), chunk.transl
        ),
        joints=torch.zeros(frames, 0, len(chunk.skeleton), 3),
        keypoints_3d=torch.zeros(frames, 0, points, 4),
        reprojection_px=torch.zeros(views, frames, 0),
        status=torch.zeros(frames, 0, dtype=torch.uint8),
        skeleton=chunk.skeleton,
    )
