"""Videos of a recording: files, and folders of numbered pictures in place of one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Final
from unicodedata import normalize

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.calibrations import is_calibration_place
from pipeline.calibrations.checks import plain
from pipeline.errors import InputError
from pipeline.findings import Finding
from pipeline.formats.keypoints.files import find_number
from pipeline.results import INSIDE, STORE, drawn_into
from pipeline.video import VideoInfo, probe

ASSUMED_FPS: Final = Fraction(30)
"""Frame rate of pictures without a stated one."""
_VIDEO_FOLDERS: Final = (
    "videos", "video", "synchronized_videos", "videos-raw", "raw-2d", "imagesequence", ".", "images",
    "image", "frames",
)  # fmt: skip
"""Folders with videos, in any case of letters; the first that has some is used."""
_VIDEO_SUFFIXES: Final = frozenset((
    ".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".qt", ".mts", ".m2ts", ".m2t", ".ts", ".mpg", ".mpeg",
    ".mpe", ".m2v", ".vob", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".mxf", ".dv", ".mjpeg",
    ".mjpg", ".h264", ".264", ".hevc", ".h265", ".265", ".y4m", ".divx", ".insv", ".nut", ".ivf", ".mod",
    ".tod",
))  # fmt: skip
"""Suffixes of videos, damaged or not; a file with another one is a video where FFmpeg finds one in it."""
_PREVIEW_SUFFIXES: Final = frozenset((".lrv", ".thm"))
"""Suffixes of small copies that action cameras write beside their videos."""
_PICTURE_SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))
_CAMERA_LEVELS: Final = 4
"""Levels of a camera's folder, its own the first, in which its video is looked for."""
_BOARD_PLACE: Final = re.compile(r"[ck]alib|intri|extri|(chess|checker)board")
"""Folders in a camera's folder with its pictures of a board; a phone's ``DCIM/Camera`` is none."""
_MAX_NUMBERS_PER_PICTURE: Final = 1000
"""Range of the numbers in pictures' names over their count, above which these are no frame numbers."""


def find_videos(folder: Path, findings: list[Finding]) -> dict[str, Path]:
    """Find each camera's video file or folder of pictures, without videos that a run drew.

    The name of the file or folder is the camera's. Raises ``InputError`` where two have the same.
    """
    drawn = drawn_into(folder)
    if drawn:
        sentence = (
            f"{folder} holds the results of a run among the recording's own files: move them to "
            f"{folder / INSIDE}"
        )
        findings.append(Finding("results_inside", sentence))
    used = _places(folder, drawn)
    if not used:
        return {}
    place_name, cameras = used[0]
    if len(used) > 1:
        also = ", ".join(p or "the folder itself" for p, _ in used[1:])
        sentence = f"videos are taken from {place_name or 'the folder itself'}; those in {also} are not used"
        findings.append(Finding("videos_elsewhere", sentence))
    by_name: dict[str, Path] = {}
    for camera, path in cameras:
        camera = normalize("NFC", camera)
        if camera in by_name:
            raise InputError(
                f"{path.parent}: two videos of camera {camera}: {by_name[camera].name}, {path.name}"
            )
        by_name[camera] = path
    return by_name


def _places(folder: Path, drawn: frozenset[str]) -> list[tuple[str, list[tuple[str, Path]]]]:
    """Name of each folder with videos, and its (camera, video), in order of precedence."""
    subfolders = {p.name.casefold(): p for p in sorted(folder.iterdir(), reverse=True) if p.is_dir()}
    places = []
    for name in _VIDEO_FOLDERS:
        place = folder if name == "." else folder / name
        place = place if place.is_dir() else subfolders.get(name, place)
        if place.is_dir():
            found = [x for x in _cameras_in(place, name == ".") if name != "." or x[1].name not in drawn]
            places += [("" if name == "." else f"{place.name}/", found)] if found else []
    return places


def _cameras_in(place: Path, is_recording: bool) -> list[tuple[str, Path]]:
    """(camera, video or folder of pictures) in a folder: files, else what its subfolders hold.

    In the recording's own folder, only files with a video's suffix.
    """
    there = [p for p in sorted(place.iterdir()) if not p.name.startswith(".")]
    files = [
        (p.stem, p)
        for p in there
        if p.is_file() and (p.suffix.lower() in _VIDEO_SUFFIXES or (not is_recording and _is_video(p)))
    ]
    if files or is_recording:
        return files
    return [(sub.name, video) for sub in there if sub.is_dir() and (video := _only_footage(sub))]


def _only_footage(folder: Path) -> Path | None:
    """The only video, or folder of numbered pictures, of a camera's folder, or of the nearest level below
    that has any: a memory card's DCIM/100GOPRO, AVCHD/BDMV/STREAM, OpenCap's InputMedia/<trial>."""
    level, above = [folder], (folder.resolve(), *folder.resolve().parents)  # where a link may lead back
    for _ in range(_CAMERA_LEVELS):
        inside = [[p for p in sorted(place.iterdir()) if p.name[0] != "."] for place in level]
        videos = [p for each in inside for p in each if p.suffix.lower() in _VIDEO_SUFFIXES]
        pictures = [
            place
            for place, each in zip(level, inside, strict=True)
            if any(p.suffix.lower() in _PICTURE_SUFFIXES and find_number(p.stem) for p in each)
        ]
        if videos or pictures:
            only = videos if len(videos) == 1 else pictures
            return only[0] if len(only) == 1 else None
        deeper = (p for each in inside for p in each if not _BOARD_PLACE.search(plain(p.name)))
        level = [p for p in deeper if p.is_dir() and p.resolve() not in above]
    return None


def _is_video(file: Path) -> bool:
    """True for a file of unknown suffix in which FFmpeg finds a video, not text or a picture."""
    if file.suffix.lower() in _PREVIEW_SUFFIXES | _PICTURE_SUFFIXES:
        return False
    try:
        with av.open(str(file)) as container:
            form, cover = container.format.name, av.stream.Disposition.attached_pic
            moving = any(not s.disposition & cover for s in container.streams.video)
            return moving and not form.endswith("_pipe") and form not in ("tty", "image2")
    except (av.FFmpegError, OSError, ValueError):
        return False


def unread_videos(folder: Path) -> list[Finding]:
    """Finding on videos in the recording, outside of results, that are not read; without any, on pictures
    outside of cameras' folders."""
    drawn, unread, loose = drawn_into(folder), list[Path](), list[Path]()
    read = {path for _, cameras in _places(folder, drawn) for _, path in cameras}
    for sub in (folder, *sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")):
        if sub != folder and (sub.name == INSIDE or (sub / STORE).exists() or drawn_into(sub)):
            continue
        direct, is_place = [*sub.iterdir()], sub != folder and sub.name.casefold() in _VIDEO_FOLDERS
        videos = [
            p
            for p in (*direct, *(sub.rglob("*/*") if is_place else ()))
            if p.suffix.lower() in _VIDEO_SUFFIXES | _PREVIEW_SUFFIXES and p not in read and p.is_file()
        ]
        unread += sorted(p for p in videos if not (sub == folder and p.name in drawn))
        if not read and sub != folder and not is_calibration_place(sub.name):
            loose += sorted(p for p in direct if p.suffix.lower() in _PICTURE_SUFFIXES)
    files, what = (unread, "videos") if unread else (loose, "pictures")
    if not files:
        return []
    suffix = unread[0].suffix if unread else ".mp4"
    sentence = (
        f"{len(files)} {what} are not read, the first is {files[0].relative_to(folder)}: a camera's video is "
        f"videos/<camera>{suffix}, or the only one in videos/<camera>/, and its pictures are "
        "images/<camera>/<number>.jpg"
    )
    return [Finding("videos_unread", sentence)]


def probe_videos(
    files: Mapping[str, Path], fps: Fraction | None, numbers: Mapping[str, NDArray[np.int64]]
) -> dict[str, VideoInfo]:
    """Probe the cameras' videos and folders of pictures.

    Pictures are numbered by their names, from the lowest number of all cameras on, and up to the last
    keypoint where a camera has keypoints of all its pictures and more. fps: of the pictures; default: that of
    the slowest video, or ``ASSUMED_FPS``. numbers: (N,) of each camera's keypoints.

    Raises ``InputError`` for what cannot be read.
    """
    videos = {name: probe(file) for name, file in files.items() if not file.is_dir()}
    rate = fps or min((v.rate for v in videos.values()), default=ASSUMED_FPS)
    pictures = {name: _numbered(folder) for name, folder in files.items() if folder.is_dir()}
    base = min((min(p) for p in pictures.values()), default=0)
    for name, by_number in pictures.items():
        last, marked = max(by_number), numbers.get(name, np.empty(0, np.int64))
        if len(marked) > len(by_number) and np.isin([*by_number], marked).all():
            last = max(last, int(marked[-1]))
        if last - base > _MAX_NUMBERS_PER_PICTURE * len(by_number):
            raise InputError(
                f"{files[name]}: {len(by_number)} pictures are numbered {min(by_number)} to {last}, of all "
                f"cameras from {base} on; the last number in a picture's name must be its frame: count them"
            )
        videos[name] = _as_video(files[name], by_number, range(base, last + 1), rate)
    return {name: videos[name] for name in files}


def _numbered(folder: Path) -> dict[int, str]:
    """Names of the pictures in a folder by the last number in them. Raises ``InputError``."""
    found: dict[int, str] = {}
    for file in sorted(
        p for p in folder.iterdir() if p.suffix.lower() in _PICTURE_SUFFIXES and p.name[0] != "."
    ):
        number = find_number(file.stem)
        if number is None:
            continue
        if (frame := int(number[1])) in found:
            raise InputError(
                f"{folder}: {found[frame]} and {file.name} are both frame {frame}; the last number in a "
                "picture's name must be its frame"
            )
        found[frame] = file.name
    if not found:
        raise InputError(f"{folder}: neither a video nor pictures with a number in their names")
    return found


def _as_video(folder: Path, by_number: Mapping[int, str], frames: range, rate: Fraction) -> VideoInfo:
    first = folder / by_number[min(by_number)]
    picture = cv2.imread(str(first))
    if picture is None:
        raise InputError(f"{first}: cannot be read as a picture. Write it again, or take it away.")
    gaps = [n for n in range(min(by_number), max(by_number)) if n not in by_number]
    warnings = (
        (f"{folder}: {len(gaps)} pictures are missing, the first of them number {gaps[0]}",) if gaps else ()
    )
    return VideoInfo(
        folder,
        (picture.shape[1], picture.shape[0]),
        0,
        rate,
        np.arange(len(frames)) / float(rate),
        f"{first.suffix[1:].lower()} pictures",
        warnings,
        1 / rate,
        first_number=frames[0],
        pictures=tuple(by_number.get(n, "") for n in frames),
    )
