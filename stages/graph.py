"""The order of the stages: the only place that knows it."""

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
from itertools import chain
from pathlib import Path

import numpy as np

from models.angles import DEFINITIONS, fitted_angles
from models.body import Body, load_body
from models.detectors.networks import LANDMARKS
from models.detectors.pose_networks import load_pose_network
from models.fit.windows import SmplifyConfig
from models.geometry.association import MatchConfig
from models.image_regressor import ImageRegressor
from pipeline.batches import FitBatch, KeypointBatch, PoseBatch
from pipeline.calibrations.estimate import is_estimated
from pipeline.config import Config
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
from pipeline.store import Contents, Store
from pipeline.summary import seen, summarise
from pipeline.verdicts import REPROJECTION, TRIANGULATION
from stages.associate import associate, check_people, sides_exchanged
from stages.calibrate import CalibrateConfig, calibrate
from stages.check import check_recording, doubt_cameras, sample
from stages.decode import DecodeConfig, decode
from stages.detect import DetectConfig, Watch, detect_recording, frames_of_part, read_all
from stages.inspect import inspect, left_out, missing_data
from stages.keypoints import KeypointsConfig, keypoints
from stages.regress import Net, RegressConfig, chunks_per_group, describe, digest, load_net, regress
from stages.render import Footage, RenderConfig, render, video_names
from stages.report import report
from stages.smplify import smplify
from stages.store import store, store_regression
from stages.sync import SyncConfig, Synced, given_clocks, is_searched, synchronise

_log = logging.getLogger(__name__)

NOT_RESULTS = ("body", "calibrate", "detect", "decode", "render", "sync")
"""Parts of the configuration that do not change what is stored, or, as body, cameras, keypoints and
clocks, are compared by content."""


class RunConfig(Config):
    """Everything that can be set about ``run``."""

    body: Path | None = None
    """SMPL .pkl or .npz of your own, or a folder of models; null: the body that ships."""
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
    """One row a stage, in order; empty when nothing was left to do."""
    files: tuple[Path, ...]
    """The store, the videos, the summary and the report."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of the summary."""
        return self.summary.warnings


def check_files(cfg: RunConfig) -> None:
    """Raises ``InputError`` when the body or the weights that the settings name cannot be used.

    ``run`` would say the same, once the recording has been looked into.
    """
    if cfg.body is not None:
        load_body(cfg.body)
    if cfg.detect.model not in LANDMARKS:
        load_pose_network(Path(cfg.detect.model))
    if cfg.regress.weights not in ("default", "none"):
        load_net(cfg.regress.model_copy(update={"device": "cpu"}))


def run(
    recording: Recording,
    out: Path,
    cfg: RunConfig,
    progress: Callable[[int], None] = lambda frames: None,
    *,
    watch: Watch = read_all,
    threads: bool = True,
) -> RunResult:
    """Reconstruct a recording into the folder ``out``, or finish what an earlier run began there.

    ``progress`` is called with the number of frames that have just been finished, ``watch`` before where
    people are still to be detected. ``threads=False`` runs the stages one inside the other, with the same
    results.

    Raises:
        InputError: ``out`` cannot be written, or holds results of another recording or other settings; or
            no frame could be fitted, or, ``NobodyFound``, nobody is in the videos.
    """
    check_place(out, recording.path, _inputs(recording))
    with locked(out):
        check_fresh(out)
        begun = time.perf_counter()
        body = load_body(cfg.body)
        net = _net(recording, cfg)  # before what takes long: a mistake is told at once
        recording, detecting = _detect(recording, out, cfg, watch)
        body = body.with_point_offsets(DETECTOR_OFFSETS_MM.get(recording.detected_order or "", {}))
        found = inspect(recording)
        recording, synced = synchronise(found, out, cfg.sync)
        if recording.timeline is not found.timeline and found.uninspected is not None:
            # What was found out before may come of cameras that were out of step.
            again = inspect(found.uninspected.with_clocks(synced.clocks))
            recording = replace(again, findings=(*again.findings, *synced.findings))
        recording = place_cameras(recording, out, body, cfg)
        results = open_results(recording, out, cfg, body, net)
        job = _Job(recording, out, cfg, body, net, results, begun, detecting, synced)
        return _run(job, progress, threads)


def _detect(
    recording: Recording, out: Path, cfg: RunConfig, watch: Watch
) -> tuple[Recording, tuple[StageTimes, ...]]:
    """The recording with keypoints, and where the time went; on the clocks that are given, if no keypoints
    were: a part of it is of other frames then."""
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
    done = _finished(job)
    if done is not None:
        return done

    clear(job.out)
    if not job.videos:
        progress(job.results.finished)
    ages = _ages(job.recording)
    with _chain(job, threads) as chain:
        for batch in chain:
            progress(len(batch.valid))
    for video, age in _ages(job.recording).items():
        if age != ages[video]:  # frames that cannot be read any more look like a damaged video's
            raise InputError(
                f"{video}: was changed or removed while it was read. Put it back, then run the same command "
                "again: what was fitted is kept, videos are drawn again."
            )
    return _finish(job, chain.times)


@dataclass(frozen=True)
class _Job:
    """A recording that is being run: where from, where to, with what."""

    recording: Recording
    out: Path
    cfg: RunConfig
    body: Body
    net: Net | None
    results: Store
    begun: float
    """Reading of the clock when the run began."""
    detecting: tuple[StageTimes, ...]
    """Where the time of a detection went."""
    synced: Synced

    @property
    def videos(self) -> list[Path]:
        """The videos that the run draws."""
        if all(v is None for v in self.recording.videos):
            return []
        return [self.out / name for name in video_names(self.cfg.render, self.recording.rig.names)]

    @property
    def mark(self) -> str:
        """Comment in the videos of this store, drawn with these settings."""
        return drawn_mark(self.results.digest, self.cfg.render.model_dump(mode="json"))

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.results.path, *self.videos, self.out / SUMMARY, self.out / REPORT)

    def write_report(self, summary: RunSummary) -> None:
        mosaic = MOSAIC if self.out / MOSAIC in self.videos else None
        write_text_atomically(self.out / REPORT, report(self.results, summary, self.body, mosaic))


def _net(recording: Recording, cfg: RunConfig) -> Net | None:
    """The regressor, checked against the recording. Raises ``InputError`` where the two do not fit."""
    net = load_net(cfg.regress)
    if net is None and len(recording.rig) == 1:
        raise InputError(
            f"{recording.path}: there is one camera, '{recording.rig.names[0]}', and no regressor: nothing "
            "says where a body is. Leave regress.weights at default, or add a calibrated camera."
        )
    if isinstance(net, ImageRegressor) and all(v is None for v in recording.videos):
        raise InputError(
            f"regress.weights: {cfg.regress.weights} looks at the pictures, and {recording.path} has no "
            "videos. Leave it at default."
        )
    return net


def _finished(job: _Job) -> RunResult | None:
    """The result of an earlier run that left nothing to do; None where something is missing.

    The summary is written last: one of this store says that the store is whole. Each video says itself of
    what it was drawn, and how.
    """
    made = read_summary(job.out)
    if (
        made is None
        or not job.results.done.all()
        or made.store != job.results.digest
        or not all(is_whole_drawing(v, job.mark, len(job.recording)) for v in job.videos)
    ):
        return None
    if not (job.out / REPORT).exists():
        job.write_report(made)
    return RunResult(made, (), job.files)


def _chain(job: _Job, threads: bool) -> Chain[FitBatch]:
    """All stages in their order, from the first window on that is not done."""
    cfg, results, net = job.cfg, job.results, job.net
    rig, line, videos = job.recording.rig, job.recording.timeline, job.recording.videos
    window, first = cfg.keypoints.window, results.first_missing
    # Batches of the regressor are those of an unbroken run: some chunks go through it again.
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
    """Write the summary and the report of a complete store.

    Raises:
        InputError: no frame was fitted.
    """
    recording, names = job.recording, job.recording.rig.names
    times = (*job.detecting, *streaming)
    fitted = _fitted(job.results)
    if not fitted:
        raise InputError(
            f"{recording.path}: no frame of {len(recording)} could be fitted. Look at what the cameras show "
            f"and whether they agree: python run_pipeline.py info {recording.path}"
        )
    summary, shown = summarise(job.results), seen(job.results)
    missing = missing_data(recording, shown)
    few = [f"only {fitted} of {len(recording)} frames were fitted"] if 2 * fitted < len(recording) else []
    doubts = left_out(names, missing, shown) if len(names) > 1 else []
    state, people = job.results.state(len(job.results.done)), job.cfg.associate
    rate = float(recording.timeline.rate)
    doubts += check_people(state, recording.rig, len(recording), rate, len(job.results.ids), people)
    counts = zip(summary.cameras, sides_exchanged(state), strict=True)
    agreement = check_recording(recording)
    made = RunSummary(
        **vars(summary) | {"cameras": tuple(replace(camera, sides_exchanged=n) for camera, n in counts)},
        recording=str(recording.path.resolve()),
        video_files=tuple(str(file.resolve()) for file in recording.files),
        triangulation=agreement.triangulation([*recording.findings, *doubts]),
        meanings={"triangulation": TRIANGULATION.sentence, "reprojection": REPROJECTION.sentence},
        store=job.results.digest,
        videos=tuple(v.name for v in job.videos),
        calibration={"file": str(recording.calibration), "estimated": is_estimated(recording.calibration)},
        sync=job.synced.shown(names),
        format=asdict(recording.point_order),
        regressor=describe(job.cfg.regress, job.net),
        # What makes the results doubtful first.
        warnings=(*few, *(f.sentence for f in (*doubts, *recording.findings))),
        missing=dict(zip(names, missing, strict=True)),
        seconds_taken=round(time.perf_counter() - job.begun, 2),
        stages=tuple({**asdict(t), "busy": t.busy} for t in times),
        config=job.cfg.model_dump(mode="json"),
        body={"name": job.body.name, "sha256": job.body.sha256},
        versions=versions(),
    )
    made.write(job.out)
    job.write_report(made)
    return RunResult(made, times, job.files)


def _inputs(recording: Recording) -> list[Path]:
    """Videos, folders of keypoints and calibration of a recording."""
    videos = [video.path for video in recording.videos if video]
    folders = [files.path for files in recording.keypoints if files]
    return [*videos, *folders, *filter(None, [recording.calibration])]


def check_apart(folder: Path, results: Results) -> None:
    """Raise ``InputError`` when drawings in ``folder`` would lie among the recording's own files."""
    recording = recording_of(results.folder)
    if recording is not None and folder.resolve().is_relative_to(recording.resolve()):
        found = reopen(results)
        check_place(folder, found.path, _inputs(found))


def place_cameras(recording: Recording, out: Path, body: Body, cfg: RunConfig) -> Recording:
    """Place the cameras of a recording without a calibration, and compare them as ``info`` does."""
    placed = calibrate(recording, out, body, cfg.calibrate, cfg.associate)
    if placed is recording:
        return recording
    if len(placed.rig) > 1:
        doubts = doubt_cameras(placed.rig, sample(placed)), check_recording(placed).findings()
        placed = replace(placed, findings=(*placed.findings, *dict.fromkeys(chain(*doubts))))
    for finding in placed.findings[len(recording.findings) :]:
        _log.warning(finding.sentence)
    return placed


def _fitted(results: Store) -> int:
    """Number of frames in which somebody was fitted."""
    anybody = np.zeros(len(results.contents.time_s), dtype=bool)
    for person in results.ids:
        anybody |= results.array(f"people/{person}/valid")
    return int(anybody.sum())


def _ages(recording: Recording) -> dict[Path, tuple[int, int] | None]:
    """Size and time of change of each video; None where there is no file."""
    ages: dict[Path, tuple[int, int] | None] = {v.path: None for v in recording.videos if v}
    for path in ages:
        with suppress(OSError):
            ages[path] = path.stat().st_size, path.stat().st_mtime_ns
    return ages


def open_results(recording: Recording, out: Path, cfg: RunConfig, body: Body, net: Net | None) -> Store:
    """The store of this recording in ``out``: a new one, or that of an earlier run with the same settings."""
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
    """Versions of what computes: results are the same to the last bit only under the same ones."""
    names = ("multispin", "torch", "numpy", "scipy", "av", "zarr", "numba")
    return {"python": platform.python_version(), "platform": sys.platform} | {
        name: metadata.version(name) for name in names
    }
