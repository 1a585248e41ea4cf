"""A user's mistakes on the command line: a message that names thing and remedy, status 2, no traceback."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import run_pipeline
from models.body import load_body
from stages.synth import SynthConfig, write_recording


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    out = tmp_path_factory.mktemp("good") / "recording"
    cfg = SynthConfig(seconds=1, size=(320, 240), noise_px=1, outliers=0, missing=0, gaps=0)
    write_recording(out, cfg, load_body())
    (out / "synth.yaml").unlink()
    return out


@pytest.fixture
def folder(good, tmp_path):
    """A recording of one's own to spoil: 4 cameras, 30 frames."""
    return Path(shutil.copytree(good, tmp_path / "recording"))


def call(capfd, monkeypatch, *words: object) -> tuple[int, str]:
    """Status and everything printed by one command."""
    monkeypatch.setattr(sys, "argv", ["run_pipeline.py", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_pipeline.main()
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out + err


@pytest.mark.parametrize("command", ["info", "run"])
def test_a_path_that_cannot_be_looked_at(capfd, monkeypatch, tmp_path, command) -> None:
    words = ("--out", tmp_path) if command == "run" else ()
    status, text = call(capfd, monkeypatch, command, "a" * 300, *words)
    assert status == 2
    assert "cannot be read (File name too long)" in " ".join(text.split())


def edit(file: Path, pattern: str, new: str) -> None:
    text, count = re.subn(pattern, new, file.read_text(), count=1, flags=re.S)
    assert count == 1
    file.write_text(text)


def keypoint_files(folder: Path, camera: str = "*") -> list[Path]:
    return sorted(folder.glob(f"keypoints/{camera}/*.json"))


def broken_toml(f: Path) -> None:
    edit(f / "calibration.toml", r"matrix = \[", "matrix = ")


def fisheye(f: Path) -> None:
    edit(f / "calibration.toml", "fisheye = false", "fisheye = 1")


def not_numbers(f: Path) -> None:
    edit(f / "calibration.toml", r"translation = \[[^,]*,", "translation = [nan,")


def no_keypoints_nor_videos(f: Path) -> None:
    shutil.rmtree(f / "keypoints")
    shutil.rmtree(f / "videos")


def other_count(f: Path) -> None:
    (f / "videos" / "cam04.mp4").rename(f / "videos" / "left.mp4")
    shutil.copy(f / "videos" / "left.mp4", f / "videos" / "right.mp4")


def not_a_video(f: Path) -> None:
    (f / "videos" / "cam02.mp4").write_text("not a video")


def empty_video(f: Path) -> None:
    (f / "videos" / "cam02.mp4").write_bytes(b"")


def other_aspect(f: Path) -> None:
    edit(f / "calibration.toml", r"size = \[[^\]]*\]", "size = [320.0, 180.0]")


def unknown_key(f: Path) -> None:
    (f / "recording.yaml").write_text("keypoint: {format: body_25}\n")


def unknown_format(f: Path) -> None:
    (f / "recording.yaml").write_text("keypoints: {format: body_52}\n")


def out_of_folder(f: Path) -> None:
    (f / "recording.yaml").write_text("keypoints: {path: ../..}\n")


def nobody(f: Path) -> None:
    for file in keypoint_files(f):
        file.write_text('{"version": 1.3, "people": []}')


def strange_points(f: Path) -> None:
    for file in keypoint_files(f):
        document = json.loads(file.read_text())
        for person in document["people"]:
            person["pose_keypoints_2d"] = person["pose_keypoints_2d"][: 3 * 13]
        file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken_toml, r"calibration\.toml"),
        (fisheye, r"calibration\.toml.*cam01.*fisheye"),
        (not_numbers, r"calibration\.toml.*cam01.*translation"),
        (no_keypoints_nor_videos, r"no keypoints found; .*Nor videos in which to detect people"),
        (other_count, r"left.*right.*cam04"),
        (not_a_video, r"cam02\.mp4"),
        (empty_video, r"cam02\.mp4.*empty"),
        (other_aspect, r"cam01.*320x240.*320x180"),
        (unknown_key, r"recording\.yaml.*keypoint.*did you mean keypoints"),
        (unknown_format, r"recording\.yaml.*body_52.*body_25b"),
        (out_of_folder, r"recording\.yaml.*leaves the recording"),
        (nobody, r"nobody in any of the \d+ keypoint files"),
        (strange_points, r"13 keypoints a person fit none of the known formats"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_refused_with_a_message(spoil, message, folder, tmp_path, capfd, monkeypatch):
    spoil(folder)
    for words in (("run", folder, "--out", tmp_path / "out"), ("info", folder)):
        status, text = call(capfd, monkeypatch, *words)
        assert status == 2, text
        assert re.search(message, text, re.S), text
        assert "Traceback" not in text
    assert not (tmp_path / "out" / "results.zarr").exists()


def test_what_one_camera_lacks_is_counted_not_fatal(folder, tmp_path, capfd, monkeypatch):
    files = keypoint_files(folder, "cam03")
    files[3].write_text('{"version": 1.3, "people": []}')
    files[4].write_text('{"version": 1.3, "people": [{}]}')
    files[5].write_text(files[5].read_text()[:90])
    files[6].unlink()
    edit(files[7], r'("pose_keypoints_2d":)\[.*?\]', r"\1[" + ",".join(["NaN"] * 75) + "]")
    status, text = call(
        capfd, monkeypatch, "run", folder, "--out", tmp_path / "out", "--set", "render.mosaic=false"
    )
    assert status == 0, text
    assert re.search(r"cam03: .*nobody in 2 frames \(first: .*no keypoint file in 1 frame", text)
    missing = json.loads((tmp_path / "out" / "summary.json").read_text())["missing"]
    assert sum(missing["cam03"]["frames"].values()) == 5
    assert all(not missing[c]["frames"] for c in ("cam01", "cam02", "cam04"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("regress.weights", "SPIN's model_checkpoint.pt"),
        ("body", "a body model is a .pkl or .npz file"),
    ],
)
def test_files_that_settings_name_are_looked_at_first(setting, message, good, tmp_path, capfd, monkeypatch):
    notes = tmp_path / "notes.txt"
    notes.write_text("shopping: milk\n")
    monkeypatch.setattr("pipeline.batch.dataset.opened", None)  # whoever opens the recording fails
    out = tmp_path / "out"
    for words in (("run", good), ("batch", good.parent), ("batch", good.parent, "--dry-run")):
        status, text = call(capfd, monkeypatch, *words, "--out", out, "--set", f"{setting}={notes}")
        assert status == 2, text
        assert message in text
        assert "KeyError" not in text
        assert not out.exists()


def test_info_does_not_call_right_what_it_has_warned_of(folder, capfd, monkeypatch):
    assert "\nNothing looks wrong." in call(capfd, monkeypatch, "info", folder)[1]
    for file in keypoint_files(folder, "cam02")[1::2]:
        file.unlink()
    status, text = call(capfd, monkeypatch, "info", folder)
    assert status == 0
    assert "warning: 15 of 30 keypoint files of cam02 are missing, the first of them number 1\n" in text
    assert "\nNothing else looks wrong." in text


def exchanged(folder: Path) -> None:
    """As by somebody who has mixed up two cables."""
    for kind in ("keypoints/cam03", "videos/cam03.mp4"):
        one, other = folder / kind, folder / kind.replace("cam03", "cam04")
        one.rename(folder / "third")
        other.rename(one)
        (folder / "third").rename(other)


def test_exchanged_cameras_are_not_missed(folder, tmp_path, capfd, monkeypatch):
    exchanged(folder)
    told = "warning: cameras cam03 and cam04 are exchanged: "
    status, text = call(capfd, monkeypatch, "info", folder)
    assert status == 0
    assert text.count(told) == 1, "one mistake is told once"
    out = tmp_path / "out"
    words = ("--out", out, "--set", "render.overlay=false", "--set", "render.mosaic=false")
    status, text = call(capfd, monkeypatch, "run", folder, *words)
    assert status == 0, text
    assert text.count(told) == 1
    end = text[text.index("report.html\n") :]
    for name in ("cam03", "cam04"):
        assert re.search(rf"warning: camera {name} was left out of the fit in \d+ of the 30 frames", end), (
            text
        )
    assert re.search(r"\n5 warnings: above, and in .*out/report\.html\.\n", end), text
    assert json.loads((out / "summary.json").read_text())["warnings"][0].startswith(
        "camera cam03 was left out"
    )
    # And when nothing is left to do.
    status, text = call(capfd, monkeypatch, "run", folder, *words)
    assert "--overwrite starts again." in text
    assert "camera cam04 was left out of the fit" in text

    status, text = call(
        capfd,
        monkeypatch,
        "batch",
        folder.parent,
        "--only",
        "recording",
        *words[2:],
        "--out",
        tmp_path / "all",
    )
    assert status == 0, text
    log = tmp_path / "all/recording/log.txt"
    assert f"warning: recording: 5 warnings, in {log}; first: camera cam03 was left out of the fit" in text
    assert "1 of 1 recording done." in text
    assert "camera cam04 was left out of the fit" in log.read_text()
    assert "camera cam04 was left out of the fit" in (tmp_path / "all/batch.html").read_text()
