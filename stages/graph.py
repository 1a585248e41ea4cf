"""A run: the order of its stages, and the files that it reads and writes."""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

from models.angles import DEFINITIONS, fitted_angles
from models.body import Body, load_body
from models.detectors.networks import LANDMARKS
from models.detectors.pose_networks import load_pose_network
from models.fit.windows import SmplifyConfig
from models.gait import write_events
from models.geometry.association import MatchConfig
from models.image_regressor import ImageRegressor
from pipeline.batches import FitBatch, KeypointBatch, PoseBatch
from pipeline.calibrations.estimate import is_estimated
from pipeline.clocks import read_sync
from pipeline.config import Config
from pipeline.contents import Contents
from pipeline.engine import Chain, Stage, StageTimes
from pipeline.errors import InputError
from pipeline.files import locked, write_text_atomically, writing
from pipeline.inputs import identity_of_inputs
from pipeline.recording import Recording, reopen
from pipeline.results import (
    MOSAIC,
    REPORT,
    STORE,
    SUMMARY,
    Results,
    RunSummary,
    check_fresh,
    check_place,
    clear,
    drawn_mark,
    is_whole_drawing,
    read_summary,
    recording_of,
)  # fmt: skip
from pipeline.skeleton import DETECTOR_OFFSETS_MM
from pipeline.store import Store
from pipeline.summary import seen, summarise
from pipeline.verdicts import REPROJECTION, TRIANGULATION
from stages.associate import add_sides, associate, check_people
from stages.calibrate import CalibrateConfig, calibrate, estimated_recording
from stages.check import check_recording, doubt_cameras, sample
from stages.decode import DecodeConfig, decode
from stages.detect import DetectConfig, Watch, detect_recording, frames_of_part, read_all
from stages.inspect import inspect, left_out, missing_data
from stages.keypoints import KeypointsConfig, keypoints
from stages.regress import (
    Net,
    RegressConfig,
    chunks_per_group,
    describe,
    device_of,
    digest,
    load_net,
    regress,
)
from stages.render import Footage, RenderConfig, render, video_names, worst_stills
from stages.report import report
from stages.smplify import smplify
from stages.store import store, store_regression
from stages.sync import SyncConfig, Synced, given_clocks, is_searched, synchronise

_log = logging.getLogger(__name__)

NOT_RESULTS = ("body", "calibrate", "detect", "decode", "render", "sync")
"""Sections of the configuration that do not change what is stored, or whose results (body, cameras, keypoints
and clocks) are compared by content."""


class RunConfig(Config):
    """Settings of ``run``."""

    body: Path | None = None
    """SMPL .pkl or .npz, or a folder of models; null: the body that ships."""
    detect: DetectConfig = DetectConfig()
    sync: SyncConfig = SyncConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    keypoints: KeypointsConfig = KeypointsConfig()
    associate: MatchConfig = MatchConfig()
    regress: RegressConfig = RegressConfig()
    smplify: SmplifyConfig = SmplifyConfig()
    decode: DecodeConfig = DecodeConfig()
    render: RenderConfig = RenderConfig()


@dataclass(frozen=True)
class RunResult:
    """Result of a run."""

    summary: RunSummary
    times: tuple[StageTimes, ...]
    """Times of each stage, in order; empty where nothing was left to do."""
    files: tuple[Path, ...]
    """Store, videos, summary and report."""

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.summary.warnings


def check_files(cfg: RunConfig) -> None:
    """Raise ``InputError`` for a device, or a file that the settings name, that cannot be used."""
    if cfg.body is not None:
        load_body(cfg.body)
    if cfg.detect.model not in LANDMARKS:
        load_pose_network(Path(cfg.detect.model))
    if cfg.regress.weights not in ("default", "none"):
        load_net(cfg.regress.model_copy(update={"device": "cpu"}))
    if cfg.sync.use not in ("auto", "off"):
        read_sync(Path(cfg.sync.use))
    device_of(cfg.regress)


def run(
    recording: Recording,
    out: Path,
    cfg: RunConfig,
    progress: Callable[[int], None] = lambda frames: None,
    *,
    watch: Watch = read_all,
    threads: bool = True,
) -> RunResult:
    """Reconstruct a recording into the folder ``out``, or finish an earlier run there.

    progress: called with the number of frames just finished. watch: the same for a detection of people that
    comes first. threads: false runs the stages in one thread, with the same results.

    Raises ``InputError``: ``out`` is not writable, or has results of another recording or other settings; no
    frame could be fitted; ``NobodyFound``: no person is in the videos.
    """
    check_place(out, recording.path, _inputs(recording))
    with locked(out):
        check_fresh(out)
        start_s = time.perf_counter()
        body = load_body(cfg.body)
        net = _load_net(recording, cfg)  # first, as its errors are the user's
        recording, detecting = _detect(recording, out, cfg, watch)
        body = body.with_point_offsets(DETECTOR_OFFSETS_MM.get(recording.detected_order or "", {}))
        inspected = inspect(recording)
        place = partial(estimated_recording, out=out, body=body, cfg=cfg.calibrate, match=cfg.associate)
        recording, synced = synchronise(inspected, out, cfg.sync, place)
        if recording.timeline is not inspected.timeline and inspected.uninspected is not None:
            # The findings may be of unsynchronised cameras.
            inspected = inspect(inspected.uninspected.with_clocks(synced.clocks))
            recording = replace(inspected, findings=(*inspected.findings, *synced.findings))
        recording = place_cameras(recording, out, body, cfg)
        results = open_results(recording, out, cfg, body, net)
        job = _Job(recording, out, cfg, body, net, results, start_s, detecting, synced)
        return _run(job, progress, threads)


def _detect(
    recording: Recording, out: Path, cfg: RunConfig, watch: Watch
) -> tuple[Recording, tuple[StageTimes, ...]]:
    """Recording with keypoints, detected where it has none; and the times of the detection.

    Stated clocks are set before a detection, as the frames of a part of the recording depend on them.
    """
    if cfg.detect.when == "always":
        recording = recording.without_keypoints()
    if recording.has_keypoints:
        return recording, ()
    searched = is_searched(recording, cfg.sync)
    if not searched:
        recording = recording.with_clocks(given_clocks(recording, cfg.sync).clocks)
    frames = frames_of_part(recording, cfg.sync.search_s if searched else 0.0)
    return detect_recording(recording, out, cfg.detect, partial(decode, cfg=cfg.decode), watch, frames)


def _run(job: _Job, progress: Callable[[int], None], threads: bool) -> RunResult:
    finished = _finished(job)
    if finished is not None:
        return finished

    clear(job.out)
    if not job.videos:
        progress(job.results.finished)
    stamps = _video_stamps(job.recording)
    with _chain(job, threads) as chain:
        for batch in chain:
            progress(len(batch.valid))
    for video, stamp in _video_stamps(job.recording).items():
        if stamp != stamps[video]:  # its unreadable frames were taken for damaged ones
            raise InputError(
                f"{video}: was changed or removed while it was read. Put it back, then run the same command "
                "again: fitted frames are kept, videos are drawn again."
            )
    return _finish(job, chain.times)


@dataclass(frozen=True)
class _Job:
    """Inputs and outputs of a run."""

    recording: Recording
    out: Path
    cfg: RunConfig
    body: Body
    net: Net | None
    results: Store
    start_s: float
    """``time.perf_counter`` at the start of the run."""
    detecting: tuple[StageTimes, ...]
    """Times of the stages of a detection."""
    synced: Synced

    @property
    def videos(self) -> list[Path]:
        """Videos that the run draws."""
        if all(v is None for v in self.recording.videos):
            return []
        return [self.out / name for name in video_names(self.cfg.render, self.recording.rig.names)]

    @property
    def mark(self) -> str:
        """Comment in videos that are drawn from this store with these settings."""
        return drawn_mark(self.results.digest, self.cfg.render.model_dump(mode="json"))

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.results.path, *self.videos, self.out / SUMMARY, self.out / REPORT)

    def write_report(self, summary: RunSummary) -> None:
        mosaic = MOSAIC if self.out / MOSAIC in self.videos else None
        stills = worst_stills(self.results, self.recording.videos, self.cfg.render)
        write_text_atomically(self.out / REPORT, report(self.results, summary, self.body, mosaic, stills))


def _load_net(recording: Recording, cfg: RunConfig) -> Net | None:
    """Load the regressor. Raises ``InputError`` where it does not suit the recording."""
    net = load_net(cfg.regress, len(recording.rig))
    if net is None and len(recording.rig) == 1:
        raise InputError(
            f"{recording.path}: camera '{recording.rig.names[0]}' alone cannot locate a body without a "
            "regressor. Leave regress.weights at default, or add a calibrated camera."
        )
    if isinstance(net, ImageRegressor) and all(v is None for v in recording.videos):
        raise InputError(
            f"regress.weights: {cfg.regress.weights} needs pictures, but {recording.path} has no videos. "
            "Leave it at default."
        )
    return net


def _finished(job: _Job) -> RunResult | None:
    """Result of an earlier run that is complete; None where something is left to do.

    The summary is written last, with the store's digest; each video has the mark of its store and settings.
    """
    summary = read_summary(job.out)
    if (
        summary is None
        or not job.results.done.all()
        or summary.store != job.results.digest
        or not all(is_whole_drawing(v, job.mark, len(job.recording)) for v in job.videos)
    ):
        return None
    if not (job.out / REPORT).exists():
        job.write_report(summary)
    return RunResult(summary, (), job.files)


def _chain(job: _Job, threads: bool) -> Chain[FitBatch]:
    """Chain of all stages, from the first window that is not done."""
    cfg, results, net = job.cfg, job.results, job.net
    rig, line, videos = job.recording.rig, job.recording.timeline, job.recording.videos
    window, first = cfg.keypoints.window, results.first_missing
    # The regressor batches chunks as in an uninterrupted run, so some pass it again.
    begin = first - first % chunks_per_group(cfg.regress, net, window, len(rig))
    pictures_from = partial(decode, videos, line.frame_index, cfg.decode)

    def pose(items: Iterator[KeypointBatch]) -> Iterator[PoseBatch]:
        poses = regress(
            items,
            cfg.regress,
            rig,
            job.body,
            net,
            window=window,
            start=first * window,
            decode=pictures_from if any(videos) else None,
        )
        return poses if net is None else store_regression(poses, results)

    stages: list[Stage] = [
        ("associate", partial(associate, cfg=cfg.associate, rig=rig, state=results.state(begin))),
        ("regress", pose),
        ("smplify", partial(smplify, cfg=cfg.smplify, rig=rig, body=job.body, state=results.state(first))),
        ("store", partial(store, results=results, replay=bool(job.videos))),
    ]
    if job.videos:
        pictures = partial(
            render,
            cfg=cfg.render,
            footage=Footage(rig, videos, line.frame_index, line.rate, job.mark),
            body=job.body,
            out=job.out,
            decode=partial(decode, cfg=cfg.decode),
        )
        stages.append(("render", pictures))
    source = keypoints(job.recording, cfg.keypoints, start_chunk=begin)
    return Chain(source, stages, name="keypoints", threads=threads)


def _finish(job: _Job, streaming: Sequence[StageTimes]) -> RunResult:
    """Write summary and report of a complete store. Raises ``InputError`` where no frame is fitted."""
    recording, names = job.recording, job.recording.rig.names
    times = (*job.detecting, *streaming)
    fitted = _count_fitted(job.results)
    if not fitted:
        size = [f.sentence for f in recording.findings if f.code == "person_size"]
        reason = size or [f"check keypoints and cameras, python run_pipeline.py info {recording.path}"]
        raise InputError(
            f"{recording.path}: none of {len(recording)} frames could be fitted: {' '.join(reason)}"
        )
    with writing(job.out, "Make room, then run the same command again."):
        write_events(job.results)
    summary, seen_keypoints = summarise(job.results), seen(job.results)
    missing = missing_data(recording, seen_keypoints)
    few = [f"only {fitted} of {len(recording)} frames were fitted"] if 2 * fitted < len(recording) else []
    doubts = left_out(names, missing, seen_keypoints) if len(names) > 1 else []
    state, people = job.results.state(job.results.contents.windows), job.cfg.associate
    rate = float(recording.timeline.rate)
    doubts += check_people(state, recording.rig, len(recording), rate, len(job.results.ids), people)
    agreement = check_recording(recording)
    doubts += (f for f in agreement.findings(recording.findings) if f not in recording.findings)
    run_summary = RunSummary(
        **vars(add_sides(summary, state)),
        recording=str(recording.path.resolve()),
        video_files=tuple(str(file.resolve()) for file in recording.files),
        triangulation=agreement.triangulation([*recording.findings, *doubts]),
        meanings={"triangulation": TRIANGULATION.sentence, "reprojection": REPROJECTION.sentence},
        store=job.results.digest,
        videos=tuple(v.name for v in job.videos),
        calibration={"file": str(recording.calibration), "estimated": is_estimated(recording.calibration)},
        sync=job.synced.as_dict(names),
        format=asdict(recording.point_order),
        regressor=describe(job.cfg.regress, job.net),
        # First those that make the results doubtful.
        warnings=(*few, *(f.sentence for f in (*doubts, *recording.findings))),
        missing=dict(zip(names, missing, strict=True)),
        seconds_taken=round(time.perf_counter() - job.start_s, 2),
        stages=tuple({**asdict(t), "busy": t.busy} for t in times),
        config=job.cfg.model_dump(mode="json"),
        body={"name": job.body.name, "sha256": job.body.sha256},
        versions=versions(),
    )
    run_summary.write(job.out)
    job.write_report(run_summary)
    return RunResult(run_summary, times, job.files)


def _inputs(recording: Recording) -> list[Path]:
    """Videos, folders of keypoints and calibration of a recording."""
    videos = [video.path for video in recording.videos if video]
    folders = [files.path for files in recording.keypoints if files]
    return [*videos, *folders, *filter(None, [recording.calibration])]


def check_apart(folder: Path, results: Results) -> None:
    """Raise ``InputError`` where drawings in ``folder`` would lie among the recording's own files."""
    path = recording_of(results.folder)
    if path is not None and folder.resolve().is_relative_to(path.resolve()):
        recording = reopen(results)
        check_place(folder, recording.path, _inputs(recording))


def place_cameras(recording: Recording, out: Path, body: Body, cfg: RunConfig) -> Recording:
    """Estimate the cameras of a recording without a calibration, and check them as ``info`` does."""
    placed = calibrate(recording, out, body, cfg.calibrate, cfg.associate)
    if placed is recording:
        return recording
    if len(placed.rig) > 1:
        doubts = doubt_cameras(placed.rig, sample(placed))
        doubts += check_recording(placed).findings([*placed.findings, *doubts])
        placed = replace(placed, findings=(*placed.findings, *dict.fromkeys(doubts)))
    for finding in placed.findings:
        if finding not in recording.findings:
            _log.warning(finding.sentence)
    return placed


def _count_fitted(results: Store) -> int:
    """Number of frames with an accepted fit."""
    total = 0
    for k in range(results.contents.windows):
        total += int(results.people(results.present(k, k), "valid", *results.span(k)).any(1).sum())
    return total


def _video_stamps(recording: Recording) -> dict[Path, tuple[int, int] | None]:
    """Size and modification time of each video; None for a missing file."""
    stamps: dict[Path, tuple[int, int] | None] = {v.path: None for v in recording.videos if v}
    for path in stamps:
        with suppress(OSError):
            stamps[path] = path.stat().st_size, path.stat().st_mtime_ns
    return stamps


def open_results(recording: Recording, out: Path, cfg: RunConfig, body: Body, net: Net | None) -> Store:
    """Create the store of a recording in ``out``, or resume that of an earlier run with the same settings."""
    contents = Contents(
        rig=recording.rig,
        rate=recording.timeline.rate,
        time_s=recording.timeline.time_s,
        frame_index=recording.timeline.frame_index,
        body={"name": body.name, "sha256": body.sha256},
        config=cfg.model_dump(mode="json")
        | {"recording": identity_of_inputs(recording), "regressor": digest(net) if net is not None else None},
        window=cfg.keypoints.window,
        num_betas=body.num_betas,
        regression=net is not None,
        skeleton=body.skeleton,
        keypoint_skeleton=body.keypoints.keypoint_skeleton,
        angles=DEFINITIONS,
    )
    with writing(out, "Choose another --out."):
        results = Store.resume(out / STORE, contents, ignore=NOT_RESULTS)
        up = recording.rig.up
        return results if np.array_equal(results.contents.rig.up, up) else results.turn_up(up, fitted_angles)


def versions() -> dict[str, str]:
    """Versions of the software that results depend on: equal ones give bit-identical results."""
    names = ("multispin", "torch", "numpy", "scipy", "av", "zarr", "numba")
    return {"python": platform.python_version(), "platform": sys.platform} | {
        name: metadata.version(name) for name in names
    }
