"""MPII Human Pose (Andriluka et al. 2014): people of 410 activities with 16 annotated joints.

::

    annot/train.h5, annot/valid.h5   imgname (N,), center (N, 2), scale (N,), part (N, 16, 2)
    images/000001163.jpg

The annotations are those of pose-hg-train (Newell et al. 2016), which SPIN also reads: its ``data/train.h5``
goes to ``annot``. A scale is the person's height divided by 200 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from models.datasets.rows import Part, PersonRow, check_picture, import_extra
from pipeline.errors import InputError
from pipeline.files import decoding
from pipeline.skeleton import EXTRA_24

NAME: Final = "mpii"
SPLITS: Final = ("train", "valid")
STEP: Final = {"train": 1, "valid": 1}

_EXTRA_24_ROWS: Final = [0, 1, 2, 3, 4, 5, 14, 15, 12, 13, 6, 7, 8, 9, 10, 11]
"""Row of EXTRA_24 of each of the 16 joints."""


def parts(root: Path, split: str) -> tuple[Part, ...]:
    """Annotation file of a split. Raises ``InputError`` where there are none."""
    if not (root / f"annot/{split}.h5").is_file():
        raise InputError(
            f"{root}: no annot/{split}.h5. Put the annotations of pose-hg-train there, or SPIN's "
            "data/train.h5, beside the folder images of mpii_human_pose_v1.tar.gz."
        )
    return (Part(root, f"annot/{split}.h5", split),)


def rows(part: Part, every: int) -> Iterator[PersonRow]:
    """Rows of every ``every``-th person with all 16 joints annotated.

    Raises ``InputError``: the file is damaged or holds something else, or a picture is missing.
    """
    h5py = import_extra("h5py")
    file = part.root / part.name
    with decoding(file, "Download it again."):
        with h5py.File(file) as annotations:
            names = [bytes(n).decode().rstrip("\0") for n in np.asarray(annotations["imgname"]).tolist()]
            center, scale, xy = (
                np.asarray(annotations[key], np.float64) for key in ("center", "scale", "part")
            )
        count = len(names)
        if (center.shape, scale.shape, xy.shape) != ((count, 2), (count,), (count, 16, 2)):
            raise ValueError(f"center {center.shape}, scale {scale.shape}, part {xy.shape}")
    for i in np.flatnonzero((xy > 0).all((1, 2)))[::every].tolist():
        imgname = f"images/{names[i]}"
        check_picture(part.root, imgname, "mpii_human_pose_v1.tar.gz")
        joints = np.zeros((len(EXTRA_24), 3))
        joints[_EXTRA_24_ROWS] = np.c_[xy[i], np.ones(16)]
        yield PersonRow(
            id=f"{NAME}/{part.split}/{Path(names[i]).stem}/0/{i:06d}",
            instant=str(i),
            imgname=imgname,
            box=np.array([*center[i], 200 * scale[i]]),
            camera="0",
            part=joints,
        )
