"""Joint angles of poses that are made by hand."""

import numpy as np
import pytest
import torch
from builders import seeded
from scipy.spatial.transform import Rotation

from models.angles import ANGLES, DEFINITIONS, joint_angles
from models.body import forward_kinematics, load_body
from pipeline.skeleton import SMPL_24

X, Y, Z = np.eye(3)
Z_UP = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
"""Rest pose of the body → a world with z up, in which it faces x."""


def angles(rotations=None, root=Z_UP, up=Z):
    """Angles by name, of joint → rotation vector in degrees, in the axes of the rest pose: x left, y up."""
    local = np.stack([root, *[np.eye(3)] * 23])
    for joint, vector in (rotations or {}).items():
        turn = Rotation.from_rotvec(vector, degrees=True).as_matrix()
        at = SMPL_24.index(joint)
        local[at] = local[at] @ turn
    pose = torch.from_numpy(local)
    _, joints = forward_kinematics(pose, load_body().keypoints.joints_template)
    found = joint_angles(pose, joints + torch.tensor([5.0, -3, 1]), np.asarray(up, float))
    return dict(zip(DEFINITIONS, found.tolist(), strict=True))


def changed(rotations, **options):
    """By how much angles differ from those of the rest pose, where that is more than 0.01 degrees."""
    rest, posed = angles(root=options.pop("rest", Z_UP)), angles(rotations, **options)
    return {k: posed[k] - rest[k] for k in posed if abs(posed[k] - rest[k]) > 0.01}


def test_the_rest_pose_is_nearly_zero_but_for_its_raised_arms():
    rest = angles()
    for name, value in rest.items():
        limit = 12 if "elbow" in name else 8
        if "shoulder" not in name:
            assert abs(value) < limit, name
    for side in ("left", "right"):
        assert rest[f"{side}_shoulder_elevation"] == pytest.approx(90, abs=20)
        assert rest[f"{side}_shoulder_abduction"] == pytest.approx(rest[f"{side}_shoulder_elevation"], abs=10)
    assert rest["pelvis_tilt"] == rest["pelvis_list"] == rest["pelvis_rotation"] == 0


@pytest.mark.parametrize(
    ("joint", "axis", "name", "sign"),
    [
        ("left_hip", X, "left_hip_flexion", -1),
        ("right_hip", X, "right_hip_flexion", -1),
        ("left_knee", X, "left_knee_flexion", 1),
        ("right_knee", X, "right_knee_flexion", 1),
        ("left_ankle", X, "left_ankle_flexion", -1),
        ("right_ankle", X, "right_ankle_flexion", -1),
        ("left_hip", Z, "left_hip_abduction", 1),
        ("right_hip", Z, "right_hip_abduction", -1),
        ("left_hip", Y, "left_hip_rotation", -1),
        ("right_hip", Y, "right_hip_rotation", 1),
        ("left_elbow", Y, "left_elbow_flexion", -1),
        ("right_elbow", Y, "right_elbow_flexion", 1),
        ("head", X, "neck_flexion", 1),
        ("spine1", Z, "spine_bending", 1),
        ("spine2", Y, "spine_rotation", 1),
    ],
)
def test_a_turn_about_a_segments_axis_is_that_angle(joint, axis, name, sign):
    """Signs by hand: about x, left, what is up goes forwards; about y, up, to the left; about z, forwards,
    what is up goes to the right."""
    for degrees in (-20, 20):
        turned = changed({joint: degrees * axis})
        # Bones are a few degrees off the axes of the rest pose.
        assert turned[name] == pytest.approx(sign * degrees, abs=2.5)


def test_what_each_sign_means_in_space():
    """Limbs go where the definitions say."""

    def place(rotations, joint):
        local = np.stack([np.eye(3)] * 24)
        for name, vector in rotations.items():
            local[SMPL_24.index(name)] = Rotation.from_rotvec(vector, degrees=True).as_matrix()
        _, joints = forward_kinematics(torch.from_numpy(local), load_body().keypoints.joints_template)
        return joints[SMPL_24.index(joint)].numpy()

    rest = {}
    ahead = place({"left_hip": -30 * X}, "left_ankle") - place(rest, "left_ankle")
    assert ahead[2] > 0.3, "the flexed hip's foot is ahead"
    aside = place({"right_hip": -20 * Z}, "right_ankle") - place(rest, "right_ankle")
    assert aside[0] < -0.2, "the abducted right leg is to the right"
    bent = place({"left_elbow": -90 * Y}, "left_wrist") - place(rest, "left_wrist")
    assert bent[2] > 0.2, "the bent elbow's hand is ahead"
    toes = place({"left_ankle": -20 * X}, "left_foot") - place(rest, "left_foot")
    assert toes[1] > 0.02, "the toes are up"


def test_hanging_and_raised_arms():
    hanging = {f"{side}_shoulder": (-1 if side == "left" else 1) * 90 * Z for side in ("left", "right")}
    rest, down = angles(), angles(hanging)
    for side in ("left", "right"):
        assert down[f"{side}_shoulder_elevation"] == pytest.approx(
            abs(rest[f"{side}_shoulder_elevation"] - 90), abs=3
        )
        assert down[f"{side}_shoulder_rotation"] == pytest.approx(0, abs=8)
        out = -1 if side == "left" else 1
        backwards = Rotation.from_euler("ZX", [out * 90, 40], degrees=True)  # the palm that faced the thigh
        turned = angles({**hanging, f"{side}_shoulder": np.degrees(backwards.as_rotvec())})
        assert turned[f"{side}_shoulder_rotation"] == pytest.approx(
            40 + down[f"{side}_shoulder_rotation"], abs=4
        )
    # The arm to the front: from the side, a turn about the vertical.
    front = angles({"left_shoulder": -90 * Y, "right_shoulder": 90 * Y})
    for side in ("left", "right"):
        assert front[f"{side}_shoulder_flexion"] == pytest.approx(90, abs=12)
        assert front[f"{side}_shoulder_abduction"] == pytest.approx(0, abs=8)
        assert front[f"{side}_shoulder_elevation"] == pytest.approx(90, abs=12)


@pytest.mark.parametrize("up", [Z, Y, -Y, X], ids=["z", "y", "-y", "x"])
def test_pelvis_and_trunk_do_not_depend_on_the_heading(up):
    """A tilt of 20 and a list of −10, whatever is up and wherever it faces."""
    upright = np.stack([np.cross(up, ahead := (Z if up is X else X)), up, ahead], -1)
    for heading in (-170, -30, 0, 75):
        yaw = Rotation.from_rotvec(heading * up, degrees=True).as_matrix()
        lean = Rotation.from_euler("ZX", [-10, 20], degrees=True).as_matrix()
        found = angles(root=yaw @ upright @ lean, up=up)
        for name in ("pelvis", "trunk"):
            assert found[f"{name}_tilt"] == pytest.approx(20)
            assert found[f"{name}_list"] == pytest.approx(-10)
            assert found[f"{name}_rotation"] == pytest.approx(heading)
        assert found["spine_flexion"] == pytest.approx(0, abs=1e-6)


def test_angles_between_segments_do_not_depend_on_the_world():
    pose = {"left_hip": np.array([-40, 10, 15]), "right_knee": 60 * X, "spine1": np.array([10, 5, 8])}
    one = angles(pose)
    other = angles(pose, root=Rotation.from_rotvec([0.5, 2, -1]).as_matrix(), up=Y)
    for angle in ANGLES:
        if angle.relative_to != "world":
            assert other[angle.name] == pytest.approx(one[angle.name], abs=1e-9), angle.name


def test_mirror_image_exchanges_the_sides():
    """A mirrored pose has the same angles on the other side, and turns and lists of the trunk reversed."""
    vectors = 0.3 * torch.randn(24, 3, generator=seeded(3), dtype=torch.float64).numpy()
    vectors[0] = 0
    mirrored = vectors[[*SMPL_24.flips]] * [1, -1, -1]
    names = SMPL_24.names
    one = angles({n: np.degrees(v) for n, v in zip(names, vectors, strict=True)})
    two = angles({n: np.degrees(v) for n, v in zip(names, mirrored, strict=True)})
    for name, value in one.items():
        if "_list" in name or name.split("_")[0] in ("pelvis", "trunk", "spine", "neck"):
            sign = 1 if "tilt" in name or "flexion" in name else -1
            assert two[name] == pytest.approx(sign * value, abs=0.5), name
        else:
            other = name.replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")
            assert two[other] == pytest.approx(value, abs=3), name


def test_nan_where_there_is_no_pose():
    pose, joints = torch.eye(3).expand(2, 24, 3, 3).clone(), torch.randn(2, 24, 3, generator=seeded())
    pose[1], joints[1] = torch.nan, torch.nan
    found = joint_angles(pose, joints, Y)
    assert found.shape == (2, len(ANGLES))
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


def test_names_and_definitions():
    assert len(DEFINITIONS) == len(ANGLES), "each name comes once"
    assert "thigh relative to the pelvis: forwards is +" in DEFINITIONS["left_hip_flexion"].replace(
        "left ", ""
    )
