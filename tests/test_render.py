import threading
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from builders import status
from scipy.spatial.transform import Rotation
from test_software import sphere

from models.rendering import overlay
from pipeline.batches import FitBatch, FrameBatch, KeypointBatch, SmplParams
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.video import VideoWriter, planes, probe, read_frames
from stages.decode import DecodeConfig, decode
from stages.render import Footage, RenderConfig, _scenes, render, video_names

RATE = Fraction(30000, 1001)
SIZES = ((160, 96), (96, 160))
T = 12


@dataclass
class Ball:
    """A body that is a sphere about its translation."""

    faces: np.ndarray
    points: torch.Tensor

    def vertices(self, global_orient, body_pose, betas, transl):
        assert global_orient.shape[1:] == (3, 3)
        assert body_pose.shape[1:] == (23, 3, 3)
        assert betas.shape == (len(transl), 10)
        return torch.einsum("nij,vj->nvi", global_orient, self.points) + transl[:, None]


@pytest.fixture(scope="module")
def body():
    vertices, faces = sphere(radius=0.35, n=16)
    return Ball(faces, torch.from_numpy(vertices))


@pytest.fixture
def rig():
    """A landscape camera and one beside it in portrait, both 3 m from the origin."""
    k = [np.array([[150.0, 0, 0.55 * w], [0, 160, 0.45 * h], [0, 0, 1]]) for w, h in SIZES]
    turn = Rotation.from_rotvec([0, 1.2, 0]).as_matrix()
    return Rig(
        ("front", "side left"),
        np.stack(k),
        np.tile([-0.1, 0.02, 0, 0, 0, 0, 0, 0], (2, 1)),
        np.stack([np.eye(3), turn]),
        np.array([[0, 0, 3.0], [0, 0, 3.0]]),
        np.array(SIZES),
    )


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / f"{v}.mp4" for v in range(2)]
    for (w, h), path in zip(SIZES, paths, strict=True):
        with VideoWriter(path, RATE, crf=5) as file:
            for _ in range(T):
                file.write(np.full((h, w, 3), 60, np.uint8))
    return paths


def batches(transl, valid=None, window=5):
    """Fits (T, P, 3) in batches of ``window`` frames."""
    transl = torch.as_tensor(np.asarray(transl), dtype=torch.float32)
    frames, people = transl.shape[:2]
    valid = torch.ones(frames, people, dtype=torch.bool) if valid is None else torch.as_tensor(valid)
    eye = torch.eye(3)
    for a in range(0, frames, window):
        n = min(window, frames - a)
        points = KeypointBatch(
            a,
            RATE,
            torch.arange(people),
            torch.arange(a, a + n).double() / float(RATE),
            torch.zeros(2, n, people, 25, 2),
            torch.zeros(2, n, people, 25, 2),
            torch.zeros(2, n, people, 25),
        )
        params = SmplParams(
            eye.expand(n, people, 3, 3),
            eye.expand(n, people, 23, 3, 3),
            torch.zeros(people, 10),
            transl[a : a + n],
        )
        yield FitBatch(
            points,
            params,
            torch.zeros(n, people, 24, 3),
            torch.zeros(n, people, 25, 4),
            torch.zeros(2, n, people),
            status(valid[a : a + n]),
        )


def run(items, rig, body, videos, out, index=None, **settings):
    cfg = RenderConfig(preset="ultrafast", crf=8, mosaic_size=(400, 300), **settings)
    index = np.tile(np.arange(T), (2, 1)) if index is None else index
    footage = Footage(rig, videos, index, RATE)
    return render(items, cfg, footage, body, out, partial(decode, cfg=DecodeConfig()))


def pictures(path):
    info = probe(path)
    return [f.to_ndarray(format="rgb24").astype(float) for f in read_frames(info, range(len(info.times_s)))]


MOVING = np.stack([np.linspace(-0.4, 0.4, T), np.zeros(T), np.zeros(T)], -1)[:, None]


def test_the_body_is_drawn_where_it_is_at_its_time(tmp_path, rig, body, videos):
    out = tmp_path / "out"
    given = [*batches(MOVING)]
    passed = [*run(iter(given), rig, body, videos, out, opacity=1)]
    assert all(a is b for a, b in zip(passed, given, strict=True))
    assert sorted(p.name for p in out.iterdir()) == [
        "mosaic.mp4",
        "overlay_front.mp4",
        "overlay_side_left.mp4",
    ]
    expected = rig.project(MOVING[:, 0], distorted=True)
    for v, name in enumerate(("overlay_front.mp4", "overlay_side_left.mp4")):
        info = probe(out / name)
        assert info.size == SIZES[v]
        assert info.rate == RATE
        np.testing.assert_allclose(info.times_s, np.arange(T) / float(RATE), atol=1e-4)
        for t, picture in enumerate(pictures(out / name)):
            blue = (picture[..., 2] - picture[..., 0] > 40)[: SIZES[v][1] - 24]
            rows, columns = np.nonzero(blue)
            np.testing.assert_allclose([columns.mean(), rows.mean()], expected[v, t], atol=1.5)
            np.testing.assert_allclose(picture[2, 2], 60, atol=8)  # and the video is still there


def test_results_do_not_depend_on_batches_or_threads(tmp_path, rig, body, videos):
    for name, window, threads in (("a", 5, 1), ("b", 12, 3)):
        [
            *run(
                batches(MOVING, window=window),
                rig,
                body,
                videos,
                tmp_path / name,
                threads=threads,
                mosaic=False,
            )
        ]
    for x, y in zip(*(pictures(tmp_path / n / "overlay_front.mp4") for n in "ab"), strict=True):
        assert np.abs(x - y).max() <= 6  # the encoder's own threads may differ, the picture may not


def test_missing_people_and_pictures_are_marked_and_keep_their_time(tmp_path, rig, body, videos):
    transl = np.zeros((T, 1, 3))
    transl[4:6] = np.nan
    valid = np.ones((T, 1), bool)
    valid[4:9] = False
    index = np.tile(np.arange(T), (2, 1))
    index[0, 10:] = -1
    [*run(batches(transl, valid), rig, body, [videos[0], None], tmp_path / "out", index)]
    front = pictures(tmp_path / "out" / "overlay_front.mp4")
    side = pictures(tmp_path / "out" / "overlay_side_left.mp4")
    assert len(front) == len(side) == T
    u, v = np.rint(rig.project(np.zeros(3), distorted=True)[0]).astype(int)
    body_colour = np.array([f[v, u] for f in front])
    label = np.array([f[-12:, :60].std() for f in front])
    assert np.ptp(body_colour[:4], 0).max() < 6
    np.testing.assert_allclose(body_colour[4:6], 60, atol=8)  # not seen: nothing is drawn
    spread = np.ptp(body_colour, 1)
    assert (spread[6:9] < 0.5 * spread[:4].min()).all()  # bridged: paler
    assert (label[4:9] > 20).all()
    assert (label[:4] < 3).all()
    assert (label[9] < 3).all()
    assert (label[10:] > 20).all()  # no frame
    np.testing.assert_allclose([f[2, -2] for f in front[10:]], 63, atol=8)  # grey, drawn on all the same
    assert np.ptp(front[11][v, u]) > 40
    assert all(f[-12:, :40].std() > 20 for f in side)  # no video


def test_people_keep_their_colour_and_hide_each_other(tmp_path, rig, body, videos):
    transl = np.zeros((T, 2, 3))
    transl[:6, 0, 2], transl[6:, 1, 2] = -0.6, -0.6  # who is nearer to the front camera
    [*run(batches(transl), rig, body, videos, tmp_path / "out", opacity=1, mosaic=False)]
    front = pictures(tmp_path / "out" / "overlay_front.mp4")
    u, v = np.rint(rig.project(np.zeros(3), distorted=True)[0]).astype(int)
    assert all(f[v, u, 2] > f[v, u, 0] + 40 for f in front[:6])  # the first is blue
    assert all(f[v, u, 0] > f[v, u, 2] + 40 for f in front[6:])  # the second is orange


@pytest.mark.parametrize("show", ["overlay", "skeleton"])
def test_people_who_come_and_go_keep_their_colour(tmp_path, rig, body, videos, show):
    """Nobody, then two with the second in front, then the second alone."""
    transl = np.zeros((T, 2, 3))
    transl[:, 1, 2] = -0.6
    both = list(batches(transl))
    ids = [[], [0, 1], [1]]
    some = [b.people(torch.tensor(i, dtype=torch.int64)) for b, i in zip(both, ids, strict=True)]
    [*run(iter(some), rig, body, videos, tmp_path / "out", opacity=1, mosaic=False, show=show)]
    front = pictures(tmp_path / "out" / f"{show}_front.mp4")
    assert len(front) == T
    if show == "overlay":
        u, v = np.rint(rig.project(np.zeros(3), distorted=True)[0]).astype(int)
        assert all(np.ptp(f[v, u]) < 15 for f in front[:5])  # the video's grey
        assert all(f[v, u, 0] > f[v, u, 2] + 40 for f in front[5:])  # the second is orange


def test_the_mosaic_holds_all_views_with_names_and_time(tmp_path, rig, body, videos):
    [*run(batches(MOVING), rig, body, videos, tmp_path / "out", opacity=1, overlay=False)]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mosaic.mp4"]
    info = probe(tmp_path / "out" / "mosaic.mp4")
    assert info.rate == RATE
    frames = pictures(info.path)
    assert len(frames) == T
    blue = [f[..., 2] - f[..., 0] > 40 for f in frames]
    half = frames[0].shape[1] // 2
    assert all(b[:, :half].sum() > 100 for b in blue)
    assert all(b[:, half:].sum() > 100 for b in blue)
    for x, y, _, _ in overlay.plan_mosaic(SIZES, (400, 300)).boxes:
        assert all(f[y : y + 12, x : x + 30].std() > 20 for f in frames)  # the camera's name
    footers = [f[-16:] for f in frames]
    assert all(np.abs(a - b).max() > 100 for a, b in pairwise(footers))  # the time goes on


def test_only_the_cameras_asked_for(tmp_path, rig, body, videos):
    [*run(batches(MOVING), rig, body, videos, tmp_path / "out", cameras=("side left",), mosaic=False)]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["overlay_side_left.mp4"]
    with pytest.raises(InputError, match=r"no camera back.*front, side left"):
        [*run(batches(MOVING), rig, body, videos, tmp_path / "out", cameras=("back",))]


def test_nothing_asked_for_is_nothing_done(tmp_path, rig, body, videos):
    assert len([*run(batches(MOVING), rig, body, videos, tmp_path / "out", overlay=False, mosaic=False)]) == 3
    assert not (tmp_path / "out").exists()


def test_file_names_are_safe_and_different():
    cfg = RenderConfig()
    names = video_names(cfg, ["cam 1", "cam/1", "../../x", "CAM_1", "käfer"])
    assert names == [
        "overlay_cam_1.mp4",
        "overlay_cam_1_2.mp4",
        "overlay_.._.._x.mp4",
        "overlay_CAM_1_3.mp4",
        "overlay_käfer.mp4",
        "mosaic.mp4",
    ]
    shown = video_names(RenderConfig(cameras=("cam/1",), mosaic=False), ["cam 1", "cam/1"])
    assert shown == ["overlay_cam_1_2.mp4"]


def test_a_failure_upstream_leaves_no_file_and_no_thread(tmp_path, rig, body, videos):
    def failing():
        yield from [*batches(MOVING)][:2]
        raise RuntimeError("upstream")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="upstream"):
        [*run(failing(), rig, body, videos, tmp_path / "out")]
    assert not [*(tmp_path / "out").iterdir()]
    half = run(batches(MOVING), rig, body, videos, tmp_path / "out")
    next(half)
    assert all(".part" in p.name for p in (tmp_path / "out").iterdir())
    half.close()
    assert not [*(tmp_path / "out").iterdir()]
    assert threading.active_count() == before


def test_a_gap_between_batches_is_an_error(tmp_path, rig, body, videos):
    first, _, third = batches(MOVING)
    with pytest.raises(ValueError, match="expected 5 on"):
        [*run(iter([first, third]), rig, body, videos, tmp_path / "out")]


def test_a_rendering_may_begin_in_the_middle(tmp_path, rig, body, videos):
    _, *rest = batches(MOVING)
    [*run(iter(rest), rig, body, videos, tmp_path / "out", mosaic=False)]
    assert len(pictures(tmp_path / "out" / "overlay_front.mp4")) == T - 5


def test_a_video_of_another_size_is_named(tmp_path, rig, body, videos):
    with pytest.raises(InputError, match=r"1.mp4: the video is 96x160 .* front is for 160x96"):
        [*run(batches(MOVING), rig, body, [videos[1], None], tmp_path / "out")]


def test_the_frames_of_the_decoder_are_not_drawn_on(tmp_path, rig, body, videos):
    """A frame that is shown twice is drawn on once each time, and the decoder still needs its own."""
    index = np.zeros((2, T), int)
    frames = [next(read_frames(videos[v], [0])) for v in range(2)]
    before = [[p.copy() for p in planes(f)] for f in frames]

    def same(videos, frame_index, start):
        yield FrameBatch(0, tuple((f,) * T for f in frames))

    cfg = RenderConfig(mosaic=False, preset="ultrafast")
    [*render(batches(MOVING), cfg, Footage(rig, videos, index, RATE), body, tmp_path / "out", same)]
    for frame, kept in zip(frames, before, strict=True):
        for a, b in zip(planes(frame), kept, strict=True):
            np.testing.assert_array_equal(a, b)


def test_people_are_named_by_their_ids(body):
    (fit,) = batches(np.zeros((1, 2, 3)), window=1)
    fit = replace(fit, keypoints=replace(fit.keypoints, ids=torch.tensor([0, 3])))
    (scene,) = _scenes(fit.people(torch.tensor([3, 5])), body, RenderConfig())
    assert scene.notes == ("person 5 not seen",)
