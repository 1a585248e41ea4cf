"""How fast and how right the detector is on a real recording, and what it costs beside its bare networks.

    python tests/benchmarks/detect.py RECORDING [--model heavy] [--frames 99] [--rounds 15] [--json FILE]
    python tests/benchmarks/detect.py RECORDING --threads-only

RECORDING is a calibrated folder with videos and keypoints, such as shared/data/balancing. One thread, but for
``threads``: seconds of the whole pass of all videos, as ``run`` does it, on one thread and on one a
processor, by turns, and the median ratios. Where other programs take processors, the wall says less than
the busiest thread's seconds of processor, which show how evenly the work is shared and what sharing costs.

``speed``: milliseconds of processor time, by turns within each round; the ratios are medians over rounds.
``person`` is a crop, its landmarks and their refinement; ``finder`` a search of a whole picture.

``accuracy``: of the largest person in each picture. ``distance_px`` is from the recording's own keypoints of
the same person, all points that both have; ``exchanged`` counts pictures in which shoulders to ankles lie
nearer to these when left and right are exchanged. ``residual_px``: from triangulating confidences of at least
0.3, without points that are midpoints; ``held_out_px`` from triangulating the other cameras. ``recording`` is
the same of the recording's keypoints.

``two_people``: pictures made of the people in the last two cameras, 700 and 440 pixels tall, the smaller one
partly hidden: in how many frames each is found, and both under the ids of the first frame.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator, Mapping, Sequence  # noqa: E402
from contextlib import suppress  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from detector_scenes import two_people, where_found  # noqa: E402

from models.crops import Pixels  # noqa: E402
from models.detectors.finder import find_people  # noqa: E402
from models.detectors.landmarks import ORDER, Landmarks, place_landmarks  # noqa: E402
from models.detectors.networks import LANDMARKS  # noqa: E402
from models.detectors.rois import cut_rois  # noqa: E402
from models.detectors.tracking import (  # noqa: E402
    SEARCH_FRAMES,
    Networks,
    TrackerState,
    detect_people,
    load_networks,
)
from models.geometry.triangulation import triangulate  # noqa: E402
from pipeline.cameras import Rig  # noqa: E402
from pipeline.formats.keypoints.points import to_body_25  # noqa: E402
from pipeline.recording import Recording, find_recording  # noqa: E402
from pipeline.skeleton import BODY_25, MIDPOINTS  # noqa: E402
from pipeline.video import VideoInfo, probe, read_frames  # noqa: E402
from stages.decode import DecodeConfig, decode  # noqa: E402
from stages.detect import DetectConfig, detect_videos  # noqa: E402
from stages.inspect import inspect  # noqa: E402

MIN_CONFIDENCE = 0.3
PAIRS = 2
LIMBS = ("Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--model", default="heavy", choices=LANDMARKS)
    parser.add_argument("--frames", type=int, default=99)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads-only", action="store_true")
    parser.add_argument("--picture", type=Path, help="draw the middle frame of each camera to this file")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    recording = inspect(find_recording(args.recording))
    if args.threads_only:
        print(json.dumps(threads(recording.videos_by_name, args.model), indent=2))
        return
    videos = sorted((args.recording / "videos").iterdir())
    networks = load_networks(args.model)
    pictures, people, cost = detect(networks, videos, args.frames)
    result = {
        "recording": f"{args.recording.name}, {len(videos)} cameras, {args.frames} frames",
        "model": args.model,
        "speed": speed(networks, pictures, people, args.rounds),
        "pass": cost,
        "accuracy": accuracy(recording, people),
        "two_people": crowd(networks, videos, people),
        "threads": threads(recording.videos_by_name, args.model),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
    if args.picture:
        cv2.imwrite(str(args.picture), drawn(pictures, people[len(people) // 2]))


def detect(
    networks: Networks, videos: Sequence[Path], frames: int
) -> tuple[list[Pixels], list[list[Landmarks]], dict[str, float]]:
    """Pictures of the middle frame, people by frame and camera, and milliseconds of processor time."""
    readers = [read_frames(probe(video), range(frames)) for video in videos]
    states, people, middle = [TrackerState.start() for _ in videos], [], []
    decoding = detecting = 0.0
    for t in range(frames):
        began = time.process_time()
        decoded = [next(reader) for reader in readers]
        pictures = [f.to_ndarray(format="rgb24") for f in decoded if f is not None]
        half = time.process_time()
        pairs = zip(pictures, states, strict=True)
        states, found = map(list, zip(*(detect_people(networks, *pair) for pair in pairs), strict=True))
        decoding, detecting = decoding + half - began, detecting + time.process_time() - half
        people.append(found)
        if t == frames // 2:
            middle = pictures
    persons = sum(len(p) for found in people for p in found)
    cost = {
        "person_frames": persons,
        "people_a_picture": round(persons / frames / len(videos), 3),
        "ms_per_person_frame": round(1e3 * detecting / persons, 2),
        "decode_ms_per_picture": round(1e3 * decoding / frames / len(videos), 2),
    }
    return middle, people, cost


def threads(videos: Mapping[str, VideoInfo], model: str) -> dict[str, object]:
    """Whole passes on one thread and on one a processor, by turns."""
    counts = (1, os.cpu_count() or 1)
    passes = {count: np.zeros((PAIRS, 2)) for count in counts}
    for k in range(PAIRS):
        for count in counts:
            passes[count][k] = whole_pass(videos, model, count)
    one, many = passes.values()
    return {
        "threads": [*counts],
        "wall_s": [rounded(p[:, 0]) for p in (one, many)],
        "busiest_thread_s": [rounded(p[:, 1]) for p in (one, many)],
        "ratio": [round(float(r), 2) for r in np.median(many / one, 0)],
        "load": round(os.getloadavg()[0], 1),
    }


def whole_pass(videos: Mapping[str, VideoInfo], model: str, count: int) -> tuple[float, float]:
    """Seconds of a pass of all videos on some threads, and of processor of the busiest thread (Linux)."""
    ran_s: dict[str, float] = {}
    wall_s = 0.0

    def watch(total: int, done: Iterator[int]) -> None:
        nonlocal wall_s
        before, began = processor_s(), time.perf_counter()
        for _ in done:
            ran_s.update({n: s - before.get(n, 0) for n, s in processor_s().items()})
        wall_s = time.perf_counter() - began

    with tempfile.TemporaryDirectory() as folder:
        cfg = DetectConfig(model=model, threads=count)
        detect_videos(videos, Path(folder) / "d.zarr", cfg, partial(decode, cfg=DecodeConfig()), watch)
    return wall_s, max(ran_s.values())


def processor_s() -> dict[str, float]:
    """Seconds of processor of each thread."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has just ended
            found[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def speed(
    networks: Networks, pictures: Sequence[Pixels], people: Sequence[Sequence[Landmarks]], rounds: int
) -> dict[str, object]:
    """Milliseconds of a person and of a search beside those of the bare networks."""
    picture, roi = pictures[0], people[len(people) // 2][0].roi[:1]
    crop = cut_rois(picture, roi)
    whole = np.random.default_rng(0).uniform(0, 255, (1, 3, 256, 256)).astype(np.float32)
    parts: dict[str, Callable[[], object]] = {
        "landmark_network": lambda: networks.landmarks.network.session.run(None, {"input": crop}),
        "person": lambda: place_landmarks(networks.landmarks.network, cut_rois(picture, roi), roi),
        "crop": lambda: cut_rois(picture, roi),
        "finder_network": lambda: networks.finder.session.run(None, {"input": whole}),
        "finder": lambda: find_people(networks.finder, picture),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, call in parts.items():
            began = time.process_time()
            call()
            times[name].append(1e3 * (time.process_time() - began))
    ms = {name: float(np.median(t)) for name, t in times.items()}
    ratio = np.median(np.array(times["person"]) / np.array(times["landmark_network"]))
    return {
        "ms": {name: round(t, 2) for name, t in ms.items()},
        "person_by_network": round(float(ratio), 3),
        "finder_ms_per_frame": round(ms["finder"] / SEARCH_FRAMES, 2),
    }


def crowd(
    networks: Networks, videos: Sequence[Path], people: Sequence[Sequence[Landmarks]]
) -> dict[str, int]:
    """Frames in which each of two people pasted into one picture is found."""
    last = range(len(videos) - 2, len(videos))
    readers = [read_frames(probe(videos[v]), range(len(people))) for v in last]
    state, tracks = TrackerState.start(), []
    for cameras in people:
        single = [(v, next(reader)) for v, reader in zip(last, readers, strict=True)]
        large, small = (
            (frame.to_ndarray(format="rgb24"), largest(cameras[v]))
            for v, frame in single
            if frame is not None
        )
        picture, joints = two_people(large, small)
        state, found = detect_people(networks, picture, state)
        tracks.append(where_found(state, found, joints))
    return {
        "frames": len(tracks),
        "large": sum(t[0] is not None for t in tracks),
        "small": sum(t[1] is not None for t in tracks),
        "both_under_their_ids": tracks.count(tracks[0]) if None not in tracks[0] else 0,
    }


def largest(people: Landmarks) -> Landmarks:
    return people.select([int(people.roi[:, 2].argmax())])


def accuracy(recording: Recording, people: Sequence[Sequence[Landmarks]]) -> dict[str, object]:
    """Agreement of the largest people with the recording's keypoints, and with each other."""
    rig, frames = recording.rig, len(people)
    found = np.full((len(rig), frames, len(BODY_25), 3), np.nan, np.float32)
    found[..., 2] = 0
    for t, cameras in enumerate(people):
        for v, one in enumerate(cameras):
            if len(one):
                found[v, t] = to_body_25(largest(one).points[0], ORDER)
    theirs = nearest(recording.people(np.arange(frames)), found)
    swap = [*BODY_25.flips]
    limbs = [BODY_25.index(side + limb) for side in "LR" for limb in LIMBS]
    straight = np.linalg.norm(found[..., :2] - theirs[..., :2], axis=-1)
    crossed = np.linalg.norm(found[..., swap, :2] - theirs[..., :2], axis=-1)
    with np.errstate(invalid="ignore"):
        exchanged = np.nanmean(crossed[..., limbs], -1) < np.nanmean(straight[..., limbs], -1)
    both = np.where(theirs[..., 2] > 0, straight, np.nan)
    return {
        "pictures_without_a_person": int((found[..., 2] == 0).all(-1).sum()),
        "exchanged": exchanged.sum(1).tolist(),
        "distance_px": {
            "mean": rounded(np.nanmean(both, (1, 2))),
            "median": rounded(np.nanmedian(both, (1, 2))),
            "mean_of_all": round(float(np.nanmean(both)), 1),
        },
        "detected": geometry(rig, found),
        "recording": geometry(rig, theirs),
    }


def nearest(others: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the people (V, T, P, 25, 3) the one nearest to the found one (V, T, 25, 3), by median distance."""
    distance = np.linalg.norm(others[..., :2] - found[:, :, None, :, :2], axis=-1)
    distance = np.where((others[..., 2] > 0) & (found[:, :, None, :, 2] > 0), distance, np.nan)
    known = np.isfinite(distance).any(-1)
    median = np.full(known.shape, np.inf)
    median[known] = np.nanmedian(distance[known], -1)
    index = median.argmin(2)
    return np.take_along_axis(others, index[:, :, None, None, None], 2)[:, :, 0]


def geometry(rig: Rig, points: NDArray[np.float32]) -> Mapping[str, object]:
    """Residuals of triangulation, pixels, of people (V, T, 25, 3)."""
    no_points = [*MIDPOINTS, "LSmallToe", "RSmallToe"]
    confidence = np.where(points[..., 2] >= MIN_CONFIDENCE, points[..., 2], 0).astype(np.float64)
    confidence[..., [BODY_25.index(name) for name in no_points]] = 0
    xy = rig.undistort_views(points[..., :2])
    residual = triangulate(rig, xy, confidence).residual_px
    held_out = []
    for v, name in enumerate(rig.names):
        others = [n for n in range(len(rig)) if n != v]
        world = triangulate(rig.select([rig.names[n] for n in others]), xy[others], confidence[others]).points
        error = np.linalg.norm(rig.select([name]).project(world)[0] - xy[v], axis=-1)
        held_out.append(float(np.nanmedian(np.where(confidence[v] > 0, error, np.nan))))
    return {
        "residual_px": rounded(np.nanmean(residual, (1, 2))),
        "residual_px_all": [
            round(float(np.nanmean(residual)), 2),
            round(float(np.nanmedian(residual)), 2),
        ],
        "held_out_px": rounded(np.array(held_out)),
    }


def rounded(values: NDArray[np.floating]) -> list[float]:
    return [round(float(x), 1) for x in values]


def drawn(pictures: Sequence[Pixels], people: Sequence[Landmarks]) -> Pixels:
    """The cameras' pictures side by side with the people's bones, left blue, right red (BGR)."""
    out = []
    for picture, one in zip(pictures, people, strict=True):
        canvas = np.ascontiguousarray(picture[..., ::-1])
        for points in to_body_25(one.points, ORDER):
            for a, b in BODY_25.bones:
                if min(points[a, 2], points[b, 2]) > 0:
                    colour = {"L": (255, 96, 0), "R": (0, 0, 255)}.get(BODY_25.names[b][0], (0, 200, 0))
                    ends = (tuple(np.rint(points[n, :2]).astype(int).tolist()) for n in (a, b))
                    cv2.line(canvas, *ends, colour, 5, cv2.LINE_AA)
        height = 960
        size = (round(canvas.shape[1] * height / canvas.shape[0]), height)
        out.append(cv2.resize(canvas, size, interpolation=cv2.INTER_AREA))
    return np.concatenate(out, 1)


if __name__ == "__main__":
    main()
