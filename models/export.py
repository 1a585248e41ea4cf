"""A person in the files of other tools: glTF, BVH, TRC, SMPL parameters as AMASS names them, OBJ.

From arrays to the content of a file. Each format has the world that its users expect: y up for glTF, BVH, TRC
and OBJ, z up for AMASS. ``facing`` gives the rotation, ``Take.turned`` applies it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import metadata
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from models.body import Body
from pipeline.joints import BODY_25, SMPL_JOINTS, SMPL_PARENTS

Array = NDArray[np.float64]

TRC_MARKERS: Final = tuple("CHip" if name == "MidHip" else name for name in BODY_25)
"""BODY_25 under Pose2Sim's names, which its OpenSim models know."""


@dataclass(frozen=True, eq=False)
class Take:
    """One person over T frames. NaN where there is no pose. float64."""

    first: int
    """Number of the first frame."""
    rate: Fraction
    """Frames a second."""
    time_s: Array
    """(T,)"""
    rotations: Array
    """(T, 24, 3, 3) the root's, body → world, then each joint's relative to its parent."""
    betas: Array
    """(B,)"""
    transl: Array
    """(T, 3) metres, world: the pelvis lies at J_pelvis(betas) + transl."""
    joints: Array
    """(T, 24, 3) metres, world."""
    points: Array
    """(T, 25, 3) the fitted body's BODY_25 points, metres, world."""
    valid: NDArray[np.bool_]
    """(T,) whether the fit was accepted."""

    @property
    def posed(self) -> NDArray[np.bool_]:
        """(T,) whether there is a pose."""
        return np.asarray(np.isfinite(self.rotations).all((1, 2, 3)) & np.isfinite(self.transl).all(1))

    def turned(self, turn: Array, body: Body) -> Take:
        """The same in another world: ``turn`` (3, 3) takes the old to the new, about the origin."""
        pelvis = rest_joints(body, self.betas)[0]
        rotations = self.rotations.copy()
        rotations[:, 0] = turn @ rotations[:, 0]
        return replace(
            self,
            rotations=rotations,
            transl=(self.transl + pelvis) @ turn.T - pelvis,
            joints=self.joints @ turn.T,
            points=self.points @ turn.T,
        )

    def without_gaps(self) -> Take:
        """The same with a rotation and a place in every frame; joints and points are left as they are.

        Between frames that have a pose: slerp of each joint's rotation, and straight on. Before the first and
        after the last one: that one.

        Raises ``ValueError`` when no frame has a pose.
        """
        known = self.posed
        if not known.any():
            raise ValueError("no frame has a pose")
        if known.all():
            return self
        at = np.clip(self.time_s, self.time_s[known][0], self.time_s[known][-1])
        rotations, transl = self.rotations.copy(), self.transl.copy()
        if known.sum() == 1:
            rotations[:], transl[:] = rotations[known], transl[known]
            return replace(self, rotations=rotations, transl=transl)
        for j in range(24):
            path = Slerp(self.time_s[known], Rotation.from_matrix(self.rotations[known, j]))
            rotations[~known, j] = path(at[~known]).as_matrix()
        for axis in range(3):
            transl[~known, axis] = np.interp(at[~known], self.time_s[known], self.transl[known, axis])
        return replace(self, rotations=rotations, transl=transl)


def facing(up: Array, to: str = "y") -> Array:
    """The rotation (3, 3) that takes the world's ``up`` (3,), a unit vector, to +y or to +z.

    An axis of the world goes there by quarter turns about one axis, x where that will do. So z up goes to y
    up as (x, y, z) → (x, z, −y), which Blender undoes when it imports: its coordinates are those of the z-up
    world.
    """
    x, y, z = np.eye(3)
    kept = z if abs(up[0]) > 0.9 else x
    across = kept - up * (up @ kept)
    across /= np.linalg.norm(across)
    y_up = np.outer(kept, across) + np.outer(y, up) + np.outer(np.cross(kept, y), np.cross(across, up))
    if to == "z":
        y_up = np.stack([x, -z, y]) @ y_up
    return np.asarray(y_up + 0.0)  # no −0


def facing_as_pose2sim(up: Array) -> Array:
    """``facing`` for TRC: z up goes to y up as (x, y, z) → (y, z, x), as Pose2Sim turns its own files."""
    return np.roll(np.eye(3), 1, axis=1) @ facing(up, "z") if up[2] > 0.7 else facing(up)


def axes_of(turn: Array) -> str:
    """A rotation in words: ``x, z, -y`` for (x, y, z) → (x, z, −y), with the shares of each where axes
    mix."""
    if np.abs(turn).max(1).min() < 0.999:
        return ", ".join(
            "".join(f"{n:+.2f}{axis}" for n, axis in zip(row, "xyz", strict=True)) for row in turn
        )
    return ", ".join(f"{'-' if row.sum() < 0 else ''}{'xyz'[int(np.abs(row).argmax())]}" for row in turn)


def rest_joints(body: Body, betas: Array) -> Array:
    """(24, 3) joints of a shape (B,) in the rest pose, metres."""
    k = body.keypoints
    return np.asarray(k.joints_template.numpy() + k.joints_shapedirs.numpy() @ betas)


def rest_vertices(body: Body, betas: Array) -> Array:
    """(V, 3) vertices of a shape (B,) in the rest pose, metres."""
    return np.asarray(body.v_template.double().numpy() + body.shapedirs.double().numpy() @ betas)


def pose_blend_mm(body: Body, rotations: Array) -> float:
    """How far pose blend shapes move a vertex at most in poses (T, 24, 3, 3): what skinning alone leaves out.

    About: of up to two dozen frames spread over them.
    """
    if not body.posedirs.any():
        return 0.0
    chosen = rotations[:: max(1, -(-len(rotations) // 24)), 1:]
    feature = torch.from_numpy((chosen - np.eye(3)).reshape(len(chosen), 207)).to(body.posedirs.dtype)
    moved = (feature @ body.posedirs).reshape(len(chosen), -1, 3)
    return 1000 * float(moved.norm(dim=-1).max())


def to_glb(take: Take, body: Body) -> bytes:
    """The skinned, animated body as binary glTF 2.0. ``take`` in a world with y up; gaps are filled.

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
    for i, (joints, weights) in enumerate(_weight_sets(body.weights.double().numpy())):
        attributes[f"JOINTS_{i}"] = buffer.add(joints, target=_VERTICES)
        attributes[f"WEIGHTS_{i}"] = buffer.add(weights, target=_VERTICES)
    corners = body.faces.reshape(-1).astype(np.uint16 if len(vertices) < 65535 else np.uint32)
    indices = buffer.add(corners, target=_INDICES)
    bind = np.tile(np.eye(4), (24, 1, 1))
    bind[:, 3, :3] = -rest  # columns of the matrix, one after the other
    inverse = buffer.add(bind.reshape(24, 16))
    times = buffer.add(take.time_s - take.time_s[0], bounds=True)
    moves = [(0, "translation", buffer.add(take.transl + rest[0]))]
    quaternions = Rotation.from_matrix(take.rotations.reshape(-1, 3, 3)).as_quat().reshape(-1, 24, 4)
    for j, path in enumerate(np.moveaxis(quaternions, 1, 0)):
        # q and −q are one rotation, but not to a viewer that goes straight from one to the other.
        away = np.cumsum(np.r_[0, (path[1:] * path[:-1]).sum(1) < 0]) % 2 == 1
        moves.append((j, "rotation", buffer.add(np.where(away[:, None], -path, path))))

    nodes: list[dict[str, Any]] = []
    for j, name in enumerate(SMPL_JOINTS):
        step = rest[j] - rest[SMPL_PARENTS[j]] if j else rest[0]
        children = [c for c, parent in enumerate(SMPL_PARENTS) if parent == j]
        nodes.append(
            {"name": name, "translation": step.tolist(), **({"children": children} if children else {})}
        )
    nodes.append({"name": "body", "mesh": 0, "skin": 0})
    document = {
        "asset": {"version": "2.0", "generator": f"multispin {metadata.version('multispin')}"},
        "scene": 0,
        "scenes": [{"nodes": [0, 24]}],
        "nodes": nodes,
        "meshes": [
            {
                "name": body.name,
                "primitives": [{"attributes": attributes, "indices": indices, "material": 0}],
            }
        ],
        "materials": [
            {
                "name": "skin",
                "pbrMetallicRoughness": {
                    "baseColorFactor": [0.6, 0.62, 0.66, 1],
                    "metallicFactor": 0,
                    "roughnessFactor": 0.8,
                },
            }
        ],
        "skins": [{"joints": [*range(24)], "skeleton": 0, "inverseBindMatrices": inverse}],
        "animations": [
            {
                "name": "motion",
                "samplers": [{"input": times, "output": output} for _, _, output in moves],
                "channels": [
                    {"sampler": i, "target": {"node": node, "path": path}}
                    for i, (node, path, _) in enumerate(moves)
                ],
            }
        ],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.data)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(buffer.data), b"BIN\0") + bytes(buffer.data)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


_VERTICES: Final = 34962
_INDICES: Final = 34963


class _Buffer:
    """The binary chunk of a glTF file as it grows, with what describes it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, array: NDArray[Any], *, bounds: bool = False, target: int | None = None) -> int:
        """The number of the accessor of rows (N,) or (N, 3 | 4 | 16); floats become single precision."""
        array = np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else None)
        kinds = {"float32": 5126, "uint8": 5121, "uint16": 5123, "uint32": 5125}
        types = {1: "SCALAR", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
        rows = array.reshape(len(array), -1)
        view: dict[str, Any] = {"buffer": 0, "byteOffset": len(self.data), "byteLength": array.nbytes}
        self.views.append(view | ({"target": target} if target else {}))
        accessor: dict[str, Any] = {
            "bufferView": len(self.views) - 1,
            "componentType": kinds[array.dtype.name],
            "count": len(rows),
            "type": types[rows.shape[1]],
        }
        if bounds:
            accessor |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        self.accessors.append(accessor)
        self.data += array.astype(array.dtype.newbyteorder("<")).tobytes()
        self.data += bytes(-len(self.data) % 4)
        return len(self.accessors) - 1


def _weight_sets(weights: Array) -> list[tuple[NDArray[np.uint8], Array]]:
    """Weights (V, 24) as sets of four joints and their weights, (V, 4) each, until none is left.

    Viewers that know one set only take the first and scale it up to 1.
    """
    sets = -(-int((weights > 0).sum(1).max()) // 4)
    order = np.argsort(-weights, axis=1, kind="stable")[:, : 4 * sets]
    sorted_ = np.take_along_axis(weights / weights.sum(1, keepdims=True), order, 1)
    joints = np.where(sorted_ > 0, order, 0).astype(np.uint8)  # a weight of 0 goes with joint 0, says glTF
    return [(joints[:, i : i + 4], sorted_[:, i : i + 4]) for i in range(0, 4 * sets, 4)]


def _normals(vertices: Array, faces: NDArray[np.int32]) -> Array:
    """(V, 3) of length 1: the mean of the faces around, by their area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    across = np.cross(b - a, c - a)
    total = np.zeros_like(vertices)
    for i in range(3):
        np.add.at(total, faces[:, i], across)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 0, total / np.where(length > 0, length, 1), [0, 1, 0])


def to_bvh(take: Take, body: Body) -> str:
    """The skeleton's motion as BVH. ``take`` in a world with y up; gaps are filled.

    Centimetres, degrees, rotations in the order Z, X, Y. The rest pose is SMPL's T-pose, facing +z. The
    root's OFFSET is 0: its position channels are the pelvis' place, to programs that add the two and to those
    that do not. An End Site is the vertex of the last joint's skin that is farthest from it.
    """
    take = take.without_gaps()
    rest, vertices = rest_joints(body, take.betas), rest_vertices(body, take.betas)
    owner = body.weights.numpy().argmax(1)
    lines, order = ["HIERARCHY"], list[int]()

    def offset(step: Array) -> str:
        return "OFFSET " + " ".join(f"{100 * x:.6f}" for x in step)

    def describe(j: int, indent: str) -> None:
        order.append(j)
        step = rest[j] - rest[SMPL_PARENTS[j]] if j else np.zeros(3)
        channels = "3 " if j else "6 Xposition Yposition Zposition "
        inside = indent + "\t"
        lines.extend((
            f"{indent}{'JOINT' if j else 'ROOT'} {SMPL_JOINTS[j]}", f"{indent}{{", inside + offset(step),
            f"{inside}CHANNELS {channels}Zrotation Xrotation Yrotation",
        ))  # fmt: skip
        children = [c for c, parent in enumerate(SMPL_PARENTS) if parent == j]
        for child in children:
            describe(child, inside)
        if not children:
            skin = vertices[owner == j] - rest[j]
            end = skin[np.linalg.norm(skin, axis=1).argmax()] if len(skin) else step
            lines.extend((f"{inside}End Site", f"{inside}{{", f"{inside}\t{offset(end)}", f"{inside}}}"))
        lines.append(f"{indent}}}")

    describe(0, "")
    angles = zxy_degrees(take.rotations)[:, order].reshape(len(take.time_s), -1)
    rows = np.concatenate([100 * (take.transl + rest[0]), angles], 1)
    lines += ["MOTION", f"Frames: {len(rows)}", f"Frame Time: {float(1 / take.rate):.9f}"]
    form = " ".join(["%.6f"] * rows.shape[1])
    lines += [form % tuple(row) for row in rows.tolist()]
    return "\n".join(lines) + "\n"


def zxy_degrees(rotations: Array) -> Array:
    """Rotations (T, ..., 3, 3) = Rz(a) Rx(b) Ry(c) → (a, b, c) (T, ..., 3), degrees, without jumps over time.

    Of the two triples that make a rotation, (a, b, c) and (a + 180°, 180° − b, c + 180°), and of all that are
    whole turns from these, the one next to the frame before: a joint that bends past 90° can be interpolated.
    """
    r = rotations
    a = np.arctan2(-r[..., 0, 1], r[..., 1, 1])
    b = np.arctan2(r[..., 2, 1], np.hypot(r[..., 0, 1], r[..., 1, 1]))
    # Of what is left when a is taken away: right where b is ±90°, too, and a says nothing.
    c = np.arctan2(
        np.cos(a) * r[..., 0, 2] + np.sin(a) * r[..., 1, 2],
        np.cos(a) * r[..., 0, 0] + np.sin(a) * r[..., 1, 0],
    )
    angles = np.degrees(np.stack([a, b, c], -1))
    other = angles * [1, -1, 1] + 180
    for t in range(1, len(angles)):
        near = [x - 360 * np.rint((x - angles[t - 1]) / 360) for x in (angles[t], other[t])]
        farther = np.abs(near[1] - angles[t - 1]).sum(-1) > np.abs(near[0] - angles[t - 1]).sum(-1)
        angles[t] = np.where(farther[..., None], *near)
    return np.asarray(angles)


def to_trc(take: Take, name: str) -> str:
    """The BODY_25 points as a marker file for OpenSim. ``take`` in a world with y up; ``name`` of the file.

    Metres. Frame numbers and times are the recording's. Frames that are not valid have empty cells. Every row
    ends in a tab, as OpenSim writes them: it does not count a last cell that is empty, and refuses the row.
    """
    rate, count, markers = f"{float(take.rate):.10g}", len(take.time_s), len(TRC_MARKERS)
    heads = "DataRate CameraRate NumFrames NumMarkers Units OrigDataRate OrigDataStartFrame OrigNumFrames"
    values = (rate, rate, str(count), str(markers), "m", rate, str(take.first), str(count))
    lines = [
        f"PathFileType\t4\t(X/Y/Z)\t{name}",
        heads.replace(" ", "\t"),
        "\t".join(values),
        "Frame#\tTime\t" + "".join(f"{marker}\t\t\t" for marker in TRC_MARKERS),
        "\t\t" + "".join(f"{axis}{i + 1}\t" for i in range(markers) for axis in "XYZ"),
    ]
    shown = np.isfinite(take.points).all(-1) & take.valid[:, None]
    for i, (time, points) in enumerate(zip(take.time_s, take.points, strict=True)):
        cells = (
            "{:.6f}\t{:.6f}\t{:.6f}\t".format(*p) if s else "\t\t\t"
            for s, p in zip(shown[i], points, strict=True)
        )
        lines.append(f"{take.first + i}\t{time:.6f}\t" + "".join(cells))
    return "\n".join(lines) + "\n"


def to_amass(take: Take, body: Body) -> dict[str, NDArray[Any]]:
    """SMPL parameters under AMASS's names, and the joints. ``take`` in a world with z up. NaN: no pose.

    ``poses`` (T, 72) axis-angle of SMPL's 24 joints, ``trans`` (T, 3), ``betas`` (B,) of the body that
    ``model`` and ``model_sha256`` name: those of the body that ships mean nothing to SMPL. The rate comes
    under both names that readers look for.
    """
    frames = len(take.time_s)
    poses = np.full((frames, 24, 3), np.nan)
    known = take.posed
    poses[known] = (
        Rotation.from_matrix(take.rotations[known].reshape(-1, 3, 3)).as_rotvec().reshape(-1, 24, 3)
    )
    gender = next((g for g in ("female", "male") if g in body.name.lower()), "neutral")
    return {
        "poses": poses.reshape(frames, 72).astype(np.float32),
        "trans": take.transl.astype(np.float32),
        "betas": take.betas.astype(np.float32),
        "gender": np.array(gender),
        "mocap_framerate": np.array(float(take.rate)),
        "mocap_frame_rate": np.array(float(take.rate)),
        "surface_model_type": np.array("smpl"),
        "model": np.array(body.name),
        "model_sha256": np.array(body.sha256),
        "joints": take.joints.astype(np.float32),
        "valid": take.valid,
        "time_s": take.time_s,
    }


def to_obj(vertices: Array, faces: NDArray[np.int32]) -> str:
    """A mesh (V, 3), (F, 3) as Wavefront OBJ, in the unit of the vertices."""
    lines = ["v {:.6f} {:.6f} {:.6f}".format(*v) for v in vertices.tolist()]
    lines += ["f {} {} {}".format(*f) for f in (faces + 1).tolist()]
    return "\n".join(lines) + "\n"


def posed_vertices(take: Take, body: Body, frame: int) -> Array:
    """(V, 3) the mesh in one frame of a take, counted from its first, metres, world."""
    rotations = torch.from_numpy(take.rotations[frame : frame + 1])
    found = body.vertices(
        rotations[:, 0],
        rotations[:, 1:],
        torch.from_numpy(take.betas),
        torch.from_numpy(take.transl[frame : frame + 1]),
    )
    return np.asarray(found[0].double().numpy())
