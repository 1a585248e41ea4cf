"""Recordings without a calibration: where the cameras stand is estimated, kept, and said."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recordings import BALANCING, figure, ring, seen, write_people
from scipy.spatial.transform import Rotation

import run_pipeline
from models.body import load_body
from models.geometry.association import MatchConfig
from pipeline.calibrations import read_calibration
from pipeline.calibrations.estimate import Provenance, is_estimated, read_estimate
from pipeline.calibrations.pose2sim import write_calibration
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.recording import Recording, find_recording
from pipeline.skeleton import BODY_25
from pipeline.timeline import spread
from stages.calibrate import CalibrateConfig, _stretch, _whom, calibrate, estimate
from stages.graph import RunConfig, place_cameras, run
from stages.inspect import inspect
from stages.regress import RegressConfig

RIG = replace(ring(3), dist=np.zeros((3, 8)))
FRAMES = 60
TIME = np.arange(FRAMES) / 20
BODY = load_body()
CFG, MATCH = CalibrateConfig(frames=60), MatchConfig()
SETTINGS = RunConfig(calibrate=CFG)


def ready(folder: Path) -> Recording:
    return inspect(find_recording(folder))


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
    return calibrate(ready(folder), out, BODY, CFG, MATCH), out


def turned(rig: Rig, true: Rig) -> float:
    """Largest error of a rotation from camera to camera, degrees."""
    a, b = (r.R @ r.R[0].T for r in (rig, true))
    return float(np.degrees(Rotation.from_matrix(a @ b.transpose(0, 2, 1)).magnitude().max()))


def test_of_equal_stretches_the_middle_one_is_taken(folder: Path) -> None:
    at = _stretch(ready(folder), CalibrateConfig(frames=20, seconds=1.0), MATCH)
    assert abs(at.mean() - (FRAMES - 1) / 2) < 2


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
    assert "no calibration found: the cameras were estimated from one of the 2 people in view" in said
    # Whom all three see: the second, and not the bystander of two.
    x, y, name, frame = re.search(
        r"the one at \((\d+), (\d+)\) px of (\w+) in its frame (\d+)", said
    ).groups()
    points = person()[RIG.names.index(name), int(frame)]
    assert np.abs(np.nanmedian(points[:, :2], axis=0) - [float(x), float(y)]).max() < 30
    assert "with a median error of" in said
    assert "only as good as the body's" in said


def test_the_person_is_named_in_a_frame_of_the_camera(placed: tuple[Recording, Path]) -> None:
    line = placed[0].timeline
    later = replace(placed[0], timeline=replace(line, frame_index=line.frame_index + 7))
    people = np.random.default_rng(0).uniform(1, 9, (3, 1, 2, 25, 3))
    said = _whom(later, np.array([5]), people, np.zeros((3, 1), np.int64), MATCH)
    assert said.endswith(f"in its frame {line.frame_index[0, 5] + 7}")


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
    found = ready(other)
    assert found.placed
    assert any("calibration.toml was estimated from a person" in w for w in found.warnings)
    assert found.rig.t.tobytes() == rig.t.tobytes()


def test_a_calibration_that_is_there_is_used_as_it_is(placed: tuple[Recording, Path], folder: Path) -> None:
    out = folder.parent / "corrected"
    out.mkdir()
    rig = placed[0].rig
    corrected = replace(rig, t=rig.t + 0.25)
    write_calibration(corrected, out / "calibration.toml")
    again = place_cameras(ready(folder), out, BODY, SETTINGS)
    assert again.rig.t.tobytes() == corrected.t.tobytes()
    assert f"{out / 'calibration.toml'}, which is not as a run has written it" in " ".join(again.warnings)
    # It is checked as others are.
    last = [(f.code, f.camera) for f in again.findings[-2:]]
    assert last == [("camera_alone", "cam01"), ("cameras_disagree", None)]


def test_a_run_that_goes_on_says_what_the_first_one_said(
    placed: tuple[Recording, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.calibrate.estimate", None)  # the file is read
    again = calibrate(ready(folder), placed[1], BODY, CFG, MATCH)
    assert again.warnings == placed[0].warnings
    assert again.rig.R.tobytes() == placed[0].rig.R.tobytes()


def one_camera(folder: Path, people: np.ndarray, more: str = "") -> Recording:
    return ready(write(folder / "one", [people], RIG.select(["cam01"]), more))


@pytest.fixture
def alone(tmp_path: Path) -> Recording:
    """One camera, of which recording.yaml says nothing, calibrated into ``tmp_path``."""
    recording = one_camera(tmp_path, person()[:1])
    first = calibrate(recording, tmp_path, BODY, CFG, MATCH)
    assert first.rig.K[0, 0, 0] == 1280
    return first


def test_one_camera_that_goes_on_is_said_the_same_of(alone: Recording, tmp_path: Path) -> None:
    again = calibrate(ready(alone.path), tmp_path, BODY, CFG, MATCH)
    assert again.warnings == alone.warnings
    assert "only as good as its focal length, 1280 px" in again.warnings[-1]


@pytest.mark.parametrize(
    ("more", "cfg", "what"),
    [
        ("focal_px: 1024\n", CFG, "the focal lengths or picture sizes"),
        ("fps: 25\n", CFG, "the time line (frame_offset, fps)"),
        ("", CalibrateConfig(frames=30), "the settings (calibrate, associate)"),
        ("", None, "the keypoints"),
    ],
)
def test_what_is_estimated_from_something_else_by_now_is_estimated_again(
    alone: Recording, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    more: str, cfg: CalibrateConfig | None, what: str,
) -> None:  # fmt: skip
    path = tmp_path / "calibration.toml"
    before = path.read_text()
    recording = one_camera(tmp_path, person(phase=0.0 if cfg else 1.0)[:1], more)
    with caplog.at_level(logging.WARNING):
        again = calibrate(recording, tmp_path, BODY, cfg or CFG, MATCH)
    assert f"{path}: estimated again, for {what} changed" in caplog.text
    assert path.read_text() != before
    assert again.rig.K[0, 0, 0] == (1024 if "focal" in more else 1280)
    assert [f.code for f in recording.findings] == ["calibration_missing"]
    assert [f.code for f in again.findings] == ["calibration_estimated"]
    # And the way back.
    recording = one_camera(tmp_path, person()[:1])
    calibrate(recording, tmp_path, BODY, CFG, MATCH)
    assert path.read_text() == before


def test_results_of_the_old_cameras_are_not_continued(alone: Recording, tmp_path: Path) -> None:
    path = tmp_path / "calibration.toml"
    before = path.read_text()
    (tmp_path / "results.zarr").mkdir()
    recording = one_camera(tmp_path, person()[:1], "focal_px: 1024\n")
    with pytest.raises(InputError) as error:
        calibrate(recording, tmp_path, BODY, CFG, MATCH)
    assert str(tmp_path / "results.zarr") in str(error.value)
    assert "the focal lengths or picture sizes changed. Change that back, choose another" in str(error.value)
    assert path.read_text() == before
    assert calibrate(one_camera(tmp_path, person()[:1]), tmp_path, BODY, CFG, MATCH).calibration == path


def test_what_the_user_corrected_is_used_and_said(alone: Recording, tmp_path: Path) -> None:
    path = tmp_path / "calibration.toml"
    path.write_text("# looked at it, is fine\n" + path.read_text().replace("cam01", "'cam01'", 1))
    as_it_was = calibrate(alone_again := ready(alone.path), tmp_path, BODY, CFG, MATCH)
    assert as_it_was.warnings == alone.warnings
    path.write_text(path.read_text().replace("1280.0", "1111.0"))
    said = calibrate(alone_again, tmp_path, BODY, CFG, MATCH).warnings[-1]
    assert "it is used as it is; remove it" in said
    recording = one_camera(tmp_path, person()[:1], "focal_px: 1024\n")
    corrected = calibrate(recording, tmp_path, BODY, CFG, MATCH)
    assert corrected.rig.K[0, 0, 0] == 1111
    assert "although the focal lengths or picture sizes changed since; remove it" in corrected.warnings[-1]


def test_an_estimate_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "calibration.toml"
    kept = Provenance({'the "keypoints"': "ab", "b": "12"}, 1.25, "Only as good as\n“that”.")
    write_calibration(RIG, path, kept)
    assert read_estimate(path) == kept
    write_calibration(RIG, path)
    assert read_estimate(path) is None
    assert not is_estimated(path)


def test_mistakes_about_the_network_are_told_before_the_cameras_are_estimated(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.graph.calibrate", None)
    for bad in (RegressConfig(device="nowhere"), RegressConfig(weights=str(tmp_path / "no.safetensors"))):
        with pytest.raises(InputError, match=r"nowhere|no\.safetensors"):
            run(ready(folder), tmp_path / "out", RunConfig(regress=bad))
    with pytest.raises(InputError, match="camera 'cam01' alone cannot locate a body"):
        run(
            one_camera(tmp_path, person()[:1]),
            tmp_path / "out",
            RunConfig(regress=RegressConfig(weights="none")),
        )


def test_a_calibration_of_other_cameras_is_refused(folder: Path, tmp_path: Path) -> None:
    write_calibration(ring(2), tmp_path / "calibration.toml")
    with pytest.raises(
        InputError, match=r"calibration.toml: holds the cameras cam01 1280x720, cam02 .*remove"
    ):
        calibrate(ready(folder), tmp_path, BODY, CFG, MATCH)


def test_a_calibrated_recording_is_left_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "recording")
    write_calibration(RIG, tmp_path / "recording" / "calibration.toml")
    recording = ready(tmp_path / "recording")
    assert calibrate(recording, tmp_path, BODY, CFG, MATCH) is recording
    assert not (tmp_path / "calibration.toml").exists()


def test_one_camera_is_told_from_the_person_what_is_up(tmp_path: Path) -> None:
    leans, heights = [], []
    for v, name in enumerate(RIG.names):
        one = RIG.select([name])
        recording = ready(write(tmp_path / name, [person()[v : v + 1]], one, "focal_px: 1024\n"))
        assert recording.placed
        assert recording.rig.K[0, 0, 0] == 1024
        assert "the camera is taken to stand still" in recording.warnings[-1]
        out = tmp_path / f"out_{name}"
        out.mkdir()
        again = calibrate(recording, out, BODY, CFG, MATCH)
        assert np.allclose(again.rig.K, recording.rig.K)
        leans.append(np.degrees(np.arccos(again.rig.R[0, :, 2] @ one.R[0, :, 2])))
        heights.append(again.rig.centres[0, 2])
        # On the floor below the person, four metres ahead of the camera, which looks along y.
        assert again.rig.centres[0, 1] == pytest.approx(-4, abs=0.8)
        assert again.rig.R[0, 2, 1] > 0.9
        assert is_estimated(out / "calibration.toml")
        assert "up and where the floor is are guessed from the person" in again.warnings[-1]
    # A guess, from each side another; a lean of 15° lifts or lowers a camera so far away by a metre.
    assert np.median(leans) < 8
    assert max(leans) < 18
    assert np.median(heights) == pytest.approx(1.6, abs=0.4)


def test_one_camera_that_hardly_shows_anybody_is_taken_to_be_level(tmp_path: Path) -> None:
    seldom = person()[:1]
    seldom[:, 3:] = np.nan
    recording = ready(write(tmp_path / "one", [seldom], RIG.select(["cam01"])))
    again = calibrate(recording, tmp_path, BODY, CFG, MATCH)
    assert np.allclose(again.rig.R[0], [[1, 0, 0], [0, 0, -1], [0, 1, 0]])
    assert (again.rig.t == 0).all()
    assert "the camera is taken to be level" in again.warnings[-1]


def test_nobody_in_one_camera(tmp_path: Path) -> None:
    alone = person()
    alone[1, 5:] = np.nan
    alone[1, :5, 3:] = np.nan
    recording = ready(write(tmp_path / "r", [alone]))
    with pytest.raises(InputError, match="camera cam02 shows nobody in the 60 frames"):
        estimate(recording, BODY, CFG, MATCH)


def test_views_of_different_people(tmp_path: Path) -> None:
    """The third camera films somebody else, who moves differently."""
    other = seen(RIG, figure(TIME * 1.7, phase=1.0), seed=2)[:, :, :, :]
    mixed = person()
    mixed[2] = other[1]
    recording = ready(write(tmp_path / "r", [mixed]))
    with pytest.raises(InputError, match=r"cam|do not show one person") as error:
        estimate(recording, BODY, CFG, MATCH)
    assert "run each camera alone" in str(error.value)
    assert "calibration.toml" in str(error.value)


def test_a_far_longer_recording_is_estimated_from_where_people_are(tmp_path: Path) -> None:
    """Nobody for the first two thirds."""
    late = person()
    late[:, :40] = np.nan
    recording = ready(write(tmp_path / "r", [late]))
    bundle, _ = estimate(recording, BODY, CalibrateConfig(frames=60, seconds=1.0), MATCH)
    assert turned(bundle.rig, RIG) < 8


def test_the_frames_are_spread_over_all_of_the_seconds(folder: Path) -> None:
    """20 of 60 frames: people are followed at ten a second, every second frame, and 20 of these are taken."""
    bundle, _ = estimate(ready(folder), BODY, CalibrateConfig(frames=20, seconds=3.0), MATCH)
    assert len(bundle.points) == 20
    true = figure(TIME[spread(np.arange(0, FRAMES, 2), 20)])
    wrists = [bundle.points[:, BODY_25.index(f"{s}Wrist")] for s in "LR"], [true[f"{s}Wrist"] for s in "LR"]
    found, wanted = (np.linalg.norm(left - right, axis=-1) for left, right in wrists)
    assert np.corrcoef(found, wanted)[0, 1] > 0.98
    assert turned(bundle.rig, RIG) < 4


@pytest.mark.skipif(not BALANCING.exists(), reason="needs the shared balancing recording")
def test_on_a_real_recording_the_cameras_are_those_of_its_calibration(tmp_path: Path) -> None:
    folder = tmp_path / "balancing"
    shutil.copytree(BALANCING, folder, ignore=shutil.ignore_patterns("calibration.toml"))
    recording = ready(folder)
    assert recording.point_order.name == "body_25b"
    assert not recording.placed
    bundle, _ = estimate(recording, BODY, CalibrateConfig(), MATCH)
    true = ready(BALANCING).rig
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
    assert "the cameras were estimated from one of the 2 people" in said
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["calibration"]["estimated"] is True
    assert summary["people"][0]["frames_fitted"] >= 0.9 * FRAMES
    assert any("estimated from one of the 2 people" in w for w in summary["warnings"])
    before = (tmp_path / "out" / "calibration.toml").read_bytes()
    assert "everything is done already" in call("run", folder, "--out", tmp_path / "out")
    done = run(ready(folder), tmp_path / "out", RunConfig())
    assert not done.times
    assert list(done.warnings) == summary["warnings"]
    (tmp_path / "out" / "summary.json").unlink()
    resumed = run(ready(folder), tmp_path / "out", RunConfig())
    assert list(resumed.warnings) == summary["warnings"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["warnings"] == summary["warnings"]
    assert (tmp_path / "out" / "calibration.toml").read_bytes() == before
    assert "windows done" in call("info", tmp_path / "out")
