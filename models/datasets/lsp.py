"""Leeds Sports Poses (Johnson and Everingham 2010): 2000 pictures of a person with 14 annotated joints.

::

    joints.mat          joints (3, 14, 2000): x, y and occlusion
    images/im0001.jpg
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from models.datasets.rows import Part, PersonRow, check_picture, points_box
from pipeline.errors import InputError
from pipeline.files import decoding
from pipeline.skeleton import EXTRA_24

NAME: Final = "lsp"
SPLITS: Final = ("train", "test")
STEP: Final = {"train": 1, "test": 1}

_PICTURES: Final = {"train": range(1000), "test": range(1000, 2000)}
_JOINTS: Final = 14
"""The first of EXTRA_24, in their order."""


def parts(root: Path, split: str) -> tuple[Part, ...]:
    """Annotation file. Raises ``InputError`` where there is none."""
    if not (root / "joints.mat").is_file():
        raise InputError(f"{root}: no joints.mat. Give the folder in which lsp_dataset.zip was unpacked.")
    return (Part(root, "joints.mat", split),)


def rows(part: Part, every: int) -> Iterator[PersonRow]:
    """Rows of every ``every``-th picture of the split.

    Raises ``InputError``: the file is damaged or holds something else, or a picture is missing.
    """
    from scipy.io import loadmat

    file = part.root / part.name
    with decoding(file, "Download it again."):
        annotated = np.asarray(loadmat(file, variable_names=("joints",))["joints"], np.float64)
        if annotated.shape != (3, _JOINTS, 2000):
            raise ValueError(f"joints {annotated.shape}, expected (3, {_JOINTS}, 2000)")
    for i in _PICTURES[part.split][::every]:
        imgname = f"images/im{i + 1:04d}.jpg"
        check_picture(part.root, imgname, "lsp_dataset.zip")
        joints = np.zeros((len(EXTRA_24), 3))
        joints[:_JOINTS] = np.c_[annotated[:2, :, i].T, np.ones(_JOINTS)]
        yield PersonRow(
            id=f"{NAME}/{part.split}/images/0/{i + 1:06d}",
            instant=str(i),
            imgname=imgname,
            box=points_box(joints[:_JOINTS, :2]),
            camera="0",
            part=joints,
        )
