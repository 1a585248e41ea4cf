from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from models.body import load_body, pose_keypoints
from models.evaluation.joints import extra_24
from models.evaluation.metrics import mpjpe, pa_mpjpe
from models.training.images import clean, image_net_errors, with_points
from models.training.loop import Bodies, Target
from models.training.losses import LossConfig, image_losses
from models.training.samples import Samples
from pipeline.skeleton import EXTRA_24

MESH = load_body()
POINTS = with_points(MESH.keypoints, extra_24(MESH)).to(dtype=torch.float32)
N, V, SIZE = 3, 2, 128
ONE = LossConfig(all=1.0, keypoints=1, joints=1, pose=1, betas=1, camera=1, shape=1, detected=0.5)


def bodies(seed):
    rng = np.random.default_rng(seed)

    def rotations(*shape):
        flat = Rotation.from_rotvec(0.4 * rng.normal(size=(int(np.prod(shape)), 3))).as_matrix()
        return torch.from_numpy(flat.reshape(*shape, 3, 3).astype(np.float32))

    def normal(*shape):
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    upright = torch.diag(torch.tensor([1.0, -1, -1]))
    transl = torch.tensor([0.0, 0.2, 5.0]) + 0.1 * normal(N, V, 3)
    pose, betas = (x[:, None].expand(N, V, *x.shape[1:]) for x in (rotations(N, 23), normal(N, 10)))
    return Bodies(rotations(N, V) @ upright, pose, betas, transl, torch.zeros(N, V))


def samples_of(true, seed=0):
    """What the views of true bodies show."""
    rng = np.random.default_rng(seed)
    K = torch.tensor([[300.0, 2.0, 64], [0, 310, 60], [0, 0, 1]]).expand(N, V, 3, 3)
    points = true.points(POINTS)
    pixel = points @ K.mT
    return Samples(
        ids=tuple(f"d/s/q/{i}" for i in range(N)),
        cameras=(("a", "b"),) * N,
        flipped=torch.zeros(N, dtype=torch.bool),
        roll=torch.zeros(N, V),
        zoom=torch.ones(N, V),
        images=torch.zeros(N, V, 3, SIZE, SIZE, dtype=torch.uint8),
        seen=torch.ones(N, V, dtype=torch.bool),
        seen_index=torch.arange(N * V),
        K=K,
        R=torch.full((N, V, 3, 3), torch.nan),
        t=torch.full((N, V, 3), torch.nan),
        xy_px=pixel[..., :2] / pixel[..., 2:],
        confidence=torch.from_numpy(rng.uniform(0.2, 1, (N, V, 49)).astype(np.float32)),
        joints=points[:, :, 25:] + 0.3,
        orient=true.orient,
        body_pose=true.body_pose[:, 0],
        betas=true.betas[:, 0],
    )


CAMERA = torch.full((N, V, 3), 0.1)
ALL = torch.ones(N, V, dtype=torch.bool)


def test_the_truth_costs_nothing_but_the_smallness_of_the_person():
    true = bodies(0)
    terms = image_losses(true, CAMERA, samples_of(true), Target(true, ALL, ALL), POINTS, ONE, MESH)
    assert terms.pop("loss").item() == pytest.approx(np.exp(-2), rel=1e-4)
    assert terms.pop("camera").item() == pytest.approx(np.exp(-2), rel=1e-4)
    assert set(terms) == {"keypoints", "joints", "pose", "betas", "shape"}
    assert all(x.item() < 1e-6 for x in terms.values())


def test_each_term_is_spins():
    true, said = bodies(0), bodies(1)
    samples = samples_of(true)
    xy = samples.xy_px.clone()
    xy[0, 1, 3:9] = torch.nan  # not found
    samples = replace(samples, xy_px=xy)
    valid = torch.tensor([[True, True], [False, True], [False, False]])
    shaped = torch.tensor([[True, True], [True, True], [False, True]])
    target = Target(true, valid, shaped)
    joints = samples.joints.clone()
    joints[0] = torch.nan  # of the first the fit's are taken
    samples = replace(samples, joints=joints)
    terms = image_losses(said, CAMERA, samples, target, POINTS, ONE, MESH)
    points, fit_points = said.points(POINTS).double(), true.points(POINTS).double()

    keypoints = 0.0
    for n, v, k in np.ndindex(N, V, 49):
        if torch.isfinite(xy[n, v, k]).all():
            p = samples.K[n, v].double() @ points[n, v, k]
            off = (p[:2] / p[2] - xy[n, v, k]) / (SIZE / 2)
            weight = samples.confidence[n, v, k] * (0.5 if k < 25 else 1.0)
            keypoints += float(weight * (off**2).sum()) / (N * V * 49 * 2)
    assert terms["keypoints"].item() == pytest.approx(keypoints, rel=1e-4)

    right, left = EXTRA_24.index("RHip"), EXTRA_24.index("LHip")

    def centred(x):
        return x - (x[right] + x[left]) / 2

    squares = []
    for n, v in np.ndindex(N, V):
        source = joints[n, v].double() if n else fit_points[n, v, 25:]
        squares.append(((centred(points[n, v, 25:]) - centred(source)) ** 2).mean())
    assert terms["joints"].item() == pytest.approx(float(torch.stack(squares).mean()), rel=1e-4)

    pose = ((said.rotations - true.rotations) ** 2)[valid].mean()
    assert terms["pose"].item() == pytest.approx(pose.item(), rel=1e-4)
    betas = ((said.betas - true.betas) ** 2)[shaped].mean()
    assert terms["betas"].item() == pytest.approx(betas.item(), rel=1e-4)
    meshes = [
        MESH.vertices(b.orient[valid], b.body_pose[valid], b.betas[valid], torch.zeros(3, 3))
        for b in (said, true)
    ]
    assert terms["shape"].item() == pytest.approx((meshes[0] - meshes[1]).abs().mean().item(), rel=1e-4)
    total = sum(v for k, v in terms.items() if k != "loss")
    assert terms["loss"].item() == pytest.approx(float(total), rel=1e-5)
    weighed = image_losses(said, CAMERA, samples, target, POINTS, LossConfig(detected=0.5), MESH)
    for name, weight in (("keypoints", 5), ("joints", 5), ("pose", 1), ("betas", 1e-3), ("camera", 1)):
        assert weighed[name].item() == pytest.approx(60 * weight * terms[name].item(), rel=1e-4)
    assert "shape" not in weighed


def test_what_is_not_shown_or_known_teaches_nothing():
    true, said = bodies(0), bodies(1)
    samples = samples_of(true)
    seen = torch.tensor([[True, False], [True, True], [True, True]])
    dark = replace(
        samples, seen=seen, K=torch.where(seen[..., None, None], samples.K, torch.nan),
        joints=torch.full_like(samples.joints, torch.nan),
    )  # fmt: skip
    leaf = said.map(lambda x: x.clone().requires_grad_())
    terms = image_losses(leaf, CAMERA, clean(dark, "full"), Target(true, seen, seen), POINTS, ONE, MESH)
    torch.autograd.backward(terms["loss"])
    for x in (leaf.orient, leaf.body_pose, leaf.betas, leaf.transl):
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert not x.grad[0, 1].any()
        assert x.grad[0, 0].any()
    none = Target(true, ALL & False, ALL & False)
    nothing = image_losses(said, CAMERA, clean(dark, "full"), none, POINTS, ONE, MESH)
    assert [nothing[k].item() for k in ("joints", "pose", "betas", "shape")] == [0, 0, 0, 0]


def test_errors_are_of_the_truth_that_there_is():
    true, said = bodies(0), bodies(1)
    samples = samples_of(true)
    betas = samples.betas.clone()
    betas[1:] = torch.nan
    joints = samples.joints.clone()
    joints[2, :, 4] = torch.nan
    seen = torch.tensor([[True, False], [True, True], [True, True]])
    samples = replace(samples, betas=betas, joints=joints, seen=seen)
    direct, aligned = image_net_errors(said, samples, POINTS)
    a, b = (pose_keypoints(POINTS, x.rotations, x.betas, x.transl) for x in (said, true))
    a0, b0 = (x[0][0, 0] - x[0][0, 0, 0] for x in (a, b))
    assert direct[0] == pytest.approx(mpjpe(a0, b0), rel=1e-4)
    assert aligned[0] == pytest.approx(pa_mpjpe(a0, b0), rel=1e-4)
    hips = [25 + EXTRA_24.index(n) for n in ("RHip", "LHip")]
    a1, b1 = ((x[1][1] - x[1][1][:, hips].mean(1, keepdim=True))[:, 25:38] for x in (a, b))
    assert direct[1] == pytest.approx(mpjpe(a1, b1).mean(), rel=1e-4)
    assert aligned[1] == pytest.approx(pa_mpjpe(a1, b1).mean(), rel=1e-4)
    assert np.isnan(direct[2])
    assert image_net_errors(true, samples_of(true), POINTS)[0].max() < 1e-5
