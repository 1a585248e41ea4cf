"""glTF files, read back as the specification says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
import torch
from exported import HAS_POSE, NEAR, RATE, TO_Y, Gltf, T, Truth, body, read_obj, whole_take, write
from scipy.spatial.transform import Rotation

from models.formats import glb
from models.formats.long_take import LongTake
from pipeline.skeleton import SMPL_24
from stages.export import ExportOptions, export_person


@pytest.mark.parametrize("up", TO_Y)
def test_a_glb_moves_as_the_body_does(truths: Callable[[str], Truth], tmp_path: Path, up: str) -> None:
    truth = truths(up)
    write(truth, tmp_path / "a.glb")
    file = Gltf.read((tmp_path / "a.glb").read_bytes())
    np.testing.assert_allclose(file.times, np.arange(T) / float(RATE), atol=1e-6)
    names = [n["name"] for n in file.document["nodes"]]
    for t in HAS_POSE if up == "z" else HAS_POSE[::4]:
        joints = file.nodes_at(t)[[names.index(n) for n in SMPL_24.names], :3, 3]
        np.testing.assert_allclose(joints, TO_Y[up](truth.joints[t]), atol=NEAR)
        np.testing.assert_allclose(file.skinned_at(t), TO_Y[up](truth.vertices(t)), atol=NEAR)
        assert joints[SMPL_24.index("head"), 1] > joints[0, 1] + 0.3, "it stands along y"


VALIDATE = """
const validator = require("gltf-validator"), fs = require("fs");
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1]))).then(
  report => console.log(JSON.stringify(report.issues)));
"""


def test_the_khronos_validator_finds_nothing(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    """Needs ``npm install gltf-validator``, and NODE_PATH where that is not above the current folder."""
    node = shutil.which("node")
    if node is None or run([node, "-e", 'require("gltf-validator")'], capture_output=True).returncode:
        pytest.skip("needs node and its gltf-validator")
    for name, options in (
        ("a.glb", ExportOptions()),
        ("cameras.glb", ExportOptions(cameras={"a": "a.mp4", "b": ""})),
        ("held.glb", ExportOptions(gaps="hold", fps=Fraction(50))),
        ("one.glb", ExportOptions(1, 2)),
    ):
        export_person(truths("z").store, body(), tmp_path / name, 0, options)
        report = run([node, "-e", VALIDATE, str(tmp_path / name)], capture_output=True, check=True).stdout
        assert json.loads(report)["messages"] == []


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
    take = whole_take(truth, 1, 5)
    file = Gltf.read(b"".join(glb.encode(LongTake.of(take), other, "a.glb")))
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


def test_rotations_of_a_glb_go_the_short_way(truths: Callable[[str], Truth]) -> None:
    take = whole_take(truths("z")).without_gaps()
    turns = Rotation.from_rotvec(np.linspace(0, 1.4 * 2 * np.pi, T)[:, None] * [0, 0, 1]).as_matrix()
    take = replace(take, rotations=turns[:, None] @ take.rotations)  # more than once round, every joint
    file = Gltf.read(b"".join(glb.encode(replace(LongTake.of(take), piece=5), body(), "a.glb")))
    outputs = [file.array(s["output"]) for s in file.document["animations"][0]["samplers"]]
    rotations = [x for x in outputs if x.shape[1] == 4]
    assert len(rotations) == len(SMPL_24)
    for output in rotations:
        np.testing.assert_allclose(np.linalg.norm(output, axis=1), 1, atol=1e-6)
        assert ((output[1:] * output[:-1]).sum(1) > 0).all()


def test_pose_blend_shapes_are_left_out_and_that_is_said(
    truths: Callable[[str], Truth], tmp_path: Path
) -> None:
    truth, rng = truths("z"), np.random.default_rng(1)
    shapes = torch.from_numpy(rng.normal(0, 0.003, (207, body().v_template.numel()))).float()
    blended = replace(body(), posedirs=shapes)
    _, said = export_person(truth.store, blended, tmp_path / "a.glb")
    assert "pose blend shapes" in said[-1]
    file, worst = Gltf.read((tmp_path / "a.glb").read_bytes()), 0.0
    for t in HAS_POSE:
        assert np.abs(file.skinned_at(t) - TO_Y["z"](truth.vertices(t))).max() < NEAR
        moved = truth.vertices(t, blended) - truth.vertices(t)
        worst = max(worst, 1000 * float(np.linalg.norm(moved, axis=1).max()))
    number = int(said[-1].split("up to ")[1].split()[0])
    # Where skins of several joints meet, the blend of their rotations shortens what it turns.
    assert 0.9 * worst < number < 1.3 * worst
    export_person(truth.store, blended, tmp_path / "a.obj", 0, ExportOptions(4))
    vertices, _ = read_obj((tmp_path / "a.obj").read_text())
    np.testing.assert_allclose(vertices, TO_Y["z"](truth.vertices(4, blended)), atol=NEAR)
