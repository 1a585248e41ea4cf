"""COCO keypoints (Lin et al. 2014): people in photographs with up to 17 annotated points.

::

    annotations/person_keypoints_train2014.json
    train2014/COCO_train2014_000000000009.jpg
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from models.crops import BOX_MARGIN
from models.datasets.rows import Part, PersonRow, check_picture
from pipeline.errors import InputError
from pipeline.files import decoding
from pipeline.skeleton import EXTRA_24, POINT_ORDERS

NAME: Final = "coco"
SPLITS: Final = ("train2014", "val2014", "train2017", "val2017")
STEP: Final = dict.fromkeys(SPLITS, 1)

_EXTRA_24_ROWS: Final = [EXTRA_24.index(name) for name in POINT_ORDERS["coco_17"]]
_LIMBS: Final = slice(5, 17)
"""COCO's points but those of the face."""


def parts(root: Path, split: str) -> tuple[Part, ...]:
    """Annotation file of a split. Raises ``InputError`` where there are none."""
    name = f"annotations/person_keypoints_{split}.json"
    if not (root / name).is_file():
        raise InputError(f"{root}: no {name}. Unpack COCO's annotations_trainval{split[-4:]}.zip there.")
    return (Part(root, name, split),)


def rows(part: Part, every: int) -> Iterator[PersonRow]:
    """Rows of every ``every``-th person with all 12 limb joints annotated.

    Raises ``InputError``: the file is damaged or holds something else, or a picture is missing.
    """
    for person, name in _whole_people(part)[::every]:
        points = np.asarray(person["keypoints"], np.float64).reshape(17, 3)
        imgname = f"{part.split}/{name}"
        check_picture(part.root, imgname, f"{part.split}.zip")
        joints = np.zeros((len(EXTRA_24), 3))
        joints[_EXTRA_24_ROWS] = np.c_[points[:, :2], np.ones(17)] * (points[:, 2:] > 0)
        x, y, width, height = person["bbox"]
        yield PersonRow(
            id=f"{NAME}/{part.split}/{Path(name).stem}/0/{person['id']:06d}",
            instant=str(person["id"]),
            imgname=imgname,
            box=np.array([x + width / 2, y + height / 2, BOX_MARGIN * max(width, height)]),
            camera="0",
            part=joints,
        )


def _whole_people(part: Part) -> list[tuple[dict[str, Any], str]]:
    """Annotations of people with all limb joints, and their picture files. Raises ``InputError``."""
    file = part.root / part.name
    with decoding(file, "Download it again."):
        document = json.loads(file.read_bytes())
        names = {image["id"]: str(image["file_name"]) for image in document["images"]}
        people = []
        for person in document["annotations"]:
            points = np.asarray(person["keypoints"], np.float64).reshape(17, 3)
            if (points[_LIMBS, 2] > 0).all():
                np.asarray(person["bbox"], np.float64).reshape(4)
                people.append((person | {"id": int(person["id"])}, names[person["image_id"]]))
    return people
