"""The command line: parse, load, call, print."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from pipeline.errors import InputError

if TYPE_CHECKING:
    from models.body import Body
    from models.evaluation.joints import H36MJoints
    from pipeline.batch import Event
    from pipeline.batch import Row as BatchRow
    from pipeline.recording import Recording
    from pipeline.storage import Place
    from pipeline.store import Store
    from pipeline.summary import Summary
    from pipeline.video import VideoInfo
    from stages.graph import RunConfig, RunResult
    from stages.inspect import Check
    from stages.render import Mode

# One thread a solve: two BLAS threads spinning against each other cost more than they give, and only then
# are results the same to the last bit. numpy reads this when it is first imported, inside the commands.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)

_SHOWN = 20
"""Recordings of a batch whose warnings are told on the screen; there may be thousands."""

Configs = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="YAML file of settings that differ from the defaults; repeatable."),
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, such as render.mosaic=false; repeatable.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"multispin {metadata.version('multispin')}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """SMPL body meshes from synchronised multi-camera video."""


@app.command()
def run(
    recording: Annotated[
        str, typer.Argument(help="Folder or URL with videos/, keypoints/ and calibration.toml.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL for the results.")],
    config: Configs = None,
    settings: Sets = None,
) -> None:
    """Reconstruct a recording: results.zarr, overlay videos, report.html. Run again to continue."""
    from pipeline.batch import counted, fingerprint, opened
    from pipeline.storage import absolute, inside, outline, place, writing
    from stages.graph import check_files
    from stages.inspect import inspect

    cfg = _run_config(config, settings)
    check_files(cfg)
    source, home = place(recording), place(out)
    with (
        outline(source) as tree,
        opened(source, tree, tree, f"run {absolute(home)}") as read,
        writing(home, fingerprint(cfg, tree, tree) if isinstance(home, str) else "") as folder,
    ):
        found = inspect(read)
        _print_recording(found, source)
        result = _run(found, folder, cfg, home)
    _print_results(result.summary)
    _print_missing(result)
    for file in result.files:
        console.print(f"  {escape(str(inside(home, str(file.relative_to(folder)))))}")
    for warning in result.warnings:
        if warning not in found.warnings:
            _warn(warning)
    if result.warnings:
        count, page = counted(len(result.warnings), "warning"), inside(home, "report.html")
        console.print(f"[yellow]{count}[/yellow]: above, and in {escape(str(page))}.")


@app.command()
def batch(
    dataset: Annotated[str, typer.Argument(help="Folder tree that holds recordings, or its URL.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL for the results of them all.")],
    workers: Annotated[
        str, typer.Option(help="Recordings processed at the same time; auto is as many as there is room for.")
    ] = "auto",
    engine: Annotated[
        str, typer.Option(help="local: processes of this machine; ray: tasks of a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of a running Ray cluster; else this machine is one.")
    ] = None,
    cpus: Annotated[float, typer.Option(min=0.1, help="Processors that a recording takes.")] = 2.0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs that a recording takes, such as 0.25.")] = 0.0,
    memory_gb: Annotated[float, typer.Option(min=0.1, help="Memory that a recording takes.")] = 2.0,
    retry: Annotated[
        int, typer.Option(min=0, help="How often a recording is tried again whose worker broke down.")
    ] = 2,
    only: Annotated[
        str, typer.Option(help="Only recordings whose name matches, such as 'session1/*'.")
    ] = "*",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is and what is wrong with it; change nothing.")
    ] = False,
    config: Configs = None,
    settings: Sets = None,
) -> None:
    """Reconstruct all recordings of a folder tree. Run again to continue. Exit status 1: not all are done."""
    from contextlib import closing

    from pipeline.batch import PAGE, find_recordings, process, within
    from pipeline.storage import inside, outline, place
    from pipeline.workers import Needs
    from stages.graph import check_files, run

    if workers != "auto" and not (workers.isdecimal() and int(workers)):
        raise InputError(f"--workers {workers}: expected a number from 1, or auto")
    if engine not in ("local", "ray"):
        raise InputError(f"--engine {engine}: expected local or ray")
    if address is not None and engine != "ray":
        raise InputError(f"--address {address}: only with --engine ray")
    cfg = _run_config(config, settings)
    if engine == "local":  # else what is named need only be where the tasks run
        check_files(cfg)
    source, home = place(dataset), place(out)
    if dry_run:
        with outline(source) as tree:
            found = find_recordings(tree, within(source, tree, home), only)
            raise typer.Exit(_print_dataset(source, tree, found))
    working = process(
        source, home, cfg, run,
        workers=None if workers == "auto" else int(workers),
        needs=Needs(cpus, gpus, memory_gb),
        engine="ray" if engine == "ray" else "local",
        address=address, retry=retry, only=only,
    )  # fmt: skip
    try:
        with closing(working) as events:
            all_done = _print_events(events, home)
    except KeyboardInterrupt:
        sys.stderr.write("stopped. What is done is kept: run the same command again to continue.\n")
        raise typer.Exit(130) from None
    console.print(f"  {escape(str(inside(home, PAGE)))}")
    raise typer.Exit(0 if all_done else 1)


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="A recording, or a folder that `run` has written; or its URL.")],
) -> None:
    """Say what a recording holds and check it, or what a results folder holds. Changes nothing."""
    from pipeline.batch import opened
    from pipeline.layout import is_recording
    from pipeline.storage import inside, outline, place, reading
    from pipeline.store import Store
    from pipeline.summary import summarise

    where = place(path)
    with outline(where) as tree:
        store = next((s for s in ("results.zarr", ".") if (tree / s / "zarr.json").is_file()), None)
        if store is not None:
            with reading(where, [store], f"process {os.getpid()}") as folder:
                results = Store(folder / store)
                _print_contents(results, where if store == "." else inside(where, store))
                _print_results(summarise(results))
        if store is None or is_recording(tree):
            with opened(where, tree, tree) as found:
                _print_check(found, where)


def _print_check(found: Recording, where: Place) -> None:
    from stages.inspect import check_recording, inspect

    found = inspect(found)
    _print_recording(found, where)
    check = check_recording(found)
    head, *rows = check.rows()
    question = "Do the cameras agree?" if check.compared else "What do the cameras show?"
    table = _table(f"{question} ({check.frames} frames looked at)", *head)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    if check.compared:
        _print_baselines(check)
    findings = [finding for finding in check.findings() if finding not in found.findings]
    for finding in findings:
        _warn(finding.sentence)
    if not findings:
        console.print(f"Nothing {'else ' * bool(found.warnings)}looks wrong.")


def _print_baselines(check: Check) -> None:
    distances = _table("Baselines, metres", "", *check.cameras)
    for name, row in zip(check.cameras, check.distance_m, strict=True):
        distances.add_row(escape(name), *(f"{d:.2f}" if d else "" for d in row))
    console.print(distances)


@app.command()
def view(
    out: Annotated[str, typer.Argument(help="A folder that `run` has written, or is writing.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="The next free one when it is taken.")] = 8080,
    host: Annotated[
        str, typer.Option(help="0.0.0.0 lets other computers look; only this one can otherwise.")
    ] = "127.0.0.1",
    live: Annotated[bool, typer.Option("--live", help="Follow a run that has not ended.")] = False,
    recording: Annotated[
        Path | None, typer.Option(help="Where the videos are, when the recording has moved or is still run.")
    ] = None,
) -> None:
    """Look at the people, cameras and pictures in 3D, in the browser. Ends with Ctrl-C."""
    from contextlib import suppress

    import torch

    from models.body import load_body
    from pipeline.recording import find_recording
    from pipeline.store import Store
    from stages.report import read_summary
    from stages.view import view, wait_for_store

    torch.set_num_threads(1)
    folder = _here(out)
    path = _store_of(folder)
    if live and not path.exists():
        console.print(f"Waiting for {escape(str(path))}.")
        wait_for_store(path)
    store = Store(path)
    body_file = store.contents.config.get("body")
    body = load_body(Path(body_file) if body_file else None)
    summary = folder / "summary.json"
    if recording is None and summary.is_file():
        recording = Path(read_summary(summary)["recording"])
        if not recording.is_dir():
            _warn(f"{recording} is not there any more: no pictures. --recording says where it is now.")
            recording = None
    videos = find_recording(recording).videos if recording else [None] * len(store.contents.rig)

    def ready(address: str) -> None:
        console.print(f"Open {address} in a browser; Ctrl-C ends.")

    with suppress(KeyboardInterrupt):
        view(store, body, videos, host=host, port=port, live=live, ready=ready)


@app.command()
def render(
    out: Annotated[str, typer.Argument(help="Folder that `run` has written.")],
    mode: Annotated[
        str, typer.Option(help="overlay, mesh, skeleton, side (and top), turntable or mosaic.")
    ] = "overlay",
    cameras: Annotated[
        list[str] | None, typer.Option(help="Only this camera; repeatable, or names with commas between.")
    ] = None,
    start: Annotated[int, typer.Option(min=0, help="First frame.")] = 0,
    end: Annotated[int | None, typer.Option(min=1, help="The frame after the last.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Opacity of the bodies, 0 to 1.")] = None,
    colour: Annotated[
        list[str] | None, typer.Option(help="Of each person in turn, such as #56B4E9; repeatable.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Size of the pictures by that of the videos.")] = None,
    codec: Annotated[
        str | None, typer.Option(help="FFmpeg's name of an encoder, such as libx264; auto chooses.")
    ] = None,
    crf: Annotated[int | None, typer.Option(help="Quality, 0 to 51: lower is better and larger.")] = None,
    recording: Annotated[
        Path | None, typer.Option(help="The recording, where it is no longer where it was.")
    ] = None,
    config: Configs = None,
    settings: Sets = None,
) -> None:
    """Draw finished results again: over the videos, alone, as keypoints, from the side, turning, in one."""
    import json
    import logging
    from functools import partial
    from typing import get_args

    import torch

    from models.body import load_body
    from pipeline.store import Store
    from stages.decode import decode
    from stages.render import Mode, render_results

    logging.basicConfig(level=logging.INFO, format="%(message)s")  # what draws and what encodes
    if mode not in get_args(Mode):
        raise InputError(f"--mode {mode}: there is no such mode. Choose {', '.join(get_args(Mode))}.")
    if mode in ("side", "turntable") and (cameras or scale is not None):
        raise InputError(
            f"--mode {mode} shows no camera's picture, so --cameras and --scale mean nothing there. "
            "Leave them out; --set render.mosaic_size=[1280,720] gives its size."
        )
    given: list[tuple[str, str, object]] = [
        ("--cameras", "cameras", [n for names in cameras for n in names.split(",")] if cameras else None),
        ("--alpha", "opacity", alpha), ("--colour", "colours", colour or None), ("--scale", "scale", scale),
        ("--codec", "codec", codec), ("--crf", "crf", crf),
    ]  # fmt: skip
    options = {f"render.{key}={json.dumps(v)}": name for name, key, v in given if v is not None}
    try:
        cfg = _run_config(config, [*(settings or ()), *options])
    except InputError as e:
        text = str(e)
        for setting, name in options.items():
            text = text.replace(f"--set {setting}", name)
        raise InputError(text) from None
    folder = _here(out)
    results = Store(folder / "results.zarr")
    names = results.contents.rig.names
    videos: list[VideoInfo | None] = [None] * len(names)
    if mode in ("overlay", "skeleton", "mosaic"):
        videos = _videos_of(folder, names, recording)
    made_with = results.contents.config.get("body")
    body = load_body(cfg.body or (Path(made_with) if made_with else None))
    torch.set_num_threads(1)
    files, stream = render_results(
        results,
        cast("Mode", mode),
        cfg.render,
        videos,
        body,
        folder,
        partial(decode, cfg=cfg.decode),
        start,
        end,
    )
    total = (len(results.contents.time_s) if end is None else end) - start
    with tqdm(total=total, unit="frame", desc=mode, dynamic_ncols=True) as bar:
        for batch in stream:
            bar.update(len(batch.valid))
    for file in files:
        console.print(f"  {escape(str(file))}")


@app.command()
def export(
    out: Annotated[str, typer.Argument(help="Folder that `run` has written, or its results.zarr.")],
    file: Annotated[Path, typer.Argument(help="What to write: .glb, .bvh, .trc, .npz or .obj.")],
    person: Annotated[int, typer.Option(min=0, help="Number of the person.")] = 0,
    start: Annotated[int, typer.Option(min=0, help="First frame; the one of an .obj.")] = 0,
    end: Annotated[int | None, typer.Option(min=1, help="The frame after the last.")] = None,
    body: Annotated[
        Path | None, typer.Option(help="The SMPL file of the results, where it is no longer where it was.")
    ] = None,
) -> None:
    """Write a person for other tools; the suffix of FILE says what. A file that is there is replaced.

    .glb: skinned, animated body, metres (Blender, three.js, Windows). .bvh: skeleton's motion, centimetres,
    degrees. .trc: BODY_25 markers, metres (OpenSim, Pose2Sim). .npz: SMPL parameters under AMASS's names,
    poses of 24 joints, metres; betas are those of the run's body. .obj: mesh of one frame, metres.

    Up in the calibration becomes y, and z in .npz, by quarter turns; what became of each axis is printed.
    Where z is up, x, y, z of the file are x, z, -y of the calibration, which Blender takes back; in .trc
    y, z, x, as in Pose2Sim's; in .npz nothing turns.

    Frames without a pose: interpolated in .glb and .bvh, NaN in .npz, and empty in .trc with all others that
    are not valid.
    """
    import torch

    from models.body import load_body
    from pipeline.store import Store
    from stages.export import check_format
    from stages.export import export as write

    check_format(file)
    torch.set_num_threads(1)
    folder = _here(out)
    results = Store(_store_of(folder))
    made_with = results.contents.config.get("body")
    if body is None and made_with and not Path(made_with).is_file():
        raise InputError(
            f"{made_with}: the body that {results.path} was made with is not there any more. "
            "Say where it is: --body FILE."
        )
    model = load_body(body or (Path(made_with) if made_with else None))
    told, warnings = write(results, model, file, person, start, end)
    for warning in warnings:
        _warn(warning)
    console.print(f"  {escape(str(file))}: {told}")


def _store_of(folder: Path) -> Path:
    """The results that a folder is, or has in it."""
    return folder if (folder / "zarr.json").is_file() else folder / "results.zarr"


def _here(out: str) -> Path:
    """A folder of this machine: `view`, `render` and `export` read stores and videos in pieces, and again."""
    from pipeline.storage import place

    folder = place(out)
    if isinstance(folder, str):
        raise InputError(
            f"{out}: this command needs the results in a folder of this machine. Copy them here first, of "
            "s3:// with `aws s3 sync`, and give it that folder; `info` takes URLs."
        )
    return folder


def _videos_of(out: Path, names: Sequence[str], recording: Path | None) -> list[VideoInfo | None]:
    """The recording's video of each camera of a store."""
    import json

    from pipeline.recording import find_recording

    if recording is None:
        try:
            recording = Path(json.loads((out / "summary.json").read_text(encoding="utf-8"))["recording"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise InputError(
                f"{out}: summary.json names no recording ({e}). Say where it is: --recording FOLDER."
            ) from e
        if not recording.is_dir():
            raise InputError(
                f"{recording}: the recording of {out} is not there any more. "
                "Say where it is: --recording FOLDER."
            )
    found = find_recording(recording)
    place = {name: video for name, video in zip(found.rig.names, found.videos, strict=True)}
    if not set(names) <= set(place):
        raise InputError(
            f"{recording}: has the cameras {', '.join(place)}, the results those called {', '.join(names)}. "
            "Name the recording they came from: --recording FOLDER."
        )
    return [place[name] for name in names]


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder for the recording.")],
    cameras: Annotated[int, typer.Option(min=2, max=64, help="Cameras around the people.")] = 4,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length.")] = 3.0,
    fps: Annotated[str, typer.Option(help="Frames a second; a fraction such as 30000/1001 works.")] = "30",
    people: Annotated[int, typer.Option(min=1, max=16, help="People, each with a motion of their own.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same recording.")] = 0,
    noise_px: Annotated[float, typer.Option(min=0, help="Standard deviation of a keypoint, pixels.")] = 3.0,
    outliers: Annotated[
        float, typer.Option(min=0, max=1, help="Share of keypoints that are far off.")
    ] = 0.05,
    missing: Annotated[float, typer.Option(min=0, max=1, help="Share of keypoints not found.")] = 0.1,
    videos: Annotated[bool, typer.Option(help="Draw the videos, too.")] = True,
    size: Annotated[tuple[int, int], typer.Option(help="Picture width and height.")] = (960, 720),
    keypoint_format: Annotated[
        str, typer.Option("--format", help="body_25, body_25b, coco_17 or halpe_26.")
    ] = "body_25",
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
) -> None:
    """Make a recording of moving people with noisy keypoints, and its truth in truth.zarr."""
    from models.body import load_body

    values = {
        "cameras": cameras, "seconds": seconds, "fps": fps, "people": people, "seed": seed,
        "noise_px": noise_px, "outliers": outliers, "missing": missing, "videos": videos, "size": list(size),
        "format": keypoint_format,
    }  # fmt: skip
    _synth(out, values, load_body(), force=force)
    results = out.resolve().with_name(f"{out.resolve().name}-results")
    console.print(escape(f"Made {out}. Next: python run_pipeline.py run {out} --out {results}"))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for recording and results.")] = Path(
        "multispin-demo"
    ),
    config: Configs = None,
    settings: Sets = None,
) -> None:
    """Make a small recording, reconstruct it, and compare with the truth. Takes about a minute."""
    from models.body import load_body
    from models.evaluation.stores import compare_to_truth
    from pipeline.recording import find_recording
    from pipeline.store import Store
    from stages.graph import check_files
    from stages.inspect import inspect

    cfg = _run_config(config, settings)
    check_files(cfg)
    body = load_body()
    _synth(out / "recording", {}, body)
    found = inspect(find_recording(out / "recording"))
    _print_recording(found, found.path)
    result = _run(found, out / "results", cfg, out / "results")
    _print_results(result.summary)
    _print_missing(result)
    truth = Store(out / "recording" / "truth.zarr")
    table = _table("Errors against the truth", "", "mean")
    for person in compare_to_truth(Store(out / "results" / "results.zarr"), truth, body):
        table.add_row("joints, MPJPE", f"{person.mpjpe_mm:.1f} mm")
        table.add_row("joints after alignment, PA-MPJPE", f"{person.pa_mpjpe_mm:.1f} mm")
        table.add_row("vertices, PVE", f"{person.pve_mm:.1f} mm")
        table.add_row("keypoints in the pictures", f"{person.keypoints_px:.1f} px")
        table.add_row("frames compared", f"{person.frames} of {person.frames + person.missed}")
    console.print(table)
    _print_files(result)


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for weights, metrics and checkpoints.")],
    config: Configs = None,
    motion: Annotated[
        Path | None, typer.Option(help="Motion capture, a .npz: see models/training/poses.py.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps in all.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Train for so long, however many steps that makes.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Weights to start from, instead of random ones.")] = None,
    settings: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="With --resume: the checkpoint to go on from, instead of the last.")
    ] = None,
) -> None:
    """Train a regressor of keypoints, or of images with SMPLify in the loop. Ctrl-C saves."""
    import signal
    from contextlib import closing
    from threading import Event

    import torch

    from models.training.trainer import TrainConfig
    from models.training.trainer import train as training
    from pipeline.config import load

    torch.set_num_threads(1)
    more = [f"steps={max_steps}"] if max_steps else []
    more += [f"motion={motion}"] if motion else []
    cfg = load(TrainConfig, config or (), [*(settings or ()), *more])
    if checkpoint is not None and not resume:
        raise InputError("--checkpoint: only with --resume. For weights alone there is --init.")
    # Ctrl-C in the middle of a step would save half of it: it waits for the end of the step.
    stop = Event()
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    bar = tqdm(
        total=100, delay=1, bar_format="{desc} {percentage:.1f}%|{bar}| {remaining} left{postfix}",
        disable=os.environ.get("LOCAL_RANK", "0") != "0",  # several processes: the first one tells
    )  # fmt: skip
    samples, began = 0, time.monotonic()
    going_on = (checkpoint or True) if resume else False
    try:
        steps = training(cfg, out, minutes=minutes, init=init, resume=going_on, stop=stop.is_set)
        with closing(steps):
            for done in steps:
                samples += done.samples
                rate = samples / (time.monotonic() - began)
                bar.set_postfix_str(f"step {done.step}, {rate:.0f} samples/s, loss {done.loss:.3f}", False)
                bar.update(100 * done.share - bar.n)
    finally:
        signal.signal(signal.SIGINT, before)
        bar.close()
    if stop.is_set():
        sys.stderr.write("stopped. Run the same command with --resume to go on.\n")
        raise typer.Exit(130)
    if not bar.disable:
        console.print(f"  {escape(str(out / 'weights.safetensors'))}")


@app.command()
def evaluate(
    results: Annotated[
        Path | None, typer.Argument(help="With --truth: a results.zarr, or the folder of a run.")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="The results.zarr or truth.zarr that is right.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Protocol: h36m-p1, h36m-p2, mpi-inf-3dhp or 3dpw.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The .npz of rows that `preprocess` or SPIN made.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder below which its pictures lie; else that of the .npz.")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="The network: default, or a file as of --set regress.weights.")
    ] = "default",
    result: Annotated[
        Path | None, typer.Option(help="Write poses and joints to this .npz, and metrics.json beside it.")
    ] = None,
    metrics_json: Annotated[
        Path | None, typer.Option("--json", help="Write the metrics to this file.")
    ] = None,
    views: Annotated[int, typer.Option(min=1, help="Views of each person and instant.")] = 1,
    fit: Annotated[
        bool, typer.Option("--fit", help="Fit to the keypoints, from what the network says.")
    ] = False,
    body: Annotated[Path | None, typer.Option(help="SMPL; else the body that ships.")] = None,
    body_male: Annotated[Path | None, typer.Option(help="SMPL of men, for 3DPW's truth.")] = None,
    body_female: Annotated[Path | None, typer.Option(help="SMPL of women, for 3DPW's truth.")] = None,
    joint_regressor: Annotated[
        Path | None, typer.Option(help="J_regressor_h36m.npy, which goes with SMPL.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that go through the network at once.")] = 32,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = 0,
    log_freq: Annotated[
        int, typer.Option(min=1, help="Batches between two words on the errors so far.")
    ] = 50,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
) -> None:
    """Score a network on a data set by a published protocol, or results against a truth."""
    import json
    from functools import partial

    import torch

    from models.body import load_body
    from models.evaluation.joints import h36m_joints
    from models.evaluation.protocols import PROTOCOLS
    from models.evaluation.scores import UNIT_NAMES, TrueBodies
    from models.evaluation.scores import evaluate as evaluation
    from pipeline.datasets.pictures import read_pictures
    from pipeline.datasets.rows import read_rows, write_npz
    from pipeline.files import write_atomically
    from stages.regress import RegressConfig, describe, load_net

    torch.set_num_threads(1)
    where = metrics_json or (result.with_name("metrics.json") if result else None)
    _check_writable(result, where)
    if truth is not None:
        if results is None or dataset or data:
            raise InputError("--truth takes one results.zarr: evaluate --truth truth.zarr results.zarr")
        _compare(results, truth, where)
        return
    if results is not None:
        raise InputError(f"{results}: against which truth? --truth truth.zarr")
    if dataset not in PROTOCOLS or data is None:
        raise InputError(
            f"evaluate --dataset {dataset or '…'} --data {data or '…'}: give a protocol, "
            f"{', '.join(PROTOCOLS)}, and the .npz of its rows. Or two stores: --truth truth.zarr "
            "results.zarr"
        )
    protocol = PROTOCOLS[dataset]
    cfg = RegressConfig(weights=weights, device=device)
    net = load_net(cfg)
    if net is None:
        raise InputError("--weights none: there is nothing to evaluate")
    rows = read_rows(data)

    def joints(path: Path) -> H36MJoints:
        return h36m_joints(load_body(path), joint_regressor)

    bodies = TrueBodies(
        h36m_joints(load_body(body), joint_regressor),
        joints(body_male) if body_male else None,
        joints(body_female) if body_female else None,
    )
    if bodies.neutral.approximate:
        _warn(f"joints are {bodies.neutral.source}. Published numbers need SMPL: see the command data.")
    if protocol.true is None and not (body_male and body_female):
        _warn(f"the truth of {dataset} is bodies of men and women: give --body-male and --body-female.")
    batches = 0
    with tqdm(total=len(rows["scale"]), unit="row", desc=dataset, dynamic_ncols=True) as bar:

        def progress(count: int, means: Mapping[str, float]) -> None:
            nonlocal batches
            batches += 1
            bar.update(count)
            if batches % log_freq == 0:
                bar.set_postfix({k: f"{v:.1f}" for k, v in means.items()})

        done = evaluation(
            protocol, net, rows, bodies, partial(read_pictures, root or data.parent),
            views=views, fitted=fit, batch_size=batch_size, num_workers=num_workers, progress=progress,
        )  # fmt: skip
        bar.total = len(done.row)
    columns = {UNIT_NAMES[m]: m for m in protocol.measures}
    names = {
        "mpjpe": "MPJPE mm", "pa_mpjpe": "PA-MPJPE mm", "pve": "PVE mm", "pck150": "PCK@150", "auc": "AUC",
    }  # fmt: skip
    told = _table(f"{protocol.dataset}, {dataset}", "action", *(names[m] for m in columns.values()), "rows")
    for name, means in [*done.metrics["actions"].items(), ("all", done.metrics)]:
        cells = [_measure(means[key]) for key in columns]
        told.add_row(escape(name), *cells, str(means["rows"] - means["not_compared"]))
    console.print(told)
    if missed := done.metrics["not_compared"]:
        _warn(f"{missed} of {len(done.row)} rows were not compared: nobody was seen, or no truth is known.")
    if other := done.metrics["rows_of_other_data"]:
        _warn(f"{other} of {len(done.row)} rows are not of {dataset}'s test set, by their pictures' names.")
    metrics = {"weights": describe(cfg, net), "data": str(data), **done.metrics}
    if result is not None:
        write_npz(done.arrays(), result)
        console.print(f"  {escape(str(result))}")
    if where is not None:
        write_atomically(where, json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
        console.print(f"  {escape(str(where))}")


def _check_writable(*files: Path | None) -> None:
    """Before work that would be lost: that there can be files of these names. Makes their folders."""
    for file in files:
        if file is None:
            continue
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(f"{file}: cannot be written ({e.strerror or e}). Choose another place.") from e
        if file.is_dir() or not os.access(file.parent, os.W_OK):
            why = "it is a folder" if file.is_dir() else "the folder is not writable"
            raise InputError(f"{file}: cannot be written ({why}). Choose another place.")


def _measure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value <= 1 else f"{value:.1f}"


def _compare(results: Path, truth: Path, where: Path | None) -> None:
    """Print and write the errors of a results store, person by person."""
    import json
    import math
    from dataclasses import asdict

    from models.body import load_body
    from models.evaluation.stores import compare_to_truth
    from pipeline.files import write_atomically
    from pipeline.store import Store

    found, right = (
        Store(p / "results.zarr" if (p / "results.zarr").is_dir() else p) for p in (results, truth)
    )
    made_with = found.contents.config.get("body")
    errors = compare_to_truth(found, right, load_body(Path(made_with) if made_with else None))
    rows = {
        "person of the truth": "truth", "frames compared": "frames", "frames missed": "missed",
        "MPJPE, world, mm": "mpjpe_mm", "MPJPE, pelves together, mm": "mpjpe_pelvis_mm",
        "PA-MPJPE, mm": "pa_mpjpe_mm", "PVE, world, mm": "pve_mm",
        "acceleration, mm/frame²": "acceleration_mm", "keypoints in the pictures, px": "keypoints_px",
    }  # fmt: skip
    table = _table("Errors against the truth", "person", *(e.person for e in errors))
    for label, name in rows.items():
        cells = []
        for value in (getattr(e, name) for e in errors):
            number = isinstance(value, float)
            cells.append(_number(None if math.isnan(value) else value) if number else str(value))
        table.add_row(label, *cells)
    console.print(table)
    if where is not None:
        people = [
            {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(e).items()}
            for e in errors
        ]
        document = {"results": str(found.path), "truth": str(right.path), "people": people}
        write_atomically(where, json.dumps(document, indent=1) + "\n")
        console.print(f"  {escape(str(where))}")


@app.command()
def preprocess(
    dataset: Annotated[str, typer.Argument(help="mpi-inf-3dhp, h36m or 3dpw.")],
    root: Annotated[Path, typer.Argument(help="Folder that the data set was unpacked in.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz to write.")],
    openpose: Annotated[
        Path | None, typer.Option(help="OpenPose's JSON, in the folders that the pictures have below ROOT.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train or test; 3DPW has validation, too, and begins with test.")
    ] = None,
    every: Annotated[
        int | None, typer.Option(min=1, help="Take one frame in so many; else the usual.")
    ] = None,
) -> None:
    """Bring a data set to SPIN's .npz, with views and cameras, for `train` and `evaluate`."""
    from pipeline.datasets import h36m, mpi_inf_3dhp, threedpw
    from pipeline.datasets.rows import Row, check_openpose, to_arrays, write_npz

    modules = {m.NAME: m for m in (mpi_inf_3dhp, h36m, threedpw)}
    if dataset not in modules:
        raise InputError(f"{dataset}: no such data set. Choose {', '.join(modules)}.")
    module = modules[dataset]
    split = split or module.SPLITS[0]
    if split not in module.SPLITS:
        raise InputError(f"--split {split}: {dataset} has {', '.join(module.SPLITS)}")
    _check_writable(out)
    parts = module.parts(root, split)
    if lacking := module.missing(parts):
        _warn(f"{root}: {lacking}; the others are taken")
    rows: list[Row] = []
    for part in (bar := tqdm(parts, unit="part", desc=f"{dataset} {split}", dynamic_ncols=True)):
        bar.set_postfix_str(part.name)
        rows += module.rows(part, openpose, every or module.EVERY[split])
    if not rows:
        raise InputError(f"{root}: no frame of {dataset} {split} shows a whole person in a picture it has")
    check_openpose(openpose, rows)
    arrays = to_arrays(rows)
    size = sum(a.nbytes for a in arrays.values())
    console.print(f"{len(rows)} rows of {len(set(arrays['group']))} instants take {size / 1e6:.1f} MB.")
    write_npz(arrays, out)
    console.print(f"  {escape(str(out))}")


@app.command()
def crops(
    source: Annotated[
        Path, typer.Argument(help="A finished run's folder or results.zarr, or the .npz of rows.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The crops.zarr to write.")],
    size: Annotated[
        int, typer.Option(min=32, max=1024, help="Crops that are trained on, pixels; there is room around.")
    ] = 224,
    fps: Annotated[float, typer.Option(min=0.01, help="Pictures a second that are taken of a run.")] = 10.0,
    recording: Annotated[
        Path | None, typer.Option(help="Where the videos of a run are, when the recording has moved.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that the rows' pictures lie below; else that of the .npz.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many pictures it takes, and what room; write nothing.")
    ] = False,
) -> None:
    """Cut people out of videos once, in order, for `train` to read in any. Run again to continue."""
    from contextlib import closing

    from models.training.published import Rows
    from models.training.recorded import plan_of_results
    from pipeline.store import Store
    from stages.crops import crops_of_results, crops_of_rows

    if source.is_file() or source.suffix == ".npz":
        rows = Rows(source)
        plan = rows.plan(size)
        written = crops_of_rows(rows, root or source.parent, plan, out)
    else:
        path = source if (source / "zarr.json").is_file() else source / "results.zarr"
        results = Store(path)
        plan = plan_of_results(results, size, fps)
        videos = _videos_of(path.parent, results.contents.rig.names, recording)
        written = crops_of_results(results, videos, plan, out)
    megabytes = plan.nbytes / 1e6
    room = f"{megabytes:.1f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
    console.print(f"{len(plan.box)} pictures take up to {room}.")
    if dry_run:
        return
    try:
        with (
            closing(written),
            tqdm(total=len(plan.box), unit="picture", desc="crops", dynamic_ncols=True) as bar,
        ):
            for count in written:
                bar.update(count - bar.n)
            bar.update(len(plan.box) - bar.n)
    except KeyboardInterrupt:
        sys.stderr.write("stopped. What is done is kept: run the same command again to continue.\n")
        raise typer.Exit(130) from None
    console.print(f"  {escape(str(out))}")


@app.command()
def data(
    folder: Annotated[Path, typer.Argument(help="Where such files are kept.")] = Path("data"),
) -> None:
    """List the files that cannot ship: what for, who gives them out, whether they are here and sound."""
    from models.external import EXTERNAL, look

    unsound = False
    for external in EXTERNAL:
        found = look(external, folder)
        unsound |= found.there and not found.sound
        here = "[green]here[/]" if found.sound else "[red]not sound[/]" if found.there else "not here"
        table = _table(f"{escape(str(found.path))}: {here}")
        for label, text in (
            ("for", external.purpose), ("from", external.source), ("terms", external.terms),
            ("given by", external.given), ("says", found.said),
        ):  # fmt: skip
            if text:
                table.add_row(label, escape(text))
        console.print(table)
    console.print("None of them is needed to reconstruct recordings.")
    raise typer.Exit(1 if unsound else 0)


def _run_config(files: Sequence[Path] | None, settings: Sequence[str] | None) -> RunConfig:
    from pipeline.config import load
    from stages.graph import RunConfig

    with resources.as_file(resources.files("configs") / "default.yaml") as default:
        return load(RunConfig, [default, *(files or ())], settings or ())


def _run(found: Recording, out: Path, cfg: RunConfig, home: Place) -> RunResult:
    """home: where the user wants what is left in ``out``."""
    import torch
    from tqdm.contrib.logging import logging_redirect_tqdm

    from pipeline.storage import inside
    from stages.graph import run

    torch.set_num_threads(1)
    try:
        with (
            tqdm(total=len(found), unit="frame", desc="reconstruct", dynamic_ncols=True) as bar,
            logging_redirect_tqdm(),
        ):
            result = run(found, out, cfg, bar.update)
    except KeyboardInterrupt:
        sys.stderr.write("stopped. What is done is kept: run the same command again to continue.\n")
        raise typer.Exit(130) from None
    if not result.times:
        again = inside(home, "results.zarr")
        console.print(
            escape(f"{home}: everything is done already; nothing to do. To start again, remove {again}.")
        )
        return result
    table = _table("Where the time went, seconds", "stage", "busy", "starved", "blocked", "batches")
    for t in result.times:
        table.add_row(t.name, f"{t.busy:.1f}", f"{t.starved:.1f}", f"{t.blocked:.1f}", str(t.items))
    console.print(table)
    console.print(escape(f"regressor: {result.regressor}"))
    return result


def _synth(out: Path, values: dict[str, object], body: Body, *, force: bool = False) -> None:
    from pydantic import ValidationError

    from pipeline.config import reason
    from stages.synth import SynthConfig, write_recording

    try:
        cfg = SynthConfig.model_validate(values)
    except ValidationError as e:
        option = "; ".join(
            f"--{'-'.join(str(p) for p in x['loc'][:1]).replace('_', '-')}: {reason(x)}" for x in e.errors()
        )
        raise InputError(option) from e
    with tqdm(total=cfg.frames, unit="frame", desc="synthesise", dynamic_ncols=True) as bar:
        write_recording(out, cfg, body, bar.update, force=force)


def _print_dataset(dataset: Place, tree: Path, folders: Mapping[str, Path]) -> int:
    """What a batch would run, and what is wrong with which; the exit status."""
    from pipeline.batch import counted, opened
    from stages.inspect import inspect

    table = _table(escape(str(dataset)), "recording", "cameras", "frames", "fps", "keypoints", "calibration")
    told: list[tuple[str, str]] = []
    refused = 0
    for name, folder in folders.items():
        try:
            with opened(dataset, tree, folder) as read:
                found = inspect(read)
                told += [(name, warning) for warning in found.warnings]
                calibration = os.path.relpath(found.calibration, found.path) if found.calibration else "none"
                table.add_row(
                    escape(name), str(len(found.rig)), str(len(found)), f"{float(found.timeline.rate):.6g}",
                    found.format.name, escape(calibration),
                )  # fmt: skip
        except InputError as e:
            refused += 1
            table.add_row(escape(name), *[""] * 4, "[red]refused[/red]")
            told.append((name, f"error: {e}"))
    console.print(table)
    for name, text in told:
        _warn(f"{name}: {text}")
    console.print(f"{len(folders) - refused} of {counted(len(folders), 'recording')} can be run.")
    return 1 if refused else 0


def _print_events(events: Iterator[Event], home: Place) -> bool:
    """Progress bars, one for all and one a worker; in the end the warnings, and whether all are done."""
    from pipeline.batch import PAGE, counted
    from pipeline.storage import inside
    from pipeline.workers import LOG

    bars: dict[int, tqdm[Any]] = {}
    rows: dict[str, BatchRow] = {}
    with tqdm(unit="recording", desc="batch", delay=1, dynamic_ncols=True) as whole:
        for event in events:
            row, whole.total = event.row, event.recordings
            if row.state == "running":
                if event.worker not in bars:  # they need a terminal, whose lines can be written again
                    bars[event.worker] = tqdm(
                        position=event.worker + 1, unit="frame", leave=False, disable=None, dynamic_ncols=True
                    )
                bar = bars[event.worker]
                if event.total is not None:
                    bar.reset(event.total)
                bar.set_description(row.name, refresh=False)
                bar.update(event.frames)
                continue
            rows[row.name] = row
            if row.error:
                again = ", to be tried again" if row.state == "pending" else ""
                tqdm.write(f"{row.name}: failed{again}: {row.error}", file=sys.stderr)
            if row.state != "pending":
                whole.update()
        for bar in bars.values():
            bar.close()
    warned = [row for row in rows.values() if row.warnings]
    for row in warned[:_SHOWN]:
        where = inside(home, f"{row.name}/{LOG}")
        _warn(f"{row.name}: {counted(len(row.warnings), 'warning')}, in {where}; first: {row.warnings[0]}")
    if len(warned) > _SHOWN:
        _warn(f"{counted(len(warned) - _SHOWN, 'more recording')} with warnings: see {inside(home, PAGE)}")
    done = sum(row.state == "done" for row in rows.values())
    console.print(f"{done} of {counted(len(rows), 'recording')} done.")
    return done == len(rows)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        show_header=bool(columns),
    )
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table


def _print_recording(found: Recording, where: Place) -> None:
    table = _table(escape(str(where)))
    for row in found.notes:
        table.add_row(*map(escape, row))
    console.print(table)
    for warning in found.warnings:
        _warn(warning)


def _warn(sentence: str) -> None:
    console.print(f"[yellow]warning:[/yellow] {escape(sentence)}")


def _number(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{value:.1f}{unit}"


def _print_contents(results: Store, where: Place) -> None:
    c = results.contents
    table = _table(escape(str(where)))
    done = int(results.done.sum())
    table.add_row("cameras", ", ".join(c.rig.names))
    table.add_row("body", f"{c.body['name']} ({c.body['sha256'][:12]})")
    table.add_row(
        "windows done",
        f"{done} of {len(results.done)}" + ("" if done == len(results.done) else " (run again to continue)"),
    )
    console.print(table)


def _print_results(summary: Summary) -> None:
    table = _table(
        "Reprojection error", "camera", "median px", "mean px", "person seen", "not seen", "no picture"
    )
    for c in summary.cameras:
        table.add_row(
            escape(c.name), _number(c.reprojection_median_px), _number(c.reprojection_mean_px),
            str(c.frames_with_person), str(c.frames_without_person), str(c.frames_without_picture),
        )  # fmt: skip
    table.add_row("all", _number(summary.reprojection_median_px), _number(summary.reprojection_mean_px))
    console.print(table)
    for p in summary.people:
        console.print(
            f"person {p.id}: {p.frames_fitted} of {summary.frames} frames fitted, "
            f"{p.frames_bridged} bridged, {p.frames_far_off} too far off, "
            f"{p.frames_without_pose} without a pose; joint acceleration {_number(p.jitter_mm)} mm/frame²"
        )


def _print_missing(result: RunResult) -> None:
    for camera, missing in zip(result.summary.cameras, result.missing, strict=True):
        if missing.frames:
            reasons = ", ".join(
                f"{reason} {count}"
                + (f" (first: {example})" if (example := missing.examples.get(reason)) else "")
                for reason, count in missing.frames.items()
            )
            console.print(f"{escape(camera.name)} does not show the person: {escape(reasons)}")


def _print_files(result: RunResult) -> None:
    for file in result.files:
        console.print(f"  {escape(str(file))}")


def main() -> None:
    """The console script: a user's mistake is a message and status 2, not a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be of any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except InputError as e:
        sys.stderr.write(f"error: {e}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
