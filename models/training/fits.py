"""Store of a training's fits: the best body so far for every picture, on disk and in memory.

``fits.zarr`` is a zarr group of parts, each written once and atomically by one of the processes that share
it. A part is a group of arrays, a row for each fit:

    name (n, L) uint8       dataset/subject/sequence/camera/frame, UTF-8, padded with zeros
    global_orient (n, 3)    axis-angle, root → camera
    body_pose (n, J − 1, 3) axis-angle
    betas (n, 10)
    transl (n, 3)           metres, camera
    score (n,)              px², lower is better, see ``loop.score_fits``
    step (n,)               step of the training in which it was made

Of several rows of one picture the one of lowest score counts, in whatever order they were written: no process
can overwrite a better fit of another. The version of the fits at a step is the rows of earlier steps.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np
import roma
import torch
import zarr
from filelock import FileLock
from numpy.typing import NDArray

from models.training.loop import Bodies
from pipeline.files import decoding
from pipeline.skeleton import SMPL_24

_SIZES: Final = {
    "global_orient": 3,
    "body_pose": 3 * (len(SMPL_24) - 1),
    "betas": 10,
    "transl": 3,
    "score": 1,
}
_WIDTH: Final = sum(_SIZES.values())
_SCORE: Final = _WIDTH - 1
_MAX_PARTS: Final = 64
"""Parts beyond which ``compact`` merges them."""

FitRows = tuple[list[str], NDArray[np.float32], NDArray[np.int64]]
"""Names, values (n, 86) and steps (n,)."""
Fits = dict[str, tuple[NDArray[np.float32], np.int64]]
"""Values (86,) and step of the best fit by name."""


class FitStore:
    """Fits of one process. Several processes may share the folder: each sees its own rows, and those that
    the others saved before it was opened or ``reload`` was called."""

    def __init__(self, path: Path, version: int | None = None) -> None:
        """version: the step before which rows count; None for all.

        Raises ``InputError`` when the folder holds something else, or cannot be made.
        """
        self.path = path
        self._best: Fits = {}
        self._unsaved: set[str] = set()
        self._merged: set[str] = set()  # parts that need not be read again
        with decoding(path, "Move it away, or choose another --out.", "the fits of a training"):
            path.mkdir(parents=True, exist_ok=True)
            if not (path / "zarr.json").exists():
                zarr.open_group(path, mode="a", zarr_format=3)
            self.reload(version)

    def __len__(self) -> int:
        return len(self._best)

    def reload(self, version: int | None = None) -> None:
        """Merge the rows that other processes have saved, of steps before ``version``."""
        for part in _parts(self.path):
            if part.name in self._merged:
                continue
            rows = _read(part)
            if rows is None:  # compacted meanwhile: its rows are in a new part
                return self.reload(version)
            self._merge(rows, version)
            if version is None or rows[2].max() < version:
                self._merged.add(part.name)
        return None

    def get(self, names: Sequence[Sequence[str]]) -> Bodies:
        """Best fits of (N, V) pictures; a score of infinity without one."""
        values = np.zeros((len(names), len(names[0]), _WIDTH), np.float32)
        values[..., _SCORE] = np.inf
        for n, views in enumerate(names):
            for v, name in enumerate(views):
                if name in self._best:
                    values[n, v] = self._best[name][0]
        sizes = list(_SIZES.values())
        orient, pose, betas, transl, score = torch.split(torch.from_numpy(values), sizes, -1)
        pose = roma.rotvec_to_rotmat(pose.reshape(*pose.shape[:-1], -1, 3))
        return Bodies(roma.rotvec_to_rotmat(orient), pose, betas, transl, score[..., 0])

    def put(self, names: Sequence[Sequence[str]], fits: Bodies, step: int) -> None:
        """Keep those of (N, V) fits, on any device, that are better than the known ones."""
        parts = (
            roma.rotmat_to_rotvec(fits.orient), roma.rotmat_to_rotvec(fits.body_pose).flatten(2), fits.betas,
            fits.transl, fits.score[..., None],
        )  # fmt: skip
        values = torch.cat(parts, -1).flatten(0, 1).cpu().numpy()
        flat = [name for views in names for name in views]
        finite = np.isfinite(values).all(1)
        kept = [name for name, ok in zip(flat, finite, strict=True) if ok]
        self._unsaved |= self._merge((kept, values[finite], np.full(len(kept), step, np.int64)), None)

    def save(self) -> None:
        """Write and sync the unsaved fits. Raises ``OSError``."""
        names = sorted(self._unsaved)
        if names:
            values, steps = zip(*(self._best[n] for n in names), strict=True)
            part = _write(self.path, (names, np.stack(values), np.array(steps)))
            self._merged.add(part.name)
            self._unsaved.clear()

    def compact(self, version: int) -> None:
        """Merge many parts into one, keeping all rows from ``version`` on, to which a training may return.

        Other processes may save meanwhile. Raises ``OSError``.
        """
        with FileLock(self.path / ".lock"):
            parts = _parts(self.path)
            if len(parts) <= _MAX_PARTS:
                return
            best: Fits = {}
            later: list[tuple[str, NDArray[np.float32], np.int64]] = []
            for part in parts:
                part_rows = _read(part)
                assert part_rows is not None  # parts are removed under the lock only
                for name, value, step in zip(*part_rows, strict=True):
                    if step >= version:
                        later.append((name, value, step))
                    else:
                        _keep_better(best, name, value, step)
            rows = [(name, *row) for name, row in best.items()] + later
            names, values, steps = zip(*rows, strict=True)
            _write(self.path, (list(names), np.stack(values), np.array(steps)))
            for part in parts:
                shutil.rmtree(part)

    def _merge(self, rows: FitRows, version: int | None) -> set[str]:
        """Merge rows that are better than the known ones; return their names."""
        return {
            name
            for name, value, step in zip(*rows, strict=True)
            if (version is None or step < version) and _keep_better(self._best, name, value, step)
        }


def _keep_better(fits: Fits, name: str, value: NDArray[np.float32], step: np.int64) -> bool:
    """Keep a fit that is better than the known one; return True if it was."""
    better = name not in fits or bool(value[_SCORE] < fits[name][0][_SCORE])
    if better:
        fits[name] = value.copy(), step
    return better


def _parts(path: Path) -> list[Path]:
    return sorted(p for p in path.glob("part-*") if p.is_dir())


def _write(path: Path, rows: FitRows) -> Path:
    """Write rows as a new part, atomically and synced; return its path."""
    names, values, steps = rows
    encoded = [n.encode() for n in names]
    letters = np.zeros((len(names), max(map(len, encoded))), np.uint8)
    for i, name in enumerate(encoded):
        letters[i, : len(name)] = np.frombuffer(name, np.uint8)
    arrays: dict[str, NDArray[Any]] = {"name": letters, "step": steps}
    split = np.split(values, np.cumsum(list(_SIZES.values()))[:-1], axis=1)
    arrays |= dict(zip(_SIZES, split, strict=True))
    arrays["body_pose"] = arrays["body_pose"].reshape(len(names), -1, 3)
    arrays["score"] = arrays["score"][:, 0]
    unique = uuid4().hex
    hidden = path / f".{unique}"
    group = zarr.open_group(hidden, mode="w", zarr_format=3)
    for key, array in arrays.items():
        group.create_array(key, data=np.ascontiguousarray(array), chunks=array.shape)
    for written in (*hidden.rglob("*"), hidden):
        _sync(written)  # before the renaming, against empty files after a power cut
    part = hidden.rename(path / f"part-{unique}")
    _sync(path)  # a checkpoint that follows relies on this part
    return part


def _sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _read(part: Path) -> FitRows | None:
    """Read a part; None where it has been removed."""
    try:
        group = zarr.open_group(part, mode="r")
        arrays: dict[str, NDArray[Any]] = {k: np.asarray(group[k]) for k in ("name", "step", *_SIZES)}
    except (FileNotFoundError, KeyError):
        if part.exists():
            raise
        return None
    names = [bytes(row).rstrip(b"\0").decode() for row in arrays["name"]]
    values = np.concatenate([arrays[k].reshape(len(names), -1) for k in _SIZES], 1)
    return names, values.astype(np.float32), arrays["step"].astype(np.int64)
