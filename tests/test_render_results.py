"""``render_results`` and pictures of cameras that have nothing in common."""

import sys
from dataclasses import replace
from fractions import Fraction
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from builders import COCO_17, batch, contents, on_coco, status
from builders import rig as two_cameras
from test_software import STRONG

import run_pipeline
from models.body import load_body
from models.rendering import overlay
from models.rendering.software import draw
from pipeline.batches import FitBatch, KeypointBatch, SmplParams
from pipeline.cameras import Rig
from pipeline.contents import Contents
from pipeline.errors import InputError
from pipeline.store import Store
from pipeline.video import VideoWriter, pick_encoder, probe, read_frames
from stages.decode import DecodeConfig, decode
from stages.render import RenderConfig, meshes, render_results, worst_stills

SIZES = ((640, 360), (360, 640), (480, 480), (720, 406))
RATES = (24, 60, 120, 30)
LINE = Fraction(24)
T = 10


@pytest.fixture(scope="module")
def body():
    return load_body()


@pytest.fixture(scope="module")
def rig():
    """Four cameras of four shapes, around the person; z is up. The lenses bend visibly: k1 = −0.3."""
    k, rotations = [], []
    for v, (w, h) in enumerate(SIZES):
        f = 0.9 * h if w >= h else 0.7 * h
        k.append([[f, 0, 0.45 * w], [0, 1.07 * f, 0.56 * h], [0, 0, 1]])
        angle = 1.4 * v
        back = np.array([np.cos(angle), np.sin(angle), 0])
        rotations.append([np.cross([0, 0, -1], -back), [0, 0, -1], -back])
    rotation = np.array(rotations)
    centre = np.array([0, 0, 0.05])
    t = np.array([0, 0, 2.6]) - rotation @ centre
    dist = np.array([STRONG, (-0.3, 0, 0, 0, 0, 0, 0, 0), STRONG, (-0.3, 0.09, 0, 0, 0, 0, 0, 0)], float)
    names = ("wide", "tall", "square", "large")
    return Rig(names, np.array(k), dist, rotation, t, np.array(SIZES))


@pytest.fixture(scope="module")
def store(tmp_path_factory, rig, body):
    """T frames of a person who walks along x; camera v films at RATES[v]."""
    time_s = np.arange(T) / float(LINE)
    index = np.stack([np.rint(time_s * rate).astype(np.int64) for rate in RATES])
    contents = Contents(rig, LINE, time_s, index, {"name": "test", "sha256": ""}, {}, window=4)
    made = Store.create(tmp_path_factory.mktemp("store") / "results.zarr", contents)
    # SMPL stands along y and looks along z; the world has z up.
    stand = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    off_px = 9.0 * (torch.arange(T) == 2 + 2 * torch.arange(4)[:, None])
    for k in range(len(made.done)):
        a, b = made.span(k)
        n = b - a
        transl = torch.zeros(n, 1, 3)
        transl[:, 0, 0] = torch.linspace(-0.3, 0.3, T)[a:b]
        params = SmplParams(
            stand.expand(n, 1, 3, 3), torch.eye(3).expand(n, 1, 23, 3, 3), torch.zeros(1, 10), transl
        )
        joints = torch.zeros(n, 1, 24, 3) + transl[:, :, None]
        points = torch.cat([transl[:, :, None].expand(n, 1, 25, 3), torch.ones(n, 1, 25, 1)], -1)
        image = rig.project(points[..., :3].double().numpy(), distorted=True)
        known = KeypointBatch(
            a, LINE, torch.tensor([0]), torch.from_numpy(time_s[a:b]), torch.from_numpy(image).float(),
            torch.from_numpy(image).float(), torch.ones(4, n, 1, 25),
        )  # fmt: skip
        made.write(
            FitBatch(
                known, params, joints, points, off_px[:, a:b, None], status(torch.ones(n, 1).bool()),
            )
        )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def videos(tmp_path_factory, rig, store, body):
    """What the cameras film, by a twin that knows no lens: a large pinhole picture, bent by OpenCV."""
    folder = tmp_path_factory.mktemp("videos")
    vertices = np.concatenate([meshes(store.read(k), body) for k in range(len(store.done))])
    paths = []
    for v, name in enumerate(rig.names):
        paths.append(folder / f"{name}.mp4")
        index = store.contents.frame_index[v]
        with VideoWriter(paths[-1], RATES[v], crf=2, preset="ultrafast") as file:
            for n in range(int(index[-1]) + 1):
                t = int(np.abs(index - n).argmin())
                shown = np.full((*SIZES[v][::-1], 3), 200, np.uint8)
                if index[t] == n:
                    shown = np.where(_bent(rig, v, vertices[t], body)[..., None], 20, shown).astype(np.uint8)
                file.write(shown)
    return paths


def _bent(rig, v, vertices, body):
    """Silhouette (H, W): which pixels of the bent picture look at the body in a pinhole picture."""
    k, scale, border = rig.K[v].copy(), 3, 300
    k[:2] *= scale
    k[:2, 2] += border
    w, h = SIZES[v]
    large = (w * scale + 2 * border, h * scale + 2 * border)
    pinhole = Rig(("p",), k[None], np.zeros((1, 8)), rig.R[v][None], rig.t[v][None], np.array([large]))
    picture = draw(vertices, body.faces, pinhole, 0, np.ones((1, 4)), antialias=False)
    mask = np.zeros(large[::-1], np.uint8)
    ph, pw = picture.alpha.shape
    mask[picture.y0 : picture.y0 + ph, picture.x0 : picture.x0 + pw] = picture.alpha
    pixels = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).astype(np.float64)
    at = rig.undistort(v, pixels) * scale + border
    return cv2.remap(mask, at.astype(np.float32), None, cv2.INTER_LINEAR) > 127


def again(store, mode, videos, body, out, start=0, stop=None, **settings):
    settings = {"preset": "ultrafast", "crf": 2, "mosaic_size": (480, 320), **settings}
    cfg = RenderConfig(codec="libx264", backend="software", **settings)
    files, stream = render_results(
        store, mode, cfg, videos, body, out, partial(decode, cfg=DecodeConfig()), slice(start, stop)
    )
    frames = sum(len(b.valid) for b in stream)
    assert all(f.exists() for f in files)
    return files, frames


def pictures(path):
    info = probe(path)
    return [f.to_ndarray(format="rgb24").astype(float) for f in read_frames(info, range(len(info.times_s)))]


def test_stills_show_each_cameras_worst_frame_around_the_person(store, rig, videos, monkeypatch):
    monkeypatch.setattr("stages.render.MAX_STILLS", 3)  # a camera without a video takes no place
    stills = worst_stills(store, [*videos[:3], None], RenderConfig(scale=0.5))
    assert [(s.camera, s.frame, s.error_px) for s in stills if s.person == 0] == [
        ("wide", 2, 9),
        ("tall", 4, 9),
        ("square", 6, 9),
    ]
    for v, still in enumerate(stills):
        w, h = SIZES[v]
        side = 2 * 0.05 * max(w, h)
        assert still.picture.shape == pytest.approx((side, side, 3), abs=1), "all keypoints are in one place"
        middle = still.picture[still.picture.shape[0] // 2, still.picture.shape[1] // 2].astype(int)
        assert middle[1] > middle[[0, 2]].max() + 60, "a green dot: the fit is where the keypoints are"


def test_overlays_lie_on_the_person_whatever_the_camera(store, rig, videos, body, tmp_path):
    """Portrait, landscape and square, 24 to 120 fps, k1 = −0.3: the drawn silhouette on the filmed one."""
    alone, _ = again(store, "mesh", videos, body, tmp_path, opacity=1, colours=("#FFFFFF",))
    files, frames = again(store, "overlay", videos, body, tmp_path, opacity=1, colours=("#FF0000",))
    assert frames == T
    for v, file in enumerate(files):
        info = probe(file)
        assert info.size == SIZES[v]
        assert info.rate == LINE
        index = store.contents.frame_index[v]
        filmed = [f.to_ndarray(format="gray") < 110 for f in read_frames(videos[v], index.tolist())]
        for mask, picture in zip(filmed, pictures(file), strict=True):
            red = picture[..., 0] - picture[..., 2] > 50
            red[-16:] = mask[-16:] = False
            assert mask.sum() > 800
            # Chroma is half as fine as luma: edges are allowed a pixel here, and looked at closer below.
            union = (red | mask).sum()
            edge = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
            assert ((red ^ mask) & ~edge).sum() / union < 0.005
            assert (red & mask).sum() / union > 0.85
        for mask, picture in zip(filmed, pictures(alone[v]), strict=True):
            drawn = picture[..., 1] > 85
            assert (drawn & mask)[:-16].sum() / (drawn | mask)[:-16].sum() > 0.96


@pytest.mark.parametrize("mode", ["mesh", "skeleton", "mosaic", "side", "turntable"])
def test_every_mode_shows_something_that_moves_in_all_frames(store, rig, videos, body, tmp_path, mode):
    files, frames = again(store, mode, videos, body, tmp_path, start=3, stop=9)
    assert frames == 6
    assert len(files) == (4 if mode in ("mesh", "skeleton") else 1)
    for file in files:
        shown = pictures(file)
        assert len(shown) == 6
        coloured = [np.ptp(p, axis=-1) > 40 for p in shown]
        assert all(c.sum() > 30 for c in coloured)
        assert (coloured[0] != coloured[-1]).sum() > 10


def test_keypoints_are_joined_by_the_bones_of_the_store(body, tmp_path):
    """The middle between two points is coloured where a bone of COCO-17 lies, and nowhere else."""
    made = Store.create(tmp_path / "s.zarr", replace(contents(), keypoint_skeleton=COCO_17))
    fit = on_coco(batch(0))
    angle = 2 * np.pi * (np.arange(17) + 0.3 * np.random.default_rng(5).random(17)) / 17
    xyz = np.stack([0.9 * np.cos(angle), 0.7 * np.sin(angle), 0 * angle], -1)
    points = torch.from_numpy(np.concatenate([xyz, np.ones((17, 1))], -1)).float()
    unseen = replace(fit.keypoints, confidence=torch.zeros_like(fit.keypoints.confidence))
    made.write(replace(fit, keypoints=unseen, keypoints_3d=points.expand_as(fit.keypoints_3d)))
    files, _ = again(made, "skeleton", [None, None], body, tmp_path / "out", stop=1, colours=("#FF0000",))
    red = pictures(files[0])[0]
    red = cv2.dilate(red[..., 0] - red[..., 2], np.ones((3, 3)))
    at = two_cameras().project(xyz, distorted=True)[0]
    a, b = np.array(COCO_17.bones).T
    for i in range(17):
        for j in range(i):
            middle = (at[i] + at[j]) / 2
            along = at[b] - at[a]
            share = np.clip(((middle - at[a]) * along).sum(1) / (along**2).sum(1), 0, 1)
            apart = np.linalg.norm(at[a] + share[:, None] * along - middle, axis=1).min()
            x, y = np.rint(middle).astype(int)
            if apart < 1:
                assert red[y, x] > 50, (COCO_17.names[i], COCO_17.names[j])
            elif apart > 8:
                assert red[y, x] < 30, (COCO_17.names[i], COCO_17.names[j])


def test_a_body_alone_needs_no_video_and_stands_where_it_does_over_the_video(store, videos, body, tmp_path):
    mesh, _ = again(store, "mesh", [None] * 4, body, tmp_path / "a", opacity=1, colours=("#FF0000",))
    over, _ = again(store, "overlay", videos, body, tmp_path / "b", opacity=1, colours=("#FF0000",))
    for a, b in zip(mesh, over, strict=True):
        for x, y in zip(pictures(a), pictures(b), strict=True):
            red = [p[..., 0] - p[..., 2] > 50 for p in (x, y)]
            assert (red[0] ^ red[1]).mean() < 0.01
            assert x[-12:, :60].std() < 3  # nothing is missing, nothing is said


def test_a_scaled_video_shows_the_same_smaller(store, rig, videos, body, tmp_path):
    files, _ = again(store, "overlay", videos, body, tmp_path, scale=0.5, colours=("#FF0000",))
    large, _ = again(store, "overlay", videos, body, tmp_path / "large", colours=("#FF0000",))
    for v, (a, b) in enumerate(zip(files, large, strict=True)):
        small, whole = pictures(a)[2], pictures(b)[2]
        assert small.shape[:2] == tuple(round(n / 4) * 2 for n in SIZES[v][::-1])
        shrunk = cv2.resize(whole, small.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk - small).mean() < 3


def test_frames_that_are_not_there_are_refused(store, videos, body, tmp_path):
    with pytest.raises(InputError, match=r"no frame 19; frames 0 to 9 "):
        again(store, "mesh", videos, body, tmp_path, start=8, stop=20)


def test_an_encoder_that_does_not_work_is_refused():
    assert pick_encoder("libx264") == "libx264"
    with pytest.raises(InputError, match=r"codec h269: .*libx264"):
        pick_encoder("h269")
    assert pick_encoder("auto")


def test_drawing_on_a_frame_leaves_those_the_decoder_makes_from_it(store, rig, body, tmp_path):
    """A film in which each frame is predicted from those before it: outside the body it must stay itself."""
    path = tmp_path / "film.mp4"
    w, h = SIZES[0]
    noise = np.random.default_rng(0).integers(0, 255, (h, 2 * w, 3)).astype(np.uint8)
    noise = cv2.GaussianBlur(noise, (0, 0), 3)
    with VideoWriter(path, 24, crf=2) as file:
        for t in range(T):
            file.write(np.ascontiguousarray(noise[:, 3 * t : 3 * t + w]))
    wide = replace(store.contents, frame_index=np.tile(np.arange(T), (4, 1)))
    copy = Store.create(tmp_path / "results.zarr", wide)
    for k in range(len(store.done)):
        copy.write(store.read(k))
    files, _ = again(copy, "overlay", [path, None, None, None], body, tmp_path, cameras=("wide",))
    vertices = np.concatenate([meshes(store.read(k), body) for k in range(len(store.done))])
    for t, (found, was) in enumerate(zip(pictures(files[0]), pictures(path), strict=True)):
        picture = draw(vertices[t], body.faces, rig, 0, np.ones((1, 4)))
        box = np.ones((h, w), bool)
        ph, pw = picture.alpha.shape
        box[max(picture.y0 - 4, 0) : picture.y0 + ph + 4, max(picture.x0 - 4, 0) : picture.x0 + pw + 4] = (
            False
        )
        assert box.mean() > 0.3
        assert np.abs(found - was)[box].mean() < 3


def test_lines_and_discs_lie_where_they_are_put():
    planes = np.full((80, 120), 16, np.uint8), *(np.full((40, 60), 128, np.uint8) for _ in range(2))
    matrix = overlay.yuv_matrix(1, 80)
    missing = np.array([[np.nan, 3.0]])
    overlay.draw_circles(planes, np.array([[30.5, 20.5]]), np.array([[1.0, 0, 0]]), matrix, 6, filled=True)
    overlay.draw_circles(planes, missing, np.ones((1, 3)), matrix, 6, filled=True)
    overlay.draw_lines(planes, missing, missing, np.ones(3), matrix, 2)
    for plane, base, scale in ((planes[0], 16, 1), (planes[2], 128, 2)):
        rows, columns = np.nonzero(plane.astype(int) - base > 20)
        at = (np.array([columns.mean(), rows.mean()]) + 0.5) * scale - 0.5
        np.testing.assert_allclose(at, [30.5, 20.5], atol=0.6)
    assert np.pi * 9 < len(rows) < np.pi * 4.2**2  # with its soft edge


def command(capfd, monkeypatch, *words):
    """Status, standard output and standard error of the command line."""
    monkeypatch.setattr(sys, "argv", ["run_pipeline.py", "render", *map(str, words)])
    status = 0
    try:
        run_pipeline.main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    return status, *capfd.readouterr()


@pytest.fixture
def out(store, tmp_path):
    """A folder that ``run`` might have written."""
    (tmp_path / "results.zarr").symlink_to(store.path)
    return tmp_path


def test_the_command_draws_what_is_asked_for(out, capfd, monkeypatch):
    words = ["--mode", "mesh", "--cameras", "wide,tall", "--start", "2", "--end", "7", "--scale", "0.5"]
    words += ["--colour", "#FF0000", "--alpha", "1", "--codec", "libx264", "--crf", "5"]
    status, said, _ = command(capfd, monkeypatch, out, *words)
    assert status == 0
    folder = out / "render/mesh_frames_2-6"
    assert said.strip() == f"{folder}: mesh_wide.mp4, mesh_tall.mp4"
    for name, size in zip(("wide", "tall"), SIZES, strict=False):
        shown = pictures(folder / f"mesh_{name}.mp4")
        assert len(shown) == 5
        assert shown[0].shape[:2] == (size[1] // 2, size[0] // 2)
        assert all((p[..., 0] - p[..., 2] > 50).sum() > 200 for p in shown)


@pytest.mark.parametrize("mode", ["side", "turntable", "mesh"])
def test_a_users_video_is_not_drawn_over(out, capfd, monkeypatch, mode):
    """B4: a camera called `side`, with its video where drawings go. What was drawn here is replaced."""
    words = [
        out,
        "--out",
        out,
        "--mode",
        mode,
        "--start",
        2,
        "--end",
        3,
        "--set",
        "render.mosaic_size=[128,64]",
    ]
    file = out / ("mesh_wide.mp4" if mode == "mesh" else f"{mode}.mp4")
    file.write_bytes(b"the user's")
    status, _, errors = command(capfd, monkeypatch, *words)
    assert status == 2
    assert f"{file}: is there already and was not drawn" in errors
    assert file.read_bytes() == b"the user's"
    file.unlink()
    assert [command(capfd, monkeypatch, *words)[0] for _ in range(2)] == [0, 0]
    assert file.stat().st_size > 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--mode mesh --cameras back", "there is no camera back. The cameras are: wide, tall"),
        ("--mode mosaic", "summary.json names no recording"),
        ("--mode sideways", "there is no such mode. Choose overlay"),
        ("--mode side --cameras wide", "shows no camera's picture"),
        ("--mode turntable --scale 0.5", "shows no camera's picture"),
        (
            "--mode mesh --colour blue",
            "--colour: render.colours.0: a colour is written as #rrggbb",
        ),
        ("--mode mesh --set render.colours=[]", "at least one colour is needed"),
        ("--mode mesh --alpha 7", "--alpha: render.opacity: Input should be less than or equal to 1"),
        ("--mode mesh --codec h269", "codec h269: no such video encoder works here"),
        ("--mode mesh --start 8 --end 20", "no frame 19; frames 0 to 9 are done."),
        ("--mode mesh --start 10", "no frame 10; frames 0 to 9 are done."),
        ("--mode mesh --start 8 --end 8", "--end is the frame after the last"),
    ],
)
def test_mistakes_on_the_command_line_are_told_before_work_begins(out, capfd, monkeypatch, words, message):
    status, said, errors = command(capfd, monkeypatch, out, *words.split())
    assert status == 2
    assert message in errors
    assert sum("render." in line for line in errors.splitlines()) <= 1, "one mistake is told once"
    assert "0%" not in errors, "a progress bar began"
    assert said == ""
    assert not list(out.rglob("*.mp4"))
