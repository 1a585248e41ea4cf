import json
import math
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import roma
import torch
from fake_gpu import assert_never_waits

from models.body import global_rotations, load_body, pose_keypoints
from models.evaluation.metrics import pa_mpjpe
from models.regressors import calibrated
from models.regressors.calibrated import (
    FEEDBACK_SCALES_M,
    CalibratedNet,
    gauss_newton_step,
    observe,
    ray_feedback,
    up_of_level_cameras,
)
from models.regressors.keypoint_nets import load_regressor, save_regressor
from models.regressors.kinematics import GlobalKinematics, matrix_to_six, six_to_matrix, to_local
from models.regressors.layers import Estimate, camera_directions
from models.regressors.regression import Regression, average_rotations, fuse_roots
from models.regressors.uncalibrated import UncalibratedNet, crop_keypoints, turn_to_axis
from models.rotations import geodesic_degrees, rotation_between
from models.synthetic.people import animate, make_people
from models.synthetic.poses import Poses
from models.synthetic.projections import Difficulty, Projections
from models.weights import read_weights
from pipeline.errors import InputError
from pipeline.skeleton import BODY_25, SMPL_24

BODY = load_body().keypoints
CLEAN = Difficulty(noise=0.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rotations(*shape, size=1.0, seed=0):
    return roma.rotvec_to_rotmat(size * torch.randn(*shape, 3, generator=seeded(seed)))


def samples(count=6, views=4, difficulty=CLEAN, seed=0):
    """People near a standing pose, before cameras."""
    pose = 0.25 * torch.randn(50, 24, 3, generator=seeded(99))
    poses = Poses(pose, torch.full((50,), 0.95), torch.zeros(50, dtype=torch.long), ("standing",))
    return Projections(poses, BODY).sample(count, views, difficulty, seeded(seed))


def net_of(kind, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = kind(BODY, width=64, iterations=2)
        for layer in (net.output, net.doubt):  # as trained, not as at the start, when changes are tiny
            torch.nn.init.normal_(layer.weight, std=0.03)
    return net.requires_grad_(False).eval()


def seen_by(net, s, **changes):
    cameras = {"xy_px": s.xy_px, "confidence": s.confidence, "K": s.K, "R": s.R, "t": s.t, **changes}
    return net(**cameras)


# --- Roots of several views ---------------------------------------------------------------------------------


def test_the_mean_of_two_rotations_is_halfway():
    a = rotations(5, seed=1)
    b = a @ roma.rotvec_to_rotmat(torch.tensor([0.02, -0.01, 0.03]))
    mean = average_rotations(torch.stack([a, b], 1), torch.ones(5, 2, dtype=torch.bool))
    torch.testing.assert_close(
        mean, a @ roma.rotvec_to_rotmat(torch.tensor([0.01, -0.005, 0.015])), atol=1e-5, rtol=0
    )


def test_one_view_turned_round_does_not_pull_the_mean():
    truth = rotations(4, seed=2)
    views = truth[:, None] @ rotations(4, 5, size=0.01, seed=3)
    views[:, 2] = views[:, 2] @ roma.rotvec_to_rotmat(torch.tensor([0.0, 3.1, 0.0]))
    seen = torch.ones(4, 5, dtype=torch.bool)
    assert geodesic_degrees(average_rotations(views, seen), truth).max() < 1.0
    seen[:, 3:] = False
    views[:, 3:] = torch.nan
    assert geodesic_degrees(average_rotations(views, seen), truth).max() < 1.5


def aligned_joints(body_pose, betas):
    pose = torch.cat([torch.eye(3).expand(len(betas), 1, 3, 3), body_pose], 1)
    return pose_keypoints(BODY.to(dtype=torch.float32), pose, betas, torch.zeros(len(betas), 3))[0]


def in_cameras(orient, transl, betas, R, t):
    """What views that know the truth would say of it."""
    rest = (BODY.joints_template[0] + betas.double() @ BODY.joints_shapedirs[0].T).float()
    at = (R @ (rest + transl)[:, None, :, None])[..., 0] + t - rest[:, None]
    return Regression(
        body_pose=torch.eye(3).expand(len(betas), 23, 3, 3),
        betas=betas,
        view_orient=R @ orient[:, None],
        view_transl=at,
        seen=torch.ones(R.shape[:2], dtype=torch.bool),
        pose_sigma=torch.ones(len(betas), 23),
    )


def test_roots_come_back_to_the_world():
    orient, R = rotations(5, seed=4), rotations(5, 3, seed=5)
    transl = torch.randn(5, 3, generator=seeded(6))
    t = torch.randn(5, 3, 3, generator=seeded(7)) + torch.tensor([0.0, 0.0, 5.0])
    betas = torch.randn(5, 10, generator=seeded(8))
    r = in_cameras(orient, transl, betas, R, t)
    r.seen[1, 1:] = False  # one view alone
    r.view_orient[1, 1:], r.view_transl[1, 1:] = torch.nan, torch.nan
    r.seen[2] = False  # nobody
    found_orient, found_transl = fuse_roots(r, R, t, BODY)
    here = [0, 1, 3, 4]
    assert geodesic_degrees(found_orient, orient)[here].max() < 0.1
    torch.testing.assert_close(found_transl[here], transl[here], atol=2e-4, rtol=0)
    assert found_orient[2].isnan().all()
    assert found_transl[2].isnan().all()


def test_views_that_err_about_depth_are_triangulated():
    s = samples(count=20, views=4)
    r = in_cameras(s.world_rotations[:, 0], s.transl, s.betas, s.R, s.t)
    depth = torch.exp(0.15 * torch.randn(20, 4, 1, generator=seeded(1)))
    rest = (s.joints[:, 0] - s.transl)[:, None]
    wrong = replace(r, view_transl=(rest + r.view_transl) * depth - rest)
    _, transl = fuse_roots(wrong, s.R, s.t, BODY)
    error = (transl - s.transl).norm(dim=-1)
    assert error.median() < 0.05  # metres; each view alone is 0.5 off


# --- The body of global rotations ---------------------------------------------------------------------------


def test_global_kinematics_are_those_of_the_chain():
    local, betas = rotations(7, 24, seed=9), torch.randn(7, 10, generator=seeded(10))
    turned = global_rotations(local)
    joints, points = GlobalKinematics(BODY)(turned, betas)
    body = BODY.to(dtype=torch.float32)
    want_joints, want_points = pose_keypoints(body, local, betas, torch.zeros(7, 3))
    pelvis = want_joints[:, :1]
    torch.testing.assert_close(joints, want_joints - pelvis, atol=2e-6, rtol=0)
    torch.testing.assert_close(points, want_points - pelvis, atol=2e-6, rtol=0)
    torch.testing.assert_close(to_local(turned), local[:, 1:], atol=2e-6, rtol=0)


def test_movers_are_the_joints_whose_rotation_moves_a_keypoint():
    kinematics, rest = GlobalKinematics(BODY), torch.eye(3).repeat(24, 24, 1, 1)
    each = rest.clone()
    each[range(24), range(24)] = rotations(24, seed=9)  # of one joint each, and of those below it
    betas = torch.zeros(24, 10)
    moved = kinematics(global_rotations(each), betas)[1] - kinematics(rest, betas)[1]
    assert (moved.norm(dim=-1).amax(1) > 1e-3).nonzero()[:, 0].tolist() == kinematics.movers.tolist()


def test_six_numbers_of_any_length_make_the_rotation():
    r = rotations(20, seed=11)
    six = matrix_to_six(r)
    torch.testing.assert_close(six_to_matrix(six), r, atol=1e-6, rtol=0)
    stretched = torch.cat([3 * six[..., :3], 0.5 * six[..., 3:] + 2 * six[..., :3]], -1)
    torch.testing.assert_close(six_to_matrix(stretched), r, atol=1e-5, rtol=0)


# --- What the nets see --------------------------------------------------------------------------------------


def level_cameras(views, seed, turn=None):
    """Cameras without roll whose pictures are right way up; the world's up is ``turn`` (0, 0, 1)."""
    bearing = 6.28 * torch.rand(3, views, generator=seeded(seed))
    pitch = 0.6 * torch.rand(3, views, generator=seeded(seed + 1)) - 0.1
    ahead = torch.stack([bearing.cos() * pitch.cos(), bearing.sin() * pitch.cos(), -pitch.sin()], -1)
    right = torch.stack([bearing.sin(), -bearing.cos(), torch.zeros_like(bearing)], -1)
    R = torch.stack([right, torch.linalg.cross(ahead, right, dim=-1), ahead], -2)
    return R if turn is None else R @ turn.T


def test_directions_are_those_that_the_camera_projects_to_the_pixels():
    K = torch.tensor([[900.0, 30.0, 400.0], [0.0, 800.0, 300.0], [0.0, 0.0, 1.0]]).expand(2, 3, 3, 3)
    xy = 600 * torch.rand(2, 3, 25, 2, generator=seeded(5))
    projected = camera_directions(xy, K) @ K.mT
    torch.testing.assert_close(projected, torch.nn.functional.pad(xy, (0, 1), value=1.0), atol=1e-3, rtol=0)


def test_up_is_an_axis_of_the_world_that_level_cameras_agree_on():
    for views in (1, 4):
        up = up_of_level_cameras(level_cameras(views, 0), torch.ones(3, views, dtype=torch.bool))
        assert torch.equal(up, torch.tensor([0.0, 0.0, 1.0]).expand(3, 3))


def test_up_is_found_in_a_world_that_lies_askew():
    turn = roma.rotvec_to_rotmat(torch.tensor([0.5, 0.7, -0.3]))
    up = up_of_level_cameras(level_cameras(4, 2, turn), torch.ones(3, 4, dtype=torch.bool))
    angle = torch.rad2deg(torch.acos((up @ turn[:, 2]).clamp(-1, 1)))
    assert angle.max() < 2.0
    seen = torch.ones(3, 4, dtype=torch.bool)
    seen[:, 1:] = False
    R = level_cameras(4, 2, turn)
    torch.testing.assert_close(up_of_level_cameras(R, seen), -R[:, 0, 1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("views", [2, 3, 8])
def test_clean_rays_meet_at_the_truth(views):
    s = samples(views=views)
    e = observe(s.xy_px, s.confidence, s.K, s.R, s.t)
    assert e.seen.all()
    points = (s.points - e.origin[:, None]) @ e.turn.mT
    feedback = ray_feedback(points, e, scale=0.1)
    assert feedback[:, :75].abs().max() < 1e-4 * 5
    if views == 2:  # whose rays may be all but parallel
        return
    torch.testing.assert_close(e.features[:, :75].view(-1, 25, 3), points, atol=5e-3, rtol=0)
    # The frame: y up as in the body, z where it faces, origin at the pelvis.
    assert (e.origin - s.joints[:, 0]).norm(dim=-1).max() < 0.02
    left = points[:, BODY_25.index("LHip")] - points[:, BODY_25.index("RHip")]
    left = left + points[:, BODY_25.index("LShoulder")] - points[:, BODY_25.index("RShoulder")]
    assert (left[:, 2] / left[:, 0]).abs().max() < 0.02
    assert (points[:, BODY_25.index("Nose"), 1] > 0.3).all()


def test_feedback_points_to_the_rays():
    s = samples(views=4)
    e = observe(s.xy_px, s.confidence, s.K, s.R, s.t)
    points = (s.points - e.origin[:, None]) @ e.turn.mT
    shift = torch.tensor([0.01, 0.02, -0.015])
    told = ray_feedback(points + shift, e, scale=1.0)[:, :75].view(-1, 25, 3) / 5
    across = torch.eye(3) - e.ray[..., :, None] * e.ray[..., None, :]
    back = -(across @ shift)  # (N, V, 25, 3), what each view sees of the shift
    want = (e.weight[..., None] * back).sum(1) / e.weight.sum(1)[..., None]
    torch.testing.assert_close(told, want, atol=2e-4, rtol=0)


def test_feedback_leaves_an_outlier_out_at_a_small_scale():
    """At the last iteration's scale one view of four, 0.2 m off, moves its point by millimetres."""
    s = samples(views=4)
    wrong = s.xy_px.clone()
    pixels_per_m = s.K[:, 0, 0, 0] / (s.R[:, 0] @ s.joints[:, 0, :, None] + s.t[:, 0, :, None])[:, 2, 0]
    wrong[:, 0, 0, 0] += 0.2 * pixels_per_m
    e = observe(wrong, s.confidence, s.K, s.R, s.t)
    points = (s.points - e.origin[:, None]) @ e.turn.mT
    first, last = (ray_feedback(points, e, scale)[:, :3].norm(dim=-1) / 5 for scale in FEEDBACK_SCALES_M)
    assert first.median() > 0.02
    assert last.median() < 0.005


def test_the_scale_of_the_feedback_shrinks(monkeypatch):
    scales = []

    def recorded(points, o, scale):
        scales.append(scale)
        return ray_feedback(points, o, scale)

    monkeypatch.setattr(calibrated, "ray_feedback", recorded)
    s = samples(views=2)
    net_of(CalibratedNet).iterate(observe(s.xy_px, s.confidence, s.K, s.R, s.t))
    assert scales == pytest.approx(FEEDBACK_SCALES_M)


def test_one_wrong_view_does_not_move_the_points():
    s = samples(views=6, seed=3)
    wrong = s.xy_px.clone()
    wrong[:, 2] += 150.0
    right = observe(s.xy_px, s.confidence, s.K, s.R, s.t)
    e = observe(wrong, s.confidence, s.K, s.R, s.t)
    world = [x.origin[:, None] + x.features[:, :75].view(-1, 25, 3) @ x.turn for x in (right, e)]
    assert (world[0] - world[1]).norm(dim=-1).median() < 0.01


def test_one_view_puts_the_body_at_its_typical_distance():
    s = samples(count=40, views=1)
    e = observe(s.xy_px, s.confidence, s.K, s.R, s.t)
    centre = -(s.R.mT @ s.t[..., None])[:, 0, :, 0]
    ratio = (e.origin - centre).norm(dim=-1) / (s.joints[:, 0] - centre).norm(dim=-1)
    assert 0.8 < ratio.median() < 1.25
    # The frame faces the camera.
    assert (e.centre[:, 0, 0].abs() < 1e-3 * e.centre[:, 0, 2]).all()


def test_turn_to_axis_is_the_smallest_rotation_onto_the_axis():
    v = torch.randn(30, 3, generator=seeded(1))
    v[:, 2] = v[:, 2].abs() + 0.05
    torch.testing.assert_close(turn_to_axis(v), rotation_between(v, torch.tensor([0.0, 0.0, 1.0])))


def test_the_truth_projects_onto_the_crops():
    s = samples(views=3)
    c = crop_keypoints(s.xy_px, s.confidence, s.K)
    at = (c.turn @ ((s.R @ s.joints[:, 0, :, None][:, None])[..., 0] + s.t)[..., None])[..., 0]
    z = 0.61 / c.rms
    root = torch.cat([at[..., :2] / at[..., 2:] / c.rms[..., None], (at[..., 2:] / z[..., None]).log()], -1)
    orient = turn_to_axis(at) @ c.turn @ s.R @ s.world_rotations[:, None, 0]
    points = (s.points - s.joints[:, :1]) @ s.world_rotations[:, 0]
    found = net_of(UncalibratedNet).project(points, orient, root, c.rms)
    torch.testing.assert_close(found, c.xy, atol=2e-3, rtol=0)


def estimate_of(kinematics, e, s, turns, shift=0.0, sigma=0.3):
    """The truth with joints turned by ``turns`` (N, J, 3), radians, and the root moved."""
    turned = roma.rotvec_to_rotmat(turns) @ (e.turn[:, None] @ s.world_rotations)
    root = ((s.joints[:, 0] - e.origin)[:, None] @ e.turn.mT)[:, 0] + shift
    log_sigma = torch.full((len(turned), 23), math.log(sigma))
    return Estimate(turned, s.betas, *kinematics(turned, s.betas), log_sigma, root)


@pytest.mark.parametrize("views", [2, 4])
def test_a_gauss_newton_step_goes_to_the_rays(views):
    s, kinematics = samples(count=20, views=views), GlobalKinematics(BODY)
    e = observe(s.xy_px, s.confidence, s.K, s.R, s.t)
    off = estimate_of(kinematics, e, s, 0.1 * torch.randn(20, 24, 3, generator=seeded(3)), shift=0.03)
    turned, root, betas = gauss_newton_step(off, kinematics, e)
    points = kinematics(turned, betas)[1] + root[:, None]
    truth = (s.points - e.origin[:, None]) @ e.turn.mT
    before, after = ((x - truth).norm(dim=-1).mean() for x in (off.points + off.root[:, None], points))
    assert after < 0.3 * before


def test_a_gauss_newton_step_is_the_minimum_of_its_energy():
    """Of the linearised one: no small change of turns, root or betas lowers it."""
    s, kinematics = samples(count=3, views=3, difficulty=Difficulty()), GlobalKinematics(BODY)
    e = observe(s.xy_px, s.confidence, s.K, s.R, s.t)
    x = estimate_of(kinematics, e, s, 0.1 * torch.randn(3, 24, 3, generator=seeded(3)), shift=0.03)
    turned, root, betas = gauss_newton_step(x, kinematics, e)
    found = roma.rotmat_to_rotvec(turned @ x.rotations.mT), root - x.root, betas - x.betas
    arms = torch.einsum("njab,nkjb->nkja", x.rotations, kinematics.lever_arms(x.betas)[:, 24:])
    offset = (x.points + x.root[:, None])[:, None] - e.centre[:, :, None]
    weight = (
        e.weight
        / (1 + ((offset - (offset * e.ray).sum(-1, keepdim=True) * e.ray) ** 2).sum(-1) / 0.08**2) ** 2
    )

    def energy(turns, shift, change):
        shaped = kinematics(x.rotations, x.betas + change)[1] - x.points
        moved = torch.linalg.cross(turns[:, None], arms, dim=-1).sum(2) + shift[:, None] + shaped
        moved = offset + moved[:, None]
        across = moved - (moved * e.ray).sum(-1, keepdim=True) * e.ray
        data = (weight * (across**2).sum(-1)).sum() / 0.05**2
        local = turns[:, 1:] - turns[:, SMPL_24.parents[1:]]
        prior = (local**2).sum() / 0.3**2 + (turns[:, 0] ** 2).sum() / 0.2**2 + (shift**2).sum() / 0.1**2
        return data + prior + (change**2).sum() / 0.5**2

    gradients = torch.func.grad(energy, argnums=(0, 1, 2))
    start = [g.abs().max() for g in gradients(*(torch.zeros_like(x) for x in found))]
    assert all(g.abs().max() < 2e-3 * g0 for g, g0 in zip(gradients(*found), start, strict=True))


def test_without_rays_a_gauss_newton_step_changes_nothing():
    s, kinematics = samples(count=3, views=3), GlobalKinematics(BODY)
    e = observe(s.xy_px, s.confidence, s.K, s.R, s.t)
    x = estimate_of(kinematics, e, s, 0.1 * torch.randn(3, 24, 3, generator=seeded(3)))
    found = gauss_newton_step(x, kinematics, replace(e, weight=0 * e.weight))
    torch.testing.assert_close(found, (x.rotations, x.root, x.betas), atol=1e-6, rtol=0)


def test_an_estimate_whose_system_has_no_factor_stays_as_it_is():
    s, kinematics = samples(count=3, views=3), GlobalKinematics(BODY)
    e = observe(s.xy_px, s.confidence, s.K, s.R, s.t)
    x = estimate_of(kinematics, e, s, 0.1 * torch.randn(3, 24, 3, generator=seeded(3)))
    whole = gauss_newton_step(x, kinematics, e)
    x.log_sigma[1], e.weight[1] = 60.0, 0  # nothing keeps the rotations: the system is singular
    turned, root, betas = gauss_newton_step(x, kinematics, e)
    torch.testing.assert_close(turned[1], x.rotations[1], atol=1e-6, rtol=0)
    assert torch.equal(root[1], x.root[1])
    assert torch.equal(betas[1], x.betas[1])
    torch.testing.assert_close((turned[::2], root[::2], betas[::2]), tuple(y[::2] for y in whole))


# --- The nets -----------------------------------------------------------------------------------------------

KINDS = pytest.mark.parametrize("kind", [CalibratedNet, UncalibratedNet])


@KINDS
def test_a_batch_without_people_has_no_bodies(kind):
    s, net = samples(count=1, views=4), net_of(kind)
    nobody = net(s.xy_px[:0], s.confidence[:0], s.K[:0], s.R[:0], s.t[:0])
    assert (len(nobody.betas), nobody.body_pose.shape) == (0, (0, 23, 3, 3))


def same(a, b, atol=2e-4):
    for name in ("body_pose", "betas", "view_orient", "view_transl", "pose_sigma"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=atol, rtol=0, msg=name)
    assert torch.equal(a.seen, b.seen)


@KINDS
def test_the_order_of_the_views_does_not_matter(kind):
    s, net = samples(views=4, difficulty=Difficulty()), net_of(kind)
    order = [2, 0, 3, 1]
    a = seen_by(net, s)
    b = net(*(x[:, order] for x in (s.xy_px, s.confidence, s.K, s.R, s.t)))
    same(
        Regression(
            **{**vars(a), **{k: vars(a)[k][:, order] for k in ("view_orient", "view_transl", "seen")}}
        ),
        b,
    )


@KINDS
def test_a_view_with_five_keypoints_is_as_good_as_none(kind):
    s, net = samples(views=3), net_of(kind)
    xy, confidence = s.xy_px.clone(), s.confidence.clone()
    xy[:, 1, 5:], confidence[:, 1, 5:] = torch.nan, 0
    some = seen_by(net, s, xy_px=xy, confidence=confidence)
    none = seen_by(
        net,
        s,
        xy_px=torch.full_like(xy, torch.nan).where(torch.tensor([0, 1, 0])[:, None, None] > 0, xy),
        confidence=confidence,
    )
    assert some.seen.tolist() == [[True, False, True]] * 6
    same(some, none)
    two = net(*(x[:, [0, 2]] for x in (s.xy_px, s.confidence, s.K, s.R, s.t)))
    torch.testing.assert_close(some.body_pose, two.body_pose, atol=2e-4, rtol=0)


@KINDS
def test_nobody_is_nan_and_touches_no_other(kind):
    s, net = samples(views=2), net_of(kind)
    xy, confidence = s.xy_px.clone(), s.confidence.clone()
    xy[2], confidence[2] = torch.nan, 0
    whole, gap = seen_by(net, s), seen_by(net, s, xy_px=xy, confidence=confidence)
    assert all(x[2].isnan().all() for x in (gap.body_pose, gap.betas, gap.view_orient, gap.view_transl))
    others = [0, 1, 3, 4, 5]
    same(*(x.map(lambda y: y[others]) for x in (whole, gap)))


def regress_and_fuse(net, body, *views):
    return fuse_roots(net(*views), *views[3:], body)


@KINDS
def test_a_gpu_is_never_waited_for(kind):
    """No value is looked at, and nothing is copied from or to the GPU."""
    s = samples(views=2)
    body = BODY.to(dtype=torch.float32)
    assert_never_waits(regress_and_fuse, net_of(kind), body, s.xy_px, s.confidence, s.K, s.R, s.t)


@KINDS
@pytest.mark.cuda
def test_a_real_gpu_is_never_waited_for(kind):
    s, body = samples(views=2).to("cuda"), BODY.to(dtype=torch.float32, device="cuda")
    inputs = net_of(kind).cuda(), body, s.xy_px, s.confidence, s.K, s.R, s.t
    regress_and_fuse(*inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        regress_and_fuse(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_another_world_is_the_same_person_before_the_cameras():
    s, net = samples(views=4), net_of(CalibratedNet)
    # About the vertical, so that the same axis is up.
    up = up_of_level_cameras(s.R, torch.ones(6, 4, dtype=torch.bool))
    turn = roma.rotvec_to_rotmat(0.8 * up)
    shift = torch.tensor([3.0, -2.0, 1.0])
    R = s.R @ turn[:, None].mT
    t = s.t - (R @ shift[:, None])[..., 0]
    same(seen_by(net, s), seen_by(net, s, R=R, t=t), atol=2e-3)


def test_one_view_is_its_own_world():
    s, net = samples(views=1), net_of(CalibratedNet)
    eye, zero = torch.eye(3).expand_as(s.R), torch.zeros_like(s.t)
    same(seen_by(net, s, R=None, t=None), seen_by(net, s, R=eye, t=zero))
    two = samples(views=2)
    with pytest.raises(ValueError, match="2 views without R and t"):
        seen_by(net, two, R=None, t=None)


def test_the_uncalibrated_net_does_not_look_at_the_cameras():
    s, net = samples(views=3), net_of(UncalibratedNet)
    same(seen_by(net, s), seen_by(net, s, R=None, t=None), atol=0)


def test_the_regression_is_the_last_round(monkeypatch):
    """A net whose iterations end at the truth gives the truth in every camera, and in the world."""
    s, net = samples(views=3), net_of(CalibratedNet)

    def truth(e):
        turned = e.turn[:, None] @ s.world_rotations
        root = ((s.joints[:, 0] - e.origin)[:, None] @ e.turn.mT)[:, 0]
        joints, points = net.kinematics(turned, s.betas)
        return [Estimate(turned, s.betas, joints, points, torch.zeros(6, 23), root)]

    monkeypatch.setattr(net, "iterate", truth)
    monkeypatch.setattr(calibrated, "concatenated", lambda a, b: a)
    monkeypatch.setattr(calibrated, "average_mirrored", lambda both, kinematics: both)
    r = seen_by(net, s)
    torch.testing.assert_close(r.body_pose, to_local(s.world_rotations), atol=1e-3, rtol=0)
    torch.testing.assert_close(r.view_orient, s.R @ s.world_rotations[:, None, 0], atol=1e-3, rtol=0)
    orient, transl = fuse_roots(r, s.R, s.t, BODY)
    assert geodesic_degrees(orient, s.world_rotations[:, 0]).max() < 0.2
    torch.testing.assert_close(transl, s.transl, atol=1e-3, rtol=0)


@KINDS
@pytest.mark.parametrize("views", [1, 3])
def test_a_mirror_image_gives_the_mirror_image(kind, views):
    """Of bodies, cameras and keypoints that are mirrored in x."""
    s, net = samples(views=views), net_of(kind)
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    xy = s.xy_px[:, :, BODY_25.flips].clone()
    xy[..., 0] = 2 * s.K[..., 0, 2, None] - xy[..., 0]
    cameras = {"R": mirror @ s.R @ mirror, "t": s.t @ mirror}
    b = seen_by(net, s, xy_px=xy, confidence=s.confidence[:, :, BODY_25.flips], **cameras)
    joints = [j - 1 for j in SMPL_24.flips[1:]]
    back = Regression(
        body_pose=mirror @ b.body_pose[:, joints] @ mirror,
        betas=b.betas,
        view_orient=mirror @ b.view_orient @ mirror,
        view_transl=b.view_transl @ mirror,
        seen=b.seen,
        pose_sigma=b.pose_sigma[:, joints],
    )
    same(seen_by(net, s), back, atol=2e-3)


@KINDS
def test_weights_come_back_from_their_file(kind, tmp_path):
    s, net = samples(views=2), net_of(kind)
    save_regressor(net, tmp_path / "weights.safetensors")
    back = load_regressor(tmp_path / "weights.safetensors")
    assert type(back) is kind
    same(seen_by(net, s), seen_by(back, s), atol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_file_that_holds_no_regressor_is_refused_by_name(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match=r"w\.safetensors: cannot read the weights \(No such"):
        load_regressor(path)
    path.write_bytes(b"not weights at all")
    with pytest.raises(InputError, match=r"w\.safetensors: holds no weights .*damaged. Give a .*train"):
        load_regressor(path)
    header = json.dumps(
        {"__metadata__": {"multispin": json.dumps({"kind": "calibrated", "width": 64})}}
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match="Missing key"):
        load_regressor(path)


@pytest.fixture(scope="module")
def movers():
    """People of ``synth``, in other motion than the nets were trained on, before four cameras."""
    model = load_body()
    poses = []
    for person in make_people(3, 30.0, 5, model):
        local = torch.from_numpy(animate(person, model, np.linspace(0, 30, 40))[0]).float()
        local[:, 0] = roma.rotvec_to_rotmat(torch.tensor([-math.pi / 2, 0, 0])) @ local[:, 0]  # z up → y up
        poses.append(roma.rotmat_to_rotvec(local))
    pose = torch.cat(poses)
    known = Poses(pose, torch.full((120,), 0.9), torch.zeros(120, dtype=torch.long), ("synth",))
    return Projections(known, BODY).sample(120, 4, Difficulty(), seeded(7))


@pytest.mark.parametrize("kind", ["calibrated", "uncalibrated"])
def test_the_shipped_nets_have_weights_of_16_bits_and_compute_with_32(kind):
    shipped = files("models.assets") / f"regressor_{kind}.safetensors"
    assert all(x.dtype == torch.float16 for x in read_weights(shipped.read_bytes())[0].values())
    assert all(x.dtype == torch.float32 for x in load_regressor(kind).state_dict().values())


@pytest.mark.parametrize(("kind", "limit"), [("calibrated", 40.0), ("uncalibrated", 65.0)])
def test_the_shipped_nets_know_people(kind, limit, movers):
    """Mean error of the joints after alignment, mm; that of a standing body with its arms down is 120."""
    r = seen_by(load_regressor(kind), movers)
    joints = aligned_joints(r.body_pose, r.betas)
    assert 1e3 * np.mean(pa_mpjpe(joints, movers.joints)) < limit
    off = geodesic_degrees(r.view_orient, movers.R @ movers.world_rotations[:, None, 0])
    assert off.median() < 20
    # What it says of its errors is about right: the median of a Gaussian's squares is 0.45.
    error = torch.deg2rad(geodesic_degrees(r.body_pose, to_local(movers.world_rotations)))
    assert 0.15 < float((error**2 / r.pose_sigma**2).median()) < 1.5
