"""The page on data sets and training: every option of SPIN and the reference, and settings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml
from pydantic import BaseModel

import run_pipeline
from models.evaluation.protocols import PROTOCOLS
from models.training.trainer import _FREE_SETTINGS, _SCHEDULE_SETTINGS, TrainConfig

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
TABLE = dict(re.findall(r"^\| (.+?) \| (.+) \|$", PAGE.split("## SPIN's options")[1], re.M)[1:])

# The arguments that train_options.py, eval.py, eval_multiview.py and preprocess_datasets.py add.
THEIRS = (
    "name", "time_to_run", "resume", "num_workers", "pin_memory", "no_pin_memory", "log_dir", "checkpoint",
    "from_json", "pretrained_checkpoint", "num_epochs", "lr", "batch_size", "summary_steps", "test_steps",
    "checkpoint_steps", "img_res", "rot_factor", "noise_factor", "scale_factor", "ignore_3d",
    "shape_loss_weight", "keypoint_loss_weight", "pose_loss_weight", "beta_loss_weight",
    "openpose_train_weight", "gt_train_weight", "run_smplify", "smplify_threshold", "num_smplify_iters",
    "shuffle_train", "no_shuffle_train", "dataset", "log_freq", "shuffle", "result_file", "train_files",
    "eval_files",
)  # fmt: skip


@pytest.mark.parametrize("option", THEIRS)
def test_every_option_of_theirs_has_a_row(option: str) -> None:
    assert any(f"`--{option}`" in there for there in TABLE)


def setting(model: type[BaseModel], key: str) -> bool:
    """Whether a dotted key is one of a configuration's."""
    first, _, rest = key.partition(".")
    if first not in model.model_fields:
        return False
    inner = model.model_fields[first].annotation
    return not rest or (isinstance(inner, type) and issubclass(inner, BaseModel) and setting(inner, rest))


def test_the_settings_and_options_that_it_names_exist() -> None:
    commands = typer.main.get_command(run_pipeline.app).commands  # type: ignore[attr-defined]
    named = 0
    for here in TABLE.values():
        command = ""
        for text in re.findall(r"`([^`]+)`", here):
            word = text.split(":")[0].split(" ")[0]
            if word in commands:
                command = word
            options = {o for p in commands[command].params for o in p.opts} if command else set()
            for option in re.findall(r"--[\w-]+", text):
                assert option in options, (command, option)
                named += 1
            if word not in commands and not word.startswith("--"):
                assert setting(TrainConfig, word), word
                named += 1
    assert named > 35


def test_its_configuration_is_one() -> None:
    text = re.search(r"```yaml\n(.*?)```", PAGE, re.S)
    assert text
    cfg = TrainConfig.model_validate(yaml.safe_load(text[1]))
    assert cfg.images.sources[0].kind == "mpi-inf-3dhp"


def test_every_protocol_is_in_its_table() -> None:
    for name, protocol in PROTOCOLS.items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", PAGE.split("## Preprocess")[0], re.M)
        assert f"| {len(protocol.predicted)} |" in row


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:pipeline|models|configs)/[\w/.]+)`", PAGE))))
def test_paths_that_it_names_exist(name: str) -> None:
    assert (ROOT / name).exists()


def test_settings_that_may_change_when_a_training_goes_on_are_those_that_it_names() -> None:
    allowed = re.split(r"May\s+change\s+on `--resume`, and what changes is printed:", PAGE)[1]
    course, rest = allowed.split(";")[:2]
    assert re.findall(r"`([^`]+)`", course) == list(_SCHEDULE_SETTINGS)
    assert re.findall(r"`([^`]+)`", rest.split("Any other")[0]) == list(_FREE_SETTINGS)
