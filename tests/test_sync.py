"""Clocks of a recording's cameras: set before a run, kept beside its results, stated, taken from a file."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from clocks import World, film, people_at, swaying, treadmill, write_filmed, write_shifted
from recordings import BALANCING, state
from sounds import heard, scene, write_sounding

from models.geometry.between_frames import between_frames, people_between
from models.geometry.synchronisation import STILL, Clocks
from pipeline.batch.dataset import fingerprint
from pipeline.clocks import Clock, SyncFile, read_sync, write_sync
from pipeline.errors import InputError
from pipeline.inputs import identity_of_inputs
from pipeline.recording import Recording, find_recording
from pipeline.results import SYNC
from stages import sync
from stages.graph import RunConfig, run
from stages.inspect import inspect
from stages.keypoints import KeypointsConfig, keypoints
from stages.sync import SyncConfig, estimate_clocks, synchronise

RATE = 30
LATE = np.array([0.0, 0.31, -0.2])


@pytest.fixture(scope="module")
def out_of_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    filmed = film(people_at(1, 8, 21), 8, 21, (RATE,) * 3, offset_s=LATE)
    return write_filmed(tmp_path_factory.mktemp("sync") / "rec", filmed)


def ready(folder: Path) -> Recording:
    return inspect(find_recording(folder))


def test_clocks_are_set_written_and_read_again(out_of_step: Path, tmp_path: Path) -> None:
    recording = ready(out_of_step)
    assert recording.timeline.later is None
    moved, synced = synchronise(recording, tmp_path, SyncConfig())
    offsets = np.array([c.offset_s for c in moved.clocks])
    assert np.abs(offsets - LATE).max() < 0.2 / RATE
    assert [c.method for c in moved.clocks] == ["reference", "rays", "rays"]
    assert "clocks_set" in {f.code for f in moved.findings}
    assert moved.timeline.later is not None
    kept = (tmp_path / SYNC).read_bytes()
    again, same = synchronise(recording, tmp_path, SyncConfig())
    assert same == synced
    assert again.clocks == moved.clocks
    assert (tmp_path / SYNC).read_bytes() == kept
    # Other clocks are other results.
    assert identity_of_inputs(moved) != identity_of_inputs(recording)

    # The file is one that --sync takes, and its entries stand in recording.yaml.
    by_file, _ = synchronise(recording, tmp_path / "other", SyncConfig(use=str(tmp_path / SYNC)))
    assert [c.numbers for c in by_file.clocks] == [c.numbers for c in moved.clocks]
    entries = {n: c.model_dump(exclude_none=True) for n, c in read_sync(tmp_path / SYNC).sync.items()}
    stated = tmp_path / "stated"
    stated.symlink_to(out_of_step)
    try:
        state(out_of_step, yaml.safe_dump({"fps": RATE, "sync": entries}))
        by_hand = ready(stated)
        assert np.array_equal(by_hand.timeline.frame_index, moved.timeline.frame_index)
        kept_as_stated, how = synchronise(by_hand, tmp_path / "third", SyncConfig())
        assert kept_as_stated.clocks == by_hand.clocks
        assert "recording.yaml" in how.how
        state(out_of_step, yaml.safe_dump({"fps": RATE, "frame_offset": {"cam02": -9}}))
        (tmp_path / "fourth").mkdir()
        finer, _ = synchronise(ready(stated), tmp_path / "fourth", SyncConfig())
        assert np.abs(np.array([c.offset_s for c in finer.clocks]) - LATE).max() < 0.2 / RATE
    finally:
        state(out_of_step, f"fps: {RATE}")


def test_off_leaves_clocks_alone(out_of_step: Path, tmp_path: Path) -> None:
    recording = ready(out_of_step)
    same, _ = synchronise(recording, tmp_path, SyncConfig(use="off"))
    assert same.clocks == recording.clocks
    assert not (tmp_path / SYNC).exists()


def test_detections_are_those_of_the_common_moments(out_of_step: Path, tmp_path: Path) -> None:
    recording = ready(out_of_step)
    moved, _ = synchronise(recording, tmp_path, SyncConfig())
    batches = list(keypoints(moved, KeypointsConfig()))
    xy = np.concatenate([b.image_px.numpy() for b in batches], 1)[:, :, 0]
    # The first camera's frames are the common moments; another's lie between two of its own.
    own = film(people_at(1, 8, 21), 8, 21, (RATE,) * 3, offset_s=np.zeros(3))
    first = moved.timeline.frame_index[0, 0]
    truth = np.stack([o.xy_px[first : first + xy.shape[1], 0] for o in own.seen])
    miss = np.linalg.norm(xy - truth, axis=-1)
    nearest = np.linalg.norm(moved.people(np.arange(len(moved)))[:, :, 0, :, :2] - truth, axis=-1)
    assert np.nanmedian(miss[1:]) < 1.05 * np.nanmedian(nearest[1:])


def test_cameras_without_a_calibration(out_of_step: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rec"
    shutil.copytree(out_of_step, folder)
    (folder / "calibration.toml").unlink()
    state(folder, yaml.safe_dump({"fps": RATE, "picture_size": [960, 720]}))
    recording = ready(folder)
    assert not recording.placed
    moved, _ = synchronise(recording, tmp_path, SyncConfig())
    assert [c.method for c in moved.clocks] == ["reference", "epipolar lines", "epipolar lines"]
    assert np.abs(np.array([c.offset_s for c in moved.clocks]) - LATE).max() < 0.25 / RATE


def test_cameras_that_are_placed_show_how_clocks_drift(tmp_path: Path) -> None:
    drift = np.array([0.0, 2e-3])
    filmed = film(people_at(1, 30, 23), 30, 23, (RATE,) * 2, offset_s=LATE[:2], drift=drift)
    folder = write_filmed(tmp_path / "rec", filmed)
    (folder / "calibration.toml").unlink()
    state(folder, yaml.safe_dump({"fps": RATE, "picture_size": [960, 720]}))
    recording = ready(folder)

    def place(moved: Recording) -> Recording:
        (by_lines,) = (c for c in moved.clocks if c.method == "epipolar lines")
        assert by_lines.drift_ppm == 0
        return replace(moved, rig=filmed.rig, calibration=tmp_path)

    moved, synced = synchronise(recording, tmp_path, SyncConfig(), place)
    assert [c.method for c in moved.clocks] == ["reference", "rays"]
    assert abs(moved.clocks[1].drift_ppm / 2000 - 1) < 0.1
    for own_s in (0, 30):
        late = moved.clocks[1].moment(np.array(own_s)) - (LATE[1] + (1 + drift[1]) * own_s)
        assert abs(late) < 0.25 / RATE
    assert not moved.placed
    assert "cam02 was started 0.31" in synced.findings[0].sentence

    def no_place(moved: Recording) -> Recording:
        raise InputError("the cameras move")

    (tmp_path / SYNC).unlink()
    rough, _ = synchronise(recording, tmp_path, SyncConfig(), no_place)
    assert [c.method for c in rough.clocks] == ["reference", "epipolar lines"]


def told(
    offset_s: tuple[float, ...], drift: tuple[float, ...], refused: tuple[str | None, ...] = (None,) * 3
) -> Clocks:
    """An estimate as ``find_clocks`` gives it."""
    sigma_s, drift_sigma = np.full(3, 1e-3), np.full(3, 1e-6)
    return Clocks(
        np.array(offset_s), np.array(drift), sigma_s, drift_sigma, refused, ((),) * 3, np.zeros(1),
        np.zeros((3, 1)), "m",
    )  # fmt: skip


def test_what_the_first_pass_tells_of_a_camera_that_the_second_refuses_stays(
    out_of_step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "rec"
    shutil.copytree(out_of_step, folder)
    (folder / "calibration.toml").unlink()
    state(folder, yaml.safe_dump({"fps": RATE, "picture_size": [960, 720]}))
    passes = [
        told((0, 0, -0.2), (0, 0, 0)),
        told((0, 0, 0), (0, 2e-3, 0), (None, None, STILL)),
    ]
    monkeypatch.setattr(sync, "_estimate_by_movement", lambda *_: passes.pop(0))
    _, synced = synchronise(ready(folder), tmp_path, SyncConfig(audio="off"), lambda moved: moved)
    assert not passes
    assert [c.numbers for c in synced.clocks] == [(0, 0), (0, 2000), (-0.2, 0)]
    assert [c.method for c in synced.clocks] == ["reference", "epipolar lines", "epipolar lines"]
    assert synced.clocks[2].sigma_s == 0.001
    assert [f.code for f in synced.findings] == ["clocks_set"]
    assert "cam03 was started 0.200 s before cam01; clocks set by" in synced.findings[0].sentence


def test_a_drift_alone_is_told_as_one(
    out_of_step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "_estimate_by_movement", lambda *_: told((0, 1e-5, 0), (0, -5e-4, 0)))
    found = estimate_clocks(ready(out_of_step), SyncConfig(audio="off"))
    assert "the clock of cam02 gains 30.0 ms a minute on that of cam01; clocks" in found.findings[0].sentence
    assert "was started" not in found.findings[0].sentence


def test_cameras_in_step_whose_stated_clocks_differ_are_not_called_out_of_step(
    out_of_step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = ready(out_of_step)
    stated = replace(recording, clocks=(Clock(), Clock(offset_s=0.3), Clock()))
    monkeypatch.setattr(sync, "_estimate_by_movement", lambda *_: told((0, -0.3, 0), (0, 0, 0)))
    found = estimate_clocks(stated, SyncConfig(audio="off"))
    assert [c.numbers for c in found.clocks] == [(0, 0)] * 3
    assert found.findings[0].sentence.startswith("the cameras are in step, though other clocks are stated; ")


def test_somebody_who_stands_still_is_told_and_nothing_is_changed(tmp_path: Path) -> None:
    filmed = film(swaying(0.0, 22), 6, 22, (RATE,) * 3, offset_s=LATE)
    recording = ready(write_filmed(tmp_path / "rec", filmed))
    same, synced = synchronise(recording, tmp_path, SyncConfig())
    assert [c.numbers for c in same.clocks] == [c.numbers for c in recording.clocks]
    assert np.array_equal(same.timeline.frame_index, recording.timeline.frame_index)
    assert [(f.code, f.camera) for f in synced.findings] == [("clock_unknown", None)]
    assert "too little moves" in synced.findings[0].sentence


def sounding(folder: Path, world: World, seconds: float, sound_late: np.ndarray) -> Recording:
    """A recording out of step by ``LATE`` whose sound tracks are so by ``sound_late``; NaN for silence."""
    filmed = film(world, seconds, 22, (RATE,) * 3, offset_s=LATE)
    sound = scene(seconds + 6, 5)
    (write_filmed(folder, filmed) / "videos").mkdir()
    for v, (name, late) in enumerate(zip(filmed.rig.names, sound_late.tolist(), strict=True)):
        track = np.zeros(int(seconds * 16000)) if np.isnan(late) else heard(sound, late, seconds, v)
        write_sounding(folder / "videos" / f"{name}.mp4", track, fps=RATE, size=(960, 720))
    return ready(folder)


def test_sound_stands_in_where_nobody_moves(tmp_path: Path) -> None:
    recording = sounding(tmp_path / "rec", swaying(0.0, 22), 6, LATE)
    moved, synced = synchronise(recording, tmp_path, SyncConfig())
    assert np.abs(np.array([c.offset_s for c in moved.clocks]) - LATE).max() < 0.005
    assert [c.method for c in moved.clocks] == ["reference", "sound", "sound"]
    assert [f.code for f in synced.findings] == ["clocks_set", "sound_used"]
    again = estimate_clocks(recording, SyncConfig(audio="off"))
    assert [f.code for f in again.findings] == ["clock_unknown"]
    assert [c.numbers for c in again.clocks] == [c.numbers for c in recording.clocks]


def test_a_recording_too_short_for_movement_is_told_and_set_by_sound(tmp_path: Path) -> None:
    folder = sounding(tmp_path / "rec", people_at(1, 4, 21), 4, LATE).path
    (folder / "calibration.toml").unlink()
    recording = ready(folder)
    alone = estimate_clocks(recording, SyncConfig(audio="off"))
    assert [f.code for f in alone.findings] == ["clock_unknown"]
    assert "it takes 1 s, without a calibration 6 s" in alone.findings[0].sentence
    found = estimate_clocks(recording, SyncConfig())
    assert [f.code for f in found.findings] == ["clocks_set", "sound_used"]
    assert np.abs(np.array([c.offset_s for c in found.clocks]) - LATE).max() < 0.005


def test_a_silent_track_is_told_and_not_guessed(tmp_path: Path) -> None:
    recording = sounding(tmp_path / "rec", swaying(0.0, 22), 6, np.array([0.0, np.nan, -0.2]))
    same = estimate_clocks(recording, SyncConfig())
    assert [c.numbers for c in same.clocks] == [c.numbers for c in recording.clocks]
    assert [f.code for f in same.findings] == ["sound_unused", "clock_unknown"]
    assert "cam02 is silent" in same.findings[0].sentence


def test_sound_chooses_among_answers_of_movement_that_repeats(tmp_path: Path) -> None:
    # Sound that travels: 9 ms off, so that the better offset is that of movement.
    recording = sounding(tmp_path / "rec", treadmill(22), 14, LATE + np.array([0, 0.009, -0.009]))
    alone = estimate_clocks(recording, SyncConfig(audio="off"))
    assert [f.code for f in alone.findings] == ["clock_unknown"]
    found = estimate_clocks(recording, SyncConfig())
    assert [c.method for c in found.clocks] == ["reference", *["rays, chosen by sound"] * 2]
    assert np.abs(np.array([c.offset_s for c in found.clocks]) - LATE).max() < 0.005
    assert [f.code for f in found.findings] == ["clocks_set", "sound_used"]


def test_sound_that_contradicts_movement_is_told(tmp_path: Path) -> None:
    recording = sounding(tmp_path / "rec", people_at(1, 8, 21), 8, LATE + np.array([0, 0.5, 0]))
    found = estimate_clocks(recording, SyncConfig())
    assert np.abs(np.array([c.offset_s for c in found.clocks]) - LATE).max() < 0.2 / RATE
    assert [c.method for c in found.clocks] == ["reference", "rays", "rays"]
    assert [f.code for f in found.findings] == ["clocks_set", "sound_contradicts"]
    assert "cam02 +0.3" in found.findings[1].sentence


def test_a_recording_in_step_stays_as_it_is(tmp_path: Path) -> None:
    if not BALANCING.exists():
        pytest.skip("needs the shared recording")
    recording = ready(BALANCING)
    same, synced = synchronise(recording, tmp_path, SyncConfig())
    assert synced.how == "the cameras are in step"
    assert same.timeline.later is None
    assert np.array_equal(same.timeline.frame_index, recording.timeline.frame_index)
    at = np.arange(8)
    assert np.array_equal(people_between(same, at), recording.people(at), equal_nan=True)


def test_a_quiet_real_recording_that_is_shifted(tmp_path: Path) -> None:
    if not BALANCING.exists():
        pytest.skip("needs the shared recording")
    late = np.array([0.0, 0.213, -0.331, 0.104])
    found = estimate_clocks(ready(write_shifted(BALANCING, tmp_path / "rec", late)), SyncConfig())
    offset = np.array([c.offset_s for c in found.clocks])
    # The file begins with the camera that was started first.
    assert np.abs(offset - late).max() < 0.25 / 60


def test_results_are_of_their_clocks(tmp_path: Path) -> None:
    filmed = film(people_at(1, 2.5, 3), 2.5, 3, (RATE,) * 3, offset_s=np.array([0.0, 0.21, -0.1]))
    recording = find_recording(write_filmed(tmp_path / "data" / "rec", filmed))
    out, clocks = tmp_path / "out", tmp_path / "out" / SYNC

    def cfg(use: object) -> RunConfig:
        return RunConfig.model_validate({"sync": {"use": str(use)}})

    assert run(recording, out, cfg("auto")).summary.sync["cameras"]["cam02"]["method"] == "rays"
    assert not run(recording, out, cfg("auto")).times  # nothing is left to do
    assert not run(recording, out, cfg(clocks)).times
    with pytest.raises(InputError, match="clocks"):
        run(recording, out, cfg("off"))
    before = fingerprint(cfg(clocks), recording.path, tmp_path / "data")
    clocks.write_text(clocks.read_text().replace("offset_s: 0.2", "offset_s: 0.1"))
    for use in ("auto", clocks):
        with pytest.raises(InputError, match="clocks"):
            run(recording, out, cfg(use))
    assert fingerprint(cfg(clocks), recording.path, tmp_path / "data") != before  # a batch runs it again


def test_a_file_that_is_none_is_refused(out_of_step: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        synchronise(ready(out_of_step), tmp_path, SyncConfig(use=str(tmp_path / "none.yaml")))
    write_sync(tmp_path / "far.yaml", SyncFile(sync={"cam01": Clock(offset_s=100.0)}))
    with pytest.raises(InputError, match="the cameras share no time: cam01 from 100"):
        synchronise(ready(out_of_step), tmp_path, SyncConfig(use=str(tmp_path / "far.yaml")))


def test_people_between_two_frames() -> None:
    """Two people in another order in each frame, on straight ways; one point missing here and there."""
    rng = np.random.default_rng(0)
    start, speed = rng.uniform(100, 400, (2, 25, 2)), rng.uniform(-9, 9, (2, 1, 2))
    start[1] += 500

    def frame(t: float) -> np.ndarray:
        return np.concatenate([start + t * speed, np.full((2, 25, 1), 0.8)], -1).astype(np.float32)

    near, before, after = frame(0)[None], frame(-1)[None, ::-1].copy(), frame(1)[None, ::-1].copy()
    nothing = [np.nan, np.nan, 0]
    after[0, 1, 3], near[0, 0, 5], before[0, 1, 7] = nothing, nothing, nothing
    regular = np.ones((2, 1))
    for later in (0.4, -0.3):
        found = between_frames(before, near, after, np.array([later]), regular)
        assert np.allclose(found[0], frame(later), atol=1e-3)
    assert np.array_equal(between_frames(before, near, after, np.zeros(1), regular), near, equal_nan=True)
    # The frame before was two frames before: what moves by it moves by half of that.
    wide = between_frames(frame(-2)[None], near, after, np.array([0.4]), np.array([[2.0], [1.0]]))
    assert np.allclose(wide[0, [0, 1, 0], [0, 0, 3]], frame(0.4)[[0, 1, 0], [0, 0, 3]], atol=1e-3)
    assert np.isnan(wide[0, 0, 5, 0])  # three frames from one that has it to the next
    # More frames are missing there: nothing is moved by it.
    far = between_frames(frame(-3)[None], near, after, np.array([0.4]), np.array([[3.0], [1.0]]))
    assert np.array_equal(far[0, 0, 3], near[0, 0, 3])
    assert np.allclose(far[0, 1, 0], frame(0.4)[1, 0], atol=1e-3)
    # Somebody else in the next frame is nobody to move to.
    apart = after + np.array([300, 0, 0], np.float32)
    alone = between_frames(apart, near, apart, np.array([0.4]), regular)
    assert np.array_equal(alone, near, equal_nan=True)
