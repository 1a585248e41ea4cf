"""The order of the stages: the only place that knows it."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from pydantic import Field

from models.body import Body, load_body
from pipeline.batches import FitBatch
from pipeline.config import Config
from pipeline.engine import Chain, Stage, StageTimes
from pipeline.errors import InputError
from pipeline.recording import MissingData, Recording, missing_data
from pipeline.store import Contents, Store
from pipeline.summary import Summary, seen, summarise
from stages.decode import DecodeConfig, decode
from stages.keypoints import KeypointsConfig, keypoints
from stages.render import RenderConfig, render, video_names
from stages.report import read_summary, report
from stages.smplify import SmplifyConfig, smplify
from stages.store import store

PICTURES = ("decode", "render")
"""Sections of the configuration that change pictures, not what is stored."""


class RunConfig(Config):
    """Everything that can be set about ``run``."""

    body: Path | None = Field(None, description="SMPL .pkl or .npz of your own; null: the body that ships")
    keypoints: KeypointsConfig = KeypointsConfig()
    smplify: SmplifyConfig = SmplifyConfig()
    decode: DecodeConfig = DecodeConfig()
    render: RenderConfig = RenderConfig()


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind."""

    summary: Summary
    times: tuple[StageTimes, ...]
    """One row a stage, in order; empty when nothing was left to do."""
    first_frame: int
    """Where this run began: everything before was done."""
    files: tuple[Path, ...]
    """The store, the videos, the summary and the report."""
    missing: tuple[MissingData, ...]
    """Why each camera does not show the person at some instants."""


def run(
    recording: Recording,
    out: Path,
    cfg: RunConfig,
    progress: Callable[[int], None] = lambda frames: None,
    *,
    threads: bool = True,
) -> RunResult:
    """Reconstruct a recording into the folder ``out``, or finish what an earlier run began there.

    ``progress`` is called with the number of frames that have just been finished. ``threads=False`` runs the
    stages one inside the other, with the same results.

    Raises:
        InputError: ``out`` cannot be written, or holds results of another recording or other settings.
    """
    begun = time.perf_counter()
    body = load_body(cfg.body)
    results = open_results(recording, out, cfg, body)
    rig, line = recording.rig, recording.timeline
    has_videos = any(v is not None for v in recording.videos)
    videos = [out / name for name in video_names(cfg.render, rig.names)] if has_videos else []
    summary_file, page = out / "summary.json", out / "report.html"
    files = (results.path, *videos, summary_file, page)
    mosaic = "mosaic.mp4" if has_videos and cfg.render.mosaic else None
    first, windows = results.first_missing, len(results.done)
    frames_done = results.span(first)[0] if first < windows else len(line)
    if first == windows and all(f.exists() for f in files if f != page):
        if not page.exists():
            write_atomically(page, report(results, read_summary(summary_file), body, mosaic))
        return RunResult(summarise(results), (), frames_done, files, missing_data(recording, seen(results)))

    for old in (summary_file, page):
        old.unlink(missing_ok=True)  # it would describe something else until the end of this run
    draw = not all(v.exists() for v in videos)
    anchor, state = results.carried(first - 1) if first else (None, None)
    stages: list[Stage] = [
        ("smplify", partial(smplify, cfg=cfg.smplify, rig=rig, body=body, state=state)),
        ("store", partial(store, results=results, replay=draw)),
    ]
    if draw:
        pictures = partial(
            render,
            cfg=cfg.render,
            rig=rig,
            body=body,
            videos=recording.videos,
            frame_index=line.frame_index,
            rate=line.rate,
            out=out,
            decode=partial(decode, cfg=cfg.decode),
        )
        stages.append(("render", pictures))
    else:
        progress(frames_done)
    source = keypoints(recording, cfg.keypoints, start_chunk=first, anchor=anchor)
    chain: Chain[FitBatch] = Chain(source, stages, name="keypoints", threads=threads)
    with chain:
        for batch in chain:
            progress(len(batch.valid))
    summary, missing = summarise(results), missing_data(recording, seen(results))
    numbers = {
        "recording": str(recording.path.resolve()),
        "format": asdict(recording.format),
        "warnings": recording.warnings,
        **asdict(summary),
        "missing": {n: asdict(m) for n, m in zip(rig.names, missing, strict=True)},
        "seconds_taken": round(time.perf_counter() - begun, 2),
        "stages": [{**asdict(t), "busy": t.busy} for t in chain.times],
        "config": cfg.model_dump(mode="json"),
        "body": {"name": body.name, "sha256": body.sha256},
        "versions": versions(),
    }
    write_atomically(summary_file, json.dumps(numbers, indent=2, allow_nan=False) + "\n")
    write_atomically(page, report(results, numbers, body, mosaic))
    return RunResult(summary, tuple(chain.times), frames_done, files, missing)


def open_results(recording: Recording, out: Path, cfg: RunConfig, body: Body) -> Store:
    """The store of this recording in ``out``: a new one, or that of an earlier run with the same settings."""
    contents = Contents(
        rig=recording.rig,
        rate=recording.timeline.rate,
        time_s=recording.timeline.time_s,
        frame_index=recording.timeline.frame_index,
        body={"name": body.name, "sha256": body.sha256},
        config=cfg.model_dump(mode="json") | {"keypoint_format": recording.format.name},
        window=cfg.keypoints.window,
        num_betas=body.num_betas,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        return Store.resume(out / "results.zarr", contents, ignore=PICTURES)
    except OSError as e:
        raise InputError(f"{out}: cannot be written ({e.strerror or e}). Choose another --out.") from e


def versions() -> dict[str, str]:
    """Of what computes, for the summary: results are the same to the last bit only under the same ones."""
    names = ("multispin", "torch", "numpy", "scipy", "av", "zarr", "numba")
    return {"python": platform.python_version(), "platform": sys.platform} | {
        name: metadata.version(name) for name in names
    }


def write_atomically(path: Path, text: str) -> None:
    """The whole text or nothing under the name ``path``."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror or e}). Make room, then run again.") from e
