"""Errors of a network on a data set by a published protocol."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.body import load_body
from models.datasets.rows import RowArrays
from models.evaluation.joints import H36MJoints, h36m_joints
from models.evaluation.metrics import auc, mpjpe, pa_mpjpe, pck
from models.evaluation.predictions import PictureReader, Predictions, PredictOptions, predict, shares_shape
from models.evaluation.protocols import Protocol
from models.image_regressor import ImageRegressor
from models.regressors.keypoint_nets import KeypointNet
from pipeline.array_types import Array
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24

_THRESHOLDS_M: Final = np.arange(0, 0.1501, 0.005)
"""Thresholds of AUC: MPI-INF-3DHP's."""
_CHUNK_MESHES: Final = 256
"""Meshes in memory at once, some 100 MB."""
UNIT_NAMES: Final = {
    "mpjpe": "mpjpe_mm", "pa_mpjpe": "pa_mpjpe_mm", "pve": "pve_mm", "pck150": "pck150", "auc": "auc",
}  # fmt: skip
"""Name of each measure in ``metrics.json``."""


def select_rows(protocol: Protocol, rows: RowArrays) -> NDArray[np.int64]:
    """Select the rows that a protocol scores; return their indices.

    Raises ``InputError``: none, or all without ground truth.
    """
    pairs = zip(rows["camera"], rows["imgname"], strict=True)
    camera = protocol.camera
    selected = np.flatnonzero([camera in (None, c) or (not c and str(camera) in n) for c, n in pairs])
    if len(selected) == 0:
        raise InputError(f"{protocol.name} is about camera {camera or 'any'}, of which the data have no row.")
    has_truth = (
        rows["has_smpl"][selected] if protocol.true is None else rows["S"][selected][:, protocol.true[0], 3]
    )
    if not has_truth.any():
        raise InputError(f"{protocol.name}: the data have no ground truth, which is {protocol.truth}.")
    return selected


@dataclass(frozen=True, eq=False)
class TrueBodies:
    """Body models of the data's ``pose`` and ``shape``, by gender."""

    neutral: H36MJoints
    male: H36MJoints | None = None
    female: H36MJoints | None = None

    def of(self, gender: str) -> H36MJoints:
        """Body model of a gender: m is male, any other that is stated female, as in SPIN."""
        gendered = self.male if gender == "m" else self.female if gender else None
        return gendered or self.neutral

    def description(self) -> str:
        """Genders and names of the bodies."""
        names = {k: getattr(self, k) for k in ("neutral", "male", "female")}
        return ", ".join(f"{k}: {b.body.name}" for k, b in names.items() if b is not None)


def load_true_bodies(
    neutral: Path | None, male: Path | None, female: Path | None, joint_regressor: Path | None
) -> TrueBodies:
    """Read the SMPL files of each gender; default of the neutral one: the body that ships.

    Raises ``InputError`` as ``load_body`` and ``h36m_joints`` do.
    """

    def joints(file: Path | None) -> H36MJoints:
        return h36m_joints(load_body(file), joint_regressor)

    return TrueBodies(joints(neutral), joints(male) if male else None, joints(female) if female else None)


def protocol_errors(
    protocol: Protocol,
    rows: RowArrays,
    selected: NDArray[np.int64],
    predictions: Predictions,
    bodies: TrueBodies,
) -> dict[str, Array]:
    """The protocol's measures of the selected rows (M,): millimetres, or shares of 1; NaN if not compared.

    predictions: with betas of ``bodies.neutral``.
    """
    joint_rows = list(protocol.predicted)
    with_mesh = rows["has_smpl"][selected] > 0
    vertex_error = np.full(len(selected), np.nan)
    true = np.full((len(selected), len(joint_rows), 3), np.nan)
    if protocol.true is not None:
        S = rows["S"][selected][:, list(protocol.true)]
        true = np.where(S[..., 3:] > 0, S[..., :3], np.nan)
    for gender in np.unique(rows["gender"][selected][with_mesh]):
        body = bodies.of(str(gender))
        index = np.flatnonzero(with_mesh & (rows["gender"][selected] == gender))
        for part in np.array_split(index, -(-len(index) // _CHUNK_MESHES)):
            true_joints, true_mesh = _pose(body, *(rows[k][selected[part]] for k in ("pose", "shape")))
            if protocol.true is None:
                true[part] = true_joints[:, joint_rows] - true_joints[:, :1]
            joints, mesh = _pose(bodies.neutral, predictions.pose[part], predictions.betas[part])
            if mesh.shape == true_mesh.shape:
                vertex_error[part] = mpjpe(mesh - joints[:, :1], true_mesh - true_joints[:, :1])
    predicted = predictions.pred_joints[:, joint_rows] - predictions.pred_joints[:, :1]
    near = [joint_rows.index(row) for row in protocol.near]
    measures = {
        "mpjpe": lambda: 1e3 * mpjpe(predicted, true),
        "pa_mpjpe": lambda: 1e3 * pa_mpjpe(predicted, true),
        "pve": lambda: 1e3 * vertex_error,
        "pck150": lambda: pck(predicted[:, near], true[:, near], 0.15),
        "auc": lambda: auc(predicted[:, near], true[:, near], _THRESHOLDS_M),
    }
    return {name: measures[name]() for name in protocol.measures}


def _pose(joints: H36MJoints, pose: Array, betas: Array) -> tuple[Array, Array]:
    """Joints (N, 17, 3) and vertices (N, V, 3) of poses (N, 72), metres."""
    rotations = roma.rotvec_to_rotmat(torch.from_numpy(pose).view(-1, len(SMPL_24), 3))
    shape, transl = torch.from_numpy(betas), torch.zeros(len(pose), 3, dtype=torch.float64)
    mesh = joints.body.vertices(rotations[:, 0], rotations[:, 1:], shape, transl)
    return joints(rotations, shape, transl).numpy(), mesh.double().numpy()


def actions_of(rows: RowArrays) -> NDArray[Any]:
    """Action (N,) of each row or '', from Human3.6M's picture names where the row has none."""
    actions = []
    for action, name in zip(rows["action"], rows["imgname"], strict=True):
        m = re.search(r"S\d+_([A-Za-z]+)(?:_\d)?\.\d{8}_\d+\.", str(name))
        actions.append(str(action) or (m[1] if m else ""))
    return np.array(actions)


def summarise_errors(errors: Mapping[str, Array], actions: NDArray[Any]) -> dict[str, Any]:
    """Average errors over the compared rows, of all and of each action, for ``metrics.json``."""

    def means(mask: NDArray[np.bool_]) -> dict[str, float | int | None]:
        out: dict[str, float | int | None] = {}
        for name, values in errors.items():
            compared = values[mask][np.isfinite(values[mask])]
            out[UNIT_NAMES[name]] = float(compared.mean()) if len(compared) else None
        first = next(iter(errors.values()))[mask]
        return out | {"rows": int(mask.sum()), "not_compared": int(np.isnan(first).sum())}

    names = [str(a) for a in np.unique(actions) if a]
    return means(np.ones(len(actions), bool)) | {"actions": {a: means(actions == a) for a in names}}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of a network on the M rows of a data set that a protocol scores."""

    row: NDArray[np.int64]
    """(M,) indices of the rows, ascending."""
    predictions: Predictions
    errors: Mapping[str, Array]
    """(M,) of each measure."""
    metrics: Mapping[str, Any]
    """Means over all rows and over each action, and the conditions of the evaluation."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays of the ``.npz``: SPIN's ``pose``, ``betas``, ``camera`` and ``pred_joints``, ``row`` and
        errors."""
        arrays = {f.name: getattr(self.predictions, f.name).astype(np.float32) for f in fields(Predictions)}
        return arrays | {"row": self.row} | {UNIT_NAMES[k]: v for k, v in self.errors.items()}


def score_network(
    protocol: Protocol,
    net: ImageRegressor | KeypointNet,
    rows: RowArrays,
    bodies: TrueBodies,
    pictures: PictureReader,
    options: PredictOptions | None = None,
    progress: Callable[[int, Mapping[str, float]], None] = lambda count, means: None,
) -> Evaluation:
    """Predict and score. ``progress`` is called with the rows of each batch and the means of all so far.

    Raises ``InputError`` as ``predict`` and ``select_rows`` do.
    """
    selected = select_rows(protocol, rows)
    by_group = selected[np.argsort(rows["group"][selected], kind="stable")]  # views of a group are read once
    batches: list[tuple[NDArray[np.int64], Predictions, dict[str, Array]]] = []
    sums: dict[str, Array] = {}
    options = options or PredictOptions()
    for index, predictions in predict(net, rows, by_group, bodies.neutral, pictures, options):
        scored = predictions
        if not options.fitted and not shares_shape(net, bodies.neutral.body):
            scored = replace(predictions, betas=np.zeros_like(predictions.betas))
        errors = protocol_errors(protocol, rows, index, scored, bodies)
        batches.append((index, predictions, errors))
        for name, values in errors.items():
            compared = values[np.isfinite(values)]
            sums[name] = sums.get(name, np.zeros(2)) + np.array([compared.sum(), len(compared)])
        progress(len(index), {UNIT_NAMES[k]: float(x / n) for k, (x, n) in sums.items() if n})
    order = np.argsort(np.concatenate([index for index, *_ in batches]), kind="stable")

    def join(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(parts)[order]

    errors = {name: join([e[name] for *_, e in batches]) for name in batches[0][2]}
    names = rows["imgname"][selected]
    metrics = summarise_errors(errors, actions_of(rows)[selected]) | {
        "rows_of_other_data": sum(not re.search(protocol.pictures, str(name)) for name in names),
        "protocol": protocol.description(),
        "joints": bodies.neutral.source,
        "approximate": bodies.neutral.approximate,
        "bodies": bodies.description(),
        "views": options.views,
        "fit": options.fitted,
        "camera": "SPIN's: 5000 px before the crop"
        if isinstance(net, ImageRegressor) and net.config.spin_camera and not options.fitted
        else "K of the data where they have it, else SPIN's: 5000 px before the crop",
        "pve": "both meshes with the pelvis of the regressor at the origin",
    }
    predictions = Predictions(
        *(join([getattr(p, f.name) for _, p, _ in batches]) for f in fields(Predictions))
    )
    return Evaluation(selected, predictions, errors, metrics)
