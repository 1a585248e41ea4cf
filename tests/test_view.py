import gc
import io
import re
import signal
import subprocess
import sys
import time
import tracemalloc
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import chromium, console_errors, wait
from builders import COCO_17, FRAMES, WINDOW, batch, contents, on_coco, rig
from PIL import Image

from models.body import load_body
from models.crops import Optics
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24
from pipeline.store import Store
from pipeline.video import VideoWriter
from stages.synth import SynthConfig, write_recording
from stages.view import CACHED_WINDOWS, Frames, Pictures, error_colours, is_own_page, serve_viewer

ROOT = Path(__file__).parents[1]
BODY = load_body()


def filled(path, windows=3):
    store = Store.create(path, contents())
    for k in range(windows):
        store.write(batch(k))
    return store


def test_a_moment_is_what_the_store_holds(tmp_path):
    store = filled(tmp_path / "s.zarr")
    frames = Frames(store, BODY)
    for t in (0, 7, 8, 19, 3):
        moment, fit = frames.at(t), store.read(t // WINDOW)
        i = t % WINDOW
        p = fit.params
        want = BODY.vertices(p.global_orient[i], p.body_pose[i], p.betas, p.transl[i])
        np.testing.assert_allclose(moment.vertices, want, atol=1e-5)
        np.testing.assert_array_equal(moment.joints, store.array("people/0/joints")[t][None])
        np.testing.assert_array_equal(moment.camera_px[:, 0], store.array("people/0/reprojection_px")[t])
        assert moment.valid[0] == store.array("people/0/valid")[t]
        points = store.array("people/0/keypoints_3d")[t, :, :3].astype(float)
        error = np.linalg.norm(rig().project(points) - fit.keypoints.xy_px[:, i, 0].numpy(), axis=-1)
        error[fit.keypoints.confidence[:, i, 0].numpy() == 0] = np.nan
        both = np.isfinite(error).any(0)
        np.testing.assert_allclose(moment.point_px[0][both], np.nanmean(error[:, both], 0), rtol=1e-5)
        assert np.isnan(moment.point_px[0][~both]).all()


def test_points_and_bones_are_the_stores(tmp_path):
    joints = replace(SMPL_24, bones=SMPL_24.bones[:5])
    c = replace(contents(), skeleton=joints, keypoint_skeleton=COCO_17)
    store = Store.create(tmp_path / "s.zarr", c)
    store.write(replace(on_coco(batch(0)), skeleton=joints))
    frames = Frames(store, BODY)
    np.testing.assert_array_equal(frames.bones, joints.bones)
    moment = frames.at(0)
    assert (moment.points.shape, moment.point_px.shape) == ((1, 17, 3), (1, 17))


def test_a_store_that_grows_is_followed(tmp_path):
    store = Store.create(tmp_path / "s.zarr", contents())
    frames = Frames(Store(store.path), BODY)
    counts = [frames.count()]
    for k in range(3):
        store.write(batch(k))
        counts.append(frames.count())
    assert counts == [0, WINDOW, 2 * WINDOW, FRAMES]
    assert np.isfinite(frames.at(FRAMES - 1).vertices).all()


def test_memory_does_not_grow_with_what_was_looked_at(tmp_path):
    windows = 6 * CACHED_WINDOWS
    count = windows * WINDOW
    long = replace(contents(), time_s=np.arange(count) / 30, frame_index=np.tile(np.arange(count), (2, 1)))
    store = Store.create(tmp_path / "s.zarr", long)
    store._make_person(0)
    store._array("done")[:] = True
    frames = Frames(store, BODY)
    read = 0

    def counted(k, original=store.read):
        nonlocal read
        read += 1
        return original(k)

    store.read = counted
    for t in range(0, CACHED_WINDOWS * WINDOW, 2):
        frames.at(t)
    assert read == CACHED_WINDOWS, "a window is read once while it is looked at"
    sizes = []
    store.read(0).people(frames.ids).map(lambda x: sizes.append(x.nbytes) or x)
    window = sum(sizes)
    tracemalloc.start()
    held = []
    for t in range(CACHED_WINDOWS * WINDOW, count, WINDOW // 2):
        frames.at(t)
        gc.collect()  # zarr's tasks are cycles
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    later = held[len(held) // 2 :]
    assert later[-1] - later[0] < 2 * window, f"{held} bytes, {len(later) // 2} windows of {window} later"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """90 frames; frame t is t + 100 grey."""
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    with VideoWriter(path, 30, threads=1, crf=10) as file:
        for t in range(90):
            file.write(np.full((96, 128, 3), 100 + t, np.uint8))
    return path


def test_pictures_forward_backward_and_where_there_are_none(video):
    index = np.concatenate([[-1, -1], np.arange(90), [-1]])
    pictures = Pictures(video, index, Optics(np.diag([100.0, 100, 1]), np.zeros(8)), (128, 96))
    try:
        for time in (2, 3, 3, 10, 91, 5, 4, 80, 81, 2):
            grey = pictures.at(time)
            assert grey.shape == (360, 480, 3)
            assert np.median(grey[grey > 0]) == pytest.approx(100 + index[time], abs=2)
        assert pictures.at(0) is None
        assert pictures.at(92) is None
    finally:
        pictures.close()


def test_pictures_are_those_of_a_pinhole_with_its_axis_in_the_middle(tmp_path):
    """A point drawn where the camera sees it is found where the viewer's frustum has it."""
    w, h = 640, 480
    k = np.array([[500.0, 0, 330], [0, 520, 225], [0, 0, 1]])
    dist = np.array([-0.3, 0.08, 0.001, -0.001, 0, 0, 0, 0])
    ray = np.array([0.3, -0.2, 1.0])
    at = cv2.projectPoints(ray[None], np.zeros(3), np.zeros(3), k, dist)[0].ravel()
    picture = np.zeros((h, w, 3), np.uint8)
    cv2.circle(picture, (round(at[0] * 16), round(at[1] * 16)), 6 * 16, (255, 255, 255), -1, shift=4)
    with VideoWriter(tmp_path / "v.mp4", 30, threads=1, crf=5) as file:
        file.write(picture)
    pictures = Pictures(tmp_path / "v.mp4", np.zeros(1, int), Optics(k, dist), (w, h))
    seen = pictures.at(0)[..., 0].astype(float)
    pictures.close()
    rows, columns = np.indices(seen.shape)
    found = np.array([(columns * seen).sum(), (rows * seen).sum()]) / seen.sum()
    focal = seen.shape[0] / 2 / np.tan(pictures.vertical_fov / 2)
    middle = (np.array(seen.shape[::-1]) - 1) / 2
    np.testing.assert_allclose(found, middle + focal * ray[:2], atol=0.6)


def test_error_colours_run_from_green_to_red():
    colours = error_colours(np.array([0.0, 15, 30, 500, np.nan]), 30).astype(int)
    assert colours[0, 1] > colours[0, 0]
    assert colours[2, 0] > 2 * colours[2, 1]
    assert (colours[3] == colours[2]).all()
    assert len(set(colours[4])) == 1, "grey"
    assert colours.shape == (5, 3)


def test_mistakes_are_told(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"Add --live"):
        serve_viewer(Store.create(tmp_path / "s.zarr", contents()), BODY, [None, None])
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[view\]'"):
        serve_viewer(filled(tmp_path / "t.zarr"), BODY, [None, None])


@contextmanager
def served(*words):
    """The command as a user starts it; its address."""
    command = [sys.executable, str(ROOT / "run_pipeline.py"), "view", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = ""
        for line in process.stdout:
            said += line
            if found := re.search(r"Open (http\S+)", line):
                yield found[1]
                break
        else:
            pytest.fail(said)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            rest, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, rest
    assert "Traceback" not in rest


def channels(browser):
    """Red, green and blue of what is drawn; the controls on the right are left out."""
    pixels = np.asarray(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")).astype(int)
    return np.moveaxis(pixels[:, : int(0.7 * pixels.shape[1])], -1, 0)


def magenta(browser):
    """Where the colour of the videos is."""
    r, g, b = channels(browser)
    return (r - g > 120) & (b - g > 120)


def blue(browser):
    """The largest patch in the person's colour, as a mask."""
    r, g, b = channels(browser)
    _, patches, sizes, _ = cv2.connectedComponentsWithStats(
        ((b - r > 45) & (g - r > 10) & (b > 110)).astype(np.uint8)
    )
    return patches == 1 + np.argmax(sizes[1:, 4]) if len(sizes) > 1 else np.zeros_like(patches, bool)


def press(browser, label):
    from selenium.webdriver.common.by import By

    browser.find_element(By.XPATH, f"//button[normalize-space(.)='{label}']").click()


def text(browser):
    return browser.execute_script("return document.body.innerText")


def frame(browser):
    found = re.search(r"frame (\d+) ·", text(browser))
    return int(found[1]) if found else None


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    pytest.importorskip("viser", reason="viser comes with the extra 'view'")
    with chromium(tmp_path_factory.mktemp("profile"), size=(1000, 700), webgl=True) as found:
        yield found


@pytest.mark.parametrize(
    ("asked", "origin", "own"),
    [
        ("localhost:8080", None, True),
        ("localhost:9090", "http://localhost:9090", True),  # through a tunnel
        ("192.168.0.7:8080", "http://192.168.0.7:8080", True),
        ("[::1]:8080", "http://[::1]:8080", True),
        ("localhost:8080", "http://evil.example", False),
        ("localhost:8080", "http://localhost:3000", False),
        ("localhost:8080", "null", False),
        ("evil.example:8080", "http://evil.example:8080", False),
        ("evil.example", None, False),
        ("127.0.0.1.evil.example", None, False),
        ("[", None, False),
        (None, None, False),
    ],
)
def test_pages_of_other_sites_are_not_the_viewers(asked, origin, own):
    assert is_own_page("127.0.0.1", {"Host": asked, "Origin": origin}) == own
    if asked == "evil.example":
        assert is_own_page("evil.example", {"Host": asked, "Origin": None}), "told to listen there"


def test_other_sites_are_refused(tmp_path):
    """By the running server: the page as well as the web socket."""
    viser = pytest.importorskip("viser", reason="viser comes with the extra 'view'")
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    write_recording(tmp_path, SynthConfig(seconds=0.5, cameras=2, size=(320, 240), videos=False), BODY)
    with served(tmp_path / "truth.zarr", "--port", "0") as address:
        there = f"ws://{address.removeprefix('http://')}"
        protocol = [f"viser-v{viser.__version__}"]
        with connect(there, origin=address.rstrip("/"), subprotocols=protocol) as socket:
            assert socket.recv(timeout=20)
        with pytest.raises(InvalidStatus, match="403"):
            connect(there, origin="http://evil.example", subprotocols=protocol)
        foreign = urllib.request.Request(address, headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(foreign, timeout=20)


def test_in_a_browser(browser, tmp_path):
    """It loads, shows the person, steps, plays and stops."""
    write_recording(tmp_path, SynthConfig(seconds=1, cameras=2, size=(320, 240), videos=False), BODY)
    (tmp_path / "videos").mkdir()
    for name in ("cam01", "cam02"):
        with VideoWriter(tmp_path / "videos" / f"{name}.mp4", 30, threads=1) as video:
            for _ in range(30):
                video.write(np.tile(np.array([220, 0, 220], np.uint8), (240, 320, 1)))
    with served(tmp_path / "truth.zarr", "--recording", tmp_path, "--port", "0") as address:
        browser.get(address)
        wait(lambda: frame(browser) == 0)
        wait(lambda: blue(browser).sum() > 400)
        wait(lambda: magenta(browser).sum() > 100)
        first = blue(browser)
        rows, columns = np.nonzero(first)
        assert np.ptp(rows) > 1.5 * np.ptp(columns), "somebody who stands"
        press(browser, ">")
        wait(lambda: frame(browser) == 1)
        press(browser, ">|")
        wait(lambda: frame(browser) == 29)
        wait(lambda: (blue(browser) ^ first).sum() > 100)
        press(browser, "|<")
        wait(lambda: frame(browser) == 0)
        press(browser, "Play")
        wait(lambda: frame(browser) > 3)
        press(browser, "Pause")
        wait(lambda: "Play" in text(browser))
        stopped = frame(browser)
        time.sleep(0.5)
        assert frame(browser) == stopped
        assert console_errors(browser) == []


def test_live_in_a_browser(browser, tmp_path):
    """A page opened before the first window is done follows the run."""
    store = Store.create(tmp_path / "results.zarr", contents())
    with served(tmp_path, "--live", "--port", "0") as address:
        browser.get(address)
        wait(lambda: "Follow the run" in text(browser))
        assert frame(browser) is None
        for k, last in enumerate((7, 15, 19)):
            store.write(batch(k))
            wait(lambda last=last: frame(browser) == last)
            assert ("frames done" in text(browser)) == (k < 2)
