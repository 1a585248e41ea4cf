"""Files whose structure is mutated, over the readers that ``test_mutations.py`` leaves.

A share of the 3,100 cases runs with the suite; ``pytest -m slow tests/reliability/test_mutated_formats.py``
takes them all.
"""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from exported import make
from people import bodies, write_people
from scipy.io import loadmat, savemat
from test_crop_store import film, reconstructed
from test_detections import DETECTOR, videos, write_rest
from test_detector_pose_networks import simcc
from test_fits import names, some_bodies
from test_fuzz import survives
from test_keypoint_formats import BY_HAND, put
from test_mpi_inf_3dhp import make_test, make_train
from test_mutations import cases, changed_arrays, mutated_arrays, mutated_text, mutated_tree
from test_named_points import as_pandas, as_sleap
from test_single_pictures import make_coco, make_lsp, make_mpii
from test_threedpw import make as make_threedpw

from models.body import load_body
from models.datasets import coco, lsp, mpi_inf_3dhp, mpii, threedpw
from models.datasets.pictures import read_pictures
from models.datasets.rows import read_rows
from models.detectors.pose_networks import load_pose_network
from models.evaluation.joints import read_regressor
from models.evaluation.predictions import PredictOptions
from models.evaluation.protocols import PROTOCOLS
from models.evaluation.scores import score_network
from models.evaluation.stores import compare_identities, compare_to_truth
from models.formats import FOLDERS, FORMATS, fbx
from models.image_regressor import load_image_regressor
from models.regressors.keypoint_nets import load_regressor
from models.training.crop_store import CropStore
from models.training.fits import FitStore
from models.training.recorded import plan_of_results
from pipeline.archives import read_npz
from pipeline.clocks import Clock, SyncFile, read_sync
from pipeline.detections import Detections
from pipeline.formats.keypoints import find_camera_files, index_keypoints
from pipeline.store import Store
from stages.crops import crops_of_results
from stages.export import ExportOptions, export_people

__all__ = ["videos"]

pytestmark = pytest.mark.filterwarnings("ignore")


def mutate_json(file: Path, rng: random.Random) -> None:
    file.write_text(json.dumps(mutated_tree(json.loads(file.read_bytes()), rng)))


def mutate_hdf5(file: Path, rng: random.Random) -> None:
    """Change data sets of a file of HDF5, or a MATLAB file of version 7.3, at its root."""
    with h5py.File(file, "r") as kept:
        arrays = {k: v[()] for k, v in kept.items() if isinstance(v, h5py.Dataset)}
    with h5py.File(file, "w") as changed:
        for name, values in changed_arrays(arrays, rng).items():
            if values.dtype.kind != "O":
                changed[name] = np.char.encode(values, "utf-8") if values.dtype.kind == "U" else values


def mutate_mat(file: Path, rng: random.Random) -> None:
    kept = {k: v for k, v in loadmat(file).items() if not k.startswith("__")}
    changed = changed_arrays(kept, rng)
    savemat(file, {k: v for k, v in changed.items() if not any(x is None for x in np.ravel(v))})


def mutate_pickle(file: Path, rng: random.Random) -> None:
    file.write_bytes(pickle.dumps(mutated_tree(pickle.loads(file.read_bytes()), rng), protocol=2))


def mutate_text(file: Path, rng: random.Random) -> None:
    text = file.read_bytes().decode(errors="surrogateescape")
    file.write_bytes(mutated_text(text, rng).encode(errors="surrogateescape"))


@cases(1000)
def test_keypoints_of_every_format(tmp_path: Path, count: int) -> None:
    rng = random.Random(11)
    writers: list[Any] = [*BY_HAND, as_pandas, as_sleap]

    def read(_: object) -> None:
        place = tmp_path / "keypoints"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        form = rng.choice(writers)
        if isinstance(form, ModuleType):
            put(place, BY_HAND[form])
        else:
            form(place, 0)
        file = rng.choice(sorted(f for f in place.rglob("*") if f.is_file()))
        match file.suffix:
            case ".json":
                mutate_json(file, rng)
            case ".h5":
                mutate_hdf5(file, rng)
            case ".npz":
                with np.load(file) as kept:
                    file.write_bytes(mutated_arrays(dict(kept), rng))
            case _:
                mutate_text(file, rng)
        for path in find_camera_files(place):
            files = index_keypoints(path)
            for number in (4, 5, 7):
                people, reason = files.people(number, 3)
                assert bool(len(people)) != bool(reason)
                assert ((people[..., 2] == 0) | np.isfinite(people).all(-1)).all()
                files.point_counts(number)
            files.in_known_order({})

    assert 0 < survives(read, count, rng) < count


@cases(400)
def test_stores_of_detections_crops_and_fits(tmp_path: Path, count: int, videos: Any) -> None:
    rng = random.Random(12)
    write_rest(Detections.resume(tmp_path / "detections.zarr", DETECTOR, videos, 2))
    store = reconstructed(tmp_path / "results.zarr")
    plan = plan_of_results(store, 64, fps=1000)
    list(crops_of_results(store, film(tmp_path / "film"), plan, tmp_path / "crops.zarr"))
    fits = FitStore(tmp_path / "fits.zarr")
    fits.put(names(3, 2), some_bodies(3, 2), 7)
    fits.save()
    kept = {f: f.read_bytes() for name in ("detections", "crops", "fits") for f in
            sorted((tmp_path / f"{name}.zarr").rglob("zarr.json"))}  # fmt: skip

    def read(_: object) -> None:
        file = rng.choice([*kept])
        try:
            mutate_json(file, rng)
            if "detections.zarr" in file.parts:
                found = Detections.resume(tmp_path / "detections.zarr", DETECTOR, videos, 2)
                found.states()
                for camera in found.people().values():
                    camera.anybody()
                    camera.people(0, 33)
            elif "crops.zarr" in file.parts:
                crops = CropStore.resume(tmp_path / "crops.zarr", plan)
                crops.picture(0)
            else:
                FitStore(tmp_path / "fits.zarr").get(names(3, 2))
        finally:
            file.write_bytes(kept[file])

    assert 0 < survives(read, count, rng) < count


@cases(200)
def test_clocks(tmp_path: Path, count: int) -> None:
    rng = random.Random(13)
    clocks = {f"cam{v}": Clock(offset_s=0.1 * v, sigma_s=0.01, method="rays") for v in range(3)}
    kept = SyncFile(sync=clocks, source={"cam0": "a"}, curves={"cam1": [[0.0, 1.0]]}).model_dump(mode="json")

    def read(_: object) -> None:
        path = tmp_path / "sync.yaml"
        path.write_text(json.dumps(mutated_tree(kept, rng)))
        for clock in read_sync(path).sync.values():
            assert np.isfinite(clock.numbers).all()

    assert 0 < survives(read, count, rng) < count


@cases(500)
def test_data_sets(tmp_path: Path, count: int) -> None:
    rng = random.Random(14)
    trees: list[tuple[Any, str, Callable[[Path, random.Random], None]]] = [
        (coco, "annotations/*.json", mutate_json),
        (threedpw, "sequenceFiles/*/*.pkl", mutate_pickle),
        (mpii, "annot/*.h5", mutate_hdf5),
        (lsp, "joints.mat", mutate_mat),
        (mpi_inf_3dhp, "S1/Seq1/annot.mat", mutate_mat),
        (mpi_inf_3dhp, "S1/Seq1/camera.calibration", mutate_text),
        (mpi_inf_3dhp, "mpi_inf_3dhp_test_set/TS1/annot_data.mat", mutate_hdf5),
    ]
    for module, write in ((coco, make_coco), (threedpw, make_threedpw), (mpii, make_mpii), (lsp, make_lsp),
                          (mpi_inf_3dhp, make_train), (mpi_inf_3dhp, make_test)):  # fmt: skip
        write(tmp_path / module.NAME)

    def read(_: object) -> None:
        module, pattern, mutate = rng.choice(trees)
        (file,) = (tmp_path / module.NAME).glob(pattern)
        kept = file.read_bytes()
        try:
            mutate(file, rng)
            split = "test" if "test" in pattern or module is threedpw else module.SPLITS[0]
            for part in module.parts(tmp_path / module.NAME, split):
                for row in module.rows(part, 1):
                    row.box.sum()
        finally:
            file.write_bytes(kept)

    assert 0 < survives(read, count, rng) < count


@cases(300)
def test_networks_and_matrices(tmp_path: Path, count: int) -> None:
    rng = random.Random(15)
    checkpoint = {"model": {"fc1.weight": torch.zeros(4, 5), "conv1.weight": torch.zeros(3)}, "epoch": 3}
    network = simcc(3)

    def read(mutate: Callable[[bytes], bytes]) -> None:
        match rng.randrange(3):
            case 0:
                torch.save(mutated_tree(checkpoint, rng), tmp_path / "net.pt")
                load_image_regressor(tmp_path / "net.pt")
            case 1:
                (tmp_path / "net.onnx").write_bytes(mutate(network))
                load_pose_network(tmp_path / "net.onnx")
            case 2:
                values = changed_arrays({"x": np.full((17, 20), 1 / 20)}, rng).get("x", np.zeros(0))
                np.save(tmp_path / "j.npy", values, allow_pickle=True)
                read_regressor(tmp_path / "j.npy", 17, 20)

    assert 0 < survives(read, count, rng) <= count


@cases(500)
def test_results_that_are_exported_or_compared(tmp_path: Path, count: int) -> None:
    """Metadata and chunks of a store, as each export format, evaluate and crops read them."""
    rng = random.Random(16)
    truth = make(tmp_path / "results.zarr")
    files = sorted(f for f in truth.store.path.rglob("*") if f.is_file())
    kept = {f: f.read_bytes() for f in files}
    texts = [f for f in files if f.name == "zarr.json"]
    forms = [form for form in (*FORMATS, *FOLDERS) if form is not fbx]
    right = Store(shutil.copytree(truth.store.path, tmp_path / "truth.zarr"))

    def read(mutate: Callable[[bytes], bytes]) -> None:
        file = rng.choice(texts if rng.random() < 0.7 else files)
        try:
            if file.name == "zarr.json":
                mutate_json(file, rng)
            else:
                file.write_bytes(mutate(kept[file]))
            found = Store(truth.store.path)
            if rng.random() < 0.3:
                compare_to_truth(found, right, load_body())
                compare_identities(found, right)
                plan_of_results(found, 64, fps=1000)
                return
            target = tmp_path / f"a{rng.choice(forms).TRAITS.suffix}"
            for _ in export_people(found, load_body(), target, found.find_people("all"), ExportOptions(1, 5)):
                pass
        finally:
            for made in tmp_path.glob("a*"):
                shutil.rmtree(made) if made.is_dir() else made.unlink()
            file.write_bytes(kept[file])

    assert 0 < survives(read, count, rng) < count


@cases(200)
def test_rows_that_are_evaluated(tmp_path: Path, count: int) -> None:
    rng = random.Random(17)
    folder = write_people(tmp_path)
    rows = read_npz(folder / "rows.npz")
    net, pictures = load_regressor("calibrated"), partial(read_pictures, folder)

    def read(_: object) -> None:
        (folder / "changed.npz").write_bytes(mutated_arrays(rows, rng))
        options = PredictOptions(rng.choice((1, 2)), rng.random() < 0.1, batch_size=4)
        changed = read_rows(folder / "changed.npz")
        score_network(PROTOCOLS["h36m-p2"], net, changed, bodies(), pictures, options)

    assert 0 < survives(read, count, rng) < count
