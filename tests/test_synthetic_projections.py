"""Keypoints as a detector finds them, against the truth that comes with them."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from builders import seeded, some_poses

from models.body import load_body, pose_keypoints
from models.regressors.kinematics import to_local
from models.rotations import geodesic_degrees
from models.synthetic.projections import TEST, Difficulty, Projections
from pipeline.skeleton import BODY_25

BODY = load_body().keypoints
CLEAN = Difficulty(noise=0.0)


def samples(count=6, views=4, difficulty=CLEAN, seed=0):
    return Projections(some_poses(), BODY).sample(count, views, difficulty, seeded(seed))


def test_clean_points_are_where_opencv_projects_them():
    s = samples(views=3)
    for n in range(6):
        for v in range(3):
            rvec, _ = cv2.Rodrigues(s.R[n, v].double().numpy())
            want, _ = cv2.projectPoints(
                s.points[n].double().numpy(), rvec, s.t[n, v].double().numpy(),
                s.K[n, v].double().numpy(), np.zeros(5),
            )  # fmt: skip
            found, known = s.xy_px[n, v].numpy(), s.confidence[n, v].numpy() > 0
            assert known.sum() > 10
            np.testing.assert_allclose(found[known], want[known, 0], atol=0.05)


def test_the_truth_is_one_body():
    s = samples(difficulty=Difficulty(varied_poses=True, bias=1.0, calibration=1.0))
    rotations = torch.cat([s.world_rotations[:, :1], to_local(s.world_rotations)], 1)
    joints, points = pose_keypoints(BODY.to(dtype=torch.float32), rotations, s.betas, s.transl)
    torch.testing.assert_close(joints, s.joints, atol=1e-5, rtol=0)
    torch.testing.assert_close(points, s.points, atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_samples():
    a, b, c = (samples(difficulty=TEST, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.xy_px.nan_to_num(), b.xy_px.nan_to_num())
    assert not torch.equal(a.xy_px.nan_to_num(), c.xy_px.nan_to_num())


def test_the_detector_errs_as_much_as_it_should():
    s = samples(count=400, views=4, difficulty=TEST)
    cam = s.points[:, None] @ s.R.mT + s.t[:, :, None]
    true = cam @ s.K.mT
    true = true[..., :2] / true[..., 2:]
    missing = s.confidence == 0
    assert torch.equal(missing, s.xy_px.isnan().any(-1))
    assert 0.15 < float(missing.float().mean()) < 0.3  # 15 % lost, and what is covered or outside
    box = (true.amax(2) - true.amin(2)).amax(-1)[..., None]
    error = ((s.xy_px - true).norm(dim=-1) / box)[~missing]
    assert float(error.median()) == pytest.approx(0.0125 * math.sqrt(2 * math.log(2)), rel=0.2)
    assert 0.04 < float((error > 0.05).float().mean()) < 0.1
    sure = s.confidence[~missing]
    assert np.corrcoef(error, sure)[0, 1] < -0.3
    assert float(sure.min()) >= 0.05
    assert float(sure.max()) <= 1


def test_calibrations_are_off_by_a_little():
    s = samples(count=300, difficulty=Difficulty(noise=0.0, calibration=1.0, focal=0.1))
    assert float(geodesic_degrees(s.R, s.true_R).square().mean()) == pytest.approx(3 * 0.09, rel=0.2)
    away = (s.R.mT @ s.t[..., None] - s.true_R.mT @ s.true_t[..., None]).norm(dim=(-1, -2))
    assert float(away.square().mean()) == pytest.approx(3e-4, rel=0.2)
    focal = s.K[..., 0, 0] / s.true_focal
    assert 0.4 < float((focal[:, 0] == 1).float().mean()) < 0.6
    torch.testing.assert_close(focal[:, 0], focal[:, 3])


def test_cameras_stand_where_the_person_faces():
    def facing(s):
        """Cosine between the way the body faces and the way to each camera."""
        way = -(s.R.mT @ s.t[..., None])[..., 0] - s.joints[:, :1]
        return torch.cosine_similarity(way, s.world_rotations[:, :1, :, 2].expand_as(way), dim=-1)

    before = facing(samples(count=100, difficulty=replace(CLEAN, around=math.radians(60))))
    assert before.min() > math.cos(math.radians(60 + 45))  # bodies lean, cameras are higher or lower
    assert facing(samples(count=100)).min() < -0.9


def test_a_detector_without_feet_finds_none():
    s = samples(count=100, difficulty=Difficulty(noise=0.0, no_feet=0.5))
    feet = s.confidence[:, :, 19:] > 0
    lacking = ~feet.any(-1).any(-1)
    assert 0.3 < float(lacking.float().mean()) < 0.7
    assert (s.confidence[lacking][:, :, :15] > 0).float().mean() > 0.9


def shifts_mm(s):
    """(N, V, 25) from the body's own points to what is found, millimetres at the person."""
    cam = s.points[:, None] @ s.R.mT + s.t[:, :, None]
    true = cam @ s.K.mT
    px = (s.xy_px - true[..., :2] / true[..., 2:]).norm(dim=-1)
    return 1000 * px * cam[..., 2] / s.true_focal[..., None]


def test_blazepose_has_its_points_elsewhere_and_no_small_toes():
    s = samples(count=200, difficulty=Difficulty(noise=0.0, blazepose=1.0))
    shift = shifts_mm(s)
    small = [i for i, name in enumerate(BODY_25.names) if name.endswith("SmallToe")]
    assert s.confidence[..., small].eq(0).all()
    assert s.xy_px[:, :, small].isnan().all()
    # Of a displacement in space a picture shows π / 4 on average, when it is seen from all sides.
    for name, length in (("LHip", 41.5), ("RHip", 41.5), ("LAnkle", 17.0), ("Nose", 0.0)):
        seen = shift[..., BODY_25.index(name)]
        assert seen[seen.isfinite()].mean() == pytest.approx(0.785 * length, rel=0.25, abs=0.1)
    half = samples(count=400, views=1, difficulty=Difficulty(noise=0.0, blazepose=0.5))
    hip = shifts_mm(half)[..., BODY_25.index("LHip")]
    assert 0.35 < float((hip[hip.isfinite()] > 2).float().mean()) < 0.65


def test_blazepose_errs_as_it_was_measured_to():
    """Median 25 mm at the person, more of hips than of ankles; left and right are right."""
    proj = Projections(some_poses(), BODY)
    proj.blazepose = torch.zeros(25, 3)  # its errors alone
    s = proj.sample(400, 4, replace(TEST, blazepose=1.0), seeded(0))
    error = shifts_mm(s)
    known = error.isfinite()
    assert 18 < float(error[known].median()) < 32
    hip, ankle = (error[..., [BODY_25.index(s + part) for s in "LR"]] for part in ("Hip", "Ankle"))
    assert hip[hip.isfinite()].median() > 1.5 * ankle[ankle.isfinite()].median()
    assert float((error[known] > 300).float().mean()) < 0.002
    sure = s.confidence[known]
    assert float((sure > 0.75).float().mean()) > 0.85
    small = error[known] < 60
    assert abs(np.corrcoef(sure[small], error[known][small])[0, 1]) < 0.2
