"""The heavy parts on a GPU, beside one processor core or the bare network in the same run.

    python tests/benchmarks/gpu.py fit|regress|detect|train|render [--json FILE] [--profile]
    python tests/benchmarks/gpu.py table FILE...            one table of what the steps wrote

fit: N windows of 32 frames, four views, fitted together; the windows are synthetic people whose keypoints
have noise of their own in each copy. ``fresh`` begins without a shape and counts all frames; ``going on``
holds two final frames, knows the shape, and counts the 24 frames that a stream of windows keeps. From data
on the device to parameters on the device. The processor's figure is one thread on the same windows.
regress: ResNet-50 with attention over the views, in the stage ``regress``, from decoded 1080p frames in
memory to parameters in the world, against the encoder alone on crops that are ready. Random weights.
detect: the heavy detector through onnxruntime-gpu, from pictures in memory (two cameras of 1080p, a drawn
person) to landmarks, the search for new people included, against its landmark network alone on as many crops.
train: a step of an image net on a batch that lies on the device (64 people, two crops each, ResNet-50, bf16),
against forward and backward of the same net on the same crops; with stored fits, and with fits made in it.
render: overlays of a 1080p video from file to file, against decoding and encoding it alone, and decoding by
NVDEC into memory against decoding on the processor.

``peak_gb``: the most memory of the device that a step takes, the run that it is compared with included; for
``detect`` what onnxruntime keeps. Wall seconds, the least of some runs, each beside its baseline in turn.
Without a CUDA device everything runs on the processor, small, to rehearse.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import replace  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TypeVar  # noqa: E402

import av  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from av.codec.hwaccel import HWAccel  # noqa: E402
from torch import Tensor  # noqa: E402

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from scenes import body, joints_of, prior, scene  # noqa: E402

from models.fit.problem import FitSettings, Motion, Schedule, Views  # noqa: E402
from models.fit.solver import fit  # noqa: E402
from pipeline.errors import InputError  # noqa: E402
from stages.synth import SynthConfig, write_recording  # noqa: E402

Figures = dict[str, float | str]
T = TypeVar("T")
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
WINDOW, KEPT, HELD = 32, 24, 2
COUNTS = (1, 8, 64, 512) if CUDA else (1, 2)
WANTED = {
    "fit_fresh_512_frames_per_s": 10_000,
    "fit_going_on_512_frames_per_s": 10_000,
    "regress_bf16_stage_ratio": 0.7,
    "regress_32_stage_ratio": 0.7,
    "train_stored_fits_ratio": 0.85,
}


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """Least wall seconds of some runs, after one to warm up."""
    run()
    took = []
    for _ in range(repeats):
        wait()
        begin = time.perf_counter()
        run()
        wait()
        took.append(time.perf_counter() - begin)
    return min(took)


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def with_peak_gb(run: Callable[[], T]) -> tuple[T, float]:
    """Result of a run, and the most memory of the device that it holds at once, with what CUDA graphs keep.

    10⁹ bytes; 0 without a device.
    """
    if not CUDA:
        return run(), 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    result = run()
    return result, round(torch.cuda.max_memory_reserved() / 1e9, 2)


def profiled(name: str, run: Callable[[], object]) -> None:
    """Print where the time of a run goes."""
    from torch.profiler import ProfilerActivity, profile

    run()
    wait()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    with profile(activities=kinds) as p:
        run()
        wait()
    order = "self_cuda_time_total" if CUDA else "self_cpu_time_total"
    waits(name, run)
    print(f"--- {name}\n{p.key_averages().table(sort_by=order, row_limit=22, max_name_column_width=60)}")


def waits(name: str, run: Callable[[], object]) -> None:
    """Print the lines at which a run waits for the GPU, and how often."""
    if not CUDA:
        return
    run()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        run()
        torch.cuda.set_sync_debug_mode("default")
    lines = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in told if "synchronizing" in str(w.message))
    print(f"--- {name} waits at {dict(lines.most_common(25))}")


def fit_step(figures: Figures, profile: bool) -> None:
    scenes = [scene(900 + i, "random", frames=WINDOW + HELD) for i in range(8)]
    g = torch.Generator().manual_seed(0)
    starts = [d.start() for d in scenes]
    start = Motion(*(torch.cat([getattr(s, k) for s in starts]) for k in vars(starts[0])))
    views = [d.views() for d in scenes]
    seen = Views(*(torch.cat([getattr(v, k) for v in views]) for k in vars(views[0])))

    def batch(count: int, device: torch.device) -> tuple[Views, Motion]:
        rows = torch.arange(count) % len(scenes)
        xy = seen.xy_px[rows] + torch.randn(seen.xy_px[rows].shape, generator=g)
        here = replace(Views(*(x[rows] for x in vars(seen).values())), xy_px=xy)
        moved = (x.to(device) for x in vars(here).values())
        return Views(*moved), Motion(*(x[rows].to(device) for x in vars(start).values()))

    fresh = FitSettings(60.0, prior=prior())
    on = FitSettings(60.0, held=HELD, free_shape=False, schedule=Schedule(((4.0, 20, 5e-3),)), prior=prior())
    cases = {"fresh": (fresh, WINDOW, WINDOW), "going_on": (on, WINDOW + HELD, KEPT)}
    for name, (settings, frames, counted) in cases.items():

        def solve(problem: tuple[Views, Motion], frames: int = frames, settings: FitSettings = settings):
            v, m = problem
            v = replace(v, xy_px=v.xy_px[:, :, :frames], confidence=v.confidence[:, :, :frames])
            return fit(body().keypoints, v, m.frames(0, frames), settings)

        few = batch(8, torch.device("cpu"))
        core = 8 * counted / seconds(partial(solve, few), 2)
        figures[f"fit_{name}_one_core_frames_per_s"] = round(core)
        for count in COUNTS:
            problem = batch(count, DEVICE)
            rate = count * counted / seconds(partial(solve, problem))
            figures[f"fit_{name}_{count}_frames_per_s"] = round(rate)
            figures[f"fit_{name}_{count}_ratio_to_core"] = round(rate / core, 2)
        figures[f"fit_{name}_{count}_iterations"] = solve(problem).iterations
        figures[f"fit_{name}_{count}_peak_gb"] = with_peak_gb(partial(solve, problem))[1]
        # To the end: a problem may stop an iteration earlier on one of them.
        *early, (robust, _, _) = settings.schedule.stages
        whole = replace(settings, schedule=Schedule((*early, (robust, 60, 1e-7))))
        here = solve(few, settings=whole)
        there = solve(tuple(_to(x, DEVICE) for x in few), settings=whole)
        apart = torch.cat([joints_of(here.motion, n) for n in range(8)])
        apart = apart - torch.cat([joints_of(_to(there.motion, torch.device("cpu")), n) for n in range(8)])
        figures[f"fit_{name}_apart_mm_mean"] = round(1e3 * float(apart.norm(dim=-1).mean()), 4)
        figures[f"fit_{name}_apart_mm_max"] = round(1e3 * float(apart.norm(dim=-1).max()), 4)
        if profile:
            profiled(f"fit {name}, {count} windows", partial(solve, problem))
            profiled(f"fit {name}, one window", partial(solve, batch(1, DEVICE)))


def _to(x: Views | Motion, device: torch.device) -> Views | Motion:
    return type(x)(*(v.to(device) for v in vars(x).values()))


def regress_step(figures: Figures, profile: bool) -> None:
    from throughput import compared

    for precision in ("bf16", "32") if CUDA else ("32",):
        run = partial(compared, 1152 if CUDA else 2, DEVICE.type, precision, profiled if profile else None)
        found, peak = with_peak_gb(run)
        figures |= {f"regress_{precision}_{k}": v for k, v in found.items()}
        figures[f"regress_{precision}_peak_gb"] = peak


def detect_step(figures: Figures, profile: bool) -> None:
    from models.detectors.tracking import TrackerState, detect_people, load_networks
    from pipeline.video import probe, read_frames, to_rgb

    free = torch.cuda.mem_get_info()[0] if CUDA else 0
    try:
        networks = load_networks("heavy", DEVICE.type)
    except InputError as error:
        figures["detect"] = f"does not work here: {error}"
        return
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "recording"
        cfg = SynthConfig(cameras=2, size=(1920, 1080), seconds=1 if CUDA else 0.2, seed=1)
        write_recording(recording, cfg, body())
        videos = [probe(path) for path in sorted((recording / "videos").iterdir())]
        frames_of = (read_frames(video, range(len(video.times_s))) for video in videos)
        pictures = [[to_rgb(frame) for frame in frames if frame is not None] for frames in frames_of]

    def detect() -> list[int]:
        """Number of people in each picture."""
        people = []
        for camera in pictures:
            state = TrackerState.start()
            for picture in camera:
                state, seen = detect_people(networks, picture, state)
                people.append(len(seen))
        return people

    people = detect()
    network = networks.landmarks.network
    ((_, *shape),) = network.inputs.values()
    crops = [np.zeros((count, *(n or 0 for n in shape)), np.float32) for count in people]

    def bare() -> None:
        for batch in crops:
            network.run(batch)

    least = seconds(bare), seconds(detect)
    figures["detect_people"] = sum(people)
    figures["detect_bare_people_per_s"] = round(sum(people) / least[0], 1)
    figures["detect_people_per_s"] = round(sum(people) / least[1], 1)
    figures["detect_ratio"] = round(least[0] / least[1], 3)
    if CUDA:
        figures["detect_peak_gb"] = round((free - torch.cuda.mem_get_info()[0]) / 1e9, 2)
    if profile:
        profiled("detect", detect)


def train_step(figures: Figures, profile: bool) -> None:
    from models.crops import normalise_rgb
    from models.training.images import ImagesConfig, ImageTask
    from models.training.loop import LoopConfig
    from models.training.sources import SourceConfig
    from models.training.trainer import TrainConfig, _fabric, _Run

    size, samples = (224, 64) if CUDA else (128, 2)
    never = 10**9
    batch = None
    for name, fits in {
        "stored_fits": LoopConfig(every=never, save_steps=never),
        "fits_made": LoopConfig(every=1, save_steps=never),
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            cfg = TrainConfig(
                net="images", batch=samples, precision="bf16", device=DEVICE.type, learning_rate=1e-5,
                images=ImagesConfig(
                    encoder="resnet50", size=size, imagenet=False, views=2, fits=fits, check_samples=2,
                    sources=(SourceConfig(count=samples),),
                ),
            )  # fmt: skip
            run = _Run(cfg, Path(folder), _fabric(cfg), None)
            run.open(None, False)
            task = run.task
            assert isinstance(task, ImageTask)
            if batch is None:
                batch = next(task.batches(0, 0, 1))
            run.step = 1

            def learn(run: _Run = run, batch: object = batch) -> None:
                run._train_step(batch, 0.0)

            if name == "stored_fits":
                crops = normalise_rgb(batch.images.flatten(0, 1).float(), "none")
                crops = crops.view(*batch.seen.shape, *crops.shape[1:])

                def bare(task: ImageTask = task, crops: Tensor = crops, seen: Tensor = batch.seen) -> None:
                    task.net.zero_grad()
                    with torch.autocast(DEVICE.type, torch.bfloat16):
                        x = crops.flatten(0, 1).contiguous(memory_format=torch.channels_last)
                        features = task.net.encoder(x)
                    said = task.net.estimate(features.float().view(*seen.shape, -1), seen)
                    sum(x.float().square().mean() for x in vars(said).values()).backward()

            least = seconds(bare, 5), seconds(learn, 5)
            images = batch.seen.numel()
            figures[f"train_{name}_bare_images_per_s"] = round(images / least[0])
            figures[f"train_{name}_images_per_s"] = round(images / least[1])
            figures[f"train_{name}_ratio"] = round(least[0] / least[1], 3)
            figures[f"train_{name}_peak_gb"] = with_peak_gb(learn)[1]
            if profile:
                profiled(f"train, {name}", learn)


def render_step(figures: Figures, profile: bool) -> None:
    from render import overlay_times

    from pipeline.video import probe
    from stages.render import RenderConfig

    with tempfile.TemporaryDirectory() as folder:
        cfg = SynthConfig(
            cameras=2, size=(1920, 1080) if CUDA else (480, 270), seconds=2 if CUDA else 0.2, seed=1
        )
        store = write_recording(Path(folder) / "recording", cfg, body())
        video = probe(Path(folder) / "recording" / "videos" / f"{store.contents.rig.names[0]}.mp4")
        frames = len(store.contents.time_s)
        cases = [("software", "libx264"), ("pytorch3d", "libx264")]
        cases += [("software", "h264_nvenc"), ("pytorch3d", "h264_nvenc")] if CUDA else []
        for back_end, codec in cases if CUDA else cases[:1]:
            name = f"render_{back_end}_{codec}"
            settings = RenderConfig(mosaic=False, codec=codec, backend=back_end)
            overlays = partial(overlay_times, store, video, body(), Path(folder), settings, 3)
            try:
                times, figures[f"{name}_peak_gb"] = with_peak_gb(overlays)
                times = times[..., 0]
            except (InputError, RuntimeError) as error:
                figures[name] = f"does not work here: {str(error)[:160]}"
                continue
            figures[f"{name}_frames_per_s"] = round(float(frames / times[:, 1].min()), 1)
            figures[f"{name}_plain_frames_per_s"] = round(float(frames / times[:, 0].min()), 1)
            figures[f"{name}_ratio"] = round(float(np.median(times[:, 1] / times[:, 0])), 3)
        decoders = {"software": None}
        if CUDA:
            decoders["nvdec"] = HWAccel("cuda", allow_software_fallback=False)
        for name, decoder in decoders.items():
            try:
                figures[f"decode_{name}_frames_per_s"] = round(
                    frames / seconds(partial(decode, video.path, decoder)), 1
                )
            except (av.FFmpegError, NotImplementedError, RuntimeError) as error:
                figures[f"decode_{name}"] = f"does not work here: {str(error)[:160]}"


def decode(video: Path, decoder: HWAccel | None) -> None:
    """Decode a video into memory as yuv420p."""
    with av.open(str(video), hwaccel=decoder) as container:
        for frame in container.decode(video=0):
            frame.reformat(format="yuv420p").to_ndarray()


STEPS = {
    "fit": fit_step,
    "regress": regress_step,
    "detect": detect_step,
    "train": train_step,
    "render": render_step,
}


def about() -> Figures:
    return {
        "device": torch.cuda.get_device_name() if CUDA else "no CUDA device: a rehearsal on the processor",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": sys.version.split()[0],
        "processors": str(os.cpu_count()),
    }


def table(files: list[Path]) -> Figures:
    """Print the figures of several files, with what was wanted, as one; those of all together."""
    figures: Figures = {}
    for file in files:
        if file.exists():
            figures |= json.loads(file.read_text(encoding="utf-8"))
        else:
            print(f"{file.stem}: no figures, the step failed or ran out of time")
    for key, value in figures.items():
        wanted = f"   wanted {WANTED[key]:g}" if key in WANTED else ""
        print(f"{key:46s} {value}{wanted}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("step", choices=[*STEPS, "table"])
    parser.add_argument("files", nargs="*", type=Path, help="for table: what the steps wrote")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--profile", action="store_true", help="print where the time goes, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.step == "table":
        figures = table(args.files)
    else:
        figures = about()
        STEPS[args.step](figures, args.profile)
        for key, value in figures.items():
            print(f"{key:46s} {value}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
