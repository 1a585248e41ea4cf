"""The keypoints stage: batches of the recording's person, the same after any restart, in bounded memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import BALANCING, figure, ring, seen, write_people, write_recording

from models.geometry.triangulation import triangulate
from pipeline.batches import KeypointBatch
from pipeline.recording import Recording, find_recording
from pipeline.skeleton import BODY_25
from stages.inspect import inspect
from stages.keypoints import KeypointsConfig, keypoints

RIG = ring(4)
TIME = np.arange(60) / 30
BODY = figure(TIME)
PERSON = seen(RIG, BODY, noise_px=1)


def joined(batches: list[KeypointBatch], name: str) -> torch.Tensor:
    axis = 0 if name == "time_s" else 1
    return torch.cat([getattr(b, name) for b in batches], axis)


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


def test_batches_are_whole_windows(recording: Recording) -> None:
    batches = list(keypoints(recording, KeypointsConfig(window=16)))
    assert [b.start for b in batches] == [0, 16, 32, 48]
    assert [len(b.time_s) for b in batches] == [16, 16, 16, 12]
    assert all(b.rate == 30 for b in batches)
    assert np.allclose(joined(batches, "time_s"), TIME)
    assert batches[0].xy_px.shape == (4, 16, 1, 25, 2)
    assert {b.image_px.dtype for b in batches} == {torch.float32}
    assert {b.confidence.dtype for b in batches} == {torch.float32}
    assert {b.anchor.dtype for b in batches} == {torch.float64}


def test_it_is_the_person_in_every_view(recording: Recording) -> None:
    batches = list(keypoints(recording, KeypointsConfig()))
    image, confidence = joined(batches, "image_px")[:, :, 0].numpy(), joined(batches, "confidence")[:, :, 0]
    there = (confidence > 0).any(-1).numpy()
    assert np.argwhere(~there).tolist() == [[2, 10], [2, 11], [2, 12]]
    assert np.abs(image - PERSON[..., :2])[there].max() < 2e-3
    assert np.allclose(confidence[torch.from_numpy(there)], PERSON[..., 2][there], atol=1e-3)


def test_missing_is_nan_and_zero(recording: Recording) -> None:
    batch = next(keypoints(recording, KeypointsConfig()))
    nan = torch.isnan(batch.image_px).any(-1)
    assert torch.equal(nan, torch.isnan(batch.xy_px).any(-1))
    assert torch.equal(nan, batch.confidence == 0)
    assert nan.any()
    assert not (batch.image_px == 0).any()


def test_undistorted_points_are_those_of_the_pinhole_camera(recording: Recording) -> None:
    batches = list(keypoints(recording, KeypointsConfig()))
    xy, confidence = joined(batches, "xy_px")[:, :, 0].numpy(), joined(batches, "confidence")[:, :, 0].numpy()
    truth = np.stack([BODY[name] for name in BODY_25.names], 1)
    assert np.nanmax(np.abs(xy - RIG.project(truth))) < 6  # pixels of noise, 5 sigma
    assert np.nanmedian(np.linalg.norm(triangulate(RIG, xy, confidence).points - truth, axis=-1)) < 0.004


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_restarting_gives_the_same_bits(recording: Recording, chunk: int) -> None:
    cfg = KeypointsConfig(window=16)
    whole = list(keypoints(recording, cfg))
    again = list(keypoints(recording, cfg, start_chunk=chunk, anchor=whole[chunk - 1].anchor))
    assert len(again) == len(whole) - chunk
    for a, b in zip(again, whole[chunk:], strict=True):
        assert a.start == b.start
        for name in ("time_s", "image_px", "xy_px", "confidence", "anchor"):
            assert getattr(a, name).numpy().tobytes() == getattr(b, name).numpy().tobytes(), name


def test_a_start_past_the_end_gives_nothing(recording: Recording) -> None:
    assert list(keypoints(recording, KeypointsConfig(), start_chunk=3)) == []


def test_points_of_low_confidence_are_missing(recording: Recording) -> None:
    batch = next(keypoints(recording, KeypointsConfig(min_confidence=0.75)))
    kept = batch.confidence[batch.confidence > 0]
    assert kept.min() >= 0.75
    assert len(kept) < 0.7 * batch.confidence.numel()


def test_points_that_the_lens_model_cannot_undo_are_missing(recording: Recording) -> None:
    far = replace(recording, rig=replace(recording.rig, dist=recording.rig.dist * 40))
    batch = next(keypoints(far, KeypointsConfig()))
    seen_points = batch.confidence > 0
    assert torch.isfinite(batch.xy_px[seen_points]).all()
    assert torch.isnan(batch.xy_px[~seen_points]).all()
    assert torch.isnan(batch.image_px[~seen_points]).all()


def test_memory_does_not_grow_with_length(recording: Recording) -> None:
    def peak(window: int, count: int) -> int:
        tracemalloc.start()
        stream = keypoints(recording, KeypointsConfig(window=window))
        for _ in range(count):
            next(stream)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(6, 10) < 1.1 * peak(6, 2)


@pytest.mark.skipif(not BALANCING.exists(), reason="needs the shared balancing recording")
def test_on_a_real_recording_every_view_shows_the_person_on_whom_all_agree() -> None:
    recording = inspect(find_recording(BALANCING))
    batches = list(keypoints(recording, KeypointsConfig()))
    xy, confidence = joined(batches, "xy_px")[:, :, 0].numpy(), joined(batches, "confidence")[:, :, 0].numpy()
    assert (confidence > 0).any(-1).mean(1).min() >= 0.98
    found = triangulate(recording.rig, xy, confidence)
    # The README of the recording: 9.5 px mean over all; a bystander would be hundreds off.
    assert np.nanmean(found.residual_px) < 11
    per_frame = np.array([np.nanmedian(r) for r in found.residual_px.reshape(-1, 25)])
    assert per_frame.max() < 40
    torso = np.linalg.norm(found.points[:, 1] - found.points[:, 8], axis=-1)
    assert np.abs(torso / np.median(torso) - 1).max() < 0.1
