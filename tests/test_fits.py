import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from scipy.spatial.transform import Rotation

from models.training import fits
from models.training.fits import FitStore
from models.training.loop import Bodies
from pipeline.errors import InputError


def some_bodies(n, v, seed=0, score=1.0):
    rng = np.random.default_rng(seed)

    def rotations(*shape):
        flat = Rotation.random(int(np.prod(shape)), rng=rng).as_matrix()
        return torch.from_numpy(flat.reshape(*shape, 3, 3).astype(np.float32))

    def normal(*shape):
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    scores = torch.full((n, v), float(score))
    return Bodies(rotations(n, v), rotations(n, v, 23), normal(n, v, 10), normal(n, v, 3), scores)


def names(n, v, first=0):
    return [[f"data/anna/walk/cam{j}/{i + first}" for j in range(v)] for i in range(n)]


def assert_same(a, b, **tolerance):
    for f in fields(Bodies):
        torch.testing.assert_close(getattr(a, f.name), getattr(b, f.name), **tolerance)


def test_what_is_put_comes_back_now_and_from_the_disk(tmp_path):
    store, want = FitStore(tmp_path / "fits.zarr"), some_bodies(3, 2)
    store.put(names(3, 2), want, 7)
    assert_same(store.get(names(3, 2)), want, atol=2e-6, rtol=0)
    store.save()
    again = FitStore(tmp_path / "fits.zarr")
    assert len(again) == 6
    assert_same(again.get(names(3, 2)), store.get(names(3, 2)), atol=0, rtol=0)
    unknown = again.get([["data/bob/walk/cam0/1"]])
    assert unknown.score.item() == torch.inf


def test_what_is_saved_is_on_the_disk_by_its_name(tmp_path, monkeypatch):
    path = tmp_path / "fits.zarr"
    store, synced = FitStore(path), []
    monkeypatch.setattr(fits.os, "fsync", lambda opened: synced.append(os.fstat(opened).st_ino))
    store.put(names(1, 1), some_bodies(1, 1), 0)
    store.save()
    (part,) = path.glob("part-*")
    assert {p.stat().st_ino for p in (part, *part.rglob("*"))} <= set(synced[:-1])
    assert synced[-1] == path.stat().st_ino  # after the new name is in it


def test_the_better_fit_is_kept_of_each_picture(tmp_path):
    store = FitStore(tmp_path / "fits.zarr")
    first, second = some_bodies(2, 1, 1, score=5.0), some_bodies(2, 1, 2)
    second.score[0], second.score[1] = 4.0, 6.0
    store.put(names(2, 1), first, 0)
    store.put(names(2, 1), second, 1)
    found = store.get(names(2, 1))
    torch.testing.assert_close(found.betas[0], second.betas[0])
    torch.testing.assert_close(found.betas[1], first.betas[1])
    assert found.score[:, 0].tolist() == [4.0, 5.0]


def test_a_fit_that_is_no_number_is_not_kept(tmp_path):
    store, broken = FitStore(tmp_path / "fits.zarr"), some_bodies(2, 1)
    broken.transl[1] = torch.nan
    store.put(names(2, 1), broken, 0)
    assert len(store) == 1


def test_a_version_is_what_was_known_at_its_step(tmp_path):
    store = FitStore(tmp_path / "fits.zarr")
    old, new = some_bodies(1, 1, 1, score=5.0), some_bodies(1, 1, 2, score=3.0)
    for step, bodies in ((10, old), (20, new)):
        store.put(names(1, 1), bodies, step)
        store.save()
    for version, want in ((10, None), (11, old), (20, old), (21, new), (None, new)):
        found = FitStore(tmp_path / "fits.zarr", version).get(names(1, 1))
        if want is None:
            assert found.score.item() == torch.inf
        else:
            torch.testing.assert_close(found.betas, want.betas)


def test_what_others_have_saved_is_taken_in_when_its_step_has_come(tmp_path):
    here, there = FitStore(tmp_path / "fits.zarr"), FitStore(tmp_path / "fits.zarr")
    for step in (3, 6):
        there.put(names(1, 1, step), some_bodies(1, 1, step), step)
    there.put(names(1, 1, 3), some_bodies(1, 1, 9, score=0.5), 6)
    there.save()
    assert len(here) == 0
    seen = {}
    for version in (3, 6, 7, 7):
        here.reload(version)
        seen[version] = len(here)
    assert seen == {3: 0, 6: 0, 7: 2}  # the first was bettered before it was saved
    assert here.get(names(1, 1, 3)).score.item() == 0.5


def test_many_parts_become_one_with_all_versions_that_may_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(fits, "_MAX_PARTS", 3)
    path = tmp_path / "fits.zarr"
    store = FitStore(path)
    for step in range(5):
        store.put(names(2, 1), some_bodies(2, 1, step, score=10.0 - step), step)
        store.save()
    before = {v: FitStore(path, v).get(names(2, 1)) for v in (3, 4, None)}
    store.compact(3)
    assert len(list(path.glob("part-*"))) == 1
    for version, want in before.items():
        assert_same(FitStore(path, version).get(names(2, 1)), want, atol=0, rtol=0)
    assert FitStore(path, 2).get(names(2, 1)).score.isinf().all()  # gone


def test_a_part_is_plain_zarr(tmp_path):
    store, want = FitStore(tmp_path / "fits.zarr"), some_bodies(1, 2, score=3.5)
    store.put(names(1, 2), want, 4)
    store.save()
    (name,) = zarr.open_group(tmp_path / "fits.zarr", mode="r").group_keys()
    part = zarr.open_group(tmp_path / "fits.zarr", mode="r")[name]
    assert bytes(part["name"][1]).rstrip(b"\0").decode() == "data/anna/walk/cam1/0"
    assert part["step"][:].tolist() == [4, 4]
    assert part["score"][:].tolist() == [3.5, 3.5]
    rotation = Rotation.from_rotvec(part["global_orient"][:]).as_matrix()
    np.testing.assert_allclose(rotation, want.orient[0], atol=1e-6)
    rotation = Rotation.from_rotvec(part["body_pose"][1, 5]).as_matrix()
    np.testing.assert_allclose(rotation, want.body_pose[0, 1, 5], atol=1e-6)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "fits.zarr" / "part-x").mkdir(parents=True)
    with pytest.raises(InputError, match=r"fits.zarr: the fits of a training cannot be read"):
        FitStore(tmp_path / "fits.zarr")


_WRITER = """
import sys
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)
from pathlib import Path
from models.training.fits import FitStore
from tests.test_fits import names, some_bodies
store, first = FitStore(Path(sys.argv[1])), int(sys.argv[2])
step = -1
while True:
    step += 1
    # A picture of its own, and one that both write: the better the later, and the second process's is better
    store.put(names(1, 1, first + step), some_bodies(1, 1, first + step), step)
    store.put([["data/both/walk/cam0/0"]], some_bodies(1, 1, first + step, 1000 - step - first / 1e6), step)
    store.save()
    print(step, flush=True)
"""


def test_processes_that_are_killed_and_resumed_lose_no_fit_that_was_saved(tmp_path):
    path, root = tmp_path / "fits.zarr", str(Path(__file__).parents[1])
    FitStore(path)
    saved = {}
    writers = {
        first: subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _WRITER, str(path), str(first), root],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for first in (0, 500_000)
    }
    for first, process in writers.items():
        assert process.stdout is not None
        saved[first] = next(int(line) for line in process.stdout if int(line) > 5)
    for first, process in writers.items():
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        saved[first] = max([saved[first], *(int(x) for x in rest.split())])
        assert process.returncode == -signal.SIGKILL
    for first in saved:  # each goes on with what it finds
        store = FitStore(path)
        saved[first] += 1
        store.put(names(1, 1, first + saved[first]), some_bodies(1, 1, first + saved[first]), saved[first])
        store.save()
    store = FitStore(path)
    for first, last in saved.items():
        for step in range(last + 1):
            found = store.get(names(1, 1, first + step))
            assert_same(found, some_bodies(1, 1, first + step), atol=2e-6, rtol=0)
    best = store.get([["data/both/walk/cam0/0"]]).score.item()
    assert best <= min(1001 - last - first / 1e6 for first, last in saved.items()) + 1e-4
