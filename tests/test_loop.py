from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from models.body import load_body, pose_keypoints
from models.evaluation.joints import extra_24
from models.evaluation.metrics import pa_mpjpe
from models.image_regressor import ImageConfig, ImageRegressor, place_body
from models.priors import load_pose_prior
from models.synthetic.poses import poses_of_prior
from models.synthetic.projections import Difficulty
from models.training.augment import AugmentConfig, augment, collate
from models.training.images import clean, with_points
from models.training.loop import (
    Bodies,
    LoopConfig,
    apply_augmentation,
    fit_bodies,
    keep_better,
    keypoints_to_fit,
    picture_ids,
    score_fits,
    select,
    training_target,
    undo_augmentation,
)
from models.training.samples import Sampling
from models.training.synthetic import SyntheticPeople
from pipeline.skeleton import BODY_25, EXTRA_24

MESH = load_body()
BODY = MESH.keypoints.to(dtype=torch.float32)
POINTS = with_points(BODY, extra_24(MESH)).to(dtype=torch.float32)
PRIOR = load_pose_prior()
SIZE = 128
PLAIN = AugmentConfig(flip=0, rotation_deg=0, unrotated=1, scale=0, channel_gain=0, noise=0, occlusion=0)
WILD = AugmentConfig(rotation_deg=40, unrotated=0, channel_gain=0, noise=0, occlusion=0)


@pytest.fixture(scope="module")
def pictures():
    noisy = SyntheticPeople(poses_of_prior(), count=40, sampling=Sampling(2, SIZE))
    clean_ones = Difficulty(noise=0.0)
    exact = SyntheticPeople(poses_of_prior(), count=40, sampling=Sampling(2, SIZE), difficulty=clean_ones)
    return {"noisy": [noisy[i] for i in range(12)], "exact": [exact[i] for i in range(8)]}


def batch(samples, cfg=PLAIN):
    rows = [augment(s, np.random.default_rng(i), cfg, SIZE) for i, s in enumerate(samples)]
    return clean(collate(rows), "full")


def truth(samples):
    """The true bodies before their cameras."""
    n, v = samples.seen.shape
    rest = BODY.joints_template[0] + samples.betas @ BODY.joints_shapedirs[0].T
    pose = samples.body_pose[:, None].expand(n, v, 23, 3, 3)
    betas = samples.betas[:, None].expand(n, v, -1)
    bodies = Bodies(samples.orient, pose, betas, torch.zeros(n, v, 3), torch.zeros(n, v))
    # Where it stands: a point of a body is linear in its place, and the keypoints say where they are.
    points = bodies.points(BODY)
    xy = samples.xy_px[:, :, :25]
    known = (samples.confidence[:, :, :25] > 0) & xy.isfinite().all(-1)
    one = torch.cat([torch.nan_to_num(xy), torch.ones_like(xy[..., :1])], -1)
    ray = (one @ torch.linalg.inv(samples.K).mT)[..., :2].double()
    rows, right = [], []
    for i in range(2):
        row = torch.zeros(n, v, 25, 3, dtype=torch.float64)
        row[..., i], row[..., 2] = 1, -ray[..., i]
        rows.append(row * known[..., None])
        right.append((ray[..., i] * points[..., 2] - points[..., i]) * known)
    a, b = torch.cat(rows, 2), torch.cat(right, 2)
    transl = torch.linalg.lstsq(a, b[..., None]).solution[..., 0].float()
    assert rest.isfinite().all()
    return replace(bodies, transl=transl)


def joints(bodies):
    """(N, 24, 3) of the first view."""
    return pose_keypoints(BODY, bodies.rotations[:, 0], bodies.betas[:, 0], torch.zeros(3))[0]


def untrained(samples):
    """What a net with random weights says: the mean pose, upright."""
    net = ImageRegressor(ImageConfig("convnext_tiny_pooled", "average"))
    n, v = samples.seen.shape
    with torch.no_grad():
        said = net.eval().estimate(torch.zeros(n, v, net.features), samples.seen)
    box = torch.tensor([(SIZE - 1) / 2, (SIZE - 1) / 2, SIZE]).expand(n, v, 3)
    orient, transl = place_body(said, box, samples.K, BODY)
    pose, betas = (x[:, None].expand(n, v, *x.shape[1:]) for x in (said.body_pose, said.betas))
    return Bodies(orient, pose, betas, transl, torch.full((n, v), torch.inf))


def test_the_truth_scores_nothing_and_what_is_off_more(pictures):
    samples = batch(pictures["exact"])
    true = truth(samples)
    none = score_fits(true, POINTS, samples)
    assert none.max() < 8  # an annotator's errors, a hundredth of the crop
    off = replace(true, transl=true.transl + torch.tensor([0.05, 0.0, 0.0]))
    far = replace(true, transl=true.transl + torch.tensor([0.3, 0.0, 0.0]))
    some, much = (score_fits(x, POINTS, samples) for x in (off, far))
    assert (none < some).all()
    assert (some < much).all()


def test_a_score_is_that_of_spin(pictures):
    """Over its 49 keypoints, of which it leaves out five, in pixels of a crop of 224."""
    samples = batch(pictures["noisy"][:2], WILD)
    bodies = truth(samples)
    found = bodies.points(POINTS) @ samples.K.mT
    found = (found[..., :2] / found[..., 2:]).numpy() * 224 / SIZE
    left_out = [1, 9, 12, 25 + 2, 25 + 3]  # OpenPose's neck and hips, and the annotated hips
    want = np.zeros(2)
    for n, v, k in np.ndindex(2, 2, 49):
        xy, confidence = samples.xy_px[n, v, k].numpy() * 224 / SIZE, samples.confidence[n, v, k].item()
        if np.isfinite(xy).all() and k not in left_out:
            d2 = ((found[n, v, k] - xy) * samples.zoom[n, v].item()) ** 2
            want[n] += confidence**2 * (1e4 * d2 / (1e4 + d2)).sum() / 49 / 2
    assert (want > 1).all()
    np.testing.assert_allclose(score_fits(bodies, POINTS, samples).numpy(), want, rtol=1e-3)
    nothing = replace(samples, confidence=0 * samples.confidence)
    assert score_fits(bodies, POINTS, nothing).isinf().all()


def test_fits_from_an_untrained_net_find_the_pose(pictures):
    samples = batch(pictures["noisy"])
    start = untrained(samples)
    found = fit_bodies(samples, start, BODY, POINTS, PRIOR, LoopConfig())
    true = truth(samples)
    before, after = (1e3 * pa_mpjpe(joints(x), joints(true)).mean() for x in (start, found))
    assert before > 100
    assert after < 50  # two views, with a detector's errors
    assert (found.score < 100).all()
    # The views show one body: their roots differ as the cameras do.
    turned = samples.R.mT @ found.orient
    torch.testing.assert_close(turned[:, 0], turned[:, 1], atol=1e-4, rtol=0)
    exact = batch(pictures["exact"])
    found = fit_bodies(exact, untrained(exact), BODY, POINTS, PRIOR, LoopConfig())
    assert 1e3 * np.median(pa_mpjpe(joints(found), joints(truth(exact)))) < 25


def test_what_shows_nothing_has_no_fit_and_spoils_no_other(pictures):
    samples = batch(pictures["exact"][:4])
    start = untrained(samples)
    whole = fit_bodies(samples, start, BODY, POINTS, PRIOR, LoopConfig())
    seen = samples.seen.clone()
    seen[1, 0], seen[2] = False, False
    nowhere = start.body_pose.clone()
    nowhere[3] = torch.nan
    found = fit_bodies(
        replace(samples, seen=seen), replace(start, body_pose=nowhere), BODY, POINTS, PRIOR, LoopConfig()
    )
    assert found.score.isfinite()[:3].tolist() == [[True, True], [False, True], [False, False]]
    torch.testing.assert_close(found.body_pose[0], whole.body_pose[0], atol=1e-4, rtol=0)
    assert all(getattr(found, f.name).isfinite().all() for f in fields(Bodies) if f.name != "score")


def test_fits_do_not_need_to_know_where_the_cameras_are(pictures):
    samples = batch(pictures["exact"])
    lost = replace(samples, R=torch.full_like(samples.R, torch.nan), t=torch.full_like(samples.t, torch.nan))
    true = truth(samples)
    tilt = torch.from_numpy(Rotation.from_rotvec([0.2, 0.3, 0.1]).as_matrix()).float()
    start = replace(true, orient=true.orient @ tilt, body_pose=untrained(samples).body_pose)
    mixed = replace(lost, R=lost.R.clone(), t=lost.t.clone())
    mixed.R[:4], mixed.t[:4] = samples.R[:4], samples.t[:4]  # some are calibrated, some are not
    found = fit_bodies(mixed, start, BODY, POINTS, PRIOR, LoopConfig())
    error = 1e3 * pa_mpjpe(joints(found), joints(true))
    assert np.median(error[:4]) < 25
    assert np.median(error[4:]) < 45
    before = 1e3 * pa_mpjpe(joints(start), joints(true))
    assert np.median(error[4:]) < 0.5 * np.median(before[4:])


def test_spins_own_fit_brings_the_score_down_in_each_view(pictures):
    samples = batch(pictures["exact"][:3])
    true = truth(samples)
    start = replace(true, body_pose=untrained(samples).body_pose, betas=torch.zeros_like(true.betas))
    found = fit_bodies(samples, start, BODY, POINTS, PRIOR, LoopConfig(solver="spin", iterations=30))
    assert (found.score[:, 0] < 0.7 * score_fits(start, POINTS, samples)).all()
    assert not torch.allclose(found.body_pose[:, 0], found.body_pose[:, 1], atol=1e-3)


def test_fits_made_in_augmented_crops_are_those_of_the_samples(pictures):
    plain, wild = batch(pictures["exact"]), batch(pictures["exact"], WILD)
    assert wild.flipped.any()
    assert not wild.flipped.all()
    assert wild.roll.abs().max() > 0.3
    want, shown = truth(plain), truth(wild)
    back = undo_augmentation(shown, BODY, wild)
    for name, tolerance in (("orient", 1e-4), ("body_pose", 1e-5), ("transl", 0.02)):
        torch.testing.assert_close(getattr(back, name), getattr(want, name), atol=tolerance, rtol=0)
    again = apply_augmentation(back, BODY, wild)
    for f in fields(Bodies):
        torch.testing.assert_close(getattr(again, f.name), getattr(shown, f.name), atol=1e-5, rtol=0)
    # Scores, too, are the same in either: bodies and keypoints change together.
    for bodies_plain in (want, replace(want, transl=want.transl + 0.1)):
        a, b = (
            score_fits(x, POINTS, s)
            for x, s in ((bodies_plain, plain), (apply_augmentation(bodies_plain, BODY, wild), wild))
        )
        torch.testing.assert_close(a, b, atol=0.05, rtol=0.05)


def test_the_better_of_two_fits_is_kept_view_by_view(pictures):
    samples = batch(pictures["exact"][:2])
    a = replace(truth(samples), score=torch.tensor([[1.0, 2.0], [torch.inf, 3.0]]))
    b = replace(a, betas=a.betas + 1, score=torch.tensor([[2.0, 1.0], [5.0, 3.0]]))
    kept = keep_better(b, a)
    taken = torch.tensor([[False, True], [True, False]])
    torch.testing.assert_close(kept.betas, torch.where(taken[..., None], b.betas, a.betas))
    assert kept.score.tolist() == [[1.0, 1.0], [5.0, 3.0]]


def test_bad_fits_do_not_teach_and_wild_shapes_become_the_mean_one(pictures):
    samples = clean(batch(pictures["exact"][:2]), "2d")
    assert samples.joints.isnan().all()
    betas = torch.zeros(2, 2, 10)
    betas[0, 1, 3], betas[1, 0, 2] = -3.5, 2.9
    true = truth(batch(pictures["exact"][:2]))
    fits = replace(true, betas=betas, score=torch.tensor([[1.0, 99.0], [101.0, torch.inf]]))
    target = training_target(fits, samples, LoopConfig())
    assert target.has_pose.tolist() == target.has_shape.tolist() == [[True, True], [False, False]]
    assert not target.bodies.betas[0, 1].any()
    assert target.bodies.betas[1, 0, 2] == pytest.approx(2.9)
    hidden = replace(samples, seen=torch.tensor([[True, False], [True, True]]))
    assert training_target(fits, hidden, LoopConfig()).has_pose.tolist() == [[True, False], [False, False]]


def test_the_truth_takes_the_place_of_fits_where_it_is_known(pictures):
    samples = batch(pictures["exact"][:3])
    betas, pose = samples.betas.clone(), samples.body_pose.clone()
    betas[1], pose[2] = torch.nan, torch.nan
    samples = replace(samples, betas=betas, body_pose=pose)
    fits = untrained(samples)  # which are no fits
    target = training_target(fits, samples, LoopConfig())
    assert target.has_pose.tolist() == [[True, True], [True, True], [False, False]]
    assert target.has_shape.tolist() == [[True, True], [False, False], [True, True]]
    torch.testing.assert_close(target.bodies.body_pose[:2, 1], pose[:2])
    torch.testing.assert_close(target.bodies.orient[:2], samples.orient[:2])
    torch.testing.assert_close(target.bodies.betas[[0, 2], 1], betas[[0, 2]])
    torch.testing.assert_close(target.bodies.body_pose[2], fits.body_pose[2])
    torch.testing.assert_close(target.bodies.betas[1], fits.betas[1])


def test_what_the_detector_missed_is_taken_from_the_annotation(pictures):
    samples = batch(pictures["exact"][:1])
    xy, confidence = samples.xy_px.clone(), samples.confidence.clone()
    knee, annotated = BODY_25.index("LKnee"), 25 + EXTRA_24.index("LKnee")
    confidence[0, 0, knee] = 0
    xy[0, 0, annotated], confidence[0, 0, annotated] = torch.tensor([12.0, 34.0]), 0.7
    confidence[0, 1, knee], confidence[0, 1, annotated] = 0.4, 0.7
    found, sure = keypoints_to_fit(replace(samples, xy_px=xy, confidence=confidence))
    assert found[0, 0, knee].tolist() == [12.0, 34.0]
    assert sure[0, :, knee].tolist() == pytest.approx([0.7, 0.4])
    hidden = replace(samples, seen=torch.tensor([[True, False]]))
    assert not keypoints_to_fit(hidden)[1][0, 1].any()


def test_pictures_have_names_of_their_own(pictures):
    samples = select(batch(pictures["exact"]), torch.tensor([2, 1]))
    assert [n[0].rsplit("/", 1)[1] for n in picture_ids(samples)] == ["2", "1"]
    (name, other), _ = picture_ids(samples)
    assert name.split("/")[:2] == ["synthetic", "train"]
    assert (name.split("/")[-2], other.split("/")[-2]) == ("0", "1")
