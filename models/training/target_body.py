"""Target body of an image network: the one that ships, or the user's SMPL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.body import MAX_BETAS, Body, KeypointBody, load_body
from models.evaluation.joints import REGRESSED, extra_24, read_regressor
from pipeline.errors import InputError


@dataclass(frozen=True, eq=False)
class TargetBody:
    """A body model, and the joints of the data sets on it."""

    mesh: Body
    extra: KeypointBody
    """Body with the points of ``EXTRA_24``; float64 on the CPU."""
    smpl: bool
    """True for SMPL, the body model of published poses; False for the one that ships."""
    files: tuple[Path | None, Path | None]
    """Arguments of ``load_target_body``."""

    def __reduce__(self) -> tuple[Callable[..., TargetBody], tuple[Path | None, Path | None]]:
        # Other processes read the files again, which is less than to send their content.
        return load_target_body, self.files


def load_target_body(path: Path | None = None, joint_regressor: Path | None = None) -> TargetBody:
    """Load the SMPL model of a file, or the body that ships.

    joint_regressor: SPIN's ``J_regressor_extra.npy``, for SMPL; without it nine joints are placed by the rule
    of ``extra_24``. Raises ``InputError`` when a file cannot be read or does not fit the other.
    """
    mesh = load_body(path)
    smpl = mesh.sha256 != load_body().sha256
    if joint_regressor is None:
        matrix = None
    elif smpl:
        matrix, _ = read_regressor(joint_regressor, len(REGRESSED), len(mesh.v_template))
    else:
        raise InputError(
            f"{joint_regressor}: a joint regressor of SMPL's mesh, but the body is the one that ships. Give "
            "SMPL, images.body, too."
        )
    if mesh.num_betas != MAX_BETAS:
        raise InputError(f"{path}: has {mesh.num_betas} betas, an image network has {MAX_BETAS}.")
    return TargetBody(mesh, extra_24(mesh, matrix), smpl, (path, joint_regressor))
