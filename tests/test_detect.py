"""Detection in the videos of a recording that has no keypoints."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from recordings import BALANCING
from typer.testing import CliRunner

import run_pipeline
from pipeline.detections import Detections
from pipeline.errors import NobodyFound
from pipeline.recording import find_recording, reopen
from pipeline.results import DETECTIONS, Results
from pipeline.skeleton import BODY_25
from pipeline.summary import summarise
from pipeline.video import VideoWriter, probe, read_frames
from stages import graph
from stages.decode import DecodeConfig, decode
from stages.detect import DetectConfig, detect_videos, frames_of_part
from stages.inspect import inspect

FRAMES = 11
SHARED = pytest.mark.skipif(not BALANCING.exists(), reason="needs the shared balancing recording")
FULL = DetectConfig(model="full")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first frames of two cameras of a real recording; the second has two frames less."""
    folder = tmp_path_factory.mktemp("filmed") / "recording"
    (folder / "videos").mkdir(parents=True)
    for name, count in (("cam01", FRAMES), ("cam03", FRAMES - 2)):
        with VideoWriter(folder / "videos" / f"{name}.mp4", 60, threads=1) as video:
            for frame in read_frames(BALANCING / "videos" / f"{name}.mp4", range(count)):
                video.write(frame)
    shutil.copy(BALANCING / "calibration.toml", folder)
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of grey walls, one of 20 by 20 pixels."""
    folder = tmp_path_factory.mktemp("empty") / "recording"
    folder.mkdir()
    for name, (width, height) in (("a", (64, 48)), ("b", (20, 20))):
        with VideoWriter(folder / f"{name}.mp4", 30, threads=1) as video:
            for _ in range(3):
                video.write(np.full((height, width, 3), 90, np.uint8))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def detected(folder: Path, path: Path, cfg: DetectConfig = FULL) -> list[int]:
    """Pictures that were done, each time something was."""
    videos = {file.stem: probe(file) for file in sorted((folder / "videos").iterdir())}
    told: list[int] = []

    def watch(total: int, done: Iterator[int]) -> None:
        told.extend(done)
        assert (told[0], told[-1]) == (0, total)

    detect_videos(videos, path, cfg, partial(decode, cfg=DecodeConfig()), watch)
    return told


KILLED = """
import os, sys
from pathlib import Path
import pipeline.detections, stages.detect, test_detect
pipeline.detections.CHUNK = stages.detect.CHUNK = 4
whole = pipeline.detections.Detections.write
def write(self, *given):
    whole(self, *given)
    if sum(map(len, self.chunks)) == 3:
        os.kill(os.getpid(), 9)
pipeline.detections.Detections.write = write
test_detect.detected(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@SHARED
def test_a_detection_that_was_killed_goes_on_to_the_same_bytes(
    filmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.detections.CHUNK", 4)
    monkeypatch.setattr("stages.detect.CHUNK", 4)
    assert detected(filmed, tmp_path / "whole", DetectConfig(model="full", threads=1))[-1] == 2 * FRAMES - 2
    words = [sys.executable, "-c", KILLED, filmed, tmp_path / "broken"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    broken = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    assert broken.returncode == -signal.SIGKILL, broken.stderr
    assert sum(map(len, Detections(tmp_path / "broken").chunks)) == 3
    # Three chunks of the two videos, whichever thread was faster.
    assert detected(filmed, tmp_path / "broken")[-1] in (8, 9, 11), "what was done stays done"
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


@SHARED
def test_videos_alone_are_reconstructed_and_looked_at_once(
    filmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    cfg = graph.RunConfig.model_validate(
        {"detect": {"model": "full"}, "render": {"overlay": False, "mosaic": False}}
    )
    found = inspect(find_recording(filmed))
    assert not found.has_keypoints
    assert dict(found.notes)["keypoints"] == "none: run detects people in the videos"
    done = graph.run(found, out, cfg)
    assert done.summary.format["name"] == "blazepose_33"
    assert done.summary.format["how"] == "detected"
    assert [t.name for t in done.times[:3]] == ["detect: decode", "detect", "keypoints"]
    assert done.times[1].busy > 0
    assert done.summary.people[0].frames_fitted == FRAMES - 2
    assert done.summary.reprojection_median_px < 12
    store = Results(out).store()
    hips = store.array("people/0/keypoints_3d")[:, BODY_25.index("MidHip"), :3]
    assert np.linalg.norm(hips - store.array("people/0/joints")[:, 0], axis=1).min() > 0.03, "BlazePose's"

    # Other settings of the fit: what was detected is read, and no video is decoded.
    kept = contents(out / DETECTIONS)
    shutil.rmtree(out / "results.zarr")
    monkeypatch.setattr(graph, "decode", lambda *given, **named: pytest.fail("a video is decoded"))
    monkeypatch.setattr("stages.detect.load_detector", lambda *given: pytest.fail("a network is loaded"))
    softer = cfg.smplify.model_copy(update={"pose_weight": 0.08})
    again = graph.run(find_recording(filmed), out, cfg.model_copy(update={"smplify": softer}))
    assert contents(out / DETECTIONS) == kept
    assert again.times[0].name == "keypoints"


@SHARED
def test_a_part_of_a_recording_is_all_that_is_looked_at(
    filmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.detections.CHUNK", 4)
    monkeypatch.setattr("stages.detect.CHUNK", 4)
    out = tmp_path / "out"
    run = ["run", str(filmed), "--out", str(out), "--no-videos", "--set", "detect.model=full", "--sync=off"]
    runner = CliRunner()
    assert runner.invoke(run_pipeline.app, [*run, "--start", "5", "--end", "7"]).exit_code == 0
    assert Detections(out / DETECTIONS).chunks == [range(1, 2)] * 2
    assert summarise(Results(out).store()).people[0].frames_fitted == 2
    monkeypatch.setattr("stages.detect.load_detector", lambda *given: pytest.fail("a network is loaded"))
    again = runner.invoke(run_pipeline.app, [*run, "--start", "5", "--end", "7"])
    assert "already" in again.output.lower(), again.output
    monkeypatch.undo()
    assert "holds other frames" in str(runner.invoke(run_pipeline.app, run).exception)


def test_a_part_needs_its_frames_and_those_that_its_clocks_may_move_to(empty: Path) -> None:
    found = find_recording(empty)
    assert frames_of_part(found, 1.0) is None
    assert frames_of_part(found.part((), 1, 2), 0.0) == {"a": range(3), "b": range(3)}
    assert frames_of_part(found.part(("b",), 2, 3), 0.0) == {"b": range(1, 3)}
    assert frames_of_part(found.part(("b",), 2, 3), 0.02) == {"b": range(3)}


@SHARED
def test_the_person_is_found_where_another_detector_found_them(filmed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    shutil.copytree(filmed, folder)
    told = CliRunner().invoke(run_pipeline.app, ["detect", str(folder), "--model", "full", "--json"])
    assert told.exit_code == 0, told.output
    for name in ("cam01", "cam03"):
        files = sorted((folder / "openpose-json" / name).iterdir())
        assert len(files) == (FRAMES if name == "cam01" else FRAMES - 2)
        for file in files:
            people = json.loads(file.read_text())["people"]
            points = np.array([p["pose_keypoints_2d"] for p in people]).reshape(-1, 25, 3)
            other = BALANCING / "keypoints" / name / file.name
            true = np.array(json.loads(other.read_text())["people"][0]["pose_keypoints_2d"]).reshape(-1, 3)
            # BODY_25B has shoulders, elbows, wrists, knees and ankles at 5–10 and 13–16.
            pairs = {5: 5, 2: 6, 6: 7, 3: 8, 7: 9, 4: 10, 13: 13, 10: 14, 14: 15, 11: 16}
            both = [(a, b) for a, b in pairs.items() if true[b, 2] > 0.3]
            miss = [
                np.median([np.linalg.norm(p[a, :2] - true[b, :2]) for a, b in both if p[a, 2] > 0] or [999])
                for p in points
            ]
            assert min(miss) < 40, "pixels, of a person some 1,000 tall"

    # What lies beside the videos is read by all that opens the recording; the user's own keypoints win.
    (folder / "recording.yaml").write_text("keypoints: {scale: 2, format: coco_17}")
    detected_order = inspect(find_recording(folder)).point_order
    assert (detected_order.name, detected_order.how) == ("blazepose_33", "detected")
    assert {*detected_order.picture_scale} == {(1, 1)}, "what is stated is about files"
    (folder / "recording.yaml").unlink()
    assert {p.name for p in folder.iterdir()} >= {DETECTIONS, "openpose-json"}
    for name in ("cam01", "cam03"):
        shutil.copytree(BALANCING / "keypoints" / name, folder / "keypoints" / name)
    own = find_recording(folder)
    assert inspect(own).point_order.name == "body_25b"
    assert not own.without_keypoints().has_keypoints
    shutil.rmtree(folder / "keypoints")
    (folder / "videos" / "cam03.mp4").unlink()
    alone = find_recording(folder)
    assert not alone.has_keypoints
    assert "detections_unused" in {f.code for f in alone.findings}


@SHARED
def test_a_video_file_is_a_recording(filmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phone, out = tmp_path / "phone.mp4", tmp_path / "phone-results"
    shutil.copy(filmed / "videos" / "cam01.mp4", phone)
    (tmp_path / "calibration.toml").write_text("of another recording")
    told = CliRunner().invoke(run_pipeline.app, ["detect", str(phone), "--model", "full"])
    assert f"Next: python run_pipeline.py run {phone}" in told.output
    assert Detections(out / DETECTIONS).chunks == [range(1)]
    monkeypatch.setattr("stages.detect.load_detector", lambda *given: pytest.fail("detected again"))
    words = ["run", str(phone), "--set", "detect.model=full", "--set", "render.overlay=false"]
    told = CliRunner().invoke(run_pipeline.app, words)
    assert told.exit_code == 0, told.output
    assert summarise(Results(out).store()).people[0].frames_fitted == FRAMES
    found = reopen(Results(out))
    assert found.files == (phone,)
    assert [video.path for video in found.videos if video] == [phone]


@SHARED
def test_a_detection_that_is_interrupted_leaves_no_thread(filmed: Path, tmp_path: Path) -> None:
    def interrupt(total: int, done: Iterator[int]) -> None:
        assert [next(done), next(done)] in ([0, FRAMES], [0, FRAMES - 2])
        raise KeyboardInterrupt

    videos = {file.stem: probe(file) for file in sorted((filmed / "videos").iterdir())}
    with pytest.raises(KeyboardInterrupt):
        detect_videos(videos, tmp_path / "d", FULL, partial(decode, cfg=DecodeConfig()), interrupt)
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("multispin detect")]
    assert sum(map(len, Detections(tmp_path / "d").chunks)) == 1


def test_videos_of_nobody_are_told_and_make_no_mesh(
    empty: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["run_pipeline.py", "run", str(empty), "--out", str(out), "--set", "detect.model=full"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        run_pipeline.main()
    assert ended.value.code == 1
    assert "nobody was found in the videos of a, b." in capfd.readouterr().err
    assert not (out / "results.zarr").exists()
    with pytest.raises(NobodyFound):
        graph.run(find_recording(empty), out, graph.RunConfig.model_validate({"detect": {"model": "full"}}))


def test_nothing_to_look_at_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, message in (
        (["detect", tmp_path / "absent"], "does not exist"),
        (["detect", tmp_path], "Nor videos in which to detect people"),
    ):
        told = CliRunner().invoke(run_pipeline.app, [str(w) for w in words])
        assert message in str(told.exception)
