"""Files that cannot ship: purpose, source, terms, and a check of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch

from models.body import load_body
from models.datasets import DATASETS
from models.evaluation.joints import read_regressor
from models.image_regressor import load_image_regressor
from models.priors import load_pose_prior
from models.synthetic.poses import read_poses
from pipeline.errors import InputError


@dataclass(frozen=True)
class External:
    """A file or folder that users get themselves; a recording is reconstructed without any."""

    name: str
    """Path below the folder of external files; ``torch/...``: file in torch's cache of checkpoints."""
    purpose: str
    source: str
    terms: str
    option: str
    """Command-line option that gives another path."""
    describe: Callable[[Path], str]
    """Read it and describe its content in a few words; raises ``InputError`` where it is not sound."""


_SMPL: Final = "register at https://smpl.is.tue.mpg.de: SMPL for Python, basicmodel_*_lbs_10_207_0_v1.1.0.pkl"
_SMPLIFY: Final = "register at https://smplify.is.tue.mpg.de"
_NEUTRAL: Final = f"{_SMPLIFY}: basicModel_neutral_lbs_10_207_0_v1.0.0.pkl"
_RESEARCH: Final = "non-commercial research, after registration"
_SPIN: Final = "https://github.com/nkolot/SPIN, fetch_data.sh"


def _body(path: Path) -> str:
    body = load_body(path)
    return f"{len(body.v_template)} vertices, {body.num_betas} betas, sha256 {body.sha256[:12]}"


def _regressor(joints: int) -> Callable[[Path], str]:
    return lambda path: f"{joints} joints of 6890 vertices, sha256 {read_regressor(path, joints)[1][:12]}"


def _prior(path: Path) -> str:
    return f"{len(load_pose_prior(path).weights)} components"


def _weights(path: Path) -> str:
    config = load_image_regressor(path).config
    return f"{config.encoder}, fusion {config.fusion}"


def _motion(path: Path) -> str:
    train, test = read_poses(path)
    return f"{len(train.pose)} poses to train on, {len(test.pose)} to test on"


def _checkpoint(path: Path) -> str:
    """Check a file of torchvision against the beginning of its sha256 in its name."""
    expected = path.stem.rpartition("-")[2]
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if not sha256.startswith(expected):
        raise InputError(f"{path}: sha256 {sha256[:12]}, expected {expected}. Download it again.")
    return f"sha256 {sha256[:12]}"


def _data_set(name: str, root: Path) -> str:
    module = next(m for m in DATASETS if name == m.NAME)
    counts: list[str] = []
    for split in module.SPLITS:
        try:
            counts.append(f"{split}: {len(module.parts(root, split))}")
        except InputError as e:
            error = e
    if not counts:
        raise error
    return "videos or sequences, " + ", ".join(counts)


EXTERNAL: Final = (
    External("SMPL_NEUTRAL.pkl", "SMPL, for results in its shapes and for the published protocols", _NEUTRAL,
             _RESEARCH, "--set body=FILE; evaluate --body; train --set images.body=FILE", _body),
    External("SMPL_MALE.pkl", "3DPW's ground truth", _SMPL, _RESEARCH, "evaluate --body-male", _body),
    External("SMPL_FEMALE.pkl", "3DPW's ground truth", _SMPL, _RESEARCH, "evaluate --body-female", _body),
    External("J_regressor_h36m.npy", "Human3.6M's 17 joints of SMPL, for the published protocols", _SPIN,
             "SPIN's, made of SMPL: research", "evaluate --joint-regressor", _regressor(17)),
    External("J_regressor_extra.npy", "nine extra joints of SMPL, to train on data sets' joints", _SPIN,
             "SPIN's, made of SMPL: research", "train --set images.joint_regressor=FILE", _regressor(9)),
    External("gmm_08.pkl", "SMPLify's pose prior; one ships that does as well", _SMPLIFY, _RESEARCH,
             "train --set images.pose_prior=FILE", _prior),
    External("model_checkpoint.pt", "SPIN's network, to compare with or to begin from", _SPIN,
             "SPIN's, made of SMPL: research", "--set regress.weights=FILE; evaluate --weights", _weights),
    External("poses.npz", "motion capture, to train keypoint networks; one is shipped trained",
             "CMU, http://mocap.cs.cmu.edu, as SMPL poses: models/synthetic/poses.py",
             "free, but not to be sold as data", "train --motion", _motion),
    External("torch/resnet50-0676ba61.pth", "ImageNet's weights for ResNet-50, to begin training from",
             "torchvision, which downloads it by itself", "BSD 3-Clause", "TORCH_HOME", _checkpoint),
    External("torch/convnext_tiny-983f1562.pth", "ImageNet's weights for ConvNeXt-T, to begin training from",
             "torchvision, which downloads it by itself", "BSD 3-Clause", "TORCH_HOME", _checkpoint),
    External("mpi_inf_3dhp", "MPI-INF-3DHP, to train on and to evaluate",
             "https://vcai.mpi-inf.mpg.de/3dhp-dataset", "non-commercial research", "preprocess ROOT",
             partial(_data_set, "mpi-inf-3dhp")),
    External("h36m", "Human3.6M, to train on and to evaluate", "register at http://vision.imar.ro/human3.6m",
             "academic use, after registration", "preprocess ROOT",
             partial(_data_set, "h36m")),
    External("3dpw", "3DPW, to evaluate", "https://virtualhumans.mpi-inf.mpg.de/3DPW",
             "non-commercial research", "preprocess ROOT", partial(_data_set, "3dpw")),
    External("lsp", "Leeds Sports Poses, to train on", "http://sam.johnson.io/research/lsp.html",
             "research", "preprocess ROOT", partial(_data_set, "lsp")),
    External("mpii", "MPII Human Pose, to train on", "http://human-pose.mpi-inf.mpg.de", "BSD, simplified",
             "preprocess ROOT", partial(_data_set, "mpii")),
    External("coco", "COCO keypoints, to train on", "https://cocodataset.org",
             "annotations CC BY 4.0; pictures their photographers'", "preprocess ROOT",
             partial(_data_set, "coco")),
)  # fmt: skip


@dataclass(frozen=True)
class ExternalCheck:
    """Result of looking for an external file and reading it."""

    path: Path
    exists: bool
    sound: bool
    content: str
    """Description of the content, or the error."""


def check_external(external: External, folder: Path) -> ExternalCheck:
    """Check that a file exists below ``folder`` or in torch's cache, and is sound, by reading it."""
    name = external.name
    path = folder / name
    if name.startswith("torch/"):
        path = Path(torch.hub.get_dir()) / "checkpoints" / name.removeprefix("torch/")
    if not path.exists():
        return ExternalCheck(path, False, False, "")
    try:
        return ExternalCheck(path, True, True, external.describe(path))
    except InputError as e:
        return ExternalCheck(path, True, False, str(e))
    except OSError as e:
        return ExternalCheck(path, True, False, f"cannot be read ({e.strerror or e})")
