"""Binary glTF 2.0: the skinned, animated body."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from tempfile import TemporaryFile
from typing import Any, Final

import numpy as np
import roma
import torch
from numpy.typing import DTypeLike, NDArray

from models.body import Body
from models.formats.long_take import LongTake
from models.formats.take import rest_joints, rest_vertices, skin_weights
from models.formats.traits import Traits
from pipeline.array_types import Array
from pipeline.cameras import Rig
from pipeline.skeleton import Skeleton

TRAITS: Final = Traits(
    suffix=".glb",
    description="skinned, animated body: Blender, three.js, Windows",
    blend_shapes=False,
)


def encode(
    take: LongTake, body: Body, name: str, cameras: Sequence[Mapping[str, Any]] = ()
) -> Iterator[bytes]:
    """Skinned, animated body; gaps are filled. cameras: of ``scene_cameras``.

    Metres; seconds from the take's first frame. Rest pose and skin weights are the body's in the shape of the
    take; all weights are kept, in as many sets of four as that takes, the largest first. Pose blend shapes
    cannot be expressed (``pose_blend_mm``).
    """
    take = take.without_gaps()
    rest, vertices = rest_joints(body, take.betas), rest_vertices(body, take.betas)
    buffer = _Buffer()
    attributes = {
        "POSITION": buffer.add(vertices, bounds=True, target=_VERTICES),
        "NORMAL": buffer.add(_normals(vertices, body.faces), target=_VERTICES),
    }
    joints, weights = skin_weights(body)
    # Sets of four: viewers that know one only take the first and scale it up to 1.
    missing = ((0, 0), (0, -joints.shape[1] % 4))
    joints, weights = np.pad(joints.astype(np.uint8), missing), np.pad(weights, missing)
    for i in range(joints.shape[1] // 4):
        attributes[f"JOINTS_{i}"] = buffer.add(joints[:, 4 * i : 4 * i + 4], target=_VERTICES)
        attributes[f"WEIGHTS_{i}"] = buffer.add(weights[:, 4 * i : 4 * i + 4], target=_VERTICES)
    corners = body.faces.reshape(-1).astype(np.uint16 if len(vertices) < 65535 else np.uint32)
    indices = buffer.add(corners, target=_INDICES)
    joints_count = len(body.skeleton)
    bind = np.tile(np.eye(4), (joints_count, 1, 1))
    bind[:, 3, :3] = -rest  # columns of the matrix, one after the other
    inverse = buffer.add(bind.reshape(joints_count, 16))
    skin = {"joints": [*range(joints_count)], "skeleton": 0, "inverseBindMatrices": inverse}
    primitive = {"attributes": attributes, "indices": indices, "material": 0}
    document = {
        "asset": {"version": "2.0", "generator": f"multispin {metadata.version('multispin')}"},
        "scene": 0,
        "scenes": [{"nodes": [0, *range(joints_count, joints_count + 1 + len(cameras))]}],
        "nodes": [
            *_joint_nodes(body.skeleton, rest),
            {"name": "body", "mesh": 0, "skin": 0},
            *({**camera["node"], "camera": i} for i, camera in enumerate(cameras)),
        ],
        "meshes": [{"name": body.name, "primitives": [primitive]}],
        "materials": [_SKIN],
        "skins": [skin],
        "animations": [_animation(take, len(body.skeleton), buffer)],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": buffer.size}],
    }
    if cameras:
        document["cameras"] = [camera["camera"] for camera in cameras]
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + buffer.size
    yield struct.pack("<4sII", b"glTF", 2, length)
    yield struct.pack("<I4s", len(text), b"JSON") + text
    yield struct.pack("<I4s", buffer.size, b"BIN\0")
    yield bytes(buffer.data)
    yield from _keys(take, rest)


def scene_cameras(rig: Rig, turn: Array, videos: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rig's cameras as ``camera`` and ``node`` of glTF, in a world turned by ``turn`` (3, 3).

    A camera of glTF looks along its −z, y up, through the middle of the picture. What it lacks is in the
    node's extras, Blender's custom properties: the video, its size, K, distortion, and the principal point as
    Blender's shift.
    """
    found = []
    for v, name in enumerate(rig.names):
        (w, h), k = (int(n) for n in rig.size[v]), rig.K[v]
        axes = turn @ rig.R[v].T @ np.diag([1.0, -1, -1])
        extras = {
            "video": videos.get(name, ""),
            "size": [w, h],
            "K": k.tolist(),
            "distortion": rig.dist[v].tolist(),
            "fisheye": bool(rig.fisheye[v]),
            "shift_x": ((w - 1) / 2 - k[0, 2]) / max(w, h),
            "shift_y": (k[1, 2] - (h - 1) / 2) / max(w, h),
        }
        lens = {
            "yfov": 2 * math.atan(h / 2 / k[1, 1]),
            "aspectRatio": w * k[1, 1] / (h * k[0, 0]),
            "znear": 0.01,
        }
        node = {
            "name": name,
            "translation": (turn @ rig.centres[v]).tolist(),
            "rotation": roma.rotmat_to_unitquat(torch.from_numpy(axes)).tolist(),
            "extras": extras,
        }
        camera = {"name": name, "type": "perspective", "perspective": lens}
        found.append({"camera": camera, "node": node})
    return found


def _joint_nodes(skeleton: Skeleton, rest: Array) -> list[dict[str, Any]]:
    nodes = []
    for j, joint in enumerate(skeleton.names):
        step = rest[j] - rest[skeleton.parents[j]] if j else rest[0]
        children = [c for c, parent in enumerate(skeleton.parents) if parent == j]
        node = {"name": joint, "translation": step.tolist()}
        nodes.append(node | ({"children": children} if children else {}))
    return nodes


def _animation(take: LongTake, joints: int, buffer: _Buffer) -> dict[str, Any]:
    """Translation of the root and rotation of every joint, a key for each frame: what ``_keys`` gives."""
    times = buffer.add(take.time_s - take.time_s[0], bounds=True)
    moves = [(0, "translation", buffer.expect(len(take), 3))]
    moves += [(j, "rotation", buffer.expect(len(take), 4)) for j in range(joints)]
    return {
        "name": "motion",
        "samplers": [{"input": times, "output": output} for _, _, output in moves],
        "channels": [
            {"sampler": i, "target": {"node": node, "path": path}} for i, (node, path, _) in enumerate(moves)
        ],
    }


def _keys(take: LongTake, rest: Array) -> Iterator[bytes]:
    """Translations of the root, then rotations of each joint over all frames, by way of a file."""
    frames, last = len(take), None
    with TemporaryFile() as file:
        for at, piece in zip(range(0, frames, take.piece), take.pieces(), strict=True):
            quaternions = roma.rotmat_to_unitquat(torch.from_numpy(piece.rotations)).numpy()
            # q and −q are one rotation, but not to a viewer that goes straight from one to the other.
            before = np.concatenate([quaternions[:1] if last is None else last[None], quaternions[:-1]])
            away = np.cumsum((quaternions * before).sum(-1) < 0, 0) % 2 == 1
            paths = np.where(away[..., None], -quaternions, quaternions)
            last = paths[-1]
            file.seek(12 * at)
            file.write((piece.transl + rest[0]).astype("<f4").tobytes())
            for j in range(len(rest)):
                file.seek(12 * frames + 16 * (j * frames + at))
                file.write(paths[:, j].astype("<f4").tobytes())
        file.seek(0)
        while content := file.read(1 << 20):
            yield content


_SKIN: Final = {
    "name": "skin",
    "pbrMetallicRoughness": {
        "baseColorFactor": [0.6, 0.62, 0.66, 1],
        "metallicFactor": 0,
        "roughnessFactor": 0.8,
    },
}
_VERTICES: Final = 34962
_INDICES: Final = 34963


class _Buffer:
    """Binary chunk of a glTF file as it grows, with what describes it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.size = 0
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, array: NDArray[Any], *, bounds: bool = False, target: int | None = None) -> int:
        """Number of the accessor of rows (N,) or (N, 3 | 4 | 16); floats become single precision."""
        array = np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else None)
        rows = array.reshape(len(array), -1)
        added = self.expect(*rows.shape, array.dtype, target)
        if bounds:
            self.accessors[added] |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        self.data += array.astype(array.dtype.newbyteorder("<")).tobytes()
        self.data += bytes(-len(self.data) % 4)
        return added

    def expect(self, count: int, width: int, dtype: DTypeLike = np.float32, target: int | None = None) -> int:
        """Number of the accessor of rows (count, width), whose bytes come in the order of these calls."""
        dtype = np.dtype(dtype)
        kinds = {"float32": 5126, "uint8": 5121, "uint16": 5123, "uint32": 5125}
        types = {1: "SCALAR", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
        length = count * width * dtype.itemsize
        view: dict[str, Any] = {"buffer": 0, "byteOffset": self.size, "byteLength": length}
        self.views.append(view | ({"target": target} if target else {}))
        self.accessors.append({
            "bufferView": len(self.views) - 1,
            "componentType": kinds[dtype.name],
            "count": count,
            "type": types[width],
        })  # fmt: skip
        self.size += length + -length % 4
        return len(self.accessors) - 1


def _normals(vertices: Array, faces: NDArray[np.int32]) -> Array:
    """Vertex normals (V, 3) of length 1: the mean of the faces around, by their area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    across = np.cross(b - a, c - a)
    total = np.zeros_like(vertices)
    for i in range(3):
        np.add.at(total, faces[:, i], across)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 0, total / np.where(length > 0, length, 1), [0, 1, 0])
