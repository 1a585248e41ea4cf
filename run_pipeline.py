"""The command line: parse, load, call."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.markup import escape
from typer import Argument, Option

from pipeline.errors import InputError, NobodyFound, shortened
from pipeline.skeleton import POINT_ORDERS
from stages import calibration, commands, screen
from stages.commands import Configs, Sets, results_beside, stoppable
from stages.screen import console, print_file, warn
from stages.usage import context, make_app

if TYPE_CHECKING:
    from models.body import Body
    from pipeline.batch.storage import Location
    from pipeline.recording import Recording
    from pipeline.results import Results
    from pipeline.video import VideoInfo
    from stages.graph import RunConfig, RunResult
    from stages.render import Mode

# One thread a solve: two BLAS threads spinning against each other cost more than they give, and only then
# are results the same to the last bit. numpy reads this when it is first imported, inside the commands.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

People = Annotated[
    str | None, Option("--people", help="Who is reconstructed: all (the default), main, or at most so many.")
]
Cameras = Annotated[list[str] | None, Option(help="Only these, with commas between; repeatable.")]
Start = Annotated[int, Option(min=0, help="First frame.")]
End = Annotated[int | None, Option(min=1, help="Frame after the last.")]
Moved = Annotated[Path | None, Option(help="The recording, if it has moved.")]
Sync = Annotated[
    str | None, Option("--sync", help="Cameras' clocks: auto (the default), off, or a sync.yaml.")
]

app = make_app(context_settings=context())


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"multispin {metadata.version('multispin')}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """SMPL body meshes from synchronised multi-camera video."""


@app.command()
def run(
    recording: Annotated[
        list[str],
        Argument(
            help="Folder or URL with videos, keypoints and calibration, or what there is of these; "
            "or the video of each camera."
        ),
    ],
    out: Annotated[
        str | None, Option("--out", "-o", help="Folder or URL for the results; else RECORDING-results.")
    ] = None,
    cameras: Cameras = None,
    start: Start = 0,
    end: End = None,
    people: People = None,
    sync: Sync = None,
    device: Annotated[str | None, Option(help="Where networks run: auto, cpu, cuda or cuda:1.")] = None,
    no_videos: Annotated[bool, Option("--no-videos", help="Draw no videos.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Start again where results are.")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    config: Configs = None,
    settings: Sets = None,
) -> None:
    """Reconstruct a recording: results.zarr, overlay videos, report.html. Run again to continue."""
    from pipeline.batch.dataset import opened_for_run
    from pipeline.batch.manifest import counted
    from pipeline.batch.storage import join, parse_location
    from pipeline.files import locked
    from pipeline.results import REPORT, remove_run
    from stages.graph import check_files
    from stages.inspect import inspect

    options = _options(people, sync, device)
    drawn = ["render.overlay=false", "render.mosaic=false"] if no_videos else []
    cfg = _run_config(config, [*(settings or ()), *drawn], options)
    check_files(cfg)
    screen.be_quiet(quiet)
    home = parse_location(results_beside(recording[0]) if out is None else out)
    with opened_for_run(recording, home, cfg) as (whole, folder):
        read = whole.part(_names(cameras), start, end)
        if overwrite:
            with locked(folder):
                remove_run(folder)
        found = inspect(read.without_keypoints() if cfg.detect.when == "always" else read)
        screen.print_recording(found, ", ".join(recording))
        with screen.printed_log() as printed:
            result = _run(found, folder, cfg, home)
    screen.print_result(result)
    for file in result.files:
        print_file(join(home, str(file.relative_to(folder))))
    for warning in result.warnings:
        if warning not in (*found.warnings, *printed):
            warn(warning)
    if result.warnings:
        count, page = counted(len(result.warnings), "warning"), join(home, REPORT)
        console.print(f"[yellow]{count}[/yellow]: above, and in {escape(str(page))}.")


@app.command()
def batch(
    dataset: Annotated[str, Argument(help="Folder tree that holds recordings, or its URL.")],
    out: Annotated[str, Option("--out", "-o", help="Folder or URL for the results of them all.")],
    workers: Annotated[str, Option(help="Recordings at the same time, or auto: as many as fit.")] = "auto",
    engine: Annotated[str, Option(help="local: this machine's processes; ray: a Ray cluster.")] = "local",
    address: Annotated[str | None, Option(help="HOST:PORT of a Ray cluster; else this machine.")] = None,
    cpus: Annotated[float, Option(min=0.1, help="Processors that a recording takes.")] = 2.0,
    gpus: Annotated[float, Option(min=0, help="GPUs that a recording takes, such as 0.25.")] = 0.0,
    memory_gb: Annotated[float, Option(min=0.1, help="Memory that a recording takes.")] = 2.0,
    retry: Annotated[int, Option(min=0, help="Further tries of a recording whose worker broke down.")] = 2,
    only: Annotated[str, Option(help="Only recordings whose name matches, such as 'session1/*'.")] = "*",
    dry_run: Annotated[bool, Option("--dry-run", help="Say what is there and what is wrong.")] = False,
    people: People = None,
    sync: Sync = None,
    config: Configs = None,
    settings: Sets = None,
) -> None:
    """Reconstruct all recordings of a folder tree. Run again to continue. Exit status 1: not all are done."""
    from pipeline.batch.dataset import find_recordings, preview, within
    from pipeline.batch.process import Capacity, process
    from pipeline.batch.storage import listing, parse_location
    from pipeline.batch.workers import Needs
    from stages.graph import check_files, run
    from stages.inspect import inspect

    if workers != "auto" and not (workers.isdecimal() and int(workers)):
        raise InputError(f"--workers {workers}: expected a number from 1, or auto")
    if engine not in ("local", "ray"):
        raise InputError(f"--engine {engine}: expected local or ray")
    if address is not None and engine != "ray":
        raise InputError(f"--address {address}: only with --engine ray")
    cfg = _run_config(config, settings, _options(people, sync))
    if engine == "local":  # else what is named need only be where the tasks run
        check_files(cfg)
    source, home = parse_location(dataset), parse_location(out)
    if dry_run:
        with listing(source) as tree:
            folders = find_recordings(tree, within(source, tree, home), only)
            refused = screen.print_recordings(source, preview(source, tree, folders, home, inspect))
            raise typer.Exit(1 if refused else 0)
    capacity = Capacity(
        None if workers == "auto" else int(workers),
        Needs(cpus, gpus, memory_gb),
        "ray" if engine == "ray" else "local",
        address,
    )
    working = process(source, home, cfg, run, capacity, retry=retry, only=only)
    with stoppable(), closing(working) as events:
        all_done = screen.follow_batch(events, home)
    raise typer.Exit(0 if all_done else 1)


@app.command()
def info(
    path: Annotated[
        list[str],
        Argument(
            help="A recording, or a folder that `run` has written; or its URL; or the video of each camera."
        ),
    ],
) -> None:
    """Say what a recording holds and check it, or what a results folder holds. Changes nothing."""
    from pipeline.batch.dataset import are_videos, opened
    from pipeline.batch.storage import fetched, join, listing, parse_location
    from pipeline.files import reading
    from pipeline.layout import is_recording
    from pipeline.recording import open_videos
    from pipeline.results import Results

    where = parse_location(path[0])
    if are_videos(path):
        _print_checked(open_videos([Path(file) for file in path]), ", ".join(path))
        return
    with listing(where) as tree:
        with reading(tree):
            store = Results(tree).store_path
            has_store = (store / "zarr.json").is_file()
        name = store.relative_to(tree).as_posix()
        if has_store:
            from pipeline.summary import summarise
            from stages.associate import add_sides  # imports torch, for which a recording need not wait

            with fetched(where, [name], f"process {os.getpid()}") as folder:
                results = Results(folder / name).store()
                screen.print_contents(results, where if name == "." else join(where, name))
                state = results.state(results.first_missing)
                screen.print_summary(add_sides(summarise(results), state))
        if not has_store or is_recording(tree):
            with opened(where, tree, tree) as found:
                _print_checked(found, where)


@app.command()
def view(
    out: Annotated[str, Argument(help="Folder that `run` has written, or is writing.")],
    port: Annotated[int, Option(min=0, max=65535, help="Port; the next free one where it is taken.")] = 8080,
    host: Annotated[str, Option(help="Address; 0.0.0.0 lets other computers look.")] = "127.0.0.1",
    live: Annotated[bool, Option("--live", help="Follow a run that has not ended.")] = False,
    recording: Moved = None,
) -> None:
    """Look at the people, cameras and pictures in 3D, in the browser. Ends with Ctrl-C."""
    from contextlib import suppress

    import torch

    from models.body import load_body
    from pipeline.results import body_file
    from stages.decode import videos_of
    from stages.view import serve_viewer, wait_for_store

    torch.set_num_threads(1)
    results = _results(out)
    if live and not results.store_path.exists():
        console.print(f"Waiting for {escape(str(results.store_path))}.")
        wait_for_store(results.store_path)
    store = results.store()
    body = load_body(body_file(store))
    videos: Sequence[VideoInfo | None] = [None] * len(store.contents.rig)
    try:
        videos = videos_of(results, recording)
    except InputError as e:
        if recording is not None:
            raise
        warn(f"no pictures: {e}")

    def ready(address: str) -> None:
        console.print(f"Open {address} in a browser; Ctrl-C ends.")

    with suppress(KeyboardInterrupt):
        serve_viewer(store, body, videos, host=host, port=port, live=live, ready=ready)


@app.command()
def render(
    out: Annotated[str, Argument(help="Folder that `run` has written.")],
    to: Annotated[Path | None, Option("--out", "-o", help="Folder for videos; else OUT/render/MODE.")] = None,
    mode: Annotated[str, Option(help="overlay, mesh, skeleton, side, turntable or mosaic.")] = "overlay",
    cameras: Cameras = None,
    start: Start = 0,
    end: End = None,
    alpha: Annotated[float | None, Option(help="Opacity of the bodies, 0 to 1.")] = None,
    colour: Annotated[list[str] | None, Option(help="Colour of each person, as #56B4E9; repeatable.")] = None,
    scale: Annotated[float | None, Option(help="Size of the pictures, by that of the videos.")] = None,
    codec: Annotated[str | None, Option(help="FFmpeg's encoder, as libx264; auto chooses.")] = None,
    crf: Annotated[int | None, Option(help="Quality, 0 to 51: lower is better and larger.")] = None,
    recording: Moved = None,
    config: Configs = None,
    settings: Sets = None,
) -> None:
    """Draw finished results again: over the videos, alone, as keypoints, from the side, turning, in one.

    The videos of the run stay as they are.
    """
    from functools import partial
    from typing import get_args

    import torch

    from models.body import load_body
    from pipeline.results import body_file
    from stages.decode import decode, videos_of
    from stages.graph import check_apart
    from stages.render import Mode, render_results

    if mode not in get_args(Mode):
        raise InputError(f"--mode {mode}: there is no such mode. Choose {', '.join(get_args(Mode))}.")
    if mode in ("side", "turntable") and (cameras or scale is not None):
        raise InputError(
            f"--mode {mode} shows no camera's picture, so --cameras and --scale mean nothing there. "
            "Leave them out; --set render.mosaic_size=[1280,720] gives its size."
        )
    given: list[tuple[str, str, object]] = [
        ("--cameras", "cameras", _names(cameras) or None),
        ("--alpha", "opacity", alpha), ("--colour", "colours", colour or None), ("--scale", "scale", scale),
        ("--codec", "codec", codec), ("--crf", "crf", crf),
    ]  # fmt: skip
    options = {f"render.{key}={json.dumps(v)}": name for name, key, v in given if v is not None}
    cfg = _run_config(config, settings, options)
    results = _results(out)
    store = results.store()
    stop = store.finished if end is None else end
    store.check_frames(start, stop)
    folder = to or results.drawings(mode, range(start, stop))
    check_apart(folder, results)
    shows_videos = mode in ("overlay", "skeleton", "mosaic")
    videos = videos_of(results, recording) if shows_videos else [None] * len(store.contents.rig)
    body = load_body(body_file(store, cfg.body))
    torch.set_num_threads(1)
    how, frames = partial(decode, cfg=cfg.decode), slice(start, stop)
    files, stream = render_results(store, cast("Mode", mode), cfg.render, videos, body, folder, how, frames)
    with screen.bar(stop - start, "frame", mode) as bar:
        for batch in stream:
            bar.update(len(batch.valid))
    print_file(folder, ", ".join(file.name for file in files))


@app.command()
def export(
    out: Annotated[str, Argument(help="Folder that `run` has written, or its results.zarr.")],
    file: Annotated[Path, Argument(help="What to write: .glb, .bvh, .trc, .c3d, .npz, .csv, ...")],
    person: Annotated[str, Option(help="Number of the person, or all.")] = "0",
    start: Annotated[int, Option(min=0, help="First frame; the one of an .obj.")] = 0,
    end: End = None,
    gaps: Annotated[str | None, Option(help="Frames without a pose: hold, nan or interpolate.")] = None,
    fps: Annotated[str | None, Option(help="Frames a second, as 60 or 30000/1001.")] = None,
    cameras: Annotated[bool, Option("--cameras", help="Write the cameras, too: into a .glb.")] = False,
    body: Annotated[Path | None, Option(help="The SMPL file of the results, if it has moved.")] = None,
) -> None:
    """Write people for other tools; the suffix of FILE says what. A file that is there is replaced.

    .glb: skinned, animated body, metres (Blender, three.js, Windows); .usd, and .fbx where Blender is there:
    the same. .bvh: skeleton's motion, centimetres, degrees. .trc: markers of BODY_25 (OpenSim, Pose2Sim).
    .c3d: joints and markers, millimetres. .npz: SMPL+H parameters under AMASS's names (aitviewer, Blender's
    SMPL-X add-on); .smpl.npz: SMPL's under smplx's; betas are those of the run's body. .csv: joints'
    positions, joint angles, gait events. .mot: OpenSim's coordinates. .obj: mesh of one frame.
    NAME.easymocap, NAME.openpose: folders of EasyMocap's and OpenPose's JSON.

    Up in the calibration becomes y, and z in .npz, .csv and .c3d, by quarter turns; what became of each axis
    is printed. Where z is up, x, y, z of the file are x, z, -y of the calibration, which Blender takes back;
    in .trc y, z, x, as in Pose2Sim's; in .npz nothing turns.

    Frames without a pose: interpolated in .glb, .usd and .bvh, empty in .trc with all others that are not
    valid, and NaN, or nothing, in the others; --gaps says otherwise. All people: a file each, NAME_p0.glb, or
    one folder.
    """
    import torch

    from models.body import load_body
    from models.formats import find_format
    from pipeline.results import body_file
    from stages.decode import videos_of
    from stages.export import export_people, options_of

    find_format(file)
    torch.set_num_threads(1)
    results = _results(out)
    store = results.store()
    videos: dict[str, str] | None = None
    if cameras:
        found = videos_of(results) if results.folder != store.path else []
        names = store.contents.rig.names
        videos = {n: str(v.path.resolve()) for n, v in zip(names, found, strict=False) if v}
    people = store.find_people(person)
    options = options_of(start, end, gaps, fps, videos)
    for path, told, warnings in export_people(
        store, load_body(body_file(store, body)), file, people, options
    ):
        for warning in warnings:
            warn(warning)
        print_file(path, told)


def _results(out: str) -> Results:
    """Results of this machine: `view`, `render` and `export` read stores and videos in pieces, and again."""
    from pipeline.batch.storage import parse_location
    from pipeline.results import Results

    folder = parse_location(out)
    if isinstance(folder, str):
        raise InputError(
            f"{out}: this command needs the results in a folder of this machine. Copy them here first, of "
            "s3:// with `aws s3 sync`, and give it that folder; `info` takes URLs."
        )
    return Results(folder)


@app.command()
def synth(
    out: Annotated[Path, Argument(help="Folder for the recording.")],
    cameras: Annotated[int, Option(min=1, max=64, help="Cameras around the people.")] = 4,
    seconds: Annotated[float, Option(min=0.1, help="Length of the recording.")] = 3.0,
    fps: Annotated[str, Option(help="Frames a second, as 60 or 30000/1001.")] = "30",
    people: Annotated[int, Option(min=1, max=16, help="People who walk among each other.")] = 1,
    leaving: Annotated[int, Option(min=0, help="People who leave and come back.")] = 0,
    seed: Annotated[int, Option(min=0, help="Random seed: equal ones give equal recordings.")] = 0,
    noise_px: Annotated[float, Option(min=0, help="Noise of a keypoint, pixels (standard deviation).")] = 3.0,
    outliers: Annotated[float, Option(min=0, max=1, help="Share of keypoints 40 to 120 px off.")] = 0.05,
    missing: Annotated[float, Option(min=0, max=1, help="Share of keypoints that are not detected.")] = 0.1,
    exchanged: Annotated[float, Option(min=0, max=1, help="Share of detections with left as right.")] = 0.0,
    split: Annotated[float, Option(min=0, max=1, help="Share of detections in two parts.")] = 0.0,
    phantoms: Annotated[float, Option(min=0, max=16, help="False detections in a picture, mean.")] = 0.0,
    static_phantoms: Annotated[int, Option(min=0, max=16, help="False detections that do not move.")] = 0,
    size: Annotated[
        tuple[int, int], Option(help="Picture size, pixels; else 960 720.", show_default=False)
    ] = (960, 720),
    point_order: Annotated[
        str, Option("--format", help=f"Order of the keypoints: {', '.join(POINT_ORDERS)}.")
    ] = "body_25",
    videos: Annotated[bool, Option(help="Draw the videos, too.")] = True,
    overwrite: Annotated[
        bool, Option("--overwrite", "--force", help="Replace the recording in the folder.")
    ] = False,
) -> None:
    """Make a recording of moving people with noisy keypoints, and its truth in truth.zarr.

    People stand before each other in the pictures: what is hidden is missing, or found on the one before.
    """
    from models.body import load_body

    values = {
        "cameras": cameras, "seconds": seconds, "fps": fps, "people": people, "leaving": leaving,
        "seed": seed, "noise_px": noise_px, "outliers": outliers, "missing": missing, "exchanged": exchanged,
        "split": split, "phantoms": phantoms, "static_phantoms": static_phantoms, "videos": videos,
        "size": list(size), "format": point_order,
    }  # fmt: skip
    _synth(out, values, load_body(), overwrite=overwrite)
    console.print(escape(f"Made {out}. Next: python run_pipeline.py run {out}"))


@app.command()
def demo(
    out: Annotated[Path, Option("--out", "-o", help="Folder for recording and results.")] = Path(
        "multispin-demo"
    ),
    config: Configs = None,
    settings: Sets = None,
) -> None:
    """Make a small recording of two people, reconstruct them, and compare with the truth. Takes about a
    minute."""
    from models.body import load_body
    from models.evaluation.stores import compare_to_truth
    from pipeline.recording import find_recording
    from pipeline.results import INSIDE, TRUTH, Results
    from pipeline.store import Store
    from stages.graph import check_files
    from stages.inspect import inspect

    cfg = _run_config(config, settings)
    check_files(cfg)
    body, home = load_body(), out / INSIDE
    with stoppable(), screen.printed_log():
        _synth(out / "recording", {"people": 2}, body)
        found = inspect(find_recording(out / "recording"))
        screen.print_recording(found, found.path)
        result = _run(found, home, cfg, home)
        screen.print_result(result)
        screen.print_truth(compare_to_truth(Results(home).store(), Store(found.path / TRUTH), body))
    for file in result.files:
        print_file(file)


def _names(cameras: Sequence[str] | None) -> list[str]:
    """Cameras of an option that is repeatable and takes several, with commas between."""
    return [name for names in cameras or () for name in names.split(",")]


def _options(people: str | None, sync: str | None, device: str | None = None) -> dict[str, str]:
    given = (
        ("associate.people", "--people", people), ("sync.use", "--sync", sync),
        ("regress.device", "--device", device),
    )  # fmt: skip
    return {f"{key}={value}": f"{name} {value}" for key, name, value in given if value is not None}


def _run_config(
    files: Sequence[Path] | None, settings: Sequence[str] | None, options: Mapping[str, str] | None = None
) -> RunConfig:
    """options: setting → option of the command line, which messages name instead."""
    from pipeline.config import load
    from stages.graph import RunConfig

    with resources.as_file(resources.files("configs") / "default.yaml") as default:
        return load(RunConfig, [default, *(files or ())], settings or (), options or {})


def _print_checked(found: Recording, where: Location) -> None:
    from stages.check import check_recording
    from stages.inspect import inspect
    from stages.sync import SyncConfig, estimate_clocks

    read = inspect(found)
    screen.print_recording(read, where)
    if read.has_keypoints:
        read = screen.print_sync(read, estimate_clocks(read, SyncConfig()))
        screen.print_check(read, check_recording(read))


def _run(found: Recording, out: Path, cfg: RunConfig, home: Location) -> RunResult:
    """home: OUT as the user gave it; ``out`` is its local folder."""
    from functools import partial

    import torch

    from stages.graph import run

    torch.set_num_threads(1)
    with stoppable(), screen.late_bar(len(found), "frame", "reconstruct") as update:
        result = run(found, out, cfg, update, watch=partial(screen.follow_count, "picture", "detect"))
    screen.print_times(result, home)
    return result


def _synth(out: Path, values: dict[str, object], body: Body, *, overwrite: bool = False) -> None:
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
    with stoppable(), screen.late_bar(cfg.frames, "frame", "synthesise") as update:
        write_recording(out, cfg, body, update, overwrite=overwrite)


for _command in (
    commands.detect,
    commands.train,
    commands.evaluate,
    commands.preprocess,
    commands.crops,
    commands.data,
):
    app.command()(_command)


app.add_typer(calibration.app, name="calibration")


def main() -> None:
    """The console script: a user's mistake is a message and status 2, not a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be of any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except InputError as e:
        sys.stderr.write(f"error: {e}\n")
        sys.exit(1 if isinstance(e, NobodyFound) else 2)
    except OSError as e:  # a path that cannot be looked at, whichever command was given it
        if e.filename is None:
            raise
        sys.stderr.write(f"error: {shortened(str(e.filename))}: {e.strerror}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
