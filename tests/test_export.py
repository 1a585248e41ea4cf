"""Exported files, read back by parsers of their own, are the body that the store holds."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import smpl_file
from scipy.spatial.transform import Rotation

import run_pipeline
from models.body import Body, load_body, pose_keypoints
from models.export import axes_of, facing, facing_as_pose2sim, to_glb, zxy_degrees
from models.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from pipeline.batches import FitBatch, KeypointBatch, SmplParams, Status
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.joints import BODY_25, SMPL_JOINTS, SMPL_PARENTS
from pipeline.store import Contents, Store
from stages.export import export, read_take

T, WINDOW = 12, 5
RATE = Fraction(30000, 1001)
NEAR = 1e-5
"""Metres: 0.01 mm."""
LOST = (0, 5, 6, 11)
"""Frames without a pose."""
DOUBTED = 3
"""A frame with a pose that is not valid."""

Map = Callable[[np.ndarray], np.ndarray]


def mapped(*rows: tuple[int, int]) -> Map:
    """Axis and sign of each new coordinate."""

    def to(points: np.ndarray) -> np.ndarray:
        return np.stack([sign * points[..., axis] for axis, sign in rows], -1)

    return to


SAME = mapped((0, 1), (1, 1), (2, 1))
# By hand, and not by the formula under test: where each world's x, y and z go when y, or z, is to be up.
TO_Y = {
    "z": mapped((0, 1), (2, 1), (1, -1)),
    "y": SAME,
    "-y": mapped((0, 1), (1, -1), (2, -1)),
    "-z": mapped((0, 1), (2, -1), (1, 1)),
    "x": mapped((1, -1), (0, 1), (2, 1)),
    "-x": mapped((1, 1), (0, -1), (2, 1)),
}
TO_Z = {"z": SAME, "y": mapped((0, 1), (2, -1), (1, 1)), "-y": mapped((0, 1), (2, 1), (1, -1))}
POSE2SIM = mapped((1, 1), (2, 1), (0, 1))


def direction(name: str) -> np.ndarray:
    return (-1.0 if "-" in name else 1.0) * np.eye(3)["xyz".index(name[-1])]


@cache
def body() -> Body:
    return load_body()


def rig(up: np.ndarray) -> Rig:
    """Two cameras that are held upright and look along the ground, about."""
    level = np.roll(up, 1)
    ahead = [level * np.cos(a) - up * np.sin(a) for a in (0.1, 0.4)]
    right = np.cross(-up, level)
    turns = np.stack([np.stack([right, np.cross(z, right), z]) for z in ahead])
    k = np.array([[900.0, 0, 320], [0, 910, 240], [0, 0, 1]])
    return Rig(
        ("a", "b"),
        np.stack([k, k]),
        np.zeros((2, 8)),
        turns,
        np.array([[0, 0, 4.0]] * 2),
        np.full((2, 2), 640),
    )


@dataclass(frozen=True)
class Truth:
    """What was put into a store: (T, 24, 3, 3), (T, 3) and so on, in its world."""

    store: Store
    rotations: torch.Tensor
    betas: torch.Tensor
    transl: torch.Tensor
    joints: np.ndarray
    points: np.ndarray

    def vertices(self, frame: int, of: Body | None = None) -> np.ndarray:
        r, one = self.rotations[frame : frame + 1], slice(frame, frame + 1)
        return (of or body()).vertices(r[:, 0], r[:, 1:], self.betas, self.transl[one])[0].double().numpy()


def make(
    out: Path, up: str = "z", lost: tuple[int, ...] = LOST, config: dict[str, Any] | None = None
) -> Truth:
    """A store of somebody who stands upright, bends knees and elbows past 90°, and turns round."""
    rng, axis = np.random.default_rng(4), direction(up)
    t = np.arange(T) / T
    angles = (
        0.5 * np.sin(2 * np.pi * t[:, None, None] + rng.uniform(0, 6, (24, 3))) * rng.uniform(0, 1, (24, 3))
    )
    angles[:, SMPL_JOINTS.index("left_knee")] = 2.6 * np.sin(np.pi * t[:, None]) * [1, 0, 0]
    angles[:, SMPL_JOINTS.index("right_elbow"), 1] = 2.3 * t
    local = Rotation.from_rotvec(angles.reshape(-1, 3)).as_matrix().reshape(T, 24, 3, 3)
    # The rest pose stands along y: any rotation that takes y to up does, and its heading turns.
    upright, _ = Rotation.align_vectors(axis[None], np.array([[0.0, 1, 0]]))
    heading = Rotation.from_rotvec(axis * (0.3 + 4 * t[:, None]))
    local[:, 0] = (heading * upright).as_matrix() @ local[:, 0]
    # As the store keeps them, so that what is compared is what was stored.
    rotvec = torch.from_numpy(Rotation.from_matrix(local.reshape(-1, 3, 3)).as_rotvec().astype(np.float32))
    rotations = axis_angle_to_matrix(rotvec.double()).reshape(T, 24, 3, 3)
    betas = torch.from_numpy(rng.normal(0, 1, 10).astype(np.float32)).double()
    transl = torch.from_numpy(np.stack([1.5 + t, -2 + 0.5 * t**2, 0.9 - t], -1).astype(np.float32)).double()
    joints, points = (x.numpy() for x in pose_keypoints(body().keypoints, rotations, betas, transl))
    rates, cameras = np.arange(T) / float(RATE), rig(axis)
    contents = Contents(
        cameras, RATE, rates, np.tile(np.arange(T), (2, 1)), {"name": body().name, "sha256": body().sha256},
        config or {}, window=WINDOW,
    )  # fmt: skip
    store = Store.create(out, contents)
    status = np.full((T, 1), Status.OK, np.uint8)
    status[DOUBTED], status[list(lost)] = Status.BRIDGED, Status.NOT_SEEN
    gone = torch.zeros(T, dtype=torch.bool)
    gone[list(lost)] = True

    def known(x: torch.Tensor) -> torch.Tensor:
        return torch.where(gone.reshape(-1, *[1] * (x.ndim - 1)), torch.nan, x)

    for k in range(len(store.done)):
        a, b = store.span(k)
        n, blank = b - a, torch.full((2, b - a, 1, 25, 2), torch.nan)
        seen = KeypointBatch(
            a, RATE, torch.tensor([0]), torch.from_numpy(rates[a:b]), blank, blank, torch.zeros(2, n, 1, 25),
        )  # fmt: skip
        params = SmplParams(
            known(rotations)[a:b, None, 0],
            known(rotations)[a:b, None, 1:],
            betas[None],
            known(transl)[a:b, None],
        )
        marks = torch.cat([known(torch.from_numpy(points)), torch.ones(T, 25, 1)], -1)
        store.write(
            FitBatch(
                seen, params, known(torch.from_numpy(joints))[a:b, None].float(), marks[a:b, None].float(),
                torch.zeros(2, n, 1), torch.from_numpy(status[a:b]),
            )
        )  # fmt: skip
    return Truth(store, rotations, betas, transl, joints, points)


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Truth]:
    @cache
    def of(up: str) -> Truth:
        return make(tmp_path_factory.mktemp("store") / "results.zarr", up)

    return of


HAS_POSE = [t for t in range(T) if t not in LOST]


def write(truth: Truth, file: Path, *args: Any) -> list[str]:
    _, warnings = export(truth.store, body(), file, *args)
    return warnings


# --- glTF ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gltf:
    """A binary glTF file as its specification says that it is to be read."""

    document: dict[str, Any]
    data: bytes

    @staticmethod
    def read(content: bytes) -> Gltf:
        magic, version, length = struct.unpack_from("<4sII", content)
        assert (magic, version, length) == (b"glTF", 2, len(content))
        chunks, at = {}, 12
        while at < length:
            size, kind = struct.unpack_from("<I4s", content, at)
            assert size % 4 == 0
            chunks[kind] = content[at + 8 : at + 8 + size]
            at += 8 + size
        document = json.loads(chunks[b"JSON"])
        assert document["buffers"] == [{"byteLength": len(chunks[b"BIN\0"])}]
        return Gltf(document, chunks[b"BIN\0"])

    def array(self, index: int) -> np.ndarray:
        accessor = self.document["accessors"][index]
        view = self.document["bufferViews"][accessor["bufferView"]]
        kind = {5121: "<u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}[accessor["type"]]
        assert view["byteOffset"] % 4 == 0
        assert view["byteLength"] == accessor["count"] * width * np.dtype(kind).itemsize
        found = np.frombuffer(self.data, kind, accessor["count"] * width, view["byteOffset"])
        found = found.reshape(accessor["count"], width)
        if "min" in accessor:
            np.testing.assert_array_equal(found.min(0), accessor["min"])
            np.testing.assert_array_equal(found.max(0), accessor["max"])
        return found.astype(np.float64)

    def attributes(self) -> dict[str, np.ndarray]:
        (mesh,) = self.document["meshes"]
        (primitive,) = mesh["primitives"]
        return {k: self.array(i) for k, i in primitive["attributes"].items()}

    @property
    def times(self) -> np.ndarray:
        (animation,) = self.document["animations"]
        (index,) = {s["input"] for s in animation["samplers"]}
        return self.array(index)[:, 0]

    def nodes_at(self, key: int) -> np.ndarray:
        """(nodes, 4, 4) of the world at a key of the animation."""
        nodes, (animation,) = self.document["nodes"], self.document["animations"]
        local = []
        for node in nodes:
            assert not {"matrix", "rotation", "scale"} & set(node)
            local.append({"translation": node.get("translation", [0, 0, 0]), "rotation": [0, 0, 0, 1]})
        for channel in animation["channels"]:
            output = self.array(animation["samplers"][channel["sampler"]]["output"])
            local[channel["target"]["node"]][channel["target"]["path"]] = output[key]
        world = np.full((len(nodes), 4, 4), np.nan)

        def place(i: int, above: np.ndarray) -> None:
            own = np.eye(4)
            x, y, z, w = local[i]["rotation"]
            own[:3, :3] = [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
            own[:3, 3] = local[i]["translation"]
            world[i] = above @ own
            for child in nodes[i].get("children", ()):
                place(child, world[i])

        for i in self.document["scenes"][self.document["scene"]]["nodes"]:
            place(i, np.eye(4))
        return world

    def skinned_at(self, key: int, sets: int | None = None) -> np.ndarray:
        """(V, 3); of all sets of weights, or of the first few, scaled up to 1."""
        (skin,) = self.document["skins"]
        bind = (
            self.array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
        )  # column by column
        matrices = self.nodes_at(key)[skin["joints"]] @ bind
        found = self.attributes()
        names = sorted(n for n in found if n.startswith("JOINTS"))[:sets]
        joints = np.concatenate([found[n] for n in names], 1).astype(int)
        weights = np.concatenate([found[n.replace("JOINTS", "WEIGHTS")] for n in names], 1)
        weights = weights if sets is None else weights / weights.sum(1, keepdims=True)
        blend = np.einsum("vk,vkab->vab", weights, matrices[joints])
        point = np.concatenate([found["POSITION"], np.ones((len(blend), 1))], 1)
        return np.einsum("vab,vb->va", blend, point)[:, :3]


@pytest.mark.parametrize("up", TO_Y)
def test_a_glb_moves_as_the_body_does(truths: Callable[[str], Truth], tmp_path: Path, up: str) -> None:
    truth = truths(up)
    write(truth, tmp_path / "a.glb")
    file = Gltf.read((tmp_path / "a.glb").read_bytes())
    np.testing.assert_allclose(file.times, np.arange(T) / float(RATE), atol=1e-6)
    names = [n["name"] for n in file.document["nodes"]]
    for t in HAS_POSE if up == "z" else HAS_POSE[::4]:
        joints = file.nodes_at(t)[[names.index(n) for n in SMPL_JOINTS], :3, 3]
        np.testing.assert_allclose(joints, TO_Y[up](truth.joints[t]), atol=NEAR)
        np.testing.assert_allclose(file.skinned_at(t), TO_Y[up](truth.vertices(t)), atol=NEAR)
        assert joints[SMPL_JOINTS.index("head"), 1] > joints[0, 1] + 0.3, "it stands along y"


def test_a_glb_is_a_closed_mesh_that_faces_outward(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    write(truths("z"), tmp_path / "a.glb")
    file = Gltf.read((tmp_path / "a.glb").read_bytes())
    (primitive,) = file.document["meshes"][0]["primitives"]
    corners = file.array(primitive["indices"]).astype(int).reshape(-1, 3)
    np.testing.assert_array_equal(corners, body().faces)
    found = file.attributes()
    a, b, c = (found["POSITION"][corners[:, i]] for i in range(3))
    volume = np.einsum("fi,fi->", a, np.cross(b, c)) / 6
    assert 0.03 < volume < 0.2, "cubic metres; negative when inside out or mirrored"
    outward = np.cross(b - a, c - a)
    along = np.einsum("fi,fi->f", outward, found["NORMAL"][corners[:, 0]]) / np.linalg.norm(outward, axis=1)
    np.testing.assert_allclose(np.linalg.norm(found["NORMAL"], axis=1), 1, atol=1e-6)
    assert (along > 0).mean() > 0.98


@pytest.mark.parametrize("most", [3, 4, 9])
def test_all_skin_weights_are_kept(truths: Callable[[str], Truth], most: int) -> None:
    rng, truth = np.random.default_rng(0), truths("z")
    weights = np.zeros((len(body().v_template), 24))
    for row in weights:
        row[rng.choice(24, rng.integers(1, most + 1), replace=False)] = 1
    weights *= rng.uniform(0.05, 1, weights.shape)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    other = replace(body(), weights=torch.from_numpy(weights))
    take = read_take(truth.store, 0, 1, 5)
    file = Gltf.read(to_glb(take, other))
    found = file.attributes()
    sets = sum(n.startswith("JOINTS") for n in found)
    assert sets == -(-most // 4)
    again, rows = np.zeros_like(weights, dtype=float), np.arange(len(weights))[:, None]
    for i in range(sets):
        np.add.at(again, (rows, found[f"JOINTS_{i}"].astype(int)), found[f"WEIGHTS_{i}"])
        if i:
            assert (found["WEIGHTS_0"].min(1) >= found[f"WEIGHTS_{i}"].max(1)).all()
    np.testing.assert_allclose(again, weights, atol=1e-6)
    np.testing.assert_allclose(again.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(file.skinned_at(1), truth.vertices(2, other), atol=NEAR)


def test_viewers_of_one_set_of_weights_are_near(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    truth = truths("z")
    write(truth, tmp_path / "a.glb")
    file = Gltf.read((tmp_path / "a.glb").read_bytes())
    apart = np.linalg.norm(file.skinned_at(4, sets=1) - file.skinned_at(4), axis=1)
    assert apart.mean() < 0.001


def test_rotations_of_a_glb_go_the_short_way(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    write(truths("z"), tmp_path / "a.glb")
    file = Gltf.read((tmp_path / "a.glb").read_bytes())
    for sampler in file.document["animations"][0]["samplers"]:
        output = file.array(sampler["output"])
        if output.shape[1] == 4:
            np.testing.assert_allclose(np.linalg.norm(output, axis=1), 1, atol=1e-6)
            assert ((output[1:] * output[:-1]).sum(1) > 0).all()


def test_pose_blend_shapes_are_left_out_and_that_is_said(
    truths: Callable[[str], Truth], tmp_path: Path
) -> None:
    truth, rng = truths("z"), np.random.default_rng(1)
    shapes = torch.from_numpy(rng.normal(0, 0.003, (207, body().v_template.numel()))).float()
    blended = replace(body(), posedirs=shapes)
    _, said = export(truth.store, blended, tmp_path / "a.glb")
    assert "pose blend shapes" in said[-1]
    file, worst = Gltf.read((tmp_path / "a.glb").read_bytes()), 0.0
    for t in HAS_POSE:
        assert np.abs(file.skinned_at(t) - TO_Y["z"](truth.vertices(t))).max() < NEAR
        moved = truth.vertices(t, blended) - truth.vertices(t)
        worst = max(worst, 1000 * float(np.linalg.norm(moved, axis=1).max()))
    number = int(said[-1].split("up to ")[1].split()[0])
    # Where skins of several joints meet, the blend of their rotations shortens what it turns.
    assert 0.9 * worst < number < 1.3 * worst
    export(truth.store, blended, tmp_path / "a.obj", 0, 4)
    vertices, _ = read_obj((tmp_path / "a.obj").read_text())
    np.testing.assert_allclose(vertices, TO_Y["z"](truth.vertices(4, blended)), atol=NEAR)


# --- BVH ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bvh:
    names: list[str]
    parents: list[int]
    offsets: np.ndarray
    channels: list[list[str]]
    frame_time: float
    rows: np.ndarray
    ends: int

    @staticmethod
    def read(text: str) -> Bvh:
        words: Iterator[str] = iter(text.split())
        assert next(words) == "HIERARCHY"
        names, parents, offsets, channels, above = [], [], [], [], [-1]
        ends, skip = 0, False
        for word in words:
            if word in ("ROOT", "JOINT"):
                parents.append(above[-1])
                above.append(len(names))
                names.append(next(words))
                assert next(words) == "{"
            elif word == "End":
                assert (next(words), next(words)) == ("Site", "{")
                above.append(-2)
                skip, ends = True, ends + 1
            elif word == "OFFSET":
                step = [float(next(words)) for _ in range(3)]
                assert not skip or np.linalg.norm(step) > 3, "an end lies some centimetres from its joint"
                offsets += [] if skip else [step]
            elif word == "CHANNELS":
                channels.append([next(words) for _ in range(int(next(words)))])
            elif word == "}":
                skip = False
                above.pop()
            elif word == "MOTION":
                break
        assert next(words) == "Frames:"
        frames = int(next(words))
        assert (next(words), next(words)) == ("Frame", "Time:")
        frame_time = float(next(words))
        rows = np.array([float(w) for w in words]).reshape(frames, -1)
        assert rows.shape[1] == sum(map(len, channels))
        return Bvh(names, parents, np.array(offsets), channels, frame_time, rows, ends)

    def joints_at(self, t: int) -> dict[str, np.ndarray]:
        """By name, in the unit of the file."""
        values, turns, places = iter(self.rows[t]), [], []
        for i, parent in enumerate(self.parents):
            place, turn = self.offsets[i].copy(), np.eye(3)
            for channel in self.channels[i]:
                value, axis = next(values), "XYZ".index(channel[0])
                if channel.endswith("position"):
                    place[axis] = value
                    continue
                c, s = np.cos(np.radians(value)), np.sin(np.radians(value))
                b, d = (axis + 1) % 3, (axis + 2) % 3
                one = np.eye(3)
                one[b, b], one[b, d], one[d, b], one[d, d] = c, -s, s, c
                turn = turn @ one
            turns.append(turn if parent < 0 else turns[parent] @ turn)
            places.append(place if parent < 0 else places[parent] + turns[parent] @ place)
        return dict(zip(self.names, places, strict=True))


@pytest.mark.parametrize("up", TO_Y)
def test_a_bvh_moves_as_the_skeleton_does(truths: Callable[[str], Truth], tmp_path: Path, up: str) -> None:
    truth = truths(up)
    write(truth, tmp_path / "a.bvh")
    file = Bvh.read((tmp_path / "a.bvh").read_text())
    tree = {n: SMPL_JOINTS[p] if p >= 0 else None for n, p in zip(SMPL_JOINTS, SMPL_PARENTS, strict=True)}
    assert {
        n: file.names[p] if p >= 0 else None for n, p in zip(file.names, file.parents, strict=True)
    } == tree
    assert file.channels[0] == [f"{a}position" for a in "XYZ"] + [f"{a}rotation" for a in "ZXY"]
    assert all(c == [f"{a}rotation" for a in "ZXY"] for c in file.channels[1:])
    assert file.offsets[0].tolist() == [0, 0, 0]
    assert file.ends == sum(j not in SMPL_PARENTS for j in range(24))
    assert len(file.rows) == T
    assert file.frame_time == pytest.approx(1001 / 30000, abs=1e-9)
    for t in HAS_POSE:
        found = file.joints_at(t)
        joints = np.stack([found[n] for n in SMPL_JOINTS]) / 100
        np.testing.assert_allclose(joints, TO_Y[up](truth.joints[t]), atol=NEAR)


def test_angles_go_on_past_90_degrees(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    write(truths("z"), tmp_path / "a.bvh")
    file = Bvh.read((tmp_path / "a.bvh").read_text())
    angles = file.rows[:, 3:].reshape(T, 24, 3)
    knee = angles[:, file.names.index("left_knee")]
    assert knee[:, 1].max() > 120
    np.testing.assert_allclose(knee[:, [0, 2]], 0, atol=1e-4)
    assert np.abs(np.diff(angles, axis=0)).max() < 60


def test_euler_angles_make_the_rotation_at_every_bend() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.uniform(-180, 180, (40, 3, 3))
    drawn[::4, :, 1], drawn[1::4, :, 1] = 90, -90  # where a and c turn about one axis
    drawn[2::4, 0] = np.round(drawn[2::4, 0] / 90) * 90
    turns = Rotation.from_euler("ZXY", drawn.reshape(-1, 3), degrees=True).as_matrix().reshape(40, 3, 3, 3)
    found = zxy_degrees(turns)
    again = Rotation.from_euler("ZXY", found.reshape(-1, 3), degrees=True).as_matrix().reshape(40, 3, 3, 3)
    np.testing.assert_allclose(again, turns, atol=1e-9)


# --- gaps ---------------------------------------------------------------------------------------------


def test_gaps_are_bridged_in_motion(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    truth = truths("y")
    said = write(truth, tmp_path / "a.bvh")
    assert said == [
        "4 of 12 frames have no pose: 2 are interpolated between those around them, 2 before the first or "
        "after the last hold that one.",
        "1 of 12 frames have a pose that is not to be trusted: it is kept.",
    ]
    assert write(truth, tmp_path / "a.glb") == said
    file, twin = Bvh.read((tmp_path / "a.bvh").read_text()), Gltf.read((tmp_path / "a.glb").read_bytes())
    rotations, transl = truth.rotations.clone(), truth.transl.clone()
    for held, of in ((0, 1), (11, 10)):
        rotations[held], transl[held] = truth.rotations[of], truth.transl[of]
    for t in (5, 6):
        share = (t - 4) / 3
        way = matrix_to_axis_angle(truth.rotations[4].mT @ truth.rotations[7])
        rotations[t] = truth.rotations[4] @ axis_angle_to_matrix(share * way)
        transl[t] = (1 - share) * truth.transl[4] + share * truth.transl[7]
    want, _ = pose_keypoints(body().keypoints, rotations, truth.betas, transl)
    for t in LOST:
        found = file.joints_at(t)
        np.testing.assert_allclose(np.stack([found[n] for n in SMPL_JOINTS]) / 100, want[t], atol=NEAR)
        np.testing.assert_allclose(twin.nodes_at(t)[:24, :3, 3], want[t], atol=NEAR)


def test_one_pose_is_enough(tmp_path: Path) -> None:
    truth = make(tmp_path / "results.zarr", "y", tuple(t for t in range(T) if t != 4))
    write(truth, tmp_path / "a.bvh")
    file = Bvh.read((tmp_path / "a.bvh").read_text())
    assert (file.rows == file.rows[4]).all()


# --- TRC ----------------------------------------------------------------------------------------------


def opensim_tokens(line: str) -> list[str]:
    """As OpenSim's FileAdapter::tokenize does: what follows the last tab counts unless it is empty."""
    words = line.split("\t")
    return words[:-1] if words[-1] == "" else words


@pytest.mark.parametrize("up", ["z", "y", "-y"])
def test_a_trc_holds_the_markers_with_gaps_where_nothing_is_sure(
    truths: Callable[[str], Truth], tmp_path: Path, up: str
) -> None:
    truth = truths(up)
    said = write(truth, tmp_path / "walk.trc", 0, 2)
    assert said == [f"{4} of {T - 2} frames are not valid: they are left empty."]
    head, keys, values, names, axes, *rows = (tmp_path / "walk.trc").read_text().splitlines()
    assert head.split("\t") == ["PathFileType", "4", "(X/Y/Z)", "walk.trc"]
    meta = dict(zip(keys.split("\t"), values.split("\t"), strict=True))
    assert float(meta["DataRate"]) == pytest.approx(float(RATE), abs=1e-6)
    assert (meta["NumFrames"], meta["NumMarkers"], meta["Units"]) == (str(T - 2), "25", "m")
    assert (meta["OrigDataStartFrame"], meta["CameraRate"]) == ("2", meta["DataRate"])
    assert opensim_tokens(names)[:2] == ["Frame#", "Time"]
    assert opensim_tokens(names)[2::3] == [n.replace("MidHip", "CHip") for n in BODY_25]
    assert opensim_tokens(axes)[2:5] == ["X1", "Y1", "Z1"]
    assert opensim_tokens(axes)[-1] == "Z25"
    assert len(rows) == T - 2
    to = POSE2SIM if up == "z" else TO_Y[up]
    for t, row in enumerate(rows, start=2):
        cells = opensim_tokens(row)
        assert len(cells) == 2 + 3 * 25, "OpenSim refuses the file otherwise"
        assert row.count("\t") == axes.count("\t"), (
            "readers of tables take the first column for an index otherwise"
        )
        assert int(cells[0]) == t
        assert float(cells[1]) == pytest.approx(t / float(RATE), abs=1e-6)
        if t in (*LOST, DOUBTED):
            assert set(cells[2:]) == {""}
            continue
        points = np.array(cells[2:], float).reshape(25, 3)
        np.testing.assert_allclose(points, to(truth.points[t]), atol=NEAR)
        assert points[BODY_25.index("Neck"), 1] > points[BODY_25.index("MidHip"), 1] + 0.3


# --- SMPL parameters ----------------------------------------------------------------------------------


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
    assert found["poses"].shape == (T, 72)
    assert found["trans"].shape == found["joints"][:, 0].shape == (T, 3)
    assert found["gender"].item() == "neutral"
    assert found["mocap_framerate"].item() == found["mocap_frame_rate"].item() == float(RATE)
    assert (found["model"].item(), found["model_sha256"].item()) == (body().name, body().sha256)
    np.testing.assert_allclose(found["betas"], truth.betas, atol=1e-7)
    assert [t for t in range(T) if np.isnan(found["poses"][t]).any()] == list(LOST)
    assert [t for t in range(T) if not found["valid"][t]] == sorted((*LOST, DOUBTED))
    rotations = axis_angle_to_matrix(torch.from_numpy(found["poses"]).double().reshape(T, 24, 3))
    joints, _ = pose_keypoints(
        body().keypoints,
        rotations,
        torch.from_numpy(found["betas"]).double(),
        torch.from_numpy(found["trans"]),
    )
    want = TO_Z[up](truth.joints[HAS_POSE])
    np.testing.assert_allclose(joints[HAS_POSE], want, atol=NEAR)
    np.testing.assert_allclose(found["joints"][HAS_POSE], want, atol=NEAR)
    assert (want[:, SMPL_JOINTS.index("head"), 2] > want[:, 0, 2] + 0.3).all(), "it stands along z"


# --- OBJ ----------------------------------------------------------------------------------------------


def read_obj(text: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [line.split() for line in text.splitlines()]
    vertices = np.array([r[1:] for r in rows if r[0] == "v"], float)
    return vertices, np.array([r[1:] for r in rows if r[0] == "f"], int) - 1


def test_an_obj_is_the_mesh_of_one_frame(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    truth = truths("z")
    assert write(truth, tmp_path / "a.obj", 0, 7) == []
    vertices, faces = read_obj((tmp_path / "a.obj").read_text())
    np.testing.assert_allclose(vertices, TO_Y["z"](truth.vertices(7)), atol=NEAR)
    np.testing.assert_array_equal(faces, body().faces)
    with pytest.raises(InputError, match="holds one frame, and 0 to 4 are more"):
        write(truth, tmp_path / "b.obj", 0, 0, 5)


# --- worlds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("up", TO_Y)
def test_worlds_are_turned_and_never_mirrored(up: str) -> None:
    axis, points = direction(up), np.random.default_rng(0).normal(size=(5, 3))
    for turn, to in ((facing(axis), "y"), (facing_as_pose2sim(axis), "y"), (facing(axis, "z"), "z")):
        assert np.linalg.det(turn) == pytest.approx(1)
        np.testing.assert_array_equal(turn @ axis, direction(to))
        # The words say what the matrix does.
        said = [(-1 if "-" in w else 1) * points[:, "xyz".index(w[-1])] for w in axes_of(turn).split(", ")]
        np.testing.assert_allclose(points @ turn.T, np.stack(said, -1))
    np.testing.assert_allclose(points @ facing(axis).T, TO_Y[up](points))
    np.testing.assert_array_equal(rig(axis).up, axis)


# --- the command --------------------------------------------------------------------------------------


def command(
    capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch, *words: object
) -> tuple[int, str, str]:
    patch.setattr(sys, "argv", ["run_pipeline.py", "export", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_pipeline.main()
    return int(ended.value.code or 0), *capfd.readouterr()


@pytest.mark.parametrize("suffix", [".glb", ".bvh", ".trc", ".npz", ".obj", ".GLB"])
def test_the_command_says_what_it_wrote(
    truths: Callable[[str], Truth], tmp_path: Path, capfd: Any, monkeypatch: Any, suffix: str
) -> None:
    out, file = truths("z").store.path, tmp_path / "new" / f"a{suffix}"
    words = ["--start", 1] if suffix == ".obj" else ["--start", 1, "--end", 5]
    contents = []
    for given in (out, out.parent):  # the store, and the folder of the run
        status, said, errors = command(capfd, monkeypatch, given, file, *words)
        assert status == 0, errors
        contents.append(file.read_bytes())
        assert str(file) in said
        assert ("centimetres" if suffix == ".bvh" else "metres") in said
        axes = {".trc": "y, z, x", ".npz": "x, y, z"}.get(suffix, "x, z, -y")
        assert f"x, y, z of the file are {axes} of the calibration's world" in said
        assert (suffix == ".npz") == ("betas are those of the body anny" in said)
        assert ("frame 1," if suffix == ".obj" else "frames 1 to 4") in said
    assert [f.name for f in file.parent.iterdir()] == [file.name]
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a.fbx", "the suffix says what is written, and there is none for this. Choose .glb"),
        ("new/deep/a.glb --person 3", "there is no person 3; those there are: 0"),
        ("a.glb --start 8 --end 20", "there is no frame 19; those that are done are 0 to 11"),
        ("a.glb --start 5 --end 7", "person 0 has nowhere a pose in frames 5 to 6"),
        ("a.trc --start 3 --end 4", "person 0 has nowhere a valid pose in frame 3"),
        ("a.obj --start 0", "person 0 has nowhere a pose in frame 0"),
        ("a.glb --body SMPL_NEUTRAL.pkl", "SMPL_NEUTRAL.pkl: is not the body that"),
        ("a.glb --body gone.pkl", "cannot read the body model"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    truths: Callable[[str], Truth], tmp_path: Path, capfd: Any, monkeypatch: Any, words: str, message: str
) -> None:
    smpl_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    status, said, errors = command(capfd, monkeypatch, truths("z").store.path, *words.split())
    assert status == 2
    assert message in errors
    assert said == ""
    assert [f.name for f in tmp_path.iterdir()] == ["SMPL_NEUTRAL.pkl"]


def test_half_a_run_is_not_taken_for_a_whole(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    truth = make(tmp_path / "results.zarr")
    truth.store._array("done")[2] = False
    status, _, errors = command(capfd, monkeypatch, tmp_path, tmp_path / "a.bvh")
    assert status == 2
    assert "only 10 of 12 frames are done" in errors
    assert "--end 10" in errors
    status, _, _ = command(capfd, monkeypatch, tmp_path, tmp_path / "a.bvh", "--end", "10")
    assert status == 0
    assert len(Bvh.read((tmp_path / "a.bvh").read_text()).rows) == 10


def test_a_body_that_has_gone_is_named(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    make(tmp_path / "results.zarr", config={"body": str(tmp_path / "SMPL_NEUTRAL.pkl")})
    status, _, errors = command(capfd, monkeypatch, tmp_path, tmp_path / "a.bvh")
    assert status == 2
    assert "SMPL_NEUTRAL.pkl: the body that" in errors
    assert "--body FILE" in errors


def test_no_store_and_no_place_to_write(
    truths: Callable[[str], Truth], tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    status, _, errors = command(capfd, monkeypatch, tmp_path, tmp_path / "a.glb")
    assert status == 2
    assert "no results store here" in errors
    (tmp_path / "a.glb").mkdir()
    status, _, errors = command(capfd, monkeypatch, truths("z").store.path, tmp_path / "a.glb")
    assert status == 2
    assert "Is a directory" in errors
