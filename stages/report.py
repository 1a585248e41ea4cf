"""The report page: a run's results on one page that opens from disk, without a server or anything to load."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models.body import Body
from models.rendering.overlay import PEOPLE_COLOURS, Still
from models.rendering.rig_picture import draw_rig
from pipeline.cameras import Rig
from pipeline.curves import Curve, Curves, read_curves
from pipeline.results import MOSAIC, RunSummary
from pipeline.store import Store

FRUSTUM_M: Final = 0.5
"""Length of a camera's frustum in the data, metres; the plot scales it to the size of the scene."""

STILL_SIDE: Final = 640
"""Longer side of a still, pixels."""

_STEPS: Final = 32767
_MISSING: Final = -32768
"""Numbers of curves have 16 bits: a hundredth of a degree, less than a millimetre of a path of 20 m."""


def report(
    store: Store,
    summary: RunSummary,
    body: Body,
    mosaic: str | None = MOSAIC,
    stills: Sequence[Still] = (),
) -> str:
    """The page, as HTML text.

    mosaic: where the video of all views lies, as seen from the page; None when there is none. stills: of the
    frames in which detections and fit differ most.

    Names, paths and warnings come from the user. They travel as JSON in a block that browsers do not run, and
    the page's script sets them as text; its policy allows no script but that one, and no connection.
    """
    page = files("stages")
    script = (page / "report.js").read_text(encoding="utf-8")
    style = (page / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    title = html.escape(Path(summary.recording).name)
    content = _content(store, summary, body, mosaic) | {"stills": [_still(still) for still in stills]}
    data = json.dumps(content, allow_nan=False, separators=(",", ":"))
    # Inside JSON a < stands in strings alone, where \u003c is the same character: no tag can begin there.
    data = data.replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'sha256-{digest}'; \
style-src 'unsafe-inline'; media-src 'self' file:; img-src data:">
<link rel="icon" href="data:,">
<title>{title} – Multi-SPIN</title>
<style>{style}</style>
</head>
<body>
<noscript>This page draws its plots with the script it holds; scripts are switched off here.</noscript>
<main id="page"></main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def _content(store: Store, summary: RunSummary, body: Body, mosaic: str | None) -> dict[str, Any]:
    c = store.contents
    over_time = read_curves(store)
    # Those of the overlays.
    colours = summary.config.get("render", {}).get("colours", PEOPLE_COLOURS)
    return {
        "summary": asdict(summary),
        "software": f"multispin {summary.versions.get('multispin', '')}".strip(),
        "mosaic": mosaic,
        "fps": float(c.rate),
        "rate": str(c.rate),
        "frames": len(c.time_s),
        "frustum_m": FRUSTUM_M,
        "cameras": _cameras(c.rig),
        "rig": [_picture(half) for half in np.split(draw_rig(c.rig, "m"), 2, axis=1)],
        "people": [
            {"id": str(p), "colour": colours[p % len(colours)], **_shape(store, p, body)} for p in store.ids
        ],
        "parents": c.skeleton.parents,
        "angles": dict(c.angles),
        "up": c.rig.up.tolist(),
        "curves": _packed(over_time),
    }


def _cameras(rig: Rig) -> list[dict[str, Any]]:
    """Centre and the corners of the picture, ``FRUSTUM_M`` in front of it, metres, world."""
    found = []
    for v, name in enumerate(rig.names):
        w, h = rig.size[v]
        corners = np.array([[0, 0, 1], [w, 0, 1], [w, h, 1], [0, h, 1]]) - [0.5, 0.5, 0]
        rays = corners @ np.linalg.inv(rig.K[v]).T * FRUSTUM_M
        found.append(
            {
                "name": name,
                "size": [int(w), int(h)],
                "centre": rig.centres[v].round(4).tolist(),
                "corners": (rays @ rig.R[v] + rig.centres[v]).round(4).tolist(),
            }
        )
    return found


def _picture(rgb: NDArray[np.uint8]) -> str:
    """PNG of a picture (H, W, 3), as the address of an image."""
    png = cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _still(still: Still) -> dict[str, Any]:
    """JPEG of a still, and what it shows."""
    height, width = still.picture.shape[:2]
    scale = min(1.0, STILL_SIDE / max(height, width))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    small = cv2.resize(still.picture[..., ::-1], size, interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    src = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    shown = {"camera": still.camera, "frame": still.frame, "person": still.person}
    return {**shown, "error_px": round(still.error_px, 1), "src": src}


def _shape(store: Store, person: int, body: Body) -> dict[str, Any]:
    """Betas and the height of the body in its rest pose; null before the first window is fitted."""
    betas = torch.from_numpy(store.array(f"people/{person}/betas"))
    if not torch.isfinite(betas).all():
        return {"betas": None, "height_m": None}
    y = body.v_template[:, 1] + body.shapedirs[:, 1] @ betas.float()
    return {
        "betas": [round(float(b), 3) for b in betas],
        "height_m": round(float(y.max() - y.min()), 3),
    }


def _packed(over_time: Curves) -> dict[str, Any]:
    """The arrays as base64: of 32 bits for frames, of 16 for all else, in ``_STEPS`` of the greatest."""

    def pack(value: NDArray[Any], dtype: str) -> dict[str, Any]:
        return {"shape": value.shape, "base64": base64.b64encode(value.astype(dtype).tobytes()).decode()}

    def scaled(value: NDArray[Any]) -> dict[str, Any]:
        known = np.isfinite(value)
        numbers = np.where(known, value, 0).astype(np.float64)
        step = max(float(np.abs(numbers).max(initial=0)), 1e-9) / _STEPS
        return pack(np.where(known, np.rint(numbers / step), _MISSING), "<i2") | {"step": step}

    first_frame = over_time.first_frame
    # One frame a bin: the three are the same.
    single = len(first_frame) > 1 and bool((np.diff(first_frame) == 1).all())
    packed: dict[str, Any] = {
        name: pack(getattr(over_time, name), "<i4") for name in ("first_frame", "spans")
    }
    for name, value in vars(over_time).items():
        if isinstance(value, Curve):
            packed[name] = {k: scaled(v) for k, v in vars(value).items() if k == "mean" or not single}
        elif name not in (*packed, "time_s"):
            packed[name] = scaled(value)
    return packed
