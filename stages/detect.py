"""Detection of people in videos: 2D keypoints as OpenPose's JSON, for a recording that has none."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from models.detectors.landmarks import ORDER
from models.detectors.tracking import Networks, TrackerState, TrackingRules, detect_people, load_networks
from pipeline.batches import FrameBatch
from pipeline.config import Config
from pipeline.engine import ahead
from pipeline.errors import InputError
from pipeline.files import locked, write_whole, writing
from pipeline.findings import Finding
from pipeline.footage import find_videos, probe_videos
from pipeline.formats.keypoints.openpose import write_people
from pipeline.formats.keypoints.points import to_body_25
from pipeline.video import VideoInfo, to_rgb

Floats = NDArray[np.float32]

FOLDER: Final = "keypoints"
"""Folder of a recording that keypoints lie in."""
_STATE: Final = "state.npz"
_KEPT_EVERY: Final = 4
"""Moments from one time that the state is kept to the next: more are done again after a stop."""
_ADVICE: Final = "Make room, or choose another --out."


class DetectConfig(Config):
    """Networks that detect people."""

    model: Literal["heavy", "full"] = "heavy"
    """Network of the landmarks; full takes a quarter of the time and exchanges left and right at times."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda needs onnxruntime-gpu."""


@dataclass(frozen=True)
class Detected:
    """People in the pictures of V cameras at one moment, and what the next moment needs to know."""

    frame: int
    people: tuple[Floats | None, ...]
    """(D, K, 3) of each camera in BODY_25: x and y in pixels, confidence; None without a picture."""
    state: TrackerState


def detect(
    items: Iterator[FrameBatch], networks: Networks, state: TrackerState, rules: TrackingRules | None = None
) -> Iterator[Detected]:
    """Detect people moment after moment. state: that of the moment before the first of ``items``."""
    for batch in items:
        for i, frames in enumerate(batch.by_time()):
            pictures = [None if frame is None else to_rgb(frame) for frame in frames]
            state, found = detect_people(networks, pictures, state, rules)
            people = (
                None if picture is None else to_body_25(one.landmarks.points, ORDER)
                for picture, one in zip(pictures, found, strict=True)
            )
            yield Detected(batch.start + i, tuple(people), state)


Decode = Callable[[Sequence[VideoInfo], NDArray[np.int64], int], Iterator[FrameBatch]]
"""Frames of V videos, (V, T) frame numbers and the time to begin at → frames of all cameras."""


def detect_recording(
    recording: Path, out: Path, cfg: DetectConfig, decode: Decode
) -> tuple[int, Generator[int]]:
    """Detect people in all videos of a folder and write OUT/<camera>/<camera>_<frame>_keypoints.json.

    Frames are numbered as in each video, from 0. What is written lies in a hidden folder beside OUT until all
    is there; a detection that was stopped goes on from it, to the same bytes. Returns how many moments there
    are, and an iterator that works and gives how many are done.

    Raises:
        InputError: there are no videos, OUT exists, or what was begun there had other settings or videos.
    """
    findings: list[Finding] = []
    videos = probe_videos(find_videos(recording, findings), None, {})
    if not videos:
        raise InputError(f"{recording}: no videos found; expected videos/<camera>.mp4, or beside each other")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: is there already. Move it away, or choose another --out.")
    networks = load_networks(cfg.model, cfg.device)
    total = max(len(v.times_s) for v in videos.values())
    return total, _written(videos, out, cfg, networks, decode)


def _written(
    videos: Mapping[str, VideoInfo], out: Path, cfg: DetectConfig, networks: Networks, decode: Decode
) -> Generator[int]:
    names, work = tuple(videos), out.with_name(f".{out.name}-detecting")
    counts = {name: len(video.times_s) for name, video in videos.items()}
    about = json.dumps({"frames": counts, **cfg.model_dump(include={"model"})}, sort_keys=True)
    frames = np.arange(max(counts.values()))
    index = np.stack([np.where(frames < count, frames, -1) for count in counts.values()])
    with locked(work, "detection"):
        first, state = _resumed(work, about, len(videos))
        made = work / FOLDER
        with writing(work, _ADVICE):
            for name in names:
                (made / name).mkdir(parents=True, exist_ok=True)
        with ahead(decode([*videos.values()], index, first), 1, "decode") as pictures:
            for found in detect(pictures, networks, state):
                with writing(work, _ADVICE):
                    for name, people in zip(names, found.people, strict=True):
                        if people is not None:
                            write_people(
                                made
                                / name
                                / f"{name}_{videos[name].first_number + found.frame:012d}_keypoints.json",
                                people,
                            )
                    if (found.frame + 1) % _KEPT_EVERY == 0 or found.frame == frames[-1]:
                        _keep(work / _STATE, found, about)
                yield found.frame + 1
        with writing(out, _ADVICE):
            made.replace(out)  # which may be there, empty
    for rest in work.iterdir():
        rest.unlink()
    work.rmdir()


def _keep(file: Path, found: Detected, about: str) -> None:
    content = BytesIO()
    arrays: dict[str, Any] = found.state.arrays()
    np.savez(content, next=found.frame + 1, about=about, **arrays)
    write_whole(file, content.getvalue())


def _resumed(work: Path, about: str, cameras: int) -> tuple[int, TrackerState]:
    """The first frame that is not done, and the state before it."""
    file = work / _STATE
    if not file.exists():
        return 0, TrackerState.start(cameras)
    try:
        with np.load(file, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in kept.files}
        was, first = str(arrays.pop("about")), int(arrays.pop("next"))
        state = TrackerState.from_arrays(arrays)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{file}: is damaged ({error}). Remove {work}, then run again.") from error
    if was != about:
        raise InputError(
            f"{work}: was begun with {was}, now {about}. Give the same, or remove that folder to begin anew."
        )
    return first, state
