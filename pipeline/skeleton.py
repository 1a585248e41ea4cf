"""Skeletons: point names, bones and mirror images, and the point orders of keypoint files.

Point names and numbers of points are spelled in this file only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Skeleton:
    """Named points in a fixed order, the bones that join them, and their mirror images."""

    names: tuple[str, ...]
    flips: tuple[int, ...]
    """Mirror image of each point: its index after left and right are exchanged."""
    bones: tuple[tuple[int, int], ...] = ()
    """Pairs (parent, child) in drawing order; none where the points form no tree."""

    def __post_init__(self) -> None:
        count = len(self.names)
        if sorted(self.flips) != [*range(count)]:
            raise ValueError(f"flips {self.flips} are no permutation of {count} points")
        children = [child for _, child in self.bones]
        if len({*children}) < len(children) or not {*sum(self.bones, ())} <= {*range(count)}:
            raise ValueError(f"bones {self.bones} make no tree of {count} points")

    @staticmethod
    def of(table: Mapping[str, Any]) -> Skeleton:
        """Skeleton from its ``asdict`` as read from JSON, with lists for tuples."""
        bones = tuple((parent, child) for parent, child in table["bones"])
        return Skeleton(tuple(table["names"]), tuple(table["flips"]), bones)

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """Parent of each point; −1 for the root and for points without bones."""
        parent = {child: parent for parent, child in self.bones}
        return tuple(parent.get(point, -1) for point in range(len(self)))

    @property
    def bone_ends(self) -> NDArray[np.int64]:
        """(N, 2) ``bones`` as an index array."""
        return np.array(self.bones, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Index of a point by name. Raises ``ValueError`` where the skeleton lacks it."""
        return self.names.index(name)


_SMPL_PARENTS = (0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)

SMPL_24: Final = Skeleton(
    names=(
        "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle",
        "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head",
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
        "left_hand", "right_hand",
    ),
    bones=tuple((parent, joint) for joint, parent in enumerate(_SMPL_PARENTS, start=1)),
    flips=(0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22),
)  # fmt: skip
"""Joints of SMPL, in its order: parents before children."""

BODY_25: Final = Skeleton(
    names=(
        "Nose", "Neck", "RShoulder", "RElbow", "RWrist", "LShoulder", "LElbow", "LWrist", "MidHip", "RHip",
        "RKnee", "RAnkle", "LHip", "LKnee", "LAnkle", "REye", "LEye", "REar", "LEar", "LBigToe", "LSmallToe",
        "LHeel", "RBigToe", "RSmallToe", "RHeel",
    ),
    bones=(
        (1, 8), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (8, 9), (9, 10), (10, 11), (8, 12), (12, 13),
        (13, 14), (1, 0), (0, 15), (15, 17), (0, 16), (16, 18), (14, 19), (19, 20), (14, 21), (11, 22),
        (22, 23), (11, 24),
    ),
    flips=(0, 1, 5, 6, 7, 2, 3, 4, 8, 12, 13, 14, 9, 10, 11, 16, 15, 18, 17, 22, 23, 24, 19, 20, 21),
)  # fmt: skip
"""OpenPose BODY_25, the internal keypoint set."""

SMPL_OF_BODY_25: Final = MappingProxyType(
    {
        "Neck": "neck", "MidHip": "pelvis",
        "RShoulder": "right_shoulder", "RElbow": "right_elbow", "RWrist": "right_wrist",
        "LShoulder": "left_shoulder", "LElbow": "left_elbow", "LWrist": "left_wrist",
        "RHip": "right_hip", "RKnee": "right_knee", "RAnkle": "right_ankle",
        "LHip": "left_hip", "LKnee": "left_knee", "LAnkle": "left_ankle",
    }
)  # fmt: skip
"""SMPL joint of each BODY_25 point that is a joint, as in SPIN; the other eleven are points on the skin."""

EXTRA_24: Final = Skeleton(
    names=(
        "RAnkle", "RKnee", "RHip", "LHip", "LKnee", "LAnkle", "RWrist", "RElbow", "RShoulder", "LShoulder",
        "LElbow", "LWrist", "Neck (LSP)", "TopHead (LSP)", "Pelvis (MPII)", "Thorax (MPII)", "Spine (H36M)",
        "Jaw (H36M)", "Head (H36M)", "Nose", "LEye", "REye", "LEar", "REar",
    ),
    flips=(5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13, 14, 15, 16, 17, 18, 19, 21, 20, 23, 22),
)  # fmt: skip
"""Ground-truth joints of the published data sets, in SPIN's order; points 25–48 of its 49."""

SPIN_49: Final = Skeleton(
    names=(*BODY_25.names, *EXTRA_24.names),
    bones=BODY_25.bones,
    flips=(*BODY_25.flips, *(len(BODY_25) + point for point in EXTRA_24.flips)),
)
"""Keypoints of SPIN's training: a detector's, then the data sets'. Some names occur twice."""

H36M_17: Final = Skeleton(
    names=(
        "Pelvis", "LHip", "LKnee", "LAnkle", "RHip", "RKnee", "RAnkle", "Spine", "Neck", "Jaw", "Head",
        "LShoulder", "LElbow", "LWrist", "RShoulder", "RElbow", "RWrist",
    ),
    flips=(0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13),
)  # fmt: skip
"""Joints of the evaluation, left first: the rows of SPIN's ``J_regressor_h36m.npy``."""

EXTRA_24_OF_H36M_17: Final = (14, 3, 4, 5, 2, 1, 0, 16, 12, 17, 18, 9, 10, 11, 8, 7, 6)
"""EXTRA_24 index of each H36M_17 joint."""

_COCO_17 = (
    "Nose", "LEye", "REye", "LEar", "REar", "LShoulder", "RShoulder", "LElbow", "RElbow", "LWrist", "RWrist",
    "LHip", "RHip", "LKnee", "RKnee", "LAnkle", "RAnkle",
)  # fmt: skip

_HALPE_26 = (
    *_COCO_17, "Head", "Neck", "MidHip", "LBigToe", "RBigToe", "LSmallToe", "RSmallToe", "LHeel", "RHeel",
)  # fmt: skip

_FACE_AND_HANDS = tuple(
    f"{part}{i}" for part, n in (("Face", 68), ("LHand", 21), ("RHand", 21)) for i in range(n)
)

POINT_ORDERS: Final = MappingProxyType(
    {
        "body_25": BODY_25.names,
        "body_25b": (
            *_COCO_17, "Neck", "Head", "LBigToe", "LSmallToe", "LHeel", "RBigToe", "RSmallToe", "RHeel",
        ),
        "body_15": BODY_25.names[:15],
        "mpi_15": ("Head", *BODY_25.names[1:8], *BODY_25.names[9:15], "Chest"),
        "coco_17": _COCO_17,
        "coco_18": (*BODY_25.names[:8], *BODY_25.names[9:19]),
        "coco_wholebody_133": (
            *_COCO_17, "LBigToe", "LSmallToe", "LHeel", "RBigToe", "RSmallToe", "RHeel", *_FACE_AND_HANDS,
        ),
        "halpe_26": _HALPE_26,
        "halpe_136": (*_HALPE_26, *_FACE_AND_HANDS),
        "mpii_16": (
            "RAnkle", "RKnee", "RHip", "LHip", "LKnee", "LAnkle", "MidHip", "Neck", "UpperNeck", "Head",
            "RWrist", "RElbow", "RShoulder", "LShoulder", "LElbow", "LWrist",
        ),
        "blazepose_33": (
            "Nose", "LEyeInner", "LEye", "LEyeOuter", "REyeInner", "REye", "REyeOuter", "LEar", "REar",
            "LMouth", "RMouth", "LShoulder", "RShoulder", "LElbow", "RElbow", "LWrist", "RWrist", "LPinky",
            "RPinky", "LIndex", "RIndex", "LThumb", "RThumb", "LHip", "RHip", "LKnee", "RKnee", "LAnkle",
            "RAnkle", "LHeel", "RHeel", "LBigToe", "RBigToe",
        ),
    }
)  # fmt: skip
"""Point orders of keypoint files: name → point names in file order.

``mpi_15`` is OpenPose's MPI, ``coco_18`` its COCO.
"""

MIDPOINTS: Final = MappingProxyType({"Neck": ("LShoulder", "RShoulder"), "MidHip": ("LHip", "RHip")})
"""BODY_25 points that, in an order without them, are the mean of two others; the rest is missing then."""

DETECTOR_OFFSETS_MM: Final = MappingProxyType(
    {
        "blazepose_33": {
            "Neck": (0, -55, -40), "Shoulder": (12, 5, 0), "MidHip": (0, -45, 0), "Hip": (-10, -35, -20),
            "Knee": (0, -15, 5), "Ankle": (-8, 9, 12), "Heel": (-8, -13, 13), "BigToe": (0, 0, 23),
        },
    }
)  # fmt: skip
"""Offsets of a detector's points from OpenPose's, by point order, on the left side of a standing body: x
left, y up, z ahead. Measured on one man (balancing: fits to both detectors' points, both sides)."""


def find_order(name: str) -> str:
    """Normalise the name of a point order, such as BODY_25 or halpe-26, to a key of ``POINT_ORDERS``.

    Raises ``ValueError`` for an unknown one.
    """
    order = name.lower().replace("-", "_")
    if order not in POINT_ORDERS:
        raise ValueError(f"{name!r} is not one of {', '.join(POINT_ORDERS)}")
    return order
