"""``results.zarr``: one recording's results, as zarr format 3, readable with plain ``zarr.open``.

::

    /                     attributes: format, version, software, config, body, fps [num, den], cameras,
                          window, up (unit vector of the world)
    time_s (T,)           seconds from the first frame
    done (windows,)       true once everything of a window of frames is written
    cameras/              K (V,3,3)  dist (V,8)  R (V,3,3)  t (V,3)  size (V,2)  frame_index (V,T)
    people/<id>/          global_orient (T,3)  body_pose (T,23,3)  betas (B,)  transl (T,3)
                          joints (T,24,3)  keypoints_3d (T,25,4)  reprojection_px (T,V)
                          valid (T,)  status (T,) why not: its attributes name the codes
    keypoints_2d/<camera> (T,P,25,3)  pixels of the video frame and confidence
    regression/<id>/      global_orient (T,3)  body_pose (T,23,3)  betas (T,B)  transl (T,3)
                          pose_sigma (T,23): what the regressor said of each frame, before the fit, and how
                          far off it takes its rotations to be; not there when none ran
    resume/               what the matching and the fit carry from one window into the next

Rotations are axis-angle (radians), lengths metres, the world that of the calibration. ``frame_index`` is the
number of each camera's video frame at each time, −1 where it has none. Missing is NaN, confidence 0.

Chunks on T are windows: a write is whole chunks, by one writer, and ``done[k]`` comes last. So a store whose
writer was killed is complete for every window that is done, and goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import roma
import torch
import zarr
from numpy.typing import NDArray

from pipeline.batches import FitBatch, KeypointBatch, PoseBatch, SmplParams, Status
from pipeline.cameras import Rig
from pipeline.errors import InputError

VERSION = 1
STRETCH = 1000
"""Frames read at once, in whole windows, where a whole store is read."""
_Put = Callable[[str, "torch.Tensor | NDArray[Any]"], None]
_CAMERA_ARRAYS = ("K", "dist", "R", "t", "size")


@dataclass(frozen=True)
class Contents:
    """Everything about a store that is known before its first window is written."""

    rig: Rig
    rate: Fraction
    """Frames a second."""
    time_s: NDArray[np.float64]
    """(T,)"""
    frame_index: NDArray[np.int64]
    """(V, T) number of each camera's video frame at each time, −1 where it has none."""
    body: Mapping[str, str]
    """The body model's name and sha256."""
    config: Mapping[str, Any]
    """The whole configuration of the run."""
    window: int = 24
    """Frames a window."""
    people: int = 1
    num_betas: int = 10
    regression: bool = False
    """There is a regressor, whose own output is kept too."""

    def attributes(self) -> dict[str, Any]:
        return {
            "format": "multispin",
            "version": VERSION,
            "software": f"multispin {metadata.version('multispin')}",
            "config": dict(self.config),
            "body": dict(self.body),
            "fps": [self.rate.numerator, self.rate.denominator],
            "cameras": list(self.rig.names),
            "up": self.rig.up.tolist(),
            "window": self.window,
            "people": self.people,
        }

    def digest(self) -> str:
        """Of everything here: recording, cameras, body, configuration and software."""
        digest = hashlib.sha256(json.dumps(self.attributes(), sort_keys=True).encode())
        for array in (*(getattr(self.rig, n) for n in _CAMERA_ARRAYS), self.time_s, self.frame_index):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class Store:
    """A results store on disk, open for reading, and for writing windows in order."""

    def __init__(self, path: Path, *, write: bool = False) -> None:
        """Open the store at ``path``.

        Raises:
            InputError: there is no store, it is damaged, or a newer version of the software wrote it.
        """
        self.path = path
        if not (path / "zarr.json").is_file():
            raise InputError(
                f"{path}: no results store here. Expected a folder that `run` or `synth` has written."
            )
        try:
            self._root = zarr.open_group(path, mode="r+" if write else "r")
            self._arrays: dict[str, zarr.Array[Any]] = {}
            attrs = dict(self._root.attrs)
            if attrs.get("format") != "multispin":
                raise InputError(
                    f"{path}: a zarr group, but not a multispin store (attribute format is missing)."
                )
            if int(cast(Any, attrs["version"])) > VERSION:
                raise InputError(
                    f"{path}: written by {attrs.get('software')}, store version {attrs['version']}; this "
                    f"software reads up to version {VERSION}. Update multispin."
                )
            self.contents = self._read_contents(attrs)
            self.digest = self.contents.digest()
            """Stores of one digest hold the same results once they are complete."""
        except (KeyError, ValueError, TypeError, OSError) as e:
            raise InputError(
                f"{path}: damaged results store ({type(e).__name__}: {e}). Remove it and run again."
            ) from e

    @classmethod
    def create(cls, path: Path, contents: Contents) -> Store:
        """A new, empty store at ``path``; a half-created one in its place is removed."""
        building = path.with_name(path.name + ".new")
        shutil.rmtree(building, ignore_errors=True)
        root = zarr.create_group(building, attributes=contents.attributes())
        rig, t, w = contents.rig, len(contents.time_s), contents.window

        def whole(group: zarr.Group, name: str, data: Any) -> None:
            group.create_array(name, data=np.asarray(data))

        def by_window(
            group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, fill: object = np.nan
        ) -> None:
            # Empty chunks are written, too: a window that is done has all its files, or it was damaged.
            group.create_array(
                name,
                shape=shape,
                chunks=(w, *shape[1:]),
                dtype=dtype,
                fill_value=fill,
                config={"write_empty_chunks": True},
            )

        whole(root, "time_s", contents.time_s)
        windows = -(-t // w)
        root.create_array("done", shape=(windows,), chunks=(1,), dtype="bool", fill_value=False)
        cameras = root.create_group("cameras")
        for name in _CAMERA_ARRAYS:
            whole(cameras, name, getattr(rig, name))
        whole(cameras, "frame_index", contents.frame_index)
        for p in range(contents.people):
            person = root.create_group(f"people/{p}")
            by_window(person, "global_orient", (t, 3), "float32")
            by_window(person, "body_pose", (t, 23, 3), "float32")
            by_window(person, "transl", (t, 3), "float32")
            by_window(person, "joints", (t, 24, 3), "float32")
            by_window(person, "keypoints_3d", (t, 25, 4), "float32")
            by_window(person, "reprojection_px", (t, len(rig)), "float32")
            by_window(person, "valid", (t,), "bool", False)
            by_window(person, "status", (t,), "uint8", int(Status.NOT_SEEN))
            person["status"].attrs["codes"] = {s.name.lower(): int(s) for s in Status}
            person.create_array("betas", shape=(contents.num_betas,), dtype="float32", fill_value=np.nan)
            if contents.regression:
                regression = root.create_group(f"regression/{p}")
                by_window(regression, "global_orient", (t, 3), "float32")
                by_window(regression, "body_pose", (t, 23, 3), "float32")
                by_window(regression, "betas", (t, contents.num_betas), "float32")
                by_window(regression, "transl", (t, 3), "float32")
                by_window(regression, "pose_sigma", (t, 23), "float32")
        for name in rig.names:
            by_window(root.require_group("keypoints_2d"), name, (t, contents.people, 25, 3), "float32")
        root.create_group("resume").create_array(
            "anchor",
            shape=(windows, contents.people, 4),
            chunks=(1, contents.people, 4),
            dtype="float64",
            fill_value=np.nan,
        )
        building.rename(path)
        return cls(path, write=True)

    @classmethod
    def resume(cls, path: Path, contents: Contents, ignore: Sequence[str] = ()) -> Store:
        """The store at ``path``, to go on writing, or a new one where there is none.

        ``ignore`` names sections of the configuration that do not change what is stored.

        Raises:
            InputError: the store there was made from another recording, body or configuration; the message
                names what differs.
        """
        if not path.exists():
            return cls.create(path, contents)
        store = cls(path, write=True)
        old_attrs, new_attrs = store.contents.attributes(), contents.attributes()
        for attrs in (old_attrs, new_attrs):
            attrs["config"] = {k: v for k, v in attrs["config"].items() if k not in ignore}
            del attrs["up"]  # of drawings only
        differences = [*_differences(old_attrs, new_attrs)]
        for name, old, new in (
            ("the frames' times", store.contents.time_s, contents.time_s),
            ("which video frames are used", store.contents.frame_index, contents.frame_index),
            *(
                (f"the cameras' {n}", getattr(store.contents.rig, n), getattr(contents.rig, n))
                for n in _CAMERA_ARRAYS
            ),
        ):
            if old.shape != new.shape or not np.array_equal(old, new):
                differences.append(f"{name} differ")
        if differences:
            shown = "\n  ".join(differences[:8])
            raise InputError(
                f"{path}: was made by a run that differs from this one:\n  {shown}\n"
                "Use the same settings to continue it, choose another --out, or remove it to start again."
            )
        for leftover in path.rglob("*.partial"):  # of a write that was killed
            leftover.unlink(missing_ok=True)
        store._distrust_damage()
        if not np.array_equal(store.contents.rig.up, contents.rig.up):
            store._root.attrs["up"] = contents.rig.up.tolist()
            return cls(path, write=True)
        return store

    def _distrust_damage(self) -> None:
        """Windows that are marked done but lack a file, as after a power cut, are not done."""
        names = [name for name, array in self._root.members(max_depth=None) if isinstance(array, zarr.Array)]
        by_window = [
            n
            for n in names
            if n.startswith(("people/", "keypoints_2d/", "regression/"))
            and not (n.startswith("people/") and n.endswith("betas"))
        ]
        done = self.done
        for name in by_window:
            files = {p.name for p in (self.path / name / "c").glob("*")}
            done &= np.array([str(k) in files for k in range(len(done))])
        if not np.array_equal(done, self.done):
            self._array("done")[:] = done

    def _read_contents(self, attrs: Mapping[str, Any]) -> Contents:
        cameras = {k: self.array(f"cameras/{k}") for k in (*_CAMERA_ARRAYS, "frame_index")}
        frame_index = cameras.pop("frame_index")
        return Contents(
            # Results of earlier versions do not say what is up.
            rig=Rig(
                tuple(attrs["cameras"]),
                **cameras,
                known_up=np.array(attrs["up"], np.float64) if "up" in attrs else None,
            ),
            rate=Fraction(*attrs["fps"]),
            time_s=self.array("time_s"),
            frame_index=frame_index,
            body=attrs["body"],
            config=attrs["config"],
            window=attrs["window"],
            people=attrs["people"],
            num_betas=self._array("people/0/betas").shape[0],
            regression="regression" in self._root,
        )

    def _array(self, name: str) -> zarr.Array[Any]:
        found = self._arrays.get(name)
        if found is None:  # opening an array takes as long as writing a window of it
            opened = self._root[name]
            if not isinstance(opened, zarr.Array):
                raise KeyError(name)
            found = self._arrays[name] = opened
        return found

    def array(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows ``start:stop`` of an array of the store, by its path, such as ``people/0/joints``.

        Arrays are opened once: that one was removed later shows as missing values.

        Raises:
            InputError: it is not there or its files are damaged.
        """
        try:
            return np.asarray(self._array(name)[start:stop])
        except (KeyError, ValueError, RuntimeError, OSError) as e:
            stretch = f" at {start}–{stop - 1}" if stop is not None else ""
            raise InputError(
                f"{self.path}: {name} is damaged{stretch} ({type(e).__name__}: {e}). Remove the store and "
                "run again."
            ) from e

    @property
    def done(self) -> NDArray[np.bool_]:
        """(windows,) which windows are completely written."""
        return self.array("done")

    @property
    def first_missing(self) -> int:
        """Index of the first window that is not done; the number of windows when all are."""
        done = self.done
        return len(done) if done.all() else int(np.argmin(done))

    def span(self, window: int) -> tuple[int, int]:
        """First frame of a window and the one after its last."""
        w = self.contents.window
        return window * w, min((window + 1) * w, len(self.contents.time_s))

    @property
    def finished(self) -> int:
        """How many frames are written, from the first one on without a gap."""
        return min(self.first_missing * self.contents.window, len(self.contents.time_s))

    def check_frames(self, start: int, stop: int) -> None:
        """Raises ``InputError`` when not all of frames ``start:stop`` are written, or these are none."""
        done = self.finished
        if 0 <= start < stop <= done:
            return
        if not done:
            raise InputError(f"{self.path}: no frame is done yet; finish the run first.")
        if start < done and stop <= start:
            raise InputError(
                f"{self.path}: frames {start} up to {stop} are none; --end is the frame after the last."
            )
        absent = start if start >= done else stop - 1
        raise InputError(f"{self.path}: there is no frame {absent}; those that are done are 0 to {done - 1}.")

    def stretches(self) -> Iterator[tuple[int, int]]:
        """First and last of some windows at a time, from the first to the last before one that is missing.

        A long store is read in few pieces, and in bounded memory.
        """
        windows, step = self.first_missing, max(1, STRETCH // self.contents.window)
        for first in range(0, windows, step):
            yield first, min(first + step, windows) - 1

    def write(self, batch: FitBatch) -> None:
        """Write one window of frames, then mark it done.

        Raises:
            ValueError: the batch does not cover exactly one window.
            InputError: the disk is full or the folder cannot be written.
        """
        with self._writing(batch.start, len(batch.valid)) as (k, put):
            self._write(k, put, batch.to("cpu"))

    def write_regression(self, batch: PoseBatch) -> None:
        """Write what the regressor says of one window of frames, which comes before the window itself.

        Raises as ``write`` does.
        """
        with self._writing(batch.start, len(batch.transl)) as (_, put):
            for p in range(self.contents.people):
                put(f"regression/{p}/global_orient", _axis_angle(batch.global_orient[:, p]))
                put(f"regression/{p}/body_pose", _axis_angle(batch.body_pose[:, p]))
                put(f"regression/{p}/betas", batch.betas[:, p])
                put(f"regression/{p}/transl", batch.transl[:, p])
                put(f"regression/{p}/pose_sigma", batch.pose_sigma[:, p])

    @contextmanager
    def _writing(self, start: int, frames: int) -> Iterator[tuple[int, _Put]]:
        """Which window these frames are, and what writes its part of an array of the store."""
        k = start // self.contents.window
        a, b = self.span(k)
        if (start, start + frames) != (a, b):
            raise ValueError(f"frames {start}–{start + frames} are not window {k} ({a}–{b})")

        def put(name: str, values: torch.Tensor | NDArray[Any]) -> None:
            self._array(name)[a:b] = np.asarray(values)

        try:
            yield k, put
        except OSError as e:
            raise InputError(
                f"{self.path}: frames {a}–{b - 1} could not be written ({e.strerror or e}). Everything "
                "before them is there: make room or give write permission, then run the same command again."
            ) from e

    def _write(self, k: int, put: _Put, batch: FitBatch) -> None:
        params, seen = batch.params, batch.keypoints
        for p in range(self.contents.people):
            person = f"people/{p}"
            put(f"{person}/global_orient", _axis_angle(params.global_orient[:, p]))
            put(f"{person}/body_pose", _axis_angle(params.body_pose[:, p]))
            put(f"{person}/transl", params.transl[:, p])
            put(f"{person}/joints", batch.joints[:, p])
            put(f"{person}/keypoints_3d", batch.keypoints_3d[:, p])
            put(f"{person}/reprojection_px", batch.reprojection_px[:, :, p].T)
            put(f"{person}/valid", batch.valid[:, p])
            put(f"{person}/status", batch.status[:, p])
            self._array(f"{person}/betas")[:] = np.asarray(params.betas[p])
        for v, name in enumerate(self.contents.rig.names):
            put(f"keypoints_2d/{name}", torch.cat([seen.image_px[v], seen.confidence[v, ..., None]], -1))
        self._array("resume/anchor")[k] = np.asarray(seen.anchor)
        size = len(batch.state)
        if size:
            if "resume/state" not in self._arrays and "resume/state" not in self._root:
                self._root.create_array(
                    "resume/state",
                    shape=(len(self.done), size),
                    chunks=(1, size),
                    dtype="float64",
                    fill_value=np.nan,
                )
            self._array("resume/state")[k] = np.asarray(batch.state)
        self._array("done")[k] = True

    def carried(self, window: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the matching (P, 4) and the fit (S,) carry out of a window."""
        anchor = torch.from_numpy(self.array("resume/anchor", window, window + 1)[0])
        if "resume/state" not in self._root:
            return anchor, None
        return anchor, torch.from_numpy(self.array("resume/state", window, window + 1)[0])

    def read(self, window: int, last: int | None = None) -> FitBatch:
        """A written window, as it flows between stages, except that ``state`` is empty.

        With ``last`` those up to it, as one batch.
        """
        a, b = self.span(window)[0], self.span(window if last is None else last)[1]
        people = partial(self._people, "people", a, b)
        betas = np.stack([self.array(f"people/{p}/betas") for p in range(self.contents.people)])
        return FitBatch(
            keypoints=self._keypoints(a, b),
            params=SmplParams(
                global_orient=_matrix(people("global_orient")),
                body_pose=_matrix(people("body_pose")),
                betas=torch.from_numpy(betas),
                transl=torch.from_numpy(people("transl")),
            ),
            joints=torch.from_numpy(people("joints")),
            keypoints_3d=torch.from_numpy(people("keypoints_3d")),
            reprojection_px=torch.from_numpy(np.moveaxis(people("reprojection_px"), 2, 0).copy()),
            status=torch.from_numpy(people("status")),
            state=torch.zeros(0, dtype=torch.float64),
        )

    def read_regression(self, window: int) -> PoseBatch:
        """What the regressor said of a written window, as it flows between stages.

        Raises:
            InputError: no regressor ran.
        """
        if not self.contents.regression:
            raise InputError(f"{self.path}: made without a regressor (regress.weights: none).")
        a, b = self.span(window)
        said = partial(self._people, "regression", a, b)
        return PoseBatch(
            keypoints=self._keypoints(a, b),
            global_orient=_matrix(said("global_orient")),
            body_pose=_matrix(said("body_pose")),
            betas=torch.from_numpy(said("betas")),
            transl=torch.from_numpy(said("transl")),
            pose_sigma=torch.from_numpy(said("pose_sigma")),
        )

    def _people(self, group: str, a: int, b: int, name: str) -> NDArray[Any]:
        """(T, P, ...) of frames ``a:b``, from the arrays of all people."""
        return np.stack([self.array(f"{group}/{p}/{name}", a, b) for p in range(self.contents.people)], 1)

    def _keypoints(self, a: int, b: int) -> KeypointBatch:
        c = self.contents
        image = np.stack([self.array(f"keypoints_2d/{n}", a, b) for n in c.rig.names])
        xy = np.stack([c.rig.undistort(v, image[v, ..., :2]) for v in range(len(c.rig))]).astype(np.float32)
        return KeypointBatch(
            start=a,
            rate=c.rate,
            time_s=torch.from_numpy(c.time_s[a:b]),
            image_px=torch.from_numpy(image[..., :2].copy()),
            xy_px=torch.from_numpy(xy),
            confidence=torch.from_numpy(np.nan_to_num(image[..., 2])),
            anchor=self.carried((b - 1) // c.window)[0],
        )


def _axis_angle(matrices: torch.Tensor) -> NDArray[np.float64]:
    """(..., 3, 3) → (..., 3); NaN stays NaN."""
    return np.asarray(roma.rotmat_to_rotvec(matrices.double()))


def _matrix(axis_angle: NDArray[np.float32]) -> torch.Tensor:
    """(..., 3) → (..., 3, 3) float32; NaN stays NaN."""
    matrices: torch.Tensor = roma.rotvec_to_rotmat(torch.from_numpy(axis_angle).double())
    return matrices.float()


def _differences(old: Any, new: Any, where: str = "") -> Sequence[str]:
    """Keys whose values differ between two nested mappings, as lines ``key: old → new``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [
            d for k in keys for d in _differences(old.get(k), new.get(k), f"{where}.{k}" if where else str(k))
        ]
    return [] if old == new else [f"{where}: {old} → {new}"]
