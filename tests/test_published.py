"""Training on published data: files of SPIN and of `preprocess`, their pictures and crops of their videos."""

from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from builders import smpl_file
from scipy.spatial.transform import Rotation
from test_training_synthetic import same
from typer.testing import CliRunner

import run_pipeline
from models.datasets.rows import PersonRow, read_rows, to_arrays, write_npz
from models.training.crop_store import CropStore
from models.training.published import PublishedPeople, PublishedRows
from models.training.samples import Sampling
from models.training.sources import SourceConfig, open_source
from models.training.target_body import load_target_body
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.video import VideoWriter
from stages.crops import crops_of_rows

SIZE, WIDTH, HEIGHT, VIEWS, INSTANTS = 64, 320, 240, 5, 3
DIST = (-0.25, 0.06, 0.001, -0.001, 0, 0, 0, 0)


def rig() -> Rig:
    angle = 1.2 * np.arange(VIEWS)
    R = Rotation.from_euler("y", angle[:, None]).as_matrix()
    K = np.tile([[300.0, 0, 158], [0, 305, 121], [0, 0, 1]], (VIEWS, 1, 1))
    t = np.tile([0, 0, 3.5], (VIEWS, 1)).astype(float)
    return Rig(tuple("01234"), K, np.tile(DIST, (VIEWS, 1)), R, t, np.tile([WIDTH, HEIGHT], (VIEWS, 1)))


def people(instant: int) -> np.ndarray:
    """(49, 3) metres, world."""
    return np.random.default_rng([instant, 9]).uniform(-0.4, 0.4, (49, 3))


def frame(instant: int, view: int, dots: np.ndarray) -> np.ndarray:
    """Dots at some pixels on a ground whose brightness says which frame it is."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    out = np.full((HEIGHT, WIDTH), 20.0 + 8 * instant + 4 * view)
    for u, v in dots:
        out += 180 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 18)
    return np.repeat(out.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def write(folder: Path, *, videos: bool) -> Path:
    """A data set of five calibrated cameras, as `preprocess` leaves it. The nose is a dot."""
    r, rows, shown = rig(), [], {}
    for i in range(INSTANTS):
        xyz = people(i)
        xy = r.project(xyz, distorted=True)
        for v in range(VIEWS):
            camera = f"video_{v}"
            name = f"S1/Seq1/imageSequence/{camera}.avi#{i}" if videos else f"S1/{camera}/frame_{i:06d}.png"
            shown[v, i] = frame(i, v, xy[v, :1])
            points = np.concatenate([xy[v], np.full((49, 1), 0.8)], 1)
            points[3] = 0
            rows.append(
                PersonRow(
                    id=f"mpi-inf-3dhp/S1/Seq1/{camera}/{i:06d}", instant=f"S1/Seq1/{i}", imgname=name,
                    box=np.array([*xy[v].mean(0), 1.2 * np.ptp(xy[v], axis=0).max()]), camera=camera,
                    openpose=points[:25], part=points[25:],
                    S=np.concatenate([(xyz[25:] - xyz[39]) @ r.R[v].T, np.ones((24, 1))], 1),
                    pose=np.tile(Rotation.from_matrix(r.R[v]).as_rotvec(), 24), shape=np.arange(10.0),
                    has_smpl=float(i != 1), K=r.K[v], dist=r.dist[v], R=r.R[v], t=r.t[v],
                )
            )  # fmt: skip
    for v in range(VIEWS):
        if videos:
            path = folder / f"S1/Seq1/imageSequence/video_{v}.avi"
            path.parent.mkdir(parents=True, exist_ok=True)
            with VideoWriter(path.with_suffix(".mp4"), Fraction(25), crf=4, threads=1) as file:
                for i in range(INSTANTS):
                    file.write(shown[v, i])
            path.with_suffix(".mp4").rename(path)
        else:
            (folder / f"S1/video_{v}").mkdir(parents=True)
            for i in range(INSTANTS):
                cv2.imwrite(str(folder / f"S1/video_{v}/frame_{i:06d}.png"), shown[v, i])
    write_npz(to_arrays(rows), folder / "data.npz")
    return folder / "data.npz"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pictures"), videos=False)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("videos"), videos=True)


def centroid(image: np.ndarray, near: np.ndarray) -> np.ndarray:
    x0, y0 = (near.round().astype(int) - 9).tolist()
    part = image[y0 : y0 + 19, x0 : x0 + 19].astype(float)
    part = (part - np.quantile(part, 0.3)).clip(0)
    y, x = np.mgrid[:19, :19]
    return np.array([(x * part).sum(), (y * part).sum()]) / part.sum() + [x0, y0]


def check(source: PublishedPeople, tolerance: float) -> None:
    """Keypoints, cameras, pictures and truth against what the data set was made from."""
    r = rig()
    for i in range(len(source)):
        s = source[i]
        *head, number = s.id.split("/")
        assert head == ["mpi-inf-3dhp", "S1", "Seq1"]
        instant = int(number)
        xyz = people(instant)
        assert len(s.cameras) in (1, 2)
        for k, camera in enumerate(s.cameras):
            v = int(camera.removeprefix("video_"))
            assert np.allclose(s.R[k], r.R[v], atol=1e-6)
            in_camera = xyz @ s.R[k].T + s.t[k]
            want = (in_camera / in_camera[:, 2:] @ s.K[k].T)[:, :2]
            assert np.isnan(s.xy_px[k, 3]).all()
            assert s.confidence[k, 3] == 0
            known = np.arange(49) != 3
            assert np.abs(want - s.xy_px[k])[known].max() < 0.05  # float32 in the file, and the lens undone
            assert np.abs(centroid(s.pictures[k].mean(-1), want[0]) - want[0]).max() < tolerance
            corner = float(np.median(s.pictures[k][10:30, 10:30]))
            assert abs(corner - (20 + 8 * instant + 4 * v)) < 3 or corner > 60
            joints = (xyz[25:] - xyz[39]) @ s.R[k].T
            assert np.allclose(s.joints[k], joints, atol=1e-5)
        if instant == 1:
            assert np.isnan(s.orient).all()
            assert np.isnan(s.body_pose).all()
        else:
            assert np.allclose(s.orient, s.R, atol=1e-6)
            assert np.allclose(s.body_pose, s.R[0], atol=1e-6)


def test_pictures_and_what_is_known_of_them(pictures: Path) -> None:
    source = PublishedPeople(pictures, root=pictures.parent, sampling=Sampling(2, SIZE))
    assert len(source) == 3 * INSTANTS
    check(source, 0.15)
    for row, camera in enumerate(source.rows.camera):  # the box is the pinhole camera's
        v, given = int(camera.removeprefix("video_")), read_rows(pictures)["box"][row]
        np.testing.assert_allclose(
            source.rows.box[row, :2], rig().undistort(v, given[None, :2])[0], atol=1e-6
        )
        assert source.rows.box[row, 2] == given[2]
    assert same(pickle.loads(pickle.dumps(source))[11], source[11])


def test_shapes_are_learned_for_smpl_alone(pictures: Path, tmp_path: Path) -> None:
    cfg = SourceConfig(kind="mpi-inf-3dhp", path=pictures, root=pictures.parent)
    smpl = open_source(cfg, sampling=Sampling(2, SIZE), body=load_target_body(smpl_file(tmp_path)))
    ships = open_source(cfg, sampling=Sampling(2, SIZE))
    for i in range(len(smpl)):
        s = smpl[i]
        want = np.full(10, np.nan) if s.id.endswith("/000001") else np.arange(10.0)
        np.testing.assert_array_equal(s.betas, want)
        assert np.isnan(ships[i].betas).all()


def test_crops_of_videos_are_the_same_samples(videos: Path, pictures: Path, tmp_path: Path) -> None:
    rows = PublishedRows(videos)
    plan = rows.plan(SIZE)
    files = [rows.imgname[row].partition("#") for row in plan.label[:, 0]]
    assert files == sorted(files)
    *_, last = crops_of_rows(rows, videos.parent, plan, tmp_path / "crops.zarr")
    assert last == VIEWS * INSTANTS
    assert CropStore(tmp_path / "crops.zarr").plan.made_of == rows.digest
    cfg = SourceConfig(kind="mpi-inf-3dhp", path=videos, crops=tmp_path / "crops.zarr")
    source = open_source(cfg, sampling=Sampling(2, SIZE))
    assert isinstance(source, PublishedPeople)
    check(source, 0.25)
    plain = PublishedPeople(pictures, root=pictures.parent, sampling=Sampling(2, SIZE))
    off = [np.abs(a.astype(float) - b) for a, b in zip(source[4].pictures, plain[4].pictures, strict=True)]
    assert np.mean(off) < 2


def test_crops_of_pictures_are_the_pictures(pictures: Path, tmp_path: Path) -> None:
    rows = PublishedRows(pictures)
    *_, _ = crops_of_rows(rows, pictures.parent, rows.plan(SIZE), tmp_path / "crops.zarr")
    cut = PublishedPeople(pictures, crops=tmp_path / "crops.zarr", sampling=Sampling(2, SIZE))
    plain = PublishedPeople(pictures, root=pictures.parent, sampling=Sampling(2, SIZE))
    assert all(same(cut[i], plain[i]) for i in (0, 7, 20))


def test_crops_of_rows_without_a_box_are_black_and_frames_that_are_not_there_are_said(
    pictures: Path, videos: Path, tmp_path: Path
) -> None:
    with np.load(pictures) as d:
        arrays = dict(d)
    arrays["scale"][1] = 0
    np.savez(tmp_path / "rows.npz", **arrays)
    rows = PublishedRows(tmp_path / "rows.npz")
    *_, _ = crops_of_rows(rows, pictures.parent, rows.plan(SIZE), tmp_path / "crops.zarr")
    store = CropStore(tmp_path / "crops.zarr")
    black = [not store.picture(i).any() for i in range(len(store.plan.box))]
    assert black == (store.plan.label[:, 0] == 1).tolist()
    with np.load(videos) as d:
        arrays = dict(d)
    arrays["imgname"] = np.array([f"{n.partition('#')[0]}#9999" for n in arrays["imgname"]])
    np.savez(tmp_path / "late.npz", **arrays)
    rows = PublishedRows(tmp_path / "late.npz")
    with pytest.raises(InputError, match="frames, but the data's rows name frame 9999"):
        list(crops_of_rows(rows, videos.parent, rows.plan(SIZE), tmp_path / "late.zarr"))


def spin_file(path: Path, names: list[str], **more: Any) -> Path:
    n = len(names)
    rng = np.random.default_rng(0)
    np.savez(
        path, imgname=np.array(names), center=rng.uniform(80, 120, (n, 2)), scale=rng.uniform(0.4, 0.6, n),
        part=np.concatenate([rng.uniform(50, 150, (n, 24, 2)), np.ones((n, 24, 1))], 2), **more,
    )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("kind", "name", "first"),
    [
        ("mpi-inf-3dhp", "S{s}/Seq1/imageFrames/video_{v}/frame_{f:06d}.jpg", "mpi-inf-3dhp/S1/Seq1/000002"),
        ("h36m", "images/S{s}_Walking_1.{v}4138969_{f:06d}.jpg", "h36m/S1/Walking_1/000002"),
        ("h36m", "S{s}/Videos/Walking 1.{v}4138969.mp4#{f}", "h36m/S1/Walking 1/2"),
    ],
)
def test_views_are_told_from_spins_names(kind: Any, name: str, first: str, tmp_path: Path) -> None:
    names = [name.format(s=s, v=v, f=f) for s in (1, 2) for v in (1, 2, 5) for f in (2, 3)]
    rows = PublishedRows(spin_file(tmp_path / "train.npz", names), kind)
    assert len(rows.members) == 4
    assert all(len(m) == 3 for m in rows.members)
    for members in rows.members:
        assert len({rows.instant[m] for m in members}) == 1
        assert len({rows.camera[m] for m in members}) == 3
    assert rows.instant[0] == first
    assert len(PublishedRows(tmp_path / "train.npz").members) == len(names)
    with pytest.raises(InputError, match="not named as those of"):
        PublishedRows(spin_file(tmp_path / "odd.npz", ["a.jpg"]), kind)


def test_a_file_without_cameras_has_spins(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((200, 200, 3), (10, 20, 200), np.uint8))
    names = ["a.png", "a.png"]
    pose = np.zeros((2, 72))
    pose[:, 0] = np.pi / 2
    file = spin_file(tmp_path / "coco.npz", names, pose=pose, shape=np.ones((2, 10)), has_smpl=np.ones(2))
    source = PublishedPeople(file, root=tmp_path, sampling=Sampling(2, SIZE))
    assert len(source) == 2
    a, b = source[0], source[1]
    assert len({a.id, b.id}) == 2
    with np.load(file) as d:
        side, center = 200 * d["scale"][0], d["center"][0]
        x, y = center.round().astype(int)
        assert a.id == f"coco/a.png/{x}_{y}"
        first, last = (np.trunc(center + k * side / 2) for k in (-1, 1))
        want = (d["part"][0, :, :2] + 0.5 - first) * SIZE / (last - first) + 15.5
    assert np.allclose(a.xy_px[0, 25:], want)
    assert np.isnan(a.xy_px[0, :25]).all()
    # 5000 pixels of focal length in a crop of 224, straight ahead.
    assert np.allclose(a.K[0], [[5000 * SIZE / 224, 0, 47.5], [0, 5000 * SIZE / 224, 47.5], [0, 0, 1]])
    assert np.isnan(a.R).all()
    assert np.isnan(a.t).all()
    assert np.isnan(a.joints).all()
    assert np.allclose(a.orient[0] @ [0, 0, 1], [0, -1, 0])
    assert np.allclose(a.pictures[0][40, 40], [200, 20, 10])  # red, green, blue


def test_mistakes(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.npz").write_bytes(b"not really")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    lost = spin_file(tmp_path / "lost.npz", ["gone.jpg"])
    for path, message in (
        (tmp_path / "none.npz", "cannot be read"),
        (tmp_path / "torn.npz", "cannot be read"),
        (tmp_path / "other.npz", "imgname"),
    ):
        with pytest.raises(InputError, match=message):
            PublishedRows(path)
    with pytest.raises(InputError, match="frame of a video"):
        PublishedPeople(videos, root=videos.parent, sampling=Sampling(2, SIZE))
    np.savez(tmp_path / "flat.npz", imgname=np.array(["a.jpg"]), center=np.zeros((1, 2)), scale=np.zeros(1))
    with pytest.raises(InputError, match="no row with a box"):
        PublishedPeople(tmp_path / "flat.npz", sampling=Sampling(2, SIZE))
    with pytest.raises(InputError, match=r"gone\.jpg: cannot be read as a picture"):
        PublishedPeople(lost, sampling=Sampling(2, SIZE))[0]


def test_the_command_cuts_rows(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "crops.zarr"
    asked = ["crops", str(videos), "--out", str(out), "--size", str(SIZE)]
    said = CliRunner().invoke(run_pipeline.app, [*asked, "--dry-run"])
    assert said.exit_code == 0
    assert "15 pictures take up to 0.4 MB" in said.output
    assert not out.exists()
    assert CliRunner().invoke(run_pipeline.app, asked).exit_code == 0
    check(PublishedPeople(videos, crops=out, sampling=Sampling(2, SIZE)), 0.25)
