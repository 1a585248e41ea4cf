"""Store of crops with room around them, cut from videos once, for training to read in any order.

``crops.zarr`` is a zarr group (format 3), readable with plain ``zarr.open``:

    /                     attributes: format, version, made_of (a digest), size, labels (names of columns)
    pictures (M, P, P, 3) uint8 RGB; black where nobody is visible
    box (M, 3)            centre x, y and side, pixels of the pinhole camera; NaN where nobody is visible
    label (M, L)          int: identity of each picture
    done (blocks,)        true once a block of 64 pictures is written

The box is ``size`` pixels wide, in the middle of the picture. Lens distortion is removed: each picture is a
pinhole camera's with the matrix ``crop_matrix`` K. A picture is a chunk in a file of 64, so a million
pictures are 16 thousand files. A block is written, then marked; a killed writer resumes at the first block
without a mark.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from models.crops import room_around
from pipeline.array_types import Array, Pixels
from pipeline.errors import InputError
from pipeline.files import decoding, writing
from pipeline.zarrs import creating_group, remove_partial_files

BLOCK: Final = 64
"""Pictures in a file."""
CROPS_VERSION: Final = 3
"""Version of the format. 1: not cut along whole pixels; 2: index of a person in the window, not the id."""


@dataclass(frozen=True)
class CropPlan:
    """Content of a store of crops."""

    made_of: str
    """Digest of the source of the pictures."""
    size: int
    """Side of the crops, pixels; the pictures have room around them."""
    box: Array
    """(M, 3) centre x, y and side, pixels of the pinhole camera; NaN where nobody is visible."""
    label: NDArray[np.int64]
    """(M, L) numbers that identify each picture."""
    labels: tuple[str, ...]
    """Names of the L columns of ``label``."""

    @property
    def nbytes(self) -> int:
        """Largest size of the pictures on the disk, bytes, before lossless compression."""
        seen = int(np.isfinite(self.box).all(1).sum())
        return seen * (self.size + 2 * room_around(self.size)) ** 2 * 3

    @property
    def blocks(self) -> int:
        return -(-len(self.box) // BLOCK)


class CropStore:
    """Store of crops on disk, open for reading or for writing blocks in order. Pickles as its path."""

    def __init__(self, path: Path, *, write: bool = False) -> None:
        """Open the store at ``path``.

        Raises ``InputError``: there is none, or it is damaged or something else.
        """
        self.path = path
        with decoding(path, "`crops` makes them.", "the crops"):
            self._root = zarr.open_group(path, mode="r+" if write else "r")
            attrs: dict[str, Any] = dict(self._root.attrs)
            if attrs.get("format") != "multispin-crops" or attrs["version"] != CROPS_VERSION:
                raise ValueError(f"format {attrs.get('format')}, version {attrs.get('version')}")
            names = "pictures", "done", "box", "label"
            self._pictures, self._done, box, label = (cast("zarr.Array[Any]", self._root[n]) for n in names)
            self.plan = CropPlan(
                attrs["made_of"],
                attrs["size"],
                np.asarray(box[:]),
                np.asarray(label[:]),
                tuple(attrs["labels"]),
            )
            side = self.plan.size + 2 * room_around(self.plan.size)
            shapes = (self._pictures.shape, self.plan.label.shape, self._done.shape)
            rows = len(self.plan.box)
            if shapes != ((rows, side, side, 3), (rows, len(self.plan.labels)), (self.plan.blocks,)):
                raise ValueError(f"pictures, labels and blocks of {rows} crops have shapes {shapes}")

    @classmethod
    def open_finished(cls, path: Path, source: Path, made_of: str, size: int) -> CropStore:
        """Open the finished store of crops of ``source``, for training at ``size`` pixels.

        Raises ``InputError``: it is of another source, not finished, or its pictures are too small.
        """
        store = cls(path)
        if store.plan.made_of != made_of:
            raise InputError(f"{path}: holds crops of something else than {source}. Make them again.")
        if store.next_block < store.plan.blocks:
            raise InputError(f"{path}: is not finished. Run the command that makes it again.")
        if store.plan.size < size:
            raise InputError(
                f"{path}: has crops for training at {store.plan.size} pixels, not {size}. Make larger ones, "
                "or train a network of smaller crops."
            )
        return store

    def __reduce__(self) -> tuple[type[CropStore], tuple[Path]]:
        return CropStore, (self.path,)

    @classmethod
    def resume(cls, path: Path, plan: CropPlan) -> CropStore:
        """Open the store at ``path`` to continue writing, or create it.

        Raises ``InputError``: it holds other pictures, or the disk is too full.
        """
        if path.exists():
            store = cls(path, write=True)
            old = store.plan
            if (old.made_of, old.size, old.labels) != (plan.made_of, plan.size, plan.labels) or not (
                np.array_equal(old.label, plan.label) and np.array_equal(old.box, plan.box, equal_nan=True)
            ):
                raise InputError(
                    f"{path}: holds crops of something else, or of another size ({old.size} pixels, wanted "
                    f"{plan.size}). Choose another file, or remove it."
                )
            remove_partial_files(path)
            _check_disk_space(path, plan.nbytes * (1 - store.next_block / max(1, plan.blocks)))
            return store
        return cls._create(path, plan)

    @classmethod
    def _create(cls, path: Path, plan: CropPlan) -> CropStore:
        _check_disk_space(path, plan.nbytes)  # before a store exists, whose plan cannot be made smaller
        attributes = {
            "format": "multispin-crops", "version": CROPS_VERSION, "made_of": plan.made_of, "size": plan.size,
            "labels": list(plan.labels),
        }  # fmt: skip
        side = plan.size + 2 * room_around(plan.size)
        with writing(path, "Choose another place."), creating_group(path, attributes) as root:
            root.create_array(
                "pictures", shape=(len(plan.box), side, side, 3), chunks=(1, side, side, 3),
                shards=(BLOCK, side, side, 3), dtype="uint8", fill_value=0,
            )  # fmt: skip
            root.create_array("box", data=plan.box)
            root.create_array("label", data=plan.label)
            root.create_array("done", shape=(plan.blocks,), chunks=(1,), dtype="bool", fill_value=False)
        return cls(path, write=True)

    @property
    def next_block(self) -> int:
        """First block that is not written, or the number of blocks."""
        done = np.asarray(self._done[:])
        return len(done) if done.all() else int(np.argmin(done))

    def write(self, block: int, pictures: Sequence[Pixels]) -> None:
        """Write a block, then mark it done.

        Raises ``InputError`` when the disk is full or the folder cannot be written.
        """
        start = block * BLOCK
        stop = min(start + BLOCK, len(self.plan.box))
        if len(pictures) != stop - start:
            raise ValueError(f"{len(pictures)} pictures for block {block}, which has {stop - start}")
        try:
            self._pictures[start:stop] = np.stack(pictures)
            self._done[block] = True
        except OSError as e:
            raise InputError(
                f"{self.path}: pictures {start}–{stop - 1} could not be written ({e.strerror or e}). All "
                "before them are there: make room, then run the same command again."
            ) from e

    def picture(self, row: int) -> Pixels:
        """Read a picture (P, P, 3) RGB. Raises ``InputError`` when its file is damaged."""
        with decoding(self.path, "Remove the store and make it again.", f"picture {row}"):
            return np.asarray(self._pictures[row])


def _check_disk_space(path: Path, size: float) -> None:
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    if size > (free := shutil.disk_usage(existing).free):
        raise InputError(
            f"{path}: up to {size / 1e9:.1f} GB are still to be written, but {free / 1e9:.1f} GB are free. "
            "Make room, choose a smaller size or fewer frames, or another place."
        )
