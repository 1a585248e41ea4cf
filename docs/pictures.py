"""Make the pictures of README and docs again, from what the commands leave behind.

    python run_pipeline.py demo --out DEMO
    python run_pipeline.py synth TWO --people 2 --seed 21
    python run_pipeline.py run TWO --out TWO-results --set detect.when=always
    python run_pipeline.py synth FOUR --people 4 --leaving 1 --cameras 5 --seconds 12 --fps 15 \
        --size 640 480 --seed 9
    python run_pipeline.py run FOUR --out FOUR-results
    python docs/pictures.py DEMO TWO-results FOUR-results

Needs Chromium with its driver, and the extras ``view`` and ``test``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from browser import chromium, wait  # noqa: E402

from models.body import load_body  # noqa: E402
from pipeline.array_types import Pixels  # noqa: E402
from pipeline.results import MOSAIC, REPORT, STORE, SUMMARY, Results, read_summary  # noqa: E402
from pipeline.store import Store  # noqa: E402
from pipeline.video import read_frames  # noqa: E402
from stages.decode import videos_of  # noqa: E402
from stages.render import RenderConfig, worst_stills  # noqa: E402
from stages.report import report  # noqa: E402

FRAME = 45


def main(demo: Path, two: Path, four: Path) -> None:
    results = demo / "results"
    save("videos.jpg", frame(two / MOSAIC), 1280)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for name in (STORE, SUMMARY, MOSAIC):
            (out / name).symlink_to((results / name).resolve())
        shown = []
        for mode in ("overlay", "skeleton", "mesh", "side", "turntable"):
            words = ["--cameras", "cam01"] if mode in ("overlay", "skeleton", "mesh") else []
            command("render", out, "--mode", mode, *words, "--start", str(FRAME), "--end", str(FRAME + 1))
            file = next(out.glob(f"render/{mode}_*/*.mp4"))
            picture = scaled(frame(file, 0), height=360)
            edge = 0 if mode == "side" else picture.shape[1] // 4
            shown.append(picture[:, edge : picture.shape[1] - edge])
        save("modes.jpg", np.concatenate(shown, 1), 1600)
        page(out, "multispin-demo/recording", "report.jpg")
        viewer(results, out / "profile2", "view.jpg")
    save("people.jpg", frame(four / MOSAIC), 1280)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for name in (STORE, SUMMARY, MOSAIC):
            (out / name).symlink_to((four / name).resolve())
        page(out, "FOUR", "people_report.jpg", "Where detections and fit differ most", 1960)
        viewer(four, out / "profile2", "people_view.jpg")


def page(out: Path, recording: str, name: str, card: str | None = None, height: int = 950) -> None:
    """The report, from disk, from its top or a card on; where the recording lies and how busy the machine was
    is nobody's business here."""
    written, store = read_summary(out), Store(out / STORE)
    assert written
    stills = worst_stills(store, videos_of(Results(out)), RenderConfig())
    summary = replace(written, recording=recording, seconds_taken=0)
    (out / REPORT).write_text(report(store, summary, load_body(), stills=stills), encoding="utf-8")
    with chromium(out / "profile", size=(1120, height)) as browser:
        browser.get((out / REPORT).as_uri())
        time.sleep(3)
        if card:
            heading = browser.find_element("xpath", f"//h2[.='{card}']")
            browser.execute_script("scrollTo(0, arguments[0].getBoundingClientRect().top - 24)", heading)
            time.sleep(1)
        save(name, screenshot(browser), 1120)


def viewer(results: Path, profile: Path, name: str) -> None:
    """The 3D viewer at ``FRAME``."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_pipeline.py"), "view", str(results), "--port", "0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = next(m[1] for line in process.stdout if (m := re.search(r"Open (http\S+)", line)))
        with chromium(profile, size=(1600, 1000), webgl=True, scale=1) as browser:
            browser.get(address)

            def text() -> str:
                return str(browser.execute_script("return document.body.innerText"))

            wait(lambda: "frame 0 ·" in text())
            for k in range(1, FRAME + 1):
                browser.find_element("xpath", "//button[normalize-space(.)='>']").click()
                wait(lambda k=k: f"frame {k} ·" in text())
            browser.execute_script(  # that pixels are drawn without a graphics card
                "document.querySelectorAll('.mantine-Notification-root').forEach(x => x.remove())"
            )
            time.sleep(5)
            save(name, screenshot(browser), 1280)
    finally:
        process.terminate()
        process.wait()


def command(*words: object) -> None:
    subprocess.run([sys.executable, str(ROOT / "run_pipeline.py"), *map(str, words)], check=True)


def frame(video: Path, number: int = FRAME) -> Pixels:
    found = next(read_frames(video, [number]))
    assert found is not None
    return found.to_ndarray(format="bgr24")


def screenshot(browser: object) -> Pixels:
    png = browser.get_screenshot_as_png()  # type: ignore[attr-defined]
    return np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), np.uint8)


def scaled(picture: Pixels, *, width: int = 0, height: int = 0) -> Pixels:
    scale = width / picture.shape[1] if width else height / picture.shape[0]
    if scale >= 1:
        return picture
    size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def save(name: str, picture: Pixels, width: int) -> None:
    cv2.imwrite(str(DOCS / name), scaled(picture, width=width), [cv2.IMWRITE_JPEG_QUALITY, 80])
    print(DOCS / name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
