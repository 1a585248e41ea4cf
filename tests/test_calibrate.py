"""Recordings without a calibration: where the cameras stand is estimated, kept, and said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recordings import BALANCING, figure, ring, seen, write_people
from scipy.spatial.transform import Rotation

import run_pipeline
from models.body import load_body
from pipeline.association import MatchConfig
from pipeline.calibration import is_estimated, read_calibration, write_calibration
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.recording import Recording, find_recording
from stages.calibrate import CalibrateConfig, calibrate, estimate

RIG = replace(ring(3), dist=np.zeros((3, 8)))
FRAMES = 60
TIME = np.arange(FRAMES) / 20
BODY = load_body()
CFG, MATCH = CalibrateConfig(frames=60), MatchConfig()


def write(folder: Path, people: list[np.ndarray], rig: Rig = RIG, more: str = "") -> Path:
    """A recording of people (V, T, K, 3) without videos and without a calibration."""
    for v, camera in enumerate(rig.names):
        for t in range(people[0].shape[1]):
            there = [p[v, t] for p in people if np.isfinite(p[v, t]).any()]
            write_people(folder / "keypoints" / camera, camera, t, there)
    (folder / "recording.yaml").write_text(f"picture_size: [1280, 720]\nfps: 20\n{more}")
    return folder


def person(phase: float = 0.0, at: tuple[float, float] = (0, 0), rig: Rig = RIG, seed: int = 0) -> np.ndarray:
    return seen(rig, figure(TIME, at, phase), noise_px=1.5, seed=seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One who walks on the spot; a bystander behind, in two views."""
    bystander = person(2.0, (1.2, 0.9), seed=1)
    bystander[0] = np.nan
    return write(tmp_path_factory.mktemp("recording"), [bystander, person()])


@pytest.fixture(scope="module")
def placed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, Path]:
    out = tmp_path_factory.mktemp("out")
    return calibrate(find_recording(folder), out, BODY, CFG, MATCH), out


def turned(rig: Rig, true: Rig) -> float:
    """Largest error of a rotation from camera to camera, degrees."""
    a, b = (r.R @ r.R[0].T for r in (rig, true))
    return float(np.degrees(Rotation.from_matrix(a @ b.transpose(0, 2, 1)).magnitude().max()))


def test_the_cameras_are_placed(placed: tuple[Recording, Path]) -> None:
    recording, out = placed
    assert recording.placed
    assert recording.calibration == out / "calibration.toml"
    assert turned(recording.rig, RIG) < 4
    gaps = [np.linalg.norm(r.centres[1:] - r.centres[:-1], axis=1) for r in (recording.rig, RIG)]
    assert np.abs(gaps[0] / gaps[1] / np.mean(gaps[0] / gaps[1]) - 1).max() < 0.06
    assert 0.8 < np.mean(gaps[0] / gaps[1]) < 1.2
    # z is up, the origin on the floor: the true rig's cameras stand 1.6 m high.
    assert recording.rig.centres[:, 2] == pytest.approx(1.6, abs=0.5)


def test_it_is_said(placed: tuple[Recording, Path]) -> None:
    said = placed[0].warnings[-1]
    assert "no calibration found: the cameras were estimated from the person" in said
    assert "px (median)" in said
    assert "only as good as the body's" in said


def test_the_file_is_a_calibration_like_others(placed: tuple[Recording, Path], folder: Path) -> None:
    recording, out = placed
    path = out / "calibration.toml"
    rig = read_calibration(path)
    assert rig.names == RIG.names
    assert rig.R.tobytes() == recording.rig.R.tobytes()
    assert is_estimated(path)
    assert path.read_text().startswith("# Estimated by multispin")
    # Beside the recording it is its calibration.
    other = folder.parent / "calibrated"
    shutil.copytree(folder, other)
    shutil.copy(path, other)
    found = find_recording(other)
    assert found.placed
    assert any("calibration.toml was estimated from a person" in w for w in found.warnings)
    assert found.rig.t.tobytes() == rig.t.tobytes()
    assert not is_estimated(BALANCING / "calibration.toml") or not BALANCING.exists()


def test_a_calibration_that_is_there_is_used_as_it_is(placed: tuple[Recording, Path], folder: Path) -> None:
    out = folder.parent / "corrected"
    out.mkdir()
    rig = placed[0].rig
    corrected = replace(rig, t=rig.t + 0.25)
    write_calibration(corrected, out / "calibration.toml")
    again = calibrate(find_recording(folder), out, BODY, CFG, MATCH)
    assert again.rig.t.tobytes() == corrected.t.tobytes()
    assert "which an earlier run has estimated" in again.warnings[-1]


def test_a_calibration_of_other_cameras_is_refused(folder: Path, tmp_path: Path) -> None:
    write_calibration(ring(2), tmp_path / "calibration.toml")
    with pytest.raises(
        InputError, match=r"calibration.toml: holds the cameras cam01 1280x720, cam02 .*remove"
    ):
        calibrate(find_recording(folder), tmp_path, BODY, CFG, MATCH)


def test_a_calibrated_recording_is_left_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "recording")
    write_calibration(RIG, tmp_path / "recording" / "calibration.toml")
    recording = find_recording(tmp_path / "recording")
    assert calibrate(recording, tmp_path, BODY, CFG, MATCH) is recording
    assert not (tmp_path / "calibration.toml").exists()


def test_one_camera_is_told_from_the_person_what_is_up(tmp_path: Path) -> None:
    one = RIG.select(["cam01"])
    recording = find_recording(write(tmp_path / "one", [person()[:1]], one, "focal_px: 1024\n"))
    assert recording.placed
    assert recording.rig.K[0, 0, 0] == 1024
    assert "the camera is taken to stand still" in recording.warnings[-1]
    again = calibrate(recording, tmp_path, BODY, CFG, MATCH)
    assert np.allclose(again.rig.K, recording.rig.K)
    up = again.rig.R[0, :, 2]
    assert np.degrees(np.arccos(up @ RIG.R[0, :, 2])) < 12
    # On the floor below the person, four metres ahead of the camera, which looks along y.
    assert again.rig.centres[0, 2] == pytest.approx(1.6, abs=0.6)
    assert again.rig.centres[0, 1] == pytest.approx(-4, abs=0.8)
    assert again.rig.R[0, 2, 1] > 0.9
    assert is_estimated(tmp_path / "calibration.toml")
    assert "up and where the floor is are guessed from the person" in again.warnings[-1]


def test_one_camera_that_hardly_shows_anybody_is_taken_to_be_level(tmp_path: Path) -> None:
    seldom = person()[:1]
    seldom[:, 3:] = np.nan
    recording = find_recording(write(tmp_path / "one", [seldom], RIG.select(["cam01"])))
    again = calibrate(recording, tmp_path, BODY, CFG, MATCH)
    assert np.allclose(again.rig.R[0], [[1, 0, 0], [0, 0, -1], [0, 1, 0]])
    assert (again.rig.t == 0).all()
    assert "the camera is taken to be level" in again.warnings[-1]


def test_nobody_in_one_camera(tmp_path: Path) -> None:
    alone = person()
    alone[1, 5:] = np.nan
    alone[1, :5, 3:] = np.nan
    recording = find_recording(write(tmp_path / "r", [alone]))
    with pytest.raises(InputError, match="camera cam02 shows nobody in the 60 frames"):
        estimate(recording, BODY, CFG, MATCH)


def test_views_of_different_people(tmp_path: Path) -> None:
    """The third camera films somebody else, who moves differently."""
    other = seen(RIG, figure(TIME * 1.7, phase=1.0), seed=2)[:, :, :, :]
    mixed = person()
    mixed[2] = other[1]
    recording = find_recording(write(tmp_path / "r", [mixed]))
    with pytest.raises(InputError, match=r"cam|do not show one person") as error:
        estimate(recording, BODY, CFG, MATCH)
    assert "run each camera alone" in str(error.value)
    assert "calibration.toml" in str(error.value)


def test_a_camera_that_is_late_is_named(tmp_path: Path) -> None:
    late, frames = person(), 6
    late[2, frames:] = late[2, :-frames].copy()
    recording = find_recording(write(tmp_path / "r", [late]))
    try:
        said = " ".join(calibrate(recording, tmp_path, BODY, CFG, MATCH).warnings)
    except InputError as error:
        said = str(error)
    assert f"amera cam03 seems {frames} frames late" in said
    assert f"frame_offset: {{cam03: {frames}}}" in said
    assert said.count("frame_offset") == 1


def test_a_far_longer_recording_is_estimated_from_where_people_are(tmp_path: Path) -> None:
    """Nobody for the first two thirds."""
    late = person()
    late[:, :40] = np.nan
    recording = find_recording(write(tmp_path / "r", [late]))
    bundle = estimate(recording, BODY, CalibrateConfig(frames=60, seconds=1.0), MATCH)
    assert turned(bundle.rig, RIG) < 8


@pytest.mark.skipif(not BALANCING.exists(), reason="needs the shared balancing recording")
def test_on_a_real_recording_the_cameras_are_those_of_its_calibration(tmp_path: Path) -> None:
    folder = tmp_path / "balancing"
    shutil.copytree(BALANCING, folder, ignore=shutil.ignore_patterns("calibration.toml"))
    recording = find_recording(folder)
    assert recording.format.name == "body_25b"
    assert not recording.placed
    bundle = estimate(recording, BODY, CalibrateConfig(), MATCH)
    true = find_recording(BALANCING).rig
    # The calibration itself is some degrees off what a bundle adjustment of the person gives.
    assert turned(bundle.rig, true) < 4
    assert np.abs(bundle.rig.K[:, 0, 0] / true.K[:, 0, 0] - 1).max() < 0.1
    assert np.degrees(np.arccos((bundle.rig.R[0].T @ true.R[0])[2, 2])) < 8


def test_the_command_line_goes_all_the_way(folder: Path, tmp_path: Path, capfd, monkeypatch) -> None:
    """Run, run again, look: the second run reads the cameras of the first and finds all done."""

    def call(*words: object) -> str:
        monkeypatch.setattr("sys.argv", ["multispin", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            run_pipeline.main()
        assert end.value.code in (0, None)
        return "".join(capfd.readouterr())

    said = call("info", folder)
    assert "no calibration found: the cameras are taken to stand still" in said
    assert "What do the cameras show?" in said
    said = call("run", folder, "--out", tmp_path / "out")
    assert "the cameras were estimated from the person" in said
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["calibration"]["estimated"] is True
    assert summary["people"][0]["frames_fitted"] >= 0.9 * FRAMES
    assert any("estimated from the person" in w for w in summary["warnings"])
    before = (tmp_path / "out" / "calibration.toml").read_bytes()
    assert "everything is done already" in call("run", folder, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "calibration.toml").read_bytes() == before
    assert "windows done" in call("info", tmp_path / "out")
