"""Published evaluation protocols: data sets, joints, ground truth, sampling, measures, as in SPIN's code."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal

from pipeline.skeleton import H36M_17

Measure = Literal["mpjpe", "pa_mpjpe", "pve", "pck150", "auc"]

REGRESSOR_ROWS: Final = (
    "left first: Pelvis, LHip, LKnee, LAnkle, RHip, …, RWrist (pipeline/skeleton.py, H36M_17)"
)

_LSP: Final = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10)
"""H36M_17 in the order of LSP's 14 joints: right ankle up to right hip, left hip down to left ankle, right
wrist to right shoulder, left shoulder to left wrist, neck, head."""
_LSP_OF_EXTRA_24: Final = (*range(13), 18)


@dataclass(frozen=True)
class Protocol:
    """Scoring of predictions for one data set, with both pelves at the origin."""

    name: str
    dataset: str
    predicted: tuple[int, ...]
    """Rows of H36M_17 that are compared, in the order of ``true``."""
    true: tuple[int, ...] | None
    """Points of EXTRA_24 in the npz's ``S``; None where the truth is the joints of the true SMPL body."""
    truth: str
    """Source of the ground truth, in words."""
    sampling: str
    """Frames that are compared, in words."""
    measures: tuple[Measure, ...]
    pictures: str
    """Regular expression found in the picture names of its test set."""
    camera: str | None = None
    """The only camera whose rows count; None for all."""
    near: tuple[int, ...] = ()
    """Rows of H36M_17 that count in PCK and AUC."""
    headline: Measure = "mpjpe"
    """Measure that papers report."""
    root: str = "row 0 of the regressor, Pelvis, subtracted; the ground truth is root-centred in the file"

    def description(self) -> dict[str, Any]:
        """Entry of ``metrics.json``: everything that the numbers depend on."""
        joints, near = ([H36M_17.names[row] for row in rows] for rows in (self.predicted, self.near))
        return {**asdict(self), "joints": joints, "near": near, "regressor_rows": REGRESSOR_ROWS}


_H36M: Final = Protocol(
    "h36m-p1",
    "Human3.6M",
    _LSP,
    _LSP_OF_EXTRA_24,
    "S: D3_Positions_mono, camera frame",
    "subjects S9 and S11, all four cameras, every 5th frame from the first (50 to 10 a second)",
    ("mpjpe", "pa_mpjpe", "pve"),
    r"\bS(9|11)[_/]",
)

PROTOCOLS: Final = MappingProxyType(
    {
        p.name: p
        for p in (
            _H36M,
            replace(
                _H36M,
                name="h36m-p2",
                sampling="subjects S9 and S11, camera 60457274, every 5th frame from the first (50 to 10 a "
                "second; others take every 64th, which gives some 3 mm more)",
                camera="60457274",
                headline="pa_mpjpe",
            ),
            Protocol(
                "mpi-inf-3dhp",
                "MPI-INF-3DHP",
                (*_LSP, 0, 7, 9),
                (*_LSP_OF_EXTRA_24, 14, 16, 17),
                "S: univ_annot3, the skeleton scaled to one size (annot3 gives some 14 mm more)",
                "test set TS1 to TS6, valid_frame, all 17 joints inside the picture",
                ("mpjpe", "pa_mpjpe", "pve", "pck150", "auc"),
                r"\bTS[1-6]/",
                # As mpii_get_pck_auc_joint_groups.m, without the pelvis, which is 0 by definition.
                near=_LSP,
            ),
            Protocol(
                "3dpw",
                "3DPW",
                _LSP,
                None,
                "pose and shape: SMPL of the person's gender, through the same regressor",
                "test split, frames with campose_valid",
                ("mpjpe", "pa_mpjpe", "pve"),
                r"\bimageFiles/",
                headline="pa_mpjpe",
                root="row 0 of the regressor, Pelvis, subtracted on both sides",
            ),
        )
    }
)
"""Protocols by the name that ``evaluate --dataset`` takes."""
