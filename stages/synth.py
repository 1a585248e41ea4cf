"""Synthetic recordings with ground truth: videos, OpenPose JSON files and a calibration."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import fields, replace
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from models.angles import DEFINITIONS, fitted_angles
from models.body import Body, pose_keypoints
from models.gait import write_events
from models.synthetic.cameras import ring_rig
from models.synthetic.crowd import make_crowd
from models.synthetic.detections import CrowdDetector, Faults
from models.synthetic.detector import Noise
from models.synthetic.people import Person, animate, region_corners
from models.synthetic.pictures import backdrop, film
from pipeline.array_types import Array
from pipeline.batches import FitBatch, KeypointBatch, SmplParams, Status
from pipeline.calibrations.pose2sim import write_calibration
from pipeline.cameras import Rig
from pipeline.config import Config
from pipeline.contents import Contents
from pipeline.errors import InputError
from pipeline.formats.keypoints.openpose import write_people
from pipeline.results import TRUTH
from pipeline.skeleton import BODY_25, POINT_ORDERS, SMPL_24, find_order
from pipeline.store import Store
from pipeline.video import VideoWriter
from pipeline.yamls import read_yaml

_SETTINGS_FILE: Final = "synth.yaml"
"""File with the settings of the recording."""
_OUTPUTS: Final = ("calibration.toml", "videos", "keypoints", TRUTH, "recording.yaml", _SETTINGS_FILE)
"""All files and folders that are written; the calibration last, so that a folder without it is unfinished."""

_POINTS: Final = (*BODY_25.names, "Head")
"""Projected points: BODY_25, and the top of the head for point orders that have it."""


class SynthConfig(Config):
    """Settings of a synthetic recording."""

    cameras: int = Field(4, ge=1, le=64)
    """Cameras, on a ring."""
    seconds: float = Field(3.0, gt=0, le=86_400)
    """Length of the recording."""
    fps: float | str = 30.0
    """Frames a second; a fraction such as 30000/1001 as text."""
    people: int = Field(1, ge=1, le=16)
    """Number of people, who walk among each other."""
    leaving: int = Field(0, ge=0, le=16)
    """Number of people who repeatedly leave for some seconds."""
    seed: int = Field(0, ge=0)
    """Equal seeds give equal recordings."""
    noise_px: float = Field(3.0, ge=0)
    """Standard deviation of a keypoint's x and y, pixels."""
    outliers: float = Field(0.05, ge=0, le=1)
    """Share of keypoints that are detected 40 to 120 px away."""
    missing: float = Field(0.1, ge=0, le=1)
    """Share of keypoints that are not detected."""
    gaps: float = Field(0.03, ge=0, le=0.5)
    """Share of frames, in runs, in which a camera detects nothing."""
    exchanged: float = Field(0.0, ge=0, le=1)
    """Share of detections with left and right exchanged."""
    split: float = Field(0.0, ge=0, le=1)
    """Share of detections in two parts, above and below the hips."""
    phantoms: float = Field(0.0, ge=0, le=16)
    """Mean number of false people in a picture."""
    static_phantoms: int = Field(0, ge=0, le=16)
    """False people in all frames at a fixed place, each in one camera."""
    videos: bool = True
    """Draw videos."""
    size: tuple[int, int] = (960, 720)
    """Picture width and height, even numbers of pixels."""
    format: str = "body_25"
    """Point order of the keypoint files, a name in ``skeleton.POINT_ORDERS``; points such as fingers are
    missing."""
    window: int = Field(24, ge=1)
    """Frames that are made, and kept in memory, at a time."""

    @property
    def rate(self) -> Fraction:
        """Frames a second."""
        return Fraction(str(self.fps).replace(" ", ""))

    @property
    def frames(self) -> int:
        return max(1, round(self.seconds * self.rate))

    @field_validator("fps")
    @classmethod
    def _possible_rate(cls, value: float | str) -> str:
        try:
            rate = Fraction(str(value).replace(" ", ""))
        except (ValueError, ZeroDivisionError):
            raise ValueError("expected a number or a fraction such as 30000/1001") from None
        if not 1 <= rate <= 1000:
            raise ValueError("expected 1 to 1000 frames a second")
        return str(rate)

    @field_validator("format")
    @classmethod
    def _known_order(cls, value: str) -> str:
        return find_order(value)

    @field_validator("leaving")
    @classmethod
    def _not_more_than_people(cls, value: int, info: ValidationInfo) -> int:
        people = info.data.get("people", 1)
        if value > people:
            raise ValueError(f"expected at most {people}, as many as there are people")
        return value

    @field_validator("size")
    @classmethod
    def _possible_size(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not all(64 <= n <= 8192 and n % 2 == 0 for n in value):
            raise ValueError("expected even numbers of 64 to 8192 pixels")
        return value


def write_recording(
    out: Path,
    cfg: SynthConfig,
    body: Body,
    progress: Callable[[int], None] = lambda frames: None,
    *,
    overwrite: bool = False,
) -> Store:
    """Make a recording in the folder ``out`` and return its truth; a finished one of equal settings is kept.

    Writes ``videos/<camera>.mp4``, ``keypoints/<camera>/*_keypoints.json``, ``calibration.toml`` and
    ``truth.zarr``, a store with exact ``keypoints_2d``. An unfinished recording is made again. progress:
    called with the number of frames just made. Memory is independent of the length.

    Raises ``InputError``: ``out`` is not writable, or holds other files or a recording of other settings,
    without ``overwrite``.
    """
    made_from = {
        "software": f"multispin {metadata.version('multispin')}",
        "body": body.sha256,
        "settings": cfg.model_dump(mode="json"),
    }
    try:
        if _is_finished(out, made_from, overwrite=overwrite):
            progress(cfg.frames)
            return Store(out / TRUTH)
        for name in _OUTPUTS:
            if name == "recording.yaml" and not overwrite:
                continue  # the user may have edited it
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        (out / _SETTINGS_FILE).write_text(yaml.safe_dump(made_from, sort_keys=False), encoding="utf-8")
        seconds = cfg.frames / float(cfg.rate)
        people = make_crowd(cfg.people, seconds, cfg.seed, body, cfg.leaving)
        rig = ring_rig(cfg.cameras, cfg.size, region_corners(people, body, seconds), cfg.seed)
        truth = _write_windows(out, cfg, body, people, rig, progress)
        if not cfg.videos and not (out / "recording.yaml").exists():
            (out / "recording.yaml").write_text(f"fps: {cfg.rate}\n", encoding="utf-8")
        write_calibration(rig, out / "calibration.toml")
    except OSError as e:
        raise InputError(
            f"{e.filename or out}: cannot be written ({e.strerror or e}). Make room, give write permission "
            "or choose another folder."
        ) from e
    return truth


def _is_finished(out: Path, made_from: dict[str, Any], *, overwrite: bool) -> bool:
    """True where ``out`` has this recording, complete. Raises ``InputError`` where it has other files."""
    mark = out / _SETTINGS_FILE
    if overwrite:
        return False
    if not mark.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(
                f"{out}: is there already and was not made by synth. Choose a new or empty folder, or "
                f"--overwrite to replace its {', '.join(_OUTPUTS[:-1])}."
            )
        return False
    try:
        before = read_yaml(mark.read_text(encoding="utf-8"))
        settings = SynthConfig.model_validate(before["settings"]).model_dump(mode="json")
    except (KeyError, TypeError, ValueError):
        before, settings = None, {}
    changes = [
        f"{k} is {settings.get(k)} there, {v} here"
        for k, v in made_from["settings"].items()
        if settings.get(k) != v
    ]
    if changes:
        raise InputError(
            f"{out}: holds a recording of other settings ({'; '.join(changes[:4])}). Choose another folder, "
            f"or --overwrite to replace its {', '.join(_OUTPUTS[:-1])}."
        )
    if before is None or any(before.get(k) != made_from[k] for k in ("software", "body")):
        return False
    return (out / "calibration.toml").is_file()


def _write_windows(
    out: Path,
    cfg: SynthConfig,
    body: Body,
    people: tuple[Person, ...],
    rig: Rig,
    progress: Callable[[int], None],
) -> Store:
    """Write truth, keypoint files and videos, window by window."""
    frames = cfg.frames
    time_s = np.arange(frames) / float(cfg.rate)
    detector = _detector(cfg, rig, people, body)
    truth = Store.create(
        out / TRUTH,
        Contents(
            rig=rig,
            rate=cfg.rate,
            time_s=time_s,
            frame_index=np.tile(np.arange(frames), (len(rig), 1)),
            body={"name": body.name, "sha256": body.sha256},
            config={"synth": cfg.model_dump(mode="json")},
            window=cfg.window,
            num_betas=body.num_betas,
            skeleton=body.skeleton,
            keypoint_skeleton=body.keypoints.keypoint_skeleton,
            angles=DEFINITIONS,
        ),
    )
    for name in rig.names:
        (out / "keypoints" / name).mkdir(parents=True)
    with ExitStack() as stack:
        writers, rooms = [], []
        if cfg.videos:
            (out / "videos").mkdir()
            # Cameras are drawn in parallel, so each encoder has one thread.
            pool = stack.enter_context(ThreadPoolExecutor(min(len(rig), os.cpu_count() or 1)))
            rooms = list(pool.map(lambda v: backdrop(rig, v), range(len(rig))))
            for name in rig.names:
                path = out / "videos" / f"{name}.mp4"
                writers.append(stack.enter_context(VideoWriter(path, cfg.rate, threads=1)))
        for k in range(truth.contents.windows):
            a, b = truth.span(k)
            batch, points = _true_window(people, body, rig, cfg.rate, a, time_s[a:b])
            _write_keypoints(out / "keypoints", rig.names, a, detector.find(points, a).points, cfg.format)
            if cfg.videos:
                orient, pose, betas, transl = (getattr(batch.params, f.name) for f in fields(batch.params))
                of_each = zip(orient.unbind(1), pose.unbind(1), betas, transl.unbind(1), strict=True)
                vertices = torch.stack([body.vertices(*person) for person in of_each], 1).numpy()

                def record(v: int, vertices: NDArray[np.float32] = vertices) -> None:
                    for picture in film(vertices, body, rig, v, rooms[v]):
                        writers[v].write(picture)

                list(pool.map(record, range(len(rig))))
            truth.write(batch, fitted_angles(batch, rig.up))
            progress(b - a)
    write_events(truth)
    return truth


def _detector(cfg: SynthConfig, rig: Rig, people: tuple[Person, ...], body: Body) -> CrowdDetector:
    """Detector of a recording, whose phantoms have the people's shapes at some times."""
    time_s = np.linspace(0, cfg.frames / float(cfg.rate), 8)
    always_present = tuple(replace(person, absences_s=()) for person in people)
    bodies = np.concatenate(_pose_people(always_present, body, time_s)[2])
    noise = Noise(cfg.noise_px, cfg.outliers, cfg.missing, cfg.gaps, cfg.seed)
    faults = Faults(cfg.exchanged, cfg.split, cfg.phantoms, cfg.static_phantoms)
    return CrowdDetector(rig, noise, faults, bodies)


def _pose_people(
    people: tuple[Person, ...], body: Body, time_s: Array
) -> tuple[SmplParams, torch.Tensor, Array]:
    """Pose people at times (T,): parameters, joints (T, P, J, 3), and ``_POINTS`` (T, P, K + 1, 3), metres,
    world; NaN while a person is absent."""
    rotations, transl = (
        torch.from_numpy(np.stack(x, 1))
        for x in zip(*(animate(p, body, time_s) for p in people), strict=True)
    )
    absent = torch.from_numpy(np.stack([~p.present(time_s) for p in people], 1))
    rotations[absent], transl[absent] = torch.nan, torch.nan
    betas = torch.from_numpy(np.stack([p.betas for p in people]))
    joints, points = pose_keypoints(body.keypoints, rotations, betas.expand(len(time_s), -1, -1), transl)
    world = points.numpy()
    # Near the top of the head, and turning with it, as the ears do.
    skull = joints[..., SMPL_24.index("head"), :].numpy()
    ears = world[..., [BODY_25.index("LEar"), BODY_25.index("REar")], :].mean(-2)
    params = SmplParams(
        rotations[:, :, 0].float(), rotations[:, :, 1:].float(), betas.float(), transl.float()
    )
    return params, joints, np.concatenate([world, (skull + 3 * (ears - skull))[..., None, :]], -2)


def _true_window(
    people: tuple[Person, ...], body: Body, rig: Rig, rate: Fraction, start: int, time_s: Array
) -> tuple[FitBatch, Array]:
    """Window of the truth, and ``_POINTS`` (T, P, K + 1, 3), metres, world."""
    params, joints, points = _pose_people(people, body, time_s)
    world = points[..., : len(BODY_25), :]
    present = torch.from_numpy(np.isfinite(world).all((2, 3)))
    image = rig.project(world, distorted=True)
    with np.errstate(invalid="ignore"):
        inside = np.asarray(((image >= -0.5) & (image < rig.size[:, None, None, None] - 0.5)).all(-1))
    image = np.where(inside[..., None], image, np.nan)
    ideal = np.where(inside[..., None], rig.project(world), np.nan)
    confidence = torch.from_numpy(inside.astype(np.float32))
    is_seen = torch.from_numpy(inside.any(-1))
    batch = FitBatch(
        keypoints=KeypointBatch(
            start=start,
            rate=rate,
            ids=torch.arange(len(people)),
            time_s=torch.from_numpy(time_s),
            image_px=torch.from_numpy(image.astype(np.float32)),
            xy_px=torch.from_numpy(ideal.astype(np.float32)),
            confidence=confidence,
            skeleton=body.keypoints.keypoint_skeleton,
        ),
        params=params,
        joints=joints.float(),
        keypoints_3d=torch.cat([torch.from_numpy(world).float(), confidence.mean(0)[..., None]], -1),
        reprojection_px=torch.where(is_seen, 0.0, torch.nan),
        status=torch.where(present, Status.OK, Status.NOT_SEEN).to(torch.uint8),
        skeleton=body.skeleton,
    )
    return batch, points


def _write_keypoints(folder: Path, names: tuple[str, ...], start: int, points: Array, order: str) -> None:
    """Write ``_POINTS`` (V, T, D, K + 1, 3) in a point order as OpenPose does, a file a frame and camera."""
    index = [_POINTS.index(name) if name in _POINTS else 0 for name in POINT_ORDERS[order]]
    missing = [i for i, name in enumerate(POINT_ORDERS[order]) if name not in _POINTS]
    for v, name in enumerate(names):
        for i, detections in enumerate(points[v][:, :, index]):
            detections[:, missing] = np.nan, np.nan, 0
            write_people(folder / name / f"{name}_{start + i:012d}_keypoints.json", detections)
