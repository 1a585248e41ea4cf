"""Contract of every export format: the file, read back, is the body that the store holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exported import (
    NEAR,
    TO_Y,
    Bvh,
    Gltf,
    Truth,
    body,
    direction,
    opensim_tokens,
    read_obj,
    rig,
    write,
)

from models.formats import FORMATS, ExportFormat, find_format
from models.formats.traits import axes_of, y_up, y_up_as_pose2sim, z_up
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24, SMPL_OF_BODY_25
from stages.export import read_take


def joints_of_glb(file: Path) -> dict[str, np.ndarray]:
    gltf = Gltf.read(file.read_bytes())
    names = [n["name"] for n in gltf.document["nodes"]]
    placed = np.stack([gltf.nodes_at(t)[:, :3, 3] for t in range(len(gltf.times))])
    return {name: placed[:, names.index(name)] for name in SMPL_24.names}


def joints_of_bvh(file: Path) -> dict[str, np.ndarray]:
    bvh = Bvh.read(file.read_text())
    frames = [bvh.joints_at(t) for t in range(len(bvh.rows))]
    return {name: np.stack([f[name] for f in frames]) / 100 for name in SMPL_24.names}


def joints_of_trc(file: Path) -> dict[str, np.ndarray]:
    _, _, _, names, _, *rows = file.read_text().splitlines()
    markers = [n.replace("CHip", "MidHip") for n in opensim_tokens(names)[2::3]]
    points = np.array([opensim_tokens(row)[2:] for row in rows], float).reshape(len(rows), -1, 3)
    return {SMPL_OF_BODY_25[m]: points[:, i] for i, m in enumerate(markers) if m in SMPL_OF_BODY_25}


def joints_of_npz(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        return dict(zip(SMPL_24.names, np.moveaxis(arrays["joints"], 1, 0), strict=True))


def joints_of_obj(file: Path) -> dict[str, np.ndarray]:
    vertices, _ = read_obj(file.read_text())
    joints = body().J_regressor.double().numpy() @ vertices
    # A regressor is of the rest pose: near the root, where skin hardly bends, it holds for a posed mesh.
    return {"pelvis": joints[None, 0]}


READERS: dict[str, tuple[Callable[[Path], dict[str, np.ndarray]], float]] = {
    ".glb": (joints_of_glb, NEAR),
    ".bvh": (joints_of_bvh, NEAR),
    ".trc": (joints_of_trc, NEAR),
    ".npz": (joints_of_npz, NEAR),
    ".obj": (joints_of_obj, 0.01),
}
"""Joints (T, 3) by SMPL's names, metres, in the world of the file; and how near they come."""

EVERY_FORMAT = pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.TRAITS.suffix)


@EVERY_FORMAT
@pytest.mark.parametrize("up", ["z", "y", "-y"])
def test_a_file_holds_the_joints_of_the_store(
    truths: Callable[[str], Truth], tmp_path: Path, form: ExportFormat, up: str
) -> None:
    truth, traits = truths(up), form.TRAITS
    first, stop = (7, 8) if traits.single_frame else (7, 11)
    take = read_take(truth.store, 0, first, stop)
    turn = traits.turn(direction(up))
    file = tmp_path / f"a{traits.suffix}"
    file.write_bytes(b"".join(form.encode(take.turned(turn, body()), body(), file.name)))
    reader, near = READERS[traits.suffix]
    joints = reader(file)
    assert joints
    for name, placed in joints.items():
        want = truth.joints[first:stop, SMPL_24.index(name)] @ turn.T
        np.testing.assert_allclose(placed, want, atol=near)


@EVERY_FORMAT
def test_a_world_is_upright_and_not_mirrored(form: ExportFormat) -> None:
    for up in TO_Y:
        turn = form.TRAITS.turn(direction(up))
        assert np.linalg.det(turn) == pytest.approx(1)
        assert turn @ direction(up) == pytest.approx(np.eye(3)[2 if form.TRAITS.turn is z_up else 1])


def test_suffixes_choose_the_format() -> None:
    for form in FORMATS:
        assert find_format(Path(f"a{form.TRAITS.suffix.upper()}")) is form
    with pytest.raises(InputError, match=r"a\.fbx: the suffix .* Choose \.glb"):
        find_format(Path("a.fbx"))


def test_an_obj_is_the_mesh_of_one_frame(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    truth = truths("z")
    assert write(truth, tmp_path / "a.obj", 0, 7) == []
    vertices, faces = read_obj((tmp_path / "a.obj").read_text())
    np.testing.assert_allclose(vertices, TO_Y["z"](truth.vertices(7)), atol=NEAR)
    np.testing.assert_array_equal(faces, body().faces)
    with pytest.raises(InputError, match="holds one frame, and 0 to 4 are more"):
        write(truth, tmp_path / "b.obj", 0, 0, 5)


@pytest.mark.parametrize("up", TO_Y)
def test_worlds_are_turned_and_never_mirrored(up: str) -> None:
    axis, points = direction(up), np.random.default_rng(0).normal(size=(5, 3))
    for turn, to in ((y_up(axis), "y"), (y_up_as_pose2sim(axis), "y"), (z_up(axis), "z")):
        assert np.linalg.det(turn) == pytest.approx(1)
        np.testing.assert_array_equal(turn @ axis, direction(to))
        # The words say what the matrix does.
        said = [(-1 if "-" in w else 1) * points[:, "xyz".index(w[-1])] for w in axes_of(turn).split(", ")]
        np.testing.assert_allclose(points @ turn.T, np.stack(said, -1))
    np.testing.assert_allclose(points @ y_up(axis).T, TO_Y[up](points))
    np.testing.assert_array_equal(rig(axis).up, axis)
