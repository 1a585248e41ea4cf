"""Contract of every export format: the file, read back, is the body that the store holds."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import ezc3d
import numpy as np
import pytest
import torch
import zarr
from exported import (
    HAS_POSE,
    LOST,
    NEAR,
    RATE,
    TO_Y,
    Bvh,
    Gltf,
    Truth,
    body,
    direction,
    make,
    opensim_tokens,
    read_obj,
    rig,
    whole_take,
    write,
)
from pxr import Usd, UsdGeom, UsdSkel, Vt
from scipy.spatial.transform import Rotation
from smplx.lbs import batch_rigid_transform, batch_rodrigues

import stages.export
from models.formats import FORMATS, ExportFormat, fbx, find_format, glb, mot, usd
from models.formats.long_take import LongTake
from models.formats.take import Take, rest_joints
from models.formats.traits import axes_of, y_up, y_up_as_pose2sim, z_up
from pipeline.errors import InputError
from pipeline.formats.keypoints.openpose import read_people
from pipeline.skeleton import SMPL_24, SMPL_OF_BODY_25
from pipeline.store import Store
from stages.export import ExportOptions, export_people, read_take


def joints_of_glb(file: Path) -> dict[str, np.ndarray]:
    gltf = Gltf.read(file.read_bytes())
    names = [n["name"] for n in gltf.document["nodes"]]
    placed = np.stack([gltf.nodes_at(t)[:, :3, 3] for t in range(len(gltf.times))])
    return {name: placed[:, names.index(name)] for name in SMPL_24.names}


def joints_of_usd(file: Path) -> dict[str, np.ndarray]:
    """Joints as UsdSkel poses them, at every time code."""
    stage = Usd.Stage.Open(str(file))
    assert UsdGeom.GetStageUpAxis(stage) == "Y"
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1
    assert stage.GetTimeCodesPerSecond() == pytest.approx(30000 / 1001)
    skeleton = UsdSkel.Skeleton(stage.GetPrimAtPath("/person/skeleton"))
    cache = UsdSkel.Cache()
    cache.Populate(UsdSkel.Root(stage.GetDefaultPrim()), Usd.PrimDefaultPredicate)
    query = cache.GetSkelQuery(skeleton)
    codes = np.arange(stage.GetStartTimeCode(), stage.GetEndTimeCode() + 1)
    frames = [[m.ExtractTranslation() for m in query.ComputeJointSkelTransforms(t)] for t in codes]
    return dict(zip(SMPL_24.names, np.array(frames).swapaxes(0, 1), strict=True))


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


def joints_of_smpl(file: Path) -> dict[str, np.ndarray]:
    """Joints as smplx poses them: its own forward pass, with the shipped body's rest joints."""
    with np.load(file, allow_pickle=False) as arrays:
        pose = np.concatenate([arrays["global_orient"], arrays["body_pose"]], 1).reshape(-1, 24, 3)
        betas, transl = (torch.from_numpy(arrays[name]) for name in ("betas", "transl"))
        assert arrays["fps"].item() == pytest.approx(30000 / 1001)
    matrices = batch_rodrigues(torch.from_numpy(pose).reshape(-1, 3)).reshape(-1, 24, 3, 3)
    k = body().keypoints
    rest = k.joints_template.float() + torch.einsum("jcb,tb->tjc", k.joints_shapedirs.float(), betas)
    placed, _ = batch_rigid_transform(matrices, rest, torch.tensor(SMPL_24.parents))
    return dict(zip(SMPL_24.names, (placed + transl[:, None]).numpy().swapaxes(0, 1), strict=True))


def joints_of_c3d(file: Path) -> dict[str, np.ndarray]:
    read = ezc3d.c3d(str(file))
    labels = read["parameters"]["POINT"]["LABELS"]["value"]
    assert read["parameters"]["POINT"]["UNITS"]["value"] == ["mm"]
    assert read["header"]["points"]["first_frame"] == 7
    assert read["parameters"]["POINT"]["RATE"]["value"][0] == pytest.approx(30000 / 1001)
    points = read["data"]["points"][:3].transpose(1, 2, 0) / 1000
    return {name: points[labels.index(name)] for name in SMPL_24.names}


def joints_of_csv(file: Path) -> dict[str, np.ndarray]:
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["frame"] for row in rows] == ["7", "8", "9", "10"]
    return {
        name: np.array([[float(row[f"{name}_{axis}_m"]) for axis in "xyz"] for row in rows])
        for name in SMPL_24.names
    }


def read_mot(text: str) -> dict[str, np.ndarray]:
    """Columns by name of a motion as OpenSim's format has it."""
    head, _, rest = text.partition("endheader\n")
    _, *lines = head.splitlines()
    header = dict(line.split("=") for line in lines)
    names, *rows = (line.split("\t") for line in rest.splitlines())
    assert header == {
        "version": "1", "nRows": str(len(rows)), "nColumns": str(len(names)), "inDegrees": "yes",
    }  # fmt: skip
    return dict(zip(names, np.array(rows, float).T, strict=True))


def joints_of_mot(file: Path) -> dict[str, np.ndarray]:
    columns = read_mot(file.read_text())
    return {"pelvis": np.stack([columns[f"pelvis_t{axis}"] for axis in "xyz"], 1)}


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
    ".smpl.npz": (joints_of_smpl, NEAR),
    ".c3d": (joints_of_c3d, NEAR),
    ".csv": (joints_of_csv, NEAR),
    ".obj": (joints_of_obj, 0.01),
    ".mot": (joints_of_mot, NEAR),
    ".usd": (joints_of_usd, NEAR),
}
"""Joints (T, 3) by SMPL's names, metres, in the world of the file; and how near they come."""

EVERY_FORMAT = pytest.mark.parametrize(
    "form", [form for form in FORMATS if form is not fbx], ids=lambda f: f.TRAITS.suffix
)
"""But for that which Blender writes."""


@EVERY_FORMAT
@pytest.mark.parametrize("up", ["z", "y", "-y"])
def test_a_file_holds_the_joints_of_the_store(
    truths: Callable[[str], Truth], tmp_path: Path, form: ExportFormat, up: str
) -> None:
    truth, traits = truths(up), form.TRAITS
    first, stop = (7, 8) if traits.single_frame else (7, 11)
    take = whole_take(truth, first, stop)
    turn = traits.turn(direction(up))
    file = tmp_path / f"a{traits.suffix}"
    file.write_bytes(b"".join(form.encode(LongTake.of(take.turned(turn, body())), body(), file.name)))
    reader, near = READERS[traits.suffix]
    joints = reader(file)
    assert joints
    for name, placed in joints.items():
        want = truth.joints[first:stop, SMPL_24.index(name)] @ turn.T
        np.testing.assert_allclose(placed, want, atol=near)


@EVERY_FORMAT
def test_a_file_is_written_piece_by_piece(truths: Callable[[str], Truth], form: ExportFormat) -> None:
    take = whole_take(truths("z"))
    angles = np.random.default_rng(0).uniform(-180, 180, (len(take.time_s), 2))
    take = replace(take, angles=angles, angle_names=("left", "right"))
    contents = {}
    for piece in (2, 5, len(angles)):

        def cut(start: int, stop: int, most: int = piece + 1) -> Take:
            assert stop - start <= most, "a long take would be in memory at once"
            return take.part(start, stop)

        long = replace(LongTake.of(take), piece=piece, cut=cut)
        takes = (
            long,
            long.filled(body()),
            long.filled(body(), hold=True).turned(y_up(direction("z")), body()),
            long.resampled(RATE * 2, body()),
            long.filled(body()).resampled(RATE * 3 / 7, body()),
        )
        contents[piece] = [b"".join(form.encode(t, body(), "a")) for t in takes]
    assert contents[2] == contents[5] == contents[len(angles)]


@EVERY_FORMAT
def test_a_world_is_upright_and_not_mirrored(form: ExportFormat) -> None:
    for up in TO_Y:
        turn = form.TRAITS.turn(direction(up))
        assert np.linalg.det(turn) == pytest.approx(1)
        assert turn @ direction(up) == pytest.approx(np.eye(3)[2 if form.TRAITS.turn is z_up else 1])


def test_suffixes_choose_the_format() -> None:
    for form in FORMATS:
        assert find_format(Path(f"a{form.TRAITS.suffix.upper()}")) is form
    with pytest.raises(InputError, match=r"a\.xyz: the suffix .* Choose \.glb"):
        find_format(Path("a.xyz"))


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


def export(truth: Truth, file: Path, options: ExportOptions) -> list[str]:
    ((_, _, warnings),) = export_people(truth.store, body(), file, [0], options)
    return warnings


IN_BLENDER = """
import json, sys, bpy
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.fbx(filepath=sys.argv[-2])
scene, found = bpy.context.scene, {}
(armature,) = [thing for thing in bpy.data.objects if thing.type == "ARMATURE"]
for i in range(4):  # the importer takes a rate of 30000/1001 for 30
    scene.frame_set(1 + i, subframe=0.001 * i)
    for bone in armature.pose.bones:
        found.setdefault(bone.name, []).append(list(armature.matrix_world @ bone.head))
meshes = [thing.name for thing in bpy.data.objects if thing.type == "MESH"]
json.dump([found, meshes], open(sys.argv[-1], "w"))
"""


def test_blender_reads_the_fbx_that_it_wrote(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    if (command := fbx.blender()) is None:
        pytest.skip("needs blender or bpy")
    take = whole_take(truths("z"), 7, 11)
    file, told = tmp_path / "a.fbx", tmp_path / "told.json"
    turned = take.turned(y_up(direction("z")), body())
    file.write_bytes(b"".join(fbx.encode(LongTake.of(turned), body(), file.name)))
    reader = [IN_BLENDER if part is fbx._SCRIPT else part for part in command]
    subprocess.run([*reader, file, told], check=True, capture_output=True)
    joints, meshes = json.loads(told.read_text())
    assert meshes == ["body"]
    for name, places in joints.items():
        np.testing.assert_allclose(places, take.joints[:, SMPL_24.index(name)], atol=1e-3)


def test_without_blender_there_is_no_fbx(
    truths: Callable[[str], Truth], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fbx, "blender", lambda: None)
    with pytest.raises(InputError, match=r"neither blender nor its module bpy is there. Write a .glb"):
        export(truths("z"), tmp_path / "a.fbx", ExportOptions())
    failing = [sys.executable, "-c", "raise SystemExit('no importer')"]
    monkeypatch.setattr(fbx, "blender", lambda: failing)
    with pytest.raises(InputError, match="Blender wrote nothing: no importer"):
        export(truths("z"), tmp_path / "a.fbx", ExportOptions())
    assert not (tmp_path / "a.fbx").exists()


def test_skin_of_usd_moves_as_the_mesh(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    """UsdSkel's own skinning, of a body without pose blend shapes, gives the mesh's vertices."""
    take = whole_take(truths("y"), 1, 3)
    (tmp_path / "a.usd").write_bytes(b"".join(usd.encode(LongTake.of(take), body(), "a.usd")))
    stage = Usd.Stage.Open(str(tmp_path / "a.usd"))
    cache = UsdSkel.Cache()
    cache.Populate(UsdSkel.Root(stage.GetDefaultPrim()), Usd.PrimDefaultPredicate)
    skin = cache.GetSkinningQuery(stage.GetPrimAtPath("/person/body"))
    query = cache.GetSkelQuery(UsdSkel.Skeleton(stage.GetPrimAtPath("/person/skeleton")))
    points = Vt.Vec3fArray(UsdGeom.Mesh(stage.GetPrimAtPath("/person/body")).GetPointsAttr().Get())
    assert skin.ComputeSkinnedPoints(query.ComputeSkinningTransforms(1), points, 1)
    np.testing.assert_allclose(np.array(points), truths("y").vertices(2), atol=NEAR)


@pytest.mark.parametrize("up", ["z", "-y"])
def test_angles_are_coordinates_of_opensim(truths: Callable[[str], Truth], up: str) -> None:
    """Segments posed by OpenSim's joints, each rotated about z, x and y in turn, lie as the store's do."""
    take = whole_take(truths(up))
    take = take.turned(y_up_as_pose2sim(direction(up)), body())
    columns = read_mot(b"".join(mot.encode(LongTake.of(take), body(), "a.mot")).decode())
    np.testing.assert_allclose(columns["time"], take.time_s, atol=1e-6)
    known = take.posed
    assert all(np.isnan(columns[name][~known]).all() for name in columns if name != "time")

    def turn(*names: str, mirrored: bool = False) -> Rotation:
        values = np.stack([columns[name][known] for name in names], 1)
        return Rotation.from_euler("ZXY", values * ([1, -1, -1] if mirrored else [1, 1, 1]), degrees=True)

    def off_deg(frame: Rotation, along: list[float], start: str, end: str) -> float:
        """Largest angle between an axis of a segment and the way from one joint to another."""
        way = (take.joints[:, SMPL_24.index(end)] - take.joints[:, SMPL_24.index(start)])[known]
        axis = frame.apply(along)
        sine = np.linalg.norm(np.cross(axis, way), axis=1)
        return float(np.degrees(np.arctan2(sine, (axis * way).sum(1))).max())

    pelvis = turn("pelvis_tilt", "pelvis_list", "pelvis_rotation")
    rest = body().skeleton
    assert rest.names == SMPL_24.names
    ahead = Rotation.from_matrix(take.rotations[known, 0]).apply([0, 0, 1])  # SMPL faces z
    np.testing.assert_allclose(pelvis.apply([1, 0, 0]), ahead, atol=1e-5)
    torso = pelvis * turn("lumbar_extension", "lumbar_bending", "lumbar_rotation")
    for side, name, mirrored in (("r", "right", False), ("l", "left", True)):
        hip = (f"hip_flexion_{side}", f"hip_adduction_{side}", f"hip_rotation_{side}")
        thigh = pelvis * turn(*hip, mirrored=mirrored)
        assert off_deg(thigh, [0, -1, 0], f"{name}_hip", f"{name}_knee") < 0.1
        arm = torso * turn(f"arm_flex_{side}", f"arm_add_{side}", f"arm_rot_{side}", mirrored=mirrored)
        assert off_deg(arm, [0, -1, 0], f"{name}_shoulder", f"{name}_elbow") < 0.1
        for upper, angle, sign, start, end in (
            (thigh, f"knee_angle_{side}", -1, "knee", "ankle"),
            (arm, f"elbow_flex_{side}", 1, "elbow", "wrist"),
        ):
            way = (
                take.joints[:, SMPL_24.index(f"{name}_{end}")]
                - take.joints[:, SMPL_24.index(f"{name}_{start}")]
            )
            x, y, _ = upper.inv().apply(way[known]).T  # seen along the upper segment's transverse axis
            bent = np.degrees(np.arctan2(sign * x, -y))
            assert np.abs((bent - columns[angle][known] + 180) % 360 - 180).max() < 0.1


def test_angles_move_the_shorter_way_round(truths: Callable[[str], Truth]) -> None:
    angles = np.array([[10.0, -170.5], [20, 175], [np.nan, np.nan], [30, -175]])
    names = ("left_knee_flexion", "pelvis_rotation")
    take = replace(whole_take(truths("z"), 1, 5), angles=angles, angle_names=names)
    finer = LongTake.of(take).resampled(RATE * 2, body()).cut(0, 7)
    assert finer.angles[3, 1] == pytest.approx(np.nan, nan_ok=True)
    assert finer.angles[1].tolist() == pytest.approx([15, -177.75])
    heads = next(iter(table_rows(take)))
    assert heads.endswith("left_knee_flexion_deg,pelvis_rotation_deg,events")


def test_a_table_names_gait_events_in_the_frame_that_is_nearest(truths: Callable[[str], Truth]) -> None:
    take = LongTake.of(whole_take(truths("z"), 2, 6))
    at = [take.time_s[0] - 0.6 / RATE, *take.time_s[[0, 2]] + 0.4 / float(RATE)]
    events = {"left_foot_strike": np.array(at), "right_foot_off": take.time_s[2:3]}
    table = find_format(Path("a.csv")).encode(replace(take, events_s=events), body(), "a.csv")
    named = [row.rpartition(b",")[2].decode() for row in b"".join(table).splitlines()[1:]]
    assert named == ["left_foot_strike", "", "left_foot_strike right_foot_off", ""]


def table_rows(take: Take) -> list[str]:
    return (
        b"".join(find_format(Path("a.csv")).encode(LongTake.of(take), body(), "a.csv")).decode().splitlines()
    )


def test_easymocap_turns_about_the_origin(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    truth = truths("y")
    warnings = export(truth, tmp_path / "a.easymocap", ExportOptions())
    assert warnings[0] == "person 0: 4 of 12 frames have no pose: they are left out."
    pelvis = rest_joints(body(), truth.betas.numpy())[0]
    for t in (1, 7):
        (person,) = json.loads((tmp_path / "a.easymocap" / "smpl" / f"{t:06d}.json").read_text())
        assert (person["id"], person["poses"][0][:3]) == (0, [0, 0, 0])
        turn = batch_rodrigues(torch.tensor(person["Rh"])).numpy()[0]
        # EasyMocap: R(Rh) x + Th of a body that is posed with the first three at 0.
        np.testing.assert_allclose(turn @ pelvis + person["Th"][0], truth.joints[t, 0], atol=1e-5)
        (points,) = json.loads((tmp_path / "a.easymocap" / "keypoints3d" / f"{t:06d}.json").read_text())
        np.testing.assert_allclose(np.array(points["keypoints3d"])[:, :3], truth.points[t], atol=1e-5)
    assert json.loads((tmp_path / "a.easymocap" / "smpl" / "000005.json").read_text()) == []
    with pytest.raises(InputError, match="is there already"):
        export(truth, tmp_path / "a.easymocap", ExportOptions())


def test_openpose_shows_the_body_in_every_picture(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    truth, cameras = truths("z"), rig(direction("z"))
    export(truth, tmp_path / "a.openpose", ExportOptions(1, 5))
    want = cameras.project(truth.points[4], distorted=True)
    for v, name in enumerate(cameras.names):
        file = tmp_path / "a.openpose" / "reprojected" / name / f"{name}_000000000004_keypoints.json"
        found, _ = read_people(file, 25)
        there = np.isfinite(want[v]).all(-1)
        np.testing.assert_allclose(found[0, there, :2], want[v][there], atol=2e-3)
    assert read_people(tmp_path / "a.openpose" / "associated" / "a" / "a_000000000004_keypoints.json", 25)[1]


def test_openpose_files_have_the_number_of_their_videos_frame(tmp_path: Path) -> None:
    truth = make(tmp_path / "results.zarr")
    late = zarr.open_array(truth.store.path / "cameras/frame_index", mode="r+")
    late[1] = [-1, -1, *range(10)]
    list(export_people(Store(truth.store.path), body(), tmp_path / "a.openpose", [0], ExportOptions(1, 5)))
    want = rig(direction("z")).project(truth.points[4], distorted=True)
    for v, camera, frames in ((0, "a", [1, 2, 3, 4]), (1, "b", [0, 1, 2])):
        found = sorted((tmp_path / "a.openpose" / "reprojected" / camera).iterdir())
        assert [f.name for f in found] == [f"{camera}_{t:012d}_keypoints.json" for t in frames]
        np.testing.assert_allclose(read_people(found[-1], 25)[0][0, :, :2], want[v], atol=2e-3)


def test_openpose_reads_the_pictures_in_pieces(
    truths: Callable[[str], Truth], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = truths("z").store, Store.array
    seen = np.random.default_rng(0).uniform(1, 600, (2, 12, 25, 3)).round(3)
    asked: list[int] = []

    def array(self: Store, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if not name.endswith("keypoints_2d"):
            return read(self, name, start, stop)
        found = seen[:, start:stop]
        asked.append(found.shape[1])
        return found

    monkeypatch.setattr(Store, "array", array)
    monkeypatch.setattr(stages.export, "PIECE", 4)
    list(export_people(store, body(), tmp_path / "a.openpose", [0], ExportOptions(1, 11)))
    assert asked == [4, 4, 2]
    for v, camera in enumerate("ab"):
        for t in range(1, 11):
            file = tmp_path / "a.openpose" / "associated" / camera / f"{camera}_{t:012d}_keypoints.json"
            np.testing.assert_allclose(read_people(file, 25)[0][0, :, :2], seen[v, t, :, :2], atol=1e-3)


@pytest.mark.parametrize("gaps", ["hold", "interpolate"])
def test_gaps_are_filled_where_that_is_asked_for(
    truths: Callable[[str], Truth], tmp_path: Path, gaps: str
) -> None:
    truth = truths("z")
    export(truth, tmp_path / "a.npz", ExportOptions(gaps=gaps))
    with np.load(tmp_path / "a.npz") as found:
        joints, valid = found["joints"], found["valid"]
    assert valid.all()
    np.testing.assert_allclose(joints[HAS_POSE], truth.joints[HAS_POSE], atol=NEAR)
    np.testing.assert_allclose(joints[[0, 11]], truth.joints[[1, 10]], atol=NEAR)
    held = np.abs(joints[5] - truth.joints[4]).max()
    assert held < NEAR if gaps == "hold" else held > 0.01
    if gaps == "interpolate":
        transl = truth.transl.numpy()
        middle = (transl[4] * 2 + transl[7]) / 3 + rest_joints(body(), truth.betas.numpy())[0]
        np.testing.assert_allclose(joints[5, 0], middle, atol=NEAR)


def test_another_rate_goes_by_slerp(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    truth = truths("z")
    export(truth, tmp_path / "a.npz", ExportOptions(1, 5, fps=RATE * 2))
    export(truth, tmp_path / "b.npz", ExportOptions(1, 5, fps=RATE * 2 / 3))
    with np.load(tmp_path / "a.npz") as found:
        assert found["mocap_framerate"].item() == pytest.approx(float(RATE) * 2)
        joints = found["joints"]
        np.testing.assert_allclose(found["time_s"], (1 + np.arange(7) / 2) / float(RATE), atol=1e-9)
    np.testing.assert_allclose(joints[::2], truth.joints[1:5], atol=NEAR)
    # Between two frames every bone is as long as in them.
    parents = np.array(SMPL_24.parents[1:])
    lengths = np.linalg.norm(joints[:, 1:] - joints[:, parents], axis=-1)
    np.testing.assert_allclose(lengths[1::2], lengths[[0]].repeat(3, 0), atol=NEAR)
    with np.load(tmp_path / "b.npz") as found:
        np.testing.assert_allclose(found["joints"][[0, 2]], truth.joints[[1, 4]], atol=NEAR)
    gaps = read_take(truth.store, 0).resampled(RATE * 2, body())
    assert {*np.flatnonzero(~gaps.posed)} == {0, 1, 9, 10, 11, 12, 13, 21, 22}
    assert set(LOST) == {0, 5, 6, 11}


def test_a_glb_holds_the_cameras(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    truth, cameras = truths("z"), rig(direction("z"))
    export(truth, tmp_path / "a.glb", ExportOptions(1, 5, cameras={"a": "/videos/a.mp4"}))
    document = Gltf.read((tmp_path / "a.glb").read_bytes()).document
    nodes = [document["nodes"][i] for i in document["scenes"][0]["nodes"] if "camera" in document["nodes"][i]]
    assert [n["name"] for n in nodes] == ["a", "b"]
    assert [n["extras"]["video"] for n in nodes] == ["/videos/a.mp4", ""]
    points = truth.points[4]
    for v, node in enumerate(nodes):
        lens = document["cameras"][node["camera"]]["perspective"]
        x, y, z, w = node["rotation"]
        turn = np.array([
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ])  # fmt: skip
        seen = (TO_Y["z"](points) - node["translation"]) @ turn
        half = np.tan(lens["yfov"] / 2)
        ndc = seen[:, :2] / -seen[:, 2:] / [half * lens["aspectRatio"], half]
        size, middle = cameras.size[v], cameras.K[v, :2, 2]
        pixels = middle + ndc * [1, -1] * size / 2
        np.testing.assert_allclose(pixels, cameras.project(points)[v], atol=1e-3)
    with pytest.raises(InputError, match=r"only a \.glb holds cameras"):
        export(truth, tmp_path / "a.bvh", ExportOptions(1, 5, cameras={}))
    assert glb.scene_cameras(cameras, np.eye(3), {})[0]["node"]["extras"]["K"] == cameras.K[0].tolist()


def test_a_c3d_of_more_frames_than_its_header_can_count(tmp_path: Path) -> None:
    frames = 66_000
    zero = np.zeros((frames, 24, 3))
    take = Take(
        first=0, rate=Fraction(100), time_s=np.arange(frames) / 100, rotations=np.zeros((frames, 24, 3, 3)),
        betas=np.zeros(10), transl=zero[:, 0], joints=zero + np.arange(frames)[:, None, None] / 1e6,
        points=zero[:, :0], point_names=(), valid=np.ones(frames, bool),
    )  # fmt: skip
    (tmp_path / "a.c3d").write_bytes(
        b"".join(find_format(Path("a.c3d")).encode(LongTake.of(take), body(), "a.c3d"))
    )
    read = ezc3d.c3d(str(tmp_path / "a.c3d"))
    np.testing.assert_allclose(read["data"]["points"][0, 3], np.arange(65535) / 1000, atol=1e-4)
    assert read["parameters"]["POINT"]["LONG_FRAMES"]["value"] == [frames]
    # This reader ends where the header does; the frames beyond are there: x, y, z, residual as floats.
    content = (tmp_path / "a.c3d").read_bytes()
    begin = 512 * (int.from_bytes(content[16:18], "little") - 1)
    data = np.frombuffer(content, "<f4", frames * 24 * 4, begin).reshape(frames, 24, 4)
    np.testing.assert_allclose(data[:, 5, 0], np.arange(frames) / 1000, atol=1e-2)
    last = read["parameters"]["TRIAL"]["ACTUAL_END_FIELD"]["value"]
    assert int(last[0]) % 65536 + 65536 * int(last[1]) == frames


def test_all_people_get_a_file_each(truths: Callable[[str], Truth], tmp_path: Path) -> None:
    truth = truths("z")
    found = export_people(truth.store, body(), tmp_path / "a.smpl.npz", [0, 0], ExportOptions(1, 3))
    assert [path.name for path, _, _ in found] == ["a_p0.smpl.npz", "a_p0.smpl.npz"]
