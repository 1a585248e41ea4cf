"""BVH: the skeleton's motion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import roma
import torch

from models.body import Body
from models.formats.long_take import LongTake
from models.formats.take import rest_joints, rest_vertices
from models.formats.traits import Traits
from pipeline.array_types import Array

TRAITS: Final = Traits(suffix=".bvh", description="skeleton's motion", unit="centimetres")


def encode(take: LongTake, body: Body, name: str) -> Iterator[bytes]:
    """Skeleton and its motion; gaps are filled.

    Centimetres, degrees, rotations in the order Z, X, Y. The rest pose is SMPL's T-pose, facing +z. The
    root's OFFSET is 0: its position channels are the pelvis' place, to programs that add the two and to those
    that do not. An End Site is the vertex of the last joint's skin that is farthest from it.
    """
    take = take.without_gaps()
    rest, vertices = rest_joints(body, take.betas), rest_vertices(body, take.betas)
    skeleton, owner = body.skeleton, body.weights.numpy().argmax(1)
    lines, order = ["HIERARCHY"], list[int]()

    def offset(step: Array) -> str:
        return "OFFSET " + " ".join(f"{100 * x:.6f}" for x in step)

    def describe(j: int, indent: str) -> None:
        order.append(j)
        step = rest[j] - rest[skeleton.parents[j]] if j else np.zeros(3)
        channels = "3 " if j else "6 Xposition Yposition Zposition "
        inside = indent + "\t"
        lines.extend((
            f"{indent}{'JOINT' if j else 'ROOT'} {skeleton.names[j]}", f"{indent}{{", inside + offset(step),
            f"{inside}CHANNELS {channels}Zrotation Xrotation Yrotation",
        ))  # fmt: skip
        children = [c for c, parent in enumerate(skeleton.parents) if parent == j]
        for child in children:
            describe(child, inside)
        if not children:
            skin = vertices[owner == j] - rest[j]
            end = skin[np.linalg.norm(skin, axis=1).argmax()] if len(skin) else step
            lines.extend((f"{inside}End Site", f"{inside}{{", f"{inside}\t{offset(end)}", f"{inside}}}"))
        lines.append(f"{indent}}}")

    describe(0, "")
    lines += ["MOTION", f"Frames: {len(take)}", f"Frame Time: {float(1 / take.rate):.9f}"]
    yield ("\n".join(lines) + "\n").encode()
    form = " ".join(["%.6f"] * (3 + 3 * len(order))) + "\n"
    last = None
    for piece in take.pieces():
        angles = zxy_degrees(piece.rotations, last)
        last = angles[-1]
        rows = np.concatenate([100 * (piece.transl + rest[0]), angles[:, order].reshape(len(angles), -1)], 1)
        yield "".join(form % tuple(row) for row in rows.tolist()).encode()


def zxy_degrees(rotations: Array, last: Array | None = None) -> Array:
    """Rotations (T, ..., 3, 3) = Rz(a) Rx(b) Ry(c) → (a, b, c) (T, ..., 3), degrees, without jumps over time.

    Of the two triples that make a rotation, (a, b, c) and (a + 180°, 180° − b, c + 180°), and of all that are
    whole turns from these, the one next to the frame before: a joint that bends past 90° can be interpolated.
    last: angles of the frame before the first.
    """
    angles = roma.rotmat_to_euler("ZXY", torch.from_numpy(rotations), degrees=True).numpy()
    other = angles * [1, -1, 1] + 180
    for t in range(len(angles)):
        if last is not None:
            near = [x - 360 * np.rint((x - last) / 360) for x in (angles[t], other[t])]
            farther = np.abs(near[1] - last).sum(-1) > np.abs(near[0] - last).sum(-1)
            angles[t] = np.where(farther[..., None], *near)
        last = angles[t]
    return np.asarray(angles)
