"""A recording folder: find its videos, keypoints and calibration, and put its cameras on one time line.

What is found and what is guessed is kept as text beside the data, to be printed before work starts.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydantic
import yaml
from numpy.typing import NDArray
from pydantic import Field, field_validator

from pipeline.association import MatchConfig, pick_people, propose
from pipeline.calibration import (
    UNITS,
    calibration_doubts,
    check_intrinsics,
    find_calibration,
    in_metres,
    read_calibration,
)
from pipeline.cameras import Array, Rig
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.joints import FORMATS
from pipeline.keypoints import (
    Floats,
    KeypointFiles,
    count_points,
    formats_with,
    index_keypoints,
    limb_inconsistency,
    limb_length,
    read_views,
    to_body_25,
)
from pipeline.triangulation import triangulate
from pipeline.video import VideoInfo, probe

VIDEO_SUFFIXES: Final = (".mp4", ".mkv", ".webm", ".avi", ".mov")
_VIDEO_FOLDERS: Final = ("videos", "video", ".")
_KEYPOINT_FOLDERS: Final = ("keypoints", "pose", "openpose", ".")
_OTHER_KEYPOINTS: Final = ("pose-sync", "pose-associated")

_SAMPLE: Final = 40
"""Frames, spread over the recording, on which format and unit are checked."""
_MARGIN: Final = 2.0
"""A keypoint format must fit this many times better than the next, ..."""
_INCONSISTENT: Final = 0.25
"""... and limbs may vary and differ between left and right by this share of their length."""


# --- what recording.yaml may say -----------------------------------------------------------------------------


class StatedKeypoints(Config):
    """The ``keypoints`` of recording.yaml."""

    format: str | None = None
    """A name in ``joints.FORMATS``, as BODY_25 or body_25."""
    path: str | None = None
    """The folder that holds one folder a camera."""
    first_frame: int = 0
    """Number of the keypoint file that belongs to a video's first frame."""

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str | None) -> str | None:
        if value is None:
            return None
        name = value.lower().replace("-", "_")
        if name not in FORMATS:
            raise ValueError(f"{value!r} is not one of {', '.join(FORMATS)}")
        return name


class StatedCalibration(Config):
    """The ``calibration`` of recording.yaml."""

    path: str | None = None
    unit: str | float | None = None
    """m, cm, mm, or the metres in one unit."""

    @field_validator("unit")
    @classmethod
    def _known_unit(cls, value: str | float | None) -> str | float | None:
        if isinstance(value, str) and value not in UNITS:
            raise ValueError(f"{value!r} is not one of {', '.join(UNITS)}, nor metres a unit as a number")
        if isinstance(value, float | int) and not 0 < value < math.inf:
            raise ValueError(f"{value} must be positive: the metres in one unit")
        return value


class Stated(Config):
    """``recording.yaml``: what cannot be guessed, or was guessed wrong."""

    keypoints: StatedKeypoints = StatedKeypoints()
    calibration: StatedCalibration = StatedCalibration()
    frame_offset: dict[str, int] = Field(default_factory=dict)
    """Per camera: the frame that shows the same moment as frame 0 of a camera without an offset."""
    fps: float | str | None = None
    """Frames a second where no video says so; a fraction such as 30000/1001 as text."""

    @field_validator("fps")
    @classmethod
    def _positive_rate(cls, value: float | str | None) -> float | str | None:
        if value is not None:
            try:
                rate = Fraction(str(value).replace(" ", ""))
            except (ValueError, ZeroDivisionError):
                raise ValueError(f"{value!r} is neither a number nor a fraction such as 30000/1001") from None
            if not 0 < rate < 100_000:
                raise ValueError(f"{value} must be positive")
        return value


def _read_stated(folder: Path) -> Stated:
    path = folder / "recording.yaml"
    if not path.exists():
        return Stated()
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as YAML: {text}") from error
    if document is None:
        return Stated()
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected keys such as keypoints, calibration, frame_offset, fps")
    # YAML reads a camera called 1 as a number.
    if isinstance(document.get("frame_offset"), dict):
        document["frame_offset"] = {str(k): v for k, v in document["frame_offset"].items()}
    try:
        return Stated.model_validate(document, strict=True)
    except pydantic.ValidationError as error:
        raise InputError("\n".join(f"{path}: {_explain(e)}" for e in error.errors())) from None


def _explain(error: Any) -> str:
    where = [str(part) for part in error["loc"]]
    if error["type"] != "extra_forbidden":
        return f"{'.'.join(where)}: {error['msg'].removeprefix('Value error, ')}"
    model: type[Config] = {"keypoints": StatedKeypoints, "calibration": StatedCalibration}.get(
        where[0], Stated
    )
    if len(where) == 1:
        model = Stated
    keys = list(model.model_fields)
    near = difflib.get_close_matches(where[-1], keys, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(keys)}"
    return f"unknown key {'.'.join(where)!r}; {hint}"


def _inside(folder: Path, stated: str, key: str) -> Path:
    path = folder / stated
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder / 'recording.yaml'}: {key}: {stated!r} leaves the recording's folder")
    if not path.exists():
        raise InputError(f"{folder / 'recording.yaml'}: {key}: {path} does not exist")
    return path


# --- what a recording is -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timeline:
    """The common time line: T instants, and every camera's frame at each."""

    rate: Fraction
    """Frames a second: the lowest among the cameras."""
    time_s: NDArray[np.float64]
    """(T,) seconds from the first."""
    frame_index: NDArray[np.int32]
    """(V, T) index into the camera's own frames; −1 where it has none at that time."""

    def __len__(self) -> int:
        return len(self.time_s)


@dataclass(frozen=True)
class KeypointFormat:
    """What the numbers in the keypoint files mean, and how that is known."""

    name: str
    """A name in ``joints.FORMATS``."""
    how: str
    """How it was decided, for people."""
    inconsistency: float
    """``limb_inconsistency`` under this format; NaN where it could not be measured."""
    margin: float
    """How many times worse the next format with as many points fits; NaN where there is none."""
    confidence_scale: float = 1.0
    """What confidences are divided by (files in which they exceed 1)."""
    normalised: bool = False
    """Coordinates are fractions of the picture, as OpenPose's ``--keypoint_scale 3`` writes them."""


@dataclass(frozen=True)
class Recording:
    """A recording, ready to be read. Cameras are in the order of ``rig``."""

    path: Path
    rig: Rig
    """Sizes and intrinsics are those of the videos."""
    videos: tuple[VideoInfo | None, ...]
    keypoints: tuple[KeypointFiles | None, ...]
    format: KeypointFormat
    first_frame: int
    """Number of the keypoint file that belongs to frame 0 of a camera."""
    timeline: Timeline
    calibration: Path
    notes: tuple[tuple[str, str], ...]
    """What was found and how: rows of a table."""
    warnings: tuple[str, ...]
    """What was guessed or looks wrong, in sentences."""

    def __len__(self) -> int:
        return len(self.timeline)

    def keypoint_numbers(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """(V, len(frames)) number of the keypoint file of each camera at these instants; −1 for none."""
        index = self.timeline.frame_index[:, frames].astype(np.int64)
        return np.where(index >= 0, index + self.first_frame, -1)

    def people(self, frames: NDArray[np.int64]) -> Floats:
        """Everybody in these frames, as detected: (V, T, P, 25, 3) of x, y (pixels of the video frame,
        distorted) and confidence, in BODY_25; NaN, NaN, 0 where missing."""
        points = len(FORMATS[self.format.name])
        raw = read_views(self.keypoints, self.keypoint_numbers(frames), points)
        return to_body_25(_to_pixels(raw, self.format, self.rig.size), self.format.name)

    def undistort(self, xy_px: NDArray[np.float32]) -> Array:
        """(V, ..., 2) pixels of the video frames → pixels of the ideal pinhole cameras."""
        return np.stack([self.rig.undistort(v, xy_px[v]) for v in range(len(self.rig))])


def _to_pixels(raw: Floats, known: KeypointFormat, size: NDArray[np.int64]) -> Floats:
    if known.confidence_scale == 1.0 and not known.normalised:
        return raw
    out = raw.copy()
    out[..., 2] = np.clip(raw[..., 2] / known.confidence_scale, 0, 1)
    if known.normalised:
        out[..., :2] *= (size[:, None, None, None] - 1).astype(np.float32)
    return out


# --- finding ---------------------------------------------------------------------------------------------------


def find_recording(path: Path | str) -> Recording:
    """Find, match and check everything in a recording's folder.

    Reads the calibration, the time stamps of the videos and some forty frames of keypoints, not more.

    Raises:
        InputError: something is missing, contradictory or unreadable; says what to do.
    """
    folder = Path(path)
    if not folder.exists():
        raise InputError(f"{folder} does not exist")
    if not folder.is_dir():
        raise InputError(
            f"{folder} is a file; a recording is a folder (videos/, keypoints/, calibration.toml)"
        )
    stated = _read_stated(folder)
    warnings: list[str] = []
    notes: list[tuple[str, str]] = []

    calibration = _calibration_of(folder, stated, notes)
    unit = stated.calibration.unit
    stated_scale = None if unit is None else UNITS[unit] if isinstance(unit, str) else unit
    rig = read_calibration(calibration, metres_per_unit=stated_scale or 1.0)

    video_files = _find_videos(folder, warnings)
    folders, keypoints_at = _find_keypoints(folder, stated, warnings)
    if not folders:
        raise InputError(
            f"{folder}: no keypoints found; expected keypoints/<camera>/*.json (also <camera>_json, or pose/ "
            "as Pose2Sim writes it) in OpenPose JSON, one file a frame"
        )
    rig, matched_videos, matched_folders = _match_cameras(folder, rig, video_files, folders, warnings)
    if len(rig) < 2:
        raise InputError(
            f"{folder}: only camera {rig.names[0]} was found; at least two calibrated views are needed"
        )

    videos = tuple(probe(matched_videos[n]) if n in matched_videos else None for n in rig.names)
    for video in videos:
        warnings += video.warnings if video else ()
    rig = _fit_sizes(rig, videos, calibration, warnings)

    indexed: list[KeypointFiles | None] = []
    for name in rig.names:
        files = None
        if name in matched_folders:
            files, unnumbered = index_keypoints(matched_folders[name])
            if unnumbered:
                warnings.append(
                    f"{files.folder}: {unnumbered} JSON files without a frame number are not used"
                )
        if not files:
            warnings.append(f"camera {name} has no keypoints: it takes no part in the fit")
        indexed.append(files or None)
    if sum(f is not None for f in indexed) < 2:
        raise InputError(
            f"{folder}: fewer than two cameras have keypoint files; at least two views are needed"
        )

    timeline = _timeline_of(rig, videos, indexed, stated, folder, warnings)
    rig, known = _check_people(folder, rig, indexed, timeline, stated, warnings)
    warnings += calibration_doubts(rig)

    notes.append(("keypoints", f"{keypoints_at}: {known.name}, {known.how}"))
    notes.append(
        (
            "time line",
            f"{len(timeline)} frames, {len(timeline) / float(timeline.rate):.2f} s at {float(timeline.rate):g} fps",
        )
    )
    for v, name in enumerate(rig.names):
        notes.append((f"camera {name}", _describe(videos[v], indexed[v], rig.size[v], folder)))
    return Recording(
        folder,
        rig,
        videos,
        tuple(indexed),
        known,
        stated.keypoints.first_frame,
        timeline,
        calibration,
        tuple(notes),
        tuple(warnings),
    )


def _calibration_of(folder: Path, stated: Stated, notes: list[tuple[str, str]]) -> Path:
    others: tuple[Path, ...] = ()
    if stated.calibration.path is not None:
        path = _inside(folder, stated.calibration.path, "calibration.path")
        if path.is_dir():
            path, others = find_calibration(path)
    else:
        try:
            path, others = find_calibration(folder)
        except InputError as error:
            inner = _recordings_in(folder)
            if not inner:
                raise
            raise InputError(
                f"{folder} is not a recording but holds {len(inner)}: {', '.join(inner[:5])}"
                f"{', ...' if len(inner) > 5 else ''}; give one of them"
            ) from error
    if path.name == "extri.yml":
        path = path.with_name("intri.yml")
    ignored = f" (not used: {', '.join(str(p.relative_to(folder)) for p in others)})" if others else ""
    notes.append(("calibration", f"{path.relative_to(folder)}{ignored}"))
    return path


def _recordings_in(folder: Path) -> list[str]:
    inner = []
    for sub in sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "calibration"):
        try:
            find_calibration(sub)
        except (InputError, OSError):
            continue
        inner.append(sub.name)
    return inner


def _find_videos(folder: Path, warnings: list[str]) -> dict[str, Path]:
    """Videos by stem, from the first place that has any."""
    places = []
    for place in _VIDEO_FOLDERS:
        inside = folder / place
        if inside.is_dir():
            files = sorted(
                p
                for p in inside.iterdir()
                if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith(".") and p.is_file()
            )
            if files:
                places.append((place, files))
    if not places:
        return {}
    place, files = places[0]
    if len(places) > 1:
        also = ", ".join("the folder itself" if p == "." else f"{p}/" for p, _ in places[1:])
        warnings.append(f"videos are taken from {place}/; those in {also} are not used")
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise InputError(
                f"{file.parent}: two videos of camera {file.stem}: {found[file.stem].name}, {file.name}"
            )
        found[file.stem] = file
    return found


def _find_keypoints(folder: Path, stated: Stated, warnings: list[str]) -> tuple[dict[str, Path], str]:
    """Keypoint folders by camera, from the first place that has any, and that place."""
    if stated.keypoints.path is not None:
        place = _inside(folder, stated.keypoints.path, "keypoints.path")
        cameras = _camera_folders(place, only_json=False)
        if not cameras:
            raise InputError(
                f"{folder / 'recording.yaml'}: keypoints.path: {place} holds no folder with JSON files"
            )
        return cameras, f"{stated.keypoints.path.rstrip('/')}/ (stated)"
    places = []
    for name in (*_KEYPOINT_FOLDERS, *_OTHER_KEYPOINTS):
        if (folder / name).is_dir():
            cameras = _camera_folders(folder / name, only_json=name == ".")
            if cameras:
                places.append((name, cameras))
    if not places:
        return {}, ""
    name, cameras = places[0]
    others = [p for p, _ in places[1:]]
    shown = "" if name == "." else f"{name}/"
    if others:
        also = ", ".join("*_json beside it" if p == "." else f"{p}/" for p in others)
        warnings.append(
            f"keypoints are taken from {shown or '*_json'}; {also} not used (recording.yaml can name one: "
            "keypoints: {path: ...})"
        )
    return cameras, shown or "<camera>_json"


def _camera_folders(place: Path, *, only_json: bool) -> dict[str, Path]:
    """Folders that hold JSON files, by camera: the folder's name without ``_json``."""
    found: dict[str, Path] = {}
    for sub in sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if only_json and not sub.name.endswith("_json"):
            continue
        if not any(p.suffix.lower() == ".json" for p in sub.iterdir()):
            continue
        name = sub.name.removesuffix("_json")
        if name in found:
            raise InputError(
                f"{place}: two keypoint folders of camera {name}: {found[name].name}, {sub.name}"
            )
        found[name] = sub
    return found


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts cam2 before cam10."""
    return [(0, int(p), p) if p.isdigit() else (1, 0, p.casefold()) for p in re.split(r"(\d+)", name) if p]


def _loose(name: str) -> str:
    """A name without what tools change: case and leading zeros."""
    return re.sub(r"0+(\d)", r"\1", name.casefold()) if name else name


def _pair_names(
    found: Iterable[str], known: Sequence[str], what: str, warnings: list[str]
) -> dict[str, str] | None:
    """Known name → found name; None when they cannot be paired."""
    found = sorted(found, key=_natural)
    if set(found) <= set(known):
        return {n: n for n in found}
    loose = {_loose(n): n for n in known}
    if len(loose) == len(known) and len({_loose(n) for n in found}) == len(found):
        if all(_loose(n) in loose for n in found):
            return {loose[_loose(n)]: n for n in found}
    if len(found) != len(known):
        return None
    pairs = dict(zip(sorted(known, key=_natural), found, strict=True))
    shown = ", ".join(f"{k} = {f}" for k, f in pairs.items())
    warnings.append(f"names of cameras and {what} differ: paired in sorted order: {shown}")
    return pairs


def _match_cameras(
    folder: Path,
    rig: Rig,
    videos: Mapping[str, Path],
    folders: Mapping[str, Path],
    warnings: list[str],
) -> tuple[Rig, dict[str, Path], dict[str, Path]]:
    """The cameras that have a video or keypoints, under the names of these, and each one's files."""

    def listed(names: Iterable[str]) -> str:
        return ", ".join(sorted(names, key=_natural)) or "none"

    def refuse(what: str, names: Iterable[str], known: Iterable[str]) -> InputError:
        return InputError(
            f"{folder}: {what} are of the cameras {listed(names)}, the calibration of {listed(known)}: the names "
            "differ and the counts too; rename one side"
        )

    videos_of = _pair_names(videos, rig.names, "videos", warnings)
    if videos_of is None:
        raise refuse("videos", videos, rig.names)
    by_video = {video: camera for camera, video in videos_of.items()}
    if videos_of and set(folders) <= set(by_video):
        folders_of: dict[str, str] | None = {by_video[n]: n for n in folders}
    else:
        folders_of = _pair_names(folders, rig.names, "keypoints", warnings)
    if folders_of is None:
        raise refuse("keypoints", folders, rig.names)

    used = [n for n in rig.names if n in videos_of or n in folders_of]
    unused = [n for n in rig.names if n not in used]
    if unused:
        warnings.append(f"calibrated but without video and keypoints, so left out: {', '.join(unused)}")
    for name in used:
        if videos and name not in videos_of:
            warnings.append(f"camera {name} has keypoints but no video: no overlay is drawn for it")
    rig = rig.select(used)
    names = tuple(videos_of.get(n) or folders_of[n] for n in used)
    return (
        replace(rig, names=names),
        {new: videos[videos_of[old]] for old, new in zip(used, names, strict=True) if old in videos_of},
        {new: folders[folders_of[old]] for old, new in zip(used, names, strict=True) if old in folders_of},
    )


def _fit_sizes(rig: Rig, videos: Sequence[VideoInfo | None], calibration: Path, warnings: list[str]) -> Rig:
    """Intrinsics for the pictures that the videos hold."""
    for v, (name, video) in enumerate(zip(rig.names, videos, strict=True)):
        w, h = (int(n) for n in rig.size[v])
        if not w:
            # Nothing says how large the calibrated picture was: the video's, or about twice the centre.
            guess = video.size if video else (round(2 * rig.K[v, 0, 2] + 1), round(2 * rig.K[v, 1, 2] + 1))
            size = rig.size.copy()
            size[v] = guess
            rig = replace(rig, size=size)
            source = "the video's" if video else "twice the principal point"
            warnings.append(
                f"{calibration.name} gives no picture size for camera {name}: taken as {source}, "
                f"{guess[0]}x{guess[1]}"
            )
            check_intrinsics(rig, v, f"{calibration}, camera {name!r}")
        elif video and video.size != (w, h):
            ratio = (video.size[0] / video.size[1]) / (w / h)
            if abs(ratio - 1) > 0.01:
                hint = "; is the video turned by 90°?" if abs(ratio * (w / h) ** 2 - 1) < 0.02 else ""
                raise InputError(
                    f"{video.path}: frames are {video.size[0]}x{video.size[1]}, camera {name} was calibrated at "
                    f"{w}x{h} ({calibration.name}): the aspects differ by more than 1 %, so the calibration "
                    f"cannot be rescaled{hint}"
                )
            rig = rig.resized(v, video.size)
            warnings.append(
                f"camera {name}: calibration rescaled from {w}x{h} to the video's {video.size[0]}x{video.size[1]}"
            )
    return rig


# --- time --------------------------------------------------------------------------------------------------------


def common_timeline(times_s: Sequence[Array], rates: Sequence[Fraction]) -> Timeline:
    """Put cameras on one time line: the frames of the slowest one within the span that all share.

    times_s: increasing time stamps of each camera on a common clock, seconds. Every other camera gives its
    nearest frame, no further away than half of its frame interval. ``Timeline.time_s`` is empty when the
    cameras share no time.
    """
    slowest = min(range(len(rates)), key=lambda v: rates[v])
    # Containers round time stamps, Matroska to a millisecond.
    half = [0.5 / float(rate) + 1e-3 for rate in rates]
    start = max(t[0] - h for t, h in zip(times_s, half, strict=True))
    end = min(t[-1] + h for t, h in zip(times_s, half, strict=True))
    grid = times_s[slowest]
    grid = grid[(grid >= start) & (grid <= end)]
    index = np.full((len(times_s), len(grid)), -1, dtype=np.int32)
    for v, times in enumerate(times_s):
        right = np.clip(np.searchsorted(times, grid), 1, max(len(times) - 1, 1))
        left = right - 1
        right = np.minimum(right, len(times) - 1)
        nearest = np.where(grid - times[left] <= times[right] - grid, left, right)
        index[v] = np.where(np.abs(times[nearest] - grid) <= half[v], nearest, -1)
    return Timeline(rates[slowest], grid - grid[0] if len(grid) else grid, index)


def _timeline_of(
    rig: Rig,
    videos: Sequence[VideoInfo | None],
    files: Sequence[KeypointFiles | None],
    stated: Stated,
    folder: Path,
    warnings: list[str],
) -> Timeline:
    for name in stated.frame_offset:
        if name not in rig.names:
            raise InputError(
                f"{folder / 'recording.yaml'}: frame_offset: no camera is called {name!r}; there are "
                f"{', '.join(rig.names)}"
            )
    video_rates = [v.rate for v in videos if v]
    if stated.fps is not None:
        fps = Fraction(str(stated.fps).replace(" ", ""))
        if video_rates:
            warnings.append(
                "fps in recording.yaml is not used for cameras with a video: their time stamps count"
            )
    elif video_rates:
        fps = min(video_rates)
    else:
        fps = Fraction(30)
        warnings.append(
            "no video says how fast the frames follow each other: 30 fps assumed; recording.yaml: fps"
        )

    times: list[Array] = []
    rates: list[Fraction] = []
    for name, video, camera in zip(rig.names, videos, files, strict=True):
        rate = video.rate if video else fps
        if video:
            own = video.times_s - video.times_s[0]
            if camera is not None:
                warnings += _numbering_doubts(name, len(own), camera, stated.keypoints.first_frame)
        else:
            assert camera is not None  # a camera has a video or keypoints
            last = int(camera.numbers[-1]) - stated.keypoints.first_frame
            if last < 0:
                raise InputError(
                    f"{camera.folder}: the last file is number {camera.numbers[-1]}, before keypoints.first_frame "
                    f"{stated.keypoints.first_frame} in recording.yaml"
                )
            if last > 50_000_000:
                raise InputError(
                    f"{camera.folder}: file {camera.file(int(camera.numbers[-1]))} gives frame {last}: the last "
                    "number in a file's name must be its frame"
                )
            own = np.arange(last + 1) / float(rate)
        offset = stated.frame_offset.get(name, 0)
        if abs(offset) >= len(own):
            raise InputError(
                f"{folder / 'recording.yaml'}: frame_offset of {name} is {offset}, but it has {len(own)} frames"
            )
        times.append(own - (own[offset] if offset >= 0 else offset / float(rate)))
        rates.append(rate)

    # Without any video, the span starts where every camera has keypoints.
    first = max(
        (
            t[max(0, int(c.numbers[0]) - stated.keypoints.first_frame)]
            for t, c, v in zip(times, files, videos, strict=True)
            if c is not None and v is None and not video_rates
        ),
        default=-math.inf,
    )
    timeline = common_timeline(times, rates)
    if first > -math.inf and len(timeline):
        origin = timeline_origin(times, rates)
        keep = timeline.time_s + origin >= first - 1e-6
        kept = timeline.time_s[keep]
        timeline = replace(
            timeline,
            time_s=kept - kept[0] if len(kept) else kept,
            frame_index=timeline.frame_index[:, keep],
        )
    if not len(timeline):
        spans = ", ".join(f"{n} {t[0]:.2f} to {t[-1]:.2f} s" for n, t in zip(rig.names, times, strict=True))
        raise InputError(
            f"{folder}: the cameras share no time: {spans}; check frame_offset in recording.yaml"
        )
    lengths = [len(t) for t in times]
    cut = [
        f"{n} {length}"
        for n, length, index in zip(rig.names, lengths, timeline.frame_index, strict=True)
        if length - 1 > index.max() or index[index >= 0].min(initial=0) > 0
    ]
    if cut:
        warnings.append(
            f"the cameras share {len(timeline)} frames ({float(len(timeline) / timeline.rate):.2f} s); the rest of "
            f"{', '.join(cut)} frames is not used"
        )
    if len(set(rates)) > 1:
        shown = ", ".join(f"{n} {float(r):.6g}" for n, r in zip(rig.names, rates, strict=True))
        warnings.append(f"frame rates differ ({shown} fps): frames are matched by time stamp")
    gaps = (timeline.frame_index < 0).sum(1)
    for name, count in zip(rig.names, gaps, strict=True):
        if count:
            warnings.append(f"camera {name} has no frame at {count} of {len(timeline)} instants")
    return timeline


def timeline_origin(times_s: Sequence[Array], rates: Sequence[Fraction]) -> float:
    """The instant of the common clock at which ``common_timeline`` starts."""
    slowest = min(range(len(rates)), key=lambda v: rates[v])
    start = max(t[0] - 0.5 / float(r) - 1e-3 for t, r in zip(times_s, rates, strict=True))
    grid = times_s[slowest]
    return float(grid[np.searchsorted(grid, start)])


def _numbering_doubts(name: str, frames: int, files: KeypointFiles, first_frame: int) -> list[str]:
    doubts = []
    lowest, highest = int(files.numbers[0]) - first_frame, int(files.numbers[-1]) - first_frame
    if lowest > 0 and not first_frame:
        doubts.append(
            f"keypoint files of {name} start at number {lowest}: taken as video frame {lowest}; if it belongs to the "
            f"first frame, state keypoints: {{first_frame: {lowest}}} in recording.yaml"
        )
    beyond = int((files.numbers - first_frame >= frames).sum())
    if beyond:
        doubts.append(
            f"{beyond} keypoint files of {name} are numbered past its video's last frame ({frames - 1}): not used"
        )
    if highest < 0:
        doubts.append(f"all keypoint files of {name} are numbered before keypoints.first_frame")
    return doubts


# --- people: format, unit ----------------------------------------------------------------------------------------


def spread_frames(frames: Array | NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most ``count`` of these, evenly spread."""
    at = np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(np.int64))
    return np.asarray(frames, dtype=np.int64)[at] if len(frames) else np.empty(0, dtype=np.int64)


def _check_people(
    folder: Path,
    rig: Rig,
    files: Sequence[KeypointFiles | None],
    timeline: Timeline,
    stated: Stated,
    warnings: list[str],
) -> tuple[Rig, KeypointFormat]:
    """Keypoint format and unit of the calibration, from the limbs of the person on whom the views agree."""
    first_frame = stated.keypoints.first_frame
    numbers = np.where(timeline.frame_index >= 0, timeline.frame_index.astype(np.int64) + first_frame, -1)
    have = np.stack(
        [c.has(n) if c is not None else np.zeros(len(n), bool) for c, n in zip(files, numbers, strict=True)]
    )
    both = np.flatnonzero(have.sum(0) >= 2)
    if not len(both):
        raise InputError(
            f"{folder}: at no instant do two cameras have a keypoint file; check the frame numbers in the file names"
        )
    points = _point_count(folder, rig, files, numbers[:, spread_frames(both, 10 * _SAMPLE)], stated)
    known = KeypointFormat(
        stated.keypoints.format or formats_with(points)[0], "stated in recording.yaml", *[math.nan] * 2
    )

    raw = np.empty(0)
    bodies: Array = np.empty((0, points, 3))
    guesses = {stated.calibration.unit or "m": 1.0}
    if stated.calibration.unit is None:
        guesses |= {"mm": UNITS["mm"], "cm": UNITS["cm"]}
    candidates = formats_with(points)
    for count in (_SAMPLE, 10 * _SAMPLE):  # more when the person is seldom there
        raw = read_views(files, numbers[:, spread_frames(both, count)], points)
        known = _conventions(folder, rig, raw, known)
        image = _to_pixels(raw, known, rig.size)
        scale, unit, bodies = 1.0, "m", np.empty((0, points, 3))
        for guess, guess_scale in guesses.items():
            found = _bodies(in_metres(rig, guess_scale), image)
            size = _body_size(found, candidates)
            if 0.5 < size < 2.5 or (len(guesses) == 1 and len(found)):
                scale, unit, bodies = guess_scale, str(guess), found
                break
        if len(bodies) >= 10 or count >= len(both):
            break
    rig = in_metres(rig, scale)
    spread = float(np.linalg.norm(rig.centres[:, None] - rig.centres[None], axis=-1).max())
    if scale != 1.0:
        warnings.append(
            f"the calibration seems to be in {unit}: the person's limbs measure {_body_size(bodies, candidates):.2f} m "
            f"and the cameras stand up to {spread:.1f} m apart if so; state it in recording.yaml, "
            f"calibration: {{unit: {unit}}}"
        )
    elif not len(bodies):
        warnings.append(
            "in the frames looked at, no two views agree on a person of human size: calibration, its unit, "
            "frame numbers or synchronisation may be wrong"
        )
        if stated.calibration.unit is None and spread > 100:
            rig = in_metres(rig, UNITS["mm"])
            warnings.append(
                f"cameras would stand {spread:.0f} m apart: the calibration is taken to be in mm; state it in "
                "recording.yaml, calibration: {unit: mm}"
            )
    outside = _outside(_to_pixels(raw, known, rig.size), rig)
    for name, share in zip(rig.names, outside, strict=True):
        if share > 0.05:
            warnings.append(
                f"camera {name}: {100 * share:.0f} % of the keypoints lie outside its picture: were they made on "
                "pictures of another size?"
            )
    if known.confidence_scale != 1.0:
        warnings.append(
            f"keypoint confidences reach {known.confidence_scale:.2f}: divided by this so that they end at 1"
        )
    if known.normalised:
        warnings.append("keypoint coordinates lie between 0 and 1: taken as fractions of the picture")
    return rig, _decide_format(folder, bodies, points, stated, known, warnings)


def _point_count(
    folder: Path,
    rig: Rig,
    files: Sequence[KeypointFiles | None],
    numbers: NDArray[np.int64],
    stated: Stated,
) -> int:
    """Points a person in the files: the same in all cameras, and that of a known format."""
    per_camera: dict[str, int] = {}
    looked = 0
    for v, (name, camera) in enumerate(zip(rig.names, files, strict=True)):
        counts: Counter[int] = Counter()
        for number in numbers[v]:
            file = camera.file(int(number)) if camera is not None and number >= 0 else None
            if file is not None:
                looked += 1
                counts.update(count_points(file))
            if counts.total() >= 10:
                break
        if counts:
            per_camera[name] = counts.most_common(1)[0][0]
    wanted = stated.keypoints.format
    if not per_camera:
        if wanted:
            return len(FORMATS[wanted])
        raise InputError(f"{folder}: nobody in any of the {looked} keypoint files looked at")
    found = set(per_camera.values())
    if len(found) > 1:
        shown = ", ".join(f"{n} {c}" for n, c in per_camera.items())
        raise InputError(
            f"{folder}: cameras have different numbers of keypoints ({shown}): all need one format"
        )
    points = found.pop()
    if wanted and len(FORMATS[wanted]) != points:
        raise InputError(
            f"{folder / 'recording.yaml'}: keypoints.format {wanted} has {len(FORMATS[wanted])} points, the files have "
            f"{points}"
        )
    if not formats_with(points):
        shown = ", ".join(f"{n} ({len(p)})" for n, p in FORMATS.items())
        raise InputError(f"{folder}: {points} keypoints a person is none of the known formats: {shown}")
    return points


def _conventions(folder: Path, rig: Rig, raw: Floats, known: KeypointFormat) -> KeypointFormat:
    """Whether coordinates are fractions and confidences exceed 1."""
    seen = raw[..., 2] > 0
    if not seen.any():
        return known
    xy, top = raw[..., :2][seen], float(raw[..., 2].max())
    normalised = bool(np.abs(xy).max() <= 1.0)
    if normalised and xy.min() < -0.05:
        raise InputError(
            f"{folder}: keypoint coordinates lie between −1 and 1; write them in pixels (OpenPose --keypoint_scale 0)"
        )
    return replace(known, normalised=normalised, confidence_scale=top if top > 1.001 else 1.0)


def _outside(image: Floats, rig: Rig) -> Array:
    """(V,) share of the points that lie outside the picture by more than a tenth of it."""
    seen = image[..., 2] > 0
    size = rig.size[:, None, None, None].astype(np.float64)
    with np.errstate(invalid="ignore"):
        out = ((image[..., :2] < -0.1 * size) | (image[..., :2] > 1.1 * size)).any(-1) & seen
    axes = (1, 2, 3)
    return np.asarray(out.sum(axes) / np.maximum(seen.sum(axes), 1))


def _bodies(rig: Rig, image: Floats) -> Array:
    """3D points (N, K, 3) of the best-agreed person in each frame that has one, in file order."""
    xy = np.stack([rig.undistort(v, image[v, ..., :2]) for v in range(len(rig))])
    proposals = propose(rig, xy, image[..., 2].astype(np.float64), MatchConfig())
    there = proposals.score[:, 0] > 0
    chosen = proposals.person[there, 0].T
    picked = pick_people(image[:, there], chosen, np.nan)
    best_xy = pick_people(xy[:, there].astype(np.float32), chosen, np.nan)
    return triangulate(rig, best_xy, np.nan_to_num(picked[..., 2])).points


def _body_size(bodies: Array, candidates: Sequence[str]) -> float:
    """Upper arm + forearm + thigh + shin, metres, in the format that fits best: about 1.3 for an adult."""
    costs = {name: limb_inconsistency(bodies, name) for name in candidates}
    usable = {name: cost for name, cost in costs.items() if cost == cost}
    return limb_length(bodies, min(usable, key=usable.__getitem__)) if usable else math.nan


def _decide_format(
    folder: Path,
    bodies: Array,
    points: int,
    stated: Stated,
    known: KeypointFormat,
    warnings: list[str],
) -> KeypointFormat:
    costs = {name: limb_inconsistency(bodies, name) for name in formats_with(points)}
    order = sorted(costs, key=lambda n: (math.isnan(costs[n]), costs[n]))
    best = order[0]
    margin = costs[order[1]] / max(costs[best], 1e-6) if len(order) > 1 else math.nan
    shown = ", ".join(f"{n} {100 * costs[n]:.0f} %" for n in order)
    ask = "state it in recording.yaml, keypoints: {format: ...}"
    wanted = stated.keypoints.format
    if wanted:
        if best != wanted and margin > _MARGIN:
            warnings.append(
                f"recording.yaml states {wanted}, but limbs are {margin:.1f} times more constant read as {best} ({shown})"
            )
        others = [costs[n] for n in order if n != wanted]
        margin = others[0] / max(costs[wanted], 1e-6) if others else math.nan
        return replace(known, name=wanted, inconsistency=costs[wanted], margin=margin)
    if math.isnan(costs[best]):
        if len(order) == 1:
            warnings.append(
                f"{points} keypoints are taken as {best}, unchecked: too few frames show limbs in two views"
            )
            return replace(known, name=best, how="the only known format with as many points, unchecked")
        raise InputError(
            f"{folder}: {points} keypoints can be {' or '.join(order)}, and too few frames show a person's limbs in two "
            f"views to tell; {ask}"
        )
    if costs[best] > _INCONSISTENT or margin < _MARGIN:
        raise InputError(
            f"{folder}: the keypoint format cannot be told: limb lengths vary too much or alike under each candidate "
            f"({shown}); {ask}"
        )
    how = f"found: limb lengths vary {100 * costs[best]:.0f} %"
    if len(order) > 1:
        how += f", {margin:.1f} times less than as {order[1]}"
    return replace(known, name=best, how=how, inconsistency=costs[best], margin=margin)


def _describe(
    video: VideoInfo | None, files: KeypointFiles | None, size: NDArray[np.int64], folder: Path
) -> str:
    parts = []
    if video:
        parts.append(
            f"{video.path.relative_to(folder)} ({video.codec} {size[0]}x{size[1]}, {len(video.times_s)} frames at "
            f"{float(video.rate):.6g} fps)"
        )
    else:
        parts.append("no video")
    parts.append(f"{len(files)} files in {files.folder.relative_to(folder)}" if files else "no keypoints")
    return ", ".join(parts)
