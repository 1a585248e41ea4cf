"""Up of a world: people who stand and lie, cameras that are level and rolled."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import viser
from recordings import figure, ring, seen, state, write_recording
from scenes import scene
from scipy.spatial.transform import Rotation

from models.body import load_body
from models.geometry.up import axis_name, balance, find_up, upright
from pipeline.cameras import Rig
from pipeline.recording import find_recording
from pipeline.skeleton import BODY_25
from pipeline.store import Store
from stages.export import export_person
from stages.graph import RunConfig, run
from stages.view import Frames, _Page

STANDING = np.tile([0.05, 0.0, 0.5], (20, 1))
LYING = np.tile([0.5, 0.05, 0.02], (20, 1))
FOUR, PAIR = ring(4), ring(9).select(("cam01", "cam02"))


def rolled(rig: Rig, degrees: float) -> Rig:
    """The rig with every camera turned about its line of sight."""
    by = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    return replace(rig, R=by @ rig.R, t=rig.t @ by.T)


def in_world(rig: Rig, turn: np.ndarray) -> Rig:
    """The rig in a world in which a point p is ``turn`` p."""
    return replace(rig, R=rig.R @ turn.T)


@pytest.mark.parametrize("rig", [FOUR, ring(3), PAIR], ids=["four", "three", "a pair side by side"])
@pytest.mark.parametrize("degrees", [0, 90, -90, 180])
def test_who_stands_is_upright_however_cameras_are_rolled(rig: Rig, degrees: float) -> None:
    assert axis_name(find_up(rolled(rig, degrees), STANDING).up) == "z"


@pytest.mark.parametrize("rig", [FOUR, ring(3), PAIR, ring(1)], ids=["four", "three", "a pair", "one"])
@pytest.mark.parametrize("heading", np.arange(0, 360, 30))
def test_who_lies_before_level_cameras_does_not_turn_the_world(rig: Rig, heading: float) -> None:
    trunks = LYING @ Rotation.from_euler("z", heading, degrees=True).as_matrix().T
    assert axis_name(find_up(rig, trunks).up) == "z"


@pytest.mark.parametrize("degrees", [90, -90])
def test_a_pair_of_rolled_cameras_along_an_axis(degrees: float) -> None:
    """Their pictures' upward direction is an axis of the world: that they stand at one height tells."""
    across = PAIR.centres[1] - PAIR.centres[0]
    turn = Rotation.from_euler("z", -np.arctan2(across[1], across[0])).as_matrix()
    found = find_up(rolled(in_world(PAIR, turn), degrees), STANDING)
    assert (axis_name(found.up), found.rival) == ("z", None)


@pytest.mark.parametrize("trunks", [STANDING, LYING, np.empty((0, 3)), np.full((3, 3), np.nan)])
@pytest.mark.parametrize("axis", ["x", "y", "z", "-x", "-y", "-z"])
def test_any_axis_may_be_up(trunks: np.ndarray, axis: str) -> None:
    up = np.eye(3)["xyz".index(axis[-1])] * (-1 if axis[0] == "-" else 1)
    turn, _ = Rotation.align_vectors(up[None], np.array([[0.0, 0, 1]]))
    found = find_up(in_world(FOUR, turn.as_matrix()), trunks @ turn.as_matrix().T)
    assert axis_name(found.up) == axis
    assert found.rival is None
    assert found.tilted is None


def test_a_doubt_is_told() -> None:
    # One camera tells nothing of a world in which it is as likely that somebody lies as that it is rolled.
    lying = np.tile(PAIR.R[0, 0], (9, 1))
    assert find_up(PAIR.select(("cam01",)), lying).rival is not None
    assert find_up(PAIR.select(("cam01",)), STANDING).rival is None


def test_a_world_that_leans_is_told() -> None:
    turn = Rotation.from_euler("x", 30, degrees=True).as_matrix()
    found = find_up(in_world(FOUR, turn), STANDING @ turn.T)
    assert axis_name(found.up) == "z"
    assert found.tilted is not None
    assert np.degrees(np.arccos(found.tilted @ turn[:, 2])) < 5


def before_first_camera() -> tuple[Rig, np.ndarray]:
    """A rig and the points of a walker in a world that is the first camera's."""
    s = scene(5, frames=80, rate=20)
    first, origin = s.rig.R[0], s.rig.t[0]
    r = s.rig.R @ first.T
    rig = replace(s.rig, R=r, t=s.rig.t - r @ origin)
    return rig, s.points.numpy() @ first.T + origin


def test_up_is_where_a_body_balances() -> None:
    for seed in (5, 6, 7):
        points = scene(seed, frames=60, rate=20).points.numpy()
        turn = np.asarray(Rotation.random(random_state=seed).as_matrix())
        guess = turn @ [0.0, 0.5, np.sqrt(0.75)]  # 30° off
        up = balance(points @ turn.T, guess)
        assert np.degrees(np.arccos(up @ turn[:, 2])) < 5
    assert np.array_equal(balance(np.full((3, 25, 3), np.nan), guess), guess)


def test_up_on_one_foot() -> None:
    """A dancer who leans far over the standing leg: the trunk does not tell what is up."""
    points = np.full((1, 25, 3), np.nan)
    place = {
        "Neck": (0.35, 0, 1.1), "MidHip": (0.0, 0, 0.85), "Nose": (0.45, 0, 1.2),
        "LHip": (0, 0.1, 0.85), "RHip": (0, -0.1, 0.85), "LKnee": (0, 0.05, 0.45), "LAnkle": (0.0, 0, 0.08),
        "RKnee": (-0.35, -0.1, 0.7), "RAnkle": (-0.7, -0.1, 0.6), "LElbow": (0.4, 0.3, 1.0),
        "RElbow": (0.4, -0.3, 1.0), "LWrist": (0.5, 0.4, 1.0), "RWrist": (0.5, -0.4, 1.0),
        "LHeel": (-0.05, 0, 0.0), "LBigToe": (0.18, 0, 0.0),
    }  # fmt: skip
    for name, xyz in place.items():
        points[0, BODY_25.index(name)] = xyz
    trunk = np.array(place["Neck"]) - np.array(place["MidHip"])
    assert np.degrees(np.arccos(trunk[2] / np.linalg.norm(trunk))) > 50
    assert np.degrees(np.arccos(balance(points, np.array([0.0, 0.26, 0.97]))[2])) < 8


def test_the_world_stands_upright_on_the_floor() -> None:
    true, (before, person) = scene(5, frames=80, rate=20).rig, before_first_camera()
    rig, points = upright(before, person)
    assert np.degrees(np.arccos((rig.R[0].T @ true.R[0])[2, 2])) < 3
    # Level with the cameras and over the person; the first camera looks along y.
    feet = [BODY_25.index(n) for n in ("LHeel", "RHeel", "LBigToe", "RBigToe")]
    assert abs(np.nanpercentile(points[:, feet, 2], 5)) < 0.05
    assert np.abs(np.nanmedian(points[..., :2], axis=(0, 1))).max() < 0.01
    ahead = rig.R[0, 2]
    assert abs(ahead[0]) < 1e-9
    assert ahead[1] > 0.5
    # Still the same cameras and the same points.
    assert np.allclose(rig.project(points), before.project(person), equal_nan=True)


def test_level_cameras_correct_a_person_who_leans() -> None:
    rig, points = before_first_camera()
    true = scene(5, frames=80, rate=20).rig
    middle = np.nanmean(points, axis=(0, 1))
    lean = Rotation.from_rotvec(np.radians(12) * rig.R[0, 2]).as_matrix()  # to the side, for the first camera
    leaning = (points - middle) @ lean.T + middle
    found, _ = upright(rig, leaning)
    off = np.degrees(np.arccos((found.R[0].T @ true.R[0])[2, 2]))
    assert off < 4


def test_a_camera_held_askew_does_not_tilt_the_world() -> None:
    rig, points = before_first_camera()
    roll = np.asarray(Rotation.from_euler("z", 25, degrees=True).as_matrix())
    r, t = rig.R.copy(), rig.t.copy()
    r[1], t[1] = roll @ r[1], roll @ t[1]
    askew, _ = upright(replace(rig, R=r, t=t), points)
    assert np.degrees(np.arccos((askew.R[0].T @ scene(5, frames=80, rate=20).rig.R[0])[2, 2])) < 3


def test_the_floor_is_below_the_lowest_point_where_no_foot_is_seen() -> None:
    rig, person = before_first_camera()
    legs = [BODY_25.index(f"{s}{p}") for s in "LR" for p in ("Ankle", "Heel", "BigToe")]
    person[:, legs] = np.nan
    _, points = upright(rig, person)
    assert np.nanpercentile(points[..., 2], 5) == pytest.approx(0, abs=1e-9)
    assert np.isfinite(points[..., 2]).any()


def test_ahead_of_a_camera_that_looks_straight_down_is_the_top_of_its_picture() -> None:
    rig, person = before_first_camera()
    true = scene(5, frames=80, rate=20).rig
    down = np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])  # in the world of z up, its picture's top is y
    r = np.concatenate([(down @ true.R[0].T)[None], rig.R[1:]])
    found, _ = upright(replace(rig, R=r), person)
    assert -found.R[0, 1] @ [0, 1, 0] > 0.99


@pytest.mark.parametrize("lies", [False, True])
@pytest.mark.parametrize("degrees", [0, 90])
def test_estimated_cameras_are_upright_as_well(lies: bool, degrees: float) -> None:
    """Somebody who stands or lies before level or rolled ones."""
    s = scene(5, frames=80, rate=20)
    points = s.points.numpy()
    if lies:
        middle = np.nanmean(points, axis=(0, 1))
        points = (points - middle) @ Rotation.from_euler("x", 90, degrees=True).as_matrix().T + middle
    rig = rolled(s.rig, degrees)
    first, origin = rig.R[0], rig.t[0]
    r = rig.R @ first.T
    found, _ = upright(replace(rig, R=r, t=rig.t - r @ origin), points @ first.T + origin)
    off = np.degrees(np.arccos(np.clip((found.R[0].T @ rig.R[0])[2, 2], -1, 1)))
    assert off < 8


def reconstruct(folder: Path, rig: Rig, *, lies: bool = False, said: str = "") -> Store:
    """Results of somebody who moves on the spot, or lies on the back doing so, before a ring of cameras."""
    person = figure(np.arange(24) / 24)
    if lies:
        turn = Rotation.from_euler("y", -90, degrees=True).as_matrix()
        person = {name: points @ turn.T + [0.9, 0, 0.3] for name, points in person.items()}
    write_recording(folder / "recording", rig, [seen(rig, person)])
    state(folder / "recording", f"{{fps: 24, {said}}}")
    run(find_recording(folder / "recording"), folder / "out", RunConfig(), threads=False)
    return Store(folder / "out" / "results.zarr")


def trunk_lean_deg(results: Store, file: Path) -> float:
    """Median angle between the trunk and +y in an exported TRC."""
    export_person(results, load_body(), file)
    head, *rows = (line.split("\t") for line in file.read_text().splitlines()[3:] if line.strip())
    column = {name: k for k, name in enumerate(head) if name}
    values = np.array([[float(v or "nan") for v in row[: 2 + 75]] for row in rows[1:]])
    trunk = values[:, column["Neck"] :][:, :3] - values[:, column["CHip"] :][:, :3]
    return float(np.degrees(np.nanmedian(np.arccos(trunk[:, 1] / np.linalg.norm(trunk, axis=1)))))


def told_by_report(results: Store) -> list[float]:
    page = (results.path.parent / "report.html").read_text()
    found = re.search(r'"up": ?(\[[^]]*\])', page)
    assert found is not None
    return [float(n) for n in json.loads(found[1])]


def told_by_viewer(results: Store) -> list[float]:
    before = random.getstate()  # viser draws from it
    server = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
    try:
        frames = Frames(results, load_body())
        page = _Page(server, frames, [None] * len(results.contents.rig), live=False)
        page._set_scene(frames.at(3))
        up = server.initial_camera.up
        page.close()
    finally:
        server.stop()
        random.setstate(before)
    return [float(n) for n in up]


def test_who_lies_lies_everywhere(tmp_path: Path) -> None:
    results = reconstruct(tmp_path, FOUR, lies=True)
    assert told_by_report(results) == told_by_viewer(results) == [0, 0, 1]
    assert trunk_lean_deg(results, tmp_path / "a.trc") == pytest.approx(90, abs=12)


def test_rolled_cameras_export_who_stands_upright(tmp_path: Path) -> None:
    results = reconstruct(tmp_path, rolled(FOUR, 90))
    assert told_by_report(results) == told_by_viewer(results) == [0, 0, 1]
    assert trunk_lean_deg(results, tmp_path / "a.trc") < 12


def test_up_that_is_stated_holds_everywhere_and_may_change_later(tmp_path: Path) -> None:
    results = reconstruct(tmp_path, FOUR, said="up: y")
    assert told_by_report(results) == told_by_viewer(results) == [0, 1, 0]
    assert trunk_lean_deg(results, tmp_path / "a.trc") == pytest.approx(90, abs=12)
    joints = results.array("people/0/joints")
    state(tmp_path / "recording", "{fps: 24, up: [0, 0.1, 1]}")
    run(find_recording(tmp_path / "recording"), tmp_path / "out", RunConfig(), threads=False)
    results = Store(tmp_path / "out" / "results.zarr")
    np.testing.assert_array_equal(results.array("people/0/joints"), joints)
    assert told_by_report(results) == pytest.approx([0, 0.0995, 0.995], abs=1e-3)
    assert trunk_lean_deg(results, tmp_path / "b.trc") < 15
