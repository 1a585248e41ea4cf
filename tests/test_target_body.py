"""The body that an image network is taught."""

import pickle
from importlib.resources import files

import numpy as np
import pytest
import torch
from builders import smpl_file

from models.body import load_body, pose_keypoints
from models.training.target_body import load_target_body
from pipeline.errors import InputError
from pipeline.skeleton import EXTRA_24

SPINS = (
    "RHip", "LHip", "Neck (LSP)", "TopHead (LSP)", "Pelvis (MPII)", "Thorax (MPII)", "Spine (H36M)",
    "Jaw (H36M)", "Head (H36M)",
)  # fmt: skip
"""The joints of ``J_regressor_extra.npy``, a row each."""


def at_rest(body):
    still = torch.eye(3, dtype=torch.float64).expand(24, 3, 3)
    zero = torch.zeros(10, dtype=torch.float64)
    return pose_keypoints(body.extra, still, zero, zero[:3])[1].numpy()


def test_joints_of_data_sets_are_where_spins_matrix_says(tmp_path):
    path = smpl_file(tmp_path)
    ruled = load_target_body(path)
    vertices = ruled.mesh.v_template.double().numpy()
    matrix = np.zeros((9, len(vertices)))
    which = np.arange(9) * 100
    matrix[range(9), which] = 1
    np.save(tmp_path / "extra.npy", matrix)
    found, before = at_rest(load_target_body(path, tmp_path / "extra.npy")), at_rest(ruled)
    rows = [EXTRA_24.index(name) for name in SPINS]
    np.testing.assert_allclose(found[rows], vertices[which], atol=1e-7)
    again = pickle.dumps(load_target_body(path, tmp_path / "extra.npy"))
    assert len(again) < 1000
    np.testing.assert_array_equal(at_rest(pickle.loads(again)), found)
    others = np.setdiff1d(np.arange(24), rows)
    np.testing.assert_array_equal(found[others], before[others])
    assert np.abs(found[rows] - before[rows]).max() > 0.1


def test_which_body_it_is(tmp_path):
    ships, smpl = load_target_body(), load_target_body(smpl_file(tmp_path))
    assert (ships.smpl, smpl.smpl) == (False, True)
    assert ships.mesh.sha256 == load_body().sha256 != smpl.mesh.sha256
    np.testing.assert_array_equal(at_rest(ships), at_rest(smpl))


def test_mistakes(tmp_path):
    np.save(tmp_path / "extra.npy", np.full((9, 6890), 1 / 6890))
    with pytest.raises(InputError, match=r"extra\.npy: has shape \(9, 6890\), expected \(9, "):
        load_target_body(smpl_file(tmp_path), tmp_path / "extra.npy")
    with np.load(files("models.assets") / "body.npz") as model:
        content = {k: model[k] for k in model.files}
    np.savez(tmp_path / "few.npz", **content | {"shapedirs": content["shapedirs"][..., :6]})
    with pytest.raises(InputError, match=r"few\.npz: has 6 betas"):
        load_target_body(tmp_path / "few.npz")
