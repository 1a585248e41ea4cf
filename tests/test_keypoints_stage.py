"""The source of detections from keypoint files: everybody in every view, in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import figure, ring, seen, write_people, write_recording, write_video

from models.geometry.point_order import TOP_CONFIDENCE
from pipeline.formats.keypoints.files import MIN_CONFIDENCE
from pipeline.recording import Recording, find_recording
from stages.inspect import inspect
from stages.keypoints import KeypointsConfig, keypoints

RIG = ring(4)
TIME = np.arange(60) / 30
PEOPLE = seen(RIG, figure(TIME)), seen(RIG, figure(TIME, (1.2, 0.8), 1.0), seed=7)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Two people in two views, one in the others; one file gone."""
    folder = tmp_path_factory.mktemp("recording")
    write_recording(folder, RIG, PEOPLE[:1])
    for v, name in enumerate(RIG.names[:2]):
        for t in range(60):
            write_people(folder / "keypoints" / name, name, t, [p[v, t] for p in PEOPLE])
    (folder / "recording.yaml").write_text("fps: 30")
    (folder / "keypoints/cam03/cam03_000000000010_keypoints.json").unlink()
    return inspect(find_recording(folder))


def test_batches_are_whole_windows(recording: Recording) -> None:
    batches = list(keypoints(recording, KeypointsConfig(window=16)))
    assert [b.start for b in batches] == [0, 16, 32, 48]
    assert [b.time_s.shape for b in batches] == [(4, 16)] * 3 + [(4, 12)]
    assert all(b.rate == 30 for b in batches)
    assert batches[0].image_px.shape == (4, 16, 2, 25, 2)
    assert {b.image_px.dtype for b in batches} == {b.confidence.dtype for b in batches} == {torch.float32}
    later = list(keypoints(recording, KeypointsConfig(window=16), start_chunk=3))
    assert [b.start for b in later] == [48]
    assert torch.equal(later[0].image_px.nan_to_num(), batches[3].image_px.nan_to_num())
    assert list(keypoints(recording, KeypointsConfig(), start_chunk=3)) == []


def test_it_is_everybody_in_every_view(recording: Recording) -> None:
    batches = list(keypoints(recording, KeypointsConfig()))
    image = torch.cat([b.image_px for b in batches], 1).numpy()
    there = (torch.cat([b.confidence for b in batches], 1) > 0).any(-1).numpy()
    assert there[:2].all()
    assert not there[2:, :, 1].any()
    assert np.argwhere(~there[2:, :, 0]).tolist() == [[0, 10]]
    for p, person in enumerate(PEOPLE):
        assert np.abs(image[:, :, p] - person[..., :2])[there[:, :, p]].max() < 2e-3


def test_missing_is_nan_and_zero(recording: Recording) -> None:
    batch = next(keypoints(recording, KeypointsConfig()))
    nan = torch.isnan(batch.image_px).any(-1)
    assert torch.equal(nan, batch.confidence == 0)
    assert nan.any()
    assert not (batch.image_px == 0).any()


def test_times_are_those_of_each_camera(tmp_path: Path) -> None:
    rig = ring(3)
    write_recording(tmp_path, rig, [seen(rig, figure(TIME))])
    stamps = np.cumsum(np.full(60, 1 / 30)) + 0.004 * np.sin(np.arange(60)) + 5
    write_video(tmp_path / "videos/cam01.mp4", 60, size=(1280, 720), times_s=stamps)
    write_video(tmp_path / "videos/cam02.mp4", 60, size=(1280, 720))
    (tmp_path / "recording.yaml").write_text("frame_offset: {cam02: 7}")
    recording = inspect(find_recording(tmp_path))
    time_s = torch.cat([b.time_s for b in keypoints(recording, KeypointsConfig())], 1).numpy()
    assert np.abs(time_s[0] - (stamps - stamps[0])[: time_s.shape[1]]).max() < 1e-3
    assert np.abs(time_s[1] - (7 + np.arange(time_s.shape[1])) / 30).max() < 0.02
    assert time_s[1, 0] == pytest.approx(7 / 30, abs=1e-3)
    assert np.allclose(time_s[2], np.arange(time_s.shape[1]) / float(recording.timeline.rates[2]))


def test_points_of_low_confidence_are_missing(recording: Recording) -> None:
    everything = next(keypoints(recording, KeypointsConfig(min_confidence=0))).confidence
    default = next(keypoints(recording, KeypointsConfig())).confidence
    some = next(keypoints(recording, KeypointsConfig(min_confidence=0.65))).confidence
    assert default[default > 0].min() >= MIN_CONFIDENCE
    assert torch.equal(some, torch.where(everything >= 0.65, everything, 0))
    assert 0.2 < (some > 0).double().mean() / (everything > 0).double().mean() < 0.8


def rescaled(folder: Path, change: dict[int, float], outlier: float | None = None) -> torch.Tensor:
    """Confidences of two people as read, when those of some cameras are written on another scale."""
    people = [p.copy() for p in PEOPLE]
    for v, factor in change.items():
        for p in people:
            p[v, ..., 2] *= factor
    if outlier is not None:
        people[0][1, 30, 4, 2] = outlier
    recording = inspect(find_recording(write_recording(folder, RIG, people)))
    return torch.cat([b.confidence for b in keypoints(recording, KeypointsConfig())], 1)


def test_the_scale_of_the_files_does_not_matter(tmp_path: Path) -> None:
    plain = rescaled(tmp_path / "plain", {})
    for v in range(4):
        assert np.percentile(plain[v][plain[v] > 0], 95) == pytest.approx(TOP_CONFIDENCE, abs=0.02)
    one = rescaled(tmp_path / "one", {1: 8.0})
    all_ = rescaled(tmp_path / "all", dict.fromkeys(range(4), 0.22))
    odd = rescaled(tmp_path / "odd", {}, outlier=10.0)
    assert (one - plain).abs().max() < 0.01
    assert (all_ - plain).abs().max() < 0.01
    assert (odd - plain).abs().flatten().topk(2).values[1] < 0.01
    assert odd.max() == 1


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
