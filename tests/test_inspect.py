"""Inspection of a recording: it names the camera that is wrong, the format and the unit, and accuses
no other."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recordings import (
    BALANCING,
    SHARED,
    figure,
    ring,
    said,
    seen,
    state,
    write_people,
    write_recording,
    write_video,
)
from recordings import SMALL as SIZE
from recordings import SMALL_PEOPLE as PEOPLE
from recordings import SMALL_RIG as RIG
from scipy.spatial.transform import Rotation

from models.geometry.association import MatchConfig
from models.geometry.people import follow_longest
from models.geometry.point_order import TOP_CONFIDENCE
from pipeline.calibrations.pose2sim import write_calibration
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.findings import Finding
from pipeline.recording import Recording, find_recording
from pipeline.skeleton import BODY_25, POINT_ORDERS
from stages.check import check_recording, doubt_cameras, sample
from stages.inspect import MissingData, inspect, left_out, missing_data

TIME = np.arange(80) / 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "rec", RIG, [PEOPLE])


def ready(folder: Path) -> Recording:
    return inspect(find_recording(folder))


def codes(findings: Sequence[Finding]) -> list[tuple[str, str | None]]:
    return [(f.code, f.camera) for f in findings]


def make(folder: Path, views: int, *, calibrated: Rig | None = None) -> Recording:
    rig = ring(views)
    people = seen(rig, figure(TIME), noise_px=2)
    write_recording(folder, rig, [people], calibrated=calibrated)
    (folder / "recording.yaml").write_text("{fps: 20, keypoints: {format: body_25}}")
    return ready(folder)


def turned(rig: Rig, view: int, axis: str, degrees: float) -> Rig:
    """One camera turned on its tripod."""
    by = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    r, t = rig.R.copy(), rig.t.copy()
    r[view], t[view] = by @ r[view], by @ t[view]
    return replace(rig, R=r, t=t)


def test_a_good_recording(tmp_path: Path) -> None:
    recording = make(tmp_path, 4)
    check = check_recording(recording)
    assert check.frames == 80
    assert check.cameras == recording.rig.names
    assert np.allclose(
        check.distance_m[0, 2], np.linalg.norm(recording.rig.centres[0] - recording.rig.centres[2])
    )
    assert (check.files == 1).all()
    assert (check.agreement.person == 1).all()
    assert 1 < check.agreement.residual_px.min() <= check.agreement.residual_px.max() < 3
    assert check.agreement.left_out_px.max() < 6
    assert recording.findings == ()
    assert check.findings() == []
    rows = check.rows()
    assert len(rows) == 5
    assert {len(row) for row in rows} == {9}
    assert rows[1][0] == "cam01"
    depth = np.linalg.norm(recording.rig.centres, axis=1)  # the person walks about the middle
    np.testing.assert_allclose(
        check.residual_mm, 1000 * check.agreement.residual_px * depth / recording.rig.K[:, 0, 0], rtol=0.3
    )
    assert check.verdicts([]) == ["good"] * 4
    told = check.verdicts([Finding("camera_off", "stands elsewhere", "cam02")])
    assert told == ["good", "look at it", "good", "good"]
    assert check.verdicts([Finding("cameras_disagree", "nobody is named")]) == ["look at it"] * 4
    assert check.triangulation([])["cam03"] == {
        "residual_px": pytest.approx(check.agreement.residual_px[2], abs=1e-3),
        "residual_mm": pytest.approx(check.residual_mm[2], abs=1e-3),
        "verdict": "good",
    }


@pytest.mark.parametrize(("views", "pair"), [(3, (0, 1)), (4, (0, 1)), (5, (1, 3)), (6, (0, 1))])
@pytest.mark.parametrize("frames", [30, 80])
def test_exchanged_cameras_are_named_and_nobody_else(
    tmp_path: Path, views: int, pair: tuple[int, int], frames: int
) -> None:
    rig = ring(views)
    people = seen(rig, figure(TIME[:frames], (0.8, -0.5)), noise_px=2)
    people[list(pair)] = people[list(pair[::-1])]
    write_recording(tmp_path, rig, [people])
    (tmp_path / "recording.yaml").write_text("{fps: 20, keypoints: {format: body_25}}")
    check = check_recording(ready(tmp_path))
    one, other = (rig.names[v] for v in pair)
    assert check.swapped == pair
    assert codes(check.findings()) == [("cameras_exchanged", None)]
    assert check.findings()[0].sentence.startswith(f"cameras {one} and {other} are exchanged")


@pytest.mark.parametrize(
    ("views", "axis", "degrees"),
    [
        (3, "x", 2.0),
        (3, "x", 8.0),
        (3, "y", 8.0),
        *[(v, a, d) for v in (4, 6) for a in "xy" for d in (2.0, 8.0)],
    ],
)
def test_a_turned_camera_is_found(tmp_path: Path, views: int, degrees: float, axis: str) -> None:
    recording = make(tmp_path, views, calibrated=turned(ring(views), 1, axis, degrees))
    assert codes(recording.findings) == [("camera_off", "cam02")]


def test_a_face_that_is_off_in_one_camera_is_no_misplaced_camera(tmp_path: Path) -> None:
    rig = ring(4)
    people = seen(rig, figure(TIME), "coco_wholebody_133", noise_px=2)
    face = slice(23, 91)  # more than half of the points
    people[1, :, face, 0] += 25
    write_recording(tmp_path, rig, [people])
    (tmp_path / "recording.yaml").write_text("{fps: 20, keypoints: {format: coco_wholebody_133}}")
    assert ready(tmp_path).findings == ()


def test_whom_one_camera_alone_shows_is_left_out(tmp_path: Path) -> None:
    rig = ring(4)
    person, bystander = (seen(rig, figure(TIME, at), noise_px=2) for at in ((0.0, 0.0), (1.0, 1.0)))
    bystander[:2], bystander[3] = np.nan, np.nan
    write_recording(tmp_path, rig, [person, bystander])
    (tmp_path / "recording.yaml").write_text("{fps: 20, keypoints: {format: body_25}}")
    (finding,) = ready(tmp_path).findings
    assert (finding.code, finding.camera, finding.frames) == ("people_left_out", "cam03", 40)


def test_cameras_that_agree_about_nobody(tmp_path: Path) -> None:
    back = np.diag([-1.0, 1, -1])
    rig = ring(3)
    check = check_recording(make(tmp_path, 3, calibrated=replace(rig, R=back @ rig.R, t=rig.t @ back)))
    assert (check.agreement.person == 0).all()
    assert codes(check.findings()) == [("no_agreement", None)]


def test_a_camera_without_keypoints(tmp_path: Path) -> None:

    recording = make(tmp_path, 4)
    write_video(tmp_path / "videos" / "cam04.mp4", 80, size=(640, 360), rate=20)
    for file in (tmp_path / "keypoints" / "cam04").iterdir():
        file.unlink()
    recording = ready(tmp_path)
    check = check_recording(recording)
    assert check.files.tolist() == [1, 1, 1, 0]
    assert check.agreement.person.tolist() == [1, 1, 1, 0]
    assert np.isnan(check.agreement.residual_px[3])
    assert check.findings() == []


def test_only_a_part_of_a_long_recording_is_read(tmp_path: Path) -> None:
    recording = make(tmp_path, 3)
    line = recording.timeline
    long = replace(
        recording,
        timeline=replace(line, time_s=np.arange(80 * 20) / 20, frame_index=np.tile(line.frame_index, 20)),
    )
    check = check_recording(long)
    assert check.frames == 480


@pytest.fixture(scope="module")
def balancing() -> Recording:
    if not BALANCING.exists():
        pytest.skip("needs the shared balancing recording")
    return ready(BALANCING)


def test_a_real_recording_as_it_is(balancing: Recording) -> None:
    assert doubt_cameras(balancing.rig, sample(balancing)) == []
    check = check_recording(balancing)
    assert check.findings() == []
    assert check.agreement.left_out_px.max() < 25


@pytest.mark.parametrize("view", range(4))
@pytest.mark.parametrize("degrees", [2, 10])
def test_a_real_recording_with_one_camera_turned(balancing: Recording, view: int, degrees: float) -> None:
    rig = turned(balancing.rig, view, "x", degrees)
    assert codes(doubt_cameras(rig, sample(balancing))) == [("camera_off", rig.names[view])]


def test_cameras_that_stand_nobody_knows_where_are_not_compared(tmp_path: Path) -> None:
    make(tmp_path, 3)
    (tmp_path / "calibration.toml").unlink()
    (tmp_path / "recording.yaml").write_text("{fps: 20, picture_size: [1280, 720]}")
    for file in (tmp_path / "keypoints" / "cam02").iterdir():
        file.write_text('{"people": []}')
    check = check_recording(ready(tmp_path))
    assert not check.compared
    assert check.agreement.person.tolist() == [1, 0, 1]
    assert check.files.tolist() == [1, 1, 1]
    assert np.isnan(check.agreement.residual_px).all()
    assert check.rows()[1] == ("cam01", "100 %", "100 %")
    (finding,) = check.findings()
    assert (finding.code, finding.camera) == ("camera_shows_nobody", "cam02")


def test_a_single_camera(tmp_path: Path) -> None:
    make(tmp_path, 2)
    for file in (tmp_path / "keypoints" / "cam02").iterdir():
        file.unlink()
    (tmp_path / "keypoints" / "cam02").rmdir()
    check = check_recording(ready(tmp_path))
    assert not check.compared
    assert check.agreement.person.tolist() == [1]
    assert check.findings() == []


@pytest.mark.skipif(not BALANCING.exists(), reason="needs the shared balancing recording")
def test_a_real_recording() -> None:
    found = ready(BALANCING)
    assert found.warnings == ()
    assert (len(found), found.timeline.rate) == (99, 60)
    assert found.point_order.name == "body_25b"
    assert found.point_order.margin is not None
    assert found.point_order.margin > 4


@pytest.mark.skipif(not BALANCING.exists(), reason="needs the shared balancing recording")
def test_the_same_recording_in_the_order_of_body_25(tmp_path: Path) -> None:
    # BODY_25 has the mid hip in place of BODY_25B's head.
    source = POINT_ORDERS["body_25b"]
    shutil.copy(BALANCING / "calibration.toml", tmp_path)
    for file in sorted(BALANCING.glob("keypoints/*/*.json")):
        people = []
        for person in json.loads(file.read_text())["people"]:
            old = np.array(person["pose_keypoints_2d"]).reshape(25, 3)
            hips = old[source.index("LHip")], old[source.index("RHip")]
            new = [np.mean(hips, axis=0) if n == "MidHip" else old[source.index(n)] for n in BODY_25.names]
            people.append(np.array(new))
        write_people(
            tmp_path / "keypoints" / file.parent.name, file.parent.name, int(file.stem.split("_")[1]), people
        )
    found = ready(tmp_path)
    assert found.point_order.name == "body_25"
    assert found.point_order.margin is not None
    assert found.point_order.margin > 4


def test_keypoints_of_a_larger_picture(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, RIG, [PEOPLE * [2, 2, 1]])
    assert said(ready(folder), "times 0.5 the cameras agree")
    state(folder, "{keypoints: {format: body_25, scale: 1}, fps: 10}")
    assert said(
        ready(folder), "of the keypoints lie outside its picture; check that they were made on pictures of"
    )


def test_stated_format_in_the_users_spelling(folder: Path) -> None:
    state(folder, "{keypoints: {format: BODY_25}, fps: 10}")
    found = ready(folder)
    assert (found.point_order.name, found.point_order.how) == ("body_25", "stated in recording.yaml")
    state(folder, "{keypoints: {format: BODY_25B}, fps: 10}")
    assert said(ready(folder), "states the keypoint format body_25b, but read as body_25 limbs fit")


@pytest.mark.parametrize(("unit", "metres"), [("mm", 0.001), ("cm", 0.01)])
def test_the_unit_is_guessed_and_said(
    tmp_path: Path, unit: str, metres: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In that unit the cameras agree on a body: no other picture size is searched for.
    monkeypatch.setattr("stages.inspect.find_picture_scale", None)
    calibrated = replace(RIG, t=RIG.t / metres)
    folder = write_recording(tmp_path, RIG, [PEOPLE], calibrated=calibrated)
    found = ready(folder)
    assert np.allclose(found.rig.t, RIG.t)
    assert said(found, f"taken to be in {unit}: .*state it in recording.yaml, calibration: {{unit: {unit}}}")
    for stated in (unit, str(metres)):
        state(folder, f"{{calibration: {{unit: {stated}}}, fps: 10}}")
        found = ready(folder)
        assert found.warnings == ()
        assert np.allclose(found.rig.t, RIG.t)


def wrong_rig() -> Rig:
    """Every camera is turned about its own upright axis: the person is behind all of them."""
    back = np.diag([-1.0, 1, -1])
    return replace(RIG, R=back @ RIG.R, t=RIG.t @ back)


def test_a_calibration_on_which_nobody_agrees(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, RIG, [PEOPLE], calibrated=wrong_rig())
    with pytest.raises(
        InputError, match=r"25 keypoints can be body_25 or body_25b, and too few frames .*recording.yaml"
    ):
        ready(folder)
    state(folder, "{keypoints: {format: body_25}, fps: 10}")
    assert said(ready(folder), "no two views agree on a person: calibration, its unit, keypoint frame")


def test_cameras_that_never_agree_are_named(tmp_path: Path) -> None:
    rig = ring(5)
    people = seen(rig, figure(np.arange(24) / 10, (0.8, -0.5)))
    assert not said(ready(write_recording(tmp_path / "good", rig, [people])), "agrees with no other")
    swapped = ready(write_recording(tmp_path / "swapped", rig, [people[[1, 0, 2, 3, 4]]]))
    assert said(
        swapped, "cameras cam01 and cam02 are exchanged: with the keypoints of the other, each agrees"
    )
    assert not said(swapped, "agrees with no other view"), "one mistake is told once"
    people[1] = seen(rig, figure(1.7 * np.arange(24)[::-1] / 10, (-0.6, 0.9), 2.0))[1]
    other = ready(write_recording(tmp_path / "other", rig, [people]))
    for name in rig.names:
        message = f"camera {name} shows a person but agrees with no other view in 24 of 24 sampled frames: it"
        assert said(other, message) == (name == "cam02")
    assert not said(other, r"\binfo\b"), "info itself prints it"


def test_nobody_at_all(folder: Path) -> None:
    for file in folder.glob("keypoints/*/*.json"):
        file.write_text('{"people": []}')
    with pytest.raises(InputError, match="nobody in any of the 72 keypoint files looked at"):
        ready(folder)
    state(folder, "{keypoints: {format: body_25}, fps: 10}")
    assert said(ready(folder), "no two views agree on a person")


def test_unknown_and_mixed_numbers_of_points(tmp_path: Path) -> None:
    folder = write_recording(tmp_path / "a", RIG, [PEOPLE[:, :, :19]])
    with pytest.raises(
        InputError, match=r"19 keypoints a person fit none of the known formats: body_25 \(25\), .*coco_17"
    ):
        ready(folder)
    folder = write_recording(tmp_path / "b", RIG, [PEOPLE])
    for t in range(24):
        write_people(folder / "keypoints" / "cam02", "cam02", t, [PEOPLE[1, t, :17]])
    with pytest.raises(InputError, match=r"numbers of keypoints differ \(cam01 25, cam02 17, cam03 25\)"):
        ready(folder)


def test_other_scales_are_said(tmp_path: Path) -> None:
    scaled = PEOPLE.copy()
    scaled[..., :2] /= np.array(SIZE) - 1
    scaled[..., 2] *= 4
    folder = tmp_path
    for v, name in enumerate(RIG.names):
        for t in range(24):
            (folder / "keypoints" / name).mkdir(parents=True, exist_ok=True)
            listed = [{"pose_keypoints_2d": scaled[v, t].ravel().tolist()}]
            (folder / "keypoints" / name / f"{t}.json").write_text(json.dumps({"people": listed}))
    write_calibration(RIG, folder / "calibration.toml")
    found = ready(folder)
    assert said(found, r"confidences reach unusual values \(cam01 3.\d\d, cam02 3.\d\d, cam03 3.\d\d\)")
    assert said(found, "between 0 and 1: taken as fractions of the picture")
    image = found.people(np.arange(24))[:, :, 0]
    assert np.abs(image[..., :2] - PEOPLE[..., :2]).max() < 1e-3
    assert TOP_CONFIDENCE < image[..., 2].max() <= 1
    (folder / "keypoints" / "cam01" / "3.json").write_text(
        (folder / "keypoints" / "cam01" / "3.json").read_text().replace("[0.", "[-0.")
    )
    with pytest.raises(InputError, match=r"lie between -1 and 1"):
        ready(folder)


def test_missing_data_is_counted_by_reason(folder: Path) -> None:
    state(folder, "fps: 10")

    def file(t: int) -> Path:
        return folder / "keypoints" / "cam02" / f"cam02_{t:012d}_keypoints.json"

    file(3).unlink()
    file(4).write_text('{"people": []}')
    file(5).write_text('{"people": [{}]}')
    file(6).write_text(file(7).read_text()[:50])
    write_people(folder / "keypoints" / "cam02", "cam02", 8, [PEOPLE[1, 8, :17]])
    found = ready(folder)
    seen_now = np.ones((3, 24), dtype=bool)
    seen_now[1, 3:10] = False
    counted = missing_data(found, seen_now)
    assert counted[0].frames == counted[2].frames == {}
    assert counted[1].frames == {
        "no keypoint file": 1,
        "nobody": 2,
        "not JSON (cut off?)": 1,
        "not the person": 2,
        "51 numbers a person, expected 75": 1,
    }
    assert counted[1].examples["nobody"] == file(4).name
    assert counted[1].examples["not JSON (cut off?)"] == file(6).name


def test_a_camera_that_is_mostly_left_out_is_told() -> None:
    def missing(count: int) -> MissingData:
        return MissingData({"not the person": count, "nobody": 7}, {})

    shown = np.zeros((3, 99), dtype=bool)
    shown[0], shown[1, :40], shown[2, :4] = True, True, True
    (told,) = left_out("abc", [missing(0), missing(39), missing(88)], shown)
    assert (told.code, told.camera, told.frames) == ("camera_left_out", "c", 88)
    assert "in 88 of the 92 frames in which it and another show somebody" in told.sentence
    (told,) = left_out("abc", [missing(0), missing(40), missing(3)], shown)
    assert (told.camera, told.frames) == ("b", 40)


def unused(found: Recording) -> tuple[tuple[MissingData, ...], list[Finding]]:
    """What is missing and told after the matching that a run would do."""
    people = found.people(np.arange(len(found)))
    xy, confidence = found.rig.undistort_views(people[..., :2]), people[..., 2].astype(np.float64)
    cfg = MatchConfig(presence_s=0.3)
    chosen = follow_longest(found.rig, xy, confidence, found.timeline.time_s, cfg)
    missing = missing_data(found, chosen >= 0)
    return missing, left_out(found.rig.names, missing, chosen >= 0)


def test_a_camera_that_is_alone_with_the_person_is_not_called_wrong(tmp_path: Path) -> None:
    folder = write_recording(tmp_path, RIG.select(RIG.names[:2]), [PEOPLE[:2]])
    state(folder, "{fps: 10, keypoints: {format: body_25}}")
    for t in range(4, 24):
        write_people(folder / "keypoints" / "cam02", "cam02", t, [])
    (one, other), told = unused(ready(folder))
    assert one.frames.keys() == {"no second view"}
    assert one.frames["no second view"] >= 12
    assert other.frames == {"nobody": 20}
    assert told == []
    # Two that show somebody each, and not the same person, are.
    somebody = PEOPLE[1] + [0, 60, 0]
    for t in range(4, 24):
        write_people(folder / "keypoints" / "cam02", "cam02", t, [somebody[t]])
    assert [told.camera for told in unused(ready(folder))[1]] == ["cam01", "cam02"]


def test_a_camera_that_is_alone_starts_no_search(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state(folder, "{fps: 10, keypoints: {format: body_25}}")
    for name in RIG.names[1:]:
        for t in range(10, 24):
            write_people(folder / "keypoints" / name, name, t, [])
    monkeypatch.setattr("models.geometry.agreement.find_exchanged", None)  # whoever searches fails
    assert ready(folder).warnings == ()


# The person's size.


@pytest.mark.parametrize("factor", [0.4, 0.5, 1.6, 2.2, 3.0, 12.0, 39.37])
def test_a_person_too_large_or_too_small_is_told_and_mended(tmp_path: Path, factor: float) -> None:
    """The height that the finding gives, and the unit that it proposes, are right."""
    folder = write_recording(tmp_path, RIG, [PEOPLE], calibrated=replace(RIG, t=RIG.t * factor))
    state(folder, "fps: 10")
    found = [f for f in ready(folder).findings if f.code == "person_size"]
    height, unit = re.search(r"is ([\d.]+) m tall.*unit: ([\d.e-]+)}", found[0].sentence).groups()
    assert len(found) == 1
    metres = 0.01 if factor > 20 else 1.0  # inches are taken to be centimetres
    assert float(height) == pytest.approx(1.3 * 1.35 * factor * metres, rel=0.04)
    assert float(unit) * factor == pytest.approx(1.3 / 1.35, rel=0.04)
    state(folder, f"{{fps: 10, calibration: {{unit: {unit}}}}}")
    assert ready(folder).findings == ()


@pytest.mark.parametrize("factor", [0.56, 0.75, 0.9, 1.0, 1.25])
def test_a_child_and_a_giant_are_human(tmp_path: Path, factor: float) -> None:
    """A child or a giant is asked about, and taken as stated."""
    folder = write_recording(tmp_path, RIG, [PEOPLE], calibrated=replace(RIG, t=RIG.t * factor))
    state(folder, "fps: 10")
    asked = [f.code for f in ready(folder).findings]
    assert asked == ([] if factor in (0.9, 1.0) else ["person_size"])
    assert not asked or said(ready(folder), r"or \{unit: 1\} if the person is so tall")
    state(folder, "{fps: 10, calibration: {unit: 1}}")
    assert ready(folder).findings == ()


@pytest.mark.parametrize(
    ("case", "height"), [("board_too_large", 2.9), ("board_too_small", 0.85), ("board_in_squares", 44.0)]
)
def test_a_board_of_the_wrong_size(case: str, height: float) -> None:
    folder = SHARED / "cases" / case
    if not folder.exists():
        pytest.skip("needs the shared cases")
    (finding,) = [f for f in ready(folder).findings if f.code == "person_size"]
    assert float(finding.sentence.split(" m tall")[0].split()[-1]) == pytest.approx(height, rel=0.05)


# Up.


def test_up_is_decided_and_kept_with_the_cameras(folder: Path) -> None:
    state(folder, "fps: 10")
    assert find_recording(folder).rig.known_up is None
    assert ready(folder).rig.known_up.tolist() == [0, 0, 1]
    state(folder, "{fps: 10, up: -y}")
    assert ready(folder).rig.known_up.tolist() == [0, -1, 0]


def test_up_is_doubted(tmp_path: Path) -> None:
    """The world of a calibration leans; the vector that is proposed mends it."""
    turn = Rotation.from_euler("x", 30, degrees=True).as_matrix()
    folder = write_recording(tmp_path, RIG, [PEOPLE], calibrated=replace(RIG, R=RIG.R @ turn.T))
    state(folder, "fps: 10")
    found = ready(folder)
    assert codes(found.findings) == [("up_doubtful", None)]
    proposed = re.search(r"up: (\[.*\])", found.warnings[0])[1]
    state(folder, f"{{fps: 10, up: {proposed}}}")
    again = ready(folder)
    assert again.findings == ()
    assert np.degrees(np.arccos(again.rig.up @ turn[:, 2])) < 6


def test_up_without_a_calibration_is_z(folder: Path) -> None:
    (folder / "calibration.toml").unlink()
    state(folder, "{fps: 10, picture_size: [320, 180], up: y}")
    assert codes(ready(folder).findings) == [("calibration_missing", None), ("up_unused", None)]


def test_inspected_twice_is_inspected_once(folder: Path) -> None:
    found = ready(folder)
    assert inspect(found) is found


def test_a_camera_that_is_alone_now_and_then_is_not_named_before_a_run(tmp_path: Path) -> None:
    rig, time_s = ring(5), np.arange(24) / 10
    people = seen(rig, figure(time_s, (0.8, -0.5)))
    other = seen(rig, figure(1.7 * time_s[::-1], (-0.6, 0.9), 2.0))
    for frames, named in ((15, []), (22, ["cam02"])):
        people[1, :frames] = other[1, :frames]
        found = ready(write_recording(tmp_path / f"{frames}", rig, [people]))
        assert [f.camera for f in found.findings if f.code == "camera_alone"] == named


def test_cameras_a_hundred_metres_apart_are_taken_to_be_in_millimetres(tmp_path: Path) -> None:
    """Where nobody is agreed on, who would tell the unit."""
    far = replace(wrong_rig(), t=wrong_rig().t * 1000)
    folder = write_recording(tmp_path, RIG, [PEOPLE], calibrated=far)
    state(folder, "{keypoints: {format: body_25}, fps: 10}")
    found = ready(folder)
    assert {"no_agreement", "unit_guessed"} <= {f.code for f in found.findings}
    assert np.allclose(found.rig.t, wrong_rig().t)


@pytest.mark.parametrize("scale", [0.8, 3.3])
def test_the_person_gives_a_unit_to_cameras_without_one(tmp_path: Path, scale: float) -> None:
    """COLMAP's: also where its lengths would make a short person."""
    rig = ring(4)
    folder = write_recording(tmp_path, rig, [seen(rig, figure(np.arange(24) / 10), noise_px=0.5)])
    state(folder, "fps: 10")
    (folder / "calibration.toml").unlink()
    (folder / "sparse").mkdir()
    (folder / "sparse" / "cameras.txt").write_text(
        "# Camera list with one line\n"
        + "".join(
            f"{v} PINHOLE {w} {h} {k[0, 0]} {k[1, 1]} {k[0, 2] + 0.5} {k[1, 2] + 0.5}\n"
            for v, (k, (w, h)) in enumerate(zip(rig.K, rig.size, strict=True))
        )
    )
    (folder / "sparse" / "images.txt").write_text("# Image list with two lines\n" + "".join(
        f"{v} {' '.join(map(str, np.roll(Rotation.from_matrix(r).as_quat(), 1)))} "
        f"{' '.join(map(str, scale * t))} {v} {name}.png\n\n"
        for v, (r, t, name) in enumerate(zip(rig.R, rig.t, rig.names, strict=True))
    ))  # fmt: skip
    found = ready(folder)
    assert "unit_guessed" in {f.code for f in found.findings}
    assert np.ptp(found.rig.centres, axis=0) == pytest.approx(np.ptp(rig.centres, axis=0), rel=0.1)
    state(folder, f"{{fps: 10, calibration: {{unit: {1 / scale}}}}}")
    found = ready(folder)
    assert "unit_guessed" not in {f.code for f in found.findings}
    assert np.allclose(found.rig.t, rig.t)


def test_two_cameras_in_one_place_are_told(tmp_path: Path) -> None:
    rig = ring(4)
    copied = replace(rig, R=rig.R[[0, 1, 2, 2]], t=rig.t[[0, 1, 2, 2]])
    folder = write_recording(tmp_path, copied, [seen(copied, figure(np.arange(24) / 10), noise_px=0.5)])
    state(folder, "fps: 10")
    assert "camera_copied" in {f.code for f in ready(folder).findings}


def test_people_in_sight_are_told(tmp_path: Path) -> None:
    two = [seen(RIG, figure(np.arange(24) / 10, at), noise_px=0.5) for at in ((0.8, -0.5), (-0.7, 0.6))]
    folder = write_recording(tmp_path / "two", RIG, two)
    state(folder, "fps: 10")
    assert dict(ready(folder).notes)["people"] == "2 at once"
