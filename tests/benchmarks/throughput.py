"""How fast the stage `regress` is, beside the bare networks.

    python tests/benchmarks/throughput.py [--json FILE] [--frames N] [--device cpu]

Images: ResNet-50 with the fusion by attention in the stage, from decoded frames in memory (1080p YUV, four
views, a person 800 px tall) to parameters in the world, against a loop of the same encoder over crops that
are ready, in batches of the same size, bfloat16 on a GPU. Random weights: the time does not depend on
them. On a GPU the stage's first 16 chunks, in which it gets its memory and records what it replays, are
told as ``start``, and not counted.
Persons: the keypoint network that ships, in the stage. On a CPU one thread and CPU seconds, on a GPU wall
seconds; the least of three runs, one beside the other in turn, so the ratio means more than the seconds.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from fractions import Fraction  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Literal  # noqa: E402

import av  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from scenes import Scene, body, scene  # noqa: E402

from models.crops import CROP_PX  # noqa: E402
from models.encoders import extract_features  # noqa: E402
from models.image_regressor import ImageConfig, ImageRegressor  # noqa: E402
from pipeline.batches import FrameBatch, KeypointBatch  # noqa: E402
from pipeline.cameras import Rig  # noqa: E402
from stages.regress import RegressConfig, load_net, regress  # noqa: E402

Figures = dict[str, float]
WINDOW, REPEATS = 24, 3
WIDTH, HEIGHT = 1920, 1080


def throughput(frames: int = 24, device: str = "cpu") -> Figures:
    """Images and persons a second; frames: of four views, a multiple of the window fills the batches."""
    torch.set_num_threads(1)
    figures = {f"resnet50_{k}": v for k, v in compared(frames, device, "auto").items()}
    cfg = RegressConfig(device=device)
    default = load_net(cfg)
    assert default is not None
    d = scaled(scene(3, "person", frames=480))

    def stage() -> None:
        for batch in regress(chunks(d), cfg, d.rig, body(), default, window=WINDOW):
            assert batch.posed.all()

    least = min(seconds(stage, device) for _ in range(REPEATS))
    return figures | {"keypoints_stage_persons_per_s": round(480 / least)}


def compared(
    frames: int,
    device: str,
    precision: Literal["auto", "32", "bf16"],
    profiled: Callable[[str, Callable[[], object]], None] | None = None,
) -> Figures:
    """The stage with ResNet-50 and the fusion by attention, and its encoder alone on crops that are ready."""
    cfg = RegressConfig(device=device, precision=precision)
    d = scaled(scene(3, "person", frames=frames))
    pictures = filmed(len(d.rig), WINDOW)
    net = ImageRegressor(ImageConfig("resnet50", "attention")).eval().requires_grad_(False)
    if device != "cpu":
        net = net.to(memory_format=torch.channels_last)
    net = net.to(device)
    half = precision == "bf16" or (precision == "auto" and device != "cpu")
    images = frames * len(d.rig)
    crops = torch.randn(min(64 if device == "cpu" else 256, images), 3, CROP_PX, CROP_PX, device=device)

    def decode(start: int) -> Iterator[FrameBatch]:
        for first in range(start, frames, WINDOW):
            yield FrameBatch(first, tuple(v[: min(WINDOW, frames - first)] for v in pictures))

    clock = time.process_time if device == "cpu" else time.perf_counter
    skipped = 0 if device == "cpu" else 16

    def stage() -> tuple[float, float]:
        """Seconds to the chunks that are counted, and an image of those."""
        ready = [(clock(), 0)]
        for batch in regress(chunks(d), cfg, d.rig, body(), net, window=WINDOW, decode=decode):
            assert batch.posed.all()
            ready.append((clock(), batch.start + len(batch.posed)))
        (first, before), (last, after) = ready[skipped], ready[-1]
        return first - ready[0][0], (last - first) / (after - before) / len(d.rig)

    @torch.no_grad()
    def bare() -> None:
        for at in range(0, images, len(crops)):
            extract_features(net.encoder, crops[: images - at], half=half)

    bare()
    stage()
    best = {"bare": np.inf, "start": np.inf, "stage": np.inf}
    for _ in range(REPEATS):
        start, each = stage()
        now = {"bare": seconds(bare, device) / images, "start": start, "stage": each}
        best = {name: min(best[name], now[name]) for name in best}
    if profiled is not None:
        profiled("regress", stage)
    return {
        "images": images,
        "bare_images_per_s": round(1 / best["bare"], 1),
        "stage_images_per_s": round(1 / best["stage"], 1),
        "stage_start_s": round(best["start"], 3),
        "stage_ratio": round(best["bare"] / best["stage"], 3),
    }


def seconds(run: Callable[[], object], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    begin = clock()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - begin


def scaled(d: Scene) -> Scene:
    """The scene in pictures of ``HEIGHT``, the person as tall as fits well."""
    low, high = np.nanmin(d.xy, (1, 2)), np.nanmax(d.xy, (1, 2))
    s = 800 / float((high - low)[:, 1].max())
    rig = d.rig
    K = rig.K.copy()
    K[:, :2] *= s
    shift = np.array([WIDTH, HEIGHT]) / 2 - s * (low + high) / 2
    K[:, :2, 2] += shift
    size = np.tile([WIDTH, HEIGHT], (len(rig), 1))
    moved = Rig(rig.names, K, rig.dist, rig.R, rig.t, size)
    xy = s * d.xy + shift[:, None, None]
    return Scene(moved, xy, d.confidence, d.rotations, d.transl, d.betas, d.joints, d.points, d.rate)


def chunks(d: Scene) -> Iterator[KeypointBatch]:
    for start in range(0, d.xy.shape[1], WINDOW):
        stop = min(start + WINDOW, d.xy.shape[1])
        xy = torch.tensor(d.xy[:, start:stop, None], dtype=torch.float32)
        confidence = torch.tensor(d.confidence[:, start:stop, None], dtype=torch.float32)
        time_s = torch.arange(start, stop, dtype=torch.float64) / d.rate
        yield KeypointBatch(start, Fraction(int(d.rate)), torch.tensor([0]), time_s, xy, xy, confidence)


def filmed(views: int, frames: int) -> tuple[tuple[av.VideoFrame, ...], ...]:
    rng = np.random.default_rng(0)

    def frame() -> av.VideoFrame:
        image = rng.integers(16, 235, (HEIGHT * 3 // 2, WIDTH), dtype=np.uint8)
        return av.VideoFrame.from_ndarray(image, "yuv420p")

    return tuple(tuple(frame() for _ in range(frames)) for _ in range(views))


def show(figures: Figures) -> None:
    print("images/s, resnet50, one after another: ", end="")
    print(f"{figures['resnet50_bare_images_per_s']:.1f} bare, ", end="")
    print(f"{figures['resnet50_stage_images_per_s']:.1f} in the stage: ", end="")
    print(f"{figures['resnet50_stage_ratio']:.3f} (wanted 0.9)")
    print(f"persons/s, keypoints of 4 views: {figures['keypoints_stage_persons_per_s']:.0f} in the stage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=24, help="of four views, that ResNet-50 looks at")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures = throughput(args.frames, args.device)
    show(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
