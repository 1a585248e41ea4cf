"""MPI-INF-3DHP (Mehta et al. 2017): eight subjects before 14 cameras, and a test set of six sequences.

::

    S1 … S8/Seq1, Seq2/annot.mat, camera.calibration
                       imageFrames/video_<k>/frame_%06d.jpg or imageSequence/video_<k>.avi
    mpi_inf_3dhp_test_set/TS1 … TS6/annot_data.mat, imageSequence/img_%06d.jpg

Frame 1 of the pictures is row 0 of the annotations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from models.datasets.pictures import read_picture
from models.datasets.rows import Part, PersonRow, all_inside, import_extra, points_box, to_extra_24
from pipeline.array_types import Array
from pipeline.calibrations import skeletool
from pipeline.errors import InputError
from pipeline.files import decoding, reading

NAME: Final = "mpi-inf-3dhp"
SPLITS: Final = ("train", "test")
STEP: Final = {"train": 10, "test": 1}

_CAMERAS: Final = (0, 1, 2, 4, 5, 6, 7, 8)
"""Cameras at chest height; the others are at the ceiling or the floor."""
_SIZE_PX: Final = (2048, 2048)
_TRAIN_ROWS: Final = (4, 18, 19, 20, 23, 24, 25, 3, 5, 6, 7, 9, 10, 11, 14, 15, 16)
_TEST_ROWS: Final = (14, 11, 12, 13, 8, 9, 10, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4)
"""Rows of H36M_17 among the 28 and 17 joints of the files of the training and of the test set."""
_ACTIVITIES: Final = (
    "", "Standing/Walking", "Exercising", "Sitting", "Reaching/Crouching", "On the floor", "Sports",
    "Miscellaneous",
)  # fmt: skip


def parts(root: Path, split: str) -> tuple[Part, ...]:
    """Sequences of a split below ``root``. Raises ``InputError`` where there are none."""
    if split == "train":
        names = [f"S{s}/Seq{q}" for s in range(1, 9) for q in (1, 2)]
        file = "annot.mat"
    else:
        inner = "mpi_inf_3dhp_test_set/" if (root / "mpi_inf_3dhp_test_set").is_dir() else ""
        names = [f"{inner}TS{k}" for k in range(1, 7)]
        file = "annot_data.mat"
    present = tuple(Part(root, n, split) for n in names if (root / n / file).is_file())
    if not present:
        raise InputError(
            f"{root}: no {names[0]}/{file}, nor any other of MPI-INF-3DHP's {split} sequences. Give the "
            "folder that holds S1, S2, … and mpi_inf_3dhp_test_set."
        )
    return present


def missing(present: tuple[Part, ...]) -> str:
    """Missing sequences of the split, in words; '' for none."""
    count = 16 if present[0].split == "train" else 6
    return "" if len(present) == count else f"{len(present)} of {count} sequences are there"


def rows(part: Part, every: int) -> Iterator[PersonRow]:
    """Rows of every camera and ``every``-th frame in which all 17 joints are inside the picture.

    Raises ``InputError``: a file is damaged or missing, or no picture belongs to any annotation.
    """
    return _train(part, every) if part.split == "train" else _test(part, every)


def _train(part: Part, every: int) -> Iterator[PersonRow]:
    from scipy.io import loadmat

    folder = part.root / part.name
    file = folder / "annot.mat"
    with decoding(file, "Download it again."):
        mat: dict[str, Any] = loadmat(file, variable_names=("annot2", "annot3"))
        annot2, annot3 = mat["annot2"], mat["annot3"]
        count = min(len(annot2), len(annot3))
    with reading(folder):
        rig = skeletool.read((folder / "camera.calibration",))
    cameras = {name: (rig.K[v], rig.R[v], rig.t[v]) for v, name in enumerate(rig.names)}
    views = [v for v in _CAMERAS if v < count]
    pictures = {v: _frame_names(folder, v) for v in views}
    if not any(pictures.values()):
        raise InputError(
            f"{folder}: neither imageFrames/video_0/frame_000001.jpg nor imageSequence/video_0.avi, nor "
            "those of another camera. Put the videos there, or their frames."
        )
    subject, sequence = part.name.split("/")
    for v in views:
        with decoding(file, "Download it again."):
            xy = np.asarray(annot2[v][0], np.float64).reshape(-1, 28, 2)[:, _TRAIN_ROWS]
            xyz = np.asarray(annot3[v][0], np.float64).reshape(-1, 28, 3)[:, _TRAIN_ROWS] / 1000
        K, R, t = cameras.get(str(v)) or (np.full(s, np.nan) for s in ((3, 3), (3, 3), 3))
        camera = f"video_{v}"
        names = pictures[v]
        for i in range(0, min(len(xy), len(xyz)), every):
            if isinstance(names, str):
                imgname = f"{part.name}/{names}#{i}"
            elif i + 1 in names:
                imgname = f"{part.name}/{names[i + 1]}"
            else:
                continue
            if not all_inside(xy[i], _SIZE_PX):
                continue
            joints = to_extra_24(xy[i])
            yield PersonRow(
                id=f"{NAME}/{subject}/{sequence}/{camera}/{i + 1:06d}",
                instant=f"{part.name}/{i}",
                imgname=imgname,
                box=points_box(xy[i]),
                camera=camera,
                part=joints,
                S=to_extra_24(xyz[i] - xyz[i, 0]),
                K=K,
                dist=np.zeros(8),
                R=R,
                t=t,
            )


def _frame_names(folder: Path, camera: int) -> dict[int, str] | str:
    """Names of a camera's extracted frames by number, or the name of its video; empty without either."""
    frames = folder / "imageFrames" / f"video_{camera}"
    if frames.is_dir():
        names = {
            int(m[1]): f"imageFrames/video_{camera}/{p.name}"
            for p in frames.iterdir()
            if (m := re.fullmatch(r"\D*(\d+)\.(?:jpg|jpeg|png)", p.name, re.I))
        }
        if names:
            return names
    video = f"imageSequence/video_{camera}.avi"
    return video if (folder / video).is_file() else {}


def _test(part: Part, every: int) -> Iterator[PersonRow]:
    h5py = import_extra("h5py")
    folder = part.root / part.name
    file = folder / "annot_data.mat"
    with decoding(file, "Download it again."), h5py.File(file) as mat:
        xy = np.asarray(mat["annot2"], np.float64).reshape(-1, 17, 2)[:, _TEST_ROWS]
        xyz = np.asarray(mat["univ_annot3"], np.float64).reshape(-1, 17, 3)[:, _TEST_ROWS] / 1000
        valid = np.asarray(mat["valid_frame"]).ravel() > 0
        metric = np.asarray(mat["annot3"], np.float64).reshape(-1, 17, 3)[:, _TEST_ROWS] / 1000
        activity = np.asarray(mat.get("activity_annotation", []), np.int64).ravel()
    if not len(xy) == len(xyz) == len(valid) == len(metric):
        raise InputError(
            f"{file}: {len(xy)} frames of annot2, {len(xyz)} of univ_annot3, {len(valid)} of valid_frame. "
            "Download it again."
        )
    K = fit_pinhole(metric[valid], xy[valid])
    size: tuple[int, int] | None = None
    sequence = Path(part.name).name
    for i in range(0, len(xy), every):
        if not valid[i]:
            continue
        imgname = f"{part.name}/imageSequence/img_{i + 1:06d}.jpg"
        if not (part.root / imgname).is_file():
            raise InputError(
                f"{part.root / imgname}: is not there, but frame {i + 1} is annotated as valid. Unpack the "
                "test set again."
            )
        if size is None:
            height, width, _ = read_picture(part.root / imgname).shape
            size = width, height
        if not all_inside(xy[i], size):
            continue
        joints = to_extra_24(xy[i])
        number = int(activity[i]) if len(activity) == len(xy) else 0
        yield PersonRow(
            id=f"{NAME}/{sequence}/test/video_0/{i + 1:06d}",
            instant=f"{part.name}/{i}",
            imgname=imgname,
            box=points_box(xy[i]),
            camera="video_0",
            action=_ACTIVITIES[number] if 0 <= number < len(_ACTIVITIES) else "",
            part=joints,
            S=to_extra_24(xyz[i] - xyz[i, 0]),
            K=K,
            dist=np.zeros(8),
            R=np.eye(3),
            t=np.zeros(3),
        )


def fit_pinhole(xyz: Array, xy: Array) -> Array:
    """Fit K (3, 3) of a camera without distortion or skew to points (..., 3) in its axes and their pixels.

    The test set's files lack the cameras, but have thousands of points in space and picture.
    """
    flat, px = xyz.reshape(-1, 3), xy.reshape(-1, 2)
    ok = np.isfinite(flat).all(1) & np.isfinite(px).all(1) & (flat[:, 2] > 0)
    K = np.eye(3)
    for axis in (0, 1):
        slope = flat[ok, axis] / flat[ok, 2]
        system = np.stack([slope, np.ones_like(slope)], 1)
        (K[axis, axis], K[axis, 2]), *_ = np.linalg.lstsq(system, px[ok, axis])
    return K
