"""Commands of the documents, run as they are written: ``pytest -m slow tests/test_docs_commands.py``."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import write_motion
from test_docs import DOCS, ROOT, written_commands

from models.body import load_body
from stages.synth import SynthConfig, write_recording

COMMANDS = [*dict.fromkeys(written_commands())]

ELSEWHERE = {
    "--address": "test_cluster.py::test_the_same_numbers_as_without_a_cluster",
    "s3://": "test_storage.py::test_a_batch_on_s3",
    "calibration board": "test_board_calibration.py::test_the_command_on_videos",
    "evaluate --dataset": "test_evaluate.py::test_the_truth_of_3dpw_is_of_men_and_women",
    "preprocess": "test_evaluate.py::test_data_sets_are_preprocessed",
    "crops mpi_inf": "test_published.py::test_crops_of_videos_are_the_same_samples",
}
"""Tests that do the same as those which need a cluster, a bucket, a filmed board or a data set."""

STANDS_FOR = {
    "<name>": "coco_17", "OUT FILE": "OUT walk.bvh", "CONFIG": "configs/train_keypoints_calibrated.yaml",
    "IN ": "RECORDING ", "REC/": "RECORDING/",
    "--out DIR": "--out DIR --minutes 1",
}  # fmt: skip
"""What a reader puts in place of a name."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder in which what the documents name is there, small."""
    place = tmp_path_factory.mktemp("place")
    write_recording(place / "RECORDING", SynthConfig(seconds=1, size=(320, 240), noise_px=1), load_body())
    for name in ("a", "b"):
        shutil.copytree(place / "RECORDING", place / "DATASET" / name)
        shutil.copy(place / "RECORDING" / "videos" / "cam01.mp4", place / f"{name}.mp4")
    for name in ("run_pipeline.py", "configs", "tests"):
        (place / name).symlink_to(ROOT / name)
    shutil.move(write_motion(place), place / "POSES.npz")
    (place / "bin").mkdir()
    (place / "bin" / "python").symlink_to(sys.executable)
    execute(place, "python run_pipeline.py run RECORDING --out OUT")
    return place


def execute(place, line):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", line], cwd=place, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted({name for name, _ in COMMANDS}))
def test_commands_of_a_document_run(place, tmp_path, name):
    here = shutil.copytree(place, tmp_path / "here", symlinks=True)
    loops = re.findall(r"^```\n(for .*?)\n```", DOCS[name], re.M | re.S)
    for line in [*(line for document, line in COMMANDS if document == name), *loops]:
        if any(part in line for part in ELSEWHERE) or ("$" in line and "for" not in line):
            continue
        for word, stands in STANDS_FOR.items():
            line = line.replace(word, stands)
        line = re.sub(r"--minutes \d+", "--minutes 0.02", line).replace("[", "").replace("]", "")
        line = line if line.startswith("for ") else f"python run_pipeline.py {line}"
        if " view " in line:  # which goes on until Ctrl-C
            line = f"timeout -s INT 30 {line} --port 0 | grep 'Open http'"
        execute(here, line)


@pytest.mark.parametrize("test", sorted({*ELSEWHERE.values()}))
def test_commands_that_are_run_elsewhere_are(test):
    file, name = test.split("::")
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.M)
