"""SPIN's fits of a data set, as those that a training begins with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from people import COUNT, data
from scipy.spatial.transform import Rotation

from models.body import load_body
from models.datasets.rows import to_arrays, write_npz
from models.evaluation.joints import extra_24
from models.training.fits import FitStore
from models.training.images import with_points
from models.training.published import PublishedRows
from models.training.static_fits import static_fits
from pipeline.errors import InputError

MESH = load_body()
POINTS = with_points(MESH.keypoints, extra_24(MESH)).to(dtype=torch.float32)


@pytest.fixture
def rows(tmp_path: Path) -> PublishedRows:
    arrays = dict(to_arrays(data()))
    arrays["scale"] = arrays["scale"].copy()
    arrays["scale"][5] = np.nan  # no box: not trained on
    write_npz(arrays, tmp_path / "rows.npz")
    return PublishedRows(tmp_path / "rows.npz")


def true_fits(rows: PublishedRows) -> np.ndarray:
    """The truth as SPIN writes it: before a camera that looks straight at the middle of the crop."""
    fits = np.concatenate([rows.pose, rows.shape], 1)
    for i in np.flatnonzero(np.isfinite(rows.box).all(1)):
        ray = np.linalg.inv(rows.K[i]) @ [*rows.box[i, :2], 1]
        axis = np.cross(ray, [0, 0, 1])  # from the ray to straight ahead
        angle = np.arctan2(np.linalg.norm(axis), ray[2])
        turn = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis))
        fits[i, :3] = (turn * Rotation.from_rotvec(rows.pose[i, :3])).as_rotvec()
    return fits


def test_the_truth_in_spins_file_is_the_truth_before_the_cameras(rows: PublishedRows, tmp_path: Path) -> None:
    np.save(tmp_path / "fits.npy", true_fits(rows).astype(np.float32))
    store = FitStore(tmp_path / "fits.zarr")
    for names, fits in static_fits(tmp_path / "fits.npy", rows, POINTS, shapes=True):
        store.put(names, fits, 0)
    assert len(store) == COUNT - 1
    for i, row in enumerate(data()):
        fit = store.get([[row.id]])
        if i == 5:
            assert fit.score.isinf().all()
            continue
        assert fit.score < 0.5
        turned = Rotation.from_matrix(fit.orient[0, 0].numpy()).inv() * Rotation.from_rotvec(row.pose[:3])
        assert turned.magnitude() < 0.01  # the crop is cut along whole pixels
        np.testing.assert_allclose(fit.betas[0, 0].numpy(), row.shape, atol=1e-5)
        found = fit.points(POINTS)[0, 0, 25:].numpy()
        pelvis = 25 + 14
        np.testing.assert_allclose(found - found[pelvis - 25], row.S[:, :3], atol=0.02)
        px = found @ row.K.T
        px = px[:, :2] / px[:, 2:]
        assert np.abs(px - rows.undistort(i, row.part[:, :2])).max() < 2
    without = [fits for _, fits in static_fits(tmp_path / "fits.npy", rows, POINTS, shapes=False)]
    assert not any(fits.betas.any() for fits in without)


def test_fits_that_are_not_of_the_rows_are_refused(rows: PublishedRows, tmp_path: Path) -> None:
    np.save(tmp_path / "fits.npy", true_fits(rows)[:-1])
    with pytest.raises(InputError, match=r"fits\.npy: has shape \(11, 82\), expected \(12, 82\)"):
        next(static_fits(tmp_path / "fits.npy", rows, POINTS, shapes=True))
    (tmp_path / "fits.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match="cannot be read as SPIN's fits"):
        next(static_fits(tmp_path / "fits.npy", rows, POINTS, shapes=True))


def test_people_of_whom_nothing_is_seen_have_no_fit(rows: PublishedRows, tmp_path: Path) -> None:
    np.save(tmp_path / "fits.npy", true_fits(rows))
    rows.part[3], rows.openpose[3] = 0, 0
    ((_, fits),) = static_fits(tmp_path / "fits.npy", rows, POINTS, shapes=True)
    assert fits.score.isinf().nonzero()[:, 0].tolist() == [3]


def test_rows_without_a_box_have_no_fit(rows: PublishedRows, tmp_path: Path) -> None:
    np.save(tmp_path / "fits.npy", true_fits(rows))
    rows.box[:] = np.nan
    assert not [*static_fits(tmp_path / "fits.npy", rows, POINTS, shapes=True)]
