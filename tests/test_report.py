import base64
import json
import re
from dataclasses import asdict, replace

import av
import cv2
import numpy as np
import pytest
import torch
from browser import chromium, console_errors, wait
from builders import COCO_17, FRAMES, batch, contents, on_coco, rig

from models.angles import DEFINITIONS, fitted_angles
from models.body import load_body
from models.rendering.overlay import Still
from models.rendering.rig_picture import draw_rig
from pipeline.config import load
from pipeline.curves import TOTAL_BINS, read_curves
from pipeline.recording import find_recording
from pipeline.results import RunSummary
from pipeline.skeleton import SMPL_24
from pipeline.store import Store
from pipeline.summary import CameraSummary, MissingData, PersonSummary
from pipeline.video import VideoWriter
from stages.graph import RunConfig, run
from stages.report import report
from stages.synth import SynthConfig, write_recording

EVIL = "<script>window.ran='camera'</script><img src=x onerror=window.ran=1>".replace("/", "\\")
"""A camera's name; zarr takes no slash."""
CLOSING = "</script><script>window.ran='warning'</script>"


LAG_S = (-0.04, 0.0, 0.04)
SYNC = {
    "how": "clocks set by the people's movement",
    "cameras": {
        "left": {"offset_s": 0.0, "drift_ppm": 0.0, "sigma_s": 0.0, "confidence": 1.0, "method": "reference"},
        "right": {"offset_s": 0.25, "drift_ppm": 0.0, "sigma_s": 0.005, "confidence": 0.99, "method": "rays"},
    },
    "curves": {"lag_s": LAG_S, "unit": "mm", "cameras": {"left": [40, 20, 45], "right": [None, 21, 44]}},
}


def filled(path, names=("left", "right"), windows=3):
    store = Store.create(path, replace(contents(), rig=replace(rig(), names=names), angles=DEFINITIONS))
    for k in range(windows):
        store.write(batch(k), fitted_angles(batch(k), store.contents.rig.up))
    return store


def summary(names=("left", "right"), **changed):
    told = RunSummary(
        frames=20,
        fps=30.0,
        seconds=0.7,
        complete=True,
        reprojection_median_px=3.25,
        reprojection_mean_px=4.5,
        cameras=tuple(CameraSummary(n, 3.25, 4.5, 400, 20, 1, 0) for n in names),
        people=(PersonSummary("0", 0, 20, 19, 1, 0, 1.5),),
        recording="/data/walk",
        store="abc",
        videos=(),
        calibration={"file": "/data/walk/calibration.toml", "estimated": False},
        sync=SYNC,
        format={"name": "body_25", "how": "stated"},
        regressor="keypoints",
        warnings=(),
        missing={n: MissingData({"nobody": 1}, {"nobody": "7.json"}) for n in names},
        seconds_taken=2.0,
        stages=({"name": "smplify", "items": 3, "total": 2, "busy": 1, "starved": 0.5, "blocked": 0.5},),
        config={"body": None, "smplify": {"overlap_frames": 8}},
        body={"name": "anny", "sha256": "abc"},
        versions={"python": "3", "multispin": "0.1"},
    )
    return replace(told, **changed)


def content(page):
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(block[1])


def unpacked(entry):
    """The numbers of an array, and by how much they may be off."""
    steps = np.frombuffer(base64.b64decode(entry["base64"]), "<i2").reshape(entry["shape"])
    return np.where(steps == -32768, np.nan, steps * entry["step"]), entry["step"] / 2


def test_the_page_holds_the_stores_numbers(tmp_path):
    store = filled(tmp_path / "s.zarr")
    found = content(report(store, summary(), load_body()))
    want = read_curves(store)
    have = found["curves"]
    for entry, numbers, enough in (
        (have["reprojection_px"]["mean"], want.reprojection_px.mean, 1e-4),
        (have["angles_deg"]["mean"], want.angles_deg.mean, 0.01),
        (have["joints"], want.joints, 1e-4),
    ):
        values, off = unpacked(entry)
        assert off < enough
        np.testing.assert_allclose(values, numbers, rtol=0, atol=1.01 * off)
    assert set(have["angles_deg"]) == {"mean"}, "one frame a bin: the three would be the same"
    assert found["summary"] == json.loads(json.dumps(asdict(summary())))
    assert found["angles"] == DEFINITIONS
    assert found["up"] == store.contents.rig.up.tolist()


def test_points_and_bones_are_the_stores(tmp_path):
    joints = replace(SMPL_24, bones=SMPL_24.bones[:5])
    c = replace(contents(), skeleton=joints, keypoint_skeleton=COCO_17)
    store = Store.create(tmp_path / "s.zarr", c)
    for k in range(3):
        store.write(replace(on_coco(batch(k)), skeleton=joints))
    found = content(report(store, summary(), load_body()))
    assert found["parents"] == [*joints.parents]
    assert (unpacked(found["curves"]["keypoints_seen"])[0] == 1).all()


def test_frusta_lie_in_front_of_their_cameras(tmp_path):
    found = content(report(filled(tmp_path / "s.zarr"), summary(), load_body()))
    for v, camera in enumerate(found["cameras"]):
        corners = np.array(camera["corners"])
        seen = rig().to_camera(corners)[v]
        np.testing.assert_allclose(seen[:, 2], found["frustum_m"], atol=1e-3)
        w, h = camera["size"]
        px = rig().project(corners)[v] + 0.5
        np.testing.assert_allclose(px, [[0, 0], [w, 0], [w, h], [0, h]], atol=0.5)


def test_the_rig_is_drawn(tmp_path):
    store = filled(tmp_path / "s.zarr")
    found = [
        base64.b64decode(src.split(",")[1]) for src in content(report(store, summary(), load_body()))["rig"]
    ]
    halves = [cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for png in found]
    np.testing.assert_array_equal(np.concatenate(halves, 1), draw_rig(store.contents.rig, "m"))


def test_height_is_that_of_the_mesh_in_its_rest_pose(tmp_path):
    body = load_body()
    (person,) = content(report(filled(tmp_path / "s.zarr"), summary(), body))["people"]
    rest = torch.eye(3).expand(1, 24, 3, 3)
    mesh = body.vertices(rest[:, 0], rest[:, 1:], torch.full((10,), 0.5), torch.zeros(1, 3))[0]
    assert person["height_m"] == pytest.approx(float(mesh[:, 1].max() - mesh[:, 1].min()), abs=1e-3)
    assert person["betas"] == [0.5] * 10


def test_nothing_of_the_users_is_markup(tmp_path):
    names = (EVIL, "right")
    told = summary(names, recording=f"/data/{CLOSING}", warnings=(CLOSING, "<!-- <script>"))
    page = report(filled(tmp_path / "s.zarr", names), told, load_body())
    assert page.count("<script") == 2, "the data and the page's own"
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert "<!--" not in page
    assert content(page)["summary"]["warnings"] == list(told.warnings)


def test_the_page_loads_nothing(tmp_path):
    page = report(filled(tmp_path / "s.zarr"), summary(), load_body())
    assert not re.search(r"https?://|@import|url\(|<link rel=.stylesheet", page)
    assert "default-src 'none'" in page


def test_before_the_first_window(tmp_path):
    found = content(report(filled(tmp_path / "s.zarr", windows=0), summary(), load_body()))
    assert found["people"] == []


def test_size_does_not_grow_with_length(tmp_path):
    sizes = []
    for frames in (TOTAL_BINS + 1, 100_000):
        long = replace(
            contents(),
            angles=DEFINITIONS,
            time_s=np.arange(frames) / 30,
            frame_index=np.tile(np.arange(frames), (2, 1)),
            window=1000,
        )
        store = Store.create(tmp_path / f"{frames}.zarr", long)
        store._make_person(0)
        store._array("done")[:] = True
        sizes.append(len(report(store, summary(), load_body())))
    assert sizes[1] < 1.01 * sizes[0]
    assert sizes[1] < 2_500_000


def test_a_run_writes_it_and_writes_it_again_when_it_is_gone(tmp_path):
    write_recording(tmp_path / "r", SynthConfig(seconds=1, cameras=2, videos=False), load_body())
    found, out = find_recording(tmp_path / "r"), tmp_path / "out"
    cfg = load(RunConfig, [])
    page = out / "report.html"
    assert page in run(found, out, cfg, threads=False).files
    before, numbers = page.read_text(), (out / "summary.json").read_text()
    page.unlink()
    again = run(found, out, cfg, threads=False)
    assert again.times == (), "nothing else is done again"
    assert page.read_text() == before
    assert (out / "summary.json").read_text() == numbers


INK = """
const found = [];
for (const c of document.querySelectorAll('canvas')) {
  const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  const colours = new Set();
  for (let i = 0; i < pixels.length; i += 4) {
    if (pixels[i + 3] > 200) colours.add((pixels[i] << 16) | (pixels[i + 1] << 8) | pixels[i + 2]);
  }
  found.push([c.getAttribute('aria-label'), colours.size, c.width, c.height]);
}
return found;
"""


def opened(browser, path, dark=False):
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(path.as_uri())
    wait(lambda: all(c[1] > 3 for c in browser.execute_script(INK)))
    return browser.execute_script(INK)


DRAG = """
const plot = document.querySelector('canvas.plot'), box = plot.getBoundingClientRect();
plot.setPointerCapture = () => {};
const at = (share) => box.left + 44 + share * (box.width - 52);
const send = (type, share) => plot.dispatchEvent(
  new PointerEvent(type, {clientX: at(share), clientY: box.top + 20, pointerId: 1}));
send('pointerdown', arguments[0]); send('pointermove', arguments[1]); send('pointerup', arguments[1]);
"""


def check_zoom(browser):
    """A drag over a plot looks closer at that stretch, in all of them; a button goes back."""
    pictures = "return [...document.querySelectorAll('canvas.plot')].map(c => c.toDataURL())"
    wide = "const b = document.querySelector('.wide'); return b.hidden ? '' : b.textContent"
    before = browser.execute_script(pictures)
    browser.execute_script(DRAG, 0.25, 0.75)
    wait(lambda: all(a != b for a, b in zip(before, browser.execute_script(pictures), strict=True)))
    assert browser.execute_script(wide) == "frames 5–14: show all"
    browser.execute_script(DRAG, 0, 0)
    assert "frame 5 " in browser.execute_script("return document.querySelector('output').textContent")
    browser.execute_script("document.querySelector('.wide').click()")
    assert browser.execute_script(wide) == ""


def test_in_a_browser(tmp_path):
    """Plots are drawn, all follow one moment, and a hostile recording runs nothing."""
    with VideoWriter(tmp_path / "mosaic.mp4", 30, threads=1) as video:
        for t in range(FRAMES):
            video.write(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * t, np.uint8), "rgb24"))
    names = (EVIL, "right")
    told = summary(names, warnings=(CLOSING,), videos=("mosaic.mp4",))
    file = tmp_path / "report.html"
    still = Still(EVIL, 7, 0, 9.46, np.full((900, 1280, 3), 99, np.uint8))
    page = report(filled(tmp_path / "s.zarr", names), told, load_body(), stills=[still])
    file.write_text(page, encoding="utf-8")
    with chromium(tmp_path / "profile") as browser:
        plots = opened(browser, file)
        assert len(plots) == 4 + 1 + 10 + 6, "the clocks, legs and arms on both sides, and the trunk"
        assert all(c[2] > 200 and c[3] > 60 for c in plots), plots
        text = browser.execute_script("return document.body.innerText")
        for said in (
            CLOSING,
            EVIL,
            "3.3",
            "of 20 frames, 1 bridged over gaps.",
            "nobody 1 (first: 7.json)",
            "smplify",
            "fitted",
            "reconstruction and drawing",
        ):
            assert said in text
        assert browser.execute_script("return window.ran") is None
        drawn = "return [...document.querySelectorAll('.rig img')].map(i => i.naturalWidth)"
        assert browser.execute_script(drawn) == [720, 720]
        assert browser.execute_script(drawn.replace(".rig", ".stills")) == [640]
        assert f"{EVIL}, frame 7: 9.5\u00a0px" in text
        ends = (
            "return ['video', 'canvas.space'].map(s => "
            "Math.round(document.querySelector(s).getBoundingClientRect().bottom))"
        )
        wait(lambda: len({*browser.execute_script(ends)}) == 1)  # nothing empty below either
        picture = browser.execute_script("return document.querySelector('canvas.plot').toDataURL()")
        wait(lambda: browser.execute_script("return document.querySelector('video').readyState") >= 2)
        browser.execute_script(
            "const s = document.querySelector('.bar input');s.value = 12; s.dispatchEvent(new Event('input'))"
        )
        wait(
            lambda: (
                picture != browser.execute_script("return document.querySelector('canvas.plot').toDataURL()")
            )
        )
        assert "frame 12" in browser.execute_script("return document.querySelector('output').textContent")
        seconds = "return document.querySelector('video').currentTime"
        assert browser.execute_script(seconds) == pytest.approx(12.5 * 1001 / 30000, abs=1e-3)
        assert "null" not in text
        check_zoom(browser)
        browser.set_window_size(800, 900)
        tiles = "return [...document.querySelectorAll('.tile')].map(t => t.getBoundingClientRect().top)"
        wait(lambda: browser.execute_script("return innerWidth") <= 800)
        assert len({*browser.execute_script(tiles)}) == 1, "five in a row"
        held = "return [...document.querySelectorAll('.tile')].every(t => t.scrollWidth <= t.clientWidth)"
        assert browser.execute_script(held)
        held = "return [...document.querySelectorAll('.scroll')].every(t => t.scrollWidth <= t.clientWidth)"
        assert browser.execute_script(held), "tables"
        width = "return [document.documentElement.scrollWidth, innerWidth]"
        browser.set_window_size(420, 900)
        wait(lambda: browser.execute_script(width)[1] < 600)
        scroll, inner = browser.execute_script(width)
        assert scroll <= inner, "a narrow window scrolls down only"
        light = "return getComputedStyle(document.body).backgroundColor"
        pale = browser.execute_script(light)
        opened(browser, file, dark=True)
        assert browser.execute_script(light) != pale
        assert console_errors(browser) == []


def test_in_a_browser_without_results_or_video(tmp_path):
    file = tmp_path / "report.html"
    file.write_text(report(filled(tmp_path / "s.zarr", windows=0), summary(), load_body(), None))
    missing = tmp_path / "missing.html"
    missing.write_text(report(filled(tmp_path / "t.zarr"), summary(), load_body(), "gone.mp4"))
    with chromium(tmp_path / "profile") as browser:
        opened(browser, file)
        assert browser.execute_script("return document.querySelector('video')") is None
        assert "and drawing" not in browser.execute_script("return document.body.innerText")
        assert console_errors(browser) == []
        opened(browser, missing)
        wait(lambda: "gone.mp4 is not beside this page" in browser.page_source)
