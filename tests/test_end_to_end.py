"""The main job as a user runs it, on recordings with known truth and on a real one."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from builders import assert_same_stores, store_arrays
from test_batch import call as in_process

from models.body import load_body
from models.evaluation.stores import compare_to_truth
from models.regressors.keypoint_nets import load_regressor, save_regressor
from pipeline.config import load
from pipeline.files import locked
from pipeline.recording import find_recording
from pipeline.store import Store
from stages.graph import RunConfig, run
from stages.synth import SynthConfig, write_recording

ROOT = Path(__file__).parents[1]
BALANCING = ROOT.parent / "shared" / "data" / "balancing"
CASES = ROOT.parent / "shared" / "cases"


def command(*words: object) -> list[str]:
    return [sys.executable, str(ROOT / "run_pipeline.py"), *map(str, words)]


def call(*words: object, status: int = 0) -> str:
    """Run the command line; its output, both streams."""
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=280, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == status, text
    assert "Traceback" not in text
    return text


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Four cameras, 100 frames, small pictures."""
    out = tmp_path_factory.mktemp("synth") / "recording"
    write_recording(out, SynthConfig(seconds=100 / 30, size=(320, 240), noise_px=1.0), load_body())
    return out


@pytest.fixture(scope="module")
def results(recording, tmp_path_factory):
    """The recording run once by the command line, undisturbed."""
    out = tmp_path_factory.mktemp("run") / "out"
    text = call("run", recording, "--out", out)
    return out, text


def test_a_run_leaves_what_it_promises(recording, results):
    out, text = results
    names = find_recording(recording).rig.names
    for video in [out / "mosaic.mp4", *(out / f"overlay_{n}.mp4" for n in names)]:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            assert stream.average_rate == 30
            assert sum(1 for _ in container.decode(stream)) == 100
    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames"] == 100
    assert summary["complete"]
    assert [c["name"] for c in summary["cameras"]] == list(names)
    assert summary["config"]["smplify"]
    assert summary["versions"]["torch"]
    assert "calibrated keypoints; weights: default" in summary["regressor"]
    assert summary["regressor"] in text.replace("\n", " ")
    stages = ["keypoints", "associate", "regress", "smplify", "store", "render"]
    assert [s["name"] for s in summary["stages"]] == stages
    assert "frame/s" in text
    assert "starved" in text


def test_accuracy_against_the_truth(recording, results):
    out, _ = results
    (errors,) = compare_to_truth(Store(out / "results.zarr"), Store(recording / "truth.zarr"), load_body())
    assert errors.frames == 100
    assert errors.mpjpe_mm < 15
    assert errors.pve_mm < 20
    truth, fitted = (s.events(0) for s in (Store(recording / "truth.zarr"), Store(out / "results.zarr")))
    assert sum(map(len, truth.values())) > 3
    for name, times in truth.items():
        np.testing.assert_allclose(fitted[name], times, atol=0.035, err_msg=name)  # a frame


def test_done_means_nothing_to_do(recording, results):
    out, _ = results
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert "nothing to do" in call("run", recording, "--out", out)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


def test_redrawing_never_touches_the_videos_of_the_run(recording, results, tmp_path):
    """And a run takes no other video for one of its own: a short one, one cut off, or one that is gone."""
    out = shutil.copytree(results[0], tmp_path / "out")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    text = call("render", out, "--end", 4, "--cameras", "cam02")
    assert f"{out / 'render/overlay_frames_0-3'}: overlay_cam02.mp4" in text.replace("\n", "")
    assert {p: p.read_bytes() for p in before} == before

    shutil.copy(out / "render/overlay_frames_0-3/overlay_cam02.mp4", out)
    cut = out / "overlay_cam03.mp4"
    cut.write_bytes(before[cut][: len(before[cut]) // 2])
    (out / "mosaic.mp4").unlink()
    call("run", recording, "--out", out)
    videos = [p for p in before if p.suffix == ".mp4"]
    assert {p: p.read_bytes() for p in videos} == {p: before[p] for p in videos}, "drawn of the store"
    assert "nothing to do" in call("run", recording, "--out", out)


def test_nothing_is_drawn_over_a_run_or_a_recording(recording, results, capfd, monkeypatch):
    out, _ = results
    status, text = in_process(capfd, monkeypatch, out, "--mode", "mosaic", "--out", out, command="render")
    assert status == 2
    assert "is a video of the run" in text
    place = recording / "videos"
    status, text = in_process(capfd, monkeypatch, out, "--mode", "side", "--out", place, command="render")
    assert status == 2
    assert f"--out {place}: holds" in text


def test_a_missing_video_is_drawn_again_from_the_store(recording, results):
    out, _ = results
    before = store_arrays(out / "results.zarr")
    (out / "mosaic.mp4").unlink()
    call("run", recording, "--out", out)
    assert (out / "mosaic.mp4").exists()
    after = store_arrays(out / "results.zarr")
    assert all(np.array_equal(before[k], after[k], equal_nan=before[k].dtype.kind == "f") for k in before)


def test_other_looks_are_drawn_again_from_the_store(recording, results, tmp_path):
    out, _ = results
    shutil.copytree(out, tmp_path / "out")
    before = (tmp_path / "out/overlay_cam01.mp4").read_bytes()
    call(
        "run",
        recording,
        "--out",
        tmp_path / "out",
        "--set",
        "render.opacity=0.3",
        "--set",
        "render.mosaic=false",
    )
    assert (tmp_path / "out/overlay_cam01.mp4").read_bytes() != before
    assert not (tmp_path / "out/mosaic.mp4").exists(), "of the earlier looks"
    assert_same_stores(tmp_path / "out/results.zarr", out / "results.zarr")


def test_videos_of_a_store_that_is_gone_are_drawn_again(recording, results, tmp_path):
    out, _ = results
    shutil.copytree(out, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/results.zarr")
    before = (tmp_path / "out/mosaic.mp4").stat().st_mtime_ns
    call("run", recording, "--out", tmp_path / "out", "--set", "smplify.acceleration_sigma=3")
    assert (tmp_path / "out/mosaic.mp4").stat().st_mtime_ns > before


def test_other_keypoints_are_refused(recording, results, tmp_path):
    out, _ = results
    shutil.copytree(recording, tmp_path / "other")
    for file in (tmp_path / "other/keypoints/cam02").iterdir():
        file.write_text(file.read_text().replace("0.9", "0.8"))
    text = call("run", tmp_path / "other", "--out", out, status=2)
    assert "config.recording.keypoints.cam02" in text


def test_two_runs_at_once(recording, results):
    out, _ = results
    with locked(out):
        assert "another run is at work here" in call("run", recording, "--out", out, status=2)


def test_without_threads_the_same_bits(recording, results, tmp_path):
    out, _ = results
    cfg = load(RunConfig, [ROOT / "configs/default.yaml"], ["render.overlay=false", "render.mosaic=false"])
    run(find_recording(recording), tmp_path, cfg, threads=False)
    assert_same_stores(tmp_path / "results.zarr", out / "results.zarr")


def kill(recording: Path, out: Path, rng: random.Random, kind: str, moment: float) -> int:
    """Start a run, kill -9 it after so many seconds (s), or soon after so many windows are done (k), and
    return its exit status."""
    process = subprocess.Popen(
        command("run", recording, "--out", out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    store = out / "results.zarr"
    end = time.monotonic() + (moment if kind == "s" else 120)
    while process.poll() is None and time.monotonic() < end:
        if kind == "k" and store.exists() and int(Store(store).done.sum()) >= moment:
            time.sleep(rng.uniform(0, 0.3))
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    return process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_of_four_people_killed_ten_times_ends_with_the_same_store(tmp_path):
    cfg = SynthConfig(
        seconds=9, size=(320, 240), people=4, leaving=1, exchanged=0.1, phantoms=0.2, videos=False
    )
    write_recording(tmp_path / "recording", cfg, load_body())
    call("run", tmp_path / "recording", "--out", tmp_path / "whole")
    whole = Store(tmp_path / "whole/results.zarr")
    assert len(whole.ids) >= 4
    rng = random.Random(1)
    for k in range(10):
        assert kill(tmp_path / "recording", tmp_path / "killed", rng, "k", k) == -signal.SIGKILL
    call("run", tmp_path / "recording", "--out", tmp_path / "killed")
    assert_same_stores(tmp_path / "killed/results.zarr", whole.path)


def test_killed_five_times_and_resumed(recording, results, tmp_path):
    out, _ = results
    rng = random.Random(0)
    store = tmp_path / "results.zarr"
    windows = len(Store(out / "results.zarr").done)
    # Two anywhere in a run's life, its start and the creation of the store included; three by windows done.
    moments = [
        *(("s", rng.uniform(1, 6)) for _ in range(2)),
        *(("k", k) for k in sorted(rng.sample(range(windows), 3))),
    ]
    for kind, moment in moments:
        kill(recording, tmp_path, rng, kind, moment)
    call("run", recording, "--out", tmp_path)
    assert_same_stores(store, out / "results.zarr")
    for video in ("mosaic.mp4", *(f"overlay_cam0{n}.mp4" for n in range(1, 5))):
        assert (tmp_path / video).read_bytes() == (out / video).read_bytes()
    assert not [*tmp_path.glob("*.part*")]


def test_ctrl_c_leaves_a_readable_store_and_no_half_video(recording, tmp_path):
    process = subprocess.Popen(
        command("run", recording, "--out", tmp_path),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    store = tmp_path / "results.zarr"
    while process.poll() is None and not (store.exists() and Store(store).done.any()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "run the same command again to continue" in err
    assert "Traceback" not in err
    assert Store(store).done.any()
    assert not [*tmp_path.glob("*.mp4*")]


def test_other_settings_are_refused_by_name(recording, results):
    out, _ = results
    text = call("run", recording, "--out", out, "--set", "keypoints.min_confidence=0.5", status=2)
    assert "config.keypoints.min_confidence: 0.3 → 0.5" in text


def test_other_weights_are_refused(recording, results, tmp_path):
    """Of the same path: what is in the file counts."""
    weights = tmp_path / "weights.safetensors"
    net = load_regressor("calibrated")
    save_regressor(net, weights)
    short = tmp_path / "short"
    short.mkdir()
    (short / "calibration.toml").write_bytes((recording / "calibration.toml").read_bytes())
    (short / "keypoints").symlink_to(recording / "keypoints")
    words = ("run", short, "--out", tmp_path / "out", "--set", f"regress.weights={weights}")
    assert f"calibrated keypoints; weights: {weights}" in call(*words)
    one, other = (store_arrays(out / "results.zarr") for out in (tmp_path / "out", results[0]))
    regression = "people/0/regression/body_pose"
    assert np.array_equal(one[regression], other[regression])
    net.start += 0.01
    save_regressor(net, weights)
    assert "config.regressor: " in call(*words, status=2)


def test_keypoints_and_calibration_alone(recording, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "keypoints").symlink_to(recording / "keypoints")
    (bare / "calibration.toml").write_bytes((recording / "calibration.toml").read_bytes())
    text = call("run", bare, "--out", tmp_path / "out")
    assert "30 fps assumed" in text
    assert Store(tmp_path / "out" / "results.zarr").first_missing == 5
    assert not [*(tmp_path / "out").glob("*.mp4")]


def test_one_camera_needs_the_regressor(recording, tmp_path):
    bare = tmp_path / "bare"
    name = min(f.name for f in (recording / "keypoints").iterdir())
    shutil.copytree(recording / "keypoints" / name, bare / "keypoints" / name)
    (bare / "recording.yaml").write_text("picture_size: [320, 240]\n")
    words = ("run", bare, "--out", tmp_path / "out")
    text = call(*words, "--set", "regress.weights=none", status=2)
    assert f"camera '{name}' alone cannot locate a body without a regressor" in " ".join(text.split())
    assert "uncalibrated keypoints; weights: default" in " ".join(call(*words).split())
    store = Store(tmp_path / "out" / "results.zarr")
    assert store.first_missing == 5
    assert store.array("people/0/valid").mean() > 0.9


def test_info_of_both_ends(recording, results):
    out, _ = results
    text = call("info", recording)
    for word in (
        "Baselines, metres",
        "body_25",
        "in step?",
        "residual px",
        "left out px",
        "Triangulation residual: ",
    ):
        assert word in text
    text = call("info", *(recording / "videos" / f"{name}.mp4" for name in ("cam01", "cam02")))
    assert "run detects people in the videos" in text
    text = call("info", out)
    assert "5 of 5" in text
    assert "median px" in text
    assert "Reprojection error: " in text
    first = next(line for line in text.splitlines() if line.startswith("cam01"))
    assert first.split()[-1].isdigit()  # sides put right, as the run said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nowhere", "--out", "x"], "nowhere does not exist"),
        (["info", "nowhere"], "nowhere does not exist"),
        (["synth", "x", "--size", "101", "99"], "--size: "),
        (["synth", "x", "--format", "coco"], "--format: "),
        (["synth", "x", "--people", "2", "--leaving", "3"], "--leaving: "),
        (
            ["run", "nowhere", "--out", "x", "--set", "smplify.overlap_fames=3"],
            "did you mean smplify.overlap_frames?",
        ),
        (["run", "nowhere", "--out", "x", "--config", "none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_mistakes_on_the_command_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in call(*words, status=2)


def test_an_out_that_cannot_be_made(recording, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in call("run", recording, "--out", tmp_path / "file" / "out", status=2)


def peak_mb(*words: object) -> float:
    """Largest resident memory of one command."""
    process = psutil.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    assert process.returncode == 0
    return peak


def test_memory_does_not_grow_with_length(tmp_path):
    body = load_body()
    peaks = []
    for seconds in (4, 40):
        folder = tmp_path / f"{seconds}"
        write_recording(folder, SynthConfig(seconds=seconds, cameras=2, size=(320, 240), noise_px=1), body)
        peaks.append(peak_mb("run", folder, "--out", tmp_path / f"out{seconds}"))
    assert peaks[1] < 1.1 * peaks[0], f"{peaks[0]:.0f} MB for 120 frames, {peaks[1]:.0f} MB for 1200"


@pytest.mark.skipif(not BALANCING.is_dir(), reason="the real recording is not beside the checkout")
def test_the_real_recording(tmp_path):
    text = call("run", BALANCING, "--out", tmp_path, "--set", "render.mosaic_size=[640,360]")
    assert "body_25b" in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["frames"] == 99
    assert summary["reprojection_median_px"] <= 9
    assert summary["people"][0]["jitter_mm"] <= 3
    assert summary["people"][0]["frames_fitted"] == 99
    # The bystander, whom two cameras see, pulls no fit.
    assert "people left out: 1" in call(
        "run", BALANCING, "--out", tmp_path / "m", "--people", "main", "--no-videos"
    )
    main, both = (store_arrays(out / "results.zarr") for out in (tmp_path / "m", tmp_path))
    assert np.abs(main["people/0/joints"] - both["people/0/joints"]).max() < 0.5e-3
    assert "people/1/joints" in both
    assert "people/1/joints" not in main


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the shared cases")
def test_a_list_of_alphapose_a_camera(tmp_path):
    words = ("run", CASES / "alphapose_list", "--out", tmp_path)
    words += ("--set", "render.overlay=false", "--set", "render.mosaic=false")
    text = call(*words)
    assert "coco_17, found: limbs fit a body" in text
    assert "cam01: nobody in 2 frames" in text
    found, truth = (store_arrays(s) for s in (tmp_path / "results.zarr", CASES / "_truth" / "truth.zarr"))
    at = np.abs(found["time_s"][:, None] - truth["time_s"]).argmin(1)
    error_m = np.linalg.norm(found["people/0/joints"] - truth["people/0/joints"][at], axis=-1)
    assert error_m.shape[0] == 24
    assert error_m.mean() < 0.017
    assert "everything is done already" in call(*words)
