"""A headless Chromium for tests of pages: the system's own, or a skip that says why there is none."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
)


@contextmanager
def chromium(
    profile: Path, *, size: tuple[int, int] = (1280, 900), webgl: bool = False, scale: float = 0.5
) -> Iterator[Any]:
    """A browser with a profile of its own in the folder ``profile``. ``scale``: of pixels, with WebGL."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with its driver here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium comes with the extra 'test'")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    drawing: tuple[str, ...] = ("--disable-gpu",)
    if webgl:  # drawn on the processor, where pixels cost time: half of them a side
        drawing = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
        options.add_argument(f"--force-device-scale-factor={scale}")
    for flag in (*FLAGS, *drawing, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        browser.set_page_load_timeout(40)
        yield browser
    finally:
        browser.quit()


def wait(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What ``condition`` gives as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.1)
    return found


def console_errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
