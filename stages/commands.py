"""Commands around networks and data sets: train, evaluate, preprocess, crops, data."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.markup import escape
from typer import Argument, Option

from pipeline.errors import InputError
from stages import screen
from stages.screen import console, print_file, warn

if TYPE_CHECKING:
    from models.training.trainer import Progress

Configs = Annotated[
    list[Path] | None,
    Option("--config", "-c", help="YAML file of settings that differ from the defaults; repeatable."),
]
Sets = Annotated[
    list[str] | None, Option("--set", help="One setting, such as render.mosaic=false; repeatable.")
]


def results_beside(recording: str) -> str:
    """Default OUT: beside the recording, or the first of its videos."""
    if "://" in recording:
        return f"{recording.rstrip('/')}-results"
    path = Path(recording).absolute()
    return str(path.with_name(f"{path.stem if path.is_file() else path.resolve().name}-results"))


@contextmanager
def stoppable() -> Iterator[None]:
    """End the command with status 130 at Ctrl-C, and say how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("stopped. What is done is kept: run the same command again to continue.\n")
        raise typer.Exit(130) from None


def train(
    out: Annotated[Path, Option("--out", "-o", help="Folder for weights, metrics and checkpoints.")],
    motion: Annotated[Path | None, Option(help="Motion capture .npz: models/synthetic/poses.py.")] = None,
    max_steps: Annotated[int | None, Option(min=1, help="Gradient steps in all.")] = None,
    minutes: Annotated[float | None, Option(min=0.01, help="Train for so long, whatever the steps.")] = None,
    init: Annotated[Path | None, Option(help="Weights to start from, instead of random ones.")] = None,
    resume: Annotated[bool, Option("--resume", help="Go on from the last checkpoint.")] = False,
    resume_if_any: Annotated[
        bool, Option("--resume-if-any", help="Go on from the last checkpoint, or begin where there is none.")
    ] = False,
    checkpoint: Annotated[Path | None, Option(help="With --resume: go on from this one.")] = None,
    config: Configs = None,
    settings: Sets = None,
) -> None:
    """Train a regressor of keypoints, or of images with SMPLify in the loop. Ctrl-C saves."""
    import signal
    from threading import Event

    import torch

    from models.training.trainer import TrainConfig
    from models.training.trainer import train as training
    from pipeline.config import load

    torch.set_num_threads(1)
    if not config:
        raise InputError(
            "--config: which training? Give a file of settings, such as configs/train_tiny.yaml, which takes "
            "a minute; docs/training.md lists the others."
        )
    given = ("steps", "--max-steps", max_steps), ("motion", "--motion", motion)
    options = {f"{key}={value}": f"{name} {value}" for key, name, value in given if value is not None}
    cfg = load(TrainConfig, config, settings or (), options)
    if checkpoint is not None and not resume:
        raise InputError("--checkpoint: only with --resume. For weights alone there is --init.")
    # Ctrl-C in the middle of a step would save half of it: it waits for the end of the step.
    stop = Event()
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    going_on = (checkpoint or True) if resume else (None if resume_if_any else False)
    screen.print_training(cfg, minutes, out)
    try:
        steps = training(cfg, out, minutes=minutes, init=init, resume=going_on, stop=stop.is_set)
        with closing(cast("Generator[Progress, None, None]", steps)):
            screen.follow_training(steps)
    finally:
        signal.signal(signal.SIGINT, before)
    if stop.is_set():
        sys.stderr.write("stopped. Run the same command with --resume to go on.\n")
        raise typer.Exit(130)
    if screen.tells():
        screen.print_trained(out)


def evaluate(
    results: Annotated[Path | None, Argument(help="With --truth: results.zarr, or OUT of a run.")] = None,
    truth: Annotated[Path | None, Option(help="The results.zarr or truth.zarr that is right.")] = None,
    dataset: Annotated[str | None, Option(help="h36m-p1, h36m-p2, mpi-inf-3dhp or 3dpw.")] = None,
    data: Annotated[Path | None, Option(help="The .npz of rows that `preprocess` or SPIN made.")] = None,
    root: Annotated[Path | None, Option(help="Folder of the rows' pictures; else that of the .npz.")] = None,
    weights: Annotated[str, Option(help="default, or a file as of regress.weights.")] = "default",
    result: Annotated[Path | None, Option(help="Poses and joints as .npz, metrics.json beside.")] = None,
    metrics_json: Annotated[Path | None, Option("--json", help="Write the metrics to this file.")] = None,
    views: Annotated[int, Option(min=1, help="Views of each person and instant.")] = 1,
    fit: Annotated[bool, Option("--fit", help="Fit to the keypoints, from the network's poses.")] = False,
    body: Annotated[Path | None, Option(help="SMPL; else the body that ships.")] = None,
    body_male: Annotated[Path | None, Option(help="SMPL of men, for 3DPW's truth.")] = None,
    body_female: Annotated[Path | None, Option(help="SMPL of women, for 3DPW's truth.")] = None,
    joint_regressor: Annotated[Path | None, Option(help="J_regressor_h36m.npy, of SMPL.")] = None,
    batch_size: Annotated[int, Option(min=1, help="Rows that go through the network at once.")] = 32,
    num_workers: Annotated[int, Option(min=0, help="Processes that read pictures.")] = 0,
    log_freq: Annotated[int, Option(min=1, help="Batches from one report of the errors to the next.")] = 50,
    device: Annotated[str, Option(help="Where networks run: auto, cpu, cuda or cuda:1.")] = "auto",
) -> None:
    """Score a network on a data set by a published protocol, or results against a truth."""
    from functools import partial

    import torch

    from models.datasets.pictures import read_pictures
    from models.datasets.rows import read_rows, write_npz
    from models.evaluation.predictions import PredictOptions
    from models.evaluation.protocols import PROTOCOLS
    from models.evaluation.scores import load_true_bodies, score_network
    from pipeline.files import check_writable
    from stages.regress import RegressConfig, describe, load_net

    torch.set_num_threads(1)
    where = metrics_json or (result.with_name("metrics.json") if result else None)
    check_writable(result, where)
    if truth is not None:
        if results is None or dataset or data:
            raise InputError("--truth takes one results.zarr: evaluate --truth truth.zarr results.zarr")
        _compare(results, truth, where)
        return
    if results is not None:
        raise InputError(f"{results}: against which truth? --truth truth.zarr")
    if dataset is None or dataset not in PROTOCOLS or data is None:
        raise InputError(
            f"evaluate --dataset {dataset or '…'} --data {data or '…'}: give a protocol, "
            f"{', '.join(PROTOCOLS)}, and the .npz of its rows. Or two stores: --truth truth.zarr "
            "results.zarr"
        )
    protocol = PROTOCOLS[dataset]
    cfg = RegressConfig(weights=weights, device=device)
    net = load_net(cfg, views)
    if net is None:
        raise InputError("--weights none: there is nothing to evaluate")
    rows = read_rows(data)
    bodies = load_true_bodies(body, body_male, body_female, joint_regressor)
    if bodies.neutral.approximate:
        warn(f"joints are {bodies.neutral.source}. Published numbers need SMPL: see the command data.")
    if protocol.true is None and not (body_male and body_female):
        warn(f"the truth of {dataset} is bodies of men and women: give --body-male and --body-female.")
    options = PredictOptions(views, fit, batch_size, num_workers)
    with screen.follow_scores(len(rows["box"]), dataset, log_freq) as progress:
        pictures = partial(read_pictures, root or data.parent)
        done = score_network(protocol, net, rows, bodies, pictures, options, progress)
    screen.print_scores(done, protocol, dataset)
    if result is not None:
        write_npz(done.arrays(), result)
        print_file(result)
    _write_json(where, {"weights": describe(cfg, net), "data": str(data), **done.metrics})


def _compare(results: Path, truth: Path, where: Path | None) -> None:
    """Print and write the errors of a results store, person by person."""
    import math
    from dataclasses import asdict

    from models.body import load_body
    from models.evaluation.identity import Identity
    from models.evaluation.stores import Errors, compare_identities, compare_to_truth
    from pipeline.results import Results, body_file

    found, right = Results(results).store(), Results(truth).store()
    errors = compare_to_truth(found, right, load_body(body_file(found)))
    who = compare_identities(found, right)
    screen.print_errors(errors, who)

    def plain(figures: Errors | Identity) -> dict[str, object]:
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(figures).items()}

    document = {"people": [plain(e) for e in errors], "identity": plain(who)}
    _write_json(where, {"results": str(found.path), "truth": str(right.path), **document})


def _write_json(file: Path | None, document: Mapping[str, object]) -> None:
    from pipeline.files import write_text_atomically

    if file is not None:
        write_text_atomically(file, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        print_file(file)


def preprocess(
    dataset: Annotated[str, Argument(help="mpi-inf-3dhp, h36m, 3dpw, lsp, mpii or coco.")],
    root: Annotated[Path, Argument(help="Folder that the data set was unpacked in.")],
    out: Annotated[Path, Option("--out", "-o", help="The .npz to write.")],
    openpose: Annotated[Path | None, Option(help="OpenPose's JSON, in folders as below ROOT.")] = None,
    split: Annotated[str | None, Option(help="train or test; others: docs/training.md.")] = None,
    every: Annotated[int | None, Option(min=1, help="Take one frame in so many; else as usual.")] = None,
) -> None:
    """Bring a data set to SPIN's .npz, with views and cameras, for `train` and `evaluate`."""
    from models.datasets import DATASETS
    from models.datasets.rows import PersonRow, check_openpose, to_arrays, with_detection, write_npz
    from pipeline.files import check_writable

    modules = {m.NAME: m for m in DATASETS}
    if dataset not in modules:
        raise InputError(f"{dataset}: no such data set. Choose {', '.join(modules)}.")
    module = modules[dataset]
    split = split or module.SPLITS[0]
    if split not in module.SPLITS:
        raise InputError(f"--split {split}: {dataset} has {', '.join(module.SPLITS)}")
    check_writable(out)
    parts = module.parts(root, split)
    if hasattr(module, "missing") and (lacking := module.missing(parts)):
        warn(f"{root}: {lacking}; the others are taken")
    rows: list[PersonRow] = []
    with screen.bar(len(parts), "part", f"{dataset} {split}") as bar:
        for part in parts:
            bar.set_postfix_str(part.name)
            rows += module.rows(part, every or module.STEP[split])
            bar.update()
    if not rows:
        raise InputError(f"{root}: no frame of {dataset} {split} shows a whole person in a picture it has")
    if openpose is not None:
        rows = [with_detection(row, openpose) for row in rows]
        check_openpose(openpose, rows)
    arrays = to_arrays(rows)
    size = sum(a.nbytes for a in arrays.values())
    console.print(f"{len(rows)} rows of {len(set(arrays['group']))} instants take {size / 1e6:.1f} MB.")
    write_npz(arrays, out)
    print_file(out)


def crops(
    source: Annotated[Path, Argument(help="A finished run's folder or results.zarr, or the .npz of rows.")],
    out: Annotated[Path, Option("--out", "-o", help="The crops.zarr to write.")],
    size: Annotated[int, Option(min=32, max=1024, help="Side of a crop to train on, pixels.")] = 224,
    fps: Annotated[float, Option(min=0.01, help="Pictures a second that are taken of a run.")] = 10.0,
    person: Annotated[str, Option(help="Number of a run's person, or all.")] = "all",
    recording: Annotated[Path | None, Option(help="The recording of a run, if it has moved.")] = None,
    root: Annotated[Path | None, Option(help="Folder of the rows' pictures; else that of the .npz.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Say how many pictures and what room.")] = False,
) -> None:
    """Cut people out of videos once, in order, for `train` to read in any. Run again to continue."""
    from models.training.published import PublishedRows
    from models.training.recorded import plan_of_results
    from pipeline.results import Results
    from stages.crops import crops_of_results, crops_of_rows
    from stages.decode import videos_of

    if source.is_file() or source.suffix == ".npz":
        rows = PublishedRows(source)
        plan = rows.plan(size)
        written = crops_of_rows(rows, root or source.parent, plan, out)
    else:
        results = Results(source)
        store = results.store()
        plan = plan_of_results(store, size, fps, store.find_people(person))
        written = crops_of_results(store, videos_of(results, recording), plan, out)
    screen.print_room(len(plan.box), plan.nbytes)
    if dry_run:
        return
    with stoppable(), closing(written):
        screen.follow_count("picture", "crops", len(plan.box), written)
    print_file(out)


def detect(
    recording: Annotated[
        list[str], Argument(help="Folder with videos/, or with videos; or the video of each camera.")
    ],
    out: Annotated[
        Path | None,
        Option("--out", "-o", help="Folder to write to; else RECORDING, or of videos VIDEO-results."),
    ] = None,
    openpose: Annotated[
        bool, Option("--json", help="For other tools, too: openpose-json/<camera>/*.json, BODY_25.")
    ] = False,
    model: Annotated[
        str, Option(help="heavy; full: 3 times as fast, at times left for right; or an ONNX file.")
    ] = "heavy",
    device: Annotated[str, Option(help="Where networks run: cpu, or cuda with onnxruntime-gpu.")] = "cpu",
) -> None:
    """Detect people in videos, once for many runs: detections.zarr beside them. Run again to continue."""
    from functools import partial

    from pipeline.batch.dataset import are_videos
    from pipeline.config import load
    from pipeline.files import locked
    from pipeline.recording import find_recording, open_videos
    from pipeline.results import DETECTIONS, check_place
    from stages.decode import DecodeConfig, decode
    from stages.detect import DetectConfig, detect_videos, write_openpose

    options = {f"model={model}": f"--model {model}", f"device={device}": f"--device {device}"}
    cfg = load(DetectConfig, options=options)
    if are_videos(recording):
        found_in = open_videos([Path(file) for file in recording])
        home = out or Path(results_beside(recording[0]))
        check_place(home, found_in.path, found_in.files)
    else:
        found_in = find_recording(recording[0])
        home = out or found_in.path
    videos = found_in.videos_by_name
    if not videos:
        raise InputError(
            f"{found_in.path}: no videos found; expected videos/<camera>.mp4, or beside each other"
        )
    written = home / "openpose-json"
    if openpose and written.exists():
        raise InputError(f"{written}: is there already. Move it away, or choose another --out.")
    with stoppable(), locked(home, "detection"):
        follow = partial(screen.follow_count, "picture", "detect")
        found, _ = detect_videos(videos, home / DETECTIONS, cfg, partial(decode, cfg=DecodeConfig()), follow)
        print_file(home / DETECTIONS)
        if openpose:
            screen.follow_count("file", "write", sum(found.frames), write_openpose(found, videos, written))
            print_file(written)
    if out is None:
        console.print(escape(f"Next: python run_pipeline.py run {shlex.join(recording)}"))


def data(folder: Annotated[Path, Argument(help="Where such files are kept.")] = Path("data")) -> None:
    """List the files that cannot ship: what for, who gives them out, whether they are here and sound."""
    from models.external import EXTERNAL, check_external

    unsound = False
    for external in EXTERNAL:
        check = check_external(external, folder)
        unsound |= check.exists and not check.sound
        screen.print_external(external, check)
    console.print("None of them is needed to reconstruct recordings.")
    raise typer.Exit(1 if unsound else 0)
