"""SMPL parameters, read back and posed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import roma
import smplx
import torch
from exported import DOUBTED, HAS_POSE, LOST, NEAR, RATE, TO_Z, T, Truth, body, write
from smplx.utils import Struct

from models.body import pose_keypoints
from pipeline.skeleton import SMPL_24


@pytest.mark.parametrize("up", TO_Z)
def test_an_npz_makes_the_same_joints(truths: Callable[[str], Truth], tmp_path: Path, up: str) -> None:
    truth = truths(up)
    said = write(truth, tmp_path / "a.npz")
    assert said == [
        "4 of 12 frames have no pose: they are NaN.",
        "1 of 12 frames have a pose that is not to be trusted: it is kept, and valid says which.",
    ]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        found = {k: file[k] for k in file.files}
    assert found["poses"].shape == (T, 156)
    assert found["betas"].shape == (16,)
    assert not found["poses"][HAS_POSE, 66:].any()
    assert found["trans"].shape == found["joints"][:, 0].shape == (T, 3)
    assert found["gender"].item() == "neutral"
    assert found["mocap_framerate"].item() == found["mocap_frame_rate"].item() == float(RATE)
    assert (found["model"].item(), found["model_sha256"].item()) == (body().name, body().sha256)
    np.testing.assert_allclose(found["betas"][:10], truth.betas, atol=1e-7)
    assert [t for t in range(T) if np.isnan(found["poses"][t]).any()] == list(LOST)
    assert [t for t in range(T) if not found["valid"][t]] == sorted((*LOST, DOUBTED))
    rotations = roma.rotvec_to_rotmat(torch.from_numpy(found["poses"][:, :72]).double().reshape(T, 24, 3))
    joints, _ = pose_keypoints(
        body().keypoints,
        rotations,
        torch.from_numpy(found["betas"][:10]).double(),
        torch.from_numpy(found["trans"]),
    )
    want = TO_Z[up](truth.joints[HAS_POSE])
    np.testing.assert_allclose(joints[HAS_POSE], want, atol=NEAR)
    np.testing.assert_allclose(found["joints"][HAS_POSE], want, atol=NEAR)
    assert (want[:, SMPL_24.index("head"), 2] > want[:, 0, 2] + 0.3).all(), "it stands along z"


def smplh() -> Struct:
    """The shipped body as a model of SMPL+H: thirty joints of fingers lie where SMPL has that of the hand."""
    with np.load(str(files("models.assets") / "body.npz")) as asset:
        own = {name: asset[name] for name in asset.files}
    size = own["v_template"].shape
    weights = np.zeros((len(own["weights"]), 52))
    weights[:, :22] = own["weights"][:, :22]
    weights[:, 20:22] += own["weights"][:, 22:]
    fingers = [20] * 15 + [21] * 15
    return Struct(
        v_template=own["v_template"],
        shapedirs=own["shapedirs"],
        posedirs=np.zeros((*size, 51 * 9)),
        J_regressor=own["J_regressor"][[*range(22), *[22] * 15, *[23] * 15]],
        weights=weights,
        kintree_table=np.array([[*own["kintree_table"][0, :22], *fingers], range(52)]),
        f=own["f"],
        hands_componentsl=np.eye(45),
        hands_componentsr=np.eye(45),
        hands_meanl=np.zeros(45),
        hands_meanr=np.zeros(45),
    )


def test_smplx_makes_the_joints_of_the_store(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    """As aitviewer does: the root, 21 joints, both hands, and as many betas as the model has. Within 1 mm."""
    truth = truths("z")
    write(truth, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        poses, trans, betas = (torch.from_numpy(file[name]) for name in ("poses", "trans", "betas"))
    model = smplx.SMPLH("", data_struct=smplh(), use_pca=False, flat_hand_mean=True, batch_size=T)
    out = model(
        global_orient=poses[:, :3],
        body_pose=poses[:, 3:66],
        left_hand_pose=poses[:, 66:111],
        right_hand_pose=poses[:, 111:],
        betas=betas[None, :10].expand(T, -1),
        transl=trans,
    )
    off = out.joints.detach().numpy()[HAS_POSE, :22] - truth.joints[HAS_POSE, :22]
    assert np.abs(off).max() < 1e-3
