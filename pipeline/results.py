"""OUT, the folder of a recording's results: names of its files, its summary, and places where it may lie.

No other source file knows these names. Only files that an earlier summary of the same folder names are
deleted, and only videos that were drawn here are overwritten.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import av
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import InputError
from pipeline.files import write_text_atomically, writing
from pipeline.summary import MissingData, Summary
from pipeline.video import part_name

if TYPE_CHECKING:  # what only looks for files is not to wait for torch
    from pipeline.store import Store

STORE: Final = "results.zarr"
DETECTIONS: Final = "detections.zarr"
"""People detected in the videos."""
SUMMARY: Final = "summary.json"
"""Summary, written last: with it, everything else is complete."""
REPORT: Final = "report.html"
CALIBRATION: Final = "calibration.toml"
"""Cameras estimated from a person."""
SYNC: Final = "sync.yaml"
"""Clocks of the cameras."""
LOG: Final = "log.txt"
"""Messages of the runs of a batch."""
MOSAIC: Final = "mosaic.mp4"
THUMBNAIL: Final = "thumbnail.jpg"
"""Small picture from the middle of the drawn videos, for the page of a batch."""
TRUTH: Final = "truth.zarr"
"""Store beside a synthetic recording, in the schema of the results."""
INSIDE: Final = "results"
"""Folder in the recording that is proposed as OUT."""
REDRAWN: Final = "render"
"""Folder in OUT for drawings of finished results, each in a folder of its own."""
DRAWN: Final = "drawn by multispin"
"""Start of the comment inside every drawn video."""


def scene_video(mode: str) -> str:
    """File name of a video of virtual cameras, such as ``side.mp4``."""
    return f"{mode}.mp4"


def camera_videos(show: str, cameras: Sequence[str]) -> dict[str, str]:
    """Camera → file name of its drawn video, ``<show>_<camera>.mp4``, in the order given.

    Names are safe for every file system, differ from one another whatever the case of their letters, and are
    never the ``.part`` file of another.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for camera in cameras:
        safe = re.sub(r"\.part$", "_part", re.sub(r"[^\w.-]+", "_", camera), flags=re.IGNORECASE)
        name, number = safe, 1
        while name.casefold() in taken:
            number += 1
            name = f"{safe}_{number}"
        taken.add(name.casefold())
        names[camera] = f"{show}_{name}.mp4"
    return names


@dataclass(frozen=True)
class RunSummary(Summary):
    """Content of ``summary.json``: summary of the store, settings and origin."""

    recording: str
    """Absolute path of the recording's folder."""
    store: str
    """Digest of the store's contents."""
    videos: tuple[str, ...]
    """File names of the videos that the run drew."""
    calibration: Mapping[str, Any]
    """file, and estimated: whether it was estimated from a person."""
    sync: Mapping[str, Any]
    """Method, clock of each camera, and its residual over lag."""
    format: Mapping[str, Any]
    """Keypoint format: name, and evidence for it."""
    regressor: str
    """Network of the starting poses, and its weights."""
    warnings: tuple[str, ...]
    """Findings: few fitted frames, cameras mostly left out of the fit, then those on the recording and on
    estimated cameras."""
    missing: Mapping[str, MissingData]
    """Camera → reasons of its missing keypoints."""
    seconds_taken: float
    stages: tuple[Mapping[str, Any], ...]
    """Busy, starved and blocked seconds of each stage."""
    config: Mapping[str, Any]
    body: Mapping[str, str]
    versions: Mapping[str, str]
    triangulation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Camera → residual_px, residual_mm and verdict; empty where cameras cannot be compared."""
    meanings: Mapping[str, str] = field(default_factory=dict)
    """Quantity → definition and limits of its verdicts, in a sentence."""
    video_files: tuple[str, ...] = ()
    """Absolute paths of the videos, where the recording is nothing but these."""

    def write(self, out: Path) -> None:
        """Write to the folder ``out`` atomically. Raises ``InputError``."""
        write_text_atomically(out / SUMMARY, json.dumps(asdict(self), indent=2, allow_nan=False) + "\n")


def read_summary(out: Path) -> RunSummary | None:
    """Summary of the run that ended in ``out``; None when there is none or it is damaged."""
    try:
        return TypeAdapter(RunSummary).validate_json((out / SUMMARY).read_bytes())
    except (OSError, ValidationError):
        return None


def drawn_videos(summary: bytes) -> frozenset[str]:
    """Names of the drawn videos in the text of a ``summary.json``; none of damaged text."""
    try:
        names = {Path(str(name)).name for name in json.loads(summary)["videos"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return frozenset()
    return frozenset(name for name in names if name.endswith(".mp4"))


def drawn_into(folder: Path) -> frozenset[str]:
    """Names of the drawn videos in the summary of a folder."""
    try:
        return drawn_videos((folder / SUMMARY).read_bytes())
    except OSError:
        return frozenset()


def recording_of(out: Path) -> Path | None:
    """Recording that the summary in ``out`` names; None when it names none, or there is no summary."""
    try:
        return Path(json.loads((out / SUMMARY).read_bytes())["recording"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def clear(out: Path) -> None:
    """Delete summary and report of an earlier run in ``out``, and the videos that the summary names.

    Without a summary nothing is deleted. The summary goes first: it vouches for the others.
    """
    if not (out / SUMMARY).is_file():
        return
    videos = sorted(drawn_into(out))
    for name in (SUMMARY, REPORT, *videos, *map(part_name, videos)):
        if not (out / name).is_dir():  # a damaged summary may name anything
            (out / name).unlink(missing_ok=True)


def remove_run(out: Path) -> None:
    """Delete the store, summary, report and drawn videos of an earlier run in ``out``.

    Detected people and estimated cameras stay. Raises ``InputError`` where the store is none.
    """
    store = out / STORE
    with writing(out, "Choose another --out."):
        if store.exists():
            try:
                ours = json.loads((store / "zarr.json").read_bytes())["attributes"]["format"] == "multispin"
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                ours = False
            if not ours:
                raise InputError(f"{store}: is not a store of results, or damaged. Remove it by hand.")
            shutil.rmtree(store)
        clear(out)


def check_drawable(out: Path, names: Iterable[str]) -> None:
    """Raise ``InputError`` where a drawing must not be written.

    One of these videos exists and was not drawn by this program, or by the run whose summary is there; or
    ``out`` is the recording's own folder, where a drawing would be taken for a camera's video.
    """
    recording = recording_of(out)
    if recording is not None and recording.resolve() == out.resolve():
        raise InputError(f"{out}: is the recording's own folder, too.{_left_in(out)}")
    known = drawn_into(out)
    for name in names:
        file = out / name
        if name in known:
            raise InputError(f"{file}: is a video of the run whose results are there. Choose another --out.")
        if file.exists() and not _comment_and_frames(file)[0].startswith(DRAWN):
            raise InputError(
                f"{file}: is there already and was not drawn by this program. Move it away, or choose "
                "another folder."
            )


def drawn_mark(store: str, settings: Mapping[str, Any]) -> str:
    """Comment for a video that is drawn of a store with this digest, with these settings."""
    text = store + json.dumps(settings, sort_keys=True)
    return f"{DRAWN} {hashlib.sha256(text.encode()).hexdigest()}"


def is_whole_drawing(file: Path, mark: str, frames: int) -> bool:
    """True for a video with this ``drawn_mark`` and number of frames."""
    return _comment_and_frames(file) == (mark, frames)


def _comment_and_frames(file: Path) -> tuple[str, int]:
    """Comment and number of frames of a video; '' if unreadable, 0 without its end."""
    comment = ""
    try:
        with av.open(str(file)) as container:
            comment, stream = container.metadata.get("comment", ""), container.streams.video[0]
            container.seek(stream.duration or 0, stream=stream)
            ends = [(p.pts or 0) + (p.duration or 0) for p in container.demux(stream) if p.size]
            whole = ends and max(ends) >= (stream.start_time or 0) + (stream.duration or 0)
            return comment, stream.frames if whole else 0
    except (av.FFmpegError, OSError, IndexError):
        return comment, 0


def check_fresh(out: Path) -> None:
    """Raise ``InputError`` where ``out`` has files with a run's names, but no results."""
    if (out / STORE).exists() or read_summary(out) is not None:
        return
    for name in (SUMMARY, REPORT):
        if (out / name).exists():
            raise InputError(
                f"{out / name}: is there already, without results of a run beside it. Move it away, or "
                "choose another --out."
            )


def check_place(out: Path, recording: Path, inputs: Iterable[Path], name: object = None) -> None:
    """Raise ``InputError`` where results in ``out`` would lie among the recording's own files.

    inputs: files and folders that a run reads. name: of ``out``, for the message.
    """
    here, home = out.resolve(), recording.resolve()
    name = out if name is None else name
    advice = f"Choose {recording / INSIDE}, or a folder elsewhere."
    if here == home:
        raise InputError(f"--out {name}: is the recording's own folder. {advice}{_left_in(recording)}")
    for file in inputs:
        # A link counts where it lies and where it leads.
        places = (file.parent.resolve() / file.name, file.resolve())
        if any(place.is_relative_to(here) for place in places):
            raise InputError(f"--out {name}: holds {file}, which the run reads. {advice}")
        around = places[0] if file.is_dir() else places[0].parent
        own = {around, around.parent} if file.is_dir() else {around}
        if any(here.is_relative_to(folder) for folder in own if home in folder.parents):
            raise InputError(f"--out {name}: lies among the recording's own files ({file}). {advice}")


def _left_in(recording: Path) -> str:
    """Advice on results of an earlier version among the recording's own files; '' without any."""
    if not (recording / STORE).exists():
        return ""
    left = [
        n for n in (STORE, SUMMARY, REPORT, LOG, *sorted(drawn_into(recording))) if (recording / n).exists()
    ]
    return (
        f" Results of an earlier run lie there: to go on with them, move {', '.join(left)} to "
        f"{recording / INSIDE}, and calibration.toml if a run has estimated it."
    )


@dataclass(frozen=True)
class Results:
    """Results, finished or not, by the path of OUT or of the store in it."""

    path: Path

    @property
    def store_path(self) -> Path:
        return self.path if (self.path / "zarr.json").is_file() else self.path / STORE

    @property
    def folder(self) -> Path:
        """Folder of summary and videos."""
        return self.store_path.parent

    def drawings(self, mode: str, frames: range) -> Path:
        """Folder for drawings; its name has the frames unless they are all of the store."""
        check_drawable(self.folder, ())
        whole = frames == range(len(self.store().contents.time_s))
        return self.folder / REDRAWN / (mode if whole else f"{mode}_frames_{frames[0]}-{frames[-1]}")

    def store(self) -> Store:
        """Open the store. Raises ``InputError``."""
        from pipeline.store import Store

        if not self.store_path.exists() and (inner := _results_in(self.path)):
            more = f" and {len(inner) - 3} more" if len(inner) > 3 else ""
            raise InputError(
                f"{self.path}: holds no results itself, but those of several recordings: give one of its "
                f"folders, {', '.join(inner[:3])}{more}"
            )
        return Store(self.store_path)

    @property
    def video_files(self) -> tuple[Path, ...]:
        """Videos of a recording without a folder, by its summary."""
        made = read_summary(self.folder)
        return () if made is None else tuple(map(Path, made.video_files))

    def recording(self, stated: Path | None = None) -> Path:
        """Folder of the recording: as stated, else as the summary says.

        Raises ``InputError`` when it is not known or not there.
        """
        if stated is not None:
            return stated
        recording, advice = recording_of(self.folder), "Say where it is: --recording FOLDER."
        if recording is None:
            raise InputError(f"{self.folder}: {SUMMARY} names no recording. {advice}")
        if not recording.is_dir():
            raise InputError(f"{recording}: the recording of {self.folder} is not there any more. {advice}")
        return recording


def _results_in(folder: Path) -> list[str]:
    """Folders with results up to two levels down, as those of a batch."""
    found = [*folder.glob(f"*/{STORE}"), *folder.glob(f"*/*/{STORE}")]
    return sorted(store.parent.relative_to(folder).as_posix() for store in found)


def body_file(store: Store, stated: Path | None = None) -> Path | None:
    """SMPL file of a body: as stated, else the one that the store was made with; None for the shipped one.

    Raises ``InputError`` when that is not there any more.
    """
    made_with = store.contents.config.get("body")
    if stated is not None or not made_with:
        return stated
    if not Path(made_with).is_file():
        raise InputError(
            f"{made_with}: the body that {store.path} was made with is not there any more. Put it back, or "
            "say where it is: --body FILE."
        )
    return Path(made_with)
