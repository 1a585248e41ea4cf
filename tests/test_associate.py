"""The associate stage: the recording's person in every view, the same after any restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import BALANCING, figure, ring, seen, write_people, write_recording

from models.geometry.association import MatchConfig
from models.geometry.triangulation import triangulate
from pipeline.batches import DetectionBatch, KeypointBatch, State
from pipeline.recording import Recording, find_recording
from pipeline.skeleton import BODY_25
from stages.associate import associate
from stages.inspect import inspect
from stages.keypoints import KeypointsConfig, keypoints

RIG = ring(4)
MAIN = MatchConfig(people="main")
TIME = np.arange(60) / 30
BODY = figure(TIME)
PERSON = seen(RIG, BODY, noise_px=1)


def run(
    recording: Recording, cfg: KeypointsConfig | None = None, start: int = 0, state: State | None = None
) -> Iterator[KeypointBatch]:
    """The stage behind its source."""
    source = keypoints(recording, cfg or KeypointsConfig(), start)
    return associate(source, MAIN, recording.rig, state)


def joined(batches: list[KeypointBatch], name: str) -> torch.Tensor:
    axis = 0 if name == "time_s" else 1
    return torch.cat([getattr(b, name) for b in batches], axis)


def assert_same(a: KeypointBatch, b: KeypointBatch) -> None:
    assert a.start == b.start
    for name in ("ids", "time_s", "image_px", "xy_px", "confidence"):
        assert getattr(a, name).numpy().tobytes() == getattr(b, name).numpy().tobytes(), name
    assert a.state.keys() == b.state.keys()
    for name, x in a.state.items():
        assert x.numpy().tobytes() == b.state[name].numpy().tobytes(), name


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A bystander in two views, before or after the person in the file; some files gone, empty or cut off."""
    folder = tmp_path_factory.mktemp("recording")
    bystander = seen(RIG, figure(TIME, (1.2, 0.8), 1.0), seed=7)
    for v, name in enumerate(RIG.names):
        for t in range(60):
            people = [PERSON[v, t], bystander[v, t]] if v < 2 else [PERSON[v, t]]
            write_people(folder / "keypoints" / name, name, t, people[:: 1 if (t // 5) % 2 else -1])
    write_recording(folder / "unused", RIG, [PERSON[:, :1]])
    (folder / "unused" / "calibration.toml").rename(folder / "calibration.toml")
    (folder / "recording.yaml").write_text("fps: 30")
    file = str(folder / "keypoints" / "cam03" / "cam03_{:012d}_keypoints.json")
    Path(file.format(10)).unlink()
    Path(file.format(11)).write_text('{"people": [{}]}')
    Path(file.format(12)).write_text('{"people": [{"pose_key')
    return inspect(find_recording(folder))


def test_batches_are_those_of_the_detections(recording: Recording) -> None:
    batches = list(run(recording, KeypointsConfig(window=16)))
    assert [b.start for b in batches] == [0, 16, 32, 48]
    assert [len(b.time_s) for b in batches] == [16, 16, 16, 12]
    assert all(b.rate == 30 for b in batches)
    assert np.allclose(joined(batches, "time_s"), TIME)
    assert batches[0].xy_px.shape == (4, 16, 1, 25, 2)
    assert {b.image_px.dtype for b in batches} == {torch.float32}
    assert {b.confidence.dtype for b in batches} == {torch.float32}
    assert {b.xy_px.dtype for b in batches} == {torch.float32}
    assert [b.ids.tolist() for b in batches] == [[0]] * 4


def test_it_is_the_person_in_every_view(recording: Recording) -> None:
    batches = list(run(recording))
    image, confidence = joined(batches, "image_px")[:, :, 0].numpy(), joined(batches, "confidence")[:, :, 0]
    there = (confidence > 0).any(-1).numpy()
    assert np.argwhere(~there).tolist() == [[2, 10], [2, 11], [2, 12]]
    assert np.abs(image - PERSON[..., :2])[there].max() < 2e-3
    for v, scale in enumerate(recording.point_order.confidence_scale):
        want = PERSON[v, ..., 2][there[v]] / scale
        assert np.allclose(confidence[v][torch.from_numpy(there[v])], want, atol=2e-3)


def test_missing_is_nan_and_zero(recording: Recording) -> None:
    batch = next(run(recording))
    nan = torch.isnan(batch.image_px).any(-1)
    assert torch.equal(nan, torch.isnan(batch.xy_px).any(-1))
    assert torch.equal(nan, batch.confidence == 0)
    assert nan.any()
    assert not (batch.image_px == 0).any()


def test_undistorted_points_are_those_of_the_pinhole_camera(recording: Recording) -> None:
    batches = list(run(recording))
    xy, confidence = joined(batches, "xy_px")[:, :, 0].numpy(), joined(batches, "confidence")[:, :, 0].numpy()
    truth = np.stack([BODY[name] for name in BODY_25.names], 1)
    assert np.nanmax(np.abs(xy - RIG.project(truth))) < 6  # pixels of noise, 5 sigma
    assert np.nanmedian(np.linalg.norm(triangulate(RIG, xy, confidence).points - truth, axis=-1)) < 0.004


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_restarting_gives_the_same_bits(recording: Recording, chunk: int) -> None:
    cfg = KeypointsConfig(window=16)
    whole = list(run(recording, cfg))
    again = list(run(recording, cfg, chunk, whole[chunk - 1].carried))
    assert len(again) == len(whole) - chunk
    for a, b in zip(again, whole[chunk:], strict=True):
        assert_same(a, b)


def test_a_live_source_gives_the_same_bits(recording: Recording) -> None:
    """Batches do not depend on what comes after them."""
    cfg = KeypointsConfig(window=16)
    whole = list(run(recording, cfg))
    detections = list(keypoints(recording, cfg))
    for count in range(1, 4):
        prefix = iter(detections[:count])
        live = list(associate(prefix, MAIN, recording.rig))
        assert len(live) == count
        for a, b in zip(live, whole, strict=False):
            assert_same(a, b)


def detections(people: np.ndarray, window: int = 24) -> Iterator[DetectionBatch]:
    """People (V, T, D, K, 3) as the source gives them."""
    points = torch.from_numpy(people).float()
    for a in range(0, points.shape[1], window):
        part = points[:, a : a + window]
        time_s = torch.arange(a, a + part.shape[1]).double().expand(len(people), -1) / 30
        yield DetectionBatch(a, 30, time_s, part[..., :2], part[..., 2].nan_to_num())


def test_a_bystander_is_somebody_else_than_the_person_who_left() -> None:
    time = np.arange(480) / 30
    people = np.stack([seen(RIG, figure(time)), seen(RIG, figure(time, (1.4, 1.4), 1.0), seed=7)], 2)
    people[:, :, 1, :, 2] *= 0.9  # confidence tells the two apart at the start
    people[:, 60:, 0] = np.nan, np.nan, 0
    out = list(associate(detections(people), MatchConfig(people="main", return_s=4), RIG))
    ids = [b.ids.tolist() for b in out]
    assert ids[:2] == [[0], [0]]
    assert ids[4] == [0, 1]
    assert ids[-1] == [1], "who has gone for good is left out"
    whole = [b.people(torch.tensor([0, 1])) for b in out]
    xy, there = joined(whole, "image_px").numpy(), joined(whole, "confidence").numpy() > 0
    assert there[:, :60, 0].any(-1).all()
    assert not there[:, 60:, 0].any()
    assert not there[:, :89, 1].any()
    assert there[:, 91:, 1].any(-1).all()
    for p, frames in ((0, slice(0, 60)), (1, slice(91, None))):
        assert np.abs(xy[:, frames, p] - people[:, frames, p, :, :2]).max() < 1e-3
    rest = iter([*detections(people)][4:])
    again = list(associate(rest, MatchConfig(people="main", return_s=4), RIG, out[3].carried))
    for a, b in zip(again, out[4:], strict=True):
        assert_same(a, b)


def test_nobody_is_a_batch_without_people() -> None:
    for count in (0, 1):
        nothing = np.zeros((4, 30, count, 25, 3))
        nothing[..., :2] = np.nan
        out = list(associate(detections(nothing), MAIN, RIG))
        assert [b.xy_px.shape for b in out] == [(4, 24, 0, 25, 2), (4, 6, 0, 25, 2)]
        assert [b.ids.tolist() for b in out] == [[], []]


def test_people_have_the_keypoints_of_the_detections() -> None:
    other = replace(BODY_25, bones=BODY_25.bones[:8])
    people = (replace(batch, skeleton=other) for batch in detections(PERSON[:, :, None]))
    assert [b.skeleton for b in associate(people, MAIN, RIG)] == [other] * 3


def test_points_that_the_lens_model_cannot_undo_are_missing(recording: Recording) -> None:
    far = replace(recording, rig=replace(recording.rig, dist=recording.rig.dist * 40))
    batch = next(run(far))
    seen_points = batch.confidence > 0
    assert torch.isfinite(batch.xy_px[seen_points]).all()
    assert torch.isnan(batch.xy_px[~seen_points]).all()
    assert torch.isnan(batch.image_px[~seen_points]).all()


@pytest.mark.skipif(not BALANCING.exists(), reason="needs the shared balancing recording")
def test_on_a_real_recording_every_view_shows_the_person_on_whom_all_agree() -> None:
    recording = inspect(find_recording(BALANCING))
    batches = list(run(recording))
    xy, confidence = joined(batches, "xy_px")[:, :, 0].numpy(), joined(batches, "confidence")[:, :, 0].numpy()
    assert (confidence > 0).any(-1).mean(1).min() >= 0.98
    found = triangulate(recording.rig, xy, confidence)
    # The README of the recording: 9.5 px mean over all; a bystander would be hundreds off.
    assert np.nanmean(found.residual_px) < 11
    per_frame = np.array([np.nanmedian(r) for r in found.residual_px.reshape(-1, 25)])
    assert per_frame.max() < 40
    torso = np.linalg.norm(found.points[:, 1] - found.points[:, 8], axis=-1)
    assert np.abs(torso / np.median(torso) - 1).max() < 0.1


@pytest.mark.skipif(not BALANCING.exists(), reason="needs the shared balancing recording")
def test_on_a_real_recording_the_bystander_changes_nothing_of_the_person() -> None:
    recording = inspect(find_recording(BALANCING))
    source = [*keypoints(recording, KeypointsConfig())]
    alone = [b.people(torch.tensor([0])) for b in associate(iter(source), MAIN, recording.rig)]
    both = list(associate(iter(source), MatchConfig(), recording.rig))
    assert {*torch.cat([b.ids for b in both]).tolist()} == {0, 1}
    for name in ("image_px", "xy_px", "confidence"):
        whole = joined([b.people(torch.tensor([0, 1])) for b in both], name)
        np.testing.assert_array_equal(whole[:, :, 0], joined(alone, name)[:, :, 0], name)
    shown = (whole[:, :, 1] > 0).any(
        -1
    )  # of the confidences: she is behind the person for two of the cameras
    assert shown[:2].all(0).sum() > 90
    assert not shown[2:].any()
