"""``results.zarr``: results of a recording in zarr format 3, readable with plain ``zarr.open``.

``pipeline/schema.py`` lists its arrays. Chunks on T are windows. One writer writes whole chunks, ``done[k]``
last: the store of a killed run is complete for every window that is done, and is resumed from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from pipeline.batches import FitBatch, KeypointBatch, PoseBatch, SmplParams, State, check_points
from pipeline.contents import STORE_FORMAT, VERSION, Contents
from pipeline.errors import InputError
from pipeline.files import decoding
from pipeline.schema import BETAS, EVENT, PERSON, RECORDING, REGRESSION, STATE_UNITS, check_shapes
from pipeline.zarrs import CHUNK_KEYS, creating_group, open_array, remove_partial_files

BLOCK_FRAMES = 240
"""Frames, in whole windows, that are read at a time where a whole store is read."""
_CHECKED_STATES = 64
"""Windows before the first missing one with a checked restart state: the regressor restarts some earlier."""
_Put = Callable[[str, "torch.Tensor | NDArray[Any]"], None]


class Store:
    """Results store on disk, open for reading, or for writing windows in order."""

    def __init__(self, path: Path, *, write: bool = False) -> None:
        """Open the store at ``path``.

        Raises ``InputError``: there is no store, it is damaged, or it has another format version.
        """
        self.path = path
        if not (path / "zarr.json").is_file():
            raise InputError(
                f"{path}: no results store here. Expected a folder that `run` or `synth` has written."
            )
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._making = threading.Lock()
        with self._reading("the store"):
            self._root = zarr.open_group(path, mode="r+" if write else "r")
            attrs = cast("Mapping[str, Any]", dict(self._root.attrs))
            if attrs.get("format") != STORE_FORMAT:
                raise InputError(
                    f"{path}: a zarr group, but not a multispin store (attribute format is missing)."
                )
            version, software = int(attrs["version"]), attrs.get("software")
            if version < VERSION:
                raise InputError(
                    f"{path}: written by {software} in store format {version}, which this software no longer "
                    "reads: run again, into another folder or after removing it."
                )
            if version > VERSION:
                raise InputError(
                    f"{path}: written by {software}, store format {version}; this software reads format "
                    f"{VERSION}. Update multispin."
                )
            check_shapes(lambda name: self._array(name).shape, len(attrs["cameras"]), int(attrs["window"]))
            self.contents = Contents.read(attrs, self.array)
            self.digest = self.contents.digest()
            """Complete stores with equal digests hold equal results."""

    @classmethod
    def create(cls, path: Path, contents: Contents) -> Store:
        """Create an empty store at ``path``."""
        with creating_group(path, contents.attributes()) as root:
            for name in ("cameras", "people", "state"):
                root.create_group(name)
            for name, data in contents.arrays().items():
                root.create_array(name, data=data, **RECORDING[name].metadata())
            for name in ("done", "files"):
                kind = RECORDING[name]
                root.create_array(
                    name, shape=(contents.windows,), chunks=(1,), dtype=kind.dtype, fill_value=kind.missing,
                    **kind.metadata(),
                )  # fmt: skip
        return cls(path, write=True)

    @classmethod
    def resume(cls, path: Path, contents: Contents, ignore: Sequence[str] = ()) -> Store:
        """Open the store at ``path`` for more windows; create it where there is none.

        ignore: as in ``Contents.changes``.

        Raises ``InputError``: the store was of another recording, body or configuration; lists the
        differences.
        """
        if not path.exists():
            return cls.create(path, contents)
        store = cls(path, write=True)
        if changes := store.contents.changes(contents, ignore):
            listed = "\n  ".join(changes[:8])
            raise InputError(
                f"{path}: was made by a run that differs from this one:\n  {listed}\n"
                "Use the same settings to continue it, choose another --out, or remove it to start again, "
                "as `run --overwrite` does."
            )
        remove_partial_files(path)
        store._unmark_damaged()
        return store

    def _unmark_damaged(self) -> None:
        """Mark windows as not done that miss a file, as after a power cut, or whose state is damaged."""
        done, files = self.done, np.zeros(self.contents.windows, dtype=np.int64)
        for person in self.ids:
            present = self._present(f"people/{person}/joints")
            if present.any() and not self._file(f"people/{person}/betas", 0).is_file():
                done[np.flatnonzero(present)[-1]] = False  # writing this window writes them again
            for name in self.contents.person_arrays:
                files += self._present(f"people/{person}/{name}")
        for name in self._state_names():
            files += self._present(name)
        done &= files == self.array("files")
        k = first = int(np.argmin(done))  # 0 when all are done
        while k > max(0, first - _CHECKED_STATES):
            try:
                self.state(k)
                k -= 1
            except InputError:
                done[k - 1] = False
                k = first = k - 1
        if not np.array_equal(done, self.done):
            self._array("done")[:] = done

    def _present(self, name: str) -> NDArray[np.bool_]:
        """(windows,) true where an array has a file for the window."""
        files = [self._file(name, k) for k in range(self.contents.windows)]
        return np.array([f.is_file() and f.stat().st_size > 0 for f in files])

    def _file(self, name: str, window: int) -> Path:
        """Path of the chunk file of a window of an array, which need not exist."""
        kind = self.contents.person_arrays.get(name.split("/", 2)[2]) if name.startswith("people/") else None
        chunk = [0] * (len(kind.axes.split()) if kind else self._array(name).ndim)
        chunk[_time_axis(name)] = window
        return self.path / name / ".".join(["c", *map(str, chunk)])

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of all people with data, increasing."""
        names = (p.name for p in (self.path / "people").glob("*"))
        return tuple(sorted(int(name) for name in names if name.isdecimal()))

    def find_people(self, wanted: str) -> tuple[int, ...]:
        """Ids that ``wanted`` names: a number, or ``all``. Raises ``InputError`` for an unknown one."""
        ids = self.ids
        if wanted == "all":
            return ids
        if not wanted.isdecimal():
            raise InputError(f"--person {wanted}: expected a number, or all")
        if int(wanted) not in ids:
            people = ", ".join(map(str, ids)) or "none"
            raise InputError(f"{self.path}: no person {wanted}; the people are: {people}.")
        return (int(wanted),)

    def _array(self, name: str) -> zarr.Array[Any]:
        """Open an array; opened ones are kept, as opening takes as long as writing a window."""
        if name not in self._arrays:
            with self._reading(name):
                array = open_array(self._root, name)
                self._check_person(name, array)
            self._arrays[name] = array
        return self._arrays[name]

    def _check_person(self, name: str, array: zarr.Array[Any]) -> None:
        """Raise ``ValueError`` where a person's array has not the shape, chunks or type of the schema."""
        last = name.split("/", 2)[-1]
        if name.startswith("people/") and last in (c := self.contents).person_arrays:
            expected = tuple(c.shape(last, len(c.time_s))), tuple(c.shape(last, c.window))
            if (array.shape, array.chunks) != expected or array.dtype.name != c.person_arrays[last].dtype:
                raise ValueError(f"{array.shape} {array.dtype.name} in {array.chunks}, not {expected}")

    def _reading(self, content: str) -> AbstractContextManager[None]:
        return decoding(self.path, "Remove the store and run again.", content)

    def array(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read frames or rows ``start:stop`` of an array by its path, such as ``people/0/joints``.

        Arrays are opened once: one that is removed later reads as missing.

        Raises ``InputError``: the array is absent or damaged.
        """
        array = self._array(name)
        with self._reading(f"{name} at {start}–{stop - 1}" if stop is not None else name):
            return np.asarray(array[_rows(name, start, stop)])

    @property
    def done(self) -> NDArray[np.bool_]:
        """(windows,) true for windows that are completely written."""
        return self.array("done")

    @property
    def first_missing(self) -> int:
        """Index of the first window that is not done; number of windows when all are."""
        done = self.done
        return len(done) if done.all() else int(np.argmin(done))

    def span(self, window: int) -> tuple[int, int]:
        """First frame of a window, and the frame after its last."""
        w = self.contents.window
        return window * w, min((window + 1) * w, len(self.contents.time_s))

    @property
    def finished(self) -> int:
        """Number of frames before the first missing window."""
        return min(self.first_missing * self.contents.window, len(self.contents.time_s))

    def check_frames(self, start: int, stop: int) -> None:
        """Raise ``InputError`` where the range ``start:stop`` is empty or not all of it is written."""
        done = self.finished
        if 0 <= start < stop <= done:
            return
        if not done:
            raise InputError(f"{self.path}: no frame is done yet; finish the run first.")
        if start < done and stop <= start:
            raise InputError(
                f"{self.path}: frames {start} to {stop} are no range; --end is the frame after the last."
            )
        absent = start if start >= done else stop - 1
        raise InputError(f"{self.path}: no frame {absent}; frames 0 to {done - 1} are done.")

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First and last window of consecutive blocks of ``BLOCK_FRAMES``, up to the first missing window."""
        windows, step = self.first_missing, max(1, BLOCK_FRAMES // self.contents.window)
        for first in range(0, windows, step):
            yield first, min(first + step, windows) - 1

    def write(self, batch: FitBatch, angles: torch.Tensor | None = None) -> None:
        """Write one window of frames, then mark it done.

        angles: (T, P, A) degrees, those of ``contents.angles``; None where the store has none.

        Raises:
            ValueError: the batch is not exactly one window, or has other joints, keypoints or angles.
            InputError: the disk is full or the folder is not writable.
        """
        batch = batch.to("cpu")
        state, keypoints = batch.carried, batch.keypoints
        self._check_angles(batch, angles)
        with self._writing(batch) as (k, put):
            for p, person in enumerate(keypoints.ids.tolist()):
                self._make_person(person)
                values: dict[str, torch.Tensor | NDArray[Any]] = {
                    "global_orient": _axis_angle(batch.params.global_orient[:, p]),
                    "body_pose": _axis_angle(batch.params.body_pose[:, p]),
                    "transl": batch.params.transl[:, p],
                    "joints": batch.joints[:, p],
                    "keypoints_3d": batch.keypoints_3d[:, p],
                    "reprojection_px": batch.reprojection_px[:, :, p].T,
                    "valid": batch.valid[:, p],
                    "status": batch.status[:, p],
                    "keypoints_2d": torch.cat(
                        [keypoints.image_px[:, :, p], keypoints.confidence[:, :, p, :, None]], -1
                    ),
                }
                if angles is not None:
                    values["angles"] = angles[:, p].cpu()
                for name, value in values.items():
                    put(f"people/{person}/{name}", value)
                self._array(f"people/{person}/betas")[:] = np.asarray(batch.params.betas[p])
            for name, tensor in state.items():
                self._write_state(k, f"state/{name}", np.asarray(tensor))
            self._array("files")[k] = len(keypoints.ids) * len(self.contents.person_arrays) + len(state)
            self._array("done")[k] = True

    def turn_up(
        self, up: NDArray[np.float64], measure: Callable[[FitBatch, NDArray[np.float64]], torch.Tensor]
    ) -> Store:
        """Change which way is up, and the joint angles of all windows to ``measure(batch, up)``.

        ``up`` is written last, so an interrupted call is repeated from the start.
        """
        for k in np.flatnonzero(self.done).tolist() if self.contents.angles else ():
            batch = self.read(k)
            angles = measure(batch, up)
            self._check_angles(batch, angles)
            with self._writing(batch) as (_, put):
                for p, person in enumerate(batch.keypoints.ids.tolist()):
                    put(f"people/{person}/angles", angles[:, p])
        self._root.attrs["up"] = up.tolist()
        return Store(self.path, write=True)

    def _check_angles(self, batch: FitBatch, angles: torch.Tensor | None) -> None:
        shape = None if angles is None else tuple(angles.shape)
        expected = (*batch.status.shape, len(self.contents.angles)) if self.contents.angles else None
        if shape != expected:
            raise ValueError(f"angles from frame {batch.start} on have shape {shape}, expected {expected}")

    def write_events(self, person: int, times_s: Mapping[str, NDArray[np.float64]]) -> None:
        """Write the times of each kind of event of a person, replacing earlier ones."""
        group = self._root.require_group(f"people/{person}/events")
        for name, values in times_s.items():
            chunks = (max(len(values), 1),)
            group.create_array(name, data=values, chunks=chunks, overwrite=True, **EVENT.metadata())

    def events(self, person: int) -> dict[str, NDArray[np.float64]]:
        """Times of each kind of event of a person, seconds. Raises ``InputError`` for damaged ones."""
        folder = self.path / f"people/{person}/events"
        names = sorted(path.name for path in folder.glob("*") if path.is_dir())
        return {name: self.array(f"people/{person}/events/{name}") for name in names}

    def write_regression(self, batch: PoseBatch) -> None:
        """Write the regressor's poses of one window, before ``write`` of that window. Raises as it does."""
        with self._writing(batch) as (_, put):
            for p, person in enumerate(batch.keypoints.ids.tolist()):
                self._make_person(person)
                for name in REGRESSION:
                    value = getattr(batch, name.rpartition("/")[2])[:, p]
                    put(f"people/{person}/{name}", _axis_angle(value) if value.ndim > 2 else value)

    @contextmanager
    def _writing(self, batch: FitBatch | PoseBatch) -> Iterator[tuple[int, _Put]]:
        """Index of a batch's window, and a function that writes the window of an array by its path."""
        start, stop = batch.start, batch.start + len(batch.keypoints.time_s)
        k = start // self.contents.window
        a, b = self.span(k)
        if (start, stop) != (a, b):
            raise ValueError(f"frames {start}–{stop} are not window {k} ({a}–{b})")
        check_points(batch, self.contents.skeleton, self.contents.keypoint_skeleton)

        def put(name: str, values: torch.Tensor | NDArray[Any]) -> None:
            self._array(name)[_rows(name, a, b)] = np.asarray(values)

        try:
            yield k, put
        except OSError as e:
            raise InputError(
                f"{self.path}: frames {a}–{b - 1} could not be written ({e.strerror or e}); all before them "
                "are kept. Make room or give write permission, then run the same command again."
            ) from e

    def _make_person(self, person: int) -> None:
        """Create a person's group, atomically, unless it exists."""
        path = self.path / "people" / str(person)
        with self._making:
            if path.exists():
                return
            c = self.contents
            frames, betas = len(c.time_s), [c.num_betas]
            kinds = c.person_arrays.items()
            arrays = {name: (kind, c.shape(name, frames), c.shape(name, c.window)) for name, kind in kinds}
            with creating_group(path) as group:
                for name, (kind, shape, chunks) in (arrays | {"betas": (BETAS, betas, betas)}).items():
                    group.create_array(
                        name, shape=shape, chunks=tuple(chunks), chunk_key_encoding=CHUNK_KEYS,
                        dtype=kind.dtype, fill_value=kind.missing, **kind.metadata(),
                    )  # fmt: skip

    def _write_state(self, window: int, name: str, values: NDArray[Any]) -> None:
        if name not in self._arrays and name not in self._root:
            self._root.create_array(
                name,
                shape=(self.contents.windows, *values.shape),
                chunks=(1, *values.shape),
                chunk_key_encoding=CHUNK_KEYS,
                dtype=values.dtype,
                fill_value=np.nan if values.dtype.kind == "f" else 0,
                compressors=[ZstdCodec(checksum=True)],  # so that damage raises instead of being resumed
                dimension_names=["window", *(f"axis_{i}" for i in range(values.ndim))],
                attributes={"units": STATE_UNITS},
            )
        self._array(name)[window] = values

    def _state_names(self) -> list[str]:
        """Paths of all arrays of restart state."""
        with self._reading("state"):
            members = cast(zarr.Group, self._root["state"]).members(max_depth=None)
            return [f"state/{name}" for name, array in members if isinstance(array, zarr.Array)]

    def state(self, window: int) -> State:
        """Restart state of all stages before a window; empty before the first.

        Raises ``InputError`` where its files are damaged.
        """
        if not window:
            return {}
        names = [n for n in self._state_names() if self._file(n, window - 1).is_file()]
        return {
            name.removeprefix("state/"): torch.from_numpy(self.array(name, window - 1, window)).squeeze(0)
            for name in names
        }

    def read(self, window: int, last: int | None = None) -> FitBatch:
        """Read a written window, or the windows up to ``last`` as one batch, without restart state.

        The batch has all people with data in any of these windows.
        """
        last = window if last is None else last
        ids = self.present(window, last)
        a, b = self.span(window)[0], self.span(last)[1]

        def people(name: str, axis: int = 1) -> torch.Tensor:
            return self.people(ids, name, a, b, axis)

        betas = [self.array(f"people/{i}/betas") for i in ids]
        return FitBatch(
            keypoints=self._keypoints(ids, a, b),
            params=SmplParams(
                global_orient=_matrix(people("global_orient")),
                body_pose=_matrix(people("body_pose")),
                betas=torch.from_numpy(np.array(betas, np.float32).reshape(-1, self.contents.num_betas)),
                transl=people("transl"),
            ),
            joints=people("joints"),
            keypoints_3d=people("keypoints_3d"),
            reprojection_px=people("reprojection_px").movedim(2, 0).contiguous(),
            status=people("status"),
            skeleton=self.contents.skeleton,
        )

    def present(self, first: int, last: int) -> tuple[int, ...]:
        """Ids of people with data in some of the windows ``first`` to ``last``, increasing."""
        windows = range(first, last + 1)
        return tuple(
            i for i in self.ids if any(self._file(f"people/{i}/status", k).is_file() for k in windows)
        )

    def windows_of(self, person: int) -> NDArray[np.int64]:
        """Windows with data of a person, increasing."""
        files = (self.path / f"people/{person}/status").glob("c.*")
        return np.array(sorted(int(n) for f in files if (n := f.name[2:]).isdecimal()), np.int64)

    def people(self, ids: Sequence[int], name: str, a: int, b: int, axis: int = 1) -> torch.Tensor:
        """Frames ``a:b`` of an array of these people, stacked along ``axis``: (T, P, ...) for axis 1."""
        if ids:
            return torch.from_numpy(np.stack([self.array(f"people/{i}/{name}", a, b) for i in ids], axis))
        shape = self.contents.shape(name, b - a)
        shape.insert(axis, 0)
        return torch.zeros(shape, dtype=getattr(torch, self.contents.person_arrays[name].dtype))

    def _keypoints(self, ids: tuple[int, ...], a: int, b: int) -> KeypointBatch:
        c = self.contents
        image = self.people(ids, "keypoints_2d", a, b, axis=2)
        xy = c.rig.undistort_views(image[..., :2].numpy())
        return KeypointBatch(
            start=a,
            rate=c.rate,
            ids=torch.tensor(ids, dtype=torch.int64),
            time_s=torch.from_numpy(c.time_s[a:b]),
            image_px=image[..., :2].clone(),
            xy_px=torch.from_numpy(xy.astype(np.float32)),
            confidence=image[..., 2].nan_to_num(),
            skeleton=c.keypoint_skeleton,
        )


def _time_axis(name: str) -> int:
    """Axis of an array along which windows are chunks."""
    kind = PERSON.get(name.rpartition("/")[2])
    return kind.time_axis if kind else 0


def _rows(name: str, start: int, stop: int | None) -> tuple[slice, ...]:
    """Index of frames or rows ``start:stop`` of an array."""
    return (slice(None),) * _time_axis(name) + (slice(start, stop),)


def _axis_angle(matrices: torch.Tensor) -> NDArray[np.float64]:
    """(..., 3, 3) → (..., 3); NaN stays NaN."""
    import roma  # loads torch's compiler: as long as torch itself

    return np.asarray(roma.rotmat_to_rotvec(matrices.double()))


def _matrix(axis_angle: torch.Tensor) -> torch.Tensor:
    """(..., 3) → (..., 3, 3) float32; NaN stays NaN."""
    import roma

    matrices: torch.Tensor = roma.rotvec_to_rotmat(axis_angle.double())
    return matrices.float()
