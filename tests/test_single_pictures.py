"""LSP, MPII and COCO from small trees of their layouts. No real file was at hand: names and shapes are those
that SPIN's scripts read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from models.datasets import coco, lsp, mpii
from models.datasets.rows import PersonRow, read_rows, to_arrays, with_detection, write_npz
from models.training.published import PublishedRows
from pipeline.errors import InputError
from pipeline.skeleton import BODY_25, EXTRA_24

# What SPIN's scripts write into ``part`` of each file's points, in order.
MPII = [0, 1, 2, 3, 4, 5, 14, 15, 12, 13, 6, 7, 8, 9, 10, 11]
COCO = [19, 20, 21, 22, 23, 9, 8, 10, 7, 11, 6, 3, 2, 4, 1, 5, 0]


def marks(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).uniform(20, 180, shape).round(1)


def make_lsp(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    for i in (*range(1000, 2000), 0, 1, 2):
        (root / f"images/im{i + 1:04d}.jpg").touch()
    savemat(root / "joints.mat", {"joints": marks(3, 14, 2000)})
    return root


def make_mpii(root: Path) -> Path:
    (root / "annot").mkdir(parents=True)
    (root / "images").mkdir()
    points = marks(4, 16, 2)
    points[2, 9] = 0  # a head that is not marked: left out
    with h5py.File(root / "annot/train.h5", "w") as file:
        file["imgname"] = np.array([f"{i:09d}.jpg".encode() for i in (7, 7, 8, 9)])
        file["center"], file["scale"], file["part"] = marks(4, 2), np.array([1.0, 2.5, 3, 4]), points
    for i in (7, 9):
        (root / f"images/{i:09d}.jpg").touch()
    return root


def make_coco(root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "train2014").mkdir()
    people: list[dict[str, Any]] = []
    for i in range(3):
        points = np.c_[marks(17, 2) + i, np.full(17, 1 + i % 2)]
        points[3] = 0  # an ear
        if i == 1:
            points[12] = 0  # a hip
        flat = points.ravel().tolist()
        people.append({"id": 40 + i, "image_id": 9, "keypoints": flat, "bbox": [10.0, 20, 60, 90 + i]})
    images = [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}]
    (root / "annotations/person_keypoints_train2014.json").write_text(
        json.dumps({"images": images, "annotations": people})
    )
    (root / "train2014/COCO_train2014_000000000009.jpg").touch()
    return root


def all_rows(module: Any, root: Path, every: int = 1) -> list[PersonRow]:
    parts = module.parts(root, module.SPLITS[0])
    return [row for part in parts for row in module.rows(part, every)]


def test_lsp(tmp_path: Path) -> None:
    root = make_lsp(tmp_path)
    (part,) = lsp.parts(root, "test")
    found = list(lsp.rows(part, 1))
    assert len(found) == 1000
    joints = marks(3, 14, 2000)
    for row, i in zip(found[::250], range(1000, 2000, 250), strict=True):
        assert row.imgname == f"images/im{i + 1:04d}.jpg"
        xy = joints[:2, :, i].T
        np.testing.assert_allclose(row.part[:14], np.c_[xy, np.ones(14)])
        assert not row.part[14:].any()
        low, high = xy.min(0), xy.max(0)
        np.testing.assert_allclose(row.box, [*(low + high) / 2, 1.2 * (high - low).max()])
    with pytest.raises(InputError, match=r"im0004\.jpg: is not there"):
        all_rows(lsp, root)
    (few,) = lsp.parts(root, "train")
    with pytest.raises(InputError, match=r"im0501\.jpg"):
        list(lsp.rows(few, 500))


def test_mpii(tmp_path: Path) -> None:
    found = all_rows(mpii, make_mpii(tmp_path))
    assert [r.imgname for r in found] == [f"images/{i:09d}.jpg" for i in (7, 7, 9)]
    for row, i in zip(found, (0, 1, 3), strict=True):
        np.testing.assert_allclose(row.part[MPII], np.c_[marks(4, 16, 2)[i], np.ones(16)])
        np.testing.assert_allclose(row.box, [*marks(4, 2)[i], 200 * (1, 2.5, 3, 4)[i]])
    assert found[0].part[EXTRA_24.index("Pelvis (MPII)"), 2] == 1


def test_coco(tmp_path: Path) -> None:
    found = all_rows(coco, make_coco(tmp_path))
    assert [r.id.split("/")[-1] for r in found] == ["000040", "000042"]
    for row, i in zip(found, (0, 2), strict=True):
        want = np.c_[marks(17, 2) + i, np.ones(17)]
        want[3] = 0
        np.testing.assert_allclose(row.part[COCO], want)
        np.testing.assert_allclose(row.box, [40, 20 + (90 + i) / 2, 1.2 * (90 + i)])


@pytest.mark.parametrize(("module", "make"), [(mpii, make_mpii), (coco, make_coco)])
def test_rows_train(module: Any, make: Any, tmp_path: Path) -> None:
    """Every person a picture of their own, with OpenPose's points; every other one if that is asked for."""
    root = make(tmp_path / "data")
    found = all_rows(module, root)
    assert len(all_rows(module, root, every=2)) == -(-len(found) // 2)
    limbs = [BODY_25.index(name) for name in EXTRA_24.names[:12]]
    point = np.zeros((25, 3))
    point[limbs] = np.c_[found[0].part[:12, :2], np.full(12, 0.7)]
    file = (tmp_path / "openpose" / found[0].imgname).with_suffix("")
    file.parent.mkdir(parents=True)
    Path(f"{file}_keypoints.json").write_text(
        json.dumps({"people": [{"pose_keypoints_2d": point.ravel().tolist()}]})
    )
    seen = [with_detection(row, tmp_path / "openpose") for row in all_rows(module, root)]
    np.testing.assert_allclose(seen[0].openpose, point, atol=1e-6)
    write_npz(to_arrays(seen), tmp_path / "rows.npz")
    assert read_rows(tmp_path / "rows.npz")["has_smpl"].tolist() == [0] * len(seen)
    rows = PublishedRows(tmp_path / "rows.npz")
    assert [len(m) for m in rows.members] == [1] * len(seen)
    assert len(set(rows.instant)) == len(seen)


@pytest.mark.parametrize(
    ("module", "make", "file"),
    [
        (lsp, make_lsp, "joints.mat"),
        (mpii, make_mpii, "annot/train.h5"),
        (coco, make_coco, "annotations/person_keypoints_train2014.json"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(module: Any, make: Any, file: str, tmp_path: Path) -> None:
    root = make(tmp_path)
    whole = (root / file).read_bytes()
    for content in (b"", whole[: len(whole) // 2], b'{"images": [], "annotations": [{"keypoints": [1]}]}'):
        (root / file).write_bytes(content)
        with pytest.raises(InputError, match=f"{Path(file).name}: cannot be read"):
            all_rows(module, root)
    (root / file).unlink()
    with pytest.raises(InputError, match=Path(file).name):
        module.parts(root, module.SPLITS[0])
