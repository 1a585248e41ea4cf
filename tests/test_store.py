import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
import zarr
from builders import COCO_17, FRAMES, WINDOW, batch, contents, on_coco, rig
from scipy.spatial.transform import Rotation

from models.angles import DEFINITIONS, fitted_angles
from pipeline.batches import FitBatch, PoseBatch, Status
from pipeline.errors import InputError
from pipeline.skeleton import BODY_25, SMPL_24
from pipeline.store import Store


@pytest.fixture
def written(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "results.zarr", contents())
    for k in range(3):
        store.write(batch(k))
    return store


def test_what_is_written_is_read(written):
    assert written.first_missing == 3
    for k in range(3):
        want, got = batch(k), written.read(k)
        for name in ("joints", "keypoints_3d", "reprojection_px", "status", "valid"):
            assert torch.equal(getattr(got, name), getattr(want, name)), name
        assert torch.allclose(got.params.body_pose, want.params.body_pose.float(), atol=1e-6)
        assert torch.allclose(got.params.global_orient, want.params.global_orient.float(), atol=1e-6)
        assert torch.equal(got.keypoints.image_px, want.keypoints.image_px)
        assert torch.allclose(got.keypoints.xy_px, want.keypoints.xy_px, atol=1e-3)
        assert torch.equal(got.keypoints.time_s, want.keypoints.time_s)


def test_windows_are_read_as_one_batch(written):
    several, each = written.read(0, 2), [written.read(k) for k in range(3)]
    assert several.start == 0
    assert torch.equal(several.joints, torch.cat([b.joints for b in each]))
    assert torch.equal(several.params.body_pose, torch.cat([b.params.body_pose for b in each]))
    assert torch.equal(several.keypoints.image_px, torch.cat([b.keypoints.image_px for b in each], 1))


def test_what_is_carried_into_the_next_window_keeps_every_bit(written):
    assert written.state(0) == {}
    for k in range(3):
        state, want = Store(written.path).state(k + 1), batch(k).carried
        assert state.keys() == want.keys() == {*batch(k).state, *batch(k).keypoints.state}
        for name, x in want.items():
            assert torch.equal(state[name], x), name
            assert (state[name].shape, state[name].dtype) == (x.shape, x.dtype), name


def test_readable_without_the_project(written):
    root = zarr.open(written.path, mode="r")
    assert root.metadata.zarr_format == 3
    assert root.attrs["fps"] == [30000, 1001]
    assert root["people/0/body_pose"].shape == (FRAMES, 23, 3)
    assert root["people/0/body_pose"].chunks[0] == WINDOW
    assert root["people/0/reprojection_px"].shape == (FRAMES, 2)
    assert root["people/0/keypoints_2d"].shape == (2, FRAMES, 25, 3)
    assert root["people/0/keypoints_2d"].chunks == (2, WINDOW, 25, 3)
    assert root["state/smplify/0/betas"].shape == (3, 10)
    # The axis-angle is the rotation: a point turned by one is turned by the other.
    turned = Rotation.from_rotvec(root["people/0/global_orient"][3]).apply([1, 2, 3])
    assert np.allclose(
        turned, batch(0).params.global_orient[3, 0] @ torch.tensor([1.0, 2, 3]).double(), atol=1e-5
    )


def test_a_store_says_which_points_it_holds(tmp_path):
    store = Store.create(tmp_path / "s.zarr", replace(contents(), keypoint_skeleton=COCO_17))
    with pytest.raises(ValueError, match="FitBatch from frame 0 on has 25 keypoints, expected 17"):
        store.write(batch(0))
    for k in range(3):
        store.write(on_coco(batch(k)))
    again = Store(store.path)
    assert (again.contents.skeleton, again.contents.keypoint_skeleton) == (SMPL_24, COCO_17)
    fit = again.read(1)
    assert (fit.skeleton, fit.keypoints.skeleton) == (SMPL_24, COCO_17)
    assert torch.equal(fit.keypoints_3d, on_coco(batch(1)).keypoints_3d)
    assert again.read(0).people(torch.tensor([7])).keypoints.image_px.shape == (2, WINDOW, 1, 17, 2)
    tables = zarr.open(store.path, mode="r").attrs["skeletons"]
    assert tables["joints"]["names"] == [*SMPL_24.names]
    assert tables["keypoints"]["bones"] == [[*bone] for bone in COCO_17.bones]
    with pytest.raises(InputError, match=r"skeletons\.keypoints\.names"):
        Store.resume(store.path, contents())


def test_a_store_that_does_not_say_it_holds_the_usual_points(written):
    meta = written.path / "zarr.json"
    content = json.loads(meta.read_text())
    del content["attributes"]["skeletons"], content["attributes"]["angles"]
    meta.write_text(json.dumps(content))
    older = Store.resume(written.path, contents())
    assert (older.contents.skeleton, older.contents.keypoint_skeleton) == (SMPL_24, BODY_25)
    content["attributes"]["skeletons"] = {"joints": {"names": ["pelvis"], "flips": [1], "bones": []}}
    meta.write_text(json.dumps(content))
    with pytest.raises(InputError, match="cannot be read"):
        Store(written.path)


def regression(k: int) -> PoseBatch:
    fit = batch(k)
    betas = torch.linspace(0, 1, len(fit.valid) * 10).reshape(-1, 1, 10)
    sigma = torch.full((len(fit.valid), 1, 23), 0.1 * k)
    params = fit.params
    said = PoseBatch(fit.keypoints, params.global_orient, params.body_pose, betas, params.transl, sigma)
    said.transl[1] = torch.nan
    return said


def test_what_the_regressor_said_is_kept_frame_by_frame(tmp_path):
    store = Store.create(tmp_path / "results.zarr", replace(contents(), regression=True))
    for k in range(3):
        store.write_regression(regression(k))
        assert not store.done[k], "the fit is still to come"
        store.write(batch(k))
    store = Store(store.path)
    for k in range(3):
        want = regression(k)
        for name in ("global_orient", "body_pose", "betas", "transl", "pose_sigma"):
            a, b = store.people([0], f"regression/{name}", *store.span(k)), getattr(want, name)
            if b.ndim > 3:
                a = roma.rotvec_to_rotmat(a)
            assert torch.allclose(a.float(), b.float(), atol=1e-6, equal_nan=True), name
    assert zarr.open(store.path, mode="r")["people/0/regression/betas"].shape == (FRAMES, 10)


def test_a_lost_file_of_the_regression_undoes_its_window(tmp_path):
    about = replace(contents(), regression=True)
    store = Store.create(tmp_path / "results.zarr", about)
    for k in range(3):
        store.write_regression(regression(k))
        store.write(batch(k))
    (store.path / "people/0/regression/betas/c.1.0").unlink()
    assert Store.resume(store.path, about).done.tolist() == [True, False, True]


def with_angles():
    return replace(contents(), regression=True, angles=DEFINITIONS)


def test_angles_are_those_of_the_fit_and_say_what_they_are(tmp_path):
    store = Store.create(tmp_path / "s.zarr", with_angles())
    for k in range(3):
        store.write_regression(regression(k))
        store.write(batch(k), fitted_angles(batch(k), store.contents.rig.up))
    kept = zarr.open(store.path, mode="r")["people/0/angles"]
    assert kept.attrs["units"] == "deg"
    named = dict(zip(kept.attrs["names"], kept.attrs["definitions"], strict=True))
    assert named == DEFINITIONS == Store(store.path).contents.angles
    assert kept.chunks == (WINDOW, len(DEFINITIONS))
    fit = store.read(0, 2)
    np.testing.assert_allclose(kept[...], fitted_angles(fit, store.contents.rig.up)[:, 0], atol=1e-3)
    (store.path / "people/0/angles/c.1.0").unlink()
    assert Store.resume(store.path, with_angles()).done.tolist() == [True, False, True]


def test_angles_are_measured_where_they_are_kept(tmp_path):
    store = Store.create(tmp_path / "s.zarr", contents())
    with pytest.raises(ValueError, match=r"shape \(8, 1, 32\), expected None"):
        store.write(batch(0), fitted_angles(batch(0), rig().up))
    store = Store.create(tmp_path / "t.zarr", replace(contents(), angles=DEFINITIONS))
    with pytest.raises(ValueError, match=r"shape None, expected \(8, 1, 32\)"):
        store.write(batch(0))
    assert not store.done.any()


@pytest.mark.parametrize(
    "table", [[], 5, {}, {"names": 3, "definitions": []}, {"names": ["a"], "definitions": []}]
)
def test_damaged_definitions_are_told(table, written):
    meta = written.path / "zarr.json"
    content = json.loads(meta.read_text())
    content["attributes"]["angles"] = table
    meta.write_text(json.dumps(content))
    with pytest.raises(InputError, match="cannot be read"):
        Store(written.path)


def test_another_way_up_changes_the_angles_that_depend_on_it(tmp_path):
    about = replace(contents(), angles=DEFINITIONS)
    turned = replace(about, rig=replace(rig(), known_up=np.array([0.0, 0, 1])))
    one, other = (Store.create(tmp_path / name, c) for name, c in (("a", about), ("b", turned)))
    for store in (one, other):
        for k in (0, 1):
            store.write(batch(k), fitted_angles(batch(k), store.contents.rig.up))
    before = one.array("people/0/angles")
    one = Store.resume(one.path, turned).turn_up(turned.rig.up, fitted_angles)
    after = one.array("people/0/angles")
    np.testing.assert_allclose(after, other.array("people/0/angles"), atol=1e-3)
    world = np.array([name.split("_")[0] in ("pelvis", "trunk") for name in DEFINITIONS])
    assert (abs(after - before)[: 2 * WINDOW].max(0) > 1)[world].all()
    np.testing.assert_allclose(after[:, ~world], before[:, ~world], atol=1e-3)
    assert one.contents.rig.up.tolist() == Store(one.path).contents.rig.up.tolist() == [0, 0, 1]
    assert one.digest == other.digest


def test_every_array_has_units_and_named_axes(tmp_path):
    store = Store.create(tmp_path / "s.zarr", with_angles())
    for k in range(3):
        store.write_regression(regression(k))
        store.write(batch(k), fitted_angles(batch(k), store.contents.rig.up))
    arrays = {n: a for n, a in zarr.open(store.path).members(max_depth=None) if isinstance(a, zarr.Array)}
    assert len(arrays) > 25
    for name, array in arrays.items():
        assert array.attrs["units"], name
        assert len({*array.metadata.dimension_names}) == array.ndim, name
    axes = {
        n: dict(zip(a.metadata.dimension_names, a.shape, strict=True))
        for n, a in arrays.items()
        if not n.startswith("state/")
    }
    for dimension in ("time", "camera", "joint", "keypoint", "beta", "window"):
        assert len({sizes[dimension] for sizes in axes.values() if dimension in sizes}) == 1, dimension
    assert axes["people/0/keypoints_2d"]["time"] == FRAMES
    assert arrays["people/0/joints"].attrs["units"] == "m"


def test_without_a_regressor_nothing_is_kept_of_it(written):
    assert "regression" not in zarr.open(written.path, mode="r")["people/0"]


def test_missing_stays_missing(tmp_path):
    store = Store.create(tmp_path / "s.zarr", contents())
    full = batch(0)
    pose = full.params.body_pose.clone()
    pose[2] = torch.nan
    store.write(replace(full, params=replace(full.params, body_pose=pose)))
    assert np.isnan(store.array("people/0/body_pose")[2]).all()
    assert np.isfinite(store.array("people/0/body_pose")[[1, 3]]).all()
    assert torch.isnan(store.read(0).params.body_pose[2]).all()
    assert np.isnan(zarr.open(store.path, mode="r")["state/smplify/0/betas"][1:]).all()
    assert store.first_missing == 1


def test_continues_at_the_first_window_that_is_not_done(tmp_path):
    path = tmp_path / "s.zarr"
    store = Store.create(path, contents())
    store.write(batch(0))
    (path / "people/0/joints/c.0.0.0.deadbeef.partial").write_bytes(b"cut")
    again = Store.resume(path, contents())
    assert again.first_missing == 1
    assert not [*path.rglob("*.partial")]


def test_killed_between_creating_and_naming(tmp_path):
    path = tmp_path / "s.zarr"
    Store.create(path, contents())
    path.rename(tmp_path / "s.zarr.new")
    (tmp_path / "s.zarr.new/zarr.json").unlink()
    assert Store.resume(path, contents()).first_missing == 0


def test_another_configuration_is_refused_by_key(written):
    other = replace(contents(), config={"smplify": {"weight": 2.0}, "render": {"crf": 20}})
    with pytest.raises(InputError, match=r"config\.smplify\.weight: 1\.0 → 2\.0"):
        Store.resume(written.path, other)
    with pytest.raises(InputError, match=r"body\.sha256: 0 → 1"):
        Store.resume(written.path, replace(contents(), body={"name": "test", "sha256": "1"}))
    with pytest.raises(InputError, match="cameras/t differs"):
        Store.resume(written.path, replace(contents(), rig=replace(rig(), t=rig().t + 0.01)))
    with pytest.raises(InputError, match="time_s differs"):
        Store.resume(written.path, replace(contents(), time_s=contents().time_s[:-1]))


def test_what_does_not_change_the_results_may_differ(written):
    other = replace(contents(), config={"smplify": {"weight": 1.0}, "render": {"crf": 30}})
    assert Store.resume(written.path, other, ignore=("render",)).first_missing == 3


def test_frames_that_are_there(tmp_path, written, monkeypatch):
    assert written.finished == FRAMES
    written.check_frames(0, FRAMES)
    written.check_frames(3, 4)
    for start, stop in ((-1, 2), (0, FRAMES + 1), (FRAMES, FRAMES + 1), (3, 3), (4, 2)):
        with pytest.raises(InputError):
            written.check_frames(start, stop)
    assert list(written.blocks()) == [(0, 2)]
    monkeypatch.setattr("pipeline.store.BLOCK_FRAMES", WINDOW - 1)
    assert list(written.blocks()) == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(InputError, match="no frame is done yet"):
        Store.create(tmp_path / "empty.zarr", contents()).check_frames(0, 1)


def test_only_whole_windows(written):
    with pytest.raises(ValueError, match="are not window 0"):
        written.write(batch(0).frames(0, 3))


def test_clear_refusals(tmp_path, written):
    with pytest.raises(InputError, match="no results store here"):
        Store(tmp_path)
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(InputError, match="not a multispin store"):
        Store(tmp_path / "other.zarr")
    meta = written.path / "zarr.json"
    newer = json.loads(meta.read_text())
    newer["attributes"] |= {"version": 99, "software": "multispin 9.9"}
    copy = tmp_path / "newer.zarr"
    shutil.copytree(written.path, copy)
    (copy / "zarr.json").write_text(json.dumps(newer))
    with pytest.raises(InputError, match=r"multispin 9\.9, store format 99"):
        Store(copy)
    older = json.loads(meta.read_text())
    older["attributes"] |= {"version": 1, "software": "multispin 0.1"}
    (copy / "zarr.json").write_text(json.dumps(older))
    with pytest.raises(InputError, match=r"multispin 0\.1 in store format 1, .*: run again"):
        Store(copy)
    (copy / "zarr.json").write_text(meta.read_text()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        Store(copy)


def test_a_folder_that_cannot_be_written(tmp_path, written, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "_write_state", full)
    with pytest.raises(InputError, match=r"frames 8–15 could not be written \(No space left on device\)"):
        written.write(batch(1))


def test_a_done_window_that_lost_a_file_is_not_done(written):
    (written.path / "people/0/joints/c.1.0.0").unlink()
    assert Store.resume(written.path, contents()).first_missing == 1


@pytest.mark.parametrize("file", ["smplify/0/betas/c.1.0", "smplify/0/unseen/c.1", "associate/next_id/c.1"])
def test_a_done_window_that_lost_restart_state_is_not_done(written, file):
    (written.path / "state" / file).unlink()
    again = Store.resume(written.path, contents())
    assert again.done.tolist() == [True, False, True]
    assert again.state(1).keys() == batch(0).carried.keys()


def test_an_empty_file_is_a_lost_one(written):
    (written.path / "people/0/keypoints_2d/c.0.2.0.0").write_bytes(b"")
    assert Store.resume(written.path, contents()).done.tolist() == [True, True, False]


def test_damaged_restart_state_is_not_gone_on_from(tmp_path):
    store = Store.create(tmp_path / "s.zarr", contents())
    for k in range(2):
        store.write(batch(k))
    chunk = store.path / "state/smplify/0/betas/c.1.0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 0x40
    chunk.write_bytes(data)
    assert Store.resume(store.path, contents()).done.tolist() == [True, False, False]


@pytest.mark.parametrize(("damaged", "done"), [((0, 1), [False, False, False]), ((0,), [True, True, False])])
def test_state_is_checked_for_some_windows_before_the_first_that_is_lost(
    tmp_path, monkeypatch, damaged, done
):
    """For one window here: of a long recording all would take long."""
    monkeypatch.setattr("pipeline.store._CHECKED_STATES", 1)
    store = Store.create(tmp_path / "s.zarr", contents())
    for k in range(2):
        store.write(batch(k))
    for k in damaged:
        chunk = store.path / f"state/smplify/0/betas/c.{k}.0"
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 0x40
        chunk.write_bytes(data)
    assert Store.resume(store.path, contents()).done.tolist() == done


def test_a_person_whose_group_was_made_last_is_nobody_yet(tmp_path):
    store = Store.create(tmp_path / "s.zarr", contents())
    leftover = store.path / "people/0.new/joints"
    leftover.mkdir(parents=True)
    (leftover / "c.0.0.0").write_bytes(b"of a writer that was killed")
    store._make_person(0)
    assert not (store.path / "people/0/joints/c.0.0.0").exists()
    again = Store.resume(store.path, contents())
    assert again.ids == (0,)
    assert not again.done.any()
    for k in range(3):
        again.write(batch(k))
    assert torch.equal(again.read(0).joints, batch(0).joints)


def test_a_lost_shape_undoes_the_last_window_that_has_it(written):
    (written.path / "people/0/betas/c.0").unlink()
    assert Store.resume(written.path, contents()).done.tolist() == [True, True, False]


def other_people(fit: FitBatch, ids: list[int]) -> FitBatch:
    return fit.people(torch.tensor(ids))


def test_people_come_and_go(tmp_path):
    store = Store.create(tmp_path / "s.zarr", contents())
    assert store.ids == ()
    store.write(replace(other_people(batch(0), []), state={}))
    assert store.ids == ()
    assert store.read(0).joints.shape == (WINDOW, 0, 24, 3)
    second = batch(1)
    second = replace(second, keypoints=replace(second.keypoints, ids=torch.tensor([3])))
    store.write(other_people(second, [0, 3]))
    store.write(batch(2))
    store = Store.resume(store.path, contents())
    assert store.ids == (0, 3)
    assert store.done.all(), "what nobody wrote is not lost"
    assert [store.read(k).keypoints.ids.tolist() for k in range(3)] == [[], [0, 3], [0]]
    assert store.read(0, 2).keypoints.ids.tolist() == [0, 3]
    assert torch.equal(store.read(1).joints[:, 1], batch(1).joints[:, 0])
    assert torch.isnan(store.read(1).joints[:, 0]).all()
    for name, missing in (("joints", np.nan), ("valid", False), ("status", Status.NOT_SEEN)):
        values = store.array(f"people/3/{name}", 0, WINDOW)
        assert np.array_equal(values, np.full_like(values, missing), equal_nan=values.dtype.kind == "f")
    (store.path / "people/3/valid/c.1").unlink()
    assert Store.resume(store.path, contents()).done.tolist() == [True, False, True]


def test_people_come_in_the_order_of_their_numbers(tmp_path):
    store = Store.create(tmp_path / "results.zarr", contents())
    for k, person in enumerate((10, 9)):
        store.write(other_people(batch(k), [person]))
    assert store.ids == (9, 10)
    assert store.read(0, 1).keypoints.ids.tolist() == [9, 10]


def test_a_person_who_comes_late_costs_no_more_in_a_long_recording(tmp_path, monkeypatch):
    store = Store.create(tmp_path / "results.zarr", contents())
    monkeypatch.setattr(Store, "done", property(lambda _: pytest.fail("reads a file for every window")))
    store.write(batch(0))
    store.write(other_people(batch(1), [4]))


def test_damage_is_named(written):
    chunk = written.path / "people/0/transl/c.0.0"
    chunk.write_bytes(chunk.read_bytes()[:5])
    with pytest.raises(InputError, match=r"people/0/transl at 0–7 cannot be read .*Remove the store"):
        written.read(0)
    shutil.rmtree(written.path / "people/0/joints")
    with pytest.raises(InputError, match="people/0/joints cannot be read"):
        Store(written.path).read(1)


def test_the_digest_tells_stores_of_other_results_apart(tmp_path, written):
    assert Store(written.path).digest == written.digest == contents().digest()
    other = Store.create(tmp_path / "b.zarr", replace(contents(), config={"smplify": {"weight": 2.0}}))
    moved = replace(contents(), rig=replace(rig(), t=rig().t + 0.01))
    assert len({written.digest, other.digest, moved.digest()}) == 3
