"""The stage: windows, restarts, gaps, people who come late, recordings of any length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import roma
import torch
from scenes import Scene, body, jitter_mm, mpjpe_mm, scene
from torch import Tensor

import models.fit.windows
from models.body import pose_keypoints
from models.fit.problem import Schedule, Views, Weights
from models.fit.solver import Fit, fit
from models.fit.windows import SmplifyConfig
from pipeline.batches import FitBatch, KeypointBatch, PoseBatch, Status
from pipeline.formats.keypoints.files import MIN_CONFIDENCE
from pipeline.skeleton import BODY_25
from stages.smplify import smplify


def batches(d: Scene, window: int = 24, first: int = 0) -> Iterator[PoseBatch]:
    frames = d.xy.shape[1]
    for start in range(first, frames, window):
        stop = min(start + window, frames)
        confidence = torch.tensor(d.confidence[:, start:stop, None], dtype=torch.float32)
        seen = confidence >= MIN_CONFIDENCE
        xy = torch.tensor(d.xy[:, start:stop, None], dtype=torch.float32)
        xy = torch.where(seen[..., None], xy, torch.nan)
        keypoints = KeypointBatch(
            start=start,
            rate=Fraction(int(d.rate)),
            ids=torch.tensor([0]),
            time_s=torch.arange(start, stop, dtype=torch.float64) / d.rate,
            image_px=xy,
            xy_px=xy,
            confidence=torch.where(seen, confidence, 0),
        )
        yield PoseBatch.blank(keypoints, 10)


def run(d: Scene, window: int = 24, **config: float) -> list[FitBatch]:
    return list(smplify(batches(d, window), SmplifyConfig(**config), d.rig, body()))


def joined(out: list[FitBatch], name: str) -> Tensor:
    return torch.cat([getattr(b, name)[:, 0] for b in out]).double()


def test_points_that_are_not_the_bodys_are_refused() -> None:
    d = scene(1, "person", frames=24)
    (poses,) = batches(d)
    mirrored = replace(BODY_25, names=tuple(BODY_25.names[i] for i in BODY_25.flips))
    poses = replace(poses, keypoints=replace(poses.keypoints, skeleton=mirrored))
    with pytest.raises(ValueError, match="has 25 keypoints of other names or bones, expected 25"):
        next(smplify(iter([poses]), SmplifyConfig(), d.rig, body()))


def hidden(d: Scene, start: int, stop: int, views: tuple[int, ...] = (0, 1, 2, 3)) -> Scene:
    """Nothing seen in these frames of these views."""
    confidence, xy = d.confidence.copy(), d.xy.copy()
    confidence[list(views), start:stop] = 0
    xy[list(views), start:stop] = np.nan
    return replace(d, confidence=confidence, xy=xy)


@pytest.fixture(scope="module")
def long() -> Scene:
    return scene(12, "person", frames=150)


@pytest.fixture(scope="module")
def fitted(long: Scene) -> list[FitBatch]:
    return run(long)


def test_a_batch_for_every_chunk_with_its_frames(long: Scene, fitted: list[FitBatch]) -> None:
    assert [(b.start, len(b.valid)) for b in fitted] == [
        (0, 24),
        (24, 24),
        (48, 24),
        (72, 24),
        (96, 24),
        (120, 24),
        (144, 6),
    ]
    for given, b in zip(batches(long), fitted, strict=True):
        assert torch.equal(given.keypoints.confidence, b.keypoints.confidence)
        assert b.valid.all()
        assert b.params.betas.dtype == b.joints.dtype == torch.float32
        assert torch.equal(b.params.betas, fitted[0].params.betas)


def test_windows_recover_the_truth(long: Scene, fitted: list[FitBatch]) -> None:
    error = (joined(fitted, "joints") - long.joints).norm(dim=-1).mean() * 1000
    assert error < 7
    whole = long.solve().motion
    assert error < mpjpe_mm(whole, long) + 1.5
    # No seams: the frames about the cuts are no rougher than the others.
    bend = joined(fitted, "joints")
    bend = (bend[2:] - 2 * bend[1:-1] + bend[:-2]).norm(dim=-1).mean(-1)
    cuts = torch.tensor([i for k in range(24, 144, 24) for i in (k - 2, k - 1)])
    assert bend[cuts].mean() < 1.5 * bend.mean()


def test_what_is_reported_follows_from_the_parameters(long: Scene, fitted: list[FitBatch]) -> None:
    b = fitted[2]
    offsets = fitted[2].state["smplify/0/offsets"]
    rotations = torch.cat([b.params.global_orient[:, 0, None], b.params.body_pose[:, 0]], 1).double()
    joints, points = pose_keypoints(
        body().keypoints, rotations, b.params.betas[0].double(), b.params.transl[:, 0].double(), offsets
    )
    assert (joints - b.joints[:, 0]).abs().max() < 1e-5
    assert (points - b.keypoints_3d[:, 0, :, :3]).abs().max() < 1e-5
    assert offsets.norm(dim=-1).max() < 0.03
    seen = long.confidence[:, 48:72] > 0.3
    miss = np.linalg.norm(long.rig.project(points.numpy()) - long.xy[:, 48:72], axis=-1)
    wanted = np.nanmean(np.where(seen, miss, np.nan), -1)
    assert np.abs(b.reprojection_px[:, :, 0].numpy() - wanted).max() < 0.02
    assert b.keypoints_3d[..., 3].max() == 1


@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_a_restart_changes_no_bit(long: Scene, fitted: list[FitBatch], chunk: int) -> None:
    rest = batches(long, first=24 * chunk)
    again = list(smplify(rest, SmplifyConfig(), long.rig, body(), fitted[chunk - 1].state))
    assert len(again) == len(fitted) - chunk
    for a, b in zip(again, fitted[chunk:], strict=True):
        for f in fields(FitBatch):
            x, y = getattr(a, f.name), getattr(b, f.name)
            if isinstance(x, Tensor):
                assert torch.equal(torch.nan_to_num(x, 7e7), torch.nan_to_num(y, 7e7)), f.name
        for f in fields(a.params):
            assert torch.equal(getattr(a.params, f.name), getattr(b.params, f.name)), f.name


def test_inputs_are_left_alone(long: Scene) -> None:
    given = list(batches(long))[:2]
    copies = [b.map(torch.clone) for b in given]
    list(smplify(iter(given), SmplifyConfig(), long.rig, body()))
    for a, b in zip(given, copies, strict=True):
        assert torch.equal(a.keypoints.xy_px.nan_to_num(), b.keypoints.xy_px.nan_to_num())
        assert torch.equal(a.keypoints.confidence, b.keypoints.confidence)


@pytest.mark.parametrize("frames", [1, 2, 3, 25])
def test_very_short_recordings(frames: int) -> None:
    d = scene(12, "person", frames=frames, outliers=0, missing=0)
    out = run(d)
    assert joined(out, "valid").all()
    assert (joined(out, "joints") - d.joints).norm(dim=-1).mean() < 0.03


def test_no_recording_at_all() -> None:
    d = scene(12, "person", frames=1)
    assert list(smplify(iter(()), SmplifyConfig(), d.rig, body())) == []


def test_a_short_gap_is_bridged_and_marked() -> None:
    d = hidden(scene(14, "person", frames=96), 40, 55)
    out = run(d)
    valid, joints = joined(out, "valid").bool(), joined(out, "joints")
    assert (~valid).nonzero()[:, 0].tolist() == list(range(40, 55))
    assert joints.isfinite().all()
    speed = (joints[1:] - joints[:-1]).norm(dim=-1)
    truth = (d.joints[1:] - d.joints[:-1]).norm(dim=-1)
    assert speed.max() < truth.max() + 0.05  # no jump at re-entry
    assert (joints[40:55] - joints[39]).norm(dim=-1).max() > 1e-3  # not frozen
    assert (joints[56:] - d.joints[56:]).norm(dim=-1).mean() < 0.012
    assert torch.cat([b.reprojection_px for b in out], 1)[:, 40:55].isnan().all()


def test_a_long_gap_is_left_empty_and_the_person_found_again() -> None:
    d = hidden(scene(14, "person", frames=144), 30, 100)
    out = run(d, max_gap_s=0.25)
    valid, joints = joined(out, "valid").bool(), joined(out, "joints")
    there = joints.isfinite().flatten(1).all(1)
    assert there.tolist() == valid.tolist() == [t < 30 or t >= 100 for t in range(144)]
    assert (joints[100:] - d.joints[100:]).norm(dim=-1).mean() < 0.012
    rest = batches(d, first=72)
    again = list(smplify(rest, SmplifyConfig(max_gap_s=0.25), d.rig, body(), out[2].state))
    assert torch.equal(joined(again, "joints").nan_to_num(), joined(out[3:], "joints").nan_to_num())


@pytest.mark.parametrize("stop", [59, 60, 96])
def test_a_gap_is_bridged_only_if_its_end_is_near(stop: int) -> None:
    # Half a second after frame 29 is frame 59, more than the overlap behind the cut at 48.
    d = hidden(scene(14, "person", frames=96), 30, stop)
    out = run(d, max_gap_s=0.5)
    joints = joined(out, "joints")
    there = joints.isfinite().flatten(1).all(1)
    assert there.tolist() == [t < 30 or stop <= 59 or t >= stop for t in range(96)]
    if stop == 59:
        # Both ends hold the bridge: what the last one seen alone would have gone on to is further off.
        assert (joints[30:59] - d.joints[30:59]).norm(dim=-1).mean() < 0.1
    for chunk in (1, 2, 3):
        again = list(
            smplify(batches(d, first=24 * chunk), SmplifyConfig(), d.rig, body(), out[chunk - 1].state)
        )
        assert torch.equal(joined(again, "joints").nan_to_num(), joined(out[chunk:], "joints").nan_to_num())


def test_an_open_gap_holds_no_more_back_than_it_must() -> None:
    d = hidden(scene(14, "person", frames=240), 100, 240)
    seen = []

    def watched() -> Iterator[PoseBatch]:
        for b in batches(d):
            seen.append(b.start)
            yield b

    stage = smplify(watched(), SmplifyConfig(shape_frames=24, max_gap_s=0.5), d.rig, body())
    held = [(b.start, seen[-1]) for b in stage]
    # The gap opens in the chunk from 96 on: 30 frames from frame 99 end in the chunk from 120 on.
    assert held == [(0, 24), (24, 48), (48, 72), (72, 96), (96, 120), (120, 144)] + [
        (s, min(s + 24, 216)) for s in range(144, 240, 24)
    ]


def test_a_shape_from_many_short_sights() -> None:
    d = scene(14, "person", frames=96)
    for start in range(11, 96, 24):
        d = hidden(d, start, start + 13)
    out = run(d, max_gap_s=0.1)
    valid, joints = joined(out, "valid").bool(), joined(out, "joints")
    assert valid.tolist() == [t % 24 < 11 for t in range(96)]
    assert (joints[valid] - d.joints[valid]).norm(dim=-1).mean() < 0.012
    assert torch.equal(out[0].params.betas, out[-1].params.betas)


def test_a_short_sight_is_all_there_is() -> None:
    d = hidden(hidden(scene(14, "person", frames=96), 0, 22), 27, 96)
    out = run(d)
    assert joined(out, "valid").bool().tolist() == [22 <= t < 27 for t in range(96)]
    assert (joined(out, "joints")[22:27] - d.joints[22:27]).norm(dim=-1).mean() < 0.03


def test_who_is_hardly_seen_at_first_is_waited_for() -> None:
    d = hidden(scene(14, "person", frames=192), 5, 100)
    out = run(d, shape_frames=48)
    late = run(hidden(d, 0, 5), shape_frames=48)
    wanted = (late[-1].params.betas - d.betas.float()).norm()
    assert (out[-1].params.betas - d.betas.float()).norm() < wanted + 0.3


def test_every_frame_says_why() -> None:
    d = hidden(scene(14, "person", frames=96), 30, 40)
    d = hidden(d, 70, 96)
    d.confidence[0, 35, :3], d.xy[0, 35, :3] = 1, d.xy[0, 29, :3]
    d.xy[:, 20] = np.random.default_rng(0).uniform(0, 1000, d.xy[:, 20].shape)
    # Nobody's torso, and nothing known of the time about it.
    d.confidence[:, 90, :9], d.xy[:, 90, :9] = 1, np.random.default_rng(1).uniform(0, 1000, (4, 9, 2))
    status = joined(run(d, max_gap_s=0.25), "status").long().tolist()
    for t, s in enumerate(status):
        wanted = Status.OK if t < 70 else Status.NOT_SEEN
        if 30 <= t < 40:
            wanted = Status.FEW_KEYPOINTS if t == 35 else Status.BRIDGED
        special = {20: Status.FAR_OFF, 90: Status.NO_START}
        assert s == special.get(t, wanted), t


def test_nobody_is_never_invented() -> None:
    d = hidden(scene(14, "person", frames=60), 0, 60)
    out = run(d)
    assert len(out) == 3
    assert not joined(out, "valid").any()
    assert joined(out, "joints").isnan().all()
    assert out[0].params.betas.isnan().all()


def test_a_person_who_comes_late() -> None:
    d = hidden(scene(14, "person", frames=130), 0, 60)
    seen = []

    def watched() -> Iterator[PoseBatch]:
        for b in batches(d):
            seen.append(b.start)
            yield b

    stage = smplify(watched(), SmplifyConfig(), d.rig, body())
    out = [next(stage)]
    assert seen == [0, 24]  # an empty chunk waits for its look-ahead alone
    out += stage
    valid, joints = joined(out, "valid").bool(), joined(out, "joints")
    assert valid.tolist() == [t >= 60 for t in range(130)]
    assert joints[:60].isnan().all()
    assert (joints[60:] - d.joints[60:]).norm(dim=-1).mean() < 0.012
    again = list(smplify(batches(d, first=48), SmplifyConfig(), d.rig, body(), out[1].state))
    assert torch.equal(joined(again, "joints").nan_to_num(), joined(out[2:], "joints").nan_to_num())


def test_one_view_and_time_are_enough_for_a_while() -> None:
    d = hidden(scene(14, "person", frames=72), 30, 50, views=(1, 2, 3))
    out = run(d)
    assert joined(out, "valid").all()
    assert (joined(out, "joints")[30:50] - d.joints[30:50]).norm(dim=-1).mean() < 0.06


def test_two_cameras(long: Scene) -> None:
    two = replace(long, rig=long.rig.select(["c0", "c1"]), xy=long.xy[:2], confidence=long.confidence[:2])
    out = run(two)
    assert (joined(out, "joints") - long.joints).norm(dim=-1).mean() < 0.012


def test_a_frame_that_does_not_fit_is_not_valid() -> None:
    d = scene(14, "person", frames=48)
    d.xy[:, 20] = np.random.default_rng(0).uniform(0, 1000, d.xy[:, 20].shape)
    valid = joined(run(d), "valid").bool()
    assert (~valid).nonzero()[:, 0].tolist() == [20]


def test_any_window_length_and_no_look_ahead(long: Scene) -> None:
    short = replace(long, xy=long.xy[:, :60], confidence=long.confidence[:, :60])
    for window, overlap in ((60, 8), (7, 0), (10, 20)):
        out = run(short, window, overlap_frames=overlap)
        assert sum(len(b.valid) for b in out) == 60
        assert (joined(out, "joints") - long.joints[:60]).norm(dim=-1).mean() < 0.014


@pytest.mark.parametrize("seed", [302, 307])
def test_two_cameras_outliers_and_a_shape_of_its_own(seed: int) -> None:
    # With every third frame, or from the widest robust scale, the shape of the first ran away: 18 mm.
    d = scene(seed, "random", frames=192, views=2, outliers=0.15, missing=0.37)
    d = replace(d, xy=d.xy[:, :96], confidence=d.confidence[:, :96])
    assert (joined(run(d), "joints") - d.joints[:96]).norm(dim=-1).mean() < 0.008


def together(scenes: list[Scene], dtype: torch.dtype = torch.float32) -> Iterator[PoseBatch]:
    """Several people in one recording."""
    for parts in zip(*(batches(d) for d in scenes), strict=True):

        def beside(name: str, axis: int, parts: tuple[PoseBatch, ...] = parts) -> Tensor:
            return torch.cat([getattr(b.keypoints, name) for b in parts], axis)

        keypoints = replace(
            parts[0].keypoints,
            image_px=beside("image_px", 2),
            xy_px=beside("xy_px", 2).to(dtype),
            confidence=beside("confidence", 2).to(dtype),
            ids=torch.arange(len(parts)),
        )
        yield PoseBatch.blank(keypoints, 10)


def test_people_together_are_fitted_as_alone() -> None:
    # One comes late and leaves for a while, so that the runs of frames differ in length.
    scenes = [scene(12, "person", frames=48), scene(14, "person", frames=48), scene(15, "random", frames=48)]
    scenes[1] = hidden(hidden(scenes[1], 0, 10), 28, 33)
    # To the end: where fits stop within a looser tolerance depends on the last bits, by a millimetre.
    config = SmplifyConfig(shape_frames=16, tolerance=1e-5)

    def fitted(people: list[Scene], dtype: torch.dtype = torch.float64) -> list[FitBatch]:
        return list(smplify(together(people, dtype), config, scenes[0].rig, body()))

    out = fitted(scenes)
    single = fitted(scenes, torch.float32)
    for p, d in enumerate(scenes):
        alone = joined(fitted([d]), "joints")
        assert alone[10:].isfinite().all()
        beside = torch.cat([o.joints[:, p] for o in out]).double()
        assert torch.allclose(beside, alone, rtol=0, atol=1e-6, equal_nan=True)
        beside = torch.cat([o.joints[:, p] for o in single]).double()
        assert torch.allclose(beside, alone, rtol=0, atol=1e-3, equal_nan=True)
    assert list(smplify(iter(()), config, scenes[0].rig, body(), out[0].state)) == []


def test_people_together_go_through_the_solver_together(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(body: object, views: Views, *args: Any, **kwargs: Any) -> Fit:
        seen.append(tuple(views.confidence.shape[:3]))
        return fit(body, views, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(models.fit.windows, "fit", watched)
    scenes = [scene(12, "person", frames=72), scene(14, "person", frames=72)]
    list(smplify(together(scenes), SmplifyConfig(shape_frames=32), scenes[0].rig, body()))
    # Both shapes, with the first chunk; then windows of two held, 24 own and 8 later frames.
    assert seen == [(2, 4, 32), (2, 4, 34), (2, 4, 26)]


def test_a_detector_s_own_keypoints_are_learned_with_the_shape() -> None:
    # Every keypoint 15 mm from where the body has it, as a detector's definition is not the body's.
    d = scene(5402, "person", frames=96, bias_m=0.015)
    on, off = run(d, shape_frames=72), run(d, shape_frames=72, offset_sigma_mm=0.0)
    better, plain = ((joined(out, "joints") - d.joints).norm(dim=-1).mean() * 1000 for out in (on, off))
    assert better < 0.85 * plain
    assert better < 11
    offsets = [[b.state["smplify/0/offsets"] for b in out] for out in (on, off)]
    assert all(torch.equal(o, offsets[0][0]) for o in offsets[0])  # kept for the frames after
    assert offsets[0][0].view(25, 3).norm(dim=-1).max() < 0.03
    assert not any(o.any() for o in offsets[1])


def regressed(
    d: Scene, seed: int = 0, degrees: float = 12.0, turned: tuple[int, ...] = ()
) -> list[PoseBatch]:
    """What a regressor would say of single frames: the truth with noise; in some frames facing away."""
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.normal(0, np.radians(degrees) / 3**0.5, (*d.rotations.shape[:2], 3)))
    rotations = d.rotations @ roma.rotvec_to_rotmat(noise)
    rotations[list(turned), 0] = rotations[list(turned), 0] @ torch.diag(torch.tensor([-1.0, 1, -1]).double())
    transl = d.transl + torch.from_numpy(rng.normal(0, 0.05, d.transl.shape))
    out = []
    for b in batches(d):
        now = slice(b.start, b.start + len(b.transl))
        out.append(
            replace(
                b,
                global_orient=rotations[now, None, 0].float(),
                body_pose=rotations[now, None, 1:].float(),
                betas=d.betas.expand(len(b.transl), 1, -1).float(),
                transl=transl[now, None].float(),
                pose_sigma=torch.full_like(b.pose_sigma, 0.3),
            )
        )
    return out


def one_view(d: Scene, view: int = 0) -> Scene:
    rig = d.rig.select([d.rig.names[view]])
    return replace(d, rig=rig, xy=d.xy[[view]], confidence=d.confidence[[view]])


def root_relative_mm(joints: Tensor, d: Scene) -> float:
    off = (joints - joints[:, :1]) - (d.joints - d.joints[:, :1])
    return float(off.norm(dim=-1).mean()) * 1000


@pytest.fixture(scope="module")
def alone() -> Scene:
    return one_view(scene(5301, "person", frames=80))


def from_regressor(d: Scene, items: list[PoseBatch], **config: float) -> list[FitBatch]:
    return list(smplify(iter(items), SmplifyConfig(shape_frames=48, **config), d.rig, body()))


def test_one_camera_begins_at_the_regressor_and_ends_nearer_to_the_truth(alone: Scene) -> None:
    items = regressed(alone)
    out = from_regressor(alone, items)
    assert joined(out, "valid").all()
    rotations = torch.cat([torch.cat([b.global_orient, b.body_pose[:, 0]], 1) for b in items])
    before, _ = pose_keypoints(body().keypoints, rotations.double(), alone.betas, alone.transl)
    assert root_relative_mm(joined(out, "joints"), alone) < 0.6 * root_relative_mm(before, alone)
    # A large person further off looks the same: the shape stays the regressor's.
    assert torch.allclose(out[0].params.betas[0], alone.betas.float(), atol=1e-5)
    again = list(smplify(iter(items[1:]), SmplifyConfig(shape_frames=48), alone.rig, body(), out[0].state))
    assert torch.equal(joined(again, "joints"), joined(out[1:], "joints"))
    # No keypoint shows how wrists turn, so nothing would smooth what the regressor says of each frame.
    wrists = torch.cat([b.params.body_pose[:, 0, 19:] for b in out])
    assert torch.equal(wrists, torch.eye(3).expand_as(wrists))
    # Without a regressor nothing says where a single camera's person stands.
    nobody = from_regressor(alone, list(batches(alone)))
    assert (joined(nobody, "status") == Status.NO_START).all()


@pytest.mark.parametrize("turned", [tuple(range(80)), tuple(range(30, 45)), tuple(range(50, 80))])
def test_a_regressor_that_sees_people_from_behind_is_set_right(alone: Scene, turned: tuple[int, ...]) -> None:
    right = root_relative_mm(joined(from_regressor(alone, regressed(alone)), "joints"), alone)
    found = joined(from_regressor(alone, regressed(alone, turned=turned)), "joints")
    assert root_relative_mm(found, alone) < right + 10


def test_one_view_is_held_to_the_regressor_s_pose(alone: Scene) -> None:
    # Of what a picture does not show the regressor knows more than the prior: the truth, here.
    items = regressed(alone, degrees=0.0)
    near, free = (
        root_relative_mm(joined(from_regressor(alone, items, regressed_sigma=s), "joints"), alone)
        for s in (0.3, 1e3)
    )
    assert near < 0.8 * free
    # What counts is how sure the regressor is itself.
    unsure = [replace(b, pose_sigma=b.pose_sigma * 1e3) for b in items]
    found = root_relative_mm(joined(from_regressor(alone, unsure, regressed_sigma=1.0), "joints"), alone)
    assert found == pytest.approx(free, abs=0.01)


def test_several_views_start_where_there_is_less_energy(long: Scene, fitted: list[FitBatch]) -> None:
    part = replace(long, xy=long.xy[:, :48], confidence=long.confidence[:, :48])
    without = joined(run(part), "joints")
    # What a poor regressor says is of no use, and does no harm.
    poor = regressed(replace(part, rotations=long.rotations[:48], transl=long.transl[:48]), degrees=60.0)
    found = joined(list(smplify(iter(poor), SmplifyConfig(), part.rig, body())), "joints")
    assert torch.equal(found, without)
    # Where two views never see the same, it is all there is.
    apart = hidden(hidden(part, 0, 24, (1, 2, 3)), 24, 48, (0, 2, 3))
    assert not joined(run(apart), "valid").any()
    good = regressed(replace(apart, rotations=long.rotations[:48], transl=long.transl[:48]))
    found = joined(list(smplify(iter(good), SmplifyConfig(), part.rig, body())), "joints")
    assert (found - long.joints[:48]).norm(dim=-1).mean() < 0.1


def test_who_is_first_seen_by_one_of_several_cameras_is_measured_by_two(long: Scene) -> None:
    part = hidden(long, 0, 60, (1, 2, 3))
    items = [
        # Somebody else's shape, as a net that sees one view may say: 2 standard deviations off.
        replace(b, betas=b.betas + torch.tensor([2.0, -2.0, *[0.0] * 8]))
        for b in regressed(part)
    ]
    seen = []

    def watched() -> Iterator[PoseBatch]:
        for b in items:
            seen.append(b.start)
            yield b

    config = SmplifyConfig(shape_frames=40)
    stage = smplify(watched(), config, part.rig, body())
    out = [next(stage)]
    assert seen == [0, 24, 48, 72, 96]  # twice 40 frames show 20 by two views, three times 40 show 60
    out += stage
    assert joined(out, "valid").all()
    assert (joined(out, "joints")[70:] - long.joints[70:]).norm(dim=-1).mean() < 0.007
    assert (out[0].params.betas[0, :2] - long.betas[:2]).norm() < 1
    again = list(smplify(iter(items[2:]), config, part.rig, body(), out[1].state))
    for a, b in zip(again, out[2:], strict=True):
        assert torch.equal(a.joints, b.joints)
        assert a.state.keys() == b.state.keys()
        assert all(torch.equal(x.nan_to_num(), b.state[n].nan_to_num()) for n, x in a.state.items())


def test_two_cameras_that_never_see_a_person_together_are_waited_for_in_vain(long: Scene) -> None:
    part = hidden(long, 0, 150, (1, 2, 3))
    items = regressed(part)
    seen = []

    def watched() -> Iterator[PoseBatch]:
        for b in items:
            seen.append(b.start)
            yield b

    stage = smplify(watched(), SmplifyConfig(shape_frames=20), part.rig, body())
    out = [next(stage)]
    assert seen[-1] == 72  # four times 20 frames, no more
    out += stage
    assert torch.allclose(out[0].params.betas[0], long.betas.float(), atol=1e-5)
    assert torch.equal(out[0].params.betas, out[-1].params.betas)


def test_jitter_is_that_of_the_movement(long: Scene, fitted: list[FitBatch]) -> None:
    assert jitter_mm(joined(fitted, "joints")) < 1.4 * jitter_mm(long.joints)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="extra"):
        SmplifyConfig(window=3)  # type: ignore[call-arg]


def test_defaults_are_the_solver_s_own() -> None:
    assert SmplifyConfig().weights() == Weights()
    assert SmplifyConfig().schedule().stages == Schedule().stages[1:]


def test_every_key_is_explained() -> None:
    assert all(f.description for f in SmplifyConfig.model_fields.values())
