"""Errors of a network on a data set, by a published protocol."""

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
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24

Array = NDArray[np.float64]

_THRESHOLDS_M: Final = np.arange(0, 0.1501, 0.005)
"""Thresholds of the area under PCK's curve."""


def rows_of(protocol: Protocol, rows: RowArrays) -> NDArray[np.int64]:
    """Numbers of the rows that a protocol is about.

    Raises:
        InputError: there are none, or the ground truth is not in any of them.
    """
    pairs = zip(rows["camera"], rows["imgname"], strict=True)
    want = protocol.camera
    found = np.flatnonzero([want in (None, c) or (not c and str(want) in n) for c, n in pairs])
    if len(found) == 0:
        raise InputError(f"{protocol.name} is about camera {want or 'any'}, of which the data have no row.")
    known = rows["has_smpl"][found] if protocol.true is None else rows["S"][found][:, protocol.true[0], 3]
    if not known.any():
        raise InputError(f"{protocol.name}: the data have no ground truth, which is {protocol.truth}.")
    return found


@dataclass(frozen=True, eq=False)
class TrueBodies:
    """Bodies that the data's ``pose`` and ``shape`` are about, by gender."""

    neutral: H36MJoints
    male: H36MJoints | None = None
    female: H36MJoints | None = None

    def of(self, gender: str) -> H36MJoints:
        """The body of m, of any other gender that is given, as in SPIN the female one, or of none."""
        own = self.male if gender == "m" else self.female if gender else None
        return own or self.neutral

    def described(self) -> str:
        names = {k: getattr(self, k) for k in ("neutral", "male", "female")}
        return ", ".join(f"{k}: {b.body.name}" for k, b in names.items() if b is not None)


def load_true_bodies(
    neutral: Path | None, male: Path | None, female: Path | None, joint_regressor: Path | None
) -> TrueBodies:
    """Read the SMPL files of each gender; the body that ships stands for a neutral one that is not given.

    Raises ``InputError`` as ``load_body`` and ``h36m_joints`` do.
    """

    def joints(file: Path | None) -> H36MJoints:
        return h36m_joints(load_body(file), joint_regressor)

    return TrueBodies(joints(neutral), joints(male) if male else None, joints(female) if female else None)


def protocol_errors(
    protocol: Protocol,
    rows: RowArrays,
    wanted: NDArray[np.int64],
    predictions: Predictions,
    bodies: TrueBodies,
) -> dict[str, Array]:
    """The protocol's measures of each wanted row (M,): millimetres, and shares of 1. NaN was not compared.

    predictions: with betas of ``bodies.neutral``.
    """
    picked = list(protocol.predicted)
    with_mesh = rows["has_smpl"][wanted] > 0
    meshes = np.full(len(wanted), np.nan)
    true = np.full((len(wanted), len(picked), 3), np.nan)
    if protocol.true is not None:
        S = rows["S"][wanted][:, list(protocol.true)]
        true = np.where(S[..., 3:] > 0, S[..., :3], np.nan)
    for gender in np.unique(rows["gender"][wanted][with_mesh]):
        truth = bodies.of(str(gender))
        at = np.flatnonzero(with_mesh & (rows["gender"][wanted] == gender))
        for part in np.array_split(at, -(-len(at) // _MESHES)):
            pose, shape = (rows[k][wanted[part]] for k in ("pose", "shape"))
            own, surface = _posed(truth, pose, shape)
            if protocol.true is None:
                true[part] = own[:, picked] - own[:, :1]
            predicted, guess = _posed(bodies.neutral, predictions.pose[part], predictions.betas[part])
            if guess.shape == surface.shape:
                meshes[part] = mpjpe(guess - predicted[:, :1], surface - own[:, :1])
    found = predictions.pred_joints[:, picked] - predictions.pred_joints[:, :1]
    near = [picked.index(row) for row in protocol.near]
    measures = {
        "mpjpe": lambda: 1e3 * mpjpe(found, true),
        "pa_mpjpe": lambda: 1e3 * pa_mpjpe(found, true),
        "pve": lambda: 1e3 * meshes,
        "pck150": lambda: pck(found[:, near], true[:, near], 0.15),
        "auc": lambda: auc(found[:, near], true[:, near], _THRESHOLDS_M),
    }
    return {name: measures[name]() for name in protocol.measures}


_MESHES: Final = 256
"""Made at once: some 100 MB."""


def _posed(joints: H36MJoints, pose: Array, betas: Array) -> tuple[Array, Array]:
    """Joints (N, 17, 3) and vertices (N, V, 3), metres."""
    rotations = roma.rotvec_to_rotmat(torch.from_numpy(pose).view(-1, len(SMPL_24), 3))
    shape, still = torch.from_numpy(betas), torch.zeros(len(pose), 3, dtype=torch.float64)
    mesh = joints.body.vertices(rotations[:, 0], rotations[:, 1:], shape, still)
    return joints(rotations, shape, still).numpy(), mesh.double().numpy()


def actions_of(rows: RowArrays) -> NDArray[Any]:
    """(N,) the action of each row; of Human3.6M from the picture's name where the rows do not say."""
    found = []
    for action, name in zip(rows["action"], rows["imgname"], strict=True):
        m = re.search(r"S\d+_([A-Za-z]+)(?:_\d)?\.\d{8}_\d+\.", str(name))
        found.append(str(action) or (m[1] if m else ""))
    return np.array(found)


def summary(errors: Mapping[str, Array], actions: NDArray[Any]) -> dict[str, Any]:
    """Means over the rows that were compared, of all and of each action, for ``metrics.json``."""

    def means(which: NDArray[np.bool_]) -> dict[str, float | int | None]:
        out: dict[str, float | int | None] = {}
        for name, values in errors.items():
            known = values[which][np.isfinite(values[which])]
            out[UNIT_NAMES[name]] = float(known.mean()) if len(known) else None
        first = next(iter(errors.values()))[which]
        return out | {"rows": int(which.sum()), "not_compared": int(np.isnan(first).sum())}

    named = [str(a) for a in np.unique(actions) if a]
    return means(np.ones(len(actions), bool)) | {"actions": {a: means(actions == a) for a in named}}


UNIT_NAMES: Final = {
    "mpjpe": "mpjpe_mm", "pa_mpjpe": "pa_mpjpe_mm", "pve": "pve_mm", "pck150": "pck150", "auc": "auc",
}  # fmt: skip
"""Names of the measures in ``metrics.json``."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A network on the rows of a data set that a protocol is about, M of them."""

    row: NDArray[np.int64]
    """(M,) their numbers, in order."""
    predictions: Predictions
    errors: Mapping[str, Array]
    """(M,) of each measure."""
    metrics: Mapping[str, Any]
    """Means, of all and of each action, and what they depend on."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays of the ``.npz``: SPIN's ``pose``, ``betas``, ``camera`` and ``pred_joints``; ``row`` and
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

    Raises ``InputError`` as ``predict`` and ``rows_of`` do.
    """
    wanted = rows_of(protocol, rows)
    order = wanted[np.argsort(rows["group"][wanted], kind="stable")]  # views of a group are read once
    done: list[tuple[NDArray[np.int64], Predictions, dict[str, Array]]] = []
    sums: dict[str, Array] = {}
    options = options or PredictOptions()
    for own, predictions in predict(net, rows, order, bodies.neutral, pictures, options):
        counted = predictions
        if not options.fitted and not shares_shape(net, bodies.neutral.body):
            counted = replace(predictions, betas=np.zeros_like(predictions.betas))
        errors = protocol_errors(protocol, rows, own, counted, bodies)
        done.append((own, predictions, errors))
        for name, values in errors.items():
            known = values[np.isfinite(values)]
            sums[name] = sums.get(name, np.zeros(2)) + np.array([known.sum(), len(known)])
        progress(len(own), {UNIT_NAMES[k]: float(x / n) for k, (x, n) in sums.items() if n})
    back = np.argsort(np.concatenate([own for own, *_ in done]), kind="stable")

    def joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(parts)[back]

    errors = {name: joined([e[name] for *_, e in done]) for name in done[0][2]}
    names = rows["imgname"][wanted]
    metrics = summary(errors, actions_of(rows)[wanted]) | {
        "rows_of_other_data": sum(not re.search(protocol.pictures, str(name)) for name in names),
        "protocol": protocol.described(),
        "joints": bodies.neutral.source,
        "approximate": bodies.neutral.approximate,
        "bodies": bodies.described(),
        "views": options.views,
        "fit": options.fitted,
        "camera": "SPIN's: 5000 px before the crop"
        if isinstance(net, ImageRegressor) and net.config.spin_camera and not options.fitted
        else "K of the data where they have it, else SPIN's: 5000 px before the crop",
        "pve": "both meshes with the pelvis of the regressor at the origin",
    }
    predictions = Predictions(
        *(joined([getattr(p, f.name) for _, p, _ in done]) for f in fields(Predictions))
    )
    return Evaluation(wanted, predictions, errors, metrics)
