"""A recording folder: find its videos, keypoints and calibration, and put its cameras on one time line.

What is found and what is guessed is kept as text beside the data, to be printed before work starts.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from pipeline.calibration import (
    UNITS,
    calibration_doubts,
    check_intrinsics,
    find_calibration,
    in_metres,
    is_estimated,
    read_calibration,
)
from pipeline.cameras import Array, Rig
from pipeline.config import Config, load
from pipeline.errors import InputError
from pipeline.joints import FORMATS
from pipeline.keypoints import (
    MIN_CONFIDENCE,
    Floats,
    KeypointFiles,
    count_points,
    index_keypoints,
    read_people,
    read_views,
)
from pipeline.skeletons import (
    AGREES,
    TOP_CONFIDENCE,
    USUAL_TOP,
    KeypointFormat,
    best_bodies,
    body_size,
    decide_format,
    decide_format_in_pictures,
    find_bodies,
    find_exchanged,
    find_scales,
    find_unit,
    formats_with,
    share_outside,
    shows_together,
    to_body_25,
    to_pixels,
)
from pipeline.timeline import Timeline, common_timeline, spread
from pipeline.video import VideoInfo, probe

VIDEO_SUFFIXES: Final = (".mp4", ".mkv", ".webm", ".avi", ".mov")
_VIDEO_FOLDERS: Final = ("videos", "video", ".")
_KEYPOINT_FOLDERS: Final = ("keypoints", "pose", "openpose", ".", "pose-sync", "pose-associated")

_LONELY: Final = 0.8
"""A camera is named that agrees with no other in this share of the sampled frames in which it shows somebody
and some cameras agree. Before a run only the hopeless are named; ``AGREES`` decides on a closer look."""
_FEW: Final = 5
"""No camera is doubted for fewer frames than this, whatever their share is."""

_DRAWN: Final = re.compile(r"((overlay|mesh|skeleton)_.+|mosaic|side|turntable)(\.part)?\.mp4")
"""What is drawn from results, which may be into the recording's own folder."""

FOCAL_BY_SIDE: Final = 1.0
"""Focal length over the longer side of the picture where nothing tells it: 53° across, between a telephone's
video (0.75 to 0.9) and a camera's (1 to 1.4)."""

_LEVEL: Final = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
"""World → camera of a level camera where z is up and it looks along y."""

_NOT_THE_PERSON: Final = "not the person"
"""Reason that a camera with people in its keypoints does not show the person."""
_ALONE: Final = "no second view"
"""Reason that a camera is the only one with people: nobody can tell whether it shows the person."""
_LEFT_OUT: Final = 0.5
"""A camera is warned of that a run did not use in this share of the frames in which it and another show
somebody. Lower than ``_LONELY``, as here every frame was looked at and the person is known."""

_SAMPLE: Final = 40
"""Frames, spread over the recording, on which format, scales and unit are checked."""


class StatedKeypoints(Config):
    """The ``keypoints`` of recording.yaml."""

    format: str | None = None
    """A name in ``joints.FORMATS``, as BODY_25 or body_25."""
    path: str | None = None
    """The folder that holds one folder a camera."""
    first_frame: int | None = Field(default=None, ge=0)
    """Number of the keypoint file that belongs to a video's first frame; 0 unless only 1 can be."""

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
    focal_px: float | dict[str, float] | None = None
    """Focal length in pixels of the videos, of all cameras or by camera, where there is no calibration."""
    picture_size: tuple[int, int] | None = None
    """Width and height, where there is neither a calibration nor a video that says it."""
    fps: float | str | None = None
    """Frames a second where no video says so; a fraction such as 30000/1001 as text."""

    @field_validator("frame_offset", "focal_px", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        # YAML reads a camera called 1 as a number.
        return {str(k): v for k, v in value.items()} if isinstance(value, dict) else value

    @field_validator("focal_px")
    @classmethod
    def _positive_focal(cls, value: float | dict[str, float] | None) -> float | dict[str, float] | None:
        for focal in value.values() if isinstance(value, dict) else [value]:
            if focal is not None and not 0 < focal < math.inf:
                raise ValueError(f"{focal} must be positive: pixels")
        return value

    @field_validator("picture_size")
    @classmethod
    def _possible_size(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not all(1 <= n <= 100_000 for n in value):
            raise ValueError(f"{list(value)} must be a width and a height in pixels")
        return value

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


def _inside(folder: Path, stated: str, key: str) -> Path:
    path = folder / stated
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder / 'recording.yaml'}: {key}: {stated!r} leaves the recording's folder")
    if not path.exists():
        raise InputError(f"{folder / 'recording.yaml'}: {key}: {path} does not exist")
    return path


@dataclass(frozen=True)
class Recording:
    """A recording, ready to be read. Cameras are in the order of ``rig``."""

    path: Path
    rig: Rig
    """Sizes and intrinsics are those of the videos. Without a calibration, a guess: see ``placed``."""
    videos: tuple[VideoInfo | None, ...]
    keypoints: tuple[KeypointFiles | None, ...]
    format: KeypointFormat
    first_frame: int
    """Number of the keypoint file that belongs to frame 0 of a camera."""
    timeline: Timeline
    calibration: Path | None
    """None where there is none."""
    focal_stated: tuple[bool, ...]
    """Whether the focal length of each camera is known where there is no calibration."""
    notes: tuple[tuple[str, str], ...]
    """What was found and how: rows of a table."""
    warnings: tuple[str, ...]
    """What was guessed or looks wrong, in sentences."""

    def __len__(self) -> int:
        return len(self.timeline)

    @property
    def placed(self) -> bool:
        """Whether the rig's poses are known: from a calibration, or since there is one camera only.

        Else all cameras stand in the same place, until they are estimated (``stages/calibrate.py``).
        """
        return self.calibration is not None or len(self.rig) == 1

    def keypoint_numbers(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """(V, len(frames)) number of the keypoint file of each camera at these instants; −1 for none."""
        index = self.timeline.frame_index[:, frames]
        return np.where(index >= 0, index + self.first_frame, -1)

    def people(self, frames: NDArray[np.int64], min_confidence: float = MIN_CONFIDENCE) -> Floats:
        """Everybody in these frames, as detected: (V, T, D, 25, 3) of x, y (pixels of the video frame,
        distorted) and confidence, in BODY_25; NaN, NaN, 0 where missing."""
        raw = read_views(self.keypoints, self.keypoint_numbers(frames), self.format.points)
        return to_body_25(to_pixels(raw, self.format, self.rig.size, min_confidence), self.format.name)

    def camera_times(self, frames: NDArray[np.int64]) -> Array:
        """(V, len(frames)) seconds on each camera's own clock, from its first frame; NaN for no frame."""
        index = self.timeline.frame_index[:, frames]
        own = [
            i / float(rate) if video is None else video.times_s[np.maximum(i, 0)] - video.times_s[0]
            for i, rate, video in zip(index, self.timeline.rates, self.videos, strict=True)
        ]
        return np.where(index >= 0, np.stack(own), np.nan)

    def undistort(self, xy_px: Floats) -> Array:
        """(V, ..., 2) pixels of the video frames → pixels of the ideal pinhole cameras."""
        return np.stack([self.rig.undistort(v, xy_px[v].astype(np.float64)) for v in range(len(self.rig))])


@dataclass(frozen=True)
class MissingData:
    """Why one camera does not show the person at some instants."""

    frames: Mapping[str, int]
    """Reason → instants."""
    examples: Mapping[str, str]
    """Reason → the first keypoint file it holds for, where there is a file."""


def missing_data(recording: Recording, seen: NDArray[np.bool_]) -> tuple[MissingData, ...]:
    """Count, camera by camera, why the person is not there.

    seen: (V, T) the camera shows the person, as the results have it. The files of the other instants are read
    again, so that the counts do not depend on how many runs it took.
    """
    shows = seen.copy()
    found: list[list[tuple[int, str, Path | None]]] = []
    for v, camera in enumerate(recording.keypoints):
        found.append([])
        at = np.flatnonzero(~seen[v])
        for instant, number in zip(at, recording.keypoint_numbers(at)[v], strict=True):
            file = camera.file(int(number)) if camera is not None and number >= 0 else None
            if file is None:
                reason = "no keypoint file" if number >= 0 else "no video frame"
            else:
                people, reason = read_people(file, recording.format.points)
                shows[v, instant] = len(people) > 0
            found[v].append((int(instant), reason, file))
    alone = (shows.sum(0) == 1) & (len(shows) > 1)
    out = []
    for v, instants in enumerate(found):
        frames: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for t, reason, file in instants:
            if shows[v, t]:
                reason = _ALONE if alone[t] else _NOT_THE_PERSON
            if file is not None:
                examples.setdefault(reason, file.name)
            frames[reason] += 1
        out.append(MissingData(dict(frames), examples))
    return tuple(out)


def left_out(cameras: Sequence[str], missing: Sequence[MissingData], seen: NDArray[np.bool_]) -> list[str]:
    """A sentence for each camera that shows people but, mostly, not the one whom the others show.

    missing, seen: as of ``missing_data``. The results are then those of the other cameras.
    """
    unused = np.array([m.frames.get(_NOT_THE_PERSON, 0) for m in missing])
    return [
        f"camera {name} was left out of the fit in {out} of the {shows} frames in which it and another show "
        "somebody, as that is not where the others see the person: exchanged with another camera, moved, out "
        "of sync, or somebody else? The command info looks into it"
        for name, out, shows in zip(cameras, unused, unused + seen.sum(1), strict=True)
        if out >= max(_FEW, _LEFT_OUT * shows)
    ]


def is_recording(folder: Path, inherit: Path | None = None) -> bool:
    """Whether there are keypoints where ``find_recording`` looks, or videos and a calibration."""
    chain = _chain(folder, inherit)
    stated = _stated(chain)
    somewhere = stated.keypoints.path
    if (somewhere is None or (folder / somewhere).is_dir()) and _find_keypoints(folder, stated, [])[0]:
        return True
    return bool(_find_videos(folder, (), [])) and any(find_calibration(place)[0] for place in chain)


def sources(folder: Path, inherit: Path | None = None) -> Iterator[Path]:
    """What a run of this folder would read: files of settings and cameras, videos, folders of keypoints.

    Raises ``InputError`` or ``OSError`` where it cannot be told.
    """
    chain = _chain(folder, inherit)
    yield from (file for place in chain if (file := place / "recording.yaml").exists())
    stated = _stated(chain)
    calibration = _calibration_of(chain, stated, [])
    if calibration is not None:
        yield calibration
        if calibration.name == "intri.yml":
            yield calibration.with_name("extri.yml")
    yield from _find_videos(folder, (), []).values()
    yield from _find_keypoints(folder, stated, [])[0].values()


def _chain(folder: Path, inherit: Path | None) -> tuple[Path, ...]:
    """The folders from ``inherit`` down to ``folder``."""
    if inherit is None:
        return (folder,)
    steps = folder.relative_to(inherit).parts
    return tuple(inherit.joinpath(*steps[:n]) for n in range(len(steps) + 1))


def _stated(chain: Sequence[Path]) -> Stated:
    return load(Stated, [file for place in chain if (file := place / "recording.yaml").exists()])


def find_recording(path: Path | str, inherit: Path | None = None) -> Recording:
    """Find, match and check everything in a recording's folder.

    inherit: a folder above this one. What recording.yaml says there and in the folders between holds here
    too, unless it is said otherwise further down, and so does a calibration that lies there.

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
    try:
        return _find(folder, _chain(folder, inherit))
    except OSError as error:
        raise InputError(f"{error.filename or folder}: cannot be read: {error.strerror or error}") from error


def _find(folder: Path, chain: Sequence[Path]) -> Recording:
    """chain: the folders whose settings and calibration hold, from the top down to this one."""
    stated = _stated(chain)
    warnings: list[str] = []
    notes: list[tuple[str, str]] = []

    calibration = _calibration_of(chain, stated, notes)
    unit = stated.calibration.unit
    stated_scale = None if unit is None else UNITS[unit] if isinstance(unit, str) else unit
    rig = read_calibration(calibration, metres_per_unit=stated_scale or 1.0) if calibration else None

    video_files = _find_videos(folder, rig.names if rig else (), warnings)
    folders, keypoints_at = _find_keypoints(folder, stated, warnings)
    if not folders:
        inner = _recordings_in(folder)
        if rig is None and inner:
            raise InputError(
                f"{folder} is not a recording but holds {len(inner)}: {', '.join(inner[:5])}"
                f"{', ...' if len(inner) > 5 else ''}; give one of them"
            )
        raise InputError(
            f"{folder}: no keypoints found; expected keypoints/<camera>/*.json (also <camera>_json, or pose/ "
            "as Pose2Sim writes it) in OpenPose JSON, one file a frame"
        )
    whose = "the calibration"
    if rig is None:
        whose = "the videos" if len(video_files) >= len(folders) else "the keypoints"
        rig, video_files = _unknown_rig(folder, video_files, folders, warnings)
    rig, matched_videos, matched_folders = _match_cameras(folder, rig, video_files, folders, whose, warnings)

    videos = tuple(probe(matched_videos[n]) if n in matched_videos else None for n in rig.names)
    for video in videos:
        warnings += video.warnings if video else ()
    focal_stated = tuple([False] * len(rig))
    if calibration:
        rig = _fit_sizes(rig, videos, calibration, warnings)
        if is_estimated(calibration):
            warnings.append(
                f"{calibration.name} was estimated from a person: lengths in metres are only as good as the "
                "body's, and up is a guess"
            )
        if stated.focal_px is not None:
            warnings.append("recording.yaml: focal_px is not used where there is a calibration")
    else:
        rig, focal_stated = _guess_intrinsics(folder, rig, videos, stated, warnings)

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
    if len(rig) > 1 and sum(f is not None for f in indexed) < 2:
        raise InputError(
            f"{folder}: fewer than two of the {len(rig)} cameras have keypoint files; add those of another, "
            "or make a recording of that camera alone"
        )

    first_frame = _first_frame(stated, videos, indexed, notes)
    timeline = _timeline_of(folder, rig, videos, indexed, stated, first_frame, warnings)
    if calibration and len(rig) > 1:
        rig, known = _check_people(folder, rig, indexed, timeline, stated, first_frame, warnings)
        warnings += calibration_doubts(rig)
    else:
        known = _check_pictures(folder, rig, indexed, timeline, stated, first_frame, warnings)

    notes.append(("keypoints", f"{keypoints_at}: {known.name}, {known.how}"))
    duration = f"{timeline.duration_s:.2f} s at {float(timeline.rate):.6g} fps"
    notes.append(("time line", f"{len(timeline)} frames, {duration}"))
    for v, name in enumerate(rig.names):
        notes.append((f"camera {name}", _describe(videos[v], indexed[v], rig.size[v], folder)))
    return Recording(
        path=folder,
        rig=rig,
        videos=videos,
        keypoints=tuple(indexed),
        format=known,
        first_frame=first_frame,
        timeline=timeline,
        calibration=calibration,
        focal_stated=focal_stated,
        notes=tuple(notes),
        warnings=tuple(warnings),
    )


def _calibration_of(chain: Sequence[Path], stated: Stated, notes: list[tuple[str, str]]) -> Path | None:
    """The nearest calibration: the folder's own, then those of the folders above."""
    folder, wanted = chain[-1], stated.calibration.path
    for place in reversed(chain):
        if wanted is None:
            path, others = find_calibration(place)
        elif (place / wanted).exists() or place == chain[0]:
            path, others = _inside(place, wanted, "calibration.path"), ()
            if path.is_dir():
                where = path
                path, others = find_calibration(where)
                if path is None:
                    raise InputError(
                        f"{place / 'recording.yaml'}: calibration.path: {where} holds no calibration"
                    )
        else:
            continue
        if path is not None:
            break
    if path is None:
        return None
    if path.name == "extri.yml":
        path = path.with_name("intri.yml")
    shown = [os.path.relpath(p, folder) for p in (path, *others)]
    notes.append(("calibration", shown[0] + (f" (not used: {', '.join(shown[1:])})" if others else "")))
    return path


def _unknown_rig(
    folder: Path, videos: Mapping[str, Path], folders: Mapping[str, Path], warnings: list[str]
) -> tuple[Rig, dict[str, Path]]:
    """Cameras of which only the names are known, and their videos.

    Named after the videos, or after the keypoints if these are more.
    """
    names = sorted(videos if len(videos) >= len(folders) else folders, key=_natural)
    paired = _pair_names(folder, folders, {n: n for n in names}, "keypoints", "the videos", [])
    without = [n for n in names if n not in paired]
    if without:
        warnings.append(
            f"without a calibration nothing tells where a camera without keypoints stands, so left out: "
            f"{', '.join(without)}"
        )
        names = [n for n in names if n in paired]
    v = len(names)
    rig = Rig(
        tuple(names),
        np.tile(np.eye(3), (v, 1, 1)),
        np.zeros((v, 8)),
        np.tile(_LEVEL, (v, 1, 1)),
        np.zeros((v, 3)),
        np.zeros((v, 2), dtype=np.int64),
    )
    return rig, {n: file for n, file in videos.items() if n not in without}


def _guess_intrinsics(
    folder: Path, rig: Rig, videos: Sequence[VideoInfo | None], stated: Stated, warnings: list[str]
) -> tuple[Rig, tuple[bool, ...]]:
    """Pinhole cameras of stated or assumed focal length, and which of them are stated."""
    focal = stated.focal_px
    for name in focal if isinstance(focal, dict) else ():
        if name not in rig.names:
            raise InputError(
                f"{folder / 'recording.yaml'}: focal_px: no camera is called {name!r}; "
                f"known: {', '.join(rig.names)}"
            )
    k, sizes, known = [], [], []
    for name, video in zip(rig.names, videos, strict=True):
        size = video.size if video else stated.picture_size
        if size is None:
            raise InputError(
                f"{folder}: camera {name} has neither a calibration nor a video: state how large its "
                "pictures are in recording.yaml, picture_size: [width, height]"
            )
        own = focal.get(name) if isinstance(focal, dict) else focal
        known.append(own is not None)
        f = own or FOCAL_BY_SIDE * max(size)
        k.append([[f, 0, (size[0] - 1) / 2], [0, f, (size[1] - 1) / 2], [0, 0, 1]])
        sizes.append(size)
    rig = replace(rig, K=np.array(k, np.float64), size=np.array(sizes, np.int64))
    for v, name in enumerate(rig.names):
        check_intrinsics(rig, v, f"{folder / 'recording.yaml'}, focal_px of camera {name!r}")
    cameras = "the camera is" if len(rig) == 1 else "the cameras are"
    then = (
        "run guesses which way is up from the person it sees"
        if len(rig) == 1
        else "run estimates where they stand from the person they see"
    )
    assumed = [n for n, is_known in zip(rig.names, known, strict=True) if not is_known]
    guess = (
        f"; the focal length of {', '.join(assumed)} is assumed to be {FOCAL_BY_SIDE:g} × the longer side of "
        "the picture (recording.yaml can state it: focal_px: ...)"
        if assumed
        else ""
    )
    warnings.append(f"no calibration found: {cameras} taken to stand still, and {then}{guess}")
    return rig, tuple(known)


def _recordings_in(folder: Path) -> list[str]:
    inner = []
    for sub in sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "calibration"):
        try:
            if find_calibration(sub)[0] or is_recording(sub):
                inner.append(sub.name)
        except (InputError, OSError):
            continue
    return inner


def _find_videos(folder: Path, cameras: Sequence[str], warnings: list[str]) -> dict[str, Path]:
    """Videos by stem, from the first place that has any; not what an earlier run drew there."""
    places = []
    for place in _VIDEO_FOLDERS:
        inside = folder / place
        if inside.is_dir():
            files = sorted(
                p
                for p in inside.iterdir()
                if p.suffix.lower() in VIDEO_SUFFIXES
                and not p.name.startswith(".")
                and (p.stem in cameras or not _DRAWN.fullmatch(p.name))
                and p.is_file()
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
    for name in _KEYPOINT_FOLDERS:
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
        with os.scandir(sub) as entries:
            if not any(e.name.lower().endswith(".json") for e in entries):
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
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p.casefold()) for p in re.split(r"(\d+)", name) if p]


def _loose(name: str) -> str:
    """A name without what tools change: case and leading zeros."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", name.casefold())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names, key=_natural)) or "none"


def _pair_names(
    folder: Path, found: Iterable[str], known: Mapping[str, str], what: str, whose: str, warnings: list[str]
) -> dict[str, str]:
    """Camera → found name. Equal names go together, then those that differ in case or leading zeros.

    What is left then is a guess, and said: one on either side, or, where no two names are alike, all of them
    in sorted order. known: camera by every name that it has. what, whose: for messages, what is found and
    what names the cameras.

    Raises ``InputError`` when nothing tells which is which.
    """
    names, cameras = sorted(found, key=_natural), sorted({*known.values()}, key=_natural)
    pairs: dict[str, str] = {}
    left = list(names)
    for spelt in (str, _loose):
        owners: dict[str, set[str]] = {}
        for name, camera in known.items():
            if camera not in pairs:
                owners.setdefault(spelt(name), set()).add(camera)
        alike = Counter(map(spelt, left))
        for name in list(left):
            of = owners.get(spelt(name), set()).difference(pairs)
            if len(of) == alike[spelt(name)] == 1:
                pairs[of.pop()] = name
                left.remove(name)
    if not left:
        return pairs
    rest = [camera for camera in cameras if camera not in pairs]
    if not pairs and len(left) == len(rest):
        pairs = dict(zip(rest, left, strict=True))
        shown = ", ".join(f"{k} = {f}" for k, f in pairs.items())
        warnings.append(
            f"the names in {whose} and those of the {what} differ: paired in sorted order: {shown}; rename "
            "one side if that is wrong"
        )
        return pairs
    sides = (whose, cameras), ("the videos", sorted(known.keys() - {*cameras}, key=_natural))
    counted = [side for side in sides if _count_from_elsewhere(side[1], names)]
    if len(left) == len(rest) == 1 and left[0] not in known and not counted:
        warnings.append(
            f"names differ: camera {rest[0]} of {whose} is taken to be {left[0]} of the {what}, as each is "
            "the only one left over; give both the same name"
        )
        return pairs | {rest[0]: left[0]}
    if counted:
        whose, cameras = counted[0]
        reason = "they may count from different numbers, or one name may be wrong"
    elif rest:
        reason = f"nothing tells which of {_listed(rest)} is meant by {_listed(left)}"
    else:
        reason = f"{whose} has no camera for {_listed(left)}"
    raise InputError(
        f"{folder}: {what} are of the cameras {_listed(names)}, {whose} of {_listed(cameras)}: {reason}; "
        "rename one side"
    )


def _count_from_elsewhere(known: Sequence[str], found: Sequence[str]) -> bool:
    """Whether two sorted lists of names differ in numbers alone, and by the same in every name: cam0 to cam3,
    cam1 to cam4."""

    def parts(name: str) -> tuple[list[str], list[int]]:
        split = re.split(r"(\d+)", name.casefold())
        return split[::2], [int(number) for number in split[1::2]]

    if len(known) != len(found):
        return False
    steps = set()
    for (words, numbers), (other_words, others) in zip(map(parts, known), map(parts, found), strict=True):
        if words != other_words:
            return False
        steps.add(tuple(b - a for a, b in zip(numbers, others, strict=True)))
    return len(steps) == 1


def _match_cameras(
    folder: Path,
    rig: Rig,
    videos: Mapping[str, Path],
    folders: Mapping[str, Path],
    whose: str,
    warnings: list[str],
) -> tuple[Rig, dict[str, Path], dict[str, Path]]:
    """The cameras that have a video or keypoints, under the names of these, and each one's files.

    whose: what the names of the rig are from, for messages.
    """
    known = {n: n for n in rig.names}
    videos_of = _pair_names(folder, videos, known, "videos", whose, warnings)
    known |= {video: camera for camera, video in videos_of.items()}
    folders_of = _pair_names(folder, folders, known, "keypoints", whose, warnings)

    used = [n for n in rig.names if n in videos_of or n in folders_of]
    unused = [n for n in rig.names if n not in used]
    if unused:
        warnings.append(f"calibrated but without video and keypoints, so left out: {', '.join(unused)}")
    for name in used:
        if videos and name not in videos_of:
            warnings.append(f"camera {name} has keypoints but no video: it is drawn on grey")
    rig = rig.select(used)
    names = tuple(videos_of.get(n) or folders_of[n] for n in used)
    if len(set(names)) < len(names):
        names = tuple(used)
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
                    f"{video.path}: frames are {video.size[0]}x{video.size[1]}, but camera {name} was "
                    f"calibrated at {w}x{h} ({calibration.name}): the aspects differ by over 1 %, so the "
                    f"calibration cannot be rescaled{hint}"
                )
            rig = rig.resized(v, video.size)
            warnings.append(
                f"camera {name}: calibration rescaled from {w}x{h} to the {video.size[0]}x{video.size[1]} of "
                "its video"
            )
    return rig


def _first_frame(
    stated: Stated,
    videos: Sequence[VideoInfo | None],
    files: Sequence[KeypointFiles | None],
    notes: list[tuple[str, str]],
) -> int:
    """Number of the keypoint file of a camera's first frame."""
    if stated.keypoints.first_frame is not None:
        return stated.keypoints.first_frame
    both = [(len(v.times_s), f) for v, f in zip(videos, files, strict=True) if v and f]
    # Numbered 1 to N for N frames: counted from 0, the last file of every camera would belong to no frame.
    if both and all(f.numbers[0] >= 1 and f.numbers[-1] == frames for frames, f in both):
        notes.append(("frame numbers", "keypoint files count from 1, since their last is the videos' length"))
        return 1
    return 0


def _timeline_of(
    folder: Path,
    rig: Rig,
    videos: Sequence[VideoInfo | None],
    files: Sequence[KeypointFiles | None],
    stated: Stated,
    first_frame: int,
    warnings: list[str],
) -> Timeline:
    yaml_path = folder / "recording.yaml"
    for name in stated.frame_offset:
        if name not in rig.names:
            raise InputError(
                f"{yaml_path}: frame_offset: no camera is called {name!r}; known: {', '.join(rig.names)}"
            )
    fps = _stated_rate(stated, [v.rate for v in videos if v], warnings)
    times: list[Array] = []
    rates: list[Fraction] = []
    first: list[int] = []
    for name, video, camera in zip(rig.names, videos, files, strict=True):
        rates.append(video.rate if video else fps)
        if video:
            own = video.times_s - video.times_s[0]
            first.append(0)
        else:
            assert camera is not None  # every camera has a video or keypoints
            low, high = (int(camera.numbers[i]) - first_frame for i in (0, -1))
            last_file = camera.file(int(camera.numbers[-1]))
            if high < 0:
                raise InputError(
                    f"{last_file} is the last file of {name}, but its number is below keypoints.first_frame "
                    f"({first_frame}) in {yaml_path}"
                )
            if high > 50_000_000:
                raise InputError(
                    f"{last_file}: frame {high} is too high; the last number in a file's name is its frame"
                )
            own = np.arange(high + 1) / float(fps)
            first.append(max(low, 0))
        offset = stated.frame_offset.get(name, 0)
        if abs(offset) >= len(own):
            raise InputError(f"{yaml_path}: frame_offset of {name} is {offset}, but it has {len(own)} frames")
        times.append(own - (own[offset] if offset >= 0 else offset / float(rates[-1])))
    warnings += _numbering_doubts(rig.names, videos, files, first_frame)

    timeline = common_timeline(times, rates, first)
    if not len(timeline):
        spans = ", ".join(
            f"{n} from {t[f]:.2f} s to {t[-1]:.2f} s" for n, t, f in zip(rig.names, times, first, strict=True)
        )
        raise InputError(f"{folder}: the cameras share no time: {spans}; recording.yaml: check frame_offset")
    unused = [
        f"{name} {before} at its start and {after} at its end"
        for name, own, index, start in zip(rig.names, times, timeline.frame_index, first, strict=True)
        for before, after in [
            (int(index[index >= 0].min(initial=len(own))) - start, len(own) - 1 - index.max())
        ]
        if before or after
    ]
    if unused:
        warnings.append(
            f"all cameras share {len(timeline)} frames, {timeline.duration_s:.2f} s; frames not used: "
            f"{'; '.join(unused)}"
        )
    if len(set(rates)) > 1:
        shown = ", ".join(f"{n} {float(r):.6g}" for n, r in zip(rig.names, rates, strict=True))
        warnings.append(f"frame rates differ ({shown} fps): frames are matched by time stamp")
    for name, count in zip(rig.names, (timeline.frame_index < 0).sum(1), strict=True):
        if count:
            warnings.append(f"camera {name} has no frame at {count} of {len(timeline)} instants")
    return timeline


def _stated_rate(stated: Stated, video_rates: Sequence[Fraction], warnings: list[str]) -> Fraction:
    """Frames a second of cameras without a video."""
    if video_rates:
        if stated.fps is not None:
            warnings.append("recording.yaml: fps is not used where there is a video: its time stamps count")
            return Fraction(str(stated.fps))
        return min(video_rates)
    if stated.fps is not None:
        return Fraction(str(stated.fps))
    warnings.append(
        "without videos nothing tells the frame rate: 30 fps assumed; state fps in recording.yaml"
    )
    return Fraction(30)


def _numbering_doubts(
    names: Sequence[str],
    videos: Sequence[VideoInfo | None],
    files: Sequence[KeypointFiles | None],
    first_frame: int,
) -> list[str]:
    """Keypoint files that are missing, that belong to no frame, or that count from another number."""
    doubts = []
    there = [(n, len(v.times_s) if v else None, f) for n, v, f in zip(names, videos, files, strict=True) if f]
    for name, frames, camera in there:
        low, high = int(camera.numbers[0]), int(camera.numbers[-1])
        shifted = frames == high - low + 1 and low != first_frame
        if shifted:
            # It is one number for all cameras: what mends one must not spoil another.
            fits_all = all(
                f.numbers[0] >= low and (n is None or f.numbers[-1] < low + n) for _, n, f in there
            )
            remedy = (
                f"state it in recording.yaml, keypoints: {{first_frame: {low}}}"
                if fits_all
                else f"number its files from {first_frame} on, as those of the others"
            )
            doubts.append(
                f"keypoint files of {name} are numbered {low} to {high}, and its video has {frames} frames: "
                f"if number {low} is the first, {remedy}"
            )
        first, last = low, high
        if frames is not None and not shifted:
            first, last = first_frame, first_frame + frames - 1
        inside = camera.numbers[(camera.numbers >= first) & (camera.numbers <= last)]
        missing = last - first + 1 - len(inside)
        if missing:
            # The number after the first that has no follower, unless the first itself is not there.
            follows = np.diff(inside, append=last + 2) == 1
            gap = first if not len(inside) or inside[0] > first else int(inside[follows.argmin()]) + 1
            doubts.append(
                f"{missing} of {last - first + 1} keypoint files of {name} are missing, the first of them "
                f"number {gap}"
            )
        if frames is not None and (beyond := int((camera.numbers - first_frame >= frames).sum())):
            doubts.append(
                f"{beyond} keypoint files of {name} are not used: their numbers are past its video's last "
                f"frame, {frames - 1}"
            )
    return doubts


def _check_people(
    folder: Path,
    rig: Rig,
    files: Sequence[KeypointFiles | None],
    timeline: Timeline,
    stated: Stated,
    first_frame: int,
    warnings: list[str],
) -> tuple[Rig, KeypointFormat]:
    """Keypoint format and unit of the calibration, from the limbs of the person on whom the views agree."""
    index = timeline.frame_index
    numbers = np.where(index >= 0, index + first_frame, -1)
    have = np.stack(
        [np.zeros(len(n), bool) if c is None else c.has(n) for c, n in zip(files, numbers, strict=True)]
    )
    both = np.flatnonzero(have.sum(0) >= 2)
    if not len(both):
        raise InputError(
            f"{folder}: at no time do two cameras have a keypoint file; check the frame numbers in the names"
        )
    points = _point_count(folder, rig, files, numbers[:, spread(both, 10 * _SAMPLE)], stated)
    wanted = stated.keypoints.format
    known = KeypointFormat(wanted or formats_with(points)[0], "")
    unit = stated.calibration.unit
    units = dict(UNITS) if unit is None else {"m": 1.0}
    try:
        for count in (_SAMPLE, 10 * _SAMPLE):  # more where the person is seldom there
            raw = read_views(files, numbers[:, spread(both, count)], points)
            known = find_scales(raw, known)
            image = to_pixels(raw, known, rig.size)
            guess, bodies = find_unit(rig, image, units)
            if len(bodies) >= _SAMPLE // 4 or count >= len(both):
                break
        if guess is None:
            bodies = best_bodies(rig, image)
            if not len(bodies):
                warnings.append(
                    "in the frames looked at, no two views agree on a person: calibration, its unit, "
                    "keypoint frame numbers or synchronisation may be wrong"
                )
            elif not math.isnan(size := body_size(bodies, formats_with(points))):
                warnings.append(
                    f"an arm and a leg of the person measure {size:.2f} m together, an adult's about 1.3 m: "
                    "is the unit of the calibration right? recording.yaml: calibration: {unit: ...}"
                )
        known, doubts = decide_format(bodies, known, wanted)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    span = float(np.linalg.norm(rig.centres[:, None] - rig.centres[None], axis=-1).max())
    if guess is None and unit is None and span > 100:
        guess = "mm"
    if guess is not None and guess != "m":
        rig = in_metres(rig, UNITS[guess])
        warnings.append(
            f"the calibration is taken to be in {guess}: the cameras stand up to {span * UNITS[guess]:.1f} m "
            f"apart then, not {span:.0f} m; state it in recording.yaml, calibration: {{unit: {guess}}}"
        )
    _doubt_scales(rig, image, known, warnings)
    warnings += _disagreements(rig, image)
    warnings += doubts
    return rig, known


def _check_pictures(
    folder: Path,
    rig: Rig,
    files: Sequence[KeypointFiles | None],
    timeline: Timeline,
    stated: Stated,
    first_frame: int,
    warnings: list[str],
) -> KeypointFormat:
    """Keypoint format and scales, as far as pictures tell them: without a calibration, or with one camera."""
    index = timeline.frame_index
    numbers = np.where(index >= 0, index + first_frame, -1)
    have = np.stack(
        [np.zeros(len(n), bool) if c is None else c.has(n) for c, n in zip(files, numbers, strict=True)]
    )
    any_file = np.flatnonzero(have.any(0))
    if not len(any_file):
        raise InputError(
            f"{folder}: no keypoint file belongs to a frame of the recording; check the frame numbers in the "
            "names"
        )
    points = _point_count(folder, rig, files, numbers[:, spread(any_file, 10 * _SAMPLE)], stated)
    wanted = stated.keypoints.format
    try:
        raw = read_views(files, numbers[:, spread(any_file, 4 * _SAMPLE)], points)
        known = find_scales(raw, KeypointFormat(wanted or formats_with(points)[0], ""))
        image = to_pixels(raw, known, rig.size)
        known, doubts = decide_format_in_pictures(image, known, wanted)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    _doubt_scales(rig, image, known, warnings)
    warnings += doubts
    return known


def _doubt_scales(rig: Rig, image: Floats, known: KeypointFormat, warnings: list[str]) -> None:
    for name, share in zip(rig.names, share_outside(image, rig.size), strict=True):
        if share > 0.05:
            warnings.append(
                f"camera {name}: {100 * share:.0f} % of the keypoints lie outside its picture: were they "
                "made on pictures of another size?"
            )
    unusual = [
        f"{name} {TOP_CONFIDENCE * scale:.2f}"
        for name, scale in zip(rig.names, known.confidence_scale, strict=False)
        if not USUAL_TOP[0] <= TOP_CONFIDENCE * scale <= USUAL_TOP[1]
    ]
    if unusual:
        warnings.append(
            f"keypoint confidences reach unusual values ({', '.join(unusual)}): those of each camera are "
            f"scaled to reach {TOP_CONFIDENCE}"
        )
    if known.normalised:
        warnings.append("keypoint coordinates lie between 0 and 1: taken as fractions of the picture")


def _disagreements(rig: Rig, image: Floats) -> list[str]:
    """Cameras that show people (V, T, P, K, 3) but seldom the one on whom the others agree."""
    person = find_bodies(rig, image).person[:, 0].T
    shows = shows_together(image)
    # As many as _FEW are enough, a share of 1 − AGREES is not yet too much: hence > and − 1.
    doubted = (shows & (person < 0)).sum(1) > np.maximum(_FEW - 1, (1 - AGREES) * shows.sum(1))
    if not doubted.any():
        return []
    pair = find_exchanged(rig, image[:, spread(np.arange(image.shape[1]), _SAMPLE)])
    if pair is not None:
        return [exchange_told(rig.names[pair[0]], rig.names[pair[1]])]
    shows &= (person >= 0).any(0)
    alone = shows & (person < 0)
    return [
        f"camera {name} shows somebody but agrees with no other view in {a} of {n} sampled frames: moved, "
        "out of sync, exchanged with another camera, or somebody else?"
        for name, a, n in zip(rig.names, alone.sum(1), shows.sum(1), strict=True)
        if a >= max(_FEW, _LONELY * n)
    ]


def exchange_told(one: str, other: str) -> str:
    """What is said of two exchanged cameras, wherever it is found out."""
    return (
        f"cameras {one} and {other} are exchanged: with the keypoints of the other, each agrees with the "
        "rest; exchange the names of their keypoints and videos, or of their calibrations"
    )


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
    for name, camera, wanted_numbers in zip(rig.names, files, numbers, strict=True):
        counts: Counter[int] = Counter()
        for number in wanted_numbers:
            file = None if camera is None or number < 0 else camera.file(int(number))
            if file is not None:
                looked += 1
                counts.update(count_points(file))
            if counts.total() >= 10:
                break
        if counts:
            per_camera[name] = counts.most_common(1)[0][0]
    stated_name = stated.keypoints.format
    if not per_camera and stated_name:
        return len(FORMATS[stated_name])
    if not per_camera:
        raise InputError(f"{folder}: nobody in any of the {looked} keypoint files looked at")
    found = set(per_camera.values())
    if len(found) > 1:
        shown = ", ".join(f"{n} {c}" for n, c in per_camera.items())
        raise InputError(f"{folder}: the cameras' numbers of keypoints differ ({shown}); all need one format")
    points = found.pop()
    if stated_name and len(FORMATS[stated_name]) != points:
        raise InputError(
            f"{folder / 'recording.yaml'}: keypoints.format {stated_name} has {len(FORMATS[stated_name])} "
            f"points, the files have {points}"
        )
    if not formats_with(points):
        shown = ", ".join(f"{n} ({len(p)})" for n, p in FORMATS.items())
        raise InputError(f"{folder}: {points} keypoints a person fit none of the known formats: {shown}")
    return points


def _describe(
    video: VideoInfo | None, files: KeypointFiles | None, size: NDArray[np.int64], folder: Path
) -> str:
    parts = []
    if video:
        parts.append(
            f"{video.path.relative_to(folder)} ({video.codec} {size[0]}x{size[1]}, "
            f"{len(video.times_s)} frames at {float(video.rate):.6g} fps)"
        )
    else:
        parts.append("no video")
    parts.append(f"{len(files)} files in {files.folder.relative_to(folder)}" if files else "no keypoints")
    return ", ".join(parts)
