"""Samples of published data sets: SPIN's ``.npz``, one row for each person in each picture.

The keys are those of ``models/datasets/rows.py``, of which SPIN's own files lack ``id``, ``camera``,
``group`` and the cameras. There every row is an instant of its own, but for ``mpi-inf-3dhp`` and ``h36m``,
whose picture names contain the instant.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.crops import Optics, crop_matrix, crop_rgb, room_around, spin_camera
from models.datasets.pictures import read_picture
from models.datasets.rows import file_and_frame, read_rows
from models.training.crop_store import CropPlan, CropStore
from models.training.samples import Sample, Sampling, ViewGroups, centred_boxes
from pipeline.array_types import Array, Pixels
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24

Naming = Literal["npz", "mpi-inf-3dhp", "h36m"]

ROW_LABELS: Final = ("row",)
_NAMES: Final[dict[str, re.Pattern[str]]] = {
    "mpi-inf-3dhp": re.compile(r"(S\d+)/(Seq\d+)/.*video_(\d+)(?:/frame_|\.\w+#)(\d+)"),
    "h36m": re.compile(r"(S\d+)[/_](?:Videos/)?(.+)\.(\d{8})(?:_|\.\w+#)(\d+)"),
}
"""Subject, sequence, camera and frame in the names of pictures."""


class PublishedRows:
    """Arrays of a file of rows, in pixels of pinhole cameras."""

    def __init__(self, path: Path, naming: Naming = "npz") -> None:
        """Raises ``InputError`` as ``read_rows`` does, or when ``naming`` is not that of the pictures."""
        rows = read_rows(path)
        self.path = path
        self.imgname: list[str] = rows["imgname"].tolist()
        self.box = rows["box"]
        """(N, 3) centre x, y and side, pixels of the pinhole camera; NaN without one."""
        self.part, self.openpose, self.S = rows["part"], rows["openpose"], rows["S"]
        self.pose, self.shape, self.has_smpl = rows["pose"], rows["shape"], rows["has_smpl"] > 0
        self.K, self.dist, self.R, self.t = (rows[k] for k in ("K", "dist", "R", "t"))
        calibrated: NDArray[np.bool_] = np.all(np.isfinite(self.K), axis=(1, 2))
        self.K = np.where(calibrated[:, None, None], self.K, spin_camera(self.box))
        self.dist = np.where(calibrated[:, None], np.nan_to_num(self.dist), 0)
        self._name(naming, rows)
        for i in np.flatnonzero(self.dist.any(1)).tolist():
            self.box[i, :2] = self.undistort(i, self.box[i, :2])

    def _name(self, naming: Naming, rows: Mapping[str, NDArray[Any]]) -> None:
        """Name every row, and group the rows of one instant."""
        keys: list[Any] = rows["group"].tolist()  # in files of SPIN every row is a group
        if rows["camera"].all():
            self.camera = rows["camera"].tolist()
            names = [i.split("/") for i in rows["id"].tolist()]
            self.instant = ["/".join((*n[:-2], n[-1])) for n in names]
        elif naming in _NAMES:
            parts = [_NAMES[naming].search(n) for n in self.imgname]
            bad = next((i for i, m in enumerate(parts) if m is None), None)
            if bad is not None:
                raise InputError(
                    f"{self.path}: the picture '{self.imgname[bad]}' is not named as those of {naming}, so "
                    "its views cannot be told. Make the file with `preprocess`, or use kind: npz."
                )
            self.camera = [m[3] for m in parts if m]
            keys = self.instant = [f"{naming}/{m[1]}/{m[2]}/{m[4]}" for m in parts if m]
        else:
            # Several people can be in one picture: their positions distinguish them in any file.
            self.camera = ["0"] * len(keys)
            centres = np.nan_to_num(self.box[:, :2]).round().astype(int).tolist()
            self.instant = [
                f"{self.path.stem}/{n}/{x}_{y}" for n, (x, y) in zip(self.imgname, centres, strict=True)
            ]
        members: dict[Any, list[int]] = {}
        for row, key in enumerate(keys):
            members.setdefault(key, []).append(row)
        self.members = list(members.values())
        """Rows of each instant."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def undistort(self, row: int, xy: Array) -> Array:
        """Pixels (..., 2) of a row's picture → pixels of the pinhole camera."""
        if not self.dist[row].any():
            return xy
        t, size = np.zeros((1, 3)), np.zeros((1, 2), np.int64)
        return Rig(("",), self.K[row, None], self.dist[row, None], np.eye(3)[None], t, size).undistort(0, xy)

    def keypoints(self, rows: NDArray[np.int64]) -> tuple[Array, Array]:
        """Keypoints (n, 49, 2) of rows, pixels of the pinhole camera, and their confidences (n, 49)."""
        points = np.concatenate([self.openpose[rows], self.part[rows]], 1)
        xy = np.stack([self.undistort(int(row), p[:, :2]) for row, p in zip(rows, points, strict=True)])
        return xy, points[..., 2]

    def plan(self, size: int) -> CropPlan:
        """Crops of ``size`` pixels of all rows, by files and frames."""

        def position(row: int) -> tuple[str, int]:
            name, frame = file_and_frame(self.imgname[row])
            return name, frame or 0

        order = sorted(range(len(self.imgname)), key=position)
        return CropPlan(self.digest, size, self.box[order], np.array(order)[:, None], ROW_LABELS)


class PublishedPeople:
    """Source of samples from the rows of a file, and their picture files or a store of crops."""

    def __init__(
        self,
        path: Path,
        sampling: Sampling,
        naming: Naming = "npz",
        root: Path | None = None,
        crops: Path | None = None,
        shapes: bool = False,
    ) -> None:
        """Open the rows of a file.

        root: folder that picture names are relative to; the file's own by default. crops: store of the rows'
        crops, instead of pictures. shapes: use the betas, which are SMPL's.

        Raises ``InputError`` when a file is missing, or rows are frames of videos and ``crops`` is None.
        """
        self._arguments = path, sampling, naming, root, crops, shapes
        self.shapes, self.size, self.root = shapes, sampling.size, root or path.parent
        self.rows = PublishedRows(path, naming)
        self.store = (
            None if crops is None else CropStore.open_finished(crops, path, self.rows.digest, self.size)
        )
        seen: NDArray[np.bool_] = np.all(np.isfinite(self.rows.box), axis=1)
        members = [[r for r in rows if seen[r]] for rows in self.rows.members]
        self.groups = ViewGroups([m for m in members if m], sampling.views, sampling.seed)
        if not len(self.groups):
            raise InputError(f"{path}: has no row with a box around a person. Make it again.")
        if self.store is None:
            video = next((n for n in self.rows.imgname if file_and_frame(n)[1] is not None), None)
            if video is not None:
                raise InputError(f"{path}: {video} is a frame of a video. Cut the people out first: `crops`.")
            return
        plan = self.store.plan
        self.size = plan.size
        self._stored = np.empty(len(plan.label), np.int64)  # picture in the store of each row
        self._stored[plan.label[:, 0]] = np.arange(len(plan.label))

    def __reduce__(self) -> tuple[type[PublishedPeople], tuple[Any, ...]]:
        # Other processes read the file again, which is less than to send its content.
        return PublishedPeople, self._arguments

    def __len__(self) -> int:
        return len(self.groups)

    def _picture(self, row: int) -> Pixels:
        if self.store is not None:
            return self.store.picture(int(self._stored[row]))
        r = self.rows
        rgb = read_picture(self.root / r.imgname[row])
        return crop_rgb(rgb, r.box[row], self.size, room_around(self.size), Optics(r.K[row], r.dist[row]))

    def __getitem__(self, index: int) -> Sample:
        _, rows = self.groups[index]
        r = self.rows
        pictures = tuple(self._picture(int(row)) for row in rows)
        crop = crop_matrix(r.box[rows], self.size, room_around(self.size))
        xy, confidence = r.keypoints(rows)
        xy = xy @ crop[:, :2, :2].mT + crop[:, None, :2, 2]
        has_smpl = r.has_smpl[rows]
        pose = torch.from_numpy(r.pose[rows].reshape(-1, len(SMPL_24), 3))
        rotations = np.where(has_smpl[:, None, None, None], roma.rotvec_to_rotmat(pose).numpy(), np.nan)
        first = int(np.argmax(has_smpl))  # pose and shape are equal in all views with SMPL
        has_betas = self.shapes and has_smpl[first]
        return Sample(
            id=r.instant[rows[0]],
            cameras=tuple(r.camera[row] for row in rows),
            pictures=pictures,
            box=centred_boxes(pictures, self.size),
            K=crop @ r.K[rows],
            R=r.R[rows],
            t=r.t[rows],
            xy_px=np.where(confidence[..., None] > 0, xy, np.nan),
            confidence=np.maximum(confidence, 0),
            joints=np.where(r.S[rows][..., 3:] > 0, r.S[rows][..., :3], np.nan),
            orient=rotations[:, 0],
            body_pose=rotations[first, 1:],
            betas=r.shape[rows[first]].astype(np.float64) if has_betas else np.full(10, np.nan),
        )
