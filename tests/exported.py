"""A store of a known motion, and parsers of exported files that are not those of the package."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch
from scipy.spatial.transform import Rotation

from models.body import Body, load_body, pose_keypoints
from models.formats.take import Take
from pipeline.batches import FitBatch, KeypointBatch, SmplParams, Status
from pipeline.cameras import Rig
from pipeline.contents import Contents
from pipeline.skeleton import SMPL_24
from pipeline.store import Store
from stages.export import ExportOptions, export_person, read_take

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
    angles[:, SMPL_24.index("left_knee")] = 2.6 * np.sin(np.pi * t[:, None]) * [1, 0, 0]
    angles[:, SMPL_24.index("right_elbow"), 1] = 2.3 * t
    local = Rotation.from_rotvec(angles.reshape(-1, 3)).as_matrix().reshape(T, 24, 3, 3)
    # The rest pose stands along y: any rotation that takes y to up does, and its heading turns.
    upright, _ = Rotation.align_vectors(axis[None], np.array([[0.0, 1, 0]]))
    heading = Rotation.from_rotvec(axis * (0.3 + 4 * t[:, None]))
    local[:, 0] = (heading * upright).as_matrix() @ local[:, 0]
    # As the store keeps them, so that what is compared is what was stored.
    rotvec = torch.from_numpy(Rotation.from_matrix(local.reshape(-1, 3, 3)).as_rotvec().astype(np.float32))
    rotations = roma.rotvec_to_rotmat(rotvec.double()).reshape(T, 24, 3, 3)
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


HAS_POSE = [t for t in range(T) if t not in LOST]


def write(truth: Truth, file: Path, *args: Any) -> list[str]:
    person, start, stop = (*args, 0, 0, None)[:3] if not args else (*args, *(0, 0, None)[len(args) :])
    _, warnings = export_person(truth.store, body(), file, person, ExportOptions(start, stop))
    return warnings


def whole_take(truth: Truth, start: int = 0, stop: int | None = None) -> Take:
    """Frames ``start:stop`` in memory."""
    take = read_take(truth.store, 0, start, stop)
    return take.cut(0, len(take))


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


def read_obj(text: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [line.split() for line in text.splitlines()]
    vertices = np.array([r[1:] for r in rows if r[0] == "v"], float)
    return vertices, np.array([r[1:] for r in rows if r[0] == "f"], int) - 1


def opensim_tokens(line: str) -> list[str]:
    """As OpenSim's FileAdapter::tokenize does: what follows the last tab counts unless it is empty."""
    words = line.split("\t")
    return words[:-1] if words[-1] == "" else words
