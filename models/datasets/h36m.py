"""Human3.6M (Ionescu et al. 2014): seven subjects before four cameras.

::

    S9/MyPoseFeatures/D3_Positions_mono/<action>.<camera>.cdf   joints in the camera's axes, mm
    S9/MyPoseFeatures/D2_Positions/<action>.<camera>.cdf        in the picture; not needed for evaluation
    S9/MySegmentsMat/ground_truth_bb/<action>.<camera>.mat      the person's box, as a mask for every frame
    S9/Videos/<action>.<camera>.mp4, or images/S9_<action>.<camera>_%06d.jpg
    metadata.xml                                                the cameras; not needed for evaluation

Picture 1 is frame 0 of video, poses and boxes. (Pictures extracted by SPIN's script are a frame late.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from models.crops import extent_box
from models.datasets.rows import Part, PersonRow, import_extra, to_extra_24
from pipeline.array_types import Array
from pipeline.calibrations.human36m import CAMERAS, read_metadata
from pipeline.errors import InputError
from pipeline.files import decoding, reading
from pipeline.skeleton import EXTRA_24

NAME: Final = "h36m"
SPLITS: Final = ("train", "test")
STEP: Final = {"train": 5, "test": 5}
"""50 to 10 frames a second."""

_SUBJECTS: Final = {"train": (1, 5, 6, 7, 8), "test": (9, 11)}
_MARGIN: Final = 0.9
"""Ratio of the crop's side to the longer side of the mask's box."""
_H36M_17_ROWS: Final = (11, 6, 7, 8, 1, 2, 3, 12, 24, 14, 15, 17, 18, 19, 25, 26, 27)
"""Rows of H36M_17 among the 32 joints of the files."""
_ACTION_NAMES: Final = {"TakingPhoto": "Photo", "WalkingDog": "WalkDog"}
"""Names of actions in S1's files → in the other subjects'."""


def parts(root: Path, split: str) -> tuple[Part, ...]:
    """Every action and camera of the split's subjects below ``root``.

    Raises ``InputError`` where there are none.
    """
    present = tuple(
        Part(root, f"S{s}/{file.stem}", split)
        for s in _SUBJECTS[split]
        for file in sorted((root / f"S{s}/MyPoseFeatures/D3_Positions_mono").glob("*.cdf"))
        if not file.name.startswith("_ALL")
    )
    if not present:
        raise InputError(
            f"{root}: no S{_SUBJECTS[split][0]}/MyPoseFeatures/D3_Positions_mono/*.cdf, nor of another "
            f"of the {split} subjects {_SUBJECTS[split]}. Unpack 'D3 Positions Mono' of each subject there."
        )
    return present


def missing(present: tuple[Part, ...]) -> str:
    """Missing subjects of the split, in words; '' for none."""
    subjects = {f"S{s}" for s in _SUBJECTS[present[0].split]}
    absent = sorted(subjects - {p.name.split("/")[0] for p in present})
    return f"{', '.join(absent)} not there" if absent else ""


def rows(part: Part, every: int) -> Iterator[PersonRow]:
    """Rows of every ``every``-th frame of a video.

    Raises ``InputError``: a file is damaged or missing, or poses and boxes are of different lengths.
    """
    subject, name = part.name.split("/")
    features = part.root / subject / "MyPoseFeatures"
    action, _, camera = name.replace(" ", "_").rpartition(".")
    xyz = _poses(features / "D3_Positions_mono" / f"{name}.cdf", 3) / 1000
    flat = features / "D2_Positions" / f"{name}.cdf"
    xy = _poses(flat, 2) if flat.is_file() else None
    if xy is not None and len(xy) != len(xyz):
        raise InputError(
            f"{flat}: {len(xy)} frames, but D3_Positions_mono has {len(xyz)}. Unpack both again."
        )
    K, dist, R, t = _camera(part.root / "metadata.xml", int(subject[1:]), camera)
    kind = re.sub(r"_?\d*$", "", action)
    frames = range(0, len(xyz), every)
    boxes = _mask_boxes(
        part.root / subject / "MySegmentsMat/ground_truth_bb" / f"{name}.mat", frames, len(xyz)
    )
    for i, box in zip(frames, boxes, strict=True):
        imgname = f"images/{subject}_{action}.{camera}_{i + 1:06d}.jpg"
        if not (part.root / imgname).is_file():
            imgname = f"{subject}/Videos/{name}.mp4#{i}"
            if not (part.root / imgname.partition("#")[0]).is_file():
                raise InputError(
                    f"{part.root}: neither the picture images/{subject}_{action}.{camera}_{i + 1:06d}.jpg "
                    f"nor the video {imgname.partition('#')[0]}. Unpack 'Videos' of {subject} there."
                )
        joints = np.zeros((len(EXTRA_24), 3)) if xy is None else to_extra_24(xy[i])
        yield PersonRow(
            id=f"{NAME}/{subject}/{action}/{camera}/{i + 1:06d}",
            instant=f"{subject}/{action}/{i}",
            imgname=imgname,
            box=box,
            camera=camera,
            action=_ACTION_NAMES.get(kind, kind),
            part=joints,
            S=to_extra_24(xyz[i] - xyz[i, 0]),
            K=K,
            dist=dist,
            R=R,
            t=t,
        )


def _poses(file: Path, size: int) -> Array:
    """H36M_17 (T, 17, size) of a CDF file with the 32 joints of T frames. Raises ``InputError``."""
    cdflib = import_extra("cdflib")
    with decoding(file, "Download it again."):
        values = np.asarray(cdflib.CDF(file).varget("Pose"), np.float64)
        return values.reshape(-1, 32, size)[:, _H36M_17_ROWS]


def _mask_boxes(file: Path, frames: range, count: int) -> Iterator[Array]:
    """Boxes (3,) of ``frames`` from a MATLAB 7.3 file of ``count`` masks. Raises ``InputError``."""
    h5py = import_extra("h5py")
    with decoding(file, "Download it again."), h5py.File(file) as mat:
        masks = mat["Masks"]
        if masks.size != count:
            raise InputError(
                f"{file}: boxes of {masks.size} frames, but the poses have {count}. Unpack both again."
            )
        references = np.asarray(masks).ravel()
        for i in frames:
            mask = np.asarray(mat[references[i]]).T == 1  # MATLAB's rows are HDF5's columns
            ys, xs = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            if len(ys) == 0:
                raise InputError(f"{file}: frame {i + 1} has an empty mask. Unpack it again.")
            low, high = np.array([xs[0], ys[0]]), np.array([xs[-1] + 1, ys[-1] + 1])
            yield extent_box(low, high, _MARGIN)


def _camera(file: Path, subject: int, name: str) -> tuple[Array, Array, Array, Array]:
    """K, dist, R and t of a camera; NaN without metadata.xml or for an unknown camera."""
    if not file.is_file() or name not in CAMERAS:
        return np.full((3, 3), np.nan), np.full(8, np.nan), np.full((3, 3), np.nan), np.full(3, np.nan)
    with reading(file):
        rig, v = read_metadata(file, subject), CAMERAS.index(name)
    return rig.K[v], rig.dist[v], rig.R[v], rig.t[v]
