"""The order of the stages: the only place that knows it."""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

from pydantic import Field

from models.body import Body, load_body
from models.image_regressor import ImageRegressor
from pipeline.batches import FitBatch, FrameBatch, KeypointBatch, PoseBatch
from pipeline.calibrations.estimate import is_estimated
from pipeline.config import Config
from pipeline.engine import Chain, Stage, StageTimes
from pipeline.errors import InputError
from pipeline.files import locked, write_atomically
from pipeline.recording import Recording
from pipeline.results import (
    MOSAIC,
    REPORT,
    STORE,
    SUMMARY,
    RunSummary,
    check_fresh,
    check_place,
    clear,
    earlier_summary,
)
from pipeline.store import Contents, Store
from pipeline.summary import MissingData, Summary, seen, summarise
from stages.calibrate import CalibrateConfig, calibrate, identity
from stages.decode import DecodeConfig, decode
from stages.inspect import check_recording, inspect, left_out, missing_data
from stages.keypoints import KeypointsConfig, keypoints
from stages.regress import Net, RegressConfig, chunks_together, describe, digest, load_net, regress
from stages.render import Footage, RenderConfig, render, video_names
from stages.report import report
from stages.smplify import SmplifyConfig, smplify
from stages.store import store, store_regression

_log = logging.getLogger(__name__)

NOT_RESULTS = ("body", "calibrate", "decode", "render")
"""Parts of the configuration that do not change what is stored, or, as body and cameras, are compared by
content."""


class RunConfig(Config):
    """Everything that can be set about ``run``."""

    body: Path | None = Field(None, description="SMPL .pkl or .npz of your own; null: the body that ships")
    calibrate: CalibrateConfig = CalibrateConfig()
    keypoints: KeypointsConfig = KeypointsConfig()
    regress: RegressConfig = RegressConfig()
    smplify: SmplifyConfig = SmplifyConfig()
    decode: DecodeConfig = DecodeConfig()
    render: RenderConfig = RenderConfig()


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind."""

    summary: Summary
    times: tuple[StageTimes, ...]
    """One row a stage, in order; empty when nothing was left to do."""
    files: tuple[Path, ...]
    """The store, the videos, the summary and the report."""
    missing: tuple[MissingData, ...]
    """Why each camera does not show the person at some instants."""
    regressor: str
    """Which network said how the people stand before the fit, and of which weights."""
    warnings: tuple[str, ...]
    """What looks wrong or was guessed, as the summary has it: cameras that were mostly left out of the fit,
    then what the recording says, and what was said of cameras that were estimated."""


def check_files(cfg: RunConfig) -> None:
    """Raises ``InputError`` when the body or the weights that the settings name cannot be used.

    ``run`` would say the same, once the recording has been looked into.
    """
    if cfg.body is not None:
        load_body(cfg.body)
    if cfg.regress.weights not in ("default", "none"):
        load_net(cfg.regress.model_copy(update={"device": "cpu"}))


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
    check_place(out, recording.path, _inputs(recording))
    with locked(out):
        check_fresh(out)
        return _run(recording, out, cfg, progress, threads)


def _run(
    recording: Recording, out: Path, cfg: RunConfig, progress: Callable[[int], None], threads: bool
) -> RunResult:
    begun = time.perf_counter()
    body = load_body(cfg.body)
    net = load_net(cfg.regress)  # before the cameras, which take long: a mistake is told at once
    if net is None and len(recording.rig) == 1:
        raise InputError(
            f"{recording.path}: there is one camera, '{recording.rig.names[0]}', and no regressor: nothing "
            "says where a body is. Leave regress.weights at default, or add a calibrated camera."
        )
    has_videos = any(v is not None for v in recording.videos)
    if isinstance(net, ImageRegressor) and not has_videos:
        raise InputError(
            f"regress.weights: {cfg.regress.weights} looks at the pictures, and {recording.path} has no "
            "videos. Leave it at default."
        )
    recording = place_cameras(inspect(recording), out, body, cfg)
    results = open_results(recording, out, cfg, body, net)
    rig, line = recording.rig, recording.timeline
    videos = [out / name for name in video_names(cfg.render, rig.names)] if has_videos else []
    summary_file, page = out / SUMMARY, out / REPORT
    files = (results.path, *videos, summary_file, page)
    mosaic = MOSAIC if has_videos and cfg.render.mosaic else None
    first, windows = results.first_missing, len(results.done)

    # The summary is written last. One of this store and these pictures vouches for the videos beside it.
    made = earlier_summary(out)
    vouched = (
        made is not None
        and first == windows
        and made.store == results.digest
        and made.config.get("render") == cfg.render.model_dump(mode="json")
    )
    if made is not None and vouched and all(v.exists() for v in videos):
        if not page.exists():
            write_atomically(page, report(results, made, body, mosaic))
        missing = tuple(made.missing[name] for name in rig.names)
        return RunResult(made, (), files, missing, made.regressor, made.warnings)

    clear(out)
    draw = bool(videos)
    # Batches of the regressor are those of an unbroken run: some chunks go through it again.
    window = cfg.keypoints.window
    again = first % chunks_together(cfg.regress, net, window, len(rig))
    anchor = results.carried(first - again - 1)[0] if first - again else None
    state = results.carried(first - 1)[1] if first else None

    def pictures_from(start: int) -> Iterator[FrameBatch]:
        return decode(recording.videos, line.frame_index, cfg.decode, start)

    def look(items: Iterator[KeypointBatch]) -> Iterator[PoseBatch]:
        found = regress(
            items,
            cfg.regress,
            rig,
            body,
            net,
            window=window,
            start=first * window,
            decode=pictures_from if has_videos else None,
        )
        return found if net is None else store_regression(found, results)

    def fit(items: Iterator[PoseBatch]) -> Iterator[FitBatch]:
        return smplify(items, cfg.smplify, rig, body, state)

    stages: list[Stage] = [
        ("regress", look),
        ("smplify", fit),
        ("store", partial(store, results=results, replay=draw)),
    ]
    if draw:
        pictures = partial(
            render,
            cfg=cfg.render,
            footage=Footage(rig, recording.videos, line.frame_index, line.rate),
            body=body,
            out=out,
            decode=partial(decode, cfg=cfg.decode),
        )
        stages.append(("render", pictures))
    else:
        progress(results.span(first)[0] if first < windows else len(line))
    source = keypoints(recording, cfg.keypoints, start_chunk=first - again, anchor=anchor)
    chain: Chain[FitBatch] = Chain(source, stages, name="keypoints", threads=threads)
    ages = _ages(recording)
    with chain:
        for batch in chain:
            progress(len(batch.valid))
    for video, age in _ages(recording).items():
        if age != ages[video]:  # frames that cannot be read any more look like a damaged video's
            raise InputError(
                f"{video}: was changed or removed while it was read. Put it back, then run the same command "
                "again: what was fitted is kept, videos are drawn again."
            )
    summary, shown = summarise(results), seen(results)
    missing = missing_data(recording, shown)
    doubts = left_out(rig.names, missing, shown) if len(rig) > 1 else []
    # What makes the results doubtful first.
    warnings = tuple(f.sentence for f in (*doubts, *recording.findings))
    told = RunSummary(
        **vars(summary),
        recording=str(recording.path.resolve()),
        store=results.digest,
        videos=tuple(v.name for v in videos),
        calibration={"file": str(recording.calibration), "estimated": is_estimated(recording.calibration)},
        format=asdict(recording.format),
        regressor=describe(cfg.regress, net),
        warnings=warnings,
        missing=dict(zip(rig.names, missing, strict=True)),
        seconds_taken=round(time.perf_counter() - begun, 2),
        stages=tuple({**asdict(t), "busy": t.busy} for t in chain.times),
        config=cfg.model_dump(mode="json"),
        body={"name": body.name, "sha256": body.sha256},
        versions=versions(),
    )
    told.write(out)
    write_atomically(page, report(results, told, body, mosaic))
    return RunResult(told, tuple(chain.times), files, missing, told.regressor, warnings)


def _inputs(recording: Recording) -> list[Path]:
    """Videos, folders of keypoints and calibration of a recording."""
    videos = [video.path for video in recording.videos if video]
    keypoints = [files.folder for files in recording.keypoints if files]
    return [*videos, *keypoints, *filter(None, [recording.calibration])]


def place_cameras(recording: Recording, out: Path, body: Body, cfg: RunConfig) -> Recording:
    """The recording with its cameras placed: estimated, where it has no calibration, and then compared over
    all of it, as ``info`` compares those of a calibration."""
    placed = calibrate(recording, out, body, cfg.calibrate, cfg.keypoints.match)
    if placed is recording:
        return recording
    if len(placed.rig) > 1:
        placed = replace(placed, findings=(*placed.findings, *check_recording(placed).findings()))
    for finding in placed.findings[len(recording.findings) :]:
        _log.warning(finding.sentence)
    return placed


def _ages(recording: Recording) -> dict[Path, tuple[int, int] | None]:
    """Size and time of change of each video; None where there is no file."""
    found: dict[Path, tuple[int, int] | None] = {}
    for video in filter(None, recording.videos):
        try:
            stat = video.path.stat()
            found[video.path] = stat.st_size, stat.st_mtime_ns
        except OSError:
            found[video.path] = None
    return found


def open_results(recording: Recording, out: Path, cfg: RunConfig, body: Body, net: Net | None) -> Store:
    """The store of this recording in ``out``: a new one, or that of an earlier run with the same settings."""
    contents = Contents(
        rig=recording.rig,
        rate=recording.timeline.rate,
        time_s=recording.timeline.time_s,
        frame_index=recording.timeline.frame_index,
        body={"name": body.name, "sha256": body.sha256},
        config=cfg.model_dump(mode="json")
        | {"recording": identity(recording), "regressor": digest(net) if net is not None else None},
        window=cfg.keypoints.window,
        num_betas=body.num_betas,
        regression=net is not None,
    )
    try:
        return Store.resume(out / STORE, contents, ignore=NOT_RESULTS)
    except OSError as e:
        raise InputError(f"{out}: cannot be written ({e.strerror or e}). Choose another --out.") from e


def versions() -> dict[str, str]:
    """Of what computes, for the summary: results are the same to the last bit only under the same ones."""
    names = ("multispin", "torch", "numpy", "scipy", "av", "zarr", "numba")
    return {"python": platform.python_version(), "platform": sys.platform} | {
        name: metadata.version(name) for name in names
    }
